"""JSON as strangers write it: every way in which it can be wrong is one kind of error."""

import json
from typing import Any

__all__ = ["parse_json"]


def parse_json(data: bytes) -> Any:
    r"""Return the value of a JSON text.

    Parameters
    ----------
    data : bytes
        UTF-8.

    Raises
    ------
    ValueError
        If `data` is not UTF-8 or not JSON, or is JSON that Python cannot hold: nested too deeply,
        or with a number of thousands of digits.

    Examples
    --------
    >>> parse_json(b'{"a": [1]}')
    {'a': [1]}
    >>> parse_json(b"[\n1 2]")
    Traceback (most recent call last):
        ...
    ValueError: not valid JSON (Expecting ',' delimiter, line 2, column 3)
    """
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1})") from error
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if b"\n" in data.strip() else ""
        raise ValueError(f"not valid JSON ({error.msg}, {line}column {error.colno})") from error
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"JSON that cannot be read ({error})") from error
