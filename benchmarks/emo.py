"""Time and memory of EMO from states and head, forward and backward, against the plain forms.

``python -m benchmarks.emo`` prints a table and writes ``book/runs/performance-emo.json``. Each
competitor runs once in a process of its own, one thread: the plain forms hold gigabytes, which no
other may have left behind or find in its way. About 9 GB must be free, and some five minutes.

At small sizes, where calls cost more than arithmetic, each loss is timed in turn with its plain
formula and with ``torch.compile`` of itself.
"""

import argparse
import json
import os
import statistics
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
from lib.emo import UnitEmbeddings, emo_loss, kernel_score_loss, linear_emo_loss
from references.emo import code_losses

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "runs" / "performance-emo.json"
TOKENS, WIDTH = 4096, 768
# The published form would need more than 20 GB at the larger vocabulary.
WORKLOADS = {
    50_257: ("linear_emo_loss", "plain form", "published form", "cross-entropy alone"),
    151_936: ("linear_emo_loss", "plain form"),
}
AGREEMENT_TOKENS = 1024
SMALL = ((32, 20, 16), (256, 1000, 64), (64, 5000, 64))  # tokens, vocabulary, width
SMALL_SECONDS = 3.0  # for each competitor, after a tenth of that to warm up


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


def small_competitors(
    tokens: int, vocabulary: int, width: int
) -> dict[str, dict[str, Callable[[], Tensor]]]:
    """Each loss, its plain formula and its compiled form, of the same arguments."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=draw).requires_grad_()
    weight = torch.randn(vocabulary, width, generator=draw).requires_grad_()
    logits = torch.randn(tokens, vocabulary, generator=draw).requires_grad_()
    targets = torch.randint(vocabulary, (tokens,), generator=draw)
    embeddings = UnitEmbeddings(torch.randn(vocabulary, width, generator=draw))
    unit = embeddings.rows

    def plain_emo(scores: Tensor) -> Tensor:
        return (1 - (torch.softmax(scores, -1) @ unit * unit[targets]).sum(-1)).mean()

    def plain_kernel(scores: Tensor) -> Tensor:
        return (0.5 * (torch.softmax(scores, -1) @ unit - unit[targets]).square().sum(-1)).mean()

    found: dict[str, dict[str, Callable[[], Tensor]]] = {}
    for loss, plain_loss in ((emo_loss, plain_emo), (kernel_score_loss, plain_kernel)):
        compiled = torch.compile(loss)
        found[loss.__name__] = {
            "lib": lambda f=loss: f(logits, targets, embeddings),
            "plain": lambda f=plain_loss: f(logits),
            "compiled": lambda f=compiled: f(logits, targets, embeddings),
        }
    compiled = torch.compile(linear_emo_loss)
    found["linear_emo_loss"] = {
        "lib": lambda: linear_emo_loss(hidden, weight, targets, embeddings),
        "plain": lambda: plain_emo(hidden @ weight.T),
        "compiled": lambda: compiled(hidden, weight, targets, embeddings),
    }
    return found


def small(tokens: int, vocabulary: int, width: int) -> dict[str, dict[str, float]]:
    """Medians of process time, forward and backward, in microseconds; competitors in turn."""
    medians = {}
    for name, calls in small_competitors(tokens, vocabulary, width).items():
        times: dict[str, list[float]] = {kind: [] for kind in calls}
        spent, warm = 0.0, False
        for call in calls.values():
            torch.autograd.backward(call())  # compiles, too
        while spent < SMALL_SECONDS * len(calls):
            for kind, call in calls.items():
                start = time.process_time()
                torch.autograd.backward(call())
                times[kind].append(time.process_time() - start)
                spent += times[kind][-1]
            if not warm and spent > 0.1 * SMALL_SECONDS * len(calls):
                times, warm = {kind: [] for kind in calls}, True
        medians[name] = {kind: round(1e6 * statistics.median(t), 1) for kind, t in times.items()}
    return medians


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
    parser.add_argument("--small", nargs=3, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.one:
        print(json.dumps(one(options.one[0], int(options.one[1]))))
        return 0
    if options.agreement:
        print(json.dumps(agreement(options.agreement)))
        return 0
    if options.small:
        print(json.dumps(small(*options.small)))
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
    rows = []
    for tokens, vocabulary, width in SMALL:
        found = apart("--small", str(tokens), str(vocabulary), str(width))
        print((tokens, vocabulary, width), found, flush=True)
        size = {"tokens": tokens, "vocabulary": vocabulary, "width": width}
        rows.append({**size, "microseconds": found})
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
        "small": rows,
    }
    measure.write_record(options.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
