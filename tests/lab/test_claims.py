"""Claims: the bands exclude the opposite outcome, and a record says where it comes from."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from normtutor.catalog import CHAPTERS, TECHNIQUES
from normtutor.lab import claims
from normtutor.lab.claims import Claim, Outcome
from normtutor.lab.claims.__main__ import main

ALL = claims.claims()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, claim in ALL.items() if claim.control is not None])
def test_with_the_control_in_its_place_every_verdict_turns(name: str) -> None:
    """The notebook asserts the verdict; an experiment that has only one outcome would prove nothing."""
    claim = ALL[name]
    outcome = claims.run(name, norm=claim.control)
    assert outcome.holds is not claim.reproduces
    assert ("does NOT reproduce" in str(outcome)) is claim.reproduces


@pytest.mark.parametrize("name", ALL)
def test_the_record_gives_the_verdict_that_the_chapter_tells(name: str) -> None:
    assert ("does NOT reproduce" in " ".join(claims.recorded(name).split())) is not ALL[name].reproduces
    assert "not measured yet" not in claims.recorded(name)


@pytest.mark.parametrize("claim", ALL.values(), ids=list(ALL))
def test_every_claim_names_its_source_and_its_technique(claim: Claim) -> None:
    assert claim.technique in {*TECHNIQUES, "weight"}
    assert claim.name.partition(".")[0] in CHAPTERS
    assert claim.url.startswith("https://arxiv.org/abs/")
    assert claim.where


def test_bands() -> None:
    """Outcomes near the edge: what a band must still refuse."""

    def steps(plain: list, normalized: list) -> dict:
        by_lr = {"3": plain[0], "10": plain[1]}, {"3": normalized[0], "10": normalized[1]}
        kinds = zip(("plain", "normalized"), by_lr, strict=True)
        return {"steps": 200, "steps_to_90_percent": {k: {lr: [s] for lr, s in v.items()} for k, v in kinds}}

    holds = ALL["batch_norm.learning_rates"].holds
    assert holds(steps([None, None], [60, 80]))
    assert not holds(steps([100, None], [60, 80]))  # not twice as fast
    assert not holds(steps([None, None], [60, None]))  # fails at the high rate

    def landscape(plain: float, normalized: float) -> dict:
        return {
            kind: [{"loss_range": value, "gradient_change": value}]
            for kind, value in (("plain", plain), ("normalized", normalized))
        }

    assert ALL["batch_norm.landscape"].holds(landscape(3.0, 1.0))
    assert not ALL["batch_norm.landscape"].holds(landscape(2.9, 1.0))

    def leak(training: float, evaluation: float, layer: float) -> dict:
        modes = {"training_mode": training, "evaluation_mode": evaluation}
        return {"normalized": [modes], "layer": [dict.fromkeys(modes, layer)]}

    assert ALL["batch_norm.leak"].holds(leak(1.0, 0.5, 0.5))
    assert not ALL["batch_norm.leak"].holds(leak(1.0, 1.0, 0.5))  # it would be no leak through the batch
    assert not ALL["batch_norm.leak"].holds(leak(1.0, 0.5, 1.0))  # the task would not be isolated

    def error(large: float, small: float) -> dict:
        return {"error": {"32": [large], "2": [small]}, "layer": [0.02]}

    assert ALL["batch_norm.statistics_batch"].holds(error(0.02, 0.3))
    assert not ALL["batch_norm.statistics_batch"].holds(error(0.02, 0.1))
    assert not ALL["batch_norm.statistics_batch"].holds(error(0.5, 0.9))  # an untrained network


def test_layer_norm_bands() -> None:
    def powers(post: float, pre: float) -> dict:
        depths = (2, 8, 32)
        return {name: {str(d): d**p for d in depths} for name, p in (("post", post), ("pre", pre))}

    holds = ALL["layer_norm.gradient_depth"].holds
    assert holds(powers(0.0, -0.5))
    assert not holds(powers(0.0, 0.0))  # no difference
    assert not holds(powers(-0.5, -0.5))

    def losses(post: float, warm: float, pre: float) -> dict:
        return {"lr 0.01": {"post": [post], "post, warm-up": [warm], "pre": [pre]}}

    holds = ALL["layer_norm.warm_up"].holds
    assert holds(losses(2.3, 1.2, 0.5))
    assert not holds(losses(1.2, 1.2, 0.5))  # not needed
    assert not holds(losses(2.3, 2.3, 0.5))  # no help
    assert not holds(losses(2.3, 1.2, 2.3))  # needed by both

    def gains(tanh: float, lstm: float) -> dict:
        by = {
            "tanh, plain": [0.5],
            "tanh, normalized": [tanh],
            "lstm, plain": [0.5],
            "lstm, normalized": [lstm],
        }
        return {"rows, 50 steps": by}

    assert ALL["layer_norm.recurrent"].holds(gains(0.6, 0.6))
    assert not ALL["layer_norm.recurrent"].holds(gains(0.6, 0.5))
    assert not ALL["layer_norm.recurrent"].holds(gains(0.5, 0.6))

    holds = ALL["layer_norm.rms_speed"].holds
    assert holds({"saved": {"by hand": {"32": 0.2}, "torch.nn": {"32": 0.1}}})
    assert not holds({"saved": {"by hand": {"32": 0.2}, "torch.nn": {"32": 0.0}}})
    assert ALL["layer_norm.dyt"].holds({"DyT": [0.9], "normalized": [0.91]})
    assert not ALL["layer_norm.dyt"].holds({"DyT": [0.8], "normalized": [0.9]})


def test_unknown_claim_suggests_the_nearest() -> None:
    for call in (claims.run, claims.recorded):
        with pytest.raises(ValueError, match=r"'batch_norm.leek': did you mean 'batch_norm.leak'\?"):
            call("batch_norm.leek")


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    claims.run("batch_norm.leak", norm="none")
    assert torch.get_num_threads() == before


def test_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "batch_norm.leak"
    tiny = {"normalized": [{"training_mode": 1.0, "evaluation_mode": 0.5}]}
    measured = tiny | {"layer": tiny["normalized"]}

    def run(name: str, full: bool) -> Outcome:
        assert full
        return Outcome(ALL[name], measured, 1.0, full)

    monkeypatch.setattr("normtutor.lab.claims.__main__.claims", lambda: {name: ALL[name]})
    monkeypatch.setattr("normtutor.lab.claims.__main__.run", run)
    monkeypatch.setattr("sys.argv", ["claims", "--out", str(tmp_path / claims.RECORD)])
    main()
    record = json.loads((tmp_path / claims.RECORD).read_text())
    assert record[name]["measured"] == measured
    assert record[name]["holds"] is False  # LayerNorm "leaked" in these numbers

    assert "not measured yet" in claims.recorded(name, tmp_path / "nothing")
    line = " ".join(claims.recorded(name, tmp_path).split())
    assert "accuracy on the 15 uninformed samples 1.000" in line
    assert "does NOT reproduce" in line
    assert record[name]["provenance"]["date"][:10] in line


def test_the_bands_of_the_chapter_on_choosing() -> None:
    def text(layer: float, alone: float) -> dict:
        return {"loss": {"layer": [layer], "together": [layer], "alone": [alone]}, "steps": 1}

    assert ALL["choosing.text"].holds(text(2.0, 2.2))
    assert not ALL["choosing.text"].holds(text(2.0, 2.1))  # within what a seed does

    def few(normalized: float, group: float) -> dict:
        return {"error": {"group": {"50": [group]}, "normalized": {"50": [normalized]}}}

    assert ALL["choosing.limited_data"].holds(few(0.10, 0.12))
    assert not ALL["choosing.limited_data"].holds(few(0.12, 0.12))
    assert not ALL["choosing.limited_data"].holds(few(0.14, 0.12))  # what the draft said


def test_one_chapter_is_recorded_and_the_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / claims.RECORD
    kept = {"provenance": {"date": "2026-01-01"}}
    out.write_text(json.dumps({"batch_norm.leak": kept, "gone.claim": {}}))
    ran: list[str] = []

    def run(name: str, full: bool) -> Outcome:
        ran.append(name)
        return Outcome(replace(ALL[name], tells=lambda _: "told", holds=lambda _: True), {}, 1.0, full)

    monkeypatch.setattr("normtutor.lab.claims.__main__.run", run)
    monkeypatch.setattr("sys.argv", ["claims", "instance_norm", "--out", str(out)])
    main()
    assert ran
    assert {name.partition(".")[0] for name in ran} == {"instance_norm"}
    record = json.loads(out.read_text())
    assert list(record) == ["batch_norm.leak", *ran]
    assert record["batch_norm.leak"] == kept
    monkeypatch.setattr("sys.argv", ["claims", "instancenorm"])
    with pytest.raises(SystemExit):
        main()


def test_the_page_tells_every_claim_with_its_verdict() -> None:
    page = claims.page()
    assert all(claim.says in page and claim.band in page and claim.url in page for claim in ALL.values())
    assert page.count("Verdict: **") == len(ALL)
