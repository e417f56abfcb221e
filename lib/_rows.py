"""What the row kernels of all losses share.

A kernel sends rows through a scratch buffer that fits the cache, in place, and computes the
exponentials again in its backward pass instead of storing one per cell. It works beside a *formula*
in plain operations, which serves wherever a kernel cannot: while a graph is traced, inside
``torch.func`` transforms, and where a gradient is itself to be differentiated.
"""

from collections.abc import Callable, Iterator, Sequence
from math import e, inf, log2

import torch
from torch import Tensor

from lib import _checks

__all__ = [
    "CHUNK_CELLS",
    "LOG2_E",
    "NARROW",
    "Spare",
    "by_autograd",
    "chunks",
    "combine",
    "counting_if_narrow",
    "finite",
    "load",
    "needs_formula",
    "numbers",
]

CHUNK_CELLS = 1 << 17  # cells of the scratch buffer: 512 KiB in float32, within a core's cache
LOG2_E = log2(e)
"""PyTorch's exp is many times slower than its exp2 on a CPU where the result underflows."""
NARROW = 32.0
"""Scores up to here need no shift: even the inverse of a million terms of exp(32), times a small
upstream gradient, is far from the end of float32."""


def chunks(
    rows: Tensor, dtype: torch.dtype, into: Tensor | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Parts of the rows, each with a buffer of its shape: of ``into`` itself if that has the dtype.

    On a GPU there is one part: many small kernels would cost more than the memory they save. No
    rows are one part too.
    """
    count, classes = rows.shape
    step = max(1, count if rows.is_cuda else min(count, CHUNK_CELLS // classes))
    fits = into is not None and into.dtype == dtype
    scratch = rows.new_empty((0 if fits else step, classes), dtype=dtype)
    for start in range(0, max(count, 1), step):
        part = slice(start, min(start + step, count))
        yield part, into[part] if into is not None and fits else scratch[: part.stop - start]


class Spare:
    """Buffers of the size of the first, largest part, made when they are first asked for."""

    def __init__(self) -> None:
        self._buffers: dict[int, Tensor] = {}

    def like(self, cells: Tensor, which: int) -> Tensor:
        """Return buffer number ``which``, cut to the shape of ``cells``."""
        if which not in self._buffers:
            self._buffers[which] = torch.empty_like(cells)
        return self._buffers[which][: len(cells)]


def load(cells: Tensor, rows: Tensor, mask: Tensor | None, part: slice) -> Tensor:
    """Copy rows into the buffer, minus infinity where they do not count."""
    if mask is None:
        return cells.copy_(rows)
    nothing = cells.new_tensor(-inf)
    return torch.where(mask[part], rows.to(cells.dtype), nothing, out=cells)


def counting_if_narrow(rows: Tensor, mask: Tensor | None) -> tuple[bool, Tensor | None]:
    """Whether all scores that count lie within ``NARROW``, and which those are, None for all.

    A score of minus infinity does not count. The look at the scores is one cheap pass; where some
    do not count it takes copies, and is left out (the answer is no) beyond the size of a buffer. So
    it is on a GPU, which would have to be waited for.
    """
    if rows.is_cuda or rows.numel() == 0:
        return False, mask
    rows = rows.detach()
    small = rows.numel() <= CHUNK_CELLS
    if mask is not None:
        if not small:
            return False, mask
        rows = rows.masked_fill(~mask, 0)
    low, high = map(float, rows.aminmax())
    if low == -inf and high <= NARROW and small:
        scored = rows != -inf
        mask = scored if mask is None else mask & scored
        low = float(rows.masked_fill(~scored, 0).amin())
    return low >= -NARROW and high <= NARROW, mask


def numbers(table: Tensor, cells: Tensor) -> Tensor:
    """Table as it is if it has the dtype of ``cells``, else copied there.

    Read as bytes, PyTorch converts bool four times as fast.
    """
    if table.dtype == cells.dtype:
        return table
    return cells.copy_(table.view(torch.uint8) if table.dtype == torch.bool else table)


def finite(top: Tensor) -> Tensor:
    """Largest terms, 0 where there is none: infinity minus infinity must not arise."""
    return top.masked_fill(top == -inf, 0)


def combine(shift: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """From ``total = sum(exp(terms - shift))``: a group's loss, and its weights' factor.

    The group has the null class of score zero beside its terms. The loss is
    ``log(1 + exp(shift) * total)``. The gradient with respect to a term is
    ``exp(term - shift) * factor``.
    """
    above = shift.clamp(min=0)
    scale = (shift - above).exp()
    # The null class has exp(-above), which is 1 exactly where the other terms may be tiny.
    rest = torch.addcmul(torch.expm1(-above), total, scale)
    return above + rest.log1p(), scale / (1 + rest)


def needs_formula(upstream: Tensor) -> bool:
    """Whether a backward pass needs plain operations: to be differentiated itself, or batched."""
    return torch.is_grad_enabled() or not _checks.values_readable(upstream)


def by_autograd(
    formula: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    upstream: Tensor,
) -> list[Tensor | None]:
    """Gradients of ``formula(*inputs)`` by plain operations, None where none is needed.

    Differentiable again where gradients are recorded.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, because one input may be made from another (soft labels from the scores, say): the
        # way from one to the other belongs to whoever made it, and would be counted twice.
        views = [None if given is None else given.view_as(given) for given in inputs]
        wanted = [
            view for view, need in zip(views, needed, strict=True) if need and view is not None
        ]
        found = iter(torch.autograd.grad(formula(*views), wanted, upstream, create_graph=again))
    return [next(found) if need else None for need in needed]
