"""Time and memory of CasRel, as published and encoded once, against GPLinker.

``python -m benchmarks.casrel`` prints the tables and writes ``book/runs/performance-casrel.json``.
Both models share an encoder's kind and size, and are first trained a little on the synthetic
corpus, so that decoding finds what there is to find. The texts to decode are made of k sentences
of its test split, each with one subject. How many subjects and triples each form found is part of
the record.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import measure
from lib.casrel import CasRel, extract_reencoding
from lib.extraction.encoders import SmallEncoder, SmallOptions
from lib.extraction.model import ExtractionModel, Item
from lib.extraction.synthetic import synthetic_corpus
from lib.extraction.training import Settings, set_seed, train
from lib.extraction.triples import Corpus, Example, Span, Triple
from lib.gplinker import GPLinker

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "runs" / "performance-casrel.json"
MODELS: dict[str, type[ExtractionModel]] = {"GPLinker": GPLinker, "CasRel": CasRel}
# Six layers of 384 with 12 heads: all-MiniLM-L6's.
LARGER = SmallOptions(hidden_size=384, layers=6, attention_heads=12)


@dataclass(frozen=True)
class Decoding:
    """Texts to decode."""

    encoder: str
    subjects: int
    texts: int


DECODINGS = (
    *(Decoding("small", k, 16) for k in (1, 2, 4, 8)),
    *(Decoding("larger", k, 8) for k in (1, 2, 4, 8)),
)


@dataclass(frozen=True)
class Step:
    """Texts to learn from in one step."""

    relations: int
    sentences: int
    texts: int = 8


STEPS = (Step(14, 1), Step(14, 8), Step(171, 8))


def joined(examples: Sequence[Example], count: int, texts: int) -> list[Example]:
    """Make texts of so many sentences, each with one subject of its own."""
    single = [e for e in examples if len({t.subject for t in e.triples}) == 1]
    found = []
    for text in range(texts):
        parts: list[Example] = []
        names: set[str] = set()
        for e in single[text * 7 % len(single) :] + single:
            subject = next(iter(e.triples)).subject
            name = e.text[subject.start : subject.end]
            if len(parts) < count and name not in names:
                parts.append(e)
                names.add(name)
        triples: list[Triple] = []
        whole = ""
        for e in parts:
            at = len(whole)
            triples += [
                Triple(
                    Span(t.subject.start + at, t.subject.end + at),
                    t.relation,
                    Span(t.object.start + at, t.object.end + at),
                )
                for t in e.triples
            ]
            whole += e.text + " "
        found.append(Example(str(text), whole.rstrip(), tuple(triples)))
    return found


def mixed(corpus: Corpus) -> Corpus:
    """Let the training texts have one to eight sentences, as those to decode have."""
    longer = [joined(corpus.train[8 * k :], k, 100) for k in (2, 4, 8)]
    return replace(corpus, train=corpus.train + tuple(e for part in longer for e in part))


def trained(kind: type[ExtractionModel], corpus: Corpus, epochs: int) -> ExtractionModel:
    set_seed(0)
    texts = [e.text for e in corpus.train]
    model = kind.create("small", corpus.relations, texts=texts)
    settings = Settings(epochs=epochs, batch_size=8, lr=2e-3, head_lr=4e-3)
    with tempfile.TemporaryDirectory() as folder:
        train(model, corpus, Path(folder) / "run", settings, command="benchmark")
    return model.eval()


def with_larger(model: ExtractionModel) -> ExtractionModel:
    """Let a larger encoder read whatever the model's own reads, for nothing but its time."""
    small = model.encoder
    assert isinstance(small, SmallEncoder)
    larger = SmallEncoder(small.tokenizer, LARGER).eval()

    def read(_module: nn.Module, _args: object, inputs: dict[str, Tensor]) -> None:
        larger(**inputs)

    small.register_forward_pre_hook(read, with_kwargs=True)
    return model


def forms(
    models: dict[str, ExtractionModel], items: dict[str, list[Item]]
) -> dict[str, Callable[[], list[Any]]]:
    """Ways to decode the same texts."""

    def one_by_one(name: str) -> list[Any]:
        return [found for item in items[name] for found in models[name].extract_scored([item])]

    casrel = models["CasRel"]
    assert isinstance(casrel, CasRel)
    return {
        "GPLinker, text by text": lambda: one_by_one("GPLinker"),
        "CasRel as published, text by text": lambda: extract_reencoding(casrel, items["CasRel"]),
        "CasRel encoded once, text by text": lambda: one_by_one("CasRel"),
        "GPLinker, one batch": lambda: models["GPLinker"].extract_scored(items["GPLinker"]),
        "CasRel encoded once, one batch": lambda: casrel.extract_scored(items["CasRel"]),
    }


def decode(load: Decoding, models: dict[str, ExtractionModel], rounds: int) -> dict[str, Any]:
    """Time every form on one set of texts, and count what it finds."""
    examples = joined(synthetic_corpus().test, load.subjects, load.texts)
    items = {name: model.prepare(examples)[0] for name, model in models.items()}
    works = forms(models, items)
    counted = {}
    for name, work in works.items():
        found = [[triple for triple, _ in text] for text in work()]
        counted[name] = {
            "subjects": sum(len({t.subject for t in text}) for text in found),
            "triples": sum(map(len, found)),
            "right": sum(
                len(set(text) & set(e.triples)) for text, e in zip(found, examples, strict=True)
            ),
        }
    times = measure.in_turn(works, rounds=rounds)
    return {
        "encoder": load.encoder,
        "subjects_per_text": load.subjects,
        "texts": load.texts,
        "tokens": sum(map(len, items["GPLinker"])),
        "gold_triples": sum(len(e.triples) for e in examples),
        "rounds": rounds,
        "forms": {name: times[name] | counted[name] for name in works},
    }


def steps(load: Step) -> dict[str, Callable[[], object]]:
    """Make training steps: forward, backward, AdamW."""
    corpus = synthetic_corpus()
    relations = [*corpus.relations, *(f"other {n}" for n in range(load.relations))]
    examples = joined(corpus.train, load.sentences, load.texts)
    works: dict[str, Callable[[], object]] = {}
    for name, kind, options in (
        ("GPLinker", GPLinker, {}),
        ("CasRel, all subjects", CasRel, {"sampling": "all"}),
        ("CasRel, one subject drawn", CasRel, {"sampling": "uniform"}),
    ):
        set_seed(0)
        model = kind.create(
            "small",
            relations[: load.relations],
            texts=[e.text for e in corpus.train],
            **options,
        )
        works[name] = _step(model, model.prepare(examples)[0])
    return works


def _step(model: ExtractionModel, items: list[Item]) -> Callable[[], object]:
    optimiser = torch.optim.AdamW(model.parameter_groups(1e-3, 2e-3, 0.01), fused=True)

    def step() -> None:
        loss = model(**model.collate(items))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    step()  # AdamW's own numbers are not counted as the step's
    return step


def in_child(*arguments: str) -> Any:
    """Return what this module prints in a fresh process, where nobody has left memory behind."""
    command = [sys.executable, "-m", "benchmarks.casrel", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.casrel", description=__doc__)
    parser.add_argument("--threads", type=int, default=1, metavar="N")
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--epochs", type=int, default=6, metavar="N", help="of both models")
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    parser.add_argument("--child", nargs=2, metavar="X", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.child:
        index, name = options.child
        work = steps(STEPS[int(index)])[name]
        print(json.dumps(measure.peak_mib(work)))
        return 0
    load_before = os.getloadavg()[0]
    corpus = mixed(synthetic_corpus())
    models = {name: trained(kind, corpus, options.epochs) for name, kind in MODELS.items()}
    record: dict[str, Any] = {
        "command": "python -m benchmarks.casrel",
        "what": f"float32, medians of {options.rounds} rounds; see the page for what is timed",
        "threads": options.threads,
        "epochs": options.epochs,
        "hardware": measure.hardware(),
        "versions": measure.versions("torch"),
        "load_before": round(load_before, 2),
        "decoding": [],
        "training": [],
    }
    for encoder in ("small", "larger"):
        if encoder == "larger":
            models = {name: with_larger(model) for name, model in models.items()}
        for load in DECODINGS:
            if load.encoder == encoder:
                record["decoding"].append(decode(load, models, options.rounds))
                show_decoding(record["decoding"][-1])
                measure.write_record(options.out, record)  # a long run may be cut short
    for index, step in enumerate(STEPS):
        works = steps(step)
        times = measure.in_turn(works, rounds=options.rounds)
        for name, entry in times.items():
            entry["peak_mib"] = in_child("--child", str(index), name)
        size = {"relations": step.relations, "sentences": step.sentences, "texts": step.texts}
        record["training"].append({**size, "rounds": options.rounds, "models": times})
        show_training(record["training"][-1])
        measure.write_record(options.out, record)
    return 0


def show_decoding(entry: dict[str, Any]) -> None:
    print(
        f"{entry['encoder']}: {entry['texts']} texts, {entry['subjects_per_text']} subjects each, "
        f"{entry['tokens']} tokens, {entry['gold_triples']} triples"
    )
    for name, form in entry["forms"].items():
        print(
            f"  {name:36}{form['cpu_ms']:10.1f} ms cpu{form['subjects']:5} subjects"
            f"{form['triples']:5} triples{form['right']:5} right",
            flush=True,
        )


def show_training(entry: dict[str, Any]) -> None:
    print(
        f"step: {entry['texts']} x {entry['sentences']} sentences, {entry['relations']} relations"
    )
    for name, times in entry["models"].items():
        print(f"  {name:28}{times['cpu_ms']:10.1f} ms cpu{times['peak_mib'] or 0:10.1f} MiB")


if __name__ == "__main__":
    sys.exit(main())
