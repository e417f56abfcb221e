"""Sphinx extension: show the derivation ledger in the book.

The ledger itself is plain data (``tools.ledger``). This extension reads it once in a build, makes
each of its problems a warning (the book is built with ``-W``), sets a status line under each
numbered equation, and fills the places that these mark:

``{ledger-table}``, ``{ledger-forms}``, ``{ledger-graphs}``, ``{ledger-differences}``
    directives: the records, the wrong forms of each chapter, the dependency graphs, the
    differences from sources;
``{ledger-code} lib.module``
    directive: the equations that a module's functions compute;
``{ledger-counts}``
    directive: a sentence that says how much was checked;
``{ledger-count}`equations```
    role: one of the numbers: equations, verified, checks, controls (wrong forms written by hand),
    mutants (those made by machine), survivors (which of these pass), functions, differences.
"""

import json
import shutil
from pathlib import Path

from docutils import nodes
from ledger_views import MARK, Links, code_list, counts, differences, forms, graphs, table
from sphinx.errors import ExtensionError
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

from tools.ledger import results
from tools.ledger.equations import digest
from tools.ledger.records import read_ledger

log = logging.getLogger(__name__)

SCHEMA = Path(results.__file__).with_name("schema.json")
VIEWS = {
    "ledger-table": table,
    "ledger-forms": forms,
    "ledger-graphs": graphs,
    "ledger-differences": differences,
    "ledger-code": code_list,
    "ledger-counts": counts,
}


class Place(nodes.Inline, nodes.Element):
    """A place for something from the ledger, which is known only after all pages are read."""


class View(SphinxDirective):
    """Mark the place of a view."""

    optional_arguments = 1

    def run(self):
        """Leave a mark: a page may be kept from an earlier build, the ledger may not."""
        argument = self.arguments[0] if self.arguments else ""
        return [Place(view=self.name, argument=argument)]


class Count(SphinxRole):
    """Mark the place of a number."""

    def run(self):
        """Leave a mark, as a view does."""
        return [Place(view="ledger-count", argument=self.text)], []


def refresh(app, env):
    """Read the ledger anew, report what is wrong with it, and name the pages that show it.

    This runs in each build, also when no page changed: a check that fails now must not hide
    behind a page that was written when it passed.
    """
    if not Path(app.srcdir, results.RESULTS).exists():
        raise ExtensionError(
            f"{results.RESULTS} is not there: the equations have not been checked. "
            "Run first: python -m tools.ledger run"
        )
    app.ledger = ledger = read_ledger(Path(app.srcdir))
    for problem in ledger.problems:
        warn(f"{problem.file}:{problem.line}", problem.label, problem.message)
    built = env.get_domain("math").equations
    for label, record in ledger.records.items():
        if label not in built:
            place = f"{record.equation.file}:{record.equation.line}"
            warn(place, label, "it is not in the built page; is the notebook made from this text?")
    for label, (docname, _) in built.items():
        if label not in ledger.records:
            warn(docname, label, "the page has it, but its source does not")
    shown = getattr(env, "shown_ledger", None)
    env.shown_ledger = ledger.to_json()  # plain data: it is kept until the next build
    return [] if shown == env.shown_ledger else sorted(env.found_docs)


def warn(location, label, message):
    """Warn about an equation; -W makes it an error."""
    log.warning("%s: %s", label, message, location=location, type="ledger")


class Show(SphinxPostTransform):
    """Set the status lines and fill the marked places, each time that a page is written."""

    default_priority = 5  # before references are resolved: ours are resolved with the rest

    def run(self, **kwargs):
        """Work on one page."""
        ledger = self.app.ledger
        links = Links(self.env, self.app.builder, self.env.docname)
        for formula in list(self.document.findall(nodes.math_block)):
            if record := ledger.records.get(formula.get("label")):
                if digest(formula.astext()) != record.equation.digest:
                    place = f"{record.equation.file}:{record.equation.line}"
                    warn(place, record.equation.label, "the built page shows another formula")
                formula.parent.insert(formula.parent.index(formula) + 1, line(record, links))
        for place in list(self.document.findall(Place)):
            view, argument = place["view"], place["argument"]
            if view == "ledger-count":
                if argument not in ledger.counts:
                    known = ", ".join(ledger.counts)
                    log.warning("ledger-count %s: known are %s", argument, known, location=place)
                place.replace_self(nodes.Text(str(ledger.counts.get(argument, "?"))))
            else:
                place.replace_self(VIEWS[view](ledger, links, argument))


def line(record, links):
    """Return the quiet line under an equation: status, kind, its tests, its code, its record."""
    status = record.status.partition(",")[0].lower()
    whole = nodes.paragraph(classes=["eq-status", f"eq-{status}"])
    whole += nodes.inline("", "Status of this equation: ", classes=["eq-spoken"])
    whole += nodes.inline("", f"{MARK[record.status]} {record.status}", classes=["eq-mark"])
    whole += nodes.Text(f" · {record.kind}" if record.kind else "")
    for start, made in (
        (" · checked by ", [links.test(check) for check in record.checks]),
        (" · computed by ", [links.code(function.name) for function in record.functions]),
        (" · ", [links.row(record.equation.label)]),
    ):
        for number, link in enumerate(link for link in made if link is not None):
            whole += nodes.Text(", " if number else start)
            whole += link
    return whole


def publish(app, exception):
    """Put the ledger as plain data beside the pages."""
    if exception is None and app.builder.format == "html":
        text = json.dumps(app.env.shown_ledger, indent=1, ensure_ascii=False)
        Path(app.outdir, "ledger.json").write_text(text + "\n", "utf-8")
        shutil.copyfile(SCHEMA, Path(app.outdir, "ledger.schema.json"))


def setup(app):
    """Connect the parts."""
    app.add_config_value("ledger_page", "book/ledger", "html")
    for name in VIEWS:
        app.add_directive(name, View)
    app.add_role("ledger-count", Count())
    app.add_node(Place)
    app.connect("env-updated", refresh)
    app.connect("build-finished", publish)
    app.add_post_transform(Show)
    app.add_js_file("ledger.js", loading_method="defer")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
