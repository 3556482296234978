"""Which normalization should I use? Rules as data, each with its reason and its source.

A rule holds where every one of its conditions holds; it then votes for or against techniques, or warns. A
recommendation is the sum of these votes, with every reason beside it: no vote is hidden, and no number
comes from anywhere else. :func:`as_data` gives all of it as JSON, for a page that asks the same questions.

This module imports nothing but the standard library until the catalog is asked for.
"""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any, Literal

Vote = Literal["first", "works", "weak", "avoid"]
Condition = list[str] | bool | dict[str, int]

# One reason to avoid outweighs one that makes a technique the first choice.
VOTES: dict[Vote, int] = {"first": 2, "works": 1, "weak": -1, "avoid": -3}
# A sum below it is no first choice: one rule that says "works" is too little.
ENOUGH = VOTES["first"]
# The techniques that a recommendation ranks: the catalog's rows, and Weight Normalization, which has none.
RANKED = ("batch", "layer", "rms", "instance", "group", "weight")
TITLES = {
    "batch": "Batch Normalization",
    "layer": "Layer Normalization",
    "rms": "RMS Normalization",
    "instance": "Instance Normalization",
    "group": "Group Normalization",
    "weight": "Weight Normalization",
}


@dataclass(frozen=True)
class Evidence:
    """Where a statement comes from.

    Attributes:
        kind: "paper"; "claim", an experiment of :mod:`normtutor.lab.claims`; "chapter", a derivation or
            measurement in one of the course's notebooks; "untested", where the course has none of its own.
        text: the paper, the claim's name, the chapter's name, or what was not tested.
        where: section, table or figure; for a chapter its heading.
        url: of the paper.
    """

    kind: Literal["paper", "claim", "chapter", "untested"]
    text: str
    where: str = ""
    url: str = ""

    def __str__(self) -> str:
        if self.kind == "claim":
            return f"measured: claim {self.text}"
        if self.kind == "chapter":
            return f"shown: chapter {self.text}, “{self.where}”"
        if self.kind == "untested":
            return f"untested here: {self.text}"
        return f"{self.text}, {self.where}" if self.where else self.text


def _paper(text: str, arxiv: str, where: str) -> Evidence:
    return Evidence("paper", text, where, f"https://arxiv.org/abs/{arxiv}")


def _claim(name: str) -> Evidence:
    return Evidence("claim", name)


def _chapter(name: str, heading: str) -> Evidence:
    return Evidence("chapter", name, heading)


def _untested(text: str) -> Evidence:
    return Evidence("untested", text)


@dataclass(frozen=True)
class Field:
    """One question about a situation: the words that answer it, or a whole number, or yes or no."""

    name: str
    question: str
    options: tuple[str, ...] = ()
    number: bool = False


FIELDS = {
    one.name: one
    for one in (
        Field(
            "architecture",
            "What kind of network is it?",
            ("cnn", "mlp", "rnn", "transformer", "generator"),
        ),
        Field(
            "task",
            "What is it for?",
            (
                "classification",
                "regression",
                "detection",
                "segmentation",
                "style_transfer",
                "generation",
                "language_modelling",
                "speech",
                "contrastive",
                "reinforcement_learning",
            ),
        ),
        Field("data", "What goes in?", ("image", "text", "audio", "tabular")),
        Field("batch_size", "How many samples does one device normalize together?", number=True),
        Field("devices", "How many devices train together?", number=True),
        Field("channels", "How many channels or features does the normalized layer have?", number=True),
        Field("positions", "How many positions per sample (H·W, or 1 after a linear layer)?", number=True),
        Field("variable_batch", "Does the batch size change while training?"),
        Field("few_data", "Are training data few?"),
        Field("frozen", "Do you fine-tune a network that already has Batch Normalization?"),
        Field("fast_inference", "Must normalization cost nothing when the network is used?"),
    )
}

_WU_HE = ("Wu & He 2018", "1803.08494")
_IOFFE = ("Ioffe & Szegedy 2015", "1502.03167")
_SALIMANS = ("Salimans & Kingma 2016", "1602.07868")


@dataclass(frozen=True)
class Rule:
    """One piece of advice.

    Attributes:
        name: unique.
        when: field → condition, all of which must hold: a list holds any of these words, a number's
            ``{"min": …, "max": …}`` includes both ends, True and False are themselves. No condition: always.
        votes: technique → "first", "works", "weak" or "avoid".
        reason: why; one or two sentences that stand alone.
        evidence: where the reason comes from; at least one.
        warning: what to look out for, or to do, whatever is chosen.
        unless: field → condition, any one of which takes the rule back; an unanswered one does not.
    """

    name: str
    when: Mapping[str, Condition]
    votes: Mapping[str, Vote]
    reason: str
    evidence: tuple[Evidence, ...]
    warning: str = ""
    unless: Mapping[str, Condition] = field(default_factory=dict)

    def holds(self, situation: Mapping[str, Any]) -> bool | None:
        """Whether it applies; None if that hangs on a question that was not answered."""
        if any(_met(condition, situation.get(name)) for name, condition in self.unless.items()):
            return False
        answers = [_met(condition, situation.get(name)) for name, condition in self.when.items()]
        if False in answers:
            return False
        return None if None in answers else True


def _met(condition: Condition, value: Any) -> bool | None:
    if value is None:
        return None
    if isinstance(condition, bool):
        return bool(value is condition)
    if isinstance(condition, list):
        return value in condition
    return bool(condition.get("min", value) <= value <= condition.get("max", value))


RULES = (
    # ------------------------------------------------------------------------------- convolutional networks
    Rule(
        "cnn_large_batch",
        {"architecture": ["cnn"], "batch_size": {"min": 16}},
        {"batch": "first", "group": "works", "layer": "weak", "instance": "weak"},
        "With 16 images or more per device the statistics are good estimates, and their noise regularizes. "
        "ResNet-50 on ImageNet at 32 images per device errs on 23.6 % with Batch, 24.1 % with Group, 25.3 % "
        "with Layer over (C, H, W) and 28.4 % with Instance Normalization.",
        (_paper(*_WU_HE, "Table 1"), _claim("batch_norm.learning_rates")),
        unless={"task": ["style_transfer", "generation"]},  # the evidence is classification
    ),
    Rule(
        "cnn_middle_batch",
        {"architecture": ["cnn"], "batch_size": {"min": 5, "max": 15}},
        {"group": "first", "batch": "works"},
        "At 8 images per device Group Normalization is 0.8 points ahead on ImageNet (24.0 % error against "
        "24.8 %), at 16 half a point behind (24.2 % against 23.7 %): the crossing lies in between. Measure "
        "both.",
        (_paper(*_WU_HE, "Table 2"),),
        unless={"frozen": True, "task": ["style_transfer", "generation"]},
    ),
    Rule(
        "cnn_small_batch",
        {"architecture": ["cnn"], "batch_size": {"max": 4}},
        {"group": "first", "batch": "avoid"},
        "Statistics of four images or fewer are noise: on ImageNet, Batch Normalization's error rises from "
        "23.6 % at 32 images to 27.3 % at 4 and 34.7 % at 2; Group Normalization stays near 24.1 %.",
        (_paper(*_WU_HE, "Table 2"), _claim("batch_norm.statistics_batch")),
        warning="The rise depends on how many independent values supply a statistic, not on the batch alone: "
        "on 8×8 digits with convolutions this course saw none.",
        unless={"frozen": True, "task": ["style_transfer"]},
    ),
    Rule(
        "cnn_modern",
        {
            "architecture": ["cnn"],
            "batch_size": {"min": 1},
        },  # whether it is worth a thought hangs on the batch
        {"layer": "works"},
        "Layer Normalization is no mistake in a convolutional network by itself: ConvNeXt normalizes the "
        "channels of each position and does slightly better with that than with Batch Normalization, after "
        "its other changes.",
        (_paper("Liu et al. 2022 (ConvNeXt)", "2201.03545", "section 2.6"), _untested("ConvNeXt's size")),
        unless={"task": ["style_transfer", "generation"]},
    ),
    Rule(
        "standardized_weights",
        {"architecture": ["cnn"], "batch_size": {"max": 4}},
        {},
        "Standardizing the convolution's weights brings Group Normalization up to Batch Normalization's "
        "accuracy in the paper.",
        (_paper("Qiao et al. 2019", "1903.10520", "section 4"),),
        warning="Group Normalization gains from weight standardization.",
        unless={"frozen": True},
    ),
    # ------------------------------------------------------------------------------------------ multilayer
    Rule(
        "mlp_large_batch",
        {"architecture": ["mlp"], "batch_size": {"min": 16}},
        {"batch": "first", "layer": "works", "rms": "works"},
        "A deep perceptron trains in fewer steps and at higher learning rates with Batch Normalization. "
        "Layer and RMS Normalization take their statistics from a sample's features and need no batch; "
        "measured here for Layer, which erred little more on the digits.",
        (
            _paper(*_IOFFE, "section 4.1"),
            _claim("batch_norm.learning_rates"),
            _claim("batch_norm.statistics_batch"),
            _untested("RMS Normalization in a perceptron with a large batch"),
        ),
    ),
    Rule(
        "mlp_small_batch",
        {"architecture": ["mlp"], "batch_size": {"max": 8}},
        {"layer": "first", "rms": "works", "batch": "avoid"},
        "After a linear layer a channel has one value per sample, so a batch of 8 estimates a variance from "
        "8 numbers. Layer Normalization takes its statistics from the features instead.",
        (_claim("batch_norm.statistics_batch"), _paper("Ba, Kiros & Hinton 2016", "1607.06450", "section 3")),
        unless={"frozen": True},
    ),
    Rule(
        "mlp_middle_batch",
        {"architecture": ["mlp"], "batch_size": {"min": 9, "max": 15}},
        {"batch": "works", "layer": "works", "rms": "works"},
        "After a linear layer a channel's variance comes from as many numbers as the batch has samples. From "
        "16 on that served well here, up to 8 badly; in between, measure.",
        (_claim("batch_norm.statistics_batch"), _untested("a perceptron at 9 to 15 samples")),
    ),
    Rule(
        "one_value",
        {"batch_size": {"max": 1}, "positions": {"max": 1}},
        {"batch": "avoid"},
        "One sample with one position gives one value per channel: it has no variance, and torch refuses it.",
        (_chapter("batch_norm", "Training and inference"),),
        unless={"frozen": True},
    ),
    Rule(
        "no_positions",
        {"positions": {"max": 1}},
        {"instance": "avoid"},
        "Instance Normalization averages over the positions of one channel of one sample. With one position "
        "nothing is left but β; torch refuses it.",
        (_chapter("choosing", "Two ways to erase everything"),),
    ),
    Rule(
        "few_features",
        {"architecture": ["mlp", "rnn", "transformer"], "channels": {"max": 4}},
        {"layer": "avoid", "rms": "weak", "group": "avoid"},
        "Standardizing D numbers leaves D − 2 degrees of freedom: of two features only the order survives. "
        "RMS Normalization, which keeps the mean, leaves D − 1.",
        (_chapter("choosing", "Two ways to erase everything"),),
    ),
    Rule(
        "few_channels",
        {"architecture": ["cnn", "generator"], "channels": {"max": 8}},
        {"group": "weak"},
        "With G = 8 groups and 8 channels or fewer, a group is a single channel: that is Instance "
        "Normalization. Lower G until a group holds several channels.",
        (_chapter("choosing", "Two ways to erase everything"), _paper(*_WU_HE, "section 3.1")),
    ),
    # ------------------------------------------------------------------------------------------- sequences
    Rule(
        "recurrent",
        {"architecture": ["rnn"]},
        {"layer": "first", "rms": "works", "weight": "works", "batch": "avoid"},
        "A recurrent network applies one layer at many time steps whose statistics differ, to sequences of "
        "different lengths. Layer Normalization needs the present step only. Batch Normalization works if "
        "every step keeps statistics of its own (Cooijmans et al. 2016), at that price.",
        (
            _paper("Ba, Kiros & Hinton 2016", "1607.06450", "section 3.1"),
            _paper("Cooijmans et al. 2016", "1603.09025", "section 3"),
            _paper(*_SALIMANS, "section 1"),
        ),
    ),
    Rule(
        "transformer",
        {"architecture": ["transformer"]},
        {"layer": "first", "rms": "first", "batch": "weak", "instance": "weak", "group": "weak"},
        "Transformers are built and tuned around a normalization of each token's features. RMS "
        "Normalization leaves out the mean, does as well in the paper, and is what LLaMA uses.",
        (
            _paper("Vaswani et al. 2017", "1706.03762", "section 3.1"),
            _paper("Zhang & Sennrich 2019", "1910.07467", "abstract"),
            _paper("Touvron et al. 2023 (LLaMA)", "2302.13971", "section 2.2"),
            _claim("choosing.text"),
        ),
        warning="Where the normalization stands matters more than which: before each sublayer (Pre-LN) it "
        "trains without warm-up (Xiong et al. 2020).",
    ),
    Rule(
        "vision_transformer",
        {"architecture": ["transformer"], "data": ["image"]},
        {"layer": "works"},
        "Vision transformers use Layer Normalization before every block, as for text.",
        (_paper("Dosovitskiy et al. 2020 (ViT)", "2010.11929", "section 3.1"), _untested("images as tokens")),
    ),
    Rule(
        "causal",
        {"task": ["language_modelling"]},
        {"batch": "avoid", "instance": "avoid", "group": "avoid"},
        "A language model predicts the next token from those before it. Batch Normalization averages over "
        "the positions of all sequences, Instance and Group Normalization of (N, C, T) over those of one, "
        "later ones included: in training the output can see what it is asked to predict, and text written "
        "token by token has no later tokens.",
        (_claim("choosing.text"), _chapter("choosing", "Text")),
    ),
    Rule(
        "text",
        {"data": ["text"]},
        {"layer": "works", "rms": "works", "batch": "weak"},
        "Statistics of text fluctuate from batch to batch, since neighbouring tokens come from one document; "
        "the running ones then describe no batch well.",
        (_paper("Shen et al. 2020 (PowerNorm)", "2003.07845", "section 3"), _claim("choosing.text")),
    ),
    # --------------------------------------------------------------------------------------------- pictures
    Rule(
        "style_transfer",
        {"task": ["style_transfer"]},
        {"instance": "first", "batch": "weak"},
        "Style transfer must not depend on the content image's contrast, and dividing each channel of each "
        "image by its own deviation takes the contrast out.",
        (
            _paper("Ulyanov, Vedaldi & Lempitsky 2016", "1607.08022", "section 2"),
            _paper("Huang & Belongie 2017 (AdaIN)", "1703.06868", "section 5"),
            _chapter("instance_norm", "Instance Normalization"),
        ),
    ),
    Rule(
        "generation",
        {"task": ["generation"]},
        {"group": "works", "instance": "works", "batch": "works"},
        "No one technique owns image generation: translation networks (CycleGAN) use Instance, diffusion "
        "networks Group, and DCGAN's generator Batch Normalization.",
        (
            _paper("Zhu et al. 2017 (CycleGAN)", "1703.10593", "section 4"),
            _paper("Ho, Jain & Abbeel 2020 (DDPM)", "2006.11239", "appendix B"),
            _paper("Radford, Metz & Chintala 2015 (DCGAN)", "1511.06434", "section 3"),
            _untested("training a generative network"),
        ),
        warning="A critic with a gradient penalty needs each sample for itself: no Batch Normalization there "
        "(Gulrajani et al. 2017, section 4).",
        unless={"data": ["text", "audio", "tabular"]},  # the evidence is images
    ),
    Rule(
        "classification",
        {"task": ["classification"]},
        {"instance": "weak"},
        "Each channel's mean and deviation over one image say what the image holds, and Instance "
        "Normalization erases both. On ImageNet it costs 4.8 points.",
        (_paper(*_WU_HE, "Table 1"), _chapter("instance_norm", "Instance Normalization")),
    ),
    Rule(
        "detection",
        {"task": ["detection", "segmentation"]},
        {"group": "first"},
        "High resolution leaves room for one or two images per device. Group Normalization trains with them; "
        "the older remedy is to freeze pretrained Batch Normalization.",
        (_paper(*_WU_HE, "section 4.2"), _untested("detection and segmentation")),
    ),
    # ------------------------------------------------------------------------------------------------ sound
    Rule(
        "speech",
        {"task": ["speech"]},
        {"layer": "works", "batch": "works"},
        "Speech recognizers mix: Conformer has Layer Normalization before each module and Batch "
        "Normalization inside its convolution module.",
        (_paper("Gulati et al. 2020 (Conformer)", "2005.08100", "section 2"), _untested("speech")),
    ),
    Rule(
        "audio",
        {"data": ["audio"]},
        {},
        "The course has measured nothing on sound; what it says of audio is cited practice.",
        (_untested("audio"),),
        warning="Untested here: everything about audio.",
    ),
    Rule(
        "audio_generation",
        {"data": ["audio"], "task": ["generation"]},
        {"weight": "first", "instance": "avoid"},
        "MelGAN's authors found that Instance Normalization washes pitch away and makes the sound metallic, "
        "and that Weight Normalization worked best.",
        (_paper("Kumar et al. 2019 (MelGAN)", "1910.06711", "section 2"), _untested("audio generation")),
    ),
    # ----------------------------------------------------------------------------------------- the batch
    Rule(
        "contrastive",
        {"task": ["contrastive"]},
        {"batch": "weak"},
        "Batch statistics let the samples of a batch tell each other who belongs together; a contrastive "
        "network can read its answer there.",
        (_paper("He et al. 2020 (MoCo)", "1911.05722", "section 3.3"), _claim("batch_norm.leak")),
        warning="If you keep Batch Normalization, shuffle samples between devices or synchronize it.",
        unless={"frozen": True},
    ),
    Rule(
        "reinforcement",
        {"task": ["reinforcement_learning"]},
        {"layer": "works", "weight": "works", "batch": "weak"},
        "In reinforcement learning the data change with the policy, and the noise of batch statistics adds "
        "to a noisy target. Layer and Weight Normalization use no batch statistics.",
        (_paper(*_SALIMANS, "sections 1 and 5.4"), _untested("reinforcement learning")),
    ),
    Rule(
        "variable_batch",
        {"variable_batch": True},
        {"batch": "weak", "layer": "works", "group": "works"},
        "Batch Normalization is another function at every batch size: its noise changes in training, and "
        "the running statistics mix all of them. The others treat a sample alone as in company.",
        (_chapter("choosing", "Who depends on the batch"),),
        unless={"frozen": True},
    ),
    Rule(
        "few_data",
        {"architecture": ["cnn"], "batch_size": {"min": 16}, "few_data": True},
        {"batch": "works"},
        "On 50 to 200 digits Batch Normalization did better than Group at equal steps; noise that "
        "regularizes is one possible cause.",
        (_paper(*_IOFFE, "section 3.4"), _claim("choosing.limited_data")),
    ),
    Rule(
        "devices",
        {"devices": {"min": 2}},
        {},
        "Each device normalizes its own share: eight devices with four images each are batches of 4, not 32.",
        (_paper(*_WU_HE, "section 4.1"), _chapter("batch_norm", "Pitfalls")),
        warning="With several devices the batch that counts is one device's. torch's SyncBatchNorm makes it "
        "the whole one, for communication at every layer.",
    ),
    Rule(
        "frozen",
        {"frozen": True},
        {
            "batch": "first",
            "layer": "weak",
            "rms": "weak",
            "instance": "weak",
            "group": "weak",
            "weight": "weak",
        },
        "A pretrained network with Batch Normalization can be fine-tuned with its statistics frozen "
        "(evaluation mode); replacing the layers would throw away what the weights were trained for.",
        (_chapter("batch_norm", "Variants"), _paper(*_WU_HE, "section 4.2")),
        warning="Call eval() on the normalization layers after every train(): train() unfreezes them.",
    ),
    Rule(
        "fast_inference",
        {"fast_inference": True},
        {"batch": "works", "weight": "works"},
        "In evaluation Batch Normalization is a fixed affine map and folds into the convolution before it; "
        "Weight Normalization turns back into plain weights. The others measure every input.",
        (_chapter("batch_norm", "Folding into a convolution"), _paper(*_SALIMANS, "section 2")),
    ),
    Rule(
        "weight_alone",
        {"architecture": ["cnn"], "task": ["classification"]},
        {"weight": "weak"},
        "Weight Normalization does not look at the activations, so nothing holds their scale while training "
        "moves it. In this course's experiments it needs lower learning rates than Batch Normalization.",
        (_paper(*_SALIMANS, "section 5.1"), _chapter("weight_norm", "Weight Normalization")),
    ),
)


@dataclass(frozen=True)
class Advice:
    """One technique in a recommendation: its votes' sum, and the rules that voted.

    Attributes:
        technique: the short name; ``title`` in prose.
        score: the sum of ``VOTES``.
        verdict: "first choice" (the best score of those that no rule says to avoid, and at least
            ``ENOUGH``), "possible" (above 0), "no reason either way" (0), "rather not" (below 0) or "avoid"
            (some rule says so).
        reasons_for, reasons_against: names of rules.
    """

    technique: str
    title: str
    score: int
    verdict: str
    reasons_for: tuple[str, ...]
    reasons_against: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Recommendation:
    """What the rules say about one situation; ``print`` it, or take :meth:`to_dict` as JSON.

    Attributes:
        situation: the questions that were answered.
        advice: every technique, best first.
        rules: the rules that applied.
        warnings: what to look out for.
        open: unanswered questions that further rules hang on, the one that matters most first.
    """

    situation: Mapping[str, Any]
    advice: tuple[Advice, ...]
    rules: tuple[Rule, ...]
    warnings: tuple[str, ...]
    open: tuple[str, ...]

    @property
    def best(self) -> tuple[str, ...]:
        """The first choices; empty if too little speaks for any technique."""
        return tuple(one.technique for one in self.advice if one.verdict == "first choice")

    @property
    def headline(self) -> str:
        """The first choices in one sentence; if there are none, the question to answer next."""
        if self.best:
            return f"First choice: {_short(self.best)}."
        if self.open:
            return f"No clear first choice yet. {FIELDS[self.open[0]].question}"
        possible = [one.technique for one in self.advice if one.verdict == "possible"]
        return (
            f"No clear first choice. Possible: {_short(possible)}." if possible else "No clear first choice."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "situation": dict(self.situation),
            "headline": self.headline,
            "advice": [
                asdict(one)
                | {"reasons_for": list(one.reasons_for), "reasons_against": list(one.reasons_against)}
                for one in self.advice
            ],
            "reasons": {rule.name: _rule_data(rule) for rule in self.rules},
            "warnings": list(self.warnings),
            "open": list(self.open),
        }

    def __repr__(self) -> str:
        import textwrap

        told = ", ".join(f"{name} {_word(value)}" for name, value in self.situation.items())
        rules = {rule.name: rule for rule in self.rules}
        lines = [f"For {told}:", *textwrap.wrap(self.headline, 88), ""]
        for one in self.advice:
            if one.reasons_for or one.reasons_against:
                lines.append(f"{one.title}: {one.verdict} ({one.score:+d})")
                for sign, names in (("+", one.reasons_for), ("-", one.reasons_against)):
                    lines += [f"  {sign} {name}" for name in names]
        silent = [one.title for one in self.advice if not one.reasons_for and not one.reasons_against]
        if len(silent) == len(self.advice):
            lines.append("No rule speaks for or against any technique.")
        elif silent:
            lines.append(textwrap.fill(f"No rule speaks of {', '.join(silent)}.", 88))
        for heading, texts in (
            ("Because:", [_reason(rule) for rule in rules.values() if rule.votes]),
            ("Mind:", list(self.warnings)),
            ("Also asked:", [f"{name}: {FIELDS[name].question}" for name in self.open]),
        ):
            if texts:
                lines += ["", heading]
                lines += [
                    textwrap.fill(text, 88, initial_indent="- ", subsequent_indent="  ") for text in texts
                ]
        return "\n".join(lines)


def _reason(rule: Rule) -> str:
    return f"{rule.name}: {rule.reason} [{'; '.join(map(str, rule.evidence))}]"


def _short(techniques: Iterable[str]) -> str:
    return " or ".join(TITLES[name].removesuffix(" Normalization") for name in techniques)


def _word(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def recommend(situation: Mapping[str, Any] | None = None, /, **told: Any) -> Recommendation:
    """What the rules say, ranked.

    Args:
        situation, told: answers to some of ``FIELDS``, as a mapping or as keywords; None is no answer.

    Raises:
        ValueError: an unknown question or answer (the nearest known one is suggested), a number below 1, or
            no answer at all.
        TypeError: an answer of the wrong type, or a situation that is no mapping.
    """
    if situation is not None and not isinstance(situation, Mapping):
        raise TypeError(f"situation: expected a mapping or keywords (architecture='cnn'), got {situation!r}")
    answers = {name: value for name, value in {**(situation or {}), **told}.items() if value is not None}
    for name, value in answers.items():
        _check(name, value)
    if not answers:
        raise ValueError(f"describe the situation by at least one of {', '.join(FIELDS)}")
    held = [(rule, rule.holds(answers)) for rule in RULES]
    rules = tuple(rule for rule, holds in held if holds)
    # A question is worth asking if every answered condition of a rule holds; which is what None means.
    undecided = [rule for rule, holds in held if holds is None]
    open_questions = [
        name for name in FIELDS if name not in answers and any(name in rule.when for rule in undecided)
    ]
    open_questions.sort(key=lambda name: _matters(name, answers, undecided), reverse=True)
    return Recommendation(
        situation=answers,
        advice=_ranked(rules),
        rules=rules,
        warnings=(
            *(rule.warning for rule in rules if rule.warning),
            *(
                f"No rule depends on the answer “{value.replace('_', ' ')}” to “{FIELDS[name].question}”."
                for name, value in answers.items()
                if _unread(name, value)
            ),
        ),
        open=tuple(open_questions),
    )


def _matters(name: str, answers: Mapping[str, Any], undecided: Iterable[Rule]) -> tuple[int, int]:
    """How many rules that hang on a question vote "first": of those about what was told, and of all."""
    deciding = [rule for rule in undecided if name in rule.when and "first" in rule.votes.values()]
    return sum(any(told in rule.when for told in answers) for rule in deciding), len(deciding)


def _unread(name: str, value: Any) -> bool:
    """Whether ``value`` is a word that no rule mentions."""
    conditions = [rule.when.get(name) for rule in RULES]
    return bool(FIELDS[name].options) and not any(value in c for c in conditions if isinstance(c, list))


def _ranked(rules: Iterable[Rule]) -> tuple[Advice, ...]:
    found = []
    for technique in RANKED:
        votes = {rule.name: rule.votes[technique] for rule in rules if technique in rule.votes}
        score = sum(VOTES[vote] for vote in votes.values())
        banned = "avoid" in votes.values()
        found.append(
            (
                technique,
                score,
                banned,
                tuple(name for name, vote in votes.items() if VOTES[vote] > 0),
                tuple(name for name, vote in votes.items() if VOTES[vote] < 0),
            )
        )
    best = max((score for _, score, banned, *_ in found if not banned), default=0)
    advice = []
    for technique, score, banned, for_, against in found:
        verdict = "no reason either way" if score == 0 else "possible" if score > 0 else "rather not"
        if banned:
            verdict = "avoid"
        elif score == best and score >= ENOUGH:
            verdict = "first choice"
        advice.append(Advice(technique, TITLES[technique], score, verdict, for_, against))
    # What some rule says to avoid comes last, whatever speaks for it.
    return tuple(sorted(advice, key=lambda one: (one.verdict == "avoid", -one.score)))


def _check(name: str, value: Any) -> None:
    if name not in FIELDS:
        raise ValueError(f"unknown question {name!r}{_nearest(name, FIELDS)}")
    asked = FIELDS[name]
    if asked.number:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected a whole number, got {value!r}")
        if value < 1:
            raise ValueError(f"{name}: expected a number from 1, got {value}")
    elif asked.options:
        if value not in asked.options:
            raise ValueError(f"{name}: unknown answer {value!r}{_nearest(str(value), asked.options)}")
    elif not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def _nearest(word: str, known: Iterable[str]) -> str:
    options = list(known)
    near = get_close_matches(word.casefold().replace("-", "_").replace(" ", "_"), options, n=1, cutoff=0.6)
    known = f"expected one of {', '.join(options)}"
    return f". Did you mean {near[0]!r}? ({known})" if near else f": {known}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """An option for each question: ``--batch-size 2``, ``--variable-batch``, ``--task detection``."""
    for one in FIELDS.values():
        option = "--" + one.name.replace("_", "-")
        if one.number:
            parser.add_argument(option, type=int, metavar="N", help=one.question)
        elif one.options:  # checked by recommend, which suggests the nearest
            words = ", ".join(one.options)
            parser.add_argument(
                option,
                metavar="WORD",
                type=lambda word: word.replace("-", "_"),
                help=f"{one.question} One of {words}",
            )
        else:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, help=one.question)


def as_data() -> dict[str, Any]:
    """Everything as plain data for JSON: the questions, the rules, the votes' worth, the summary table, and
    what became of each guideline of the seed."""
    return {
        "fields": [asdict(one) | {"options": list(one.options)} for one in FIELDS.values()],
        "votes": dict(VOTES),
        "enough": ENOUGH,
        "techniques": {name: TITLES[name] for name in RANKED},
        "rules": [_rule_data(rule) for rule in RULES],
        "summary": summary_rows(),
        "seed": [{**asdict(line), "evidence": _evidence_data(line.evidence)} for line in SEED],
    }


def _rule_data(rule: Rule) -> dict[str, Any]:
    return {
        "name": rule.name,
        "when": dict(rule.when),
        "unless": dict(rule.unless),
        "votes": dict(rule.votes),
        "reason": rule.reason,
        "evidence": _evidence_data(rule.evidence),
        "warning": rule.warning,
    }


def _evidence_data(evidence: Iterable[Evidence]) -> list[dict[str, str]]:
    return [{**asdict(one), "says": str(one)} for one in evidence]


# ---------------------------------------------------------------------- the founding draft, revisited


@dataclass(frozen=True)
class SeedLine:
    """One guideline of the draft that the course grew from, and what became of it.

    Attributes:
        technique: as the draft names it; empty for a line about the choice itself.
        part: "use_when", "avoid_when", "summary" or "depends_on".
        text: the draft's words.
        verdict: "kept", "narrowed" (true under conditions that it does not name), or "corrected".
        says: what the course says instead, or why it agrees.
        evidence: where that comes from.
    """

    technique: str
    part: Literal["use_when", "avoid_when", "summary", "depends_on"]
    text: str
    verdict: Literal["kept", "narrowed", "corrected"]
    says: str
    evidence: tuple[Evidence, ...]


SEED = (
    SeedLine(
        "BatchNorm",
        "use_when",
        "Large batch sizes (>16)",
        "narrowed",
        "What counts is the batch of one device, and how many independent values supply a statistic. On "
        "ImageNet the crossing with Group Normalization lies between 8 and 16 images per device.",
        (_paper(*_WU_HE, "Table 2"), _claim("batch_norm.statistics_batch")),
    ),
    SeedLine(
        "BatchNorm",
        "use_when",
        "CNNs with sufficient data",
        "narrowed",
        "The batch must be large enough, not the data set. On 50 to 200 digits Batch Normalization did "
        "better than Group at equal steps; noise that regularizes is one possible cause.",
        (_paper(*_IOFFE, "section 3.4"), _claim("choosing.limited_data")),
    ),
    SeedLine(
        "BatchNorm",
        "use_when",
        "Stable training is priority",
        "narrowed",
        "It smooths the loss and tolerates high learning rates, at a large batch. But at two samples it "
        "fails where others train, and very deep networks without skip connections explode because of it.",
        (
            _claim("batch_norm.landscape"),
            _claim("batch_norm.statistics_batch"),
            _paper("Yang et al. 2019", "1902.08129", "abstract"),
        ),
    ),
    SeedLine(
        "BatchNorm",
        "avoid_when",
        "Small batch sizes",
        "kept",
        "Two samples per statistic raise a perceptron's error many times over. Where a map supplies many "
        "values per image the harm is smaller; for convolutions on 8×8 digits the course saw none.",
        (_claim("batch_norm.statistics_batch"), _paper(*_WU_HE, "Table 2")),
    ),
    SeedLine(
        "BatchNorm",
        "avoid_when",
        "Recurrent networks",
        "narrowed",
        "One set of statistics for all time steps fits none of them. With statistics per step it works.",
        (
            _paper("Ba, Kiros & Hinton 2016", "1607.06450", "section 1"),
            _paper("Cooijmans et al. 2016", "1603.09025", "section 3"),
        ),
    ),
    SeedLine(
        "BatchNorm",
        "avoid_when",
        "Variable batch sizes",
        "narrowed",
        "True of training, where the function and its noise change with the batch. In evaluation the "
        "statistics are constants, and any batch size gives the same answer.",
        (_chapter("choosing", "Who depends on the batch"),),
    ),
    SeedLine(
        "LayerNorm",
        "use_when",
        "Recurrent networks (RNNs, LSTMs)",
        "kept",
        "Its statistics come from the present step of the present sequence.",
        (_paper("Ba, Kiros & Hinton 2016", "1607.06450", "section 3.1"),),
    ),
    SeedLine(
        "LayerNorm",
        "use_when",
        "Transformers",
        "kept",
        "Or RMS Normalization, which leaves out the mean and is what many language models use.",
        (
            _paper("Vaswani et al. 2017", "1706.03762", "section 3.1"),
            _paper("Touvron et al. 2023 (LLaMA)", "2302.13971", "section 2.2"),
            _claim("choosing.text"),
        ),
    ),
    SeedLine(
        "LayerNorm",
        "use_when",
        "Variable batch sizes",
        "kept",
        "A sample's output is the same alone as in company; so it is for Group, Instance and RMS "
        "Normalization.",
        (_chapter("choosing", "Who depends on the batch"),),
    ),
    SeedLine(
        "LayerNorm",
        "use_when",
        "Sequence data",
        "narrowed",
        "Measured on text only. Convolutional networks for sound use Weight or Batch Normalization too; "
        "sound is untested here.",
        (
            _claim("choosing.text"),
            _paper("Kumar et al. 2019 (MelGAN)", "1910.06711", "section 2"),
            _untested("audio"),
        ),
    ),
    SeedLine(
        "LayerNorm",
        "avoid_when",
        "CNNs (use BatchNorm instead)",
        "corrected",
        "Over (C, H, W), as the draft had it, ResNet-50 loses 1.7 points. Over the channels of each "
        "position, ConvNeXt gains a little. Which elements share the statistics decides, not the name.",
        (_paper(*_WU_HE, "Table 1"), _paper("Liu et al. 2022 (ConvNeXt)", "2201.03545", "section 2.6")),
    ),
    SeedLine(
        "LayerNorm",
        "avoid_when",
        "Small feature dimensions",
        "kept",
        "Of D features, D − 2 degrees of freedom survive. With two features every output is (−1, 1) or "
        "(1, −1).",
        (_chapter("choosing", "Two ways to erase everything"),),
    ),
    SeedLine(
        "InstanceNorm",
        "use_when",
        "Style transfer",
        "kept",
        "It takes the content image's contrast out.",
        (
            _paper("Ulyanov, Vedaldi & Lempitsky 2016", "1607.08022", "section 2"),
            _chapter("instance_norm", "Instance Normalization"),
        ),
    ),
    SeedLine(
        "InstanceNorm",
        "use_when",
        "Image generation",
        "narrowed",
        "Image-to-image translation uses it. Diffusion networks use Group, DCGAN's generator Batch "
        "Normalization. The course trains no generative network.",
        (
            _paper("Zhu et al. 2017 (CycleGAN)", "1703.10593", "section 4"),
            _paper("Ho, Jain & Abbeel 2020 (DDPM)", "2006.11239", "appendix B"),
            _untested("training a generative network"),
        ),
    ),
    SeedLine(
        "InstanceNorm",
        "use_when",
        "Per-sample normalization needed",
        "narrowed",
        "Layer, RMS and Group Normalization are per sample too. Instance Normalization is per sample and "
        "per channel.",
        (_chapter("choosing", "Who depends on the batch"),),
    ),
    SeedLine(
        "InstanceNorm",
        "avoid_when",
        "Classification tasks",
        "kept",
        "It erases each channel's strength in the image. On ImageNet that costs 4.8 points.",
        (_paper(*_WU_HE, "Table 1"),),
    ),
    SeedLine(
        "InstanceNorm",
        "avoid_when",
        "When batch statistics are important",
        "corrected",
        "That tells it apart from nothing: Layer, RMS and Group Normalization do without batch statistics "
        "too. Avoid it where a channel's mean and contrast carry the answer, or where a map is 1×1.",
        (_chapter("choosing", "Two ways to erase everything"), _paper(*_WU_HE, "Table 1")),
    ),
    SeedLine(
        "GroupNorm",
        "use_when",
        "Small batch sizes",
        "kept",
        "Its error does not depend on the batch.",
        (_paper(*_WU_HE, "Table 2"), _chapter("choosing", "Who depends on the batch")),
    ),
    SeedLine(
        "GroupNorm",
        "use_when",
        "CNNs with limited data",
        "corrected",
        "Few data are no reason. Group Normalization lacks the noise that regularizes, and Wu and He name "
        "that as the likely cause of its small deficit at batch 32. On few digits it did not win.",
        (_claim("choosing.limited_data"), _paper(*_WU_HE, "section 4.1")),
    ),
    SeedLine(
        "GroupNorm",
        "use_when",
        "Alternative to BatchNorm",
        "kept",
        "The nearest one for convolutions: half a point behind on ImageNet at batch 32 and 16, ahead from 8 "
        "downwards.",
        (_paper(*_WU_HE, "Tables 1 and 2"),),
    ),
    SeedLine(
        "GroupNorm",
        "avoid_when",
        "Large batch sizes (BatchNorm is better)",
        "narrowed",
        "By 0.5 points for ResNet-50, and not with standardized weights: with them Group Normalization "
        "reaches Batch Normalization (Qiao et al.) and is preferred at large batches (Kolesnikov et al.).",
        (
            _paper(*_WU_HE, "Table 1"),
            _paper("Qiao et al. 2019", "1903.10520", "section 4"),
            _paper("Kolesnikov et al. 2020 (BiT)", "1912.11370", "section 4.3"),
        ),
    ),
    SeedLine(
        "GroupNorm",
        "avoid_when",
        "Very small number of channels",
        "narrowed",
        "Few channels make groups of one, which is Instance Normalization; a smaller G mends it. What must "
        "not be small is a group: C/G·H·W elements.",
        (_chapter("choosing", "Two ways to erase everything"), _paper(*_WU_HE, "section 3.1")),
    ),
    SeedLine(
        "BatchNorm",
        "summary",
        "Best for CNNs with large batch sizes, uses batch statistics",
        "narrowed",
        "In training; in evaluation it uses running statistics, and folds into the convolution.",
        (_paper(*_WU_HE, "Table 1"), _chapter("batch_norm", "Folding into a convolution")),
    ),
    SeedLine(
        "LayerNorm",
        "summary",
        "Ideal for RNNs and transformers, normalizes across features",
        "kept",
        "Of each token or step. Over (C, H, W) of an image it is another technique under the same name.",
        (_paper("Ba, Kiros & Hinton 2016", "1607.06450", "section 3"), _claim("choosing.text")),
    ),
    SeedLine(
        "InstanceNorm",
        "summary",
        "Perfect for style transfer, normalizes each sample independently",
        "narrowed",
        "Each channel of each sample. Stylization needs it; to choose the style, let γ and β depend on it "
        "(AdaIN).",
        (
            _paper("Ulyanov, Vedaldi & Lempitsky 2016", "1607.08022", "section 2"),
            _paper("Huang & Belongie 2017 (AdaIN)", "1703.06868", "section 5"),
        ),
    ),
    SeedLine(
        "GroupNorm",
        "summary",
        "Good alternative to BatchNorm for small batch sizes",
        "kept",
        "As the table of Wu and He shows from 8 images per device downwards.",
        (_paper(*_WU_HE, "Table 2"),),
    ),
    SeedLine(
        "WeightNorm",
        "summary",
        "Reparameterizes weights to separate direction and magnitude",
        "kept",
        "Of the weights only: it fixes no activation, depends on no data, and adds one number per output.",
        (_paper(*_SALIMANS, "section 2"), _chapter("weight_norm", "Weight Normalization")),
    ),
    SeedLine(
        "",
        "depends_on",
        "Architecture: CNN vs RNN vs Transformer",
        "kept",
        "It decides which elements are alike enough to share statistics.",
        (_chapter("choosing", "From the situation to the rules"),),
    ),
    SeedLine(
        "",
        "depends_on",
        "Batch size: Large vs small",
        "narrowed",
        "The batch of one device while training. In evaluation it matters for none of them.",
        (_chapter("choosing", "Who depends on the batch"), _claim("batch_norm.statistics_batch")),
    ),
    SeedLine(
        "",
        "depends_on",
        "Task: Classification vs generation vs style transfer",
        "kept",
        "It decides what must survive: contrast is information for a classifier and a nuisance for style.",
        (
            _paper(*_WU_HE, "Table 1"),
            _paper("Ulyanov, Vedaldi & Lempitsky 2016", "1607.08022", "section 2"),
            _untested("generation"),
        ),
    ),
    SeedLine(
        "",
        "depends_on",
        "Data characteristics: Image vs text vs audio",
        "narrowed",
        "The kind of data matters through what a batch's samples have in common: tokens of one text are "
        "alike, so statistics of few sequences mislead. Sound is untested here.",
        (
            _claim("choosing.text"),
            _paper("Shen et al. 2020 (PowerNorm)", "2003.07845", "section 3"),
            _untested("audio"),
        ),
    ),
)


# ------------------------------------------------------------------------------------------ the summary table

# What no catalog row says. Parameters and buffers for C channels, maps of H×W.
_CARD = {
    "batch": {
        "in evaluation": "running",
        "parameters": "2C, and 2C + 1 in buffers",
        "use for": "convolutions, 16 images per device and more",
        "avoid for": "tiny batches, recurrence, language models",
    },
    "layer": {
        "in evaluation": "the input's",
        "parameters": "2D for D normalized features",
        "use for": "transformers, recurrence",
        "avoid for": "a handful of features",
    },
    "rms": {
        "in evaluation": "the input's",
        "parameters": "D for D normalized features",
        "use for": "transformers",
        "avoid for": "a handful of features",
    },
    "instance": {
        "in evaluation": "the input's",
        "parameters": "2C (torch's default: none)",
        "use for": "style transfer, image translation",
        "avoid for": "classification, maps of 1×1",
    },
    "group": {
        "in evaluation": "the input's",
        "parameters": "2C",
        "use for": "convolutions with few images per device",
        "avoid for": "groups of one channel",
    },
    "weight": {
        "in evaluation": "none needed",
        "parameters": "1 per output, beside the weight",
        "use for": "where activations must stay untouched",
        "avoid for": "deep networks that need their scale held",
    },
}


def summary_rows() -> list[dict[str, str]]:
    """One row per technique, from the catalog and the cards above; plain words, for any table.

    The columns: technique, index set, in evaluation (whose statistics), depends on the batch, parameters,
    passes (over the data once it exceeds the cache, forward + backward), use for, avoid for, source.
    """
    from normtutor.catalog import TECHNIQUES

    rows = []
    for name in RANKED:
        row, card = TECHNIQUES.get(name), _CARD[name]
        rows.append(
            {
                "technique": row.title if row else TITLES[name],
                "index set": row.index_set if row else "none: the weight's",
                "in evaluation": card["in evaluation"],
                "depends on the batch": "in training" if row and "N" in row.index_set else "no",
                "parameters": card["parameters"],
                "passes": f"{row.forward_passes} + {row.backward_passes}" if row else "over the weight only",
                "use for": card["use for"],
                "avoid for": card["avoid for"],
                "source": row.paper if row else _SALIMANS[0],
            }
        )
    return rows


def summary() -> str:
    """:func:`summary_rows` as a Markdown table, one line per technique."""
    from normtutor.lab.text import markdown_table

    rows = summary_rows()
    return markdown_table(list(rows[0]), [list(row.values()) for row in rows])


def seed_table(technique: str | None = None) -> str:
    """What became of the draft's guidelines, of one technique or of all, as text: one paragraph each."""
    import textwrap

    parts = []
    for line in SEED:
        if technique is None or line.technique == technique:
            about = f"{line.technique}, " if line.technique else ""
            parts.append(f"{line.verdict.upper()}: {about}{line.part.replace('_', ' ')}: “{line.text}”")
            text = f"{line.says} [{'; '.join(map(str, line.evidence))}]"
            parts.append(textwrap.fill(text, 86, initial_indent="  ", subsequent_indent="  "))
    return "\n".join(parts)
