"""The loss of logits against targets in [0, 1]."""

from torch import Tensor

from lib import _checks, _refusals
from lib.soft_zlpr._kernels import reduced_soft_loss
from lib.zlpr import zlpr_loss

__all__ = ["soft_zlpr_loss"]


def soft_zlpr_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""ZLPR loss of logits against a table of degrees between 0 and 1.

    .. math::
        \ell_{soft}(s, t) = \log\Bigl(1 + \sum_i t_i e^{-s_i}\Bigr)
                           + \log\Bigl(1 + \sum_i (1 - t_i) e^{s_i}\Bigr)

    For targets of 0 and 1 this is :func:`lib.zlpr.zlpr_loss`. Given degrees strictly between, it is
    least where :math:`\sigma(2 s_i) = t_i`, and not 0 there.

    Equations: :eq:`eq:soft-loss`, :eq:`eq:soft-hard`, :eq:`eq:soft-gradient`,
    :eq:`eq:soft-target-gradient`, :eq:`eq:soft-shift`

    Parameters
    ----------
    logits
        Scores, shape ``(..., C)`` with ``C >= 1``, any floating dtype. Finite or :math:`-\infty`;
        a cell at :math:`-\infty` does not count and gets gradient zero.
    targets
        Degrees in [0, 1], shape ``(..., C)``, bool or any real dtype. Differentiable if floating.
    mask
        Bool, broadcastable to ``(..., C)``; True counts. Cells that do not count add nothing to
        the loss and get gradient exactly zero; they are not looked at, and their logits and
        targets may hold anything.
    reduction
        Over the leading dimensions: ``"none"``, ``"mean"`` (of all positions, also those without
        a counting cell; 0 of no position) or ``"sum"``.

    validate
        Whether to look at the values, as in :func:`lib.zlpr.zlpr_loss`.

    Returns
    -------
    Tensor
        Shape ``(...)`` for ``"none"``, else a scalar. float32 for half-precision logits, else the
        logits' dtype. Gradients have the dtypes of logits and of targets.

    Raises
    ------
    TypeError
        An argument is no tensor or has a dtype of the wrong kind.
    ValueError
        Shapes or devices disagree; ``reduction`` is unknown. Values, where cells count: a target
        that is NaN or outside [0, 1]; a target above 0 on a logit of :math:`-\infty`; a logit that
        is NaN or :math:`+\infty`.

    Notes
    -----
    Bad values, rows without a counting cell, derivatives of higher order and ``torch.func``: as in
    :func:`lib.zlpr.zlpr_loss`.

    Targets are not clipped, and 1 is subtracted from in the wider of the two dtypes: float64
    targets of ``1 - 1e-12`` keep their ``1e-12`` beside float32 logits. Targets of bool or integer
    dtype take the kernels of :func:`~lib.zlpr.zlpr_loss` and give equal bits; floating zeros and
    ones agree with it to rounding.

    The derivative with respect to a target, :math:`e^{-s_i}/(1+\mathsf A) - e^{s_i}/(1+\mathsf B)`,
    exceeds every dtype where a target of 0 or 1 meets a score far on its right side: to move the
    target would cost that much. It stays finite: exponents are cut at 87 (708 in float64), and
    the result at the end of the targets' own dtype (in compiled graphs and transforms, which round
    by themselves, float16 targets may still receive an infinite derivative there).

    Source: Su 2022 (kexue 9064), without its clipping.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[2.0, -1.0, -3.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    >>> targets = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.5, 0.5]], dtype=torch.float64)
    >>> [f"{loss:.4f}" for loss in soft_zlpr_loss(logits, targets, reduction="none")]
    ['1.0832', '1.8326']
    """
    _checks.check_logits(logits)
    _checks.check_labels("targets", targets, logits)
    mask = _checks.check_mask(mask, logits)
    _checks.check_reduction(reduction)
    if mask is not None:
        targets = targets.masked_fill(~mask, 0)
    readable = _checks.values_readable(logits, targets, mask)
    if targets.dtype.is_floating_point:
        rows, degrees, flat_mask = logits, targets, mask
        if logits.dim() != 2:
            classes = logits.shape[-1]
            rows, degrees = logits.reshape(-1, classes), targets.reshape(-1, classes)
            flat_mask = None if mask is None else mask.reshape(-1, classes)
        result = reduced_soft_loss(rows, degrees, flat_mask, reduction, readable=readable)
        if reduction == "none" and logits.dim() != 2:
            result = result.reshape(logits.shape[:-1])
    else:
        result = zlpr_loss(logits, targets, mask=mask, reduction=reduction, validate=False)
    if validate and readable and _checks.has_nan(result):
        _refusals.refuse_cells("targets", logits, targets, mask, soft=True)
    return result
