"""Time and memory of the pointers' losses and decoding, against what fills the tables.

``python -m benchmarks.global_pointer`` prints a table per shape and writes
``book/runs/performance-global_pointer.json``. One call of a loss is the forward and the backward
pass from queries, keys, start and end scores, the outputs of an efficient pointer's two linear
layers, to the mean ZLPR loss over all heads. bert4torch is measured if it is installed.
"""

import argparse
import json
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
from lib.global_pointer import (
    apply_rope,
    factorised_spans,
    factorised_zlpr_loss,
    streaming_zlpr_loss,
)
from references.bert4torch import bert4torch_losses
from references.global_pointer import filled

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "runs" / "performance-global_pointer.json"
OURS = "factorised_zlpr_loss"
HEAD_SIZE = 64
POSITIVES = 5  # of each sample, over all of its heads


@dataclass(frozen=True)
class Workload:
    """Sizes of a stack of tables."""

    batch: int
    heads: int
    length: int
    rounds: int


WORKLOADS = (
    Workload(8, 7, 40, 25),  # few cells: the tables are filled, in float64
    Workload(16, 2, 128, 15),
    Workload(16, 24, 128, 7),
    Workload(16, 49, 256, 3),
    Workload(4, 171, 256, 3),
    Workload(8, 49, 512, 3),
)
STANDARD = (0, 3)  # workloads of the standard pointer: few cells, and many


def inputs(load: Workload) -> tuple[list[Tensor], Tensor]:
    """Make queries, keys, start and end scores, and positives (B, H, K, 2)."""
    generator = torch.Generator().manual_seed(0)
    batch, heads, length = load.batch, load.heads, load.length
    shapes = [(batch, length, HEAD_SIZE)] * 2 + [(batch, heads, length)] * 2
    leaves = [torch.randn(shape, generator=generator) for shape in shapes]
    for part in leaves[2:]:
        part.sub_(4)  # as the biases start
    positives = torch.full((batch, heads, POSITIVES, 2), -1)
    for text in range(batch):
        for entry in range(POSITIVES):
            head = int(torch.randint(heads, (), generator=generator))
            span = torch.randint(length, (2,), generator=generator).sort().values
            positives[text, head, entry] = span
    return [leaf.requires_grad_() for leaf in leaves], positives


def scaled_and_turned(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the table that all heads share is a product of."""
    return apply_rope(query) * HEAD_SIZE**-0.5, apply_rope(key)


def pair_scores(query: Tensor, key: Tensor) -> Tensor:
    """Table that all heads share."""
    query, key = scaled_and_turned(query, key)
    return query @ key.mT


def hidden_cells(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril(-1)


def plain_dense(parts: tuple[Tensor, ...], targets: Tensor, below: Tensor) -> Tensor:
    """Loss of an efficient pointer's filled tables by the formula, for torch.compile to fuse."""
    return plain_loss(filled(*parts), targets, below)


def plain_products(query: Tensor, key: Tensor, targets: Tensor, below: Tensor) -> Tensor:
    """Loss of a standard pointer's filled tables by the formula, for torch.compile to fuse."""
    return plain_loss(query @ key.mT, targets.flatten(2), below)


def plain_loss(scores: Tensor, targets: Tensor, below: Tensor) -> Tensor:
    """ZLPR of tables ``(B, H, L, L)`` by its definition."""
    scores = scores.masked_fill(below, -1e12).flatten(2)
    positive = targets.bool()
    zero = torch.zeros_like(scores[..., :1])
    down = torch.cat([scores.masked_fill(positive, -1e12), zero], -1).logsumexp(-1)
    up = torch.cat([(-scores).masked_fill(~positive, -1e12), zero], -1).logsumexp(-1)
    return (down + up).mean()


def competitors(load: Workload) -> dict[str, Callable[[], object]]:
    """Forward and backward passes of head and loss."""
    leaves, positives = inputs(load)
    below = hidden_cells(load.length)

    def parts() -> tuple[Tensor, ...]:
        return pair_scores(*leaves[:2]), leaves[2], leaves[3]

    def both(loss: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), leaves)

    def ours() -> Tensor:
        pair = scaled_and_turned(*leaves[:2])
        return factorised_zlpr_loss(pair, *leaves[2:], positives, causal=True)

    works = {OURS: both(ours)}
    cells = positives[..., 0] * load.length + positives[..., 1]
    cells = cells.masked_fill(positives[..., 0] < 0, -1)
    targets = torch.zeros(load.batch, load.heads, load.length**2)
    at = (cells >= 0).nonzero(as_tuple=True)
    targets[at[0], at[1], cells[at]] = 1

    compiled = measure.freshly_compiled(plain_dense)
    works["torch.compile dense"] = both(lambda: compiled(parts(), targets, below))
    peer = bert4torch_losses()
    if peer is not None:
        dense = peer.MultilabelCategoricalCrossentropy()
        sparse = peer.SparseMultilabelCategoricalCrossentropy(mask_zero=True)
        works["bert4torch dense"] = both(
            lambda: dense(
                filled(*parts()).masked_fill(below, -1e12).flatten(0, 1).flatten(1),
                targets.flatten(0, 1),
            )
        )
        works["bert4torch sparse"] = both(
            # Class 0 is its filler, so cell 0, which is no positive here, gives way to it.
            lambda: sparse(
                filled(*parts()).masked_fill(below, -1e12).flatten(2), cells.clamp(min=0)
            ).mean()
        )
    return works


def loss_alone(load: Workload) -> dict[str, Callable[[], object]]:
    """Loss from given parts, and one exponential per cell of all tables, in a cached buffer."""
    leaves, positives = inputs(load)
    parts = [pair_scores(*leaves[:2]).detach().requires_grad_(), *leaves[2:]]
    buffer = -20 * torch.rand(1 << 17)
    out = torch.empty_like(buffer)
    times = load.batch * load.heads * load.length**2 // len(buffer)

    def exponentials() -> None:
        for _ in range(times):
            torch.exp2(buffer, out=out)

    return {
        OURS: lambda: torch.autograd.grad(
            factorised_zlpr_loss(*parts, positives, causal=True), parts
        ),
        "one exp2 per cell": exponentials,
    }


def decoding(load: Workload) -> dict[str, Callable[[], object]]:
    """Spans of a trained state: a few cells above 0, the others around -8."""
    leaves, positives = inputs(load)
    pair, start, end = pair_scores(*leaves[:2]).detach(), *(x.detach() for x in leaves[2:])
    texts, heads, entries = (positives[..., 0] >= 0).nonzero(as_tuple=True)
    i, j = positives[texts, heads, entries].unbind(-1)
    pair[texts, i, j] += 4
    start[texts, heads, i] += 4
    end[texts, heads, j] += 4
    below = hidden_cells(load.length)

    def fill() -> Tensor:
        scores = filled(pair, start, end).masked_fill_(below, -torch.inf)
        return (scores > 0).nonzero()

    def prune() -> Tensor:
        return factorised_spans(pair, start, end, causal=True).cells

    if not torch.equal(fill(), prune()):
        raise RuntimeError("the two decodings differ")
    return {"factorised_spans": prune, "filled tables": fill}


def standard(load: Workload) -> dict[str, Callable[[], object]]:
    """Loss of a standard pointer, from queries and keys of each head's own."""
    generator = torch.Generator().manual_seed(0)
    shape = (load.batch, load.heads, load.length, HEAD_SIZE)
    leaves = [
        (torch.randn(shape, generator=generator) * HEAD_SIZE**-0.25).requires_grad_()
        for _ in range(2)
    ]
    _, positives = inputs(load)
    below = hidden_cells(load.length)
    targets = torch.zeros(load.batch, load.heads, load.length, load.length)
    at = (positives[..., 0] >= 0).nonzero(as_tuple=True)
    targets[at[0], at[1], positives[at][:, 0], positives[at][:, 1]] = 1
    works: dict[str, Callable[[], object]] = {
        "streaming_zlpr_loss": lambda: torch.autograd.grad(
            streaming_zlpr_loss(*leaves, positives, causal=True), leaves
        )
    }
    compiled = measure.freshly_compiled(plain_products)
    works["torch.compile dense"] = lambda: torch.autograd.grad(
        compiled(*leaves, targets, below), leaves
    )
    peer = bert4torch_losses()
    if peer is not None:
        dense = peer.MultilabelCategoricalCrossentropy()
        works["bert4torch dense"] = lambda: torch.autograd.grad(
            dense(
                (leaves[0] @ leaves[1].mT).masked_fill(below, -1e12).flatten(0, 1).flatten(1),
                targets.flatten(0, 1).flatten(1),
            ),
            leaves,
        )
    return works


PARTS = {
    "head and loss": competitors,
    "loss alone": loss_alone,
    "decoding": decoding,
    "standard pointer": standard,
}


def in_child(*arguments: str, kept: bool = False, counted: bool = False) -> Any:
    """Return what this module prints in a fresh process, where nobody has left memory behind."""
    environment = dict(os.environ)
    if counted:
        # Each block is mapped on its own and given back when it is free: the count is then of what
        # is held, not of the holes between.
        environment["GLIBC_TUNABLES"] = "glibc.malloc.mmap_threshold=131072"
    if kept:
        # No huge block may be mapped on its own, and the heap is not cut when it is free.
        environment["GLIBC_TUNABLES"] = (
            "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:"
            "glibc.malloc.top_pad=268435456"
        )
    command = [sys.executable, "-m", "benchmarks.global_pointer", *arguments]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=environment
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.global_pointer", description=__doc__
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="of each workload; for a quick look"
    )
    everything = list(range(len(WORKLOADS)))
    parser.add_argument("--workloads", type=int, nargs="+", default=everything, metavar="N")
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    parser.add_argument("--child", nargs=3, metavar="X", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.child:
        what, index, work = options.child
        load = WORKLOADS[int(index)]
        works = PARTS[what](load)
        if work == "all":
            print(json.dumps(measure.in_turn(works, rounds=options.rounds or load.rounds)))
        else:
            PARTS[what](Workload(1, 2, 16, 1))[work]()  # the code that it loads is not its memory
            if "compile" in work:
                works[work]()  # the compiler's own memory is not the loss's
            print(json.dumps(measure.peak_mib(works[work])))
        return 0
    peer = bert4torch_losses() is not None
    if not peer:
        print("bert4torch is not installed: its losses are not measured", file=sys.stderr)
    load_before = os.getloadavg()[0]
    passed = ["--threads", str(options.threads)]
    if options.rounds:
        passed += ["--rounds", str(options.rounds)]
    results: list[dict[str, Any]] = []
    record = {
        "command": "python -m benchmarks.global_pointer",
        "what": "float32, medians of the rounds; see the page for what each part times",
        "threads": options.threads,
        "hardware": measure.hardware(),
        "versions": {
            **measure.versions("torch", "bert4torch"),
            "bert4torch": measure.versions("bert4torch")["bert4torch"] if peer else None,
        },
        "load_before": round(load_before, 2),
        "results": results,
    }
    for index, load in enumerate(WORKLOADS):
        if index not in options.workloads:
            continue
        for what in PARTS:
            if what == "standard pointer" and index not in STANDARD:
                continue
            for kept in (False, True) if what == "head and loss" else (False,):
                times = in_child("--child", what, str(index), "all", *passed, kept=kept)
                if not kept and what in ("head and loss", "standard pointer"):
                    for name, entry in times.items():
                        entry["peak_mib"] = in_child(
                            "--child", what, str(index), name, *passed, counted=True
                        )
                rounds = options.rounds or load.rounds
                size = {**asdict(load), "rounds": rounds}
                results.append({"what": what, "memory_kept": kept, **size, "works": times})
                show(results[-1])
                measure.write_record(options.out, record)  # a long run may be cut short
    return 0


def show(entry: dict[str, Any]) -> None:
    """Print one part of one workload, with ratios to the first work, which is ours."""
    kept = ", memory kept between calls" if entry["memory_kept"] else ""
    print(f"{entry['what']}: {entry['batch']} x {entry['heads']} x {entry['length']}{kept}")
    ours = next(iter(entry["works"].values()))
    for name, times in entry["works"].items():
        line = f"  {name:24}{times['cpu_ms']:10.2f} ms cpu"
        line += f"{times['cpu_ms'] / ours['cpu_ms']:8.1f}x"
        if times.get("peak_mib") is not None:
            line += f"{times['peak_mib']:10.1f} MiB{times['peak_mib'] / ours['peak_mib']:8.1f}x"
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
