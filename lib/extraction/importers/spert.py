"""The JSON of SpERT: tokens, entities of tokens, relations between entities."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

from lib.extraction.corpora.jsonl import Reading
from lib.extraction.importers.gather import (
    End,
    Gathering,
    between,
    json_records,
    name,
    token_spans,
)

__all__ = ["read_spert"]


def read_spert(path: Path) -> Reading:
    """Read records with ``tokens``, ``entities`` and ``relations``, in a JSON array or one a line.

    An entity has ``type``, ``start`` and ``end``, a relation ``type``, ``head`` and ``tail``.
    ``start`` and ``end`` count tokens, the end excluded; ``head`` and ``tail`` count entities. The
    head is the subject. The text is the tokens joined by single spaces.
    """
    gathering = Gathering()

    def read(record: Mapping[str, Any], id: str, where: str) -> None:
        text, spans = token_spans(record["tokens"])
        entities: dict[Hashable, End] = {
            number: between(spans, e["start"], e["end"], name(e["type"], "an entity's type"))
            for number, e in enumerate(record["entities"])
        }
        triples = [
            triple
            for r in record["relations"]
            for triple in gathering.link(
                entities, r["head"], name(r["type"], "a relation's type"), r["tail"], where
            )
        ]
        gathering.add(str(record.get("orig_id", id)), text, triples, where, entities.values())

    json_records(path, gathering, read)
    return gathering.reading()
