"""A tiny model that keeps the Extractor protocol: the test double of training and commands.

It learns which relations a verb names, between the first and the last word of a sentence. It can
be run like a real model, ``python -m tests.extraction.toy train …``, which the tests do to kill it
and to start two processes.
"""

import json
import os
import re
import signal
from collections import Counter
from dataclasses import asdict
from math import inf
from pathlib import Path

import click
import torch
from torch import nn

from lib.extraction.alignment import LONG_TEXT, WINDOW, Losses
from lib.extraction.commands import extractor_commands
from lib.extraction.folders import model_folder
from lib.extraction.found import Candidate
from lib.extraction.records import write_atomically
from lib.extraction.thresholds import Decoding, both_thresholds
from lib.extraction.triples import Corpus, Example, Span, Triple
from lib.extraction.windows import windows

VERBS = {
    "wrote": ("author of",),
    "met": ("knows",),
    "married": ("knows", "spouse of"),
    "left": (),
    "founded": ("founder of",),
    "runs": ("works for", "head of"),
}
NAMES = ("Ada", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal")
LIMIT = 40  # words that are read at once
RELATIONS = tuple(sorted({relation for named in VERBS.values() for relation in named}))


def sentence(index):
    verb = list(VERBS)[index % len(VERBS)]
    first, last = NAMES[index // 2 % len(NAMES)], NAMES[(index * 3 + 1) % len(NAMES)]
    text = f"{first} {'really ' * (index % 4)}{verb} {last}"
    ends = Span(0, len(first)), Span(len(text) - len(last), len(text))
    return Example(f"s{index}", text, tuple(Triple(ends[0], r, ends[1]) for r in VERBS[verb]))


def toy_corpus(train=37, dev=12, test=12, **changes):
    examples = [sentence(index) for index in range(train + dev + test)]
    return Corpus(
        **{
            "name": "toy",
            "licence": "none",
            "relations": RELATIONS,
            "train": tuple(examples[:train]),
            "dev": tuple(examples[train : train + dev]),
            "test": tuple(examples[train + dev :]),
            "dropped": Counter(),
            "match": "exact",
            "sha256": "0" * 64,
            "extra": {},
            **changes,
        }
    )


class Toy(nn.Module):
    tables = ("ends", "verb")

    def __init__(self, words, relations, dropout):
        super().__init__()
        self.words, self.relations, self.dropout = list(words), tuple(relations), dropout
        self.decoding, self.symmetric, self.card = Decoding(), (), ""
        self.embedding = nn.Embedding(len(self.words) + 1, 16)
        self.head = nn.Linear(16, len(self.relations))

    @classmethod
    def create(cls, encoder, relations, *, texts=None, dropout=0.1, **unknown):
        if unknown:
            raise TypeError(f"options: not known: {', '.join(unknown)}")
        if encoder not in ("toy", "small"):
            raise ValueError(f"encoder: expected 'toy', got {encoder!r}")
        return cls(sorted({word for text in texts for word in text.split()}), relations, dropout)

    def prepare(self, examples):
        ids = {word: number for number, word in enumerate(self.words, 1)}
        items = []
        losses = Losses()
        for number, example in enumerate(examples):
            found = [m.span() for m in re.finditer(r"\S+", example.text)]
            parts = windows(example.text, found, LIMIT)
            for first, last in parts:
                spans = found[first:last]
                words = [ids.get(example.text[a:b], 0) for a, b in spans]
                held = {
                    t.relation
                    for t in example.triples
                    if {t.subject.start, t.object.start} <= {start for start, _ in spans}
                }
                items.append(Item(words, spans, held, number))
            if len(parts) > 1:
                losses.add(LONG_TEXT, example.source)
                losses[WINDOW] += len(parts)
            if not found:
                losses.add("no words", example.source)
        return items, losses

    def collate(self, items):
        length = max(len(item) for item in items)
        return {
            "ids": torch.tensor([item.ids + [0] * (length - len(item)) for item in items]),
            "labels": torch.tensor(
                [[float(r in item.relations) for r in self.relations] for item in items]
            ),
        }

    def logits(self, ids):
        states = nn.functional.dropout(self.embedding(ids), self.dropout, self.training)
        return self.head(torch.where(ids[..., None] > 0, states, 0.0).sum(1))

    def forward(self, ids, labels):
        if os.environ.get("TOY_DIES_AT_STEP"):  # a kill between two steps of an epoch
            os.environ["TOY_DIES_AT_STEP"] = str(int(os.environ["TOY_DIES_AT_STEP"]) - 1)
            if os.environ["TOY_DIES_AT_STEP"] == "0":
                os.kill(os.getpid(), signal.SIGKILL)
        loss = nn.functional.binary_cross_entropy_with_logits(
            self.logits(ids), labels, reduction="none"
        )
        return loss.sum(1).mean()

    def extract_scored(self, items, *, threshold=0.0):
        assert not self.training
        threshold = max(both_thresholds(threshold))
        logits = self.logits(self.collate(items)["ids"].to(self.head.weight.device)).tolist()
        return [
            tuple(
                (Triple(Span(*item.spans[0]), relation, Span(*item.spans[-1])), score)
                for relation, score in zip(self.relations, row, strict=True)
                if score > threshold and len(item) > 1
            )
            for item, row in zip(items, logits, strict=True)
        ]

    def candidates(self, items, *, floor):
        return [
            tuple(Candidate(triple, -inf, score) for triple, score in found)
            for found in self.extract_scored(items, threshold=floor)
        ]

    def table_scores(self, items):
        logits = self.logits(self.collate(items)["ids"].to(self.head.weight.device)).tolist()
        return [
            tuple(
                (Triple(Span(*item.spans[0]), relation, Span(*item.spans[-1])), (9.0, score))
                for relation, score in zip(self.relations, row, strict=True)
                if relation in item.relations
            )
            for item, row in zip(items, logits, strict=True)
        ]

    def parameter_groups(self, lr, head_lr, weight_decay):
        return [
            {"params": [self.embedding.weight], "lr": lr, "weight_decay": weight_decay},
            {"params": list(self.head.parameters()), "lr": head_lr, "weight_decay": 0.0},
        ]

    def save(self, folder):
        folder.mkdir(exist_ok=True)
        config = {"words": self.words, "relations": self.relations, "dropout": self.dropout}
        config |= {"decoding": asdict(self.decoding), "symmetric": self.symmetric}
        config["card"] = self.card
        text = json.dumps(config).encode()
        write_atomically(folder / "config.json", lambda file: file.write(text))
        write_atomically(folder / "weights.pt", lambda file: torch.save(self.state_dict(), file))

    @classmethod
    def start_from(cls, folder, relations):
        old = cls.load(folder)
        model = cls(old.words, relations, old.dropout)
        model.embedding = old.embedding
        model.symmetric = tuple(name for name in old.symmetric if name in model.relations)
        with torch.no_grad():
            for number, relation in enumerate(old.relations):
                if relation in model.relations:
                    row = model.relations.index(relation)
                    model.head.weight[row] = old.head.weight[number]
                    model.head.bias[row] = old.head.bias[number]
        return model

    @classmethod
    def load(cls, folder):
        folder = model_folder(folder)
        if not (folder / "weights.pt").is_file():
            raise FileNotFoundError(f"{folder}: expected a saved model, but it has no weights.pt")
        config = json.loads((Path(folder) / "config.json").read_text())
        decoding = Decoding(**config.pop("decoding"))
        symmetric, card = config.pop("symmetric"), config.pop("card")
        model = cls(**config)
        model.decoding, model.symmetric, model.card = decoding, tuple(symmetric), card
        model.load_state_dict(torch.load(folder / "weights.pt"))
        return model


class Item:
    def __init__(self, ids, spans, relations, example):
        self.ids, self.spans, self.relations, self.example = ids, spans, relations, example

    def __len__(self):
        return len(self.ids)


main = extractor_commands(
    Toy, "python -m tests.extraction.toy", [click.Option(["--dropout"], type=float)]
)

if __name__ == "__main__":
    main(prog_name="python -m tests.extraction.toy")
