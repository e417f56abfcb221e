"""Commands of the ledger: run the checks, test its consistency, review changed formulas."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from tools.ledger import outcomes, results
from tools.ledger.equations import Equation
from tools.ledger.lock import entry, is_locked, load_lock, save_lock, side_by_side
from tools.ledger.records import Ledger, read_ledger
from tools.ledger.sources import read_markers


@click.group(help=__doc__)
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path(),
    help="Folder of _toc.yml, book, lib and tests; default: here.",
)
@click.pass_context
def main(context: click.Context, root: Path) -> None:
    """Take the folder that all commands work on."""
    context.obj = root


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("pytest_arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def run(root: Path, pytest_arguments: tuple[str, ...]) -> None:
    """Run the marked tests whose outcome is not known or no longer true."""
    ledger = read_ledger(root)
    current = {
        check.test
        for record in ledger.records.values()
        for check in record.checks
        if check.outcome == "passed"
    } | {difference.test for difference in ledger.differences}
    markers = read_markers(root)
    files = sorted({marker.file for marker in markers if marker.test not in current})
    if not files:
        click.echo(f"all {len(markers)} marked tests passed, and nothing changed since")
        return
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "tools.ledger.plugin"]
    command += ["-m", "equation or differs", *pytest_arguments, *files]
    sys.exit(subprocess.run(command, cwd=root, check=False).returncode)


@main.command()
@click.pass_obj
def check(root: Path) -> None:
    """Fail unless every equation is verified and locked; one line for each problem."""
    ledger = read_ledger(root)
    for problem in ledger.problems:
        click.echo(problem)
    if not (root / results.RESULTS).exists():
        click.echo("No check has run here: python -m tools.ledger run")
    click.echo(", ".join(f"{count} {name}" for name, count in ledger.counts.items()))
    if ledger.problems:
        sys.exit(f"{len(ledger.problems)} problems")


@main.command(context_settings={"ignore_unknown_options": True})
@click.option("--check", "only_check", is_flag=True, help="Run nothing: fail unless all is known.")
@click.argument("pytest_arguments", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def mutants(root: Path, only_check: bool, pytest_arguments: tuple[str, ...]) -> None:
    """Run the tests that changed with wrong forms made by machine; all that pass need a reason."""
    due = outcomes.stale(root)
    if due and not only_check:
        command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "--ledger-mutants"]
        command += ["-p", "tools.ledger.plugin", *pytest_arguments, *due]
        if code := subprocess.run(command, cwd=root, check=False).returncode:
            sys.exit(code)
    found = outcomes.problems(root)
    for problem in found:
        click.echo(problem)
    entries = outcomes.load(root).values()
    caught = sum(entry["caught"] for entry in entries)
    passed = sum(len(entry["survivors"]) for entry in entries)
    click.echo(f"{caught + passed} wrong forms made by machine, {passed} pass with a reason")
    if found:
        sys.exit(f"{len(found)} problems")


@main.command()
@click.argument("labels", nargs=-1)
@click.option(
    "--confirm",
    "confirmed",
    multiple=True,
    metavar="LABEL=DIGEST",
    help="Where nobody can type: the label and the digest that a first run printed for it.",
)
@click.pass_obj
def review(root: Path, labels: tuple[str, ...], confirmed: tuple[str, ...]) -> None:
    """Lock formulas as they stand now, after a look at old and new and at their checks.

    Without LABELS: every equation whose formula is not the reviewed one. Each asks for its label
    to be typed, so that nobody locks what he did not look at.
    """
    ledger, lock = read_ledger(root), load_lock(root)
    known = {label: record.equation for label, record in ledger.records.items()}
    given = dict(pair.rpartition("=")[::2] for pair in confirmed)
    due = [label for label, equation in known.items() if not is_locked(lock, equation)]
    due += [label for label in lock if label not in known]
    chosen = list(dict.fromkeys((*labels, *given))) or due
    if unknown := [label for label in chosen if label not in known and label not in lock]:
        raise click.UsageError(f"neither in the book nor in the lock: {', '.join(unknown)}")
    left = []
    for label in chosen:
        equation = known.get(label)
        print_review(ledger, label, lock.get(label, {}).get("latex", []), equation)
        if not agreed(label, equation.digest if equation else "gone", given):
            left.append(label)
        elif equation:
            lock[label] = entry(equation)
        else:
            del lock[label]
    save_lock(root, lock)
    click.echo(f"{len(chosen) - len(left)} locked, {len(left)} left")
    if left:
        sys.exit(f"not locked: {', '.join(left)}")


def print_review(ledger: Ledger, label: str, old: Iterable[str], new: Equation | None) -> None:
    """Print the reviewed and the present formula side by side, and what checks it."""
    place = f"{new.file}:{new.line}" if new else "no longer in the book"
    click.echo(f"\n{label}  {place}")
    lines = new.latex.splitlines() if new else []
    click.echo(side_by_side(list(old), lines, shutil.get_terminal_size((100, 24)).columns))
    for check in ledger.records[label].checks if new else []:
        click.echo(f"  {check.outcome}: {check.file}:{check.line} {check.test.rpartition('::')[2]}")


def agreed(label: str, digest: str, given: dict[str, str]) -> bool:
    """Ask for the label, or where nobody can type, for label and digest on the command line."""
    if label in given:
        if given[label] == digest:
            return True
        click.echo(f"  {given[label]} is not the digest of this formula, which is {digest}")
        return False
    if not can_type():
        click.echo(f"  to lock it: --confirm {label}={digest}")
        return False
    return click.prompt("  type the label to lock this formula", default="") == label


def can_type() -> bool:
    """Tell whether somebody sits at a keyboard."""
    return sys.stdin.isatty()


if __name__ == "__main__":
    main()
