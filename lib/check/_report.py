"""What all exercises share: properties, and the report on the first that breaks."""

import copy
import math
import numbers
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Property", "Report", "Slip", "double", "examine"]

WIDTH = 76  # a cell's output is not to scroll on a page
DOUBLE, SINGLE = 1e-8, 1e-4  # how closely answers in float64 and in float32 must agree


@dataclass(frozen=True)
class Property:
    """One thing that must hold: what is said of it, where it is looked for, and what if not."""

    name: str
    inputs: Mapping[str, Any] | Sequence[Mapping[str, Any]]
    broken: str
    gradient: str = ""  # the input by which to differentiate; none: values are compared
    view: Callable[[Any], Any] | None = None  # what of an answer must agree; none: all of it


@dataclass(frozen=True)
class Slip:
    """A mistake that is often made: what to say of it, and a function that makes it."""

    sentence: str
    function: Callable[..., Any]


@dataclass(frozen=True, repr=False)
class Report:
    """What was looked at, and the first property that breaks. Print it, or ask for ``ok``.

    Attributes
    ----------
    exercise
        Name of the exercise.
    held
        Names of the properties that hold.
    broken
        Name of the first one that breaks; empty if all hold.
    sentence
        What is wrong, and often why; empty if all hold.
    evidence
        The input that shows it, what was expected and what was got, as text.

    Examples
    --------
    >>> from lib import check
    >>> report = check.nearest_end_spans(lambda starts, ends: [(a, max(ends)) for a in starts])
    >>> report.ok, report.broken
    (False, 'two spans apart')
    >>> report.evidence[-2:]
    (('expected', '[(0, 1), (3, 5)]'), ('got', '[(0, 5), (3, 5)]'))
    """

    exercise: str
    held: tuple[str, ...]
    broken: str = ""
    sentence: str = ""
    evidence: tuple[tuple[str, str], ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all properties hold."""
        return not self.broken

    def __repr__(self) -> str:
        """Write the report as lines that fit a page."""
        what = f"all {len(self.held)} properties hold" if self.ok else "not yet right"
        lines = [f"{self.exercise}: {what}.", *(f"  holds   {name}" for name in self.held)]
        if not self.ok:
            lines += [f"  breaks  {self.broken}", *textwrap.wrap(self.sentence, WIDTH)]
            wide = max(len(name) for name, _ in self.evidence)
            for name, text in self.evidence:
                indent = " " * (wide + 4)
                lines += textwrap.wrap(f"  {name:{wide}}  {text}", WIDTH, subsequent_indent=indent)
        return "\n".join(lines)


class _Wrong(Exception):
    """An answer that cannot be compared: what is wrong with it."""

    def __init__(self, sentence: str, got: str) -> None:
        super().__init__(sentence)
        self.sentence, self.got = sentence, got


def double(values: Any) -> Tensor:
    """Write numbers as a tensor of float64, whatever the default is."""
    return torch.as_tensor(values, dtype=torch.float64)


def examine(
    exercise: str,
    answer: Callable[..., Any],
    right: Callable[..., Any],
    properties: Sequence[Property],
    slips: Sequence[Slip],
    *,
    tolerance: float = DOUBLE,
) -> Report:
    """Look at one property after the other, up to the first that an answer breaks."""
    if not callable(answer):
        raise TypeError(f"answer must be a function, got {answer!r}")
    cases = [
        (item, inputs)
        for item in properties
        for inputs in ([item.inputs] if isinstance(item.inputs, Mapping) else item.inputs)
    ]
    held: dict[str, None] = {}  # in order, each name once
    for place, (item, inputs) in enumerate(cases):
        wanted = _wanted(right, item, inputs)
        evidence = [(name, _shown(value)) for name, value in inputs.items()]
        try:
            got = _answered(answer, inputs, item.gradient, wanted)
        except _Wrong as wrong:
            evidence += [("expected", _shown(wanted)), ("got", wrong.got)]
            held.pop(item.name, None)
            return Report(exercise, tuple(held), item.name, wrong.sentence, tuple(evidence))
        close = _allowed(wanted, got, inputs, tolerance)
        view = item.view or (lambda value: value)
        if not _agree(view(got), view(wanted), close):
            slip = _likeliest(slips, answer, right, cases, place, tolerance)
            sentence = slip.sentence if slip else f"{_if_nan(got, item.gradient)}{item.broken}"
            evidence += _difference(got, wanted, close)
            held.pop(item.name, None)
            return Report(exercise, tuple(held), item.name, sentence, tuple(evidence))
        held[item.name] = None
    return Report(exercise, tuple(held))


def _likeliest(
    slips: Sequence[Slip],
    answer: Callable[..., Any],
    right: Callable[..., Any],
    cases: Sequence[tuple[Property, Mapping[str, Any]]],
    place: int,
    tolerance: float,
) -> Slip | None:
    """Find the slip that gives the same wrong numbers, and is right where the answer was right.

    Several may: then it is the one that is like the answer on most inputs, those included that the
    answer has not been asked about yet.
    """
    asked = {}
    for k, (item, inputs) in enumerate(cases[: place + 100]):  # enough to tell them apart
        wanted = _wanted(right, item, inputs)
        try:
            got = _answered(answer, inputs, item.gradient, wanted)
        except _Wrong:
            continue  # it is not ready for what it has not been asked yet
        asked[k] = got, inputs, item.gradient, _allowed(wanted, got, inputs, tolerance)
    agreed: dict[Slip, int] = {}
    for slip in slips:
        if place in asked and _makes(slip, *asked[place]):
            seen = {k: _makes(slip, *case) for k, case in asked.items()}
            if all(same is not False for k, same in seen.items() if k < place):
                agreed[slip] = sum(same is True for same in seen.values())
    return max(agreed, key=agreed.__getitem__) if agreed else None


def _makes(slip: Slip, got: Any, inputs: Mapping[str, Any], by: str, close: float) -> bool | None:
    """Whether a slip gives just what was got; None where it cannot be made."""
    try:
        return _agree(got, _outcome(slip.function, inputs, by), close)
    except (ArithmeticError, RuntimeError, ValueError, LookupError, TypeError):
        return None


def _if_nan(got: Any, by: str) -> str:
    nan = bool(got.isnan().any()) if isinstance(got, Tensor) else got != got
    return f"Your {'gradient' if by else 'answer'} is NaN. " if nan else ""


# ---------------------------------------------------------------- calling


def _called(function: Callable[..., Any], inputs: Mapping[str, Any], by: str) -> tuple[Any, Any]:
    """Call with copies; give back the value, and the leaf by which to differentiate."""
    copies = {name: copy.deepcopy(value) for name, value in inputs.items()}
    leaf = None
    with torch.enable_grad():
        if by:
            leaf = copies[by].requires_grad_()
            copies[by] = leaf.clone()  # a leaf would refuse to be changed in words of PyTorch's
        value = function(*copies.values())
    for name, before in inputs.items():
        if not _same(copies[name], before):
            raise _Wrong(
                f"Your function changes its argument {name} in place. Work on a copy: whoever "
                f"calls it still needs the argument.",
                f"{name} = {_shown(copies[name])} after the call",
            )
    return value, leaf


def _slope(value: Tensor, leaf: Tensor) -> Tensor | None:
    """Differentiate the values, each with a weight of its own, so that none hides another."""
    if not value.requires_grad:
        return None
    weights = torch.linspace(1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
    (slope,) = torch.autograd.grad(value, leaf, weights, allow_unused=True)
    return slope


def _wanted(right: Callable[..., Any], item: Property, inputs: Mapping[str, Any]) -> Any:
    return _outcome(right, {k: _widened(v) for k, v in inputs.items()}, item.gradient)


def _outcome(function: Callable[..., Any], inputs: Mapping[str, Any], by: str) -> Any:
    value, leaf = _called(function, inputs, by)
    if not by:
        return value
    slope = _slope(value, leaf)
    return torch.zeros_like(leaf) if slope is None else slope


def _answered(answer: Callable[..., Any], inputs: Mapping[str, Any], by: str, wanted: Any) -> Any:
    """Call a reader's function, and say in plain words why its answer cannot be compared."""
    try:
        value, leaf = _called(answer, inputs, by)
    except _Wrong:
        raise
    except Exception as error:  # whatever a reader's function raises is told, not raised
        told = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        raise _Wrong(f"Your function raised {told}", "an error") from error
    if not by:
        return _received(value, wanted)
    if not isinstance(value, Tensor):
        raise _Wrong(*_no_tensor(value))
    try:
        slope = _slope(value, leaf)
    except RuntimeError as error:
        told = str(error).strip().splitlines()[0]
        raise _Wrong(f"The way back through your function raised {told}", "an error") from error
    if slope is None and bool((wanted != 0).any()):
        raise _Wrong(
            f"The values are right, but no gradient reaches {by}: a detach(), an item(), a "
            f"torch.tensor(...) or no_grad() cuts it off.",
            "no gradient",
        )
    # In the dtype of the value: the way back has as many digits as the way there.
    return torch.zeros_like(wanted) if slope is None else slope.to(value.dtype)


# ---------------------------------------------------------------- what comes back


def _no_tensor(value: Any) -> tuple[str, str]:
    if isinstance(value, numbers.Number):
        return (
            f"Your function returned the Python number {value:.4g}. Return a tensor: no "
            f"gradient flows back through a number.",
            _shown(value),
        )
    name = type(value).__name__
    return f"Your function returned {name}, where a tensor is asked for.", name


def _received(value: Any, wanted: Any) -> Any:
    """Bring an answer into the form of the right one, or say why that cannot be done."""
    if isinstance(wanted, Tensor):
        return _received_tensor(value, wanted)
    if isinstance(wanted, float):
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            name = type(value).__name__
            raise _Wrong(f"Your function returned {name}, not a number.", name) from error
    return _received_tuples(value, len(next(iter(wanted), ())))


def _received_tensor(value: Any, wanted: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise _Wrong(*_no_tensor(value))
    if value.shape != wanted.shape:
        have, want = tuple(value.shape), tuple(wanted.shape)
        if value.dim() < wanted.dim():
            why = "a sum or mean runs over one axis too many"
        elif value.dim() > wanted.dim():
            why = "a sum over one axis is missing"
        else:
            why = "a sum runs over the wrong axis"
        raise _Wrong(
            f"Your answer has the shape {have} instead of {want}: perhaps {why}.",
            f"shape {have}",
        )
    if value.dtype not in (torch.float32, torch.float64):
        kind = str(value.dtype).removeprefix("torch.")
        raise _Wrong(
            f"Your answer has the dtype {kind}. It must be float32 or float64, like the scores.",
            kind,
        )
    return value.detach()


def _received_tuples(value: Any, size: int) -> list[tuple[int, ...]]:
    """Sort what was found; the order in which it was found is free."""
    if not isinstance(value, (list, tuple, set, frozenset)):
        name = type(value).__name__
        raise _Wrong(f"Your function returned {name}: return a list or a set of tuples.", name)
    try:
        found = sorted(tuple(int(place) for place in item) for item in value)
    except (TypeError, ValueError) as error:
        raise _Wrong("What you return must be tuples of whole numbers.", _shown(value)) from error
    for item in found:
        if size and len(item) != size:
            raise _Wrong(
                f"Each tuple must have {size} numbers; {item} has {len(item)}.", _shown(value)
            )
        if found.count(item) > 1:
            raise _Wrong(f"You list {item} more than once.", _shown(value))
    return found


# ---------------------------------------------------------------- comparing and showing


def _widened(value: Any) -> Any:
    """Give the right answer what it needs to be right: float64."""
    return value.double() if _single(value) else value


def _single(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _same(one: Any, two: Any) -> bool:
    return torch.equal(one, two) if isinstance(one, Tensor) else bool(one == two)


def _allowed(wanted: Any, got: Any, inputs: Mapping[str, Any], tolerance: float) -> float:
    """How far numbers may be apart: a share of the largest that is wanted."""
    if any(_single(value) for value in (got, *inputs.values())):
        tolerance = max(tolerance, SINGLE)
    if not isinstance(wanted, (Tensor, float)):
        return tolerance
    values = torch.as_tensor(wanted).detach().abs()
    finite = values[values.isfinite()]
    return tolerance * ((float(finite.max()) if finite.numel() else 0.0) or 1.0)


def _agree(got: Any, wanted: Any, close: float) -> bool:
    if isinstance(wanted, Tensor):
        return got.shape == wanted.shape and not bool(_apart(got, wanted, close).any())
    if isinstance(wanted, float):
        return not bool(_apart(double(got), double(wanted), close))
    return sorted(got) == sorted(wanted)


def _apart(got: Tensor, wanted: Tensor, close: float) -> Tensor:
    got, wanted = got.detach().double(), wanted.detach().double()
    return ~torch.isclose(got, wanted, rtol=0.0, atol=close, equal_nan=True)


def _difference(got: Any, wanted: Any, close: float) -> Iterator[tuple[str, str]]:
    """Show both, or of a large tensor the first place where they part."""
    where = ""
    if isinstance(wanted, Tensor) and wanted.numel() > 12:
        apart = _apart(got, wanted, close).nonzero()
        place = tuple(apart[0].tolist()) if len(apart) else (0,) * wanted.dim()
        got, wanted, where = got[place], wanted[place], f" at {list(place)}"
    yield f"expected{where}", _shown(wanted)
    yield f"got{where}", _shown(got)


def _shown(value: Any) -> str:
    """Write a value in few characters."""
    if isinstance(value, Tensor):
        shape = " × ".join(map(str, value.shape))
        if value.numel() <= 12:
            return _shown(value.tolist())
        if value.dtype == torch.bool:
            return f"{shape} truth values, {int(value.sum())} of them true"
        low, high = (_shown(end.item()) for end in (value.min(), value.max()))
        return f"{shape} values from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, (float, list, tuple, set)):
        return str(value)
    if isinstance(value, float):
        return f"{value:.8g}" if math.isfinite(value) else str(value)
    left, right = {"list": ("[", "]"), "tuple": ("(", ")"), "set": ("{", "}")}[type(value).__name__]
    items = sorted(value) if isinstance(value, set) else list(value)
    shown = [_shown(item) for item in items[:12]] + ["…"] * (len(items) > 12)
    return f"{left}{', '.join(shown)}{right}"
