"""Sentences per second of prediction, by batch size.

``python -m benchmarks.extraction`` prints a table and writes
``book/runs/performance-extraction.json``. What is timed is `lib.extraction.training.predict`, from
text to triples: tokens, encoder, tables, decoding. The weights are new ones, which find no triples;
those that a trained model finds in a sentence are few, and reading them off costs little.
"""

import argparse
import os
import sys
from pathlib import Path

import torch

from benchmarks import measure
from lib.extraction.synthetic import synthetic_corpus
from lib.extraction.training import predict
from lib.gplinker import GPLinker

RECORD = Path(__file__).resolve().parent.parent / "book" / "runs" / "performance-extraction.json"
SENTENCES = 128
SIZES = (1, 4, 16, 64)
ROUNDS = 5


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.extraction", description=__doc__)
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    parser.add_argument("--sentences", type=int, default=SENTENCES, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    load_before = os.getloadavg()[0]
    corpus = synthetic_corpus(train=1000, dev=0, test=options.sentences)
    texts = [example.text for example in corpus.test]
    torch.manual_seed(0)
    model = GPLinker.create(
        "small", corpus.relations, texts=[example.text for example in corpus.train]
    )
    lengths = [len(item) for item in model.prepare(corpus.test)[0]]
    works = {
        str(size): (lambda size=size: predict(model, texts, batch_size=size)) for size in SIZES
    }
    times = measure.in_turn(works, rounds=options.rounds)
    for size, entry in times.items():
        entry["sentences_per_second"] = round(1e3 * len(texts) / entry["cpu_ms"], 1)
        print(f"batch size {size:>3}:", *(f"{name} {value}" for name, value in entry.items()))
    record = {
        "command": "python -m benchmarks.extraction",
        "what": "GPLinker with the small encoder, text to triples, float32, one thread, medians",
        "hardware": measure.hardware(),
        "versions": measure.versions("torch", "tokenizers"),
        "load_before": round(load_before, 2),
        "sentences": len(texts),
        "relations": len(corpus.relations),
        "tokens": {"mean": round(sum(lengths) / len(lengths), 1), "most": max(lengths)},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "rounds": options.rounds,
        "batch_sizes": times,
    }
    measure.write_record(options.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
