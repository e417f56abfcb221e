"""Optimal transport between two distributions over few tokens, exactly."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lib._extras import needs

__all__ = ["exact_cost"]


def exact_cost(p: Tensor, q: Tensor, costs: Tensor) -> Tensor:
    """Cost of moving each row of ``p`` ``(N, V)`` onto that of ``q``; differentiable in ``p``."""
    return _exact(p, q, costs)


class _Exact(torch.autograd.Function):
    """One linear programme per row; its dual variables are the gradient."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, costs: Tensor) -> Tensor:
        with needs("transport"):
            import ot

        table = costs.detach().double().cpu().numpy()
        values, duals = [], []
        for source, sink in zip(p.double().cpu(), q.double().cpu(), strict=True):
            # The solver wants equal masses to the last digit.
            left, right = (source / source.sum()).numpy(), (sink / sink.sum()).numpy()
            cost, log = ot.emd2(left, right, table, log=True)
            values.append(float(cost))
            duals.append(torch.as_tensor(log["u"], dtype=torch.float64))
        ctx.save_for_backward(torch.stack(duals).to(p) if duals else torch.zeros_like(p))
        return torch.tensor(values, dtype=p.dtype, device=p.device)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (duals,) = ctx.saved_tensors
        # The mass of p is fixed, so a constant added to a dual changes nothing; softmax removes it.
        return duals * upstream.unsqueeze(1), None, None


# Function.apply has no type of its own in PyTorch.
_exact: Callable[..., Tensor] = _Exact.apply
