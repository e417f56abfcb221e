"""What the page on scaling and serving tells a reader to type is run, with the small encoder."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks import extraction
from lib.extraction.corpora import read_jsonl
from lib.extraction.found import FoundTriple
from lib.extraction.records import read_record
from lib.gplinker.__main__ import main

ROOT = Path(__file__).parents[1]
OWN = (ROOT / "book" / "howto_own_data.md").read_text("utf-8")
SCALE = (ROOT / "book" / "howto_scale.md").read_text("utf-8")
LAST = (ROOT / "book" / "09_gplinker" / "index.md").read_text("utf-8")
TINY_RUN = {"--epochs 60": "--epochs 2", "models/all-MiniLM-L6-v2": "small"}


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with the reader's files of the page on own data, and a model."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.jsonl").write_text(blocks(OWN, "json")[0], "utf-8")
    (folder / "new.txt").write_text(blocks(OWN, "text")[0], "utf-8")
    words = ["train", "--encoder", "small", "--epochs", "2", "--quiet", "--data"]
    paths = [str(folder / "own.jsonl"), "--out", str(folder / "runs" / "own")]
    result = CliRunner().invoke(main, [*words, *paths])
    assert result.exit_code == 0, result.output
    return folder


def test_the_launched_commands_run(folder):
    commands = blocks(SCALE, "console")
    for command in commands:
        for full, tiny in TINY_RUN.items():
            command = command.replace(full, tiny)
        launcher, launch, *words = shlex.split(command.removeprefix("$ ").replace("\\\n", " "))
        assert (launcher, launch) == ("accelerate", "launch")
        done = subprocess.run(
            [sys.executable, "-m", "accelerate.commands.launch", *words],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
                "MASTER_PORT": "0",  # any that is free
            },
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    assert len(commands) == 3
    two = read_record(folder / "runs" / "two" / "record.json")
    assert (two.hardware["processes"], two.hardware["precision"]) == (2, "float32")
    assert read_record(folder / "runs" / "bf16" / "record.json").hardware["precision"] == "bf16"
    texts = blocks(OWN, "text")[0].splitlines()
    assert [example.text for example in read_jsonl(folder / "found.jsonl")] == texts


def test_the_python_of_the_page_runs_and_the_export_is_equal(folder, monkeypatch):
    """The last block compares; here it is seen to fail for a model with other weights."""
    monkeypatch.chdir(folder)
    serve, *export = blocks(SCALE, "python")
    assert len(export) == 2
    names = {}
    exec(serve, names)
    assert len(names["found"]) == 2
    for found in names["found"]:
        for triple in found:
            assert isinstance(triple, FoundTriple)
            assert 0.5 < triple.confidence < 1
    for block in export:
        exec(block, names)
    assert (folder / "own.pt2").stat().st_size > 1000
    with torch.no_grad():
        names["model"].entities.projection.weight.add_(0.1)
    with pytest.raises(AssertionError, match="not close"):
        exec(export[1], names)


def test_the_snippet_of_the_page_before_runs(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    (code,) = blocks(OWN, "python")
    exec(code, {})
    assert "Traceback" not in capsys.readouterr().err


def test_what_the_last_chapter_trains_in_earnest_runs(folder, monkeypatch):
    """The block with a file for the corpus, the small encoder and few epochs; commands parsed."""
    monkeypatch.chdir(folder)
    (code,) = blocks(LAST, "python")
    encoder = "sentence-transformers/all-MiniLM-L6-v2"
    for full, tiny in (('"webnlg"', '"own.jsonl"'), (encoder, "small"), ("=12", "=2")):
        assert code.count(full) == 1
        code = code.replace(full, tiny)
    exec(code, {})
    assert len(read_record(folder / "runs" / "earnest" / "record.json").epochs) == 2
    (shown,) = blocks(LAST, "console")
    commands = shown.replace("\\\n", " ").splitlines()
    assert len(commands) == 2
    for command in commands:
        _, _, words = command.partition(" -m lib.gplinker ")
        name, *options = shlex.split(words)
        main.commands[name].make_context(name, options)


def test_the_options_of_the_tuning_table_exist():
    result = CliRunner().invoke(main, ["train", "--help"])
    table = SCALE.split("## What a practitioner tunes")[1].split("```{code-cell}")[0]
    named = re.findall(r"`(--[a-z-]+)`", table)
    assert len(named) >= 9
    for option in named:
        assert f"{option} " in result.stdout, option


def test_the_benchmark_counts_sentences(tmp_path, capsys):
    out = tmp_path / "record.json"
    assert extraction.main(["--out", str(out), "--sentences", "3", "--rounds", "1"]) == 0
    record = json.loads(out.read_text())
    assert record["sentences"] == 3
    assert [int(size) for size in record["batch_sizes"]] == list(extraction.SIZES)
    for times in record["batch_sizes"].values():
        per_second = pytest.approx(3000 / times["cpu_ms"], abs=0.1)
        assert times["sentences_per_second"] == per_second
    assert capsys.readouterr().out.count("sentences_per_second") == len(extraction.SIZES)
