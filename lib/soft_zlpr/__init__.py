r"""ZLPR with soft labels: the loss, labels made soft, and probabilities read from scores.

Targets are numbers in [0, 1]. What they mean decides how to use the loss:

* *given degrees*, from a teacher, from smoothing: :func:`soft_zlpr_loss`, and
  :func:`zlpr_probability` with its factor 2;
* *a lottery over hard labels*, as in mixup: mix the losses, not the labels, and fit a scale,
  or a scale and an offset, on held-out data with :func:`fit_scale` or :func:`fit_scale_and_offset`.
  The loss is concave in the targets, so the two are different problems.

No target is clipped and no logarithm of a target enters the result: targets multiply exponentials.
"""

from torch import Tensor

from lib._modules import LossModule
from lib.soft_zlpr._labels import (
    draw_mixup,
    mixup,
    mixup_loss,
    smooth_labels,
    smooth_positives,
    smooth_spans,
)
from lib.soft_zlpr._loss import soft_zlpr_loss
from lib.soft_zlpr._probability import (
    fit_scale,
    fit_scale_and_offset,
    fit_temperature,
    zlpr_probability,
)

__all__ = [
    "SoftZLPRLoss",
    "draw_mixup",
    "fit_scale",
    "fit_scale_and_offset",
    "fit_temperature",
    "mixup",
    "mixup_loss",
    "smooth_labels",
    "smooth_positives",
    "smooth_spans",
    "soft_zlpr_loss",
    "zlpr_probability",
]


class SoftZLPRLoss(LossModule):
    """:func:`soft_zlpr_loss` as a module.

    Equations: :eq:`eq:soft-loss`

    Parameters
    ----------
    reduction, validate
        As in :func:`soft_zlpr_loss`.

    Examples
    --------
    >>> import torch
    >>> loss = SoftZLPRLoss()(torch.zeros(2, 3), torch.full((2, 3), 0.5))
    >>> print(f"{loss:.4f}")
    1.8326
    """

    def forward(self, logits: Tensor, targets: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of ``logits`` ``(..., C)`` against ``targets`` ``(..., C)``."""
        return soft_zlpr_loss(
            logits, targets, mask=mask, reduction=self.reduction, validate=self.validate
        )
