"""The cells above 0 of an efficient pointer's tables, from their parts."""

from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from lib.global_pointer._arguments import check_mask, check_parts, keep_cells, refuse_scores, upcast

__all__ = ["Spans", "factorised_spans"]

_CHUNK_CELLS = 1 << 17  # cells looked at together, within a core's cache


class Spans(NamedTuple):
    """Chosen cells and their scores, in the order of the tables."""

    cells: Tensor
    """``(N, 4)`` int64: batch, head, start i and end j."""
    scores: Tensor
    """``(N,)``, all above 0."""


@torch.no_grad()
def factorised_spans(
    pair_scores: Tensor,
    start_scores: Tensor,
    end_scores: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Spans:
    r"""Find the cells with a score above 0, without filling the tables.

    A row of a head holds no such cell if

    .. math:: \max_j A_{ij} + b_{a,i} + \max_j c_{a,j} \le 0,

    with the second maximum over the columns that the same test, by columns, leaves. Only the rows
    that stay are computed.

    Equations: :eq:`eq:gp-prune`

    Parameters
    ----------
    pair_scores
        As in :func:`factorised_zlpr_loss`, as a table only.
    start_scores, end_scores, mask, causal
        As in :func:`factorised_zlpr_loss`.

    Returns
    -------
    Spans
        ``cells`` (N, 4), int64, as ``(scores > 0).nonzero()`` gives them for the filled tables
        ``(B, H, L, L)``, and their ``scores``, (N,), float32 for half-precision parts. A score of
        exactly 0 chooses nothing. No gradient passes.

    Raises
    ------
    TypeError, ValueError
        As :func:`factorised_zlpr_loss` for the same arguments.

    Notes
    -----
    The spans are the same to the last one: a bound is summed in the order in which the cell is,
    and rounding keeps order, so no cell rounds to more than the bound of its row.

    Hardly any row of a trained model stays. Where all do, time is that of filling the tables, and
    memory that of the spans found.

    Examples
    --------
    >>> pair, start, end = torch.full((1, 3, 3), -1.0), torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    >>> start[0, 1, 0] = 1.5
    >>> spans = factorised_spans(pair, start, end)
    >>> spans.cells.tolist()
    [[0, 1, 0, 0], [0, 1, 0, 1], [0, 1, 0, 2]]
    >>> spans.scores
    tensor([0.5000, 0.5000, 0.5000])
    """
    shape = check_parts(pair_scores, start_scores, end_scores)
    check_mask(mask, shape, pair_scores)
    refuse_scores(pair_scores, start_scores, end_scores, mask, causal)
    pair, start, end = upcast(pair_scores), upcast(start_scores), upcast(end_scores)
    keep = keep_cells(shape, mask, causal, pair)
    if keep is not None:
        pair = pair.masked_fill(~keep, -inf)
    if mask is not None:  # anything may stand there, and the maxima below must not see it
        hidden = ~mask.unsqueeze(1)
        start, end = start.masked_fill(hidden, -inf), end.masked_fill(hidden, -inf)
    if start.numel() == 0:
        return Spans(start.new_empty((0, 4), dtype=torch.int64), start.new_empty(0))
    by_column = pair.amax(1, keepdim=True) + start.amax(2, keepdim=True) + end
    best_end = end.masked_fill(~(by_column > 0), -inf).amax(2, keepdim=True)
    by_row = pair.amax(2).unsqueeze(1) + start + best_end
    rows = (by_row > 0).nonzero()
    found, scores = [rows.new_empty((0, 4))], [pair.new_empty(0)]
    for some in torch.split(rows, max(1, _CHUNK_CELLS // shape.length)):
        batch, head, row = some.unbind(1)
        table_rows = pair[batch, row] + start[batch, head, row].unsqueeze(1) + end[batch, head]
        index, column = (table_rows > 0).nonzero(as_tuple=True)
        found.append(torch.cat((some[index], column.unsqueeze(1)), 1))
        scores.append(table_rows[index, column])
    return Spans(torch.cat(found), torch.cat(scores))
