"""The comparisons of the ``check`` fixture, and what they record."""

import math
from fractions import Fraction

import mpmath as mp
import numpy as np
import pytest
import torch

from tools.ledger.compare import Check

INF, NAN = math.inf, math.nan


@pytest.fixture
def check():
    """Return a fresh one: here it is what is tested."""
    return Check()


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (1.0, 1),
        (1e6 + 1e-5, 1e6),
        (INF, torch.tensor(INF)),
        (-INF, mp.mpf("-inf")),
        (torch.ones(2, 3, requires_grad=True), np.ones((2, 3))),
        ((torch.tensor(1.0), mp.mpf(2)), [1, Fraction(2)]),
        ([torch.zeros(2), torch.ones(2)], [[0, 0], [1, 1]]),
        (torch.tensor([True, False]), [1, 0]),
        (torch.tensor(1.5, dtype=torch.bfloat16), 1.5),
        (1 + 2j, 1 + 2j),
        (2**80, 2**80),
        ([], []),
        ({(0, 1)}, {(0, 1)}),
        ("text", "text"),
    ],
)
def test_equal_passes(check, actual, expected):
    check.equal(actual, expected)


@pytest.mark.parametrize(
    ("actual", "expected", "message"),
    [
        (1.0, 1.1, r"residual 0.0909 > tolerance 1e-10 at the value: got 1, expected 1.1"),
        ([0, [1]][0], [0], r"shapes differ: got \(\), expected \(1,\)"),
        ([[1, 2], [3, NAN]], [[1, 2], [3, 4]], r"residual inf .* at index \(1, 1\): got nan"),
        (NAN, NAN, "residual inf"),
        (INF, -INF, "residual inf"),
        (INF, 1e308, "residual inf"),
        (mp.mpf(1), mp.mpf("nan"), "residual inf"),
        (torch.tensor([1, 0]), torch.tensor([True, True]), r"index \(1,\)"),
        ({(0, 1)}, {(1, 0)}, "not equal"),
        ([1], {1}, "not equal"),
    ],
)
def test_equal_fails(check, actual, expected, message):
    with pytest.raises(AssertionError, match=message):
        check.equal(actual, expected)


def test_equal_keeps_the_precision_of_its_numbers(check):
    with mp.workdps(50):
        tiny = mp.mpf(10) ** -40
        check.equal(1 + tiny, mp.mpf(1), tol=1e-39)
        with pytest.raises(AssertionError, match="residual 1e-40 > tolerance 1e-41"):
            check.equal(1 + tiny, mp.mpf(1), tol=1e-41)


def test_equal_records_what_came_nearest_to_its_tolerance(check):
    check.equal(1 + 2e-12, 1, tol=1e-10)
    check.equal(1 + 1e-4, 1, tol=1)
    check.equal(1, 1, tol=1e-30)
    assert check.measured.residual == pytest.approx(2e-12, rel=1e-3)
    assert check.measured.tolerance == 1e-10
    assert check.measured.used == ["equal"]


def test_at_most_records_the_smallest_margin(check):
    check.at_most([1, 2, -INF], 5)
    check.at_most(INF, INF)
    assert check.measured.margin == 0
    check.at_most(1.5, 1, slack=0.5)
    assert check.measured.margin == -0.5


@pytest.mark.parametrize(("lhs", "rhs"), [(1.1, 1), ([0, NAN], 1), (0, NAN), (INF, 1)])
def test_at_most_fails(check, lhs, rhs):
    with pytest.raises(AssertionError, match="not at most"):
        check.at_most(lhs, rhs)


def test_rate_is_a_slope(check):
    steps = [0.1, 0.01, 0.001]
    check.rate(steps, [3 * h**2 for h in steps], order=2)
    assert check.measured.order == pytest.approx(2)
    with pytest.raises(AssertionError, match=r"with order 2, not 1 ± 0\.1"):
        check.rate(steps, [h**2 for h in steps], order=1)


@pytest.mark.parametrize("errors", [[1.0, 0.0], [1.0, NAN], [1.0, INF], [-1.0, 1.0]])
def test_rate_needs_positive_errors(check, errors):
    with pytest.raises(AssertionError, match="positive finite"):
        check.rate([0.1, 0.01], errors, order=1)


def test_rate_needs_two_steps(check):
    with pytest.raises(AssertionError, match="two steps or more, got 1"):
        check.rate([0.1], [0.1], order=1)


def test_true(check):
    check.true(np.bool_(True), "unused")
    with pytest.raises(AssertionError, match=r"^the sets differ$"):
        check.true(False, "the sets differ")
