"""Losses for many labels that rival ZLPR: each a formula of its paper, over logits ``(N, C)``.

``labels`` is ``(N, C)`` with 0 and 1. Every loss is summed over the labels of a sample and averaged
over samples, but for the two-way loss, which averages what it sums.
"""

from math import inf

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

__all__ = ["adaptive_threshold", "asymmetric", "binary", "focal", "learnt_zero", "two_way"]


def binary(logits: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
    """Ask for each label separately; ``weight`` counts the positives of a label more often."""
    losses = binary_cross_entropy_with_logits(logits, labels, reduction="sum", pos_weight=weight)
    return losses / len(logits)


def focal(logits: Tensor, labels: Tensor, share: float = 0.25, power: float = 2.0) -> Tensor:
    """Weigh a question by how wrong its answer is (Lin et al. 2017); the paper's parameters."""
    wrong = torch.sigmoid(torch.where(labels > 0, -logits, logits))
    side = torch.where(labels > 0, share, 1 - share)
    right = logsigmoid(torch.where(labels > 0, logits, -logits))
    return -(side * wrong**power * right).sum() / len(logits)


def asymmetric(
    logits: Tensor, labels: Tensor, plus: float = 1, minus: float = 4, margin: float = 0.05
) -> Tensor:
    """Forget easy negatives (Ridnik et al. 2021); the paper's parameters."""
    chance = torch.sigmoid(logits)
    low = (chance - margin).clamp(min=0)
    positive = (1 - chance) ** plus * logsigmoid(logits)
    negative = low**minus * torch.log1p(-low)
    return -torch.where(labels > 0, positive, negative).sum() / len(logits)


def two_way(logits: Tensor, labels: Tensor, warm: float = 4.0, cool: float = 1.0) -> Tensor:
    """Compare labels within a sample and samples within a label (Kobayashi 2023).

    Temperatures 4 for positives and 1 for negatives, as its code has them. Samples and labels
    without a positive are left out. Where the formula leaves cells out, the code adds -100.
    """
    positive = labels > 0
    total = logits.new_zeros(())
    for way in (0, 1):
        up = (-logits / warm).masked_fill(~positive, -inf).logsumexp(way) * warm
        down = (logits / cool).masked_fill(positive, -inf).logsumexp(way) * cool
        total = total + softplus(up + down)[positive.any(way)].mean()
    return total


def adaptive_threshold(logits: Tensor, labels: Tensor) -> Tensor:
    """Compare with a threshold that is the last logit (Zhou et al. 2021, ATLOP)."""
    scores, line = logits[:, :-1], logits[:, -1:]
    positive = labels > 0
    above = torch.cat([scores.masked_fill(~positive, -inf), line], 1).logsumexp(1, keepdim=True)
    below = torch.cat([scores.masked_fill(positive, -inf), line], 1).logsumexp(1, keepdim=True)
    losses = torch.where(positive, above - scores, 0).sum(1, keepdim=True) + below - line
    return losses.mean()


def learnt_zero(logits: Tensor, labels: Tensor) -> Tensor:
    """ZLPR with the last logit in the place of its zero."""
    scores = logits[:, :-1] - logits[:, -1:]
    null = torch.zeros_like(scores[:, :1])
    positive = labels > 0
    down = torch.cat([scores.masked_fill(positive, -inf), null], 1).logsumexp(1)
    up = torch.cat([(-scores).masked_fill(~positive, -inf), null], 1).logsumexp(1)
    return (down + up).mean()
