"""Nested and flat entities: two pointers and BIO tagging, with and without RoPE and a low start.

    python -m experiments.global_pointer [CONLL04_FOLDER]

The generated corpus always runs; CoNLL04's entities where a folder with its files is given.
"""

import sys
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from benchmarks.measure import hardware, peak_mib, versions, write_record
from lib.extraction.corpora.published import read_conll04_entities
from lib.extraction.encoders import SmallEncoder, SmallOptions
from lib.extraction.synthetic import synthetic_corpus
from lib.extraction.synthetic.templates import RELATIONS
from lib.global_pointer import EfficientGlobalPointer, GlobalPointer

RUNS = Path(__file__).resolve().parents[1] / "book" / "runs"
KINDS = {"company": "organisation", "school": "organisation"}
SHARES = {"soo": 0.2, "seo": 0.3, "nested": 0.2, "normal": 0.3, "epo": 0.1, "none": 0.1}
SEEDS = (0, 1, 2)
EPOCHS, BATCH = 10, 8
LOW = -7.0  # near minus the logarithm of the number of cells
VARIANTS: dict[str, dict[str, Any]] = {
    "GlobalPointer": {"head": GlobalPointer, "rope": True, "bias_start": LOW},
    "GlobalPointer, no RoPE": {"head": GlobalPointer, "rope": False, "bias_start": LOW},
    "GlobalPointer, start at 0": {"head": GlobalPointer, "rope": True, "bias_start": None},
    "Efficient": {"head": EfficientGlobalPointer, "rope": True, "bias_start": LOW},
    "Efficient, no RoPE": {"head": EfficientGlobalPointer, "rope": False, "bias_start": LOW},
    "Efficient, start at 0": {"head": EfficientGlobalPointer, "rope": True, "bias_start": None},
    "BIO tags": {"head": None},
}
Spans = set[tuple[int, int, int]]  # head, first token, last token
Data = list[tuple[str, set[tuple[str, int, int]]]]  # text; kind and characters [start, end)


def relation_entities(examples: Any) -> Data:
    """Entities of generated examples, with the kinds of the slots of their relations."""
    found: Data = []
    for example in examples:
        spans = set()
        for t in example.triples:
            relation = RELATIONS[t.relation]
            for span, kind in ((t.subject, relation.subject[0]), (t.object, relation.object)):
                spans.add((KINDS.get(kind, kind), span.start, span.end))
        found.append((example.text, spans))
    return found


def generated() -> tuple[str, dict[str, Data]]:
    """Entities of the generated corpus, rich in nesting."""
    corpus = synthetic_corpus(0, train=400, dev=1, test=150, **SHARES)
    parts = {"train": relation_entities(corpus.train), "test": relation_entities(corpus.test)}
    return "generated", parts


def conll04(folder: Path) -> tuple[str, dict[str, Data]]:
    """Read all entities of CoNLL04, also those in no relation."""

    def entities(file: str) -> Data:
        return [
            (text, {(kind, span.start, span.end) for kind, span in found})
            for text, found in read_conll04_entities((folder / file).read_bytes(), file)
        ]

    return "conll04", {"train": entities("train.txt"), "test": entities("test.txt")}


class Model(nn.Module):
    """The small encoder with one of the three heads."""

    head: Any  # a pointer or a linear layer

    def __init__(self, texts: list[str], kinds: int, head: Any, **options: Any) -> None:
        super().__init__()
        sizes = SmallOptions(hidden_size=64, layers=1, attention_heads=4, max_length=128)
        self.encoder, self.kinds = SmallEncoder.create(texts, sizes), kinds
        self.head = nn.Linear(64, 2 * kinds + 1) if head is None else head(64, kinds, 32, **options)
        self.tags = head is None

    def states(self, items: list[Any]) -> tuple[Tensor, Tensor]:
        """Encode a batch; the special first token does not count."""
        rows = [torch.ones(len(tokens.offsets), dtype=torch.bool) for tokens, _ in items]
        seen = pad_sequence(rows, batch_first=True)
        names = self.encoder.padding
        inputs = {
            n: pad_sequence([torch.tensor(t.inputs[n]) for t, _ in items], batch_first=True)
            for n in names
        }
        hidden = self.encoder(**inputs, attention_mask=seen)
        counts = seen.clone()
        counts[:, 0] = False
        return hidden, counts

    def loss(self, items: list[Any]) -> Tensor:
        """Mean loss per sentence."""
        hidden, counts = self.states(items)
        if self.tags:
            tags = torch.zeros(counts.shape, dtype=torch.int64)
            for row, (_, spans) in enumerate(items):
                # Outermost first: tags hold one layer of nesting, and the outer span is kept.
                for kind, i, j in sorted(spans, key=lambda s: (s[1] - s[2], s)):
                    if not tags[row, i : j + 1].any():
                        tags[row, i : j + 1] = 2 * kind + 2
                        tags[row, i] = 2 * kind + 1
            total = F.cross_entropy(self.head(hidden)[counts], tags[counts], reduction="sum")
            return total / len(items)
        most = max(1, max(sum(s[0] == a for s in p) for _, p in items for a in range(self.kinds)))
        positives = torch.full((len(items), self.kinds, most, 2), -1)
        for row, (_, spans) in enumerate(items):
            for a in range(self.kinds):
                cells = [s[1:] for s in sorted(spans) if s[0] == a]
                if cells:
                    positives[row, a, : len(cells)] = torch.tensor(cells)
        return self.head.loss(hidden, positives, counts, reduction="sum") / len(items)

    @torch.no_grad()
    def predict(self, items: list[Any]) -> list[Spans]:
        """Return the entities of each sentence."""
        hidden, counts = self.states(items)
        found: list[Spans] = [set() for _ in items]
        if not self.tags:
            for b, a, i, j in self.head.spans(hidden, counts).cells.tolist():
                found[b].add((a, i, j))
            return found
        tags = self.head(hidden).argmax(-1).masked_fill(~counts, 0).tolist()
        for b, row in enumerate(tags):
            begin = None
            for at, (tag, after) in enumerate(pairwise([*row, 0])):
                kind = (tag - 1) // 2
                if tag % 2:
                    begin = at
                if tag and begin is not None and after != 2 * kind + 2:
                    found[b].add((kind, begin, at))
                    begin = None
        return found


def prepare(model: Model, data: Data, kinds: list[str]) -> list[Any]:
    """Cut texts into tokens and put the entities on them."""
    items = []
    for (_, spans), tokens in zip(
        data, model.encoder.tokenise([text for text, _ in data]), strict=True
    ):
        first = {a: i for i, (a, b) in enumerate(tokens.offsets) if a < b}
        last = {b: i for i, (a, b) in enumerate(tokens.offsets) if a < b}
        placed = {(kinds.index(k), first.get(a), last.get(b)) for k, a, b in spans}
        items.append((tokens, placed))
    return items


def _inside(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    return b[1] <= a[1] and a[2] <= b[2]


def f1(items: list[Any], found: list[Spans], only: str = "all") -> float:
    """F1 of entities; of those inside or around another one only, recall."""
    right = gold = said = 0
    for (_, spans), mine in zip(items, found, strict=True):
        chosen = spans
        if only == "nested":
            chosen = {
                s for s in spans if any(s != t and (_inside(s, t) or _inside(t, s)) for t in spans)
            }
        right, gold, said = right + len(chosen & mine), gold + len(chosen), said + len(mine)
    return right / max(gold, 1) if only == "nested" else 2 * right / max(gold + said, 1)


def one(data: dict[str, Data], options: dict[str, Any], seed: int) -> dict[str, Any]:
    """Train and score one model."""
    torch.manual_seed(seed)
    kinds = sorted({k for _, spans in data["train"] for k, _, _ in spans})
    model = Model([text for text, _ in data["train"]], len(kinds), **options)
    splits = {name: prepare(model, part, kinds) for name, part in data.items()}
    train = [
        (t, s) for t, s in splits["train"] if all(None not in e for e in s)
    ]  # cut off by the longest length
    steps = EPOCHS * -(-len(train) // BATCH)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
    first, start = None, time.process_time()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(train)).split(BATCH):
            loss = model.loss([train[i] for i in batch.tolist()])
            first = loss.item() if first is None else first
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
    seconds = time.process_time() - start
    model.eval()
    found = [
        s
        for i in range(0, len(splits["test"]), 32)
        for s in model.predict(splits["test"][i : i + 32])
    ]
    return {
        "seed": seed,
        "f1": f1(splits["test"], found),
        "nested_recall": f1(splits["test"], found, "nested"),
        "cpu_seconds": seconds,
        "first_loss": first,
        "head_parameters": sum(p.numel() for p in model.head.parameters()),
        "peak_mib": peak_mib(lambda: model.loss(train[:BATCH]).backward()),
    }


def main() -> None:
    """Run everything and write one record per corpus."""
    torch.set_num_threads(1)
    corpora = [conll04(Path(sys.argv[1]))] if len(sys.argv) > 1 else [generated()]
    for name, data in corpora:
        rows = {}
        for variant, options in VARIANTS.items():
            runs = [one(data, options, seed) for seed in SEEDS]
            rows[variant] = {
                "runs": runs,
                "f1": [mean(r["f1"] for r in runs), stdev(r["f1"] for r in runs)],
            }
            print(name, variant, rows[variant]["f1"], runs[0]["cpu_seconds"], file=sys.stderr)
        write_record(
            RUNS / f"global_pointer-{name}.json",
            {
                "command": "make runs RUN=global_pointer"
                if name == "generated"
                else "python -m experiments.global_pointer CONLL04_FOLDER",
                "sentences": {split: len(part) for split, part in data.items()},
                "entities": {split: sum(len(s) for _, s in part) for split, part in data.items()},
                "settings": {"epochs": EPOCHS, "batch": BATCH, "lr": 2e-3, "seeds": list(SEEDS)},
                "hardware": hardware(),
                "versions": versions("torch"),
                "models": rows,
            },
        )


if __name__ == "__main__":
    main()
