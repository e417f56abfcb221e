"""Turn the chapters' text into notebooks with outputs, or check that the two agree.

A page with code is kept twice: NAME.md is its source (MyST text, the one people
edit and review), NAME.ipynb is what running it in its folder gave (the one the
book shows and nbval re-runs). A chapter is a folder; its main page is called index.

    python tools/notebooks.py [--check] [--jobs N] [NAME.md ...]
"""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

BOOK = Path(__file__).resolve().parents[1] / "book"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
TIMEOUT_S = 600


def sources() -> list[Path]:
    """Return the pages that hold code, in order."""
    return sorted(p for p in BOOK.rglob("*.md") if "\n```{code-cell}" in p.read_text("utf-8"))


def name(path: Path) -> str:
    """Return what to call a page: its place in the book, where there is many an index."""
    return path.relative_to(BOOK).as_posix() if path.is_relative_to(BOOK) else path.name


def read_source(path: Path) -> nbformat.NotebookNode:
    """Return the notebook, without outputs, that the text at ``path`` describes."""
    nb = jupytext.read(path, fmt="md:myst")
    nb.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(nb.cells):
        cell["id"] = f"cell-{number:03d}"  # jupytext draws ids at random; these stay
    return nb


def run(path: Path) -> str:
    """Execute one page and write its notebook; a failing cell leaves the old one in place."""
    os.environ["OMP_NUM_THREADS"] = "1"
    nb = read_source(path)
    NotebookClient(
        nb,
        timeout=TIMEOUT_S,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    nb.metadata = nbformat.from_dict(METADATA)
    for cell in nb.cells:
        cell.metadata.pop("execution", None)  # times of day: another run, another file
        if cell.cell_type == "code":
            # One stream output per name and cell, however the kernel chopped it up.
            merged: list[nbformat.NotebookNode] = []
            for output in cell.outputs:
                last = merged[-1] if merged else None
                if last and output.output_type == "stream" == last.output_type:
                    if output.name == last.name:
                        last.text += output.text
                        continue
                merged.append(output)
            cell.outputs = merged
    target = path.with_suffix(".ipynb")
    fresh = target.with_suffix(".ipynb.new")
    nbformat.write(nb, fresh)
    fresh.replace(target)
    return name(target)


def differences(path: Path) -> list[str]:
    """Say how the notebook of a page differs from the page's text."""
    target = path.with_suffix(".ipynb")
    made, text = name(target), name(path)
    if not target.exists():
        return [f"{made} is missing: run make notebooks"]
    want, have = read_source(path), nbformat.read(target, as_version=4)
    if len(want.cells) != len(have.cells):
        return [f"{made} has {len(have.cells)} cells, {text} has {len(want.cells)}"]
    found = []
    count = 0
    for number, (a, b) in enumerate(zip(want.cells, have.cells, strict=True)):
        if (a.cell_type, a.source, a.metadata) != (b.cell_type, b.source, b.metadata):
            found.append(f"{made}: cell {number} differs from {text}")
        if b.cell_type == "code":
            count += 1
            if b.execution_count != count:  # nbval compares nothing in a cell without one
                found.append(
                    f"{made}: cell {number} was not run in order "
                    f"(execution count {b.execution_count}, expected {count})"
                )
    return found


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description="Make the book's notebooks from their text, or check that the two agree."
    )
    parser.add_argument("--check", action="store_true", help="change nothing, report differences")
    parser.add_argument("--jobs", type=int, default=2, help="pages run at once")
    parser.add_argument("paths", nargs="*", type=Path, help="pages; all that hold code if none")
    args = parser.parse_args()
    paths = [path.resolve() for path in args.paths] or sources()
    if args.check:
        found = [line for path in paths for line in differences(path)]
        print("\n".join(found) or f"{len(paths)} notebooks agree with their text")
        return int(bool(found))
    with ProcessPoolExecutor(args.jobs) as pool:
        for made in pool.map(run, paths):
            print("wrote", made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
