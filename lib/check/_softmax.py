"""Exercises of chapter 1."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lib import softmax
from lib.check._report import Property, Report, Slip, double, examine

__all__ = ["cross_entropy", "smooth_max"]


def smooth_max(answer: Callable[..., Tensor]) -> Report:
    """Exercise 1M3: log-sum-exp, written so that it does not break.

    Parameters
    ----------
    answer
        ``answer(scores)``: scores of shape (n,), some of them minus infinity; a tensor of shape ().

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> from lib import check
    >>> print(check.smooth_max(lambda scores: scores.exp().mean().log()).sentence)
    A mean of the exponentials instead of their sum: the value is log n too small.
    """
    equal, apart = double([0, 0]), double([math.log(3), math.log(2), 0])
    tie, large = double([2, 2, 2, -1]), double([800, 800, 799])
    masked, none = double([-math.inf, 2, 0]), double([-math.inf] * 3)
    properties = (
        Property(
            "the photo, exponentials 3, 2 and 1: log 6",
            {"scores": apart},
            "Add the exponentials, and take the logarithm of the sum.",
        ),
        Property(
            "ties: two zeros give log 2",
            [{"scores": equal}, {"scores": tie}],
            "Right for distinct scores, wrong at ties: each score that ties with the largest "
            "counts once more.",
        ),
        Property(
            "scores of 800",
            {"scores": large},
            "exp(800) is larger than any float. Take the largest score off first, and add it "
            "to the logarithm.",
        ),
        Property(
            "scores of -10000",
            {"scores": double([-1e4, 1 - 1e4])},
            "All exponentials round to 0, and log 0 = -inf. Take the largest score off first.",
        ),
        Property(
            "a score of -inf takes no part",
            {"scores": masked},
            "A score of -inf has the exponential 0, so it must not change anything.",
        ),
        Property(
            "no score takes part: -inf",
            {"scores": none},
            "If all scores are -inf, so is the value: ask whether there is a largest score "
            "before you take it off.",
        ),
        Property(
            "the gradient is the softmax",
            {"scores": apart},
            "Values right, gradient wrong: it must be the softmax.",
            "scores",
        ),
        Property(
            "the gradient at ties: equal shares",
            {"scores": tie},
            "Gradient right for distinct scores, wrong at ties: equal scores have equal shares.",
            "scores",
        ),
        Property(
            "the gradient at 800 and beside -inf",
            [{"scores": large}, {"scores": masked}],
            "Values right, gradient wrong: an infinite exponent is on its way back.",
            "scores",
        ),
        Property(
            "no score takes part: gradient 0",
            {"scores": none},
            "Where no score takes part, none has a share: the gradient is 0.",
            "scores",
        ),
    )
    slips = (
        Slip(
            "A mean of the exponentials instead of their sum: the value is log n too small.",
            lambda s: s.exp().mean().log(),
        ),
        Slip(
            "A null class has slipped in: there is no 1 beside the sum of exponentials.",
            lambda s: torch.log1p(s.exp().sum()),
        ),
        Slip("This is the sharp maximum, without a logarithm of the sum.", torch.amax),
        Slip("The logarithm is missing.", lambda s: s.exp().sum()),
        Slip(
            "This is a logarithm of base 2; take the natural one.", lambda s: s.exp().sum().log2()
        ),
        Slip(
            "The largest score was taken off, but not added again.",
            lambda s: torch.logsumexp(s - s.amax(), 0),
        ),
    )
    return examine("smooth_max", answer, softmax.smooth_max, properties, slips)


def cross_entropy(answer: Callable[..., Tensor]) -> Report:
    """Exercise 1M4: cross-entropy of one row, as a smooth hinge over the rivals.

    Parameters
    ----------
    answer
        ``answer(scores, target)``: scores of shape (n,), the index of the right class; a tensor of
        shape ().

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> from lib import check
    >>> wrong = lambda scores, target: (scores - scores[target]).exp().sum().log1p()
    >>> print(check.cross_entropy(wrong).sentence)
    The target is counted among its own rivals: the 1 already stands for it.
    """
    photo = {"scores": double([math.log(3), math.log(2), 0]), "target": 2}
    behind = {"scores": double([0, 1000]), "target": 0}
    absent = {"scores": double([1, -math.inf, 0]), "target": 0}
    properties = (
        Property(
            "the photo shows the fox: log(1 + 3 + 2)",
            photo,
            "The violations have the exponentials 3 and 2, and the 1 stands for the target.",
        ),
        Property(
            "one class: nothing to lose",
            {"scores": double([1.5]), "target": 0},
            "Without a rival the sum is empty, and the loss is log 1 = 0.",
        ),
        Property(
            "other targets, and scores shifted by 5",
            [
                {"scores": double([math.log(3), math.log(2), 0]), "target": 1},
                {"scores": double([1, 4, -2, 0.5]) + 5, "target": 3},
            ],
            "Right for the fox, wrong for another target or level: only the differences from "
            "the target's score count.",
        ),
        Property(
            "the target is 1000 behind, or ahead",
            [behind, {"scores": double([1000, 0]), "target": 0}],
            "exp(1000) is larger than any float. Take the largest score off first.",
        ),
        Property(
            "a rival at -inf takes no part",
            absent,
            "A rival at -inf has the exponential 0. Zero times infinity is NaN: select the "
            "target, don't multiply by its one-hot row.",
        ),
        Property(
            "the gradient is softmax less one-hot",
            photo,
            "Values right, gradient wrong: on rivals it is the softmax, on the target the "
            "softmax less 1.",
            "scores",
        ),
        Property(
            "the gradient 1000 behind, and beside -inf",
            [behind, absent],
            "Values right, gradient wrong: an infinite exponent is on its way back.",
            "scores",
        ),
    )

    def right(scores: Tensor, target: int) -> Tensor:
        return torch.nn.functional.cross_entropy(scores, torch.tensor(target))

    def violations(scores: Tensor, target: int) -> Tensor:
        away = scores - scores[target]
        return torch.cat([away[:target], away[target + 1 :]])

    slips = (
        Slip(
            "The sign is turned round: this is the logarithm of the target's share, at most 0.",
            lambda s, t: -right(s, t),
        ),
        Slip(
            "The target is counted among its own rivals: the 1 already stands for it.",
            lambda s, t: torch.log1p((s - s[t]).exp().sum()),
        ),
        Slip(
            "The 1 in the logarithm is missing: then the loss of a sure target runs to -inf.",
            lambda s, t: torch.logsumexp(violations(s, t), 0),
        ),
        Slip(
            "The differences are turned round: a rival that leads must cost, so take its score "
            "less the target's.",
            lambda s, t: torch.log1p((-violations(s, t)).exp().sum()),
        ),
        Slip(
            "A mean in place of the sum: cross-entropy of one row is not divided by the classes.",
            lambda s, t: right(s, t) / len(s),
        ),
        Slip(
            "A mean of the rivals in place of their sum.",
            lambda s, t: torch.log1p(violations(s, t).exp().mean()),
        ),
        Slip("The share itself, without its logarithm.", lambda s, t: 1 - torch.softmax(s, 0)[t]),
        Slip(
            "These are sharp hinges, one for each rival. The loss is one smooth maximum, of 0 and "
            "all violations.",
            lambda s, t: violations(s, t).clamp(min=0).sum(),
        ),
    )
    return examine("cross_entropy", answer, right, properties, slips)
