"""Checks of the numbered equations of chapter 1, in the order of the chapter.

Formulas are transcribed letter by letter, with loops; what they are compared with is computed
another way: by autograd, by quadrature, by enumeration, in 50 digits, by the library.
"""

import itertools
import math
from math import exp, log, log1p

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from lib.softmax import (
    inclusion_probabilities,
    log1mexp,
    smooth_f1,
    smooth_max,
    streaming_logsumexp,
    subset_logsumexp,
)

mp.mp.dps = 50
SU3290 = "Su (kexue 3290)"
SU2019 = "Su 2019 (kexue 6620)"
SU2020 = "Su 2020 (kexue 7359)"
STANDARD = "standard"
OURS = "ours"
INF = math.inf


def numbers(low=-6.0, high=6.0):
    # Thousandths: no two scores differ by less than rounding, so order and ties are meant.
    return st.integers(round(1000 * low), round(1000 * high)).map(lambda v: v / 1000)


def vectors(smallest=1, most=8, low=-6.0, high=6.0):
    return st.lists(numbers(low, high), min_size=smallest, max_size=most)


sharpness = st.sampled_from([0.3, 0.7, 1.0, 2.5, 6.0])


@st.composite
def targeted(draw, most=8):
    s = draw(vectors(2, most))
    return s, draw(st.integers(0, len(s) - 1))


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def gradient_of(function, s):
    x = tensor(s).requires_grad_()
    (gradient,) = torch.autograd.grad(function(x), x)
    return gradient


def lse(s, gamma=1.0):
    return log(sum(exp(gamma * v) for v in s)) / gamma


def softmax(s, gamma=1.0):
    total = sum(exp(gamma * v) for v in s)
    return [exp(gamma * v) / total for v in s]


def entropy(q):
    return -sum(v * log(v) for v in q if v > 0)


def dot(a, b):
    return sum(v * w for v, w in zip(a, b, strict=True))


# ---------------------------------------------------------------- 1 from absolute values


@pytest.mark.equation(
    "eq:softmax-max-abs",
    kind="identity",
    source=STANDARD,
    hypotheses="all real x, y",
    right=lambda x, y: (x + y + abs(x - y)) / 2,
    wrong={
        "two absolute values, right for x + y >= 0 only": lambda x, y: (
            (abs(x + y) + abs(x - y)) / 2
        ),
        "minus the distance: the minimum": lambda x, y: (x + y - abs(x - y)) / 2,
    },
)
@pytest.mark.differs(
    "max-of-two-absolute-values",
    source=SU3290,
    theirs="Starts from max(x, y) = (|x+y| + |x-y|)/2, for non-negative numbers, and later drops "
    "a constant and the negative exponents, which do not matter for a large scale.",
    ours="The midpoint form holds for all reals, and log-sum-exp follows from it exactly, for "
    "every scale; nothing is dropped.",
)
@given(numbers(), numbers())
def test_maximum_of_two(form, check, x, y):
    check.equal(form(x, y), max(x, y))


def step(t):
    return 1.0 if t > 0 else 0.0


@pytest.mark.equation(
    "eq:softmax-abs-step",
    kind="identity",
    source=SU3290,
    hypotheses="all real x; the value of the step at 0 does not matter",
    right=lambda t: 2 * step(t) - 1,
    wrong={"the step is not stretched": step},
)
@given(numbers())
def test_absolute_value_from_the_step(form, check, x):
    value, _ = integrate.quad(form, 0, x)
    check.equal(value, abs(x))


@pytest.mark.equation(
    "eq:smooth-step",
    kind="identity",
    source=OURS,
    hypotheses="x not 0",
    right=lambda x, gamma: 1 / (1 + exp(gamma * abs(x))),
    wrong={"the sign of x kept": lambda x, gamma: 1 / (1 + exp(gamma * x))},
)
@given(numbers(), sharpness)
def test_error_of_the_smooth_step(form, check, x, gamma):
    if x != 0:
        check.equal(form(x, gamma), abs(step(x) - torch.sigmoid(tensor(gamma * x))))


def smooth_abs(x, gamma):
    return 2 / gamma * log(1 + exp(gamma * x)) - x


def smooth_abs_even(x, gamma):
    return 2 / gamma * log(exp(gamma * x / 2) + exp(-gamma * x / 2))


@pytest.mark.equation(
    "eq:smooth-abs",
    kind="identity",
    source="Su (kexue 3290), with the square completed",
    hypotheses="all real x; gamma > 0",
    right=(smooth_abs, smooth_abs_even),
    wrong={
        "x is not subtracted": (lambda x, g: smooth_abs(x, g) + x, smooth_abs_even),
        "the constant 2 under the logarithm dropped": (
            smooth_abs,
            lambda x, g: log(exp(g * x) + exp(-g * x)) / g,
        ),
    },
)
@given(numbers(), sharpness)
def test_smooth_absolute_value(form, check, x, gamma):
    first, second = form
    area, _ = integrate.quad(lambda t: 2 / (1 + exp(-gamma * t)) - 1, 0, x)
    check.equal(first(x, gamma) - first(0, gamma), area, tol=1e-8)
    check.equal(second(x, gamma), first(x, gamma))


@pytest.mark.equation(
    "eq:smooth-abs-bounds",
    kind="inequality",
    source=OURS,
    hypotheses="all real x; equality on the right at 0",
    right=lambda gamma: 2 / gamma * log(2),
    wrong={"half of it": lambda gamma: log(2) / gamma},
)
@given(numbers(-3, 3), sharpness)
def test_smooth_absolute_value_lies_above(form, check, x, gamma):
    excess = mp.log(mp.e ** (gamma * mp.mpf(x) / 2) + mp.e ** (-gamma * mp.mpf(x) / 2))
    excess = 2 / mp.mpf(gamma) * excess - abs(mp.mpf(x))
    check.true(excess > 0, "not above")
    check.at_most(float(excess), form(gamma), slack=1e-12)
    check.equal(smooth_abs_even(0, gamma), form(gamma))


@pytest.mark.equation(
    "eq:smooth-max-two",
    kind="identity",
    source=OURS,
    hypotheses="all real x, y; every gamma > 0",
    right=lambda x, y, gamma: (x + y + smooth_abs_even(x - y, gamma)) / 2,
    wrong={
        "the source's form, which needs non-negative numbers and large gamma": lambda x, y, g: (
            log(exp(2 * g * x) + exp(-2 * g * x) + exp(2 * g * y) + exp(-2 * g * y)) / (2 * g)
        ),
    },
)
@given(numbers(), numbers(), sharpness)
def test_smooth_maximum_of_two(form, check, x, y, gamma):
    check.equal(form(x, y, gamma), lse([x, y], gamma))


@pytest.mark.equation(
    "eq:lse-definition",
    kind="definition",
    source=STANDARD,
    hypotheses="n >= 1 finite scores; gamma > 0",
    right=lse,
    wrong={
        "not divided by gamma": lambda s, gamma=1.0: gamma * lse(s, gamma),
        "the mean of the exponentials": lambda s, gamma=1.0: lse(s, gamma) - log(len(s)) / gamma,
    },
)
@given(vectors(), sharpness)
def test_definition(form, check, s, gamma):
    check.equal(form(s, gamma), smooth_max(tensor(s), gamma=gamma))
    check.equal(form(s), smooth_max(tensor(s)))


@st.composite
def partitions(draw):
    s = draw(vectors(2, 8))
    cut = draw(st.integers(1, len(s) - 1))
    order = draw(st.permutations(s))
    return list(order[:cut]), list(order[cut:])


@pytest.mark.equation(
    "eq:lse-associative",
    kind="identity",
    source=STANDARD,
    hypotheses="any partition into non-empty blocks",
    right=lambda blocks, gamma: lse([lse(b, gamma) for b in blocks], gamma),
    wrong={
        "the inner scale forgotten": lambda blocks, gamma: lse(
            [lse(b, 2 * gamma) for b in blocks], gamma
        ),
        "values of the blocks added": lambda blocks, gamma: sum(lse(b, gamma) for b in blocks),
    },
)
@given(partitions(), sharpness)
def test_associativity(form, check, blocks, gamma):
    whole = smooth_max(tensor(blocks[0] + blocks[1]), gamma=gamma)
    check.equal(form(blocks, gamma), whole)


# ---------------------------------------------------------------- 2 how far from the maximum


@pytest.mark.equation(
    "eq:lse-bounds",
    kind="inequality",
    source=STANDARD,
    hypotheses="n >= 1; equality on the right for n equal scores",
    right=lambda n, gamma: log(n) / gamma,
    wrong={
        "log n, whatever gamma": lambda n, gamma: log(n) / max(gamma, 1 / gamma),
        "log(n - 1)": lambda n, gamma: log(n - 1) / gamma if n > 1 else 0.0,
    },
)
@given(vectors(2), sharpness)
def test_error_bound(form, check, s, gamma):
    value = lse(s, gamma)
    check.at_most(max(s), value, slack=1e-12)
    check.at_most(value, max(s) + form(len(s), gamma), slack=1e-12)
    check.equal(lse([1.5] * len(s), gamma) - 1.5, form(len(s), gamma))


@pytest.mark.equation(
    "eq:lse-gap",
    kind="inequality",
    source=OURS,
    hypotheses="t scores share the maximum, the others lie at least Delta below",
    right=lambda n, t, gap, gamma: (log(t) / gamma, (n - t) / (t * gamma) * exp(-gamma * gap)),
    wrong={
        "the tie is forgotten": lambda n, t, gap, gamma: (
            0.0,
            (n - t) / (t * gamma) * exp(-gamma * gap),
        ),
        "the gap counted twice": lambda n, t, gap, gamma: (
            log(t) / gamma,
            (n - t) / (t * gamma) * exp(-2 * gamma * gap),
        ),
    },
)
@given(st.integers(1, 4), st.lists(numbers(0, 2), max_size=5), numbers(0, 3), sharpness)
def test_error_with_a_gap(form, check, t, further, gap, gamma):
    s = [*(1.0 - gap - d for d in further), *[1.0] * t]
    ties, rest = form(len(s), t, gap, gamma)
    check.at_most(ties, lse(s, gamma) - 1, slack=1e-12)
    check.at_most(lse(s, gamma) - 1, ties + rest, slack=1e-12)
    check.equal(sum(form(t, t, gap, gamma)), lse([1.0] * t, gamma) - 1)  # ties only
    # With all others at the gap the bound is tight to first order.
    small = [1.0] * t + [1.0 - 20 / gamma] * 3
    tight = sum(form(t + 3, t, 20 / gamma, gamma))
    check.equal(gamma * (lse(small, gamma) - 1), gamma * tight, tol=1e-14)


@pytest.mark.equation(
    "eq:lse-mean",
    kind="limit",
    source=STANDARD,
    hypotheses="n >= 1; error of order gamma",
    right=lambda s: sum(s) / len(s),
    wrong={"the maximum": max, "the median": lambda s: sorted(s)[len(s) // 2]},
)
@given(vectors(3, 6).filter(lambda s: np.std(s) > 0.5))
def test_mean_at_high_temperature(form, check, s):
    gammas = [1e-3, 3e-4, 1e-4]
    exact = [
        float(mp.log(mp.fsum(mp.exp(g * mp.mpf(v)) for v in s) / len(s)) / g - form(s))
        for g in map(mp.mpf, gammas)
    ]
    check.rate(gammas, [abs(e) for e in exact], order=1)


# ---------------------------------------------------------------- 3 shifts


@pytest.mark.equation(
    "eq:lse-shift",
    kind="identity",
    source=STANDARD,
    hypotheses="any real c",
    right=lambda value, c: value + c,
    wrong={
        "invariant: log-sum-exp does not change": lambda value, c: value,
        "the shift with the wrong sign": lambda value, c: value - c,
    },
)
@pytest.mark.differs(
    "lse-not-invariant",
    source="Dive into Deep Learning, exercise on softmax (d2l-en pull request 2592)",
    theirs="Asks to show that log-sum-exp is translation invariant, g(x) = g(x + b).",
    ours="It is equivariant, g(x + b) = g(x) + b; invariant is its gradient, softmax.",
)
@given(vectors(), numbers(1, 5), sharpness)
def test_translation(form, check, s, c, gamma):
    check.equal(lse([v + c for v in s], gamma), form(lse(s, gamma), c))


@pytest.mark.equation(
    "eq:lse-shift-trick",
    kind="identity",
    source=STANDARD,
    hypotheses="finite scores; no overflow whatever their size",
    right=lambda s, gamma: max(s) + log(sum(exp(gamma * (v - max(s))) for v in s)) / gamma,
    wrong={
        "the maximum is not added again": lambda s, gamma: (
            log(sum(exp(gamma * (v - max(s))) for v in s)) / gamma
        ),
    },
)
@given(vectors(), sharpness, st.sampled_from([1.0, 1e3, 1e6]))
def test_shift_trick(form, check, s, gamma, scale):
    s = [scale * (v + 7) for v in s]
    exact = mp.log(mp.fsum(mp.exp(mp.mpf(gamma) * mp.mpf(v)) for v in s)) / mp.mpf(gamma)
    check.equal(form(s, gamma), float(exact), tol=1e-14)
    check.equal(smooth_max(tensor(s), gamma=gamma), float(exact), tol=1e-14)


# ---------------------------------------------------------------- 4 gradient and curvature


@pytest.mark.equation(
    "eq:softmax-gradient",
    kind="gradient",
    source=STANDARD,
    hypotheses="finite scores; gamma > 0",
    right=softmax,
    wrong={
        "gamma times softmax": lambda s, gamma=1.0: [gamma * v for v in softmax(s, gamma)],
        "softmax without gamma": lambda s, gamma=1.0: softmax(s),
    },
)
@given(vectors(2), sharpness)
def test_gradient(form, check, s, gamma):
    ours = gradient_of(lambda x: smooth_max(x, gamma=gamma), s)
    check.equal(form(s, gamma), ours)
    check.equal(form(s), gradient_of(smooth_max, s))
    direct = gradient_of(lambda x: (gamma * x).exp().sum().log() / gamma, s)
    check.equal(form(s, gamma), direct)
    h = 1e-5
    for i in range(len(s)):
        up, down = (lse([v + d * (j == i) for j, v in enumerate(s)], gamma) for d in (h, -h))
        check.equal(form(s, gamma)[i], (up - down) / (2 * h), tol=1e-7)


@pytest.mark.differs(
    "logsumexp-gradient-nan",
    source="PyTorch 2.13, torch.logsumexp (pytorch issue 31829)",
    theirs="The gradient of a row of minus infinities is NaN.",
    ours="Nothing counts, so the gradient of the maximum over nothing is zero.",
)
def test_torch_gradient_of_nothing_is_nan():
    nothing = [-INF, -INF, -INF]
    assert gradient_of(lambda x: torch.logsumexp(x, 0), nothing).isnan().all()
    assert gradient_of(lambda x: torch.logaddexp(x[0], x[1]), nothing)[:2].isnan().all()
    assert gradient_of(smooth_max, nothing).tolist() == [0.0] * 3


@pytest.mark.differs(
    "logsumexp-gradient-rounded",
    source="PyTorch 2.13, torch.logsumexp in float32",
    theirs="The backward pass starts from the rounded result: seven ties at 1e4 get shares whose "
    "sum is not 1 by more than 1e-4.",
    ours="Maximum and logarithm of the sum are kept apart; the sum is 1 to 1e-6.",
)
def test_torch_gradient_at_ten_thousand_is_coarse():
    def off(function):
        x = torch.full((7,), 1e4, requires_grad=True)
        (gradient,) = torch.autograd.grad(function(x), x)
        return abs(float(gradient.double().sum()) - 1)

    assert off(lambda x: torch.logsumexp(x, 0)) > 1e-4
    assert off(smooth_max) < 1e-6


@pytest.mark.differs(
    "logsumexp-half-precision",
    source="PyTorch 2.13, torch.logsumexp in half precision on a CPU",
    theirs="70000 zeros in float16 give infinity, as the sum overflows although no term does; "
    "autocast to bfloat16 leaves the function in bfloat16.",
    ours="Half precision is computed in float32.",
)
def test_torch_half_precision():
    zeros = torch.zeros(70_000, dtype=torch.float16)
    assert torch.logsumexp(zeros, 0).isinf()
    assert abs(float(smooth_max(zeros)) - log(70_000)) < 1e-5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = torch.ones(2, 2) @ torch.ones(2, 2)
        assert torch.logsumexp(low, -1).dtype == torch.bfloat16
        assert smooth_max(low).dtype == torch.float32


@pytest.mark.equation(
    "eq:softmax-shift",
    kind="identity",
    source=STANDARD,
    hypotheses="any real c",
    right=lambda s, c: [v + c for v in s],
    wrong={"only the first score is shifted": lambda s, c: [s[0] + c, *s[1:]]},
)
@given(vectors(2), numbers(1, 5))
def test_softmax_is_invariant(form, check, s, c):
    moved = form(s, c)
    check.equal(softmax(moved), torch.softmax(tensor(s), 0))
    check.equal(moved[0], s[0] + c)  # it is moved, and by c


@pytest.mark.equation(
    "eq:lse-lipschitz",
    kind="inequality",
    source=STANDARD,
    hypotheses="equality for a common shift",
    right=lambda s, r: max(abs(v - w) for v, w in zip(s, r, strict=True)),
    wrong={
        "the mean of the differences": lambda s, r: (
            sum(abs(v - w) for v, w in zip(s, r, strict=True)) / len(s)
        ),
    },
)
@given(st.lists(st.tuples(numbers(), numbers()), min_size=2, max_size=8), sharpness)
def test_lipschitz(form, check, pairs, gamma):
    s, r = map(list, zip(*pairs, strict=True))
    check.at_most(abs(lse(s, gamma) - lse(r, gamma)), form(s, r), slack=1e-12)
    moved = [v + 2 for v in s]
    check.equal(lse(moved, gamma) - lse(s, gamma), form(s, moved))
    alone = [20.0, *[0.0] * 3]
    check.at_most(lse([23.0, *alone[1:]]) - lse(alone), form(alone, [23.0, *alone[1:]]), 1e-12)


def hessian(s, gamma):
    p = softmax(s, gamma)
    return [[gamma * (p[i] * (i == j) - p[i] * p[j]) for j in range(len(s))] for i in range(len(s))]


@pytest.mark.equation(
    "eq:lse-hessian",
    kind="gradient",
    source=STANDARD,
    hypotheses="finite scores",
    right=hessian,
    wrong={
        "gamma forgotten": lambda s, gamma: hessian([gamma * v for v in s], 1.0),
        "the diagonal only": lambda s, gamma: (gamma * tensor(softmax(s, gamma)).diag()).tolist(),
    },
)
@given(vectors(2, 5), sharpness)
def test_hessian(form, check, s, gamma):
    h = torch.func.hessian(lambda x: smooth_max(x, gamma=gamma))(tensor(s))
    check.equal(form(s, gamma), h)


def weighted_variance(p, v):
    return dot(p, [w * w for w in v]) - dot(p, v) ** 2


@pytest.mark.equation(
    "eq:lse-variance",
    kind="identity",
    source=STANDARD,
    hypotheses="any direction v; zero exactly for constant v",
    right=lambda s, v, gamma: gamma * weighted_variance(softmax(s, gamma), v),
    wrong={
        "the second moment": lambda s, v, gamma: gamma * dot(softmax(s, gamma), [w * w for w in v]),
        "without gamma": lambda s, v, gamma: weighted_variance(softmax(s, gamma), v),
    },
)
@given(st.lists(st.tuples(numbers(), numbers(0.5, 2)), min_size=2, max_size=5), sharpness)
def test_curvature_is_a_variance(form, check, pairs, gamma):
    s, v = map(list, zip(*pairs, strict=True))
    h = torch.func.hessian(lambda x: (gamma * x).exp().sum().log() / gamma)(tensor(s))
    check.equal(form(s, v, gamma), tensor(v) @ h @ tensor(v))
    check.equal(form(s, [1.7] * len(s), gamma), 0.0)


@pytest.mark.equation(
    "eq:lse-hessian-bound",
    kind="inequality",
    source=STANDARD,
    hypotheses="equality for two scores that share everything; for n > 2 in the limit",
    right=lambda gamma: gamma / 2,
    wrong={"a quarter, as for one sigmoid": lambda gamma: gamma / 4},
)
@given(vectors(2, 6, -3, 3), sharpness)
def test_curvature_is_bounded(form, check, s, gamma):
    eigenvalues = np.linalg.eigvalsh(np.array(hessian(s, gamma)))
    check.at_most(0, eigenvalues, slack=1e-12)
    check.at_most(eigenvalues, form(gamma), slack=1e-12)
    tie = np.linalg.eigvalsh(np.array(hessian([0.0, 0.0, -60 / gamma, -60 / gamma], gamma)))
    check.equal(tie[-1], form(gamma))


# ---------------------------------------------------------------- 5 the dual view


@st.composite
def with_distribution(draw, smallest=2):
    s = draw(vectors(smallest, 6))
    weights = draw(st.lists(st.floats(0.01, 1), min_size=len(s), max_size=len(s)))
    return s, [w / sum(weights) for w in weights]


def by_entropy(s, q, gamma, sign=1):
    p = softmax(s, gamma)
    divergence = sum(v * log(v / w) for v, w in zip(q, p, strict=True))
    return dot(q, s) + entropy(q) / gamma + sign * divergence / gamma


@pytest.mark.equation(
    "eq:lse-entropy",
    kind="identity",
    source=STANDARD,
    hypotheses="any distribution q",
    right=by_entropy,
    wrong={
        "the divergence subtracted": lambda s, q, g: by_entropy(s, q, g, -1),
        "the divergence from p to q": lambda s, q, g: (
            by_entropy(s, q, g, 0)
            + sum(w * log(w / v) for v, w in zip(q, softmax(s, g), strict=True)) / g
        ),
    },
)
@given(with_distribution(), sharpness)
def test_entropy_identity(form, check, case, gamma):
    s, q = case
    check.equal(form(s, q, gamma), smooth_max(tensor(s), gamma=gamma))


@pytest.mark.equation(
    "eq:lse-dual",
    kind="inequality",
    source=STANDARD,
    hypotheses="maximum over all distributions, attained at softmax only",
    right=lambda s, q, gamma: dot(q, s) + entropy(q) / gamma,
    wrong={
        "without the entropy": lambda s, q, gamma: dot(q, s),
        "entropy times gamma": lambda s, q, gamma: dot(q, s) + gamma * entropy(q),
    },
)
@given(with_distribution(), sharpness)
def test_duality(form, check, case, gamma):
    s, inner = case
    p = softmax(s, gamma)
    check.equal(form(s, p, gamma), lse(s, gamma))
    # At softmax only: elsewhere, on the boundary too, Pinsker's distance is missing at least.
    faces = [[v * (i != j) / (1 - inner[j]) for i, v in enumerate(inner)] for j in range(len(s))]
    corners = [[float(i == j) for i in range(len(s))] for j in range(len(s))]
    for q in [inner, *(faces if len(s) > 1 else []), *corners]:
        far = sum(abs(v - w) for v, w in zip(q, p, strict=True))
        check.at_most(form(s, q, gamma), lse(s, gamma) - far**2 / (2 * gamma), slack=1e-12)


@pytest.mark.equation(
    "eq:lse-temperature",
    kind="gradient",
    source=STANDARD,
    hypotheses="gamma > 0",
    right=lambda s, gamma: -entropy(softmax(s, gamma)) / gamma**2,
    wrong={
        "gamma is not squared": lambda s, gamma: -entropy(softmax(s, gamma)) / gamma,
        "grows": lambda s, gamma: entropy(softmax(s, gamma)) / gamma**2,
    },
)
@given(vectors(2), sharpness)
def test_derivative_in_gamma(form, check, s, gamma):
    g = torch.tensor(gamma, dtype=torch.float64, requires_grad=True)
    ((g * tensor(s)).exp().sum().log() / g).backward()
    check.equal(form(s, gamma), g.grad, tol=1e-9)
    h = 1e-5 * gamma
    check.equal(form(s, gamma), (lse(s, gamma + h) - lse(s, gamma - h)) / (2 * h), tol=1e-5)


# ---------------------------------------------------------------- 6 null class and streams


@pytest.mark.equation(
    "eq:lse-null",
    kind="definition",
    source=STANDARD,
    hypotheses="n >= 0 finite scores",
    right=lambda s: log(1 + sum(exp(v) for v in s)),
    wrong={"the null class is missing": lse},
)
@given(vectors(), numbers())
def test_null_class(form, check, s, x):
    check.equal(form(s), smooth_max(tensor([0.0, *s])))
    check.equal(form([x]), torch.nn.functional.softplus(tensor(x)))


@pytest.mark.equation(
    "eq:lse-null-mass",
    kind="gradient",
    source=STANDARD,
    hypotheses="finite scores",
    right=lambda s: sum(exp(v) for v in s) / (1 + sum(exp(v) for v in s)),
    wrong={"the mass is one": lambda s: 1.0},
)
@given(vectors())
def test_null_class_leaves_less_than_one(form, check, s):
    check.equal(form(s), gradient_of(lambda x: torch.log1p(x.exp().sum()), s).sum())
    check.at_most(form(s), 1 - 1e-6)


def merge(one, two):
    top = max(one[0], two[0])
    return top, one[1] * exp(one[0] - top) + two[1] * exp(two[0] - top)


def pair_of(s):
    return max(s), sum(exp(v - max(s)) for v in s)


@pytest.mark.equation(
    "eq:lse-stream",
    kind="identity",
    source="Milakov & Gimelshein 2018",
    hypotheses="finite scores in both parts",
    right=merge,
    wrong={
        "the sums are not rescaled": lambda one, two: (max(one[0], two[0]), one[1] + two[1]),
        "rescaled the wrong way": lambda one, two: (
            max(one[0], two[0]),
            one[1] * exp(max(one[0], two[0]) - one[0]) + two[1] * exp(max(one[0], two[0]) - two[0]),
        ),
    },
)
@given(partitions(), st.sampled_from([0.0, 900.0]))
def test_merge_of_two_parts(form, check, blocks, offset):
    parts = [[v + offset for v in b] for b in blocks]
    top, total = form(*map(pair_of, parts))
    whole = tensor(parts[0] + parts[1])
    check.equal(top + log(total), torch.logsumexp(whole, 0))
    check.equal([top, total], list(pair_of(whole.tolist())))
    check.equal(streaming_logsumexp(map(tensor, parts)), torch.logsumexp(whole, 0))


@pytest.mark.equation(
    "eq:lse-stream-gradient",
    kind="gradient",
    source=OURS,
    hypotheses="finite scores; block B contains i",
    right=lambda block, whole: [exp(lse(block) - lse(whole)) * v for v in softmax(block)],
    wrong={
        "the block's share upside down": lambda block, whole: [
            exp(lse(whole) - lse(block)) * v for v in softmax(block)
        ],
        "share within the block only": lambda block, whole: softmax(block),
    },
)
@given(partitions())
def test_gradient_through_a_stream(form, check, blocks):
    leaves = [tensor(b).requires_grad_() for b in blocks]
    streaming_logsumexp([lambda leaf=leaf: 1 * leaf for leaf in leaves]).backward()
    whole = blocks[0] + blocks[1]
    for leaf, block in zip(leaves, blocks, strict=True):
        check.equal(form(block, whole), leaf.grad)
    check.equal(form(blocks[0], whole), torch.softmax(tensor(whole), 0)[: len(blocks[0])])


@pytest.mark.equation(
    "eq:lse-log1mexp",
    kind="identity",
    source="Mächler 2012",
    hypotheses="u < 0; relative error of a few units in the last place",
    right=(lambda u: log(-math.expm1(u)), lambda u: log1p(-exp(u))),
    wrong={
        "the other line on either side": (
            lambda u: log1p(-exp(u)),
            lambda u: log(-math.expm1(u)) if u > -36 else 0.0,
        ),
        "as it stands": (lambda u: log(1 - exp(u)),) * 2,
    },
)
@given(st.floats(-13, 2))
def test_logarithm_of_a_complement(form, check, exponent):
    near, far = form
    switch = -log(2)
    for u in (-(10.0**exponent), -1e-12, -40.0, switch, math.nextafter(switch, 0)):
        exact = mp.log1p(-mp.exp(mp.mpf(u)))
        line = near if u > switch else far
        check.equal(float(line(u) / exact), 1.0, tol=1e-14)
        check.equal(float(log1mexp(tensor(u)).item() / exact), 1.0, tol=1e-14)


# ---------------------------------------------------------------- 7 cross-entropy


def ce(s, target):
    return float(torch.nn.functional.cross_entropy(tensor(s), torch.tensor(target)))


@pytest.mark.equation(
    "eq:ce-definition",
    kind="definition",
    source=STANDARD,
    hypotheses="one target class",
    right=lambda s, t: (-log(softmax(s)[t]), lse(s) - s[t]),
    wrong={"the target is added": lambda s, t: (-log(softmax(s)[t]), lse(s) + s[t])},
)
@given(targeted())
def test_cross_entropy(form, check, case):
    check.equal(form(*case), [ce(*case)] * 2)


def margins(s, t):
    return log(1 + sum(exp(v - s[t]) for i, v in enumerate(s) if i != t))


def rivals(s, t):
    return [v for i, v in enumerate(s) if i != t]


@pytest.mark.equation(
    "eq:ce-margin",
    kind="identity",
    source=SU2020,
    hypotheses="n >= 2",
    right=(margins, lambda s, t: log1p(exp(lse(rivals(s, t)) - s[t]))),
    wrong={
        "the 1 is left out": (
            lambda s, t: lse(rivals(s, t)) - s[t],
            lambda s, t: log1p(exp(lse(rivals(s, t)) - s[t])),
        ),
        "the target among its rivals": (margins, lambda s, t: log1p(exp(lse(s) - s[t]))),
    },
)
@given(targeted())
def test_cross_entropy_by_margins(form, check, case):
    for line in form:
        check.equal(line(*case), ce(*case))


def hinge(s, t):
    return max(0.0, max(rivals(s, t)) - s[t])


@pytest.mark.equation(
    "eq:ce-hinge",
    kind="inequality",
    source=STANDARD,
    hypotheses="n >= 2; equality on the right if all scores are equal",
    right=lambda s, t: (hinge(s, t), hinge(s, t) + log(len(s))),
    wrong={
        "log(n - 1)": lambda s, t: (hinge(s, t), hinge(s, t) + log(len(s) - 1)),
        "a margin of 1, as in support vector machines": lambda s, t: (
            max(0.0, 1 + max(rivals(s, t)) - s[t]),
            hinge(s, t) + log(len(s)),
        ),
    },
)
@given(targeted())
def test_hinge_sandwich(form, check, case):
    low, high = form(*case)
    check.at_most(low, ce(*case), slack=1e-12)
    check.at_most(ce(*case), high, slack=1e-12)
    ties = [0.7] * len(case[0])
    check.equal(ce(ties, 0), form(ties, 0)[1])


@pytest.mark.equation(
    "eq:ce-cold",
    kind="limit",
    source=STANDARD,
    hypotheses="n >= 2; error at most T log n, attained for equal scores",
    right=hinge,
    wrong={
        "the margin without the cut at 0": lambda s, t: max(rivals(s, t)) - s[t],
        "the value at T = 1": ce,
    },
)
@given(targeted())
def test_cold_cross_entropy(form, check, case):
    s, t = case
    for temperature in (0.1, 0.01, 1e-3, 1e-4):
        cold = temperature * ce([v / temperature for v in s], t)
        check.at_most(abs(cold - form(s, t)), temperature * log(len(s)), slack=1e-12)
    temperatures = [0.1, 0.01, 1e-3]
    s = [0.0] * len(s)
    errors = [x * ce([v / x for v in s], t) - hinge(s, t) for x in temperatures]
    check.rate(temperatures, errors, order=1, within=0.01)


@pytest.mark.equation(
    "eq:ce-zero-one",
    kind="inequality",
    source=STANDARD,
    hypotheses="ties count as mistakes; equality for two classes that tie",
    right=lambda loss: loss / log(2),
    wrong={"in natural units": lambda loss: loss},
)
@given(targeted())
def test_bound_on_mistakes(form, check, case):
    s, t = case
    check.at_most(float(max(rivals(s, t)) >= s[t]), form(ce(s, t)), slack=1e-12)
    check.equal(form(ce([1.0, 1.0], 0)), 1.0)


@pytest.mark.equation(
    "eq:ce-start",
    kind="identity",
    source=STANDARD,
    hypotheses="n classes, all scores 0",
    right=log,
    wrong={"n log 2, as for n yes/no questions": lambda n: n * log(2)},
)
@given(st.integers(1, 500))
def test_loss_of_a_fresh_head(form, check, n):
    check.equal(form(n), ce([0.0] * n, n - 1))


@pytest.mark.equation(
    "eq:ce-gradient",
    kind="gradient",
    source=STANDARD,
    hypotheses="one target class",
    right=lambda s, t: [p - (i == t) for i, p in enumerate(softmax(s))],
    wrong={
        "target minus probability": lambda s, t: [(i == t) - p for i, p in enumerate(softmax(s))]
    },
)
@given(targeted())
def test_gradient_of_cross_entropy(form, check, case):
    s, t = case
    ours = gradient_of(lambda x: torch.nn.functional.cross_entropy(x, torch.tensor(t)), s)
    check.equal(form(s, t), ours)


@pytest.mark.equation(
    "eq:ce-balance",
    kind="gradient",
    source=STANDARD,
    hypotheses="n >= 2",
    right=lambda p: 1 - p,
    wrong={"the target's own probability": lambda p: p},
)
@given(targeted())
def test_balance_of_mass(form, check, case):
    s, t = case
    gradient = gradient_of(lambda x: torch.logsumexp(x, 0) - x[t], s)
    mass = form(softmax(s)[t])
    check.equal(gradient.sum() - gradient[t], mass)
    check.equal(-gradient[t], mass)


@pytest.mark.equation(
    "eq:ce-proper",
    kind="identity",
    source=STANDARD,
    hypotheses="all pi_i > 0",
    right=lambda s, pi: (
        entropy(pi) + sum(v * log(v / p) for v, p in zip(pi, softmax(s), strict=True))
    ),
    wrong={
        "the divergence from model to truth": lambda s, pi: (
            entropy(pi) + sum(p * log(p / v) for v, p in zip(pi, softmax(s), strict=True))
        ),
        "entropy of the model": lambda s, pi: (
            entropy(softmax(s)) + sum(v * log(v / p) for v, p in zip(pi, softmax(s), strict=True))
        ),
    },
)
@given(with_distribution())
def test_expected_cross_entropy(form, check, case):
    s, pi = case
    check.equal(form(s, pi), dot(pi, [ce(s, t) for t in range(len(s))]))
    check.at_most(entropy(pi), form(s, pi), slack=1e-12)
    check.equal(form([log(v) for v in pi], pi), entropy(pi))


# ---------------------------------------------------------------- 8 smoothing


@pytest.mark.equation(
    "eq:smooth-onehot",
    kind="inequality",
    source=OURS,
    hypotheses="a unique winner, gap Delta to the next",
    right=lambda n, gap, gamma: (n - 1) * exp(-gamma * gap),
    wrong={
        "one rival only": lambda n, gap, gamma: exp(-gamma * gap),
        "the gap counted twice": lambda n, gap, gamma: (n - 1) * exp(-2 * gamma * gap),
    },
)
@given(vectors(2), numbers(0.2, 3), sharpness)
def test_share_of_the_losers(form, check, further, gap, gamma):
    s = [max(further) + gap, *further]
    n = len(s)
    check.at_most(1 - max(softmax(s, gamma)), form(n, gap, gamma), slack=1e-12)
    cold = [1.0] + [1.0 - 12 / gamma] * (n - 1)  # tight to first order
    check.equal((1 - max(softmax(cold, gamma))) / form(n, 12 / gamma, gamma), 1.0, tol=1e-3)


@pytest.mark.equation(
    "eq:smooth-mean-max",
    kind="identity",
    source=STANDARD,
    hypotheses="finite scores",
    right=lambda s, gamma: lse(s, gamma) - entropy(softmax(s, gamma)) / gamma,
    wrong={"log-sum-exp itself": lse},
)
@given(vectors(2), sharpness)
def test_mean_under_softmax(form, check, s, gamma):
    mean = torch.softmax(gamma * tensor(s), 0) @ tensor(s)
    check.equal(form(s, gamma), mean)
    check.at_most(form(s, gamma), max(s), slack=1e-12)
    check.at_most(max(s), lse(s, gamma), slack=1e-12)


def boltzmann(s, gamma):
    p = softmax(s, gamma)
    mean = dot(p, s)
    return [w * (1 + gamma * (v - mean)) for w, v in zip(p, s, strict=True)]


@pytest.mark.equation(
    "eq:smooth-boltzmann",
    kind="gradient",
    source=STANDARD,
    hypotheses="finite scores",
    right=boltzmann,
    wrong={"softmax alone": softmax},
)
@given(vectors(2), sharpness)
def test_mean_is_not_monotone(form, check, s, gamma):
    check.equal(form(s, gamma), gradient_of(lambda x: torch.softmax(gamma * x, 0) @ x, s))
    check.true(form([0.0, 4.0 / gamma], gamma)[0] < 0, "the smaller score should lower the mean")


def smooth_index(s):
    return sum((i + 1) * p for i, p in enumerate(softmax(s)))


@pytest.mark.equation(
    "eq:smooth-argmax",
    kind="approximation",
    source=SU2019,
    hypotheses="a unique winner; error at most (n - 1) times the losers' share",
    right=smooth_index,
    wrong={
        "counted from 0": lambda s: smooth_index(s) - 1,
        "the squared probabilities as weights": lambda s: sum(
            (i + 1) * p**2 for i, p in enumerate(softmax(s))
        ),
    },
)
@given(vectors())
def test_smooth_index(form, check, s):
    shares = torch.softmax(tensor(s), 0)
    check.equal(form(s), torch.arange(1.0, len(s) + 1, dtype=torch.float64) @ shares)
    if s.count(max(s)) == 1:
        losers = 1 - float(shares.max())
        check.at_most(abs(form(s) - np.argmax(s) - 1), (len(s) - 1) * losers, slack=1e-12)
        cold = [40 * 1000 * v for v in s]  # thousandths: each gap is 40 or more
        check.equal(form([v - max(cold) for v in cold]), float(np.argmax(s) + 1))
    check.equal(form([5.0, 0.0, 5.0]), 2.0)


@pytest.mark.equation(
    "eq:smooth-accuracy",
    kind="identity",
    source=SU2019,
    hypotheses="one target class",
    right=lambda s, t: (softmax(s)[t], exp(-ce(s, t))),
    wrong={"one minus the loss": lambda s, t: (softmax(s)[t], 1 - ce(s, t))},
)
@given(targeted())
def test_smooth_accuracy(form, check, case):
    s, t = case
    share, by_loss = form(s, t)
    check.equal(by_loss, share)
    check.equal(share, torch.softmax(tensor(s), 0)[t])


@pytest.mark.equation(
    "eq:smooth-accuracy-gradient",
    kind="gradient",
    source=STANDARD,
    hypotheses="one target class",
    right=lambda s, t: [-softmax(s)[t] * (p - (i == t)) for i, p in enumerate(softmax(s))],
    wrong={
        "without the factor p": lambda s, t: [(i == t) - p for i, p in enumerate(softmax(s))],
        "of the wrong sign": lambda s, t: [
            softmax(s)[t] * (p - (i == t)) for i, p in enumerate(softmax(s))
        ],
    },
)
@given(targeted())
def test_gradient_of_smooth_accuracy(form, check, case):
    s, t = case
    check.equal(form(s, t), gradient_of(lambda x: torch.softmax(x, 0)[t], s))


shares = st.lists(st.tuples(st.floats(0.01, 1), st.booleans()), min_size=2, max_size=9)


def f1(p, y):
    return 2 * dot(y, p) / (sum(y) + sum(p))


@pytest.mark.equation(
    "eq:smooth-f1",
    kind="definition",
    source=SU2019,
    hypotheses="probabilities and targets in [0, 1], not all 0",
    right=f1,
    wrong={"the factor 2 is missing": lambda p, y: f1(p, y) / 2},
)
@given(shares)
def test_smooth_f1(form, check, pairs):
    p, y = [a for a, _ in pairs], [float(b) for _, b in pairs]
    check.equal(form(p, y), smooth_f1(tensor(p), tensor(y)))
    decisions = [float(a > 0.5) for a in p] if max(p) > 0.5 else [1.0] * len(p)
    hits = dot(decisions, y)
    missed, alarms = sum(y) - hits, sum(decisions) - hits
    check.equal(form(decisions, y), 2 * hits / (2 * hits + missed + alarms))


@pytest.mark.equation(
    "eq:smooth-f1-gradient",
    kind="gradient",
    source=OURS,
    hypotheses="not all 0",
    right=lambda p, y: [(2 * b - f1(p, y)) / (sum(y) + sum(p)) for b in y],
    wrong={
        "F counted twice": lambda p, y: [(2 * b - 2 * f1(p, y)) / (sum(y) + sum(p)) for b in y],
        "the denominator held fixed": lambda p, y: [2 * b / (sum(y) + sum(p)) for b in y],
    },
)
@given(shares.filter(lambda pairs: any(b for _, b in pairs)))
def test_gradient_of_smooth_f1(form, check, pairs):
    p, y = [a for a, _ in pairs], [float(b) for _, b in pairs]
    check.equal(form(p, y), gradient_of(lambda x: smooth_f1(x, tensor(y)), p))
    h = 1e-6
    up = f1([p[0] + h, *p[1:]], y)
    down = f1([p[0] - h, *p[1:]], y)
    check.equal(form(p, y)[0], (up - down) / (2 * h), tol=1e-7)


def best_decisions(pi):
    sets = (c for c in itertools.product((0.0, 1.0), repeat=len(pi)) if any(c))
    best = max(sets, key=lambda c: f1(c, pi))
    return f1(best, pi), [bool(v) for v in best]


@pytest.mark.equation(
    "eq:smooth-f1-cut",
    kind="identity",
    source="Lipton et al. 2014",
    hypotheses="truths replaced by their probabilities; none equal to half the best F",
    right=lambda pi, best: [v > best / 2 for v in pi],
    wrong={
        "the threshold one half": lambda pi, best: [v > 0.5 for v in pi],
        "the threshold F*": lambda pi, best: [v > best for v in pi],
    },
)
@given(st.lists(st.floats(0.02, 0.98), min_size=2, max_size=7, unique=True))
def test_best_threshold_for_f1(form, check, pi):
    best, chosen = best_decisions(pi)
    if min(abs(v - best / 2) for v in pi) > 1e-9:
        check.equal(form(pi, best), [float(c) for c in chosen])


def batch_terms(p, y):
    denominators = [sum(a) + sum(b) for a, b in zip(p, y, strict=True)]
    values = [f1(a, b) for a, b in zip(p, y, strict=True)]
    mean = sum(denominators) / len(p)
    covariance = dot(denominators, values) / len(p) - mean * sum(values) / len(p)
    return mean, covariance


@pytest.mark.equation(
    "eq:smooth-f1-batch",
    kind="identity",
    source=OURS,
    hypotheses="no batch in which all is 0",
    right=lambda p, y: -batch_terms(p, y)[1] / batch_terms(p, y)[0],
    wrong={
        "no bias, as for a mean over samples": lambda p, y: 0.0,
        "of the wrong sign": lambda p, y: batch_terms(p, y)[1] / batch_terms(p, y)[0],
    },
)
@given(st.lists(shares.map(lambda v: v[:2]), min_size=2, max_size=5))
def test_bias_of_batches(form, check, batches):
    p = [[a for a, _ in batch] for batch in batches]
    y = [[float(b) for _, b in batch] for batch in batches]
    mean = sum(f1(a, b) for a, b in zip(p, y, strict=True)) / len(p)
    check.equal(form(p, y), mean - f1(list(itertools.chain(*p)), list(itertools.chain(*y))))


# ---------------------------------------------------------------- 9 subsets


@st.composite
def subsets(draw, smallest=2, most=7):
    s = draw(vectors(smallest, most, -3, 3))
    return s, draw(st.integers(1, len(s)))


def z(s, k):
    return math.fsum(exp(sum(c)) for c in itertools.combinations(s, k))


@pytest.mark.equation(
    "eq:smooth-subset",
    kind="definition",
    source=SU2020,
    hypotheses="1 <= k <= n",
    right=z,
    wrong={
        "labels may repeat": lambda s, k: math.fsum(
            exp(sum(c)) for c in itertools.combinations_with_replacement(s, k)
        ),
        "order counts": lambda s, k: math.factorial(k) * z(s, k),
    },
)
@given(subsets())
def test_sum_over_subsets(form, check, case):
    s, k = case
    check.equal(log(form(s, k)), subset_logsumexp(tensor(s), k))
    coefficients = np.poly([-exp(v) for v in s])
    check.equal(log(form(s, k)), log(coefficients[k]), tol=1e-9)


def inclusion(s, k):
    return [
        math.fsum(
            exp(sum(s[j] for j in c)) for c in itertools.combinations(range(len(s)), k) if i in c
        )
        / z(s, k)
        for i in range(len(s))
    ]


@pytest.mark.equation(
    "eq:smooth-inclusion",
    kind="gradient",
    source=OURS,
    hypotheses="1 <= k <= n",
    right=inclusion,
    wrong={
        "k times softmax": lambda s, k: [k * v for v in softmax(s)],
        "one member fewer": lambda s, k: inclusion(s, k - 1) if k > 1 else [0.0] * len(s),
    },
)
@given(subsets())
def test_inclusion_probabilities(form, check, case):
    s, k = case
    check.equal(form(s, k), inclusion_probabilities(tensor(s), k))
    check.equal(form(s, k), gradient_of(lambda x: subset_logsumexp(x, k), s))
    sets = list(itertools.combinations(range(len(s)), k))
    direct = gradient_of(
        lambda x: torch.logsumexp(torch.stack([x[list(c)].sum() for c in sets]), 0), s
    )
    check.equal(form(s, k), direct)
    check.equal(sum(form(s, k)), float(k))


def halves(a, b, t):
    sizes = range(max(0, t - len(b)), min(t, len(a)) + 1)
    return lse([log(z(a, i)) + log(z(b, t - i)) for i in sizes])


@pytest.mark.equation(
    "eq:smooth-subset-merge",
    kind="identity",
    source=STANDARD,
    hypotheses="0 <= t <= n; terms with i or j beyond the size of a half are left out",
    right=halves,
    wrong={
        "the sizes add up to t - 1": lambda a, b, t: halves(a, b, t - 1),
        "one half only": lambda a, b, t: log(z(a, min(t, len(a)))),
    },
)
@given(partitions(), st.data())
def test_two_halves(form, check, blocks, data):
    a, b = blocks
    t = data.draw(st.integers(1, len(a) + len(b)))
    check.equal(form(a, b, t), log(z(a + b, t)))


def second_round(s):
    first = softmax(s)
    weights = [exp(v) * (1 - p) for v, p in zip(s, first, strict=True)]
    return [w / sum(weights) for w in weights]


@pytest.mark.equation(
    "eq:smooth-repeated",
    kind="identity",
    source=OURS,
    hypotheses="k = 2, n >= 2",
    right=lambda s: [2 * v for v in second_round(s)],
    wrong={
        "repeated softmax: both rounds added": lambda s: [
            v + w for v, w in zip(softmax(s), second_round(s), strict=True)
        ],
    },
)
@pytest.mark.differs(
    "repeated-softmax",
    source="Plötz & Roth 2018; Xie & Ermon 2019 (relaxed top-k)",
    theirs="Adds the rounds of a softmax that is masked by what was chosen before, as a relaxed "
    "indicator of the k best.",
    ours="For k = 2 twice the second round is exactly the probability of being in a random pair. "
    "The sum of both rounds is not, and can reach 3/2.",
)
@given(vectors(2, 6, -3, 3))
def test_second_round_is_inclusion(form, check, s):
    check.equal(form(s), inclusion_probabilities(tensor(s), 2))
    added = [v + w for v, w in zip(softmax([0.0, 8.0]), second_round([0.0, 8.0]), strict=True)]
    check.at_most(1.49, max(added))
    check.equal(form([0.0, 8.0]), [1.0, 1.0])
