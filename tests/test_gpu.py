"""`make gpu`: says why it cannot run; the tests that it runs are marked, and skipped elsewhere."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nbclient import NotebookClient

from lib.extraction.synthetic import synthetic_corpus
from lib.gplinker import GPLinker
from tests.fake_cuda import OnDevice, fake_cuda
from tools import gpu, notebooks

ROOT = Path(__file__).parents[1]
CHAPTER = ROOT / "book" / "09_gplinker" / "index.md"


def test_without_a_gpu_it_says_so_and_fails(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 2
    said = capsys.readouterr().err
    assert said.startswith(f"no CUDA device: PyTorch {torch.__version__} sees none")
    assert said.count("\n") == 1


def test_with_one_it_runs_the_marked_tests(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(subprocess, "call", lambda words: asked.append(words) or 1)
    assert gpu.main() == 1  # as pytest says
    assert asked[0][:5] == [sys.executable, "-m", "pytest", "-m", "cuda"]
    assert capsys.readouterr().out == f"a GPU, PyTorch {torch.__version__}\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs them")
def test_marked_tests_are_skipped_with_their_reason():
    files = [
        str(path)
        for path in (ROOT / "tests").rglob("test_*.py")
        if "mark.cuda" in path.read_text("utf-8")
    ]
    files.remove(str(Path(__file__)))
    assert len(files) >= 5
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "cuda", "-rs", "-q"]
    done = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "no CUDA device" in done.stdout
    assert " passed" not in done.stdout


def assigned(page, name):
    """Return a constant that a page assigns."""
    cells = [cell for cell in notebooks.read_source(page).cells if cell.cell_type == "code"]
    for node in (node for cell in cells for node in ast.parse(cell.source).body):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise LookupError(name)


@pytest.fixture
def bf16(monkeypatch):
    """Let autocast work for CUDA tensors where there is no CUDA."""
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    return torch.autocast("cuda", torch.bfloat16)


def test_a_training_step_of_the_last_chapter_runs_on_fake_cuda_tensors(bf16):
    """In bf16 under autocast; the loss is float32. A tensor left on the CPU is an error."""
    corpus = synthetic_corpus(0, train=16, dev=4, test=4)
    texts = [example.text for example in corpus.train]
    options = assigned(CHAPTER, "OPTIONS")
    model = GPLinker.create("small", corpus.relations, texts=texts, **options)
    items, _ = model.prepare(corpus.train)
    batch = model.collate(items)
    multiplied = []
    model.head_links.projection.register_forward_hook(
        lambda module, inputs, output: multiplied.append(output.dtype)
    )
    with fake_cuda() as fake, bf16:
        placed = OnDevice(model, fake)
        moved = {name: fake(value) for name, value in batch.items()}
        loss = placed(lambda module: module(**moved))
        assert (loss.device.type, loss.dtype, loss.shape) == ("cuda", torch.float32, ())
        assert multiplied == [torch.bfloat16]
        # No gradients are recorded on fake tensors; the step takes any.
        weights = list(placed.state.values())
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        torch.optim.AdamW(weights, fused=True).step()
        with pytest.raises(ValueError, match="device"):
            placed(lambda module: module(**moved | {"cells": batch["cells"]}))


@pytest.mark.cuda
def test_the_last_chapter_trains_on_the_gpu():
    page = notebooks.read_source(CHAPTER)
    resources = {"metadata": {"path": str(CHAPTER.parent)}}
    NotebookClient(page, timeout=600, kernel_name="python3", resources=resources).execute()
    said = [
        output.text
        for cell in page.cells
        if "device" in cell.metadata.get("tags", [])
        for output in cell.outputs
        if output.get("name") == "stdout"
    ]
    assert "device cuda, weights torch.float32" in said[0]
    assert "trained on cuda, weights torch.float32" in said[1]
