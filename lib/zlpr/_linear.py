"""ZLPR from hidden states and a head's weight: the table of all logits is never held.

Where the logits of enough rows fit the buffer, rows go through it a few at a time: their logits
become their gradients in place, and three matrix products do all. With more labels, or a weight in
half precision (whose gradient must be rounded once, not once per chunk), the table is cut the other
way: tiles of labels are computed twice, forward for the sums of each row, backward for the
gradients, so that each row of the weight's gradient is formed once.
"""

from collections.abc import Callable, Iterator, Sequence
from math import inf, nan
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lib import _checks
from lib._linear import apply_upstream, blame_weight, head_dtypes, products, rows_times
from lib._rows import CHUNK_CELLS, LOG2_E, NARROW, by_autograd, combine, finite, needs_formula
from lib.zlpr._kernels import _formula, _Lists, _lists, powers_of_positives, reduced_loss

__all__ = ["labels_of_rows", "linear_losses"]

_BUFFER_CELLS = 3 << 22  # logits held at a time: 48 MiB in float32
_SMALL_CELLS = 1 << 18  # up to so many logits a table of them is faster, and holds little
_LEAST_ROWS = 64  # fewer rows at a time would leave the products waiting for the weight
_TILE_CELLS = 1 << 20  # a tile stays in the cache from step to step
_TILE_ROWS = 1 << 10  # rows of a tile

Leaves = tuple[Tensor, Tensor, Tensor | None]


def linear_losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    positives: Tensor,
    reduction: str,
    look: bool,
) -> Tensor:
    """Losses ``(N,)`` for ``"none"``, else their scalar; NaN where a row is bad.

    ``hidden`` is ``(N, D)``, ``positives`` ``(N, K)``, filled up with -1. ``look`` tells whether a
    weight that spoils only gradients is looked for.
    """
    dtype, wide = head_dtypes(hidden, weight, bias)
    bias = None if bias is None else bias.to(wide)
    readable = _checks.values_readable(hidden, weight, bias, positives)
    if not readable or hidden.shape[0] * weight.shape[0] <= _SMALL_CELLS:
        if look and hidden.requires_grad and torch.is_grad_enabled():
            blame_weight(weight, weight)
        with _checks.no_autocast(hidden):
            rows = _logits(hidden, weight, bias)
            return reduced_loss(rows, positives, None, reduction, listed=True, readable=readable)
    lists = _lists(positives, weight.shape[0])
    with _checks.no_autocast(hidden):  # the chunks choose their precision themselves
        few_rows = _BUFFER_CELLS // len(weight) < min(_LEAST_ROWS, len(hidden))
        how = _How(reduction, torch.is_grad_enabled(), look)
        way = _by_tiles if few_rows or (how.recording and weight.dtype != wide) else _by_rows
        return way(hidden.to(dtype), weight.to(dtype), bias, how, *lists)


def labels_of_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    threshold: float,
    most: int | None,
) -> tuple[Tensor, Tensor] | None:
    """Labels ``(N, K)`` above the threshold and their scores, largest first; -1 and -inf fill up.

    At most ``most`` labels a row, if given. None if a score is NaN.
    """
    dtype, wide = head_dtypes(hidden, weight, bias)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    bias = None if bias is None else bias.to(wide)
    classes = weight.shape[0]
    found = [(hidden.new_empty((0, 0), dtype=wide), hidden.new_empty((0, 0), dtype=torch.int64))]
    for here, cells in _row_chunks(hidden, classes, wide):
        scores = _scores(hidden[here].to(wide), weight, bias, cells)
        # At least one, because a score that is NaN comes first.
        width = most or max(1, int((scores > threshold).sum(1).max().item()))
        found.append(scores.topk(min(width, classes), dim=1))
    width = max(top.shape[1] for top, _ in found)
    values, labels = (
        torch.cat([functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts])
        for parts, fill in zip(zip(*found, strict=True), (-inf, -1), strict=True)
    )
    above = values > threshold
    width = int(above.sum(1).max().item()) if len(above) else 0
    if bool(values[:, :1].isnan().any()):
        return None
    return labels.masked_fill(~above, -1)[:, :width], values.masked_fill(~above, -inf)[:, :width]


class _How(NamedTuple):
    """Options of a pass."""

    reduction: str
    recording: bool  # whether gradients are recorded, which a Function cannot see from inside
    look: bool  # whether a weight that spoils only gradients is looked for


class _Positives(NamedTuple):
    """What the positives of some rows add to their losses and gradients."""

    losses: Tensor  # (R, 1)
    slopes: Tensor  # (R, K): the gradient at each of them, fillers too
    bad: Tensor  # (R, 1) bool: a positive at plus infinity, or an index that is no class


class _ByRows(torch.autograd.Function):
    """All labels of a few rows at a time; for a scalar the gradients are formed on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        how: _How,
        *parts: Tensor,
    ) -> Tensor:
        ctx.how, lists = how, _Lists(*parts)
        needs = ctx.needs_input_grad[:3]
        ctx.save_for_backward(hidden, weight, bias, *parts)
        # One upstream number for all rows is known to be a factor before it is known.
        formed = how.reduction != "none" and how.recording and any(needs)
        factor = _factor(1.0, hidden, how.reduction) if formed else None
        losses, gradients = _row_pass(hidden, weight, bias, lists, factor, needs, how.look)
        # Made here and seen by nobody else, so nobody can change them; and given away once.
        ctx.gradients = gradients if formed else None
        return _checks.reduce(losses, how.reduction)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, *parts = ctx.saved_tensors
        lists, leaves = _Lists(*parts), (hidden, weight, bias)
        if needs_formula(upstream):
            return *_again(leaves, lists, ctx, upstream), *_REST
        # Autograd may keep these very tensors as the leaves' gradients: a second time, form anew.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is not None:
            return *apply_upstream(gradients, upstream, leaves), *_REST
        factor = _factor(upstream, hidden, ctx.how.reduction)
        _, gradients = _row_pass(*leaves, lists, factor, ctx.needs_input_grad[:3], ctx.how.look)
        return *apply_upstream(gradients, None, leaves), *_REST


class _ByTiles(torch.autograd.Function):
    """Some labels of all rows at a time: sums forward, gradients backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        how: _How,
        *parts: Tensor,
    ) -> Tensor:
        ctx.how, lists = how, _Lists(*parts)
        wide = _checks.compute_dtype(hidden.dtype)
        # Sums of each row, below the largest logit so far.
        top = hidden.new_full((len(hidden), 1), -inf, dtype=wide)
        total, score = torch.zeros_like(top), torch.zeros_like(lists.column, dtype=wide)
        for tile in _tiles(hidden, weight):
            for here, z, _, (at, which, place) in _visits(hidden, weight, bias, lists, tile, wide):
                score[here][at, which] = z[at, place]
                z[at, place] = -inf
                new = torch.maximum(top[here], z.amax(1, keepdim=True))
                shift = finite(new)
                total[here] *= (top[here] - shift).exp()
                top[here] = new
                total[here] += z.sub_(shift).mul_(LOG2_E).exp2_().sum(1, keepdim=True)
        shift = finite(top)
        negatives, slope = combine(shift, total)
        of_positives = _positives(score, lists, slice(None))
        ctx.save_for_backward(hidden, weight, bias, *parts, shift, slope, of_positives.slopes)
        return _checks.reduce(_total(negatives, of_positives), how.reduction)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, *parts, shift, slope, slopes = ctx.saved_tensors
        lists, leaves = _Lists(*parts), (hidden, weight, bias)
        if needs_formula(upstream):
            return *_again(leaves, lists, ctx, upstream), *_REST
        wide, factor = slope.dtype, _factor(upstream, hidden, ctx.how.reduction)
        slope, slopes = slope * factor, slopes * factor
        needs = ctx.needs_input_grad[:3]
        d_hidden, d_bias = _zeros((hidden, bias), (needs[0], needs[2]), wide)
        d_weight = torch.empty_like(weight) if needs[1] else None
        for tile in _tiles(hidden, weight):
            # Rounded once, where it is complete.
            total = weight.new_zeros(weight[tile].shape, dtype=wide) if needs[1] else None
            for here, z, part, (at, which, place) in _visits(
                hidden, weight, bias, lists, tile, wide
            ):
                z.sub_(shift[here]).mul_(LOG2_E).exp2_().mul_(slope[here])
                z[at, place] = slopes[here][at, which]
                if d_hidden is not None:
                    d_hidden[here].addmm_(z, part)
                if total is not None:
                    total.addmm_(z.T, hidden[here].to(wide))
                if d_bias is not None:
                    d_bias[tile] += z.sum(0)
            if d_weight is not None and total is not None:
                d_weight[tile] = total
        if ctx.how.look:
            blame_weight(weight, d_hidden)
        return *apply_upstream((d_hidden, d_weight, d_bias), None, leaves), *_REST


# Function.apply has no type of its own in PyTorch.
_by_rows: Callable[..., Tensor] = _ByRows.apply
_by_tiles: Callable[..., Tensor] = _ByTiles.apply
_REST = (None,) * 5  # no gradient of options and lists


def _factor(upstream: Tensor | float, hidden: Tensor, reduction: str) -> Tensor:
    """Weight ``(N, 1)`` of each row in what is differentiated."""
    dtype = _checks.compute_dtype(hidden.dtype)
    factor = torch.as_tensor(upstream, dtype=dtype, device=hidden.device)
    if reduction == "mean":
        factor = factor / max(1, len(hidden))
    return factor.expand(len(hidden)).unsqueeze(1)


def _again(leaves: Leaves, lists: _Lists, ctx: Any, upstream: Tensor) -> list[Tensor | None]:
    """Gradients by plain operations, holding all logits."""
    labels = torch.where(lists.counts, lists.column, -1)

    def formula(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        losses = _formula(_logits(hidden, weight, bias), labels, None, True)
        return _checks.reduce(losses, ctx.how.reduction)

    again = by_autograd(formula, leaves, ctx.needs_input_grad[:3], upstream)
    if ctx.how.look and _checks.values_readable(upstream):
        blame_weight(leaves[1], again[0])
    return again


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """All logits, by plain operations."""
    _, wide = head_dtypes(hidden, weight, bias)
    rows = hidden.to(wide) @ weight.to(wide).T
    return rows if bias is None else rows + bias


def _scores(rows: Tensor, weight: Tensor, bias: Tensor | None, cells: Tensor) -> Tensor:
    """Logits of some rows, in a buffer."""
    products(rows, weight, cells)
    return cells if bias is None else cells.add_(bias)


def _row_chunks(hidden: Tensor, classes: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Chunks of the rows, each with a buffer for all of their logits."""
    count = len(hidden)
    step = max(1, min(count, _BUFFER_CELLS // classes))
    buffer = hidden.new_empty((step, classes), dtype=dtype)
    for start in range(0, count, step):
        end = min(start + step, count)
        yield slice(start, end), buffer[: end - start]


def _tiles(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    """Parts of the labels."""
    width = max(1, _TILE_CELLS // max(1, min(len(hidden), _TILE_ROWS)))
    for first in range(0, len(weight), width):
        yield slice(first, min(first + width, len(weight)))


def _visits(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lists: _Lists,
    tile: slice,
    dtype: torch.dtype,
) -> Iterator[tuple[slice, Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]]:
    """Rows that meet a tile of labels: which, their logits, the weight's tile, their positives.

    A positive has its row, its place in the row's list, and its place in the tile.
    """
    part = weight[tile].to(dtype)
    for start in range(0, len(hidden), _TILE_ROWS):
        here = slice(start, min(start + _TILE_ROWS, len(hidden)))
        z = hidden[here].to(dtype) @ part.T
        if bias is not None:
            z.add_(bias[tile])
        column = lists.column[here]
        inside = (column >= tile.start) & (column < tile.stop) & lists.some[here]
        at, which = inside.nonzero(as_tuple=True)
        yield here, z, part, (at, which, column[at, which] - tile.start)


def _zeros(
    leaves: tuple[Tensor | None, ...], needs: tuple[bool, ...], dtype: torch.dtype
) -> list[Tensor | None]:
    """Gradients to add to, None where none is needed."""
    return [
        torch.zeros_like(leaf, dtype=dtype) if leaf is not None and need else None
        for leaf, need in zip(leaves, needs, strict=True)
    ]


def _row_pass(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lists: _Lists,
    factor: Tensor | None,
    needs: Sequence[bool],
    look: bool,
) -> tuple[Tensor, list[Tensor | None]]:
    """Losses of all rows and, with a ``factor``, the gradients of their sum times it."""
    classes, dtype = len(weight), _checks.compute_dtype(hidden.dtype)
    gradients = _zeros((hidden, weight, bias), tuple(needs), dtype) if factor is not None else []
    losses = hidden.new_empty(len(hidden), dtype=dtype)
    inner = max(1, CHUNK_CELLS // classes)
    for here, cells in _row_chunks(hidden, classes, dtype):
        rows = hidden[here].to(dtype)
        z = _scores(rows, weight, bias, cells)
        column, some = lists.column[here], lists.some[here]
        of_positives = _positives(z.gather(1, column), lists, here)
        above = None if factor is None else factor[here]
        negatives = torch.empty_like(of_positives.losses)
        for first in range(0, len(z), inner):  # rows that stay in the cache from step to step
            part = slice(first, first + inner)
            shift, total = _sums_(z[part], column[part], some[part])
            negatives[part], slope = combine(shift, total)
            if above is not None:
                z[part].mul_(slope * above[part])
        losses[here] = _total(negatives, of_positives)
        if above is None:
            continue
        d_hidden, d_weight, d_bias = gradients
        slopes = of_positives.slopes * above
        z.scatter_(1, column, torch.where(some, slopes, z.gather(1, column)))
        if d_hidden is not None:
            d_hidden[here] = rows_times(z, weight)
        if d_weight is not None:
            d_weight.addmm_(z.T, rows)
        if d_bias is not None:
            d_bias.add_(z.sum(0))
    if factor is not None and look:
        blame_weight(weight, gradients[0])
    return losses, gradients


def _sums_(cells: Tensor, column: Tensor, some: Tensor) -> tuple[Tensor, Tensor]:
    """Shifts and sums of the exponentials of the negatives, which stay in ``cells``."""
    if not cells.is_cuda and cells.numel():
        low, high = map(float, cells.aminmax())
        if low >= -NARROW and high <= NARROW:
            cells.exp_()
            cells.scatter_(1, column, torch.where(some, 0, cells.gather(1, column)))
            return cells.new_zeros((len(cells), 1)), cells.sum(1, keepdim=True)
    cells.scatter_(1, column, torch.where(some, -inf, cells.gather(1, column)))
    shift = finite(cells.amax(1, keepdim=True))
    return shift, cells.sub_(shift).mul_(LOG2_E).exp2_().sum(1, keepdim=True)


def _positives(score: Tensor, lists: _Lists, here: slice) -> _Positives:
    """Compute from their scores what the positives add."""
    counts = lists.counts[here]
    pull, pulled, terms = powers_of_positives(score, counts)
    losses, factor = combine(pull, pulled)
    infinite = (counts & (score == inf)).any(-1, keepdim=True)
    return _Positives(losses, terms.neg_().mul_(factor), lists.bad[here] | infinite)


def _total(negatives: Tensor, of_positives: _Positives) -> Tensor:
    """Losses of rows, NaN where a row is bad."""
    return (negatives + of_positives.losses).masked_fill_(of_positives.bad, nan).squeeze(1)
