"""Losses for many labels on real data: Bibtex (159 labels) and Delicious (983).

``python -m experiments.labels --data FOLDER`` writes ``book/runs/labels.json``
(see ``experiments.multilabel`` for what the folder holds). About half an hour on one core.

All losses train the same linear model from zero for the same number of steps of Adam, with a rate
that falls to zero. A seed draws the fifth of the published training part that is held out, and the
order of the rest. Rate and penalty are chosen on the held-out fifth, for each loss, seed and
threshold anew (see ``experiments.choice``). Figures are of the published test part.
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, embedding_bag

from benchmarks import measure
from experiments.choice import Place, Score, climb, setting
from experiments.multilabel import Part, Published, chosen_threshold, f1_scores, load, precision_at
from lib.zlpr import zlpr_loss
from references.labels import (
    adaptive_threshold,
    asymmetric,
    binary,
    focal,
    learnt_zero,
    two_way,
)

__all__ = ["METHODS", "PROTOCOLS", "Method", "compare", "interval_of_test", "run", "train"]

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "book" / "runs" / "labels.json"
SEEDS = range(5)
HELD_OUT = 0.2
SIZES = {"bibtex": (128, 15), "delicious": (256, 8)}  # samples of a step, and epochs
START = (-3, -8)  # half decades: rate and penalty where the first search begins
RESAMPLES = 1000
PROTOCOLS = ("at 0", "tuned")

Loss = Callable[[Tensor, Tensor], Tensor]


# ----------------------------------------------------------------------------------------- methods


class Method(NamedTuple):
    """A loss, and what it asks for besides the model."""

    loss: Callable[[Part], Loss]  # from the training part, which may weigh labels
    log_odds: bool = False  # the bias starts at the labels' log-odds
    line: bool = False  # one more output is the threshold
    knows_zero: bool = True  # adding a number to all outputs changes the loss


def plain(loss: Loss) -> Callable[[Part], Loss]:
    """Return a loss that needs nothing of the training part."""
    return lambda part: loss


def balanced(part: Part) -> Loss:
    """BCE whose positives weigh as much as the negatives of their label."""
    count = part.labels.sum(0)
    return partial(binary, weight=(len(part.labels) - count) / count.clamp(min=1))


METHODS = {
    "ZLPR": Method(plain(zlpr_loss)),
    "BCE": Method(plain(binary)),
    "BCE, bias started": Method(plain(binary), log_odds=True),
    "BCE, pos_weight": Method(balanced),
    "focal": Method(plain(focal)),
    "ASL": Method(plain(asymmetric)),
    "two-way": Method(plain(two_way), knows_zero=False),
    "ZLPR, learnt threshold": Method(plain(learnt_zero), line=True),
    "ATLOP": Method(plain(adaptive_threshold), line=True),
}


class Model(NamedTuple):
    """A linear model of sparse features."""

    weight: Tensor  # (features, outputs)
    bias: Tensor
    line: bool

    def scores(self, part: Part) -> Tensor:
        """Return what is compared with the threshold."""
        raw = outputs(part, self.weight, self.bias)
        return raw[:, :-1] - raw[:, -1:] if self.line else raw


def outputs(part: Part, weight: Tensor, bias: Tensor) -> Tensor:
    """Sum the rows of the weight that a sample's features name: a product with zeros and ones."""
    return embedding_bag(part.features, weight, part.starts, mode="sum") + bias


def train(
    method: Method, part: Part, features: int, place: Place, seed: int, size: int, epochs: int
) -> tuple[Model, float]:
    """Train with Adam and return the model and the CPU seconds of an epoch."""
    rate, penalty = setting(place)
    generator = torch.Generator().manual_seed(seed)
    count = part.labels.shape[1] + method.line
    weight = torch.zeros(features, count, requires_grad=True)
    bias = torch.zeros(count)
    if method.log_odds:
        bias = torch.logit((part.labels.sum(0) + 0.5) / (len(part.labels) + 1))
    bias.requires_grad_()
    loss = method.loss(part)
    order = torch.randperm(len(part.labels), generator=generator)
    batches = [part.take(rows) for rows in order.split(size)]
    adam = torch.optim.Adam([weight, bias], lr=rate, fused=True)
    falling = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, epochs * len(batches))
    began = time.process_time()
    for _ in range(epochs):
        for which in torch.randperm(len(batches), generator=generator).tolist():
            batch = batches[which]
            adam.zero_grad()
            loss(outputs(batch, weight, bias), batch.labels).backward()
            assert weight.grad is not None
            weight.grad.add_(weight.detach(), alpha=2 * penalty)
            adam.step()
            falling.step()
    spent = (time.process_time() - began) / epochs
    return Model(weight.detach(), bias.detach(), method.line), spent


# ----------------------------------------------------------------------------------------- figures


def interval_of_test(
    ours: list[tuple[Tensor, Tensor]], theirs: list[tuple[Tensor, Tensor]], labels: Tensor
) -> list[float]:
    """Return the middle 95 % of the difference of micro-F1 over resampled test samples.

    ``ours`` and ``theirs`` have, for each seed, how many labels of each sample were found and
    guessed. The same resamples serve both; their mean over the seeds is taken first.
    """
    truth = labels.double().sum(1)
    chance = torch.ones(len(truth)).expand(RESAMPLES, -1)
    drawn = torch.multinomial(
        chance, len(truth), replacement=True, generator=torch.Generator().manual_seed(0)
    )
    times = torch.zeros(RESAMPLES, len(truth), dtype=torch.float64)
    times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    sides = []
    for side in (ours, theirs):
        values = [2 * (times @ right) / (times @ (guess + truth)) for right, guess in side]
        sides.append(torch.stack(values).mean(0))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    return [round(float(x), 5) for x in (sides[0] - sides[1]).quantile(ends)]


# ------------------------------------------------------------------------------------- experiments


class Run(NamedTuple):
    """What one loss and one seed gave."""

    entry: dict[str, Any]
    found: dict[str, tuple[Tensor, Tensor]]  # by protocol: labels found and guessed, per sample
    chosen: dict[str, Place]
    seconds: list[float]


def run(
    method: Method, data: Published, seed: int, starts: Mapping[str, Place], size: int, epochs: int
) -> Run:
    """Choose rate and penalty for each protocol; measure the chosen models on the test part."""
    count = len(data.train.labels)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1000 + seed))
    cut = round(HELD_OUT * count)
    held, fit = data.train.take(order[:cut]), data.train.take(order[cut:])
    models: dict[Place, Model] = {}
    scores: dict[Place, dict[str, Score]] = {}
    lines: dict[Place, dict[str, float]] = {}
    seconds = []

    def score(protocol: str, place: Place) -> Score:
        if place not in scores:
            model, spent = train(method, fit, data.features, place, seed, size, epochs)
            seconds.append(spent)
            logits = model.scores(held)
            loss = float(binary_cross_entropy_with_logits(logits, held.labels)) * logits.shape[1]
            line, best = chosen_threshold(logits, held.labels)
            zero = f1_scores(logits > 0, held.labels)["micro"]
            models[place], lines[place] = model, {"at 0": 0.0, "tuned": line}
            values = zip(PROTOCOLS, (zero, best), strict=True)
            scores[place] = {one: Score(round(value, 5), round(loss, 5)) for one, value in values}
        return scores[place][protocol]

    chosen: dict[str, Place] = dict(starts)
    before: dict[str, Place] = {}
    while chosen != before:  # what one walk has tried may be better for the other
        before = dict(chosen)
        for protocol, start in before.items():
            of = partial(score, protocol)
            chosen[protocol] = climb(of, max([start, *scores], key=lambda place: of(place).rank))

    entry: dict[str, Any] = {"chosen": {}}
    found = {}
    for protocol, place in chosen.items():
        logits, line = models[place].scores(data.test), lines[place][protocol]
        guess = logits > line
        rate, penalty = setting(place)
        figures = f1_scores(guess, data.test.labels)
        figures |= {f"P@{k}": precision_at(logits, data.test.labels, k) for k in (1, 3, 5)}
        entry["chosen"][protocol] = {
            "rate": rate,
            "penalty": penalty,
            "threshold": round(line, 4),
            **{name: round(value, 5) for name, value in figures.items()},
        }
        right = (guess & (data.test.labels > 0)).double().sum(1)
        found[protocol] = (right, guess.double().sum(1))
    # Rate, penalty, then F1 at 0, F1 with the best threshold, and log-loss of the held-out part.
    entry["tried"] = [
        [*setting(place), *(of[one].value for one in PROTOCOLS), of["tuned"].log_loss]
        for place, of in sorted(scores.items())
    ]
    return Run(entry, found, chosen, seconds)


def compare(data: Published, size: int, epochs: int) -> dict[str, Any]:
    """Let every loss run with every seed."""
    results: dict[str, Any] = {}
    counts: dict[str, dict[str, list[tuple[Tensor, Tensor]]]] = {}
    for name, method in METHODS.items():
        starts: dict[str, Place] = {
            protocol: START for protocol in PROTOCOLS if method.knows_zero or protocol != "at 0"
        }
        runs, seconds = [], []
        for seed in SEEDS:
            done = run(method, data, seed, starts, size, epochs)
            starts = done.chosen  # where the next search begins, no more
            runs.append(done.entry)
            seconds += done.seconds
            for protocol, pair in done.found.items():
                counts.setdefault(protocol, {}).setdefault(name, []).append(pair)
        results[name] = {"cpu_seconds_per_epoch": round(median(seconds), 4), "seeds": runs}
        for protocol in starts:
            of = [entry["chosen"][protocol] for entry in runs]
            shown = "  ".join(
                f"{what} {100 * mean(one[what] for one in of):.1f}"
                for what in ("micro", "macro", "sample", "P@1", "P@5")
            )
            tried = sum(len(entry["tried"]) for entry in runs)
            print(f"  {name:24} {protocol:6} {shown}  {tried} tried", flush=True)
    for protocol, by_name in counts.items():
        for name, pairs in by_name.items():
            if name != "ZLPR":
                interval = interval_of_test(by_name["ZLPR"], pairs, data.test.labels)
                results[name].setdefault("test_interval", {})[protocol] = interval
    return results


def main(arguments: list[str] | None = None) -> int:
    """Run all and write the record."""
    parser = argparse.ArgumentParser(prog="python -m experiments.labels", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="Mulan's files")
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    load_before, began = os.getloadavg()[0], time.process_time()
    sets: dict[str, Any] = {}
    results: dict[str, Any] = {}
    digests: dict[str, str] = {}
    for name, (size, epochs) in SIZES.items():
        print(name, flush=True)
        data = load(options.data, name)
        digests |= data.digests
        sets[name] = {
            "train": len(data.train.labels),
            "test": len(data.test.labels),
            "features": data.features,
            "labels": data.train.labels.shape[1],
            "positives": round(float(data.train.labels.sum(1).mean()), 3),
            "samples_of_a_step": size,
            "epochs": epochs,
        }
        results[name] = compare(data, size, epochs)
    record = {
        "command": "python -m experiments.labels --data FOLDER",
        "what": "test figures of linear models, by loss and seed; ZLPR minus each loss over "
        "resampled test samples; tried: rate, penalty, F1 at 0, F1 with the best threshold and "
        "log-loss of the held-out fifth",
        "seeds": list(SEEDS),
        "held_out": HELD_OUT,
        "data": sets,
        "digests": digests,
        "hardware": measure.hardware(),
        "versions": measure.versions("torch"),
        "load_before": round(load_before, 2),
        "cpu_seconds": round(time.process_time() - began),
        "results": results,
    }
    measure.write_record(options.out, record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
