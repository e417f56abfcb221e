"""ZLPR of an efficient pointer's tables, from their parts."""

from collections.abc import Callable
from math import inf, nan
from typing import Any

import torch
from torch import Tensor

from lib import _checks, _refusals
from lib.global_pointer import _products
from lib.global_pointer._arguments import (
    Shape,
    check_mask,
    check_parts,
    check_positives,
    losses_without_cells,
    refuse_infinite,
    refuse_positives,
    upcast,
    wrong_positives,
)

__all__ = ["factorised_zlpr_loss"]


def factorised_zlpr_loss(
    pair_scores: _products.PairScores,
    start_scores: Tensor,
    end_scores: Tensor,
    positives: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""ZLPR loss of all heads of an efficient pointer, without their tables.

    For scores :math:`s_a(i, j) = A_{ij} + b_{a,i} + c_{a,j}` the sum over all cells of a head is a
    bilinear form, and one product of matrices gives it for all heads:

    .. math::
        \log \sum_{i,j} e^{s_a(i,j)} = \log\bigl(u_a^\top W v_a\bigr),
        \qquad u_a = e^{b_a},\quad W = e^{A},\quad v_a = e^{c_a}

    with W zero on cells that do not count. The loss of a head is

    .. math::
        \ell_a = \log\Bigl(1 + \sum_{(i,j) \notin \mathcal P_a} e^{s_a(i,j)}\Bigr)
               + \log\Bigl(1 + \sum_{(i,j) \in \mathcal P_a} e^{-s_a(i,j)}\Bigr)

    and its gradients are products as well. Time and memory of H tables of L² cells become those of
    one table and of H × L vectors.

    Equations: :eq:`eq:gp-factorised`, :eq:`eq:gp-factorised-loss`, :eq:`eq:gp-factorised-gradient`

    Parameters
    ----------
    pair_scores
        A, shape ``(B, L, L)``, any floating dtype. Finite or :math:`-\infty`; a
        cell at :math:`-\infty` does not count. Or what they are products of: a pair of queries and
        keys, ``(B, L, d)`` each, finite, with :math:`A_{ij} = q_i^\top k_j`. Of long texts this
        table is then not held either.
    start_scores, end_scores
        b and c, shape ``(B, H, L)``, dtype of `pair_scores`. Finite or :math:`-\infty`; at
        :math:`-\infty` the row or the column of that head does not count.
    positives
        Cells (i, j) of each head, shape ``(B, H, K, 2)`` with ``K >= 0``, int64 in ``[0, L)``,
        filled up with (-1, -1). In any order; a cell listed twice counts once.
    mask
        Bool, ``(B, L)``; True counts. The rows and columns of positions that do not count add
        nothing and get gradient exactly zero, and their scores may hold anything.
    causal
        Only the cells with i ≤ j count: spans, not links.
    reduction
        Over batch and heads: ``"none"`` gives ``(B, H)``, ``"mean"`` (of all heads, also those
        without a counting cell) and ``"sum"`` a scalar.
    validate
        Whether to look at the values, as in :func:`lib.zlpr.zlpr_loss`. Finding the listed cells
        and the rows to compute one by one still waits for the GPU where the tables are not filled.

    Returns
    -------
    Tensor
        float32 for half-precision scores, else their dtype. Gradients have the dtype of the scores.

    Raises
    ------
    TypeError
        An argument is no tensor or has a dtype of the wrong kind.
    ValueError
        Shapes or devices disagree; ``reduction`` is unknown.
        Values: a positive out of range, half filler, with i > j under `causal`, on a masked cell,
        or with a score of :math:`-\infty`; a counting score that is NaN or :math:`+\infty`; a query
        or key that counts and is not finite.

    Notes
    -----
    What keeps the numbers right:

    * Each row of A is shifted by its maximum and c by the maximum of its head, so that weights lie
      in [0, 1]. Differences and exponentials are taken in float64 and then rounded to float32.
    * The sum over the negatives is never the sum over all minus the positives. Rows that hold a
      positive of a head, about as many as there are positives, are computed cell by cell with the
      positives left out.
    * The product underflows in a row whose largest pair score and largest end score stand at
      different ends. Such a row is computed cell by cell if it can weigh in the sum of its head,
      which its maxima tell. Hardly any row of a trained or a random state does; where all do, the
      time is that of filling the tables, the memory is not.

    Where all tables together have few cells (131 072 or less), they are filled, in float64: that is
    as exact and takes less time. Queries and keys are multiplied out there, and where L ≤ d, as
    their table then takes no more space than they do.

    Derivatives of any order exist. The first costs products; for higher ones, and under
    ``torch.func``, ``make_fx`` and CUDA graph capture, the tables are filled, and there a bad value
    gives NaN instead of an error, as in :func:`lib.zlpr.zlpr_loss`. Under ``torch.compile`` the
    loss is one operator of the graph, always by products, with the same errors; its backward pass
    starts from the scores again.

    On CUDA the products obey ``torch.backends.cuda.matmul``; TensorFloat-32 costs digits.

    Source: the scores are those of kexue 8877 (2022); the factorised loss is this library's.

    Examples
    --------
    >>> pair, start, end = torch.zeros(1, 3, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)
    >>> positives = torch.tensor([[[[0, 1]], [[-1, -1]]]])
    >>> losses = factorised_zlpr_loss(pair, start, end, positives, causal=True, reduction="none")
    >>> [f"{loss:.4f}" for loss in losses[0]]  # log 6 + log 2, log 7
    ['2.4849', '1.9459']
    """
    queries, keys = _products.Pairs.of(pair_scores)
    shape = check_parts(queries, start_scores, end_scores, keys)
    check_positives(positives, shape, start_scores)
    check_mask(mask, shape, start_scores)
    _checks.check_reduction(reduction)
    compiling = torch.compiler.is_compiling()
    readable = _checks.values_readable(queries, keys, start_scores, end_scores, positives, mask)
    pair = pair_scores
    if keys is not None:
        if mask is not None:  # whatever stands there must not reach a product, not even times 0
            hidden = ~mask.unsqueeze(2)
            queries, keys = queries.masked_fill(hidden, 0), keys.masked_fill(hidden, 0)
        queries, keys = upcast(queries), upcast(keys)
        start_scores, end_scores = upcast(start_scores), upcast(end_scores)
        if readable:
            if validate:
                refuse_infinite(queries=queries, keys=keys)
            pair = _products.pairs_of(queries, keys, shape.heads)
        else:
            pair = _products.Pairs(queries, keys).table()
    arguments = (pair, start_scores, end_scores, positives, mask, causal)
    if shape.length == 0:
        if readable and validate:
            refuse_positives(positives, mask, causal, 0)
        losses = losses_without_cells(positives, queries, start_scores, end_scores)
    elif compiling:
        losses = _operator(*arguments, validate)
    elif readable:
        losses = _losses(_products.head_losses, *arguments, validate)
    else:
        losses = _products.table_losses(*arguments)
    return _checks.reduce(losses, reduction)


def _losses(
    head_losses: Callable[..., Tensor],
    pair: _products.PairScores,
    start: Tensor,
    end: Tensor,
    positives: Tensor,
    mask: Tensor | None,
    causal: bool,
    validate: bool,
) -> Tensor:
    """Loss of each head; for a bad value an error that names it, or NaN."""
    if not validate:
        _, wrong = wrong_positives(positives, mask, causal, start.shape[-1])
        kept = positives.masked_fill(wrong.unsqueeze(-1), -1)
        losses = head_losses(pair, start, end, kept, mask, causal, validate)
        return losses.masked_fill(wrong.any(-1), nan)
    refuse_positives(positives, mask, causal, start.shape[-1])
    try:
        losses = head_losses(pair, start, end, positives, mask, causal, validate)
    except ValueError:  # of filled tables, in words that the caller has never heard
        _products.refuse_scores(_products.Pairs.of(pair), start, end, mask, causal)
        _refuse_hidden_positive(pair, start, end, positives)
        raise
    if not bool(losses.detach().isfinite().all()):
        _refuse_hidden_positive(pair, start, end, positives)
    return losses


def _refuse_hidden_positive(
    pair: _products.PairScores, start: Tensor, end: Tensor, positives: Tensor
) -> None:
    """Raise if a positive has a score of minus infinity, which makes its loss infinite."""
    cells = _products.cells_of(positives, Shape(*start.shape))
    pairs = _products.Pairs.of(pair)
    scores = _products.scores_at(pairs, start, end, cells)
    if bool((scores == -inf).any()):
        at = _refusals.first_true(scores == -inf)
        batch, head, row, column = (int(index[at]) for index in cells)
        pair_score = pairs.cells(*(index[at] for index in (cells.batch, cells.row, cells.column)))
        terms = [float(x) for x in (pair_score, start[batch, head, row], end[batch, head, column])]
        raise ValueError(
            f"a positive must have a finite score, got cell ({row}, {column}) of "
            f"positives[{batch}, {head}] with {terms[0]} + {terms[1]} + {terms[2]}"
        )


@torch.library.custom_op("lib::factorised_zlpr", mutates_args=())
def _operator(
    pair: Tensor,
    start: Tensor,
    end: Tensor,
    positives: Tensor,
    mask: Tensor | None,
    causal: bool,
    validate: bool,
) -> Tensor:
    """Loss of each head, opaque to a compiler: the number of rows to open depends on the values.

    Always from products: inside an operator only a Function's gradient is recorded.
    """
    return _losses(_products.product_losses, pair, start, end, positives, mask, causal, validate)


@torch.library.custom_op("lib::factorised_zlpr_backward", mutates_args=())
def _operator_backward(
    upstream: Tensor,
    pair: Tensor,
    start: Tensor,
    end: Tensor,
    positives: Tensor,
    mask: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    _, wrong = wrong_positives(positives, mask, causal, start.shape[-1])
    positives = positives.masked_fill(wrong.unsqueeze(-1), -1)
    upstream = upstream.masked_fill(wrong.any(-1), 0)
    with torch.enable_grad():
        leaves = [part.detach().requires_grad_() for part in (pair, start, end)]
        losses = _products.product_losses(
            leaves[0], leaves[1], leaves[2], positives, mask, causal, False
        )
    pair, start, end = torch.autograd.grad(losses, leaves, upstream)
    return pair, start, end


@_operator.register_fake
def _(
    pair: Tensor,
    start: Tensor,
    end: Tensor,
    positives: Tensor,
    mask: Tensor | None,
    causal: bool,
    validate: bool,
) -> Tensor:
    return start.new_empty(start.shape[:2], dtype=_checks.compute_dtype(pair.dtype))


@_operator_backward.register_fake
def _(
    upstream: Tensor,
    pair: Tensor,
    start: Tensor,
    end: Tensor,
    positives: Tensor,
    mask: Tensor | None,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return pair.new_empty(pair.shape), start.new_empty(start.shape), end.new_empty(end.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.causal, _ = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _operator_backward(upstream, *ctx.saved_tensors, ctx.causal)
    return (*gradients, None, None, None, None)


_operator.register_autograd(_differentiate, setup_context=_remember)
