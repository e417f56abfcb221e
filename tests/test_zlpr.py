"""ZLPR, dense and sparse: the battery on every path, errors, derivatives, transforms, training."""

import functools
import math
import re
import shutil
import subprocess
import sys

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from lib import _checks, _rows
from lib.zlpr import SparseZLPRLoss, ZLPRLoss, _kernels, sparse_zlpr_loss, zlpr_loss
from tests import battery

INF = math.inf
CASES = {case.name: case for case in battery.cases()}
VALID = {name: case for name, case in CASES.items() if not case.refused}


def raises(kind, message):
    return pytest.raises(kind, match=re.escape(message))


@pytest.fixture
def at_once():
    """Small inputs with narrow scores take the path that is meant for them."""


@pytest.fixture
def in_parts(monkeypatch):
    """Every loss passes through a buffer, as if its input were large."""
    monkeypatch.setattr(_kernels, "_AT_ONCE_CELLS", 0)
    # Large inputs are not narrow where some cells do not count.
    narrow = _rows.counting_if_narrow

    def all_or_none(rows, mask):
        found, counts = narrow(rows, mask)
        return found and counts is None, mask

    monkeypatch.setattr(_kernels, "counting_if_narrow", all_or_none)


@pytest.fixture
def by_table(monkeypatch, in_parts):
    """Every loss takes the path for many positives, the one of dense losses on a GPU."""
    monkeypatch.setattr(_kernels, "_LISTED_SHARE", -1)


@pytest.fixture
def by_lists(monkeypatch, in_parts):
    """Every loss takes the path for few positives."""
    monkeypatch.setattr(_kernels, "_LISTED_SHARE", INF)


@pytest.fixture
def by_shifted_table(monkeypatch, by_table):
    """No score is narrow."""
    monkeypatch.setattr(_kernels, "counting_if_narrow", lambda rows, mask: (False, mask))


@pytest.fixture
def by_shifted_lists(monkeypatch, by_lists):
    """No score is narrow."""
    monkeypatch.setattr(_kernels, "counting_if_narrow", lambda rows, mask: (False, mask))


PATHS = ["by_table", "by_lists", "by_shifted_table", "by_shifted_lists"]


@pytest.fixture
def by_formula(monkeypatch):
    """No value is readable: the path of compiled graphs and transforms."""
    monkeypatch.setattr(_checks, "values_readable", lambda *tensors: False)


# --------------------------------------------------------------------------------------- battery


@pytest.mark.parametrize("loss", battery.OURS, ids=lambda loss: loss.name)
@pytest.mark.parametrize("name", CASES)
def test_battery(loss, name):
    outcome = battery.meet(loss, CASES[name])
    assert outcome.verdict == "right", outcome


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("loss", [battery.DENSE, battery.SPARSE], ids=lambda loss: loss.name)
@pytest.mark.parametrize("name", CASES)
def test_battery_on_every_path(request, path, loss, name):
    request.getfixturevalue(path)
    outcome = battery.meet(loss, CASES[name])
    assert outcome.verdict == "right", outcome


@pytest.mark.parametrize("loss", [battery.DENSE, battery.SPARSE], ids=lambda loss: loss.name)
@pytest.mark.parametrize("name", VALID)
def test_battery_by_formula(by_formula, loss, name):
    if VALID[name].refused_as_list and loss.listed:
        pytest.skip("refused; without a look at values it gives NaN")
    outcome = battery.meet(loss, VALID[name])
    assert outcome.verdict == "right", outcome


@pytest.mark.cuda
@pytest.mark.parametrize("loss", battery.OURS, ids=lambda loss: loss.name)
def test_battery_on_cuda(loss):
    verdicts = {name: battery.meet(loss, case.to("cuda")).verdict for name, case in CASES.items()}
    assert set(verdicts.values()) == {"right"}, verdicts


def published_sparse(logits, positives, mask, reduction):
    """Transcribe the published sparse form, which subtracts (kexue 8888)."""
    lead = torch.zeros_like(logits[..., :1])
    everything = torch.cat([logits, lead], -1).logsumexp(-1)
    scores = logits.gather(-1, positives.clamp(min=0)).masked_fill(positives < 0, -INF)
    gone = (scores.logsumexp(-1) - everything).exp()
    negatives = everything + torch.log((1 - gone).clamp(1e-7, 1))
    pull = (-scores).masked_fill(positives < 0, -INF)
    losses = negatives + torch.cat([pull, lead], -1).logsumexp(-1)
    return {"none": losses, "mean": losses.mean(), "sum": losses.sum()}[reduction]


@pytest.mark.parametrize(
    ("name", "verdict"),
    [
        ("normal float32, few positives", "right"),
        ("trained to ±20 float32, 0.25 positive", "wrong"),
        ("one positive at 15, 1000 negatives at -20", "wrong"),
        ("repeated mentions", "wrong"),
        ("scores to ±60000 float16, 0.3 positive", "non-finite"),
        ("gold at -inf, 0.2 positive", "not refused"),
    ],
)
def test_battery_tells_a_published_form_apart(name, verdict):
    loss = battery.Loss(
        "published", published_sparse, battery.listed, battery.zlpr_row, masks=False
    )
    assert battery.meet(loss, CASES[name]).verdict == verdict


def test_battery_sees_gradients_reductions_and_cells_that_do_not_count():
    case = VALID["masked cells, 0.2 positive"]

    def leaking(logits, labels, mask, reduction):
        extra = logits * 1e-9
        extra = (extra - extra.detach()).sum()
        return zlpr_loss(logits, labels, mask=mask, reduction=reduction) + extra

    def unlike(logits, labels, mask, reduction):
        factor = 1 + (reduction == "mean")
        return zlpr_loss(logits, labels, mask=mask, reduction=reduction) * factor

    def refusing(logits, labels, mask, reduction):
        raise ValueError("no")

    for call, note in (
        (leaking, "gradient on a cell"),
        (unlike, "reduction='mean' disagrees"),
        (refusing, "no"),
    ):
        loss = battery.Loss("bad", call, battery.DENSE.labels, battery.zlpr_row)
        outcome = battery.meet(loss, case)
        assert outcome.verdict != "right"
        assert any(note in entry for entry in outcome.notes)


@pytest.mark.parametrize("scores", [[-20.0, -21.5, 18.0], [3.0, -4.0, 2.0], [1e4, -1e4, 1e4 - 1]])
@pytest.mark.parametrize("targets", [[False, False, True], [True, True, False], [False] * 3])
def test_reference_against_fifty_digits(scores, targets):
    with mpmath.workdps(50):
        pairs = list(zip(map(mpmath.mpf, scores), targets, strict=True))
        down = 1 + mpmath.fsum(mpmath.exp(s) for s, y in pairs if not y)
        up = 1 + mpmath.fsum(mpmath.exp(-s) for s, y in pairs if y)
        value = mpmath.log(down) + mpmath.log(up)
        cells = [-mpmath.exp(-s) / up if y else mpmath.exp(s) / down for s, y in pairs]
        ours, slopes = battery.zlpr_row(scores, targets)
        assert abs(ours - value) <= 4e-16 * value
        for slope, cell in zip(slopes, cells, strict=True):
            assert abs(slope - cell) <= 1e-14 * abs(cell) + mpmath.mpf(10) ** -300


def test_the_table_of_the_battery(capsys, monkeypatch):
    few = [VALID["ties"], VALID["one class"]]
    monkeypatch.setattr(battery, "cases", lambda: iter(few))
    assert battery.main() == 0
    assert "sparse_zlpr_loss: 0 wrong, 0 non-finite (2 right)" in capsys.readouterr().out
    monkeypatch.setattr(battery.DENSE.__class__, "row", None, raising=False)
    broken = battery.Loss("off by 1", lambda *a: 1 + battery.DENSE.call(*a), *_dense_rest())
    monkeypatch.setattr(battery, "OURS", (broken,))
    assert battery.main() == 1
    assert "off by 1: 2 wrong" in capsys.readouterr().out


def _dense_rest():
    return battery.DENSE.labels, battery.zlpr_row


# ------------------------------------------------------------------------------------ refused input


def bad_cells():
    """Yield logits, bool targets, mask and the two messages' halves for each kind of bad value."""
    logits, targets = torch.zeros(2, 3, 40), torch.zeros(2, 3, 40, dtype=torch.bool)
    targets[1, 2, 7] = True
    mask = torch.ones(3, 40, dtype=torch.bool)
    mask[2, 7] = False
    yield logits, targets, mask, "a positive must be on a cell that counts", "mask[1, 2, 7] = False"
    low = logits.clone()
    low[1, 2, 7] = -INF
    yield low, targets, None, "a positive must have a finite logit", "logits[1, 2, 7] = -inf"
    for value in (INF, math.nan):
        for cell in (7, 8):
            bad = logits.clone()
            bad[1, 2, cell] = value
            place = f"got {value} at logits[1, 2, {cell}]"
            rule = "logits must be finite or -inf where they count"
            yield bad, targets, None, rule, place
            hidden = bad.clone()
            hidden[0, 0, 3] = value
            yield hidden, targets, torch.arange(40) != 3, rule, place


@pytest.mark.parametrize(("logits", "targets", "mask", "rule", "values"), list(bad_cells()))
@pytest.mark.parametrize("form", ["bool", "float", "sparse"])
@pytest.mark.parametrize("path", ["at_once", "by_table", "by_lists"])
def test_bad_cells_are_named(request, path, form, logits, targets, mask, rule, values):
    request.getfixturevalue(path)
    if form != "sparse" and rule.endswith("on a cell that counts"):
        pytest.skip("a table says nothing of cells that do not count")
    if form == "sparse":
        positives = torch.full((2, 3, 2), -1)
        positives[1, 2, 1] = 7
        with raises(ValueError, rule) as caught:
            sparse_zlpr_loss(logits, positives, mask=mask)
        gold = "positives[1, 2, 1] = 7"
    else:
        labels = targets.float() if form == "float" else targets
        with raises(ValueError, rule) as caught:
            zlpr_loss(logits, labels, mask=mask)
        gold = "targets[1, 2, 7] = 1"
    assert values in str(caught.value)
    assert (gold in str(caught.value)) == ("positive" in rule)


@pytest.mark.parametrize("value", [0.25, 1 + 1e-6, -1.0, math.nan])
@pytest.mark.parametrize("width", [5, 300_000])
def test_soft_targets_are_refused(value, width):
    targets = torch.zeros(2, width)
    targets[1, 3] = value
    with raises(ValueError, "targets must hold only 0 and 1, got") as caught:
        zlpr_loss(torch.zeros(2, width), targets)
    assert "at targets[1, 3]" in str(caught.value)


@pytest.mark.parametrize("unknown", [-1.0, math.nan, 0.5, 1.0])
@pytest.mark.parametrize("width", [3, 300_000])
def test_targets_of_masked_cells_are_not_looked_at(unknown, width):
    logits, targets = torch.zeros(2, width), torch.zeros(2, width)
    targets[:, 0] = 1
    mask = torch.ones(2, width, dtype=torch.bool)
    mask[0, 2] = False
    expected = zlpr_loss(logits, targets, mask=mask, reduction="none")
    targets[0, 2] = unknown
    assert torch.equal(zlpr_loss(logits, targets, mask=mask, reduction="none"), expected)
    whole = -1 if math.isnan(unknown) else round(unknown)
    integers = targets.nan_to_num(whole).long()
    assert torch.equal(zlpr_loss(logits, integers, mask=mask, reduction="none"), expected)
    with raises(ValueError, "hold only 0 and 1 where they count, got -1.0 at targets[1, 2]"):
        zlpr_loss(logits, targets.index_fill(1, torch.tensor([2]), -1), mask=mask)


@pytest.mark.parametrize("index", [-2, 4, 2**40])
def test_index_out_of_range(index):
    positives = torch.tensor([[0, -1], [1, index]])
    message = f"positives must be classes in [0, 4) or -1 as filler, got {index} at positives[1, 1]"
    with raises(ValueError, message):
        sparse_zlpr_loss(torch.zeros(2, 4), positives)


@pytest.mark.parametrize("function", [zlpr_loss, sparse_zlpr_loss])
def test_shapes_dtypes_and_reduction_are_checked(function):
    logits, labels = torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.int64)
    with raises(TypeError, "logits must have a floating-point dtype, got torch.int64"):
        function(labels, labels)
    with raises(ValueError, "expected"):
        function(logits, labels[:1])
    with raises(TypeError, "mask must have dtype torch.bool, got torch.int64"):
        function(logits, labels, mask=labels)
    with raises(ValueError, "reduction must be 'none', 'mean' or 'sum', got 'average'"):
        function(logits, labels, reduction="average")
    assert function(logits[:0], labels[:0]).item() == 0


@pytest.mark.parametrize("module", [ZLPRLoss, SparseZLPRLoss])
def test_modules_check_their_option(module):
    with raises(ValueError, "reduction must be 'none', 'mean' or 'sum', got 'max'"):
        module(reduction="max")


# ------------------------------------------------------------------------------- values and dtypes


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.data())
def test_dense_equals_sparse_at_random_sizes(data):
    rows, classes = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 70))
    share = data.draw(st.sampled_from([0.0, 0.02, 0.3, 1.0]))
    torch.manual_seed(data.draw(st.integers(0, 10**6)))
    logits = torch.randn(rows, classes, dtype=torch.float64, requires_grad=True)
    case = battery.Case("", logits, torch.rand(rows, classes) < share, repeated=True)
    dense = zlpr_loss(logits, case.targets, reduction="none")
    sparse = sparse_zlpr_loss(logits, battery.listed(case), reduction="none")
    torch.testing.assert_close(sparse, dense, rtol=1e-14, atol=0)
    upstream = torch.randn(rows, dtype=torch.float64)
    slopes = [torch.autograd.grad(loss, logits, upstream)[0] for loss in (dense, sparse)]
    torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-13, atol=0)


def test_no_room_for_positives():
    logits = torch.randn(3, 5)
    nothing = torch.zeros(3, 0, dtype=torch.int64)
    expected = zlpr_loss(logits, torch.zeros(3, 5))
    assert torch.equal(sparse_zlpr_loss(logits, nothing), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float16, torch.float64])
def test_any_real_dtype_of_targets(dtype):
    logits, targets = torch.randn(3, 50), torch.rand(3, 50) < 0.3
    assert torch.equal(zlpr_loss(logits, targets.to(dtype)), zlpr_loss(logits, targets))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_a_float32_loss_and_a_half_gradient(dtype):
    logits = torch.tensor([[6e4, -6e4]]).to(dtype).requires_grad_()
    for loss in (
        zlpr_loss(logits, torch.tensor([[False, True]])),
        sparse_zlpr_loss(logits, torch.tensor([[1]])),
    ):
        assert loss.dtype == torch.float32
        high, low = logits.tolist()[0]
        assert loss.item() == high - low > 65504
        (gradient,) = torch.autograd.grad(loss, logits)
        assert gradient.dtype == dtype
        assert gradient.tolist() == [[1, -1]]


def test_a_trained_row_keeps_the_digits_of_its_loss():
    logits = torch.full((1, 1001), -20.0)
    logits[0, 0] = 20.0
    loss = sparse_zlpr_loss(logits, torch.tensor([[0]]))
    exact = math.log1p(1000 * math.exp(-20)) + math.log1p(math.exp(-20))
    assert abs(loss.item() - exact) < 3e-7 * exact


def test_sum_of_nothing_is_zero_and_differentiable():
    logits = torch.zeros(0, 4, requires_grad=True)
    loss = zlpr_loss(logits, torch.zeros(0, 4), reduction="sum")
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.shape == (0, 4)


def test_inputs_are_left_alone_and_backward_can_be_repeated():
    logits = torch.randn(4, 64, requires_grad=True)
    targets = (torch.rand(4, 64) < 0.1).float()
    positives, mask = torch.tensor([[3, -1], [0, 0], [5, 1], [-1, 2]]), torch.ones(4, 64) > 0
    kept = [tensor.detach().clone() for tensor in (logits, targets, positives, mask)]
    for loss in (
        zlpr_loss(logits, targets, mask=mask),
        sparse_zlpr_loss(logits, positives, mask=mask),
    ):
        (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
        saved = first.clone()
        (second,) = torch.autograd.grad(loss, logits)
        assert torch.equal(first, saved)
        assert torch.equal(first, second)
    for before, after in zip(kept, (logits, targets, positives, mask), strict=True):
        assert torch.equal(before, after.detach())


def test_modules_call_the_functions():
    logits, targets = torch.randn(3, 6), torch.eye(6)[:3]
    positives, mask = torch.tensor([[0], [1], [2]]), torch.rand(3, 6) < 2
    for reduction in ("none", "mean", "sum"):
        dense, sparse = ZLPRLoss(reduction=reduction), SparseZLPRLoss(reduction=reduction)
        expected = zlpr_loss(logits, targets, reduction=reduction)
        assert torch.equal(dense(logits, targets, mask), expected)
        torch.testing.assert_close(sparse(logits, positives, mask), expected)
        assert repr(dense) == f"ZLPRLoss(reduction='{reduction}')"
        assert repr(sparse) == f"SparseZLPRLoss(reduction='{reduction}')"


# ------------------------------------------------------------------------------------- derivatives


def dense_and_sparse():
    """Yield the two losses as functions of (3, 20) logits alone, with a mask, padding, a repeat."""
    targets = torch.zeros(3, 20, dtype=torch.bool)
    targets[0, 4] = targets[1, 7] = targets[1, 2] = True
    positives = torch.tensor([[4, 4, -1], [7, -1, 2], [-1, -1, -1]])
    mask = torch.ones(20, dtype=torch.bool)
    mask[5] = False
    yield "dense", lambda logits: zlpr_loss(logits, targets, mask=mask, reduction="none")
    yield "sparse", lambda logits: sparse_zlpr_loss(logits, positives, mask=mask, reduction="none")


LOSSES = dict(dense_and_sparse())


def scores(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 20, generator=generator, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("path", ["at_once", *PATHS])
@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_first_and_second_derivatives_against_differences(request, path, loss):
    request.getfixturevalue(path)
    assert torch.autograd.gradcheck(loss, scores())
    assert torch.autograd.gradgradcheck(loss, scores())


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradient_is_the_same_whether_or_not_it_is_differentiated(by_lists, loss):
    logits = scores()
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (plain,) = torch.autograd.grad(loss(logits), logits, upstream)
    (again,) = torch.autograd.grad(loss(logits), logits, upstream, create_graph=True)
    torch.testing.assert_close(plain, again, rtol=1e-13, atol=0)
    assert again.requires_grad
    assert not plain.requires_grad


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_hessian_is_diagonal_minus_outer_in_each_group(loss):
    logits = scores()
    hessian = torch.func.hessian(lambda s: loss(s)[1])(logits.detach())[1, :, 1]
    gradient = torch.autograd.grad(loss(logits)[1], logits)[0][1]
    positive = torch.zeros(20, dtype=torch.bool)
    positive[[2, 7]] = True
    weights = gradient.abs()
    expected = torch.diag(weights) - torch.outer(weights, weights)
    expected[positive.unsqueeze(0) != positive.unsqueeze(1)] = 0
    torch.testing.assert_close(hessian, expected, rtol=1e-12, atol=1e-15)
    by_hand = torch.autograd.functional.hessian(lambda s: loss(s)[1], logits, vectorize=True)
    torch.testing.assert_close(by_hand[1, :, 1], hessian)


# --------------------------------------------------------------------------------------- transforms


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_torch_func(loss):
    logits = scores()
    (expected,) = torch.autograd.grad(loss(logits).sum(), logits)
    plain = logits.detach()
    torch.testing.assert_close(torch.func.grad(lambda s: loss(s).sum())(plain), expected)
    jacobian = torch.func.jacrev(loss)(plain)
    torch.testing.assert_close(jacobian.sum(0), expected)
    torch.testing.assert_close(torch.func.jacfwd(loss)(plain), jacobian)
    stack = torch.stack([plain, 2 * plain, -plain])
    torch.testing.assert_close(torch.vmap(loss)(stack), torch.stack([loss(s) for s in stack]))
    each = torch.vmap(torch.func.grad(lambda s: loss(s).sum()))(stack)
    torch.testing.assert_close(each[0], expected)


def test_vmap_over_labels():
    logits, targets = scores().detach(), torch.rand(3, 20) < 0.3
    per_row = torch.vmap(lambda s, y: zlpr_loss(s, y))(logits, targets)
    torch.testing.assert_close(per_row, zlpr_loss(logits, targets, reduction="none"))
    positives = torch.tensor([[0, 3], [-1, 2], [5, 5]])
    per_row = torch.vmap(lambda s, p: sparse_zlpr_loss(s, p))(logits, positives)
    torch.testing.assert_close(per_row, sparse_zlpr_loss(logits, positives, reduction="none"))


def _call(loss, *arguments):
    return loss(*arguments)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(mode):
    plain, other = scores().detach(), scores(1).detach()
    targets = torch.rand(3, 20) < 0.3
    positives = torch.tensor([[4, 4, -1], [7, -1, 2], [-1, -1, -1]])
    for loss, labels in ((zlpr_loss, targets), (sparse_zlpr_loss, positives)):
        # make_fx counts the arguments of the signature: the options must not be among them.
        graph = make_fx(functools.partial(_call, loss), tracing_mode=mode)(plain, labels)
        torch.testing.assert_close(graph(other, labels), loss(other, labels))


def trace_whole(loss, backend):
    torch.compiler.reset()
    return torch.compile(loss, fullgraph=True, backend=backend)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_compile_without_graph_breaks(loss):
    compiled = trace_whole(loss, "aot_eager")
    logits = scores()
    value = compiled(logits)
    torch.testing.assert_close(value, loss(logits))
    upstream = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(value, logits, upstream)
    (expected,) = torch.autograd.grad(loss(logits), logits, upstream)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.skipif(
    shutil.which("g++") is None and shutil.which("clang++") is None, reason="needs a C++ compiler"
)
@pytest.mark.skipif(
    " " in torch.__path__[0],
    reason="PyTorch's own call of the linker breaks at a space in the path of its libraries",
)
def test_compile_to_machine_code():
    logits, positives = torch.randn(5, 33, requires_grad=True), torch.tensor([[3, -1]] * 5)
    compiled = trace_whole(sparse_zlpr_loss, "inductor")
    (gradient,) = torch.autograd.grad(compiled(logits, positives), logits)
    (expected,) = torch.autograd.grad(sparse_zlpr_loss(logits, positives), logits)
    torch.testing.assert_close(gradient, expected)


def test_bad_values_become_nan_where_none_can_raise():
    logits, ok = torch.zeros(4, 3), torch.zeros(4, 3)
    ok[:, 0] = 1
    soft, low, high = ok.clone(), logits.clone(), logits.clone()
    soft[1, 1], low[1, 0], high[1, 2] = 0.5, -INF, INF
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[1, 1] = False
    expected = [False, True, False, False]
    top = logits.clone()
    top[1, 0] = INF
    bad = [(scores_, ok, None) for scores_ in (low, high, top)]
    bad += [(logits, soft, None)]
    for scores_, targets, keep in bad:

        def loss(s, y=targets, m=keep):
            return zlpr_loss(s, y, mask=m, reduction="none")

        assert trace_whole(loss, "eager")(scores_).isnan().tolist() == expected
        assert torch.func.jvp(loss, (scores_,), (logits,))[0].isnan().tolist() == expected
    for index in (3, -2, 2**40, 1):  # the last is a class, but masked
        positives = torch.tensor([[0], [index], [1], [-1]])

        def listed(s, p=positives):
            return sparse_zlpr_loss(s, p, reduction="none", mask=mask)

        assert trace_whole(listed, "eager")(logits).isnan().tolist() == expected
        assert torch.func.jvp(listed, (logits,), (logits,))[0].isnan().tolist() == expected


def test_shapes_are_checked_in_a_compiled_graph_too():
    compiled = trace_whole(zlpr_loss, "aot_eager")
    with pytest.raises(Exception, match="targets must have the shape of logits"):
        compiled(torch.zeros(2, 3), torch.zeros(2, 4))


def test_meta_tensors_have_shapes():
    logits = torch.zeros(4, 9, device="meta", requires_grad=True)
    loss = zlpr_loss(logits, torch.zeros(4, 9, device="meta"), reduction="none")
    assert loss.shape == (4,)
    assert torch.autograd.grad(loss.sum(), logits)[0].shape == (4, 9)


def test_autocast():
    torch.manual_seed(0)
    layer, inputs = torch.nn.Linear(8, 40), torch.randn(4, 8)
    targets = torch.rand(4, 40) < 0.2
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(inputs)
        loss = zlpr_loss(logits, targets)
    loss.backward()
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert torch.equal(loss, zlpr_loss(logits.float(), targets))
    assert layer.weight.grad.dtype == torch.float32
    assert layer.weight.grad.isfinite().all()


# ------------------------------------------------------------------------------------------ in use


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_training_follows_the_reference(form):
    """A linear model takes the same 40 steps with this loss and with the plain formula."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 10, generator=generator, dtype=torch.float64)
    truth = torch.randn(10, 30, generator=generator, dtype=torch.float64)
    targets = inputs @ truth > 4
    positives = battery.listed(battery.Case("", inputs @ truth, targets, repeated=True))

    def plain(logits):
        zero = torch.zeros_like(logits[:, :1])
        down = torch.cat([logits.masked_fill(targets, -INF), zero], 1).logsumexp(1)
        up = torch.cat([(-logits).masked_fill(~targets, -INF), zero], 1).logsumexp(1)
        return (down + up).mean()

    def ours(logits):
        return (
            zlpr_loss(logits, targets) if form == "dense" else sparse_zlpr_loss(logits, positives)
        )

    ends = []
    for loss in (plain, ours):
        weight = torch.zeros(10, 30, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([weight], lr=0.1)
        for _ in range(40):
            optimiser.zero_grad()
            value = loss(inputs @ weight)
            value.backward()
            optimiser.step()
        ends.append((weight.detach(), value.item()))
    torch.testing.assert_close(ends[1][0], ends[0][0], rtol=0, atol=1e-9)
    assert ends[1][1] < 0.8 * plain(torch.zeros(64, 30)).item()


def test_import_needs_nothing_beyond_torch():
    code = (
        "import sys, torch; before = set(sys.modules); import lib.zlpr; "
        "print(sorted(name for name in set(sys.modules) - before if not name.startswith('lib')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
