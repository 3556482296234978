"""Real digits, really split."""

import builtins
import socket
from typing import Any

import pytest
import torch
from skimage import data as shipped

from normtutor.lab import digits, minibatches, photographs
from normtutor.lab.data import PHOTOGRAPHS


def test_digits_are_split_without_overlap_and_by_class() -> None:
    data = digits()
    assert data.train_images.shape == (1347, 1, 8, 8)
    assert data.test_images.shape == (450, 1, 8, 8)
    assert data.train_images.dtype == torch.float32
    assert data.train_labels.dtype == torch.int64
    assert (data.train_images.min(), data.train_images.max()) == (0, 1)
    shares = [labels.bincount(minlength=10) / len(labels) for labels in (data.train_labels, data.test_labels)]
    torch.testing.assert_close(*shares, rtol=0, atol=0.003)
    train = {tuple(image.flatten().tolist()) for image in data.train_images}
    assert not any(tuple(image.flatten().tolist()) in train for image in data.test_images)


def test_the_seed_is_the_split() -> None:
    assert torch.equal(digits(seed=3).test_labels, digits(seed=3).test_labels)
    assert not torch.equal(digits(seed=3).test_images, digits(seed=4).test_images)
    assert len(digits(test_fraction=0.1).test_labels) == 180


def test_an_epoch_is_every_image_once_in_an_order_of_the_seed() -> None:
    x, y = torch.arange(10.0), torch.arange(10)
    batches = list(minibatches(x, y, 5, epochs=2, seed=1))
    assert len(batches) == 4
    for epoch in (batches[:2], batches[2:]):
        assert sorted(torch.cat([images for images, _ in epoch]).tolist()) == x.tolist()
    assert all(torch.equal(images.long(), labels) for images, labels in batches)
    order = torch.cat([labels for _, labels in batches])
    assert not torch.equal(order[:10], order[10:])
    assert torch.equal(order, torch.cat([labels for _, labels in minibatches(x, y, 5, epochs=2, seed=1)]))


def test_no_short_batch_and_no_end() -> None:
    x, y = torch.arange(10.0), torch.arange(10)
    assert [len(labels) for _, labels in minibatches(x, y, 4)] == [4, 4]  # a batch of 2, or of 1, never comes
    endless = minibatches(x, y, 4, epochs=None)
    assert len([next(endless) for _ in range(50)]) == 50


def test_bad_sizes_are_refused_before_the_first_batch() -> None:
    x, y = torch.arange(10.0), torch.arange(10)
    with pytest.raises(ValueError, match="from 1 to 10, got 11"):
        minibatches(x, y, 11)
    with pytest.raises(ValueError, match="got 9 and 10"):
        minibatches(x, y[:9], 2)


def test_photographs_come_out_of_the_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "socket", no_network)
    found = photographs(size=32)
    assert list(found) == list(PHOTOGRAPHS)
    for image in found.values():
        assert image.dtype == torch.float32
        assert image.shape[0] == 3
        assert min(image.shape[1:]) == 32
        assert 0 <= image.min() < image.mean() < image.max() <= 1
    assert found["china"].shape == (3, 32, 48)  # 427 × 640: the proportions stay
    as_it_ships = torch.tensor(shipped.chelsea()).permute(2, 0, 1) / 255
    torch.testing.assert_close(photographs("chelsea", size=300)["chelsea"], as_it_ships)
    red, green, blue = found["retina"].mean((1, 2))
    assert red > green > blue


def test_bad_photographs() -> None:
    with pytest.raises(ValueError, match="unknown photograph 'cat': expected one of astronaut, chelsea"):
        photographs("cat")
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        photographs("chelsea", size=0)


@pytest.mark.parametrize(("name", "package"), [("chelsea", "scikit-image"), ("china", "scikit-learn")])
def test_a_missing_package_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(module: str, *args: Any, **kwargs: Any) -> Any:
        if module.startswith(("skimage", "sklearn")):
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match=f"ships inside {package}.*pip install {package}"):
        photographs(name)
