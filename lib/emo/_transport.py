"""Optimal transport between two distributions over few tokens, exactly."""

from collections.abc import Callable
from math import nan
from typing import Any

import torch
from torch import Tensor

from lib._extras import needs

__all__ = ["exact_cost"]

_MOST_PIVOTS = 10**8
"""5000 tokens need some 10^5. Far above, because a limit must not end a good run."""


def exact_cost(p: Tensor, q: Tensor, costs: Tensor) -> Tensor:
    """Cost of moving each row of ``p`` ``(N, V)`` onto that of ``q``; differentiable in ``p``.

    NaN where a row of either is not finite. Raises RuntimeError where the solver did not finish.
    """
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
            if not bool((source + sink).isfinite().all()):
                values.append(nan)
                duals.append(torch.full_like(source, nan))
                continue
            # The solver wants equal masses to the last digit.
            left, right = (source / source.sum()).numpy(), (sink / sink.sum()).numpy()
            cost, log = ot.emd2(left, right, table, numItermax=_MOST_PIVOTS, log=True)
            if log["warning"] is not None:
                raise RuntimeError(
                    f"the transport solver must reach the optimum, got row {len(values)} "
                    f"without it: {log['warning']}"
                )
            values.append(float(cost))
            duals.append(torch.as_tensor(log["u"], dtype=torch.float64, device="cpu"))
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
