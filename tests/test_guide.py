"""The guide: rules that hang together, sources that exist, and every guideline of the draft answered."""

import json
import re
from pathlib import Path

import pytest

from normtutor import guide
from normtutor.catalog import CHAPTERS, TECHNIQUES, technique
from normtutor.guide import FIELDS, RULES, SEED, recommend
from normtutor.lab import claims
from normtutor.lab.memory_use import memory

ROOT = Path(__file__).parent.parent
DRAFT = (ROOT / "book" / "seed" / "normalization_techniques.md").read_text("utf8")
EVIDENCE = [(rule.name, one) for rule in RULES for one in rule.evidence]
EVIDENCE += [(line.text, one) for line in SEED for one in line.evidence]


@pytest.mark.parametrize(
    ("situation", "first"),
    [
        ({"architecture": "cnn", "task": "classification", "batch_size": 32}, {"batch"}),
        ({"architecture": "cnn", "task": "classification", "batch_size": 2}, {"group"}),
        ({"architecture": "cnn", "task": "detection", "batch_size": 2, "devices": 8}, {"group"}),
        ({"architecture": "transformer", "task": "language_modelling", "data": "text"}, {"layer", "rms"}),
        ({"architecture": "rnn"}, {"layer"}),
        ({"architecture": "mlp", "batch_size": 1, "positions": 1}, {"layer"}),
        ({"architecture": "generator", "task": "style_transfer", "data": "image"}, {"instance"}),
        ({"data": "audio", "task": "generation"}, {"weight"}),
        ({"data": "audio"}, set()),
        ({"architecture": "cnn", "batch_size": 2, "frozen": True}, {"batch"}),
        ({"architecture": "cnn", "task": "detection", "batch_size": 2, "frozen": True}, {"batch"}),
        ({"architecture": "rnn", "channels": 2}, set()),
        ({"architecture": "transformer", "channels": 2}, set()),
        ({"task": "speech"}, set()),
        ({"architecture": "cnn"}, set()),
        ({"architecture": "cnn", "variable_batch": True}, set()),
        ({"architecture": "mlp", "batch_size": 12}, set()),
        ({"architecture": "mlp", "task": "reinforcement_learning", "batch_size": 64}, {"layer"}),
        ({"task": "generation", "data": "text"}, set()),
        ({"task": "generation", "data": "image"}, set()),
        ({"architecture": "generator", "task": "generation", "fast_inference": True}, {"batch"}),
    ],
)
def test_what_is_recommended(situation: dict, first: set[str]) -> None:
    assert set(recommend(situation).best) == first


@pytest.mark.parametrize(
    ("situation", "avoided"),
    [
        ({"architecture": "cnn", "batch_size": 4}, "batch"),
        ({"architecture": "mlp", "batch_size": 8}, "batch"),
        ({"task": "language_modelling"}, "batch"),
        ({"task": "language_modelling"}, "instance"),
        ({"task": "language_modelling"}, "group"),
        ({"architecture": "cnn", "positions": 1}, "instance"),
        ({"architecture": "mlp", "channels": 2}, "layer"),
    ],
)
def test_what_is_to_be_avoided_comes_last_with_its_reason(situation: dict, avoided: str) -> None:
    advice = {one.technique: one for one in recommend(situation).advice}
    assert advice[avoided].verdict == "avoid"
    assert advice[avoided].reasons_against
    last = [one.verdict == "avoid" for one in recommend(situation).advice]
    assert last == sorted(last)


def test_a_reason_to_avoid_outweighs_a_first_choice() -> None:
    # Layer Normalization has a better sum than some that no rule forbids, and erases its input.
    advice = recommend(architecture="transformer", channels=2, data="text")
    assert [one.technique for one in advice.advice[-2:]] == ["layer", "group"]
    assert advice.advice[-2].score > advice.advice[-3].score
    assert "layer" not in advice.best
    assert {one.technique: one.verdict for one in advice.advice}["layer"] == "avoid"


def test_the_ends_of_a_range_belong_to_it() -> None:
    names = {
        n: {rule.name for rule in recommend(architecture="cnn", batch_size=n).rules} for n in (4, 5, 15, 16)
    }
    assert "cnn_small_batch" in names[4] - names[5]
    assert "cnn_middle_batch" in names[5] & names[15]
    assert "cnn_large_batch" in names[16] - names[15]


def test_no_batch_size_is_left_without_a_rule() -> None:
    for architecture in ("cnn", "mlp"):
        for size in range(1, 65):
            advice = recommend(architecture=architecture, batch_size=size)
            assert advice.advice[0].score > 0, (architecture, size)
            # In between a perceptron's rule says: measure.
            assert advice.best or (architecture == "mlp" and 9 <= size <= 15), (architecture, size)


@pytest.mark.parametrize("architecture", ["cnn", "generator"])
@pytest.mark.parametrize("size", [1, 2, 4, 5, 15, 16, 64])
def test_evidence_from_classification_does_not_speak_of_style(architecture: str, size: int) -> None:
    assert recommend(architecture=architecture, task="style_transfer", batch_size=size).best == ("instance",)


def test_an_exception_takes_a_rule_back_only_if_it_is_answered() -> None:
    def names(**told: object) -> set[str]:
        return {rule.name for rule in recommend(architecture="cnn", batch_size=2, **told).rules}

    assert "cnn_small_batch" in names() & names(frozen=False)
    assert "cnn_small_batch" not in names(frozen=True)


def test_a_word_that_no_rule_reads_is_said() -> None:
    advice = recommend(data="tabular", task="regression", architecture="mlp", batch_size=32)
    assert [text for text in advice.warnings if text.startswith("No rule")] == [
        "No rule depends on the answer “tabular” to “What goes in?”.",
        "No rule depends on the answer “regression” to “What is it for?”.",
    ]
    assert not [text for text in recommend(data="text").warnings if text.startswith("No rule")]


def test_the_score_is_the_sum_of_the_votes_that_are_shown() -> None:
    advice = recommend(architecture="cnn", batch_size=32, task="classification", variable_batch=True)
    for one in advice.advice:
        votes = [rule.votes[one.technique] for rule in advice.rules if one.technique in rule.votes]
        assert one.score == sum(guide.VOTES[vote] for vote in votes)
        assert len(one.reasons_for) + len(one.reasons_against) == len(votes)
    text = str(advice)
    assert all(rule.name in text for rule in advice.rules if rule.votes)


@pytest.mark.parametrize(
    ("situation", "headline"),
    [
        ({"architecture": "cnn", "batch_size": 2}, "First choice: Group."),
        ({"architecture": "cnn"}, f"No clear first choice yet. {FIELDS['batch_size'].question}"),
        ({"architecture": "mlp"}, f"No clear first choice yet. {FIELDS['batch_size'].question}"),
        ({"architecture": "generator"}, "No clear first choice yet. What is it for?"),
        ({"data": "audio"}, "No clear first choice yet. What is it for?"),
        ({"task": "speech"}, "No clear first choice yet. What kind of network is it?"),
    ],
)
def test_without_a_first_choice_the_question_that_matters_most_is_asked(
    situation: dict, headline: str
) -> None:
    advice = recommend(situation)
    assert advice.headline == headline
    assert headline in " ".join(str(advice).split()), "as `normtutor choose` prints it"
    assert advice.to_dict()["headline"] == headline


def test_where_everything_is_told_nothing_is_asked() -> None:
    told: dict = {name: 64 if field.number else False for name, field in FIELDS.items()}
    told |= {"architecture": "mlp", "task": "regression", "data": "tabular", "batch_size": 12}
    assert recommend(told).headline == "No clear first choice. Possible: Batch or Layer or RMS."


def test_a_reason_for_a_technique_speaks_of_it() -> None:
    # "layer +1, because Batch Normalization trains in fewer steps" is no reason.
    for rule in RULES:
        for name, vote in rule.votes.items():
            if rule.name in ("mlp_large_batch", "reinforcement") and guide.VOTES[vote] > 0:
                assert guide.TITLES[name].removesuffix(" Normalization") in rule.reason, (rule.name, name)


def test_open_questions_are_those_that_would_decide_more() -> None:
    advice = recommend(architecture="rnn")
    assert "batch_size" in advice.open  # a batch of one with one position
    assert "architecture" not in advice.open
    assert "few_data" not in advice.open  # asked of convolutional networks only
    everything = recommend(
        {
            name: field.options[0] if field.options else 4 if field.number else False
            for name, field in FIELDS.items()
        }
    )
    assert everything.open == ()


def test_a_word_alone_is_no_situation() -> None:
    with pytest.raises(TypeError, match=r"expected a mapping or keywords.*got 'cnn'"):
        recommend("cnn")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("situation", "error", "words"),
    [
        ({"architecture": "cnnn"}, ValueError, "architecture: unknown answer 'cnnn'. Did you mean 'cnn'?"),
        ({"task": "style transfer"}, ValueError, "Did you mean 'style_transfer'?"),
        ({"architecture": "quantum"}, ValueError, "expected one of cnn, mlp"),
        ({"architecture": "cnnn"}, ValueError, "expected one of cnn, mlp"),
        ({"architecture": "resnet"}, ValueError, "'resnet': expected one of"),  # not near "generator"
        ({"batchsize": 3}, ValueError, "unknown question 'batchsize'. Did you mean 'batch_size'?"),
        ({"batch_size": 0}, ValueError, "batch_size: expected a number from 1, got 0"),
        ({"batch_size": 2.5}, TypeError, "batch_size: expected a whole number, got 2.5"),
        ({"batch_size": True}, TypeError, "batch_size: expected a whole number, got True"),
        ({"frozen": "yes"}, TypeError, "frozen: expected True or False, got 'yes'"),
        ({}, ValueError, "describe the situation by at least one of architecture"),
        ({"task": None}, ValueError, "describe the situation"),
    ],
)
def test_bad_situations(situation: dict, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=re.escape(words)):
        recommend(situation)


def test_every_rule_asks_and_answers_what_is_known() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.evidence, rule.name
        assert rule.votes or rule.warning, rule.name
        assert set(rule.votes) <= set(guide.RANKED)
        for name, condition in (*rule.when.items(), *rule.unless.items()):
            field = FIELDS[name]
            if isinstance(condition, list):
                assert condition
                assert set(condition) <= set(field.options), rule.name
            elif isinstance(condition, dict):
                assert field.number, rule.name
                assert set(condition) <= {"min", "max"}, rule.name
            else:
                assert not field.options, rule.name
                assert not field.number, rule.name
    asked = {name for rule in RULES for name in rule.when}
    assert asked == set(FIELDS), "a question that no rule asks"
    assert {word for rule in RULES for word in rule.votes} == set(guide.RANKED)


@pytest.mark.parametrize(("of", "one"), EVIDENCE, ids=[f"{i}" for i in range(len(EVIDENCE))])
def test_every_source_exists(of: str, one: guide.Evidence) -> None:
    if one.kind == "paper":
        assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{4,5}", one.url), of
        assert one.where, of
        assert one.url.rpartition("/")[2] in (ROOT / "book" / "references.bib").read_text("utf8"), one
    if one.kind == "claim":
        assert one.text in claims.claims(), of
    if one.kind == "chapter":
        assert one.text in CHAPTERS, of
        script = ROOT / "notebooks" / f"{one.text}.py"
        if script.exists():  # chapters are written one by one
            assert re.search(rf"^# #+ {re.escape(one.where)}$", script.read_text("utf8"), re.MULTILINE), one


def drafts_lines() -> set[tuple[str, str, str]]:
    """Every guideline of the draft, read from its own code and its summary."""
    block = next(b for b in re.findall(r"```python\n(.*?)```", DRAFT, re.DOTALL) if "choose_norm" in b)
    scope: dict = {}
    exec(block.partition("# Example usage")[0], scope)
    guidelines = scope["choose_normalization_technique"]()
    found = {
        (name, part, text)
        for name, parts in guidelines.items()
        for part, lines in parts.items()
        for text in lines
    }
    summary = DRAFT.partition("## Summary")[2]
    found |= {
        (name, "summary", text) for name, text in re.findall(r"^\d\. \*\*(\w+)\*\*: (.+)$", summary, re.M)
    }
    found |= {
        ("", "depends_on", f"{a}: {b}") for a, b in re.findall(r"^- \*\*(.+)\*\*: (.+)$", summary, re.M)
    }
    return found


def test_every_guideline_of_the_draft_is_answered() -> None:
    theirs, ours = drafts_lines(), [(line.technique, line.part, line.text.strip()) for line in SEED]
    assert (
        len(theirs) == 31
    )  # 22 guidelines, 5 techniques in the summary, 4 things that the choice depends on
    assert len(ours) == len(set(ours))
    assert set(ours) == theirs
    assert all(line.says and line.evidence for line in SEED)
    assert {line.verdict for line in SEED} == {"kept", "narrowed", "corrected"}


def test_the_data_are_json_and_complete() -> None:
    data = json.loads(json.dumps(guide.as_data(), allow_nan=False))
    assert data == guide.as_data()
    assert [rule["name"] for rule in data["rules"]] == [rule.name for rule in RULES]
    assert len(data["seed"]) == len(SEED)
    assert data["rules"][0]["evidence"][0]["url"].startswith("https://")
    advice = recommend(architecture="cnn", batch_size=2)
    assert json.loads(json.dumps(advice.to_dict()))["advice"][0]["technique"] == "group"


def test_the_summary_says_of_parameters_what_the_layers_have() -> None:
    import torch

    rows = {row["technique"]: row for row in guide.summary_rows()}
    shape = (2, 8, 4, 4)
    c, d = 8, 8 * 4 * 4
    counts = {
        "batch": (2 * c, 2 * c + 1),
        "layer": (2 * d, 0),
        "rms": (d, 0),
        "instance": (2 * c, 0),
        "group": (2 * c, 0),
    }
    for name, (parameters, buffers) in counts.items():
        use = memory(technique(name).layer(shape), torch.randn(shape))
        assert (use.parameters, use.buffers) == (parameters, buffers)
        formula = rows[TECHNIQUES[name].title]["parameters"]
        factor, letter = (formula[0], formula[1]) if formula[0].isdigit() else ("1", formula[0])
        assert int(factor) * {"C": c, "D": d}[letter] == parameters
    assert len(rows) == 6
    assert [row["depends on the batch"] for row in rows.values()].count("no") == 5
    assert guide.summary().count("\n") == len(rows) + 1


def test_titles_are_the_catalogs() -> None:
    assert {name: row.title for name, row in TECHNIQUES.items()} == {
        name: title for name, title in guide.TITLES.items() if name != "weight"
    }
