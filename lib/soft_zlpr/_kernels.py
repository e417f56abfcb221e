"""Soft losses of rows of logits: a plain formula for transforms, a fast kernel for all else.

A row has two sums, of ``t exp(-s)`` and of ``(1 - t) exp(s)``. The targets multiply exponentials;
their logarithm serves only to choose a shift, which need not be exact. So no digit of a large score
is lost in a sum ``-s + log t``, and a target of exactly 0 or 1 needs no care.

* **Narrow** scores, all within ±32, need no shift at all. One exponential ``e`` of the scores
  serves both sums, as ``t / e`` and as ``(1 - t) * e``.
* **Wide** scores are shifted by the largest weighted term, or by 0 if that is larger, so that the
  null class is among the terms and the shifted sum lies between 1 and the number of classes.
"""

from collections.abc import Callable
from math import inf, log, nan
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib import _checks
from lib._rows import (
    LOG2_E,
    NARROW,
    Spare,
    by_autograd,
    chunks,
    combine,
    counting_if_narrow,
    load,
    needs_formula,
)

__all__ = ["reduced_soft_loss"]

_AT_ONCE_CELLS = 1 << 18  # narrow scores up to here are worth two tables that are kept
_ROUNDED = 6.0  # up to here the rounded argument of exp2 costs less than the sum does


def reduced_soft_loss(
    rows: Tensor, targets: Tensor, mask: Tensor | None, reduction: str, *, readable: bool
) -> Tensor:
    """Loss of each row of ``rows`` ``(R, C)``, reduced; NaN where a row has bad values.

    ``targets`` ``(R, C)`` are floating-point, and 0 under the mask; ``mask`` is ``(R, C)``, True
    where a cell counts.
    """
    if not readable:
        return _checks.reduce(_formula(rows, targets, mask), reduction)
    if 0 < rows.numel() <= _AT_ONCE_CELLS:
        narrow, counts = counting_if_narrow(rows, mask)
        low, high = targets.detach().aminmax()
        if narrow and float(low) >= 0 and float(high) <= 1:
            return _at_once(rows, targets, counts, reduction)
    return _checks.reduce(_soft_rows(rows, targets, mask), reduction)


# ------------------------------------------------------------------ the formula, for any transform


def _formula(rows: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
    """Loss of each row by plain operations: traceable, and differentiable as often as one likes."""
    dtype = _checks.compute_dtype(rows.dtype)
    scores = rows.to(dtype)
    gone = scores == -inf
    if mask is not None:
        gone = gone | ~mask
    bad = ~((targets >= 0) & (targets <= 1)) | (gone & (targets > 0)) | (~gone & ~(scores < inf))
    scores = scores.masked_fill(gone, 0)
    plus, minus = _weights(targets, dtype)
    pull = _log1p_weighted_sum(-scores, plus.masked_fill(gone, 0))
    push = _log1p_weighted_sum(scores, minus.masked_fill(gone, 0))
    return (pull + push).masked_fill(bad.any(-1, keepdim=True), nan).squeeze(1)


def _weights(targets: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Targets and what they lack to 1, taken before either is rounded to ``dtype``."""
    wide = targets.to(torch.promote_types(targets.dtype, dtype))
    return wide.to(dtype), (1 - wide).to(dtype)


def _log1p_weighted_sum(terms: Tensor, weights: Tensor) -> Tensor:
    """``log(1 + sum(weights * exp(terms)))`` over the last dimension."""
    shift = _shift(terms.detach(), weights.detach())
    powers = (terms - shift).clamp(max=_most(terms.dtype)).exp()
    return combine(shift, (weights * powers).sum(-1, keepdim=True))[0]


def _most(dtype: torch.dtype) -> float:
    """Largest exponent to use: 87.3 in float32. Its power is finite and its inverse normal."""
    return -log(torch.finfo(dtype).tiny)


def _shift(terms: Tensor, weights: Tensor) -> Tensor:
    """Largest of 0 and the weighted terms, nearly: no weight enters as less than ``exp(-_most)``.

    So no term of positive weight is above the shift by more than ``_most``. Terms of weight zero
    may be; they are cut there, which keeps them finite.
    """
    logs = weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
    return (logs + terms).masked_fill(weights == 0, -inf).amax(-1, keepdim=True).clamp(min=0)


# ---------------------------------------------------------------------------------- fast, by hand


class _AtOnce(torch.autograd.Function):
    """Reduced loss of few cells with narrow scores: no loop, and the exponentials are kept."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, targets: Tensor, mask: Tensor | None, reduction: str
    ) -> Tensor:
        dtype = _checks.compute_dtype(rows.dtype)
        scores, (plus, minus) = rows.to(dtype), _weights(targets, dtype)
        if mask is not None:
            scores = scores.masked_fill(~mask, 0)
        powers = scores.exp()
        pull, push = plus / powers, minus.mul_(powers)
        if mask is not None:
            push.mul_(mask)
        negatives, positives = push.sum(-1), pull.sum(-1)
        losses = negatives.log1p().add_(positives.log1p())
        ctx.reduction = reduction
        ctx.save_for_backward(rows, targets, mask, push, pull, powers, negatives, positives)
        if mask is not None:
            losses.masked_fill_(((targets > 0) & ~mask).any(-1), nan)
        return _checks.reduce(losses, reduction)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, targets, mask, push, pull, powers, negatives, positives = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if needs_formula(upstream):
            again = _slow_gradients(rows, targets, mask, upstream, needed, ctx.reduction)
            return *again, None, None
        if ctx.reduction == "mean":
            upstream = upstream / len(rows)
        up = (upstream / (1 + negatives)).unsqueeze(1)
        down = (upstream / (1 + positives)).unsqueeze(1)
        gradient = slopes = None
        if needed[0]:
            gradient = (push * up).addcmul_(pull, down, value=-1).to(rows.dtype)
        if needed[1]:
            slopes = (down / powers).addcmul_(powers, up, value=-1)
            if mask is not None:
                slopes.masked_fill_(~mask, 0)
            slopes = _within(slopes, targets.dtype).to(targets.dtype)
        return gradient, slopes, None, None


class _Look(NamedTuple):
    """What decides how a part is computed."""

    gone: bool  # some cells may not count
    reach: float  # distance from 0 of the farthest score that counts; inf where nobody may ask


class _SoftRows(torch.autograd.Function):
    """Loss of each row; the backward pass computes the exponentials again."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, targets: Tensor, mask: Tensor | None) -> Tensor:
        dtype = _checks.compute_dtype(rows.dtype)
        shifts = rows.new_zeros((2, rows.shape[0], 1), dtype=dtype)
        totals = torch.empty_like(shifts)
        bad = torch.zeros_like(shifts[0], dtype=torch.bool)
        spare, looks = Spare(), []
        for part, cells in chunks(rows, dtype):
            gone = mask is not None or _may_hold_minus_infinity(rows[part])
            scores, plus, minus, counts = _prepare(cells, spare, rows, targets, mask, part, gone)
            given, high = targets[part], scores.amax(-1, keepdim=True)
            # NaN is in no range. What is above 0 where nothing counts is above the count of 0.
            bad[part] = ~((given.amin(-1, keepdim=True) >= 0) & (given.amax(-1, keepdim=True) <= 1))
            bad[part] |= ~(high < inf)
            if counts is not None:
                bad[part] |= (given - counts).amax(-1, keepdim=True) > 0
            look = _Look(gone, _reach(scores, high))
            looks.append(look)
            if look.reach <= NARROW:
                powers = _exponential(scores, look, cells)
                totals[1, part] = minus.mul_(powers).sum(-1, keepdim=True)
                totals[0, part] = torch.div(plus, powers, out=powers).sum(-1, keepdim=True)
                continue
            for group, (terms, weights) in enumerate(((-scores, plus), (scores, minus))):
                shifts[group, part] = shift = _shift(terms, weights)
                totals[group, part] = _terms(cells, terms, shift, weights).sum(-1, keepdim=True)
        losses, factors = combine(shifts, totals)
        ctx.save_for_backward(rows, targets, mask, shifts, factors)
        ctx.looks = looks
        return losses.sum(0).masked_fill_(bad, nan).squeeze(1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, targets, mask, shifts, factors = ctx.saved_tensors
        if needs_formula(upstream):
            return *_slow_gradients(rows, targets, mask, upstream, ctx.needs_input_grad[:2]), None
        upstream = upstream.unsqueeze(1)
        slopes = None
        if ctx.needs_input_grad[1]:
            slopes = _target_slopes(rows, targets, mask, shifts, factors, upstream)
        if not ctx.needs_input_grad[0]:
            return None, slopes, None
        factors = factors * upstream
        gradient = torch.empty_like(rows, memory_format=torch.contiguous_format)
        spare, parts = Spare(), chunks(rows, shifts.dtype, gradient)
        for (part, cells), look in zip(parts, ctx.looks, strict=True):
            scores, plus, minus, _ = _prepare(cells, spare, rows, targets, mask, part, look.gone)
            pull = spare.like(cells, 3)
            if look.reach <= NARROW:
                powers = _exponential(scores, look, cells)
                torch.div(plus, powers, out=pull)
                powers.mul_(minus)
            else:
                _terms(pull, -scores, shifts[0, part], plus)
                _terms(cells, scores, shifts[1, part], minus)
            cells.mul_(factors[1, part]).sub_(pull.mul_(factors[0, part]))
            if cells.dtype != gradient.dtype:
                gradient[part] = cells
        return gradient, slopes, None


# Function.apply has no type of its own in PyTorch.
_soft_rows: Callable[..., Tensor] = _SoftRows.apply
_at_once: Callable[..., Tensor] = _AtOnce.apply


def _may_hold_minus_infinity(scores: Tensor) -> bool:
    """Look for cells that do not count; on a GPU, which would have to be waited for, say yes."""
    return scores.is_cuda or (scores.numel() > 0 and float(scores.amin()) == -inf)


def _reach(scores: Tensor, high: Tensor) -> float:
    """Distance from 0 of the farthest score; inf, which is always safe, on a GPU."""
    if scores.is_cuda:
        return inf
    return float(torch.maximum(high.amax(), -scores.amin())) if scores.numel() else 0.0


def _prepare(
    cells: Tensor,
    spare: Spare,
    rows: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    part: slice,
    gone: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Scores, both weights, and whether a cell counts, of a part, in the buffers' dtype.

    Where a cell does not count, the score is 0 and the weight of its negative part too; that of its
    positive part must be 0 by itself. The weights of the negative part are a buffer, to be
    overwritten at will, as is ``cells``; the others may be inputs.
    """
    scores, plus, minus = rows[part], targets[part], spare.like(cells, 0)
    if plus.dtype == cells.dtype:
        torch.sub(1, plus, out=minus)
    else:
        plus, rest = _weights(plus, cells.dtype)
        minus.copy_(rest)
    if not gone:
        if scores.dtype != cells.dtype:
            scores = spare.like(cells, 1).copy_(scores)
        return scores, plus, minus, None
    scores = load(spare.like(cells, 1), scores, mask, part)
    counts = torch.ne(scores, -inf, out=spare.like(cells, 2))
    scores = torch.nan_to_num_(scores, nan=nan, posinf=inf, neginf=0)
    return scores, plus, minus.mul_(counts), counts


def _exponential(scores: Tensor, look: _Look, out: Tensor) -> Tensor:
    """``exp(scores)``. ``exp2`` is three times faster, but its argument is rounded."""
    if look.reach <= _ROUNDED:
        return torch.mul(scores, LOG2_E, out=out).exp2_()
    return torch.exp(scores, out=out)


def _terms(cells: Tensor, terms: Tensor, shift: Tensor, weights: Tensor) -> Tensor:
    """``weights * exp(terms - shift)``, in the buffer ``cells``."""
    torch.sub(terms, shift, out=cells).clamp_(max=_most(cells.dtype))
    return cells.mul_(LOG2_E).exp2_().mul_(weights)


def _target_slopes(
    rows: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    shifts: Tensor,
    factors: Tensor,
    upstream: Tensor,
) -> Tensor:
    """Gradient with respect to the targets; what leaves the range of their dtype stops at its end.

    A confident score on the right side of a target of 0 or 1 has a derivative near ``exp(|s|)``.
    """
    slopes = torch.empty_like(targets, memory_format=torch.contiguous_format)
    most = _most(shifts.dtype)
    for part, cells in chunks(rows, shifts.dtype):
        gone = load(cells, rows[part], mask, part) == -inf
        pull = torch.sub(-cells, shifts[0, part]).clamp_(max=most).exp_().mul_(factors[0, part])
        cells.sub_(shifts[1, part]).clamp_(max=most).exp_().mul_(factors[1, part])
        slope = pull.sub_(cells).mul_(upstream[part])
        slopes[part] = _within(slope, slopes.dtype).masked_fill(gone, 0)
    return slopes


def _within(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Cut values to the range of a dtype that they are about to be rounded to."""
    return values.clamp(torch.finfo(dtype).min, torch.finfo(dtype).max)


def _slow_gradients(
    rows: Tensor,
    targets: Tensor,
    mask: Tensor | None,
    upstream: Tensor,
    needed: tuple[bool, ...],
    reduction: str = "none",
) -> list[Tensor | None]:
    """Gradients by plain operations; differentiable again where gradients are recorded."""
    with torch.enable_grad():
        wide = targets.to(torch.promote_types(targets.dtype, torch.float32))

    def formula(scores: Tensor, degrees: Tensor) -> Tensor:
        return _checks.reduce(_formula(scores, degrees, mask), reduction)

    found = by_autograd(formula, [rows, wide], needed, upstream)
    if found[1] is not None:
        found[1] = _within(found[1], targets.dtype).to(targets.dtype)
    return found
