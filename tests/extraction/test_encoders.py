"""Encoders by themselves: where words begin and end in every script, and what a folder lacks."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.extraction.encoders import SmallEncoder, SmallOptions
from lib.extraction.triples import Span

OPTIONS = SmallOptions(hidden_size=8, layers=1, attention_heads=2)

UNSPACED = {
    "Thai": ("อาดาเขียนหนังสือในกรุงเทพ", "กรุงเทพ"),
    "Lao": ("ອາດາຂຽນປຶ້ມໃນວຽງຈັນ", "ວຽງຈັນ"),
    "Khmer": ("អាដាសរសេរសៀវភៅនៅភ្នំពេញ", "ភ្នំពេញ"),
    "Burmese": ("အေဒါသည်ရန်ကုန်တွင်စာအုပ်ရေးခဲ့သည်", "ရန်ကုန်"),
    "Japanese": ("エイダは東京タワーで本を書いた", "東京タワー"),
    "Korean": ("에이다는 서울에서 책을 썼다", "서울"),
    "Chinese": ("艾达在北京写了一本书", "北京"),
}
"""A sentence and the name of a place in it, with no space around the name."""


def words_of(text, *, training=None):
    """Return the words that a small encoder makes of a text."""
    (tokens,) = SmallEncoder.create(training or [text], OPTIONS).tokenise([text])
    return [text[start:end] for start, end in tokens.offsets if start < end]


@pytest.mark.parametrize("language", UNSPACED)
def test_names_have_borders_where_words_are_not_set_off(language):
    text, name = UNSPACED[language]
    (tokens,) = SmallEncoder.create([text], OPTIONS).tokenise([text])
    start = text.index(name)
    span = Span(start, start + len(name))
    assert span.start in {a for a, b in tokens.offsets if a < b}
    assert span.end in {b for _, b in tokens.offsets}
    assert max(len(word) for word in words_of(text)) <= 4
    # What a reader sees as one letter is one word: none begins with a mark above or below it.
    assert not [w for w in words_of(text) if unicodedata.category(w[0]) == "Mn"]


def test_scripts_with_spaces_keep_their_words():
    for text in ("Ада написала книгу", "कमल ने किताब लिखी", "كتبت آدا كتابا", "Ada wrote 1843!"):
        assert words_of(text) == text.replace("!", " !").split()
    assert words_of("iPhoneを買う") == ["iPhone", "を", "買", "う"]


def test_cluster_vocabulary_is_kept_with_the_model(tmp_path):
    text = UNSPACED["Thai"][0]
    made = SmallEncoder.create([text, text], OPTIONS)
    made.save_files(tmp_path)
    again = SmallEncoder.load(tmp_path, made.describe())
    assert again.tokenise([text]) == made.tokenise([text])
    assert set(made.tokenise([text])[0].inputs["words"][1:]).isdisjoint({0, 1, 2})


@given(st.text(max_size=30))
def test_no_character_but_space_and_control_is_left_out(text):
    (tokens,) = SmallEncoder.create(["a"], OPTIONS).tokenise([text])
    covered = {at for start, end in tokens.offsets for at in range(start, end)}
    for at in set(range(len(text))) - covered:
        assert text[at].isspace() or unicodedata.category(text[at])[0] in "CZ", text[at]
