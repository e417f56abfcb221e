"""The measures of a page are counted as the tool says, and a page that gets worse is named."""

import copy
import json
import math
from types import SimpleNamespace

import pytest
from bs4 import BeautifulSoup
from sphinx.errors import ExtensionError

from tests.book_extensions import load
from tools import reading

WORDS = "one two three four five"
FORMULA = '<div class="math" id="equation-eq-{0}"><span class="eqno">(1)</span>\\[x={0}\\]</div>'
CELL = (
    '<div class="cell"><div class="cell_input"><div class="highlight"><pre>{code}</pre></div></div>'
    '<div class="cell_output"><pre>{output}</pre>{more}</div></div>'
)

CAPTION = f"<figure><figcaption>{WORDS} {WORDS} {WORDS} and some more letters</figcaption></figure>"


def measured(html, key="eq:key"):
    """Return the measures of a page that ends with the marked passage and the main formula."""
    html += '<p><span class="key-result">Told.</span></p>' + FORMULA.format("key")
    return reading.measure(BeautifulSoup(f"<article>{html}</article>", "html.parser").article, key)


def test_nothing_but_the_result():
    assert measured("") == {
        "words": 2,
        "to result": 1,
        "to formula": 1,
        "unseen": 1,
        "run": 1,
        "formulas": math.inf,
        "wide": 0,
        "cell": 0,
        "minutes": 0,
    }


@pytest.mark.parametrize(
    ("html", "changed"),
    [
        (f"<p>{WORDS}</p>", {"words": 7, "to result": 6, "to formula": 6, "run": 6}),
        # A formula in the line is a word of prose, a displayed one a word of the page.
        ('<p>a <span class="math">\\(x + y\\)</span></p>', {"words": 4, "to result": 3}),
        ('<div class="math">\\[x + y\\]</div>', {"words": 3, "to result": 1}),
        # Neither number of an equation, nor mark of a link, nor what is folded or only spoken.
        ('<h2>A<a class="headerlink">#</a></h2>', {"words": 3}),
        (f'<span class="eq-spoken">{WORDS}</span>', {"words": 2}),
        (f"<details><summary>s</summary><p>{WORDS}</p></details>", {"words": 2}),
        (f'<div class="solution dropdown admonition"><p>{WORDS}</p></div>', {"words": 2}),
        (f"<details open><p>{WORDS}</p></details>", {"words": 7}),
        # Code and output are words, not prose.
        (CELL.format(code="a\nb c", output="d e", more=""), {"words": 7, "to result": 1}),
        (CELL.format(code="a\nb", output="", more=""), {"cell": 2}),
        (CELL.format(code="x" * 77, output="y" * 78, more=""), {"wide": 2}),
        (CELL.format(code="x" * 76, output="y", more=""), {"wide": 0}),
        (CELL.format(code="", output="", more="<table><td>1 2</td></table>"), {"to result": 1}),
        # A caption is words, no line of an output and no prose.
        (CELL.format(code="", output="", more=CAPTION), {"words": 21, "wide": 0, "to result": 1}),
        # A picture ends a run, also in an output, also one that can be moved.
        (f"<p>{WORDS} six</p><img>", {"run": 6, "to formula": 7, "unseen": 0, "formulas": 1.0}),
        (CELL.format(code="", output="", more="<img>"), {"unseen": 0}),
        ('<div class="explorable"><svg></svg></div>', {"unseen": 0, "formulas": 1.0}),
        (FORMULA.format("other") + "<img><img>", {"formulas": 1.0}),
        ('<div class="math">\\[x\\]</div><img>', {"formulas": 1.0}),
        # No picture is missed among the exercises.
        (f'<section id="exercises"><p>{WORDS}</p></section>', {"run": 0, "words": 7}),
        ("<p>" + "word " * 399 + "</p>", {"minutes": 2}),
        ('<div class="math">x</div>' * 19, {"minutes": 2}),
    ],
)
def test_what_is_counted(html, changed):
    found = measured(html)
    assert {name: found[name] for name in changed} == changed


def test_a_page_without_its_marks_is_an_error():
    with pytest.raises(ValueError, match="the formula eq:other is not there"):
        measured("", key="eq:other")
    article = BeautifulSoup(f"<article>{FORMULA.format('key')}</article>", "html.parser").article
    with pytest.raises(ValueError, match="no passage is marked"):
        reading.measure(article, "eq:key")


TABLE = {
    "budgets": {"words": 100, "wide": 0},
    "chapters": {
        "01_a": {"key": "eq:a", "not yet": {"words": 150}},
        "02_b": {"key": "eq:b", "budgets": {"words": 200}, "not yet": {}},
    },
}


def found(words_a=150, words_b=200, wide=0):
    return {"01_a": {"words": words_a, "minutes": 9}, "02_b": {"words": words_b, "wide": wide}}


def test_a_page_that_got_worse_is_named():
    assert reading.worse(TABLE, found()) == []
    assert reading.worse(TABLE, found(151, 201, 1)) == [
        "01_a: words is 151, may be 150",
        "02_b: words is 201, may be 200",
        "02_b: wide is 1, may be 0",
    ]


@pytest.mark.parametrize(("words", "record"), [(210, {"words": 150}), (101, {"words": 120})])
def test_the_record_is_only_ever_lowered(words, record, monkeypatch):
    monkeypatch.setitem(reading.MEASURES, "words", 40)
    table = copy.deepcopy(TABLE)
    reading.tighten(table, found(words))
    assert table["chapters"]["01_a"]["not yet"] == record
    assert table["chapters"]["02_b"]["not yet"] == {}


def test_what_is_within_its_budget_leaves_the_record():
    table = copy.deepcopy(TABLE)
    reading.tighten(table, found(100))
    assert table["chapters"]["01_a"]["not yet"] == {}


def test_the_table_shows_what_is_not_yet_within_its_budget():
    head, budget, first, second = reading.report(TABLE, found()).splitlines()
    assert head.split() == list(" ".join(reading.MEASURES).split())
    assert budget.split() == ["budget", "100", "0"]
    assert first.split()[:2] == ["01_a", "150*"]
    assert second.split()[:2] == ["02_b", "200"]


def test_the_stored_table_is_written_as_the_tool_writes_it():
    text = reading.TABLE.read_text("utf-8")
    table = json.loads(text)
    assert reading.written(table) == text
    chapters = sorted(p.parent.name for p in reading.TABLE.parents[1].glob("book/0*_*/index.md"))
    assert list(table["chapters"]) == chapters
    for chapter, row in table["chapters"].items():
        for name, value in row["not yet"].items():
            assert value > reading.budget(table, chapter, name), (chapter, name)


PAGE = (
    '<article><p>{}</p><p>About <span class="minutes"{}></span> minutes.</p></article>'
    '<p class="foot">not read</p>'
)


def built(folder, **pages):
    """Return an application that has built these pages, as far as the extension asks."""
    (folder / "book").mkdir()
    for name, html in pages.items():
        (folder / f"book/{name}.html").write_text(html, "utf-8")
    return SimpleNamespace(
        builder=SimpleNamespace(format="html", get_target_uri=lambda page: f"{page}.html"),
        env=SimpleNamespace(found_docs={f"book/{name}" for name in pages}),
        outdir=folder,
    )


def test_minutes_are_filled_in(tmp_path):
    pages = {
        "one": PAGE.format("word " * 598, ""),
        "two": PAGE.format("word " * 998, ' data-pages="book/one book/two"'),
    }
    app = built(tmp_path, **pages)
    for _ in range(2):  # a page that is not built anew keeps its mark
        load("minutes_ext").write_minutes(app, None)
        assert "About 3 minutes" in text_of(tmp_path / "book/one.html")
        assert "About 8 minutes" in text_of(tmp_path / "book/two.html")


def test_minutes_of_no_page(tmp_path):
    app = built(tmp_path, one=PAGE.format("", ' data-pages="book/none"'))
    with pytest.raises(ExtensionError, match="no page book/none"):
        load("minutes_ext").write_minutes(app, None)


def text_of(file):
    """Return the text of a page."""
    return BeautifulSoup(file.read_text("utf-8"), "html.parser").get_text()
