"""From triples of token positions to the four tables of GPLinker, as lists of positive cells."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lib import _checks
from lib.extraction.alignment import TokenTriple

__all__ = ["Tables", "table_positives"]

Cell = tuple[int, int]


class Tables(NamedTuple):
    """What belongs to the tables of GPLinker: their scores, or their positive cells.

    R is the number of relations, L of tokens, K the largest number of positives in one table.
    """

    entities: Tensor
    """Spans; table 0 holds the subjects, table 1 the objects.

    ``(…, 2, L, L)`` or ``(…, 2, K, 2)``."""
    head_links: Tensor
    """Links from a subject's first token to its object's. ``(…, R, L, L)`` or ``(…, R, K, 2)``."""
    tail_links: Tensor
    """Links from a subject's last token to its object's. ``(…, R, L, L)`` or ``(…, R, K, 2)``."""


def table_positives(
    batch: Sequence[Sequence[TokenTriple]], *, length: int, relations: int
) -> Tables:
    r"""List the positive cells of each table.

    .. math:: \mathcal S = \{(s_h, s_t)\},\quad \mathcal O = \{(o_h, o_t)\},\quad
        \mathcal H_r = \{(s_h, o_h)\},\quad \mathcal T_r = \{(s_t, o_t)\}

    over the triples of a text, for the links over those with relation r.

    Equations: :eq:`eq:gplinker-tables`

    Parameters
    ----------
    batch : sequence of sequences of TokenTriple
        The triples of each text; their last tokens are part of the spans. Any order; repeated
        triples and shared cells count once.
    length : int
        L, the number of rows and columns of the tables.
    relations : int
        R, the number of relations.

    Returns
    -------
    Tables
        int64, ``(B, 2, K, 2)``, ``(B, R, K, 2)``, ``(B, R, K, 2)``: the cells (i, j) of each table
        row by row, then (−1, −1). K is the smallest that suffices, but at least 1, and may differ
        between the three. The losses of :mod:`lib.global_pointer` take them as they are.

    Raises
    ------
    TypeError
        If `length` or `relations` is no integer.
    ValueError
        If `length` or `relations` is not positive, a position lies outside ``[0, length)``, a
        span ends before it starts, or a relation lies outside ``[0, relations)``.

    Notes
    -----
    Source: kexue 8888 (2022), whose code sends a cell as one number :math:`iL + j` in the dtype of
    the scores, wrong in float32 from 4097 tokens on (:eq:`eq:gplinker-float-index`). Pairs of whole
    numbers have no such limit.

    Examples
    --------
    >>> tables = table_positives([[TokenTriple(0, 1, 0, 3, 3)]], length=4, relations=2)
    >>> tables.entities.tolist()
    [[[[0, 1]], [[3, 3]]]]
    >>> tables.head_links.tolist(), tables.tail_links.tolist()
    ([[[[0, 3]], [[-1, -1]]]], [[[[1, 3]], [[-1, -1]]]])
    """
    length, relations = _size("length", length), _size("relations", relations)
    entities: list[list[set[Cell]]] = []
    head_links: list[list[set[Cell]]] = []
    tail_links: list[list[set[Cell]]] = []
    for triples in batch:
        spans, by_head, by_tail = (
            [set[Cell]() for _ in range(count)] for count in (2, relations, relations)
        )
        for triple in triples:
            _check(triple, length, relations)
            spans[0].add((triple.subject_head, triple.subject_tail))
            spans[1].add((triple.object_head, triple.object_tail))
            by_head[triple.relation].add((triple.subject_head, triple.object_head))
            by_tail[triple.relation].add((triple.subject_tail, triple.object_tail))
        entities.append(spans)
        head_links.append(by_head)
        tail_links.append(by_tail)
    return Tables(
        _padded(entities, 2), _padded(head_links, relations), _padded(tail_links, relations)
    )


def _size(name: str, value: object) -> int:
    """Return a number of rows or tables."""
    size = _checks.as_index(name, value)
    if size < 1:
        raise ValueError(f"{name} must be at least 1, got {size}")
    return size


def _check(triple: TokenTriple, length: int, relations: int) -> None:
    """Refuse a triple that has no cell."""
    for role, head, tail in (
        ("subject", triple.subject_head, triple.subject_tail),
        ("object", triple.object_head, triple.object_tail),
    ):
        if not 0 <= head <= tail < length:
            raise ValueError(
                f"batch must hold {role}s with 0 <= head <= tail < {length}, "
                f"got head {head} and tail {tail}"
            )
    if not 0 <= triple.relation < relations:
        raise ValueError(
            f"batch must hold relations from 0 to {relations - 1}, got {triple.relation}"
        )


def _padded(cells: list[list[set[Cell]]], rows: int) -> Tensor:
    """Make one tensor ``(B, rows, K, 2)`` of sets of different sizes."""
    width = max((len(row) for text in cells for row in text), default=0)
    padded = torch.full((len(cells), rows, max(width, 1), 2), -1, dtype=torch.int64)
    for b, text in enumerate(cells):
        for r, row in enumerate(text):
            if row:  # most relations are absent from most texts
                padded[b, r, : len(row)] = torch.tensor(sorted(row))
    return padded
