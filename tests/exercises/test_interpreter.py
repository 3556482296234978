"""A learner's Triton kernel on a CPU: what it computes, what is seen of it, and what is left alone."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from normtutor.cli import main
from normtutor.exercises import grade, interpreter
from normtutor.exercises.interpreter import Buffer, launch, tl, triton
from normtutor.exercises.observe import Broken
from normtutor.exercises.registry import exercises

ROW = exercises()["fused_kernels.rms_row"]
CHALLENGE = exercises()["fused_kernels.add_rms"]
VERSION = tuple(map(int, getattr(triton, "__version__", "0.0").split(".")[:2]))
needs_triton = pytest.mark.skipif(bool(interpreter.missing()), reason=interpreter.missing())


@triton.jit
def copy(x, y, step, length, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.arange(0, BLOCK)
    value = tl.load(x + row * step + lanes, mask=lanes < length, other=0.0)
    tl.store(y + row * length + lanes, value, mask=lanes < length)


@triton.jit
def copy_unmasked(x, y, length, BLOCK: tl.constexpr):
    at = tl.program_id(0) * length + tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_kernel_computes_what_torch_computes(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = Buffer("x", torch.randn(3, 40).to(dtype), 57), Buffer("weight", torch.randn(1, 40))
    y, rstd = Buffer("y", torch.zeros(3, 40).to(dtype)), Buffer("rstd", torch.zeros(3, 1))
    kernel = ROW.build(ROW.reference)
    assert launch(kernel, 3, x, weight, y, rstd, x.step, y.step, 40, 1e-6, BLOCK=64) == []
    expected = F.rms_norm(x.values.float(), (40,), weight.values[0], 1e-6)
    torch.testing.assert_close(y.values, expected.to(dtype))
    assert (x.reads == 1).all()
    assert (weight.reads == 3).all()
    assert (y.writes == 1).all()
    assert not x.writes.any()


@needs_triton
def test_what_leaves_a_tensor_is_told_and_harms_nothing() -> None:
    x, y = Buffer("x", torch.arange(10.0).view(2, 5)), Buffer("y", torch.zeros(2, 5))
    faults = launch(copy_unmasked, 2, x, y, 5, BLOCK=8)
    assert [(fault.store, fault.text) for fault in faults] == [
        (False, "program 1 loads x outside: row 2, element 0, where x has 2 rows of 5"),
        (True, "program 1 stores y outside: row 2, element 0, where y has 2 rows of 5"),
    ]
    assert torch.equal(y.values, x.values)

    @triton.jit
    def far(x, y):
        tl.store(y + tl.program_id(0).to(tl.int64) * 10**15, tl.load(x - 2**45))

    texts = [fault.text for fault in launch(far, 2, x, y)]
    assert texts == ["program 0 loads an address that belongs to no tensor"] + [
        f"program 1 {verb} an address that belongs to no tensor" for verb in ("loads", "stores")
    ]
    assert y.values[0, 0].isnan()  # what program 0 loaded from nowhere


@needs_triton
def test_between_the_rows_lies_nothing() -> None:
    x, y = Buffer("x", torch.ones(2, 3), 5), Buffer("y", torch.zeros(1, 4))
    (fault,) = launch(copy, 1, x, y, 5, 4, BLOCK=4)
    assert fault.text == "program 0 loads x outside: row 0, element 3, where x has 2 rows of 3"
    assert y.values[0, 3].isnan()  # `other` is for the lanes that are masked


@needs_triton
def test_rows_may_lie_as_far_apart_as_on_a_full_gpu() -> None:
    x, y = Buffer("x", torch.rand(4, 3), 2**30), Buffer("y", torch.zeros(4, 3))
    assert launch(copy, 4, x, y, x.step, 3, BLOCK=4) == []
    assert torch.equal(y.values, x.values)

    @triton.jit
    def narrow(x, step):
        tl.load(x + tl.program_id(0) * step)

    texts = [fault.text for fault in launch(narrow, 4, x, x.step)]
    assert texts[0] == "program 2 loads x outside: in front of the first row, where x has 4 rows of 3"
    assert len(texts) == 2


@needs_triton
def test_masked_lanes_hold_anything_without_other() -> None:
    @triton.jit
    def kernel(x, y):
        lanes = tl.arange(0, 4)
        tl.store(y + lanes, tl.load(x + lanes, mask=lanes < 3))

    for dtype in (torch.float32, torch.bfloat16):
        x, y = Buffer("x", torch.ones(1, 3).to(dtype)), Buffer("y", torch.zeros(1, 4).to(dtype))
        assert launch(kernel, 1, x, y) == []
        assert y.values.isnan().tolist() == [[False, False, False, True]]


@needs_triton
def test_a_kernel_sees_its_arguments_as_a_compiled_one_does() -> None:
    @triton.jit
    def kernel(y, eps, n):
        for i in range(0, n):
            tl.store(y + i.to(tl.int64), eps.to(tl.float32))
        for i in tl.range(1):
            tl.store(y + 2 + i.to(tl.int64), eps)

    y = Buffer("y", torch.zeros(1, 3))
    launch(kernel, 1, y, 0.1, 2)
    assert torch.equal(y.values, torch.full((1, 3), 0.1))
    assert y.writes.tolist() == [[1, 1, 1]]


@needs_triton
def test_a_bfloat16_is_rounded_to_the_nearest() -> None:
    """Triton's interpreter cuts the last digits off, and no GPU does."""

    @triton.jit
    def kernel(x, y, z):
        at = tl.arange(0, 4)
        v = tl.load(x + at)
        tl.store(y + at, v)
        tl.store(z + at, v.to(tl.float64).to(tl.bfloat16).to(tl.float32))

    given = torch.tensor([[1.0058, -1.0098, 1.99999, torch.inf]])
    x, y, z = Buffer("x", given), Buffer("y", torch.zeros(1, 4).bfloat16()), Buffer("z", torch.zeros(1, 4))
    assert launch(kernel, 1, x, y, z) == []
    assert torch.equal(y.values, given.bfloat16())
    assert y.values[0].tolist() == [1.0078125, -1.0078125, 2.0, torch.inf]
    assert torch.equal(z.values, given.bfloat16().float())


@needs_triton
def test_who_loads_and_stores_is_known() -> None:
    @triton.jit
    def kernel(x, y):
        p, first = tl.program_id(0), tl.zeros([4], tl.int32)  # four lanes, one element
        tl.store(y + p, tl.sum(tl.load(x + first)) + tl.load(x + 1))
        if p == 2:
            tl.store(y + p, tl.load(x + 1))

    x, y = Buffer("x", torch.ones(1, 2)), Buffer("y", torch.zeros(1, 4))
    assert launch(kernel, 3, x, y) == []
    assert (x.reads.tolist(), x.readers.tolist()) == ([[12, 4]], [[3, 3]])
    assert (y.writes.tolist(), y.writers.tolist()) == ([[1, 1, 2, 0]], [[1, 1, 1, 0]])
    assert y.stored_by.tolist() == [[0, 1, 2, -1]]


@needs_triton
def test_a_constant_must_be_declared() -> None:
    @triton.jit
    def kernel(x, BLOCK):
        tl.load(x + tl.arange(0, BLOCK))

    with pytest.raises(Broken, match=r"write `BLOCK: tl\.constexpr`"):
        launch(kernel, 1, Buffer("x", torch.ones(1, 2)), BLOCK=2)


SHIFT = 1.0


@triton.jit
def shifted(v):
    return v + SHIFT


@triton.jit
def through_a_helper(y):
    tl.store(y, shifted(0.0 + tl.load(y)))


@needs_triton
def test_a_kernel_calls_others_as_they_are_now(monkeypatch: pytest.MonkeyPatch) -> None:
    y, inner = Buffer("y", torch.zeros(1, 1)), 10.0
    launch(through_a_helper, 1, y)
    assert y.values.item() == 1

    @triton.jit
    def twice(v):
        return 2 * v + inner

    monkeypatch.setitem(globals(), "shifted", twice)  # as when a cell runs again
    launch(through_a_helper, 1, y)
    assert y.values.item() == 12


@needs_triton
def test_afterwards_triton_and_the_names_of_the_learner_are_as_they_were() -> None:
    from triton.runtime.jit import JITFunction

    @triton.jit
    def fails(x):
        tl.load(x)
        raise KeyError("the learner's")

    def state() -> list[dict[str, Any]]:
        parts = [tl, tl.core, tl.math, tl.core.tensor, tl.core.dtype, JITFunction]
        parts += [
            interpreter._interpreter().InterpretedFunction,
            interpreter._interpreter().interpreter_builder,
        ]
        return [dict(vars(part)) for part in parts]

    before, names = state(), set(globals())
    launch(copy, 1, Buffer("x", torch.ones(1, 2)), Buffer("y", torch.ones(1, 2)), 2, 2, BLOCK=2)
    with pytest.raises(KeyError, match="the learner's"):
        launch(fails, 1, Buffer("x", torch.ones(1, 2)))
    assert state() == before
    assert set(globals()) == names


@needs_triton
@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (lambda x: None, "Put `@triton.jit` above"),
        (3, "got an int"),
        (triton.jit(copy.fn) if hasattr(copy, "fn") else copy, ""),
    ],
)
def test_only_a_kernel_is_launched(kernel: Any, said: str) -> None:
    if not said:
        assert interpreter.python_of(kernel).__name__ == "copy"
        return
    with pytest.raises(Broken, match=said):
        launch(kernel, 1)


@needs_triton
def test_atomic_operations_are_refused() -> None:
    @triton.jit
    def kernel(y):
        tl.atomic_add(y, 1.0)

    with pytest.raises(Broken, match="atomic"):
        launch(kernel, 1, Buffer("y", torch.zeros(1, 1)))


def test_a_buffer_is_a_matrix_of_floats() -> None:
    with pytest.raises(ValueError, match=r"x: expected a matrix .* got torch.int64 of shape \(2, 3\)"):
        Buffer("x", torch.zeros(2, 3, dtype=torch.int64))


# --- in the grader


def row(body: str) -> Any:
    head = ROW.reference.partition("):\n")[0].strip()
    return ROW.build(f"{head}):\n    {body}\n")


@needs_triton
def test_verdicts_on_kernels() -> None:
    for body in ("pass", "...", "'''Only a docstring.'''", "raise NotImplementedError", "x = ...\n    x + 1"):
        assert grade(ROW.id, row(body)).status == "unattempted", body
    verdict = grade(ROW.id, row("row = tl.program_idd(0)"))
    assert verdict.status == "error"
    assert "no attribute 'program_idd' (line 3: `row = tl.program_idd(0)`)" in verdict.text
    plain = grade(ROW.id, interpreter.python_of(ROW.build(ROW.reference)))
    assert plain.status == "wrong"
    assert "Put `@triton.jit` above" in plain.text
    short = ROW.build("@triton.jit\ndef rms_row(x, y):\n    tl.store(y, tl.load(x))\n")
    asked = "`rms_row(x, weight, y, rstd, x_step, y_step, length, eps, BLOCK: tl.constexpr)`"
    assert f"The exercise asks for {asked}" in grade(ROW.id, short).text


@needs_triton
def test_verdicts_on_kernels_that_compute_in_bfloat16() -> None:
    one = ".to(tl.float32)\n        value += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)"
    half = "\n        value += tl.load(residual + at, mask=inside, other=0.0)"
    assert one in CHALLENGE.reference
    text = grade(CHALLENGE.id, CHALLENGE.build(CHALLENGE.reference.replace(one, half))).text
    assert "You compute in bfloat16, which Triton's interpreter cannot do" in text
    assert "Possibly" not in text


def patched(exercise: Any, old: str, new: str) -> Any:
    assert exercise.reference.count(old) == 1
    return exercise.build(exercise.reference.replace(old, new))


@needs_triton
@pytest.mark.parametrize(
    ("old", "new", "said", "not_said"),
    [
        (
            "tl.num_programs(0)",
            "2",
            "7 rows by 3 programs, an element of `x` is loaded by 2 programs",
            "bytes,",
        ),
        ("tl.num_programs(0)", "tl.num_programs(1)", "an element of `x` is loaded by 2 programs", "Possibly"),
        (
            "tl.store(rstd + row, scale)",
            "tl.store(rstd + row, scale)\n        tl.store(rstd + row, scale)",
            "an element of `rstd` is stored 2 times by one program",
            "Several programs",
        ),
    ],
)
def test_what_moves_too_often_is_named(old: str, new: str, said: str, not_said: str) -> None:
    text = grade(CHALLENGE.id, patched(CHALLENGE, old, new)).text
    assert said in text
    assert not_said not in text


@needs_triton
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("rstd + row, scale", "rstd + row * y_step, scale"),
        ("rstd + row, scale", "rstd + row + col, scale"),
    ],
)
def test_rstd_in_the_wrong_place_is_no_matter_of_y(old: str, new: str) -> None:
    text = grade(ROW.id, patched(ROW, old, new)).text
    assert "You store `rstd` elsewhere" in text
    assert "blocks of `y`" not in text


@needs_triton
def test_the_challenge_says_how_many_bytes_moved() -> None:
    slow = next(mistake for mistake in CHALLENGE.mistakes if mistake.name == "weight_for_every_row")
    verdict = grade(CHALLENGE.id, CHALLENGE.build(CHALLENGE.mistaken(slow)))
    # 9 rows of 24: four matrices of bfloat16, 24 float32 of weight for each row, and 9 of rstd.
    assert f"it moves {4 * 9 * 24 * 2 + 9 * 24 * 4 + 9 * 4} bytes, asked are at most 1956" in verdict.text


def test_where_no_kernel_runs_the_verdict_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(interpreter, "missing", lambda: "Kernels cannot be run: no such luck.")
    for answer in (ROW.build(ROW.reference), ROW.build(ROW.starter), None, 3):
        verdict = grade(ROW.id, answer)
        assert verdict.status == "unattempted"
        assert verdict.text.startswith(
            f"○ {ROW.id}: cannot be graded here\n\nKernels cannot be run: no such luck."
        )
    file = tmp_path / "work.py"
    file.write_text(
        "import nothing_of_this_name as tl\n\n\ndef rms_row(x: tl.constexpr):\n    pass\n\n\n"
        f"check({ROW.id!r}, rms_row)\n"
    )
    assert main(["check", "--present", str(file)]) == 1
    said = capsys.readouterr().out
    assert "no such luck" in said
    assert "0 of 1 exercises passed." in said


TRITON = """
class Missing:
    def find_spec(self, name, *_):
        if name == "triton":
            raise ImportError("no Triton for this system")

import sys
sys.meta_path.insert(0, Missing())
"""
GRADE = f"""
from normtutor.exercises import grade
from normtutor.exercises.registry import find

for id in ({ROW.id!r}, {CHALLENGE.id!r}):
    exercise = find(id)
    for source in (exercise.reference, exercise.starter):
        print(*grade(id, exercise.build(source)).text.splitlines()[:3])
"""


def output(code: str, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize("kept", [None, "1"], ids=["compiler", "interpreter"])
def test_kernels_are_graded_whoever_imported_triton_how(kept: str | None) -> None:
    after = """
import os, triton
print(os.environ.get("TRITON_INTERPRET"), type(triton.jit(grade)).__name__)
"""
    environment = {"TRITON_INTERPRET": kept} if kept else {}
    *lines, last = output("import triton.language" + GRADE + after, **environment).splitlines()
    assert [line.partition(": ")[2][:6] for line in lines] == ["passed", "not at"] * 2
    # Grading does not choose for the kernels that the learner writes next.
    assert last == f"{kept} {'InterpretedFunction' if kept else 'JITFunction'}"


COMPILE = f"""
import inspect
from normtutor.exercises import grade
from normtutor.exercises.registry import find
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

kinds = {{"rstd": "*fp32", "eps": "fp32", "BLOCK": "constexpr"}}
kinds |= dict.fromkeys(("x_step", "y_step", "rows", "length"), "i32")
for id in ({ROW.id!r}, {CHALLENGE.id!r}):
    exercise = find(id)
    for source in (exercise.reference, *exercise.alternatives):
        kernel = exercise.build(source)
        assert grade(id, kernel)
        names = list(inspect.signature(kernel.fn).parameters)
        types = {{name: kinds.get(name, "*bf16") for name in names}}
        asked = ASTSource(kernel, types, {{(names.index("BLOCK"),): 1024}}, {{}})
        how = {{"num_warps": 4, "enable_fp_fusion": True}}
        assert compile(asked, target=GPUTarget("cuda", 90, 32), options=how).asm["cubin"]
        print(kernel.__name__)
"""


LOOP = """
ONE = tl.constexpr(1)


@triton.jit
def squares(x, at, length, BLOCK: tl.constexpr):
    inside = tl.arange(0, BLOCK) < length
    v = tl.load(x + at + tl.arange(0, BLOCK), mask=inside, other=0.0).to(tl.float32)
    return v, tl.sum(v * v, axis=0)


@triton.jit
def rms_row(x, weight, y, rstd, x_step, y_step, length, eps, BLOCK: tl.constexpr):
    row, col = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    total = 0.0
    v = tl.zeros([BLOCK], tl.float32)
    for _ in range(0, ONE):
        v, more = squares(x, row * x_step, length, BLOCK)
        total += more
    scale = tl.rsqrt(total / length + eps)
    tl.store(rstd + row, scale)
    value = v
    gamma = tl.load(weight + col, mask=col < length, other=0.0).to(tl.float32)
    tl.store(y + row * y_step + col, value * scale * gamma, mask=col < length)
"""


@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(VERSION < (3, 6), reason="needs the compiler's interface of Triton 3.6")
@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("", "", ""),
        ("total = 0.0", "total = 0", "Loop-carried variable total has initial type int32"),
        ("range(0, ONE)", "[i for i in range(1)]", "stops at `for _ in [i for i in range(1)]:`"),
        (
            "    value = v\n",
            "    try:\n        value = v\n    except ValueError:\n        value = v\n",
            "Try",
        ),
        ("tl.sum(v * v, axis=0)", "sum([tl.sum(v * v, axis=0)])", "sum is not defined"),
        ("ONE = tl.constexpr(1)", "ONE = 1", "Cannot access global variable ONE"),
        ("length, BLOCK)\n        total", "length, {'B': BLOCK}['B'])\n        total", "Dict"),
    ],
    ids=["right", "type changes", "list", "try", "python's sum", "global", "dict"],
)
def test_what_the_interpreter_runs_and_no_compiler_takes_does_not_pass(old: str, new: str, said: str) -> None:
    assert not old or LOOP.count(old) == 1
    verdict = grade(ROW.id, ROW.build(LOOP.replace(old, new) if old else LOOP))
    assert verdict.status == ("wrong" if said else "passed"), verdict.text
    assert said in verdict.text


@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(VERSION < (3, 6), reason="needs the compiler's interface of Triton 3.6")
def test_what_passes_here_a_compiler_takes_too_and_grading_leaves_it_as_it_was() -> None:
    """For an H100, which need not be here."""
    assert output(COMPILE).split() == ["rms_row"] * 3 + ["add_rms"] * 3


@pytest.mark.slow
def test_without_triton_kernels_are_written_and_not_graded() -> None:
    lines = output(TRITON + GRADE).splitlines()
    assert len(lines) == 4
    assert all("cannot be graded here  Triton cannot be imported (no Triton for" in line for line in lines)
