"""Time and memory of ZLPR from hidden states, against the loss of the filled table of logits.

``python -m benchmarks.linear_zlpr`` prints a table per number of labels and writes
``book/runs/performance-linear_zlpr.json``. What holds the table is measured as long as that fits.
Each form runs in a process of its own, so that its memory is counted alone.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import measure
from lib.zlpr import linear_zlpr_loss, sparse_zlpr_loss

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "runs" / "performance-linear_zlpr.json"
ROWS, WIDTH, POSITIVES = 1024, 256, 8
LABELS = (1_000, 10_000, 50_000, 200_000, 500_000, 1_000_000)
MOST_FILLED = 50_000  # labels up to which tables of logits are filled here
ROUNDS = {1_000: 15, 10_000: 7, 50_000: 5}  # one for more labels

Form = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def ours(hidden: Tensor, weight: Tensor, bias: Tensor, positives: Tensor) -> Tensor:
    """Hold some logits at a time."""
    return linear_zlpr_loss(hidden, weight, positives, bias=bias)


def filled(hidden: Tensor, weight: Tensor, bias: Tensor, positives: Tensor) -> Tensor:
    """Hold all logits once."""
    return sparse_zlpr_loss(functional.linear(hidden, weight, bias), positives)


def plain(hidden: Tensor, weight: Tensor, bias: Tensor, positives: Tensor) -> Tensor:
    """Compute the formula of chapter 2 by PyTorch's operations."""
    logits = functional.linear(hidden, weight, bias)
    positive = torch.zeros_like(logits, dtype=torch.bool).scatter(1, positives, True)
    null = torch.zeros_like(logits[:, :1])
    above = torch.cat([null, logits.masked_fill(positive, -inf)], 1).logsumexp(1)
    below = torch.cat([null, (-logits).masked_fill(~positive, -inf)], 1).logsumexp(1)
    return (above + below).mean()


def yes_or_no(hidden: Tensor, weight: Tensor, bias: Tensor, positives: Tensor) -> Tensor:
    """Binary cross-entropy of the same logits."""
    logits = functional.linear(hidden, weight, bias)
    table = torch.zeros_like(logits).scatter(1, positives, 1.0)
    return functional.binary_cross_entropy_with_logits(logits, table)


FORMS: dict[str, Form] = {
    "linear_zlpr_loss": ours,
    "sparse_zlpr_loss": filled,
    "plain": plain,
    "plain, compiled": plain,
    "BCEWithLogits": yes_or_no,
}


def measured(name: str, labels: int) -> dict[str, Any]:
    """Seconds of forward and backward, median of the rounds, and the most memory."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    weight = torch.empty(labels, WIDTH).normal_(0, WIDTH**-0.5, generator=generator)
    leaves = [torch.randn(ROWS, WIDTH, generator=generator), weight, torch.full((labels,), -8.0)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    positives = torch.randint(labels, (ROWS, POSITIVES), generator=generator)
    form: Any = FORMS[name]
    if name.endswith("compiled"):
        form = measure.compiled(form, *leaves, positives)
        if form is None:
            return {}

    def work() -> None:
        for leaf in leaves:
            leaf.grad = None
        form(*leaves, positives).backward()

    work()  # what a first call loads is not the form's memory
    for leaf in leaves:
        leaf.grad = None
    peak = measure.peak_mib(work)
    gradients = sum(leaf.numel() for leaf in leaves) * 4 / 2**20
    times = measure.in_turn({name: work}, rounds=ROUNDS.get(labels, 1))[name]
    above = None if peak is None else round(peak - gradients, 1)
    return times | {"above_gradients_mib": above}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.linear_zlpr", description=__doc__)
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    parser.add_argument("--one", nargs=2, metavar=("FORM", "LABELS"), help="measure this one")
    parser.add_argument("--labels", type=int, nargs="+", default=LABELS, help="how many labels")
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(measured(options.one[0], int(options.one[1]))))
        return 0
    results: list[dict[str, Any]] = []
    for labels in options.labels:
        entry: dict[str, Any] = {"labels": labels, "forms": {}}
        print(f"{labels} labels")
        for name in FORMS:
            if labels > MOST_FILLED and name != "linear_zlpr_loss":
                continue
            words = [sys.executable, "-m", "benchmarks.linear_zlpr", "--one", name, str(labels)]
            done = subprocess.run(words, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            found = entry["forms"][name] = json.loads(done.stdout)
            if found:
                print(f"  {name:20}{found['cpu_ms']:12.1f} ms {found['above_gradients_mib']} MiB")
        results.append(entry)
    record = {
        "command": "python -m benchmarks.linear_zlpr",
        "what": "forward and backward pass to the mean, float32, one thread; memory above "
        "arguments and gradients",
        "rows": ROWS,
        "width": WIDTH,
        "positives": POSITIVES,
        "hardware": measure.hardware(),
        "versions": measure.versions("torch"),
        "results": results,
    }
    measure.write_record(options.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
