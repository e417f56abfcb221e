"""Losses for many labels on real data: Bibtex (159 labels) and Delicious (983).

``python -m experiments.labels --data FOLDER`` writes ``book/runs/labels-bibtex.json`` and
``labels-delicious.json`` (see ``experiments.multilabel`` for what the folder holds); names of sets
limit it to these. About twenty minutes on one core.

All losses train the same linear model from zero for the same number of steps of Adam, with a rate
that falls to zero. A seed draws the fifth of the published training part that is held out, and the
order of the rest. Rate and penalty are chosen on the held-out fifth of the first seed, for each
loss and each protocol, threshold 0 and tuned, by itself (see ``experiments.choice``). The tuned
threshold is chosen on each seed's own held-out fifth. Figures are of the published test part.
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf, isfinite
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

__all__ = ["METHODS", "PROTOCOLS", "Setup", "choose", "interval_of_test", "outputs", "run"]

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "book" / "runs"
SEEDS = range(5)
HELD_OUT = 0.2
SIZES = {"bibtex": (128, 6), "delicious": (256, 4)}  # samples of a step, and epochs
START: Place = (-2, -8)  # half decades: rate and penalty where each search begins
RESAMPLES = 1000
PROTOCOLS = ("at 0", "tuned")

Loss = Callable[[Tensor, Tensor], Tensor]
Counts = tuple[Tensor, Tensor]  # labels found and guessed, of each sample


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
    ours: Sequence[Counts], theirs: Sequence[Counts], labels: Tensor
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


class Setup(NamedTuple):
    """What all losses share: the data, how long they train, and the split of each seed."""

    data: Published
    size: int
    epochs: int
    held: list[Part]
    fit: list[Part]

    @classmethod
    def of(cls, data: Published, size: int, epochs: int) -> "Setup":
        """Draw the splits."""
        held, fit = [], []
        count = len(data.train.labels)
        cut = round(HELD_OUT * count)
        for seed in SEEDS:
            order = torch.randperm(count, generator=torch.Generator().manual_seed(1000 + seed))
            held.append(data.train.take(order[:cut]))
            fit.append(data.train.take(order[cut:]))
        return cls(data, size, epochs, held, fit)


class Trained(NamedTuple):
    """A model, how good it is on the held-out part by each protocol, and its thresholds."""

    model: Model
    scores: dict[str, Score]
    lines: dict[str, float]
    seconds: float  # of an epoch


def attempt(method: Method, setup: Setup, seed: int, place: Place) -> Trained:
    """Train a model and look at the held-out part."""
    held = setup.held[seed]
    model, seconds = train(
        method, setup.fit[seed], setup.data.features, place, seed, setup.size, setup.epochs
    )
    logits = model.scores(held)
    loss = float(binary_cross_entropy_with_logits(logits, held.labels)) * logits.shape[1]
    line, best = chosen_threshold(logits, held.labels)
    values = {"at 0": f1_scores(logits > 0, held.labels)["micro"], "tuned": best}
    loss = round(loss, 5) if isfinite(loss) else inf
    scores = {one: Score(round(value, 5), loss) for one, value in values.items()}
    return Trained(model, scores, {"at 0": 0.0, "tuned": line}, seconds)


def choose(
    score: Callable[[Place], Mapping[str, Score]], protocols: Sequence[str]
) -> dict[str, Place]:
    """Choose for each protocol; what the walk of one has seen may be better for another."""
    chosen: dict[str, Place] = {}
    seen = {START}

    def of(protocol: str, place: Place) -> Score:
        seen.add(place)
        return score(place)[protocol]

    for _ in range(3):
        before = dict(chosen)
        for protocol in protocols:
            rank = partial(of, protocol)
            start = max(sorted(seen), key=lambda place: rank(place).rank)
            chosen[protocol] = climb(rank, start)
        if chosen == before:
            break
    return chosen


def figures(trained: Trained, protocol: str, test: Part) -> tuple[dict[str, float], Counts]:
    """Measure on the test part; also the labels found and guessed of each sample."""
    logits, line = trained.model.scores(test), trained.lines[protocol]
    guess = logits > line
    values = f1_scores(guess, test.labels)
    values |= {f"P@{k}": precision_at(logits, test.labels, k) for k in (1, 3, 5)}
    rounded = {name: round(value, 5) for name, value in values.items()}
    counts = (guess & (test.labels > 0)).double().sum(1), guess.double().sum(1)
    return {"threshold": round(line, 4), **rounded}, counts


def run(method: Method, setup: Setup) -> tuple[dict[str, Any], dict[str, list[Counts]]]:
    """Choose rate and penalty with the first seed; measure all seeds."""
    protocols = PROTOCOLS if method.knows_zero else PROTOCOLS[1:]
    first: dict[Place, Trained] = {}

    def score(place: Place) -> dict[str, Score]:
        if place not in first:
            first[place] = attempt(method, setup, SEEDS[0], place)
        return first[place].scores

    chosen = choose(score, protocols)
    seconds = [one.seconds for one in first.values()]
    runs: list[dict[str, Any]] = []
    counts: dict[str, list[Counts]] = {protocol: [] for protocol in protocols}
    for seed in SEEDS:
        tried = first if seed == SEEDS[0] else {}
        for place in chosen.values():
            if place not in tried:
                tried[place] = attempt(method, setup, seed, place)
                seconds.append(tried[place].seconds)
        runs.append({})
        for protocol, place in chosen.items():
            found, pair = figures(tried[place], protocol, setup.data.test)
            runs[-1][protocol] = found
            counts[protocol].append(pair)
    entry = {
        "cpu_seconds_per_epoch": round(median(seconds), 4),
        "chosen": {protocol: list(setting(place)) for protocol, place in chosen.items()},
        # Rate, penalty, then of the held-out part: F1 at 0, F1 with the best threshold, log-loss.
        "tried": [
            [
                *setting(place),
                *(one.scores[p].value for p in PROTOCOLS),
                one.scores["at 0"].log_loss,
            ]
            for place, one in sorted(first.items())
        ],
        "seeds": runs,
    }
    return entry, counts


def compare(setup: Setup) -> dict[str, Any]:
    """Let every loss run."""
    results: dict[str, Any] = {}
    ours: dict[str, list[Counts]] = {}
    for name, method in METHODS.items():
        results[name], counts = run(method, setup)
        ours = ours or counts
        if name != "ZLPR":
            results[name]["test_interval"] = {
                protocol: interval_of_test(ours[protocol], theirs, setup.data.test.labels)
                for protocol, theirs in counts.items()
            }
        for protocol, place in results[name]["chosen"].items():
            of = [one[protocol] for one in results[name]["seeds"]]
            shown = "  ".join(
                f"{what} {100 * mean(one[what] for one in of):.1f}"
                for what in ("micro", "macro", "sample", "P@1", "P@5")
            )
            tried = len(results[name]["tried"])
            print(f"  {name:24} {protocol:6} {shown}  {place} of {tried}", flush=True)
    return results


def main(arguments: list[str] | None = None) -> int:
    """Run all and write a record for each set."""
    parser = argparse.ArgumentParser(prog="python -m experiments.labels", description=__doc__)
    parser.add_argument("sets", nargs="*", metavar="SET", help=" or ".join(SIZES))
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="Mulan's files")
    parser.add_argument("--out", type=Path, default=RUNS, help="the folder of the records")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    for name in options.sets or SIZES:
        load_before, began = os.getloadavg()[0], time.process_time()
        print(name, flush=True)
        data = load(options.data, name)
        size, epochs = SIZES[name]
        results = compare(Setup.of(data, size, epochs))
        record = {
            "command": f"python -m experiments.labels {name} --data FOLDER",
            "what": "test figures of linear models, by loss and seed; ZLPR minus each loss over "
            "resampled test samples; tried with the first seed: rate, penalty, and of its held-out "
            "fifth F1 at 0, F1 with the best threshold, log-loss",
            "seeds": list(SEEDS),
            "held_out": HELD_OUT,
            "data": {
                "train": len(data.train.labels),
                "test": len(data.test.labels),
                "features": data.features,
                "labels": data.train.labels.shape[1],
                "positives": round(float(data.train.labels.sum(1).mean()), 3),
                "samples_of_a_step": size,
                "epochs": epochs,
            },
            "digests": data.digests,
            "hardware": measure.hardware(),
            "versions": measure.versions("torch"),
            "load_before": round(load_before, 2),
            "cpu_seconds": round(time.process_time() - began),
            "results": results,
        }
        measure.write_record(options.out / f"labels-{name}.json", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
