"""Join the book, its lock, the library, the tests and their outcomes: one record per equation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from tools.ledger import outcomes, results
from tools.ledger.equations import Equation, Problem, read_book
from tools.ledger.lock import LOCK, is_locked, load_lock
from tools.ledger.sources import Function, Marker, read_functions, read_markers

__all__ = ["FAIL", "PASSES", "UNCHECKED", "VERIFIED", "Ledger", "Record", "read_ledger"]

UNCHECKED, FAIL = "unchecked", "FAIL"
PASSES, VERIFIED = "passes, rests on unverified", "verified"

MEASURES = ("equal", "at_most", "rate")
# For each kind: of each group, the tests of an equation use one comparison at least.
NEEDED: dict[str, list[tuple[str, ...]]] = {
    "definition": [("equal", "true")],
    "identity": [("equal", "true")],
    "gradient": [("equal",)],
    "inequality": [("at_most",), ("equal",)],
    "limit": [("rate",)],
    "approximation": [MEASURES],
    "empirical": [MEASURES],
}
WHY: dict[tuple[str, tuple[str, ...]], str] = {
    ("inequality", ("equal",)): "the case of equality, with check.equal",
    ("limit", ("rate",)): "the rate of convergence, with check.rate",
}


@dataclass
class Check:
    """One test of an equation, and how it ended."""

    test: str
    file: str
    line: int
    outcome: str  # passed, failed, not run
    message: str = ""
    residual: float | None = None
    tolerance: float | None = None
    margin: float | None = None
    order: float | None = None
    used: list[str] = field(default_factory=list)
    slips: list[str] = field(default_factory=list)  # the wrong forms, each caught
    caught: int = 0  # how many of the wrong forms made by machine were caught
    survivors: dict[str, str] = field(default_factory=dict)  # those that pass, and why


@dataclass
class Difference:
    """A place where the book differs from a source, with the test that shows it."""

    id: str
    source: str
    theirs: str
    ours: str
    label: str | None
    test: str
    file: str
    line: int
    rejected: dict[str, str]  # the wrong forms, the source's among them, and how they failed


@dataclass
class Record:
    """All that is known of one numbered equation."""

    equation: Equation
    kind: str = ""
    source: str = ""
    hypotheses: str = ""
    locked: bool = False
    status: str = UNCHECKED
    reasons: list[str] = field(default_factory=list)  # why the status is not verified
    checks: list[Check] = field(default_factory=list)
    functions: list[Function] = field(default_factory=list)
    used_by: list[str] = field(default_factory=list)

    @property
    def slips(self) -> list[str]:
        """The wrong forms that its checks caught."""
        return [slip for check in self.checks for slip in check.slips]


@dataclass
class Ledger:
    """The records in reading order, the differences from sources, and all that is wrong."""

    records: dict[str, Record] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """How many equations, verified ones, checks, wrong forms by origin, and differences."""
        records = self.records.values()
        checks = [check for record in records for check in record.checks]
        survivors = sum(len(check.survivors) for check in checks)
        return {
            "equations": len(records),
            "verified": sum(record.status == VERIFIED for record in records),
            "checks": len(checks),
            "controls": sum(len(check.slips) for check in checks),
            "mutants": sum(check.caught for check in checks) + survivors,
            "survivors": survivors,
            "functions": len({f.name for record in records for f in record.functions}),
            "differences": len(self.differences),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the ledger as plain data; ``schema.json`` describes it."""
        return {
            "format": 1,
            "counts": self.counts,
            "equations": [_to_json(record) for record in self.records.values()],
            "differences": [asdict(difference) for difference in self.differences],
        }


def _to_json(record: Record) -> dict[str, Any]:
    flat = asdict(record)
    flat["code"] = [
        {name: function[name] for name in ("name", "file", "line")}
        for function in flat.pop("functions")
    ]
    equation = flat.pop("equation")
    return equation | {"digest": record.equation.digest} | flat


def read_ledger(root: Path, stored: Path | None = None) -> Ledger:
    """Read everything under ``root`` and compute the status of each equation."""
    book = read_book(root)
    ledger = Ledger(titles=book.titles, problems=list(book.problems))
    ledger.records = {label: Record(equation) for label, equation in book.equations.items()}
    _join_functions(ledger, read_functions(root))
    _join_tests(ledger, read_markers(root), _outcomes(root, stored))
    _join_mutants(ledger, root)
    for record in ledger.records.values():
        _judge(record)
    _join_premises(ledger)
    _join_lock(ledger, root)
    for record in ledger.records.values():
        for reason in record.reasons:
            _blame(ledger, record.equation, f"{record.status}: {reason}")
    ledger.problems.sort()
    return ledger


def _outcomes(root: Path, stored: Path | None) -> dict[str, dict[str, Any]]:
    return results.load(stored or root / results.RESULTS, results.Stamps(root))


def _blame(ledger: Ledger, equation: Equation, message: str) -> None:
    ledger.problems.append(Problem(equation.file, equation.line, equation.label, message))


def _join_functions(ledger: Ledger, functions: Iterable[Function]) -> None:
    for function in functions:
        for label in function.labels:
            if label in ledger.records:
                ledger.records[label].functions.append(function)
            else:
                message = f"{function.name} names it, but no equation of the book has this label"
                ledger.problems.append(Problem(function.file, function.line, label, message))


def _join_tests(
    ledger: Ledger, markers: Iterable[Marker], outcomes: Mapping[str, dict[str, Any]]
) -> None:
    """Give each equation its checks; take up the differences from sources."""
    shown: dict[str, Marker] = {}
    for marker in markers:
        outcome = outcomes.get(marker.test)
        check = _check(marker, outcome)
        for problem in marker.problems:
            ledger.problems.append(Problem(marker.file, marker.line, marker.name, problem))
        if marker.label and marker.label not in ledger.records:
            message = f"{marker.test} checks it, but no equation of the book has this label"
            ledger.problems.append(Problem(marker.file, marker.line, marker.label, message))
        elif marker.label:
            record = ledger.records[marker.label]
            record.checks.append(check)
            if outcome:
                _take(ledger, record, marker, outcome)
        if marker.differs:
            if marker.differs in shown:
                message = f"this id is already taken by {shown[marker.differs].test}"
                ledger.problems.append(Problem(marker.file, marker.line, marker.differs, message))
            shown[marker.differs] = marker
            if outcome and check.outcome == "passed":
                ledger.differences.append(_difference(marker, outcome))
            else:
                message = (
                    f"{check.outcome}: {marker.test}{': ' * bool(check.message)}{check.message}"
                )
                ledger.problems.append(Problem(marker.file, marker.line, marker.differs, message))


def _check(marker: Marker, outcome: Mapping[str, Any] | None) -> Check:
    """Return how a test ended; one of which a part did not run has not run."""
    check = Check(marker.test, marker.file, marker.line, "not run")
    runs = list(outcome["runs"].values()) if outcome else []
    if outcome is None or len(runs) < outcome["items"]:
        check.message = "it did not run since it, the library or the packages changed"
        return check
    for run in runs:
        if run["outcome"] != "passed":
            check.outcome = "failed" if run["outcome"] == "failed" else "not run"
            check.message = run["message"]
            return check
    check.outcome = "passed"
    check.slips = list(outcome.get("slips", []))
    for run in runs:
        if run["slip"] is None:
            _worst(check, run)
    return check


def _worst(check: Check, run: Mapping[str, Any]) -> None:
    """Keep, over a test's parameters, what came closest to failing."""
    check.used = list(dict.fromkeys((*check.used, *run.get("used", []))))
    residual, tolerance = run.get("residual"), run.get("tolerance")
    if residual is not None and tolerance is not None:
        if (
            check.residual is None
            or check.tolerance is None
            or residual * check.tolerance >= check.residual * tolerance
        ):
            check.residual, check.tolerance = residual, tolerance
    margins = [m for m in (check.margin, run.get("margin")) if m is not None]
    check.margin = min(margins, default=None)
    check.order = run.get("order") if check.order is None else check.order


def _take(ledger: Ledger, record: Record, marker: Marker, outcome: Mapping[str, Any]) -> None:
    """Take kind, source and hypotheses from the marker as it was when the test ran."""
    if record.kind and record.kind != outcome["kind"]:
        message = f"kind {outcome['kind']}, but another test says {record.kind}"
        ledger.problems.append(Problem(marker.file, marker.line, record.equation.label, message))
    record.kind = record.kind or outcome["kind"]
    record.source = record.source or outcome["source"] or ""
    record.hypotheses = record.hypotheses or outcome["hypotheses"] or ""


def _join_mutants(ledger: Ledger, root: Path) -> None:
    """Give each check what became of its wrong forms made by machine, unless it has changed."""
    kept = outcomes.load(root)
    old = set(outcomes.stale(root))
    for record in ledger.records.values():
        for check in record.checks:
            if check.test in kept and check.test not in old:
                check.caught = kept[check.test]["caught"]
                check.survivors = dict(kept[check.test]["survivors"])


def _difference(marker: Marker, outcome: Mapping[str, Any]) -> Difference:
    said = outcome["differs"]
    runs = outcome["runs"].values()
    rejected = {run["slip"]: run["message"] for run in runs if run["slip"] is not None}
    return Difference(
        said["id"],
        said["source"],
        said["theirs"],
        said["ours"],
        marker.label,
        marker.test,
        marker.file,
        marker.line,
        rejected,
    )


def _judge(record: Record) -> None:
    """Set the status that an equation's own checks give it, and say what is missing."""
    failed = [check for check in record.checks if check.outcome == "failed"]
    idle = [check for check in record.checks if check.outcome == "not run"]
    if failed:
        record.status = FAIL
        record.reasons = [f"{c.test} ({c.file}:{c.line}): {c.message}" for c in failed]
        return
    if not record.checks:
        record.reasons = ["no test checks it"]
    record.reasons += [f"{c.test} ({c.file}:{c.line}): {c.message}" for c in idle]
    if record.reasons:
        return
    if not record.source:
        record.reasons.append("none of its tests says source=…")
    if not record.slips:
        record.reasons.append("none of its tests has a wrong form that fails")
    used = {name for check in record.checks for name in check.used}
    for group in NEEDED[record.kind]:
        if not used & set(group):
            ways = " or ".join(f"check.{name}" for name in group)
            what = WHY.get((record.kind, group), ways)
            record.reasons.append(f"the tests of a claim of kind {record.kind} must show {what}")
    record.status = UNCHECKED if record.reasons else PASSES


def _join_premises(ledger: Ledger) -> None:
    """Follow the premises: verified is what passes and rests on verified equations only."""
    graph: dict[str, set[str]] = {}
    for label, record in ledger.records.items():
        known = [name for name in record.equation.premises if name in ledger.records]
        graph[label] = set(known)
        for name in known:
            ledger.records[name].used_by.append(label)
        for name in record.equation.premises:
            if name not in ledger.records:
                _blame(ledger, record.equation, f"rests on {name}, which the book does not have")
    for cycle in _cycles(graph):
        first = ledger.records[cycle[0]].equation
        _blame(ledger, first, f"its derivation goes in a circle: {' → '.join(cycle)}")
    growing = True
    while growing:  # an equation on a circle never gets in
        growing = False
        for label, record in ledger.records.items():
            if record.status == PASSES and all(
                ledger.records[name].status == VERIFIED for name in graph[label]
            ):
                record.status, growing = VERIFIED, True
    for label, record in ledger.records.items():
        if record.status == PASSES:
            open_ones = [n for n in sorted(graph[label]) if ledger.records[n].status != VERIFIED]
            record.reasons.append(", ".join(open_ones))


def _cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return circles, each from its first label to that label again, until none is left."""
    left = {label: set(premises) for label, premises in graph.items()}
    found = []
    while True:
        try:
            TopologicalSorter(left).prepare()
        except CycleError as error:
            cycle: list[str] = error.args[1][::-1]
            left[cycle[0]].discard(cycle[1])
            turn = cycle.index(min(cycle))
            found.append([*cycle[turn:-1], *cycle[:turn], min(cycle)])
        else:
            return found


def _join_lock(ledger: Ledger, root: Path) -> None:
    lock = load_lock(root)
    for label, record in ledger.records.items():
        record.locked = is_locked(lock, record.equation)
        if not record.locked:
            what = "differs from the one reviewed" if label in lock else "was never reviewed"
            _blame(
                ledger,
                record.equation,
                f"the formula {what}: python -m tools.ledger review {label}",
            )
    if gone := [label for label in lock if label not in ledger.records]:
        lines = (root / LOCK).read_text("utf-8").splitlines()
        for label in gone:
            line = next(
                (n for n, text in enumerate(lines, 1) if text.strip().startswith(f'"{label}"')), 1
            )
            message = (
                "reviewed, but no longer in the book, and labels are permanent. "
                f"If it must go: python -m tools.ledger review {label}"
            )
            ledger.problems.append(Problem(LOCK.as_posix(), line, label, message))
