"""What the losses from hidden states and a linear head share: nobody holds all logits.

Argument checks, the dtype to compute in, and products with tables that may be in half precision,
which are converted a block of rows at a time.
"""

from collections.abc import Iterator, Sequence
from math import isfinite

import torch
from torch import Tensor

from lib import _checks, _refusals

__all__ = [
    "all_finite",
    "apply_upstream",
    "blame_weight",
    "check_head",
    "head_dtypes",
    "products",
    "require_finite",
    "rows_times",
]

BLOCK_ROWS = 1 << 13  # rows of a half-precision table converted at a time


def check_head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: str = "V", width: str = "H"
) -> None:
    """Raise unless hidden ``(..., H)``, weight ``(V, H)`` and bias ``(V,)`` fit each other."""
    for name, part in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if part is not None or name != "bias":
            _checks.check_floating(name, part)
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(
            f"weight must have shape ({rows}, {width}), got shape {tuple(weight.shape)}"
        )
    if hidden.shape[-1:] != weight.shape[1:]:
        raise ValueError(
            f"hidden must have the width of weight, expected (..., {weight.shape[1]}), "
            f"got {tuple(hidden.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"bias must have one entry per row of weight, expected ({weight.shape[0]},), "
            f"got {tuple(bias.shape)}"
        )
    for name, part in (("weight", weight), ("bias", bias)):
        if part is not None and part.device != hidden.device:
            raise ValueError(
                f"{name} must be on the device of hidden, expected {hidden.device}, "
                f"got {part.device}"
            )


def head_dtypes(
    hidden: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[torch.dtype, torch.dtype]:
    """Dtype that hidden and weight are brought to, and the dtype of the logits.

    A float64 bias makes float64 logits; but a float32 one must not convert half tables.
    """
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    wide = _checks.compute_dtype(dtype)
    if bias is not None and _checks.compute_dtype(torch.promote_types(dtype, bias.dtype)) != wide:
        dtype = wide = torch.promote_types(dtype, bias.dtype)
    return dtype, wide


def _blocks(table: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows in the dtype to compute in; the table itself if it has that dtype."""
    step = table.shape[0] if table.dtype == dtype else BLOCK_ROWS
    for start in range(0, table.shape[0], step):
        part = slice(start, start + step)
        yield part, table[part].to(dtype)


def products(rows: Tensor, table: Tensor, out: Tensor) -> Tensor:
    """``rows @ table.T`` into ``out``, in the dtype of ``rows``."""
    for part, block in _blocks(table, rows.dtype):
        if block.shape[0] == table.shape[0]:
            torch.mm(rows, block.T, out=out)
        else:
            out[:, part] = rows @ block.T
    return out


def rows_times(cells: Tensor, table: Tensor) -> Tensor:
    """``cells @ table``, in the dtype of ``cells``."""
    total = cells.new_zeros((cells.shape[0], table.shape[1]))
    for part, block in _blocks(table, cells.dtype):
        total.addmm_(cells[:, part], block)
    return total


def apply_upstream(
    gradients: Sequence[Tensor | None], upstream: Tensor | None, leaves: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients of a scalar times what comes from above, each in the dtype of its leaf.

    None stands for a factor that they have already. Rounded once: a half-precision gradient without
    its factor may be 0 or infinite. In place: the gradients must be nobody else's.
    """
    if upstream is not None and not upstream.is_cuda and float(upstream) == 1.0:
        upstream = None
    found: list[Tensor | None] = []
    for gradient, leaf in zip(gradients, leaves, strict=True):
        if gradient is not None and leaf is not None:
            if upstream is not None:
                gradient.mul_(upstream)
            gradient = gradient.to(leaf.dtype)
        found.append(gradient)
    return found


def all_finite(witness: Tensor) -> bool:
    """Whether no entry is infinite or NaN; one number is looked at unless there is doubt."""
    witness = witness.detach()
    return isfinite(float(witness.sum())) or bool(witness.isfinite().all())


def require_finite(name: str, table: Tensor, rows: Tensor | None = None) -> None:
    """Raise for the first entry that is not finite, in the rows marked by ``rows`` if given."""
    wrong = ~table.isfinite()
    if rows is not None:
        wrong &= rows.unsqueeze(-1)
    if wrong.any():
        at = _refusals.first_true(wrong)
        raise ValueError(
            f"{name} must be finite, got {table[at].item()} at {_refusals.place(name, at)}"
        )


def blame_weight(weight: Tensor, witness: Tensor | None) -> None:
    """Raise for a weight that is not finite, if the ``witness`` is not: the states' gradient.

    A logit of minus infinity leaves the loss finite, but its probability 0 times the weight's entry
    is NaN. Looking at the states' gradient first is cheap: there are fewer states than weights.
    """
    if witness is not None and not all_finite(witness):
        require_finite("weight", weight)
