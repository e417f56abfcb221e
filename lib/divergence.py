r"""Divergences of two vectors of scores that will be cut at zero.

Three divergences with one signature, symmetric, zero where the scores agree, and equal to second
order to a quadratic form of the change: :func:`softmax_divergence` for a decision by the largest
score, :func:`sigmoid_divergence` and :func:`zlpr_divergence` for a decision by the sign of each.
:func:`zlpr_regret` is the directed form of the last. Two ways to use them, for which any function
of two score vectors will do: :func:`r_drop` and :func:`virtual_adversarial_loss`.

How the numbers stay right: a divergence of nearly equal scores is a small number, and every formula
here builds it from small numbers. Nothing is the difference of two probabilities or of two
log-sum-exps; where such a difference is meant, it is written with ``expm1`` and ``log1p``. So a
change of 1e-6 has as many right digits as a change of 1, in float32 too, and scores of ±1e4 neither
overflow nor give NaN. Cells that do not count are replaced before anything is subtracted.
"""

from collections.abc import Callable
from math import inf, nan

import torch
from torch import Tensor
from torch.nn import functional as F

from lib import _checks

__all__ = [
    "Divergence",
    "r_drop",
    "sigmoid_divergence",
    "softmax_divergence",
    "virtual_adversarial_direction",
    "virtual_adversarial_loss",
    "zlpr_divergence",
    "zlpr_regret",
]

Divergence = Callable[[Tensor, Tensor], Tensor]
"""Takes two score tensors and gives one value per position, or one for all."""

_LARGE = 20.0  # exponents up to here are summed as they are, also squared in float32


def softmax_divergence(
    logits: Tensor,
    other: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: _checks.Reduction = "mean",
) -> Tensor:
    r"""Symmetric Kullback-Leibler divergence of two softmax distributions.

    .. math:: D_{\mathrm{soft}}(s, u) = \sum_i (p_i - q_i)(s_i - u_i), \qquad
        p = \mathrm{softmax}(s),\quad q = \mathrm{softmax}(u)

    It belongs to a decision by the largest score. It does not change when a constant is added to
    all scores, so it cannot see a decision by sign.

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
        Shapes or devices disagree; ``reduction`` is unknown, or ``"mean"`` of no position. Values:
        a counting score that is NaN or :math:`+\infty`, or :math:`-\infty` in one argument only,
        where the divergence is infinite. Where no Python error can depend on a value
        (``torch.compile``, ``torch.func`` transforms) the position is NaN instead.

    Notes
    -----
    A position without a counting cell has divergence 0. Source: Liang et al. 2021 (R-Drop); the
    form without logarithms is that of Su 2022 (kexue 9039).

    Examples
    --------
    >>> s = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    >>> print(f"{softmax_divergence(s, -s):.4f} {softmax_divergence(s, s - 5):.4f}")
    2.3008 0.0000
    """
    s, u, keep, bad = _prepare(logits, other, mask, reduction)
    # A position without cells: any finite equal scores will do, the divergence is 0.
    empty = ~keep.any(-1, keepdim=True)
    log_p = s.masked_fill(~keep & ~empty, -inf).log_softmax(-1)
    log_q = u.masked_fill(~keep & ~empty, -inf).log_softmax(-1)
    change = (s - u).masked_fill(~keep, 0)
    # log E_q exp(change), measured from the mean change: where one score holds all the weight, its
    # own change is then 0 and not the rounding of a difference.
    below = change - (log_q.exp() * change).sum(-1, keepdim=True).detach()
    below = below.masked_fill(~keep, 0)
    tame = below.detach().amax(-1, keepdim=True) <= _LARGE
    by_log1p = (log_q.exp() * below.clamp(max=_LARGE).expm1()).sum(-1, keepdim=True).log1p()
    by_logsumexp = (log_q + below).logsumexp(-1, keepdim=True)
    ratio = below - torch.where(tame, by_log1p, by_logsumexp)  # log p - log q
    up = ratio >= 0
    size = torch.where(up, ratio, -ratio)
    larger = torch.where(up, log_p, log_q)
    cells = larger.exp() * -(-size).expm1() * size
    return _finish(cells.masked_fill(~keep, 0).sum(-1), bad, reduction)


def sigmoid_divergence(
    logits: Tensor,
    other: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: _checks.Reduction = "mean",
) -> Tensor:
    r"""Symmetric Kullback-Leibler divergence of independent yes/no decisions, summed over cells.

    .. math:: D_\sigma(s, u) = \sum_i \bigl(\sigma(s_i) - \sigma(u_i)\bigr)(s_i - u_i)

    Computed cell by cell as :math:`d\,(1 - e^{-d})\,\sigma(h)\,\sigma(-l)` with *h* the larger and
    *l* the smaller score and :math:`d = h - l`, in which no difference of sigmoids is left.

    Parameters
    ----------
    logits, other, mask, reduction
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
    s, u, keep, bad = _prepare(logits, other, mask, reduction)
    first = s >= u
    high, low = torch.where(first, s, u), torch.where(first, u, s)
    gap = high - low
    cells = gap * -(-gap).expm1() * high.sigmoid() * (-low).sigmoid()
    return _finish(cells.masked_fill(~keep, 0).sum(-1), bad, reduction)


def zlpr_regret(
    logits: Tensor,
    target: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: _checks.Reduction = "mean",
) -> Tensor:
    r"""Excess ZLPR loss of scores over the scores that the soft labels ask for.

    .. math:: D_Z(s \,\|\, u) = \log \mathbb E_\omega e^{\Delta}
        + \log \mathbb E_\omega e^{-\Delta}, \qquad \Delta_i = u_i - s_i,\quad \Delta_0 = 0

    with :math:`\omega_i \propto 1/(2\cosh u_i)` for the cells and :math:`\omega_0 \propto 1` for
    the null class. It is the ZLPR loss of ``logits`` under soft labels :math:`\sigma(2u)`, minus
    the least value that this loss can have, which it has at *u*.

    Parameters
    ----------
    logits
        The scores *s* that are judged.
    target
        The scores *u* that are taken for right. Detach them where no gradient should flow.
    mask, reduction
        As in :func:`softmax_divergence`, with the same rules for the scores.

    Returns
    -------
    Tensor
        As :func:`softmax_divergence`. At least 0; not symmetric. The absolute values of the
        gradient with respect to ``logits`` sum to less than 2 in each position.

    Raises
    ------
    TypeError, ValueError
        As :func:`softmax_divergence`.

    Notes
    -----
    Source: ours; the soft-label loss is that of Su 2022 (kexue 9064).

    Examples
    --------
    >>> s = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    >>> print(f"{zlpr_regret(s, s + 1):.4f} {zlpr_regret(s + 1, s):.4f}")
    0.2401 0.2392
    """
    s, u, keep, bad = _prepare(logits, target, mask, reduction, name="target")
    return _finish(_regret(s, u, keep), bad, reduction)


def zlpr_divergence(
    logits: Tensor,
    other: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: _checks.Reduction = "mean",
) -> Tensor:
    r"""Mean of the two regrets: the symmetric divergence that belongs to ZLPR.

    .. math:: \bar D_Z(s, u) = \tfrac12 \bigl(D_Z(s\,\|\,u) + D_Z(u\,\|\,s)\bigr)

    The mean, not the sum, because :math:`D_Z` has no factor one half in second order, where one
    directed Kullback-Leibler divergence does: so all three divergences have one scale.

    Parameters
    ----------
    logits, other, mask, reduction
        As in :func:`softmax_divergence`.

    Returns
    -------
    Tensor
        As :func:`softmax_divergence`. The value does not grow with the number of quiet cells.

    Raises
    ------
    TypeError, ValueError
        As :func:`softmax_divergence`.

    Examples
    --------
    >>> s = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    >>> print(f"{zlpr_divergence(s, -s):.4f} {zlpr_divergence(s, s - 5):.4f}")
    1.2123 2.5974
    """
    s, u, keep, bad = _prepare(logits, other, mask, reduction)
    return _finish((_regret(s, u, keep) + _regret(u, s, keep)) / 2, bad, reduction)


def r_drop(
    first: Tensor,
    second: Tensor,
    loss: Callable[[Tensor], Tensor],
    divergence: Divergence,
    *,
    alpha: float,
) -> Tensor:
    r"""Mean loss of two passes with different dropout, plus a price for their disagreement.

    .. math:: \mathcal L = \tfrac12\bigl(\ell(s) + \ell(u)\bigr) + \tfrac\alpha4\, D(s, u)

    This is half the objective of the paper, so its :math:`\alpha` and its learning rate keep their
    meaning under Adam, and equals the published code for a doubled batch.

    Parameters
    ----------
    first, second
        Logits of two passes of one batch, of one shape.
    loss
        Logits to a scalar, with the labels inside.
    divergence
        Two logits to a scalar, symmetric: a function of this module, with its mask bound by
        ``functools.partial``.
    alpha
        Weight in the paper's convention, at least 0. The paper tries 1 to 5.

    Returns
    -------
    Tensor
        Scalar.

    Raises
    ------
    ValueError
        The shapes differ, ``alpha`` is negative or not finite, or what a callable returned is not
        a scalar.

    Notes
    -----
    Source: Liang et al. 2021, with the constants of Su's implementation.

    Examples
    --------
    >>> from functools import partial
    >>> from lib.zlpr import zlpr_loss
    >>> first, second = torch.zeros(2, 1, 3, dtype=torch.float64) + torch.tensor([[[0.0]], [[1.0]]])
    >>> loss = partial(zlpr_loss, targets=torch.tensor([[1, 0, 0]]))
    >>> print(f"{r_drop(first, second, loss, sigmoid_divergence, alpha=4):.4f}")
    2.6767
    """
    if first.shape != second.shape:
        raise ValueError(
            f"second must have the shape of first, expected {tuple(first.shape)}, "
            f"got {tuple(second.shape)}"
        )
    _check_number("alpha", alpha, zero=True)
    mean = (_scalar("loss", loss(first)) + _scalar("loss", loss(second))) / 2
    return mean + alpha / 4 * _scalar("divergence", divergence(first, second))


def virtual_adversarial_direction(
    forward: Callable[[Tensor], Tensor],
    inputs: Tensor,
    divergence: Divergence,
    *,
    xi: float,
    steps: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Direction of each input along which the scores change most, by power iteration.

    .. math:: r \leftarrow \frac{g}{\|g\|}, \qquad
        g = \nabla_r\, D\bigl(f(x + \xi r), f(x)\bigr)

    from a random unit vector *r*. Near :math:`r = 0` the divergence is a quadratic form, so the
    gradient multiplies *r* by its matrix, and repeating this turns *r* to the eigenvector of the
    largest eigenvalue. The divergences of this module have right digits for tiny changes, so
    :math:`\xi` may be small, also in float32.

    Parameters
    ----------
    forward
        Inputs ``(B, ...)`` to logits. Deterministic (no dropout), each sample for itself.
    inputs
        What is disturbed, ``(B, ...)``, floating point: word vectors, say.
    divergence
        Two logits to one value per position or one for all. Scores that did not move have
        divergence and gradient 0.
    xi
        Length of the probing step, above 0.
    steps
        Power iterations, at least 1; each is one forward and one backward pass.
    generator
        Where the start comes from.

    Returns
    -------
    Tensor
        Shape and dtype of `inputs`, detached. Each sample has length 1 over all its other
        dimensions. Where the gradient is zero the direction stays as it was.

    Raises
    ------
    TypeError
        `inputs` is not a floating-point tensor.
    ValueError
        `inputs` has fewer than two dimensions, `xi` is not positive and finite, or `steps` < 1.

    Notes
    -----
    Gradients of the model's parameters are not touched. Source: Miyato et al. 2018.

    Examples
    --------
    >>> weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> r = virtual_adversarial_direction(
    ...     lambda x: x @ weight.T, torch.zeros(1, 2, dtype=torch.float64), sigmoid_divergence,
    ...     xi=1e-6, steps=9, generator=torch.Generator().manual_seed(0))
    >>> [f"{abs(v):.4f}" for v in r[0]]
    ['1.0000', '0.0000']
    """
    _check_inputs(inputs, xi, steps)
    with torch.no_grad():
        target = forward(inputs)
    return _direction(forward, inputs.detach(), target, divergence, xi, steps, generator)


def virtual_adversarial_loss(
    forward: Callable[[Tensor], Tensor],
    inputs: Tensor,
    divergence: Divergence,
    *,
    epsilon: float,
    xi: float,
    steps: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Divergence between the scores and those at the worst disturbed input; needs no labels.

    .. math:: \mathcal L_{\mathrm{vat}} = D\bigl(f(x + \epsilon r), f(x)\bigr)

    with *r* from :func:`virtual_adversarial_direction`. Neither *r* nor the undisturbed scores
    pass on a gradient.

    Parameters
    ----------
    forward, inputs, divergence, xi, steps, generator
        As in :func:`virtual_adversarial_direction`.
    epsilon
        Length of the disturbance of each sample, above 0.

    Returns
    -------
    Tensor
        What `divergence` returns.

    Raises
    ------
    TypeError, ValueError
        As :func:`virtual_adversarial_direction`; `epsilon` is not positive and finite.

    Notes
    -----
    Source: Miyato et al. 2018.

    Examples
    --------
    >>> weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> loss = virtual_adversarial_loss(
    ...     lambda x: x @ weight.T, torch.zeros(1, 2, dtype=torch.float64), sigmoid_divergence,
    ...     epsilon=1.0, xi=1e-6, steps=9, generator=torch.Generator().manual_seed(0))
    >>> print(f"{loss:.4f}")  # 3 (σ(3) - σ(0))
    1.3577
    """
    _check_inputs(inputs, xi, steps)
    _check_number("epsilon", epsilon)
    with torch.no_grad():
        target = forward(inputs)
    r = _direction(forward, inputs.detach(), target, divergence, xi, steps, generator)
    return divergence(forward(inputs + epsilon * r), target)


# ------------------------------------------------------------------------------------ arithmetic


def _regret(s: Tensor, u: Tensor, keep: Tensor) -> Tensor:
    """Regret of each position; cells outside `keep` hold 0 in both arguments.

    (1 + a)(1 + b), with a = E expm1(δ) and b = E expm1(-δ), does not depend on where δ is measured
    from. Measured from its mean, a and b are of second order; their *sum* E 4 sinh²(δ/2) has no
    cancellation at all, and their product is of fourth order. So log1p(a + b + ab) has right
    digits however small the change.
    """
    # log of e^Δ w, e^-Δ w and w, with w = 1 / (2 cosh u), without adding up large terms: for
    # u = 1e4, w = e^-u underflows where e^Δ w = σ(2u) e^-s does not.
    plus = F.logsigmoid(2 * u) - s
    minus = F.logsigmoid(-2 * u) + s
    weight = -u.abs() - (-2 * u.abs()).exp().log1p()
    change = u - s
    # The null class is one more cell, with weight 1 and change 0.
    plus, minus, weight, change = (
        F.pad(values.masked_fill(~keep, empty), (1, 0))
        for values, empty in ((plus, -inf), (minus, -inf), (weight, -inf), (change, 0.0))
    )
    scale = weight[..., 1:].exp().sum(-1, keepdim=True).log1p()
    weight = weight - scale
    share = weight.exp()
    centre = (share * change).sum(-1, keepdim=True).detach()
    plus, minus, change = plus - scale - centre, minus - scale + centre, change - centre

    top = torch.maximum(plus.detach().amax(-1), minus.detach().amax(-1))
    tame = top <= _LARGE
    small = change.abs() <= 1
    inner = change.masked_fill(~small, 0)
    up, down = plus.clamp(max=_LARGE).exp(), minus.clamp(max=_LARGE).exp()
    a = torch.where(small, share * inner.expm1(), up - share).sum(-1)
    b = torch.where(small, share * (-inner).expm1(), down - share).sum(-1)
    both = torch.where(small, 4 * share * (inner / 2).sinh().square(), up + down - 2 * share)
    gain = (both.sum(-1) + a * b).masked_fill(~tame, 0)
    return torch.where(tame, gain.log1p(), plus.logsumexp(-1) + minus.logsumexp(-1))


def _direction(
    forward: Callable[[Tensor], Tensor],
    inputs: Tensor,
    target: Tensor,
    divergence: Divergence,
    xi: float,
    steps: int,
    generator: torch.Generator | None,
) -> Tensor:
    # Drawn where the generator lives: one on the CPU serves inputs on any device.
    place = inputs.device if generator is None else generator.device
    r = torch.randn(inputs.shape, generator=generator, device=place).to(inputs)
    r = _unit(r, r)
    for _ in range(steps):
        probe = r.clone().requires_grad_()
        with torch.enable_grad():
            moved = divergence(forward(inputs + xi * probe), target).sum()
        (gradient,) = torch.autograd.grad(moved, probe)
        r = _unit(gradient, r)
    return r


def _unit(vectors: Tensor, otherwise: Tensor) -> Tensor:
    """Each sample divided by its length, or what stood there if its length is 0."""
    flat = vectors.flatten(1)
    # By the largest entry first: squares of tiny gradients underflow.
    top = flat.abs().amax(1, keepdim=True)
    flat = flat / top.masked_fill(top == 0, 1)
    length = flat.norm(dim=1, keepdim=True)
    flat = torch.where(top == 0, otherwise.flatten(1), flat / length.masked_fill(top == 0, 1))
    return flat.view_as(vectors)


# ---------------------------------------------------------------------------------------- checks


def _prepare(
    logits: Tensor, other: Tensor, mask: Tensor | None, reduction: str, *, name: str = "other"
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Both scores in the computing dtype, 0 where they do not count; the cells that do; bad rows.

    ``name`` is what the caller calls ``other``. The replacement comes before any arithmetic:
    infinity minus infinity must not arise, not even in a cell whose result is thrown away, because
    its gradient would be NaN.
    """
    _checks.check_logits(logits)
    _checks.check_labels(name, other, logits)
    if not other.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating-point dtype, got {other.dtype}")
    mask = _checks.check_mask(mask, logits)
    _checks.check_reduction(reduction, logits.shape[:-1].numel())
    nothing = (logits == -inf) & (other == -inf)
    keep = ~nothing if mask is None else mask & ~nothing
    wrong = keep & ~(logits.isfinite() & other.isfinite())
    bad = None
    if not _checks.values_readable(logits, other, mask):
        bad = wrong.any(-1)
        keep = keep & ~wrong
    elif wrong.any():
        at = _checks.first_true(wrong)
        place = ", ".join(map(str, at))
        raise ValueError(
            "scores that count must be finite, or -inf in both arguments, got "
            f"{logits[at].item()} and {other[at].item()} at [{place}]"
        )
    dtype = _checks.compute_dtype(torch.promote_types(logits.dtype, other.dtype))
    s, u = (scores.to(dtype).masked_fill(~keep, 0) for scores in (logits, other))
    return s, u, keep, bad


def _finish(values: Tensor, bad: Tensor | None, reduction: str) -> Tensor:
    if bad is not None:
        values = values.masked_fill(bad, nan)
    return _checks.reduce(values, reduction)


def _check_inputs(inputs: Tensor, xi: float, steps: int) -> None:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        kind = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TypeError(f"inputs must be a floating-point tensor, got {kind}")
    if inputs.dim() < 2:
        raise ValueError(f"inputs must have shape (B, ...), got {tuple(inputs.shape)}")
    _check_number("xi", xi)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")


def _check_number(name: str, value: float, *, zero: bool = False) -> None:
    if not (0 < value < inf or (zero and value == 0)):
        bound = "at least 0" if zero else "above 0"
        raise ValueError(f"{name} must be {bound} and finite, got {value}")


def _scalar(name: str, value: Tensor) -> Tensor:
    if value.dim() != 0:
        raise ValueError(f"{name} must return a scalar, got shape {tuple(value.shape)}")
    return value
