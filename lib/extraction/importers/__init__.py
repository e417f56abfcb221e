"""Importers: annotations of other tools and corpora, read into examples.

One module a format, named for it; `FORMATS` lists them, `import_file` reads with one of them. The
command ``python -m lib.extraction convert`` writes what they read as JSON lines. What has no place
in a triple of two spans is left out and counted, with where it was first met.
"""

from collections.abc import Callable
from pathlib import Path

from lib.extraction.corpora.jsonl import Reading
from lib.extraction.importers.brat import read_brat
from lib.extraction.importers.conll import read_conll
from lib.extraction.importers.csv import read_csv
from lib.extraction.importers.doccano import read_doccano
from lib.extraction.importers.docred import read_docred
from lib.extraction.importers.label_studio import read_label_studio
from lib.extraction.importers.spacy import read_spacy
from lib.extraction.importers.spert import read_spert
from lib.extraction.importers.spo_list import read_spo_list
from lib.extraction.places import OCCURRENCES, Occurrence

__all__ = [
    "FORMATS",
    "import_file",
    "read_brat",
    "read_conll",
    "read_csv",
    "read_doccano",
    "read_docred",
    "read_label_studio",
    "read_spacy",
    "read_spert",
    "read_spo_list",
]

FORMATS: dict[str, Callable[[Path], Reading]] = {
    "brat": read_brat,
    "doccano": read_doccano,
    "label-studio": read_label_studio,
    "spacy": read_spacy,
    "conll": read_conll,
    "spert": read_spert,
    "docred": read_docred,
    "spo_list": read_spo_list,
    "csv": read_csv,
}
"""The formats by name, each with the function that reads it."""


def import_file(format: str, source: str | Path, *, occurrence: Occurrence = "refuse") -> Reading:
    r"""Read annotations in the format of another tool.

    Parameters
    ----------
    format : str
        One of `FORMATS`.
    source : str or Path
        A file; for ``"brat"`` also a folder.
    occurrence : {"refuse", "first", "nearest"}
        For ``"csv"``: what an entity without offsets means that occurs several times; see
        `lib.extraction.triples.example_from_json`.

    Returns
    -------
    Reading
        ``examples``, and by reason what was ``dropped``, what was decided (``notes``), and where
        each was first met (``samples``).

    Raises
    ------
    MalformedLinesError
        If the source is not of the format, with up to 20 places. It is a ``ValueError``.
    ValueError
        If there is no such format, or no text in the source.
    OSError
        If the source cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "a.csv"
    ...     _ = path.write_text("text,subject,relation,object\nAda met Bo,Ada,met,Bo\n")
    ...     import_file("csv", path).examples[0].strings()
    (('Ada', 'met', 'Bo'),)
    """
    if format not in FORMATS:
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}")
    if occurrence not in OCCURRENCES:
        raise ValueError(f"occurrence must be one of {OCCURRENCES}, got {occurrence!r}")
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"no such file or folder: {str(source)!r}")
    if source.is_dir() and format != "brat":
        raise ValueError(f"source must be a file for {format}, got the folder {str(source)!r}")
    if occurrence != "refuse" and format != "csv":
        raise ValueError(f"occurrence must be 'refuse' for {format}, got {occurrence!r}")
    reading = read_csv(source, occurrence) if format == "csv" else FORMATS[format](source)
    if not reading.examples:
        raise ValueError(f"{source}: holds no text in the format {format}")
    return reading
