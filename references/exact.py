"""Slow and independent ways to compute what ``lib.exact`` computes, and one way that samples."""

import math

import mpmath
import torch
from torch import Tensor

__all__ = ["genz_sample", "log_probability"]


def log_probability(groups: dict[float, int], digits: int = 30) -> mpmath.mpf:
    """Log of the integral in many digits; ``groups`` maps an advantage to its number of rivals.

    Every function is mpmath's own. The range is cut where the integrand changes its scale.
    """
    with mpmath.workdps(digits):
        pairs = [(mpmath.mpf(d), count) for d, count in groups.items()]

        def log_integrand(z):
            return mpmath.fsum(c * log_cdf(z + d) for d, c in pairs) - z * z / 2

        low, high = -60.0, max(60.0, -min(groups) + 60.0)
        for _ in range(60):  # concave: thirds that hold no maximum go
            a, b = (2 * low + high) / 3, (low + 2 * high) / 3
            low, high = (a, high) if log_integrand(a) < log_integrand(b) else (low, b)
        mode = (low + high) / 2
        top = log_integrand(mode)
        ends = []
        for sign in (-1, 1):
            reach = 0.01
            while log_integrand(mode + sign * reach) > top - 2.3 * digits:
                reach *= 1.3
            ends.append(reach)
        cuts = [mode - ends[0] * k / 6 for k in range(6, 0, -1)]
        cuts += [mode + ends[1] * k / 6 for k in range(7)]
        area = mpmath.quad(lambda z: mpmath.exp(log_integrand(z) - top), cuts)
        return top + mpmath.log(area) - mpmath.log(2 * mpmath.pi) / 2


def log_cdf(x):
    """Log of the normal distribution function, without losing the far tail on either side."""
    if x > 0:
        return mpmath.log1p(-mpmath.erfc(x / mpmath.sqrt(2)) / 2)
    return mpmath.log(mpmath.erfc(-x / mpmath.sqrt(2)) / 2)


def genz_sample(ahead: Tensor, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Orthant probabilities of ``N(ahead, I + 11')`` by Genz's sequential conditioning.

    One rival after the other, hardest first: the chance that it is beaten given the variables
    drawn so far, and a draw of its variable given that it is. Shape ``(..., n)`` to ``(...)``.
    """
    order = ahead.sort(-1).values.unsqueeze(0).expand(samples, *ahead.shape)
    carried = torch.zeros_like(order[..., 0])
    weight = torch.ones_like(carried)
    for k in range(1, ahead.shape[-1] + 1):
        diagonal, below = math.sqrt((k + 1) / k), 1 / math.sqrt(k * (k + 1))
        lost = torch.special.ndtr((-order[..., k - 1] - carried) / diagonal)
        weight = weight * (1 - lost)
        u = torch.rand(lost.shape, generator=generator, dtype=lost.dtype)
        carried = carried + below * torch.special.ndtri(lost + u * (1 - lost))
    return weight.mean(0)
