"""The grader: what it says about every kind of answer, and what it leaves alone."""

import builtins
import inspect
import json
import os
import re
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import normtutor.functional
import normtutor.layers
from normtutor import exercises
from normtutor.exercises import check, grade, store, use, verdict
from normtutor.exercises.exercise import patched
from normtutor.exercises.observe import observe
from normtutor.exercises.registry import exercises as registry

FORWARD, LAYER, PREDICT = "batch_norm.forward", "batch_norm.layer", "batch_norm.predict"
BACKWARD, FOLD, CUMULATIVE = "batch_norm.backward", "batch_norm.fold", "batch_norm.cumulative"
MOMENTUM = "batch_norm.bug_momentum"


@pytest.fixture(autouse=True)
def progress_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keeps the progress of these tests apart."""
    file = tmp_path / "progress.json"
    monkeypatch.setenv("NORMTUTOR_PROGRESS", str(file))
    return file


def answer(id: str, source: str) -> Any:
    """The object that ``source`` defines under the name that the exercise asks for."""
    return registry()[id].build(source)


def forward(body: str) -> Any:
    return answer(FORWARD, f"def batch_norm(x, weight, bias, eps):\n    {body}\n")


def reference(id: str) -> Any:
    return answer(id, registry()[id].reference)


# --- unfinished answers


@pytest.mark.parametrize(
    "body",
    [
        "raise NotImplementedError",
        "raise NotImplementedError('to do')",
        "pass",
        "...",
        "'''Only a docstring.'''",
        "return ...",
        "mean = ...\n    return (x - mean) * weight",
        "return torch.sqrt(...)",
        "def inner():\n        raise NotImplementedError\n    return inner()",
    ],
)
def test_an_unfinished_function_is_not_attempted(body: str) -> None:
    assert grade(FORWARD, forward(body)).status == "unattempted"


@pytest.mark.parametrize(
    ("init", "body"),
    [
        ("super().__init__()", "raise NotImplementedError"),
        ("super().__init__()", "pass"),
        ("super().__init__()", "..."),
        ("super().__init__()\n        self.weight = ...", "return self.weight * x"),
        ("raise NotImplementedError", "return x"),
        ("super().__init__()", "if self.training:\n            return x\n        raise NotImplementedError"),
    ],
)
def test_an_unfinished_class_is_not_attempted(init: str, body: str) -> None:
    source = f"""
class BatchNorm2d(nn.Module):
    def __init__(self, num_features, eps=1e-5, momentum=0.1):
        {init}

    def forward(self, x):
        {body}
"""
    assert grade(LAYER, answer(LAYER, source)).status == "unattempted"


def test_a_class_without_forward_is_not_attempted() -> None:
    source = "class BatchNorm2d(nn.Module):\n    def __init__(self, num_features, eps=1e-5, momentum=0.1):\n"
    assert grade(LAYER, answer(LAYER, source + "        super().__init__()\n")).status == "unattempted"


@pytest.mark.parametrize("nothing", [None, ...])
def test_no_answer_is_not_attempted(nothing: object) -> None:
    assert all(grade(id, nothing).status == "unattempted" for id in registry())


def test_an_evaluation_left_open_keeps_what_is_right() -> None:
    exercise = registry()[LAYER]
    source = exercise.reference.replace(
        "mean, var = self.running_mean, self.running_var", "raise NotImplementedError"
    )
    said = grade(LAYER, answer(LAYER, source))
    assert said.status == "unattempted"
    assert said.text.startswith("○ batch_norm.layer: unfinished\n")
    assert "The next check is: output in evaluation." in said.text


def test_some_numbers_predicted() -> None:
    said = grade(PREDICT, {**dict.fromkeys(reference(PREDICT), ...), "running mean": 0.5})
    assert said.status == "unattempted"
    assert "1 of 4 checks are right: running mean." in said.text
    assert "unfinished" in said.text
    assert (
        grade(PREDICT, {**dict.fromkeys(reference(PREDICT), ...), "running mean": 5}).status == "unattempted"
    )


# --- wrong answers


def test_a_forgotten_return_is_wrong_and_said() -> None:
    said = grade(FORWARD, forward("y = (x - x.mean()) * weight[0]"))
    assert said.status == "wrong"
    assert "a `return` is missing" in said.text


@pytest.mark.parametrize(
    ("id", "wrong", "words"),
    [
        (FORWARD, "text", "Pass the function `batch_norm` itself"),
        (FORWARD, torch.ones(2), "You passed a Tensor."),
        (FORWARD, nn.BatchNorm2d, "Pass a function"),
        (FORWARD, lambda x: x, "batch_norm(x, weight, bias, eps)"),
        (FORWARD, lambda x, weight, bias, eps: [x], "a list, expected a tensor"),
        (FORWARD, lambda x, weight, bias, eps: x.numpy(), "a ndarray, expected a tensor"),
        (LAYER, nn.BatchNorm2d(3), "Pass the class itself"),
        (LAYER, 3, "Pass the class `BatchNorm2d` itself"),
        (LAYER, dict, "Derive your class from `nn.Module`"),
        (LAYER, type("Empty", (nn.Module,), {}), "BatchNorm2d(num_features, eps=1e-05, momentum=0.1)"),
        ("batch_norm.running", lambda a, b, x, m: a, "expected a tuple of 2: (new_mean, new_var)"),
        ("batch_norm.running", lambda a, b, x, m: (a, b, x), "a tuple of 3"),
        (PREDICT, [0.5, 1.57, 1.34, 5.99], "Pass the dict `prediction`"),
        (PREDICT, {"running mean": 0.5}, "lacks the key 'running variance'"),
        (PREDICT, {"running mean": "half"}, "expected a number, got str"),
        ("batch_norm.fold", lambda conv, bn: nn.ReLU(), "expected an `nn.Conv2d`"),
        ("batch_norm.fold", lambda conv, bn: print(end=""), "a `return` is missing"),
    ],
)
def test_the_wrong_kind_of_answer_is_explained(id: str, wrong: object, words: str) -> None:
    said = grade(id, wrong)
    assert said.status in ("wrong", "error")
    assert said.mistake is None
    assert words in said.text


def test_an_unregistered_answer_gets_its_first_difference_and_what_is_right() -> None:
    source = registry()[LAYER].reference.replace(
        "self.running_mean.mul_(1 - m)", "self.running_mean.mul_(0.5)"
    )
    said = grade(LAYER, answer(LAYER, source))
    assert (said.status, said.mistake) == ("wrong", None)
    assert "Possibly" not in said.text
    assert "First difference, running_mean after one step: expected" in said.text
    assert re.search(r"\d\d of \d\d checks are right\.", said.text)
    (others,) = [line for line in said.text.splitlines() if line.startswith("Also different")]
    assert others.count(",") <= 6
    assert "seed 0" in said.text


def test_two_mistakes_at_once_are_possibly_the_first() -> None:
    exercise = registry()[LAYER]
    named = {mistake.name: mistake for mistake in exercise.mistakes}
    source = exercise.mistaken(named["biased_running_var"], named["eps_fixed"])
    said = grade(LAYER, answer(LAYER, source))
    assert said.mistake is None
    assert f"Possibly: {named['eps_fixed'].sentence}" in said.text


def test_accidental_float32_is_pointed_out() -> None:
    source = registry()[LAYER].reference.replace("m = self.momentum", "m = torch.tensor(self.momentum)")
    said = grade(LAYER, answer(LAYER, source))
    assert "float32" in said.text


# --- errors


def test_an_error_is_shown_with_its_line() -> None:
    said = grade(FORWARD, forward("y = x\n    return y.mean(7)"))
    assert said.status == "error"
    assert "IndexError" in said.text
    assert "(line 3: `return y.mean(7)`)" in said.text


def test_an_error_without_source_is_shown_with_its_line_number() -> None:
    namespace: dict[str, Any] = {}
    exec("def batch_norm(x, weight, bias, eps):\n    return 1 / 0\n", namespace)
    said = grade(FORWARD, namespace["batch_norm"])
    assert said.status == "error"
    assert "ZeroDivisionError: division by zero (line 2)" in said.text


def test_an_error_in_a_cell_of_ipython() -> None:
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    shell.run_cell("def batch_norm(x, weight, bias, eps):\n    return x.nothing\n")
    said = grade(FORWARD, shell.user_ns["batch_norm"])
    assert said.status == "error"
    assert "(line 2: `return x.nothing`)" in said.text


class Evil(type):
    """A class that fails wherever it is looked at."""

    def __instancecheck__(cls, other: object) -> bool:
        raise RuntimeError("no")

    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError(name)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError


class Callable2:
    def __call__(self, *_: object) -> object:
        raise Unprintable


BAD = {
    "exit": lambda: forward("raise SystemExit"),
    "exit by sys": lambda: forward("import sys; sys.exit(3)"),
    "endless recursion": lambda: forward("return batch_norm(x, weight, bias, eps)"),
    "base exception": lambda: forward("raise BaseException('all')"),
    "generator exit": lambda: forward("raise GeneratorExit"),
    "stop iteration": lambda: forward("raise StopIteration"),
    "unprintable": Callable2,
    "evil": lambda: Evil("Bad", (), {}),
    "text": lambda: "text",
    "object": object,
    "nan": lambda: float("nan"),
}


@pytest.mark.parametrize("bad", BAD)
def test_check_never_raises_and_speaks_once(bad: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = BAD[bad]()
    for id in (FORWARD, LAYER, PREDICT):
        assert check(id, made) is None
        said = capsys.readouterr().out
        assert said.count(f"{id}: ") == 1
        assert said.startswith(("✗", "!"))


def test_the_learner_can_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt):
        check(FORWARD, forward("raise KeyboardInterrupt"))


def test_an_interrupted_comparison_spoils_no_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = forward("return x")

    def interrupted(probe: Any, obj: object, *rest: Any) -> Iterator[tuple[str, object]]:
        if obj is not mine:  # while the reference runs
            raise KeyboardInterrupt
        yield from observe(probe, obj, *rest)

    verdict._known.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(verdict, "observe", interrupted)
        with pytest.raises(KeyboardInterrupt):
            grade(FORWARD, mine)
    assert grade(FORWARD, reference(FORWARD)).status == "passed"


# --- ids


def test_an_unknown_id_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match=r"Did you mean 'batch_norm\.layer'"):
        grade("batch_norm.lyer", None)
    check("batchnorm.forwrd", None)
    assert "Did you mean 'batch_norm.forward'?" in capsys.readouterr().out
    check(nn.ReLU, FORWARD)  # type: ignore[arg-type]  # the arguments swapped
    assert "the exercise's id comes first" in capsys.readouterr().out
    for function in (exercises.hint, exercises.solution, exercises.statement):
        with pytest.raises(ValueError, match="Did you mean"):
            function("Batch_Norm.Layer")
        with pytest.raises(ValueError, match=r"The chapters are one_formula, batch_norm, .*progress\(\)"):
            function("nothing")
        with pytest.raises(ValueError, match=r"exercises are batch_norm\.forward, batch_norm\.running, "):
            function("batch_norm.something_else_entirely")
    with pytest.raises(ValueError, match=r"Did you mean 'batch_norm\.fold'"):
        grade("fold", None)


def test_a_reference_that_fails_passes_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(answer: Any, draw: Any) -> Any:
        raise OSError("no data here")
        yield

    broken = replace(registry()[FORWARD], probe=probe)
    monkeypatch.setattr("normtutor.exercises.verdict.find", lambda id: broken)
    said = grade(FORWARD, reference(FORWARD))
    assert said.status == "error"
    assert "The exercise itself stops with OSError: no data here" in said.text


# --- what the grader leaves alone


def test_global_state_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    source = registry()[FORWARD].reference.replace(
        "    dims",
        "    torch.rand(3); torch.set_default_dtype(torch.float64); torch.set_grad_enabled(False)\n    dims",
    )
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.no_grad():
        grade(FORWARD, answer(FORWARD, source))
        assert not torch.is_grad_enabled()
    grade(FORWARD, answer(FORWARD, source))
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() is torch.float32
    # Nor does it reach what the grader runs itself, and keeps.
    verdict._known.cache_clear()
    grade(FORWARD, answer(FORWARD, source))
    exercise = registry()[FORWARD]
    for mistake in exercise.mistakes:
        assert grade(FORWARD, answer(FORWARD, exercise.mistaken(mistake))).mistake == mistake.name
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_every_grad_mode_gives_the_same_verdict(mode: Any) -> None:
    with mode():
        assert all(grade(id, reference(id)).status == "passed" for id in registry())


def test_a_default_dtype_of_float64_gives_the_same_verdict() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert all(grade(id, reference(id)).status == "passed" for id in registry())
    finally:
        torch.set_default_dtype(torch.float32)


def test_random_answers_are_graded_the_same_way_twice() -> None:
    noisy = forward("return x + torch.rand_like(x)")
    assert grade(FORWARD, noisy).text == grade(FORWARD, noisy).text


def test_what_the_libraries_have_is_no_answer() -> None:
    class Derived(nn.BatchNorm2d):
        pass

    own = [
        (LAYER, nn.BatchNorm2d, "torch"),
        (LAYER, normtutor.layers.BatchNorm2d, "normtutor"),
        (LAYER, Derived, "torch"),
        (FORWARD, F.batch_norm, "torch"),
        (FORWARD, torch.batch_norm, "torch"),
        (FORWARD, torch.ops.aten.native_batch_norm, "torch"),
        (FORWARD, partial(F.batch_norm, training=True), "torch"),
        (FORWARD, normtutor.functional.batch_norm, "normtutor"),
    ]
    for id, given, library in own:
        said = grade(id, given)
        assert (said.status, said.mistake) == ("unattempted", None), said.text
        assert f"This is {library}'s own code. Write your own" in said.text


class Super(nn.BatchNorm2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


@pytest.mark.parametrize(
    ("id", "given"),
    [
        (LAYER, Super),
        (FORWARD, lambda x, w, b, eps: torch.batch_norm(x, w, b, None, None, True, 0.1, eps, False)),
        (FORWARD, lambda x, w, b, eps: torch.native_batch_norm(x, w, b, None, None, True, 0.1, eps)[0]),
        (FORWARD, lambda x, w, b, eps: 2 * nn.BatchNorm2d(3)(x)),
        ("batch_norm.bug_variance", lambda x, eps: F.group_norm(x, 1, eps=eps)),
        ("batch_norm.running", lambda m, v, x, a: (m, F.instance_norm(x))),
    ],
)
def test_calling_torchs_own_normalization_is_named(id: str, given: Any) -> None:
    said = grade(id, given)
    assert (said.status, said.mistake) == ("wrong", "torchs_own"), said.text
    assert said.text.count("You call torch's own normalization") == 1


def _with_enable_grad(grad: Any, x: Any, weight: Any, eps: float) -> Any:
    with torch.enable_grad():
        inputs = x.clone().requires_grad_(), weight.clone().requires_grad_()
        return *torch.autograd.grad(_normalized(*inputs, eps), inputs, grad), grad.sum((0, 2, 3))


def _with_backward(grad: Any, x: Any, weight: Any, eps: float) -> Any:
    with torch.inference_mode(False), torch.enable_grad():
        x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
        _normalized(x, weight, eps).backward(grad)
    return x.grad, weight.grad, grad.sum((0, 2, 3))


def _with_vjp(grad: Any, x: Any, weight: Any, eps: float) -> Any:
    return *torch.func.vjp(lambda x, w: _normalized(x, w, eps), x, weight)[1](grad), grad.sum((0, 2, 3))


def _with_jvp(grad: Any, x: Any, weight: Any, eps: float) -> Any:
    return torch.func.jvp(lambda x: _normalized(x, weight, eps), (x,), (grad,))[1], weight, weight


def _normalized(x: Any, weight: Any, eps: float) -> Any:
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    return weight.view(1, -1, 1, 1) * (x - mean) / torch.sqrt(var + eps)


@pytest.mark.parametrize("trick", [_with_enable_grad, _with_backward, _with_vjp, _with_jvp])
def test_autograd_is_refused_where_the_gradient_is_the_exercise(trick: Any) -> None:
    said = grade(BACKWARD, trick)
    assert (said.status, said.mistake) == ("wrong", "uses_autograd"), said.text
    assert said.text.count("Use no autograd") == 1


# --- what the checks find


def replaced(id: str, *pairs: tuple[str, str]) -> verdict.Verdict:
    """The verdict on the reference with some text replaced."""
    return grade(id, answer(id, patched(registry()[id].reference, dict(pairs))))


def test_a_small_eps_is_not_clamped() -> None:
    assert not replaced(FORWARD, ("var + eps", "var + max(eps, 1e-8)"))
    assert not replaced(LAYER, ("self.eps = eps", "self.eps = max(eps, 1e-8)"))
    said = replaced("batch_norm.bug_variance", ("var + eps", "var + max(eps, 1e-6)"))
    assert "You make ε larger than the caller asked" in said.text
    assert "Possibly" not in said.text  # the check states it


def test_a_layer_that_loads_no_checkpoint_is_wrong() -> None:
    head = "    def forward(self, x):"
    said = replaced(
        LAYER, (head, f"    def load_state_dict(self, state):\n        raise RuntimeError\n\n{head}")
    )
    assert "Not as asked: a checkpoint of torch's layer does not load into yours." in said.text


def test_an_adaptive_momentum_is_followed_to_its_end() -> None:
    one = "max(self.momentum, 1 / (int(self.step_count) + 1))"
    for wrong, mistake in (
        ("max(0.1, 1 / (int(self.step_count) + 1))", "momentum_fixed"),
        ("max(self.momentum, 1 / max(1, int(self.step_count)))", "second_replaces_first"),
        ("max(self.momentum, 1 / (int(self.step_count) + 1)) if self.step_count < 15 else 0", None),
    ):
        said = replaced(MOMENTUM, (one, wrong))
        assert (said.status, said.mistake) == ("wrong", mistake)
        assert "average all batches evenly" not in said.text
    late = "            with torch.no_grad():"
    said = replaced(
        MOMENTUM, ("            mean = x.mean(dim=0)", "            mean = x.mean(dim=0).detach()")
    )
    assert "First difference, gradient in x" in said.text
    said = replaced(MOMENTUM, (late, "            self.seen = momentum\n" + late))
    assert said


def test_a_folded_convolution_needs_no_class_or_hook_of_its_own() -> None:
    end = "    return folded"
    for wrong in (
        "    folded.__class__ = type('Mine', (nn.Conv2d,), {})\n",
        "    folded.bias.data.zero_()\n"
        "    folded.register_forward_hook(lambda m, i, y: y + bn.bias[:, None, None])\n",
    ):
        assert (
            grade(FOLD, answer(FOLD, registry()[FOLD].reference.replace(end, wrong + end))).status == "wrong"
        )
    for mode in ("bn.train()", "bn.eval()", "conv.eval()"):
        assert replaced(FOLD, (end, f"    {mode}\n{end}")).status == "wrong"


def test_a_counter_may_be_a_tensor_or_a_float() -> None:
    for count in ("torch.tensor(batches + 1)", "float(batches + 1)"):
        assert replaced(CUMULATIVE, ("batches = batches + 1", f"batches = {count}"))
    assert not replaced(CUMULATIVE, ("running_var, batches\n", "running_var, batches + 0.5\n"))


def test_one_overwritten_input_is_one_fault() -> None:
    for id, name in ((FORWARD, "in_place"), (LAYER, "input_changed"), (BACKWARD, "in_place")):
        exercise = registry()[id]
        (mistake,) = [m for m in exercise.mistakes if m.name == name]
        said = grade(id, answer(id, exercise.mistaken(mistake)))
        assert "Not as asked: the " in said.text
        assert "Later your code stops" not in said.text


def test_predict_shows_no_number() -> None:
    exercise = registry()[PREDICT]
    texts = [*exercise.hints, grade(PREDICT, dict.fromkeys(reference(PREDICT), 3)).text]
    for mistake in exercise.mistakes:
        texts.append(grade(PREDICT, answer(PREDICT, exercise.mistaken(mistake))).text)
    for text in texts:
        assert not re.search(r"\b(0\.5|1\.5\d*|1\.3\d*|1\.34\d*|5\.9\d*|20|6\.6\d*|5)\b", text), text


def test_a_bug_that_is_left_in_is_told_from_one_not_looked_at() -> None:
    exercise = registry()[MOMENTUM]
    comment = exercise.starter.replace("        if self", "        # looked at\n        if self")
    assert grade(MOMENTUM, answer(MOMENTUM, comment)).status == "unattempted"
    # In a file that imports torch, a call of its functions has other bytecode.
    script: dict[str, Any] = {}
    groups = registry()["group_norm.bug_groups"]
    exec("import torch\n" + groups.starter, script)
    assert grade(groups.id, script[groups.answer]).status == "unattempted"
    changed = exercise.starter.replace("super().__init__()", "super().__init__()\n        self.mine = 3")
    said = grade(MOMENTUM, answer(MOMENTUM, changed))
    assert said.status == "wrong"
    assert "You changed the code, but nothing that the checker looks at changed" in said.text


def test_only_a_wrong_call_gets_the_signature() -> None:
    assert "The exercise asks for" in grade(FORWARD, lambda x: x).text
    assert "The exercise asks for" not in grade(FORWARD, forward("return x + 'a'")).text
    assert "The exercise asks for" not in grade(FORWARD, max).text  # fails, but not for its arguments


def test_a_verdict_is_true_if_it_is_passed() -> None:
    assert grade(FORWARD, reference(FORWARD))
    assert grade(FORWARD, reference(FORWARD)).passed
    assert not grade(FORWARD, None)
    assert not grade(FORWARD, None).passed


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_every_reference_passes_on_the_gpu() -> None:
    for id, exercise in registry().items():
        assert grade(id, reference(id), device="cuda").status == "passed"
        for mistake in exercise.mistakes:
            said = grade(id, answer(id, exercise.mistaken(mistake)), device="cuda")
            assert (said.status, said.mistake) == ("wrong", mistake.name), said.text


# --- the cost


def test_a_verdict_on_the_layer_is_cheap() -> None:
    exercise = registry()[LAYER]
    answers = [answer(LAYER, exercise.mistaken(mistake)) for mistake in exercise.mistakes]
    seconds = []
    for wrong in answers:
        start = time.process_time()
        grade(LAYER, wrong)
        seconds.append(time.process_time() - start)
    assert statistics.median(seconds) < 0.05


# --- use, display


def test_use_takes_the_answer_only_if_it_passes(capsys: pytest.CaptureFixture[str]) -> None:
    mine = reference(LAYER)
    assert use(LAYER, mine) is mine
    assert "uses your `BatchNorm2d`" in capsys.readouterr().out
    given = use(LAYER, nn.ReLU)
    assert grade(LAYER, given).status == "passed"
    assert "uses the reference" in capsys.readouterr().out
    assert "return weight.view(shape) * x_hat" in inspect.getsource(use(FORWARD, None))


def test_without_ipython_text_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] in ("IPython", "rich"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    check(FORWARD, None)
    exercises.statement(FORWARD)
    exercises.progress("batch_norm")
    assert capsys.readouterr().out.count("The forward formula") == 2


def test_a_notebook_shows_markdown_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ipython = pytest.importorskip("IPython")
    shown: list[dict[str, str]] = []
    monkeypatch.setattr(ipython, "get_ipython", object)
    monkeypatch.setattr(ipython.display, "display", lambda bundle, raw: shown.append(bundle))
    assert check(FORWARD, None) is None
    (bundle,) = shown
    assert capsys.readouterr().out == ""
    assert bundle["text/plain"].startswith("○ batch_norm.forward: not attempted yet\n")
    assert bundle["text/markdown"].startswith("**○ batch_norm.forward: not attempted yet**\n")


def test_a_terminal_without_unicode_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        check(FORWARD, None)
    assert "batch_norm.forward: not attempted yet" in (tmp_path / "out").read_text()


# --- progress


def statuses(file: Path) -> dict[str, str]:
    return dict(json.loads(file.read_text())["exercises"])


def test_an_unattempted_answer_writes_nothing(progress_file: Path) -> None:
    check(FORWARD, None)
    assert not progress_file.exists()


def test_passed_stays_passed(progress_file: Path) -> None:
    check(FORWARD, forward("return x"))
    assert statuses(progress_file) == {FORWARD: "wrong"}
    check(FORWARD, reference(FORWARD))
    check(FORWARD, forward("return x"))
    check(PREDICT, {})
    assert statuses(progress_file) == {FORWARD: "passed", PREDICT: "wrong"}
    assert os.listdir(progress_file.parent) == [progress_file.name]
    assert (FORWARD, "passed", "The forward formula") in exercises.progress_rows()


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"mine": 1}', '{"format": "normtutor progress 1", "exercises": [1]}', b"\xff\xfe\x00"],
)
def test_a_foreign_or_damaged_file_is_kept_aside(
    progress_file: Path, content: str | bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = content if isinstance(content, bytes) else content.encode()
    for _ in range(2):
        progress_file.write_bytes(raw)
        assert store.load() == {}
        check(FORWARD, reference(FORWARD))
        assert statuses(progress_file) == {FORWARD: "passed"}
        check(FORWARD, reference(FORWARD))
    said = capsys.readouterr().out
    assert all(said.count(f"it is kept as progress.kept-{number}.json") == 1 for number in (1, 2))
    kept = sorted(progress_file.parent.glob("progress.kept-*.json"))
    assert [file.read_bytes() for file in kept] == [raw, raw]


def test_ids_of_another_version_are_kept(progress_file: Path) -> None:
    progress_file.write_text(json.dumps({"format": store.FORMAT, "exercises": {"future.one": "passed"}}))
    check(FORWARD, reference(FORWARD))
    assert statuses(progress_file) == {"future.one": "passed", FORWARD: "passed"}


def test_a_failure_to_write_is_said_once(
    progress_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    check(PREDICT, {})
    before = progress_file.read_bytes()
    monkeypatch.setattr(store.os, "replace", refuse)
    check(FORWARD, reference(FORWARD))
    assert progress_file.read_bytes() == before
    assert os.listdir(progress_file.parent) == [progress_file.name]
    monkeypatch.setattr(store.tempfile, "NamedTemporaryFile", refuse)
    check(FORWARD, reference(FORWARD))
    progress_file.write_text("{")
    monkeypatch.setattr(store.os, "link", refuse)  # what cannot be kept aside is not overwritten
    check(FORWARD, reference(FORWARD))
    assert progress_file.read_text() == "{"
    said = capsys.readouterr().out
    assert said.count("passed") == 3
    assert said.count("Your progress cannot be saved") == 1


@pytest.mark.parametrize("name", ["", "nowhere/progress.json"])
def test_an_impossible_place_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NORMTUTOR_PROGRESS", str(tmp_path / name))
    for said in (1, 0):
        check(FORWARD, reference(FORWARD))
        assert capsys.readouterr().out.count("Your progress cannot be saved") == said
    assert store.load() == {}


def test_the_file_lies_beside_the_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NORMTUTOR_PROGRESS")
    monkeypatch.chdir(tmp_path)
    check(FORWARD, reference(FORWARD))
    assert statuses(tmp_path / "normtutor_progress.json") == {FORWARD: "passed"}
