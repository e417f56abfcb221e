r"""Accuracy that can be trained: the chance that a noisy score picks the right class.

Add independent Gaussian noise to every score and take the best class. The chance that this is the
target is a smooth stand-in for "right or wrong"; one minus it is the EXACT loss.

The chance is a probability of a positive orthant in ``C - 1`` dimensions, and published code
samples it there. Given the noise of the target the rivals are independent, so it is an integral
over *one* variable, and here a fixed rule of some tens of nodes computes it to rounding:

* nodes lie where the integrand of each row has its mass, however far out that is, so
  log-probabilities of -1e4 have as many right digits as those of -1;
* where the chance of an error is small, that chance is what is integrated, so a loss of 1e-12
  keeps its digits too;
* half-precision input is computed in float32, under autocast too.

How it is fast on a CPU: cells of rows, nodes and classes pass through a scratch buffer that fits
the cache, in place; the error function, which PyTorch vectorises, stands in for its slow
``log_ndtr`` wherever it does not underflow; and the gradient is formed beside the value, so that
nothing of the size of the nodes outlives a chunk.
"""

import math
from typing import NoReturn

import torch
from torch import Tensor, nn

from lib import _checks, _refusals
from lib.exact._integral import default_nodes, log_probabilities

__all__ = ["ExactLoss", "exact_loss", "expected_accuracy", "log_expected_accuracy"]


def log_expected_accuracy(
    logits: Tensor,
    targets: Tensor,
    *,
    noise: float | Tensor = 1.0,
    nodes: int | None = None,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    validate: bool = True,
) -> Tensor:
    r"""Logarithm of the chance that the target has the best score under Gaussian noise.

    .. math::
        \log P_\tau = \log \int_{-\infty}^\infty \varphi(z)
            \prod_{i \ne \tau} \Phi(z + \delta_i)\, dz,
        \qquad \delta_i = \frac{\mu_\tau - \mu_i}{\varsigma}

    with the scores :math:`\mu`, the noise level :math:`\varsigma`, and the density and distribution
    function of the standard normal, :math:`\varphi` and :math:`\Phi`.

    Equations: :eq:`eq:exact-integral`, :eq:`eq:exact-log-gradient`, :eq:`eq:exact-window`

    Parameters
    ----------
    logits
        Scores, shape ``(..., C)`` with ``C >= 1``, any floating dtype. Finite or :math:`-\infty`;
        a rival at :math:`-\infty` does not count and gets gradient zero.
    targets
        Index of the right class, shape ``(...)``, int64 in ``[0, C)`` or ``ignore_index``.
    noise
        Standard deviation of the noise of each score, finite and above 0: a number, or a 0-d
        tensor, to which a gradient flows and whose changes compiled code takes as they come.
    nodes
        Nodes of the quadrature, at least 8. The default grows with the logarithm of ``C``: 23 in
        float32 and 40 in float64 for 10 classes, 41 and 72 for 1000. It keeps the error of the
        rule, relative to the result, below 2e-7 and 2e-10.
    mask
        Bool, broadcastable to ``(..., C)``; True counts. A rival that does not count gets gradient
        exactly zero, and may hold anything.
    ignore_index
        Rows with this target do not count: chance 1, gradient 0, whatever their logits.
    validate
        Whether to look at the values, as in :func:`lib.zlpr.zlpr_loss`.

    Returns
    -------
    Tensor
        Shape ``(...)``, at most 0. float32 for half-precision logits, else the logits' dtype.

    Raises
    ------
    TypeError
        An argument is no tensor or has a dtype of the wrong kind; ``nodes`` is no int.
    ValueError
        Shapes or devices disagree; ``noise`` or ``nodes`` is out of range; a target is no class,
        does not count or has a logit of :math:`-\infty`; a logit that counts is NaN or
        :math:`+\infty`.

    Notes
    -----
    Where no Python error can depend on a value (``torch.compile``, ``torch.func`` transforms, CUDA
    graph capture), a row with a bad value becomes NaN instead. With one class the result is 0 and
    the gradient too. Derivatives of any order exist in reverse mode and under ``torch.func``; those
    of the second and higher orders are computed by plain operations, which take more time and
    memory. ``torch.autograd.forward_ad`` is not supported. On a GPU the rule itself waits for it to
    learn where the mass of the rows lies, unless a graph is traced.

    Source: Karpukhin, Dereka and Kolesnikov 2024 (the loss); Su 2022 (kexue 9085, the integral).

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 400.0, 0.0]], dtype=torch.float64)
    >>> [f"{p:.5f}" for p in log_expected_accuracy(logits, torch.tensor([0, 0]))]
    ['-0.45618', '-40006.56384']
    """
    log_p, _ = _log_probabilities(logits, targets, noise, None, nodes, mask, ignore_index, validate)
    return log_p


def expected_accuracy(
    logits: Tensor,
    targets: Tensor,
    *,
    noise: float | Tensor = 1.0,
    nodes: int | None = None,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    validate: bool = True,
) -> Tensor:
    r"""Chance that the target has the best score under Gaussian noise.

    .. math::
        P_\tau = \Pr\bigl(\mu_\tau + \varsigma\varepsilon_\tau >
            \max_{i \ne \tau}(\mu_i + \varsigma\varepsilon_i)\bigr),
        \qquad \varepsilon_i \sim \mathcal N(0, 1) \text{ independent}

    The chances of all classes of a row sum to 1. With two classes,
    :math:`P_\tau = \Phi(\delta / \sqrt 2)`.

    Equations: :eq:`eq:exact-definition`, :eq:`eq:exact-integral`, :eq:`eq:exact-gradient`

    Parameters
    ----------
    logits, targets, noise, nodes, mask, ignore_index, validate
        As in :func:`log_expected_accuracy`.

    Returns
    -------
    Tensor
        Shape ``(...)``, in [0, 1]. float32 for half-precision logits, else the logits' dtype.

    Raises
    ------
    TypeError, ValueError
        As :func:`log_expected_accuracy`.

    Notes
    -----
    Source: Karpukhin, Dereka and Kolesnikov 2024; Su 2022 (kexue 9085) for the integral.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    >>> [f"{p:.4f}" for p in expected_accuracy(logits, torch.tensor([0, 2]))]
    ['0.6337', '0.3333']
    """
    log_p, _ = _log_probabilities(logits, targets, noise, None, nodes, mask, ignore_index, validate)
    return log_p.exp()


def exact_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    noise: float | Tensor = 1.0,
    margin: float | None = None,
    log: bool = False,
    mask: Tensor | None = None,
    ignore_index: int = -100,
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""EXACT loss, the chance of a wrong decision, or its repair, the negative log-likelihood.

    .. math::
        \ell = 1 - P_\tau \qquad\text{or, with log,}\qquad \ell = -\log P_\tau

    The two agree to first order where the decision is safe. On badly wrong rows the first is flat,
    with a gradient that vanishes, and the second grows like a square.

    Equations: :eq:`eq:exact-loss`, :eq:`eq:exact-repair`, :eq:`eq:exact-margin`

    Parameters
    ----------
    logits, targets, noise, mask, ignore_index, validate
        As in :func:`log_expected_accuracy`.
    margin
        If given, above 0: differences :math:`\mu_\tau - \mu_i` count as at most this much, so a
        rival that is beaten by more gets gradient zero. In units of the logits. A rival at
        :math:`-\infty` is none with a margin too.
    log
        Whether to take :math:`-\log P_\tau` instead of :math:`1 - P_\tau`.
    reduction
        Over the leading dimensions: ``"none"``, ``"mean"`` (over the rows that count; 0 if none
        does) or ``"sum"``.

    Returns
    -------
    Tensor
        Shape ``(...)`` for ``"none"``, else a scalar. float32 for half-precision logits, else the
        logits' dtype. The gradient has the logits' dtype.

    Raises
    ------
    TypeError, ValueError
        As :func:`log_expected_accuracy`; ``margin`` is not above 0; ``reduction`` is unknown.

    Notes
    -----
    Source: Karpukhin, Dereka and Kolesnikov 2024, the margin from their code; the repair is ours.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[1.0, 0.0, 0.0], [0.0, 12.0, 0.0]], dtype=torch.float64)
    >>> targets = torch.tensor([0, 0])
    >>> [f"{loss:.4f}" for loss in exact_loss(logits, targets, reduction="none")]
    ['0.3663', '1.0000']
    >>> [f"{loss:.4f}" for loss in exact_loss(logits, targets, log=True, reduction="none")]
    ['0.4562', '39.0707']
    """
    _checks.check_reduction(reduction)
    log_p, counts = _log_probabilities(
        logits, targets, noise, margin, None, mask, ignore_index, validate
    )
    if log:
        return _checks.reduce(0 - log_p, reduction, counts)  # minus 0 would be -0
    # Each form has its digits on its side; and so has its derivative, which PyTorch takes from the
    # result: that of expm1, when the result is -1, is exactly 0.
    wrong = torch.where(log_p < -math.log(2), 1 - log_p.exp(), -torch.expm1(log_p))
    return _checks.reduce(wrong, reduction, counts)


class ExactLoss(nn.Module):
    """:func:`exact_loss` as a module.

    Equations: :eq:`eq:exact-loss`, :eq:`eq:exact-repair`

    Parameters
    ----------
    noise, margin, log, ignore_index, reduction, validate
        As in :func:`exact_loss`. ``noise`` may be changed between calls: that is annealing.

    Examples
    --------
    >>> import torch
    >>> loss = ExactLoss(log=True)(torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0, 2]))
    >>> print(f"{loss:.4f}")
    1.0986
    """

    def __init__(
        self,
        *,
        noise: float | Tensor = 1.0,
        margin: float | None = None,
        log: bool = False,
        ignore_index: int = -100,
        reduction: _checks.Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__()
        _check_noise(noise, validate=validate)
        _check_margin(margin)
        _checks.check_reduction(reduction)
        self.noise = noise
        self.margin = margin
        self.log = log
        self.ignore_index = _checks.as_index("ignore_index", ignore_index)
        self.reduction = reduction
        self.validate = validate

    def forward(self, logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of ``logits`` ``(..., C)`` against classes ``targets`` ``(...)``."""
        return exact_loss(
            logits,
            targets,
            noise=self.noise,
            margin=self.margin,
            log=self.log,
            mask=mask,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            validate=self.validate,
        )

    def extra_repr(self) -> str:
        """Show the options in ``print(module)``."""
        return (
            f"noise={self.noise}, margin={self.margin}, log={self.log}, "
            f"ignore_index={self.ignore_index}, reduction={self.reduction!r}, "
            f"validate={self.validate}"
        )


def _log_probabilities(
    logits: Tensor,
    targets: Tensor,
    noise: float | Tensor,
    margin: float | None,
    nodes: int | None,
    mask: Tensor | None,
    ignore_index: int,
    validate: bool,
) -> tuple[Tensor, Tensor | None]:
    """Check the arguments, form the advantages over each rival, integrate.

    The result, and which rows count; None if all do.
    """
    _checks.check_logits(logits)
    _checks.check_classes("targets", targets, logits)
    mask = _checks.check_mask(mask, logits)
    ignore_index = _checks.as_index("ignore_index", ignore_index)
    readable = _checks.values_readable(logits, targets, mask)
    looks = validate and readable
    _check_noise(noise, validate=looks)
    _check_margin(margin)
    classes = logits.shape[-1]
    dtype = _checks.compute_dtype(logits.dtype)
    if nodes is None:
        nodes = default_nodes(classes, dtype)
    elif (nodes := _checks.as_index("nodes", nodes)) < 8:
        raise ValueError(f"nodes must be at least 8, got {nodes}")

    scores = logits if mask is None else logits.masked_fill(~mask, -math.inf)
    rows, classes_of = scores.reshape(-1, classes), targets.reshape(-1, 1)
    ignored = classes_of == ignore_index
    safe = classes_of.clamp(0, classes - 1)
    own = rows.gather(1, safe)
    bad = (classes_of != safe) | ~(rows.amax(1, keepdim=True) < math.inf) | (own == -math.inf)
    if isinstance(noise, Tensor):
        bad = bad | ~((noise > 0) & (noise < math.inf))
    apart = bad | ignored
    # One look for both: rows apart are rare.
    some_apart = not looks or bool(apart.any())
    if looks and some_apart and bool((bad & ~ignored).any()):
        _refuse(logits, targets, mask, ignore_index)
    # Differences in the logits' own units: scaling first would lose digits of large scores.
    ahead = own.to(dtype) - rows.to(dtype)
    if margin is not None:
        # Not clamp: its gradient at the margin itself is 1 for one order of arguments only. And a
        # rival at -inf stays infinitely far behind: at the margin it would take part.
        beaten = (ahead > margin) & (rows > -math.inf)
        ahead = torch.where(beaten, margin, ahead)
    ahead = ahead / noise
    # The target is no rival of itself, and one at -inf is none either: infinitely far behind.
    ahead = ahead.scatter(1, safe, math.inf)
    if some_apart:
        ahead = ahead.masked_fill(apart, math.inf)
    log_p = log_probabilities(ahead, nodes, by_kernel=readable)
    if not looks:
        log_p = torch.where((bad & ~ignored).squeeze(1), math.nan, log_p)
    counts = ~ignored.reshape(targets.shape) if some_apart else None
    return log_p.reshape(targets.shape), counts


def _check_noise(noise: float | Tensor, *, validate: bool) -> None:
    """Raise unless the noise is a number, or a 0-d tensor, that is finite and above 0."""
    if isinstance(noise, Tensor):
        if noise.dim() != 0 or noise.dtype.is_complex:
            raise ValueError(
                f"noise must be a number or a real 0-d tensor, got {noise.dtype} "
                f"of shape {tuple(noise.shape)}"
            )
        if not (validate and _checks.values_readable(noise)):
            return
        noise = noise.item()
    if not 0 < noise < math.inf:
        raise ValueError(f"noise must be finite and above 0, got {noise}")


def _check_margin(margin: float | None) -> None:
    if margin is not None and not margin > 0:
        raise ValueError(f"margin must be above 0, got {margin}")


def _refuse(logits: Tensor, targets: Tensor, mask: Tensor | None, ignore_index: int) -> NoReturn:
    """Raise for the first bad value in rows that count, among which there is one."""
    classes = logits.shape[-1]
    counts = targets != ignore_index
    outside = counts & ((targets < 0) | (targets >= classes))
    if outside.any():
        at = _refusals.first_true(outside)
        raise ValueError(
            f"targets must be classes in [0, {classes}) or ignore_index = {ignore_index}, "
            f"got {targets[at].item()} at {_refusals.place('targets', at)}"
        )
    safe = targets.clamp(0, classes - 1).unsqueeze(-1)
    for name, table, forbidden, rule in (
        ("mask", mask, False, "be on a cell that counts"),
        ("logits", logits, -math.inf, "have a finite logit"),
    ):
        if table is None:
            continue
        lost = counts & (table.gather(-1, safe).squeeze(-1) == forbidden)
        if lost.any():
            at = _refusals.first_true(lost)
            label = int(targets[at])
            raise ValueError(
                f"a target must {rule}, got {_refusals.place('targets', at)} = {label} "
                f"and {_refusals.place(name, (*at, label))} = {forbidden}"
            )
    counts = counts.unsqueeze(-1) if mask is None else counts.unsqueeze(-1) & mask
    _refusals.refuse_logits("logits", logits, counts)
    raise AssertionError("no bad value among the arguments")  # a caller's mistake, never a user's
