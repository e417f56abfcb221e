"""Training, resuming, evaluation and prediction on a GPU: in bf16 where it has that."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from lib.casrel import CasRel
from lib.casrel.__main__ import main as casrel
from lib.extraction.synthetic import synthetic_corpus
from lib.extraction.training import Settings, _run, evaluate, make_accelerator, predict, train
from lib.gplinker import GPLinker
from lib.gplinker.__main__ import main as gplinker

pytestmark = pytest.mark.cuda

DEVICE = "cuda"
COMMANDS = {GPLinker: gplinker, CasRel: casrel}
SIZES = {"train": 400, "dev": 30, "test": 30}
SETTINGS = Settings(epochs=8, patience=8, batch_size=8, lr=3e-3, head_lr=6e-3)


def new_model(kind, corpus):
    torch.manual_seed(0)
    texts = [example.text for example in corpus.train]
    return kind.create("small", corpus.relations, texts=texts, hidden_size=96, layers=1)


@pytest.fixture(scope="module")
def corpus():
    return synthetic_corpus(0, **SIZES)


@pytest.fixture(scope="module", params=COMMANDS)
def run(request, corpus, tmp_path_factory):
    """Return a kind of model, one trained on the GPU, its record and its folder."""
    model = new_model(request.param, corpus)
    out = tmp_path_factory.mktemp("cuda") / "run"
    return request.param, model, train(model, corpus, out, SETTINGS), out


def test_training_runs_on_the_gpu_and_learns(run):
    _, model, record, _ = run
    accelerator = make_accelerator()
    assert {parameter.device.type for parameter in model.parameters()} == {DEVICE}
    assert accelerator.device.type == DEVICE
    if DEVICE == "cuda":
        assert record.hardware["device"] == torch.cuda.get_device_name()
        half = torch.cuda.is_bf16_supported()
        assert record.hardware["precision"] == ("bf16" if half else "float32")
    losses = record.curve("train_loss")
    assert losses[-1] < losses[0] / 2
    assert set(record.scores) == {"dev", "test", "test_templates"}


def test_a_run_that_was_stopped_goes_on(run, corpus, tmp_path, monkeypatch):
    """Sums on a GPU come in any order, so the numbers are near those of one run, not the same."""
    kind, _, whole, _ = run
    one_epoch = _run._Run.one_epoch

    def stopped(self, *arguments):
        if len(self.epochs) == 2:
            raise KeyboardInterrupt
        one_epoch(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(_run._Run, "one_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(new_model(kind, corpus), corpus, tmp_path / "run", SETTINGS)
    again = new_model(kind, corpus)
    with torch.no_grad():  # what was saved must count, not what the model begins with
        for parameter in again.parameters():
            parameter.zero_()
    record = train(again, corpus, tmp_path / "run", SETTINGS)
    assert record.curve("train_loss") == pytest.approx(whole.curve("train_loss"), rel=0.1)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_bf16_is_near_float32(run, corpus):
    kind = run[0]
    model = new_model(kind, corpus).to(DEVICE).eval()
    items, _ = model.prepare(corpus.train[:8])
    batch = {name: value.to(DEVICE) for name, value in model.collate(items).items()}
    full = model(**batch)
    with torch.autocast(DEVICE, torch.bfloat16):
        half = model(**batch)
    half.backward()
    assert half.item() == pytest.approx(full.item(), rel=0.02)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_evaluation_and_prediction_agree_with_the_cpu(run, corpus):
    kind, model, record, out = run
    scores = evaluate(model, corpus.test)
    assert scores.f1 == pytest.approx(record.scores["test"]["f1"], abs=0.02)
    texts = [example.text for example in corpus.test]
    here = kind.load(out / "best")
    items, _ = here.prepare(corpus.test)
    on_cpu = [set(found) for found in here.extract(items)]
    on_gpu = [{triple for triple, _ in found} for found in predict(model, texts)]
    total = sum(map(len, on_cpu))
    assert total > 0
    # What stands at the threshold may fall to either side of it in bf16.
    assert sum(len(a ^ b) for a, b in zip(on_cpu, on_gpu, strict=True)) <= 0.1 * total


def test_the_commands_run(run, corpus, tmp_path):
    kind, _, record, out = run
    (tmp_path / "in.txt").write_text("\n".join(example.text for example in corpus.test))
    words = ["predict", "--model", out, "--input", tmp_path / "in.txt", "--quiet"]
    result = CliRunner().invoke(COMMANDS[kind], list(map(str, words)))
    assert (result.exit_code, result.stderr) == (0, "")
    assert len([json.loads(line) for line in result.stdout.splitlines()]) == SIZES["test"]
    assert Path(out / "record.json").is_file()
    assert record.wall_seconds > 0
