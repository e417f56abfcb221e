r"""Softmax cross-entropy for many labels at once: the ZLPR loss, dense and sparse.

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

from torch import Tensor

from lib import _checks, _refusals
from lib._modules import LossModule
from lib.zlpr._kernels import reduced_loss

__all__ = ["SparseZLPRLoss", "ZLPRLoss", "sparse_zlpr_loss", "zlpr_loss"]


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
