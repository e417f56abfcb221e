"""Exercises of chapter 6."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib import exact
from lib.check._report import Property, Report, Slip, double, examine

__all__ = ["best_two", "log_expected_accuracy"]


def log_expected_accuracy(answer: Callable[..., float]) -> Report:
    """Exercise 6M3: the logarithm of the expected accuracy, however small it is.

    Parameters
    ----------
    answer
        ``answer(advantages)``: a list of floats, the target's lead over each rival in units of the
        noise; a number.

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> import torch
    >>> from lib import check
    >>> def pairwise(advantages):
    ...     return float(torch.special.log_ndtr(torch.tensor(advantages) / 2**0.5).sum())
    >>> print(check.log_expected_accuracy(pairwise).sentence)
    The chances against each rival are multiplied, as if they were independent: all rivals meet the
    same noise of the target.
    """
    properties = (
        Property(
            "one equal rival: log 1/2",
            {"advantages": [0.0]},
            "Between two equal scores the noise tosses a coin.",
        ),
        Property(
            "one rival, half a unit behind",
            {"advantages": [0.5]},
            "The difference of two noises has variance 2: log Φ(δ/√2).",
        ),
        Property(
            "one rival, five units ahead",
            {"advantages": [-5.0]},
            "The sign of an advantage is turned round, or the rule is too coarse where the bump "
            "is no longer at 0.",
        ),
        Property(
            "no rival: 0",
            {"advantages": []},
            "Without a rival the target is right for sure: log 1.",
        ),
        Property(
            "two equal rivals: log 1/3",
            {"advantages": [0.0, 0.0]},
            "Right for one rival, wrong for two. Given the target's noise they are independent; "
            "without it they are not.",
        ),
        Property(
            "the husky: rivals 0.4 and 1.4 behind",
            {"advantages": [0.4, 1.4]},
            "Right for equal rivals, wrong for different ones.",
        ),
        Property(
            "one rival, 40 or 200 units ahead",
            [{"advantages": [-40.0]}, {"advantages": [-200.0]}],
            "Right near 0, wrong far out: the bump is not where you integrate, or the chance is "
            "smaller than any float. Find the top of the logarithm, and add logarithms.",
        ),
        Property(
            "three rivals, all far ahead",
            {"advantages": [-30.0, -29.0, -5.0]},
            "Right for one rival far ahead, wrong for three: the top of the bump depends on all.",
        ),
    )

    def right(advantages: Sequence[float]) -> float:
        row = torch.cat([double([0]), -double(list(advantages))])
        return float(exact.log_expected_accuracy(row, torch.tensor(0)))

    def logs(values: Sequence[float]) -> float:
        return float(torch.special.log_ndtr(double(list(values))).sum())

    slips = (
        Slip("This is the chance; its logarithm is asked for.", lambda d: math.exp(right(d))),
        Slip(
            "The sign is turned round: a logarithm of a chance is at most 0.", lambda d: -right(d)
        ),
        Slip(
            "The sign of the advantages is turned round: a rival that is ahead has a negative one.",
            lambda d: right([-x for x in d]),
        ),
        Slip(
            "The chances against each rival are multiplied, as if they were independent: all "
            "rivals meet the same noise of the target.",
            lambda d: logs([x / math.sqrt(2) for x in d]),
        ),
        Slip(
            "Only the rivals have noise: the target draws its own, z, and every z must be "
            "weighed by φ(z).",
            logs,
        ),
        Slip(
            "The logarithm of the chance to be wrong.",
            lambda d: math.log(-math.expm1(right(d))),
        ),
        Slip("This is a logarithm of base 10.", lambda d: right(d) / math.log(10)),
    )
    return examine("log_expected_accuracy", answer, right, properties, slips, tolerance=1e-6)


def best_two(answer: Callable[..., float]) -> Report:
    """Exercise 6M2: the chance that the target is among the best two noisy scores.

    Parameters
    ----------
    answer
        ``answer(scores, target)``: a list of two or more floats, the target's index; a number. The
        noise has standard deviation 1.

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> import torch
    >>> from lib import check
    >>> from lib.exact import expected_accuracy
    >>> def best_one(scores, target):
    ...     return expected_accuracy(torch.tensor(scores), torch.tensor(target))
    >>> print(check.best_two(best_one).sentence)
    This is the chance to be the best: one rival may win.
    """
    husky = [1.0, 0.6, -0.4]
    properties = (
        Property(
            "two classes: 1",
            {"scores": [0.3, -2.0], "target": 1},
            "Of two scores both are among the best two.",
        ),
        Property(
            "four equal scores: 1/2",
            {"scores": [0.0] * 4, "target": 2},
            "By symmetry each of four has the same chance to take one of two places. A sample is "
            "never exact: integrate.",
        ),
        Property(
            "three classes: all but the last",
            [{"scores": husky, "target": k} for k in range(3)],
            "Right for equal scores, wrong for different ones: every rival has its own advantage, "
            "and may be the one that wins.",
        ),
        Property(
            "five classes: the chances add up to two",
            [{"scores": [0.5, -1.0, 2.0, 0.0, 0.5], "target": k} for k in range(5)],
            "Right for three classes, wrong for five: exactly one rival wins, all others lose.",
        ),
    )

    def places(scores: Sequence[float], target: int) -> tuple[Tensor, Tensor, Tensor]:
        """Weights of the noise, and given it the chances of being first and of being second."""
        z = torch.linspace(-12, 12, 481, dtype=torch.float64)
        row = double(list(scores))
        ahead = z[:, None] + row[target] - torch.cat([row[:target], row[target + 1 :]])
        lose, win = torch.special.ndtr(ahead), torch.special.ndtr(-ahead)
        others = [torch.cat([lose[:, :k], lose[:, k + 1 :]], 1) for k in range(lose.shape[1])]
        second = sum(win[:, k] * rest.prod(1) for k, rest in enumerate(others))
        weights = 0.05 * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)
        return weights, lose.prod(1), torch.as_tensor(second)

    def right(scores: Sequence[float], target: int) -> float:
        weights, first, second = places(scores, target)
        return float(weights @ (first + second))

    def only(which: int) -> Callable[[Sequence[float], int], float]:
        def chance(scores: Sequence[float], target: int) -> float:
            found = places(scores, target)
            return float(found[0] @ found[which])

        return chance

    def softmax_twice(scores: Sequence[float], target: int) -> float:
        p = double(list(scores)).softmax(0).tolist()
        second = sum(p[k] * p[target] / (1 - p[k]) for k in range(len(p)) if k != target)
        return float(p[target] + second)

    slips = (
        Slip("This is the chance to be the best: one rival may win.", only(1)),
        Slip("This is the chance to be second: add that of being first.", only(2)),
        Slip("Twice the chance to be the best: it may exceed 1.", lambda s, t: 2 * only(1)(s, t)),
        Slip("The chance not to be among the best two.", lambda s, t: 1 - right(s, t)),
        Slip(
            "The noise here is Gumbel's, which gives softmax: take the normal one.", softmax_twice
        ),
        Slip(
            "The advantages have the wrong sign: take the target's score less the rival's.",
            lambda s, t: right([-x for x in s], t),
        ),
        Slip(
            "The noise is too large by √2: given z, only the rival's own noise is left.",
            lambda s, t: right([x / math.sqrt(2) for x in s], t),
        ),
    )
    return examine("best_two", answer, right, properties, slips, tolerance=1e-6)
