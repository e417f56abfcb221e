"""Say what a file is that was given in place of one text, or one record, a line."""

import re

__all__ = ["refuse_other_formats"]

_MAGIC = (
    (b"\x1f\x8b", "a gzip archive", "unpack it with gunzip"),
    (b"PK\x03\x04", "a zip archive or an office document", "unpack it, or save it as plain text"),
    (b"%PDF-", "a PDF", "pdftotext makes plain text of it"),
    (b"PAR1", "a Parquet file", "pandas writes it as JSON lines: to_json(…, lines=True)"),
    (b"\xff\xfe", "UTF-16", "iconv -f UTF-16 -t UTF-8 makes UTF-8 of it"),
    (b"\xfe\xff", "UTF-16", "iconv -f UTF-16 -t UTF-8 makes UTF-8 of it"),
)

_LINES = (
    (rb"<\?xml|<!doctype|<html", "XML or HTML", "take the text out first"),
    (rb"#doc\b|-DOCSTART-|# ?(newdoc|sent_id|global\.columns)\b", "CoNLL, a word a line",
     "write each sentence on one line, or load CoNLL04 with --data conll04=FOLDER"),
    (rb"[TRE]\d+\t\S+ .*\d", "brat's annotations", "give the .txt file beside it"),
)  # fmt: skip

_TEXT_COLUMNS = ("text", "sentence", "sentences", "content", "document")


def refuse_other_formats(line: bytes, name: str) -> None:
    """Refuse a file whose first line shows that it is in another format.

    Only what is clearly none of text is refused: a sentence may begin with a bracket, or hold
    commas.

    Parameters
    ----------
    line : bytes
        The first line that is not blank, without a byte order mark of UTF-8.
    name : str
        What to call the file in the message.

    Raises
    ------
    ValueError
        Naming the format, and the command that makes JSON lines of the file where there is one.

    Examples
    --------
    >>> refuse_other_formats(b"[Applause] Ada, Bo and Cy met.", "talk.txt")
    >>> refuse_other_formats(b"%PDF-1.7", "talk.pdf")
    Traceback (most recent call last):
        ...
    ValueError: talk.pdf is a PDF: pdftotext makes plain text of it
    """
    line = line.strip()
    for magic, kind, advice in _MAGIC:
        if line.startswith(magic):
            raise ValueError(f"{name} is {kind}: {advice}")
    for pattern, kind, advice in _LINES:
        if re.match(pattern, line, re.IGNORECASE if line.startswith(b"<") else 0):
            raise ValueError(f"{name} is {kind}: {advice}")
    if line == b"{" or re.match(rb"\[\s*([{\[\"]|$)", line):
        kind = "one JSON array" if line.startswith(b"[") else "one JSON object over several lines"
        records = "json.load(sys.stdin)"
        records = records if line.startswith(b"[") else f"[{records}]"
        record = "r if isinstance(r, dict) else {'text': r}"
        _refuse_convertible(name, kind, "json", record, records)
    separator, column = _text_column(line)
    if separator:
        kind = {"\t": "a table with tabs (TSV)"}.get(separator, "a table (CSV)")
        escaped = {"\t": "\\t"}.get(separator, separator)
        records = f"csv.DictReader(sys.stdin, delimiter='{escaped}')"
        record = "r" if column == "text" else f"{{'text': r['{column}'], **r}}"
        _refuse_convertible(name, kind, "csv, json", record, records)


def _text_column(line: bytes) -> tuple[str, str]:
    """Return the separator and the name of the text's column of a table's head, if it is one."""
    head = line.decode("utf-8", errors="replace")
    for separator in ("\t", ",", ";"):
        cells = [cell.strip().strip('"') for cell in head.split(separator)]
        if len(cells) > 1 and all(re.fullmatch(r"[\w.-]*", cell) for cell in cells):
            for cell in cells:
                if cell.lower() in _TEXT_COLUMNS:
                    return separator, cell
    return "", ""


def _refuse_convertible(name: str, kind: str, modules: str, record: str, records: str) -> None:
    program = f"import {modules}, sys; [print(json.dumps({record})) for r in {records}]"
    raise ValueError(
        f'{name} is {kind}, not a text or a JSON object a line: python -c "{program}" '
        "< FILE > FILE.jsonl makes JSON lines of it"
    )
