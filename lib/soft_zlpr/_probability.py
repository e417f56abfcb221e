"""Read probabilities from scores: a scale and an offset, and their fit on held-out data."""

import warnings
from collections.abc import Callable
from math import inf, isfinite, log, log1p
from typing import NamedTuple

import torch
from torch import Tensor

from lib import _checks, _refusals

__all__ = ["fit_scale", "fit_scale_and_offset", "fit_temperature", "zlpr_probability"]

_STEPS = 5000  # every second step halves what is left, from at most 2^1024 to at least 2^-1074
_SMALL = 1e-9  # a step of Newton's method after which the next would change no digit


def zlpr_probability(
    logits: Tensor, *, scale: float = 2.0, offset: float = 0.0, temperature: float | None = None
) -> Tensor:
    r"""Probabilities :math:`\sigma(\gamma s_i + \beta)` of labels from their scores.

    Scale 2 without offset is exact for scores that minimise the soft loss of given degrees. For a
    model trained on hard labels no scale is right beforehand: fit it with :func:`fit_scale`, or
    both with :func:`fit_scale_and_offset`.

    Equations: :eq:`eq:soft-minimiser`, :eq:`eq:soft-fit`, :eq:`eq:soft-fit-both`

    Parameters
    ----------
    logits
        Scores, any shape, any floating dtype.
    scale
        The factor :math:`\gamma`, above 0: log-odds per unit of score.
    offset
        Log-odds :math:`\beta` at score 0. Other than 0, the score at which a label is as likely as
        not is no longer 0.
    temperature
        Old name of ``scale``; gives a warning.

    Returns
    -------
    Tensor
        Shape and dtype of the logits; half precision is computed in float32 and rounded once.
        :math:`-\infty` gives 0, :math:`+\infty` gives 1, NaN stays NaN.

    Raises
    ------
    TypeError
        ``logits`` is no tensor of a floating dtype; both ``scale`` and ``temperature`` are given.
    ValueError
        ``scale`` is not positive and finite, or ``offset`` not finite.

    Notes
    -----
    Source: Su 2022 (kexue 9064) for the scale 2.

    Examples
    --------
    >>> import torch
    >>> zlpr_probability(torch.tensor([0.0, 0.5, -torch.inf])).tolist()
    [0.5, 0.7310585975646973, 0.0]
    """
    if temperature is not None:
        if scale != 2.0:
            raise TypeError("scale must be given alone, got temperature, its old name, as well")
        warnings.warn(
            "temperature is now called scale, as it multiplies; the old name will go",
            FutureWarning,
            stacklevel=2,
        )
        scale = temperature
    if not 0 < scale < inf:
        raise ValueError(f"scale must be a positive finite number, got {scale}")
    if not -inf < offset < inf:
        raise ValueError(f"offset must be a finite number, got {offset}")
    _checks.check_floating("logits", logits)
    wide = logits.to(_checks.compute_dtype(logits.dtype))
    return torch.sigmoid(scale * wide + offset).to(logits.dtype)


def fit_scale(logits: Tensor, targets: Tensor, *, mask: Tensor | None = None) -> float:
    r"""Find the scale :math:`\gamma` for which :math:`\sigma(\gamma s)` has least log-loss.

    .. math::
        \min_{\gamma>0}\ \sum_i \log(1 + e^{\gamma s_i}) - t_i\,\gamma s_i

    Temperature scaling, with :math:`\gamma=1/T`. A convex function of one number: the zero of its
    slope :math:`\sum_i s_i(\sigma(\gamma s_i)-t_i)` is bracketed and found by Newton's method, in
    float64, to the last digits.

    Equations: :eq:`eq:soft-fit`, :eq:`eq:soft-fit-exists`

    Parameters
    ----------
    logits
        Scores on held-out data, shape ``(..., C)``, any floating dtype. A cell at :math:`-\infty`
        does not count.
    targets
        Labels or degrees in [0, 1], of the same shape, bool or real; 0 at :math:`-\infty`.
    mask
        Bool, broadcastable; True counts. What does not count is not looked at.

    Returns
    -------
    float
        For ``scale`` of :func:`zlpr_probability`.

    Raises
    ------
    TypeError
        As :func:`~lib.soft_zlpr.soft_zlpr_loss`.
    ValueError
        There is no best scale: no counting score differs from 0; the sign of the scores separates
        the targets, so that every larger scale is better (use more data); the scores point the
        wrong way, so that every smaller one is; it is beyond float64. Bad values as in
        :func:`~lib.soft_zlpr.soft_zlpr_loss`.
    RuntimeError
        The search did not end, which is not known to happen.

    Notes
    -----
    The result is a Python number, so values must be there to be read: traced graphs and transforms
    raise PyTorch's error.

    Source: Guo et al. 2017, for one label each time instead of a softmax.

    Examples
    --------
    >>> import torch
    >>> scores, labels = torch.tensor([1.0, 1.0, 1.0, -1.0]), torch.tensor([1, 1, 0, 0])
    >>> f"{fit_scale(scores, labels):.6f}"  # three of four are right: log 3
    '1.098612'
    """
    s, t = _counting(logits, targets, mask)
    reach = float(s.abs().max()) if s.numel() else 0.0
    if reach == 0:
        raise ValueError("logits must differ from 0 somewhere to be scaled, got none that does")
    s = s / reach  # then the search starts where it should, for scores of any size
    if float(torch.where(s > 0, s * (1 - t), -s * t).sum()) == 0:
        raise ValueError(
            "targets must not be separated by the sign of the logits, got every positive above 0 "
            "and every negative below: every larger scale fits better"
        )

    def slope(scale: float) -> _Slope:
        cells = _cells(scale * s, t)
        return _Slope(float((s * cells.slope).sum()), float((s * s * cells.curvature).sum()))

    scale = _positive_zero(slope) / reach
    _check_found(scale)
    return scale


def fit_scale_and_offset(
    logits: Tensor, targets: Tensor, *, mask: Tensor | None = None
) -> tuple[float, float]:
    r"""Find scale and offset for which :math:`\sigma(\gamma s+\beta)` has least log-loss.

    .. math::
        \min_{\gamma>0,\,\beta}\ \sum_i \log(1 + e^{\gamma s_i+\beta}) - t_i\,(\gamma s_i+\beta)

    Platt scaling. A convex function of two numbers, searched as in :func:`fit_scale`: for each
    scale the offset is found that makes the probabilities sum to the targets.

    Equations: :eq:`eq:soft-fit-both`, :eq:`eq:soft-fit-both-exists`

    Parameters
    ----------
    logits, targets, mask
        As in :func:`fit_scale`.

    Returns
    -------
    scale, offset
        For :func:`zlpr_probability`.

    Raises
    ------
    TypeError, RuntimeError
        As :func:`fit_scale`.
    ValueError
        There is no best pair: the counting scores are all equal; a threshold separates the
        targets; the scores do not rise with the targets. Bad values as in :func:`fit_scale`.

    Notes
    -----
    Values are read, as in :func:`fit_scale`.

    Source: Platt 1999, without the degrees that he puts in the place of labels 0 and 1.

    Examples
    --------
    >>> import torch
    >>> scores, labels = torch.tensor([0, 0, 0, 1, 1, 1.0]), torch.tensor([0, 0, 1, 1, 1, 0])
    >>> [f"{number:.6f}" for number in fit_scale_and_offset(scores, labels)]  # 1 to 2, 2 to 1
    ['1.386294', '-0.693147']
    """
    s, t = _counting(logits, targets, mask)
    low, high = (float(s.min()), float(s.max())) if s.numel() else (0.0, 0.0)
    middle, reach = 0.5 * low + 0.5 * high, 0.5 * high - 0.5 * low
    if reach == 0:
        raise ValueError(
            "logits must differ to be scaled and shifted, got the same wherever they count"
        )
    s = (s - middle) / reach
    share = float(t.mean())
    if not 0 < share < 1:
        raise ValueError(
            "targets must not be all the same, 0 or 1, where they count: every larger offset fits "
            f"better, got {share:g} on average"
        )
    if float(s[t > 0].min()) >= float(s[t < 1].max()):
        raise ValueError(
            "targets must not be separated by a threshold of the logits, got every positive at or "
            "above every negative: every larger scale fits better"
        )
    chance = log(share) - log1p(-share)
    best = chance

    def slope(scale: float) -> _Slope:
        nonlocal best
        z = scale * s

        def balance(offset: float) -> _Slope:
            cells = _cells(z + offset, t)
            return _Slope(float(cells.slope.sum()), float(cells.curvature.sum()))

        # At these two ends all probabilities are below, or above, the share of the targets.
        best = _zero(balance, chance - scale, chance + scale, best, least=1.0)
        cells = _cells(z + best, t)
        whole = float(cells.curvature.sum())
        # Around the weighted mean, what the offset is off by enters squared.
        around = s - float((s * cells.curvature).sum()) / whole
        return _Slope(
            float((around * cells.slope).sum()), float((around * around * cells.curvature).sum())
        )

    scale = _positive_zero(slope)
    slope(scale)  # for the offset that belongs to it
    found = scale / reach, best - scale / reach * middle
    _check_found(*found)
    return found


def fit_temperature(logits: Tensor, targets: Tensor, *, mask: Tensor | None = None) -> float:
    """Old name of :func:`fit_scale`; gives a warning.

    Parameters
    ----------
    logits, targets, mask
        As in :func:`fit_scale`.

    Returns
    -------
    float
        As :func:`fit_scale`.

    Examples
    --------
    >>> import torch, warnings
    >>> with warnings.catch_warnings(action="ignore"):
    ...     print(f"{fit_temperature(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([1, 1, 0])):.4f}")
    0.6931
    """
    warnings.warn(
        "fit_temperature is now called fit_scale, as the result multiplies; the old name will go",
        FutureWarning,
        stacklevel=2,
    )
    return fit_scale(logits, targets, mask=mask)


def _counting(logits: Tensor, targets: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores and targets of the cells that count, in float64, by the rules of the loss."""
    _checks.check_logits(logits)
    _checks.check_labels("targets", targets, logits)
    mask = _checks.check_mask(mask, logits)
    if mask is not None:
        targets = targets.masked_fill(~mask, 0)
    counts = logits != -inf if mask is None else mask & (logits != -inf)
    # NaN is in no range and is different from 0.
    bad = ~((targets >= 0) & (targets <= 1)) | (~counts & (targets != 0))
    bad |= counts & ~(logits < inf)
    if bool(bad.any()):
        _refusals.refuse_cells("targets", logits.detach(), targets.detach(), mask, soft=True)
    s, t = logits.detach()[counts], targets.detach()[counts]
    return s.to(torch.float64), t.to(torch.float64)


def _check_found(*numbers: float) -> None:
    """Raise if the best numbers are beyond the range of float64."""
    if not all(map(isfinite, numbers)):
        raise ValueError(f"logits must be of a size that float64 can scale, got a fit of {numbers}")


class _Slope(NamedTuple):
    """Derivative of a convex function, and the derivative of that."""

    value: float
    curvature: float


class _Cells(NamedTuple):
    """Derivatives of the log-loss with respect to the log-odds of each cell."""

    slope: Tensor
    curvature: Tensor


def _cells(z: Tensor, t: Tensor) -> _Cells:
    """Both derivatives at log-odds ``z``; tiny ones keep digits that ``sigmoid(z) - t`` loses."""
    p, q = torch.sigmoid(z), torch.sigmoid(-z)
    return _Cells((1 - t) * p - t * q, p * q)


def _positive_zero(slope: Callable[[float], _Slope]) -> float:
    """Zero above 0 of a slope that is positive far out; raise unless it is negative at 0."""
    if slope(0.0).value >= 0:
        raise ValueError(
            "logits must rise with the targets, got scores that point the wrong way: every "
            "smaller scale fits better, down to 0"
        )
    low, high = 0.0, 1.0
    while slope(high).value < 0:  # at infinity it is not
        low, high = high, 2 * high
    return _zero(slope, low, high, 0.5 * low + 0.5 * high, least=0.0)


def _zero(
    slope: Callable[[float], _Slope], low: float, high: float, start: float, least: float
) -> float:
    """Zero of a slope between ``low``, where it is negative, and ``high``, where it is not.

    Newton's steps, as long as each is less than half of the last but one and stays in between;
    otherwise the middle. Over a distance ``d`` the curvature changes by no more than a factor of
    ``exp(2 d)``, so a step of 1e-9 would be followed by one of some 1e-18. A zero below ``least``
    is found as exactly as one of that size.
    """
    x, last, step = start, inf, inf
    for _ in range(_STEPS):
        value, curvature = slope(x)
        low, high = (x, high) if value < 0 else (low, x)
        newton = -value / curvature if curvature > 0 else inf
        if abs(newton) <= _SMALL * min(1.0, max(abs(x), least)):
            return x + newton
        if low < x + newton < high and abs(newton) < 0.5 * abs(last):
            new = x + newton
        else:
            new = 0.5 * low + 0.5 * high
        if new in (low, high):  # neighbours: there is no number between them
            return new
        x, last, step = new, step, new - x
    raise RuntimeError(f"the search for the best fit must end, got no end in {_STEPS} steps")
