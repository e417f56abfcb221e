"""The arithmetic of the regret: log1p of sums without cancellation."""

from math import inf

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.divergence._arguments import filled

__all__ = ["LARGE", "regret"]

LARGE = 20.0  # exponents up to here are summed as they are, also squared in float32


def regret(s: Tensor, u: Tensor, gone: Tensor | None) -> Tensor:
    """Regret of each position; cells that are gone hold 0 in both arguments.

    (1 + a)(1 + b), with a = E expm1(δ) and b = E expm1(-δ), does not depend on where δ is measured
    from. Measured from its mean, a and b are of second order; their *sum* E 4 sinh²(δ/2) has no
    cancellation at all, and their product is of fourth order. So log1p(a + b + ab) has right
    digits however small the change.
    """
    # log of e^Δ w, e^-Δ w and w, with w = 1 / (2 cosh u), without adding up large terms: for
    # u = 1e4, w = e^-u underflows where e^Δ w = σ(2u) e^-s does not.
    plus = F.logsigmoid(2 * u) - s
    minus = F.logsigmoid(-2 * u) + s
    weight = -u.abs() - (-2 * u.abs()).exp().log1p()
    change = u - s
    # The null class is one more cell, with weight 1 and change 0.
    plus, minus, weight, change = (
        F.pad(filled(values, gone, empty), (1, 0))
        for values, empty in ((plus, -inf), (minus, -inf), (weight, -inf), (change, 0.0))
    )
    scale = weight[..., 1:].exp().sum(-1, keepdim=True).log1p()
    weight = weight - scale
    share = weight.exp()
    centre = (share * change).sum(-1, keepdim=True).detach()
    plus, minus, change = plus - scale - centre, minus - scale + centre, change - centre

    top = torch.maximum(plus.detach().amax(-1), minus.detach().amax(-1))
    tame = top <= LARGE
    small = change.abs() <= 1
    inner = change.masked_fill(~small, 0)
    up, down = plus.clamp(max=LARGE).exp(), minus.clamp(max=LARGE).exp()
    a = torch.where(small, share * inner.expm1(), up - share).sum(-1)
    b = torch.where(small, share * (-inner).expm1(), down - share).sum(-1)
    both = torch.where(small, 4 * share * (inner / 2).sinh().square(), up + down - 2 * share)
    gain = (both.sum(-1) + a * b).masked_fill(~tame, 0)
    return torch.where(tame, gain.log1p(), plus.logsumexp(-1) + minus.logsumexp(-1))
