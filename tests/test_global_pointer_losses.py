"""The losses and the decoding that fill no tables, against filled tables in float64."""

import math
import warnings

import pytest
import torch
from torch.profiler import profile
from torch.utils.checkpoint import checkpoint

from lib.global_pointer import (
    EfficientGlobalPointer,
    GlobalPointer,
    _products,
    factorised_spans,
    factorised_zlpr_loss,
    streaming,
    streaming_zlpr_loss,
)
from references.global_pointer import counting, dense_losses, filled, positive_table
from tests.pointer_parts import hard_parts

CUDA = pytest.mark.cuda
INF = math.inf


def reference(parts):
    """Losses, gradients under the upstream gradient of `upstream`, in float64."""
    leaves = [part.double().requires_grad_() for part in parts.scores()]
    shape = tuple(parts.start.shape)
    keep = counting(shape, parts.mask, parts.causal)
    scores = filled(*leaves).masked_fill(~keep, -INF)
    losses = dense_losses(scores, positive_table(shape, parts.positives), keep)
    gradients = torch.autograd.grad(losses, leaves, upstream(losses))
    return losses.detach(), gradients


def upstream(losses):
    return torch.linspace(0.5, 2.0, losses.numel()).view(losses.shape).to(losses)


def ours(parts, device="cpu"):
    leaves = [part.to(device).requires_grad_() for part in parts.scores()]
    mask = None if parts.mask is None else parts.mask.to(device)
    losses = factorised_zlpr_loss(
        *leaves, parts.positives.to(device), mask=mask, causal=parts.causal, reduction="none"
    )
    return losses, torch.autograd.grad(losses, leaves, upstream(losses))


def errors(parts, device="cpu"):
    """Largest relative error of a loss, and of the gradients relative to the largest of them.

    Of all three parts: in one part the pull of a positive and the push of a negative may cancel
    down to nothing, of which no digit can be right.
    """
    losses, gradients = (x for x in ours(parts, device))
    true, true_gradients = reference(parts)
    tiny = torch.finfo(losses.dtype).tiny
    value = (losses.cpu().double() - true).abs() / true.clamp(min=tiny / 1e-7)
    worst, size = 0.0, max(tiny / 1e-7, *(right.abs().max().item() for right in true_gradients))
    for gradient, right in zip(gradients, true_gradients, strict=True):
        worst = max(worst, (gradient.cpu().double() - right).abs().max().item() / size)
    return value.max().item(), worst


def example(heads=3, length=6, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    parts = [
        torch.randn(*shape, generator=generator, dtype=dtype)
        for shape in ((2, length, length), (2, heads, length), (2, heads, length))
    ]
    positives = torch.full((2, heads, 2, 2), -1)
    positives[0, 0] = torch.tensor([[0, 2], [1, 1]])
    positives[1, 1, 1] = torch.tensor([2, 3])
    return parts, positives


@pytest.fixture(params=["products", "tiles", "tables"])
def path(request, monkeypatch):
    """Few cells are filled, many go through products, and these in tiles: here all at any size."""
    monkeypatch.setattr(_products, "_FEW_CELLS", 1 << 40 if request.param == "tables" else 0)
    if request.param == "tiles":
        monkeypatch.setattr(_products, "_TILE_ROWS", 5)
        monkeypatch.setattr(_products, "_CHUNK_CELLS", 60)


@pytest.mark.usefixtures("path")
class TestFactorisedLoss:
    def test_random_and_adversarial_cases(self):
        """3150 inputs in float32: each loss to 5e-7, gradients to 5e-6, against float64."""
        worst = [0.0, 0.0]
        for parts in hard_parts(3150):
            value, gradient = errors(parts)
            assert value <= 5e-7, parts.name
            assert gradient <= 5e-6, parts.name
            worst = [max(worst[0], value), max(worst[1], gradient)]
        assert worst[0] > 0
        assert worst[1] > 0

    def test_gradient_is_zero_where_nothing_counts(self):
        for parts in hard_parts(90):
            keep = counting(tuple(parts.start.shape), parts.mask, parts.causal).any(1)
            _, (pair, start, end) = ours(parts)
            assert (pair[~keep] == 0).all(), parts.name
            if parts.mask is not None:
                hidden = ~parts.mask[:, None].expand_as(start)
                assert (start[hidden] == 0).all()
                assert (end[hidden] == 0).all()

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("masked", [True, False])
    def test_gradcheck(self, causal, masked):
        parts, positives = example()
        mask = torch.tensor([[True] * 6, [False, True, True, True, True, False]])
        leaves = [part.requires_grad_() for part in parts]

        def loss(*scores):
            return factorised_zlpr_loss(
                *scores, positives, mask=mask if masked else None, causal=causal, reduction="none"
            )

        assert torch.autograd.gradcheck(loss, leaves)
        assert torch.autograd.gradgradcheck(loss, leaves)
        for one in range(3):  # each alone, as frozen parts need no gradient
            alone = [leaf.detach().requires_grad_(k == one) for k, leaf in enumerate(leaves)]
            assert torch.autograd.gradcheck(loss, alone)
            assert torch.autograd.gradgradcheck(loss, alone)

    @pytest.mark.parametrize("masked", [True, False])
    def test_any_strides(self, masked):
        """As a pointer's parts come: two halves of a transposed output."""
        (pair, start, end), positives = example()
        both = torch.cat((start, end), 1).mT.contiguous().mT
        strided = [pair.mT.contiguous().mT, *both.chunk(2, 1)]
        assert not any(part.is_contiguous() for part in strided)
        mask = torch.ones(2, 6, dtype=torch.bool) if masked else None
        found = []
        for parts in (strided, (pair, start, end)):
            leaves = [part.detach().requires_grad_() for part in parts]
            loss = factorised_zlpr_loss(*leaves, positives, mask=mask, causal=True)
            found.append((loss, *torch.autograd.grad(loss, leaves)))
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b)

    def test_float64_input_stays_as_it_is(self):
        parts, positives = example()
        before = [part.clone() for part in parts]
        leaves = [part.requires_grad_() for part in parts]
        factorised_zlpr_loss(*leaves, positives).backward()
        assert all(torch.equal(a, b) for a, b in zip(before, parts, strict=True))

    def test_transforms_take_the_formula(self):
        parts, positives = example()
        leaves = [part.requires_grad_() for part in parts]
        loss = factorised_zlpr_loss(*leaves, positives)
        expected = torch.autograd.grad(loss, leaves)
        found = torch.func.grad(
            lambda *scores: factorised_zlpr_loss(*scores, positives), argnums=(0, 1, 2)
        )(*parts)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
        positives[0, 0, 0, 1] = 9
        value, _ = torch.func.vjp(
            lambda *s: factorised_zlpr_loss(*s, positives, reduction="none"), *parts
        )
        assert value[0, 0].isnan()
        assert value.isnan().sum() == 1

    def test_compiled_graph_is_whole_and_equal(self):
        parts, positives = example(dtype=torch.float32)
        leaves = [part.requires_grad_() for part in parts]

        def loss(*scores):
            return factorised_zlpr_loss(*scores, positives, causal=True) * 2

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves)
        plain = loss(*leaves)
        torch.testing.assert_close(compiled, plain, rtol=1e-6, atol=0)
        pairs = (torch.autograd.grad(value, leaves) for value in (compiled, plain))
        for a, b in zip(*pairs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)

    def test_reductions(self):
        parts, positives = example()
        each = factorised_zlpr_loss(*parts, positives, reduction="none")
        assert each.shape == (2, 3)
        assert factorised_zlpr_loss(*parts, positives).item() == each.mean().item()
        assert factorised_zlpr_loss(*parts, positives, reduction="sum").item() == each.sum().item()

    def test_no_heads(self):
        parts, positives = example()
        scores = (parts[0], parts[1][:, :0], parts[2][:, :0])
        assert factorised_zlpr_loss(*scores, positives[:, :0], reduction="sum") == 0
        assert factorised_zlpr_loss(*scores, positives[:, :0]) == 0

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_computes_in_float32(self, dtype):
        parts, positives = example(dtype=torch.float32)
        halves = [part.to(dtype).requires_grad_() for part in parts]
        floats = [half.detach().float().requires_grad_() for half in halves]
        loss = factorised_zlpr_loss(*halves, positives)
        expected = factorised_zlpr_loss(*floats, positives)
        assert loss.dtype == torch.float32
        assert loss.item() == expected.item()
        loss.backward()
        expected.backward()
        for half, full in zip(halves, floats, strict=True):
            assert torch.equal(half.grad, full.grad.to(dtype))

    def test_upstream_gradients_of_any_size(self):
        parts, positives = example(dtype=torch.float32)
        leaves = [part.requires_grad_() for part in parts]
        loss = factorised_zlpr_loss(*leaves, positives)
        unit = torch.autograd.grad(loss, leaves, retain_graph=True)
        for size in (0.0, 1e-30, 1e30):
            scaled = torch.autograd.grad(loss, leaves, torch.tensor(size), retain_graph=True)
            for a, b in zip(scaled, unit, strict=True):
                torch.testing.assert_close(a, b * size, rtol=1e-5, atol=0)

    def test_bf16_training_is_not_capped(self):
        """The published form takes the positives away from the sum, and stops near 3."""
        assert train(lambda *args: factorised_zlpr_loss(*args, reduction="sum")) > 20
        assert train(published_subtraction) < 5

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"positives": [[0, 6]]}, ValueError, r"in \[0, 6\).*positives\[0, 0, 0\] = \(0, 6\)"),
            ({"positives": [[-2, 0]]}, ValueError, r"positives\[0, 0, 0\] = \(-2, 0\)"),
            ({"positives": [[-1, 0]]}, ValueError, r"positives\[0, 0, 0\] = \(-1, 0\)"),
            ({"positives": [[3, 1]]}, ValueError, r"start <= end under causal.*= \(3, 1\)"),
            ({"positives": [[1, 5]]}, ValueError, r"= \(1, 5\) and mask\[0, 5\] = False"),
            ({"positives": [[0.0, 1.0]]}, TypeError, "torch.int64 tensor, got torch.float32"),
            ({"positives": [0, 1]}, ValueError, r"\(1, 1, K, 2\), got \(1, 1, 2\)"),
            ({"pair": (1, 6, 5)}, ValueError, r"pair_scores must have shape \(1, 6, 6\), got"),
            ({"start": (1, 6)}, ValueError, r"start_scores must have shape \(B, H, L\)"),
            ({"end": (1, 2, 6)}, ValueError, r"end_scores must have shape .*got \(1, 2, 6\)"),
            ({"mask": torch.ones(1, 5, dtype=torch.bool)}, ValueError, r"got \(1, 5\)"),
            ({"mask": torch.ones(1, 6)}, TypeError, "mask must be a bool tensor, got torch.float"),
            ({"reduction": "average"}, ValueError, "reduction must be .* got 'average'"),
            ({"pair_nan": math.nan}, ValueError, r"got nan at pair_scores\[0, 0, 1\]"),
            ({"pair_nan": INF}, ValueError, r"got inf at pair_scores\[0, 0, 1\]"),
            ({"start_nan": math.nan}, ValueError, r"got nan at start_scores\[0, 0, 1\]"),
            ({"end_nan": INF}, ValueError, r"got inf at end_scores\[0, 0, 1\]"),
            ({"end_nan": -INF}, ValueError, r"finite score.*cell \(0, 1\).* \+ -inf"),
            ({"dtype": torch.float64}, TypeError, "start_scores must share one dtype"),
            ({"integers": True}, TypeError, "floating-point tensor, got torch.int64"),
        ],
    )
    def test_errors(self, change, error, message):
        pair = torch.zeros(change.get("pair", (1, 6, 6)), dtype=change.get("dtype"))
        start, end = (torch.zeros(change.get(name, (1, 1, 6))) for name in ("start", "end"))
        if "integers" in change:
            pair = pair.long()
        if "pair_nan" in change:
            pair[0, 0, 1] = change["pair_nan"]
        for name, part in (("start_nan", start), ("end_nan", end)):
            if name in change:
                part[0, 0, 1] = change[name]
        positives = torch.tensor(change.get("positives", [[0, 1]]))[None, None]
        mask = change.get("mask", torch.tensor([[True] * 5 + [False]]))
        reduction = change.get("reduction", "mean")
        with pytest.raises(error, match=message):
            factorised_zlpr_loss(
                pair, start, end, positives, mask=mask, causal=True, reduction=reduction
            )

    @CUDA
    def test_cuda_agrees(self):
        for parts in hard_parts(300):
            value, gradient = errors(parts, "cuda")
            assert value <= 5e-7, parts.name
            assert gradient <= 5e-6, parts.name


@pytest.mark.usefixtures("path")
class TestQueriesAndKeys:
    """Pair scores given as what they are products of."""

    def leaves(self, dtype=torch.float64, size=2):
        generator = torch.Generator().manual_seed(1)
        (_, start, end), positives = example(dtype=dtype)
        queries, keys = torch.randn(2, 2, 6, size, generator=generator, dtype=torch.float64)
        return [queries.to(dtype), keys.to(dtype), start, end], positives

    def loss(self, queries, keys, start, end, *args, **options):
        return factorised_zlpr_loss((queries, keys), start, end, *args, **options)

    def test_equals_the_float64_reference(self):
        """Random masks, heads and positives; a float32 product is all that may round."""
        worst = 0.0
        for seed, parts in enumerate(hard_parts(900)):
            size = 1 + seed % 5  # also no smaller than the length: then a table is made
            generator = torch.Generator().manual_seed(seed)
            shape = (2, *parts.pair.shape[:2], size)
            queries, keys = torch.randn(shape, generator=generator) * (0.5, 1.0, 2.0)[seed % 3]
            finite = [part.nan_to_num(0, 0, 0).clamp(-20, 20) for part in parts.scores()[1:]]
            leaves = [part.requires_grad_() for part in (queries, keys, *finite)]
            options = {"mask": parts.mask, "causal": parts.causal, "reduction": "none"}
            losses = self.loss(*leaves, parts.positives, **options)
            found = torch.autograd.grad(losses, leaves, upstream(losses))

            wide = [part.detach().double().requires_grad_() for part in leaves]
            keep = counting(tuple(parts.start.shape), parts.mask, parts.causal)
            scores = filled(wide[0] @ wide[1].mT, *wide[2:]).masked_fill(~keep, -INF)
            true = dense_losses(scores, positive_table(keep.shape[:3], parts.positives), keep)
            expected = torch.autograd.grad(true, wide, upstream(true))
            assert ((losses.double() - true).abs() <= 1e-6 * true + 1e-30).all(), parts.name
            largest = max(right.abs().max().item() for right in expected)
            for gradient, right in zip(found, expected, strict=True):
                error = (gradient.double() - right).abs().max().item() / max(largest, 1e-30)
                assert error < 1e-5, (seed, parts.name)
                worst = max(worst, error)
        assert worst > 0

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("masked", [True, False])
    def test_gradcheck(self, causal, masked):
        parts, positives = self.leaves()
        mask = torch.tensor([[True] * 6, [False, True, True, True, True, False]])
        leaves = [part.requires_grad_() for part in parts]

        def loss(*given):
            options = {"mask": mask if masked else None, "causal": causal, "reduction": "none"}
            return self.loss(*given, positives, **options)

        assert torch.autograd.gradcheck(loss, leaves)
        assert torch.autograd.gradgradcheck(loss, leaves)
        for one in range(4):
            alone = [leaf.detach().requires_grad_(k == one) for k, leaf in enumerate(leaves)]
            assert torch.autograd.gradcheck(loss, alone)

    def test_what_is_masked_may_be_anything(self):
        parts, positives = self.leaves(torch.float32)
        mask = torch.tensor([[True] * 6, [False, True, True, True, True, False]])
        expected = self.loss(*parts, positives, mask=mask)
        parts[0][1, 0], parts[1][1, 5] = math.nan, INF
        leaves = [part.requires_grad_() for part in parts]
        loss = self.loss(*leaves, positives, mask=mask)
        assert loss.item() == expected.item()
        queries, keys, _, _ = torch.autograd.grad(loss, leaves)
        assert (queries[1, [0, 5]] == 0).all()
        assert (keys[1, [0, 5]] == 0).all()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_multiplies_in_float32(self, dtype):
        parts, positives = self.leaves(dtype)
        halves = [part.requires_grad_() for part in parts]
        floats = [half.detach().float().requires_grad_() for half in halves]
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.loss(*halves, positives)
        gradients = torch.autograd.grad(loss, halves)
        expected = self.loss(*floats, positives)
        assert loss.dtype == torch.float32
        assert loss.item() == expected.item()
        for half, full in zip(gradients, torch.autograd.grad(expected, floats), strict=True):
            assert torch.equal(half, full.to(dtype))

    def test_transforms_and_compiled_graphs(self):
        parts, positives = self.leaves()
        leaves = [part.requires_grad_() for part in parts]

        def loss(*given):
            return self.loss(*given, positives, causal=True)

        expected = torch.autograd.grad(loss(*leaves), leaves)
        transformed = torch.func.grad(loss, argnums=(0, 1, 2, 3))(*parts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*leaves)
        found = torch.autograd.grad(compiled, leaves)
        for a, b, c in zip(expected, transformed, found, strict=True):
            torch.testing.assert_close(b, a)
            torch.testing.assert_close(c, a)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (
                {0: torch.zeros(2, 6)},
                ValueError,
                r"queries must have shape \(B, L, d\), got \(2, 6\)",
            ),
            (
                {1: torch.zeros(2, 6, 3)},
                ValueError,
                r"keys must have shape \(2, 6, 2\), got \(2, 6, 3\)",
            ),
            ({1: torch.zeros(2, 6, 2).long()}, TypeError, "keys must be a floating-point tensor"),
            ({1: None}, TypeError, "pair_scores must be a floating-point tensor, got tuple"),
            ({0: torch.full((2, 6, 2), INF)}, ValueError, r"got inf at queries\[0, 0, 0\]"),
            ({1: torch.full((2, 6, 2), math.nan)}, ValueError, r"got nan at keys\[0, 0, 0\]"),
            (
                {0: torch.full((2, 6, 2), 1e30), 1: torch.full((2, 6, 2), 1e30)},
                ValueError,
                r"got inf at pair_scores\[0, 0, 0\]",  # finite factors, too large a product
            ),
            ({3: torch.full((2, 3, 6), -INF)}, ValueError, r"finite score.*cell \(0, 2\).*-inf"),
        ],
    )
    def test_errors(self, change, error, message):
        parts, positives = self.leaves(torch.float32)
        given = [change.get(place, part) for place, part in enumerate(parts)]
        with pytest.raises(error, match=message):
            self.loss(*given, positives)

    def test_three_are_too_many(self):
        (queries, keys, start, end), positives = self.leaves()
        with pytest.raises(TypeError, match="floating-point tensor, got tuple"):
            factorised_zlpr_loss((queries, keys, keys), start, end, positives)

    def test_a_pointer_has_the_loss_of_its_parts(self):
        torch.manual_seed(0)
        pointer = EfficientGlobalPointer(8, 3, 4).double()
        hidden = torch.randn(2, 6, 8, dtype=torch.float64, requires_grad=True)
        _, positives = example()
        mask = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
        loss = pointer.loss(hidden, positives, mask)
        expected = factorised_zlpr_loss(*pointer.parts(hidden), positives, mask=mask, causal=True)
        torch.testing.assert_close(loss, expected)
        leaves = [hidden, *pointer.parameters()]
        pairs = (torch.autograd.grad(value, leaves) for value in (loss, expected))
        for a, b in zip(*pairs, strict=True):
            torch.testing.assert_close(a, b)


def test_queries_and_keys_are_never_multiplied_out():
    batch, heads, length = 2, 3, 700
    torch.manual_seed(0)
    queries, keys = torch.randn(2, batch, length, 8)
    start, end = torch.randn(2, batch, heads, length)
    for part in (queries, keys, start, end):
        part.requires_grad_()
    positives = torch.full((batch, heads, 1, 2), 3)
    table = 4 * batch * length**2
    for products in (True, False):
        pair = (queries, keys) if products else queries @ keys.mT
        with profile(profile_memory=True) as recorded:
            factorised_zlpr_loss(pair, start, end, positives, causal=True).backward()
        largest, peak = allocations(recorded)
        assert (largest < table / 3) == products
        assert (peak < table) == products
    pointer = EfficientGlobalPointer(8, heads, 8)
    hidden = torch.randn(batch, length, 8)
    with profile(profile_memory=True) as recorded:
        pointer.loss(hidden, positives).backward()
    assert allocations(recorded)[0] < table / 3


def test_factorised_loss_never_holds_a_table_of_all_heads():
    """Neither as one tensor nor in pieces, in ordinary and in adversarial states."""
    batch, heads, length = 2, 60, 160
    table = 4 * batch * heads * length**2
    for kind, most in (("ordinary", 0.25), ("every row opened", 0.6)):
        torch.manual_seed(0)
        parts = [
            torch.randn(batch, length, length),
            torch.randn(batch, heads, length),
            torch.randn(batch, heads, length),
        ]
        if kind != "ordinary":
            parts[0][..., 0] += 300
            parts[2][..., -1] += 300
        leaves = [part.requires_grad_() for part in parts]
        positives = torch.full((batch, heads, 1, 2), 3)
        with profile(profile_memory=True) as recorded:
            factorised_zlpr_loss(*leaves, positives).backward()
        largest, peak = allocations(recorded)
        assert 0 < largest < table / 8, kind
        assert peak < table * most, kind


def allocations(recorded):
    """Largest allocation and largest sum of what is held, in bytes."""
    largest = held = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            largest = max(largest, event.nbytes())
            held += event.nbytes()
            peak = max(peak, held)
    return largest, peak


def published_subtraction(pair, start, end, positives):
    """Sparse form as published, in the dtype of the input: all, minus the positives, clipped."""
    scores = filled(pair, start, end).flatten(2)
    cell = positives[..., 0] * pair.shape[-1] + positives[..., 1]
    zero = torch.zeros_like(scores[..., :1])
    chosen = scores.gather(-1, cell)
    everything = torch.cat([scores, zero], -1).logsumexp(-1)
    positive = chosen.logsumexp(-1)
    rest = torch.clamp(1 - torch.exp(positive - everything), 1e-7, 1)
    up = torch.cat([-chosen, zero], -1).logsumexp(-1)
    return (everything + torch.log(rest) + up).sum()


def train(loss):
    """Largest score of the one positive that bf16 training reaches."""
    pair = torch.full((1, 8, 8), -20.0)
    pair[0, 2, 5] = 0.0
    pair = pair.bfloat16().requires_grad_()
    nothing = torch.zeros(1, 1, 8, dtype=torch.bfloat16)
    positives = torch.tensor([[[[2, 5]]]])
    reached = 0.0
    for _ in range(200):
        (gradient,) = torch.autograd.grad(loss(pair, nothing, nothing, positives), pair)
        with torch.no_grad():
            pair -= 0.25 * gradient.sign()
        reached = pair[0, 2, 5].item()
    return reached


class TestStreamingLoss:
    @pytest.mark.parametrize("tile", [1 << 17, 100, 7])
    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("masked", [True, False])
    def test_equals_the_filled_tables(self, monkeypatch, tile, causal, masked):
        monkeypatch.setattr(streaming, "_TILE_CELLS", tile)
        generator = torch.Generator().manual_seed(tile)
        shape = (2, 3, 6)
        for scale in (0.3, 3.0, 10.0):
            queries, keys = torch.randn(2, *shape, 4, generator=generator) * scale
            bias = torch.randn(3, generator=generator)
            _, positives = example()
            mask = None
            if masked:
                mask = torch.tensor([[True] * 6, [False, True, True, True, True, False]])
            leaves = [x.requires_grad_() for x in (queries, keys, bias)]
            losses = streaming_zlpr_loss(
                *leaves[:2], positives, bias=bias, mask=mask, causal=causal, reduction="none"
            )
            wide = [x.detach().double().requires_grad_() for x in leaves]
            keep = counting(shape, mask, causal)
            scores = wide[0] @ wide[1].mT + wide[2][:, None, None]
            true = dense_losses(scores, positive_table(shape, positives), keep)
            torch.testing.assert_close(losses.double(), true, rtol=3e-6, atol=0)
            # A product of size s in float32 is off by about s units in the last place of 1.
            tolerance = 5e-6 + 1e-7 * scores.abs().max().item()
            found = torch.autograd.grad(losses, leaves, upstream(losses))
            right = torch.autograd.grad(true, wide, upstream(true))
            for a, b in zip(found, right, strict=True):
                assert (a.double() - b).abs().max() <= tolerance * b.abs().max()

    @pytest.mark.parametrize("tile", [1 << 17, 7])
    def test_gradcheck(self, monkeypatch, tile):
        monkeypatch.setattr(streaming, "_TILE_CELLS", tile)
        queries, keys = torch.randn(2, 2, 3, 6, 2, dtype=torch.float64).requires_grad_()
        bias = torch.randn(3, dtype=torch.float64).requires_grad_()
        _, positives = example()

        def loss(queries, keys, bias):
            return streaming_zlpr_loss(queries, keys, positives, bias=bias, reduction="none")

        assert torch.autograd.gradcheck(loss, (queries, keys, bias))
        assert torch.autograd.gradgradcheck(loss, (queries, keys, bias))

    def test_masked_states_may_hold_anything(self):
        queries, keys = torch.randn(2, 1, 1, 4, 2)
        mask = torch.tensor([[True, True, True, False]])
        positives = torch.tensor([[[[0, 1]]]])
        clean = streaming_zlpr_loss(queries, keys, positives, mask=mask)
        queries[..., 3, :], keys[..., 3, :] = math.nan, INF
        leaves = [queries.requires_grad_(), keys.requires_grad_()]
        loss = streaming_zlpr_loss(*leaves, positives, mask=mask)
        assert loss.item() == clean.item()
        loss.backward()
        assert all((leaf.grad[..., 3, :] == 0).all() for leaf in leaves)

    def test_never_holds_a_table_of_all_heads(self):
        queries, keys = torch.randn(2, 2, 40, 160, 4).requires_grad_()
        positives = torch.full((2, 40, 1, 2), 3)
        with profile(profile_memory=True) as recorded:
            streaming_zlpr_loss(queries, keys, positives).backward()
        largest, peak = allocations(recorded)
        table = 4 * 2 * 40 * 160**2
        assert 0 < largest < table / 8
        assert peak < table / 4

    def test_causal_holds_no_table_of_cells(self):
        """A diagonal band of a tile says what lies below; of all cells it took 16 MiB here."""
        queries, keys = torch.randn(2, 1, 1, 4096, 4).requires_grad_()
        positives = torch.full((1, 1, 1, 2), 3)
        peaks = {}
        for causal in (False, True):
            with profile(profile_memory=True) as recorded:
                streaming_zlpr_loss(queries, keys, positives, causal=causal).backward()
            peaks[causal] = allocations(recorded)[1]
        assert 0 < peaks[True] < peaks[False] + 2**20

    def test_an_error_holds_no_table_either(self):
        queries, keys = torch.ones(2, 1, 1, 4096, 1)
        queries[..., 4000, 0] = keys[..., 4090, 0] = 1e20
        with (
            profile(profile_memory=True) as recorded,
            pytest.raises(ValueError, match=r"\[0, 0, 4000, 4090\]"),
        ):
            streaming_zlpr_loss(queries, keys, torch.full((1, 1, 1, 2), -1), causal=True)
        assert 0 < allocations(recorded)[1] < 2**22

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"queries": (1, 6, 2)}, ValueError, r"queries must have shape \(B, H, L, d\)"),
            ({"keys": (1, 1, 6, 3)}, ValueError, r"keys must have shape \(1, 1, 6, 2\), got"),
            ({"bias": torch.zeros(2)}, ValueError, r"bias must have shape \(1,\), got \(2,\)"),
            ({"bias": torch.tensor([INF])}, ValueError, r"got inf at bias\[0\]"),
            ({"bias": torch.zeros(1).double()}, TypeError, "bias must share one dtype"),
            ({"positives": [[3, 1]]}, ValueError, "start <= end under causal"),
            ({"nan": True}, ValueError, r"got nan at keys\[0, 0, 2, 1\]"),
        ],
    )
    def test_errors(self, change, error, message):
        queries = torch.zeros(change.get("queries", (1, 1, 6, 2)))
        keys = torch.zeros(change.get("keys", (1, 1, 6, 2)))
        if "nan" in change:
            keys[0, 0, 2, 1] = math.nan
        positives = torch.tensor(change.get("positives", [[0, 1]]))[None, None]
        with pytest.raises(error, match=message):
            streaming_zlpr_loss(queries, keys, positives, bias=change.get("bias"), causal=True)

    @pytest.mark.parametrize("tile", [1 << 17, 7])  # by filled tables, by tiles
    @pytest.mark.parametrize(
        ("query", "key", "value"),
        [(1e20, 1e20, "inf"), (1e20, -1e20, "-inf"), ([1e20, -1e20], 1e20, "nan")],
    )
    def test_products_that_overflow_are_named(self, monkeypatch, tile, query, key, value):
        monkeypatch.setattr(streaming, "_TILE_CELLS", tile)
        queries, keys = torch.zeros(2, 2, 6, 2), torch.zeros(2, 2, 6, 2)
        queries[1, 0, 2], keys[1, 0, 4] = torch.tensor(query), torch.tensor(key)
        positives = torch.full((2, 2, 1, 2), -1)
        positives[1, 0] = torch.tensor([2, 4])
        place = rf"got {value} at \(queries @ keys.mT \+ bias\)\[1, 0, 2, 4\]"
        with pytest.raises(ValueError, match=f"finite products where they count, {place}"):
            streaming_zlpr_loss(queries, keys, positives, causal=True)

    @pytest.mark.parametrize("tile", [1 << 17, 7])
    def test_products_that_do_not_count_may_overflow(self, monkeypatch, tile):
        """Below the diagonal; and a negative at minus infinity adds nothing."""
        monkeypatch.setattr(streaming, "_TILE_CELLS", tile)
        queries, keys = torch.zeros(2, 1, 1, 6, 2)
        clean = streaming_zlpr_loss(queries, keys, torch.tensor([[[[0, 1]]]]), causal=True)
        queries[..., 4, :], keys[..., 2, :] = 1e20, 1e20  # cell (4, 2) alone
        loss = streaming_zlpr_loss(queries, keys, torch.tensor([[[[0, 1]]]]), causal=True)
        assert loss.item() == clean.item()
        keys[..., 5, :] = -1e20  # and (4, 5)
        loss = streaming_zlpr_loss(queries, keys, torch.tensor([[[[0, 1]]]]), causal=True)
        torch.testing.assert_close(loss.item(), math.log(20) + math.log(2))

    @CUDA
    def test_cuda_agrees(self):
        queries, keys = torch.randn(2, 2, 3, 6, 4)
        _, positives = example()
        here = streaming_zlpr_loss(queries, keys, positives)
        there = streaming_zlpr_loss(queries.cuda(), keys.cuda(), positives.cuda())
        torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=0)


def by_parts(positives):
    (pair, start, end), _ = example()
    return [pair, start, end], lambda *x: factorised_zlpr_loss(*x, positives, causal=True)


def by_factors(positives):
    queries, keys = torch.randn(2, 2, 6, 2, dtype=torch.float64)
    (_, start, end), _ = example()
    return [queries, keys, start, end], lambda q, k, *x: factorised_zlpr_loss(
        (q, k), *x, positives, causal=True
    )


def by_heads(positives):
    queries, keys = torch.randn(2, 2, 3, 6, 2, dtype=torch.float64)
    return [
        queries,
        keys,
        torch.randn(3, dtype=torch.float64),
    ], lambda q, k, b: streaming_zlpr_loss(q, k, positives, bias=b, causal=True)


@pytest.mark.parametrize("made", [by_parts, by_factors, by_heads])
@pytest.mark.usefixtures("path")
class TestSituations:
    """Values and gradients are the same under what PyTorch users bring."""

    @pytest.fixture
    def case(self, made, monkeypatch):
        monkeypatch.setattr(streaming, "_TILE_CELLS", 7)
        monkeypatch.setattr(streaming, "_worth_streaming", lambda queries: True)
        torch.manual_seed(0)
        leaves, loss = made(example()[1])
        return [leaf.requires_grad_() for leaf in leaves], loss

    def result(self, leaves, loss):
        value = loss(*leaves)
        return value.detach(), *torch.autograd.grad(value, leaves)

    def same(self, found, expected):
        for a, b in zip(found, expected, strict=True):
            assert torch.equal(a, b)

    def test_checkpoint(self, case):
        leaves, loss = case
        found = self.result(leaves, lambda *x: checkpoint(loss, *x, use_reentrant=False))
        self.same(found, self.result(leaves, loss))

    def test_save_on_cpu(self, case):
        with torch.autograd.graph.save_on_cpu():
            found = self.result(*case)
        self.same(found, self.result(*case))

    def test_default_device(self, case):
        expected = self.result(*case)
        with torch.device("meta"):
            found = self.result(*case)
        self.same(found, expected)

    def test_memory_filled_with_nan(self, case):
        expected = self.result(*case)
        assert torch.utils.deterministic.fill_uninitialized_memory
        torch.use_deterministic_algorithms(True)
        try:
            found = self.result(*case)
        finally:
            torch.use_deterministic_algorithms(False)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)

    def test_inputs_changed_in_place(self, case):
        leaves, loss = case
        for one in range(len(leaves)):
            copies = [leaf.detach().clone().requires_grad_() for leaf in leaves]
            inner = [copy * 1 for copy in copies]
            value = loss(*inner)
            inner[one].detach().add_(1.0)
            found, said = None, ""
            try:
                found = torch.autograd.grad(value, copies)
            except RuntimeError as error:
                said = str(error)
            if found is None:
                assert "modified by an inplace operation" in said
            else:  # then it was not needed
                self.same(found, self.result(leaves, loss)[1:])


class TestWithoutALook:
    """``validate=False``: a bad value makes the losses that see it NaN, and no others."""

    changes = (
        ({}, [[0, 0, 0], [0, 0, 0]]),
        ({"positive": (0, 6)}, [[0, 1, 0], [0, 0, 0]]),
        ({"positive": (-2, 0)}, [[0, 1, 0], [0, 0, 0]]),
        ({"positive": (-1, 0)}, [[0, 1, 0], [0, 0, 0]]),
        ({"positive": (3, 1)}, [[0, 1, 0], [0, 0, 0]]),
        ({"positive": (1, 5)}, [[0, 1, 0], [0, 0, 0]]),  # masked
        ({"queries": math.nan}, None),
        ({"queries": INF}, None),
        ({"end": math.nan}, [[0, 0, 0], [0, 0, 1]]),
        ({"end": INF}, [[0, 0, 0], [0, 0, 1]]),
        ({"start": math.nan}, [[0, 0, 0], [0, 0, 1]]),
        ({"start": INF}, [[0, 0, 0], [0, 0, 1]]),
        ({"start": -INF}, [[0, 0, 0], [0, 0, 1]]),  # of a positive
    )

    @pytest.mark.parametrize(("change", "expected"), changes)
    @pytest.mark.parametrize("pairs", ["table", "queries and keys"])
    @pytest.mark.usefixtures("path")
    def test_factorised(self, change, expected, pairs):
        queries, keys = torch.randn(2, 2, 6, 2)
        (_, start, end), positives = example(dtype=torch.float32)
        mask = torch.tensor([[True] * 5 + [False], [True] * 6])
        positives[1, 2, 0] = torch.tensor([1, 2])
        positives[0, 1, 0] = torch.tensor(change.get("positive", (2, 2)))
        start[1, 2, 1] = change.get("start", start[1, 2, 1])
        end[1, 2, 4] = change.get("end", end[1, 2, 4])
        queries[1, 2, 0] = change.get("queries", queries[1, 2, 0])
        if "queries" in change:
            expected = [[0, 0, 0], [1, 1, 1]]
        pair = queries @ keys.mT if pairs == "table" else (queries, keys)
        options = {"mask": mask, "causal": True, "reduction": "none"}
        loss = factorised_zlpr_loss(pair, start, end, positives, validate=False, **options)
        assert loss.isnan().int().tolist() == expected
        if not change:
            clean = factorised_zlpr_loss(pair, start, end, positives, **options)
            torch.testing.assert_close(loss, clean)

    @pytest.mark.parametrize(("change", "expected"), changes[:8])
    @pytest.mark.parametrize("tile", [1 << 17, 7])
    def test_streaming(self, monkeypatch, change, expected, tile):
        monkeypatch.setattr(streaming, "_TILE_CELLS", tile)
        queries, keys = torch.randn(2, 2, 3, 6, 2)
        keys[1, 0, 2:, 0] = 1  # or an infinite query might make scores of -inf alone, which may be
        _, positives = example()
        mask = torch.tensor([[True] * 5 + [False], [True] * 6])
        positives[0, 1, 0] = torch.tensor(change.get("positive", (2, 2)))
        queries[1, 0, 2, 0] = change.get("queries", queries[1, 0, 2, 0])
        if "queries" in change:
            expected = [[0, 0, 0], [1, 0, 0]]
        options = {"mask": mask, "causal": True, "reduction": "none"}
        loss = streaming_zlpr_loss(queries, keys, positives, validate=False, **options)
        assert loss.isnan().int().tolist() == expected
        if not change:
            clean = streaming_zlpr_loss(queries, keys, positives, **options)
            torch.testing.assert_close(loss, clean)

    @pytest.mark.parametrize("kind", [GlobalPointer, EfficientGlobalPointer])
    def test_modules(self, kind):
        pointer, hidden = kind(6, 1, 4), torch.zeros(1, 3, 6)
        bad = torch.tensor([[[[0, 3]]]])
        with pytest.raises(ValueError, match=r"got positives\[0, 0, 0\] = \(0, 3\)"):
            pointer.loss(hidden, bad)
        assert pointer.loss(hidden, bad, validate=False).isnan()


class TestNoCells:
    """Texts of no length, and no texts: no spans, loss 0, gradient 0."""

    @pytest.mark.parametrize("kind", [GlobalPointer, EfficientGlobalPointer])
    @pytest.mark.parametrize(("batch", "length"), [(2, 0), (0, 3), (0, 0)])
    @pytest.mark.parametrize("masked", [True, False])
    @pytest.mark.parametrize("validate", [True, False])
    def test_modules(self, kind, batch, length, masked, validate):
        pointer = kind(6, 3, 4, bias_start=1.0)
        hidden = torch.zeros(batch, length, 6, requires_grad=True)
        mask = torch.ones(batch, length, dtype=torch.bool) if masked else None
        assert pointer(hidden, mask).shape == (batch, 3, length, length)
        spans = pointer.spans(hidden, mask)
        assert spans.cells.shape == (0, 4)
        assert spans.scores.shape == (0,)
        assert spans.cells.dtype == torch.int64
        nothing = [torch.zeros(0, dtype=torch.int64)] * batch
        assert [b.shape for b in pointer.blocks(hidden, nothing, nothing)] == [(3, 0, 0)] * batch
        positives = torch.full((batch, 3, 2, 2), -1)
        for reduction in ("none", "mean", "sum"):
            loss = pointer.loss(hidden, positives, mask, reduction=reduction, validate=validate)
            assert loss.shape == ((batch, 3) if reduction == "none" else ())
            assert (loss == 0).all()
            gradients = torch.autograd.grad(loss.sum(), [hidden, *pointer.parameters()])
            assert all((gradient == 0).all() for gradient in gradients)

    @pytest.mark.parametrize("kind", [GlobalPointer, EfficientGlobalPointer])
    def test_a_positive_is_still_an_error(self, kind):
        pointer, hidden = kind(6, 1, 4), torch.zeros(2, 0, 6)
        positives = torch.tensor([[[[-1, -1]]], [[[0, 0]]]])
        with pytest.raises(ValueError, match=r"in \[0, 0\).*positives\[1, 0, 0\] = \(0, 0\)"):
            pointer.loss(hidden, positives)
        loss = pointer.loss(hidden, positives, validate=False, reduction="none")
        assert loss.isnan().tolist() == [[False], [True]]

    @pytest.mark.parametrize("kind", [GlobalPointer, EfficientGlobalPointer])
    def test_every_position_masked(self, kind):
        pointer = kind(6, 3, 4, bias_start=1.0)
        hidden, mask = torch.randn(2, 4, 6), torch.zeros(2, 4, dtype=torch.bool)
        assert len(pointer.spans(hidden, mask).cells) == 0
        loss = pointer.loss(hidden, torch.full((2, 3, 1, 2), -1), mask)
        assert loss == 0
        loss.backward()
        assert all((parameter.grad == 0).all() for parameter in pointer.parameters())


class TestSpans:
    def test_identical_to_the_filled_tables(self):
        """Cells and scores, bit by bit, also where all rows stay and where none does."""
        found = dict.fromkeys((0.0, 0.1, -3.3, 20.0), 0)
        for seed, parts in enumerate(hard_parts(600)):
            keep = counting(tuple(parts.start.shape), parts.mask, parts.causal)
            scores = filled(*parts.scores()).masked_fill(~keep, -INF)
            threshold = list(found)[seed % 4]
            spans = factorised_spans(
                *parts.scores(), mask=parts.mask, causal=parts.causal, threshold=threshold
            )
            assert torch.equal(spans.cells, (scores > threshold).nonzero()), parts.name
            assert torch.equal(spans.scores, scores[scores > threshold]), parts.name
            found[threshold] += len(spans.cells)
        assert min(found.values()) > 1000

    def test_rounding_does_not_lose_a_cell_on_the_edge(self):
        generator = torch.Generator().manual_seed(0)
        chosen = 0
        for threshold in (0.0, 0.1, -0.2) * 70:
            pair, start, end = (
                torch.randint(-3, 4, shape, generator=generator) * 0.1
                for shape in ((1, 5, 5), (1, 2, 5), (1, 2, 5))
            )
            start = start - 0.3
            scores = filled(pair, start, end)
            chosen += int(((scores > threshold) & (scores < threshold + 1e-6)).sum())
            spans = factorised_spans(pair, start, end, threshold=threshold)
            assert torch.equal(spans.cells, (scores > threshold).nonzero())
        assert chosen > 0

    @pytest.mark.parametrize("kind", [GlobalPointer, EfficientGlobalPointer])
    @pytest.mark.parametrize("causal", [True, False])
    def test_modules(self, kind, causal):
        torch.manual_seed(0)
        pointer = kind(6, 3, 4, causal=causal, bias_start=-0.2)
        hidden = torch.randn(2, 7, 6)
        mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
        positives = torch.full((2, 3, 2, 2), -1)
        positives[0, 1, 0] = torch.tensor([1, 2])
        scores = pointer(hidden, mask)
        for threshold in (0.0, -0.3, 0.2):
            spans = pointer.spans(hidden, mask, threshold=threshold)
            assert torch.equal(spans.cells, (scores > threshold).nonzero())
            torch.testing.assert_close(spans.scores, scores[scores > threshold])
        assert torch.equal(pointer.spans(hidden, mask).cells, (scores > 0).nonzero())
        loss = pointer.loss(hidden, positives, mask, reduction="none")
        keep = counting((2, 3, 7), mask, causal)
        true = dense_losses(scores.double(), positive_table((2, 3, 7), positives), keep)
        torch.testing.assert_close(loss.double(), true, rtol=1e-5, atol=0)
        pointer.loss(hidden, positives, mask).backward()
        assert all(parameter.grad.isfinite().all() for parameter in pointer.parameters())

    @pytest.mark.parametrize("rubbish", [math.nan, INF])
    def test_what_is_masked_may_be_anything(self, rubbish):
        """Maxima over a row or a column must not see it, or they hide every span."""
        torch.manual_seed(0)
        pair, start, end = torch.randn(2, 6, 6), torch.randn(2, 3, 6), torch.randn(2, 3, 6)
        mask = torch.tensor([[True] * 5 + [False], [False] + [True] * 5])
        clean = factorised_spans(pair, start, end, mask=mask)
        assert len(clean.cells) > 0
        hidden = ~mask[:, None]
        pair = pair.masked_fill(hidden, rubbish).masked_fill(~mask[..., None], rubbish)
        start, end = start.masked_fill(hidden, rubbish), end.masked_fill(hidden, rubbish)
        spans = factorised_spans(pair, start, end, mask=mask)
        assert torch.equal(spans.cells, clean.cells)
        assert torch.equal(spans.scores, clean.scores)

    @pytest.mark.parametrize("kind", [GlobalPointer, EfficientGlobalPointer])
    def test_padding_states_may_be_anything(self, kind):
        torch.manual_seed(0)
        pointer, hidden = kind(6, 3, 4), torch.randn(1, 7, 6)
        mask = torch.tensor([[True] * 5 + [False] * 2])
        clean = pointer.spans(hidden, mask)
        assert len(clean.cells) > 0
        hidden[:, 5:] = math.nan
        spans = pointer.spans(hidden, mask)
        assert torch.equal(spans.cells, clean.cells)
        assert torch.equal(spans.scores, clean.scores)

    @pytest.mark.parametrize("kind", [GlobalPointer, EfficientGlobalPointer])
    @pytest.mark.parametrize("threshold", [math.nan, INF, -INF])
    def test_a_threshold_is_a_number(self, kind, threshold):
        with pytest.raises(ValueError, match=f"threshold must be a finite number, got {threshold}"):
            kind(4, 1, 2).spans(torch.zeros(1, 3, 4), threshold=threshold)

    @pytest.mark.parametrize("kind", [GlobalPointer, EfficientGlobalPointer])
    def test_compiled_is_one_graph_for_any_number_of_spans(self, kind):
        torch.manual_seed(0)
        pointer = kind(6, 3, 4, bias_start=0.1)

        def find(hidden, mask, threshold=0.0):
            spans = pointer.spans(hidden, mask, threshold=threshold)
            return spans.cells + 1, spans.scores * 2

        compiled = torch.compile(find, fullgraph=True, backend="aot_eager", dynamic=True)
        counts = set()
        for batch, length in ((2, 7), (3, 5), (4, 6)):
            hidden = torch.randn(batch, length, 6)
            mask = torch.arange(length) < torch.arange(length - batch, length)[:, None]
            found, expected = compiled(hidden, mask), find(hidden, mask)
            assert torch.equal(found[0], expected[0])
            torch.testing.assert_close(found[1], expected[1])
            counts.add(len(found[0]))
        assert len(counts) == 3
        hidden[0, 0] = math.nan
        with pytest.raises(ValueError, match="got nan"):
            compiled(hidden, mask)

    def test_refuses_what_the_loss_refuses(self):
        pair, start, end = torch.zeros(1, 3, 3), torch.zeros(1, 1, 3), torch.zeros(1, 1, 3)
        pair[0, 1, 2] = math.nan
        with pytest.raises(ValueError, match=r"got nan at pair_scores\[0, 1, 2\]"):
            factorised_spans(pair, start, end)
