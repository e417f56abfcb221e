"""``{record-age}``: says under a figure or table whether its record's code has changed since."""

import json
from pathlib import Path

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from lib.records import changed

RUNS = Path(__file__).resolve().parents[1] / "runs"


def age(record):
    """Return the sentence about a record."""
    code = record["code"]
    if code["commit"] is not None:
        where = f"Measured at commit {code['commit'][:10]}"
        if code["modified"]:
            where += ", with changes that were not committed"
    else:
        where = (
            "Measured at a commit that was not noted; the record was stored in commit "
            f"{code['recorded_in'][:10]}"
        )
    if "measures" not in code:
        return f"{where}. Whether the measured code has changed since cannot be told."
    if not (files := changed(code["measures"])):
        return f"{where}; the measured code has not changed since."
    few = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    return f"{where}; the measured code has changed since, in {few}."


class RecordAge(SphinxDirective):
    """Print the age of ``book/runs/NAME.json``, computed when the page is built."""

    required_arguments = 1

    def run(self):
        """Return one small paragraph."""
        path = RUNS / f"{self.arguments[0]}.json"
        if not path.is_file():
            raise self.error(f"record-age: there is no record {path.name}")
        self.env.note_reread()  # the sentence depends on code that no page names
        text = age(json.loads(path.read_text("utf-8")))
        return [nodes.paragraph("", text, classes=["record-age"])]


def setup(app):
    """Register the directive."""
    app.add_directive("record-age", RecordAge)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
