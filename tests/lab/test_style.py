"""Style transfer: a loss that means something, networks that train, and a record of them."""

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from normtutor.lab import evidence, style
from normtutor.lab.claims import instance_norm as claims

TINY: dict[str, Any] = {"width": 2, "crop": 32, "steps": 3, "batch_size": 2, "size": 48}


def test_a_gram_matrix_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]], [[[0.0, 0.0]], [[2.0, 0.0]]]])
    assert style.gram(features).tolist() == [[[2.5, 5.5], [5.5, 12.5]], [[0.0, 0.0], [0.0, 2.0]]]


def test_the_filters_are_fixed_and_of_length_one_and_most_see_edges_only() -> None:
    filters = style.RandomFilters()
    assert torch.equal(filters.weight, style.RandomFilters().weight)
    torch.testing.assert_close(filters.weight.flatten(1).norm(dim=1), torch.ones(24))
    assert list(filters.parameters()) == []
    flat = torch.full((1, 3, 32, 32), 0.7)
    for features in filters(flat):
        assert features[:, : filters.edges].abs().max() < 1e-5
        assert features[:, filters.edges :].max() > 0.1
    assert [f.shape[-1] for f in filters(flat)] == [26, 10, 2]
    with pytest.raises(ValueError, match=r"at least 28×28, got \(32, 27\)"):
        filters(torch.zeros(1, 3, 32, 27))


def test_the_loss_knows_the_style_and_the_content() -> None:
    images = style.pictures(64)
    target, photograph = images[style.STYLE], images[style.HELD_OUT][None]
    loss_of = style.PerceptualLoss(target)
    see = loss_of.filters
    assert loss_of.style(see(target[None])) == 0
    assert loss_of.style(see(target.flip(2)[None])) < loss_of.style(see(photograph)) / 2  # a mirror image
    assert loss_of.style(see(torch.zeros(1, 3, 64, 64))) == pytest.approx(1)  # grey has no features
    assert loss_of.content(see(photograph), see(photograph)) == 0
    assert loss_of.content(see(photograph.flip(3)), see(photograph)) > 0.5
    strict, other = style.PerceptualLoss(target, content_weight=10.0), photograph.flip(3)
    assert strict(other, photograph) > 2 * loss_of(other, photograph)
    # The style is compared picture by picture, whatever their company.
    both = torch.cat([photograph, target[None, :, :56, :56].repeat(1, 1, 2, 2)[..., :64, :64]])
    alone = [loss_of.style(see(x[None])).item() for x in both]
    assert loss_of.style(see(both)).item() == pytest.approx(sum(alone) / 2)


def test_the_style_is_the_petals_only() -> None:
    petals = style.pictures(128)[style.STYLE]
    assert petals.shape == (3, 112, 112)
    red, _, blue = petals.mean((1, 2))
    assert red > 0.2 > blue + 0.2  # orange


def test_crops_come_from_everywhere_and_from_every_picture() -> None:
    a = torch.arange(30.0).view(1, 5, 6).expand(3, 5, 6)
    crops = style.random_crops([a, a + 100], 200, 4, torch.Generator().manual_seed(0))
    assert crops.shape == (200, 3, 4, 4)
    corners = {int(crop[0, 0, 0]) for crop in crops}
    assert corners == {0, 1, 2, 6, 7, 8, 100, 101, 102, 106, 107, 108}
    assert torch.equal(crops[0][0] - crops[0][0, 0, 0], a[0, :4, :4])


def test_training_lowers_the_loss_in_lockstep_and_is_repeatable() -> None:
    settings = TINY | {"steps": 30, "width": 4}
    first, second = style.train_stylizers(["instance", "instance"], **settings)
    assert first.losses == second.losses  # the same weights, the same crops
    assert first.final_loss < 0.7 * first.losses[0]
    assert not first.network.training
    (other,) = style.train_stylizers(["instance"], **settings, seed=1)
    assert other.losses != first.losses


def test_bad_settings_get_a_clear_error() -> None:
    with pytest.raises(ValueError, match=r"got 'instance': write \['instance'\]"):
        style.train_stylizers("instance", **TINY)
    with pytest.raises(ValueError, match="steps must be positive, got 0"):
        style.train_stylizers(["none"], **TINY | {"steps": 0})
    with pytest.raises(ValueError, match=r"shorter side \(48\), got 49"):
        style.train_stylizers(["none"], **TINY | {"crop": 49})
    for rows in ([], [{}]):
        with pytest.raises(ValueError, match="at least one row with a picture"):
            style.gallery(rows)


def test_a_deadline_stops_the_training() -> None:
    (late,) = style.train_stylizers(["none"], **TINY, deadline=time.monotonic() - 1)
    assert late.losses == []
    with pytest.raises(ValueError, match="not trained"):
        _ = late.final_loss
    assert "networks" not in style.compare({"none": "none"}, **TINY, deadline=-math.inf)


def test_other_features_take_the_random_filters_place() -> None:
    class Pixels(nn.Module):
        calls = 0

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            self.calls += 1
            return [images, images[..., ::2, ::2]]

    pixels = Pixels()
    style.train_stylizers(["instance"], **TINY, filters=pixels)
    assert pixels.calls == 1 + 2 * TINY["steps"]  # the style once; output and photograph in every step


def test_what_is_measured_tells_an_invariant_network_from_others() -> None:
    settings = TINY | {"steps": 10, "width": 4}
    of_instance, of_batch = (
        style.held_out(s, size=48) for s in style.train_stylizers(["instance", "batch"], **settings)
    )
    assert of_instance["change"] < 0.02 < 0.1 < of_batch["change"]
    assert of_instance["loss"] == pytest.approx(of_instance["loss_dimmed"], rel=0.05)
    assert of_instance["change_to_grey"] > 0.3


def test_the_gallery_shows_every_picture_small() -> None:
    pictures = {name: 2 * torch.rand(3, 40, 60) - 1 for name in ("a", "b")}
    figure = style.gallery([pictures, {"c": torch.ones(3, 30, 20)}], size=16)
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "c"]
    shown: list[Any] = [axes.get_images()[0].get_array() for axes in figure.axes]
    assert [image.shape for image in shown] == [(16, 16, 3)] * 3
    assert shown[2].min() == 1
    assert 0 <= shown[0].min() < shown[0].max() <= 1


def test_the_command_prints_the_comparison(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "SMALL", TINY)
    style.main(["--steps", "2", "--norms", "instance", "none"])
    said = capsys.readouterr().out
    assert "width 2, crop 32" in said
    assert re.search(r"instance +\d\.\d{3} +\d\.\d{3}", said)
    assert re.search(r"none +\d\.\d{3}", said)
    assert "2 steps in" in said


def test_the_full_networks_are_the_seeds() -> None:
    assert (style.FULL["width"], style.FULL["crop"]) == (64, 256)


def test_the_gpu_record_holds_and_shows_the_style_transfer(tmp_path: Path) -> None:
    """Made the way a GPU's is, on the CPU and tiny."""
    record = evidence.collect(
        "cpu", 60, out=tmp_path, techniques=[], compiled=False, with_tests=False, stylize=TINY
    )
    assert record["complete"] is True
    assert record["style"]["steps"] == 3
    assert record["style"]["settings"]["device"] == "cpu"
    assert set(record["style"]["networks"]) == {"instance", "batch"}
    for text in (evidence.page(tmp_path), evidence.recorded_style(tmp_path)):
        assert "width 2 on 2 crops of 32×32 per step: 3 steps of all of them" in text
        loss = record["style"]["networks"]["batch"]["training_loss"]
        assert f"{loss:.3f}" in text
        assert record["provenance"]["date"][:10] in text

    (path,) = tmp_path.iterdir()
    forged = json.loads(path.read_text())
    for row in forged["style"]["networks"].values():
        row.update(dict.fromkeys(row, 77.0))
    path.write_text(json.dumps(forged))
    assert evidence.recorded_style(tmp_path).count("77.000") == 6
    forged["style"] = None  # a record from before there was one
    path.write_text(json.dumps(forged))
    assert evidence.recorded_style(tmp_path) == evidence.NOT_MEASURED
    assert "### Style transfer on " in evidence.page(tmp_path)
    assert evidence.NOT_MEASURED in evidence.page(tmp_path)


def test_a_spent_budget_leaves_the_style_transfer_out_and_says_so(tmp_path: Path) -> None:
    record = evidence.collect(
        "cpu", 0, out=tmp_path, techniques=[], compiled=False, with_tests=False, stylize=TINY
    )
    assert record["complete"] is False
    assert record["style"]["steps"] == 0
    assert evidence.recorded_style(tmp_path) == evidence.NOT_MEASURED


def test_the_bands_of_the_claims() -> None:
    """Outcomes near the edge: what a band must still refuse."""
    holds = {claim.name.partition(".")[2]: claim.holds for claim in claims.CLAIMS}

    def losses(normalized: float, batch: float) -> dict[str, Any]:
        pairs = {"normalized": normalized, "batch": batch}
        return {kind: {"training_loss": [loss], "loss": [1.0]} for kind, loss in pairs.items()}

    assert holds["stylization"](losses(0.9, 1.0))
    assert not holds["stylization"](losses(0.91, 1.0))

    def changes(normalized: float, batch: float, to_grey: float = 1.0) -> dict[str, Any]:
        pairs = {"normalized": normalized, "batch": batch}
        return {kind: {"change": [c, c], "change_to_grey": [1.0, to_grey]} for kind, c in pairs.items()}

    assert holds["contrast"](changes(0.02, 0.2))
    assert not holds["contrast"](changes(0.03, 0.2))
    assert not holds["contrast"](changes(0.02, 0.19))  # Batch Normalization would not see the fog either
    assert not holds["contrast"](changes(0.02, 0.2, to_grey=0.2))  # a network that ignores the photograph
