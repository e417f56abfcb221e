"""From the scores of start and end tags back to spans."""

from collections import defaultdict
from collections.abc import Iterator
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["CandidateSpan", "TaggedSpans", "candidate_spans", "keep_best", "tagged_spans"]


class TaggedSpans(NamedTuple):
    """Spans read off tags."""

    spans: Tensor
    """int64 ``(N, k + 2)``: the leading indices of the tags, then first and last token."""
    margins: Tensor
    """``(N,)``: the smaller margin of each span's two tags, above 0."""


def tagged_spans(margins: Tensor) -> TaggedSpans:
    r"""Pair each start above 0 with the nearest end above 0 that does not lie before it.

    .. math:: \mathcal D = \{(a, \min\{b \in \mathcal B : b \ge a\}) : a \in \mathcal A\}

    for each leading index, with :math:`\mathcal A` and :math:`\mathcal B` its tokens whose start
    and whose end is above 0.

    Equations: :eq:`eq:casrel-nearest`

    Parameters
    ----------
    margins : Tensor
        ``(..., L, 2)`` with k leading dimensions: scores of starts and ends less the score that
        they must exceed, :func:`lib.casrel.power_threshold`; −inf for tokens that do not count.

    Returns
    -------
    TaggedSpans
        Ordered by leading indices, then by start. A start without an end behind it gives nothing;
        a margin of exactly 0 tags nothing.

    Raises
    ------
    ValueError
        If the last dimension is not 2, or a margin is NaN.

    Notes
    -----
    :func:`lib.casrel.nearest_end_spans` of all rows at once: starts and ends are found as sorted
    positions, and each start looks its end up among them, so the time is that of one comparison
    per tag. What the pairing cannot represent: of two spans with one start only one comes back,
    and a span that holds an end of another one is cut off there.

    Examples
    --------
    >>> margins = torch.full((1, 6, 2), -1.0)
    >>> margins[0, [0, 2], 0] = margins[0, [3, 5], 1] = 1.0
    >>> tagged_spans(margins).spans.tolist()
    [[0, 0, 3], [0, 2, 3]]
    """
    if margins.dim() < 2 or margins.shape[-1] != 2:
        raise ValueError(f"margins: expected shape (..., L, 2), got {tuple(margins.shape)}")
    if margins.isnan().any():
        raise ValueError("margins: expected numbers, got NaN")
    shape, length = margins.shape[:-1], margins.shape[-2]
    starts, ends = (margins > 0).unbind(-1)
    start = starts.flatten().nonzero().squeeze(1)
    end = ends.flatten().nonzero().squeeze(1)
    place = torch.searchsorted(end, start)
    beyond = place == len(end)
    start, place = start[~beyond], place[~beyond]
    nearest = end[place]
    same = nearest // max(length, 1) == start // max(length, 1)
    start, nearest = start[same], nearest[same]
    flat = margins.flatten(0, -2)
    least = torch.minimum(flat[start, 0], flat[nearest, 1])
    index = torch.unravel_index(start, shape)
    return TaggedSpans(torch.stack((*index, index[-1] + nearest - start), dim=1), least)


class CandidateSpan(NamedTuple):
    """A span that the tags give at the thresholds ``[low, score)``."""

    place: tuple[int, ...]
    """The leading indices of the tags, then first and last token."""
    low: float
    score: float


def candidate_spans(margins: Tensor, floor: float) -> list[CandidateSpan]:
    r"""Return what `tagged_spans` gives at any threshold from `floor` on, and at which.

    The nearest end above a threshold changes with it: a start a and an end b are paired at

    .. math:: \max_{a \le c < b} e_c \le t < \min(s_a, e_b)

    where that range is not empty.

    Parameters
    ----------
    margins : Tensor
        As of `tagged_spans`.
    floor : float
        The least threshold that is of interest.

    Returns
    -------
    list of CandidateSpan
        By leading indices, start, end; ``low`` is −inf for what no nearer end cuts short.

    Examples
    --------
    >>> margins = torch.tensor([[[3.0, -1.0], [-9.0, 2.0]]])
    >>> for span in candidate_spans(margins, -2.0):
    ...     print(*span)
    (0, 0, 0) -inf -1.0
    (0, 0, 1) -1.0 2.0
    """

    def above(which: int) -> Iterator[tuple[tuple[int, ...], int, float]]:
        of_kind = margins[..., which]
        places = (of_kind > floor).nonzero()
        scores = of_kind[tuple(places.unbind(1))].tolist()
        for (*row, token), score in zip(places.tolist(), scores, strict=True):
            yield tuple(row), token, score

    ends: defaultdict[tuple[int, ...], list[tuple[int, float]]] = defaultdict(list)
    for row, end, score in above(1):
        ends[row].append((end, score))
    found = []
    for row, start, of_start in above(0):
        low = -inf
        for end, of_end in ends[row]:
            if end < start:
                continue
            if low < min(of_start, of_end):
                found.append(CandidateSpan((*row, start, end), low, min(of_start, of_end)))
            low = max(low, of_end)
    return found


def keep_best(found: TaggedSpans, most: int) -> TaggedSpans:
    """Keep at most so many spans of each first index, those with the largest margins, in order."""
    counts = found.spans[:, 0].bincount()
    if not len(counts) or int(counts.max()) <= most:
        return found
    groups = torch.split(found.margins, counts.tolist())
    firsts = (counts.cumsum(0) - counts).tolist()
    rows = torch.cat(
        [
            group.topk(min(most, len(group))).indices.sort().values + first
            for group, first in zip(groups, firsts, strict=True)
        ]
    )
    return TaggedSpans(found.spans[rows], found.margins[rows])
