r"""Tags for starts and ends of spans: their power link and losses, and what is read from them.

How the numbers stay right: with :math:`p = \sigma(s)`, the loss of a negative under the power link
is :math:`-\log(1 - p^\kappa)`. Computed as written it is 0 long before it should be, and infinite
from a score of 17 on in float32. Here it is computed from :math:`\log p` in three pieces, each
exact where it is used, and autograd through each piece is the exact gradient: from
:math:`e^{-10\,000\,\kappa}`, which is 0, to exactly 1.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn

from lib import _checks, _refusals

__all__ = [
    "ConditionalLayerNorm",
    "check_subjects",
    "conditional_layer_norm",
    "half_pointer_loss",
    "nearest_end_spans",
    "power_bce_loss",
    "power_probability",
    "power_threshold",
    "subject_distribution",
]

Span = tuple[int, int]

# So far above log(power), what the series of the negative loss leaves out is below float64.
_FAR = 20.0


def power_probability(logits: Tensor, power: float) -> Tensor:
    r"""Probability of a tag under the power link.

    .. math:: \pi = \sigma(s)^\kappa = \exp\bigl(\kappa\log\sigma(s)\bigr)

    Equations: :eq:`eq:casrel-power-link`

    Parameters
    ----------
    logits
        Scores, any shape, any floating dtype; infinite ones give 0 and 1.
    power
        The exponent :math:`\kappa > 0`; 1 is the logistic link.

    Returns
    -------
    Tensor
        The shape of ``logits``, values in [0, 1]; float32 for half-precision logits, else their
        dtype.

    Raises
    ------
    TypeError
        ``logits`` is no tensor of a floating dtype.
    ValueError
        ``power`` is not positive and finite.

    Notes
    -----
    NaN gives NaN: nothing is compared with it here.

    Source: Su 2020 (kexue 7161), where the exponent is called n.

    Examples
    --------
    >>> [f"{v:.4f}" for v in power_probability(torch.tensor([0.0, 2.0]), 4).tolist()]
    ['0.0625', '0.6019']
    """
    _check_scores(logits)
    _check_power(power)
    scores = logits.to(_checks.compute_dtype(logits.dtype))
    return (power * torch.nn.functional.logsigmoid(scores)).exp()


def power_threshold(power: float, probability: float = 0.5) -> float:
    r"""Score at which the power link reaches a probability.

    .. math:: \sigma(s)^\kappa > \theta \iff s > -\log\bigl(\theta^{-1/\kappa} - 1\bigr)

    Equations: :eq:`eq:casrel-cut`

    Parameters
    ----------
    power
        The exponent :math:`\kappa > 0`.
    probability
        The cut :math:`\theta` on the probability, strictly between 0 and 1.

    Returns
    -------
    float
        The cut on the score. 0 for power 1 and probability one half.

    Raises
    ------
    ValueError
        An argument is out of range.

    Notes
    -----
    Source: ours.

    Examples
    --------
    >>> [f"{power_threshold(power):.4f}" for power in (1, 2, 4)]
    ['0.0000', '0.8814', '1.6649']
    """
    _check_power(power)
    if not 0 < probability < 1:
        raise ValueError(f"probability must lie strictly between 0 and 1, got {probability}")
    depth = -math.log(probability) / power
    return -depth - math.log(-math.expm1(-depth)) + 0.0  # no minus zero


def power_bce_loss(
    logits: Tensor,
    targets: Tensor,
    power: float,
    *,
    mask: Tensor | None = None,
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""Binary cross-entropy of the power link, cell by cell.

    .. math::
        \ell(s, 1) = -\kappa\log\sigma(s), \qquad
        \ell(s, 0) = -\log\bigl(1 - \sigma(s)^\kappa\bigr)

    Predict the cells with :math:`s` above :func:`power_threshold`. The gradients are
    :math:`-\kappa(1-p)` and :math:`\kappa p^\kappa (1-p)/(1-p^\kappa)` with :math:`p = \sigma(s)`,
    the latter between 0 and 1; both losses are convex.

    Equations: :eq:`eq:casrel-power-loss`, :eq:`eq:casrel-power-gradient`,
    :eq:`eq:casrel-stable`, :eq:`eq:casrel-far`

    Parameters
    ----------
    logits
        Scores, shape ``(..., C)`` with ``C >= 1``, any floating dtype. Finite or :math:`-\infty`;
        a cell at :math:`-\infty` has loss and gradient 0.
    targets
        One for cells with the tag, zero for the others; the shape of ``logits``, bool or any real
        dtype.
    power
        The exponent :math:`\kappa > 0`; 1 is the usual binary cross-entropy.
    mask
        Bool, broadcastable to the logits; True counts. Cells that do not count have loss and
        gradient exactly 0, and their logits and targets may hold anything.
    reduction
        ``"none"``, ``"sum"`` or ``"mean"``, which is over the cells that the mask lets count; 0
        where none does.
    validate
        Whether to look at the values, as in :func:`lib.zlpr.zlpr_loss`.

    Returns
    -------
    Tensor
        The shape of ``logits`` for ``"none"``, else a scalar. float32 for half-precision logits,
        else their dtype. The gradient has the logits' dtype.

    Raises
    ------
    TypeError
        An argument is no tensor or has a dtype of the wrong kind.
    ValueError
        Shapes or devices disagree; ``power`` is not positive and finite; ``reduction`` is unknown;
        values, where cells count: a target other than 0 and 1; a positive on a logit of
        :math:`-\infty`; a logit that is NaN or :math:`+\infty`.

    Notes
    -----
    Where no Python error can depend on a value (``torch.compile``, ``torch.export``, ``make_fx``,
    ``torch.func`` transforms, CUDA graph capture), a bad cell has loss NaN instead.

    Source: Su 2020 (kexue 7161), whose code takes the logarithm of a clipped power.

    Examples
    --------
    >>> logits = torch.tensor([[0.0, 0.0, 40.0]], dtype=torch.float64)
    >>> losses = power_bce_loss(logits, torch.tensor([[1, 0, 0]]), 2, reduction="none")
    >>> [f"{loss:.4f}" for loss in losses[0].tolist()]
    ['1.3863', '0.2877', '39.3069']
    """
    _check_power(power)
    _checks.check_logits(logits)
    _checks.check_labels("targets", targets, logits)
    mask = _checks.check_mask(mask, logits)
    _checks.check_reduction(reduction)
    losses = _cells(logits, targets, power, mask, validate)
    return _checks.reduce(losses, reduction, mask)


def half_pointer_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    power: float = 1,
    mask: Tensor | None = None,
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""Loss of start and end tags, reduced as in the article.

    .. math::
        \ell = \frac{1}{\sum_i m_i}\sum_i m_i \sum_r \frac12
            \bigl(\ell(s^{\mathrm{start}}_{ir}, y^{\mathrm{start}}_{ir})
            + \ell(s^{\mathrm{end}}_{ir}, y^{\mathrm{end}}_{ir})\bigr)

    with the cells' loss of :func:`power_bce_loss`: averaged over the two tags, summed over the
    relations, averaged over the tokens that count, of all texts alike.

    Equations: :eq:`eq:casrel-subject-loss`, :eq:`eq:casrel-object-loss`

    Parameters
    ----------
    logits
        Scores, ``(B, L, 2)`` for subjects, ``(B, L, R, 2)`` for the objects of R relations; the
        last dimension is start, end.
    targets
        Zeros and ones of the same shape, bool or any real dtype.
    power
        The exponent of the link; the article has 2 for subjects and 4 for objects.
    mask
        Bool ``(B, L)``, True for tokens that count. On the others logits and targets may hold
        anything, and loss and gradient are exactly 0.
    reduction
        ``"none"`` gives one loss per token; ``"mean"`` is over the tokens that count, so that long
        texts weigh more, 0 where none does; ``"sum"`` is over them too.
    validate
        Whether to look at the values, as in :func:`lib.zlpr.zlpr_loss`.

    Returns
    -------
    Tensor
        ``(B, L)`` for ``"none"``, else a scalar; dtype as in :func:`power_bce_loss`.

    Raises
    ------
    TypeError, ValueError
        As :func:`power_bce_loss`; a shape is not one of those above.

    Notes
    -----
    CasRel's repository adds the losses of starts and ends, which is twice this.

    Source: Su 2020 (kexue 7161).

    Examples
    --------
    >>> logits = torch.zeros(1, 3, 5, 2, dtype=torch.float64)
    >>> f"{half_pointer_loss(logits, logits, power=1):.4f}"  # 5 relations, log 2 each
    '3.4657'
    """
    _check_power(power)
    _checks.check_logits(logits)
    if logits.dim() not in (3, 4) or logits.shape[-1] != 2:
        raise ValueError(
            f"logits must have shape (B, L, 2) or (B, L, R, 2), got {tuple(logits.shape)}"
        )
    _checks.check_labels("targets", targets, logits)
    counts = None if mask is None else _checks.check_mask(mask, logits.flatten(2)[:, :, 0])
    _checks.check_reduction(reduction)
    spread = None
    if counts is not None:
        lead = (*counts.shape, *(1 for _ in logits.shape[2:]))
        spread = counts.reshape(lead).expand(logits.shape)
    tokens = _cells(logits, targets, power, spread, validate).flatten(2).sum(2) / 2
    return _checks.reduce(tokens, reduction, counts)


def nearest_end_spans(starts: Iterable[int], ends: Iterable[int]) -> list[Span]:
    r"""Pair each start with the nearest end that does not lie before it, as published.

    .. math:: \mathcal D = \{(a, \min\{b \in \mathcal B : b \ge a\}) : a \in \mathcal A\}

    Equations: :eq:`eq:casrel-nearest`

    Parameters
    ----------
    starts, ends
        Positions of the tokens tagged as start and as end, in any order; a position given twice
        counts once.

    Returns
    -------
    list of (int, int)
        First and last token of each span, in reading order. A start without an end behind it
        gives nothing.

    Raises
    ------
    ValueError
        A position is negative.

    Notes
    -----
    The tags of spans that do not overlap give back these spans. Of two spans with one start only
    the shorter comes back, and a span that holds an end of another is cut off there: the spans
    (0, 5) and (2, 3) come back as (0, 3) and (2, 3).

    Source: Su 2020 (kexue 7161) and CasRel's repository.

    Examples
    --------
    >>> nearest_end_spans([0, 2], [5, 3])
    [(0, 3), (2, 3)]
    """
    first, last = sorted(set(starts)), sorted(set(ends))
    for name, positions in (("starts", first), ("ends", last)):
        if positions and positions[0] < 0:
            raise ValueError(f"{name} must be positions from 0 on, got {positions[0]}")
    found = ((start, bisect_left(last, start)) for start in first)
    return [(start, last[place]) for start, place in found if place < len(last)]


def subject_distribution(
    subjects: Sequence[Span], rule: Literal["published", "uniform"] = "published"
) -> dict[Span, Fraction]:
    r"""Probability of each pair of start and end that a training step may take as the subject.

    By the published rule a start is drawn from the starts of all subjects, then an end from their
    ends that do not lie before it:

    .. math::
        \Pr(a, b) = \frac{\#\{i : a_i = a\}}{m}\cdot
            \frac{\#\{j : b_j = b\}}{\#\{j : b_j \ge a\}}, \qquad b \ge a

    so that the pair may be no subject at all. The uniform rule takes each subject with
    :math:`1/m`.

    Equations: :eq:`eq:casrel-draw`, :eq:`eq:casrel-position`

    Parameters
    ----------
    subjects
        First and last token of each gold subject of one sentence, all different, in any order.
    rule
        ``"published"`` or ``"uniform"``.

    Returns
    -------
    dict of (int, int) to Fraction
        The pairs of positive probability in reading order; the probabilities sum to 1. Empty for a
        sentence without subjects.

    Raises
    ------
    ValueError
        A subject ends before its start or is given twice, or the rule is unknown.

    Notes
    -----
    Starts and ends are drawn from lists that keep repetitions: a start that two subjects share is
    twice as likely.

    Source: Su 2020 (kexue 7161), counted exactly.

    Examples
    --------
    >>> drawn = subject_distribution([(0, 1), (4, 6)])
    >>> [(span, str(drawn[span])) for span in drawn]
    [((0, 1), '1/4'), ((0, 6), '1/4'), ((4, 6), '1/2')]
    """
    if rule not in ("published", "uniform"):
        raise ValueError(f"rule must be 'published' or 'uniform', got {rule!r}")
    check_subjects(subjects)
    drawn: dict[Span, Fraction] = {}
    for start, end in subjects:
        later = [other for _, other in subjects if other >= start]
        pairs = [(start, end)] if rule == "uniform" else [(start, other) for other in later]
        for pair in pairs:
            drawn[pair] = drawn.get(pair, Fraction(0)) + Fraction(1, len(subjects) * len(pairs))
    return dict(sorted(drawn.items()))


def check_subjects(subjects: Iterable[Span]) -> None:
    """Refuse what is no list of different spans."""
    seen: set[Span] = set()
    for start, end in subjects:
        if not 0 <= start <= end:
            raise ValueError(f"subjects must have 0 <= start <= end, got ({start}, {end})")
        if (start, end) in seen:
            raise ValueError(f"subjects must be all different, got ({start}, {end}) twice")
        seen.add((start, end))


def conditional_layer_norm(
    hidden: Tensor,
    condition: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_map: Tensor,
    bias_map: Tensor,
    eps: float = 1e-12,
) -> Tensor:
    r"""Layer normalisation whose gain and shift depend on a condition.

    .. math::
        \mathrm{CLN}(\mathbf h, \mathbf c) =
            \frac{\mathbf h - \bar h}{\sqrt{\mathrm{Var}(\mathbf h) + \epsilon}}
            \odot (\boldsymbol\gamma + W_\gamma\mathbf c) + (\boldsymbol\beta + W_\beta\mathbf c)

    With both maps zero, as they start, this is layer normalisation. With ``weight_map`` zero it
    adds a projected condition to every token.

    Equations: :eq:`eq:casrel-cln`

    Parameters
    ----------
    hidden
        States, ``(..., L, D)``, floating.
    condition
        One vector for all tokens of a text, ``(..., C)`` with the leading dimensions of ``hidden``.
    weight, bias
        Gain and shift, ``(D,)``.
    weight_map, bias_map
        What the condition adds to them, ``(D, C)``.
    eps
        Added to the variance; 1e-12 is BERT's.

    Returns
    -------
    Tensor
        Shape of ``hidden``.

    Raises
    ------
    ValueError
        Shapes disagree.

    Notes
    -----
    Mean and variance are over the last dimension; the variance divides by D.

    Source: Su 2019 (kexue 7124), as used in kexue 7161.

    Examples
    --------
    >>> states = torch.tensor([[[1.0, 3.0], [5.0, 1.0]]], dtype=torch.float64)
    >>> ones, zeros = torch.ones(2).double(), torch.zeros(2).double()
    >>> maps = torch.zeros(2, 1).double(), torch.full((2, 1), 0.5).double()
    >>> out = conditional_layer_norm(states, torch.ones(1, 1).double(), ones, zeros, *maps)
    >>> [[f"{v:.2f}" for v in token] for token in out[0].tolist()]
    [['-0.50', '1.50'], ['1.50', '-0.50']]
    """
    if hidden.dim() < 2 or condition.dim() == 0 or condition.shape[:-1] != hidden.shape[:-2]:
        raise ValueError(
            "condition must have the leading dimensions of hidden (..., L, D), got condition "
            f"{tuple(condition.shape)} and hidden {tuple(hidden.shape)}"
        )
    size, width = hidden.shape[-1], condition.shape[-1]
    for name, tensor, shape in (
        ("weight", weight, (size,)),
        ("bias", bias, (size,)),
        ("weight_map", weight_map, (size, width)),
        ("bias_map", bias_map, (size, width)),
    ):
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    linear = torch.nn.functional.linear
    normal = torch.nn.functional.layer_norm(hidden, (size,), eps=eps)
    gain = weight + linear(condition, weight_map)
    shift = bias + linear(condition, bias_map)
    return normal * gain.unsqueeze(-2) + shift.unsqueeze(-2)


# ------------------------------------------------------------------------------------- the losses


class ConditionalLayerNorm(nn.Module):
    """:func:`lib.casrel.conditional_layer_norm` as a module.

    Both maps start at zero: at first the condition changes nothing.

    Equations: :eq:`eq:casrel-cln`

    Parameters
    ----------
    size : int
        D, the size of the states.
    condition_size : int
        C, the size of the condition.
    eps : float
        Added to the variance.

    Examples
    --------
    >>> norm = ConditionalLayerNorm(4, 8)
    >>> norm(torch.randn(2, 3, 4), torch.randn(2, 8)).shape
    torch.Size([2, 3, 4])
    """

    def __init__(self, size: int, condition_size: int, *, eps: float = 1e-12) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.weight_map = nn.Parameter(torch.zeros(size, condition_size))
        self.bias_map = nn.Parameter(torch.zeros(size, condition_size))

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        """Normalise ``hidden`` ``(..., L, D)`` under ``condition`` ``(..., C)``."""
        return conditional_layer_norm(
            hidden,
            condition,
            self.weight,
            self.bias,
            self.weight_map,
            self.bias_map,
            self.eps,
        )

    def extra_repr(self) -> str:
        """Show the sizes in ``print(module)``."""
        size, condition_size = self.weight_map.shape
        return f"{size}, {condition_size}, eps={self.eps}"


def _cells(
    logits: Tensor, targets: Tensor, power: float, mask: Tensor | None, validate: bool
) -> Tensor:
    """Loss of each cell, 0 where the mask is False; refuses bad values, or marks them NaN."""
    scores = logits.to(_checks.compute_dtype(logits.dtype))
    given = targets
    if mask is not None:
        # What does not count must not reach a gradient, not even as 0 times NaN.
        scores, targets = scores.masked_fill(~mask, 0), targets.masked_fill(~mask, 0)
    positive = targets != 0
    bad = ~(scores < math.inf) | positive & (scores == -math.inf)
    if targets.dtype != torch.bool:
        bad = bad | (targets != 0) & (targets != 1)
    losses = torch.where(
        positive, -power * torch.nn.functional.logsigmoid(scores), _negative(scores, power)
    )
    if mask is not None:
        losses = losses.masked_fill(~mask, 0)
    losses = losses.masked_fill(bad, math.nan)
    if validate and _checks.values_readable(logits, targets, mask) and bool(bad.any()):
        _refusals.refuse_cells("targets", logits, given, mask)
    return losses


def _negative(scores: Tensor, power: float) -> Tensor:
    """``-log(1 - sigmoid(scores) ** power)`` to the last digits, and so is its gradient.

    Each piece sees only scores where it is exact: elsewhere it gets a harmless one, since the
    gradient of a value that is not taken is still multiplied by 0.
    """
    cut = power_threshold(power)  # where the power is one half
    far = max(0.0, math.log(power)) + _FAR
    low, high = scores < cut, scores > far
    log_power = power * torch.nn.functional.logsigmoid(scores.clamp(max=far))
    at_cut = -math.log(2)
    below = -torch.log1p(-log_power.masked_fill(~low, at_cut).exp())
    between = -torch.log(-torch.expm1(log_power.masked_fill(low, at_cut)))
    # log p underflows beyond; the series of -log(1 - p ** power) in exp(-s), to its second term.
    above = scores - math.log(power) + (1 + power) / 2 * (-scores.clamp(min=far)).exp()
    return torch.where(high, above, torch.where(low, below, between))


# ------------------------------------------------------------------------------------- the checks


def _check_power(power: float) -> None:
    if not 0 < power < math.inf:
        raise ValueError(f"power must be positive and finite, got {power}")


def _check_scores(logits: Tensor) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a torch.Tensor, got {type(logits).__name__}")
    if not logits.dtype.is_floating_point:
        raise TypeError(f"logits must have a floating-point dtype, got {logits.dtype}")
