"""What all importers share: records, offsets in any unit, and the count of what is lost."""

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.extraction.corpora.jsonl import MalformedLinesError, Reading, parse_lines
from lib.extraction.jsontext import parse_json
from lib.extraction.triples import REPEATED, Example, Span, Triple

__all__ = [
    "ALONE",
    "MISSING",
    "OUTSIDE",
    "PIECES",
    "UNLIKE",
    "End",
    "Gathering",
    "between",
    "decode",
    "json_records",
    "keyed",
    "name",
    "positions",
    "same_words",
    "span_at",
    "token_spans",
]

MISSING = "relation to an entity that is not there"
PIECES = "entity in several pieces"
OUTSIDE = "entity outside its text"
UNLIKE = "entity whose offsets do not give its words"
ALONE = "entity in no relation"

End = Span | str
"""An entity, or the reason why there is none."""


class Gathering:
    """The examples of a source, and what is lost, decided or malformed in it."""

    def __init__(self) -> None:
        self.examples: list[Example] = []
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.samples: dict[str, str] = {}
        self.faults: list[str] = []

    def drop(self, reason: str, where: str, count: int = 1) -> None:
        """Count triples that are lost."""
        self.dropped[reason] += count
        self.samples.setdefault(reason, where)

    def note(self, kind: str, where: str, count: int = 1) -> None:
        """Count what loses no triple."""
        if count:
            self.notes[kind] += count
            self.samples.setdefault(kind, where)

    def link(
        self,
        entities: Mapping[Hashable, End],
        subject: Hashable,
        relation: str,
        object_: Hashable,
        where: str,
    ) -> Iterator[Triple]:
        """Yield the triple of two entities, or none, which is counted."""
        for end in (subject, object_):
            found = entities.get(end, MISSING)
            if isinstance(found, str):
                self.drop(found, f"{where}: {subject} {relation} {object_}, {end!r}")
                return
        first, second = entities[subject], entities[object_]
        assert isinstance(first, Span)
        assert isinstance(second, Span)
        yield Triple(first, relation, second)

    def add(
        self,
        id: str,
        text: str,
        triples: Iterable[Triple],
        where: str,
        entities: Iterable[End] = (),
    ) -> None:
        """Add a text; `entities` are all that it has, also those in no relation."""
        stated = list(triples)
        distinct = tuple(dict.fromkeys(stated))
        if len(distinct) < len(stated):
            twice = next(t for n, t in enumerate(stated) if t in stated[:n])
            words = f"{twice.subject.of(text)!r} {twice.relation} {twice.object.of(text)!r}"
            self.drop(REPEATED, f"{where}: {words}", len(stated) - len(distinct))
        used = {span for t in distinct for span in (t.subject, t.object)}
        alone = [e for e in entities if isinstance(e, Span) and e not in used]
        if alone:
            self.note(ALONE, f"{where}: {alone[0].of(text)!r}", len(alone))
        try:
            self.examples.append(Example(id, text, distinct, where))
        except ValueError as error:
            self.faults.append(f"{where}: {error}")

    def reading(self) -> Reading:
        """Return what was gathered.

        Raises
        ------
        MalformedLinesError
            If anything was malformed.
        """
        if self.faults:
            raise MalformedLinesError(self.faults)
        return Reading(tuple(self.examples), self.dropped, self.notes, self.samples)


def decode(data: bytes, where: str) -> str:
    """Return the text of a UTF-8 file without its byte order mark.

    Raises
    ------
    ValueError
        If it is not UTF-8.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{where} must be UTF-8, got UTF-16: iconv -f UTF-16 -t UTF-8 converts it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} must be UTF-8, got {data[error.start]:#04x} at byte "
                         f"{error.start + 1}") from error  # fmt: skip


def json_records(
    path: Path,
    gathering: Gathering,
    read: Callable[[Mapping[str, Any], str, str], object],
) -> None:
    """Read a JSON array, an object a line or one object; call `read` with each, its id and place.

    What `read` finds malformed (it raises a ``ValueError``, or asks for what is not there) is noted
    among the faults.
    """
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    decode(data, str(path))
    records: Iterable[tuple[int, Any]]
    try:
        whole = parse_json(data)
    except ValueError as error:
        if data.lstrip()[:1] == b"[":
            raise ValueError(f"{path}: {error}") from error
        records, kind = parse_lines(data, str(path), gathering.faults), "line"
    else:
        records = enumerate(whole if isinstance(whole, list) else [whole], start=1)
        kind = "record" if b"\n" in data.strip() or isinstance(whole, list) else "line"
    for number, record in records:
        where = f"{path}, {kind} {number}"
        if not isinstance(record, Mapping):
            gathering.faults.append(f"{where}: a record must be an object, got {record!r:.60}")
            continue
        try:
            read(record, str(record.get("id", number)), where)
        except KeyError as error:
            gathering.faults.append(f"{where}: the record must have {error}, got none")
        except (TypeError, AttributeError, IndexError, ValueError) as error:
            gathering.faults.append(f"{where}: {error}")


def positions(text: str) -> list[int | None]:
    """Return the character that each UTF-16 unit begins; None inside a pair.

    JavaScript counts so: an emoji is two units there and one character here.

    Examples
    --------
    >>> positions("a😀b")
    [0, 1, None, 2, 3]
    """
    found: list[int | None] = []
    for index, char in enumerate(text):
        found += [index] if ord(char) < 0x10000 else [index, None]
    return [*found, len(text)]


def span_at(
    places: Sequence[int | None] | None, text: str, start: object, end: object, type: str
) -> End:
    """Return the span from offsets in characters or, with `places`, in the units of these."""
    for bound in (start, end):
        if isinstance(bound, bool) or not isinstance(bound, int):
            raise ValueError(f"offsets must be whole numbers, got {bound!r}")
    assert isinstance(start, int)
    assert isinstance(end, int)
    if not 0 <= start < end <= (len(text) if places is None else len(places) - 1):
        return OUTSIDE
    if places is None:
        return Span(start, end, type)
    first, last = places[start], places[end]
    return OUTSIDE if first is None or last is None else Span(first, last, type)


def same_words(found: str, stated: str) -> bool:
    """Tell whether two strings agree but for white space, which tools write in their own ways."""
    return found.split() == stated.replace("\\n", "\n").split()


def keyed(pairs: Iterable[tuple[Hashable, End]]) -> dict[Hashable, End]:
    """Return entities by their ids.

    Raises
    ------
    ValueError
        If two have one id: nobody knows which of them a relation means.
    """
    found: dict[Hashable, End] = {}
    for key, entity in pairs:
        if key in found:
            raise ValueError(f"an entity's id must be given once, got {key!r} again")
        found[key] = entity
    return found


def token_spans(tokens: Sequence[object]) -> tuple[str, list[Span]]:
    """Join tokens by single spaces; return the text and where each token stands.

    Raises
    ------
    ValueError
        If one is no string, or empty.
    """
    spans = []
    start = 0
    for token in tokens:
        if not isinstance(token, str) or not token:
            raise ValueError(f"tokens must be strings that are not empty, got {token!r}")
        spans.append(Span(start, start + len(token)))
        start += len(token) + 1
    return " ".join(map(str, tokens)), spans


def between(spans: Sequence[Span], first: object, last: object, type: str) -> End:
    """Return the span of the tokens from `first` up to `last`, which is excluded."""
    for bound in (first, last):
        if isinstance(bound, bool) or not isinstance(bound, int):
            raise ValueError(f"token numbers must be whole numbers, got {bound!r}")
    assert isinstance(first, int)
    assert isinstance(last, int)
    if not 0 <= first < last <= len(spans):
        return OUTSIDE
    return Span(spans[first].start, spans[last - 1].end, type)


def name(value: object, what: str) -> str:
    """Return a name that must be a string and not empty."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{what} must be a string that is not empty, got {value!r}")
    return value
