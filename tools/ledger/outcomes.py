"""What became of the wrong forms made by machine, kept in one committed file.

For each test of an equation: how many forms it caught, and those that passed, each with the reason
that a person gives why it is equal to the right form, or why no test can tell. A test's forms run
again when its digest changes: its own code, what it uses of its file, and the rules by which forms
are made. The library is left out. The test itself passes in each run, so the library agrees with
the right form wherever the test looks; a form that was told from the right one there still is.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.ledger import mutation

__all__ = ["FILE", "Digests", "load", "problems", "save", "stale"]

FILE = Path("tests", "equations", "mutants.json")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


class Digests:
    """What the outcome of each test of equations depends on, as one short text."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._rules = _text(_parse(Path(mutation.__file__)))
        self._files: dict[str, tuple[str, dict[str, ast.stmt]]] = {}

    def tests(self) -> Iterator[str]:
        """Yield the tests of equations, written as pytest does, without parameters."""
        for path in sorted((self.root / FILE.parent).glob("test_*.py")):
            file = path.relative_to(self.root).as_posix()
            for name, node in self._read(file)[1].items():
                if name.startswith("test_") and isinstance(node, ast.FunctionDef):
                    marks = {ast.unparse(mark).partition("(")[0] for mark in node.decorator_list}
                    if "pytest.mark.equation" in marks:
                        yield f"{file}::{name}"

    def of(self, test: str) -> str:
        """Return the digest of one test; comments and documentation do not count."""
        file, _, name = test.partition("::")
        always, definitions = self._read(file)
        used: set[str] = set()
        due = [name]
        while due:
            if (one := due.pop()) in definitions and one not in used:
                used.add(one)
                nodes = ast.walk(definitions[one])
                due += [node.id for node in nodes if isinstance(node, ast.Name)]
        text = "".join(_text(definitions[one]) for one in sorted(used))
        return hashlib.sha256((self._rules + always + text).encode()).hexdigest()[:16]

    def _read(self, file: str) -> tuple[str, dict[str, ast.stmt]]:
        """Return what every test of a file depends on, and each name's definition."""
        if file not in self._files:
            always = ""
            definitions: dict[str, ast.stmt] = {}
            for node in _parse(self.root / file).body:
                found = dict(_defined(node))
                definitions |= found
                if not found:
                    always += _text(node)
            self._files[file] = always, definitions
        return self._files[file]


def _parse(path: Path) -> ast.Module:
    """Return the code of a file without its documentation."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return tree


def _text(part: Any) -> str:
    """Return what code says, the same under each version of Python: ast.dump is not."""
    if isinstance(part, list):
        return f"[{','.join(map(_text, part))}]"
    if not isinstance(part, ast.AST):
        return repr(part)
    # A field of a later version is empty in code that an earlier one reads.
    said = [(name, value) for name, value in ast.iter_fields(part) if value not in (None, [])]
    return f"{type(part).__name__}({','.join(f'{name}={_text(value)}' for name, value in said)})"


def _defined(node: ast.stmt) -> Iterator[tuple[str, ast.stmt]]:
    """Yield the names that a statement defines; of an import, each with its own part."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        yield node.name, node
    elif isinstance(node, ast.Import):
        for alias in node.names:
            yield (alias.asname or alias.name).partition(".")[0], ast.Import([alias])
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            yield alias.asname or alias.name, ast.ImportFrom(node.module, [alias], node.level)
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    yield part.id, node


def load(root: Path) -> dict[str, dict[str, Any]]:
    """Return what was found, by test: digest, label, number of forms, survivors with reasons."""
    file = root / FILE
    found: dict[str, dict[str, Any]] = json.loads(file.read_text("utf-8")) if file.exists() else {}
    return found


def save(root: Path, outcomes: dict[str, dict[str, Any]]) -> None:
    """Write the outcomes, sorted, one line for each field, so that a change is seen in a diff."""
    text = json.dumps(dict(sorted(outcomes.items())), indent=1, ensure_ascii=False) + "\n"
    (root / FILE).write_text(text, "utf-8")


def stale(root: Path) -> list[str]:
    """Return the tests whose forms have not run since the test changed."""
    digests, kept = Digests(root), load(root)
    return [
        test
        for test in digests.tests()
        if test not in kept or kept[test]["digest"] != digests.of(test)
    ]


def problems(root: Path) -> list[str]:
    """Return a line for each test that is stale or gone, and each survivor without a reason."""
    kept = load(root)
    gone = sorted(set(kept) - set(Digests(root).tests()))
    return [
        *(f"{test}: its wrong forms have not run since it changed" for test in stale(root)),
        *(f"{test}: no test of an equation any more" for test in gone),
        *(
            f"{test}: {entry['label']}: “{form}” passes, and no reason is given"
            for test, entry in kept.items()
            for form, reason in entry["survivors"].items()
            if not reason
        ),
    ]
