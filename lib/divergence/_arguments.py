"""What the functions of two score vectors ask of them, and how their values leave."""

from math import inf, nan

import torch
from torch import Tensor

from lib import _checks, _refusals

__all__ = ["finish", "prepare"]


def prepare(
    logits: Tensor,
    other: Tensor,
    mask: Tensor | None,
    reduction: str,
    validate: bool,
    *,
    name: str = "other",
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Both scores in the computing dtype, 0 where they do not count; the cells that do; bad rows.

    ``name`` is what the caller calls ``other``. The replacement comes before any arithmetic:
    infinity minus infinity must not arise, not even in a cell whose result is thrown away, because
    its gradient would be NaN.
    """
    _checks.check_logits(logits)
    _checks.check_labels(name, other, logits)
    if not other.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating-point dtype, got {other.dtype}")
    mask = _checks.check_mask(mask, logits)
    _checks.check_reduction(reduction)
    nothing = (logits == -inf) & (other == -inf)
    keep = ~nothing if mask is None else mask & ~nothing
    wrong = keep & ~(logits.isfinite() & other.isfinite())
    bad = None
    if not (validate and _checks.values_readable(logits, other, mask)):
        bad = wrong.any(-1)
        keep = keep & ~wrong
    elif wrong.any():
        at = _refusals.first_true(wrong)
        raise ValueError(
            f"logits and {name} must be finite where they count, or -inf in both, got "
            f"{_refusals.place('logits', at)} = {logits[at].item()} and "
            f"{_refusals.place(name, at)} = {other[at].item()}"
        )
    dtype = _checks.compute_dtype(torch.promote_types(logits.dtype, other.dtype))
    s, u = (scores.to(dtype).masked_fill(~keep, 0) for scores in (logits, other))
    return s, u, keep, bad


def finish(values: Tensor, bad: Tensor | None, reduction: str) -> Tensor:
    """Reduce the values, NaN where a position is bad."""
    if bad is not None:
        values = values.masked_fill(bad, nan)
    return _checks.reduce(values, reduction)
