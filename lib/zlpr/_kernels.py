"""Losses of rows of logits: a plain formula for transforms, fast kernels for everything else."""

from collections.abc import Callable
from math import inf, nan
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib import _checks
from lib._rows import (
    CHUNK_CELLS,
    LOG2_E,
    Spare,
    by_autograd,
    chunks,
    combine,
    finite,
    load,
    needs_formula,
)

__all__ = ["row_losses"]

_LISTED_SHARE = 1 / 32  # padded lists up to this share of all cells are faster than a dense pass


def row_losses(rows: Tensor, labels: Tensor, mask: Tensor | None, *, listed: bool) -> Tensor:
    """Loss of each row of ``rows`` ``(R, C)``; NaN for a row with bad values.

    ``labels`` is a table ``(R, C)`` of zeros and ones or, if ``listed``, lists ``(R, K)`` of
    classes filled up with -1; ``mask`` is ``(R, C)``, True where a cell counts.
    """
    if not _checks.values_readable(rows, labels, mask):
        return _formula(rows, labels, mask, listed)
    classes = rows.shape[1]
    if listed and labels.shape[1] <= classes * _LISTED_SHARE:
        return _by_lists(rows, *_lists(labels, classes), mask)
    if listed:
        return _by_table(rows, *_table(labels, classes), mask)
    bad = torch.zeros_like(rows[:, :1], dtype=torch.bool)
    if labels.dtype != torch.bool:
        step = max(1, CHUNK_CELLS // classes)
        bad = torch.cat([_checks.not_binary(part) for part in torch.split(labels, step)])
        bad = bad.unsqueeze(1)
        labels = labels.bool()
    # A list needs its length, which a GPU would have to be waited for.
    found = None if rows.is_cuda else _listed(labels)
    if found is None:
        return _by_table(rows, labels, bad, mask)
    return _by_lists(rows, *_lists(found, classes)[:3], bad, mask)


# ------------------------------------------------------------------ the formula, for any transform


def _formula(rows: Tensor, labels: Tensor, mask: Tensor | None, listed: bool) -> Tensor:
    """Loss of each row by plain operations: traceable, and differentiable as often as one likes."""
    scores = rows.to(_checks.compute_dtype(rows.dtype))
    if mask is not None:
        scores = scores.masked_fill(~mask, -inf)
    if listed:
        positive, bad = _table(labels, rows.shape[1])
    else:
        bad = labels.new_zeros((), dtype=torch.bool)
        if labels.dtype != torch.bool:
            bad = _checks.not_binary(labels).unsqueeze(1)
        positive = labels != 0
    # A positive at infinity has loss 0. Other bad cells give NaN by themselves, as inf - inf.
    bad = bad | (scores == inf).any(-1, keepdim=True)
    negatives = _log1p_sum_exp(scores.masked_fill(positive, -inf))
    positives = _log1p_sum_exp((-scores).masked_fill(~positive, -inf))
    return (negatives + positives).masked_fill(bad, nan).squeeze(1)


def _table(positives: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Bool table of listed classes, and a column saying which rows list what is no class."""
    outside = positives >= classes
    bad = ((positives < -1) | outside).any(-1, keepdim=True)
    # Fillers, and what is no class, go to a column past the last class.
    column = torch.where((positives < 0) | outside, classes, positives)
    table = positives.new_zeros((1, 1), dtype=torch.bool).expand(positives.shape[0], classes + 1)
    return table.scatter(1, column, True)[:, :classes], bad


def _log1p_sum_exp(terms: Tensor) -> Tensor:
    """``log(1 + sum(exp(terms)))`` over the last dimension; minus infinity adds nothing."""
    top = terms.detach().amax(-1, keepdim=True)
    shift = finite(top)
    total = (terms - shift).exp().sum(-1, keepdim=True)
    return combine(shift, total)[0]


# ---------------------------------------------------------------------------------- fast, by hand


class _Lists(NamedTuple):
    """Positive classes of each row, ready to gather from and scatter to.

    Fillers repeat a class of their row, so that every entry is a valid column and equal columns
    always carry equal values. A row without any points at column 0 and is marked in ``some``.
    """

    column: Tensor  # (R, K) int64
    counts: Tensor  # (R, K) bool: the first mention of its class
    some: Tensor  # (R, 1) bool: the row has a positive
    bad: Tensor  # (R, 1) bool: an index was out of range


def _lists(positives: Tensor, classes: int) -> _Lists:
    if positives.shape[1] == 0:
        positives = positives.new_full((positives.shape[0], 1), -1)
    column = positives.sort(-1).values
    first, last = column[:, :1], column[:, -1:]
    bad = (first < -1) | (last >= classes)
    counts = column >= 0
    filled = torch.where(counts, column, last).clamp_(0, classes - 1)
    if column.shape[1] > 1:
        counts[:, 1:] &= column[:, 1:] != column[:, :-1]
    return _Lists(filled, counts, last >= 0, bad)


def _listed(table: Tensor) -> Tensor | None:
    """Positive columns of a bool table, padded with -1; None if there are too many to be worth it.

    Reading eight cells at once makes this a small part of the pass over the logits.
    """
    rows, classes = table.shape
    if rows == 0:
        return None
    flat = table.reshape(-1).contiguous()
    if flat.numel() % 8 == 0 and flat.storage_offset() % 8 == 0:
        words = flat.view(torch.int64).nonzero().squeeze(1)
        if words.numel() > flat.numel() * _LISTED_SHARE:
            return None
        word, byte = flat.view(-1, 8)[words].nonzero().unbind(1)
        found = words[word] * 8 + byte
    else:
        found = flat.nonzero().squeeze(1)
    row, column = found // classes, found % classes
    each = torch.bincount(row, minlength=rows)
    width = int(each.max())
    if rows * width > flat.numel() * _LISTED_SHARE:
        return None
    rank = torch.arange(found.numel(), device=table.device) - (each.cumsum(0) - each)[row]
    lists = found.new_full((rows, width), -1)
    lists[row, rank] = column
    return lists


class _ByLists(torch.autograd.Function):
    """Loss of each row when few cells are positive: their scores are handled apart."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        column: Tensor,
        counts: Tensor,
        some: Tensor,
        bad: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        dtype = _checks.compute_dtype(rows.dtype)
        score = rows.gather(1, column).to(dtype)
        if mask is not None:
            score = score.masked_fill(~mask.gather(1, column), -inf)
        # Out of the sum over the negatives; a row without positives writes back what it read.
        written = torch.where(some, -inf, score)
        sums = []
        for part, cells in chunks(rows, dtype):
            load(cells, rows[part], mask, part)
            cells.scatter_(1, column[part], written[part])
            sums.append(_top_and_sum_(cells))
        top, total = map(torch.cat, zip(*sums, strict=True))

        minus, uncounted = -score, ~counts
        pull = finite(minus.masked_fill(uncounted, -inf).amax(-1, keepdim=True))
        terms = (minus - pull).exp_()
        pulled = terms.masked_fill(uncounted, 0).sum(-1, keepdim=True)

        shift = finite(top)
        losses, factors = combine(torch.stack((shift, pull)), torch.stack((total, pulled)))
        # Fillers and repeated mentions too: equal cells must be written equal values.
        at_positives = terms.neg_().mul_(factors[1])
        ctx.save_for_backward(rows, column, counts, some, mask, shift, factors[0], at_positives)
        # A positive at infinity has loss 0. Other bad cells give NaN by themselves, as inf - inf.
        bad = bad | (counts & (score == inf)).any(-1, keepdim=True)
        return losses.sum(0).masked_fill_(bad, nan).squeeze(1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, column, counts, some, mask, shift, factor, at_positives = ctx.saved_tensors
        if needs_formula(upstream):
            labels = torch.where(counts, column, -1)
            again = by_autograd(
                lambda: _formula(rows, labels, mask, True), [rows], [True], upstream
            )
            return *again, None, None, None, None, None
        upstream = upstream.unsqueeze(1)
        factor = factor * upstream
        at_positives = at_positives * upstream
        gradient = torch.empty_like(rows, memory_format=torch.contiguous_format)
        for part, cells in chunks(rows, shift.dtype, gradient):
            load(cells, rows[part], mask, part).sub_(shift[part])
            cells.mul_(LOG2_E).exp2_().mul_(factor[part])
            here = column[part]
            cells.scatter_(
                1, here, torch.where(some[part], at_positives[part], cells.gather(1, here))
            )
            if cells.dtype != gradient.dtype:
                gradient[part] = cells
        return gradient, None, None, None, None, None


class _ByTable(torch.autograd.Function):
    """Loss of each row when any share of the cells may be positive: two passes, one per group."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, positive: Tensor, bad: Tensor, mask: Tensor | None
    ) -> Tensor:
        dtype = _checks.compute_dtype(rows.dtype)
        tops = rows.new_empty((3, rows.shape[0], 1), dtype=dtype)
        totals = torch.empty_like(tops[:2])
        spare = Spare()
        for part, cells in chunks(rows, dtype):
            source = rows[part]
            if mask is not None or source.dtype != dtype:
                source = load(spare.like(cells, 0), source, mask, part)
            limit = _limit(spare.like(cells, 1), positive[part])
            tops[2, part] = source.amax(-1, keepdim=True)
            torch.minimum(source, limit, out=cells)
            tops[0, part], totals[0, part] = _top_and_sum_(cells)
            torch.maximum(source, limit, out=cells)
            tops[1, part], totals[1, part] = _top_and_sum_(cells.neg_())
        shifts = finite(tops[:2])
        losses, factors = combine(shifts, totals)
        ctx.save_for_backward(rows, positive, mask, shifts, factors)
        # A positive at infinity has loss 0. Other bad cells give NaN by themselves, as inf - inf.
        return losses.sum(0).masked_fill_(bad | (tops[2] == inf), nan).squeeze(1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, positive, mask, shifts, factors = ctx.saved_tensors
        if needs_formula(upstream):
            again = by_autograd(
                lambda: _formula(rows, positive, mask, False), [rows], [True], upstream
            )
            return *again, None, None, None
        factors = factors * upstream.unsqueeze(1)
        gradient = torch.empty_like(rows, memory_format=torch.contiguous_format)
        spare = Spare()
        for part, cells in chunks(rows, shifts.dtype, gradient):
            load(cells, rows[part], mask, part)
            limit = _limit(spare.like(cells, 0), positive[part])
            # The other group is at -inf in each, and has weight 0.
            pull = torch.maximum(cells, limit, out=spare.like(cells, 1))
            pull.add_(shifts[1, part]).mul_(-LOG2_E).exp2_().mul_(factors[1, part])
            torch.minimum(cells, limit, out=cells).sub_(shifts[0, part])
            cells.mul_(LOG2_E).exp2_().mul_(factors[0, part]).sub_(pull)
            if cells.dtype != gradient.dtype:
                gradient[part] = cells
        return gradient, None, None, None


def _limit(cells: Tensor, positive: Tensor) -> Tensor:
    """Minus infinity where positive, plus infinity elsewhere; in place, and without a branch.

    The smaller of score and limit leaves the negatives, the larger the positives. ``torch.where``
    would branch on every cell, and guess wrong when positives and negatives are mixed.
    """
    return cells.copy_(positive).sub_(0.5).mul_(-inf)


# Function.apply has no type of its own in PyTorch.
_by_lists: Callable[..., Tensor] = _ByLists.apply
_by_table: Callable[..., Tensor] = _ByTable.apply


def _top_and_sum_(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Largest term and sum of exponentials below it, per row; overwrites ``cells``."""
    top = cells.amax(-1, keepdim=True)
    cells.sub_(finite(top)).mul_(LOG2_E).exp2_()
    return top, cells.sum(-1, keepdim=True)
