"""The library reference: every public name stands on its page, and its training loops train."""

import importlib
import re
import typing
from pathlib import Path

import pytest
import torch

import lib.check

PAGES = Path(__file__).resolve().parents[1] / "book" / "api"
LOSSES = ("softmax", "zlpr", "soft_zlpr", "exact", "emo", "divergence", "global_pointer")
LOOPS = (*LOSSES, "casrel", "gplinker")
DIRECTIVE = re.compile(r"^\.\. auto(function|class|data):: lib\.(\w+)\.(\w+)$", re.MULTILINE)


def read(name: str) -> str:
    return (PAGES / f"{name}.md").read_text("utf-8")


@pytest.mark.parametrize("name", [*LOSSES, "check"])
def test_every_public_name_stands_on_its_page_functions_first(name):
    found = DIRECTIVE.findall(read(name))
    assert {package for _, package, _ in found} == {name}
    module = importlib.import_module(f"lib.{name}")
    assert sorted(public for _, _, public in found) == sorted(module.__all__)
    kinds = [kind for kind, _, _ in found]
    assert kinds == sorted(kinds, key=["function", "class", "data"].index)
    for kind, _, public in found:
        value = getattr(module, public)
        expected = "class" if isinstance(value, type) else "function"
        assert kind == ("data" if typing.get_origin(value) else expected)


def test_exercises_that_answer_stand_in_the_chapters_two_in_each():
    chapters = sorted(PAGES.parent.glob("0*/index.md"))
    called = [
        set(re.findall(r"^check\.(\w+)\(", page.read_text("utf-8"), re.MULTILINE))
        for page in chapters
    ]
    assert [len(names) >= 2 for names in called] == [True] * 9
    assert sorted(set().union(*called)) == sorted(set(lib.check.__all__) - {"Report"})


@pytest.mark.parametrize("name", LOOPS)
def test_a_training_loop_trains(name, monkeypatch):
    (code,) = re.findall(r"^```python\n(.*?)^```", read(name), re.MULTILINE | re.DOTALL)
    losses = []
    backward = torch.Tensor.backward

    def recorded(self, *arguments, **options):
        losses.append(self.item())
        backward(self, *arguments, **options)

    monkeypatch.setattr(torch.Tensor, "backward", recorded)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(compile(code, f"{name}.md", "exec"), names)
    assert len(losses) == 60
    assert max(losses[-5:]) < min(losses[20:25])  # EXACT's first steps are of another loss
    # It is this package's functions that the loop shows.
    assert f"from lib.{name} import" in code
