"""Make labels soft: smoothing in three ways, and mixup of labels or of losses."""

from math import inf, nan
from typing import Literal

import torch
from torch import Tensor

from lib import _checks, _refusals
from lib.soft_zlpr._loss import soft_zlpr_loss

__all__ = [
    "draw_mixup",
    "mixup",
    "mixup_loss",
    "smooth_labels",
    "smooth_positives",
    "smooth_spans",
]


def smooth_labels(targets: Tensor, rate: float, *, mask: Tensor | None = None) -> Tensor:
    r"""Move every label towards its opposite: :math:`t = (1-\eta)\,y + \eta\,(1-y)`.

    In a large label space this moves the loss away from the positives: each of the negatives
    enters the positive group with weight :math:`\eta`, and in the end with the same term as a
    positive. Prefer :func:`smooth_positives` or :func:`smooth_spans` there.

    Equations: :eq:`eq:smoothing-uniform`, :eq:`eq:smoothing-share`

    Parameters
    ----------
    targets
        Labels, any shape, bool or real, in [0, 1].
    rate
        :math:`\eta` in [0, 1/2].
    mask
        Bool, broadcastable to the targets; what is False is not looked at and becomes 0.

    Returns
    -------
    Tensor
        Shape of the targets; their dtype if that is floating, else the default dtype.

    Raises
    ------
    TypeError
        An argument is no tensor or has a dtype of the wrong kind.
    ValueError
        ``rate`` is out of range; the mask does not fit; a target that counts is NaN or outside
        [0, 1]. Where no Python error can depend on a value, that target becomes NaN instead.

    Notes
    -----
    Source: Szegedy et al. 2016, for each label by itself.

    Examples
    --------
    >>> import torch
    >>> smooth_labels(torch.tensor([1, 0, 0]), 0.1, mask=torch.tensor([True, True, False])).tolist()
    [0.8999999761581421, 0.10000000149011612, 0.0]
    """
    labels, mask = _labels(targets, mask, rate, 0.5)
    soft = torch.lerp(labels, 1 - labels, rate)
    return soft if mask is None else soft.masked_fill(~mask, 0)


def smooth_positives(targets: Tensor, rate: float, *, mask: Tensor | None = None) -> Tensor:
    r"""Lower the positives and leave the negatives at 0: :math:`t = (1-\eta)\,y`.

    Equations: :eq:`eq:smoothing-positives`

    Parameters
    ----------
    targets
        Labels, any shape, bool or real, in [0, 1].
    rate
        :math:`\eta` in [0, 1).
    mask
        As in :func:`smooth_labels`.

    Returns
    -------
    Tensor
        As :func:`smooth_labels`.

    Raises
    ------
    TypeError, ValueError
        As :func:`smooth_labels`.

    Notes
    -----
    Source: ours.

    Examples
    --------
    >>> import torch
    >>> smooth_positives(torch.tensor([1, 0, 0]), 0.25).tolist()
    [0.75, 0.0, 0.0]
    """
    return _labels(targets, mask, rate, 1.0, closed=False)[0] * (1 - rate)


def smooth_spans(
    targets: Tensor, rate: float, *, radius: int = 1, mask: Tensor | None = None
) -> Tensor:
    r"""Let each gold span of a table share its label with spans whose ends lie near.

    A gold cell :math:`(i,j)` keeps :math:`1-\eta` and gives :math:`\eta` in equal parts to the
    cells within ``radius`` steps of it, :math:`|i-i'|+|j-j'|\le` ``radius``, that count and are not
    gold. One without such neighbours keeps 1. So the sum of the table stays the number of gold
    spans, unless parts of several meet in one cell and would pass :math:`1-\eta`, where it ends.

    Equations: :eq:`eq:smoothing-spans`

    Parameters
    ----------
    targets
        Tables of 0 and 1, shape ``(..., L, L)``, bool or real.
    rate
        :math:`\eta` in [0, 1/2].
    radius
        An integer, at least 1.
    mask
        Bool, broadcastable to the targets; True counts, for instance ``i <= j``. What is False is
        not looked at, becomes 0 and gives nothing to its neighbours.

    Returns
    -------
    Tensor
        Shape ``(..., L, L)``; dtype as in :func:`smooth_labels`.

    Raises
    ------
    TypeError
        As :func:`smooth_labels`; ``radius`` is no integer.
    ValueError
        As :func:`smooth_labels`; the tables are not square; ``radius`` is below 1; a target that
        counts is not 0 or 1.

    Notes
    -----
    Source: in the spirit of boundary smoothing (Zhu and Li 2022), which does this to a softmax.

    Examples
    --------
    >>> import torch
    >>> gold = torch.zeros(3, 3)
    >>> gold[0, 1] = 1
    >>> smooth_spans(gold, 0.25, mask=torch.ones(3, 3, dtype=torch.bool).triu())
    tensor([[0.0833, 0.7500, 0.0833],
            [0.0000, 0.0833, 0.0000],
            [0.0000, 0.0000, 0.0000]])
    """
    radius = _checks.as_index("radius", radius)
    if radius < 1:
        raise ValueError(f"radius must be at least 1, got {radius}")
    labels, mask = _labels(targets, mask, rate, 0.5, hard=True)
    if labels.dim() < 2 or labels.shape[-1] != labels.shape[-2]:
        raise ValueError(f"targets must have shape (..., L, L), got {tuple(labels.shape)}")
    free = labels == 0 if mask is None else (labels == 0) & mask
    neighbours = _spread(free.to(labels.dtype), radius)
    parts = torch.where(neighbours > 0, rate * labels / neighbours.clamp(min=1), 0)
    kept = labels - rate * labels * (neighbours > 0)
    return torch.where(free, _spread(parts, radius).clamp(max=1 - rate), kept)


def _spread(tables: Tensor, radius: int) -> Tensor:
    """For each cell, the sum over the cells within ``radius`` steps; nothing beyond the edge."""
    length = tables.shape[-1]
    wide = torch.nn.functional.pad(tables, (radius,) * 4)
    total = torch.zeros_like(tables)
    for down in range(-radius, radius + 1):
        rows = wide.narrow(-2, radius + down, length)
        for right in range(abs(down) - radius, radius - abs(down) + 1):
            total = total + rows.narrow(-1, radius + right, length)
    return total


def draw_mixup(
    samples: int,
    *,
    alpha: float,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Draw a weight from Beta(alpha, alpha), and a partner, for each sample of a batch.

    Parameters
    ----------
    samples
        Number of samples, an integer.
    alpha
        Above 0 and finite. Small values give weights near 0 and 1; 1 gives uniform ones.
    generator
        Where the random numbers come from; on the CPU.
    dtype
        Of the weights; the default dtype if not given.

    Returns
    -------
    weight, order
        Shapes ``(samples,)``: weights in [0, 1], and a permutation, int64. They are drawn on the
        CPU, so the numbers are the same everywhere, and are on the default device.

    Raises
    ------
    TypeError
        ``samples`` is no integer.
    ValueError
        ``samples`` is below 0; ``alpha`` is not above 0 and finite.

    Notes
    -----
    Source: Zhang et al. 2018, who draw one weight for a batch.

    Examples
    --------
    >>> import torch
    >>> weight, order = draw_mixup(4, alpha=0.4, generator=torch.Generator().manual_seed(0))
    >>> weight.shape, sorted(order.tolist())
    (torch.Size([4]), [0, 1, 2, 3])
    """
    samples = _checks.as_index("samples", samples)
    if samples < 0:
        raise ValueError(f"samples must be at least 0, got {samples}")
    if not 0 < alpha < inf:
        raise ValueError(f"alpha must be above 0 and finite, got {alpha}")
    # In float64 and by gamma variables, as torch.distributions does, which takes no generator.
    shape = torch.full((2, samples), float(alpha), dtype=torch.float64, device="cpu")
    own, other = torch._standard_gamma(shape, generator=generator)
    whole = own + other
    # Both may underflow for a tiny alpha; then one of the two takes all.
    coin = torch.rand(samples, generator=generator, dtype=torch.float32, device="cpu") < 0.5
    weight = torch.where(whole > 0, own / whole, coin.to(torch.float64))
    order = torch.randperm(samples, generator=generator, device="cpu")
    device = torch.get_default_device()
    return weight.to(device, dtype or torch.get_default_dtype()), order.to(device)


def mixup(values: Tensor, weight: Tensor | float, order: Tensor) -> Tensor:
    r"""Mix each sample with its partner: :math:`\lambda\,v_b + (1-\lambda)\,v_{\text{order}(b)}`.

    Equations: :eq:`eq:mixup-labels`

    Parameters
    ----------
    values
        Inputs or labels, shape ``(B, ...)``; of bool or integers the default dtype is taken.
    weight
        :math:`\lambda` in [0, 1]: a number, or one for each sample, shape ``(B,)``.
    order
        Partner of each sample, int64 ``(B,)``.

    Returns
    -------
    Tensor
        Shape ``(B, ...)``. Where both agree, exactly that value.

    Raises
    ------
    TypeError
        An argument has the wrong type or a dtype of the wrong kind.
    ValueError
        Shapes disagree; a weight is NaN or outside [0, 1], which gives NaN where no Python error
        can depend on a value; ``order`` names a sample that is not there.

    Notes
    -----
    Source: Zhang et al. 2018.

    Examples
    --------
    >>> import torch
    >>> mixup(torch.tensor([[1, 0], [1, 1]]), 0.25, torch.tensor([1, 0])).tolist()
    [[1.0, 0.75], [1.0, 0.25]]
    """
    _checks.check_labels("values", values, values)
    if values.dim() == 0:
        raise ValueError("values must have shape (B, ...), got ()")
    floating = values if values.dtype.is_floating_point else values.to(torch.get_default_dtype())
    _check_order(order, floating)
    return torch.lerp(floating[order], floating, _along(weight, floating))


def mixup_loss(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | float,
    order: Tensor,
    *,
    mix: Literal["labels", "losses"],
    mask: Tensor | None = None,
    reduction: _checks.Reduction = "mean",
) -> Tensor:
    r"""Loss of a batch of mixed inputs, either way.

    ``"losses"`` is :math:`\lambda\,\ell(s,y)+(1-\lambda)\,\ell(s,y')`, the expected loss of a label
    vector that is one of two; ``"labels"`` is :math:`\ell(s,\lambda y+(1-\lambda)y')`, which is
    never less. For cross-entropy the two are equal, for ZLPR they are not.

    Equations: :eq:`eq:mixup-labels`, :eq:`eq:mixup-losses`

    Parameters
    ----------
    logits
        Scores of the mixed inputs, shape ``(B, ..., C)``.
    targets
        Labels *before* mixing, shape ``(B, ..., C)``, in [0, 1].
    weight, order
        As in :func:`mixup`.
    mix
        Which of the two.
    mask, reduction
        As in :func:`soft_zlpr_loss`. A cell that counts does so for both partners.

    Returns
    -------
    Tensor
        As :func:`soft_zlpr_loss`.

    Raises
    ------
    TypeError
        As :func:`soft_zlpr_loss` and :func:`mixup`.
    ValueError
        As :func:`soft_zlpr_loss` and :func:`mixup`; ``mix`` is unknown.

    Notes
    -----
    Bad values as in :func:`soft_zlpr_loss`: those of either partner count, also where their mean
    would be in range.

    Source: Zhang et al. 2018 for the mixed labels; mixed losses are ours.

    Examples
    --------
    >>> import torch
    >>> logits, order = torch.zeros(2, 3), torch.tensor([1, 0])
    >>> labels = torch.tensor([[1, 0, 0], [1, 1, 1]])
    >>> [f"{mixup_loss(logits, labels, 0.5, order, mix=mix):.4f}" for mix in ("losses", "labels")]
    ['1.5890', '1.7918']
    """
    if mix not in ("labels", "losses"):
        raise ValueError(f"mix must be 'labels' or 'losses', got {mix!r}")
    _checks.check_logits(logits)
    _checks.check_labels("targets", targets, logits)
    mask = _checks.check_mask(mask, logits)
    _checks.check_reduction(reduction)
    _check_order(order, targets)
    # What both losses, or both labels, are made of goes up from half precision once.
    if mix == "losses":
        logits = logits.to(_checks.compute_dtype(logits.dtype))
    elif targets.dtype.is_floating_point:
        targets = targets.to(_checks.compute_dtype(targets.dtype))
    else:
        targets = targets.to(_checks.compute_dtype(logits.dtype))
    own = _good(targets, mask)
    other = _good(targets[order], mask, order)
    if mix == "labels":
        mixed = torch.lerp(other, own, _along(weight, own))
        return soft_zlpr_loss(logits, mixed, mask=mask, reduction=reduction)
    own = soft_zlpr_loss(logits, own, mask=mask, reduction="none")
    other = soft_zlpr_loss(logits, other, mask=mask, reduction="none")
    return _checks.reduce(torch.lerp(other, own, _along(weight, own)), reduction)


def _check_order(order: Tensor, values: Tensor) -> None:
    """Raise unless ``order`` is int64 and names a sample for each sample of ``values``.

    Other dtypes are not merely unusual: to index with bool or uint8 is to select by a mask.
    """
    dtype = getattr(order, "dtype", type(order).__name__)
    if dtype != torch.int64:
        raise TypeError(f"order must have dtype torch.int64, got {dtype}")
    if order.shape != values.shape[:1]:
        raise ValueError(
            f"order must have one entry per sample, expected {tuple(values.shape[:1])}, "
            f"got {tuple(order.shape)}"
        )
    if _checks.values_readable(order):
        bad = (order < 0) | (order >= order.shape[0])
        if bool(bad.any()):
            at = _refusals.first_true(bad)
            raise ValueError(
                f"order must name samples from 0 to {order.shape[0] - 1}, got {int(order[at])} "
                f"at {_refusals.place('order', at)}"
            )


def _along(weight: Tensor | float, values: Tensor) -> Tensor:
    """Weights of samples as a tensor that broadcasts along the first dimension of ``values``."""
    weights = torch.as_tensor(weight, dtype=values.dtype, device=values.device)
    if weights.dim() > 1 or (weights.dim() == 1 and weights.shape != values.shape[:1]):
        raise ValueError(
            f"weight must be a number or have one entry per sample, expected "
            f"{tuple(values.shape[:1])}, got {tuple(weights.shape)}"
        )
    bad = _out_of_range(weights)
    if not _checks.values_readable(weights):
        weights = weights.masked_fill(bad, nan)
    elif bool(bad.any()):
        raise ValueError(f"weight must lie in [0, 1], got {weights.tolist()}")
    return weights.reshape(-1, *[1] * (values.dim() - 1)) if weights.dim() else weights


def _labels(
    targets: Tensor,
    mask: Tensor | None,
    rate: float,
    most: float,
    *,
    closed: bool = True,
    hard: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Labels as floating-point numbers, and the mask, after the checks that all smoothing shares.

    ``most`` is the largest rate, if ``closed``; ``hard`` asks for labels of 0 and 1.
    """
    if not 0 <= rate <= most or (rate == most and not closed):
        end = "]" if closed else ")"
        raise ValueError(f"rate must lie in [0, {most:g}{end}, got {rate}")
    _checks.check_labels("targets", targets, targets)
    mask = _checks.check_mask(mask, targets, of="targets")
    labels = targets if targets.dtype.is_floating_point else targets.to(torch.get_default_dtype())
    return _good(labels, mask, hard=hard), mask


def _good(
    labels: Tensor, mask: Tensor | None, order: Tensor | None = None, *, hard: bool = False
) -> Tensor:
    """Labels, 0 where they do not count; raise for one that is out of range, or make it NaN.

    ``order`` says which samples they are; ``hard`` asks for labels of 0 and 1.
    """
    if mask is not None:
        labels = labels.masked_fill(~mask, 0)
    bad = (labels != 0) & (labels != 1) if hard else _out_of_range(labels)
    if not _checks.values_readable(labels, mask, order):
        # Integers have no NaN; the loss that they go to makes it.
        return labels.masked_fill(bad, nan) if labels.dtype.is_floating_point else labels
    if bool(bad.any()):
        at = _refusals.first_true(bad)
        value = labels[at].item()
        if order is not None:
            at = (int(order[at[0]]), *at[1:])
        rule = "hold only 0 and 1" if hard else "lie in [0, 1]"
        where = "" if mask is None else " where they count"
        raise ValueError(
            f"targets must {rule}{where}, got {value} at {_refusals.place('targets', at)}"
        )
    return labels


def _out_of_range(labels: Tensor) -> Tensor:
    """Where a number is below 0, above 1, or NaN."""
    return ~((labels >= 0) & (labels <= 1))
