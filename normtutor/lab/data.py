"""Data that ships inside packages: real digits, with a real split, and photographs."""

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

# The photographs that ship inside scikit-image and scikit-learn (the others of scikit-image are downloads).
PHOTOGRAPHS = {
    "astronaut": "Eileen Collins, by NASA, public domain",
    "chelsea": "Chelsea the cat, by Stefan van der Walt, CC0",
    "coffee": "coffee cup, by Rachel Michetti, CC0",
    "rocket": "launch of DSCOVR on Falcon 9, by SpaceX, public domain",
    "hubble": "Hubble eXtreme Deep Field, by NASA, public domain",
    "retina": "retina of a human eye, by Mikael Häggström, CC0",
    "ihc": "tissue stained by immunohistochemistry, no known copyright restrictions",
    "china": "Summer Palace, by danielbuechele on Flickr, CC BY 2.0",
    "flower": "dahlia, by vultilion on Flickr, CC BY 2.0",
}


class Digits(NamedTuple):
    """Images (N, 1, 8, 8), float32 in [0, 1]; labels (N,), int64 in 0 … 9."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def digits(seed: int = 0, test_fraction: float = 0.25, device: str | None = None) -> Digits:
    """1797 handwritten digits (Alpaydin & Kaynak 1998, in scikit-learn), split at random, stratified by
    class.

    Pixels are divided by 16, their largest possible value: a constant of the format, so that nothing of the
    test images reaches training.

    Args:
        seed: of the split.
        test_fraction: share of the test set, between 0 and 1.
        device: of the tensors.

    Raises:
        ValueError: ``test_fraction`` leaves a set without some class.
    """
    train, train_labels, test, test_labels = _split_digits(seed, test_fraction)

    def images(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 8, 8) / 16

    def classes(values: object) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return Digits(images(train), classes(train_labels), images(test), classes(test_labels))


@cache
def _split_digits(seed: int, test_fraction: float) -> tuple[Any, Any, Any, Any]:
    """Training pixels and labels, test pixels and labels; read once, since an experiment asks many times."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = load_digits(return_X_y=True)
    split = train_test_split(pixels, labels, test_size=test_fraction, random_state=seed, stratify=labels)
    train, test, train_labels, test_labels = split
    return train, train_labels, test, test_labels


def photographs(*names: str, size: int = 128) -> dict[str, Tensor]:
    """Real photographs: name → (3, H, W), float32 in [0, 1], their credits in ``PHOTOGRAPHS``.

    They come out of the installed scikit-image and scikit-learn; nothing is downloaded.

    Args:
        names: keys of ``PHOTOGRAPHS``; default: all.
        size: length of the shorter side in pixels, to which each is resized.

    Raises:
        ValueError: an unknown name, or ``size`` below 1.
        ModuleNotFoundError: scikit-image or scikit-learn is not installed.
    """
    unknown = [name for name in names if name not in PHOTOGRAPHS]
    if unknown:
        raise ValueError(f"unknown photograph {unknown[0]!r}: expected one of {', '.join(PHOTOGRAPHS)}")
    if size < 1:
        raise ValueError(f"expected a size of at least 1 pixel, got {size}")
    return {name: _resized(_pixels(name), size) for name in names or PHOTOGRAPHS}


def _pixels(name: str) -> Tensor:
    """(3, H, W) in [0, 1], as large as it ships."""
    package = "scikit-learn" if name in ("china", "flower") else "scikit-image"
    try:
        if package == "scikit-learn":
            from sklearn.datasets import load_sample_image

            pixels = load_sample_image(f"{name}.jpg")
        else:
            from skimage import data

            functions = {"hubble": "hubble_deep_field", "ihc": "immunohistochemistry"}
            pixels = getattr(data, functions.get(name, name))()
    except ModuleNotFoundError as error:
        why = f"the photograph {name!r} ships inside {package}, which cannot be loaded: {error}. "
        raise ModuleNotFoundError(
            f"{why}`pip install {package} pillow` brings it.", name=error.name
        ) from None
    return torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1) / 255


def _resized(image: Tensor, size: int) -> Tensor:
    height, width = image.shape[1:]
    factor = size / min(height, width)
    shape = (round(height * factor), round(width * factor))
    small = interpolate(image[None], size=shape, mode="bilinear", antialias=True, align_corners=False)
    return small[0].clamp(0, 1)


def minibatches(
    images: Tensor, labels: Tensor, size: int, *, epochs: int | None = 1, seed: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches in a fresh random order every epoch; what does not fill a batch is left out of that epoch.

    Args:
        images, labels: (N, …) each.
        size: elements of a batch, from 1 to N.
        epochs: how often every image comes; None: without end.
        seed: of the order.

    Yields:
        ``(images, labels)`` of one batch, on the device of ``images``.

    Raises:
        ValueError: ``size`` out of range, or images and labels of different lengths.
    """
    if len(images) != len(labels):
        raise ValueError(f"expected as many labels as images, got {len(labels)} and {len(images)}")
    if not 1 <= size <= len(images):
        raise ValueError(f"expected a batch size from 1 to {len(images)}, got {size}")
    return _batches(images, labels, size, epochs, seed)


def _batches(
    images: Tensor, labels: Tensor, size: int, epochs: int | None, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    random = torch.Generator().manual_seed(seed)
    while epochs is None or epochs > 0:
        order = torch.randperm(len(images), generator=random).to(images.device)
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            yield images[chosen], labels[chosen]
        epochs = None if epochs is None else epochs - 1
