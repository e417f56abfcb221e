"""Checks and small tools that the losses, the decoding and the modules share."""

from math import inf, nan
from typing import NamedTuple

import torch
from torch import Tensor

from lib import _checks, _refusals

__all__ = [
    "Shape",
    "check_mask",
    "check_parts",
    "check_positives",
    "check_scores",
    "keep_cells",
    "kind",
    "losses_without_cells",
    "refuse_infinite",
    "refuse_positives",
    "upcast",
    "wrong_positives",
]


class Shape(NamedTuple):
    """Sizes of a stack of tables."""

    batch: int
    heads: int
    length: int


def kind(value: object) -> str:
    """Name a value's type, for a message."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__


def upcast(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 as they are."""
    return x.to(_checks.compute_dtype(x.dtype))


def keep_cells(shape: Shape, mask: Tensor | None, causal: bool, like: Tensor) -> Tensor | None:
    """Bool ``(1 or B, L, L)``, True on the cells that count; None where all do."""
    keep = None
    if causal:
        keep = torch.ones(shape.length, shape.length, dtype=torch.bool, device=like.device)
        keep = keep.triu_().unsqueeze(0)
    if mask is not None:
        pairs = mask.unsqueeze(2) & mask.unsqueeze(1)
        keep = pairs if keep is None else pairs & keep
    return keep


def losses_without_cells(positives: Tensor, *scores: Tensor) -> Tensor:
    """Loss of each head of tables without a cell: 0, NaN with a positive; gradients are zeros."""
    nothing = torch.stack([upcast(part).flatten()[:0].sum() for part in scores]).sum()
    wrong = (positives != -1).flatten(2).any(-1)
    return nothing.expand(wrong.shape).masked_fill(wrong, nan)


def check_scores(name: str, scores: Tensor, expected: tuple[object, ...], like: Tensor) -> None:
    """Raise unless ``scores`` is a floating tensor of that shape, dtype and device."""
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {kind(scores)}")
    if scores.dtype != like.dtype:
        raise TypeError(f"{name} must share one dtype, expected {like.dtype}, got {kind(scores)}")
    if scores.device != like.device:
        raise ValueError(
            f"{name} must be on the same device, expected {like.device}, got {scores.device}"
        )
    if tuple(scores.shape) != expected:
        raise ValueError(f"{name} must have shape {expected}, got {tuple(scores.shape)}")


def check_parts(
    pair_scores: Tensor, start_scores: Tensor, end_scores: Tensor, keys: Tensor | None = None
) -> Shape:
    """Raise unless the parts fit together: ``(B, L, L)``, ``(B, H, L)``, ``(B, H, L)``.

    With keys, the first are queries, both ``(B, L, d)``.
    """
    first, letters = ("pair_scores", "(B, L, L)") if keys is None else ("queries", "(B, L, d)")
    for name, scores, expected in (
        (first, pair_scores, letters),
        ("start_scores", start_scores, "(B, H, L)"),
    ):
        if not isinstance(scores, Tensor) or not scores.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {kind(scores)}")
        if scores.dim() != 3:
            raise ValueError(f"{name} must have shape {expected}, got {tuple(scores.shape)}")
    batch, length = pair_scores.shape[:2]
    shape = Shape(batch, start_scores.shape[1], length)
    if keys is None:
        check_scores("pair_scores", pair_scores, (batch, length, length), pair_scores)
    else:
        check_scores("keys", keys, tuple(pair_scores.shape), pair_scores)
    check_scores("start_scores", start_scores, shape, pair_scores)
    check_scores("end_scores", end_scores, shape, pair_scores)
    return shape


def check_mask(mask: Tensor | None, shape: Shape, like: Tensor) -> None:
    """Raise unless ``mask`` is None or bool ``(B, L)`` on the device of the scores."""
    if mask is None:
        return
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        raise TypeError(f"mask must be a bool tensor, got {kind(mask)}")
    if mask.device != like.device:
        raise ValueError(
            f"mask must be on the same device, expected {like.device}, got {mask.device}"
        )
    if tuple(mask.shape) != (shape.batch, shape.length):
        raise ValueError(
            f"mask must have shape {(shape.batch, shape.length)}, got {tuple(mask.shape)}"
        )


def check_positives(positives: Tensor, shape: Shape, like: Tensor) -> None:
    """Raise unless ``positives`` is int64 ``(B, H, K, 2)`` on the device of the scores."""
    if not isinstance(positives, Tensor) or positives.dtype != torch.int64:
        raise TypeError(f"positives must be a torch.int64 tensor, got {kind(positives)}")
    if positives.device != like.device:
        raise ValueError(
            f"positives must be on the same device, expected {like.device}, got {positives.device}"
        )
    lead = tuple(positives.shape[:2])
    if positives.dim() != 4 or lead != (shape.batch, shape.heads) or positives.shape[3] != 2:
        raise ValueError(
            f"positives must have shape ({shape.batch}, {shape.heads}, K, 2), "
            f"got {tuple(positives.shape)}"
        )


def wrong_positives(
    positives: Tensor, mask: Tensor | None, causal: bool, length: int
) -> tuple[Tensor, Tensor]:
    """Which positives ``(B, H, K)`` are no cells, and which are none or do not count."""
    i, j = positives.unbind(-1)
    filler = (i == -1) & (j == -1)
    outside = ~filler & ((positives < 0) | (positives >= length)).any(-1)
    bad = outside | (i > j) if causal else outside
    if mask is not None and length:
        rows = torch.arange(len(positives), device=positives.device)[:, None, None]
        counts = mask[rows, i.clamp(0, length - 1)] & mask[rows, j.clamp(0, length - 1)]
        bad = bad | ~(filler | counts)
    return outside, bad


def refuse_positives(positives: Tensor, mask: Tensor | None, causal: bool, length: int) -> None:
    """Raise if a positive is no cell, or one that does not count. Reads values."""
    outside, bad = wrong_positives(positives, mask, causal, length)
    if not bool(bad.any()):
        return
    at = _refusals.first_true(bad)
    cell, place = tuple(positives[at].tolist()), _refusals.place("positives", at)
    if outside[at]:
        raise ValueError(
            f"positives must lie in [0, {length}), or be (-1, -1) as filler, got {place} = {cell}"
        )
    if causal and cell[0] > cell[1]:
        raise ValueError(f"positives must have start <= end under causal, got {place} = {cell}")
    off = next(position for position in cell if mask is not None and not mask[at[0], position])
    raise ValueError(
        f"a positive must be on a cell that counts, got {place} = {cell} "
        f"and mask[{at[0]}, {off}] = False"
    )


def refuse_infinite(**tensors: Tensor) -> None:
    """Raise if a tensor holds a value that is not finite. Reads values."""
    for name, values in tensors.items():
        if values.numel() == 0:
            continue
        least, most = values.aminmax()  # both NaN if one is
        if not bool((least > -inf) & (most < inf)):
            at = _refusals.first_true(~values.isfinite())
            raise ValueError(
                f"{name} must be finite where they count, got {values[at].item()} "
                f"at {_refusals.place(name, at)}"
            )
