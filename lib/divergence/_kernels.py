"""The divergences of moderate scores by hand: few passes, part by part, within a core's cache.

The gradients are made beside the values, from the tables at hand, so that nothing else is stored.
Digits come from ``expm1`` of changes and from sums of terms of one sign, as in the formulas.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lib import _checks
from lib._rows import by_autograd, needs_formula

__all__ = [
    "MODERATE",
    "Formula",
    "Rows",
    "mean_regret_rows",
    "reduced",
    "regret_rows",
    "sigmoid_rows",
    "softmax_rows",
]

MODERATE = 20.0
"""Scores up to here: changes measured from their mean are at most four times this, and the
exponentials of those are far from the end of float32."""
_PART_CELLS = 1 << 18  # some ten tables of this size; each part costs fifty operations
_FEW_CELLS = 1 << 12  # up to here the number of operations counts, not that of cells

Formula = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Both scores and the cells that are gone, None for none, to the value of each position."""

Rows = Callable[[Tensor, Tensor, Tensor | None, Sequence[Tensor], bool], Tensor]
"""Both scores ``(R, C)``; ones and zeros that say which cells count, None for all; tables of that
shape to write to; whether gradients are wanted. Returns the value of each row ``(R, 1)``. The first
two tables then hold its gradient in the first argument, and minus that in the second."""

# Numbers as tensors: a Python number costs an operation of its own.
_ONE = {x: torch.ones((), dtype=x, device="cpu") for x in (torch.float32, torch.float64)}
_NEAR = 0.25  # as far as the series goes, whose terms shrink by (2 pi / _NEAR)² each
_SERIES = {  # x / 2 * coth(x / 2) in powers of x², but the first
    dtype: torch.tensor(terms, dtype=dtype, device="cpu").unbind()
    for dtype, terms in (
        (torch.float32, (1 / 12, -1 / 720)),
        (torch.float64, (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160)),
    )
}


def _expm1_exp(x: Tensor, small: Tensor, full: Tensor, spare: Tensor, more: Tensor) -> None:
    """``expm1(x)`` to ``small``, which may be x, and ``exp(x)`` to ``full``, all digits of both.

    PyTorch's expm1 takes as long as three and a half of its exp. Here x is y + z, with y as near to
    x as 1/4 allows: expm1(x) = expm1(y) exp(z) + (exp(z) - 1), a sum of terms of one sign in which
    the second is exactly 0 wherever x itself is small.
    """
    if x.numel() <= _FEW_CELLS:
        torch.exp(x, out=full)
        torch.expm1(x, out=small)
        return
    one, (*series, last) = _ONE[x.dtype], _SERIES[x.dtype]
    near = torch.clamp(x, -_NEAR, _NEAR, out=spare)
    torch.sub(x, near, out=full).exp_()
    square = torch.mul(near, near, out=more)
    below = torch.mul(square, last, out=small)
    for term in reversed(series):
        below.add_(term).mul_(square)
    near.div_(below.sub_(near, alpha=0.5).add_(one))
    torch.sub(full, one, out=small).addcmul_(near, full)
    full.addcmul_(near, full)


def softmax_rows(
    s: Tensor, u: Tensor, keep: Tensor | None, tables: Sequence[Tensor], slopes: bool
) -> Tensor:
    """Sum of (p - q) times the change, the change measured from its mean under q."""
    by_s, by_u, q, change, gain, spare = tables
    torch.exp(u, out=q)
    if keep is not None:
        q.mul_(keep)
    total = q.sum(-1, keepdim=True)
    if keep is not None:
        total.clamp_(min=torch.finfo(q.dtype).tiny)  # a position without cells
    q.mul_(total.reciprocal_())
    torch.sub(s, u, out=change)
    change.sub_(torch.mul(q, change, out=gain).sum(-1, keepdim=True))
    _expm1_exp(change, gain, spare, by_s, by_u)
    gain.mul_(q)  # p = (q + gain) / (1 + grown)
    grown = gain.sum(-1, keepdim=True)
    scale = (grown + _ONE[q.dtype]).reciprocal_()
    gain.mul_(scale)
    value = torch.mul(gain, change, out=by_s).sum(-1, keepdim=True)
    if slopes:
        gain.sub_(torch.mul(q, grown.mul_(scale), out=by_s))  # p - q
        torch.addcmul(gain, q, change, out=by_u)
        torch.addcmul(gain, q.add_(gain), change.sub_(value), out=by_s)
    return value


def sigmoid_rows(
    s: Tensor, u: Tensor, keep: Tensor | None, tables: Sequence[Tensor], slopes: bool
) -> Tensor:
    """Sum of σ(s) - σ(u) times the change; a cell that does not count has the change 0."""
    by_s, by_u, change, difference, e_s, below_u = tables
    one = _ONE[s.dtype]
    torch.sub(s, u, out=change)
    _expm1_exp(change, difference, e_s, by_s, by_u)
    e_u = torch.exp(u, out=by_u)
    e_s.mul_(e_u)
    below_s = torch.add(e_s, one, out=by_s).reciprocal_()  # σ(-s)
    torch.add(e_u, one, out=below_u).reciprocal_()
    difference.mul_(e_u).mul_(below_s).mul_(below_u)
    if slopes:
        e_s.mul_(below_s).mul_(below_s)
        e_u.mul_(below_u).mul_(below_u)
        torch.addcmul(difference, e_s, change, out=by_s)
        torch.addcmul(difference, e_u, change, out=by_u)
    return change.mul_(difference).sum(-1, keepdim=True)


def regret_rows(
    s: Tensor, u: Tensor, keep: Tensor | None, tables: Sequence[Tensor], slopes: bool
) -> Tensor:
    """Regret as :func:`lib.divergence._regret.regret` has it, by weights instead of shares."""
    by_s, by_u, weight, up, down, rising, falling = tables
    one = _ONE[s.dtype]
    torch.exp(u, out=up)
    torch.reciprocal(up, out=down)
    torch.add(up, down, out=weight).reciprocal_()
    if keep is not None:
        weight.mul_(keep)
    # The null class has weight 1 and change 0.
    share = weight.sum(-1, keepdim=True).add_(one).reciprocal_()
    rise = torch.sub(u, s, out=by_s)
    centre = torch.mul(weight, rise, out=by_u).sum(-1, keepdim=True).mul_(share)
    _expm1_exp(rise.sub_(centre), rise, by_u, rising, falling)
    fall = torch.div(rise, by_u, out=by_u)  # minus expm1 of minus the change
    null_rise, null_fall = centre.neg().expm1_(), centre.expm1_()
    torch.mul(weight, rise, out=rising)
    torch.mul(weight, fall, out=falling)
    both = fall.mul_(rising).sum(-1, keepdim=True).sub_(null_rise * null_fall).mul_(share)
    a = null_rise.add_(rising.sum(-1, keepdim=True)).mul_(share)
    b = null_fall.sub_(falling.sum(-1, keepdim=True)).mul_(share)
    if slopes:
        # Shares of the cells in E 1 less those in E e^change, and in E e^-change less those in E 1.
        rising.sub_(torch.mul(weight, a, out=by_u)).mul_((share / (a + one)).neg_())
        falling.add_(torch.mul(weight, b, out=by_u)).mul_((share / (b + one)).neg_())
        torch.add(rising, falling, out=by_s)
        # Minus the gradient by u: (1 - tanh u) rising + (1 + tanh u) falling.
        torch.add(rising.mul_(down), falling.mul_(up), out=by_u).mul_(weight.add_(weight))
    return both.addcmul_(a, b).log1p_()


def mean_regret_rows(
    s: Tensor, u: Tensor, keep: Tensor | None, tables: Sequence[Tensor], slopes: bool
) -> Tensor:
    """Half the sum of both regrets."""
    by_s, by_u, back_u, back_s, *spare = tables
    value = regret_rows(s, u, keep, (by_s, by_u, *spare), slopes)
    value += regret_rows(u, s, keep, (back_u, back_s, *spare), slopes)
    if slopes:
        by_s.sub_(back_s).div_(2)
        by_u.sub_(back_u).div_(2)
    return value.div_(2)


_TABLES: dict[Rows, int] = {softmax_rows: 6, sigmoid_rows: 6, regret_rows: 7, mean_regret_rows: 9}


def _table(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


def _in_parts(
    s: Tensor, u: Tensor, keep: Tensor | None, rows: Rows, kept: Sequence[Tensor]
) -> Tensor:
    """Value of each row, one part of the rows after the other."""
    cells = s.shape[-1]
    s, u, *kept = (x.reshape(-1, cells) for x in (s, u, *kept))
    step = max(1, _PART_CELLS // cells)
    spare = [_table(s[:step]) for _ in range(_TABLES[rows] - len(kept))]
    values = s.new_empty((len(s), 1))
    for start in range(0, len(s), step):
        part = slice(start, start + step)
        values_here = values[part]
        tables = [*(x[part] for x in kept), *(x[: len(values_here)] for x in spare)]
        counts = None if keep is None else keep.reshape(-1, cells)[part]
        values_here.copy_(rows(s[part], u[part], counts, tables, bool(kept)))
    return values


class _Reduced(torch.autograd.Function):
    """Reduced divergence of moderate scores; keeps the gradients of its positions."""

    @staticmethod
    def forward(
        ctx: Any,
        s: Tensor,
        u: Tensor,
        gone: Tensor | None,
        rows: Rows,
        formula: Formula,
        reduction: str,
        slopes: bool,
    ) -> Tensor:
        ctx.formula, ctx.reduction, ctx.count = formula, reduction, s.shape[:-1].numel()
        keep = None if gone is None else gone.logical_not().to(s.dtype)
        kept = [_table(s), _table(s)] if slopes else []
        if s.numel() <= _PART_CELLS:
            tables = [_table(s) for _ in range(_TABLES[rows] - len(kept))]
            values = rows(s, u, keep, (*kept, *tables), slopes)
        else:
            values = _in_parts(s, u, keep, rows, kept).view(*s.shape[:-1], 1)
        ctx.save_for_backward(s, u, gone, *kept)
        # The mean and the sum need no shape.
        return _checks.reduce(values.squeeze(-1) if reduction == "none" else values, reduction)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        s, u, gone, *kept = ctx.saved_tensors
        needed = ctx.needs_input_grad[:2]
        if needs_formula(upstream):

            def again(first: Tensor, second: Tensor) -> Tensor:
                return _checks.reduce(ctx.formula(first, second, gone), ctx.reduction)

            return *by_autograd(again, [s, u], needed, upstream), *[None] * 5
        if ctx.reduction == "mean":
            upstream = upstream / ctx.count
        elif ctx.reduction == "none":
            upstream = upstream.unsqueeze(-1)
        by_s = kept[0] * upstream if needed[0] else None
        by_u = kept[1] * upstream.neg() if needed[1] else None
        return by_s, by_u, *[None] * 5


# Function.apply has no type of its own in PyTorch.
_reduced: Callable[..., Tensor] = _Reduced.apply


def reduced(
    s: Tensor, u: Tensor, gone: Tensor | None, rows: Rows, formula: Formula, reduction: str
) -> Tensor:
    """Reduced divergence of moderate scores by ``rows``; ``formula`` for gradients of gradients."""
    slopes = torch.is_grad_enabled() and (s.requires_grad or u.requires_grad)
    return _reduced(s, u, gone, rows, formula, reduction, slopes)
