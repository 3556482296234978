"""The command line: verbs, JSON, exit codes, bad input; and grading a file by running only what is needed."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

import normtutor
from normtutor import lab
from normtutor.catalog import CHAPTERS, TECHNIQUES
from normtutor.cli import main
from normtutor.exercises import answers, check
from normtutor.exercises.registry import exercises
from normtutor.lab import machine

HEADER = (
    "import torch\nfrom torch import nn\nfrom normtutor.exercises import check, use\n"
    "from normtutor.exercises.interpreter import tl, triton\n"
)
BY_CHAPTER = {name: [e for e in exercises().values() if e.id.startswith(f"{name}.")] for name in CHAPTERS}
CHAPTER = BY_CHAPTER["batch_norm"]
STARTERS = "\n".join(f'{e.starter}\ncheck("{e.id}", {e.answer})' for e in CHAPTER)


def solved(chapter: str = "batch_norm") -> str:
    """A script with a right answer to every exercise."""
    parts = [f'{e.reference}\ncheck("{e.id}", {e.answer})' for e in BY_CHAPTER[chapter]]
    return HEADER + "\n".join(parts)


def notebook(*cells: str) -> str:
    """A notebook with these code cells, and a cell of text before each."""
    text = {"cell_type": "markdown", "source": ["# text"]}
    both = [cell for code in cells for cell in (text, {"cell_type": "code", "source": code})]
    return json.dumps({"cells": both, "nbformat": 4})


def graded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, suffix: str = ".py"
) -> dict[str, Any]:
    """Status and text by exercise, and the exit code as "exit", of ``normtutor check --json``."""
    file = tmp_path / f"work{suffix}"
    file.write_text(text, encoding="utf-8")
    code = main(["check", str(file), "--json"])
    rows = json.loads(capsys.readouterr().out)
    return {row["id"]: (row["status"], row["text"]) for row in rows} | {"exit": code}


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a command that gets bad input."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


# --- list, parity, bench, progress


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(row.title in printed for row in TECHNIQUES.values())
    assert "None" not in printed  # a chapter that is not written yet
    assert main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(TECHNIQUES)
    assert [row["notebook"] for row in rows] == [row.notebook for row in TECHNIQUES.values()]  # or null


class Report:
    """What lab's functions return, as far as the command line knows it."""

    def __init__(self, technique: str, ok: bool = True) -> None:
        self.technique, self.ok = technique, ok

    def __str__(self) -> str:
        return f"table of {self.technique}"

    def to_dict(self) -> dict[str, Any]:
        return {"technique": self.technique}

    def plot(self) -> Figure:
        figure = Figure()
        figure.suptitle(f"figure of {self.technique}")
        return figure


def test_parity_says_by_its_exit_code_whether_all_is_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def parity(technique: str, devices: list[str] | None = None) -> Report:
        calls.append((technique, devices))
        return Report(technique, ok=devices is None)

    monkeypatch.setattr(lab, "parity", parity, raising=False)
    assert main(["parity"]) == 0
    assert capsys.readouterr().out == "\n\n".join(f"table of {name}" for name in TECHNIQUES) + "\n"
    assert main(["parity", "batch", "--device", "cpu", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == [{"technique": "batch"}]
    assert calls == [*((name, None) for name in TECHNIQUES), ("batch", ["cpu"])]


def test_bench_writes_what_it_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def bench(technique: str, *, device: str | None, compiled: bool) -> Report:
        assert (device, compiled) == ("cpu", True)
        return Report(technique)

    monkeypatch.setattr(lab, "bench", bench, raising=False)
    out = tmp_path / "bench.json"
    assert main(["bench", "batch", "--device", "cpu", "--compiled", "--out", str(out)]) == 0
    assert capsys.readouterr().out == "table of batch\n"
    assert json.loads(out.read_text()) == [{"technique": "batch"}]
    assert "expected the name of a file" in fails(capsys, "bench", "--out", str(tmp_path))


def test_bench_draws_a_figure_for_each_technique(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(lab, "bench", lambda technique, **_: Report(technique), raising=False)
    one, all_ = tmp_path / "one.svg", tmp_path / "all.png"
    assert main(["bench", "rms", "--plot", str(one)]) == 0
    assert one.read_text().startswith("<?xml")
    assert main(["bench", "--plot", str(all_)]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {f"all_{name}.png" for name in TECHNIQUES}
    capsys.readouterr()
    assert "ends in .svg, .png or .pdf" in fails(capsys, "bench", "--plot", str(tmp_path / "figure"))
    assert "existing folder" in fails(capsys, "bench", "--plot", str(tmp_path / "no" / "where.svg"))


def test_on_a_gpu_bench_adds_large_tensors_and_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, dict[str, Any]] = {}

    def bench(technique: str, **more: Any) -> Report:
        asked[technique] = more
        return Report(technique)

    monkeypatch.setattr(lab, "bench", bench, raising=False)
    monkeypatch.setattr(machine, "default_device", lambda: "cuda")
    assert main(["bench"]) == 0
    assert asked["batch"]["shapes"] == TECHNIQUES["batch"].bench_shapes + TECHNIQUES["batch"].large_shapes
    assert asked["batch"]["layouts"] == ("contiguous", "channels_last")


def test_the_lab_has_what_the_command_line_calls() -> None:
    assert callable(lab.parity)
    assert callable(lab.bench)


def test_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NORMTUTOR_PROGRESS", str(tmp_path / "progress.json"))
    assert main(["progress"]) == 0
    assert "`normtutor check FILE` notes nothing" in capsys.readouterr().out
    first = next(iter(exercises().values()))
    check(first.id, first.build(first.reference))
    capsys.readouterr()
    assert main(["progress", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["status"] for row in rows] == ["passed", *["unattempted"] * (len(rows) - 1)]
    assert main(["progress"]) == 0
    assert f"1 of {len(rows)} exercises passed." in capsys.readouterr().out
    assert main(["progress", "batch_norm"]) == 0
    assert f"0 of {len(CHAPTER)} exercises passed." in capsys.readouterr().out
    assert "no chapter is called 'batchnorm': expected one of one_formula" in fails(
        capsys, "progress", "batchnorm"
    )


def test_choose(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["choose", "--architecture", "cnn", "--batch-size", "2"]) == 0
    printed = capsys.readouterr().out
    assert "Group Normalization: first choice" in printed
    assert "Wu & He 2018, Table 2" in printed  # the reason has its source
    assert main(["choose", "--architecture", "cnn", "--batch_size=2"]) == 0
    assert capsys.readouterr().out == printed
    assert main(["choose", "--task", "style-transfer", "--no-frozen", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["situation"] == {"task": "style_transfer", "frozen": False}
    assert told["advice"][0]["technique"] == "instance"
    assert "example --architecture cnn" in fails(capsys, "choose")
    assert "Did you mean 'cnn'?" in fails(capsys, "choose", "--architecture", "cnnn")
    assert "batch_size: expected a number from 1, got 0" in fails(capsys, "choose", "--batch-size", "0")
    with pytest.raises(SystemExit):
        main(["choose", "--help"])
    assert "language_modelling" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="a closed pipe is another error there")
def test_a_reader_that_has_gone_is_no_traceback() -> None:
    command = [sys.executable, "-m", "normtutor.cli", "choose", "--architecture", "cnn"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    with process.stderr:
        said = process.stderr.read()
    assert (process.wait(60), said) == (1, "")


# --- help and bad input


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for argument, words in (("--help", "examples:"), ("--version", normtutor.__version__)):
        with pytest.raises(SystemExit) as stop:
            main([argument])
        assert stop.value.code == 0
        assert words in capsys.readouterr().out


def test_help_is_fast() -> None:
    code = "import sys, normtutor.cli as cli\n"
    code += "try: cli.main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


@pytest.mark.parametrize("arguments", [[], ["grade"], ["check"], ["list", "extra"]])
def test_bad_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_unknown_technique_and_device(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "unknown technique 'bach'. Did you mean 'batch'?" in fails(capsys, "parity", "bach")
    assert "unknown technique 'nope'. Expected one of batch, " in fails(capsys, "bench", "nope")
    assert "'bach'" in fails(capsys, "bench", "bach")
    assert "device 'warp' cannot be used" in fails(capsys, "parity", "--device", "warp")
    absent = fails(capsys, "bench", "layer", "--device", "xla")  # torch names every backend that it has
    assert "'xla' cannot be used" in absent
    assert len(absent) < 200
    assert "existing folder" in fails(capsys, "bench", "--out", str(tmp_path / "no" / "where.json"))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("work.txt", "", "expected a .py or .ipynb file"),
        ("work.py", "x = 1\n", "found no exercises"),
        (
            "work.py",
            "def batch_norm(x): pass\n",
            'call that names its exercise: check("batch_norm.forward", batch',
        ),
        ("work.py", "x = 1\ny = = 2\n", "work.py, line 2: syntax error"),
        ("work.py", "%matplotlib inline\n", "line 1: syntax error"),
        ("work.py", b"\xff\xfe\x00", "cannot be read"),
        ("work.ipynb", "{", "not a notebook"),
        ("work.ipynb", "[1]", "not a notebook"),
        ("work.ipynb", '{"cells": [{"cell_type": "code"}]}', "not a notebook"),
        ("work.ipynb", notebook("x = 1"), "found no exercises"),
        ("work.ipynb", notebook("x = 1", "y = 1\ndef f(:\n"), "work.ipynb, cell 4, line 2: syntax error"),
    ],
)
def test_bad_files(
    name: str, text: str | bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert words in fails(capsys, "check", str(file))


def test_missing_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such file" in fails(capsys, "check", str(tmp_path / "none.py"))
    (tmp_path / "folder.py").mkdir()
    assert "cannot be read" in fails(capsys, "check", str(tmp_path / "folder.py"))


# --- check


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_all_solved_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture[str], chapter: str) -> None:
    if missing := [e.unavailable() for e in BY_CHAPTER[chapter] if e.unavailable()]:
        pytest.skip(missing[0])
    for text, suffix in ((solved(chapter), ".py"), (notebook(solved(chapter)), ".ipynb")):
        rows = graded(tmp_path, capsys, text, suffix)
        assert rows.pop("exit") == 0
        assert {status for status, _ in rows.values()} == {"passed"}


def test_starters_are_not_attempted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = graded(tmp_path, capsys, HEADER + STARTERS)
    assert rows.pop("exit") == 1
    assert {status for status, _ in rows.values()} == {"unattempted"}
    assert list(rows) == [exercise.id for exercise in CHAPTER]


def test_the_table_shows_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exercise = exercises()["batch_norm.forward"]
    file = tmp_path / "work.py"
    file.write_text(
        f"{HEADER}{exercise.mistaken(exercise.mistakes[0])}\ncheck('batch_norm.forward', batch_norm)\n"
        "check('batch_norm.forwart', batch_norm)",  # an unknown one counts as none of the chapter's
        encoding="utf-8",
    )
    assert main(["check", str(file)]) == 1
    out = capsys.readouterr().out
    assert "batch_norm.forward       wrong\n" in out  # as wide as the chapter's names
    assert exercise.mistakes[0].sentence in out
    assert f"0 of {len(CHAPTER)} exercises passed." in out
    assert f"needs all {len(CHAPTER)} exercises of the chapter; 1 of them is in this file" in out


def test_only_what_is_present_can_be_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "work.py"
    file.write_text(HEADER + FORWARD + CHECK, encoding="utf-8")
    assert main(["check", str(file), "--present"]) == 0
    assert "1 of 1 exercises passed.\n" in capsys.readouterr().out
    file.write_text(HEADER + FORWARD + CHECK + "check('batch_norm.layer', None)", encoding="utf-8")
    assert main(["check", str(file), "--present"]) == 1


def test_an_endless_answer_is_stopped_and_the_others_graded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = "def fold(conv, bn):\n    while True:\n        try: pass\n        except Exception: pass\n"
    file = tmp_path / "work.py"
    file.write_text(f"{HEADER}{endless}check('batch_norm.fold', fold)\n{FORWARD}{CHECK}", encoding="utf-8")
    assert main(["check", str(file), "--timeout", "0.3", "--present"]) == 1
    out = capsys.readouterr().out
    assert "batch_norm.fold     error\n" in out
    assert "batch_norm.forward  passed\n" in out
    assert "did not finish in 0.3 s" in out
    file.write_text(f"{HEADER}while True: fold = 1\ncheck('batch_norm.fold', fold)\n", encoding="utf-8")
    assert main(["check", str(file), "--timeout", "0.3"]) == 1
    assert "did not finish in 0.3 s" in capsys.readouterr().out


def test_rows_are_printed_as_they_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    real = answers.grade

    def grade(id: str, answer: object) -> Any:
        seen.append(sys.__stdout__ and capsys.readouterr().out)
        return real(id, answer)

    monkeypatch.setattr(answers, "grade", grade)
    monkeypatch.setattr(answers.contextlib, "redirect_stdout", lambda _: contextlib.nullcontext())
    file = tmp_path / "work.py"
    file.write_text(HEADER + STARTERS, encoding="utf-8")
    main(["check", str(file)])
    assert "batch_norm.forward " in seen[1]


@pytest.mark.parametrize("seconds", ["0", "-1", "inf", "nan", "soon"])
def test_a_timeout_is_a_positive_number(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["check", "work.py", "--timeout", seconds])
    assert "--timeout" in capsys.readouterr().err


def test_help_says_where_progress_is(capsys: pytest.CaptureFixture[str]) -> None:
    for verb, words in (("progress", "NORMTUTOR_PROGRESS"), ("check", "Nothing is noted")):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
        assert words in " ".join(capsys.readouterr().out.split())


FORWARD = exercises()["batch_norm.forward"].reference
CHECK = 'check("batch_norm.forward", batch_norm)\n'
# Answers that need something else.
AXES = FORWARD.replace("range(x.dim())", "AXES[x.dim()]")
ROOT = FORWARD.replace("torch.sqrt", "root")
TOOLS = FORWARD.replace("torch.sqrt", "Tools.root")
TWO = FORWARD.replace("d != 1", "d + 1 != two")


@pytest.mark.parametrize(
    "text",
    [
        # What the answer does not need is not run, and what it needs is.
        f"raise_ = nothing\n{FORWARD}\nfor _ in missing: pass\n{CHECK}",
        f"{FORWARD}\ny = batch_norm(1)\nprint(y)\n{CHECK}",
        f"{ROOT}\ndef root(x):\n    return power(x)\npower = torch.sqrt\n{CHECK}",
        f"{AXES}\nAXES = {{}}\nAXES[2] = range(2)\nAXES[4] = range(4)\n{CHECK}",
        f"{AXES}\nAXES = {{}}\nfor n in (2, 4):\n    AXES[n] = range(n)\n{CHECK}",
        f"{AXES}\nAXES = {{}}\nAXES.update({{2: range(2), 4: range(4)}})\n{CHECK}",
        f"{ROOT}\nif True:\n    root = torch.sqrt\nelse:\n    root = None\n{CHECK}",
        f"{FORWARD.replace('torch.sqrt', 'm.sqrt')}\nimport torch as m\n{CHECK}",
        f"one = 0\none += 1\n{FORWARD.replace('d != 1', 'd != one')}\n{CHECK}",
        f"class Tools:\n    pass\nTools.root = torch.sqrt\n{TOOLS}\n{CHECK}",
        f"with torch.no_grad():\n    two = torch.tensor(2)\n{TWO}\n{CHECK}",
        # The last definition and the last check win; a local name is not a global one.
        f"def batch_norm(): pass\n{CHECK}\n{FORWARD}\n{CHECK}",
        f"batch_norm = crash()\n{FORWARD}\n{CHECK}",
        f"mean = crash()\n{FORWARD}\n{CHECK}",
        f"{FORWARD}\n{CHECK}\nbatch_norm = None\n",
        # A method, a lambda, a nested call.
        f"{FORWARD}\nanswers = [batch_norm]\ncheck('batch_norm.forward', answers[0])",
        f"{FORWARD}\ncheck('batch_norm.forward', lambda *a: batch_norm(*a))",
        f"{FORWARD}\nimport normtutor.exercises as ex\nex.check('batch_norm.forward', batch_norm)",
        f"{FORWARD}\nbatch_norm = use('batch_norm.forward', batch_norm)",
        f"{FORWARD}\nif batch_norm:\n    {CHECK}",
        f"{FORWARD}\nimport normtutor.exercises as ex\nprint(ex.grade('batch_norm.forward', batch_norm))",
        f"{FORWARD}\nfrom normtutor.exercises import grade\n"
        "verdict = grade('batch_norm.forward', batch_norm, seed=3)",
        f"def mine(x, weight, bias, eps): return batch_norm(x, weight, bias, eps)\n{FORWARD}\n"
        "other = use('batch_norm.forward', mine)",
    ],
)
def test_an_answer_runs_with_all_that_it_needs_and_no_more(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = graded(tmp_path, capsys, HEADER + text)
    assert rows["batch_norm.forward"][0] == "passed", rows["batch_norm.forward"][1]
    assert rows["exit"] == 1  # the others are missing


def test_use_does_not_put_the_reference_in_the_place_of_the_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = "def batch_norm(x, weight, bias, eps):\n    return x\n"
    wrong += "batch_norm = use('batch_norm.forward', batch_norm)\n"
    assert graded(tmp_path, capsys, HEADER + wrong + CHECK)["batch_norm.forward"][0] == "wrong"


def test_the_reference_used_for_nothing_is_not_attempted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for given in ("None", "..."):
        text = f"{HEADER}batch_norm = use('batch_norm.forward', {given})\n{CHECK}"
        assert graded(tmp_path, capsys, text)["batch_norm.forward"][0] == "unattempted"


def test_another_answer_may_build_on_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = HEADER + "batch_norm = None\nbatch_norm = use('batch_norm.forward', batch_norm)\n"
    text += "def normalize(x, eps):\n    one = torch.ones(x.size(1))\n"
    text += "    return batch_norm(x, one, 0 * one, eps)\n"
    rows = graded(tmp_path, capsys, text + "check('batch_norm.bug_variance', normalize)")
    assert rows["batch_norm.forward"][0] == "unattempted"
    assert "Possibly" not in rows["batch_norm.bug_variance"][1]
    assert rows["batch_norm.bug_variance"][0] == "passed"


def test_an_error_counts_for_its_own_exercise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = f"{HEADER}{FORWARD}\n{CHECK}\nscale = 1 / 0\nprediction = {{'running mean': scale}}\n"
    rows = graded(tmp_path, capsys, text + "check('batch_norm.predict', prediction)\n")
    assert rows["batch_norm.forward"][0] == "passed"
    status, said = rows["batch_norm.predict"]
    assert status == "error"
    line = text[: text.index("1 / 0")].count("\n") + 1
    assert f"ZeroDivisionError: division by zero (line {line}: `scale = 1 / 0`)" in said
    assert rows["batch_norm.layer"] == (
        "unattempted",
        "○ batch_norm.layer: not attempted yet\n\nThe file has no answer to this exercise. "
        '`hint("batch_norm.layer")` shows a hint.',
    )


def test_an_unknown_exercise_fails_and_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = graded(tmp_path, capsys, solved() + "\ncheck('batch_norm.forwards', 1)\n")
    assert rows["exit"] == 1
    status, said = rows["batch_norm.forwards"]
    assert status == "error"
    assert "Did you mean 'batch_norm.forward'?" in said


def test_a_file_with_only_unknown_exercises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = graded(tmp_path, capsys, "from normtutor.exercises import check\ncheck('nothing', 1)\n")
    assert rows["exit"] == 1
    assert rows["nothing"][0] == "error"


def test_code_that_leaves_is_an_error_of_one_exercise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = graded(
        tmp_path, capsys, "import sys\nprediction = sys.exit(0)\ncheck('batch_norm.predict', prediction)\n"
    )
    assert rows["batch_norm.predict"][0] == "error"
    assert "SystemExit" in rows["batch_norm.predict"][1]


def test_a_module_beside_the_file_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "my_answers.py").write_text(HEADER + FORWARD, encoding="utf-8")
    rows = graded(tmp_path, capsys, f"from my_answers import batch_norm\n{HEADER}{CHECK}")
    assert rows["batch_norm.forward"][0] == "passed"
    assert str(tmp_path) not in sys.path


def test_the_syntax_of_ipython_is_taken_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = (
        "%matplotlib inline\n!pip list\nfiles = !ls\nimport torch\nfrom normtutor.exercises import check",
        "%%bash\nnot python at all",
        f"%%time\n{FORWARD}",
        "batch_norm?\nfor _ in range(3):\n    %time pass",
        "x = 10 % 3",
        CHECK,
    )
    rows = graded(tmp_path, capsys, notebook(*cells), ".ipynb")
    assert rows["batch_norm.forward"][0] == "passed"


def test_an_error_in_a_notebook_has_its_line_in_the_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = (HEADER, "\n\ndef batch_norm(x, weight, bias, eps):\n    return x.nothing", CHECK)
    status, said = graded(tmp_path, capsys, notebook(*cells), ".ipynb")["batch_norm.forward"]
    assert status == "error"
    assert "(line 4: `return x.nothing`)" in said


def test_grading_a_file_writes_no_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    graded(tmp_path, capsys, HEADER + FORWARD + CHECK)
    assert [file.name for file in tmp_path.iterdir()] == ["work.py"]


def test_the_courses_own_notebook_is_collected_unattempted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Path(__file__).parent.parent / "notebooks" / "batch_norm.py"
    rows = graded(tmp_path, capsys, source.read_text(encoding="utf-8"))
    assert rows.pop("exit") == 1
    assert list(rows) == [exercise.id for exercise in CHAPTER]
    assert not [text for status, text in rows.values() if status != "unattempted" or "no answer" in text]
