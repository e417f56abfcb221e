"""What each part of GPLinker is worth: one change at a time, on the generated corpus.

    python -m experiments.gplinker

The corpus, the model and the settings are those of the live training in chapter 9, in float32.
Finished trainings are kept in the record, so that an interrupted run goes on where it was.
"""

import json
import math
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measure import hardware, versions, write_record
from lib.extraction.metrics import evaluate_triples
from lib.extraction.synthetic import synthetic_corpus
from lib.extraction.training import set_seed
from lib.extraction.triples import Example
from lib.global_pointer import EfficientGlobalPointer, factorised_zlpr_loss
from lib.gplinker import GPLinker, Tables
from lib.zlpr import sparse_zlpr_loss

RECORD = Path(__file__).resolve().parents[1] / "book" / "runs" / "gplinker-ablations.json"
RELATIONS = ("based_in", "born_in", "founded", "leads", "lives_in", "owns", "works_for")
SEEDS = (0, 1, 2)
EPOCHS, BATCH, RATE = 10, 16, 4e-3
ALPHA = 4.0  # of R-Drop, in the paper's convention
OPTIONS: dict[str, Any] = {
    "hidden_size": 64,
    "layers": 2,
    "attention_heads": 4,
    "head_size": 32,
    "dropout": 0.1,
    "bias_start": -6.0,
}
SIZES = {"train": 1600, "dev": 1, "test": 900}


def corpus() -> dict[str, tuple[Example, ...]]:
    """Sentences that speak of the chosen relations only, as in the chapter."""
    made = synthetic_corpus(0, **SIZES)
    splits = {"train": made.train, "test": made.test, **made.extra}
    return {
        name: tuple(e for e in examples if {t.relation for t in e.triples} <= set(RELATIONS))
        for name, examples in splits.items()
    }


def summed(losses: list[Tensor]) -> Tensor:
    """Sum over the tables, mean over the texts: the reduction of the library's loss."""
    return torch.cat(losses, 1).sum(1).mean()


class FilledTables(GPLinker):
    """A model that is trained from filled tables; extraction is the library's."""

    def forward(
        self,
        *,
        entities: Tensor,
        head_links: Tensor,
        tail_links: Tensor,
        cells: Tensor,
        **inputs: Tensor,
    ) -> Tensor:
        """Return the loss of `from_tables`."""
        tables = self.scores(cells=cells, **inputs)
        return self.from_tables(tables, Tables(entities, head_links, tail_links))

    def from_tables(self, scores: Tables, positives: Tables) -> Tensor:
        """Return the loss of filled tables."""
        raise NotImplementedError


def listed(table: Tensor, positives: Tensor) -> tuple[Tensor, Tensor]:
    """Flatten tables and the numbers of their cells, -1 where there is none."""
    numbers = positives[..., 0] * table.shape[-1] + positives[..., 1]
    return table.flatten(-2), numbers.masked_fill(positives[..., 0] < 0, -1)


class Scattered(FilledTables):
    """Scores rounded to bfloat16; the positives are left out of the sum over the negatives."""

    def from_tables(self, scores: Tables, positives: Tables) -> Tensor:
        """Return the library's sparse loss."""
        pairs = zip(scores, positives, strict=True)
        return summed(
            [sparse_zlpr_loss(*listed(t.bfloat16(), p), reduction="none") for t, p in pairs]
        )


class Subtracted(FilledTables):
    """Scores and loss in bfloat16; the positives are taken away from the sum over all cells."""

    def from_tables(self, scores: Tables, positives: Tables) -> Tensor:
        """Return the published loss, in the dtype of the scores as published."""
        losses = []
        for table, cells in zip(scores, positives, strict=True):
            flat, numbers = listed(table.bfloat16(), cells)
            missing, zero = numbers < 0, flat.new_zeros(*flat.shape[:-1], 1)
            gathered = flat.gather(-1, numbers.clamp(min=0))
            pulled = torch.cat([-gathered.masked_fill(missing, math.inf), zero], -1).logsumexp(-1)
            every = torch.cat([flat, zero], -1).logsumexp(-1)
            inside = gathered.masked_fill(missing, -1e4).logsumexp(-1)
            rest = (1 - (inside - every).exp()).clamp(1e-7, 1)
            losses.append((pulled + every + rest.log()).float())
        return summed(losses)


class Rounded(GPLinker):
    """Parts of the scores rounded to bfloat16, and the factorised loss of these."""

    def forward(
        self,
        *,
        entities: Tensor,
        head_links: Tensor,
        tail_links: Tensor,
        cells: Tensor,
        **inputs: Tensor,
    ) -> Tensor:
        """Return the factorised loss."""
        hidden = self.encoder(**inputs)
        losses = []
        for pointer, positives in (
            (self.entities, entities),
            (self.head_links, head_links),
            (self.tail_links, tail_links),
        ):
            assert isinstance(pointer, EfficientGlobalPointer)
            pair, start, end = (part.bfloat16() for part in pointer.parts(hidden))
            losses.append(
                factorised_zlpr_loss(
                    pair, start, end, positives, mask=cells, causal=pointer.causal, reduction="none"
                )
            )
        return summed(losses)


class Merged(FilledTables):
    """All link tables of a text are one choice of cells, with one threshold term for all."""

    def from_tables(self, scores: Tables, positives: Tables) -> Tensor:
        """Return the loss with three lists of classes: subjects, objects, all links."""
        spans = sparse_zlpr_loss(*listed(scores.entities, positives.entities), reduction="none")
        flat: list[Tensor] = []
        numbers: list[Tensor] = []
        tables = scores.head_links.shape[1]
        for kind in ("head_links", "tail_links"):
            table, cells = listed(getattr(scores, kind), getattr(positives, kind))
            shift = (torch.arange(tables) + tables * len(flat))[:, None] * table.shape[-1]
            flat.append(table.flatten(1))
            numbers.append(torch.where(cells < 0, -1, cells + shift).flatten(1))
        links = sparse_zlpr_loss(torch.cat(flat, 1), torch.cat(numbers, 1), reduction="none")
        return summed([spans, links[:, None]])


class Yes(nn.Module):
    """Stands where a pointer of links was: nothing to learn, and no link is refused."""

    def __init__(self, tables: int) -> None:
        super().__init__()
        self.tables = tables

    def loss(self, hidden: Tensor, *_: Tensor, reduction: str) -> Tensor:
        """Return zeros ``(B, R)``."""
        assert reduction == "none"
        return hidden.new_zeros(len(hidden), self.tables)

    def blocks(self, hidden: Tensor, rows: list[Tensor], columns: list[Tensor]) -> list[Tensor]:
        """Return infinite scores."""
        pairs = zip(rows, columns, strict=True)
        return [hidden.new_full((self.tables, len(i), len(j)), math.inf) for i, j in pairs]


VARIANTS: dict[str, tuple[type[GPLinker], dict[str, Any]]] = {
    "base": (GPLinker, {}),
    "bf16 scores, published subtraction": (Subtracted, {}),
    "bf16 scores, scatter": (Scattered, {}),
    "bf16 parts, factorised": (Rounded, {}),
    "without tail links": (GPLinker, {"tails": False}),
    "links without RoPE": (GPLinker, {"link_rope": False}),
    "all links in one ZLPR": (Merged, {}),
    "R-Drop, ZLPR divergence": (GPLinker, {"r_drop": ALPHA}),
}


def one(splits: dict[str, tuple[Example, ...]], variant: str, seed: int) -> dict[str, Any]:
    """Train and score one model."""
    kind, changes = VARIANTS[variant]
    options = OPTIONS | {k: v for k, v in changes.items() if k != "tails"}
    set_seed(seed)
    texts = [e.text for e in splits["train"]]
    model = kind.create("small", RELATIONS, texts=texts, **options)
    if not changes.get("tails", True):
        # It has the two methods of a pointer that a model calls, and is none.
        model.tail_links = Yes(len(RELATIONS))  # type: ignore[assignment]
    items = {name: model.prepare(examples)[0] for name, examples in splits.items()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    steps = EPOCHS * math.ceil(len(items["train"]) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, RATE, total_steps=steps, pct_start=0.1
    )
    start = time.process_time()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(items["train"])).split(BATCH):
            loss = model(**model.collate([items["train"][i] for i in batch.tolist()]))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    seconds = time.process_time() - start
    scores = {}
    for name in splits:
        if name != "train":
            found = evaluate_triples([e.triples for e in splits[name]], model.extract(items[name]))
            scores[name] = {
                "f1": found.micro.f1,
                "precision": found.micro.precision,
                "recall": found.micro.recall,
            }
    return {
        "variant": variant,
        "seed": seed,
        "scores": scores,
        "confidence": confidence(model, items["train"]),
        "gold_subjects": gold_subjects(model, items["train"]),
        "cpu_seconds": round(seconds, 1),
    }


def confidence(model: GPLinker, items: list[Any]) -> float:
    """Return the median of the smallest scores of the triples found in the training texts."""
    found = [score for triples in model.extract_scored(items) for _, score in triples]
    return median(found) if found else 0.0


@torch.no_grad()
def gold_subjects(model: GPLinker, items: list[Any]) -> float:
    """Return the median of the scores of the gold subjects in the training texts."""
    scores: list[Tensor] = []
    with model.evaluating():
        for first in range(0, len(items), BATCH):
            batch = model.collate(items[first : first + BATCH])
            subjects = batch.pop("entities")[:, 0]
            del batch["head_links"], batch["tail_links"]
            cells = batch.pop("cells")
            texts, places = (subjects[..., 0] >= 0).nonzero(as_tuple=True)
            starts, ends = subjects[texts, places].unbind(-1)
            table = model.entities(model.encoder(**batch), cells)  # the links may be left out
            scores.append(table[texts, 0, starts, ends])
    return torch.cat(scores).median().item()


def main() -> None:
    """Run what the record lacks, seed by seed, and write it after each training."""
    torch.set_num_threads(1)
    splits = corpus()
    about = {
        "command": "make runs RUN=gplinker",
        "what": "test F1 of one change at a time; the weights of the last epoch; float32",
        "relations": list(RELATIONS),
        "sentences": {name: len(examples) for name, examples in splits.items()},
        "triples": {n: sum(len(e.triples) for e in part) for n, part in splits.items()},
        "settings": {"epochs": EPOCHS, "batch": BATCH, "lr": RATE, "alpha": ALPHA} | OPTIONS,
        "hardware": hardware(),
        "versions": versions("torch"),
    }
    runs: list[dict[str, Any]] = []
    if RECORD.exists():
        kept = json.loads(RECORD.read_text("utf-8"))
        if any(kept[name] != about[name] for name in ("relations", "sentences", "settings")):
            raise SystemExit(f"{RECORD.name} holds runs with other settings: move it away first")
        runs = kept["runs"]
    done = {(run["variant"], run["seed"]) for run in runs}
    for seed in SEEDS:
        for variant in VARIANTS:
            if (variant, seed) in done:
                continue
            runs.append(one(splits, variant, seed))
            write_record(RECORD, about | {"runs": runs})
            f1 = {name: round(part["f1"], 4) for name, part in runs[-1]["scores"].items()}
            print(seed, variant, f1, runs[-1]["confidence"], runs[-1]["cpu_seconds"])
            sys.stdout.flush()


if __name__ == "__main__":
    main()
