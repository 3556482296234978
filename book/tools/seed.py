"""The founding document, accounted for: what became of every heading, class, function and guideline of it.

The document stands unchanged in book/seed; a page of the site and a test are made from this module.
"""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jupytext

from address import ROOT

SEED = ROOT / "book" / "seed" / "normalization_techniques.md"


@dataclass(frozen=True)
class Account:
    """What became of one item.

    Attributes:
        now: its successors: dotted names of the package, and sections as ``chapter: heading``.
        change: what is different, and why.
    """

    now: tuple[str, ...]
    change: str


def headings(text: str) -> list[str]:
    """The headings below the title, each with the section that it stands in: ``Section / heading``."""
    found, section = [], ""
    for level, title in re.findall(r"^(##+) (.+)$", _prose(text), re.MULTILINE):
        section = title if level == "##" else section
        found.append(title if level == "##" else f"{section} / {title}")
    return found


def definitions(text: str) -> list[str]:
    """The top-level classes and functions: ``class LayerNorm``, ``def demonstrate_layernorm``."""
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    return re.findall(r"^(?:class|def) \w+", code, re.MULTILINE)


def _prose(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


@cache
def sections(chapter: str) -> set[str]:
    """The headings of a chapter."""
    cells = jupytext.read(ROOT / "notebooks" / f"{chapter}.py").cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return {title.strip() for title in re.findall(r"^##+ (.+)$", prose, re.MULTILINE)}


def page(folder: Path = Path("book/generated")) -> str:
    """The page, in Markdown; ``folder`` is where it will stand."""
    from normtutor import guide
    from normtutor.catalog import CHAPTERS

    up = "../" * len(folder.parts)

    def successor(name: str) -> str:
        chapter, colon, heading = name.partition(": ")
        if not colon:
            return f"`{name}`"
        return f"[{CHAPTERS[chapter]}]({up}notebooks/{chapter}.ipynb), *{heading}*"

    def entry(item: str) -> str:
        title = f"`{item}`" if item.startswith(("class ", "def ")) else item
        account = ACCOUNTS[item]
        return f"- **{title}** → {'; '.join(map(successor, account.now))}. {account.change}"

    def guideline(line: guide.SeedLine) -> str:
        about = " ".join(filter(None, (line.technique, line.part.replace("_", " "))))
        sources = "; ".join(f"[{e}]({e.url})" if e.url else str(e) for e in line.evidence)
        return f"- {about}: *{line.text}* → **{line.verdict}**. {line.says} ({sources})"

    text = SEED.read_text("utf8")
    choosing = f"[{CHAPTERS['choosing']}]({up}notebooks/choosing.ipynb)"
    parts = [
        "# Where the course comes from",
        "The course grew out of one document, `book/seed/normalization_techniques.md`: explanations, code "
        "and guidelines for five techniques. Nothing of it was dropped. This page says what became of every "
        "heading, class, function and guideline, and why it was changed; a test fails if one is missing.",
        "## Classes and functions",
        "\n".join(map(entry, definitions(text))),
        "## Headings",
        "\n".join(map(entry, headings(text))),
        "## Guidelines",
        "Every line of the document's advice, with what the evidence says of it. The rules that replace them "
        f"stand in `normtutor.guide`; {choosing} applies them.",
        "\n".join(map(guideline, guide.SEED)),
    ]
    return "\n\n".join(parts) + "\n"


_FORMULA = "The same formula, with its index set named, its derivation, and its backward pass."
_DEMONSTRATION = "It printed means and shapes, which no wrong layer would have failed."

ACCOUNTS: dict[str, Account] = {
    # ------------------------------------------------------------------------------ classes, functions
    "class BatchNorm1d": Account(
        ("normtutor.layers.BatchNorm1d", "normtutor.functional.batch_norm", "batch_norm: Building the layer"),
        "Stores the unbiased running variance, as the paper does (the document stored the biased one); "
        "updates its buffers in place and without a graph, where the document replaced them by results that "
        "kept every earlier batch's graph alive; takes (N, C, L) too; all of torch's arguments, and its "
        "state dict. The two buffers `batch_mean` and `batch_var` are gone: they were written and never "
        "read, and would have gone into every checkpoint.",
    ),
    "class BatchNorm2d": Account(
        ("normtutor.layers.BatchNorm2d", "normtutor.layers.BatchNorm3d", "batch_norm: Building the layer"),
        "As BatchNorm1d; the three share one base and one function.",
    ),
    "def demonstrate_batchnorm": Account(
        ("normtutor.lab.parity", "batch_norm: Parity"),
        f"{_DEMONSTRATION} The parity report compares outputs, gradients and buffers with extended "
        "precision.",
    ),
    "class CNNWithBatchNorm": Account(
        ("normtutor.networks.CNNWithBatchNorm", "batch_norm: In a network"),
        "The normalization is an argument, and so is the image size: the document's first linear layer "
        "fitted 28×28 images only, and failed late on all others.",
    ),
    "def train_with_batchnorm": Account(
        ("normtutor.lab.train", "batch_norm: In a network"),
        "Real digits and many steps instead of one step on noise; with and without normalization, compared.",
    ),
    "class LearnableBatchNorm": Account(
        ("normtutor.layers.LearnableBatchNorm", "batch_norm: Variants"),
        "The document's statistics were parameters that no gradient could reach in training. Here the loss "
        "moves them; the chapter measures that this is rarely of use.",
    ),
    "class AdaptiveBatchNorm": Account(
        ("normtutor.layers.AdaptiveBatchNorm", "batch_norm: Variants"),
        "min(0.1, 1/(t+1)) remembers the initial value longer than no adaptation does; max(0.1, 1/t) is a "
        "plain average first. An exercise lets you find it.",
    ),
    "class LayerNorm": Account(
        ("normtutor.layers.LayerNorm", "normtutor.functional.layer_norm", "layer_norm: Building the layer"),
        "Normalizes over all of `normalized_shape`; the document's took the last axis only, whatever it was "
        "told, beside a comment that said otherwise.",
    ),
    "def demonstrate_layernorm": Account(
        ("normtutor.lab.parity", "layer_norm: Parity"),
        f"{_DEMONSTRATION} Its comparison with torch used one shape, the one that hides the error.",
    ),
    "class TransformerBlock": Account(
        ("normtutor.networks.TransformerBlock", "layer_norm: In a network: the Transformer block"),
        "The placement (post, pre, sandwich) and the normalization are arguments; batch first by default; a "
        "causal mask. The document's placement, post, needs warm-up: the chapter measures it.",
    ),
    "def demonstrate_transformer_block": Account(
        ("layer_norm: In a network: the Transformer block",),
        "It printed a shape. The chapter trains blocks and measures their gradients by depth.",
    ),
    "class InstanceNorm2d": Account(
        (
            "normtutor.layers.InstanceNorm2d",
            "normtutor.layers.InstanceNorm1d",
            "normtutor.layers.InstanceNorm3d",
            "instance_norm: Building the layer",
        ),
        "Takes any memory layout (the document's `view` fails on channels_last input) and honours "
        "`momentum`, which the document took and ignored. γ and β are off by default, as in torch.",
    ),
    "def demonstrate_instancenorm": Account(
        ("normtutor.lab.parity", "instance_norm: Parity"),
        f"{_DEMONSTRATION} It printed the unbiased deviation, which is not the one that becomes 1.",
    ),
    "class StyleTransferBlock": Account(
        ("normtutor.networks.StyleTransferBlock", "instance_norm: In a network"),
        "The normalization is an argument, so that instance and batch normalization can be compared.",
    ),
    "class StyleTransferNetwork": Account(
        ("normtutor.networks.StyleTransferNetwork", "instance_norm: In a network"),
        "Trained for real, on photographs and against a perceptual loss; width is an argument, for CPUs.",
    ),
    "def demonstrate_style_transfer": Account(
        ("normtutor.lab.style", "instance_norm: In a network"),
        "It stylized noise with an untrained network and printed a shape. The chapter shows pictures.",
    ),
    "class GroupNorm": Account(
        ("normtutor.layers.GroupNorm", "normtutor.functional.group_norm", "group_norm: Building the layer"),
        "Any number of spatial axes and any memory layout, not (N, C, H, W) contiguous alone; a ValueError "
        "that names both numbers instead of an `assert`, which `python -O` removes.",
    ),
    "def demonstrate_groupnorm": Account(
        ("normtutor.lab.parity", "group_norm: Parity"),
        "It compared with torch on one easy input. The parity report has offsets up to 10⁴ deviations, where "
        "torch's own channels_last path is wrong.",
    ),
    "class CNNWithGroupNorm": Account(
        ("normtutor.networks.CNNWithGroupNorm", "group_norm: In a network"),
        "Image size, number of groups and input channels are arguments.",
    ),
    "def demonstrate_cnn_with_groupnorm": Account(
        ("group_norm: In a network",),
        "The same batch sizes, 1, 4, 8 and 16, but trained and compared with Batch Normalization, not only "
        "shaped.",
    ),
    "class WeightNormLinear": Account(
        (
            "normtutor.layers.WeightNormLinear",
            "normtutor.layers.WeightNormConv2d",
            "normtutor.functional.weight_norm",
            "weight_norm: Building the layer",
        ),
        "Starts from the weights that torch's Linear has (the document fixed every length at 1); "
        "data-dependent initialization; an error instead of NaN for v = 0; checkpoints to and from torch's "
        "parametrization; convolutions, transposed ones too.",
    ),
    "def demonstrate_weightnorm": Account(
        ("weight_norm: Parity",),
        "It printed that lengths of 1 are 1. The chapter compares values and gradients with extended "
        "precision.",
    ),
    "def choose_normalization_technique": Account(
        ("normtutor.guide.recommend", "choosing: From the situation to the rules"),
        "Rules as data, each with its reason and its source, that answer a described situation; the "
        "document's lists had neither.",
    ),
    "def demonstrate_normalization_choice": Account(
        ("normtutor.cli", "choosing: From the situation to the rules"),
        "`normtutor choose` answers for your situation instead of printing all lists.",
    ),
    "def compare_normalization_performance": Account(
        (
            "normtutor.lab.comparison.compare",
            "normtutor.lab.bench",
            "choosing: Time and memory, all on one tensor",
        ),
        "Interleaved, medians, forward and backward, as a fraction of the memory's bandwidth. The document "
        "timed one after the other with `time.time()`, forward only, and on a GPU it would have timed the "
        "launches.",
    ),
    "def compare_memory_usage": Account(
        ("normtutor.lab.memory", "choosing: Time and memory, all on one tensor"),
        "What costs memory is what autograd keeps for the backward pass; the document counted parameters, "
        "which are few.",
    ),
    # ---------------------------------------------------------------------------------------- headings
    "Table of Contents": Account(("one_formula: What it is for",), "The site's own table of contents."),
    "Batch Normalization (BatchNorm)": Account(("batch_norm: What it is for",), "A chapter of its own."),
    "Batch Normalization (BatchNorm) / Mathematical Formulation": Account(
        ("batch_norm: The forward formula", "batch_norm: The backward pass"),
        "The document averaged over the batch alone, in the formula, for images too; the index set here "
        "says N, H and W. The backward pass is derived step by step.",
    ),
    "Batch Normalization (BatchNorm) / Training vs Inference": Account(
        ("batch_norm: Training and inference",),
        "Also biased against unbiased, `momentum=None`, and the counter.",
    ),
    "Batch Normalization (BatchNorm) / Python Implementation": Account(
        ("batch_norm: Building the layer", "batch_norm: Numerics", "batch_norm: Parity"),
        "Proved against extended precision, not shown to print a mean of 0.",
    ),
    "Batch Normalization (BatchNorm) / BatchNorm in Neural Networks": Account(
        ("batch_norm: In a network", "normtutor.networks.CNNWithBatchNorm"),
        "Trained on real digits, against the same network without it; four published claims put to the test.",
    ),
    "Batch Normalization (BatchNorm) / BatchNorm Variants": Account(
        ("batch_norm: Variants",), "Both variants, with what they are good for measured."
    ),
    "Batch Normalization (BatchNorm) / 1. BatchNorm with Learnable Parameters": Account(
        ("batch_norm: Variants", "normtutor.layers.LearnableBatchNorm"), "The statistics do learn."
    ),
    "Batch Normalization (BatchNorm) / 2. BatchNorm with Different Momentum": Account(
        ("batch_norm: Variants", "normtutor.layers.AdaptiveBatchNorm"),
        "The rule is turned the right way round.",
    ),
    "Layer Normalization": Account(
        ("layer_norm: What it is for",), "A chapter, which introduces RMSNorm too."
    ),
    "Layer Normalization / Mathematical Formulation": Account(
        ("layer_norm: The forward formula", "layer_norm: The backward pass"), _FORMULA
    ),
    "Layer Normalization / Python Implementation": Account(
        ("layer_norm: Building the layer", "layer_norm: Parity"),
        "All of `normalized_shape`, not the last axis.",
    ),
    "Layer Normalization / LayerNorm in Transformers": Account(
        ("layer_norm: In a network: the Transformer block", "normtutor.networks.TransformerBlock"),
        "Post-, pre- and sandwich placement, trained, with gradient norms by depth and the case for warm-up.",
    ),
    "Instance Normalization": Account(("instance_norm: What it is for",), "A chapter of its own."),
    "Instance Normalization / Mathematical Formulation": Account(
        ("instance_norm: The forward formula", "instance_norm: The backward pass"), _FORMULA
    ),
    "Instance Normalization / Python Implementation": Account(
        ("instance_norm: Building the layer", "instance_norm: Parity"),
        "1d, 2d and 3d, tracked statistics too.",
    ),
    "Instance Normalization / InstanceNorm in Style Transfer": Account(
        ("instance_norm: In a network", "normtutor.networks.StyleTransferNetwork"),
        "Trained on photographs; instance against batch normalization by loss and by eye.",
    ),
    "Group Normalization": Account(("group_norm: What it is for",), "A chapter of its own."),
    "Group Normalization / Mathematical Formulation": Account(
        ("group_norm: The forward formula", "group_norm: The backward pass"),
        f"{_FORMULA} The document gave no formula for the group's mean and variance.",
    ),
    "Group Normalization / Python Implementation": Account(
        ("group_norm: Building the layer", "group_norm: Parity"), "Any rank and memory layout."
    ),
    "Group Normalization / GroupNorm in Different Architectures": Account(
        ("group_norm: In a network", "normtutor.networks.CNNWithGroupNorm"), "Trained at every batch size."
    ),
    "Weight Normalization": Account(("weight_norm: What it is for",), "A chapter of its own."),
    "Weight Normalization / Mathematical Formulation": Account(
        ("weight_norm: The forward formula", "weight_norm: The backward pass"),
        "Also the gradient, split into length and direction, and what follows from it.",
    ),
    "Weight Normalization / Python Implementation": Account(
        ("weight_norm: Building the layer", "weight_norm: Parity"), "Linear and convolutions, any `dim`."
    ),
    "Practical Considerations": Account(("choosing: What it is for",), "A chapter of its own."),
    "Practical Considerations / When to Use Each Normalization Technique": Account(
        ("normtutor.guide", "choosing: From the situation to the rules"),
        "Each line kept, narrowed or corrected: see the guidelines below.",
    ),
    "Practical Considerations / Performance Comparison": Account(
        ("choosing: Time and memory, all on one tensor", "normtutor.lab.comparison.compare"),
        "At the document's shape and at modern ones.",
    ),
    "Practical Considerations / Memory Usage Comparison": Account(
        ("choosing: Time and memory, all on one tensor", "normtutor.lab.memory"),
        "What autograd keeps, not parameters alone.",
    ),
    "Summary": Account(
        ("choosing: All on one page",),
        "One table, made from the catalog and the guide; text and audio with evidence or marked untested.",
    ),
}
