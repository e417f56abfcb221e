"""Directions of token embeddings: what the cost of taking one token for another is made of."""

from collections.abc import Sequence
from math import inf, isfinite, sqrt
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lib import _checks

__all__ = ["Directions", "UnitEmbeddings", "directions", "unit_rows"]

_BLOCK_ROWS = 1 << 13  # rows converted at a time, where a table has not the dtype to compute in


class UnitEmbeddings(nn.Module):
    r"""Token embeddings scaled to length one, prepared once for many calls of a loss.

    The cost of taking token :math:`i` for token :math:`j` is
    :math:`c_{ij} = 1 - \langle\hat{\mathbf e}_i, \hat{\mathbf e}_j\rangle`. The losses of this
    module take a plain tensor of embeddings too and then scale it at every call, which is right
    for embeddings that are still being trained. For frozen ones, prepare them here.

    Equations: :eq:`eq:emo-cost`, :eq:`eq:emo-cost-moments`, :eq:`eq:emo-anisotropy`

    Parameters
    ----------
    embeddings
        One row per token, shape ``(V, D)``, any floating dtype, not requiring a gradient. The
        values are copied: later changes of the tensor do not reach this object.
    centre
        Subtract the mean of all rows first. Rows of trained heads share a large common part, which
        makes all costs small and alike.
    padding
        Indices of rows that stand for no token. They get the zero vector, so their cost to every
        token is 1, they do not enter the mean, and no target may be one of them.

    Raises
    ------
    TypeError
        ``embeddings`` is no tensor or not of a floating dtype.
    ValueError
        The shape is not ``(V, D)`` with ``V, D >= 1``; a gradient is asked for; a padding index is
        out of range; a row that is not padding is zero (after centring: is the mean itself, up to
        rounding) or has an entry that is not finite.

    Notes
    -----
    The rows are buffers that move with ``.to(device)`` and are not saved with a model's state.
    They are float32, or float64 for float64 embeddings.

    Examples
    --------
    >>> import torch
    >>> unit = UnitEmbeddings(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    >>> [[f"{value:.2f}" for value in row] for row in unit.rows.tolist()]
    [['0.60', '0.80'], ['0.00', '1.00']]
    """

    rows: Tensor
    is_padding: Tensor | None

    def __init__(
        self, embeddings: Tensor, *, centre: bool = False, padding: Sequence[int] = ()
    ) -> None:
        super().__init__()
        _check_table(embeddings)
        count = embeddings.shape[0]
        table = embeddings.detach().to(_checks.compute_dtype(embeddings.dtype), copy=True)
        skipped: Tensor | None = None
        if padding:
            for index in padding:
                if not 0 <= index < count:
                    raise ValueError(f"padding must hold rows in [0, {count}), got {index}")
            skipped = torch.zeros(count, dtype=torch.bool, device=table.device)
            skipped[list(padding)] = True
            if bool(skipped.all()):
                raise ValueError(f"padding must leave at least 1 of {count} rows, left 0")
            table[skipped] = 0
        if centre:
            kept = count if skipped is None else int((~skipped).sum())
            # The largest entry of each row and not its length, whose squares may overflow.
            size = torch.linalg.vector_norm(table, ord=inf, dim=1)
            mean = (table.sum(0, dtype=torch.float64) / kept).to(table.dtype)
            table -= mean
            # What a row that is the mean leaves behind is rounding, which has no direction.
            left = torch.linalg.vector_norm(table, ord=inf, dim=1)
            noise = 8 * torch.finfo(table.dtype).eps * torch.maximum(size, mean.abs().max())
            table[left.isfinite() & (left <= noise)] = 0
            if skipped is not None:
                table[skipped] = 0
        scale = _inverse_norms(table, skipped, centred=centre)
        self.register_buffer("rows", table.mul_(scale.unsqueeze(1)), persistent=False)
        self.register_buffer("is_padding", skipped, persistent=False)

    def cost_moments(self) -> tuple[float, float]:
        r"""Mean and standard deviation of the cost over all pairs of different tokens.

        Without the ``V × V`` table of costs, from the sum of the rows and their Gram matrix.

        Equations: :eq:`eq:emo-cost-moments`

        Returns
        -------
        tuple
            Mean and standard deviation; both exact, padding left out.

        Raises
        ------
        ValueError
            There are fewer than two tokens.

        Examples
        --------
        >>> import torch
        >>> mean, sd = UnitEmbeddings(torch.eye(3)).cost_moments()
        >>> f"{mean:.3f} {sd:.3f}"
        '1.000 0.000'
        """
        rows = self.rows if self.is_padding is None else self.rows[~self.is_padding]
        count = rows.shape[0]
        if count < 2:
            raise ValueError(f"moments of the cost need at least 2 tokens, got {count}")
        rows = rows.double()
        pairs = count * (count - 1)
        first = (float(rows.sum(0).square().sum()) - count) / pairs
        second = (float((rows.T @ rows).square().sum()) - count) / pairs
        return 1 - first, sqrt(max(0.0, second - first**2))

    def extra_repr(self) -> str:
        """Show the sizes in ``print(module)``."""
        return f"{self.rows.shape[0]} tokens, {self.rows.shape[1]} dimensions"


class Directions(NamedTuple):
    """A table whose row ``i`` times ``scale[i]`` has length one, or is zero for padding."""

    table: Tensor  # (V, D)
    scale: Tensor | None  # (V,), None where the table's rows have length one already
    is_padding: Tensor | None  # (V,) bool

    def of(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """Directions of some tokens, ``(..., D)``."""
        rows = self.table[tokens].to(dtype)
        return rows if self.scale is None else rows * self.scale[tokens].to(dtype).unsqueeze(-1)


def directions(
    embeddings: Tensor | UnitEmbeddings, vocabulary: int, device: torch.device
) -> Directions:
    """Return checked directions for a vocabulary of this size; copies nothing."""
    if isinstance(embeddings, UnitEmbeddings):
        found = Directions(embeddings.rows, None, embeddings.is_padding)
    else:
        _check_table(embeddings)
        found = Directions(embeddings, None, None)
    if found.table.shape[0] != vocabulary:
        raise ValueError(
            f"embeddings must have one row per class, expected {vocabulary} rows, "
            f"got {found.table.shape[0]}"
        )
    if found.table.device != device:
        raise ValueError(
            f"embeddings must be on the device of the scores, expected {device}, "
            f"got {found.table.device}"
        )
    if isinstance(embeddings, UnitEmbeddings):
        return found
    return found._replace(scale=_inverse_norms(embeddings, None, centred=False))


def unit_rows(found: Directions, dtype: torch.dtype) -> Tensor:
    """All directions, ``(V, D)``, in the dtype to compute in."""
    rows: Tensor = found.table.to(dtype)
    return rows if found.scale is None else rows * found.scale.to(dtype).unsqueeze(1)


def _check_table(embeddings: Tensor) -> None:
    if not isinstance(embeddings, Tensor):
        raise TypeError(
            f"embeddings must be a torch.Tensor or UnitEmbeddings, got {type(embeddings).__name__}"
        )
    if not embeddings.dtype.is_floating_point:
        raise TypeError(f"embeddings must have a floating-point dtype, got {embeddings.dtype}")
    if embeddings.dim() != 2 or 0 in embeddings.shape:
        raise ValueError(
            "embeddings must have shape (V, D) with at least 1 row and 1 column, "
            f"got shape {tuple(embeddings.shape)}"
        )
    if embeddings.requires_grad:
        raise ValueError(
            "embeddings are constants of the loss and get no gradient; pass embeddings.detach()"
        )


def _inverse_norms(table: Tensor, skipped: Tensor | None, *, centred: bool) -> Tensor:
    """One over the length of each row, in the dtype to compute in; raise for a row without one."""
    dtype = _checks.compute_dtype(table.dtype)
    if table.dtype == dtype or not _checks.values_readable(table):
        norms = torch.linalg.vector_norm(table, dim=1, dtype=dtype)
    else:
        parts = torch.split(table, _BLOCK_ROWS)
        norms = torch.cat([torch.linalg.vector_norm(part.to(dtype), dim=1) for part in parts])
    scale: Tensor = norms.reciprocal()
    if not _checks.values_readable(table):
        return scale
    # Squares leave the range of the dtype long before the entries do; such rows are few.
    limits = torch.finfo(dtype)
    odd = ~((norms > sqrt(limits.tiny) / limits.eps) & (norms < sqrt(limits.max) / 2))
    if skipped is not None:
        odd &= ~skipped
        scale[skipped] = 0
    for index in odd.nonzero().squeeze(1).tolist():
        row = table[index].to(torch.float64)
        largest = float(row.abs().max())
        length = inf if largest == 0 else largest * float((row / largest).norm())
        scale[index] = 1 / length if 1 / length <= limits.max else inf
        if not (isfinite(largest) and 0 < float(scale[index]) < inf):
            what = "is the mean of all rows" if centred else "is zero"
            what = f"{what}: it has no direction" if largest == 0 else "is not finite"
            if isfinite(largest) and largest > 0:
                what = f"is too short or too long to scale in {dtype}"
            raise ValueError(
                f"embeddings must have finite rows other than zero, but row {index} {what}"
                + (
                    "; if it stands for no token, name it in "
                    f"UnitEmbeddings(embeddings, padding=[{index}])"
                    if largest == 0
                    else ""
                )
            )
    return scale
