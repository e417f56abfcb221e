"""Names of people, places, companies, schools and works that do not exist.

All words are built from one list of syllables, so a new name looks like the old ones. Which split
a word belongs to is settled by a checksum of the word itself: a word of the test split occurs in
no training split, whatever the seed and the size.
"""

import random
import zlib
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["KINDS", "Namer", "group_of", "pick"]

T = TypeVar("T")

KINDS = ("person", "city", "company", "school", "work")

ONSETS = tuple("bdfghjklmnprstvwz") * 2 + ("br", "dr", "gl", "kr", "st", "tr", "sh")
VOWELS = tuple("aeiou") * 3 + ("ai", "ei", "ou")
CODAS = ("",) * 10 + tuple("lmnrs") * 2 + ("nd", "rk", "x")
SYLLABLES = tuple(o + v + c for o in ONSETS for v in VOWELS for c in CODAS)
COMPANIES = ("Bank", "Foods", "Glass", "Group", "Lines", "Motors", "Press", "Works")
SCHOOLS = ("Academy", "College", "Institute")
WORKS = ("The Book of {}", "Letters from {}", "Songs of {}", "{} at Night", "The Road to {}")

GROUPS = ("train",) * 8 + ("dev", "test")


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """Choose one item, by ``rng.random()`` alone: its stream is the same in every Python."""
    return items[int(rng.random() * len(items))]


def group_of(word: str) -> str:
    """Return the split, ``"train"``, ``"dev"`` or ``"test"``, to which a word belongs.

    Examples
    --------
    >>> group_of("Trekin"), group_of("Muho")
    ('train', 'test')
    """
    return GROUPS[zlib.crc32(word.encode()) % len(GROUPS)]


class Namer:
    """Names for one split, drawn one after the other.

    Parameters
    ----------
    rng : random.Random
        Advanced by each call.
    group : {"train", "dev", "test"}
        Only words of this group are used.
    """

    def __init__(self, rng: random.Random, group: str) -> None:
        self.rng = rng
        self.group = group

    def word(self) -> str:
        """Return a new capitalised word of two or three syllables."""
        first = pick(self.rng, SYLLABLES)
        if self.rng.random() < 0.25:
            first += pick(self.rng, SYLLABLES)
        while True:  # only the end is drawn again: most words belong to another split
            word = (first + pick(self.rng, SYLLABLES)).capitalize()
            if group_of(word) == self.group:
                return word

    def name(self, kind: str) -> str:
        """Return a new name of one of the `KINDS`."""
        word = self.word()
        if kind == "city":
            return word
        if kind == "company":
            return f"{word} {pick(self.rng, COMPANIES)}"
        if kind == "school":
            return f"{word} {pick(self.rng, SCHOOLS)}"
        if kind == "work":
            return pick(self.rng, WORKS).format(word)
        form = self.rng.random()
        if form < 0.15:
            return word
        middle = f" {pick(self.rng, 'ABDEGHJKLMNPRSTVW')}." if form < 0.25 else ""
        return f"{word}{middle} {self.word()}"

    def around(self, kind: str, inner: str) -> tuple[str, int]:
        """Return a school or company name that holds the name `inner`, and where."""
        if kind == "school":
            return f"University of {inner}", len("University of ")
        return f"{inner} {pick(self.rng, COMPANIES)}", 0
