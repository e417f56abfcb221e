"""The comparisons of the ``check`` fixture, which record how well an equation held."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Check", "Measured"]

Array = np.ndarray[Any, Any]
EXACT = (str, bytes, set, frozenset, dict, type(None))


@dataclass
class Measured:
    """The worst of what the comparisons of one test saw."""

    used: list[str] = field(default_factory=list)
    residual: float | None = None
    tolerance: float | None = None
    margin: float | None = None
    order: float | None = None


class Check:
    """Compare numbers, and keep the worst of what was seen over all examples of a test."""

    def __init__(self) -> None:
        self.measured = Measured()

    def equal(self, actual: Any, expected: Any, tol: float = 1e-10) -> None:
        """Assert that two numbers or arrays agree to ``tol``, relative to ``max(1, |expected|)``.

        Floats, tensors, arrays, mpmath numbers and nested lists of them; the shapes must agree.
        NaN never agrees; infinities of one sign do. Sets, strings and dictionaries must be equal.
        """
        self._use("equal")
        if isinstance(expected, EXACT):
            same = type(actual) is type(expected) and actual == expected
            self._residual(0.0 if same else math.inf, tol)
            assert same, f"not equal: got {actual!r}, expected {expected!r}"
            return
        got, want = _array(actual), _array(expected)
        assert got.shape == want.shape, f"shapes differ: got {got.shape}, expected {want.shape}"
        if not got.size:
            return
        errors = _errors(got, want)
        place = int(errors.argmax())
        self._residual(float(errors[place]), tol)
        assert errors[place] <= tol, (
            f"residual {errors[place]:.3g} > tolerance {tol:.3g} at {_where(place, got)}: "
            f"got {_show(got.flat[place])}, expected {_show(want.flat[place])}"
        )

    def at_most(self, lhs: Any, rhs: Any, slack: float = 0.0) -> None:
        """Assert ``lhs <= rhs + slack`` everywhere; the smallest ``rhs - lhs`` is the margin."""
        self._use("at_most")
        left, right = np.broadcast_arrays(_array(lhs), _array(rhs))
        if not left.size:
            return
        gaps = _gaps(left, right)
        place = int(gaps.argmin())
        seen = self.measured.margin
        self.measured.margin = min(math.inf if seen is None else seen, float(gaps[place]))
        assert gaps[place] >= -slack, (
            f"not at most: {_show(left.flat[place])} > {_show(right.flat[place])} "
            f"by {-gaps[place]:.3g} (slack {slack:.3g}) at {_where(place, left)}"
        )

    def rate(self, steps: Any, errors: Any, order: float, within: float = 0.1) -> None:
        """Assert that the errors shrink like ``steps**order``: least-squares slope of the logs."""
        self._use("rate")
        pairs = np.array([_floats(steps), _floats(errors)])
        assert pairs.shape[1] >= 2, f"a rate needs two steps or more, got {pairs.shape[1]}"
        assert bool(np.all((pairs > 0) & np.isfinite(pairs))), (
            f"a rate needs positive finite steps and errors, got {pairs.tolist()}"
        )
        steps_log, errors_log = np.log(pairs) - np.log(pairs).mean(axis=1, keepdims=True)
        slope = float(steps_log @ errors_log / (steps_log @ steps_log))
        seen = self.measured.order
        if seen is None or abs(slope - order) > abs(seen - order):
            self.measured.order = slope
        assert abs(slope - order) <= within, (
            f"the errors shrink with order {slope:.3g}, not {order:.3g} ± {within:.3g}"
        )

    def true(self, condition: Any, message: str) -> None:
        """Assert a condition that is not a comparison of numbers."""
        self._use("true")
        assert bool(condition), message

    def _use(self, name: str) -> None:
        if name not in self.measured.used:
            self.measured.used.append(name)

    def _residual(self, residual: float, tol: float) -> None:
        """Keep the residual that came closest to its tolerance, or went furthest beyond it."""
        seen = self.measured
        if (
            seen.residual is None
            or seen.tolerance is None
            or (residual * seen.tolerance >= seen.residual * tol)
        ):
            seen.residual, seen.tolerance = residual, tol


def _array(value: Any) -> Array:
    """Return an array: float64 for tensors and NumPy, Python objects for mpmath and the like."""
    if hasattr(value, "detach"):  # a tensor, known without importing torch
        value = value.detach().cpu()
        value = value.double().numpy() if value.is_floating_point() else value.numpy()
    elif isinstance(value, Iterable) and not isinstance(value, np.ndarray):
        value = [_array(part) for part in value]
    array = np.asarray(value)
    return array.astype(float) if array.dtype.kind in "biu" else array


def _floats(value: Any) -> list[float]:
    return [float(number) for number in _array(value).flat]


def _errors(actual: Array, expected: Array) -> Array:
    """Return errors relative to ``max(1, |expected|)``, flat, in the numbers' own precision."""
    actual, expected = np.atleast_1d(actual, expected)  # no Python integer leaves its array
    with np.errstate(all="ignore"):
        size = np.abs(expected)
        errors = np.abs(actual - expected) / np.where(size > 1, size, 1)
    errors = np.where(actual == expected, 0.0, errors).astype(float).ravel()
    return np.where(np.isnan(errors), math.inf, errors)


def _gaps(lhs: Array, rhs: Array) -> Array:
    """Return ``rhs - lhs``, flat: 0 between equal infinities, -inf where one is not a number."""
    with np.errstate(all="ignore"):
        gaps = np.where(lhs == rhs, 0.0, rhs - lhs).astype(float).ravel()
    return np.where(np.isnan(gaps), -math.inf, gaps)


def _where(place: int, array: Array) -> str:
    index = tuple(int(i) for i in np.unravel_index(place, array.shape))
    return f"index {index}" if index else "the value"


def _show(number: Any) -> str:
    """Return a number in so many digits that a message stays readable."""
    try:
        return f"{float(number):.8g}"
    except (TypeError, ValueError):  # a complex or symbolic number
        return str(number)
