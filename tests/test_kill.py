"""Training is killed at random moments: run again, the same command ends as if undisturbed.

Two moments are tried by default; ``KILLS=10 python -m pytest tests/test_kill.py`` tries ten.
"""

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from lib.extraction.corpora import write_jsonl
from lib.extraction.records import read_record
from tests.extraction.toy import toy_corpus

ROOT = Path(__file__).parents[1]
KILLS = int(os.environ.get("KILLS", "2"))
TRAIN = (
    "-m lib.gplinker train --data data --encoder small --epochs 10 --patience 10 --batch-size 4 "
    "--ema 0.9 --lr 0.003 --head-lr 0.006 --quiet --out"
)


def start(folder, out):
    return subprocess.Popen(
        [sys.executable, *TRAIN.split(), out],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    return said


def wait(process, condition):
    """Return whether the condition held before the process ended."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.0002)
    return False


def written(out):
    """Return when the checkpoint was written."""
    path = out / "checkpoint.pt"
    return path.stat().st_mtime_ns if path.exists() else 0


def result(out):
    """Return all that a run leaves behind, but for times, the folder's name and git's state."""
    record = asdict(read_record(out / "record.json"))
    for name in ("wall_seconds", "command", "code"):
        del record[name]
    for epoch in record["epochs"]:
        del epoch["seconds"]
    files = {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name not in ("record.json", "README.md")
    }
    card = (out / "best" / "README.md").read_text("utf-8").replace(f"--out {out.name}", "--out …")
    files["card"] = [line for line in card.splitlines() if not line.startswith("Code: ")]
    return record, files


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kill")
    (folder / "data").mkdir()
    for split, examples in toy_corpus(train=60).splits().items():
        write_jsonl(folder / "data" / f"{split}.jsonl", examples)
    said = finish(start(folder, "undisturbed"))
    record, files = result(folder / "undisturbed")
    assert len(record["epochs"]) == 10
    curve = [epoch["dev"]["f1"] for epoch in record["epochs"]]
    assert max(curve) > 0.5  # something has been learnt
    assert len(set(curve)) > 3  # and kept several times
    return folder, said, record, files


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_a_random_moment_it_ends_as_if_undisturbed(undisturbed, number):
    """Even numbers: any moment of any epoch but the last. Odd ones: while files are written."""
    folder, said, record, files = undisturbed
    chance = random.Random()
    out = folder / f"run{number}"
    process = start(folder, out.name)
    assert wait(process, out.exists)
    epoch = time.perf_counter()
    seconds = 1.0
    for _ in range(chance.randrange(0, 8)):  # as the machine may be busy, its own epochs are timed
        before = written(out)
        assert wait(process, lambda before=before: written(out) != before)
        seconds, epoch = time.perf_counter() - epoch, time.perf_counter()
    if number % 2 == 0:
        time.sleep(chance.uniform(0, seconds))
    else:
        assert wait(process, lambda: [p for p in out.glob(".*") if p.name != ".lock"])
        time.sleep(chance.uniform(0, 0.01))
    process.kill()
    process.communicate()
    assert process.returncode == -9
    left = sorted(path.name for path in out.iterdir())
    said_again = finish(start(folder, out.name))
    assert said_again.replace(out.name, "undisturbed") == said, left
    record_again, files_again = result(out)
    assert record_again == record, left
    assert files_again == files, left
    print(f"killed with {left} in the folder: the same end")


def test_a_second_run_in_the_folder_is_refused_and_disturbs_nothing(undisturbed):
    """The first is stopped, so that it surely lives when the second comes."""
    folder, said, record, files = undisturbed
    out = folder / "shared"
    first = start(folder, out.name)
    lock, checkpoint = out / ".lock", out / "checkpoint.pt"
    assert wait(first, lambda: checkpoint.exists() or (lock.exists() and lock.stat().st_size))
    first.send_signal(signal.SIGSTOP)
    before = sorted(out.iterdir())
    second = start(folder, out.name)
    refused, _ = second.communicate(timeout=900)
    assert second.returncode == 2
    assert f"Error: {out.name} is in use by process {first.pid} on " in refused
    assert refused.count("\n") == 1
    assert sorted(out.iterdir()) == before
    first.send_signal(signal.SIGCONT)
    assert finish(first).replace(out.name, "undisturbed") == said
    record_shared, files_shared = result(out)
    assert record_shared == record
    assert files_shared == files
