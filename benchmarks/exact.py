"""Time, memory and error of EXACT, forward and backward, against the published sampler.

``python -m benchmarks.exact`` prints a table per workload and writes
``book/runs/performance-exact.json``. The published package is measured if it is installed,

    pip install "git+https://github.com/ivan-chai/exact@b88d545#subdirectory=exact"

and if not, its lines are missing and the output says so. Our own transcription of Genz's method
and the plain formula in ``log_ndtr`` are always measured.
"""

import argparse
import importlib
import importlib.util
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

from benchmarks import measure
from lib.exact import exact_loss, expected_accuracy
from references.exact import genz_sample

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "runs" / "performance-exact.json"
PEER = "exact_pytorch"
DRAWS = 16
MOST_CELLS = 128 * 300 * 300  # what the sampler's buffers may hold per draw: 2 GB each from here on


@dataclass(frozen=True)
class Workload:
    """A shape and how often it is measured."""

    rows: int
    classes: int
    rounds: int


WORKLOADS = (
    Workload(32, 20, 41),
    Workload(256, 1000, 3),
    Workload(128, 10, 41),
    Workload(128, 100, 15),
    Workload(128, 300, 3),
    Workload(128, 1000, 5),
)
MEMORY = WORKLOADS[3]


def data(load: Workload) -> tuple[Tensor, Tensor]:
    """Return scores and targets, from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(load.rows, load.classes, generator=generator)
    return scores, torch.randint(0, load.classes, (load.rows,), generator=generator)


def advantages(scores: Tensor, targets: Tensor) -> Tensor:
    """Return what the targets are ahead of each rival, ``(R, C - 1)``."""
    own = scores.gather(1, targets.unsqueeze(1))
    rivals = torch.arange(scores.shape[1]) != targets.unsqueeze(1)
    return own - scores[rivals].view(len(scores), -1)


def plain(scores: Tensor, targets: Tensor) -> Tensor:
    """Compute the integral as one would first write it: 69 equal steps over [-12, 12]."""
    z = torch.linspace(-12, 12, 69)
    log_phi = torch.special.log_ndtr(z[:, None, None] + advantages(scores, targets)).sum(-1)
    weights = (z[1] - z[0]) * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    return 1 - (weights.unsqueeze(1) * log_phi.exp()).sum(0).mean()


def published() -> Any | None:
    """Return the published package, if it is installed."""
    return importlib.import_module(PEER) if importlib.util.find_spec(PEER) else None


def competitors(load: Workload) -> dict[str, Callable[[], None]]:
    """Return forward and backward passes of every form on one input."""
    scores, targets = data(load)
    leaf = scores.requires_grad_()

    def both(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def work() -> None:
            leaf.grad = None
            loss().backward()

        return work

    works = {
        "exact_loss": both(lambda: exact_loss(leaf, targets)),
        "exact_loss, log": both(lambda: exact_loss(leaf, targets, log=True)),
        "plain formula": both(lambda: plain(leaf, targets)),
        "our transcription of Genz": both(
            lambda: 1 - genz_sample(advantages(leaf, targets), DRAWS).mean()
        ),
    }
    # Traced, the loss is a formula that holds rows × nodes × classes cells in float64.
    fused = measure.compiled(exact_loss, leaf, targets) if load.classes <= 100 else None
    if fused is not None:
        works["torch.compile(exact_loss)"] = both(lambda: fused(leaf, targets))
    package = published()
    if package is not None and load.rows * load.classes**2 <= MOST_CELLS:
        criterion = package.EXACTLoss(sample_size=DRAWS)
        works["published sampler"] = both(lambda: criterion(leaf, targets))
    return works


def errors(load: Workload) -> dict[str, float]:
    """Root mean square error of the probabilities of each form, against float64."""
    scores, targets = data(load)
    truth = expected_accuracy(scores.double(), targets, nodes=200)
    torch.manual_seed(1)
    found = {
        "exact_loss": 1 - exact_loss(scores, targets, reduction="none"),
        "our transcription of Genz": genz_sample(advantages(scores, targets), DRAWS),
    }
    package = published()
    if package is not None and load.rows * load.classes**2 <= MOST_CELLS:
        criterion = package.EXACTLoss(reduction="none", sample_size=DRAWS)
        found["published sampler"] = 1 - criterion(scores, targets)
    return {name: float((p.double() - truth).square().mean().sqrt()) for name, p in found.items()}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exact", description=__doc__)
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    parser.add_argument("--memory", metavar="FORM", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.memory:
        # Once on a small input first: code and tables of PyTorch are not the form's own memory.
        competitors(Workload(2, 3, 1))[options.memory]()
        print(measure.peak_mib(competitors(MEMORY)[options.memory]))
        return 0
    if published() is None:
        print("exact_pytorch is not installed: its sampler is not measured", file=sys.stderr)
    results: list[dict[str, Any]] = []
    load_before = os.getloadavg()[0]
    for load in WORKLOADS:
        times = measure.in_turn(competitors(load), rounds=load.rounds)
        for name, error in errors(load).items():
            times[name]["error"] = error
        if load is MEMORY:
            for name, entry in times.items():
                entry["peak_mib"] = peak_in_fresh_process(name)
        results.append({**asdict(load), "losses": times})
        show(load, times)
    record = {
        "command": "python -m benchmarks.exact",
        "what": "forward and backward pass to the mean loss, float32, one thread, median of the "
        f"rounds; samplers with {DRAWS} draws",
        "hardware": measure.hardware(),
        "versions": {
            **measure.versions("torch"),
            PEER: "0.0.2 (commit b88d545)" if published() is not None else None,
        },
        "load_before": round(load_before, 2),
        "results": results,
    }
    measure.write_record(options.out, record)
    return 0


def peak_in_fresh_process(name: str) -> float | None:
    """Memory of one form at the second workload, where no other has left any behind."""
    command = [sys.executable, "-m", "benchmarks.exact", "--memory", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    answer = done.stdout.strip()
    return None if answer == "None" else float(answer)


def show(load: Workload, times: dict[str, Any]) -> None:
    """Print one workload's times, their ratios to ours, errors and memory."""
    print(f"{load.rows} x {load.classes}")
    for name, entry in times.items():
        ratios = [entry[clock] / times["exact_loss"][clock] for clock in ("wall_ms", "cpu_ms")]
        print(
            f"  {name:26}{entry['wall_ms']:10.3f} ms {ratios[0]:6.1f}x"
            f"{entry['cpu_ms']:10.3f} ms cpu {ratios[1]:6.1f}x"
            + (f"   error {entry['error']:.1e}" if "error" in entry else "")
            + (f"{entry['peak_mib']:9.1f} MiB" if entry.get("peak_mib") is not None else "")
        )


if __name__ == "__main__":
    sys.exit(main())
