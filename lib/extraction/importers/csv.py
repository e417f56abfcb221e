"""Tables: a triple a row, with named columns."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.extraction.corpora.jsonl import Reading
from lib.extraction.importers.gather import Gathering, decode
from lib.extraction.places import Occurrence
from lib.extraction.triples import REPEATED, example_from_json

__all__ = ["read_csv"]

NEEDED = ("text", "subject", "relation", "object")
WHOLE = ("subject_start", "subject_end", "object_start", "object_end")


def read_csv(path: Path, occurrence: Occurrence = "refuse") -> Reading:
    """Read a table with the columns ``text``, ``subject``, ``relation`` and ``object``.

    Further columns may be ``id``, ``subject_start``, ``subject_end``, ``object_start``,
    ``object_end``, in characters from 0 with the end excluded, and ``subject_type``,
    ``object_type``. Others are ignored. Rows of the same text and id are one example. A row
    in which subject, relation and object are empty says that a text has no triple. The separator is
    a comma, a semicolon or a tab, as in the head.
    """
    gathering = Gathering()
    text = decode(path.read_bytes(), str(path))
    head = text.split("\n", 1)[0]
    delimiter = max((",", ";", "\t"), key=head.count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = [column.strip() for column in rows.fieldnames or ()]
    except csv.Error as error:
        raise ValueError(f"{path}, line 1: {error}") from error
    if missing := [column for column in NEEDED if column not in columns]:
        raise ValueError(f"{path}, line 1: the head must name {missing[0]!r}, got {columns}")
    rows.fieldnames = columns
    records: dict[tuple[str, str], tuple[str, list[dict[str, Any]]]] = {}
    begins = 2
    try:
        for row in rows:
            where, begins = f"{path}, line {begins}", rows.line_num + 1
            if None in row or None in row.values():
                gathering.faults.append(
                    f"{where}: a row must have {len(columns)} cells, got another number"
                )
                continue
            triples = records.setdefault((row.get("id", ""), row["text"]), (where, []))[1]
            if any(row[column] for column in NEEDED[1:]):
                try:
                    triples.append(_triple(row))
                except ValueError as error:
                    gathering.faults.append(f"{where}: {error}")
    except csv.Error as error:
        gathering.faults.append(f"{path}, line {begins}: {error}")
    for number, ((id, words), (where, triples)) in enumerate(records.items(), start=1):
        record = {"id": id or str(number), "text": words, "triples": triples}
        before = +gathering.notes
        try:
            example = example_from_json(record, occurrence=occurrence, notes=gathering.notes)
        except ValueError as error:
            gathering.faults.append(f"{where}: {error}")
            continue
        gathering.notes = +gathering.notes
        for kind in gathering.notes - before:
            gathering.samples.setdefault(kind, f"{where}: {words[:40]!r}")
        # The record keeps a repeated triple once; here it is counted.
        again = len(triples) - len(example.triples)
        gathering.add(example.id, words, example.triples, where)
        if again:
            gathering.drop(REPEATED, where, again)
    return gathering.reading()


def _triple(row: Mapping[str, str]) -> dict[str, Any]:
    """Return the triple of a row as a record of the JSON-lines format."""
    places = {}
    for column in WHOLE:
        if row.get(column):
            if not row[column].strip().isdecimal():
                raise ValueError(f"{column!r} must be a whole number, got {row[column]!r}")
            places[column] = int(row[column])
    triple: dict[str, Any] = {"relation": row["relation"]}
    for role in ("subject", "object"):
        entity: dict[str, Any] = {"text": row[role]}
        for part in ("start", "end"):
            if f"{role}_{part}" in places:
                entity[part] = places[f"{role}_{part}"]
        if row.get(f"{role}_type"):
            entity["type"] = row[f"{role}_type"]
        if not row[role]:
            raise ValueError(f"{role!r} must not be empty beside the others, got ''")
        triple[role] = entity
    return triple
