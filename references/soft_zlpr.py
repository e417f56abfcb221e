"""Soft ZLPR as two public libraries compute it."""

import math

import torch

__all__ = ["bert4torch_form", "clipped"]

INF = math.inf


def clipped(logits, targets, mask, reduction, *, epsilon=1e-7, threshold=1e7):
    """Transcribe bert4keras at 5f5d493, to which the article links: clipped targets, log t."""
    if mask is not None:
        logits = torch.where(mask, logits, -INF)
    logits = logits.clamp(min=-threshold)  # its masks are finite
    t = targets.to(logits.dtype)
    exact_0, exact_1, gone = t < epsilon, t > 1 - epsilon, logits < -threshold / 10
    t = t.clamp(epsilon, 1 - epsilon)
    low = torch.full_like(logits, -threshold)
    positive = torch.where(gone | exact_0, low, -logits + t.log())
    negative = torch.where(gone | exact_1, low, logits + (1 - t).log())
    zero = torch.zeros_like(logits[..., :1])
    losses = torch.cat([positive, zero], -1).logsumexp(-1)
    losses = losses + torch.cat([negative, zero], -1).logsumexp(-1)
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]


def bert4torch_form(logits, targets, mask, reduction):
    """Transcribe bert4torch 0.6.2's dense form, which is for targets 0 and 1."""
    t = targets.to(logits.dtype)
    flipped = (1 - 2 * t) * logits
    zero = torch.zeros_like(logits[..., :1])
    losses = torch.cat([flipped - (1 - t) * 1e12, zero], -1).logsumexp(-1)
    losses = losses + torch.cat([flipped - t * 1e12, zero], -1).logsumexp(-1)
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]
