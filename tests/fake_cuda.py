"""CUDA tensors on a machine without CUDA: shapes, dtypes and devices, but no values.

`torch._subclasses.FakeTensorMode` runs operators on tensors that only say where they are; an
operator that gets a CPU tensor beside a CUDA tensor raises, as it would on a GPU. In-place
initialisers do not know such tensors, so modules are built on the CPU and their parameters and
buffers replaced, by `torch.func.functional_call`. Autograd asks for a guard of the device, which a
build without CUDA lacks: no gradients are recorded.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

VALUES_READ = (DataDependentOutputException, DynamicOutputShapeException)
"""What is raised where the program asks for a value: up to there it ran."""

CUDA = torch.device("cuda", 0)


@contextmanager
def fake_cuda() -> Iterator[Callable[[Tensor], Tensor]]:
    """Enter the mode; gives a function from a real tensor to a fake one on ``cuda:0``."""
    mode = FakeTensorMode()

    def fake(tensor: Tensor) -> Tensor:
        with torch.utils._python_dispatch._disable_current_modes():
            meta = tensor.detach().to("meta")
        return FakeTensor(mode, meta, CUDA)

    # These operators, and they alone, ask for a guard of the device before they dispatch.
    with (
        mock.patch.object(Tensor, "__invert__", lambda self: torch.bitwise_not(self)),
        mock.patch.object(Tensor, "__getitem__", _item),
        mock.patch.object(Tensor, "__setitem__", _set_item),
        mock.patch.object(Tensor, "new_tensor", _new_tensor),
        mock.patch.object(Tensor, "copy_", _copy),
        torch.no_grad(),
        mode,
    ):
        yield fake


def _item(tensor: Tensor, index: Any) -> Tensor:
    """Index as Python does, by the operators that it stands for."""
    view, indices = _view(tensor, index)
    if any(found is not None and found.dtype == torch.bool for found in indices):
        raise DynamicOutputShapeException(torch.ops.aten.index.Tensor)
    return torch.ops.aten.index(view, indices) if indices else view


def _set_item(tensor: Tensor, index: Any, value: Any) -> None:
    """There are no values to set; shapes and devices must fit."""
    view, indices = _view(tensor, index)
    if indices:
        view = torch.ops.aten.index(view, indices)
    assert torch.broadcast_shapes(view.shape, torch.add(view, value).shape) == view.shape


def _copy(tensor: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Copy between devices, as PyTorch lets anybody do."""
    assert torch.broadcast_shapes(tensor.shape, source.shape) == tensor.shape
    return tensor


def _new_tensor(tensor: Tensor, data: Any, *, dtype: torch.dtype | None = None) -> Tensor:
    return torch.tensor(data, dtype=dtype or tensor.dtype, device=tensor.device)


def _view(tensor: Tensor, index: Any) -> tuple[Tensor, list[Tensor | None]]:
    """Do what slices, numbers, None and ... say; the tensors among the indices are left."""
    parts = list(index) if isinstance(index, tuple) else [index]
    taken = sum(
        part.dim() if isinstance(part, Tensor) and part.dtype == torch.bool else 1
        for part in parts
        if part is not None and part is not Ellipsis
    )
    view, dim, indices = tensor, 0, []
    for part in parts:
        if part is None:
            view = view.unsqueeze(dim)
            dim += 1
            indices.append(None)
        elif part is Ellipsis:
            skipped = tensor.dim() - taken
            dim += skipped
            indices += [None] * skipped
        elif isinstance(part, slice):
            view = torch.ops.aten.slice(view, dim, part.start, part.stop, part.step or 1)
            dim += 1
            indices.append(None)
        elif isinstance(part, Tensor | list):
            found = part if isinstance(part, Tensor) else torch.tensor(part, device=tensor.device)
            dim += found.dim() if found.dtype == torch.bool else 1
            indices.append(found)
        else:
            view = view.select(dim, part)
    return view, indices if any(found is not None for found in indices) else []


class OnDevice:
    """A module whose parameters and buffers are replaced by others, call by call."""

    def __init__(self, module: nn.Module, place: Callable[[Tensor], Tensor]) -> None:
        state = dict(module.named_parameters()) | dict(module.named_buffers())
        self.module, self.state = module, {name: place(value) for name, value in state.items()}

    def __call__(self, call: Callable[..., Any], *inputs: Any) -> Any:
        """Return ``call(module, *inputs)`` with the other tensors in place."""
        whole = Calling(self.module, call)
        state = {f"module.{name}": value for name, value in self.state.items()}
        return torch.func.functional_call(whole, state, inputs)


class Calling(nn.Module):
    """Any call of a module as the forward pass of another one."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, *inputs: Any) -> Any:
        return self.call(self.module, *inputs)
