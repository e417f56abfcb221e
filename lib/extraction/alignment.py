"""From characters to tokens and back, with a count of everything that does not survive.

A corpus marks entities by characters, a model sees tokens. The way there loses a triple where a
tokenizer sets no border at the border of an entity, or where the entities stand too far apart to be
read together. The functions here lose nothing silently: each triple is either aligned so that
`span_of` gives back exactly its characters, or counted with the reason.
"""

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple

from lib.extraction.triples import Example, Span, Triple

__all__ = [
    "BEYOND_LAST_TOKEN",
    "LONG_TEXT",
    "NOT_ON_BORDERS",
    "NO_TOKEN",
    "TOO_FAR",
    "UNKNOWN_RELATION",
    "WINDOW",
    "Alignment",
    "Loss",
    "Losses",
    "TokenTriple",
    "align",
    "describe_loss",
    "span_of",
    "trim_offsets",
]

Offsets = Sequence[tuple[int, int]]

NOT_ON_BORDERS = "entity not on token borders"
"""An end of the entity lies inside a token, which covers characters outside it as well."""

BEYOND_LAST_TOKEN = "entity beyond the last token"
"""The entity ends after the last token, as the end of the text has no tokens."""

NO_TOKEN = "entity without tokens"
"""No token covers any character of the entity, as the tokenizer left it out."""

UNKNOWN_RELATION = "relation unknown to the model"
"""The triple has a relation that the model cannot name."""

TOO_FAR = "entities too far apart for a window"
"""No window of a long text holds both entities."""

LONG_TEXT = "text read in windows"
"""Counts no triple but a text that is longer than the model reads at once."""

WINDOW = "window of a text"
"""Counts no triple but one window of such a text."""


@dataclass(frozen=True, slots=True, order=True)
class TokenTriple:
    """A triple by the indices of its tokens; ``relation`` is an index too.

    Heads and tails are the first and the last token of an entity, both inclusive:
    ``subject_head <= subject_tail`` and ``object_head <= object_tail``.
    """

    subject_head: int
    subject_tail: int
    relation: int
    object_head: int
    object_tail: int

    def moved(self, by: int) -> "TokenTriple":
        """Return the same triple where so many tokens more stand before it.

        Examples
        --------
        >>> TokenTriple(1, 2, 0, 4, 4).moved(-1)
        TokenTriple(subject_head=0, subject_tail=1, relation=0, object_head=3, object_tail=3)
        """
        return TokenTriple(
            self.subject_head + by,
            self.subject_tail + by,
            self.relation,
            self.object_head + by,
            self.object_tail + by,
        )


class Loss(NamedTuple):
    """A triple that cannot be told to the model, and why."""

    triple: Triple
    role: Literal["subject", "object", "relation", "pair"]
    """What of it cannot be told; the pair, if each entity could be told by itself."""
    reason: str


@dataclass(frozen=True, slots=True)
class Alignment:
    """The triples that have tokens, and those that have not.

    ``len(triples) + len(lost)`` is the number of triples of the example.
    """

    triples: tuple[TokenTriple, ...]
    lost: tuple[Loss, ...]

    @property
    def dropped(self) -> Counter[str]:
        """How many triples are lost, by reason."""
        return Counter(loss.reason for loss in self.lost)


class Losses(Counter[str]):
    """Counts of what was lost, by reason, with the first example of each in words.

    Attributes
    ----------
    first : dict of str to str
        Where the first loss of a reason is and what it is.

    Examples
    --------
    >>> losses = Losses()
    >>> losses.add("entity without tokens", "own.jsonl, line 7")
    >>> losses.add("entity without tokens", "own.jsonl, line 9")
    >>> losses, losses.first
    (Losses({'entity without tokens': 2}), {'entity without tokens': 'own.jsonl, line 7'})
    """

    def __init__(self, *counts: Any) -> None:
        super().__init__(*counts)
        self.first: dict[str, str] = {}

    def add(self, reason: str, example: str) -> None:
        """Count one loss; keep its example if it is the first of its reason."""
        self[reason] += 1
        self.first.setdefault(reason, example)

    def include(self, later: "Losses") -> None:
        """Add the counts of what comes later, and its examples of reasons that are new."""
        self.update(later)
        self.first = later.first | self.first


def describe_loss(example: Example, loss: Loss, offsets: Offsets) -> str:
    """Say where a lost triple is, and what of it is lost.

    Where the offsets would fit if they counted bytes or UTF-16 units, as many programs do, this is
    said.

    Examples
    --------
    >>> text = "\U0001f600\U0001f600 Ada wrote"  # two emoji, each two units of UTF-16
    >>> example = Example("7", text, (Triple(Span(5, 8), "did", Span(3, 6)),))
    >>> offsets = [(0, 2), (3, 6), (7, 12)]
    >>> describe_loss(example, align(example, offsets, {"did": 0}).lost[0], offsets)
    "example '7': subject 'a w' of 'did' (do its offsets count UTF-16 units, not characters?)"
    """
    where = example.source or f"example {example.id!r}"
    if loss.role == "relation":
        return f"{where}: relation {loss.triple.relation!r}"
    if loss.role == "pair":
        ends = (_shown(span.of(example.text)) for span in (loss.triple.subject, loss.triple.object))
        return f"{where}: {' and '.join(ends)} of {loss.triple.relation!r}"
    span = loss.triple.subject if loss.role == "subject" else loss.triple.object
    said = f"{where}: {loss.role} {_shown(span.of(example.text))} of {loss.triple.relation!r}"
    if units := _units(example.text, span, offsets):
        said += f" (do its offsets count {units}, not characters?)"
    return said


def _shown(words: str) -> str:
    return repr(words if len(words) <= 40 else words[:39] + "…")


def _units(text: str, span: Span, offsets: Offsets) -> str | None:
    """Name the units in which a span would fit tokens, or begin with one as it does not here."""
    starts = {start for start, end in offsets if start < end}
    ends = {end for start, end in offsets if start < end}
    for units, encoding, size in (("UTF-16 units", "utf-16-le", 2), ("bytes", "utf-8", 1)):
        lengths = accumulate((len(char.encode(encoding)) // size for char in text), initial=0)
        character = {length: index for index, length in enumerate(lengths)}
        start, end = character.get(span.start), character.get(span.end)
        if start in starts and start != span.start and (end in ends or span.start not in starts):
            return units
    return None


def trim_offsets(text: str, offsets: Offsets) -> tuple[tuple[int, int], ...]:
    r"""Return the offsets of a tokenizer in the form that `align` and `span_of` need.

    Some tokenizers count the space before a word to its token; here the white space at both ends
    of a token is cut off. Some take accents away and leave them out of their offsets too; here a
    token is widened over the combining marks behind it that no token covers, since what a reader
    sees as one letter is one thing to mark. A token left empty, or one that steps back behind the
    token before it, stands for no characters: it becomes ``(0, 0)``, as special tokens are.

    Parameters
    ----------
    text : str
        The text that was tokenised.
    offsets : sequence of (int, int)
        Characters ``[start, end)`` of each token; ``start == end`` for special tokens.

    Returns
    -------
    tuple of (int, int)
        As many as given. Starts and ends of the tokens that are not ``(0, 0)`` never decrease, so
        any two of them in order enclose a span.

    Raises
    ------
    ValueError
        If an offset is reversed or lies outside the text.

    Examples
    --------
    >>> trim_offsets("Ada wrote", [(0, 0), (0, 3), (3, 9), (0, 0)])
    ((0, 0), (0, 3), (4, 9), (0, 0))
    >>> trim_offsets("Cafe\u0301 Oslo", [(0, 4), (6, 10)])  # the accent has no token of its own
    ((0, 5), (6, 10))
    """
    loose = _loose_marks(text, offsets)
    trimmed = []
    last_start = last_end = 0
    for index, (start, end) in enumerate(offsets):
        if not 0 <= start <= end <= len(text):
            raise ValueError(
                f"offsets[{index}] must satisfy 0 <= start <= end <= {len(text)} (the length of "
                f"the text), got ({start}, {end})"
            )
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        while start < end and end in loose:
            end += 1
        if start == end or start < last_start or end < last_end:
            trimmed.append((0, 0))
        else:
            trimmed.append((start, end))
            last_start, last_end = start, end
    return tuple(trimmed)


def _loose_marks(text: str, offsets: Offsets) -> set[int]:
    """Find the combining marks of a text that no token covers."""
    if text.isascii():  # most texts; it has no marks
        return set()
    marks = {at for at, char in enumerate(text) if unicodedata.category(char)[0] == "M"}
    for start, end in offsets if marks else ():
        marks.difference_update(range(start, end))
    return marks


def span_of(offsets: Offsets, head: int, tail: int) -> Span:
    """Return the characters from the first character of one token to the last of another.

    Parameters
    ----------
    offsets : sequence of (int, int)
        As `trim_offsets` returns them.
    head, tail : int
        ``0 <= head <= tail < len(offsets)``, both tokens with characters.

    Raises
    ------
    ValueError
        If the order is wrong, an index is out of range or a token has no characters.

    Examples
    --------
    >>> span_of([(0, 0), (0, 3), (4, 9)], 1, 2)
    Span(start=0, end=9)
    """
    if not 0 <= head <= tail < len(offsets):
        raise ValueError(
            f"tokens must satisfy 0 <= head <= tail < {len(offsets)} (the number of tokens), "
            f"got head={head} and tail={tail}"
        )
    for name, token in (("head", head), ("tail", tail)):
        start, end = offsets[token]
        if start >= end:
            raise ValueError(
                f"{name}={token} is a token without characters: its offsets are ({start}, {end})"
            )
    return Span(offsets[head][0], offsets[tail][1])


def align(example: Example, offsets: Offsets, relation_ids: Mapping[str, int]) -> Alignment:
    """Turn the triples of an example into indices of tokens.

    An entity gets the tokens that share a character with it, if these tokens together cover
    exactly its characters. Widening an entity to whole tokens instead would teach a model spans
    that no annotation holds, and would hide the loss.

    Parameters
    ----------
    example : Example
        Text and triples.
    offsets : sequence of (int, int)
        As `trim_offsets` returns them, for the tokens of ``example.text``.
    relation_ids : mapping of str to int
        The index of each relation.

    Returns
    -------
    Alignment
        Each triple of the example is either in ``triples``, in the order of the example, with
        ``span_of(offsets, head, tail)`` equal to its spans, or in ``lost`` under
        `UNKNOWN_RELATION`, if its relation has no index, else under `NOT_ON_BORDERS`,
        `BEYOND_LAST_TOKEN` or `NO_TOKEN`, by its subject if both fail.

    Examples
    --------
    >>> from lib.extraction.triples import Triple
    >>> example = Example("1", "Ada wrote", (Triple(Span(0, 3), "did", Span(4, 9)),
    ...                                      Triple(Span(0, 3), "did", Span(4, 7))))
    >>> alignment = align(example, [(0, 0), (0, 3), (4, 6), (6, 9), (0, 0)], {"did": 0})
    >>> alignment.triples
    (TokenTriple(subject_head=1, subject_tail=1, relation=0, object_head=2, object_tail=3),)
    >>> alignment.dropped
    Counter({'entity not on token borders': 1})
    """
    found: dict[Span, tuple[int, int] | str] = {}
    triples = []
    lost = []
    for triple in example.triples:
        if triple.relation not in relation_ids:
            lost.append(Loss(triple, "relation", UNKNOWN_RELATION))
            continue
        for span in (triple.subject, triple.object):
            if span not in found:
                found[span] = _tokens_of(span, offsets)
        subject, object_ = found[triple.subject], found[triple.object]
        if isinstance(subject, str):
            lost.append(Loss(triple, "subject", subject))
        elif isinstance(object_, str):
            lost.append(Loss(triple, "object", object_))
        else:
            relation = relation_ids[triple.relation]
            triples.append(TokenTriple(*subject, relation, *object_))
    return Alignment(tuple(triples), tuple(lost))


def _tokens_of(span: Span, offsets: Offsets) -> tuple[int, int] | str:
    """Return the first and the last token of a span, or why it has none."""
    covering = [
        index
        for index, (start, end) in enumerate(offsets)
        if start < end and start < span.end and span.start < end
    ]
    if max((end for _, end in offsets), default=0) < span.end:
        return BEYOND_LAST_TOKEN
    if not covering:
        return NO_TOKEN
    head, tail = covering[0], covering[-1]
    if (offsets[head][0], offsets[tail][1]) != (span.start, span.end):
        return NOT_ON_BORDERS
    return head, tail
