"""Sphinx extension: what was published stays reachable when pages and anchors move.

``moved_pages`` in the configuration maps an old page to the one that took its place. At the old
address a small page is written that leads on and keeps the ``#anchor``. What stands today on
another page of the same folder is found there: its anchors are read off the built pages. An anchor
that has another name now has a line of its own, ``book/old#anchor: book/new#anchor``.
"""

import json
import re
from html import escape
from pathlib import Path

from sphinx.errors import ExtensionError
from sphinx.util.osutil import relative_uri

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>This page has moved</title>
<script>
const moved = {anchors};
const anchor = decodeURIComponent(location.hash.slice(1));
location.replace(Object.hasOwn(moved, anchor) ? moved[anchor] : {to} + location.hash);
</script>
<noscript><meta http-equiv="refresh" content="0; url={href}"></noscript>
</head>
<body><p>This page has moved to <a href="{href}">{href}</a>.</p></body>
</html>
"""
IDS = re.compile(r'<[^>]*\sid="([^"]+)"')


def anchors_of(html):
    """Return the anchors in the article of a built page."""
    return IDS.findall(html[html.find("<article") : html.find("</article>")])


def write_old_addresses(app, exception):
    """Write a page at each old address; it knows the anchors that stand on a deeper page."""
    if exception or app.builder.format != "html":
        return
    out, known = Path(app.outdir), app.env.found_docs
    address = app.builder.get_target_uri
    for old, new in app.config.moved_pages.items():
        if "#" in old:
            continue
        if old in known or new not in known:
            raise ExtensionError(f"moved_pages: {old} must be no page and {new} one")
        folder = new.rpartition("/")[0]
        anchors = {}
        for page in sorted(known):
            if page != new and page.rpartition("/")[0] == folder:
                uri = relative_uri(address(old), address(page))
                html = (out / address(page)).read_text("utf-8")
                anchors |= {anchor: f"{uri}#{anchor}" for anchor in anchors_of(html)}
        for anchor in anchors_of((out / address(new)).read_text("utf-8")):
            anchors.pop(anchor, None)  # both pages have it: the main page it is
        for other, place in app.config.moved_pages.items():
            page, _, anchor = other.partition("#")
            if page == old and anchor:
                target, _, name = place.partition("#")
                anchors[anchor] = f"{relative_uri(address(old), address(target))}#{name}"
        href = relative_uri(address(old), address(new))
        text = PAGE.format(anchors=script(anchors), to=script(href), href=escape(href))
        (out / address(old)).write_text(text, "utf-8")


def script(value):
    """Return a value as a script of a page may hold it."""
    return json.dumps(value).replace("<", "\\u003c")


def setup(app):
    """Connect the parts."""
    app.add_config_value("moved_pages", {}, "")
    app.connect("build-finished", write_old_addresses)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
