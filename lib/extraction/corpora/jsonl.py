"""The JSON-lines format for a reader's own data: one object per line, one line per text."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from lib.extraction.corpora.formats import refuse_other_formats
from lib.extraction.jsontext import parse_json
from lib.extraction.places import Occurrence
from lib.extraction.triples import REPEATED, Example, example_from_json, example_to_json

__all__ = [
    "MalformedLinesError",
    "Reading",
    "parse_lines",
    "read_counted",
    "read_jsonl",
    "write_jsonl",
]

MOST_FAULTS = 20
"""Malformed lines named in one message."""


class Reading(NamedTuple):
    """What one file gave; `samples` says where each kind of loss or decision was first met."""

    examples: tuple[Example, ...]
    dropped: Counter[str]
    notes: Counter[str]
    samples: Mapping[str, str] = MappingProxyType({})


class MalformedLinesError(ValueError):
    """Lines of a reader's files that cannot be read; each line of the message names one of them.

    Parameters
    ----------
    faults : list of str
        Where each malformed line stands and what is wrong with it.

    Attributes
    ----------
    faults : list of str
        All of them.
    lines : list of str
        The lines of the message: the first 20, and how many more there are.

    Examples
    --------
    >>> error = MalformedLinesError([f"a.jsonl, line {n}: not UTF-8" for n in range(1, 26)])
    >>> error.lines[19:]
    ['a.jsonl, line 20: not UTF-8', 'and 5 more malformed lines']
    """

    def __init__(self, faults: list[str]) -> None:
        self.faults = faults
        self.lines = faults[:MOST_FAULTS]
        if more := len(faults) - len(self.lines):
            self.lines.append(f"and {more} more malformed line{'s' if more > 1 else ''}")
        super().__init__("\n".join(self.lines))


def _numbered(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of each line that is not blank."""
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if raw.strip():
            yield number, raw


def parse_lines(data: bytes, where: str, faults: list[str]) -> Iterator[tuple[int, Any]]:
    """Yield the number and the JSON value of each line that is not blank.

    A line that `parse_json` refuses is left out; `faults` receives what is wrong, which begins with
    `where` and the line number.
    """
    for number, raw in _numbered(data):
        try:
            value = parse_json(raw)
        except ValueError as error:
            faults.append(f"{where}, line {number}: {error}")
        else:
            yield number, value


def read_jsonl(
    path: str | Path, *, labelled: bool = True, occurrence: Occurrence = "refuse"
) -> tuple[Example, ...]:
    """Read a file in the JSON-lines format of the book.

    Each line is one object:
    ``{"text": "Ada wrote Notes", "triples": [{"subject": "Ada", "relation": "wrote",
    "object": "Notes"}]}``. A subject or object is a string that occurs in the text,
    or an object with ``"start"`` and ``"text"`` or ``"end"``, counted in characters. ``"id"`` is
    optional and defaults to the number of the line; other keys are ignored. Blank lines are
    skipped.

    Parameters
    ----------
    path : str or Path
        A UTF-8 file.
    labelled : bool
        Whether each line must have ``"triples"``. With ``False`` a line without it has none.
    occurrence : {"refuse", "first", "nearest"}
        What a string means that occurs several times, and not just once as a whole word.

    Returns
    -------
    tuple of Example
        One per line, in order. A triple given twice in a line stands in the example once.

    Raises
    ------
    MalformedLinesError
        If lines are malformed or an entity is not in its text, with file and line numbers of the
        first 20. It is a ``ValueError``.
    ValueError
        If the file holds no line, or its first line shows that it is in another format.

    See Also
    --------
    lib.extraction.triples.example_from_json : The reading of one record, with all rules.
    """
    return read_counted(path, labelled=labelled, occurrence=occurrence).examples


def read_counted(
    path: str | Path, *, labelled: bool = True, occurrence: Occurrence = "refuse"
) -> Reading:
    """Read as `read_jsonl` does; return what was dropped and decided too."""
    path = Path(path)
    data = path.read_bytes()
    refuse_other_formats(data.removeprefix(b"\xef\xbb\xbf").lstrip().split(b"\n", 1)[0], str(path))
    examples = []
    faults = []
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    for number, raw in _numbered(data):
        try:
            record = parse_json(raw)
            example = example_from_json(
                record,
                default_id=str(number),
                labelled=labelled,
                occurrence=occurrence,
                notes=notes,
            )
        except ValueError as error:
            faults.append(f"{path}, line {number}: {error}")
            continue
        examples.append(replace(example, source=f"{path}, line {number}"))
        dropped[REPEATED] += len(record.get("triples", [])) - len(example.triples)
    if faults:
        raise MalformedLinesError(faults)
    if not examples:
        raise ValueError(f"{path}: the file holds no examples")
    return Reading(tuple(examples), +dropped, +notes)


def write_jsonl(path: str | Path, examples: Iterable[Example]) -> None:
    """Write examples so that `read_jsonl` gives back equal ones."""
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        for example in examples:
            file.write(json.dumps(example_to_json(example), ensure_ascii=False) + "\n")
