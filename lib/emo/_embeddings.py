"""Directions of token embeddings: what the cost of taking one token for another is made of."""

from collections.abc import Callable, Iterable
from math import inf, isfinite, nan, sqrt
from typing import NamedTuple, Self

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
        Indices of rows that stand for no token, ints. They get the zero vector, so their cost to
        every token is 1, they do not enter the mean, and no target may be one of them.

    Raises
    ------
    TypeError
        ``embeddings`` is no tensor or not of a floating dtype; a padding index is no int.
    ValueError
        The shape is not ``(V, D)`` with ``V, D >= 1``; a gradient is asked for; a padding index is
        out of range; a row that is not padding is zero (after centring: is the mean itself, up to
        rounding) or has an entry that is not finite.

    Notes
    -----
    The rows are buffers that move with ``.to(device)`` and are not saved with a model's state.
    They are float32, or float64 for float64 embeddings. After ``to_empty`` they hold no values,
    and no state dict brings them back: a loss then raises RuntimeError. Build the object anew.

    Examples
    --------
    >>> import torch
    >>> unit = UnitEmbeddings(torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    >>> [[f"{value:.2f}" for value in row] for row in unit.rows.tolist()]
    [['0.60', '0.80'], ['0.00', '1.00']]
    """

    rows: Tensor
    is_padding: Tensor | None
    _filled = True

    def __init__(
        self, embeddings: Tensor, *, centre: bool = False, padding: Iterable[int] = ()
    ) -> None:
        super().__init__()
        _check_table(embeddings)
        count = embeddings.shape[0]
        table = embeddings.detach().to(_checks.compute_dtype(embeddings.dtype), copy=True)
        skipped: Tensor | None = None
        indices = {_checks.as_index("padding", index) for index in padding}
        if indices:
            for index in indices:
                if not 0 <= index < count:
                    raise ValueError(f"padding must hold rows in [0, {count}), got {index}")
            if len(indices) == count:
                raise ValueError(f"padding must leave at least 1 row, got all {count}")
            skipped = torch.zeros(count, dtype=torch.bool, device=table.device)
            skipped[sorted(indices)] = True
            table.masked_fill_(skipped.unsqueeze(1), 0)
        if centre:
            kept = count - len(indices)
            # The largest entry of each row and not its length, whose squares may overflow.
            size = torch.linalg.vector_norm(table, ord=inf, dim=1)
            mean = (table.sum(0, dtype=torch.float64) / kept).to(table.dtype)
            table -= mean
            # What a row that is the mean leaves behind is rounding, which has no direction.
            left = torch.linalg.vector_norm(table, ord=inf, dim=1)
            noise = 8 * torch.finfo(table.dtype).eps * torch.maximum(size, mean.abs().max())
            table.masked_fill_((left.isfinite() & (left <= noise)).unsqueeze(1), 0)
            if skipped is not None:
                table.masked_fill_(skipped.unsqueeze(1), 0)
        scale = _inverse_norms(table, skipped, look=_checks.values_readable(table), centred=centre)
        self.register_buffer("rows", table.mul_(scale.unsqueeze(1)), persistent=False)
        self.register_buffer("is_padding", skipped, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # untyped in PyTorch
        # All that moves a module comes through here; to_empty gives it memory without values.
        self._filled = not _checks.values_readable(self.rows) or self._holds_directions()
        return self

    def _holds_directions(self) -> bool:
        """Whether each row has length one, or zero if it is padding; to a half dtype's rounding."""
        lengths = torch.linalg.vector_norm(self.rows, dim=1)
        if self.is_padding is not None:
            lengths = lengths + self.is_padding.to(lengths.dtype)
        return bool(((lengths - 1).abs() < 0.1).all())

    def _require_values(self) -> None:
        """Raise RuntimeError if the rows came out of ``to_empty`` and nothing has filled them."""
        if not self._filled:
            self._filled = self._holds_directions()
            if not self._filled:
                raise RuntimeError(
                    "embeddings must hold rows of length one, got memory that to_empty() left "
                    "unfilled; a state dict does not hold the rows: assign "
                    "UnitEmbeddings(embeddings) anew"
                )

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
        self._require_values()
        rows = self.rows if self.is_padding is None else self.rows[~self.is_padding]
        count = rows.shape[0]
        if count < 2:
            raise ValueError(f"embeddings must hold at least 2 tokens, got {count}")
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
    embeddings: Tensor | UnitEmbeddings, vocabulary: int, device: torch.device, validate: bool
) -> Directions:
    """Return checked directions for a vocabulary of this size; copies nothing."""
    if isinstance(embeddings, UnitEmbeddings):
        embeddings._require_values()
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
    look = validate and _checks.values_readable(embeddings)
    return found._replace(scale=_inverse_norms(embeddings, None, look=look))


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
            "embeddings must not require a gradient, being constants of the loss, got "
            "requires_grad=True; pass embeddings.detach()"
        )


def _inverse_norms(
    table: Tensor, skipped: Tensor | None, *, look: bool, centred: bool = False
) -> Tensor:
    """One over the length of each row, in the dtype to compute in.

    For a row without a direction an error if we may ``look``, else NaN.
    """
    dtype = _checks.compute_dtype(table.dtype)
    by_blocks = _checks.values_readable(table) and not (look and table.dtype == dtype)
    parts = torch.split(table, _BLOCK_ROWS) if by_blocks else (table,)
    if not look:
        # Squares leave the range of the dtype long before the entries do.
        scale = torch.cat([_safe_inverse_norms(part.to(dtype)) for part in parts])
        return scale if skipped is None else scale.masked_fill(skipped, 0)
    norms = torch.cat([torch.linalg.vector_norm(part.to(dtype), dim=1) for part in parts])
    scale = norms.reciprocal()
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
            advice = "; if it stands for no token, name it in UnitEmbeddings(embeddings, padding=["
            raise ValueError(
                f"embeddings must have finite rows other than zero, got row {index}, which {what}"
                + (f"{advice}{index}])" if largest == 0 else "")
            )
    return scale


def _safe_inverse_norms(rows: Tensor) -> Tensor:
    largest = torch.linalg.vector_norm(rows, ord=inf, dim=1, keepdim=True)
    scale: Tensor = 1 / torch.linalg.vector_norm(rows / largest, dim=1) / largest.squeeze(1)
    return scale.masked_fill(~((scale > 0) & (scale < inf)), nan)
