"""Cut a text that is longer than a model reads into overlapping windows of its tokens."""

from collections.abc import Sequence

__all__ = ["windows"]

_ENDS = (".", "!", "?", "…")  # of a sentence, if white space follows
_WIDE_ENDS = ("。", "！", "？", "｡")  # of a sentence, whatever follows
_CLOSING = "\"'”’»)]}」』）】"

_INSIDE, _LETTER, _WORD, _SENTENCE = range(-1, 3)  # what begins at a token, the best place last


def windows(text: str, offsets: Sequence[tuple[int, int]], most: int) -> list[tuple[int, int]]:
    """Choose the windows in which a text is read.

    A window ends, and the next one begins, where a sentence does, else where a word does, else
    where a character does, of several such places at the last within reach.

    Parameters
    ----------
    text : str
        The whole text.
    offsets : sequence of (int, int)
        The characters of its tokens, as :func:`lib.extraction.alignment.trim_offsets` returns
        them, without the special tokens at both ends.
    most : int
        Most tokens of a window, at least 1.

    Returns
    -------
    list of (int, int)
        Tokens ``[first, last)`` of each window, in order, at least one. Each token is in a window,
        and any ``most // 2 + 1`` tokens that stand together are in one window together. A window
        begins ``most // 8`` tokens or more behind the one before it. A text of at most `most`
        tokens is one window.

    Raises
    ------
    ValueError
        If `most` is below 1.

    Examples
    --------
    >>> text = "Ada wrote. Bo read it all. Cy slept."
    >>> offsets = [(0, 3), (4, 10), (11, 13), (14, 18), (19, 21), (22, 26), (27, 29), (30, 36)]
    >>> windows(text, offsets, 7)
    [(0, 6), (2, 8)]
    >>> windows(text, offsets, 8)
    [(0, 8)]
    """
    if most < 1:
        raise ValueError(f"most must be at least 1, got {most}")
    count = len(offsets)
    if count <= most:
        return [(0, count)]
    ranks = _ranks(text, offsets)

    def best(first: int, last: int) -> int:
        return max(range(first, last + 1), key=lambda token: (ranks[token], token))

    half, quarter = most // 2, most // 4
    found = []
    first = 0
    while count - first > most:
        last = best(first + half + max(1, quarter), first + most)
        found.append((first, last))
        first = best(first + max(1, quarter // 2), last - half)
    return [*found, (first, count)]


def _ranks(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Tell of each token what begins with it."""
    ranks = []
    reach = 0  # the characters of the tokens so far
    for start, end in offsets:
        if start == end:
            ranks.append(_INSIDE)
            continue
        gap = text[reach:start]
        before = text[max(0, reach - 8) : reach].rstrip(_CLOSING)
        spaced = any(map(str.isspace, gap))
        if start < reach:  # several tokens of one character
            ranks.append(_INSIDE)
        elif "\n" in gap or before.endswith(_WIDE_ENDS) or (spaced and before.endswith(_ENDS)):
            ranks.append(_SENTENCE)
        else:
            ranks.append(_WORD if spaced else _LETTER)
        reach = max(reach, end)
    return ranks
