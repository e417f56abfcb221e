"""Exercises of chapter 7."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from lib import emo
from lib.check._report import Property, Report, Slip, double, examine

__all__ = ["emo_loss", "kernel_score_loss"]

# Book, film, movie: the costs from film are 1, 0 and 1/10.
WORDS = double([[1, 0, 0], [0, 1, 0], [0, 0.9, math.sqrt(0.19)]])


def _rows(film_name: str, film_broken: str, sure: Property) -> tuple[Property, ...]:
    """List what both losses are asked; only the film and the last property are their own."""
    g = torch.Generator().manual_seed(9)
    draws = torch.randn(6, 20, generator=g, dtype=torch.float64)
    film = {
        "scores": double([[0.5, 0.25, 0.25]]).log(),
        "targets": torch.tensor([1]),
        "vectors": WORDS,
    }
    several = {
        "scores": 2 * draws,
        "targets": torch.randint(20, (6,), generator=g),
        "vectors": functional.normalize(
            torch.randn(20, 4, generator=g, dtype=torch.float64), dim=-1
        ),
    }
    square = {
        "scores": film["scores"].expand(3, 3) + 0.0,
        "targets": torch.tensor([0, 1, 2]),
        "vectors": WORDS,
    }
    long = {**film, "vectors": WORDS * double([[3], [1], [0.5]])}
    large = {**film, "scores": double([[1000, 0, -1000]])}
    return (
        Property(film_name, film, film_broken),
        Property(
            "three rows, three targets: one value for each",
            square,
            "Right for one row, wrong for three: the softmax runs over the words of a row, and "
            "each row has its own target.",
        ),
        Property(
            "twenty words, six rows",
            several,
            "Right for three words, wrong for twenty: words whose product is negative cost more "
            "than 1.",
        ),
        Property(
            "the vectors' lengths do not matter",
            long,
            "Right for unit vectors, wrong for others: divide each vector by its length.",
        ),
        Property(
            "scores of ±1000",
            large,
            "An exponential is larger than any float: let torch.softmax do it.",
        ),
        Property(
            "the gradient",
            several,
            "Values right, gradient wrong: the probabilities depend on all scores of the row.",
            "scores",
        ),
        Property(
            "the gradient at ±1000",
            large,
            "Gradient right for small scores, wrong for large ones.",
            "scores",
        ),
        sure,
    )


def _sure(scores: list[float], target: int) -> dict[str, Tensor]:
    return {
        "scores": double([scores]).float(),
        "targets": torch.tensor([target]),
        "vectors": WORDS.float(),
    }


def emo_loss(answer: Callable[..., Tensor]) -> Report:
    """Exercise 7E3: EMO for a batch, the price of the mass on wrong words.

    Parameters
    ----------
    answer
        ``answer(scores, targets, vectors)``: shapes (rows, words), (rows,) and (words, d); a tensor
        of shape (rows,).

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> from lib import check
    >>> print(check.emo_loss(
    ...     lambda s, t, v: 1 - s.softmax(1).gather(1, t[:, None])[:, 0]).sentence)
    Every wrong word costs 1 here: multiply its probability by its price.
    """
    name = "film, with 1/2, 1/4, 1/4 on book, film, movie: 21/40"
    why = "The prices from film are 1, 0 and 1/10, so the loss is 1/2 + 1/40."
    sure = Property(
        "sure of the right word, in single precision",
        _sure([0, 12, 0.5], 1),
        "Right for doubtful words, wrong for sure ones: 1 less a number near 1 has lost its "
        "digits. Sum the prices of the wrong words.",
    )

    def right(s: Tensor, t: Tensor, v: Tensor) -> Tensor:
        return emo.emo_loss(s, t, v, reduction="none")

    def priced(s: Tensor, t: Tensor, prices: Tensor) -> Tensor:
        return (s.softmax(-1) * prices[t]).sum(-1)

    def products(v: Tensor) -> Tensor:
        unit = functional.normalize(v, dim=-1)
        return unit @ unit.T

    slips = (
        Slip(
            "Every wrong word costs 1 here: multiply its probability by its price.",
            lambda s, t, v: 1 - s.softmax(-1).gather(-1, t[:, None])[:, 0],
        ),
        Slip(
            "This is how alike the words are; a price is 1 less that.",
            lambda s, t, v: priced(s, t, products(v)),
        ),
        Slip(
            "The whole squared distance: a price is half of it.",
            lambda s, t, v: priced(s, t, 2 - 2 * products(v)),
        ),
        Slip(
            "The distance itself, not half its square.",
            lambda s, t, v: priced(s, t, (2 - 2 * products(v)).clamp(min=0).sqrt()),
        ),
        Slip(
            "The vectors are not brought to length 1.",
            lambda s, t, v: priced(s, t, 1 - v @ v.T),
        ),
        Slip(
            "The scores are used as they are: take their softmax first.",
            lambda s, t, v: (s * (1 - products(v))[t]).sum(-1),
        ),
        Slip(
            "The softmax runs down the batch, not over the words.",
            lambda s, t, v: (s.softmax(0) * (1 - products(v))[t]).sum(-1),
        ),
        Slip("A mean over the words: it is a sum.", lambda s, t, v: right(s, t, v) / s.shape[-1]),
        Slip(
            "The sign is turned round: this is the mean likeness less 1.",
            lambda s, t, v: -right(s, t, v),
        ),
    )
    return examine("emo_loss", answer, right, _rows(name, why, sure), slips)


def kernel_score_loss(answer: Callable[..., Tensor]) -> Report:
    """Exercise 7M3: the kernel score of a batch, without a table of pairs.

    Parameters
    ----------
    answer
        ``answer(scores, targets, vectors)``: shapes (rows, words), (rows,) and (words, d); a tensor
        of shape (rows,).

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> from lib import check
    >>> from lib.emo import emo_loss
    >>> print(check.kernel_score_loss(lambda *all: emo_loss(*all, reduction="none")).sentence)
    This is EMO, which is linear in the probabilities. The kernel score is half a squared distance.
    """
    name = "film, with 1/2, 1/4, 1/4 on book, film, movie"
    why = "Half the squared distance of the mean direction from the target's direction."
    sure = Property(
        "sure of the right word, in single precision",
        _sure([12, 0, 0.5], 0),
        "Right for doubtful words, wrong for sure ones: the mean less the target's vector has "
        "lost its digits. Sum the wrong words alone, their vectors less the target's.",
    )

    def right(s: Tensor, t: Tensor, v: Tensor) -> Tensor:
        return emo.kernel_score_loss(s, t, v, reduction="none")

    def away(s: Tensor, t: Tensor, v: Tensor) -> Tensor:
        return s.softmax(-1) @ v - v[t]

    slips = (
        Slip(
            "This is EMO, which is linear in the probabilities. The kernel score is half a "
            "squared distance.",
            lambda s, t, v: emo.emo_loss(s, t, v, reduction="none"),
        ),
        Slip("The half is missing.", lambda s, t, v: 2 * right(s, t, v)),
        Slip(
            "The distance itself: take its square, and half of it.",
            lambda s, t, v: (2 * right(s, t, v)).sqrt(),
        ),
        Slip(
            "The vectors are not brought to length 1.",
            lambda s, t, v: away(s, t, v).square().sum(-1) / 2,
        ),
        Slip(
            "A mean over the d coordinates: a squared distance is a sum.",
            lambda s, t, v: right(s, t, v) / v.shape[-1],
        ),
        Slip(
            "The scores are used as they are: take their softmax first.",
            lambda s, t, v: (s @ v - v[t]).square().sum(-1) / 2,
        ),
        Slip(
            "The softmax runs down the batch, not over the words.",
            lambda s, t, v: (s.softmax(0) @ v - v[t]).square().sum(-1) / 2,
        ),
        Slip("The sign is turned round.", lambda s, t, v: -right(s, t, v)),
        Slip(
            "This is the squared length of the mean direction: take the target's vector off first.",
            lambda s, t, v: (s.softmax(-1) @ functional.normalize(v, dim=-1)).square().sum(-1) / 2,
        ),
    )
    return examine("kernel_score_loss", answer, right, _rows(name, why, sure), slips)
