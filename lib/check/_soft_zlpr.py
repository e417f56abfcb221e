"""Exercises of chapter 3."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lib import soft_zlpr
from lib.check._report import Property, Report, Slip, double, examine

__all__ = ["resting_scores", "soft_zlpr_loss"]


def soft_zlpr_loss(answer: Callable[..., Tensor]) -> Report:
    """Exercise 3M3: soft ZLPR of one row, without a clip.

    Parameters
    ----------
    answer
        ``answer(scores, targets)``: both of shape (n,), targets from 0 to 1; a tensor of shape ().

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> from lib import check
    >>> def scaled(scores, targets):
    ...     positive, negative = (-targets * scores).exp(), ((1 - targets) * scores).exp()
    ...     return positive.sum().log1p() + negative.sum().log1p()
    >>> print(check.soft_zlpr_loss(scaled).sentence)
    The degree multiplies the score: it must multiply the exponential.
    """
    film = double([math.log(4), math.log(2), math.log(3), -math.log(2)])
    vote = {"scores": film, "targets": double([0.75, 0.5, 0.25, 0.5])}
    hard = {"scores": film, "targets": double([1, 1, 0, 0])}
    tiny = {"scores": double([-30, 30, 0.5]), "targets": double([1e-9, 1 - 1e-9, 0.25])}
    large = {"scores": double([1e4, -1e4, 3]), "targets": double([0, 1, 0.5])}
    sure = {"scores": double([1e4, -1e4, 3]), "targets": double([1, 0, 0.5])}
    masked = {"scores": double([2, -1, -math.inf]), "targets": double([1, 0, 0])}
    properties = (
        Property(
            "the film by vote",
            vote,
            "A = sum of t exp(-s), B = sum of (1 - t) exp(s), and the loss is log(1 + A) "
            "+ log(1 + B).",
        ),
        Property(
            "targets of 0 and 1: ZLPR",
            hard,
            "Right for degrees, wrong for 0 and 1: log 0 = -inf has come in, or a clip.",
        ),
        Property(
            "a target of one in a billion",
            tiny,
            "A clip has changed the target: exp(30) times 1e-9 is not small.",
        ),
        Property(
            "scores of ±10000",
            [large, sure],
            "An exponential is larger than any float, or 0 times infinity is NaN: drop labels of "
            "weight 0 from their group, and take the largest score off.",
        ),
        Property(
            "a score of -inf with target 0 takes no part",
            masked,
            "0 times infinity is NaN: drop what is masked before you compute.",
        ),
        Property(
            "the gradient",
            vote,
            "Values right, gradient wrong: a shift by the largest score is a constant, and must "
            "not take part.",
            "scores",
        ),
        Property(
            "the gradient at targets 0 and 1, ±10000 and -inf",
            [hard, large, sure, masked],
            "Gradient right for degrees between 0 and 1, wrong at the ends: an infinity on the "
            "way back times 0 is NaN. Select first, then compute.",
            "scores",
        ),
    )

    def masses(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return (t * (-s).exp()).sum(), ((1 - t) * s.exp()).sum()

    right = soft_zlpr.soft_zlpr_loss
    slips = (
        Slip(
            "The null class is missing: the 1 in both logarithms.",
            lambda s, t: sum(mass.log() for mass in masses(s, t)),
        ),
        Slip("t and 1 - t have changed places.", lambda s, t: right(s, 1 - t)),
        Slip(
            "The degree multiplies the score: it must multiply the exponential.",
            lambda s, t: (-t * s).exp().sum().log1p() + ((1 - t) * s).exp().sum().log1p(),
        ),
        Slip(
            "This is binary cross-entropy with degrees, one logarithm for each label.",
            lambda s, t: functional.binary_cross_entropy_with_logits(s, t, reduction="sum"),
        ),
        Slip(
            "The degrees are rounded to 0 and 1 before they are used.",
            lambda s, t: right(s, t.round()),
        ),
        Slip(
            "The negatives are not weighed by 1 - t: each label is a negative by what its degree "
            "leaves.",
            lambda s, t: masses(s, t)[0].log1p() + s.exp().sum().log1p(),
        ),
        Slip(
            "A mean over the labels: both masses are sums.",
            lambda s, t: right(s, t) / len(s),
        ),
    )
    return examine("soft_zlpr_loss", answer, right, properties, slips)


def resting_scores(answer: Callable[..., Tensor]) -> Report:
    """Exercise 3E4: the scores at which soft ZLPR rests, half the log-odds.

    Parameters
    ----------
    answer
        ``answer(targets)``: shape (n,), from 0 to 1; a tensor of shape (n,).

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> import torch
    >>> from lib import check
    >>> print(check.resting_scores(torch.logit).sentence)
    The whole log-odds, where BCE rests. Soft ZLPR rests at half of them.
    """
    properties = (
        Property(
            "one half rests on the line",
            {"targets": double([0.5])},
            "Odds of 1 have the logarithm 0.",
        ),
        Property(
            "nine tenths rest at log 3",
            {"targets": double([0.9])},
            "The odds of 9/10 are 9, and half their logarithm is log 3.",
        ),
        Property(
            "one tenth and nine tenths are mirror images",
            {"targets": double([0.1, 0.9])},
            "A degree below one half rests below the line, as far as its mirror image above it.",
        ),
        Property(
            "the gradient of the loss vanishes there",
            {"targets": double([0.2, 0.7, 0.05, 0.95])},
            "Right for one tenth and nine tenths, wrong for other degrees.",
        ),
        Property(
            "one in a billion, nearly one",
            {"targets": double([1e-9, 1 - 1e-9])},
            "A clip has moved the degree: half the log-odds of 1e-9 are near -10.4.",
        ),
        Property(
            "0 and 1 rest at -inf and +inf",
            {"targets": double([0, 1])},
            "The ends have no finite place of rest: -inf and +inf, without a clip and without NaN.",
        ),
    )
    slips = (
        Slip("The whole log-odds, where BCE rests. Soft ZLPR rests at half of them.", torch.logit),
        Slip("The odds are turned over: t over 1 - t.", lambda t: -torch.logit(t) / 2),
        Slip(
            "A logarithm of base 2 or 10; take the natural one.",
            lambda t: torch.logit(t) / 2 / math.log(2),
        ),
        Slip(
            "A logarithm of base 2 or 10; take the natural one.",
            lambda t: torch.logit(t) / 2 / math.log(10),
        ),
        Slip("A straight line through 1/2 is no log-odds.", lambda t: 2 * t - 1),
        Slip("The odds without their logarithm.", lambda t: t / (1 - t)),
        Slip("The square root of the odds, without its logarithm.", lambda t: (t / (1 - t)).sqrt()),
        Slip(
            "The logarithm of the degree, not of the odds: divide by 1 - t first.",
            lambda t: t.log() / 2,
        ),
    )
    return examine("resting_scores", answer, lambda t: torch.logit(t) / 2, properties, slips)
