"""EMO from hidden states and a head's weight, a few tokens at a time.

Per chunk of tokens: logits, exponentials in place, costs, and the gradients of both arguments, so
that nothing of size tokens × vocabulary outlives a chunk. Four matrix products per chunk instead
of the six of the published form.
"""

from collections.abc import Callable, Sequence
from math import inf, nan
from typing import Any

import torch
from torch import Tensor

from lib import _checks
from lib._linear import (
    apply_upstream,
    blame_weight,
    head_dtypes,
    products,
    rows_times,
)
from lib._rows import LOG2_E, by_autograd, needs_formula
from lib.emo._embeddings import Directions, unit_rows
from lib.emo._mixture import Mixture
from lib.emo._terms import Targets, by_rows, mix, mixed

__all__ = ["linear_losses"]

_CHUNK_CELLS = 1 << 23  # logits of a chunk: 32 MiB in float32, and as much again for the costs
_SMALL_CELLS = 1 << 15  # up to so many logits the plain formula is faster, and holds little
_LEAST_TOKENS = 64  # fewer rows would leave a matrix product waiting for memory

Gradients = list[Tensor | None]


def linear_losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Targets,
    found: Directions,
    mixture: Mixture | None,
    reduction: str,
) -> Tensor:
    """Losses ``(N,)`` for ``"none"``, else their scalar; not finite where a row is bad."""
    dtype, wide = head_dtypes(hidden, weight, bias)
    bias = None if bias is None else bias.to(wide)
    if not _checks.values_readable(hidden, weight, bias, targets.safe):
        return _formula(hidden, weight, bias, targets, found, mixture, reduction)
    if targets.safe.numel() * len(weight) <= _SMALL_CELLS:
        if targets.bad is None and hidden.requires_grad and torch.is_grad_enabled():
            blame_weight(weight, weight)
        return _formula(hidden, weight, bias, targets, found, mixture, reduction)
    with _checks.no_autocast(hidden):  # the chunks choose their precision themselves
        return _chunked(
            hidden.to(dtype), weight.to(dtype), bias, *targets, found.table, found.scale, mixture,
            reduction, torch.is_grad_enabled(),
        )  # fmt: skip


def _formula(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Targets,
    found: Directions,
    mixture: Mixture | None,
    reduction: str,
) -> Tensor:
    """Compute the same by plain operations, holding all logits: for transforms."""
    dtype = _checks.compute_dtype(torch.promote_types(hidden.dtype, weight.dtype))
    with _checks.no_autocast(hidden):
        logits = hidden.to(dtype) @ weight.to(dtype).T
        if bias is not None:
            logits = logits + bias
        losses, witness = by_rows(mixed(mixture), logits, targets, unit_rows(found, logits.dtype))
    losses = losses.masked_fill(~witness.isfinite(), nan)
    return _checks.reduce(losses, reduction, targets.counts)


class _Chunked(torch.autograd.Function):
    """Losses chunk by chunk; for a scalar result the gradients are formed on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        safe: Tensor,
        counts: Tensor | None,
        bad: Tensor | None,
        table: Tensor,
        scale: Tensor | None,
        mixture: Mixture | None,
        reduction: str,
        recording: bool,
    ) -> Tensor:
        needs = [recording and need for need in ctx.needs_input_grad[:3]]
        targets, found = Targets(safe, counts, bad), Directions(table, scale, None)
        ctx.save_for_backward(hidden, weight, bias, *targets, table, scale)
        ctx.mixture, ctx.reduction = mixture, reduction
        # One upstream number for all tokens is known to be a factor before it is known.
        share = None
        if reduction != "none" and any(needs):
            share = _share(targets, reduction, _checks.compute_dtype(hidden.dtype))
        losses, gradients = _pass(hidden, weight, bias, targets, found, mixture, share, needs)
        # Made here and seen by nobody else, so nobody can change them; and given away once.
        ctx.gradients = None if share is None else gradients
        return _checks.reduce(losses, reduction, counts)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, *targets, table, scale = ctx.saved_tensors
        targets, found = Targets(*targets), Directions(table, scale, None)
        leaves, needs = (hidden, weight, bias), ctx.needs_input_grad[:3]
        rest = (None,) * 8
        if needs_formula(upstream):
            again = by_autograd(
                lambda h, w, b: _formula(h, w, b, targets, found, ctx.mixture, ctx.reduction),
                leaves, needs, upstream,
            )  # fmt: skip
            if targets.bad is None and _checks.values_readable(upstream):
                blame_weight(weight, again[0])
            return *again, *rest
        # Autograd may keep these very tensors as the leaves' gradients: a second time, form anew.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            factor = upstream
            if ctx.reduction == "mean":
                factor = upstream * _share(targets, ctx.reduction, upstream.dtype)
            _, gradients = _pass(
                hidden, weight, bias, targets, found, ctx.mixture,
                factor, needs,
            )  # fmt: skip
            return *apply_upstream(gradients, None, leaves), *rest
        return *apply_upstream(gradients, upstream, leaves), *rest


_chunked: Callable[..., Tensor] = _Chunked.apply  # Function.apply has no type of its own


def _share(targets: Targets, reduction: str, dtype: torch.dtype) -> Tensor | float:
    """Weight of each token in the scalar."""
    if reduction == "sum":
        return 1.0
    if targets.counts is None:
        return 1 / max(1, targets.safe.numel())
    return targets.counts.sum().clamp(min=1).to(dtype).reciprocal()


def _pass(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Targets,
    found: Directions,
    mixture: Mixture | None,
    factor: Tensor | float | None,
    needs: Sequence[bool],
) -> tuple[Tensor, Gradients]:
    """Losses of all tokens and, with a ``factor``, the gradients of their sum times it.

    The gradients have the dtype to compute in. Where targets were not looked at, all tokens are
    computed, since how many count is a value too.
    """
    safe, counts, bad = targets
    classes = weight.shape[0]
    dtype = _checks.compute_dtype(hidden.dtype)
    kept = gone = None
    if counts is not None and bad is None:
        kept = counts.nonzero().squeeze(1)
    elif counts is not None and bad is not None:
        gone = ~counts
        if factor is not None:
            factor = factor * (counts & ~bad)
    if isinstance(factor, Tensor):
        factor = factor.to(dtype).expand(safe.shape).unsqueeze(1)
    count = safe.numel() if kept is None else kept.numel()
    losses = torch.zeros(safe.shape, dtype=dtype, device=hidden.device)
    step = max(1, min(count, max(_LEAST_TOKENS, _CHUNK_CELLS // classes)))
    cells = torch.empty((step, classes), dtype=dtype, device=hidden.device)
    costs = torch.empty_like(cells)
    gradients: Gradients = [
        torch.zeros(leaf.shape, dtype=dtype, device=hidden.device)
        if leaf is not None and need and factor is not None
        else None
        for leaf, need in zip((hidden, weight, bias), needs, strict=True)
    ]
    d_hidden, d_weight, d_bias = gradients
    for start in range(0, count, step):
        here: Tensor | slice = slice(start, min(start + step, count))
        if kept is not None:
            here = kept[here]
        gold = safe[here].unsqueeze(1)
        rows, z, c = hidden[here].to(dtype), cells[: len(gold)], costs[: len(gold)]
        if gone is not None:
            rows = rows.masked_fill(gone[here].unsqueeze(1), 0)

        # 1 logits, and exponentials below the largest; exp2 because exp is slow at underflow
        products(rows, weight, z)
        if bias is not None:
            z.add_(bias)
        gold_z = z.gather(1, gold)
        top = z.amax(1, keepdim=True)
        z.sub_(top).mul_(LOG2_E).exp2_()
        gold_p = z.gather(1, gold)
        z.scatter_(1, gold, 0.0)  # out of the sums: nothing is subtracted later
        rest = z.sum(1, keepdim=True)
        total = rest + gold_p
        easy = rest < gold_p
        odds = (rest / torch.where(easy, gold_p, 1)).log1p()
        cross_entropy = torch.where(easy, odds, total.log() - (gold_z - top))
        z.div_(total)
        rest, gold_p = rest / total, gold_p / total

        # 2 cosines of all tokens with the target, and the mean cost of the wrong ones
        products(found.of(safe[here], dtype), found.table, c)
        if found.scale is not None:
            c.mul_(found.scale.to(dtype))
        likeness = torch.bmm(z.unsqueeze(1), c.unsqueeze(2)).squeeze(2)
        emo = (rest - likeness).clamp_(min=0)
        part, a, b = emo, None, None
        if mixture is not None:
            part = mix(cross_entropy, emo, rest, mixture)
            a, b = mixture.weights(cross_entropy, emo, rest)
        # Such a target has a finite mean cost, but nothing could ever raise it.
        losses[here] = part.masked_fill(gold_z == -inf, nan).squeeze(1)

        # 3 gradients: p (a + b (cost - mean cost)), and the target's own cell
        if factor is None or not any(needs):
            continue
        # 1 - emo from its parts, which are small where the loss is near 1
        likely = gold_p + likeness
        level = likely if a is None or b is None else a + b * likely
        c.mul_(-1 if b is None else -b).add_(level)
        z.mul_(c)
        at_gold = -gold_p * emo if a is None or b is None else -a * rest - b * gold_p * emo
        z.scatter_(1, gold, at_gold)
        z.mul_(factor[here] if isinstance(factor, Tensor) else factor)
        if d_hidden is not None:
            d_hidden[here] = rows_times(z, weight)
        if d_weight is not None:
            d_weight.addmm_(z.T, rows)
        if d_bias is not None:
            d_bias.add_(z.sum(0))
    if gone is not None and bad is not None:
        losses.masked_fill_(gone, 0).masked_fill_(bad, nan)
    elif factor is not None:
        blame_weight(weight, d_hidden)
    return losses, gradients
