"""Log-sum-exp of rows, kept as two numbers: the largest score and what comes on top of it."""

from collections.abc import Callable
from math import inf
from typing import Any

import torch
from torch import Tensor

from lib import _checks
from lib._rows import LOG2_E, by_autograd, chunks, finite, needs_formula
from lib.softmax._arguments import refuse_nan

__all__ = ["merged", "pair_of"]


def pair_of(
    name: str, scores: Tensor, mask: Tensor | None, gamma: float | Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    """Largest score along ``dim`` and what the log-sum-exp has above it; they are to be added.

    The first has no gradient: the sum of both does not depend on where it is cut in two. Where
    nothing counts they are minus infinity and 0.
    """
    moved = scores.movedim(dim, -1)
    rows = moved.reshape(-1, moved.shape[-1])
    flat_mask = None if mask is None else mask.movedim(dim, -1).reshape(rows.shape)
    readable = _checks.values_readable(scores, mask)
    if readable and not isinstance(gamma, Tensor):
        top, excess = _by_rows(rows, flat_mask, gamma)
    else:  # a gamma that is a tensor may want a gradient
        top, excess = _formula(rows, flat_mask, gamma)
    if readable:
        refuse_nan(excess, name, scores, mask)
    return top.reshape(moved.shape[:-1]), excess.reshape(moved.shape[:-1])


def _formula(rows: Tensor, mask: Tensor | None, gamma: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return the pair by plain operations: traceable, and differentiable as often as one likes."""
    cells = rows.to(_checks.compute_dtype(rows.dtype))
    if mask is not None:
        cells = cells.masked_fill(~mask, -inf)
    top = cells.detach().amax(-1)
    total = ((cells - finite(top).unsqueeze(-1)) * gamma).exp().sum(-1)
    # Where nothing counts the sum is 0, and its logarithm must not be differentiated.
    return top, total.masked_fill(top == -inf, 1).log() / gamma


class _ByRows(torch.autograd.Function):
    """The pair of each row, through a buffer that fits the cache."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, mask: Tensor | None, gamma: float) -> tuple[Tensor, Tensor]:
        # On a GPU a branch costs nothing, and a look at the sums would.
        ctx.branching = rows.is_cuda
        tops, totals = _sums(rows, mask, gamma, ctx.branching)
        if mask is not None and not ctx.branching and bool(totals.isnan().any()):
            ctx.branching = True
            tops, totals = _sums(rows, mask, gamma, ctx.branching)
        totals.masked_fill_(tops == -inf, 1)
        ctx.save_for_backward(rows, mask, finite(tops), totals)
        ctx.gamma = gamma
        top = tops.squeeze(1)
        ctx.mark_non_differentiable(top)
        return top, totals.log().div_(gamma).squeeze(1)

    @staticmethod
    def backward(ctx: Any, _: Tensor, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, mask, shift, total = ctx.saved_tensors
        if needs_formula(upstream):
            again = by_autograd(
                lambda scores: _formula(scores, mask, ctx.gamma)[1], [rows], [True], upstream
            )
            return *again, None, None
        factor = upstream.unsqueeze(1) / total
        gradient = torch.empty_like(rows, memory_format=torch.contiguous_format)
        for part, cells in chunks(rows, shift.dtype, gradient):
            _load(cells, rows[part], None if mask is None else mask[part], ctx.branching)
            cells.sub_(shift[part]).mul_(ctx.gamma * LOG2_E).exp2_().mul_(factor[part])
            if cells.dtype != gradient.dtype:
                gradient[part] = cells
        return gradient, None, None


# Function.apply has no type of its own in PyTorch.
_by_rows: Callable[..., tuple[Tensor, Tensor]] = _ByRows.apply


def _sums(
    rows: Tensor, mask: Tensor | None, gamma: float, branching: bool
) -> tuple[Tensor, Tensor]:
    """Largest score of each row and the sum of exponentials below it, ``(R, 1)``."""
    dtype = _checks.compute_dtype(rows.dtype)
    tops = rows.new_empty((rows.shape[0], 1), dtype=dtype)
    totals = torch.empty_like(tops)
    for part, cells in chunks(rows, dtype):
        _load(cells, rows[part], None if mask is None else mask[part], branching)
        tops[part] = cells.amax(-1, keepdim=True)
        cells.sub_(finite(tops[part])).mul_(gamma * LOG2_E).exp2_()
        totals[part] = cells.sum(-1, keepdim=True)
    return tops, totals


def _load(cells: Tensor, rows: Tensor, mask: Tensor | None, branching: bool) -> None:
    """Copy rows into the buffer, minus infinity where they do not count.

    ``torch.where`` branches on every cell, and on a CPU guesses wrong half of the time when the
    mask is irregular. The smaller of the score and plus or minus infinity takes a fraction of
    that, but lets NaN through, also from under the mask.
    """
    if mask is None:
        cells.copy_(rows)
    elif branching:
        torch.where(mask, rows.to(cells.dtype), cells.new_tensor(-inf), out=cells)
    else:
        limit = torch.empty_like(cells).copy_(mask).sub_(0.5).mul_(inf)
        torch.minimum(rows.to(cells.dtype), limit, out=cells)


def merged(top: Tensor, excess: Tensor, top2: Tensor, excess2: Tensor) -> tuple[Tensor, Tensor]:
    """Pair of the union, from the pairs of two parts."""
    both = torch.maximum(top, top2)
    shift = finite(both)
    parts = torch.stack((excess + (top - shift), excess2 + (top2 - shift)), -1)
    inner, rest = _formula(parts, None, 1.0)
    return both, (inner + rest).masked_fill(both == -inf, 0)
