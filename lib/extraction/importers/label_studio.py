"""The JSON that Label Studio exports."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.extraction.corpora.jsonl import Reading
from lib.extraction.importers.gather import (
    UNLIKE,
    End,
    Gathering,
    json_records,
    name,
    positions,
    same_words,
    span_at,
)
from lib.extraction.triples import Span, Triple

__all__ = ["read_label_studio"]

UNANNOTATED = "text without an annotation"
FURTHER = "further annotation of a text, of which the first is taken"
UNNAMED = "relation without a label"
UNITS = "text whose offsets count UTF-16 units"
TYPES = "entity with several labels, of which the first is taken"
NO_TEXT = "region that is not of plain text"


def read_label_studio(path: Path) -> Reading:
    """Read a JSON export: an array of tasks with ``data`` and ``annotations``.

    Of the annotations of a text the first that was not skipped is taken, one that is marked as
    ground truth before others. Regions of labels are the entities; relations between them go from
    ``from_id`` to ``to_id``, the other way with the direction ``"left"``, both ways with ``"bi"``;
    one with several labels gives a triple for each.

    Label Studio has counted offsets in characters and, in many versions, in UTF-16 units. Each
    region has its words beside its offsets: for each text, the unit is taken that fits more of
    them. JSON-MIN has no relations and is refused.
    """
    gathering = Gathering()

    def read(record: Mapping[str, Any], id: str, where: str) -> None:
        annotations = record.get("annotations", record.get("completions"))
        if annotations is None:
            raise ValueError(
                "a task must have 'annotations', got none: JSON-MIN leaves relations out, "
                "export as JSON"
            )
        given = [a for a in annotations if not a.get("was_cancelled")]
        given.sort(key=lambda annotation: not annotation.get("ground_truth"))
        if not given:
            gathering.note(UNANNOTATED, where)
            return
        gathering.note(FURTHER, where, len(given) - 1)
        regions: dict[str, Mapping[str, Any]] = {}
        relations = []
        for result in given[0]["result"]:
            if result["type"] == "relation":
                relations.append(result)
            elif result["type"] in ("labels", "hypertextlabels"):
                key, value = name(result["id"], "a region's id"), result["value"]
                former = regions.setdefault(key, value)
                if any(former[end] != value[end] for end in ("start", "end")):
                    raise ValueError(f"a region's id must be given once, got {key!r} again")
                gathering.note(TYPES, f"{where}: {key}", former is not value)
        text, places = _text(record["data"], list(regions.values()))
        if places is not None and regions:
            gathering.note(UNITS, f"{where}: {text[:40]!r}")
        entities: dict[object, End] = {}
        for key, value in regions.items():
            labels = value.get("labels") or value.get("hypertextlabels") or [""]
            gathering.note(TYPES, f"{where}: {labels}", len(labels) > 1)
            if not isinstance(value["start"], int):
                entities[key] = NO_TEXT
                continue
            found = span_at(places, text, value["start"], value["end"], str(labels[0]))
            if isinstance(found, Span) and not same_words(
                found.of(text), str(value.get("text", found.of(text)))
            ):
                found = UNLIKE
            entities[key] = found
        triples: list[Triple] = []
        for relation in relations:
            ends = relation["from_id"], relation["to_id"]
            direction = relation.get("direction", "right")
            ways = {"left": [ends[::-1]], "bi": [ends, ends[::-1]]}.get(direction, [ends])
            labels = relation.get("labels") or []
            if not labels:
                gathering.drop(UNNAMED, f"{where}: {ends[0]} to {ends[1]}", len(ways))
            for label in labels:
                for subject, object_ in ways:
                    triples += gathering.link(
                        entities, subject, name(label, "a relation's label"), object_, where
                    )
        gathering.add(id, text, triples, where, entities.values())

    json_records(path, gathering, read)
    return gathering.reading()


def _text(
    data: Mapping[str, Any], regions: Sequence[Mapping[str, Any]]
) -> tuple[str, Sequence[int | None] | None]:
    """Return the annotated text of a task and the positions of its units, None for characters."""
    texts = [data[key] for key in sorted(data, key=lambda key: key != "text")]
    texts = [text for text in texts if isinstance(text, str)]
    if not texts:
        raise ValueError(f"'data' must hold a text, got {dict(data)!r:.60}")

    def fits(choice: tuple[str, Sequence[int | None] | None]) -> int:
        text, places = choice
        found = 0
        for value in regions:
            if isinstance(value.get("start"), int) and isinstance(value.get("text"), str):
                span = span_at(places, text, value["start"], value["end"], "")
                found += isinstance(span, Span) and same_words(span.of(text), value["text"])
        return found

    choices: list[tuple[str, Sequence[int | None] | None]] = [(text, None) for text in texts]
    choices += [(text, found) for text in texts if None in (found := positions(text))]
    return max(choices, key=fits)  # of several, the first
