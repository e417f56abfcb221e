"""ZLPR of factorised scores: what the public function computes with, from checked arguments.

The log-sum of a row of a head's table comes from one product of matrices with all rows of all
heads, unless it must be exact in a way that the product is not. Such rows are *opened*: computed
cell by cell, in float64. There are two kinds. Rows with a positive, because the positives have to
be left out of the sum and must not be taken away from it. And rows whose product underflowed
although they may weigh in their head's sum, because the largest pair score and the largest end
score of the row stand at different ends. Both are few, except for input made to be hard.
"""

from collections.abc import Callable, Iterator
from itertools import product
from math import inf, log, log2, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib import _checks, _refusals
from lib._rows import LOG2_E, by_autograd, finite, needs_formula
from lib.global_pointer._arguments import Shape, keep_cells, upcast
from lib.zlpr import sparse_zlpr_loss

__all__ = [
    "Cells",
    "Pairs",
    "cells_of",
    "head_losses",
    "log1p_sums",
    "losses_of_tables",
    "pairs_of",
    "product_losses",
    "refuse_scores",
    "scores_at",
    "table_losses",
]

_CHUNK_CELLS = 1 << 17  # cells of the float64 buffer: 1 MiB, within a core's cache
_TILE_ROWS = 64  # under causal; the fewer, the fewer cells below the diagonal are computed
_FEW_CELLS = 1 << 17  # up to so many cells, filling the tables takes less time than the products do
_WIDE = torch.float64


class Pairs(NamedTuple):
    """Pair scores: a table ``(B, L, L)``, or the queries and keys ``(B, L, d)`` that give one."""

    scores: Tensor
    """The table, or the queries."""
    keys: Tensor | None = None

    @classmethod
    def of(cls, pair: "PairScores") -> "Pairs":
        """Wrap what the public function is given, a table or a pair of queries and keys."""
        if isinstance(pair, tuple) and len(pair) == 2 and pair[1] is not None:
            return cls(*pair)
        return cls(pair)  # what is no tensor is refused later, by its name

    def table(self) -> Tensor:
        """Return all of them."""
        if self.keys is None:
            return self.scores
        with _checks.no_autocast(self.keys):
            return self.scores @ self.keys.mT

    def cells(self, batch: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """Return some, ``(N,)``, in float64."""
        if self.keys is None:
            return self.scores[batch, row, column].to(_WIDE)
        return (self.scores[batch, row].to(_WIDE) * self.keys[batch, column]).sum(-1)

    def rows(self, batch: Tensor, row: Tensor) -> Tensor:
        """Return those of some rows, ``(N, L)``, in float64."""
        if self.keys is None:
            return self.scores[batch, row].to(_WIDE)
        found = self.scores.new_empty(len(row), self.keys.shape[1], dtype=_WIDE)
        for text, at in _by_text(batch):
            keys = self.keys[text].to(_WIDE)
            torch.mm(self.scores[text, row[at]].to(_WIDE), keys.mT, out=found[at])
        return found


PairScores = Tensor | tuple[Tensor, Tensor]


class Cells(NamedTuple):
    """Cells of tables, each once, in the order of the tables."""

    batch: Tensor
    head: Tensor
    row: Tensor
    column: Tensor


def cells_of(positives: Tensor, shape: Shape) -> Cells:
    """Cells of the lists ``(B, H, K, 2)`` without fillers and repetitions."""
    heads = torch.arange(shape.batch * shape.heads, device=positives.device)
    lists = positives.reshape(len(heads), positives.shape[2], 2)
    flat = (heads[:, None] * shape.length + lists[..., 0]) * shape.length + lists[..., 1]
    table, cell = _divide(torch.unique(flat[lists[..., 0] >= 0]), shape.length**2)
    return Cells(*_divide(table, shape.heads), *_divide(cell, shape.length))


def pairs_of(queries: Tensor, keys: Tensor, heads: int) -> PairScores:
    """Return the two where that saves time or memory, else their table."""
    batch, length, size = queries.shape
    few = batch * heads * length**2 <= _FEW_CELLS
    return Pairs(queries, keys).table() if few or length <= size else (queries, keys)


def scores_at(pairs: Pairs, start: Tensor, end: Tensor, cells: Cells) -> Tensor:
    """Scores of cells, in float64, where the sum of three float32 numbers is all but exact."""
    batch, head, row, column = cells
    scores = pairs.cells(batch, row, column)
    return scores.add_(start[batch, head, row]).add_(end[batch, head, column])


def head_losses(
    pair: PairScores,
    start: Tensor,
    end: Tensor,
    positives: Tensor,
    mask: Tensor | None,
    causal: bool,
    validate: bool,
) -> Tensor:
    """Loss of each head, ``(B, H)``, of positives that are cells and count.

    Raises ValueError, or gives NaN, if a score that counts is NaN or infinite, and may so for a
    positive at -inf.

    Few cells are filled, in float64: the number of operations, not that of cells, is then what
    takes time, and float32 sums of three terms would lose the digits that the products keep.
    """
    dtype = _checks.compute_dtype(start.dtype)
    if start.numel() * start.shape[-1] > _FEW_CELLS:
        return product_losses(pair, start, end, positives, mask, causal, validate)
    pair, start, end = Pairs.of(pair).table().to(_WIDE), start.to(_WIDE), end.to(_WIDE)
    keep = keep_cells(Shape(*start.shape), mask, causal, pair)
    if keep is not None:  # H times fewer cells here than in the tables
        pair = pair.masked_fill(~keep, -inf)
    if mask is not None:  # anything may stand there
        start, end = (part.masked_fill(~mask.unsqueeze(1), 0) for part in (start, end))
    scores = (pair.unsqueeze(1) + start.unsqueeze(3)).add_(end.unsqueeze(2))
    return losses_of_tables(scores, positives, None, False, validate).to(dtype)


def product_losses(
    pair: PairScores,
    start: Tensor,
    end: Tensor,
    positives: Tensor,
    mask: Tensor | None,
    causal: bool,
    validate: bool,
) -> Tensor:
    """As :func:`head_losses`, from products whatever the number of cells."""
    return _factorised(*Pairs.of(pair), start, end, positives, mask, causal, validate)


def table_losses(
    pair: PairScores,
    start: Tensor,
    end: Tensor,
    positives: Tensor,
    mask: Tensor | None,
    causal: bool,
) -> Tensor:
    """Loss of each head from filled tables: slow and large, but every transform knows it."""
    pair, start, end = upcast(Pairs.of(pair).table()), upcast(start), upcast(end)
    scores = pair.unsqueeze(1) + start.unsqueeze(3) + end.unsqueeze(2)
    return losses_of_tables(scores, positives, mask, causal)


def losses_of_tables(
    scores: Tensor, positives: Tensor, mask: Tensor | None, causal: bool, validate: bool = False
) -> Tensor:
    """Loss of each head from its table ``(B, H, L, L)``, by plain operations.

    A bad value makes the loss of its head NaN; or :mod:`lib.zlpr` raises, if asked to and able to.
    """
    shape = Shape(*scores.shape[:3])
    inside = ((positives >= 0) & (positives < shape.length)).all(-1)
    filler = (positives == -1).all(-1)
    cells = (positives[..., 0] * shape.length + positives[..., 1]).masked_fill(~inside, -2)
    keep = keep_cells(shape, mask, causal, scores)
    counts = None if keep is None else keep.flatten(1).unsqueeze(1)
    listed = cells.masked_fill(filler, -1)
    return sparse_zlpr_loss(
        scores.flatten(2), listed, mask=counts, reduction="none", validate=validate
    )


def refuse_scores(
    pairs: Pairs, start: Tensor, end: Tensor, mask: Tensor | None, causal: bool
) -> None:
    """Raise if a part holds NaN or plus infinity where it counts. Reads values."""
    with _checks.no_autocast(start):
        for tile, scores, _ in _tiles(pairs, mask, causal):
            bad = ~(scores < inf)
            if bool(bad.any()):
                text, row, column = at = _refusals.first_true(bad)
                cell = (tile.part.start + text, tile.rows.start + row, tile.left + column)
                raise ValueError(
                    "pair_scores must be finite or -inf where they count, got "
                    f"{scores[at].item()} at {_refusals.place('pair_scores', cell)}"
                )
    for name, scores in (("start_scores", start), ("end_scores", end)):
        _refusals.refuse_logits(name, scores, None if mask is None else mask.unsqueeze(1))


class _Opened(NamedTuple):
    """Rows of tables that are computed cell by cell, and the positives in them."""

    batch: Tensor
    head: Tensor
    row: Tensor
    hole_row: Tensor  # index into the three above, ascending
    hole_column: Tensor


class _Factorised(torch.autograd.Function):
    """Loss of each head from the parts of the scores."""

    @staticmethod
    def forward(
        ctx: Any,
        pair: Tensor,
        keys: Tensor | None,
        start: Tensor,
        end: Tensor,
        lists: Tensor,
        mask: Tensor | None,
        causal: bool,
        validate: bool,
    ) -> Tensor:
        shape, pairs = Shape(*start.shape), Pairs(pair, keys)
        positives = cells_of(lists, shape)
        dtype = _checks.compute_dtype(pair.dtype)
        top = _hide(end, mask).amax(-1, keepdim=True).to(_WIDE)
        # Of any strides, as the two halves of a linear layer's output are; views need plain ones.
        weights = _exp_(_hide(end, mask) - finite(top)).to(dtype).contiguous()
        ridge = torch.empty(shape.batch, 1, shape.length, dtype=_WIDE, device=pair.device)
        sums = torch.empty(start.shape, dtype=dtype, device=pair.device)
        with _checks.no_autocast(pair):
            for tile, scores, cells in _tiles(pairs, mask, causal):
                tops = scores.amax(-1, keepdim=True)
                tile.by_row(ridge).copy_(tops.mT)
                # In float64 until it is a weight: a difference of 50 in float32 is off by 2e-6.
                cells.copy_(_exp_(scores.sub_(finite(tops))))
                torch.bmm(tile.by_column(weights), cells.mT, out=tile.by_row(sums))
        if validate and not bool(
            (ridge < inf).all() & (top < inf).all() & (_hide(start, mask) < inf).all()
        ):
            refuse_scores(pairs, start, end, mask, causal)

        bound = _bound(start, mask, ridge, top)
        rows = sums.to(_WIDE, copy=True).log_().add_(bound)
        opened, negatives = _open(pairs, start, end, positives, mask, causal, rows, bound, sums)
        above = torch.logaddexp(negatives, negatives.new_zeros(()))

        minus = -scores_at(pairs, start, end, positives)
        key = positives.batch * shape.heads + positives.head
        below = log1p_sums(minus, key, above.numel()).view_as(above)
        pulls = _exp_(minus - below.view(-1)[key])

        ctx.save_for_backward(
            pair, keys, start, end, mask, lists, weights, rows, ridge, top, above, pulls,
            *positives, *opened,
        )  # fmt: skip
        ctx.causal = causal
        return (above + below).to(dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # All at once: under checkpoint each look at them would compute the forward pass again.
        pair, keys, start, end, mask, lists, weights, rows, ridge, top, above, pulls, *rest = (
            ctx.saved_tensors
        )
        positives, opened = Cells(*rest[:4]), _Opened(*rest[4:])
        pairs = Pairs(pair, keys)
        if needs_formula(upstream):
            again = by_autograd(
                lambda scores, keys, start, end: table_losses(
                    Pairs(scores, keys).table(), start, end, lists, mask, ctx.causal
                ),
                (pair, keys, start, end), ctx.needs_input_grad[:4], upstream,
            )  # fmt: skip
            return (*again, None, None, None, None)
        shape = Shape(*start.shape)
        # Products of weights and upstream must neither overflow nor underflow for its sake.
        largest = upstream.abs().amax() if upstream.numel() else upstream.new_ones(())
        largest = largest.masked_fill(largest == 0, 1)
        scale = (upstream / largest).to(_WIDE).unsqueeze(-1)
        above = above.unsqueeze(-1)

        bound = _bound(start, mask, ridge, top)
        at = (opened.batch, opened.head, opened.row)
        bound[at] = -inf
        to_start = _exp_(rows - above).mul_(scale).to(weights.dtype)
        by_row = _exp_(bound.sub_(above)).mul_(scale).to(weights.dtype)
        del bound
        to_pairs, to_end = _PairGradient(pairs), torch.empty_like(weights)
        with _checks.no_autocast(pair):
            # Weighed again: less work than to fetch what forward would have to store.
            for tile, scores, cells in _tiles(pairs, mask, ctx.causal):
                cells.copy_(_exp_(scores.sub_(finite(tile.by_row(ridge).mT))))
                factors, ends = tile.by_row(by_row), tile.by_column(to_end)
                to_pairs.set_tile(tile, factors.mT, tile.by_column(weights), cells)
                # The first tile of a part has all columns, and sets what the others add to.
                torch.baddbmm(ends, factors, cells, beta=int(tile.left > 0), out=ends)
            to_end.mul_(weights)

            for some, scores in _opened_rows(pairs, start, end, mask, ctx.causal, opened):
                batch, head, row = (index[some] for index in at)
                scores.sub_(above[batch, head])
                cells = _exp_(scores).mul_(scale[batch, head]).to(weights.dtype)
                to_pairs.add_rows(batch, row, cells)
                to_end.view(-1, shape.length).index_add_(0, batch * shape.heads + head, cells)
        batch, head, row, column = positives
        pull = pulls.mul(scale[batch, head, 0]).neg_().to(weights.dtype)
        of_head = (batch * shape.heads + head) * shape.length
        to_pairs.add_cells(batch, row, column, pull)
        to_start.view(-1).index_add_(0, of_head + row, pull)
        to_end.view(-1).index_add_(0, of_head + column, pull)
        return (
            *(
                None if gradient is None else gradient.mul_(largest).to(pair.dtype)
                for gradient in (to_pairs.scores, to_pairs.keys, to_start, to_end)
            ),
            *(None, None, None, None),
        )


# Function.apply has no type of its own in PyTorch.
_factorised: Callable[..., Tensor] = _Factorised.apply


def _open(
    pairs: Pairs,
    start: Tensor,
    end: Tensor,
    positives: Cells,
    mask: Tensor | None,
    causal: bool,
    rows: Tensor,
    bound: Tensor,
    sums: Tensor,
) -> tuple[_Opened, Tensor]:
    """Put the exact log-sums of the rows that need it into ``rows``.

    Return which these are, and the log-sum of each head.
    """
    shape = Shape(*rows.shape)
    flat = (positives.batch * shape.heads + positives.head) * shape.length + positives.row
    with_positive, hole_row = torch.unique_consecutive(flat, return_inverse=True)
    rows.view(-1)[with_positive] = -inf
    opened = _opened(with_positive, hole_row, positives.column, shape)
    logs = torch.empty(len(with_positive), dtype=_WIDE, device=rows.device)
    for some, scores in _opened_rows(pairs, start, end, mask, causal, opened):
        logs[some] = _log_sum(scores)
    rows.view(-1)[with_positive] = logs

    # A lost term is below the smallest normal number; `length` of them, times e^bound, is the
    # error of a row. It must vanish next to the row itself, or else next to the sum of its head.
    limits = torch.finfo(sums.dtype)
    lost, digits = log2(limits.tiny) + 1 + log2(shape.length), 7 - log2(limits.eps)
    weak = sums < 2.0 ** (lost + digits)
    weak.view(-1)[with_positive] = False
    gap = -(lost + digits + log2(shape.length)) * log(2)
    totals = _log_sum(rows)
    weak &= bound > (totals + gap).unsqueeze(-1)
    lost_rows = weak.view(-1).nonzero().squeeze(1)
    if len(lost_rows) == 0:
        return opened, totals
    repaired = _opened(lost_rows, hole_row[:0], positives.column[:0], shape)
    more = torch.empty(len(lost_rows), dtype=_WIDE, device=rows.device)
    for some, scores in _opened_rows(pairs, start, end, mask, causal, repaired):
        more[some] = _log_sum(scores)
    rows.view(-1)[lost_rows] = more
    both = torch.cat((with_positive, lost_rows))
    return _opened(both, hole_row, positives.column, shape), _log_sum(rows)


def _opened(rows: Tensor, hole_row: Tensor, hole_column: Tensor, shape: Shape) -> _Opened:
    table, row = _divide(rows, shape.length)
    return _Opened(*_divide(table, shape.heads), row, hole_row, hole_column)


def _divide(number: Tensor, by: int) -> tuple[Tensor, Tensor]:
    return number // by, number % by


def _opened_rows(
    pairs: Pairs,
    start: Tensor,
    end: Tensor,
    mask: Tensor | None,
    causal: bool,
    opened: _Opened,
) -> Iterator[tuple[slice, Tensor]]:
    """Scores of the opened rows in float64, some at a time; -inf where none counts or positive."""
    length = start.shape[-1]
    step = max(1, _CHUNK_CELLS // length)
    columns = torch.arange(length, device=start.device)
    for first in range(0, len(opened.row), step):
        some = slice(first, first + step)
        batch, head, row = opened.batch[some], opened.head[some], opened.row[some]
        scores = pairs.rows(batch, row)
        scores.add_(start[batch, head, row].unsqueeze(1)).add_(end[batch, head])
        if causal:
            scores.masked_fill_(columns < row.unsqueeze(1), -inf)
        if mask is not None:
            scores.masked_fill_(~(mask[batch] & mask[batch, row].unsqueeze(1)), -inf)
        here = (opened.hole_row >= first) & (opened.hole_row < first + step)
        scores[opened.hole_row[here] - first, opened.hole_column[here]] = -inf
        yield some, scores


class _Tile(NamedTuple):
    """Rows of the tables of some texts, from a column on."""

    part: slice
    rows: slice
    left: int

    def of(self, tables: Tensor) -> Tensor:
        """Cells in tables ``(B, L, L)``."""
        return tables[self.part, self.rows, self.left :]

    def by_row(self, scores: Tensor) -> Tensor:
        """Entries of the tile's rows in ``(B, H, L)``."""
        return scores[self.part, :, self.rows]

    def by_column(self, scores: Tensor) -> Tensor:
        """Entries of the tile's columns in ``(B, H, L)``."""
        return scores[self.part, :, self.left :]


def _tiles(
    pairs: Pairs, mask: Tensor | None, causal: bool
) -> Iterator[tuple[_Tile, Tensor, Tensor]]:
    """Cut the pair scores into pieces that fit a core's cache, without what is below the diagonal.

    With each come its scores in float64, -inf where a cell does not count, and a buffer of the
    dtype of the computation. On a GPU there is one piece: many small kernels would cost more.
    """
    like, keys = pairs
    batch, length = like.shape[:2]
    high = min(_TILE_ROWS, length) if causal and not like.is_cuda else length
    step = max(1, batch if like.is_cuda else min(batch, _CHUNK_CELLS // (high * length)))
    size = step * high * length
    wide = torch.empty(size, dtype=_WIDE, device=like.device)
    narrow = torch.empty(size, dtype=_checks.compute_dtype(like.dtype), device=like.device)
    below = torch.ones(high, high, dtype=torch.bool, device=like.device).tril_(-1)
    for first, top in product(range(0, batch, step), range(0, length, high)):
        left = top if causal else 0
        tile = _Tile(slice(first, min(first + step, batch)), slice(top, top + high), left)
        rows = min(high, length - top)
        of_tile = (tile.part.stop - first, rows, length - left)
        scores, buffer = (flat[: prod(of_tile)].view(of_tile) for flat in (wide, narrow))
        if keys is None:
            scores.copy_(tile.of(like))
        else:
            queries = like[tile.part, tile.rows]
            scores.copy_(torch.bmm(queries, keys[tile.part, left:].mT, out=buffer))
        if causal:
            scores[:, :, :rows].masked_fill_(below[:rows, :rows], -inf)
        if mask is not None:
            scores.masked_fill_(~mask[tile.part, tile.rows].unsqueeze(2), -inf)
            scores.masked_fill_(~mask[tile.part, left:].unsqueeze(1), -inf)
        yield tile, scores, buffer


class _PairGradient:
    """Gradient of pair scores, collected; of their queries and keys, where these give them."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs
        dtype = _checks.compute_dtype(pairs.scores.dtype)
        self.scores = torch.empty(pairs.scores.shape, dtype=dtype, device=pairs.scores.device)
        self.keys = None if pairs.keys is None else torch.empty_like(self.scores)

    def set_tile(self, tile: _Tile, left: Tensor, right: Tensor, cells: Tensor) -> None:
        """``left @ right * cells`` is the gradient of a tile; tiles come in their order."""
        if self.keys is None or self.pairs.keys is None:
            self.scores[tile.part, tile.rows, : tile.left].zero_()
            torch.bmm(left, right, out=tile.of(self.scores)).mul_(cells)
            return
        found = torch.bmm(left, right).mul_(cells)
        keys, queries = self.pairs.keys[tile.part, tile.left :], self.pairs.scores
        torch.bmm(found, keys, out=self.scores[tile.part, tile.rows])
        ends = self.keys[tile.part, tile.left :]
        queries = queries[tile.part, tile.rows]
        torch.baddbmm(ends, found.mT, queries, beta=int(tile.left > 0), out=ends)

    def add_rows(self, batch: Tensor, row: Tensor, cells: Tensor) -> None:
        """Add ``cells`` (N, L) to some rows of the tables."""
        if self.keys is None or self.pairs.keys is None:
            length = self.scores.shape[1]
            self.scores.view(-1, length).index_add_(0, batch * length + row, cells)
            return
        for text, at in _by_text(batch):
            queries = self.pairs.scores[text, row[at]]
            self.scores[text].index_add_(0, row[at], cells[at] @ self.pairs.keys[text])
            self.keys[text].addmm_(cells[at].mT, queries)

    def add_cells(self, batch: Tensor, row: Tensor, column: Tensor, values: Tensor) -> None:
        """Add ``values`` (N,) to some cells of the tables."""
        if self.keys is None or self.pairs.keys is None:
            flat = (batch * self.scores.shape[1] + row) * self.scores.shape[1] + column
            self.scores.view(-1).index_add_(0, flat, values)
            return
        to_query = values.unsqueeze(1) * self.pairs.keys[batch, column]
        to_key = values.unsqueeze(1) * self.pairs.scores[batch, row]
        self.scores.index_put_((batch, row), to_query, accumulate=True)
        self.keys.index_put_((batch, column), to_key, accumulate=True)


def _by_text(batch: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield the runs of one text among rows that are ordered by it, more or less."""
    texts, counts = torch.unique_consecutive(batch, return_counts=True)
    first = 0
    for text, count in zip(texts.tolist(), counts.tolist(), strict=True):
        yield text, slice(first, first + count)
        first += count


def _bound(start: Tensor, mask: Tensor | None, ridge: Tensor, top: Tensor) -> Tensor:
    """Return what the scores of each row stay below: ``(B, H, L)``, -inf for one without a cell."""
    return (_hide(start, mask) + ridge).add_(top)


def _hide(scores: Tensor, mask: Tensor | None) -> Tensor:
    return scores if mask is None else scores.masked_fill(~mask.unsqueeze(1), -inf)


def _exp_(x: Tensor) -> Tensor:
    return x.mul_(LOG2_E).exp2_()


def _log_sum(terms: Tensor) -> Tensor:
    """Log of the sum of exponentials over the last dimension; -inf for nothing."""
    top = terms.amax(-1, keepdim=True)
    shift = finite(top)
    return _exp_(terms - shift).sum(-1).log_().add_(shift.squeeze(-1))


def log1p_sums(terms: Tensor, key: Tensor, groups: int) -> Tensor:
    """``log(1 + sum(exp(terms)))`` of each group of terms with the same key."""
    top = terms.new_zeros(groups).scatter_reduce_(0, key, terms, "amax")  # the 1 is a term of 0
    rest = torch.zeros_like(top).index_add_(0, key, _exp_(terms - top[key]))
    return (torch.expm1(-top) + rest).log1p_().add_(top)
