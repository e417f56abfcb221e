"""What the table is made of: subjects, their refusals, and how two results are compared."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

Inputs = dict[str, Tensor]

DIGITS = {
    torch.float64: 1e-9,
    torch.float32: 2e-5,
    torch.float16: 4e-3,
    torch.bfloat16: 2e-2,
}
"""How far two results may lie apart, relative to the entry and to the largest entry of its tensor.

The dtype is that of the coarser of the two: a float32 loss of bfloat16 logits must have the digits
of float32, and its gradient, which is rounded to bfloat16, those of bfloat16.
"""


def documented(thing: object) -> str:
    """Docstring of a function, or of a class and its public methods."""
    found = inspect.getdoc(thing) or ""
    if inspect.isclass(thing):
        methods = inspect.getmembers(thing, inspect.isfunction)
        found += "".join(f"\n{inspect.getdoc(m)}" for k, m in methods if not k.startswith("_"))
    return found


@dataclass(frozen=True)
class Refusal:
    """An error that a situation must give, and the words of the docstring that say so."""

    error: type[Exception]
    message: str  # found in the error
    rule: str  # found in the docstring, whatever its line breaks


@dataclass(frozen=True)
class Subject:
    """A row of the table.

    ``make(batch, width)`` gives float64 inputs, always the same ones. ``call(**inputs)`` returns a
    tensor or several; a loss takes ``reduction`` too, if ``reduces``; a module's call takes the
    module first.
    """

    name: str
    of: str  # the public name that this is a row of, with its package
    make: Callable[[int, int], Inputs]
    call: Callable[..., Any]
    smooth: tuple[str, ...] = ()  # differentiable inputs; none: the row has no gradient
    shared: tuple[str, ...] = ()  # inputs without a batch dimension
    reduces: bool = False
    module: Callable[..., nn.Module] | None = None  # takes the reduction, if the call does
    trains: bool = False  # its parameters get gradients, whether or not an input does
    stops: bool = False  # a part of the gradient is left out, as documented
    layers: bool = False  # projects: under autocast it has the digits of half precision
    decides: bool = False  # the size of its result depends on values, or it gives numbers
    scales: bool = True  # cheap enough for a batch of thousands
    grows: tuple[str, ...] = ("batch", "width")  # what may differ between calls of one graph
    limit: str = ""  # words of the docstring that say why not all of it may differ
    spread: float = 0.5  # of the random numbers that are added to the module's parameters
    within: Callable[[], AbstractContextManager[Any]] = nullcontext  # holds while it is called
    refuses: Mapping[str, Refusal] = field(default_factory=dict)  # by situation
    without: Mapping[str, str] = field(default_factory=dict)  # situation: why it does not apply

    @property
    def differentiable(self) -> bool:
        """Whether any gradient passes."""
        return self.trains or bool(self.smooth)

    @property
    def documentation(self) -> str:
        """Docstring of the public name, in one line."""
        package, _, name = self.of.rpartition(".")
        home = import_module(package)
        found, due = "", [getattr(home, name)]
        for _ in range(3):  # "as in …", and what that says
            text = "".join(documented(thing) for thing in due)
            found += text
            due = []
            for other in set(re.findall(r":(?:func|class):`~?([\w.]+)`", text)):
                there, _, called = other.rpartition(".")
                if not there or there.startswith("lib."):
                    due.append(getattr(import_module(there) if there else home, called, None))
        return " ".join(found.split())

    def inputs(self, batch: int = 3, width: int = 5, dtype: torch.dtype | None = None) -> Inputs:
        """Inputs, the floating ones in a dtype; the differentiable ones ask for a gradient."""
        made = self.make(batch, width)
        if dtype is not None:
            made = {k: x.to(dtype) if x.is_floating_point() else x for k, x in made.items()}
        return self.leaves(made)

    def size(self, batch: int, width: int) -> tuple[int, int]:
        """Batch and width of another call, of which only what may differ does."""
        return batch if "batch" in self.grows else 3, width if "width" in self.grows else 5

    def leaves(self, inputs: Inputs) -> Inputs:
        """The same values, cut off and asking for gradients; strides stay as they are."""
        return {k: x.detach().requires_grad_(k in self.smooth) for k, x in inputs.items()}

    def built(
        self, reduction: str = "none", dtype: torch.dtype = torch.float64
    ) -> nn.Module | None:
        """The module, always with the same parameters."""
        if self.module is None:
            return None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = self.module(reduction) if self.reduces else self.module()
            with torch.no_grad():
                for parameter in made.parameters():  # far from a start of zeros
                    parameter.add_(torch.randn_like(parameter), alpha=self.spread)
        return made.to(dtype)

    def run(self, inputs: Inputs, module: nn.Module | None = None, reduction: str = "none") -> Any:
        """Call once."""
        options = {"reduction": reduction} if self.reduces and self.module is None else {}
        given = () if module is None else (module,)
        return self.call(*given, **inputs, **options)

    def reductions(self) -> tuple[str, ...]:
        """All that a call can ask for."""
        return ("none", "mean", "sum") if self.reduces else ("none",)


@dataclass
class Result:
    """What came out, and the gradients of what went in."""

    values: list[Tensor]
    gradients: dict[str, Tensor]


def flat(outputs: Any) -> list[Tensor]:
    """Tensors of an output: one, or a nest of sequences, with numbers as tensors."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, (int, float)):
        return [torch.tensor(outputs, dtype=torch.float64, device="cpu")]
    assert isinstance(outputs, Sequence), type(outputs)
    return [tensor for part in outputs for tensor in flat(part)]


def objective(outputs: Any) -> Tensor:
    """One number of all outputs, with a weight of its own for each entry; −inf does not count."""
    total: Any = 0
    for tensor in flat(outputs):
        if tensor.is_floating_point():
            weights = torch.arange(tensor.numel(), device=tensor.device).to(tensor.dtype)
            kept = tensor.masked_fill(tensor.detach() == -torch.inf, 0)
            total = total + (kept * (1 + weights.cos()).reshape(tensor.shape)).sum()
    return total


def result(
    subject: Subject,
    inputs: Inputs,
    module: nn.Module | None = None,
    *,
    outputs: Any = None,
    reduction: str = "none",
) -> Result:
    """Run, unless the outputs are given, and differentiate."""
    if outputs is None:
        outputs = subject.run(inputs, module, reduction)
    leaves = {k: inputs[k] for k in subject.smooth}
    if module is not None and subject.trains:
        leaves |= {k: p for k, p in module.named_parameters() if p.requires_grad}
    gradients: dict[str, Tensor] = {}
    if leaves:
        found = torch.autograd.grad(objective(outputs), list(leaves.values()), allow_unused=True)
        gradients = {
            name: torch.zeros_like(leaf) if gradient is None else gradient
            for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
        }
    return Result([value.detach() for value in flat(outputs)], gradients)


def compare(found: Result, expected: Result, dtype: torch.dtype | None = None) -> None:
    """Raise unless both agree; ``dtype`` is what was computed in, if coarser than what came out."""
    assert len(found.values) == len(expected.values), "another number of outputs"
    for number, (value, right) in enumerate(zip(found.values, expected.values, strict=True)):
        close(f"value {number}", value, right, dtype)
    assert found.gradients.keys() == expected.gradients.keys()
    for name, gradient in found.gradients.items():
        close(f"gradient of {name}", gradient, expected.gradients[name], dtype)


def close(name: str, found: Tensor, expected: Tensor, dtype: torch.dtype | None = None) -> None:
    """Raise unless two tensors agree to the digits of the coarser dtype, see `DIGITS`."""
    assert found.shape == expected.shape, f"{name}: shape {found.shape} for {expected.shape}"
    if not expected.is_floating_point():
        assert torch.equal(found, expected), f"{name}: {found} for {expected}"
        return
    digits = max(DIGITS[d] for d in (found.dtype, expected.dtype, dtype or found.dtype))
    got, right = found.detach().double(), expected.detach().double()
    top = right[right.isfinite()].abs().max() if right.isfinite().any() else right.new_zeros(())
    same = (got == right) | ((got - right).abs() <= digits * (right.abs() + top))
    if not bool(same.all()):
        worst = (got - right).abs().masked_fill(same, 0).nan_to_num(torch.inf, torch.inf)
        at = int(worst.argmax())
        raise AssertionError(
            f"{name}: {got.flatten()[at]:.6g} for {right.flatten()[at]:.6g} (to {digits:g})"
        )
