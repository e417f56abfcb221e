"""Which place in a text an entity means that is given by its words alone.

Annotations often name an entity by its words, and a text may hold these several times. Places are
pairs ``(start, end)`` of characters here, so that this module stands below all others.
"""

import unicodedata
from collections.abc import Iterable
from itertools import product
from typing import Literal, get_args

__all__ = [
    "OCCURRENCES",
    "Occurrence",
    "best_places",
    "nearest_pair",
    "places",
    "trim",
    "whole_words",
]

Place = tuple[int, int]

Occurrence = Literal["refuse", "first", "nearest"]
"""What to do with an entity whose words occur several times; see `lib.extraction.triples`."""

OCCURRENCES: tuple[str, ...] = get_args(Occurrence)

# Thai to Tibetan, Burmese with the first jamo, Khmer, Tai and Balinese: blocks below Chinese and
# its neighbours whose scripts leave no space between words.
_UNSPACED = ((0x0E00, 0x1200), (0x1780, 0x1800), (0x1950, 0x1A00), (0x1A20, 0x1AB0))
_UNSPACED_FROM = 0x2E80

# Soft hyphen, zero-width space and (non-)joiners, word joiner, byte order mark, and the marks that
# only tell the direction of writing.
_NO_WIDTH = "\u00ad\u180e\ufeff" + "".join(
    map(chr, (*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A)))
)


def places(text: str, words: str) -> list[Place]:
    """List all places where `words` stand in `text`, overlapping ones included.

    Examples
    --------
    >>> places("anana", "ana"), places("anana", "")
    ([(0, 3), (2, 5)], [])
    """
    found: list[Place] = []
    start = text.find(words) if words else -1
    while start >= 0:
        found.append((start, start + len(words)))
        start = text.find(words, start + 1)
    return found


def trim(text: str, place: Place) -> Place:
    """Cut white space and characters without width off both ends; nothing may be left.

    Annotation tools export what was marked with the mouse, often with the blank behind it. No
    model can find such an entity, as no token begins or ends with a blank.

    Examples
    --------
    >>> trim("Ada  wrote", (0, 5)), trim("Ada\u200b wrote", (0, 4)), trim(" ", (0, 1))
    ((0, 3), (0, 3), (1, 1))
    """
    start, end = place
    while start < end and _is_blank(text[start]):
        start += 1
    while start < end and _is_blank(text[end - 1]):
        end -= 1
    return start, end


def _is_blank(char: str) -> bool:
    return char.isspace() or char in _NO_WIDTH


def whole_words(text: str, candidates: Iterable[Place]) -> list[Place]:
    """Keep the places that begin and end no word in its middle, and part no letter from its mark.

    In scripts that leave no space between words, every place passes.

    Examples
    --------
    >>> whole_words("Bo wrote Books", places("Bo wrote Books", "Bo"))
    [(0, 2)]
    """
    return [p for p in candidates if not (_cuts_word(text, p[0]) or _cuts_word(text, p[1]))]


def best_places(
    text: str, entities: Iterable[str], *, tokenised: bool = False
) -> dict[str, list[Place]]:
    """Choose for each entity of a text the places that are most likely meant, in their order.

    These are, of its occurrences, those that are, in this order of weight,

    1. not in the middle of a word ("Iran" in "Iranian");
    2. in a text of tokens, between spaces or the ends of the text ("Iran" not in "B-Iran");
    3. not inside a longer entity of the same text ("Cesena" in "A.C. Cesena").

    Parameters
    ----------
    text : str
        The text.
    entities : iterable of str
        The words of all its entities.
    tokenised : bool
        Whether spaces set off punctuation too, as in many published corpora.

    Returns
    -------
    dict of str to list of (int, int)
        Without the entities that do not occur.

    Examples
    --------
    >>> text = "A.C. Cesena is from Cesena"
    >>> best_places(text, ["A.C. Cesena", "Cesena"])["Cesena"]
    [(20, 26)]
    """
    found = {entity: places(text, entity) for entity in dict.fromkeys(entities)}
    every = [place for of_one in found.values() for place in of_one]

    def rank(place: Place) -> tuple[bool, bool, bool]:
        start, end = place
        return (
            _cuts_word(text, start) or _cuts_word(text, end),
            tokenised and not (_space(text, start - 1) and _space(text, end)),
            any(a <= start and end <= b and (a, b) != place for a, b in every),
        )

    best = {}
    for entity, of_one in found.items():
        if len(of_one) > 1:  # nothing to choose for most
            ranks = [rank(place) for place in of_one]
            of_one = [place for place, its in zip(of_one, ranks, strict=True) if its == min(ranks)]
        if of_one:
            best[entity] = of_one
    return best


def nearest_pair(subjects: Iterable[Place], objects: Iterable[Place]) -> tuple[Place, Place]:
    """Choose the subject and the object that stand nearest to each other; of several, the first.

    A pair that shares no character comes before any that does.

    Examples
    --------
    >>> nearest_pair([(0, 3), (20, 23)], [(10, 15)])
    ((20, 23), (10, 15))
    """

    def distance(pair: tuple[Place, Place]) -> tuple[bool, int]:
        (a, b), (c, d) = pair
        between = max(a, c) - min(b, d)
        return between < 0, between

    return min(product(subjects, objects), key=distance)


def _cuts_word(text: str, border: int) -> bool:
    """Tell whether the characters on both sides of a border belong to one word."""
    if not 0 < border < len(text):
        return False
    before, after = text[border - 1], text[border]
    if unicodedata.combining(after) and not before.isspace():
        return True
    return all(char.isalnum() and not _unspaced(char) for char in (before, after))


def _unspaced(char: str) -> bool:
    """Tell whether a character is of a script that leaves no space between words."""
    code = ord(char)
    return code >= _UNSPACED_FROM or any(first <= code < last for first, last in _UNSPACED)


def _space(text: str, index: int) -> bool:
    """Tell whether a character is a space or lies outside the text."""
    return not 0 <= index < len(text) or text[index].isspace()
