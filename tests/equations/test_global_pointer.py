"""Checks of the numbered equations of chapter 4, in the order of the chapter.

Formulas are transcribed with loops; what they are compared with is computed another way: by
enumeration, by autograd on filled tables, by the library.
"""

import cmath
import itertools
import math
import re
from math import cos, exp, inf, log, sin, sqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.global_pointer import (
    EfficientGlobalPointer,
    GlobalPointer,
    apply_rope,
    factorised_spans,
    factorised_zlpr_loss,
    load_published_weights,
    streaming_zlpr_loss,
)
from lib.zlpr import zlpr_loss

KEXUE8265 = "Su 2021 (kexue 8265)"
KEXUE8373 = "Su 2021 (kexue 8373)"
KEXUE8877 = "Su 2022 (kexue 8877)"
KEXUE8888 = "Su 2022 (kexue 8888)"
OURS = "ours"

seeds = st.integers(0, 10**6)
lengths = st.integers(2, 6)


def draw(seed, *shape, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)


def numbers(seed, count):
    """Complex numbers."""
    return [complex(*pair) for pair in draw(seed, count, 2).tolist()]


def parts(seed, length, heads=2, scale=1.5):
    return (
        draw(seed, length, length, scale=scale),
        draw(seed + 1, heads, length, scale=scale),
        draw(seed + 2, heads, length, scale=scale),
    )


def cells_of(length):
    return [(i, j) for i in range(length) for j in range(i, length)]


def gold_of(seed, length, heads=2):
    """One to three gold cells of each head."""
    cells = cells_of(length)
    generator = torch.Generator().manual_seed(seed)
    return [
        {cells[k] for k in torch.randperm(len(cells), generator=generator)[:3].tolist()[: 1 + a]}
        for a in range(heads)
    ]


def lists_of(gold):
    most = max(map(len, gold))
    rows = [[list(c) for c in sorted(g)] + [[-1, -1]] * (most - len(g)) for g in gold]
    return torch.tensor(rows)[None]


def table(pair, start, end):
    return pair + start[:, :, None] + end[:, None, :]


def planes(x):
    return [complex(x[2 * m], x[2 * m + 1]) for m in range(len(x) // 2)]


def rotated(x, position):
    """RoPE of one vector, by loops."""
    size, out = len(x), []
    for m, z in enumerate(planes(x)):
        turned = z * cmath.exp(1j * position * 10000.0 ** (-2 * m / size))
        out += [turned.real, turned.imag]
    return torch.tensor(out, dtype=torch.float64)


# ---------------------------------------------------------------- 1 spans as labels


def fibonacci(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


@pytest.mark.equation(
    "eq:gp-flat",
    kind="identity",
    source=OURS,
    hypotheses="one type; L >= 1; the empty set counts",
    right=lambda n: fibonacci(2 * n + 1),
    wrong={
        "any set of spans": lambda n: 2 ** (n * (n + 1) // 2),
        "the index 2L": lambda n: fibonacci(2 * n),
    },
)
@pytest.mark.parametrize("length", [2, 3, 4])
def test_sets_of_disjoint_spans(form, check, length):
    cells = cells_of(length)
    count = 0
    for size in range(length + 1):
        for chosen in itertools.combinations(cells, size):
            count += all(b < c for (_, b), (c, _) in itertools.pairwise(sorted(chosen)))
    check.equal(form(length), count)


def f1_tables(y, h):
    return 2 * (y & h).sum() / (y.sum() + h.sum())


@pytest.mark.equation(
    "eq:gp-f1",
    kind="identity",
    source=KEXUE8373,
    hypotheses="at least one gold or chosen cell",
    right=f1_tables,
    wrong={"without the 2": lambda y, h: (y & h).sum() / (y.sum() + h.sum())},
)
@given(seeds)
def test_entity_f1(form, check, seed):
    y, h = draw(seed, 2, 4, 4) > 0, draw(seed + 1, 2, 4, 4) > 0
    y[0, 0, 0] = h[0, 0, 0] = True
    gold = {tuple(c) for c in y.nonzero().tolist()}
    said = {tuple(c) for c in h.nonzero().tolist()}
    precision, recall = len(gold & said) / len(said), len(gold & said) / len(gold)
    check.equal(form(y, h), 2 * precision * recall / (precision + recall), tol=1e-6)


def score(q, k, i, j, beta):
    one, other = rotated(q, i), rotated(k, j)
    return (one * other).sum() / sqrt(len(one)) + beta


@pytest.mark.equation(
    "eq:gp-score",
    kind="definition",
    source=KEXUE8373,
    hypotheses="d even",
    right=score,
    wrong={
        "not divided by the root of d": lambda q, k, i, j, beta: (
            rotated(q, i) @ rotated(k, j) + beta
        ),
        "the key is not rotated": lambda q, k, i, j, beta: rotated(q, i) @ k / sqrt(len(q)) + beta,
    },
)
@pytest.mark.differs(
    "pointer-scale",
    source=KEXUE8373,
    theirs="The formula of the score has no scale; the code divides by the root of d.",
    ours="The scale stands in the formula; without it the same weights give other scores.",
)
@given(seeds)
def test_pointer_score(form, check, seed):
    torch.manual_seed(seed)
    pointer = GlobalPointer(5, 2, 4, bias_start=-1.0).double()
    hidden = draw(seed, 3, 5)
    with torch.no_grad():
        scores = pointer(hidden[None])[0]
        rows = (hidden @ pointer.projection.weight.T + pointer.projection.bias).view(3, 2, 2, 4)
        for a, (i, j) in itertools.product(range(2), cells_of(3)):
            check.equal(form(rows[i, a, 0], rows[j, a, 1], i, j, -1.0), scores[a, i, j], tol=1e-6)


def head_loss(scores, gold, causal=True):
    low = high = 0.0
    for i, row in enumerate(scores.tolist()):
        for j, s in enumerate(row):
            if (i, j) in gold:
                high += exp(-s)
            elif i <= j or not causal:
                low += exp(s)
    return log(1 + low) + log(1 + high)


@pytest.mark.equation(
    "eq:gp-loss",
    kind="definition",
    source=KEXUE8373,
    hypotheses="gold cells count",
    right=head_loss,
    wrong={"cells below the diagonal count": lambda s, g: head_loss(s, g, causal=False)},
)
@given(seeds, lengths)
def test_loss_of_a_table(form, check, seed, length):
    scores, (gold, _) = draw(seed, length, length), gold_of(seed, length)
    keep = torch.ones(length, length, dtype=torch.bool).triu()
    y = torch.zeros(length, length, dtype=torch.bool)
    for cell in gold:
        y[cell] = True
    check.equal(form(scores, gold), zlpr_loss(scores.flatten(), y.flatten(), mask=keep.flatten()))


# ---------------------------------------------------------------- 2 rotary positions


@pytest.mark.equation(
    "eq:rope-goal",
    kind="identity",
    source=KEXUE8265,
    right=rotated,
    hypotheses="the map is RoPE, which attains the goal",
    wrong={"a position is added": lambda x, m: x + m * torch.arange(len(x))},
)
@given(seeds, st.integers(0, 9), st.integers(0, 9), st.integers(1, 9))
def test_products_see_differences(form, check, seed, m, n, shift):
    q, k = draw(seed, 2, 6)
    check.equal(form(q, m) @ form(k, n), form(q, m + shift) @ form(k, n + shift))
    check.equal(form(q, 0), q)
    x = torch.zeros(m + 1, 6, dtype=torch.float64)
    x[m] = q
    check.equal(form(q, m), apply_rope(x)[m])  # the map that the library computes


complex_maps = {
    "right": lambda q, m: q * cmath.exp(0.7j * m),
    "grows": lambda q, m: q * cmath.exp((0.1 + 0.7j) * m),
}


@pytest.mark.equation(
    "eq:rope-modulus",
    kind="identity",
    source=OURS,
    hypotheses="queries and keys share the map",
    right=complex_maps["right"],
    wrong={
        "a map that grows with the position": complex_maps["grows"],
        "a turn by the cube of the position": lambda q, m: q * cmath.exp(0.7j * m**3),
    },
)
@pytest.mark.differs(
    "rope-modulus",
    source=KEXUE8265,
    theirs="That lengths do not depend on the position is chosen as the simplest solution.",
    ours="It is forced when queries and keys share the map; a growing map breaks the identity.",
)
@given(seeds, st.integers(0, 20), st.integers(0, 20), st.integers(1, 20))
def test_lengths_are_kept(form, check, seed, m, n, shift):
    q, k = numbers(seed, 2)
    # The premise: products see differences only. Without it any turn keeps lengths.
    product, shifted = ((form(q, m + d) * form(k, n + d).conjugate()).real for d in (0, shift))
    check.equal(product, shifted)
    check.equal(abs(form(q, m)) * abs(form(k, m)), abs(q) * abs(k))
    check.equal(abs(form(q, m)), abs(q))


@pytest.mark.equation(
    "eq:rope-phase",
    kind="identity",
    source=KEXUE8265,
    hypotheses="phases are read modulo a full turn",
    right=lambda m, theta: m * theta,
    wrong={
        "the square of the position": lambda m, theta: m * m * theta,
        "counted from 1": lambda m, theta: (m + 1) * theta,
    },
)
@given(seeds, st.integers(1, 20))
def test_phase_is_arithmetic(form, check, seed, m):
    q, k = numbers(seed, 2)
    theta = 0.31

    def f(z, n):
        return z * cmath.exp(1j * form(n, theta))

    check.equal(f(q, 0).real, q.real)
    step = f(q, m) * f(k, m - 1).conjugate()
    first = f(q, 1) * f(k, 0).conjugate()
    check.equal([step.real, step.imag], [first.real, first.imag])
    turned = q * k.conjugate() * cmath.exp(1j * theta)
    check.equal([first.real, first.imag], [turned.real, turned.imag])


@pytest.mark.equation(
    "eq:rope-solution",
    kind="identity",
    source=KEXUE8265,
    right=lambda q, m, theta: q * cmath.exp(1j * m * theta),
    wrong={"turned backwards": lambda q, m, theta: q * cmath.exp(-1j * m * theta)},
)
@given(seeds, st.integers(0, 5))
def test_rotation_of_a_plane(form, check, seed, m):
    x = draw(seed, 6, 4)
    rope = apply_rope(x)[m]
    for plane, q in enumerate(planes(x[m])):
        turned = form(q, m, 10000.0 ** (-2 * plane / 4))
        check.equal([turned.real, turned.imag], rope[2 * plane : 2 * plane + 2])


@pytest.mark.equation(
    "eq:rope-growth",
    kind="identity",
    source=OURS,
    hypotheses="separate maps of queries and keys",
    right=(0.2, -0.2),
    wrong={"queries and keys both grow": (0.2, 0.2)},
)
@given(seeds, st.integers(0, 9), st.integers(0, 9))
def test_growth_that_cancels(form, check, seed, m, n):
    q, k = numbers(seed, 2)
    up, down = form
    theta = 0.5
    got = q * cmath.exp((up + 1j * theta) * m)
    got *= (k * cmath.exp((down + 1j * theta) * n)).conjugate()
    want = q * k.conjugate() * cmath.exp((0.2 + 1j * theta) * (m - n))
    check.equal([got.real, got.imag], [want.real, want.imag])


def rotation(position, size=6):
    return torch.stack([rotated(row, position) for row in torch.eye(size)], 1)


@pytest.mark.equation(
    "eq:rope-matrix",
    kind="identity",
    source=KEXUE8265,
    right=lambda i, j: rotation(j - i),
    wrong={
        "the difference the other way round": lambda i, j: rotation(i - j),
        "the sum": lambda i, j: rotation(i + j),
    },
)
@given(st.integers(1, 9), st.integers(1, 9))
def test_rotations_join(form, check, i, j):
    j += i  # a difference that is not 0
    check.equal(rotation(i).T @ rotation(j), form(i, j))
    check.equal(rotation(i).T @ rotation(i), torch.eye(6))


def partial_sums(r, count):
    sums, total = [], 0j
    for m in range(count):
        total += cmath.exp(1j * r * 10000.0 ** (-m / count))
        sums.append(total)
    return sums


def abel(h, r):
    return sum(s * (a - b) for s, a, b in zip(partial_sums(r, len(h)), h, [*h[1:], 0], strict=True))


@pytest.mark.equation(
    "eq:rope-abel",
    kind="identity",
    source=KEXUE8265,
    hypotheses="h is 0 behind its end",
    right=abel,
    wrong={
        "the last term is forgotten": lambda h, r: abel(h, r) - partial_sums(r, len(h))[-1] * h[-1]
    },
)
@given(seeds, st.integers(1, 8), st.integers(-9, 9))
def test_summation_by_parts(form, check, seed, count, r):
    h = numbers(seed, count)
    direct = sum(v * cmath.exp(1j * r * 10000.0 ** (-m / count)) for m, v in enumerate(h))
    check.equal([form(h, r).real, form(h, r).imag], [direct.real, direct.imag])


def decay(h, r):
    steps = [abs(a - b) for a, b in zip(h, [*h[1:], 0], strict=True)]
    return max(steps) * sum(map(abs, partial_sums(r, len(h))))


@pytest.mark.equation(
    "eq:rope-decay",
    kind="inequality",
    source=KEXUE8265,
    hypotheses="equality for a single plane, and for steps of one length against the sums' phases",
    right=decay,
    wrong={
        "the largest step without the last one": lambda h, r: (
            max([abs(a - b) for a, b in itertools.pairwise(h)], default=0.0)
            * sum(map(abs, partial_sums(r, len(h))))
        )
    },
)
@given(seeds, st.integers(1, 8), st.integers(-9, 9))
def test_decay_bound(form, check, seed, count, r):
    h = numbers(seed, count)
    check.at_most(abs(abel(h, r)), form(h, r), slack=1e-12)
    check.equal(abs(abel(h[:1], r)), form(h[:1], r))
    # Equality for any number of planes, too: steps of one length, each against its sum's phase.
    steps = [s.conjugate() / abs(s) if s else 1.0 for s in partial_sums(r, count)]
    worst = [sum(steps[m:]) for m in range(count)]
    check.equal(abs(abel(worst, r)), form(worst, r))


@pytest.mark.equation(
    "eq:gp-prior-mean",
    kind="identity",
    source=OURS,
    hypotheses="i != j; states take h and -h with equal probability, independently",
    right=lambda bq, bk, i, j, beta: (bq[:, None] * rotation(j - i, 4) * bk).sum() / sqrt(4) + beta,
    wrong={
        "no rotation: one constant for all lengths": lambda bq, bk, i, j, beta: bq @ bk / 2 + beta,
        "no biases": lambda bq, bk, i, j, beta: torch.tensor(beta),
    },
)
@pytest.mark.differs(
    "biases-for-brevity",
    source=KEXUE8877,
    theirs="Leaves the biases of queries and keys out of the formulas, for brevity.",
    ours="They are a learnt prior over span lengths; without them the mean score is a constant.",
)
@given(seeds, st.integers(0, 3), st.integers(1, 3))
def test_mean_score_is_a_prior(form, check, seed, i, length):
    wq, wk, (bq, bk, hi, hj) = draw(seed, 4, 4), draw(seed + 1, 4, 4), draw(seed + 2, 4, 4)
    j = i + length
    total = 0.0
    for a, b in itertools.product((-1, 1), repeat=2):
        total += score(wq @ (a * hi) + bq, wk @ (b * hj) + bk, i, j, -2.0) / 4
    check.equal(form(bq, bk, i, j, -2.0), total)


def odd_part(bq, bk, r):
    products = [x * y.conjugate() for x, y in zip(planes(bq), planes(bk), strict=True)]
    d = 2 * len(products)
    return (
        2
        / sqrt(d)
        * sum(
            abs(c) * sin(r * 10000.0 ** (-2 * m / d)) * sin(cmath.phase(c))
            for m, c in enumerate(products)
        )
    )


@pytest.mark.equation(
    "eq:gp-prior-odd",
    kind="identity",
    source=OURS,
    right=odd_part,
    wrong={
        "the sign of the phase": lambda bq, bk, r: odd_part(bk, bq, r),
        "without the 2": lambda bq, bk, r: odd_part(bq, bk, r) / 2,
    },
)
@given(seeds, st.integers(1, 9))
def test_prior_has_a_direction(form, check, seed, r):
    bq, bk = draw(seed, 2, 6)

    def prior(n):
        return float(bq @ rotation(n, 6) @ bk) / sqrt(6)

    check.equal(form(bq, bk, r), prior(r) - prior(-r))


# ---------------------------------------------------------------- 3 the efficient pointer


@pytest.mark.equation(
    "eq:gp-efficient",
    kind="definition",
    source=KEXUE8877,
    hypotheses="b and c as the library computes them",
    right=lambda q, k, b, c, i, j: score(q, k, i, j, 0.0) + b[i] + c[j],
    wrong={
        "start and end exchanged": lambda q, k, b, c, i, j: score(q, k, i, j, 0.0) + b[j] + c[i],
        "not divided by the root of d": lambda q, k, b, c, i, j: (
            2 * score(q, k, i, j, 0.0) + b[i] + c[j]
        ),
    },
)
@given(seeds)
def test_efficient_score(form, check, seed):
    torch.manual_seed(seed)
    pointer = EfficientGlobalPointer(5, 2, 4).double()
    hidden = draw(seed, 3, 5)
    with torch.no_grad():
        scores, (_, start, end) = pointer(hidden[None])[0], pointer.parts(hidden[None])
        rows = hidden @ pointer.projection.weight.T + pointer.projection.bias
        for a, (i, j) in itertools.product(range(2), cells_of(3)):
            q, k = rows[i, :4], rows[j, 4:]
            check.equal(form(q, k, start[0, a], end[0, a], i, j), scores[a, i, j], tol=1e-6)


def params(D, d, H):
    return 2 * d * H * (D + 1), 2 * d * (D + 1) + 2 * H * (2 * d + 1)


@pytest.mark.equation(
    "eq:gp-params",
    kind="identity",
    source=KEXUE8877,
    right=params,
    wrong={
        "weights without biases, as in the article": lambda D, d, H: (
            2 * d * H * D,
            2 * d * D + 4 * d * H,
        )
    },
)
@pytest.mark.parametrize("sizes", [(8, 4, 3), (6, 2, 1), (5, 6, 9)])
def test_parameters(form, check, sizes):
    D, d, H = sizes

    def count(kind):
        return sum(p.numel() for p in kind(D, H, d).parameters())

    check.equal(form(D, d, H), (count(GlobalPointer), count(EfficientGlobalPointer)))


@pytest.mark.equation(
    "eq:gp-params-ratio",
    kind="limit",
    source=OURS,
    right=lambda D, d: d * (D + 1) / (2 * d + 1),
    wrong={"half the hidden size": lambda D, d: D / 2},
)
def test_ratio_of_parameters(form, check):
    heads = [10**6, 10**7, 10**8]
    errors = []
    for H in heads:
        a, b = params(768, 64, H)
        errors.append(abs(a / b - form(768, 64)))
    check.rate([1 / H for H in heads], errors, 1, within=0.01)


@pytest.mark.equation(
    "eq:gp-difference",
    kind="identity",
    source=OURS,
    right=lambda b, c, i, j: b[0, i] - b[1, i] + c[0, j] - c[1, j],
    wrong={"the ends are not compared": lambda b, c, i, j: b[0, i] - b[1, i] + c[0, j]},
)
@given(seeds, lengths)
def test_types_differ_additively(form, check, seed, length):
    pair, start, end = parts(seed, length)
    scores = table(pair, start, end)
    for i, j in cells_of(length):
        check.equal(form(start, end, i, j), scores[0, i, j] - scores[1, i, j])


@pytest.mark.equation(
    "eq:gp-length-blind",
    kind="identity",
    source=OURS,
    right=lambda d: (d[0, 1] + d[1, 2], d[0, 2] + d[1, 1]),
    wrong={"cells that are no rectangle": lambda d: (d[0, 1] + d[1, 2], d[0, 2] + d[0, 0])},
)
@given(seeds, st.integers(3, 6))
def test_length_alone_decides_no_type(form, check, seed, length):
    scores = table(*parts(seed, length))
    left, right = form(scores[0] - scores[1])
    check.equal(left, right)


# ---------------------------------------------------------------- 4 factorised


def log_bilinear(pair, b, c):
    W = pair.exp().triu()
    return torch.log((b.exp()[:, None] * W * c.exp()).sum())


@pytest.mark.equation(
    "eq:gp-factorised",
    kind="identity",
    source=OURS,
    hypotheses="finite scores; the triangle counts",
    right=log_bilinear,
    wrong={
        "W transposed": lambda pair, b, c: log_bilinear(pair, c, b),
        "masked scores set to 0, not masked weights": lambda pair, b, c: torch.log(
            b.exp() @ pair.triu().exp() @ c.exp()
        ),
    },
)
@given(seeds, lengths)
def test_log_sum_is_bilinear(form, check, seed, length):
    pair, start, end = parts(seed, length)
    scores = table(pair, start, end)
    for a in range(2):
        cells = torch.stack([scores[a, i, j] for i, j in cells_of(length)])
        check.equal(form(pair, start[a], end[a]), torch.logsumexp(cells, 0))


@pytest.mark.equation(
    "eq:gp-cost",
    kind="identity",
    source=OURS,
    right=lambda H, n: (H * n * n, n * n + 2 * H * n),
    wrong={"the pair table is counted per head": lambda H, n: (H * n * n, H * (n * n + 2 * n))},
)
@pytest.mark.parametrize(("heads", "length"), [(9, 128), (33, 64)])
def test_number_of_exponentials(form, check, heads, length):
    """As PyTorch's profiler counts them, in sizes for which the library does not fill tables."""
    pair, start, end = parts(3, length, heads, scale=0.5)
    none = torch.full((1, heads, 1, 2), -1)

    def exponentials(run):
        with torch.profiler.profile(record_shapes=True) as seen:
            run()
        return sum(
            math.prod(event.input_shapes[0])
            for event in seen.events()
            if re.fullmatch("aten::exp2?_?", event.name)
        )

    check.equal(
        form(heads, length),
        [
            exponentials(lambda: table(pair, start, end).exp().sum((1, 2)).log()),
            exponentials(lambda: factorised_zlpr_loss(pair[None], start[None], end[None], none)),
        ],
    )


def product_gradient(pair, b, c, g, transpose=True):
    u, v, W = b.exp(), c.exp(), pair.exp().triu()
    Z = torch.einsum("ai,ij,aj->a", u, W, v)
    weight = (g / Z)[:, None]
    return (
        W * ((weight * u).T @ v),
        weight * u * (v @ W.T),
        weight * v * (u @ (W if transpose else W.T)),
    )


def log_sums(pair, start, end):
    keep = torch.ones_like(pair, dtype=torch.bool).triu()
    return table(pair, start, end).masked_fill(~keep, -inf).flatten(1).logsumexp(1)


@pytest.mark.equation(
    "eq:gp-factorised-gradient",
    kind="gradient",
    source=OURS,
    right=product_gradient,
    wrong={
        "W instead of its transpose for the ends": lambda *a: product_gradient(*a, transpose=False),
        "g is not divided by Z": lambda pair, b, c, g: product_gradient(
            pair, b, c, g * log_sums(pair, b, c).exp()
        ),
    },
)
@given(seeds, lengths)
def test_gradient_is_products(form, check, seed, length):
    leaves = [p.requires_grad_() for p in parts(seed, length)]
    g = draw(seed + 9, 2)
    want = torch.autograd.grad(log_sums(*leaves), leaves, g)
    for got, grad in zip(form(*[p.detach() for p in leaves], g), want, strict=True):
        check.equal(got, grad)
    moved = [p.detach().clone() for p in leaves]  # and by finite differences, one entry of A
    moved[0][0, 1] += 1e-5
    low = [p.detach().clone() for p in leaves]
    low[0][0, 1] -= 1e-5
    check.equal(
        form(*[p.detach() for p in leaves], g)[0][0, 1],
        ((log_sums(*moved) - log_sums(*low)) @ g) / 2e-5,
        tol=1e-6,
    )


@pytest.mark.equation(
    "eq:gp-marginals",
    kind="identity",
    source=OURS,
    right=lambda g: (g, g, g.sum()),
    wrong={"the shared table gets the mean of the heads": lambda g: (g, g, g.mean())},
)
@given(seeds, lengths)
def test_masses_of_the_parts(form, check, seed, length):
    leaves = [p.requires_grad_() for p in parts(seed, length)]
    g = draw(seed + 9, 2)
    pair, start, end = torch.autograd.grad(log_sums(*leaves), leaves, g)
    by_start, by_end, by_pair = form(g)
    check.equal(start.sum(1), by_start)
    check.equal(end.sum(1), by_end)
    check.equal(pair.sum(), by_pair)


def clipped(s):
    """The published subtraction with the guard at work, one positive and no negatives."""
    zero = s.new_zeros(1)
    a = torch.logsumexp(torch.cat([s, zero]), 0)
    return a + math.log(1e-7) + torch.logsumexp(torch.cat([-s, zero]), 0)


@pytest.mark.equation(
    "eq:gp-clipped",
    kind="gradient",
    source=KEXUE8888,
    hypotheses="the guard is active; negatives at minus infinity",
    right=lambda s: math.tanh(s / 2),
    wrong={
        "the true gradient": lambda s: -1 / (1 + exp(s)),
        "tanh s": lambda s: math.tanh(s),
    },
)
@pytest.mark.differs(
    "pointer-ceiling",
    source=KEXUE8888,
    theirs="The sum over negatives is the sum over all less the positives, with a clip.",
    ours="The clip pushes gold spans down; in bfloat16 their scores stay near 3, by cancellation, "
    "before the clip acts. Rows with a gold cell are summed without it.",
)
@given(st.floats(0.5, 30))
def test_gradient_under_the_guard(form, check, s):
    x = torch.tensor([s], dtype=torch.float64, requires_grad=True)
    clipped(x).backward()
    check.equal(form(s), x.grad[0])


@pytest.mark.differs(
    "pointer-published-rows",
    source="bert4torch a9dc244, bert4keras c1ae0dc",
    theirs="The second layer of the efficient pointer alternates: start and end of each head in "
    "bert4torch, end and start in bert4keras, which takes queries from even channels, too.",
    ours="All starts, then all ends. The shapes are the same, so weights load in silence and score "
    "wrongly; `load_published_weights` puts them in order.",
)
def test_published_rows_alternate():
    torch.manual_seed(0)
    pointer = EfficientGlobalPointer(8, 3, 4, causal=False).double()
    hidden, (w1, b1, w2, b2) = draw(0, 6, 8), pointer.state_dict().values()

    def theirs(row, column, query, key):
        both = hidden @ w1.T + b1
        pair = rotated_rows(both[:, query]) @ rotated_rows(both[:, key]).T / sqrt(4)
        of_head = (both @ w2.T + b2).T / 2
        return pair + of_head[row].unsqueeze(2) + of_head[column].unsqueeze(1)

    even, odd = slice(None, None, 2), slice(1, None, 2)
    published = {
        "bert4torch": theirs(even, odd, slice(4), slice(4, 8)),
        "bert4keras": theirs(odd, even, even, odd),
    }
    given_weights = {
        "bert4torch": {"p_dense.weight": w1, "p_dense.bias": b1}
        | {"q_dense.weight": w2, "q_dense.bias": b2},
        "bert4keras": [w1.T, b1, w2.T, b2],
    }
    for source, scores in published.items():
        loaded = EfficientGlobalPointer(8, 3, 4, causal=False).double()
        load_published_weights(loaded, given_weights[source], source=source)
        assert (loaded(hidden[None])[0] - scores).abs().max() < 1e-6
        assert (pointer(hidden[None])[0] - scores).abs().max() > 0.5, source  # in their order


def rotated_rows(x):
    return torch.stack([rotated(row, i) for i, row in enumerate(x)])


def split_rows(pair, b, c, gold, drop=True):
    length, total = len(pair), 1.0
    opened = {i for i, _ in gold} if drop else set()
    T = pair.exp().triu() @ c.exp()
    for i in range(length):
        if i not in opened:
            total += float(b[i].exp() * T[i])
        else:
            total += sum(
                exp(pair[i, j] + b[i] + c[j]) for j in range(i, length) if (i, j) not in gold
            )
    low = sum(exp(-(pair[i, j] + b[i] + c[j])) for i, j in gold)
    return log(total) + log(1 + low)


@pytest.mark.equation(
    "eq:gp-factorised-loss",
    kind="identity",
    source=OURS,
    hypotheses="gold cells count",
    right=split_rows,
    wrong={
        "the gold cells stay in the sum": lambda *a: split_rows(*a, drop=False),
        "whole rows with a gold cell are left out": lambda p, b, c, g: split_rows(
            p.clone().index_fill_(0, torch.tensor(sorted({i for i, _ in g})), -60.0), b, c, g
        ),
    },
)
@given(seeds, lengths)
def test_loss_from_rows(form, check, seed, length):
    pair, start, end = parts(seed, length)
    gold = gold_of(seed, length)
    scores = table(pair, start, end)
    library = factorised_zlpr_loss(
        pair[None], start[None], end[None], lists_of(gold), causal=True, reduction="none"
    )[0]
    for a in range(2):
        check.equal(form(pair, start[a], end[a], gold[a]), head_loss(scores[a], gold[a]))
        check.equal(library[a], head_loss(scores[a], gold[a]))


def shifted_row(pair, b, c, i):
    row = pair[i, i:]
    rho, top = row.max(), c.max()
    T = sum(exp(a - rho) * exp(v - top) for a, v in zip(row, c[i:], strict=True))
    return b[i] + rho + top + log(T), T


@pytest.mark.equation(
    "eq:gp-row-shift",
    kind="identity",
    source=OURS,
    hypotheses="the row has a counting cell; T <= L with equality for equal scores",
    right=shifted_row,
    wrong={
        "the shift of the ends is taken off twice": lambda pair, b, c, i: (
            shifted_row(pair, b, c, i)[0] - 2 * c.max(),
            shifted_row(pair, b, c, i)[1],
        )
    },
)
@given(seeds, lengths)
def test_shifted_rows(form, check, seed, length):
    pair, start, end = parts(seed, length)
    for i in range(length):
        value, T = form(pair, start[0], end[0], i)
        cells = (pair[i] + start[0, i] + end[0])[i:]
        check.equal(value, torch.logsumexp(cells, 0))
        check.at_most(T, length)
    flat = torch.zeros(length, length), torch.zeros(length), torch.zeros(length)
    check.equal(form(*flat, 0)[1], length)


@pytest.mark.equation(
    "eq:gp-underflow",
    kind="identity",
    source=OURS,
    hypotheses="L = 2, A = 0, b = (0, G), c = (G, 0), triangle",
    right=lambda gap: gap + math.log(2 + exp(-gap)),
    wrong={
        "the masked cell counts": lambda gap: 2 * gap,
        "one cell of the two": lambda gap: gap,
    },
)
@given(st.floats(1, 300))
def test_separate_maxima_meet_on_a_masked_cell(form, check, gap):
    b, c = torch.tensor([0.0, gap]), torch.tensor([gap, 0.0])
    none = torch.full((1, 1, 1, 2), -1)
    ours = factorised_zlpr_loss(
        torch.zeros(1, 2, 2), b[None, None], c[None, None], none, causal=True
    )
    check.equal(log(1 + exp(form(gap))), ours, tol=1e-6)
    if gap > 104:
        naive = (b - b.max()).exp() @ torch.ones(2, 2).triu() @ (c - c.max()).exp()
        check.equal(naive, 0.0)


@pytest.mark.equation(
    "eq:gp-repair-error",
    kind="inequality",
    source=OURS,
    hypotheses="L^2 < 2^t; equality when every cell stands at the bound and none is kept",
    right=lambda n, t: -math.log1p(-(n**2) * 2.0**-t),
    wrong={"one cell per row": lambda n, t: -math.log1p(-n * 2.0**-t)},
)
@given(seeds, st.integers(2, 8), st.integers(1, 2**30))
def test_what_unopened_rows_cost(form, check, seed, length, null):
    """In float32 products: 2^-75 times 2^-75 is lost, as half of the smallest number is."""
    half = torch.full((length, length), 2.0**-75)
    # The null class in units of the smallest number, some cells lost and some kept.
    generator = torch.Generator().manual_seed(seed)
    kept = 2.0 ** torch.randint(1, 20, (length, length), generator=generator)
    kept *= torch.rand(length, length, generator=generator) < 0.5
    for factor in (torch.ones(length, length), torch.where(kept > 0, kept, 1.0)):
        cells = half * (half * factor)
        exact = half.double() * (half * factor).double()
        computed = null * 2.0**-149 + float(cells.double().sum())
        true = null * 2.0**-149 + float(exact.sum())
        lost = exact[cells == 0]
        t = math.log2(true / 2.0**-150)  # each lost cell is at most 2^-t of the whole
        check.true((cells.double() == exact)[cells > 0].all(), "kept cells are kept whole")
        check.at_most(0.0, log(true / computed))
        check.at_most(log(true / computed), form(length, t), slack=1e-12)
        if len(lost) == length**2:
            check.equal(log(true / computed), form(length, t), tol=1e-12)
    # The library in float32, with so many heads that it takes products. In each row the largest
    # pair score and the largest end score stand at different ends: no row keeps anything.
    heads = 2**17 // length**2 + 1
    pair = torch.full((1, length, length), -200.0)
    pair[..., 0] = 0.0
    end = torch.full((1, heads, length), -200.0)
    end[..., -1] = 0.0
    start = 205.0 + torch.rand(1, heads, length, generator=generator)
    losses = factorised_zlpr_loss(
        pair, start, end, torch.full((1, heads, 1, 2), -1), reduction="none"
    )
    scores = table(pair[0], start[0], end[0]).double()
    whole = torch.logaddexp(scores.flatten(1).logsumexp(1), torch.zeros(()).double())
    check.equal(losses[0], whole, tol=form(length, 30 + 2 * math.log2(length)) + 1e-6)


# ---------------------------------------------------------------- 5 streaming, decoding


def join(one, other):
    (m, z), (n, w) = one, other
    top = max(m, n)
    return top, z * exp(m - top) + w * exp(n - top)


@pytest.mark.equation(
    "eq:gp-streaming",
    kind="identity",
    source="standard",
    hypotheses="begun with the null class (0, 1)",
    right=join,
    wrong={
        "old sums are not rescaled": lambda a, b: (max(a[0], b[0]), a[1] + b[1]),
        "the new maximum replaces the old": lambda a, b: (b[0], join(a, b)[1]),
    },
)
@given(seeds, lengths)
def test_summaries_join(form, check, seed, length):
    none = torch.full((1, 1, 1, 2), -1)
    for scale in (1.0, 1000.0):  # with large scores no other shift will do
        q, k = draw(seed, 2, 1, 1, length, 4)
        q = scale * q
        scores = (q @ k.mT)[0, 0]
        for order in (range(length), reversed(range(length))):
            state = (0.0, 1.0)
            for i in order:
                row = scores[i, i:]
                state = form(state, (float(row.max()), float((row - row.max()).exp().sum())))
            check.equal(state[0] + log(state[1]), streaming_zlpr_loss(q, k, none, causal=True))


def tile_gradient(q, k, null=1.0):
    scores = (q @ k.T).exp().triu()
    p = scores / (null + scores.sum())
    return p @ k, p.T @ q


@pytest.mark.equation(
    "eq:gp-streaming-gradient",
    kind="gradient",
    source="standard",
    hypotheses="no gold cell in the sum",
    right=tile_gradient,
    wrong={
        "without the null class": lambda q, k: tile_gradient(q, k, null=0.0),
        "rows and columns exchanged": lambda q, k: tile_gradient(k, q)[::-1],
    },
)
@given(seeds, lengths)
def test_gradient_of_a_tile(form, check, seed, length):
    q, k = (x.requires_grad_() for x in draw(seed, 2, 1, 1, length, 4))
    none = torch.full((1, 1, 1, 2), -1)
    streaming = streaming_zlpr_loss(q, k, none, causal=True)
    got = torch.autograd.grad(streaming, (q, k))
    by_query, by_key = form(q.detach()[0, 0], k.detach()[0, 0])
    check.equal(by_query, got[0][0, 0])
    check.equal(by_key, got[1][0, 0])


def bounds(pair, b, c, i, j):
    row = max(pair[i, x] for x in range(i, len(pair))) + b[i] + c.max()
    column = max(pair[y, j] for y in range(j + 1)) + b.max() + c[j]
    return torch.stack([row, column])


@pytest.mark.equation(
    "eq:gp-prune",
    kind="inequality",
    source=OURS,
    hypotheses="maxima over counting cells; equality where the cell has all maxima",
    right=bounds,
    wrong={
        "the smallest end score": lambda pair, b, c, i, j: (
            bounds(pair, b, c, i, j) - torch.stack([c.max() - c.min(), torch.zeros(())])
        )
    },
)
@given(seeds, lengths)
def test_pruning_loses_nothing(form, check, seed, length):
    pair, start, end = parts(seed, length)
    scores = table(pair, start, end)
    spans = factorised_spans(pair[None], start[None], end[None], causal=True)
    chosen = {tuple(c[1:]) for c in spans.cells.tolist()}
    for a, (i, j) in itertools.product(range(2), cells_of(length)):
        above = bool(scores[a, i, j] > 0)
        check.equal({(a, i, j)} & chosen, {(a, i, j)} if above else set())
        row, column = form(pair, start[a], end[a], i, j)
        check.at_most(scores[a, i, j], torch.stack([row, column]), slack=1e-12)
        # One bound for a whole row, one for a whole column.
        check.equal(row, form(pair, start[a], end[a], i, i)[0])
        check.equal(column, form(pair, start[a], end[a], j, j)[1])
    zero = torch.zeros(length)
    check.equal(form(torch.ones(length, length), zero, zero, 0, 1), [1.0, 1.0])


@pytest.mark.equation(
    "eq:gp-prune-rounding",
    kind="inequality",
    source=OURS,
    hypotheses="rounding to nearest; both sides summed in the same order",
    right=lambda rho, b, top: (rho + b) + top,
    wrong={"another order of summation": lambda rho, b, top: rho + (b + top)},
)
def test_rounded_bounds_hold(form, check):
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 20000, generator=generator) * torch.tensor([[1.0], [1e4], [1.0]])
    # Bounds that equal the cell's own parts are the hardest.
    check.equal((a + b) + c, form(a, b, c), tol=0.0)
    up, top = torch.rand(2, 20000, generator=generator) * 1e-3
    check.at_most((a + b) + c, form(a + up, b, c + top))


def test_cosines_of_the_prior():
    """The prior of chapter 9 and the mean of chapter 4 are one function."""
    bq, bk = draw(1, 2, 4)
    for r in range(4):
        waves = sum(
            abs(c) * cos(r * 10000.0 ** (-2 * m / 4) - cmath.phase(c))
            for m, c in enumerate(
                x * y.conjugate() for x, y in zip(planes(bq), planes(bk), strict=True)
            )
        )
        assert abs(waves - float(bq @ rotation(r, 4) @ bk)) < 1e-12
