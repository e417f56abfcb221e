"""Sphinx extension: show what works where, as `tests/situations` found and stored it.

``{situations-table}``, ``{situations-counts}``, ``{situations-reasons}``
    directives: the table; how many cells there are of each kind; why a cell is refused or empty.
"""

import json
from collections import Counter
from html import escape
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

STORED = "book/situations.json"
MARKS = {"passes": "✓", "refuses": "✗", "n/a": "·", "fails": "FAILS"}
SAID = {"passes": "passes", "refuses": "documented refusal", "n/a": "does not apply"}


class Situations(SphinxDirective):
    """What the three have in common: the stored table."""

    def run(self):
        """Read it, and have the page written again when it changes."""
        path = Path(self.env.srcdir, STORED)
        self.env.note_dependency(str(path))
        return [nodes.raw("", self.html(json.loads(path.read_text("utf-8"))), format="html")]


class Table(Situations):
    """A row for each function and module."""

    def html(self, stored):
        """Return the table, in a box that scrolls by itself."""
        heads = "".join(
            f'<th scope="col" title="{escape(said)}"><span>{escape(name)}</span></th>'
            for name, said in stored["situations"].items()
        )
        width = len(stored["situations"]) + 1
        body, package = [], ""
        for name, row in stored["rows"].items():
            home = row["of"].rpartition(".")[0]
            if home != package:
                package = home
                body.append(
                    f'<tr class="where-package"><th scope="rowgroup" colspan="{width}">'
                    f"<code>{escape(home)}</code></th></tr>"
                )
            cells = "".join(self.cell(cell) for cell in row["cells"].values())
            broken = escape(name).replace("_", "_<wbr>")  # where a long name may break
            body.append(f'<tr><th scope="row"><code>{broken}</code></th>{cells}</tr>')
        return (
            '<div class="eq-scroll eq-tall" role="region" aria-label="What works where" '
            'tabindex="0"><table class="table eq-table where-table" '
            f'style="--situations: {width - 1}"><caption>'
            "✓ passes · ✗ documented refusal · · does not apply</caption>"
            f'<colgroup><col class="where-name"><col span="{width - 1}">'
            "</colgroup><thead><tr>"
            f'<th scope="col">Function or module</th>{heads}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div>"
        )

    def cell(self, cell):
        """Return one mark, with its reason to hover over and to hear."""
        verdict, _, reason = cell.partition(": ")
        said = SAID.get(verdict, verdict) + (f": {reason}" if reason else "")
        return (
            f'<td class="where-{verdict.replace("/", "")}" title="{escape(said)}">'
            f'<span aria-hidden="true">{MARKS[verdict]}</span>'
            f'<span class="eq-spoken">{escape(said)}</span></td>'
        )


class Counts(Situations):
    """How many cells of each kind."""

    def html(self, stored):
        """Return one sentence."""
        found = Counter(
            cell.partition(": ")[0]
            for row in stored["rows"].values()
            for cell in row["cells"].values()
        )
        asked = found["passes"] + found["refuses"] + found["fails"]
        failing = f", {found['fails']} fail" if found["fails"] else ""
        return (
            f"<p>{len(stored['rows'])} rows, {len(stored['situations'])} situations. Of {asked} "
            f"cells that apply, <strong>{found['passes']} pass</strong> and "
            f"<strong>{found['refuses']} are documented refusals</strong>{failing}; "
            f"{found['n/a']} do not apply.</p>"
        )


class Reasons(Situations):
    """Why a cell is refused, limited, or empty."""

    def html(self, stored):
        """Return three lists."""
        refused, empty = [], {}
        for name, row in stored["rows"].items():
            for situation, cell in row["cells"].items():
                verdict, _, reason = cell.partition(": ")
                if verdict == "refuses":
                    refused.append((name, situation, reason))
                elif verdict == "n/a":
                    empty.setdefault((situation, reason), []).append(name)
        listed = "".join(
            f"<li><code>{escape(name)}</code>, {escape(situation)}: “{escape(reason)}”</li>"
            for name, situation, reason in refused
        )
        limits = "".join(
            f"<li><code>{escape(name)}</code>: {escape(row['limit'])}</li>"
            for name, row in stored["rows"].items()
            if row.get("limit")
        )
        reasons = "".join(
            f"<li>{escape(situation)}: {escape(reason)} ({len(names)})</li>"
            for (situation, reason), names in empty.items()
        )
        return (
            f"<p>Refusals, each in the words of the docstring that states it:</p><ul>{listed}</ul>"
            f"<p>Graphs with dynamic sizes that are narrower than for others:</p><ul>{limits}</ul>"
            "<details><summary>Why cells do not apply, and how many</summary>"
            f"<ul>{reasons}</ul></details>"
        )


def setup(app):
    """Connect the parts."""
    app.add_directive("situations-table", Table)
    app.add_directive("situations-counts", Counts)
    app.add_directive("situations-reasons", Reasons)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
