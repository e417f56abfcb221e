"""Spans from little data: three divergences, each in R-Drop and in virtual adversarial training.

    python -m experiments.divergence

A run that was cut off goes on where its record ends; delete the record to begin anew.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import hardware, versions, write_record
from experiments.global_pointer import LOW, SHARES, Data, Model, Spans, prepare, relation_entities
from lib.divergence import (
    r_drop,
    sigmoid_divergence,
    softmax_divergence,
    virtual_adversarial_loss,
    zlpr_divergence,
)
from lib.extraction.synthetic import synthetic_corpus
from lib.global_pointer import GlobalPointer
from lib.zlpr import zlpr_loss

RECORD = Path(__file__).resolve().parents[1] / "book" / "runs" / "divergence-spans.json"
DIVERGENCES = {
    "softmax": softmax_divergence,
    "sigmoid": sigmoid_divergence,
    "ZLPR": zlpr_divergence,
}
METHODS = ("none", *(f"{use} {name}" for use in ("R-Drop", "VAT") for name in DIVERGENCES))
SIZES = {"pool": 400, "dev": 150, "test": 300}
FRACTIONS = {"10 %": {"sentences": 40, "epochs": 50}, "30 %": {"sentences": 120, "epochs": 25}}
SEEDS = tuple(range(10))
SEARCH_FRACTION, SEARCH_SEEDS, WEIGHTS = "10 %", (100, 101), (0.25, 1.0, 4.0)
SETTINGS: dict[str, Any] = {
    "fractions": FRACTIONS,
    "batch": 8,
    "lr": 2e-3,
    "epsilon": 5.0,
    "xi": 0.01,
    "power_steps": 1,
    "seeds": list(SEEDS),
    "search_fraction": SEARCH_FRACTION,
    "search_seeds": list(SEARCH_SEEDS),
    "weights": list(WEIGHTS),
}


class Tables(Model):
    """The pointer with its tables filled, and word vectors that can be disturbed."""

    def __init__(self, texts: list[str], kinds: int) -> None:
        super().__init__(texts, kinds, GlobalPointer, rope=True, bias_start=LOW)
        self.disturbance: Tensor | None = None
        self.encoder.words.register_forward_hook(self._disturb)

    def _disturb(self, module: nn.Module, inputs: Any, vectors: Tensor) -> Tensor:
        return vectors if self.disturbance is None else vectors + self.disturbance

    def scores(self, items: list[Any], disturbance: Tensor | None = None) -> Tensor:
        """Return the tables, flattened, with -inf where a cell does not count."""
        self.disturbance = disturbance
        try:
            hidden, counts = self.states(items)
        finally:
            self.disturbance = None
        tables: Tensor = self.head(hidden, counts).flatten(-2)
        return tables

    def targets(self, items: list[Any]) -> Tensor:
        """Return the tables that are right."""
        length = max(len(tokens.offsets) for tokens, _ in items)
        right = torch.zeros(len(items), self.kinds, length, length, dtype=torch.bool)
        for row, (_, spans) in enumerate(items):
            for a, i, j in spans:
                right[row, a, i, j] = True
        return right.flatten(-2)


def per_sentence(divergence: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Sum over the heads, mean over the sentences, as the loss has it."""

    def value(s: Tensor, u: Tensor) -> Tensor:
        total: Tensor = divergence(s, u, reduction="sum") / len(s)
        return total

    return value


def objective(
    model: Tables, items: list[Any], method: str, weight: float, starts: torch.Generator
) -> Tensor:
    """Loss of one batch, with the divergence weighted by `weight`."""
    labels = model.targets(items)

    def loss(scores: Tensor) -> Tensor:
        counted = partial(zlpr_loss, mask=scores > -torch.inf, reduction="sum")
        return counted(scores, labels) / len(items)

    scores = model.scores(items)
    if method == "none":
        return loss(scores)
    use, _, name = method.partition(" ")
    divergence = per_sentence(DIVERGENCES[name])
    if use == "R-Drop":
        return r_drop(scores, model.scores(items), loss, divergence, alpha=4 * weight)
    # Dropout would move the scores more than the disturbance does.
    model.eval()
    length = max(len(tokens.offsets) for tokens, _ in items)
    smooth = virtual_adversarial_loss(
        lambda disturbance: model.scores(items, disturbance),
        torch.zeros(len(items), length, model.encoder.hidden_size),
        divergence,
        epsilon=SETTINGS["epsilon"],
        xi=SETTINGS["xi"],
        steps=SETTINGS["power_steps"],
        generator=starts,
    )
    model.train()
    return loss(scores) + weight * smooth


def quality(items: list[Any], found: list[Spans]) -> dict[str, float]:
    """F1, precision and recall of entities."""
    right = sum(len(spans & mine) for (_, spans), mine in zip(items, found, strict=True))
    gold, said = sum(len(spans) for _, spans in items), sum(map(len, found))
    return {
        "f1": 2 * right / max(gold + said, 1),
        "precision": right / max(said, 1),
        "recall": right / max(gold, 1),
    }


@torch.no_grad()
def flips(model: Tables, items: list[Any]) -> float:
    """Cells per sentence that lie on different sides of 0 in two passes with dropout."""
    model.train()
    changed = 0
    for i in range(0, len(items), 32):
        first, second = (model.scores(items[i : i + 32]) > 0 for _ in range(2))
        changed += int((first != second).sum())
    return changed / len(items)


def one(
    parts: dict[str, Data], fraction: str, method: str, weight: float, seed: int, split: str
) -> dict[str, Any]:
    """Train on a random share of the pool, drawn by the seed, and score on `split`."""
    generator = torch.Generator().manual_seed(seed)
    wanted = FRACTIONS[fraction]
    drawn = torch.randperm(len(parts["pool"]), generator=generator)[: wanted["sentences"]]
    data = [parts["pool"][i] for i in drawn.tolist()]
    kinds = sorted({k for _, spans in parts["pool"] for k, _, _ in spans})
    starts = torch.Generator().manual_seed(seed)  # of the power iterations
    torch.manual_seed(seed)
    model = Tables([text for text, _ in data], len(kinds))
    train, judged = prepare(model, data, kinds), prepare(model, parts[split], kinds)
    batch, lr = SETTINGS["batch"], SETTINGS["lr"]
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    total = wanted["epochs"] * -(-len(train) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=total)
    start = time.process_time()
    for _ in range(wanted["epochs"]):
        # Their own generator: every method sees the same batches.
        for rows in torch.randperm(len(train), generator=generator).split(batch):
            items = [train[i] for i in rows.tolist()]
            value = objective(model, items, method, weight, starts)
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    seconds = time.process_time() - start
    torch.manual_seed(seed)
    changed = flips(model, judged)
    model.eval()
    found = [s for i in range(0, len(judged), 32) for s in model.predict(judged[i : i + 32])]
    return {
        "seed": seed,
        **quality(judged, found),
        "flips": changed,
        "cpu_seconds": round(seconds, 2),
    }


def main() -> None:
    """Choose a weight per method on the dev part, then run every method with every seed."""
    torch.set_num_threads(1)
    corpus = synthetic_corpus(
        0, train=SIZES["pool"], dev=SIZES["dev"], test=SIZES["test"], **SHARES
    )
    parts = {
        "pool": relation_entities(corpus.train),
        "dev": relation_entities(corpus.dev),
        "test": relation_entities(corpus.test),
    }
    record: dict[str, Any] = {
        "command": "make runs RUN=divergence",
        "settings": SETTINGS,
        "sentences": {name: len(part) for name, part in parts.items()},
        "hardware": hardware(),
        "versions": versions("torch"),
        "search": {m: {} for m in METHODS[1:]},
        "runs": {fraction: {m: [] for m in METHODS} for fraction in FRACTIONS},
    }
    if RECORD.exists():
        old = json.loads(RECORD.read_text("utf-8"))
        if old["settings"] == SETTINGS:
            record = old
    for method, tried in record["search"].items():
        for weight in WEIGHTS:
            if str(weight) not in tried:
                runs = [one(parts, SEARCH_FRACTION, method, weight, s, "dev") for s in SEARCH_SEEDS]
                tried[str(weight)] = mean(run["f1"] for run in runs)
                write_record(RECORD, record)
                print("search", method, weight, tried[str(weight)], file=sys.stderr)
    for seed in SEEDS:
        for fraction in FRACTIONS:
            for method, runs in record["runs"][fraction].items():
                if seed in [run["seed"] for run in runs]:
                    continue
                tried = record["search"].get(method, {"0": 0.0})
                weight = float(max(tried, key=lambda w: tried[w]))
                runs.append(one(parts, fraction, method, weight, seed, "test"))
                write_record(RECORD, record)
                print(fraction, method, weight, runs[-1], file=sys.stderr)


if __name__ == "__main__":
    main()
