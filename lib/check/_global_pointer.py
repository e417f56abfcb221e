"""Exercises of chapter 4."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lib import global_pointer
from lib.check._report import Property, Report, Slip, double, examine

__all__ = ["apply_rope", "factorised_spans"]


def apply_rope(answer: Callable[..., Tensor]) -> Report:
    """Exercise 4M4: turn each token's vector by its position.

    Parameters
    ----------
    answer
        ``answer(x)``: shape (tokens, d) with an even d; a tensor of the same shape. Columns 2m and
        2m + 1 are a plane, turned at position i by i times 10000^(-2m / d).

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> import torch
    >>> from lib import check
    >>> print(check.apply_rope(lambda x: x + torch.arange(len(x))[:, None]).sentence)
    Lengths change: what is done to a plane is no rotation.
    """
    g = torch.Generator().manual_seed(3)
    drawn = {"x": torch.randn(5, 6, generator=g, dtype=torch.float64)}
    rows = {"x": torch.randn(1, 6, generator=g, dtype=torch.float64).expand(5, 6).clone()}

    def uneven(out: Tensor) -> Tensor:
        """How far the products of neighbours are from their mean; 0 if all are equal."""
        products = (out @ out.T).diagonal(1)
        return products - products.mean()

    properties = (
        Property(
            "lengths are kept",
            drawn,
            "Lengths change: what is done to a plane is no rotation.",
            view=lambda out: out.norm(dim=-1),
        ),
        Property(
            "position 0 is not turned",
            drawn,
            "The first token has position 0, and cos 0 = 1, sin 0 = 0: it must come back as it "
            "was.",
            view=lambda out: out[0],
        ),
        Property(
            "products see the distance only",
            rows,
            "Equal vectors at equal distances must have equal products: the angle must be a "
            "multiple of the position.",
            view=uneven,
        ),
        Property(
            "one plane: position m turns by m radians",
            {"x": double([[1, 0], [1, 0], [0, 1]])},
            "In the first plane the angle is the position itself, and (1, 0) goes to (cos, sin).",
        ),
        Property(
            "three planes, each with its frequency",
            drawn,
            "Right in one plane, wrong in three: plane m holds the columns 2m and 2m + 1, and "
            "turns by 10000^(-2m/d) a step.",
        ),
        Property(
            "the gradient turns back",
            drawn,
            "Values right, gradient wrong: a part of the rotation is cut off.",
            "x",
        ),
    )

    def turned(
        x: Tensor, sign: float = 1.0, first: int = 0, scale: float = 1.0, power: float = 2.0
    ) -> Tensor:
        planes = torch.arange(x.shape[-1] // 2, dtype=x.dtype)
        place = torch.arange(first, first + len(x), dtype=x.dtype)[:, None]
        angles = sign * scale * place * 10000.0 ** (-power * planes / x.shape[-1])
        a, b = x[:, 0::2], x[:, 1::2]
        pairs = a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()
        return torch.stack(pairs, -1).flatten(-2)

    def halves(x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        out = turned(torch.stack([a, b], -1).flatten(-2))
        return torch.cat([out[:, 0::2], out[:, 1::2]], -1)

    slips = (
        Slip(
            "Positions count from 1: the first token has position 0.", lambda x: turned(x, first=1)
        ),
        Slip(
            "The rotation runs the other way: (1, 0) must go to (cos, sin), not (cos, -sin).",
            lambda x: turned(x, sign=-1.0),
        ),
        Slip("The angle is in degrees.", lambda x: turned(x, scale=math.pi / 180)),
        Slip(
            "A plane is made of one column of each half. Here it is two neighbours, 2m and 2m + 1.",
            halves,
        ),
        Slip(
            "All planes turn alike: plane m has the frequency 10000^(-2m/d).",
            lambda x: turned(x, power=0.0),
        ),
        Slip(
            "The exponent lacks its 2: plane m has the frequency 10000^(-2m/d).",
            lambda x: turned(x, power=1.0),
        ),
        Slip("Nothing is turned.", lambda x: x),
    )
    return examine("apply_rope", answer, global_pointer.apply_rope, properties, slips)


Span = tuple[int, int, int]


def factorised_spans(answer: Callable[..., Iterable[Span]]) -> Report:
    """Exercise 4M3: decode the spans of one sentence from the three parts of their scores.

    Parameters
    ----------
    answer
        ``answer(pair, start, end)``: shapes (n, n), (heads, n) and (heads, n); a list of tuples
        (head, i, j).

    Returns
    -------
    Report
        What holds and what breaks first.

    Examples
    --------
    >>> from lib import check
    >>> def whole(pair, start, end):
    ...     return (pair + start[..., None] + end[:, None] > 0).nonzero().tolist()
    >>> print(check.factorised_spans(whole).sentence)
    Cells below the diagonal are no spans: a span does not end before it starts.
    """
    g = torch.Generator().manual_seed(2)

    def parts(heads: int, n: int) -> dict[str, Any]:
        start, end = torch.randn(2, heads, n, generator=g, dtype=torch.float64) - 1.0
        return {
            "pair": torch.randn(n, n, generator=g, dtype=torch.float64),
            "start": start,
            "end": end,
        }

    properties = (
        Property(
            "one head, one span of two tokens",
            {
                "pair": double([[-1, 2, -1], [-1, -1, -1], [-1, -1, -1]]),
                "start": double([[0.5, 0, 0]]),
                "end": double([[0, -1, 0]]),
            },
            "The score of cell (i, j) is pair[i, j] + start[head, i] + end[head, j].",
        ),
        Property(
            "a span of one token",
            {
                "pair": double([[1, -9], [-9, -9]]),
                "start": double([[0, 0]]),
                "end": double([[0, 0]]),
            },
            "A span may start and end at the same token: i <= j.",
        ),
        Property(
            "several spans in one row",
            {
                "pair": double([[-3, 1, 2], [-3, -3, -3], [-3, -3, -3]]),
                "start": double([[0.5, 0, 0]]),
                "end": double([[0, 0, 0]]),
            },
            "Right for one span a row, wrong for two: every cell above 0 is a span, not only the "
            "best one.",
        ),
        Property(
            "nothing ends before it starts",
            {
                "pair": double([[-1, 1, -1], [5, -1, -1], [7, 8, -1]]),
                "start": double([[0, 0, 0]]),
                "end": double([[0, 0, 0]]),
            },
            "Cells below the diagonal are no spans: a span does not end before it starts.",
        ),
        Property(
            "a score of exactly 0 is not chosen",
            {"pair": double([[0, 1], [-1, 0]]), "start": double([[0, 0]]), "end": double([[0, 0]])},
            "The rule is above 0, not at it.",
        ),
        Property(
            "nothing is chosen",
            {
                "pair": double([[-1, -1], [-1, -1]]),
                "start": double([[0, 0]]),
                "end": double([[0, 0]]),
            },
            "Where no cell is above 0 the list is empty.",
        ),
        Property(
            "a row whose best cell has not the best end",
            {
                "pair": double([[-9, -9, 2], [-9, -9, -9], [-9, -9, -9]]),
                "start": double([[-1, 0, 0]]),
                "end": double([[3, 3, -0.5]]),
            },
            "A row that holds a span was skipped: the bound must not be below any of its cells.",
        ),
        Property(
            "random parts, one to three heads",
            [parts(1 + k % 3, 2 + k) for k in range(12)],
            "Right on small tables, wrong on random ones: each head has its own start and end.",
        ),
    )

    def right(pair: Tensor, start: Tensor, end: Tensor) -> list[tuple[int, ...]]:
        found = global_pointer.factorised_spans(pair[None], start[None], end[None], causal=True)
        return [tuple(cell[1:]) for cell in found.cells.tolist()]

    def scores(pair: Tensor, start: Tensor, end: Tensor) -> Tensor:
        return pair + start[..., None] + end[:, None]

    def listed(chosen: Tensor) -> list[tuple[int, ...]]:
        return [tuple(cell) for cell in chosen.nonzero().tolist()]

    slips = (
        Slip(
            "Cells below the diagonal are no spans: a span does not end before it starts.",
            lambda p, s, e: listed(scores(p, s, e) > 0),
        ),
        Slip(
            "Spans of one token are left out: i may equal j.",
            lambda p, s, e: listed((scores(p, s, e) > 0).triu(1)),
        ),
        Slip(
            "The rule is above 0, not at it.",
            lambda p, s, e: listed((scores(p, s, e) >= 0).triu()),
        ),
        Slip(
            "Start and end have changed places: start belongs to the first token, i.",
            lambda p, s, e: listed((scores(p, e, s) > 0).triu()),
        ),
        Slip(
            "A tuple begins with the head: (head, i, j).",
            lambda p, s, e: [(i, j, a) for a, i, j in right(p, s, e)],
        ),
        Slip(
            "The end is exclusive here: the last token of the span is j itself.",
            lambda p, s, e: [(a, i, j + 1) for a, i, j in right(p, s, e)],
        ),
        Slip(
            "Start and end do not take part: the pair alone decides.",
            lambda p, s, e: listed((scores(p, 0 * s, 0 * e) > 0).triu()),
        ),
    )
    return examine("factorised_spans", answer, right, properties, slips)
