"""Scores against counts made by hand and against a second way to compute them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from lib.extraction.metrics import Counts, Match, evaluate_triples
from lib.extraction.triples import PATTERNS, Span, Triple, overlap_patterns

TEXT = "Tim Brooke met Ann and Tim"
TIM_BROOKE, TIM, BROOKE, ANN, TIM_AGAIN = (
    Span(0, 10), Span(0, 3), Span(4, 10), Span(15, 18), Span(23, 26),
)  # fmt: skip


def test_counts_by_hand() -> None:
    gold = [
        [Triple(TIM, "met", ANN), Triple(TIM, "met", TIM_AGAIN)],
        [Triple(TIM, "saw", ANN)],
        [],
        [Triple(TIM, "knows", ANN), Triple(TIM, "saw", ANN)],
    ]
    predicted = [
        [Triple(TIM, "met", ANN), Triple(TIM, "saw", ANN)],
        [],
        [Triple(TIM, "hates", ANN)],
        [Triple(TIM, "knows", ANN), Triple(TIM, "saw", ANN)],
    ]
    scores = evaluate_triples(gold, predicted)
    assert scores.micro == Counts(tp=3, predicted=5, gold=5)
    assert (scores.precision, scores.recall, scores.f1) == (0.6, 0.6, 0.6)
    assert scores.relations == {
        "hates": Counts(0, 1, 0),
        "knows": Counts(1, 1, 1),
        "met": Counts(1, 1, 2),
        "saw": Counts(1, 2, 2),
    }
    assert scores.macro_precision == pytest.approx((0 + 1 + 1 + 1 / 2) / 4)
    assert scores.macro_recall == pytest.approx((0 + 1 + 1 / 2 + 1 / 2) / 4)
    assert scores.macro_f1 == pytest.approx((0 + 1 + 2 / 3 + 1 / 2) / 4)
    assert scores.patterns == {
        "Normal": Counts(0, 0, 1),
        "EPO": Counts(2, 2, 2),
        "SEO": Counts(1, 2, 2),
        "SOO": Counts(),
    }
    assert scores.sizes["1"] == Counts(0, 0, 1)
    assert scores.sizes["2"] == Counts(3, 4, 4)
    assert scores.texts["all"] == 4
    assert (scores.texts["2"], scores.texts["EPO"], scores.texts["SOO"]) == (2, 1, 0)


def test_five_and_more_triples_share_a_group() -> None:
    many = [Triple(TIM, f"r{i}", ANN) for i in range(6)]
    scores = evaluate_triples([many, many[:5], many[:4]], [many, [], []])
    assert scores.sizes["5+"] == Counts(6, 6, 11)
    assert scores.sizes["4"] == Counts(0, 0, 4)
    assert scores.texts["5+"] == 2


def f1(gold: Triple, predicted: Triple, match: str) -> float:
    return evaluate_triples([[gold]], [[predicted]], texts=[TEXT], match=match).f1


def test_rules_of_equality() -> None:
    gold = Triple(TIM, "met", ANN)
    elsewhere = Triple(TIM_AGAIN, "met", ANN)
    assert [f1(gold, elsewhere, m) for m in ("exact", "text", "partial")] == [0, 1, 1]
    last_word, first_word = Triple(BROOKE, "met", ANN), Triple(TIM, "met", ANN)
    whole = Triple(TIM_BROOKE, "met", ANN)
    assert [f1(last_word, whole, m) for m in ("exact", "text", "partial")] == [0, 0, 1]
    assert f1(first_word, whole, "partial") == 0
    assert f1(gold, Triple(TIM, "saw", ANN), "partial") == 0
    assert f1(gold, Triple(ANN, "met", TIM), "text") == 0


def test_equal_words_count_once() -> None:
    gold = [[Triple(TIM, "met", ANN), Triple(TIM_AGAIN, "met", ANN)]]
    assert evaluate_triples(gold, gold).micro == Counts(2, 2, 2)
    assert evaluate_triples(gold, gold, texts=[TEXT], match="text").micro == Counts(1, 1, 1)
    assert evaluate_triples([gold[0]], [gold[0] * 2]).micro == Counts(2, 2, 2)


def test_a_span_of_white_space_stands_for_itself() -> None:
    blank = Triple(Span(10, 11), "met", ANN)
    assert f1(blank, blank, "partial") == 1
    assert f1(blank, Triple(TIM, "met", ANN), "partial") == 0


def test_nothing_gives_zero_with_counts() -> None:
    for gold, predicted in [([], []), ([[]], [[]])]:
        scores = evaluate_triples(gold, predicted)
        assert (scores.precision, scores.recall, scores.f1, scores.macro_f1) == (0, 0, 0, 0)
        assert scores.micro == Counts(0, 0, 0)
        assert set(scores.patterns) == set(PATTERNS)
    some = [Triple(TIM, "met", ANN)]
    assert evaluate_triples([some], [[]]).micro == Counts(0, 0, 1)
    scores = evaluate_triples([[]], [some])
    assert (scores.precision, scores.micro) == (0.0, Counts(0, 1, 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"predicted": [[], []]}, "expected 1 collections in predicted, got 2"),
        ({"match": "fuzzy"}, "match must be one of .*'exact', 'typed'.* got 'fuzzy'"),
        ({"symmetric": "met"}, "symmetric must be a collection of relations, got 'met'"),
        ({"match": "partial"}, "match='partial' compares words and needs texts, got None"),
        ({"match": "text", "texts": []}, "texts must hold 1 texts.* got 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_triples([[]], **({"predicted": [[]]} | arguments))


SPANS = st.sampled_from([TIM, BROOKE, ANN, TIM_AGAIN])
TRIPLES = st.builds(Triple, SPANS, st.sampled_from("pqr"), SPANS)
SETS = st.lists(st.tuples(st.sets(TRIPLES, max_size=6), st.sets(TRIPLES, max_size=6)), max_size=5)


@given(SETS)
def test_against_labels_of_all_candidates(texts: list[tuple[set[Triple], set[Triple]]]) -> None:
    """Another way to the same numbers: precision and recall of one yes/no label per candidate."""
    scores = evaluate_triples([g for g, _ in texts], [p for _, p in texts])
    candidates = [(i, t) for i, (g, p) in enumerate(texts) for t in sorted(g | p)]
    truth = [t in texts[i][0] for i, t in candidates]
    guess = [t in texts[i][1] for i, t in candidates]
    if candidates:
        rates = precision_recall_fscore_support(truth, guess, average="binary", zero_division=0.0)
        assert (scores.precision, scores.recall, scores.f1) == pytest.approx(rates[:3])
    for part in (scores.relations, scores.sizes):
        known = [c for name, c in part.items()]
        total = sum(known, Counts())
        assert total.tp == scores.micro.tp
        assert total.gold == scores.micro.gold
    for name in PATTERNS:
        count = sum(name in overlap_patterns(g) for g, _ in texts if g)
        assert scores.texts[name] == count


def test_json_and_table_hold_everything() -> None:
    scores = evaluate_triples([[Triple(TIM, "met", ANN)]], [[Triple(TIM, "met", ANN)]])
    stored = json.loads(json.dumps(scores.to_dict()))
    assert stored["f1"] == stored["macro_f1"] == 1.0
    assert stored["relations"]["met"] == {
        "precision": 1.0, "recall": 1.0, "f1": 1.0, "tp": 1, "predicted": 1, "gold": 1,
    }  # fmt: skip
    assert stored["texts"]["all"] == 1
    assert stored["match"] == "exact"
    lines = scores.table().splitlines()
    assert lines[0].split() == [
        "match:", "exact", "precision", "recall", "F1", "tp", "predicted", "gold",
    ]  # fmt: skip
    assert lines[1].split() == ["all", "(micro)", "1.0000", "1.0000", "1.0000", "1", "1", "1"]
    assert lines[2].split()[-3:] == ["1.0000"] * 3
    assert [line.split()[0] for line in lines[3:]] == [*PATTERNS, "1", "2", "3", "4", "5+", "met"]
    assert len({len(line) for line in lines if not line.startswith("mean")}) == 1


def test_rates_of_nothing_are_no_zeros_in_the_table() -> None:
    """A zero that was earned and one that nothing could change look different."""
    met, saw, ran = (Triple(TIM, name, ANN) for name in ("met", "saw", "ran"))
    rows = {
        line.split()[0]: line.split()[1:]
        for line in evaluate_triples([[met, ran]], [[saw, ran]]).table().splitlines()
    }
    assert rows["met"] == ["–", "0.0000", "0.0000", "0", "0", "1"]
    assert rows["saw"] == ["0.0000", "–", "–", "0", "1", "0"]
    assert rows["ran"] == ["1.0000", "1.0000", "1.0000", "1", "1", "1"]
    assert rows["SOO"] == ["–", "–", "–", "0", "0", "0"]


def test_typed_compares_types_and_exact_does_not() -> None:
    ann, tim = Span(15, 18, "Person"), Span(0, 3, "Person")
    gold = [[Triple(tim, "met", ann)], [Triple(tim, "saw", ann)]]
    predicted = [[Triple(tim, "met", ANN)], [Triple(Span(0, 3, "Person"), "saw", ann)]]
    assert evaluate_triples(gold, predicted).micro == Counts(2, 2, 2)
    assert evaluate_triples(gold, predicted, match="typed").micro == Counts(1, 2, 2)


@pytest.mark.parametrize("match", ["exact", "typed", "text", "partial"])
def test_a_symmetric_triple_counts_once(match: Match) -> None:
    gold = [[Triple(TIM, "met", ANN), Triple(ANN, "met", TIM), Triple(TIM, "saw", ANN)]]
    predicted = [[Triple(ANN, "met", TIM), Triple(ANN, "saw", TIM)]]
    scores = evaluate_triples(gold, predicted, texts=[TEXT], match=match, symmetric=["met"])
    # "met" is one triple on both sides; "saw" keeps its direction.
    assert scores.relations == {"met": Counts(1, 1, 1), "saw": Counts(0, 1, 1)}
