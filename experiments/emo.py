"""Six losses on a small language model, from scratch and after cross-entropy: chapter 7.

``make runs RUN=emo`` takes about a quarter of an hour on one core and writes
``book/runs/emo-language-model.json``. Float32, CPU.
"""

import argparse
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import measure as measuring
from lib.emo import Mixture, UnitEmbeddings, emo_loss, emo_mixture_loss, kernel_score_loss
from lib.emo.experiment import (
    Corpus,
    LanguageModel,
    TokenLoss,
    measure,
    neighbour_embeddings,
    read_corpus,
    sample,
    train,
    variety,
)

ROOT = Path(__file__).resolve().parents[1]
TEXT = ROOT / "book" / "data" / "shakespeare.txt.gz"
RECORD = ROOT / "book" / "runs" / "emo-language-model.json"

VOCABULARY = 1000
MODEL = {"context": 32, "width": 64, "heads": 4, "layers": 2}
EMBEDDINGS = {"window": 3, "width": 50}
FIRST = {"steps": 800, "batch": 16, "rate": 3e-3}
AFTER = {"steps": 400, "batch": 16, "rate": 1e-3}
SAMPLES = {"rows": 60, "length": 100}
SEEDS = (0, 1, 2, 3, 4)


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of logits whose classes come last."""
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def losses(centred: UnitEmbeddings, raw: UnitEmbeddings) -> dict[str, TokenLoss]:
    """Return the losses that are compared, by name."""
    published = Mixture.emo_scaled_to_cross_entropy()
    return {
        "cross-entropy": cross_entropy,
        "EMO": lambda z, t: emo_loss(z, t, centred),
        "published mixture": lambda z, t: emo_mixture_loss(z, t, centred, mixture=published),
        "published mixture, raw costs": lambda z, t: emo_mixture_loss(z, t, raw, mixture=published),
        "kernel score": lambda z, t: kernel_score_loss(z, t, centred),
        "cross-entropy + kernel score": lambda z, t: (
            0.5 * cross_entropy(z, t) + 0.5 * kernel_score_loss(z, t, centred)
        ),
    }


class Scaled(torch.nn.Module):
    """A model whose logits are multiplied by a constant: sampling at a temperature."""

    def __init__(self, model: LanguageModel, factor: float) -> None:
        super().__init__()
        self.model, self.factor, self.context = model, factor, model.context

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the scaled logits."""
        logits: Tensor = self.factor * self.model(tokens)
        return logits


def passages(corpus: Corpus) -> Tensor:
    """Return the test text in rows as long as the samples."""
    rows, length = SAMPLES["rows"], SAMPLES["length"]
    return corpus.test[: rows * length].view(rows, length)


def describe(model: Any, corpus: Corpus, centred: UnitEmbeddings, seed: int) -> dict[str, float]:
    """Measure a model on the test text, and the texts it writes."""
    starts = passages(corpus)[:, : model.context]
    words, pairs, entropy = variety(sample(model, starts, length=SAMPLES["length"], seed=seed))
    return {
        **measure(model, corpus.test, centred)._asdict(),
        "different words": words,
        "different pairs": pairs,
        "sample entropy": entropy,
    }


def sharpened(
    model: LanguageModel, corpus: Corpus, centred: UnitEmbeddings, entropy: float
) -> Scaled:
    """Scale a model's logits until its validation predictions have this mean entropy."""
    low, high = 0.1, 100.0
    for _ in range(30):
        middle = math.sqrt(low * high)
        if measure(Scaled(model, middle), corpus.valid, centred).entropy > entropy:  # type: ignore[arg-type]
            low = middle
        else:
            high = middle
    return Scaled(model, math.sqrt(low * high))


def fresh(seed: int) -> LanguageModel:
    """Return an untrained model."""
    torch.manual_seed(seed)
    return LanguageModel(VOCABULARY, **MODEL)


def summary(rows: list[dict[str, float]]) -> dict[str, Any]:
    """Mean and sample standard deviation of each measure, and all values."""
    return {
        name: {
            "mean": statistics.mean(row[name] for row in rows),
            "sd": statistics.stdev(row[name] for row in rows) if len(rows) > 1 else 0.0,
            "values": [row[name] for row in rows],
        }
        for name in rows[0]
    }


def main(arguments: list[str] | None = None) -> int:
    """Train, measure, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m experiments.emo", description=__doc__)
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    began = time.perf_counter()
    corpus = read_corpus(TEXT, size=VOCABULARY)
    table = neighbour_embeddings(corpus.train, VOCABULARY, **EMBEDDINGS)
    raw = UnitEmbeddings(table.float())
    centred = UnitEmbeddings(table.float(), centre=True)
    compared = losses(centred, raw)
    scratch: dict[str, list[dict[str, float]]] = {name: [] for name in compared}
    after: dict[str, list[dict[str, float]]] = {name: [] for name in compared}
    after["cross-entropy, sharpened as the published mixture"] = []
    factors = []
    for seed in options.seeds:
        starts: dict[str, torch.Tensor] = {}
        for name, loss in compared.items():
            model = fresh(seed)
            train(model, corpus.train, loss, seed=seed, **FIRST)  # type: ignore[arg-type]
            scratch[name].append(describe(model, corpus, centred, seed))
            if name == "cross-entropy":
                starts = {key: value.clone() for key, value in model.state_dict().items()}
        found: dict[str, LanguageModel] = {}
        for name, loss in compared.items():
            model = fresh(seed)
            model.load_state_dict(starts)
            train(model, corpus.train, loss, seed=100 + seed, **AFTER)  # type: ignore[arg-type]
            after[name].append(describe(model, corpus, centred, seed))
            found[name] = model
        mark = measure(found["published mixture"], corpus.valid, centred).entropy
        cold = sharpened(found["cross-entropy"], corpus, centred, mark)
        factors.append({"factor": cold.factor})
        after["cross-entropy, sharpened as the published mixture"].append(
            describe(cold, corpus, centred, seed)
        )
        print(f"seed {seed}: {time.perf_counter() - began:.0f} s", flush=True)
        for kind, table_of in (("scratch", scratch), ("after", after)):
            for name, rows in table_of.items():
                numbers = "  ".join(f"{value:9.4f}" for value in rows[-1].values())
                print(f"  {kind:8}{name:52}{numbers}", flush=True)
    words, pairs, entropy = variety(passages(corpus))
    measuring.write_record(
        options.out,
        {
            "command": "python -m experiments.emo",
            "what": "small causal language model on two plays, float32, one thread, CPU",
            "seeds": options.seeds,
            "settings": {
                "vocabulary": VOCABULARY,
                "model": MODEL,
                "embeddings": EMBEDDINGS,
                "from scratch": FIRST,
                "after cross-entropy": AFTER,
                "samples": SAMPLES,
            },
            "tokens": {
                "train": len(corpus.train),
                "valid": len(corpus.valid),
                "test": len(corpus.test),
                "unknown in test": float((corpus.test == 0).double().mean()),
            },
            "costs": {
                "raw": dict(zip(("mean", "sd"), raw.cost_moments(), strict=True)),
                "centred": dict(zip(("mean", "sd"), centred.cost_moments(), strict=True)),
            },
            "text": {
                "different words": words,
                "different pairs": pairs,
                "sample entropy": entropy,
            },
            "from scratch": {name: summary(rows) for name, rows in scratch.items()},
            "after cross-entropy": {name: summary(rows) for name, rows in after.items()},
            "sharpening": summary(factors),
            "seconds": round(time.perf_counter() - began),
            "hardware": measuring.hardware(),
            "versions": measuring.versions("torch"),
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
