"""Corpora: one call for a generated, a published or a reader's own corpus.

`load_corpus` finds the reader that a name needs; `read_jsonl` and `write_jsonl` are the documented
format for a reader's own data. What a reader could not take over is counted in `Corpus.dropped`,
what it had to decide in `Corpus.notes`.
"""

from lib.extraction.corpora.jsonl import MalformedLinesError, read_jsonl, write_jsonl
from lib.extraction.corpora.load import (
    check_relations,
    describe_unknown,
    load_corpus,
    trained_relations,
)
from lib.extraction.triples import Corpus, example_from_json, example_to_json

__all__ = [
    "Corpus",
    "MalformedLinesError",
    "check_relations",
    "describe_unknown",
    "example_from_json",
    "example_to_json",
    "load_corpus",
    "read_jsonl",
    "trained_relations",
    "write_jsonl",
]
