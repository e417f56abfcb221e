"""ZLPR of factorised scores: what the public function computes with, from checked arguments.

The log-sum of a row of a head's table comes from one product of matrices with all rows of all
heads, unless it must be exact in a way that the product is not. Such rows are *opened*: computed
cell by cell, in float64. There are two kinds. Rows with a positive, because the positives have to
be left out of the sum and must not be taken away from it. And rows whose product underflowed
although they may weigh in their head's sum, because the largest pair score and the largest end
score of the row stand at different ends. Both are few, except for input made to be hard.
"""

from collections.abc import Callable, Iterator
from itertools import product
from math import inf, log, log2
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib import _checks
from lib.global_pointer._arguments import LOG2_E, Shape, finite_top, keep_cells, no_autocast, upcast
from lib.zlpr import sparse_zlpr_loss

__all__ = [
    "Cells",
    "cells_of",
    "gradients",
    "head_losses",
    "log1p_sums",
    "losses_of_tables",
    "product_losses",
    "scores_at",
    "table_losses",
]

_CHUNK_CELLS = 1 << 17  # cells of the float64 buffer: 1 MiB, within a core's cache
_TILE_ROWS = 128  # under causal; the fewer, the fewer cells below the diagonal are computed
_FEW_CELLS = 1 << 17  # up to so many cells, filling the tables takes less time than the products do
_WIDE = torch.float64


class Cells(NamedTuple):
    """Cells of tables, each once, in the order of the tables."""

    batch: Tensor
    head: Tensor
    row: Tensor
    column: Tensor


def cells_of(positives: Tensor, shape: Shape) -> Cells:
    """Cells of the lists ``(B, H, K, 2)`` without fillers and repetitions."""
    heads = torch.arange(shape.batch * shape.heads, device=positives.device)
    lists = positives.reshape(len(heads), positives.shape[2], 2)
    flat = (heads[:, None] * shape.length + lists[..., 0]) * shape.length + lists[..., 1]
    table, cell = _divide(torch.unique(flat[lists[..., 0] >= 0]), shape.length**2)
    return Cells(*_divide(table, shape.heads), *_divide(cell, shape.length))


def scores_at(pair: Tensor, start: Tensor, end: Tensor, cells: Cells) -> Tensor:
    """Scores of cells, in float64, where the sum of three float32 numbers is all but exact."""
    batch, head, row, column = cells
    scores = pair[batch, row, column].to(_WIDE)
    return scores.add_(start[batch, head, row]).add_(end[batch, head, column])


def head_losses(
    pair: Tensor,
    start: Tensor,
    end: Tensor,
    positives: Tensor,
    mask: Tensor | None,
    causal: bool,
    refuse: Callable[[], None],
) -> Tensor:
    """Loss of each head, ``(B, H)``; ``refuse`` raises if a score that counts is NaN or infinite.

    Few cells are filled, in float64: the number of operations, not that of cells, is then what
    takes time, and float32 sums of three terms would lose the digits that the products keep.
    """
    dtype = _checks.compute_dtype(pair.dtype)
    if start.numel() * pair.shape[-1] > _FEW_CELLS:
        return product_losses(pair, start, end, positives, mask, causal, refuse)
    refuse()
    pair, start, end = pair.to(_WIDE), start.to(_WIDE), end.to(_WIDE)
    keep = keep_cells(Shape(*start.shape), mask, causal, pair)
    if keep is not None:  # H times fewer cells here than in the tables
        pair = pair.masked_fill(~keep, -inf)
    if mask is not None:  # anything may stand there
        start, end = (part.masked_fill(~mask.unsqueeze(1), 0) for part in (start, end))
    scores = (pair.unsqueeze(1) + start.unsqueeze(3)).add_(end.unsqueeze(2))
    return losses_of_tables(scores, positives, None, False).to(dtype)


def product_losses(
    pair: Tensor,
    start: Tensor,
    end: Tensor,
    positives: Tensor,
    mask: Tensor | None,
    causal: bool,
    refuse: Callable[[], None],
) -> Tensor:
    """As :func:`head_losses`, from products whatever the number of cells."""
    return _factorised(pair, start, end, positives, mask, causal, refuse)


def table_losses(
    pair: Tensor,
    start: Tensor,
    end: Tensor,
    positives: Tensor,
    mask: Tensor | None,
    causal: bool,
) -> Tensor:
    """Loss of each head from filled tables: slow and large, but every transform knows it."""
    pair, start, end = upcast(pair), upcast(start), upcast(end)
    scores = pair.unsqueeze(1) + start.unsqueeze(3) + end.unsqueeze(2)
    return losses_of_tables(scores, positives, mask, causal)


def losses_of_tables(
    scores: Tensor, positives: Tensor, mask: Tensor | None, causal: bool
) -> Tensor:
    """Loss of each head from its table ``(B, H, L, L)``, by plain operations.

    A bad value makes the loss of its head NaN, where :mod:`lib.zlpr` cannot raise.
    """
    shape = Shape(*scores.shape[:3])
    inside = ((positives >= 0) & (positives < shape.length)).all(-1)
    filler = (positives == -1).all(-1)
    cells = (positives[..., 0] * shape.length + positives[..., 1]).masked_fill(~inside, -2)
    keep = keep_cells(shape, mask, causal, scores)
    counts = None if keep is None else keep.flatten(1).unsqueeze(1)
    listed = cells.masked_fill(filler, -1)
    return sparse_zlpr_loss(scores.flatten(2), listed, mask=counts, reduction="none")


class _Opened(NamedTuple):
    """Rows of tables that are computed cell by cell, and the positives in them."""

    batch: Tensor
    head: Tensor
    row: Tensor
    hole_row: Tensor  # index into the three above, ascending
    hole_column: Tensor


class _Factorised(torch.autograd.Function):
    """Loss of each head from the parts of the scores."""

    @staticmethod
    def forward(
        ctx: Any,
        pair: Tensor,
        start: Tensor,
        end: Tensor,
        lists: Tensor,
        mask: Tensor | None,
        causal: bool,
        refuse: Callable[[], None],
    ) -> Tensor:
        shape = Shape(*start.shape)
        positives = cells_of(lists, shape)
        dtype = _checks.compute_dtype(pair.dtype)
        top = _hide(end, mask).amax(-1, keepdim=True).to(_WIDE)
        weights = _exp_(_hide(end, mask) - finite_top(top)).to(dtype)
        ridge = torch.empty(shape.batch, 1, shape.length, dtype=_WIDE, device=pair.device)
        sums = torch.empty(start.shape, dtype=dtype, device=pair.device)
        with no_autocast(pair):
            for tile, scores, cells in _tiles(pair, mask, causal):
                tops = scores.amax(-1, keepdim=True)
                tile.by_row(ridge).copy_(tops.mT)
                # In float64 until it is a weight: a difference of 50 in float32 is off by 2e-6.
                cells.copy_(_exp_(scores.sub_(finite_top(tops))))
                torch.bmm(tile.by_column(weights), cells.mT, out=tile.by_row(sums))
        if not bool((ridge < inf).all() & (top < inf).all() & (_hide(start, mask) < inf).all()):
            refuse()

        bound = _bound(start, mask, ridge, top)
        rows = sums.to(_WIDE, copy=True).log_().add_(bound)
        opened, negatives = _open(pair, start, end, positives, mask, causal, rows, bound, sums)
        above = torch.logaddexp(negatives, negatives.new_zeros(()))

        minus = -scores_at(pair, start, end, positives)
        key = positives.batch * shape.heads + positives.head
        below = log1p_sums(minus, key, above.numel()).view_as(above)
        pulls = _exp_(minus - below.view(-1)[key])

        ctx.save_for_backward(
            pair, start, end, mask, lists, weights, rows, ridge, top, above, pulls,
            *positives, *opened,
        )  # fmt: skip
        ctx.causal = causal
        return (above + below).to(dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        pair, start, end, mask, lists, weights, rows, ridge, top, above, pulls = (
            ctx.saved_tensors[:11]
        )
        positives, opened = Cells(*ctx.saved_tensors[11:15]), _Opened(*ctx.saved_tensors[15:])
        if torch.is_grad_enabled() or not _checks.values_readable(upstream):
            gradients = _by_autograd(
                (pair, start, end), lists, mask, ctx.causal, upstream, ctx.needs_input_grad[:3]
            )
            return (*gradients, None, None, None, None)
        shape = Shape(*start.shape)
        # Products of weights and upstream must neither overflow nor underflow for its sake.
        largest = upstream.abs().amax() if upstream.numel() else upstream.new_ones(())
        largest = largest.masked_fill(largest == 0, 1)
        scale = (upstream / largest).to(_WIDE).unsqueeze(-1)
        above = above.unsqueeze(-1)

        bound = _bound(start, mask, ridge, top)
        at = (opened.batch, opened.head, opened.row)
        bound[at] = -inf
        to_start = _exp_(rows - above).mul_(scale).to(weights.dtype)
        by_row = _exp_(bound.sub_(above)).mul_(scale).to(weights.dtype)
        del bound
        to_pair = torch.empty(pair.shape, dtype=weights.dtype, device=pair.device)
        to_end = torch.empty_like(weights)
        with no_autocast(pair):
            # Weighed again: less work than to fetch what forward would have to store.
            for tile, scores, cells in _tiles(pair, mask, ctx.causal):
                cells.copy_(_exp_(scores.sub_(finite_top(tile.by_row(ridge).mT))))
                factors, ends = tile.by_row(by_row), tile.by_column(to_end)
                to_pair[tile.part, tile.rows, : tile.left].zero_()
                torch.bmm(factors.mT, tile.by_column(weights), out=tile.of(to_pair)).mul_(cells)
                # The first tile of a part has all columns, and sets what the others add to.
                torch.baddbmm(ends, factors, cells, beta=int(tile.left > 0), out=ends)
        to_end.mul_(weights)

        for some, scores in _opened_rows(pair, start, end, mask, ctx.causal, opened):
            batch, head, row = (index[some] for index in at)
            scores.sub_(above[batch, head])
            cells = _exp_(scores).mul_(scale[batch, head]).to(weights.dtype)
            to_pair.view(-1, shape.length).index_add_(0, batch * shape.length + row, cells)
            to_end.view(-1, shape.length).index_add_(0, batch * shape.heads + head, cells)
        batch, head, row, column = positives
        pull = pulls.mul(scale[batch, head, 0]).neg_().to(weights.dtype)
        of_head = (batch * shape.heads + head) * shape.length
        to_pair.view(-1).index_add_(0, (batch * shape.length + row) * shape.length + column, pull)
        to_start.view(-1).index_add_(0, of_head + row, pull)
        to_end.view(-1).index_add_(0, of_head + column, pull)
        gradients = (
            gradient.mul_(largest).to(pair.dtype) for gradient in (to_pair, to_start, to_end)
        )
        return (*gradients, None, None, None, None)


# Function.apply has no type of its own in PyTorch.
_factorised: Callable[..., Tensor] = _Factorised.apply


def _open(
    pair: Tensor,
    start: Tensor,
    end: Tensor,
    positives: Cells,
    mask: Tensor | None,
    causal: bool,
    rows: Tensor,
    bound: Tensor,
    sums: Tensor,
) -> tuple[_Opened, Tensor]:
    """Put the exact log-sums of the rows that need it into ``rows``.

    Return which these are, and the log-sum of each head.
    """
    shape = Shape(*rows.shape)
    flat = (positives.batch * shape.heads + positives.head) * shape.length + positives.row
    with_positive, hole_row = torch.unique_consecutive(flat, return_inverse=True)
    rows.view(-1)[with_positive] = -inf
    opened = _opened(with_positive, hole_row, positives.column, shape)
    logs = torch.empty(len(with_positive), dtype=_WIDE, device=rows.device)
    for some, scores in _opened_rows(pair, start, end, mask, causal, opened):
        logs[some] = _log_sum(scores)
    rows.view(-1)[with_positive] = logs

    # A lost term is below the smallest normal number; `length` of them, times e^bound, is the
    # error of a row. It must vanish next to the row itself, or else next to the sum of its head.
    limits = torch.finfo(sums.dtype)
    lost, digits = log2(limits.tiny) + 1 + log2(shape.length), 7 - log2(limits.eps)
    weak = sums < 2.0 ** (lost + digits)
    weak.view(-1)[with_positive] = False
    gap = -(lost + digits + log2(shape.length)) * log(2)
    totals = _log_sum(rows)
    weak &= bound > (totals + gap).unsqueeze(-1)
    lost_rows = weak.view(-1).nonzero().squeeze(1)
    if len(lost_rows) == 0:
        return opened, totals
    repaired = _opened(lost_rows, hole_row[:0], positives.column[:0], shape)
    more = torch.empty(len(lost_rows), dtype=_WIDE, device=rows.device)
    for some, scores in _opened_rows(pair, start, end, mask, causal, repaired):
        more[some] = _log_sum(scores)
    rows.view(-1)[lost_rows] = more
    both = torch.cat((with_positive, lost_rows))
    return _opened(both, hole_row, positives.column, shape), _log_sum(rows)


def _opened(rows: Tensor, hole_row: Tensor, hole_column: Tensor, shape: Shape) -> _Opened:
    table, row = _divide(rows, shape.length)
    return _Opened(*_divide(table, shape.heads), row, hole_row, hole_column)


def _divide(number: Tensor, by: int) -> tuple[Tensor, Tensor]:
    return number // by, number % by


def _opened_rows(
    pair: Tensor,
    start: Tensor,
    end: Tensor,
    mask: Tensor | None,
    causal: bool,
    opened: _Opened,
) -> Iterator[tuple[slice, Tensor]]:
    """Scores of the opened rows in float64, some at a time; -inf where none counts or positive."""
    length = pair.shape[-1]
    step = max(1, _CHUNK_CELLS // length)
    columns = torch.arange(length, device=pair.device)
    for first in range(0, len(opened.row), step):
        some = slice(first, first + step)
        batch, head, row = opened.batch[some], opened.head[some], opened.row[some]
        scores = pair[batch, row].to(_WIDE)
        scores.add_(start[batch, head, row].unsqueeze(1)).add_(end[batch, head])
        if causal:
            scores.masked_fill_(columns < row.unsqueeze(1), -inf)
        if mask is not None:
            scores.masked_fill_(~(mask[batch] & mask[batch, row].unsqueeze(1)), -inf)
        here = (opened.hole_row >= first) & (opened.hole_row < first + step)
        scores[opened.hole_row[here] - first, opened.hole_column[here]] = -inf
        yield some, scores


class _Tile(NamedTuple):
    """Rows of the tables of some texts, from a column on."""

    part: slice
    rows: slice
    left: int

    def of(self, tables: Tensor) -> Tensor:
        """Cells in tables ``(B, L, L)``."""
        return tables[self.part, self.rows, self.left :]

    def by_row(self, scores: Tensor) -> Tensor:
        """Entries of the tile's rows in ``(B, H, L)``."""
        return scores[self.part, :, self.rows]

    def by_column(self, scores: Tensor) -> Tensor:
        """Entries of the tile's columns in ``(B, H, L)``."""
        return scores[self.part, :, self.left :]


def _tiles(
    pair: Tensor, mask: Tensor | None, causal: bool
) -> Iterator[tuple[_Tile, Tensor, Tensor]]:
    """Cut the pair scores into pieces that fit a core's cache, without what is below the diagonal.

    With each come its scores in float64, -inf where a cell does not count, and a buffer of the
    dtype of the computation. On a GPU there is one piece: many small kernels would cost more.
    """
    batch, length = pair.shape[:2]
    high = min(_TILE_ROWS, length) if causal and not pair.is_cuda else length
    step = max(1, batch if pair.is_cuda else min(batch, _CHUNK_CELLS // (high * length)))
    size = step * high * length
    wide = torch.empty(size, dtype=_WIDE, device=pair.device)
    narrow = torch.empty(size, dtype=_checks.compute_dtype(pair.dtype), device=pair.device)
    below = torch.ones(high, high, dtype=torch.bool, device=pair.device).tril_(-1)
    for first, top in product(range(0, batch, step), range(0, length, high)):
        left = top if causal else 0
        tile = _Tile(slice(first, first + step), slice(top, top + high), left)
        cells = tile.of(pair)
        scores, buffer = (flat[: cells.numel()].view(cells.shape) for flat in (wide, narrow))
        scores.copy_(cells)
        if causal:
            rows = cells.shape[1]
            scores[:, :, :rows].masked_fill_(below[:rows, :rows], -inf)
        if mask is not None:
            scores.masked_fill_(~mask[tile.part, tile.rows].unsqueeze(2), -inf)
            scores.masked_fill_(~mask[tile.part, left:].unsqueeze(1), -inf)
        yield tile, scores, buffer


def _bound(start: Tensor, mask: Tensor | None, ridge: Tensor, top: Tensor) -> Tensor:
    """Return what the scores of each row stay below: ``(B, H, L)``, -inf for one without a cell."""
    return (_hide(start, mask) + ridge).add_(top)


def _hide(scores: Tensor, mask: Tensor | None) -> Tensor:
    return scores if mask is None else scores.masked_fill(~mask.unsqueeze(1), -inf)


def _exp_(x: Tensor) -> Tensor:
    return x.mul_(LOG2_E).exp2_()


def _log_sum(terms: Tensor) -> Tensor:
    """Log of the sum of exponentials over the last dimension; -inf for nothing."""
    top = terms.amax(-1, keepdim=True)
    shift = finite_top(top)
    return _exp_(terms - shift).sum(-1).log_().add_(shift.squeeze(-1))


def log1p_sums(terms: Tensor, key: Tensor, groups: int) -> Tensor:
    """``log(1 + sum(exp(terms)))`` of each group of terms with the same key."""
    top = terms.new_zeros(groups).scatter_reduce_(0, key, terms, "amax")  # the 1 is a term of 0
    rest = torch.zeros_like(top).index_add_(0, key, _exp_(terms - top[key]))
    return (torch.expm1(-top) + rest).log1p_().add_(top)


def _by_autograd(
    parts: tuple[Tensor, Tensor, Tensor],
    positives: Tensor,
    mask: Tensor | None,
    causal: bool,
    upstream: Tensor,
    needed: tuple[bool, ...],
) -> Iterator[Tensor | None]:
    """Gradients by plain operations; differentiable again where gradients are recorded."""
    with torch.enable_grad():
        losses = table_losses(*parts, positives, mask, causal)
    return gradients(losses, parts, upstream, needed)


def gradients(
    losses: Tensor, inputs: tuple[Tensor, ...], upstream: Tensor, needed: tuple[bool, ...]
) -> Iterator[Tensor | None]:
    """Gradients of what is ``needed`` of the inputs, with a graph where gradients are recorded."""
    wanted = [one for one, needs in zip(inputs, needed, strict=True) if needs]
    again = torch.is_grad_enabled()
    found = iter(torch.autograd.grad(losses, wanted, upstream, create_graph=again))
    return (next(found) if needs else None for needs in needed)
