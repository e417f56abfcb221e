"""ZLPR from hidden states and a head: equal to the loss of the logits that it never holds."""

import random
from math import inf, nan

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lib.zlpr import LinearZLPRLoss, _linear, labels_above, linear_zlpr_loss, sparse_zlpr_loss

WAYS = {  # small table, buffer, least rows, cells and rows of a tile
    "table": (1 << 30, 1 << 20, 1, 1, 1),
    "rows": (0, 64, 1, 1, 1),
    "one row": (0, 1, 0, 1, 1),
    "tiles": (0, 1, 99, 33, 4),
    "one label": (0, 1, 99, 1, 100),
}
NAMES = ("_SMALL_CELLS", "_BUFFER_CELLS", "_LEAST_ROWS", "_TILE_CELLS", "_TILE_ROWS")


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    for name, value in zip(NAMES, WAYS[request.param], strict=True):
        monkeypatch.setattr(_linear, name, value)
    return request.param


def cases(count: int):
    """Random and adversarial heads: inputs in float32 values, bias or none, a reduction."""
    chance = random.Random(0)
    torch.manual_seed(0)
    for number in range(count):
        rows, classes, width, most = (
            chance.randint(*ends) for ends in ((1, 9), (1, 60), (1, 8), (0, 6))
        )
        scale = (0.01, 1.0, 5.0, 30.0, 1e3)[number % 5]
        hidden = scale * torch.randn(rows, width)
        weight = torch.randn(classes, width)
        if number % 7 == 0:
            weight = weight[:1].expand(classes, width).contiguous()  # ties of all labels
        if number % 11 == 0:
            hidden[0] = 0
        bias = torch.randn(classes) if number % 2 else None
        positives = torch.randint(-1, classes, (rows, most))
        if bias is not None and number % 3 == 0 and classes > 1:
            bias[-1] = -inf  # a label that is taken away
            positives[positives == classes - 1] = -1
        yield hidden, weight, bias, positives, ("none", "mean", "sum")[number % 3]


def by_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, positives: Tensor, how: str):
    logits = hidden @ weight.T
    return sparse_zlpr_loss(logits if bias is None else logits + bias, positives, reduction=how)


def with_gradients(loss, hidden, weight, bias, positives, how, factor=2.5):
    leaves = [
        x if x is None else x.detach().clone().requires_grad_() for x in (hidden, weight, bias)
    ]
    value = loss(*leaves, positives, how)
    (value.sum() * factor).backward()
    return value.detach(), [leaf.grad for leaf in leaves if leaf is not None]


def ours(hidden, weight, bias, positives, how):
    return linear_zlpr_loss(hidden, weight, positives, bias=bias, reduction=how)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_random_and_adversarial_cases(way, dtype):
    for case in cases(420 if dtype == torch.float32 else 140):
        hidden, weight, bias, positives, how = case
        double = (x if x is None else x.double() for x in (hidden, weight, bias))
        value, gradients = with_gradients(by_logits, *double, positives, how)
        typed = (x if x is None else x.to(dtype) for x in (hidden, weight, bias))
        found, its = with_gradients(ours, *typed, positives, how)
        # A logit is a sum: right to the size of its terms times their precision, whoever forms it.
        logits = (hidden.abs() @ weight.abs().T).amax().item()
        precision = torch.finfo(dtype).eps * max(1.0, logits)
        assert found.dtype == dtype
        error = (found.double() - value).abs() / value.abs().clamp(min=1)
        assert error.max() <= 4 * precision
        for got, want in zip(its, gradients, strict=True):
            largest = want.abs().max().clamp(min=1)
            assert (got.double() - want).abs().max() <= 40 * precision * largest


def test_marks_of_float32(way):
    """Where logits are of ordinary size: 5e-7 of the loss, 5e-6 of the gradients."""
    for hidden, weight, bias, positives, how in cases(420):
        if (hidden.abs() @ weight.abs().T).amax() > 4:
            continue
        double = (x if x is None else x.double() for x in (hidden, weight, bias))
        value, gradients = with_gradients(by_logits, *double, positives, how)
        found, its = with_gradients(ours, hidden, weight, bias, positives, how)
        assert ((found.double() - value).abs() <= 5e-7 * value.abs().clamp(min=1)).all()
        for got, want in zip(its, gradients, strict=True):
            assert (got.double() - want).abs().max() <= 5e-6 * want.abs().max().clamp(min=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("how", ["mean", "sum", "none"])
def test_half_precision_is_rounded_once(way, dtype, how):
    torch.manual_seed(1)
    hidden, weight, bias = torch.randn(7, 5), torch.randn(40, 5), torch.randn(40)
    hidden, weight, bias = (x.to(dtype) for x in (hidden, weight, bias))
    positives = torch.randint(-1, 40, (7, 3))
    double = (x.double() for x in (hidden, weight, bias))
    value, gradients = with_gradients(by_logits, *double, positives, how, factor=300.0)
    found, its = with_gradients(ours, hidden, weight, bias, positives, how, factor=300.0)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), value, rtol=1e-6, atol=1e-6)
    for got, want in zip(its, gradients, strict=True):
        assert got.dtype == dtype
        error = (got.double() - want).abs()
        assert (error <= 0.51 * torch.finfo(dtype).eps * want.abs() + 2e-5 * want.abs().max()).all()


def test_gradcheck_to_second_order(way):
    torch.manual_seed(2)
    leaves = [
        torch.randn(shape, dtype=torch.float64, requires_grad=True)
        for shape in ((3, 4), (6, 4), (6,))
    ]
    positives = torch.tensor([[0, 5], [-1, -1], [2, 2]])
    for how in ("none", "mean"):
        call = lambda h, w, b, how=how: ours(h, w, b, positives, how)  # noqa: E731
        assert torch.autograd.gradcheck(call, leaves)
        assert torch.autograd.gradgradcheck(call, leaves)


def test_the_gradients_are_given_twice_if_asked_twice(way):
    hidden, weight = torch.randn(4, 3, requires_grad=True), torch.randn(9, 3, requires_grad=True)
    loss = linear_zlpr_loss(hidden, weight, torch.tensor([[1], [2], [3], [4]]))
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    for one in first:
        one.add_(1e6)  # who got them may do so
    second = torch.autograd.grad(loss, (hidden, weight))
    assert all((one - 1e6 - two).abs().max() < 0.1 for one, two in zip(first, second, strict=True))


def test_leading_dimensions_and_nothing(way):
    hidden, weight = torch.randn(2, 3, 4), torch.randn(5, 4)
    positives = torch.randint(-1, 5, (2, 3, 2))
    each = linear_zlpr_loss(hidden, weight, positives, reduction="none")
    torch.testing.assert_close(each, by_logits(hidden, weight, None, positives, "none"))
    none = linear_zlpr_loss(hidden[:0], weight.requires_grad_(), positives[:0])
    none.backward()
    assert none == 0
    assert not weight.grad.any()


def test_refusals(way):
    hidden, weight, positives = torch.randn(3, 4), torch.randn(6, 4), torch.tensor([[1], [2], [-1]])
    row, first = torch.tensor(4), torch.tensor([0, 0, -inf, 0, 0, 0])
    fitting = {"hidden": hidden, "weight": weight, "positives": positives, "bias": first}
    outside = r"classes in \[0, 6\) or -1 as filler, got 6 at positives\[1, 0\]"
    for change, message in (
        (
            {"hidden": hidden.index_fill(0, torch.tensor(2), nan)},
            r"finite, got nan at hidden\[2, 0\]",
        ),
        ({"weight": weight.index_fill(0, row, inf)}, r"finite, got inf at weight\[4, 0\]"),
        ({"bias": first.nan_to_num(neginf=0) + nan}, r"bias must be finite, got nan at bias\[0\]"),
        ({"bias": first}, r"positives\[1, 0\] = 2 and bias\[2\] = -inf"),
        ({"positives": torch.tensor([[1], [6], [0]])}, outside),
        ({"positives": torch.tensor([[1], [-2], [0]])}, r"got -2 at positives\[1, 0\]"),
        (
            {"hidden": 1e38 * hidden, "weight": 1e38 * weight},
            "product that overflows torch.float32",
        ),
        ({"weight": torch.randn(6, 3)}, r"width of weight, expected \(..., 3\), got \(3, 4\)"),
        ({"bias": torch.zeros(5)}, r"expected \(6,\), got \(5,\)"),
        ({"positives": positives[:2]}, r"dimensions of hidden, expected shape \(3, K\)"),
    ):
        given = {"hidden": hidden, "weight": weight, "positives": positives} | change
        leaf = given["hidden"].clone().requires_grad_()
        with pytest.raises(ValueError, match=message):
            linear_zlpr_loss(**(given | {"hidden": leaf}))
        if all(given[name].shape == part.shape for name, part in fitting.items() if name in given):
            assert linear_zlpr_loss(**given, validate=False).isnan()


def test_a_weight_that_only_spoils_the_gradient_is_named(way):
    weight = torch.ones(6, 4)
    weight[3] = -inf  # its logit is minus infinity: the loss is finite
    hidden = torch.ones(3, 4, requires_grad=True)
    positives = torch.tensor([[1], [2], [-1]])
    with pytest.raises(ValueError, match=r"weight must be finite, got -inf at weight\[3, 0\]"):
        linear_zlpr_loss(hidden, weight, positives).backward()
    linear_zlpr_loss(hidden, weight, positives, validate=False).backward()
    assert hidden.grad.isnan().any()


def test_the_module_is_a_linear_layer():
    torch.manual_seed(3)
    head, layer = LinearZLPRLoss(4, 6, reduction="sum"), nn.Linear(4, 6)
    head.load_state_dict(layer.state_dict())
    hidden, positives = torch.randn(3, 4), torch.tensor([[1], [2], [-1]])
    expected = sparse_zlpr_loss(layer(hidden), positives, reduction="sum")
    torch.testing.assert_close(head(hidden, positives), expected)
    assert repr(head) == (
        "LinearZLPRLoss(in_features=4, out_features=6, bias=True, reduction='sum')"
    )

    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    parametrize.register_parametrization(head, "weight", Doubled())
    doubled = nn.functional.linear(hidden, 2 * layer.weight, layer.bias)
    torch.testing.assert_close(
        head(hidden, positives), sparse_zlpr_loss(doubled, positives, reduction="sum")
    )


@pytest.mark.parametrize("most", [None, 1, 3, 99])
@pytest.mark.parametrize("threshold", [-inf, -1.0, 0.0, 50.0])
def test_labels_above_are_those_of_the_table(way, most, threshold):
    torch.manual_seed(4)
    hidden, weight, bias = torch.randn(2, 5, 4), torch.randn(30, 4), torch.randn(30)
    found = labels_above(hidden, weight, bias=bias, threshold=threshold, most=most)
    logits = (hidden @ weight.T + bias).reshape(10, 30)
    widest = 0
    for row, labels, scores in zip(
        logits, found.labels.reshape(10, -1), found.scores.reshape(10, -1), strict=True
    ):
        order = [i for i in row.argsort(descending=True).tolist() if row[i] > threshold][:most]
        count = len(order)
        widest = max(widest, count)
        assert labels.tolist() == order + [-1] * (len(labels) - count)
        torch.testing.assert_close(scores[:count], row[order])
        assert (scores[count:] == -inf).all()
    assert found.labels.shape == (2, 5, widest)


@pytest.mark.parametrize("most", [None, 1, 3])
def test_labels_above_loses_nothing_to_nan(way, most):
    """A score that is NaN is above nothing, and would take the place of one that is."""
    hidden, weight = torch.ones(5, 4), -torch.ones(6, 4)
    weight[3, 2] = nan
    with pytest.raises(ValueError, match=r"weight must be finite, got nan at weight\[3, 2\]"):
        labels_above(hidden, weight, most=most)
    hidden[4, 1] = nan
    with pytest.raises(ValueError, match=r"hidden must be finite, got nan at hidden\[4, 1\]"):
        labels_above(hidden, torch.ones(6, 4), most=most)


def test_labels_above_leaves_out_what_equals_the_threshold():
    found = labels_above(torch.ones(1, 1), torch.tensor([[2.0], [1.0], [0.5]]), threshold=1.0)
    assert found.labels.tolist() == [[0]]


def test_labels_above_refuses():
    hidden, weight = torch.randn(2, 4), torch.randn(6, 4)
    with pytest.raises(ValueError, match="threshold must be a number, got nan"):
        labels_above(hidden, weight, threshold=nan)
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        labels_above(hidden, weight, most=0)
    assert labels_above(hidden[:0], weight).labels.shape == (0, 0)
