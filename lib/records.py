"""Which code a record measured, and whether it has changed since.

Every record of a run or a measurement has a field ``code``:

``{"version": of the package, "commit": of git or null, "modified": whether files differed from that
commit, or null, "measures": {path: digest}}``

``measures`` names every source file of the project that the process had imported when the record
was written, by its path in the project, with a digest of its code (:func:`source_digest`). It needs
no git. Records made before there were digests lack it; where even the commit is unknown,
``recorded_in`` names the commit that stored the record.
"""

import ast
import hashlib
import io
import json
import subprocess
import sys
import tokenize
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lib import __version__

__all__ = ["changed", "code_version", "measured_code", "source_digest", "write_record"]

_ROOT = Path(__file__).resolve().parents[1]
_VERSION = "lib/__init__.py"  # holds nothing else
_OURS = ("lib", "benchmarks", "experiments", "references")


def code_version() -> dict[str, Any]:
    """Return what stands in a record's field ``code``: see the head of this module."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    commit: str | None = None
    modified: bool | None = None
    # A copy installed inside another project's repository must not claim that project's commit.
    with suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", _VERSION)
        commit = git("rev-parse", "HEAD")
        modified = bool(git("status", "--porcelain", "--", *_present()))
    return {
        "version": __version__,
        "commit": commit,
        "modified": modified,
        "measures": measured_code(),
    }


def _present() -> list[str]:
    return [name for name in _OURS if (_ROOT / name).is_dir()]


def source_digest(source: str) -> str:
    r"""Return the first 16 hex digits of the SHA-256 of Python source without its comments.

    Docstrings, comments and blank lines are left out: other words do not make a measurement old.

    Examples
    --------
    >>> plain = source_digest("def f():\n    return 1\n")
    >>> plain == source_digest("def f():\n    'One.'\n\n    return 1  # or so\n")
    True
    >>> plain == source_digest("def f():\n    return 2\n")
    False
    """
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False) is not None:
            first = node.body[0]
            for row in range(first.lineno, (first.end_lineno or first.lineno) + 1):
                lines[row - 1] = ""
    kept = "\n".join(line.rstrip() for line in lines if line.strip())
    return hashlib.sha256(kept.encode()).hexdigest()[:16]


def measured_code() -> dict[str, str]:
    """Return path and digest of each of the project's source files that is imported now."""
    paths = set()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file is not None and file.endswith(".py"):
            path = Path(file).resolve()
            if path.is_relative_to(_ROOT) and path.relative_to(_ROOT).parts[0] in _OURS:
                paths.add(path)
    return {
        path.relative_to(_ROOT).as_posix(): source_digest(path.read_text("utf-8"))
        for path in sorted(paths - {_ROOT / _VERSION})
    }


def changed(measures: Mapping[str, str], root: Path = _ROOT) -> list[str]:
    """Return those of a record's files whose code is another now, or that are gone.

    Parameters
    ----------
    measures : mapping
        ``record["code"]["measures"]``: path in the project to digest.
    root : Path
        The folder of the project.

    Examples
    --------
    >>> changed(measured_code())
    []
    >>> changed({"lib/gone.py": "0123456789abcdef"})
    ['lib/gone.py']
    """
    return [
        name
        for name, digest in measures.items()
        if not (root / name).is_file() or source_digest((root / name).read_text("utf-8")) != digest
    ]


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, whole or not at all, with the code that it measured.

    Parameters
    ----------
    path : Path
        The file to write or replace.
    record : mapping
        What was measured. It must say how: ``command``, ``hardware`` and ``versions``.

    Raises
    ------
    ValueError
        If one of these three is missing.
    """
    if missing := [name for name in ("command", "hardware", "versions") if name not in record]:
        raise ValueError(f"record must hold command, hardware and versions, got no {missing[0]!r}")
    content = {"command": record["command"], "code": code_version()}
    content |= {name: value for name, value in record.items() if name not in content}
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    part.replace(path)
