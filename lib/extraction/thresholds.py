"""How the scores of a trained model are read: what they must exceed, and what they say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lib._checks import check_threshold

__all__ = ["Decoding", "Threshold", "both_thresholds"]

Threshold = float | Sequence[float]
"""What scores must exceed, one number for all tables or one for each of their two kinds.

The kinds are, in this order, what is found first and what joins it: spans and links in
`lib.gplinker.GPLinker`, tags of subjects and of objects in `lib.casrel.CasRel`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    r"""How a model reads its scores where nothing else is said; it is saved with the model.

    Parameters
    ----------
    threshold : float or sequence of float
        As `Threshold`; kept as a tuple of two.
    scale, offset : float
        The confidence of a triple with the least score s is :math:`\sigma(\gamma s + \beta)`, the
        logistic function with the scale :math:`\gamma > 0` and the offset :math:`\beta`.

    Raises
    ------
    ValueError
        If a number is not finite, or `scale` is not above 0.

    Examples
    --------
    >>> Decoding(threshold=0.5)
    Decoding(threshold=(0.5, 0.5), scale=1.0, offset=0.0)
    >>> Decoding(scale=2.0, offset=1.0).confidence(-0.5)
    0.5
    """

    threshold: Threshold = (0.0, 0.0)
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can be read with."""
        object.__setattr__(self, "threshold", both_thresholds(self.threshold))
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be above 0 and finite, got {self.scale}")
        if not math.isfinite(self.offset):
            raise ValueError(f"offset must be finite, got {self.offset}")

    def confidence(self, score: float) -> float:
        """Return the confidence of a triple with this least score."""
        x = self.scale * score + self.offset
        return 1 / (1 + math.exp(-x)) if x > 0 else math.exp(x) / (1 + math.exp(x))


def both_thresholds(threshold: Threshold) -> tuple[float, float]:
    """Return what the scores of the two kinds of tables must exceed.

    Raises
    ------
    ValueError
        If there is more or less than one number or two, or one is not finite.

    Examples
    --------
    >>> both_thresholds(0.5), both_thresholds([0.5, 1])
    ((0.5, 0.5), (0.5, 1.0))
    """
    if isinstance(threshold, int | float):
        threshold = (threshold, threshold)
    given = list(threshold)
    if len(given) != 2 or not all(isinstance(each, int | float) for each in given):
        raise ValueError(f"threshold must be one number or two, got {threshold!r}")
    for each in given:
        check_threshold("threshold", each)
    return float(given[0]), float(given[1])
