"""Time of the divergences, forward and backward, against their textbook formulas.

``python -m benchmarks.divergence`` prints a table per size and writes
``book/runs/performance-divergence.json``. The textbook formulas subtract probabilities and
log-sum-exps: they are fast, and lose the digits of small changes. Beside each stands what
``torch.compile`` makes of our own formula.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from lib.divergence import (
    sigmoid_divergence,
    softmax_divergence,
    zlpr_divergence,
    zlpr_regret,
)

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "runs" / "performance-divergence.json"
SIZES = ((32, 20, 101), (256, 1000, 15), (32, 5000, 15))  # rows, cells, rounds


def plain_softmax(s: Tensor, u: Tensor) -> Tensor:
    """Subtract the probabilities of one class."""
    return ((s.softmax(-1) - u.softmax(-1)) * (s - u)).sum(-1).mean()


def plain_sigmoid(s: Tensor, u: Tensor) -> Tensor:
    """Subtract the probabilities of yes."""
    return ((s.sigmoid() - u.sigmoid()) * (s - u)).sum(-1).mean()


def plain_regret(s: Tensor, u: Tensor) -> Tensor:
    """Subtract the least soft-label ZLPR loss from the loss."""
    targets = (2 * u).sigmoid()
    return (soft_zlpr(s, targets) - soft_zlpr(u, targets)).mean()


def plain_mean(s: Tensor, u: Tensor) -> Tensor:
    """Take the mean of both regrets."""
    return (plain_regret(s, u) + plain_regret(u, s)) / 2


def soft_zlpr(scores: Tensor, targets: Tensor) -> Tensor:
    """Soft-label ZLPR as published, with logarithms of the targets."""
    null = torch.zeros_like(scores[..., :1])
    above = torch.cat([null, targets.log() - scores], -1).logsumexp(-1)
    return above + torch.cat([null, (1 - targets).log() + scores], -1).logsumexp(-1)


FORMS: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "softmax_divergence": (softmax_divergence, plain_softmax),
    "sigmoid_divergence": (sigmoid_divergence, plain_sigmoid),
    "zlpr_regret": (zlpr_regret, plain_regret),
    "zlpr_divergence": (zlpr_divergence, plain_mean),
}


def competitors(rows: int, cells: int) -> dict[str, Callable[[], None]]:
    """Return forward and backward passes of every form on one input."""
    generator = torch.Generator().manual_seed(0)
    scores, other = torch.randn(2, rows, cells, generator=generator)
    leaf, other = scores.requires_grad_(), other.requires_grad_()

    def both(form: Callable[..., Tensor]) -> Callable[[], None]:
        def work() -> None:
            leaf.grad = other.grad = None
            form(leaf, other).backward()

        return work

    works = {}
    for name, (ours, plain) in FORMS.items():
        works[name] = both(ours)
        works[f"{name}, plain"] = both(plain)
        fused = measure.compiled(ours, leaf, other)
        if fused is not None:
            works[f"{name}, compiled"] = both(fused)
    return works


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.divergence", description=__doc__)
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for rows, cells, rounds in SIZES:
        works = competitors(rows, cells)
        for work in works.values():
            work()  # compile
        times = measure.in_turn(works, rounds=rounds)
        results.append({"rows": rows, "cells": cells, "rounds": rounds, "forms": times})
        print(f"{rows} x {cells}")
        for name, entry in times.items():
            ours = times[name.partition(",")[0]]["cpu_ms"]
            print(f"  {name:30}{entry['cpu_ms']:10.3f} ms cpu{entry['cpu_ms'] / ours:8.2f}x")
    record = {
        "command": "python -m benchmarks.divergence",
        "what": "forward and backward pass to the mean, float32, one thread, median of the rounds",
        "hardware": measure.hardware(),
        "versions": measure.versions("torch"),
        "results": results,
    }
    measure.write_record(options.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
