"""Checks of the numbered equations of chapter 6, in the order of the chapter.

Integrals are sums over 961 equal steps of float64, written here with NumPy alone. Orthant
probabilities come from SciPy, softmax from PyTorch, what is far out from mpmath.
"""

import itertools
import math
from math import exp, log, log1p, pi, sqrt

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from scipy.special import log_ndtr, ndtr, ndtri

from lib.exact import exact_loss, expected_accuracy, log_expected_accuracy
from references.exact import genz_sample

PAPER = "Karpukhin, Dereka and Kolesnikov 2024 (arXiv 2205.09615)"
CODE = "EXACT official implementation (commit b88d545)"
SU2022 = "Su 2022 (kexue 9098)"
SU2024 = "Su 2024 (kexue 10145)"
GENZ = "Genz 1992"
STANDARD = "standard"
OURS = "ours"

# ---------------------------------------------------------------- inputs and tools


def numbers(low, high):
    return st.integers(round(1000 * low), round(1000 * high)).map(lambda v: v / 1000)


def advantages(most=6, low=-4.0, high=4.0, least=1):
    return st.lists(numbers(low, high), min_size=least, max_size=most).map(np.array)


@st.composite
def score_rows(draw, most=6, low=-3.0, high=3.0):
    """Scores and the index of the target."""
    mu = draw(st.lists(numbers(low, high), min_size=2, max_size=most))
    return np.array(mu), draw(st.integers(0, len(mu) - 1))


GRID = np.linspace(-12, 12, 961)
STEP = GRID[1] - GRID[0]


def normal(z):
    return np.exp(-0.5 * z * z) / sqrt(2 * pi)


def integral(values):
    """Integral over [-12, 12] of a function given on GRID, by equal steps."""
    return STEP * float(np.sum(values))


def product(delta, z=GRID):
    """The product of Phi(z + delta_i) on a grid."""
    return np.exp(log_ndtr(np.asarray(z)[:, None] + np.asarray(delta)).sum(1))


def chance(delta):
    return integral(normal(GRID) * product(delta))


def ahead(mu, target, noise=1.0):
    return (mu[target] - np.delete(mu, target)) / noise


def tensor(values):
    return torch.tensor(np.asarray(values, dtype=float), dtype=torch.float64)


def scores_of(delta):
    """Scores whose target, the first class, has these advantages."""
    return np.concatenate([[0.0], -np.asarray(delta)])


def ours(mu, target, noise=1.0):
    return float(expected_accuracy(tensor(mu), torch.tensor(int(target)), noise=noise))


def slopes(function, x):
    v = tensor(x).requires_grad_()
    function(v).backward()
    return v.grad.numpy()


def differences(function, x, step=1e-5):
    """Central differences of a function of an array."""
    x = np.asarray(x, dtype=float)
    return np.array(
        [(function(x + step * e) - function(x - step * e)) / (2 * step) for e in np.eye(len(x))]
    )


def sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, dtype=float)))


# ---------------------------------------------------------------- 1 two tiny data sets

X3, L3 = np.array([-0.25, 0.0, 0.25]), np.array([-1, -1, 1])
X5, L5 = np.array([-6.0, -5, -4, 0, 2]), np.array([-1, 1, 1, -1, 1])


def logistic3(k, b):
    return np.logaddexp(0, -L3 * k * (X3 - b)).sum()


def hinge3(k, b):
    return np.maximum(0, 1 - L3 * k * (X3 - b)).sum()


def optimum3(k):
    """Where the logistic loss is least, by minimising it."""
    found = optimize.minimize_scalar(lambda b: logistic3(k, b), bounds=(-3, 3), method="bounded")
    slope = lambda b: (  # noqa: E731 - the derivative, to polish the minimum
        k * (L3 * sigmoid(-L3 * k * (X3 - b))).sum()
    )
    return optimize.brentq(slope, found.x - 0.01, found.x + 0.01, xtol=1e-15)


@pytest.mark.equation(
    "eq:exact-toy-logistic",
    kind="identity",
    source=PAPER,
    hypotheses="k > 0; at the minimiser of the logistic loss",
    right=lambda k, b: (
        sigmoid(k * (-0.25 - b)) + sigmoid(-k * b),
        sigmoid(k * (b - 0.25)),
    ),
    wrong={
        "the positive point pulls the same way": lambda k, b: (
            sigmoid(k * (-0.25 - b)) + sigmoid(-k * b),
            sigmoid(k * (0.25 - b)),
        )
    },
)
@given(numbers(0.3, 30))
def test_three_points_logistic(form, check, k):
    left, right = form(k, optimum3(k))
    check.equal(left, right, tol=1e-9)


@pytest.mark.equation(
    "eq:exact-toy-hinge",
    kind="identity",
    source=PAPER,
    hypotheses="k = 1",
    right=(1.75, 0.75, 1.0),
    wrong={
        "the gap itself": (1.75, 0.0, 0.25),
        "only the misclassified point counted": (1.0, 0.75, 1.0),
    },
)
def test_three_points_hinge(form, check):
    value, low, high = form
    grid = np.linspace(-2, 3, 5001)
    losses = np.array([hinge3(1, b) for b in grid])
    check.equal(losses.min(), value)
    flat = grid[losses < losses.min() + 1e-9]
    check.equal([flat.min(), flat.max()], [low, high], tol=2e-3)


@pytest.mark.equation(
    "eq:exact-toy-scale",
    kind="identity",
    source=OURS,
    hypotheses="the logistic optimum lies at the positive point",
    right=lambda k: sigmoid(-k / 2) + sigmoid(-k / 4) - 0.5,
    wrong={
        "the distances are halved": lambda k: sigmoid(-k / 4) + sigmoid(-k / 8) - 0.5,
        "both negative points at the same distance": lambda k: 2 * sigmoid(-k / 4) - 0.5,
    },
)
@pytest.mark.differs(
    "three-points-scale",
    source=PAPER,
    theirs="Logistic and hinge loss misclassify one of three separable points; EXACT does not.",
    ours="The model's scale is fixed at 1 there. From k = 3.03 on the logistic optimum classifies "
    "all three, from k = 8 on the hinge loss is 0; EXACT's noise is a scale that it may choose.",
)
def test_three_points_crossing(form, check):
    k = optimize.brentq(lambda k: form(k), 0.05, 40, xtol=1e-14)
    check.equal(optimum3(k), 0.25, tol=1e-9)
    check.true(optimum3(0.9 * k) > 0.25 > optimum3(1.1 * k), "no crossing at this scale")
    check.equal(k, 3.026, tol=1e-3)


@pytest.mark.equation(
    "eq:exact-toy-limit",
    kind="limit",
    source=OURS,
    hypotheses="k to infinity; the error is log(1 + exp(-k/4)) / (2k), to leading order",
    right=0.125,
    wrong={"the positive point itself": 0.25, "zero": 0.0},
)
def test_three_points_limit(form, check):
    scales = [32, 40, 48, 56]
    errors = [abs(optimum3(k) - form) for k in scales]
    predicted = [math.log1p(exp(-k / 4)) / (2 * k) for k in scales]
    check.equal([e / p for e, p in zip(errors, predicted, strict=True)], [1.0] * 4, tol=0.05)
    check.rate(predicted, errors, order=1, within=0.02)


@pytest.mark.equation(
    "eq:exact-toy-hinge-scale",
    kind="identity",
    source=OURS,
    hypotheses="k > 0",
    right=8.0,
    wrong={"a margin of 1/k on one side only": 4.0},
)
@given(numbers(0.5, 30))
def test_three_points_hinge_scale(form, check, k):
    least = min(hinge3(k, b) for b in np.linspace(-1, 2, 3001))
    check.true((least < 1e-9) == (k >= form), f"the least hinge loss at k = {k} is {least}")
    if k >= form:
        check.equal(hinge3(k, 1 / k) + hinge3(k, 0.25 - 1 / k), 0.0)
        check.true(hinge3(k, 1 / k - 0.01) > 0 and hinge3(k, 0.26 - 1 / k) > 0, "not the end")


def five_count(b):
    return [0.6, 0.8, 0.6, 0.4, 0.6, 0.4][sum(b >= x for x in X5)]


@pytest.mark.equation(
    "eq:exact-five-accuracy",
    kind="definition",
    source=CODE,
    hypotheses="a point at b is called negative",
    right=five_count,
    wrong={
        "the two peaks change places": lambda b: five_count(-4.0 - b),
        "everything positive is right twice only": lambda b: 0.4 if b < -6 else five_count(b),
    },
)
@pytest.mark.differs(
    "five-points-survive",
    source=SU2022,
    theirs="The example for EXACT is distorted: with a free scale the common losses succeed.",
    ours="True of three points, not of the five in EXACT's repository: the logistic loss, its "
    "scale free, stays at 0.6 there, where 0.8 is possible.",
)
def test_five_points(form, check):
    for b in (*np.arange(-8.05, 4, 0.1), *X5):
        check.equal(form(b), float(np.mean(np.where(b < X5, 1, -1) == L5)))
    best = optimize.minimize(
        lambda v: np.logaddexp(0, -L5 * (v[0] * X5 + v[1])).sum(), [0.1, 0.0], method="BFGS"
    ).x
    check.equal(form(-best[1] / best[0]), 0.6)


# ---------------------------------------------------------------- 2 a classifier with noise


def chance_by_orthant(mu, target, noise):
    d = ahead(mu, target, noise)
    return stats.multivariate_normal(-d, np.eye(len(d)) + 1, abseps=1e-9, releps=1e-9).cdf(
        np.zeros(len(d))
    )


@pytest.mark.equation(
    "eq:exact-definition",
    kind="definition",
    source=PAPER,
    hypotheses="n >= 2; noise > 0; checked against 40 000 draws to 5 standard deviations",
    right=lambda mu, target, noise, e: (mu + noise * e).argmax(1) == target,
    wrong={
        "one noise for all classes": lambda mu, target, noise, e: (
            mu[target] + noise * e[:, target]
            > np.delete(mu + noise * e[:, [target]], target, axis=1).max(1)
        ),
        "noise on the target only": lambda mu, target, noise, e: (
            mu[target] + noise * e[:, target] > np.delete(mu, target).max()
        ),
    },
)
@given(score_rows(low=-1.5, high=1.5), numbers(0.5, 2))
def test_definition(form, check, case, noise):
    mu, target = case
    e = np.random.default_rng(len(mu)).standard_normal((40_000, len(mu)))
    won = form(mu, target, noise, e)
    check.equal(np.mean(won), ours(mu, target, noise), tol=5 * 0.5 / 200)
    for wins, row in zip(won[:20].tolist(), e, strict=False):  # one by one: ahead of every rival
        noisy = [m + noise * r for m, r in zip(mu, row, strict=True)]
        check.equal(wins, all(noisy[target] > v for i, v in enumerate(noisy) if i != target))


@pytest.mark.equation(
    "eq:exact-loss",
    kind="definition",
    source=PAPER,
    hypotheses="n >= 2; noise > 0",
    right=lambda p: 1 - p,
    wrong={"the logarithm": lambda p: -log(p), "the accuracy itself": lambda p: p},
)
@given(score_rows(), numbers(0.5, 2))
def test_loss(form, check, case, noise):
    mu, target = case
    loss = exact_loss(tensor(mu), torch.tensor(target), noise=noise)
    check.equal(form(chance(ahead(mu, target, noise))), loss)


@pytest.mark.equation(
    "eq:exact-scale",
    kind="identity",
    source=OURS,
    hypotheses="c > 0",
    right=lambda mu, noise, c: (c * mu, c * noise),
    wrong={"the scores alone": lambda mu, noise, c: (c * mu, noise)},
)
@given(score_rows(), numbers(0.3, 2), numbers(1.5, 9))
def test_scale(form, check, case, noise, c):
    mu, target = case
    mu = mu + 0.7 * (np.arange(len(mu)) == target)
    mu[target - 1] -= 0.3
    scaled, level = form(mu, noise, c)
    check.equal(ours(scaled, target, level), chance(ahead(mu, target, noise)))


@pytest.mark.equation(
    "eq:exact-advantage",
    kind="definition",
    source=PAPER,
    hypotheses="noise > 0",
    right=lambda mu, target, noise: (mu[target] - np.delete(mu, target)) / noise,
    wrong={
        "the rival comes first": lambda mu, t, noise: (np.delete(mu, t) - mu[t]) / noise,
        "divided by the deviation of the difference": lambda mu, t, noise: (
            (mu[t] - np.delete(mu, t)) / (sqrt(2) * noise)
        ),
    },
)
@given(score_rows(), numbers(0.3, 2))
def test_advantage(form, check, case, noise):
    mu, target = case
    mu[target] += 0.4
    check.equal(chance(form(mu, target, noise)), ours(mu, target, noise))


@pytest.mark.equation(
    "eq:exact-two",
    kind="identity",
    source=STANDARD,
    hypotheses="n = 2",
    right=lambda d: ndtr(d / sqrt(2)),
    wrong={"the variance of one noise": ndtr},
)
@given(numbers(-6, 6))
def test_two_classes(form, check, d):
    check.equal(form(d), chance([d]))
    check.equal(form(d), ours([d, 0.0], 0))
    check.equal(form(1.0), chance([1.0]))


@pytest.mark.equation(
    "eq:exact-hard-limit",
    kind="limit",
    source=PAPER,
    hypotheses="no tie; the error is bounded by the sum of the two-class tails",
    right=lambda mu, target: float(mu.argmax() == target),
    wrong={"ahead of one rival is enough": lambda mu, t: float(mu[t] > np.delete(mu, t).min())},
)
def test_no_noise(form, check):
    for mu, target in itertools.product(([1.0, 0.2, -0.5], [0.3, 0.1, 1.4, -1.0]), (0, 1, 2)):
        mu = np.array(mu)
        for noise in (0.4, 0.2, 0.1, 0.05):
            gap = abs(ours(mu, target, noise) - form(mu, target))
            tails = ndtr(-np.abs(ahead(mu, target, noise)) / sqrt(2)).sum()
            check.at_most(gap, tails, slack=1e-12)
    # With one rival the error is that tail itself.
    levels = [0.8, 0.4, 0.3, 0.2]
    two = np.array([0.3, 1.0])
    tails = [float(ndtr(-0.7 / (sqrt(2) * noise))) for noise in levels]
    check.rate(tails, [abs(ours(two, 0, noise) - form(two, 0)) for noise in levels], order=1)


def by_gumbel(mu, target):
    """The chance under Gumbel noise: the integral with its density and distribution function."""
    z = np.linspace(-8, 45, 200_001)
    density = np.exp(-z - np.exp(-z))
    rest = np.exp(-np.exp(-(z[:, None] + ahead(mu, target))).sum(1))
    return (z[1] - z[0]) * float(density @ rest)


@pytest.mark.equation(
    "eq:exact-gumbel",
    kind="identity",
    source=SU2024,
    hypotheses="standard Gumbel noise, independent",
    right=lambda mu, target: float(torch.softmax(tensor(mu), 0)[target]),
    wrong={
        "the Gaussian chance": lambda mu, target: chance(ahead(mu, target)),
        "sigmoid of the score": lambda mu, target: float(sigmoid(mu[target])),
    },
)
@given(score_rows())
def test_gumbel_noise_is_softmax(form, check, case):
    mu, target = case
    mu[target] += 1.0
    check.equal(form(mu, target), by_gumbel(mu, target), tol=1e-7)


@pytest.mark.equation(
    "eq:exact-orthant",
    kind="identity",
    source=PAPER,
    hypotheses="2 to 4 rivals; SciPy's own integration, to 1e-6",
    right=lambda n: np.eye(n) + 1,
    wrong={
        "independent differences": lambda n: 2 * np.eye(n),
        "correlation 1/2, variance 1": lambda n: (np.eye(n) + 1) / 2,
    },
)
@given(advantages(most=4, low=-2, high=2, least=2))
def test_orthant(form, check, delta):
    delta = delta + 0.5
    n = len(delta)
    value = stats.multivariate_normal(-delta, form(n)).cdf(np.zeros(n))
    check.equal(value, ours(scores_of(delta), 0), tol=2e-5)


def wall(delta, i, covariance=lambda n: np.eye(n) + 0.5, shift=0.5):
    """Chance that all others are positive given that difference i is 0."""
    rest = np.delete(delta, i)
    if not len(rest):
        return 1.0
    mean = rest - shift * delta[i]
    return stats.multivariate_normal(-mean, covariance(len(rest))).cdf(np.zeros(len(rest)))


@pytest.mark.equation(
    "eq:exact-orthant-gradient",
    kind="gradient",
    source=CODE,
    hypotheses="1 to 4 rivals; against autograd and central differences",
    right=lambda d, rest: exp(-d * d / 4) / sqrt(4 * pi) * rest,
    wrong={
        "the density of variance 1": lambda d, rest: exp(-d * d / 2) / sqrt(2 * pi) * rest,
        "without the other walls": lambda d, rest: exp(-d * d / 4) / sqrt(4 * pi),
    },
)
@given(advantages(most=4, low=-2, high=2, least=2))
def test_orthant_gradient(form, check, delta):
    found = [form(d, wall(delta, i)) for i, d in enumerate(delta)]
    auto = -slopes(lambda s: expected_accuracy(s, torch.tensor(0)), scores_of(delta))[1:]
    check.equal(found, auto, tol=1e-5)
    check.equal(auto, differences(chance, delta), tol=1e-7)


def conditional(delta):
    n = len(delta)
    return delta[1:] - 0.5 * delta[0], np.eye(n - 1) + 0.5


@pytest.mark.equation(
    "eq:exact-conditional",
    kind="identity",
    source=CODE,
    hypotheses="n - 1 >= 2; by the Schur complement of I + 11'",
    right=conditional,
    wrong={
        "the mean stays": lambda d: (d[1:], conditional(d)[1]),
        "the covariance stays": lambda d: (conditional(d)[0], np.eye(len(d) - 1) + 1),
    },
)
@given(advantages(most=6, least=2))
def test_conditional_law(form, check, delta):
    delta[0] += 0.25 if delta[0] >= 0 else -0.25
    mean, covariance = form(delta)
    whole = np.eye(len(delta)) + 1
    gain = whole[1:, 0] / whole[0, 0]
    check.equal(mean, delta[1:] + gain * (0 - delta[0]))
    check.equal(covariance, whole[1:, 1:] - np.outer(gain, whole[0, 1:]))


def factor(n, below=lambda k: 1 / sqrt(k * (k + 1))):
    result = np.zeros((n, n))
    for k in range(1, n + 1):
        result[k - 1, k - 1] = sqrt((k + 1) / k)
        result[k:, k - 1] = below(k)
    return result


@pytest.mark.equation(
    "eq:exact-cholesky",
    kind="identity",
    source=OURS,
    hypotheses="any n",
    right=factor,
    wrong={
        "index shifted by one": lambda n: factor(n, lambda k: 1 / sqrt((k + 1) * (k + 2))),
        "without the root": lambda n: factor(n, lambda k: 1 / (k * (k + 1))),
    },
)
@given(st.integers(2, 40))
def test_cholesky_factor(form, check, n):
    check.equal(form(n), np.linalg.cholesky(np.eye(n) + 1), tol=1e-12)


def genz_weights(delta, u):
    carried, weight = np.zeros(len(u)), np.ones(len(u))
    for k, d in enumerate(delta, start=1):
        e = ndtr((-d - carried) / sqrt((k + 1) / k))
        weight = weight * (1 - e)
        carried = carried + ndtri(e + u[:, k - 1] * (1 - e)) / sqrt(k * (k + 1))
    return weight


def genz_slips(delta, u, sign=1.0, scale=True):
    """The same with a slip."""
    carried, weight = np.zeros(len(u)), np.ones(len(u))
    for k, d in enumerate(delta, start=1):
        e = ndtr((-d - sign * carried) / (sqrt((k + 1) / k) if scale else 1.0))
        weight = weight * (1 - e)
        carried = carried + ndtri(e + u[:, k - 1] * (1 - e)) / sqrt(k * (k + 1))
    return weight


def midpoints(dimensions, per_axis):
    axis = (np.arange(per_axis) + 0.5) / per_axis
    mesh = np.meshgrid(*[axis] * dimensions, indexing="ij")
    return np.stack([m.ravel() for m in mesh], 1)


@pytest.mark.equation(
    "eq:exact-genz",
    kind="identity",
    source=GENZ,
    hypotheses="2 or 3 rivals; the mean over u by midpoints, not by chance",
    right=genz_weights,
    wrong={
        "the sum enters with the other sign": lambda d, u: genz_slips(d, u, sign=-1.0),
        "not divided by the diagonal": lambda d, u: genz_slips(d, u, scale=False),
    },
)
@pytest.mark.differs(
    "sampled-integral",
    source=CODE,
    theirs="Samples the orthant with 16 draws in n - 1 dimensions; the error changes at each call.",
    ours="The integral has one dimension. 16 nodes reach 1e-4 where 16 draws have a standard "
    "deviation above 1e-2, and the result is the same at each call.",
)
@given(st.lists(numbers(-1.5, 2), min_size=2, max_size=3).map(np.array))
def test_genz_conditioning(form, check, delta):
    delta[-1] = -abs(delta[-1]) - 0.3
    u = midpoints(len(delta), 400 if len(delta) == 2 else 60)
    check.equal(form(delta, u).mean(), chance(delta), tol=3e-3)
    nine = np.linspace(-0.5, 2, 9)
    draws = genz_weights(nine, np.random.default_rng(0).random((4000, 9)))
    check.true(draws.std() / 4 > 1e-2, "16 draws are better than that")
    with_nodes = expected_accuracy(tensor(scores_of(nine)), torch.tensor(0), nodes=16)
    check.equal(with_nodes, chance(nine), tol=1e-4)


@pytest.mark.equation(
    "eq:exact-genz-error",
    kind="identity",
    source=STANDARD,
    hypotheses="independent draws; empirical spread of 2000 means, to 6 %",
    right=lambda spread, n: spread / sqrt(n),
    wrong={"divided by the number of draws": lambda spread, n: spread / n},
)
@pytest.mark.parametrize("n", [16, 64])
def test_sampling_error(form, check, n):
    delta = tensor(np.linspace(-0.5, 2, 9))
    generator = torch.Generator().manual_seed(0)
    means = genz_sample(delta.expand(2000, -1), n, generator)
    single = genz_sample(delta.expand(20_000, -1), 1, generator)
    check.equal(means.std() / form(single.std(), n), 1.0, tol=0.06)


# ---------------------------------------------------------------- 3 one dimension


def mp_chance(delta, density, cdf):
    with mp.workdps(20):
        value = mp.quad(
            lambda z: density(z) * mp.fprod(cdf(z + d) for d in delta), [-14, -4, 0, 4, 14]
        )
    return value


@pytest.mark.equation(
    "eq:exact-integral",
    kind="identity",
    source="Su 2022 (kexue 9085)",
    hypotheses="1 to 4 rivals with SciPy's orthant; any number with the library",
    right=lambda delta: mp_chance(delta, mp.npdf, mp.ncdf),
    wrong={
        "the sign of the noise": lambda delta: mp_chance([-d for d in delta], mp.npdf, mp.ncdf),
        "Gumbel noise": lambda delta: mp_chance(
            delta, lambda z: mp.exp(-z - mp.exp(-z)), lambda z: mp.exp(-mp.exp(-z))
        ),
    },
)
@pytest.mark.differs(
    "perturb-max-quadrature",
    source="Su 2022 (kexue 9085)",
    theirs="Has the integral over one noise, and evaluates it by stratified sampling.",
    ours="The integrand is smooth and log-concave: equal steps on the right window converge "
    "faster than any power of the step.",
)
@pytest.mark.parametrize(
    "delta", [[0.5], [1.0, -0.4], [0.3, 0.8, -1.2], [2.0, 1.0, 0.5, 0.1]], ids=str
)
def test_integral(form, check, delta):
    value = form(delta)
    orthant = stats.multivariate_normal(-np.array(delta), np.eye(len(delta)) + 1)
    check.equal(value, orthant.cdf(np.zeros(len(delta))), tol=2e-5)
    check.equal(ours(scores_of(delta), 0), value, tol=1e-11)


@pytest.mark.equation(
    "eq:exact-gradient",
    kind="gradient",
    source=OURS,
    hypotheses="any number of rivals; against autograd and central differences",
    right=lambda d, i: integral(normal(GRID) * normal(GRID + d[i]) * product(np.delete(d, i))),
    wrong={
        "the factor is kept": lambda d, i: integral(
            normal(GRID) * normal(GRID + d[i]) * product(d)
        ),
        "the density of the target only": lambda d, i: integral(
            normal(GRID) * product(np.delete(d, i))
        ),
    },
)
@given(advantages())
def test_gradient(form, check, delta):
    found = [form(delta, i) for i in range(len(delta))]
    auto = -slopes(lambda s: expected_accuracy(s, torch.tensor(0)), scores_of(delta))[1:]
    check.equal(found, auto, tol=1e-9)
    check.equal(found, differences(chance, delta), tol=1e-7)


def score_gradient(mu, target, noise, share=lambda g: g.sum()):
    d = ahead(mu, target, noise)
    g = np.array(
        [
            integral(normal(GRID) * normal(GRID + d[i]) * product(np.delete(d, i)))
            for i in range(len(d))
        ]
    )
    return np.insert(-g, target, share(g)) / noise


@pytest.mark.equation(
    "eq:exact-score-gradient",
    kind="gradient",
    source=OURS,
    hypotheses="n >= 2; noise > 0",
    right=score_gradient,
    wrong={
        "the noise is forgotten": lambda mu, t, noise: noise * score_gradient(mu, t, noise),
        "the target gets the largest share only": lambda mu, t, noise: score_gradient(
            mu, t, noise, lambda g: g.max()
        ),
    },
)
@given(score_rows(), numbers(0.4, 0.9))
def test_score_gradient(form, check, case, noise):
    mu, target = case
    mu = np.append(mu, mu[target] + 0.1)
    auto = slopes(lambda s: expected_accuracy(s, torch.tensor(target), noise=noise), mu)
    check.equal(form(mu, target, noise), auto, tol=1e-9)


ORDERS = range(1, 13)


@pytest.mark.equation(
    "eq:exact-trapezoid",
    kind="identity",
    source=STANDARD,
    hypotheses="h > 0; no rival; in 40 digits",
    right=lambda h: 1 + 2 * mp.fsum(mp.exp(-2 * mp.pi**2 * m**2 / h**2) for m in ORDERS),
    wrong={
        "half the exponent": lambda h: (
            1 + 2 * mp.nsum(lambda m: mp.exp(-(mp.pi**2) * m**2 / h**2), [1, 12])
        ),
        "one side of the spectrum": lambda h: (
            1 + mp.nsum(lambda m: mp.exp(-2 * mp.pi**2 * m**2 / h**2), [1, 12])
        ),
    },
)
@pytest.mark.parametrize("h", ["0.7", "1", "1.5", "2.5"])
def test_equal_steps(form, check, h):
    with mp.workdps(40):
        h = mp.mpf(h)
        total = h * mp.fsum(mp.npdf(k * h) for k in range(-60, 61))
        check.equal((total - 1) / (form(h) - 1), 1.0, tol=1e-12)


def log_integrand(z, delta):
    return -0.5 * z * z + log_ndtr(np.asarray(z)[..., None] + delta).sum(-1)


def curvature(z, delta):
    """Minus the second derivative, by autograd."""
    x = tensor(z).requires_grad_()
    g = -0.5 * x * x + torch.special.log_ndtr(x.unsqueeze(-1) + tensor(delta)).sum(-1)
    (first,) = torch.autograd.grad(g.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    return -second.numpy()


@pytest.mark.equation(
    "eq:exact-concave",
    kind="inequality",
    source=OURS,
    hypotheses="n - 1 rivals; approached for z to plus and minus infinity",
    right=lambda rivals: (1, rivals + 1),
    wrong={
        "n - 1 on the right": lambda rivals: (1, rivals),
        "2 on the left": lambda rivals: (2, rivals + 1),
    },
)
@given(advantages())
def test_log_concave(form, check, delta):
    low, high = form(len(delta))
    values = curvature(np.linspace(-30, 12, 85), delta)
    check.at_most(low, values.min(), slack=1e-9)
    check.at_most(values.max(), high, slack=1e-9)
    check.equal(curvature(np.array([-300.0, 20.0]), delta), [high, low], tol=1e-4)


def mode_of(delta):
    """Where the integrand is largest."""
    return optimize.minimize_scalar(
        lambda z: -log_integrand(np.array(z), delta),
        bounds=(-1, 60),
        method="bounded",
        options={"xatol": 1e-11},
    ).x


def window_ends(delta, depth):
    mode = mode_of(delta)
    k = float(curvature(np.array([mode]), delta)[0])
    return mode, mode - sqrt(2 * depth / k), mode + sqrt(2 * depth)


@pytest.mark.equation(
    "eq:exact-window",
    kind="inequality",
    source=OURS,
    hypotheses="D > 0; equality without rivals, and on the left for rivals far ahead",
    right=window_ends,
    wrong={
        "the curvature of the mode on the right, too": lambda d, depth: (
            *window_ends(d, depth)[:2],
            2 * window_ends(d, depth)[0] - window_ends(d, depth)[1],
        ),
        "twice the depth's width is cut on the left": lambda d, depth: (
            window_ends(d, depth)[0],
            window_ends(d, depth / 2)[1],
            window_ends(d, depth)[2],
        ),
    },
)
@given(advantages(low=-8, high=4), numbers(1, 30))
def test_window(form, check, delta, depth):
    mode, low, high = form(delta, depth)
    top = log_integrand(np.array(mode), delta)
    for end in (low, high):
        check.at_most(log_integrand(np.array(end), delta), top - depth, slack=1e-7)
    # With a rival far behind there is none: the bound is met on both sides.
    mode, low, high = form(np.array([40.0]), depth)
    check.equal([low, high], [-sqrt(2 * depth), sqrt(2 * depth)], tol=1e-6)
    # With a rival far ahead the curvature is nearly the mode's: the left bound is nearly met.
    far = np.array([-80.0])
    mode, low, _ = form(far, depth)
    lost = log_integrand(np.array(mode), far) - log_integrand(np.array(low), far)
    check.equal(lost / depth, 1.0, tol=0.02)


@pytest.mark.equation(
    "eq:exact-error-integral",
    kind="identity",
    source=OURS,
    hypotheses="any number of rivals",
    right=lambda d: integral(-normal(GRID) * np.expm1(log_ndtr(GRID[:, None] + d).sum(1))),
    wrong={
        "a product of errors": lambda d: integral(
            normal(GRID) * np.exp(log_ndtr(-GRID[:, None] - d).sum(1))
        )
    },
)
@given(advantages(low=-2, high=9, least=2))
def test_chance_of_an_error(form, check, delta):
    loss = exact_loss(tensor(scores_of(delta)), torch.tensor(0))
    check.equal(form(delta), 1 - chance(delta))
    check.equal(form(delta) / float(loss), 1.0, tol=1e-8)


def mean_slope(delta, weight):
    w = weight(delta)
    w = w / w.sum()
    mills = np.exp(-0.5 * (GRID[:, None] + delta) ** 2 - log_ndtr(GRID[:, None] + delta))
    return w @ mills / sqrt(2 * pi)


@pytest.mark.equation(
    "eq:exact-log-gradient",
    kind="gradient",
    source=OURS,
    hypotheses="any number of rivals; against autograd and central differences",
    right=lambda d: mean_slope(d, lambda d: normal(GRID) * product(d)),
    wrong={
        "weighted by the density alone": lambda d: mean_slope(d, lambda d: normal(GRID)),
        "the gradient of P": lambda d: (
            chance(d) * mean_slope(d, lambda d: normal(GRID) * product(d))
        ),
    },
)
@given(advantages())
def test_gradient_of_the_logarithm(form, check, delta):
    delta[0] -= 1.0
    found = form(delta)
    auto = -slopes(lambda s: log_expected_accuracy(s, torch.tensor(0)), scores_of(delta))[1:]
    check.equal(found, auto, tol=1e-8)
    check.equal(found, differences(lambda d: log(chance(d)), delta), tol=1e-6)


@pytest.mark.equation(
    "eq:exact-truncation",
    kind="inequality",
    source=CODE,
    hypotheses="K below the number of rivals; equality only if the dropped ones never win",
    right=lambda d, keep: chance(np.sort(d)[:keep]),
    wrong={
        "twice as many rivals as there are": lambda d, keep: chance(np.concatenate([d, d])),
    },
)
@pytest.mark.differs(
    "truncated-rivals",
    source=CODE,
    theirs="`truncate_classes` keeps the hardest rivals, for speed.",
    ours="The chance is over-estimated, monotonically in what is dropped; the loss is no longer "
    "symmetric. The integral over one variable needs no truncation.",
)
@given(advantages(most=8, low=-2, high=2, least=2), st.data())
def test_truncation(form, check, delta, data):
    keep = data.draw(st.integers(1, len(delta) - 1))
    check.at_most(ours(scores_of(delta), 0), form(delta, keep), slack=1e-12)
    check.at_most(form(delta, keep), chance(np.sort(delta)[: max(1, keep - 1)]), slack=1e-12)
    never = np.append(delta, 40.0)
    check.equal(form(never, len(delta)), ours(scores_of(never), 0))


# ---------------------------------------------------------------- 4 how large the gradient can be


@pytest.mark.equation(
    "eq:exact-stein",
    kind="identity",
    source=OURS,
    hypotheses="any number of rivals",
    right=lambda d: integral(GRID * normal(GRID) * product(d)),
    wrong={
        "the absolute value of z": lambda d: integral(np.abs(GRID) * normal(GRID) * product(d)),
        "without the density": lambda d: integral(normal(GRID) * product(d)),
    },
)
@given(advantages())
def test_sum_of_the_gradient(form, check, delta):
    auto = slopes(lambda s: expected_accuracy(s, torch.tensor(0)), scores_of(delta))
    check.equal(form(delta), auto[0], tol=1e-9)
    check.equal(form(delta), (chance(delta + 1e-5) - chance(delta - 1e-5)) / 2e-5, tol=1e-7)


def gradient_mass(delta, noise):
    mu = noise * scores_of(delta)
    return np.abs(slopes(lambda s: expected_accuracy(s, torch.tensor(0), noise=noise), mu)).sum()


@pytest.mark.equation(
    "eq:exact-lipschitz",
    kind="inequality",
    source=OURS,
    hypotheses="any n; approached when many rivals are beaten for z > 0 only",
    right=lambda noise: 2 / (noise * sqrt(2 * pi)),
    wrong={
        "half of it: the target is not counted": lambda noise: 1 / (noise * sqrt(2 * pi)),
        "independent of the noise": lambda noise: 2 / sqrt(2 * pi),
    },
)
@given(advantages(low=-3, high=5), numbers(0.05, 3))
def test_gradient_is_bounded(form, check, delta, noise):
    check.at_most(gradient_mass(delta, noise), form(noise), slack=1e-12)
    check.at_most(2 / (noise * sqrt(2 * pi)), 0.8 / noise)
    # Close to it: the product is a steep step at 0 with many rivals that are beaten above 0 only.
    crowd = np.full(2000, float(ndtri(0.5 ** (1 / 2000))))
    check.at_most(0.9 * 2 / sqrt(2 * pi), mass_of_crowd := gradient_mass(crowd, 1.0))
    check.at_most(mass_of_crowd, form(1.0), slack=1e-12)
    check.equal(2 * integral(GRID * normal(GRID) * (GRID > 0)), form(1.0), tol=2e-4)


def vanishing(d):
    return exp(-d * d / 4) / sqrt(4 * pi) + float(ndtr(-d)) / sqrt(2 * pi)


@pytest.mark.equation(
    "eq:exact-vanishing",
    kind="inequality",
    source=OURS,
    hypotheses="one rival is ahead by d > 0; any others",
    right=vanishing,
    wrong={
        "the exponent of one normal": lambda d: (
            exp(-d * d / 2) / sqrt(4 * pi) + float(ndtr(-d)) / sqrt(2 * pi)
        ),
    },
)
@given(advantages(most=4, low=-1, high=5), numbers(1, 14))
def test_lost_samples_are_silent(form, check, rest, d):
    delta = np.append(np.maximum(rest, -d), -d)
    check.at_most(gradient_mass(delta, 1.0) / 2, form(d) * (1 + 1e-9))
    check.at_most(gradient_mass(np.array([-d]), 1.0) / 2, form(d) * (1 + 1e-9))
    check.equal(gradient_mass(np.array([-8.0]), 1.0) / 2 / form(8.0), 1.0, tol=1e-6)
    # The last step, a bound of E[z_+ Phi(z - d)], holds for every d: far below 0 it is met.
    check.equal(form(-12.0), 1 / sqrt(2 * pi))
    bad = exact_loss(tensor([0.0, 12.0, -1.0, -2.0]), torch.tensor(0), log=True)
    check.true(bad > 30, "the logarithm hears what the chance does not")


# ---------------------------------------------------------------- 5 devices


@pytest.mark.equation(
    "eq:exact-annealing",
    kind="gradient",
    source=OURS,
    hypotheses="n = 2; largest at noise = gap / sqrt(2)",
    right=lambda gap, noise: exp(-gap * gap / (4 * noise**2)) / (noise * sqrt(4 * pi)),
    wrong={
        "without 1 / noise": lambda gap, noise: exp(-gap * gap / (4 * noise**2)) / sqrt(4 * pi),
        "the variance of one noise": lambda gap, noise: (
            exp(-gap * gap / (2 * noise**2)) / (noise * sqrt(2 * pi))
        ),
    },
)
@given(numbers(-4, 4), numbers(0.4, 5))
def test_pull_against_noise(form, check, gap, noise):
    auto = slopes(lambda s: expected_accuracy(s, torch.tensor(0), noise=noise), [gap, 0.0])
    check.equal(form(gap, noise), auto[0], tol=1e-9)
    best = 3.0 / sqrt(2)
    check.at_most([form(3.0, v * best) for v in (0.8, 0.97, 1.03, 1.3)], form(3.0, best))
    check.equal(
        form(1.0, 0.5),
        slopes(lambda s: expected_accuracy(s, torch.tensor(0), noise=0.5), [1.0, 0.0])[0],
    )


@pytest.mark.equation(
    "eq:exact-margin",
    kind="definition",
    source=CODE,
    hypotheses="m > 0, in units of the scores",
    right=lambda gap, m, noise: np.minimum(gap, m) / noise,
    wrong={
        "the margin in units of noise": lambda gap, m, noise: np.minimum(gap / noise, m),
        "subtracted, as in a hinge": lambda gap, m, noise: (gap - m) / noise,
    },
)
@given(advantages(least=2), numbers(0.2, 2), numbers(0.3, 0.8))
def test_margin(form, check, gap, m, noise):
    gap[0] = m + 1.0
    loss = exact_loss(tensor(scores_of(gap)), torch.tensor(0), noise=noise, margin=m)
    check.equal(1 - chance(form(gap, m, noise)), loss)
    slope = slopes(lambda s: exact_loss(s, torch.tensor(0), noise=noise, margin=m), scores_of(gap))
    check.equal(slope[1], 0.0, tol=0)


@pytest.mark.equation(
    "eq:exact-margin-floor",
    kind="inequality",
    source=OURS,
    hypotheses="n >= 2; equality when all rivals are beaten by m",
    right=lambda rivals, m, noise: 1 - chance(np.full(rivals, m / noise)),
    wrong={
        "n factors": lambda rivals, m, noise: 1 - chance(np.full(rivals + 1, m / noise)),
        "zero is never missed by more": lambda rivals, m, noise: 1 - chance([0.0] * rivals),
    },
)
@given(advantages(low=-1, high=6), numbers(0.2, 2), numbers(0.3, 2))
def test_margin_leaves_a_floor(form, check, gap, m, noise):
    target = torch.tensor(0)
    loss = exact_loss(tensor(scores_of(gap)), target, noise=noise, margin=m)
    check.at_most(form(len(gap), m, noise), loss, slack=1e-10)
    best = exact_loss(tensor(scores_of(np.abs(gap) + m)), target, noise=noise, margin=m)
    check.equal(form(len(gap), m, noise), best)


# ---------------------------------------------------------------- 6 forgives, cannot know


def all_losses(mu, **options):
    n = len(mu)
    return exact_loss(
        tensor(mu).expand(n, -1), torch.arange(n), reduction="none", **options
    ).numpy()


@pytest.mark.equation(
    "eq:exact-sum",
    kind="identity",
    source=OURS,
    hypotheses="n >= 2; no margin, no truncation",
    right=lambda n: (1, n - 1),
    wrong={"as for cross-entropy, no constant: n": lambda n: (1, n)},
)
@pytest.mark.differs(
    "margin-breaks-symmetry",
    source=CODE,
    theirs="Offers margin and truncation beside label noise.",
    ours="Without them the losses of all labels sum to n - 1, which is what makes the loss robust; "
    "either of the two breaks the sum.",
)
@given(score_rows())
def test_symmetric(form, check, case):
    mu, _ = case
    p, losses = form(len(mu))
    check.equal(sum(chance(ahead(mu, t)) for t in range(len(mu))), p)
    check.equal(all_losses(mu).sum(), losses)
    spread = np.append(mu, mu.max() + 2)
    check.true(abs(all_losses(spread, margin=0.5).sum() - len(mu)) > 1e-3, "the margin keeps it")


def noisy_mean(losses, target, eta):
    rest = np.delete(losses, target)
    return (1 - eta) * losses[target] + eta * rest.mean()


@pytest.mark.equation(
    "eq:exact-noise",
    kind="identity",
    source="Ghosh, Kumar and Sastry 2017; for EXACT ours",
    hypotheses="noise uniform over the other classes; the same minimiser for eta < (n - 1) / n",
    right=lambda loss, n, eta: (1 - eta * n / (n - 1)) * loss + eta,
    wrong={
        "the factor 1 - eta": lambda loss, n, eta: (1 - eta) * loss + eta,
        "without the constant": lambda loss, n, eta: (1 - eta * n / (n - 1)) * loss,
    },
)
@given(score_rows(), numbers(0.05, 0.9))
def test_label_noise(form, check, case, eta):
    mu, target = case
    losses = all_losses(mu)
    check.equal(form(losses[target], len(mu), eta), noisy_mean(losses, target, eta))
    mu[target] -= 1.0
    losses = all_losses(mu)
    check.equal(form(losses[target], len(mu), eta), noisy_mean(losses, target, eta))


@pytest.mark.equation(
    "eq:exact-population",
    kind="inequality",
    source=OURS,
    hypotheses="class probabilities pi; approached as the scores of the Bayes class grow",
    right=lambda share: 1 - share.max(),
    wrong={"the Gini index, as if P were pi": lambda share: 1 - (share**2).sum()},
)
@pytest.mark.differs(
    "exact-no-calibration",
    source=PAPER,
    theirs="Presents P as the accuracy of a stochastic classifier, which the loss maximises.",
    ours="Maximising it drives P to one-hot whatever the class probabilities are: nothing that "
    "the trained scores say is a probability.",
)
@given(score_rows(), st.lists(numbers(0.1, 1), min_size=6, max_size=6))
def test_population(form, check, case, weights):
    mu, _ = case
    share = np.array(weights[: len(mu)])
    share = share / share.sum()
    check.at_most(form(share), share @ all_losses(mu), slack=1e-10)
    sure = 30.0 * (np.arange(len(mu)) == share.argmax())
    check.at_most(form(share), share @ all_losses(sure), slack=1e-10)
    check.equal(share @ all_losses(sure), form(share), tol=1e-9)


# ---------------------------------------------------------------- 7 smoothed accuracy


def softmax_p(s, target):
    return torch.softmax(s, 0)[target]


def ce_gradient(mu, target):
    return slopes(lambda s: -torch.log_softmax(s, 0)[target], mu)


@pytest.mark.equation(
    "eq:acc-loss",
    kind="definition",
    source=SU2022,
    hypotheses="n >= 2; the chance of an error under Gumbel noise",
    right=lambda p: 1 - p,
    wrong={"the squared error": lambda p: (1 - p) ** 2},
)
@given(score_rows())
def test_smoothed_accuracy(form, check, case):
    mu, target = case
    check.equal(form(float(softmax_p(tensor(mu), target))), 1 - by_gumbel(mu, target), tol=1e-7)


@pytest.mark.equation(
    "eq:acc-gradient",
    kind="gradient",
    source=STANDARD,
    hypotheses="n >= 2",
    right=lambda p: p,
    wrong={"one minus it: weight of the hard ones": lambda p: 1 - p, "no weight": lambda p: 1.0},
)
@given(score_rows())
def test_weight_of_a_sample(form, check, case):
    mu, target = case
    mu[target] += 1.7
    p = float(softmax_p(tensor(mu), target))
    auto = slopes(lambda s: 1 - softmax_p(s, target), mu)
    check.equal(form(p) * ce_gradient(mu, target), auto)


@pytest.mark.equation(
    "eq:acc-weight",
    kind="gradient",
    source=STANDARD,
    hypotheses="n >= 2; the bound is met at p = 1/2",
    right=lambda p: 2 * p * (1 - p),
    wrong={"cross-entropy's": lambda p: 2 * (1 - p), "counted once": lambda p: p * (1 - p)},
)
@given(score_rows())
def test_length_of_the_gradient(form, check, case):
    mu, target = case
    p = float(softmax_p(tensor(mu), target))
    auto = np.abs(slopes(lambda s: 1 - softmax_p(s, target), mu)).sum()
    check.equal(form(p), auto)
    check.at_most(form(p), 0.5, slack=1e-12)
    check.equal(form(0.5), 0.5)


@pytest.mark.equation(
    "eq:acc-first-order",
    kind="inequality",
    source=SU2022,
    hypotheses="0 < p <= 1; both sides meet as p goes to 1",
    right=lambda p: ((1 - p) ** 2 / 2, (1 - p) ** 2 / (2 * p)),
    wrong={
        "no difference to second order": lambda p: ((1 - p) ** 3 / 3, (1 - p) ** 3 / (3 * p)),
        "without 1/p": lambda p: ((1 - p) ** 2 / 2, (1 - p) ** 2 / 2),
    },
)
@pytest.mark.differs(
    "unit-test-of-exact",
    source=CODE,
    theirs="The unit test compares exp(-loss) with the probability, though the loss is 1 - P.",
    ours="They differ by (1 - P)^2 / 2 to leading order; the test passes at five decimals because "
    "its P is 0.9977.",
)
@given(numbers(0.02, 0.999))
def test_first_order_agreement(form, check, p):
    low, high = form(p)
    gap = -log(p) - (1 - p)
    check.at_most(low, gap, slack=1e-14)
    check.at_most(gap, high, slack=1e-14)
    # Where p goes to 1 each side meets the gap: what is missing is of third order.
    steps = [0.03, 0.01, 0.003]
    gaps = [-log1p(-d) - d for d in steps]
    both = [form(1 - d) for d in steps]
    check.rate(steps, [g - b[0] for g, b in zip(gaps, both, strict=True)], order=3, within=0.05)
    check.rate(steps, [b[1] - g for g, b in zip(gaps, both, strict=True)], order=3, within=0.05)
    theirs = float(ndtr(4 / sqrt(2)))
    check.equal((exp(-(1 - theirs)) - theirs) / ((1 - theirs) ** 2 / 2), 1.0, tol=2e-3)


@pytest.mark.equation(
    "eq:acc-gce",
    kind="gradient",
    source="Zhang and Sabuncu 2018",
    hypotheses="0 < q <= 1",
    right=lambda p, q: p**q,
    wrong={"p to the power q - 1": lambda p, q: p ** (q - 1), "q p": lambda p, q: q * p},
)
@given(score_rows(), numbers(0.05, 1))
def test_generalised_cross_entropy(form, check, case, q):
    mu, target = case
    p = float(softmax_p(tensor(mu), target))
    auto = slopes(lambda s: (1 - softmax_p(s, target) ** q) / q, mu)
    check.equal(form(p, q) * ce_gradient(mu, target), auto, tol=1e-9)


@pytest.mark.equation(
    "eq:acc-gce-limit",
    kind="limit",
    source="Zhang and Sabuncu 2018",
    hypotheses="0 < p <= 1; error of order q",
    right=lambda p: -log(p),
    wrong={"smoothed accuracy": lambda p: 1 - p, "nothing is left": lambda p: 0.0},
)
@pytest.mark.parametrize("p", [0.05, 0.4, 0.9])
def test_from_cross_entropy(form, check, p):
    steps = [0.08, 0.04, 0.02, 0.01]
    check.rate(steps, [abs((1 - p**q) / q - form(p)) for q in steps], order=1)


TERMS = range(1, 4000)


@pytest.mark.equation(
    "eq:acc-poly",
    kind="identity",
    source="Leng et al. 2022",
    hypotheses="0 < p <= 1; 4000 terms",
    right=lambda p: math.fsum((1 - p) ** k / k for k in TERMS),
    wrong={
        "the coefficients of an exponential": lambda p: math.fsum(
            (1 - p) ** k / math.factorial(k) for k in TERMS[:60]
        )
    },
)
@given(numbers(0.02, 1))
def test_polynomials(form, check, p):
    check.equal(form(p), -log(p))
    check.equal(form(0.5), log(2))


@pytest.mark.equation(
    "eq:acc-poly-one",
    kind="gradient",
    source="Leng et al. 2022",
    hypotheses="any epsilon",
    right=lambda p, e: 1 + e * p,
    wrong={
        "weight of the hard ones": lambda p, e: 1 + e * (1 - p),
        "a constant": lambda p, e: 1 + e,
    },
)
@given(score_rows(), numbers(0.3, 2))
def test_poly_one(form, check, case, e):
    mu, target = case
    mu[target] += 1.3
    p = float(softmax_p(tensor(mu), target))
    auto = slopes(lambda s: -torch.log_softmax(s, 0)[target] + e * (1 - softmax_p(s, target)), mu)
    check.equal(form(p, e) * ce_gradient(mu, target), auto)


@pytest.mark.equation(
    "eq:acc-self",
    kind="identity",
    source=STANDARD,
    hypotheses="labels drawn from the model itself",
    right=lambda p: 1 - (p**2).sum(),
    wrong={"the entropy": lambda p: -(p * np.log(p)).sum()},
)
@given(score_rows())
def test_gini(form, check, case):
    p = torch.softmax(tensor(case[0]), 0).numpy()
    check.equal(form(p), sum(v * (1 - v) for v in p))
    check.at_most(form(np.array([0.98, 0.01, 0.01])), form(p) + 0.9)


# ---------------------------------------------------------------- 8 the repair


@pytest.mark.equation(
    "eq:exact-repair",
    kind="definition",
    source=OURS,
    hypotheses="n >= 2; also where P underflows: against mpmath for two classes",
    right=lambda d: -mp.log(mp.erfc(-mp.mpf(d) / 2) / 2),
    wrong={
        "the EXACT loss": lambda d: 1 - mp.erfc(-mp.mpf(d) / 2) / 2,
        "cross-entropy": lambda d: mp.log1p(mp.exp(-mp.mpf(d))),
    },
)
@pytest.mark.differs(
    "no-logarithm",
    source=CODE,
    theirs="Only 1 - P is offered; normals are clipped to ±5, and far out P is 0.",
    ours="log P is computed as such, to 1e-9 of itself at -1e4; with its gradient.",
)
@pytest.mark.parametrize("d", [3.0, 0.5, -2.0, -12.0, -40.0, -200.0])
def test_repair(form, check, d):
    loss = exact_loss(tensor([d, 0.0]), torch.tensor(0), log=True)
    check.equal(float(loss) / float(form(d)), 1.0, tol=1e-9)


@pytest.mark.equation(
    "eq:exact-repair-gradient",
    kind="gradient",
    source=OURS,
    hypotheses="n >= 2",
    right=lambda p: p,
    wrong={"one minus it": lambda p: 1 - p},
)
@given(score_rows())
def test_repair_has_the_same_direction(form, check, case):
    mu, target = case
    mu[target] += 1.1
    flat = slopes(lambda s: exact_loss(s, torch.tensor(target)), mu)
    steep = slopes(lambda s: exact_loss(s, torch.tensor(target), log=True), mu)
    check.equal(form(chance(ahead(mu, target))) * steep, flat, tol=1e-9)
    numeric = differences(lambda m: -log(chance(ahead(m, target))), mu)
    check.equal(steep, numeric, tol=1e-6)


@pytest.mark.equation(
    "eq:exact-repair-tail",
    kind="limit",
    source=OURS,
    hypotheses="n = 2; delta to minus infinity; error of order log|delta| / delta^2",
    right=lambda d: d * d / 4,
    wrong={"one variance": lambda d: d * d / 2, "linear": lambda d: -d},
)
def test_tail_of_the_repair(form, check):
    depths = [-20.0, -40.0, -80.0, -160.0]
    losses = [float(exact_loss(tensor([d, 0.0]), torch.tensor(0), log=True)) for d in depths]
    rest = [loss - form(d) for loss, d in zip(losses, depths, strict=True)]
    # What remains is log(|d| sqrt(pi)), by the first term of the asymptotic series.
    check.equal(rest, [log(-d * sqrt(pi)) for d in depths], tol=1e-2)
    steps = [log(-d * sqrt(pi)) / (d * d / 4) for d in depths]
    errors = [abs(loss / form(d) - 1) for loss, d in zip(losses, depths, strict=True)]
    check.rate(steps, errors, order=1, within=0.01)


@pytest.mark.equation(
    "eq:exact-repair-convex",
    kind="inequality",
    source="Prékopa 1973; for this loss ours",
    hypotheses="any two score vectors",
    right=lambda f, a, b: (f(a) + f(b)) / 2,
    wrong={"the smaller of the two": lambda f, a, b: min(f(a), f(b))},
)
@given(score_rows(), st.data())
def test_convex(form, check, case, data):
    mu, target = case
    other = np.array(data.draw(st.lists(numbers(-9, 9), min_size=len(mu), max_size=len(mu))))

    def loss(s):
        return float(exact_loss(tensor(s), torch.tensor(target), log=True))

    check.at_most(loss((mu + other) / 2), form(loss, mu, other), slack=1e-9)
    check.equal(loss(mu + 0.5), form(loss, mu, mu + 1.0))  # a common shift changes nothing
    # 1 - P is not convex: the chord from a lost sample to a safe one lies below.
    flat = [1 - ours([d, 0.0], 0) for d in (-8.0, -2.0, 4.0)]
    check.true(flat[1] > (flat[0] + flat[2]) / 2, "1 - P is convex here")


# ---------------------------------------------------------------- differences without an equation


@pytest.mark.differs(
    "clipped-normals",
    source=CODE,
    theirs="The normals drawn on the way are clipped to ±5.",
    ours="If a rival is far ahead the draws all lie beyond, and the conditioning is wrong: with "
    "rivals ahead by 9 and 8 the clipped estimate is off by more than half.",
)
def test_clipping_biases_what_is_far_out():
    delta = np.array([-9.0, -8.0])
    u = midpoints(2, 400)
    first = ndtr(9.0 / sqrt(2))

    def estimate(clip):
        y = np.clip(ndtri(first + u[:, 0] * (1 - first)), -clip, clip)
        second = ndtr((8.0 - y / sqrt(2)) / sqrt(1.5))
        return (1 - first) * float(np.mean(1 - second))

    truth = exp(float(log_expected_accuracy(tensor(scores_of(delta)), torch.tensor(0))))
    assert abs(estimate(50.0) / truth - 1) < 0.01
    assert abs(estimate(5.0) / truth - 1) > 0.5
