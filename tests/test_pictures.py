"""Figures in the colours of the page: inks become variables, and nothing else of a page changes."""

import io
import re
import sys
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pytest
from sphinx.cmd.build import main as sphinx_build
from sphinx.util.docutils import docutils_namespace

from lib import figures

EXTENSIONS = Path(__file__).resolve().parents[1] / "book" / "_ext"
CONF = f"""\
import sys
sys.path.insert(0, {str(EXTENSIONS)!r})
extensions = ["myst_parser", "pictures_ext"]
root_doc = "page"
html_theme = "basic"
"""


@pytest.fixture
def page(tmp_path, monkeypatch):
    """Return a built page with one figure twice, and a third time without alternative text."""
    matplotlib.use("agg")
    with matplotlib.rc_context():
        figures.use_house_style()
        figure, (axes,) = figures.panels()
        axes.plot([0, 1, 2], [1, 3, 2])
        axes.axhline(1, color="#dddddd")
        axes.set_ylim(0, 2.5)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", **figures.SVG_OPTIONS)
        plt.close(figure)
    (tmp_path / "line.svg").write_text(drawn.getvalue(), "utf-8")
    (tmp_path / "conf.py").write_text(CONF, "utf-8")
    (tmp_path / "page.md").write_text(
        '# Page\n\n![A "line"](line.svg)\n\n![Again](line.svg)\n\n![](line.svg)\n', "utf-8"
    )
    monkeypatch.setattr(sys, "path", list(sys.path))
    with docutils_namespace():
        assert sphinx_build(["-q", "-W", str(tmp_path), str(tmp_path / "site")]) == 0
    return (tmp_path / "site" / "page.html").read_text("utf-8")


def test_inks_are_those_of_the_page(page):
    figure = page[page.index("<svg") : page.index("</svg>")]
    assert "stroke: var(--ink-blue)" in figure
    assert "fill: var(--ink-ground)" in figure
    assert "color-mix(in srgb, var(--ink-black) 15%, var(--ink-ground))" in figure
    assert not re.search(r"[:\"] ?#[0-9a-f]{6}", figure)


def test_it_is_said_and_has_its_own_names(page):
    assert page.count("<svg") == 2, "a picture without alternative text stays one, to be found"
    assert 'aria-label="A &quot;line&quot;"' in page
    ids = re.findall(r'\sid="(figure\d[^"]*)"', page)
    assert len({name.partition("-")[0] for name in ids}) == 2
    named = re.findall(r'(?:url\(#|href="#)(figure\d-[^")]+)', page)
    assert named
    assert set(named) <= set(ids)


def test_no_style_of_a_figure_reaches_the_page(page):
    figure = page[page.index("<svg") : page.index("</svg>")]
    assert "<style" not in figure
    assert "stroke-linejoin: round" in figure
