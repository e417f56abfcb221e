"""Sums over all subsets of one size, as products of polynomials in logarithms."""

from math import inf

import torch
from torch import Tensor

from lib._rows import finite

__all__ = ["float64_rows", "log_z", "log_z_and_shares"]


def float64_rows(scores: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Scores with ``dim`` last, in float64, minus infinity where they do not count."""
    rows = scores.to(torch.float64)
    if mask is not None:
        rows = rows.masked_fill(~mask, -inf)
    return rows.movedim(dim, -1)


def log_z(rows: Tensor, k: int) -> Tensor:
    """``log Z_k`` of the last dimension."""
    if k == 0:
        return _zero(rows).sum(-1)
    return _total(*_levels(rows, k), k)


def log_z_and_shares(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``log Z_k``, and the share of the subsets that contain each score, by plain operations.

    From the root of the products down: a node's *parts* are the shares of the subsets that take 0,
    1, 2, … members from below it. Those of a factor are sums over the ways to split its product's.
    """
    if k == 0:
        return _zero(rows).sum(-1), _zero(rows)
    middle, levels = _levels(rows, k)
    parts = torch.zeros_like(levels[-1])
    parts[..., k] = 1
    for level in reversed(levels[:-1]):
        left, right = level[..., 0::2, :], level[..., 1::2, :]
        parts = parts[..., : left.shape[-2], :]  # not of a polynomial 1 that made a number even
        both = torch.stack((_split(left, right, parts), _split(right, left, parts)), -2)
        parts = both.flatten(-3, -2)
    return _total(middle, levels, k), parts[..., : rows.shape[-1], 1]


def _total(middle: Tensor, levels: list[Tensor], k: int) -> Tensor:
    return levels[-1][..., 0, k] + k * middle.squeeze(-1)


def _zero(rows: Tensor) -> Tensor:
    """Zeros that are no constant: a bad score must show, and a derivative must exist."""
    return rows.masked_fill(rows == -inf, 0) * 0


def _levels(rows: Tensor, k: int) -> tuple[Tensor, list[Tensor]]:
    """Score that the rows are centred at, and the polynomials from single scores to all of them.

    Logarithms of coefficients, ``(..., polynomials, powers)``, each level half as many; every level
    but the last has an even number of them.
    """
    # Around the k-th largest score the logarithms are small, whatever all scores have in common.
    middle = finite(rows.detach().topk(k).values[..., -1:])
    centred = rows - middle
    # One polynomial of degree 1 for each score: 1 + x e^s.
    logs = torch.stack((torch.zeros_like(centred), centred), -1)
    levels = []
    while logs.shape[-2] > 1:
        if logs.shape[-2] % 2:  # the polynomial 1 makes the number even
            one = torch.full_like(logs[..., :1, :], -inf)
            one[..., 0] = 0
            logs = torch.cat((logs, one), -2)
        levels.append(logs)
        logs = _product(logs[..., 0::2, :], logs[..., 1::2, :], k)
    return middle, [*levels, logs]


def _split(factor: Tensor, other: Tensor, parts: Tensor) -> Tensor:
    """Parts of a factor, from those of its product with the other."""
    columns = _columns(factor, other, parts.shape[-1] - 1)
    top = columns.detach().amax(-2, keepdim=True)
    powers = (columns - finite(top)).exp()
    total = powers.sum(-2, keepdim=True).masked_fill(top == -inf, 1)
    return (powers / total * parts.unsqueeze(-2)).sum(-1)


def _product(left: Tensor, right: Tensor, degree: int) -> Tensor:
    """Logarithms of the coefficients of a product of polynomials, up to a degree."""
    columns = _columns(left, right, degree)
    top = columns.detach().amax(-2)
    total = (columns - finite(top).unsqueeze(-2)).exp().sum(-2)
    # Where no term is there the sum is 0, and its logarithm must not be differentiated.
    return top + total.masked_fill(top == -inf, 1).log()


def _columns(left: Tensor, right: Tensor, degree: int) -> Tensor:
    """Terms of a product of polynomials: rows by the power of the left, columns by that of both."""
    size = left.shape[-1]
    table = left.unsqueeze(-1) + right.unsqueeze(-2)
    # Filled up to twice its width and read in rows one shorter, each row of the table moves one
    # step to the right of the row above: what belongs to one power stands in one column.
    wide = torch.nn.functional.pad(table, (0, size), value=-inf).flatten(-2)
    columns = wide[..., : size * (2 * size - 1)].reshape(*table.shape[:-1], 2 * size - 1)
    return columns[..., : degree + 1]
