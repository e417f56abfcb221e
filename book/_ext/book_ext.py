"""Sphinx extension of the book: numbers of chapters, years of sources, MathJax, versions."""

import platform
import re
import shutil
from collections import defaultdict
from importlib.metadata import files, version
from pathlib import Path
from string import ascii_lowercase

from docutils import nodes
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective
from sphinx_codeautolink.extension.block import CodeBlockAnalyser
from sphinx_external_toc.collectors import TocTreeCollectorWithStyles

MATHJAX_MAIN = "tex-chtml-full.js"
MATHJAX_KEPT = (MATHJAX_MAIN, "output/chtml/fonts/woff-v2/")
REPOSITORY = re.compile(r"https://github\.com/([\w.-]+)/([\w.-]+)")
EMPTY_HEAD = re.compile(r"<th( class=\"head[^\"]*\")>\s*(?:<p></p>)?\s*</th>")
CHAPTER = re.compile(r"book/(\d\d)_\w+/")
SHOWN = ("torch", "numpy", "transformers", "matplotlib", "jupyter-book", "Sphinx")


class Versions(SphinxDirective):
    """List the versions of what the numbers and the pages were made with."""

    def run(self):
        """Return a list of name and version."""
        listed = nodes.bullet_list()
        for name, number in (
            ("Python", platform.python_version()),
            *((name, version(name)) for name in SHOWN),
        ):
            listed += nodes.list_item("", nodes.paragraph("", f"{name} {number}"))
        return [listed]


def number_by_name(app, config):
    """Give the pages of folder book/NN_name the number NN, whichever chapters stand before it.

    Numbers of chapters and equations then stay when a chapter comes in between.
    """
    assign = TocTreeCollectorWithStyles.assign_section_numbers

    def assign_and_name(collector, env):
        changed = assign(collector, env)
        for page, numbers in env.toc_secnumbers.items():
            if not (named := CHAPTER.match(page)):
                continue
            chapter = int(named[1])
            for anchor, number in numbers.items():
                numbers[anchor] = number and (chapter, *number[1:])
            for node in (env.titles[page], *env.tocs[page].findall(nodes.reference)):
                if node.get("secnumber"):
                    node["secnumber"] = [chapter, *node["secnumber"][1:]]
        return changed

    TocTreeCollectorWithStyles.assign_section_numbers = assign_and_name


def use_local_mathjax(app, config):
    """Point pages at the copy that copy_mathjax makes."""
    config.mathjax_path = f"mathjax/{MATHJAX_MAIN}"


def promise_what_exists(app, config):
    """Link repository and site only if the configuration says where they are."""
    options = config.html_theme_options
    address = options.get("repository_url")
    options["use_repository_button"] = options["use_issues_button"] = bool(address)
    if address:
        if not (named := REPOSITORY.fullmatch(address)):
            raise ExtensionError(
                f"repository: url must be https://github.com/OWNER/NAME, got {address}"
            )
        config.html_baseurl = f"https://{named[1]}.github.io/{named[2]}/"


def leave_out_sources(app, config):
    """Build NAME.ipynb, not the NAME.md that it was made from."""
    top = Path(app.srcdir)
    config.exclude_patterns += [
        text.relative_to(top).as_posix()
        for text in sorted(top.glob("book/**/*.md"))
        if text.with_suffix(".ipynb").exists()
    ]


def copy_mathjax(app, exception):
    """Copy the two parts of MathJax that pages load (1.7 MB of 26)."""
    if exception or app.builder.format != "html":
        return
    for file in files("sphinx-mathjax-offline"):
        _, found, inside = str(file).partition("/static/mathjax/")
        if found and inside.startswith(MATHJAX_KEPT):
            target = Path(app.outdir, "_static", "mathjax", inside)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.locate(), target)


def drop_thebe(app, pagename, templatename, context, doctree):
    """Leave out sphinx-thebe's scripts: added twice, they raise an error in every page."""
    context["script_files"] = [
        script
        for script in context.get("script_files", [])
        if "thebe" not in str(script).lower()
        and "thebe" not in str(getattr(script, "attributes", "")).lower()
    ]


def mend_markup(app, pagename, templatename, context, doctree):
    """Mend what screen readers are told wrongly: entries of a list, empty heads of columns."""
    if "body" in context:
        # Docutils gives the entries a role that ARIA has given up.
        body = context["body"].replace('role="doc-biblioentry"', 'role="listitem"')
        context["body"] = EMPTY_HEAD.sub(r"<td\1></td>", body)


def tell_years_apart(app):
    """Add a letter to the year where the same authors have several sources of one year."""
    alike = defaultdict(list)
    for entry in app.env.get_domain("cite").bibdata.data.entries.values():
        if (year := entry.fields.get("year")) is None:
            continue
        names = [" ".join(person.last_names) for person in entry.persons["author"]]
        # As citations are shown: from three authors on, the first of them.
        shown = tuple(names) if len(names) < 3 else (names[0], "et al.")
        alike[shown, year.rstrip(ascii_lowercase)].append(entry)
    for (_, year), entries in alike.items():
        if len(entries) > 1:
            entries.sort(key=lambda entry: [int(entry.fields.get(k, 13)) for k in ("month", "day")])
            for letter, entry in zip(ascii_lowercase, entries, strict=False):
                entry.fields["year"] = year + letter


def leave_section(self, node):
    """Forget a section's title, if it had one: exercises are sections without."""
    if any(isinstance(child, nodes.title) for child in node.children) and self.title_stack:
        self.title_stack.pop()


def setup(app):
    """Connect the parts."""
    # sphinx-codeautolink 0.19 takes a title from each section and fails on those of
    # sphinx-exercise, which have none.
    CodeBlockAnalyser.depart_section = leave_section
    app.add_directive("book-versions", Versions)
    app.connect("config-inited", number_by_name)
    app.connect("config-inited", use_local_mathjax)
    app.connect("config-inited", promise_what_exists)
    app.connect("config-inited", leave_out_sources)
    app.connect("builder-inited", tell_years_apart)
    app.connect("build-finished", copy_mathjax)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("html-page-context", mend_markup)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
