"""Pytest plugin: tests that check the book's numbered equations.

``@pytest.mark.equation("eq:…", kind=…, source=…, hypotheses=…, right=…, wrong={slip: …})``
    runs the test once with the fixture ``form`` set to ``right``, which must pass, and once for
    each wrong form, which must fail an assertion: a check that cannot fail proves nothing.
``@pytest.mark.differs("short-id", source=…, theirs=…, ours=…)``
    says that the test shows where the book differs from a source.
``check``
    fixture with the comparisons; it records the worst residual, margin and rate.

The outcomes go to ``_build/ledger/results.json`` (option ``--ledger-results``).
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, Phase, settings

from tools.ledger import mutation, outcomes, results
from tools.ledger.compare import Check
from tools.ledger.equations import Book, read_book

KINDS = ("definition", "identity", "inequality", "limit", "gradient", "approximation", "empirical")
FIELDS = {"kind", "source", "hypotheses", "right", "wrong"}
PROFILE = "ledger"

ITEMS = pytest.StashKey[int]()  # how many items the test's function became
CAUGHT = pytest.StashKey[str]()  # what a wrong form was caught by
BOOK = pytest.StashKey[Book]()
SECONDS = 5  # of processor time for one wrong form made by machine


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let another file take the outcomes."""
    group = parser.getgroup("ledger", "checks of the book's equations")
    group.addoption(
        "--ledger-results", type=Path, metavar="FILE", help=f"default {results.RESULTS}"
    )
    group.addoption(
        "--ledger-mutants",
        action="store_true",
        help=f"run each check with wrong forms made by machine, into {outcomes.FILE}",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the markers, set Hypothesis and, where outcomes arrive, the recorder."""
    for line in (
        "equation(label, kind, right, wrong, source=None, hypotheses=None): "
        "check of a numbered equation; must pass with form=right and fail with each wrong form",
        "differs(id, source, theirs, ours): shows where the book differs from a source",
    ):
        config.addinivalue_line("markers", line)
    # The same examples everywhere. Function-scoped fixtures are wanted: `check` keeps the worst
    # of all examples. Shrinking would cost most where failure is expected, in wrong forms.
    settings.register_profile(
        PROFILE,
        derandomize=True,
        database=None,
        deadline=None,
        max_examples=50,
        phases=(Phase.explicit, Phase.generate),
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=(HealthCheck.function_scoped_fixture, HealthCheck.too_slow),
    )
    if not config.getoption("--hypothesis-profile", default=None):
        settings.load_profile(PROFILE)
    if not hasattr(config, "workerinput"):  # not in the workers of xdist: they report to us
        recorder = MutantRecorder if config.getoption("--ledger-mutants") else Recorder
        config.pluginmanager.register(recorder(config), "ledger-recorder")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a check once with the right form and once with each wrong one."""
    marks = list(metafunc.definition.iter_markers("equation"))
    if not marks:
        return
    mark = marks[0]
    where = _where(metafunc.definition)
    for wrong, message in (
        (len(marks) > 1, "one test checks one equation; two markers stand here"),
        (len(mark.args) != 1 or not isinstance(mark.args[0], str), "the label comes first"),
        (
            set(mark.kwargs) - FIELDS,
            f"unknown {sorted(set(mark.kwargs) - FIELDS)}; known are {sorted(FIELDS)}",
        ),
        (mark.kwargs.get("kind") not in KINDS, f"kind must be one of {', '.join(KINDS)}"),
        ("right" not in mark.kwargs, "right=… is missing: the form that must pass"),
        (
            not isinstance(mark.kwargs.get("wrong"), dict) or not mark.kwargs["wrong"],
            "wrong={slip: form} is missing: without a form that must fail, "
            "nothing shows that the check can fail",
        ),
        ("form" not in metafunc.fixturenames, "the test must use the fixture 'form'"),
    ):
        if wrong:
            label = mark.args[0] if mark.args else "equation"
            raise pytest.Collector.CollectError(f"{where}: {label}: {message}")
    forms = [(None, mark.kwargs["right"]), *mark.kwargs["wrong"].items()]
    ids = ["right", *(f"wrong: {slip}" for slip in mark.kwargs["wrong"])]
    if metafunc.config.getoption("--ledger-mutants"):
        made = mutation.mutants(mark.kwargs["right"], mark.args[0])
        forms = list(made.items()) or forms[:1]  # so that this, too, is seen to have been tried
        ids = list(made) or ids[:1]
    metafunc.parametrize("form", forms, ids=ids, indirect=True)


@pytest.fixture
def form(request: pytest.FixtureRequest) -> Any:
    """Return the form of the equation to be tested: right, or one of the wrong ones."""
    return request.param[1]


@pytest.fixture
def check() -> Check:
    """Return the comparisons, which remember the worst of what they saw."""
    return Check()


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem() -> Generator[None, Any, Any]:
    """Count a function's items before any selection, so that a partial run shows as such."""
    made = yield
    made_items = made if isinstance(made, list) else []  # a class, say, comes alone
    items = [item for item in made_items if isinstance(item, pytest.Function)]
    for item in items:
        item.stash[ITEMS] = len(items)
    return made


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse a check of an equation that the book does not have."""
    mark = item.get_closest_marker("equation")
    if not mark:
        return
    if BOOK not in item.config.stash:
        item.config.stash[BOOK] = read_book(item.config.rootpath)
    if mark.args[0] not in item.config.stash[BOOK].equations:
        pytest.fail(
            f"{_where(item)}: {mark.args[0]}: no equation of the book has this label", False
        )


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Turn the outcome of a wrong form round: only a failed assertion is right."""
    slip = _slip(pyfuncitem)
    if slip is None:
        return (yield)
    start = f"{_where(pyfuncitem)}: {_label(pyfuncitem)}: the wrong form “{slip}”"
    # Hypothesis formats each failure, wanted ones too, and pytest's own style takes half a second.
    style, pyfuncitem.config.option.tbstyle = pyfuncitem.config.option.tbstyle, "native"
    if pyfuncitem.config.getoption("--ledger-mutants"):
        try:
            with _bounded(SECONDS):
                yield
        except Exception as error:  # no comparison is owed to a form that no person wrote
            pyfuncitem.stash[CAUGHT] = type(error).__name__
        finally:
            pyfuncitem.config.option.tbstyle = style
        return True
    try:
        yield
    except AssertionError as error:
        pyfuncitem.stash[CAUGHT] = (str(error).splitlines() or ["an assertion"])[0]
        return True
    except Exception as error:
        text = f"{start} must fail an assertion; it raised {type(error).__name__}: {error}"
        raise pytest.fail.Exception(text, pytrace=False) from error
    finally:
        pyfuncitem.config.option.tbstyle = style
    pytest.fail(f"{start} passed: the check does not tell it from the right one", pytrace=False)


@contextmanager
def _bounded(seconds: float) -> Generator[None]:
    """End what runs longer, in library calls too: a wrong form may never come to an end."""

    def end(_signal: int, _frame: Any) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    # Processor time: on a busy machine a form must not count as caught because others run.
    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds, seconds)  # and again: Hypothesis tries twice
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Hand what was seen to the recorder; reports also travel from xdist's workers."""
    report = yield
    if item.config.getoption("--ledger-mutants"):
        if report.when == "call" and item.get_closest_marker("equation"):
            survived = CAUGHT not in item.stash
            test = item.nodeid.partition("[")[0]
            seen = (test, _label(item), _slip(cast("pytest.Function", item)), survived)
            report.user_properties.append(("mutant", seen))
        return report
    marked = item.get_closest_marker("equation") or item.get_closest_marker("differs")
    if marked and isinstance(item, pytest.Function) and (report.when == "call" or report.failed):
        report.user_properties.append(("ledger", _seen(item, report)))
    return report


def _seen(item: pytest.Function, report: pytest.TestReport) -> dict[str, Any]:
    """Return the record of one item, in types that JSON and xdist carry."""
    check = item.funcargs.get("check")
    measured = asdict(check.measured) if isinstance(check, Check) else {}
    run = {
        "slip": _slip(item),
        "outcome": report.outcome,
        "message": item.stash.get(CAUGHT, _reason(report)),
        **{
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in measured.items()
        },
    }
    record: dict[str, Any] = {"items": item.stash[ITEMS]}
    if mark := item.get_closest_marker("equation"):
        record["label"] = mark.args[0]
        record |= {name: mark.kwargs.get(name) for name in ("kind", "source", "hypotheses")}
        record["slips"] = list(mark.kwargs["wrong"])
    if mark := item.get_closest_marker("differs"):
        record["differs"] = {"id": mark.args[0], **mark.kwargs}
    test, _, parameters = item.nodeid.partition("[")
    return {"test": test, "run": f"[{parameters}" if parameters else "", "seen": run} | record


def _reason(report: pytest.TestReport) -> str:
    """Return the line of a failure that says what was wrong."""
    if report.passed:
        return ""
    crash = getattr(report.longrepr, "reprcrash", None)
    line = str(crash.message if crash else report.longrepr).splitlines()[0]
    return re.sub(
        r"^(Failed: )?(\S+:\d+: eq:\S+: )?", "", line
    )  # the record names the place itself


def _where(item: pytest.Item) -> str:
    file, line, _ = item.location
    return f"{Path(file).as_posix()}:{(line or 0) + 1}"


def _label(item: pytest.Item) -> str:
    mark = item.get_closest_marker("equation")
    return str(mark.args[0]) if mark else "equation"


def _slip(item: pytest.Function) -> str | None:
    """Return which wrong form this item tests; None for the right one."""
    if not item.get_closest_marker("equation"):
        return None
    slip, _ = cast("tuple[str | None, Any]", item.callspec.params["form"])
    return slip


class Recorder:
    """Collect the records of all processes and merge them into the results at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self.path = config.getoption("--ledger-results") or config.rootpath / results.RESULTS
        self.stamps = results.Stamps(config.rootpath)
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_sessionstart(self) -> None:
        """Take the fingerprint of the code before it is imported and run."""
        _ = self.stamps.common

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Enter one item's record."""
        for name, value in report.user_properties:
            if name == "ledger":
                record = dict(cast("dict[str, Any]", value))
                test, run, seen = (record.pop(key) for key in ("test", "run", "seen"))
                record["stamp"] = self.stamps.of(test.partition("::")[0])
                self.tests.setdefault(test, record | {"runs": {}})["runs"][run] = seen

    def pytest_sessionfinish(self) -> None:
        """Merge: what did not run keeps its record only while that is still true."""
        if not self.tests:
            return
        merged = results.load(self.path, self.stamps)
        for test, record in self.tests.items():
            old = merged.get(test, {}).get("runs", {})
            merged[test] = record | {"runs": old | record["runs"]}
        results.save(self.path, merged)


class MutantRecorder:
    """Collect which wrong forms made by machine passed, and keep what a person said of them."""

    def __init__(self, config: pytest.Config) -> None:
        self.root = config.rootpath
        self.seen: dict[str, dict[str, Any]] = {}
        self.digests = outcomes.Digests(self.root)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Enter one form's outcome; a test under several parameters catches it under any."""
        for name, value in report.user_properties:
            if name == "mutant":
                test, label, form, survived = cast("tuple[str, str, str | None, bool]", value)
                entry = self.seen.setdefault(test, {"label": label, "forms": {}})
                if form is not None:
                    entry["forms"][form] = entry["forms"].get(form, True) and survived

    def pytest_sessionfinish(self) -> None:
        """Merge into the file; the reasons of forms that pass again are kept."""
        kept = outcomes.load(self.root)
        for test, entry in self.seen.items():
            old = kept.get(test, {}).get("survivors", {})
            forms = entry["forms"]
            kept[test] = {
                "label": entry["label"],
                "digest": self.digests.of(test),
                "caught": sum(not survived for survived in forms.values()),
                "survivors": {f: old.get(f, "") for f, survived in forms.items() if survived},
            }
        outcomes.save(self.root, kept)
