"""Triples as plain data: spans of characters, triples of spans, sentences with their triples.

Everything that extraction does, from reading a corpus to scoring a model, is said in these three
classes. Positions count characters (Unicode code points, as Python's ``str`` does), never tokens
and never bytes, so no tokenizer is needed to read, write or compare triples.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Literal

from lib.extraction.places import (
    OCCURRENCES,
    Occurrence,
    best_places,
    nearest_pair,
    places,
    trim,
    whole_words,
)

__all__ = [
    "BLANK",
    "INSIDE_A_WORD",
    "LOUD",
    "PATTERNS",
    "REPEATED",
    "SEVERAL",
    "TRIMMED",
    "Corpus",
    "Example",
    "Span",
    "Triple",
    "digest",
    "example_from_json",
    "example_to_json",
    "is_nested",
    "occurrences",
    "overlap_patterns",
    "trim_entities",
]

PATTERNS = ("Normal", "EPO", "SEO", "SOO")
"""The overlap patterns, in the order in which tables show them."""

SEVERAL = "entity that occurs several times"
"""A note that one of the occurrences was chosen."""

INSIDE_A_WORD = "entity that occurs only inside a word"
"""A note that the annotation cuts a word, as the text is written."""

TRIMMED = "entity trimmed of white space at its ends"
"""A note that characters which no reader sees were cut off."""

BLANK = "entity of white space alone"
"""A reason for dropping a triple, of which nothing is left of an entity."""

REPEATED = "triple repeated"
"""A reason for dropping a triple, which the example has already."""

LOUD = 0.05
"""The share of triples from which on a loss is warned of."""


@dataclass(frozen=True, slots=True, order=True, repr=False)
class Span:
    """The characters ``[start, end)`` of a text.

    Parameters
    ----------
    start, end : int
        ``0 <= start < end``. A span is never empty.
    type : str
        What kind of entity it is, such as ``"Person"``; empty if nothing is said. It is carried
        along and does not count when spans are compared: boundaries are scored without it.

    Raises
    ------
    ValueError
        If the bounds are negative, equal or reversed.

    Examples
    --------
    >>> span = Span(4, 7)
    >>> span.of("See Ada write"), len(span)
    ('Ada', 3)
    >>> span.overlaps(Span(6, 9)), span.overlaps(Span(7, 9))
    (True, False)
    >>> Span(4, 7, "Person"), Span(4, 7, "Person") == span
    (Span(start=4, end=7, type='Person'), True)
    """

    start: int
    end: int
    type: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        """Refuse bounds that enclose no character."""
        if not 0 <= self.start < self.end:
            raise ValueError(
                f"a span needs 0 <= start < end, got start={self.start} and end={self.end}"
            )

    def __repr__(self) -> str:
        """Name the type only where there is one."""
        kind = f", type={self.type!r}" if self.type else ""
        return f"Span(start={self.start}, end={self.end}{kind})"

    def __len__(self) -> int:
        """Return the number of characters."""
        return self.end - self.start

    def of(self, text: str) -> str:
        """Return the characters of `text` that the span covers."""
        return text[self.start : self.end]

    def overlaps(self, other: "Span") -> bool:
        """Tell whether the two spans share a character."""
        return self.start < other.end and other.start < self.end

    def inside(self, other: "Span") -> bool:
        """Tell whether the span lies within `other` and is not equal to it."""
        return other.start <= self.start and self.end <= other.end and self != other


@dataclass(frozen=True, slots=True, order=True)
class Triple:
    """A subject, the name of a relation, and an object.

    Examples
    --------
    >>> Triple(Span(0, 3), "wrote", Span(10, 15)).relation
    'wrote'
    """

    subject: Span
    relation: str
    object: Span


@dataclass(frozen=True, slots=True)
class Example:
    """One text with the triples it states.

    Parameters
    ----------
    id : str
        Names the example in messages and in predictions.
    text : str
        May be empty.
    triples : tuple of Triple
        All different, all within the text. The order carries no meaning and is kept.
    source : str
        Where the example was read, such as ``"own.jsonl, line 7"``, for messages. It does not count
        when examples are compared.

    Raises
    ------
    ValueError
        If a span ends after the text, a triple stands there twice, or a string holds half of a
        surrogate pair, which no tokenizer and no UTF-8 file takes.

    Examples
    --------
    >>> Example("1", "Ada wrote Notes", (Triple(Span(0, 3), "wrote", Span(10, 15)),)).strings()
    (('Ada', 'wrote', 'Notes'),)
    """

    id: str
    text: str
    triples: tuple[Triple, ...] = ()
    source: str = field(default="", compare=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse spans outside the text, repeated triples and strings that are not Unicode."""
        strings = [("id", self.id), ("text", self.text)]
        for t in self.triples:
            strings.append(("relation", t.relation))
            strings += [("type", span.type) for span in (t.subject, t.object) if span.type]
        for name, string in strings:
            try:
                string.encode()
            except UnicodeEncodeError as error:
                raise ValueError(
                    f"example {self.id!r}: {name} holds {string[error.start]!r}, half of a "
                    f"surrogate pair, at character {error.start}"
                ) from error
        for triple in self.triples:
            for role, span in (("subject", triple.subject), ("object", triple.object)):
                if span.end > len(self.text):
                    raise ValueError(
                        f"example {self.id!r}: the {role} of relation {triple.relation!r} ends at "
                        f"character {span.end}, but the text has {len(self.text)}"
                    )
        repeated = [triple for triple, count in Counter(self.triples).items() if count > 1]
        if repeated:
            raise ValueError(f"example {self.id!r}: {repeated[0]} is given more than once")

    def strings(self) -> tuple[tuple[str, str, str], ...]:
        """Return the triples with the characters in place of the spans."""
        return tuple(
            (t.subject.of(self.text), t.relation, t.object.of(self.text)) for t in self.triples
        )


@dataclass(frozen=True, slots=True)
class Corpus:
    """Sentences in splits, with what a run record must say about them.

    Attributes
    ----------
    name : str
        ``"conll04"``, ``"synthetic:0"``, the name of a reader's folder, …
    licence : str
        One sentence on what the licence of the data allows.
    relations : tuple of str
        The names of all relations, sorted.
    train, dev, test : tuple of Example
        The splits; empty where the corpus has none.
    dropped : Counter of str
        How many triples of the source are not in the splits, by split and reason.
    notes : Counter of str
        What was decided in reading and lost nothing, by split and kind: an entity that occurs
        several times, say.
    match : {"exact", "text", "partial"}
        The rule of `lib.extraction.metrics.evaluate_triples` that fits the annotation.
    sha256 : str
        Digest of all splits as read, so that equal digests mean equal examples in equal order.
    files : dict of str to str
        The sha256 of each file read; empty for generated corpora.
    extra : dict of str to tuple of Example
        Further splits by name.
    """

    name: str
    licence: str
    relations: tuple[str, ...]
    train: tuple[Example, ...]
    dev: tuple[Example, ...]
    test: tuple[Example, ...]
    dropped: Counter[str]
    match: Literal["exact", "text", "partial"]
    sha256: str
    notes: Counter[str] = field(default_factory=Counter)
    files: dict[str, str] = field(default_factory=dict)
    extra: dict[str, tuple[Example, ...]] = field(default_factory=dict)

    def splits(self) -> dict[str, tuple[Example, ...]]:
        """Return all splits that hold examples, by name."""
        named = {"train": self.train, "dev": self.dev, "test": self.test, **self.extra}
        return {name: examples for name, examples in named.items() if examples}

    def split(self, name: str) -> tuple[Example, ...]:
        """Return one split.

        Raises
        ------
        ValueError
            If the corpus has no examples under this name.
        """
        splits = self.splits()
        if name not in splits:
            raise ValueError(
                f"corpus {self.name!r} has no split {name!r}; it has {', '.join(splits)}"
            )
        return splits[name]


def digest(splits: Mapping[str, Iterable[Example]]) -> str:
    """Return the sha256 of splits: of their names and their records, in order.

    Types of entities do not count, as they do not when examples are compared.

    Examples
    --------
    >>> digest({"train": [Example("1", "Ada")]})[:12]
    '0a291d05af7b'
    """
    hasher = hashlib.sha256()
    for name, examples in splits.items():
        hasher.update(f"{name}\n".encode())
        for example in examples:
            record = example_to_json(example)
            for triple in record["triples"]:
                for role in ("subject", "object"):
                    triple[role].pop("type", None)
            line = json.dumps(record, ensure_ascii=True, sort_keys=True)
            hasher.update(f"{line}\n".encode())
    return hasher.hexdigest()


def overlap_patterns(triples: Iterable[Triple]) -> frozenset[str]:
    """Name the ways in which the triples of one text share entities.

    An entity is a span, a pair is the unordered pair of a triple's subject and object. Then

    - ``"EPO"`` (entity pair overlap): some pair carries two triples or more;
    - ``"SEO"`` (single entity overlap): two different pairs share an entity;
    - ``"SOO"`` (subject object overlap): subject and object of some triple share a character;
    - ``"Normal"``: neither EPO nor SEO.

    The patterns are not exclusive: a text may be EPO and SEO at once, and SOO goes with any of
    the others.

    Parameters
    ----------
    triples : iterable of Triple
        The triples of one text. Repeated triples count once.

    Returns
    -------
    frozenset of str
        Members of `PATTERNS`. A text without triples is ``{"Normal"}``.

    Notes
    -----
    EPO and SEO after Zeng et al. (ACL 2018, section 1), SOO after Zheng et al. (PRGC, ACL 2021,
    section 1). A triple whose subject is its object is one pair of one entity: it makes a text
    SOO, but by itself not SEO.

    Examples
    --------
    >>> a, b, c = Span(0, 3), Span(4, 7), Span(8, 12)
    >>> sorted(overlap_patterns([Triple(a, "r", b), Triple(b, "q", a)]))
    ['EPO']
    >>> sorted(overlap_patterns([Triple(a, "r", b), Triple(a, "r", c)]))
    ['SEO']
    >>> sorted(overlap_patterns([Triple(Span(0, 7), "r", b)]))
    ['Normal', 'SOO']
    """
    distinct = set(triples)
    pairs = {frozenset((t.subject, t.object)) for t in distinct}
    found = set()
    if len(pairs) < len(distinct):
        found.add("EPO")
    if any(a & b for a, b in combinations(pairs, 2)):
        found.add("SEO")
    if not found:
        found.add("Normal")
    if any(t.subject.overlaps(t.object) for t in distinct):
        found.add("SOO")
    return frozenset(found)


def is_nested(triples: Iterable[Triple]) -> bool:
    """Tell whether one entity of a text lies inside another.

    Examples
    --------
    >>> is_nested([Triple(Span(0, 9), "r", Span(12, 15)), Triple(Span(6, 9), "q", Span(12, 15))])
    True
    >>> is_nested([Triple(Span(0, 9), "r", Span(12, 15))])
    False
    """
    entities = {span for t in triples for span in (t.subject, t.object)}
    return any(a.inside(b) or b.inside(a) for a, b in combinations(entities, 2))


def occurrences(text: str, part: str) -> list[Span]:
    """List all places where `part` stands in `text`, overlapping ones included.

    Examples
    --------
    >>> occurrences("anana", "ana")
    [Span(start=0, end=3), Span(start=2, end=5)]
    >>> occurrences("anana", "")
    []
    """
    return [Span(*place) for place in places(text, part)]


def trim_entities(example: Example) -> tuple[Example, Counter[str], Counter[str]]:
    """Cut white space and characters without width off the ends of the entities.

    Returns
    -------
    example : Example
        The same one if there is nothing to cut.
    dropped : Counter of str
        Triples that are gone: under `BLANK` those of an entity of which nothing is left, under
        `REPEATED` those that have become equal to another.
    notes : Counter of str
        Under `TRIMMED` how many entities were cut.

    Examples
    --------
    >>> example = Example("1", "Ada wrote Notes", (Triple(Span(0, 4), "wrote", Span(9, 15)),))
    >>> trim_entities(example)[0].strings(), trim_entities(example)[2][TRIMMED]
    ((('Ada', 'wrote', 'Notes'),), 2)
    """
    # A span is found whatever its type is; each mention keeps its own.
    entities = {span for t in example.triples for span in (t.subject, t.object)}
    found = {span: trim(example.text, (span.start, span.end)) for span in entities}
    gone = {span for span, (start, end) in found.items() if start == end}
    notes: Counter[str] = Counter()
    notes[TRIMMED] = sum(found[s] != (s.start, s.end) for s in entities - gone)
    notes = +notes
    if not gone and not notes:
        return example, Counter(), notes
    left = [t for t in example.triples if not {t.subject, t.object} & gone]
    triples = dict.fromkeys(
        Triple(
            Span(*found[t.subject], t.subject.type),
            t.relation,
            Span(*found[t.object], t.object.type),
        )
        for t in left
    )
    dropped = {BLANK: len(example.triples) - len(left), REPEATED: len(left) - len(triples)}
    return replace(example, triples=tuple(triples)), +Counter(dropped), notes


def example_to_json(example: Example) -> dict[str, Any]:
    """Return the record of an example in the JSON-lines format of the book.

    Each entity is written with its text and both ends, so that reading needs no search, and with
    its type if it has one.

    Examples
    --------
    >>> example = Example("1", "Ada wrote Notes", (Triple(Span(0, 3), "wrote", Span(10, 15)),))
    >>> example_to_json(example)["triples"][0]["subject"]
    {'text': 'Ada', 'start': 0, 'end': 3}
    >>> example_from_json(example_to_json(example)) == example
    True
    """

    def entity(span: Span) -> dict[str, Any]:
        place = {"text": span.of(example.text), "start": span.start, "end": span.end}
        return place | ({"type": span.type} if span.type else {})

    return {
        "id": example.id,
        "text": example.text,
        "triples": [
            {"subject": entity(t.subject), "relation": t.relation, "object": entity(t.object)}
            for t in example.triples
        ],
    }


def example_from_json(
    record: object,
    *,
    default_id: str = "",
    labelled: bool = True,
    occurrence: Occurrence = "refuse",
    notes: Counter[str] | None = None,
) -> Example:
    """Read the record of an example in the JSON-lines format of the book.

    Parameters
    ----------
    record : dict
        ``{"id": …, "text": …, "triples": [{"subject": …, "relation": …, "object": …}]}``. ``id``
        may be missing. A subject or object is a string that occurs in the text, or
        ``{"text": …, "start": …}``, or ``{"start": …, "end": …}``, or all three. Beside these,
        ``"type"`` may name the kind of entity.
    default_id : str
        The id of a record that brings none.
    labelled : bool
        Whether ``triples`` must be there. With ``False`` a record without it has no triples.
    occurrence : {"refuse", "first", "nearest"}
        What an entity means that is given as a string and occurs several times. Where exactly one
        occurrence is a whole word, it means that one. Else "refuse" raises an error; "first" takes
        the first one of `lib.extraction.places.best_places`, the same in all triples of the
        record; "nearest" takes for each triple those of them that stand nearest to each other.
    notes : Counter of str, optional
        Receives the number of entities that occur several times, or only inside words, or that
        occur without the white space at their ends.

    Returns
    -------
    Example
        A triple that is repeated in the record stands in the example once.

    Raises
    ------
    ValueError
        If a field is missing or of the wrong type, an entity is not in the text, occurs several
        times and this is refused, or contradicts its offsets; or if `occurrence` is unknown.

    Examples
    --------
    >>> record = {"text": "Ada wrote Notes",
    ...           "triples": [{"subject": "Ada", "relation": "wrote", "object": "Notes"}]}
    >>> example_from_json(record, default_id="1").triples
    (Triple(subject=Span(start=0, end=3), relation='wrote', object=Span(start=10, end=15)),)
    """
    notes = Counter() if notes is None else notes
    if occurrence not in OCCURRENCES:
        raise ValueError(f"occurrence must be one of {OCCURRENCES}, got {occurrence!r}")
    if not isinstance(record, Mapping):
        raise ValueError(f"expected a JSON object, got {_kind(record)}")
    text = _field(record, "text", "the record")
    given = record.get("id", default_id)
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise ValueError(f"'id' must be a string or a whole number, got {_kind(given)}")
    if "triples" not in record and labelled:
        raise ValueError("the record has no 'triples' (a text without triples has an empty list)")
    raw = record.get("triples", [])
    if not isinstance(raw, list):
        raise ValueError(f"'triples' must be a list, got {_kind(raw)}")
    stated = []
    types = []
    for number, item in enumerate(raw, start=1):
        if not isinstance(item, Mapping):
            raise ValueError(f"triple {number} must be a JSON object, got {_kind(item)}")
        relation = _field(item, "relation", f"triple {number}")
        if not relation:
            raise ValueError(f"triple {number}: 'relation' is empty")
        subject, object_ = (
            _entity(item.get(role), text, f"triple {number}: {role}", notes)
            for role in ("subject", "object")
        )
        stated.append((subject, relation, object_))
        types.append(
            tuple(_type(item[role], f"triple {number}: {role}") for role in ("subject", "object"))
        )
    placed = _placed(text, stated, occurrence, notes)
    triples = [
        Triple(
            Span(t.subject.start, t.subject.end, its),
            t.relation,
            Span(t.object.start, t.object.end, other),
        )
        for t, (its, other) in zip(placed, types, strict=True)
    ]
    return Example(str(given), text, tuple(dict.fromkeys(triples)))


def _placed(
    text: str,
    stated: list[tuple[Span | str, str, Span | str]],
    occurrence: Occurrence,
    notes: Counter[str],
) -> list[Triple]:
    """Find the places of the entities that are given as strings, all of which occur."""
    given = [entity for subject, _, object_ in stated for entity in (subject, object_)]
    options: dict[str, list[tuple[int, int]]] = {}
    for entity in dict.fromkeys(e for e in given if isinstance(e, str)):
        found = places(text, entity)
        whole = whole_words(text, found)
        options[entity] = whole or found
        if len(options[entity]) > 1 and occurrence == "refuse":
            number, role = divmod(given.index(entity), 2)
            raise ValueError(
                f"triple {number + 1}: {('subject', 'object')[role]} {entity!r} occurs "
                f"{len(options[entity])} times in the text; say which with "
                '{"text": …, "start": …}, or have one chosen: --occurrence first or nearest'
            )
        notes[SEVERAL] += len(whole) > 1
        notes[INSIDE_A_WORD] += not whole
    if any(len(found) > 1 for found in options.values()):
        likely = best_places(text, [e if isinstance(e, str) else e.of(text) for e in given])
        most = 1 if occurrence == "first" else None
        options = {entity: likely[entity][:most] for entity in options}
    triples = []
    for subject, relation, object_ in stated:
        pair = nearest_pair(
            *(
                options[entity] if isinstance(entity, str) else [(entity.start, entity.end)]
                for entity in (subject, object_)
            )
        )
        triples.append(Triple(Span(*pair[0]), relation, Span(*pair[1])))
    return triples


def _kind(value: object) -> str:
    """Name the JSON type of a value, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", type(None): "nothing (null)"}
    return names.get(type(value), repr(value))


def _field(record: Mapping[str, Any], name: str, where: str) -> str:
    """Return a field that must be a string."""
    if name not in record:
        raise ValueError(f"{where} has no {name!r}")
    value = record[name]
    if not isinstance(value, str):
        raise ValueError(f"{where}: {name!r} must be a string, got {_kind(value)}")
    return value


def _type(value: object, where: str) -> str:
    """Return the type that one entity of a record has, if it names one."""
    if not isinstance(value, Mapping) or value.get("type") is None:
        return ""
    return _field(value, "type", where)


def _entity(value: object, text: str, where: str, notes: Counter[str]) -> Span | str:
    """Return the span that one entity of a record means, or the words that are to be found."""
    if isinstance(value, str):
        if not value:
            raise ValueError(f"{where} is empty")
        if value in text:
            return value
        seen = slice(*trim(value, (0, len(value))))
        if not value[seen] or value[seen] not in text:
            raise ValueError(f"{where} {value!r} does not occur in the text")
        notes[TRIMMED] += 1
        return value[seen]
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a string or an object, got {_kind(value)}")
    start, end, words = value.get("start"), value.get("end"), value.get("text")
    for name, bound in (("start", start), ("end", end)):
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, int)):
            raise ValueError(f"{where}: {name!r} must be a whole number, got {_kind(bound)}")
    if words is not None and not isinstance(words, str):
        raise ValueError(f"{where}: 'text' must be a string, got {_kind(words)}")
    if start is None:
        if end is None and words is not None:
            return _entity(words, text, where, notes)
        raise ValueError(f"{where} has no 'start'")
    if end is None:
        if words is None:
            raise ValueError(f"{where} needs 'text' or 'end' beside 'start'")
        end = start + len(words)
    if not 0 <= start < end <= len(text):
        raise ValueError(
            f"{where}: [{start}, {end}) is not a span of the text, which has {len(text)} characters"
        )
    if words is not None and text[start:end] != words:
        raise ValueError(
            f"{where}: characters [{start}, {end}) are {text[start:end]!r}, expected {words!r}"
        )
    return Span(start, end)
