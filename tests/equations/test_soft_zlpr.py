"""Checks of the numbered equations of chapter 3, in the order of the chapter.

Every function that transcribes a formula is written with loops, letter by letter. What it is
compared with is computed another way: by autograd, by a solver, in 50 digits, by the library.
"""

import functools
import itertools
import math
import statistics
from fractions import Fraction
from math import e, exp, log, log1p, prod, sqrt

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special

from lib.soft_zlpr import (
    fit_scale,
    fit_scale_and_offset,
    mixup_loss,
    smooth_labels,
    smooth_positives,
    smooth_spans,
    soft_zlpr_loss,
)
from lib.zlpr import zlpr_loss

SU = "Su 2022 (kexue 9064)"
SU9158 = "Su 2022 (kexue 9158)"
STANDARD = "standard"
OURS = "ours"

# ---------------------------------------------------------------- inputs


def scores(low=-5.0, high=5.0):
    return st.integers(round(1000 * low), round(1000 * high)).map(lambda v: v / 1000)


def degrees(low=0.0, high=1.0):
    return st.integers(round(1000 * low), round(1000 * high)).map(lambda v: v / 1000)


@st.composite
def cases(draw, most=7, smallest=1, inner=False):
    """Scores and degrees; with `inner`, degrees strictly between 0 and 1."""
    n = draw(st.integers(smallest, most))
    s = draw(st.lists(scores(), min_size=n, max_size=n))
    between = degrees(0.02, 0.98) if inner else degrees()
    return s, draw(st.lists(between, min_size=n, max_size=n))


@st.composite
def hard_cases(draw, most=7):
    n = draw(st.integers(1, most))
    s = draw(st.lists(scores(), min_size=n, max_size=n))
    return s, [int(v) for v in draw(st.lists(st.booleans(), min_size=n, max_size=n))]


# ---------------------------------------------------------------- the objects of the chapter


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def mass_a(s, t):
    return sum((d * exp(-v) for v, d in zip(s, t, strict=True)), 0.0)


def mass_b(s, t):
    return sum(((1 - d) * exp(v) for v, d in zip(s, t, strict=True)), 0.0)


def mass_c(t):
    return sum(sqrt(d * (1 - d)) for d in t)


def soft(s, t):
    return log(1 + mass_a(s, t)) + log(1 + mass_b(s, t))


def soft_torch(s, t):
    """Soft ZLPR for autograd, written without the library."""
    return torch.log1p((t * (-s).exp()).sum()) + torch.log1p(((1 - t) * s.exp()).sum())


def bce(s, t):
    return sum(d * log1p(exp(-v)) + (1 - d) * log1p(exp(v)) for v, d in zip(s, t, strict=True))


def bce_torch(s, t):
    return torch.nn.functional.binary_cross_entropy_with_logits(s, t, reduction="sum")


def gradient_of(loss, s, t):
    x = tensor(s).requires_grad_()
    loss(x, tensor(t)).backward()
    return x.grad


def logit(t):
    return log(t / (1 - t))


def sigma(v):
    return 1 / (1 + exp(-v))


def flip(t):
    return [1 - d for d in t]


@pytest.mark.equation(
    "eq:soft-mass",
    kind="definition",
    source=OURS,
    hypotheses="any n >= 1; degrees in [0, 1]",
    right=(mass_a, mass_b),
    wrong={"the weights change places": (lambda s, t: mass_a(s, flip(t)), mass_b)},
)
@given(cases())
def test_soft_masses(form, check, case):
    s, t = tensor(case[0]), tensor(case[1])
    check.equal(form[0](*case), (t * torch.exp(-s)).sum())
    check.equal(form[1](*case), (torch.exp(s) - t * torch.exp(s)).sum())


# ---------------------------------------------------------------- 1 from a product to the loss


def product_hard(s, y):
    positives = prod(1 + exp(-v) for v, d in zip(s, y, strict=True) if d)
    return log(positives) + log(prod(1 + exp(v) for v, d in zip(s, y, strict=True) if not d))


@pytest.mark.equation(
    "eq:soft-product-hard",
    kind="identity",
    source=SU,
    hypotheses="hard labels",
    right=product_hard,
    wrong={"only first-order terms: ZLPR": soft},
)
@given(hard_cases())
def test_bce_as_products(form, check, case):
    check.equal(form(*case), bce_torch(*map(tensor, case)))


def product_soft(s, t):
    positives = prod((1 + exp(-v)) ** d for v, d in zip(s, t, strict=True))
    return log(positives) + log(prod((1 + exp(v)) ** (1 - d) for v, d in zip(s, t, strict=True)))


@pytest.mark.equation(
    "eq:soft-product",
    kind="identity",
    source=SU,
    right=product_soft,
    wrong={
        "degrees as factors, not as exponents": lambda s, t: (
            log(prod(1 + d * exp(-v) for v, d in zip(s, t, strict=True)))
            + log(prod(1 + (1 - d) * exp(v) for v, d in zip(s, t, strict=True)))
        )
    },
)
@given(cases())
def test_soft_bce_as_products(form, check, case):
    check.equal(form(*case), bce_torch(*map(tensor, case)))


def binomial(x, t, terms):
    return mp.fsum(mp.binomial(t, k) * x**k for k in range(terms))


@pytest.mark.equation(
    "eq:soft-binomial",
    kind="identity",
    source=STANDARD,
    hypotheses="|x| < 1; diverges for |x| > 1 unless t is a whole number",
    right=lambda x, t, terms: binomial(x, t, terms),
    wrong={
        "the second coefficient without its half": lambda x, t, terms: (
            binomial(x, t, terms) + t * (t - 1) / 2 * x**2
        )
    },
)
@pytest.mark.differs(
    "soft-formal",
    source=SU,
    theirs="Expands (1 + x)^t and keeps the first order; where the series converges is not said.",
    ours="It converges for |x| < 1 only, and of exp(s) and exp(-s) one is always outside: the step "
    "is formal and inspires the loss; it does not approximate BCE.",
)
def test_binomial_series(form, check):
    with mp.workdps(50):
        t = mp.mpf("0.3")
        for x in (mp.mpf("0.5"), mp.mpf("-0.7")):
            check.equal(form(x, t, 300), (1 + x) ** t, tol=1e-30)
        x = mp.mpf("1.5")
        errors = [abs(form(x, t, n) - (1 + x) ** t) for n in (20, 40, 80)]
        check.true(errors[0] < errors[1] < errors[2], "it converges beyond its radius")


@pytest.mark.equation(
    "eq:soft-loss",
    kind="definition",
    source=SU,
    hypotheses="any n >= 1; finite scores; degrees in [0, 1]",
    right=soft,
    wrong={
        "the degrees outside the logarithm": lambda s, t: sum(
            d * log1p(exp(-v)) + (1 - d) * log1p(exp(v)) for v, d in zip(s, t, strict=True)
        ),
        "the sign of the scores turned": lambda s, t: soft([-v for v in s], t),
        "the null class is left out": lambda s, t: (
            log(mass_a(s, t) + 1e-9) + log(mass_b(s, t) + 1e-9)
        ),
    },
)
@given(cases(smallest=2))
def test_soft_loss(form, check, case):
    check.equal(form(*case), soft_zlpr_loss(*map(tensor, case)))


@pytest.mark.equation(
    "eq:soft-hard",
    kind="identity",
    source=SU,
    hypotheses="targets of exactly 0 and 1",
    right=lambda s, y: soft(s, y),
    wrong={"BCE": bce},
)
@given(hard_cases())
def test_soft_is_zlpr_at_hard_labels(form, check, case):
    check.equal(form(*case), zlpr_loss(*map(tensor, case)))


@pytest.mark.equation(
    "eq:soft-start",
    kind="identity",
    source=OURS,
    right=lambda t: log(1 + sum(t)) + log(1 + len(t) - sum(t)),
    wrong={"BCE's start": lambda t: len(t) * log(2)},
)
@given(st.lists(degrees(), min_size=3, max_size=9))
def test_start(form, check, t):
    check.equal(form(t), soft_zlpr_loss(torch.zeros(len(t), dtype=torch.float64), tensor(t)))
    check.equal(bce([0.0] * len(t), t), len(t) * log(2))


@pytest.mark.equation(
    "eq:soft-bernoulli",
    kind="inequality",
    source=STANDARD,
    hypotheses="x >= 0, 0 <= t <= 1; equality at t = 0, t = 1 and x = 0",
    right=lambda x, t: ((1 + x) ** t, 1 + t * x),
    wrong={"the other way round": lambda x, t: (1 + t * x, (1 + x) ** t)},
)
@given(st.floats(0, 50), degrees(0.05, 0.95))
def test_bernoulli(form, check, x, t):
    check.at_most(*form(x, t), slack=1e-12)
    if x > 0.1:
        check.at_most(form(x, t)[0], form(x, t)[1] - 1e-6)
    for edge in (form(x, 0.0), form(x, 1.0), form(0.0, t)):
        check.equal(edge[0], edge[1])


def truncation(x, t):
    return 1 + sum(d * v for v, d in zip(x, t, strict=True))


@pytest.mark.equation(
    "eq:soft-truncation",
    kind="inequality",
    source=SU,
    hypotheses="x_i >= 0; equality exactly if at most one t_i x_i is not 0",
    right=truncation,
    wrong={
        "the weights are forgotten": lambda x, t: 1 + sum(x),
        "the mean weight for each": lambda x, t: 1 + sum(t) / len(t) * sum(x),
    },
)
@given(st.lists(st.tuples(st.floats(0, 9), degrees()), min_size=1, max_size=6))
def test_truncation(form, check, case):
    x, t = map(list, zip(*case, strict=True))
    whole = prod(1 + d * v for v, d in case)
    check.at_most(form(x, t), whole, slack=1e-9)
    terms = sorted(d * v for v, d in case)
    if len(terms) > 1 and terms[-2] > 1e-3:
        check.at_most(form(x, t), whole - terms[-1] * terms[-2], slack=1e-9)  # strict
    for i, (v, d) in enumerate(case):
        alone = [v if j == i else 0.0 for j in range(len(x))]
        check.equal(form(alone, t), 1 + d * v)
    h = 1e-7  # the parts left out are of second order
    small = [h * v for v in x]
    whole = prod(1 + d * v for v, d in zip(small, t, strict=True))
    check.equal((form(small, t) - 1) / h, (whole - 1) / h, tol=1e-3)


@pytest.mark.equation(
    "eq:soft-single",
    kind="inequality",
    source=OURS,
    hypotheses="n = 1; strict for 0 < t < 1, equal at t = 0 and t = 1",
    right=lambda s, t: (bce(s, t), soft(s, t)),
    wrong={"the order of hard labels": lambda s, t: (soft(s, t), bce(s, t))},
)
@given(scores(), degrees(0.05, 0.95))
def test_single_label(form, check, s, t):
    low, high = form([s], [t])
    check.at_most(low, high - 1e-9)
    for end in (0.0, 1.0):
        check.equal(*form([s], [end]))


@pytest.mark.equation(
    "eq:soft-no-order",
    kind="identity",
    source=OURS,
    hypotheses="s = 0, t = 1/2",
    right=lambda n: 2 * log(1 + n / 2) - n * log(2),
    wrong={"all labels in either group": lambda n: 2 * log(1 + n) - n * log(2)},
)
@pytest.mark.differs(
    "soft-no-order",
    source="summaries of kexue 9064",
    theirs="The soft loss is a lower bound of soft BCE, as products were dropped from it.",
    ours="Dropping products lowers, linearising powers raises: both signs occur; for one label the "
    "soft loss is the larger.",
)
def test_no_order(form, check):
    for n in (1, 2, 3, 10):
        s, t = torch.zeros(n, dtype=torch.float64), torch.full((n,), 0.5, dtype=torch.float64)
        check.equal(form(n), soft_zlpr_loss(s, t) - bce_torch(s, t))
    check.true(form(1) > 0.1 and abs(form(2)) < 1e-12 and form(3) < -0.1, "one sign only")


# ---------------------------------------------------------------- 2 gradient and curvature


def gradient(s, t):
    a, b = 1 + mass_a(s, t), 1 + mass_b(s, t)
    return [-d * exp(-v) / a + (1 - d) * exp(v) / b for v, d in zip(s, t, strict=True)]


@pytest.mark.equation(
    "eq:soft-gradient",
    kind="gradient",
    source=SU,
    right=gradient,
    wrong={
        "the exponential loss, without the denominators": lambda s, t: [
            -d * exp(-v) + (1 - d) * exp(v) for v, d in zip(s, t, strict=True)
        ],
        "sigmoid minus target": lambda s, t: [sigma(v) - d for v, d in zip(s, t, strict=True)],
    },
)
@given(cases(smallest=2))
def test_gradient(form, check, case):
    expected = gradient_of(soft_torch, *case)
    check.equal(form(*case), expected)
    check.equal(expected, gradient_of(soft_zlpr_loss, *case))
    s, t = case
    step = [exp(1e-6 * (i == 0)) for i in range(len(s))]
    up, down = ([v + sign * log(h) for v, h in zip(s, step, strict=True)] for sign in (1, -1))
    check.equal((soft(up, t) - soft(down, t)) / 2e-6, expected[0], tol=1e-6)


def gradient_bound(s, t):
    a, b = mass_a(s, t), mass_b(s, t)
    return a / (1 + a) + b / (1 + b)


@pytest.mark.equation(
    "eq:soft-gradient-bound",
    kind="inequality",
    source=OURS,
    hypotheses="equality for hard labels",
    right=gradient_bound,
    wrong={
        "the larger mass alone": lambda s, t: (
            max(mass_a(s, t), mass_b(s, t)) / (1 + max(mass_a(s, t), mass_b(s, t)))
        )
    },
)
@given(cases(), hard_cases())
def test_gradient_bound(form, check, case, hard):
    for s, t in (case, hard):
        norm = gradient_of(soft_torch, s, t).abs().sum()
        check.at_most(norm, form(s, t), slack=1e-12)
        check.at_most(form(s, t), 2 - 1e-9)
    check.equal(gradient_of(soft_torch, *hard).abs().sum(), form(*hard))
    check.at_most(
        gradient_of(soft_torch, [5.0, -5.0], [0, 1]).abs().sum(),
        form([5.0, -5.0], [0, 1]),
        slack=1e-12,
    )


def hessian(s, t):
    a, b = 1 + mass_a(s, t), 1 + mass_b(s, t)
    plus = np.array([d * exp(-v) / a for v, d in zip(s, t, strict=True)])
    minus = np.array([(1 - d) * exp(v) / b for v, d in zip(s, t, strict=True)])
    return np.diag(plus) - np.outer(plus, plus) + np.diag(minus) - np.outer(minus, minus)


def true_hessian(s, t):
    return torch.autograd.functional.hessian(lambda x: soft_torch(x, tensor(t)), tensor(s))


def hessian_mixed(s, t):
    g = np.array(gradient(s, t))
    return np.diag(np.abs(g)) - np.outer(g, g)


@pytest.mark.equation(
    "eq:soft-hessian",
    kind="gradient",
    source=OURS,
    right=hessian,
    wrong={"the gradient in place of its two parts": hessian_mixed},
)
@given(cases(smallest=2, inner=True))
def test_hessian(form, check, case):
    check.equal(form(*case), true_hessian(*case), tol=1e-9)


@pytest.mark.equation(
    "eq:soft-hessian-bound",
    kind="inequality",
    source=OURS,
    hypotheses="any degrees in [0, 1], finite scores; attained by two labels of degree 1/2 with "
    "equal scores",
    right=0.5,
    wrong={"the largest curvature of a single label, 4/9": 4 / 9},
)
@given(cases(), scores(-3, 3))
def test_hessian_bounds(form, check, case, score):
    values = torch.linalg.eigvalsh(true_hessian(*case))
    check.at_most(values.max(), form, slack=1e-12)
    check.at_most(1e-9, values.min())
    single = torch.linalg.eigvalsh(true_hessian([0.0], [0.5]))
    check.equal(single[0], 4 / 9)
    check.equal(torch.linalg.eigvalsh(true_hessian([score] * 2, [0.5] * 2)).max(), form)
    if form == 0.5:
        check.at_most(_most_curved(3), form, slack=1e-12)


@functools.cache
def _most_curved(n):
    """Largest curvature that a search over n labels finds."""

    def curvature(v):
        t = torch.sigmoid(tensor(v[n:]))
        h = torch.autograd.functional.hessian(lambda x: soft_torch(x, t), tensor(v[:n]))
        return -float(torch.linalg.eigvalsh(h).max())

    start = [0.3, -0.1, 0.2, 0.1, -0.4, 0.5][: 2 * n]
    return -optimize.minimize(curvature, start, method="Nelder-Mead").fun


# ---------------------------------------------------------------- 3 the minimum


def solve(risk, n):
    """Minimise a convex function of n scores by L-BFGS, to a gradient of 1e-11."""
    x = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [x], max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        solver.zero_grad()
        value = risk(x)
        value.backward()
        return value

    solver.step(closure)
    return x.detach()


@pytest.mark.equation(
    "eq:soft-minimiser",
    kind="identity",
    source=SU,
    hypotheses="0 < t_i < 1 for all i",
    right=lambda t: [0.5 * logit(d) for d in t],
    wrong={"the full log-odds, as for BCE": lambda t: [logit(d) for d in t]},
)
@pytest.mark.differs(
    "soft-minimiser-proof",
    source=SU,
    theirs="Exhibits a point where the gradient vanishes, and says it should be the optimum.",
    ours="The loss is strictly convex, so it is the only minimum; and the bound by Cauchy-Schwarz "
    "shows it without calculus.",
)
@given(st.lists(degrees(0.02, 0.98), min_size=1, max_size=5))
def test_minimiser(form, check, t):
    found = solve(lambda x: soft_torch(x, tensor(t)), len(t))
    check.equal(form(t), found, tol=1e-5)
    check.equal(gradient(form(t), t), [0.0] * len(t), tol=1e-12)
    check.equal([sigma(2 * v) for v in form(t)], t)


@pytest.mark.equation(
    "eq:soft-root-mass",
    kind="definition",
    source=OURS,
    right=mass_c,
    wrong={"the root of the sum": lambda t: sqrt(sum(d * (1 - d) for d in t))},
)
@given(st.lists(degrees(0.02, 0.98), min_size=2, max_size=6))
def test_root_mass(form, check, t):
    at_minimum = [0.5 * logit(d) for d in t]
    check.equal(form(t), mass_a(at_minimum, t))
    check.equal(form(t), mass_b(at_minimum, t))


@pytest.mark.equation(
    "eq:soft-cauchy",
    kind="inequality",
    source=OURS,
    hypotheses="any scores; equality if t_i exp(-s_i) is one multiple of (1 - t_i) exp(s_i)",
    right=lambda t: mass_c(t) ** 2,
    wrong={
        "without the square": lambda t: mass_c(t),
        "a factor 2": lambda t: 2 * mass_c(t) ** 2,
    },
)
@given(cases(inner=True), scores())
def test_cauchy(form, check, case, shift):
    s, t = case
    check.at_most(form(t), mass_a(s, t) * mass_b(s, t), slack=1e-9)
    equal = [0.5 * logit(d) + shift for d in t]
    check.equal(form(t), mass_a(equal, t) * mass_b(equal, t), tol=1e-9)


@pytest.mark.equation(
    "eq:soft-floor",
    kind="inequality",
    source=OURS,
    hypotheses="equality exactly at the minimiser",
    right=lambda t: 2 * log(1 + mass_c(t)),
    wrong={
        "the entropy of the degrees, as for BCE": lambda t: sum(
            -d * log(d) - (1 - d) * log(1 - d) for d in t
        ),
        "one logarithm": lambda t: log(1 + mass_c(t)),
    },
)
@given(cases(inner=True))
def test_floor(form, check, case):
    s, t = case
    check.at_most(form(t), soft(s, t), slack=1e-12)
    check.equal(form(t), soft([0.5 * logit(d) for d in t], t))


def regret(s, t):
    return log((1 + mass_a(s, t)) * (1 + mass_b(s, t)) / (1 + mass_c(t)) ** 2)


@pytest.mark.equation(
    "eq:soft-regret",
    kind="identity",
    source=OURS,
    hypotheses="degrees in [0, 1]; the infimum is attained if 0 < t_i < 1 for all i",
    right=regret,
    wrong={"the floor is not squared": lambda s, t: regret(s, t) + log(1 + mass_c(t))},
)
@given(cases(most=4, inner=True))
def test_regret(form, check, case):
    s, t = case
    place = solve(lambda x: soft_torch(x, tensor(t)), len(t))
    best = float(soft_torch(place, tensor(t)))
    check.equal(form(s, t), soft(s, t) - best, tol=1e-9)
    # Hard labels beside them: their scores run off, and leave nothing in the limit.
    s, t, far = [0.3, -0.2, *s], [1.0, 0.0, *t], [40.0, -40.0, *place.tolist()]
    check.equal(form(s, t), soft(s, t) - soft(far, t), tol=1e-9)


def exponential(s, t):
    return sum(d * exp(-v) + (1 - d) * exp(v) for v, d in zip(s, t, strict=True))


@pytest.mark.equation(
    "eq:soft-exponential",
    kind="identity",
    source="Schapire and Singer 1999",
    right=exponential,
    wrong={
        "one common exponential": lambda s, t: sum(
            exp(-(2 * d - 1) * v) for v, d in zip(s, t, strict=True)
        )
    },
)
@given(cases(inner=True))
def test_exponential_loss(form, check, case):
    check.equal(form(*case), mass_a(*case) + mass_b(*case))
    s, t = case
    # AdaBoost.MH: the expected exp(-(2 y - 1) s) over labels drawn with these degrees.
    drawn = sum(d * exp(-v) for v, d in zip(s, t, strict=True))
    drawn += sum((1 - d) * exp(-(2 * 0 - 1) * v) for v, d in zip(s, t, strict=True))
    check.equal(form(s, t), drawn)


@pytest.mark.equation(
    "eq:soft-exponential-minimum",
    kind="identity",
    source="Friedman, Hastie and Tibshirani 2000",
    hypotheses="0 < t < 1; at half the log-odds",
    right=lambda t: (2 * sqrt(t * (1 - t)), 0.5 * logit(t)),
    wrong={
        "without the factor 2": lambda t: (sqrt(t * (1 - t)), 0.5 * logit(t)),
        "at the full log-odds": lambda t: (2 * sqrt(t * (1 - t)), logit(t)),
    },
)
@given(degrees(0.02, 0.98))
def test_exponential_minimum(form, check, t):
    found = optimize.minimize_scalar(
        lambda s: exponential([s], [t]), bounds=(-9, 9), method="bounded", options={"xatol": 1e-12}
    )
    value, place = form(t)
    check.equal(value, found.fun, tol=1e-9)
    check.equal(place, found.x, tol=1e-5)


@pytest.mark.equation(
    "eq:soft-exponential-bound",
    kind="inequality",
    source=OURS,
    right=lambda s, t: 0.5 * (mass_a(s, t) ** 2 + mass_b(s, t) ** 2),
    wrong={"a quarter of the squares": lambda s, t: 0.25 * (mass_a(s, t) ** 2 + mass_b(s, t) ** 2)},
)
@given(cases())
def test_exponential_bound(form, check, case):
    for s, t in (case, ([9.0, -9.0], [1 - 1e-5, 1e-5]), ([5.0, -5.0], [1.0, 0.0])):
        gap = exponential(s, t) - soft(s, t)
        check.at_most(0, gap, slack=1e-12)
        check.at_most(gap, form(s, t), slack=1e-12)
    # Attained to first order as the masses vanish.
    s, t = [9.0, -9.0], [1.0, 0.0]
    check.equal((exponential(s, t) - soft(s, t)) / form(s, t), 1.0, tol=1e-3)


# ---------------------------------------------------------------- 4 what sigma(2s) does not mean


def target_gradient(s, t):
    a, b = 1 + mass_a(s, t), 1 + mass_b(s, t)
    return [exp(-v) / a - exp(v) / b for v in s]


@pytest.mark.equation(
    "eq:soft-target-gradient",
    kind="gradient",
    source=OURS,
    right=target_gradient,
    wrong={"minus the score, as for BCE": lambda s, t: [-v for v in s]},
)
@given(cases(smallest=2))
def test_target_gradient(form, check, case):
    s, t = tensor(case[0]), tensor(case[1]).requires_grad_()
    for loss in (soft_torch, soft_zlpr_loss):
        (slope,) = torch.autograd.grad(loss(s, t), t)
        check.equal(form(*case), slope, tol=1e-9)


def target_parts(s, t):
    a = np.exp(-np.array(s)) / (1 + mass_a(s, t))
    b = np.exp(np.array(s)) / (1 + mass_b(s, t))
    return a, b


def target_hessian(s, t):
    a, b = target_parts(s, t)
    return -np.outer(a, a) - np.outer(b, b)


@pytest.mark.equation(
    "eq:soft-target-hessian",
    kind="gradient",
    source=OURS,
    right=target_hessian,
    wrong={
        "the two groups with opposite signs": lambda s, t: (
            target_hessian(s, t) + 2 * np.outer(target_parts(s, t)[1], target_parts(s, t)[1])
        )
    },
)
@given(cases(most=5))
def test_target_hessian(form, check, case):
    s, t = map(tensor, case)
    found = torch.autograd.functional.hessian(lambda x: soft_torch(s, x), t)
    check.equal(form(*case), found, tol=1e-8)
    check.at_most(torch.linalg.eigvalsh(found).max(), 0, slack=1e-7 * float(found.abs().max()))


def expected_hard(s, t, loss):
    """Expectation over independent labels by enumeration."""
    total = 0.0
    for y in itertools.product((0, 1), repeat=len(s)):
        weight = prod(d if v else 1 - d for d, v in zip(t, y, strict=True))
        total += weight * loss(s, y)
    return total


@st.composite
def label_laws(draw, most=4):
    """Scores and a law of hard labels: any dependence, few or many labellings."""
    n = draw(st.integers(1, most))
    s = draw(st.lists(scores(), min_size=n, max_size=n))
    some = st.lists(st.tuples(*[st.integers(0, 1)] * n), min_size=1, max_size=5, unique=True)
    ys = draw(some)
    weights = draw(st.lists(degrees(0.05), min_size=len(ys), max_size=len(ys)))
    return s, [(w / sum(weights), y) for w, y in zip(weights, ys, strict=True)]


def expected_and_mean(s, law):
    mean_label = [sum(w * y[i] for w, y in law) for i in range(len(s))]
    return sum(w * soft(s, y) for w, y in law), soft(s, mean_label)


@pytest.mark.equation(
    "eq:soft-jensen",
    kind="inequality",
    source=OURS,
    hypotheses="any law of hard labels with this mean; strict unless the masses are constant",
    right=expected_and_mean,
    wrong={"the other way round": lambda s, law: expected_and_mean(s, law)[::-1]},
)
@pytest.mark.differs(
    "soft-not-hard",
    source=SU,
    theirs="The output probability of the loss is sigmoid(2s), not sigmoid(s).",
    ours="That is so for given degrees. Hard labels drawn with these degrees are another problem, "
    "as the loss is concave in them: with one label the right reading is sigmoid(s).",
)
@given(label_laws())
def test_jensen(form, check, case):
    s, law = case
    low, high = form(s, law)
    # Each logarithm is of a mass between 0 and the sum M of its exponentials, with curvature at
    # least 1/(1 + M)^2: the gap is at least half of that times the variance of the mass, and 0
    # only where both masses are constant.
    gap, bend = 0.0, 0.0
    for mass, largest in ((mass_a, sum(exp(-v) for v in s)), (mass_b, sum(exp(v) for v in s))):
        values = [(w, mass(s, y)) for w, y in law]
        mean_mass = sum(w * v for w, v in values)
        variance = sum(w * (v - mean_mass) ** 2 for w, v in values)
        gap += variance / (2 * (1 + largest) ** 2)
        bend += variance / 2
    check.at_most(gap, high - low, slack=1e-12)
    check.at_most(high - low, bend, slack=1e-12)  # the curvature is at most 1
    # Both sides themselves, by the library.
    hard = sum(w * zlpr_loss(tensor(s), tensor(y)) for w, y in law)
    mean_label = sum(w * tensor(y).double() for w, y in law)
    check.equal(low, hard)
    check.equal(high, soft_zlpr_loss(tensor(s), mean_label))


@pytest.mark.equation(
    "eq:soft-bce-linear",
    kind="identity",
    source=STANDARD,
    right=bce,
    wrong={"soft ZLPR": soft},
)
@given(cases(most=5, inner=True))
def test_bce_is_linear(form, check, case):
    s, t = case
    # The mean over hard labels and the loss of soft ones, both by PyTorch.
    hard = expected_hard(s, t, lambda s, y: float(bce_torch(tensor(s), tensor(y).double())))
    check.equal(form(s, t), hard)
    check.equal(form(s, t), bce_torch(tensor(s), tensor(t)))


@pytest.mark.equation(
    "eq:soft-two-answers",
    kind="identity",
    source=OURS,
    hypotheses="n = 1, 0 < pi < 1",
    right=(logit, lambda p: 0.5 * logit(p)),
    wrong={"half the log-odds for both": (lambda p: 0.5 * logit(p), lambda p: 0.5 * logit(p))},
)
@given(degrees(0.03, 0.97).filter(lambda p: abs(p - 0.5) > 0.01))
def test_two_answers(form, check, pi):
    one, zero = tensor([1.0]), tensor([0.0])
    hard = solve(lambda x: pi * soft_torch(x, one) + (1 - pi) * soft_torch(x, zero), 1)
    degree = solve(lambda x: soft_torch(x, tensor([pi])), 1)
    check.equal(form[0](pi), hard[0], tol=1e-5)
    check.equal(form[1](pi), degree[0], tol=1e-5)
    check.equal(sigma(form[0](pi)), pi)
    check.equal(sigma(2 * form[1](pi)), pi)


@pytest.mark.equation(
    "eq:soft-overconfident",
    kind="identity",
    source=OURS,
    hypotheses="0 < pi < 1",
    right=lambda p: p**2 / (p**2 + (1 - p) ** 2),
    wrong={"the square alone": lambda p: p**2},
)
@given(degrees(0.03, 0.97))
def test_overconfident(form, check, pi):
    check.equal(form(pi), sigma(2 * logit(pi)))
    check.equal(form(0.75), 0.9)


@pytest.mark.differs(
    "soft-vacuous-rule",
    source="summaries of kexue 9064",
    theirs="Decide by sigmoid(2s) > 0.5 instead of sigmoid(s) > 0.5.",
    ours="Both rules are s > 0; the factor changes probabilities, not this decision.",
)
@given(scores())
def test_both_rules_are_one(s):
    assert (sigma(2 * s) > 0.5) == (sigma(s) > 0.5) == (s > 0)


def fit_slope(s, t, factor):
    return sum(v * (sigma(factor * v) - d) for v, d in zip(s, t, strict=True))


@pytest.mark.equation(
    "eq:soft-fit",
    kind="definition",
    source="Guo et al. 2017",
    right=fit_slope,
    wrong={
        "not weighted by the scores": lambda s, t, g: sum(
            sigma(g * v) - d for v, d in zip(s, t, strict=True)
        )
    },
)
@given(st.lists(scores(), min_size=3, max_size=9), st.randoms(use_true_random=False))
def test_fit(form, check, s, random):
    s = [*s, 1.0, -2.0]
    t = [sigma(1.3 * v) * 0.8 + 0.2 * random.random() for v in s]
    factor = fit_scale(tensor(s), tensor(t))
    check.equal(form(s, t, factor), 0.0, tol=1e-9)
    risk = lambda g: bce([g * v for v in s], t)  # noqa: E731 - two uses below
    check.equal(form(s, t, 0.7), (risk(0.7 + 1e-6) - risk(0.7 - 1e-6)) / 2e-6, tol=1e-5)


def slopes_at_the_ends(s, t):
    return (
        sum(v * (0.5 - d) for v, d in zip(s, t, strict=True)),
        sum(max(v, 0) * (1 - d) + max(-v, 0) * d for v, d in zip(s, t, strict=True)),
    )


@pytest.mark.equation(
    "eq:soft-fit-exists",
    kind="identity",
    source=OURS,
    hypotheses="degrees in [0, 1], not all scores 0",
    right=slopes_at_the_ends,
    wrong={
        "the first condition alone": lambda s, t: (slopes_at_the_ends(s, t)[0], 1.0),
        "the second condition alone": lambda s, t: (-1.0, slopes_at_the_ends(s, t)[1]),
        "degrees as labels at one half": lambda s, t: slopes_at_the_ends(s, [d > 0.5 for d in t]),
    },
)
@given(
    # In eighths, so that a sum of products is 0 exactly where it is 0.
    st.lists(
        st.tuples(
            st.integers(-24, 24).map(lambda v: v / 8),
            st.one_of(st.integers(0, 1), st.integers(0, 8).map(lambda v: v / 8)),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_fit_exists(form, check, pairs):
    extra = [([1.0, -1.0], [1, 0]), ([1.0, -1.0], [0, 1]), ([2.0, 1.0], [1, 0])]
    extra += [([1.0, -1.0], [0.875, 0.125]), ([1.0, -1.0], [0.125, 0.875]), ([1.0], [0.5])]
    extra += [([1.0, -1.0, 0.0], [1, 0, 1])]  # a score of 0 stands on no side
    s, y = [p[0] for p in pairs], [p[1] for p in pairs]
    for scores_, labels in [*extra, (s, y)]:
        if not any(scores_):
            continue
        # A scale exists if the log-loss, which is convex, falls from 0 on and rises far out.
        near, far = form(scores_, labels)
        risks = [log_loss_of_scale(scores_, labels, g) for g in (0, "1e-9", 10**5, 2 * 10**5)]
        check.equal((near < 0, far > 0), (risks[1] < risks[0], risks[3] > risks[2]))
        # And the slopes are these, there.
        check.equal(near, (risks[1] - risks[0]) * 10**9, tol=1e-7)
        check.equal(far, (risks[3] - risks[2]) / 10**5, tol=1e-12)


def log_loss_of_scale(s, t, scale):
    """Cross-entropy of the scaled scores, in digits enough for the slowest fall far out."""
    scores_ = [mp.mpf(scale) * v for v in s]
    return mp.fsum(
        mp.log1p(mp.exp(-abs(v))) + max(v, 0) - d * v for v, d in zip(scores_, t, strict=True)
    )


def fit_both_sums(s, t, scale, offset):
    first = second = 0.0
    for v, d in zip(s, t, strict=True):
        residual = sigma(scale * v + offset) - d
        first, second = first + residual, second + v * residual
    return first, second


@pytest.mark.equation(
    "eq:soft-fit-both",
    kind="definition",
    source="Platt 1999",
    right=fit_both_sums,
    wrong={
        "no offset": lambda s, t, a, b: fit_both_sums(s, t, a, 0.0),
        "the second not weighted by the scores": lambda s, t, a, b: (
            (fit_both_sums(s, t, a, b)[0],) * 2
        ),
    },
)
@given(st.lists(scores(), min_size=3, max_size=9), st.randoms(use_true_random=False))
def test_fit_both(form, check, s, random):
    s = [*s, 1.0, -2.0]
    t = [sigma(1.3 * v - 0.4) * 0.8 + 0.1 * random.random() for v in s]
    for sum_ in form(s, t, *fit_scale_and_offset(tensor(s), tensor(t))):
        check.equal(sum_, 0.0, tol=1e-9)
    risk = lambda a, b: bce([a * v + b for v in s], t)  # noqa: E731 - four uses below
    first, second = form(s, t, 0.7, -0.2)
    check.equal(first, (risk(0.7, -0.2 + 1e-6) - risk(0.7, -0.2 - 1e-6)) / 2e-6, tol=1e-5)
    check.equal(second, (risk(0.7 + 1e-6, -0.2) - risk(0.7 - 1e-6, -0.2)) / 2e-6, tol=1e-5)


def fit_both_exists(s, t):
    mean = statistics.mean([Fraction(v) for v in s])  # exact, so that 0 is 0
    rises = sum(v * d for v, d in zip(s, t, strict=True)) > mean * Fraction(sum(t))
    positive = [v for v, d in zip(s, t, strict=True) if d > 0]
    negative = [v for v, d in zip(s, t, strict=True) if d < 1]
    return rises and min(positive) < max(negative)


def _rises(s, t):
    mean = sum(s) / len(s)
    return sum((v - mean) * d for v, d in zip(s, t, strict=True)) > 1e-12


@pytest.mark.equation(
    "eq:soft-fit-both-exists",
    kind="identity",
    source=OURS,
    hypotheses="degrees in [0, 1]",
    right=fit_both_exists,
    wrong={
        "the first condition alone": _rises,
        "scores not centred": lambda s, t: (
            sum(v * d for v, d in zip(s, t, strict=True)) > 0 and fit_both_exists(s, t)
        ),
        "a threshold that touches does not separate": lambda s, t: (
            _rises(s, t)
            and min(v for v, d in zip(s, t, strict=True) if d > 0)
            <= max(v for v, d in zip(s, t, strict=True) if d < 1)
        ),
    },
)
@given(
    st.lists(
        st.tuples(
            st.integers(-24, 24).map(lambda v: v / 8),
            st.one_of(st.integers(0, 1), st.integers(0, 8).map(lambda v: v / 8)),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_fit_both_exists(form, check, pairs):
    extra = [([1.0, 2.0, 2.0], [0, 0, 1]), ([1.0, 2.0, 3.0], [0, 1, 0]), ([1.0, 2.0], [0, 1])]
    extra += [([-1.0, -2.0, -1.5, -3.0], [1, 1, 0, 0]), ([1.0, 1.0], [0, 1]), ([2.0], [0.5])]
    extra += [([1.0, 2.0, 3.0, 4.0], [0, 1, 0, 1]), ([-3.0, 1.0, 1.0], [0.5, 0, 1])]
    for s, t in [*extra, ([p[0] for p in pairs], [p[1] for p in pairs])]:
        # Does the log-loss fall from scale 0 on, and rise in the end in every direction that is
        # left? Its growth far out is linear, and least along a threshold at a score.
        share = sum(t) / len(t)
        slope = sum(v * (share - d) for v, d in zip(s, t, strict=True))
        growths = [
            sum(
                (1 - d) * max(0.0, a * v + b) + d * max(0.0, -a * v - b)
                for v, d in zip(s, t, strict=True)
            )
            for a, b in [(0, 1), (0, -1), *((1, -c) for c in s)]
        ]
        found = slope < -1e-12 and min(growths) > 0
        check.equal(str(form(s, t)), str(found))


# ---------------------------------------------------------------- 5 mixup


def mix_labels(s, y, other, weight):
    return soft(s, [weight * a + (1 - weight) * b for a, b in zip(y, other, strict=True)])


@st.composite
def pairs(draw, most=5):
    s, y = draw(hard_cases(most))
    other = [int(v) for v in draw(st.lists(st.booleans(), min_size=len(s), max_size=len(s)))]
    return s, y, other, draw(degrees(0.1, 0.9))


def library_mix(s, y, other, weight, mix):
    return mixup_loss(
        tensor([s, s]), torch.tensor([y, other]), tensor([weight, 1 - weight]),
        torch.tensor([1, 0]), mix=mix, reduction="none",
    )[0]  # fmt: skip


@pytest.mark.equation(
    "eq:mixup-labels",
    kind="definition",
    source="Zhang et al. 2018",
    right=mix_labels,
    wrong={"the weights change places": lambda s, y, o, w: mix_labels(s, o, y, w)},
)
@given(pairs())
def test_labels_mixed(form, check, case):
    check.equal(form(*case), library_mix(*case, "labels"))
    check.equal(form([1.0], [1], [0], 0.8), library_mix([1.0], [1], [0], 0.8, "labels"))


def mix_losses(s, y, other, weight):
    return weight * soft(s, y) + (1 - weight) * soft(s, other)


@pytest.mark.equation(
    "eq:mixup-losses",
    kind="inequality",
    source=OURS,
    hypotheses="0 <= lambda <= 1; equality for equal labels",
    right=lambda *case: (mix_losses(*case), mix_labels(*case)),
    wrong={"the other way round": lambda *case: (mix_labels(*case), mix_losses(*case))},
)
@pytest.mark.differs(
    "mixup-two-ways",
    source="common practice",
    theirs="Mixing the labels and mixing the losses are one; implement whichever is convenient.",
    ours="So it is for cross-entropy, which is linear in the target. For ZLPR the mixed losses are "
    "smaller, and their minimum is elsewhere.",
)
@given(pairs())
def test_losses_mixed(form, check, case):
    low, high = form(*case)
    check.at_most(low, high, slack=1e-12)
    check.at_most(*form([0.0, 0.0], [1, 0], [0, 0], 0.5), slack=-0.01)
    check.equal(*form(case[0], case[1], case[1], case[3]))
    check.equal(mix_losses(*case), library_mix(*case, "losses"))


@pytest.mark.equation(
    "eq:mixup-minimum",
    kind="identity",
    source=OURS,
    hypotheses="n = 1, y = 1, y' = 0",
    right=(logit, lambda w: 0.5 * logit(w)),
    wrong={"both at the log-odds": (logit, logit)},
)
@given(degrees(0.05, 0.95).filter(lambda w: abs(w - 0.5) > 0.01))
def test_mixup_minimum(form, check, weight):
    for place, mix in zip(form, (mix_losses, mix_labels), strict=True):
        found = optimize.minimize_scalar(
            lambda s, mix=mix: mix([s], [1], [0], weight), bounds=(-9, 9), method="bounded",
            options={"xatol": 1e-11},
        )  # fmt: skip
        check.equal(place(weight), found.x, tol=1e-5)


# ---------------------------------------------------------------- 6 smoothing


@pytest.mark.equation(
    "eq:smoothing-uniform",
    kind="definition",
    source=STANDARD,
    right=lambda y, r: [(1 - r) * v + r * (1 - v) for v in y],
    wrong={"the rate is shared with the opposite": lambda y, r: [(1 - r) * v + r / 2 for v in y]},
)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=6), degrees(0.01, 0.5))
def test_smoothing(form, check, y, rate):
    check.equal(form(y, rate), smooth_labels(tensor(y), rate))


@pytest.mark.equation(
    "eq:smoothing-goal",
    kind="identity",
    source=OURS,
    hypotheses="0 < eta < 1/2; plus for positives",
    right=lambda r: 0.5 * log((1 - r) / r),
    wrong={"the full log-odds": lambda r: log((1 - r) / r)},
)
@given(degrees(0.02, 0.4), st.integers(1, 4))
def test_goal(form, check, rate, n):
    y = [1] + [0] * n
    found = solve(lambda x: soft_torch(x, smooth_labels(tensor(y), rate)), n + 1)
    check.equal([form(rate), -form(rate)], found[:2], tol=1e-5)


def share(n, k, r):
    return (n - k) * r / ((n - k) * r + k * (1 - r))


@pytest.mark.equation(
    "eq:smoothing-share",
    kind="identity",
    source=OURS,
    hypotheses="s = 0, 1 <= k <= n",
    right=share,
    wrong={"positives in full": lambda n, k, r: (n - k) * r / ((n - k) * r + k)},
)
@given(st.integers(2, 40), st.integers(1, 20), degrees(0.05, 0.45))
def test_share(form, check, n, k, rate):
    k = min(k, n - 1)
    t = smooth_labels(torch.arange(n) < k, rate).double()
    x = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    torch.log1p((t * (-x).exp()).sum()).backward()
    pull = x.grad.abs()
    check.equal(form(n, k, rate), pull[k:].sum() / pull.sum(), tol=1e-6)


@pytest.mark.equation(
    "eq:smoothing-rate",
    kind="identity",
    source=OURS,
    right=lambda n, k: k / n,
    hypotheses="1 <= k < n; the share exceeds one half exactly if the rate exceeds k/n",
    wrong={"relative to the negatives": lambda n, k: k / (n - k)},
)
@pytest.mark.differs(
    "smoothing-backfires",
    source="common practice",
    theirs="Smooth the labels with a rate of 0.1, as in image classification.",
    ours="With n labels of which k are true the negatives take over the positive group as soon as "
    "the rate exceeds k/n; a span table has k/n below 0.001.",
)
@given(st.integers(2, 10_000), st.integers(1, 9_999), degrees(0, 1), st.floats(1e-6, 0.5))
def test_rate(form, check, n, k, rate, step):
    k = min(k, n - 1)
    at = form(n, k)
    check.equal(share(n, k, at), 0.5)
    if abs(rate - at) > 1e-9:  # any rate, and rates close by on either side
        check.true((share(n, k, rate) > 0.5) == (rate > at), f"rate {rate}")
    check.true(share(n, k, at * (1 - step)) < 0.5, "just below")
    check.true(share(n, k, at + (1 - at) * step) > 0.5, "just above")
    check.equal(share(8256, 3, 0.1) > 0.99, True)


@pytest.mark.equation(
    "eq:smoothing-floor",
    kind="inequality",
    source=OURS,
    right=lambda n, r: 2 * log(1 + n * sqrt(r * (1 - r))),
    wrong={"positives only": lambda n, r: 2 * log(1 + 3 * sqrt(r * (1 - r)))},
)
@given(st.integers(4, 300), degrees(0.02, 0.5), st.integers(0, 99))
def test_smoothing_floor(form, check, n, rate, seed):
    y = tensor([1.0] * 3 + [0.0] * (n - 3))
    t = smooth_labels(y, rate)
    s = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    check.at_most(form(n, rate), soft_zlpr_loss(s, t), slack=1e-9)
    check.equal(form(n, rate), soft_zlpr_loss(0.5 * torch.logit(t), t))


@pytest.mark.equation(
    "eq:smoothing-end",
    kind="identity",
    source=OURS,
    hypotheses="0 < eta < 1/2, at the minimum",
    right=lambda r: (sqrt(r * (1 - r)), sqrt(r * (1 - r))),
    wrong={"in proportion to the targets": lambda r: (1 - r, r)},
)
@given(degrees(0.02, 0.4), st.integers(1, 4))
def test_smoothing_end(form, check, rate, n):
    t = smooth_labels(tensor([1] + [0] * n), rate)
    s = solve(lambda x: soft_torch(x, t), n + 1)
    check.equal(list(form(rate)), (t * (-s).exp())[:2], tol=1e-5)


@pytest.mark.equation(
    "eq:smoothing-positives",
    kind="definition",
    source=OURS,
    right=lambda y, r: [(1 - r) * v for v in y],
    wrong={"negatives raised too": lambda y, r: [(1 - r) * v + r * (1 - v) for v in y]},
)
@given(st.lists(st.integers(0, 1), min_size=1, max_size=6), degrees(0.05, 0.9))
def test_smoothing_positives(form, check, y, rate):
    y = [*y, 0]
    t = form(y, rate)
    check.equal(t, smooth_positives(tensor(y), rate))
    check.equal(mass_c(t), sum(y) * sqrt(rate * (1 - rate)))


def share_spans(gold, rate, size):
    """One gold cell gives equal parts to free neighbours; neighbours only above the diagonal."""
    table = np.zeros((size, size))
    for i, j in gold:
        near = [(i, j + 1), (i + 1, j), (i, j - 1), (i - 1, j)]
        near = [c for c in near if 0 <= c[0] <= c[1] < size and c not in gold]
        table[i, j] = 1 - rate if near else 1
        for cell in near:
            table[cell] += rate / len(near)
    return table


def share_spans_plain(gold, rate, size):
    """Every neighbour gets a quarter, whether or not there are four."""
    table = np.zeros((size, size))
    for i, j in gold:
        table[i, j] = 1 - rate
        for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0)):
            if 0 <= i + a <= j + b < size and (i + a, j + b) not in gold:
                table[i + a, j + b] += rate / 4
    return table


@pytest.mark.equation(
    "eq:smoothing-spans",
    kind="definition",
    source="after Zhu and Li 2022",
    hypotheses="radius 1; cells with i <= j count; 0 <= eta <= 1/5; where U(g) is empty g keeps 1",
    right=share_spans,
    wrong={"a fixed quarter for each neighbour": share_spans_plain},
)
@given(
    st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12),
    degrees(0.01, 0.2),
)
def test_smoothing_spans(form, check, cells, rate):
    mask = torch.ones(6, 6, dtype=torch.bool).triu()
    block = {(i, j) for i in range(3) for j in range(i, 3)}  # (0, 0) to (1, 1) lack free neighbours
    # Four gold cells about (2, 3), whose only free neighbour it is: it gets 4 eta.
    cross = {(i, j) for i in range(6) for j in range(i, 6)} - {(2, 3)}
    for gold in ({(min(c), max(c)) for c in cells} | {(0, 5)}, block, cross):
        table = torch.zeros(6, 6, dtype=torch.float64)
        for cell in gold:
            table[cell] = 1
        soft_table = smooth_spans(table, rate, mask=mask)
        check.equal(form(gold, rate, 6), soft_table)
        check.equal(soft_table.sum(), float(len(gold)))
        # Beyond 1/5 the total may be less, as it is for the cross.
        above = smooth_spans(table, 0.3, mask=mask).sum()
        check.at_most(above, float(len(gold)), slack=1e-12)
    check.equal(above, len(cross) - (4 * 0.3 - 0.7))


# ---------------------------------------------------------------- 7 computing it


def log_form(s, t):
    up = special.logsumexp([0.0] + [-v + log(d) for v, d in zip(s, t, strict=True)])
    return up + special.logsumexp([0.0] + [v + log1p(-d) for v, d in zip(s, t, strict=True)])


def log_form_swapped(s, t):
    return log_form(s, flip(t))


@pytest.mark.equation(
    "eq:soft-log-form",
    kind="identity",
    source=SU,
    hypotheses="0 < t_i < 1",
    right=log_form,
    wrong={"log t and log(1 - t) change places": log_form_swapped},
)
@given(cases(inner=True, smallest=2))
def test_log_form(form, check, case):
    check.equal(form(*case), soft(*case))
    check.equal(form([1.0], [0.8]), soft([1.0], [0.8]))


@pytest.mark.equation(
    "eq:soft-mask-trap",
    kind="inequality",
    source=SU,
    hypotheses="c > 0; the trap is the article's own, as is a repair with three thresholds",
    right=lambda c, eps: c + log(eps),
    wrong={"the clip alone bounds it": lambda c, eps: c},
)
@given(st.floats(1, 1e7))
def test_mask_trap(form, check, c):
    with mp.workdps(40):
        value = mp.log(1 + mp.mpf("1e-7") * mp.exp(mp.mpf(c)))
        check.at_most(form(c, 1e-7), float(value), slack=1e-6)
        far = mp.log(1 + mp.mpf("1e-7") * mp.exp(200))
        check.equal(form(200, 1e-7), float(far))  # attained as c grows
    check.at_most(form(1e7, 1e-7), clipped(tensor([1.0, -1e7]), tensor([1.0, 0.0])))


def clipped(s, t, epsilon=1e-7):
    """Clipped targets and log t, with finite masks: the form before the article's repairs."""
    t = t.clamp(epsilon, 1 - epsilon)
    zero = torch.zeros(1, dtype=s.dtype)
    up = torch.logsumexp(torch.cat([-s + t.log(), zero]), 0)
    return up + torch.logsumexp(torch.cat([s + (1 - t).log(), zero]), 0)


@pytest.mark.differs(
    "soft-mask-loss",
    source="kexue 9064, bert4keras 5f5d493",
    theirs="Clips targets to [1e-7, 1 - 1e-7] and must then tell masked cells of score -1e7 apart.",
    ours="A masked cell is at minus infinity and left out; without the article's three thresholds "
    "one such cell alone makes a loss of about 1e7.",
)
def test_a_masked_cell_is_the_loss():
    s, t = tensor([2.0, -1.0, -1e7]), tensor([1.0, 0.0, 0.0])
    assert clipped(s, t) > 9e6
    masked = tensor([2.0, -1.0, -math.inf])
    exact = log1p(exp(-2)) + log1p(exp(-1))
    assert abs(soft_zlpr_loss(masked, t) - exact) < 1e-14


@pytest.mark.differs(
    "soft-clip-void",
    source="bert4keras 5f5d493",
    theirs="1 - 1e-7 keeps the logarithm of 1 - t finite.",
    ours="In float16 and bfloat16 that number is 1, and the logarithm is minus infinity again; the "
    "weights here multiply exponentials and need no logarithm.",
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_clip_is_void_in_half_precision(dtype):
    t = torch.tensor([1.0, 0.0], dtype=dtype)
    top = t.clamp(torch.tensor(1e-7, dtype=dtype), torch.tensor(1 - 1e-7, dtype=dtype))
    assert (1 - top[0]).log() == -math.inf
    s = torch.tensor([2.0, -3.0], dtype=dtype)
    assert soft_zlpr_loss(s, t).isfinite()


@pytest.mark.differs(
    "soft-other-target",
    source="bert4keras 5f5d493",
    theirs="Targets closer to 0 or 1 than 1e-7 are moved there.",
    ours="A target of 1e-9 at a score of -20 owns nearly half of its group's argument; clipped, it "
    "counts a hundred times.",
)
def test_small_targets_are_kept():
    s, t = tensor([-20.0]), tensor([1e-9])
    exact = log1p(1e-9 * exp(20)) + log1p((1 - 1e-9) * exp(-20))
    assert abs(float(soft_zlpr_loss(s, t)) / exact - 1) < 1e-13
    assert float(clipped(s, t)) > 5 * exact


@pytest.mark.differs(
    "soft-dense-bert4torch",
    source="bert4torch 0.6.2",
    theirs="The dense loss accepts any target, as it only multiplies by 1 - 2t and subtracts t "
    "times 1e12.",
    ours="For a target between 0 and 1 both groups then lose the label: its loss is 0 whatever "
    "its score. Its documentation wants 0 and 1, but the code does not say so.",
)
def test_bert4torch_ignores_soft_labels():
    def dense(s, t):
        flipped = (1 - 2 * t) * s
        zero = torch.zeros(1, dtype=s.dtype)
        up = torch.logsumexp(torch.cat([flipped - (1 - t) * 1e12, zero]), 0)
        return up + torch.logsumexp(torch.cat([flipped - t * 1e12, zero]), 0)

    hard = tensor([1.0, 0.0])
    assert abs(dense(tensor([1.0, -2.0]), hard) - zlpr_loss(tensor([1.0, -2.0]), hard)) < 1e-12
    for s in (-9.0, 0.0, 9.0):
        assert dense(tensor([s]), tensor([0.9])) == 0
    assert soft_zlpr_loss(tensor([-9.0]), tensor([0.9])) > 8


def shifted(s, t, m):
    return mp.exp(m) * (mp.exp(-m) + mp.fsum(d * mp.exp(-v - m) for v, d in zip(s, t, strict=True)))


@pytest.mark.equation(
    "eq:soft-shift",
    kind="identity",
    source=OURS,
    hypotheses="any m; with m the largest of 0 and the weighted terms the bracket is in [1, n + 1]",
    right=shifted,
    wrong={
        "the null class is not shifted": lambda s, t, m: (
            mp.exp(m) * (1 + mp.fsum(d * mp.exp(-v - m) for v, d in zip(s, t, strict=True)))
        )
    },
)
@pytest.mark.differs(
    "soft-log-digits",
    source=SU,
    theirs="Adds log t to the score inside a log-sum-exp.",
    ours="At scores of 1e4 float32 rounds that sum to three decimals; a weight that multiplies the "
    "shifted exponential keeps all digits.",
)
@given(cases(inner=True), st.floats(-5, 5))
def test_shift(form, check, case, m):
    s, t = ([mp.mpf(v) for v in values] for values in case)
    with mp.workdps(40):
        direct = 1 + mp.fsum(d * mp.exp(-v) for v, d in zip(s, t, strict=True))
        check.equal(form(s, t, mp.mpf(m or 1.0)), direct, tol=1e-30)
        check.equal(form(s, t, mp.mpf(1)), direct, tol=1e-30)
        top = max(mp.mpf(0), *(-v + mp.log(d) for v, d in zip(s, t, strict=True)))
        bracket = direct * mp.exp(-top)
        check.at_most(1 - 1e-20, bracket)
        check.at_most(bracket, len(s) + 1, slack=1e-20)
    # The gradient of two cells at 1e4 with degrees 0.3 and 0.7 shares the pull as 0.3 : 0.7.
    x = torch.full((2,), -1e4, requires_grad=True)
    soft_zlpr_loss(x, torch.tensor([0.3, 0.7])).backward()
    check.equal(x.grad.double(), [-0.3, -0.7], tol=1e-6)
    published = torch.log_softmax(-x.detach() + torch.tensor([0.3, 0.7]).log(), 0).exp()
    check.at_most(1e-5, (published[0] - 0.3).abs())


# ---------------------------------------------------------------- 8 the diary


def first_idea(s, t, own=False):
    total = 0.0
    for j, weights in enumerate(zip(*t, strict=True)):
        inside = 1.0
        for row, weight in zip(s, weights, strict=True):
            inside += weight * sum(exp(v - row[j]) for k, v in enumerate(row) if k != j or own)
        total += log(inside)
    return total


def last_idea(s, t, by=None):
    total = 0.0
    for j, weights in enumerate(zip(*t, strict=True)):
        inside = 1.0
        for row, weight in zip(s, weights, strict=True):
            inside += weight * exp(-row[j] + sum(row) / (by or len(row)))
        total += log(inside)
    return total


@st.composite
def tables(draw, classes=3):
    n = draw(st.integers(1, 4))
    row = st.lists(scores(-2, 2), min_size=classes, max_size=classes)
    s = draw(st.lists(row, min_size=n, max_size=n))
    u = draw(st.lists(row, min_size=n, max_size=n))
    return s, [[exp(v) / sum(exp(w) for w in r) for v in r] for r in u]


def first_torch(s, t):
    others = s.exp().sum(1, keepdim=True) - s.exp()
    return torch.log1p((t * others * (-s).exp()).sum(0)).sum()


def last_torch(s, t):
    return torch.log1p((t * (-s + s.mean(1, keepdim=True)).exp()).sum(0)).sum()


@pytest.mark.equation(
    "eq:diary-first",
    kind="definition",
    source=SU9158,
    hypotheses="rows of t sum to 1",
    right=first_idea,
    wrong={"the target is among its own rivals": lambda s, t: first_idea(s, t, own=True)},
)
@given(tables())
def test_first_idea(form, check, case):
    s, t = map(tensor, case)
    check.equal(form(*case), first_torch(s, t))
    # Hard labels, one problem: cross-entropy.
    check.equal(form([[1.0, 0.2, -0.5]], [[0, 1, 0]]),
                -torch.log_softmax(tensor([1.0, 0.2, -0.5]), 0)[1])  # fmt: skip
    x = t.log().requires_grad_()
    first_torch(x, t).backward()
    lopsided = tensor([[0.7, 0.2, 0.1]])
    x = lopsided.log().requires_grad_()
    first_torch(x, lopsided).backward()
    check.at_most(0.01, x.grad.abs().max())


@pytest.mark.equation(
    "eq:diary-last",
    kind="definition",
    source=SU9158,
    hypotheses="rows of t sum to 1",
    right=last_idea,
    wrong={"the sum in place of the mean score": lambda s, t: last_idea(s, t, by=1)},
)
@given(tables())
def test_last_idea(form, check, case):
    s, t = map(tensor, case)
    check.equal(form(*case), last_torch(s, t))
    h = torch.autograd.functional.hessian(lambda x: last_torch(x, t), s)
    values = torch.linalg.eigvalsh(h.reshape(s.numel(), s.numel()))
    check.at_most(-1e-10, values.min())  # convex


@pytest.mark.equation(
    "eq:diary-softmax",
    kind="identity",
    source=SU9158,
    hypotheses="rows of t positive, summing to 1; the minimum is unique up to a constant per row",
    right=lambda s: [[exp(v) / sum(exp(w) for w in row) for v in row] for row in s],
    wrong={
        "separate sigmoids": lambda s: [[sigma(v) for v in row] for row in s],
        "softmax of twice the scores": lambda s: [
            [exp(2 * v) / sum(exp(2 * w) for w in row) for v in row] for row in s
        ],
    },
)
@given(tables())
def test_last_is_minimal_at_softmax(form, check, case):
    start, t = map(np.array, case)
    target = tensor(t)

    def loss_and_slope(flat):
        x = tensor(flat).view(t.shape).requires_grad_()
        value = last_torch(x, target)
        value.backward()
        return value.item(), x.grad.flatten().numpy()

    # From any start the minimum has these degrees, and there is no other: only a constant per
    # problem is free.
    found = optimize.minimize(loss_and_slope, start.ravel(), jac=True, tol=1e-10).x
    check.equal(form(found.reshape(t.shape).tolist()), t, tol=1e-5)
    bend = torch.autograd.functional.hessian(
        lambda x: last_torch(x.view(t.shape), target), tensor(found)
    )
    bends = torch.linalg.eigvalsh(bend)
    check.equal(bends[: len(t)], torch.zeros(len(t)), tol=1e-10)
    check.at_most(1e-6, bends[len(t)])


@pytest.mark.equation(
    "eq:diary-failure",
    kind="identity",
    source=SU9158,
    right=lambda: log1p(exp(-9)),
    wrong={"cross-entropy": lambda: log1p(e + exp(-28))},
)
def test_last_fails_at_hard_labels(form, check):
    s, t = [[9.0, 10.0, -19.0]], [[1, 0, 0]]
    check.equal(form(), last_idea(s, t))
    check.at_most(last_idea(s, t), 2e-4)
    check.true(s[0].index(max(s[0])) != 0, "the target wins")
    check.at_most(1.0, first_idea(s, t))


@pytest.mark.equation(
    "eq:diary-binary",
    kind="identity",
    source=OURS,
    hypotheses="m = 2",
    right=(1.0, 0.5),
    wrong={"no half": (1.0, 1.0), "the half in both": (0.5, 0.5)},
)
@pytest.mark.differs(
    "diary-half",
    source=SU9158,
    theirs="For two classes both attempts reduce to the known soft loss.",
    ours="The first to that of the score difference, the last to that of half of it: their minima "
    "differ by a factor of 2.",
)
@given(tables(classes=2))
def test_two_classes(form, check, case):
    for s, t in (case, ([[1.0, -1.0]], [[0.3, 0.7]])):
        difference, degree = [r[0] - r[1] for r in s], [r[0] for r in t]
        check.equal(first_idea(s, t), soft([form[0] * d for d in difference], degree))
        check.equal(last_idea(s, t), soft([form[1] * d for d in difference], degree))
