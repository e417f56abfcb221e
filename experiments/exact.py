"""Six losses on three small data sets, with clean labels and with 30 % of them wrong.

``python -m experiments.exact`` writes ``book/runs/exact-losses.json``. Every loss trains the same
models from the same starts for the same number of full-batch steps of Adam; its learning rate is
the one with the best accuracy on a part of the training data, whose labels are as noisy as the
rest; of equal ones the smallest. Test labels are clean. About 20 minutes on one core.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, multi_margin_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from benchmarks import measure
from lib.exact import exact_loss, expected_accuracy

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "book" / "runs" / "exact-losses.json"
SEEDS = range(5)
# Down to rates at which the steps end early: with wrong labels some losses ask for that.
RATES = (3e-4, 1e-3, 3e-3, 3e-2, 0.3)
STEPS = 300
WRONG = 0.3
BINS = 10


def softmax_of_target(logits: Tensor, targets: Tensor) -> Tensor:
    """Probability of the target by softmax."""
    return logits.softmax(-1).gather(-1, targets.unsqueeze(-1))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": cross_entropy,
    "hinge": multi_margin_loss,
    "1 - p": lambda s, y: (1 - softmax_of_target(s, y)).mean(),
    "GCE, q = 0.7": lambda s, y: ((1 - softmax_of_target(s, y) ** 0.7) / 0.7).mean(),
    "EXACT": exact_loss,
    "-log P": lambda s, y: exact_loss(s, y, log=True),
}
DATA = {
    "wine": (datasets.load_wine, "linear"),
    "breast cancer": (datasets.load_breast_cancer, "linear"),
    "digits": (datasets.load_digits, "linear"),
    "digits, hidden layer": (datasets.load_digits, "hidden"),
}


def load(name: str, seed: int, share: float) -> tuple[list[Tensor], list[Tensor], int]:
    """Return features and labels of the fit, validation and test parts, and how many classes."""
    bunch = DATA[name][0]()
    x, y = torch.tensor(bunch.data, dtype=torch.float64), torch.tensor(bunch.target)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    cuts = [int(0.55 * len(x)), int(0.7 * len(x))]
    parts = [order[: cuts[0]], order[cuts[0] : cuts[1]], order[cuts[1] :]]
    centre, scale = x[parts[0]].mean(0), x[parts[0]].std(0).clamp(min=1e-3)
    classes = int(y.max()) + 1
    flipped = torch.rand(len(y), generator=generator) < share
    shift = torch.randint(1, classes, y.shape, generator=generator)
    noisy = torch.where(flipped, (y + shift) % classes, y)
    xs = [(x[part] - centre) / scale for part in parts]
    return xs, [noisy[parts[0]], noisy[parts[1]], y[parts[2]]], classes


def network(kind: str, features: int, classes: int, seed: int) -> nn.Module:
    """Return a linear model or one with a hidden layer, from a fixed start."""
    torch.manual_seed(seed)
    if kind == "linear":
        return nn.Linear(features, classes, dtype=torch.float64)
    return nn.Sequential(
        nn.Linear(features, 64, dtype=torch.float64),
        nn.Tanh(),
        nn.Linear(64, classes, dtype=torch.float64),
    )


def chances(loss: str, logits: Tensor) -> Tensor:
    """Read probabilities of all classes as the loss means them."""
    if loss not in ("EXACT", "-log P"):
        return logits.softmax(-1)
    classes = logits.shape[-1]
    rows = logits.unsqueeze(1).expand(-1, classes, -1)
    return expected_accuracy(rows, torch.arange(classes).expand(len(logits), -1))


def run(data: str, loss: str, share: float, seed: int) -> dict[str, float]:
    """Train with each learning rate; measure the one that is best on the validation part."""
    xs, ys, classes = load(data, seed, share)
    best: dict[str, float] = {"valid": -1.0}
    for rate in RATES:
        model = network(DATA[data][1], xs[0].shape[1], classes, seed)
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        for _ in range(STEPS):
            optimizer.zero_grad()
            LOSSES[loss](model(xs[0]), ys[0]).backward()
            optimizer.step()
        with torch.no_grad():
            scores = [model(x) for x in xs]
            right = [
                float((s.argmax(1) == y).double().mean()) for s, y in zip(scores, ys, strict=True)
            ]
            if right[1] > best["valid"]:
                error = multiclass_calibration_error(
                    chances(loss, scores[2]), ys[2], num_classes=classes, n_bins=BINS
                )
                best = {"valid": right[1], "fit": right[0], "test": right[2], "rate": rate}
                best["ece"] = float(error)
    return best


def main(arguments: list[str] | None = None) -> int:
    """Run all and write the record."""
    parser = argparse.ArgumentParser(prog="python -m experiments.exact", description=__doc__)
    parser.add_argument("--out", type=Path, default=RECORD, help="where the record goes")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for data in DATA:
        for share in (0.0, WRONG):
            for loss in LOSSES:
                runs = [run(data, loss, share, seed) for seed in SEEDS]
                results.append({"data": data, "wrong": share, "loss": loss, "runs": runs})
                test = [100 * r["test"] for r in runs]
                edges = [sum(r["rate"] == edge for r in runs) for edge in (RATES[0], RATES[-1])]
                print(
                    f"{data:22} {share:.0%} wrong {loss:14} {mean(test):.2f} ± {stdev(test):.2f}; "
                    f"smallest rate {edges[0]} times of {len(runs)}, largest {edges[1]}",
                    flush=True,
                )
    record = {
        "command": "python -m experiments.exact",
        "what": f"{STEPS} full-batch steps of Adam, float64; learning rate of "
        f"{RATES} by validation accuracy; parts 55/15/30 %; "
        f"ECE with {BINS} bins, read by softmax, or as P for the last two",
        "seeds": list(SEEDS),
        "hardware": measure.hardware(),
        "versions": measure.versions("torch", "torchmetrics", "scikit-learn"),
        "results": results,
    }
    measure.write_record(options.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
