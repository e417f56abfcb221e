"""What the functions of this module ask of their arguments, said in their arguments' names."""

from math import inf

from torch import Tensor

from lib import _checks, _refusals

__all__ = [
    "check_scores",
    "checked_gamma",
    "checked_subset_size",
    "index_of",
    "refuse_nan",
]

_LARGEST_GAMMA = 1e30  # beyond it, or below its inverse, single precision has no room


def check_scores(name: str, scores: object, dim: object) -> tuple[int, int]:
    """Raise unless there is a score along ``dim``; return ``dim`` as an int, and how many."""
    _checks.check_floating(name, scores)
    assert isinstance(scores, Tensor)  # for the type checker
    dim = _checks.as_index("dim", dim)
    if not -scores.dim() <= dim < scores.dim():
        raise IndexError(
            f"dim must be a dimension of {name}, got {dim} for shape {tuple(scores.shape)}"
        )
    if scores.shape[dim] == 0:
        raise ValueError(
            f"{name} must hold at least 1 entry along dim {dim}, got shape {tuple(scores.shape)}"
        )
    return dim, scores.shape[dim]


def checked_gamma(gamma: float | Tensor) -> float | Tensor:
    """Raise unless ``gamma`` is a number that leaves single precision some room; return it."""
    if isinstance(gamma, Tensor):
        if gamma.dim() or not gamma.dtype.is_floating_point:
            raise TypeError(
                "gamma must be a number or a floating tensor without dimensions, "
                f"got {gamma.dtype} of shape {tuple(gamma.shape)}"
            )
        if not _checks.values_readable(gamma):
            return gamma
        value = gamma.item()
    elif isinstance(gamma, bool) or not isinstance(gamma, int | float):
        raise TypeError(f"gamma must be a number, got {type(gamma).__name__}")
    else:
        value = gamma = float(gamma)
    if not 1 / _LARGEST_GAMMA <= value <= _LARGEST_GAMMA:
        raise ValueError(f"gamma must be from 1e-30 to 1e30, got {value:g}")
    return gamma


def checked_subset_size(k: object, size: int) -> int:
    """Raise unless there can be a subset of ``k`` out of ``size`` scores; return ``k``."""
    k = _checks.as_index("k", k)
    if not 0 <= k <= size:
        raise ValueError(f"k must be from 0 to the number of scores, {size}, got {k}")
    return k


def refuse_nan(result: Tensor, name: str, scores: Tensor, mask: Tensor | None) -> None:
    """Name the bad score behind a result that is NaN, if values can be read."""
    if not _checks.values_readable(scores, mask) or not bool(result.isnan().any()):
        return
    bad = scores.isnan() | (scores == inf)
    if mask is not None:
        bad &= mask
    place = _refusals.first_true(bad)
    raise ValueError(
        f"{name} must be finite or -inf where they count, got {scores[place].item()} "
        f"at {name}{index_of(place)}"
    )


def index_of(place: tuple[int, ...]) -> str:
    """Write an index as Python would; nothing for the only entry of a scalar."""
    return f"[{', '.join(map(str, place))}]" if place else ""
