"""The format of DuIE: an object a line, with a text and its ``spo_list``."""

from pathlib import Path

from lib.extraction.corpora.jsonl import Reading
from lib.extraction.corpora.published import read_duie

__all__ = ["read_spo_list"]


def read_spo_list(path: Path) -> Reading:
    """Read a file as `lib.extraction.corpora.published.read_duie` does.

    ``subject_type`` and ``object_type`` become the types of the entities.
    """
    return read_duie(path.read_bytes(), str(path))
