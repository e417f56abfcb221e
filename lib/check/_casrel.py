"""Exercises of chapter 8."""

import itertools
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lib import casrel
from lib.check._report import Property, Report, Slip, double, examine

__all__ = ["half_pointer_loss", "nearest_end_spans"]

Span = tuple[int, int]


def half_pointer_loss(answer: Callable[..., Tensor]) -> Report:
    """Exercise 8M4: the loss of a text's object tags, reduced as the article does.

    Parameters
    ----------
    answer
        ``answer(scores, targets, mask)``: shapes (tokens, relations, 2) for the first two, targets
        0 or 1, and (tokens,) for the bool mask; a tensor of shape ().

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> import torch
    >>> from lib import check
    >>> bce = torch.nn.functional.binary_cross_entropy_with_logits
    >>> print(check.half_pointer_loss(lambda s, y, m: bce(s[m], y[m])).sentence)
    A mean over the relations: they are summed.
    """
    g = torch.Generator().manual_seed(4)
    scores = 2 * torch.randn(5, 3, 2, generator=g, dtype=torch.float64)
    targets = (torch.rand(5, 3, 2, generator=g) < 0.3).double()
    every = torch.ones(5, dtype=torch.bool)
    drawn = {"scores": scores, "targets": targets, "mask": every}
    some = {**drawn, "mask": double([1, 1, 1, 0, 0]).bool()}
    large = {
        "scores": double([[[1000, -1000]], [[-1000, 1000]]]),
        "targets": double([[[1, 1]], [[0, 0]]]),
        "mask": every[:2],
    }
    zeros = torch.zeros(1, 1, 2, dtype=torch.float64)
    properties = (
        Property(
            "one token, one relation, scores 0: log 2",
            {"scores": zeros, "targets": zeros, "mask": every[:1]},
            "A fresh tag costs log 2, and the mean of its start and end as well.",
        ),
        Property(
            "three relations, scores 0: 3 log 2",
            {"scores": torch.zeros_like(scores), "targets": targets, "mask": every},
            "Over relations it is a sum, over tokens and over start and end a mean.",
        ),
        Property(
            "random scores",
            drawn,
            "Right for scores of 0, wrong for others: a tag of 1 costs log(1 + exp(-s)), a tag "
            "of 0 costs log(1 + exp(s)).",
        ),
        Property(
            "tokens that do not count",
            some,
            "Right while all tokens count, wrong with a mask: they count neither above nor below "
            "the line of the fraction.",
        ),
        Property(
            "scores of ±1000",
            large,
            "exp(1000) is larger than any float, or log 0 is -inf: use softplus, or binary "
            "cross-entropy with logits.",
        ),
        Property(
            "the gradient",
            [drawn, some],
            "Values right, gradient wrong: sigmoid less tag, on tokens that count.",
            "scores",
        ),
        Property(
            "the gradient at ±1000",
            large,
            "Gradient right for small scores, wrong for large ones: a clip keeps the value and "
            "silences the gradient.",
            "scores",
        ),
    )

    def right(s: Tensor, y: Tensor, m: Tensor) -> Tensor:
        return casrel.half_pointer_loss(s[None], y[None], power=1, mask=m[None])

    def terms(s: Tensor, y: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(s, y, reduction="none")

    slips = (
        Slip(
            "A mean over the relations: they are summed.",
            lambda s, y, m: right(s, y, m) / s.shape[1],
        ),
        Slip(
            "Start and end are summed: take the mean of the two.",
            lambda s, y, m: 2 * right(s, y, m),
        ),
        Slip(
            "A sum over the tokens: divide by how many count.",
            lambda s, y, m: right(s, y, m) * m.sum(),
        ),
        Slip(
            "A sum over everything: divide by the tokens that count, and by two.",
            lambda s, y, m: terms(s, y)[m].sum(),
        ),
        Slip(
            "The mask is not used: padding counts.",
            lambda s, y, m: right(s, y, torch.ones_like(m)),
        ),
        Slip(
            "Divided by all tokens, not by those that count.",
            lambda s, y, m: right(s, y, m) * m.sum() / len(m),
        ),
        Slip(
            "Masked scores are set to 0, but their tags still cost log 2.",
            lambda s, y, m: terms(s * m[:, None, None], y).sum() / 2 / m.sum(),
        ),
        Slip(
            "Ones and zeros have changed places: a tag of 1 wants a high score.",
            lambda s, y, m: right(s, 1 - y, m),
        ),
        Slip(
            "Only the tags of 1 cost anything: those of 0 have a loss too.",
            lambda s, y, m: (terms(s, y) * y)[m].sum() / 2 / m.sum(),
        ),
        Slip("The sign is turned round.", lambda s, y, m: -right(s, y, m)),
    )
    return examine("half_pointer_loss", answer, right, properties, slips)


def nearest_end_spans(answer: Callable[..., Iterable[Span]]) -> Report:
    """Exercise 8M3: pair each start with the nearest end that does not lie before it.

    Parameters
    ----------
    answer
        ``answer(starts, ends)``: two sorted lists of positions; a list of tuples (start, end).

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> from lib import check
    >>> print(check.nearest_end_spans(lambda starts, ends: list(zip(starts, ends))).sentence)
    The first start goes with the first end, the second with the second: look where they stand.
    """
    places = range(5)
    tags = [[i for i in places if row[i]] for row in itertools.product((0, 1), repeat=5)]
    properties = (
        Property(
            "two spans apart",
            {"starts": [0, 3], "ends": [1, 5]},
            "Each start goes with the nearest end at or after it.",
        ),
        Property(
            "a span of one token",
            {"starts": [2], "ends": [2, 4]},
            "An end at the start itself is the nearest: the span has one token.",
        ),
        Property(
            "a start without an end gives nothing",
            {"starts": [0, 4], "ends": [1]},
            "A start with no end at or after it is dropped.",
        ),
        Property(
            "an end before the first start is no one's",
            {"starts": [2], "ends": [0, 3]},
            "An end that lies before a start cannot be its end.",
        ),
        Property(
            "two starts share an end",
            {"starts": [0, 2], "ends": [3]},
            "An end is not used up: two starts may have the same nearest end.",
        ),
        Property(
            "nested spans: both take the inner end",
            {"starts": [0, 2], "ends": [3, 5]},
            "The rule is the nearest end, even where the gold spans are nested.",
        ),
        Property(
            "no starts, no ends",
            [{"starts": [], "ends": [1]}, {"starts": [1], "ends": []}, {"starts": [], "ends": []}],
            "Without starts or ends the list is empty.",
        ),
        Property(
            f"all {len(tags) ** 2} sets of tags on five tokens",
            [{"starts": a, "ends": b} for a in tags for b in tags],
            "Right in the plain cases, wrong for these tags.",
        ),
    )

    def stack(starts: Sequence[int], ends: Sequence[int]) -> list[Span]:
        waiting: list[int] = []
        found = []
        for i in range(max([*starts, *ends], default=-1) + 1):
            if i in starts:
                waiting.append(i)
            if i in ends and waiting:
                found.append((waiting.pop(), i))
        return found

    def used_up(starts: Sequence[int], ends: Sequence[int]) -> list[Span]:
        left, found = list(ends), []
        for a in starts:
            later = [b for b in left if b >= a]
            if later:
                found.append((a, later[0]))
                left.remove(later[0])
        return found

    def pick(
        choose: Callable[[list[int]], int], after: bool = False
    ) -> Callable[[Sequence[int], Sequence[int]], list[Span]]:
        def found(starts: Sequence[int], ends: Sequence[int]) -> list[Span]:
            later = {a: [b for b in ends if (b > a if after else b >= a)] for a in starts}
            return [(a, choose(options)) for a, options in later.items() if options]

        return found

    slips = (
        Slip(
            "The first start goes with the first end, the second with the second: look where "
            "they stand.",
            lambda a, b: list(zip(a, b, strict=False)),
        ),
        Slip("The farthest end is taken: it must be the nearest.", pick(max)),
        Slip(
            "An end at the start itself is passed over: a span may have one token.",
            pick(min, after=True),
        ),
        Slip("An end is used up by the first start: two starts may share one.", used_up),
        Slip("These are brackets, each end with the latest open start.", stack),
        Slip(
            "Every later end is taken: only the nearest belongs to a start.",
            lambda starts, ends: [(a, b) for a in starts for b in ends if b >= a],
        ),
        Slip(
            "The end is exclusive here: it must be the last token itself.",
            lambda a, b: [(i, j + 1) for i, j in casrel.nearest_end_spans(a, b)],
        ),
        Slip(
            "For each end the nearest start: it must be for each start the nearest end.",
            lambda starts, ends: [
                (max(a for a in starts if a <= b), b) for b in ends if any(a <= b for a in starts)
            ],
        ),
    )
    return examine("nearest_end_spans", answer, casrel.nearest_end_spans, properties, slips)
