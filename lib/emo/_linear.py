"""EMO from hidden states and a head's weight, a few tokens at a time.

Per chunk of tokens: logits, exponentials in place, costs, and the gradients of both arguments, so
that nothing of size tokens × vocabulary outlives a chunk. Four matrix products per chunk instead
of the six of the published form.
"""

from collections.abc import Callable, Iterator
from math import inf, nan
from typing import Any

import torch
from torch import Tensor

from lib import _checks, _refusals
from lib._rows import LOG2_E
from lib.emo._embeddings import Directions, unit_rows
from lib.emo._mixture import Mixture
from lib.emo._rows import by_rows, finish, mix

__all__ = ["linear_losses", "require_finite"]

_CHUNK_CELLS = 1 << 23  # logits of a chunk: 32 MiB in float32, and as much again for the costs
_LEAST_TOKENS = 64  # fewer rows would leave a matrix product waiting for memory
_BLOCK_ROWS = 1 << 13  # rows of a half-precision table converted at a time


def linear_losses(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    found: Directions,
    counts: Tensor,
    bad: Tensor,
    mixture: Mixture | None,
    reduction: str,
) -> Tensor:
    """Losses ``(N,)`` for ``"none"``, else their scalar; NaN where a row is bad."""
    if not _checks.values_readable(hidden, weight, targets):
        return _formula(hidden, weight, targets, found, counts, bad, mixture, reduction)
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    with _checks.no_autocast(hidden):  # the chunks choose their precision themselves
        return _chunked(
            hidden.to(dtype), weight.to(dtype), targets, counts, found, mixture, reduction,
            torch.is_grad_enabled(),
        )  # fmt: skip


def _formula(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    found: Directions,
    counts: Tensor,
    bad: Tensor,
    mixture: Mixture | None,
    reduction: str,
) -> Tensor:
    """Compute the same by plain operations, holding all logits: for transforms."""
    dtype = _checks.compute_dtype(torch.promote_types(hidden.dtype, weight.dtype))
    with _checks.no_autocast(hidden):
        logits = hidden.to(dtype) @ weight.to(dtype).T
        terms, bad = by_rows(logits, targets, unit_rows(found, dtype), counts, bad)
    losses = finish(mix(terms.cross_entropy, terms.emo(), terms.rest, mixture), counts, bad)
    return _checks.reduce(losses, reduction, counts)


class _Chunked(torch.autograd.Function):
    """Losses chunk by chunk; for a scalar result the gradients are formed on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        counts: Tensor,
        found: Directions,
        mixture: Mixture | None,
        reduction: str,
        recording: bool,
    ) -> Tensor:
        needs = tuple(recording and need for need in ctx.needs_input_grad[:2])
        ctx.found, ctx.mixture, ctx.reduction, ctx.gradients = found, mixture, reduction, None
        ctx.save_for_backward(hidden, weight, targets, counts)
        # One upstream number for all tokens is known to be a factor before it is known.
        share = None
        if reduction != "none" and any(needs):
            share = 1 / max(1, int(counts.sum())) if reduction == "mean" else 1.0
        losses, ctx.gradients = _pass(hidden, weight, targets, counts, found, mixture, share, needs)
        return _checks.reduce(losses, reduction, counts)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, counts = ctx.saved_tensors
        rest = (None,) * 6
        needs = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled() or not _checks.values_readable(upstream):
            return (*_by_autograd(ctx, hidden, weight, targets, counts, upstream), *rest)
        # Handed over once: autograd may keep these very tensors as the leaves' gradients.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            factor = upstream / counts.sum().clamp(min=1) if ctx.reduction == "mean" else upstream
            factor = factor.expand(targets.shape)
            _, gradients = _pass(
                hidden, weight, targets, counts, ctx.found, ctx.mixture, factor, needs
            )
        elif float(upstream) != 1.0:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(upstream)
        return (*gradients, *rest)


_chunked: Callable[..., Tensor] = _Chunked.apply  # Function.apply has no type of its own


def _pass(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    counts: Tensor,
    found: Directions,
    mixture: Mixture | None,
    factor: Tensor | float | None,
    needs: tuple[bool, ...],
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None] | None]:
    """Losses of all tokens and, with a ``factor``, the gradients of their weighted sum."""
    classes = weight.shape[0]
    dtype = _checks.compute_dtype(hidden.dtype)
    which = counts.nonzero().squeeze(1)
    losses = torch.zeros(targets.shape, dtype=dtype, device=hidden.device)
    step = max(1, min(which.numel(), max(_LEAST_TOKENS, _CHUNK_CELLS // classes)))
    cells = torch.empty((step, classes), dtype=dtype, device=hidden.device)
    costs = torch.empty_like(cells)
    d_hidden = d_weight = None
    if factor is not None and needs[0]:
        d_hidden = torch.zeros_like(hidden)
    if factor is not None and needs[1]:
        # Sums of many chunks need more digits than a half-precision weight has.
        d_weight = torch.zeros(weight.shape, dtype=dtype, device=weight.device)
    for start in range(0, which.numel(), step):
        here = which[start : start + step]
        rows, z, c = hidden[here].to(dtype), cells[: len(here)], costs[: len(here)]
        gold = targets[here].unsqueeze(1)

        # 1 logits, and exponentials below the largest; exp2 because exp is slow at underflow
        _products(rows, weight, z)
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
        _products(found.of(targets[here], dtype), found.table, c)
        if found.scale is not None:
            c.mul_(found.scale.to(dtype))
        likeness = torch.bmm(z.unsqueeze(1), c.unsqueeze(2)).squeeze(2)
        emo = (rest - likeness).clamp_(min=0)
        a = b = None
        if mixture is None:
            losses[here] = emo.squeeze(1)
        else:
            losses[here] = mix(cross_entropy, emo, rest, mixture).squeeze(1)
            a, b = mixture.weights(cross_entropy, emo, rest)
        # Such a target has a finite mean cost, but nothing could ever raise it; the caller reports.
        losses[here] = losses[here].masked_fill((gold_z == -inf).squeeze(1), nan)

        # 3 gradients: p (a + b (cost - mean cost)), and the target's own cell
        if factor is None or (d_hidden is None and d_weight is None):
            continue
        # 1 - emo from its parts, which are small where the loss is near 1
        likely = gold_p + likeness
        level = likely if a is None or b is None else a + b * likely
        c.mul_(-1 if b is None else -b).add_(level)
        z.mul_(c)
        at_gold = -gold_p * emo if a is None or b is None else -a * rest - b * gold_p * emo
        z.scatter_(1, gold, at_gold)
        z.mul_(factor[here].unsqueeze(1).to(dtype) if isinstance(factor, Tensor) else factor)
        if d_hidden is not None:
            d_hidden[here] = _backward_product(z, weight).to(hidden.dtype)
        if d_weight is not None:
            d_weight.addmm_(z.T, rows)
    if factor is None:
        return losses, None
    _blame_weight(weight, d_hidden)
    return losses, (d_hidden, None if d_weight is None else d_weight.to(weight.dtype))


def require_finite(name: str, table: Tensor, rows: Tensor | None = None) -> None:
    """Raise for the first entry that is not finite, in the rows marked by ``rows`` if given."""
    wrong = ~table.isfinite()
    if rows is not None:
        wrong &= rows.unsqueeze(-1)
    if wrong.any():
        at = _refusals.first_true(wrong)
        place = ", ".join(map(str, at))
        raise ValueError(f"{name} must be finite, got {table[at].item()} at {name}[{place}]")


def _blame_weight(weight: Tensor, d_hidden: Tensor | None) -> None:
    """Raise if a weight that is not finite has spoilt the gradient of the states.

    A logit of minus infinity leaves the loss finite, but its probability 0 times the weight's entry
    is NaN. Looking at the states' gradient first is cheap: there are fewer states than weights.
    """
    if d_hidden is not None and not bool(d_hidden.isfinite().all()):
        require_finite("weight", weight)


def _blocks(table: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows in the dtype to compute in; the table itself if it has that dtype."""
    step = table.shape[0] if table.dtype == dtype else _BLOCK_ROWS
    for start in range(0, table.shape[0], step):
        part = slice(start, start + step)
        yield part, table[part].to(dtype)


def _products(rows: Tensor, table: Tensor, out: Tensor) -> None:
    """``rows @ table.T`` into ``out``, in the dtype of ``rows``."""
    for part, block in _blocks(table, rows.dtype):
        if block.shape[0] == table.shape[0]:
            torch.mm(rows, block.T, out=out)
        else:
            out[:, part] = rows @ block.T


def _backward_product(cells: Tensor, weight: Tensor) -> Tensor:
    """``cells @ weight``, in the dtype of ``cells``."""
    total = cells.new_zeros((cells.shape[0], weight.shape[1]))
    for part, block in _blocks(weight, cells.dtype):
        total.addmm_(cells[:, part], block)
    return total


def _by_autograd(
    ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, counts: Tensor, upstream: Tensor
) -> list[Tensor | None]:
    """Gradients by plain operations; differentiable again where gradients are recorded."""
    again = torch.is_grad_enabled()
    needs = ctx.needs_input_grad[:2]
    with torch.enable_grad():
        loss = _formula(
            hidden, weight, targets, ctx.found, counts, torch.zeros_like(counts), ctx.mixture,
            ctx.reduction,
        )  # fmt: skip
        wanted = [leaf for leaf, need in zip((hidden, weight), needs, strict=True) if need]
        found = iter(torch.autograd.grad(loss, wanted, upstream, create_graph=again))
    gradients = [next(found) if need else None for need in needs]
    if _checks.values_readable(upstream):
        _blame_weight(weight, gradients[0])
    return gradients
