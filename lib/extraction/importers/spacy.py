"""The JSONL of Prodigy's ``rel.manual``, from which relations reach spaCy.

A ``DocBin`` is binary and read by spaCy alone, and ``Doc.to_json`` leaves custom attributes out, so
relations of spaCy are read where they were annotated.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lib.extraction.corpora.jsonl import Reading
from lib.extraction.importers.gather import (
    MISSING,
    End,
    Gathering,
    json_records,
    name,
    span_at,
)
from lib.extraction.triples import Triple

__all__ = ["read_spacy"]

AMBIGUOUS = "token that ends several spans"
REFUSED = "text that was not accepted"


def read_spacy(path: Path) -> Reading:
    """Read records with ``text``, ``tokens``, ``spans`` and ``relations``, one a line.

    A relation has ``head``, ``child`` and ``label``. The head is the subject. ``head`` and
    ``child`` are numbers of tokens: of the last token of a span, or of a word that is in no span;
    ``head_span`` and ``child_span`` say it by characters and come first. Texts whose ``answer`` is
    not ``"accept"`` are left out and counted.
    """
    gathering = Gathering()

    def read(record: Mapping[str, Any], id: str, where: str) -> None:
        text = record["text"]
        if not isinstance(text, str):
            raise ValueError(f"'text' must be a string, got {text!r:.60}")
        if record.get("answer", "accept") != "accept":
            gathering.note(REFUSED, f"{where}: {text[:40]!r}")
            return
        relations = record["relations"]
        marked = [
            (s.get("token_end"), span_at(None, text, s["start"], s["end"], s.get("label") or ""))
            for s in record.get("spans", [])
        ]
        tokens = {t["id"]: (t["start"], t["end"]) for t in record.get("tokens", [])}
        by_end: dict[object, End] = {}
        for end, span in marked:
            if end is not None:
                by_end[end] = span if by_end.get(end, span) == span else AMBIGUOUS

        def entity(relation: Mapping[str, Any], role: str) -> End:
            stated = relation.get(f"{role}_span")
            if stated:
                kind = stated.get("label") or ""
                return span_at(None, text, stated["start"], stated["end"], kind)
            number = relation[role]
            if number in by_end:
                return by_end[number]
            if number in tokens:
                return span_at(None, text, *tokens[number], "")
            return MISSING

        triples: list[Triple] = []
        for relation in relations:
            ends: dict[object, End] = {role: entity(relation, role) for role in ("head", "child")}
            label = name(relation["label"], "a relation's label")
            place = f"{where}, tokens {relation.get('head')} and {relation.get('child')}"
            triples += gathering.link(ends, "head", label, "child", place)
        gathering.add(id, text, triples, where, [span for _, span in marked])

    json_records(path, gathering, read)
    return gathering.reading()
