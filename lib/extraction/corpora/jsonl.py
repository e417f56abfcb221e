"""The JSON-lines format for a reader's own data: one object per line, one line per text."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lib.extraction.triples import Example, example_from_json, example_to_json

__all__ = ["parse_lines", "read_counted", "read_jsonl", "write_jsonl"]


def parse_lines(data: bytes, where: str) -> Iterator[tuple[int, Any]]:
    """Yield the number and the JSON value of each line that is not blank.

    Raises
    ------
    ValueError
        If a line is not UTF-8 or not JSON; the message begins with `where` and the line number.
    """
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            value = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}, line {number}: not UTF-8 (byte {error.start + 1} of the line)"
            ) from error
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{where}, line {number}: not valid JSON ({error.msg}, column {error.colno})"
            ) from error
        yield number, value


def read_jsonl(path: str | Path, *, labelled: bool = True) -> tuple[Example, ...]:
    """Read a file in the JSON-lines format of the book.

    Each line is one object:
    ``{"text": "Ada wrote Notes", "triples": [{"subject": "Ada", "relation": "wrote",
    "object": "Notes"}]}``. A subject or object is a string that occurs exactly once in the text,
    or an object with ``"start"`` and ``"text"`` or ``"end"``, counted in characters. ``"id"`` is
    optional and defaults to the number of the line; other keys are ignored. Blank lines are
    skipped.

    Parameters
    ----------
    path : str or Path
        A UTF-8 file.
    labelled : bool
        Whether each line must have ``"triples"``. With ``False`` a line without it has none.

    Returns
    -------
    tuple of Example
        One per line, in order. A triple given twice in a line stands in the example once.

    Raises
    ------
    ValueError
        If a line is malformed or an entity is not in its text, with file and line number; or if
        the file holds no line.

    See Also
    --------
    lib.extraction.triples.example_from_json : The reading of one record, with all rules.
    """
    return read_counted(path, labelled=labelled)[0]


def read_counted(path: str | Path, *, labelled: bool = True) -> tuple[tuple[Example, ...], int]:
    """Read as `read_jsonl` does; return the number of repeated triples too."""
    path = Path(path)
    examples = []
    repeated = 0
    for number, record in parse_lines(path.read_bytes(), str(path)):
        try:
            example = example_from_json(record, default_id=str(number), labelled=labelled)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        examples.append(example)
        repeated += len(record.get("triples", [])) - len(example.triples)
    if not examples:
        raise ValueError(f"{path}: the file holds no examples")
    return tuple(examples), repeated


def write_jsonl(path: str | Path, examples: Iterable[Example]) -> None:
    """Write examples so that `read_jsonl` gives back equal ones."""
    with Path(path).open("w", encoding="utf-8", newline="\n") as file:
        for example in examples:
            file.write(json.dumps(example_to_json(example), ensure_ascii=False) + "\n")
