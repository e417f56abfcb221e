"""Sums over all subsets of one size, as products of polynomials in logarithms."""

from math import inf

import torch
from torch import Tensor

from lib._rows import finite

__all__ = ["float64_rows", "log_z"]


def float64_rows(scores: Tensor, mask: Tensor | None, dim: int) -> Tensor:
    """Scores with ``dim`` last, in float64, minus infinity where they do not count."""
    rows = scores.to(torch.float64)
    if mask is not None:
        rows = rows.masked_fill(~mask, -inf)
    return rows.movedim(dim, -1)


def log_z(rows: Tensor, k: int) -> Tensor:
    """``log Z_k`` of the last dimension."""
    if k == 0:
        # Not a constant: a bad score must show, and a derivative must exist.
        return (rows.masked_fill(rows == -inf, 0) * 0).sum(-1)
    # Around the k-th largest score the logarithms are small, whatever all scores have in common.
    middle = finite(rows.detach().topk(k).values[..., -1:])
    centred = rows - middle
    # One polynomial of degree 1 for each score: 1 + x e^s, by the logarithms of its coefficients.
    logs = torch.stack((torch.zeros_like(centred), centred), -1)
    while logs.shape[-2] > 1:
        if logs.shape[-2] % 2:  # the polynomial 1 makes the number even
            one = torch.full_like(logs[..., :1, :], -inf)
            one[..., 0] = 0
            logs = torch.cat((logs, one), -2)
        logs = _product(logs[..., 0::2, :], logs[..., 1::2, :], k)
    return logs[..., 0, k] + k * middle.squeeze(-1)


def _product(left: Tensor, right: Tensor, degree: int) -> Tensor:
    """Logarithms of the coefficients of a product of polynomials, up to a degree."""
    size = left.shape[-1]
    table = left.unsqueeze(-1) + right.unsqueeze(-2)
    # Filled up to twice its width and read in rows one shorter, each row of the table moves one
    # step to the right of the row above: what belongs to one power stands in one column.
    wide = torch.nn.functional.pad(table, (0, size), value=-inf).flatten(-2)
    columns = wide[..., : size * (2 * size - 1)].reshape(*table.shape[:-1], 2 * size - 1)
    columns = columns[..., : degree + 1]
    top = columns.detach().amax(-2)
    total = (columns - finite(top).unsqueeze(-2)).exp().sum(-2)
    empty = top == -inf
    return top + total.masked_fill(empty, 1).log()
