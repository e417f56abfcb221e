"""The lock: the formulas as they stood on the page when somebody held them against their checks.

Only the formula is locked. A check that is weakened until it says nothing needs no lock: it lets
its wrong forms pass, and that fails by itself.
"""

from __future__ import annotations

import json
import textwrap
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tools.ledger.equations import Equation, digest

__all__ = ["LOCK", "is_locked", "load_lock", "save_lock", "side_by_side"]

LOCK = Path("book", "ledger.lock.json")
Lock = dict[str, dict[str, Any]]


def load_lock(root: Path) -> Lock:
    """Return digest and lines of LaTeX by label; empty if nothing was ever reviewed."""
    path = root / LOCK
    lock: Lock = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return lock


def save_lock(root: Path, lock: Lock) -> None:
    """Write the lock, labels in order, one line of LaTeX a line."""
    text = json.dumps(dict(sorted(lock.items())), indent=1, ensure_ascii=False)
    (root / LOCK).write_text(text + "\n", "utf-8")


def entry(equation: Equation) -> dict[str, Any]:
    """Return what the lock keeps of an equation."""
    return {"digest": equation.digest, "latex": equation.latex.splitlines()}


def is_locked(lock: Lock, equation: Equation) -> bool:
    """Tell whether the formula is the reviewed one."""
    kept = lock.get(equation.label)
    return kept is not None and (
        kept["digest"] == equation.digest == digest("\n".join(kept["latex"]))
    )


def side_by_side(old: list[str], new: list[str], width: int) -> str:
    """Return two columns; a mark between them shows where the lines differ."""
    column = max(20, (width - 3) // 2)
    rows = [f"{'reviewed':{column}}   {'in the book':{column}}".rstrip()]
    for left, right in zip_longest(old, new, fillvalue=""):
        mark = " " if left == right else "|"
        pair = zip_longest(
            textwrap.wrap(left, column) or [""], textwrap.wrap(right, column) or [""], fillvalue=""
        )
        rows += [f"{a:{column}} {mark} {b}".rstrip() for a, b in pair]
    return "\n".join(rows)
