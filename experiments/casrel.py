"""Which subject to teach, and by which link: three rules, two powers, on generated paragraphs.

``python -m experiments.casrel`` writes ``book/runs/casrel-sampling.json``. A paragraph is three
sentences of the synthetic corpus, so it has several subjects, and how a training step chooses among
them matters. Every model has the same start, order of texts and number of steps for one seed; the
last weights count, nothing is chosen on dev or test. About 15 minutes on one core.
"""

import argparse
import itertools
import math
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from benchmarks import measure
from lib.casrel import CasRel, subject_distribution
from lib.extraction.metrics import evaluate_triples
from lib.extraction.synthetic import synthetic_corpus
from lib.extraction.training import epoch_batches, learning_rate_factor, set_seed
from lib.extraction.triples import Example, Span, Triple

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "runs" / "casrel-sampling.json"
SEEDS = range(3)
RULES = ("published", "uniform", "all")
POWERED, PLAIN = (2.0, 4.0), (1.0, 1.0)
# Rule, power, and whether biases start where a powered link has its probabilities at score 0.
ARMS = (
    *((rule, power, False) for rule in RULES for power in (POWERED, PLAIN)),
    ("all", PLAIN, True),
)
SENTENCES = {"train": 900, "dev": 150, "test": 450}
EACH = 3  # sentences of a paragraph
EPOCHS = 25
BATCH = 8
RATE = 3e-3


def moved(span: Span, by: int) -> Span:
    """Shift a span to the right."""
    return Span(span.start + by, span.end + by)


def paragraphs(examples: tuple[Example, ...]) -> list[Example]:
    """Join each three sentences to one text, with all their triples."""
    made = []
    for start in range(0, len(examples), EACH):
        text, triples = "", []
        for example in examples[start : start + EACH]:
            text += " " if text else ""
            shift = len(text)
            triples += [
                Triple(moved(t.subject, shift), t.relation, moved(t.object, shift))
                for t in example.triples
            ]
            text += example.text
        made.append(Example(f"{start}", text, tuple(triples)))
    return made


def by_place(gold: list[Example], found: list[set[Triple]]) -> dict[str, dict[str, int]]:
    """Count triples, and triples found, of the first and of the last subject of four or more."""
    counts = {place: Counter[str]() for place in ("first", "last")}
    for example, right in zip(gold, found, strict=True):
        subjects = sorted({t.subject for t in example.triples}, key=lambda s: (s.start, s.end))
        if len(subjects) < 4:
            continue
        for place, subject in (("first", subjects[0]), ("last", subjects[-1])):
            wanted = {t for t in example.triples if t.subject == subject}
            counts[place] += Counter(gold=len(wanted), found=len(wanted & right))
    return {place: dict(count) for place, count in counts.items()}


def one_run(work: tuple[int, tuple[str, tuple[float, float], bool]]) -> dict[str, Any]:
    """Train one model and score it."""
    seed, (rule, power, low_start) = work
    torch.set_num_threads(1)
    corpus = synthetic_corpus(seed, **SENTENCES)
    train, dev, test = (paragraphs(part) for part in (corpus.train, corpus.dev, corpus.test))
    set_seed(seed)
    model = CasRel.create(
        "small",
        corpus.relations,
        texts=[example.text for example in train],
        hidden_size=64,
        attention_heads=4,
        dropout=0.0,
        power=power,
        sampling=rule,
    )
    if low_start:
        for tagger, exponent in zip((model.subjects, model.objects), POWERED, strict=True):
            torch.nn.init.constant_(tagger.bias, -math.log(2**exponent - 1))
    items, unaligned = model.prepare(train)
    optimizer = torch.optim.AdamW(model.parameter_groups(RATE, RATE, 0.01))
    rates = [group["lr"] for group in optimizer.param_groups]
    steps = EPOCHS * -(-len(items) // BATCH)
    step, curve = 0, []
    for epoch in range(1, EPOCHS + 1):
        set_seed(seed, epoch=epoch)
        model.train()
        for batch in epoch_batches([len(i) for i in items], BATCH, seed=seed, epoch=epoch):
            factor = learning_rate_factor(step, steps, warmup=0.1, schedule="linear")
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            loss = model(**model.collate([items[i] for i in batch]))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
        if epoch % 5 == 0:
            curve.append([epoch, score(model, dev)[0]["f1"]])
    scores, found = score(model, test)
    spurious = sum(
        t.subject not in {g.subject for g in example.triples}
        for example, triples in zip(test, found, strict=True)
        for t in triples
    )
    return {
        "seed": seed,
        "rule": rule,
        "power": list(power),
        "low_start": low_start,
        "unaligned": unaligned.total(),
        "dev_f1": curve,
        "test": scores,
        "gold": sum(len(set(example.triples)) for example in test),
        "predicted": sum(map(len, found)),
        "spurious_subjects": spurious,
        "places": by_place(test, found),
    }


def score(model: CasRel, texts: list[Example]) -> tuple[dict[str, float], list[set[Triple]]]:
    """Return the micro scores, and the triples found."""
    items, _ = model.prepare(texts)
    found = [{triple for triple, _ in triples} for triples in model.extract_scored(items)]
    scores = evaluate_triples([example.triples for example in texts], found)
    return {
        "precision": scores.precision,
        "recall": scores.recall,
        "f1": scores.f1,
    }, found


def drawn(seed: int) -> dict[str, Any]:
    """Say, by counting, what the published rule draws from the training paragraphs of a seed."""
    numbers, valid, first, last = Counter[int](), [], [], []
    for example in paragraphs(synthetic_corpus(seed, **SENTENCES).train):
        subjects = sorted({(t.subject.start, t.subject.end - 1) for t in example.triples})
        numbers[len(subjects)] += 1
        if subjects:
            chances = subject_distribution(subjects)
            valid.append(float(sum(chances[subject] for subject in subjects)))
        if len(subjects) >= 4:
            first.append(float(chances[subjects[0]]))
            last.append(float(chances[subjects[-1]]))
    return {
        "subjects": {str(m): numbers[m] for m in sorted(numbers)},
        "valid": mean(valid),
        "first": mean(first),
        "last": mean(last),
    }


def main() -> None:
    """Train all models, print their scores, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1, help="Models trained at once; default 1.")
    parser.add_argument("--out", type=Path, default=RECORD)
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    record = {
        "command": "python -m experiments.casrel",
        "settings": {
            "sentences": SENTENCES,
            "sentences_per_text": EACH,
            "epochs": EPOCHS,
            "batch": BATCH,
            "rate": RATE,
            "seeds": list(SEEDS),
        },
        "hardware": measure.hardware(),
        "versions": measure.versions("torch"),
        "drawn": drawn(0),
        "runs": runs,
    }
    with ProcessPoolExecutor(options.jobs) as pool:
        for run in pool.map(one_run, itertools.product(SEEDS, ARMS)):
            arm = run["rule"], run["power"], run["low_start"]
            print(run["seed"], *arm, f"F1 {run['test']['f1']:.4f}", flush=True)
            runs.append(run)
            measure.write_record(options.out, record)  # what is finished is kept
    for rule, power, low in ARMS:
        same = (rule, list(power), low)
        scores = [r["test"]["f1"] for r in runs if (r["rule"], r["power"], r["low_start"]) == same]
        print(f"{rule:10s} {power} {low!s:5s}: {mean(scores):.4f} ± {stdev(scores):.4f}")


if __name__ == "__main__":
    main()
