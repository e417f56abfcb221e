"""Sphinx extension: figures in the colours of the page, light or dark.

A figure of `lib.figures` is an SVG with a few named inks on white. Shown as an image it would be a
white box on a dark page. Here it becomes part of the page, each ink a variable of ``book.css``
(``--ink-blue``), white the ground of the page, and any other grey as far from the ground as it was
from white. What a screen reader says is the alternative text, as before.
"""

import re
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

from lib.figures import COLOURS

INKS = {colour: f"var(--ink-{name})" for name, colour in COLOURS.items()} | {
    "#ffffff": "var(--ink-ground)"
}
COLOUR = re.compile(r"#[0-9a-f]{6}\b")
# Matplotlib sets these for every element of a document, which here is the whole page.
LINES = "stroke-linejoin: round; stroke-linecap: butt"


def ink(match):
    """Return the colour to use for one of a figure."""
    colour = match[0]
    if colour not in INKS and len({colour[k : k + 2] for k in (1, 3, 5)}) == 1:
        black = int(COLOURS["black"][1:3], 16)
        share = min(1, (255 - int(colour[1:3], 16)) / (255 - black))
        return f"color-mix(in srgb, var(--ink-black) {share:.0%}, var(--ink-ground))"
    return INKS.get(colour, colour)


def in_page(svg, alt, prefix):
    """Return a figure as a part of a page, with ids that begin with ``prefix``."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", svg, flags=re.S)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(r'\sid="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", svg)
    svg = COLOUR.sub(ink, svg)
    said = f'role="img" aria-label="{escape(alt)}" class="book-figure" style="{LINES}"'
    return svg.replace("<svg", f"<svg {said}", 1)


class ShowInPage(SphinxPostTransform):
    """Set the figures of notebooks into the page; other builders keep the files."""

    default_priority = 300
    formats = ("html",)

    def run(self, **kwargs):
        """Work on one page."""
        for number, image in enumerate(list(self.document.findall(nodes.image))):
            path = Path(self.env.srcdir, image["uri"])
            if path.suffix == ".svg" and path.exists() and image.get("alt"):
                html = in_page(path.read_text("utf-8"), image["alt"], f"figure{number}-")
                image.replace_self(nodes.raw("", html, format="html"))


def setup(app):
    """Connect the parts."""
    app.add_post_transform(ShowInPage)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
