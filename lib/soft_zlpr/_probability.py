"""Read probabilities from scores: one factor, and its fit on held-out data."""

from math import inf, isfinite

import torch
from torch import Tensor

from lib import _checks, _refusals

__all__ = ["fit_temperature", "zlpr_probability"]


def zlpr_probability(logits: Tensor, *, temperature: float = 2.0) -> Tensor:
    r"""Probabilities :math:`\sigma(\gamma s_i)` of labels from their scores.

    :math:`\gamma = 2` is exact for scores that minimise the soft loss of given degrees. For a model
    trained on hard labels no factor is right beforehand: fit it with :func:`fit_temperature`.

    Equations: :eq:`eq:soft-minimiser`, :eq:`eq:soft-fit`

    Parameters
    ----------
    logits
        Scores, any shape, any floating dtype.
    temperature
        The factor :math:`\gamma`, above 0. It *multiplies*: it is the log-odds per unit of score,
        and the reciprocal of what the literature on calibration divides by.

    Returns
    -------
    Tensor
        Shape and dtype of the logits. :math:`-\infty` gives 0.

    Examples
    --------
    >>> import torch
    >>> zlpr_probability(torch.tensor([0.0, 0.5, -torch.inf])).tolist()
    [0.5, 0.7310585975646973, 0.0]
    """
    if not (temperature > 0 and isfinite(temperature)):
        raise ValueError(f"temperature must be a positive finite number, got {temperature}")
    if not logits.dtype.is_floating_point:
        raise TypeError(f"logits must have a floating-point dtype, got {logits.dtype}")
    return torch.sigmoid(temperature * logits)


def fit_temperature(logits: Tensor, targets: Tensor, *, mask: Tensor | None = None) -> float:
    r"""Find the factor :math:`\gamma` for which :math:`\sigma(\gamma s)` has least log-loss.

    .. math::
        \min_{\gamma>0}\ \sum_i \log(1 + e^{\gamma s_i}) - t_i\,\gamma s_i

    A convex function of one number. Its slope :math:`\sum_i s_i(\sigma(\gamma s_i)-t_i)` is
    bracketed and its zero found by Newton's method, in float64, to the last digits.

    Equations: :eq:`eq:soft-fit`, :eq:`eq:soft-fit-exists`

    Parameters
    ----------
    logits
        Scores on held-out data, any shape. A cell at :math:`-\infty` does not count.
    targets
        Labels or degrees in [0, 1], of the same shape, bool or real; 0 where nothing counts.
    mask
        Bool, broadcastable; True counts.

    Returns
    -------
    float
        For :func:`zlpr_probability`.

    Raises
    ------
    ValueError
        No counting cell has a score other than 0; the sign of the scores separates the labels, so
        that every larger factor is better (use more data); the scores point the wrong way, so that
        every smaller factor is better. Bad values as in
        :func:`~lib.soft_zlpr.soft_zlpr_loss`.

    Examples
    --------
    >>> import torch
    >>> scores, labels = torch.tensor([1.0, 1.0, 1.0, -1.0]), torch.tensor([1, 1, 0, 0])
    >>> f"{fit_temperature(scores, labels):.6f}"  # three of four are right: log 3
    '1.098612'
    """
    _checks.check_logits(logits)
    _checks.check_labels("targets", targets, logits)
    mask = _checks.check_mask(mask, logits)
    if mask is not None:
        targets = targets.masked_fill(~mask, 0)
    counts = logits != -inf if mask is None else mask & (logits != -inf)
    # The rules of the loss, and its sentences. NaN is in no range and is different from 0.
    bad = ~((targets >= 0) & (targets <= 1)) | (~counts & (targets != 0))
    bad |= counts & ~(logits < inf)
    if bool(bad.any()):
        _refusals.refuse_cells("targets", logits.detach(), targets.detach(), mask, soft=True)
    s = logits.detach()[counts].to(torch.float64)
    t = targets.detach()[counts].to(torch.float64)
    reach = float(s.abs().max()) if s.numel() else 0.0
    if reach == 0:
        raise ValueError("no factor changes scores of 0: no counting logit is different from 0")
    s = s / reach  # then the search starts where it should, for scores of any size
    wrong = float(torch.where(s > 0, s * (1 - t), -s * t).sum())
    if wrong == 0:
        raise ValueError(
            "the sign of the logits separates the targets: every larger temperature fits better"
        )
    if float((s * (0.5 - t)).sum()) >= 0:
        raise ValueError(
            "the logits point the wrong way: every smaller temperature fits better, down to 0"
        )
    return _root(s, t) / reach


def _root(s: Tensor, t: Tensor) -> float:
    """Zero of the slope of the log-loss, which is negative at 0 and positive far out."""

    def slope(factor: float) -> tuple[float, float]:
        p = torch.sigmoid(factor * s)
        return float((s * (p - t)).sum()), float((s * s * p * (1 - p)).sum())

    low, high = 0.0, 1.0
    while slope(high)[0] <= 0:
        low, high = high, 2 * high
    factor = 0.5 * (low + high)
    for _ in range(200):
        value, curvature = slope(factor)
        low, high = (factor, high) if value < 0 else (low, factor)
        step = factor - value / curvature if curvature > 0 else inf
        new = step if low < step < high else 0.5 * (low + high)
        if abs(new - factor) <= 1e-15 * factor or value == 0:
            return factor
        factor = new
    return factor
