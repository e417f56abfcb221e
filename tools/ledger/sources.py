"""Read, without importing anything, what the code says about equations.

Two things are read from Python files: which public function of ``lib`` names which equation in
its docstring, and which test carries which marker. Both come from the syntax tree, so that the
ledger knows of a test that did not run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Function", "Marker", "read_functions", "read_markers"]

REFERENCE = re.compile(r":eq:`(?:[^`<]*<)?(eq:[^`>]+)>?`")
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Function:
    """A function or class of the library and the equations that its docstring names."""

    name: str  # as the API pages name it: the outermost package whose __all__ lists it
    file: str
    line: int
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Marker:
    """A test marked as check of an equation, or as showing a difference from a source."""

    test: str  # file::Class::function, as pytest writes it, without parameters
    file: str
    line: int
    label: str | None
    differs: str | None
    problems: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return self.label or self.differs or "equation"


def read_functions(root: Path) -> list[Function]:
    """Return the functions and classes under ``root/lib`` whose docstrings name equations."""
    found = []
    for path in sorted((root / "lib").rglob("*.py")):
        file = path.relative_to(root)
        parts = file.with_suffix("").parts
        module = parts[:-1] if parts[-1] == "__init__" else parts
        for names, node in _definitions(ast.parse(path.read_text("utf-8")), ()):
            labels = tuple(dict.fromkeys(REFERENCE.findall(ast.get_docstring(node) or "")))
            if labels:
                public = ".".join((*_home(root, module, names[0]), *names))
                found.append(Function(public, file.as_posix(), node.lineno, labels))
    return found


def _definitions(
    node: ast.AST, above: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], Definition]]:
    """Yield functions, classes and methods with their dotted names."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            names = (*above, child.name)
            yield names, child
            if isinstance(child, ast.ClassDef):
                yield from _definitions(child, names)


def _home(root: Path, module: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Return the outermost package or module whose ``__all__`` lists ``name``."""
    for depth in range(1, len(module)):
        init = root.joinpath(*module[:depth], "__init__.py")
        if init.exists() and name in _exported(init):
            return module[:depth]
    return module


def _exported(path: Path) -> list[str]:
    """Return the literal ``__all__`` of a file."""
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets
        ):
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def read_markers(root: Path) -> list[Marker]:
    """Return the ``equation`` and ``differs`` markers of all tests under ``root/tests``."""
    found = []
    for path in sorted((root / "tests").rglob("test_*.py")):
        file = path.relative_to(root).as_posix()
        for names, node in _definitions(ast.parse(path.read_text("utf-8")), ()):
            marks = {
                mark.func.attr: mark
                for mark in node.decorator_list
                if isinstance(mark, ast.Call)
                and isinstance(mark.func, ast.Attribute)
                and mark.func.attr in ("equation", "differs")
            }
            if marks:
                line = marks.get("equation", next(iter(marks.values()))).lineno
                label, differs = (_first(marks.get(name)) for name in ("equation", "differs"))
                test = "::".join((file, *names))
                problems = tuple(_faults(marks))
                found.append(Marker(test, file, line, label, differs, problems))
    return found


def _first(call: ast.Call | None) -> str | None:
    """Return the first argument of a call if it is a literal string."""
    if call and call.args and isinstance(call.args[0], ast.Constant):
        return str(call.args[0].value)
    return None


def _faults(marks: dict[str, ast.Call]) -> Iterator[str]:
    """Yield what is wrong with a test's markers as they are written."""
    for name, mark in marks.items():
        if _first(mark) is None:
            yield f"the first argument of the marker {name} must be a literal string"
    if "equation" in marks:
        wrong = {keyword.arg: keyword.value for keyword in marks["equation"].keywords}.get("wrong")
        if wrong is None or (isinstance(wrong, ast.Dict) and not wrong.values):
            yield "wrong={slip: form} is missing: no form that must fail"
