"""Half-precision gradients are multiplied by the upstream factor in float32, and rounded once.

Otherwise loss scaling, which multiplies the loss so that small gradients stay in the dtype's range,
has no effect: what underflowed before the factor stays 0 behind it, and what overflowed infinite.
"""

import pytest
import torch
from torch.nn import functional

from lib import emo
from lib.casrel import half_pointer_loss, power_bce_loss
from lib.divergence import (
    sigmoid_divergence,
    softmax_divergence,
    zlpr_divergence,
    zlpr_regret,
)
from lib.exact import exact_loss
from lib.global_pointer import factorised_zlpr_loss, streaming_zlpr_loss
from lib.soft_zlpr import soft_zlpr_loss
from lib.softmax import inclusion_probabilities, smooth_max, streaming_logsumexp, subset_logsumexp
from lib.zlpr import sparse_zlpr_loss, zlpr_loss

DRAW = torch.Generator().manual_seed(0)
CLASSES = 40


def normal(*shape):
    return torch.randn(shape, generator=DRAW, dtype=torch.float64)


ROWS, OTHER = 4 * normal(6, CLASSES), 4 * normal(6, CLASSES)
TARGETS = torch.randint(CLASSES, (6,), generator=DRAW)
TABLE = torch.rand((6, CLASSES), generator=DRAW) < 0.1
HALF = torch.arange(CLASSES) % 2 == 0
SOFT = torch.randint(5, (6, CLASSES), generator=DRAW) / 4  # exact in every dtype
COSTS = normal(CLASSES, 8)
UNIT = emo.UnitEmbeddings(COSTS)
STATES, WEIGHT, BIAS = normal(6, 16), normal(CLASSES, 16), normal(CLASSES)
QUERIES, KEYS = normal(2, 3, 9, 4), normal(2, 3, 9, 4)
PAIRS, STARTS, ENDS = normal(2, 9, 9), normal(2, 3, 9), normal(2, 3, 9)
CELLS = torch.randint(9, (2, 3, 2, 2), generator=DRAW)
RATIO = emo.Mixture.emo_scaled_to_cross_entropy(cap=3.0)
ONE_HOT = functional.one_hot(TARGETS, CLASSES).double()

CALLS = {
    "zlpr": (lambda x, r: zlpr_loss(x, TABLE, reduction=r), [ROWS]),
    "zlpr, half positive": (lambda x, r: zlpr_loss(x, HALF.expand(6, -1), reduction=r), [ROWS]),
    "sparse": (lambda x, r: sparse_zlpr_loss(x, TARGETS.unsqueeze(1), reduction=r), [ROWS]),
    "soft": (lambda x, r: soft_zlpr_loss(x, SOFT, reduction=r), [ROWS]),
    "soft, both": (lambda x, t, r: soft_zlpr_loss(x, t, reduction=r), [ROWS, SOFT]),
    "exact": (lambda x, r: exact_loss(x, TARGETS, reduction=r), [ROWS]),
    "exact, log": (lambda x, r: exact_loss(x, TARGETS, log=True, reduction=r), [ROWS]),
    "emo": (lambda x, r: emo.emo_loss(x, TARGETS, UNIT, reduction=r), [ROWS]),
    "kernel": (lambda x, r: emo.kernel_score_loss(x, TARGETS, UNIT, reduction=r), [ROWS]),
    "mixture": (
        lambda x, r: emo.emo_mixture_loss(x, TARGETS, UNIT, mixture=RATIO, reduction=r),
        [ROWS],
    ),
    "linear emo": (
        lambda h, w, b, r: emo.linear_emo_loss(h, w, TARGETS, UNIT, bias=b, reduction=r),
        [STATES, WEIGHT, BIAS],
    ),
    "linear mixture": (
        lambda h, w, r: emo.linear_emo_loss(h, w, TARGETS, UNIT, mixture=RATIO, reduction=r),
        [STATES, WEIGHT],
    ),
    **{
        f"soft emo, {by}": (
            lambda x, r, by=by: emo.soft_emo_loss(x, ONE_HOT, UNIT, by=by, reduction=r),
            [ROWS],
        )
        for by in ("bound", "kernel", "transport")
    },
    "streaming": (
        lambda q, k, r: streaming_zlpr_loss(q, k, CELLS, reduction=r),
        [QUERIES, KEYS],
    ),
    "factorised": (
        lambda a, b, c, r: factorised_zlpr_loss(a, b, c, CELLS, reduction=r),
        [PAIRS, STARTS, ENDS],
    ),
    "power": (lambda x, r: power_bce_loss(x, TABLE, 2.0, reduction=r), [ROWS]),
    "half pointer": (
        lambda x, r: half_pointer_loss(
            x.unflatten(-1, (20, 2)), TABLE.unflatten(-1, (20, 2)), reduction=r
        ),
        [ROWS],
    ),
    **{
        name: (lambda x, y, r, f=f: f(x, y, reduction=r), [ROWS, OTHER])
        for name, f in {
            "sigmoid divergence": sigmoid_divergence,
            "softmax divergence": softmax_divergence,
            "zlpr divergence": zlpr_divergence,
            "zlpr regret": zlpr_regret,
        }.items()
    },
    "smooth max": (lambda x, r: smooth_max(x, gamma=2.0), [ROWS]),
    "streamed": (lambda x, y, r: streaming_logsumexp([x, y]), [ROWS, OTHER]),
    "subsets": (lambda x, r: subset_logsumexp(x, 5), [ROWS]),
    "inclusion": (lambda x, r: inclusion_probabilities(x, 5), [ROWS]),
}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("factor", [65536.0, 1 / 65536])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_gradients_are_rounded_after_the_factor(name, dtype, factor, reduction, monkeypatch):
    monkeypatch.setattr(emo._linear, "_SMALL_CELLS", 0)  # the kernel, not the formula
    call, values = CALLS[name]
    leaves = [value.to(dtype).requires_grad_() for value in values]
    double = [leaf.detach().double().requires_grad_() for leaf in leaves]
    result, want = call(*leaves, reduction), call(*double, reduction)
    assert result.dtype == torch.float32
    upstream = torch.full_like(result, factor)
    limits = torch.finfo(dtype)
    for got, true in zip(
        torch.autograd.grad(result, leaves, upstream),
        torch.autograd.grad(want, double, upstream.double()),
        strict=True,
    ):
        assert got.dtype == dtype
        slack = 2e-5 * true.abs().max()  # of float32 itself
        rounding = (0.5 * limits.eps * true.abs()).clamp(
            min=0.5 * limits.smallest_normal * limits.eps
        )
        error = (got.double() - true).abs()
        beyond = true.abs() >= limits.max
        assert bool((got[beyond].abs() >= limits.max * (1 - limits.eps)).all())
        assert bool((error <= 1.001 * rounding + slack)[~beyond & got.isfinite()].all())
        assert bool((true.abs() >= limits.max * (1 - limits.eps))[got.isinf()].all())


def test_a_factor_that_brings_a_sum_back_into_range():
    """The sum's gradient is 3e5, beyond float16; divided by the number of tokens it is 30."""
    tokens = 10_000
    hidden = torch.full((tokens, 1), 10.0, dtype=torch.float16)
    weight = torch.zeros(2, 1, dtype=torch.float16, requires_grad=True)
    targets, table = torch.zeros(tokens, dtype=torch.int64), torch.eye(2)
    loss = emo.linear_emo_loss(hidden, weight, targets, table, reduction="sum")
    (slope,) = torch.autograd.grad(loss / 1000, weight)
    assert torch.allclose(slope.float(), torch.tensor([[-25.0], [25.0]]), rtol=1e-3)
