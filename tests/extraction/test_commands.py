"""The command line: what it does, and the one line it says when the user errs."""

import errno
import gzip
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lib.casrel.__main__ import main as casrel
from lib.extraction import commands
from lib.extraction.cards import model_card
from lib.extraction.commands import extractor_commands
from lib.extraction.corpora import read_jsonl, write_jsonl
from lib.extraction.inputs import Lines, in_chunks, read_inputs
from lib.extraction.records import read_record
from lib.extraction.thresholds import Decoding
from lib.extraction.training import Settings, predict
from lib.extraction.triples import Example, Span, Triple
from lib.gplinker.__main__ import main as gplinker
from tests.extraction.toy import Toy, main, sentence

ROOT = Path(__file__).parents[2]
FAST = ["--epochs", "5", "--batch-size", "4", "--lr", "0.05", "--head-lr", "0.05"]


def call(*arguments, **more):
    return CliRunner().invoke(main, [str(argument) for argument in arguments], **more)


def one_line(result, *parts):
    """Check that the call ended with one line of error that holds the parts."""
    assert result.exit_code == 2, (result.output, result.exception)
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    for part in parts:
        assert part in lines[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split, numbers in (("train", range(36)), ("dev", range(36, 48)), ("test", range(48, 60))):
        write_jsonl(folder / f"{split}.jsonl", [sentence(number) for number in numbers])
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "toy"
    result = call("train", "--data", data, "--encoder", "toy", "--out", out, *FAST)
    assert result.exit_code == 0, (result.output, result.exception)
    return out, result


# --- what it does ----------------------------------------------------------------------------


def test_train_writes_model_and_record_and_says_the_scores(trained, data):
    out, result = trained
    record = read_record(out / "record.json")
    assert record.command == (
        f"python -m tests.extraction.toy train --data {data.name} --encoder toy --out toy "
        "--epochs 5 --batch-size 4 --lr 0.05 --head-lr 0.05"
    )
    assert record.model["options"] == {"encoder": "toy"}
    assert record.settings == {
        **{field: getattr(Settings(), field) for field in record.settings},
        **{"epochs": 5, "batch_size": 4, "lr": 0.05, "head_lr": 0.05},
    }
    first, dev, test = result.stdout.splitlines()
    assert first == f"best epoch {record.best_epoch} of {len(record.epochs)}: {out / 'best'}"
    assert dev.startswith("dev: precision ")
    assert test.endswith(f"F1 {record.scores['test']['f1']:.4f}")
    assert f"epoch 1: loss {record.epochs[0]['train_loss']:.4f}" in result.stderr


def test_evaluate_tells_the_recorded_scores(trained, data):
    out, _ = trained
    record = read_record(out / "record.json")
    for folder in (out, out / "best"):
        result = call("evaluate", "--model", folder, "--data", data, "--split", "test")
        assert result.exit_code == 0, result.output
        micro = result.stdout.splitlines()[1].split()
        scores = record.scores["test"]
        assert micro[2:5] == [f"{scores[name]:.4f}" for name in ("precision", "recall", "f1")]


def test_evaluate_writes_what_it_counts_by_the_rule_asked_for(trained, data, tmp_path):
    # The model joins the first word to the last: Ada at 0 knows Ada at 8.
    out, _ = trained
    first, last, more = Span(0, 3), Span(8, 11), Span(4, 11)
    for number, (gold, right) in enumerate(
        {
            Triple(first, "knows", last): ("exact", "text", "partial"),
            Triple(last, "knows", last): ("text", "partial"),  # the same word elsewhere
            Triple(first, "knows", more): ("partial",),  # met Ada
            Triple(first, "spouse of", last): (),
        }.items()
    ):
        write_jsonl(tmp_path / "gold.jsonl", [Example("1", "Ada met Ada", (gold,))])
        for match in ("exact", "text", "partial"):
            file = tmp_path / f"{match}{number}.json"
            words = ["--data", tmp_path / "gold.jsonl", "--split", "gold", "--match", match]
            result = call("evaluate", "--model", out, *words, "--json", file)
            assert result.exit_code == 0, (result.output, result.exception)
            assert result.stdout.startswith(f"match: {match} ")
            report = json.loads(file.read_text())
            assert (report["match"], report["split"]) == (match, "gold")
            assert report["threshold"] == [0.0, 0.0]
            assert (report["tp"], report["predicted"], report["gold"]) == (match in right, 1, 1)

    recorded = read_record(out / "record.json").scores["test"]
    file = tmp_path / "test.json"
    result = call("evaluate", "--model", out, "--data", data, "--json", file)
    assert result.exit_code == 0, result.output
    assert {name: json.loads(file.read_text())[name] for name in recorded} == recorded

    nowhere = call("evaluate", "--model", out, "--data", data, "--json", tmp_path / "no" / "file")
    one_line(nowhere, "--json: no such folder")


def test_evaluate_writes_a_page_of_errors(trained, tmp_path):
    out, _ = trained
    ends = Span(0, 2), Span(7, 10)
    gold = tuple(Triple(ends[0], relation, ends[1]) for relation in ("knows", "author of"))
    write_jsonl(tmp_path / "gold.jsonl", [Example("one", "Bo met Ada", gold)])
    page = tmp_path / "errors.html"
    result = call("evaluate", "--model", out, "--data", tmp_path / "gold.jsonl", "--errors", page)
    assert result.exit_code == 0, (result.output, result.exception)
    text = page.read_text("utf-8")
    assert text.startswith("<!doctype html>")
    assert "1 of 1 texts have an error: 1 triples were missed, 0 found" in text
    (row,) = re.findall(r'<tr class="missed">.*', text)
    assert re.search(r'author of<td>Ada<td>ends 9.00, <span class="no">verb -\d', row)
    assert "Errors on gold, test" in text
    nowhere = call("evaluate", "--model", out, "--data", "x", "--errors", tmp_path / "no" / "file")
    one_line(nowhere, "--errors: no such folder")


def test_calibrate_says_what_it_chose_and_writes_it_only_when_told(trained, tmp_path):
    """Of a model whose scores are all lower than those that it was trained with."""
    out = tmp_path / "run"
    shutil.copytree(trained[0], out)
    write_jsonl(tmp_path / "dev.jsonl", map(sentence, range(200)))
    model = Toy.load(out)
    with torch.no_grad():
        model.head.bias -= 2.5
    model.save(out / "best")
    words = ["--model", out, "--data", tmp_path]
    plain = call("evaluate", *words, "--split", "dev").stdout

    said = call("calibrate", *words)
    assert said.exit_code == 0, (said.output, said.exception)
    assert said.stdout.startswith("threshold  precision  recall      F1\n")
    assert "gain in F1 on sentences that did not choose: " in said.stdout
    assert Toy.load(out).decoding == Decoding()
    written = call("calibrate", *words, "--write")
    assert written.stdout == said.stdout + f"written to {out / 'best'}\n"
    decoding = Toy.load(out).decoding
    assert decoding.threshold[0] < 0

    now = call("evaluate", *words, "--split", "dev")
    (chosen, _) = decoding.threshold
    assert now.stderr == f"threshold {chosen:g}, as calibrated\n"
    assert now.stdout != plain
    assert call("evaluate", *words, "--split", "dev", "--threshold", "0").stdout == plain
    both = call("evaluate", *words, "--split", "dev", "--threshold", f"{chosen!r},{chosen!r}")
    assert (both.stdout, both.stderr) == (now.stdout, "")

    (out / "checkpoint.pt").touch()
    one_line(call("calibrate", *words, "--write"), "the run in", "is not finished")
    assert call("calibrate", *words).stdout == said.stdout
    for wrong in ("much", "1,", "1,2,3"):
        one_line(call("evaluate", *words, "--threshold", wrong), "threshold must be", "got")


def test_predict_reads_text_and_json_and_writes_our_format(trained, tmp_path):
    out, _ = trained
    plain = call("predict", "--model", out, input="Bo met Ada\n\nnobody here\n")
    assert plain.exit_code == 0, plain.output
    first, second = map(json.loads, plain.stdout.splitlines())
    assert (first["id"], first["text"]) == ("1", "Bo met Ada")
    (triple,) = first["triples"]
    assert 0.5 < triple.pop("confidence") < 1
    assert triple == {
        "subject": {"text": "Bo", "start": 0, "end": 2},
        "relation": "knows",
        "object": {"text": "Ada", "start": 7, "end": 10},
    }
    assert second == {"id": "3", "text": "nobody here", "triples": []}

    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": "a", "text": "Bo met Ada", "triples": "not looked at"}\n')
    result = call("predict", "--model", out, "--input", source, "--output", target)
    assert (result.exit_code, result.stdout) == (0, "")
    (example,) = read_jsonl(target)
    assert (example.id, example.strings()) == ("a", (("Bo", "knows", "Ada"),))


def test_predict_writes_to_what_stands_at_output(trained, tmp_path):
    """A link, a pipe and a process substitution: none is replaced by a file."""
    source, kept, pipe = tmp_path / "in.txt", tmp_path / "kept", tmp_path / "pipe"
    source.write_text("Bo met Ada\n")
    wanted = call("predict", "--model", trained[0], "--input", source).stdout
    (tmp_path / "link").symlink_to(kept)
    os.mkfifo(pipe)
    through = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    for target in ("link", "pipe"):
        result = call(
            "predict", "--model", trained[0], "--input", source, "--output", tmp_path / target
        )
        assert result.exit_code == 0, result.output
    assert through.communicate(timeout=60)[0] == wanted
    assert kept.read_text() == wanted
    assert (tmp_path / "link").is_symlink()
    assert pipe.is_fifo()
    words = [sys.executable, "-m", "tests.extraction.toy", "predict", "--model", str(trained[0])]
    command = shlex.join([*words, "--input", str(source), "--output"])
    substituted = f"{command} >(cat > {shlex.quote(str(tmp_path / 'last'))}); wait $!"
    done = subprocess.run(
        ["bash", "-c", substituted],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "last").read_text() == wanted


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_output_is_utf_8_whatever_the_machine_would_choose(trained, tmp_path, encoding):
    """Texts, and a path in a message. A pipe on Windows has the code page of the machine."""
    missing = tmp_path / "無い 😀"
    program = "import sys; from tests.extraction.toy import main; main(sys.argv[1:])"
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    said = [
        subprocess.run(
            [sys.executable, "-c", program, "predict", "--model", str(model)],
            input="Bo met Ada 中😀\nAda wrote Bo\n".encode(),
            env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
            capture_output=True,
        )
        for model in (trained[0], missing)
    ]
    lines = said[0].stdout.decode("utf-8").split("\n")
    assert [json.loads(line)["text"] for line in lines[:2]] == ["Bo met Ada 中😀", "Ada wrote Bo"]
    assert lines[2:] == [""]
    assert said[1].returncode == 2
    assert str(missing) in said[1].stderr.decode("utf-8")


def test_what_else_a_line_holds_comes_back(trained):
    """The id as it was, other keys as they were; what cannot be written costs its line alone."""
    deep = "[" * 900 + "]" * 900
    given = [
        '{"id": 7, "text": "Bo met Ada", "source": {"page": 3.5, "ok": null}, "triples": "old"}',
        '{"text": "Bo met Ada", "note": "half \\ud83d, whole 😀"}',
        '{"id": "7", "text": "nobody", "n": 12345678901234567890}',
    ]
    result = call("predict", "--model", trained[0], input="\n".join(given))
    assert result.exit_code == 0, result.output
    first, second, third = map(json.loads, result.stdout.splitlines())
    assert list(first) == ["id", "text", "triples", "source"]
    assert (first["id"], first["source"]) == (7, {"page": 3.5, "ok": None})
    assert first["triples"][0]["relation"] == "knows"
    assert (second["id"], second["note"]) == ("2", "half \ud83d, whole 😀")
    assert third == {"id": "7", "text": "nobody", "triples": [], "n": 12345678901234567890}
    given.append(f'{{"text": "Bo met Ada", "deep": {deep}}}')
    result = call("predict", "--model", trained[0], input="\n".join(given))
    assert (result.exit_code, len(result.stdout.splitlines())) in ((0, 4), (1, 3))
    assert "Traceback" not in result.stderr


def test_a_stream_is_answered_as_it_comes(trained):
    """The first answer is there before the second text is sent; blank lines hold nothing back."""
    words = [sys.executable, "-m", "tests.extraction.toy", "predict", "--model", str(trained[0])]
    pipe = subprocess.Popen(
        [*words, "--quiet"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    for number, text in enumerate((b"Bo met Ada\n\n", b"Cy met Di\n"), 1):
        pipe.stdin.write(text)
        pipe.stdin.flush()
        answer = json.loads(pipe.stdout.readline())
        assert (answer["id"], answer["text"]) == (str(2 * number - 1), text.decode().strip())
    rest, _ = pipe.communicate(b"half a line", timeout=60)
    assert json.loads(rest)["text"] == "half a line"
    assert pipe.returncode == 0


@given(st.lists(st.sampled_from([b"Ada", b" ", b"\n", b"\r\n", b"Bo wrote", b"\xff"]), max_size=9))
def test_lines_of_a_stream_are_its_lines(parts):
    class Source(BytesIO):
        """Gives what a pipe would: one part at a time."""

        def read1(self, size=-1):
            return next(left, b"")

    left = iter(parts)
    whole = b"".join(parts)
    assert list(Lines(Source())) == (whole.removesuffix(b"\n").split(b"\n") if whole else [])


def test_chunks_hold_what_is_there():
    lines = Lines(BytesIO(b"\n".join(b"text %d" % n for n in range(7)) + b"\n\n\n"))
    chunks = in_chunks(read_inputs(lines, "file"), lines, 3)
    assert [[int(e.text[5:]) for e, _ in chunk] for chunk in chunks] == [[0, 1, 2], [3, 4, 5], [6]]
    lines = Lines(BytesIO(b"\n".join([b"a" * 9, b"b" * 30, b"c", b"d", b"e"]) + b"\n\n"))
    chunks = in_chunks(read_inputs(lines, "file"), lines, 3, characters=20)
    assert [[e.text[0] for e, _ in chunk] for chunk in chunks] == [["a", "b"], ["c", "d", "e"]]


def test_predictions_are_chosen_by_threshold_confidence_and_relation(trained, data):
    texts = "".join(f"{sentence(number).text}\n" for number in range(24))

    def found(*options):
        result = call("predict", "--model", trained[0], *options, input=texts)
        assert result.exit_code == 0, result.output
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        assert len(lines) == 24
        return [(line["id"], triple) for line in lines for triple in line["triples"]]

    every = found()
    confidences = sorted(triple["confidence"] for _, triple in every)
    cut = (confidences[len(every) // 2] + confidences[len(every) // 2 + 1]) / 2
    sure = [pair for pair in every if pair[1]["confidence"] > cut]
    assert 0 < len(sure) < len(every)
    assert found("--min-confidence", cut) == sure
    assert found("--threshold", math.log(cut / (1 - cut))) == sure
    assert len(found("--threshold", -20)) > len(every)
    for names in (["knows"], ["knows", "head of"]):
        options = [word for name in names for word in ("--relation", name)]
        assert found(*options) == [pair for pair in every if pair[1]["relation"] in names]
    result = call("predict", "--model", trained[0], "--relation", "knits", input=texts)
    one_line(result, "--relation must be one of 'author of', ", "got 'knits'")
    for name, *more in (("predict",), ("evaluate", "--data", data)):
        result = call(name, "--model", trained[0], *more, "--threshold", "nan", input=texts)
        one_line(result, "threshold must be a finite number, got nan")
    none = call("evaluate", "--model", trained[0], "--data", data, "--threshold", "99")
    assert none.stdout.splitlines()[1].split()[-3:-1] == ["0", "0"]


def test_predictions_of_many_texts_come_in_order(trained, monkeypatch):
    monkeypatch.setattr(commands, "_CHUNK", 3)
    texts = [sentence(number).text for number in range(10)]
    result = call("predict", "--model", trained[0], input="\n".join(texts))
    assert [json.loads(line)["text"] for line in result.stdout.splitlines()] == texts


def test_long_texts_are_told_in_one_line(trained, data, tmp_path):
    long = "Bo met Ada " + "and so on " * 20
    result = call("predict", "--model", trained[0], input=f"{long}\nBo met Ada\n")
    said = (
        "Warning: 1 of 2 texts are longer than the model reads at once: read in 3 overlapping "
        "windows (first standard input, line 1)\n"
    )
    assert (result.exit_code, result.stderr) == (0, said)
    assert len(result.stdout.splitlines()) == 2

    write_jsonl(tmp_path / "long.jsonl", [Example("a", long, ()), *map(sentence, range(9))])
    result = call(
        "evaluate", "--model", trained[0], "--data", tmp_path / "long.jsonl", "--split", "train"
    )
    assert result.exit_code == 0, result.output
    assert "Warning: 1 of 10 texts are longer" in result.stderr
    fine = call("evaluate", "--model", trained[0], "--data", data)
    assert (fine.exit_code, fine.stderr) == (0, "")


def test_long_texts_are_told_once_with_the_first_of_them(trained, monkeypatch):
    """However many chunks there are, and whatever their ids."""
    monkeypatch.setattr(commands, "_CHUNK", 2)
    long = "Bo met Ada " + "and so on " * 20
    texts = ["Bo met Ada", "Bo met Ada", "Bo met Ada", long, long, "Bo met Ada", long]
    given = [json.dumps({"id": f"x{n}", "text": text}) for n, text in enumerate(texts)]
    result = call("predict", "--model", trained[0], input="\n".join(given))
    assert (result.exit_code, len(result.stdout.splitlines())) == (0, 7)
    assert result.stderr == (
        "Warning: 3 of 7 texts are longer than the model reads at once: read in 9 overlapping "
        "windows (first standard input, text 'x3')\n"
    )


def test_other_warnings_are_shown_as_ever(trained, monkeypatch):
    load = Toy.load

    def warned(folder):
        warnings.warn("old weights", UserWarning, stacklevel=2)
        return load(folder)

    monkeypatch.setattr(Toy, "load", warned)
    with pytest.warns(UserWarning, match="old weights"):
        call("predict", "--model", trained[0], input="Bo met Ada\n")


def test_quiet_is_quiet(data, tmp_path):
    result = call(
        "train", "--data", data, "--encoder", "toy", "--out", tmp_path / "run", "--quiet", *FAST
    )
    assert (result.exit_code, result.stderr) == (0, "")


def test_model_options_are_passed_only_if_given(data, tmp_path):
    given = ("--dropout", "0.5")
    result = call(
        "train", "--data", data, "--encoder", "toy", "--out", tmp_path / "run", *given, *FAST
    )
    assert result.exit_code == 0, result.output
    record = read_record(tmp_path / "run" / "record.json")
    assert record.model["options"] == {"encoder": "toy", "dropout": 0.5}
    assert Toy.load(tmp_path / "run" / "best").dropout == 0.5


def test_without_an_encoder_the_small_one_is_taken_and_this_is_said(data, tmp_path):
    words = ["--data", data, "--epochs", 1, "--out", tmp_path / "run"]
    result = call("train", *words)
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stderr.startswith("no --encoder: small, which knows no word but those of the ")
    record = read_record(tmp_path / "run" / "record.json")
    assert record.model["options"] == {"encoder": "small"}
    assert (record.settings["lr"], record.settings["head_lr"]) == (1e-3, 2e-3)
    again = call("train", *words, "--encoder", "small")
    assert again.exit_code == 0, again.output
    assert "nothing to do" in again.stderr
    assert "--encoder" not in again.stderr


def test_training_goes_on_from_a_trained_model_with_new_relations(trained, data, tmp_path):
    """What it knew it knows before the first step; the same command again is the same run."""
    old, _ = trained
    more = tmp_path / "more"
    more.mkdir()
    ends = Span(0, 3), Span(11, 13)
    new = [
        Example(f"n{n}", "Ada painted Bo", (Triple(*ends[:1], "drew", ends[1]),)) for n in (1, 2)
    ]
    for split in ("train", "dev"):
        known = [e for e in read_jsonl(data / f"{split}.jsonl") if "met" in e.text]
        write_jsonl(more / f"{split}.jsonl", [*known, *(new if split == "train" else ())])
    words = ["--data", more, "--start-from", old, "--epochs", 1, "--lr", 1e-9, "--head-lr", 1e-9]
    result = call("train", *words, "--out", tmp_path / "run")
    assert result.exit_code == 0, (result.output, result.exception)
    record = read_record(tmp_path / "run" / "record.json")
    assert record.scores["dev"]["recall"] > 0.9
    assert record.model["options"]["start_from"] == old.name
    was, now = Toy.load(old), Toy.load(tmp_path / "run")
    assert now.relations == ("drew", "knows")
    row = was.head.weight[was.relations.index("knows")]
    assert torch.allclose(now.head.weight[1], row, atol=1e-6)
    assert "nothing to do" in call("train", *words, "--out", tmp_path / "run").stderr
    other = tmp_path / "other"
    shutil.copytree(old, other)
    changed = Toy.load(other)
    changed.card += "changed"
    changed.save(other / "best")
    words[3] = other
    refused = call("train", *words, "--out", tmp_path / "run")
    assert refused.exit_code == 2
    assert "holds a different run: its model.options.start_" in refused.stderr.splitlines()[-1]
    for wrong, said in (
        (["--encoder", "toy"], "--start-from must come without options of a new model, got --enco"),
        (["--dropout", "0.5"], "got --dropout"),
    ):
        one_line(call("train", *words, "--out", tmp_path / "x", *wrong), said)
    one_line(call("train", *words, "--out", other), "--out must be another folder than --start-")
    words[3] = tmp_path / "nowhere"
    one_line(call("train", *words, "--out", tmp_path / "x"), "there is no folder")


def test_symmetric_relations_are_declared_once(data, tmp_path):
    """Declared at training, kept with the model, honoured by every command that counts."""
    turned = tmp_path / "turned"
    turned.mkdir()
    for split in ("train", "dev", "test"):
        examples = read_jsonl(data / f"{split}.jsonl")
        if split != "train":
            examples = [
                replace(
                    e,
                    triples=tuple(
                        Triple(t.object, t.relation, t.subject) if t.relation == "knows" else t
                        for t in e.triples
                    ),
                )
                for e in examples
            ]
        write_jsonl(turned / f"{split}.jsonl", examples)
    right = {}
    for name, options in (("no", []), ("yes", ["--symmetric", "knows"])):
        words = ["--data", turned, "--encoder", "toy", "--out", tmp_path / name, *FAST, *options]
        result = call("train", *words)
        assert result.exit_code == 0, (result.output, result.exception)
        record = read_record(tmp_path / name / "record.json")
        right[name] = record.scores["test"]["relations"]["knows"]["tp"]
        evaluated = call("evaluate", "--model", tmp_path / name, "--data", turned)
        assert f"F1 {record.scores['test']['f1']:.4f}" in result.stdout
        assert f"{record.scores['test']['f1']:.4f}" in evaluated.stdout.splitlines()[1]
    assert right["no"] == 0 < right["yes"]
    assert Toy.load(tmp_path / "yes").symmetric == ("knows",)
    assert record.model["options"]["symmetric"] == ["knows"]
    wrong = call("train", *words[:-1], "hates")
    one_line(wrong, "--symmetric must be one of 'author of', ", "got 'hates'")


def test_a_device_that_is_not_here_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ["--data", data, "--encoder", "toy", "--epochs", 1]
    result = call("train", *words, "--out", tmp_path / "x", "--device", "cuda")
    one_line(result, "--device must be one that is here, cpu", "got 'cuda'")
    assert not (tmp_path / "x").exists()
    here = call("train", *words, "--out", tmp_path / "x", "--device", "cpu")
    assert here.exit_code == 0, here.output
    assert read_record(tmp_path / "x" / "record.json").hardware["device"] == "CPU"


def test_a_model_card_lies_beside_the_weights_and_tells_of_the_calibration(trained, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(trained[0], out)
    record = read_record(out / "record.json")
    card = Toy.load(out).card
    assert card == model_card(record)
    for part in (record.command, f"{record.scores['test']['f1']:.4f}", "## Licence", "knows"):
        assert part in card
    write_jsonl(tmp_path / "dev.jsonl", map(sentence, range(30)))
    reports = [
        call("calibrate", "--model", out, "--data", tmp_path, "--write").stdout for _ in range(2)
    ]
    now = Toy.load(out).card
    assert now.startswith(card)
    assert now.count("## Calibration") == 1
    assert all(f"    {line}".rstrip() in now for line in reports[1].splitlines()[:-1])


def test_help_names_every_setting():
    result = call("train", "--help")
    assert result.exit_code == 0
    said = " ".join(result.stdout.split())
    for field in Settings.__dataclass_fields__:
        assert f"--{field.replace('_', '-')} " in said
    for text in ("--data", "--encoder", "--out", "--dropout", "[default: 20]"):
        assert text in said
    assert "train" in call("--help").stdout


@pytest.mark.parametrize("group", [gplinker, casrel])
def test_help_shows_every_default(group):
    for command in group.commands.values():
        said = " ".join(CliRunner().invoke(command, ["--help"]).stdout.split())
        for option in command.params:
            if option.required or (option.is_flag and not option.secondary_opts):
                continue
            assert option.show_default, option.name
            names = " / ".join((*option.opts, *option.secondary_opts))
            assert "[default: " in said.split(f" {names} ")[1].split(" --")[0], option.name
    options = {option.name: option.show_default for option in group.commands["train"].params}
    kind, most = ("pointer", "efficient") if group is gplinker else ("power", "2 4")
    assert (options[kind], options["max_length"][:4]) == (most, "256,")


def test_rates_default_to_what_suits_the_encoder(monkeypatch, data, tmp_path):
    asked = []

    def stop(model, corpus, out, settings, **more):
        asked.append((settings.lr, settings.head_lr))
        raise ValueError("seen")

    monkeypatch.setattr(commands, "train", stop)
    monkeypatch.setattr(Toy, "create", lambda *args, **options: None)
    for encoder, *rates in (["toy"], ["small"], ["small", "--lr", "0.5"]):
        one_line(
            call("train", "--data", data, "--encoder", encoder, "--out", tmp_path, *rates), "seen"
        )
    default = (Settings().lr, Settings().head_lr)
    assert asked == [default, (1e-3, 2e-3), (0.5, 2e-3)]
    help_text = " ".join(call("train", "--help").stdout.split())
    assert f"0.001 for small, else {default[0]:g}" in help_text


def test_gplinker_has_the_commands_and_its_options():
    result = CliRunner().invoke(gplinker, ["train", "--help"])
    assert result.exit_code == 0
    for option in (
        "--pointer",
        "--head-size",
        "--link-rope",
        "--freeze-embeddings",
        "--word-shapes",
    ):
        assert option in result.stdout


def test_only_the_main_process_writes(trained, data, tmp_path, monkeypatch):
    """What the second process does, seen alone."""
    accelerator = commands.make_accelerator()

    class Second:
        is_main_process = False
        num_processes = 2

        def __getattr__(self, name):
            return getattr(accelerator, name)

    monkeypatch.setattr(commands, "make_accelerator", Second)
    source = tmp_path / "in.txt"
    source.write_text("Bo met Ada\n")
    out = trained[0]
    for arguments in (
        ("predict", "--model", out, "--input", source),
        ("evaluate", "--model", out, "--data", data),
        ("train", "--data", data, "--encoder", "toy", "--out", out, *FAST),
    ):
        result = call(*arguments)
        assert (result.exit_code, result.stdout) == (0, ""), result.output
    one_line(call("predict", "--model", out, input="x"), "cannot share standard input")


# --- what is lost is said --------------------------------------------------------------------

NAMES = ("Ada", "Bo", "Cy", "Di", "Ed", "Flo", "Gus", "Hal", "Ida", "Jo", "Kay", "Lou")


def write_split(path, change, before="", names=NAMES):
    """Write a sentence a name; `change` gets text, start and end of its subject, to move them."""
    lines = []
    for name in names:
        text = f"{before}{name} wrote Notes."
        start = len(before)
        begin, end = change(text, start, start + len(name))
        notes = text.index("Notes")
        triple = {
            "subject": {"start": begin, "end": end},
            "relation": "wrote",
            "object": {"start": notes, "end": notes + 5},
        }
        lines.append(json.dumps({"text": text, "triples": [triple]}) + "\n")
    path.write_text("".join(lines), "utf-8")


def right(text, start, end):
    return start, end


def inside(text, start, end):
    return start + 1, end


def utf_16(text, start, end):
    return tuple(len(text[:at].encode("utf-16-le")) // 2 for at in (start, end))


def small_run(folder, *more):
    words = ["train", "--data", str(folder), "--encoder", "small", "--out", str(folder / "run")]
    return CliRunner().invoke(gplinker, [*words, "--epochs", "1", *more])


@pytest.mark.parametrize("blank", [" ", "\u200b"])
def test_blanks_that_tools_export_with_an_entity_cost_nothing(tmp_path, blank):
    for split in ("train", "dev"):
        write_split(tmp_path / f"{split}.jsonl", lambda text, start, end: (0, end), before=blank)
    result = small_run(tmp_path)
    assert result.exit_code == 0, result.output
    for number, split in enumerate(("train", "dev")):
        assert result.stderr.splitlines()[number] == (
            f"{split}: 12 sentences, 12 triples, 1 relation; "
            "12 entities trimmed of white space at the ends"
        )
    record = read_record(tmp_path / "run" / "record.json")
    assert record.data["unaligned"] == {"train": {}, "dev": {}}
    assert record.data["notes"] == {
        f"{split}: entity trimmed of white space at its ends": 12 for split in ("train", "dev")
    }


def test_a_run_that_would_learn_nothing_is_refused(tmp_path):
    """With offsets in the units of another program, that is named too."""
    for change, before, hint in (
        (inside, "", ""),
        (utf_16, "😀😀 😀😀 ", " (do its offsets count UTF-16 units, not characters?)"),
    ):
        write_split(tmp_path / "train.jsonl", change, before)
        write_split(tmp_path / "dev.jsonl", right, before)
        result = small_run(tmp_path, "--quiet")
        assert result.exit_code == 2
        first, warning, error = result.stderr.splitlines()
        text = f"{before}Ada wrote Notes."
        words = text[slice(*change(text, len(before), len(before) + 3))]
        example = f"first {tmp_path / 'train.jsonl'}, line 1: subject {words!r} of 'wrote'{hint}"
        assert first == (
            "train: 12 sentences, 12 triples, 1 relation; "
            f"cannot be told: 12 × entity not on token borders [{example}]"
        )
        assert warning == (
            "Warning: train: 12 of 12 triples are lost (100%): they cannot be learnt"
        )
        assert error.startswith("Error: train: none of the 12 triples can be told to the model: 12")
        assert not (tmp_path / "run" / "best").exists()


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_split_in_which_nothing_can_be_found_is_refused(tmp_path, split):
    for name in ("train", "dev", "test"):
        write_split(tmp_path / f"{name}.jsonl", inside if name == split else right)
    result = small_run(tmp_path)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith(
        f"Error: {split}: none of the 12 triples can be told to the model: "
        f"12 × entity not on token borders [first {tmp_path / split}.jsonl, line 1: subject "
    )
    assert not (tmp_path / "run" / "best").exists()


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_more_than_a_twentieth_lost_is_warned_of(tmp_path, lost):
    """And any loss is said, quiet or not, with its place."""
    names = [f"{name}{end}" for name in NAMES for end in ("", "ton", "ley")]
    for split in ("train", "dev"):
        write_split(tmp_path / f"{split}.jsonl", right, names=names)
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    for number in range(lost):
        record = json.loads(lines[number + 4])
        record["triples"][0]["subject"]["start"] += 1
        lines[number + 4] = json.dumps(record)
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    result = small_run(tmp_path, "--quiet")
    assert result.exit_code == 0, result.output
    said = result.stderr.splitlines()
    assert len(said) == lost
    if lost:
        where = f"{tmp_path / 'train.jsonl'}, line 5: subject 'oton' of 'wrote'"
        assert said[0] == (
            "train: 36 sentences, 36 triples, 1 relation; "
            f"cannot be told: {lost} × entity not on token borders [first {where}]"
        )
    if lost == 2:
        assert said[1] == "Warning: train: 2 of 36 triples are lost (6%): they cannot be learnt"


def test_what_the_reader_drops_and_what_is_cut_is_said(tmp_path):
    write_split(tmp_path / "dev.jsonl", right)
    write_split(tmp_path / "train.jsonl", right)
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    records[0]["triples"] *= 2
    records[1]["triples"][0]["subject"] = {"start": 2, "end": 3}  # a blank
    records[2]["text"] += " and so on" * 100
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, records)))
    result = small_run(tmp_path)
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[0] == (
        "train: 12 sentences, 11 triples, 1 relation; "
        "dropped in reading: 1 × triple repeated, 1 × entity of white space alone; "
        f"1 text read in 2 windows [first {tmp_path / 'train.jsonl'}, line 3]"
    )
    assert result.stderr.splitlines()[1] == (
        "Warning: train: 1 of 12 triples are lost (8%): they cannot be learnt"
    )


def test_evaluation_says_what_must_be_missed(tmp_path):
    for split in ("train", "dev"):
        write_split(tmp_path / f"{split}.jsonl", right)
    assert small_run(tmp_path, "--quiet").exit_code == 0
    write_split(tmp_path / "test.jsonl", inside)
    words = ["evaluate", "--model", str(tmp_path / "run"), "--data", str(tmp_path)]
    result = CliRunner().invoke(gplinker, words)
    assert result.exit_code == 0, result.output
    where = f"{tmp_path / 'test.jsonl'}, line 1: subject 'da' of 'wrote'"
    assert result.stderr == (
        "Warning: 12 of 12 triples cannot be told to the model and count as missed: "
        f"12 × entity not on token borders [first {where}]\n"
    )


# --- what users get wrong --------------------------------------------------------------------


def break_line(data, folder, line, change):
    """Copy the data with one line of train.jsonl changed."""
    for split in ("train", "dev", "test"):
        (folder / f"{split}.jsonl").write_text((data / f"{split}.jsonl").read_text())
    lines = (folder / "train.jsonl").read_text().splitlines()
    lines[line - 1] = change(lines[line - 1])
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda line: line[:-2], ("not valid JSON",)),
        (lambda line: "[1]", ("expected a JSON object",)),
        (
            lambda line: json.dumps(
                {
                    "text": "Bo met Ada",
                    "triples": [{"subject": "Cy", "relation": "knows", "object": "Ada"}],
                }
            ),
            ("subject 'Cy' does not occur in the text",),
        ),
    ],
)
def test_a_malformed_line_is_named(data, tmp_path, change, parts):
    break_line(data, tmp_path, 7, change)
    result = call("train", "--data", tmp_path, "--encoder", "toy", "--out", tmp_path / "run")
    one_line(result, "train.jsonl, line 7:", *parts)
    assert not (tmp_path / "run").exists()


def test_every_malformed_line_is_named_in_one_run(data, tmp_path):
    for line in (3, 9):
        break_line(data, tmp_path, line, lambda _: "{")
        data = tmp_path
    bo = {"subject": "Bo", "relation": "knows", "object": "Ada"}
    line = json.dumps({"text": "Bo met Bo and Ada", "triples": [bo]})
    break_line(data, tmp_path, 12, lambda _: line)
    run = ("train", "--data", tmp_path, "--encoder", "toy", "--out", tmp_path / "run", *FAST)
    result = call(*run)
    assert result.exit_code == 2
    said = result.stderr.splitlines()
    assert [re.search(r"line (\d+): ", text)[1] for text in said] == ["3", "9", "12"]
    assert said[0].startswith("Error: ")
    assert "--occurrence first or nearest" in said[2]
    for number in (3, 9):
        break_line(data, tmp_path, number, lambda _: '{"text": "nothing", "triples": []}')
    one_line(call(*run), "line 12: ", "'Bo' occurs 2 times")
    result = call(*run, "--occurrence", "nearest", "--epochs", "1")
    assert result.exit_code == 0, result.output
    record = read_record(tmp_path / "run" / "record.json")
    assert record.data["notes"] == {"train: entity that occurs several times": 1}


def test_an_empty_file_is_named(tmp_path):
    (tmp_path / "own.jsonl").write_text("")
    result = call(
        "train", "--data", tmp_path / "own.jsonl", "--encoder", "toy", "--out", tmp_path / "run"
    )
    one_line(result, "own.jsonl")


def test_unknown_data_encoder_option_and_setting(data, tmp_path):
    out = tmp_path / "run"
    one_line(call("train", "--data", "nowhere", "--encoder", "toy", "--out", out), "'nowhere'")
    one_line(
        call("train", "--data", data, "--encoder", "bert", "--out", out),
        "encoder: expected 'toy', got 'bert'",
    )
    one_line(
        call("train", "--data", data, "--encoder", "toy", "--out", out, "--epochs", "0"),
        "epochs must be at least 1, got 0",
    )
    odd = extractor_commands(Toy, "toy", [click.Option(["--layers"], type=int)])
    arguments = ["train", "--data", data, "--encoder", "toy", "--out", out, "--layers", "3"]
    result = CliRunner().invoke(odd, [str(argument) for argument in arguments])
    one_line(result, "not known: layers")
    assert not out.exists()


def test_a_folder_of_another_run(trained, data):
    result = call("train", "--data", data, "--encoder", "toy", "--out", trained[0], "--seed", "1")
    one_line(result, "holds a different run: its settings.")


def test_a_missing_model(data, tmp_path):
    for command in (("evaluate", "--data", data), ("predict",)):
        name, *more = command
        result = call(name, "--model", tmp_path / "none", *more, input="x")
        one_line(result, "there is no folder", "none")
        result = call(name, "--model", tmp_path, *more, input="x")
        one_line(result, "expected a saved model")


def test_evaluation_needs_the_split_alone(trained, data, tmp_path):
    """A folder without train.jsonl, a file of any name, relations that the model never saw."""
    line = {
        "text": "Ada knits socks",
        "triples": [{"subject": "Ada", "relation": "knits", "object": "socks"}],
    }
    lines = (data / "test.jsonl").read_text() + json.dumps(line) + "\n"
    (tmp_path / "test.jsonl").write_text(lines)
    (tmp_path / "mine.jsonl").write_text(lines)
    tables = []
    for words in ((tmp_path,), (tmp_path / "test.jsonl",), (tmp_path / "mine.jsonl",)):
        result = call("evaluate", "--model", trained[0], "--data", *words)
        assert result.exit_code == 0, result.output
        assert "Warning: 1 triple of the relation 'knits' counted as missed" in result.stderr
        tables.append(result.stdout)
    assert tables[0] == tables[1] == tables[2]
    assert re.search(r"^knits .* 1$", tables[0], flags=re.MULTILINE)
    result = call("evaluate", "--model", trained[0], "--data", tmp_path, "--split", "dev")
    one_line(result, "has no split 'dev'; it has test")
    result = call("evaluate", "--model", trained[0], "--data", "synthetic", "--split", "tset")
    one_line(result, "has no split 'tset'; it has train, dev, test, test_templates")


@pytest.mark.parametrize("text", [b"", b"\n  \n", b"\xef\xbb\xbf\n"])
def test_nothing_to_predict_on(trained, tmp_path, text):
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(text)
    one_line(
        call("predict", "--model", trained[0], "--input", source, "--output", target),
        f"{source} holds no text",
    )
    assert not target.exists()
    one_line(call("predict", "--model", trained[0], input=text), "standard input holds no text")
    one_line(call("predict", "--model", trained[0], "--input", tmp_path / "none"), "none")


BAD_LINES = [
    (b"\xff\xfe\xfd", b"Bo met Ada", "line {}: not UTF-8"),
    (b'{"text": 3}', b'{"text": "Bo met Ada"}', "line {}: the record: 'text' must be a string"),
    (b"[1]", b'{"text": "Bo met Ada"}', "line {}: expected a JSON object, got a list"),
    (b"plain", b'{"text": "Bo met Ada"}', "line {}: not valid JSON"),
    (b'{"text": "\\ud83d"}', b'{"text": "Bo met Ada"}', "line {}: example '{}': text holds"),
]


@pytest.mark.parametrize(("bad", "good", "message"), BAD_LINES)
def test_a_bad_line_does_not_cost_the_others(trained, tmp_path, bad, good, message):
    """It is told, counted, and seen in the exit status."""
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(b"\n".join([good, bad, b"", good, bad]))
    for arguments, name in (
        (("--input", source, "--output", target), str(source)),
        (("--input", source), str(source)),
        ((), "standard input"),
    ):
        result = call("predict", "--model", trained[0], *arguments, input=source.read_bytes())
        assert result.exit_code == 1, (result.output, result.exception)
        first, second, last = result.stderr.splitlines()
        assert first.startswith(f"Error: {name}, {message.format(2, 2)}")
        assert second.startswith(f"Error: {name}, {message.format(5, 5)}")
        assert last == "Error: 2 of 4 texts are not in the output"
        lines = target.read_text() if target in arguments else result.stdout
        found = [json.loads(line) for line in lines.splitlines()]
        assert [(line["id"], len(line["triples"])) for line in found] == [("1", 1), ("4", 1)]


@pytest.mark.parametrize(("bad", "good", "message"), BAD_LINES[1:])
def test_where_no_line_is_good_nothing_is_written(trained, tmp_path, bad, good, message):
    del good, message
    source, target = tmp_path / "in", tmp_path / "out"
    target.write_text("former")
    source.write_bytes(b'{"text": []}\n' + bad)
    result = call("predict", "--model", trained[0], "--input", source, "--output", target)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        f"Error: {source}: nothing to write, none of its texts could be read"
    )
    assert target.read_text() == "former"


def test_not_every_bad_line_of_many_is_shown(trained):
    result = call("predict", "--model", trained[0], input=b"Bo met Ada\n" + b"\xff\n" * 50)
    lines = result.stderr.splitlines()
    assert len(lines) == 22
    assert lines[-2:] == [
        "Further errors are counted, not shown",
        "Error: 50 of 51 texts are not in the output",
    ]


@pytest.mark.parametrize("fails", ["prepare", "extract_scored"])
def test_a_text_that_fails_does_not_cost_the_others(trained, monkeypatch, fails):
    """Whatever a tokenizer or a model raises for it, alone or in a batch."""
    works = getattr(Toy, fails)
    texts = ["Bo met Ada", "Bo really met Ada", "Ada wrote Bo", "Ed really left Bo"]

    def broken(self, things, **more):
        words = [len(thing.text.split() if fails == "prepare" else thing) for thing in things]
        if 4 in words:
            raise RuntimeError("no such luck")
        return works(self, things, **more)

    monkeypatch.setattr(Toy, fails, broken)
    result = call("predict", "--model", trained[0], input="\n".join(texts))
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == ["1", "3"]
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "Error: standard input, text '2': no such luck",
        "Error: standard input, text '4': no such luck",
        "Error: 2 of 4 texts are not in the output",
    ]
    with pytest.raises(RuntimeError, match="no such luck"):
        predict(Toy.load(trained[0] / "best"), texts)


def test_texts_are_read_as_they_are_needed():
    """So that the first answer does not wait for the last text."""

    def lines():
        yield b"Ada\n"
        yield b"Bo\n"
        raise AssertionError("read too far")

    texts = read_inputs(lines(), "pipe")
    assert [next(texts).example.text, next(texts).example.text] == ["Ada", "Bo"]


def test_the_first_bad_line_is_raised_where_nobody_takes_it():
    texts = read_inputs([b"Ada\n", b"\xff\n"], "file")
    next(texts)
    with pytest.raises(ValueError, match="file, line 2: not UTF-8"):
        next(texts)


# Each as a tool writes it, with what the message must name.
OTHER_FORMATS = {
    "array": ('[{"text": "Bo met Ada"}, {"text": "Ada wrote Bo"}]', "one JSON array"),
    "array of strings": ('["Bo met Ada", "Ada wrote Bo"]', "one JSON array"),
    "indented array": ('[\n {\n  "text": "Bo met Ada"\n }\n]', "one JSON array"),
    "indented object": ('{\n "text": "Bo met Ada"\n}', "one JSON object over several lines"),
    "csv": ('id,text\n1,"Bo met Ada"\n', "a table (CSV)"),
    "csv of pandas": (',Sentence,label\n0,"Bo, met Ada",x\n', "a table (CSV)"),
    "csv of a spreadsheet": ('"id";"text"\n"1";"Bo met Ada"\n', "a table (CSV)"),
    "tsv": ("id\ttext\n1\tBo met Ada\n", "a table with tabs (TSV)"),
    "xml": ('<?xml version="1.0"?>\n<a>Bo met Ada</a>', "XML or HTML"),
    "html": ("<!DOCTYPE html>\n<p>Bo met Ada</p>", "XML or HTML"),
    "conll04": ("#doc 1\n0\tBo\tB-Peop\t['N']\t[0]\n", "CoNLL"),
    "conll-u": ("# sent_id = 1\n1\tBo\tBo\tPROPN\n", "CoNLL"),
    "brat": ("T1\tPerson 0 2\tBo\n", "brat's annotations"),
}


@pytest.mark.parametrize("name", OTHER_FORMATS)
@pytest.mark.parametrize("mark", ["", "\ufeff", "\n \n"])
def test_what_is_clearly_another_format_is_refused(trained, tmp_path, name, mark):
    text, kind = OTHER_FORMATS[name]
    source = tmp_path / "in.jsonl"
    source.write_text(mark + text, "utf-8")
    result = call("predict", "--model", trained[0], "--input", source)
    one_line(result, f"{source} is {kind}")
    assert result.stdout == ""
    if mark:
        return
    one_line(call("predict", "--model", trained[0], input=text), f"standard input is {kind}")
    result = call("train", "--data", source, "--encoder", "toy", "--out", tmp_path / "run")
    one_line(result, f"{source} is {kind}")
    program = re.search(r'python -c "(.*)" < FILE > FILE.jsonl', result.stderr)
    if "JSON" not in kind and "table" not in kind:
        assert program is None
        return
    assert program is not None
    done = subprocess.run(
        f'{sys.executable} -c "{program[1]}" < in.jsonl > made.jsonl', shell=True, cwd=tmp_path
    )
    assert done.returncode == 0
    made = call("predict", "--model", trained[0], "--input", tmp_path / "made.jsonl")
    assert made.exit_code == 0, made.output
    texts = [json.loads(line)["text"] for line in made.stdout.splitlines()]
    assert [text.replace(",", "") for text in texts] == ["Bo met Ada", "Ada wrote Bo"][: len(texts)]


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"%PDF-1.7\n...", "a PDF"),
        (gzip.compress(b"Bo met Ada", mtime=0), "a gzip archive"),
        (b"PK\x03\x04...", "a zip archive or an office document"),
        (b"PAR1\x15", "a Parquet file"),
        ("Bo met Ada\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_a_file_that_is_no_text_is_named(trained, tmp_path, raw, kind):
    source = tmp_path / "in"
    source.write_bytes(raw)
    one_line(call("predict", "--model", trained[0], "--input", source), f"{source} is {kind}: ")


@pytest.mark.parametrize(
    "text",
    [
        "[1] Ada wrote Notes.",
        "[1]",
        "[Applause] Ada, Bo and Cy met.",
        "[sic], he wrote",
        "Text, sentence and word: Ada, Bo.",
        "text",
        "Ada,Bo",
        "T1 is a tank.",
        "# a heading",
        "<b>Ada</b> met Bo",
        "- text, more text",
    ],
)
def test_a_sentence_is_not_taken_for_another_format(text):
    ((example, _),) = read_inputs([text.encode()], "file")
    assert example.text == text


def test_a_byte_order_mark_is_no_text():
    for line in (b"Ada", b'{"text": "Ada"}'):
        ((example, _),) = read_inputs([b"\xef\xbb\xbf" + line], "file")
        assert example.text == "Ada"


@pytest.mark.parametrize("filename", ["runs/best/model", None])
def test_a_full_disk(data, tmp_path, monkeypatch, filename):
    def full(self, folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), filename)

    monkeypatch.setattr(Toy, "save", full)
    result = call("train", "--data", data, "--encoder", "toy", "--out", tmp_path / "run", "--quiet")
    one_line(result, "the disk is full", "run the same command again", filename or "")
    monkeypatch.undo()
    result = call("train", "--data", data, "--encoder", "toy", "--out", tmp_path / "run")
    assert result.exit_code == 0
    assert "continuing after epoch 1 of 20" in result.stderr


def test_a_full_gpu(data, tmp_path, monkeypatch):
    def full(self, ids, labels):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nSee …")

    monkeypatch.setattr(Toy, "forward", full)
    result = call("train", "--data", data, "--encoder", "toy", "--out", tmp_path / "run", "--quiet")
    one_line(result, "memory of the GPU is full", "--batch-size")


PAGE = (ROOT / "book" / "howto_own_data.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_the_page_on_own_data_runs_as_printed(tmp_path, monkeypatch):
    """With the small encoder and few epochs, as no other encoder can be had in a test."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.jsonl").write_text(blocks("json")[0])
    (tmp_path / "new.txt").write_text(blocks("text")[0])
    lines = blocks("json")[0].splitlines()
    lines[6] = lines[6].replace('"subject": "Lumen Works"', '"subject": "Lumen Mill"')
    (tmp_path / "broken.jsonl").write_text("\n".join(lines))
    ran = []
    for block in blocks("console"):
        command, *printed = block.splitlines()
        if not command.startswith("$ python -m lib.gplinker "):
            continue
        words = shlex.split(command.replace("--epochs 60", "--epochs 2"))[4:]
        words = ["small" if word.startswith("models/") else word for word in words]
        ran.append(words[0])
        if len(ran) == 1:  # the first in a process of its own, as a reader starts it
            result = start_module("lib.gplinker", *words, folder=tmp_path)
            assert result.returncode == 0, result.stderr
            assert printed[0] in result.stderr
            continue
        result = CliRunner().invoke(gplinker, words)
        assert result.exit_code == (2 if printed[-1].startswith("Error") else 0), result.output
        if words[0] == "evaluate":
            assert result.stdout.splitlines()[0].split() == printed[0].split()
        elif words[0] == "predict":
            texts = [json.loads(line)["text"] for line in result.stdout.splitlines()]
            assert texts == [json.loads(line)["text"] for line in printed]
        else:
            assert result.stderr.splitlines()[-1] == printed[-1]
    assert ran == ["train", "predict", "evaluate", "train", "train"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["own"]


def start_module(module, *words, folder):
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_reader_that_stops_early_is_no_error(trained):
    """Shell pipes such as ``| head -1`` close our output."""
    program = "import sys; from tests.extraction.toy import main; main(sys.argv[1:])"
    pipe = subprocess.Popen(
        [sys.executable, "-c", program, "predict", "--model", str(trained[0]), "--quiet"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    pipe.stdout.close()
    _, errors = pipe.communicate(b"Bo met Ada\n" * 20_000)
    assert b"Traceback" not in errors
