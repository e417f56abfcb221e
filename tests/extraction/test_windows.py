"""Windows of long texts: nothing is left out, and what stands near is seen together."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.extraction.alignment import trim_offsets
from lib.extraction.windows import windows
from tests.extraction.strategies import TEXTS
from tests.extraction.test_alignment import TOKENIZERS

WORDS = st.lists(
    st.sampled_from(["Ada", "wrote", "it", ".", "read.", "So!", '"No?"', "文。", "\n"]), max_size=80
).map(" ".join)


def words_of(text):
    return [m.span() for m in re.finditer(r"\S+", text)]


@settings(max_examples=300)
@given(st.one_of(WORDS, TEXTS), st.integers(1, 40), st.sampled_from(["words", *TOKENIZERS]))
def test_every_token_is_read_and_neighbours_are_read_together(text, most, kind):
    offsets = words_of(text)
    if kind != "words":
        offsets = trim_offsets(text, TOKENIZERS[kind].encode(text).offsets)
    found = windows(text, offsets, most)
    assert {token for first, last in found for token in range(first, last)} == set(
        range(len(offsets))
    )
    near = most // 2 + 1
    for token in range(len(offsets) - near + 1):
        assert any(first <= token and token + near <= last for first, last in found)
    assert all(last - first <= most for first, last in found)
    steps = [later - first for (first, _), (later, _) in pairwise(found)]
    assert all(step >= max(1, most // 8) for step in steps)
    assert len(found) <= 1 + len(offsets) / max(1, most // 8)
    if len(offsets) <= most:
        assert found == [(0, len(offsets))]
    else:
        assert len(found) > 1


def test_windows_are_of_sentences_where_these_are_found():
    sentences = [f"Ada {'really ' * (n % 5)}wrote {n} notes." for n in range(200)]
    text = " ".join(sentences)
    offsets = words_of(text)
    starts = {0} | {m.end() for m in re.finditer(r"\. ", text)}
    found = windows(text, offsets, 40)
    assert len(found) > 20
    for first, last in found:
        assert offsets[first][0] in starts
        assert text[offsets[last - 1][1] - 1] == "."


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("Ada wrote it all day. Bo read", "Ada wrote it all day."),
        ('Ada wrote "it all." Bo read it', 'Ada wrote "it all."'),
        ("艾达写了书。文章", "艾达写了书。"),
        ("Ada wrote it all day\nBo read it", "Ada wrote it all day"),
        ("Ada wrote v1.5 of it today", "Ada wrote v1.5 of it"),  # no end: as many words as fit
    ],
)
def test_where_a_sentence_ends(text, window):
    """The first window ends behind the sentence, although one or two tokens more would fit."""
    offsets = [m.span() for m in re.finditer(r"[A-Za-z]+|\S", text)]
    (_, last), *_ = windows(text, offsets, len(offsets) - 1)
    assert text[: offsets[last - 1][1]] == window


def test_no_character_is_cut_where_words_have_no_spaces():
    """Of the bytes of one character none begins a window without the others."""
    text = "中文字" * 50
    offsets = trim_offsets(text, TOKENIZERS["bytes"].encode(text).offsets)
    found = windows(text, offsets, 20)
    assert len(found) > 10
    assert all(first % 3 == last % 3 == 0 for first, last in found)


def test_a_window_holds_something():
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        windows("Ada", [(0, 3)], 0)
