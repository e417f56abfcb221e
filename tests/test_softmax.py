"""Smooth maxima: values and gradients against 50 digits, extremes, errors, derivatives, memory."""

import itertools
import math
import re
import shutil

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.classification import binary_f1_score

from benchmarks import measure
from lib import _checks, _rows
from lib.softmax import (
    inclusion_probabilities,
    log1mexp,
    smooth_f1,
    smooth_max,
    streaming_logsumexp,
    subset_logsumexp,
)

INF = math.inf
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def raises(kind, message):
    return pytest.raises(kind, match=re.escape(message))


@pytest.fixture
def by_formula(monkeypatch):
    """No value is readable: the path of compiled graphs and transforms."""
    monkeypatch.setattr(_checks, "values_readable", lambda *tensors: False)


def random(shape, scale, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


# -------------------------------------------------------------------------------------- smooth_max


def reference(scores, counts, gamma):
    """Value and gradient of one row in 50 digits."""
    with mpmath.workdps(50):
        kept = [mpmath.mpf(s) for s, c in zip(scores, counts, strict=True) if c and s != -INF]
        if not kept:
            return -INF, [0.0] * len(scores)
        top = max(kept)
        terms = [
            mpmath.exp(mpmath.mpf(gamma) * (mpmath.mpf(s) - top)) if c and s != -INF else 0
            for s, c in zip(scores, counts, strict=True)
        ]
        total = mpmath.fsum(terms)
        value = top + mpmath.log(total) / mpmath.mpf(gamma)
        return float(value), [float(term / total) for term in terms]


def assert_right(scores, mask, gamma, call):
    """Value and gradient, under a random upstream gradient, to a few roundings."""
    leaf = scores.detach().requires_grad_()
    values = call(leaf, mask, gamma)
    upstream = random(values.shape, 1.0, seed=1).to(values.dtype)
    (gradient,) = torch.autograd.grad(values, leaf, upstream)
    assert gradient.dtype == scores.dtype
    assert values.dtype == torch.promote_types(scores.dtype, torch.float32)
    unit, given_unit = torch.finfo(values.dtype), torch.finfo(scores.dtype)
    for row in range(scores.shape[0]):
        counts = [True] * scores.shape[1] if mask is None else mask[row].tolist()
        value, weights = reference(scores[row].double().tolist(), counts, gamma)
        n = max(sum(counts), 1)
        size = max(abs(value), math.log(n) / gamma) if value != -INF else 0.0
        got = values[row].item()
        assert got == value or abs(got - value) <= 4 * unit.eps * size, (row, got, value)
        up = upstream[row].item()
        for cell, weight in enumerate(weights):
            depth = -math.log(max(weight, unit.tiny))
            rounding = (6 + math.log2(n) / 2 + 2 * depth) * unit.eps + given_unit.eps
            floor = max(unit.tiny, given_unit.smallest_normal * given_unit.eps) * 2
            error = abs(gradient[row, cell].item() - weight * up)
            assert error <= rounding * abs(weight * up) + floor, (row, cell, error, weight)


def cases():
    for dtype in DTYPES:
        short = str(dtype).removeprefix("torch.")
        yield f"ordinary {short}", random((4, 60), 2.0, dtype), None, 1.0
        yield f"sharp {short}", random((4, 60), 2.0, dtype), None, 30.0
        yield f"flat {short}", random((4, 60), 2.0, dtype), None, 0.01
        yield f"wide {short}", random((4, 60), 1e4, dtype), None, 1.0
        yield f"ties at 1e4 {short}", torch.full((2, 5), 1e4, dtype=dtype), None, 1.0
        yield f"ties at -1e4 {short}", torch.full((2, 5), -1e4, dtype=dtype), None, 3.0
    scores = random((6, 41), 3.0, torch.float32)
    mask = torch.rand(6, 41, generator=torch.Generator().manual_seed(2)) < 0.5
    junk = torch.where(mask, scores, torch.tensor([math.nan, INF, -INF]).repeat(14)[:41])
    gone = mask.clone()
    gone[2] = False
    yield "masked", scores, mask, 2.0
    yield "junk under the mask", junk, mask, 1.0
    yield "a row without a counting score", junk.masked_fill(~mask, INF), gone, 1.0
    yield "minus infinity", scores.masked_fill(~mask, -INF), None, 1.0
    yield "a row all minus infinity", scores.masked_fill(~gone, -INF), None, 0.1
    yield "everything minus infinity", torch.full((2, 3), -INF), None, 1.0
    yield "one score", scores[:, :1], None, 5.0
    yield "near the largest float32", torch.sign(scores) * 1e38, None, 1.0
    yield "gamma 1e30", scores, mask, 1e30
    yield "gamma 1e-30", scores, mask, 1e-30
    yield "near 1e4", 1e4 + scores, mask, 1.0


CASES = {name: rest for name, *rest in cases()}


def by_library(scores, mask, gamma):
    return smooth_max(scores, gamma=gamma, mask=mask)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name):
    assert_right(*CASES[name], by_library)


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_by_formula(by_formula, name):
    assert_right(*CASES[name], by_library)


@pytest.mark.cuda
def test_value_and_gradient_on_cuda():
    for scores, mask, gamma in CASES.values():
        assert_right(scores.cuda(), None if mask is None else mask.cuda(), gamma, by_library)


def by_torch(scores, mask, gamma):
    scaled = scores * gamma
    if mask is not None:
        scaled = scaled.masked_fill(~mask, -INF)
    return torch.logsumexp(scaled.to(torch.promote_types(scores.dtype, torch.float32)), -1) / gamma


@pytest.mark.parametrize("name", ["ties at 1e4 float32", "a row all minus infinity", "near 1e4"])
def test_the_check_tells_the_obvious_composition_apart(name):
    with pytest.raises(AssertionError):
        assert_right(*CASES[name], by_torch)
    assert_right(*CASES["ordinary float32"], by_torch)


@pytest.mark.parametrize("cells", [1, 100, 1 << 17])
def test_chunks_of_rows(monkeypatch, cells):
    monkeypatch.setattr(_rows, "CHUNK_CELLS", cells)
    scores, mask, gamma = CASES["masked"]
    assert_right(scores, mask, gamma, by_library)
    assert_right(scores.bfloat16(), mask, gamma, by_library)


@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2, -3])
def test_any_dimension_in_any_order_of_memory(dim):
    scores = random((3, 4, 5), 2.0).transpose(0, 2)[:, ::2]
    mask = torch.rand(5, 2, 1, generator=torch.Generator().manual_seed(3)) < 0.6
    leaf = scores.detach().requires_grad_()
    values = smooth_max(leaf, mask=mask, dim=dim)
    other = scores.detach().requires_grad_()
    expected = torch.logsumexp(other.masked_fill(~mask, -INF).movedim(dim, -1), -1)
    assert torch.equal(values.isinf(), expected.isinf())
    torch.testing.assert_close(values, expected, rtol=1e-14, atol=1e-14)
    values.masked_fill(values.isinf(), 0).sum().backward()
    expected.masked_fill(expected.isinf(), 0).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad.nan_to_num(0), rtol=1e-13, atol=1e-14)


def test_no_rows_and_one_dimension():
    assert smooth_max(torch.zeros(0, 3)).shape == (0,)
    assert smooth_max(torch.zeros(3, 0, 2), dim=0).shape == (0, 2)
    assert smooth_max(torch.zeros(4)).shape == ()


@pytest.mark.parametrize(
    ("kind", "message", "call"),
    [
        (TypeError, "scores must be a torch.Tensor, got list", lambda: smooth_max([1.0])),
        (
            TypeError,
            "scores must have a floating-point dtype, got torch.int64",
            lambda: smooth_max(torch.tensor([1])),
        ),
        (
            IndexError,
            "dim must be a dimension of scores, got 1 for shape (3,)",
            lambda: smooth_max(torch.zeros(3), dim=1),
        ),
        (
            IndexError,
            "dim must be a dimension of scores, got -1 for shape ()",
            lambda: smooth_max(torch.tensor(1.0)),
        ),
        *(
            (
                TypeError,
                f"dim must be an int, got {type(dim).__name__}",
                lambda dim=dim: smooth_max(torch.zeros(2, 3), dim=dim),
            )
            for dim in (None, (0, 1), 1.0, True)
        ),
        (
            ValueError,
            "scores must hold at least 1 entry along dim -1, got shape (2, 0)",
            lambda: smooth_max(torch.zeros(2, 0)),
        ),
        (
            ValueError,
            "mask must broadcast to the shape of scores, expected (2, 3), got (2,)",
            lambda: smooth_max(torch.zeros(2, 3), mask=torch.ones(2, dtype=torch.bool)),
        ),
        (
            TypeError,
            "mask must have dtype torch.bool, got torch.float32",
            lambda: smooth_max(torch.zeros(2, 3), mask=torch.ones(2, 3)),
        ),
        (
            ValueError,
            "mask must be on the device of scores, expected cpu, got meta",
            lambda: smooth_max(torch.zeros(2), mask=torch.ones(2, dtype=torch.bool, device="meta")),
        ),
        (
            TypeError,
            "gamma must be a number, got str",
            lambda: smooth_max(torch.zeros(2), gamma="1"),
        ),
        (
            TypeError,
            "gamma must be a number, got bool",
            lambda: smooth_max(torch.zeros(2), gamma=True),
        ),
        *(
            (
                ValueError,
                f"gamma must be from 1e-30 to 1e30, got {gamma:g}",
                lambda gamma=gamma: smooth_max(torch.zeros(2), gamma=gamma),
            )
            for gamma in (0, -1.0, 1e31, INF, math.nan)
        ),
        *(
            (
                ValueError,
                f"scores must be finite or -inf where they count, got {bad} at scores[1, 2]",
                lambda bad=bad: smooth_max(torch.tensor([[0.0, 1, 2], [-INF, 1, bad]])),
            )
            for bad in (INF, math.nan)
        ),
    ],
)
def test_smooth_max_refuses(kind, message, call):
    with raises(kind, message):
        call()


def test_bad_score_is_named_past_the_mask():
    scores = torch.tensor([[math.nan, 0.0], [1.0, math.nan]])
    mask = torch.tensor([[False, True], [True, True]])
    with raises(ValueError, "got nan at scores[1, 1]"):
        smooth_max(scores, mask=mask)


def test_bad_score_gives_nan_where_no_value_can_be_read(by_formula):
    for bad in (INF, math.nan):
        values = smooth_max(torch.tensor([[0.0, bad], [0.0, 1.0]]))
        assert values.isnan().tolist() == [True, False]


def test_derivatives_of_any_order():
    scores = random((3, 5), 1.0).requires_grad_()
    mask = torch.rand(3, 5, generator=torch.Generator().manual_seed(4)) < 0.7
    mask[1] = False
    assert torch.autograd.gradcheck(lambda x: smooth_max(x, gamma=2.0, mask=mask)[::2], scores)
    assert torch.autograd.gradgradcheck(lambda x: smooth_max(x, gamma=2.0, mask=mask), scores)
    row = scores[0].detach()
    p = torch.softmax(3 * row, 0)
    hessian = torch.func.hessian(lambda x: smooth_max(x, gamma=3.0))(row)
    torch.testing.assert_close(hessian, 3 * (p.diag() - p.outer(p)))
    tangent = torch.ones(5, dtype=torch.float64)
    _, slope = torch.func.jvp(lambda x: smooth_max(x, gamma=3.0), (row,), (tangent,))
    torch.testing.assert_close(slope, torch.tensor(1.0, dtype=torch.float64))
    mapped = torch.func.vmap(lambda x: smooth_max(x, gamma=3.0))(scores.detach())
    torch.testing.assert_close(mapped, smooth_max(scores.detach(), gamma=3.0))
    eye = torch.eye(3, dtype=torch.float64)
    (batched,) = torch.autograd.grad(smooth_max(scores), scores, eye, is_grads_batched=True)
    torch.testing.assert_close(batched.sum(0), torch.softmax(scores.detach(), -1))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled():
    scores, mask, gamma = CASES["a row without a counting score"]
    compiled = torch.compile(lambda x: smooth_max(x, gamma=gamma, mask=mask), fullgraph=True)
    try:
        compiled(scores.nan_to_num(0))
    except torch._inductor.exc.InductorError:  # PyTorch's own linker call breaks at such a path
        pytest.skip("PyTorch could not build its kernel here")
    assert_right(scores, mask, gamma, lambda x, *_: compiled(x))


def test_half_precision_survives_where_torch_does_not():
    ties = torch.zeros(70_000, dtype=torch.float16)
    assert smooth_max(ties).item() == pytest.approx(math.log(70_000), rel=1e-6)
    assert torch.logsumexp(ties, 0).isinf()


# ------------------------------------------------------------------------------ streaming_logsumexp


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=6),
    st.sampled_from([1.0, 100.0, 1e4]),
    st.integers(0, 1000),
)
@settings(max_examples=60)
def test_stream_is_the_whole(widths, scale, seed):
    scores = random((3, sum(widths)), scale, seed=seed)
    scores[0, : widths[0]] = -INF
    scores[1] = -INF
    leaf = scores.clone().requires_grad_()
    upstream = random((3,), 1.0, seed=seed + 1)
    whole, stream = smooth_max(leaf), streaming_logsumexp(leaf.split(widths, -1))
    assert torch.equal(whole == -INF, stream == -INF)
    torch.testing.assert_close(stream, whole, rtol=1e-14, atol=1e-14)
    (expected,) = torch.autograd.grad(whole, leaf, upstream)
    (got,) = torch.autograd.grad(stream, leaf, upstream)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-300)
    made = streaming_logsumexp([lambda c=c: c for c in leaf.split(widths, -1)])
    assert torch.equal(made, stream)
    (again,) = torch.autograd.grad(made, leaf, upstream)
    assert torch.equal(again, got)


def test_stream_in_float32_keeps_its_gradient_at_ten_thousand():
    leaf = (1e4 + random((64, 400), 1.0, torch.float32)).requires_grad_()

    def worst(values):
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return (gradient.double().sum(-1) - 1).abs().max().item()

    assert worst(streaming_logsumexp(leaf.split(10, -1))) < 5e-6
    assert worst(torch.logsumexp(leaf, -1)) > 2e-4


def test_stream_of_functions_and_their_parameters():
    hidden, weight = random((7, 4), 1.0), random((50, 4), 1.0, seed=1)
    hidden.requires_grad_()
    weight.requires_grad_()
    calls = []

    def part(rows):
        calls.append(len(rows))
        return hidden @ rows.T

    parts = [lambda rows=rows: part(rows) for rows in weight.split(16)]
    streaming_logsumexp(parts).square().sum().backward()
    assert calls == [16, 16, 16, 2, *reversed([16, 16, 16, 2])]
    gradients = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    torch.logsumexp(hidden @ weight.T, -1).square().sum().backward()
    torch.testing.assert_close(gradients, (hidden.grad, weight.grad))
    with torch.no_grad():
        calls.clear()
        values = streaming_logsumexp(parts)
        assert calls == [16, 16, 16, 2]
    torch.testing.assert_close(values, torch.logsumexp(hidden.detach() @ weight.detach().T, -1))
    assert torch.autograd.gradgradcheck(
        lambda h, w: streaming_logsumexp([lambda r=r: h @ r.T for r in w.split(3)]),
        (random((2, 2), 1.0).requires_grad_(), random((5, 2), 1.0).requires_grad_()),
    )


def test_stream_from_a_generator_along_another_dimension():
    scores = random((6, 3, 2), 2.0)
    stream = streaming_logsumexp((part for part in scores.split(2)), dim=0)
    torch.testing.assert_close(stream, torch.logsumexp(scores, 0))
    half = streaming_logsumexp([scores.bfloat16()], dim=0)
    assert half.dtype == torch.float32


def test_stream_of_functions_holds_one_chunk():
    # Large enough that what other tests left in the heap, some ten MiB, does not decide.
    hidden = torch.randn(2048, 16, requires_grad=True)
    weight = torch.randn(32_000, 16, requires_grad=True)
    whole = 2048 * 32_000 * 4 / 2**20

    def stream():
        parts = [lambda rows=rows: hidden @ rows.T for rows in weight.split(1000)]
        streaming_logsumexp(parts).sum().backward()

    def full():
        torch.logsumexp(hidden @ weight.T, -1).sum().backward()

    stream()
    # Pages between the blocks that earlier tests left in the heap count too: they only ever add.
    peaks = [measure.peak_mib(stream) for _ in range(3)]
    if None in peaks:
        pytest.skip("nobody counts the pages of this process")
    assert min(peaks) < whole / 4
    assert measure.peak_mib(full) > whole


def test_stream_refuses():
    one = torch.zeros(2, 3)
    for kind, message, chunks in (
        (ValueError, "chunks must hold at least 1 tensor, got none", []),
        (TypeError, "chunks[1] must be a torch.Tensor, got int", [one, 3]),
        (TypeError, "chunks[0] must be a torch.Tensor, got NoneType", [lambda: None]),
        (
            ValueError,
            "chunks must agree in shape apart from dim -1, expected (2,) as in chunks[0], "
            "got (3,) in chunks[1]",
            [one, torch.zeros(3, 3)],
        ),
        (
            ValueError,
            "chunks must agree in dtype apart from dim -1, expected torch.float32 as in "
            "chunks[0], got torch.float64 in chunks[1]",
            [one, one.double()],
        ),
        (
            ValueError,
            "chunks[1] must be finite or -inf where they count, got nan at chunks[1][0, 2]",
            [one, torch.tensor([[0.0, 0.0, math.nan]] * 2)],
        ),
        # A bare tensor is an iterable of its rows: it would be summed over two dimensions.
        (
            TypeError,
            "chunks must be an iterable of tensors or functions, got Tensor; "
            "write [chunks] for one",
            one,
        ),
        (
            TypeError,
            "chunks must be an iterable of tensors or functions, got function; "
            "write [chunks] for one",
            lambda: one,
        ),
    ):
        with raises(kind, message):
            streaming_logsumexp(chunks)
    with raises(TypeError, "dim must be an int, got NoneType"):
        streaming_logsumexp([one], dim=None)


# ------------------------------------------------------------------------------------------ subsets


def by_enumeration(scores, k):
    """Return log Z_k and the inclusion probabilities, subset by subset, in 50 digits."""
    with mpmath.workdps(50):
        weights = {
            chosen: mpmath.exp(mpmath.fsum(mpmath.mpf(scores[i]) for i in chosen))
            for chosen in itertools.combinations(range(len(scores)), k)
        }
        total = mpmath.fsum(weights.values())
        shares = [
            float(mpmath.fsum(w for chosen, w in weights.items() if i in chosen) / total)
            for i in range(len(scores))
        ]
        return float(mpmath.log(total)), shares


@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 9])
def test_subsets_against_enumeration(n, scale):
    scores = random((n,), scale, seed=n) + scale
    for k in range(n + 1):
        log_z, shares = by_enumeration(scores.tolist(), k)
        assert subset_logsumexp(scores, k).item() == pytest.approx(log_z, rel=1e-14, abs=1e-14)
        got = inclusion_probabilities(scores, k)
        # A gap of scores near 1e4 is itself known to 1e-12 only.
        torch.testing.assert_close(got, got.new_tensor(shares), rtol=1e-11, atol=1e-300)
        assert got.sum().item() == pytest.approx(k, rel=1e-12, abs=0)


def test_subsets_in_every_dtype():
    for dtype in DTYPES[1:]:
        scores = random((2, 7), 1e3, dtype)
        for k in (2, 5):
            got = inclusion_probabilities(scores, k)
            value = subset_logsumexp(scores, k)
            assert got.dtype == value.dtype == torch.float32
            for row in range(2):
                log_z, shares = by_enumeration(scores[row].tolist(), k)
                assert value[row].item() == pytest.approx(log_z, rel=1e-7)
                torch.testing.assert_close(got[row], torch.tensor(shares), rtol=1e-6, atol=1e-37)


def test_subsets_with_masks_batches_and_dimensions():
    scores = random((2, 6, 3), 2.0)
    mask = torch.rand(2, 6, 3, generator=torch.Generator().manual_seed(5)) < 0.8
    junk = scores.masked_fill(~mask, math.nan)
    minus = scores.masked_fill(~mask, -INF)
    got = inclusion_probabilities(junk, 2, mask=mask, dim=1)
    assert torch.equal(got, inclusion_probabilities(minus, 2, dim=1))
    assert bool((got[~mask] == 0).all())
    values = subset_logsumexp(junk, 2, mask=mask, dim=1)
    assert values.shape == (2, 3)
    for a, c in itertools.product(range(2), range(3)):
        kept = mask[a, :, c]
        log_z, shares = by_enumeration(scores[a, kept, c].tolist(), 2)
        assert values[a, c].item() == pytest.approx(log_z, rel=1e-13)
        torch.testing.assert_close(got[a, kept, c], got.new_tensor(shares), rtol=1e-12, atol=0)


def test_large_subsets_against_the_recursion():
    n, k = 700, 40
    scores = random((n,), 3.0)
    logs = np.full(k + 1, -np.inf)
    logs[0] = 0.0
    for score in scores.tolist():
        logs[1:] = np.logaddexp(logs[1:], score + logs[:-1])
    assert subset_logsumexp(scores, k).item() == pytest.approx(logs[k], rel=1e-13)
    assert inclusion_probabilities(scores, k).sum().item() == pytest.approx(k, rel=1e-12)
    hard = inclusion_probabilities(1e6 * scores, k)
    torch.testing.assert_close(hard.topk(k).indices.sort()[0], scores.topk(k).indices.sort()[0])
    torch.testing.assert_close(hard.round(), hard, rtol=0, atol=1e-9)


def test_derivatives_over_subsets():
    scores = random((2, 5), 1.0).requires_grad_()
    mask = torch.tensor([True, True, False, True, True])
    for k in (0, 1, 3):
        assert torch.autograd.gradcheck(lambda x, k=k: subset_logsumexp(x, k, mask=mask), scores)
        assert torch.autograd.gradcheck(
            lambda x, k=k: inclusion_probabilities(x, k, mask=mask), scores
        )
    assert torch.autograd.gradgradcheck(lambda x: inclusion_probabilities(x, 2), scores)
    with torch.no_grad():
        quiet = inclusion_probabilities(scores, 2)
    assert not quiet.requires_grad
    mapped = torch.func.vmap(lambda x: inclusion_probabilities(x, 2))(scores.detach())
    torch.testing.assert_close(mapped, quiet)


def test_fewer_scores_than_k():
    scores = torch.tensor([[1.0, -INF, -INF], [1.0, 2.0, -INF]], requires_grad=True)
    values = subset_logsumexp(scores, 2)
    assert values.tolist() == [-INF, 3.0]
    values[1].backward()
    assert scores.grad.tolist() == [[0.0, 0.0, 0.0], [1.0, 1.0, 0.0]]
    with raises(
        ValueError,
        "k must be at most the number of scores that count, got k = 2 and 1 counting in row [0]",
    ):
        inclusion_probabilities(scores, 2)
    with raises(ValueError, "got k = 1 and 0 counting"):
        inclusion_probabilities(torch.zeros(2), 1, mask=torch.tensor([False, False]))


def test_fewer_scores_than_k_where_no_value_can_be_read(by_formula):
    scores = torch.tensor([[1.0, -INF], [1.0, 2.0]])
    assert inclusion_probabilities(scores, 2).isnan().all(-1).tolist() == [True, False]


@pytest.mark.parametrize("one", [np.int64(1), np.uint8(1), np.array(1), torch.tensor(1)], ids=repr)
def test_sizes_and_dimensions_may_be_integers_of_any_kind(one):
    scores = torch.randn(2, 3).sigmoid()
    targets = (scores > 0.5).double()
    for function in (
        lambda n: smooth_max(scores, dim=n),
        lambda n: streaming_logsumexp([scores, scores], dim=n),
        lambda n: subset_logsumexp(scores, n, dim=n),
        lambda n: inclusion_probabilities(scores, n, dim=n),
        lambda n: smooth_f1(scores, targets, dim=n),
    ):
        assert torch.equal(function(one), function(1))


@pytest.mark.parametrize("function", [subset_logsumexp, inclusion_probabilities])
def test_subsets_refuse(function):
    scores = torch.zeros(2, 3)
    for k, kind, message in (
        (4, ValueError, "k must be from 0 to the number of scores, 3, got 4"),
        (-1, ValueError, "k must be from 0 to the number of scores, 3, got -1"),
        (True, TypeError, "k must be an int, got bool"),
        (2.0, TypeError, "k must be an int, got float"),
    ):
        with raises(kind, message):
            function(scores, k)
    with raises(TypeError, "dim must be an int, got float"):
        function(scores, 1, dim=1.0)
    for bad in (INF, math.nan):
        broken = scores.clone()
        broken[1, 0] = bad
        for k in range(4):
            with raises(ValueError, f"got {bad} at scores[1, 0]"):
                function(broken, k)


# ---------------------------------------------------------------------------------------- smooth_f1


def f1_by_loops(p, y):
    both = total = 0.0
    for share, target in zip(p, y, strict=True):
        both += share * target
        total += share + target
    return 2 * both / total if total else 0.0


@given(
    st.lists(st.tuples(st.floats(0, 1), st.one_of(st.integers(0, 1), st.floats(0, 1))), min_size=1)
)
def test_f1_is_its_formula(pairs):
    p, y = (torch.tensor([float(v) for v in side], dtype=torch.float64) for side in zip(*pairs))  # noqa: B905
    assert smooth_f1(p, y).item() == pytest.approx(f1_by_loops(p.tolist(), y.tolist()), abs=1e-12)


def test_f1_of_decisions_is_f1():
    generator = torch.Generator().manual_seed(6)
    table = torch.rand(40, 3, generator=generator) < 0.4
    truth = torch.rand(40, 3, generator=generator) < 0.4
    got = smooth_f1(table.double(), truth, dim=0)
    for column in range(3):
        expected = binary_f1_score(table[:, column].int(), truth[:, column].int()).item()
        assert got[column].item() == pytest.approx(expected, rel=1e-6)
    micro = binary_f1_score(table.reshape(-1).int(), truth.reshape(-1).int()).item()
    assert smooth_f1(table.double(), truth).item() == pytest.approx(micro, rel=1e-6)
    assert smooth_f1(table.double(), truth, dim=-1).shape == (40,)


def test_f1_gradient_masks_and_dtypes():
    p = torch.rand(6, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    y = torch.rand(6, 4, generator=torch.Generator().manual_seed(8)) < 0.5
    leaf = p.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: smooth_f1(x, y, dim=1), leaf)
    mask = torch.rand(6, 4, generator=torch.Generator().manual_seed(9)) < 0.6
    junk = p.detach().masked_fill(~mask, math.nan).requires_grad_()
    value = smooth_f1(junk, y, mask=mask)
    assert value.item() == pytest.approx(smooth_f1(p.detach()[mask], y[mask]).item(), rel=1e-14)
    value.backward()
    expected = (2 * y - value.detach()) / (p.detach() + y)[mask].sum()
    torch.testing.assert_close(junk.grad, expected.masked_fill(~mask, 0))
    for dtype in (torch.float16, torch.bfloat16):
        half = smooth_f1(p.detach().to(dtype), y)
        assert half.dtype == torch.float32
        exact = smooth_f1(p.detach().to(dtype).double(), y).item()
        assert half.item() == pytest.approx(exact, rel=1e-6)


def test_f1_of_nothing_is_zero_with_gradient_zero():
    p = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([[0, 0, 0], [1, 0, 0]])
    values = smooth_f1(p, y, dim=1)
    assert values.tolist() == [0.0, 0.0]
    values.sum().backward()
    assert p.grad.tolist() == [[0.0] * 3, [2.0, 0.0, 0.0]]
    junk = torch.full((3,), math.nan)
    assert smooth_f1(junk, junk, mask=torch.zeros(3, dtype=torch.bool)).item() == 0


def test_f1_refuses():
    p, y = torch.full((2, 3), 0.5), torch.ones(2, 3)
    high = p.clone()
    high[1, 2] = 1.5
    for kind, message, call in (
        (
            ValueError,
            "probabilities must be in [0, 1] where they count, got 1.5 at probabilities[1, 2]",
            lambda: smooth_f1(high, y),
        ),
        (
            ValueError,
            "targets must be in [0, 1] where they count, got -1 at targets[0, 0]",
            lambda: smooth_f1(p, -y),
        ),
        (
            ValueError,
            "targets must have the shape of probabilities, expected (2, 3), got (3,)",
            lambda: smooth_f1(p, y[0]),
        ),
        (
            TypeError,
            "probabilities must have a floating-point dtype, got torch.int64",
            lambda: smooth_f1(y.long(), y),
        ),
        (IndexError, "Dimension out of range", lambda: smooth_f1(p, y, dim=2)),
        (TypeError, "dim must be an int, got bool", lambda: smooth_f1(p, y, dim=True)),
        (TypeError, "dim must be an int, got float", lambda: smooth_f1(p, y, dim=1.0)),
    ):
        with raises(kind, message):
            call()
    with raises(ValueError, "got nan at probabilities"):
        smooth_f1(torch.tensor(math.nan), torch.tensor(1.0))


# ----------------------------------------------------------------------------------------- log1mexp


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_log1mexp_against_fifty_digits(dtype):
    exponents = torch.linspace(-30, 1.9, 200, dtype=torch.float64)
    u = -(10.0**exponents).to(dtype)
    leaf = u.requires_grad_()
    values = log1mexp(leaf)
    values.sum().backward()
    eps = torch.finfo(dtype).eps
    with mpmath.workdps(60):
        for number, value, slope in zip(
            u.tolist(), values.tolist(), leaf.grad.tolist(), strict=True
        ):
            exact = mpmath.log1p(-mpmath.exp(mpmath.mpf(number)))
            assert abs(value - exact) <= 4 * eps * abs(exact) + torch.finfo(dtype).tiny
            exact = -1 / mpmath.expm1(-mpmath.mpf(number))
            assert abs(slope - exact) <= 4 * eps * abs(exact) + torch.finfo(dtype).tiny


def test_log1mexp_at_the_ends():
    u = torch.tensor([0.0, -0.0, -INF, -math.log(2)], dtype=torch.float64, requires_grad=True)
    values = log1mexp(u)
    values.sum().backward()
    assert values.tolist()[:3] == [-INF, -INF, 0.0]
    assert u.grad.tolist()[:3] == [-INF, -INF, 0.0]
    assert values[3].item() == pytest.approx(-math.log(2), rel=1e-15)
    assert log1mexp(torch.tensor([-1.0], dtype=torch.bfloat16)).dtype == torch.float32
    inner = torch.tensor([-2.0, -0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(log1mexp, inner)


def test_log1mexp_refuses():
    with raises(ValueError, "u must be at most 0, got 0.5 at u[1]"):
        log1mexp(torch.tensor([-1.0, 0.5]))
    with raises(ValueError, "u must be at most 0, got nan at u"):
        log1mexp(torch.tensor(math.nan))
    with raises(TypeError, "u must have a floating-point dtype, got torch.int64"):
        log1mexp(torch.tensor([-1]))


def test_log1mexp_where_no_value_can_be_read(by_formula):
    assert log1mexp(torch.tensor([-1.0, 0.5, math.nan])).isnan().tolist() == [False, True, True]


# ------------------------------------------------------------------- hooks, transforms, and gamma


def test_inclusion_probabilities_under_hooks_on_saved_tensors():
    scores = random((2, 7), 2.0).double().requires_grad_()

    def loss(values):
        return inclusion_probabilities(values, 3).square().sum()

    (expected,) = torch.autograd.grad(loss(scores), scores)
    again = torch.utils.checkpoint.checkpoint(loss, scores, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(again, scores)[0], expected)
    with torch.autograd.graph.save_on_cpu():
        kept = loss(scores)
    assert torch.equal(torch.autograd.grad(kept, scores)[0], expected)


@pytest.mark.parametrize("size", range(1, 10))
def test_inclusion_probabilities_are_the_gradient(size):
    scores = random((3, size), 3.0).double().requires_grad_()
    for k in range(size + 1):
        (expected,) = torch.autograd.grad(subset_logsumexp(scores, k).sum(), scores)
        torch.testing.assert_close(inclusion_probabilities(scores.detach(), k), expected)


def test_transforms_of_chunks_that_are_functions():
    weight, hidden = random((9, 6), 1.0).double(), random((2, 6), 1.0).double().requires_grad_()

    def loss(states):
        parts = [lambda rows=rows: states @ rows.T for rows in weight.split(4)]
        return streaming_logsumexp(parts).sum()

    (expected,) = torch.autograd.grad(loss(hidden), hidden)
    torch.testing.assert_close(torch.func.grad(loss)(hidden.detach()), expected)
    stack = torch.stack([hidden.detach(), -hidden.detach()])
    torch.testing.assert_close(torch.vmap(loss)(stack)[0], loss(hidden))


def test_gamma_may_be_learnt():
    scores = random((2, 5), 1.0).double().requires_grad_()
    gamma = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(smooth_max(scores, gamma=gamma), smooth_max(scores, gamma=1.5))
    assert torch.autograd.gradcheck(lambda s, g: smooth_max(s, gamma=g), (scores, gamma))
    with raises(ValueError, "gamma must be from 1e-30 to 1e30, got -1"):
        smooth_max(scores, gamma=-gamma.detach() / 1.5)
    with raises(TypeError, "gamma must be a number or a floating tensor without dimensions, got"):
        smooth_max(scores, gamma=torch.ones(2))
