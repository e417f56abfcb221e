"""The column format of CoNLL04: a token a line, with its tag and its relations."""

from pathlib import Path

from lib.extraction.corpora.jsonl import Reading
from lib.extraction.corpora.published import read_conll04

__all__ = ["read_conll"]


def read_conll(path: Path) -> Reading:
    """Read a file of columns as `lib.extraction.corpora.published.read_conll04` does.

    The tags name the types of the entities. A byte order mark is skipped.
    """
    return read_conll04(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), str(path))
