"""Grading a file: the answers in a notebook or script, each run with only the statements that it needs."""

import ast
import contextlib
import copy
import io
import json
import linecache
import signal
import symtable
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType
from typing import Any

from normtutor.exercises.observe import TimeUp
from normtutor.exercises.registry import exercises, find
from normtutor.exercises.verdict import Verdict, failed_to_run, grade, not_in_file, too_slow, unknown

CALLS = ("check", "grade", "use")
TIMEOUT = 20.0


class BadFile(Exception):
    """The file cannot be read as a notebook or script; the message is one line."""


@dataclass
class _Statement:
    """A top-level statement: what it gives and takes, and its code."""

    node: ast.stmt
    source: str  # the name that tracebacks show
    gives: set[str] = field(default_factory=set)
    takes: set[str] = field(default_factory=set)  # when it runs
    takes_later: set[str] = field(default_factory=set)  # when a function that it defines is called

    @property
    def whole(self) -> bool:
        """It gives its names new values, whatever they were before."""
        kinds = (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign)
        return isinstance(self.node, kinds) and not self.gives & self.takes

    def code(self, asked: str) -> CodeType:
        """Compiled; ``use(asked, X)`` stands for X, or the reference would take the answer's place."""
        node = _WithoutUse(asked).visit(copy.deepcopy(self.node))
        return compile(ast.fix_missing_locations(ast.Module([node], [])), self.source, "exec")


class _WithoutUse(ast.NodeTransformer):
    def __init__(self, id: str) -> None:
        self._id = id

    def visit_Call(self, node: ast.Call) -> ast.AST:
        called = _called(node)
        return called[2] if called and called[:2] == ("use", self._id) else self.generic_visit(node)


@dataclass
class _Answer:
    """A call ``check(id, expression)`` (or ``grade``, ``use``) in the statement at index ``at``."""

    id: str
    expression: ast.expr
    at: int
    by: str


def grade_file(
    file: Path, present: bool = False, timeout: float = TIMEOUT
) -> tuple[list[str], Iterator[Verdict]]:
    """The exercises of the notebook(s) to which those in ``file`` belong, and a verdict on each, one by one.

    Only what an answer needs is run: neither training loops nor figures. An error there counts for that
    exercise alone.

    Args:
        file: the notebook or script.
        present: leave out the exercises that the file does not contain.
        timeout: seconds for one exercise; kept in the main thread of a system with alarm signals only.

    Raises:
        BadFile: no such file, neither .py nor .ipynb, damaged, a syntax error, or no exercises.
    """
    statements = [_analysed(node, source) for node, source in _statements(file)]
    answers = _answers(statements)
    if not answers:
        raise BadFile(
            f"{file}: found no exercises. Under each answer the file needs a call that names its exercise: "
            'check("batch_norm.forward", batch_norm)'
        )
    notebooks = {id.partition(".")[0] for id in answers if id in exercises()}
    wanted = [id for id in exercises() if id.partition(".")[0] in notebooks]
    wanted = [id for id in wanted if id in answers or not present]
    wanted += [id for id in answers if id not in exercises()]
    return wanted, (_verdict(id, answers.get(id), statements, file, timeout) for id in wanted)


def _verdict(
    id: str, answer: _Answer | None, statements: list[_Statement], file: Path, timeout: float
) -> Verdict:
    if id not in exercises():
        return _unknown(id)
    if answer is None:
        return not_in_file(id)
    try:
        with _time_limit(timeout):
            return _grade(answer, statements, file)
    except TimeUp:
        return too_slow(id, timeout)


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeUp in what runs longer, where the system can."""
    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    # Again and again: a bare `except:` in the answer may catch the first.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _unknown(id: str) -> Verdict:
    try:
        find(id)
    except ValueError as error:
        return unknown(id, str(error))
    raise AssertionError(id)


def _grade(answer: _Answer, statements: list[_Statement], file: Path) -> Verdict:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    expression = compile(ast.Expression(answer.expression), statements[answer.at].source, "eval")
    sys.path.insert(0, str(file.resolve().parent))  # as `python file` would
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            for statement in _slice(answer, statements):
                exec(statement.code(answer.id), namespace)
            value = eval(expression, namespace)
            return grade(answer.id, value)
    except (KeyboardInterrupt, TimeUp):
        raise
    except BaseException as error:
        return failed_to_run(answer.id, error)
    finally:
        sys.path.pop(0)


def _slice(answer: _Answer, statements: list[_Statement]) -> list[_Statement]:
    """The statements before ``answer`` that decide its value, in their order."""
    needed: set[int] = set()
    # A name, and the index of the statement in front of which its value is wanted.
    takes, takes_later, _ = _names_taken(ast.Expr(answer.expression))
    open_names = [(name, answer.at) for name in takes | takes_later]
    seen = set(open_names)
    while open_names:
        name, before = open_names.pop()
        for index in range(before - 1, -1, -1):
            statement = statements[index]
            if name not in statement.gives:
                continue
            needed.add(index)
            wanted = {(taken, index) for taken in statement.takes | statement.takes_later}
            # A function's globals count when it is called: here at the latest, when the answer runs.
            wanted |= {(taken, answer.at) for taken in statement.takes_later}
            open_names += wanted - seen
            seen |= wanted
            if statement.whole:
                break
    return [statements[index] for index in sorted(needed)]


def _answers(statements: list[_Statement]) -> dict[str, _Answer]:
    """The last ``check`` of each exercise, or else its last ``grade``, or else its last ``use``."""
    found: dict[str, _Answer] = {}
    for at, statement in enumerate(statements):
        for call in _calls(statement.node):
            by, id, expression = call
            if id not in found or CALLS.index(by) <= CALLS.index(found[id].by):
                found[id] = _Answer(id, expression, at, by)
    return found


def _calls(node: ast.stmt) -> Iterator[tuple[str, str, ast.expr]]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return
    for call in ast.walk(node):
        called = _called(call)
        if called:
            yield called


def _called(call: ast.AST) -> tuple[str, str, ast.expr] | None:
    """The function's name, the id and the answer's expression, if it is a call that grades."""
    if not isinstance(call, ast.Call) or len(call.args) < 2:
        return None
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    id, expression = call.args[:2]
    if name in CALLS and isinstance(id, ast.Constant) and isinstance(id.value, str):
        return name, id.value, expression
    return None


def _analysed(node: ast.stmt, source: str) -> _Statement:
    takes, takes_later, gives = _names_taken(node)
    for part in ast.walk(node):
        target: ast.AST | None = None
        if isinstance(part, ast.Attribute | ast.Subscript) and isinstance(part.ctx, ast.Store):
            target = part  # BatchNorm2d.forward = forward
        elif part is node and isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            target = node.value.func  # prediction.update(...)
        while isinstance(target, ast.Attribute | ast.Subscript):
            target = target.value
            if isinstance(target, ast.Name):
                gives.add(target.id)
                takes.add(target.id)
    return _Statement(node, source, gives, takes, takes_later)


def _names_taken(node: ast.stmt) -> tuple[set[str], set[str], set[str]]:
    """Global names that ``node`` reads when it runs, that its functions read later, and that it binds."""
    top = symtable.symtable(ast.unparse(node), "statement", "exec")
    gives = {
        s.get_name() for s in top.get_symbols() if s.is_assigned() or s.is_imported() or s.is_namespace()
    }
    takes = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    if isinstance(node, ast.AugAssign):
        takes |= gives
    takes_later: set[str] = set()
    tables = [(child, False) for child in top.get_children()]
    while tables:
        table, inside_function = tables.pop()
        later = inside_function or (table.get_type() == "function" and table.get_name() in _defined(node))
        read = {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
        (takes_later if later else takes).update(read)
        tables += [(child, later) for child in table.get_children()]
    return takes, takes_later, gives


def _defined(node: ast.stmt) -> set[str]:
    """Names of the functions in ``node``, nameless ones included; comprehensions run at once."""
    named = {part.name for part in ast.walk(node) if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)}
    return named | {"lambda"}


def _statements(file: Path) -> Iterator[tuple[ast.stmt, str]]:
    """The top-level statements, with the name of the cell or file that they come from."""
    if file.suffix not in (".py", ".ipynb"):
        raise BadFile(f"{file}: expected a .py or .ipynb file")
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadFile(f"{file}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BadFile(f"{file}: cannot be read: {error}") from None
    cells = [(file.name, text)] if file.suffix == ".py" else _cells(file, text)
    for source, code in cells:
        try:
            tree = _parse(code, notebook=file.suffix == ".ipynb")
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None) or 1
            where = f"{file}, line {line}" if source == file.name else f"{file}, {source}, line {line}"
            raise BadFile(f"{where}: syntax error: {getattr(error, 'msg', error)}") from None
        linecache.cache[source] = (len(code), None, code.splitlines(keepends=True), source)
        for node in tree.body:
            yield node, source


def _cells(file: Path, text: str) -> list[tuple[str, str]]:
    try:
        cells = json.loads(text)["cells"]
        return [
            (f"cell {number}", "".join(cell["source"]))
            for number, cell in enumerate(cells, start=1)
            if cell["cell_type"] == "code"
        ]
    except (ValueError, LookupError, TypeError):
        raise BadFile(f"{file}: not a notebook (broken JSON, or no cells)") from None


def _parse(code: str, notebook: bool) -> ast.Module:
    try:
        return ast.parse(code)
    except SyntaxError:
        if not notebook:
            raise
    return ast.parse(_without_magics(code))


def _without_magics(code: str) -> str:
    """The code without IPython's own syntax, line numbers kept."""
    lines = code.splitlines()
    first = next((line.split()[0] for line in lines if line.strip()), "")
    if first.startswith("%%") and first not in ("%%time", "%%timeit", "%%capture"):
        return ""  # %%bash, %%html, …: not Python
    return "\n".join(_without_magic(line) for line in lines)


def _without_magic(line: str) -> str:
    text = line.lstrip()
    indent = line[: len(line) - len(text)]
    magic = text.startswith(("%", "!", "?")) or text.rstrip().endswith("?")
    assigned = text.partition("=")[2].lstrip().startswith(("!", "%"))
    return f"{indent}pass" if magic or assigned else line
