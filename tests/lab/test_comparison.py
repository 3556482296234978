"""All techniques on one tensor: nothing is left out silently, and what is counted is right."""

import json

import pytest

from normtutor.catalog import TECHNIQUES
from normtutor.lab import Comparison, compare
from normtutor.lab.claims.choosing import TOKENS, LanguageModel, english, one_sequence, windows

SHAPE = (3, 8, 4, 4)
BYTES = 4 * 3 * 8 * 4 * 4


@pytest.fixture(scope="module")
def maps() -> Comparison:
    return compare(SHAPE, device="cpu", seconds=0.02, rounds=3)


def test_every_technique_is_timed_in_both_directions_beside_torchs(maps: Comparison) -> None:
    timed = {(row.candidate, row.direction) for row in maps.timings.rows if not row.reason}
    names = [f"{name}, {who}" for name in TECHNIQUES for who in ("eager", "torch.nn")]
    assert timed == {
        (name, way) for name in ["copy, clone", *names] for way in ("forward", "forward+backward")
    }
    assert maps.undefined == ()
    assert maps.milliseconds("group", "eager", "forward+backward") > 0


def test_each_row_counts_the_bytes_of_its_own_technique(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("normtutor.lab.timing.last_level_cache", lambda device: (1, "pretended"))
    found = compare(SHAPE, device="cpu", candidates=["torch.nn"], seconds=0, rounds=1)
    moved = {row.candidate: row.bytes for row in found.timings.rows if row.direction == "forward"}
    assert moved["batch, torch.nn"] == 3 * BYTES  # a tensor beyond the cache is read twice
    assert moved["layer, torch.nn"] == 2 * BYTES


def test_memory_has_weight_norm_beside_the_plain_convolution(maps: Comparison) -> None:
    plain, eager = maps.memory["3×3 conv, plain"], maps.memory["3×3 conv + weight, eager"]
    assert eager.parameters == plain.parameters + 8
    assert maps.memory["3×3 conv + weight, torch.nn"].parameters == eager.parameters
    assert maps.memory["layer, eager"].parameters == 2 * 8 * 4 * 4
    assert maps.memory["batch, torch.nn"].saved_input_bytes == BYTES
    # Ours lets autograd keep what it likes: the two are not the same layer twice.
    assert maps.memory["batch, eager"].saved_bytes > maps.memory["batch, torch.nn"].saved_bytes
    text = str(maps)
    assert all(name in text for name in TECHNIQUES)
    assert "3×8×4×4" in text


def test_what_is_undefined_on_tokens_is_said() -> None:
    tokens = compare((12, 8), device="cpu", seconds=0, rounds=1)
    assert tokens.undefined == ("instance", "group")
    assert "not defined on this rank: instance, group" in str(tokens)
    assert not [name for name in tokens.memory if name.startswith(("group", "3×3"))]
    with pytest.raises(ValueError, match=r"group, torch\.nn forward was not timed at 12×8"):
        tokens.milliseconds("group")


def test_a_comparison_is_json(maps: Comparison) -> None:
    record = json.loads(json.dumps(maps.to_dict(), allow_nan=False))
    assert record["shape"] == list(SHAPE)
    assert set(record["memory"]) == set(maps.memory)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="without empty axes, got 3×0"):
        compare((3, 0))
    with pytest.raises(ValueError, match="expected a shape"):
        compare((3,))
    with pytest.raises(ValueError, match=r"unknown candidate 'fused': expected one of eager, torch\.nn"):
        compare(SHAPE, candidates=["fused"])


def test_the_language_model_predicts_the_next_character_from_those_before() -> None:
    import torch

    text = english()
    x, y = windows(text.train, torch.tensor([5, 100]))
    assert torch.equal(x[:, 1:], y[:, :-1])
    assert x.shape == (2, TOKENS)
    torch.manual_seed(0)
    model = LanguageModel("layer", text.vocabulary)
    changed = x.clone()
    changed[:, 10] = (changed[:, 10] + 1) % text.vocabulary
    with torch.no_grad():
        moved = (model(x) - model(changed)).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [False] * 10 + [True] * (TOKENS - 10)
    assert len(text.test) * 8 < len(text.train) < len(text.test) * 10


def test_one_sequence_shares_statistics_with_no_other() -> None:
    import torch

    text = english()
    torch.manual_seed(0)
    model = LanguageModel(one_sequence("batch"), text.vocabulary)
    x, _ = windows(text.train, torch.tensor([5, 100, 900]))
    with torch.no_grad():
        assert torch.allclose(model(x)[:1], model(x[:1]), atol=1e-5)
        together = LanguageModel("batch", text.vocabulary)
        assert not torch.allclose(together(x)[:1], together(x[:1]), atol=1e-2)
