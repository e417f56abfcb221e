"""Time and memory of CasRel, as published and encoded once, against GPLinker.

``python -m benchmarks.casrel`` prints the tables and writes ``book/runs/performance-casrel.json``.
Both models have an encoder of the same kind and size. The texts are made of k sentences of the
synthetic corpus, each with one subject. How long decoding takes depends on how much is found, so
an oracle sits on the untrained models: all scores are computed, and then those of the gold triples
are lifted above their thresholds. Every form must return exactly the gold triples.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import measure
from lib.casrel import CasRel, extract_reencoding
from lib.extraction.model import ExtractionModel, Item
from lib.extraction.synthetic import synthetic_corpus
from lib.extraction.training import set_seed
from lib.extraction.triples import Example, Span, Triple
from lib.global_pointer.decoding import Spans
from lib.gplinker import GPLinker

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "runs" / "performance-casrel.json"
ENCODERS: dict[str, dict[str, int]] = {
    "2 layers of 192": {"hidden_size": 192, "layers": 2, "attention_heads": 6},
    "6 layers of 384": {"hidden_size": 384, "layers": 6, "attention_heads": 12},  # MiniLM-L6's
}
LIFT = 40.0  # from far below a threshold to far above


@dataclass(frozen=True)
class Decoding:
    """Texts to decode."""

    encoder: str
    subjects: int
    texts: int


DECODINGS = tuple(Decoding(encoder, k, 16) for encoder in ENCODERS for k in (1, 2, 4, 8))


@dataclass(frozen=True)
class Step:
    """Texts to learn from in one step."""

    relations: int
    sentences: int
    texts: int = 8


STEPS = (Step(14, 1), Step(14, 8), Step(171, 8))


def joined(examples: Sequence[Example], count: int, texts: int) -> list[Example]:
    """Make texts of so many sentences, each with one subject of its own."""
    single = [e for e in examples if len({t.subject for t in e.triples}) == 1 and _disjoint(e)]
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


def _disjoint(example: Example) -> bool:
    """Whether no two entities overlap, so that both models can say what the triples are."""
    spans = sorted({span for t in example.triples for span in (t.subject, t.object)})
    return all(a.end <= b.start for a, b in pairwise(spans))


class CasRelOracle:
    """Makes a CasRel find the triples of the items that it was last given."""

    def __init__(self, model: CasRel) -> None:
        self.items: Sequence[Item] = ()
        self.tags = model.object_scores
        self.collate = model.collate_texts
        with torch.no_grad():
            for part in (model.subjects, model.objects):
                part.bias.fill_(-LIFT / 2)
        model.subjects.register_forward_hook(self.subject_tags)
        model.object_scores = self.object_tags
        model.collate_texts = self.collate_texts

    def collate_texts(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Remember which texts the next scores are for."""
        self.items = items
        return self.collate(items)

    def subject_tags(self, _module: nn.Module, _args: object, scores: Tensor) -> None:
        """Lift the starts and ends of the gold subjects."""
        lifted = {
            cell
            for row, item in enumerate(self.items)
            for t in item.triples
            for cell in ((row, t.subject_head, 0), (row, t.subject_tail, 1))
        }
        scores[tuple(torch.tensor(sorted(lifted)).T)] += LIFT

    def object_tags(self, hidden: Tensor, chosen: Tensor) -> Tensor:
        """Lift the starts and ends of the gold objects of the chosen subjects."""
        scores = self.tags(hidden, chosen)
        lifted = set()
        for row, (text, head, tail) in enumerate(chosen.tolist()):
            item = self.items[text if len(self.items) > 1 else 0]  # copies of one text
            for t in item.triples:
                if (t.subject_head, t.subject_tail) == (head, tail):
                    lifted |= {(row, t.object_head, t.relation, 0)}
                    lifted |= {(row, t.object_tail, t.relation, 1)}
        scores[tuple(torch.tensor(sorted(lifted)).T)] += LIFT
        return scores


class GPLinkerOracle:
    """Makes a GPLinker find the triples of the items that it was last given."""

    def __init__(self, model: GPLinker) -> None:
        self.items: Sequence[Item] = ()
        self.collate = model.collate_texts
        self.found = model.entities.spans
        model.entities.spans = self.spans
        for role, pointer in (("head", model.head_links), ("tail", model.tail_links)):
            pointer.blocks = self.blocks(role, pointer.blocks)
        model.collate_texts = self.collate_texts

    def collate_texts(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Remember which texts the next scores are for."""
        self.items = items
        return self.collate(items)

    def spans(self, hidden: Tensor, mask: Tensor | None = None) -> Spans:
        """Search the spans, find none, and return the gold ones."""
        self.found(hidden, mask)  # from the start far below 0, as in a trained model
        cells = {
            cell
            for row, item in enumerate(self.items)
            for t in item.triples
            for cell in (
                (row, 0, t.subject_head, t.subject_tail),
                (row, 1, t.object_head, t.object_tail),
            )
        }
        rows = torch.tensor(sorted(cells))
        return Spans(rows, torch.full((len(rows),), LIFT / 2))

    def blocks(self, end: str, score: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
        """Lift the gold links between first or between last tokens."""

        def lifted(hidden: Tensor, rows: list[Tensor], columns: list[Tensor]) -> list[Tensor]:
            found = score(hidden, rows, columns)
            for block, item, i, j in zip(found, self.items, rows, columns, strict=True):
                row = {position: place for place, position in enumerate(i.tolist())}
                column = {position: place for place, position in enumerate(j.tolist())}
                cells = {
                    (
                        t.relation,
                        row[getattr(t, f"subject_{end}")],
                        column[getattr(t, f"object_{end}")],
                    )
                    for t in item.triples
                }
                block[tuple(torch.tensor(sorted(cells)).T)] += LIFT
            return found

        return lifted


def forms(
    linker: GPLinker, casrel: CasRel, items: list[Item]
) -> dict[str, Callable[[], list[Any]]]:
    """Ways to decode the same texts."""

    def one_by_one(model: ExtractionModel) -> list[Any]:
        return [found for item in items for found in model.extract_scored([item])]

    return {
        "GPLinker, text by text": lambda: one_by_one(linker),
        "CasRel as published, text by text": lambda: extract_reencoding(casrel, items),
        "CasRel encoded once, text by text": lambda: one_by_one(casrel),
        "GPLinker, one batch": lambda: linker.extract_scored(items),
        "CasRel encoded once, one batch": lambda: casrel.extract_scored(items),
    }


def decode(load: Decoding, rounds: int) -> dict[str, Any]:
    """Time every form on one set of texts."""
    corpus = synthetic_corpus()
    examples = joined(corpus.train, load.subjects, load.texts)
    texts = [e.text for e in corpus.train]
    set_seed(0)
    linker = GPLinker.create("small", corpus.relations, texts=texts, **ENCODERS[load.encoder])
    casrel = CasRel.create("small", corpus.relations, texts=texts, **ENCODERS[load.encoder])
    items, _ = linker.prepare(examples)  # for both: the same vocabulary, the same tokens
    GPLinkerOracle(linker)
    CasRelOracle(casrel)
    works = forms(linker, casrel, items)
    for name, work in works.items():
        if [{t for t, _ in found} for found in work()] != [set(e.triples) for e in examples]:
            raise RuntimeError(f"{name} does not find the gold triples")
    return {
        "encoder": load.encoder,
        "subjects_per_text": load.subjects,
        "texts": load.texts,
        "tokens": sum(map(len, items)),
        "triples": sum(len(e.triples) for e in examples),
        "rounds": rounds,
        "forms": measure.in_turn(works, rounds=rounds),
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
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
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
    record: dict[str, Any] = {
        "command": "python -m benchmarks.casrel",
        "what": f"float32, medians of {options.rounds} rounds; see the page for what is timed",
        "threads": options.threads,
        "hardware": measure.hardware(),
        "versions": measure.versions("torch"),
        "load_before": round(load_before, 2),
        "decoding": [],
        "training": [],
    }
    for load in DECODINGS:
        record["decoding"].append(decode(load, options.rounds))
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
        f"{entry['tokens']} tokens, {entry['triples']} triples"
    )
    for name, times in entry["forms"].items():
        print(f"  {name:36}{times['cpu_ms']:10.1f} ms cpu", flush=True)


def show_training(entry: dict[str, Any]) -> None:
    print(
        f"step: {entry['texts']} x {entry['sentences']} sentences, {entry['relations']} relations"
    )
    for name, times in entry["models"].items():
        print(f"  {name:28}{times['cpu_ms']:10.1f} ms cpu{times['peak_mib'] or 0:10.1f} MiB")


if __name__ == "__main__":
    sys.exit(main())
