"""Thresholds and confidences of models: fitted, kept, used; and the page of errors."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.casrel import CasRel, tagged_spans
from lib.casrel.decoding import candidate_spans
from lib.extraction.calibration import Candidates, counts_at
from lib.extraction.errors import DISAGREE, errors_page, find_errors
from lib.extraction.fitting import fit_decoding
from lib.extraction.synthetic import synthetic_corpus
from lib.extraction.thresholds import Decoding, both_thresholds
from lib.extraction.training import (
    LongTextWarning,
    LostTripleWarning,
    UnknownRelationWarning,
    evaluate,
    find_candidates,
    predict,
)
from lib.extraction.triples import Example, Span, Triple
from lib.gplinker import GPLinker
from tests.extraction.test_calibration import made_up
from tests.extraction.toy import RELATIONS, Toy, toy_corpus

TINY = {"hidden_size": 24, "layers": 1, "attention_heads": 2, "min_count": 1}


@pytest.fixture(scope="module", params=[GPLinker, CasRel], ids=["gplinker", "casrel"])
def trained(request):
    """Return a model of some steps, with sentences of which it has not seen the last half."""
    examples = synthetic_corpus(0).train[:48]
    relations = sorted({t.relation for e in examples for t in e.triples})
    torch.manual_seed(0)
    model = request.param.create("small", relations, texts=[e.text for e in examples], **TINY)
    items, _ = model.prepare(examples[:24])
    optimiser = torch.optim.AdamW(model.parameter_groups(1e-2, 1e-2, 0.0))
    for _ in range(25 if request.param is GPLinker else 150):
        optimiser.zero_grad()
        model(**model.collate(items)).backward()
        optimiser.step()
    return model.eval(), examples


@pytest.mark.parametrize("match", ["exact", "text"])
def test_candidates_are_counted_as_evaluate_counts_at_every_threshold(trained, match):
    model, examples = trained
    sentences = find_candidates(model, examples, floor=-4.0, match=match)
    counted = [counts_at(sentences, t) for t in (-4.0, -1.5, 0.0, 0.7, 2.5)]
    assert len(set(counted)) > 2
    for threshold, counts in zip((-4.0, -1.5, 0.0, 0.7, 2.5), counted, strict=True):
        assert counts == evaluate(model, examples, match=match, threshold=threshold).micro


def test_candidates_of_overlapping_windows_count_once():
    model = Toy.create("toy", RELATIONS, texts=["Bo met Ada"])
    with torch.no_grad():
        model.head.bias.fill_(1.0)
    text = " ".join(["Bo met Ada and"] * 30)  # read in windows
    examples = [Example("1", text, (Triple(Span(0, 2), "knows", Span(4, 7)),))]
    with pytest.warns(LongTextWarning):
        sentences = find_candidates(model, examples, floor=-9.0)
    with pytest.warns(LongTextWarning):
        counts = evaluate(model, examples).micro
    assert counts_at(sentences, 0.0) == counts
    assert counts.predicted > len(RELATIONS)  # several windows
    both = [
        Candidates((1.0, 3.0), (True, True), 1, (-math.inf, 2.0)),
        Candidates((1.0, 3.0), (True, True), 2, (-math.inf, 0.5)),
    ]
    assert [counts_at(both, t).tp for t in (0.0, 0.7, 1.5, 2.5)] == [2, 3, 1, 2]


@given(seed=st.integers(0, 2**32 - 1), threshold=st.integers(-4, 9).map(lambda n: n / 4))
def test_candidate_spans_are_the_tagged_spans_of_every_threshold(seed, threshold):
    torch.manual_seed(seed)
    margins = (torch.randn(2, 3, 7, 2) * 8).round() / 4  # scores meet thresholds
    margins[0, :, 5:] = -math.inf
    found = candidate_spans(margins, -1.0)
    expected = tagged_spans(margins - threshold)
    alive = [span for span in found if span.low <= threshold < span.score]
    assert sorted(span.place for span in alive) == sorted(map(tuple, expected.spans.tolist()))
    least = dict(zip(map(tuple, expected.spans.tolist()), expected.margins.tolist(), strict=True))
    assert all(span.score == least[span.place] + threshold for span in alive)


def test_wrong_candidates_are_refused():
    for wrong, message in (
        ({"lows": (0.0,)}, "lows must have one entry per score, 2, or none, got 1"),
        ({"lows": (0.0, 2.0)}, "scores must be above their lows, got 2.0 with low 2.0"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            Candidates((1.0, 2.0), (True, False), 1, **wrong)


def test_two_thresholds_are_for_the_two_kinds_of_tables(trained):
    model, examples = trained
    items, _ = model.prepare(examples)

    def found(threshold):
        return [{t for t, _ in of} for of in model.extract_scored(items, threshold=threshold)]

    low, high = found(-2.0), found(1.5)
    assert found((1.5, 1.5)) == high
    ways = found((1.5, -2.0)), found((-2.0, 1.5))
    assert ways[0] != ways[1]
    if isinstance(model, GPLinker):  # what both say no to, either says no to
        for a, b, c, d in zip(low, *ways, high, strict=True):
            assert d == b & c
            assert b | c <= a


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ((1.0,), "threshold must be one number or two, got (1.0,)"),
        ([1, 2, 3], "threshold must be one number or two, got [1, 2, 3]"),
        ("12", "threshold must be one number or two, got '12'"),
        ((0.0, math.nan), "threshold must be a finite number, got nan"),
    ],
)
def test_wrong_thresholds_are_refused(wrong, message, trained):
    for call in (both_thresholds, lambda t: Decoding(threshold=t)):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(wrong)


@pytest.mark.parametrize("wrong", [{"scale": 0.0}, {"scale": math.inf}, {"offset": math.nan}])
def test_a_confidence_needs_numbers(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} must be .*, got"):
        Decoding(**wrong)


def test_a_model_keeps_its_decoding_and_uses_it(trained, tmp_path):
    model, examples = trained
    texts = [e.text for e in examples]
    plain = model.predict(texts)
    model.decoding = Decoding(threshold=(1.5, 0.5), scale=2.0, offset=-3.0)
    try:
        model.save(tmp_path / "model")
        loaded = type(model).load(tmp_path / "model")
        assert loaded.decoding == model.decoding
        chosen = loaded.predict(texts)
        assert chosen == model.predict(texts, threshold=(1.5, 0.5)) != plain
        asked = loaded.predict(texts, threshold=0.0)
        assert [[t.triple() for t in of] for of in asked] == [
            [t.triple() for t in of] for of in plain
        ]
        for of, was in zip(asked, plain, strict=True):
            for triple, before in zip(of, was, strict=True):
                score = math.log(before.confidence / (1 - before.confidence))
                confidence = 1 / (1 + math.exp(3.0 - 2 * score))
                assert triple.confidence == pytest.approx(confidence, rel=1e-4)
        assert evaluate(loaded, examples) == evaluate(model, examples, threshold=(1.5, 0.5))
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        for wrong, message in (
            ({"threshold": "0"}, "threshold must be one number or two"),
            ({"scale": "big"}, "scale must be of the kind of 1.0"),
            ({"slope": 1.0}, "unknown option 'slope'"),
        ):
            changed = config | {"decoding": wrong}
            (tmp_path / "model" / "config.json").write_text(json.dumps(changed))
            with pytest.raises(ValueError, match=message):
                type(model).load(tmp_path / "model")
        del config["decoding"]  # as former versions wrote it
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        assert type(model).load(tmp_path / "model").decoding == Decoding()
    finally:
        model.decoding = Decoding()


def test_training_sets_the_decoding_back(tmp_path):
    from lib.extraction.training import Settings, train

    corpus = toy_corpus()
    model = Toy.create("toy", RELATIONS, texts=[e.text for e in corpus.train])
    model.decoding = Decoding(threshold=99.0)
    record = train(model, corpus, tmp_path / "run", Settings(epochs=3, lr=0.05, head_lr=0.05))
    assert record.scores["dev"]["predicted"] > 0
    assert Toy.load(tmp_path / "run").decoding == Decoding()


def test_what_is_fitted_and_what_is_said_of_it():
    sentences = made_up(400, seed=1, scale=2.0, offset=-3.0)
    decoding, report = fit_decoding(sentences, floor=-5.0)
    (threshold, other) = decoding.threshold
    assert 0.5 < threshold == other < 2.0  # where a triple is right as often as half of F1
    assert decoding.scale == pytest.approx(2.0, rel=0.4)
    assert decoding.confidence(1.5) == pytest.approx(0.5, abs=0.1)
    assert f"threshold: {threshold:.3f}" in report
    assert "gain in F1 on sentences that did not choose: +0." in report
    assert report.count("   said   right  triples") == 2

    few, report = fit_decoding(made_up(8, seed=1), floor=-5.0)
    assert few == Decoding()
    assert "threshold: 0, as the gain may be noise" in report
    assert "confidence: not fitted, of the" in report


class Reader(HTMLParser):
    """Collects the words of a page, and refuses a tag that a text has smuggled in."""

    def __init__(self, page):
        super().__init__()
        self.words, self.tags = [], set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        assert not {"src", "href"} & {name for name, _ in attrs}
        self.tags.add(tag)

    def handle_data(self, data):
        self.words.append(data)


def test_errors_are_those_that_evaluate_counts_and_the_blamed_tables_said_no(trained):
    model, examples = trained
    known = set(model.relations)
    odd = Example("odd", "Ada met <i>Bo</i>", (Triple(Span(1, 3), model.relations[0], Span(8, 9)),))
    strange = Example("strange", "Ada met Bo", (Triple(Span(0, 3), "<knits>", Span(8, 10)),))
    given = [*examples, odd, strange]
    with pytest.warns(UnknownRelationWarning), pytest.warns(LostTripleWarning):
        scores = evaluate(model, given, threshold=1.0).micro
    errors = find_errors(model, given, threshold=1.0)
    missed = [m for error in errors for m in error.missed]
    assert len(missed) == scores.gold - scores.tp
    assert sum(len(error.wrong) for error in errors) == scores.predicted - scores.tp
    assert sum(bool(m.said_no) for m in missed) > 3
    for m in missed:
        assert bool(m.said_no) != bool(m.reason)
        if m.said_no:
            least = min(m.scores)
            assert model.tables[m.scores.index(least)] in m.said_no
            assert (
                least
                <= 1.0
                < min(
                    [s for n, s in zip(model.tables, m.scores, strict=True) if n not in m.said_no],
                    default=math.inf,
                )
            )
        else:
            assert m.reason in (
                "entity not on token borders",
                "relation unknown to the model",
                DISAGREE,
            )
            assert (m.reason != DISAGREE) == (m.triple.relation not in known or m.scores == ())
    page = errors_page(errors, tables=model.tables, texts=len(given), title="On <dev>")
    read = Reader(page)
    assert "i" not in read.tags
    words = "".join(read.words)
    for text in ("<i>Bo</i>", "<knits>", "On <dev>", f"{len(errors)} of {len(given)} texts"):
        assert text in words


def test_a_score_of_a_table_is_the_one_that_decides(trained):
    """The least of a found triple's scores is the one that extraction gives."""
    model, examples = trained
    items, _ = model.prepare(examples)
    compared = 0
    for of_item, item in zip(model.extract_scored(items, threshold=-2.0), items, strict=True):
        for triple, scores in model.table_scores([item])[0]:
            if triple in dict(of_item):
                assert min(scores) == pytest.approx(dict(of_item)[triple], abs=1e-4)
                compared += 1
    assert compared > 10


def test_a_wrong_triple_is_told_by_what_comes_nearest():
    text = "Ada Byron met Bo"
    gold = Triple(Span(0, 9), "knows", Span(14, 16))
    model = Toy.create("toy", RELATIONS, texts=[text])
    for guess, reason in (
        (replace(gold, relation="spouse of"), "another relation: Ada Byron | knows | Bo"),
        (Triple(gold.object, "knows", gold.subject), "subject and object exchanged: Ada Byron"),
        (replace(gold, subject=Span(0, 3)), "other borders: Ada Byron | knows | Bo"),
        (Triple(Span(10, 13), "knows", Span(14, 16)), "nothing like it is annotated"),
    ):
        model.extract_scored = lambda items, threshold, guess=guess: [((guess, 1.0),)]
        (error,) = find_errors(model, [Example("1", text, (gold,))])
        (wrong,) = error.wrong
        assert wrong.reason.startswith(reason)
        assert (wrong.triple, error.missed[0].triple, error.right) == (guess, gold, ())
    assert predict(model, [text])[0][0][1] == pytest.approx(1 / (1 + math.exp(-1)))


@pytest.mark.parametrize("options", [{}, {"pointer": "standard"}, None], ids=str)
def test_a_new_model_starts_from_what_an_old_one_knows(options, tmp_path):
    """Relations in another order, one gone and one new: the others are scored as before."""
    kind = CasRel if options is None else GPLinker
    text = "Ada Byron met Bo"
    torch.manual_seed(1)
    old = kind.create("small", ["a", "b", "c"], texts=[text], **TINY, **(options or {}))
    with torch.no_grad():
        for parameter in old.parameters():
            parameter.normal_(std=0.3)
    old.symmetric = ("a", "b")
    old.card = "# Card ü"
    old.decoding = Decoding(threshold=1.0)
    old.save_pretrained(tmp_path / "old")
    assert kind.from_pretrained(tmp_path / "old").card == "# Card ü"
    assert kind.from_pretrained(tmp_path / "old").symmetric == ("a", "b")
    new = kind.start_from(tmp_path / "old", ["c", "new", "a"])
    assert (new.relations, new.symmetric, new.training) == (("c", "new", "a"), ("a",), True)
    assert (new.card, new.decoding) == ("", Decoding())
    ends = Span(0, 9), Span(14, 16)
    said = {}
    for model in (old, new):
        triples = tuple(Triple(ends[0], name, ends[1]) for name in model.relations)
        items, _ = model.prepare([Example("1", text, triples)])
        said[model] = {t.relation: scores for t, scores in model.table_scores(items)[0]}
    for name in ("a", "c"):
        assert said[new][name] == pytest.approx(said[old][name], abs=1e-5)
    assert len({scores[2:] for scores in said[old].values()}) == 3  # each has its own rows


def test_symmetric_relations_must_be_known(tmp_path):
    model = GPLinker.create("small", ["a"], texts=["Ada"], **TINY)
    model.save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"symmetric": ["b"]}))
    with pytest.raises(ValueError, match="symmetric must be among the relations, got 'b'"):
        GPLinker.load(tmp_path / "model")
