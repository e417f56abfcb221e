"""The columns of the table: what is done with a subject in each situation.

A check takes a subject, does its work, and raises if something is not right. ``applies`` gives the
reason why a situation has no meaning for a subject, or nothing.
"""

import copy
import functools
import math
import pickle
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from tests.fake_cuda import VALUES_READ, Calling, OnDevice, fake_cuda
from tests.situations import distributed
from tests.situations.subject import (
    Inputs,
    Result,
    Subject,
    close,
    compare,
    flat,
    objective,
    result,
)

SIZES = ((3, 5), (4, 6), (5, 7), (2, 9), (7, 4), (6, 8), (8, 3), (9, 11), (4, 12), (10, 5), (5, 2))
SIZES += ((11, 6),)
"""Batch and width of the calls that one or two compiled graphs must serve."""

SCALE = 65536.0
"""What gradient scaling for float16 starts with."""


@dataclass(frozen=True)
class Situation:
    """A column."""

    name: str
    said: str  # what a cell that passes shows, for the page
    check: Callable[[Subject], None]
    applies: Callable[[Subject], str | None]


def eager(subject: Subject, batch: int = 3, width: int = 5, reduction: str = "none") -> Result:
    """The result that others are compared with: eager, float64."""
    module = subject.built(reduction)
    return result(subject, subject.inputs(batch, width), module, reduction=reduction)


# --------------------------------------------------------------------------------- where it applies


def always(subject: Subject) -> str | None:
    return None


def differentiable(subject: Subject) -> str | None:
    return None if subject.differentiable else "no gradient passes"


def of_inputs(subject: Subject) -> str | None:
    return None if subject.smooth else "no gradient of an input passes"


def whole_gradient(subject: Subject) -> str | None:
    if subject.stops:
        return "its gradient stops at the direction and at the undisturbed scores"
    return differentiable(subject)


def takes_tensors(subject: Subject) -> str | None:
    return None if subject.make(2, 2) else "takes no tensors"


def takes_numbers(subject: Subject) -> str | None:
    if any(x.is_floating_point() for x in subject.make(2, 2).values()) or subject.module:
        return None
    return "takes no floating-point tensors"


def batched(subject: Subject) -> str | None:
    made = subject.make(2, 3)
    if any(len(x) != 2 for k, x in made.items() if k not in subject.shared):
        return "takes one text, not a batch"
    return takes_tensors(subject)


def maps(subject: Subject) -> str | None:
    if subject.decides:
        return "how much it finds depends on values"
    return takes_tensors(subject)


def is_module(subject: Subject) -> str | None:
    return None if subject.module else "a function has no state"


def trains_somewhere(subject: Subject) -> str | None:
    if subject.module is None:
        return "a function has no state"
    return None if distributed.trains(subject) else "has no parameters, and none before it"


def has_layers(subject: Subject) -> str | None:
    module = subject.built()
    if module is None:
        return "a function has no layers"
    if not any(isinstance(part, nn.Linear) for part in module.modules()):
        return "has no layers"
    return None


def whole(subject: Subject, module: nn.Module | None, reduction: str = "none") -> nn.Module:
    """Whatever the subject calls, as a module."""
    inner = nn.Module() if module is None else module

    def call(inner: nn.Module, inputs: Inputs) -> Any:
        return subject.run(inputs, None if module is None else inner, reduction)

    return Calling(inner, call)


# -------------------------------------------------------------------------------------- derivatives


def check_eager(subject: Subject) -> None:
    """The gradient is that of differences; without one, two runs agree."""
    found = eager(subject)
    for value in found.values:
        assert value.numel() > 0, "nothing came out"
        assert not value.isnan().any(), "NaN"
    if not subject.differentiable or subject.stops:
        compare(eager(subject), found)
        return
    inputs, module = subject.inputs(), subject.built()
    slope = functools.partial(along, subject, inputs, module)
    step, directions = 1e-6, random_directions(found.gradients)
    differences = (slope(directions, step) - slope(directions, -step)) / (2 * step)
    exact = sum((found.gradients[k] * d).sum() for k, d in directions.items())
    assert math.isclose(float(differences), float(exact), rel_tol=1e-6, abs_tol=1e-7), (
        f"gradient {float(exact):.9g}, differences {float(differences):.9g}"
    )


def check_double_backward(subject: Subject) -> None:
    """The derivative of the gradient is that of its differences."""
    inputs, module = subject.inputs(), subject.built()
    leaves = {k: inputs[k] for k in subject.smooth}
    if subject.trains and module is not None:
        leaves |= dict(module.named_parameters())
    values = objective(subject.run(inputs, module))
    first = gradients(values, leaves, create_graph=True)
    one, other = random_directions(leaves), random_directions(leaves, seed=1)
    moved = sum((first[k] * d).sum() for k, d in one.items())
    assert isinstance(moved, Tensor)
    if not moved.requires_grad:  # linear
        curvature = 0.0
    else:
        second = gradients(moved, leaves)
        curvature = float(sum((second[k] * d).sum() for k, d in other.items()))
    step = 1e-5
    ends = []
    for sign in (1, -1):
        given = {
            k: x + sign * step * other[k] if k in subject.smooth else x for k, x in inputs.items()
        }
        shifted = copy.deepcopy(module)
        if shifted is not None:
            with torch.no_grad():
                for k, p in shifted.named_parameters():
                    if k in other:
                        p.add_(other[k], alpha=sign * step)
        found = result(subject, subject.leaves(given), shifted).gradients
        ends.append(float(sum((found[k] * d).sum() for k, d in one.items())))
    differences = (ends[0] - ends[1]) / (2 * step)
    assert math.isclose(curvature, differences, rel_tol=1e-4, abs_tol=1e-6), (
        f"second derivative {curvature:.9g}, differences {differences:.9g}"
    )


def along(
    subject: Subject, inputs: Inputs, module: nn.Module | None, directions: Inputs, step: float
) -> Tensor:
    """The objective a step away, in inputs and parameters."""
    given = {k: x + step * directions[k] if k in subject.smooth else x for k, x in inputs.items()}
    shifted = copy.deepcopy(module)
    with torch.no_grad():
        if shifted is not None and subject.trains:
            for k, p in shifted.named_parameters():
                p.add_(directions[k], alpha=step)
        return objective(subject.run(given, shifted))


def random_directions(tensors: Inputs, seed: int = 0) -> Inputs:
    generator = torch.Generator("cpu").manual_seed(seed)
    return {
        k: torch.randn(x.shape, generator=generator, dtype=torch.float64)
        for k, x in tensors.items()
    }


def gradients(value: Tensor, leaves: Inputs, **options: Any) -> Inputs:
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, **options)
    return {
        k: torch.zeros_like(x) if g is None else g
        for (k, x), g in zip(leaves.items(), found, strict=True)
    }


# ---------------------------------------------------------------------------------------- precision


def check_dtype(subject: Subject, dtype: torch.dtype) -> None:
    """As float64, from the same rounded numbers."""
    for reduction in subject.reductions():
        module = subject.built(reduction, dtype)
        inputs = subject.inputs(dtype=dtype)
        widened = {k: x.double() if x.is_floating_point() else x for k, x in inputs.items()}
        precise = copy.deepcopy(module)
        if precise is not None:
            precise = precise.double()
        expected = result(subject, subject.leaves(widened), precise, reduction=reduction)
        found = result(subject, inputs, module, reduction=reduction)
        compare(found, expected, dtype if subject.layers else None)


def check_autocast(subject: Subject, dtype: torch.dtype) -> None:
    """Losses keep float32 under autocast; layers compute in half precision, as asked."""
    for reduction in subject.reductions():
        module = subject.built(reduction, torch.float32)
        inputs = subject.inputs(dtype=torch.float32)
        widened = {k: x.double() if x.is_floating_point() else x for k, x in inputs.items()}
        precise = copy.deepcopy(module)
        if precise is not None:
            precise = precise.double()
        expected = result(subject, subject.leaves(widened), precise, reduction=reduction)
        with torch.autocast("cpu", dtype=dtype):
            outputs = subject.run(inputs, module, reduction)
        found = result(subject, inputs, module, outputs=outputs)
        compare(found, expected, dtype if subject.layers else None)


def check_loss_scaling(subject: Subject) -> None:
    """A scaled loss has a scaled gradient, also where the gradient itself underflows float16."""
    for reduction in subject.reductions():
        module = subject.built(reduction, torch.float32)
        inputs = subject.inputs(dtype=torch.float32)
        outputs = subject.run(inputs, module, reduction)
        leaves = {k: inputs[k] for k in subject.smooth}
        if module is not None and subject.trains:
            leaves |= dict(module.named_parameters())
        value = objective(outputs)
        plain = gradients(value, leaves, retain_graph=True)
        scaled = gradients(value * SCALE, leaves)
        for k, gradient in scaled.items():
            close(f"scaled gradient of {k}", gradient / SCALE, plain[k])
        if subject.smooth and not subject.layers:
            half_precision_underflow(subject, reduction)


def half_precision_underflow(subject: Subject, reduction: str) -> None:
    batch = 2048 if subject.scales else 8
    made = subject.make(batch, 5)
    for k in subject.smooth:
        if k in ("logits", "scores", "hidden", "weight", "other", "first", "second"):
            made[k] = made[k] * 3
    module = subject.built(reduction, torch.float16)
    given = {k: x.half() if x.is_floating_point() else x for k, x in made.items()}
    inputs = subject.leaves(given)
    precise = copy.deepcopy(module)
    if precise is not None:
        precise = precise.double()
    widened = {k: x.double() if x.is_floating_point() else x for k, x in given.items()}
    expected = result(subject, subject.leaves(widened), precise, reduction=reduction).gradients
    outputs = flat(subject.run(inputs, module, reduction))
    if any(out.dtype == torch.float16 for out in outputs):
        return  # what is rounded itself has no more digits in its gradient
    by = 1.0 if reduction == "mean" else 1 / batch
    top = max(float(x.abs().max()) for x in expected.values()) * by
    scale = 2.0 ** min(16, math.floor(math.log2(2.0**15 / top)))
    value = objective([out.float() for out in outputs]) * (by * scale)
    found = gradients(value, {k: inputs[k] for k in subject.smooth})
    for k, gradient in found.items():
        right = expected[k].double() * by * scale
        error = (gradient.double() - right).abs()
        allowed = 2.0**-10 * right.abs() + 2.0**-23 + 1e-6 * right.abs().max()
        assert bool((error <= allowed).all()), (
            f"{reduction}: gradient of {k} under loss scaling: off by "
            f"{float((error / allowed).max()):.3g} times what float16 allows"
        )


# --------------------------------------------------------------------------------------- transforms


def check_vmap(subject: Subject) -> None:
    """Mapped over a new dimension, as one call after the other; gradients too."""
    module = subject.built()
    made = subject.make(3, 5)
    stacked = {
        k: x if k in subject.shared else torch.stack((x, x.flip(0))) for k, x in made.items()
    }
    axes = ({k: None if k in subject.shared else 0 for k in made},)
    rows = [{k: x if k in subject.shared else x[i] for k, x in stacked.items()} for i in range(2)]
    mapped = torch.vmap(lambda x: tuple(flat(subject.run(x, module))), axes, randomness="same")
    found = mapped(stacked)
    expected = [result(subject, subject.leaves(row), module) for row in rows]
    for number, value in enumerate(found):
        close(f"value {number}", value, torch.stack([e.values[number] for e in expected]))
    if not subject.smooth:
        return

    def slopes(given: Inputs) -> Inputs:
        smooth = {k: given[k] for k in subject.smooth}
        return torch.func.grad(lambda s: objective(subject.run({**given, **s}, module)))(smooth)

    by_row = torch.vmap(slopes, axes, randomness="same")(stacked)
    for k in subject.smooth:
        right = torch.stack([e.gradients[k] for e in expected])
        close(f"gradient of {k}", by_row[k], right)


def check_jacrev(subject: Subject) -> None:
    """The Jacobian by torch.func is the one by backward passes."""
    module, inputs = subject.built(), subject.inputs(2, 5)
    smooth = {k: inputs[k] for k in subject.smooth}

    def vector(given: Inputs) -> Tensor:
        parts = [v for v in flat(subject.run({**inputs, **given}, module)) if v.is_floating_point()]
        return torch.cat([v.masked_fill(v.detach() == -torch.inf, 0).flatten() for v in parts])

    found = torch.func.jacrev(vector)({k: x.detach() for k, x in smooth.items()})
    values = vector(smooth)
    rows = [gradients(value, smooth, retain_graph=True) for value in values]
    for k in smooth:
        close(f"Jacobian of {k}", found[k], torch.stack([row[k] for row in rows]))


def check_functional_call(subject: Subject) -> None:
    """With parameters given from outside, the same."""
    for reduction in subject.reductions():
        module, inputs = subject.built(reduction), subject.inputs()
        expected = result(subject, inputs, module, reduction=reduction)
        other = subject.built(reduction)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        calling = whole(subject, other, reduction)
        state = {f"module.{k}": p.detach() for k, p in module.named_parameters()}
        outputs = torch.func.functional_call(calling, state, (inputs,))
        for number, value in enumerate(flat(outputs)):
            close(f"value {number}", value, expected.values[number])
        if subject.trains:
            found = torch.func.grad(
                lambda p: objective(torch.func.functional_call(calling, p, (inputs,)))  # noqa: B023
            )(state)
            for k, gradient in found.items():
                name = k.removeprefix("module.")
                close(f"gradient of {name}", gradient, expected.gradients[name])


# ------------------------------------------------------------------------------------------- graphs


def check_compile(subject: Subject) -> None:
    """One graph for one size."""
    torch.compiler.reset()
    module, inputs = subject.built(), subject.inputs()
    expected = result(subject, inputs, module)
    graph = torch.compile(
        whole(subject, module), backend="aot_eager", fullgraph=True, dynamic=False
    )
    compare(result(subject, inputs, module, outputs=graph(inputs)), expected)


def check_compile_dynamic(subject: Subject) -> None:
    """At most two graphs for twelve sizes.

    Values only: graphs with gradients are compared in the columns beside this one, and cost three
    times as much to make.
    """
    torch.compiler.reset()
    module = subject.built()
    graph = torch.compile(whole(subject, module), backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(recompile_limit=2), torch.no_grad():  # a third is an error
        for batch, width in SIZES:
            inputs = subject.make(*subject.size(batch, width))
            expected = flat(subject.run(inputs, module))
            try:
                found = flat(graph(inputs))
            except FailOnRecompileLimitHit as error:
                raise AssertionError(f"a third graph at batch {batch}, width {width}") from error
            for number, value in enumerate(found):
                close(f"value {number}", value, expected[number])


def check_export(subject: Subject) -> None:
    """Exported once, run at another size."""
    torch.compiler.reset()
    module = subject.built()
    made, other = subject.make(3, 5), subject.make(*subject.size(4, 7))
    dynamic = {
        k: {
            axis: torch.export.Dim.DYNAMIC
            for axis in range(x.dim())
            if x.shape[axis] != other[k].shape[axis]
        }
        for k, x in made.items()
    }
    program = torch.export.export(
        whole(subject, module), (made,), dynamic_shapes={"inputs": (dynamic,)}, strict=False
    ).module()
    for batch, width in ((3, 5), (4, 7), (6, 9)):
        inputs = subject.inputs(*subject.size(batch, width))
        expected = result(subject, inputs, module)
        values = program(inputs)
        for number, value in enumerate(flat(values)):
            close(f"value {number}", value, expected.values[number])
        if subject.smooth:
            found = gradients(objective(values), {k: inputs[k] for k in subject.smooth})
            for k, gradient in found.items():
                close(f"gradient of {k}", gradient, expected.gradients[k])


# ------------------------------------------------------------------------------------------- memory


def check_checkpoint(subject: Subject) -> None:
    """Computed again in the backward pass."""
    for reduction in subject.reductions():
        module, inputs = subject.built(reduction), subject.inputs()
        outputs = checkpoint(
            lambda **x: subject.run(x, module, reduction),  # noqa: B023
            use_reentrant=False,
            **inputs,
        )
        found = result(subject, inputs, module, outputs=outputs)
        compare(found, eager(subject, reduction=reduction))


def check_save_on_cpu(subject: Subject) -> None:
    """What backward needs is packed away in between."""
    for reduction in subject.reductions():
        module, inputs = subject.built(reduction), subject.inputs()
        with torch.autograd.graph.save_on_cpu():
            outputs = subject.run(inputs, module, reduction)
        found = result(subject, inputs, module, outputs=outputs)
        compare(found, eager(subject, reduction=reduction))


def check_in_place(subject: Subject) -> None:
    """An input changed before backward: an error, or the gradient of what was given."""
    for reduction in subject.reductions():
        expected = eager(subject, reduction=reduction)
        names = list(subject.make(3, 5))
        probe = subject.built(reduction)
        if probe is not None:
            names += [k for k, _ in probe.named_parameters()] + [
                k for k, _ in probe.named_buffers()
            ]
        for name in names:
            module, inputs = subject.built(reduction), subject.inputs()
            held = dict(inputs)
            if module is not None:
                held |= dict(module.named_parameters()) | dict(module.named_buffers())
            outputs = subject.run(inputs, module, reduction)
            value, given = objective(outputs), held[name]
            with torch.no_grad():
                given.logical_not_() if given.dtype == torch.bool else given.add_(1)
            leaves = {k: held[k] for k in expected.gradients}
            try:
                found = gradients(value, leaves)
            except RuntimeError as error:
                if "inplace operation" not in str(error):
                    raise
                continue
            for k, gradient in found.items():
                text = f"{reduction}: gradient of {k} after a change of {name}"
                close(text, gradient, expected.gradients[k])


# ------------------------------------------------------------------------------------------ modules


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Adapted(nn.Module):
    """A layer with a low-rank addition, which shows the attributes of the layer inside."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base = layer
        generator = torch.Generator().manual_seed(2)
        shape = (layer.out_features, layer.in_features)
        self.addition = nn.Parameter(
            torch.randn(shape, generator=generator, dtype=layer.weight.dtype)
        )

    in_features = property(lambda self: self.base.in_features)
    out_features = property(lambda self: self.base.out_features)
    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + nn.functional.linear(x, self.addition)


def check_layers(subject: Subject) -> None:
    """A parametrised, a hooked and an adapted layer count as what they compute."""
    inputs = subject.inputs()
    names = [k for k, part in subject.built().named_modules() if isinstance(part, nn.Linear)]

    def changed(change: Callable[[nn.Module, nn.Linear, str], None], name: str) -> list[Tensor]:
        module = subject.built()
        layer = module.get_submodule(name)
        with torch.no_grad():
            change(module, layer, name)
            return flat(subject.run(inputs, module))

    def double(module, layer, name):
        layer.weight.mul_(2)

    def parametrised(module, layer, name):
        parametrize.register_parametrization(layer, "weight", Doubled())

    def larger(module, layer, name):
        layer.weight.mul_(1.5)
        layer.bias.mul_(1.5)

    def hooked(module, layer, name):
        layer.register_forward_hook(lambda _layer, _inputs, output: 1.5 * output)

    def added(module, layer, name):
        layer.weight.add_(Adapted(layer).addition)

    def adapted(module, layer, name):
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, Adapted(layer))

    for by_hand, by_tool in ((double, parametrised), (larger, hooked), (added, adapted)):
        for name in names:
            expected, found = changed(by_hand, name), changed(by_tool, name)
            assert len(found) == len(expected)
            for value, right in zip(found, expected, strict=True):
                close(f"with {name} {by_tool.__name__}", value, right)


def check_deepcopy(subject: Subject) -> None:
    """A copy computes the same, and shares nothing."""
    module = subject.built()
    expected = result(subject, subject.inputs(), module)
    twin = copy.deepcopy(module)
    for one, other in zip(module.parameters(), twin.parameters(), strict=True):
        assert one.data_ptr() != other.data_ptr(), "shared memory"
    compare(result(subject, subject.inputs(), twin), expected)


def check_pickle(subject: Subject) -> None:
    """Through pickle, the same."""
    module = subject.built()
    expected = result(subject, subject.inputs(), module)
    compare(result(subject, subject.inputs(), pickle.loads(pickle.dumps(module))), expected)


def check_state_dict(subject: Subject) -> None:
    """Another one with this one's state computes the same."""
    module, other = subject.built(), subject.built()
    expected = result(subject, subject.inputs(), module)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(module.state_dict())
    compare(result(subject, subject.inputs(), other), expected)


def check_meta(subject: Subject) -> None:
    """Built without memory, then filled from a state."""
    module = subject.built()
    expected = result(subject, subject.inputs(), module)
    with deterministic():  # fills new memory with NaN, so that what is not loaded shows
        other = subject.built().to("meta").to_empty(device="cpu")
    other.load_state_dict(module.state_dict())
    compare(result(subject, subject.inputs(), other), expected)


# ------------------------------------------------------------------------------------- surroundings


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before
        torch.use_deterministic_algorithms(False)


@contextmanager
def default_dtype(dtype: torch.dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(device: str):
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)


def check_deterministic(subject: Subject) -> None:
    """Deterministic algorithms only, and new memory holds NaN."""
    for reduction in subject.reductions():
        expected = eager(subject, reduction=reduction)
        module, inputs = subject.built(reduction), subject.inputs()
        with deterministic():
            found = result(subject, inputs, module, reduction=reduction)
        compare(found, expected)


def check_default_dtype(subject: Subject) -> None:
    """To the last bit what it is with the usual default, dtypes included."""
    for reduction in subject.reductions():
        module, inputs = (
            subject.built(reduction, torch.float32),
            subject.inputs(dtype=torch.float32),
        )
        expected = result(subject, inputs, module, reduction=reduction)
        with default_dtype(torch.float64):
            found = result(subject, inputs, module, reduction=reduction)
        pairs = [*zip(found.values, expected.values, strict=True)]
        pairs += [(found.gradients[k], right) for k, right in expected.gradients.items()]
        for value, right in pairs:
            assert value.dtype == right.dtype, f"{value.dtype} for {right.dtype}"
            assert torch.equal(value, right), f"{value} for {right}"


def check_default_device(subject: Subject) -> None:
    """Inputs are on the CPU, the default device is another: nothing is made there."""
    for reduction in subject.reductions():
        module, inputs = subject.built(reduction), subject.inputs()
        expected = eager(subject, reduction=reduction)
        with default_device("meta"):
            outputs = subject.run(inputs, module, reduction)
            if subject.differentiable:
                backward = gradients_of(subject, inputs, module, outputs)
        found = Result([value.detach() for value in flat(outputs)], {})
        if subject.differentiable:
            found.gradients.update(backward)
        compare(found, expected)


def gradients_of(subject: Subject, inputs: Inputs, module: Any, outputs: Any) -> Inputs:
    return result(subject, inputs, module, outputs=outputs).gradients


def check_inference(subject: Subject) -> None:
    """Values are those of eager mode, for inputs from outside and from inside."""
    for reduction in subject.reductions():
        expected = eager(subject, reduction=reduction).values
        module, outside = subject.built(reduction), subject.inputs()
        with torch.inference_mode():
            inside = subject.make(3, 5)
            both = [flat(subject.run(x, module, reduction)) for x in (outside, inside)]
        for values in both:
            for number, value in enumerate(values):
                close(f"value {number}", value, expected[number])


# ------------------------------------------------------------------------------------------ layouts


def transposed(x: Tensor) -> Tensor:
    """The same values with the first dimension innermost in memory."""
    return x.movedim(0, -1).contiguous().movedim(-1, 0) if x.dim() > 1 else spaced(x)


def spaced(x: Tensor) -> Tensor:
    """The same values, every other entry of a larger tensor."""
    if x.dim() == 0:
        return x
    wide = x.new_zeros((*x.shape[:-1], 2 * x.shape[-1] + 1))
    wide[..., 1::2] = x
    return wide[..., 1::2]


def check_strided(subject: Subject) -> None:
    """Memory in another order, or with gaps."""
    for reduction in subject.reductions():
        expected = eager(subject, reduction=reduction)
        for layout in (transposed, spaced):
            module = subject.built(reduction)
            inputs = subject.leaves({k: layout(x) for k, x in subject.make(3, 5).items()})
            compare(result(subject, inputs, module, reduction=reduction), expected)


def check_expanded(subject: Subject) -> None:
    """One row that stands for all, without memory of its own."""
    for reduction in subject.reductions():
        made = subject.make(3, 5)
        bases = subject.leaves({k: x if k in subject.shared else x[:1] for k, x in made.items()})
        views = {k: x if k in subject.shared else x.expand(made[k].shape) for k, x in bases.items()}
        copies = subject.leaves({k: x.clone() for k, x in views.items()})
        module = subject.built(reduction)
        expected = result(subject, copies, module, reduction=reduction)
        outputs = subject.run(views, module, reduction)
        found = result(subject, bases, module, outputs=outputs)
        for k in subject.smooth:
            if k not in subject.shared:
                expected.gradients[k] = expected.gradients[k].sum(0, keepdim=True)
        compare(found, expected)


def check_empty(subject: Subject) -> None:
    """A batch of none: nothing, or 0, with gradient 0."""
    for reduction in subject.reductions():
        module, inputs = subject.built(reduction), subject.inputs(0, 5)
        found = result(subject, inputs, module, reduction=reduction)
        for value in found.values:
            assert value.numel() == 0 or bool((value == 0).all()), f"{reduction}: {value}"
        for k, gradient in found.gradients.items():
            assert bool((gradient == 0).all()), f"{reduction}: gradient of {k}: {gradient}"


# ------------------------------------------------------------------------------------ other devices


def check_fake_cuda(subject: Subject) -> None:
    """No CPU tensor meets a CUDA tensor, up to where values are read."""
    for reduction in subject.reductions():
        made = subject.make(3, 5)
        module = subject.built(reduction)
        with fake_cuda() as place:
            inputs = {k: place(x) for k, x in made.items()}
            try:
                if module is None:
                    outputs = subject.run(inputs, None, reduction)
                else:
                    on_cuda = OnDevice(module, place)
                    outputs = on_cuda(
                        lambda m, x: subject.run(x, m, reduction),  # noqa: B023
                        inputs,
                    )
            except VALUES_READ:
                continue
            except RuntimeError as error:
                if ".numpy() is not supported" in str(error):  # values are read there too
                    continue
                raise
            for value in flat(outputs):
                assert value.device.type == "cuda" or not made, f"the result is on {value.device}"


def check_distributed(subject: Subject, way: str) -> None:
    """Two processes; what they found, in one go for all subjects."""
    said = distributed.outcomes()[way][subject.name]
    assert not said, said


# ----------------------------------------------------------------------------------------- the list


def by_dtype(check: Callable[..., None], dtype: torch.dtype) -> Callable[[Subject], None]:
    return functools.partial(check, dtype=dtype)


SITUATIONS = {
    s.name: s
    for s in (
        Situation("eager", "float64; the gradient is that of differences", check_eager, always),
        *(
            Situation(
                name,
                f"{name}, value and gradient",
                by_dtype(check_dtype, getattr(torch, name)),
                takes_numbers,
            )
            for name in ("float32", "bfloat16", "float16")
        ),
        *(
            Situation(
                f"autocast {name}",
                f"float32 in a region of {name}",
                by_dtype(check_autocast, getattr(torch, name)),
                takes_numbers,
            )
            for name in ("bfloat16", "float16")
        ),
        Situation("loss scaling", "× 65536", check_loss_scaling, differentiable),
        Situation("double backward", "second derivatives", check_double_backward, whole_gradient),
        Situation("vmap", "values and gradients, mapped", check_vmap, maps),
        Situation("jacrev", "Jacobians", check_jacrev, of_inputs),
        Situation("functional_call", "parameters from outside", check_functional_call, is_module),
        Situation("compile", "one whole graph", check_compile, maps),
        Situation(
            "compile, dynamic",
            "at most two graphs for twelve sizes",
            check_compile_dynamic,
            maps,
        ),
        Situation("export", "batch and length may differ", check_export, maps),
        Situation("checkpoint", "non-reentrant", check_checkpoint, differentiable),
        Situation("save_on_cpu", "packed between passes", check_save_on_cpu, differentiable),
        Situation("layers", "parametrised, hooked, adapted", check_layers, has_layers),
        Situation("deepcopy", "a copy of its own", check_deepcopy, is_module),
        Situation("pickle", "through bytes", check_pickle, is_module),
        Situation("state_dict", "saved and loaded", check_state_dict, is_module),
        Situation("meta", "meta, to_empty, load_state_dict", check_meta, is_module),
        Situation("inference mode", "values", check_inference, always),
        Situation("strided", "other orders of memory", check_strided, takes_tensors),
        Situation("expanded", "one row for all", check_expanded, batched),
        Situation("empty", "a batch of none", check_empty, batched),
        Situation("default dtype", "float64", check_default_dtype, always),
        Situation(
            "default device", "another than the inputs'", check_default_device, takes_tensors
        ),
        Situation("deterministic", "new memory holds NaN", check_deterministic, always),
        Situation("in-place", "inputs changed before backward", check_in_place, differentiable),
        *(
            Situation(
                way,
                "two processes",
                functools.partial(check_distributed, way=way),
                trains_somewhere,
            )
            for way in distributed.WAYS
        ),
        Situation("fake CUDA", "no CPU tensor among CUDA's", check_fake_cuda, always),
    )
}
