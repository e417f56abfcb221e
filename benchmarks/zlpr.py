"""Time and memory of ZLPR, forward and backward, against what else there is.

``python -m benchmarks.zlpr`` prints a table per workload and writes
``book/runs/performance-zlpr.json``. bert4torch is measured if it is installed
(``pip install --no-deps bert4torch==0.6.2``); if not, its lines are missing and the output says so.
"""

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks import measure
from lib.zlpr import sparse_zlpr_loss, zlpr_loss
from references.bert4torch import bert4torch_losses

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "runs" / "performance-zlpr.json"


@dataclass(frozen=True)
class Workload:
    """A shape, and the state of the scores in it."""

    name: str
    rows: int
    classes: int
    positives: int
    level: float = 0.0  # positives around +level, negatives around -level
    padding: float = 0.0  # this share of the cells of each row, at its end, is at -inf
    rounds: int = 31


WORKLOADS = (
    Workload("spans", 16, 262_144, 8),
    Workload("spans, trained to ±20", 16, 262_144, 8, level=20.0),
    Workload("spans, half of them padding", 16, 262_144, 8, padding=0.5),
    Workload("spans of short texts", 16, 16_384, 8, rounds=61),
    Workload("many labels", 32, 5000, 8, rounds=101),
    Workload("labels", 256, 1000, 5, rounds=101),
    Workload("labels, half of them positive", 256, 1000, 500, rounds=101),
    Workload("labels of one batch", 64, 300, 5, rounds=501),
    Workload("few labels", 32, 20, 2, rounds=1001),
    Workload("one sample", 1, 10, 1, rounds=1001),
)


def plain(logits: Tensor, positive: Tensor) -> Tensor:
    """Compute the formula in one line of PyTorch per group, as one would first write it."""
    zero = torch.zeros_like(logits[..., :1])
    down = torch.cat([logits.masked_fill(positive, -math.inf), zero], -1).logsumexp(-1)
    up = torch.cat([(-logits).masked_fill(~positive, -math.inf), zero], -1).logsumexp(-1)
    return (down + up).mean()


def example(load: Workload) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits that need a gradient, the table of their positives, and these as lists."""
    generator = torch.Generator().manual_seed(0)
    shape = (load.rows, load.classes)
    scores = torch.randn(shape, generator=generator)
    kept = load.classes - int(load.padding * load.classes)
    order = torch.rand((load.rows, kept), generator=generator).argsort(-1)
    positives = order[:, : load.positives].contiguous()
    table = torch.zeros(shape, dtype=torch.bool).scatter(1, positives, True)
    scores += torch.where(table, load.level, -load.level)
    scores[:, kept:] = -math.inf
    return scores.requires_grad_(), table, positives


def competitors(load: Workload, *, compiler: bool = True) -> dict[str, Callable[[], None]]:
    """Return forward and backward passes of every loss on one input."""
    leaf, table, positives = example(load)
    numbers = table.to(torch.float32)

    def both(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def work() -> None:
            leaf.grad = None
            loss().backward()

        return work

    works = {
        "zlpr_loss": both(lambda: zlpr_loss(leaf, table)),
        "zlpr_loss, float targets": both(lambda: zlpr_loss(leaf, numbers)),
        "sparse_zlpr_loss": both(lambda: sparse_zlpr_loss(leaf, positives)),
        "plain formula": both(lambda: plain(leaf, table)),
    }
    fused = measure.compiled(zlpr_loss, leaf, table) if compiler else None
    if fused is not None:  # traced, it is the library's formula in plain operations
        works["torch.compile(zlpr_loss)"] = both(lambda: fused(leaf, table))
    if not load.padding:  # where it gives NaN
        works["BCEWithLogits"] = both(lambda: binary_cross_entropy_with_logits(leaf, numbers))
    peer = bert4torch_losses()
    if peer is not None:
        dense = peer.MultilabelCategoricalCrossentropy()
        sparse = peer.SparseMultilabelCategoricalCrossentropy()
        works["bert4torch dense"] = both(lambda: dense(leaf, numbers))
        works["bert4torch sparse"] = both(lambda: sparse(leaf, positives).mean())
    return works


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zlpr", description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], metavar="N")
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    parser.add_argument("--memory", metavar="LOSS", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory:
        works = competitors(WORKLOADS[0], compiler="compile" in options.memory)
        print(measure.peak_mib(works[options.memory]))
        return 0
    peer = bert4torch_losses() is not None
    if not peer:
        print("bert4torch is not installed: its losses are not measured", file=sys.stderr)
    results: list[dict[str, Any]] = []
    load_before = os.getloadavg()[0]
    for threads in options.threads:
        torch.set_num_threads(threads)
        for load in WORKLOADS:
            works = competitors(load)
            times = measure.in_turn(works, rounds=load.rounds)
            if load is WORKLOADS[0] and threads == options.threads[0]:
                for name, entry in times.items():
                    entry["peak_mib"] = peak_in_fresh_process(name)
            results.append({"threads": threads, **asdict(load), "losses": times})
            show(load, threads, times)
    record = {
        "command": "python -m benchmarks.zlpr",
        "what": "forward and backward pass to the mean loss, float32, median of the rounds",
        "hardware": measure.hardware(),
        "versions": {
            **measure.versions("torch", "bert4torch"),
            "bert4torch": measure.versions("bert4torch")["bert4torch"] if peer else None,
        },
        "load_before": round(load_before, 2),
        "results": results,
    }
    measure.write_record(options.out, record)
    return 0


def peak_in_fresh_process(name: str) -> float | None:
    """Memory of one loss at the first workload, where no other loss has left any behind."""
    command = [sys.executable, "-m", "benchmarks.zlpr", "--memory", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    answer = done.stdout.strip()
    return None if answer == "None" else float(answer)


def show(load: Workload, threads: int, times: dict[str, Any]) -> None:
    """Print one workload's times and their ratios to ours, dense to dense."""
    print(
        f"{load.name}: {load.rows} x {load.classes}, {load.positives} positive, {threads} threads"
    )
    for name, entry in times.items():
        ours = times["sparse_zlpr_loss" if "sparse" in name else "zlpr_loss"]
        ratios = [entry[clock] / ours[clock] for clock in ("wall_ms", "cpu_ms")]
        memory = entry.get("peak_mib")
        print(
            f"  {name:26}{entry['wall_ms']:10.3f} ms {ratios[0]:6.1f}x"
            f"{entry['cpu_ms']:10.3f} ms cpu {ratios[1]:6.1f}x"
            + (f"{memory:9.1f} MiB" if memory is not None else "")
        )


if __name__ == "__main__":
    sys.exit(main())
