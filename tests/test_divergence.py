"""Divergences against 400 digits; uncounted cells; errors; R-Drop; adversarial direction."""

import contextlib
import functools
import math
import re

import mpmath as mp
import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

from lib import _checks
from lib.divergence import (
    _arguments,
    _kernels,
    r_drop,
    sigmoid_divergence,
    softmax_divergence,
    virtual_adversarial_direction,
    virtual_adversarial_loss,
    zlpr_divergence,
    zlpr_regret,
)

INF = math.inf
ALL = (softmax_divergence, sigmoid_divergence, zlpr_divergence, zlpr_regret)


def exact(function, s, u):
    """The definition, letter by letter; it subtracts, so it needs digits down to 1e-280."""
    with mp.workdps(400):
        s, u = [mp.mpf(v) for v in s], [mp.mpf(v) for v in u]
        if function is zlpr_divergence:
            return (exact(zlpr_regret, s, u) + exact(zlpr_regret, u, s)) / 2
        if function is zlpr_regret:
            t = [1 / (1 + mp.exp(-2 * v)) for v in u]
            rest = [1 / (1 + mp.exp(2 * v)) for v in u]

            def soft(x):
                a = mp.fsum(p * mp.exp(-v) for p, v in zip(t, x, strict=True))
                b = mp.fsum(q * mp.exp(v) for q, v in zip(rest, x, strict=True))
                return mp.log(1 + a) + mp.log(1 + b)

            return soft(s) - soft(u)
        if function is sigmoid_divergence:
            p, q = ([1 / (1 + mp.exp(-v)) for v in x] for x in (s, u))
        else:
            p, q = ([mp.exp(v) / mp.fsum(map(mp.exp, x)) for v in x] for x in (s, u))
        return mp.fsum((a - b) * (v - w) for a, b, v, w in zip(p, q, s, u, strict=True))


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("change", [1e-9, 1e-6, 1e-3, 0.1, 1, 30, 1e3])
@pytest.mark.parametrize("scale", [1, 5, 30, 1e4])
def test_right_digits_for_every_change(function, scale, change):
    generator = torch.Generator().manual_seed(0)
    for dtype, digits in ((torch.float64, 2e-16), (torch.float32, 1e-7)):
        for _ in range(5):
            noise = torch.randn(2, 6, generator=generator, dtype=torch.float64)
            u = (noise[0] * scale).to(dtype)
            s = (u.double() + noise[1] * change).to(dtype)
            x, y = s.clone().requires_grad_(), u.clone().requires_grad_()
            value = function(x, y)
            value.backward()
            assert x.grad.isfinite().all()
            assert y.grad.isfinite().all()
            true = exact(function, s.tolist(), u.tolist())
            tiny = 1e-280 if dtype == torch.float64 else 1e-30
            # Rounding of scores of this size inside log-softmax and log-sigmoid comes on top.
            tolerance = digits * (60 + 4 * scale) if scale <= 30 else digits * 200
            assert abs(value.item() - true) <= tolerance * true + tiny


@pytest.mark.parametrize("function", ALL)
def test_gradcheck_in_both_arguments(function):
    generator = torch.Generator().manual_seed(1)
    for scale in (0.3, 3.0, 40.0):
        s, u = torch.randn(2, 2, 4, generator=generator, dtype=torch.float64) * scale
        mask = torch.tensor([[True, True, False, True], [True] * 4])

        def call(s, u, mask=mask):
            return function(s, u, mask=mask, reduction="none")

        assert torch.autograd.gradcheck(call, (s.requires_grad_(), u.requires_grad_()))


@pytest.mark.parametrize("function", ALL)
def test_zero_and_flat_where_the_scores_agree(function):
    s = torch.tensor([[3.0, -2.0, 0.0, 1e4, -1e4]], dtype=torch.float64, requires_grad=True)
    value = function(s, s.detach().clone())
    value.backward()
    assert value.item() == 0
    assert s.grad.abs().max() == 0


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("junk", [INF, -INF, math.nan, 7.0])
def test_cells_that_do_not_count(function, junk):
    s, u = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 1.0]])
    plain = function(s, u)
    wide = torch.cat([s, torch.tensor([[junk, -INF]])], 1).requires_grad_()
    other = torch.cat([u, torch.tensor([[0.0, -INF]])], 1).requires_grad_()
    mask = torch.tensor([True, True, False, True])
    value = function(wide, other, mask=mask)
    value.backward()
    torch.testing.assert_close(value, plain)
    assert wide.grad[0, 2:].tolist() == other.grad[0, 2:].tolist() == [0, 0]
    assert wide.grad.isfinite().all()
    nothing = torch.full((1, 3), -INF, requires_grad=True)
    empty = function(nothing, nothing.detach())
    empty.backward()
    assert empty.item() == 0
    assert nothing.grad.abs().max() == 0


@pytest.mark.parametrize("function", ALL)
def test_reductions_and_half_precision(function):
    s, u = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(2))
    each = function(s, u, reduction="none")
    assert each.shape == (3, 5)
    torch.testing.assert_close(function(s, u), each.mean())
    torch.testing.assert_close(function(s, u, reduction="sum"), each.sum())
    for dtype in (torch.float16, torch.bfloat16):
        half, other = s.to(dtype), u.to(dtype)
        value = function(half, other)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, function(half.float(), other.float()))


@pytest.mark.parametrize("function", ALL)
def test_refused_input(function):
    s = torch.zeros(2, 3)
    for value in (INF, math.nan, -INF):
        bad = s.clone()
        bad[1, 2] = value
        for pair in ((bad, s), (s, bad)):
            name = "target" if function is zlpr_regret else "other"
            values = [f"{x[1, 2].item()}" for x in pair]
            message = (
                f"or -inf in both, got logits[1, 2] = {values[0]} and {name}[1, 2] = {values[1]}"
            )
            with pytest.raises(ValueError, match=re.escape(message)):
                function(*pair)
    with pytest.raises(ValueError, match="expected"):
        function(s, s[:1])
    with pytest.raises(TypeError, match="floating-point"):
        function(s, torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match=re.escape("torch.bool")):
        function(s, s, mask=torch.ones(2, 3))
    with pytest.raises(ValueError, match="reduction"):
        function(s, s, reduction="average")


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("validate", [True, False])
def test_where_nobody_looks_a_bad_position_is_nan(function, validate, monkeypatch):
    if validate:
        monkeypatch.setattr(_checks, "values_readable", lambda *tensors: False)
    function = functools.partial(function, validate=validate)
    s = torch.tensor([[1.0, 2.0], [math.nan, 2.0], [-INF, 2.0]])
    u = torch.zeros(3, 2)
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "__bool__", None)
        values = function(s, u, reduction="none")
    assert values.isnan().tolist() == [False, True, True]
    torch.testing.assert_close(values[0], function(s[0], u[0]))


def test_a_common_shift_is_free_for_softmax_only():
    s = torch.tensor([2.0, -1.0, -3.0], dtype=torch.float64)
    assert softmax_divergence(s, s - 4).abs() < 1e-12
    assert sigmoid_divergence(s, s - 4) > 1
    assert zlpr_divergence(s, s - 4) > 1


def test_quiet_cells_do_not_add_up_in_the_regret():
    generator = torch.Generator().manual_seed(3)
    values = {}
    for n in (10**3, 10**5):
        u = torch.full((n,), -3.0, dtype=torch.float64)
        s = u + 0.3 * torch.randn(n, generator=generator, dtype=torch.float64)
        values[n] = sigmoid_divergence(s, u).item(), zlpr_regret(s, u).item()
    assert values[10**5][0] > 90 * values[10**3][0]
    assert values[10**5][1] < 1.2 * values[10**3][1]


def test_gradient_mass_of_the_regret_is_below_two():
    generator = torch.Generator().manual_seed(4)
    for scale in (1, 10, 1000):
        s, u = torch.randn(2, 20, 50, generator=generator, dtype=torch.float64) * scale
        s.requires_grad_()
        zlpr_regret(s, u, reduction="sum").backward()
        assert s.grad.abs().sum(-1).max() < 2 + 1e-12


def test_the_mean_of_the_regrets_is_bounded_but_not_convex():
    x = torch.tensor([1.2], dtype=torch.float64, requires_grad=True)
    value = zlpr_divergence(x, torch.full_like(x, -3.0).detach())
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    assert torch.autograd.grad(slope.sum(), x)[0].item() < -0.09
    generator = torch.Generator().manual_seed(9)
    most = 0.0
    for scale in (1, 3, 10, 30):
        for n in (1, 5, 50):
            s, u = torch.randn(2, 2000, n, generator=generator, dtype=torch.float64) * scale
            s.requires_grad_()
            values = zlpr_divergence(s, u, reduction="none")
            values.sum().backward()
            change = torch.nn.functional.pad((u - s).detach(), (0, 1))
            reach = change.amax(-1) - change.amin(-1)
            assert (values.detach() - reach).max() < 1e-12
            most = max(most, s.grad.abs().sum(-1).max().item())
    assert 3 < most < 4  # above the 2 of one regret


def test_gradient_of_the_regret_in_its_target():
    s, u = torch.randn(2, 6, generator=torch.Generator().manual_seed(12), dtype=torch.float64) * 2
    u.requires_grad_()
    zlpr_regret(s, u).backward()
    w, change, t = 0.5 / u.detach().cosh(), u.detach() - s, (2 * u.detach()).sigmoid()
    omega, up, down = (x / (1 + x.sum()) for x in (w, w * change.exp(), w * (-change).exp()))
    torch.testing.assert_close(u.grad, 2 * (1 - t) * (up - omega) - 2 * t * (down - omega))


def test_the_regret_stays_finite_where_only_its_target_falls():
    # Why the docstring says that the refused value is not an infinite one.
    low = torch.tensor([-300.0], dtype=torch.float64)
    zero = torch.zeros_like(low)
    torch.testing.assert_close(zlpr_regret(zero, low).item(), math.log(2))
    for function in (sigmoid_divergence, zlpr_divergence):
        assert function(zero, low) > 140


# ------------------------------------------------------------------------------------- the two uses


def test_r_drop_is_half_the_paper_and_equals_the_doubled_batch():
    generator = torch.Generator().manual_seed(5)
    s, u = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(4, (6,), generator=generator)

    def loss(x):
        return torch.nn.functional.cross_entropy(x, labels)

    def kl(x, y):
        p, q = x.log_softmax(-1), y.log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean()

    alpha = 3.0
    ours = r_drop(s, u, loss, softmax_divergence, alpha=alpha)
    paper = loss(s) + loss(u) + alpha / 2 * (kl(s, u) + kl(u, s))
    torch.testing.assert_close(ours, paper / 2)
    doubled = torch.stack((s, u), 1).flatten(0, 1)
    twice = torch.nn.functional.cross_entropy(doubled, labels.repeat_interleave(2))
    both = kl(doubled[::2], doubled[1::2]) + kl(doubled[1::2], doubled[::2])
    torch.testing.assert_close(ours, twice + both / 4 * alpha)


def test_r_drop_refuses():
    s = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="alpha must be at least 0"):
        r_drop(s, s, torch.sum, sigmoid_divergence, alpha=-1)
    with pytest.raises(ValueError, match="shape of first"):
        r_drop(s, s[:1], torch.sum, sigmoid_divergence, alpha=1)
    with pytest.raises(ValueError, match="loss must return a scalar"):
        r_drop(s, s, lambda x: x, sigmoid_divergence, alpha=1)
    with pytest.raises(TypeError, match=r"loss must return a torch\.Tensor, got float"):
        r_drop(s, s, lambda x: 1.0, sigmoid_divergence, alpha=1)
    with pytest.raises(TypeError, match=r"divergence must return a torch\.Tensor, got int"):
        r_drop(s, s, torch.sum, lambda x, y: 0, alpha=1)
    for name, pair in (("first", ([0.0], s)), ("second", (s, [0.0]))):
        with pytest.raises(TypeError, match=rf"^{name} must be a torch\.Tensor, got list"):
            r_drop(*pair, torch.sum, sigmoid_divergence, alpha=1)


def quadratic(function, z):
    """Matrix C of the second order of a divergence at z."""
    if function is sigmoid_divergence:
        return torch.diag(z.sigmoid() * (-z).sigmoid())
    if function is softmax_divergence:
        p = z.softmax(0)
    else:
        weight = 0.5 / z.cosh()
        p = weight / (1 + weight.sum())
    return torch.diag(p) - p.outer(p)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("xi", [1e-6, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_direction_is_the_leading_eigenvector(function, xi, dtype):
    generator = torch.Generator().manual_seed(6)
    weight = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    inputs = torch.zeros(2, 3, dtype=torch.float64)  # sums with a step of 1e-6 stay exact enough
    form = weight.T @ quadratic(function, torch.zeros(5, dtype=torch.float64)) @ weight
    leading = torch.linalg.eigh(form).eigenvectors[:, -1]
    found = virtual_adversarial_direction(
        lambda x: x @ weight.to(dtype).T,
        inputs.to(dtype),
        function,
        xi=xi,
        steps=60,
        generator=generator,
    )
    assert found.dtype == dtype
    assert ((found.double() @ leading).abs() - 1).abs().max() < 1e-4


@pytest.mark.parametrize("function", ALL)
def test_direction_of_inputs_that_are_not_zero(function):
    """The sum x + xi r is rounded: 1e-3 is enough in float32, 1e-6 is not."""
    generator = torch.Generator().manual_seed(10)
    first = torch.randn(64, 32, generator=generator, dtype=torch.float64) / 6
    second = torch.randn(20, 64, generator=generator, dtype=torch.float64) / 3
    inputs = 3 * torch.randn(50, 32, generator=generator, dtype=torch.float64)

    def found(xi, dtype):
        return virtual_adversarial_direction(
            lambda x: torch.tanh(x @ first.to(dtype).T) @ second.to(dtype).T,
            inputs.to(dtype),
            function,
            xi=xi,
            generator=torch.Generator().manual_seed(11),
        ).double()

    true = found(1e-5, torch.float64)
    alike = [(found(xi, torch.float32) * true).sum(-1).mean() for xi in (1e-3, 1e-6)]
    assert alike[0] > 0.999
    assert alike[1] < 0.95
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match=f"^inputs must .* got {dtype}"):
            found(1e-3, dtype)


def test_adversarial_loss_trains_the_model_but_not_the_direction():
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    inputs = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)

    def forward(x):
        return (x @ weight.T).flatten(1)

    arguments = (forward, inputs, zlpr_divergence)
    loss = virtual_adversarial_loss(
        *arguments, epsilon=0.5, xi=1e-3, generator=torch.Generator().manual_seed(8)
    )
    assert weight.grad is None
    r = virtual_adversarial_direction(
        *arguments, xi=1e-3, generator=torch.Generator().manual_seed(8)
    )
    assert not r.requires_grad
    torch.testing.assert_close(r.flatten(1).norm(dim=1), torch.ones(2, dtype=torch.float64))
    by_hand = zlpr_divergence(forward(inputs + 0.5 * r), forward(inputs).detach())
    torch.testing.assert_close(loss, by_hand)
    torch.testing.assert_close(
        *(torch.autograd.grad(value, weight)[0] for value in (loss, by_hand))
    )


def test_direction_where_nothing_moves_and_what_is_refused():
    inputs = torch.zeros(2, 3)
    still = virtual_adversarial_direction(lambda x: x * 0, inputs, sigmoid_divergence, xi=1.0)
    torch.testing.assert_close(still.norm(dim=1), torch.ones(2))
    for options, message in (({"xi": 0.0}, "xi must"), ({"xi": 1.0, "steps": 0}, "steps must")):
        with pytest.raises(ValueError, match=message):
            virtual_adversarial_direction(lambda x: x, inputs, sigmoid_divergence, **options)
    with pytest.raises(ValueError, match="epsilon must"):
        virtual_adversarial_loss(lambda x: x, inputs, sigmoid_divergence, epsilon=-1.0, xi=1.0)
    with pytest.raises(TypeError, match="inputs must be a floating-point tensor"):
        virtual_adversarial_direction(lambda x: x, inputs.long(), sigmoid_divergence, xi=1.0)
    for steps, kind in ((1.5, "float"), (True, "bool")):
        with pytest.raises(TypeError, match=f"steps must be an int, got {kind}"):
            virtual_adversarial_direction(
                lambda x: x, inputs, sigmoid_divergence, xi=1.0, steps=steps
            )
    with pytest.raises(TypeError, match=r"divergence must return a torch\.Tensor"):
        virtual_adversarial_direction(lambda x: x, inputs, lambda s, u: 0.0, xi=1.0)


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_the_probe(function, dtype):
    generator = torch.Generator().manual_seed(13)
    first = torch.randn(64, 32, generator=generator, dtype=torch.float64) / 6
    second = torch.randn(20, 64, generator=generator, dtype=torch.float64) / 3
    inputs = torch.randn(50, 32, generator=generator, dtype=torch.float64)

    def found(which, x, **options):
        a, b = first.to(x), second.to(x).requires_grad_()
        value = which(
            lambda x: torch.tanh(x @ a.T) @ b.T,
            x,
            function,
            xi=1e-3,
            steps=np.int64(2),
            generator=torch.Generator().manual_seed(14),
            **options,
        )
        return value, b

    for which, options in (
        (virtual_adversarial_direction, {}),
        (virtual_adversarial_loss, {"epsilon": 0.1}),
    ):
        plain, weight = found(which, inputs.float(), **options)
        with torch.autocast("cpu", dtype=dtype):
            ours, other = found(which, inputs.float(), **options)
            assert torch.is_autocast_enabled("cpu")
        assert torch.equal(ours, plain)
        if options:
            slopes = [torch.autograd.grad(*pair)[0] for pair in ((ours, other), (plain, weight))]
            assert torch.equal(*slopes)
        else:
            assert (ours * found(which, inputs)[0]).sum(-1).abs().mean() > 0.99
    with pytest.raises(TypeError, match=f"forward must return scores of float32 .* got {dtype}"):
        virtual_adversarial_direction(lambda x: x.to(dtype), inputs, function, xi=1e-3)


def test_the_start_does_not_depend_on_dtypes():
    def start(dtype):
        return virtual_adversarial_direction(
            lambda x: x * 0,
            torch.zeros(2, 30, dtype=dtype),
            sigmoid_divergence,
            xi=1.0,
            generator=torch.Generator().manual_seed(15),
        )

    first = start(torch.float32)
    torch.testing.assert_close(start(torch.float64).float(), first)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(start(torch.float32), first)
    finally:
        torch.set_default_dtype(torch.float32)


def test_direction_is_not_for_transforms():
    for transform in (torch.func.vmap, torch.func.jacrev):
        with pytest.raises(RuntimeError, match=r"must be called outside of torch\.func"):
            transform(
                lambda x: virtual_adversarial_direction(
                    lambda x: x * x, x, sigmoid_divergence, xi=1.0
                )
            )(torch.ones(2, 3, 4))


def test_direction_without_a_gradient_is_refused():
    inputs, weight = torch.randn(2, 3), torch.ones(2, 3, requires_grad=True)
    for forward in (torch.Tensor.detach, lambda x: weight * 2):  # no graph; none to the inputs
        with pytest.raises(ValueError, match="differentiable in the inputs"):
            virtual_adversarial_direction(forward, inputs, sigmoid_divergence, xi=1.0)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference mode"):
        virtual_adversarial_direction(lambda x: x, inputs, sigmoid_divergence, xi=1.0)


@pytest.mark.parametrize(
    ("function", "name"), [(zlpr_regret, "target"), (zlpr_divergence, "other")]
)
def test_errors_name_the_argument_of_the_function(function, name):
    s = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=f"^{name} must have the shape of logits"):
        function(s, s[:1])
    with pytest.raises(TypeError, match=f"^{name} must have a floating-point dtype"):
        function(s, s.long())


@pytest.mark.parametrize("function", ALL)
def test_checkpoints_hooks_and_modes(function):
    generator = torch.Generator().manual_seed(16)
    s, u = torch.randn(2, 4, 7, generator=generator)
    s.requires_grad_()
    plain = function(s, u)
    (slope,) = torch.autograd.grad(plain, s)

    def same(value):
        return torch.equal(value, plain) and torch.equal(torch.autograd.grad(value, s)[0], slope)

    assert same(checkpoint(function, s, u, use_reentrant=False))
    with torch.autograd.graph.save_on_cpu():
        assert same(function(s, u))
    with torch.device("meta"):  # the device of what is made without saying where
        assert same(function(s, u))
    for low in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=low):
            value = function(s, u)
        assert same(value)
    moved = s * 1
    value = function(moved, u)
    moved.detach().add_(1)
    with contextlib.suppress(RuntimeError):  # PyTorch sees the change, or it does no harm
        assert same(value)


@pytest.mark.parametrize("function", ALL)
def test_one_graph_for_many_sizes(function):
    torch.compiler.reset()
    counter = CompileCounter()
    traced = torch.compile(function, dynamic=True, fullgraph=True, backend=counter)
    for size in (1, 2, 3, 5, 7, 8, 16, 17, 31, 32, 48, 64):
        s, u = torch.randn(2, size, size + 3, generator=torch.Generator().manual_seed(size))
        torch.testing.assert_close(traced(s, u), function(s, u))
    assert counter.frame_count <= 2  # a batch of 1 has a graph of its own


@pytest.mark.parametrize("function", ALL)
def test_the_short_way_is_the_long_way(function):
    """Where all cells count none is replaced: same bits, and no refusal of a large difference."""
    generator = torch.Generator().manual_seed(17)
    s, u = torch.randn(2, 4, 7, generator=generator).requires_grad_()
    values = [function(s, u, mask=mask) for mask in (None, torch.tensor(True))]
    assert torch.equal(*values)
    slopes = [torch.autograd.grad(value, (s, u)) for value in values]
    assert all(map(torch.equal, *slopes))
    far = torch.full((1, 2), 3e38)
    function(far, -far)  # their difference is infinite, they are not
    assert function(torch.zeros(2, 0, 3), torch.zeros(2, 0, 3)).item() == 0


# ------------------------------------------------------------------ moderate scores, done by hand


def by_formula(monkeypatch, function, *arguments, **options):
    """Value and gradients as where some scores are large."""
    with monkeypatch.context() as patch:
        patch.setattr(_arguments, "MODERATE", 0.0)
        return outcome(function, *arguments, **options)


def outcome(function, s, u, weight=1.0, **options):
    s, u = (x.clone().requires_grad_() for x in (s, u))
    value = function(s, u, **options)
    return value.detach(), *torch.autograd.grad((value * weight).sum(), (s, u))


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("change", [1e-6, 1e-2, 1.0, 20.0])
@pytest.mark.parametrize("cells", [(1, 1), (3, 7), (2, 3, 50)])
def test_both_ways_agree(function, change, cells, monkeypatch):
    generator = torch.Generator().manual_seed(18)
    noise = torch.randn(2, *cells, generator=generator, dtype=torch.float64)
    u = 3 * noise[0].clamp(-6, 6)
    s = (u + change * noise[1]).clamp(-20, 20)
    some = torch.rand(cells, generator=generator) < 0.7
    some[0] = cells[0] == 1  # a position in which nothing counts
    weight = torch.randn(cells[:-1], generator=generator, dtype=torch.float64)
    for mask in (None, some):
        for options in ({"reduction": "none", "weight": weight}, {"reduction": "sum"}, {}):
            ours = outcome(function, s, u, mask=mask, **options)
            plain = by_formula(monkeypatch, function, s, u, mask=mask, **options)
            for x, y, size in zip(ours, plain, (0, 1, 1), strict=True):
                # One class alone has divergence and gradient 0, here up to a rounding of 1.
                atol = 1e-15 if cells == (1, 1) else size * 1e-13 * y.abs().max()
                torch.testing.assert_close(x, y, rtol=1e-12, atol=atol)
            with monkeypatch.context() as patch:
                patch.setattr(_kernels, "_PART_CELLS", 8)  # many parts
                for x, y in zip(outcome(function, s, u, mask=mask, **options), ours, strict=True):
                    torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-13 * y.abs().max())
            with torch.no_grad():
                options.pop("weight", None)
                torch.testing.assert_close(function(s, u, mask=mask, **options), ours[0])


@pytest.mark.parametrize("function", ALL)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_have_the_digits_of_float64(function, dtype, monkeypatch):
    """Every cell's gradient, of small changes and of the largest that are done by hand."""
    generator = torch.Generator().manual_seed(19)
    digits = 4e-6 if dtype == torch.float32 else 1e-14
    for change in (1e-4, 1e-2, 1.0, 40.0):
        noise = torch.randn(2, 4, 3000, generator=generator, dtype=torch.float64)
        u = (3 * noise[0]).clamp(-20, 20).to(dtype)
        s = (u.double() + change * noise[1]).clamp(-20, 20).to(dtype)
        ours = outcome(function, s, u)
        true = by_formula(monkeypatch, function, s.double(), u.double())
        for x, y in zip(ours, true, strict=True):
            assert x.isfinite().all()
            torch.testing.assert_close(x.double(), y, rtol=digits, atol=digits * y.abs().max())


@pytest.mark.parametrize("function", ALL)
def test_the_largest_moderate_scores(function):
    """Nothing leaves float32 where every score is at the limit, on any side."""
    ends = torch.tensor([20.0, -20.0])
    sides = torch.cartesian_prod(ends, ends, ends)
    s, u = sides.repeat_interleave(8, 0), sides.repeat(8, 1)
    s = torch.cat([s, s[:, :1].expand(-1, 40)], 1)
    u = torch.cat([u, u[:, :1].expand(-1, 40)], 1)
    value, *slopes = outcome(function, s, u, reduction="none")
    assert value.isfinite().all()
    assert all(slope.isfinite().all() for slope in slopes)
    for k in (1, 8, 20, 35, 62):
        true = exact(function, s[k].tolist(), u[k].tolist())
        assert abs(value[k].item() - true) <= 2e-5 * true


def test_expm1_and_exp_have_all_digits():
    x = torch.cat([10.0 ** torch.linspace(-30, 1.9, 4000, dtype=torch.float64), torch.zeros(200)])
    x = torch.cat([x, -x, torch.linspace(-0.3, 0.3, 4000, dtype=torch.float64)])
    for dtype in (torch.float32, torch.float64):
        given = x.to(dtype)
        small, full, *spare = (torch.empty_like(given) for _ in range(4))
        _kernels._expm1_exp(given, small, full, *spare)
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(small.double(), given.double().expm1(), rtol=6 * eps, atol=0)
        torch.testing.assert_close(full.double(), given.double().exp(), rtol=6 * eps, atol=0)


@pytest.mark.parametrize("function", ALL)
def test_second_derivatives_of_moderate_scores(function):
    generator = torch.Generator().manual_seed(20)
    s, u = torch.randn(2, 2, 3, generator=generator, dtype=torch.float64)
    for reduction in ("none", "mean", "sum"):
        call = functools.partial(function, reduction=reduction)
        pair = (s.clone().requires_grad_(), u.clone().requires_grad_())
        assert torch.autograd.gradcheck(call, pair)
        assert torch.autograd.gradgradcheck(call, pair)
        # One argument may be made of the other.
        assert torch.autograd.gradgradcheck(lambda x, call=call: call(x, x.sin()), pair[:1])
    value = function(*pair)
    once = torch.autograd.grad(value, pair, retain_graph=True)
    again = torch.autograd.grad(value, pair, create_graph=True)
    torch.testing.assert_close(once, tuple(x.detach() for x in again))


@pytest.mark.parametrize("function", ALL)
def test_moderate_scores_are_done_by_hand(function, monkeypatch):
    def fails(*arguments):
        raise AssertionError

    s = torch.tensor([[20.0, -20.0, 0.0]])
    monkeypatch.setattr(_arguments, "reduced", fails)
    for mask in (None, torch.tensor([True, False, True])):
        with pytest.raises(AssertionError):
            function(s, -s, mask=mask)
    for pair in ((s * 1.01, s), (s, s * 1.01)):
        function(*pair)
