"""What a reader can get wrong ends in one line that names it: with the commands of both models."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from transformers import RobertaConfig, RobertaModel

from lib.casrel import CasRel
from lib.casrel.__main__ import main as casrel
from lib.extraction.encoders import HuggingFaceEncoder
from lib.gplinker import GPLinker
from lib.gplinker.__main__ import main as gplinker
from tests.test_gplinker import bert_files

MODELS = {"gplinker": (GPLinker, gplinker), "casrel": (CasRel, casrel)}
TINY = {"hidden_size": 16, "layers": 1, "attention_heads": 2}


def refused(main, *arguments, text="Ada wrote Notes"):
    """Return the one line that a call says."""
    result = CliRunner().invoke(main, [str(word) for word in arguments], input=text)
    assert result.exit_code == 2, (result.output, result.exception)
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("Error: ")
    return line


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """Return the commands of a model and a folder that holds one of its kind."""
    kind, main = MODELS[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "model"
    kind.create("small", ("wrote",), texts=["Ada wrote Notes"], min_count=1, **TINY).save(folder)
    return main, folder


def without(name):
    return lambda config: {key: value for key, value in config.items() if key != name}


def option(where, name, value):
    return lambda config: config | {where: config[where] | {name: value}}


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (option("options", "depth", 3), ("options: unknown option 'depth'; known are",)),
        (
            option("encoder", "depth", 3),
            ("encoder: unknown option 'depth'; known are",),
        ),
        (option("options", "freeze_embeddings", "no"), ("freeze_embeddings must be", "got 'no'")),
        (option("encoder", "layers", 1.5), ("layers must be", "got 1.5")),
        (option("encoder", "layers", True), ("layers must be", "got True")),
        (option("encoder", "layers", 0), ("layers: expected at least 1, got 0",)),
        (option("encoder", "kind", "big"), ("kind must be one of transformers, small, got 'big'",)),
        (option("encoder", "kind", ["small"]), ("kind must be one of", "got ['small']")),
        (lambda config: config | {"encoder": {}}, ("kind must be one of", "got None")),
        (lambda config: config | {"encoder": "small"}, ("encoder must be a JSON object",)),
        (without("encoder"), ("encoder must be a JSON object, got None",)),
        (without("options"), ("options must be a JSON object, got None",)),
        (without("relations"), ("relations must be a JSON list, got None",)),
        (lambda config: config | {"relations": []}, ("relations: expected at least one name",)),
        (lambda config: config | {"relations": [3]}, ("relations must be strings, got 3",)),
        (without("dtype"), ("dtype must be one of float64,", "got None")),
        (lambda config: config | {"dtype": "nn"}, ("dtype must be one of", "got 'nn'")),
    ],
)
def test_a_wrong_option_of_a_saved_model(saved, tmp_path, change, parts):
    main, folder = saved
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    line = refused(main, "predict", "--model", tmp_path / "model")
    for part in (f"{path}: ", *parts):
        assert part in line


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("config.json", b"[" * 100_000, ("config.json: JSON that is nested too deeply",)),
        ("config.json", b"{\xff", ("config.json: not UTF-8",)),
        ("encoder/tokenizer.json", b"{", ("tokenizer.json holds no encoder that can be read",)),
        ("encoder/tokenizer.json", b"{}", ("tokenizer.json holds no encoder that can be read",)),
        ("encoder/tokenizer.json", None, ("tokenizer.json holds no encoder that can be read",)),
        ("model.safetensors", b"x", ("model.safetensors: does not fit config.json",)),
    ],
)
def test_a_broken_file_of_a_saved_model(saved, tmp_path, name, content, parts):
    main, folder = saved
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / name
    path.unlink() if content is None else path.write_bytes(content)
    line = refused(main, "predict", "--model", tmp_path / "model")
    for part in parts:
        assert part in line


def test_an_encoder_that_is_nowhere(tmp_path):
    """A name with two slashes is none that the hub could have, so nothing is asked for."""
    (tmp_path / "own.jsonl").write_text(ROW + ROW)
    run = ("--data", tmp_path / "own.jsonl", "--out", tmp_path / "run", "--quiet")
    line = refused(gplinker, "train", *run, "--encoder", "models/none/here")
    assert "encoder: no such folder: 'models/none/here'; looked on the Hugging Face hub" in line
    (tmp_path / "empty").mkdir()
    line = refused(gplinker, "train", *run, "--encoder", tmp_path / "empty")
    assert f"encoder: the folder '{tmp_path / 'empty'}' holds no encoder that can be read" in line
    assert not (tmp_path / "run").exists()


ROW = (
    '{"text": "Ada wrote Notes", "triples": [{"subject": "Ada", "relation": "wrote", '
    '"object": "Notes"}]}\n'
)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"\xff\xfe"])
def test_a_broken_file_of_an_encoder(tmp_path, name, content):
    bert_files(tmp_path / "bert")
    (tmp_path / "bert" / name).write_bytes(content)
    (tmp_path / "own.jsonl").write_text(ROW + ROW)
    run = ("--data", tmp_path / "own.jsonl", "--out", tmp_path / "run", "--quiet")
    line = refused(gplinker, "train", *run, "--encoder", tmp_path / "bert")
    assert f"the folder '{tmp_path / 'bert'}' holds no encoder that can be read (" in line


def test_positions_of_roberta_begin_behind_padding(tmp_path):
    """Its table of 48 rows has 46 positions; a longer text was an error of the index."""
    bert_files(tmp_path / "roberta")
    torch.manual_seed(0)
    config = RobertaConfig(
        **{"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 8},
        **{"num_attention_heads": 2, "max_position_embeddings": 48, "pad_token_id": 1},
    )
    RobertaModel(config).save_pretrained(tmp_path / "roberta")
    path = tmp_path / "roberta" / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"model_max_length": 40', '"model_max_length": 1000'))
    (tmp_path / "own.jsonl").write_text(ROW + ROW)
    run = ("--data", tmp_path / "own.jsonl", "--out", tmp_path / "run", "--quiet")
    encoder = ("--encoder", tmp_path / "roberta", "--max-length")
    line = refused(gplinker, "train", *run, *encoder, 47)
    assert "max_length: expected 3 to 46" in line
    assert "got 47 (--max-length)" in line
    made = HuggingFaceEncoder.create(str(tmp_path / "roberta"), max_length=46)
    (tokens,) = made.tokenise(["Ada " * 100])
    before, after = tokens.special
    tokens = tokens.part(0, 46 - before - after)
    inputs = {name: torch.tensor([values]) for name, values in tokens.inputs.items()}
    states = made(**inputs, attention_mask=torch.ones(1, 46))
    assert states.shape == (1, 46, 16)
    assert HuggingFaceEncoder.create(str(tmp_path / "roberta")).max_length == 46


def test_nothing_to_learn_and_nowhere_to_write(saved, tmp_path):
    main, folder = saved
    (tmp_path / "own.jsonl").write_text('{"text": "Nothing.", "triples": []}\n' * 3)
    run = ("--encoder", "small", "--out", tmp_path / "run")
    line = refused(main, "train", "--data", tmp_path / "own.jsonl", *run)
    assert (
        "own: none of the 3 training sentences has a triple, so there is nothing to learn" in line
    )
    line = refused(main, "train", "--data", tmp_path / "owm.jsonl", *run)
    assert line == f"Error: no such file or folder: '{tmp_path / 'owm.jsonl'}'"
    line = refused(main, "predict", "--model", folder, "--output", tmp_path / "none" / "out.jsonl")
    assert line == f"Error: --output: no such folder: '{tmp_path / 'none'}'"
    with pytest.raises(FileNotFoundError, match=r"no such folder: .*none', to put 'model' in"):
        GPLinker.create("small", ("r",), texts=["Ada"], min_count=1, **TINY).save(
            tmp_path / "none" / "model"
        )
    assert not (tmp_path / "run").exists()


def test_weights_of_another_shape_are_named(saved, tmp_path):
    main, folder = saved
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    save_file({name: value[:1].clone() for name, value in load_file(path).items()}, path)
    line = refused(main, "predict", "--model", tmp_path / "model")
    assert f"{path}: does not fit config.json" in line
