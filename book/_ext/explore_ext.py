"""Sphinx extension: figures that can be touched.

``{explore} NAME`` sets the explorable NAME of the chapter's ``explore.js`` into the page. Its
content is the caption; ``:equations:`` lists the labels of what it draws and ``:code:`` the
functions of the library that give the same numbers, both for the line under it. The page holds a
picture until the script takes over, so that it can be read and printed without.
"""

from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from ledger_views import Links
from sphinx.util.docutils import SphinxDirective

from tools import explore

MARK = '<figure class="explorable"'


class Explore(SphinxDirective):
    """Set one explorable."""

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = {
        "equations": directives.unchanged_required,
        "code": directives.unchanged_required,
    }

    def run(self):
        """Return the figure: its picture and words, its caption, the line under it."""
        (name,) = self.arguments
        module = module_of(self.env.srcdir, self.env.docname)
        if not module.exists() or name not in explore.names(module):
            raise self.error(f"explore: {module} must export {name}")
        for file in (module, explore.still_of(module, name)):
            self.env.note_dependency(str(file))
        return [
            raw(f'{MARK} data-explore="{name}" id="explore-{name}">{explore.board(module, name)}'),
            raw("<figcaption>"),
            *self.parse_content_to_nodes(),
            self.line(),
            raw("</figcaption></figure>"),
        ]

    def line(self):
        """Return what the figure draws, as links to the equations and to the library."""
        links = Links(self.env, self.env.app.builder, self.env.docname)
        whole = nodes.paragraph(classes=["eq-status"])
        for start, made in (
            ("Draws ", map(links.to_equation, self.options.get("equations", "").split())),
            (" · same numbers as ", map(links.code, self.options.get("code", "").split())),
        ):
            for number, link in enumerate(made):
                whole += nodes.Text(", " if number else start)
                whole += link
        return whole


def raw(html):
    """Return a piece of HTML."""
    return nodes.raw("", html, format="html")


def module_of(srcdir, docname):
    """Return the module of a page's chapter."""
    return Path(srcdir, docname).with_name("explore.js")


def add_scripts(app, pagename, templatename, context, doctree):
    """Add the scripts to the pages that have an explorable, and to no other."""
    if MARK in context.get("body", ""):
        app.add_js_file(explore.SHARED, loading_method="defer")
        module = module_of(app.srcdir, pagename)
        context["body"] += explore.script(module.read_text("utf-8"))


def setup(app):
    """Connect the parts."""
    app.add_directive("explore", Explore)
    app.connect("html-page-context", add_scripts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
