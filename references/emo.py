"""EMO as its authors released it."""

import torch
from torch.nn import functional

__all__ = ["code_losses"]


def code_losses(logits, targets, weight, *, detach):
    """Return the released code's cross-entropy and cost of each token, in its order."""
    hot = functional.one_hot(targets, logits.shape[-1]).to(logits.dtype)
    stable = (hot + 1e-15) / torch.linalg.vector_norm(hot + 1e-15, ord=1, dim=-1, keepdim=True)
    unit = weight / torch.linalg.vector_norm(weight, ord=2, dim=1, keepdim=True)
    q = torch.log_softmax(logits, dim=-1).exp()
    if detach:
        q = q - (q * hot).detach()
    value = 1 - ((stable @ unit) * (q @ unit)).sum(-1)
    return functional.cross_entropy(logits, targets, reduction="none"), value
