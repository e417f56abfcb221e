"""Characters to tokens and back: every triple returned exactly or counted."""

import re
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from lib.extraction.alignment import (
    BEYOND_LAST_TOKEN,
    NO_TOKEN,
    NOT_ON_BORDERS,
    UNKNOWN_RELATION,
    Losses,
    TokenTriple,
    align,
    describe_loss,
    span_of,
    trim_offsets,
)
from lib.extraction.triples import Example, Span, Triple
from tests.extraction.strategies import PIECES, examples

IDS = {"p": 0, "q": 1}


def word_piece() -> Tokenizer:
    """A tokenizer as BERT has: accents stripped, words cut into pieces, unknown words whole."""
    letters = sorted(set("".join(PIECES).lower()) - set(" \n\t"))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "word", "uni", "##code", *letters]
    vocabulary = {w: i for i, w in enumerate(dict.fromkeys(words + [f"##{x}" for x in letters]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def byte_level() -> Tokenizer:
    """A tokenizer as RoBERTa has, one token a byte: many tokens to one character."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def metaspace() -> Tokenizer:
    """A tokenizer as T5 has: compatibility forms, and the space is part of the word."""
    vocabulary = [("<unk>", 0.0)] + [(x, -1.0) for x in [*sorted(set("".join(PIECES))), "▁", "▁w"]]
    tokenizer = Tokenizer(models.Unigram(vocabulary, 0, False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


TOKENIZERS = {"word pieces": word_piece(), "bytes": byte_level(), "metaspace": metaspace()}


def check_nothing_lost(example: Example, offsets: list[tuple[int, int]]) -> Counter[str]:
    trimmed = trim_offsets(example.text, offsets)
    assert len(trimmed) == len(offsets)
    alignment = align(example, trimmed, IDS)
    names = {i: name for name, i in IDS.items()}
    back = [
        Triple(
            span_of(trimmed, t.subject_head, t.subject_tail),
            names[t.relation],
            span_of(trimmed, t.object_head, t.object_tail),
        )
        for t in alignment.triples
    ]
    # In order, without repeats, and exactly those of the example that were not dropped.
    assert [t for t in example.triples if t in set(back)] == back
    assert len(back) + alignment.dropped.total() == len(example.triples)
    return alignment.dropped


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=100)
@given(example=examples(), cut=st.one_of(st.none(), st.integers(1, 12)))
def test_every_triple_is_returned_or_counted(name: str, example: Example, cut: int | None) -> None:
    tokenizer = TOKENIZERS[name]
    check_nothing_lost(example, tokenizer.encode(example.text).offsets[:cut])


@pytest.mark.parametrize("name", TOKENIZERS)
@given(example=examples())
def test_any_two_tokens_in_order_enclose_a_span(name: str, example: Example) -> None:
    offsets = trim_offsets(example.text, TOKENIZERS[name].encode(example.text).offsets)
    real = [i for i, (start, end) in enumerate(offsets) if start < end]
    for i, head in enumerate(real):
        for tail in real[i:]:
            span = span_of(offsets, head, tail)
            assert span.end <= len(example.text)
            assert not span.of(example.text)[0].isspace()
            assert not span.of(example.text)[-1].isspace()


@pytest.mark.parametrize("name", TOKENIZERS)
def test_long_texts_and_empty_ones(name: str) -> None:
    text = "".join(PIECES) * 100
    text = (text * (10_000 // len(text) + 1))[:10_000]
    spans = [Span(i, i + 1 + i % 7) for i in range(0, 9_990, 61)]
    triples = tuple(Triple(a, "p", b) for a, b in pairwise(spans))
    encoding = TOKENIZERS[name].encode(text)
    dropped = check_nothing_lost(Example("long", text, triples), encoding.offsets)
    assert dropped.total() < len(triples)
    dropped = check_nothing_lost(Example("long", text, triples), encoding.offsets[:512])
    assert dropped[BEYOND_LAST_TOKEN] > len(triples) / 2
    check_nothing_lost(Example("empty", ""), TOKENIZERS[name].encode("").offsets)


def test_words_of_plain_text_are_never_lost() -> None:
    text = "word by word, Ünïcode and 中文 too."
    words = [Span(0, 4), Span(14, 21), Span(26, 28), Span(26, 27)]
    triples = tuple(Triple(words[0], "p", w) for w in words)
    example = Example("1", text, triples)
    assert not check_nothing_lost(example, word_piece().encode(text).offsets)


@pytest.mark.parametrize(
    ("span", "reason"),
    [
        (Span(4, 8), NOT_ON_BORDERS),  # ends inside the token "wrote"
        (Span(5, 9), NOT_ON_BORDERS),  # begins inside it
        (Span(3, 9), NOT_ON_BORDERS),  # begins with a space
        (Span(9, 10), NO_TOKEN),  # is a space
        (Span(10, 15), BEYOND_LAST_TOKEN),
        (Span(4, 15), BEYOND_LAST_TOKEN),
    ],
)
def test_reasons(span: Span, reason: str) -> None:
    text = "Ada wrote Notes"
    offsets = [(0, 0), (0, 3), (4, 9), (0, 0)]
    as_object = Example("1", text, (Triple(Span(0, 3), "p", span),))
    as_subject = Example("1", text, (Triple(span, "p", Span(4, 9)), Triple(span, "p", span)))
    if reason == NO_TOKEN:
        offsets.insert(3, (10, 13))
    assert align(as_object, offsets, IDS).dropped == {reason: 1}
    assert align(as_subject, offsets, IDS).dropped == {reason: 2}
    assert align(as_object, offsets, IDS).triples == ()


def test_subject_is_counted_first() -> None:
    example = Example("1", "Ada wrote Notes", (Triple(Span(0, 2), "p", Span(10, 15)),))
    assert align(example, [(0, 3), (4, 9)], IDS).dropped == {NOT_ON_BORDERS: 1}


def test_without_tokens_all_is_beyond() -> None:
    example = Example("1", "Ada", (Triple(Span(0, 3), "p", Span(0, 3)),))
    assert align(example, [], IDS).dropped == {BEYOND_LAST_TOKEN: 1}
    assert align(example, [(0, 0)], IDS).dropped == {BEYOND_LAST_TOKEN: 1}


def test_several_tokens_of_one_character() -> None:
    example = Example("1", "a🙂b", (Triple(Span(1, 2), "q", Span(1, 3)),))
    offsets = TOKENIZERS["bytes"].encode(example.text).offsets
    assert align(example, offsets, IDS).triples == (TokenTriple(1, 4, 1, 1, 5),)


def test_trimming() -> None:
    assert trim_offsets("a  b ", [(0, 2), (1, 3), (2, 5)]) == ((0, 1), (0, 0), (3, 4))
    # A token that steps back has no characters; those after it keep theirs.
    assert trim_offsets("abcd", [(0, 2), (1, 4), (0, 1), (2, 3), (2, 4)]) == (
        (0, 2), (1, 4), (0, 0), (0, 0), (2, 4),
    )  # fmt: skip


SEEN_AS_ONE = {
    "accent": "Cafe\u0301",
    "two marks": "Ho\u0302\u0323i",
    "kana with a voice mark": "カ\u3099ス",
    "heart": "❤\ufe0f",
    "key cap": "1\ufe0f\u20e3",
    "vowel sign": "कमला",
    "soft hyphen inside": "co\u00adop",
    "zero-width space inside": "Foo\u200bBar",
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("entity", SEEN_AS_ONE.values(), ids=list(SEEN_AS_ONE))
@pytest.mark.parametrize("text", ["{}", "{} and more", "see {}.", "see {}, and {} too"])
def test_what_is_seen_as_one_letter_is_in_the_span(name: str, entity: str, text: str) -> None:
    """A tokenizer may take accents away: the span must hold them all the same."""
    full = text.format(entity, entity)
    span = Span(full.rindex(entity), full.rindex(entity) + len(entity))
    example = Example("1", full, (Triple(span, "p", span),))
    assert not check_nothing_lost(example, TOKENIZERS[name].encode(full).offsets)


def test_marks_go_to_the_token_before_them_and_to_no_other() -> None:
    text = "e\u0301\u0302 \u0303o"
    assert trim_offsets(text, [(0, 0), (0, 1), (5, 6)]) == ((0, 0), (0, 3), (5, 6))
    # A mark with a token of its own stays there; one behind a space has no letter to go to.
    assert trim_offsets(text, [(0, 1), (1, 2), (5, 6)]) == ((0, 1), (1, 3), (5, 6))
    # Several tokens of one letter all reach as far.
    assert trim_offsets("e\u0301o", [(0, 1), (0, 1), (2, 3)]) == ((0, 2), (0, 2), (2, 3))


def test_errors_name_the_values() -> None:
    with pytest.raises(ValueError, match=r"offsets\[1\] .* <= 3 .* got \(2, 4\)"):
        trim_offsets("abc", [(0, 1), (2, 4)])
    with pytest.raises(ValueError, match=r"got \(2, 1\)"):
        trim_offsets("abc", [(2, 1)])
    offsets = [(0, 0), (0, 1), (1, 2)]
    with pytest.raises(ValueError, match=r"head <= tail < 3 .* got head=2 and tail=1"):
        span_of(offsets, 2, 1)
    with pytest.raises(ValueError, match="got head=1 and tail=3"):
        span_of(offsets, 1, 3)
    with pytest.raises(ValueError, match="got head=-1"):
        span_of(offsets, -1, 1)
    with pytest.raises(ValueError, match=r"head=0 is a token without characters.*\(0, 0\)"):
        span_of(offsets, 0, 1)
    with pytest.raises(ValueError, match="tail=3 is a token without"):
        span_of([*offsets, (0, 0)], 1, 3)


def test_unknown_relations_are_counted() -> None:
    known, unknown = (Triple(Span(0, 3), relation, Span(0, 3)) for relation in ("p", "saw"))
    alignment = align(Example("x7", "Ada", (unknown, known)), [(0, 3)], IDS)
    assert alignment.dropped == {UNKNOWN_RELATION: 1}
    assert [t.relation for t in alignment.triples] == [0]


def test_a_loss_is_told_with_its_place_and_its_role() -> None:
    text = "Ada wrote Notes"
    triples = (
        Triple(Span(0, 2), "p", Span(10, 15)),
        Triple(Span(0, 3), "p", Span(10, 14)),
        Triple(Span(0, 3), "saw", Span(10, 15)),
    )
    offsets = [(0, 3), (4, 9), (10, 15)]
    for source, where in (("own.jsonl, line 3", "own.jsonl, line 3"), ("", "example 'x'")):
        example = Example("x", text, triples, source)
        lost = align(example, offsets, IDS).lost
        assert [describe_loss(example, loss, offsets) for loss in lost] == [
            f"{where}: subject 'Ad' of 'p'",
            f"{where}: object 'Note' of 'p'",
            f"{where}: relation 'saw'",
        ]
    long = Example("x", "a" * 99, (Triple(Span(0, 50), "p", Span(0, 99)),))
    (loss,) = align(long, [(0, 99)], IDS).lost
    assert describe_loss(long, loss, [(0, 99)]) == f"example 'x': subject {'a' * 39 + '…'!r} of 'p'"


@pytest.mark.parametrize(
    ("encoding", "size", "units"), [("utf-16-le", 2, "UTF-16 units"), ("utf-8", 1, "bytes")]
)
def test_offsets_in_other_units_are_recognised(encoding: str, size: int, units: str) -> None:
    text = "😀😀 Zoë saw Ada Lovelace there and wrote"
    start = len(text[: text.index("Ada")].encode(encoding)) // size
    span = Span(start, start + len("Ada Lovelace"))
    example = Example("x", text, (Triple(span, "p", span),))
    offsets = [(m.start(), m.end()) for m in re.finditer(r"\S+", text)]
    (loss,) = align(example, offsets, IDS).lost
    said = describe_loss(example, loss, offsets)
    assert said.endswith(f"(do its offsets count {units}, not characters?)")


def test_losses_keep_their_first_example() -> None:
    losses = Losses()
    for number in range(3):
        losses.add("cut", f"line {number}")
    losses.add("gone", "line 7")
    assert losses == {"cut": 3, "gone": 1}
    assert losses.first == {"cut": "line 0", "gone": "line 7"}
