r"""Divergences of two vectors of scores that will be cut at zero.

Three divergences with one signature, symmetric, zero where the scores agree, and equal to second
order to a quadratic form of the change: :func:`softmax_divergence` for a decision by the largest
score, :func:`sigmoid_divergence` and :func:`zlpr_divergence` for a decision by the sign of each.
:func:`zlpr_regret` is the directed form of the last. Two ways to use them, for which any function
of two score vectors will do: :func:`r_drop` and :func:`virtual_adversarial_loss`.

How the numbers stay right: a divergence of nearly equal scores is a small number, and every formula
here builds it from small numbers. Nothing is the difference of two probabilities or of two
log-sum-exps; where such a difference is meant, it is written with ``expm1`` and ``log1p``. So a
change of 1e-6 has as many right digits as a change of 1, in float32 too, and scores of ±1e4 neither
overflow nor give NaN. Cells that do not count are replaced before anything is subtracted.
"""

from lib.divergence.scores import (
    sigmoid_divergence,
    softmax_divergence,
    zlpr_divergence,
    zlpr_regret,
)
from lib.divergence.training import (
    Divergence,
    r_drop,
    virtual_adversarial_direction,
    virtual_adversarial_loss,
)

__all__ = [
    "Divergence",
    "r_drop",
    "sigmoid_divergence",
    "softmax_divergence",
    "virtual_adversarial_direction",
    "virtual_adversarial_loss",
    "zlpr_divergence",
    "zlpr_regret",
]
