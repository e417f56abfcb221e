"""Checks of the numbered equations of chapter 2, in the order of the chapter.

Every function that transcribes a formula is written with loops, letter by letter. What it is
compared with is computed another way: by enumeration, by autograd, in 50 digits, by the library.
"""

import itertools
import math
from math import comb, e, exp, log, log1p, sqrt

import mpmath as mp
import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from kornia.losses import binary_focal_loss_with_logits
from scipy import optimize, stats

from lib.zlpr import labels_above, linear_zlpr_loss, sparse_zlpr_loss, zlpr_loss

mp.mp.dps = 50
SU2020 = "Su 2020 (kexue 7359)"
SU2022 = "Su 2022 (kexue 8888)"
STANDARD = "standard"
OURS = "ours"

# ---------------------------------------------------------------- inputs


def scores(low=-6.0, high=6.0):
    # Thousandths: no two scores differ by less than rounding, so order and ties are meant.
    return st.integers(round(1000 * low), round(1000 * high)).map(lambda v: v / 1000)


@st.composite
def cases(draw, most=8, low=-6.0, high=6.0, both=False):
    """Scores and labels of one sample; with `both`, neither group is empty."""
    n = draw(st.integers(2 if both else 1, most))
    s = draw(st.lists(scores(low, high), min_size=n, max_size=n))
    y = draw(st.lists(st.booleans(), min_size=n, max_size=n))
    if both and len(set(y)) == 1:
        y[0] = not y[0]
    return s, [int(v) for v in y]


@st.composite
def single_target(draw, most=8):
    """Scores and the index of the one target."""
    s = draw(st.lists(scores(), min_size=2, max_size=most))
    return s, draw(st.integers(0, len(s) - 1))


@st.composite
def subsets(draw, most=7, smallest=1):
    """Scores, a subset size k and a subset of that size."""
    s = draw(st.lists(scores(-3, 3), min_size=smallest, max_size=most))
    k = draw(st.integers(smallest, len(s)))
    chosen = draw(st.permutations(range(len(s))))[:k]
    return s, k, sorted(chosen)


@st.composite
def laws(draw, most=4):
    """A law of the label vector: pairs (probability, labels), every labelling possible."""
    n = draw(st.integers(1, most))
    weights = draw(st.lists(st.floats(0.02, 1), min_size=2**n, max_size=2**n))
    total = sum(weights)
    labellings = itertools.product((0, 1), repeat=n)
    return [(w / total, np.array(y)) for w, y in zip(weights, labellings, strict=True)]


@st.composite
def sparse_laws(draw, most=4):
    """A law with few possible labellings: dependent labels, none of them certain."""
    n = draw(st.integers(1, most))
    labelling = st.tuples(*[st.integers(0, 1)] * n)
    ys = draw(st.lists(labelling, min_size=1, max_size=4, unique=True))
    if any(len(set(column)) == 1 for column in zip(*ys, strict=True)):
        ys = list(dict.fromkeys([*ys, tuple(1 - v for v in ys[0])]))
    weights = draw(st.lists(st.floats(0.02, 1), min_size=len(ys), max_size=len(ys)))
    return [(w / sum(weights), np.array(y)) for w, y in zip(weights, ys, strict=True)]


# ---------------------------------------------------------------- the objects of the chapter


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def gradient_of(loss, s, *rest):
    x = tensor(s).requires_grad_()
    loss(x, *rest).backward()
    return x.grad


def negatives(s, y):
    return [v for v, label in zip(s, y, strict=True) if not label]


def positives(s, y):
    return [v for v, label in zip(s, y, strict=True) if label]


def mass_n(s, y, zero=0.0):
    return sum((math.exp(v) for v in negatives(s, y)), zero)


def mass_p(s, y, zero=0.0):
    return sum((math.exp(-v) for v in positives(s, y)), zero)


def zlpr(s, y):
    return log(1 + mass_n(s, y)) + log(1 + mass_p(s, y))


def zlpr_torch(s, y):
    """ZLPR for autograd, written without the library."""
    y = torch.as_tensor(y, dtype=torch.bool)
    return torch.log1p(s[~y].exp().sum()) + torch.log1p((-s[y]).exp().sum())


def bce(s, y):
    return sum(log1p(exp(v)) for v in negatives(s, y)) + sum(
        log1p(exp(-v)) for v in positives(s, y)
    )


def bce_torch(s, y):
    return torch.nn.functional.binary_cross_entropy_with_logits(s, tensor(y), reduction="sum")


def pair(s, y):
    return log(1 + sum(exp(v - w) for v in negatives(s, y) for w in positives(s, y)))


@pytest.mark.equation(
    "eq:zlpr-mass",
    kind="definition",
    source=OURS,
    hypotheses="any n >= 1; an empty group has mass 0",
    right=(mass_n, mass_p),
    wrong={
        "positives enter with their own sign": (mass_n, lambda s, y: mass_n(s, [1 - v for v in y]))
    },
)
@given(cases())
def test_masses_of_the_groups(form, check, case):
    s, y = case
    x, labels = tensor(s), torch.tensor(y, dtype=torch.bool)
    low, high = form
    check.equal(low(s, y), x[~labels].exp().sum())
    check.equal(high(s, y), (-x[labels]).exp().sum())


# ---------------------------------------------------------------- 1 what is carried over


def ce_margin(s, target):
    return log(1 + sum(exp(v - s[target]) for i, v in enumerate(s) if i != target))


@pytest.mark.equation(
    "eq:zlpr-ce",
    kind="identity",
    source=SU2020,
    hypotheses="one target class; n >= 2",
    right=ce_margin,
    wrong={
        "the 1 (the target against itself) is left out": lambda s, t: log(exp(ce_margin(s, t)) - 1)
    },
)
@given(single_target())
def test_cross_entropy_as_margins(form, check, case):
    s, target = case
    check.equal(form(s, target), -torch.log_softmax(tensor(s), 0)[target])


@pytest.mark.equation(
    "eq:zlpr-ce-masses",
    kind="gradient",
    source=STANDARD,
    hypotheses="one target class; n >= 2",
    right=lambda p: 1 - p,
    wrong={"the target's own probability": lambda p: p},
)
@given(single_target())
def test_cross_entropy_is_balanced(form, check, case):
    s, target = case
    gradient = gradient_of(lambda x: -torch.log_softmax(x, 0)[target], s)
    mass = form(torch.softmax(tensor(s), 0)[target])
    check.equal(-gradient[target], mass)
    check.equal(gradient.sum() - gradient[target], mass)


def null_bounds(s):
    top = max(0.0, *s)
    return top, top + log(1 + len(s))


@pytest.mark.equation(
    "eq:zlpr-null-bounds",
    kind="inequality",
    source=STANDARD,
    hypotheses="m >= 0 finite scores; equality on the right when all are 0",
    right=null_bounds,
    wrong={
        "the null class is not counted: log m": lambda s: (
            null_bounds(s)[0],
            max(0.0, *s) + log(len(s)),
        ),
        "the maximum without the null class, as a lower bound plus log m": lambda s: (
            max(s) + log(len(s)),
            null_bounds(s)[1],
        ),
    },
)
@given(st.lists(scores(), min_size=1, max_size=9), st.integers(1, 9))
def test_null_class_bounds(form, check, s, ties):
    low, high = form(s)
    value = log(1 + sum(exp(v) for v in s))
    check.at_most(low, value, slack=1e-12)
    check.at_most(value, high, slack=1e-12)
    check.equal(log(1 + ties), form([0.0] * ties)[1])


@pytest.mark.equation(
    "eq:zlpr-null-gradient",
    kind="gradient",
    source=STANDARD,
    hypotheses="finite scores",
    right=lambda s, i: exp(s[i]) / (1 + sum(exp(v) for v in s)),
    wrong={"softmax without the null class": lambda s, i: exp(s[i]) / sum(exp(v) for v in s)},
)
@given(st.lists(scores(), min_size=1, max_size=9))
def test_null_class_gradient(form, check, s):
    expected = gradient_of(lambda x: torch.log1p(x.exp().sum()), s)
    check.equal([form(s, i) for i in range(len(s))], expected)
    check.at_most(sum(form(s, i) for i in range(len(s))), 1 - 1e-6)


# ---------------------------------------------------------------- 2 the complaint


@pytest.mark.equation(
    "eq:zlpr-bce",
    kind="definition",
    source=STANDARD,
    hypotheses="any n >= 1; either group may be empty",
    right=bce,
    wrong={"positive and negative scores change places": lambda s, y: bce(s, [1 - v for v in y])},
)
@given(cases())
def test_summed_bce(form, check, case):
    s, y = case
    check.equal(form(s, y), bce_torch(tensor(s), y))


def bce_masses(s, y):
    return (
        sum(1 / (1 + exp(-v)) for v in negatives(s, y)),
        sum(1 / (1 + exp(v)) for v in positives(s, y)),
    )


@pytest.mark.equation(
    "eq:zlpr-bce-masses",
    kind="gradient",
    source=STANDARD,
    hypotheses="any n >= 1",
    right=bce_masses,
    wrong={
        "the value at s = 0 taken for the general one": lambda s, y: (
            len(negatives(s, y)) / 2,
            len(positives(s, y)) / 2,
        )
    },
)
@given(cases())
def test_bce_masses(form, check, case):
    s, y = case
    gradient = gradient_of(bce_torch, s, y)
    check.equal(form(s, y), [gradient.clamp(min=0).sum(), -gradient.clamp(max=0).sum()])
    zeros = [0.0] * len(s)
    check.equal(form(zeros, y), [(len(y) - sum(y)) / 2, sum(y) / 2])


# ---------------------------------------------------------------- 3 combinatorial softmax


def subset_sums(s, k):
    return [math.fsum(s[i] for i in chosen) for chosen in itertools.combinations(range(len(s)), k)]


def z(s, k):
    """Z_k by enumeration of all subsets."""
    return math.fsum(exp(v) for v in subset_sums(s, k))


def comb_loss(s, k, chosen):
    return log(z(s, k)) - sum(s[j] for j in chosen)


def comb_with_repetition(s, k, chosen):
    multisets = itertools.combinations_with_replacement(s, k)
    return log(sum(exp(sum(m)) for m in multisets)) - sum(s[j] for j in chosen)


@pytest.mark.equation(
    "eq:comb-loss",
    kind="definition",
    source=SU2020,
    hypotheses="1 <= k <= n; exactly k positives",
    right=comb_loss,
    wrong={"labels may repeat inside a subset": comb_with_repetition},
)
@given(subsets(smallest=2))
def test_combinatorial_loss(form, check, case):
    s, k, chosen = case
    # The coefficients of the polynomial with roots -e^{s_i} are the Z_k.
    coefficients = np.poly([-exp(v) for v in s])
    check.equal(form(s, k, chosen), log(coefficients[k]) - sum(s[j] for j in chosen))


def generating(s, x):
    return [z(s, k) * x**k for k in range(len(s) + 1)]


@pytest.mark.equation(
    "eq:comb-generating",
    kind="identity",
    source=STANDARD,
    hypotheses="any n; x > 0 (or a formal variable)",
    right=generating,
    wrong={"signs alternate": lambda s, x: [(-1) ** k * t for k, t in enumerate(generating(s, x))]},
)
@given(st.lists(scores(-3, 3), min_size=1, max_size=7), st.floats(0.1, 2))
def test_generating_function(form, check, s, x):
    check.equal(sum(form(s, x)), math.prod(1 + x * exp(v) for v in s))
    # Term by term: the polynomial with roots -e^{s_i} has the Z_k as coefficients, n + 1 of them.
    coefficients = np.poly([-exp(v) for v in s])
    check.equal(form(s, x), coefficients * x ** np.arange(len(coefficients)))


def newton(s, k, number=float, sign=-1):
    """Newton's identities, in any kind of number."""
    powers = [None] + [sum(number(1) * mp.exp(j * v) if number is mp.mpf else exp(j * v) for v in s)
                       for j in range(1, k + 1)]  # fmt: skip
    values = [number(1)]
    for m in range(1, k + 1):
        terms = [sign ** (j - 1) * values[m - j] * powers[j] for j in range(1, m + 1)]
        values.append(sum(terms) / m)
    return values[k]


@pytest.mark.equation(
    "eq:comb-newton",
    kind="identity",
    source=SU2020,
    hypotheses="1 <= k <= n; exact arithmetic",
    right=lambda s, k: newton(s, k, mp.mpf),
    wrong={
        "the signs do not alternate": lambda s, k: newton(s, k, mp.mpf, sign=1),
        "the factor k is forgotten": lambda s, k: newton(s, k, mp.mpf) * k,
    },
)
@given(subsets(smallest=2))
def test_newton_in_50_digits(form, check, case):
    s, k, _ = case
    s = [mp.mpf(v) for v in s]
    direct = mp.fsum(mp.fprod(mp.exp(v) for v in c) for c in itertools.combinations(s, k))
    check.equal(form(s, k), direct, tol=1e-40)


def newton_symbols(x, k):
    powers = [None, *(sum(v**j for v in x) for j in range(1, k + 1))]
    values = [sp.Integer(1)]
    for m in range(1, k + 1):
        values.append(sum(-((-1) ** j) * values[m - j] * powers[j] for j in range(1, m + 1)) / m)
    return values[k]


@pytest.mark.equation(
    "eq:comb-newton",
    kind="identity",
    right=newton_symbols,
    wrong={"one power sum too few": lambda x, k: newton_symbols(x[:-1], k)},
)
def test_newton_by_algebra(form, check):
    x = sp.symbols("x1:5", positive=True)
    for k in range(1, 5):
        direct = sum(sp.prod(c) for c in itertools.combinations(x, k))
        check.true(sp.expand(form(x, k) - direct) == 0, f"k = {k}: not the same polynomial")


def cancellation_floor(s, k):
    ranked = sorted(s, reverse=True)
    return exp(sum(ranked[0] - v for v in ranked[:k])) / (k * comb(len(s), k))


@pytest.mark.equation(
    "eq:comb-cancellation",
    kind="inequality",
    source=OURS,
    hypotheses="1 <= k <= n; equality for n = k = 1",
    right=cancellation_floor,
    wrong={
        "the sum of the gaps counted twice": lambda s, k: cancellation_floor([2 * v for v in s], k)
    },
)
@given(subsets(smallest=2))
def test_newton_cancels(form, check, case):
    s, k, _ = case
    summands = sum(z(s, k - j) * sum(exp(j * v) for v in s) for j in range(1, k + 1))
    check.at_most(form(s, k), summands / (k * z(s, k)), slack=1e-9)
    check.equal(form([1.3], 1), 1.0)
    spread = [4.0, 0.0, -1.0, -2.0, -2.5]
    summands = sum(z(spread, 3 - j) * sum(exp(j * v) for v in spread) for j in (1, 2, 3))
    check.at_most(form(spread, 3), summands / (3 * z(spread, 3)))
    far = [30 * v for v in spread]
    # Neither factor of the denominator can go: all are chosen, or one of many equal ones is.
    for scores_, size in ((far[:3], 3), ([12.0] + [0.0] * 6, 2)):
        summands = sum(
            z(scores_, size - j) * sum(exp(j * v) for v in scores_) for j in range(1, size + 1)
        )
        check.at_most(form(scores_, size), summands / (size * z(scores_, size)))
    # The exponent is the true one: far apart, nothing else is left of the logarithm.
    summands = sum(z(far, 4 - j) * sum(exp(j * v) for v in far) for j in (1, 2, 3, 4))
    check.equal(log(form(far, 4)) / log(summands / (4 * z(far, 4))), 1.0, tol=0.01)


EMPTY = -1e30  # the logarithm of an impossible count; -inf would make logaddexp's gradient NaN


def recursion(s, k):
    """log Z_k, label by label; all terms positive."""
    logs = [0.0] + [EMPTY] * k
    for value in s:
        for size in range(k, 0, -1):
            logs[size] = float(np.logaddexp(logs[size], value + logs[size - 1]))
    return logs[k]


def recursion_upwards(s, k):
    logs = [0.0] + [EMPTY] * k
    for value in s:
        for size in range(1, k + 1):
            logs[size] = float(np.logaddexp(logs[size], value + logs[size - 1]))
    return logs[k]


@pytest.mark.equation(
    "eq:comb-recursion",
    kind="identity",
    source=STANDARD,
    hypotheses="1 <= k <= n; start with log Z_0 = 0 and log Z_k = -infinity",
    right=recursion,
    wrong={
        "sizes updated upwards, so a label is used twice": recursion_upwards,
        "the score of the new label is forgotten": lambda s, k: recursion([0.0] * len(s), k),
    },
)
@given(subsets(smallest=2))
def test_recursion(form, check, case):
    s, k, _ = case
    check.equal(form(s, k), log(z(s, k)), tol=1e-12)


def log_newton(s, k):
    value = newton(s, k)
    return log(value) if value > 0 else float("nan")


@pytest.mark.equation(
    "eq:comb-recursion",
    kind="identity",
    right=recursion,
    wrong={"Newton's identities in float64": log_newton},
)
@pytest.mark.differs(
    "newton-unstable",
    source="Su 2020 (kexue 7359)",
    theirs="Computes Z_k by Newton's identities and does not mention their numerical behaviour.",
    ours="The terms cancel, on 200 random scores down to the last digit; the recursion only adds.",
)
def test_recursion_keeps_its_digits(form, check):
    for seed in (0, 1, 3):  # the samples that the chapter shows
        s = (3 * np.random.default_rng(seed).normal(size=200)).tolist()
        polynomial = [mp.mpf(1)] + [mp.mpf(0)] * 20
        for value in s:
            weight = mp.exp(mp.mpf(value))
            for size in range(20, 0, -1):
                polynomial[size] += weight * polynomial[size - 1]
        for k in (5, 10, 15, 20):
            exact = mp.log(polynomial[k])
            check.equal(form(s, k), float(exact), tol=1e-13)


def inclusion(s, k):
    return [exp(v) * z(s[:i] + s[i + 1 :], k - 1) / z(s, k) for i, v in enumerate(s)]


def log_z_torch(x, k):
    sums = torch.stack([x[list(c)].sum() for c in itertools.combinations(range(len(x)), k)])
    return torch.logsumexp(sums, 0)


@pytest.mark.equation(
    "eq:comb-gradient",
    kind="gradient",
    source=OURS,
    hypotheses="1 <= k <= n",
    right=inclusion,
    wrong={
        "label i is not left out of the smaller sum": lambda s, k: [
            exp(v) * z(s, k - 1) / z(s, k) for v in s
        ]
    },
)
@given(subsets(smallest=2))
def test_inclusion_probabilities(form, check, case):
    s, k, _ = case
    check.equal(form(s, k), gradient_of(log_z_torch, s, k))
    sets = list(itertools.combinations(range(len(s)), k))
    members = [sum(exp(sum(s[j] for j in c)) for c in sets if i in c) for i in range(len(s))]
    check.equal(form(s, k), [m / z(s, k) for m in members])


@pytest.mark.equation(
    "eq:comb-inclusion-sum",
    kind="identity",
    source=OURS,
    hypotheses="1 <= k <= n",
    right=inclusion,
    wrong={
        "probabilities of one choice": lambda s, k: inclusion(s, 1),
        "k times softmax, which can exceed 1": lambda s, k: [k * p for p in inclusion(s, 1)],
    },
)
@given(subsets(smallest=2))
def test_inclusion_probabilities_sum_to_k(form, check, case):
    s, k, _ = case
    k = max(k, 2)
    probabilities = form(s, k)
    check.equal(sum(probabilities), float(k))
    check.at_most(probabilities, 1.0, slack=1e-12)


def padded(s, s0, size):
    return sum(exp((size - j) * s0) * z(s, j) for j in range(size + 1))  # no j > n has a subset


def padded_by_enumeration(s, s0, size):
    """All multisets of `size` labels in which only label 0 may repeat."""
    labels = range(len(s) + 1)
    total = 0.0
    for chosen in itertools.combinations_with_replacement(labels, size):
        if all(chosen.count(i) <= 1 for i in labels if i):
            total += exp(sum(s0 if i == 0 else s[i - 1] for i in chosen))
    return total


@pytest.mark.equation(
    "eq:comb-padding",
    kind="identity",
    source=SU2020,
    hypotheses="0 <= K; Z_j = 0 for j > n",
    right=padded,
    wrong={"the padding label may stand only once": lambda s, s0, size: z([s0, *s], size)},
)
@given(st.lists(scores(-3, 3), min_size=2, max_size=5), scores(-2, 2), st.integers(2, 4))
def test_padding(form, check, s, s0, size):
    check.equal(form(s, s0, size), padded_by_enumeration(s, s0, size))


@pytest.mark.equation(
    "eq:comb-padding-recursion",
    kind="identity",
    source=SU2020,
    hypotheses="K >= 1",
    right=lambda s, s0, size: z(s, size) + exp(s0) * padded(s, s0, size - 1),
    wrong={
        "the padding label's score is forgotten": lambda s, s0, size: (
            z(s, size) + padded(s, s0, size - 1)
        )
    },
)
@given(st.lists(scores(-3, 3), min_size=1, max_size=5), scores(0.1, 2), st.integers(1, 5))
def test_padding_recursion(form, check, s, s0, size):
    check.equal(form(s, s0, size), padded_by_enumeration(s, s0, size))


def padded_loss(s, y, s0, size):
    return log(padded(s, s0, size)) - sum(positives(s, y)) - (size - sum(y)) * s0


@pytest.mark.equation(
    "eq:comb-padded-loss",
    kind="definition",
    source=SU2020,
    hypotheses="k <= K",
    right=padded_loss,
    wrong={
        "the padding of the true set is forgotten": lambda s, y, s0, size: (
            log(padded(s, s0, size)) - sum(positives(s, y))
        )
    },
)
@given(cases(most=5, low=-3, high=3), scores(0.1, 2), st.integers(0, 1))
def test_padded_loss(form, check, case, s0, more):
    s, y = case
    size = sum(y) + 1 + more
    # Label 0 is padding: it fills what the true set leaves free.
    true_set = exp(sum(positives(s, y)) + (size - sum(y)) * s0)
    check.equal(form(s, y, s0, size), -log(true_set / padded_by_enumeration(s, s0, size)))


@pytest.mark.equation(
    "eq:comb-one",
    kind="identity",
    source=OURS,
    hypotheses="K = 1; at most one positive; class 0 stands for the empty set",
    right=lambda s, s0: [s0, *s],
    wrong={"the null class has score 0": lambda s, s0: [0.0, *s]},
)
@given(st.lists(scores(-3, 3), min_size=1, max_size=6), scores(0.1, 2))
def test_at_most_one_label_is_softmax(form, check, s, s0):
    logits = tensor(form(s, s0))
    for target in range(len(s) + 1):
        y = [int(i + 1 == target) for i in range(len(s))]
        check.equal(padded_loss(s, y, s0, 1), -torch.log_softmax(logits, 0)[target])


@pytest.mark.equation(
    "eq:comb-bce",
    kind="identity",
    source=OURS,
    hypotheses="K = n; any positives",
    right=lambda s, y, s0: bce([v - s0 for v in s], y),
    wrong={
        "a softmax-like loss remains (ZLPR)": lambda s, y, s0: zlpr([v - s0 for v in s], y),
        "the threshold is forgotten": lambda s, y, s0: bce(s, y),
    },
)
@pytest.mark.differs(
    "padding-is-bce",
    source="Su 2020 (kexue 7359)",
    theirs="Offers the padded combinatorial loss as softmax for many labels, for any bound K.",
    ours="At K = n it is exactly the sum of sigmoid cross-entropies it was meant to replace.",
)
@given(cases(most=6, low=-3, high=3, both=True), scores(0.1, 2))
def test_full_padding_is_bce(form, check, case, s0):
    s, y = case
    s, y = [*s, 0.5], [*y, 0]
    check.equal(padded_loss(s, y, s0, len(s)), form(s, y, s0))


def best_set(s, s0, size):
    """The multiset of the largest score, by enumeration, without its padding; the smallest such."""
    sets = (c for k in range(size + 1) for c in itertools.combinations(range(len(s)), k))
    return set(max(sets, key=lambda c: sum(s[i] for i in c) + (size - len(c)) * s0))


def decide(s, s0, size):
    above = [i for i, v in enumerate(s) if v > s0]
    return set(sorted(above, key=lambda i: -s[i])[:size])


@pytest.mark.equation(
    "eq:comb-decision",
    kind="identity",
    source=SU2020,
    hypotheses="no two scores equal; a score equal to the threshold is as good as padding, not "
    "better",
    right=decide,
    wrong={
        "every label above the threshold, however many": lambda s, s0, size: decide(s, s0, len(s))
    },
)
@pytest.mark.differs(
    "padding-decision",
    source="Su 2020 (kexue 7359)",
    theirs="Top-K with a repeatable padding label means: output every label above the threshold.",
    ours="It means the K best of the labels above the threshold; all only if at most K are.",
)
@given(
    # Whole numbers: equal sums are equal.
    st.lists(st.integers(-9, 9), min_size=2, max_size=6, unique=True),
    st.integers(-6, 6),
    st.integers(1, 3),
)
def test_decision_with_padding(form, check, s, s0, size):
    check.equal(form(s, s0, size), best_set(s, s0, size))


# ---------------------------------------------------------------- 4 pairs


@pytest.mark.equation(
    "eq:pair-loss",
    kind="definition",
    source="Li, Song & Luo 2017 (LSEP); Su 2020 (kexue 7359)",
    hypotheses="any n; 0 if a group is empty",
    right=pair,
    wrong={
        "one logarithm for each pair": lambda s, y: sum(
            log1p(exp(v - w)) for v in negatives(s, y) for w in positives(s, y)
        )
    },
)
@given(cases(most=7))
def test_pairwise_loss(form, check, case):
    s, y = case
    x, labels = tensor(s), torch.tensor(y, dtype=torch.bool)
    gaps = (x[~labels][:, None] - x[labels][None, :]).flatten()
    check.equal(form(s, y), torch.logsumexp(torch.cat([gaps.new_zeros(1), gaps]), 0))


def lsep(s, y):
    """Li, Song & Luo 2017: log(1 + sum over (v not in Y, u in Y) of exp(f_v(x) - f_u(x)))."""
    total = 0.0
    for (v, in_y), (u, of_y) in itertools.product(zip(s, y, strict=True), repeat=2):
        if not in_y and of_y:
            total += exp(v - u)
    return log(1 + total)


def circle(s, y, m=0.25, scale=1.0):
    """Circle Loss proper, its equation (4), with the weights as numbers."""
    below = sum(exp(scale * max(v + m, 0) * (v - m)) for v in negatives(s, y))
    above = sum(exp(-scale * max(1 + m - v, 0) * (v - (1 - m))) for v in positives(s, y))
    return log(1 + below * above)


@pytest.mark.equation(
    "eq:pair-loss",
    kind="definition",
    right=lsep,
    wrong={"Circle Loss proper, the loss of that name": circle},
)
@pytest.mark.differs(
    "pair-origin",
    source="Su 2020 (kexue 7359)",
    theirs="Credits the pairwise form to Circle Loss (2020) only.",
    ours="It is the LSEP loss of Li, Song and Luo (2017). Circle Loss states it as its starting "
    "point, equation (1); the loss it proposes, equation (4), is another function.",
)
@given(cases(most=7, both=True))
def test_pairwise_loss_is_lsep(form, check, case):
    check.equal(form(*case), pair(*case))


def softplus_of_lses(s, y):
    low = mp.log(mp.fsum(mp.exp(v) for v in negatives(s, y)))
    high = mp.log(mp.fsum(mp.exp(-v) for v in positives(s, y)))
    return mp.log(1 + mp.exp(low + high))


@pytest.mark.equation(
    "eq:pair-factored",
    kind="identity",
    source=SU2020,
    hypotheses="both groups non-empty",
    right=(lambda s, y: log(1 + mass_n(s, y) * mass_p(s, y)), softplus_of_lses),
    wrong={
        "the positives enter with their own sign": (
            lambda s, y: log(1 + mass_n(s, y) * mass_p([-v for v in s], y)),
            softplus_of_lses,
        ),
        "the two log-sums are subtracted": (
            lambda s, y: log(1 + mass_n(s, y) * mass_p(s, y)),
            lambda s, y: mp.log(1 + mass_n(s, y) / mp.mpf(mass_p(s, y))),
        ),
    },
)
@given(cases(both=True))
def test_pairwise_loss_factorises(form, check, case):
    product, lses = form
    check.equal(product(*case), pair(*case))
    check.equal(lses(*case), pair(*case))


def pair_hinge(s, y):
    gap = max(0.0, max(negatives(s, y)) - min(positives(s, y)))
    return gap, gap + log(1 + y.count(0) * y.count(1))


@pytest.mark.equation(
    "eq:pair-hinge",
    kind="inequality",
    source=SU2020,
    hypotheses="both groups non-empty; equality on the right when all scores are equal",
    right=pair_hinge,
    wrong={
        "labels counted instead of pairs": lambda s, y: (
            pair_hinge(s, y)[0],
            pair_hinge(s, y)[0] + log(len(s)),
        )
    },
)
@given(cases(both=True), st.integers(2, 5))
def test_pairwise_hinge(form, check, case, count):
    low, high = form(*case)
    check.at_most(low, pair(*case), slack=1e-12)
    check.at_most(pair(*case), high, slack=1e-12)
    tie = [0.7] * (2 * count), [0, 1] * count
    check.equal(pair(*tie), form(*tie)[1])


def pair_with_margin(s, y, scale, m):
    scaled = [scale * v for v in s]
    return log(1 + exp(scale * m) * mass_n(scaled, y) * mass_p(scaled, y))


@pytest.mark.equation(
    "eq:pair-margin",
    kind="identity",
    source="Sun et al. 2020 (Circle Loss), eq. 1",
    hypotheses="gamma > 0; both groups non-empty",
    right=pair_with_margin,
    wrong={
        "the margin is not scaled": lambda s, y, scale, m: pair_with_margin(s, y, scale, m / scale)
    },
)
@given(cases(both=True, low=-3, high=3), st.floats(1.5, 3), st.floats(0.2, 1))
def test_pairwise_margin(form, check, case, scale, m):
    s, y = case
    total = sum(exp(scale * (v - w + m)) for v in negatives(s, y) for w in positives(s, y))
    check.equal(form(s, y, scale, m), log(1 + total))


@pytest.mark.equation(
    "eq:pair-shift",
    kind="identity",
    source=STANDARD,
    hypotheses="any shift c of all scores",
    right=pair,
    wrong={"ZLPR: the threshold is a fixed point of the scale": zlpr},
)
@given(cases(both=True), st.floats(0.5, 3))
def test_pairwise_shift(form, check, case, c):
    s, y = case
    check.equal(form([v + c for v in s], y), form(s, y))
    check.equal(form([v + c for v in s], y), pair(s, y))  # and it is the loss of the pairs


# ---------------------------------------------------------------- 5 the zero class


def wishes(s, y, s0):
    total = mp.mpf(1)
    for v in negatives(s, y):
        for w in positives(s, y):
            total += mp.exp(mp.mpf(v) - w)
    for v in negatives(s, y):
        total += mp.exp(mp.mpf(v) - s0)
    for w in positives(s, y):
        total += mp.exp(s0 - mp.mpf(w))
    return mp.log(total)


@pytest.mark.equation(
    "eq:zlpr-wishes",
    kind="definition",
    source=SU2020,
    hypotheses="any n; empty groups allowed",
    right=wishes,
    wrong={"the threshold stands on the wrong side": lambda s, y, s0: wishes(s, y, s0 + 1)},
)
@given(cases(most=6), scores(-2, 2))
def test_wishes(form, check, case, s0):
    s, y = case
    low, high = negatives(s, y), positives(s, y)
    exponents = [
        0.0,
        *(v - w for v in low for w in high),
        *(v - s0 for v in low),
        *(s0 - w for w in high),
    ]
    check.equal(form(s, y, s0), torch.logsumexp(tensor(exponents), 0))


def factorised(s, y, s0):
    low, high = (
        mp.fsum(mp.exp(v) for v in negatives(s, y)),
        mp.fsum(mp.exp(-v) for v in positives(s, y)),
    )
    return mp.log(mp.exp(s0) + low) + mp.log(mp.exp(-s0) + high)


@pytest.mark.equation(
    "eq:zlpr-factorisation",
    kind="identity",
    source=SU2020,
    hypotheses="any n; empty groups allowed; any finite threshold",
    right=factorised,
    wrong={
        "the threshold has the same sign in both factors": lambda s, y, s0: (
            factorised(s, y, s0)
            + mp.log(mp.exp(s0) + mass_p(s, y))
            - mp.log(mp.exp(-s0) + mass_p(s, y))
        ),
        "the threshold is taken as 0": lambda s, y, s0: factorised(s, y, 0),
    },
)
@given(cases(most=7), scores(0.1, 2))
def test_factorisation(form, check, case, s0):
    s, y = case
    check.equal(form([mp.mpf(v) for v in s], y, mp.mpf(s0)), wishes(s, y, mp.mpf(s0)), tol=1e-40)


@pytest.mark.equation(
    "eq:zlpr-factorisation",
    kind="identity",
    right=lambda a, n, p: (a + n) * (1 / a + p),
    wrong={"the pairs are left out": lambda a, n, p: (a + n) * (1 / a + p) - n * p},
)
def test_factorisation_by_algebra(form, check):
    a, n, p = sp.symbols("a N P", positive=True)
    difference = sp.expand(form(a, n, p) - (1 + n * p + n / a + p * a))
    check.true(difference == 0, f"differs by {difference}")


@pytest.mark.equation(
    "eq:zlpr-loss",
    kind="definition",
    source="Su 2020 (kexue 7359); Su et al. 2022 (arXiv 2208.02955)",
    hypotheses="any n >= 1; empty groups allowed; finite scores",
    right=zlpr,
    wrong={
        "a positive's score has the wrong sign": lambda s, y: (
            log(1 + mass_n(s, y)) + log(1 + mass_p([-v for v in s], y))
        ),
        "the zero class is left out of the negatives": lambda s, y: (
            zlpr(s, y) - log(1 + mass_n(s, y)) + (log(mass_n(s, y)) if negatives(s, y) else 0.0)
        ),
        "one logarithm for each label (summed BCE)": bce,
    },
)
@given(cases())
def test_loss(form, check, case):
    s, y = case
    check.equal(form(s, y), zlpr_loss(tensor(s), torch.tensor(y)))
    check.equal(form(s, y), wishes(s, y, mp.mpf(0)))


def wishes_met(s, y):
    low, high = negatives(s, y), positives(s, y)
    return (
        all(v < w for v in low for w in high)
        and all(v < 0 for v in low)
        and all(w > 0 for w in high)
    )


def above_zero(s):
    return [int(v > 0) for v in s]


def least_loss(s):
    return list(min(itertools.product((0, 1), repeat=len(s)), key=lambda y: zlpr(s, y)))


@pytest.mark.equation(
    "eq:zlpr-decision",
    kind="identity",
    source=SU2020,
    hypotheses="no score is exactly 0",
    right=above_zero,
    wrong={
        "the labelling of the least loss": least_loss,
        "sigmoid read as a probability above 0.9": lambda s: [int(v > log(9)) for v in s],
    },
)
@given(st.lists(scores(), min_size=1, max_size=6))
def test_decision(form, check, s):
    s = [*s, 0.1, -0.1]
    if 0.0 not in s:
        met = [list(y) for y in itertools.product((0, 1), repeat=len(s)) if wishes_met(s, y)]
        check.equal(met, [form(s)])
    # A score of 0 meets no wish; the library does not choose its label.
    s = [*s, 0.0]
    found = labels_above(tensor([[1.0]]), tensor([[v] for v in s])).labels[0].tolist()
    check.equal(sorted(found), [float(i) for i, chosen in enumerate(form(s)) if chosen])


def violations(s, y):
    return max(0.0, *negatives(s, y), 0.0), max(0.0, *(-w for w in positives(s, y)), 0.0)


def sandwich(s, y):
    return sum(violations(s, y)), log(1 + y.count(0)) + log(1 + y.count(1))


@pytest.mark.equation(
    "eq:zlpr-sandwich",
    kind="inequality",
    source=STANDARD,
    hypotheses="any n; equality on the right when all scores are 0",
    right=sandwich,
    wrong={
        "only the worse group is counted": lambda s, y: (
            sandwich(s, y)[0],
            log(1 + max(len(negatives(s, y)), len(positives(s, y)))),
        )
    },
)
@given(cases())
def test_sandwich(form, check, case):
    s, y = case
    worst, room = form(s, y)
    check.at_most(0.0, zlpr(s, y) - worst, slack=1e-12)
    check.at_most(zlpr(s, y) - worst, room, slack=1e-12)
    zeros, one_each = [0.0] * (len(s) + 2), [*y, 0, 1]
    check.equal(zlpr(zeros, one_each), form(zeros, one_each)[1])


def sharp(s, y):
    return sum(violations(s, y))


@pytest.mark.equation(
    "eq:zlpr-sharp",
    kind="limit",
    source=STANDARD,
    hypotheses="gamma to infinity; the error is at most (log(1+|N|) + log(1+|P|)) / gamma",
    right=sharp,
    wrong={
        "the mean violation instead of the worst": lambda s, y: sharp(s, y) / 2,
        "without the positive part": lambda s, y: (
            max((v for v, label in zip(s, y, strict=True) if not label), default=0.0)
            + max((-v for v, label in zip(s, y, strict=True) if label), default=0.0)
        ),
    },
)
@given(cases())
def test_sharp_limit(form, check, case):
    scores, labels = case
    kinds = log(1 + len(labels) - sum(labels)) + log(1 + sum(labels))
    for gamma in (1.0, 8.0, 64.0):
        error = zlpr([gamma * v for v in scores], labels) / gamma - form(scores, labels)
        check.at_most(0.0, error, slack=1e-12)
        check.at_most(error, kinds / gamma, slack=1e-12)
    none = [0.0] * len(scores)  # all at the threshold: the bound is attained
    check.equal(zlpr(none, labels) - form(none, labels), kinds)
    s, y = [0.75, 0.75, -1.0, 2.0, -0.5, -0.5, 3.0], [0, 0, 0, 1, 1, 1, 1]
    scales = [8.0, 16.0, 32.0, 64.0, 128.0]
    errors = [abs(zlpr([g * v for v in s], y) / g - form(s, y)) for g in scales]
    check.rate([1 / g for g in scales], errors, order=1)


def best_threshold(s, y):
    return (log(mass_n(s, y)) - log(mass_p(s, y))) / 2


def shifted(s, y, s0):
    return zlpr([v - s0 for v in s], y)


@pytest.mark.equation(
    "eq:zlpr-profile-threshold",
    kind="identity",
    source=OURS,
    hypotheses="both groups non-empty; otherwise the infimum 0 lies at plus or minus infinity",
    right=best_threshold,
    wrong={
        "the half is forgotten": lambda s, y: 2 * best_threshold(s, y),
        "the sign is flipped": lambda s, y: -best_threshold(s, y),
    },
)
@given(cases(both=True))
def test_best_threshold(form, check, case):
    s, y = case
    at = tensor(form(s, y)).requires_grad_()
    zlpr_torch(tensor(s) - at, y).backward()
    check.equal(at.grad, 0.0)


@pytest.mark.equation(
    "eq:zlpr-profile",
    kind="identity",
    source=OURS,
    hypotheses="both groups non-empty",
    right=lambda s, y: 2 * log(1 + sqrt(mass_n(s, y) * mass_p(s, y))),
    wrong={
        "the pairwise loss": pair,
        "a fixed threshold costs nothing (ZLPR itself)": zlpr,
    },
)
@pytest.mark.differs(
    "threshold-cost",
    source="Su 2020 (kexue 7359)",
    theirs="Fixes the threshold score at 0; what that costs is not asked.",
    ours="A free threshold reaches 2 log(1 + sqrt(NP)); what ZLPR lies above it is the price.",
)
@given(cases(both=True))
def test_profile(form, check, case):
    s, y = case
    found = optimize.minimize_scalar(
        lambda s0: shifted(s, y, s0), bounds=(-20, 20), method="bounded", options={"xatol": 1e-10}
    )
    check.equal(form(s, y), found.fun, tol=1e-8)


@pytest.mark.equation(
    "eq:zlpr-order",
    kind="inequality",
    source=OURS,
    hypotheses="any n; equality on the right exactly when both masses are equal",
    right=lambda s, y: 2 * log(1 + sqrt(mass_n(s, y) * mass_p(s, y))),
    wrong={"the factor 2 is forgotten": lambda s, y: log(1 + sqrt(mass_n(s, y) * mass_p(s, y)))},
)
@given(cases(both=True), st.integers(1, 4))
def test_order(form, check, case, count):
    check.at_most(pair(*case), form(*case), slack=1e-12)
    check.at_most(form(*case), zlpr(*case), slack=1e-12)
    balanced = [-1.0, 1.0] * count, [0, 1] * count
    check.equal(form(*balanced), zlpr(*balanced))


# ---------------------------------------------------------------- 6 special cases


@pytest.mark.equation(
    "eq:zlpr-single-label",
    kind="identity",
    source=OURS,
    hypotheses="n = 1",
    right=lambda s, y: log1p(exp(-s if y else s)),
    wrong={"both groups count their zero class": lambda s, y: log1p(exp(-s if y else s)) + log(2)},
)
@given(scores(), st.integers(0, 1))
def test_one_label_is_bce(form, check, s, y):
    check.equal(zlpr_loss(tensor([s]), torch.tensor([y])), form(s, y))
    check.equal(bce([s], [y]), form(s, y))


def one_positive(s, y):
    n, p = mass_n(s, y), mass_p(s, y)
    return log(1 + n * p + n + p), log(1 + n * p)


@pytest.mark.equation(
    "eq:zlpr-one-positive",
    kind="inequality",
    source=OURS,
    hypotheses="exactly one positive; n >= 2; never an equality for finite scores",
    right=one_positive,
    wrong={
        "ZLPR of one positive taken for cross-entropy": lambda s, y: one_positive(s, y)[::-1],
    },
)
@given(single_target())
def test_one_positive(form, check, case):
    s, target = case
    y = [int(i == target) for i in range(len(s))]
    ours, theirs = form(s, y)
    check.equal(ours, zlpr(s, y))
    check.equal(theirs, ce_margin(s, target))
    check.at_most(theirs, ours)
    quiet = [-40.0] * len(s)
    quiet[target] = 40.0
    check.equal(zlpr(quiet, y), ce_margin(quiet, target))  # the limit of equality


def blocks_sum(s, y, cut):
    return zlpr(s[:cut], y[:cut]) + zlpr(s[cut:], y[cut:])


@pytest.mark.equation(
    "eq:zlpr-blocks",
    kind="inequality",
    source=OURS,
    hypotheses="any partition of the labels; equality when each group lies in one block",
    right=(lambda s, y, cut: log(1 + mass_n(s, y)) + log(1 + mass_p(s, y)), blocks_sum),
    wrong={"the blocks below the whole": (blocks_sum, lambda s, y, cut: zlpr(s, y))},
)
@given(cases(most=9, both=True), st.integers(1, 8))
def test_blocks(form, check, case, cut):
    s, y = case
    whole, parts = form
    cut = min(cut, len(s) - 1)
    check.at_most(whole(s, y, cut), parts(s, y, cut), slack=1e-12)
    # Each group in one block, in either order.
    for labels in (sorted(y), sorted(y, reverse=True)):
        border = labels.index(1 - labels[0])
        check.equal(whole(s, labels, border), parts(s, labels, border))
    # Both groups in both blocks: strict.
    twice = [*s, *s], [*y, *y], len(s)
    check.at_most(whole(*twice) + 1e-6, parts(*twice))


@pytest.mark.equation(
    "eq:zlpr-bce-bound",
    kind="inequality",
    source=OURS,
    hypotheses="any n; equality exactly when neither group has two labels",
    right=zlpr,
    wrong={"with a factor log 2 to spare": lambda s, y: zlpr(s, y) + log(2)},
)
@given(cases(), scores(), scores())
def test_bce_is_larger(form, check, case, low, high):
    check.at_most(form(*case), bce(*case), slack=1e-12)
    check.equal(form([low, high], [0, 1]), bce([low, high], [0, 1]))


@pytest.mark.equation(
    "eq:zlpr-start",
    kind="identity",
    source=OURS,
    hypotheses="all scores 0",
    right=lambda n, k: log(1 + n - k) + log(1 + k),
    wrong={"n log 2, the value of summed BCE": lambda n, k: n * log(2)},
)
@given(st.integers(1, 300), st.data())
def test_fresh_head(form, check, n, data):
    k = data.draw(st.integers(0, n))
    y = torch.arange(n) < k
    check.equal(zlpr_loss(torch.zeros(n, dtype=torch.float64), y), form(n, k))


@pytest.mark.equation(
    "eq:zlpr-symmetry",
    kind="identity",
    source=OURS,
    hypotheses="any n",
    right=lambda s, y: ([-v for v in s], [1 - v for v in y]),
    wrong={
        "only the labels are exchanged": lambda s, y: (s, [1 - v for v in y]),
        "only the scores are reflected": lambda s, y: ([-v for v in s], y),
    },
)
@given(cases())
def test_symmetry(form, check, case):
    mirrored, labels = form(*case)
    s, y = case
    check.equal(zlpr_loss(tensor(mirrored), torch.tensor(labels)), zlpr(s, y))


# ---------------------------------------------------------------- 7 gradient and curvature


def gradient(s, y):
    n, p = mass_n(s, y), mass_p(s, y)
    return [
        -exp(-v) / (1 + p) if label else exp(v) / (1 + n) for v, label in zip(s, y, strict=True)
    ]


@pytest.mark.equation(
    "eq:zlpr-gradient",
    kind="gradient",
    source="ours; standard",
    hypotheses="any n; finite scores; empty groups allowed",
    right=gradient,
    wrong={
        "the positive part's sign is flipped": lambda s, y: [abs(g) for g in gradient(s, y)],
        "the zero class is left out": lambda s, y: [
            g * (1 + mass_p(s, y)) / mass_p(s, y)
            if label
            else g * (1 + mass_n(s, y)) / mass_n(s, y)
            for g, label in zip(gradient(s, y), y, strict=True)
        ],
        "sigmoid, as in BCE": lambda s, y: [
            1 / (1 + exp(-v)) - t for v, t in zip(s, y, strict=True)
        ],
    },
)
@given(cases())
def test_gradient(form, check, case):
    s, y = case
    check.equal(form(s, y), gradient_of(zlpr_torch, s, y))
    check.equal(form(s, y), gradient_of(zlpr_loss, s, torch.tensor(y)))
    step = 1e-5
    differences = []
    for i in range(len(s)):
        up, down = list(s), list(s)
        up[i] += step
        down[i] -= step
        differences.append((zlpr(up, y) - zlpr(down, y)) / (2 * step))
    check.equal(form(s, y), differences, tol=1e-8)


@pytest.mark.equation(
    "eq:zlpr-masses",
    kind="gradient",
    source=OURS,
    hypotheses="any n; at s = 0 the masses are |N|/(1+|N|) and |P|/(1+|P|)",
    right=lambda mass: mass / (1 + mass),
    wrong={"half of the group, as in BCE at the start": lambda mass: mass / 2},
)
@given(cases())
def test_masses(form, check, case):
    s, y = case
    g = gradient_of(zlpr_loss, s, torch.tensor(y))
    check.equal(g.clamp(min=0).sum(), form(mass_n(s, y)))
    check.equal(-g.clamp(max=0).sum(), form(mass_p(s, y)))
    check.at_most([form(mass_n(s, y)), form(mass_p(s, y))], 1.0)


@pytest.mark.equation(
    "eq:zlpr-lipschitz",
    kind="inequality",
    source=OURS,
    hypotheses="any n; the constants are approached, not attained: no smaller ones will do",
    right=(2.0, sqrt(2), 2.0),
    wrong={
        "one group only": (1.0, 1.0, 2.0),
        "the constant of one group for differences": (2.0, sqrt(2), 1.0),
    },
)
@given(cases(), st.data())
def test_lipschitz(form, check, case, data):
    s, y = case
    one, two, lipschitz = form
    g = np.array(gradient(s, y))
    check.at_most(np.abs(g).sum(), one)
    check.at_most(np.sqrt((g**2).sum()), two)
    other = data.draw(st.lists(scores(), min_size=len(s), max_size=len(s)))
    distance = max(abs(v - w) for v, w in zip(s, other, strict=True))
    check.at_most(abs(zlpr(s, y) - zlpr(other, y)), lipschitz * distance, slack=1e-12)
    # Both groups badly wrong: the constants are approached.
    bad, labels = [30.0, -30.0], [0, 1]
    g = np.array(gradient(bad, labels))
    check.equal(np.abs(g).sum(), one, tol=1e-9)
    check.equal(np.sqrt((g**2).sum()), two, tol=1e-9)
    check.equal(zlpr([31.0, -31.0], labels) - zlpr(bad, labels), lipschitz, tol=1e-9)
    check.at_most(np.abs(g).sum(), one)
    check.at_most(np.sqrt((g**2).sum()), two)
    check.at_most(zlpr([31.0, -31.0], labels) - zlpr(bad, labels), lipschitz)


def hessian(s, y):
    n, p = mass_n(s, y), mass_p(s, y)
    q = [exp(-v) / (1 + p) if label else exp(v) / (1 + n) for v, label in zip(s, y, strict=True)]
    cells = list(enumerate(zip(q, y, strict=True)))
    return np.array(
        [[a * (i == j) - a * b * (u == v) for j, (b, v) in cells] for i, (a, u) in cells]
    )


def hessian_one_block(s, y):
    q = np.abs(gradient(s, y))
    return np.diag(q) - np.outer(q, q)


@pytest.mark.equation(
    "eq:zlpr-hessian",
    kind="gradient",
    source=OURS,
    hypotheses="any n; finite scores",
    right=hessian,
    wrong={
        "positives and negatives interact": hessian_one_block,
        "the outer product is left out": lambda s, y: np.diag(np.abs(gradient(s, y))),
    },
)
@given(cases(most=6, both=True))
def test_hessian(form, check, case):
    s, y = case
    expected = torch.autograd.functional.hessian(lambda x: zlpr_torch(x, y), tensor(s))
    check.equal(form(s, y), expected)
    x = tensor(s).requires_grad_()
    (g,) = torch.autograd.grad(zlpr_loss(x, torch.tensor(y)), x, create_graph=True)
    rows = [torch.autograd.grad(v, x, retain_graph=True)[0] for v in g]
    check.equal(form(s, y), torch.stack(rows))


def pair_torch(s, y):
    y = torch.as_tensor(y, dtype=torch.bool)
    return torch.log1p(s[~y].exp().sum() * (-s[y]).exp().sum())


def hinge_torch(s, y):
    y = torch.as_tensor(y, dtype=torch.bool)
    return torch.relu(torch.where(y, -s, s)).sum()


@pytest.mark.equation(
    "eq:zlpr-hessian-bound",
    kind="inequality",
    source=OURS,
    hypotheses="finite scores; the upper bound is approached, not attained",
    right=(0.5, zlpr_torch),
    wrong={
        "a quarter, the bound for one sigmoid": (0.25, zlpr_torch),
        "flat along a shift, like the pairwise loss": (0.5, pair_torch),
        "a plateau where the labels are right (hinge)": (0.5, hinge_torch),
    },
)
@pytest.mark.differs(
    "name-plateau",
    source="public notebooks",
    theirs="ZLPR means “Zero-Loss Plateau Regularization”: a plateau of value zero on which well "
    "classified samples rest.",
    ours="It is the zero-bounded log-sum-exp and pairwise rank-based loss; it is positive and "
    "strictly convex everywhere, so it has no plateau.",
)
@given(cases(most=6, both=True))
def test_hessian_bounds(form, check, case):
    s, y = case
    bound, loss = form
    values = torch.linalg.eigvalsh(
        torch.autograd.functional.hessian(lambda x: loss(x, y), tensor(s))
    )
    check.at_most(1e-8, values.min())
    check.at_most(values.max(), bound)
    # Two equal, large negatives: the extreme case of a softmax with two live classes.
    tie = torch.autograd.functional.hessian(lambda x: loss(x, [0, 0, 1]), tensor([15.0, 15.0, 1.0]))
    check.equal(torch.linalg.eigvalsh(tie).max(), bound, tol=1e-6)
    check.equal(loss(tensor(s), y), zlpr_loss(tensor(s), torch.tensor(y)))  # of no other loss


def group_errors(s, y):
    return int(any(v >= 0 for v in negatives(s, y))) + int(any(w <= 0 for w in positives(s, y)))


@pytest.mark.equation(
    "eq:zlpr-subset",
    kind="inequality",
    source=OURS,
    hypotheses="a score of exactly 0 counts as an error; equality for one label at 0",
    right=(group_errors, log(2)),
    wrong={
        "wrong labels counted one by one": (
            lambda s, y: (
                sum(v >= 0 for v in negatives(s, y)) + sum(w <= 0 for w in positives(s, y))
            ),
            log(2),
        ),
        "divided by 1 instead of log 2": (group_errors, 1.0),
    },
)
@given(cases())
def test_subset_accuracy(form, check, case):
    s, y = case
    errors, unit = form
    check.at_most(errors(s, y), zlpr(s, y) / unit, slack=1e-12)
    for y in ([0], [1], [0, 1]):
        check.equal(zlpr([0.0] * len(y), y) / unit, errors([0.0] * len(y), y))
        right = [0.5 if label else -0.5 for label in y]
        check.at_most(errors(right, y), zlpr(right, y) / unit)
    many = [0.1] * 8, [0] * 8
    check.at_most(errors(*many), zlpr(*many) / unit)


def focal_negative(p, g):
    return p**g * (p - g * (1 - p) * log(1 - p))


@pytest.mark.equation(
    "eq:zlpr-focal-gradient",
    kind="gradient",
    source="Lin et al. 2017 (focal loss)",
    hypotheses="a negative label; exponent g >= 0; without the weight alpha",
    right=focal_negative,
    wrong={"the factor alone, the logarithm not differentiated": lambda p, g: p ** (g + 1)},
)
@given(scores(), st.floats(0.5, 4))
def test_focal_gradient(form, check, s, g):
    p = 1 / (1 + exp(-s))
    zero = torch.zeros(1, 1, dtype=torch.float64)

    def loss(x):  # kornia weighs negatives with 1 - alpha; the half is taken out again
        half = binary_focal_loss_with_logits(x[None], zero, alpha=0.5, gamma=g, reduction="sum")
        return 2 * half

    check.equal(form(p, g), gradient_of(loss, [s])[0], tol=1e-7)


def asl(s, y, plus, minus, m):
    total = 0.0
    for v, label in zip(s, y, strict=True):
        p = 1 / (1 + exp(-v))
        if label:
            total -= (1 - p) ** plus * log(p)
        else:
            shifted_p = max(p - m, 0.0)
            total -= shifted_p**minus * log(1 - shifted_p)
    return total


def asl_torch(x, y, plus, minus, m):
    p = torch.sigmoid(x)
    low = (p - m).clamp(min=0)
    return torch.where(
        torch.as_tensor(y, dtype=torch.bool),
        -((1 - p) ** plus) * torch.nn.functional.logsigmoid(x),
        -(low**minus) * torch.log1p(-low),
    ).sum()


@pytest.mark.equation(
    "eq:zlpr-asl",
    kind="definition",
    source="Ridnik et al. 2021 (ASL)",
    hypotheses="exponents >= 0; margin 0 <= m < 1",
    right=asl,
    wrong={
        "the margin added instead of subtracted": lambda s, y, plus, minus, m: asl(
            s, y, plus, minus, -m
        ),
        "the two exponents change places": lambda s, y, plus, minus, m: asl(s, y, minus, plus, m),
    },
)
@given(cases(both=True))
def test_asl(form, check, case):
    s, y = case
    check.equal(form(s, y, 1, 4, 0.05), asl_torch(tensor(s), y, 1, 4, 0.05))
    check.equal(form(s, y, 0, 0, 0.0), bce(s, y))
    check.true(form([-4.0], [0], 1, 4, 0.05) == 0, "below the margin a negative costs nothing")


def asl_negative(p, g, m):
    low = max(p - m, 0.0)
    if low == 0:
        return 0.0
    return p * (1 - p) * low ** (g - 1) * (low / (1 - low) - g * log(1 - low))


@pytest.mark.equation(
    "eq:zlpr-asl-gradient",
    kind="gradient",
    source="Ridnik et al. 2021 (ASL); derived anew",
    hypotheses="a negative label; g > 1; 0 where p <= m",
    right=asl_negative,
    wrong={
        "the focal formula with p replaced by p - m throughout": lambda p, g, m: focal_negative(
            max(p - m, 0.0), g
        )
    },
)
@given(scores(), st.floats(1.5, 5), st.floats(0.02, 0.2))
def test_asl_gradient(form, check, s, g, m):
    p = 1 / (1 + exp(-s))
    check.equal(form(p, g, m), gradient_of(asl_torch, [s], [0], 1.0, g, m)[0])


# ---------------------------------------------------------------- 8 what it estimates


def normalisation(n):
    return (2 ** (n + 2) - 2) / ((n + 1) * (n + 2))


@pytest.mark.equation(
    "eq:zlpr-normalisation",
    kind="identity",
    source=OURS,
    hypotheses="scores 0; n >= 1; the sum is 1 for n = 1 only",
    right=normalisation,
    wrong={
        "1, as for a likelihood": lambda n: 1.0,
        "one binomial coefficient too many": lambda n: (2 ** (n + 2) - 1) / ((n + 1) * (n + 2)),
    },
)
@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_normalisation(form, check, n):
    total = sum(exp(-zlpr([0.0] * n, y)) for y in itertools.product((0, 1), repeat=n))
    check.equal(form(n), total, tol=1e-12)
    link = sum(comb(n + 2, k + 1) for k in range(n + 1)) / ((n + 1) * (n + 2))
    check.equal(link, total, tol=1e-12)


def masses(s, y):
    return np.exp(s)[y == 0].sum(), np.exp(-s)[y == 1].sum()


def conditional_means(s, law, i):
    """E[1/(1+P) | y_i = 1] and E[1/(1+N) | y_i = 0] and the marginal of label i."""
    marginal = sum(p for p, y in law if y[i])
    high = sum(p / (1 + masses(s, y)[1]) for p, y in law if y[i]) / marginal
    low = sum(p / (1 + masses(s, y)[0]) for p, y in law if not y[i]) / (1 - marginal)
    return marginal, high, low


def risk_gradient(s, law):
    entries = []
    for i in range(len(s)):
        marginal, high, low = conditional_means(s, law, i)
        entries.append(exp(s[i]) * (1 - marginal) * low - exp(-s[i]) * marginal * high)
    return entries


def risk_torch(x, law):
    return sum(p * zlpr_torch(x, y) for p, y in law)


def minimise(law):
    """The population minimiser by Newton's method; the risk is smooth and strictly convex."""
    ys = np.stack([y for _, y in law])
    ps = np.array([p for p, _ in law])
    s = np.zeros(ys.shape[1])

    def parts(s):
        q = np.where(ys == 0, np.exp(s), 0.0)
        r = np.where(ys == 1, np.exp(-s), 0.0)
        n, p = q.sum(1, keepdims=True), r.sum(1, keepdims=True)
        value = (ps * (np.log1p(n) + np.log1p(p))[:, 0]).sum()
        return value, q / (1 + n), r / (1 + p)

    for _ in range(200):
        value, q, r = parts(s)
        slope = ((q - r) * ps[:, None]).sum(0)
        if np.abs(slope).max() < 1e-13:
            break
        bend = np.diag((ps[:, None] * (q + r)).sum(0)) - (q.T * ps) @ q - (r.T * ps) @ r
        step, size = np.linalg.solve(bend, slope), 1.0
        while parts(s - size * step)[0] > value and size > 1e-6:
            size /= 2
        s = s - size * step
    return s


@pytest.mark.equation(
    "eq:zlpr-risk-gradient",
    kind="gradient",
    source=OURS,
    hypotheses="any law of y with 0 < pi_i < 1",
    right=risk_gradient,
    wrong={
        "the negatives' mean is taken over all labellings": lambda s, law: [
            exp(s[i]) * (1 - conditional_means(s, law, i)[0])
            * sum(p / (1 + masses(s, y)[0]) for p, y in law)
            - exp(-s[i]) * conditional_means(s, law, i)[0] * conditional_means(s, law, i)[1]
            for i in range(len(s))
        ]
    },
)  # fmt: skip
@given(laws(), st.data())
def test_risk_gradient(form, check, law, data):
    n = len(law[0][1])
    s = np.array(data.draw(st.lists(scores(-3, 3), min_size=n, max_size=n)))
    check.equal(form(s, law), gradient_of(risk_torch, s.tolist(), law))


def balance(s, law):
    return (
        sum(p * masses(s, y)[0] / (1 + masses(s, y)[0]) for p, y in law),
        sum(p * masses(s, y)[1] / (1 + masses(s, y)[1]) for p, y in law),
    )


@pytest.mark.equation(
    "eq:zlpr-balance",
    kind="identity",
    source=OURS,
    hypotheses="at the population minimiser; 0 < pi_i < 1",
    right=balance,
    wrong={
        "the masses themselves balance": lambda s, law: (
            sum(p * masses(s, y)[0] for p, y in law),
            sum(p * masses(s, y)[1] for p, y in law),
        )
    },
)
@given(laws())
def test_balance(form, check, law):
    low, high = form(minimise(law), law)
    check.equal(low, high)


def minimiser_equation(s, law):
    entries = []
    for i in range(len(s)):
        marginal, high, low = conditional_means(s, law, i)
        entries.append(log(marginal / (1 - marginal)) / 2 + log(high / low) / 2)
    return entries


@pytest.mark.equation(
    "eq:zlpr-minimiser",
    kind="identity",
    source=OURS,
    hypotheses="0 < pi_i < 1; then the minimiser exists and is unique",
    right=minimiser_equation,
    wrong={
        "the log-odds, as for BCE": lambda s, law: [
            log(conditional_means(s, law, i)[0] / (1 - conditional_means(s, law, i)[0]))
            for i in range(len(s))
        ],
        "half the log-odds, the competition left out": lambda s, law: [
            log(conditional_means(s, law, i)[0] / (1 - conditional_means(s, law, i)[0])) / 2
            for i in range(len(s))
        ],
    },
)
@pytest.mark.differs(
    "population-minimiser",
    source="Su 2020 (kexue 7359)",
    theirs="Says nothing about what the scores estimate; code in use applies a sigmoid to them.",
    ours="Half the log-odds plus a term of competition; sigmoid(s) is no probability for n > 1.",
)
@given(st.one_of(laws(), sparse_laws()), st.lists(scores(-3, 3), min_size=4, max_size=4))
def test_minimiser(form, check, law, start):
    s = minimise(law)
    check.equal(form(s, law), s, tol=1e-9)

    def risk_and_slope(v):
        x = tensor(v).requires_grad_()
        risk = risk_torch(x, law)
        risk.backward()
        return risk.item(), x.grad.numpy()

    found = optimize.minimize(risk_and_slope, start[: len(s)], jac=True, tol=1e-10)
    check.equal(found.x, s, tol=1e-6)  # from any start
    # A label that is always there has no best score: the risk falls as it grows.
    certain = [(p, np.append(y, 1)) for p, y in law]
    risks = [float(risk_torch(tensor([*s, far]), certain)) for far in (0.0, 5.0, 10.0, 20.0)]
    check.at_most(np.diff(risks), 0.0)
    check.true(min(-np.diff(risks)) > 0, "the risk should fall without end")


def cut(s, law, i):
    _, high, low = conditional_means(s, law, i)
    return low / high


@pytest.mark.equation(
    "eq:zlpr-cut",
    kind="identity",
    source=OURS,
    hypotheses="at the population minimiser; 0 < pi_i < 1",
    right=cut,
    wrong={"the odds are compared with 1": lambda s, law, i: 1.0},
)
def test_cut(form, check):
    # One of four labels; the first is more likely than each other one, but below one half.
    law = [(p, np.eye(4, dtype=int)[i]) for i, p in enumerate((0.44, 0.2, 0.19, 0.17))]
    s = minimise(law)
    rng = np.random.default_rng(1)
    for weights in rng.dirichlet(np.ones(8) / 2, size=200):
        other = [
            (w, np.array(y))
            for w, y in zip(weights, itertools.product((0, 1), repeat=3), strict=True)
        ]
        if all(0.02 < sum(p for p, y in other if y[i]) < 0.98 for i in range(3)):
            point = minimise(other)
            for i in range(3):
                odds = conditional_means(point, other, i)[0]
                odds = odds / (1 - odds)
                check.true((point[i] > 0) == (odds > form(point, other, i)), "the sign is another")
    check.true((s[0] > 0) == (form(s, law, 0) < 0.44 / 0.56), "the sign is another")


def zero_of(gap, m):
    """Where the gap is 0, starting at the root of its leading terms."""
    return mp.findroot(gap, mp.log(2 * mp.mpf(m)) / 3 - mp.log(m))


def rivals_cut(m):
    """The marginal at which s_1 = 0, with m equal rivals."""

    def gap(x):
        r = mp.exp(x)
        odds = 2 / (2 + (m - 1) * r)
        return odds * (m * r / (1 + m * r) - mp.mpf(1) / 2) - (
            1 / (1 + r) - (1 + (m - 1) * r) / (2 + (m - 1) * r)
        )

    r = mp.exp(zero_of(gap, m))
    odds = 2 / (2 + (m - 1) * r)
    return odds / (1 + odds)


@pytest.mark.equation(
    "eq:zlpr-cut-rivals",
    kind="identity",
    source=OURS,
    hypotheses="one of m + 1 labels; m rivals of equal probability; m >= 1",
    right=rivals_cut,
    wrong={
        "one half, as for BCE": lambda m: 0.5,
        "the share of one of m + 1": lambda m: 1 / (m + 1),
    },
)
@pytest.mark.differs(
    "zero-is-half",
    source="common practice",
    theirs="`sigmoid(s) > 0.5` read as a probability: the threshold 0 means that a "
    "label is more likely present than absent.",
    ours="Among rivals it means less: 0.223 of the probability suffices against 100 of them.",
)
@pytest.mark.parametrize("m", [2, 3, 6])
def test_cut_among_rivals(form, check, m):
    pi = float(form(m))
    law = [(pi, np.eye(m + 1, dtype=int)[0])]
    law += [((1 - pi) / m, np.eye(m + 1, dtype=int)[i + 1]) for i in range(m)]
    check.equal(minimise(law)[0], 0.0, tol=1e-9)


@pytest.mark.equation(
    "eq:zlpr-cut-limit",
    kind="limit",
    source=OURS,
    hypotheses="m to infinity",
    right=lambda m: mp.cbrt(mp.mpf(4) / m),
    wrong={
        "the constant is 1": lambda m: 1 / mp.cbrt(m),
        "the square root instead of the cube root": lambda m: mp.sqrt(mp.mpf(4) / m),
    },
)
def test_cut_falls_with_the_cube_root(form, check):
    sizes = [10**6, 10**8, 10**10, 10**12]
    errors = [abs(rivals_cut(m) / form(m) - 1) for m in sizes]
    check.rate([mp.mpf(m) ** (-mp.mpf(1) / 3) for m in sizes], errors, order=1)


@pytest.mark.equation(
    "eq:zlpr-uniform",
    kind="identity",
    source=OURS,
    hypotheses="exactly one of n labels, each with probability 1/n; n >= 2",
    right=lambda n: -log(n - 1) / 2,
    wrong={
        "the log-odds of 1/n": lambda n: -log(n - 1),
        "minus log n over 2": lambda n: -log(n) / 2,
    },
)
@pytest.mark.parametrize("n", [3, 5, 10])
def test_uniform_choice(form, check, n):
    law = [(1 / n, row) for row in np.eye(n, dtype=int)]
    check.equal(minimise(law), [form(n)] * n, tol=1e-9)
    check.equal(1 / (1 + exp(-2 * form(n))), 1 / n)


def iid_ratio(s, n, pi, rest=1):
    """e^{2s} by the condition for independent labels of one marginal."""
    others = np.arange(n)
    weights = stats.binom.pmf(others, n - 1, pi)
    high = (weights / (1 + (1 + others) * exp(-s))).sum()
    low = (weights / (1 + (n - 1 + rest - others) * exp(s))).sum()
    return pi / (1 - pi) * high / low


def iid_score(n, pi):
    return optimize.brentq(lambda s: 2 * s - log(iid_ratio(s, n, pi)), -30, 5, xtol=1e-13)


@pytest.mark.equation(
    "eq:zlpr-iid",
    kind="identity",
    source=OURS,
    hypotheses="n independent labels of equal marginal 0 < pi < 1",
    right=iid_ratio,
    wrong={
        "the label itself is not among its negatives": lambda s, n, pi: iid_ratio(s, n, pi, rest=0),
    },
)
@pytest.mark.parametrize("n", [2, 3, 4])
@pytest.mark.parametrize("pi", [0.1, 0.35, 0.8])
def test_independent_labels(form, check, n, pi):
    law = [
        (pi ** sum(y) * (1 - pi) ** (n - sum(y)), np.array(y))
        for y in itertools.product((0, 1), repeat=n)
    ]
    s = minimise(law)
    check.equal(s, [s[0]] * n, tol=1e-9)
    check.equal(form(s[0], n, pi), exp(2 * s[0]), tol=1e-9)


@pytest.mark.equation(
    "eq:zlpr-temperature",
    kind="limit",
    source=OURS,
    hypotheses="independent labels of fixed marginal pi != 1/2; n to infinity",
    right=2.0,
    wrong={"1, as if the scores were log-odds": 1.0, "one half more": 2.5},
)
@pytest.mark.differs(
    "effective-temperature",
    source="common practice",
    theirs="One fixed link, `sigmoid(s)` or (from soft labels) `sigmoid(2 * s)`, turns "
    "the score of a trained model into a probability.",
    ours="With hard, independent labels of one marginal the factor runs from 1 to 2 as their "
    "number grows.",
)
@pytest.mark.parametrize("pi", [0.02, 0.1, 0.3, 0.45, 0.6, 0.9])
def test_temperature_runs_from_one_to_two(form, check, pi):
    temperature = lambda n: log(pi / (1 - pi)) / iid_score(n, pi)  # noqa: E731 - three uses below
    check.equal(temperature(1), 1.0)
    rare = round(1 / min(pi, 1 - pi))  # the rate shows once many labels of the rarer kind are there
    sizes = [20 * rare * 2**k for k in range(5)]
    check.rate([1 / n for n in sizes], [abs(temperature(n) - form) for n in sizes], order=1)
    middle = [temperature(n) for n in (1, 3, 10, 30, 100, 1000)]
    check.at_most(middle[:-1], middle[1:])


def independent_law(marginals):
    law = []
    for y in itertools.product((0, 1), repeat=len(marginals)):
        p = math.prod(q if v else 1 - q for q, v in zip(marginals, y, strict=True))
        law.append((p, np.array(y)))
    return law


def exchanged(y, a, b):
    other = list(y)
    other[a], other[b] = other[b], other[a]
    return tuple(other)


def ahead_of(law, a, b, every=all):
    """Is a without b at least as probable as b without a, whatever the other labels are?"""
    chance = {tuple(y.tolist()): p for p, y in law}
    # Each pair of labellings of which one at least is possible.
    first = {y if y[a] else exchanged(y, a, b) for y in chance}
    return every(chance.get(y, 0.0) >= chance.get(exchanged(y, a, b), 0.0) for y in first)


@st.composite
def ordered_laws(draw):
    """A law whose labels 0 and 1 satisfy the condition, the others depending on both in any way."""
    n = draw(st.integers(2, 4))
    weights = {}
    for rest in itertools.product((0, 1), repeat=n - 2):
        weight = st.one_of(st.just(0.0), st.floats(0.02, 1))
        more, less, both, neither = (draw(weight) for _ in range(4))
        more, less = max(more, less), draw(st.sampled_from([min(more, less), max(more, less)]))
        weights |= {(1, 0, *rest): more, (0, 1, *rest): less}
        weights |= {(1, 1, *rest): both, (0, 0, *rest): neither}
    # No label is certain, so the minimiser exists.
    for y in ((1,) * n, (0,) * n):
        weights[y] += 0.02
    total = sum(weights.values())
    return [(w / total, np.array(y)) for y, w in weights.items() if w]


@pytest.mark.equation(
    "eq:zlpr-ranking",
    kind="inequality",
    source=OURS,
    hypotheses="for every rest of the labels, dependent or not; equality exactly if the two are "
    "equally probable with every rest",
    right=ahead_of,
    wrong={
        "for some rest": lambda law, a, b: ahead_of(law, a, b, any),
        "the larger marginal is enough": lambda law, a, b: (
            sum(p for p, y in law if y[a]) >= sum(p for p, y in law if y[b])
        ),
        "the condition the other way round": lambda law, a, b: ahead_of(law, b, a),
    },
)
@given(ordered_laws(), laws())
def test_the_exchange_condition_ranks(form, check, ordered, any_law):
    check.true(form(ordered, 0, 1), "the condition holds here")
    s = minimise(ordered)
    check.at_most(s[1], s[0], slack=1e-10)
    chance = {tuple(y.tolist()): p for p, y in ordered}
    gaps = [p - chance.get(exchanged(y, 0, 1), 0.0) for y, p in chance.items() if y[0] > y[1]]
    if max(gaps, default=0.0) > 1e-3:
        check.at_most(s[1] + 1e-9, s[0])
    elif max(gaps, default=0.0) == 0:
        check.equal(s[0], s[1])
    # Where the condition is said to hold, the ranking does: of laws drawn without it, of the
    # correlated one of the text, and of independent labels, which it ranks by their marginals.
    marginals = [sum(p for p, y in any_law if y[i]) for i in range(len(any_law[0][1]))]
    independent = independent_law(marginals)
    for law in (any_law, block_law(21), independent):
        s = minimise(law)
        for a, b in {(0, len(s) - 1), (len(s) - 1, 0)}:
            if a != b and form(law, a, b):
                check.at_most(s[b], s[a], slack=1e-9)


def block_law(size):
    """Labels 0..size-1 together (0.30), the last label alone (0.25), or none (0.45)."""
    block, alone = np.zeros((2, size + 1), dtype=int)
    block[:size], alone[size] = 1, 1
    return [(0.30, block), (0.25, alone), (0.45, np.zeros(size + 1, dtype=int))]


@pytest.mark.equation(
    "eq:zlpr-counterexample",
    kind="inequality",
    source=OURS,
    hypotheses="the law of the text; correlated labels",
    right=21,
    wrong={"a block of one label: no shared credit": 1},
)
def test_counterexample_to_ranking(form, check):
    s = minimise(block_law(form))
    check.equal(s[:form], [s[0]] * form, tol=1e-9)
    check.at_most(s[0] + 1, s[-1])


# ---------------------------------------------------------------- 9 the sparse form


def log_all(s):
    return mp.log(1 + mp.fsum(mp.exp(v) for v in s))


def subtraction(s, y, one=1):
    a = mp.log(one + mp.fsum(mp.exp(v) for v in s))
    b = mp.log(mp.fsum(mp.exp(v) for v in positives(s, y)))
    return a + mp.log(1 - mp.exp(b - a))


@pytest.mark.equation(
    "eq:zlpr-sparse",
    kind="identity",
    source=SU2022,
    hypotheses="at least one positive; exact arithmetic",
    right=subtraction,
    wrong={
        "the zero class is left out of the sum over all": lambda s, y: subtraction(s, y, one=0.5),
        "the log-sums are subtracted directly": lambda s, y: (
            log_all(s) - mp.log(mp.fsum(mp.exp(v) for v in positives(s, y)))
        ),
    },
)
@given(cases(both=True, low=-20, high=20))
def test_subtraction_form(form, check, case):
    s, y = [mp.mpf(v) for v in case[0]], case[1]
    check.equal(form(s, y), mp.log(1 + mp.fsum(mp.exp(v) for v in negatives(s, y))), tol=1e-30)
    indices = torch.tensor([i for i, label in enumerate(y) if label])
    ours = sparse_zlpr_loss(tensor(case[0]), indices)
    p = mp.fsum(mp.exp(-v) for v in positives(s, y))
    check.equal(ours, form(s, y) + mp.log(1 + p), tol=1e-12)


def published(x, indices, epsilon=1e-7):
    """The published sparse loss (bert4keras), in torch, in the dtype of `x`."""
    zero = torch.zeros(1, dtype=x.dtype)
    picked = x[indices]
    positive = torch.logsumexp(torch.cat([-picked, zero]), 0)
    everything = torch.logsumexp(torch.cat([x, zero]), 0)
    chosen = torch.logsumexp(picked, 0)
    rest = torch.clamp(1 - torch.exp(chosen - everything), epsilon, 1)
    return positive + everything + torch.log(rest)


def clipped(s, y, epsilon):
    m = sum(exp(v) for v in positives(s, y))
    n = mass_n(s, y)
    return log(1 + n + m) + log(max((1 + n) / (1 + n + m), epsilon)) + log(1 + mass_p(s, y))


@pytest.mark.equation(
    "eq:zlpr-sparse-published",
    kind="definition",
    source="Su 2022 (kexue 8888), bert4keras",
    hypotheses="at least one positive; epsilon = 1e-7 in the published code",
    right=clipped,
    wrong={"ZLPR itself": lambda s, y, epsilon: zlpr(s, y)},
)
@given(cases(both=True, low=-3, high=3), st.booleans())
def test_published_form(form, check, case, trained):
    s, y = case
    if trained:
        s = [v + 18 if label else v for v, label in zip(s, y, strict=True)]
    indices = torch.tensor([i for i, label in enumerate(y) if label])
    # The published form divides its rounding error by what is left after the subtraction: some
    # units in the last place of a (4e-15 each where a is 24), over at least epsilon.
    check.equal(form(s, y, 1e-7), published(tensor(s), indices), tol=1e-6 if trained else 1e-10)
    s = [20.0, -1.0]
    check.equal(form(s, [1, 0], 1e-7), published(tensor(s), torch.tensor([0])), tol=1e-8)


def clip_starts(s, y, epsilon):
    return (1 + mass_n(s, y)) * (1 / epsilon - 1)


@pytest.mark.equation(
    "eq:zlpr-sparse-onset",
    kind="identity",
    source=OURS,
    hypotheses="0 < epsilon < 1; exact arithmetic",
    right=clip_starts,
    wrong={
        "the negatives are forgotten": lambda s, y, epsilon: 1 / epsilon - 1,
        "the clip starts at 1/epsilon of the negatives alone": lambda s, y, epsilon: (
            mass_n(s, y) / epsilon
        ),
    },
)
@given(cases(both=True, low=-3, high=3), st.floats(1e-4, 0.2))
def test_onset_of_the_clip(form, check, case, epsilon):
    s, y = case
    kept = negatives(s, y)
    for factor in (0.999, 1.001):
        score = log(form(s, y, epsilon) * factor)
        inside = 1 - exp(score) / (1 + sum(exp(v) for v in kept) + exp(score))
        check.true((inside < epsilon) == (factor > 1), "the clip does not start there")


def clipped_gradient(s, y):
    everything = 1 + sum(exp(v) for v in s)
    p = mass_p(s, y)
    return [
        exp(v) / everything - (exp(-v) / (1 + p) if label else 0)
        for v, label in zip(s, y, strict=True)
    ]


@pytest.mark.equation(
    "eq:zlpr-sparse-gradient",
    kind="gradient",
    source=OURS,
    hypotheses="the clip is active",
    right=clipped_gradient,
    wrong={"the gradient of ZLPR": gradient},
)
@given(cases(both=True, low=-2, high=2))
def test_gradient_of_the_clipped_form(form, check, case):
    s, y = case
    s = [v + 22 if label else v for v, label in zip(s, y, strict=True)]
    indices = torch.tensor([i for i, label in enumerate(y) if label])
    check.equal(form(s, y), gradient_of(published, s, indices), tol=1e-8)
    check.at_most(0.1, sum(form(s, y)))  # descent moves the positives, well placed, down
    # The same at any scores, by a clip that is active there.
    low = case[0]
    active = (1 + (1 + mass_n(low, y)) / (1 + sum(exp(v) for v in low))) / 2
    check.equal(form(low, y), gradient_of(published, low, indices, active))


def quiet_case(score, dtype):
    x = torch.full((1001,), -20.0, dtype=dtype)
    x[0] = score
    return x.requires_grad_()


@pytest.mark.equation(
    "eq:zlpr-sparse",
    kind="identity",
    right=lambda x: sparse_zlpr_loss(x, torch.tensor([0])),
    wrong={"the published form in the same dtype": lambda x: published(x, torch.tensor([0]))},
)
@pytest.mark.differs(
    "sparse-cancellation",
    source="Su 2022 (kexue 8888)",
    theirs="The log-sum over the negatives is what remains when the positives are taken from all.",
    ours="In floating point nothing remains: from scores of 4 (bfloat16), 6.5 (float16) or 15 "
    "(float32) on, the gradient has the wrong sign. Mask the positives and sum the rest.",
)
@pytest.mark.parametrize(
    ("dtype", "score"),
    [
        (torch.bfloat16, 4.0),
        (torch.float16, 6.5),
        (torch.float16, 8.0),
        (torch.float32, 15.0),
        (torch.float32, 20.0),
    ],
    ids=str,
)
def test_sparse_form_in_low_precision(form, check, dtype, score):
    x = quiet_case(score, dtype)
    form(x).backward()
    true = [exp(-score) / (1 + exp(-score)), exp(-20.0)]
    check.equal(-x.grad[0].double(), true[0], tol=1e-3)
    check.equal(form(x).double(), log1p(exp(-score)) + log1p(1000 * exp(-20.0)), tol=1e-3)


@pytest.mark.equation(
    "eq:zlpr-sparse-fix",
    kind="identity",
    source=OURS,
    hypotheses="any n; an index may be repeated; float32 and float64",
    right=lambda x, indices: torch.logsumexp(
        torch.cat([x.index_fill(0, indices, -math.inf), torch.zeros(1)]), 0
    ),
    wrong={
        "the zero class is not appended": lambda x, indices: torch.logsumexp(
            torch.cat([x.index_fill(0, indices, -math.inf), x.new_full((1,), -math.inf)]), 0
        ),
        "positives set to 0 instead of minus infinity": lambda x, indices: torch.logsumexp(
            torch.cat([x.index_fill(0, indices, 0.0), x.new_zeros(1)]), 0
        ),
    },
)
@given(cases(both=True, low=-20, high=20), st.sampled_from([torch.float32, torch.float64]))
def test_masking_form(form, check, case, dtype):
    s, y = case
    indices = torch.tensor([i for i, label in enumerate(y) if label for _ in range(2)])
    x = tensor(s).to(dtype)
    exact = mp.log(1 + mp.fsum(mp.exp(v) for v in negatives(x.tolist(), y)))
    check.equal(form(x, indices), exact, tol=1e-6 if dtype == torch.float32 else 1e-13)


def with_repeats(s, y, counts):
    listed = [(v, c) for v, c, label in zip(s, counts, y, strict=True) if label]
    extra = sum((c - 1) * exp(v) for v, c in listed)
    return log(1 + mass_n(s, y) - extra) + log(1 + sum(c * exp(-v) for v, c in listed))


@pytest.mark.equation(
    "eq:zlpr-sparse-duplicates",
    kind="identity",
    source=OURS,
    hypotheses="the argument of the logarithm is positive and the clip is not active",
    right=with_repeats,
    wrong={"ZLPR itself: repeats do not matter": lambda s, y, counts: zlpr(s, y)},
)
@pytest.mark.differs(
    "sparse-duplicates",
    source="bert4keras",
    theirs="A list of positive indices is reduced as it stands.",
    ours="An index given twice is counted twice, in both logarithms; ours counts it once.",
)
@given(cases(both=True, low=-3, high=3), st.lists(st.integers(1, 3), min_size=8, max_size=8))
def test_repeated_indices(form, check, case, times):
    s, y = case
    s, y, times = [1.0, *s], [0, *y], [1, *times]
    times[y.index(1)] += 1  # one index at least stands there twice
    counts = [c if label else 1 for c, label in zip(times, y, strict=False)]
    low = -log(sum(counts) - len(counts)) - 0.1  # so the argument of the logarithm is positive
    s = [min(v, low) if label else v for v, label in zip(s, y, strict=True)]
    indices = torch.tensor([i for i, c in enumerate(counts) if y[i] for _ in range(c)])
    check.equal(form(s, y, counts), published(tensor(s), indices), tol=1e-8)
    check.equal(zlpr(s, y), sparse_zlpr_loss(tensor(s), indices))


# ---------------------------------------------------------------- 10 traps


@pytest.mark.equation(
    "eq:zlpr-probabilities",
    kind="inequality",
    source=OURS,
    hypotheses="scores restricted to [0, 1], as after a sigmoid or softmax; approached at 0 and 1",
    right=lambda n, k: log(1 + n - k) + log(1 + k / e),
    wrong={"0, as for free scores": lambda n, k: log(1 + n - k) + log(1 + k)},
)
@given(st.integers(2, 40), st.data())
def test_probabilities_as_scores(form, check, n, data):
    k = data.draw(st.integers(1, n - 1))
    y = [1] * k + [0] * (n - k)
    s = data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n))
    check.at_most(form(n, k), zlpr(s, y), slack=1e-12)
    check.equal(form(n, k), zlpr([float(v) for v in y], y))


def flattened(rows):
    s = [v for row, _ in rows for v in row]
    y = [v for _, row in rows for v in row]
    return zlpr(s, y)


@pytest.mark.equation(
    "eq:zlpr-flatten",
    kind="inequality",
    source=OURS,
    hypotheses="any batch; strict as soon as two samples have a negative (or a positive) each",
    right=flattened,
    wrong={"flattening changes nothing": lambda rows: sum(zlpr(*row) for row in rows)},
)
@pytest.mark.differs(
    "batch-flattened",
    source="PyTorch ports",
    theirs="One logarithm over all samples, by `outputs[mask]` with a mask of the whole batch.",
    ours="One logarithm per sample; flattened, the batch shares one gradient mass below 1.",
)
@given(st.lists(cases(both=True), min_size=2, max_size=4))
def test_flattened_batch(form, check, rows):
    apart = sum(zlpr(*row) for row in rows)
    check.at_most(form(rows) + 1e-9, apart)
    together = zlpr_loss(
        torch.cat([tensor(s) for s, _ in rows]), torch.tensor([v for _, y in rows for v in y])
    )
    check.equal(together, form(rows))


@pytest.mark.differs(
    "float-index",
    source="bert4keras",
    theirs="A pair of positions becomes one flat index by floating-point arithmetic.",
    ours="Whole numbers end at 2**24 in float32 (L > 4096) and 2**11 in float16 (L > 45): int64.",
)
@pytest.mark.parametrize(
    ("dtype", "longest"), [(torch.float32, 4096), (torch.float16, 45)], ids=["float32", "float16"]
)
def test_flat_index_in_floating_point(dtype, longest):
    def last_index(length):
        last = torch.tensor(length - 1)
        return int(
            (last.to(dtype) * torch.tensor(length, dtype=dtype) + last.to(dtype)).to(torch.int64)
        )

    assert last_index(longest) == longest**2 - 1
    wrong = [n for n in range(longest + 1, longest + 40) if last_index(n) != n**2 - 1]
    assert wrong
    assert [n for n in range(2, longest + 1, 7) if last_index(n) != n**2 - 1] == []


@pytest.mark.differs(
    "mask-by-1e12",
    source="Su 2020 (kexue 7359)",
    theirs="The other group is removed by `y_pred - y * 1e12`; ports keep this.",
    ours="In float16 that constant is infinite and 0 times it is NaN; masks belong in `where`.",
)
def test_masking_by_a_large_constant():
    s = torch.tensor([1.0, -1.0], dtype=torch.float16)
    y = torch.tensor([1.0, 0.0], dtype=torch.float16)
    big = torch.tensor(1e12).to(torch.float16)
    assert big.isinf()
    assert (s - y * big).isnan().tolist() == [False, True]
    assert torch.isfinite(zlpr_loss(s, y))


@pytest.mark.differs(
    "gold-on-mask",
    source="bert4keras",
    theirs="A positive label on a masked cell gives an infinite loss, or NaN.",
    ours="It is refused with a sentence that says where the label lies.",
)
def test_positive_on_a_masked_cell():
    x = torch.tensor([0.5, -math.inf, -1.0], dtype=torch.float64)
    assert not torch.isfinite(published(x, torch.tensor([1])))
    with pytest.raises(ValueError, match="targets"):
        zlpr_loss(x, torch.tensor([0, 1, 0]))
    with pytest.raises(ValueError, match="positives"):
        sparse_zlpr_loss(x, torch.tensor([1]))


@pytest.mark.differs(
    "class-zero-untrained",
    source="bert4keras",
    theirs="With `mask_zero=True` index 0 is the filler and infinities replace its score: class 0 "
    "is never trained.",
    ours="The filler is -1; every class is trained.",
)
def test_filler_index():
    def mask_zero(x, indices):
        infinity = torch.full((1,), math.inf, dtype=x.dtype)
        high = torch.cat([infinity, x[1:]])[indices]
        low = torch.cat([-infinity, x[1:]])
        zero = torch.zeros(1, dtype=x.dtype)
        a = torch.logsumexp(torch.cat([low, zero]), 0)
        b = torch.logsumexp(low[indices], 0)
        rest = torch.log(torch.clamp(-torch.expm1(b - a), 1e-7, 1))
        return torch.logsumexp(torch.cat([-high, zero]), 0) + a + rest

    s = [2.0, 0.5, -1.0]
    assert gradient_of(mask_zero, s, torch.tensor([1, 0]))[0] == 0
    assert gradient_of(sparse_zlpr_loss, s, torch.tensor([1, -1]))[0] > 0.5


@pytest.mark.differs(
    "where-broadcast",
    source="bert4keras",
    theirs="From 20a4694 to f2652c8 (March 2023) `where(cond, x, y)` began with "
    "`y = broadcast_to(x)`: both branches were x.",
    ours="A mask that changes nothing is caught by one test with a masked cell.",
)
def test_void_mask():
    def broken_where(condition, x, y):
        y = x.expand(condition.shape)
        return torch.where(condition, x, y)

    keep = torch.tensor([True, True, False])
    s = tensor([0.3, -0.4, 9.0])
    fill = torch.full((3,), -math.inf, dtype=torch.float64)
    assert torch.equal(broken_where(keep, s, fill), s)  # nothing was masked
    y = torch.tensor([1, 0, 0])
    masked = zlpr_loss(s, y, mask=keep)
    assert torch.allclose(masked, zlpr_loss(s[:2], y[:2]))
    assert not torch.allclose(masked, zlpr_loss(broken_where(keep, s, fill), y))


# ---------------------------------------------------------------- half a million labels


@st.composite
def heads(draw):
    """States, weight, bias and the labels of each row."""
    rows, classes, width = (draw(st.integers(1, most)) for most in (3, 5, 3))

    def table(height, length):
        line = st.lists(scores(-2, 2), min_size=length, max_size=length)
        return draw(st.lists(line, min_size=height, max_size=height))

    labels = st.lists(st.integers(0, 1), min_size=classes, max_size=classes)
    y = draw(st.lists(labels, min_size=rows, max_size=rows))
    return table(rows, width), table(classes, width), table(1, classes)[0], y


def logit(h, w, b):
    return sum(x * v for x, v in zip(h, w, strict=True)) + b


def slope(s, y, i):
    """Gradient of the loss of one row with respect to score i."""
    if y[i]:
        return -exp(-s[i]) / (1 + mass_p(s, y))
    return exp(s[i]) / (1 + mass_n(s, y))


def head_gradients(h, w, b, y):
    s = [[logit(row, v, c) for v, c in zip(w, b, strict=True)] for row in h]
    g = [[slope(r, labels, i) for i, _ in enumerate(r)] for r, labels in zip(s, y, strict=True)]
    turned = list(zip(*g, strict=True))

    def product(left, right):
        columns = list(zip(*right, strict=True))
        return [[sum(a * b for a, b in zip(row, c, strict=True)) for c in columns] for row in left]

    return product(g, w), product(turned, h), [sum(column) for column in turned]


def unshared(h, w, b, y):
    """Each label's weight sees the last row alone."""
    states, _, biases = head_gradients(h, w, b, y)
    _, last, _ = head_gradients(h[-1:], w, b, y[-1:])
    return states, last, biases


def averaged(h, w, b, y):
    states, weights, biases = head_gradients(h, w, b, y)
    return states, weights, [v / len(h) for v in biases]


def swapped(h, w, b, y):
    """Positives are pushed, negatives pulled."""
    return head_gradients(h, w, b, [[1 - v for v in row] for row in y])


@pytest.mark.equation(
    "eq:zlpr-linear-gradient",
    kind="identity",
    source=STANDARD,
    hypotheses="any numbers of rows, labels and channels; any labels",
    right=head_gradients,
    wrong={
        "the weight sees one row": unshared,
        "the bias gets a mean": averaged,
        "positives and negatives change places": swapped,
    },
)
@given(heads().filter(lambda head: len(head[0]) > 1))
def test_gradients_of_a_head(form, check, head):
    h, w, b, y = head
    leaves = [torch.tensor(part, dtype=torch.float64, requires_grad=True) for part in (h, w, b)]
    lists = [[i if label else -1 for i, label in enumerate(row)] for row in y]
    logits = leaves[0] @ leaves[1].T + leaves[2]
    sparse_zlpr_loss(logits, torch.tensor(lists), reduction="sum").backward()
    found = linear_zlpr_loss(*leaves[:2], torch.tensor(lists), bias=leaves[2], reduction="sum")
    ours = torch.autograd.grad(found, leaves)
    for part, leaf, got in zip(form(h, w, b, y), leaves, ours, strict=True):
        check.equal(torch.tensor(part, dtype=torch.float64), leaf.grad, tol=1e-12)
        check.equal(got, leaf.grad, tol=1e-12)


def tile_sums(m, total, m2, total2):
    top = max(m, m2)
    return top, total * exp(m - top) + total2 * exp(m2 - top)


def one_side(m, total, m2, total2):
    top = max(m, m2)
    return top, total + total2 * exp(m2 - top)


@pytest.mark.equation(
    "eq:zlpr-tile-sums",
    kind="identity",
    source=STANDARD,
    hypotheses="two tiles, neither empty; scores up to 700 apart",
    right=tile_sums,
    wrong={
        "the first sum keeps its old scale": one_side,
        "the exponents have the wrong sign": lambda m, t, m2, t2: (
            max(m, m2),
            t * exp(min(700, max(m, m2) - m)) + t2 * exp(min(700, max(m, m2) - m2)),
        ),
        "the largest is added": lambda m, t, m2, t2: (m + m2, t + t2),
    },
)
@given(
    st.lists(scores(-300, 300), min_size=1, max_size=5),
    st.lists(scores(-300, 300), min_size=1, max_size=5),
)
def test_sums_of_two_tiles(form, check, one, other):
    def below(tile):
        return max(tile), sum(exp(v - max(tile)) for v in tile)

    top, total = form(*below(one), *below(other))
    exact = mp.log(mp.fsum(mp.exp(v) for v in one + other))
    check.true(1 <= total <= len(one + other) + 1e-9, f"a sum below the largest: {total}")
    check.equal(top + log(max(total, 1e-300)), exact, tol=1e-12)
