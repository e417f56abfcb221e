"""EXACT: against fifty digits, at the extremes, in every dtype, through transforms."""

import contextlib
import functools
import math
import re

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from lib import _checks
from lib.exact import (
    ExactLoss,
    _integral,
    exact_loss,
    expected_accuracy,
    log_expected_accuracy,
)
from references.exact import genz_sample, log_probability

INF = math.inf


def raises(kind, message):
    return pytest.raises(kind, match=re.escape(message))


def scores(groups, dtype=torch.float64):
    """One row with the target at 0 and the rivals where ``groups`` puts them."""
    row = [0.0, *(-d for d, count in groups.items() for _ in range(count))]
    return torch.tensor([row], dtype=dtype)


FIRST = torch.tensor([0])

# Advantages of the target and how many rivals it has at each.
GROUPS = [
    {0.0: 1},
    {-3.0: 1},
    {0.5: 1, -0.25: 1},
    {1.0: 3, 2.0: 6},
    {0.0: 9},
    {-1.0: 4, 0.3: 20, 2.0: 5},
    {2.0: 3, 3.0: 96},
    {0.0: 99},
    {-2.5: 1, 1.0: 98},
    {3.0: 299},
    {0.0: 999},
    {3.0: 999},
    {4.0: 999},
    {-1.0: 30, 1.5: 400, 4.0: 569},
]
FAR = [
    {-40.0: 1},
    {-40.0: 5, 3.0: 4},
    {-40.0: 99},
    {-40.0: 999},
    {-200.0: 1},
    {-200.0: 1, 0.0: 1, -100.0: 1},
    {-150.0: 50},
    {-14.0: 1},
    {-25.0: 1},
    {-10.9: 2},
    {-11.1: 2},
    {-49.9: 2},
    {-50.1: 2},
    {-1e3: 100},
    {-1e4: 3},
]
SAFE = [{4.0: 1}, {6.0: 5}, {9.0: 40}, {12.0: 1}, {5.0: 2, 30.0: 500}, {6.0: 999}]


@functools.cache
def true_log(items):
    return log_probability(dict(items))


def truth(groups):
    return true_log(tuple(groups.items()))


@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_probability_against_mpmath(groups):
    value = expected_accuracy(scores(groups), FIRST).item()
    assert abs(value - mpmath.exp(truth(groups))) < 1e-10


@pytest.mark.parametrize("groups", GROUPS + FAR, ids=str)
def test_log_probability_against_mpmath(groups):
    value = log_expected_accuracy(scores(groups), FIRST).item()
    assert abs(value / truth(groups) - 1) < 5e-10
    single = log_expected_accuracy(scores(groups, torch.float32), FIRST)
    assert single.dtype == torch.float32
    assert abs(single.item() / true_log(rounded(groups)) - 1) < 2e-6


def rounded(groups):
    """The same groups as float32 holds them."""
    return tuple((torch.tensor(d, dtype=torch.float32).item(), c) for d, c in groups.items())


@pytest.mark.parametrize("groups", SAFE, ids=str)
def test_small_losses_keep_their_digits(groups):
    with mpmath.workdps(60):
        true = -mpmath.expm1(log_probability(groups, digits=60))
    for log in (False, True):
        value = exact_loss(scores(groups), FIRST, log=log).item()
        exact = true if not log else -mpmath.log1p(-true)
        assert abs(value / exact - 1) < 1e-9
        single = exact_loss(scores(groups, torch.float32), FIRST, log=log).item()
        assert abs(single / exact - 1) < 1e-5


def test_two_classes_in_closed_form():
    d = torch.linspace(-250, 12, 400, dtype=torch.float64)
    logits = torch.stack([d, torch.zeros_like(d)], 1)
    closed = torch.special.log_ndtr(d / math.sqrt(2))
    ours = log_expected_accuracy(logits, torch.zeros(400, dtype=torch.int64))
    torch.testing.assert_close(ours, closed, rtol=1e-12, atol=1e-17)


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 100, 1000, 5000])
def test_equal_scores_share_equally(classes):
    log_p = log_expected_accuracy(torch.zeros(1, classes, dtype=torch.float64), FIRST)
    assert log_p.item() == pytest.approx(-math.log(classes), rel=1e-9, abs=1e-300)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.integers(2, 40), st.integers(0, 10**6), st.sampled_from([0.3, 2.0, 8.0]))
def test_chances_of_all_classes_sum_to_one(classes, seed, scale):
    torch.manual_seed(seed)
    row = scale * torch.randn(classes, dtype=torch.float64)
    chances = expected_accuracy(row.expand(classes, -1), torch.arange(classes))
    assert abs(chances.sum().item() - 1) < 1e-10
    assert torch.equal(chances.argmax(), row.argmax())


# ---------------------------------------------------------------------------------- derivatives


def some_rows(dtype=torch.float64, scale=3.0, shape=(6, 7)):
    torch.manual_seed(2)
    logits = (scale * torch.randn(shape, dtype=torch.float64)).to(dtype)
    return logits.requires_grad_(), torch.randint(0, shape[-1], shape[:-1])


@pytest.mark.parametrize("scale", [0.5, 3.0, 40.0])
def test_derivatives_of_first_and_second_order(scale):
    logits, targets = some_rows(scale=scale)
    function = functools.partial(log_expected_accuracy, targets=targets)
    assert torch.autograd.gradcheck(function, logits)
    # The first derivative is right to 1e-10 of its largest entry; differences of it see that.
    assert torch.autograd.gradgradcheck(function, logits, atol=1e-4)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0, 3000.0])
def test_kernel_equals_formula(scale, log):
    torch.manual_seed(0)
    logits = (scale * torch.randn(40, 30, dtype=torch.float64)).requires_grad_()
    targets, upstream = torch.randint(0, 30, (40,)), torch.randn(40, dtype=torch.float64)
    fast = exact_loss(logits, targets, log=log, reduction="none")
    (slope,) = torch.autograd.grad(fast, logits, upstream)
    plain = torch.func.vmap(lambda row, t: exact_loss(row, t, log=log))(logits, targets)
    (again,) = torch.autograd.grad(plain, logits, upstream)
    torch.testing.assert_close(plain, fast, rtol=1e-9, atol=1e-300)
    torch.testing.assert_close(again, slope, rtol=1e-7, atol=1e-9 * float(slope.abs().max()))


def test_gradient_in_single_precision():
    for classes, scale in ((5, 1.0), (5, 6.0), (200, 2.0), (1500, 1.0)):
        logits, targets = some_rows(torch.float32, scale, (20, classes))
        (slope,) = torch.autograd.grad(exact_loss(logits, targets, log=True), logits)
        twin = logits.detach().double().requires_grad_()
        (true,) = torch.autograd.grad(exact_loss(twin, targets, log=True), twin)
        assert ((slope - true).abs().amax(1) < 5e-6 * true.abs().amax(1)).all()


@pytest.mark.parametrize("ahead", [-40.0, -300.0, -1000.0])
def test_gradient_far_out_where_the_bump_is_narrow(ahead):
    logits = torch.zeros(1, 101, dtype=torch.float64, requires_grad=True)
    shifted = logits + torch.tensor([ahead, *[0.0] * 100], dtype=torch.float64)
    few, many = (
        torch.autograd.grad(
            log_expected_accuracy(shifted, FIRST, nodes=n), logits, retain_graph=True
        )[0]
        for n in (None, 1000)
    )
    torch.testing.assert_close(few, many, rtol=2e-9, atol=0)


def test_many_classes_take_the_nodes_in_parts(monkeypatch):
    logits, targets = some_rows(shape=(5, 90))
    whole = torch.autograd.grad(exact_loss(logits, targets), logits)[0]
    for cells in (1, 91, 400, 2000):
        monkeypatch.setattr(_integral, "_CHUNK_CELLS", cells)
        parts = torch.autograd.grad(exact_loss(logits, targets), logits)[0]
        torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-16)


# By mpmath: the norm of the gradient of 1 - P for scores 0 (the target), 12, -1 and -2.
BADLY_WRONG = 9.25355724e-17


def test_badly_wrong_row_moves_under_the_log_loss_only():
    logits = torch.tensor([[0.0, 12.0, -1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    flat, steep = (
        torch.autograd.grad(exact_loss(logits, FIRST, log=log), logits)[0] for log in (False, True)
    )
    assert flat.norm().item() == pytest.approx(BADLY_WRONG, rel=1e-6)
    assert steep.norm() > 6


def test_double_backward_equals_the_formula():
    logits, targets = some_rows(scale=1.0)
    (slope,) = torch.autograd.grad(exact_loss(logits, targets), logits, create_graph=True)
    slope.square().sum().backward()
    hessian = torch.autograd.functional.hessian(lambda x: exact_loss(x, targets), logits.detach())
    expected = 2 * torch.einsum("abcd,cd->ab", hessian, slope.detach())
    torch.testing.assert_close(logits.grad, expected, rtol=1e-8, atol=1e-12)


# ----------------------------------------------------------------------------- extremes and ties


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("log", [False, True])
def test_extremes_are_right_in_every_dtype(dtype, log):
    logits = torch.tensor(
        [[1e4, -1e4, 0], [-1e4, 1e4, 0], [0, 0, 0], [3, -INF, 3], [5, -INF, -INF]], dtype=dtype
    ).requires_grad_()
    targets = torch.zeros(5, dtype=torch.int64)
    loss = exact_loss(logits, targets, log=log, reduction="none")
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    assert slope.dtype == dtype
    assert slope.isfinite().all()
    d = (logits[1, 0] - logits[1, 1]).item()
    third = math.log(3) if log else 2 / 3
    half = math.log(2) if log else 0.5
    far = float(-truth({d: 1, d / 2: 1})) if log else 1.0
    assert loss.tolist() == pytest.approx([0, far, third, half, 0], rel=3e-7, abs=1e-12)
    assert slope[0].tolist() == slope[4].tolist() == [0, 0, 0]
    assert slope[3, 1].item() == 0
    # Against one rival at -2e4 and one at -1e4, which hardly takes part.
    if log:
        assert slope[1].tolist() == pytest.approx([d / 2, -d / 2, 0], rel=4e-3, abs=1)
    else:
        assert slope[1].tolist() == [0, 0, 0]


def test_scores_that_differ_by_more_than_their_square_holds():
    for dtype in (torch.float32, torch.float64):
        logits = torch.tensor([[-1e37, 1e37]], dtype=dtype, requires_grad=True)
        loss = exact_loss(logits, FIRST, log=True)
        (slope,) = torch.autograd.grad(loss, logits)
        assert loss.item() == pytest.approx(1e74) or (dtype == torch.float32 and loss == INF)
        assert slope.tolist()[0] == pytest.approx([-1e37, 1e37], rel=1e-6)
        tiny = log_expected_accuracy(torch.tensor([[0.0, 1.0]], dtype=dtype), FIRST, noise=1e-300)
        assert not tiny.isnan()


def test_one_class_is_always_right():
    logits = torch.randn(3, 1, requires_grad=True)
    for log in (False, True):
        loss = exact_loss(logits, torch.zeros(3, dtype=torch.int64), log=log)
        (slope,) = torch.autograd.grad(loss, logits)
        assert loss.item() == 0
        assert slope.abs().max() == 0


@pytest.mark.parametrize("margin", [None, 0.8])
def test_a_rival_at_minus_infinity_is_none(margin):
    logits, targets = some_rows(shape=(6, 5))
    targets[:] = 2
    wide = torch.cat([logits, torch.full((6, 1), -INF, dtype=torch.float64)], 1)
    values = [exact_loss(x, targets, margin=margin, reduction="none") for x in (wide, logits)]
    torch.testing.assert_close(*values)
    slopes = [torch.autograd.grad(v.sum(), logits)[0] for v in values]
    torch.testing.assert_close(*slopes)
    alone = torch.tensor([[0.0, -INF]], dtype=torch.float64, requires_grad=True)
    loss = exact_loss(alone, FIRST, margin=margin)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, alone)[0].tolist() == [[0, 0]]


def test_noise_is_a_scale():
    logits, targets = some_rows()
    ours = expected_accuracy(logits, targets, noise=0.3)
    torch.testing.assert_close(ours, expected_accuracy(logits / 0.3, targets), rtol=1e-13, atol=0)


def test_no_noise_is_accuracy():
    logits, targets = some_rows(shape=(200, 5))
    hard = (logits.argmax(1) == targets).double()
    soft = [expected_accuracy(logits, targets, noise=s) for s in (1.0, 0.1, 0.01, 1e-5)]
    errors = [(p - hard).abs().mean().item() for p in soft]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3


def test_margin_silences_beaten_rivals():
    logits = torch.tensor([[3.0, 2.5, 2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(exact_loss(logits, FIRST, margin=1.0), logits)
    assert slope[0, 3].item() == 0
    assert (slope[0, 1:3] > 0).all()
    clipped = torch.tensor([[3.0, 2.5, 2.0, 2.0]], dtype=torch.float64)
    assert exact_loss(logits, FIRST, margin=1.0).item() == exact_loss(clipped, FIRST).item()
    assert exact_loss(logits, FIRST, margin=9.0).item() == exact_loss(logits, FIRST).item()


@pytest.mark.parametrize("log", [False, True])
def test_margin_is_taken_in_units_of_the_logits(log):
    logits, targets = some_rows()
    ahead = logits.gather(1, targets[:, None]) - logits
    clipped = -ahead.clamp(max=0.8)
    ours = exact_loss(logits, targets, noise=2.0, margin=0.8, log=log)
    torch.testing.assert_close(ours, exact_loss(clipped / 2, targets, log=log))


# ------------------------------------------------------------------------ shapes and refused input


def test_reductions_and_leading_dimensions():
    logits, targets = some_rows(shape=(2, 3, 4))
    each = exact_loss(logits, targets, reduction="none")
    assert each.shape == (2, 3)
    assert torch.equal(exact_loss(logits, targets, reduction="sum"), each.sum())
    assert torch.equal(exact_loss(logits, targets), each.mean())
    one = exact_loss(logits[1, 2], targets[1, 2])
    assert one.shape == ()
    torch.testing.assert_close(one, each[1, 2])
    flat = exact_loss(logits.transpose(0, 1), targets.transpose(0, 1), reduction="none")
    torch.testing.assert_close(flat.transpose(0, 1), each)


def test_no_rows():
    logits, targets = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    exact_loss(logits, targets, reduction="sum").backward()
    assert logits.grad.shape == (0, 4)
    assert exact_loss(logits, targets).item() == 0


@pytest.mark.parametrize("bad", [-1, 4, 2**40])
def test_target_out_of_range(bad):
    targets = torch.tensor([[0, 1], [bad, 2]])
    message = f"classes in [0, 4) or ignore_index = -100, got {bad} at targets[1, 0]"
    with raises(ValueError, message):
        exact_loss(torch.zeros(2, 2, 4), targets)


@pytest.mark.parametrize("bad", [INF, math.nan])
@pytest.mark.parametrize("column", [0, 2])
def test_bad_logits_are_named(bad, column):
    logits = torch.zeros(2, 3)
    logits[1, column] = bad
    message = f"logits must be finite or -inf where they count, got {bad} at logits[1, {column}]"
    with raises(ValueError, message):
        expected_accuracy(logits, torch.tensor([0, 0]))


def test_a_target_that_cannot_win_is_refused():
    logits = torch.tensor([[0.0, 1.0], [-INF, 1.0]])
    message = "a target must have a finite logit, got targets[1] = 0 and logits[1, 0] = -inf"
    with raises(ValueError, message):
        exact_loss(logits, torch.tensor([0, 0]))
    with raises(ValueError, "got targets = 0 and logits[0] = -inf"):
        exact_loss(logits[1], torch.tensor(0))


def test_options_and_kinds_are_checked():
    logits, targets = torch.zeros(2, 3), torch.tensor([0, 1])
    with raises(ValueError, "noise must be finite and above 0, got 0"):
        exact_loss(logits, targets, noise=0)
    with raises(ValueError, "noise must be finite and above 0, got nan"):
        expected_accuracy(logits, targets, noise=math.nan)
    for margin in (-1, 0, math.nan):
        with raises(ValueError, f"margin must be above 0, got {margin}"):
            exact_loss(logits, targets, margin=margin)
        with raises(ValueError, f"margin must be above 0, got {margin}"):
            ExactLoss(margin=margin)
    with raises(TypeError, "ignore_index must be an int, got float"):
        exact_loss(logits, targets, ignore_index=-1.0)
    with raises(TypeError, "mask must have dtype torch.bool, got torch.float32"):
        exact_loss(logits, targets, mask=logits)
    with raises(ValueError, "nodes must be at least 8, got 7"):
        expected_accuracy(logits, targets, nodes=7)
    for nodes, kind in ((16.5, "float"), (True, "bool")):
        with raises(TypeError, f"nodes must be an int, got {kind}"):
            expected_accuracy(logits, targets, nodes=nodes)
    by_numpy = expected_accuracy(logits, targets, nodes=np.int64(30))
    assert torch.equal(by_numpy, expected_accuracy(logits, targets, nodes=30))
    with raises(ValueError, "reduction must be"):
        exact_loss(logits, targets, reduction="max")
    with raises(TypeError, "targets must have dtype torch.int64, got torch.float32"):
        exact_loss(logits, targets.float())
    with raises(TypeError, "logits must have a floating-point dtype, got torch.int64"):
        exact_loss(targets[None], targets[:1])
    with raises(ValueError, "expected shape (2,), got (2, 1)"):
        exact_loss(logits, targets[:, None])
    with raises(ValueError, "noise must be finite and above 0, got -2"):
        ExactLoss(noise=-2)
    with raises(ValueError, "reduction must be"):
        ExactLoss(reduction="max")


def test_module_holds_the_options():
    logits, targets = some_rows()
    options = {"noise": 0.5, "margin": 2.0, "log": True, "ignore_index": 3, "reduction": "sum"}
    module = ExactLoss(**options)
    mask = torch.ones(7, dtype=torch.bool)
    mask[(set(range(7)) - set(targets.tolist())).pop()] = False
    expected = exact_loss(logits, targets, mask=mask, **options)
    assert torch.equal(module(logits, targets, mask), expected)
    assert repr(module) == (
        "ExactLoss(noise=0.5, margin=2.0, log=True, ignore_index=3, reduction='sum', validate=True)"
    )
    targets[0] = 9
    assert ExactLoss(validate=False)(logits, targets).isnan()
    targets[0] = 0
    module.noise = 1.0
    assert not torch.equal(module(logits, targets), expected)


# ------------------------------------------------------------------------------ what does not count


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("junk", [math.nan, INF, -INF, 7.0])
def test_masked_rivals_are_none(junk, readable, monkeypatch):
    if not readable:
        monkeypatch.setattr(_checks, "values_readable", lambda *tensors: False)
    logits, targets = some_rows(shape=(2, 3, 5))
    targets = targets.clamp(max=3)
    wide = torch.cat([logits, torch.full((2, 3, 1), junk, dtype=torch.float64)], -1)
    mask = torch.tensor([True] * 5 + [False])
    for function in (exact_loss, expected_accuracy, log_expected_accuracy):
        plain, ours = function(logits, targets), function(wide, targets, mask=mask)
        torch.testing.assert_close(ours, plain)
        leaf = wide.detach().requires_grad_()
        function(leaf, targets, mask=mask).sum().backward()
        assert leaf.grad[..., 5].abs().max() == 0
        torch.testing.assert_close(
            leaf.grad[..., :5], torch.autograd.grad(plain.sum(), logits)[0], rtol=1e-7, atol=1e-12
        )


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("ignored", [-100, 2])
def test_ignored_rows_do_not_count(ignored, readable, monkeypatch):
    if not readable:
        monkeypatch.setattr(_checks, "values_readable", lambda *tensors: False)
    logits, targets = some_rows(shape=(6, 5))
    targets = torch.tensor([0, ignored, 3, ignored, 1, 4])
    counts = targets != ignored
    with torch.no_grad():
        logits[1], logits[3, ignored % 5] = math.nan, -INF
    options = {"ignore_index": ignored}
    each = exact_loss(logits, targets, reduction="none", **options)
    assert each[~counts].tolist() == [0, 0]
    kept = exact_loss(logits[counts], targets[counts], reduction="none")
    torch.testing.assert_close(each[counts], kept)
    for log in (False, True):
        for reduction in ("mean", "sum"):
            loss = exact_loss(logits, targets, log=log, reduction=reduction, **options)
            other = exact_loss(logits[counts], targets[counts], log=log, reduction=reduction)
            torch.testing.assert_close(loss, other)
            slope, expected = (torch.autograd.grad(v, logits)[0] for v in (loss, other))
            assert slope[~counts].abs().max() == 0
            torch.testing.assert_close(slope, expected)
    assert expected_accuracy(logits, targets, **options)[~counts].tolist() == [1, 1]
    assert log_expected_accuracy(logits, targets, **options)[~counts].tolist() == [0, 0]
    nothing = exact_loss(logits, torch.full((6,), ignored), **options)
    nothing.backward()
    assert nothing.item() == 0
    assert logits.grad.abs().max() == 0


def test_a_target_must_count_and_what_does_not_is_not_looked_at():
    logits = torch.zeros(2, 3)
    mask = torch.tensor([[True] * 3, [True, False, True]])
    message = "a target must be on a cell that counts, got targets[1] = 1 and mask[1, 1] = False"
    with raises(ValueError, message):
        exact_loss(logits, torch.tensor([1, 1]), mask=mask)
    logits[1, 1] = math.nan
    logits[0, 2] = INF
    with raises(ValueError, "where they count, got inf at logits[0, 2]"):
        exact_loss(logits, torch.tensor([1, 2]), mask=mask)
    assert exact_loss(logits, torch.tensor([-100, 2]), mask=mask).item() == pytest.approx(0.5)
    for everything in (None, torch.tensor(True)):
        with raises(ValueError, "where they count, got nan at logits[1, 1]"):
            exact_loss(logits, torch.tensor([-100, 2]), mask=everything)
    with raises(ValueError, "or ignore_index = -1, got -100 at targets[0]"):
        exact_loss(logits, torch.tensor([-100, 2]), mask=mask, ignore_index=-1)


def test_without_validation_a_bad_row_is_nan():
    logits, targets = some_rows(shape=(6, 5))
    targets = targets.clamp(max=3)
    fine = exact_loss(logits, targets, reduction="none")
    strange, mask = targets.clone(), torch.ones(6, 5, dtype=torch.bool)
    with torch.no_grad():
        logits[0, 4], logits[1, 2], logits[2, targets[2]] = math.nan, INF, -INF
    strange[3] = 7
    mask[4, targets[4]] = False
    found = exact_loss(logits, strange, mask=mask, reduction="none", validate=False)
    assert found.isnan().tolist() == [True] * 5 + [False]
    torch.testing.assert_close(found[5], fine[5])
    for function in (expected_accuracy, log_expected_accuracy):
        assert function(logits, strange, mask=mask, validate=False).isnan().tolist()[3:] == [
            True,
            True,
            False,
        ]


def test_noise_may_be_a_tensor():
    logits, targets = some_rows()
    noise = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    plain = exact_loss(logits, targets, noise=0.7)
    assert torch.equal(exact_loss(logits, targets, noise=noise), plain)
    assert torch.autograd.gradcheck(lambda x, n: exact_loss(x, targets, noise=n), (logits, noise))
    single = logits.float()
    for kind in (torch.float64, torch.bfloat16):
        assert (
            exact_loss(single, targets, noise=torch.tensor(0.5, dtype=kind)).dtype == single.dtype
        )
    each = torch.func.vmap(lambda n: exact_loss(logits, targets, noise=n))(torch.tensor([0.7, 0.0]))
    torch.testing.assert_close(each[0], exact_loss(logits, targets, noise=0.7), rtol=1e-6, atol=0)
    assert each[1].isnan()
    with raises(ValueError, "noise must be finite and above 0, got -1.0"):
        exact_loss(logits, targets, noise=torch.tensor(-1.0))
    assert exact_loss(logits, targets, noise=torch.tensor(-1.0), validate=False).isnan()
    for strange in (torch.ones(2), torch.ones((), dtype=torch.complex64)):
        what = f"got {strange.dtype} of shape {tuple(strange.shape)}"
        with raises(ValueError, f"noise must be a number or a real 0-d tensor, {what}"):
            ExactLoss(noise=strange)


# -------------------------------------------------------------------------------------- transforms


def test_transforms_and_bad_values_where_nobody_can_look():
    logits, targets = some_rows()
    slopes = torch.func.vmap(torch.func.grad(exact_loss))(logits.detach(), targets)
    (expected,) = torch.autograd.grad(exact_loss(logits, targets, reduction="sum"), logits)
    torch.testing.assert_close(slopes, expected, rtol=1e-8, atol=1e-12)
    single = logits.detach().float()
    assert torch.func.vmap(exact_loss)(single, targets).dtype == torch.float32
    bad = logits.detach().clone()
    bad[0, 0], bad[1, 3] = math.nan, INF
    bad[2, targets[2]] = -INF
    strange = targets.clone()
    strange[3] = 9
    found = torch.func.vmap(exact_loss)(bad, strange).isnan()
    assert found.tolist() == [True, True, True, True, False, False]


def test_traced_graph_equals_eager():
    logits, targets = some_rows()
    traced = torch.compile(exact_loss, fullgraph=True, backend="aot_eager")
    loss = traced(logits, targets, log=True)
    torch.testing.assert_close(loss, exact_loss(logits, targets, log=True))
    (slope,) = torch.autograd.grad(loss, logits)
    (expected,) = torch.autograd.grad(exact_loss(logits, targets, log=True), logits)
    torch.testing.assert_close(slope, expected, rtol=1e-8, atol=1e-12)


def test_one_graph_for_many_batch_sizes():
    torch.compiler.reset()
    counter = CompileCounter()
    traced = torch.compile(exact_loss, dynamic=True, fullgraph=True, backend=counter)
    for size in (1, 2, 3, 5, 7, 8, 16, 17, 31, 32, 48, 64):
        logits, targets = some_rows(shape=(size, 6))
        noise = torch.tensor(1 + 1 / size)
        loss = traced(logits, targets, noise=noise)
        torch.testing.assert_close(
            loss, exact_loss(logits, targets, noise=noise), rtol=1e-9, atol=0
        )
    assert counter.frame_count <= 2  # a batch of 1 has a graph of its own


def test_exported_with_sizes_left_open():
    class Program(torch.nn.Module):
        def forward(self, logits, targets, mask):
            return exact_loss(logits, targets, mask=mask)

    def inputs(*shape):
        logits, targets = some_rows(shape=shape)
        mask = torch.ones(shape, dtype=torch.bool)
        mask[..., -1] = False
        return logits.detach(), targets.clamp(max=shape[-1] - 2), mask

    rows, length, classes = (torch.export.Dim(name) for name in ("rows", "length", "classes"))
    cells = {0: rows, 1: length, 2: classes}
    shapes = (cells, {0: rows, 1: length}, cells)
    program = torch.export.export(Program(), inputs(4, 3, 6), dynamic_shapes=shapes).module()
    for shape in ((4, 3, 6), (7, 5, 40), (2, 9, 3)):
        logits, targets, mask = inputs(*shape)
        expected = exact_loss(logits, targets, mask=mask)
        torch.testing.assert_close(program(logits, targets, mask), expected, rtol=1e-9, atol=0)


def test_forward_mode_is_that_of_torch_func():
    logits, targets = some_rows()
    (slope,) = torch.autograd.grad(exact_loss(logits, targets), logits)
    direction = torch.randn(6, 7, dtype=torch.float64)
    point = logits.detach()
    _, along = torch.func.jvp(lambda x: exact_loss(x, targets), (point,), (direction,))
    torch.testing.assert_close(along, (slope * direction).sum())
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(point, direction)
        with raises(NotImplementedError, "forward mode AD"):
            exact_loss(dual, targets)


def test_batched_upstream_gradients():
    logits, targets = some_rows()
    each = exact_loss(logits, targets, reduction="none")
    basis = torch.eye(6, dtype=torch.float64)
    (rows,) = torch.autograd.grad(each, logits, basis, is_grads_batched=True, retain_graph=True)
    (whole,) = torch.autograd.grad(each.sum(), logits)
    torch.testing.assert_close(rows.sum(0), whole, rtol=1e-8, atol=1e-12)


def test_repeatable_and_inputs_left_alone():
    logits, targets = some_rows()
    kept = logits.detach().clone(), targets.clone()
    first, second = exact_loss(logits, targets), exact_loss(logits, targets)
    assert torch.equal(first, second)
    first.backward(retain_graph=True)
    once = logits.grad.clone()
    first.backward()
    assert torch.equal(logits.grad, 2 * once)
    assert torch.equal(logits.detach(), kept[0])
    assert torch.equal(targets, kept[1])


def test_default_nodes_grow_with_the_number_of_classes():
    for dtype, few, many in ((torch.float32, 23, 41), (torch.float64, 40, 72)):
        assert [_integral.default_nodes(c, dtype) for c in (10, 1000)] == [few, many]
    logits, targets = some_rows(shape=(50, 20), scale=1.0)
    best = expected_accuracy(logits, targets, nodes=200)
    errors = [
        (expected_accuracy(logits, targets, nodes=n) - best).abs().max().item()
        for n in (8, 12, 16, 24, 32)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-7


# ----------------------------------------------------------------------------- what it is good for


def test_sampling_agrees_within_its_error():
    torch.manual_seed(0)
    ahead = torch.randn(4, 6, dtype=torch.float64)
    logits = torch.cat([torch.zeros(4, 1, dtype=torch.float64), -ahead], 1)
    ours = expected_accuracy(logits, torch.zeros(4, dtype=torch.int64))
    sampled = genz_sample(ahead, 200_000, torch.Generator().manual_seed(1))
    torch.testing.assert_close(sampled, ours, rtol=0, atol=1e-3)


def test_half_precision_far_out_is_computed_further_up():
    logits = torch.tensor([[0.0, 200.0]], dtype=torch.bfloat16)
    ours = log_expected_accuracy(logits, FIRST)
    assert ours.item() == pytest.approx(float(truth({-200.0: 1})), rel=3e-7)


def test_training_by_the_loss_raises_the_accuracy():
    torch.manual_seed(3)
    x = torch.randn(300, 2, dtype=torch.float64)
    targets = (x @ torch.tensor([[1.0, -1, 0], [0.5, 1, -1]], dtype=torch.float64)).argmax(1)
    for log in (False, True):
        weight = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([weight], lr=0.1)
        for _ in range(150):
            optimizer.zero_grad()
            exact_loss(x @ weight, targets, log=log).backward()
            optimizer.step()
        assert ((x @ weight).argmax(1) == targets).double().mean() > 0.97


@pytest.mark.cuda
def test_cuda_equals_cpu():
    for scale in (1.0, 30.0):
        logits, targets = some_rows(scale=scale, shape=(50, 40))
        (here,) = torch.autograd.grad(exact_loss(logits, targets, log=True), logits)
        there = logits.detach().cuda().requires_grad_()
        (slope,) = torch.autograd.grad(exact_loss(there, targets.cuda(), log=True), there)
        torch.testing.assert_close(slope.cpu(), here, rtol=1e-9, atol=1e-12)


def test_formula_is_what_runs_when_no_value_is_readable(monkeypatch):
    logits, targets = some_rows()
    expected = exact_loss(logits, targets)
    monkeypatch.setattr(_checks, "values_readable", lambda *tensors: False)
    torch.testing.assert_close(exact_loss(logits, targets), expected, rtol=1e-9, atol=0)


# ------------------------------------------------------------------------- what training runs bring


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_autocast_changes_nothing(dtype, low, log):
    logits, targets = some_rows(dtype)
    plain = exact_loss(logits, targets, log=log)
    with torch.autocast("cpu", dtype=low):
        ours = exact_loss(logits, targets, log=log)
    slopes = [torch.autograd.grad(value, logits)[0] for value in (plain, ours)]
    assert torch.equal(ours, plain)
    assert torch.equal(*slopes)


def test_checkpoints_hooks_and_modes():
    logits, targets = some_rows()
    plain = exact_loss(logits, targets)
    (slope,) = torch.autograd.grad(plain, logits)

    def same(loss):
        return torch.equal(loss, plain) and torch.equal(torch.autograd.grad(loss, logits)[0], slope)

    assert same(checkpoint(exact_loss, logits, targets, use_reentrant=False))
    with torch.autograd.graph.save_on_cpu():
        assert same(exact_loss(logits, targets))
    with torch.device("meta"):  # the device of what is made without saying where
        assert same(exact_loss(logits, targets))
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert same(exact_loss(logits, targets))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fill
    with torch.inference_mode():
        assert torch.equal(exact_loss(logits, targets), plain)
    moved = logits * 1
    loss = exact_loss(moved, targets)
    moved.detach().add_(1)
    with contextlib.suppress(RuntimeError):  # PyTorch sees the change, or it does no harm
        assert same(loss)
