"""The same training with the table of logits and without it, on Delicious.

``python -m experiments.equal_training --data FOLDER`` writes ``book/runs/equal_training.json``
(see ``experiments.multilabel`` for what the folder holds). About two minutes on one core.

A model with one hidden layer trains on batches of 512, with Adam, from the same start: once by
``linear_zlpr_loss`` from hidden states and the head's weight, once by ``sparse_zlpr_loss`` of the
logits. Five seeds in float32, and the first again in float64.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, linear

from benchmarks import measure
from experiments.multilabel import Part, Published, f1_scores, load
from lib.zlpr import labels_above, linear_zlpr_loss, sparse_zlpr_loss

__all__ = ["positive_lists", "trained"]

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "book" / "runs" / "equal_training.json"
RUNS = [("float32", seed) for seed in range(5)] + [("float64", 0)]
HIDDEN, SIZE, EPOCHS, RATE = 64, 512, 3, 0.03
WAYS = ("hidden states", "logits")


def positive_lists(labels: Tensor) -> Tensor:
    """Return the labels of each sample as a list, filled up with -1."""
    rows, columns = labels.nonzero(as_tuple=True)
    counts = labels.count_nonzero(1)
    lists = torch.full((len(labels), int(counts.max())), -1)
    lists[rows, torch.arange(len(rows)) - (counts.cumsum(0) - counts)[rows]] = columns
    return lists


def hidden_states(part: Part, first: Tensor, offset: Tensor) -> Tensor:
    """Return the hidden layer."""
    return embedding_bag(part.features, first, part.starts, mode="sum").add(offset).relu()


def trained(
    data: Published, way: str, seed: int, dtype: torch.dtype, size: int, epochs: int
) -> tuple[list[float], float]:
    """Train; return the loss before each step and the micro-F1 at 0 of the test part."""
    generator = torch.Generator().manual_seed(seed)
    classes = data.train.labels.shape[1]
    first = torch.randn(data.features, HIDDEN, generator=generator, dtype=torch.float64) / 4
    shapes = ((HIDDEN,), (classes, HIDDEN), (classes,))
    leaves = [first, *(torch.zeros(shape, dtype=torch.float64) for shape in shapes)]
    first, offset, weight, bias = leaves = [leaf.to(dtype).requires_grad_() for leaf in leaves]
    adam = torch.optim.Adam(leaves, lr=RATE)
    losses = []
    for _ in range(epochs):
        for rows in torch.randperm(len(data.train.labels), generator=generator).split(size):
            batch = data.train.take(rows)
            adam.zero_grad()
            hidden = hidden_states(batch, first, offset)
            positives = positive_lists(batch.labels)
            if way == "hidden states":
                loss = linear_zlpr_loss(hidden, weight, positives, bias=bias)
            else:
                loss = sparse_zlpr_loss(linear(hidden, weight, bias), positives)
            loss.backward()
            adam.step()
            losses.append(loss.item())
    with torch.no_grad():
        hidden = hidden_states(data.test, first, offset)
        guess = torch.zeros(len(hidden), classes, dtype=torch.bool)
        if way == "hidden states":
            found = labels_above(hidden, weight, bias=bias).labels
            rows, places = (found >= 0).nonzero(as_tuple=True)
            guess[rows, found[rows, places]] = True
        else:
            guess = linear(hidden, weight, bias) > 0
    return losses, f1_scores(guess, data.test.labels)["micro"]


def main(arguments: list[str] | None = None) -> int:
    """Train all and write the record."""
    parser = argparse.ArgumentParser(prog="python -m experiments.equal_training")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="Mulan's files")
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data = load(options.data, "delicious")
    results: list[dict[str, Any]] = []
    for name, seed in RUNS:
        entry: dict[str, Any] = {"dtype": name, "seed": seed, "losses": {}, "f1": {}}
        for way in WAYS:
            losses, f1 = trained(data, way, seed, getattr(torch, name), SIZE, EPOCHS)
            entry["losses"][way], entry["f1"][way] = losses, f1
        apart = max(abs(a - b) for a, b in zip(*entry["losses"].values(), strict=True))
        print(f"{name} {seed}: losses apart by {apart:.1e}, F1 {entry['f1']}", flush=True)
        results.append(entry)
    record = {
        "command": "python -m experiments.equal_training --data FOLDER",
        "what": "loss before each step of Adam, and micro-F1 at 0 of the test part",
        "data": {
            "name": "delicious",
            "train": len(data.train.labels),
            "test": len(data.test.labels),
            "labels": data.train.labels.shape[1],
            "hidden": HIDDEN,
            "samples_of_a_step": SIZE,
        },
        "digests": data.digests,
        "rate": RATE,
        "hardware": measure.hardware(),
        "versions": measure.versions("torch"),
        "results": results,
    }
    measure.write_record(options.out, record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
