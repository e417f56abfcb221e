"""The stored notebooks are what their text gives, and nbval has something to compare."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch

import conftest
from tools import notebooks

ROOT = Path(__file__).resolve().parents[1]

NOTEBOOKS = sorted(ROOT.glob("book/**/*.ipynb"))


def cells(path):
    return nbformat.read(path, as_version=4).cells


def test_there_are_notebooks():
    assert [path.with_suffix(".ipynb") for path in notebooks.sources()] == NOTEBOOKS != []


@pytest.mark.parametrize("path", notebooks.sources(), ids=notebooks.name)
def test_notebook_agrees_with_its_text_and_was_run(path):
    assert notebooks.differences(path) == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=notebooks.name)
def test_outputs_name_no_place_on_the_author_s_machine(path):
    for cell in cells(path):
        text = json.dumps(cell.get("outputs", []))
        assert str(ROOT) not in text, cell.source
        assert not re.search(r"(/home/|/root/|/tmp/|/Users/|site-packages)", text), cell.source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=notebooks.name)
def test_no_cell_is_left_out_of_the_comparison(path):
    for cell in cells(path):
        assert not {"nbval-ignore-output", "nbval-skip"} & set(cell.metadata.get("tags", []))


@pytest.mark.parametrize("cuda", [False, True])
def test_cells_of_the_device_are_compared_where_it_is_the_cpu(cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    collected = [
        SimpleNamespace(cell=cell, options={"check": True}, get_closest_marker=lambda name: None)
        for cell in cells(ROOT / "book" / "09_gplinker" / "index.ipynb")
    ]
    conftest.pytest_collection_modifyitems(collected)
    left = [item for item in collected if not item.options["check"]]
    tagged = [item for item in collected if "device" in item.cell.metadata.get("tags", [])]
    assert 3 < len(tagged) < len(collected) / 2
    assert left == (tagged if cuda else [])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=notebooks.name)
def test_figures_have_alternative_text(path):
    for cell in cells(path):
        for output in cell.get("outputs", []):
            if any(mime.startswith("image/") for mime in output.get("data", {})):
                assert cell.metadata.get("mystnb", {}).get("image", {}).get("alt"), cell.source


def test_a_changed_text_and_a_changed_count_are_found(tmp_path):
    text = (
        "---\njupytext: {text_representation: {extension: .md, format_name: myst}}\n"
        "kernelspec: {display_name: Python 3, language: python, name: python3}\n---\n\n"
        "# T\n\n```{code-cell} python\nprint(1 + 1)\n```\n"
    )
    page = tmp_path / "page.md"
    page.write_text(text, "utf-8")
    assert notebooks.differences(page) == ["page.ipynb is missing: run make notebooks"]
    notebooks.run(page)
    assert notebooks.differences(page) == []
    made = page.with_suffix(".ipynb")
    first = made.read_bytes()
    notebooks.run(page)
    assert made.read_bytes() == first, "a second run writes the same bytes"

    page.write_text(text.replace("# T", "# U"), "utf-8")
    assert notebooks.differences(page) == ["page.ipynb: cell 0 differs from page.md"]
    page.write_text(text, "utf-8")
    made.write_text(made.read_text("utf-8").replace('"execution_count": 1', '"execution_count": 2'))
    (line,) = notebooks.differences(page)
    assert "cell 1 was not run in order (execution count 2, expected 1)" in line
