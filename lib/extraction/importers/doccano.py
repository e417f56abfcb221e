"""The JSONL that doccano exports from a project with relations."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.extraction.corpora.jsonl import Reading
from lib.extraction.importers.gather import Gathering, json_records, keyed, name, positions, span_at

__all__ = ["read_doccano"]

UNITS = "text with characters of two UTF-16 units, in which offsets are counted"


def read_doccano(path: Path) -> Reading:
    """Read records with ``text``, ``entities`` and ``relations``, one a line or in a JSON array.

    An entity has ``id``, ``label``, ``start_offset`` and ``end_offset``, a relation ``from_id``,
    ``to_id`` and ``type``. The offsets count UTF-16 units, as doccano does in the browser where it
    is not told to count grapheme clusters; it exports no words to check them by, so texts in which
    this matters (emoji, rare Chinese characters) are counted in the notes.
    """
    gathering = Gathering()

    def read(record: Mapping[str, Any], id: str, where: str) -> None:
        text = record["text"]
        if not isinstance(text, str):
            raise ValueError(f"'text' must be a string, got {text!r:.60}")
        places = positions(text)
        entities = keyed(
            (
                e["id"],
                span_at(
                    places,
                    text,
                    e["start_offset"],
                    e["end_offset"],
                    name(e["label"], "an entity's label"),
                ),
            )
            for e in record["entities"]
        )
        if None in places and entities:
            gathering.note(UNITS, f"{where}: {text[:40]!r}")
        triples = [
            triple
            for r in record["relations"]
            for triple in gathering.link(
                entities, r["from_id"], name(r["type"], "a relation's type"), r["to_id"], where
            )
        ]
        gathering.add(id, text, triples, where, entities.values())

    json_records(path, gathering, read)
    return gathering.reading()
