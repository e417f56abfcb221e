"""`lib.global_pointer` against loop transcriptions, and everything its docstrings promise."""

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from lib.global_pointer import EfficientGlobalPointer, GlobalPointer, PointerParts, apply_rope
from lib.zlpr import sparse_zlpr_loss

POINTERS = (GlobalPointer, EfficientGlobalPointer)
LAYERS = [
    (GlobalPointer, "projection"),
    (EfficientGlobalPointer, "projection"),
    (EfficientGlobalPointer, "head_scores"),
]


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rope_loop(x, base=10000.0):
    """One vector at a time, one plane at a time, with complex numbers."""
    turned = torch.empty_like(x)
    size = x.shape[-1]
    for i, vector in enumerate(x):
        for m in range(size // 2):
            plane = complex(vector[2 * m], vector[2 * m + 1])
            angle = i * base ** (-2 * m / size)
            plane *= complex(math.cos(angle), math.sin(angle))
            turned[i, 2 * m], turned[i, 2 * m + 1] = plane.real, plane.imag
    return turned


class TestRope:
    def test_equals_the_loop(self):
        x = random(7, 10)
        torch.testing.assert_close(apply_rope(x), rope_loop(x), rtol=0, atol=1e-14)
        torch.testing.assert_close(apply_rope(x, base=50), rope_loop(x, 50.0), rtol=0, atol=1e-14)

    @given(
        planes=st.integers(1, 8),
        i=st.integers(0, 40),
        j=st.integers(0, 40),
        shift=st.integers(0, 40),
        base=st.floats(1.5, 1e6),
        seed=st.integers(0, 2**31),
    )
    def test_products_depend_on_the_distance_alone(self, planes, i, j, shift, base, seed):
        query, key = random(2, 1, 2 * planes, seed=seed).expand(2, 81, 2 * planes)
        query, key = apply_rope(query, base=base), apply_rope(key, base=base)
        here, there = query[i] @ key[j], query[i + shift] @ key[j + shift]
        assert abs(here - there) < 1e-12 * max(1, query[0].norm() * key[0].norm())

    def test_products_do_depend_on_the_distance(self):
        x = random(1, 4).expand(9, 4)
        products = apply_rope(x) @ apply_rope(x).T
        assert products[0, 0] > products[0, 1] + 0.1

    @given(length=st.integers(1, 60), planes=st.integers(1, 8), seed=st.integers(0, 2**31))
    def test_is_orthogonal(self, length, planes, seed):
        x = random(length, 2 * planes, seed=seed)
        torch.testing.assert_close(apply_rope(x).norm(dim=1), x.norm(dim=1), rtol=1e-12, atol=0)
        # As a matrix: the images of the unit vectors at the last position are orthonormal.
        unit = torch.eye(2 * planes, dtype=torch.float64)[:, None].expand(-1, length, -1)
        matrix = apply_rope(unit)[:, -1]
        torch.testing.assert_close(matrix @ matrix.T, unit[:, 0], rtol=0, atol=1e-12)

    def test_leaves_position_zero_as_it_is(self):
        x = random(3, 1, 6)
        assert torch.equal(apply_rope(x), x)

    def test_takes_leading_dimensions(self):
        x = random(2, 3, 5, 4)
        turned = apply_rope(x)
        assert turned.shape == x.shape
        for b in range(2):
            for h in range(3):
                torch.testing.assert_close(turned[b, h], apply_rope(x[b, h]), rtol=0, atol=0)

    def test_any_strides(self):
        numbers = random(2, 5, 9).flatten()
        shapes = {  # pairs begin at odd places, or their numbers do not stand side by side
            "odd offset": numbers[1:81].view(2, 5, 8),
            "odd rows": numbers[:90].view(2, 5, 9)[..., 1:],
            "turned over": numbers[:80].view(2, 8, 5).mT,
            "every other": numbers[:80].view(2, 5, 8)[..., ::2],
        }
        for name, x in shapes.items():
            expected = torch.stack([rope_loop(one) for one in x])
            assert (apply_rope(x) - expected).abs().max() < 1e-14, name

    def test_compiled_gives_the_same(self):
        compiled = torch.compile(apply_rope, fullgraph=True, backend="aot_eager")
        for dtype in (torch.float64, torch.float32, torch.bfloat16):
            x = random(2, 30, 8).to(dtype).requires_grad_()
            turned, expected = compiled(x), apply_rope(x)
            torch.testing.assert_close(turned, expected)
            weights = random(2, 30, 8).to(dtype)
            (gradient,) = torch.autograd.grad(turned, x, weights)
            torch.testing.assert_close(gradient, torch.autograd.grad(expected, x, weights)[0])

    def test_no_positions(self):
        assert apply_rope(torch.zeros(2, 0, 4)).shape == (2, 0, 4)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
    def test_angles_are_not_computed_in_half_precision(self, dtype):
        x = random(600, 8).to(dtype)
        exact = apply_rope(x.double())
        turned = apply_rope(x)
        assert turned.dtype == dtype
        # Half an ulp of the result and nothing more; bfloat16 angles near 599 would be off by 2.
        error = (turned.double() - exact).abs().max() / exact.abs().max()
        assert error < max(torch.finfo(dtype).eps, 1e-4)

    def test_gradient(self):
        x = random(5, 6).requires_grad_()
        assert torch.autograd.gradcheck(apply_rope, (x,))

    @pytest.mark.parametrize(
        ("x", "base", "error", "message"),
        [
            ([1.0], 10.0, TypeError, "x must be a floating-point tensor, got list"),
            (torch.ones(2, 2, dtype=torch.int64), 10.0, TypeError, "got torch.int64"),
            (torch.ones(4), 10.0, ValueError, r"x must have shape \(\.\.\., L, d\).* got \(4,\)"),
            (torch.ones(2, 3), 10.0, ValueError, r"d even, got \(2, 3\)"),
            (torch.ones(2, 2), 1.0, ValueError, "base must be above 1, got 1.0"),
        ],
    )
    def test_errors(self, x, base, error, message):
        with pytest.raises(error, match=message):
            apply_rope(x, base=base)


def standard_loop(pointer, hidden, mask):
    """GlobalPointer, cell by cell."""
    batch, length, _ = hidden.shape
    size = pointer.head_size
    weight = pointer.projection.weight.view(pointer.heads, 2, size, -1)
    bias = pointer.projection.bias.view(pointer.heads, 2, size)
    scores = torch.full((batch, pointer.heads, length, length), -math.inf, dtype=hidden.dtype)
    for b in range(batch):
        for a in range(pointer.heads):
            query, key = (
                torch.stack([weight[a, r] @ h + bias[a, r] for h in hidden[b]]) for r in (0, 1)
            )
            if pointer.rope:
                query, key = rope_loop(query), rope_loop(key)
            for i in range(length):
                for j in range(length):
                    if mask[b, i] and mask[b, j] and (i <= j or not pointer.causal):
                        scores[b, a, i, j] = query[i] @ key[j] / math.sqrt(size)
                        if pointer.bias is not None:
                            scores[b, a, i, j] += pointer.bias[a]
    return scores


def efficient_loop(pointer, hidden, mask):
    """EfficientGlobalPointer, cell by cell."""
    batch, length, _ = hidden.shape
    size = pointer.head_size
    scores = torch.full((batch, pointer.heads, length, length), -math.inf, dtype=hidden.dtype)
    for b in range(batch):
        both = [pointer.projection.weight @ h + pointer.projection.bias for h in hidden[b]]
        query, key = torch.stack([v[:size] for v in both]), torch.stack([v[size:] for v in both])
        if pointer.rope:
            query, key = rope_loop(query), rope_loop(key)
        for a in range(pointer.heads):
            start_row, end_row = a, pointer.heads + a
            for i in range(length):
                for j in range(length):
                    if mask[b, i] and mask[b, j] and (i <= j or not pointer.causal):
                        layer = pointer.head_scores
                        start = (layer.weight[start_row] @ both[i] + layer.bias[start_row]) / 2
                        end = (layer.weight[end_row] @ both[j] + layer.bias[end_row]) / 2
                        scores[b, a, i, j] = query[i] @ key[j] / math.sqrt(size) + start + end
    return scores


LOOPS = {GlobalPointer: standard_loop, EfficientGlobalPointer: efficient_loop}


class TestScores:
    @pytest.mark.parametrize("kind", POINTERS)
    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("rope", [True, False])
    @pytest.mark.parametrize("bias_start", [None, -3.0])
    def test_equal_the_loop(self, kind, causal, rope, bias_start):
        torch.manual_seed(0)
        pointer = kind(7, 3, 4, causal=causal, rope=rope, bias_start=bias_start).double()
        hidden = random(2, 5, 7)
        mask = torch.tensor([[True] * 5, [False, True, True, True, False]])
        with torch.no_grad():
            expected = LOOPS[kind](pointer, hidden, mask)
            torch.testing.assert_close(pointer(hidden, mask), expected, rtol=0, atol=1e-13)
            everything = LOOPS[kind](pointer, hidden, torch.ones_like(mask))
            torch.testing.assert_close(pointer(hidden), everything, rtol=0, atol=1e-13)

    @pytest.mark.parametrize("kind", POINTERS)
    def test_masked_cells_are_minus_infinity_and_no_others(self, kind):
        hidden = random(1, 4, 6)
        mask = torch.tensor([[False, True, True, False]])
        causal = kind(6, 2, 4).double()(hidden, mask)
        free = kind(6, 2, 4, causal=False).double()(hidden, mask)
        inside = [(1, 1), (1, 2), (2, 1), (2, 2)]
        for a in range(2):
            for i in range(4):
                for j in range(4):
                    assert causal[0, a, i, j].isfinite() == ((i, j) in inside and i <= j)
                    assert free[0, a, i, j].isfinite() == ((i, j) in inside)

    def test_rope_makes_the_difference_between_equal_states(self):
        hidden = random(1, 1, 6).expand(1, 5, 6)
        torch.manual_seed(0)
        without = EfficientGlobalPointer(6, 1, 4, causal=False, rope=False).double()(hidden)
        torch.manual_seed(0)
        turned = EfficientGlobalPointer(6, 1, 4, causal=False).double()(hidden)
        assert without.amax() - without.amin() < 1e-14
        assert turned.amax() - turned.amin() > 1e-3
        # Toeplitz: the content-free part is a prior over j - i.
        torch.testing.assert_close(turned[..., 1:, 1:], turned[..., :-1, :-1])

    def test_parts_add_up(self):
        pointer = EfficientGlobalPointer(6, 3, 4, causal=False).double()
        hidden = random(2, 5, 6)
        parts = pointer.parts(hidden)
        assert isinstance(parts, PointerParts)
        assert [tuple(p.shape) for p in parts] == [(2, 5, 5), (2, 3, 5), (2, 3, 5)]
        total = parts.pair[:, None] + parts.start[..., :, None] + parts.end[..., None, :]
        torch.testing.assert_close(pointer(hidden), total, rtol=0, atol=1e-14)

    @pytest.mark.parametrize("kind", POINTERS)
    def test_bias_start_shifts_every_score_by_exactly_this_much(self, kind):
        hidden = random(2, 5, 6)
        torch.manual_seed(0)
        pointer = kind(6, 3, 4, bias_start=0.0, causal=False).double()
        torch.manual_seed(0)
        shifted = kind(6, 3, 4, bias_start=-9.5, causal=False).double()
        torch.testing.assert_close(shifted(hidden), pointer(hidden) - 9.5, rtol=0, atol=1e-13)

    def test_bias_start_is_split_between_start_and_end(self):
        pointer = EfficientGlobalPointer(6, 3, 4, bias_start=-8.0)
        nn.init.zeros_(pointer.head_scores.weight)
        parts = pointer.parts(random(1, 5, 6, dtype=torch.float32))
        assert (parts.start == -4).all()
        assert (parts.end == -4).all()

    @pytest.mark.parametrize("kind", POINTERS)
    def test_a_sparse_start_spares_the_first_loss(self, kind):
        """Zero scores cost log(1 + cells) per table; a start at -log(cells) costs log 2."""
        torch.manual_seed(0)
        cells, none = 30 * 31 / 2, torch.full((1, 4, 1), -1)
        for start, expected in ((0.0, math.log(1 + cells)), (-math.log(cells), math.log(2))):
            pointer = kind(6, 4, 4, bias_start=start)
            for name, parameter in pointer.named_parameters():
                if "weight" in name:
                    nn.init.zeros_(parameter)
            nn.init.zeros_(pointer.projection.bias)
            scores = pointer(random(1, 30, 6, dtype=torch.float32)).flatten(-2)
            assert sparse_zlpr_loss(scores, none).item() == pytest.approx(expected, abs=1e-5)


class TestBlocks:
    @pytest.mark.parametrize("kind", [GlobalPointer, EfficientGlobalPointer])
    def test_are_cells_of_the_tables(self, kind):
        """Any order, repeated positions, none at all; without mask and triangle."""
        torch.manual_seed(0)
        pointer = kind(6, 3, 4, causal=False, bias_start=-1.0).double()
        hidden = torch.randn(3, 7, 6, dtype=torch.float64)
        rows = [torch.tensor([4, 0, 4]), torch.tensor([], dtype=torch.int64), torch.tensor([6])]
        columns = [torch.tensor([1, 6]), torch.tensor([2]), torch.tensor([3, 3, 0, 5])]
        tables = pointer(hidden).detach()
        for table, i, j, block in zip(
            tables, rows, columns, pointer.blocks(hidden, rows, columns), strict=True
        ):
            torch.testing.assert_close(block, table[:, i][:, :, j], rtol=0, atol=1e-12)
        pointer.causal = True
        again = pointer.blocks(hidden, rows, columns)
        torch.testing.assert_close(again[0], tables[0][:, rows[0]][:, :, columns[0]])

    @pytest.mark.parametrize("kind", [GlobalPointer, EfficientGlobalPointer])
    @pytest.mark.parametrize(
        ("rows", "error", "message"),
        [
            ([[0]], ValueError, "rows must hold one tensor for each of 2 texts, got 1"),
            ([[0], [5]], ValueError, r"rows\[1\] must hold positions in \[0, 5\), got 5"),
            ([[-1], [0]], ValueError, r"rows\[0\] must hold positions in \[0, 5\), got -1"),
            ([[0.0], [0]], TypeError, r"rows\[0\] must be a torch.int64 tensor, got .*float32"),
            ([[[0]], [0]], ValueError, r"rows\[0\] must have one dimension, got shape \(1, 1\)"),
        ],
    )
    def test_errors(self, kind, rows, error, message):
        pointer = kind(4, 2, 2)
        columns = [torch.tensor([0])] * 2
        with pytest.raises(error, match=message):
            pointer.blocks(torch.zeros(2, 5, 4), [torch.tensor(r) for r in rows], columns)

    @pytest.mark.parametrize("kind", POINTERS)
    def test_where_positions_cannot_be_read(self, kind):
        """Under vmap and compile: the same blocks; an index below 0 does not count from the end."""
        torch.manual_seed(0)
        pointer, hidden = kind(4, 2, 2), random(3, 2, 5, 4, dtype=torch.float32)
        rows, columns = [torch.tensor([0, 3])] * 2, [torch.tensor([4])] * 2

        def blocks(states, rows=rows):
            return pointer.blocks(states, rows, columns)

        expected = [torch.stack(x) for x in zip(*map(blocks, hidden), strict=True)]
        for found, right in zip(torch.vmap(blocks)(hidden), expected, strict=True):
            torch.testing.assert_close(found, right)
        compiled = torch.compile(blocks, fullgraph=True, backend="aot_eager")
        for found, right in zip(compiled(hidden[0]), blocks(hidden[0]), strict=True):
            torch.testing.assert_close(found, right)
        for call in (compiled, torch.vmap(blocks, in_dims=(0, None))):
            with pytest.raises((RuntimeError, IndexError)):
                call(hidden if call is not compiled else hidden[0], [torch.tensor([-1])] * 2)


class TestLayers:
    """A pointer calls its layers: what tools hang on a layer takes part in the score."""

    ways = ("forward", "loss", "spans", "blocks")

    def results(self, pointer, hidden):
        positives = torch.tensor([[[[0, 1]], [[2, 2]]]])
        everything = [torch.arange(5)]
        spans = pointer.spans(hidden)
        found = {
            "forward": pointer(hidden),
            "loss": pointer.loss(hidden, positives),
            "spans": torch.cat((spans.cells.float().flatten(), spans.scores)),
            "blocks": pointer.blocks(hidden, everything, everything)[0],
        }
        if isinstance(pointer, EfficientGlobalPointer):
            found |= pointer.parts(hidden)._asdict()
        return found

    def pointers(self, kind):
        torch.manual_seed(0)
        pointer = kind(6, 2, 4, bias_start=0.5)
        return pointer, copy.deepcopy(pointer), random(1, 5, 6, dtype=torch.float32)

    def agree(self, changed, expected, plain, hidden):
        """The first two give the same, the third another thing."""
        found, right, other = (self.results(x, hidden) for x in (changed, expected, plain))
        for name in right:
            torch.testing.assert_close(found[name], right[name], msg=name)
        for name in self.ways:
            assert other[name].shape != right[name].shape or not torch.equal(
                other[name], right[name]
            ), name

    @pytest.mark.parametrize(("kind", "name"), LAYERS)
    def test_adapters(self, kind, name):
        class LowRank(nn.Module):
            """A layer beside a frozen one, without any attribute of a linear layer."""

            def __init__(self, layer):
                super().__init__()
                self.layer = layer
                self.more = nn.Linear(layer.in_features, layer.out_features, bias=False)

            def forward(self, x):
                return self.layer(x) + self.more(x)

        pointer, plain, hidden = self.pointers(kind)
        expected, adapter = copy.deepcopy(plain), LowRank(getattr(pointer, name))
        with torch.no_grad():
            getattr(expected, name).weight += adapter.more.weight
        setattr(pointer, name, adapter)
        self.agree(pointer, expected, plain, hidden)
        pointer.loss(hidden, torch.tensor([[[[0, 1]], [[2, 2]]]])).backward()
        assert adapter.more.weight.grad.abs().sum() > 0

    @pytest.mark.parametrize(("kind", "name"), LAYERS)
    def test_hooks(self, kind, name):
        pointer, plain, hidden = self.pointers(kind)
        expected = copy.deepcopy(plain)
        with torch.no_grad():
            for parameter in getattr(expected, name).parameters():
                parameter *= 3
        getattr(pointer, name).register_forward_hook(lambda _m, _i, out: 3 * out)
        self.agree(pointer, expected, plain, hidden)

    @pytest.mark.parametrize(("kind", "name"), LAYERS)
    def test_parametrisation(self, kind, name):
        pointer, plain, hidden = self.pointers(kind)
        expected = copy.deepcopy(plain)
        with torch.no_grad():
            getattr(expected, name).weight.copy_(getattr(plain, name).weight.tanh())
        parametrize.register_parametrization(getattr(pointer, name), "weight", nn.Tanh())
        self.agree(pointer, expected, plain, hidden)

    @pytest.mark.parametrize("kind", POINTERS)
    def test_dynamic_quantisation(self, kind):
        torch.manual_seed(0)
        pointer, hidden = kind(6, 2, 4), random(1, 5, 6, dtype=torch.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quantised = torch.ao.quantization.quantize_dynamic(pointer, {nn.Linear})
        assert not any(type(part) is nn.Linear for part in quantised.modules())
        scores, exact = quantised(hidden), pointer(hidden)
        kept = exact.isfinite()
        assert 0 < (scores - exact)[kept].abs().max() < 0.05
        assert quantised.loss(hidden, torch.full((1, 2, 1, 2), -1)).isfinite()


class TestParameters:
    @pytest.mark.parametrize("size", [(768, 9, 64), (5, 1, 2), (31, 7, 6)])
    def test_counts_are_the_closed_formulas(self, size):
        def count(module):
            return sum(p.numel() for p in module.parameters())

        D, H, d = size
        assert count(GlobalPointer(D, H, d)) == H * (2 * d * D + 2 * d)
        assert count(GlobalPointer(D, H, d, bias_start=-1.0)) == H * (2 * d * D + 2 * d) + H
        for start in (None, -1.0):
            efficient = count(EfficientGlobalPointer(D, H, d, bias_start=start))
            assert efficient == 2 * d * D + 2 * d + 4 * d * H + 2 * H
        if size == (768, 9, 64):
            assert count(GlobalPointer(*size)) == 885_888
            assert count(EfficientGlobalPointer(*size)) == 100_754

    @pytest.mark.parametrize("kind", POINTERS)
    def test_every_parameter_and_every_visible_state_gets_a_gradient(self, kind):
        torch.manual_seed(0)
        pointer = kind(6, 3, 4, bias_start=-2.0).double()
        hidden = random(2, 5, 6).requires_grad_()
        mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
        positives = torch.tensor([[[7], [-1], [0]], [[1], [6], [-1]]])
        scores = pointer(hidden, mask)
        sparse_zlpr_loss(scores.flatten(-2), positives).backward()
        for name, parameter in pointer.named_parameters():
            assert parameter.grad.isfinite().all(), name
            assert (parameter.grad != 0).any(dim=-1).all(), name
        assert (hidden.grad[mask] != 0).any(dim=-1).all()
        assert (hidden.grad[~mask] == 0).all()

    @pytest.mark.parametrize("kind", POINTERS)
    def test_gradcheck(self, kind):
        torch.manual_seed(0)
        pointer = kind(4, 2, 2, causal=False, bias_start=-1.0).double()
        hidden = random(1, 3, 4).requires_grad_()
        assert torch.autograd.gradcheck(pointer, (hidden,))

    def test_repr_shows_the_options(self):
        for kind in POINTERS:
            assert "heads=3, causal=False, rope=True" in repr(kind(8, 3, 4, causal=False))

    def test_every_layer_is_tried(self):
        for kind in POINTERS:
            names = {name for owner, name in LAYERS if owner is kind}
            assert names == {name for name, _ in kind(6, 2, 4).named_children()}


class TestPrecision:
    @pytest.mark.parametrize("kind", POINTERS)
    def test_autocast_projects_in_half_precision_and_scores_in_float32(self, kind):
        torch.manual_seed(0)
        pointer = kind(16, 3, 8, bias_start=-8.0)
        hidden = random(2, 9, 16, dtype=torch.float32)
        exact = copy.deepcopy(pointer).double()(hidden.double())
        seen = []
        pointer.projection.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = pointer(hidden)
        assert seen == [torch.bfloat16]
        assert scores.dtype == torch.float32
        kept = exact.isfinite()
        error = (scores.double() - exact)[kept].abs().max()
        # The projection's rounding alone; scores rounded to bfloat16 near -8 are off by up to 1/64.
        assert 0 < error < 1 / 64
        rounded = (exact.bfloat16().double() - exact)[kept].abs().max()
        assert error < rounded

    @pytest.mark.parametrize("kind", POINTERS)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_weights(self, kind, dtype):
        torch.manual_seed(0)
        pointer = kind(16, 3, 8, bias_start=-8.0).to(dtype)
        hidden = random(2, 9, 16).to(dtype)
        scores = pointer(hidden)
        assert scores.dtype == torch.float32
        exact = pointer.double()(hidden.double())
        kept = exact.isfinite()
        assert (scores.double() - exact)[kept].abs().max() < 0.1
        loss = sparse_zlpr_loss(scores.flatten(-2), torch.zeros(2, 3, 1, dtype=torch.int64))
        assert loss.isfinite()

    def test_head_scores_are_float32_under_autocast_alone(self):
        """Their layer is called on its weights' dtype: half-precision weights round the result."""
        torch.manual_seed(0)
        pointer = EfficientGlobalPointer(16, 3, 8, bias_start=-8.0)
        hidden = random(2, 9, 16, dtype=torch.float32)
        seen = []
        pointer.head_scores.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            parts = pointer.parts(hidden)
        pointer.bfloat16()
        rounded = pointer.parts(hidden.bfloat16())
        assert seen == [torch.float32, torch.bfloat16]
        assert not torch.equal(parts.start, parts.start.bfloat16())
        assert torch.equal(rounded.start, rounded.start.bfloat16())
        assert {part.dtype for part in (*parts, *rounded)} == {torch.float32}

    @pytest.mark.parametrize("kind", POINTERS)
    def test_float64_stays_float64(self, kind):
        assert kind(6, 2, 4).double()(random(1, 3, 6)).dtype == torch.float64

    @pytest.mark.parametrize("kind", POINTERS)
    def test_compiles_into_one_graph(self, kind):
        torch.manual_seed(0)
        pointer = kind(8, 2, 4, bias_start=-1.0)
        # Forward and backward are traced and run without generating code, which takes minutes.
        compiled = torch.compile(pointer, fullgraph=True, backend="aot_eager")
        hidden = random(2, 5, 8, dtype=torch.float32).requires_grad_()
        mask = torch.arange(5) < torch.tensor([[5], [3]])
        expected, actual = pointer(hidden, mask), compiled(hidden, mask)
        torch.testing.assert_close(actual, expected)
        kept = expected.isfinite()
        (wanted,) = torch.autograd.grad(expected[kept].sum(), hidden)
        (returned,) = torch.autograd.grad(actual[kept].sum(), hidden)
        torch.testing.assert_close(returned, wanted)


class TestErrors:
    @pytest.mark.parametrize("kind", POINTERS)
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ((8, 2.0, 4), TypeError, "heads must be an int, got float"),
            ((True, 2, 4), TypeError, "hidden_size must be an int, got bool"),
            ((0, 2, 4), ValueError, "hidden_size must be at least 1, got 0"),
            ((8, 2, -4), ValueError, "head_size must be at least 1, got -4"),
            ((8, 2, 5), ValueError, "head_size must be even for RoPE, got 5"),
        ],
    )
    def test_sizes(self, kind, arguments, error, message):
        with pytest.raises(error, match=message):
            kind(*arguments)

    @pytest.mark.parametrize("kind", POINTERS)
    def test_any_integer_is_a_size(self, kind):
        pointer = kind(np.int64(8), torch.tensor(2), np.uint8(4))
        assert [type(x) for x in (pointer.hidden_size, pointer.heads, pointer.head_size)] == [
            int
        ] * 3
        assert pointer(torch.zeros(1, 3, 8)).shape == (1, 2, 3, 3)

    @pytest.mark.parametrize("kind", POINTERS)
    def test_odd_head_size_is_fine_without_rope(self, kind):
        assert kind(8, 2, 5, rope=False)(torch.zeros(1, 3, 8)).shape == (1, 2, 3, 3)

    @pytest.mark.parametrize("kind", POINTERS)
    @pytest.mark.parametrize(
        ("hidden", "mask", "error", "message"),
        [
            (
                torch.zeros(1, 3, 8, dtype=torch.long),
                None,
                TypeError,
                "hidden must .*got torch.int64",
            ),
            ("states", None, TypeError, "hidden must be a floating-point tensor, got str"),
            (torch.zeros(3, 8), None, ValueError, r"hidden must .*\(B, L, 8\), got \(3, 8\)"),
            (torch.zeros(1, 3, 7), None, ValueError, r"\(B, L, 8\), got \(1, 3, 7\)"),
            (torch.zeros(1, 3, 8), torch.ones(1, 3), TypeError, "mask must .*bool.*torch.float32"),
            (torch.zeros(1, 3, 8), [True] * 3, TypeError, "mask must be a bool tensor, got list"),
            (
                torch.zeros(1, 3, 8),
                torch.ones(1, 4, dtype=torch.bool),
                ValueError,
                r"mask must have shape \(1, 3\), got \(1, 4\)",
            ),
        ],
    )
    def test_input(self, kind, hidden, mask, error, message):
        with pytest.raises(error, match=message):
            kind(8, 2, 4)(hidden, mask)

    def test_input_of_parts(self):
        with pytest.raises(ValueError, match=r"hidden must have shape \(B, L, 8\)"):
            EfficientGlobalPointer(8, 2, 4).parts(torch.zeros(2, 8))
