"""Tags, links, sampling and pairing of subject-first extraction: values, gradients, refusals."""

import itertools
import math
import re
from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from lib.casrel import (
    conditional_layer_norm,
    half_pointer_loss,
    nearest_end_spans,
    power_bce_loss,
    power_probability,
    power_threshold,
    subject_distribution,
)
from tests import battery

INF = math.inf
POWERS = [0.5, 1, 2, 3.7, 4, 50, 1e4]


def raises(kind, message):
    return pytest.raises(kind, match=re.escape(message))


def exact(score, target, power):
    """Loss and gradient of one cell in 60 digits."""
    with mpmath.workdps(60):
        s, k = mpmath.mpf(score), mpmath.mpf(power)
        u = mpmath.log1p(mpmath.exp(-s))  # -log p
        if target:
            return float(k * u), float(-k * (1 / (1 + mpmath.exp(s))))
        power_of_p = mpmath.exp(-k * u)
        rest = -mpmath.expm1(-k * u)
        value = -mpmath.log1p(-power_of_p) if power_of_p < 0.5 else -mpmath.log(rest)
        slope = k * power_of_p / rest / (1 + mpmath.exp(s))
        return float(value), float(slope)


SCORES = [
    *(-1e4, -1000.0, -750.0, -100.0, -40.0, -17.0, -3.0, -0.5, 0.0, 0.3, 0.8813735870195429, 2.0),
    *(5.0, 9.7, 15.0, 17.0, 19.9, 20.0, 20.1, 21.0, 25.0, 29.5, 36.0, 50.0, 100.0, 104.0, 700.0),
    *(745.0, 746.0, 1000.0, 1e4),
]


def cells(scores, targets, power, **options):
    """Losses and gradients of cells, each for itself."""
    leaf = scores.detach().clone().requires_grad_()
    losses = power_bce_loss(leaf, targets, power, reduction="none", **options)
    (slopes,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach(), slopes


# ------------------------------------------------------------------------------------- the losses


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("power", POWERS)
def test_loss_and_gradient_against_sixty_digits(power, target, dtype):
    scores = torch.tensor(SCORES, dtype=dtype)
    losses, slopes = cells(scores, torch.full_like(scores, target), power)
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).tiny
    for score, loss, slope in zip(scores.tolist(), losses.tolist(), slopes.tolist(), strict=True):
        value, derivative = exact(score, target, power)
        # p ** power is exp of a product: its rounding costs as many units as that is large.
        depth = power * math.log1p(math.exp(-abs(score))) + power * max(0.0, -score)
        units = 6 + min(depth, 110 if dtype == torch.float32 else 760)
        if value <= torch.finfo(dtype).max:
            assert abs(loss - value) <= units * eps * abs(value) + 4 * tiny, score
        assert abs(slope - derivative) <= units * eps * abs(derivative) + 4 * tiny, score


@pytest.mark.parametrize("power", [1, 2, 4])
def test_extremes_are_exact(power):
    scores = torch.tensor([-1e4, 1e4], dtype=torch.float64)
    losses, slopes = cells(scores, torch.zeros(2), power)
    assert losses.tolist() == [0.0, 1e4 - math.log(power)]
    assert slopes.tolist() == [0.0, 1.0]
    losses, slopes = cells(scores, torch.ones(2), power)
    assert losses.tolist() == [power * 1e4, 0.0]
    assert slopes.tolist() == [-power, 0.0]


def test_published_form_fails_where_ours_does_not():
    score = torch.tensor([18.0, 30.0], requires_grad=True)
    published = -torch.log(1 - torch.sigmoid(score) ** 2)
    assert published.isinf().any()
    ours, slopes = cells(score, torch.zeros(2), 2)
    assert ours.isfinite().all()
    assert slopes.tolist() == pytest.approx([1.0, 1.0], abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_power_one_is_binary_cross_entropy(dtype):
    scores = torch.linspace(-30, 30, 61).to(dtype)
    targets = (torch.arange(61) % 2).to(dtype)
    ours, slopes = cells(scores, targets, 1)
    leaf = scores.double().requires_grad_()
    # Not binary_cross_entropy_with_logits, which takes 30 from 30 for a negative at -30.
    theirs = -torch.nn.functional.logsigmoid(leaf * (2 * targets.double() - 1))
    (wanted,) = torch.autograd.grad(theirs.sum(), leaf)
    assert ours.dtype == torch.promote_types(dtype, torch.float32)
    assert slopes.dtype == dtype
    torch.testing.assert_close(ours.double(), theirs.detach(), rtol=3e-6, atol=0)
    rounding = torch.finfo(dtype)
    torch.testing.assert_close(
        slopes.double(), wanted, rtol=rounding.eps + 3e-6, atol=rounding.smallest_normal
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("power", [2, 4])
def test_half_precision_is_computed_in_single(dtype, power):
    scores = torch.tensor([[-300.0, -9.5, -1.0, 0.0, 2.0, 18.0, 300.0]]).to(dtype)
    for target in (0, 1):
        targets = torch.full_like(scores, target)
        half = power_bce_loss(scores, targets, power, reduction="none")
        single = power_bce_loss(scores.float(), targets, power, reduction="none")
        assert half.dtype == torch.float32
        assert torch.equal(half, single)


def bce_row(power):
    """Reference of the battery: the cells of one row, one after the other."""

    def row(scores, targets):
        pairs = []
        for s, y in zip(scores, targets, strict=True):
            u = math.log1p(math.exp(-s)) if s > -700 else -s
            down = 1 / (1 + math.exp(s)) if s < 700 else 0.0
            rest = -math.expm1(-power * u)
            if y:
                pairs.append((power * u, -power * down))
            elif s >= 700:
                pairs.append((s - math.log(power), 1.0))
            else:
                small = math.exp(-power * u)
                value = -math.log1p(-small) if small < 0.5 else -math.log(rest)
                pairs.append((value, power * small * down / rest))
        return math.fsum(v for v, _ in pairs), [g for _, g in pairs]

    return row


def summed(power):
    def call(logits, labels, mask, how):
        rows = power_bce_loss(logits, labels, power, mask=mask, reduction="none").sum(-1)
        return {"none": lambda: rows, "mean": rows.mean, "sum": rows.sum}[how]()

    return call


@pytest.mark.parametrize("power", [1, 2, 4])
@pytest.mark.parametrize("name", [c.name for c in battery.cases()])
def test_battery(name, power):
    if "largest float32" in name:
        pytest.skip("the sum over 200 cells leaves the range of float32")
    case = next(c for c in battery.cases() if c.name == name)
    loss = battery.Loss("power", summed(power), battery.DENSE.labels, bce_row(power))
    outcome = battery.meet(loss, case)
    if case.refused:
        assert outcome.verdict == "right", outcome
    else:
        # The exponent of p ** power is power times as large as that of p, and so is its rounding.
        assert not outcome.notes
        assert outcome.verdict in ("right", "inexact"), outcome
        assert max(outcome.value_error, outcome.gradient_error) <= 1 + power, outcome


@pytest.mark.parametrize("power", [0.5, 1, 2, 4])
def test_gradcheck(power):
    generator = torch.Generator().manual_seed(0)
    scores = 6 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    scores[0, 0], scores[0, 1] = 23.0, 27.0  # the far piece
    scores.requires_grad_()
    targets = torch.rand(4, 5, generator=generator) < 0.4

    def loss(x):
        return power_bce_loss(x, targets, power, reduction="none")

    assert torch.autograd.gradcheck(loss, scores)
    assert torch.autograd.gradgradcheck(loss, scores, atol=1e-4)


@given(st.floats(0.05, 60), st.floats(-30, 60))
def test_pieces_join(power, score):
    x = torch.tensor([score, score + 1e-9], dtype=torch.float64)
    losses, slopes = cells(x, torch.zeros(2), power)
    value, derivative = exact(score, 0, power)
    assert losses[0].item() == pytest.approx(value, rel=1e-12)
    assert slopes[0].item() == pytest.approx(derivative, rel=1e-12)
    assert 0 <= losses[1] - losses[0] <= 1.001e-9 + 1e-15 * max(1.0, value) * 8


def test_mask_and_reductions():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    targets = torch.rand(3, 4, generator=generator) < 0.5
    mask = torch.tensor([True, True, False, True])
    targets &= mask
    scores[0, 2], scores[1, 2] = math.nan, INF
    leaf = scores.clone().requires_grad_()
    each = power_bce_loss(leaf, targets, 2, mask=mask, reduction="none")
    assert (each[:, 2] == 0).all()
    total = power_bce_loss(leaf, targets, 2, mask=mask, reduction="sum")
    mean = power_bce_loss(leaf, targets, 2, mask=mask)
    assert torch.equal(total, each.sum())
    torch.testing.assert_close(mean, each.sum() / 9)
    (slopes,) = torch.autograd.grad(mean, leaf)
    assert (slopes[:, 2] == 0).all()
    assert (slopes[:, [0, 1, 3]] != 0).all()
    kept = power_bce_loss(leaf[:, [0, 1, 3]], targets[:, [0, 1, 3]], 2)
    torch.testing.assert_close(mean, kept)


def test_minus_infinity_does_not_count():
    scores = torch.tensor([[-INF, 1.0]], requires_grad=True)
    losses = power_bce_loss(scores, torch.tensor([[0, 1]]), 2, reduction="none")
    (slopes,) = torch.autograd.grad(losses.sum(), scores)
    assert losses[0, 0] == slopes[0, 0] == 0


@pytest.mark.parametrize("target", [0.5, -1.0, 2.0, math.nan])
def test_targets_are_zero_or_one(target):
    targets = torch.tensor([[0.0, target]])
    with raises(ValueError, f"targets must hold only 0 and 1, got {target} at targets[0, 1]"):
        power_bce_loss(torch.zeros(1, 2), targets, 2)


def test_refusals():
    logits, targets = torch.zeros(2, 3), torch.zeros(2, 3)
    for power in (0, -1, INF, math.nan):
        with raises(ValueError, f"power must be positive and finite, got {power}"):
            power_bce_loss(logits, targets, power)
        with raises(ValueError, f"power must be positive and finite, got {power}"):
            power_probability(logits, power)
        with raises(ValueError, f"power must be positive and finite, got {power}"):
            power_threshold(power)
        with raises(ValueError, f"power must be positive and finite, got {power}"):
            half_pointer_loss(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), power=power)
    for value in (math.nan, INF):
        bad = logits.clone()
        bad[1, 2] = value
        with raises(ValueError, f"got {value} at logits[1, 2]"):
            power_bce_loss(bad, targets, 2)
    low, gold = logits.clone(), targets.clone()
    low[0, 1], gold[0, 1] = -INF, 1
    with raises(ValueError, "a positive must have a finite logit, got targets[0, 1] = 1"):
        power_bce_loss(low, gold, 2)
    away = gold == 0
    expected = power_bce_loss(logits, targets, 2, mask=away)
    assert torch.equal(power_bce_loss(logits, gold, 2, mask=away), expected)
    unknown = gold.masked_fill(gold == 1, -1)
    assert torch.equal(power_bce_loss(logits, unknown, 2, mask=away), expected)
    with raises(ValueError, "targets must have the shape of logits, expected (2, 3), got (2,)"):
        power_bce_loss(logits, targets[:, 0], 2)
    with raises(ValueError, "reduction must be 'none', 'mean' or 'sum', got 'max'"):
        power_bce_loss(logits, targets, 2, reduction="max")
    assert power_bce_loss(logits, targets, 2, mask=torch.zeros(2, 3, dtype=torch.bool)) == 0
    assert power_bce_loss(logits[:0], targets[:0], 2) == 0
    with raises(TypeError, "logits must have a floating-point dtype, got torch.int64"):
        power_probability(torch.zeros(2, dtype=torch.int64), 2)
    with raises(TypeError, "logits must be a torch.Tensor, got list"):
        power_probability([0.0], 2)
    with raises(TypeError, "mask must have dtype torch.bool, got torch.float32"):
        power_bce_loss(logits, targets, 2, mask=logits)


def test_without_a_look_at_the_values():
    """A bad value makes its cell or token NaN, the others stay; as where values cannot be read."""
    logits = torch.tensor([[0.5, -1.0, math.nan, INF, -INF, 2.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0, 1.0, 0.5]])
    options = {"reduction": "none", "validate": False}
    found = power_bce_loss(logits, targets, 2, **options)
    assert found.isnan().tolist() == [[False, False, True, True, True, True]]
    assert torch.equal(
        found[:, :2], power_bce_loss(logits[:, :2], targets[:, :2], 2, reduction="none")
    )
    tokens = half_pointer_loss(logits.view(1, 3, 2), targets.view(1, 3, 2), power=2, **options)
    assert tokens.isnan().tolist() == [[False, True, True]]
    mask = torch.tensor([[True, False, False]])
    loss = half_pointer_loss(
        logits.view(1, 3, 2), targets.view(1, 3, 2), power=2, mask=mask, validate=False
    )
    assert loss == tokens[0, 0]


def test_where_values_cannot_be_read():
    logits = torch.tensor([[0.5, -1.0, 25.0, math.nan]])
    targets = torch.tensor([[1.0, 0.0, 0.0, 0.0]])

    def loss(x):
        return power_bce_loss(x, targets, 2, reduction="none")

    traced = make_fx(loss)(logits)(logits)
    assert traced.isnan().tolist() == [[False, False, False, True]]
    plain = power_bce_loss(logits[:, :3], targets[:, :3], 2, reduction="none")
    torch.testing.assert_close(traced[:, :3], plain)
    kept = logits[:, :3]

    def single(x):
        return power_bce_loss(x, targets[0, :3], 2, reduction="sum")

    slopes = torch.func.vmap(torch.func.grad(single))(kept)
    torch.testing.assert_close(slopes, cells(kept, targets[:, :3], 2)[1])


@pytest.mark.cuda
@pytest.mark.parametrize("power", [1, 2, 4])
def test_loss_on_cuda(power):
    scores = torch.tensor(SCORES)
    for target in (0, 1):
        targets = torch.full_like(scores, target)
        here, there = cells(scores, targets, power), cells(scores.cuda(), targets.cuda(), power)
        for ours, theirs in zip(here, there, strict=True):
            torch.testing.assert_close(theirs.cpu(), ours, rtol=3e-6, atol=1e-37)


# --------------------------------------------------------------------------- links and their cuts


@pytest.mark.parametrize("power", POWERS)
def test_probability_against_sixty_digits(power):
    scores = torch.tensor(SCORES, dtype=torch.float64)
    for score, value in zip(SCORES, power_probability(scores, power).tolist(), strict=True):
        with mpmath.workdps(60):
            truth = mpmath.mpf(1) / (1 + mpmath.exp(-mpmath.mpf(score)))
            truth = float(truth ** mpmath.mpf(power))
        depth = 0.0 if truth == 0 else -math.log(truth)
        assert abs(value - truth) <= (4 + depth) * 2.3e-16 * truth + 1e-300


def test_probability_at_the_ends_and_in_half_precision():
    ends = power_probability(torch.tensor([-INF, INF, math.nan]), 2).tolist()
    assert ends[:2] == [0.0, 1.0]
    assert math.isnan(ends[2])
    half = power_probability(torch.tensor([0.5], dtype=torch.bfloat16), 4)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(torch.sigmoid(torch.tensor(0.5)).item() ** 4, rel=1e-6)


@pytest.mark.parametrize("probability", [1e-300, 0.01, 0.5, 0.6, 1 - 1e-12])
@pytest.mark.parametrize("power", [0.01, 0.5, 1, 2, 4, 1e6])
def test_threshold_is_where_the_probability_is_reached(power, probability):
    cut = power_threshold(power, probability)
    with mpmath.workdps(60):
        truth = -mpmath.log(mpmath.expm1(-mpmath.log(mpmath.mpf(probability)) / power))
    assert cut == pytest.approx(float(truth), rel=1e-12, abs=1e-14)
    above = power_probability(torch.tensor([cut + 1e-4], dtype=torch.float64), power)
    below = power_probability(torch.tensor([cut - 1e-4], dtype=torch.float64), power)
    assert below <= probability <= above


@pytest.mark.parametrize("probability", [0.0, 1.0, -0.2, math.nan])
def test_threshold_refuses(probability):
    with raises(ValueError, "probability must lie strictly between 0 and 1, got"):
        power_threshold(2, probability)


# --------------------------------------------------------------------------------- the reductions


def literal_half_pointer(logits, targets, power, mask):
    """Reduce cell by cell, with loops, in float64."""
    batch, length = logits.shape[:2]
    total, count = 0.0, 0
    for b, i in itertools.product(range(batch), range(length)):
        if not mask[b, i]:
            continue
        count += 1
        for s, y in zip(logits[b, i].reshape(-1), targets[b, i].reshape(-1), strict=True):
            total += exact(float(s), bool(y), power)[0] / 2
    return total, count


@pytest.mark.parametrize("shape", [(2, 5, 2), (2, 5, 3, 2), (1, 1, 2)])
@pytest.mark.parametrize("power", [1, 2, 4])
def test_half_pointer_against_loops(shape, power):
    generator = torch.Generator().manual_seed(2)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    mask = torch.rand(shape[:2], generator=generator) < 0.7
    mask[0, 0] = True
    targets = torch.rand(shape, generator=generator) < 0.3
    targets &= mask.reshape(*shape[:2], *(1 for _ in shape[2:]))
    total, count = literal_half_pointer(logits, targets, power, mask)
    options = {"power": power, "mask": mask}
    assert half_pointer_loss(logits, targets, **options).item() == pytest.approx(total / count)
    whole = half_pointer_loss(logits, targets, **options, reduction="sum")
    assert whole.item() == pytest.approx(total)
    tokens = half_pointer_loss(logits, targets, **options, reduction="none")
    assert tokens.shape == shape[:2]
    assert (tokens[~mask] == 0).all()
    torch.testing.assert_close(tokens.sum(), whole)
    everything = torch.ones_like(mask)
    torch.testing.assert_close(
        half_pointer_loss(logits, targets, power=power),
        half_pointer_loss(logits, targets, power=power, mask=everything),
    )


def test_half_pointer_ignores_what_stands_under_the_mask():
    logits = torch.zeros(1, 3, 2, dtype=torch.float64)
    logits[0, 2] = math.nan
    logits.requires_grad_()
    mask = torch.tensor([[True, True, False]])
    targets = torch.zeros(1, 3, 2)
    targets[0, 2] = -1  # unknown
    loss = half_pointer_loss(logits, targets, power=2, mask=mask)
    (slopes,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(-math.log(0.75))
    assert (slopes[0, 2] == 0).all()
    assert slopes[0, :2].isfinite().all()


def test_half_pointer_refuses():
    for shape in ((3, 2), (2, 3, 3), (1, 2, 3, 4, 2)):
        with raises(ValueError, "logits must have shape (B, L, 2) or (B, L, R, 2), got"):
            half_pointer_loss(torch.zeros(shape), torch.zeros(shape))
    logits = torch.zeros(2, 3, 2)
    with raises(ValueError, "mask must broadcast to the shape of logits, expected (2, 3)"):
        half_pointer_loss(logits, logits, mask=torch.ones(2, 4, dtype=torch.bool))
    assert half_pointer_loss(logits, logits, mask=torch.zeros(2, 3, dtype=torch.bool)) == 0
    gold = torch.zeros(2, 3, 5, 2)
    gold[1, 2, 4, 0] = 1
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[1, 2] = False
    expected = half_pointer_loss(torch.zeros(2, 3, 5, 2), torch.zeros_like(gold), mask=mask)
    assert torch.equal(half_pointer_loss(torch.zeros(2, 3, 5, 2), gold, mask=mask), expected)


# -------------------------------------------------------------------------------- spans from tags


@st.composite
def disjoint_spans(draw):
    lengths = draw(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 3)), max_size=7))
    spans, place = [], draw(st.integers(0, 3))
    for extra, gap in lengths:
        spans.append((place, place + extra))
        place += extra + gap
    return spans


@given(disjoint_spans(), st.randoms())
def test_disjoint_spans_come_back(spans, random):
    starts, ends = [a for a, _ in spans], [b for _, b in spans]
    random.shuffle(starts)
    random.shuffle(ends)
    assert nearest_end_spans(starts, ends) == spans


@given(st.lists(st.integers(0, 12)), st.lists(st.integers(0, 12)))
def test_nearest_end_by_definition(starts, ends):
    expected = []
    for start in sorted(set(starts)):
        later = [end for end in ends if end >= start]
        if later:
            expected.append((start, min(later)))
    assert nearest_end_spans(starts, ends) == expected


def test_spans_that_overlap_do_not_come_back():
    assert nearest_end_spans([0, 2], [5, 3]) == [(0, 3), (2, 3)]
    assert nearest_end_spans([1, 1], [2, 4]) == [(1, 2)]
    assert nearest_end_spans([4], [3]) == []
    assert nearest_end_spans([], [3]) == []


def test_positions_are_not_negative():
    with raises(ValueError, "starts must be positions from 0 on, got -1"):
        nearest_end_spans([3, -1], [4])
    with raises(ValueError, "ends must be positions from 0 on, got -2"):
        nearest_end_spans([3], [-2])


# ------------------------------------------------------------------------------- drawing subjects


@pytest.mark.parametrize("m", range(1, 8))
def test_disjoint_subjects_are_drawn_as_derived(m):
    subjects = [(3 * i, 3 * i + 1) for i in range(m)]
    drawn = subject_distribution(subjects)
    for i, subject in enumerate(subjects, start=1):
        assert drawn[subject] == Fraction(1, m * (m - i + 1))
    assert sum(drawn.values()) == 1
    assert len(drawn) == m * (m + 1) // 2


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)).map(sorted).map(tuple)))
def test_distribution_by_enumeration(subjects):
    subjects = list(subjects)
    counted = {}
    for start, _ in subjects:
        later = [end for _, end in subjects if end >= start]
        for end in later:
            weight = Fraction(1, len(subjects)) * Fraction(1, len(later))
            counted[start, end] = counted.get((start, end), 0) + weight
    drawn = subject_distribution(subjects)
    assert drawn == counted
    assert list(drawn) == sorted(drawn)
    uniform = subject_distribution(subjects, "uniform")
    assert uniform == {subject: Fraction(1, len(subjects)) for subject in subjects}


def test_distribution_against_draws():
    subjects = [(0, 4), (0, 1), (3, 4)]
    generator = torch.Generator().manual_seed(5)
    starts, ends = torch.tensor(subjects).T
    counted, draws = {}, 20_000
    for _ in range(draws):
        start = starts[torch.randint(3, (1,), generator=generator)]
        later = ends[ends >= start]
        end = later[torch.randint(len(later), (1,), generator=generator)]
        pair = (start.item(), end.item())
        counted[pair] = counted.get(pair, 0) + 1
    drawn = subject_distribution(subjects)
    assert counted.keys() == drawn.keys()
    for pair, times in counted.items():
        assert times / draws == pytest.approx(float(drawn[pair]), abs=0.015)


def test_distribution_refuses():
    with raises(ValueError, "subjects must have 0 <= start <= end, got (3, 2)"):
        subject_distribution([(3, 2)])
    with raises(ValueError, "subjects must be all different, got (0, 2) twice"):
        subject_distribution([(0, 2), (1, 1), (0, 2)])
    with raises(ValueError, "rule must be 'published' or 'uniform', got 'random'"):
        subject_distribution([(0, 2)], "random")
    assert subject_distribution([]) == {}


# ------------------------------------------------------------------ conditional layer normalisation


def parameters(size, width, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((size,), (size,), (size, width), (size, width))
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_conditional_norm_against_loops(lead):
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(*lead, 4, 6, generator=generator, dtype=torch.float64)
    condition = torch.randn(*lead, 5, generator=generator, dtype=torch.float64)
    weight, bias, weight_map, bias_map = parameters(6, 5)
    out = conditional_layer_norm(hidden, condition, weight, bias, weight_map, bias_map, 1e-3)
    rows, conditions = hidden.reshape(-1, 4, 6), condition.reshape(-1, 5)
    for row, c, result in zip(rows, conditions, out.reshape(-1, 4, 6), strict=True):
        for token, normal in zip(row.tolist(), result.tolist(), strict=True):
            mean = math.fsum(token) / 6
            spread = math.sqrt(math.fsum((v - mean) ** 2 for v in token) / 6 + 1e-3)
            for d in range(6):
                gain = weight[d] + sum(weight_map[d, e] * c[e] for e in range(5))
                shift = bias[d] + sum(bias_map[d, e] * c[e] for e in range(5))
                expected = (token[d] - mean) / spread * gain + shift
                assert normal[d] == pytest.approx(expected.item(), rel=1e-12)


def test_conditional_norm_starts_as_layer_norm():
    hidden, condition = torch.randn(2, 4, 6), torch.randn(2, 5)
    weight, bias, _, _ = parameters(6, 5, dtype=torch.float32)
    zero = torch.zeros(6, 5)
    out = conditional_layer_norm(hidden, condition, weight, bias, zero, zero)
    plain = torch.nn.functional.layer_norm(hidden, (6,), weight, bias, 1e-12)
    torch.testing.assert_close(out, plain)


def test_conditional_norm_gradcheck():
    hidden = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    condition = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    rest = [p.requires_grad_() for p in parameters(4, 5)]
    assert torch.autograd.gradcheck(conditional_layer_norm, (hidden, condition, *rest, 1e-2))


def test_conditional_norm_refuses():
    hidden, condition = torch.randn(2, 4, 6), torch.randn(2, 5)
    good = parameters(6, 5, dtype=torch.float32)
    with raises(ValueError, "condition must have the leading dimensions of hidden (..., L, D)"):
        conditional_layer_norm(hidden, condition[:1], *good)
    for place, (name, shape) in enumerate(
        (("weight", (6,)), ("bias", (6,)), ("weight_map", (6, 5)), ("bias_map", (6, 5)))
    ):
        bad = list(good)
        bad[place] = torch.zeros(1, 1)
        with raises(ValueError, f"{name} must have shape {shape}, got (1, 1)"):
            conditional_layer_norm(hidden, condition, *bad)
