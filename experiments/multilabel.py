"""Bibtex and Delicious with their published splits, and figures of many labels.

The files are those of the Mulan library: ``bibtex-train.arff``, ``bibtex-test.arff``,
``bibtex.xml`` and the same of ``delicious``, or each packed by ``xz``. They state no licence
and are not part of this project: a reader gives the folder that holds them.
"""

import hashlib
import lzma
import re
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import torch
from torch import Tensor

__all__ = [
    "Part",
    "Published",
    "chosen_threshold",
    "f1_scores",
    "load",
    "precision_at",
    "read_arff",
]


class Part(NamedTuple):
    """Samples: the features that are 1, one after the other, where each begins, and labels."""

    features: Tensor  # (all of them,) int64
    starts: Tensor  # (N,) int64
    labels: Tensor  # (N, C) float32

    def take(self, rows: Tensor) -> "Part":
        """Return some of the samples."""
        ends = torch.cat([self.starts[1:], self.starts.new_tensor([len(self.features)])])
        kept = [self.features[self.starts[row] : ends[row]] for row in rows.tolist()]
        lengths = torch.tensor([len(one) for one in kept], dtype=torch.int64)
        return Part(torch.cat(kept), lengths.cumsum(0) - lengths, self.labels[rows])


class Published(NamedTuple):
    """A data set with the split that comes with it."""

    train: Part
    test: Part
    features: int
    digests: dict[str, str]  # of the files, unpacked


def read_text(folder: Path, name: str) -> tuple[str, str]:
    """Return a file's text and the digest of its bytes; packed or not."""
    path, packed = folder / name, folder / f"{name}.xz"
    if path.is_file():
        raw = path.read_bytes()
    elif packed.is_file():
        raw = lzma.decompress(packed.read_bytes())
    else:
        raise FileNotFoundError(f"folder must hold {name} or {name}.xz, got neither in {folder}")
    return raw.decode("utf-8"), hashlib.sha256(raw).hexdigest()


def read_arff(text: str) -> tuple[list[str], list[list[int]]]:
    """Read a sparse ARFF file of attributes that are 0 or 1: their names, and which are 1.

    Raises
    ------
    ValueError
        If an attribute or a sample is of another kind.
    """
    head, body = re.split(r"(?im)^@data\s*$", text, maxsplit=1)
    names = []
    for name, kind in re.findall(r"(?im)^@attribute\s+('[^']*'|\S+)\s+(.*?)\s*$", head):
        if re.sub(r"\s", "", kind) != "{0,1}":
            raise ValueError(f"an attribute must be {{0,1}}, got {kind!r} for {name}")
        names.append(name.strip("'"))
    rows = []
    for line in filter(None, map(str.strip, body.splitlines())):
        if not re.fullmatch(r"\{\s*(\d+ 1\s*(,\s*\d+ 1\s*)*)?\}", line):
            raise ValueError(f"a sample must be written as {{i 1,j 1}}, got {line[:60]!r}")
        rows.append([int(cell.split()[0]) for cell in line.strip("{} ").split(",") if cell])
    return names, rows


def load(folder: Path, name: str) -> Published:
    """Read a data set: the labels are the attributes that its XML file names, and stand last."""
    xml, digest = read_text(folder, f"{name}.xml")
    digests = {f"{name}.xml": digest}
    wanted = [element.get("name") for element in ElementTree.fromstring(xml)]
    parts = []
    for which in ("train", "test"):
        text, digests[f"{name}-{which}.arff"] = read_text(folder, f"{name}-{which}.arff")
        names, rows = read_arff(text)
        first = len(names) - len(wanted)
        if names[first:] != wanted:
            raise ValueError(f"the last attributes must be the labels of {name}.xml, in its order")
        labels = torch.zeros(len(rows), len(wanted))
        for row, cells in enumerate(rows):
            labels[row, [cell - first for cell in cells if cell >= first]] = 1
        features = [[cell for cell in cells if cell < first] for cells in rows]
        lengths = torch.tensor([len(cells) for cells in features], dtype=torch.int64)
        flat = torch.tensor([cell for cells in features for cell in cells], dtype=torch.int64)
        parts.append(Part(flat, lengths.cumsum(0) - lengths, labels))
    return Published(parts[0], parts[1], first, digests)


def chosen_threshold(scores: Tensor, labels: Tensor, *, depth: int = 10) -> tuple[float, float]:
    """Return the one threshold for all labels that is best for micro-F1, and that F1.

    Only the best cells are sorted, ``depth`` times as many as there are true labels: who guesses
    more has an F1 below ``2 / (1 + depth)``. If that could be the best, all are sorted.
    """
    flat, truth = scores.flatten(), labels.flatten()
    true = float(truth.sum(dtype=torch.float64))
    ordered, at = flat.topk(min(len(flat), int(depth * true) + 2))
    right = truth[at].cumsum(0, dtype=torch.float64)
    count = torch.arange(1, len(right) + 1, dtype=torch.float64)
    f1 = 2 * right / (count + true)
    f1[:-1][ordered[:-1] == ordered[1:]] = -1  # no threshold lies between equals
    if len(ordered) < len(flat):
        f1[-1] = -1  # what comes next is not known
    best = int(f1.argmax())
    if len(ordered) < len(flat) and float(f1[best]) <= 2 / (1 + depth):
        return chosen_threshold(scores, labels, depth=len(flat))
    below = ordered[min(best + 1, len(ordered) - 1)]
    return float((ordered[best] + below) / 2), float(f1[best])


def f1_scores(guess: Tensor, labels: Tensor) -> dict[str, float]:
    """Return F1 over all cells, the mean over labels, and the mean over samples; 0 for 0 / 0."""
    truth = labels > 0
    right = (guess & truth).double()
    both = guess.double() + truth.double()
    return {
        "micro": float(2 * right.sum() / both.sum().clamp(min=1)),
        "macro": float((2 * right.sum(0) / both.sum(0).clamp(min=1)).mean()),
        "sample": float((2 * right.sum(1) / both.sum(1).clamp(min=1)).mean()),
    }


def precision_at(scores: Tensor, labels: Tensor, most: int) -> float:
    """Return the share of true labels among the best few of each sample."""
    return float(labels.gather(1, scores.topk(most, 1).indices).double().mean())
