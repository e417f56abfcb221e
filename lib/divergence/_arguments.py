"""What the functions of two score vectors ask of them, and how their values leave."""

from math import inf, nan

import torch
from torch import Tensor

from lib import _checks, _refusals
from lib.divergence._kernels import MODERATE, Formula, Rows, reduced

__all__ = ["divergence", "filled"]


def divergence(
    logits: Tensor,
    other: Tensor,
    mask: Tensor | None,
    reduction: str,
    validate: bool,
    formula: Formula,
    rows: Rows,
    *,
    name: str = "other",
) -> Tensor:
    """Reduced divergence: by ``rows`` where the scores are moderate, else by ``formula``.

    ``name`` is what the caller calls ``other``.
    """
    s, u, gone, bad, moderate = _prepare(logits, other, mask, reduction, validate, name)
    if moderate:
        return reduced(s, u, gone, rows, formula, reduction)
    values = formula(s, u, gone)
    if bad is not None:
        values = values.masked_fill(bad, nan)
    return _checks.reduce(values, reduction)


def _prepare(
    logits: Tensor, other: Tensor, mask: Tensor | None, reduction: str, validate: bool, name: str
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, bool]:
    """Both scores in the computing dtype, 0 where they do not count; those cells; bad rows.

    And whether the scores are seen to be moderate. The replacement comes before any arithmetic:
    infinity minus infinity must not arise, not even in a cell whose result is thrown away, because
    its gradient would be NaN.
    """
    _checks.check_logits(logits)
    _checks.check_labels(name, other, logits)
    if not other.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating-point dtype, got {other.dtype}")
    mask = _checks.check_mask(mask, logits)
    _checks.check_reduction(reduction)
    dtype = _checks.compute_dtype(torch.promote_types(logits.dtype, other.dtype))
    s, u = logits.to(dtype), other.to(dtype)
    readable = _checks.values_readable(logits, other, mask)
    looks = validate and readable
    # Moderate scores all count, and so they do where the sum of their differences is finite: then
    # none needs to be replaced.
    if mask is None:
        if readable and _moderate(s, u):
            return s, u, None, None, True
        if looks and bool((s - u).detach().abs().sum() < inf):
            return s, u, None, None, False
    nothing = (logits == -inf) & (other == -inf)
    keep = ~nothing if mask is None else mask & ~nothing
    wrong = keep & ~(logits.isfinite() & other.isfinite())
    bad = None
    if not looks:
        bad = wrong.any(-1)
        keep = keep & ~wrong
    elif wrong.any():
        at = _refusals.first_true(wrong)
        raise ValueError(
            f"logits and {name} must be finite where they count, or -inf in both, got "
            f"{_refusals.place('logits', at)} = {logits[at].item()} and "
            f"{_refusals.place(name, at)} = {other[at].item()}"
        )
    gone = ~keep
    s, u = s.masked_fill(gone, 0), u.masked_fill(gone, 0)
    return s, u, gone, bad, looks and _moderate(s, u)


def _moderate(s: Tensor, u: Tensor) -> bool:
    """Whether all scores are; not asked on a GPU, which has to be waited for."""
    if s.is_cuda or s.numel() == 0:
        return False
    for scores in (s.detach(), u.detach()):
        low, high = scores.aminmax()
        if not (low.item() >= -MODERATE and high.item() <= MODERATE):
            return False
    return True


def filled(values: Tensor, gone: Tensor | None, fill: float) -> Tensor:
    """Replace the cells that are gone."""
    return values if gone is None else values.masked_fill(gone, fill)
