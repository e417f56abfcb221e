"""Train the small model that the book ships, from generated sentences alone.

    python -m experiments.gplinker_small

Writes ``book/data/gplinker-small``, a folder as `GPLinker.save` makes it, and its run record
``book/runs/gplinker-small.json``. Sizes are chosen so that the folder stays below 2 MB.
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from lib.extraction.corpora import load_corpus
from lib.extraction.training import Settings, set_seed, train
from lib.gplinker import GPLinker

BOOK = Path(__file__).resolve().parents[1] / "book"
OPTIONS: dict[str, Any] = {"hidden_size": 96, "layers": 2, "attention_heads": 4, "head_size": 32}
SETTINGS = Settings(epochs=20, batch_size=8, lr=1e-3, head_lr=2e-3, patience=20)


def main() -> None:
    """Train, and put model and record where the book reads them."""
    torch.set_num_threads(1)
    corpus = load_corpus("synthetic")
    set_seed(SETTINGS.seed)
    texts = [example.text for example in corpus.train]
    model = GPLinker.create("small", corpus.relations, texts=texts, **OPTIONS)
    with TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        train(
            model,
            corpus,
            out,
            SETTINGS,
            options={"encoder": "small", **OPTIONS},
            command="make runs RUN=gplinker_small",
            progress=True,
        )
        shutil.copytree(out / "best", BOOK / "data" / "gplinker-small", dirs_exist_ok=True)
        shutil.copy(out / "record.json", BOOK / "runs" / "gplinker-small.json")


if __name__ == "__main__":
    main()
