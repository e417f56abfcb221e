"""ZLPR of a standard pointer's tables, from queries and keys."""

from collections.abc import Callable, Iterator
from math import inf, nan, prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib import _checks, _refusals
from lib._rows import LOG2_E, by_autograd, finite, needs_formula
from lib.global_pointer._arguments import (
    Shape,
    check_mask,
    check_positives,
    kind,
    losses_without_cells,
    refuse_infinite,
    refuse_positives,
    upcast,
    wrong_positives,
)
from lib.global_pointer._products import cells_of, log1p_sums, losses_of_tables

__all__ = ["streaming_zlpr_loss"]

_TILE_CELLS = 1 << 17  # cells of the scratch buffer: 512 KiB in float32, within a core's cache


def streaming_zlpr_loss(
    queries: Tensor,
    keys: Tensor,
    positives: Tensor,
    *,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    causal: bool = False,
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""ZLPR loss of all heads of a standard pointer, without their tables.

    The scores are products of queries and keys of each head's own,

    .. math:: s_a(i, j) = q_{a,i}^\top k_{a,j} + \beta_a,

    so there is no way around computing each of them; but only one tile of a table is held at a
    time. Its largest score :math:`m'` and its sum :math:`z'` of exponentials below that join those
    of the tiles before it,

    .. math:: (m, z),\ (m', z') \ \to\ \bigl(M,\ z e^{m - M} + z' e^{m' - M}\bigr),
        \qquad M = \max(m, m'),

    and the backward pass computes each tile again.

    Equations: :eq:`eq:gp-score`, :eq:`eq:gp-streaming`

    Parameters
    ----------
    queries, keys
        Shape ``(B, H, L, d)``, any floating dtype, finite. Rotated and scaled
        already: :func:`apply_rope`, and :math:`1/\sqrt d` into the queries.
    positives
        As in :func:`factorised_zlpr_loss`, ``(B, H, K, 2)``.
    bias
        β, shape ``(H,)``, dtype of the queries, finite. None: 0.
    mask, causal, reduction
        As in :func:`factorised_zlpr_loss`.
    validate
        Whether to look at the values, as in :func:`lib.zlpr.zlpr_loss`. Finding the listed cells
        and the tiles that hold them still waits for the GPU where the tables are not filled.

    Returns
    -------
    Tensor
        float32 for half-precision queries, else their dtype; ``(B, H)`` or a scalar.

    Raises
    ------
    TypeError
        An argument is no tensor or has a dtype of the wrong kind.
    ValueError
        Shapes or devices disagree; ``reduction`` is unknown.
        Values: a positive out of range, half filler, with i > j under `causal`, or on a masked
        cell; a query, key or bias that counts and is not finite; a product of theirs that counts
        and overflows.

    Notes
    -----
    Positives are left out of the sum over the negatives, not taken away from it. Tables that are
    no larger than the queries (L ≤ d), or that all fit into one tile, are filled: tiles would save
    no memory and cost the second computation of the scores.

    Derivatives of any order exist. The first is computed by tiles; for higher ones, and wherever
    values cannot be read (``torch.compile``, ``torch.func``, ``make_fx``, CUDA graph capture), the
    tables are filled, and a bad value gives NaN instead of an error, as in
    :func:`lib.zlpr.zlpr_loss`.

    Source: Su 2021 (kexue 8373) for the scores; the stream is textbook.

    Examples
    --------
    >>> queries = keys = torch.zeros(1, 1, 3, 2)
    >>> positives = torch.tensor([[[[0, 1]]]])
    >>> f"{streaming_zlpr_loss(queries, keys, positives, causal=True):.4f}"  # log 6 + log 2
    '2.4849'
    """
    shape = _check(queries, keys, bias)
    check_positives(positives, shape, queries)
    check_mask(mask, shape, queries)
    _checks.check_reduction(reduction)
    if mask is not None:  # whatever stands there must not reach a product, not even times 0
        hidden = ~mask[:, None, :, None]
        queries, keys = queries.masked_fill(hidden, 0), keys.masked_fill(hidden, 0)
    queries, keys = upcast(queries), upcast(keys)
    bias = queries.new_zeros(shape.heads) if bias is None else upcast(bias)
    arguments = (queries, keys, bias, positives, mask, causal)
    readable = _checks.values_readable(queries, keys, bias, positives, mask)
    if readable and validate:
        refuse_positives(positives, mask, causal, shape.length)
        refuse_infinite(queries=queries, keys=keys, bias=bias)
    if shape.length == 0:
        losses = losses_without_cells(positives, queries, keys, bias)
    elif not readable:
        losses = _table_losses(*arguments)
    elif validate:
        try:
            losses = _head_losses(*arguments)
        except ValueError:  # of filled tables, in words that the caller has never heard
            _refuse_products(*arguments)
            raise
        if not bool(losses.detach().isfinite().all()):
            _refuse_products(*arguments)
    else:
        _, wrong = wrong_positives(positives, mask, causal, shape.length)
        positives = positives.masked_fill(wrong.unsqueeze(-1), -1)
        losses = _head_losses(queries, keys, bias, positives, mask, causal, validate)
        losses = losses.masked_fill(wrong.any(-1), nan)
    return _checks.reduce(losses, reduction)


def _head_losses(
    queries: Tensor,
    keys: Tensor,
    bias: Tensor,
    positives: Tensor,
    mask: Tensor | None,
    causal: bool,
    validate: bool = True,
) -> Tensor:
    """Loss of each head, by tiles where they save memory."""
    if _worth_streaming(queries):
        return _streaming(queries, keys, bias, positives, mask, causal)
    return _table_losses(queries, keys, bias, positives, mask, causal, validate)


def _refuse_products(
    queries: Tensor,
    keys: Tensor,
    bias: Tensor,
    positives: Tensor,
    mask: Tensor | None,
    causal: bool,
) -> None:
    """Raise if a score that counts is NaN or infinite, or -inf at a positive. Reads values.

    Finite queries and keys can give these: products overflow. A negative at -inf adds nothing, as
    it should. One tile at a time is held, as on the way to the loss.
    """
    cells = cells_of(positives, Shape(*queries.shape[:3]))
    table = cells.batch * queries.shape[1] + cells.head
    for tile, scores in _tiles(queries, keys, bias, mask, causal, table, cells.row):
        bad = ~(scores < inf)
        here = _places(tile, table, cells.row, cells.column)
        bad[here] |= scores[here] == -inf
        if bool(bad.any()):
            number, row, column = at = _refusals.first_true(bad)
            batch, head = divmod(tile.tables.start + number, queries.shape[1])
            cell = (batch, head, tile.rows.start + row, tile.left + column)
            raise ValueError(
                "queries and keys must have finite products where they count, got "
                f"{scores[at].item()} at {_refusals.place('(queries @ keys.mT + bias)', cell)}"
            )


def _worth_streaming(queries: Tensor) -> bool:
    """Whether tiles save memory: the tables fit neither into one nor into the queries' space."""
    batch, heads, length, size = queries.shape
    return length > size and batch * heads * length**2 > _TILE_CELLS


def _check(queries: Tensor, keys: Tensor, bias: Tensor | None) -> Shape:
    for name, scores in (("queries", queries), ("keys", keys), ("bias", bias)):
        if name == "bias" and scores is None:
            continue
        if not isinstance(scores, Tensor) or not scores.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {kind(scores)}")
        if scores.dtype != queries.dtype:
            raise TypeError(
                f"{name} must share one dtype, expected {queries.dtype}, got {scores.dtype}"
            )
        if scores.device != queries.device:
            raise ValueError(
                f"{name} must be on the same device, expected {queries.device}, got {scores.device}"
            )
    if queries.dim() != 4:
        raise ValueError(f"queries must have shape (B, H, L, d), got {tuple(queries.shape)}")
    if keys.shape != queries.shape:
        raise ValueError(f"keys must have shape {tuple(queries.shape)}, got {tuple(keys.shape)}")
    if bias is not None and tuple(bias.shape) != (queries.shape[1],):
        raise ValueError(f"bias must have shape ({queries.shape[1]},), got {tuple(bias.shape)}")
    return Shape(*queries.shape[:3])


def _table_losses(
    queries: Tensor,
    keys: Tensor,
    bias: Tensor,
    positives: Tensor,
    mask: Tensor | None,
    causal: bool,
    validate: bool = False,
) -> Tensor:
    """Loss of each head from filled tables, by plain operations."""
    with _checks.no_autocast(queries):
        scores = queries @ keys.mT + bias[:, None, None]
    return losses_of_tables(scores, positives, mask, causal, validate)


class _Tile(NamedTuple):
    """Rows of tables, from a column on: all rows of several tables, or several rows of one."""

    tables: slice
    rows: slice
    left: int
    positives: slice


class _Streaming(torch.autograd.Function):
    """Loss of each head, one tile of scores at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        bias: Tensor,
        positives: Tensor,
        mask: Tensor | None,
        causal: bool,
    ) -> Tensor:
        shape = Shape(*queries.shape[:3])
        cells = cells_of(positives, shape)
        table = cells.batch * shape.heads + cells.head
        tops = queries.new_full((shape.batch * shape.heads,), -inf)
        totals = torch.zeros_like(tops)
        scores = queries.new_empty(len(table))
        for tile, part in _tiles(queries, keys, bias, mask, causal, table, cells.row):
            here = _places(tile, table, cells.row, cells.column)
            scores[tile.positives] = part[here]
            part[here] = -inf
            top = torch.maximum(tops[tile.tables], part.amax((1, 2)))
            shift = finite(top)
            scale = ((tops[tile.tables] - shift) * LOG2_E).exp2_()
            part.sub_(shift[:, None, None]).mul_(LOG2_E).exp2_()
            totals[tile.tables] = totals[tile.tables] * scale + part.sum((1, 2))
            tops[tile.tables] = top
        shifts = finite(tops)
        negatives = totals.to(torch.float64).log().add_(shifts)
        above = torch.logaddexp(negatives, torch.zeros_like(negatives))
        factors = (shifts - above).exp_().to(tops.dtype)
        # A positive at infinity would add nothing and go unnoticed, which filled tables refuse.
        minus = -scores.to(torch.float64).masked_fill(scores == inf, nan)
        below = log1p_sums(minus, table, len(above))
        pulls = (minus - below[table]).exp_().to(tops.dtype)
        places = (table, cells.row, cells.column)
        ctx.save_for_backward(queries, keys, bias, positives, mask, shifts, factors, pulls, *places)
        ctx.causal = causal
        return (above + below).to(tops.dtype).view(shape.batch, shape.heads)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, bias, positives, mask, shifts, factors, pulls, *places = ctx.saved_tensors
        table, row, column = places
        if needs_formula(upstream):
            again = by_autograd(
                lambda q, k, b: _table_losses(q, k, b, positives, mask, ctx.causal),
                (queries, keys, bias), ctx.needs_input_grad[:3], upstream,
            )  # fmt: skip
            return (*again, None, None, None)
        flat = upstream.reshape(-1)
        pulls, factors = pulls * -flat[table], factors * flat
        to_queries = torch.zeros_like(queries, memory_format=torch.contiguous_format)
        to_keys = torch.zeros_like(to_queries)
        to_bias = torch.zeros_like(flat)
        by_table = [x.flatten(0, 1) for x in (queries, keys, to_queries, to_keys)]
        for tile, part in _tiles(queries, keys, bias, mask, ctx.causal, table, row):
            part.sub_(shifts[tile.tables, None, None]).mul_(LOG2_E).exp2_()
            part.mul_(factors[tile.tables, None, None])
            part[_places(tile, table, row, column)] = pulls[tile.positives]
            starts, ends = (tile.tables, tile.rows), (tile.tables, slice(tile.left, None))
            with _checks.no_autocast(queries):
                torch.bmm(part, by_table[1][ends], out=by_table[2][starts])
                by_table[3][ends].baddbmm_(part.mT, by_table[0][starts])
            to_bias[tile.tables] += part.sum((1, 2))
        return to_queries, to_keys, to_bias.view_as(upstream).sum(0), None, None, None


# Function.apply has no type of its own in PyTorch.
_streaming: Callable[..., Tensor] = _Streaming.apply


def _tiles(
    queries: Tensor,
    keys: Tensor,
    bias: Tensor,
    mask: Tensor | None,
    causal: bool,
    table: Tensor,
    row: Tensor,
) -> Iterator[tuple[_Tile, Tensor]]:
    """Tiles with their scores, -inf on cells that do not count, in a buffer that is used again.

    Under causal a tile begins at the column of its first row: those before it are not computed.
    """
    batch, heads, length, _ = queries.shape
    count = batch * heads
    tables = max(1, min(count, _TILE_CELLS // length**2))
    high = length if tables > 1 else max(1, min(length, _TILE_CELLS // length))
    places = [(t, r) for t in range(0, count, tables) for r in range(0, length, high)]
    edges = torch.tensor([t * length + r for t, r in places] + [count * length], device="cpu")
    found = torch.searchsorted((table * length + row).cpu(), edges).tolist()
    buffer = queries.new_empty(tables * high * length)
    flat_queries, flat_keys = queries.flatten(0, 1), keys.flatten(0, 1)
    by_row = bias.repeat(batch).view(-1, 1, 1)
    by_column = None
    if mask is not None:  # one pass for rows and one for columns, where a mask of cells takes three
        hidden = torch.zeros_like(mask, dtype=bias.dtype).masked_fill_(~mask, -inf)
        hidden = hidden.repeat_interleave(heads, 0)
        by_row, by_column = by_row + hidden.unsqueeze(2), hidden.unsqueeze(1)
    below = queries.new_ones((high, high), dtype=torch.bool).tril_(-1)  # no larger than a tile
    for (first, top), start, stop in zip(places, found[:-1], found[1:], strict=True):
        some = slice(first, min(first + tables, count))
        here = slice(top, min(top + high, length))
        left, rows = (top if causal else 0), here.stop - top
        of_tile = (some.stop - first, rows, length - left)
        part = buffer[: prod(of_tile)].view(of_tile)
        with _checks.no_autocast(queries):
            torch.bmm(flat_queries[some, here], flat_keys[some, left:].mT, out=part)
        part.add_(by_row[some] if by_column is None else by_row[some, here])
        if by_column is not None:
            part.add_(by_column[some, :, left:])
        if causal:
            part[:, :, :rows].masked_fill_(below[:rows, :rows], -inf)
        yield _Tile(some, here, left, slice(start, stop)), part


def _places(
    tile: _Tile, table: Tensor, row: Tensor, column: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Where the positives of a tile stand in it."""
    some = tile.positives
    return (
        table[some] - tile.tables.start,
        row[some] - tile.rows.start,
        column[some] - tile.left,
    )
