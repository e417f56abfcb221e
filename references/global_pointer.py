"""Filled tables of pointers and their ZLPR loss by the definition."""

import math

import torch
from torch import Tensor

__all__ = ["counting", "dense_losses", "filled", "positive_table"]

INF = math.inf


def counting(shape: tuple[int, int, int], mask: Tensor | None, causal: bool) -> Tensor:
    """Bool ``(B, H, L, L)``: the cells that count."""
    length = shape[2]
    keep = torch.ones(*shape, length, dtype=torch.bool)
    if causal:
        keep = keep.triu()
    if mask is not None:
        keep = keep & mask[:, None, :, None] & mask[:, None, None, :]
    return keep


def filled(pair: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Scores of all cells, in the order of summation that the module uses."""
    return (pair[:, None] + start[..., None]) + end[..., None, :]


def positive_table(shape: tuple[int, int, int], positives: Tensor) -> Tensor:
    """Bool ``(B, H, L, L)`` of lists ``(B, H, K, 2)``."""
    table = torch.zeros(*shape, shape[2], dtype=torch.bool)
    batch, head, entry = (positives[..., 0] >= 0).nonzero(as_tuple=True)
    i, j = positives[batch, head, entry].unbind(-1)
    table[batch, head, i, j] = True
    return table


def dense_losses(scores: Tensor, positive: Tensor, keep: Tensor) -> Tensor:
    """Loss of each head: two groups apart, each with a class of score 0."""
    zero = scores.new_zeros(*scores.shape[:2], 1)
    down = scores.masked_fill(~keep | positive, -INF).flatten(2)
    up = (-scores).masked_fill(~positive, -INF).flatten(2)
    return torch.stack([log1p_sum_exp(torch.cat([x, zero], -1)) for x in (down, up)]).sum(0)


def log1p_sum_exp(terms: Tensor) -> Tensor:
    """Log-sum of terms of which the last is 0, with all digits where the sum is near 1."""
    top = terms.detach().amax(-1, keepdim=True)
    rest = (terms[..., :-1] - top).exp().sum(-1)
    top = top.squeeze(-1)
    return top + torch.log1p(torch.expm1(-top) + rest)
