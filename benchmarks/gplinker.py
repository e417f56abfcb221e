"""Time and memory of a whole training step of GPLinker, encoder included.

``python -m benchmarks.gplinker`` prints a table and writes
``book/runs/performance-gplinker.json``. A step is the forward and the backward pass and the
optimiser's step, on one batch of sentences without padding. The encoder has the shape of MiniLM-L6
and random weights, so nothing is downloaded. All steps share model and batch; they differ in how
the loss of the 2 + 2R tables comes about. Each is measured in float32 and with bfloat16 products in
the encoder, as the book's own runs are trained; the tables are in float32 either way. bert4torch's
loss is measured if it is installed.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks import measure
from lib.extraction.alignment import TokenTriple
from lib.global_pointer import EfficientGlobalPointer
from lib.gplinker import GPLinker, Tables, table_positives
from lib.gplinker.model import PointerOptions
from lib.zlpr import sparse_zlpr_loss
from references.bert4torch import bert4torch_losses

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "runs" / "performance-gplinker.json"
OURS = "lib.gplinker"
PRECISIONS = ("float32", "bfloat16")
TRIPLES = 3  # of each sentence


@dataclass(frozen=True)
class Workload:
    """Sizes of a batch and of the encoder."""

    batch: int
    relations: int
    length: int
    hidden: int
    layers: int


STEP = Workload(8, 211, 128, 384, 6)
"""As many relations as WebNLG has, sentences of the length at which texts are often cut."""


class RandomEncoder(nn.Module):
    """A transformer of transformers' own, from a configuration."""

    def __init__(self, load: Workload) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        build = cast(Callable[..., nn.Module], BertModel)
        self.model = build(
            BertConfig(
                hidden_size=load.hidden,
                num_hidden_layers=load.layers,
                num_attention_heads=load.hidden // 32,
                intermediate_size=4 * load.hidden,
            ),
            add_pooling_layer=False,
        )
        self.hidden_size = load.hidden

    def forward(self, **inputs: Tensor) -> Tensor:
        """Return the states of the last layer."""
        states = self.model(**inputs).last_hidden_state
        assert isinstance(states, Tensor)
        return states


def prepare(load: Workload) -> tuple[GPLinker, dict[str, Tensor]]:
    """Make a model and a batch."""
    torch.manual_seed(0)
    names = [str(number) for number in range(load.relations)]
    model = GPLinker(cast(Any, RandomEncoder(load)), names, PointerOptions())
    texts = []
    for _ in range(load.batch):
        ends = torch.randint(1, load.length - 1, (TRIPLES, 2, 2)).sort(-1).values.tolist()
        relations = torch.randint(load.relations, (TRIPLES,)).tolist()
        texts.append([TokenTriple(*s, r, *o) for (s, o), r in zip(ends, relations, strict=True)])
    cells = torch.ones(load.batch, load.length, dtype=torch.bool)
    cells[:, [0, -1]] = False  # [CLS] and [SEP]
    batch = {
        "input_ids": torch.randint(1000, 30000, (load.batch, load.length)),
        "attention_mask": torch.ones(load.batch, load.length, dtype=torch.int64),
        "cells": cells,
    }
    positives = table_positives(texts, length=load.length, relations=load.relations)
    return model, batch | positives._asdict()


def filled(
    model: GPLinker, batch: dict[str, Tensor], loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Loss of filled tables, by a loss of scores (B, H, L²) and numbers of cells (B, H, K)."""
    tables = model.scores(**{k: v for k, v in batch.items() if k not in Tables._fields})
    losses = []
    for scores, cells in zip(tables, (batch[name] for name in Tables._fields), strict=True):
        numbers = cells[..., 0] * scores.shape[-1] + cells[..., 1]
        losses.append(loss(scores.flatten(-2), numbers.masked_fill(cells[..., 0] < 0, -1)))
    return torch.cat(losses, 1).sum(1).mean()


def filled_as_published(
    model: GPLinker, batch: dict[str, Tensor], loss: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """As `filled`, with the masks of bert4torch's pointer: one pass over all tables for each."""
    hidden = model.encoder(**{k: batch[k] for k in ("input_ids", "attention_mask")})
    hide = ~batch["cells"]
    losses = []
    for pointer, name in zip(
        (model.entities, model.head_links, model.tail_links), Tables._fields, strict=True
    ):
        pair, start, end = cast(EfficientGlobalPointer, pointer).parts(hidden)
        scores = pair.unsqueeze(1) + start.unsqueeze(3) + end.unsqueeze(2)
        scores = scores.masked_fill(hide[:, None, :, None], -torch.inf)
        scores = scores.masked_fill(hide[:, None, None, :], -torch.inf)
        if pointer.causal:
            scores = scores - torch.tril(torch.ones_like(scores), -1) * 1e12
        cells = batch[name]
        numbers = cells[..., 0] * scores.shape[-1] + cells[..., 1]
        losses.append(loss(scores.flatten(-2), numbers.masked_fill(cells[..., 0] < 0, -1)))
    return torch.cat(losses, 1).sum(1).mean()


def steps(load: Workload, precision: str) -> dict[str, Callable[[], object]]:
    """Training steps that differ in the loss alone, and what they share."""
    half = precision == "bfloat16"
    model, batch = prepare(load)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step(loss: Callable[[], Tensor]) -> Callable[[], object]:
        def run() -> float:
            optimiser.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                value = loss()
            value.backward()
            optimiser.step()
            return value.item()

        return run

    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    works = {
        OURS: step(lambda: model(**batch)),
        "filled tables, lib.zlpr": step(
            lambda: filled(model, batch, lambda s, p: sparse_zlpr_loss(s, p, reduction="none"))
        ),
    }
    peer = bert4torch_losses()
    if peer is not None:
        # Its filler is cell 0, the pair of [CLS] with itself, which is left out.
        sparse = peer.SparseMultilabelCategoricalCrossentropy(mask_zero=True)
        works["filled tables, bert4torch sparse"] = step(
            lambda: filled(model, batch, lambda s, p: sparse(s, p.clamp(min=0)))
        )
        works["filled as by bert4torch, its sparse loss"] = step(
            lambda: filled_as_published(model, batch, lambda s, p: sparse(s, p.clamp(min=0)))
        )
    works["encoder alone"] = step(lambda: model.encoder(**inputs).square().mean())
    return works


def in_child(*arguments: str) -> Any:
    """Return what this module prints in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.gplinker", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gplinker", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    parser.add_argument("--child", nargs=2, metavar="X", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.child:
        precision, name = options.child
        works = steps(STEP, precision)
        works["encoder alone"]()  # gradients, the optimiser's state: held by every step alike
        print(json.dumps(measure.peak_mib(works[name])))
        return 0
    peer = bert4torch_losses() is not None
    if not peer:
        print("bert4torch is not installed: its loss is not measured", file=sys.stderr)
    load_before = os.getloadavg()[0]
    results = {}
    for precision in PRECISIONS:
        times = measure.in_turn(steps(STEP, precision), rounds=options.rounds)
        for name, entry in times.items():
            entry["peak_mib"] = in_child(
                "--child", precision, name, "--threads", str(options.threads)
            )
        results[precision] = times
        show(precision, times)
    record = {
        "command": "python -m benchmarks.gplinker",
        "what": "one training step, medians of the rounds, by the precision of the encoder",
        "threads": options.threads,
        "rounds": options.rounds,
        "hardware": measure.hardware(),
        "versions": {
            **measure.versions("torch", "transformers"),
            "bert4torch": measure.versions("bert4torch")["bert4torch"] if peer else None,
        },
        "load_before": round(load_before, 2),
        "workload": asdict(STEP),
        "precisions": results,
    }
    measure.write_record(options.out, record)
    return 0


def show(precision: str, works: dict[str, Any]) -> None:
    """Print the steps, with ratios to ours."""
    print(precision)
    ours = works[OURS]
    for name, entry in works.items():
        line = f"  {name:42}{entry['cpu_ms']:10.1f} ms cpu{entry['cpu_ms'] / ours['cpu_ms']:8.2f}x"
        if entry["peak_mib"] is not None:
            line += f"{entry['peak_mib']:10.1f} MiB{entry['peak_mib'] / ours['peak_mib']:8.2f}x"
        print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
