"""The JSON of DocRED: documents of sentences, entities with several mentions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.extraction.corpora.jsonl import Reading
from lib.extraction.importers.gather import (
    MISSING,
    Gathering,
    between,
    json_records,
    name,
    token_spans,
)
from lib.extraction.places import nearest_pair
from lib.extraction.triples import Span, Triple

__all__ = ["read_docred"]

SEVERAL = "entity with several mentions, of which the nearest is taken"


def read_docred(path: Path) -> Reading:
    """Read documents with ``sents``, ``vertexSet`` and ``labels``, in a JSON array or one a line.

    A vertex is a list of mentions with ``sent_id``, ``pos`` and ``type``, a label has ``h``, ``t``
    and ``r``. DocRED says which entities are related and not which of their mentions: the two that
    stand nearest to each other are taken. The text is all tokens joined by single spaces. The
    evidence is left out. Relations keep their names (``"P17"``).
    """
    gathering = Gathering()

    def read(record: Mapping[str, Any], id: str, where: str) -> None:
        text, spans = token_spans([token for sent in record["sents"] for token in sent])
        first = [0]
        for sent in record["sents"]:
            first.append(first[-1] + len(sent))
        vertices: list[dict[tuple[int, int], Span]] = []
        for vertex in record["vertexSet"]:
            mentions = {}
            for mention in vertex:
                start, end = mention["pos"]
                number = mention["sent_id"]
                if isinstance(number, bool) or not isinstance(number, int):
                    raise ValueError(f"'sent_id' must be a whole number, got {number!r}")
                if not 0 <= number < len(record["sents"]):
                    continue
                kind = name(mention["type"], "a mention's type")
                inside = spans[first[number] : first[number + 1]]
                found = between(inside, start, end, kind)
                if isinstance(found, Span):
                    mentions[found.start, found.end] = found
            vertices.append(mentions)
        triples = []
        for label in record["labels"]:
            head, tail = label["h"], label["t"]
            relation = name(label["r"], "a relation")
            known = all(
                isinstance(v, int) and 0 <= v < len(vertices) and vertices[v] for v in (head, tail)
            )
            if not known:
                gathering.drop(MISSING, f"{where}: {head} {relation} {tail}")
                continue
            pair = nearest_pair(vertices[head], vertices[tail])
            triples.append(Triple(vertices[head][pair[0]], relation, vertices[tail][pair[1]]))
        related = {v for label in record["labels"] for v in (label["h"], label["t"])}
        for number in sorted(v for v in related if v in range(len(vertices))):
            if len(vertices[number]) > 1:
                gathering.note(SEVERAL, f"{where}: entity {number}")
        unrelated = [v for n, v in enumerate(vertices) if n not in related and v]
        gathering.add(
            str(record.get("title", id)),
            text,
            triples,
            where,
            [next(iter(mentions.values())) for mentions in unrelated],
        )

    json_records(path, gathering, read)
    return gathering.reading()
