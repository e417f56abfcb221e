"""EMO and its relatives: values and gradients on every path, extremes, errors, soft targets."""

import gzip
import math
import re
import warnings

import numpy as np
import ot
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from lib import _checks
from lib import _linear as _head
from lib.emo import (
    EMOLoss,
    KernelScoreLoss,
    LinearEMOLoss,
    Mixture,
    UnitEmbeddings,
    _linear,
    emo_loss,
    emo_mixture_loss,
    experiment,
    kernel_score_loss,
    linear_emo_loss,
    soft_emo_loss,
)

INF = math.inf
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
MIXTURES = {
    "emo": None,
    "fixed": Mixture.fixed(cross_entropy=0.3, emo=0.7),
    "emo scaled": Mixture.emo_scaled_to_cross_entropy(),
    "emo scaled, capped": Mixture.emo_scaled_to_cross_entropy(cap=1.1),
    "cross-entropy scaled": Mixture.cross_entropy_scaled_to_emo(),
}


def raises(kind, message):
    return pytest.raises(kind, match=re.escape(message))


def emo_row(s, e, target):
    """Loss and gradient of one row by the definition, term by term, in float64."""
    top = max(s)
    parts = [math.exp(v - top) for v in s]
    total = math.fsum(parts)
    p = [part / total for part in parts]
    costs = [1 - float(np.dot(row, e[target])) for row in e]
    costs[target] = 0.0
    value = math.fsum(a * b for a, b in zip(p, costs, strict=True))
    return value, [a * (b - value) for a, b in zip(p, costs, strict=True)]


def kernel_row(s, e, target):
    """The kernel score of one row, likewise."""
    top = max(s)
    parts = [math.exp(v - top) for v in s]
    total = math.fsum(parts)
    gap = sum((a / total) * row for a, row in zip(parts, e, strict=True)) - e[target]
    r = [float(np.dot(row, gap)) for row in e]
    average = math.fsum(a / total * b for a, b in zip(parts, r, strict=True))
    return 0.5 * float(gap @ gap), [
        a / total * (b - average) for a, b in zip(parts, r, strict=True)
    ]


def problem(seed=0, rows=5, classes=11, width=4, scale=2.0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(rows, classes, generator=draw, dtype=torch.float64)).to(dtype)
    table = torch.randn(classes, width, generator=draw, dtype=torch.float64)
    targets = torch.randint(classes, (rows,), generator=draw)
    return logits, targets, table


LOSSES = [(emo_loss, emo_row), (kernel_score_loss, kernel_row)]
BY_NAME = {"argvalues": LOSSES, "ids": ["emo", "kernel"]}

# ------------------------------------------------------------------------------ values, gradients


@pytest.mark.parametrize(("loss", "row"), **BY_NAME)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.1, 2.0, 20.0, 1e4], ids="scale {}".format)
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (7, 37), (2, 423)], ids=str)
def test_value_and_gradient(loss, row, dtype, scale, shape):
    logits, targets, table = problem(1, *shape, scale=scale, dtype=dtype)
    leaf = logits.requires_grad_()
    values = loss(leaf, targets, table, reduction="none")
    upstream = torch.randn(shape[0], generator=torch.Generator().manual_seed(2)).to(values)
    (gradient,) = torch.autograd.grad(values, leaf, upstream)
    assert values.dtype == _checks.compute_dtype(dtype)
    assert gradient.dtype == dtype
    e = functional.normalize(table, dim=1).numpy()
    small = 1e-12 if dtype == torch.float64 else 2e-6
    rounded = 0 if dtype in (torch.float64, torch.float32) else torch.finfo(dtype).eps
    for i in range(shape[0]):
        value, cells = row(leaf[i].double().tolist(), e, int(targets[i]))
        assert abs(float(values[i].detach()) - value) <= small * max(1.0, value)
        true = torch.tensor(cells, dtype=torch.float64) * upstream[i].double()
        error = (gradient[i].double() - true).abs()
        assert bool((error <= small + rounded * true.abs() + rounded * 1e-3).all())


def test_small_losses_have_relative_digits():
    logits, targets, table = problem(3, rows=50, dtype=torch.float32)
    logits[torch.arange(50), targets] = logits.amax(1) + 17
    e = functional.normalize(table, dim=1).numpy()
    for loss, row in LOSSES:
        values = loss(logits, targets, table.float(), reduction="none")
        for i in range(50):
            true = row(logits[i].double().tolist(), e, int(targets[i]))[0]
            if loss is kernel_score_loss:  # its reference loses half of its digits itself
                assert float(values[i]) == pytest.approx(true, rel=1e-3)
            else:
                assert float(values[i]) == pytest.approx(true, rel=1e-5)
    mixture = Mixture.fixed(cross_entropy=1, emo=0)
    values = emo_mixture_loss(logits, targets, table.float(), mixture=mixture, reduction="none")
    true = functional.cross_entropy(logits.double(), targets, reduction="none")
    assert torch.allclose(values.double(), true, rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", [emo_loss, kernel_score_loss])
def test_gradcheck_to_second_order(loss):
    logits, targets, table = problem(4, rows=2, classes=5)
    leaf = logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, targets, table), leaf)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, targets, table), leaf)


@pytest.mark.parametrize("name", MIXTURES)
def test_mixture_by_its_parts(name):
    logits, targets, table = problem(5, rows=30)
    mixture = MIXTURES[name] or Mixture.fixed(cross_entropy=0.0, emo=1.0)
    first = functional.cross_entropy(logits, targets, reduction="none")
    second = emo_loss(logits, targets, table, reduction="none")
    a, b = {
        "emo": (0.0, 1.0),
        "fixed": (0.3, 0.7),
        "emo scaled": (0.5, 0.5 * first / second),
        "emo scaled, capped": (0.5, 0.5 * (first / second).clamp(max=1.1)),
        "cross-entropy scaled": (second / first, 1.0),
    }[name]
    leaf = logits.clone().requires_grad_()
    values = emo_mixture_loss(leaf, targets, table, mixture=mixture, reduction="none")
    assert torch.allclose(values, a * first + b * second)
    (got,) = torch.autograd.grad(values.sum(), leaf)
    (want,) = torch.autograd.grad(
        (a * functional.cross_entropy(leaf, targets, reduction="none")
         + b * emo_loss(leaf, targets, table, reduction="none")).sum(), leaf
    )  # fmt: skip
    assert torch.allclose(got, want)


def test_ratio_where_nothing_is_left():
    table = torch.eye(3)
    certain = torch.tensor([200.0, 0.0, 0.0], requires_grad=True)
    for mixture in MIXTURES.values():
        if mixture is not None:
            value = emo_mixture_loss(certain, torch.tensor(0), table, mixture=mixture)
            (slope,) = torch.autograd.grad(value, certain)
            assert value == 0
            assert slope.tolist() == [0, 0, 0]


def test_ratio_of_a_cost_that_is_rounding_is_switched_off():
    twins = torch.tensor([[1.0, 2.0, 3.0], [1.1, 2.2, 3.3]])  # one direction, two rows
    mixture = Mixture.emo_scaled_to_cross_entropy()
    leaf = torch.tensor([0.3, 0.1], requires_grad=True)
    value = emo_mixture_loss(leaf, torch.tensor(0), twins, mixture=mixture)
    (slope,) = torch.autograd.grad(value, leaf)
    p = leaf.detach().softmax(0)
    assert torch.allclose(slope, 0.5 * torch.tensor([p[0] - 1, p[1]]), rtol=1e-5)
    assert emo_loss(leaf, torch.tensor(0), twins) >= 0


# ------------------------------------------------------------------- what counts, and reductions


@pytest.mark.parametrize("loss", [emo_loss, kernel_score_loss])
def test_ignored_positions_and_reductions(loss):
    logits, targets, table = problem(6, rows=6)
    logits, targets = logits.reshape(2, 3, -1), targets.reshape(2, 3).clone()
    targets[0, 1] = -100
    logits[0, 1, 4] = math.nan  # ignored positions may hold anything
    leaf = logits.requires_grad_()
    each = loss(leaf, targets, table, reduction="none")
    assert each.shape == (2, 3)
    assert each[0, 1] == 0
    assert loss(leaf, targets, table, reduction="sum") == each.sum()
    mean = loss(leaf, targets, table)
    assert torch.allclose(mean, each.sum() / 5)
    (slope,) = torch.autograd.grad(mean, leaf)
    assert slope[0, 1].tolist() == [0] * 11
    assert bool(slope.isfinite().all())
    again = torch.where(targets == -100, 7, targets)
    assert torch.equal(
        loss(leaf, torch.where(targets == -100, 12, targets), table, ignore_index=12), mean
    )
    assert bool((again >= 0).all())


def test_masked_vocabulary_is_as_if_absent():
    logits, _, table = problem(7, rows=4)
    targets = torch.tensor([0, 1, 2, 0])
    short = logits[:, :5].clone().requires_grad_()
    masked = logits.clone()
    masked[:, 5:] = -INF
    masked.requires_grad_()
    for loss in (emo_loss, kernel_score_loss):
        here, there = loss(short, targets, table[:5]), loss(masked, targets, table)
        assert torch.allclose(here, there, rtol=1e-12)
        (a,) = torch.autograd.grad(here, short)
        (b,) = torch.autograd.grad(there, masked)
        assert torch.allclose(a, b[:, :5])
        assert not b[:, 5:].any()


def test_ties_and_one_class():
    assert emo_loss(torch.zeros(2, 4), torch.tensor([0, 3]), torch.eye(4)) == pytest.approx(0.75)
    leaf = torch.randn(3, 1, requires_grad=True)
    for loss in (emo_loss, kernel_score_loss):
        value = loss(leaf, torch.zeros(3, dtype=torch.int64), torch.ones(1, 2))
        (slope,) = torch.autograd.grad(value, leaf)
        assert value == 0
        assert slope.abs().sum() == 0


# ----------------------------------------------------------------------------------- embeddings


def test_scale_of_rows_does_not_matter():
    logits, targets, table = problem(8)
    lengths = torch.tensor(
        [1e-200, 1e-30, 1e-3, 1, 5, 1e5, 1e30, 1e150, 2, 3, 1e-100], dtype=torch.float64
    )
    expected = emo_loss(logits, targets, table)
    scaled = table * lengths.unsqueeze(1)
    assert torch.allclose(emo_loss(logits, targets, scaled), expected, rtol=1e-12)
    unit = UnitEmbeddings(scaled)
    assert torch.allclose(emo_loss(logits, targets, unit), expected, rtol=1e-12)
    small = (table * 1e-25).float()  # squares underflow in float32
    assert torch.allclose(emo_loss(logits, targets, small), expected, rtol=1e-6)
    half = (table * 100).half()
    assert torch.allclose(emo_loss(logits, targets, half), expected, rtol=1e-2)


def test_embeddings_are_copied_and_move():
    _, _, table = problem(9)
    unit = UnitEmbeddings(table)
    before = unit.rows.clone()
    table.zero_()
    assert torch.equal(unit.rows, before)
    assert unit.state_dict() == {}
    assert "11 tokens, 4 dimensions" in repr(unit)
    assert unit.to(torch.float32).rows.dtype == torch.float32


def test_centring():
    _, _, table = problem(10)
    shared = table + 50.0
    centred = UnitEmbeddings(shared, centre=True)
    assert torch.allclose(centred.rows, functional.normalize(table - table.mean(0), dim=1))
    assert UnitEmbeddings(shared).cost_moments()[0] < 0.01
    assert centred.cost_moments()[0] > 0.9


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("count", [3, 1000])
def test_a_row_that_is_the_mean_up_to_rounding_is_refused(dtype, count):
    same = torch.full((count, 3), 0.1, dtype=dtype)
    with raises(ValueError, "row 0, which is the mean of all rows: it has no direction"):
        UnitEmbeddings(same, centre=True)
    _, _, table = problem(10, classes=count)
    shared = (table + 0.7).to(dtype)
    shared[1] = shared[torch.arange(count) != 1].mean(0)  # then it is the mean of all, rounded
    with raises(ValueError, "row 1, which is the mean of all rows"):
        UnitEmbeddings(shared, centre=True)
    assert bool(UnitEmbeddings(shared, centre=True, padding=[1]).rows[0].any())
    large = table.to(dtype) * (1e150 if dtype == torch.float64 else 1e25)  # squares overflow
    assert torch.allclose(
        UnitEmbeddings(large, centre=True).rows,
        UnitEmbeddings(table.to(dtype), centre=True).rows,
        rtol=1e-3,
    )


def test_padding_rows():
    logits, targets, table = problem(11)
    targets = targets.clamp(min=1)
    padded = table.clone()
    padded[0] = 0
    unit = UnitEmbeddings(padded, padding=[0])
    assert unit.rows[0].tolist() == [0] * 4
    rows = torch.cat([unit.rows, torch.zeros(11, 1)], 1)
    rows[0, 4] = 1  # orthogonal to all others
    assert torch.allclose(emo_loss(logits, targets, unit), emo_loss(logits, targets, rows))
    with raises(ValueError, "targets must not be padding rows of the embeddings, got 0 at targets"):
        emo_loss(logits, torch.zeros_like(targets), unit)
    kept = UnitEmbeddings(padded[1:], centre=True)
    centred = UnitEmbeddings(padded, centre=True, padding=[0])
    assert torch.allclose(centred.rows[1:], kept.rows)
    assert centred.cost_moments() == pytest.approx(kept.cost_moments())


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda: UnitEmbeddings([[1.0]]), TypeError, "embeddings must be a torch.Tensor or"),
        (lambda: UnitEmbeddings(torch.ones(2, 2, dtype=torch.int64)), TypeError, "floating-point"),
        (lambda: UnitEmbeddings(torch.ones(3)), ValueError, "shape (V, D)"),
        (lambda: UnitEmbeddings(torch.ones(0, 3)), ValueError, "got shape (0, 3)"),
        (lambda: UnitEmbeddings(torch.eye(2).requires_grad_()), ValueError, ".detach()"),
        (lambda: UnitEmbeddings(torch.eye(2), padding=[2]), ValueError, "rows in [0, 2), got 2"),
        (lambda: UnitEmbeddings(torch.eye(2), padding=[0, 1]), ValueError, "row, got all 2"),
        (lambda: UnitEmbeddings(torch.zeros(2, 2)), ValueError, "row 0, which is zero"),
        (lambda: UnitEmbeddings(torch.ones(2, 2), centre=True), ValueError, "is the mean of all"),
        (lambda: UnitEmbeddings(torch.tensor([[1.0], [math.nan]])), ValueError, "row 1, which is"),
        (lambda: UnitEmbeddings(torch.tensor([[INF], [1.0]])), ValueError, "row 0, which is"),
        (
            lambda: UnitEmbeddings(torch.tensor([[INF, 0.0], [1.0, 2.0]]), centre=True),
            ValueError,
            "row 0, which is not finite",
        ),
        (lambda: UnitEmbeddings(torch.tensor([[1e-43], [1.0]])), ValueError, "too short or too"),
        (lambda: UnitEmbeddings(torch.ones(1, 2)).cost_moments(), ValueError, "got 1"),
    ],
)  # fmt: skip
def test_bad_embeddings(call, kind, message):
    with raises(kind, message):
        call()


# -------------------------------------------------------------------------------------- refusals


def bad_arguments():
    logits, targets, table = problem(12, rows=3)
    nan, low = logits.clone(), logits.clone()
    nan[1, 4] = math.nan
    low[2] = -INF
    hidden = logits.clone()
    hidden[0, targets[0]] = -INF
    outside, negative = targets.clone(), targets.clone()
    outside[2], negative[0] = 11, -1
    zero = table.clone()
    zero[7] = 0
    rows = [
        (logits.tolist(), targets, table, TypeError, "logits must be a torch.Tensor"),
        (logits.long(), targets, table, TypeError, "floating-point"),
        (logits, targets.int(), table, TypeError, "targets must have dtype torch.int64"),
        (logits, targets[:2], table, ValueError, "expected shape (3,), got (2,)"),
        (logits, targets, table[:4], ValueError, "expected 11 rows, got 4"),
        (logits, targets, table.clone().requires_grad_(), ValueError, "pass embeddings.detach()"),
        (logits, targets, zero, ValueError, "row 7, which is zero"),
        (logits, outside, table, ValueError, "got 11 at targets[2]"),
        (logits, negative, table, ValueError, "got -1 at targets[0]"),
        (nan, targets, table, ValueError, "got nan at logits[1, 4]"),
        (nan.nan_to_num(INF), targets, table, ValueError, "got inf at logits[1, 4]"),
        (low, targets, table, ValueError, "a target must have a finite logit, got targets[2]"),
        (hidden, targets, table, ValueError, "a target must have a finite logit, got targets[0]"),
    ]
    return [pytest.param(*row, id=row[-1]) for row in rows]


@pytest.mark.parametrize(("logits", "targets", "table", "kind", "message"), bad_arguments())
@pytest.mark.parametrize("loss", [emo_loss, kernel_score_loss])
def test_bad_arguments(loss, logits, targets, table, kind, message):
    with raises(kind, message):
        loss(logits, targets, table)


def test_unknown_options():
    logits, targets, table = problem(13)
    with raises(ValueError, "reduction must be 'none', 'mean' or 'sum', got 'all'"):
        emo_loss(logits, targets, table, reduction="all")
    with raises(TypeError, "mixture must be a Mixture, got float"):
        emo_mixture_loss(logits, targets, table, mixture=0.5)
    for weights in ({"cross_entropy": -1.0, "emo": 1.0}, {"cross_entropy": 1.0, "emo": INF}):
        with raises(ValueError, "must be a finite weight of at least 0"):
            Mixture.fixed(**weights)
    with raises(ValueError, "cap must be positive, got 0"):
        Mixture.emo_scaled_to_cross_entropy(cap=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (("emo-scaled",), "rule must be one of 'fixed', 'emo scaled to cross-entropy', "),
        (("emo-scaled",), "got 'emo-scaled'"),
        (("fixed", -1.0, 1.0), "cross_entropy must be a finite weight of at least 0, got -1.0"),
        (("fixed", 1.0, math.nan), "emo must be a finite weight of at least 0, got nan"),
        (("emo scaled to cross-entropy", 0.0, 0.0, -3.0), "cap must be positive, got -3.0"),
    ],
)
def test_mixture_checks_however_it_is_made(fields, message):
    with raises(ValueError, message):
        Mixture(*fields)


def test_empty_batches():
    logits, targets, table = problem(14)
    for by in ("transport", "bound", "kernel"):
        leaf = logits[:0].clone().requires_grad_()
        values = soft_emo_loss(leaf, logits[:0].softmax(-1), table, by=by, reduction="none")
        assert values.shape == (0,)
        (slope,) = torch.autograd.grad(values.sum(), leaf)
        assert slope.shape == leaf.shape
    for reduction, shape in (("sum", ()), ("none", (0,))):
        assert emo_loss(logits[:0], targets[:0], table, reduction=reduction).shape == shape
    hidden = torch.zeros(0, 3, requires_grad=True)
    value = linear_emo_loss(hidden, torch.zeros(11, 3), targets[:0], table, reduction="sum")
    value.backward()
    assert value == 0


# ------------------------------------------------------------------------------ the linear form


def linear_problem(seed=0, tokens=37, classes=211, width=12, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, width, generator=draw, dtype=torch.float64).to(dtype)
    weight = torch.randn(classes, width, generator=draw, dtype=torch.float64).to(dtype)
    table = torch.randn(classes, 9, generator=draw, dtype=torch.float64)
    targets = torch.randint(classes, (tokens,), generator=draw)
    targets[3] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), targets, table


def plain(hidden, weight, targets, table, mixture, reduction, bias=None):
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    if mixture is None:
        return emo_loss(logits, targets, table, reduction=reduction)
    return emo_mixture_loss(logits, targets, table, mixture=mixture, reduction=reduction)


@pytest.fixture
def small_chunks(monkeypatch):
    """The kernel at any size: several chunks, a ragged last one, blocks that leave a rest."""
    monkeypatch.setattr(_linear, "_SMALL_CELLS", 0)
    monkeypatch.setattr(_linear, "_LEAST_TOKENS", 5)
    monkeypatch.setattr(_linear, "_CHUNK_CELLS", 1)
    monkeypatch.setattr(_head, "BLOCK_ROWS", 50)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("prepared", [False, True], ids=["tensor", "prepared"])
def test_linear_form_is_the_plain_one(name, reduction, prepared):
    hidden, weight, targets, table = linear_problem()
    embeddings = UnitEmbeddings(table) if prepared else table
    ours = linear_emo_loss(
        hidden, weight, targets, embeddings, mixture=MIXTURES[name], reduction=reduction
    )
    want = plain(hidden, weight, targets, table, MIXTURES[name], reduction)
    assert torch.allclose(ours, want, rtol=1e-12)
    upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(1)).double()
    for got, true in zip(
        torch.autograd.grad(ours, (hidden, weight), upstream),
        torch.autograd.grad(want, (hidden, weight), upstream),
        strict=True,
    ):
        assert torch.allclose(got, true, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_of_the_head(name, reduction, dtype):
    hidden, weight, targets, table = linear_problem(dtype=dtype)
    bias = torch.randn(211, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    bias[targets[0] - 1] = -INF  # takes a token away
    targets[targets == targets[0] - 1] = -100
    leaves = hidden, weight, bias.to(dtype).requires_grad_()
    double = [leaf.detach().double().requires_grad_() for leaf in leaves]
    ours = linear_emo_loss(
        *leaves[:2], targets, table, bias=leaves[2], mixture=MIXTURES[name], reduction=reduction
    )
    want = plain(*double[:2], targets, table, MIXTURES[name], reduction, double[2])
    assert ours.dtype == _checks.compute_dtype(dtype)
    small = 1e-10 if dtype == torch.float64 else 2e-5
    assert torch.allclose(ours.double(), want, rtol=small)
    upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(1)).to(ours)
    eps = torch.finfo(dtype).eps if dtype.itemsize == 2 else 0
    for got, true in zip(
        torch.autograd.grad(ours, leaves, upstream),
        torch.autograd.grad(want, double, upstream.double()),
        strict=True,
    ):
        assert got.dtype == dtype
        assert torch.allclose(got.double(), true, rtol=small + eps, atol=small + eps * 1e-3)


def test_bias_of_another_dtype():
    hidden, weight, targets, table = linear_problem(dtype=torch.bfloat16)
    bias = torch.randn(211, generator=torch.Generator().manual_seed(3), requires_grad=True)
    single = linear_emo_loss(hidden, weight, targets, table, bias=bias)
    slopes = torch.autograd.grad(single, (hidden, weight, bias))
    assert single.dtype == torch.float32
    assert [slope.dtype for slope in slopes] == [torch.bfloat16, torch.bfloat16, torch.float32]
    double = linear_emo_loss(hidden, weight, targets, table, bias=bias.double())
    assert double.dtype == torch.float64
    assert torch.allclose(single.double(), double, rtol=1e-5)


@pytest.mark.usefixtures("small_chunks")
def test_linear_form_in_float32():
    """The measured claim of the performance page, at a size for a test."""
    hidden, weight, targets, table = linear_problem(1, tokens=60, classes=997, dtype=torch.float32)
    for mixture in MIXTURES.values():
        got = torch.autograd.grad(
            linear_emo_loss(hidden, weight, targets, table, mixture=mixture), (hidden, weight)
        )
        want = torch.autograd.grad(
            plain(hidden, weight, targets, table, mixture, "mean"), (hidden, weight)
        )
        for a, b in zip(got, want, strict=True):
            assert float((a - b).abs().max()) <= 1e-5 * float(b.abs().max())


def test_linear_form_where_all_costs_are_near_one():
    """Near orthogonal rows: 1 minus the loss must come from its small parts, not from the loss."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(8, 256, generator=draw).requires_grad_()
    weight = (torch.randn(20_000, 256, generator=draw) / 16).requires_grad_()
    table = torch.randn(20_000, 256, generator=draw)
    targets = torch.randint(20_000, (8,), generator=draw)
    (got,) = torch.autograd.grad(linear_emo_loss(hidden, weight, targets, table), hidden)
    double = hidden.detach().double().requires_grad_()
    want = plain(double, weight.detach().double(), targets, table.double(), None, "mean")
    (true,) = torch.autograd.grad(want, double)
    assert float((got - true).abs().max() / true.abs().max()) <= 2e-6


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_linear_form_in_half_precision(dtype):
    hidden, weight, targets, table = linear_problem(2, dtype=dtype)
    ours = linear_emo_loss(hidden, weight, targets, table.to(dtype))
    got = torch.autograd.grad(ours, (hidden, weight))
    double = [leaf.detach().double().requires_grad_() for leaf in (hidden, weight)]
    want = linear_emo_loss(*double, targets, table.to(dtype).double())
    assert ours.dtype == torch.float32
    assert torch.allclose(ours.double(), want, rtol=1e-5)
    for a, b in zip(got, torch.autograd.grad(want, double), strict=True):
        assert a.dtype == dtype
        assert torch.allclose(a.double(), b, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.usefixtures("small_chunks")
def test_linear_form_only_forms_what_is_asked_for():
    hidden, weight, targets, table = linear_problem(3)
    full = torch.autograd.grad(linear_emo_loss(hidden, weight, targets, table), (hidden, weight))
    for frozen in (0, 1):
        leaves = [hidden, weight]
        leaves[frozen] = leaves[frozen].detach()
        (got,) = torch.autograd.grad(linear_emo_loss(*leaves, targets, table), leaves[1 - frozen])
        assert torch.equal(got, full[1 - frozen])
    with torch.no_grad():
        assert not linear_emo_loss(hidden, weight, targets, table).requires_grad


@pytest.mark.usefixtures("small_chunks")
def test_linear_form_backward_twice_and_second_derivatives():
    hidden, weight, targets, table = linear_problem(4, tokens=4, classes=6, width=3)
    targets = targets.clamp(min=0)
    loss = linear_emo_loss(hidden, weight, targets, table)
    for times in (1, 2, 3):  # gradients add up, also where autograd kept the first ones
        loss.backward(retain_graph=True)
        want = torch.autograd.grad(plain(hidden, weight, targets, table, None, "mean"), weight)[0]
        assert torch.allclose(weight.grad, times * want)
    for reduction in ("mean", "none"):
        assert torch.autograd.gradgradcheck(
            lambda h, w, r=reduction: linear_emo_loss(h, w, targets, table, reduction=r),
            (hidden, weight),
        )


LINEAR_ARGUMENTS = ("hidden", "weight", "bias", "targets", "table", "rows")


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("changed", LINEAR_ARGUMENTS)
def test_what_changes_before_backward_is_noticed(changed, reduction):
    hidden, weight, targets, table = linear_problem(20)
    bias = torch.zeros(211, dtype=torch.float64, requires_grad=True)
    leaves = (hidden, weight, bias)
    embeddings = UnitEmbeddings(table) if changed == "rows" else table
    rows = embeddings.rows if changed == "rows" else None
    parts = dict(zip(LINEAR_ARGUMENTS, (*leaves, targets, table, rows), strict=True))
    loss = linear_emo_loss(hidden, weight, targets, embeddings, bias=bias, reduction=reduction)
    want = torch.autograd.grad(loss.sum(), leaves, retain_graph=True)
    with torch.no_grad():
        parts[changed].mul_(2)
    if changed == "targets":  # of which a copy was made, for one is ignored
        for got, true in zip(torch.autograd.grad(loss.sum(), leaves), want, strict=True):
            assert torch.equal(got, true)
        return
    with raises(RuntimeError, "modified by an inplace operation"):
        loss.sum().backward()


@pytest.mark.parametrize("loss", [emo_loss, kernel_score_loss])
def test_embeddings_that_change_before_backward_do_no_harm(loss):
    logits, targets, table = problem(21)
    leaf = logits.requires_grad_()
    (want,) = torch.autograd.grad(loss(leaf, targets, table), leaf)
    value = loss(leaf, targets, table)
    table.mul_(2)  # a copy was scaled
    (got,) = torch.autograd.grad(value, leaf)
    assert torch.equal(got, want)
    unit = UnitEmbeddings(table)
    value = loss(leaf, targets, unit)
    unit.rows.mul_(2)
    if loss is emo_loss:  # which keeps costs
        (got,) = torch.autograd.grad(value, leaf)
        assert torch.allclose(got, want)
    else:
        with raises(RuntimeError, "modified by an inplace operation"):
            torch.autograd.grad(value, leaf)


def test_linear_form_under_autocast_and_mixed_dtypes():
    hidden, weight, targets, table = linear_problem(5, dtype=torch.float32)
    want = linear_emo_loss(hidden, weight, targets, table)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear_emo_loss(hidden, weight, targets, table) == want
        mixed = linear_emo_loss(hidden.bfloat16(), weight, targets, table)
    (slope,) = torch.autograd.grad(mixed, hidden)
    assert slope.dtype == torch.float32
    assert float(mixed.detach()) == pytest.approx(float(want.detach()), rel=1e-2)


def test_autocast_does_not_reach_the_products():
    """Costs of 0.01 on average: in bfloat16 they would be rounding."""
    logits, targets, table = problem(22, rows=6, width=8, dtype=torch.float32)
    shared = functional.normalize(table, dim=1) + 10 * functional.normalize(torch.ones(8), dim=0)
    shared = shared.float()
    assert UnitEmbeddings(shared).cost_moments()[0] < 0.02
    q = torch.rand(6, 11, generator=torch.Generator().manual_seed(0)).softmax(-1)
    ratio = Mixture.emo_scaled_to_cross_entropy()
    losses = {
        "emo": lambda x: emo_loss(x, targets, shared),
        "kernel": lambda x: kernel_score_loss(x, targets, shared),
        "mixture": lambda x: emo_mixture_loss(x, targets, shared, mixture=ratio),
        **{by: lambda x, by=by: soft_emo_loss(x, q, shared, by=by)
           for by in ("transport", "bound", "kernel")},
    }  # fmt: skip
    for name, loss in losses.items():
        leaf = logits.clone().requires_grad_()
        want = loss(leaf)
        (slope,) = torch.autograd.grad(want, leaf)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = loss(leaf)
        assert got == want, name
        (under,) = torch.autograd.grad(got, leaf)  # outside: inside, autograd's own products obey
        assert torch.equal(under, slope), name
    hidden, weight, targets, table = linear_problem(5, dtype=torch.float32)

    def in_a_transform():
        return torch.vmap(
            lambda h, t: linear_emo_loss(h, weight, t, table.float(), reduction="none")
        )(hidden, targets)

    want = in_a_transform()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(in_a_transform(), want)


@pytest.mark.parametrize("loss", [emo_loss, kernel_score_loss])
def test_meta_tensors_have_shapes(loss):
    logits = torch.zeros(4, 9, device="meta", requires_grad=True)
    targets = torch.zeros(4, dtype=torch.int64, device="meta")
    values = loss(logits, targets, torch.zeros(9, 3, device="meta"), reduction="none")
    assert values.shape == (4,)
    assert values.is_meta


def test_linear_form_holds_no_table(monkeypatch):
    """No tensor of tokens × vocabulary is made, forward or backward."""
    hidden, weight, targets, table = linear_problem(6, tokens=400, classes=300)
    monkeypatch.setattr(_linear, "_CHUNK_CELLS", 1)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            made = function(*args, **(kwargs or {}))
            for part in made if isinstance(made, tuple | list) else [made]:
                if isinstance(part, torch.Tensor):
                    largest = max(largest, part.numel())
            return made

    monkeypatch.setattr(_checks, "values_readable", lambda *tensors: True)
    for reduction in ("mean", "none"):
        with Watch():
            linear_emo_loss(hidden, weight, targets, table, reduction=reduction).sum().backward()
    assert 0 < largest <= 64 * 300


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"weight": torch.zeros(3)}, ValueError, "weight must have shape (V, H)"),
        ({"weight": torch.zeros(211, 5)}, ValueError, "expected (..., 5), got (37, 12)"),
        ({"table": torch.ones(3, 2)}, ValueError, "expected 211 rows, got 3"),
        ({"mixture": 1}, TypeError, "mixture must be a Mixture"),
        ({"targets": torch.full((37,), 211)}, ValueError, "got 211 at targets[0]"),
        ({"weight": torch.zeros(0, 12)}, ValueError, "weight must have shape (V, H)"),
        ({"hidden": torch.tensor(1.0)}, ValueError, "expected (..., 12), got ()"),
        ({"hidden": [0.0]}, TypeError, "hidden must be a torch.Tensor, got list"),
        ({"weight": torch.ones(211, 12).long()}, TypeError, "weight must have a floating-point"),
        ({"bias": [0.0]}, TypeError, "bias must be a torch.Tensor, got list"),
        ({"bias": torch.ones(211).long()}, TypeError, "bias must have a floating-point dtype"),
        ({"bias": torch.ones(210)}, ValueError, "expected (211,), got (210,)"),
        ({"bias": torch.ones(211, device="meta")}, ValueError, "bias must be on the device of"),
        ({"bias": torch.full((211,), INF)}, ValueError, "bias must be finite, got inf at bias[0]"),
        ({"bias": torch.full((211,), -INF)}, ValueError, "a target must have a finite logit"),
        ({"hidden": torch.full((37, 12), math.nan)}, ValueError, "got nan at hidden[0, 0]"),
        (
            {"hidden": torch.full((37, 12), 1e300, dtype=torch.float64)},
            ValueError,
            "a product that overflows",
        ),
        ({"weight": torch.full((211, 12), INF)}, ValueError, "got inf at weight[0, 0]"),
    ],
)
def test_linear_form_refuses(change, kind, message):
    hidden, weight, targets, table = linear_problem()
    arguments = {"hidden": hidden, "weight": weight, "targets": targets, "table": table}
    for k, v in change.items():
        floats = isinstance(v, torch.Tensor) and v.is_floating_point()
        arguments[k] = v.double() if floats and k in ("hidden", "weight") else v
    options = {name: arguments.pop(name, None) for name in ("mixture", "bias")}
    if "overflows" in message:
        arguments["weight"] = torch.full((211, 12), 1e300, dtype=torch.float64)
    with raises(kind, message):
        linear_emo_loss(*arguments.values(), **options)


@pytest.mark.parametrize("name", MIXTURES)
def test_linear_form_refuses_a_target_at_minus_infinity(name):
    """The product overflows at the target only; the mean cost alone would be a harmless 1."""
    hidden, weight = torch.tensor([[1e30]]), torch.tensor([[-1e30], [0.0], [1e-30]])
    with raises(ValueError, "a product that overflows torch.float32"):
        linear_emo_loss(hidden, weight, torch.tensor([0]), torch.eye(3), mixture=MIXTURES[name])
    masked = linear_emo_loss(hidden, weight, torch.tensor([1]), torch.eye(3))
    assert masked == pytest.approx(math.e / (1 + math.e))  # any other token may be there


@pytest.mark.parametrize("small", [0, 1 << 15])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_linear_form_refuses_a_weight_that_spoils_the_gradient(reduction, small, monkeypatch):
    monkeypatch.setattr(_linear, "_SMALL_CELLS", small)
    hidden = torch.tensor([[1.0, 2.0]], requires_grad=True)
    weight = torch.tensor([[0.5, 0.1], [0.2, 0.3], [-INF, 0.0]])
    targets, table = torch.tensor([0]), torch.eye(3)
    loss = linear_emo_loss(hidden.detach(), weight, targets, table)  # no gradient, none spoilt
    assert loss == emo_loss(hidden.detach() @ weight.T, targets, table)
    for again in (False, True):
        with raises(ValueError, "weight must be finite, got -inf at weight[2, 0]"):
            loss = linear_emo_loss(hidden, weight, targets, table, reduction=reduction)
            torch.autograd.grad(loss.sum(), hidden, create_graph=again)
    # A gradient that leaves float16 is the loss scaler's business, not the weight's.
    half, finite = hidden.detach().half().requires_grad_(), weight.nan_to_num(neginf=-9).half()
    loss = linear_emo_loss(half, finite, targets, table, reduction="none")
    (slope,) = torch.autograd.grad(loss.sum() * 1e38, half)
    assert not slope.isfinite().all()


@pytest.mark.parametrize("small", [0, 1 << 15])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_one_bad_state_among_good_ones_is_refused(reduction, small, monkeypatch):
    monkeypatch.setattr(_linear, "_SMALL_CELLS", small)
    hidden, weight, targets, table = linear_problem(7)
    with torch.no_grad():
        hidden[5, 2] = math.nan
    with raises(ValueError, "hidden must be finite, got nan at hidden[5, 2]"):
        linear_emo_loss(hidden, weight, targets, table, reduction=reduction)


def test_one_padding_target_among_good_ones_is_refused():
    logits, targets, table = problem(11)
    targets = targets.clamp(min=1)
    targets[2] = 0
    unit = UnitEmbeddings(table, padding=[0])
    hidden, weight = torch.eye(5, 3, dtype=torch.float64), torch.ones(11, 3, dtype=torch.float64)
    for call in (
        lambda: emo_loss(logits, targets, unit),
        lambda: linear_emo_loss(hidden, weight, targets, unit),
    ):
        with raises(ValueError, "not be padding rows of the embeddings, got 0 at targets[2]"):
            call()
    q = functional.one_hot(targets, 11).double()
    with raises(ValueError, "must be 0 on padding rows"):
        soft_emo_loss(logits, q, unit, by="kernel")
    targets[2] = -100
    assert emo_loss(logits, targets, unit, reduction="none")[2] == 0


@pytest.mark.parametrize("loss", [emo_loss, kernel_score_loss])
def test_one_bad_logit_is_found_however_large_the_others_are(loss):
    logits, targets, table = problem(11)
    logits[:, 3] = 1e308  # whose sum is infinite
    targets = torch.full_like(targets, 3)
    assert loss(logits, targets, table).isfinite()
    logits[4, 1] = math.nan
    with raises(ValueError, "got nan at logits[4, 1]"):
        loss(logits, targets, table)


def test_nothing_counts():
    logits, targets, table = problem(11)
    hidden, weight, _, wide = linear_problem(7)
    nothing = torch.full((37,), -100)
    calls = [
        (lambda x, r: emo_loss(x, targets * 0 - 100, table, reduction=r), logits),
        (lambda x, r: kernel_score_loss(x, targets * 0 - 100, table, reduction=r), logits),
        (lambda x, r: linear_emo_loss(x, weight, nothing, wide, reduction=r), hidden),
    ]
    for call, leaf in calls:
        for reduction in ("mean", "sum"):
            x = (leaf.detach() * math.nan).requires_grad_()
            value = call(x, reduction)
            (slope,) = torch.autograd.grad(value, x)
            assert value == 0
            assert not slope.any()


def test_states_that_do_not_count_may_hold_anything():
    hidden, weight, targets, table = linear_problem(7)
    broken = hidden.detach().clone()
    broken[3] = math.nan
    broken.requires_grad_()
    loss = linear_emo_loss(broken, weight, targets, table)
    assert loss == linear_emo_loss(hidden, weight, targets, table)
    (slope,) = torch.autograd.grad(loss, broken)
    assert slope[3].tolist() == [0] * 12


# --------------------------------------------------------------------- where no value can be read


@pytest.fixture
def unreadable(monkeypatch):
    """No value is readable: the path of compiled graphs and transforms."""
    monkeypatch.setattr(_checks, "values_readable", lambda *tensors: False)


@pytest.mark.usefixtures("unreadable")
def test_bad_rows_are_nan_where_no_error_is_possible():
    logits, targets, table = problem(15, rows=4)
    targets[0], targets[1] = 11, -100
    logits[2, 3] = math.nan
    for loss in (emo_loss, kernel_score_loss):
        values = loss(logits, targets, table, reduction="none")
        assert values.isnan().tolist() == [True, False, True, False]
        assert values[1] == 0
    hidden, weight, targets, table = linear_problem()
    targets[0] = 211
    values = linear_emo_loss(hidden, weight, targets, table, reduction="none")
    assert values.isnan().nonzero().tolist() == [[0]]
    for reduction in ("mean", "sum"):
        assert linear_emo_loss(hidden, weight, targets, table, reduction=reduction).isnan()


def test_without_looking_bad_rows_are_nan():
    logits, targets, table = problem(15, rows=4)
    good, some = targets.clone(), {"reduction": "none", "validate": False}
    targets[0], targets[1] = 11, -100
    broken = logits.clone()
    broken[2, 3] = math.nan
    for loss in (
        emo_loss,
        kernel_score_loss,
        lambda *a, **k: emo_mixture_loss(*a, mixture=MIXTURES["fixed"], **k),
    ):
        values = loss(broken, targets, table, **some)
        assert values.isnan().tolist() == [True, False, True, False]
        assert values[1] == 0
        assert loss(broken, targets, table, validate=False).isnan()
        want = loss(logits, good, table, reduction="none")
        assert torch.allclose(loss(logits, good, table, **some), want)
        unit = UnitEmbeddings(table, padding=[int(good[3])])
        values = loss(logits, good, unit, **some)
        assert values.isnan().tolist() == [bool(t == good[3]) for t in good]
    q = logits.softmax(-1)
    q[1], q[2, 4] = 0.5, -1.0
    for by in ("transport", "bound", "kernel"):
        values = soft_emo_loss(broken.nan_to_num(2), q, table, by=by, **some)
        assert values.isnan().tolist() == [False, True, True, False]
        values = soft_emo_loss(broken, logits.softmax(-1), table, by=by, **some)
        assert values.isnan().tolist() == [False, False, True, False]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("name", MIXTURES)
def test_linear_form_without_looking(name, reduction):
    hidden, weight, targets, table = linear_problem()
    options = {"mixture": MIXTURES[name], "reduction": reduction}
    want = linear_emo_loss(hidden, weight, targets, table, **options)
    spoilt = hidden.detach().clone()
    spoilt[3] = math.nan  # does not count
    leaf = spoilt.requires_grad_()
    got = linear_emo_loss(leaf, weight, targets, table, validate=False, **options)
    assert torch.allclose(got, want)
    upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(1)).double()
    for one, other in zip(
        torch.autograd.grad(got, (leaf, weight), upstream),
        torch.autograd.grad(want, (hidden, weight), upstream),
        strict=True,
    ):
        assert torch.allclose(one, other)
    targets[0] = 211
    values = linear_emo_loss(hidden, weight, targets, table, validate=False, **options)
    if reduction != "none":
        assert values.isnan()
        return
    assert values.isnan().nonzero().tolist() == [[0]]
    (slope,) = torch.autograd.grad(values, hidden, upstream)
    assert not slope[0].any()
    bad = torch.full((211, 12), INF, dtype=torch.float64)
    assert linear_emo_loss(hidden, bad, targets, table, validate=False).isnan()


def test_modules_pass_on_whether_to_look():
    logits, targets, table = problem(15)
    hidden, weight, classes, wide = linear_problem()
    logits[0, 0] = hidden.data[0, 0] = math.nan
    for mixture in (None, MIXTURES["fixed"]):
        assert EMOLoss(table, mixture=mixture, validate=False)(logits, targets).isnan()
        linear = LinearEMOLoss(wide, mixture=mixture, validate=False)
        assert linear(hidden, weight, classes).isnan()
    assert KernelScoreLoss(table, validate=False)(logits, targets).isnan()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_rows_of_any_length_without_looking(dtype):
    """Where no error is possible lengths are found another way; a row without one is NaN."""
    logits, targets, table = problem(8)
    ends = torch.finfo(dtype)
    table = functional.normalize(table, dim=1)
    lengths = torch.full((11,), 1.0, dtype=torch.float64)
    for i, length in enumerate((ends.tiny, ends.max / 2, ends.tiny**0.6, ends.max**0.6)):
        lengths[i] = length
    scaled = (table * lengths.unsqueeze(1)).to(dtype)
    want = emo_loss(logits, targets, scaled)
    got = emo_loss(logits, targets, scaled, validate=False)
    assert torch.allclose(got, want, rtol=1e-5)
    for value in (0.0, INF, math.nan):
        scaled[2] = value
        assert emo_loss(logits, targets, scaled, validate=False).isnan()


def exported(function, arguments, batch_of):
    """The function as an exported program whose batch may have any size."""

    class Module(torch.nn.Module):
        def forward(self, *inputs):
            return function(*inputs)

    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = tuple({0: batch} if i in batch_of else None for i in range(len(arguments)))
    # One argument per name: *inputs is one tuple.
    return torch.export.export(Module(), arguments, dynamic_shapes=(shapes,)).module()


def row_losses(table):
    ratio = MIXTURES["emo scaled, capped"]
    unit = UnitEmbeddings(table, padding=[10])
    return {
        "emo": lambda x, t: emo_loss(x, t, table),
        "prepared": lambda x, t: emo_loss(x, t, unit),
        "kernel": lambda x, t: kernel_score_loss(x, t, table),
        "mixture": lambda x, t: emo_mixture_loss(x, t, table, mixture=ratio),
        "linear": lambda x, t: linear_emo_loss(x, torch.eye(11).double(), t, table),
        "linear, mixture": lambda x, t: linear_emo_loss(
            x, torch.eye(11).double(), t, table, mixture=ratio
        ),
        "bound": lambda x, t: soft_emo_loss(
            x, functional.one_hot(t.clamp(min=0), 11).double(), table, by="bound"
        ),
        "kernel, soft": lambda x, t: soft_emo_loss(
            x, functional.one_hot(t.clamp(min=0), 11).double(), table, by="kernel"
        ),
    }


@pytest.mark.parametrize("name", row_losses(torch.eye(11).double()))
def test_dynamic_batches(name):
    """One exported program, and at most two compiled graphs, for batches of any size."""
    _, _, table = problem(16)
    loss = row_losses(table)[name]
    batches = [problem(16 + n, rows=n)[:2] for n in (5, 2, 3, 7, 12, 30)]
    for _, targets in batches:
        targets[targets == 10], targets[0] = 3, -100 if "soft" not in name else 1
    program = exported(loss, batches[0], (0, 1))
    graphs = 0

    def count(graph, inputs):
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend=count, fullgraph=True)
    for logits, targets in batches:
        want = loss(logits, targets)
        assert torch.allclose(program(logits, targets), want)
        leaf = logits.clone().requires_grad_()
        assert torch.allclose(compiled(leaf, targets), want)
    assert graphs <= 2


@pytest.mark.parametrize("name", row_losses(torch.eye(11).double()))
def test_batched_and_second_derivatives(name):
    logits, targets, table = problem(16, rows=3)
    targets[targets == 10] = 3
    loss = row_losses(table)[name]
    leaf = logits.clone().requires_grad_()
    want = torch.stack([loss(x.unsqueeze(0), t.unsqueeze(0))
                        for x, t in zip(logits, targets, strict=True)])  # fmt: skip
    one = lambda x, t: loss(x.unsqueeze(0), t.unsqueeze(0))  # noqa: E731
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing batching rule is a slow loop
        assert torch.allclose(torch.vmap(one)(logits, targets), want)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, targets), leaf)


def test_transport_is_refused_where_nothing_can_be_read():
    logits, _, table = problem(16)
    q = logits.softmax(-1)
    with raises(RuntimeError, "by must be 'bound' or 'kernel' where values cannot be read"):
        torch.vmap(lambda x, y: soft_emo_loss(x, y, table))(logits, q)
    compiled = torch.compile(lambda x: soft_emo_loss(x, q, table), backend="eager")
    assert compiled(logits) == soft_emo_loss(logits, q, table)  # not compiled, but right


@pytest.mark.parametrize("loss", [emo_loss, kernel_score_loss])
def test_traces_and_transforms(loss):
    logits, targets, table = problem(16)
    want = loss(logits, targets, table, reduction="none")
    graph = make_fx(lambda x, t: loss(x, t, table, reduction="none"))(logits, targets)
    assert torch.allclose(graph(logits, targets), want)
    by_row = torch.vmap(lambda x, t: loss(x, t, table, reduction="none"))(logits, targets)
    assert torch.allclose(by_row, want)
    slope = torch.func.grad(lambda x: loss(x, targets, table))(logits)
    leaf = logits.clone().requires_grad_()
    (true,) = torch.autograd.grad(loss(leaf, targets, table), leaf)
    assert torch.allclose(slope, true)


def test_linear_form_in_a_transform():
    hidden, weight, targets, table = linear_problem(8)
    hidden, weight = hidden.detach(), weight.detach()
    slope = torch.func.grad(lambda h: linear_emo_loss(h, weight, targets, table))(hidden)
    leaf = hidden.clone().requires_grad_()
    (true,) = torch.autograd.grad(linear_emo_loss(leaf, weight, targets, table), leaf)
    assert torch.allclose(slope, true)


@pytest.mark.cuda
def test_on_cuda():
    hidden, weight, targets, table = linear_problem(9)
    want = linear_emo_loss(hidden, weight, targets, table)
    there = [part.detach().cuda() for part in (hidden, weight, targets, table)]
    assert torch.allclose(linear_emo_loss(*there).cpu(), want)
    logits, targets, table = problem(17)
    got = emo_loss(logits.cuda(), targets.cuda(), table.cuda())
    assert torch.allclose(got.cpu(), emo_loss(logits, targets, table))


# ---------------------------------------------------------------------------------- soft targets


def test_soft_targets():
    logits, _, table = problem(18, rows=6)
    q = torch.rand(6, 11, generator=torch.Generator().manual_seed(0)).double().softmax(-1)
    unit = functional.normalize(table, dim=1)
    costs = (1 - unit @ unit.T).clamp(min=0)
    costs.fill_diagonal_(0)
    p = logits.softmax(-1)
    exact = soft_emo_loss(logits, q, table, reduction="none")
    for i in range(6):
        want = ot.emd2(p[i].numpy(), q[i].numpy(), costs.numpy())
        assert float(exact[i]) == pytest.approx(want, abs=1e-12)
    bound = soft_emo_loss(logits, q, table, by="bound", reduction="none")
    assert torch.allclose(bound, torch.einsum("ni,ij,nj->n", p, costs, q))
    kernel = soft_emo_loss(logits, q, table, by="kernel", reduction="none")
    assert torch.allclose(kernel, 0.5 * ((p - q) @ unit).square().sum(-1))
    assert bool((kernel <= exact + 1e-12).all())
    assert bool((exact <= bound + 1e-12).all())
    assert soft_emo_loss(logits, q, table) == exact.mean()
    leaf = logits.clone().requires_grad_()
    for by in ("transport", "bound", "kernel"):
        assert torch.autograd.gradcheck(
            lambda x, by=by: soft_emo_loss(x, q, table, by=by), leaf, atol=1e-6
        )


def test_a_solver_that_stops_early_is_an_error(monkeypatch):
    logits, _, table = problem(18, rows=2, classes=60)
    q = logits.flip(-1).softmax(-1)
    solve = ot.emd2
    monkeypatch.setattr(ot, "emd2", lambda *a, **options: solve(*a, **{**options, "numItermax": 5}))
    with (
        pytest.warns(UserWarning, match="numItermax"),
        raises(RuntimeError, "must reach the optimum, got row 0 without it: numItermax reached"),
    ):
        soft_emo_loss(logits, q, table)


def test_the_solver_may_take_many_steps(monkeypatch):
    """Its own limit is 10^5, which 6000 tokens exceed."""
    limits = []
    solve = ot.emd2
    monkeypatch.setattr(
        ot,
        "emd2",
        lambda *a, **options: limits.append(options["numItermax"]) or solve(*a, **options),
    )
    logits, _, table = problem(18, rows=1)
    with torch.device("meta"):  # the default device is none of the solver's business
        assert soft_emo_loss(logits, logits.softmax(-1), table) == 0
    assert limits == [100_000_000]


def test_one_hot_soft_targets_are_hard_ones():
    logits, targets, table = problem(19)
    hot = functional.one_hot(targets, 11).double()
    for by, loss in (("transport", emo_loss), ("bound", emo_loss), ("kernel", kernel_score_loss)):
        assert torch.allclose(
            soft_emo_loss(logits, hot, table, by=by), loss(logits, targets, table), atol=1e-12
        )


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"by": "sinkhorn"}, ValueError, "got 'sinkhorn'"),
        ({"q": torch.ones(3, 4)}, ValueError, "target_probabilities must have the shape of logits"),
        ({"q": torch.ones(5, 11, dtype=torch.int64)}, TypeError, "floating-point dtype"),
        (
            {"q": torch.full((5, 11), 0.2)},
            ValueError,
            "must sum to 1, got 2.2 for target_probabilities[0]",
        ),
        ({"q": -torch.ones(5, 11)}, ValueError, "at target_probabilities[0, 0]"),
        ({"q": torch.full((5, 11), math.nan)}, ValueError, "must be at least 0, got nan"),
        ({"q": torch.full((5, 11), 1 / 11).requires_grad_()}, ValueError, "pass target_prob"),
        ({"logits": torch.full((5, 11), INF)}, ValueError, "got inf at logits[0, 0]"),
        ({"logits": torch.full((5, 11), -INF)}, ValueError, "not all -inf"),
    ],
)
def test_bad_soft_targets(change, kind, message):
    logits, _, table = problem(20)
    arguments = {"logits": logits, "q": torch.full((5, 11), 1 / 11), "by": "kernel", **change}
    with raises(kind, message):
        soft_emo_loss(arguments["logits"], arguments["q"], table, by=arguments["by"])
    padded = UnitEmbeddings(table, padding=[4])
    with raises(ValueError, "must be 0 on padding rows"):
        soft_emo_loss(logits, torch.full((5, 11), 1 / 11), padded)


# --------------------------------------------------------------------------------------- modules


def test_modules():
    logits, targets, table = problem(21)
    hidden, weight, classes, wide = linear_problem()
    mixture = MIXTURES["fixed"]
    assert EMOLoss(table)(logits, targets) == emo_loss(logits, targets, table)
    mixed = emo_mixture_loss(logits, targets, table, mixture=mixture, reduction="sum")
    module = EMOLoss(table, mixture=mixture, reduction="sum")
    assert module(logits, targets) == mixed
    assert "reduction='sum'" in repr(module)
    kernel = KernelScoreLoss(UnitEmbeddings(table))
    assert kernel(logits, targets) == kernel_score_loss(logits, targets, table)
    assert "reduction='mean'" in repr(kernel)
    linear = LinearEMOLoss(wide, mixture=mixture)
    want = linear_emo_loss(hidden, weight, classes, wide, mixture=mixture)
    assert torch.allclose(linear(hidden, weight, classes), want)
    assert "fixed" in repr(linear)
    for kind in (EMOLoss, KernelScoreLoss, LinearEMOLoss):
        with raises(ValueError, "reduction must be"):
            kind(table, reduction="max")
    for kind in (EMOLoss, LinearEMOLoss):
        with raises(TypeError, "mixture must be a Mixture"):
            kind(table, mixture="emo1")


@pytest.mark.parametrize("padding", [(), (4,)], ids=["all", "padding"])
def test_memory_without_values_is_refused(padding):
    """Neither to_empty nor a state dict fills the rows; what is in them must not be used."""
    logits, targets, table = problem(21)
    targets[targets == 4] = 3
    hidden, weight, classes, wide = linear_problem()
    modules = [
        (EMOLoss, table, (logits, targets)),
        (KernelScoreLoss, table, (logits, targets)),
        (LinearEMOLoss, wide, (hidden, weight, classes.masked_fill(classes == 4, 3))),
    ]
    for kind, rows, arguments in modules:
        right = kind(UnitEmbeddings(rows, padding=padding))
        want = right(*arguments)
        empty = kind(UnitEmbeddings(rows.to("meta"), padding=padding))
        for module in (empty, kind(UnitEmbeddings(rows, padding=padding))):
            module.to_empty(device="cpu").load_state_dict(right.state_dict())
            with torch.no_grad():
                module.embeddings.rows.fill_(7)  # memory may hold anything, also what it held
            module._apply(lambda tensor: tensor)
            with raises(RuntimeError, "must hold rows of length one, got memory that to_empty()"):
                module(*arguments)
            with raises(RuntimeError, "assign UnitEmbeddings(embeddings) anew"):
                module.embeddings.cost_moments()
            module.embeddings = UnitEmbeddings(rows, padding=padding)
            assert module(*arguments) == want
        moved = kind(UnitEmbeddings(rows, padding=padding)).to(torch.bfloat16)
        assert torch.allclose(moved(*arguments), want, rtol=0.05)
        filled = kind(UnitEmbeddings(rows, padding=padding)).to_empty(device="cpu")
        filled.embeddings.rows.copy_(right.embeddings.rows)
        if padding:
            filled.embeddings.is_padding.copy_(right.embeddings.is_padding)
        assert filled(*arguments) == want


def test_uninitialised_rows_are_noticed():
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        module = EMOLoss(torch.eye(5, device="meta")).to_empty(device="cpu")
    finally:
        torch.use_deterministic_algorithms(False)
    with raises(RuntimeError, "got memory that to_empty()"):
        module(torch.zeros(2, 5), torch.tensor([0, 2]))


def test_integers_of_any_kind():
    logits, targets, table = problem(21)
    targets[1] = 7
    hidden, weight, classes, wide = linear_problem()
    for seven in (np.int64(7), np.uint8(7), torch.tensor(7)):
        want = emo_loss(logits, targets, table, ignore_index=7)
        assert emo_loss(logits, targets, table, ignore_index=seven) == want
        assert EMOLoss(table, ignore_index=seven)(logits, targets) == want
        want = kernel_score_loss(logits, targets, table, ignore_index=7)
        assert KernelScoreLoss(table, ignore_index=seven)(logits, targets) == want
    minus = np.int32(-100)
    want = linear_emo_loss(hidden, weight, classes, wide)
    assert linear_emo_loss(hidden, weight, classes, wide, ignore_index=minus) == want
    assert UnitEmbeddings(table, padding=np.array([2, 5])).is_padding.nonzero().tolist() == [
        [2],
        [5],
    ]
    for bad in (7.0, True, "7"):
        for kind in (EMOLoss, KernelScoreLoss, LinearEMOLoss):
            with raises(TypeError, "ignore_index must be an int, got"):
                kind(table, ignore_index=bad)
        with raises(TypeError, "ignore_index must be an int, got"):
            emo_loss(logits, targets, table, ignore_index=bad)
        with raises(TypeError, "padding must be an int, got"):
            UnitEmbeddings(table, padding=[bad])


# ------------------------------------------------------------------------------------ experiment


def test_corpus(tmp_path):
    first = "The King's men, the king; THE END!  " * 10
    second = "A rare word. " * 10
    path = tmp_path / "plays.txt.gz"
    path.write_bytes(gzip.compress(f"{first}\f{second}".encode("ascii")))
    corpus = experiment.read_corpus(path, size=5)
    # three times as often as any other word; then by frequency and alphabet
    assert corpus.words == ("<unk>", "the", "!", ",", ".")
    assert [len(part) for part in corpus[1:]] == [80 + 32, 10 + 4, 10 + 4]
    assert corpus.train[:10].tolist() == [1, 0, 0, 3, 1, 0, 0, 1, 0, 2]
    assert corpus.test[10:].tolist() == [0, 0, 0, 4]
    with raises(ValueError, "size must be at least 2, got 1"):
        experiment.read_corpus(path, size=1)


def test_neighbour_embeddings():
    text = torch.tensor([0, 2, 1, 3, 0, 2, 1, 3] * 20)
    counts = np.zeros((4, 4))
    for i in range(len(text)):
        for j in range(len(text)):
            if 0 < abs(i - j) <= 1:
                counts[text[i], text[j]] += 1
    expected = np.maximum(
        np.log(np.maximum(counts, 1e-300) * counts.sum()
               / np.outer(counts.sum(1), counts.sum(1))), 0
    )  # fmt: skip
    rows = experiment.neighbour_embeddings(text, 4, window=1, width=4)
    left, values, _ = np.linalg.svd(expected)
    want = left * np.sqrt(values)
    assert torch.allclose(rows @ rows.T, torch.tensor(want @ want.T))


def test_language_model_is_causal_and_learns():
    torch.manual_seed(0)
    model = experiment.LanguageModel(9, context=8, width=16, heads=2, layers=2).double()
    text = torch.tensor([1, 2, 3, 4] * 100)
    unit = UnitEmbeddings(torch.eye(9).double())
    one, other = text[:8].clone().unsqueeze(0), text[:8].clone().unsqueeze(0)
    other[0, 5:] = 0
    assert torch.allclose(model(one)[0, :5], model(other)[0, :5])
    assert not torch.allclose(model(one)[0, 5:], model(other)[0, 5:])
    before = experiment.measure(model, text, unit)

    def loss(z, t):
        return functional.cross_entropy(z.flatten(0, 1), t.flatten())

    experiment.train(model, text, loss, steps=60, batch=4, rate=1e-2, seed=0)
    after = experiment.measure(model, text, unit)
    assert before.perplexity > 5
    assert after.perplexity < 1.5
    assert after.cost < 0.3 < before.cost
    assert after.accuracy > 0.95
    assert after.entropy < before.entropy
    drawn = experiment.sample(model, text[:8].view(1, 8), length=8, seed=0)
    assert drawn.tolist() == [[1, 2, 3, 4] * 2]


def test_variety():
    words, pairs, entropy = experiment.variety(torch.tensor([[1, 2, 1, 2], [1, 2, 3, 3]]))
    assert (words, pairs) == (3 / 8, 4 / 6)
    assert entropy == pytest.approx(-2 * 3 / 8 * math.log(3 / 8) - math.log(1 / 4) / 4)


def test_one_bad_row_among_good_ones_is_refused():
    """With reduction "none" the other losses are finite: one that is not is enough."""
    hidden = torch.ones(3, 2)
    hidden[1, 0] = math.nan
    unit = UnitEmbeddings(torch.eye(4))
    with raises(ValueError, "hidden must be finite"):
        linear_emo_loss(
            hidden, torch.ones(4, 2), torch.tensor([0, 1, 2]), embeddings=unit, reduction="none"
        )


def test_one_target_on_padding_among_good_ones_is_refused():
    """One row of several, on one padding row of two, is enough."""
    unit = UnitEmbeddings(torch.eye(4), padding=[2, 3])
    soft = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.25, 0.25, 0]])
    with raises(ValueError, "must be 0 on padding rows of the embeddings, got 0.25"):
        soft_emo_loss(torch.zeros(2, 4), soft, embeddings=unit)
