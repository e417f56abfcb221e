"""Time and memory of soft ZLPR, forward and backward, against hard labels and what else there is.

``python -m benchmarks.soft_zlpr`` prints a table per workload and writes
``book/runs/performance-soft_zlpr.json``. bert4torch is measured if it is installed
(``pip install --no-deps bert4torch==0.6.2``); if not, its lines are missing and the output says so.
"""

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks import measure
from benchmarks.zlpr import Workload, example
from lib.soft_zlpr import soft_zlpr_loss
from lib.zlpr import zlpr_loss
from references.bert4torch import bert4torch_losses
from references.soft_zlpr import clipped

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "runs" / "performance-soft_zlpr.json"

WORKLOADS = (
    Workload("spans", 16, 262_144, 8, rounds=15),
    Workload("spans, trained to ±20", 16, 262_144, 8, level=20.0, rounds=15),
    Workload("spans, far apart at ±200", 16, 262_144, 8, level=200.0, rounds=7),
    Workload("spans, half of them padding", 16, 262_144, 8, padding=0.5, rounds=15),
    Workload("many labels", 32, 5000, 8, rounds=101),
    Workload("labels", 256, 1000, 5, rounds=101),
    Workload("labels of one batch", 64, 300, 5, rounds=501),
    Workload("few labels", 32, 20, 2, rounds=1001),
    Workload("one sample", 1, 10, 1, rounds=1001),
)


def explicit(logits: Tensor, targets: Tensor) -> Tensor:
    """Write the definition in plain operations, for a compiler to fuse."""
    shift = logits.detach().abs().amax(-1, keepdim=True)
    null = torch.exp(-shift).squeeze(-1)
    up = (targets * torch.exp(-logits - shift)).sum(-1) + null
    down = ((1 - targets) * torch.exp(logits - shift)).sum(-1) + null
    return (up.log() + down.log() + 2 * shift.squeeze(-1)).mean()


def competitors(load: Workload, *, compiler: bool = True) -> dict[str, Callable[[], None]]:
    """Return forward and backward passes of every loss on one input."""
    leaf, table, _ = example(load)
    hard, soft = table.to(torch.float32), torch.where(table, 0.95, 0.05)
    soft[leaf == -math.inf] = 0

    def both(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def work() -> None:
            leaf.grad = None
            loss().backward()

        return work

    works = {
        "soft_zlpr_loss": both(lambda: soft_zlpr_loss(leaf, soft)),
        "zlpr_loss, bool labels": both(lambda: zlpr_loss(leaf, table)),
        "zlpr_loss, float labels": both(lambda: zlpr_loss(leaf, hard)),
        "clipped, log t (bert4keras)": both(lambda: clipped(leaf, soft, None, "mean")),
    }
    if load.padding:  # the others give NaN there
        return works
    works["BCEWithLogits"] = both(lambda: binary_cross_entropy_with_logits(leaf, soft))
    peer = bert4torch_losses()
    if peer is not None:
        dense = peer.MultilabelCategoricalCrossentropy()
        works["bert4torch dense"] = both(lambda: dense(leaf, soft))
    short = measure.compiled(explicit, leaf, soft) if compiler else None
    if short is not None:
        works["torch.compile, one shift"] = both(lambda: short(leaf, soft))
    fused = measure.compiled(soft_zlpr_loss, leaf, soft) if compiler else None
    if fused is not None:  # traced, it is the library's formula in plain operations
        works["torch.compile(soft_zlpr_loss)"] = both(lambda: fused(leaf, soft))
    return works


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soft_zlpr", description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1], metavar="N")
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    parser.add_argument("--memory", metavar="LOSS", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.memory:
        works = competitors(WORKLOADS[0], compiler="compile" in options.memory)
        print(measure.peak_mib(works[options.memory]))
        return 0
    peer = bert4torch_losses() is not None
    if not peer:
        print("bert4torch is not installed: its loss is not measured", file=sys.stderr)
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
        "command": "python -m benchmarks.soft_zlpr",
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
    command = [sys.executable, "-m", "benchmarks.soft_zlpr", "--memory", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    answer = done.stdout.strip()
    return None if answer == "None" else float(answer)


def show(load: Workload, threads: int, times: dict[str, Any]) -> None:
    """Print one workload's times and their ratios to ours."""
    print(f"{load.name}: {load.rows} x {load.classes}, {threads} threads")
    ours = times["soft_zlpr_loss"]
    for name, entry in times.items():
        ratios = [entry[clock] / ours[clock] for clock in ("wall_ms", "cpu_ms")]
        memory = entry.get("peak_mib")
        print(
            f"  {name:28}{entry['wall_ms']:10.3f} ms {ratios[0]:6.2f}x"
            f"{entry['cpu_ms']:10.3f} ms cpu {ratios[1]:6.2f}x"
            + (f"{memory:9.1f} MiB" if memory is not None else "")
        )


if __name__ == "__main__":
    sys.exit(main())
