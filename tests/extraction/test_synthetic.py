"""The generator: exact spans, shares as dialled, nothing shared between splits, stable bytes."""

import random
import re
import time
from itertools import chain

import pytest

from lib.extraction.synthetic import synthetic_corpus, templates
from lib.extraction.synthetic.names import GROUPS, Namer, group_of, pick
from lib.extraction.triples import PATTERNS, Corpus, Example, is_nested, overlap_patterns

SPLITS = ("train", "dev", "test", "test_templates")
NAME = re.compile(r"\b[A-Z]\w+")
KIND_WORDS = {
    *("Bank", "Foods", "Glass", "Group", "Lines", "Motors", "Press", "Works"),
    *("Academy", "College", "Institute", "University", "Letters", "Songs", "Book", "Road", "Night"),
    "The",
}


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return synthetic_corpus(3, train=600, dev=200, test=200)


def test_same_seed_same_bytes() -> None:
    """The literal holds on every machine and Python; a change of the generator must change it."""
    assert synthetic_corpus(0).sha256 == (
        "796e3e7bd56d8f90f0dd5255d5effeae49802234512d94a6e3e9c9965f1089d6"
    )


def test_seeds_and_sizes() -> None:
    small, other = synthetic_corpus(0, train=50, dev=10, test=10), synthetic_corpus(1, train=50)
    assert small.train != other.train
    longer = synthetic_corpus(0, train=60, dev=10, test=10)
    assert (longer.dev, longer.test, longer.extra) == (small.dev, small.test, small.extra)
    assert [len(small.split(name)) for name in SPLITS] == [50, 10, 10, 10]
    assert small.name == "synthetic:0"
    assert len(small.relations) >= 12
    assert not synthetic_corpus(0, dev=0, test=0, train=1).dev


def test_every_relation_is_taught_and_asked(corpus: Corpus) -> None:
    for name in SPLITS:
        seen = {t.relation for e in corpus.split(name) for t in e.triples}
        assert seen == set(corpus.relations)


def test_spans_are_whole_names(corpus: Corpus) -> None:
    for example in chain(*corpus.splits().values()):
        for span in {s for t in example.triples for s in (t.subject, t.object)}:
            name = span.of(example.text)
            assert re.fullmatch(r"[A-Z].*\w", name)
            around = example.text[max(span.start - 1, 0)], example.text[span.end]
            assert not around[1].isalnum()
            assert span.start == 0 or not around[0].isalnum()
        assert example.text.endswith(".")
        assert "{" not in example.text
        assert not re.search(r"\s[,.]|  |(?:^|\. )[a-z]", example.text)


def shares(examples: tuple[Example, ...]) -> dict[str, float]:
    count = {p: sum(p in overlap_patterns(e.triples) for e in examples) for p in PATTERNS}
    count["none"] = sum(not e.triples for e in examples)
    count["inside"] = sum(is_nested(e.triples) for e in examples)
    return {name: value / len(examples) for name, value in count.items()}


@pytest.mark.parametrize(
    "dials",
    [
        {},
        {"normal": 0.1, "epo": 0.3, "seo": 0.4, "soo": 0.1, "none": 0.1, "nested": 0.3},
        {"normal": 1.0, "epo": 0, "seo": 0, "soo": 0, "none": 0, "nested": 0},
        {"normal": 0, "epo": 0, "seo": 0.5, "soo": 0.5, "none": 0, "nested": 0.0},
    ],
)
def test_shares_are_the_dials(dials: dict[str, float]) -> None:
    default = {"normal": 0.4, "epo": 0.12, "seo": 0.3, "soo": 0.08, "none": 0.1, "nested": 0.08}
    expected = default | dials
    made = synthetic_corpus(5, train=400, dev=100, test=100, **dials)
    for name in SPLITS:
        found = shares(made.split(name))
        assert found["EPO"] == pytest.approx(expected["epo"], abs=0.011)
        assert found["SEO"] == pytest.approx(expected["seo"], abs=0.021)
        assert found["SOO"] == pytest.approx(expected["soo"], abs=0.011)
        assert found["none"] == pytest.approx(expected["none"], abs=0.011)
        rest = expected["normal"] + expected["soo"] + expected["none"]
        assert found["Normal"] == pytest.approx(rest, abs=0.031)
        inside = expected["nested"] + expected["soo"]
        assert found["inside"] == pytest.approx(inside, abs=0.021)


DENIED = re.compile(r"\b(not|no|never|nobody|nothing)\b", re.IGNORECASE)


def test_negations_and_distractors() -> None:
    dials = {"normal": 0.4, "epo": 0, "seo": 0, "soo": 0, "none": 0.6, "nested": 0}
    denied = synthetic_corpus(1, train=200, negations=0.75, distractors=0, **dials)
    assert sum(bool(DENIED.search(e.text)) for e in denied.train) == 150
    assert all(DENIED.search(e.text) for e in denied.train if not e.triples)
    remarked = synthetic_corpus(1, train=200, negations=0, distractors=0.75, **dials)
    assert not any(DENIED.search(e.text) for e in remarked.train)
    assert all(len(NAME.findall(e.text)) >= 2 for e in remarked.train if not e.triples)
    quiet = dials | {"normal": 1.0, "none": 0}
    none = synthetic_corpus(1, train=200, negations=0, distractors=0, **quiet)
    assert not any(DENIED.search(e.text) for e in none.train)


def test_rounding_never_leaves_a_sentence_empty() -> None:
    for size in range(12):
        made = synthetic_corpus(2, train=size, dev=0, test=0, negations=0.05, distractors=0.05)
        assert len(made.train) == size
        assert all(len(e.text) > 10 for e in made.train)


def words_of(examples: tuple[Example, ...]) -> set[str]:
    """Return the capitalised words inside sentences that are parts of names."""
    found = set()
    for example in examples:
        for match in NAME.finditer(example.text):
            word = match[0]
            if word.lower() not in FUNCTION_WORDS and word not in KIND_WORDS:
                found.add(word)
    return found


def all_templates() -> tuple[list[str], list[str]]:
    training, held_out = [], []
    for relation in templates.RELATIONS.values():
        for wordings in (relation.phrases, relation.clauses, relation.denials):
            training += wordings[0]
            held_out += wordings[1]
    singles = (
        templates.FRAMES_TWO, templates.FRAMES_CHAIN, templates.FRAMES_BOTH, templates.DOUBT,
        templates.JOINS,
    )  # fmt: skip
    tables = (templates.EPO, templates.SOO, templates.NESTED, templates.DISTRACTORS)
    for wordings in chain(singles, *(table.values() for table in tables)):
        training += wordings[0]
        held_out += wordings[1]
    return training, held_out


SLOT = re.compile(r"\{\w+\}")
FUNCTION_WORDS = {
    word for t in chain(*all_templates()) for word in re.findall(r"[a-z]+", SLOT.sub("", t))
} | {"who", "which"}


def test_no_name_is_in_two_splits(corpus: Corpus) -> None:
    train, dev, test = (words_of(corpus.split(name)) for name in ("train", "dev", "test"))
    held = words_of(corpus.split("test_templates"))
    assert len(train) > 1000
    assert len(test) > 300
    assert not train & dev
    assert not train & test
    assert not dev & test
    assert not train & held
    assert {group_of(word) for word in test | held} == {"test"}
    assert {group_of(word) for word in dev} == {"dev"}
    other_seed = words_of(synthetic_corpus(4, dev=0, test=0).train)
    assert not other_seed & (dev | test)


def test_held_out_templates_are_new_orders_of_known_words() -> None:
    training, held_out = all_templates()
    assert not set(training) & set(held_out)
    known = set(re.findall(r"[a-z]+", SLOT.sub("", " ".join(training)))) | {"who", "which"}
    assert set(re.findall(r"[a-z]+", SLOT.sub("", " ".join(held_out)))) <= known
    for template in training + held_out:
        slots = SLOT.findall(template)
        assert len(slots) == len(set(slots))


def telling(templates_: list[str], others: list[str]) -> set[str]:
    """Return the stretches of words that occur in the first list of templates only."""
    foreign = "\n".join(others)
    parts = {part.strip(" ,.") for t in templates_ for part in SLOT.split(t)}
    return {part for part in parts if len(part) > 5 and part not in foreign}


def test_held_out_wordings_stay_out(corpus: Corpus) -> None:
    training, held_out = all_templates()
    texts = {name: "\n".join(e.text for e in corpus.split(name)) for name in SPLITS}
    for part in telling(held_out, training):
        assert not any(part in texts[name] for name in ("train", "dev", "test"))
    for part in telling(training, held_out):
        assert part not in texts["test_templates"]
    used = sum(part in texts["test_templates"] for part in telling(held_out, training))
    assert used > 40
    assert sum(part in texts["train"] for part in telling(training, held_out)) > 60


def test_words_are_drawn_evenly_from_the_groups() -> None:
    rng = random.Random(0)
    words = ["".join(pick(rng, "abcdefgh") for _ in range(6)) for _ in range(2000)]
    for group in ("train", "dev", "test"):
        expected = GROUPS.count(group) / len(GROUPS)
        assert sum(group_of(w) == group for w in words) / 2000 == pytest.approx(expected, abs=0.03)
    namer = Namer(rng, "dev")
    assert namer.around("school", "Arlen") == ("University of Arlen", 14)
    name, start = namer.around("company", "Mara Tolin")
    assert name[start:].startswith("Mara Tolin ")


@pytest.mark.parametrize(
    ("dials", "message"),
    [
        ({"train": -1}, "train must be a number of sentences >= 0, got -1"),
        ({"epo": 1.2}, r"epo must be a share in \[0, 1\], got 1.2"),
        ({"nested": -0.1}, r"nested must be a share in \[0, 1\], got -0.1"),
        ({"normal": 0.5}, r"normal \+ epo \+ seo \+ soo \+ none must be 1, got 1.1"),
        ({"nested": 0.4}, "nested must be at most seo=0.3, of which it is a part, got 0.4"),
        ({"negations": 0.0, "distractors": 0.05}, "between none=0.1 and 1, got 0.05"),
        ({"negations": 0.6, "distractors": 0.6}, "between none=0.1 and 1, got 1.2"),
    ],
)
def test_impossible_dials_are_refused(dials: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic_corpus(0, **dials)


def test_it_is_quick() -> None:
    best = 1.0
    for _ in range(3):
        start = time.process_time()
        synthetic_corpus(0, train=1000, dev=0, test=0)
        best = min(best, time.process_time() - start)
    assert best < 0.6  # about 0.1 s on an idle core; room for a loaded one
