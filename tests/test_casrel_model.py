"""`lib.casrel`: sampling, tags, decoding, the model, its training, and its command line."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lib.casrel import (
    CasRel,
    ConditionalLayerNorm,
    TaggedSpans,
    TaggingOptions,
    choose_subjects,
    conditional_layer_norm,
    extract_reencoding,
    model,
    nearest_end_spans,
    object_tags,
    power_threshold,
    sample_subject,
    subject_distribution,
    subject_tags,
    tagged_spans,
)
from lib.casrel.__main__ import main
from lib.casrel.decoding import keep_best
from lib.extraction.alignment import TokenTriple
from lib.extraction.corpora import load_corpus, write_jsonl
from lib.extraction.records import read_record
from lib.extraction.training import Settings, _run, set_seed, train
from lib.extraction.triples import Example, Triple
from lib.gplinker import GPLinker
from tests.casrel_without_dropout import Quiet
from tests.extraction.strategies import examples
from tests.extraction.test_training import essence
from tests.extraction.toy import toy_corpus
from tests.test_gplinker import EIGHT, bert_files, example, token_triples

ROOT = Path(__file__).parents[1]
RELATIONS = ("wrote", "lives in", "runs")
TINY = {
    "hidden_size": 16,
    "layers": 1,
    "attention_heads": 2,
    "min_count": 1,
    "dropout": 0.0,
    "word_dropout": 0.0,
}
RULES = ["all", "uniform", "published"]


def small(relations=RELATIONS, data=EIGHT, seed=0, **options):
    torch.manual_seed(seed)
    return CasRel.create("small", relations, texts=[e.text for e in data], **(TINY | options))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return bert_files(tmp_path_factory.mktemp("bert"))


@pytest.fixture(params=["small", "transformers"])
def made(request, bert):
    """Return one untrained model of each kind."""
    if request.param == "small":
        return small()
    torch.manual_seed(0)
    return CasRel.create(bert, RELATIONS)


def scrambled(tagger, scale=1.0):
    """Return a model in float64 whose weights, the maps of the subject too, are far from start."""
    tagger = tagger.double()
    torch.manual_seed(3)
    with torch.no_grad():
        for part in (tagger.subjects, tagger.norm, tagger.objects):
            for parameter in part.parameters():
                parameter.add_(torch.randn_like(parameter) * scale)
    return tagger


def learn(tagger, items, steps=100, lr=5e-3):
    """Fit a model to its items by heart."""
    optimiser = torch.optim.AdamW(tagger.parameter_groups(lr, 2 * lr, 0.0))
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = tagger(**tagger.collate(items))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tagger.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses


class TestSampling:
    @pytest.mark.parametrize("rule", ["uniform", "published"])
    @pytest.mark.parametrize(
        "subjects",
        [
            [(2, 4)],
            [(0, 1), (3, 3), (5, 8)],
            [(0, 5), (2, 3)],  # one holds the other
            [(1, 2), (1, 6), (4, 4)],  # two share their start
            [(1, 4), (3, 4), (0, 0)],  # two share their end; not in reading order
        ],
    )
    def test_frequencies_are_the_distribution(self, subjects, rule):
        generator = torch.Generator().manual_seed(0)
        draws = 4000
        seen = Counter(sample_subject(subjects, rule, generator=generator) for _ in range(draws))
        expected = subject_distribution(subjects, rule)
        assert set(seen) == set(expected)
        for pair, probability in expected.items():
            spread = math.sqrt(probability * (1 - probability) / draws)
            assert seen[pair] / draws == pytest.approx(float(probability), abs=4.5 * spread + 1e-9)

    def test_random_numbers_come_from_the_global_generator(self):
        subjects = [(i, i) for i in range(100)]
        for rule in ("uniform", "published"):
            torch.manual_seed(5)
            first = [sample_subject(subjects, rule) for _ in range(5)]
            assert first != [sample_subject(subjects, rule) for _ in range(5)]
            torch.manual_seed(5)
            assert first == [sample_subject(subjects, rule) for _ in range(5)]
            state = torch.get_rng_state()
            sample_subject(subjects, rule, generator=torch.Generator())
            assert torch.equal(torch.get_rng_state(), state)

    def test_chosen_subjects(self):
        batch = [
            [TokenTriple(4, 5, 0, 0, 0), TokenTriple(1, 1, 0, 2, 2), TokenTriple(4, 5, 1, 2, 2)],
            [],
            [TokenTriple(0, 0, 0, 1, 1)],
        ]
        assert choose_subjects(batch, "all").tolist() == [[0, 1, 1], [0, 4, 5], [2, 0, 0]]
        one = choose_subjects(batch, "uniform").tolist()
        assert [row[0] for row in one] == [0, 2]
        assert one[0] in [[0, 1, 1], [0, 4, 5]]
        drawn = {tuple(choose_subjects(batch[:1], "published")[0].tolist()) for _ in range(60)}
        assert drawn == {(0, 1, 1), (0, 1, 5), (0, 4, 5)}
        for rule in RULES:
            nothing = choose_subjects([[], []], rule)
            assert nothing.shape == (0, 3)
            assert nothing.dtype == torch.int64

    def test_errors(self):
        with pytest.raises(ValueError, match="expected 'uniform' or 'published', got 'all'"):
            sample_subject([(0, 1)], "all")
        with pytest.raises(ValueError, match="subjects: expected at least one subject, got none"):
            sample_subject([])
        for rule in ("uniform", "published"):
            with pytest.raises(ValueError, match=r"0 <= start <= end, got \(5, 3\)"):
                sample_subject([(0, 1), (5, 3)], rule)
            with pytest.raises(ValueError, match=r"all different, got \(0, 1\) twice"):
                sample_subject([(0, 1), (0, 1)], rule)
        with pytest.raises(ValueError, match=r"rule: expected 'all', .* got 'some'"):
            choose_subjects([[]], "some")


class TestTags:
    @given(token_triples(), token_triples())
    def test_equal_the_definition(self, first, second):
        batch = [first, second]
        tags = subject_tags(batch, length=7)
        chosen = choose_subjects(batch, "all")
        objects = object_tags(batch, chosen, length=7, relations=3)
        for text, triples in enumerate(batch):
            for i in range(7):
                assert tags[text, i, 0] == any(t.subject_head == i for t in triples)
                assert tags[text, i, 1] == any(t.subject_tail == i for t in triples)
        assert objects.shape == (len(chosen), 7, 3, 2)
        for row, (text, head, tail) in enumerate(chosen.tolist()):
            own = [t for t in batch[text] if (t.subject_head, t.subject_tail) == (head, tail)]
            assert own
            for i in range(7):
                for r in range(3):
                    of = [t for t in own if t.relation == r]
                    assert objects[row, i, r, 0] == any(t.object_head == i for t in of)
                    assert objects[row, i, r, 1] == any(t.object_tail == i for t in of)

    def test_a_pair_that_is_no_subject_has_no_objects(self):
        batch = [[TokenTriple(0, 1, 0, 4, 4), TokenTriple(2, 3, 0, 4, 4)]]
        for wrong in ([0, 0, 3], [0, 0, 0], [0, 1, 1]):
            assert not object_tags(batch, torch.tensor([wrong]), length=5, relations=1).any()

    def test_nothing(self):
        assert subject_tags([], length=3).shape == (0, 3, 2)
        nobody = torch.zeros(0, 3, dtype=torch.int64)
        assert object_tags([[]], nobody, length=3, relations=2).shape == (0, 3, 2, 2)


class TestDecoding:
    @given(
        st.lists(st.integers(1, 3), max_size=2),
        st.integers(1, 9),
        st.integers(0, 2**31),
        st.floats(-1.0, 1.0),
    )
    def test_equals_the_published_pairing_row_by_row(self, lead, length, seed, shift):
        generator = torch.Generator().manual_seed(seed)
        margins = torch.randn(*lead, length, 2, generator=generator, dtype=torch.float64) + shift
        found = tagged_spans(margins)
        expected = []
        for index in product(*map(range, lead)):
            row = margins[index]
            starts, ends = ((row[:, k] > 0).nonzero()[:, 0].tolist() for k in (0, 1))
            for a, b in nearest_end_spans(starts, ends):
                least = min(row[a, 0].item(), row[b, 1].item())
                expected.append(([*index, a, b], least))
        assert found.spans.tolist() == [span for span, _ in expected]
        assert found.margins.tolist() == [least for _, least in expected]
        assert found.spans.dtype == torch.int64

    @given(st.sets(st.integers(0, 11), max_size=8))
    def test_disjoint_spans_come_back(self, borders):
        borders = sorted(borders)
        spans = list(zip(borders[::2], borders[1::2], strict=False))
        margins = torch.full((1, 12, 2), -1.0)
        for a, b in spans:
            margins[0, a, 0] = margins[0, b, 1] = 1.0
        assert tagged_spans(margins).spans.tolist() == [[0, a, b] for a, b in spans]

    def test_zero_tags_nothing_and_neither_does_minus_infinity(self):
        margins = torch.full((1, 3, 2), -torch.inf)
        margins[0, 0, 0] = margins[0, 1, 1] = 1e-30
        assert len(tagged_spans(margins).spans) == 1
        for cell in ((0, 0, 0), (0, 1, 1)):
            zero = margins.clone()
            zero[cell] = 0.0
            assert tagged_spans(zero).spans.shape == (0, 3)

    def test_ends_of_the_next_row_are_not_taken(self):
        margins = torch.full((2, 3, 2), -1.0)
        margins[0, 2, 0] = margins[1, 0, 1] = 1.0
        assert len(tagged_spans(margins).spans) == 0

    @pytest.mark.parametrize("shape", [(0, 2), (3, 0, 2), (0, 4, 2), (2, 0, 4, 2)])
    def test_nothing(self, shape):
        found = tagged_spans(torch.zeros(shape))
        assert found.spans.shape == (0, len(shape))
        assert found.margins.shape == (0,)

    def test_errors(self):
        with pytest.raises(ValueError, match=r"expected shape \(\.\.\., L, 2\), got \(2,\)"):
            tagged_spans(torch.zeros(2))
        with pytest.raises(ValueError, match=r"expected shape .* got \(2, 3\)"):
            tagged_spans(torch.zeros(2, 3))
        with pytest.raises(ValueError, match="margins: expected numbers, got NaN"):
            tagged_spans(torch.tensor([[0.0, torch.nan]]))

    def test_the_best_of_each_group_are_kept_in_order(self):
        groups = torch.tensor([0, 0, 0, 2, 3, 3])
        spans = torch.stack((groups, torch.arange(6), torch.arange(6)), 1)
        found = TaggedSpans(spans, torch.tensor([2.0, 3.0, 1.0, 9.0, 1.0, 5.0]))
        assert keep_best(found, 2).spans[:, 1].tolist() == [0, 1, 3, 4, 5]
        assert keep_best(found, 1).spans[:, 1].tolist() == [1, 3, 5]
        assert keep_best(found, 1).margins.tolist() == [3.0, 9.0, 5.0]
        assert keep_best(found, 3) is found
        nothing = TaggedSpans(spans[:0], found.margins[:0])
        assert keep_best(nothing, 1) is nothing


class TestConditionalLayerNorm:
    def test_starts_as_a_layer_norm(self):
        norm = ConditionalLayerNorm(6, 4).double()
        hidden = torch.randn(2, 3, 6, dtype=torch.float64)
        expected = torch.nn.functional.layer_norm(hidden, (6,), eps=1e-12)
        torch.testing.assert_close(norm(hidden, torch.randn(2, 4).double()), expected)

    def test_is_the_function_of_its_parameters(self):
        norm = ConditionalLayerNorm(6, 4, eps=0.5)
        with torch.no_grad():
            for parameter in norm.parameters():
                parameter.copy_(torch.randn_like(parameter))
        hidden, condition = torch.randn(2, 3, 6), torch.randn(2, 4)
        parts = (norm.weight, norm.bias, norm.weight_map, norm.bias_map)
        expected = conditional_layer_norm(hidden, condition, *parts, 0.5)
        assert torch.equal(norm(hidden, condition), expected)
        assert "6, 4, eps=0.5" in repr(norm)


def bce(score, positive, power):
    """Cross-entropy of the power link in plain arithmetic."""
    probability = (1 / (1 + math.exp(-score))) ** power
    return -math.log(probability if positive else 1 - probability)


def loss_loop(tagger, item):
    """Loss of one text, all subjects taught, tag by tag."""
    batch = tagger.collate_texts([item])
    cells = batch.pop("cells")
    hidden = tagger.encoder(**batch)
    tokens = [i for i in range(len(item)) if cells[0, i]]
    powers = tagger.options.power
    scores = tagger.subjects(hidden)[0].tolist()
    total = 0.0
    for i in tokens:
        for k, name in enumerate(("subject_head", "subject_tail")):
            gold = any(getattr(t, name) == i for t in item.triples)
            total += bce(scores[i][k], gold, powers[0]) / 2 / len(tokens)
    for a, b in sorted({(t.subject_head, t.subject_tail) for t in item.triples}):
        scores = tagger.object_scores(hidden, torch.tensor([[0, a, b]]))[0].tolist()
        own = [t for t in item.triples if (t.subject_head, t.subject_tail) == (a, b)]
        for i in tokens:
            for r in range(len(tagger.relations)):
                for k, name in enumerate(("object_head", "object_tail")):
                    gold = any(getattr(t, name) == i and t.relation == r for t in own)
                    total += bce(scores[i][r][k], gold, powers[1]) / 2 / len(tokens)
    return total


def with_choice(batch, chosen, items, relations):
    chosen = torch.tensor(chosen)
    length = batch["cells"].shape[1]
    tags = object_tags([i.triples for i in items], chosen, length=length, relations=len(relations))
    return batch | {"chosen": chosen, "object_tags": tags}


class TestLoss:
    @pytest.mark.parametrize("power", [(2, 4), (1, 1), (3, 0.5)])
    def test_equals_the_loops(self, made, power):
        tagger = scrambled(made, 0.3).eval()
        tagger.options = replace(tagger.options, power=power)
        items, _ = tagger.prepare(EIGHT)
        expected = sum(loss_loop(tagger, item) for item in items) / len(items)
        assert tagger(**tagger.collate(items)).item() == pytest.approx(expected, rel=1e-9)

    def test_all_subjects_are_the_draws_added_up(self):
        """m times the mean over the uniform draw, less the subjects' part counted too often."""
        tagger = scrambled(small()).eval()
        items, _ = tagger.prepare(EIGHT[-1:])
        whole = tagger.collate(items)
        pairs = whole["chosen"].tolist()
        assert len(pairs) == 2
        one = [tagger(**with_choice(whole, [pair], items, RELATIONS)).item() for pair in pairs]
        none = tagger(
            **whole | {"chosen": whole["chosen"][:0], "object_tags": whole["object_tags"][:0]}
        ).item()
        assert tagger(**whole).item() == pytest.approx(sum(one) - none, rel=1e-12)
        assert min(one) > none > 0

    @pytest.mark.parametrize("rule", ["uniform", "published"])
    def test_one_subject_per_text_is_drawn(self, rule):
        tagger = small(sampling=rule)
        items, _ = tagger.prepare(EIGHT)
        torch.manual_seed(0)
        first = tagger.collate(items)
        second = tagger.collate(items)
        torch.manual_seed(0)
        again = tagger.collate(items)
        assert first["chosen"][:, 0].tolist() == [0, 1, 2, 3, 5, 6, 7]
        assert all(torch.equal(first[name], again[name]) for name in first)
        draws = {tuple(tagger.collate(items)["chosen"][-1].tolist()[1:]) for _ in range(40)}
        assert len(draws) == (2 if rule == "uniform" else 3)
        assert torch.equal(first["subject_tags"], second["subject_tags"])

    def test_texts_without_words_or_triples(self, made):
        items, _ = made.prepare([Example("", ""), Example("", " \n")])
        loss = made(**made.collate(items))
        assert loss == 0
        loss.backward()
        assert all((p.grad == 0).all() for p in made.parameters())
        assert made.extract(items) == [(), ()]
        items, _ = made.prepare([EIGHT[4]])
        assert made(**made.collate(items)) > 0

    @pytest.mark.parametrize("data", [EIGHT, EIGHT[4:5]])
    def test_every_trained_parameter_takes_part(self, made, data):
        """Distributed training needs that, in every forward, also without a subject."""
        made(**made.collate(made.prepare(data)[0])).backward()
        assert [n for n, p in made.named_parameters() if p.requires_grad and p.grad is None] == []

    def test_neighbours_change_nothing(self, made):
        tagger = scrambled(made).eval()
        items, _ = tagger.prepare(EIGHT)
        alone = [tagger(**tagger.collate([item])).item() for item in items]
        together = tagger(**tagger.collate(items)).item()
        assert together == pytest.approx(sum(alone) / len(alone), rel=1e-9)

    def test_the_condition_is_learned(self):
        """The maps start at zero, but not their gradient."""
        tagger = small()
        tagger(**tagger.collate(tagger.prepare(EIGHT)[0])).backward()
        assert tagger.norm.weight_map.grad.abs().max() > 0
        assert tagger.norm.bias_map.grad.abs().max() > 0

    def test_the_first_loss_is_that_of_the_priors(self):
        """At score 0 a tag has probability 2**-power."""
        tagger = small()
        with torch.no_grad():
            for part in (tagger.subjects, tagger.objects):
                part.weight.zero_()
                part.bias.zero_()
        items, _ = tagger.prepare(EIGHT[4:5])
        expected = -math.log(1 - 2**-2)
        assert tagger(**tagger.collate(items)).item() == pytest.approx(expected, rel=1e-6)

    def test_float64_and_autocast(self, made):
        made.eval()
        batch = made.collate(made.prepare(EIGHT)[0])
        plain = made(**batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = made(**batch)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(plain.item(), rel=0.05)
        loss.backward()
        assert all(p.grad.isfinite().all() for p in made.parameters())
        made.zero_grad()
        loss = made.double()(**batch)
        assert loss.dtype == torch.float64
        loss.backward()
        assert {p.grad.dtype for p in made.parameters()} == {torch.float64}

    def test_groups_hold_each_parameter_once(self, made):
        groups = made.parameter_groups(1e-5, 1e-3, 0.01)
        names = {id(p): n for n, p in made.named_parameters()}
        assert sorted(id(p) for g in groups for p in g["params"]) == sorted(names)
        for group in groups:
            for p in group["params"]:
                encoder = names[id(p)].startswith("encoder.")
                assert group["lr"] == (1e-5 if encoder else 1e-3)
                assert group["weight_decay"] == (0.01 if p.dim() > 1 else 0.0)


def test_object_scores_are_conditioned_on_both_ends():
    tagger = scrambled(small())
    hidden = torch.randn(2, 5, 16, dtype=torch.float64)
    chosen = [[1, 0, 2], [0, 1, 1], [0, 3, 4]]
    scores = tagger.object_scores(hidden, torch.tensor(chosen))
    norm = tagger.norm
    for row, (text, a, b) in enumerate(chosen):
        condition = torch.cat((hidden[text, a], hidden[text, b]))
        parts = (norm.weight, norm.bias, norm.weight_map, norm.bias_map)
        states = conditional_layer_norm(hidden[text], condition, *parts)
        flat = states @ tagger.objects.weight.T + tagger.objects.bias
        for r in range(3):
            for k in range(2):
                torch.testing.assert_close(scores[row, :, r, k], flat[:, 2 * r + k])


class Table(torch.nn.Module):
    """Stands in for a linear map: returns a table of scores."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def forward(self, _hidden):
        return self.scores


def with_tables(monkeypatch, tagger, subject_scores, object_scores):
    """Make a model score its only text by tables; one of objects for each pair of positions."""
    tagger.subjects = Table(subject_scores)
    monkeypatch.setattr(
        tagger,
        "object_scores",
        lambda hidden, chosen: torch.stack([object_scores[a, b] for _, a, b in chosen.tolist()]),
    )


def gold_tables(item, relations, inside=5.0, outside=-5.0):
    """Return the tables that say exactly what an item's triples are."""

    def score(tags):
        return torch.where(tags, inside, outside).double()

    length = len(item)
    pairs = torch.tensor([[0, a, b] for a in range(length) for b in range(length)])
    objects = object_tags([item.triples], pairs, length=length, relations=relations)
    return (
        score(subject_tags([item.triples], length=length)),
        score(objects).view(length, length, length, relations, 2),
    )


def decode_loop(tagger, item, subject_scores, object_scores):
    """Published decoding, one comparison at a time; a margin for each triple."""
    cells = [start < end for start, end in item.offsets]
    s_power, o_power = tagger.options.power
    s_cut = [power_threshold(s_power, p) for p in tagger.options.subject_thresholds]
    o_cut = power_threshold(o_power)
    length = len(item)
    found = {}
    for a in range(length):
        if not (cells[a] and subject_scores[0, a, 0] > s_cut[0]):
            continue
        for b in range(a, length):
            if not (cells[b] and subject_scores[0, b, 1] > s_cut[1]):
                continue
            table = object_scores[a, b]
            for c in range(length):
                for r in range(len(tagger.relations)):
                    if not (cells[c] and table[c, r, 0] > o_cut):
                        continue
                    for d in range(c, length):
                        if cells[d] and table[d, r, 1] > o_cut:
                            found[TokenTriple(a, b, r, c, d)] = min(
                                subject_scores[0, a, 0].item() - s_cut[0],
                                subject_scores[0, b, 1].item() - s_cut[1],
                                table[c, r, 0].item() - o_cut,
                                table[d, r, 1].item() - o_cut,
                            )
                            break
            break
    return found


class TestExtraction:
    @pytest.mark.parametrize(
        "options",
        [{}, {"power": (1, 1)}, {"power": (1, 3), "subject_thresholds": (0.6, 0.3)}],
    )
    @pytest.mark.parametrize("seed", range(6))
    def test_equals_the_loop_on_random_tags(self, monkeypatch, options, seed):
        tagger = small(**options).double()
        (item,), _ = tagger.prepare(EIGHT[3:4])
        length = len(item)
        torch.manual_seed(seed)
        subjects = torch.randn(1, length, 2, dtype=torch.float64) * 2
        objects = torch.randn(length, length, length, 3, 2, dtype=torch.float64) * 2
        expected = decode_loop(tagger, item, subjects, objects)
        assert expected
        with_tables(monkeypatch, tagger, subjects, objects)
        (found,) = tagger.extract_scored([item])
        wanted = [(tagger.triple_of(item, t), expected[t]) for t in sorted(expected)]
        assert [triple for triple, _ in found] == [triple for triple, _ in wanted]
        assert [s for _, s in found] == pytest.approx([s for _, s in wanted], rel=1e-12)
        assert min(s for _, s in found) > 0

    @pytest.mark.parametrize("threshold", [-1.0, 0.7])
    def test_a_threshold_is_a_shift_of_all_scores(self, threshold):
        """Biases lowered by it give the same triples, and margins that are smaller by it."""
        tagger = scrambled(small(subject_thresholds=(0.6, 0.3)), 0.5)
        items, _ = tagger.prepare(EIGHT)
        found = tagger.extract_scored(items, threshold=threshold)
        at_zero = tagger.extract_scored(items)
        with torch.no_grad():
            tagger.subjects.bias -= threshold
            tagger.objects.bias -= threshold
        shifted = tagger.extract_scored(items)
        assert [[t for t, _ in of] for of in found] == [[t for t, _ in of] for of in shifted]
        assert [s for of in found for _, s in of] == pytest.approx(
            [s + threshold for of in shifted for _, s in of]
        )
        assert found != at_zero
        assert all(s > threshold for of in found for _, s in of)
        assert sum(map(len, found)) > 0

    def test_a_threshold_must_be_finite(self, made):
        for threshold in (math.inf, -math.inf, math.nan):
            with pytest.raises(ValueError, match="threshold must be a finite number, got"):
                made.extract_scored([], threshold=threshold)

    def test_strings_go_in_and_words_come_out(self, tmp_path):
        tagger = scrambled(small())
        texts = [e.text for e in EIGHT]
        items, _ = tagger.prepare(EIGHT)
        found = tagger.predict(texts, batch_size=2)
        assert [{t.triple() for t in of} for of in found] == [
            set(of) for of in tagger.extract(items)
        ]
        assert sum(map(len, found)) > 0
        tagger.save(tmp_path / "best")
        assert CasRel.load(tmp_path).predict(texts, batch_size=2) == found

    def test_gold_tags_come_back_as_the_same_triples(self, made, monkeypatch):
        for e in EIGHT:
            (item,), _ = made.prepare([e])
            with_tables(monkeypatch, made, *gold_tables(item, 3))
            assert set(made.extract([item])[0]) == set(e.triples)

    @given(e=examples())
    def test_any_text_ends_without_a_crash(self, e):
        tagger = small(("p", "q"))
        (item,), _ = tagger.prepare([e])
        with pytest.MonkeyPatch.context() as patch:
            with_tables(patch, tagger, *gold_tables(item, 2))
            found = set(tagger.extract([item])[0])
        gold = {tagger.triple_of(item, t) for t in item.triples}
        spans = {(t.subject_head, t.subject_tail) for t in item.triples}
        disjoint = len({a for a, _ in spans}) == len(spans) and all(
            b < c for (_, b), (c, _) in zip(sorted(spans), sorted(spans)[1:], strict=False)
        )
        if len(gold) <= 1:
            assert found == gold
        if disjoint:
            assert {t.subject for t in found} <= {t.subject for t in gold}

    def test_nested_subjects_are_lost(self, monkeypatch):
        """What nearest ends cannot say, as the class states."""
        tagger = small()
        (item,), _ = tagger.prepare([example("Ada of Arlen Foods runs it", ("Ada", "runs", "it"))])
        outer, inner = TokenTriple(1, 4, 2, 6, 6), TokenTriple(2, 3, 2, 6, 6)
        item = replace(item, triples=(outer, inner))
        with_tables(monkeypatch, tagger, *gold_tables(item, 3))
        assert tagger.extract([item])[0] == (tagger.triple_of(item, inner),)

    def test_does_not_depend_on_batches(self, made, monkeypatch):
        tagger = scrambled(made)
        items, _ = tagger.prepare(EIGHT)
        tagger.train()
        together = tagger.extract_scored(items)
        assert tagger.training
        assert sum(map(len, together)) > 10
        tagger.eval()
        alone = [tagger.extract_scored([item])[0] for item in items]
        monkeypatch.setattr(model, "NUMBERS_AT_ONCE", 1)
        bounded = tagger.extract_scored(items)
        assert not tagger.training
        for a, b, c in zip(together, alone, bounded, strict=True):
            assert [t for t, _ in a] == [t for t, _ in b] == [t for t, _ in c]
            assert [s for _, s in a] == pytest.approx([s for _, s in b], rel=1e-9)
            assert [s for _, s in a] == pytest.approx([s for _, s in c], rel=1e-9)
        assert tagger.extract(items) == [tuple(t for t, _ in found) for found in together]

    def test_equals_encoding_again_for_each_subject(self, made):
        tagger = scrambled(made)
        items, _ = tagger.prepare([*EIGHT, Example("", "")])
        tagger.train()
        again = extract_reencoding(tagger, items)
        assert tagger.training
        once = tagger.extract_scored(items)
        assert sum(map(len, once)) > 10
        for a, b in zip(once, again, strict=True):
            assert [t for t, _ in a] == [t for t, _ in b]
            assert [s for _, s in a] == pytest.approx([s for _, s in b], rel=1e-9)

    def test_encodes_once(self):
        tagger = scrambled(small())
        items, _ = tagger.prepare(EIGHT)
        calls = []
        tagger.encoder.register_forward_hook(lambda _m, _a, states: calls.append(len(states)))
        tagger.extract(items)
        assert calls == [8]
        calls.clear()
        subjects = [len({t.subject for t in found}) for found in tagger.extract(items)]
        calls.clear()
        extract_reencoding(tagger, items)
        assert sum(calls) >= 8 + sum(subjects)

    def test_is_bounded_by_the_number_of_spans(self, monkeypatch):
        tagger = small()
        (item,), _ = tagger.prepare(EIGHT[3:4])
        length = len(item)
        subjects = torch.full((1, length, 2), 2.0, dtype=torch.float64)
        subjects[0, :, 0] += torch.arange(length)
        objects = torch.full((length, length, length, 3, 2), 3.0, dtype=torch.float64)
        objects[..., 0] += torch.arange(3)
        with_tables(monkeypatch, tagger, subjects, objects)
        everything = tagger.extract([item])[0]
        assert len(everything) == 3 * (length - 1) ** 2
        monkeypatch.setattr(model, "MAX_SPANS", 2)
        kept = tagger.extract([item])[0]
        assert len(kept) == 2 * 2
        heads = sorted(t.subject.start for t in everything)
        # All ends bound the subjects alike, so any two may stay; of objects too.
        assert {t.subject.start for t in kept} <= set(heads)

    def test_restores_the_mode_after_an_error(self):
        tagger = small()
        items, _ = tagger.prepare(EIGHT)
        for part in (tagger.subjects, tagger.objects):
            before = part.bias.detach().clone()
            torch.nn.init.constant_(tagger.subjects.bias, 9.0)
            torch.nn.init.constant_(part.bias, torch.nan)
            with pytest.raises(ValueError, match="got NaN"):
                tagger.extract(items)
            assert tagger.training
            with torch.no_grad():
                part.bias.copy_(before)

    def test_bfloat16_scores_lose_no_margin(self):
        """0.8828125 is above the cut of power 2, but the difference has no bfloat16 digits."""
        scores = torch.tensor([[[0.8828125, 0.8828125]]], dtype=torch.bfloat16)
        cut = power_threshold(2)
        cells = torch.ones(1, 1, dtype=torch.bool)
        margins = CasRel._margins(scores, cells, [cut, cut])
        assert margins.dtype == torch.float32
        assert margins[0, 0, 0].item() == pytest.approx(0.8828125 - cut, rel=1e-3)

    def test_thresholds_are_probabilities(self):
        high, low = (
            small(power=(3, 1), subject_thresholds=pair) for pair in ((0.9, 0.2), (0.2,) * 2)
        )
        hidden = torch.randn(1, 30, 16)
        cells = torch.ones(1, 30, dtype=torch.bool)
        for tagger in (high, low):
            with torch.no_grad():
                scores = tagger.subjects(hidden)[0] * 3
                tagger.subjects = Table(scores[None])
            probability = torch.sigmoid(scores.double()) ** 3
            cuts = tagger.options.subject_thresholds
            starts, ends = ((probability[:, k] > cuts[k]).nonzero()[:, 0].tolist() for k in (0, 1))
            found = tagger.find_subjects(hidden, cells).spans[:, 1:].tolist()
            assert [tuple(span) for span in found] == nearest_end_spans(starts, ends)

    def test_nothing(self, made):
        assert made.extract([]) == []
        assert extract_reencoding(made, []) == []
        with pytest.raises(ValueError, match="items: expected at least one item, got none"):
            made.collate([])


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"power": (2, 0)}, ValueError, r"power: expected two numbers above 0.* got \(2, 0\)"),
            ({"power": (math.inf, 1)}, ValueError, "power: .* below inf, got .*inf"),
            ({"power": (math.nan, 1)}, ValueError, "power: .* got .*nan"),
            ({"power": 2}, ValueError, "power: expected two numbers, got 2"),
            ({"power": (1, 2, 3)}, ValueError, r"power: expected two numbers, got \(1, 2, 3\)"),
            ({"power": "ab"}, ValueError, "power: expected two numbers, got 'ab'"),
            ({"subject_thresholds": (0.5, 1.0)}, ValueError, "thresholds: .* below 1.0, got"),
            ({"subject_thresholds": (0, 0.5)}, ValueError, "thresholds: .* above 0 .* got"),
            ({"sampling": "best"}, ValueError, "sampling: expected 'all', .* got 'best'"),
            ({"head_size": 8}, TypeError, "not known for encoder 'small': head_size"),
            ({"texts": None}, ValueError, "texts: expected the training texts .*, got None"),
        ],
    )
    def test_refused(self, options, error, message):
        arguments = {"texts": ["Ada wrote"]} | TINY | options
        with pytest.raises(error, match=message):
            CasRel.create("small", ("r",), **arguments)

    def test_lists_are_as_good_as_tuples(self):
        options = TaggingOptions(power=[1, 3], subject_thresholds=[0.6, 0.5])
        assert options == TaggingOptions(power=(1.0, 3.0), subject_thresholds=(0.6, 0.5))
        assert hash(options) == hash(replace(options))

    def test_relations(self):
        with pytest.raises(ValueError, match="got 'a' more than once"):
            CasRel.create("small", ("a", "a"), texts=["Ada"])

    def test_frozen_embeddings(self, bert):
        for tagger in (
            small(freeze_embeddings=True),
            CasRel.create(bert, ("r",), freeze_embeddings=True),
        ):
            (frozen,) = [n for n, p in tagger.named_parameters() if not p.requires_grad]
            assert "word" in frozen

    def test_the_seed_decides(self):
        first, again, other = small(seed=1), small(seed=1), small(seed=2)
        assert torch.equal(first.objects.weight, again.objects.weight)
        assert not torch.equal(first.objects.weight, other.objects.weight)


class TestFolder:
    def test_load_gives_the_same_triples(self, made, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        tagger = scrambled(made)
        tagger.options = TaggingOptions(power=(1, 2), sampling="published")
        tagger.save(tmp_path / "model")
        loaded = CasRel.load(tmp_path / "model")
        assert not loaded.training
        assert loaded.options == tagger.options
        assert loaded.relations == tagger.relations
        items, _ = loaded.prepare(EIGHT)
        found = loaded.extract_scored(items)
        assert found == tagger.extract_scored(items)
        assert any(found)

    def test_knows_its_own_folders_only(self, tmp_path):
        small().save(tmp_path / "model")
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        assert config["model"] == "CasRel"
        assert config["options"] == {
            "freeze_embeddings": False,
            "power": [2.0, 4.0],
            "sampling": "all",
            "subject_thresholds": [0.5, 0.5],
        }
        with pytest.raises(ValueError, match="expected a model 'GPLinker', got 'CasRel'"):
            GPLinker.load(tmp_path / "model")
        for other in ({"model": "GPLinker"}, {"model": None}):
            (tmp_path / "model" / "config.json").write_text(json.dumps(config | other))
            with pytest.raises(ValueError, match="expected a model 'CasRel', got"):
                CasRel.load(tmp_path / "model")
        del config["model"]  # as version 0.1 wrote it, which had no CasRel
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match="expected a model 'CasRel', got None"):
            CasRel.load(tmp_path / "model")


class TestTraining:
    @pytest.mark.parametrize("sampling", RULES)
    def test_learns_eight_sentences_by_heart(self, sampling):
        tagger = small(hidden_size=48, sampling=sampling).double()
        items, _ = tagger.prepare(EIGHT)
        losses = learn(tagger, items)
        assert sum(losses[-5:]) < sum(losses[:5]) / 20
        assert [set(t) for t in tagger.extract(items)] == [set(e.triples) for e in EIGHT]

    def test_pretrained_kind_learns_by_heart(self, bert):
        torch.manual_seed(0)
        tagger = CasRel.create(bert, RELATIONS)
        items, _ = tagger.prepare(EIGHT)
        learn(tagger, items, steps=150)
        assert [set(t) for t in tagger.extract(items)] == [set(e.triples) for e in EIGHT]

    @staticmethod
    def run(out, **options):
        corpus = toy_corpus()
        set_seed(0)
        texts = [e.text for e in corpus.train]
        tagger = CasRel.create("small", corpus.relations, texts=texts, **(TINY | options))
        settings = Settings(epochs=12, batch_size=4, lr=0.01, head_lr=0.02, patience=12)
        return tagger, train(tagger, corpus, out, settings, command="test")

    def test_toy_corpus_and_interruption(self, tmp_path, monkeypatch):
        """Random draws and dropout too are the same after a kill as without one."""
        options = {"hidden_size": 32, "sampling": "uniform", "dropout": 0.1}
        wanted, record = self.run(tmp_path / "undisturbed", **options)
        assert record.scores["test"]["f1"] == 1.0
        calls = 0
        score = _run.score_items

        def interrupted(*args):
            nonlocal calls
            calls += 1
            if calls == 3:
                raise KeyboardInterrupt
            return score(*args)

        monkeypatch.setattr(_run, "score_items", interrupted)
        with pytest.raises(KeyboardInterrupt):
            self.run(tmp_path / "run", **options)
        monkeypatch.undo()
        tagger, resumed = self.run(tmp_path / "run", **options)
        assert essence(resumed) == essence(record)
        for name, tensor in wanted.state_dict().items():
            assert torch.equal(tagger.state_dict()[name], tensor), name

    def test_two_processes_equal_one(self, tmp_path):
        """The default draws nothing, so nothing depends on how a batch is shared."""
        corpus = toy_corpus(train=13, dev=6, test=6)
        (tmp_path / "data").mkdir()
        for split, sentences in corpus.splits().items():
            write_jsonl(tmp_path / "data" / f"{split}.jsonl", sentences)
        arguments = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        arguments += ["--main_process_port", "0", "-m", "tests.casrel_without_dropout", "train"]
        arguments += ["--data", str(tmp_path / "data"), "--encoder", "small", "--quiet"]
        arguments += ["--epochs", "2", "--batch-size", "3", "--out", str(tmp_path / "two")]
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        two = read_record(tmp_path / "two" / "record.json")
        assert two.hardware["processes"] == 2
        corpus = load_corpus(str(tmp_path / "data"))
        settings = Settings(epochs=2, batch_size=3, lr=1e-3, head_lr=2e-3)
        set_seed(0)
        texts = [e.text for e in corpus.train]
        tagger = Quiet.create("small", corpus.relations, texts=texts)
        one = train(tagger, corpus, tmp_path / "one", settings)
        assert two.scores == one.scores
        assert two.curve("train_loss") == pytest.approx(one.curve("train_loss"), rel=1e-4)
        saved = CasRel.load(tmp_path / "two" / "best").state_dict()
        for name, tensor in tagger.state_dict().items():
            torch.testing.assert_close(saved[name], tensor, rtol=1e-3, atol=1e-4)


class TestCommands:
    def test_train_evaluate_predict(self, tmp_path):
        from click.testing import CliRunner

        corpus = toy_corpus()
        for split, sentences in corpus.splits().items():
            write_jsonl(tmp_path / f"{split}.jsonl", sentences)

        def call(*arguments, **more):
            return CliRunner().invoke(main, [str(a) for a in arguments], **more)

        out = tmp_path / "run"
        options = ["--power", 1, 3, "--sampling", "uniform", "--subject-thresholds", 0.6, 0.5]
        fast = ["--epochs", 4, "--batch-size", 4, "--quiet", "--max-length", 20]
        given = ["--data", tmp_path, "--encoder", "small", "--out", out]
        result = call("train", *given, *options, *fast)
        assert result.exit_code == 0, (result.output, result.exception)
        record = read_record(out / "record.json")
        assert record.model["options"] == {
            "encoder": "small",
            "power": [1.0, 3.0],
            "sampling": "uniform",
            "subject_thresholds": [0.6, 0.5],
            "max_length": 20,
        }
        assert record.command.startswith("python -m lib.casrel train ")
        assert CasRel.load(out / "best").options.power == (1.0, 3.0)
        assert call("train", *given, *options, *fast).exit_code == 0  # finished: nothing to do
        result = call("evaluate", "--model", out, "--data", tmp_path, "--quiet")
        assert result.exit_code == 0, (result.output, result.exception)
        result = call("predict", "--model", out, "--quiet", input="Bo met Ada\n")
        assert json.loads(result.stdout)["text"] == "Bo met Ada"

    def test_one_line_for_a_wrong_option(self, tmp_path):
        from click.testing import CliRunner

        write_jsonl(tmp_path / "train.jsonl", EIGHT)
        given = ["--data", str(tmp_path), "--encoder", "small", "--out", str(tmp_path / "run")]
        result = CliRunner().invoke(main, ["train", *given, "--power", "0", "1"])
        assert result.exit_code == 2
        (line,) = result.stderr.strip().splitlines()
        assert line.startswith("Error: power: expected two numbers above 0")
        assert line.endswith("got (0.0, 1.0)")

    def test_triples_are_named_by_characters(self):
        tagger = small()
        (item,), _ = tagger.prepare(EIGHT[:1])
        (tokens,) = item.triples
        assert tagger.triple_of(item, tokens) == EIGHT[0].triples[0]
        assert isinstance(tagger.triple_of(item, tokens), Triple)
