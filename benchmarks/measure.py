"""How everything here is measured, and what a record of a run holds."""

import ctypes
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lib.records import write_record

__all__ = [
    "compiled",
    "freshly_compiled",
    "hardware",
    "in_turn",
    "peak_mib",
    "versions",
    "write_record",
]

Work = Callable[[], object]


def in_turn(works: Mapping[str, Work], *, rounds: int) -> dict[str, Any]:
    """Let each work have its turn in every round; median milliseconds of each.

    Turns spread what else the machine does over all. At its turn a work runs twice and the second
    run counts: the first one pays for the memory that the work before it took or gave back.
    ``wall`` is what a reader waits; ``cpu`` adds up the process's threads and is what remains true
    on a busy machine with one thread.
    """
    wall: dict[str, list[float]] = {name: [] for name in works}
    cpu: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            work()
            start, spent = time.perf_counter(), time.process_time()
            work()
            cpu[name].append(time.process_time() - spent)
            wall[name].append(time.perf_counter() - start)
    return {
        name: {
            "wall_ms": round(1e3 * statistics.median(wall[name]), 3),
            "cpu_ms": round(1e3 * statistics.median(cpu[name]), 3),
        }
        for name in works
    }


def freshly_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function for the sizes it is called with, after forgetting all that was compiled.

    After a few sizes of one function PyTorch would run the function itself, without a word but a
    warning, and that is what would be measured.
    """
    torch.compiler.reset()
    return torch.compile(function, dynamic=False, fullgraph=True)


def compiled(
    loss: Callable[..., torch.Tensor], *arguments: torch.Tensor
) -> Callable[..., Any] | None:
    """Compile a loss and run it forward and back once; None, and a line, where that fails."""
    fused = freshly_compiled(loss)
    try:
        torch.autograd.backward(fused(*arguments))
    except Exception as error:  # no compiler, or none that it can find
        print(f"torch.compile does not work here: {type(error).__name__}", file=sys.stderr)
        return None
    for argument in arguments:  # or the memory of the first call would not be counted
        argument.grad = None
    return fused


def peak_mib(work: Work) -> float | None:
    """Most memory a work holds above what was held before it, in MiB; None where nobody counts.

    Linux counts the pages of a process and lets it reset the highest count.
    """
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        ctypes.CDLL(None).malloc_trim(0)
        reset.write_text("5")
    except (AttributeError, OSError):
        return None
    before = _kib(status, "VmRSS")  # after giving back what is free: it would be used unseen
    work()
    return round((_kib(status, "VmHWM") - before) / 1024, 1)


def _kib(status: Path, name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+)", status.read_text())
    if found is None:
        raise RuntimeError(f"{status} has no {name}")
    return int(found[1])


def hardware() -> dict[str, Any]:
    """Shape of the machine, without its name."""
    processor = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text())
        processor = found[1] if found else processor
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
    }


def versions(*packages: str) -> dict[str, str | None]:
    """Return versions of Python and of packages; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found
