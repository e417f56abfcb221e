"""The outcomes of the checks, kept in one JSON file, and which of them still count.

A record counts only while everything it depends on is as it was when the test ran: the library,
the test's own file, the helpers of the tests, the plugin and the list of packages. Their common
fingerprint is the record's ``stamp``. So a run of some tests may be merged into the file: what
did not run keeps its record if that is still true and loses it if it is not.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "Stamps", "load", "save"]

RESULTS = Path("_build", "ledger", "results.json")
FORMAT = 1
OWN = ("plugin.py", "compare.py")  # what of the ledger takes part in a test


class Stamps:
    """Fingerprints of all that a test's outcome depends on."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._files: dict[str, str] = {}

    @cached_property
    def common(self) -> str:
        """Fingerprint of what all tests share, taken once, before they run."""
        helpers = (p for p in self.root.glob("tests/**/*.py") if not p.name.startswith("test_"))
        return _digest(
            self.root,
            [
                *self.root.glob("lib/**/*.py"),
                *helpers,
                *(Path(__file__).resolve().with_name(name) for name in OWN),
                self.root / "conftest.py",
                *self.root.glob("requirements*.txt"),
            ],
        )

    def of(self, file: str) -> str:
        """Return the stamp of the tests in ``file``, a path relative to the root."""
        if file not in self._files:
            own = _digest(self.root, [self.root / file])
            self._files[file] = hashlib.sha256((self.common + own).encode()).hexdigest()[:16]
        return self._files[file]


def _digest(root: Path, paths: Iterable[Path]) -> str:
    whole = hashlib.sha256()
    for path in sorted(path for path in paths if path.is_file()):
        name = path.relative_to(root) if path.is_relative_to(root) else path.name
        whole.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    return whole.hexdigest()


def load(path: Path, stamps: Stamps) -> dict[str, dict[str, Any]]:
    """Return the records that still count, by test; none if there is no file."""
    if not path.exists():
        return {}
    stored = json.loads(path.read_text("utf-8"))
    if stored.get("format") != FORMAT:
        return {}
    tests: dict[str, dict[str, Any]] = stored["tests"]
    return {
        name: record
        for name, record in tests.items()
        if record["stamp"] == stamps.of(name.partition("::")[0])
    }


def save(path: Path, tests: dict[str, dict[str, Any]]) -> None:
    """Write the records at once, so that a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}")
    whole = {"format": FORMAT, "tests": dict(sorted(tests.items()))}
    part.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", "utf-8")
    part.replace(path)
