"""Ten thousand odd sentences through the whole of extraction: nothing crashes, nothing is lost.

A triple of a random text is carried from characters to tokens, from there to the cells of the four
tables, to perfect scores and back. Each triple must come back, or be counted with its reason.
``FUZZ=100000 python -m pytest tests/test_fuzz.py`` tries more than the ten thousand of every run.
"""

import copy
import json
import os
import random
from collections import Counter

import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from lib.extraction.alignment import (
    BEYOND_LAST_TOKEN,
    NO_TOKEN,
    NOT_ON_BORDERS,
    TOO_FAR,
    TokenTriple,
    span_of,
)
from lib.extraction.triples import Example, Span, Triple
from lib.gplinker import GPLinker, decode_tables, table_positives
from lib.gplinker.__main__ import main
from tests.extraction.strategies import PIECES, examples
from tests.test_gplinker import TINY, perfect_scores

SENTENCES = int(os.environ.get("FUZZ", "10000"))
RELATIONS = ("p", "q")
REASONS = (NOT_ON_BORDERS, BEYOND_LAST_TOKEN, NO_TOKEN)

LETTERS = [
    *PIECES,
    *(
        "👨‍👩‍👧‍👦",
        "🏳️‍🌈",
        "🇺🇳",
        "1️⃣",
        "🫱🏻‍🫲🏿",
        "☠️",
        "🏴\U000e0067\U000e0062\U000e007f",
    ),  # joined emoji
    *("漢字", "かな", "한국어", "ㄱ", "𠮷", "中", "。"),
    *("שלום", "مرحبا", "\u200f", "\u202e", "\u2067", "\u2069", "לָ"),  # right to left
    *("Z\u0351\u036b\u0343\u036a", "\u0301", "\u1ab0", "กำ", "क्षि", "ﷺ", "Ǆ", "ﬃ", "ŉ"),
    *("\u200b", "\u200c", "\u2060", "\u180e", "\ufe0f", "\x7f", "\x85", "\u3164"),
    *("𝔄𝔡𝔞", "🜁", "\U0010ffff", "\ue000", "\ufdd0", "\ufffd", "\ufffe"),
]
"""Beside what the property tests draw from: longer clusters, scripts, and code points of no use."""


def sentence(chance):
    """Draw one text: mostly short, some empty or blank, some of one letter, some very long."""
    kind = chance.random()
    if kind < 0.02:
        return ""
    if kind < 0.04:
        return "".join(chance.choices([" ", "\t", "\n", "\u3000", "\u00a0", "\u200b"], k=5))
    if kind < 0.06:
        return chance.choice(LETTERS) * chance.randrange(1, 40)
    if kind < 0.065:
        words = chance.choices(LETTERS, k=20)
        return "".join(chance.choices(words, k=10_000))[:10_000].ljust(10_000, "x")
    if kind < 0.2:  # any code points but surrogates
        points = [chance.randrange(0x110000) for _ in range(chance.randrange(1, 30))]
        return "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)
    glue = chance.choice(["", " ", " "])
    return glue.join(chance.choices(LETTERS, k=chance.randrange(1, 30)))


def span(chance, text):
    """Draw a span: some of whole words, some of any characters."""
    bounds = range(len(text) + 1)
    if chance.random() < 0.7:
        gaps = [i for i in bounds if i in (0, len(text)) or " " in text[i - 1 : i + 1]]
        bounds = gaps if len(gaps) > 1 else bounds
    start, end = sorted(chance.sample(bounds, 2))
    while start + 1 < end and text[start] == " ":
        start += 1
    while start + 1 < end and text[end - 1] == " ":
        end -= 1
    return Span(start, end)


def odd_examples(count, seed):
    chance = random.Random(seed)
    for number in range(count):
        text = sentence(chance)
        drawn = chance.randrange(6) if text else 0
        triples = [
            Triple(span(chance, text), chance.choice(RELATIONS), span(chance, text))
            for _ in range(drawn)
        ]
        yield Example(str(number), text, tuple(dict.fromkeys(triples)))


# --- tokenizers of the three families that encoders on the hub have, and the small encoder's -----


def wordpiece():
    """As BERT has it: lower case, no accents, Chinese characters apart, rare words in pieces."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abdorw中字ss1", "word", "unicode", "##s", "##o"]
    raw = Tokenizer(
        models.WordPiece({w: i for i, w in enumerate(dict.fromkeys(words))}, unk_token="[UNK]")
    )
    raw.normalizer = normalizers.BertNormalizer()
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return raw


def byte_level():
    """As RoBERTa has it: bytes, so that one character may be four tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("w", "o"), ("r", "d"), ("wo", "rd"), ("Ġ", "word"), ("ð", "Ł"), ("ðŁ", "ĳ")]
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *alphabet, *(a + b for a, b in merges)]
    raw = Tokenizer(models.BPE({w: i for i, w in enumerate(entries)}, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2))
    return raw


def sentencepiece():
    """As XLM-R has it: compatibility forms replaced, a mark for each space, unknowns joined."""
    entries = [("[PAD]", 0.0), ("[UNK]", 0.0), ("[CLS]", 0.0), ("[SEP]", 0.0), ("▁", -2.0)]
    entries += [(letter, -5.0) for letter in "aBwordfis.中12"] + [("▁word", -3.0), ("fi", -4.0)]
    raw = Tokenizer(models.Unigram(entries, unk_id=1))
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return raw


def hub_folder(raw, folder):
    """Write a tiny encoder with this tokenizer, as the hub would hold it."""
    special = {f"{n}_token": f"[{n.upper()}]" for n in ("pad", "unk", "cls", "sep")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, model_max_length=256, **special)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=len(tokenizer), intermediate_size=32, max_position_embeddings=256, **sizes
    )
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


KINDS = {"wordpiece": wordpiece, "byte-level": byte_level, "sentencepiece": sentencepiece}


@pytest.fixture(scope="module")
def linkers(tmp_path_factory):
    torch.manual_seed(0)
    made = {"small": GPLinker.create("small", RELATIONS, texts=["word Ünïcode 中文 12"], **TINY)}
    for name, build in KINDS.items():
        folder = hub_folder(build(), tmp_path_factory.mktemp(name))
        made[name] = GPLinker.create(folder, RELATIONS, head_size=4)
    return made


# --- the way there and back ----------------------------------------------------------------------


def reason(span, offsets):
    """Say why a span has no tokens, from sets of characters; None if it has."""
    inside = set(range(span.start, span.end))
    covered = [set(range(start, end)) for start, end in offsets]
    if not any(characters and max(characters) >= span.end - 1 for characters in covered):
        return BEYOND_LAST_TOKEN
    touching = [characters for characters in covered if characters & inside]
    if not touching:
        return NO_TOKEN
    union = set().union(*touching)
    whole = union <= inside and {span.start, span.end - 1} <= union
    return None if whole else NOT_ON_BORDERS


def together(triple, parts):
    """Tell whether some window of a text has the borders of both entities."""
    spans = triple.subject, triple.object
    return any(
        {s.start for s in spans} <= {start for start, end in part.offsets if start < end}
        and {s.end for s in spans} <= {end for start, end in part.offsets if start < end}
        for part in parts
    )


def there_and_back(linker, batch):
    """Check every triple of a batch and return how many came back, and what was dropped."""
    items, dropped = linker.prepare(batch)
    long = dropped.pop("text read in windows", 0)
    assert dropped.pop("window of a text", 0) == len(items) - len(batch) + long
    expected = Counter()
    back = 0
    of_text = [[item for item in items if item.example == n] for n in range(len(batch))]
    for example, parts in zip(batch, of_text, strict=True):
        offsets = [offset for part in parts for offset in part.offsets]
        why = {s: reason(s, offsets) for t in example.triples for s in (t.subject, t.object)}
        losses = [
            why[t.subject] or why[t.object] or (None if together(t, parts) else TOO_FAR)
            for t in example.triples
        ]
        expected.update(loss for loss in losses if loss)
        kept = [t for t, loss in zip(example.triples, losses, strict=True) if loss is None]
        found = set()
        for item in (part for part in parts if part.triples):
            tables = perfect_scores(item.triples, len(item), len(RELATIONS))
            for t in decode_tables(*tables):
                subject = span_of(item.offsets, t.subject_head, t.subject_tail)
                object_ = span_of(item.offsets, t.object_head, t.object_tail)
                found.add(Triple(subject, RELATIONS[t.relation], object_))
        missing = set(kept) - found
        assert not missing, (example, missing)
        back += len(kept)
    assert dropped == expected
    assert all(len(item) <= 256 for item in items)
    return Counter({"back": back, "long": long}) + expected


@pytest.mark.parametrize("name", ["small", *KINDS])
def test_ten_thousand_odd_sentences(linkers, name):
    counts = Counter()
    batch = []
    for number, example in enumerate(odd_examples(SENTENCES, seed=5), 1):
        batch.append(example)
        if len(batch) == 100 or number == SENTENCES:
            counts += there_and_back(linkers[name], batch)
            counts["triples"] += sum(len(example.triples) for example in batch)
            counts["sentences"] += len(batch)
            batch = []
    print(name, dict(counts))
    assert counts["sentences"] == SENTENCES
    lost = sum(counts[why] for why in (*REASONS, TOO_FAR))
    assert counts["back"] + lost == counts["triples"]
    # Enough of each kind, or nothing has been tried.
    for kind in ("back", "long", *REASONS):
        assert counts[kind] >= SENTENCES / 1000, kind


@given(batch=st.lists(examples(), min_size=1, max_size=4))
def test_there_and_back_whatever_the_text(linkers, batch):
    for linker in linkers.values():
        there_and_back(linker, batch)


def test_ten_thousand_characters_and_as_many_tokens():
    """Beyond 4096 tokens the index of a cell is no longer exact in float32."""
    text = "中" * 10_000
    torch.manual_seed(0)
    linker = GPLinker.create("small", ("p",), texts=[text], max_length=5001, **TINY)
    far = Triple(Span(4998, 5000), "p", Span(4990, 4999))
    beyond = Triple(Span(0, 1), "p", Span(5000, 5001))
    (item, *rest), dropped = linker.prepare([Example("0", text, (far, beyond))])
    assert [len(part.triples) for part in rest] == [1, 0]  # the second window holds it too
    assert dropped == {TOO_FAR: 1, "text read in windows": 1, "window of a text": 3}
    positives = table_positives([item.triples], length=5001, relations=1)
    tables = []
    for cells in positives:
        table = torch.full((cells.shape[1], 5001 * 5001), -1, dtype=torch.int8)
        numbers = cells[0, ..., 0] * 5001 + cells[0, ..., 1]
        tables.append(table.scatter_(1, numbers, 1).view(-1, 5001, 5001))
    (found,) = decode_tables(*tables)
    assert span_of(item.offsets, found.subject_head, found.subject_tail) == far.subject
    assert span_of(item.offsets, found.object_head, found.object_tail) == far.object


@pytest.mark.parametrize("name", ["small", *KINDS])
def test_an_eager_model_answers_odd_sentences_with_words_of_them(linkers, name):
    """Untrained and without its bias against all cells, it takes half of them."""
    linker = copy.deepcopy(linkers[name])
    for pointer in (linker.entities, linker.head_links, linker.tail_links):
        torch.nn.init.constant_(pointer.head_scores.bias, 0.5)
    batch = [e for e in odd_examples(40, seed=6) if len(e.text) < 60]
    items, _ = linker.prepare(batch)
    answers = linker.extract_scored(items)
    assert sum(map(len, answers)) > 1000
    for example, found in zip(batch, answers, strict=True):
        for triple, score in found:
            assert score > 0
            for part in (triple.subject.of(example.text), triple.object.of(example.text)):
                assert part == part.strip() != ""


# --- the command line ----------------------------------------------------------------------------


def test_an_eager_model_predicts_odd_texts(linkers, tmp_path):
    """Several spans of tokens may be the same characters: the bytes of one, say."""
    chance = random.Random(8)
    texts = ["😀 中文 😀", "word 中 is 😀", *(sentence(chance)[:40] for _ in range(10))]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for name, linker in linkers.items():
        eager = copy.deepcopy(linker)
        for pointer in (eager.entities, eager.head_links, eager.tail_links):
            torch.nn.init.constant_(pointer.head_scores.bias, 0.5)
        eager.save(tmp_path / name)
        result = CliRunner().invoke(
            main, ["predict", "--model", str(tmp_path / name), "--quiet", "--input", str(source)]
        )
        assert result.exit_code == 0, (name, result.output)
        found = [json.loads(line) for line in result.stdout.removesuffix("\n").split("\n")]
        assert [line["text"] for line in found] == texts
        assert sum(len(line["triples"]) for line in found) > 500


def test_of_token_spans_with_the_same_characters_the_best_score_is_kept(linkers):
    linker = linkers["byte-level"]
    (item,), _ = linker.prepare([Example("0", "a中", ())])
    one, *of_bytes = [i for i, (start, end) in enumerate(item.offsets) if start < end]
    assert len(of_bytes) == 3  # to one character
    first, second, third = of_bytes
    found = linker.in_characters(
        item,
        [
            (TokenTriple(one, one, 0, first, third), 0.5),
            (TokenTriple(one, one, 1, first, first), 0.1),
            (TokenTriple(one, one, 0, second, third), 2.5),
            (TokenTriple(one, one, 0, third, third), 1.5),
        ],
    )
    character = Span(1, 2)
    assert found == (
        (Triple(Span(0, 1), RELATIONS[0], character), 2.5),
        (Triple(Span(0, 1), RELATIONS[1], character), 0.1),
    )


def test_predict_reads_odd_texts_and_gives_them_back(linkers, tmp_path):
    chance = random.Random(7)
    texts = [sentence(chance) for _ in range(300)]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    for name, linker in linkers.items():
        linker.save(tmp_path / name)
        words = ["predict", "--model", str(tmp_path / name), "--quiet", "--input"]
        json_lines = CliRunner().invoke(main, [*words, str(source)])
        assert json_lines.exit_code == 0, json_lines.output
        lines = json_lines.stdout.removesuffix("\n").split("\n")
        assert [json.loads(line)["text"] for line in lines] == texts
        plain = tmp_path / "in.txt"
        plain.write_bytes("\n".join(texts).encode())
        result = CliRunner().invoke(main, [*words, str(plain)])
        assert result.exit_code == 0, result.output
        wanted = [line.strip() for text in texts for line in text.split("\n") if line.strip()]
        lines = result.stdout.removesuffix("\n").split("\n")
        assert [json.loads(line)["text"] for line in lines] == wanted


@pytest.mark.parametrize("field", ["text", "id", "relation"])
def test_half_a_character_is_refused_by_name(linkers, tmp_path, field):
    """JSON can say half of a surrogate pair, which no tokenizer, file or terminal takes."""
    record = {"id": "7", "text": "Ada met Bo", "triples": []}
    triple = {"subject": "Ada", "relation": "met", "object": "Bo"}
    record["triples"].append(triple)
    (triple if field == "relation" else record)[field] += " \ud83d"
    source = tmp_path / "own.jsonl"
    source.write_text(2 * (json.dumps(record) + "\n"))
    words = ["train", "--data", str(source), "--encoder", "small", "--out", str(tmp_path / "run")]
    commands = [words]
    if field != "relation":  # triples of texts to predict on are not looked at
        linkers["small"].save(tmp_path / "model")
        commands.append(["predict", "--model", str(tmp_path / "model"), "--input", str(source)])
    for words in commands:
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith(f"Error: {source}, line 1: ")
        assert f"{field} holds '\\ud83d', half of a surrogate pair" in result.stderr
        assert f"{source}, line 2: " in result.stderr
        assert len(result.stderr.splitlines()) == (2 if words[0] == "train" else 3)
