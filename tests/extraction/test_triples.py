"""Spans, triples, overlap patterns and the record format."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.extraction.places import places, whole_words
from lib.extraction.triples import (
    BLANK,
    REPEATED,
    TRIMMED,
    Corpus,
    Example,
    Span,
    Triple,
    digest,
    example_from_json,
    example_to_json,
    is_nested,
    occurrences,
    overlap_patterns,
    trim_entities,
)
from tests.extraction.strategies import examples

A, B, C, D = Span(0, 3), Span(4, 7), Span(8, 11), Span(12, 15)


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (3, 3), (4, 2)])
def test_span_without_characters_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match=f"got start={start} and end={end}"):
        Span(start, end)


def test_span_relations() -> None:
    assert Span(1, 4).overlaps(Span(3, 9))
    assert not Span(1, 4).overlaps(Span(4, 9))
    assert not Span(4, 9).overlaps(Span(1, 4))
    assert Span(1, 4).inside(Span(0, 4))
    assert not Span(1, 4).inside(Span(1, 4))
    assert not Span(0, 5).inside(Span(1, 4))
    assert len(Span(2, 7)) == 5


def test_example_refuses_spans_outside_the_text_and_repeats() -> None:
    with pytest.raises(ValueError, match=r"example 'x': the object of relation 'r' ends at .*7"):
        Example("x", "Ada Bo", (Triple(A, "r", B),))
    with pytest.raises(ValueError, match=r"the subject of relation 'r' ends"):
        Example("x", "Ada Bo", (Triple(B, "r", A),))
    with pytest.raises(ValueError, match="given more than once"):
        Example("x", "Ada Bob", (Triple(A, "r", B), Triple(A, "r", B)))


@pytest.mark.parametrize(
    ("triples", "expected"),
    [
        ([], {"Normal"}),
        ([Triple(A, "r", B)], {"Normal"}),
        ([Triple(A, "r", B), Triple(C, "r", D)], {"Normal"}),
        ([Triple(A, "r", B), Triple(A, "q", B)], {"EPO"}),
        ([Triple(A, "r", B), Triple(B, "q", A)], {"EPO"}),
        ([Triple(A, "r", B), Triple(B, "r", C)], {"SEO"}),
        ([Triple(A, "r", B), Triple(A, "q", B), Triple(B, "q", C)], {"EPO", "SEO"}),
        ([Triple(A, "r", A)], {"Normal", "SOO"}),
        ([Triple(Span(0, 6), "r", B), Triple(C, "r", D)], {"Normal", "SOO"}),
        ([Triple(A, "r", A), Triple(A, "r", B)], {"SEO", "SOO"}),
        ([Triple(A, "r", B), Triple(A, "r", B)], {"Normal"}),
    ],
)
def test_overlap_patterns(triples: list[Triple], expected: set[str]) -> None:
    assert overlap_patterns(triples) == expected


def test_touching_spans_are_no_overlap_and_equal_spans_are_not_nested() -> None:
    assert overlap_patterns([Triple(Span(0, 4), "r", B)]) == {"Normal"}
    assert not is_nested([Triple(A, "r", A), Triple(A, "q", B)])
    assert is_nested([Triple(Span(0, 7), "r", C), Triple(D, "r", B)])
    assert not is_nested([Triple(Span(0, 6), "r", Span(4, 9))])  # crossing, not inside


@given(examples())
def test_records_keep_everything(example: Example) -> None:
    assert example_from_json(example_to_json(example)) == example


@given(st.text("ab", max_size=12), st.text("ab", min_size=1, max_size=3))
def test_occurrences_are_all_places(text: str, part: str) -> None:
    expected = [Span(i, i + len(part)) for i in range(len(text)) if text[i : i + len(part)] == part]
    assert occurrences(text, part) == expected


def record(subject: object, **more: object) -> dict[str, object]:
    triple = {"subject": subject, "relation": "saw", "object": "Bob"}
    return {"text": "Ada saw Bob, Ada left", "triples": [triple | more]}


@pytest.mark.parametrize(
    ("subject", "start"),
    [
        ({"text": "Ada", "start": 13}, 13),
        ({"start": 0, "end": 3}, 0),
        ({"text": "Ada", "start": 13, "end": 16}, 13),
        ({"text": "saw"}, 4),
        ("left", 17),
    ],
)
def test_entity_forms(subject: object, start: int) -> None:
    example = example_from_json(record(subject), default_id="7")
    assert example.id == "7"
    assert example.triples[0].subject.start == start


ADA = "Ada, not Adam, wrote Books; Bo read Books, and Ada wrote to Bo."


@pytest.mark.parametrize(
    ("subject", "object_", "first", "nearest"),
    [
        ("Bo", "Ada", [(28, 0)], [(60, 47)]),
        ("Ada", "Bo", [(0, 28)], [(47, 60)]),
        ("Books", "Ada", [(21, 0)], [(36, 47)]),
        ("Bo", "Adam", [(28, 9)], [(28, 9)]),
        ("Ada", "Ada", [(0, 0)], [(0, 47)]),  # two that share no character come before one
        ({"text": "Ada", "start": 47}, "Bo", [(47, 28)], [(47, 60)]),
    ],
)
def test_occurrences_are_chosen_as_asked(
    subject: object, object_: object, first: list[object], nearest: list[object]
) -> None:
    triple = {"subject": subject, "relation": "r", "object": object_}
    given = {"text": ADA, "triples": [triple]}
    for occurrence, expected in (("first", first), ("nearest", nearest)):
        example = example_from_json(given, occurrence=occurrence)
        assert [(t.subject.start, t.object.start) for t in example.triples] == expected
    with pytest.raises(ValueError, match=r"occurs 2 times in the text; .*--occurrence first or n"):
        example_from_json(given)


def test_whole_words_come_first_and_choices_are_counted() -> None:
    notes: Counter[str] = Counter()
    given = {
        "text": "Bo wrote Books",
        "triples": [{"subject": "Bo", "relation": "wrote", "object": "Books"}],
    }
    assert example_from_json(given, notes=notes).triples[0].subject == Span(0, 2)
    assert not +notes
    cut = {"text": "Bookshops", "triples": [{"subject": "Bo", "relation": "r", "object": "oks"}]}
    example_from_json(cut, notes=notes)
    assert +notes == {"entity that occurs only inside a word": 2}
    twice = {"text": "Bo met Bo", "triples": [{"subject": "Bo", "relation": "r", "object": "met"}]}
    example_from_json(twice, notes=notes, occurrence="first")
    assert notes["entity that occurs several times"] == 1


def test_an_entity_has_one_place_in_all_triples_if_the_first_is_taken() -> None:
    stated = [{"subject": "Ada", "relation": "r", "object": name} for name in ("Adam", "Bo")]
    given = {"text": ADA, "triples": stated}
    starts = {
        occurrence: [
            t.subject.start for t in example_from_json(given, occurrence=occurrence).triples
        ]
        for occurrence in ("first", "nearest")
    }
    assert starts == {"first": [0, 0], "nearest": [0, 47]}


def test_unknown_occurrence_is_named() -> None:
    with pytest.raises(ValueError, match=r"occurrence must be one of .* got 'last'"):
        example_from_json({"text": "a", "triples": []}, occurrence="last")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "words", "whole"),
    [
        ("Bo, Books", "Bo", [0]),
        ("Cafe\u0301 Cafe", "Cafe", [6]),  # the first is another letter
        ("ไทยไทย", "ไทย", [0, 3]),  # no word borders in Thai
        ("中国人在中国", "中国", [0, 4]),
        ("Books", "oo", []),
    ],
)
def test_whole_words(text: str, words: str, whole: list[int]) -> None:
    assert [start for start, _ in whole_words(text, places(text, words))] == whole


def test_repeated_triples_stand_once_and_extra_keys_are_ignored() -> None:
    given = record("left", confidence=0.5)
    given["triples"] = given["triples"] * 2
    given["id"] = 5
    example = example_from_json(given)
    assert len(example.triples) == 1
    assert example.id == "5"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "expected a JSON object, got a list"),
        ({"triples": []}, "the record has no 'text'"),
        ({"text": 3, "triples": []}, "the record: 'text' must be a string, got 3"),
        ({"text": "a", "id": None, "triples": []}, "'id' must be .* got nothing"),
        ({"text": "a", "id": True, "triples": []}, "'id' must be .* got True"),
        ({"text": "a"}, "the record has no 'triples'"),
        ({"text": "a", "triples": {}}, "'triples' must be a list, got an object"),
        ({"text": "a", "triples": ["b"]}, "triple 1 must be a JSON object, got a string"),
        (record("left", relation=""), "triple 1: 'relation' is empty"),
        (record("left", relation=None), "triple 1: 'relation' must be a string, got nothing"),
        ({"text": "a", "triples": [{}]}, "triple 1 has no 'relation'"),
        (record(None), "triple 1: subject must be a string or an object, got nothing"),
        (record(""), "triple 1: subject is empty"),
        (record("Eve"), "triple 1: subject 'Eve' does not occur in the text"),
        (record("Ada"), "triple 1: subject 'Ada' occurs 2 times in the text; say which"),
        (record({"text": "Ada"}), "occurs 2 times"),
        (record({"start": "0", "text": "Ada"}), "'start' must be a whole number, got a string"),
        (record({"start": 0, "end": 3.5}), "'end' must be a whole number, got 3.5"),
        (record({"start": False, "end": 3}), "'start' must be a whole number, got False"),
        (record({"text": 1, "start": 0}), "'text' must be a string, got 1"),
        (record({"end": 3}), "subject has no 'start'"),
        (record({}), "subject has no 'start'"),
        (record({"start": 3}), "needs 'text' or 'end' beside 'start'"),
        (record({"start": 3, "end": 3}), r"\[3, 3\) is not a span of the text, which has 21"),
        (record({"start": 20, "end": 22}), r"\[20, 22\) is not a span"),
        (record({"start": -3, "end": 2}), r"\[-3, 2\) is not a span"),
        (record({"start": 1, "text": "Ada"}), r"\[1, 4\) are 'da ', expected 'Ada'"),
    ],
)
def test_bad_records_are_named(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        example_from_json(given)


def test_unlabelled_records_need_no_triples() -> None:
    assert example_from_json({"text": "a"}, labelled=False) == Example("", "a")


def corpus(**more: object) -> Corpus:
    fields: dict[str, object] = {
        "name": "tiny", "licence": "", "relations": (), "train": (Example("1", "a"),), "dev": (),
        "test": (), "dropped": {}, "match": "exact", "sha256": "",
    }  # fmt: skip
    return Corpus(**(fields | more))


def test_splits_by_name() -> None:
    tiny = corpus(extra={"more": (Example("2", "b"),)})
    assert list(tiny.splits()) == ["train", "more"]
    assert tiny.split("more")[0].text == "b"
    with pytest.raises(ValueError, match="'tiny' has no split 'dev'; it has train, more"):
        tiny.split("dev")


def test_digest_sees_every_part() -> None:
    one = Example("1", "Ada saw Bob", (Triple(A, "saw", Span(8, 11)),))
    others = [
        {"train": [one, one]},
        {"dev": [one]},
        {"train": [Example("2", one.text, one.triples)]},
        {"train": [Example("1", one.text)]},
        {"train": [Example("1", one.text, (Triple(A, "met", Span(8, 11)),))]},
        {"train": [one], "dev": []},
    ]
    assert len({digest(splits) for splits in [{"train": [one]}, *others]}) == 7
    assert digest({"train": [one]}) == digest({"train": (one,)})


BLANKS = [
    " ",
    "\t",
    "\n",
    "\u00a0",
    "\u3000",
    "\u200b",
    "\u200d",
    "\ufeff",
    "\u00ad",
    "\u2060",
    "\u200f",
]


@pytest.mark.parametrize("blank", BLANKS)
def test_blanks_at_the_ends_of_entities_are_cut_and_counted(blank):
    text = f"{blank}Ada{blank}{blank} wrote Notes"
    here = text.index("Ada")
    ada, notes = Span(here, here + 3), Span(len(text) - 5, len(text))
    loose = Span(0, here + 5)
    example = Example(
        "1",
        text,
        (
            Triple(loose, "wrote", notes),
            Triple(ada, "wrote", notes),
            Triple(Span(0, 1), "wrote", notes),
            Triple(notes, "by", loose),
        ),
        "own.jsonl, line 1",
    )
    trimmed, dropped, noted = trim_entities(example)
    assert trimmed.triples == (Triple(ada, "wrote", notes), Triple(notes, "by", ada))
    assert dropped == {BLANK: 1, REPEATED: 1}
    assert noted == {TRIMMED: 1}
    assert trimmed.source == "own.jsonl, line 1"
    assert trim_entities(trimmed) == (trimmed, {}, {})


@given(examples())
def test_trimmed_entities_begin_and_end_with_something_to_see(example):
    trimmed, dropped, _ = trim_entities(example)
    assert len(trimmed.triples) + dropped.total() == len(example.triples)
    assert trimmed.text == example.text
    for triple in trimmed.triples:
        for span in (triple.subject, triple.object):
            words = span.of(example.text)
            assert words.strip() == words
            assert {words[0], words[-1]}.isdisjoint(BLANKS)


def test_words_with_stray_blanks_are_found_without_them():
    """As a tool exports "Ada " of "Ada."; where the blank is in the text, it is meant."""
    noted = Counter()
    triple = {"subject": "\u200bAda ", "relation": "wrote", "object": {"text": "Notes\n"}}
    record = {"text": "Notes are by Ada.", "triples": [triple]}
    example = example_from_json(record, notes=noted)
    assert example.strings() == (("Ada", "wrote", "Notes"),)
    assert noted[TRIMMED] == 2
    for subject in (" ", "Cy "):
        triple["subject"] = subject
        with pytest.raises(ValueError, match=r"occurs \d+ times|does not occur"):
            example_from_json(record)


def test_where_an_example_was_read_is_no_part_of_what_it_is():
    assert Example("1", "Ada", source="a") == Example("1", "Ada", source="b")
    assert digest({"train": [Example("1", "Ada", source="a")]}) == digest(
        {"train": [Example("1", "Ada")]}
    )


TYPED = {
    "id": "1",
    "text": "Ada wrote Notes",
    "triples": [
        {
            "subject": {"text": "Ada", "start": 0, "end": 3, "type": "Person"},
            "relation": "wrote",
            "object": {"text": "Notes", "start": 10, "end": 15, "type": "Work"},
        }
    ],
}


def test_types_are_kept_and_boundaries_are_compared_without_them() -> None:
    example = example_from_json(TYPED)
    assert example_to_json(example) == TYPED
    assert [t.subject.type for t in example.triples] == ["Person"]
    bare = example_from_json(
        {
            "id": "1",
            "text": "Ada wrote Notes",
            "triples": [{"subject": "Ada", "relation": "wrote", "object": "Notes"}],
        }
    )
    assert example == bare
    assert digest({"train": [example]}) == digest({"train": [bare]})
    assert "type" not in example_to_json(bare)["triples"][0]["subject"]


def test_a_type_stays_when_its_entity_is_trimmed_or_found_by_its_words() -> None:
    record = {
        "text": "Ada wrote Notes",
        "triples": [
            {
                "subject": {"start": 0, "end": 4, "type": "Person"},
                "relation": "wrote",
                "object": {"text": "Notes", "type": "Work"},
            }
        ],
    }
    (triple,) = trim_entities(example_from_json(record))[0].triples
    assert repr(triple.subject) == "Span(start=0, end=3, type='Person')"
    assert triple.object.type == "Work"


@pytest.mark.parametrize(
    ("type", "message"),
    [(7, "triple 1: subject: 'type' must be a string, got 7"), ("\ud800", "type holds")],
)
def test_a_type_must_be_a_string(type: object, message: str) -> None:
    subject = {"text": "Ada", "type": type}
    record = {
        "text": "Ada",
        "triples": [{"subject": subject, "relation": "is", "object": "Ada"}],
    }
    with pytest.raises(ValueError, match=message):
        example_from_json(record)
