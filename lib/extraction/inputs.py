"""Texts to predict on, read one by one as they come."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from io import BufferedIOBase
from typing import Any, NamedTuple

from lib.extraction.corpora.formats import refuse_other_formats
from lib.extraction.jsontext import parse_json
from lib.extraction.triples import Example, example_from_json

__all__ = ["Input", "Lines", "in_chunks", "read_inputs"]

_MARK = b"\xef\xbb\xbf"
_AT_ONCE = 2**20  # bytes asked for in one read


class Input(NamedTuple):
    """A text to predict on, and what else its line held."""

    example: Example
    record: dict[str, Any]
    """The JSON object of the line without its triples; empty for a line of plain text."""


class Lines:
    r"""The lines of a binary stream as they come: none waits for a later one.

    Parameters
    ----------
    source : BufferedIOBase
        Such as a file, or ``sys.stdin.buffer``.

    Examples
    --------
    >>> from io import BytesIO
    >>> list(Lines(BytesIO(b"Ada\n\nBo")))
    [b'Ada', b'', b'Bo']
    """

    def __init__(self, source: BufferedIOBase) -> None:
        self._source = source
        self._whole: deque[bytes] = deque()
        self._begun = b""

    def __iter__(self) -> "Lines":
        """Return itself."""
        return self

    def __next__(self) -> bytes:
        """Return the next line without its end, reading only if none is there."""
        while not self._whole:
            data = self._source.read1(_AT_ONCE)
            if not data and not self._begun:
                raise StopIteration
            *whole, self._begun = (self._begun + (data or b"\n")).split(b"\n")
            self._whole.extend(whole)
        return self._whole.popleft()

    def waiting(self) -> bool:
        """Tell whether a line that is not blank must be read before it can be returned."""
        return not any(line.strip() for line in self._whole)


def in_chunks(
    inputs: Iterator[Input], lines: Lines, most: int, characters: int = 2**20
) -> Iterator[list[Input]]:
    """Group what `read_inputs` makes of `lines`: as many at a time as are there.

    At most `most`, and none after those that together have so many characters.
    """
    chunk = []
    length = 0
    for each in inputs:
        chunk.append(each)
        length += len(each.example.text)
        if len(chunk) == most or length >= characters or lines.waiting():
            yield chunk
            chunk = []
            length = 0
    if chunk:
        yield chunk


def read_inputs(
    lines: Iterable[bytes],
    name: str,
    *,
    on_error: Callable[[ValueError], object] | None = None,
) -> Iterator[Input]:
    r"""Read texts to predict on, one a line, as plain text or as JSON.

    Parameters
    ----------
    lines : iterable of bytes
        UTF-8, such as `Lines`. If the first line that is not blank starts with ``{``,
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
    Input
        Its example has no triples; its id is the one given, else the number of the line.

    Raises
    ------
    ValueError
        If there is no line but blank ones, if the first one shows that this is another format, or
        without `on_error` if a line is malformed; the message names the line.

    Examples
    --------
    >>> [i.example.text for i in read_inputs([b"Ada wrote Notes.\n", b"\n", b"Bo read them."], "-")]
    ['Ada wrote Notes.', 'Bo read them.']
    >>> lines = [b'{"text": "Ada", "id": "a", "year": 1843}\n', b'{"text": "Bo"}']
    >>> first, second = read_inputs(lines, "-")
    >>> first.example.id, second.example.id, first.record["year"]
    ('a', '2', 1843)
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
            found = read(line, number, name)
        except ValueError as error:
            if on_error is None:
                raise
            on_error(error)
        else:
            if found is not None:
                yield found
    if read is None:
        raise ValueError(f"{name} holds no text")


def _json_line(line: bytes, number: int, name: str) -> Input:
    try:
        record = parse_json(line)
        if isinstance(record, dict):
            record.pop("triples", None)
        example = example_from_json(record, default_id=str(number), labelled=False)
    except ValueError as error:
        raise ValueError(f"{name}, line {number}: {error}") from error
    return Input(replace(example, source=f"{name}, text {example.id!r}"), record)


def _plain_line(line: bytes, number: int, name: str) -> Input | None:
    try:
        text = line.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}, line {number}: not UTF-8 ({error.reason})") from error
    # There may be nothing but white space of Unicode.
    return Input(Example(str(number), text, (), f"{name}, line {number}"), {}) if text else None
