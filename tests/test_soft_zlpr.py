"""Soft ZLPR: the battery on every path, errors, derivatives, labels made soft, probabilities."""

import math
import re
import subprocess
import sys

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch.fx.experimental.proxy_tensor import make_fx

from lib import _checks
from lib.soft_zlpr import (
    SoftZLPRLoss,
    _kernels,
    _probability,
    draw_mixup,
    fit_scale,
    fit_scale_and_offset,
    fit_temperature,
    mixup,
    mixup_loss,
    smooth_labels,
    smooth_positives,
    smooth_spans,
    soft_zlpr_loss,
    zlpr_probability,
)
from lib.zlpr import zlpr_loss
from references.soft_zlpr import bert4torch_form, clipped
from tests import battery

INF = math.inf
CASES = {case.name: case for case in battery.soft_cases()}
VALID = {name: case for name, case in CASES.items() if not case.refused}


def raises(kind, message):
    return pytest.raises(kind, match=re.escape(message))


@pytest.fixture
def wide(monkeypatch):
    """Every part takes the path with shifts, the one of a GPU."""
    monkeypatch.setattr(_kernels, "NARROW", -1.0)
    monkeypatch.setattr(_kernels, "_AT_ONCE_CELLS", 0)


@pytest.fixture
def careful(monkeypatch):
    """No part takes the rounded exponential, and there are parts."""
    monkeypatch.setattr(_kernels, "_AT_ONCE_CELLS", 0)
    monkeypatch.setattr(_kernels, "_ROUNDED", -1.0)


@pytest.fixture
def by_formula(monkeypatch):
    """No value is readable: the path of compiled graphs and transforms."""
    monkeypatch.setattr(_checks, "values_readable", lambda *tensors: False)


# --------------------------------------------------------------------------------------- battery


@pytest.mark.parametrize("name", CASES)
def test_battery(name):
    outcome = battery.meet(battery.SOFT, CASES[name])
    assert outcome.verdict == "right", outcome


@pytest.mark.parametrize("path", ["wide", "careful", "by_formula"])
def test_battery_on_every_path(request, path):
    request.getfixturevalue(path)
    chosen = VALID if path == "by_formula" else CASES
    outcomes = {name: battery.meet(battery.SOFT, case) for name, case in chosen.items()}
    if path == "by_formula":  # where float16 targets are rounded by autograd itself
        beyond = ["the gradient of the targets is not finite"]
        outcomes = {
            name: found
            for name, found in outcomes.items()
            if "float16" not in name.replace("bfloat16", "") or found.notes != beyond
        }
    assert not {name: found for name, found in outcomes.items() if found.verdict != "right"}


@pytest.mark.cuda
def test_battery_on_cuda():
    verdicts = {n: battery.meet(battery.SOFT, c.to("cuda")).verdict for n, c in CASES.items()}
    assert set(verdicts.values()) == {"right"}, verdicts


@pytest.mark.parametrize(
    ("call", "name", "verdicts"),
    [
        (clipped, "normal float32; targets 0.05/0.95", {"right", "inexact"}),
        (clipped, "normal bfloat16; targets 0/1", {"inexact", "wrong", "non-finite"}),
        (clipped, "scores to ±10000 float32, 0.3 positive; targets any", {"inexact", "wrong"}),
        (clipped, "normal float32; targets tiny", {"inexact", "wrong"}),
        (bert4torch_form, "normal float32; targets 0/1", {"right"}),
        (bert4torch_form, "normal float32; targets 0.05/0.95", {"wrong"}),
        (bert4torch_form, "normal float32; targets 0/0.9", {"wrong"}),
        (bert4torch_form, "normal float32; targets 0.5", {"wrong"}),
        (bert4torch_form, "normal float16; targets any", {"wrong", "non-finite"}),
    ],
)
def test_battery_tells_published_forms_apart(call, name, verdicts):
    loss = battery.Loss("published", call, battery.SOFT.labels, battery.soft_row, masks=False)
    assert battery.meet(loss, CASES[name]).verdict in verdicts


def test_battery_sees_a_wrong_gradient_of_targets():
    class Off(torch.autograd.Function):
        @staticmethod
        def forward(ctx, targets, factor):
            ctx.factor = factor
            return targets.clone()

        @staticmethod
        def backward(ctx, upstream):
            return upstream * ctx.factor, None

    case = VALID["normal float32; targets any"]
    for factor, note in ((1.001, "is wrong"), (math.nan, "is not finite"), (-1.0, "is wrong")):

        def call(logits, labels, mask, how, factor=factor):
            return soft_zlpr_loss(logits, Off.apply(labels, factor), mask=mask, reduction=how)

        loss = battery.Loss(
            "off", call, battery.SOFT.labels, battery.soft_row, parts=battery.soft_parts
        )
        outcome = battery.meet(loss, case)
        assert outcome.verdict == "wrong"
        assert note in outcome.notes[0]


@pytest.mark.parametrize("scores", [[-20.0, -21.5, 18.0], [3.0, -4.0, 2.0], [1e4, -1e4, 1e4 - 1]])
@pytest.mark.parametrize("targets", [[0.0, 0.25, 1.0], [0.5] * 3, [1e-30, 1 - 2**-53, 0.9]])
def test_reference_against_fifty_digits(scores, targets):
    with mpmath.workdps(50):
        s, t = ([mpmath.mpf(v) for v in values] for values in (scores, targets))
        a = 1 + mpmath.fsum(y * mpmath.exp(-x) for x, y in zip(s, t, strict=True))
        b = 1 + mpmath.fsum((1 - y) * mpmath.exp(x) for x, y in zip(s, t, strict=True))
        value = mpmath.log(a) + mpmath.log(b)
        ours, gradient = battery.soft_row(scores, targets)
        assert abs(ours - value) <= 4e-16 * value
        for x, y, slope in zip(s, t, gradient, strict=True):
            parts = y * mpmath.exp(-x) / a, (1 - y) * mpmath.exp(x) / b
            assert abs(slope - (parts[1] - parts[0])) <= 1e-14 * sum(parts) + mpmath.mpf(10) ** -300


# ------------------------------------------------------------------------------- values and dtypes


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_targets_that_can_only_be_0_and_1_give_the_bits_of_zlpr(dtype):
    logits = torch.randn(5, 300, requires_grad=True)
    hard = (torch.rand(5, 300) < 0.1).to(dtype)
    mask = torch.rand(5, 300) < 0.9
    hard &= mask.to(dtype)
    for keep in (None, mask):
        ours = soft_zlpr_loss(logits, hard, mask=keep, reduction="none")
        theirs = zlpr_loss(logits, hard, mask=keep, reduction="none")
        assert torch.equal(ours, theirs)
        slopes = [torch.autograd.grad(v.sum(), logits)[0] for v in (ours, theirs)]
        assert torch.equal(*slopes)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.data())
def test_floating_zeros_and_ones_agree_with_zlpr_to_rounding(data):
    rows, classes = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 70))
    scale = data.draw(st.sampled_from([0.1, 3.0, 30.0, 1e3, 1e30]))
    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    logits = scale * torch.randn(rows, classes, dtype=torch.float64)
    logits.requires_grad_()
    hard = torch.rand(rows, classes) < 0.3
    ours = soft_zlpr_loss(logits, hard.double(), reduction="none")
    theirs = zlpr_loss(logits, hard, reduction="none")
    torch.testing.assert_close(ours, theirs, rtol=1e-14, atol=1e-300)
    slopes = [torch.autograd.grad(v.sum(), logits)[0] for v in (ours, theirs)]
    torch.testing.assert_close(*slopes, rtol=1e-11, atol=1e-300)


def test_a_float64_target_keeps_its_distance_to_1_beside_float32_logits():
    logits = torch.tensor([[30.0, 30.0]])
    targets = torch.tensor([[1 - 1e-12, 1.0]], dtype=torch.float64)
    loss = soft_zlpr_loss(logits, targets)
    gap = 1 - targets[0, 0].item()
    exact = math.log1p(gap * math.exp(30)) + math.log1p((1 - gap) * math.exp(-30) + math.exp(-30))
    assert loss.dtype == torch.float32
    assert abs(loss.item() - exact) < 3e-7 * exact
    assert soft_zlpr_loss(logits, targets.float()).item() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_targets_are_subtracted_from_1_in_float32(dtype):
    targets = torch.tensor([[1.0, 0.99609375, 2.0**-14]], dtype=torch.float64).to(dtype)
    logits = torch.tensor([[3.0, 5.0, 5.0]], dtype=torch.float64)
    expected = soft_zlpr_loss(logits, targets.double())
    ours = soft_zlpr_loss(logits.to(dtype).requires_grad_(), targets)
    assert ours.dtype == torch.float32
    assert abs(ours.item() - expected.item()) < 3e-7 * expected.item()
    assert torch.equal(1 - targets[0, 2], torch.ones((), dtype=dtype))  # what it must not do


@pytest.mark.parametrize("weight", [1e-40, 1e-30, 1e-20])
@pytest.mark.parametrize("distance", [40.0, 70.0, 90.0, 1e4])
def test_a_tiny_target_at_the_largest_term(weight, distance):
    """The largest exponential has a weight so small that another term matters as much."""
    logits = torch.tensor([[-distance, 0.0, 0.5]], requires_grad=True)
    targets = torch.tensor([[weight, 1.0, 0.5]])
    loss = soft_zlpr_loss(logits, targets)
    (gradient,) = torch.autograd.grad(loss, logits)
    with mpmath.workdps(60):
        s = [mpmath.mpf(v) for v in logits[0].tolist()]
        t = [mpmath.mpf(v) for v in targets[0].double().tolist()]
        a = 1 + mpmath.fsum(y * mpmath.exp(-x) for x, y in zip(s, t, strict=True))
        b = 1 + mpmath.fsum((1 - y) * mpmath.exp(x) for x, y in zip(s, t, strict=True))
        value = mpmath.log(a) + mpmath.log(b)
        cells = [(1 - y) * mpmath.exp(x) / b - y * mpmath.exp(-x) / a for x, y in zip(s, t)]  # noqa: B905
    assert abs(loss.item() - value) < 5e-7 * value
    for cell, true in zip(gradient[0].tolist(), cells, strict=True):
        assert abs(cell - true) < 2e-5 * abs(true) + 1e-7 * 1e-3


@pytest.mark.parametrize("level", [5.9, 6.1, 63.0, 65.0, 87.5, 88.5, 100.0, 110.0])
@pytest.mark.parametrize("degree", [0.5, 1e-6])
def test_the_ends_of_the_ways_to_compute(level, degree):
    logits = torch.tensor([[level, -level, 0.3]], requires_grad=True)
    targets = torch.tensor([[degree, 1 - degree, 0.5]])
    loss = soft_zlpr_loss(logits, targets)
    (gradient,) = torch.autograd.grad(loss, logits)
    exact = logits.detach().double().requires_grad_()
    true = soft_zlpr_loss(exact, targets.double())
    (slope,) = torch.autograd.grad(true, exact)
    assert abs(loss.item() - true.item()) < 3e-7 * true.item()
    torch.testing.assert_close(gradient.double(), slope, rtol=2e-5, atol=1e-30)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_slope_at_exact_targets_is_finite_however_far_the_score(dtype):
    logits = torch.tensor([[-1e4, 1e4, -50.0, 50.0, 2.0, -1.0]], dtype=dtype)
    targets = torch.tensor([[0, 1, 0, 1, 0, 1]], dtype=dtype).requires_grad_()
    (slope,) = torch.autograd.grad(soft_zlpr_loss(logits, targets), targets)
    end = torch.finfo(dtype).max
    assert slope.isfinite().all()
    assert slope[0, 0] >= 1e-3 * end if dtype != torch.float64 else slope[0, 0] > 1e300
    assert slope[0, 1] <= -1e-3 * end if dtype != torch.float64 else slope[0, 1] < -1e300
    a, b = 1 + math.exp(1), 1 + math.exp(2)
    exact = math.exp(-2) / a - math.exp(2) / b
    assert abs(slope[0, 4].item() - exact) < 0.01 * abs(exact)
    if dtype in (torch.float32, torch.float64):
        assert abs(slope[0, 2].item() * a - math.exp(50)) < 1e-5 * math.exp(50)


def test_slopes_of_targets_under_transforms_are_finite_too(by_formula):
    logits, targets = torch.tensor([[-1e4, 1e4, 0.0]]), torch.tensor([[0.0, 1.0, 0.5]])
    slope = torch.func.grad(lambda t: soft_zlpr_loss(logits, t))(targets)
    assert slope.isfinite().all()
    assert slope[0, 0] > 1e36
    assert slope[0, 1] < -1e36


def test_cells_that_do_not_count_have_no_slope():
    logits = torch.tensor([[-INF, 1.0, math.nan, 0.5]], requires_grad=True)
    targets = torch.tensor([[0.0, 0.3, 0.0, 0.9]], requires_grad=True)
    mask = torch.tensor([True, True, False, True])
    loss = soft_zlpr_loss(logits, targets, mask=mask)
    gradient, slope = torch.autograd.grad(loss, (logits, targets))
    assert gradient[0, [0, 2]].tolist() == [0, 0]
    assert slope[0, [0, 2]].tolist() == [0, 0]
    few = soft_zlpr_loss(torch.tensor([[1.0, 0.5]]), torch.tensor([[0.3, 0.9]]))
    assert abs(loss.item() - few.item()) < 1e-6


def test_inputs_are_left_alone_and_backward_can_be_repeated():
    for scale in (1.0, 1e3):
        logits = (scale * torch.randn(4, 64)).requires_grad_()
        targets = torch.rand(4, 64, requires_grad=True)
        kept = [tensor.detach().clone() for tensor in (logits, targets)]
        loss = soft_zlpr_loss(logits, targets)
        first = torch.autograd.grad(loss, (logits, targets), retain_graph=True)
        second = torch.autograd.grad(loss, (logits, targets))
        assert all(map(torch.equal, first, second))
        assert all(map(torch.equal, kept, (logits.detach(), targets.detach())))


def test_only_one_of_the_two_gradients():
    logits, targets = torch.randn(3, 9), torch.rand(3, 9)
    both = [x.clone().requires_grad_() for x in (logits, targets)]
    full = torch.autograd.grad(soft_zlpr_loss(*both), both)
    alone = logits.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(soft_zlpr_loss(alone, targets), alone)[0], full[0])
    alone = targets.clone().requires_grad_()
    assert torch.equal(torch.autograd.grad(soft_zlpr_loss(logits, alone), alone)[0], full[1])


def test_module():
    logits, targets, mask = torch.randn(3, 6), torch.rand(3, 6), torch.rand(3, 6) < 2
    for reduction in ("none", "mean", "sum"):
        module = SoftZLPRLoss(reduction=reduction)
        expected = soft_zlpr_loss(logits, targets, reduction=reduction)
        assert torch.equal(module(logits, targets), expected)
        torch.testing.assert_close(module(logits, targets, mask), expected)
        assert repr(module) == f"SoftZLPRLoss(reduction='{reduction}')"
    with raises(ValueError, "reduction must be 'none', 'mean' or 'sum', got 'max'"):
        SoftZLPRLoss(reduction="max")


# ---------------------------------------------------------------------------------- refused input


@pytest.mark.parametrize("value", [1 + 1e-6, -1e-6, math.nan, INF])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_targets_out_of_range(value, masked, scale):
    targets = torch.rand(2, 3, 5)
    logits, mask = scale * torch.randn(2, 3, 5), None
    if masked:
        mask = torch.ones(5, dtype=torch.bool)
        mask[3] = False
        expected = soft_zlpr_loss(logits, targets, mask=mask, reduction="none")
        targets[..., 3] = value
        assert torch.equal(soft_zlpr_loss(logits, targets, mask=mask, reduction="none"), expected)
        mask[3] = True
    targets[1, 2, 3], targets[0, :, 3], targets[1, :2, 3] = value, 0, 0
    with raises(ValueError, "targets must lie in [0, 1]") as caught:
        soft_zlpr_loss(logits, targets, mask=mask)
    assert "at targets[1, 2, 3]" in str(caught.value)


def test_a_target_where_nothing_counts():
    targets = torch.tensor([[0.0, 0.25]], requires_grad=True)
    loss = soft_zlpr_loss(torch.zeros(1, 2), targets, mask=torch.tensor([True, False]))
    assert abs(loss.item() - math.log(2)) < 1e-6
    assert torch.autograd.grad(loss, targets)[0][0, 1] == 0
    with raises(ValueError, "targets[0, 1] = 0.25 and logits[0, 1] = -inf"):
        soft_zlpr_loss(torch.tensor([[0.0, -INF]]), targets)
    tiny = torch.tensor([[0.0, 1e-60]], dtype=torch.float64)  # 0 in float32
    with raises(ValueError, "targets[0, 1] = 1e-60"):
        soft_zlpr_loss(torch.tensor([[0.0, -INF]]), tiny)


@pytest.mark.parametrize("value", [INF, math.nan])
@pytest.mark.parametrize("target", [0.0, 0.5, 1.0])
def test_logits_that_are_no_scores(value, target):
    logits, targets = torch.zeros(2, 3), torch.full((2, 3), target)
    logits[1, 2] = value
    with raises(ValueError, f"got {value} at logits[1, 2]"):
        soft_zlpr_loss(logits, targets)


def test_shapes_dtypes_and_reduction_are_checked():
    logits, targets = torch.zeros(2, 4), torch.zeros(2, 4)
    with raises(TypeError, "targets must be bool or real, got torch.complex64"):
        soft_zlpr_loss(logits, targets.to(torch.complex64))
    with raises(ValueError, "targets must have the shape of logits, expected (2, 4), got (1, 4)"):
        soft_zlpr_loss(logits, targets[:1])
    with raises(ValueError, "reduction must be"):
        soft_zlpr_loss(logits, targets, reduction="average")
    assert soft_zlpr_loss(logits[:0], targets[:0]).item() == 0
    with raises(ValueError, "targets must lie in [0, 1], got 2 at targets[0, 1]"):
        soft_zlpr_loss(logits, torch.tensor([[0, 2, 0, 0], [0, 0, 0, 0]]))


# ------------------------------------------------------------------------------------- derivatives


def sample(seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(3, 20, generator=generator, dtype=torch.float64)
    targets = 0.05 + 0.9 * torch.rand(3, 20, generator=generator, dtype=torch.float64)
    targets[:, 5] = 0
    return logits.requires_grad_(), targets.requires_grad_()


MASK = torch.arange(20) != 5


def masked_loss(logits, targets):
    return soft_zlpr_loss(logits, targets, mask=MASK, reduction="none")


def unmasked_loss(logits, targets):
    return soft_zlpr_loss(logits, targets, reduction="none")


@pytest.mark.parametrize("path", ["careful", "wide"])
def test_first_and_second_derivatives_against_differences(request, path):
    request.getfixturevalue(path)

    def loss(logits, inner):
        return masked_loss(logits, inner * MASK)

    assert torch.autograd.gradcheck(loss, sample())
    assert torch.autograd.gradgradcheck(loss, sample())


def test_gradient_is_the_same_whether_or_not_it_is_differentiated():
    inputs = sample()
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    plain = torch.autograd.grad(masked_loss(*inputs), inputs, upstream)
    again = torch.autograd.grad(masked_loss(*inputs), inputs, upstream, create_graph=True)
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)
        assert other.requires_grad
        assert not one.requires_grad


def test_torch_func():
    logits, targets = sample()
    expected = torch.autograd.grad(masked_loss(logits, targets).sum(), (logits, targets))
    plain = logits.detach(), targets.detach()
    found = torch.func.grad(lambda s, t: masked_loss(s, t).sum(), argnums=(0, 1))(*plain)
    torch.testing.assert_close(found, expected)
    jacobian = torch.func.jacrev(masked_loss)(*plain)
    torch.testing.assert_close(torch.func.jacfwd(masked_loss)(*plain), jacobian)
    rows = torch.vmap(lambda s, t: soft_zlpr_loss(s, t, mask=MASK))(*plain)
    torch.testing.assert_close(rows, masked_loss(*plain))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode):
    (first, targets), (other, others) = sample(), sample(1)
    graph = make_fx(unmasked_loss, tracing_mode=mode)(first.detach(), targets.detach())
    torch.testing.assert_close(graph(other, others), unmasked_loss(other, others))


def test_compile_without_graph_breaks():
    torch.compiler.reset()
    compiled = torch.compile(masked_loss, fullgraph=True, backend="aot_eager")
    inputs = sample()
    torch.testing.assert_close(compiled(*inputs), masked_loss(*inputs))
    found = torch.autograd.grad(compiled(*inputs).sum(), inputs)
    torch.testing.assert_close(found, torch.autograd.grad(masked_loss(*inputs).sum(), inputs))


def test_bad_values_become_nan_where_none_can_raise():
    logits, ok = torch.zeros(3, 4), torch.full((3, 4), 0.5)
    ok[:, 0] = 0
    low, high, odd = logits.clone(), logits.clone(), ok.clone()
    low[1, 2], high[1, 0], odd[1, 1] = -INF, INF, 1.5
    for s, t in ((low, ok), (high, ok), (logits, odd)):

        def loss(s, t=t):
            return soft_zlpr_loss(s, t, reduction="none")

        found = torch.func.jvp(loss, (s,), (logits,))[0]
        assert found.isnan().tolist() == [False, True, False]


def test_meta_tensors_have_shapes():
    logits = torch.zeros(4, 9, device="meta", requires_grad=True)
    loss = soft_zlpr_loss(logits, torch.zeros(4, 9, device="meta"), reduction="none")
    assert loss.shape == (4,)
    assert torch.autograd.grad(loss.sum(), logits)[0].shape == (4, 9)


def test_training_follows_the_reference():
    """A linear model takes the same 40 steps with this loss and with the formula in log space."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 10, generator=generator, dtype=torch.float64)
    truth = torch.randn(10, 30, generator=generator, dtype=torch.float64)
    targets = torch.sigmoid(2 * (inputs @ truth - 4)).clamp(1e-6, 1 - 1e-6)

    def plain(logits):
        zero = torch.zeros_like(logits[:, :1])
        up = torch.cat([-logits + targets.log(), zero], 1).logsumexp(1)
        down = torch.cat([logits + torch.log1p(-targets), zero], 1).logsumexp(1)
        return (up + down).mean()

    ends = []
    for loss in (plain, lambda logits: soft_zlpr_loss(logits, targets)):
        weight = torch.zeros(10, 30, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([weight], lr=0.1)
        for _ in range(40):
            optimiser.zero_grad()
            loss(inputs @ weight).backward()
            optimiser.step()
        ends.append(weight.detach())
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=1e-9)


# -------------------------------------------------------------------------------- labels made soft


def test_uniform_smoothing():
    hard = torch.tensor([[1, 0, 0], [1, 1, 0]])
    mask = torch.tensor([True, True, False])
    soft = smooth_labels(hard, 0.1, mask=mask)
    assert soft.dtype == torch.float32
    torch.testing.assert_close(soft, torch.tensor([[0.9, 0.1, 0], [0.9, 0.9, 0]]))
    assert smooth_labels(hard.double(), 0.1).dtype == torch.float64
    assert torch.equal(smooth_labels(hard.bool(), 0.0), hard.float())
    assert torch.equal(smooth_labels(hard, 0.5), torch.full((2, 3), 0.5))
    soft_zlpr_loss(torch.zeros(2, 3), soft, mask=mask)  # accepted, as the masked cells hold 0


def test_positives_alone():
    soft = smooth_positives(torch.tensor([True, False]), 0.1)
    torch.testing.assert_close(soft, torch.tensor([0.9, 0.0]))


def spans_by_hand(gold, rate, radius, mask):
    """One gold cell after the other."""
    size = len(gold)
    soft = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for j in range(size):
            if not gold[i][j]:
                continue
            near = [
                (a, b)
                for a in range(size)
                for b in range(size)
                if abs(a - i) + abs(b - j) <= radius and not gold[a][b] and mask[a][b]
            ]
            soft[i][j] = 1 - rate if near else 1.0
            for a, b in near:
                soft[a][b] += rate / len(near)
    return [
        [cell if gold[a][b] else min(cell, 1 - rate) for b, cell in enumerate(row)]
        for a, row in enumerate(soft)
    ]


@pytest.mark.parametrize("radius", [1, 2, 3])
@pytest.mark.parametrize("share", [0.03, 0.5])
def test_spans_share_with_their_neighbours(radius, share):
    generator = torch.Generator().manual_seed(radius)
    mask = torch.ones(9, 9, dtype=torch.bool).triu()
    gold = (torch.rand(2, 3, 9, 9, generator=generator) < share) & mask
    soft = smooth_spans(gold.double(), 0.3, radius=radius, mask=mask)
    for b in range(2):
        for h in range(3):
            expected = spans_by_hand(gold[b, h].tolist(), 0.3, radius, mask.tolist())
            torch.testing.assert_close(soft[b, h], torch.tensor(expected, dtype=torch.float64))
    assert (soft[..., ~mask] == 0).all()
    if share < 0.1:
        torch.testing.assert_close(soft.sum((-1, -2)), gold.double().sum((-1, -2)))


def test_a_span_without_free_neighbours_keeps_its_label():
    full = torch.ones(1, 3, 3)
    assert torch.equal(smooth_spans(full, 0.3), full)


@pytest.mark.parametrize("smooth", [smooth_labels, smooth_positives, smooth_spans])
def test_smoothing_checks(smooth):
    table = torch.eye(3)
    for rate in (-0.1, 1.5, math.nan):
        with raises(ValueError, "rate must lie in [0, "):
            smooth(table, rate)
    rule = "hold only 0 and 1" if smooth is smooth_spans else "lie in [0, 1]"
    with raises(ValueError, f"targets must {rule}, got 2.0 at targets[1, 1]"):
        smooth(table + torch.diag(torch.tensor([0.0, 1, 0])), 0.1)
    with raises(TypeError, "targets must be bool or real"):
        smooth(table.to(torch.complex64), 0.1)


@pytest.mark.parametrize("smooth", [smooth_labels, smooth_spans])
def test_smoothing_checks_its_mask(smooth):
    table = torch.eye(3)
    with raises(TypeError, "mask must have dtype torch.bool, got torch.int64"):
        smooth(table, 0.1, mask=torch.ones(3, 3, dtype=torch.int64))
    with raises(TypeError, "mask must be a torch.Tensor, got bool"):
        smooth(table, 0.1, mask=True)
    for shape in ((2, 3, 3), (2,)):  # the first would broadcast the targets, not the mask
        with raises(
            ValueError, f"mask must broadcast to the shape of targets, expected (3, 3), got {shape}"
        ):
            smooth(table, 0.1, mask=torch.ones(shape, dtype=torch.bool))


@pytest.mark.parametrize("smooth", [smooth_labels, smooth_positives, smooth_spans])
def test_smoothing_does_not_look_at_what_does_not_count(smooth):
    torch.manual_seed(0)
    mask = torch.ones(5, 5, dtype=torch.bool).triu()
    clean = ((torch.rand(2, 5, 5) < 0.3) & mask).double()
    expected = smooth(clean, 0.1, mask=mask)
    assert (expected[..., ~mask] == 0).all()
    for unknown in (1.0, -1.0, math.nan, INF):
        assert torch.equal(smooth(clean.masked_fill(~mask, unknown), 0.1, mask=mask), expected)
    with raises(ValueError, "where they count, got -1.0 at targets[1, 0, 0]"):
        bad = clean.clone()
        bad[1, 0, 0] = -1
        smooth(bad, 0.1, mask=mask)


def test_tables_of_length_0_and_none_at_all():
    for shape in ((2, 0, 0), (0, 3, 3), (0, 0)):
        assert smooth_spans(torch.zeros(shape), 0.1).shape == shape


def test_spans_are_shared_in_full_precision_under_autocast():
    gold = torch.zeros(6, 6)
    gold[2, 3] = 1
    expected = smooth_spans(gold, 0.3, radius=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(smooth_spans(gold, 0.3, radius=2), expected)


def test_smoothing_spans_checks():
    with raises(ValueError, "targets must have shape (..., L, L), got (2, 3)"):
        smooth_spans(torch.zeros(2, 3), 0.1)
    with raises(ValueError, "radius must be at least 1, got 0"):
        smooth_spans(torch.zeros(3, 3), 0.1, radius=0)
    with raises(ValueError, "targets must hold only 0 and 1"):
        smooth_spans(torch.full((3, 3), 0.5), 0.1)
    for radius in (1.5, True):
        with raises(TypeError, f"radius must be an int, got {type(radius).__name__}"):
            smooth_spans(torch.zeros(3, 3), 0.1, radius=radius)
    assert torch.equal(
        smooth_spans(torch.eye(9), 0.1, radius=np.int64(2)),
        smooth_spans(torch.eye(9), 0.1, radius=2),
    )
    with raises(ValueError, "rate must lie in [0, 1), got 1"):
        smooth_positives(torch.zeros(3), 1)


# ------------------------------------------------------------------------------------------- mixup


def test_mixing_values():
    values = torch.tensor([[0.0, 1.0, 0.3], [1.0, 1.0, 0.3]])
    order = torch.tensor([1, 0])
    expected = torch.tensor([[0.75, 1.0, 0.3], [0.1, 1.0, 0.3]])
    mixed = mixup(values, torch.tensor([0.25, 0.1]), order)
    torch.testing.assert_close(mixed, expected)
    assert torch.equal(mixed[:, 1:], values[:, 1:])  # where both agree, to the bit
    assert mixup(values.bool(), 0.5, order).tolist()[0] == [0.5, 1.0, 1.0]
    deep = torch.randn(4, 3, 5)
    weight, order = torch.rand(4), torch.randperm(4)
    by_hand = torch.stack(
        [weight[b] * deep[b] + (1 - weight[b]) * deep[order[b]] for b in range(4)]
    )
    torch.testing.assert_close(mixup(deep, weight, order), by_hand)


@pytest.mark.parametrize("shape", [(4, 7), (4, 3, 7)])
def test_two_ways_to_mix(shape):
    logits = torch.randn(shape, dtype=torch.float64)
    hard = torch.rand(shape) < 0.4
    weight, order = torch.rand(4, dtype=torch.float64), torch.tensor([2, 0, 3, 1])
    column = weight.view(-1, *[1] * (len(shape) - 2))
    own = zlpr_loss(logits, hard, reduction="none")
    other = zlpr_loss(logits, hard[order], reduction="none")
    losses = mixup_loss(logits, hard, weight, order, mix="losses", reduction="none")
    torch.testing.assert_close(losses, column * own + (1 - column) * other)
    full = weight.view(-1, *[1] * (len(shape) - 1))
    soft = full * hard + (1 - full) * hard[order]
    labels = mixup_loss(logits, hard.double(), weight, order, mix="labels", reduction="none")
    torch.testing.assert_close(labels, soft_zlpr_loss(logits, soft, reduction="none"))
    assert (losses <= labels + 1e-12).all()
    mean = mixup_loss(logits, hard, weight, order, mix="losses")
    torch.testing.assert_close(mean, losses.mean())


def test_mixup_checks():
    logits, hard, order = torch.zeros(2, 3), torch.zeros(2, 3), torch.tensor([1, 0])
    with raises(ValueError, "mix must be 'labels' or 'losses', got 'both'"):
        mixup_loss(logits, hard, 0.5, order, mix="both")
    with raises(ValueError, "weight must lie in [0, 1], got 1.5"):
        mixup(hard, 1.5, order)
    with raises(ValueError, "weight must be a number or have one entry per sample, expected (2,)"):
        mixup(hard, torch.ones(3), order)
    with raises(ValueError, "order must have one entry per sample, expected (2,), got (3,)"):
        mixup(hard, 0.5, torch.arange(3))
    for at, bad in ((1, -1), (0, 2)):
        wrong = order.clone()
        wrong[at] = bad
        with raises(ValueError, f"order must name samples from 0 to 1, got {bad} at order[{at}]"):
            mixup(hard, 0.5, wrong)
    with raises(TypeError, "values must be a torch.Tensor, got list"):
        mixup([0.0, 1.0], 0.5, order)
    with raises(TypeError, "values must be bool or real, got torch.complex64"):
        mixup(hard.to(torch.complex64), 0.5, order)
    with raises(ValueError, "values must have shape (B, ...), got ()"):
        mixup(torch.tensor(1.0), 0.5, order)
    for alpha in (0, INF, math.nan):
        with raises(ValueError, f"alpha must be above 0 and finite, got {alpha}"):
            draw_mixup(3, alpha=alpha)
    for samples in (2.0, True):
        with raises(TypeError, f"samples must be an int, got {type(samples).__name__}"):
            draw_mixup(samples, alpha=1.0)
    with raises(ValueError, "samples must be at least 0, got -1"):
        draw_mixup(-1, alpha=1.0)
    assert draw_mixup(np.int64(3), alpha=1.0)[1].shape == (3,)
    with raises(ValueError, "reduction must be"):
        mixup_loss(logits, hard, 0.5, order, mix="losses", reduction="all")


@pytest.mark.parametrize("mix", ["labels", "losses"])
def test_mixup_loss_checks_before_it_mixes(mix):
    logits, order = torch.zeros(2, 3), torch.tensor([1, 0])

    def loss(targets, order=order):
        return mixup_loss(logits, targets, 0.4, order, mix=mix)

    # Their mean is in range, so that a check of what is mixed would not see them.
    for dtype, value in ((torch.float32, "2.0"), (torch.int64, "2")):
        bad = torch.tensor([[2, 0, 0], [0, 1, 1]], dtype=dtype)
        with raises(ValueError, f"targets must lie in [0, 1], got {value}"):
            loss(bad)
    with raises(ValueError, "targets must have the shape of logits, expected (2, 3), got (3, 3)"):
        loss(torch.zeros(3, 3))
    with raises(ValueError, "order must have one entry per sample, expected (2,), got (1,)"):
        loss(torch.zeros(2, 3), torch.tensor([1]))


@pytest.mark.parametrize("mix", ["labels", "losses"])
def test_mixup_does_not_look_at_what_does_not_count(mix):
    torch.manual_seed(0)
    logits, labels, order = torch.randn(3, 4), (torch.rand(3, 4) < 0.5).double(), torch.arange(3)
    mask = torch.tensor([True, True, False, True])
    order, weight = order.roll(1), torch.rand(3)

    def loss(targets, mask=mask):
        return mixup_loss(logits, targets, weight, order, mix=mix, mask=mask)

    expected = loss(labels)
    for unknown in (1.0, -1.0, math.nan):
        assert torch.equal(loss(labels.masked_fill(~mask, unknown)), expected)
    # Where only one of the two counts, the partner's target still does; it is named as given.
    only = torch.ones(3, 4, dtype=torch.bool)
    only[1, 2] = False
    bad = labels.clone()
    bad[1, 2] = -1
    with raises(
        ValueError, "targets must lie in [0, 1] where they count, got -1.0 at targets[1, 2]"
    ):
        loss(bad, only)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mix", ["labels", "losses"])
def test_half_precision_is_mixed_above_it_and_rounded_once(mix, dtype):
    torch.manual_seed(0)
    logits = torch.randn(6, 40).to(dtype).requires_grad_()
    targets, weight, order = torch.rand(6, 40).to(dtype), torch.rand(6), torch.arange(6).roll(1)
    wide = logits.detach().float().requires_grad_()
    expected = mixup_loss(wide, targets.float(), weight, order, mix=mix)
    found = mixup_loss(logits, targets, weight, order, mix=mix)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    slopes = torch.autograd.grad(found, logits)[0], torch.autograd.grad(expected, wide)[0]
    assert torch.equal(slopes[0], slopes[1].to(dtype))


def labels_made_soft():
    """Each function of labels, as one of tensors, and its arguments."""
    torch.manual_seed(0)
    logits, soft, hard = torch.randn(4, 6), torch.rand(4, 6), torch.rand(4, 6) < 0.4
    weight, order = torch.rand(4), torch.tensor([1, 0, 3, 2])
    mask = torch.rand(4, 6) < 0.8
    tables = (torch.rand(4, 5, 5) < 0.2).double()
    both = [
        (f"{mix} {kind}", lambda s, t, w, o, mix=mix: mixup_loss(s, t, w, o, mix=mix), inputs)
        for mix in ("labels", "losses")
        for kind, inputs in (
            ("soft", (logits, soft, weight, order)),
            ("hard", (logits, hard, weight, order)),
        )
    ]
    return [
        ("smooth", lambda t, m: smooth_labels(t, 0.1, mask=m), (hard, mask)),
        ("positives", lambda t, m: smooth_positives(t, 0.1, mask=m), (soft, mask)),
        ("spans", lambda t: smooth_spans(t, 0.1, radius=2), (tables,)),
        ("mixup", mixup, (soft, weight, order)),
        ("probability", lambda s: zlpr_probability(s, scale=1.5, offset=-0.2), (logits,)),
        *both,
    ]


MADE_SOFT = {name: (function, inputs) for name, function, inputs in labels_made_soft()}


@pytest.mark.parametrize("name", MADE_SOFT)
def test_functions_of_labels_in_graphs_and_transforms(name):
    function, inputs = MADE_SOFT[name]
    expected = function(*inputs)
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), expected)
    stacked = torch.vmap(function)(*(torch.stack([x, x]) for x in inputs))
    torch.testing.assert_close(stacked, torch.stack([expected, expected]))
    assert function(*(x.to("meta") for x in inputs)).shape == expected.shape

    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return function(*tensors)

    sizes = (tuple({0: torch.export.Dim("batch")} for _ in inputs),)
    program = torch.export.export(Module(), inputs, dynamic_shapes=sizes).module()
    longer = [torch.arange(8) if x.dtype == torch.int64 else torch.cat([x, x]) for x in inputs]
    torch.testing.assert_close(program(*longer), function(*longer))


def test_probabilities_of_any_size_take_two_graphs():
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(zlpr_probability, fullgraph=True, dynamic=True, backend=counter)
    for size in range(2, 14):
        logits = torch.randn(size, 3 * size)
        torch.testing.assert_close(
            compiled(logits, scale=0.1 * size), zlpr_probability(logits, scale=0.1 * size)
        )
    assert counter.frame_count <= 2


@pytest.mark.parametrize("name", MADE_SOFT)
def test_functions_of_labels_beside_other_defaults(name):
    function, inputs = MADE_SOFT[name]
    expected = function(*inputs)
    with torch.device("meta"):
        assert torch.equal(function(*inputs), expected)
    torch.set_default_dtype(torch.float64)
    try:
        wide = function(*inputs)
        bare = not any(x.dtype.is_floating_point for x in inputs)
        assert wide.dtype == (torch.float64 if bare else expected.dtype)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("function", [mixup, lambda v, w, o: mixup_loss(v, v, w, o, mix="losses")])
def test_a_bad_weight_gives_nan_where_none_can_raise(function):
    values, order = torch.rand(3, 2), torch.tensor([0, 1, 2])
    weights = torch.tensor([[0.5, 0.5, 0.5], [0.5, 1.5, 0.5]])
    found = torch.vmap(lambda w: function(values, w, order).sum())(weights)
    assert found.isnan().tolist() == [False, True]


def test_drawn_numbers_stand_on_the_default_device_and_are_those_of_the_cpu():
    expected = draw_mixup(5, alpha=0.4, generator=torch.Generator().manual_seed(3))
    with torch.device("meta"):
        found = draw_mixup(5, alpha=0.4, generator=torch.Generator("cpu").manual_seed(3))
    assert [x.device.type for x in found] == ["meta", "meta"]
    assert [x.dtype for x in found] == [x.dtype for x in expected]
    torch.set_default_dtype(torch.float64)
    try:
        wide = draw_mixup(5, alpha=0.4, generator=torch.Generator().manual_seed(3))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(wide[0].float(), expected[0])
    assert torch.equal(wide[1], expected[1])


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float32])
def test_an_order_is_no_mask(dtype):
    values, order = torch.rand(2, 3), torch.tensor([1, 0]).to(dtype)
    with raises(TypeError, f"order must have dtype torch.int64, got {dtype}"):
        mixup(values, 0.4, order)
    for mix in ("labels", "losses"):
        with raises(TypeError, f"order must have dtype torch.int64, got {dtype}"):
            mixup_loss(torch.zeros(2, 3), values, 0.4, order, mix=mix)
    with raises(TypeError, "order must have dtype torch.int64, got list"):
        mixup(values, 0.4, [1, 0])


@pytest.mark.parametrize("mix", ["labels", "losses"])
def test_bad_targets_become_nan_in_both_mixes_where_none_can_raise(mix):
    logits, order = torch.zeros(3, 2), torch.tensor([1, 0, 2])
    targets = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.5, 0.5]])

    def loss(s, t=targets):
        return mixup_loss(s, t, 0.4, order, mix=mix, reduction="none")

    found = torch.func.jvp(loss, (logits,), (logits,))[0]
    assert found.isnan().tolist() == [True, True, False]
    good = targets.clamp(max=1)
    found = torch.func.jvp(lambda s: loss(s, good), (logits,), (logits,))[0]
    torch.testing.assert_close(found, loss(logits, good))


def test_drawn_weights_follow_the_beta_law():
    generator = torch.Generator().manual_seed(0)
    for alpha in (0.2, 1.0, 4.0):
        weight, order = draw_mixup(20_000, alpha=alpha, generator=generator, dtype=torch.float64)
        assert sorted(order.tolist()) == list(range(20_000))
        assert abs(weight.mean().item() - 0.5) < 0.01
        assert abs(weight.var().item() - 0.25 / (2 * alpha + 1)) < 0.005
        assert weight.dtype == torch.float64
    again = [draw_mixup(5, alpha=0.4, generator=torch.Generator().manual_seed(3)) for _ in "ab"]
    assert all(map(torch.equal, *again))
    tiny, _ = draw_mixup(1000, alpha=1e-4, generator=generator)
    assert tiny.isfinite().all()
    assert 0.4 < tiny.mean().item() < 0.6


# ----------------------------------------------------------------------------------- probabilities


def test_probability():
    logits = torch.tensor([-INF, -1.0, 0.0, 400.0, INF, math.nan])
    torch.testing.assert_close(zlpr_probability(logits), torch.sigmoid(2 * logits), equal_nan=True)
    torch.testing.assert_close(
        zlpr_probability(logits, scale=1.5, offset=-0.5),
        torch.sigmoid(1.5 * logits - 0.5),
        equal_nan=True,
    )
    for bad in (0.0, -1.0, INF, math.nan):
        with raises(ValueError, f"scale must be a positive finite number, got {bad}"):
            zlpr_probability(logits, scale=bad)
    for bad in (INF, -INF, math.nan):
        with raises(ValueError, f"offset must be a finite number, got {bad}"):
            zlpr_probability(logits, offset=bad)
    with raises(TypeError, "logits must have a floating-point dtype"):
        zlpr_probability(torch.zeros(2, dtype=torch.int64))
    with raises(TypeError, "logits must be a torch.Tensor, got list"):
        zlpr_probability([0.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_probabilities_are_rounded_once(dtype):
    logits = torch.linspace(-30, 30, 4001).to(dtype)
    exact = torch.sigmoid(0.3 * logits.double() + 0.7)
    assert torch.equal(zlpr_probability(logits, scale=0.3, offset=0.7), exact.float().to(dtype))


def test_the_old_names_warn_and_give_the_same():
    torch.manual_seed(0)
    logits = torch.randn(40, 3)
    labels = torch.rand(40, 3) < torch.sigmoid(logits)
    mask = torch.rand(40, 3) < 0.9
    with pytest.warns(FutureWarning, match="temperature is now called scale") as seen:
        old = zlpr_probability(logits, temperature=1.3)
    assert torch.equal(old, zlpr_probability(logits, scale=1.3))
    with pytest.warns(FutureWarning, match="fit_temperature is now called fit_scale") as more:
        factor = fit_temperature(logits, labels, mask=mask)
    assert factor == fit_scale(logits, labels, mask=mask)
    assert {warning.filename for warning in (*seen, *more)} == {__file__}  # the caller's line
    with raises(TypeError, "scale must be given alone, got temperature, its old name, as well"):
        zlpr_probability(logits, scale=1.0, temperature=1.3)


def drawn(true, offset=0.0, size=3000):
    rng = np.random.default_rng(1)
    s = rng.normal(size=size) / true
    return s, rng.random(size) < 1 / (1 + np.exp(-true * s - offset))


@pytest.mark.parametrize("true", [0.03, 0.7, 2.0, 40.0])
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e3, 1e200])
def test_fit_against_scipy(true, size):
    s, y = drawn(true)

    def risk(log_t):
        z = math.exp(log_t) * s
        return float(np.logaddexp(0, z).sum() - z[y].sum())

    best = optimize.minimize_scalar(risk, bounds=(-8, 8), method="bounded", options={"xatol": 1e-9})
    found = fit_scale(torch.tensor(s * size), torch.tensor(y))
    assert abs(found * size / math.exp(best.x) - 1) < 1e-6
    z = found * size * s
    assert abs(np.sum(s * (1 / (1 + np.exp(-z)) - y))) < 1e-12 * np.abs(s).sum()


@pytest.mark.parametrize("true", [0.03, 0.7, 40.0])
@pytest.mark.parametrize("offset", [-4.0, 0.0, 1.0])
@pytest.mark.parametrize(("size", "shift"), [(1.0, 0.0), (1e-6, 0.0), (1e3, 50.0), (1e200, 0.0)])
def test_fit_of_both_against_scipy(true, offset, size, shift):
    s, y = drawn(true, offset)

    def risk(pair):
        z = pair[0] * true * s + pair[1]
        return float(np.logaddexp(0, z).sum() - z[y].sum())

    best = optimize.minimize(risk, (1.0, 0.0), method="Nelder-Mead", tol=1e-10).x
    scale, found = fit_scale_and_offset(torch.tensor(s * size + shift), torch.tensor(y))
    assert abs(scale * size / true - best[0]) < 1e-4
    assert abs(found + scale * shift - best[1]) < 1e-4
    residual = 1 / (1 + np.exp(-scale * (s * size + shift) - found)) - y
    assert abs(residual.sum()) < 1e-9
    assert abs((residual * s).sum()) < 1e-9 * np.abs(s).sum()


def test_fit_to_the_last_digits():
    """One of fifty is on the wrong side by a hair; the others are as sure as that makes them."""
    s, y = torch.tensor([1.0] * 50 + [-1e-30], dtype=torch.float64), torch.ones(51)
    assert abs(fit_scale(s, y) - math.log(100 / 1e-30)) < 1e-14 * math.log(100 / 1e-30)
    # Two positives and one negative at each of two scores: log-odds log 2 and -log 2, exactly.
    for low, high in ((-1.0, 1.0), (3.0, 5.0), (0.1, 0.3), (-1e-8, 7.0)):
        s = torch.tensor([low] * 3 + [high] * 3, dtype=torch.float64)
        scale, offset = fit_scale_and_offset(s, torch.tensor([0, 0, 1, 1, 1, 0]))
        assert abs(scale * (high - low) / (2 * math.log(2)) - 1) < 1e-14
        assert abs(offset + scale * (low + high) / 2) < 1e-14 * max(1, scale * abs(high))


def test_fit_looks_at_the_cells_a_few_times(monkeypatch):
    looks = []
    cells = _probability._cells
    monkeypatch.setattr(_probability, "_cells", lambda z, t: looks.append(1) or cells(z, t))
    for true in (0.03, 0.7, 40.0):
        s, y = (torch.tensor(x) for x in drawn(true, 1.0))
        for fit, most in ((fit_scale, 15), (fit_scale_and_offset, 60)):
            looks.clear()
            fit(s, y)
            assert len(looks) <= most


@pytest.mark.parametrize("fit", [fit_scale, fit_scale_and_offset])
def test_a_fit_that_did_not_end_is_no_result(fit, monkeypatch):
    monkeypatch.setattr(_probability, "_STEPS", 2)
    with raises(RuntimeError, "the search for the best fit must end, got no end in 2 steps"):
        fit(*(torch.tensor(x) for x in drawn(0.7)))


def test_a_fit_beyond_float64_is_no_result():
    s = 1e-310 * torch.tensor([-1, -1, -1, 1, 1, 1], dtype=torch.float64)
    y = torch.tensor([0, 0, 1, 1, 1, 0])
    for fit in (fit_scale, fit_scale_and_offset):
        with raises(ValueError, "logits must be of a size that float64 can scale, got a fit of"):
            fit(s, y)


def test_fit_recovers_the_factor_of_given_degrees():
    torch.manual_seed(0)
    logits = torch.randn(7, 9, dtype=torch.float64)
    assert abs(fit_scale(logits, torch.sigmoid(1.7 * logits)) - 1.7) < 1e-14
    found = fit_scale_and_offset(logits, torch.sigmoid(1.7 * logits - 0.6))
    assert abs(found[0] - 1.7) < 1e-14
    assert abs(found[1] + 0.6) < 1e-14


@pytest.mark.parametrize("fit", [fit_scale, fit_scale_and_offset])
def test_fit_leaves_out_what_does_not_count(fit):
    torch.manual_seed(0)
    logits = torch.randn(50, dtype=torch.float64)
    labels = (torch.rand(50) < torch.sigmoid(1.5 * logits)).double()
    expected = fit(logits, labels)
    more = torch.cat([logits, torch.tensor([-INF, math.nan, 1.0, INF], dtype=torch.float64)])
    mask = torch.arange(54) < 51
    longer = torch.cat([labels, torch.tensor([0.0, -1.0, math.nan, 1.0])])
    assert fit(more, longer, mask=mask) == expected


def test_fit_says_when_there_is_none():
    s = torch.tensor([1.0, -1.0, 2.0])
    with raises(ValueError, "targets must not be separated by the sign of the logits, got every"):
        fit_scale(s, torch.tensor([1, 0, 1]))
    with raises(ValueError, "logits must rise with the targets, got scores that point the wrong"):
        fit_scale(s, torch.tensor([0, 1, 0]))
    with raises(ValueError, "logits must differ from 0 somewhere to be scaled"):
        fit_scale(torch.zeros(3), torch.tensor([1, 0, 1]))
    with raises(ValueError, "logits must differ from 0 somewhere to be scaled"):
        fit_scale(s, torch.zeros(3), mask=torch.zeros(3, dtype=torch.bool))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0, 1, 1], "targets must not be separated by a threshold of the logits"),
        ([0, 1, 1, 1], "targets must not be separated by a threshold of the logits"),
        ([0, 0.5, 1, 1], "targets must not be separated by a threshold of the logits"),
        ([1, 1, 0, 0], "logits must rise with the targets, got scores that point the wrong way"),
        ([1, 0, 1, 0], "logits must rise with the targets, got scores that point the wrong way"),
        ([0.5, 0.5, 0.5, 0.5], "logits must rise with the targets, got scores that point"),
        ([1, 1, 1, 1], "targets must not be all the same, 0 or 1, where they count"),
        ([0, 0, 0, 0], "targets must not be all the same, 0 or 1, where they count"),
    ],
)
def test_fit_of_both_says_when_there_is_none(labels, message):
    s, y = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor(labels)
    with raises(ValueError, message):
        fit_scale_and_offset(s, y)
    for same in (torch.ones(4), s.new_zeros(4)):
        with raises(ValueError, "logits must differ to be scaled and shifted, got the same"):
            fit_scale_and_offset(same, y)
    with raises(ValueError, "logits must differ to be scaled and shifted, got the same"):
        fit_scale_and_offset(s, y, mask=torch.zeros(4, dtype=torch.bool))


@given(
    st.lists(
        st.tuples(st.integers(-3, 3), st.sampled_from([0.0, 0.25, 1.0])), min_size=1, max_size=6
    )
)
@settings(deadline=None, max_examples=200, derandomize=True)
def test_a_fit_of_both_is_found_exactly_where_there_is_one(pairs):
    """By the other statement: no line that rises separates, and the covariance is positive."""
    s, t = (torch.tensor(x, dtype=torch.float64) for x in zip(*pairs, strict=True))
    covariance = float((s * t).mean() - s.mean() * t.mean())
    positive = [v for v, d in pairs if d > 0]
    negative = [v for v, d in pairs if d < 1]
    apart = any(
        all(v >= cut for v in positive) and all(v <= cut for v in negative) for cut in range(-3, 4)
    )
    if covariance > 1e-12 and not apart:
        scale, offset = fit_scale_and_offset(s, t)
        assert scale > 0
        r = zlpr_probability(s, scale=scale, offset=offset) - t
        assert abs(float(r.sum())) + abs(float((r * s).sum())) < 1e-12
    else:
        with pytest.raises(ValueError, match=r"(logits|targets) must"):
            fit_scale_and_offset(s, t)


@pytest.mark.parametrize("fit", [fit_scale, fit_scale_and_offset])
def test_fit_refuses_what_the_loss_refuses(fit):
    s = torch.tensor([-INF, 1.0, 1.0, 1.0, -1.0, -1.0])
    good = torch.tensor([0, 1, 1, 0, 0, 1])
    odd = s.clone()
    odd[4] = math.nan
    high = s.clone()
    high[2] = INF
    label, rule = "a target above 0 must", "targets must lie in [0, 1], got"
    first, third = good.double(), good.double()
    first[0], third[2] = math.nan, 1.5
    for logits, targets, message in (
        (s, torch.tensor([1, 1, 1, 0, 0, 1]), f"{label} have a finite logit, got targets[0]"),
        (s, first, f"{rule} nan at targets[0]"),
        (s, third, f"{rule} 1.5 at targets[2]"),
        (odd, good, "logits must be finite or -inf where they count, got nan at logits[4]"),
        (high, good, "logits must be finite or -inf where they count, got inf at logits[2]"),
    ):
        with raises(ValueError, message):
            fit(logits, targets)
        with raises(ValueError, message):
            soft_zlpr_loss(logits, targets)


def test_import_needs_nothing_beyond_torch():
    code = (
        "import sys, torch; before = set(sys.modules); import lib.soft_zlpr; "
        "print(sorted(name for name in set(sys.modules) - before if not name.startswith('lib')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
