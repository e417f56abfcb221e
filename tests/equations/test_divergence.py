"""Checks of the numbered equations of chapter 5, in the order of the chapter.

Formulas are transcribed with loops. What they are compared with is computed another way: in 50
digits, by autograd, by quadrature, by enumeration, by the library.
"""

import itertools
from math import acosh, cosh, exp, hypot, inf, log, nan, sqrt, tanh

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate

from lib.divergence import (
    r_drop,
    sigmoid_divergence,
    softmax_divergence,
    virtual_adversarial_direction,
    virtual_adversarial_loss,
    zlpr_divergence,
    zlpr_regret,
)
from lib.soft_zlpr import soft_zlpr_loss
from lib.zlpr import zlpr_loss

mp.mp.dps = 50
OURS = "ours"
STANDARD = "standard"
KEXUE9039 = "Su 2022 (kexue 9039)"
KEXUE9064 = "Su 2022 (kexue 9064)"
COMMENTARY = "a commentary printed with a public copy of kexue 9039"
LIANG = "Liang et al. 2021"
MIYATO = "Miyato et al. 2018"

# ---------------------------------------------------------------- inputs


def scores(low=-6.0, high=6.0):
    # Thousandths: whether two scores are equal is meant, not rounding.
    return st.integers(round(1000 * low), round(1000 * high)).map(lambda v: v / 1000)


@st.composite
def pairs(draw, most=7, least=1, low=-6.0, high=6.0):
    """Two score vectors of one length."""
    n = draw(st.integers(least, most))
    vector = st.lists(scores(low, high), min_size=n, max_size=n)
    return draw(vector), draw(vector)


@st.composite
def labelled(draw, most=8):
    """Scores and labels."""
    n = draw(st.integers(1, most))
    s = draw(st.lists(scores(), min_size=n, max_size=n))
    return s, draw(st.lists(st.booleans(), min_size=n, max_size=n))


@st.composite
def distributions(draw, most=7):
    """Two distributions without zeros."""
    n = draw(st.integers(2, most))
    weights = st.lists(st.integers(1, 1000), min_size=n, max_size=n)
    p, q = draw(weights), draw(weights)
    return [v / sum(p) for v in p], [v / sum(q) for v in q]


seeds = st.integers(0, 10_000)


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def draw_normal(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ---------------------------------------------------------------- the objects of the chapter


def sigma(x):
    return 1 / (1 + mp.exp(-x)) if isinstance(x, mp.mpf) else 1 / (1 + exp(-x))


def slope(x):
    return sigma(x) * sigma(-x)


def softmax(s):
    total = sum(exp(v) for v in s)
    return [exp(v) / total for v in s]


def kl(p, q):
    return sum(a * log(a / b) for a, b in zip(p, q, strict=True))


def bernoulli(x):
    return [sigma(x), 1 - sigma(x)]


def jeffreys(p, q):
    return sum((a - b) * (log(a) - log(b)) for a, b in zip(p, q, strict=True))


def inner(f, s, u):
    return sum((a - b) * (v - w) for a, b, v, w in zip(f(s), f(u), s, u, strict=True))


def sigmoids(s):
    return [sigma(v) for v in s]


def d_soft(s, u):
    return inner(softmax, s, u)


def d_sigma(s, u):
    return inner(sigmoids, s, u)


def omega(u):
    """Weights over the null class and the cells."""
    weights = [1.0] + [1 / (2 * cosh(v)) for v in u]
    return [w / sum(weights) for w in weights]


def regret(s, u):
    """By the definition, in 50 digits, for plain numbers or mpmath ones."""
    s, u = [mp.mpf(v) for v in s], [mp.mpf(v) for v in u]

    def soft(x):
        a = mp.fsum(sigma(2 * w) * mp.exp(-v) for v, w in zip(x, u, strict=True))
        b = mp.fsum(sigma(-2 * w) * mp.exp(v) for v, w in zip(x, u, strict=True))
        return mp.log(1 + a) + mp.log(1 + b)

    return soft(s) - soft(u)


def d_soft_torch(s, u):
    return ((s.softmax(-1) - u.softmax(-1)) * (s - u)).sum(-1)


def d_sigma_torch(s, u):
    return ((s.sigmoid() - u.sigmoid()) * (s - u)).sum(-1)


def regret_torch(s, u):
    t = (2 * u).sigmoid()
    low = torch.log1p((t * (-s).exp()).sum(-1)) + torch.log1p(((1 - t) * s.exp()).sum(-1))
    best = torch.log1p((t * (-u).exp()).sum(-1)) + torch.log1p(((1 - t) * u.exp()).sum(-1))
    return low - best


# ---------------------------------------------------------------- 1 two softmaxes


@pytest.mark.equation(
    "eq:div-kl",
    kind="definition",
    source=STANDARD,
    hypotheses="distributions without zeros",
    right=kl,
    wrong={
        "the arguments change places": lambda p, q: kl(q, p),
        "weighted by q": lambda p, q: sum(b * log(a / b) for a, b in zip(p, q, strict=True)),
    },
)
@given(distributions())
def test_directed_divergence(form, check, case):
    p, q = case
    expected = torch.nn.functional.kl_div(tensor(q).log(), tensor(p), reduction="sum")
    check.equal(form(p, q), expected)
    check.equal(form([0.9, 0.1], [0.5, 0.5]), 0.9 * log(1.8) + 0.1 * log(0.2))


@pytest.mark.differs(
    "div-kl-example",
    source=COMMENTARY,
    theirs="For (0.9, 0.1) and (0.5, 0.5) both directions of the divergence are 0.510.",
    ours="They are 0.368 and 0.511; a symmetric example would need no symmetrisation.",
)
def test_the_two_directions_of_the_example():
    p, q = [0.9, 0.1], [0.5, 0.5]
    assert abs(kl(p, q) - 0.510) > 0.1
    assert abs(kl(q, p) - 0.511) < 1e-3


@pytest.mark.equation(
    "eq:div-jeffreys",
    kind="identity",
    source=KEXUE9039,
    hypotheses="distributions without zeros",
    right=jeffreys,
    wrong={
        "one direction alone": kl,
        "the mean of both": lambda p, q: jeffreys(p, q) / 2,
    },
)
@given(distributions())
def test_symmetric_divergence(form, check, case):
    p, q = case
    check.equal(form(p, q), kl(p, q) + kl(q, p))


@pytest.mark.equation(
    "eq:div-softmax",
    kind="identity",
    source=KEXUE9039,
    hypotheses="n >= 1, finite scores",
    right=d_soft,
    wrong={
        "logits in place of probabilities": lambda s, u: inner(list, s, u),
        "half of it": lambda s, u: d_soft(s, u) / 2,
    },
)
@given(pairs())
def test_softmax_divergence(form, check, case):
    s, u = case
    check.equal(form(s, u), jeffreys(softmax(s), softmax(u)))
    check.equal(form(s, u), softmax_divergence(tensor(s), tensor(u)))
    check.equal(form([log(4), log(2)], [log(2), log(2)]), log(2) / 6)


@pytest.mark.equation(
    "eq:div-shift",
    kind="identity",
    source=OURS,
    hypotheses="finite scores, any shift",
    right=d_soft,
    wrong={"the sigmoid version": d_sigma},
)
@given(pairs(), scores(-4, 4))
def test_a_common_shift_is_not_seen(form, check, case, c):
    s, u = case
    check.equal(form([v + c for v in s], u), form(s, u), tol=1e-9)
    check.equal(form([v + c for v in s], u), softmax_divergence(tensor(s), tensor(u)), tol=1e-9)


@pytest.mark.equation(
    "eq:div-free-flip",
    kind="identity",
    source=OURS,
    hypotheses="the shift is at least the largest score",
    right=(lambda s: sum(v > 0 for v in s), d_soft),
    wrong={
        "every label flips": (len, d_soft),
        "measured by the sigmoid version": (lambda s: sum(v > 0 for v in s), d_sigma),
    },
)
@pytest.mark.differs(
    "div-softmax-positive",
    source=COMMENTARY,
    theirs="The softmax divergence is above 0 for any two score vectors that differ.",
    ours="It is 0 for scores that differ by a constant, and then every output can disappear.",
)
@given(st.lists(scores(), min_size=2, max_size=8), scores(0.001, 4))
def test_every_output_disappears_at_no_cost(form, check, s, more):
    s = [*s, 1.5, -2.0]
    c = max(s) + more
    count, divergence = form
    sunk = [v - c for v in s]
    check.equal(count(s), sum((v > 0) != (w > 0) for v, w in zip(s, sunk, strict=True)))
    check.equal(divergence(s, sunk), 0.0)
    check.equal(softmax_divergence(tensor(s), tensor(sunk)), 0.0)
    other = [0.5 * v for v in s]  # where it is not 0
    check.equal(divergence(s, other), softmax_divergence(tensor(s), tensor(other)))


# ---------------------------------------------------------------- 2 another decision


@pytest.mark.equation(
    "eq:div-inner",
    kind="definition",
    source=KEXUE9039,
    hypotheses="f is the smooth version of the decision",
    right=inner,
    wrong={
        "the change of f by itself": lambda f, s, u: sum(
            abs(a - b) for a, b in zip(f(s), f(u), strict=True)
        ),
        "f of the change": lambda f, s, u: sum(
            a * (v - w)
            for a, v, w in zip(f([v - w for v, w in zip(s, u, strict=True)]), s, u, strict=True)
        ),
    },
)
@given(pairs())
def test_form_with_the_decision_left_open(form, check, case):
    s, u = case
    check.equal(form(softmax, s, u), softmax_divergence(tensor(s), tensor(u)))
    check.equal(form(sigmoids, s, u), sigmoid_divergence(tensor(s), tensor(u)))


@pytest.mark.equation(
    "eq:div-sigmoid",
    kind="definition",
    source=KEXUE9039,
    hypotheses="n >= 1, finite scores",
    right=d_sigma,
    wrong={
        "free of the level: the change alone": lambda s, u: sum(
            (2 * sigma((v - w) / 2) - 1) * (v - w) for v, w in zip(s, u, strict=True)
        ),
        "the mean over the cells": lambda s, u: d_sigma(s, u) / (2 * len(s)),
        "softmax in its place": d_soft,
    },
)
@pytest.mark.differs(
    "div-sigmoid-shift",
    source=COMMENTARY,
    theirs="Adding one constant to both score vectors leaves the sigmoid divergence unchanged.",
    ours="It changes: the line stays where it is. Only the softmax version is free of the level.",
)
@given(pairs())
def test_sigmoid_divergence(form, check, case):
    s, u = case
    check.equal(form(s, u), sigmoid_divergence(tensor(s), tensor(u)))
    check.equal(form([log(4), log(2)], [log(2), -log(2)]), 0.8 * log(2))
    far, near = d_sigma([-5.0], [-7.0]), d_sigma([1.0], [-1.0])
    check.at_most(far, form([1.0], [-1.0]) / 10)
    check.at_most(near, form([1.0], [-1.0]), slack=1e-12)
    check.at_most(form([-5.0], [-7.0]), near / 10)


@pytest.mark.equation(
    "eq:div-null",
    kind="identity",
    source=KEXUE9039,
    hypotheses="finite scores",
    right=lambda s, u: sum(d_soft([v, 0], [w, 0]) for v, w in zip(s, u, strict=True)),
    wrong={
        "one null class for all cells": lambda s, u: d_soft([*s, 0], [*u, 0]),
        "the line at 1": lambda s, u: sum(
            d_soft([v, 1], [w, 1]) for v, w in zip(s, u, strict=True)
        ),
    },
)
@given(pairs())
def test_each_cell_against_the_line(form, check, case):
    s, u = case
    check.equal(form(s, u), d_sigma(s, u))
    check.equal(form([1.0, 2.0], [2.0, -1.0]), d_sigma([1.0, 2.0], [2.0, -1.0]))


@pytest.mark.equation(
    "eq:div-bernoulli",
    kind="identity",
    source=KEXUE9039,
    hypotheses="finite scores",
    right=lambda s, u: sum(jeffreys(bernoulli(v), bernoulli(w)) for v, w in zip(s, u, strict=True)),
    wrong={
        "the share of yes alone": lambda s, u: sum(
            sigma(v) * log(sigma(v) / sigma(w)) + sigma(w) * log(sigma(w) / sigma(v))
            for v, w in zip(s, u, strict=True)
        ),
        "one direction": lambda s, u: sum(
            kl(bernoulli(v), bernoulli(w)) for v, w in zip(s, u, strict=True)
        ),
    },
)
@given(pairs())
def test_yes_no_questions(form, check, case):
    s, u = case
    check.equal(form(s, u), sigmoid_divergence(tensor(s), tensor(u)), tol=1e-9)
    check.equal(form([2.0], [-1.0]), d_sigma([2.0], [-1.0]))


@pytest.mark.equation(
    "eq:div-flip",
    kind="inequality",
    source=OURS,
    hypotheses="m > 0; at least m above the line and at least m below it; equality at m, -m",
    right=lambda m: 2 * m * tanh(m / 2),
    wrong={
        "tanh of m": lambda m: 2 * m * tanh(m),
        "a half of the distance": lambda m: m * tanh(m / 2),
    },
)
@given(scores(0.001, 6), scores(0, 6), scores(0, 6))
def test_price_of_a_flip(form, check, m, above, below):
    check.at_most(form(m), d_sigma([m + above], [-m - below]), slack=1e-12)
    check.equal(form(m), d_sigma([m], [-m]))


@pytest.mark.equation(
    "eq:div-sigmoid-bound",
    kind="inequality",
    source=OURS,
    hypotheses="finite scores; equality for s = -u",
    right=lambda d: abs(d) * tanh(abs(d) / 4),
    wrong={
        "the published bound, as if it were attained": lambda d: abs(d) * min(1, abs(d) / 4),
        "tanh of an eighth": lambda d: abs(d) * tanh(abs(d) / 8),
    },
)
@given(pairs())
def test_bound_by_the_change(form, check, case):
    s, u = case
    value = d_sigma(s, u)
    check.at_most(0.0, value, slack=1e-12)
    bound = sum(form(v - w) for v, w in zip(s, u, strict=True))
    check.at_most(value, bound, slack=1e-12)
    check.at_most(form(2.0), min(2.0, 1.0))
    for v in (0.3, 2.0, 5.0):
        check.equal(form(2 * v), d_sigma([v], [-v]))


@pytest.mark.equation(
    "eq:div-sigmoid-gradient",
    kind="gradient",
    source=OURS,
    hypotheses="finite scores",
    right=lambda s, u: slope(s) * (s - u) + sigma(s) - sigma(u),
    wrong={
        "the first factor taken for constant": lambda s, u: sigma(s) - sigma(u),
        "the slope at the other score": lambda s, u: slope(u) * (s - u) + sigma(s) - sigma(u),
    },
)
@given(pairs())
def test_gradient_of_the_sigmoid_divergence(form, check, case):
    s, u = ([*v, x] for v, x in zip(case, (1.0, -2.0), strict=True))
    x = tensor(s).requires_grad_()
    sigmoid_divergence(x, tensor(u)).backward()
    found = [form(v, w) for v, w in zip(s, u, strict=True)]
    check.equal(found, x.grad)
    h = mp.mpf(10) ** -15
    for v, w, g in zip(s, u, found, strict=True):
        a, b = (
            (sigma(mp.mpf(v) + e) - sigma(mp.mpf(w))) * (mp.mpf(v) + e - mp.mpf(w)) for e in (h, -h)
        )
        check.equal(g, (a - b) / (2 * h))


@pytest.mark.equation(
    "eq:div-sigmoid-gradient-bound",
    kind="inequality",
    source=OURS,
    hypotheses="finite scores; equality to first order of the change, at s = 0",
    right=lambda d: abs(d) / 4 + tanh(abs(d) / 4),
    wrong={
        "bounded, as in ZLPR": lambda d: 1.0,
        "without the slope of the other factor": lambda d: tanh(abs(d) / 4),
    },
)
@given(scores(-20, 20), scores(-20, 20))
def test_the_pull_is_not_bounded(form, check, s, u):
    pull = abs(slope(s) * (s - u) + sigma(s) - sigma(u))
    check.at_most(pull, form(s - u), slack=1e-12)
    far = tensor([0.0]).requires_grad_()
    sigmoid_divergence(far, tensor([-400.0])).backward()
    check.at_most(99.0, far.grad.abs().max())
    check.at_most(far.grad.abs().max(), form(400.0), slack=1e-12)
    near = abs(slope(0.0) * 1e-4 + sigma(0.0) - sigma(-1e-4))
    check.equal(near / form(1e-4), 1.0, tol=1e-8)


@pytest.mark.equation(
    "eq:div-sigmoid-curvature",
    kind="gradient",
    source=OURS,
    hypotheses="finite scores",
    right=lambda s, u: slope(s) * (2 - (s - u) * tanh(s / 2)),
    wrong={
        "convex: the bracket without its second term": lambda s, u: 2 * slope(s),
        "the sign of the second term": lambda s, u: slope(s) * (2 + (s - u) * tanh(s / 2)),
    },
)
@pytest.mark.differs(
    "div-sigmoid-convex",
    source=COMMENTARY,
    theirs="For a fixed second argument the sigmoid divergence is convex in the first.",
    ours="Its second derivative is negative where a score lies more than about 2 further out.",
)
@given(scores(), scores())
def test_curvature_changes_its_sign(form, check, s, u):
    x = tensor(s).requires_grad_()
    (first,) = torch.autograd.grad(d_sigma_torch(x[None], tensor([u])), x, create_graph=True)
    (second,) = torch.autograd.grad(first, x)
    check.equal(form(s, u), second)
    check.at_most(form(4.0, -4.0), -0.05)


# ---------------------------------------------------------------- 3 Bregman


def log_sum(s):
    return log(sum(exp(v) for v in s))


def softplus_sum(s):
    return sum(log(1 + exp(v)) for v in s)


POTENTIALS = ((log_sum, softmax), (softplus_sum, sigmoids))


def bregman(psi, nabla, s, u):
    change = sum(g * (v - w) for g, v, w in zip(nabla(u), s, u, strict=True))
    return psi(s) - psi(u) - change


@pytest.mark.equation(
    "eq:div-bregman",
    kind="definition",
    source=STANDARD,
    hypotheses="convex and smooth potential",
    right=bregman,
    wrong={
        "the tangent at s": lambda psi, nabla, s, u: (
            psi(s) - psi(u) - sum(g * (v - w) for g, v, w in zip(nabla(s), s, u, strict=True))
        ),
        "without the tangent": lambda psi, nabla, s, u: psi(s) - psi(u),
    },
)
@given(pairs())
def test_height_above_the_tangent(form, check, case):
    s, u = case
    for psi, nabla in POTENTIALS:
        # Taylor's remainder, by quadrature.
        v = [a - b for a, b in zip(s, u, strict=True)]

        def gap(z, nabla=nabla, v=v):
            point = [b + z * d for b, d in zip(u, v, strict=True)]
            return sum((a - b) * d for a, b, d in zip(nabla(point), nabla(u), v, strict=True))

        check.equal(form(psi, nabla, s, u), integrate.quad(gap, 0, 1)[0], tol=1e-7)
        check.at_most(0.0, form(psi, nabla, s, u), slack=1e-12)
    check.equal(form(softplus_sum, sigmoids, [2.0], [0.0]), log(1 + exp(2)) - log(2) - 1)


@pytest.mark.equation(
    "eq:div-bregman-symmetric",
    kind="identity",
    source=STANDARD,
    hypotheses="convex and smooth potential",
    right=lambda nabla, s, u: inner(nabla, s, u),
    wrong={
        "half of it": lambda nabla, s, u: inner(nabla, s, u) / 2,
        "the sum of gradients": lambda nabla, s, u: sum(
            (a + b) * (v - w) for a, b, v, w in zip(nabla(s), nabla(u), s, u, strict=True)
        ),
    },
)
@given(pairs())
def test_both_orders_together(form, check, case):
    s, u = ([*v, x] for v, x in zip(case, (1.0, -2.0), strict=True))
    for psi, nabla in POTENTIALS:
        both = bregman(psi, nabla, s, u) + bregman(psi, nabla, u, s)
        check.equal(form(nabla, s, u), both)


@pytest.mark.equation(
    "eq:div-bregman-lse",
    kind="identity",
    source=STANDARD,
    hypotheses="finite scores",
    right=lambda s, u: kl(softmax(u), softmax(s)),
    wrong={"the arguments in the same order": lambda s, u: kl(softmax(s), softmax(u))},
)
@given(pairs(least=2))
def test_bregman_of_log_sum_exp(form, check, case):
    s, u = ([*v, x] for v, x in zip(case, (1.0, -2.0), strict=True))
    check.equal(form(s, u), bregman(log_sum, softmax, s, u))


@pytest.mark.equation(
    "eq:div-bregman-softplus",
    kind="identity",
    source=STANDARD,
    hypotheses="finite scores",
    right=lambda s, u: sum(kl(bernoulli(w), bernoulli(v)) for v, w in zip(s, u, strict=True)),
    wrong={
        "the arguments in the same order": lambda s, u: sum(
            kl(bernoulli(v), bernoulli(w)) for v, w in zip(s, u, strict=True)
        )
    },
)
@given(pairs())
def test_bregman_of_softplus(form, check, case):
    s, u = ([*v, x] for v, x in zip(case, (1.0, -2.0), strict=True))
    check.equal(form(s, u), bregman(softplus_sum, sigmoids, s, u), tol=1e-9)


def curvature_soft(z, v):
    p = softmax(z)
    mean = sum(a * b for a, b in zip(p, v, strict=True))
    return sum(a * b * b for a, b in zip(p, v, strict=True)) - mean**2


def curvature_sigma(z, v):
    return sum(slope(a) * b * b for a, b in zip(z, v, strict=True))


@pytest.mark.equation(
    "eq:div-segment",
    kind="identity",
    source=STANDARD,
    hypotheses="twice differentiable potential",
    right=lambda curvature, z, u, v: curvature([a + z * b for a, b in zip(u, v, strict=True)], v),
    wrong={
        "with the 1/2 of one direction": lambda curvature, z, u, v: (
            curvature([a + z * b for a, b in zip(u, v, strict=True)], v) / 2
        ),
        "the curvature at the start throughout": lambda curvature, z, u, v: curvature(u, v),
    },
)
@given(pairs(low=-3, high=3))
def test_integral_along_the_segment(form, check, case):
    s, u = ([*v, x] for v, x in zip(case, (2.0, -2.5), strict=True))
    v = [a - b for a, b in zip(s, u, strict=True)]
    for curvature, nabla in ((curvature_soft, softmax), (curvature_sigma, sigmoids)):
        total = integrate.quad(lambda z, c=curvature, u=u, v=v: form(c, z, u, v), 0, 1)[0]
        check.equal(total, inner(nabla, s, u), tol=1e-7)


@pytest.mark.equation(
    "eq:div-zero",
    kind="identity",
    source=OURS,
    hypotheses="finite scores",
    right=(lambda v: len(set(v)) == 1, lambda v: not any(v)),
    wrong={
        "softmax sees everything": (lambda v: not any(v), lambda v: not any(v)),
        "the sigmoid version is blind to shifts, too": (
            lambda v: len(set(v)) == 1,
            lambda v: len(set(v)) == 1,
        ),
    },
)
@given(
    st.lists(scores(-3, 3), min_size=2, max_size=6),
    st.integers(-3, 3),
    st.lists(st.integers(-1, 1), min_size=6, max_size=6),
)
def test_where_they_vanish(form, check, u, shift, extra):
    soft, sigmoid = form
    for change in ([shift] * len(u), extra[: len(u)], [0] * len(u), [2] * len(u)):
        s = [a + b for a, b in zip(u, change, strict=True)]
        check.equal(softmax_divergence(tensor(s), tensor(u)).item() < 1e-12, soft(change))
        check.equal(sigmoid_divergence(tensor(s), tensor(u)).item() < 1e-12, sigmoid(change))


STEPS = (0.04, 0.02, 0.01, 0.005)


@pytest.mark.equation(
    "eq:div-second",
    kind="limit",
    source=OURS,
    hypotheses="fixed direction; the error is of third order",
    right=(curvature_soft, curvature_sigma),
    wrong={
        "with the 1/2 of one direction": (
            lambda u, v: curvature_soft(u, v) / 2,
            lambda u, v: curvature_sigma(u, v) / 2,
        ),
        "second moment in place of the variance": (
            lambda u, v: sum(p * b * b for p, b in zip(softmax(u), v, strict=True)),
            curvature_sigma,
        ),
        "weighted by the probability": (
            curvature_soft,
            lambda u, v: sum(sigma(a) * b * b for a, b in zip(u, v, strict=True)),
        ),
    },
)
def test_second_order(form, check):
    u, v = [0.7, -1.2, 2.0, 0.1], [1.0, -0.5, 0.3, 2.0]
    for divergence, second in zip((softmax_divergence, sigmoid_divergence), form, strict=True):
        errors = []
        for h in STEPS:
            value = divergence(tensor(u) + h * tensor(v), tensor(u)).item()
            errors.append(abs(value - h * h * second(u, v)))
        check.rate(STEPS, errors, 3, within=0.15)


# ---------------------------------------------------------------- 4 the crowd


def expected_crowd(r, h):
    """Mean of one cell's divergence under normal noise, by Gauss-Hermite quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    cells = (1 / (1 + np.exp(r - h * nodes)) - sigma(-r)) * h * nodes
    return float(weights @ cells / weights.sum())


@pytest.mark.equation(
    "eq:div-crowd",
    kind="limit",
    source=OURS,
    hypotheses="one pass trembles; independent symmetric noise with a fourth moment; fourth order",
    right=lambda n, r, h: n * slope(r) * h * h,
    wrong={
        "no class imbalance, so no growth with n": lambda n, r, h: slope(r) * h * h,
        "two noisy passes": lambda n, r, h: 2 * n * slope(r) * h * h,
    },
)
@pytest.mark.differs(
    "div-no-imbalance",
    source=KEXUE9039,
    theirs="Where only consistency is judged there is no problem of imbalance between labels.",
    ours="None between classes; but the sum grows with the number of quiet cells.",
)
def test_the_crowd_grows_with_its_number(form, check):
    n, r = 1000, 3.0
    errors = [abs(n * expected_crowd(r, h) - form(n, r, h)) for h in (0.4, 0.2, 0.1)]
    check.rate((0.4, 0.2, 0.1), errors, 4, within=0.2)
    noise = draw_normal(0, 100_000)
    quiet = torch.full((100_000,), -3.0, dtype=torch.float64)
    value = sigmoid_divergence(quiet + 0.3 * noise, quiet)
    check.equal(value / form(100_000, 3.0, 0.3), 1.0, tol=0.06)


@pytest.mark.equation(
    "eq:div-crowd-mass",
    kind="inequality",
    source=OURS,
    hypotheses="any labels; equality in the limit of scores that are far on the right side",
    right=lambda s, y: sum(exp(-v) if label else exp(v) for v, label in zip(s, y, strict=True)),
    wrong={
        "half of the masses": lambda s, y: (
            sum(exp(-v) if label else exp(v) for v, label in zip(s, y, strict=True)) / 2
        ),
        "masses with the signs changed": lambda s, y: sum(
            exp(v) if label else exp(-v) for v, label in zip(s, y, strict=True)
        ),
    },
)
@given(labelled())
def test_a_small_loss_silences_the_crowd(form, check, case):
    s, y = ([*v, x] for v, x in zip(case, (-0.001, False), strict=True))
    weights = sum(slope(v) for v in s)
    check.at_most(weights, form(s, y))
    loss = zlpr_loss(tensor(s), torch.tensor(y))
    check.at_most(weights, loss.exp() - 1)
    check.at_most(form(s, y), (loss.exp() - 1) * (1 + 1e-12))
    for label in (False, True):
        one_kind = tensor(s), torch.tensor([label] * len(s))  # equality: one of the masses is 0
        check.equal(form(s, [label] * len(s)), zlpr_loss(*one_kind).exp() - 1)
        far = 30.0 if label else -30.0
        check.equal(slope(far) / form([far], [label]), 1.0)


@pytest.mark.equation(
    "eq:div-scaled",
    kind="identity",
    source=OURS,
    hypotheses="any factor above 0",
    right=lambda s, u, g: (
        g * sum((sigma(g * v) - sigma(g * w)) * (v - w) for v, w in zip(s, u, strict=True))
    ),
    wrong={
        "the factor in front forgotten": lambda s, u, g: sum(
            (sigma(g * v) - sigma(g * w)) * (v - w) for v, w in zip(s, u, strict=True)
        ),
        "the sigmoid of the unscaled score": lambda s, u, g: g * d_sigma(s, u),
    },
)
@pytest.mark.differs(
    "div-which-sigmoid",
    source=f"{KEXUE9039} beside {KEXUE9064}",
    theirs="The divergence reads a score as σ(s); three weeks later its probability is σ(2s).",
    ours="The two readings give two divergences; neither is fixed by hard-label training.",
)
@given(pairs(low=-3, high=3), st.sampled_from([0.5, 2.0, 3.0]))
def test_with_a_factor(form, check, case, g):
    s, u = ([*v, x] for v, x in zip(case, (1.0, -2.0), strict=True))
    by_questions = sum(
        jeffreys(bernoulli(g * v), bernoulli(g * w)) for v, w in zip(s, u, strict=True)
    )
    check.equal(form(s, u, g), by_questions, tol=1e-8)
    check.equal(form(s, u, g), sigmoid_divergence(g * tensor(s), g * tensor(u)), tol=1e-9)
    check.true(abs(form(s, u, 2.0) - d_sigma(s, u)) > 1e-3, "the two readings agree")


@pytest.mark.equation(
    "eq:div-scaled-cross",
    kind="identity",
    source=OURS,
    hypotheses="the one positive solution",
    right=2 * acosh((1 + sqrt(3)) / 2),
    wrong={
        "the half angle left out": acosh((1 + sqrt(3)) / 2),
        "cosh of the double angle without its minus 1": 0.0,
    },
)
def test_where_the_weights_are_equal(form, check):
    z = mp.findroot(lambda z: 4 * slope(2 * z) - slope(z), mp.mpf("1.5"))
    check.equal(form, z)
    grid = np.linspace(0, 12, 400)
    signs = np.sign([4 * slope(2 * z) - slope(z) for z in grid])
    check.equal(int((signs[1:] != signs[:-1]).sum()), 1)


# ---------------------------------------------------------------- 5 the divergence of ZLPR


def by_soft_loss(s, u):
    x, y = tensor(s), tensor(u)
    t = (2 * y).sigmoid()
    return soft_zlpr_loss(x, t) - soft_zlpr_loss(y, t)


@pytest.mark.equation(
    "eq:div-zlpr",
    kind="definition",
    source=OURS,
    hypotheses="finite scores",
    right=by_soft_loss,
    wrong={
        "labels read as sigma(u)": lambda s, u: (
            soft_zlpr_loss(tensor(s), tensor(u).sigmoid())
            - soft_zlpr_loss(tensor(u), tensor(u).sigmoid())
        ),
        "the labels of s": lambda s, u: -by_soft_loss(u, s),
    },
)
@given(pairs())
def test_regret(form, check, case):
    s, u = ([*v, x] for v, x in zip(case, (1.0, -2.0), strict=True))
    check.equal(form(s, u), regret(s, u))
    check.equal(form(s, u), zlpr_regret(tensor(s), tensor(u)))


@pytest.mark.equation(
    "eq:div-weights",
    kind="identity",
    source=OURS,
    hypotheses="t = sigma(2u)",
    right=lambda u: 1 / (2 * cosh(u)),
    wrong={
        "the product without its root": lambda u: 1 / (2 * cosh(u)) ** 2,
        "the secant of 2u": lambda u: 1 / (2 * cosh(2 * u)),
    },
)
@given(scores(), scores())
def test_weights(form, check, s, u):
    t = sigma(2 * u)
    check.equal(form(u), sqrt(t * (1 - t)))
    check.equal(form(u) * exp(u - s), t * exp(-s))
    check.equal(form(u) * exp(s - u), (1 - t) * exp(s))
    check.equal(form(1.0), sqrt(sigma(2.0) * sigma(-2.0)))


def cumulants(s, u, null=1.0):
    weights = [null] + [1 / (2 * cosh(w)) for w in u]
    changes = [0.0] + [w - v for v, w in zip(s, u, strict=True)]
    total = sum(weights)
    up = sum(w * exp(d) for w, d in zip(weights, changes, strict=True)) / total
    down = sum(w * exp(-d) for w, d in zip(weights, changes, strict=True)) / total
    return log(up) + log(down)


@pytest.mark.equation(
    "eq:div-zlpr-cgf",
    kind="identity",
    source=OURS,
    hypotheses="finite scores",
    right=cumulants,
    wrong={
        "no null class": lambda s, u: cumulants(s, u, null=0.0),
        "a null class of weight one half": lambda s, u: cumulants(s, u, null=0.5),
        "weights of s": lambda s, u: cumulants(u, s),
    },
)
@given(pairs())
def test_two_cumulants(form, check, case):
    s, u = ([*v, x] for v, x in zip(case, (1.0, -2.0), strict=True))
    check.equal(form(s, u), regret(s, u))
    film, second = [log(4), log(2), log(3), -log(2)], [log(2), -log(2), log(3), -log(2)]
    check.equal(form(film, second), log(164 / 125))


@pytest.mark.equation(
    "eq:div-zlpr-zero",
    kind="inequality",
    source=OURS,
    hypotheses="finite scores; equality only for s = u",
    right=lambda s, u: not any(v != w for v, w in zip(s, u, strict=True)),
    wrong={
        "blind to a common shift": lambda s, u: (
            len({round(v - w, 6) for v, w in zip(s, u, strict=True)}) == 1
        )
    },
)
@given(pairs(), st.sampled_from([0.0, 1.0, -2.0]))
def test_regret_vanishes_only_where_scores_agree(form, check, case, c):
    s, u = case
    check.at_most(0.0, zlpr_regret(tensor(s), tensor(u)))
    for other in ([v + c for v in s], u, [v + 1.0 for v in s]):
        check.equal(zlpr_regret(tensor(s), tensor(other)).item() < 1e-12, form(s, other))


def moments(u, v):
    """Variance and fourth cumulant of the change under the weights, null class included."""
    weights, values = omega(u), [0.0, *v]
    mean = sum(w * x for w, x in zip(weights, values, strict=True))
    second, fourth = (
        sum(w * (x - mean) ** k for w, x in zip(weights, values, strict=True)) for k in (2, 4)
    )
    return second, fourth - 3 * second**2


@pytest.mark.equation(
    "eq:div-zlpr-second",
    kind="limit",
    source=OURS,
    hypotheses="fixed direction; the error is of sixth order",
    right=lambda u, v, h: h**2 * moments(u, v)[0] + h**4 / 12 * moments(u, v)[1],
    wrong={
        "without the fourth cumulant": lambda u, v, h: h**2 * moments(u, v)[0],
        "fourth moment in place of the cumulant": lambda u, v, h: (
            h**2 * moments(u, v)[0] + h**4 / 12 * (moments(u, v)[1] + 3 * moments(u, v)[0] ** 2)
        ),
        "with the 1/2 of one direction": lambda u, v, h: h**2 / 2 * moments(u, v)[0],
        "the cells alone have the weight": lambda u, v, h: h**2 * curvature_soft(u, v),
    },
)
def test_regret_is_a_variance(form, check):
    u, v = [0.7, -1.2, 2.0, 0.1], [1.0, -0.5, 0.3, 2.0]
    steps = (0.2, 0.1, 0.05)
    errors = []
    for h in steps:
        s = [mp.mpf(a) + mp.mpf(h) * mp.mpf(b) for a, b in zip(u, v, strict=True)]
        errors.append(abs(regret(s, u) - form(u, v, h)))
    check.rate(steps, errors, 6, within=0.2)


def tilted(s, u, sign):
    weights = omega(u)
    changes = [0.0] + [w - v for v, w in zip(s, u, strict=True)]
    raw = [w * exp(sign * d) for w, d in zip(weights, changes, strict=True)]
    return [w / sum(raw) for w in raw[1:]]


@pytest.mark.equation(
    "eq:div-zlpr-gradient",
    kind="gradient",
    source=OURS,
    hypotheses="finite scores",
    right=lambda s, u: [b - a for a, b in zip(tilted(s, u, 1), tilted(s, u, -1), strict=True)],
    wrong={
        "the tilts change places": lambda s, u: [
            a - b for a, b in zip(tilted(s, u, 1), tilted(s, u, -1), strict=True)
        ],
        "tilted down alone": lambda s, u: tilted(s, u, -1),
    },
)
@given(pairs())
def test_gradient_of_the_regret(form, check, case):
    s, u = ([*v, x] for v, x in zip(case, (1.0, -2.0), strict=True))
    for function in (zlpr_regret, regret_torch):
        x = tensor(s).requires_grad_()
        function(x, tensor(u)).backward()
        check.equal(form(s, u), x.grad, tol=1e-9)


@pytest.mark.equation(
    "eq:div-zlpr-mass",
    kind="inequality",
    source=OURS,
    hypotheses="any number of labels; 2 is approached, never reached",
    right=2.0,
    wrong={"one distribution: below 1": 1.0, "a bound of 1.9": 1.9},
)
@given(pairs(most=30, low=-20, high=20))
def test_gradient_mass_of_the_regret(form, check, case):
    s, u = (tensor(v) for v in case)
    for x, target in ((s, u), (tensor([9.0, -9.0]), tensor([-9.0, 9.0]))):
        x = x.clone().requires_grad_()
        zlpr_regret(x, target).backward()
        check.at_most(x.grad.abs().sum(), form)
    x = tensor([60.0, -60.0]).requires_grad_()
    zlpr_regret(x, tensor([-60.0, 60.0])).backward()
    check.equal(x.grad.abs().sum(), form)


@pytest.mark.equation(
    "eq:div-zlpr-hessian",
    kind="gradient",
    source=OURS,
    hypotheses="finite scores",
    right=lambda s, u: sum(
        np.diag(p) - np.outer(p, p) for p in map(np.array, (tilted(s, u, 1), tilted(s, u, -1)))
    ),
    wrong={
        "one of the two": lambda s, u: (
            np.diag(tilted(s, u, 1)) - np.outer(tilted(s, u, 1), tilted(s, u, 1))
        ),
        "without the products": lambda s, u: np.diag(tilted(s, u, 1)) + np.diag(tilted(s, u, -1)),
    },
)
@given(pairs(most=5, low=-4, high=4))
def test_the_regret_is_convex(form, check, case):
    s, u = ([*v, x] for v, x in zip(case, (1.0, -2.0), strict=True))
    target = tensor(u)
    found = torch.autograd.functional.hessian(lambda x: regret_torch(x, target), tensor(s))
    check.equal(form(s, u), found, tol=1e-9)
    eigenvalues = np.linalg.eigvalsh(form(s, u))
    check.at_most(1e-12, eigenvalues)
    check.at_most(eigenvalues, 1.0)


@pytest.mark.equation(
    "eq:div-zlpr-bound",
    kind="inequality",
    source="Kantorovich's inequality, for ZLPR ours",
    hypotheses="the range includes the 0 of the null class; equality at two ends of weight 1/2",
    right=lambda r: 2 * log(cosh(r / 2)),
    wrong={
        "a quarter of the range": lambda r: 2 * log(cosh(r / 4)),
        "one logarithm": lambda r: log(cosh(r / 2)),
        "the square alone, as if it were attained": lambda r: r * r / 4,
    },
)
@given(pairs())
def test_regret_is_bounded_by_the_range(form, check, case):
    s, u = case
    changes = [0.0] + [w - v for v, w in zip(s, u, strict=True)]
    r = max(changes) - min(changes)
    check.at_most(zlpr_regret(tensor(s), tensor(u)), form(r), slack=1e-12)
    check.at_most(form(r), min(r, r * r / 4), slack=1e-12)
    for end in (0.5, 3.0):  # two cells on the line hold half of the weight
        check.equal(zlpr_regret(tensor([-end] * 2), tensor([0.0] * 2)), form(end))


def crowd_regret(n, r, h):
    """Regret of n cells at -r whose changes are spread like a normal law (its quadrature)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    shares = weights / weights.sum()
    mass = n / (2 * cosh(r))
    up, down = ((1 + mass * float(shares @ np.exp(x * h * nodes))) / (1 + mass) for x in (1, -1))
    return log(up) + log(down)


@pytest.mark.equation(
    "eq:div-zlpr-crowd",
    kind="limit",
    source=OURS,
    hypotheses="n cells at one level, normal noise of standard deviation h; the error is of 1/n",
    right=lambda h: h * h,
    wrong={
        "the variance of one direction": lambda h: h * h / 2,
        "weighted by the slope, as in the sum": lambda h: slope(3.0) * h * h,
    },
)
def test_the_crowd_is_averaged(form, check):
    for h in (0.3, 1.0):
        counts = (1e5, 1e6, 1e7)
        errors = [abs(crowd_regret(n, 3.0, h) - form(h)) for n in counts]
        check.rate(counts, errors, -1)
    quiet = torch.full((100_000,), -3.0, dtype=torch.float64)
    value = zlpr_regret(quiet + 0.3 * draw_normal(0, 100_000), quiet)
    check.equal(value, form(0.3), tol=0.002)


@pytest.mark.equation(
    "eq:div-zlpr-tail",
    kind="limit",
    source=OURS,
    hypotheses="one score s_i moves, u and the others rest; the error falls like exp(-|change|)",
    right=lambda d, w: abs(d) + log(w * (1 - w)),
    wrong={
        "slope 2": lambda d, w: 2 * abs(d) + log(w * (1 - w)),
        "without the share of the others": lambda d, w: abs(d) + log(w),
    },
)
def test_a_label_that_runs_away(form, check):
    u = [0.5, -1.0, 2.0]
    w = omega(u)[1]
    for sign in (1, -1):
        distances = (8.0, 10.0, 12.0)
        errors = [abs(regret([u[0] - sign * d, *u[1:]], u) - form(sign * d, w)) for d in distances]
        check.rate([exp(-d) for d in distances], errors, 1)
    check.equal(zlpr_regret(tensor([u[0] - 40.0, *u[1:]]), tensor(u)), form(40.0, w))


@pytest.mark.equation(
    "eq:div-zlpr-symmetric",
    kind="definition",
    source=OURS,
    hypotheses="finite scores",
    right=lambda s, u: (regret(s, u) + regret(u, s)) / 2,
    wrong={
        "the sum": lambda s, u: regret(s, u) + regret(u, s),
        "one direction": regret,
    },
)
@given(pairs())
def test_mean_of_the_regrets(form, check, case):
    s, u = ([*v, x] for v, x in zip(case, (1.0, -2.5), strict=True))
    check.equal(zlpr_divergence(tensor(s), tensor(u)), form(s, u))
    check.equal(zlpr_divergence(tensor(u), tensor(s)), form(s, u))


# ---------------------------------------------------------------- 6 numbers that stay right


def product(s, u):
    h, low = max(s, u), min(s, u)
    d = h - low
    return d * -np.expm1(-d) * sigma(h) * sigma(-low)


@pytest.mark.equation(
    "eq:div-sigmoid-product",
    kind="identity",
    source=OURS,
    hypotheses="finite scores; h the larger, l the smaller",
    right=product,
    wrong={
        "the sigmoid of l": lambda s, u: (
            abs(s - u) * -np.expm1(-abs(s - u)) * sigma(max(s, u)) * sigma(min(s, u))
        ),
        "difference of rounded sigmoids": lambda s, u: (sigma(s) - sigma(u)) * (s - u),
    },
)
@given(scores(-30, 30), scores(-30, 30))
def test_product_form_of_a_cell(form, check, s, u):
    x, y = mp.mpf(s), mp.mpf(u)
    check.equal(form(s, u), (sigma(x) - sigma(y)) * (x - y))
    for a, b in ((1.0, -1.0), (35.0, 34.999), (2.0, 2.0 + 1e-9)):  # small values, all digits
        true = (sigma(mp.mpf(a)) - sigma(mp.mpf(b))) * (mp.mpf(a) - mp.mpf(b))
        check.equal(mp.mpf(form(a, b)) / true, 1.0, tol=1e-12)
        check.equal(mp.mpf(sigmoid_divergence(tensor([a]), tensor([b])).item()) / true, 1.0, 1e-12)


def softmax_product(s, u, c, larger=max):
    p, q = softmax(s), softmax(u)
    changes = [a - b - c for a, b in zip(s, u, strict=True)]
    mean = sum(b * (exp(d) - 1) for b, d in zip(q, changes, strict=True))
    ratios = [d - log(1 + mean) for d in changes]
    return ratios, sum(
        larger(a, b) * (1 - exp(-abs(r))) * abs(r) for a, b, r in zip(p, q, ratios, strict=True)
    )


@pytest.mark.equation(
    "eq:div-softmax-product",
    kind="identity",
    source=OURS,
    hypotheses="finite scores, any c",
    right=softmax_product,
    wrong={
        "the smaller probability": lambda s, u, c: softmax_product(s, u, c, min),
        "averaged with p": lambda s, u, c: softmax_product(u, s, c),
    },
)
@given(pairs(least=2, low=-3, high=3), scores(-1, 1))
def test_product_form_of_softmax(form, check, case, c):
    s, u = ([*v, x] for v, x in zip(case, (1.0, -2.0), strict=True))
    ratios, value = form(s, u, c)
    logs = [log(a / b) for a, b in zip(softmax(s), softmax(u), strict=True)]
    check.equal(ratios, logs, tol=1e-9)
    check.equal(value, d_soft(s, u), tol=1e-9)
    check.equal(softmax_divergence(tensor(s), tensor(u)), value, tol=1e-9)


def stable(s, u, c):
    weights = omega(u)
    changes = [-c] + [w - v - c for v, w in zip(s, u, strict=True)]
    a = sum(w * np.expm1(d) for w, d in zip(weights, changes, strict=True))
    b = sum(w * np.expm1(-d) for w, d in zip(weights, changes, strict=True))
    both = sum(w * 4 * np.sinh(d / 2) ** 2 for w, d in zip(weights, changes, strict=True))
    return np.log1p(both + a * b)


@pytest.mark.equation(
    "eq:div-zlpr-stable",
    kind="identity",
    source=OURS,
    hypotheses="finite scores, any c",
    right=stable,
    wrong={
        "the product left out": lambda s, u, c: np.log1p(
            sum(
                w * 4 * np.sinh(d / 2) ** 2
                for w, d in zip(
                    omega(u), [-c, *(w - v - c for v, w in zip(s, u, strict=True))], strict=True
                )
            )
        ),
        "the difference of two losses in double precision": lambda s, u, c: by_soft_loss(s, u),
    },
)
@given(pairs(low=-3, high=3), scores(-1, 1))
def test_stable_form_of_the_regret(form, check, case, c):
    s, u = ([*v, x] for v, x in zip(case, (1.0, -2.0), strict=True))
    check.equal(form(s, u, c), regret(s, u))
    u = [0.5, -1.0, 2.0]
    s = [v + 1e-9 * w for v, w in zip(u, (1.0, -2.0, 0.5), strict=True)]
    mean = sum(w * (b - a) for w, a, b in zip(omega(u)[1:], s, u, strict=True))
    check.equal(form(s, u, mean) / float(regret(s, u)), 1.0, tol=1e-6)
    check.equal(zlpr_regret(tensor(s), tensor(u)) / float(regret(s, u)), 1.0, tol=1e-6)


def cells_of(s, u, keep):
    chosen = [(a, b) for a, b, k in zip(s, u, keep, strict=True) if k]
    return d_sigma(*zip(*chosen, strict=True)) if chosen else 0.0


@pytest.mark.equation(
    "eq:div-mask",
    kind="definition",
    source=OURS,
    hypotheses="cells that do not count may hold anything; minus infinity in both does not count",
    right=cells_of,
    wrong={
        "subtracted first, masked afterwards": lambda s, u, keep: sum(
            ((sigma(a) - sigma(b)) * (a - b) if abs(a) < inf else nan) * k
            for a, b, k in zip(s, u, keep, strict=True)
        ),
        "padding replaced in one argument only": lambda s, u, keep: sum(
            (sigma(a) - sigma(b if k else 0.0)) * (a - (b if k else 0.0))
            for a, b, k in zip([v if abs(v) < inf else 1.0 for v in s], u, keep, strict=True)
        ),
    },
)
@given(pairs(), st.lists(st.booleans(), min_size=9, max_size=9))
def test_only_counting_cells(form, check, case, keep):
    s, u = ([*v, -inf, -inf] for v in case)
    keep = [*keep[: len(s) - 2], False, True]
    mask = torch.tensor(keep)
    counts = [k and v > -inf for v, k in zip(s, keep, strict=True)]
    value = sigmoid_divergence(tensor(s), tensor(u), mask=mask)
    check.equal(form(s, u, counts), value)


@pytest.mark.differs(
    "div-mask-first",
    source="globalpointer_kl_div, a public function for three frameworks",
    theirs="Score tables are subtracted as they are, masked cells included.",
    ours="Cells that do not count are taken out first; minus infinity minus itself is NaN.",
)
def test_minus_infinity_gives_nan_if_subtracted():
    s = tensor([[0.5, -inf], [1.0, -inf]]).requires_grad_()
    u = tensor([[0.3, -inf], [-1.0, -inf]])
    theirs = ((s.sigmoid() - u.sigmoid()) * (s - u)).reshape(1, -1).sum()
    assert theirs.isnan()
    patched = torch.nan_to_num((s.sigmoid() - u.sigmoid()) * (s - u)).sum()
    (gradient,) = torch.autograd.grad(patched, s)
    assert gradient.isnan().any()
    (ours,) = torch.autograd.grad(sigmoid_divergence(s, u), s)
    assert ours.isfinite().all()


@pytest.mark.differs(
    "div-sum-over-batch",
    source="globalpointer_kl_div, a public function for three frameworks",
    theirs="All cells of all samples are added up, beside a loss that is a mean over samples.",
    ours="One value per position, reduced like the loss: a larger batch has no larger weight.",
)
def test_a_sum_over_the_batch_has_the_weight_of_the_batch():
    s, u = draw_normal(1, 2, 4, 5)
    twice, again = torch.cat([s, s]), torch.cat([u, u])

    def theirs(s, u):
        return ((s.sigmoid() - u.sigmoid()) * (s - u)).reshape(1, -1).sum()

    torch.testing.assert_close(theirs(twice, again), 2 * theirs(s, u))
    torch.testing.assert_close(sigmoid_divergence(twice, again), sigmoid_divergence(s, u))


# ---------------------------------------------------------------- 7 R-Drop


def cross_entropies(seed, batch=3, classes=4):
    first, second = draw_normal(seed, 2, batch, classes)
    labels = torch.arange(batch) % classes
    return first, second, labels


def kl_rows(x, y):
    return (x.softmax(-1) * (x.log_softmax(-1) - y.log_softmax(-1))).sum(-1)


def entropy_rows(x, labels):
    return torch.nn.functional.cross_entropy(x, labels, reduction="none")


def paper(first, second, labels, alpha, share=2):
    return (
        entropy_rows(first, labels)
        + entropy_rows(second, labels)
        + alpha / share * (kl_rows(first, second) + kl_rows(second, first))
    )


@pytest.mark.equation(
    "eq:rdrop-paper",
    kind="definition",
    source=LIANG,
    hypotheses="two passes of one batch",
    right=paper,
    wrong={
        "the code's quarter beside the sum of two losses": lambda *a: paper(*a, share=4),
        "the sum of both divergences": lambda *a: paper(*a, share=1),
    },
)
@given(seeds, scores(0.5, 5))
def test_objective_of_the_paper(form, check, seed, alpha):
    first, second, labels = cross_entropies(seed)
    loss = torch.nn.functional.cross_entropy
    ours = r_drop(first, second, lambda x: loss(x, labels), softmax_divergence, alpha=alpha)
    check.equal(form(first, second, labels, alpha).mean(), 2 * ours)


@pytest.mark.equation(
    "eq:rdrop-mean",
    kind="identity",
    source="Su 2021 (kexue 8496)",
    hypotheses="any loss, any symmetric divergence",
    right=lambda one, two, d, alpha: (one + two) / 2 + alpha / 4 * d,
    wrong={
        "the paper's half beside a mean": lambda one, two, d, alpha: (
            (one + two) / 2 + alpha / 2 * d
        ),
        "the sum of losses": lambda one, two, d, alpha: one + two + alpha / 4 * d,
    },
)
@given(seeds, scores(0.5, 5))
def test_half_of_the_paper(form, check, seed, alpha):
    first, second, labels = cross_entropies(seed)
    one, two = (entropy_rows(x, labels).mean() for x in (first, second))
    d = softmax_divergence(first, second)
    check.equal(form(one, two, d, alpha), paper(first, second, labels, alpha).mean() / 2)
    positive = torch.nn.functional.one_hot(labels, 4)

    def loss(x):
        return zlpr_loss(x, positive)

    for divergence in (sigmoid_divergence, zlpr_divergence):
        value = form(loss(first), loss(second), divergence(first, second), alpha)
        check.equal(r_drop(first, second, loss, divergence, alpha=alpha), value)


def doubled(first, second, labels, alpha, share=4):
    """The published code: every sample twice in a row."""
    rows = torch.stack([first, second], 1).flatten(0, 1)
    mean = entropy_rows(rows, labels.repeat_interleave(2)).mean()
    both = kl_rows(rows[::2], rows[1::2]) + kl_rows(rows[1::2], rows[::2])
    return mean + both.mean() / share * alpha


@pytest.mark.equation(
    "eq:rdrop-doubled",
    kind="identity",
    source="Su 2021 (code of r-drop)",
    hypotheses="rows 2b and 2b + 1 are the two passes of one sample",
    right=doubled,
    wrong={
        "the mean over 2B rows": lambda *a: doubled(*a, share=8),
        "the paper's half": lambda *a: doubled(*a, share=2),
    },
)
@given(seeds, scores(0.5, 5))
def test_doubled_batch(form, check, seed, alpha):
    first, second, labels = cross_entropies(seed)
    loss = torch.nn.functional.cross_entropy
    ours = r_drop(first, second, lambda x: loss(x, labels), softmax_divergence, alpha=alpha)
    check.equal(form(first, second, labels, alpha), ours)


@pytest.mark.differs(
    "rdrop-clip",
    source="r-drop code for Keras (clipped probabilities)",
    theirs="Divergence of probabilities clipped at 1e-7: bounded, and silent once clipped.",
    ours="Computed from scores: a confident disagreement keeps its price and its gradient.",
)
def test_clipped_probabilities_are_silent():
    s = tensor([[30.0, 0.0]]).requires_grad_()
    u = tensor([[0.0, 30.0]])
    p, q = (torch.softmax(x, -1).clamp(min=1e-7, max=1.0) for x in (s, u))
    theirs = ((p - q) * (p.log() - q.log())).sum()
    assert theirs < 33
    assert torch.autograd.grad(theirs, s)[0].abs().max() < 1e-6
    ours = softmax_divergence(s, u)
    assert abs(ours.item() - 60) < 1e-9
    assert torch.autograd.grad(ours, s)[0].abs().max() > 0.99


def q_soft(m):
    p = np.array(softmax(m))
    return np.diag(p) - np.outer(p, p)


def q_sigma(m):
    return np.diag([slope(v) for v in m])


def q_zlpr(m):
    w = np.array(omega(m)[1:])
    return np.diag(w) - np.outer(w, w)


ALL = (softmax_divergence, sigmoid_divergence, zlpr_divergence)
PLAIN = (d_soft_torch, d_sigma_torch, lambda s, u: (regret_torch(s, u) + regret_torch(u, s)) / 2)
MATRICES = (q_soft, q_sigma, q_zlpr)


@pytest.mark.equation(
    "eq:div-matrices",
    kind="gradient",
    source=OURS,
    hypotheses="half the Hessian where the scores agree",
    right=MATRICES,
    wrong={
        "ZLPR without the null class": (
            q_soft,
            q_sigma,
            lambda m: np.diag(w := np.array(omega(m)[1:]) / sum(omega(m)[1:])) - np.outer(w, w),
        ),
        "ZLPR without the products": (q_soft, q_sigma, lambda m: np.diag(omega(m)[1:])),
        "the sigmoid in place of its slope": (q_soft, lambda m: np.diag(sigmoids(m)), q_zlpr),
    },
)
@given(st.lists(scores(-3, 3), min_size=2, max_size=5))
def test_matrices_of_the_second_order(form, check, m):
    u = tensor(m)
    for divergence, matrix in zip(PLAIN, form, strict=True):
        found = torch.autograd.functional.hessian(lambda x, d=divergence: d(x, u), u.clone())
        check.equal(matrix(m), found / 2, tol=1e-8)


def skewed():
    """A noise of mean 0 on two cells that is not symmetric, with its covariance."""
    values = [
        (0.7, np.array([-0.5, 0.4])),
        (0.2, np.array([0.5, -1.9])),
        (0.1, np.array([2.5, 1.0])),
    ]
    assert abs(sum(w * v for w, v in values)).max() < 1e-12
    return values, sum(w * np.outer(v, v) for w, v in values)


@pytest.mark.equation(
    "eq:rdrop-variance",
    kind="limit",
    source=OURS,
    hypotheses="independent noise of mean 0 in both passes; the error is of third order",
    right=lambda q, cov: 2 * (q * cov.T).sum(),
    wrong={
        "one noisy pass": lambda q, cov: np.trace(q @ cov),
        "variances without covariances": lambda q, cov: 2 * np.trace(q @ np.diag(np.diag(cov))),
    },
)
def test_price_of_the_variance(form, check):
    values, cov = skewed()
    m = [0.8, -1.1]
    for divergence, matrix in zip(ALL, MATRICES, strict=True):
        errors = []
        for h in STEPS:
            mean = sum(
                a * b * divergence(tensor(m + h * x), tensor(m + h * y)).item()
                for (a, x), (b, y) in itertools.product(values, values)
            )
            errors.append(abs(mean - h * h * form(matrix(m), cov)))
        check.rate(STEPS, errors, 3, within=0.2)
    common = np.ones((2, 2))
    check.equal(form(q_soft(m), common), 0.0)
    null = omega(m)[0]
    check.equal(form(q_zlpr(m), common), 2 * null * (1 - null))
    check.at_most(form(q_zlpr(m), common), 0.5)


# ---------------------------------------------------------------- 8 virtual adversarial training


def small_model(seed, inputs=3, cells=4):
    """A smooth function from inputs to scores, with its Jacobian at 0."""
    first, bias = draw_normal(seed, 5, inputs), draw_normal(seed + 1, 5)
    second, shift = draw_normal(seed + 2, cells, 5), draw_normal(seed + 3, cells)

    def forward(x):
        return torch.tanh(x @ first.T + bias) @ second.T + shift

    zero = torch.zeros(inputs, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(forward, zero).numpy()
    return forward, jacobian, forward(zero).tolist()


@pytest.mark.equation(
    "eq:vat-loss",
    kind="definition",
    source=MIYATO,
    hypotheses="the direction and the undisturbed scores are constants",
    right=lambda d, f, x, r, e: d(f(x + e * r), f(x).detach()),
    wrong={
        "the length left out": lambda d, f, x, r, e: d(f(x + r), f(x).detach()),
        "a gradient through the undisturbed scores": lambda d, f, x, r, e: d(f(x + e * r), f(x)),
    },
)
@given(seeds)
def test_loss_at_the_disturbed_input(form, check, seed):
    weight = draw_normal(seed, 4, 3).requires_grad_()
    x = draw_normal(seed + 1, 2, 3)

    def forward(x):
        return x @ weight.T

    for divergence in ALL:
        options = {"xi": 1e-3, "steps": 2}
        start = torch.Generator().manual_seed(seed)
        r = virtual_adversarial_direction(forward, x, divergence, generator=start, **options)
        start = torch.Generator().manual_seed(seed)
        value = virtual_adversarial_loss(
            forward, x, divergence, epsilon=0.4, generator=start, **options
        )
        expected = form(divergence, forward, x, r, 0.4)
        check.equal(value, expected)
        check.equal(*(torch.autograd.grad(v, weight)[0] for v in (value, expected)), tol=1e-8)
        check.equal(r.norm(dim=1), torch.ones(2))


def form_of(jacobian, m, matrix):
    return jacobian.T @ matrix(m) @ jacobian


@pytest.mark.equation(
    "eq:vat-quadratic",
    kind="limit",
    source=MIYATO,
    hypotheses="smooth model; the error is of third order",
    right=form_of,
    wrong={
        "with the 1/2 of one direction": lambda *a: form_of(*a) / 2,
        "without the matrix of the divergence": lambda j, m, matrix: j.T @ j,
    },
)
def test_quadratic_form(form, check):
    forward, jacobian, m = small_model(3)
    r = np.array([0.6, -0.64, 0.48])
    for divergence, matrix in zip(ALL, MATRICES, strict=True):
        errors = []
        for h in STEPS:
            value = divergence(forward(tensor(h * r)), tensor(m)).item()
            errors.append(abs(value - h * h * r @ form(jacobian, m, matrix) @ r))
        check.rate(STEPS, errors, 3, within=0.2)


@pytest.mark.equation(
    "eq:vat-value",
    kind="limit",
    source=MIYATO,
    hypotheses="smooth model; the error is of third order",
    right=lambda h: np.linalg.eigvalsh(h).max(),
    wrong={
        "the trace": np.trace,
        "half the eigenvalue": lambda h: np.linalg.eigvalsh(h)[-1] / 2,
    },
)
def test_largest_value_is_an_eigenvalue(form, check):
    forward, jacobian, m = small_model(5, inputs=2)
    circle = np.linspace(0, 2 * np.pi, 4001)[:, None]
    around = tensor(np.concatenate([np.cos(circle), np.sin(circle)], 1))
    target = tensor(m).expand(len(around), -1)
    for divergence, matrix in zip(ALL, MATRICES, strict=True):
        h = form_of(jacobian, m, matrix)
        errors = []
        for length in STEPS:
            most = divergence(forward(length * around), target, reduction="none").max().item()
            errors.append(abs(most - length**2 * form(h)))
        check.rate(STEPS, errors, 3, within=0.25)


@pytest.mark.equation(
    "eq:vat-power",
    kind="limit",
    source=MIYATO,
    hypotheses="smooth model; the error is of third order",
    right=lambda h, r, xi: 2 * xi**2 * (h * r).sum(1),
    wrong={
        "one factor of the length": lambda h, r, xi: 2 * xi * h @ r,
        "the value's own factor": lambda h, r, xi: xi**2 * h @ r,
    },
)
def test_gradient_multiplies_by_the_matrix(form, check):
    forward, jacobian, m = small_model(7)
    r = np.array([0.6, -0.64, 0.48])
    for divergence, matrix in zip(ALL, MATRICES, strict=True):
        errors = []
        for xi in STEPS:
            probe = tensor(r).requires_grad_()
            divergence(forward(xi * probe), tensor(m)).backward()
            error = probe.grad.numpy() - form(form_of(jacobian, m, matrix), r, xi)
            errors.append(float(np.linalg.norm(error)))
        check.rate(STEPS, errors, 3, within=0.2)


def angle(vector, lead):
    along = abs(float(vector @ lead))
    return hypot(*(vector - (vector @ lead) * lead)) / along


@pytest.mark.equation(
    "eq:vat-convergence",
    kind="inequality",
    source=STANDARD,
    hypotheses="symmetric, no negative eigenvalue; equality in the plane of the first two",
    right=lambda ratio, k, start: ratio**k * start,
    wrong={
        "one step more than was made": lambda ratio, k, start: ratio ** (k + 1) * start,
        "the square root of the ratio": lambda ratio, k, start: ratio ** (k / 2) * start,
    },
)
@given(seeds, st.integers(1, 4))
def test_power_iteration_converges(form, check, seed, k):
    root = draw_normal(seed, 4, 4).numpy()
    h = root.T @ root
    values, vectors = np.linalg.eigh(h)
    ratio, lead = values[-2] / values[-1], vectors[:, -1]
    plane = (vectors[:, -1] + vectors[:, -2]) / sqrt(2)
    for start in (draw_normal(seed + 1, 4).numpy(), plane):
        r = start
        for _ in range(k):
            r = h @ r / np.linalg.norm(h @ r)
        check.at_most(angle(r, lead), form(ratio, k, angle(start, lead)), slack=1e-9)
    check.equal(angle(r, lead), form(ratio, k, 1.0), tol=1e-8)


@pytest.mark.equation(
    "eq:vat-global",
    kind="identity",
    source=OURS,
    hypotheses="random start over the whole embedding matrix, m of V rows read",
    right=lambda m, rows: m / rows,
    wrong={
        "all of it, as with a norm per sample": lambda m, rows: 1.0,
        "the root of the share": lambda m, rows: sqrt(m / rows),
    },
)
@pytest.mark.differs(
    "vat-one-norm",
    source="bert4keras, demonstration of virtual adversarial training",
    theirs="One disturbance of the embedding matrix per batch, with one norm over all its rows.",
    ours="One disturbance per sample: length 1 for each, whatever vocabulary and batch are.",
)
def test_share_of_a_global_norm(form, check):
    start = draw_normal(0, 4000, 60, 3)
    squares = start.square().sum(-1)
    share = squares[:, :15].sum(1) / squares.sum(1)
    check.equal(share.mean(), form(15, 60), tol=5e-3)
    # The exact law: beta with half the numbers of dimensions.
    check.equal((15 * 3 / 2) / (60 * 3 / 2), form(15, 60))
    ours = virtual_adversarial_direction(
        lambda x: x.flatten(1), draw_normal(1, 5, 4, 3), sigmoid_divergence, xi=1e-3
    )
    assert torch.allclose(ours.flatten(1).norm(dim=1), torch.ones(5, dtype=torch.float64))
