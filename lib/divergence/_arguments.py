"""What the functions of two score vectors ask of them, and how their values leave."""

from math import inf, nan

import torch
from torch import Tensor

from lib import _checks, _refusals

__all__ = ["filled", "finish", "prepare"]


def prepare(
    logits: Tensor,
    other: Tensor,
    mask: Tensor | None,
    reduction: str,
    validate: bool,
    *,
    name: str = "other",
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Both scores in the computing dtype, 0 where they do not count; those cells; bad rows.

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
    dtype = _checks.compute_dtype(torch.promote_types(logits.dtype, other.dtype))
    looks = validate and _checks.values_readable(logits, other, mask)
    # A finite difference has finite parts: then every cell counts, and none needs to be replaced.
    if looks and mask is None and bool((logits - other).detach().abs().sum() < inf):
        return logits.to(dtype), other.to(dtype), None, None
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
    return logits.to(dtype).masked_fill(gone, 0), other.to(dtype).masked_fill(gone, 0), gone, bad


def filled(values: Tensor, gone: Tensor | None, fill: float) -> Tensor:
    """Replace the cells that are gone."""
    return values if gone is None else values.masked_fill(gone, fill)


def finish(values: Tensor, bad: Tensor | None, reduction: str) -> Tensor:
    """Reduce the values, NaN where a position is bad."""
    if bad is not None:
        values = values.masked_fill(bad, nan)
    return _checks.reduce(values, reduction)
