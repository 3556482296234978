# ---
# jupyter:
#   accelerator: GPU
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Choosing a Normalization
#
# $$
# \text{situation} \;\longrightarrow\; S_i \;\longrightarrow\; \text{technique}
# $$
#
# Which elements should share one mean and one variance? You have met the answers one by one. This chapter puts
# them side by side: on one tensor, on one clock, on text, on few data, and against the advice that the course
# began with.
#
# You begin with a situation, walk the rules that apply to it, see what each rule rests on, and then decide for others,
# graded.
#
# You need: the chapters before this one, or at least
# [Batch Normalization](batch_norm.ipynb). The chapter runs top to bottom in under a minute, on a CPU or a GPU.

# %% tags=["remove-cell"]
# Installs the course's package where it is missing, on Colab for instance.
# An installed torch or numpy stays exactly as it is.
import importlib.util

if importlib.util.find_spec("normtutor") is None:
    import importlib.metadata
    import pathlib
    import subprocess
    import sys
    import tempfile

    address = "git+https://github.com/normtutor/normtutor"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", address, "--constraint"]
    present = [name for name in ("torch", "numpy") if importlib.util.find_spec(name)]
    pins = [f"{name}=={importlib.metadata.version(name)}" for name in present]
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "pins.txt")
        file.write_text("\n".join(pins))
        done = subprocess.run([*pip, str(file)], capture_output=True, text=True)
    if done.returncode != 0:
        message = "Installing the package failed. Is torch 2.6 or newer? pip says:\n"
        raise RuntimeError(message + done.stderr)
    importlib.invalidate_caches()

# %% [markdown]
# ## What it is for
#
# A table of "use when" and "avoid when" is quickly learned and quickly wrong: it leaves out *why*, so nobody
# can tell when it stops being true. So the guide of this course is a list of **rules**, kept as data.
# Each has conditions, votes, a reason, and a source: a paper's section, an experiment of this course, or the word
# *untested*.

# %%
import copy

import torch
from torch import nn

from normtutor import functional, guide, layers
from normtutor.catalog import TECHNIQUES
from normtutor.exercises import check, progress, statement
from normtutor.exercises.show import show
from normtutor.lab import (
    claims,
    compare,
    digits,
    line_chart,
    one_thread,
    show_source,
    use_style,
)

use_style()
BLUE, GREY, ORANGE = "#0072B2", "#6e6e6e", "#D55E00"

# %% [markdown]
# ## The problem, felt
#
# You move a small perceptron from a large machine to a small one. Everything stays: the data, the optimizer's steps,
# the learning rate. Only the batch shrinks, from 32 images to 2. Which normalization you had chosen decides
# what happens next.

# %%
from normtutor.lab import accuracy, train
from normtutor.networks import MLP

data = digits()
images, test_images = data.train_images.flatten(1), data.test_images.flatten(1)
test_error = {}
for norm in ("batch", "layer"):
    for batch_size in (32, 2):
        torch.manual_seed(0)
        network = MLP([64, 100, 100, 10], norm)
        labels = data.train_labels
        train(network, images, labels, steps=400, lr=0.03, batch_size=batch_size)
        error = 1 - accuracy(network, test_images, data.test_labels)
        test_error[norm, batch_size] = error
        print(
            f"{norm:6} batches of {batch_size:2}: {error:6.1%} of the test digits wrong"
        )

assert test_error["batch", 2] > 3 * test_error["batch", 32], "two images are too few"
assert test_error["batch", 2] > 2 * test_error["layer", 2], "LayerNorm needs no batch"

# %% [markdown]
# A smaller batch sees fewer images in as many steps, so both lose something. But Batch Normalization, in no way the worse at
# 32, fails at 2. Nothing was wrong with the choice. The situation changed.

# %% [markdown]
# ## From the situation to the rules
#
# Describe what you have, as far as you know it. The guide applies every rule whose conditions hold, adds up the
# votes, and shows all of its reasons:

# %% tags=["nbval-check-output"]
print(guide.recommend(architecture="cnn", batch_size=2, task="detection"))

# %% [markdown]
# Read it from below. **Also asked** are questions that more rules hang on. **Mind** holds what the votes cannot say.
# **Because** gives every reason with its source. The ranking on top is nothing but a sum, over these rules, of
# four kinds of vote:

# %% tags=["nbval-check-output"]
for vote, worth in guide.VOTES.items():
    print(f"{vote:6} {worth:+d}")
print(len(guide.RULES), "rules")

# %% [markdown]
# One reason to avoid outweighs one first choice, and puts a technique last whatever speaks for it. The best sum is
# called a first choice from +2 on: one *works* is too little, and the guide asks on instead. The worths are a
# convention, not a measurement. If you disagree with a recommendation, disagree with one of its rules: they are
# all there.

# %%
show_source(guide.Rule.holds)

# %%
show_source(guide._ranked)

# %% [markdown]
# A walk through five situations. Before you run the cell, say what you would choose.

# %% tags=["nbval-check-output"]
situations = (
    {"architecture": "cnn", "task": "classification", "batch_size": 64},
    {"architecture": "transformer", "task": "language_modelling", "data": "text"},
    {"architecture": "rnn", "data": "text"},
    {"architecture": "generator", "task": "style_transfer", "data": "image"},
    {"architecture": "mlp", "batch_size": 2},
)
for situation in situations:
    advice = guide.recommend(situation)
    print(", ".join(f"{name} {value}" for name, value in situation.items()))
    print("   use:  ", ", ".join(advice.best))
    avoid = [one.technique for one in advice.advice if one.verdict == "avoid"]
    print("   avoid:", ", ".join(avoid) or "nothing in particular")

# %% [markdown]
# On the command line: `normtutor choose --architecture cnn --batch-size 2`. What it cannot know, it refuses, and
# suggests the nearest word it knows:

# %% tags=["nbval-check-output"]
for told in ({"architecture": "convnet"}, {"task": "style"}, {"batchsize": 2}):
    try:
        guide.recommend(told)
    except ValueError as error:
        print(error)

# %% [markdown]
# ## Who depends on the batch
#
# The first question to any technique: does one sample's result change with its company? The index sets tell.
# $S_i = \lbrace k \mid k_C = i_C \rbrace$ of Batch Normalization runs over all samples. All the others fix
# $k_N = i_N$, so no other sample can enter. Weight Normalization has no $S_i$ at all. Measured:


# %%
def depends_on_batch(layer, x, training):
    """Whether the first two samples' results change when the others do."""
    layer = copy.deepcopy(layer).train(training)
    other = torch.cat([x[:2], 3 * x[2:] ** 2 + 1])
    with torch.no_grad():
        return not torch.allclose(layer(x)[:2], layer(other)[:2], atol=1e-6)


# %% tags=["nbval-check-output"]
torch.manual_seed(0)
x = torch.randn(6, 8, 5, 5)
rows = {name: row.layer(x.shape) for name, row in TECHNIQUES.items()}
rows["weight"] = layers.WeightNormConv2d(8, 8, 3)
print(f"{'':9}  training  evaluation")
for name, layer in rows.items():
    answers = [depends_on_batch(layer, x, training) for training in (True, False)]
    print(f"{name:9}  {answers[0]!s:8}  {answers[1]}")

# %% [markdown]
# So a batch of varying size is a difficulty of *training* with Batch Normalization, and of nothing else. In
# evaluation every technique gives one image the same answer, alone or among a thousand.

# %% [markdown]
# ## Two ways to erase everything
#
# Standardizing $m$ numbers takes two facts from them, the mean and the deviation: $m - 2$ degrees of freedom are
# left. Where $m$ is small, that is most of the information.
#
# **Too few features.** With two features, $\hat{x}$ is $(1, -1)$ or $(-1, 1)$, whatever the numbers were: only
# their order survives.

# %% tags=["nbval-check-output"]
x = torch.tensor([[3.0, 5.0], [-100.0, 7.0], [0.2, 0.1]])
print(layers.LayerNorm(2, elementwise_affine=False)(x).round(decimals=2))
for width in (2, 4, 64):
    print(f"{width:3} features: {(width - 2) / width:.0%} of the freedom is left")

# %% [markdown]
# **One position.** Instance Normalization takes its statistics over the positions of one channel of one sample.
# After global average pooling there is one position. One value is its own mean, so $\hat{x} = 0$ and the layer
# gives $\beta$ to every image. torch and this course refuse it; a group of a single feature, for several samples,
# passes unnoticed:

# %% tags=["nbval-check-output"]
pooled = torch.randn(5, 8, 1, 1)
try:
    layers.InstanceNorm2d(8)(pooled)
except ValueError as error:
    print(error)
groups_of_one = layers.GroupNorm(8, 8)(pooled.flatten(1))
print("what is left of five images:", groups_of_one.abs().max().item())

# %% [markdown]
# **Few channels** are a milder case. With as many groups as channels, Group Normalization *is* Instance
# Normalization; with one group it is Layer Normalization over $(C, H, W)$, but for the shape of $\gamma$ and
# $\beta$. Choose $G$ so that a group holds several channels:

# %% tags=["nbval-check-output"]
x = torch.randn(4, 6, 5, 5, dtype=torch.float64)
by_instance = functional.instance_norm(x)
by_layer = functional.layer_norm(x, x.shape[1:])
print("G = C is instance:", torch.allclose(functional.group_norm(x, 6), by_instance))
print("G = 1 is layer:   ", torch.allclose(functional.group_norm(x, 1), by_layer))

# %% [markdown]
# ## Time and memory, all on one tensor
#
# The draft that this course grew from compared four layers at $(16, 64, 32, 32)$. Its benchmark had four faults, each
# common, and each enough to reverse a ranking:
#
# | fault | what it does |
# |---|---|
# | the clock stops before the work is done | on a GPU a call only *enqueues* work; without waiting, one times the launch |
# | forward only | training is mostly backward, and the techniques differ there |
# | one candidate after the other, with `time.time()` | whatever else the machine does hits one of them; that clock may be set back |
# | "memory" is the number of parameters | autograd keeps whole tensors for the backward pass, up to thousands of times as much |
#
# `compare` times all techniques in turn on one tensor, forward and with backward, waits for the
# device, takes the median, and relates it to the copy bandwidth measured in the same run. The line *copy* is
# `x.clone()`: the least that a layer can do.

# %%
from normtutor.lab.comparison import SEED_SHAPE, SHAPES

seeds = compare(SEED_SHAPE, seconds=0.5, rounds=3)
print(seeds.time_table())

# %% [markdown]
# Two lessons hold on any machine. *Who wrote the layer* matters as much as *which* layer it is: compare the eager line of a
# technique with its torch.nn line. And a ranking at one shape is a ranking at one shape. These are tokens, as a
# transformer has them; Instance and Group Normalization are not defined on them.

# %%
tokens = compare(SHAPES["8 sequences of 512 tokens"], seconds=0.5, rounds=3)
print(tokens.time_table())

# %% [markdown]
# And the late maps of a ResNet, many channels on few positions:

# %%
late = compare(SHAPES["late maps of a ResNet"], candidates=["torch.nn"], seconds=0.5)
print(late.time_table())

# %% [markdown]
# All of the above is the machine you run on. The records of a GPU, one per technique:

# %%
from normtutor.lab import recorded

for name in TECHNIQUES:
    print(f"{name}: {recorded(name)}")

# %% [markdown]
# What the algorithm costs at best is no matter of machines. A tensor that exceeds the cache is read and written
# so many times (forward + backward), as the chapters have derived:

# %% tags=["nbval-check-output"]
for name, row in TECHNIQUES.items():
    print(f"{name:9} {row.forward_passes} + {row.backward_passes}")

# %% [markdown]
# **Memory.** Parameters are what the draft counted. Look at the column *kept for backward* beside it. Weight
# Normalization stands for itself: it normalizes a weight, so it keeps a weight, whatever the size of the
# images.

# %%
print(seeds.memory_table())

# %% tags=["nbval-check-output"]
held = {name: use.parameters for name, use in seeds.memory.items()}
print("LayerNorm over (C, H, W) :", held["layer, torch.nn"])
print("per channel              :", held["batch, torch.nn"])
print(
    "weight norm adds         :",
    held["3×3 conv + weight, eager"] - held["3×3 conv, plain"],
)
kept = seeds.memory["group, torch.nn"]
print("torch keeps x itself     :", kept.saved_input_bytes == 4 * 16 * 64 * 32 * 32)
print("and besides it under 1 % :", kept.saved_bytes < 0.01 * kept.saved_input_bytes)

# %% [markdown]
# A layer before may hold $x$ anyway: then torch's normalizations keep next to nothing more, but for RMS
# Normalization, which torch composes of several operations on a CPU: a tensor more. The readable layers
# of this course keep one or two tensors of the input's size, which is the price of letting autograd write
# the backward pass.
#
# ## All on one page

# %% tags=["nbval-check-output"]
show(guide.summary())

# %% [markdown]
# The table is made from the catalog and the guide, and a test counts the parameters of real layers against it.
#
# ## Text
#
# The draft's last line says that the choice depends on "image vs text vs audio". All experiments so far were on images.
# For text, take real English that every Python carries: the documentation of the language itself. A small causal
# transformer reads 32 characters and predicts each next one.

# %%
from normtutor.lab.claims import choosing as experiments

text = experiments.english()
print(f"{len(text.train) + len(text.test):,} characters, {text.vocabulary} kinds")
show_source(experiments.LanguageModel)

# %% [markdown]
# **First, what is wrong in principle.** A causal model must not see later tokens. Attention is masked; are the
# normalizations? Change the *last* character of each sequence, and look whether the logits *before* it move.

# %% tags=["nbval-check-output"]
x, _ = experiments.windows(text.test, torch.arange(0, 4000, 500))
changed = x.clone()
changed[:, -1] = (changed[:, -1] + 1) % text.vocabulary
print("earlier logits see the last character:")
for norm in ("layer", "rms", "batch"):
    torch.manual_seed(0)
    model = experiments.LanguageModel(norm, text.vocabulary)
    for training in (True, False):
        with torch.no_grad():
            model.train(training)
            moved = (model(x) - model(changed))[:, :-1].abs().max().item() > 1e-5
        print(f"  {norm:5} {'training' if training else 'evaluation':10} {moved}")

# %% [markdown]
# Batch statistics over all tokens carry every token to every other one, in training. In evaluation the leak is gone,
# and so is the model that was trained with it. Instance and Group Normalization need no batch, but on $(N, C, T)$
# they average over the positions of a sequence, later ones included, and in both modes:

# %% tags=["nbval-check-output"]
channels = torch.randn(2, 8, 32)
later = channels.clone()
later[..., -1] += 1
for name, layer in {
    "instance": layers.InstanceNorm1d(8),
    "group": layers.GroupNorm(2, 8),
}.items():
    moved = (layer(channels) - layer(later))[..., :-1].abs().max().item() > 1e-3
    print(f"{name:8} earlier positions see the last: {moved}")

# %% [markdown]
# **Then, what it costs.** Shen and others explain the failure of Batch Normalization on text by statistics that
# fluctuate from batch to batch. So train the same model with Layer Normalization; with statistics of four sequences
# together; and with the statistics of each sequence alone, as a device would have that holds one.

# %%
outcome = claims.run("choosing.text")
print(outcome)
print(claims.recorded("choosing.text"))
assert outcome.holds

# %% mystnb={"image": {"alt": "Test loss in nats per character against the number of sequences that supply the statistics. Batch statistics: far above LayerNorm for one sequence, near it for four. LayerNorm, which needs no batch: a level line."}}
loss = {kind: runs[0] for kind, runs in outcome.measured["loss"].items()}
line_chart(
    {
        "BatchNorm": ([1, 4], [loss["alone"], loss["together"]]),
        "LayerNorm": ([1, 4], [loss["layer"]] * 2),
    },
    xlabel="sequences of 32 characters that supply a statistic (log)",
    ylabel="test loss (nats per character)",
    xscale="log",
    title="Statistics of one sequence cost about half a nat",
    colours={"BatchNorm": BLUE, "LayerNorm": ORANGE},
    markers=True,
)

# %% [markdown]
# One honest remark. With the statistics of *four* random sequences together, this small network is about as good as
# with Layer Normalization: at this scale the paper's conclusion reproduces only where statistics are few.
#
# Is it just that 32 values are few, or is text special? Take the model that was trained with four sequences
# together, and let it compute batch statistics on test text. Once four sequences from anywhere share their
# statistics, once four neighbours, which come from one document.

# %%
torch.manual_seed(0)
model = experiments.trained_on_text("batch", seed=0, steps=120)
first = torch.randint(len(text.test) - 200, (100,))
neighbours = first[:, None] + 33 * torch.arange(4)  # (100, 4) starts, one batch a row
anywhere = neighbours.flatten()[torch.randperm(400)].view(100, 4)  # the same sequences


@one_thread()
@torch.no_grad()
def loss_with_batch_statistics(batches):
    total = 0.0
    for starts in batches:
        x, y = experiments.windows(text.test, starts)
        logits = model.train()(x).flatten(0, 1)
        total += nn.functional.cross_entropy(logits, y.flatten()).item()
    return total / len(batches)


with one_thread():
    loss_running = experiments.loss_on_test(model)
print(f"running statistics:               {loss_running:.3f}")
loss_anywhere = loss_with_batch_statistics(anywhere)
loss_neighbours = loss_with_batch_statistics(neighbours)
print(f"statistics of any four sequences: {loss_anywhere:.3f}")
print(f"statistics of four neighbours:    {loss_neighbours:.3f} nats per character")
assert loss_neighbours > loss_anywhere + 0.03, "neighbours were expected to mislead"

# %% [markdown]
# The same sequences, the same weights: only the company differs. Neighbours have subject and layout in common, so their
# statistics describe no other text. And with batch statistics, where later characters leak, the loss is no
# lower than with running ones: this network did not learn to exploit the leak. That one *can* was shown in
# the chapter on Batch Normalization.

# %% [markdown]
# **Sound is untested here.** No experiment of this course touches audio. What the guide says about it is
# practice, cited as such: Conformer mixes Layer and Batch Normalization; MelGAN's authors found that Instance
# Normalization made sound metallic and used Weight Normalization. Ask, and the guide says so itself:

# %% tags=["nbval-check-output"]
print(guide.recommend(data="audio", task="generation"))

# %% [markdown]
# ## Few data
#
# The draft recommended Group Normalization for "CNNs with limited data". Nothing in its formula speaks for that. Its
# statistics come from one image, so they lack the noise of a random batch, which may regularize. Train on 50 and on
# 200 digits, at a batch of 32:

# %%
outcome = claims.run("choosing.limited_data")
print(outcome)
print(claims.recorded("choosing.limited_data"))
assert outcome.holds

# %% [markdown]
# Few *data* are not a small *batch*. Fifty images make a batch of 32 as well as fifty thousand do. What small data sets
# often bring with them, large pictures and one of them per device, is another matter, and has its own rules.
#
# ## The founding draft, revisited
#
# The course grew out of a draft with 22 guidelines, a summary of five lines, and four things that the choice depends on.
# None was dropped. Each has a verdict: **kept**; **narrowed**, true under conditions that it does not name; or
# **corrected**. A test reads the draft and fails if a line is missing here.

# %% tags=["nbval-check-output"]
for verdict in ("kept", "narrowed", "corrected"):
    print(f"{verdict:9} {sum(line.verdict == verdict for line in guide.SEED)}")
for line in guide.SEED:
    if line.verdict == "corrected":
        print(
            f"\n{line.technique}, {line.part.replace('_', ' ')}: “{line.text}”\n  {line.says}"
        )

# %% [markdown]
# Line by line, with the evidence:

# %%
print(guide.seed_table())

# %% [markdown]
# ## Pitfalls
#
# **The batch that counts is one device's.** 256 images on 64 devices are batches of 4.
#
# **Gradient accumulation does not enlarge it.** Eight steps of two images give the optimizer sixteen, and the
# statistics two.
#
# **A rule from a paper has the paper's conditions.** "Group Normalization is half a point worse" was measured on ResNet-50 at
# 32 images per device with one recipe. Yours may differ in all three: measure both where the rules are close.
#
# **Changing the normalization of a pretrained network** throws away what its weights were trained for. Freeze the
# statistics instead, or train again.
#
# **Names hide index sets.** "LayerNorm" means all of $(C, H, W)$ in the draft's comparison, the features of a
# token in a transformer, and the channels of one position in ConvNeXt. Ask for $S_i$.
#
# ## Exercises
#
# Eight tasks: decide, predict, count, diagnose, measure, repair, and an open challenge at the end. Write your answer in the cell
# under each statement and run it. `hint("…")` gives the next hint, `solution("…")` the reference.

# %% [markdown]
# ### 1. Four situations

# %% tags=["nbval-check-output"]
statement("choosing.scenarios")

# %%
decision = {
    "detector": ...,
    "detector because": ...,
    "phone": ...,
    "phone because": ...,
    "writer": ...,
    "writer because": ...,
    "painter": ...,
    "painter because": ...,
}

# %% tags=["nbval-check-output"]
check("choosing.scenarios", decision)

# %% [markdown]
# ### 2. Predict what they hold

# %% tags=["nbval-check-output"]
statement("choosing.predict")

# %%
prediction = {
    "LayerNorm parameters": ...,
    "BatchNorm2d buffer elements": ...,
    "means in GroupNorm": ...,
    "means in InstanceNorm2d": ...,
    "bytes of x": ...,
    "extra parameters of weight norm": ...,
}

# %% tags=["nbval-check-output"]
check("choosing.predict", prediction)

# %% [markdown]
# ### 3. Bytes that must move

# %% tags=["nbval-check-output"]
statement("choosing.cost")


# %%
def bytes_moved(technique, shape, itemsize, cache, backward):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("choosing.cost", bytes_moved)

# %% [markdown]
# ### 4. Diagnose four networks

# %% tags=["nbval-check-output"]
statement("choosing.symptoms")

# %%
diagnosis = {
    "A": ...,
    "A mend": ...,
    "B": ...,
    "B mend": ...,
    "C": ...,
    "C mend": ...,
    "D": ...,
    "D mend": ...,
}

# %% tags=["nbval-check-output"]
check("choosing.symptoms", diagnosis)

# %% [markdown]
# ### 5. Does it depend on the company?

# %% tags=["nbval-check-output"]
statement("choosing.company")


# %%
def depends_on_company(layer, x):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("choosing.company", depends_on_company)

# %% [markdown]
# ### 6. Spot the bug: a benchmark that lies

# %% tags=["nbval-check-output"]
statement("choosing.timing")


# %%
def time_all(calls, clock, synchronize, rounds):
    times = {}
    for name, call in calls.items():
        for _ in range(10):
            call()
        start = clock()
        for _ in range(rounds):
            call()
        times[name] = (clock() - start) / rounds * 1000
    return times


# %% tags=["nbval-check-output"]
check("choosing.timing", time_all)

# %% [markdown]
# ### 7. Spot the bug: a network for two images

# %% tags=["nbval-check-output"]
statement("choosing.network")


# %%
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(32)
        self.fc1 = nn.Linear(32, 32, bias=False)
        self.norm3 = nn.BatchNorm1d(32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x):
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        x = x.mean(dim=(2, 3))
        x = torch.relu(self.norm3(self.fc1(x)))
        return self.fc2(x)


# %% tags=["nbval-check-output"]
check("choosing.network", Net)

# %% [markdown]
# ### 8. Challenge: two images at a time, in any light

# %% tags=["nbval-check-output"]
statement("choosing.challenge")


# %%
def make_norm(features):
    raise NotImplementedError  # your code here


# %% tags=["nbval-check-output"]
check("choosing.challenge", make_norm)


# %%
progress("choosing")

# %% [markdown]
# ## Quiz
#
# Choose an answer by opening it.
#
# **1. Sixteen devices train one network with Batch Normalization, 64 images in all. How many images supply a statistic?**
#
# <details>
# <summary>64</summary>
#
# No. That would need `SyncBatchNorm`, which sends the statistics between devices at every layer.
#
# </details>
# <details>
# <summary>16</summary>
#
# No. That is the number of devices.
#
# </details>
# <details>
# <summary>4</summary>
#
# Yes. Each device normalizes what it holds. A network that was fine at 64 on one device may fail here.
#
# </details>
#
# **2. A classifier on 300 X-ray pictures, batches of 32. A colleague wants Group Normalization "because data are few". What
# do you say?**
#
# <details>
# <summary>Right: few data are its case</summary>
#
# No. Its statistics do not get better or worse with the size of the data set.
#
# </details>
# <details>
# <summary>The batch decides, not the data set</summary>
#
# Yes. At 32 per device Batch Normalization has what it needs; in this chapter it did better on few digits. Measure both.
#
# </details>
# <details>
# <summary>Layer Normalization over (C, H, W) is best for few data</summary>
#
# No. It has as many parameters as the map has elements, twice: the most of all.
#
# </details>
#
# **3. Which technique needs the least memory for the backward pass of a convolutional network in torch?**
#
# <details>
# <summary>Group Normalization, since it has no buffers</summary>
#
# No. Buffers are a few numbers per channel; tensors of the input's size count.
#
# </details>
# <details>
# <summary>Those over activations keep at least their input; Weight Normalization keeps only a weight</summary>
#
# Yes. Each of torch's activation norms keeps its input and a few statistics (RMS Normalization on a CPU one tensor
# more). Weight Normalization keeps one tensor of the
# weight's size, which exceeds the maps' only late in a network.
#
# </details>
# <details>
# <summary>Batch Normalization, since it folds away</summary>
#
# No. It folds for inference; in training it keeps its input.
#
# </details>
#
# **4. A benchmark says that layer A takes 0.02 ms on a GPU at any size. What do you ask first?**
#
# <details>
# <summary>Whether the clock waited for the device</summary>
#
# Yes. A time that does not grow with the tensor is that of a launch.
#
# </details>
# <details>
# <summary>Whether the layer was compiled</summary>
#
# No. That changes the time, but a larger tensor would still take longer.
#
# </details>
# <details>
# <summary>Whether it ran in evaluation mode</summary>
#
# No. There too the tensor is read and written.
#
# </details>
#
# ## References
#
# - Wu, He: [Group Normalization](https://arxiv.org/abs/1803.08494), 2018. Table 1: the techniques at 32 images per
#   device; Table 2: the batch sizes.
# - Ioffe, Szegedy: [Batch Normalization](https://arxiv.org/abs/1502.03167), 2015.
# - Ba, Kiros, Hinton: [Layer Normalization](https://arxiv.org/abs/1607.06450), 2016.
# - Ulyanov, Vedaldi, Lempitsky: [Instance Normalization](https://arxiv.org/abs/1607.08022), 2016.
# - Salimans, Kingma: [Weight Normalization](https://arxiv.org/abs/1602.07868), 2016.
# - Zhang, Sennrich: [Root Mean Square Layer Normalization](https://arxiv.org/abs/1910.07467), 2019.
# - Shen, Yao, Gholami, Mahoney, Keutzer: [PowerNorm: Rethinking Batch Normalization in
#   Transformers](https://arxiv.org/abs/2003.07845), 2020. Section 3: statistics of text.
# - Liu and others: [A ConvNet for the 2020s](https://arxiv.org/abs/2201.03545), 2022. Section 2.6: Layer
#   Normalization in a convolutional network.
# - Qiao and others: [Weight Standardization](https://arxiv.org/abs/1903.10520), 2019.
# - Gulati and others: [Conformer](https://arxiv.org/abs/2005.08100), 2020. Kumar and others:
#   [MelGAN](https://arxiv.org/abs/1910.06711), 2019. Sound, untested here.
# - Every other source of a rule stands with it: `normtutor choose`, and the course's list of references.
