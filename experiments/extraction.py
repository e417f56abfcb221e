"""Models trained on published corpora, three seeds each: the records that chapter 9 reads.

``make runs RUN=webnlg-gplinker`` trains one model with each seed and writes
``book/runs/webnlg-gplinker-0.json`` and so on, run records of `lib.extraction.records`, and
``book/runs/measured-webnlg-gplinker.json``, the time that decoding takes and the memory of
training. It may be interrupted: the same command continues. Corpora are downloaded to the user's
cache, if they may be, or read from a folder (``--data-folder data`` holds ``data/webnlg`` and so
on). The best epoch is chosen on dev; test is looked at once, at the end.
"""

import argparse
import importlib
import json
import resource
import shutil
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.measure import hardware, versions, write_record
from lib.extraction.corpora import load_corpus
from lib.extraction.training import predict

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "book" / "runs"
ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
SEEDS = (0, 1, 2)

ENCODING = "--lr 3e-4 --batch-size 8 --ema 0.995"
SCRATCH = "--encoder small --batch-size 8 --ema 0.995"
# Options for all models of a corpus. Rates, epochs and average were chosen on the dev split of
# CoNLL04 and kept for the others; that its few sentences should leave the embeddings alone, with
# three seeds. Its entities are names, and the encoder reads lower case only: word shapes tell it.
# No Chinese encoder of this size is at hand: DuIE is read by characters from scratch, as a
# demonstration.
CORPORA = {
    "conll04": f"--freeze-embeddings --word-shapes {ENCODING} --epochs 12 --patience 20",
    "webnlg": f"{ENCODING} --epochs 12 --patience 20",
    "webnlg_star": f"{ENCODING} --epochs 12 --patience 20",
    "duie": f"{SCRATCH} --epochs 20 --patience 20",
}
MODELS = {
    "gplinker": ("lib.gplinker", "--pointer standard --head-lr 1e-3"),
    "gplinker_efficient": ("lib.gplinker", "--pointer efficient --head-lr 2e-3"),
    "casrel": ("lib.casrel", "--head-lr 1e-3"),
}
# R-Drop fills the tables and takes two passes: for the corpus with few relations and little text.
ALSO = dict.fromkeys(("conll04-gplinker", "conll04-gplinker_efficient"), "--r-drop 4")


def names() -> list[str]:
    """Return the runs there are."""
    return [f"{data}-{model}" for data, model in product(CORPORA, MODELS)]


def command(name: str, seed: int, out: Path, data: str, encoder: str) -> list[str]:
    """Return the command that trains one model."""
    corpus, model = name.split("-")
    module, options = MODELS[model]
    words = ["accelerate", "launch", "--num_processes", "1", "--num_machines", "1"]
    words += ["--dynamo_backend", "no", "--mixed_precision", "bf16", "-m", module, "train"]
    words += ["--data", data, "--out", str(out), "--seed", str(seed), *options.split()]
    words += f"{CORPORA[corpus]} {ALSO.get(name, '')}".split()
    return words if "--encoder" in words else [*words, "--encoder", encoder]


def measured(record: dict[str, Any], out: Path, name: str, data: str) -> dict[str, Any]:
    """Time decoding of the test split."""
    module, _ = MODELS[name.split("-")[1]]
    kind = getattr(importlib.import_module(module), record["model"]["class"])
    corpus = load_corpus(data)
    texts = [example.text for example in corpus.test or corpus.dev]
    model = kind.load(out / "best")
    predict(model, texts[:32])
    start, spent = time.perf_counter(), time.process_time()
    predict(model, texts)
    wall, cpu = time.perf_counter() - start, time.process_time() - spent
    return {
        "decoded_sentences": len(texts),
        "decode_wall_seconds": round(wall, 3),
        "decode_cpu_seconds": round(cpu, 3),
    }


def note(name: str, seed: int, costs: dict[str, Any]) -> None:
    """Add one seed's costs to what is known of a run."""
    target = RUNS / f"measured-{name}.json"
    known: dict[str, Any] = {}
    if target.exists():
        known = json.loads(target.read_text("utf-8"))["seeds"]
    entry = {**known.get(str(seed), {}), **costs}
    content = {
        "command": f"make runs RUN={name}",
        "hardware": hardware(),
        "versions": versions("torch"),
        "seeds": dict(sorted({**known, str(seed): entry}.items())),
    }
    write_record(target, content)


def main(arguments: list[str] | None = None) -> int:
    """Train with each seed, one after the other, and write the records."""
    parser = argparse.ArgumentParser(prog="python -m experiments", description=__doc__)
    parser.add_argument("name", choices=names(), metavar="NAME")
    parser.add_argument("--data-folder", type=Path, help="holds a folder per corpus")
    parser.add_argument("--encoder", default=ENCODER, help="name on the hub, or a folder")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options = parser.parse_args(arguments)
    corpus = options.name.split("-")[0]
    data = corpus if options.data_folder is None else f"{corpus}={options.data_folder / corpus}"
    for seed in options.seeds:
        out = Path("_build") / "runs" / f"{options.name}-{seed}"  # as the record will name it
        words = command(options.name, seed, out, data, options.encoder)
        program = str(Path(sys.executable).with_name(words[0]))
        out = ROOT / out
        finished = (out / "record.json").exists()
        subprocess.run([program, *words[1:]], check=True, cwd=ROOT)
        shutil.copy(out / "record.json", RUNS / f"{options.name}-{seed}.json")
        record = json.loads((out / "record.json").read_text("utf-8"))
        costs = measured(record, out, options.name, data)
        if not finished:
            # The largest of all processes that have ended; the training was one of them.
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            costs["training_peak_mib"] = round(peak / 1024, 1)
        note(options.name, seed, costs)
    return 0
