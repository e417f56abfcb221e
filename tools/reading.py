"""How the main pages of the chapters read: words, pictures, formulas and code, as numbers.

python -m tools.reading _build/html [--tighten]

Counted is what a reader sees without unfolding anything. Each measure has a budget, and
tools/reading.json has them; beside them it records, page by page, what is not yet within them. The
check fails where a page is worse than its budget and than that record: a page may only get better.
``--tighten`` lowers the record to what the pages are now, never raises it.

What is counted how:

words
    of the article, with code, output and captions; a formula, inline or displayed, is one word.
to result, to formula
    words of prose before the end of the passage that is marked ``<span class="key-result">``, and
    before the formula whose label the table names; 0 of the first kind is the best.
unseen
    1 if no picture stands before that formula.
run
    words of prose in the longest stretch without a picture, up to the exercises.
formulas
    numbered equations for each picture.
wide, cell
    lines of code and output that are longer than 76 characters; lines of the longest code cell.
minutes
    at 200 words of prose a minute, a displayed formula taken as 20 words.
screens
    heights of a window of 1280 x 900 that the article fills; needs Chromium, left out without.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup, Tag
from bs4.element import NavigableString

from tools.check_browser import BROWSERS, DESKTOP, FLAGS, PATIENCE, served, settle

TABLE = Path(__file__).with_name("reading.json")
# Each measure with the step that its record is rounded up to: a sentence more is no relapse.
MEASURES = {
    "words": 100,
    "to result": 20,
    "to formula": 50,
    "unseen": 1,
    "run": 50,
    "formulas": 0.5,
    "wide": 5,
    "cell": 1,
    "minutes": 1,
    "screens": 1,
}
WIDTH = 76
WORDS_A_MINUTE = 200
WORDS_A_FORMULA = 20
# What stands after the main part: no picture is missed there.
AFTER = ("exercises", "further-reading")
# Not read: marks of links, what only a screen reader says, and what is folded until one asks.
UNSEEN = ("headerlink", "eq-spoken", "eqno", "dropdown", "toggle")
PICTURES = ("img", "svg", "video", "canvas", "iframe")

# What a page is made of, in reading order: a kind, and its text or its label.
Piece = tuple[str, str]


def pieces(node: Tag, kind: str = "prose") -> Iterator[Piece]:
    """Yield what a reader sees, in order: prose, code, output, formulas, pictures, marks."""
    for child in node.children:
        if isinstance(child, Tag):
            classes = child.get_attribute_list("class")
            if child.name in ("script", "style", "summary") or set(classes) & set(UNSEEN):
                continue
            if child.name == "details" and not child.has_attr("open"):
                continue
            if child.name in PICTURES or "explorable" in classes:
                yield "picture", ""
            elif child.name == "section" and child.get("id") in AFTER:
                yield "after", ""
                yield from pieces(child, kind)
            elif child.name == "span" and "math" in classes:
                yield kind, "formula"
            elif child.name == "div" and "math" in classes:
                yield "formula", str(child.get("id", "")) if child.select_one(".eqno") else ""
            elif child.name == "pre" and kind == "prose" and child.find_parent(class_="cell_input"):
                yield "code", child.get_text()
            elif child.name == "pre":
                yield "output", child.get_text()
            else:
                inside = "caption" if child.name == "figcaption" else kind
                yield from pieces(child, "output" if "cell_output" in classes else inside)
                if "key-result" in classes:
                    yield "result", ""
        elif type(child) is NavigableString and child.strip():
            yield kind, str(child)


def minutes(article: Tag) -> int:
    """Return the minutes that a page takes to read."""
    words = 0
    for kind, text in pieces(article):
        if kind == "prose":
            words += 1 if text == "formula" else len(text.split())
        elif kind == "formula":
            words += WORDS_A_FORMULA
    return round(words / WORDS_A_MINUTE)


def measure(article: Tag, key: str) -> dict[str, float]:
    """Return the measures of a page, of which ``key`` is the label of the main formula."""
    words = prose = run = longest = pictures = numbered = wide = cell = 0
    to_result = to_formula = unseen = None
    main = True
    for kind, text in pieces(article):
        count = 1 if kind == "formula" else len(text.split())
        words += count
        if kind == "prose":
            prose += count
            run += count * main
            longest = max(longest, run)
        elif kind == "picture":
            pictures += 1
            run = 0
        elif kind == "after":
            main = False
        elif kind == "result" and to_result is None:
            to_result = prose
        elif kind == "formula":
            numbered += bool(text)
            if text == f"equation-{key.replace(':', '-')}":
                to_formula, unseen = prose, int(not pictures)
        elif kind in ("code", "output"):
            lines = text.rstrip("\n").split("\n")
            wide += sum(len(line) > WIDTH for line in lines)
            if kind == "code":
                cell = max(cell, len(lines))
    if to_result is None:
        raise ValueError('no passage is marked <span class="key-result">')
    if to_formula is None or unseen is None:
        raise ValueError(f"the formula {key} is not there")
    return {
        "words": words,
        "to result": to_result,
        "to formula": to_formula,
        "unseen": unseen,
        "run": longest,
        "formulas": round(numbered / pictures, 1) if pictures else math.inf,
        "wide": wide,
        "cell": cell,
        "minutes": minutes(article),
    }


def screens(site: Path, names: list[str], browser_path: str) -> list[float]:
    """Return how many screens of a desktop each page fills."""
    from playwright.sync_api import sync_playwright

    found = []
    with served(site) as home, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=FLAGS)
        page = browser.new_page(viewport=DESKTOP)
        page.set_default_timeout(PATIENCE)
        for name in names:
            page.goto(home + name)
            settle(page)
            height = page.evaluate(
                "() => document.querySelector('article').getBoundingClientRect().height"
            )
            found.append(round(height / DESKTOP["height"], 1))
        browser.close()
    return found


def read(site: Path, keys: dict[str, str]) -> dict[str, dict[str, float]]:
    """Return the measures of each chapter's main page."""
    found = {}
    for chapter, key in keys.items():
        page = site / "book" / chapter / "index.html"
        article = BeautifulSoup(page.read_text("utf-8"), "html.parser").find("article")
        if not isinstance(article, Tag):
            raise ValueError(f"{page}: no article")
        try:
            found[chapter] = measure(article, key)
        except ValueError as error:
            raise ValueError(f"{page}: {error}") from None
    return found


def budget(table: dict[str, Any], chapter: str, name: str) -> float:
    """Return the bound of a measure on a page, infinity where there is none."""
    own = table["chapters"][chapter].get("budgets", {})
    return float(own.get(name, table["budgets"].get(name, math.inf)))


def worse(table: dict[str, Any], found: dict[str, dict[str, float]]) -> list[str]:
    """Return where a page is worse than its budget and than what it was, one line each."""
    lines = []
    for chapter, measures in found.items():
        was = table["chapters"][chapter]["not yet"]
        for name, value in measures.items():
            bound = max(budget(table, chapter, name), was.get(name, 0))
            if value > bound:
                lines.append(f"{chapter}: {name} is {value:g}, may be {bound:g}")
    return lines


def tighten(table: dict[str, Any], found: dict[str, dict[str, float]]) -> None:
    """Lower the record of what is not yet within the budgets to what was found."""
    for chapter, measures in found.items():
        was = table["chapters"][chapter]["not yet"]
        for name, value in measures.items():
            if name in was:
                step = MEASURES[name]
                was[name] = min(was[name], math.ceil(value / step) * step)
                if was[name] <= budget(table, chapter, name):
                    del was[name]


def written(table: dict[str, Any]) -> str:
    """Return the table as its file has it, what belongs together in a line."""
    text = json.dumps(table, indent=1, ensure_ascii=False)
    return re.sub(r"\{[^{}]*\}", lambda flat: re.sub(r"\s*\n\s*", " ", flat[0]), text) + "\n"


def report(table: dict[str, Any], found: dict[str, dict[str, float]]) -> str:
    """Return the measures as a table, with a star at what is not yet within its budget."""
    rows = [["", *MEASURES], ["budget"]]
    rows[1] += [f"{table['budgets'][m]:g}" if m in table["budgets"] else "" for m in MEASURES]
    for chapter, measures in found.items():
        row = [chapter]
        for name in MEASURES:
            value = measures.get(name)
            star = "*" if value is not None and value > budget(table, chapter, name) else ""
            row.append(f"{value:g}{star}" if value is not None else "–")
        rows.append(row)
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    return "\n".join(
        row[0].ljust(widths[0])
        + "".join(f"  {cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure how the chapters' main pages read.")
    parser.add_argument("site", type=Path)
    parser.add_argument("--tighten", action="store_true", help="record what has become better")
    args = parser.parse_args()
    table = json.loads(TABLE.read_text("utf-8"))
    found = read(args.site, {name: row["key"] for name, row in table["chapters"].items()})
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser:
        pages = [f"book/{chapter}/index.html" for chapter in found]
        for measures, value in zip(found.values(), screens(args.site, pages, browser), strict=True):
            measures["screens"] = value
    print(report(table, found))
    if args.tighten:
        tighten(table, found)
        TABLE.write_text(written(table), "utf-8")
    lines = worse(table, found)
    print("\n".join(lines) or "no page reads worse than it did (*: not yet within its budget)")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
