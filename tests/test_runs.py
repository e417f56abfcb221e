"""The stored runs of trained models: their commands are ones that the programs understand."""

import importlib
from pathlib import Path

import click
import pytest

from experiments import extraction
from lib.extraction.corpora.known import KNOWN


@pytest.mark.parametrize("name", extraction.names())
def test_a_run_s_command_is_understood(name: str) -> None:
    words = extraction.command(name, 7, Path("out"), "data", "encoder")
    module = words[words.index("-m") + 1]
    program = importlib.import_module(f"{module}.__main__").main
    train = program.commands["train"]
    with click.Context(train) as context:
        train.parse_args(context, words[words.index("train") + 1 :])
    assert context.params["seed"] == 7
    assert context.params["encoder"] in ("encoder", "small")
    assert name.split("-")[0] in KNOWN


def test_a_typed_name_that_is_no_run_is_refused() -> None:
    with pytest.raises(SystemExit):
        extraction.main(["conll04-nothing"])
