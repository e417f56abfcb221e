"""The cells above a threshold, from the parts of an efficient pointer or from queries and keys."""

from collections.abc import Callable
from math import inf
from typing import NamedTuple

import torch
from torch import Tensor

from lib import _checks
from lib.global_pointer._arguments import (
    Shape,
    check_mask,
    check_parts,
    keep_cells,
    upcast,
)
from lib.global_pointer._products import Pairs, refuse_scores

__all__ = ["Spans", "factorised_spans", "streaming_spans"]

_CHUNK_CELLS = 1 << 17  # cells looked at together, within a core's cache


_Finder = Callable[..., tuple[Tensor, Tensor]]


class Spans(NamedTuple):
    """Chosen cells and their scores, in the order of the tables."""

    cells: Tensor
    """``(N, 4)`` int64: batch, head, start i and end j."""
    scores: Tensor
    """``(N,)``, all above the threshold."""


@torch.no_grad()
def factorised_spans(
    pair_scores: Tensor,
    start_scores: Tensor,
    end_scores: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    threshold: float = 0.0,
) -> Spans:
    r"""Find the cells with a score above a threshold, without filling the tables.

    A row of a head holds no cell above 0 if

    .. math:: \max_j A_{ij} + b_{a,i} + \max_j c_{a,j} \le 0,

    with the second maximum over the columns that the same test, by columns, leaves; and none above
    another threshold if the sum is not above that. Only the rows that stay are computed.

    Equations: :eq:`eq:gp-prune`

    Parameters
    ----------
    pair_scores
        As in :func:`factorised_zlpr_loss`, as a table only.
    start_scores, end_scores, mask, causal
        As in :func:`factorised_zlpr_loss`.
    threshold
        A finite number, compared in the dtype of the scores. A score equal to it chooses nothing.

    Returns
    -------
    Spans
        ``cells`` (N, 4), int64, as ``(scores > threshold).nonzero()`` gives them for the filled
        tables ``(B, H, L, L)``, and their ``scores``, (N,), float32 for half-precision parts. No
        gradient passes.

    Raises
    ------
    TypeError, ValueError
        As :func:`factorised_zlpr_loss` for the same arguments; `threshold` is not finite.

    Notes
    -----
    The spans are the same to the last one: a bound is summed in the order in which the cell is,
    and rounding keeps order, so no cell rounds to more than the bound of its row.

    Hardly any row of a trained model stays. Where all do, time is that of filling the tables, and
    memory that of the spans found. Under ``torch.compile`` and ``torch.export`` this is one
    operator of the graph, whose result has as many rows as there are spans.

    Source: ours.

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
    _checks.check_threshold("threshold", threshold)
    arguments = (pair_scores, start_scores, end_scores, mask, causal, float(threshold))
    return Spans(*(_by_parts if torch.compiler.is_compiling() else _from_parts)(*arguments))


def streaming_spans(
    queries: Tensor,
    keys: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    threshold: float,
) -> Spans:
    """Find the cells above a threshold of a standard pointer, the tables of one text at a time.

    From queries and keys ``(B, H, L, d)``, float32 or float64.
    """
    arguments = (queries, keys, bias, mask, causal, float(threshold))
    return Spans(*(_by_text if torch.compiler.is_compiling() else _from_texts)(*arguments))


def _from_parts(
    pair_scores: Tensor,
    start_scores: Tensor,
    end_scores: Tensor,
    mask: Tensor | None,
    causal: bool,
    threshold: float,
) -> tuple[Tensor, Tensor]:
    pair, start, end = upcast(pair_scores), upcast(start_scores), upcast(end_scores)
    if start.numel() == 0:
        return start.new_empty((0, 4), dtype=torch.int64), start.new_empty(0)
    keep = keep_cells(Shape(*start.shape), mask, causal, pair)
    if keep is not None:
        pair = pair.masked_fill(~keep, -inf)
    if mask is not None:  # anything may stand there, and the maxima below must not see it
        hidden = ~mask.unsqueeze(1)
        start, end = start.masked_fill(hidden, -inf), end.masked_fill(hidden, -inf)
    tops = pair.amax(1, keepdim=True), start.amax(2, keepdim=True), end.amax(2)
    if not bool(torch.stack([(top < inf).all() for top in tops]).all()):  # false for NaN too
        refuse_scores(Pairs(pair_scores), start_scores, end_scores, mask, causal)
    # Rounded addition is monotonic and each sum has the order of a cell's, (pair + start) + end:
    # a cell above the threshold has a bound above it, whatever the threshold.
    by_column = tops[0] + tops[1] + end
    best_end = end.masked_fill(~(by_column > threshold), -inf).amax(2, keepdim=True)
    by_row = pair.amax(2).unsqueeze(1) + start + best_end
    rows = (by_row > threshold).nonzero()
    found, scores = [rows.new_empty((0, 4))], [pair.new_empty(0)]
    for some in torch.split(rows, max(1, _CHUNK_CELLS // start.shape[2])):
        batch, head, row = some.unbind(1)
        table_rows = pair[batch, row] + start[batch, head, row].unsqueeze(1) + end[batch, head]
        index, column = (table_rows > threshold).nonzero(as_tuple=True)
        found.append(torch.cat((some[index], column.unsqueeze(1)), 1))
        scores.append(table_rows[index, column])
    return torch.cat(found), torch.cat(scores)


def _from_texts(
    queries: Tensor,
    keys: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    causal: bool,
    threshold: float,
) -> tuple[Tensor, Tensor]:
    shape = Shape(1, *queries.shape[1:3])
    found, values = [queries.new_empty((0, 4), dtype=torch.int64)], [queries.new_empty(0)]
    for text in range(len(queries)):
        with _checks.no_autocast(queries):
            scores = torch.matmul(queries[text], keys[text].mT)
        if bias is not None:
            scores = scores + bias[:, None, None]
        keep = keep_cells(shape, None if mask is None else mask[text : text + 1], causal, queries)
        if keep is not None:
            scores = scores.masked_fill(~keep, -inf)
        if bool(scores.isnan().any()):
            raise ValueError(f"scores must be numbers where they count, got nan in text {text}")
        cells = (scores > threshold).nonzero()
        values.append(scores[tuple(cells.T)])
        found.append(torch.nn.functional.pad(cells, (1, 0), value=text))
    return torch.cat(found), torch.cat(values)


def _opaque(name: str, function: _Finder) -> _Finder:
    """Make an operator of a graph, which does not know how many spans a function will find."""
    operator = torch.library.custom_op(f"lib::{name}", function, mutates_args=())

    @operator.register_fake
    def _(first: Tensor, *_: object) -> tuple[Tensor, Tensor]:
        count = torch.library.get_ctx().new_dynamic_size()
        dtype = _checks.compute_dtype(first.dtype)
        return first.new_empty((count, 4), dtype=torch.int64), first.new_empty(count, dtype=dtype)

    return operator


_by_parts = _opaque("factorised_spans", _from_parts)
_by_text = _opaque("streaming_spans", _from_texts)
