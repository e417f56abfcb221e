"""Two processes on the CPU: gradients under DDP and FSDP2 are the means of both processes' own.

Run by `outcomes` as ``python -m tests.situations.distributed FOLDER RANK``, once for each process.
"""

import functools
import json
import os
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.situations.subject import Inputs, Subject, close, flat, objective
from tests.situations.subjects import ROWS

ROOT = Path(__file__).parents[2]
WAYS = ("DDP", "FSDP2")


class Trained(nn.Module):
    """The subject, behind a layer of its own where it has no parameters."""

    def __init__(self, subject: Subject) -> None:
        super().__init__()
        self.subject, self.inner = subject, subject.built()
        self.layer = None
        if not list(self.inner.parameters()):
            width = subject.make(3, 5)[subject.smooth[0]].shape[-1]
            torch.manual_seed(0)
            self.layer = nn.Linear(width, width, dtype=torch.float64)

    def forward(self, inputs: Inputs) -> list[Tensor]:
        if self.layer is not None:
            name = self.subject.smooth[0]
            inputs = inputs | {name: self.layer(inputs[name])}
        return flat(self.subject.run(inputs, self.inner))


def gradients(model: nn.Module, parameters: nn.Module) -> dict[str, Tensor]:
    return {k: p.grad for k, p in parameters.named_parameters() if p.grad is not None}


def check(subject: Subject, way: str, rank: int) -> None:
    """Raise unless values are this process's own and gradients the means."""
    expected, own = {}, []
    for other in range(2):
        alone = Trained(subject)
        values = alone(subject.inputs(3 + other, 5))
        if subject.differentiable:
            objective(values).backward()
            for k, gradient in gradients(alone, alone).items():
                expected[k] = expected.get(k, 0) + gradient / 2
        if other == rank:
            own = [value.detach() for value in values]
    model = Trained(subject)
    wrapped: nn.Module = model
    if way == "DDP":
        wrapped = DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (2,))
        for part in list(model.modules()):
            if isinstance(part, nn.Linear):
                fully_shard(part, mesh=mesh)
        fully_shard(model, mesh=mesh)
    values = wrapped(subject.inputs(3 + rank, 5))
    for number, value in enumerate(values):
        close(f"value {number}", value, own[number])
    if not subject.differentiable:
        return
    objective(values).backward()
    found = gradients(wrapped, model)
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    for k, gradient in found.items():
        whole = gradient.full_tensor() if way == "FSDP2" else gradient
        close(f"gradient of {k}", whole, expected[k])


def trains(subject: Subject) -> bool:
    """Whether there is a module, and anything in it or before it that learns."""
    if subject.module is None:
        return False
    return bool(subject.smooth) or bool(list(subject.built().parameters()))


@functools.cache
def outcomes() -> dict[str, dict[str, str]]:
    """By way and subject: nothing, or what went wrong in the first process that failed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.situations.distributed", folder]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        processes = [
            subprocess.Popen(
                [*command, str(rank)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
            )
            for rank in range(2)
        ]
        said = [process.communicate(timeout=300)[1] for process in processes]
        files = [Path(folder, f"{rank}.json") for rank in range(2)]
        assert all(file.exists() for file in files), "\n".join(said)[-4000:]
        found = [json.loads(file.read_text("utf-8")) for file in files]
    return {
        way: {name: found[0][way][name] or found[1][way][name] for name in found[0][way]}
        for way in WAYS
    }


def work(folder: Path, rank: int) -> None:
    """Go through all modules in the order in which the other process does."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    found: dict[str, dict[str, str]] = {way: {} for way in WAYS}
    for way in WAYS:
        for name, subject in ROWS.items():
            if trains(subject):
                try:
                    check(subject, way, rank)
                    found[way][name] = ""
                except Exception as error:
                    found[way][name] = f"{type(error).__name__}: {error}"
    Path(folder, f"{rank}.json").write_text(json.dumps(found), "utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    work(Path(sys.argv[1]), int(sys.argv[2]))
