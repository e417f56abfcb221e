"""The integral of each row: where its nodes lie, fast kernels, and a plain formula.

In the letters of the chapter: ``ahead`` holds the advantages over the rivals, delta; ``log_phi`` is
``log Phi``, and ``mills`` its slope, ``phi / Phi``.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lib import _rows

__all__ = ["default_nodes", "log_probabilities"]

# How far below its peak, in nepers, the integrand is followed; 36 is all that float64 can see.
_DEPTH = {torch.float32: 17.0, torch.float64: 30.0}
_MOST_DEPTH = 36.0

_BUFFERS = 4
_CHUNK_CELLS = 1 << 16  # cells of a scratch buffer on a CPU: a few of them fit a core's cache
_CHUNK_CELLS_CUDA = 1 << 24  # on a GPU large, as each kernel has its price; but bounded
_STEEP = 1e30  # makes of x a step from 0 to 1, but for 0 itself, where both sides are equal
_SAFE = 1000.0  # Phi of this is 1, and its density 0, wherever the nodes are
_LOST = -1e38  # squares of this do not overflow float64
_MOST_STEPS = 100  # never needed: each step more than halves the distance
_NEAR_MODE = 0.5
_TRACED_STEPS = 8
# Below these advantages erfc would underflow inside the window; erfcx does not.
_FAR = {torch.float32: -11.0, torch.float64: -50.0}

_HALF_LOG2_E = 0.5 * math.log2(math.e)
_LN_10 = math.log(10)
_SQRT_HALF = math.sqrt(0.5)
_LOG_SQRT_TAU = 0.5 * math.log(2 * math.pi)
_PHI_0 = 1 / math.sqrt(2 * math.pi)


def log_probabilities(ahead: Tensor, nodes: int, *, by_kernel: bool) -> Tensor:
    """Log of the integral for each row of ``ahead`` ``(R, C)``; the target's own cell is +inf."""
    ahead = ahead.clamp(_LOST, _SAFE)
    if not by_kernel:
        return _formula(ahead, nodes)
    return _log_integral(ahead, nodes)


class _LogIntegral(torch.autograd.Function):
    """Value and gradient in one sweep: both need the same ``Phi`` at the same nodes."""

    @staticmethod
    def forward(ctx: Any, ahead: Tensor, nodes: int) -> Tensor:
        values = torch.empty_like(ahead[:, 0])
        gradient = torch.empty_like(ahead) if ctx.needs_input_grad[0] else None
        if ahead.shape[0]:
            _integrate(ahead, nodes, values, gradient)
        if gradient is not None:
            ctx.save_for_backward(ahead, gradient)
        ctx.nodes = nodes
        return values

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        ahead, gradient = ctx.saved_tensors
        if not _rows.needs_formula(upstream):
            return gradient * upstream.unsqueeze(1), None
        again = _rows.by_autograd(
            lambda given: _formula(given, ctx.nodes), [ahead], [True], upstream
        )
        return *again, None


# Function.apply has no type of its own in PyTorch.
_log_integral: Callable[..., Tensor] = _LogIntegral.apply


# ------------------------------------------------------------------------------------ the kernels


class _Window(NamedTuple):
    """Where a row's integrand has its mass, ``(R, 1)`` each."""

    left: Tensor
    step: Tensor
    peak: Tensor  # what the log integrand is shifted by: about its largest value, or 0
    of_errors: Tensor  # bool: the integral is that of a wrong decision


_Tails = Callable[[list[Tensor]], Tensor]


def _integrate(ahead: Tensor, nodes: int, values: Tensor, gradient: Tensor | None) -> None:
    """Fill values and gradient; rows that lie far out go apart, in float64."""
    is_far = ahead.amin(1) < _FAR[ahead.dtype]
    if not bool(is_far.any()):
        _sweep(ahead, nodes, _tails, values, gradient)
        return
    for some, dtype, tails in (
        (is_far, torch.float64, _tails_far),
        (~is_far, ahead.dtype, _tails),
    ):
        rows = ahead[some].to(dtype)
        if len(rows):
            log_p = torch.empty_like(rows[:, 0])
            slopes = None if gradient is None else torch.empty_like(rows)
            _sweep(rows, nodes, tails, log_p, slopes)
            values[some] = log_p.to(values.dtype)
            if gradient is not None and slopes is not None:
                gradient[some] = slopes.to(gradient.dtype)


def _window(ahead: Tensor, nodes: int, tails: _Tails, steps: int | None = None) -> _Window:
    """Find nodes that cover all but ``exp(-depth)`` of each row's integral.

    The log integrand is concave, with a curvature that is at least 1 everywhere and falls from
    left to right. So what the integrand can be at a distance from *any* point follows from value,
    slope and curvature there, and Newton's steps, which approach the mode from the left, need not
    have converged: the window is right all the same, only wider. They end within half a neper of
    the largest value, by which the sums are then shifted; or after ``steps``, for a tracer, whose
    sizes may be symbols.
    """
    log_classes = _log(ahead.shape[1])
    per_neper = _nodes_per_neper(log_classes)
    # PyTorch gives sym_min no types.
    depth = torch.sym_min(_MOST_DEPTH, nodes / per_neper)  # type: ignore[no-untyped-call]
    worst = ahead.amin(1, keepdim=True)
    mode = (-0.5 * worst).clamp(min=0)
    cells = _chunk(ahead) if steps is None else None
    peak, slope, curvature = _log_integrand(ahead, mode, tails, cells)
    for _ in range(steps or _MOST_STEPS):
        if steps is None and bool((slope * slope < 2 * _NEAR_MODE * curvature).all()):
            break
        mode = mode + slope / curvature
        peak, slope, curvature = _log_integrand(ahead, mode, tails, cells)
    left = mode - (2 * depth / curvature).sqrt()
    # To the right the curvature is at least 1, and log Phi at most 0.
    right = torch.minimum(
        mode + slope + (slope * slope + 2 * depth).sqrt(), (2 * (depth - peak)).sqrt()
    )
    # Far out that is too far by much: up to the end found so far, the curvature there is a bound.
    for _ in range(2 if tails is _tails_far else 0):
        _, _, least = _log_integrand(ahead, right, tails, cells)
        nearer = mode + (slope + (slope * slope + 2 * depth * least).sqrt()) / least
        right = torch.minimum(right, nearer)
    # Laplace's approximation is good enough to say which of P and 1 - P is the smaller.
    of_errors = (peak - 0.5 * curvature.log() > math.log(0.5)) & (worst > 0)
    left = torch.where(of_errors, -(2 * depth + 0.5 * worst * worst).sqrt(), left)
    reach = -0.5 * worst + torch.sym_sqrt(depth + log_classes)
    right = torch.where(of_errors, reach, right)
    width = (right - left).clamp(min=torch.finfo(ahead.dtype).tiny * nodes)
    peak = torch.where(of_errors, 0, peak)
    return _Window(left, width / (nodes - 1), peak, of_errors)


def _log_integrand(
    ahead: Tensor, z: Tensor, tails: _Tails, cells: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, slope and curvature at one point ``z`` ``(R, 1)`` of each row, but for a constant.

    In parts of so many cells, or in one: a loop over rows would make their number part of a graph.
    """
    parts = [slice(None)]
    if cells is not None:
        step = max(1, cells // ahead.shape[1])
        parts = [slice(start, start + step) for start in range(0, len(ahead), step)]
    sums = []
    for part in parts:
        at = ahead[part] + z[part]
        cell = [at.clone(), *(torch.empty_like(at) for _ in range(_BUFFERS - 1))]
        log_phi, mills = tails(cell), cell[1]
        sums.append(torch.stack((log_phi, mills, mills * (mills + at))).sum(-1))
    log_phi, push, bend = torch.cat(sums, 1).unsqueeze(-1)
    return log_phi - 0.5 * z * z, push - z, bend + 1


def _log(number: int) -> float:
    """Logarithm, also of a symbol, of which only roots can be taken: then up to 3 % too large.

    By ``log x`` being nearly ``n (x^(1/2n) - x^(-1/2n))``, with 2n = 32.
    """
    if not torch.compiler.is_compiling():
        return math.log(number)
    root = number
    for _ in range(5):
        root = torch.sym_sqrt(root)
    return 16 * (root - 1 / root)


def _nodes_per_neper(log_classes: float) -> float:
    """How many nodes it takes for the errors of cutting off and of the step to be alike.

    Measured: the more rivals, the steeper the integrand on its left, and the more nodes.
    """
    return 0.8 + 0.53 / _LN_10 * log_classes


def default_nodes(classes: int, dtype: torch.dtype) -> int:
    """Nodes for an error near rounding in float32, and near 1e-10 in float64."""
    return math.ceil(_DEPTH[dtype] * _nodes_per_neper(_log(classes)))


def _chunk(like: Tensor) -> int:
    return _CHUNK_CELLS_CUDA if like.is_cuda else _CHUNK_CELLS


def _sweep(ahead: Tensor, nodes: int, tails: _Tails, log_p: Tensor, slopes: Tensor | None) -> None:
    """Sum over the nodes, in parts of rows and nodes that fit the cache."""
    left, width, peak, of_errors = _window(ahead, nodes, tails)
    rows, classes = ahead.shape
    z = left + width * torch.arange(nodes, dtype=ahead.dtype, device=ahead.device)
    density = -0.5 * z * z - peak
    log_phi = torch.empty_like(z)
    if slopes is not None:
        slopes.zero_()
    cells = _chunk(ahead)
    per_row = max(1, min(nodes, cells // classes))
    step = max(1, min(rows, cells // (per_row * classes)))
    buffers = ahead.new_empty(_BUFFERS, step * per_row * classes)
    for start in range(0, rows, step):
        part = slice(start, min(start + step, rows))
        advantage = ahead[part].unsqueeze(1)
        for first in range(0, nodes, per_row):
            some = slice(first, min(first + per_row, nodes))
            at = z[part, some].unsqueeze(2)
            shape = (len(at), at.shape[1], classes)
            cell = [buffer[: math.prod(shape)].view(shape) for buffer in buffers]
            torch.add(at, advantage, out=cell[0])
            log_phi[part, some] = tails(cell).sum(-1)
            if slopes is not None:
                weight = (log_phi[part, some] + density[part, some]).exp_()
                slopes[part].unsqueeze(1).baddbmm_(weight.unsqueeze(1), cell[1])
    right = (log_phi + density).exp_()
    wrong = -torch.expm1(log_phi) * density.exp_()
    total = torch.where(of_errors, wrong, right).sum(1, keepdim=True)
    mass = total * width * _PHI_0
    log_p.copy_(torch.where(of_errors, torch.log1p(-mass), peak + mass.log()).squeeze(1))
    if slopes is not None:
        slopes *= torch.where(of_errors, width * _PHI_0 / (1 - mass), 1 / total)


# Each takes buffers of one shape, the first of which holds the points x; it returns log Phi of them
# and leaves phi / Phi in the second.


def _tails(cell: list[Tensor]) -> Tensor:
    """By the complementary error function: fast, and good until it underflows.

    ``tail`` is ``Phi`` to the left of 0 and ``1 - Phi`` to the right, so its logarithm, or
    ``log1p`` of minus it, has all digits. A weight of 0 or 1 picks one of the two: PyTorch's
    ``where`` branches on every cell.
    """
    x, mills, tail, spare = cell
    torch.mul(x, x, out=mills)
    mills.mul_(-_HALF_LOG2_E).exp2_().mul_(_PHI_0)
    torch.abs(x, out=tail)
    tail.mul_(_SQRT_HALF).erfc_().mul_(0.5).clamp_(min=torch.finfo(x.dtype).tiny)
    is_right = x.mul_(_STEEP).clamp_(0, 1)
    mills.div_(torch.sub(is_right, tail, out=spare).abs_())
    torch.log(tail, out=spare)
    return torch.lerp(spare, tail.neg_().log1p_(), is_right, out=spare)


def _tails_far(cell: list[Tensor]) -> Tensor:
    """By the scaled complementary error function: slow, and good everywhere."""
    x, mills = cell[:2]
    scaled = torch.special.erfcx(x.abs() * _SQRT_HALF)
    square = 0.5 * x * x
    density = torch.exp(-square)
    tail = 0.5 * scaled * density
    mills.copy_(torch.where(x < 0, 2 * _PHI_0 / scaled, _PHI_0 * density / (1 - tail)))
    return torch.where(x < 0, (0.5 * scaled).log() - square, torch.log1p(-tail))


# ------------------------------------------------------------------ the formula, for any transform


def _formula(ahead: Tensor, nodes: int) -> Tensor:
    """Log of the integral by plain operations: traceable, and differentiable again and again.

    In float64 throughout. The nodes are constants of differentiation: the integral does not depend
    on them.
    """
    dtype = ahead.dtype
    ahead = ahead.double()
    with torch.no_grad():
        left, step, _, of_errors = _window(ahead.detach(), nodes, _tails_far, _TRACED_STEPS)
        index = torch.arange(nodes, dtype=ahead.dtype, device=ahead.device)
        z = left + step * index
    log_phi = torch.special.log_ndtr(z.unsqueeze(2) + ahead.unsqueeze(1)).sum(-1)
    log_density = step.log() - _LOG_SQRT_TAU - 0.5 * z * z
    right = (log_phi + log_density).logsumexp(-1)
    of_errors = of_errors.squeeze(-1)
    wrong = -(torch.expm1(log_phi) * log_density.exp()).sum(-1)
    wrong = torch.where(of_errors, wrong, 0)
    return torch.where(of_errors, torch.log1p(-wrong), right).to(dtype)
