"""Time and memory of smooth maxima and sums over subsets, forward and backward.

``python -m benchmarks.softmax`` prints a table per workload and writes
``book/runs/performance-softmax.json``. Peers are what one would write with PyTorch itself.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from lib.softmax import inclusion_probabilities, smooth_max, streaming_logsumexp

RECORD = Path(__file__).resolve().parent.parent / "book" / "runs" / "performance-softmax.json"
SHAPES = ((16, 262_144, 15), (256, 1000, 41), (32, 20, 101))  # rows, columns, rounds
SUBSETS = ((1, 200, 20), (64, 1000, 10), (8, 1000, 50))  # rows, scores, k


def both(leaf: Tensor, function: Callable[[], Tensor]) -> Callable[[], None]:
    def work() -> None:
        leaf.grad = None
        function().sum().backward()

    return work


def maxima(rows: int, columns: int) -> dict[str, Callable[[], None]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, columns, generator=generator).requires_grad_()
    mask = torch.rand(rows, columns, generator=generator) < 0.5

    def composed() -> Tensor:
        return torch.logsumexp((5 * x).masked_fill(~mask, -math.inf), -1) / 5

    return {
        "torch.logsumexp": both(x, lambda: torch.logsumexp(x, -1)),
        "smooth_max": both(x, lambda: smooth_max(x)),
        "torch, gamma = 5": both(x, lambda: torch.logsumexp(5 * x, -1) / 5),
        "smooth_max, gamma = 5": both(x, lambda: smooth_max(x, gamma=5)),
        "torch, gamma and mask": both(x, composed),
        "smooth_max, gamma and mask": both(x, lambda: smooth_max(x, gamma=5, mask=mask)),
    }


def recursion(scores: Tensor, k: int) -> Tensor:
    """Return log Z_k label by label, all sizes at once: chapter 2's recursion."""
    logs = scores.new_full((*scores.shape[:-1], k + 1), -1e30)
    logs[..., 0] = 0
    for score in scores.unbind(-1):
        longer = torch.nn.functional.pad(logs[..., :-1], (1, 0), value=-1e30)
        logs = torch.logaddexp(logs, longer + score.unsqueeze(-1))
    return logs[..., k]


def subsets(rows: int, size: int, k: int) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    return {
        "recursion and autograd": lambda: torch.autograd.grad(recursion(leaf, k).sum(), leaf),
        "inclusion_probabilities": lambda: inclusion_probabilities(x, k),
    }


def streams() -> dict[str, Callable[[], None]]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(256, 64, generator=generator).requires_grad_()
    weight = torch.randn(50_000, 64, generator=generator)
    parts = weight.split(2500)

    def stream() -> Tensor:
        return streaming_logsumexp(lambda rows=rows: hidden @ rows.T for rows in parts)

    return {
        "torch, whole table": both(hidden, lambda: torch.logsumexp(hidden @ weight.T, -1)),
        "streaming_logsumexp": both(hidden, stream),
    }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.softmax", description=__doc__)
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    results: list[dict[str, Any]] = []
    groups = [
        *((f"{r} × {c}", maxima(r, c), rounds) for r, c, rounds in SHAPES),
        *((f"{k} of {n}, {r} rows", subsets(r, n, k), 5) for r, n, k in SUBSETS),
        ("256 × 50000 from two matrices", streams(), 5),
    ]
    for name, works, rounds in groups:
        times = measure.in_turn(works, rounds=rounds)
        if works.keys() & {"streaming_logsumexp"}:
            for work, entry in times.items():
                entry["peak_mib"] = measure.peak_mib(works[work])
        results.append({"name": name, "rounds": rounds, "functions": times})
        print(name)
        for work, entry in times.items():
            print(f"  {work:28}", *(f"{key} {value}" for key, value in entry.items()))
    record = {
        "command": "python -m benchmarks.softmax",
        "what": "forward and backward pass, float32 (subsets: float64), one thread, medians",
        "hardware": measure.hardware(),
        "versions": measure.versions("torch"),
        "load_before": round(load_before, 2),
        "results": results,
    }
    measure.write_record(options.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
