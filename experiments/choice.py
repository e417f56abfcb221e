"""Settings chosen on a grid that goes on until the best lies inside it.

A fixed grid decides a comparison when one method's best setting lies outside: then its edge is
chosen. Here a setting is a place on an endless grid of half decades, and the search goes on until
no neighbour on any axis is better. :func:`edges` checks that of any grid, also of a fixed one.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

__all__ = ["Place", "Score", "climb", "edges", "setting"]

Place = tuple[int, ...]


class Score(NamedTuple):
    """How good a setting is on the validation part."""

    value: float  # the larger the better, between 0 and 1
    log_loss: float

    @property
    def rank(self) -> tuple[float, float]:
        """What is compared: values equal to a tenth of a per cent are ties."""
        return round(self.value, 3), -float(f"{self.log_loss:.3g}")  # else a plateau has no end


def setting(place: Place) -> tuple[float, ...]:
    """Return the numbers of a place: 0 is 1, every step multiplies by the root of ten."""
    return tuple(float(f"{10 ** (step / 2):.3g}") for step in place)


def climb(score: Callable[[Place], Score], start: Place, *, most: int = 15) -> Place:
    """Walk to the best neighbour, one axis at a time, until none is better.

    After ``most`` moves the walk ends where it is, and :func:`edges` will say so.
    """
    here = start
    for _ in range(most):
        around = [here]
        for axis, step in enumerate(here):
            around += [(*here[:axis], step + by, *here[axis + 1 :]) for by in (-1, 1)]
        best = max(around, key=lambda place: score(place).rank)
        if best == here:
            return here
        here = best
    return here


def edges(tried: Iterable[Sequence[float]], chosen: Sequence[float]) -> list[int]:
    """Return the axes on which nothing smaller or nothing larger was tried, all else equal."""
    lines = list(tried)
    found = []
    for axis, value in enumerate(chosen):
        on_line = [
            other[axis]
            for other in lines
            if all(other[i] == chosen[i] for i in range(len(chosen)) if i != axis)
        ]
        if not min(on_line, default=value) < value < max(on_line, default=value):
            found.append(axis)
    return found
