"""The divergences themselves: from two score vectors to one number per position."""

from math import inf

import torch
from torch import Tensor

from lib import _checks
from lib.divergence._arguments import divergence, filled
from lib.divergence._kernels import mean_regret_rows, regret_rows, sigmoid_rows, softmax_rows
from lib.divergence._regret import LARGE, regret

__all__ = ["sigmoid_divergence", "softmax_divergence", "zlpr_divergence", "zlpr_regret"]


def softmax_divergence(
    logits: Tensor,
    other: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""Symmetric Kullback-Leibler divergence of two softmax distributions.

    .. math:: D_{\mathrm{soft}}(s, u) = \sum_i (p_i - q_i)(s_i - u_i), \qquad
        p = \mathrm{softmax}(s),\quad q = \mathrm{softmax}(u)

    It belongs to a decision by the largest score. It does not change when a constant is added to
    all scores, so it cannot see a decision by sign.

    Equations: :eq:`eq:div-softmax`, :eq:`eq:div-shift`, :eq:`eq:div-softmax-product`,
    :eq:`eq:div-mask`

    Parameters
    ----------
    logits, other
        Scores of one shape ``(..., C)`` with ``C >= 1`` on one device, any floating dtypes. Tables
        are flattened first: ``scores.flatten(-2)``. Finite, or :math:`-\infty` in *both*, which
        means that the cell does not count.
    mask
        Bool, broadcastable to ``(..., C)``; True counts. Cells that do not count add nothing, get
        gradient exactly zero, and may hold anything.
    reduction
        Over the leading dimensions: ``"none"``, ``"mean"`` (of all positions) or ``"sum"``.
    validate
        Whether to look at the values. False saves a synchronisation on a GPU; a bad value then
        makes the loss of its row NaN instead of an error.

    Returns
    -------
    Tensor
        Shape ``(...)`` for ``"none"``, else a scalar. At least float32; the wider dtype of the
        two. Gradients flow to both arguments.

    Raises
    ------
    TypeError
        An argument is no tensor or has a dtype of the wrong kind.
    ValueError
        Shapes or devices disagree; ``reduction`` is unknown. Values: a counting score that is NaN
        or :math:`+\infty`, or :math:`-\infty` in one argument only, where the divergence is
        infinite. Where no Python error can depend on a value (``torch.compile``, ``torch.func``
        transforms) the position is NaN instead.

    Notes
    -----
    A position without a counting cell has divergence 0, and so has the mean of no position.
    Source: Liang et al. 2021 (R-Drop); the form without logarithms is that of Su 2022 (kexue 9039).

    Examples
    --------
    >>> s = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    >>> print(f"{softmax_divergence(s, -s):.4f} {softmax_divergence(s, s - 5):.4f}")
    2.3008 0.0000
    """
    return divergence(logits, other, mask, reduction, validate, _softmax, softmax_rows)


def sigmoid_divergence(
    logits: Tensor,
    other: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""Symmetric Kullback-Leibler divergence of independent yes/no decisions, summed over cells.

    .. math:: D_\sigma(s, u) = \sum_i \bigl(\sigma(s_i) - \sigma(u_i)\bigr)(s_i - u_i)

    Computed cell by cell as :math:`d\,(1 - e^{-d})\,\sigma(h)\,\sigma(-l)` with *h* the larger and
    *l* the smaller score and :math:`d = h - l`, in which no difference of sigmoids is left.

    Equations: :eq:`eq:div-sigmoid`, :eq:`eq:div-bernoulli`, :eq:`eq:div-sigmoid-product`,
    :eq:`eq:div-sigmoid-gradient`

    Parameters
    ----------
    logits, other, mask, reduction, validate
        As in :func:`softmax_divergence`.

    Returns
    -------
    Tensor
        As :func:`softmax_divergence`. The value grows with the number of cells.

    Raises
    ------
    TypeError, ValueError
        As :func:`softmax_divergence`.

    Notes
    -----
    Source: Su 2022 (kexue 9039).

    Examples
    --------
    >>> s = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    >>> print(f"{sigmoid_divergence(s, -s):.4f} {sigmoid_divergence(s, s - 5):.4f}")
    1.8485 7.3642
    """
    return divergence(logits, other, mask, reduction, validate, _sigmoid, sigmoid_rows)


def zlpr_regret(
    logits: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""Excess ZLPR loss of scores over the scores that the soft labels ask for.

    .. math:: D_Z(s \,\|\, u) = \log \mathbb E_\omega e^{\Delta}
        + \log \mathbb E_\omega e^{-\Delta}, \qquad \Delta_i = u_i - s_i,\quad \Delta_0 = 0

    with :math:`\omega_i \propto 1/(2\cosh u_i)` for the cells and :math:`\omega_0 \propto 1` for
    the null class. It is the ZLPR loss of ``logits`` under soft labels :math:`\sigma(2u)`, minus
    the least value that this loss can have, which it has at *u*.

    Equations: :eq:`eq:div-zlpr`, :eq:`eq:div-zlpr-cgf`, :eq:`eq:div-zlpr-stable`,
    :eq:`eq:div-zlpr-gradient`, :eq:`eq:div-zlpr-mass`

    Parameters
    ----------
    logits
        The scores *s* that are judged.
    target
        The scores *u* that are taken for right. Detach them where no gradient should flow.
    mask, reduction, validate
        As in :func:`softmax_divergence`, with the same rules for the scores.

    Returns
    -------
    Tensor
        As :func:`softmax_divergence`. At least 0; not symmetric. The absolute values of the
        gradient with respect to ``logits`` sum to less than 2 in each position.

    Raises
    ------
    TypeError, ValueError
        As :func:`softmax_divergence`; also for :math:`-\infty` in ``target`` only, although the
        regret is finite there.

    Notes
    -----
    Source: ours; the soft-label loss is that of Su 2022 (kexue 9064).

    Examples
    --------
    >>> s = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    >>> print(f"{zlpr_regret(s, s + 1):.4f} {zlpr_regret(s + 1, s):.4f}")
    0.2401 0.2392
    """
    return divergence(logits, target, mask, reduction, validate, regret, regret_rows, name="target")


def zlpr_divergence(
    logits: Tensor,
    other: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""Mean of the two regrets: the symmetric divergence that belongs to ZLPR.

    .. math:: \bar D_Z(s, u) = \tfrac12 \bigl(D_Z(s\,\|\,u) + D_Z(u\,\|\,s)\bigr)

    The mean, not the sum, because :math:`D_Z` has no factor one half in second order, where one
    directed Kullback-Leibler divergence does: so all three divergences have one scale.

    Equations: :eq:`eq:div-zlpr-symmetric`, :eq:`eq:div-zlpr-second`

    Parameters
    ----------
    logits, other, mask, reduction, validate
        As in :func:`softmax_divergence`.

    Returns
    -------
    Tensor
        As :func:`softmax_divergence`. The value is at most the range of the changes (0 included),
        for every number of cells; it is not convex in ``logits``. The absolute values of the
        gradient with respect to either argument sum to less than 4 in each position.

    Raises
    ------
    TypeError, ValueError
        As :func:`softmax_divergence`.

    Notes
    -----
    Source: ours.

    Examples
    --------
    >>> s = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    >>> print(f"{zlpr_divergence(s, -s):.4f} {zlpr_divergence(s, s - 5):.4f}")
    1.2123 2.5974
    """
    return divergence(logits, other, mask, reduction, validate, _mean_regret, mean_regret_rows)


def _softmax(s: Tensor, u: Tensor, gone: Tensor | None) -> Tensor:
    """Divergence of each position; cells that are gone hold 0 in both arguments."""
    # A position without cells: any finite equal scores will do, the divergence is 0.
    rivals = None if gone is None else gone & ~gone.all(-1, keepdim=True)
    log_p = filled(s, rivals, -inf).log_softmax(-1)
    log_q = filled(u, rivals, -inf).log_softmax(-1)
    change = s - u
    # log E_q exp(change), measured from the mean change: where one score holds all the weight, its
    # own change is then 0 and not the rounding of a difference.
    below = change - (log_q.exp() * change).sum(-1, keepdim=True).detach()
    below = filled(below, gone, 0)
    tame = below.detach().amax(-1, keepdim=True) <= LARGE
    by_log1p = (log_q.exp() * below.clamp(max=LARGE).expm1()).sum(-1, keepdim=True).log1p()
    by_logsumexp = (log_q + below).logsumexp(-1, keepdim=True)
    ratio = below - torch.where(tame, by_log1p, by_logsumexp)  # log p - log q
    up = ratio >= 0
    size = torch.where(up, ratio, -ratio)
    larger = torch.where(up, log_p, log_q)
    cells = larger.exp() * -(-size).expm1() * size
    return filled(cells, gone, 0).sum(-1)


def _sigmoid(s: Tensor, u: Tensor, gone: Tensor | None) -> Tensor:
    """As :func:`_softmax`."""
    first = s >= u
    high, low = torch.where(first, s, u), torch.where(first, u, s)
    gap = high - low
    cells = gap * -(-gap).expm1() * high.sigmoid() * (-low).sigmoid()
    return filled(cells, gone, 0).sum(-1)


def _mean_regret(s: Tensor, u: Tensor, gone: Tensor | None) -> Tensor:
    """As :func:`_softmax`."""
    return (regret(s, u, gone) + regret(u, s, gone)) / 2
