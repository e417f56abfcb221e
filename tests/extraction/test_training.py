"""Training: learns, keeps the best epoch, survives interruption without a trace."""

import errno
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.extraction.locks import hold
from lib.extraction.records import read_record, write_atomically
from lib.extraction.training import (
    Settings,
    UnknownRelationWarning,
    _run,
    ema_decay,
    epoch_batches,
    evaluate,
    learning_rate_factor,
    predict,
    set_seed,
    train,
)
from lib.extraction.triples import Example, Span, Triple
from tests.extraction.toy import Toy, sentence, toy_corpus

ROOT = Path(__file__).parents[2]
SETTINGS = Settings(epochs=6, batch_size=4, lr=0.03, head_lr=0.03, patience=6)


def new_model(corpus, dropout=0.1):
    set_seed(0)
    texts = [example.text for example in corpus.train]
    return Toy.create("toy", corpus.relations, texts=texts, dropout=dropout)


def run(out, settings=SETTINGS, corpus=None, dropout=0.1, **options):
    corpus = corpus or toy_corpus()
    model = new_model(corpus, dropout)
    return model, train(model, corpus, out, settings, command="test", **options)


def essence(record):
    """Return what must not depend on when and how often a run was interrupted."""
    raw = asdict(record)
    for name in ("wall_seconds", "code", "command", "hardware"):
        del raw[name]
    for epoch in raw["epochs"]:
        del epoch["seconds"]
    return raw


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    model, record = run(out)
    return out, model, record


def interrupt_at_score(monkeypatch, call):
    """Let the user stop the run when it scores for the call-th time."""
    calls = 0
    score = _run.score_items

    def interrupted(*args):
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return score(*args)

    monkeypatch.setattr(_run, "score_items", interrupted)


def assert_same_end(undisturbed, model, record, out):
    _, wanted, wanted_record = undisturbed
    assert essence(record) == essence(wanted_record)
    saved = Toy.load(out / "best").state_dict()
    for name, tensor in wanted.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
        assert torch.equal(saved[name], tensor), name
    assert sorted(path.name for path in out.iterdir()) == ["best", "record.json"]


# --- settings, schedule, order ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"patience": -1}, "patience must be at least 1, got -1"),
        ({"lr": 0.0}, "lr must be above 0 and finite, got 0.0"),
        ({"head_lr": float("nan")}, "head_lr must be above 0 and finite, got nan"),
        ({"clip": float("inf")}, "clip must be above 0 and finite, got inf"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more, got -0.1"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
        ({"warmup": 1.0}, r"warmup must lie in \[0, 1\), got 1.0"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\), got 1.0"),
        ({"ema": float("nan")}, r"ema must lie in \[0, 1\), got nan"),
        ({"schedule": "cosine"}, r"schedule must be one of .*'linear'.*, got 'cosine'"),
    ],
)
def test_settings_that_cannot_train_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Settings(**change)


@pytest.mark.parametrize("total", [1, 7, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.9])
def test_rates_rise_to_the_peak_and_never_reach_zero(total, warmup):
    factors = [
        learning_rate_factor(step, total, warmup=warmup, schedule="linear") for step in range(total)
    ]
    top = int(warmup * total)
    assert factors == sorted(factors[:top]) + sorted(factors[top:], reverse=True)
    assert max(factors) == factors[top] == 1.0
    assert min(factors) > 0
    constant = [
        learning_rate_factor(step, total, warmup=warmup, schedule="constant")
        for step in range(total)
    ]
    assert constant == factors[:top] + [1.0] * (total - top)


@given(
    st.lists(st.integers(0, 50), max_size=200),
    st.integers(1, 9),
    st.integers(0, 5),
    st.integers(1, 5),
)
def test_an_epoch_holds_each_example_once(lengths, batch_size, seed, epoch):
    batches = epoch_batches(lengths, batch_size, seed=seed, epoch=epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert sum(len(batch) != batch_size for batch in batches) <= 1
    assert batches == epoch_batches(lengths, batch_size, seed=seed, epoch=epoch)


def test_the_order_changes_with_seed_and_epoch_and_batches_are_of_like_length():
    lengths = [int(x) for x in np.random.default_rng(0).integers(5, 100, 640)]
    orders = {
        str(epoch_batches(lengths, 8, seed=seed, epoch=epoch))
        for seed in range(3)
        for epoch in range(1, 4)
    }
    assert len(orders) == 9
    batches = epoch_batches(lengths, 8, seed=0, epoch=1)
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in batches)
    assert padded < 1.1 * sum(lengths)


def test_a_seed_sets_all_three_generators():
    def draw(**numbers):
        set_seed(3, **numbers)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert draw() == draw()
    others = [draw(), draw(epoch=1), draw(rank=1), draw(epoch=1, rank=1)]
    for column in zip(*others, strict=True):
        assert len(set(column)) == 4


# --- learning --------------------------------------------------------------------------------


def test_it_learns_and_keeps_the_best_epoch(undisturbed):
    out, model, record = undisturbed
    curve = record.curve("f1")
    assert max(curve) > 0.9
    assert curve[record.best_epoch - 1] == max(curve)
    assert record.curve("train_loss")[-1] < record.curve("train_loss")[0] / 2
    corpus = toy_corpus()
    for kept in (model, Toy.load(out / "best")):
        for split in ("dev", "test"):
            assert evaluate(kept, corpus.split(split)).to_dict() == record.scores[split]
    assert read_record(out / "record.json") == record
    assert not any(part in (out / "record.json").read_text() for part in (str(out), os.getcwd()))


def test_the_record_says_what_was_trained_on_what(tmp_path):
    corpus = toy_corpus(extra={"test_long": (sentence(3),)})
    options = {"encoder": "/somewhere/else/toy", "sizes": (1, 2)}
    _, record = run(tmp_path / "run", replace(SETTINGS, epochs=1), corpus, options=options)
    assert record.model == {
        "class": "Toy",
        "parameters": record.model["parameters"],
        "trainable": record.model["parameters"],
        "options": {"encoder": "toy", "sizes": [1, 2]},
    }
    assert record.data["sentences"] == {"train": 37, "dev": 12, "test": 12, "test_long": 1}
    assert record.data["triples"]["train"] == sum(len(e.triples) for e in corpus.train)
    assert record.data["unaligned"] == {s: {} for s in ("train", "dev", "test", "test_long")}
    assert set(record.scores) == {"dev", "test", "test_long"}
    assert record.settings == asdict(replace(SETTINGS, epochs=1))
    assert read_record(tmp_path / "run" / "record.json") == record


def test_same_seed_same_run_other_seed_other_run(tmp_path, undisturbed):
    _, again = run(tmp_path / "again")
    assert essence(again) == essence(undisturbed[2])
    _, other = run(tmp_path / "other", replace(SETTINGS, seed=1))
    assert other.curve("train_loss") != again.curve("train_loss")


def test_training_ends_when_dev_stops_getting_better(tmp_path):
    settings = replace(SETTINGS, epochs=30, lr=0.05, head_lr=0.05, patience=2)
    _, record = run(tmp_path / "run", settings)
    curve = record.curve("f1")
    assert len(curve) == curve.index(max(curve)) + 1 + 2 < 30


def test_what_is_kept_scored_and_returned_is_the_best_epoch_not_the_last(
    tmp_path, monkeypatch, undisturbed
):
    monkeypatch.setattr(_run, "_best_epoch", lambda epochs: min(2, len(epochs)))
    model, record = run(tmp_path / "run")
    assert record.best_epoch == 2
    assert record.scores["dev"]["f1"] == record.curve("f1")[1] < record.curve("f1")[-1]
    saved = Toy.load(tmp_path / "run" / "best").state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(saved[name], tensor)
    assert not torch.equal(model.head.weight, undisturbed[1].head.weight)


def test_the_rates_follow_one_schedule_over_all_epochs(tmp_path, monkeypatch):
    asked, used = [], []
    factor, step = _run.learning_rate_factor, torch.optim.AdamW.step

    def spy_factor(*args, **kwargs):
        asked.append((args, factor(*args, **kwargs)))
        return asked[-1][1]

    def spy_step(self, *args, **kwargs):
        used.append([group["lr"] for group in self.param_groups])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(_run, "learning_rate_factor", spy_factor)
    monkeypatch.setattr(torch.optim.AdamW, "step", spy_step)
    run(tmp_path / "run", replace(SETTINGS, epochs=2, head_lr=0.5))
    assert [args for args, _ in asked] == [(number, 20) for number in range(20)]
    assert used == [[0.03 * share, 0.5 * share] for _, share in asked]


def test_long_gradients_are_scaled_down(tmp_path, undisturbed):
    """AdamW hardly sees the scale of a gradient, until its length is far below AdamW's epsilon."""
    _, record = run(tmp_path / "run", replace(SETTINGS, epochs=2, clip=1e-14, weight_decay=0.0))
    first, second = record.curve("train_loss")
    assert second > 0.9 * first
    assert undisturbed[2].curve("train_loss")[1] < 0.9 * first


def test_of_equal_scores_the_least_loss_is_kept():
    epochs = [
        {"epoch": number, "dev": {"f1": f1}, "train_loss": loss}
        for number, (f1, loss) in enumerate([(0.5, 1.0), (0.7, 3.0), (0.7, 2.0), (0.7, 2.5)], 1)
    ]
    assert _run._best_epoch(epochs) == 3
    assert _run._best_epoch(epochs[:2]) == 2
    assert _run._best_epoch(epochs[:1]) == 1


def test_epochs_before_the_first_right_triple_do_not_use_up_patience(tmp_path):
    settings = replace(SETTINGS, epochs=4, lr=1e-6, head_lr=1e-6, patience=1)
    corpus = toy_corpus()
    model = new_model(corpus)
    torch.nn.init.constant_(model.head.bias, -9.0)
    record = train(model, corpus, tmp_path / "run", settings)
    assert record.curve("f1") == [0.0] * 4
    assert len(record.epochs) == 4


def test_a_corpus_without_dev_lends_it_a_tenth_of_train(tmp_path, capsys):
    corpus = toy_corpus(train=40, dev=0)
    _, record = run(tmp_path / "run", replace(SETTINGS, epochs=1), corpus)
    assert record.data["sentences"] == {"train": 36, "dev": 4, "test": 12}
    assert record.data["dev_from_train"] == 4
    told = capsys.readouterr().err
    assert "toy has no dev split: 4 of 40 training sentences are held out for it" in told
    with pytest.raises(ValueError, match="at least 2 training sentences are needed, got 1"):
        run(tmp_path / "other", corpus=toy_corpus(train=1, dev=0))


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    corpus = toy_corpus()
    model = new_model(corpus)
    torch.nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(ValueError, match=r"training loss is nan in epoch 1: lower lr 0.03 or head"):
        train(model, corpus, tmp_path / "run", SETTINGS)


def test_relations_that_cannot_be_learnt_are_said_and_missed(tmp_path, capsys):
    """In train the model must know them; elsewhere they count, and are counted, as missed."""
    odd = Example("odd", "Ada knits Bo", (Triple(Span(0, 3), "knits", Span(10, 12)),))
    corpus = toy_corpus()
    once = replace(SETTINGS, epochs=1)
    with pytest.raises(ValueError, match=r"toy, train, example 'odd': unknown relation 'knits'"):
        run(tmp_path / "run", corpus=replace(corpus, train=(odd, *corpus.train)))
    assert not (tmp_path / "run").exists()
    _, record = run(tmp_path / "run", once, corpus=replace(corpus, test=(odd,)))
    assert "test: 1 triple of the relation 'knits' counted" in capsys.readouterr().err
    assert (record.scores["test"]["recall"], record.scores["test"]["gold"]) == (0.0, 1)
    with pytest.warns(UnknownRelationWarning, match="1 triple of the relation 'knits' counted"):
        scores = evaluate(new_model(corpus), [odd])
    assert (scores.micro.tp, scores.micro.gold) == (0, 1)
    many = [replace(odd, triples=(replace(odd.triples[0], relation=f"r{n}"),)) for n in range(9)]
    with pytest.warns(UnknownRelationWarning, match=r"9 triples of the relations 'r0', .*, … coun"):
        evaluate(new_model(corpus), many)


def test_the_way_is_told_where_no_bar_can_be_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_run, "MINUTE", 0.0)
    settings = replace(SETTINGS, epochs=2)
    run(tmp_path / "run", settings, progress=True)
    said = capsys.readouterr().err
    way = r"^epoch (\d) of 2: step (\d+) of 10, loss \d+\.\d{4}, at most \d+ min left$"
    steps = [(int(e), int(n)) for e, n in re.findall(way, said, flags=re.MULTILINE)]
    assert steps == [(epoch, step) for epoch in (1, 2) for step in range(1, 11)]
    monkeypatch.setattr(_run, "MINUTE", 3600.0)
    run(tmp_path / "other", settings, progress=True)
    assert "min left" not in capsys.readouterr().err


def test_long_texts_are_trained_in_windows(tmp_path, capsys, monkeypatch):
    """Each window is an item of the epoch, so there are more steps than sentences ask for."""
    monkeypatch.setattr(_run, "MINUTE", 0.0)
    long = Example("long", "Ada " + "really " * 100 + "met Bo", (), "own.jsonl, line 9")
    corpus = toy_corpus()
    corpus = replace(corpus, train=(*corpus.train[:11], long))
    _, record = run(tmp_path / "run", replace(SETTINGS, epochs=1), corpus, progress=True)
    (item, *more), losses = new_model(corpus).prepare([long])
    assert losses == {"text read in windows": 1, "window of a text": 1 + len(more)}
    assert (item.example, len(item), len(more)) == (0, 40, 4)
    assert record.data["unaligned"]["train"] == dict(losses)
    said = capsys.readouterr().err
    assert "1 text read in 5 windows [first own.jsonl, line 9]" in said
    assert "step 4 of 4," in said  # 11 + 5 items in batches of 4; 12 texts would make 3


def test_what_makes_a_poor_run_is_said(tmp_path, capsys):
    """In range and readable, but of no use: said before the first epoch, also without progress."""
    one = replace(SETTINGS, epochs=1)
    run(tmp_path / "few", one, corpus=toy_corpus(train=20, dev=0))
    said = capsys.readouterr().err
    assert "Warning: dev holds too few triples (2): chance decides" in said
    assert "ema" not in said
    run(tmp_path / "slow", replace(SETTINGS, ema=0.99))
    said = capsys.readouterr().err
    assert "Warning: ema 0.99 averages the weights of about 100 steps, and the whole run" in said
    assert "takes 60" in said
    assert "dev holds" not in said
    run(tmp_path / "fine", replace(SETTINGS, ema=0.9))
    assert capsys.readouterr().err == ""


def test_progress_is_told_on_request_only(tmp_path, capsys):
    run(tmp_path / "quiet", replace(SETTINGS, epochs=1))
    assert capsys.readouterr().err == ""
    _, record = run(tmp_path / "loud", replace(SETTINGS, epochs=1), progress=True)
    line = f"epoch 1: loss {record.epochs[0]['train_loss']:.4f}, dev precision "
    assert line in capsys.readouterr().err


# --- averaged weights ------------------------------------------------------------------------

EMA = replace(SETTINGS, ema=0.95)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    out = tmp_path_factory.mktemp("averaged") / "run"
    model, record = run(out, EMA)
    return out, model, record


def test_averaged_weights_are_the_mean_of_the_steps_taken(tmp_path, monkeypatch):
    """Each step's weights by hand, in float64, against what is kept after epochs 1 and 3."""
    walked = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        step(self, *args, **kwargs)
        walked.append([p.detach().double() for g in self.param_groups for p in g["params"]])

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    for epochs in (1, 3):
        walked.clear()
        monkeypatch.setattr(_run, "_best_epoch", len)  # keep the last
        model, _ = run(tmp_path / str(epochs), replace(EMA, epochs=epochs))
        assert len(walked) == 10 * epochs
        shares = [0.95**age for age in reversed(range(len(walked)))]
        for number, kept in enumerate((model.embedding.weight, *model.head.parameters())):
            mean = sum(s * w[number] for s, w in zip(shares, walked, strict=True)) / sum(shares)
            torch.testing.assert_close(kept.double(), mean, rtol=1e-5, atol=1e-6)
            assert not torch.allclose(kept.double(), walked[-1][number], rtol=1e-2)


@given(st.integers(1, 2000), st.floats(0.01, 0.9999))
def test_the_decay_rises_from_nothing_to_what_was_asked(step, decay):
    here, after = ema_decay(step, decay), ema_decay(step + 1, decay)
    assert ema_decay(1, decay) == 0.0
    assert 0 <= here <= after + 1e-9 < decay + 1e-8
    assert here <= (step - 1) / step + 1e-9  # never slower than the plain mean
    assert ema_decay(10**7, decay) == pytest.approx(decay)


def test_averaging_changes_what_is_kept_and_nothing_of_the_training(averaged, undisturbed):
    _, model, record = averaged
    assert record.curve("train_loss") == undisturbed[2].curve("train_loss")
    assert not torch.equal(model.head.weight, undisturbed[1].head.weight)
    assert record.curve("f1") != undisturbed[2].curve("f1")
    assert max(record.curve("f1")) > 0.8
    corpus = toy_corpus()
    for kept in (model, Toy.load(averaged[0] / "best")):
        for split in ("dev", "test"):
            assert evaluate(kept, corpus.split(split)).to_dict() == record.scores[split]
    assert record.scores["dev"]["f1"] == record.curve("f1")[record.best_epoch - 1]


@pytest.mark.parametrize("call", [2, 4, 6])
def test_averaging_is_resumed_exactly(tmp_path, monkeypatch, averaged, call):
    interrupt_at_score(monkeypatch, call)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", EMA)
    monkeypatch.undo()
    model, record = run(tmp_path / "run", EMA)
    assert_same_end(averaged, model, record, tmp_path / "run")


def test_averages_stay_in_float32_when_the_steps_compute_in_bf16(tmp_path):
    """In bf16 a twentieth of a small step would be rounded away."""
    write_toy_data(tmp_path / "data")
    done = start(command(tmp_path / "run", "--ema", "0.95"), ACCELERATE_MIXED_PRECISION="bf16")
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "run" / "record.json")
    assert record.hardware["precision"] == "bf16"
    assert max(record.curve("f1")) > 0.8
    kept = Toy.load(tmp_path / "run" / "best")
    for tensor in kept.state_dict().values():
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, tensor.bfloat16().float())


# --- evaluation and prediction ---------------------------------------------------------------


def test_predictions_come_in_order_with_a_confidence(undisturbed):
    _, model, _ = undisturbed
    texts = ["Bo met Ada", "", "Ada really really wrote Bo", "Cy"]
    found = predict(model, texts, batch_size=2)
    assert [len(sentence) for sentence in found] == [1, 0, 1, 0]
    (triple, confidence), (second, _) = found[0][0], found[2][0]
    assert triple == Triple(Span(0, 2), "knows", Span(7, 10))
    assert second == Triple(Span(0, 3), "author of", Span(24, 26))
    assert 0.5 < confidence < 1
    assert predict(model, []) == []


def test_nothing_to_evaluate_is_an_error(undisturbed):
    with pytest.raises(ValueError, match="expected at least one example to evaluate, got none"):
        evaluate(undisturbed[1], [])


# --- interruption ----------------------------------------------------------------------------


@pytest.mark.parametrize("call", [1, 2, 4, 6])
def test_interrupted_in_an_epoch_it_ends_as_if_undisturbed(
    tmp_path, monkeypatch, undisturbed, call
):
    interrupt_at_score(monkeypatch, call)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    monkeypatch.undo()
    model, record = run(tmp_path / "run")
    assert_same_end(undisturbed, model, record, tmp_path / "run")


def test_interrupted_between_checkpoint_and_model_it_ends_as_if_undisturbed(
    tmp_path, monkeypatch, undisturbed
):
    """At the last epoch that is the best so far: no later one writes the model again."""
    epochs = undisturbed[2].epochs
    last = sum(_run._best_epoch(epochs[:n]) == n for n in range(1, len(epochs) + 1))
    saves = 0

    def killed(self, folder):
        nonlocal saves
        saves += 1
        if saves == last:
            raise KeyboardInterrupt
        return save(self, folder)

    save = Toy.save
    monkeypatch.setattr(Toy, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    monkeypatch.undo()
    model, record = run(tmp_path / "run")
    assert_same_end(undisturbed, model, record, tmp_path / "run")


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, undisturbed):
    writes = 0

    def full(path, write):
        nonlocal writes
        writes += 1
        if writes == 3:

            def half(file):
                file.write(b"half")
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

            write_atomically(path, half)
        write_atomically(path, write)

    monkeypatch.setattr(_run, "write_atomically", full)
    with pytest.raises(OSError, match="No space left on device"):
        run(tmp_path / "run")
    monkeypatch.undo()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best", "checkpoint.pt"]
    (tmp_path / "run" / ".checkpoint.pt.1.partial").write_bytes(b"of an earlier kill")
    model, record = run(tmp_path / "run")
    assert_same_end(undisturbed, model, record, tmp_path / "run")


def command(out, *more):
    options = "--epochs 6 --batch-size 4 --lr 0.03 --head-lr 0.03 --patience 6 --quiet"
    data = str(out.parent / "data")
    head = ["-m", "tests.extraction.toy", "train", "--data", data, "--encoder", "toy"]
    return [*head, "--out", str(out), *options.split(), *more]


def start(arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def write_toy_data(folder):
    from lib.extraction.corpora import write_jsonl

    folder.mkdir()
    corpus = toy_corpus()
    for split, examples in corpus.splits().items():
        write_jsonl(folder / f"{split}.jsonl", examples)


def test_kill_nine_in_the_middle_ends_as_if_undisturbed(tmp_path):
    write_toy_data(tmp_path / "data")
    step = random.Random(time_seed := os.getpid()).randrange(11, 60)
    killed = start(command(tmp_path / "run"), TOY_DIES_AT_STEP=str(step))
    assert killed.returncode == -9, (step, time_seed, killed.stderr)
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    from lib.extraction.corpora import load_corpus

    corpus = load_corpus(str(tmp_path / "data"))
    options = {"encoder": "toy"}
    _, undisturbed = run(tmp_path / "undisturbed", corpus=corpus, options=options)
    model, resumed = run(tmp_path / "run", corpus=corpus, options=options)
    assert essence(resumed) == essence(undisturbed)
    for name, tensor in Toy.load(tmp_path / "undisturbed" / "best").state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


# --- one folder, one run ---------------------------------------------------------------------


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    def stop(self, optimizer, improved, _save=_run._Run.save_checkpoint):
        _save(self, optimizer, improved)
        raise KeyboardInterrupt

    monkeypatch.setattr(_run._Run, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run")
    monkeypatch.undo()
    return tmp_path / "run"


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    said = f"run is in use by process {os.getpid()} .*; choose a new folder, or wait"
    with hold(tmp_path / "run" / ".lock", tmp_path / "run"):
        with pytest.raises(ValueError, match=said):
            run(tmp_path / "run")
        assert os.listdir(tmp_path / "run") == [".lock"]
    run(tmp_path / "run", replace(SETTINGS, epochs=1))
    assert sorted(os.listdir(tmp_path / "run")) == ["best", "record.json"]


def test_files_that_other_processes_write_into_the_folder_stay(tmp_path):
    """As ``predict --output`` of a living process does."""
    (tmp_path / "run").mkdir()
    other = tmp_path / "run" / ".found.jsonl.1.partial"
    other.write_text("half")
    (tmp_path / "run" / ".record.json.1.partial").write_text("of a kill")
    run(tmp_path / "run", replace(SETTINGS, epochs=1))
    assert other.read_text() == "half"
    assert len(os.listdir(tmp_path / "run")) == 3


def test_another_run_in_the_folder_is_refused_naming_both(interrupted):
    for change, message in [
        ({"settings": replace(SETTINGS, lr=0.5)}, "its settings.lr is 0.03, this one's is 0.5"),
        (
            {"corpus": toy_corpus(sha256="1" * 64)},
            f"its data.sha256 is '{'0' * 64}', this one's is '{'1' * 64}'",
        ),
        (
            {"options": {"encoder": "toy"}},
            "its model.options.encoder is None, this one's is 'toy'",
        ),
    ]:
        with pytest.raises(ValueError, match=rf"holds a different run: {message}"):
            run(interrupted, **change)


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch, capsys):
    _, record = run(tmp_path / "run")
    monkeypatch.setattr(_run._Run, "fit", None)
    _, again = run(tmp_path / "run", progress=True)
    assert again == record
    assert "holds this run, finished: nothing to do" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"its settings\.seed is 0, this one's is 5"):
        run(tmp_path / "run", replace(SETTINGS, seed=5))


def test_killed_between_record_and_checkpoint_it_leaves_no_checkpoint(tmp_path, monkeypatch):
    def killed(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(_run._Run, "remove_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", replace(SETTINGS, epochs=1))
    monkeypatch.undo()
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    run(tmp_path / "run", replace(SETTINGS, epochs=1))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["best", "record.json"]


def test_a_model_without_its_checkpoint_is_not_overwritten(interrupted):
    (interrupted / "best").mkdir()
    (interrupted / "checkpoint.pt").unlink()
    with pytest.raises(ValueError, match=r"holds a model of another run \(best/\)"):
        run(interrupted)


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign", "other"])
def test_a_damaged_checkpoint_is_named(interrupted, damage):
    path = interrupted / "checkpoint.pt"
    if damage == "foreign":
        torch.save({"model": {}}, path)
    elif damage == "other":
        path.write_bytes(b"this is no checkpoint" * 100)
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -1000])
    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be read .*: remove .* to start"):
        run(interrupted)


def test_machines_that_do_not_share_the_folder_are_told(interrupted, monkeypatch):
    monkeypatch.setattr("accelerate.utils.gather_object", lambda found: [*found, 0])
    with pytest.raises(ValueError, match=r"checkpoints of different epochs, \[1, 0\]: .* share"):
        run(interrupted)


# --- several processes -----------------------------------------------------------------------


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_two_processes_equal_one(tmp_path, ema):
    """In batches of 3 the shares are unequal; 37 leave one of 1, in which a process idles."""
    write_toy_data(tmp_path / "data")
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0"]
    changes = ["--dropout", "0", "--batch-size", "3", "--ema", str(ema)]
    arguments = [*launch, *command(tmp_path / "two", *changes)]
    both = start(arguments, CUDA_VISIBLE_DEVICES="")
    assert both.returncode == 0, both.stderr
    two = read_record(tmp_path / "two" / "record.json")
    assert two.hardware["processes"] == 2
    assert two.command.startswith(
        "accelerate launch --num_processes 2 --mixed_precision no -m tests.extraction.toy train "
    )
    from lib.extraction.corpora import load_corpus

    corpus = load_corpus(str(tmp_path / "data"))
    model, one = run(
        tmp_path / "one",
        replace(SETTINGS, batch_size=3, ema=ema),
        corpus=corpus,
        dropout=0.0,
        options={"encoder": "toy", "dropout": 0.0},
    )
    assert two.curve("f1") == one.curve("f1")
    assert two.scores == one.scores
    assert two.curve("train_loss") == pytest.approx(one.curve("train_loss"), rel=1e-4)
    saved = Toy.load(tmp_path / "two" / "best").state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(saved[name], tensor, rtol=1e-4, atol=1e-5)
    assert json.loads(json.dumps(two.model)) == one.model
    assert both.stdout.count("best epoch") == 1


def test_two_processes_predict_and_evaluate_as_one(tmp_path):
    """Seven sentences in batches of two: the last batch of the last process is not full."""
    write_toy_data(tmp_path / "data")
    run(tmp_path / "run", replace(SETTINGS, epochs=3))
    source = tmp_path / "in.txt"
    source.write_text("".join(f"{sentence(number).text}\n" for number in range(7)))
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", "0", "-m", "tests.extraction.toy"]
    alone = ["-m", "tests.extraction.toy"]
    model = ["--model", str(tmp_path / "run"), "--quiet", "--batch-size", "2"]
    for words in (
        ["predict", *model, "--input", str(source)],
        ["evaluate", *model, "--data", str(tmp_path / "data")],
    ):
        one, two = (start([*head, *words], CUDA_VISIBLE_DEVICES="") for head in (alone, launch))
        assert (one.returncode, two.returncode) == (0, 0), two.stderr
        assert two.stdout == one.stdout
        assert one.stdout.count("\n") >= 7
