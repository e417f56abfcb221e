"""Exercises of chapter 5."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lib import divergence
from lib.check._report import Property, Report, Slip, double, examine

__all__ = ["sigmoid_divergence", "softmax_divergence"]

FILM = {
    "s": double([math.log(4), math.log(2), math.log(3), -math.log(2)]),
    "u": double([math.log(2), -math.log(2), math.log(3), -math.log(2)]),
}


def _kl(s: Tensor, u: Tensor) -> Tensor:
    p, q = s.log_softmax(-1), u.log_softmax(-1)
    return (p.exp() * (p - q)).sum()


def softmax_divergence(answer: Callable[..., Tensor]) -> Report:
    """Exercise 5E3: the divergence of two softmaxes, both directions added.

    Parameters
    ----------
    answer
        ``answer(s, u)``: two passes' scores, shape (n,); a tensor of shape ().

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> from lib import check
    >>> def one_way(s, u):
    ...     return (s.softmax(0) * (s.log_softmax(0) - u.log_softmax(0))).sum()
    >>> print(check.softmax_divergence(one_way).sentence)
    One direction only, KL(p || q): two passes have no order, so add KL(q || p).
    """
    g = torch.Generator().manual_seed(1)
    s, u = 2 * torch.randn(2, 7, generator=g, dtype=torch.float64)
    large = {"s": double([1000, 0, -1000]), "u": double([0, 1000, -1000])}
    properties = (
        Property(
            "equal passes: 0",
            {"s": FILM["s"], "u": FILM["s"]},
            "Two equal passes do not disagree.",
        ),
        Property(
            "the film: 13/38 log 2",
            FILM,
            "The shares are 8, 4, 6, 1 of 19 and 4, 1, 6, 1 of 12; sum (p - q)(s - u).",
        ),
        Property(
            "the passes change places: the same",
            {"s": FILM["u"], "u": FILM["s"]},
            "Two passes have no order: both directions must be there.",
        ),
        Property(
            "one pass shifted by 3: the same",
            {"s": FILM["s"] + 3, "u": FILM["u"]},
            "Softmax is blind to a common shift, so its divergence is too: take both shares by "
            "softmax over all scores.",
        ),
        Property("seven random scores", {"s": s, "u": u}, "Right for the film only."),
        Property(
            "scores of ±1000",
            large,
            "A share rounds to 0, and its logarithm is -inf: use the scores' difference in place "
            "of logarithms, or log_softmax.",
        ),
        Property(
            "the gradient",
            [FILM, {"s": s, "u": u}],
            "Values right, gradient wrong: neither pass may be cut off.",
            "s",
        ),
        Property(
            "the gradient where both passes agree: 0",
            {"s": FILM["s"], "u": FILM["s"].clone()},
            "Gradient right for different passes, wrong at equal ones, where it is 0.",
            "s",
        ),
    )
    right = divergence.softmax_divergence
    slips = (
        Slip("One direction only, KL(p || q): two passes have no order, so add KL(q || p).", _kl),
        Slip(
            "One direction only, KL(q || p): two passes have no order, so add KL(p || q).",
            lambda s, u: _kl(u, s),
        ),
        Slip(
            "Half of it: the two directions are added, not averaged.",
            lambda s, u: right(s, u) / 2,
        ),
        Slip("The sign is turned round.", lambda s, u: -right(s, u)),
        Slip(
            "This is the sigmoid's: here the shares are a softmax over all scores.",
            divergence.sigmoid_divergence,
        ),
        Slip("A mean over the labels: it is a sum.", lambda s, u: right(s, u) / len(s)),
        Slip(
            "The shares' change is squared: multiply it by the scores' change.",
            lambda s, u: (s.softmax(0) - u.softmax(0)).square().sum(),
        ),
        Slip(
            "The scores' change is squared: multiply it by the shares' change.",
            lambda s, u: (s - u).square().sum(),
        ),
        Slip(
            "Absolute changes: (p - q)(s - u) may be negative for one label.",
            lambda s, u: ((s.softmax(0) - u.softmax(0)) * (s - u)).abs().sum(),
        ),
    )
    return examine("softmax_divergence", answer, right, properties, slips)


def sigmoid_divergence(answer: Callable[..., Tensor]) -> Report:
    """Exercise 5M3: the sigmoid divergence of two tables, with cells that do not count.

    Parameters
    ----------
    answer
        ``answer(s, u)``: two tables of one shape; a cell that does not count is minus infinity in
        both. A tensor of shape ().

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> from lib import check
    >>> print(check.sigmoid_divergence(
    ...     lambda s, u: (s.sigmoid() - u.sigmoid()).square().sum()).sentence)
    The decisions' change is squared: multiply it by the scores' change.
    """
    film = {name: value.reshape(2, 2) for name, value in FILM.items()}
    below = torch.ones(6, 6, dtype=torch.bool).tril(-1)
    g = torch.Generator().manual_seed(0)
    one, move = torch.randn(2, 6, 6, generator=g, dtype=torch.float64)

    def tables(size: float, scale: float = 3.0) -> dict[str, Tensor]:
        s = scale * one
        return {
            "s": s.masked_fill(below, -math.inf),
            "u": (s + size * move).masked_fill(below, -math.inf),
        }

    same = {"s": film["s"], "u": film["s"].clone()}
    close = {name: value.float() for name, value in tables(1e-5).items()}
    properties = (
        Property("equal tables: 0", same, "Two equal passes do not disagree."),
        Property(
            "the film: 4/5 log 2",
            film,
            "The sigmoids go from 4/5 to 2/3 and from 2/3 to 1/3; sum (change of sigmoid) times "
            "(change of score).",
        ),
        Property(
            "the passes change places: the same",
            {"s": film["u"], "u": film["s"]},
            "Two passes have no order: both changes turn their signs.",
        ),
        Property(
            "scores of ±1000",
            {"s": double([[1000, -1000]]), "u": double([[-1000, -999]])},
            "An exponential is larger than any float: let torch.sigmoid do it.",
        ),
        Property(
            "cells of -inf in both do not count",
            tables(1.0),
            "Minus infinity less minus infinity is NaN: leave cells out before you subtract.",
        ),
        Property(
            "the gradient",
            {"s": one, "u": one + move},
            "Values right, gradient wrong: neither pass may be cut off.",
            "s",
        ),
        Property(
            "the gradient beside -inf",
            tables(1.0),
            "Gradient right for finite scores, wrong beside -inf: a NaN is hidden in the values, "
            "not absent. Select the cells before anything is computed.",
            "s",
        ),
        Property(
            "the gradient where both passes agree: 0",
            [same, film],
            "Gradient right for different scores, wrong at ties, where it is 0.",
            "s",
        ),
        Property(
            "close scores in single precision",
            close,
            "Right for distant scores, wrong for close ones: the difference of two sigmoids has "
            "lost its digits. Write it as a product.",
        ),
    )

    def right(s: Tensor, u: Tensor) -> Tensor:
        counts = s > -math.inf
        return divergence.sigmoid_divergence(s[counts], u[counts])

    def one_way(s: Tensor, u: Tensor) -> Tensor:
        p = s.sigmoid()
        logs = torch.nn.functional.logsigmoid
        terms = p * (logs(s) - logs(u)) + (1 - p) * (logs(-s) - logs(-u))
        return terms.sum()

    slips = (
        Slip(
            "This is the softmax's: here each cell is a yes/no question of its own.",
            lambda s, u: divergence.softmax_divergence(s.flatten(), u.flatten()),
        ),
        Slip(
            "The decisions' change is squared: multiply it by the scores' change.",
            lambda s, u: (s.sigmoid() - u.sigmoid()).square().sum(),
        ),
        Slip(
            "The scores' change is squared: multiply it by the decisions' change.",
            lambda s, u: (s - u).square().sum(),
        ),
        Slip("A mean over the cells: it is a sum.", lambda s, u: right(s, u) / s.numel()),
        Slip("The sign is turned round.", lambda s, u: -right(s, u)),
        Slip("Half of it: both directions are added.", lambda s, u: right(s, u) / 2),
        Slip("One direction only: two passes have no order.", one_way),
        Slip(
            "The sign of the scores' change is lost: the sum of the decisions' changes alone.",
            lambda s, u: (s.sigmoid() - u.sigmoid()).abs().sum(),
        ),
    )
    return examine("sigmoid_divergence", answer, right, properties, slips)
