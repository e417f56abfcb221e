"""What the pages show of the ledger: table, graphs, differences, equations of a module."""

import re
from html import escape

from docutils import nodes
from docutils.nodes import make_id
from sphinx.addnodes import pending_xref
from sphinx.util.osutil import relative_uri

from tools.ledger.graph import Node, draw
from tools.ledger.records import FAIL, PASSES, UNCHECKED, VERIFIED

CHAPTER = re.compile(r"book/(\d\d)_")
MARK = {VERIFIED: "✓", PASSES: "○", UNCHECKED: "?", FAIL: "✗"}


class Links:
    """Addresses and link nodes, as one page of the book needs them."""

    def __init__(self, env, builder, docname):
        self.env, self.builder, self.docname = env, builder, docname
        theme = env.config.html_theme_options
        self.repository = theme.get("repository_url", "").rstrip("/")
        self.branch = theme.get("repository_branch") or "main"

    def _resolved(self, domain, role, target):
        node = pending_xref("", refdomain=domain, reftype=role, reftarget=target)
        return self.env.get_domain(domain).resolve_xref(
            self.env, self.docname, self.builder, role, target, node, nodes.inline("", target)
        )

    def equation(self, label):
        """Return the address and the number of an equation."""
        found = self._resolved("math", "eq", label)
        if found is None:
            return "", label
        return _href(found), found.astext()

    def code_href(self, name):
        """Return the address of a function on its API page, empty if it has none."""
        found = self._resolved("py", "obj", name)
        return "" if found is None else _href(found)

    def source(self, file, line):
        """Return the address of a line in the repository."""
        return f"{self.repository}/blob/{self.branch}/{file}#L{line}" if self.repository else ""

    def ledger(self, label):
        """Return the address of an equation's row in the ledger."""
        page = self.env.config.ledger_page
        if self.builder.format != "html" or page not in self.env.found_docs:
            return ""
        here = self.builder.get_relative_uri(self.docname, page) if page != self.docname else ""
        return f"{here}#{row_id(label)}"

    def file(self, name):
        """Return the address of a file beside the pages."""
        return relative_uri(self.builder.get_target_uri(self.docname), name)

    def to_equation(self, label):
        """Return a node that links to an equation."""
        return _xref(self.docname, "math", "eq", label, nodes.inline("", label))

    def code(self, name):
        """Return a node that links to a function, by the last part of its name."""
        return _xref(self.docname, "py", "obj", name, nodes.literal("", name.rpartition(".")[2]))

    def test(self, check):
        """Return a node that links to a test's source."""
        name = nodes.literal("", check.test.rpartition("::")[2])
        uri = self.source(check.file, check.line)
        return nodes.reference("", "", name, refuri=uri, internal=False) if uri else name

    def row(self, label):
        """Return a node that links to an equation's row in the ledger."""
        uri = self.ledger(label)
        return nodes.reference("", "ledger", refuri=uri, internal=True) if uri else None


def _href(found):
    return found.get("refuri") or f"#{found['refid']}"


def _xref(docname, domain, role, target, content):
    return pending_xref(
        "", content, refdoc=docname, refdomain=domain, reftype=role, reftarget=target, refwarn=True
    )


def row_id(label):
    """Return the id of an equation's row in the ledger."""
    return make_id(f"ledger-{label}")


def _raw(html):
    return nodes.raw("", html, format="html")


def _a(href, text):
    return f'<a class="reference" href="{escape(href)}">{text}</a>' if href else text


def _number(value):
    return "0" if value == 0 else f"{value:.2g}"


def _measured(check):
    """Return what a test measured, the number first, so that the column sorts by it."""
    found = []
    if check.residual is not None:
        found.append(f"{_number(check.residual)} of {_number(check.tolerance)}")
    if check.margin is not None:
        found.append(f"{_number(check.margin)} margin")
    if check.order is not None:
        found.append(f"{check.order:.2f} order")
    return ", ".join(found) or "exact"


COLUMNS = ("Equation", "Kind", "Status", "Source", "Checks", "Rests on", "Computed by")


def table(ledger, links, _argument):
    """Return all records as a table; a script of the book makes its columns sortable."""
    head = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS)
    body = "\n".join(_row(record, ledger, links) for record in ledger.records.values())
    data = _a(links.file("ledger.json"), "ledger.json")
    schema = _a(links.file("ledger.schema.json"), "its schema")
    return _raw(
        '<div class="eq-scroll eq-tall" role="region" aria-label="All equations" tabindex="0">'
        '<table class="table eq-table"><caption>Each numbered equation, in reading order. '
        "Press a column’s name to sort by it.</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>"
        f"<p>The same as data: {data}, with {schema}.</p>"
    )


def _row(record, ledger, links):
    label = record.equation.label
    href, number = links.equation(label)
    checks = "".join(_check(check, links) for check in record.checks)
    rests = ", ".join(
        _a(*links.equation(name)) for name in record.equation.premises if name in ledger.records
    )
    code = ", ".join(
        _a(links.code_href(f.name), f"<code>{escape(f.name.removeprefix('lib.'))}</code>")
        for f in record.functions
    )
    source = escape(record.source)
    if record.hypotheses:
        source += f'<br><span class="eq-small">Holds for: {escape(record.hypotheses)}</span>'
    status = f'<span class="eq-mark">{MARK[record.status]}</span> {record.status}'
    cells = (record.kind, status, source, f"<ul>{checks}</ul>" if checks else "", rests, code)
    return (
        f'<tr id="{row_id(label)}"><th scope="row">{_a(href, number)}<br>'
        f'<span class="eq-small">{escape(label)}</span></th>'
        + "".join(f"<td>{cell}</td>" for cell in cells)
        + "</tr>"
    )


def _check(check, links):
    name = f"<code>{escape(check.test.rpartition('::')[2])}</code>"
    slips = "".join(f"<li>{escape(slip)}</li>" for slip in check.slips)
    wrong = "1 wrong form" if len(check.slips) == 1 else f"{len(check.slips)} wrong forms"
    made = check.caught + len(check.survivors)
    if made:
        wrong += f" and {check.caught} of {made} made by machine"
    passing = "".join(
        f"<li>passes: <code>{escape(form)}</code>, {escape(reason)}</li>"
        for form, reason in check.survivors.items()
    )
    caught = (
        f'<details class="eq-small"><summary>catches {wrong}</summary>'
        f"<ul>{slips}{passing}</ul></details>"
        if slips
        else ""
    )
    measured = _measured(check) if check.outcome == "passed" else check.outcome
    return f"<li>{measured}: {_a(links.source(check.file, check.line), name)}{caught}</li>"


FORMS = ("Chapter", "Equations", "Tests", "Written by hand", "Made by machine", "Of these pass")


def forms(ledger, links, _argument):
    """Return, for each chapter and in total, how many wrong forms its tests were given."""
    rows = {}
    for record in ledger.records.values():
        rows.setdefault(_chapter(ledger, record.equation.file), []).append(record)
    rows["All"] = list(ledger.records.values())
    head = "".join(f'<th scope="col">{name}</th>' for name in FORMS)
    body = "\n".join(
        f'<tr><th scope="row">{escape(title)}</th>'
        + "".join(f"<td>{number}</td>" for number in _forms(records))
        + "</tr>"
        for title, records in rows.items()
    )
    return _raw(
        '<table class="table"><caption>The wrong forms that the tests were given. '
        "All that were written by hand are caught.</caption>"
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"
    )


def _chapter(ledger, page):
    """Return the name of the chapter that a page belongs to, or of the page outside of them."""
    chapter = CHAPTER.match(page)
    index = f"{page.rpartition('/')[0]}/index.md"
    title = ledger.titles.get(index if chapter else page, ledger.titles.get(page, page))
    return f"{int(chapter[1])}. {title}" if chapter else title


def _forms(records):
    checks = [check for record in records for check in record.checks]
    passing = sum(len(check.survivors) for check in checks)
    by_hand = sum(len(check.slips) for check in checks)
    made = sum(check.caught for check in checks) + passing
    return len(records), len(checks), by_hand, made, passing


def graphs(ledger, links, _argument):
    """Return one drawing for the whole book and one for each chapter."""
    whole = _graph(ledger, links, list(ledger.records), "book", "The whole book")
    pages = dict.fromkeys(record.equation.file for record in ledger.records.values())
    parts = []
    for count, page in enumerate(pages, 1):
        own = [k for k, record in ledger.records.items() if record.equation.file == page]
        title = ledger.titles.get(page, page)
        if chapter := CHAPTER.match(page):  # several have a page of the same name
            title = f"{int(chapter[1])}. {title}"
        parts.append(_graph(ledger, links, own, f"page{count}", title))
    return _raw("\n".join([whole, *parts]))


def _graph(ledger, links, labels, name, title):
    """Return a drawing of some equations and of what they rest on, with the same in words."""
    own = set(labels)
    shown = list(own.union(*(ledger.records[key].equation.premises for key in labels)))
    shown = [key for key in ledger.records if key in shown]
    drawn, words, alone = [], [], []
    used = {premise for key in labels for premise in ledger.records[key].equation.premises}
    for key in shown:
        record = ledger.records[key]
        href, number = links.equation(key)
        premises = [p for p in record.equation.premises if p in ledger.records and key in own]
        classes = f"eq-{record.status.partition(',')[0].lower()}"
        mark = "" if record.status == VERIFIED else f"{MARK[record.status]} "
        text = f"{mark}{number} {key.removeprefix('eq:')}"
        tip = f"{number} {key}: {record.kind}, {record.status}"
        outside = "" if key in own else " eq-outside"
        drawn.append(Node(key, text, href, tip, classes + outside, premises))
        if premises:
            rests = ", ".join(_a(*links.equation(p)) for p in premises)
            words.append(f"<li>{_a(href, number)} rests on {rests}</li>")
        elif key not in used:
            alone.append(_a(href, number))
    svg = draw(
        drawn,
        f"eq-graph-{name}",
        f"{title}: which equation rests on which",
        "Arrows lead from premises, on the left, to what rests on them. "
        "The list below the drawing says the same in words.",
    )
    rest = f"<p>Neither rests on another nor bears one: {', '.join(alone)}.</p>" if alone else ""
    return (
        f"<h3>{escape(title)}</h3>"
        f'<div class="eq-scroll" role="region" aria-label="Graph: {escape(title)}" tabindex="0">'
        f"{svg}</div>{rest}<details><summary>The same in words</summary>"
        f"<ul>{''.join(words)}</ul></details>"
    )


def differences(ledger, links, _argument):
    """Return one section for each source, with the places where the book differs from it."""
    sections = {}
    for item in sorted(ledger.differences, key=lambda item: (item.source, item.id)):
        if item.source not in sections:
            title = nodes.title("", item.source)
            name = make_id(f"source {item.source}")
            sections[item.source] = nodes.section("", title, ids=[name], names=[name])
        proof = nodes.paragraph("", "", nodes.strong("", "Shown by "), links.test(item))
        if item.label:
            proof += [nodes.Text(", a check of equation "), links.to_equation(item.label)]
        for count, (slip, message) in enumerate(item.rejected.items()):
            proof += nodes.Text("; " if count else ". It rejects: ")
            proof += [nodes.Text(f"{slip} ("), nodes.literal("", message), nodes.Text(")")]
        proof += nodes.Text(".")
        said = [_said("The source says: ", item.theirs), _said("This book says: ", item.ours)]
        box = nodes.container("", *said, proof, classes=["eq-difference"])
        box["ids"] = [make_id(f"differs-{item.id}")]
        sections[item.source] += box
        if any(box.findall(nodes.math)):  # MathJax is loaded where there is mathematics
            links.env.get_domain("math").data["has_equations"][links.docname] = True
    return list(sections.values())


def _said(start, text):
    """Return a paragraph in which ``$…$`` is mathematics and backticks are code."""
    paragraph = nodes.paragraph("", "", nodes.strong("", start))
    for part in re.split(r"(\$[^$]+\$|`[^`]+`)", text):
        if part.startswith("$") and len(part) > 1:
            paragraph += nodes.math(part[1:-1], part[1:-1])
        elif part.startswith("`") and len(part) > 1:
            paragraph += nodes.literal("", part[1:-1])
        else:
            paragraph += nodes.Text(part)
    return paragraph


def counts(ledger, links, _argument):
    """Return one sentence that says how much was checked."""
    n = ledger.counts
    said = nodes.paragraph("", classes=["eq-counts"])
    for strong, text in (
        (f"{n['verified']} of {n['equations']}", " numbered equations verified by "),
        (f"{n['checks']}", " tests, which also caught "),
        (f"{n['controls']}", " deliberately wrong forms and "),
        (f"{n['mutants'] - n['survivors']} of {n['mutants']}", " made by machine; "),
        (f"{n['functions']}", " library functions tied to their equations; "),
        (f"{n['differences']}", " places where a source says otherwise."),
    ):
        said += [nodes.strong("", strong), nodes.Text(text)]
    return said


def code_list(ledger, links, module):
    """Return the functions of a module, each with the equations that it computes."""
    found = {}
    for record in ledger.records.values():
        for function in record.functions:
            if function.name.startswith(f"{module}."):
                found.setdefault(function.name, []).append(record)
    if not found:
        return nodes.paragraph("", "None of this is a numbered equation.")
    listed = nodes.bullet_list()
    for name, records in found.items():
        entry = nodes.paragraph("", "", links.code(name), nodes.Text(" computes "))
        for count, record in enumerate(records):
            entry += nodes.Text(", " if count else "")
            entry += links.to_equation(record.equation.label)
            entry += nodes.Text(f" ({record.kind}, {record.status})")
        listed += nodes.list_item("", entry)
    return listed
