"""Argument checks and reductions, apart from any loss."""

import math
import re

import numpy as np
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from lib import _checks, _refusals
from lib.emo import linear_emo_loss
from lib.global_pointer import _products, factorised_zlpr_loss, streaming, streaming_zlpr_loss
from lib.soft_zlpr import soft_zlpr_loss

LOGITS = torch.zeros(2, 3, 5)


def raises(kind, message):
    return pytest.raises(kind, match=re.escape(message))


def test_logits_must_be_a_tensor():
    with raises(TypeError, "logits must be a torch.Tensor, got list"):
        _checks.check_logits([0.0])


def test_logits_must_be_floating():
    with raises(TypeError, "logits must have a floating-point dtype, got torch.int64"):
        _checks.check_logits(torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(), (0,), (4, 0)])
def test_logits_need_a_class(shape):
    with raises(ValueError, f"shape (..., C) with at least 1 class, got shape {shape}"):
        _checks.check_logits(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_dtype_is_taken(dtype):
    _checks.check_logits(torch.zeros(1, dtype=dtype))
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert _checks.compute_dtype(dtype) == expected


@pytest.mark.parametrize(
    "three",
    [3, np.int8(3), np.uint64(3), np.array(3), torch.tensor(3, dtype=torch.int16)],
    ids=repr,
)
def test_anything_with_an_index_is_an_int(three):
    found = _checks.as_index("size", three)
    assert type(found) is int
    assert found == 3


@pytest.mark.parametrize("value", [True, np.bool_(1), torch.tensor(True), 3.0, np.float32(3), "3"])
def test_what_has_no_index_is_refused_and_so_is_a_bool(value):
    with raises(TypeError, f"size must be an int, got {type(value).__name__}"):
        _checks.as_index("size", value)


def test_a_size_of_a_graph_stays_a_size():
    seen = []

    def function(x):
        size = _checks.as_index("size", x.shape[0])
        seen.append(type(size))
        return x.new_zeros(size + 1)

    traced = make_fx(function, tracing_mode="symbolic")(torch.zeros(4))
    assert seen == [torch.SymInt]
    assert traced(torch.zeros(7)).shape == (8,)


def test_labels_must_be_a_tensor():
    with raises(TypeError, "targets must be a torch.Tensor, got int"):
        _checks.check_labels("targets", 1, LOGITS)


def test_labels_must_be_real():
    with raises(TypeError, "targets must be bool or real, got torch.complex64"):
        _checks.check_labels("targets", torch.zeros(2, 3, 5, dtype=torch.complex64), LOGITS)


@pytest.mark.parametrize("shape", [(2, 3, 4), (3, 5), (1, 3, 5), (2, 3, 5, 1)])
def test_labels_must_have_the_shape(shape):
    with raises(
        ValueError, f"targets must have the shape of logits, expected (2, 3, 5), got {shape}"
    ):
        _checks.check_labels("targets", torch.zeros(shape), LOGITS)


def test_labels_must_be_on_the_device():
    with raises(ValueError, "targets must be on the device of logits, expected cpu, got meta"):
        _checks.check_labels("targets", torch.zeros(2, 3, 5, device="meta"), LOGITS)


def test_indices_must_be_a_tensor():
    with raises(TypeError, "positives must be a torch.Tensor, got tuple"):
        _checks.check_indices("positives", (1, 2), LOGITS)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.bool])
def test_indices_must_be_int64(dtype):
    with raises(TypeError, f"positives must have dtype torch.int64, got {dtype}"):
        _checks.check_indices("positives", torch.zeros(2, 3, 1, dtype=dtype), LOGITS)


@pytest.mark.parametrize("shape", [(2, 2, 1), (3, 1), (2, 3, 5, 1), (1, 3, 1)])
def test_indices_must_have_the_leading_dimensions(shape):
    message = (
        "positives must have the leading dimensions of logits, "
        f"expected shape (2, 3, K), got {shape}"
    )
    with raises(ValueError, message):
        _checks.check_indices("positives", torch.zeros(shape, dtype=torch.int64), LOGITS)


def test_indices_of_a_single_position():
    with raises(ValueError, "expected shape (K), got (2, 1)"):
        _checks.check_indices("positives", torch.zeros(2, 1, dtype=torch.int64), torch.zeros(5))


def test_indices_must_be_on_the_device():
    there = torch.zeros(2, 3, 1, dtype=torch.int64, device="meta")
    with raises(ValueError, "positives must be on the device of logits, expected cpu, got meta"):
        _checks.check_indices("positives", there, LOGITS)


def test_classes_must_be_a_tensor():
    with raises(TypeError, "targets must be a torch.Tensor, got list"):
        _checks.check_classes("targets", [0, 1], LOGITS)


def test_classes_must_be_int64():
    with raises(TypeError, "targets must have dtype torch.int64, got torch.int32"):
        _checks.check_classes("targets", torch.zeros(2, 3, dtype=torch.int32), LOGITS)


@pytest.mark.parametrize("shape", [(2,), (2, 3, 1), (3, 2), ()])
def test_classes_must_have_the_leading_dimensions(shape):
    message = (
        f"targets must have the leading dimensions of logits, expected shape (2, 3), got {shape}"
    )
    with raises(ValueError, message):
        _checks.check_classes("targets", torch.zeros(shape, dtype=torch.int64), LOGITS)


def test_classes_must_be_on_the_device():
    classes = torch.zeros(2, 3, dtype=torch.int64, device="meta")
    with raises(ValueError, "targets must be on the device of logits, expected cpu, got meta"):
        _checks.check_classes("targets", classes, LOGITS)


def test_no_mask_stays_none():
    assert _checks.check_mask(None, LOGITS) is None


@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 5), (5,), (1, 3, 1), ()])
def test_mask_is_expanded(shape):
    mask = _checks.check_mask(torch.ones(shape, dtype=torch.bool), LOGITS)
    assert mask.shape == LOGITS.shape


@pytest.mark.parametrize("shape", [(2, 5), (4,), (1, 2, 3, 5)])
def test_mask_must_broadcast(shape):
    message = f"mask must broadcast to the shape of logits, expected (2, 3, 5), got {shape}"
    with raises(ValueError, message):
        _checks.check_mask(torch.ones(shape, dtype=torch.bool), LOGITS)


def test_mask_must_be_bool():
    with raises(TypeError, "mask must have dtype torch.bool, got torch.float32"):
        _checks.check_mask(torch.ones(2, 3, 5), LOGITS)


def test_mask_must_be_a_tensor():
    with raises(TypeError, "mask must be a torch.Tensor, got bool"):
        _checks.check_mask(True, LOGITS)


def test_mask_must_be_on_the_device():
    with raises(ValueError, "mask must be on the device of logits, expected cpu, got meta"):
        _checks.check_mask(torch.ones(5, dtype=torch.bool, device="meta"), LOGITS)


def test_reductions():
    values = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    assert _checks.reduce(values, "none") is values
    assert _checks.reduce(values, "sum").item() == 12
    assert _checks.reduce(values, "mean").item() == 3


def test_unknown_reduction():
    with raises(ValueError, "reduction must be 'none', 'mean' or 'sum', got 'batchmean'"):
        _checks.check_reduction("batchmean")


def test_mean_of_nothing_is_zero_and_so_is_its_gradient():
    leaf = torch.zeros(0, requires_grad=True)
    assert _checks.reduce(leaf, "mean").item() == 0
    values = torch.zeros(2, requires_grad=True)
    mean = _checks.reduce(values, "mean", torch.tensor([False, False]))
    assert mean.item() == 0
    assert torch.autograd.grad(mean, values)[0].tolist() == [1, 1]  # 0 comes from the values


def test_mean_over_what_counts():
    values = torch.tensor([1.0, 0.0, 3.0])
    assert _checks.reduce(values, "mean", torch.tensor([True, False, True])).item() == 2


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float32, torch.float64],
)
def test_zeros_and_ones_are_binary(dtype):
    labels = torch.tensor([[0, 1, 1], [0, 0, 0]], dtype=dtype)
    assert _checks.not_binary(labels).tolist() == [False, False]


@pytest.mark.parametrize(
    "value",
    [0.5, -1.0, 2.0, math.nan, math.inf, -math.inf, 1 + 1e-7, 1 - 1e-7, 1e-30, 1e-45, -1e-45],
)
def test_soft_floats_are_not_binary(value):
    labels = torch.tensor([[0, 1, value], [0, 0, 1]], dtype=torch.float32)
    assert labels[0, 2] not in (0, 1)
    assert _checks.not_binary(labels).tolist() == [True, False]


def test_binary_is_judged_in_the_labels_own_precision():
    labels = torch.tensor([[1 + 1e-12]], dtype=torch.float64)
    assert _checks.not_binary(labels).item()
    assert not _checks.not_binary(labels.to(torch.float32)).item()


@pytest.mark.parametrize("value", [2, -1, 255])
def test_other_integers_are_not_binary(value):
    assert _checks.not_binary(torch.tensor([[value, 0], [1, 0]])).tolist() == [True, False]


def test_first_true():
    flags = torch.zeros(3, 4, 5, dtype=torch.bool)
    flags[1, 2, 3] = flags[2, 0, 0] = True
    assert _refusals.first_true(flags) == (1, 2, 3)
    assert _refusals.first_true(torch.tensor([False, True])) == (1,)


def test_values_are_readable_of_plain_tensors():
    plain = torch.zeros(2)
    assert _checks.values_readable(plain)
    assert _checks.values_readable(plain, None, torch.nn.Parameter(plain))


def test_values_are_not_readable_where_there_are_none():
    class Other(torch.Tensor):
        pass

    plain, seen = torch.zeros(2), []

    def look(values):
        seen.append(_checks.values_readable(values))
        return values.sum()

    assert not _checks.values_readable(plain, torch.zeros(2, device="meta"))
    assert not _checks.values_readable(plain, plain.as_subclass(Other))
    torch.vmap(look)(torch.zeros(2, 3))
    torch.func.grad(look)(plain)
    make_fx(look)(plain)
    torch.compile(look, backend="eager", fullgraph=True)(plain)
    assert seen == [False] * 4


def test_values_are_not_readable_in_a_batched_backward_pass():
    seen = []

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            return values.clone()

        @staticmethod
        def backward(ctx, upstream):
            seen.append(_checks.values_readable(upstream))
            return upstream

    leaf = torch.zeros(2, requires_grad=True)
    torch.autograd.grad(Look.apply(leaf), leaf, torch.eye(2), is_grads_batched=True)
    assert seen == [False]


# ------------------------------------------------------------------------- gradients by autograd


CELLS = torch.tensor([[[[0, 1]]]])
MADE_FROM_EACH_OTHER = {
    "soft": lambda x: soft_zlpr_loss(x, (2 * x).sigmoid()),
    "emo": lambda x: linear_emo_loss(
        x[:3], x.square(), torch.tensor([0, 3, 5]), torch.eye(6, dtype=torch.float64)
    ),
    "streaming": lambda x: streaming_zlpr_loss(x[None, None], x.exp()[None, None], CELLS),
    "factorised": lambda x: factorised_zlpr_loss(
        (x[None], x.exp()[None]), x.T[None, :1], x.T[None, 1:2], CELLS
    ),
}


@pytest.mark.parametrize("loss", MADE_FROM_EACH_OTHER.values(), ids=MADE_FROM_EACH_OTHER)
def test_a_way_from_one_input_to_another_counts_once(monkeypatch, loss):
    monkeypatch.setattr(_products, "_FEW_CELLS", 0)  # not from filled tables
    monkeypatch.setattr(streaming, "_worth_streaming", lambda queries: True)
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x.requires_grad_()
    (plain,) = torch.autograd.grad(loss(x), x)
    (again,) = torch.autograd.grad(loss(x), x, create_graph=True)
    torch.testing.assert_close(again, plain)
