"""Brat's stand-off annotations: a text in ``.txt``, what is marked in it in ``.ann``."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from lib.extraction.corpora.jsonl import Reading
from lib.extraction.importers.gather import (
    PIECES,
    UNLIKE,
    End,
    Gathering,
    decode,
    positions,
    same_words,
    span_at,
)
from lib.extraction.triples import Span, Triple

__all__ = ["read_brat"]

EVENT = "argument of an event"
EQUIVALENT = "equivalence (a line that begins with *)"
ARGUMENTS = "relation with other than two arguments"
LEFT_OUT = {
    "A": "attribute",
    "M": "attribute",
    "N": "normalisation",
    "#": "comment",
}
UNITS = "text whose offsets count UTF-16 units"
JOINED = "entity in pieces with only white space between, joined"
BARE = "text without a file of annotations"

Piece = tuple[int, int]
Marked = tuple[str, str, list[Piece], str]
"""Where it stands, its type, its pieces, its words."""


def read_brat(path: Path) -> Reading:
    """Read a folder of ``.txt`` files with their ``.ann`` files, or one such pair.

    Relations (``R``) become triples of ``Arg1`` and ``Arg2``; an argument that is an event stands
    for the trigger. Entities in several pieces are left out, unless only white space lies between
    (a line break). Events, equivalences, attributes, normalisations and comments are counted.
    Offsets count characters, as brat's server does; where they do not fit the words beside them,
    UTF-16 units, a byte order mark or line ends of two characters are tried.
    """
    gathering = Gathering()
    if path.is_dir():
        texts = sorted(path.rglob("*.txt"))
        bare = [a for a in sorted(path.rglob("*.ann")) if not a.with_suffix(".txt").is_file()]
        gathering.faults += [f"{ann}: there is no {ann.stem}.txt beside it" for ann in bare]
    else:
        texts = [path.with_suffix(".txt")]
        if not texts[0].is_file():
            raise FileNotFoundError(f"there is no {texts[0].name} beside {str(path)!r}")
    for txt in texts:
        ann = txt.with_suffix(".ann")
        id = txt.relative_to(path).with_suffix("").as_posix() if path.is_dir() else txt.stem
        if not ann.is_file():
            gathering.note(BARE, str(txt))
            continue
        try:
            _read_pair(gathering, id, txt, ann)
        except ValueError as error:
            gathering.faults.append(str(error))
    return gathering.reading()


def _read_pair(gathering: Gathering, id: str, txt: Path, ann: Path) -> None:
    """Read one text and its annotations."""
    raw = txt.read_bytes()
    marked: dict[str, Marked] = {}
    triggers: dict[str, str] = {}
    relations: list[tuple[str, str, list[tuple[str, str]]]] = []
    for number, line in enumerate(decode(ann.read_bytes(), str(ann)).split("\n"), start=1):
        where = f"{ann}, line {number}"
        line = line.removesuffix("\r")  # the words may hold what Python also calls a line end
        if not line.strip():
            continue
        key, _, rest = line.partition("\t")
        try:
            if key in marked or key in triggers:
                raise ValueError(f"an id must be given once, got {key!r} again")
            if key.startswith("T"):
                marked[key] = (where, *_text_bound(rest))
            elif key.startswith("R"):
                relations.append((where, *_arguments(rest)))
            elif key.startswith("E"):
                (_, trigger), *arguments = _pairs(rest.split())
                triggers[key] = trigger
                if arguments:
                    gathering.drop(EVENT, f"{where}: {rest}", len(arguments))
            elif key == "*":
                gathering.drop(EQUIVALENT, f"{where}: {rest}")
            elif key[:1] in LEFT_OUT:
                gathering.note(LEFT_OUT[key[0]], f"{where}: {rest}")
            else:
                raise ValueError(f"a line must begin with T, R, E, A, M, N, # or *, got {key!r}")
        except ValueError as error:
            gathering.faults.append(f"{where}: {error}")
    text, places = _choose(decode(raw, str(txt)), raw, list(marked.values()))
    if places is not None and marked:
        gathering.note(UNITS, str(txt))
    entities: dict[object, End] = {}
    for key, (where, kind, pieces, words) in marked.items():
        found = _entity(text, places, pieces, kind)
        if isinstance(found, Span) and len(pieces) > 1:
            gathering.note(JOINED, f"{where}: {words!r}")
        if isinstance(found, Span) and not same_words(found.of(text), words):
            found = UNLIKE
        entities[key] = found
    for event, trigger in triggers.items():
        if trigger in entities:
            entities[event] = entities[trigger]
    triples: list[Triple] = []
    for where, relation, ends in relations:
        if len(ends) != 2:
            gathering.drop(ARGUMENTS, f"{where}: {relation}")
            continue
        (_, subject), (_, object_) = sorted(ends) if dict(ends).keys() == {"Arg1", "Arg2"} else ends
        triples += gathering.link(entities, subject, relation, object_, where)
    gathering.add(id, text, triples, str(ann), [entities[key] for key in marked])


def _text_bound(rest: str) -> tuple[str, list[Piece], str]:
    """Read type, pieces and words of a line of an entity."""
    found = re.fullmatch(r"(\S+) (\d+ \d+(?:;\d+ \d+)*)\t(.*)", rest)
    if not found:
        raise ValueError(f"an entity must be 'TYPE START END<tab>WORDS', got {rest!r}")
    kind, offsets, words = found.groups()
    pieces = [tuple(map(int, piece.split())) for piece in offsets.split(";")]
    return kind, [(start, end) for start, end in pieces], words


def _arguments(rest: str) -> tuple[str, list[tuple[str, str]]]:
    """Read the name and the arguments of a line of a relation."""
    relation, *arguments = rest.split() or [""]
    if not relation or not arguments:
        raise ValueError(f"a relation must be 'NAME Arg1:ID Arg2:ID', got {rest!r}")
    return relation, _pairs(arguments)


def _pairs(parts: Sequence[str]) -> list[tuple[str, str]]:
    """Read ``ROLE:ID`` parts."""
    found = []
    for part in parts or [""]:
        role, colon, id = part.partition(":")
        if not (role and colon and id):
            raise ValueError(f"an argument must be 'ROLE:ID', got {part!r}")
        found.append((role, id))
    return found


def _entity(
    text: str, places: Sequence[int | None] | None, pieces: Sequence[Piece], kind: str
) -> End:
    """Return the span of an entity whose pieces leave out nothing but white space."""
    spans = []
    for start, end in pieces:
        found = span_at(places, text, start, end, kind)
        if isinstance(found, str):
            return found
        spans.append(found)
    for before, after in itertools.pairwise(spans):
        if before.end > after.start or text[before.end : after.start].strip():
            return PIECES
    return Span(spans[0].start, spans[-1].end, kind)


def _choose(
    text: str, raw: bytes, marked: Sequence[Marked]
) -> tuple[str, Sequence[int | None] | None]:
    """Return the text and the units in which most offsets give the words beside them."""
    texts = dict.fromkeys(
        (
            text,
            raw.decode("utf-8"),
            text.replace("\r\n", "\n"),
            text.replace("\r\n", "\n").replace("\n", "\r\n"),
        )
    )
    choices: list[tuple[str, Sequence[int | None] | None]] = [(text, None) for text in texts]
    choices += [(text, found) for text in texts if None in (found := positions(text))]

    def fits(choice: tuple[str, Sequence[int | None] | None]) -> int:
        fitting = 0
        for _, kind, pieces, words in marked:
            ends = [span_at(choice[1], choice[0], *piece, kind) for piece in pieces]
            if all(isinstance(end, Span) for end in ends):
                found = " ".join(end.of(choice[0]) for end in ends if isinstance(end, Span))
                fitting += same_words(found, words)
        return fitting

    return max(choices, key=fits)  # of several, the first
