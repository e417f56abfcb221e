"""`lib.gplinker`: tables, decoding, encoders, the model, and its folder on the disk."""

import copy
import errno
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.profiler import profile
from transformers import PreTrainedTokenizerFast

from lib.divergence import zlpr_divergence
from lib.extraction import folders
from lib.extraction import model as shared
from lib.extraction.alignment import NOT_ON_BORDERS, TokenTriple, span_of
from lib.extraction.corpora import load_corpus
from lib.extraction.encoders import SHAPES, HuggingFaceEncoder, _ending, word_shape
from lib.extraction.metrics import evaluate_triples
from lib.extraction.records import read_record
from lib.extraction.training import LongTextWarning, LostTripleWarning, evaluate
from lib.extraction.triples import Example, Span, Triple, occurrences
from lib.global_pointer import Spans, _products, streaming
from lib.gplinker import (
    GPLinker,
    Tables,
    decode_tables,
    model,
    table_positives,
    triple_scores,
)
from lib.zlpr import zlpr_loss
from tests.extraction.strategies import examples

TINY = {
    "hidden_size": 16,
    "layers": 1,
    "attention_heads": 2,
    "head_size": 8,
    "min_count": 1,
    "dropout": 0.0,
    "word_dropout": 0.0,
}


def example(text, *triples, id="0"):
    """Build an example of strings that occur once."""
    return Example(
        id,
        text,
        tuple(Triple(occurrences(text, s)[0], r, occurrences(text, o)[0]) for s, r, o in triples),
    )


EIGHT = [
    example("Ada Kole wrote Red Notes .", ("Ada Kole", "wrote", "Red Notes")),
    example("Red Sky was written by Bo Ling .", ("Bo Ling", "wrote", "Red Sky")),
    example("Bo lives in Arlen .", ("Bo", "lives in", "Arlen")),
    example(
        "Cy , who wrote Tides , lives in Morn .",
        ("Cy", "wrote", "Tides"),
        ("Cy", "lives in", "Morn"),
    ),
    example("Nobody wrote anything ."),
    example("Eve runs Arlen Foods .", ("Eve", "runs", "Arlen Foods")),
    example(
        "Arlen Foods is run by Flo , who lives in Pell .",
        ("Flo", "runs", "Arlen Foods"),
        ("Flo", "lives in", "Pell"),
    ),
    example(
        "Gus wrote Glass and Gil wrote Grain .",
        ("Gus", "wrote", "Glass"),
        ("Gil", "wrote", "Grain"),
    ),
]

LONG = example(
    "Ada wrote Tides . Nobody read it . Bo runs Arlen .",
    ("Ada", "wrote", "Tides"),
    ("Bo", "runs", "Arlen"),
    ("Ada", "wrote", "Arlen"),
)


@st.composite
def token_triples(draw, length=7, relations=3, most=6):
    """Up to `most` triples on `length` tokens."""
    spans = st.tuples(st.integers(0, length - 1), st.integers(0, length - 1)).map(sorted)
    triples = st.builds(
        lambda s, r, o: TokenTriple(*s, r, *o), spans, st.integers(0, relations - 1), spans
    )
    return draw(st.lists(triples, max_size=most))


def perfect_scores(triples, length, relations, *, inside=1.0, outside=-1.0):
    """Fill tables with one score on the positives, another elsewhere; spans above the diagonal."""
    positives = table_positives([triples], length=length, relations=relations)
    tables = []
    for cells in positives:
        # -1 is the last row and column, which are cut off.
        table = torch.full((cells.shape[1], length + 1, length + 1), outside, dtype=torch.float64)
        row = torch.arange(len(table))[:, None]
        table[row, cells[0, ..., 0], cells[0, ..., 1]] = inside
        tables.append(table[:, :-1, :-1].clone())
    tables[0] = tables[0].masked_fill(torch.ones(length, length).tril(-1).bool(), -torch.inf)
    return Tables(*tables)


def decode_loop(entity_scores, head_scores, tail_scores):
    """All quintuples, one at a time."""
    relations, length, _ = head_scores.shape
    spans = [(i, j) for i in range(length) for j in range(i, length)]
    return {
        TokenTriple(*s, r, *o)
        for s in spans
        for o in spans
        for r in range(relations)
        if entity_scores[0, s[0], s[1]] > 0
        and entity_scores[1, o[0], o[1]] > 0
        and head_scores[r, s[0], o[0]] > 0
        and tail_scores[r, s[1], o[1]] > 0
    }


class TestTables:
    def test_one_text_by_hand(self):
        triples = [
            TokenTriple(0, 1, 2, 3, 4),
            TokenTriple(0, 1, 2, 2, 2),
            TokenTriple(4, 4, 0, 0, 1),
        ]
        tables = table_positives([triples, []], length=5, relations=3)
        none = [-1, -1]
        assert tables.entities.tolist() == [
            [[[0, 1], [4, 4], none], [[0, 1], [2, 2], [3, 4]]],
            [[none] * 3] * 2,
        ]
        assert tables.head_links.tolist() == [
            [[[4, 0], none], [none, none], [[0, 2], [0, 3]]],
            [[none, none]] * 3,
        ]
        assert tables.tail_links.tolist() == [
            [[[4, 1], none], [none, none], [[1, 2], [1, 4]]],
            [[none, none]] * 3,
        ]
        assert all(table.dtype == torch.int64 for table in tables)

    @given(token_triples())
    def test_equal_the_definition(self, triples):
        tables = table_positives([triples], length=7, relations=3)
        for kind, row, expected in [
            (0, 0, {(t.subject_head, t.subject_tail) for t in triples}),
            (0, 1, {(t.object_head, t.object_tail) for t in triples}),
            *(
                (1, r, {(t.subject_head, t.object_head) for t in triples if t.relation == r})
                for r in range(3)
            ),
            *(
                (2, r, {(t.subject_tail, t.object_tail) for t in triples if t.relation == r})
                for r in range(3)
            ),
        ]:
            cells = [tuple(c) for c in tables[kind][0, row].tolist() if c != [-1, -1]]
            assert cells == sorted(expected)
            assert tables[kind][0, row, len(cells) :].eq(-1).all()

    @given(token_triples())
    def test_order_and_repetition_do_not_matter(self, triples):
        again = table_positives([triples[::-1] + triples], length=7, relations=3)
        for a, b in zip(table_positives([triples], length=7, relations=3), again, strict=True):
            assert torch.equal(a, b)

    def test_no_texts(self):
        tables = table_positives([], length=3, relations=2)
        assert [tuple(t.shape) for t in tables] == [(0, 2, 1, 2), (0, 2, 1, 2), (0, 2, 1, 2)]

    def test_cells_are_exact_where_a_float32_index_is_not(self):
        triple = TokenTriple(4999, 4999, 0, 4998, 4999)
        tables = table_positives([[triple]], length=5001, relations=1)
        assert tables.head_links.tolist() == [[[[4999, 4998]]]]
        assert int(torch.tensor(4999.0) * 5001 + 4998) != 4999 * 5001 + 4998

    @pytest.mark.parametrize(
        ("triple", "length", "relations", "message"),
        [
            ((0, 0, 0, 0, 0), 0, 1, "length must be at least 1, got 0"),
            ((0, 0, 0, 0, 0), 1, 0, "relations must be at least 1, got 0"),
            ((-1, 0, 0, 0, 0), 3, 1, "subjects with 0 <= head <= tail < 3, got head -1 and tail 0"),
            ((2, 1, 0, 0, 0), 3, 1, "subjects .* got head 2 and tail 1"),
            ((0, 0, 0, 1, 3), 3, 1, "objects with 0 <= head <= tail < 3, got head 1 and tail 3"),
            ((0, 0, 2, 0, 0), 3, 2, "relations from 0 to 1, got 2"),
            ((0, 0, -1, 0, 0), 3, 2, "relations from 0 to 1, got -1"),
        ],
    )
    def test_errors(self, triple, length, relations, message):
        with pytest.raises(ValueError, match=message):
            table_positives([[TokenTriple(*triple)]], length=length, relations=relations)

    def test_any_integer_is_a_size(self):
        triple = TokenTriple(0, 1, 0, 3, 3)
        tables = table_positives([[triple]], length=np.int64(4), relations=np.uint8(1))
        assert tables.head_links.tolist() == [[[[0, 3]]]]
        scores = perfect_scores([triple], 4, 1)
        assert decode_tables(*scores, max_spans=np.int32(1)) == [triple]
        with pytest.raises(TypeError, match="length must be an int, got float"):
            table_positives([[triple]], length=4.0, relations=1)


class TestDecoding:
    @given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**31), st.floats(-1.5, 0.5))
    def test_equals_the_loop(self, length, relations, seed, shift):
        generator = torch.Generator().manual_seed(seed)
        tables = [
            torch.randn(n, length, length, generator=generator, dtype=torch.float64) + shift
            for n in (2, relations, relations)
        ]
        tables[0] = tables[0].masked_fill(torch.ones(length, length).tril(-1).bool(), -torch.inf)
        found = decode_tables(*tables)
        assert len(found) == len(set(found))
        assert set(found) == decode_loop(*tables)
        assert found == sorted(
            found,
            key=lambda t: (
                t.relation,
                t.subject_head,
                t.subject_tail,
                t.object_head,
                t.object_tail,
            ),
        )

    @given(token_triples())
    def test_contains_every_gold_triple(self, triples):
        found = decode_tables(*perfect_scores(triples, 7, 3))
        assert set(found) >= set(triples)

    @given(token_triples(most=10))
    def test_is_exact_where_first_or_last_tokens_are_distinct(self, triples):
        """Keep the triples whose entities are named by one end; the proposition of the book."""
        for end in (0, 1):
            ends: dict[tuple[str, int], tuple[int, int]] = {}
            kept = []
            for t in triples:
                subject = (t.subject_head, t.subject_tail)
                object_ = (t.object_head, t.object_tail)
                if (
                    ends.setdefault(("subject", subject[end]), subject) == subject
                    and ends.setdefault(("object", object_[end]), object_) == object_
                ):
                    kept.append(t)
            assert set(decode_tables(*perfect_scores(kept, 7, 3))) == set(kept)

    def test_counterexample(self):
        """Head link, tail link and both spans from three different triples."""
        gold = [TokenTriple(1, 2, 0, 5, 6), TokenTriple(0, 3, 0, 4, 7), TokenTriple(1, 3, 1, 5, 7)]
        found = decode_tables(*perfect_scores(gold, 8, 2))
        assert set(found) - set(gold) == {TokenTriple(1, 3, 0, 5, 7)}

    def test_zero_is_not_positive(self):
        triple = TokenTriple(0, 1, 0, 2, 2)
        for kind, cell in ((0, (0, 0, 1)), (0, (1, 2, 2)), (1, (0, 0, 2)), (2, (0, 1, 2))):
            tables = perfect_scores([triple], 3, 1, inside=1e-300)
            assert decode_tables(*tables) == [triple]
            tables[kind][cell] = 0.0
            assert decode_tables(*tables) == []

    def test_empty_tables(self):
        assert decode_tables(*perfect_scores([], 4, 2)) == []
        assert decode_tables(*(torch.zeros(n, 0, 0) for n in (2, 3, 3))) == []
        nowhere = [torch.full((n, 4, 4), -torch.inf) for n in (2, 3, 3)]
        assert decode_tables(*nowhere) == []

    @given(st.integers(0, 2**31), st.floats(-1, 1), st.none() | st.floats(-1, 1))
    def test_thresholds(self, seed, threshold, link_threshold):
        """As the tables shifted by them at 0; of an exact score nothing is chosen."""
        generator = torch.Generator().manual_seed(seed)
        entities, *links = (
            torch.randint(-8, 9, (n, 4, 4), generator=generator) / 8 for n in (2, 2, 2)
        )
        entities = entities.masked_fill(torch.ones(4, 4).tril(-1).bool(), -torch.inf)
        threshold = round(threshold * 8) / 8
        if link_threshold is not None:
            link_threshold = round(link_threshold * 8) / 8
        of_links = threshold if link_threshold is None else link_threshold
        found = decode_tables(entities, *links, threshold=threshold, link_threshold=link_threshold)
        assert found == decode_tables(entities - threshold, *(x - of_links for x in links))

    @pytest.mark.parametrize("name", ["threshold", "link_threshold"])
    def test_thresholds_are_finite(self, name):
        with pytest.raises(ValueError, match="threshold must be a finite number, got nan"):
            decode_tables(*perfect_scores([], 4, 2), **{name: math.nan})

    def test_links_may_run_backwards(self):
        triple = TokenTriple(5, 6, 1, 0, 2)
        assert decode_tables(*perfect_scores([triple], 7, 2)) == [triple]

    def test_max_spans_keeps_the_best_in_reading_order(self):
        triples = [TokenTriple(i, i, 0, 4, 4) for i in range(4)]
        tables = perfect_scores(triples, 5, 1)
        tables.entities[0].diagonal()[:4] = torch.tensor([2.0, 5.0, 1.0, 4.0])
        assert decode_tables(*tables, max_spans=2) == [triples[1], triples[3]]
        assert decode_tables(*tables, max_spans=3) == [triples[0], triples[1], triples[3]]
        assert decode_tables(*tables, max_spans=4) == triples
        tables = perfect_scores([TokenTriple(4, 4, 0, i, i) for i in range(4)], 5, 1)
        tables.entities[1].diagonal()[:4] = torch.tensor([2.0, 5.0, 1.0, 4.0])
        assert [t.object_head for t in decode_tables(*tables, max_spans=1)] == [1]

    @given(token_triples(), st.integers(0, 2**31))
    def test_confidence_is_the_smallest_of_four(self, triples, seed):
        generator = torch.Generator().manual_seed(seed)
        tables = [torch.randn(n, 7, 7, generator=generator) for n in (2, 3, 3)]
        scores = triple_scores(triples, *tables)
        assert scores.shape == (len(triples),)
        for score, t in zip(scores, triples, strict=True):
            assert score == min(
                tables[0][0, t.subject_head, t.subject_tail],
                tables[0][1, t.object_head, t.object_tail],
                tables[1][t.relation, t.subject_head, t.object_head],
                tables[2][t.relation, t.subject_tail, t.object_tail],
            )
        tables[0] = tables[0].masked_fill(torch.ones(7, 7).tril(-1).bool(), -torch.inf)
        chosen = set(decode_tables(*tables))
        for t, score in zip(triples, triple_scores(triples, *tables), strict=True):
            assert (score > 0) == (t in chosen)

    @pytest.mark.parametrize(
        ("shapes", "message"),
        [
            (((), (3, 4, 4), (3, 4, 4)), r"entity_scores must have shape \(2, L, L\), got \(\)"),
            (((3, 4, 4), (3, 4, 4), (3, 4, 4)), r"entity_scores must .* got \(3, 4, 4\)"),
            (((2, 4, 4), (4, 4), (4, 4)), r"head_links must have shape \(R, 4, 4\), got \(4, 4\)"),
            (((2, 4, 4), (3, 4, 5), (3, 4, 4)), r"head_links must .* got \(3, 4, 5\)"),
            (((2, 4, 4), (3, 4, 4), (2, 4, 4)), r"tail_links must .*\(3, 4, 4\).* got \(2, 4, 4\)"),
        ],
    )
    def test_shapes(self, shapes, message):
        tables = [torch.zeros(shape) for shape in shapes]
        with pytest.raises(ValueError, match=message):
            decode_tables(*tables)
        with pytest.raises(ValueError, match=message):
            triple_scores([], *tables)

    def test_refuses_what_no_model_should_say(self):
        triple = TokenTriple(0, 1, 0, 2, 2)
        with pytest.raises(ValueError, match="max_spans must be at least 1, got 0"):
            decode_tables(*perfect_scores([triple], 3, 1), max_spans=0)
        below = perfect_scores([triple], 3, 1)
        below.entities[1, 2, 1] = 0.5  # right below it, the nearest miss
        with pytest.raises(ValueError, match=r"no object below the diagonal, got cell \(2, 1\)"):
            decode_tables(*below)
        for kind, cell, message in (
            (0, (0, 2, 0), "entity_scores must be numbers, got NaN among the subjects"),
            (1, (0, 0, 2), "head_links must be numbers, got NaN"),
            (2, (0, 1, 2), "tail_links must be numbers, got NaN"),
        ):
            tables = perfect_scores([triple], 3, 1)
            tables[kind][cell] = torch.nan
            with pytest.raises(ValueError, match=message):
                decode_tables(*tables)


def small(relations=("wrote", "lives in", "runs"), data=EIGHT, seed=0, **options):
    torch.manual_seed(seed)
    return GPLinker.create("small", relations, texts=[e.text for e in data], **(TINY | options))


def bert_files(folder, *, vocabulary=None, rows=None, kind="Bert", **sizes):
    """Write a randomly initialised BERT with a WordPiece tokenizer, as the hub would hold it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = vocabulary or sorted({w for e in EIGHT for w in e.text.lower().split()} - {"foods"})
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words, "food", "##s"]
    raw = Tokenizer(models.WordPiece({w: i for i, w in enumerate(entries)}, unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=40,
    )
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=rows or len(entries),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=48,
        **sizes,
    )
    getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return bert_files(tmp_path_factory.mktemp("bert"))


@pytest.fixture(params=["small", "transformers"])
def made(request, bert):
    """Return one untrained model of each kind."""
    if request.param == "small":
        return small()
    torch.manual_seed(0)
    return GPLinker.create(bert, ("wrote", "lives in", "runs"), head_size=8)


@pytest.fixture(scope="module")
def two(bert):
    """Return a model of each kind for relations p and q."""
    return small(("p", "q")), GPLinker.create(bert, ("p", "q"), head_size=4)


def patch_scores(monkeypatch, linker):
    """Make a model score its items' own triples with +1 and everything else with −1."""
    tables = []

    def collate_texts(items):
        batch = original(items)
        length = batch["cells"].shape[1]
        perfect = [perfect_scores(i.triples, length, len(linker.relations)) for i in items]
        hidden = ~batch["cells"]
        hidden = hidden[:, None, :, None] | hidden[:, None, None, :]
        tables[:] = [torch.stack(table) for table in zip(*perfect, strict=True)]
        for table in tables:
            table.masked_fill_(hidden, -torch.inf)
        return batch

    def spans(_hidden, cells, *, threshold):
        assert cells.shape == tables[0][:, 0, 0].shape
        found = (tables[0] > threshold).nonzero()
        return Spans(found, tables[0][tuple(found.T)])

    def blocks(kind):
        def read(_hidden, rows, columns):
            return [
                table[:, i[:, None], j]
                for table, i, j in zip(tables[kind], rows, columns, strict=True)
            ]

        return read

    original = linker.collate_texts
    monkeypatch.setattr(linker, "collate_texts", collate_texts)
    monkeypatch.setattr(linker.entities, "spans", spans)
    monkeypatch.setattr(linker.head_links, "blocks", blocks(1))
    monkeypatch.setattr(linker.tail_links, "blocks", blocks(2))


def filled_loss(linker, batch):
    """Loss from filled tables, each by its own ZLPR."""
    positives = [batch[name] for name in Tables._fields]
    scores = linker.scores(**{k: v for k, v in batch.items() if k not in Tables._fields})
    total = 0.0
    for table, cells in zip(scores, positives, strict=True):
        targets = torch.zeros(table.shape, dtype=torch.bool)
        text, head, entry = (cells[..., 0] >= 0).nonzero(as_tuple=True)
        targets[text, head, cells[text, head, entry, 0], cells[text, head, entry, 1]] = True
        total = total + zlpr_loss(table.flatten(2), targets.flatten(2), reduction="sum")
    return total / len(positives[0])


@torch.no_grad()
def filled_extraction(linker, item, threshold=0.0):
    """Triples and confidences of one text, read from filled tables."""
    batch = linker.collate([item])
    scores = linker.scores(**{k: v for k, v in batch.items() if k not in Tables._fields})
    tables = [table[0] for table in scores]
    found = decode_tables(*tables, max_spans=model.MAX_SPANS, threshold=threshold)
    return found, triple_scores(found, *tables).tolist()


class TestTextsAndTokens:
    def test_items_and_counts(self, made):
        data = [
            *EIGHT,
            Example("cut", "Ada wrote Tides", (Triple(Span(0, 2), "wrote", Span(10, 15)),)),
        ]
        items, dropped = made.prepare(data)
        assert len(items) == len(data)
        assert dropped == {NOT_ON_BORDERS: 1}
        for item, e in zip(items, data, strict=True):
            assert item.text == e.text
            assert len(item) == len(item.offsets)
            assert all(len(values) == len(item) for values in item.inputs.values())
            triples = {
                Triple(
                    span_of(item.offsets, t.subject_head, t.subject_tail),
                    made.relations[t.relation],
                    span_of(item.offsets, t.object_head, t.object_tail),
                )
                for t in item.triples
            }
            assert triples == (set(e.triples) if e.id != "cut" else set())

    def test_long_texts_are_read_in_windows(self, made):
        """Of the tokens of the whole text; a triple is in each window that holds its entities."""
        (whole,), _ = made.prepare([LONG])
        before, after = made.encoder.tokenise([LONG.text])[0].special
        made.encoder.max_length = 5 + before + after
        items, losses = made.prepare([EIGHT[4], LONG, LONG])
        assert [item.example for item in items] == [0] + [1] * 5 + [2] * 5
        assert losses == {
            "text read in windows": 2,
            "window of a text": 10,
            "entities too far apart for a window": 2,
        }
        assert losses.first["entities too far apart for a window"] == (
            "example '0': 'Ada' and 'Arlen' of 'wrote'"
        )
        told = set()
        for item in items[1:6]:
            assert len(item) == len(item.offsets) <= made.encoder.max_length
            for name, values in item.inputs.items():
                assert len(values) == len(item)
                assert values[:before] == whole.inputs[name][:before]
                assert values[len(item) - after :] == whole.inputs[name][len(whole) - after :]
            body = item.offsets[before : len(item) - after]
            at = whole.offsets.index(body[0])
            assert whole.offsets[at : at + len(body)] == body
            told |= {made.triple_of(item, triple) for triple in item.triples}
        assert told == set(LONG.triples[:2])

    def test_triples_of_windows_are_put_together(self, made):
        """Each once, with the best of its scores, at its place in the whole text."""
        with torch.no_grad():
            for pointer in (made.entities, made.head_links, made.tail_links):
                pointer.head_scores.bias.fill_(1.0)
        plain = made.predict([EIGHT[4].text])
        before, after = made.encoder.tokenise([LONG.text])[0].special
        made.encoder.max_length = 5 + before + after
        with pytest.warns(LongTextWarning, match="1 of 2 texts are longer .* read in 5 overlapp"):
            found, same = made.predict([LONG.text, EIGHT[4].text])
        assert [t.triple() for t in same] == [t.triple() for t in plain[0]]
        items, _ = made.prepare([LONG])
        best = {}
        every = [pair for of_window in made.extract_scored(items) for pair in of_window]
        for triple, score in every:
            best[triple] = max(score, best.get(triple, -math.inf))
        assert 0 < len(best) < len(every)
        assert {t.triple(): pytest.approx(t.confidence, rel=1e-4) for t in found} == {
            triple: 1 / (1 + math.exp(-score)) for triple, score in best.items()
        }
        assert len(found) == len(best)

    def test_what_no_window_holds_is_missed(self, made, monkeypatch):
        before, after = made.encoder.tokenise([LONG.text])[0].special
        made.encoder.max_length = 5 + before + after
        patch_scores(monkeypatch, made)
        with (
            pytest.warns(LostTripleWarning, match="1 of 3 triples cannot be told"),
            pytest.warns(LongTextWarning),
        ):
            scores = evaluate(made, [LONG])
        assert (scores.micro.tp, scores.micro.predicted, scores.micro.gold) == (2, 2, 3)

    def test_unknown_relation(self, made):
        (item,), dropped = made.prepare([example("Ada eats Tides", ("Ada", "eats", "Tides"))])
        assert (item.triples, dropped) == ((), {"relation unknown to the model": 1})

    def test_nothing(self, made):
        assert made.prepare([]) == ([], {})
        assert made.extract([]) == []
        with pytest.raises(ValueError, match="items: expected at least one item, got none"):
            made.collate([])

    def test_batches(self, made):
        items, _ = made.prepare(EIGHT[:3])
        batch = made.collate(items)
        length = max(map(len, items))
        assert set(batch) == {
            *made.encoder.padding,
            "attention_mask",
            "cells",
            "entities",
            "head_links",
            "tail_links",
        }
        for row, item in enumerate(items):
            assert batch["attention_mask"][row].tolist() == [1] * len(item) + [0] * (
                length - len(item)
            )
            for name, values in item.inputs.items():
                padding = [made.encoder.padding[name]] * (length - len(item))
                assert batch[name][row].tolist() == [*values, *padding]
            visible = [start < end for start, end in item.offsets]
            assert not visible[0]
            assert batch["cells"][row].tolist() == visible + [False] * (length - len(item))
        expected = table_positives([i.triples for i in items], length=length, relations=3)
        for name, table in expected._asdict().items():
            assert torch.equal(batch[name], table)

    def test_gold_tables_come_back_as_the_same_triples(self, made, monkeypatch):
        patch_scores(monkeypatch, made)
        items, _ = made.prepare(EIGHT)
        assert [set(t) for t in made.extract(items)] == [set(e.triples) for e in EIGHT]

    @given(data=st.lists(examples(), min_size=1, max_size=4))
    def test_round_trip_of_any_text(self, two, data):
        for linker in two:
            items, losses = linker.prepare(data)
            windows = losses.pop("window of a text", 0)
            assert len(items) == len(data) + windows - losses.pop("text read in windows", 0)
            told = {(i.example, linker.triple_of(i, t)) for i in items for t in i.triples}
            assert len(told) + losses.total() == sum(len(e.triples) for e in data)
            with pytest.MonkeyPatch.context() as patch:
                patch_scores(patch, linker)
                for item, found in zip(items, linker.extract(items), strict=True):
                    gold = {linker.triple_of(item, t) for t in item.triples}
                    assert gold <= set(data[item.example].triples)
                    assert gold <= set(found)
                    heads = {(t.subject_head, t.subject_tail) for t in item.triples}
                    tails = {(t.object_head, t.object_tail) for t in item.triples}
                    if len({h for h, _ in heads}) == len(heads) and len(
                        {h for h, _ in tails}
                    ) == len(tails):
                        assert gold == set(found)

    def test_word_shapes(self):
        words = ["wrote", "Ada", "A", "NATO", "iPad", "1843", "B2", ",", "中文", "McKay", "ß"]
        shapes = ["x", "Xx", "X", "XX", "xX", "0", "x0", ".", "?", "xX", "x"]
        assert [word_shape(w) for w in words] == shapes
        assert set(shapes) | {""} == set(SHAPES)

    def test_unknown_names_keep_shape_and_ending(self):
        linker = small()
        known, unknown = (
            i.inputs for i in linker.prepare([Example("", "Arlen"), Example("", "Zzlen")])[0]
        )
        assert known["words"][1] > 2
        assert unknown["words"][1] == 1
        assert known["shapes"] == unknown["shapes"]
        assert known["endings"] == unknown["endings"]

    def test_endings_are_the_same_in_every_process(self):
        """Saved models rely on these numbers; Python's own hash changes from run to run."""
        assert [_ending(word) for word in ("Arlen", "ALLEN", "n", "诗")] == [187, 187, 382, 512]

    def test_chinese_characters_are_words(self):
        (tokens,) = small().encoder.tokenise(["他写了诗"])
        assert tokens.offsets == ((0, 0), (0, 1), (1, 2), (2, 3), (3, 4))


class TestModel:
    def test_loss_is_the_sum_over_tables_and_the_mean_over_texts(self, made):
        made.eval()
        items, _ = made.prepare(EIGHT)
        total = 0.0
        for item in items:
            batch = made.collate([item])
            positives = Tables(*(batch.pop(name) for name in Tables._fields))
            for scores, cells in zip(made.scores(**batch), positives, strict=True):
                for head in range(scores.shape[1]):
                    targets = torch.zeros(scores.shape[2:])
                    for i, j in cells[0, head].tolist():
                        if i >= 0:
                            targets[i, j] = 1
                    total += zlpr_loss(scores[0, head].flatten(), targets.flatten()).item()
        assert made(**made.collate(items)).item() == pytest.approx(total / 8, rel=1e-4)

    @pytest.mark.parametrize("pointer", ["efficient", "standard"])
    @pytest.mark.parametrize("path", ["by size", "never filled"])
    def test_equals_filled_tables(self, monkeypatch, pointer, path):
        """Loss and gradients of random and trained states; the same triples, equally sure."""
        if path == "never filled":
            monkeypatch.setattr(_products, "_FEW_CELLS", 0)
            monkeypatch.setattr(streaming, "_worth_streaming", lambda _queries: True)
        linker = small(hidden_size=48, head_size=16, pointer=pointer, bias_start=0.3)
        items, _ = linker.prepare(EIGHT)
        batch = linker.collate(items)
        optimiser = torch.optim.AdamW(linker.parameter_groups(5e-3, 1e-2, 0.0))
        seen = 0
        for step in range(61):
            loss = linker(**batch)
            if step % 20 == 0:
                expected = filled_loss(linker, batch)
                assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
                parameters = list(linker.parameters())
                pairs = (
                    torch.autograd.grad(x, parameters, retain_graph=True) for x in (loss, expected)
                )
                for a, b in zip(*pairs, strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
                for item, found in zip(items, linker.extract_scored(items), strict=True):
                    triples, confidence = filled_extraction(linker, item)
                    assert [t for t, _ in found] == [
                        Triple(
                            span_of(item.offsets, t.subject_head, t.subject_tail),
                            linker.relations[t.relation],
                            span_of(item.offsets, t.object_head, t.object_tail),
                        )
                        for t in triples
                    ]
                    assert [s for _, s in found] == pytest.approx(confidence, rel=1e-4, abs=1e-5)
                    seen += len(found)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        assert seen > 100

    @pytest.mark.parametrize("pointer", ["efficient", "standard"])
    @pytest.mark.parametrize("threshold", [-1.0, 0.25])
    def test_a_threshold_reads_what_filled_tables_hold_above_it(self, pointer, threshold):
        linker = small(hidden_size=48, head_size=16, pointer=pointer, bias_start=0.3).double()
        items, _ = linker.prepare(EIGHT)
        numbers = []
        for item, found in zip(
            items, linker.extract_scored(items, threshold=threshold), strict=True
        ):
            triples, confidence = filled_extraction(linker.eval(), item, threshold)
            assert [t for t, _ in found] == [linker.triple_of(item, t) for t in triples]
            assert [s for _, s in found] == pytest.approx(confidence, rel=1e-9)
            assert all(s > threshold for _, s in found)
            (at_zero,) = linker.extract_scored([item])
            fewer, more = (at_zero, found) if threshold < 0 else (found, at_zero)
            assert {t for t, _ in fewer} < {t for t, _ in more}
            numbers.append(len(found))
        assert sum(numbers) > 0

    def test_a_threshold_must_be_finite(self, made):
        items, _ = made.prepare(EIGHT[:1])
        for threshold in (math.inf, -math.inf, math.nan):
            with pytest.raises(ValueError, match="threshold must be a finite number, got"):
                made.extract_scored(items, threshold=threshold)
            with pytest.raises(ValueError, match="threshold must be a finite number, got"):
                decode_tables(*(torch.zeros(n, 2, 2) for n in (2, 1, 1)), threshold=threshold)
            with pytest.raises(ValueError, match="threshold must be a finite number, got"):
                made.predict(["Ada"], threshold=threshold)

    def test_neither_loss_nor_extraction_fills_a_table(self, monkeypatch):
        """With so many relations a filled table of links would be by far the largest tensor."""
        relations = tuple(f"r{i}" for i in range(120))
        linker = small(relations, bias_start=-8.0)
        items, _ = linker.prepare([Example("", "Ada wrote Tides " * 30)] * 2)
        table = 4 * 2 * len(relations) * len(items[0]) ** 2
        with profile(profile_memory=True) as recorded:
            linker(**linker.collate(items)).backward()
            linker.extract(items)
        assert 0 < max(e.cpu_memory_usage for e in recorded.events()) < table / 8

    def test_at_most_so_many_spans(self, monkeypatch):
        monkeypatch.setattr(model, "MAX_SPANS", 3)
        linker = small(bias_start=2.0)
        items, _ = linker.prepare(EIGHT)
        for item, found in zip(items, linker.extract_scored(items), strict=True):
            assert len({t.subject for t, _ in found}) <= 3
            _, confidence = filled_extraction(linker, item)
            assert [s for _, s in found] == pytest.approx(confidence, abs=1e-5)

    def test_texts_without_words(self, made):
        """Tables of −inf alone cost nothing, send no gradient and hold no triples."""
        items, _ = made.prepare([Example("", ""), Example("", " \n")])
        loss = made(**made.collate(items))
        assert loss == 0
        loss.backward()
        assert all(p.grad is None or (p.grad == 0).all() for p in made.parameters())
        assert made.extract(items) == [(), ()]

    def test_padding_changes_nothing(self, made):
        made = made.double().eval()
        items, _ = made.prepare(EIGHT)
        short = min(items, key=len)
        alone = made.collate([short])
        beside = made.collate([short, max(items, key=len)])
        for batch in (alone, beside):
            for name in Tables._fields:
                del batch[name]
        n = len(short)
        for a, b in zip(made.scores(**alone), made.scores(**beside), strict=True):
            torch.testing.assert_close(b[:1, :, :n, :n], a)
            assert (b[0, :, n:] == -torch.inf).all()

    def test_special_tokens_have_no_cells(self, made):
        batch = made.collate(made.prepare(EIGHT[:1])[0])
        hidden = ~batch["cells"][0]
        assert hidden[0]
        for name in Tables._fields:
            del batch[name]
        for table in made.scores(**batch):
            assert (table[0, :, hidden] == -torch.inf).all()
            assert (table[0, :, :, hidden] == -torch.inf).all()

    def test_every_trained_parameter_takes_part(self, made):
        """Distributed training needs that, in every forward."""
        made(**made.collate(made.prepare(EIGHT)[0])).backward()
        missing = [n for n, p in made.named_parameters() if p.requires_grad and p.grad is None]
        assert missing == []

    def test_groups_hold_each_parameter_once(self, made):
        groups = made.parameter_groups(1e-5, 1e-3, 0.01)
        names = {id(p): n for n, p in made.named_parameters()}
        norms = {
            id(p)
            for module in made.modules()
            if isinstance(module, torch.nn.LayerNorm)
            for p in module.parameters()
        }
        seen = [id(p) for g in groups for p in g["params"]]
        assert sorted(seen) == sorted(names)
        for group in groups:
            for p in group["params"]:
                name = names[id(p)]
                assert group["lr"] == (1e-5 if name.startswith("encoder.") else 1e-3)
                plain = name.endswith(".bias") or id(p) in norms
                assert group["weight_decay"] == (0.0 if plain else 0.01), name

    def test_frozen_embeddings(self, bert):
        for linker in (
            small(freeze_embeddings=True),
            GPLinker.create(bert, ("wrote",), freeze_embeddings=True),
        ):
            frozen = [n for n, p in linker.named_parameters() if not p.requires_grad]
            assert len(frozen) == 1
            assert "word" in frozen[0]
            groups = linker.parameter_groups(1.0, 1.0, 0.0)
            trained = sum(len(g["params"]) for g in groups)
            assert trained == len(list(linker.parameters())) - 1

    @pytest.mark.parametrize("pointer", ["efficient", "standard"])
    def test_options_reach_the_pointers(self, pointer):
        linker = small(pointer=pointer, bias_start=-5.0, link_rope=False, head_size=6)
        kinds = {type(m).__name__ for m in (linker.entities, linker.head_links, linker.tail_links)}
        assert kinds == {"EfficientGlobalPointer" if pointer == "efficient" else "GlobalPointer"}
        assert [m.heads for m in (linker.entities, linker.head_links, linker.tail_links)] == [
            2,
            3,
            3,
        ]
        assert [m.causal for m in (linker.entities, linker.head_links, linker.tail_links)] == [
            True,
            False,
            False,
        ]
        assert [m.rope for m in (linker.entities, linker.head_links, linker.tail_links)] == [
            True,
            False,
            False,
        ]
        assert small().head_links.rope
        assert small().tail_links.rope
        assert linker.head_links.head_size == 6
        assert linker(**linker.collate(linker.prepare(EIGHT)[0])).isfinite()

    def test_bias_start_is_the_level_of_the_first_scores(self):
        for start in (-8.0, 0.0):
            linker = small(bias_start=start)
            batch = linker.collate(linker.prepare(EIGHT)[0])
            for name in Tables._fields:
                del batch[name]
            for table in linker.scores(**batch):
                assert table[table.isfinite()].mean().item() == pytest.approx(start, abs=1)

    def test_word_dropout_forgets_in_training_only(self):
        linker = small(word_dropout=0.5)
        batch = linker.collate(linker.prepare(EIGHT)[0])
        first, second = linker(**batch), linker(**batch)
        assert first != second
        linker.eval()
        assert linker(**batch) == linker(**batch)
        seen = []
        linker.encoder.words.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
        linker.train()
        linker(**batch)
        words, kept = batch["words"], seen[0]
        assert (kept[words <= 2] == words[words <= 2]).all()
        changed = (kept != words)[words > 2]
        assert (kept[kept != words] == 1).all()
        assert 0.2 < changed.double().mean() < 0.8

    def test_float64(self, made):
        made = made.double()
        batch = made.collate(made.prepare(EIGHT)[0])
        loss = made(**batch)
        assert loss.dtype == torch.float64
        loss.backward()
        assert {p.grad.dtype for p in made.parameters()} == {torch.float64}
        assert {b.dtype for b in made.buffers() if b.is_floating_point()} <= {torch.float64}

    def test_autocast(self, made):
        made.eval()
        batch = made.collate(made.prepare(EIGHT)[0])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = made(**batch)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(made(**batch).item(), rel=0.05)
        loss.backward()
        assert all(p.grad.isfinite().all() for p in made.parameters())

    def test_extraction_keeps_order_mode_and_randomness(self, made, monkeypatch):
        """The result does not depend on how the items are batched."""
        bias = small(bias_start=0.3) if made.encoder.kind == "small" else made
        made = bias.double()
        items, _ = made.prepare(EIGHT)
        made.train()
        together = made.extract_scored(items)
        assert made.training
        made.eval()
        monkeypatch.setattr(model, "NUMBERS_AT_ONCE", 1)
        alone = made.extract_scored(items)
        assert not made.training
        for a, b in zip(together, alone, strict=True):
            assert [t for t, _ in a] == [t for t, _ in b]
            assert [s for _, s in a] == pytest.approx([s for _, s in b])
        if made.encoder.kind == "small":
            assert any(together)
        assert made.extract(items) == [tuple(t for t, _ in found) for found in together]

    def test_extraction_restores_the_mode_after_an_error(self):
        linker = small()
        items, _ = linker.prepare(EIGHT)
        torch.nn.init.constant_(linker.entities.projection.bias, torch.nan)
        with pytest.raises(ValueError, match="got nan"):
            linker.extract(items)
        assert linker.training

    @pytest.mark.parametrize("pointer", ["efficient", "standard"])
    @pytest.mark.parametrize("part", ["entities", "head_links", "tail_links"])
    def test_extraction_hands_no_nan_on(self, pointer, part):
        linker = small(pointer=pointer, bias_start=1.0)
        items, _ = linker.prepare(EIGHT)
        torch.nn.init.constant_(getattr(linker, part).projection.bias, torch.nan)
        with pytest.raises(ValueError, match=r"(?i)got nan"):
            linker.extract(items)

    @pytest.mark.parametrize("pointer", ["efficient", "standard"])
    def test_batches_are_bounded_by_what_the_pointers_hold(self, monkeypatch, pointer):
        linker = small(pointer=pointer)
        items, _ = linker.prepare([Example("", "Ada " * n) for n in (1, 30, 2, 29, 3)])
        vectors = 2 * 8 * 31 * (1 if pointer == "efficient" else TINY["head_size"])
        monkeypatch.setattr(model, "NUMBERS_AT_ONCE", 2 * (vectors + 3 * 31**2))
        assert linker._batches(items) == [[1, 3], [4, 2, 0]]
        assert sorted(i for b in linker._batches(items) for i in b) == [0, 1, 2, 3, 4]
        monkeypatch.undo()
        many = linker._batches([items[0]] * 130)
        assert [len(b) for b in many] == [64, 64, 2]

    @pytest.mark.parametrize("pointer", ["efficient", "standard"])
    def test_learns_eight_sentences_by_heart(self, pointer):
        linker = small(hidden_size=48, head_size=16, pointer=pointer).double()
        items, _ = linker.prepare(EIGHT)
        batch = linker.collate(items)
        optimiser = torch.optim.AdamW(linker.parameter_groups(5e-3, 1e-2, 0.0))
        first = linker(**batch).item()
        for _ in range(80):
            optimiser.zero_grad()
            loss = linker(**batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(linker.parameters(), 1.0)
            optimiser.step()
        assert loss.item() < first / 20
        assert [set(t) for t in linker.extract(items)] == [set(e.triples) for e in EIGHT]

    @pytest.mark.parametrize("pointer", ["efficient", "standard"])
    def test_r_drop_is_the_mean_of_two_passes_and_their_divergence(self, pointer):
        linker = small(pointer=pointer, bias_start=-2.0, dropout=0.3, r_drop=3.0).double()
        batch = linker.collate(linker.prepare(EIGHT)[0])
        inputs = {k: v for k, v in batch.items() if k not in Tables._fields}
        torch.manual_seed(5)
        loss = linker(**batch)
        torch.manual_seed(5)
        first, second = (linker.scores(**inputs) for _ in range(2))
        torch.manual_seed(5)
        losses = [filled_loss(linker, batch) for _ in range(2)]
        apart = sum(
            zlpr_divergence(one.flatten(2), other.flatten(2), reduction="sum")
            for one, other in zip(first, second, strict=True)
        ) / len(EIGHT)
        assert apart > 0.01
        assert loss.item() == pytest.approx((sum(losses) / 2 + 3 / 4 * apart).item(), rel=1e-9)
        loss.backward()
        assert all(p.grad.isfinite().all() for p in linker.parameters() if p.grad is not None)

    def test_r_drop_is_for_training_only(self):
        linker = small(dropout=0.3, r_drop=3.0).double().eval()
        batch = linker.collate(linker.prepare(EIGHT)[0])
        assert linker(**batch).item() == pytest.approx(filled_loss(linker, batch).item(), rel=1e-9)

    def test_pretrained_kind_learns_by_heart(self, bert):
        torch.manual_seed(0)
        linker = GPLinker.create(bert, ("wrote", "lives in", "runs"), head_size=16)
        items, _ = linker.prepare(EIGHT)
        batch = linker.collate(items)
        optimiser = torch.optim.AdamW(linker.parameter_groups(5e-3, 1e-2, 0.0))
        for _ in range(100):
            optimiser.zero_grad()
            linker(**batch).backward()
            torch.nn.utils.clip_grad_norm_(linker.parameters(), 1.0)
            optimiser.step()
        assert [set(t) for t in linker.extract(items)] == [set(e.triples) for e in EIGHT]


class TestPredict:
    def test_strings_go_in_and_words_come_out(self, made):
        """The same triples, in order, as of prepared items, whatever the batches."""
        with torch.no_grad():
            for pointer in (made.entities, made.head_links, made.tail_links):
                pointer.head_scores.bias.fill_(1.0)
        texts = [e.text for e in EIGHT] + ["", "Ada wrote Tides. " * 5]
        items, _ = made.prepare([Example(text, text) for text in texts])
        expected = made.extract_scored(items)
        for found in (
            made.predict(texts, batch_size=3, device="cpu"),
            made.train().predict(tuple(texts)),
        ):
            assert [len(of_text) for of_text in found] == [len(of_text) for of_text in expected]
            for text, of_text, wanted in zip(texts, found, expected, strict=True):
                for triple, (same, score) in zip(of_text, wanted, strict=True):
                    assert triple.triple() == same
                    assert triple.subject.text == text[triple.subject.start : triple.subject.end]
                    assert triple.object.text == text[triple.object.start : triple.object.end]
                    assert triple.confidence == pytest.approx(1 / (1 + math.exp(-score)), rel=1e-4)
        assert sum(map(len, expected)) > 20
        assert not made.training
        assert made.predict([]) == []

    def test_a_threshold_keeps_the_sure_ones(self, made):
        with torch.no_grad():
            for pointer in (made.entities, made.head_links, made.tail_links):
                pointer.head_scores.bias.fill_(1.0)
        texts = [e.text for e in EIGHT]
        every = made.predict(texts)
        cut = sorted(t.confidence for of_text in every for t in of_text)[-20]
        sure = made.predict(texts, threshold=math.log(cut / (1 - cut)))
        expected = [tuple(t for t in of_text if t.confidence > cut) for of_text in every]
        assert abs(sum(map(len, sure)) - sum(map(len, expected))) <= 1  # the one on the edge

    def test_one_string_is_refused(self, made):
        with pytest.raises(TypeError, match=r"texts must be a sequence of strings, got a string"):
            made.predict("Ada wrote Tides")


class TestCreate:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"texts": None}, ValueError, "texts: expected the training texts .*, got None"),
            ({"texts": ["", "  "]}, ValueError, "texts: expected some words"),
            (
                {"pointer": "fast"},
                ValueError,
                "pointer: expected 'efficient' or 'standard', .*'fast'",
            ),
            ({"r_drop": -1.0}, ValueError, "r_drop: expected a finite number from 0 on, got -1.0"),
            ({"r_drop": math.inf}, ValueError, "r_drop: expected a finite number .*, got inf"),
            ({"layers": 0}, ValueError, "layers: expected at least 1, got 0"),
            ({"max_length": 1}, ValueError, "max_length: expected at least 2, got 1"),
            ({"dropout": 1.0}, ValueError, "dropout: expected 0 <= dropout < 1, got 1.0"),
            ({"word_dropout": -0.1}, ValueError, "word_dropout: .* got -0.1"),
            ({"hidden_size": 18}, ValueError, "hidden_size: expected a multiple of 4.* got 18"),
            ({"head_size": 3}, ValueError, "head_size must be even"),
            ({"depth": 3, "width": 2}, TypeError, "not known for encoder 'small': depth, width"),
        ],
    )
    def test_small(self, options, error, message):
        arguments = {"texts": ["Ada wrote"]} | TINY | options
        with pytest.raises(error, match=message):
            GPLinker.create("small", ("r",), **arguments)

    @pytest.mark.parametrize(
        ("relations", "message"),
        [
            ((), r"relations: expected at least one name in a sequence, got \(\)"),
            ("wrote", "relations: expected at least one name in a sequence, got 'wrote'"),
            (("a", "b", "a"), "relations: expected different names, got 'a' more than once"),
        ],
    )
    def test_relations(self, relations, message):
        with pytest.raises(ValueError, match=message):
            GPLinker.create("small", relations, texts=["Ada wrote"])

    def test_the_seed_decides(self):
        first, again, other = small(seed=1), small(seed=1), small(seed=2)
        for a, b in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
            assert torch.equal(a, b)
        assert not torch.equal(first.entities.projection.weight, other.entities.projection.weight)

    def test_vocabulary_of_frequent_words(self):
        texts = ["Ada wrote Tides", "Bo wrote tides"]
        linker = GPLinker.create("small", ("r",), texts=texts)
        vocabulary = linker.encoder.tokenizer.get_vocab()
        assert set(vocabulary) == {"[PAD]", "[UNK]", "[CLS]", "wrote", "tides"}
        (tokens,) = linker.encoder.tokenise(["Ada wrote Tides"])
        assert tokens.inputs["words"] == (2, 1, vocabulary["wrote"], vocabulary["tides"])

    def test_pretrained_takes_no_options_of_the_small_one(self, bert):
        with pytest.raises(TypeError, match=r"options: not known for encoder .*: layers"):
            GPLinker.create(bert, ("r",), layers=3)

    def test_max_length(self, bert):
        assert GPLinker.create(bert, ("r",)).encoder.max_length == 40
        assert GPLinker.create(bert, ("r",), max_length=17).encoder.max_length == 17
        for wrong in (2, 41):
            with pytest.raises(ValueError, match=f"max_length: expected 3 to 40.* got {wrong}"):
                GPLinker.create(bert, ("r",), max_length=wrong)

    def test_pooler_is_left_out(self, bert):
        encoder = GPLinker.create(bert, ("r",)).encoder
        assert not any("pooler" in name for name, _ in encoder.named_parameters())
        again = HuggingFaceEncoder(encoder.model, encoder.tokenizer, "has none")
        assert again.hidden_size == encoder.hidden_size

    def test_word_shapes_start_as_the_pretrained_encoder(self, bert):
        plain = GPLinker.create(bert, ("r",)).encoder.eval()
        shaped = GPLinker.create(bert, ("r",), word_shapes=True).encoder.eval()
        (tokens,) = shaped.tokenise(["Ada likes FOODS."])
        inputs = {name: torch.tensor([ids]) for name, ids in tokens.inputs.items()}
        mask = torch.ones_like(inputs["input_ids"])
        seen = shaped(attention_mask=mask, **inputs)
        del inputs["shapes"]
        assert torch.equal(seen, plain(attention_mask=mask, **inputs))

    @pytest.mark.parametrize("kind", ["wordpiece", "metaspace", "whole text"])
    def test_word_shapes_are_those_of_the_words_of_the_text(self, bert, kind):
        encoder = GPLinker.create(bert, ("r",), word_shapes=True).encoder
        if kind != "wordpiece":  # what the words of a sentence-piece tokenizer are, and of none
            pieces = {piece: i for i, piece in enumerate(["[UNK]", *"▁ (AdaFOSfos😀3."])}
            raw = tokenizers.Tokenizer(tokenizers.models.BPE(pieces, [], unk_token="[UNK]"))
            if kind == "metaspace":
                raw.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
            encoder.tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
            encoder.padding = {"input_ids": 0, "shapes": 0}
        text = "(Ada FOODS foods 😀 3."
        (tokens,) = encoder.tokenise([text])
        where = {"(": ".", "Ada": "Xx", "FOODS": "XX", "foods": "x", "😀": ".", "3": "0", ".": "."}
        seen = set()
        for (start, end), shape in zip(tokens.offsets, tokens.inputs["shapes"], strict=True):
            if start == end:
                assert SHAPES[shape] == ""
                continue
            word = next(w for w in where if text.index(w) <= start < text.index(w) + len(w))
            assert SHAPES[shape] == where[word]
            seen.add(word)
        assert seen == set(where)

    def test_word_shapes_of_any_text(self, bert):
        encoder = GPLinker.create(bert, ("r",), word_shapes=True).encoder

        @given(st.text(max_size=40))
        def check(text):
            (tokens,) = encoder.tokenise([text])
            for (start, end), shape in zip(tokens.offsets, tokens.inputs["shapes"], strict=True):
                assert (shape > 0) == (start < end)

        check()

    def test_word_shapes_are_as_wide_as_the_word_vectors(self, tmp_path):
        albert = bert_files(tmp_path, kind="Albert", embedding_size=8)
        model = GPLinker.create(albert, ("wrote", "lives in", "runs"), word_shapes=True)
        model(**model.collate(model.prepare(EIGHT)[0])).backward()
        assert model.encoder.shapes.weight.shape == (len(SHAPES), 8)
        assert model.encoder.shapes.weight.grad.abs().max() > 0

    def test_word_shapes_learn_at_the_rate_of_the_heads(self, bert):
        model = GPLinker.create(bert, ("r",), word_shapes=True)
        groups = model.parameter_groups(1e-5, 1e-3, 0.01)
        rates = [
            g["lr"] for g in groups if any(p is model.encoder.shapes.weight for p in g["params"])
        ]
        assert rates == [1e-3]

    def test_word_shapes_tell_cases_apart(self, bert):
        def states(encoder, text):
            (tokens,) = encoder.tokenise([text])
            inputs = {name: torch.tensor([ids]) for name, ids in tokens.inputs.items()}
            return encoder(attention_mask=torch.ones_like(inputs["input_ids"]), **inputs)

        plain = GPLinker.create(bert, ("r",)).encoder.eval()
        assert torch.equal(states(plain, "Ada runs"), states(plain, "ada runs"))
        shaped = GPLinker.create(bert, ("r",), word_shapes=True).encoder.eval()
        states(shaped, "Ada runs").square().sum().backward()
        moved = shaped.shapes.weight.grad.abs().sum(1) > 0
        assert [SHAPES[i] for i in moved.nonzero()[:, 0]] == ["", "x", "Xx"]
        torch.nn.init.normal_(shaped.shapes.weight)
        assert not torch.allclose(states(shaped, "Ada runs"), states(shaped, "ada runs"))

    def test_word_shapes_are_saved(self, bert, tmp_path):
        model = GPLinker.create(bert, ("wrote", "lives in", "runs"), word_shapes=True).eval()
        torch.nn.init.normal_(model.encoder.shapes.weight)
        model.save(tmp_path / "model")
        again = GPLinker.load(tmp_path / "model")
        batch = model.collate(model.prepare(EIGHT)[0])
        assert torch.equal(model(**batch), again(**again.collate(again.prepare(EIGHT)[0])))
        # A folder written before there was the option does not name it.
        plain = GPLinker.create(bert, ("wrote",))
        plain.save(tmp_path / "plain")
        config = json.loads((tmp_path / "plain" / "config.json").read_text("utf-8"))
        assert config["encoder"].pop("word_shapes") is False
        (tmp_path / "plain" / "config.json").write_text(json.dumps(config), "utf-8")
        assert GPLinker.load(tmp_path / "plain").encoder.shapes is None

    def test_word_shapes_are_for_pretrained_encoders(self):
        with pytest.raises(TypeError, match="not known for encoder 'small': word_shapes"):
            small(word_shapes=True)

    def test_no_such_encoder(self, tmp_path):
        (tmp_path / "empty").mkdir()
        with pytest.raises((OSError, ValueError), match="empty"):
            GPLinker.create(str(tmp_path / "empty"), ("r",))

    def test_tokenizer_larger_than_the_model(self, tmp_path):
        folder = bert_files(tmp_path, rows=9)
        message = r"the tokenizer of '.*' has \d+ entries, but the model has embeddings for 9 only"
        with pytest.raises(ValueError, match=message):
            GPLinker.create(folder, ("r",))

    def test_slow_tokenizers_and_decoders(self, bert):
        encoder = GPLinker.create(bert, ("r",)).encoder

        class Slow:
            is_fast = False

        with pytest.raises(ValueError, match=r"fast tokenizer.* got Slow for 'name'"):
            HuggingFaceEncoder(encoder.model, Slow(), "name")
        encoder.model.config.is_encoder_decoder = True
        with pytest.raises(ValueError, match="encoder alone, got 'name', which has a decoder"):
            HuggingFaceEncoder(encoder.model, encoder.tokenizer, "name")

    def test_weights_come_from_safetensors_only(self, bert, tmp_path):
        folder = tmp_path / "pickled"
        shutil.copytree(bert, folder)
        from safetensors.torch import load_file

        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        with pytest.raises(OSError, match="safetensors"):
            GPLinker.create(str(folder), ("r",))

    def test_weights_stored_in_half_precision_are_trained_in_full(self, tmp_path):
        from transformers import BertModel

        name = bert_files(tmp_path)
        BertModel.from_pretrained(name).to(torch.bfloat16).save_pretrained(name)
        linker = GPLinker.create(name, ("p",))
        assert {p.dtype for p in linker.parameters()} == {torch.float32}
        linker.save(tmp_path / "saved")
        assert {p.dtype for p in GPLinker.load(tmp_path / "saved").parameters()} == {torch.float32}


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


class TestFolder:
    def test_links_under_their_old_names_are_loaded(self, made, tmp_path):
        """Until version 0.1 they were ``heads`` and ``tails``; in a saved run too."""
        made.save(tmp_path / "model")
        file = tmp_path / "model" / "model.safetensors"
        state = load_file(file)
        old = {
            name.replace("head_links.", "heads.").replace("tail_links.", "tails."): value
            for name, value in state.items()
        }
        assert len(set(state) - set(old)) == 8
        save_file(old, file)
        loaded = GPLinker.load(tmp_path / "model").state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in state.items())
        average = torch.optim.swa_utils.AveragedModel(made)
        saved = {f"module.{name}": value for name, value in old.items()}
        average.load_state_dict(saved | {"n_averaged": torch.tensor(3)})
        found = average.module.state_dict()
        assert all(torch.equal(found[name], value) for name, value in state.items())

    def test_load_gives_the_same_scores_without_the_encoder(self, made, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        items, _ = made.prepare(EIGHT)
        made.save(tmp_path / "model")
        loaded = GPLinker.load(tmp_path / "model")
        assert not loaded.training
        assert loaded.relations == made.relations
        assert loaded.options == made.options
        assert loaded.encoder.max_length == made.encoder.max_length
        assert loaded.prepare(EIGHT) == made.prepare(EIGHT)
        made.eval()
        batch = made.collate(items)
        for name in Tables._fields:
            del batch[name]
        for a, b in zip(made.scores(**batch), loaded.scores(**batch), strict=True):
            assert torch.equal(a, b)

    def test_holds_what_it_promises(self, made, tmp_path):
        made.save(tmp_path / "model")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
        assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [
            "config.json",
            "encoder",
            "model.safetensors",
        ]
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        assert config["format"] == 1
        assert config["relations"] == ["wrote", "lives in", "runs"]
        assert config["encoder"]["kind"] == made.encoder.kind

    def test_float64_comes_back_as_float64(self, tmp_path):
        linker = small().double()
        linker.save(tmp_path / "model")
        loaded = GPLinker.load(tmp_path / "model")
        for a, b in zip(linker.state_dict().values(), loaded.state_dict().values(), strict=True):
            assert a.dtype == b.dtype == torch.float64
            assert torch.equal(a, b)

    def test_replaces_a_model_but_nothing_else(self, tmp_path):
        first, second = small(seed=1), small(seed=2)
        first.save(tmp_path / "model")
        second.save(tmp_path / "model")
        loaded = GPLinker.load(tmp_path / "model")
        assert torch.equal(loaded.entities.projection.weight, second.entities.projection.weight)
        (tmp_path / "empty").mkdir()
        first.save(tmp_path / "empty")
        assert GPLinker.load(tmp_path / "empty").relations == first.relations
        (tmp_path / "letters").mkdir()
        (tmp_path / "letters" / "to_ada.txt").write_text("dear")
        with pytest.raises(ValueError, match=r"expected a saved model or nothing at .*letters"):
            first.save(tmp_path / "letters")
        assert (tmp_path / "letters" / "to_ada.txt").read_text() == "dear"
        assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]

    @pytest.mark.parametrize("rename", [1, 2])
    def test_a_kill_between_the_renames_loses_nothing(self, tmp_path, monkeypatch, rename):
        first, second = small(seed=1), small(seed=2)
        first.save(tmp_path / "model")
        calls = []
        original = Path.rename

        def killed(path, target):
            calls.append(path)
            if len(calls) == rename:
                raise Killed
            return original(path, target)

        monkeypatch.setattr(Path, "rename", killed)
        with pytest.raises(Killed):
            second.save(tmp_path / "model")
        monkeypatch.undo()
        loaded = GPLinker.load(tmp_path / "model")
        assert torch.equal(loaded.entities.projection.weight, first.entities.projection.weight)
        second.save(tmp_path / "model")
        loaded = GPLinker.load(tmp_path / "model")
        assert torch.equal(loaded.entities.projection.weight, second.entities.projection.weight)
        assert [p.name for p in tmp_path.iterdir()] == ["model"]

    def test_a_kill_after_the_renames_loses_nothing(self, tmp_path, monkeypatch):
        first, second = small(seed=1), small(seed=2)
        first.save(tmp_path / "model")
        monkeypatch.setattr(folders, "rmtree", lambda *_args, **_options: None)
        second.save(tmp_path / "model")
        monkeypatch.undo()
        assert (tmp_path / ".model.old").exists()
        loaded = GPLinker.load(tmp_path / "model")
        assert torch.equal(loaded.entities.projection.weight, second.entities.projection.weight)
        first.save(tmp_path / "model")
        assert [p.name for p in tmp_path.iterdir()] == ["model"]

    @pytest.mark.parametrize("rename", [1, 2])
    def test_loading_while_it_is_saved_disturbs_nothing(self, tmp_path, monkeypatch, rename):
        """Before and between the renames that replace the folder."""
        first, second = small(seed=1), small(seed=2)
        first.save(tmp_path / "model")
        calls = []
        original = Path.rename

        def looked_at(path, target):
            calls.append(path)
            if len(calls) == rename:
                seen = GPLinker.load(tmp_path / "model").entities.projection.weight
                assert torch.equal(seen, first.entities.projection.weight)
            return original(path, target)

        monkeypatch.setattr(Path, "rename", looked_at)
        second.save(tmp_path / "model")
        monkeypatch.undo()
        loaded = GPLinker.load(tmp_path / "model")
        assert torch.equal(loaded.entities.projection.weight, second.entities.projection.weight)

    def test_two_that_save_at_once_do_not_mix(self, tmp_path, monkeypatch):
        first, second = small(seed=1), small(seed=2)
        original = GPLinker._write

        def slow(model, folder):
            original(model, folder)
            if model is first:
                with pytest.raises(ValueError, match="model is in use by process"):
                    second.save(tmp_path / "model")

        monkeypatch.setattr(GPLinker, "_write", slow)
        first.save(tmp_path / "model")
        loaded = GPLinker.load(tmp_path / "model")
        assert torch.equal(loaded.entities.projection.weight, first.entities.projection.weight)

    def test_a_full_disk_loses_nothing(self, tmp_path, monkeypatch):
        first, second = small(seed=1), small(seed=2)
        first.save(tmp_path / "model")

        def full(path, _write):
            if path.suffix == ".safetensors":
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(shared, "write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            second.save(tmp_path / "model")
        monkeypatch.undo()
        loaded = GPLinker.load(tmp_path / "model")
        assert torch.equal(loaded.entities.projection.weight, first.entities.projection.weight)
        assert [p.name for p in tmp_path.iterdir()] == ["model"]

    @pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "encoder"])
    def test_a_missing_file_is_named(self, tmp_path, missing):
        small().save(tmp_path / "model")
        path = tmp_path / "model" / missing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(FileNotFoundError, match=f"model: .* has no {missing}"):
            GPLinker.load(tmp_path / "model")

    def test_a_run_s_folder_is_its_best_model(self, tmp_path):
        linker = small(bias_start=1.0)
        linker.save(tmp_path / "best")
        (tmp_path / "record.json").touch()
        for folder in (tmp_path, str(tmp_path), tmp_path / "best"):
            loaded = GPLinker.load(folder)
            assert torch.equal(loaded.entities.projection.weight, linker.entities.projection.weight)

    def test_no_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere: expected a saved model"):
            GPLinker.load(tmp_path / "nowhere")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "config.json: not valid JSON"),
            ("[]", "config.json: expected format 1, got None"),
            ('{"format": 2}', "config.json: expected format 1, got 2"),
        ],
    )
    def test_a_wrong_config_is_named(self, tmp_path, text, message):
        small().save(tmp_path / "model")
        (tmp_path / "model" / "config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            GPLinker.load(tmp_path / "model")

    def test_the_model_is_named_and_was_not_always(self, tmp_path):
        small().save(tmp_path / "model")
        path = tmp_path / "model" / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"model": "CasRel"}))
        with pytest.raises(ValueError, match="expected a model 'GPLinker', got 'CasRel'"):
            GPLinker.load(tmp_path / "model")
        assert config.pop("model") == "GPLinker"
        path.write_text(json.dumps(config))
        assert GPLinker.load(tmp_path / "model").relations == ("wrote", "lives in", "runs")

    def test_files_of_different_models(self, tmp_path):
        small().save(tmp_path / "one")
        small(hidden_size=32).save(tmp_path / "two")
        shutil.copy(tmp_path / "two" / "model.safetensors", tmp_path / "one")
        with pytest.raises(ValueError, match=r"model.safetensors: does not fit config.json"):
            GPLinker.load(tmp_path / "one")
        weights = tmp_path / "two" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:100])
        with pytest.raises(ValueError, match=r"model.safetensors: does not fit config.json"):
            GPLinker.load(tmp_path / "two")

    def test_tokenizer_of_another_model(self, bert, tmp_path):
        GPLinker.create(bert, ("r",)).save(tmp_path / "model")
        path = tmp_path / "model" / "encoder" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 5}))
        with pytest.raises(ValueError, match=r"has \d+ entries, .* embeddings for 5 only"):
            GPLinker.load(tmp_path / "model")

    def test_copies(self, made):
        """Training keeps copies of models."""
        items, _ = made.prepare(EIGHT)
        made.eval()
        twin = copy.deepcopy(made)
        assert twin(**twin.collate(items)) == made(**made.collate(items))


class TestShippedModel:
    """The folder book/data/gplinker-small, which chapter 9 loads."""

    FOLDER = Path(__file__).resolve().parents[1] / "book" / "data" / "gplinker-small"

    def test_is_small_and_scores_as_its_record_says(self):
        size = sum(file.stat().st_size for file in self.FOLDER.rglob("*") if file.is_file())
        assert size < 2e6
        record = read_record(self.FOLDER.parents[1] / "runs" / "gplinker-small.json")
        corpus = load_corpus("synthetic")
        assert record.data["sha256"] == corpus.sha256
        linker = GPLinker.load(self.FOLDER)
        assert linker.relations == corpus.relations
        items, dropped = linker.prepare(corpus.test)
        assert not dropped
        micro = evaluate_triples([e.triples for e in corpus.test], linker.extract(items)).micro
        assert micro.f1 == pytest.approx(record.scores["test"]["f1"], abs=0.01)
        assert micro.f1 > 0.8
