"""Argument checks and reductions that every loss shares.

Two kinds of check. Those on types, dtypes, devices and shapes cost nothing and always run, also
while a graph is traced. Those on *values* need the numbers: :func:`values_readable` says whether
there are any. Where there are none (``torch.compile``, ``torch.export``, ``make_fx``,
``torch.func`` transforms, CUDA graph capture) no Python error can depend on a value, and the losses
mark a bad row by the value NaN instead of raising.
"""

import operator
from contextlib import AbstractContextManager, nullcontext
from math import inf, isnan
from typing import Literal, SupportsIndex, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

__all__ = [
    "Reduction",
    "as_index",
    "check_classes",
    "check_floating",
    "check_indices",
    "check_labels",
    "check_logits",
    "check_mask",
    "check_reduction",
    "check_threshold",
    "compute_dtype",
    "has_nan",
    "in_transform",
    "no_autocast",
    "not_binary",
    "reduce",
    "values_readable",
]

Reduction = Literal["none", "mean", "sum"]

_PLAIN = (Tensor, torch.nn.Parameter)  # a subclass may stand for values elsewhere


def values_readable(*tensors: Tensor | None) -> bool:
    """Whether Python may branch on the values of these tensors, now.

    False while a graph is traced (``torch.compile``, ``torch.export``, ``make_fx``, any dispatch
    mode), inside a ``torch.func`` transform, for tensor subclasses that stand for values elsewhere,
    on the meta device, and while a CUDA graph is captured.
    """
    if torch.compiler.is_compiling():
        return False
    # Private, but no public name tells.
    if in_transform() or _get_current_dispatch_mode() is not None:
        return False
    on_cuda = False
    for tensor in tensors:
        if tensor is None:
            continue
        if type(tensor) not in _PLAIN or tensor.is_meta:
            return False
        # autograd.grad(is_grads_batched=True) batches in an older way, invisible to the above.
        if torch._C._functorch.is_legacy_batchedtensor(tensor):
            return False
        on_cuda |= tensor.is_cuda
    return not (on_cuda and torch.cuda.is_current_stream_capturing())


def in_transform() -> bool:
    """Whether a ``torch.func`` transform is at work; torch.autograd.Function asks the same way."""
    return bool(torch._C._are_functorch_transforms_active())


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype to compute in: at least single precision, so half-precision input goes up."""
    return torch.promote_types(dtype, torch.float32)


def no_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Keep autocast from sending the products of a loss to half precision.

    They are computed in :func:`compute_dtype` for a reason: small differences are lost in bfloat16.
    """
    # Autocast does not know the meta device, where nothing is computed anyway.
    kind = "cpu" if x.is_meta else x.device.type
    # It takes as long as some twenty small operations. A graph must have it, to be run anywhere.
    if not torch.compiler.is_compiling() and not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(kind, enabled=False)


def as_index(name: str, value: object) -> int:
    """Return ``value`` as an int: it is one, or has ``__index__`` as NumPy's integers do.

    A bool is refused, of Python, NumPy or PyTorch: it is a mistake, not a number. The size of a
    traced graph passes as it is, so that it does not become a constant.
    """
    if isinstance(value, int | torch.SymInt) and not isinstance(value, bool):
        return cast(int, value)
    boolean = isinstance(value, bool) or (isinstance(value, Tensor) and value.dtype == torch.bool)
    try:
        if not boolean:
            return operator.index(cast(SupportsIndex, value))
    except TypeError:
        pass
    raise TypeError(f"{name} must be an int, got {type(value).__name__}")


def check_threshold(name: str, threshold: float) -> None:
    """Raise unless ``threshold`` is a finite number."""
    if not -inf < threshold < inf:
        raise ValueError(f"{name} must be a finite number, got {threshold}")


def check_reduction(reduction: str) -> None:
    """Raise unless ``reduction`` is known."""
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction must be 'none', 'mean' or 'sum', got {reduction!r}")


def has_nan(result: Tensor) -> bool:
    """Whether a bad value has left its NaN in a result; one look, at a scalar if it is one."""
    return isnan(result.item()) if result.dim() == 0 else bool(result.isnan().any())


def reduce(values: Tensor, reduction: str, counts: Tensor | None = None) -> Tensor:
    """Reduce one value per position: ``none`` keeps them, ``mean`` and ``sum`` give a scalar.

    ``counts`` says which positions the mean is over; the others hold 0. The mean over nothing is 0.
    """
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    if counts is not None:
        return values.sum() / counts.sum().clamp(min=1)
    return values.mean() if values.numel() else values.sum()


def check_floating(name: str, tensor: object) -> None:
    """Raise unless ``tensor`` is one, of a floating-point dtype."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if not tensor.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating-point dtype, got {tensor.dtype}")


def check_logits(logits: Tensor) -> None:
    """Raise unless ``logits`` is a floating-point tensor ``(..., C)`` with at least one class."""
    check_floating("logits", logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(
            "logits must have shape (..., C) with at least 1 class, "
            f"got shape {tuple(logits.shape)}"
        )


def check_labels(name: str, labels: Tensor, logits: Tensor, of: str = "logits") -> None:
    """Raise unless ``labels`` is real-valued, of the logits' shape and on their device.

    ``of`` is what the caller calls its logits.
    """
    _check_tensor(name, labels)
    if labels.dtype.is_complex:
        raise TypeError(f"{name} must be bool or real, got {labels.dtype}")
    _check_device(name, labels, logits, of)
    if labels.shape != logits.shape:
        raise ValueError(
            f"{name} must have the shape of {of}, expected {tuple(logits.shape)}, "
            f"got {tuple(labels.shape)}"
        )


def check_indices(name: str, indices: Tensor, logits: Tensor, of: str = "logits") -> None:
    """Raise unless ``indices`` is int64 ``(..., K)`` with the logits' leading dimensions.

    ``of`` is what the caller calls its logits.
    """
    _check_tensor(name, indices)
    if indices.dtype != torch.int64:
        raise TypeError(f"{name} must have dtype torch.int64, got {indices.dtype}")
    _check_device(name, indices, logits, of)
    if indices.dim() != logits.dim() or indices.shape[:-1] != logits.shape[:-1]:
        lead = "".join(f"{size}, " for size in logits.shape[:-1])
        raise ValueError(
            f"{name} must have the leading dimensions of {of}, expected shape ({lead}K), "
            f"got {tuple(indices.shape)}"
        )


def check_classes(name: str, classes: Tensor, logits: Tensor) -> None:
    """Raise unless ``classes`` is int64 with one entry per row of ``logits``, on their device.

    Shape ``(...)`` for logits ``(..., C)``. Values are the caller's to check: what counts as one
    (an index to ignore, say) differs.
    """
    _check_tensor(name, classes)
    if classes.dtype != torch.int64:
        raise TypeError(f"{name} must have dtype torch.int64, got {classes.dtype}")
    _check_device(name, classes, logits)
    if classes.shape != logits.shape[:-1]:
        raise ValueError(
            f"{name} must have the leading dimensions of logits, expected shape "
            f"{tuple(logits.shape[:-1])}, got {tuple(classes.shape)}"
        )


def check_mask(mask: Tensor | None, logits: Tensor, of: str = "logits") -> Tensor | None:
    """Raise unless ``mask`` is bool and broadcasts to the logits; return it expanded to them.

    ``of`` is what the caller calls its logits.
    """
    if mask is None:
        return None
    _check_tensor("mask", mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must have dtype torch.bool, got {mask.dtype}")
    _check_device("mask", mask, logits, of)
    try:
        return mask.expand(logits.shape)
    except RuntimeError:
        raise ValueError(
            f"mask must broadcast to the shape of {of}, expected {tuple(logits.shape)}, "
            f"got {tuple(mask.shape)}"
        ) from None


def not_binary(labels: Tensor) -> Tensor:
    """Whether each row of ``labels`` holds a value other than exactly 0 and 1.

    Shape ``(..., C)`` to ``(...)``; any real dtype. The test is made in the labels' own dtype:
    ``1 + 1e-12`` in float64 is not 1. It is ``y - y * y == 0``, which NaN and infinity fail too,
    as a maximum of absolute values because that is one pass where ``all`` would be two.
    """
    if not labels.dtype.is_floating_point:
        return ((labels != 0) & (labels != 1)).any(-1)
    return ~((labels - labels * labels).abs_().amax(-1) == 0)


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")


def _check_device(name: str, tensor: Tensor, logits: Tensor, of: str = "logits") -> None:
    if tensor.device != logits.device:
        raise ValueError(
            f"{name} must be on the device of {of}, expected {logits.device}, got {tensor.device}"
        )
