"""Weights of bert4torch and bert4keras, against transcriptions of their forward passes."""

import math

import numpy as np
import pytest
import torch

from lib.global_pointer import EfficientGlobalPointer, GlobalPointer, load_published_weights

D, H, SIZE = 7, 3, 4


def turned(x):
    """Rotary positions of ``(..., L, d)`` as both libraries write them, in complex numbers."""
    length, size = x.shape[-2:]
    frequencies = 10000.0 ** (-torch.arange(0, size, 2, dtype=x.dtype) / size)
    angles = torch.arange(length, dtype=x.dtype)[:, None] * frequencies
    planes = torch.complex(x[..., ::2], x[..., 1::2]) * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(planes).flatten(-2)


def hidden_below(scores, causal):
    below = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(-1)
    return scores.masked_fill(below, -math.inf) if causal else scores


def linear(x, weight, bias):
    return x @ weight.mT + (0 if bias is None else bias)


def torch_standard(state, x, rope, causal):
    """bert4torch: the outputs in H pieces, of each the first half a query."""
    pieces = linear(x, state["dense.weight"], state.get("dense.bias")).chunk(H, -1)
    tables = []
    for piece in pieces:
        query, key = piece[..., :SIZE], piece[..., SIZE:]
        if rope:
            query, key = turned(query), turned(key)
        tables.append(hidden_below(query @ key.mT / SIZE**0.5, causal))
    return torch.stack(tables, 1)


def torch_efficient(state, x, rope, causal):
    """bert4torch: the second layer in H pieces of two, for the row and for the column."""
    both = linear(x, state["p_dense.weight"], state.get("p_dense.bias"))
    query, key = both[..., :SIZE], both[..., SIZE:]
    pieces = linear(both, state["q_dense.weight"], state.get("q_dense.bias")).chunk(H, -1)
    if rope:
        query, key = turned(query), turned(key)
    pair = query @ key.mT / SIZE**0.5
    tables = [
        pair + piece[..., 0].unsqueeze(2) / 2 + piece[..., 1].unsqueeze(1) / 2 for piece in pieces
    ]
    return hidden_below(torch.stack(tables, 1), causal)


def keras_standard(arrays, x, rope, causal):
    state = {"dense.weight": arrays[0].mT}
    if len(arrays) == 2:
        state["dense.bias"] = arrays[1]
    return torch_standard(state, x, rope, causal)


def keras_efficient(arrays, x, rope, causal):
    """bert4keras: even channels are queries; even outputs of the second layer are for columns."""
    kernels, biases = (arrays[::2], arrays[1::2]) if len(arrays) == 4 else (arrays, (None, None))
    both = linear(x, kernels[0].mT, biases[0])
    query, key = both[..., ::2], both[..., 1::2]
    bias = linear(both, kernels[1].mT, biases[1]).mT / 2
    if rope:
        query, key = turned(query), turned(key)
    pair = query @ key.mT / SIZE**0.5
    scores = pair.unsqueeze(1) + bias[:, ::2].unsqueeze(2) + bias[:, 1::2].unsqueeze(3)
    return hidden_below(scores, causal)


def drawn(*shape):
    return torch.randn(shape, dtype=torch.float64) / 2


def layers(efficient):
    return [(2 * SIZE, D), (2 * H, 2 * SIZE)] if efficient else [(2 * SIZE * H, D)]


def torch_weights(efficient, biased):
    state = {}
    names = ("p_dense", "q_dense") if efficient else ("dense",)
    for name, shape in zip(names, layers(efficient), strict=True):
        state[f"{name}.weight"] = drawn(*shape)
        if biased:
            state[f"{name}.bias"] = drawn(shape[0])
    return state


def keras_weights(efficient, biased):
    arrays = []
    for rows, columns in layers(efficient):
        arrays += [drawn(columns, rows), drawn(rows)] if biased else [drawn(columns, rows)]
    return arrays


FORWARD = {
    ("bert4torch", GlobalPointer): torch_standard,
    ("bert4torch", EfficientGlobalPointer): torch_efficient,
    ("bert4keras", GlobalPointer): keras_standard,
    ("bert4keras", EfficientGlobalPointer): keras_efficient,
}
MAKE = {"bert4torch": torch_weights, "bert4keras": keras_weights}
KINDS = (GlobalPointer, EfficientGlobalPointer)


@pytest.mark.parametrize("source", MAKE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_scores_are_the_published_ones(source, kind, biased, rope, causal):
    torch.manual_seed(0)
    weights = MAKE[source](kind is EfficientGlobalPointer, biased)
    x = drawn(2, 5, D)
    expected = FORWARD[source, kind](weights, x, rope, causal)
    for bias_start in (None, -8.0):
        for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
            pointer = kind(D, H, SIZE, causal=causal, rope=rope, bias_start=bias_start).to(dtype)
            given = weights
            if source == "bert4keras":
                given = [np.asarray(array, dtype=np.float64) for array in weights]
            load_published_weights(pointer, given, source=source)
            assert {parameter.dtype for parameter in pointer.parameters()} == {dtype}
            scores = pointer(x.to(dtype)).double()
            kept = expected.isfinite()
            assert torch.equal(scores.isfinite(), kept)
            assert (scores - expected)[kept].abs().max() < tolerance


@pytest.mark.parametrize(
    ("kind", "source", "change", "message"),
    [
        (GlobalPointer, "bert4torch", {"extra": 1}, r"names \['dense.bias', 'dense.weight'\], got"),
        (EfficientGlobalPointer, "bert4torch", {"p_dense.weight": None}, r"names .*'p_dense.bias'"),
        (
            EfficientGlobalPointer,
            "bert4torch",
            {"q_dense.weight": torch.zeros(6, 7)},
            r"q_dense must have shapes \(6, 8\) and \(6,\), out before in, got \(6, 7\) and \(6,\)",
        ),
        (GlobalPointer, "bert4keras", [torch.zeros(24, 7)], r"dense must .*, got \(7, 24\)"),
        (GlobalPointer, "bert4keras", [torch.zeros(1)] * 3, "must be 1 kernels, each .*, got 3"),
        (GlobalPointer, "bert4keras", {"a": 1}, "a sequence of arrays for .* got dict"),
        (GlobalPointer, "bert4torch", [torch.zeros(1)], "a mapping of names for .* got list"),
        (
            GlobalPointer,
            "bert4tf",
            {},
            "source must be 'bert4torch' or 'bert4keras', got 'bert4tf'",
        ),
    ],
)
def test_refusals_change_nothing(kind, source, change, message):
    torch.manual_seed(0)
    weights = change
    if source == "bert4torch" and isinstance(change, dict):
        weights = torch_weights(kind is EfficientGlobalPointer, True) | change
        weights = {name: value for name, value in weights.items() if value is not None}
    pointer = kind(D, H, SIZE)
    before = [parameter.clone() for parameter in pointer.parameters()]
    with pytest.raises(ValueError, match=message):
        load_published_weights(pointer, weights, source=source)
    assert all(torch.equal(a, b) for a, b in zip(before, pointer.parameters(), strict=True))


def test_only_pointers():
    with pytest.raises(TypeError, match=r"pointer must be a GlobalPointer or .*, got Linear"):
        load_published_weights(torch.nn.Linear(2, 2), {}, source="bert4torch")
