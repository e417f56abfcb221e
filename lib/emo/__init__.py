r"""Losses that price a wrong token by how far its embedding lies from the right one's.

:func:`emo_loss` is the mean cost of the model's distribution, the optimal transport cost to a
one-hot target. :func:`kernel_score_loss` is the same without its spread term, which makes it a
proper score. :func:`emo_mixture_loss` adds cross-entropy in the ways that published code does.
:func:`linear_emo_loss` computes EMO and mixtures from hidden states and the head's weight without
holding tokens × vocabulary. :func:`soft_emo_loss` takes a distribution as target.

How the numbers stay right:

* the target is left out of every sum. A confident model's loss is what remains for the wrong
  tokens; ``1 - <mu, e>`` would be rounding, and a weight divided by it noise;
* half-precision input is computed in float32, under autocast too, and long sums are kept there.
  The products of ``backward`` obey the region it runs in: call it outside of autocast, as PyTorch
  asks. Compiled code runs it as the forward's region says, unless PyTorch's
  ``torch._functorch.config.backward_pass_autocast`` is "off";
* embeddings are constants, scaled to length one here; a row without direction is refused.
"""

from math import inf, nan
from typing import Literal, NoReturn

import torch
from torch import Tensor, nn

from lib import _checks, _refusals
from lib._linear import all_finite, check_head, require_finite
from lib.emo._embeddings import UnitEmbeddings, directions, unit_rows
from lib.emo._linear import linear_losses
from lib.emo._mixture import Mixture
from lib.emo._terms import (
    Form,
    Targets,
    by_rows,
    check_targets,
    kernel,
    mixed,
    refuse,
)
from lib.emo._transport import exact_cost

__all__ = [
    "EMOLoss",
    "KernelScoreLoss",
    "LinearEMOLoss",
    "Mixture",
    "UnitEmbeddings",
    "emo_loss",
    "emo_mixture_loss",
    "kernel_score_loss",
    "linear_emo_loss",
    "soft_emo_loss",
]


def emo_loss(
    logits: Tensor,
    targets: Tensor,
    embeddings: Tensor | UnitEmbeddings,
    *,
    ignore_index: int = -100,
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""Mean cost of the softmax of ``logits`` for one right token: the EMO loss.

    .. math::
        \ell = \sum_{i \ne \tau} p_i\,c_{i\tau}
             = 1 - \langle\mu_p, \hat{\mathbf e}_\tau\rangle, \qquad
        \mu_p = \sum_i p_i\,\hat{\mathbf e}_i

    with :math:`c_{i\tau} = 1 - \langle\hat{\mathbf e}_i, \hat{\mathbf e}_\tau\rangle`. It is the
    optimal transport cost from the softmax to the target. It is linear in the probabilities, so
    averaged over data it is smallest at a single token; see :func:`kernel_score_loss`.

    Equations: :eq:`eq:emo-loss`, :eq:`eq:emo-rest`, :eq:`eq:emo-gradient`,
    :eq:`eq:ot-one-hot`

    Parameters
    ----------
    logits
        Scores, shape ``(..., V)`` with ``V >= 1``, any floating dtype. Finite or :math:`-\infty`;
        a token at :math:`-\infty` has probability 0 and gets gradient zero.
    targets
        The right tokens, shape ``(...)``, int64 in ``[0, V)`` or ``ignore_index``.
    embeddings
        One row per token, shape ``(V, D)``, or :class:`UnitEmbeddings`. Rows are scaled to length
        one here. They are constants: no gradient flows to them, and a tensor that asks for one is
        refused.
    ignore_index
        Positions with this target do not count: loss and gradient 0, whatever their logits.
    reduction
        ``"none"``, ``"mean"`` (over the positions that count; 0 if none does) or ``"sum"``.
    validate
        Whether to look at the values, as in :func:`lib.zlpr.zlpr_loss`.

    Returns
    -------
    Tensor
        Shape ``(...)`` for ``"none"``, else a scalar; in [0, 2]. float32 for half-precision logits,
        else the logits' dtype. The gradient has the logits' dtype.

    Raises
    ------
    TypeError
        An argument is no tensor or has a dtype of the wrong kind.
    ValueError
        Shapes or devices disagree; ``reduction`` is unknown; ``embeddings`` requires a gradient.
        Values: a target out of range or on a padding row; a logit that is
        NaN or :math:`+\infty`; a target whose logit is :math:`-\infty`; an embedding row that is
        zero or not finite.

    Notes
    -----
    Where no Python error can depend on a value (``torch.compile``, ``torch.export``, ``make_fx``,
    ``torch.func`` transforms, CUDA graph capture), a bad row has the value NaN instead.
    Derivatives of any order exist.

    Source: Ren, Wu & Zhu 2024 (arXiv 2310.04691); Su 2023 (kexue 9797).

    Examples
    --------
    >>> import torch
    >>> table = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0.9, 0.19**0.5]], dtype=torch.float64)
    >>> logits = torch.tensor([0.4, 0.38, 0.22], dtype=torch.float64).log()
    >>> print(f"{emo_loss(logits, torch.tensor(1), table):.4f}")
    0.4220
    """
    return _loss(mixed(None), logits, targets, embeddings, ignore_index, reduction, validate)


def kernel_score_loss(
    logits: Tensor,
    targets: Tensor,
    embeddings: Tensor | UnitEmbeddings,
    *,
    ignore_index: int = -100,
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""Half the squared distance between the mean direction and the target's: a proper score.

    .. math::
        \ell_{KS} = \tfrac12\,\|\mu_p - \hat{\mathbf e}_\tau\|^2
                  = \ell_{EMO} - \tfrac12\bigl(1 - \|\mu_p\|^2\bigr)

    Averaged over data it is smallest where :math:`\mu_p = \mu_q`: the model is asked for the right
    mean direction, not for the one cheapest token. With orthogonal embeddings it is half the Brier
    score.

    Equations: :eq:`eq:kernel-score`, :eq:`eq:kernel-gradient`, :eq:`eq:kernel-brier`

    Parameters
    ----------
    logits, targets, embeddings, ignore_index, reduction, validate
        As in :func:`emo_loss`.

    Returns
    -------
    Tensor
        As :func:`emo_loss`; in [0, 2].

    Raises
    ------
    TypeError, ValueError
        As :func:`emo_loss`.

    Notes
    -----
    Source: ours.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([0.4, 0.38, 0.22], dtype=torch.float64).log()
    >>> loss = kernel_score_loss(logits, torch.tensor(0), torch.eye(3, dtype=torch.float64))
    >>> print(f"{loss:.4f} = {(0.6**2 + 0.38**2 + 0.22**2) / 2:.4f}")
    0.2764 = 0.2764
    """
    return _loss(kernel, logits, targets, embeddings, ignore_index, reduction, validate)


def emo_mixture_loss(
    logits: Tensor,
    targets: Tensor,
    embeddings: Tensor | UnitEmbeddings,
    *,
    mixture: Mixture,
    ignore_index: int = -100,
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""Cross-entropy and EMO together, token by token.

    .. math::
        \ell = a\,\ell_{CE} + b\,\ell_{EMO}

    with the weights of a :class:`Mixture`, which get no gradient.

    Equations: :eq:`eq:emo-published`, :eq:`eq:emo-published-two`, :eq:`eq:emo-mixture`

    Parameters
    ----------
    mixture
        How the weights are found.
    logits, targets, embeddings, ignore_index, reduction, validate
        As in :func:`emo_loss`.

    Returns
    -------
    Tensor
        As :func:`emo_loss`, but without its upper bound.

    Raises
    ------
    TypeError, ValueError
        As :func:`emo_loss`; ``mixture`` is no :class:`Mixture`.

    Notes
    -----
    Values of different mixtures cannot be compared. With
    ``Mixture.emo_scaled_to_cross_entropy()`` the value is that of cross-entropy (half of it where
    EMO is 0 or rounding), but the gradient is not.

    Source: ``emo1`` and ``emo2`` of the code of Ren, Wu & Zhu 2024, without the shifted value.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([0.4, 0.38, 0.22], dtype=torch.float64).log()
    >>> table = torch.eye(3, dtype=torch.float64)
    >>> loss = emo_mixture_loss(
    ...     logits, torch.tensor(0), table, mixture=Mixture.emo_scaled_to_cross_entropy()
    ... )
    >>> print(f"{loss:.4f} = {-logits[0]:.4f}")
    0.9163 = 0.9163
    """
    _check_mixture(mixture)
    return _loss(mixed(mixture), logits, targets, embeddings, ignore_index, reduction, validate)


def linear_emo_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    embeddings: Tensor | UnitEmbeddings,
    *,
    bias: Tensor | None = None,
    mixture: Mixture | None = None,
    ignore_index: int = -100,
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""EMO of ``hidden @ weight.T + bias``, without ever holding those logits.

    Equal to :func:`emo_loss`, or with a ``mixture`` to :func:`emo_mixture_loss`, of these logits.
    Tokens go through in chunks; for a scalar result the gradients are formed in the same pass, so
    the backward pass costs nothing and the memory above the arguments is the gradients and two
    chunks of logits.

    Equations: :eq:`eq:emo-loss`, :eq:`eq:emo-logit-gradient`, :eq:`eq:emo-linear-gradient`

    Parameters
    ----------
    hidden
        States, shape ``(..., H)``, any floating dtype.
    weight
        The head, shape ``(V, H)``, any floating dtype.
    targets
        The right tokens, shape ``(...)``, int64 in ``[0, V)`` or ``ignore_index``.
    embeddings
        As in :func:`emo_loss`, shape ``(V, D)``; ``D`` need not be ``H``. For costs that follow
        the head pass ``weight.detach()``, for frozen ones :class:`UnitEmbeddings` of a copy.
    bias
        The head's bias, shape ``(V,)``, any floating dtype; :math:`-\infty` takes a token away.
    mixture
        Adds cross-entropy in the same pass; EMO alone if None.
    ignore_index, reduction
        As in :func:`emo_loss`. With ``"none"`` the backward pass computes each chunk again,
        because the factor of each token is known only then.
    validate
        As in :func:`emo_loss`. If False, ignored positions are computed too, and thrown away: how
        many they are is a value.

    Returns
    -------
    Tensor
        As :func:`emo_loss`.

    Raises
    ------
    TypeError, ValueError
        As :func:`emo_loss`. A state, weight or bias that is not finite is reported where it makes
        the loss or the gradient of ``hidden`` not finite.

    Notes
    -----
    Half-precision arguments are computed in float32, by blocks; their gradients stay float32 until
    the factor of the backward pass is on them, and are rounded once. Under ``torch.compile``,
    ``torch.func`` and for second derivatives the plain formula runs, which holds all logits.

    Source: as :func:`emo_loss`; the computation by blocks is ours.

    Examples
    --------
    >>> import torch
    >>> hidden, weight = torch.eye(2, 3), torch.eye(4, 3)
    >>> loss = linear_emo_loss(hidden, weight, torch.tensor([0, 3]), torch.eye(4))
    >>> print(f"{loss:.4f}")
    0.6749
    """
    check_head(hidden, weight, bias)
    if mixture is not None:
        _check_mixture(mixture)
    _checks.check_classes("targets", targets, hidden)
    _checks.check_reduction(reduction)
    ignore_index = _checks.as_index("ignore_index", ignore_index)
    found = directions(embeddings, weight.shape[0], hidden.device, validate)
    look = validate and _checks.values_readable(hidden, weight, bias, targets, found.table)
    places = check_targets(targets, weight.shape[0], ignore_index, found, look)
    states = hidden.reshape(-1, hidden.shape[-1])
    result = linear_losses(states, weight, bias, places.flat(), found, mixture, reduction)
    if look and not bool(result.isfinite().all()):
        with torch.no_grad():
            require_finite("hidden", hidden, places.counts)
            require_finite("weight", weight)
            if bias is not None:
                _refuse_bias(bias, places)
        raise ValueError(
            "hidden and weight must give finite logits, got a product that overflows "
            f"{_checks.compute_dtype(torch.promote_types(hidden.dtype, weight.dtype))}"
        )
    return result.reshape(targets.shape) if reduction == "none" else result


def soft_emo_loss(
    logits: Tensor,
    target_probabilities: Tensor,
    embeddings: Tensor | UnitEmbeddings,
    *,
    by: Literal["transport", "bound", "kernel"] = "transport",
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""Distance of the softmax of ``logits`` from a distribution over tokens, three ways.

    ``"transport"`` is the optimal transport cost, one linear programme per position: for small
    vocabularies. ``"bound"`` is :math:`p^\top C q`, the cost of moving everything everywhere,
    which is what EMO averages to; it is no divergence and not smallest at :math:`p = q`.
    ``"kernel"`` is :math:`\frac12\|\mu_p - \mu_q\|^2`. For the same :math:`p` and :math:`q`,
    kernel ≤ transport ≤ bound.

    Equations: :eq:`eq:ot-cost`, :eq:`eq:ot-bound`, :eq:`eq:emo-sandwich`, :eq:`eq:kernel-mmd`

    Parameters
    ----------
    logits
        As in :func:`emo_loss`.
    target_probabilities
        Shape ``(..., V)``, non-negative with sum 1 in each row, floating dtype; constants.
    embeddings
        As in :func:`emo_loss`. Padding rows must have probability 0 in the target.
    by
        ``"transport"``, ``"bound"`` or ``"kernel"``.
    reduction
        Over the leading dimensions: ``"none"``, ``"mean"`` or ``"sum"``.
    validate
        As in :func:`emo_loss`; the solver of ``"transport"`` reads the values all the same.

    Returns
    -------
    Tensor
        As :func:`emo_loss`.

    Raises
    ------
    TypeError, ValueError
        As :func:`emo_loss`; target probabilities of another shape, negative, not summing to 1
        (to 1e-5, or 1e-2 in half precision), or asking for a gradient; ``by`` unknown.
    RuntimeError
        ``"transport"`` where no values can be read (a traced graph, a transform, the meta device),
        or where its solver did not reach the optimum.

    Notes
    -----
    The exact cost is piecewise linear in the probabilities; its gradient is the dual solution,
    one subgradient where there are several. It is differentiable once. One row takes about
    5 s for 2000 tokens and a minute for 6000.

    Source: Ren, Wu & Zhu 2024 for the bound; the transport cost is textbook, the kernel ours.

    Examples
    --------
    >>> import torch
    >>> q = torch.tensor([0.4, 0.38, 0.22], dtype=torch.float64)
    >>> table = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0.9, 0.19**0.5]], dtype=torch.float64)
    >>> for by in ("transport", "bound", "kernel"):
    ...     print(f"{by:10}{soft_emo_loss(q.log(), q, table, by=by):.4f}")
    transport 0.0000
    bound     0.4967
    kernel    0.0000
    """
    if by not in ("transport", "bound", "kernel"):
        raise ValueError(f"by must be 'transport', 'bound' or 'kernel', got {by!r}")
    _checks.check_logits(logits)
    _checks.check_labels("target_probabilities", target_probabilities, logits)
    if not target_probabilities.dtype.is_floating_point:
        raise TypeError(
            "target_probabilities must have a floating-point dtype, "
            f"got {target_probabilities.dtype}"
        )
    if target_probabilities.requires_grad:
        raise ValueError(
            "target_probabilities must not require a gradient, being constants of the loss, got "
            "requires_grad=True; pass target_probabilities.detach()"
        )
    _checks.check_reduction(reduction)
    found = directions(embeddings, logits.shape[-1], logits.device, validate)
    readable = _checks.values_readable(logits, target_probabilities, found.table)
    if by == "transport" and not readable and not torch.compiler.is_dynamo_compiling():
        raise RuntimeError(
            "by must be 'bound' or 'kernel' where values cannot be read (in a traced graph, in a "
            "transform, on the meta device), got 'transport'"
        )
    with torch.no_grad():
        bad = _bad_rows(logits, target_probabilities, found.is_padding)
    if validate and readable and bool(bad.any()):
        _refuse_soft(logits, target_probabilities, found.is_padding)
    dtype = _checks.compute_dtype(logits.dtype)
    q = target_probabilities.to(dtype)
    with _checks.no_autocast(logits):
        p = torch.softmax(logits.to(dtype), -1)
        unit = unit_rows(found, dtype)
        if by == "transport":
            size = logits.shape[-1]
            costs = (1 - unit @ unit.T).clamp(min=0).fill_diagonal_(0)
            losses = exact_cost(
                p.reshape(-1, size), q.masked_fill(bad.unsqueeze(-1), nan).reshape(-1, size), costs
            )
            losses = losses.reshape(logits.shape[:-1])
        elif by == "bound":
            losses = 1 - ((p @ unit) * (q @ unit)).sum(-1)
        else:
            losses = 0.5 * ((p - q) @ unit).square().sum(-1)
    return _checks.reduce(losses.masked_fill(bad, nan), reduction)


class _Mixed(nn.Module):
    """Frozen embeddings, a mixture and the options that the modules below share."""

    def __init__(
        self,
        embeddings: Tensor | UnitEmbeddings,
        *,
        mixture: Mixture | None = None,
        ignore_index: int = -100,
        reduction: _checks.Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__()
        _checks.check_reduction(reduction)
        if mixture is not None:
            _check_mixture(mixture)
        self.embeddings = _frozen(embeddings)
        self.ignore_index = _checks.as_index("ignore_index", ignore_index)
        self.mixture, self.reduction, self.validate = mixture, reduction, validate

    def extra_repr(self) -> str:
        """Show the options in ``print(module)``."""
        return f"mixture={self.mixture}, reduction={self.reduction!r}"


class EMOLoss(_Mixed):
    """:func:`emo_loss`, or :func:`emo_mixture_loss`, with frozen embeddings, as a module.

    Equations: :eq:`eq:emo-loss`

    Parameters
    ----------
    embeddings
        One row per token, or :class:`UnitEmbeddings`; a tensor is copied.
    mixture
        As in :func:`linear_emo_loss`.
    ignore_index, reduction, validate
        As in :func:`emo_loss`.

    Examples
    --------
    >>> import torch
    >>> loss = EMOLoss(torch.eye(3))
    >>> print(f"{loss(torch.zeros(2, 3), torch.tensor([0, 2])):.4f}")
    0.6667
    """

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of ``logits`` ``(..., V)`` for ``targets`` ``(...)``."""
        if self.mixture is None:
            return emo_loss(
                logits, targets, self.embeddings, ignore_index=self.ignore_index,
                reduction=self.reduction, validate=self.validate,
            )  # fmt: skip
        return emo_mixture_loss(
            logits, targets, self.embeddings, mixture=self.mixture,
            ignore_index=self.ignore_index, reduction=self.reduction, validate=self.validate,
        )  # fmt: skip


class KernelScoreLoss(nn.Module):
    """:func:`kernel_score_loss` with frozen embeddings, as a module.

    Equations: :eq:`eq:kernel-score`

    Parameters
    ----------
    embeddings, ignore_index, reduction, validate
        As in :class:`EMOLoss`.

    Examples
    --------
    >>> import torch
    >>> loss = KernelScoreLoss(torch.eye(3))
    >>> print(f"{loss(torch.zeros(2, 3), torch.tensor([0, 2])):.4f}")
    0.3333
    """

    def __init__(
        self,
        embeddings: Tensor | UnitEmbeddings,
        *,
        ignore_index: int = -100,
        reduction: _checks.Reduction = "mean",
        validate: bool = True,
    ) -> None:
        super().__init__()
        _checks.check_reduction(reduction)
        self.embeddings = _frozen(embeddings)
        self.ignore_index = _checks.as_index("ignore_index", ignore_index)
        self.reduction, self.validate = reduction, validate

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of ``logits`` ``(..., V)`` for ``targets`` ``(...)``."""
        return kernel_score_loss(
            logits, targets, self.embeddings, ignore_index=self.ignore_index,
            reduction=self.reduction, validate=self.validate,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Show the options in ``print(module)``."""
        return f"reduction={self.reduction!r}"


class LinearEMOLoss(_Mixed):
    """:func:`linear_emo_loss` with frozen embeddings, as a module.

    Equations: :eq:`eq:emo-loss`

    Parameters
    ----------
    embeddings, mixture, ignore_index, reduction, validate
        As in :class:`EMOLoss`.

    Examples
    --------
    >>> import torch
    >>> loss = LinearEMOLoss(torch.eye(3))
    >>> print(f"{loss(torch.zeros(2, 4), torch.zeros(3, 4), torch.tensor([0, 2])):.4f}")
    0.6667
    """

    def forward(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = None
    ) -> Tensor:
        """Loss of ``hidden`` ``(..., H)`` under ``weight`` ``(V, H)`` for ``targets`` ``(...)``."""
        return linear_emo_loss(
            hidden, weight, targets, self.embeddings, bias=bias, mixture=self.mixture,
            ignore_index=self.ignore_index, reduction=self.reduction, validate=self.validate,
        )  # fmt: skip


def _frozen(embeddings: Tensor | UnitEmbeddings) -> UnitEmbeddings:
    return embeddings if isinstance(embeddings, UnitEmbeddings) else UnitEmbeddings(embeddings)


def _check_mixture(mixture: Mixture) -> None:
    if not isinstance(mixture, Mixture):
        raise TypeError(f"mixture must be a Mixture, got {type(mixture).__name__}")


def _refuse_bias(bias: Tensor, targets: Targets) -> None:
    """Raise for a bias that is no logit, or takes a target away."""
    require_finite("bias", bias.masked_fill(bias == -inf, 0))
    gone = bias[targets.safe] == -inf
    if targets.counts is not None:
        gone &= targets.counts
    if gone.any():
        at = _refusals.first_true(gone)
        token = int(targets.safe[at])
        raise ValueError(
            f"a target must have a finite logit, got {_refusals.place('targets', at)} = {token} "
            f"and bias[{token}] = -inf"
        )


def _loss(
    form: Form,
    logits: Tensor,
    targets: Tensor,
    embeddings: Tensor | UnitEmbeddings,
    ignore_index: int,
    reduction: str,
    validate: bool,
) -> Tensor:
    """Check arguments, and compute a loss that is made of rows of logits."""
    _checks.check_logits(logits)
    _checks.check_classes("targets", targets, logits)
    _checks.check_reduction(reduction)
    ignore_index = _checks.as_index("ignore_index", ignore_index)
    classes = logits.shape[-1]
    found = directions(embeddings, classes, logits.device, validate)
    look = validate and _checks.values_readable(logits, targets, found.table)
    places = check_targets(targets, classes, ignore_index, found, look)
    with _checks.no_autocast(logits):
        unit = unit_rows(found, _checks.compute_dtype(logits.dtype))
        rows = logits if logits.dim() == 2 else logits.reshape(-1, classes)
        losses, witness = by_rows(form, rows, places.flat(), unit)
    if look and not all_finite(witness):
        refuse("logits", logits.detach(), places.safe, places.counts)
    if targets.dim() != 1:
        losses = losses.reshape(targets.shape)
    return _checks.reduce(losses, reduction, places.counts)


def _bad_rows(logits: Tensor, q: Tensor, is_padding: Tensor | None) -> Tensor:
    """Rows ``(...)`` without a softmax, or whose target is no distribution over tokens."""
    top = logits.amax(-1)  # NaN if one is
    total = q.sum(-1, dtype=torch.float64)
    good = (top.abs() < inf) & (q.amin(-1) >= 0) & ((total - 1).abs() <= _most_off(q))
    if is_padding is not None:
        good &= q.masked_fill(~is_padding, 0).amax(-1) <= 0
    return ~good


def _most_off(q: Tensor) -> float:
    return 1e-5 if q.dtype in (torch.float32, torch.float64) else 1e-2


def _refuse_soft(logits: Tensor, q: Tensor, is_padding: Tensor | None) -> NoReturn:
    """Raise for the first bad value of logits and target probabilities, of which there is one."""
    name = "target_probabilities"
    negative = ~(q >= 0)
    if negative.any():
        at = _refusals.first_true(negative)
        raise ValueError(
            f"{name} must be at least 0, got {q[at].item()} at {_refusals.place(name, at)}"
        )
    total = q.sum(-1, dtype=torch.float64)
    off = ~((total - 1).abs() <= _most_off(q))
    if off.any():
        at = _refusals.first_true(off)
        raise ValueError(
            f"{name} must sum to 1, got {total[at].item():.6g} for {_refusals.place(name, at)}"
        )
    if is_padding is not None and bool((q[..., is_padding] > 0).any()):
        raise ValueError(
            f"{name} must be 0 on padding rows of the embeddings, got "
            f"{q[..., is_padding].max().item()}"
        )
    wrong = ~(logits < inf) | (logits == -inf).all(-1, keepdim=True)
    at = _refusals.first_true(wrong)
    raise ValueError(
        "logits must be finite or -inf, and not all -inf, got "
        f"{logits[at].item()} at {_refusals.place('logits', at)}"
    )
