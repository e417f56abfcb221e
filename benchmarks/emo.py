"""Time and memory of EMO from states and head, forward and backward, against the plain forms.

``python -m benchmarks.emo`` prints a table and writes ``book/runs/performance-emo.json``. Each
competitor runs once in a process of its own, one thread: the plain forms hold gigabytes, which no
other may have left behind or find in its way. About 9 GB must be free, and some five minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import measure
from lib.emo import linear_emo_loss
from tests.equations.test_emo import code_losses

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "runs" / "performance-emo.json"
TOKENS, WIDTH = 4096, 768
# The published form would need more than 20 GB at the larger vocabulary.
WORKLOADS = {
    50_257: ("linear_emo_loss", "plain form", "published form", "cross-entropy alone"),
    151_936: ("linear_emo_loss", "plain form"),
}
AGREEMENT_TOKENS = 1024


def inputs(tokens: int, vocabulary: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, head, targets and cost embeddings, the same for all."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, generator=draw).requires_grad_()
    weight = torch.randn(vocabulary, WIDTH, generator=draw).mul_(WIDTH**-0.5).requires_grad_()
    table = torch.randn(vocabulary, WIDTH, generator=draw)
    return hidden, weight, torch.randint(vocabulary, (tokens,), generator=draw), table


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, table: Tensor) -> Tensor:
    """Logits, softmax, mean direction, product with the target's: as the formula says."""
    unit = functional.normalize(table, dim=1)
    mean = torch.softmax(hidden @ weight.T, -1) @ unit
    return (1 - (mean * unit[targets]).sum(-1)).mean()


def published(hidden: Tensor, weight: Tensor, targets: Tensor, table: Tensor) -> Tensor:
    """Cost in the released code's order of operations, with its one-hot table."""
    return code_losses(hidden @ weight.T, targets, table, detach=False)[1].mean()


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, table: Tensor) -> Tensor:
    return functional.cross_entropy(hidden @ weight.T, targets)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "linear_emo_loss": linear_emo_loss,
    "plain form": plain,
    "published form": published,
    "cross-entropy alone": cross_entropy,
}


def one(name: str, vocabulary: int) -> dict[str, Any]:
    """Run one competitor once, here, after a small run that loads what it needs."""
    LOSSES[name](*inputs(8, 100)).backward()
    arguments = inputs(TOKENS, vocabulary)
    start, spent = time.perf_counter(), time.process_time()
    peak = measure.peak_mib(lambda: LOSSES[name](*arguments).backward())
    return {
        "wall_s": round(time.perf_counter() - start, 2),
        "cpu_s": round(time.process_time() - spent, 2),
        "peak_mib": peak,
    }


def agreement(vocabulary: int) -> dict[str, Any]:
    """Largest difference of the gradients from the plain form's, over their largest entry."""
    arguments = inputs(AGREEMENT_TOKENS, vocabulary)
    slopes = [
        torch.autograd.grad(LOSSES[name](*arguments), arguments[:2])
        for name in ("linear_emo_loss", "plain form")
    ]
    return {
        name: float((ours - theirs).abs().max() / theirs.abs().max())
        for name, ours, theirs in zip(("hidden", "weight"), *slopes, strict=True)
    }


def apart(*arguments: str) -> dict[str, Any]:
    """Let a fresh process answer."""
    command = [sys.executable, "-m", "benchmarks.emo", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.emo", description=__doc__)
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--agreement", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(one(options.one[0], int(options.one[1]))))
        return 0
    if options.agreement:
        print(json.dumps(agreement(options.agreement)))
        return 0
    load_before = os.getloadavg()[0]
    results = []
    for vocabulary, names in WORKLOADS.items():
        losses = {}
        for name in names:
            losses[name] = apart("--one", name, str(vocabulary))
            print(vocabulary, name, losses[name], flush=True)
        found = apart("--agreement", str(vocabulary))
        print(vocabulary, "gradients", found, flush=True)
        results.append({"vocabulary": vocabulary, "losses": losses, "gradients": found})
    record = {
        "command": "python -m benchmarks.emo",
        "what": "forward and backward to states and head, float32, one thread, one run each",
        "tokens": TOKENS,
        "width": WIDTH,
        "agreement_tokens": AGREEMENT_TOKENS,
        "hardware": measure.hardware(),
        "versions": measure.versions("torch"),
        "load_before": round(load_before, 2),
        "results": results,
    }
    measure.write_record(options.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
