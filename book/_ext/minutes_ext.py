"""Sphinx extension: the minutes that a page takes to read are measured on it, never typed.

``<span class="minutes"></span>`` shows those of the page where it stands; with
``data-pages="book/01_softmax/index book/02_zlpr/index"``, those of the named pages together. In a
drawing the mark is a ``tspan``.
"""

import re
from pathlib import Path

from bs4 import BeautifulSoup
from sphinx.errors import ExtensionError

from tools import reading

MARK = re.compile(r'(<(span|tspan) class="minutes"(?: data-pages="([^"]*)")?>)[^<]*(</\2>)')


def minutes_of(html):
    """Return the minutes that a built page takes to read."""
    return reading.minutes(BeautifulSoup(html, "html.parser").find("article"))


def write_minutes(app, exception):
    """Fill the marks of all pages."""
    if exception or app.builder.format != "html":
        return
    files = {
        page: Path(app.outdir, app.builder.get_target_uri(page)) for page in app.env.found_docs
    }
    measured = {}

    def minutes(page):
        if page not in files:
            raise ExtensionError(f"minutes: there is no page {page}")
        if page not in measured:
            measured[page] = minutes_of(files[page].read_text("utf-8"))
        return measured[page]

    for page, file in files.items():
        html = file.read_text("utf-8")
        filled = MARK.sub(
            lambda mark, page=page: (
                mark[1] + str(sum(map(minutes, (mark[3] or page).split()))) + mark[4]
            ),
            html,
        )
        if filled != html:
            file.write_text(filled, "utf-8")


def setup(app):
    """Connect the parts."""
    app.connect("build-finished", write_minutes)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
