r"""GlobalPointer: one score for every pair of token positions, for each of several heads.

A head is a table. Cell (i, j) scores the span that starts at token i and ends at token j, or the
link from token i to token j; the cell is chosen when its score is above 0. The tables are meant
for :func:`lib.zlpr.zlpr_loss` and :func:`lib.zlpr.sparse_zlpr_loss`, which train that threshold.

Two modules fill them. :class:`GlobalPointer` gives each head its own queries and keys.
:class:`EfficientGlobalPointer` shares one pair table among all heads and adds to it a score for
the start and one for the end; :meth:`EfficientGlobalPointer.parts` returns these three.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import _checks

__all__ = ["EfficientGlobalPointer", "GlobalPointer", "PointerParts", "apply_rope"]


def apply_rope(x: Tensor, *, base: float = 10000.0) -> Tensor:
    r"""Rotate the channels of each position by angles proportional to the position.

    .. math:: (\mathcal R_i x)_{2m} + \mathrm i\,(\mathcal R_i x)_{2m+1}
        = (x_{2m} + \mathrm i\,x_{2m+1})\, e^{\mathrm i\, i\, \theta_m},
        \qquad \theta_m = \text{base}^{-2m/d}

    so that :math:`\langle \mathcal R_i q, \mathcal R_j k\rangle` depends on i and j through
    j − i alone, and lengths are kept.

    Equations: :eq:`eq:gplinker-rotation`, :eq:`eq:gplinker-rope`

    Parameters
    ----------
    x : Tensor
        Shape ``(..., L, d)``, floating point, d even. Row i is position i, counted from 0.
    base : float
        Above 1. The slowest plane turns by about 1/base per position.

    Returns
    -------
    Tensor
        Shape, dtype and device of `x`. Angles, cosines and the rotation itself are computed in
        float32 for half-precision input (an angle of 500 has no decimals left in bfloat16), in
        the dtype of `x` otherwise.

    Raises
    ------
    TypeError
        If `x` is not a floating-point tensor.
    ValueError
        If `x` has fewer than two dimensions or an odd last one, or `base` is not above 1.

    Notes
    -----
    Channels 2m and 2m+1 form plane m (the interleaved convention). Source: Su et al., RoFormer
    (2024), section 3.2.

    Examples
    --------
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> apply_rope(x)  # position 0 stays, position 1 turns by one radian
    tensor([[1.0000, 0.0000],
            [0.5403, 0.8415]])
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"x: expected a floating-point tensor, got {_kind(x)}")
    if x.dim() < 2 or x.shape[-1] % 2:
        raise ValueError(f"x: expected shape (..., L, d) with d even, got {tuple(x.shape)}")
    if not base > 1:
        raise ValueError(f"base: expected a number above 1, got {base}")
    work = _checks.compute_dtype(x.dtype)
    planes = torch.arange(0, x.shape[-1], 2, dtype=work, device=x.device)
    positions = torch.arange(x.shape[-2], dtype=work, device=x.device)
    angles = positions[:, None] * base ** (-planes / x.shape[-1])
    cos, sin = angles.cos(), angles.sin()
    even, odd = x[..., 0::2], x[..., 1::2]  # promoted to `work` by cos and sin
    turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
    return turned.flatten(-2).to(x.dtype)


class PointerParts(NamedTuple):
    """The three terms of an efficient pointer's score, before any masking.

    ``scores[b, a, i, j] = pair[b, i, j] + start[b, a, i] + end[b, a, j]``
    """

    pair: Tensor
    """``(B, L, L)``: does (i, j) belong together? Shared by all heads."""
    start: Tensor
    """``(B, H, L)``: does head a like to start at i?"""
    end: Tensor
    """``(B, H, L)``: does head a like to end at j?"""


class GlobalPointer(nn.Module):
    r"""Score every pair of positions with a query and a key of each head's own.

    .. math:: s_a(i, j) = \frac{(\mathcal R_i q_{a,i})^\top (\mathcal R_j k_{a,j})}{\sqrt d}
        + \beta_a, \qquad q_{a,i} = W_{q,a} h_i + b_{q,a},\quad k_{a,j} = W_{k,a} h_j + b_{k,a}

    with :math:`\mathcal R` the identity when `rope` is off and :math:`\beta = 0` without
    `bias_start`.

    Equations: :eq:`eq:gplinker-pointer`

    Parameters
    ----------
    hidden_size : int
        D, the size of an encoder state.
    heads : int
        H, the number of tables.
    head_size : int
        d, the size of a query and of a key; even when `rope` is on.
    causal : bool
        Keep the cells with i ≤ j only: spans. Links, which may run backwards, need False.
    rope : bool
        Rotate queries and keys (:func:`apply_rope`), so that the score knows how far apart and in
        which order two positions are.
    bias_start : float or None
        None: no β, the published form. A number: each head has a learnable β that starts there.
        The biases of queries and keys cannot do this: under RoPE their product is a cosine in
        j − i, not a constant. As hardly any cell of a table is positive, a start near −log of the
        number of cells spares the first epochs.

    Notes
    -----
    Parameters: :math:`H(2dD + 2d)`, plus H with `bias_start`. Source: Su et al., GlobalPointer
    (arXiv 2208.03054), with the :math:`1/\sqrt d` of the published code.

    Half precision: under autocast, or with half-precision weights, the projection runs in half
    precision; queries, keys, their products and the scores are float32. A score is compared
    with 0 after large terms have cancelled, where a bfloat16 sum of size 8 has steps of 1/16.

    Examples
    --------
    >>> pointer = GlobalPointer(8, heads=3, head_size=4)
    >>> pointer(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 3, 5, 5])
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        head_size: int = 64,
        *,
        causal: bool = True,
        rope: bool = True,
        bias_start: float | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(hidden_size, heads, head_size, rope)
        self.heads, self.head_size, self.causal, self.rope = heads, head_size, causal, rope
        self.projection = nn.Linear(hidden_size, heads * 2 * head_size)
        self.bias = (
            None if bias_start is None else nn.Parameter(torch.full((heads,), float(bias_start)))
        )

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Fill the tables.

        Parameters
        ----------
        hidden : Tensor
            Encoder states, ``(B, L, D)``, floating point.
        mask : Tensor or None
            ``(B, L)`` bool, True where a position counts. None: all count.

        Returns
        -------
        Tensor
            Scores ``(B, H, L, L)``; −inf on cells whose row or column is masked and, with
            `causal`, on cells with i > j. float32 for half-precision input, else the dtype of
            `hidden`.

        Raises
        ------
        TypeError
            If `hidden` is not floating point or `mask` not bool.
        ValueError
            If a shape disagrees.
        """
        _check_input(hidden, mask, self.projection.in_features)
        projected = _upcast(self.projection(hidden))
        with _no_autocast(hidden):
            batch, length = hidden.shape[:2]
            by_head = projected.view(batch, length, self.heads, 2, self.head_size)
            query, key = by_head.permute(3, 0, 2, 1, 4)
            scores = _products(query, key, self.rope)
            if self.bias is not None:
                scores = scores + _upcast(self.bias)[:, None, None]
            return _hide(scores, mask, self.causal)

    def extra_repr(self) -> str:
        """Show the options beside the projection."""
        return f"heads={self.heads}, causal={self.causal}, rope={self.rope}"


class EfficientGlobalPointer(nn.Module):
    r"""Score every pair of positions by one shared table plus a start and an end score per head.

    .. math:: s_a(i, j) = A_{ij} + b_{a,i} + c_{a,j},\qquad
        A_{ij} = \frac{(\mathcal R_i q_i)^\top (\mathcal R_j k_j)}{\sqrt d},\qquad
        b_{a,i} = \tfrac12\bigl(u_a^\top [q_i; k_i] + \beta_a\bigr),\quad
        c_{a,j} = \tfrac12\bigl(v_a^\top [q_j; k_j] + \gamma_a\bigr)

    A answers whether i and j belong together, b and c to which head. The rotation enters A only.

    Equations: :eq:`eq:gplinker-efficient`

    Parameters
    ----------
    hidden_size : int
        D, the size of an encoder state.
    heads : int
        H, the number of tables.
    head_size : int
        d, the size of the shared query and key; even when `rope` is on.
    causal, rope : bool
        As in :class:`GlobalPointer`.
    bias_start : float or None
        None: β and γ start as in any linear layer, near 0. A number: every β and γ starts there,
        so that each score starts shifted by exactly this number, half of it through b, half
        through c.

    Notes
    -----
    Parameters: :math:`2dD + 2d + 4dH + 2H`. Source: kexue 8877 (2022); the un-rotated
    :math:`[q; k]`, the :math:`1/\sqrt d` and the halves are those of the published code.

    Half precision: as in :class:`GlobalPointer`; b and c are computed in float32 as well.

    Examples
    --------
    >>> pointer = EfficientGlobalPointer(8, heads=3, head_size=4)
    >>> pointer(torch.zeros(2, 5, 8)).shape
    torch.Size([2, 3, 5, 5])
    >>> [tuple(part.shape) for part in pointer.parts(torch.zeros(2, 5, 8))]
    [(2, 5, 5), (2, 3, 5), (2, 3, 5)]
    """

    def __init__(
        self,
        hidden_size: int,
        heads: int,
        head_size: int = 64,
        *,
        causal: bool = True,
        rope: bool = True,
        bias_start: float | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(hidden_size, heads, head_size, rope)
        self.heads, self.head_size, self.causal, self.rope = heads, head_size, causal, rope
        self.projection = nn.Linear(hidden_size, 2 * head_size)
        self.head_scores = nn.Linear(2 * head_size, 2 * heads)
        if bias_start is not None:
            nn.init.constant_(self.head_scores.bias, float(bias_start))

    def parts(self, hidden: Tensor) -> PointerParts:
        """Compute the three terms of the score, unmasked, without the H × L × L tables.

        Parameters
        ----------
        hidden : Tensor
            Encoder states, ``(B, L, D)``, floating point.

        Returns
        -------
        PointerParts
            ``pair`` (B, L, L), ``start`` (B, H, L), ``end`` (B, H, L), float32 for
            half-precision input, else the dtype of `hidden`.

        Raises
        ------
        TypeError
            If `hidden` is not floating point.
        ValueError
            If its shape is not ``(B, L, D)``.
        """
        _check_input(hidden, None, self.projection.in_features)
        projected = _upcast(self.projection(hidden))
        with _no_autocast(hidden):
            query, key = projected.chunk(2, dim=-1)
            pair = _products(query, key, self.rope)
            layer = self.head_scores
            by_head = F.linear(projected, _upcast(layer.weight), _upcast(layer.bias)) / 2
            start, end = by_head.transpose(1, 2).chunk(2, dim=1)
            return PointerParts(pair, start, end)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """Fill the tables; arguments, result and errors are those of `GlobalPointer.forward`.

        The −inf of a masked cell comes through the shared table, which is H times smaller than
        the result. A loss must therefore send no gradient into a cell of −inf, as ZLPR does not.
        """
        _check_input(hidden, mask, self.projection.in_features)
        pair, start, end = self.parts(hidden)
        pair = _hide(pair[:, None], mask, self.causal)
        scores = pair + start[..., :, None]
        return scores.add_(end[..., None, :])  # in place: the table is the largest tensor here

    def extra_repr(self) -> str:
        """Show the options beside the two layers."""
        return f"heads={self.heads}, causal={self.causal}, rope={self.rope}"


def _products(query: Tensor, key: Tensor, rope: bool) -> Tensor:
    """Scaled products of all queries with all keys, ``(..., L, d)`` twice → ``(..., L, L)``."""
    if rope:
        query, key = apply_rope(query), apply_rope(key)
    # Scaling the queries costs L·d operations, scaling the products L².
    return torch.matmul(query * float(query.shape[-1]) ** -0.5, key.transpose(-2, -1))


def _hide(scores: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Put −inf on the cells of ``(B, H, L, L)`` that do not count."""
    length = scores.shape[-1]
    keep = torch.ones(length, length, dtype=torch.bool, device=scores.device)
    if causal:
        keep = keep.triu()
    if mask is not None:
        keep = keep & (mask[:, None, :, None] & mask[:, None, None, :])
    elif not causal:
        return scores
    return scores.masked_fill(~keep, -torch.inf)


def _upcast(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return x.to(_checks.compute_dtype(x.dtype))


def _no_autocast(x: Tensor) -> torch.autocast:
    """Keep autocast from sending the scores back to half precision."""
    return torch.autocast(x.device.type, enabled=False)


def _check_sizes(hidden_size: int, heads: int, head_size: int, rope: bool) -> None:
    for name, value in (("hidden_size", hidden_size), ("heads", heads), ("head_size", head_size)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: expected an int, got {_kind(value)}")
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    if rope and head_size % 2:
        raise ValueError(f"head_size: expected an even number for RoPE, got {head_size}")


def _check_input(hidden: Tensor, mask: Tensor | None, hidden_size: int) -> None:
    if not isinstance(hidden, Tensor) or not hidden.is_floating_point():
        raise TypeError(f"hidden: expected a floating-point tensor, got {_kind(hidden)}")
    if hidden.dim() != 3 or hidden.shape[-1] != hidden_size:
        raise ValueError(f"hidden: expected shape (B, L, {hidden_size}), got {tuple(hidden.shape)}")
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask: expected a bool tensor, got {_kind(mask)}")
    if mask.shape != hidden.shape[:2]:
        raise ValueError(
            f"mask: expected shape {tuple(hidden.shape[:2])} like hidden, got {tuple(mask.shape)}"
        )


def _kind(value: object) -> str:
    """Name a value's type, for a message."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
