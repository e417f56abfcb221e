"""Rotary position embedding: products of queries and keys that know the distance."""

import torch
from torch import Tensor

from lib import _checks
from lib.global_pointer._arguments import kind

__all__ = ["apply_rope"]


def apply_rope(x: Tensor, *, base: float = 10000.0) -> Tensor:
    r"""Rotate the channels of each position by angles proportional to the position.

    .. math:: (\mathcal R_i x)_{2m} + \mathrm i\,(\mathcal R_i x)_{2m+1}
        = (x_{2m} + \mathrm i\,x_{2m+1})\, e^{\mathrm i\, i\, \theta_m},
        \qquad \theta_m = \text{base}^{-2m/d}

    so that :math:`\langle \mathcal R_i q, \mathcal R_j k\rangle` depends on i and j through
    j − i alone, and lengths are kept.

    Equations: :eq:`eq:rope-solution`, :eq:`eq:gplinker-rotation`, :eq:`eq:gplinker-rope`

    Parameters
    ----------
    x : Tensor
        Shape ``(..., L, d)``, floating point, d even. Row i is position i, counted from 0.
    base : float
        Above 1. The slowest plane turns by base^(2/d − 1) per position, near 1/base for large d.

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
        raise TypeError(f"x must be a floating-point tensor, got {kind(x)}")
    if x.dim() < 2 or x.shape[-1] % 2:
        raise ValueError(f"x must have shape (..., L, d) with d even, got {tuple(x.shape)}")
    if not base > 1:
        raise ValueError(f"base must be above 1, got {base}")
    work = _checks.compute_dtype(x.dtype)
    planes = torch.arange(0, x.shape[-1], 2, dtype=work, device=x.device)
    positions = torch.arange(x.shape[-2], dtype=work, device=x.device)
    angles = positions[:, None] * base ** (-planes / x.shape[-1])
    pairs = x.to(work).reshape(*x.shape[:-1], x.shape[-1] // 2, 2)
    if torch.compiler.is_compiling():  # a compiler fuses these lines, and no complex product
        (even, odd), cos, sin = pairs.unbind(-1), angles.cos(), angles.sin()
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
        return turned.flatten(-2).to(x.dtype)
    # To be read as complex numbers, two reals must lie side by side, the first at an even place.
    *steps, step = pairs.stride()
    if step != 1 or any(place % 2 for place in (pairs.storage_offset(), *steps)):
        pairs = pairs.clone(memory_format=torch.contiguous_format)
    turns = torch.polar(torch.ones_like(angles), angles)
    turned = torch.view_as_real(torch.view_as_complex(pairs) * turns)
    return turned.flatten(-2).to(x.dtype)
