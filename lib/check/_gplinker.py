"""Exercises of chapter 9."""

import math
import random
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lib import zlpr
from lib.check._report import Property, Report, Slip, double, examine

__all__ = ["decode_tables", "table_loss"]

Cell = tuple[int, int]
Cells = set[Cell]
Links = list[Cells]
Triple = tuple[int, int, int, int, int]


def _tables(triples: Iterable[Triple], relations: int) -> dict[str, Any]:
    heads: Links = [set() for _ in range(relations)]
    tails: Links = [set() for _ in range(relations)]
    subjects, objects = set(), set()
    for a, b, r, c, d in triples:
        subjects.add((a, b))
        objects.add((c, d))
        heads[r].add((a, c))
        tails[r].add((b, d))
    return {"subjects": subjects, "objects": objects, "heads": heads, "tails": tails}


def _random(seed: int) -> dict[str, Any]:
    """Four tables of any cells, whether or not a set of triples has them."""
    draw = random.Random(seed)
    square = [(i, j) for i in range(5) for j in range(5)]

    def pick(share: float, spans: bool) -> Cells:
        return {c for c in square if draw.random() < share and (c[0] <= c[1] or not spans)}

    return {
        "subjects": pick(0.4, True),
        "objects": pick(0.4, True),
        "heads": [pick(0.4, False) for _ in range(2)],
        "tails": [pick(0.4, False) for _ in range(2)],
    }


def decode_tables(answer: Callable[..., Iterable[Triple]]) -> Report:
    """Exercise 9M3: read triples from four kinds of tables, starting from the head links.

    Parameters
    ----------
    answer
        ``answer(subjects, objects, heads, tails)``: two sets of cells, and two lists with a set of
        cells for each relation; a list or set of tuples (subject head, subject tail, relation,
        object head, object tail).

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> from lib import check
    >>> def no_tails(subjects, objects, heads, tails):
    ...     return {(*s, r, *o) for s in subjects for o in objects
    ...             for r in range(len(heads)) if (s[0], o[0]) in heads[r]}
    >>> print(check.decode_tables(no_tails).sentence)
    The tail links are not asked: four tables must say yes.
    """
    gold = [(2, 3, 0, 5, 6), (5, 6, 1, 1, 1)]
    full = _tables(gold, 2)
    forward = _tables([gold[0], (2, 3, 1, 7, 7)], 2)
    properties = (
        Property(
            "one triple",
            _tables(gold[:1], 1),
            "A triple is subject head, subject tail, relation, object head, object tail.",
        ),
        Property(
            "two relations",
            forward,
            "Right for one relation, wrong for two: each has its own links.",
        ),
        Property(
            "a link that runs backwards",
            full,
            "An object may stand before its subject.",
        ),
        Property(
            "an empty table refuses everything",
            [
                {**full, "tails": [set(), set()]},
                {**full, "heads": [set(), set()]},
                {**full, "subjects": set()},
                {**full, "objects": set()},
            ],
            "All four questions must be answered yes: one table without cells leaves no triple.",
        ),
        Property(
            "tails of another relation do not help",
            {**full, "tails": full["tails"][::-1]},
            "Head link and tail link must belong to one relation.",
        ),
        Property(
            "a span is its own object",
            _tables([(1, 1, 0, 1, 1), (1, 2, 0, 1, 2)], 1),
            "Subject and object may be the same span, and two spans may share a head.",
        ),
        Property(
            "nothing is remembered: a fourth triple comes back for three",
            _tables([(0, 2, 0, 4, 6), (0, 3, 0, 4, 5), (1, 2, 0, 3, 5)], 1),
            "The tables do not say which link came with which span: all that pass are triples.",
        ),
        Property(
            "twenty sets of random tables",
            [_random(seed) for seed in range(20)],
            "Right for tables of triples, wrong for random ones.",
        ),
    )

    def found(
        passes: Callable[[Cell, Cell, Cells, Cells], bool],
    ) -> Callable[[Cells, Cells, Links, Links], list[Triple]]:
        def decode(subjects: Cells, objects: Cells, heads: Links, tails: Links) -> list[Triple]:
            return [
                (*s, r, *o)
                for r in range(len(heads))
                for s in subjects
                for o in objects
                if passes(s, o, heads[r], tails[r])
            ]

        return decode

    def head(s: Cell, o: Cell, h: Cells, t: Cells) -> bool:
        return (s[0], o[0]) in h

    def tail(s: Cell, o: Cell, h: Cells, t: Cells) -> bool:
        return (s[1], o[1]) in t

    right = found(lambda *all_: head(*all_) and tail(*all_))

    def joined(s: Cells, o: Cells, h: Links, t: Links) -> list[Triple]:
        every = set().union(*t)
        return right(s, o, h, [every for _ in t])

    def one_each(s: Cells, o: Cells, h: Links, t: Links) -> list[Triple]:
        spans = {a: (a, b) for a, b in sorted(s)}, {a: (a, b) for a, b in sorted(o)}
        return right(set(spans[0].values()), set(spans[1].values()), h, t)

    slips = (
        Slip("The tail links are not asked: four tables must say yes.", found(head)),
        Slip("The head links are not asked: four tables must say yes.", found(tail)),
        Slip(
            "One of the two links is enough here: both must say yes.",
            found(lambda *all_: head(*all_) or tail(*all_)),
        ),
        Slip(
            "Subject and object have changed places in the links: (subject, object).",
            found(lambda s, o, h, t: (o[0], s[0]) in h and (o[1], s[1]) in t),
        ),
        Slip(
            "The tail links of all relations are thrown together: relation r has its own.", joined
        ),
        Slip(
            "The order of the numbers: subject head, subject tail, relation, object head, object "
            "tail.",
            lambda *all_: [(a, b, c, d, r) for a, b, r, c, d in right(*all_)],
        ),
        Slip(
            "The order of the numbers: subject head, subject tail, relation, object head, object "
            "tail.",
            lambda *all_: [(r, a, b, c, d) for a, b, r, c, d in right(*all_)],
        ),
        Slip("A head is taken to have one span: several spans may begin at one token.", one_each),
        Slip(
            "Links that run backwards are left out: an object may stand before its subject.",
            found(lambda s, o, h, t: s[0] <= o[0] and (s[0], o[0]) in h and (s[1], o[1]) in t),
        ),
        Slip(
            "A span that is its own object is left out.",
            found(lambda s, o, h, t: s != o and (s[0], o[0]) in h and (s[1], o[1]) in t),
        ),
    )
    return examine("decode_tables", answer, right, properties, slips)


def table_loss(answer: Callable[..., Tensor]) -> Report:
    """Exercise 9M4: one ZLPR per table, summed, from padded lists of positive cells.

    Parameters
    ----------
    answer
        ``answer(scores, cells)``: scores of shape (tables, n, n), minus infinity where a cell does
        not count; the positive cells of each table as pairs (i, j), shape (tables, most, 2), filled
        up with -1. A tensor of shape ().

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> import torch
    >>> from lib import check
    >>> def careless(scores, cells):
    ...     y = torch.zeros_like(scores)
    ...     for table, listed in enumerate(cells.tolist()):
    ...         for i, j in listed:
    ...             y[table, i, j] = 1
    ...     y, s = y.flatten(1).bool(), scores.flatten(1)
    ...     return (torch.logsumexp(s.masked_fill(y, -torch.inf), 1).exp().log1p()
    ...             + (-s).masked_fill(~y, -torch.inf).logsumexp(1).exp().log1p()).sum()
    >>> print(check.table_loss(careless).sentence)
    The filling of -1 counts as the last cell: skip pairs that are negative.
    """
    g = torch.Generator().manual_seed(6)
    drawn = 2 * torch.randn(3, 4, 4, generator=g, dtype=torch.float64)
    listed = torch.tensor([[[0, 1], [2, 3]], [[3, 0], [1, 1]], [[1, 2], [0, 0]]])
    filled = torch.tensor([[[0, 1], [-1, -1]], [[3, 0], [1, 1]], [[-1, -1], [-1, -1]]])
    upper = torch.tensor([[[0, 1], [2, 3]], [[0, 3], [-1, -1]], [[-1, -1], [-1, -1]]])
    below = torch.ones(4, 4, dtype=torch.bool).tril(-1)
    spans = {"scores": drawn.masked_fill(below, -math.inf), "cells": upper}
    one = {
        "scores": double([[[math.log(2), 0], [math.log(3), 0]]]),
        "cells": torch.tensor([[[0, 0]]]),
    }
    large = {"scores": 500 * drawn, "cells": filled}
    properties = (
        Property(
            "one table, one cell: log 6 + log 3/2",
            one,
            "N = 1 + 3 + 1 and P = 1/2. A cell is positive or negative, not both.",
        ),
        Property(
            "one table without a positive cell",
            {**one, "cells": torch.full((1, 1, 2), -1)},
            "A list of fillings means no positives: log(1 + N) is left.",
        ),
        Property(
            "three tables, summed",
            {"scores": drawn, "cells": listed},
            "Right for one table, wrong for three: each has its own two logarithms, and they are "
            "summed.",
        ),
        Property(
            "lists of different lengths",
            {"scores": drawn, "cells": filled},
            "Right for full lists, wrong where one is filled up with -1.",
        ),
        Property(
            "cells of -inf do not count",
            spans,
            "A cell of -inf has the exponential 0, and 0 times infinity is NaN: select the cells, "
            "don't multiply.",
        ),
        Property(
            "scores of ±1000",
            large,
            "exp(1000) is larger than any float: put the null class in as a score of 0, and use "
            "logsumexp.",
        ),
        Property(
            "the gradient",
            {"scores": drawn, "cells": filled},
            "Values right, gradient wrong: every cell belongs to one of the sums.",
            "scores",
        ),
        Property(
            "the gradient beside -inf, and at ±1000",
            [spans, large],
            "Gradient right for small finite scores, wrong for others: an infinity on the way "
            "back makes NaN.",
            "scores",
        ),
    )

    def labels(scores: Tensor, cells: Tensor, filling: bool = False) -> Tensor:
        y = torch.zeros(scores.shape, dtype=torch.bool)
        for table, rows in enumerate(cells.tolist()):
            for i, j in rows:
                if i >= 0 or filling:
                    y[table, i, j] = True
        return y.flatten(1)

    def tables(s: Tensor, y: Tensor) -> Tensor:
        flat = s.flatten(1)
        return zlpr.zlpr_loss(flat, y, mask=flat > -math.inf, reduction="none")

    def right(scores: Tensor, cells: Tensor) -> Tensor:
        return tables(scores, labels(scores, cells)).sum()

    def groups(s: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        y, flat = labels(s, c), s.flatten(1)
        high = (-flat).masked_fill(~y, -math.inf)
        return torch.logsumexp(flat.masked_fill(y, -math.inf), 1), torch.logsumexp(high, 1)

    slips = (
        Slip(
            "The filling of -1 counts as the last cell: skip pairs that are negative.",
            lambda s, c: tables(s, labels(s, c, filling=True)).sum(),
        ),
        Slip(
            "A mean over the tables: they are summed.",
            lambda s, c: tables(s, labels(s, c)).mean(),
        ),
        Slip(
            "All tables share one pair of logarithms: each must have its own.",
            lambda s, c: tables(s.flatten()[None], labels(s, c).flatten()[None]).sum(),
        ),
        Slip(
            "The null class is missing: the 1 in both logarithms.",
            lambda s, c: sum(group.sum() for group in groups(s, c)),
        ),
        Slip(
            "Positive cells are among the negatives too: leave them out of N.",
            lambda s, c: (
                zlpr.zlpr_loss(s.flatten(1), torch.zeros_like(labels(s, c)), reduction="none")
                + torch.nn.functional.softplus(groups(s, c)[1])
            ).sum(),
        ),
        Slip(
            "The positives enter with their own sign: a right cell below 0 must cost.",
            lambda s, c: tables(torch.where(labels(s, c).view_as(s), -s, s), labels(s, c)).sum(),
        ),
        Slip(
            "Positives and negatives have changed places.",
            lambda s, c: tables(s, ~labels(s, c)).sum(),
        ),
        Slip(
            "i and j have changed places: the first of a pair is the row.",
            lambda s, c: right(s, c.flip(-1)),
        ),
        Slip(
            "A mean over the cells: both masses are sums.",
            lambda s, c: right(s, c) / s[0].numel(),
        ),
    )
    return examine("table_loss", answer, right, properties, slips)
