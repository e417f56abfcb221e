"""Readers for the file formats of published corpora.

Each reader takes the bytes of one file and returns its examples, with two counts: triples of the
file that are not in the examples, by reason; and decisions that lost nothing.
"""

import ast
import io
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from lib.extraction.corpora.jsonl import MalformedLinesError, Reading, parse_lines
from lib.extraction.jsontext import parse_json
from lib.extraction.places import best_places, places, whole_words
from lib.extraction.triples import INSIDE_A_WORD, REPEATED, SEVERAL, Example, Span, Triple

__all__ = [
    "Reader",
    "place_entities",
    "read_conll04",
    "read_conll04_entities",
    "read_duie",
    "read_triple_lists",
    "unzip",
]

NOT_IN_TEXT = "entity not in the text"
PARTS = "part of a compound object"
NOT_AN_END = "relation on a token that ends no entity"

LOOSE_TAG = "entity that begins with an I- tag"


Reader = Callable[[bytes, str], Reading]


def read_conll04(data: bytes, where: str) -> Reading:
    """Read CoNLL04 in the column format of Bekoulis et al. (2018).

    A sentence begins with ``#doc``; each further line has five columns: number of the token, the
    token, its BIO tag, a list of relations and a list of the tokens they point to. A relation
    stands on the *last* token of its subject and points to the *last* token of its object. The
    text is the tokens joined by single spaces. An ``I-`` tag that continues nothing begins an
    entity, and is noted.

    Raises
    ------
    ValueError
        If a line has another form, with its number.
    """
    examples = []
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    samples: dict[str, str] = {}
    faults: list[str] = []
    for name, rows in _conll_sentences(data, where, faults):
        marked, loose = _entities(rows)
        source = f"{where}, line {rows[0].line}" if rows else where
        if loose:
            notes[LOOSE_TAG] += loose
            samples.setdefault(LOOSE_TAG, f"{source}: sentence {name}")
        entities = {last: replace(span, type=kind) for last, (kind, span) in marked.items()}
        triples: list[Triple] = []
        for index, row in enumerate(rows):
            for relation, target in row.links:
                reason = NOT_AN_END
                if index in entities and target in entities:
                    triple = Triple(entities[index], relation, entities[target])
                    if triple not in triples:
                        triples.append(triple)
                        continue
                    reason = REPEATED
                dropped[reason] += 1
                samples.setdefault(
                    reason, f"{where}, line {row.line}: {relation!r} to token {target}"
                )
        examples.append(Example(name, _text(rows), tuple(triples), source))
    if faults:
        raise MalformedLinesError(faults)
    return Reading(tuple(examples), dropped, notes, samples)


def read_conll04_entities(data: bytes, where: str) -> list[tuple[str, list[tuple[str, Span]]]]:
    """Read the entities of CoNLL04, also those in no relation.

    Returns
    -------
    list of (text, entities)
        One per sentence; each entity is its kind and its characters, in text order.

    Raises
    ------
    ValueError
        As of :func:`read_conll04`.
    """
    faults: list[str] = []
    found = [
        (_text(rows), list(_entities(rows)[0].values()))
        for _, rows in _conll_sentences(data, where, faults)
    ]
    if faults:
        raise MalformedLinesError(faults)
    return found


class _Row(NamedTuple):
    """One token line of CoNLL04."""

    line: int
    token: str
    tag: str
    links: list[tuple[str, int]]


def _text(rows: list[_Row]) -> str:
    return " ".join(row.token for row in rows)


def _entities(rows: list[_Row]) -> tuple[dict[int, tuple[str, Span]], int]:
    """Return kind and characters of each entity by its last token, and how many I- tags began one.

    The tag says where an entity begins and where it goes on; it ends where it does not go on.
    """
    starts = []
    length = 0
    for row in rows:
        starts.append(length)
        length += len(row.token) + 1
    loose = 0
    begins: list[int | None] = []  # where the entity that a token belongs to begins
    for index, row in enumerate(rows):
        goes_on = index > 0 and row.tag == f"I-{rows[index - 1].tag[2:]}"
        loose += row.tag.startswith("I-") and not goes_on
        begins.append(None if row.tag == "O" else begins[-1] if goes_on else index)
    found = {
        index: (rows[first].tag[2:], Span(starts[first], starts[index] + len(rows[index].token)))
        for index, first in enumerate(begins)
        if first is not None and (index + 1 == len(rows) or begins[index + 1] != first)
    }
    return found, loose


def _conll_sentences(
    data: bytes, where: str, faults: list[str]
) -> Iterator[tuple[str, list[_Row]]]:
    """Yield the name and the rows of each sentence; note the first fault of each that has one."""
    name: str | None = None
    rows: list[_Row] = []
    broken = True  # what stands before the first sentence belongs to none
    try:
        for number, text in _lines(data, where):
            if text.startswith("#doc"):
                if name is not None and not broken and _linked(rows, where, faults):
                    yield name, rows
                name, rows, broken = text.removeprefix("#doc").strip(), [], False
            elif name is None:
                raise ValueError(f"{where}, line {number}: expected '#doc' before the first token")
            elif not broken:
                try:
                    rows.append(_row(text, number, len(rows), f"{where}, line {number}"))
                except ValueError as error:
                    faults.append(str(error))
                    broken = True
    except ValueError as error:
        faults.append(str(error))
    else:
        if name is not None and not broken and _linked(rows, where, faults):
            yield name, rows


def _linked(rows: list[_Row], where: str, faults: list[str]) -> bool:
    """Tell whether relations point to tokens of the sentence, and note the first that does not."""
    for row in rows:
        for relation, target in row.links:
            if not 0 <= target < len(rows):
                faults.append(
                    f"{where}, line {row.line}: {relation!r} points to token {target}, "
                    f"but the sentence has {len(rows)}"
                )
                return False
    return True


def _row(text: str, line: int, index: int, where: str) -> _Row:
    """Read one token line."""
    columns = text.split("\t")
    if len(columns) != 5:
        raise ValueError(f"{where}: expected 5 columns separated by tabs, got {len(columns)}")
    number, token, tag, names, targets = columns
    if number != str(index):
        raise ValueError(f"{where}: expected token number {index}, got {number!r}")
    if not token:
        raise ValueError(f"{where}: the token is empty")
    if tag != "O" and tag[:2] not in ("B-", "I-"):
        raise ValueError(f"{where}: the tag must be 'O', 'B-…' or 'I-…', got {tag!r}")
    if names == "['N']":  # most tokens; worth not parsing
        return _Row(line, token, tag, [])
    try:
        relations, ends = ast.literal_eval(names), ast.literal_eval(targets)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(
            f"{where}: columns 4 and 5 must be lists, got {names} {targets}"
        ) from error
    if not (
        isinstance(relations, list)
        and isinstance(ends, list)
        and len(relations) == len(ends)
        and all(isinstance(name, str) for name in relations)
        and all(isinstance(end, int) for end in ends)
    ):
        raise ValueError(
            f"{where}: columns 4 and 5 must be lists of names and of token numbers, of the same "
            f"length, got {names} {targets}"
        )
    links = [(name, end) for name, end in zip(relations, ends, strict=True) if name != "N"]
    return _Row(line, token, tag, links)


def _lines(data: bytes, where: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that is not blank."""
    for number, raw in enumerate(data.split(b"\n"), start=1):
        try:
            text = raw.decode("utf-8").rstrip("\r")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where}, line {number}: not UTF-8") from error
        if text.strip():
            yield number, text


def read_triple_lists(data: bytes, where: str) -> Reading:
    """Read NYT or WebNLG as JSON: a list of ``{"text": …, "triple_list": [[s, r, o], …]}``.

    The entities are strings; `place_entities` says which occurrence each one means.

    Raises
    ------
    ValueError
        If the file is not JSON of this form, with the line or the number of the record.
    """
    try:
        records = parse_json(data)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if not isinstance(records, list):
        raise ValueError(f"{where}: expected a list of records, got {type(records).__name__}")

    def facts(record: Any) -> Iterable[_Fact]:
        for triple in record["triple_list"]:
            subject, relation, object_ = triple
            yield _Fact(subject, relation, object_)

    return _place_all(enumerate(records, start=1), facts, f"{where}, record", [])


def read_duie(data: bytes, where: str) -> Reading:
    """Read DuIE: one ``{"text": …, "spo_list": […]}`` a line.

    The entities are strings; `place_entities` says which occurrence each one means. An object of
    DuIE 2.0 may have parts beside its ``"@value"`` (the role beside the actor), which are dropped
    and counted.

    Raises
    ------
    MalformedLinesError
        If lines have another form, with their numbers. It is a ``ValueError``.
    """

    def facts(record: Any) -> Iterable[_Fact]:
        for spo in record["spo_list"]:
            value, kind = spo["object"], spo.get("object_type", "")
            parts = 0
            if isinstance(value, dict) and isinstance(value.get("@value"), str):
                parts = len(value) - 1
                value = value["@value"]
            if isinstance(kind, dict):
                kind = kind.get("@value", "")
            yield _Fact(
                spo["subject"], spo["predicate"], value, spo.get("subject_type", ""), kind, parts
            )

    faults: list[str] = []
    return _place_all(parse_lines(data, where, faults), facts, f"{where}, line", faults)


class _Fact(NamedTuple):
    """A triple of strings, with the types of its entities and the parts that are left out."""

    subject: str
    relation: str
    object: str
    subject_type: str = ""
    object_type: str = ""
    parts: int = 0


def unzip(data: bytes, member: str, where: str) -> bytes:
    """Return one file of a zip archive.

    Raises
    ------
    ValueError
        If `data` is no zip archive, or has no such file or one that cannot be unpacked.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.read(member)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{where}: not a zip archive") from error
    except KeyError as error:
        raise ValueError(f"{where}: the archive holds no {member!r}") from error
    except (RuntimeError, NotImplementedError, EOFError, zlib.error) as error:
        raise ValueError(f"{where}: {member!r} cannot be unpacked: {error}") from error


def _place_all(
    records: Iterable[tuple[int, Any]],
    facts: Callable[[Any], Iterable[_Fact]],
    where: str,
    faults: list[str],
) -> Reading:
    """Turn records with entities as strings into examples."""
    examples = []
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    samples: dict[str, str] = {}

    def drop(reason: str, number: int, fact: _Fact, count: int = 1) -> None:
        if count:
            dropped[reason] += count
            samples.setdefault(reason, f"{where} {number}: {' | '.join(fact[:3])}")

    for number, record in records:
        try:
            text, stated = record["text"], list(facts(record))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            faults.append(
                f"{where} {number}: not a record with a text and its triples "
                f"({type(error).__name__}: {error})"
            )
            continue
        strings = (text, *(part for fact in stated for part in fact[:5]))
        wrong = [value for value in strings if not isinstance(value, str)]
        if wrong:
            faults.append(
                f"{where} {number}: text, entities and relations must be strings, got {wrong[0]!r}"
            )
            continue
        distinct: dict[tuple[str, str, str], _Fact] = {}
        for fact in stated:
            drop(PARTS, number, fact, fact.parts)
            drop(REPEATED, number, fact, distinct.setdefault(fact[:3], fact) is not fact)
        before = +notes
        places = place_entities(text, [e for s, _, o in distinct for e in (s, o)], notes)
        for kind in notes - before:
            samples.setdefault(kind, f"{where} {number}: {text[:60]!r}")
        triples = []
        for fact in distinct.values():
            if fact.subject in places and fact.object in places:
                subject = replace(places[fact.subject], type=fact.subject_type)
                object_ = replace(places[fact.object], type=fact.object_type)
                triples.append(Triple(subject, fact.relation, object_))
            else:
                drop(NOT_IN_TEXT, number, fact)
        try:
            examples.append(Example(str(number), text, tuple(triples), f"{where} {number}"))
        except ValueError as error:
            faults.append(f"{where} {number}: {error}")
    if faults:
        raise MalformedLinesError(faults)
    return Reading(tuple(examples), +dropped, +notes, samples)


def place_entities(
    text: str, entities: Iterable[str], notes: Counter[str] | None = None
) -> dict[str, Span]:
    """Choose for each entity string the one place in the text that it shall mean.

    Corpora that give entities as strings leave open which occurrence is meant. Here an entity has
    one place in a text, the same in all its triples, so that triples that share an entity share
    its span: the first of `lib.extraction.places.best_places` in a text of tokens.

    Parameters
    ----------
    text : str
        The text.
    entities : iterable of str
        The entity strings of all its triples.
    notes : Counter of str, optional
        Receives the number of entities that occur several times, or only inside words.

    Returns
    -------
    dict of str to Span
        Without the entities that do not occur in the text.

    Examples
    --------
    >>> text = "A.C. Cesena is from Cesena"
    >>> place_entities(text, ["A.C. Cesena", "Cesena"])["Cesena"]
    Span(start=20, end=26)
    """
    entities = list(entities)
    best = best_places(text, entities, tokenised=True)
    if notes is not None:
        for entity in best:
            whole = whole_words(text, places(text, entity))
            notes[SEVERAL] += len(whole) > 1
            notes[INSIDE_A_WORD] += not whole
    return {entity: Span(*of_one[0]) for entity, of_one in best.items()}
