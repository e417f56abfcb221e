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
    counting_if_narrow,
    finite,
    load,
    needs_formula,
    numbers,
)

__all__ = ["powers_of_positives", "reduced_loss"]

_AT_ONCE_CELLS = 1 << 18  # narrow scores up to here are worth a table that is kept
_ONE = torch.ones((), device="cpu")  # a number of Python makes a small operation twice as slow
_LISTED_SHARE = 1 / 32  # padded lists up to this share of all cells are faster than a dense pass


def reduced_loss(
    rows: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    reduction: str,
    *,
    listed: bool,
    readable: bool,
) -> Tensor:
    """Loss of each row of ``rows`` ``(R, C)``, reduced; NaN where a row has bad values.

    ``labels`` is a table ``(R, C)`` of zeros and ones or, if ``listed``, lists ``(R, K)`` of
    classes filled up with -1; ``mask`` is ``(R, C)``, True where a cell counts.
    """
    if not readable:
        return _checks.reduce(_formula(rows, labels, mask, listed), reduction)
    narrow, counts = counting_if_narrow(rows, mask)
    if narrow and rows.numel() <= _AT_ONCE_CELLS:
        bad = None
        if listed:
            labels, bad = _small_table(labels, rows)
        elif labels.dtype != torch.bool and not _binary(labels):
            bad = _checks.not_binary(labels)
        return _at_once(rows, labels, bad, counts, reduction)
    # Beyond that size, narrow means that every cell counts.
    return _checks.reduce(_in_parts(rows, labels, mask, listed, narrow), reduction)


def _in_parts(
    rows: Tensor, labels: Tensor, mask: Tensor | None, listed: bool, narrow: bool
) -> Tensor:
    """Loss of each row, through a buffer that fits the cache."""
    classes = rows.shape[1]
    if listed and labels.shape[1] <= classes * _LISTED_SHARE:
        return _by_lists(rows, *_lists(labels, classes), mask, narrow)
    if listed:
        return _by_table(rows, *_table(labels, classes), mask, narrow)
    bad = None
    if labels.dtype != torch.bool:
        step = max(1, CHUNK_CELLS // classes)
        bad = torch.cat([_checks.not_binary(part) for part in torch.split(labels, step)])
        bad = bad.unsqueeze(1)
    if not rows.is_cuda:  # a list needs its length, and a GPU be waited for
        found = _listed(labels.bool())
        if found is not None:
            return _by_lists(rows, *_lists(found, classes)[:3], bad, mask, narrow)
    return _by_table(rows, labels, bad, mask, narrow)


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


def _small_table(positives: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Table like ``rows`` of listed classes, and which rows list what is no class, if any does."""
    count, classes = rows.shape
    if positives.numel():
        low, high = positives.aminmax()
        if int(low) < -1 or int(high) >= classes:
            table, bad = _table(positives, classes)
            return table, bad.squeeze(1)
    # Fillers go to a column before the first class.
    table = rows.new_zeros((count, classes + 1)).scatter_(1, positives + 1, 1.0)
    return table[:, 1:], None


def _binary(labels: Tensor) -> bool:
    """Whether all of a small table is 0 or 1; the quick way to learn that no row is bad."""
    if not labels.dtype.is_floating_point:
        return torch.equal(labels * labels, labels)
    # Quicker than torch.equal; NaN fails both comparisons.
    low, high = torch.addcmul(labels, labels, labels, value=-1).aminmax()
    return low.item() == 0 == high.item()


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


def powers_of_positives(score: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shift, sum and terms ``exp(-score - shift)`` of listed positives, those that count."""
    minus, uncounted = -score, ~counts
    pull = finite(minus.masked_fill(uncounted, -inf).amax(-1, keepdim=True))
    terms = (minus - pull).exp_()
    return pull, terms.masked_fill(uncounted, 0).sum(-1, keepdim=True), terms


class _ByLists(torch.autograd.Function):
    """Loss of each row when few cells are positive: their scores are handled apart."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        column: Tensor,
        counts: Tensor,
        some: Tensor,
        bad: Tensor | None,
        mask: Tensor | None,
        narrow: bool,
    ) -> Tensor:
        dtype = _checks.compute_dtype(rows.dtype)
        score = rows.gather(1, column).to(dtype)
        if mask is not None:
            score = score.masked_fill(~mask.gather(1, column), -inf)
        # Out of the sum over the negatives; a row without positives writes back what it read.
        written = torch.where(some, 0, score.exp()) if narrow else torch.where(some, -inf, score)
        sums = []
        for part, cells in chunks(rows, dtype):
            if narrow:
                _exp(rows[part], cells).scatter_(1, column[part], written[part])
                sums.append((torch.zeros_like(written[part, :1]), cells.sum(-1, keepdim=True)))
                continue
            load(cells, rows[part], mask, part)
            cells.scatter_(1, column[part], written[part])
            sums.append(_top_and_sum_(cells))
        top, total = map(torch.cat, zip(*sums, strict=True))

        shift = finite(top)
        pull, pulled, terms = powers_of_positives(score, counts)
        losses, factors = combine(torch.stack((shift, pull)), torch.stack((total, pulled)))
        # Fillers and repeated mentions too: equal cells must be written equal values.
        at_positives = terms.neg_().mul_(factors[1])
        ctx.save_for_backward(rows, column, counts, some, mask, shift, factors[0], at_positives)
        ctx.narrow = narrow
        # A positive at infinity has loss 0. Other bad cells give NaN by themselves, as inf - inf.
        infinite = (counts & (score == inf)).any(-1, keepdim=True)
        bad = infinite if bad is None else bad | infinite
        return losses.sum(0).masked_fill_(bad, nan).squeeze(1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, column, counts, some, mask, shift, factor, at_positives = ctx.saved_tensors
        if needs_formula(upstream):
            labels = torch.where(counts, column, -1)
            again = by_autograd(
                lambda scores: _formula(scores, labels, mask, True), [rows], [True], upstream
            )
            return *again, None, None, None, None, None, None
        upstream = upstream.unsqueeze(1)
        factor = factor * upstream
        at_positives = at_positives * upstream
        gradient = torch.empty_like(rows, memory_format=torch.contiguous_format)
        for part, cells in chunks(rows, shift.dtype, gradient):
            if ctx.narrow:
                _exp(rows[part], cells).mul_(factor[part])
            else:
                load(cells, rows[part], mask, part).sub_(shift[part])
                cells.mul_(LOG2_E).exp2_().mul_(factor[part])
            here = column[part]
            cells.scatter_(
                1, here, torch.where(some[part], at_positives[part], cells.gather(1, here))
            )
            if cells.dtype != gradient.dtype:
                gradient[part] = cells
        return gradient, None, None, None, None, None, None


class _AtOnce(torch.autograd.Function):
    """Reduced loss of few cells with narrow scores: no loop, and the gradient formed at once.

    Small inputs wait for Python and for the start of each operation, so that these are few: both
    groups lie in one table.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        positive: Tensor,
        bad: Tensor | None,
        mask: Tensor | None,
        reduction: str,
    ) -> Tensor:
        dtype = _checks.compute_dtype(rows.dtype)
        powers = rows.new_empty((2, *rows.shape), dtype=dtype)
        push, pull = powers.unbind()
        scores = rows if rows.dtype == dtype else rows.to(dtype)
        _powers(scores, numbers(positive, pull), mask, (push, pull))
        totals = powers.sum(-1, keepdim=True)
        count = totals.new_full((), len(rows)) if reduction == "mean" else None
        losses = totals.log1p().sum(0)
        gradient = None
        if ctx.needs_input_grad[0]:
            powers.mul_(totals.add_(_ONE).reciprocal_())
            # Of each cell one is 0: the difference holds both, and is exact.
            gradient = push.sub_(pull)
        ctx.reduction = reduction
        ctx.save_for_backward(rows, positive, mask, gradient, count)
        if mask is not None:  # nothing of such a positive has entered the sums
            lost = (positive.bool() & ~mask).any(-1)
            bad = lost if bad is None else bad | lost
        if bad is not None:
            losses.masked_fill_(bad.unsqueeze(1), nan)
        if reduction == "none":
            return losses.squeeze(1)
        return losses.sum() if count is None else losses.sum().div_(count)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, positive, mask, gradient, count = ctx.saved_tensors
        if needs_formula(upstream):

            def again(scores: Tensor) -> Tensor:
                return _checks.reduce(_formula(scores, positive, mask, False), ctx.reduction)

            return *by_autograd(again, [rows], [True], upstream), None, None, None, None
        if count is not None:
            upstream = upstream / count
        elif ctx.reduction == "none":
            upstream = upstream.unsqueeze(1)
        gradient = gradient * upstream
        if gradient.dtype != rows.dtype:
            gradient = gradient.to(rows.dtype)
        return gradient, None, None, None, None


class _ByTable(torch.autograd.Function):
    """Loss of each row when any share of the cells may be positive."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        positive: Tensor,
        bad: Tensor | None,
        mask: Tensor | None,
        narrow: bool,
    ) -> Tensor:
        ctx.narrow = narrow
        if narrow:
            totals = rows.new_empty((2, rows.shape[0], 1), dtype=_checks.compute_dtype(rows.dtype))
            spare = Spare()
            for part, cells in chunks(rows, totals.dtype):
                both = _powers_of_part(cells, spare, rows[part], positive[part])
                for group, terms in enumerate(both):
                    totals[group, part] = terms.sum(-1, keepdim=True)
            losses = totals.log1p().sum(0)
            ctx.save_for_backward(rows, positive, mask, None, 1 / (1 + totals))
        else:
            shifts, totals, top = _shifted_sums(rows, positive, mask)
            losses, factors = combine(shifts, totals)
            losses = losses.sum(0)
            ctx.save_for_backward(rows, positive, mask, shifts, factors)
            # A positive at infinity has loss 0. Other bad cells give NaN by themselves: inf - inf.
            bad = top == inf if bad is None else bad | (top == inf)
        return (losses if bad is None else losses.masked_fill_(bad, nan)).squeeze(1)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        rows, positive, mask, shifts, factors = ctx.saved_tensors
        if needs_formula(upstream):
            again = by_autograd(
                lambda scores: _formula(scores, positive, mask, False), [rows], [True], upstream
            )
            return *again, None, None, None, None
        factors = factors * upstream.unsqueeze(1)
        gradient = torch.empty_like(rows, memory_format=torch.contiguous_format)
        spare = Spare()
        for part, cells in chunks(rows, factors.dtype, gradient):
            if ctx.narrow:
                _, pull = _powers_of_part(cells, spare, rows[part], positive[part])
                cells.mul_(factors[0, part]).addcmul_(pull, factors[1, part], value=-1)
            else:
                load(cells, rows[part], mask, part)
                limit = _limit(spare.like(cells, 0), positive[part])
                # The other group is at -inf in each, and has weight 0.
                pull = torch.maximum(cells, limit, out=spare.like(cells, 1))
                pull.add_(shifts[1, part]).mul_(-LOG2_E).exp2_().mul_(factors[1, part])
                torch.minimum(cells, limit, out=cells).sub_(shifts[0, part])
                cells.mul_(LOG2_E).exp2_().mul_(factors[0, part]).sub_(pull)
            if cells.dtype != gradient.dtype:
                gradient[part] = cells
        return gradient, None, None, None, None


def _powers(
    scores: Tensor,
    labels: Tensor,
    mask: Tensor | None = None,
    buffers: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """``exp(score)`` of the negatives and ``exp(-score)`` of the positives, of narrow scores.

    One exponential serves both: each cell is in one of the groups, and 0 in the other, exactly.
    """
    push, pull = (None, None) if buffers is None else buffers
    if mask is not None:
        scores = scores.masked_fill(~mask, 0)
    push = torch.addcmul(scores, scores, labels, value=-2, out=push).exp_()
    if mask is not None:
        push.mul_(mask)
    pull = torch.mul(push, labels, out=pull)
    return push.sub_(pull), pull


def _powers_of_part(
    cells: Tensor, spare: Spare, scores: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Call :func:`_powers` with buffers; the first result is ``cells``."""
    if scores.dtype != cells.dtype:
        scores = cells.copy_(scores)
    labels = numbers(labels, spare.like(cells, 0))
    return _powers(scores, labels, buffers=(cells, spare.like(cells, 1)))


def _shifted_sums(
    rows: Tensor, positive: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Largest term of each group, the sum of exponentials below it, and the largest score."""
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
    return finite(tops[:2]), totals, tops[2]


def _exp(scores: Tensor, out: Tensor) -> Tensor:
    """``exp(scores)`` of narrow scores, in the buffer's dtype."""
    return torch.exp(scores, out=out) if scores.dtype == out.dtype else out.copy_(scores).exp_()


def _limit(cells: Tensor, positive: Tensor) -> Tensor:
    """Minus infinity where positive, plus infinity elsewhere; in place, and without a branch.

    The smaller of score and limit leaves the negatives, the larger the positives. ``torch.where``
    would branch on every cell, and guess wrong when positives and negatives are mixed.
    """
    cells = cells.copy_(positive.view(torch.uint8) if positive.dtype == torch.bool else positive)
    return cells.sub_(0.5).mul_(-inf)


# Function.apply has no type of its own in PyTorch.
_by_lists: Callable[..., Tensor] = _ByLists.apply
_by_table: Callable[..., Tensor] = _ByTable.apply
_at_once: Callable[..., Tensor] = _AtOnce.apply


def _top_and_sum_(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Largest term and sum of exponentials below it, per row; overwrites ``cells``."""
    top = cells.amax(-1, keepdim=True)
    cells.sub_(finite(top)).mul_(LOG2_E).exp2_()
    return top, cells.sum(-1, keepdim=True)
