"""Texts to predict on, read one by one as they come."""

from collections.abc import Callable, Iterable, Iterator

from lib.extraction.corpora.formats import refuse_other_formats
from lib.extraction.jsontext import parse_json
from lib.extraction.triples import Example, example_from_json

__all__ = ["read_inputs"]

_MARK = b"\xef\xbb\xbf"


def read_inputs(
    lines: Iterable[bytes],
    name: str,
    *,
    on_error: Callable[[ValueError], object] | None = None,
) -> Iterator[Example]:
    r"""Read texts to predict on, one a line, as plain text or as JSON.

    Parameters
    ----------
    lines : iterable of bytes
        UTF-8, such as an open binary file. If the first line that is not blank starts with ``{``,
        every line is a JSON object with a ``text`` and, if it likes, an ``id``; triples in it are
        not looked at. Else every line is a text. Blank lines are skipped. No more lines are read
        than are asked for.
    name : str
        What to call the source in messages.
    on_error : callable, optional
        Gets the error of each line that cannot be read, and the reading goes on. None: the first
        such line ends it.

    Yields
    ------
    Example
        Without triples. The id is the one given, else the number of the line.

    Raises
    ------
    ValueError
        If there is no line but blank ones, if the first one shows that this is another format, or
        without `on_error` if a line is malformed; the message names the line.

    Examples
    --------
    >>> [e.text for e in read_inputs([b"Ada wrote Notes.\n", b"\n", b"Bo read them."], "-")]
    ['Ada wrote Notes.', 'Bo read them.']
    >>> [e.id for e in read_inputs([b'{"text": "Ada", "id": "a"}\n', b'{"text": "Bo"}'], "-")]
    ['a', '2']
    """
    read = None
    for number, line in enumerate(lines, 1):
        if number == 1:
            line = line.removeprefix(_MARK)
        if not line.strip():
            continue
        if read is None:
            refuse_other_formats(line, name)
            read = _json_line if line.lstrip().startswith(b"{") else _plain_line
        try:
            example = read(line, number, name)
        except ValueError as error:
            if on_error is None:
                raise
            on_error(error)
        else:
            if example is not None:
                yield example
    if read is None:
        raise ValueError(f"{name} holds no text")


def _json_line(line: bytes, number: int, name: str) -> Example:
    try:
        record = parse_json(line)
        if isinstance(record, dict):
            record.pop("triples", None)
        return example_from_json(record, default_id=str(number), labelled=False)
    except ValueError as error:
        raise ValueError(f"{name}, line {number}: {error}") from error


def _plain_line(line: bytes, number: int, name: str) -> Example | None:
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}, line {number}: not UTF-8 ({error.reason})") from error
    return Example(str(number), text, ()) if text else None  # of Unicode's white space alone
