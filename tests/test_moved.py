"""Old addresses lead on, and the check of the pages sees one that does not."""

import sys
from pathlib import Path

import pytest
from sphinx.cmd.build import main as sphinx_build
from sphinx.util.docutils import docutils_namespace

from tools.check_html import unreachable

EXTENSIONS = Path(__file__).resolve().parents[1] / "book" / "_ext"
CONF = f"""\
import sys
sys.path.insert(0, {str(EXTENSIONS)!r})
extensions = ["myst_parser", "moved_ext"]
html_theme = "basic"
html_theme_options = {{"body_max_width": "none"}}
templates_path = ["templates"]
root_doc = "book/intro"
moved_pages = {{"book/01_one": "book/01_one/index", "book/01_one#old-name": "book/intro#front"}}
"""
PAGES = {
    "conf.py": CONF,
    # The theme of the book puts the text into an article; Sphinx's plain one does not.
    "templates/layout.html": (
        "{% extends '!layout.html' %}{% block document %}<article>{{ super() }}</article>"
        "{% endblock %}"
    ),
    "book/intro.md": "# Front\n\n```{toctree}\n01_one/index\n01_one/deep\n```\n",
    "book/01_one/index.md": "# One\n\n## Main\n\n## Both\n",
    "book/01_one/deep.md": "# Deep\n\n## Moved\n\n## Both\n",
}
PUBLISHED = {
    "book/intro.html": ["front"],
    "book/01_one.html": ["main", "moved", "both", "old-name"],
}


def build(folder, **changed):
    """Build the small site, and return where it stands."""
    for name, text in (PAGES | changed).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    before = list(sys.path)
    try:
        with docutils_namespace():
            status = sphinx_build(["-q", "-W", str(folder), str(folder / "site")])
    finally:
        sys.path[:] = before
    return folder / "site" if status == 0 else None


def test_every_anchor_of_a_page_that_moved_is_found(tmp_path):
    site = build(tmp_path)
    old = (site / "book/01_one.html").read_text("utf-8")
    assert '"moved": "01_one/deep.html#moved"' in old
    assert '"old-name": "intro.html#front"' in old
    assert '"both"' not in old, "the main page has it too"
    assert 'content="0; url=01_one/index.html"' in old
    assert unreachable(site, PUBLISHED) == []


@pytest.mark.parametrize(
    ("published", "said"),
    [
        ({"book/02_two.html": []}, "book/02_two.html: was published and is not there"),
        ({"book/01_one.html": ["lost"]}, "book/01_one.html#lost: was published and leads nowhere"),
        ({"book/intro.html": ["lost"]}, "book/intro.html#lost: was published and leads nowhere"),
    ],
)
def test_what_is_lost_is_named(tmp_path, published, said):
    assert unreachable(build(tmp_path), PUBLISHED | published) == [said]


def test_a_page_cannot_have_moved_to_where_none_is_or_from_where_one_is(tmp_path, capsys):
    for number, (old, new) in enumerate((("book/01_one", "book/no"), ("book/intro", "book/intro"))):
        conf = CONF + f"moved_pages = {{{old!r}: {new!r}}}\n"
        assert build(tmp_path / str(number), **{"conf.py": conf}) is None
        assert f"moved_pages: {old} must be no page and {new} one" in capsys.readouterr().err
