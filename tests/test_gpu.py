"""`make gpu`: says why it cannot run; the tests that it runs are marked, and skipped elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools import gpu

ROOT = Path(__file__).parents[1]


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
