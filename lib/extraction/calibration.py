"""Choose the threshold of decoding on held-out sentences, and only where that is no noise.

Pure functions of `Candidates`: per sentence, what a model finds at which thresholds, whether each
is right, and how many triples there were to find. No model is needed;
`lib.extraction.training.find_candidates` asks one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isfinite

import torch
from torch import Tensor

from lib._checks import check_threshold
from lib.extraction.metrics import Counts
from lib.soft_zlpr import fit_scale_and_offset

__all__ = [
    "Calibration",
    "Candidates",
    "Gain",
    "Point",
    "ReliabilityBin",
    "best_threshold",
    "calibrate",
    "counts_at",
    "cross_validated_thresholds",
    "fit_confidence",
    "gain_interval",
    "precision_recall_table",
    "reliability",
    "sweep",
]


@dataclass(frozen=True, slots=True)
class Candidates:
    """What was found in one sentence.

    Parameters
    ----------
    scores : tuple of float
        Of each triple found the smallest score that had to exceed the threshold.
    right : tuple of bool
        Whether each is one of the sentence's triples; no two may be the same one.
    gold : int
        How many triples there are to find, found or not.
    lows : tuple of float
        The least threshold at which each is found; −inf if at every one below its score, as where
        this is empty. A triple that is found in several ranges stands here once for each.

    Raises
    ------
    ValueError
        If the lengths differ, a score is not finite, a score is not above its low, or at some
        threshold more triples are right than there are.
    """

    scores: tuple[float, ...]
    right: tuple[bool, ...]
    gold: int
    lows: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no sentence can have."""
        if len(self.scores) != len(self.right):
            raise ValueError(
                f"right must have one entry per score, {len(self.scores)}, got {len(self.right)}"
            )
        if not all(map(isfinite, self.scores)):
            raise ValueError(f"scores must be finite, got {self.scores}")
        if self.lows and len(self.lows) != len(self.scores):
            raise ValueError(
                f"lows must have one entry per score, {len(self.scores)}, or none, "
                f"got {len(self.lows)}"
            )
        for low, score in zip(self.lows, self.scores, strict=False):
            if not low < score:
                raise ValueError(f"scores must be above their lows, got {score} with low {low}")
        right = max(self.at(low).tp for low in {-inf, *self.lows})
        if right > self.gold:
            raise ValueError(f"gold must be at least the {right} right, got {self.gold}")

    def ranges(self) -> list[tuple[float, float, bool]]:
        """Return for each triple low and score, between which it is found, and if it is right."""
        lows = self.lows or (-inf,) * len(self.scores)
        return list(zip(lows, self.scores, self.right, strict=True))

    def at(self, threshold: float) -> Counts:
        """Count what is found at the threshold."""
        kept = [right for low, score, right in self.ranges() if low <= threshold < score]
        return Counts(sum(kept), len(kept), self.gold)


@dataclass(frozen=True, slots=True)
class Point:
    """A threshold and what is counted at it."""

    threshold: float
    counts: Counts


@dataclass(frozen=True, slots=True)
class Gain:
    """A difference of two F1 on the same sentences, with a bootstrap interval."""

    gain: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """The result of `calibrate`.

    Attributes
    ----------
    threshold : float
        The one to decode at: `best`, or 0 if the gain may be noise.
    best : float
        The threshold with the best F1 on all sentences.
    at_zero, at_best : Counts
        What is counted at 0 and at `best`. The latter flatters: the sentences chose it.
    gain : Gain
        Of the F1 with thresholds chosen on the other folds over the F1 at 0.
    """

    threshold: float
    best: float
    at_zero: Counts
    at_best: Counts
    gain: Gain


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """The triples of one range of confidence: how many, what was said, and what held."""

    count: int
    confidence: float
    right: float


def counts_at(sentences: Sequence[Candidates], threshold: float) -> Counts:
    """Count over all sentences what is found at the threshold."""
    check_threshold("threshold", threshold)
    return sum((sentence.at(threshold) for sentence in sentences), Counts())


def sweep(sentences: Sequence[Candidates], *, floor: float) -> list[Point]:
    """Count at every threshold that makes a difference, and at 0.

    Parameters
    ----------
    sentences : sequence of Candidates
        May be empty.
    floor : float
        The threshold at which the candidates were found; at most 0. Nothing is known below it.

    Returns
    -------
    list of Point
        By rising threshold: `floor`, 0, and the middle between each two neighbouring numbers at
        which a triple comes or goes. Equal scores are kept or left together.

    Raises
    ------
    ValueError
        If `floor` is above 0 or not finite, or a score is not above it.

    Examples
    --------
    >>> points = sweep([Candidates((2.0, 1.0), (True, False), 1)], floor=-1.0)
    >>> [(point.threshold, round(point.counts.f1, 2)) for point in points]
    [(-1.0, 0.67), (0.0, 0.67), (1.5, 1.0)]
    """
    if not -inf < floor <= 0:
        raise ValueError(f"floor must be a finite number and at most 0, got {floor}")
    ranges = [found for sentence in sentences for found in sentence.ranges()]
    least = min((score for _, score, _ in ranges), default=inf)
    if least <= floor:
        raise ValueError(f"scores must be above floor, {floor}, got {least}")
    # What comes at a threshold, and what goes.
    changes = sorted(
        change for low, score, right in ranges for change in ((low, 1, right), (score, -1, right))
    )
    values = sorted({at for at, _, _ in changes if at > floor})
    thresholds = {floor, 0.0}
    for low, high in pairwise(values):
        middle = low + (high - low) / 2
        thresholds.add(middle if middle < high else low)  # neighbours among the floats
    gold = sum(sentence.gold for sentence in sentences)
    kept = right = done = 0
    points = []
    for threshold in sorted(thresholds):
        while done < len(changes) and changes[done][0] <= threshold:
            _, change, is_right = changes[done]
            kept += change
            right += change * is_right
            done += 1
        points.append(Point(threshold, Counts(right, kept, gold)))
    return points


def best_threshold(sentences: Sequence[Candidates], *, floor: float) -> float:
    """Return the threshold of `sweep` with the best F1; of equals the one nearest to 0.

    Where nothing is found or nothing is right, all are equal and it is 0.
    """
    points = sweep(sentences, floor=floor)
    return max(points, key=lambda point: (point.counts.f1, -abs(point.threshold))).threshold


def cross_validated_thresholds(
    sentences: Sequence[Candidates], *, floor: float, folds: int = 5, seed: int = 0
) -> list[float]:
    """Choose for each sentence the threshold that is best on the folds without it.

    Parameters
    ----------
    sentences : sequence of Candidates
        At least `folds`.
    floor : float
        As of `sweep`.
    folds : int
        Number of parts of nearly equal size; at least 2.
    seed : int
        Of the order in which the sentences are dealt out. Global random state is not touched.

    Returns
    -------
    list of float
        One per sentence, in order.

    Raises
    ------
    ValueError
        If `folds` is below 2 or above the number of sentences.
    """
    if not 2 <= folds <= len(sentences):
        raise ValueError(
            f"folds must be from 2 to the number of sentences, {len(sentences)}, got {folds}"
        )
    order = torch.randperm(len(sentences), generator=_generator(seed)).tolist()
    chosen = [0.0] * len(sentences)
    for fold in range(folds):
        held = set(order[fold::folds])
        others = [sentence for i, sentence in enumerate(sentences) if i not in held]
        threshold = best_threshold(others, floor=floor)
        for i in held:
            chosen[i] = threshold
    return chosen


def gain_interval(
    sentences: Sequence[Candidates],
    thresholds: Sequence[float],
    *,
    repeats: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Gain:
    r"""Compare the F1 at given thresholds with that at 0, by a paired bootstrap over sentences.

    .. math:: \Delta = \frac{2\sum_i t_i}{\sum_i (p_i + g_i)} - \frac{2\sum_i t'_i}{\sum_i
        (p'_i + g_i)}

    with the counts of right, found and true triples at the thresholds and (primed) at 0. Each
    repeat draws as many sentences as there are, with replacement, the same for both; the interval
    holds the middle `level` of the repeats.

    Parameters
    ----------
    sentences : sequence of Candidates
        At least one.
    thresholds : sequence of float
        One per sentence.
    repeats : int
        Number of draws; at least 1.
    level : float
        Between 0 and 1.
    seed : int
        Of the draws. Global random state is not touched.

    Returns
    -------
    Gain
        All 0 where no sentence has, or is said to have, any triple. The interval is of the draws:
        it does not know how much the choice of the thresholds would vary.

    Raises
    ------
    ValueError
        If there is no sentence, the lengths differ, or `repeats` or `level` is out of range.
    """
    if not sentences or len(thresholds) != len(sentences):
        raise ValueError(
            f"thresholds must be one per sentence, at least one, got {len(thresholds)} "
            f"for {len(sentences)}"
        )
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    if not 0 < level < 1:
        raise ValueError(f"level must be above 0 and below 1, got {level}")
    rows = []
    for sentence, threshold in zip(sentences, thresholds, strict=True):
        new, old = sentence.at(threshold), sentence.at(0.0)
        rows.append((new.tp, new.predicted + new.gold, old.tp, old.predicted + old.gold))
    counts = torch.tensor(rows, dtype=torch.float64)
    generator = _generator(seed)
    draws = torch.stack(
        [
            counts[torch.randint(len(rows), (len(rows),), generator=generator)].sum(0)
            for _ in range(repeats)
        ]
    )
    edges = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = _gains(draws).quantile(edges).tolist()
    return Gain(float(_gains(counts.sum(0))), low, high)


def calibrate(
    sentences: Sequence[Candidates],
    *,
    floor: float,
    folds: int = 5,
    repeats: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Calibration:
    """Choose a threshold, or stay at 0.

    The rule: each sentence is decoded at the threshold that is best on the folds without it. If
    the bootstrap interval of that gain in F1 over 0 lies above 0, the threshold with the best F1
    on all sentences is taken. If it holds 0, or lies below, the threshold stays at 0, for which
    the models are trained: the gain may be noise.

    Parameters
    ----------
    sentences : sequence of Candidates
        At least `folds`.
    floor, folds, repeats, level, seed
        As of `cross_validated_thresholds` and `gain_interval`.

    Returns
    -------
    Calibration
        With both counts and the interval, whatever was decided.

    Raises
    ------
    ValueError
        As of `cross_validated_thresholds` and `gain_interval`.

    Examples
    --------
    >>> sure, unsure = Candidates((3.0,), (True,), 1), Candidates((1.0,), (False,), 0)
    >>> calibrate([sure, unsure] * 20, floor=-1.0).threshold
    2.0
    """
    thresholds = cross_validated_thresholds(sentences, floor=floor, folds=folds, seed=seed)
    gain = gain_interval(sentences, thresholds, repeats=repeats, level=level, seed=seed)
    best = best_threshold(sentences, floor=floor)
    return Calibration(
        best if gain.low > 0 else 0.0,
        best,
        counts_at(sentences, 0.0),
        counts_at(sentences, best),
        gain,
    )


def precision_recall_table(points: Sequence[Point], *, rows: int = 12) -> str:
    """Return the curve for reading: at most `rows` thresholds, the first, 0 and the last with them.

    A rate of nothing is shown as "–".
    """
    if rows < 3:
        raise ValueError(f"rows must be at least 3, got {rows}")
    last = len(points) - 1
    shown = (
        {round(i * last / (rows - 2)) for i in range(rows - 1)}
        if last > rows - 2
        else set(range(len(points)))
    )
    shown |= {i for i, point in enumerate(points) if point.threshold == 0}
    lines = ["threshold  precision  recall      F1"]
    for i in sorted(shown):
        counts = points[i].counts
        precision = f"{counts.precision:.4f}" if counts.predicted else "–"
        recall, f1 = (f"{x:.4f}" if counts.gold else "–" for x in (counts.recall, counts.f1))
        lines.append(f"{points[i].threshold:9.3f}{precision:>11}{recall:>8}{f1:>8}")
    return "\n".join(lines)


def fit_confidence(
    sentences: Sequence[Candidates], *, threshold: float = -inf
) -> tuple[float, float]:
    """Fit the scale and offset that make the logistic function of a score a probability.

    Parameters
    ----------
    sentences : sequence of Candidates
        Their scores and what is right among them.
    threshold : float
        Only what is found at it counts; −inf: everything.

    Returns
    -------
    scale, offset : float
        Platt's, by :func:`lib.soft_zlpr.fit_scale_and_offset` in float64.

    Raises
    ------
    ValueError
        If there is no best pair: all or none is right, the scores are equal, do not rise with
        what is right, or separate it.
    """
    scores, right = _joined(sentences, threshold)
    return fit_scale_and_offset(scores, right)


def reliability(
    sentences: Sequence[Candidates],
    *,
    scale: float = 1.0,
    offset: float = 0.0,
    bins: int = 10,
    threshold: float = -inf,
) -> list[ReliabilityBin]:
    """Compare confidences with what is right, in `bins` equal ranges from 0 to 1.

    Parameters
    ----------
    sentences : sequence of Candidates
        May be empty.
    scale, offset : float
        The confidence of a score s is the logistic function of scale · s + offset.
    bins : int
        At least 1.
    threshold : float
        Only what is found at it counts; −inf: everything.

    Returns
    -------
    list of ReliabilityBin
        Those that hold anything, by rising confidence.

    Raises
    ------
    ValueError
        If `bins` is below 1.

    Examples
    --------
    >>> reliability([Candidates((0.0, 0.0), (True, False), 1)], bins=2)
    [ReliabilityBin(count=2, confidence=0.5, right=0.5)]
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    scores, right = _joined(sentences, threshold)
    confidence = torch.sigmoid(scale * scores + offset)
    of = (confidence * bins).long().clamp(max=bins - 1)
    return [
        ReliabilityBin(int(held.sum()), float(confidence[held].mean()), float(right[held].mean()))
        for held in (of == number for number in range(bins))
        if held.any()
    ]


def _joined(sentences: Sequence[Candidates], threshold: float) -> tuple[Tensor, Tensor]:
    """Return the scores of what is found at a threshold, and whether each is right, as float64."""
    found = [
        (score, float(right))
        for sentence in sentences
        for low, score, right in sentence.ranges()
        if threshold == -inf or low <= threshold < score
    ]
    pairs = torch.tensor(found, dtype=torch.float64).view(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def _gains(counts: Tensor) -> Tensor:
    """Return the differences of F1 of counts ``(..., 4)``; an F1 of nothing is 0."""
    new_right, new_all, old_right, old_all = counts.unbind(-1)
    return 2 * new_right / new_all.clamp(min=1) - 2 * old_right / old_all.clamp(min=1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
