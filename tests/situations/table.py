"""Cells and rows: run them, and tell what became of them."""

import re
import time
from dataclasses import dataclass

import torch

from tests.situations.cells import SITUATIONS, Situation
from tests.situations.subject import Subject
from tests.situations.subjects import ROWS

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


def row(subject: Subject) -> dict[str, Cell]:
    """Run all cells of a subject."""
    return {name: cell(subject, situation) for name, situation in SITUATIONS.items()}


def table() -> dict[str, dict[str, Cell]]:
    """Run everything."""
    return {name: row(subject) for name, subject in ROWS.items()}
