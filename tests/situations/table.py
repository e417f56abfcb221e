"""Cells and rows: run them, and tell what became of them."""

import json
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.situations.cells import SITUATIONS, Situation
from tests.situations.subject import Subject
from tests.situations.subjects import ROWS

STORED = Path(__file__).parents[2] / "book" / "situations.json"
PASSES, REFUSES, NOT_APPLICABLE, FAILS = "passes", "refuses", "n/a", "fails"


@dataclass(frozen=True)
class Cell:
    """What became of a subject in a situation, and why."""

    verdict: str
    reason: str = ""
    seconds: float = 0.0


def cell(subject: Subject, situation: Situation) -> Cell:
    """Run one cell."""
    reason = subject.without.get(situation.name) or situation.applies(subject)
    if reason:
        return Cell(NOT_APPLICABLE, reason)
    started = time.perf_counter()
    refusal = subject.refuses.get(situation.name)
    try:
        with subject.within():
            situation.check(subject)
    except Exception as error:  # whatever comes: a table has a place for it
        text = re.sub(r"\s+", " ", str(error))
        took = time.perf_counter() - started
        if refusal is None:
            return Cell(FAILS, f"{type(error).__name__}: {text}", took)
        if not isinstance(error, refusal.error) or refusal.message not in text:
            return Cell(FAILS, f"not as declared: {type(error).__name__}: {text}", took)
        if refusal.rule not in subject.documentation:
            return Cell(FAILS, f"not in the docstring: {refusal.rule}", took)
        return Cell(REFUSES, refusal.rule, took)
    finally:
        torch.compiler.reset()
    took = time.perf_counter() - started
    if refusal is not None:
        return Cell(FAILS, "is declared to be refused, but passes", took)
    return Cell(PASSES, "", took)


def row(subject: Subject) -> dict[str, Any]:
    """Run all cells of a subject; what the stored table holds of them."""
    cells = {name: cell(subject, situation) for name, situation in SITUATIONS.items()}
    found = {
        "of": subject.of,
        "cells": {
            k: f"{c.verdict}: {c.reason}" if c.reason else c.verdict for k, c in cells.items()
        },
    }
    if subject.limit:
        assert subject.limit in subject.documentation, f"not in the docstring: {subject.limit}"
        found["limit"] = subject.limit
    return found


def stored() -> dict[str, Any]:
    """The table that the book shows."""
    return json.loads(STORED.read_text("utf-8")) if STORED.exists() else {"rows": {}}


def store(names: Iterable[str]) -> None:
    """Run these rows and keep the others; each is stored when it has run."""
    for name in names:
        found = stored()["rows"] | {name: row(ROWS[name])}
        table = {
            "situations": {title: situation.said for title, situation in SITUATIONS.items()},
            "rows": {title: found[title] for title in ROWS if title in found},
        }
        text = json.dumps(table, indent=1, ensure_ascii=False)
        STORED.write_text(text + "\n", "utf-8")
