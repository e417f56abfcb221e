r"""Softmax cross-entropy for many labels at once: ZLPR, dense, sparse and without the logits.

Zero-bounded log-sum-exp and pairwise rank-based loss. Every negative score should lie below zero
and every positive score above it; the loss is the smooth worst violation of each kind.

How the numbers stay right:

* the two groups are summed apart, each shifted by its own maximum; the sum over the negatives is
  never obtained by taking the positives away from the sum over all;
* ``log1p`` where the sum is small, so a loss of 3e-7 has as many right digits as a loss of 3;
* half-precision input is computed in float32.

How it is fast on a CPU: rows go through a scratch buffer that fits the cache, in place; the
backward pass recomputes the exponentials from two numbers per row instead of storing one per cell;
and the exponential is ``exp2``, because PyTorch's ``exp`` is many times slower where it underflows,
which is almost everywhere once a model is trained.
"""

from math import inf
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from lib import _checks, _refusals
from lib._linear import check_head, require_finite
from lib._modules import LossModule
from lib.zlpr._kernels import reduced_loss
from lib.zlpr._linear import labels_of_rows, linear_losses

__all__ = [
    "FoundLabels",
    "LinearZLPRLoss",
    "SparseZLPRLoss",
    "ZLPRLoss",
    "labels_above",
    "linear_zlpr_loss",
    "sparse_zlpr_loss",
    "zlpr_loss",
]


def zlpr_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""ZLPR loss of logits against a table of zeros and ones.

    .. math::
        \ell(s, y) = \log\Bigl(1 + \sum_{i:\,y_i = 0} e^{s_i}\Bigr)
                   + \log\Bigl(1 + \sum_{j:\,y_j = 1} e^{-s_j}\Bigr)

    Predict the classes with :math:`s_i > 0`. The gradient in each group is a softmax with one more
    class of score zero, so its absolute values sum to less than one per group.

    Equations: :eq:`eq:zlpr-loss`, :eq:`eq:zlpr-gradient`

    Parameters
    ----------
    logits
        Scores, shape ``(..., C)`` with ``C >= 1``, any floating dtype. Finite or :math:`-\infty`;
        a cell at :math:`-\infty` does not count and gets gradient zero.
    targets
        One for positive classes, zero for the others; shape ``(..., C)``, bool or any real dtype.
    mask
        Bool, broadcastable to ``(..., C)``; True counts. Cells that do not count add nothing to
        the loss and get gradient exactly zero; they are not looked at, so that their logits and
        targets may hold anything: -1 or NaN for labels that nobody knows, say.
    reduction
        Over the leading dimensions: ``"none"``, ``"mean"`` (of all positions, also those without
        a counting cell; 0 of no position) or ``"sum"``.

    validate
        Whether to look at the values. False saves a synchronisation on a GPU; a bad value then
        makes the loss of its row NaN instead of an error.

    Returns
    -------
    Tensor
        Shape ``(...)`` for ``"none"``, else a scalar. float32 for half-precision logits (their
        losses overflow float16 and have 3 digits in bfloat16), else the logits' dtype. The
        gradient has the logits' dtype.

    Raises
    ------
    TypeError
        An argument is no tensor or has a dtype of the wrong kind.
    ValueError
        Shapes or devices disagree; ``reduction`` is unknown. Values, where cells count: a target
        other than 0 and 1; a positive on a logit of :math:`-\infty`; a logit that is NaN or
        :math:`+\infty`.

    Notes
    -----
    Bad values are found through the losses themselves: they make the loss of their row NaN, and the
    ``(...)`` losses are looked at once (on CUDA: one synchronisation). Where no Python error can
    depend on a value (``torch.compile``, ``torch.export``, ``make_fx``, ``torch.func`` transforms,
    CUDA graph capture), that NaN is what is returned.

    A row whose cells all do not count has loss 0 and gradient 0. Derivatives of any order exist,
    by backward passes and under ``torch.func`` (forward mode too, but only there).

    Source: Su 2020 (kexue 7359); Su et al. 2022 (arXiv 2208.02955).

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[2.0, -1.0, -3.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    >>> targets = torch.tensor([[1, 0, 0], [0, 0, 1]])
    >>> [f"{loss:.4f}" for loss in zlpr_loss(logits, targets, reduction="none")]
    ['0.4759', '1.7918']
    """
    _checks.check_logits(logits)
    _checks.check_labels("targets", targets, logits)
    mask = _checks.check_mask(mask, logits)
    _checks.check_reduction(reduction)
    if mask is not None:
        targets = targets.masked_fill(~mask, 0)
    return _loss("targets", logits, targets, mask, reduction, validate)


def sparse_zlpr_loss(
    logits: Tensor,
    positives: Tensor,
    *,
    mask: Tensor | None = None,
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""ZLPR loss of logits against lists of positive classes.

    :func:`zlpr_loss` of the table that is one at the listed classes, without building that table.
    The published sparse form takes the positives away from the sum over all classes,

    .. math::
        \log\Bigl(1 + \sum_{\mathcal N} e^{s_i}\Bigr)
            = a + \log\bigl(1 - e^{b - a}\bigr), \qquad
        a = \log\Bigl(1 + \sum_{\mathcal N \cup \mathcal P} e^{s_i}\Bigr), \quad
        b = \log \sum_{\mathcal P} e^{s_j},

    which cancels as training succeeds. Here the positives are left out of the sum instead.

    Equations: :eq:`eq:zlpr-loss`, :eq:`eq:zlpr-sparse-fix`, :eq:`eq:zlpr-gradient`

    Parameters
    ----------
    logits
        Scores, shape ``(..., C)``, as in :func:`zlpr_loss`.
    positives
        Positive classes, shape ``(..., K)`` with ``K >= 0``, int64 in ``[0, C)``, filled up with
        -1. In any order; a class listed twice counts once.
    mask, reduction, validate
        As in :func:`zlpr_loss`.

    Returns
    -------
    Tensor
        As :func:`zlpr_loss`, and equal to it to rounding.

    Raises
    ------
    TypeError, ValueError
        As :func:`zlpr_loss`; ``positives`` not int64; an index below -1 or not below ``C``; a
        listed class whose cell is masked (a list names it on purpose, where a table cannot but say
        something of every cell).

    Notes
    -----
    Bad values, rows without a counting cell and derivatives: as in :func:`zlpr_loss`.

    Source: Su 2022 (kexue 8888), without its subtraction.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[2.0, -1.0, -3.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    >>> positives = torch.tensor([[0, -1], [2, 2]])
    >>> [f"{loss:.4f}" for loss in sparse_zlpr_loss(logits, positives, reduction="none")]
    ['0.4759', '1.7918']
    """
    _checks.check_logits(logits)
    _checks.check_indices("positives", positives, logits)
    mask = _checks.check_mask(mask, logits)
    _checks.check_reduction(reduction)
    return _loss("positives", logits, positives, mask, reduction, validate)


def linear_zlpr_loss(
    hidden: Tensor,
    weight: Tensor,
    positives: Tensor,
    *,
    bias: Tensor | None = None,
    reduction: _checks.Reduction = "mean",
    validate: bool = True,
) -> Tensor:
    r"""ZLPR loss of ``hidden @ weight.T + bias``, without ever holding those logits.

    Equal to :func:`sparse_zlpr_loss` of these logits, to rounding. For label spaces whose logits do
    not fit: 1024 rows of 500 000 labels are 2 GB, several times over in a loss that stores them.
    The memory above the arguments is the gradients and a buffer, however many labels there are.

    Equations: :eq:`eq:zlpr-loss`, :eq:`eq:zlpr-gradient`

    Parameters
    ----------
    hidden
        States, shape ``(..., D)``, any floating dtype.
    weight
        The head, one row per label, shape ``(C, D)``, any floating dtype.
    positives
        Positive labels, shape ``(..., K)``, int64 in ``[0, C)``, filled up with -1. In any order; a
        label listed twice counts once.
    bias
        The head's bias, shape ``(C,)``, any floating dtype; :math:`-\infty` takes a label away.
    reduction, validate
        As in :func:`zlpr_loss`.

    Returns
    -------
    Tensor
        As :func:`sparse_zlpr_loss`.

    Raises
    ------
    TypeError, ValueError
        As :func:`sparse_zlpr_loss`; shapes or devices of the head disagree; a positive whose bias
        is :math:`-\infty`. A state, weight or bias that is not finite is reported where it makes
        the loss or the gradient of ``hidden`` not finite.

    Notes
    -----
    Rows go through the buffer a few at a time, and for a scalar result the gradients are formed in
    the same pass: three matrix products. Where the buffer holds too few rows, and for weights in
    half precision, tiles of labels are computed twice instead, and each row of the weight's
    gradient is formed, and rounded, once. Half precision is computed in float32. Under
    ``torch.compile``, ``torch.func`` and for second derivatives the plain formula runs, which holds
    all logits.

    Source: as :func:`sparse_zlpr_loss`; the computation by blocks is ours.

    Examples
    --------
    >>> import torch
    >>> hidden, weight = torch.eye(2, 3), torch.eye(4, 3)
    >>> print(f"{linear_zlpr_loss(hidden, weight, torch.tensor([[0, -1], [3, 1]])):.4f}")
    1.8301
    """
    check_head(hidden, weight, bias, "C", "D")
    _checks.check_indices("positives", positives, hidden, "hidden")
    _checks.check_reduction(reduction)
    states = hidden.reshape(-1, hidden.shape[-1])
    lists = positives.reshape(states.shape[0], positives.shape[-1])
    look = validate and _checks.values_readable(hidden, weight, bias, positives)
    result = linear_losses(states, weight, bias, lists, reduction, look)
    if look and _checks.has_nan(result):
        _refuse_positives(positives, bias, len(weight))
        _refuse_head(hidden, weight, bias)
    return result.reshape(hidden.shape[:-1]) if reduction == "none" else result


class FoundLabels(NamedTuple):
    """Labels of each row with their scores, largest first."""

    labels: Tensor
    """Shape ``(..., K)``, int64, filled up with -1."""
    scores: Tensor
    """Shape ``(..., K)``, filled up with minus infinity."""


def labels_above(
    hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    threshold: float = 0.0,
    most: int | None = None,
) -> FoundLabels:
    r"""Labels whose logit in ``hidden @ weight.T + bias`` lies above a threshold.

    As :func:`linear_zlpr_loss`, it never holds all logits. Not differentiable.

    Parameters
    ----------
    hidden, weight, bias
        As in :func:`linear_zlpr_loss`.
    threshold
        What a logit must exceed; 0 is where the loss puts the border. :math:`-\infty` with
        ``most`` gives the top labels, whatever their logits.
    most
        The largest number of labels to return for a row, at least 1; all if None.

    Returns
    -------
    FoundLabels
        Of shape ``(..., K)``, where ``K`` is the largest number of labels that a row has. Of equal
        logits any may come first.

    Raises
    ------
    TypeError, ValueError
        Shapes, dtypes or devices disagree; ``threshold`` is NaN; ``most`` is no int or below 1. A
        state, weight or bias that makes a logit NaN.

    Examples
    --------
    >>> import torch
    >>> hidden, weight = torch.eye(2, 3), torch.tensor([[1.0, -1.0, 0.0], [2.0, 0.0, 0.0]])
    >>> labels_above(hidden, weight).labels
    tensor([[ 1,  0],
            [-1, -1]])
    """
    check_head(hidden, weight, bias, "C", "D")
    if not threshold == threshold:
        raise ValueError(f"threshold must be a number, got {threshold}")
    if most is not None:
        most = _checks.as_index("most", most)
        if most < 1:
            raise ValueError(f"most must be at least 1, got {most}")
    with torch.no_grad(), _checks.no_autocast(hidden):
        states = hidden.reshape(-1, hidden.shape[-1])
        found = labels_of_rows(states, weight, bias, threshold, most)
    if found is None:
        _refuse_head(hidden, weight, bias)
    return FoundLabels(*(part.reshape(*hidden.shape[:-1], part.shape[-1]) for part in found))


class ZLPRLoss(LossModule):
    """:func:`zlpr_loss` as a module.

    Equations: :eq:`eq:zlpr-loss`

    Parameters
    ----------
    reduction, validate
        As in :func:`zlpr_loss`.

    Examples
    --------
    >>> import torch
    >>> loss = ZLPRLoss()(torch.zeros(2, 3, dtype=torch.float64), torch.eye(3)[:2])
    >>> print(f"{loss:.4f}")
    1.7918
    """

    def forward(self, logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of ``logits`` ``(..., C)`` against ``targets`` ``(..., C)``."""
        return zlpr_loss(
            logits, targets, mask=mask, reduction=self.reduction, validate=self.validate
        )


class SparseZLPRLoss(LossModule):
    """:func:`sparse_zlpr_loss` as a module.

    Equations: :eq:`eq:zlpr-loss`, :eq:`eq:zlpr-sparse-fix`, :eq:`eq:zlpr-gradient`

    Parameters
    ----------
    reduction, validate
        As in :func:`zlpr_loss`.

    Examples
    --------
    >>> import torch
    >>> loss = SparseZLPRLoss()(torch.zeros(2, 3, dtype=torch.float64), torch.tensor([[0], [1]]))
    >>> print(f"{loss:.4f}")
    1.7918
    """

    def forward(self, logits: Tensor, positives: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of ``logits`` ``(..., C)`` against class lists ``positives`` ``(..., K)``."""
        return sparse_zlpr_loss(
            logits, positives, mask=mask, reduction=self.reduction, validate=self.validate
        )


class LinearZLPRLoss(nn.Linear):
    """A linear head with the loss of its logits, which are never held: :func:`linear_zlpr_loss`.

    It is an :class:`torch.nn.Linear`, with the parameters of one and their names, so that
    parametrisations, sharding and checkpoints treat it as one. Not so an adapter that adds to the
    *output* of a layer (LoRA as a wrapper): there the output is the loss. Merge it into the weight.

    Equations: :eq:`eq:zlpr-loss`

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As in :class:`torch.nn.Linear`; ``out_features`` is the number of labels.
    reduction, validate
        As in :func:`zlpr_loss`.

    Examples
    --------
    >>> import torch
    >>> head = LinearZLPRLoss(4, 1000)
    >>> loss = head(torch.randn(2, 4), torch.tensor([[3, 14], [15, -1]]))
    >>> loss.backward()
    >>> head.labels_above(torch.randn(2, 4), most=5).labels.shape[0]
    2
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        reduction: _checks.Reduction = "mean",
        validate: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _checks.check_reduction(reduction)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.reduction: _checks.Reduction = reduction
        self.validate = validate

    def forward(  # type: ignore[override]  # nn.Linear takes no labels
        self, hidden: Tensor, positives: Tensor
    ) -> Tensor:
        """Loss of ``hidden`` ``(..., D)`` against label lists ``positives`` ``(..., K)``."""
        return linear_zlpr_loss(
            hidden, self.weight, positives, bias=self.bias, reduction=self.reduction,
            validate=self.validate,
        )  # fmt: skip

    def labels_above(
        self, hidden: Tensor, *, threshold: float = 0.0, most: int | None = None
    ) -> FoundLabels:
        """Find labels of ``hidden`` ``(..., D)``: :func:`labels_above` of this head."""
        return labels_above(hidden, self.weight, bias=self.bias, threshold=threshold, most=most)

    def extra_repr(self) -> str:
        """Show the options in ``print(module)``."""
        options = f"{super().extra_repr()}, reduction={self.reduction!r}"
        return options + ("" if self.validate else ", validate=False")


def _refuse_positives(positives: Tensor, bias: Tensor | None, classes: int) -> None:
    """Raise for a positive that is no label, or that the bias takes away."""
    bad = (positives < -1) | (positives >= classes)
    if bad.any():
        at = _refusals.first_true(bad)
        raise ValueError(
            f"positives must be classes in [0, {classes}) or -1 as filler, "
            f"got {positives[at].item()} at {_refusals.place('positives', at)}"
        )
    gone = positives.new_zeros((), dtype=torch.bool)
    if bias is not None:
        gone = (positives >= 0) & (bias[positives.clamp(min=0)] == -inf)
    if gone.any():
        at = _refusals.first_true(gone)
        label = int(positives[at])
        raise ValueError(
            "a positive must have a finite logit, got "
            f"{_refusals.place('positives', at)} = {label} and bias[{label}] = -inf"
        )


def _refuse_head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> NoReturn:
    """Raise for what made a logit of a head NaN."""
    require_finite("hidden", hidden)
    require_finite("weight", weight)
    if bias is not None:
        require_finite("bias", bias.masked_fill(bias == -inf, 0))
    dtype = _checks.compute_dtype(torch.promote_types(hidden.dtype, weight.dtype))
    raise ValueError(
        f"hidden and weight must give finite logits, got a product that overflows {dtype}"
    )


def _loss(
    name: str,
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    reduction: _checks.Reduction,
    validate: bool,
) -> Tensor:
    """Reduced loss, from arguments whose shapes and dtypes are checked."""
    listed = name == "positives"
    readable = _checks.values_readable(logits, labels, mask)
    rows, flat_labels, flat_mask = logits, labels, mask
    if logits.dim() != 2:
        classes = logits.shape[-1]
        rows = logits.reshape(-1, classes)
        flat_labels = labels.reshape(rows.shape[0], labels.shape[-1])
        flat_mask = None if mask is None else mask.reshape(-1, classes)
    result = reduced_loss(rows, flat_labels, flat_mask, reduction, listed=listed, readable=readable)
    if reduction == "none" and logits.dim() != 2:
        result = result.reshape(logits.shape[:-1])
    if validate and readable and _checks.has_nan(result):
        _refusals.refuse_cells(name, logits, labels, mask, listed=listed)
    return result
