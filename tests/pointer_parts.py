"""Inputs of the losses of pointers, made to be hard."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from references.global_pointer import counting, filled

INF = math.inf


@dataclass(frozen=True)
class Parts:
    """Input of the factorised loss."""

    name: str
    pair: Tensor
    start: Tensor
    end: Tensor
    positives: Tensor
    mask: Tensor | None
    causal: bool

    def scores(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.pair, self.start, self.end


KINDS = (
    "random",
    "trained",
    "largest",
    "smallest",
    "peaks disagree",
    "one row far below",
    "late start, early end",
    "far from zero",
    "infinite padding",
)


def hard_parts(count: int) -> Iterator[Parts]:
    """Yield random and adversarial inputs, from fixed seeds."""
    for seed in range(count):
        yield _make(seed)


def _make(seed: int) -> Parts:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def whole(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    kind = KINDS[seed % len(KINDS)]
    batch, heads, length = whole(1, 3), whole(1, 6), whole(1, 33)
    scale = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1e3, 1e4)[whole(0, 8)]
    pair, start, end = (
        normal(*shape) * scale
        for shape in ((batch, length, length), (batch, heads, length), (batch, heads, length))
    )
    causal = whole(0, 2) == 1
    mask = None
    if whole(0, 2):
        mask = torch.rand(batch, length, generator=generator) < 0.8
    keep = counting((batch, heads, length), mask, causal)
    if kind == "trained":
        level = (4.0, 12.0, 20.0, 60.0)[whole(0, 4)]
        pair, start, end = normal(batch, length, length), start / scale, end / scale
        start, end = start - level / 2, end - level / 2
    elif kind == "peaks disagree":
        peak = (60.0, 100.0, 300.0)[whole(0, 3)]
        pair[..., 0] += peak
        end[..., -1] += peak
    elif kind == "one row far below":
        pair[:, 0] -= (90.0, 1e3)[whole(0, 2)]
    elif kind == "late start, early end":
        slope = (1.0, 10.0, 50.0)[whole(0, 3)] * torch.arange(length)
        start, end = start + slope, end - slope
    elif kind == "far from zero":
        far = (-1e4, 1e4, -100.0, 100.0)[whole(0, 4)]
        pair, start = pair + far, start - far
    elif kind == "infinite padding":
        pair = pair.masked_fill(torch.rand(pair.shape, generator=generator) < 0.2, -INF)
        end[..., -1], start[:, 0, 0] = -INF, -INF
    table = torch.rand(keep.shape, generator=generator) < 0.5 / length
    scores = filled(pair.double(), start.double(), end.double())
    keep &= scores > -INF
    for text in range(batch):
        for head in range(heads):
            here = scores[text, head].masked_fill(~keep[text, head], math.nan).flatten()
            if kind in ("largest", "smallest") and bool((~here.isnan()).any()):
                sign = 1 if kind == "largest" else -1
                best = (sign * here).nan_to_num(nan=-INF, posinf=INF, neginf=-INF).argmax()
                table[text, head].view(-1)[best] = True
    table &= keep
    if kind == "trained":
        pair = pair + 2 * level * table.any(1)
    positives = listed(table, generator)
    if mask is not None:  # what does not count may hold anything
        pair = pair.masked_fill(~(mask[:, :, None] & mask[:, None, :]), math.nan)
        start, end = (x.masked_fill(~mask[:, None], INF) for x in (start, end))
    if causal:
        below = torch.ones(length, length, dtype=torch.bool).tril(-1)
        pair = pair.masked_fill(below, math.nan)
    return Parts(f"{kind} {seed}", pair, start, end, positives, mask, causal)


def listed(table: Tensor, generator: torch.Generator) -> Tensor:
    """Lists ``(B, H, K, 2)`` of a table, shuffled, some cells twice, fillers between them."""
    batch, heads = table.shape[:2]
    rows = [table[b, a].nonzero() for b in range(batch) for a in range(heads)]
    width = max(len(cells) for cells in rows) + 2
    lists = torch.full((batch * heads, width, 2), -1)
    for row, cells in zip(lists, rows, strict=True):
        if len(cells):
            cells = torch.cat([cells, cells[:1]])
        order = torch.randperm(width, generator=generator)
        row[order[: len(cells)]] = cells
    return lists.view(batch, heads, width, 2)
