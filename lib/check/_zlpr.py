"""Exercises of chapter 2."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lib import zlpr
from lib.check._report import Property, Report, Slip, double, examine

__all__ = ["zlpr_gradient", "zlpr_loss"]

FILM = [math.log(4), math.log(2), math.log(3), -math.log(2)]
TRUE = [True, True, False, False]


def _parts(scores: Tensor, labels: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of both masses, without the null class."""
    negative = scores.masked_fill(labels | ~mask, -math.inf)
    positive = (-scores).masked_fill(~(labels & mask), -math.inf)
    return torch.logsumexp(negative, -1), torch.logsumexp(positive, -1)


def _right(scores: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    return zlpr.zlpr_loss(scores, labels, mask=mask, reduction="none")


def zlpr_loss(answer: Callable[..., Tensor]) -> Report:
    """Exercise 2M3: ZLPR of a batch with a mask, one value for each sample.

    Parameters
    ----------
    answer
        ``answer(scores, labels, mask)``: all of shape (samples, labels), the last two bool; a
        tensor of shape (samples,).

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> from lib import check
    >>> def no_null(scores, labels, mask):
    ...     low, high = (labels | ~mask, ~labels | ~mask)
    ...     return (scores.masked_fill(low, -torch.inf).logsumexp(1)
    ...             + (-scores).masked_fill(high, -torch.inf).logsumexp(1))
    >>> import torch
    >>> print(check.zlpr_loss(no_null).sentence)
    The null class is missing: without the 1 in each logarithm a sample without positives has a
    loss of -inf.
    """
    film, tags = double([FILM]), torch.tensor([TRUE])
    every, no = torch.ones_like(tags), torch.zeros_like(tags)
    g = torch.Generator().manual_seed(5)
    draws = torch.rand(3, 5, 7, generator=g, dtype=torch.float64)
    several = {"scores": 4 * draws[0] - 2, "labels": draws[1] < 0.4, "mask": draws[2] < 2}
    masked = {**several, "mask": draws[2] < 0.7}
    absent = {**masked, "scores": masked["scores"].masked_fill(~masked["mask"], -math.inf)}
    nothing = {**masked, "mask": draws[2] > 2}
    large = {**masked, "scores": 500 * several["scores"]}
    properties = (
        Property(
            "the film, by hand: log(9/2) + log(7/4)",
            {"scores": film, "labels": tags, "mask": every},
            "N = 3 + 1/2 and P = 1/4 + 1/2, so the loss is log(1 + N) + log(1 + P).",
        ),
        Property(
            "no positives: log(1 + N) is left",
            {"scores": film, "labels": no, "mask": every},
            "Without positives P is 0 and log(1 + P) = 0.",
        ),
        Property(
            "no negatives: log(1 + P) is left",
            {"scores": film, "labels": every, "mask": every},
            "Without negatives N is 0 and log(1 + N) = 0.",
        ),
        Property(
            "several samples: one value for each",
            several,
            "Right for one sample, wrong for several: sum over the labels of a sample only.",
        ),
        Property(
            "where the mask is false, a label takes no part",
            masked,
            "Right while all labels count, wrong with a mask: a masked label adds to neither mass.",
        ),
        Property(
            "a masked score of -inf",
            absent,
            "A masked label may hold anything, minus infinity too: select the labels that count; "
            "don't multiply by the mask, or subtract from the score.",
        ),
        Property(
            "a sample in which nothing counts: 0",
            nothing,
            "Both masses are 0, so the loss is 0.",
        ),
        Property(
            "scores of ±1000",
            large,
            "exp(1000) is larger than any float: put the null class in as a score of 0, and let "
            "logsumexp take the largest off.",
        ),
        Property(
            "the gradient",
            several,
            "Values right, gradient wrong: a part of the loss is cut off or rounded away.",
            "scores",
        ),
        Property(
            "the gradient with a mask, at ±1000 too",
            [masked, large, nothing],
            "Gradient right while all labels count, wrong with a mask or at ±1000: a masked "
            "label gets exactly 0.",
            "scores",
        ),
        Property(
            "the gradient with masked scores of -inf",
            absent,
            "Gradient right for finite scores, wrong beside a masked -inf, which gets exactly 0. "
            "An infinity on the way back makes NaN: select before you compute.",
            "scores",
        ),
    )

    def bce(s: Tensor, y: Tensor, m: Tensor) -> Tensor:
        questions = functional.binary_cross_entropy_with_logits(s, y.to(s.dtype), reduction="none")
        return (questions * m).sum(-1)

    slips = (
        Slip(
            "The null class is missing: without the 1 in each logarithm a sample without "
            "positives has a loss of -inf.",
            lambda s, y, m: sum(_parts(s, y, m)),
        ),
        Slip(
            "Only one logarithm has its 1: both groups need the null class.",
            lambda s, y, m: _parts(s, y, m)[0] + functional.softplus(_parts(s, y, m)[1]),
        ),
        Slip(
            "Only one logarithm has its 1: both groups need the null class.",
            lambda s, y, m: functional.softplus(_parts(s, y, m)[0]) + _parts(s, y, m)[1],
        ),
        Slip(
            "Positives and negatives have changed places: it is the positives that belong above "
            "the line.",
            lambda s, y, m: _right(s, ~y, m),
        ),
        Slip(
            "The positives enter with their own sign: the mass of a positive is exp(-s), small "
            "above the line.",
            lambda s, y, m: _right(torch.where(y, -s, s), y, m),
        ),
        Slip(
            "This is summed binary cross-entropy, one logarithm for each label. ZLPR has one for "
            "each group.",
            bce,
        ),
        Slip(
            "A mean over the labels: each group is a sum, however many there are.",
            lambda s, y, m: _right(s, y, m) / s.shape[-1],
        ),
        Slip("The mask is not used.", lambda s, y, m: _right(s, y, torch.ones_like(m))),
        Slip(
            "A masked label still counts, with a score of 0 and an exponential of 1. Give it -inf.",
            lambda s, y, m: _right(s * m, y, torch.ones_like(m)),
        ),
        Slip(
            "The mask is used for the labels, not for the scores: a masked positive has become a "
            "negative.",
            lambda s, y, m: _right(s, y & m, torch.ones_like(m)),
        ),
    )
    return examine("zlpr_loss", answer, _right, properties, slips)


def zlpr_gradient(answer: Callable[..., Tensor]) -> Report:
    """Exercise 2M4: the gradient of ZLPR for one sample, written down without autograd.

    Parameters
    ----------
    answer
        ``answer(scores, labels)``: both of shape (n,), the labels bool; a tensor of shape (n,).

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> from lib import check
    >>> print(check.zlpr_gradient(lambda s, y: s.sigmoid() - y.double()).sentence)
    This is the gradient of binary cross-entropy, sigmoid less label: each label for itself. In
    ZLPR a label shares its group's mass with the others.
    """
    film, tags = double(FILM), torch.tensor(TRUE)
    g = torch.Generator().manual_seed(7)
    drawn = 2 * torch.randn(9, generator=g, dtype=torch.float64)
    properties = (
        Property(
            "the film, in fractions: -1/7, -2/7, 6/9, 1/9",
            {"scores": film, "labels": tags},
            "Of each group, the exponentials divided by 1 + their sum; with a minus on positives.",
        ),
        Property(
            "no positives, or no negatives",
            [{"scores": film, "labels": ~tags | tags}, {"scores": film, "labels": tags & ~tags}],
            "Right with both groups, wrong with one: an empty group has mass 0, and is no reason "
            "to divide by 0.",
        ),
        Property(
            "nine random scores, three of them positive",
            {"scores": drawn, "labels": torch.arange(9) < 3},
            "Right for the film, wrong for other scores.",
        ),
        Property(
            "scores of ±1000",
            {"scores": double([1000, -1000, 999, -1000]), "labels": torch.tensor(TRUE)},
            "exp(1000) is larger than any float, and inf / inf is NaN. Take a softmax over the "
            "group and a score of 0.",
        ),
    )

    def right(scores: Tensor, labels: Tensor) -> Tensor:
        leaf = scores.detach().requires_grad_()
        (slope,) = torch.autograd.grad(zlpr.zlpr_loss(leaf, labels), leaf)
        return slope

    def exponentials(s: Tensor, y: Tensor) -> Tensor:
        return torch.where(y, -s, s).exp()

    def shares(s: Tensor, y: Tensor, null: float) -> Tensor:
        weights = exponentials(s, y)
        low, high = (weights * ~y).sum(), (weights * y).sum()
        return torch.where(y, -weights / (null + high), weights / (null + low))

    slips = (
        Slip(
            "This is the gradient of binary cross-entropy, sigmoid less label: each label for "
            "itself. In ZLPR a label shares its group's mass with the others.",
            lambda s, y: s.sigmoid() - y.to(s.dtype),
        ),
        Slip(
            "The null class is missing below the line of the fraction: the masses must be "
            "N / (1 + N) and P / (1 + P), not 1.",
            lambda s, y: shares(s, y, 0.0),
        ),
        Slip(
            "The sign of the positives is missing: a larger score of a positive lowers the loss.",
            lambda s, y: right(s, y).abs(),
        ),
        Slip("The sign is turned round: this is the way down.", lambda s, y: -right(s, y)),
        Slip(
            "One sum for both groups: negatives share N, positives share P.",
            lambda s, y: (
                torch.where(y, -1.0, 1.0) * exponentials(s, y) / (1 + exponentials(s, y).sum())
            ),
        ),
        Slip(
            "A mean over the labels: nothing divides by their number.",
            lambda s, y: right(s, y) / len(s),
        ),
        Slip(
            "The positives enter with exp(s): the share of a positive is exp(-s) over 1 + P.",
            lambda s, y: right(torch.where(y, -s, s), y),
        ),
        Slip(
            "The exponentials are not divided by 1 + their sum.",
            lambda s, y: torch.where(y, -1.0, 1.0) * exponentials(s, y),
        ),
    )
    return examine("zlpr_gradient", answer, right, properties, slips)
