"""Read the numbered equations out of the book's Markdown sources."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.colon_fence import colon_fence_plugin
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.front_matter import front_matter_plugin
from mdit_py_plugins.myst_role import myst_role_plugin

__all__ = ["Book", "Equation", "Problem", "digest", "read_book"]

LABEL = re.compile(r"eq:[a-z0-9]+(-[a-z0-9]+)*")
DIRECTIVE = re.compile(r"\{([\w:.-]+)\}")
# Their content is code or data, not the book's text.
LITERAL = {"code", "code-block", "code-cell", "eval-rst", "literalinclude", "raw", "toctree"}
PROOFS = {"proof", "prf:proof"}
EQ_ROLES = {"eq", "math:numref"}
# A `$$ … $$ (eq:x)` that Markdown took for text, because no blank line is before it.
SWALLOWED = re.compile(r"\$\$\s*\((eq:[^)]*)\)")


@dataclass(frozen=True, order=True)
class Problem:
    """One thing wrong with the ledger, and where it is."""

    file: str
    line: int
    label: str
    message: str

    def __str__(self) -> str:
        """Return ``file:line: label: message``."""
        return f"{self.file}:{self.line}: {self.label}: {self.message}"


@dataclass(frozen=True)
class Equation:
    """A numbered equation as it stands in the book."""

    label: str
    latex: str
    file: str
    line: int
    premises: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Fingerprint of the displayed formula."""
        return digest(self.latex)


@dataclass
class Book:
    """The numbered equations of a book in reading order, its pages, and what is wrong with them."""

    equations: dict[str, Equation] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def digest(latex: str) -> str:
    """Return a fingerprint of a formula that does not change when its lines are only rewrapped."""
    return hashlib.sha256(" ".join(latex.split()).encode()).hexdigest()[:16]


def read_book(root: Path) -> Book:
    """Read every page that ``_toc.yml`` under ``root`` lists, in its order.

    Of a page that exists as ``.md`` and ``.ipynb`` the ``.md`` is read, which is what people edit.
    """
    toc = root / "_toc.yml"
    if not toc.exists():
        raise FileNotFoundError(f"{toc}: the table of contents names the pages; it is not there")
    book = Book()
    for page in _pages(yaml.safe_load(toc.read_text("utf-8"))):
        source = root / f"{page}.md"
        if source.exists():
            _read_page(book, source.relative_to(root).as_posix(), source.read_text("utf-8"))
    return book


def _pages(entry: Any) -> Iterator[str]:
    """Yield the pages of a table of contents in reading order."""
    if isinstance(entry, list):
        for part in entry:
            yield from _pages(part)
    elif isinstance(entry, dict):
        for key, value in entry.items():
            if key in ("root", "file"):
                yield str(value).removesuffix(".md").removesuffix(".ipynb")
            elif isinstance(value, list):
                yield from _pages(value)


@dataclass(frozen=True)
class _Event:
    """What matters of one block: a heading, a text with its references, or an equation."""

    kind: str  # heading, text, proof, equation
    line: int
    text: str = ""
    label: str = ""
    references: tuple[str, ...] = ()


def _parser() -> MarkdownIt:
    """Return a parser that finds equations where MyST finds them (options of Jupyter Book)."""
    parser = MarkdownIt("commonmark").enable("table")
    parser.use(front_matter_plugin).use(myst_role_plugin).use(colon_fence_plugin)
    return parser.use(
        dollarmath_plugin,
        allow_labels=True,
        allow_space=True,
        allow_digits=True,
        double_inline=True,
    )


PARSER = _parser()


def _read_page(book: Book, file: str, text: str) -> None:
    pending: list[str] = []  # references since the last labelled equation or heading
    proved: str | None = None  # the equation that a proof standing here would prove
    for event in _events(text, 0, proof=False):
        if event.kind == "heading":
            pending = []
            book.titles.setdefault(file, event.text)
        elif event.kind == "equation":
            proved = _add(book, file, event, pending)
            pending = []
        elif event.kind == "proof" and proved:
            old = book.equations[proved]
            merged = dict.fromkeys((*old.premises, *event.references))
            merged.pop(proved, None)
            book.equations[proved] = Equation(old.label, old.latex, file, old.line, tuple(merged))
        else:
            pending.extend(event.references)
            for label in SWALLOWED.findall(event.text):
                message = "stands inside a paragraph and gets no number; put a blank line before $$"
                book.problems.append(Problem(file, event.line, label, message))
        if event.kind not in ("equation", "proof"):
            proved = None


def _add(book: Book, file: str, event: _Event, pending: list[str]) -> str | None:
    """Enter one labelled equation; return its label if it was new."""
    label = event.label
    if not LABEL.fullmatch(label):
        message = "labels are written eq:topic-fact, in lower case with hyphens"
        book.problems.append(Problem(file, event.line, label, message))
    if label in book.equations:
        first = book.equations[label]
        message = f"this label is already taken at {first.file}:{first.line}"
        book.problems.append(Problem(file, event.line, label, message))
        return None
    premises = tuple(dict.fromkeys(name for name in pending if name != label))
    book.equations[label] = Equation(label, event.text.strip("\n"), file, event.line, premises)
    return label


def _events(text: str, offset: int, *, proof: bool) -> Iterator[_Event]:
    """Yield the events of Markdown whose first line is line ``offset + 1`` of its file."""
    heading = False
    for token in PARSER.parse(text):
        line = offset + (token.map[0] if token.map else 0) + 1
        if token.type == "heading_open":
            heading = True
        elif token.type == "inline" and heading:
            heading = False
            yield _Event("heading", line, token.content)
        elif token.type == "inline":
            proves = proof or token.content.startswith(("**Proof", "**Derivation"))
            kind = "proof" if proves else "text"
            yield _Event(kind, line, token.content, references=tuple(_references(token)))
        elif token.type == "math_block_label":
            yield _Event("equation", line, token.content, token.info)
        elif token.type in ("fence", "colon_fence"):
            yield from _directive(token, line, proof=proof)


def _directive(token: Token, line: int, *, proof: bool) -> Iterator[_Event]:
    """Yield the events inside a fenced directive; plain fenced code has none."""
    named = DIRECTIVE.match(token.info.strip())
    if not named or named[1] in LITERAL:
        return
    options, skipped = _options(token.content.splitlines())
    body = "\n".join(token.content.splitlines()[skipped:])
    if named[1] == "math":
        if "label" in options:
            yield _Event("equation", line, body, options["label"])
    else:
        yield from _events(body, line + skipped, proof=proof or named[1] in PROOFS)


def _options(lines: list[str]) -> tuple[dict[str, str], int]:
    """Split a directive's option lines from its body; return them and how many lines they took."""
    if lines and lines[0].strip() == "---":
        end = next((i for i, line in enumerate(lines[1:], 1) if line.strip() == "---"), 0)
        read = yaml.safe_load("\n".join(lines[1:end])) or {}
        return {str(k): str(v) for k, v in read.items()}, end + 1
    options: dict[str, str] = {}
    for count, line in enumerate(lines):
        found = re.match(r"\s*:([\w-]+):\s*(.*)", line)
        if not found:
            return options, count
        options[found[1]] = found[2].strip()
    return options, len(lines)


def _references(token: Token) -> Iterator[str]:
    """Yield the labels of equations that a paragraph refers to."""
    for child in token.children or []:
        if child.type == "myst_role" and child.meta["name"] in EQ_ROLES:
            inside = re.fullmatch(r".*<(.+)>\s*", child.content, re.DOTALL)
            yield inside[1] if inside else child.content
        elif child.type == "link_open":
            target = str(child.attrs.get("href", "")).removeprefix("#")
            if target.startswith("eq:"):
                yield target
