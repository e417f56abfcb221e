"""Weights of pointers that were trained with bert4torch or bert4keras."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lib.global_pointer.heads import EfficientGlobalPointer, GlobalPointer

__all__ = ["load_published_weights"]

_Source = Literal["bert4torch", "bert4keras"]


@torch.no_grad()
def load_published_weights(
    pointer: GlobalPointer | EfficientGlobalPointer,
    weights: Mapping[str, Tensor] | Sequence[Any],
    *,
    source: _Source,
) -> None:
    """Give a pointer the weights of a published one, so that it gives the same scores.

    The rows of the two layers of an efficient pointer stand in another order there, see Notes; its
    weights fit in shape and would be taken by ``load_state_dict`` without a word.

    Parameters
    ----------
    pointer
        Of the published pointer's sizes; its `rope` and `causal` must be theirs (``RoPE``,
        ``tril_mask``). Changed in place, with dtype and device kept.
    weights
        bert4torch: the ``state_dict()`` of its layer, with the names ``dense.weight``, or
        ``p_dense.weight`` and ``q_dense.weight``, and as many with ``bias``. bert4keras: the arrays
        that ``layer.get_weights()`` gives.
    source
        ``"bert4torch"`` or ``"bert4keras"``.

    Raises
    ------
    TypeError
        ``pointer`` is neither of the two.
    ValueError
        ``source`` is unknown; names, number or shapes of the weights are not those of the source.
        Nothing is changed then.

    Notes
    -----
    Where the source has no biases (``use_bias``), and for the start value of a
    :class:`GlobalPointer` with `bias_start`, which neither source has, they become 0.

    Here the second layer gives all start scores, then all end scores. bert4torch gives start and
    end of one head after the other, bert4keras end and start; bert4keras also takes queries from
    the even and keys from the odd channels of the first layer.

    Source: bert4torch a9dc244, bert4keras c1ae0dc.

    Examples
    --------
    >>> pointer = EfficientGlobalPointer(4, heads=2, head_size=2)
    >>> theirs = {
    ...     "p_dense.weight": torch.zeros(4, 4), "p_dense.bias": torch.ones(4),
    ...     "q_dense.weight": torch.zeros(4, 4), "q_dense.bias": torch.arange(4.0),
    ... }
    >>> load_published_weights(pointer, theirs, source="bert4torch")
    >>> pointer.head_scores.bias.tolist()
    [0.0, 2.0, 1.0, 3.0]
    """
    if not isinstance(pointer, GlobalPointer | EfficientGlobalPointer):
        raise TypeError(
            "pointer must be a GlobalPointer or an EfficientGlobalPointer, "
            f"got {type(pointer).__name__}"
        )
    if source not in get_args(_Source):
        raise ValueError(f"source must be 'bert4torch' or 'bert4keras', got {source!r}")
    targets = [pointer.projection]
    if efficient := isinstance(pointer, EfficientGlobalPointer):
        targets.append(pointer.head_scores)
    names = ("p_dense", "q_dense") if efficient else ("dense",)
    wide = 2 * pointer.head_size
    outer = wide if efficient else pointer.heads * wide
    shapes = [(outer, pointer.hidden_size), (2 * pointer.heads, wide)][: len(names)]
    if isinstance(weights, Mapping) != (source == "bert4torch"):
        kind = "a mapping of names" if source == "bert4torch" else "a sequence of arrays"
        raise ValueError(
            f"weights must be {kind} for source {source!r}, got {type(weights).__name__}"
        )
    if isinstance(weights, Mapping):
        layers = list(_of_mapping(weights, names, shapes))
    else:
        layers = list(_of_sequence(weights, names, shapes))
    if efficient and source == "bert4torch":
        layers[1] = (_apart(layers[1][0]), _apart(layers[1][1]))
    elif efficient:
        weight, bias = layers[1]
        # Even channels before odd ones in what the first layer gives and the second reads; and end
        # scores, the even ones, behind start scores.
        layers[0] = (_apart(layers[0][0]), _apart(layers[0][1]))
        weight, bias = _apart(_apart(weight.T).T), _apart(bias)
        layers[1] = (weight.roll(pointer.heads, 0), bias.roll(pointer.heads, 0))
    for target, (weight, bias) in zip(targets, layers, strict=True):
        target.weight.copy_(weight)
        target.bias.copy_(bias)
    if isinstance(pointer, GlobalPointer) and pointer.bias is not None:
        pointer.bias.zero_()


def _apart(rows: Tensor) -> Tensor:
    """Put the even rows, from 0 on, before the odd ones."""
    return torch.cat((rows[::2], rows[1::2]))


def _of_mapping(
    weights: Mapping[str, Tensor], names: Sequence[str], shapes: Sequence[tuple[int, int]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Read weight and bias of each layer from a state dict."""
    needed = {f"{name}.weight" for name in names}
    known = needed | {f"{name}.bias" for name in names}
    if not needed <= set(weights) <= known:
        raise ValueError(f"weights must have the names {sorted(known)}, got {sorted(weights)}")
    for name, shape in zip(names, shapes, strict=True):
        yield _layer(name, weights[f"{name}.weight"], weights.get(f"{name}.bias"), shape)


def _of_sequence(
    weights: Sequence[Any], names: Sequence[str], shapes: Sequence[tuple[int, int]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Read weight and bias of each layer from arrays, whose kernels are transposed."""
    arrays = [torch.as_tensor(array) for array in weights]
    if len(arrays) not in (len(names), 2 * len(names)):
        raise ValueError(
            f"weights must be {len(names)} kernels, each with its bias or none, got {len(arrays)}"
        )
    biased = len(arrays) == 2 * len(names)
    for number, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        kernel, bias = (arrays[2 * number : 2 * number + 2]) if biased else (arrays[number], None)
        yield _layer(name, kernel.mT if kernel.dim() == 2 else kernel, bias, shape)


def _layer(
    name: str, weight: Tensor, bias: Tensor | None, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    bias = weight.new_zeros(shape[0]) if bias is None else bias
    if tuple(weight.shape) != shape or tuple(bias.shape) != shape[:1]:
        raise ValueError(
            f"weights of {name} must have shapes {shape} and {shape[:1]}, out before in, "
            f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
        )
    return weight, bias
