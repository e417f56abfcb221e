"""Soft labels on real data: calibration, smoothing, mixup, distillation; yeast and emotions.

``python -m experiments.soft_zlpr`` writes ``book/runs/soft_zlpr.json``. Yeast lies in the
repository. Emotions (OpenML 40589) does not: it is fetched, or read from a CSV file given by
``--emotions FILE`` with the six labels in front. About ten minutes on one core.

Every choice (penalty, number of steps, threshold, factor) is made on the validation part; figures
are of the test part. One seed is one random split, and the same seed starts the networks.
"""

import argparse
import csv
import gzip
import io
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.metrics import f1_score, precision_recall_curve
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics.functional.classification import binary_calibration_error

from benchmarks import measure
from lib.soft_zlpr import (
    draw_mixup,
    fit_scale,
    mixup,
    mixup_loss,
    smooth_labels,
    smooth_positives,
    soft_zlpr_loss,
    zlpr_probability,
)

BOOK = Path(__file__).resolve().parents[1] / "book"
RECORD = BOOK / "runs" / "soft_zlpr.json"
SEEDS = range(10)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2)
MARKS = (5, 10, 20, 40, 80, 160, 320, 640)  # steps after which the validation part is looked at
PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
EMOTIONS = (
    "amazed-suprised",
    "happy-pleased",
    "relaxing-clam",
    "quiet-still",
    "sad-lonely",
    "angry-aggresive",
)

Loss = Callable[[Tensor, Tensor], Tensor]
Model = Callable[[Tensor], Tensor]


class Data(NamedTuple):
    """Features and labels in three parts, features scaled by the first."""

    x: tuple[Tensor, Tensor, Tensor]
    y: tuple[Tensor, Tensor, Tensor]


def yeast() -> tuple[Tensor, Tensor]:
    """Read the copy in the book."""
    text = gzip.decompress((BOOK / "data" / "yeast.csv.gz").read_bytes()).decode()
    table = torch.tensor(np.loadtxt(io.StringIO(text), delimiter=",", skiprows=1))
    return table[:, :103], table[:, 103:]


def emotions(path: Path | None) -> tuple[Tensor, Tensor]:
    """Read or fetch the data; labels are found by their names."""
    if path is None:
        from sklearn.datasets import fetch_openml

        found = fetch_openml(data_id=40589, as_frame=False, parser="liac-arff", target_column=None)
        names, values = found.feature_names, np.asarray(found.data, dtype=float)
    else:
        lines = list(csv.reader(path.read_text("utf-8").splitlines()))
        names, values = lines[0], np.array(lines[1:], dtype=float)
    table, plain = torch.tensor(values), [name.replace(".", "-") for name in names]
    columns = [plain.index(name) for name in EMOTIONS]
    y = table[:, columns]
    x = table[:, [i for i in range(len(plain)) if i not in columns]]
    if x.shape != (593, 72) or not bool(((y == 0) | (y == 1)).all()):
        raise ValueError(f"emotions: expected 593 samples of 72 features, got {tuple(x.shape)}")
    return x, y


def split(x: Tensor, y: Tensor, seed: int) -> Data:
    """Cut into 62, 17 and 21 per cent, as chapter 2 does with yeast."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    ends = round(0.62 * len(x)), round(0.79 * len(x))
    parts = order[: ends[0]], order[ends[0] : ends[1]], order[ends[1] :]
    mean, spread = x[parts[0]].mean(0), x[parts[0]].std(0)
    train, valid, test = (((x[part] - mean) / spread, y[part]) for part in parts)
    return Data((train[0], valid[0], test[0]), (train[1], valid[1], test[1]))


def bce(s: Tensor, y: Tensor) -> Tensor:
    """Sum of the separate questions."""
    return binary_cross_entropy_with_logits(s, y, reduction="none").sum(-1).mean()


# ------------------------------------------------------------------------------------------ models


def linear(loss: Loss, x: Tensor, y: Tensor, penalty: float) -> Model:
    """Fit a linear model to the one minimum that it has."""
    w = torch.zeros(x.shape[1], y.shape[1], requires_grad=True)
    b = torch.zeros(y.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS(
        [w, b],
        max_iter=100,
        history_size=20,
        tolerance_grad=1e-7,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        solver.zero_grad()
        value = loss(x @ w + b, y) + penalty * (w**2).sum()
        value.backward()
        return value

    solver.step(closure)
    return lambda z: (z @ w + b).detach()


def best_linear(loss: Loss, data: Data, y: Tensor | None = None, held: Loss | None = None) -> Model:
    """Take the penalty with the least validation loss."""
    labels = data.y[0] if y is None else y
    models = [linear(loss, data.x[0], labels, penalty) for penalty in PENALTIES]
    return min(models, key=lambda f: float((held or soft_zlpr_loss)(f(data.x[1]), data.y[1])))


def network(
    step_loss: Callable[[Model, int], Tensor],
    data: Data,
    seed: int,
    *,
    held: Loss = soft_zlpr_loss,
    hidden: int = 64,
    stop: bool = True,
) -> Model:
    """Train one hidden layer with AdamW on all samples at once; keep the best mark, or the last."""
    generator = torch.Generator().manual_seed(seed)
    n, labels = data.x[0].shape[1], data.y[0].shape[1]
    first = torch.randn(n, hidden, generator=generator) / math.sqrt(n)
    weights = [first, torch.zeros(hidden), torch.zeros(hidden, labels), torch.zeros(labels)]
    for weight in weights:
        weight.requires_grad_()

    def scores(x: Tensor, a: list[Tensor]) -> Tensor:
        return torch.relu(x @ a[0] + a[1]) @ a[2] + a[3]

    solver = torch.optim.AdamW(weights, lr=0.01, weight_decay=1e-2)
    kept: tuple[float, list[Tensor]] = (math.inf, [])
    for step in range(1, MARKS[-1] + 1):
        solver.zero_grad()
        step_loss(lambda x: scores(x, weights), step).backward()
        solver.step()
        if step in MARKS:
            copy = [weight.detach().clone() for weight in weights]
            value = float(held(scores(data.x[1], copy), data.y[1]))
            if value < kept[0] or not stop:
                kept = (value, copy)
    return lambda x: scores(x, kept[1])


def plain(loss: Loss, data: Data, y: Tensor | None = None) -> Callable[[Model, int], Tensor]:
    """Return a step of training on the training part as it is."""
    labels = data.y[0] if y is None else y
    return lambda model, step: loss(model(data.x[0]), labels)


# ----------------------------------------------------------------------------------------- figures


def ece(p: Tensor, y: Tensor) -> float:
    """Return the expected calibration error over all cells, in per cent: 15 bins, absolute gaps."""
    error = binary_calibration_error(p.flatten(), y.flatten().int(), n_bins=15, norm="l1")
    return 100 * float(error)


def cut(s: Tensor, y: Tensor) -> float:
    """Find the one threshold that is best for micro-F1."""
    precision, recall, cuts = precision_recall_curve(y.numpy().ravel(), s.numpy().ravel())
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(cuts[f1[:-1].argmax()])


def micro(s: Tensor, y: Tensor, threshold: float) -> float:
    """Return micro-F1 in per cent."""
    guess = (s > threshold).int().numpy()
    return 100 * float(f1_score(y.int().numpy(), guess, average="micro", zero_division=0))


def figures(model: Model, data: Data) -> dict[str, float]:
    """Measure a model on the test part."""
    valid, s, y = model(data.x[1]), model(data.x[2]), data.y[2]
    factor = fit_scale(valid, data.y[1])
    chance = {f"ece of sigma({t}s)": zlpr_probability(s, scale=t) for t in (1, 2)}
    fitted = zlpr_probability(s, scale=factor)
    return {
        "f1 at 0": micro(s, y, 0.0),
        "f1 tuned": micro(s, y, cut(valid, data.y[1])),
        **{name: ece(p, y) for name, p in chance.items()},
        "ece fitted": ece(fitted, y),
        "factor": factor,
        "log-loss of sigma(1s)": float(bce(s, y)),
        "log-loss fitted": float(bce(factor * s, y)),
    }


# ------------------------------------------------------------------------------------- experiments


def calibration(data: Data, seed: int) -> dict[str, Model]:
    """Hard labels, models from strongly shrunk to overfitted."""
    last = network(plain(soft_zlpr_loss, data), data, seed, stop=False)
    return {
        "linear, large penalty": linear(soft_zlpr_loss, data.x[0], data.y[0], 0.1),
        "linear, chosen penalty": best_linear(soft_zlpr_loss, data),
        "network, stopped early": network(plain(soft_zlpr_loss, data), data, seed),
        "network, not stopped": last,
        "BCE linear, chosen penalty": best_linear(bce, data, held=bce),
    }


def smoothing(data: Data, seed: int) -> dict[str, Model]:
    """Train a linear model on smoothed labels, penalty chosen on hard validation labels."""
    models = {"none 0": best_linear(soft_zlpr_loss, data)}
    for rate in RATES:
        for name, smooth in (("both", smooth_labels), ("positives", smooth_positives)):
            models[f"{name} {rate:g}"] = best_linear(soft_zlpr_loss, data, smooth(data.y[0], rate))
    return models


def mixing(data: Data, seed: int) -> dict[str, Model]:
    """Train the network with mixup, both ways, from the same draws."""

    def step_loss(mix: str) -> Callable[[Model, int], Tensor]:
        def loss(model: Model, step: int) -> Tensor:
            generator = torch.Generator().manual_seed(1000 * seed + step)
            weight, order = draw_mixup(len(data.x[0]), alpha=0.4, generator=generator)
            return mixup_loss(
                model(mixup(data.x[0], weight, order)),
                data.y[0],
                weight,
                order,
                mix=mix,  # type: ignore[arg-type]
            )

        return loss

    models = {"none": network(plain(soft_zlpr_loss, data), data, seed)}
    for mix in ("losses", "labels"):
        models[mix] = network(step_loss(mix), data, seed)
    return models


def distillation(data: Data, seed: int) -> dict[str, Model]:
    """Train linear students on hard labels and on the probabilities of five networks."""
    networks = [
        network(plain(bce, data), data, 100 * seed + i, held=bce, hidden=128) for i in range(5)
    ]

    def average(x: Tensor) -> Tensor:
        return torch.stack([torch.sigmoid(model(x)) for model in networks]).mean(0)

    degrees = average(data.x[0])
    return {
        "teacher": lambda x: torch.logit(average(x), eps=1e-12),
        "ZLPR on labels": best_linear(soft_zlpr_loss, data),
        "soft ZLPR on the teacher": best_linear(soft_zlpr_loss, data, degrees),
        "BCE on the teacher": best_linear(bce, data, degrees, held=bce),
    }


EXPERIMENTS = {
    "calibration": calibration,
    "smoothing": smoothing,
    "mixup": mixing,
    "distillation": distillation,
}


def run(sets: Iterable[tuple[str, Tensor, Tensor]]) -> dict[str, dict[str, dict[str, object]]]:
    """Do every experiment on every set with every seed; lists run over the seeds."""
    results: dict[str, dict[str, dict[str, object]]] = {}
    for name, x, y in sets:
        for title, experiment in EXPERIMENTS.items():
            rows: dict[str, dict[str, list[float]]] = {}
            for seed in SEEDS:
                data = split(x, y, seed)
                for variant, model in experiment(data, seed).items():
                    for what, value in figures(model, data).items():
                        cells = rows.setdefault(variant, {})
                        cells.setdefault(what, []).append(round(value, 4))
            results.setdefault(title, {})[name] = dict(rows)
            print(f"{title}, {name}", flush=True)
            for variant, cells in rows.items():
                line = "  ".join(f"{k} {np.mean(v):.3f}±{np.std(v):.3f}" for k, v in cells.items())
                print(f"  {variant:28} {line}", flush=True)
    return results


def main(arguments: list[str] | None = None) -> int:
    """Run all and write the record."""
    parser = argparse.ArgumentParser(prog="python -m experiments.soft_zlpr", description=__doc__)
    parser.add_argument("--emotions", type=Path, metavar="FILE", help="a local copy of the data")
    options = parser.parse_args(arguments)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    sets = [("yeast", *yeast()), ("emotions", *emotions(options.emotions))]
    record = {
        "command": "python -m experiments.soft_zlpr",
        "what": "test figures per seed (split and start); F1 and calibration errors in per cent",
        "seeds": list(SEEDS),
        "data": {
            name: [*x.shape, y.shape[1], round(float(y.sum(1).mean()), 3)] for name, x, y in sets
        },
        "hardware": measure.hardware(),
        "versions": measure.versions("torch", "scikit-learn", "torchmetrics"),
        "load_before": round(load, 2),
        "results": run(sets),
    }
    measure.write_record(RECORD, record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
