"""Make labels soft: smoothing in three ways, and mixup of labels or of losses."""

from math import nan
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
        Bool, broadcastable to the targets; False gives 0, which cells that do not count must have.

    Returns
    -------
    Tensor
        Shape of the targets; their dtype if that is floating, else the default dtype.

    Examples
    --------
    >>> import torch
    >>> smooth_labels(torch.tensor([1, 0, 0]), 0.1, mask=torch.tensor([True, True, False])).tolist()
    [0.8999999761581421, 0.10000000149011612, 0.0]
    """
    labels = _labels(targets, rate, 0.5)
    mask = _checks.check_mask(mask, labels, of="targets")
    soft = torch.lerp(labels, 1 - labels, rate)
    return soft if mask is None else soft.masked_fill(~mask, 0)


def smooth_positives(targets: Tensor, rate: float) -> Tensor:
    r"""Lower the positives and leave the negatives at 0: :math:`t = (1-\eta)\,y`.

    Equations: :eq:`eq:smoothing-positives`

    Parameters
    ----------
    targets
        Labels, any shape, bool or real, in [0, 1].
    rate
        :math:`\eta` in [0, 1).

    Returns
    -------
    Tensor
        As :func:`smooth_labels`.

    Examples
    --------
    >>> import torch
    >>> smooth_positives(torch.tensor([1, 0, 0]), 0.25).tolist()
    [0.75, 0.0, 0.0]
    """
    return _labels(targets, rate, 1.0, closed=False) * (1 - rate)


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
        At least 1.
    mask
        Bool, broadcastable to the targets; True counts, for instance ``i <= j``. Targets must be
        0 where it is False.

    Returns
    -------
    Tensor
        Shape ``(..., L, L)``; dtype as in :func:`smooth_labels`.

    Examples
    --------
    >>> import torch
    >>> gold = torch.zeros(3, 3)
    >>> gold[0, 1] = 1
    >>> smooth_spans(gold, 0.25, mask=torch.ones(3, 3, dtype=torch.bool).triu())
    tensor([[0.0833, 0.7500, 0.0833],
            [0.0000, 0.0833, 0.0000],
            [0.0000, 0.0000, 0.0000]])

    Notes
    -----
    In the spirit of boundary smoothing (Zhu and Li 2022), which does this to a softmax.
    """
    labels = _labels(targets, rate, 0.5)
    if labels.dim() < 2 or labels.shape[-1] != labels.shape[-2]:
        raise ValueError(f"targets must have shape (..., L, L), got {tuple(labels.shape)}")
    if radius < 1:
        raise ValueError(f"radius must be at least 1, got {radius}")
    free = labels == 0
    if bool((~free & (labels != 1)).any()):
        raise ValueError("targets must hold only 0 and 1 to be shared among spans")
    mask = _checks.check_mask(mask, labels, of="targets")
    if mask is not None:
        # Such a cell would give to others a part of what it must not have itself.
        clash = ~free & ~mask
        if bool(clash.any()):
            at = _refusals.first_true(clash)
            raise ValueError(
                f"targets must be 0 where the mask is False, got {labels[at].item()} "
                f"at targets{list(at)}"
            )
        free = free & mask
    steps = torch.arange(-radius, radius + 1, device=labels.device).abs()
    near = (steps[:, None] + steps[None, :] <= radius).to(labels.dtype)
    neighbours = _spread(free.to(labels.dtype), near)
    parts = torch.where(neighbours > 0, rate * labels / neighbours.clamp(min=1), 0)
    kept = labels - rate * labels * (neighbours > 0)
    given = _spread(parts, near).clamp(max=1 - rate)
    return torch.where(free, given, kept)


def _spread(tables: Tensor, near: Tensor) -> Tensor:
    """For each cell, the sum over its neighbours; nothing beyond the edge."""
    size, width = tables.shape[-1], near.shape[-1]
    flat = tables.reshape(-1, 1, size, size)
    return torch.nn.functional.conv2d(flat, near.view(1, 1, width, width), padding="same").reshape(
        tables.shape
    )


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
        Number of samples.
    alpha
        Above 0. Small values give weights near 0 and 1; 1 gives uniform ones.
    generator
        Where the random numbers come from; on the CPU.
    dtype
        Of the weights; the default dtype if not given.

    Returns
    -------
    weight, order
        Shapes ``(samples,)``: weights in [0, 1], and a permutation, int64.

    Examples
    --------
    >>> import torch
    >>> weight, order = draw_mixup(4, alpha=0.4, generator=torch.Generator().manual_seed(0))
    >>> weight.shape, sorted(order.tolist())
    (torch.Size([4]), [0, 1, 2, 3])
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    # In float64 and by gamma variables, as torch.distributions does, which takes no generator.
    shape = torch.full((2, samples), float(alpha), dtype=torch.float64)
    own, other = torch._standard_gamma(shape, generator=generator)
    whole = own + other
    # Both may underflow for a tiny alpha; then one of the two takes all.
    coin = (torch.rand(samples, generator=generator) < 0.5).to(torch.float64)
    weight = torch.where(whole > 0, own / whole, coin)
    order = torch.randperm(samples, generator=generator)
    return weight.to(dtype or torch.get_default_dtype()), order


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

    Examples
    --------
    >>> import torch
    >>> mixup(torch.tensor([[1, 0], [1, 1]]), 0.25, torch.tensor([1, 0])).tolist()
    [[1.0, 0.75], [1.0, 0.25]]
    """
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
        As in :func:`soft_zlpr_loss`. Both partners' targets must be 0 where nothing counts.

    Returns
    -------
    Tensor
        As :func:`soft_zlpr_loss`.

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
    _check_order(order, targets)
    _checks.check_reduction(reduction)
    if mix == "labels":
        # Before mixing, as a mean of two values out of range may lie in it.
        bad = _out_of_range(targets)
        if not targets.dtype.is_floating_point:
            targets = targets.to(_checks.compute_dtype(logits.dtype))
        if _checks.values_readable(logits, targets, mask):
            _refuse_out_of_range(targets, bad)
        else:
            targets = targets.masked_fill(bad, nan)  # which makes the loss NaN, as elsewhere
        return soft_zlpr_loss(logits, mixup(targets, weight, order), mask=mask, reduction=reduction)
    own = soft_zlpr_loss(logits, targets, mask=mask, reduction="none")
    other = soft_zlpr_loss(logits, targets[order], mask=mask, reduction="none")
    return _checks.reduce(torch.lerp(other, own, _along(weight, own)), reduction)


def _check_order(order: Tensor, values: Tensor) -> None:
    """Raise unless ``order`` is int64 with one entry per sample of ``values``.

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


def _along(weight: Tensor | float, values: Tensor) -> Tensor:
    """Weights of samples as a tensor that broadcasts along the first dimension of ``values``."""
    weights = torch.as_tensor(weight, dtype=values.dtype, device=values.device)
    if weights.dim() > 1 or (weights.dim() == 1 and weights.shape != values.shape[:1]):
        raise ValueError(
            f"weight must be a number or have one entry per sample, expected "
            f"{tuple(values.shape[:1])}, got {tuple(weights.shape)}"
        )
    if bool((~((weights >= 0) & (weights <= 1))).any()):
        raise ValueError(f"weight must lie in [0, 1], got {weights.tolist()}")
    return weights.reshape(-1, *[1] * (values.dim() - 1)) if weights.dim() else weights


def _labels(targets: Tensor, rate: float, most: float, *, closed: bool = True) -> Tensor:
    """Labels as floating-point numbers, after the checks that all kinds of smoothing share."""
    if not 0 <= rate <= most or (rate == most and not closed):
        end = "]" if closed else ")"
        raise ValueError(f"rate must lie in [0, {most:g}{end}, got {rate}")
    if targets.dtype.is_complex:
        raise TypeError(f"targets must be bool or real, got {targets.dtype}")
    labels = targets if targets.dtype.is_floating_point else targets.to(torch.get_default_dtype())
    _refuse_out_of_range(labels, _out_of_range(labels))
    return labels


def _out_of_range(labels: Tensor) -> Tensor:
    """Where a label is below 0, above 1, or NaN."""
    return ~((labels >= 0) & (labels <= 1))


def _refuse_out_of_range(labels: Tensor, bad: Tensor) -> None:
    """Raise for the first bad label, if there is one."""
    if bool(bad.any()):
        at = _refusals.first_true(bad)
        raise ValueError(
            f"targets must lie in [0, 1], got {labels[at].item()} at targets{list(at)}"
        )
