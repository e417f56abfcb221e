"""Chapter 9: every numbered equation against loops, counting, autograd or exact arithmetic."""

import functools
import itertools
import math

import mpmath as mp
import numpy as np
import pytest
import sympy as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.divergence import r_drop, zlpr_divergence
from lib.extraction.alignment import TokenTriple
from lib.extraction.metrics import Counts
from lib.extraction.triples import Example, Span, Triple
from lib.global_pointer import EfficientGlobalPointer, GlobalPointer, apply_rope
from lib.gplinker import GPLinker, decode_tables, table_positives
from lib.gplinker.decoding import decode_blocks
from lib.zlpr import zlpr_loss

# ---------------------------------------------------------------------------------------------
# Literal transcriptions: sets and loops, nothing shared with the library.


def spans_of_length(length):
    """Every (head, tail) with head <= tail, by enumeration."""
    return [(i, j) for i in range(length) for j in range(length) if i <= j]


def tables_of(triples):
    """Subjects, objects, head links and tail links of a set of quintuples."""
    subjects = {(sh, st_) for sh, st_, _, _, _ in triples}
    objects = {(oh, ot) for _, _, _, oh, ot in triples}
    heads = {(r, sh, oh) for sh, _, r, oh, _ in triples}
    tails = {(r, st_, ot) for _, st_, r, _, ot in triples}
    return subjects, objects, heads, tails


def decode(subjects, objects, heads, tails):
    """The intersection of the four conditions, over all relations that occur."""
    relations = {r for r, _, _ in heads | tails}
    return {
        (sh, st_, r, oh, ot)
        for (sh, st_) in subjects
        for (oh, ot) in objects
        for r in relations
        if (r, sh, oh) in heads and (r, st_, ot) in tails
    }


def zlpr(scores, positives):
    """ZLPR of one head: a dictionary of scores, a set of positive cells; plain floats."""
    negative = math.fsum(math.exp(v) for c, v in scores.items() if c not in positives)
    positive = math.fsum(math.exp(-scores[c]) for c in positives)
    return math.log1p(negative) + math.log1p(positive)


@st.composite
def triple_sets(draw, max_length=7, max_relations=3, max_size=7):
    """A few quintuples on a short text, so that shared heads and tails are frequent."""
    length = draw(st.integers(2, max_length))
    relations = draw(st.integers(1, max_relations))
    span = st.sampled_from(spans_of_length(length))
    quintuple = st.tuples(span, st.integers(0, relations - 1), span).map(
        lambda t: (*t[0], t[1], *t[2])
    )
    return frozenset(draw(st.lists(quintuple, min_size=0, max_size=max_size)))


LOSSY = frozenset({(0, 1, 0, 3, 3), (1, 1, 0, 3, 4)})  # "New Tarn supplies Oslo Bay"
LOSSY_DECODED = LOSSY | {(0, 1, 0, 3, 4), (1, 1, 0, 3, 3)}

seeds = st.integers(0, 2**32 - 1)
lengths = st.integers(1, 7)
relation_counts = st.integers(1, 4)


def normal(seed, *shape, scale=1.0):
    """Standard normal float64 numbers from a seed."""
    return (
        torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        * scale
    )


# ---------------------------------------------------------------------------------------------
# Counting: spans, quintuples, cells of the tables.


@pytest.mark.equation(
    "eq:gplinker-spans",
    kind="identity",
    source="Su 2022 (kexue 8888)",
    hypotheses="L >= 1 tokens; head and tail inclusive",
    right=lambda n: n * (n + 1) // 2,
    wrong={
        "spans of one token are forgotten": lambda n: n * (n - 1) // 2,
        "the lower triangle is counted too": lambda n: n * n,
    },
)
@given(st.integers(2, 40))
def test_number_of_spans(form, check, length):
    check.equal(form(length), len(spans_of_length(length)))


@pytest.mark.equation(
    "eq:gplinker-candidates",
    kind="identity",
    source="Su 2022 (kexue 8888)",
    hypotheses="any R >= 1, L >= 1; subject and object may be any two spans, equal ones included",
    right=lambda relations, n: relations * n**2 * (n + 1) ** 2 // 4,
    wrong={
        "the relation is left out": lambda relations, n: n**2 * (n + 1) ** 2 // 4,
        "half, as if the two spans were unordered": lambda relations, n: (
            relations * n**2 * (n + 1) ** 2 // 8
        ),
    },
)
@given(st.integers(2, 5), lengths)
def test_number_of_quintuples(form, check, relations, length):
    listed = sum(
        1
        for _ in itertools.product(
            spans_of_length(length), range(relations), spans_of_length(length)
        )
    )
    check.equal(form(relations, length), listed)


@pytest.mark.equation(
    "eq:gplinker-cells",
    kind="identity",
    source="Su 2022 (kexue 8888), count ours",
    hypotheses="span tables upper triangular, link tables full",
    right=lambda relations, n: n * (n + 1) + 2 * relations * n**2,
    wrong={
        "the link tables are taken as triangular": lambda relations, n: (
            (relations + 1) * n * (n + 1)
        ),
        "one link table per relation": lambda relations, n: n * (n + 1) + relations * n**2,
    },
)
@given(relation_counts, st.integers(2, 8))
def test_number_of_cells(form, check, relations, length):
    spans = 2 * len(spans_of_length(length))
    links = sum(2 for _ in itertools.product(range(relations), range(length), range(length)))
    check.equal(form(relations, length), spans + links)


# ---------------------------------------------------------------------------------------------
# The four tables and their intersection.


def library_tables(triples, length, relations):
    """The four sets, read from the library's lists of cells."""
    rows = [TokenTriple(*t) for t in triples]
    tables = table_positives([rows], length=length, relations=relations)

    def cells(row):
        return {(i, j) for i, j in row.tolist() if i >= 0}

    heads, tails = (
        {(r, *cell) for r, row in enumerate(table[0]) for cell in cells(row)}
        for table in (tables.head_links, tables.tail_links)
    )
    return cells(tables.entities[0, 0]), cells(tables.entities[0, 1]), heads, tails


def with_exchanged(a, b):
    """Tables of the triples with two of their five entries exchanged."""

    def form(triples, length, relations):
        order = [0, 1, 2, 3, 4]
        order[a], order[b] = order[b], order[a]
        return tables_of({tuple(t[i] for i in order) for t in triples})

    return form


@pytest.mark.equation(
    "eq:gplinker-tables",
    kind="definition",
    source="Su 2022 (kexue 8888; GPLinker code)",
    hypotheses="any finite set of triples; cells shared by several triples are entered once",
    right=library_tables,
    wrong={
        "head links join tails": with_exchanged(0, 1),
        "subject and object exchanged": lambda triples, length, relations: tables_of(
            {(oh, ot, r, sh, st_) for sh, st_, r, oh, ot in triples}
        ),
    },
)
@given(triple_sets())
def test_tables(form, check, triples):
    for gold in (triples, LOSSY):
        check.true(form(gold, 7, 3) == tables_of(gold), "the same four sets of cells")


def signed(chosen):
    """Scores that are +1 on the chosen cells and -1 elsewhere."""
    return 2 * chosen.double() - 1


def library_decode(subjects, objects, heads, tails):
    """The library's decoding of the given cells."""
    tables = [torch.zeros(shape, dtype=torch.bool) for shape in ((2, 7, 7), (3, 7, 7), (3, 7, 7))]
    for role, spans in enumerate((subjects, objects)):
        for cell in spans:
            tables[0][(role, *cell)] = True
    for table, links in zip(tables[1:], (heads, tails), strict=True):
        for cell in links:
            table[cell] = True
    return {
        (t.subject_head, t.subject_tail, t.relation, t.object_head, t.object_tail)
        for t in decode_tables(*map(signed, tables))
    }


@pytest.mark.equation(
    "eq:gplinker-decode",
    kind="definition",
    source="Su 2022 (GPLinker code)",
    hypotheses="any four sets of cells, also inconsistent ones and empty ones",
    right=library_decode,
    wrong={
        "the tail links are not asked": lambda s, o, h, t: decode(
            s, o, h, {(r, a[1], b[1]) for r in range(3) for a in s for b in o}
        ),
        "links of different relations are joined": lambda s, o, h, t: decode(
            s, o, h, {(r, *cell[1:]) for r in range(3) for cell in t}
        ),
    },
)
@given(triple_sets(), triple_sets(), triple_sets())
def test_decoding(form, check, first, second, third):
    subjects, objects, _, _ = tables_of(first | second)
    _, _, heads, _ = tables_of(first | third)
    tails = tables_of(second | third)[3]
    flat = frozenset({(0, 0, 0, 2, 2), (1, 1, 1, 3, 3), (0, 0, 1, 3, 3)})
    for tables in ((subjects, objects, heads, tails), tables_of(LOSSY), tables_of(flat)):
        check.true(form(*tables) == decode(*tables), "the same set of quintuples")
    crossed = (
        {(0, 0)},
        {(2, 2)},
        {(0, 0, 2)},
        {(1, 0, 2)},
    )  # heads by one relation, tails by another
    check.true(form(*crossed) == decode(*crossed) == set(), "no relation has both links")


# ---------------------------------------------------------------------------------------------
# From scores to triples: the printed sum, the four conditions, the targets.


def random_scores(seed, length, relations):
    """Four score tables; span scores below the diagonal are minus infinity."""
    upper = torch.ones(length, length, dtype=torch.bool).triu()
    span = normal(seed, 2, length, length).masked_fill(~upper, -math.inf)
    link = normal(seed + 1, 2, relations, length, length)
    return span[0], span[1], link[0], link[1]


def four_scores(tables, quintuple):
    """The four numbers that a quintuple reads from the tables."""
    subject, obj, head, tail = tables
    sh, st_, r, oh, ot = quintuple
    return [
        float(subject[sh, st_]),
        float(obj[oh, ot]),
        float(head[r, sh, oh]),
        float(tail[r, st_, ot]),
    ]


def every_quintuple(length, relations):
    for (sh, st_), r, (oh, ot) in itertools.product(
        spans_of_length(length), range(relations), spans_of_length(length)
    ):
        yield sh, st_, r, oh, ot


def sum_by_broadcasting(tables):
    """S[s_h, s_t, r, o_h, o_t] as one sum of four broadcast tables."""
    subject, obj, head, tail = tables
    return (
        subject[:, :, None, None, None]
        + obj[None, None, None, :, :]
        + head.permute(1, 0, 2)[:, None, :, :, None]
        + tail.permute(1, 0, 2)[None, :, :, None, :]
    )


def sum_with_transposed_links(tables):
    subject, obj, head, tail = tables
    return sum_by_broadcasting((subject, obj, head.mT, tail))


def sum_without_tails(tables):
    subject, obj, head, tail = tables
    return sum_by_broadcasting((subject, obj, head, torch.zeros_like(tail)))


@pytest.mark.equation(
    "eq:gplinker-sum",
    kind="definition",
    source="Su 2022 (kexue 8888)",
    hypotheses="a modelling assumption of the source; spans with head <= tail",
    right=sum_by_broadcasting,
    wrong={
        "the head link is read from object to subject": sum_with_transposed_links,
        "the tail link is left out": sum_without_tails,
    },
)
@given(seeds, st.integers(2, 4), st.integers(1, 2))
def test_printed_sum(form, check, seed, length, relations):
    tables = random_scores(seed, length, relations)
    whole = form(tables)
    for quintuple in every_quintuple(length, relations):
        check.equal(float(whole[quintuple]), sum(four_scores(tables, quintuple)))


def decode_scores(tables, combine=min):
    """All quintuples whose combined score is positive, by enumeration."""
    length, relations = tables[0].shape[0], tables[2].shape[0]
    return {q for q in every_quintuple(length, relations) if combine(four_scores(tables, q)) > 0}


@pytest.mark.differs(
    "gplinker-sum-not-decoded",
    source="Su 2022 (kexue 8888)",
    theirs="a triple is scored by the sum of four table entries and accepted when the sum is "
    "positive",
    ours="each of the four entries must be positive: the minimum decides, as in the source's own "
    "code, and a positive sum is not enough",
)
@pytest.mark.equation(
    "eq:gplinker-min",
    kind="identity",
    source="ours; the decoding of Su 2022 (GPLinker code), the sum of Su 2022 (kexue 8888)",
    hypotheses="any real scores; a cell with score exactly 0 is not positive",
    right=min,
    wrong={
        "the printed sum decides": sum,
        "three of four conditions are enough": lambda x: sorted(x)[1],
    },
)
@given(seeds, st.integers(2, 4), st.integers(1, 2))
def test_minimum_decides(form, check, seed, length, relations):
    tables = random_scores(seed, length, relations)
    positive = [
        {tuple(c) for c in (t > 0).nonzero().tolist()} for t in tables
    ]  # the four sets of positive cells
    got = decode_scores(tables, combine=form)
    check.true(got == decode(*positive), "thresholded tables decode to the same set")


@pytest.mark.equation(
    "eq:gplinker-sum-min",
    kind="inequality",
    source="ours",
    hypotheses="four real numbers; equality exactly when they are equal",
    right=lambda x: 4 * min(x),
    wrong={
        "the mean is taken for the minimum": lambda x: 4 * sorted(x)[1] + 1e-3,
        "the maximum is taken for the minimum": lambda x: 4 * max(x) + 1e-3,
    },
)
@given(st.lists(st.floats(-8, 8), min_size=4, max_size=4))
def test_sum_is_at_least_four_minima(form, check, x):
    check.at_most(form(x), math.fsum(x), slack=1e-12)


@pytest.mark.equation(
    "eq:gplinker-sum-min",
    kind="inequality",
    source="ours",
    right=lambda x: 4 * min(x),
    wrong={"a factor of three": lambda x: 3 * min(x)},
)
@given(st.floats(0.1, 8))
def test_sum_equals_four_minima_when_all_are_equal(form, check, x):
    check.equal(form([x] * 4), math.fsum([x] * 4))
    # Unequal numbers leave a gap, …
    check.true(form([x, x, x, x + 1]) + 0.5 < math.fsum([x, x, x, x + 1]), "strict")
    # … wide enough for a positive sum with a negative minimum: the printed rule accepts it.
    check.true(min(5, 5, -1, 5) < 0 < sum([5, 5, -1, 5]), "(5, 5, -1, 5)")


def targets_from_library(triples, length, relations):
    """0/1 targets of the four tables, from the library's lists of positive cells."""
    rows = [TokenTriple(*t) for t in triples]
    lists = table_positives([rows], length=length, relations=relations)
    dense = []
    for table in (lists.entities[0], lists.head_links[0], lists.tail_links[0]):
        y = torch.zeros(len(table), length, length)
        for row, cells in zip(y, table.tolist(), strict=True):
            for i, j in cells:
                if i >= 0:
                    row[i, j] = 1
        dense.append(y)
    return [dense[0][0], dense[0][1], dense[1], dense[2]]


def targets_from_negatives(triples, length, relations):
    """The literal reading: every non-gold quintuple pushes each of its four cells to 0."""
    y = targets_from_library(triples, length, relations)
    for q in every_quintuple(length, relations):
        if q not in triples:
            sh, st_, r, oh, ot = q
            y[0][sh, st_] = y[1][oh, ot] = y[2][r, sh, oh] = y[3][r, st_, ot] = 0
    return y


def targets_with_triangular_links(triples, length, relations):
    y = targets_from_library(triples, length, relations)
    return [y[0], y[1], y[2].triu(), y[3].triu()]


@pytest.mark.differs(
    "gplinker-negative-components",
    source="Su 2022 (kexue 8888)",
    theirs="for every quintuple that is not gold, each of the four component scores is to be "
    "negative",
    ours="a cell is negative when no gold triple uses it: quintuples share cells, so the literal "
    "demand contradicts the positive ones",
)
@pytest.mark.equation(
    "eq:gplinker-targets",
    kind="definition",
    source="Su 2022 (GPLinker code)",
    hypotheses="one target table per head; a cell used by several triples is one positive",
    right=targets_from_library,
    wrong={
        "every component of a wrong quintuple is negative": targets_from_negatives,
        "links above the diagonal only": targets_with_triangular_links,
    },
)
def test_targets(form, check):
    rng = np.random.default_rng(2)
    backwards = frozenset({(1, 1, 0, 0, 0)})  # the object stands before the subject
    for triples in [backwards, LOSSY] + [dense_set(rng, 4, 2, size) for size in range(6)]:
        length = 5 if triples == LOSSY else 4
        got = form(triples, length, 2)
        for i, j in itertools.product(range(length), repeat=2):
            check.equal(float(got[0][i, j]), float(any(t[:2] == (i, j) for t in triples)))
            check.equal(float(got[1][i, j]), float(any(t[3:] == (i, j) for t in triples)))
            for r in range(2):
                head = any((t[2], t[0], t[3]) == (r, i, j) for t in triples)
                tail = any((t[2], t[1], t[4]) == (r, i, j) for t in triples)
                check.equal(float(got[2][r, i, j]), float(head))
                check.equal(float(got[3][r, i, j]), float(tail))


# ---------------------------------------------------------------------------------------------
# When the tables give the triples back.


def has_witnesses(triples, candidate):
    """Two gold triples of the relation lend the links; the spans are gold spans."""
    sh, st_, r, oh, ot = candidate
    subjects, objects, _, _ = tables_of(triples)
    lends_heads = any((g[0], g[2], g[3]) == (sh, r, oh) for g in triples)
    lends_tails = any((g[1], g[2], g[4]) == (st_, r, ot) for g in triples)
    return (sh, st_) in subjects and (oh, ot) in objects and lends_heads and lends_tails


def has_one_witness(triples, candidate):
    """Both links from the same gold triple, which is then the candidate itself."""
    return candidate in triples


def has_witnesses_of_any_relation(triples, candidate):
    """The links may belong to another relation."""
    sh, st_, _, oh, ot = candidate
    return has_witnesses({(*g[:2], 0, *g[3:]) for g in triples}, (sh, st_, 0, oh, ot))


@pytest.mark.equation(
    "eq:gplinker-witness",
    kind="identity",
    source="ours",
    hypotheses="any finite set of triples; the two witnesses may be the same triple",
    right=has_witnesses,
    wrong={
        "one witness lends both links": has_one_witness,
        "the witnesses may be of other relations": has_witnesses_of_any_relation,
    },
)
def test_witnesses(form, check):
    rng = np.random.default_rng(5)
    for triples in [LOSSY] + [dense_set(rng, 3, 2, 5) for _ in range(20)]:
        decoded = decode(*tables_of(triples))
        for candidate in every_quintuple(5 if triples == LOSSY else 3, 2):
            check.true(form(triples, candidate) == (candidate in decoded), f"{candidate}")


def dense_set(rng, length, relations, size):
    """A random set of quintuples on a short text, from integers only."""
    spans = spans_of_length(length)
    out = set()
    while len(out) < size:
        s, o = (spans[rng.integers(len(spans))] for _ in range(2))
        out.add((*s, int(rng.integers(relations)), *o))
    return frozenset(out)


def nested_only(triples):
    """Decode that drops a span contained in another one: a wrong turn."""
    subjects, objects, heads, tails = tables_of(triples)

    def outer(spans):
        return {
            s for s in spans if not any(t != s and t[0] <= s[0] and s[1] <= t[1] for t in spans)
        }

    return decode(outer(subjects), outer(objects), heads, tails)


@pytest.mark.equation(
    "eq:gplinker-superset",
    kind="inequality",
    source="ours",
    hypotheses="any finite set of triples, the empty one included",
    right=lambda triples: decode(*tables_of(triples)),
    wrong={"nested spans are dropped first": nested_only},
)
@given(triple_sets())
def test_nothing_is_lost(form, check, triples):
    for gold in (triples, LOSSY):
        check.at_most(len(gold - form(gold)), 0)


@pytest.mark.equation(
    "eq:gplinker-superset",
    kind="inequality",
    source="ours",
    right=lambda triples: decode(*tables_of(triples)),
    wrong={"nested spans are dropped first": nested_only},
)
def test_one_triple_comes_back_alone(form, check):
    """The case of equality: one triple, and a flat set of them."""
    for triples in ({(0, 1, 0, 3, 3)}, {(0, 0, 0, 2, 2), (2, 2, 1, 0, 0)}, LOSSY_DECODED):
        check.true(form(frozenset(triples)) >= set(triples), "nothing is lost")
        check.equal(len(form(frozenset(triples))), len(triples))


def tables_after_decoding(triples):
    return tables_of(decode(*tables_of(triples)))


def tables_after_sum_decoding(triples):
    """Decode by three conditions of four, then build tables again."""
    subjects, objects, heads, tails = tables_of(triples)
    loose = {
        (sh, st_, r, oh, ot)
        for (sh, st_) in subjects
        for (oh, ot) in objects
        for r in {r for r, _, _ in heads}
        if (r, sh, oh) in heads or (r, st_, ot) in tails
    }
    return tables_of(loose)


@pytest.mark.equation(
    "eq:gplinker-closure",
    kind="identity",
    source="ours",
    hypotheses="any finite set of triples",
    right=tables_after_decoding,
    wrong={"one of the two links is enough": tables_after_sum_decoding},
)
@given(triple_sets())
def test_decoded_set_has_the_same_tables(form, check, triples):
    check.true(form(triples) == tables_of(triples), "same four tables")
    check.true(form(LOSSY) == tables_of(LOSSY), "same four tables, lossy set")
    once = decode(*tables_of(triples))
    check.true(decode(*form(once)) == once, "decoding twice changes nothing")


def injective(spans, end):
    """No two spans share this end (0 head, 1 tail)."""
    return len({s[end] for s in spans}) == len(spans)


def distinct_heads_or_tails(triples):
    subjects, objects, _, _ = tables_of(triples)
    return any(injective(subjects, e) and injective(objects, e) for e in (0, 1))


def mixed_ends(triples):
    subjects, objects, _, _ = tables_of(triples)
    return injective(subjects, 0) and injective(objects, 1)


def subjects_only(triples):
    subjects, _, _, _ = tables_of(triples)
    return injective(subjects, 0)


@pytest.mark.equation(
    "eq:gplinker-lossless",
    kind="identity",
    source="ours; the weaker case without nesting: Su 2022 (kexue 8888)",
    hypotheses="no two subjects share a head and no two objects share a head; or the same for "
    "tails. Sufficient, not necessary",
    right=distinct_heads_or_tails,
    wrong={
        "subject heads with object tails": mixed_ends,
        "subjects alone": subjects_only,
    },
)
def test_lossless_when_heads_or_tails_are_distinct(form, check):
    rng = np.random.default_rng(3)
    used = 0
    # Either end will do: heads that differ with tails that do not, and the reverse.
    check.true(form(frozenset({(0, 3, 0, 5, 6), (1, 3, 0, 4, 6)})), "distinct heads")
    check.true(form(frozenset({(0, 2, 0, 4, 5), (0, 3, 0, 4, 6)})), "distinct tails")
    sets = [LOSSY] + [dense_set(rng, 4, 1 + k % 2, 2 + k % 4) for k in range(1500)]
    for triples in sets:
        if form(triples):
            used += 1
            check.true(decode(*tables_of(triples)) == set(triples), f"lossless: {sorted(triples)}")
    check.at_most(20, used)  # the hypothesis is met often enough to mean something


def head_links_suffice(triples):
    """Decode without the tail links."""
    subjects, objects, heads, _ = tables_of(triples)
    return {
        (*s, r, *o)
        for r, sh, oh in heads
        for s in subjects
        for o in objects
        if s[0] == sh and o[0] == oh
    }


def tail_links_suffice(triples):
    subjects, objects, _, tails = tables_of(triples)
    return {
        (*s, r, *o)
        for r, st_, ot in tails
        for s in subjects
        for o in objects
        if s[1] == st_ and o[1] == ot
    }


@pytest.mark.equation(
    "eq:gplinker-lossless",
    kind="identity",
    source="ours",
    right=head_links_suffice,
    wrong={"the tail links alone": tail_links_suffice},
)
def test_head_links_suffice_when_heads_are_distinct(form, check):
    nested = frozenset({(0, 2, 0, 4, 5), (1, 2, 0, 5, 5), (2, 2, 1, 4, 5)})  # nested, one tail
    check.true(form(nested) == set(nested), "distinct heads, shared tails")
    rng = np.random.default_rng(4)
    for _ in range(600):
        triples = dense_set(rng, 4, 2, 3)
        subjects, objects, _, _ = tables_of(triples)
        if injective(subjects, 0) and injective(objects, 0):
            check.true(form(triples) == set(triples), "head links alone")


@pytest.mark.equation(
    "eq:gplinker-counterexample",
    kind="identity",
    source="ours",
    hypotheses="two triples of one relation; the subjects share a tail, the objects share a head",
    right=LOSSY_DECODED,
    wrong={
        "the encoding is taken to be lossless": LOSSY,
        "only one spurious triple": LOSSY | {(0, 1, 0, 3, 4)},
    },
)
def test_counterexample(form, check):
    check.true(decode(*tables_of(LOSSY)) == set(form), "decoded set")
    # Smallest possible: a single triple always comes back alone.
    for q in every_quintuple(4, 2):
        check.true(decode(*tables_of({q})) == {q}, "one triple")


def spurious_bound(triples):
    _, _, heads, tails = tables_of(triples)
    return sum(
        sum(h[0] == r for h in heads) * sum(t[0] == r for t in tails)
        for r in {t[2] for t in triples}
    )


def star_set(k, relation=0):
    """k subjects with one tail, k objects with one head, joined in pairs."""
    return frozenset((i, k, relation, k + 1, k + 1 + i) for i in range(k))


@pytest.mark.equation(
    "eq:gplinker-spurious",
    kind="inequality",
    source="ours",
    hypotheses="any finite set of triples; equality for k nested subjects with one tail joined "
    "one to one with k nested objects with one head",
    right=spurious_bound,
    wrong={
        "the number of triples": len,
        "head links only": lambda triples: len(tables_of(triples)[2]),
    },
)
def test_spurious_bound(form, check):
    rng = np.random.default_rng(6)
    for k in range(400):
        triples = dense_set(rng, 4, 1 + k % 3, 3 + k % 5)
        check.at_most(len(decode(*tables_of(triples))), form(triples))
    for k in range(1, 7):
        triples = star_set(k)
        check.at_most(len(decode(*tables_of(triples))), form(triples))


@pytest.mark.equation(
    "eq:gplinker-spurious",
    kind="inequality",
    source="ours",
    right=spurious_bound,
    wrong={"twice the number of triples": lambda triples: 2 * len(triples)},
)
@given(st.integers(1, 9))
def test_spurious_bound_is_attained(form, check, k):
    triples = star_set(k)
    check.equal(len(decode(*tables_of(triples))), form(triples))
    check.equal(k * k, form(triples))
    twice = triples | star_set(k, relation=1)
    check.equal(len(decode(*tables_of(twice))), form(twice))


def all_pair_tables(triples):
    """For each of the six pairs of coordinates, the set of value pairs that occur."""
    return {
        (a, b): {(t[a], t[b]) for t in triples} for a, b in itertools.combinations((0, 1, 3, 4), 2)
    }


def parity_set(parity):
    """Quintuples of one relation whose four binary choices have this parity (None: all)."""
    return {
        (0 + a, 2 + b, 0, 4 + c, 6 + d)
        for a, b, c, d in itertools.product((0, 1), repeat=4)
        if parity is None or (a + b + c + d) % 2 == parity
    }


@pytest.mark.equation(
    "eq:gplinker-parity",
    kind="identity",
    source="ours",
    hypotheses="one relation, spans with heads in {0, 1} and {4, 5}, tails in {2, 3} and {6, 7}",
    right=lambda: (parity_set(0), parity_set(1)),
    wrong={
        "one triple fewer": lambda: (set(sorted(parity_set(0))[1:4]), parity_set(1)),
        "fixed subject": lambda: ({t for t in parity_set(0) if t[0] == 0}, parity_set(1)),
    },
)
def test_no_pair_tables_see_parity(form, check):
    even, odd = form()
    whole = parity_set(None)
    for triples in (even, odd):
        for pair, values in all_pair_tables(whole).items():
            check.true(all_pair_tables(triples)[pair] == values, f"pair table {pair}")
        check.true(len(decode(*tables_of(triples))) == 16, "four tables decode all sixteen")
    check.true(len(even) == len(odd) == 8 and even | odd == whole, "two halves of 16")


def f1_ceiling(gold, decoded):
    return 2 * gold / (gold + decoded)


@pytest.mark.equation(
    "eq:gplinker-ceiling",
    kind="identity",
    source="ours",
    hypotheses="perfect tables, at least one gold triple",
    right=f1_ceiling,
    wrong={
        "the precision": lambda gold, decoded: gold / decoded,
        "the mean of precision and recall": lambda gold, decoded: (gold / decoded + 1) / 2,
    },
)
def test_ceiling_of_f1(form, check):
    rng = np.random.default_rng(8)
    for triples in [LOSSY] + [dense_set(rng, 4, 1, 6) for _ in range(100)]:
        decoded = decode(*tables_of(triples))
        hit = len(decoded & triples)
        precision, recall = hit / len(decoded), hit / len(triples)
        check.equal(recall, 1.0)
        check.equal(form(len(triples), len(decoded)), 2 * precision * recall / (precision + recall))


@pytest.mark.equation(
    "eq:gplinker-f1",
    kind="identity",
    source="Su 2020 (kexue 7161)",
    hypotheses="X hits among Y predicted and Z gold triples, Y + Z > 0; F1 is 0 when X = 0",
    right=lambda x, y, z: Counts(tp=x, predicted=y, gold=z).f1,
    wrong={
        "the union is forgotten in the denominator": lambda x, y, z: x / (y + z - x),
        "the arithmetic mean": lambda x, y, z: (x / y + x / z) / 2 if y * z else 0.0,
    },
)
@given(st.sets(st.sampled_from("abcdefgh")), st.sets(st.sampled_from("abcdefgh"), min_size=1))
def test_f1_from_counts(form, check, predicted, gold):
    for said, true in ((predicted, gold), ({"a"}, {"a", "b"})):
        x, y, z = len(said & true), len(said), len(true)
        precision = x / y if y else 0.0
        recall = x / z
        harmonic = 2 * precision * recall / (precision + recall) if x else 0.0
        check.equal(form(x, y, z), harmonic)


# ---------------------------------------------------------------------------------------------
# The pointer: rotation, relative positions, the efficient form, parameters.


@functools.cache
def rotation_matrix(position, size, base=10000.0, sign=1.0):
    """Block-diagonal rotation, written out entry by entry."""
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for m in range(size // 2):
        angle = sign * position * base ** (-2 * m / size)
        matrix[2 * m, 2 * m] = matrix[2 * m + 1, 2 * m + 1] = math.cos(angle)
        matrix[2 * m, 2 * m + 1] = -math.sin(angle)
        matrix[2 * m + 1, 2 * m] = math.sin(angle)
    return matrix


def rotate_back(x):
    return torch.stack(
        [rotation_matrix(i, x.shape[-1], sign=-1.0) @ row for i, row in enumerate(x)]
    )


def rotate_with_one_frequency(x):
    return torch.stack([rotation_matrix(i, x.shape[-1], base=1.0) @ row for i, row in enumerate(x)])


@pytest.mark.equation(
    "eq:gplinker-rotation",
    kind="definition",
    source="Su 2021 (kexue 8265); Su et al. 2024, section 3.2",
    hypotheses="d even; positions from 0; planes of channels (2m, 2m+1)",
    right=apply_rope,
    wrong={
        "the rotation runs backwards": rotate_back,
        "all planes turn at the same speed": rotate_with_one_frequency,
    },
)
@given(seeds, st.integers(2, 6), st.integers(2, 4))
def test_rotation(form, check, seed, length, planes):
    x = normal(seed, length, 2 * planes)
    literal = torch.stack([rotation_matrix(i, 2 * planes) @ x[i] for i in range(length)])
    check.equal(form(x), literal)


def relative(query, key, i, j):
    products = torch.outer(query, key)
    return (rotation_matrix(j - i, len(products)) * products).sum()


@pytest.mark.equation(
    "eq:gplinker-rope",
    kind="identity",
    source="Su 2021 (kexue 8265)",
    hypotheses="any positions, d even",
    right=relative,
    wrong={
        "the sign of the distance": lambda q, k, i, j: relative(q, k, j, i),
        "the sum of the positions": lambda q, k, i, j: relative(q, k, -i, j),
    },
)
@given(seeds, st.integers(1, 40), st.integers(0, 40), st.integers(1, 4))
def test_rope_is_relative(form, check, seed, i, distance, planes):
    query, key = normal(seed, 2, 2 * planes)
    j = i + distance + 1
    rotated_query, rotated_key = (
        rotation_matrix(p, 2 * planes) @ x for p, x in ((i, query), (j, key))
    )
    check.equal(form(query, key, i, j), rotated_query @ rotated_key)
    check.equal(rotated_query.norm(), query.norm())


def complex_form(query, key, i, j, conjugate=True):
    theta = 10000.0 ** (-torch.arange(0, len(query), 2, dtype=torch.float64) / len(query))
    q, k = (torch.complex(x[0::2].contiguous(), x[1::2].contiguous()) for x in (query, key))
    turn = torch.polar(torch.ones_like(theta), (i - j) * theta)
    return (q * (k.conj() if conjugate else k) * turn).sum().real


@pytest.mark.equation(
    "eq:gplinker-rope-complex",
    kind="identity",
    source="Su 2021 (kexue 8265)",
    hypotheses="channels 2m and 2m+1 as real and imaginary part",
    right=complex_form,
    wrong={
        "the conjugate is forgotten": lambda q, k, i, j: complex_form(q, k, i, j, conjugate=False),
        "the sign of the distance": lambda q, k, i, j: complex_form(q, k, j, i),
    },
)
@given(seeds, st.integers(0, 40), st.integers(1, 40), st.integers(1, 4))
def test_rope_in_complex_numbers(form, check, seed, i, distance, planes):
    query, key = normal(seed, 2, 2 * planes)
    check.equal(form(query, key, i, i + distance), relative(query, key, i, i + distance))


def cosines(c, distance, theta, phase_sign=-1.0):
    return (c.abs() * torch.cos(distance * theta + phase_sign * c.angle())).sum()


@pytest.mark.equation(
    "eq:gplinker-length-prior",
    kind="identity",
    source="ours",
    hypotheses="states equal to 0: only the two bias vectors remain",
    right=cosines,
    wrong={
        "the sign of the phase": lambda c, x, theta: cosines(c, x, theta, phase_sign=1.0),
        "no phase": lambda c, x, theta: cosines(c, x, theta, phase_sign=0.0),
    },
)
@settings(max_examples=10)
@given(seeds, st.integers(1, 4))
def test_length_prior(form, check, seed, planes):
    torch.manual_seed(seed % 2**31)
    pointer = GlobalPointer(3, 1, 2 * planes, causal=False).double()
    scores = pointer(torch.zeros(1, 4, 3, dtype=torch.float64))[0, 0].detach()
    bias = pointer.projection.bias.detach().view(2, planes, 2)
    q, k = torch.view_as_complex(bias.contiguous())
    theta = 10000.0 ** (-torch.arange(0, planes, dtype=torch.float64) / planes)
    for i, j in itertools.product(range(4), repeat=2):
        prior = form(q * k.conj(), j - i, theta) / math.sqrt(2 * planes)
        check.equal(prior, scores[i, j])


def pointer_by_loops(pointer, hidden, rope=True, scale=True):
    """Scores of a standard pointer, one cell at a time."""
    length, size, heads = hidden.shape[0], pointer.head_size, pointer.heads
    weight, bias = pointer.projection.weight, pointer.projection.bias
    out = torch.full((heads, length, length), -math.inf, dtype=torch.float64)
    for a in range(heads):
        vectors = {}
        for i, part in itertools.product(range(length), (0, 1)):  # 0 query, 1 key
            rows = slice((2 * a + part) * size, (2 * a + part + 1) * size)
            vector = weight[rows] @ hidden[i] + bias[rows]
            vectors[i, part] = rotation_matrix(i, size) @ vector if rope else vector
        for i, j in itertools.product(range(length), repeat=2):
            if i <= j or not pointer.causal:
                out[a, i, j] = vectors[i, 0] @ vectors[j, 1] / (math.sqrt(size) if scale else 1)
                out[a, i, j] += pointer.bias[a]
    return out


@pytest.mark.equation(
    "eq:gplinker-pointer",
    kind="definition",
    source="Su 2021 (kexue 8373); Su et al. 2022 (GlobalPointer); the scale: bert4keras",
    hypotheses="span heads: i <= j only, with rotation; link heads: all pairs, no rotation",
    right=lambda pointer, hidden: pointer(hidden[None])[0],
    wrong={
        "the scale is missing": lambda pointer, hidden: pointer_by_loops(
            pointer, hidden, rope=pointer.rope, scale=False
        ),
        "rotation on and off are exchanged": lambda pointer, hidden: pointer_by_loops(
            pointer, hidden, rope=not pointer.rope
        ),
    },
)
@settings(max_examples=15)
@given(seeds, st.integers(2, 4), st.integers(1, 3), st.booleans())
def test_pointer(form, check, seed, length, heads, spans):
    torch.manual_seed(seed % 2**31)
    pointer = GlobalPointer(3, heads, 4, causal=spans, rope=spans, bias_start=-1.5).double()
    hidden = normal(seed, length, 3)
    with torch.no_grad():
        check.equal(form(pointer, hidden), pointer_by_loops(pointer, hidden, rope=spans))


def efficient_by_loops(pointer, hidden, rotate_heads=False, halve=True):
    """Scores of an efficient pointer, one cell at a time."""
    length, size, heads = hidden.shape[0], pointer.head_size, pointer.heads
    both = hidden @ pointer.projection.weight.T + pointer.projection.bias  # [q; k], not rotated
    query, key = (
        [rotation_matrix(i, size) @ row for i, row in enumerate(part)]
        for part in (both[:, :size], both[:, size:])
    )
    weight, bias = pointer.head_scores.weight, pointer.head_scores.bias
    half = 0.5 if halve else 1.0
    out = torch.full((heads, length, length), -math.inf, dtype=torch.float64)
    for i, j in itertools.product(range(length), repeat=2):
        if i > j and pointer.causal:
            continue
        x, y = both[i], both[j]
        if rotate_heads:
            x, y = (
                torch.block_diag(rotation_matrix(p, size), rotation_matrix(p, size)) @ z
                for p, z in ((i, x), (j, y))
            )
        for a in range(heads):
            start = half * (weight[a] @ x + bias[a])
            end = half * (weight[heads + a] @ y + bias[heads + a])
            out[a, i, j] = query[i] @ key[j] / math.sqrt(size) + start + end
    return out


@pytest.mark.equation(
    "eq:gplinker-efficient",
    kind="definition",
    source="Su 2022 (kexue 8877); halves and scale: bert4keras",
    hypotheses="the rotation enters the shared part A only",
    right=lambda pointer, hidden: pointer(hidden[None])[0],
    wrong={
        "start and end scores are rotated too": lambda pointer, hidden: efficient_by_loops(
            pointer, hidden, rotate_heads=True
        ),
        "start and end scores are not halved": lambda pointer, hidden: efficient_by_loops(
            pointer, hidden, halve=False
        ),
    },
)
@settings(max_examples=15)
@given(seeds, st.integers(2, 4), st.integers(1, 3), st.booleans())
def test_efficient_pointer(form, check, seed, length, heads, causal):
    torch.manual_seed(seed % 2**31)
    pointer = EfficientGlobalPointer(3, heads, 4, causal=causal).double()
    hidden = normal(seed, length, 3)
    with torch.no_grad():
        check.equal(form(pointer, hidden), efficient_by_loops(pointer, hidden))


def mixed_difference(table, i, k, j, m):
    return table[i, j] + table[k, m] - table[i, m] - table[k, j]


@pytest.mark.equation(
    "eq:gplinker-mixed",
    kind="identity",
    source="ours",
    hypotheses="any two rows and two columns; the same value for every head",
    right=lambda parts, a, cells: mixed_difference(parts[0], *cells),
    wrong={
        "the head's own scores are added": lambda parts, a, cells: (
            mixed_difference(parts[0], *cells) + parts[1][a, cells[0]]
        ),
        "one sign is wrong": lambda parts, a, cells: (
            mixed_difference(parts[0], *cells) + 2 * parts[0][cells[1], cells[2]]
        ),
    },
)
@given(seeds, st.integers(1, 4))
def test_mixed_difference_is_shared(form, check, seed, heads):
    torch.manual_seed(seed % 2**31)
    pointer = EfficientGlobalPointer(3, heads, 4, causal=False, rope=False).double()
    with torch.no_grad():
        hidden = normal(seed, 1, 6, 3)
        scores, parts = pointer(hidden)[0], [p[0] for p in pointer.parts(hidden)]
    for a in range(heads):
        for cells in ((0, 1, 2, 3), (5, 2, 0, 4), (1, 3, 1, 3)):
            check.equal(form(parts, a, cells), mixed_difference(scores[a], *cells))


def crossed_loss(pair, start, end):
    """ZLPR of two heads on a 2 x 2 table: one wants the diagonal, the other the rest."""
    scores = pair[None] + start[:, :, None] + end[:, None, :]
    diagonal = torch.eye(2, dtype=torch.bool)
    return zlpr_loss(
        scores.flatten(1), torch.stack([diagonal, ~diagonal]).flatten(1), reduction="sum"
    )


@pytest.mark.equation(
    "eq:gplinker-crossed",
    kind="inequality",
    source="ours",
    hypotheses="two heads of efficient form on the same 2 x 2 cells, each with the positives "
    "that the other has as negatives; equality when all eight scores are 0",
    right=lambda: 4 * math.log(3),
    wrong={
        "one head's share for both": lambda: 2 * math.log(3) * 4,
        "log 4 for log 3": lambda: 4 * math.log(4),
    },
)
@given(seeds, st.floats(0, 6))
def test_crossed_links_cost(form, check, seed, scale):
    pair, start, end = (normal(seed + n, 2, 2, scale=scale) for n in range(3))
    check.at_most(form(), crossed_loss(pair, start, end).item(), slack=1e-12)
    check.equal(crossed_loss(pair * 0, start * 0, end * 0).item(), form())


@pytest.mark.equation(
    "eq:gplinker-crossed",
    kind="inequality",
    source="ours",
    right=lambda: 4 * math.log(3),
    wrong={"half of it": lambda: 2 * math.log(3)},
)
def test_crossed_links_bound_is_tight(form, check):
    """Descend from a random start: the loss comes down to the bound and stops there."""
    parts = [normal(n, 2, 2).requires_grad_() for n in range(3)]
    optimiser = torch.optim.LBFGS(parts, max_iter=200, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimiser.zero_grad()
        loss = crossed_loss(*parts)
        loss.backward()
        return loss

    optimiser.step(closure)
    check.equal(crossed_loss(*parts).item(), form(), tol=1e-9)
    free = torch.tensor([[[9.0, -9], [-9, 9]], [[-9, 9], [9, -9]]], dtype=torch.float64)
    diagonal = torch.eye(2, dtype=torch.bool)
    targets = torch.stack([diagonal, ~diagonal]).flatten(1)
    # A table of its own for each head has no such floor.
    check.at_most(zlpr_loss(free.flatten(1), targets, reduction="sum").item(), 0.01)


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.equation(
    "eq:gplinker-params",
    kind="identity",
    source="Su 2022 (kexue 8888), biases counted by us",
    hypotheses="biases of queries and keys counted, no per-head constant",
    right=lambda D, d, R: 2 * d * (D + 1) * (2 + 2 * R),
    wrong={
        "the biases are left out": lambda D, d, R: 2 * d * D * (2 + 2 * R),
        "one link head per relation": lambda D, d, R: 2 * d * (D + 1) * (2 + R),
    },
)
@given(st.integers(1, 9), st.integers(1, 4), relation_counts)
def test_parameters_of_standard_heads(form, check, hidden, half, relations):
    size = 2 * half
    modules = [GlobalPointer(hidden, heads, size) for heads in (2, relations, relations)]
    check.equal(form(hidden, size, relations), sum(count(m) for m in modules))


@pytest.mark.equation(
    "eq:gplinker-params-efficient",
    kind="identity",
    source="Su 2022 (kexue 8877, 8888), biases counted by us",
    hypotheses="three modules: spans, head links, tail links",
    right=lambda D, d, R: 6 * d * (D + 1) + 2 * (2 * d + 1) * (2 + 2 * R),
    wrong={
        "one shared pair table for all": lambda D, d, R: (
            2 * d * (D + 1) + 2 * (2 * d + 1) * (2 + 2 * R)
        ),
        "heads read the query only": lambda D, d, R: 6 * d * (D + 1) + 2 * (d + 1) * (2 + 2 * R),
    },
)
@given(st.integers(1, 9), st.integers(1, 4), relation_counts)
def test_parameters_of_efficient_heads(form, check, hidden, half, relations):
    size = 2 * half
    modules = [EfficientGlobalPointer(hidden, heads, size) for heads in (2, relations, relations)]
    check.equal(form(hidden, size, relations), sum(count(m) for m in modules))


# ---------------------------------------------------------------------------------------------
# The loss: start values, filler cells, flat indices, label storage.


def random_head(seed, size, positives):
    """Scores of one head as a dictionary and a random set of positive cells."""
    rng = np.random.default_rng(seed)
    scores = {c: float(v) for c, v in enumerate(rng.normal(0, 3, size))}
    return scores, set(rng.permutation(size)[:positives].tolist())


TEXTS = ("Mira Voss founded Tarn Labs", "Oslo trains Mira Voss")
EXAMPLES = (
    Example(
        "0",
        TEXTS[0],
        (
            Triple(Span(0, 9), "founded", Span(18, 27)),
            Triple(Span(18, 27), "founder", Span(0, 9)),
        ),
    ),
    Example("1", TEXTS[1], ()),
)


def loss_by_loops(
    model, per_text="sum", batch="mean", tables=("entities", "head_links", "tail_links")
):
    """Every table of every text on its own; only valid cells; plain floats."""
    items, _ = model.prepare(EXAMPLES)
    values = []
    for item in items:
        scores = model.scores(**scoring_inputs(model, [item]))
        positives = tables_of({tuple(vars_of(t)) for t in item.triples})
        wanted = {
            "entities": {0: positives[0], 1: positives[1]},
            "head_links": {r: {c[1:] for c in positives[2] if c[0] == r} for r in (0, 1)},
            "tail_links": {r: {c[1:] for c in positives[3] if c[0] == r} for r in (0, 1)},
        }
        losses = []
        for name, by_head in wanted.items():
            for a, gold in by_head.items():
                table = getattr(scores, name)[0, a].tolist()
                cells = {
                    (i, j): value
                    for i, row in enumerate(table)
                    for j, value in enumerate(row)
                    if value > -math.inf
                }
                if name in tables:
                    losses.append(zlpr(cells, gold))
        values.append(sum(losses) if per_text == "sum" else sum(losses) / len(losses))
    return sum(values) / (len(values) if batch == "mean" else 1)


def vars_of(triple):
    return (
        triple.subject_head,
        triple.subject_tail,
        triple.relation,
        triple.object_head,
        triple.object_tail,
    )


def scoring_inputs(model, items):
    batch = model.collate(items)
    return {k: v for k, v in batch.items() if k not in ("entities", "head_links", "tail_links")}


def library_loss(model):
    items, _ = model.prepare(EXAMPLES)
    return model(**model.collate(items)).item()


@pytest.mark.equation(
    "eq:gplinker-loss",
    kind="definition",
    source="Su 2022 (kexue 8888; GPLinker code)",
    hypotheses="sum over the 2 + 2R tables of a text, mean over texts; padding and special tokens "
    "have no cells; a text without triples has empty positive sets",
    right=library_loss,
    wrong={
        "the mean over tables": lambda model: loss_by_loops(model, per_text="mean"),
        "the sum over texts": lambda model: loss_by_loops(model, batch="sum"),
        "the tail links are left out": lambda model: loss_by_loops(
            model, tables=("entities", "head_links")
        ),
    },
)
@pytest.mark.parametrize("pointer", ["efficient", "standard"])
def test_loss(form, check, pointer):
    torch.manual_seed(0)
    model = GPLinker.create(
        "small",
        ("founded", "founder"),
        texts=TEXTS,
        pointer=pointer,
        min_count=1,
        hidden_size=12,
        attention_heads=2,
        layers=1,
        head_size=4,
        bias_start=-1.0,
    )
    model = model.double().eval()
    with torch.no_grad():
        check.equal(form(model), loss_by_loops(model))


@pytest.mark.equation(
    "eq:gplinker-start",
    kind="identity",
    source="ours",
    hypotheses="all scores 0; n valid cells, k of them positive, 0 <= k <= n",
    right=lambda n, k: math.log(1 + n - k) + math.log(1 + k),
    wrong={
        "the positives are counted as negatives too": lambda n, k: (
            math.log(1 + n) + math.log(1 + k)
        ),
        "log 2 per cell, as for BCE": lambda n, k: n * math.log(2),
    },
)
@given(st.integers(2, 40), st.integers(1, 40))
def test_value_at_zero(form, check, n, k):
    k = min(n, k)
    check.equal(form(n, k), zlpr(dict.fromkeys(range(n), 0.0), set(range(k))))


@pytest.mark.equation(
    "eq:gplinker-bias-start",
    kind="identity",
    source="ours",
    hypotheses="all scores equal to -beta",
    right=lambda n, k, beta: math.log1p((n - k) * math.exp(-beta)) + math.log1p(k * math.exp(beta)),
    wrong={
        "the sign of beta": lambda n, k, beta: (
            math.log1p((n - k) * math.exp(beta)) + math.log1p(k * math.exp(-beta))
        ),
        "the positives pay nothing": lambda n, k, beta: math.log1p((n - k) * math.exp(-beta)),
    },
)
@given(st.integers(3, 40), st.integers(0, 3), st.floats(0.5, 6))
def test_value_at_a_constant(form, check, n, k, beta):
    for count in (1, k):  # no sign of beta shows without a positive, none without a negative
        positives = set(range(count))
        check.equal(form(n, count, beta), zlpr(dict.fromkeys(range(n), -beta), positives))
    empty = zlpr(dict.fromkeys(range(n), -math.log(n)), set())
    check.equal(empty, math.log(2))  # an empty head at beta = log n


def without_the_filler(scores, positives):
    return zlpr({c: v for c, v in scores.items() if c != 0}, positives - {0})


@pytest.mark.differs(
    "gplinker-mask-zero",
    source="bert4keras",
    theirs="with mask_zero, index 0 pads the lists of positives and is masked out of the loss: the "
    "cell ([CLS], [CLS]) is never trained, not even as a negative",
    ours="padding is -1, which is no cell; every valid cell is trained",
)
@pytest.mark.equation(
    "eq:gplinker-mask-zero",
    kind="identity",
    source="bert4keras (sparse_multilabel_categorical_crossentropy, mask_zero)",
    hypotheses="class 0 may or may not be listed; the other indices are distinct",
    right=without_the_filler,
    wrong={
        "the filler counts as a negative": lambda scores, positives: zlpr(scores, positives - {0}),
        "the filler counts as a positive": lambda scores, positives: zlpr(scores, positives | {0}),
    },
)
@given(seeds, st.integers(2, 12), st.integers(0, 3))
def test_masked_filler(form, check, seed, size, positives):
    scores, gold = random_head(seed, size, positives)
    # The published steps with exact arithmetic: class 0 is set to +inf for the positive sum,
    # to -inf for the other two, and the negatives are found by subtraction.
    listed = sorted(gold | {0})
    with mp.workdps(50):
        positive = mp.log1p(mp.fsum(mp.exp(-mp.mpf(scores[c])) for c in listed if c != 0))
        a = mp.log1p(mp.fsum(mp.exp(mp.mpf(v)) for c, v in scores.items() if c != 0))
        picked = [mp.exp(mp.mpf(scores[c])) for c in listed if c != 0]
        ratio = mp.fsum(picked) / mp.exp(a)
        published = positive + a + mp.log(1 - ratio)
    check.equal(form(scores, gold), float(published))


@pytest.mark.equation(
    "eq:gplinker-flat",
    kind="identity",
    source="Su 2022 (GPLinker code)",
    hypotheses="0 <= i, j < L in whole numbers",
    right=lambda c, n: (c // n, c % n),
    wrong={
        "row and column exchanged": lambda c, n: (c % n, c // n),
        "counted from one": lambda c, n: ((c - 1) // n, (c - 1) % n),
    },
)
@given(st.integers(2, 60))
def test_flat_index(form, check, length):
    seen = set()
    for i, j in itertools.product(range(length), repeat=2):
        check.true(form(i * length + j, length) == (i, j), f"({i}, {j})")
        seen.add(i * length + j)
    check.true(seen == set(range(length**2)), "every cell has a number of its own")


FORMATS = {torch.float8_e5m2: 3, torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}


@pytest.mark.differs(
    "gplinker-float-index",
    source="bert4keras",
    theirs="the flat index $iL+j$ is computed in the floating-point type of the scores",
    ours="indices are whole numbers (int64): a float with p significant bits confuses cells as "
    "soon as the index exceeds $2^p$",
)
@pytest.mark.equation(
    "eq:gplinker-float-index",
    kind="identity",
    source="ours",
    hypotheses="p significant bits (24 for float32, 11 for float16, 8 for bfloat16, 3 for "
    "float8_e5m2), L >= 1",
    right=lambda p: math.isqrt(2**p + 1),
    wrong={
        "one bit too many": lambda p: math.isqrt(2 ** (p + 1) + 1),
        "half of it": lambda p: math.isqrt(2**p + 1) // 2,
    },
)
@pytest.mark.parametrize("dtype", list(FORMATS), ids=lambda d: str(d).split(".")[-1])
def test_float_index(form, check, dtype):
    longest = form(FORMATS[dtype])
    for length, exact in ((longest, True), (longest + 1, False)):
        index = torch.arange((length - 1) ** 2, length**2)  # the cells that the last token adds
        same = bool((index.to(dtype).long() == index).all())
        check.true(same == exact, f"length {length}")


@pytest.mark.equation(
    "eq:gplinker-label-cells",
    kind="identity",
    source="Su 2022 (kexue 8888), sparse count ours",
    hypotheses="batch b, K places per head and sentence; two link modules",
    right=lambda b, relations, n, k: (2 * b * relations * n**2, 4 * b * relations * k),
    wrong={
        "one link module": lambda b, relations, n, k: (b * relations * n**2, 2 * b * relations * k),
        "one number per place": lambda b, relations, n, k: (
            2 * b * relations * n**2,
            2 * b * relations * k,
        ),
    },
)
@given(st.integers(1, 3), relation_counts, st.integers(3, 6), st.integers(1, 3))
def test_label_storage(form, check, batch, relations, length, places):
    # Positives of the library: `places` triples in the last text, and none in the others.
    last = [TokenTriple(i, i, relations - 1, length - 1 - i, length - 1 - i) for i in range(places)]
    lists = table_positives([*[[]] * (batch - 1), last], length=length, relations=relations)
    sparse = lists.head_links, lists.tail_links
    # Dense targets as the published loss takes them: 1 at each positive, else 0.
    dense = []
    for cells in sparse:
        target = torch.zeros(batch, relations, length, length)
        for text, relation, place in itertools.product(*map(range, cells.shape[:3])):
            i, j = cells[text, relation, place].tolist()
            if i >= 0:
                target[text, relation, i, j] = 1
        check.equal(target.sum(), float(places))
        dense.append(target)
    got = form(batch, relations, length, places)
    check.equal(got, [sum(t.numel() for t in kind) for kind in (dense, sparse)])


# ---------------------------------------------------------------------------------------------
# Cost of decoding; TPLinker's bookkeeping.


def candidates_by_heads(triples):
    """Pairs that survive the head links, counted by multiplicities."""
    subjects, objects, heads, _ = tables_of(triples)
    return sum(
        sum(s[0] == sh for s in subjects) * sum(o[0] == oh for o in objects) for _, sh, oh in heads
    )


@pytest.mark.equation(
    "eq:gplinker-decode-cost",
    kind="identity",
    source="ours",
    hypotheses="tables of any set of triples; with distinct heads it is the number of head links",
    right=candidates_by_heads,
    wrong={
        "all pairs of spans": lambda triples: (
            len(tables_of(triples)[0]) * len(tables_of(triples)[1]) + 1
        ),
        "one pair per head link": lambda triples: len(tables_of(triples)[2]),
    },
)
def test_tail_lookups(form, check):
    rng = np.random.default_rng(9)
    for triples in [LOSSY, star_set(3)] + [dense_set(rng, 4, 2, 5) for _ in range(60)]:
        subjects, objects, heads, tails = tables_of(triples)
        lookups, found = 0, set()
        for r, sh, oh in heads:
            for s in subjects:
                for o in objects:
                    if s[0] == sh and o[0] == oh:
                        lookups += 1
                        if (r, s[1], o[1]) in tails:
                            found.add((*s, r, *o))
        check.true(found == decode(subjects, objects, heads, tails), "same set as by definition")
        check.equal(form(triples), lookups)
        if injective(subjects, 0) and injective(objects, 0):
            check.equal(lookups, len(heads))


@pytest.mark.equation(
    "eq:gplinker-flatten",
    kind="identity",
    source="Wang et al. 2020 (TPLinker code)",
    hypotheses="0 <= i <= j < L, cells numbered row by row from 0",
    right=lambda i, j, n: i * n - i * (i - 1) // 2 + (j - i),
    wrong={
        "i(i+1)/2 for i(i-1)/2": lambda i, j, n: i * n - i * (i + 1) // 2 + (j - i),
        "columns are not shifted": lambda i, j, n: i * n - i * (i - 1) // 2 + j,
    },
)
@given(st.integers(3, 30))
def test_upper_triangle_index(form, check, length):
    for place, (i, j) in enumerate(spans_of_length(length)):
        check.equal(form(i, j, length), place)


@pytest.mark.equation(
    "eq:gplinker-flatten",
    kind="identity",
    source="ours",
    right=lambda i, n: i * n - i * (i - 1) / 2,
    wrong={"i(i+1)/2 for i(i-1)/2": lambda i, n: i * n - i * (i + 1) / 2},
)
def test_row_starts_symbolically(form, check):
    i, n, row = sp.symbols("i n row", integer=True, nonnegative=True)
    start = sp.summation(n - row, (row, 0, i - 1))
    check.true(sp.simplify(form(i, n) - start) == 0, "rows before i hold n - row cells")


def tag_cells(relations, length):
    n = length * (length + 1) // 2
    return (2 * relations + 1) * n, (4 * relations + 1) * n


@pytest.mark.equation(
    "eq:gplinker-tplinker-cells",
    kind="identity",
    source="Wang et al. 2020; TPLinker code",
    hypotheses="TPLinker: one entity sequence and two link sequences per relation; "
    "TPLinker-plus: two directions of each link",
    right=tag_cells,
    wrong={
        "both directions in both": lambda r, n: ((4 * r + 1) * n * (n + 1) // 2,) * 2,
        "square tables": lambda r, n: ((2 * r + 1) * n * n, (4 * r + 1) * n * n),
    },
)
@given(relation_counts, st.integers(2, 8))
def test_tplinker_cells(form, check, relations, length):
    triangle = spans_of_length(length)
    first = ["EH2ET"] + [f"{kind}-{r}" for r in range(relations) for kind in ("SH2OH", "ST2OT")]
    plus = ["EH2ET"] + [
        f"{kind}-{r}" for r in range(relations) for kind in ("SH2OH", "OH2SH", "ST2OT", "OT2ST")
    ]
    got = form(relations, length)
    check.equal(got[0], len(list(itertools.product(first, triangle))))
    check.equal(got[1], len(list(itertools.product(plus, triangle))))
    # Two directions on a triangle cover a square table once and its diagonal twice.
    links = got[1] - length * (length + 1) // 2
    check.equal(links, 2 * relations * length**2 + 2 * relations * length)


@pytest.mark.equation(
    "eq:gplinker-activations",
    kind="identity",
    source="Su 2022 (kexue 8888)",
    hypotheses="one sentence; pair features before the classifier, against one head's queries and "
    "keys",
    right=lambda D, d, n: (n * (n + 1) * D, 2 * n * d),
    wrong={
        "the pair's two states counted once": lambda D, d, n: (n * (n + 1) * D // 2, 2 * n * d),
        "keys are left out": lambda D, d, n: (n * (n + 1) * D, n * d),
    },
)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(1, 6))
def test_activations(form, check, hidden, half_size, length):
    states = torch.randn(1, length, hidden)
    made = []
    # TPLinker's vectors of pairs, row by row, as its program makes them.
    for i in range(length):
        visible = states[:, i:]
        made.append(torch.cat([states[:, i, None].repeat(1, length - i, 1), visible], dim=-1))
    # One head of the library's pointer: what its projection gives is queries and keys.
    pointer, seen = GlobalPointer(hidden, 1, 2 * half_size), []
    pointer.projection.register_forward_hook(lambda module, args, out: seen.append(out.numel()))
    pointer(states)
    got = form(hidden, 2 * half_size, length)
    check.equal(got, [sum(vectors.numel() for vectors in made), sum(seen)])


# ---------------------------------------------------------------------------------------------
# Without tables; what single parts are worth.


@pytest.mark.differs(
    "gplinker-subtraction-cap",
    source="Su 2022 (GPLinker code)",
    theirs="the sum over the negatives is the sum over all cells minus the positives, in the "
    "dtype of the scores",
    ours="the positives are left out of the sum: in bfloat16 the difference vanishes once a "
    "positive exceeds about 4.16, and from there its gradient has the wrong sign",
)
@pytest.mark.equation(
    "eq:gplinker-bf16-cap",
    kind="identity",
    source="ours",
    hypotheses="one positive, negligible negatives, numbers between 4 and 8 on a grid of spacing h",
    right=lambda h: -math.log(math.expm1(h / 2)),
    wrong={
        "the whole spacing": lambda h: -math.log(math.expm1(h)),
        "the spacing between 2 and 4": lambda h: -math.log(math.expm1(h / 4)),
    },
)
def test_score_at_which_the_sum_is_swallowed(form, check):
    h = 2.0**-5
    grid = torch.arange(4, 8, h, dtype=torch.float64)
    total = torch.log1p(grid.exp()).to(torch.bfloat16).double()
    swallowed = grid[total == grid]
    check.true(swallowed[0] - h < form(h) <= swallowed[0], "the first grid point past x*")
    # The published steps in bfloat16: beyond x* the gradient of the positive points down.
    for x, sign in ((2.0, -1.0), (swallowed[0].item(), 1.0), (6.0, 1.0)):
        score = torch.tensor([x], dtype=torch.bfloat16, requires_grad=True)
        every = torch.cat([score, score.new_zeros(1)]).logsumexp(0)
        rest = (1 - (score.logsumexp(0) - every).exp()).clamp(1e-7, 1)
        pulled = torch.cat([-score, score.new_zeros(1)]).logsumexp(0)
        (pulled + every + rest.log()).backward()
        check.true(score.grad.sign().item() == sign, f"gradient at {x}")


@pytest.mark.equation(
    "eq:gplinker-factorised",
    kind="identity",
    source="ours; the scores of Su 2022 (kexue 8877)",
    hypotheses="an efficient pointer; any set of cells that count",
    right=lambda pair, start, end, keep: torch.einsum(
        "hi,ij,hj->h", start.exp(), pair.exp() * keep, end.exp()
    ),
    wrong={
        "start and end exchanged": lambda pair, start, end, keep: torch.einsum(
            "hi,ij,hj->h", end.exp(), pair.exp() * keep, start.exp()
        ),
        "cells that do not count are counted": lambda pair, start, end, keep: torch.einsum(
            "hi,ij,hj->h", start.exp(), pair.exp(), end.exp()
        ),
        "the sum of the exponentials, not of their products": lambda pair, start, end, keep: (
            pair.exp().sum() + start.exp().sum(-1) + end.exp().sum(-1)
        ),
    },
)
@given(seeds, st.integers(2, 6))
def test_sum_of_a_table_from_parts(form, check, seed, length):
    torch.manual_seed(seed)
    pointer = EfficientGlobalPointer(5, 3, 4).double()
    hidden = normal(seed, 1, length, 5)
    with torch.no_grad():
        pair, start, end = (part[0] for part in pointer.parts(hidden))
        scores = pointer(hidden)[0]
    keep = torch.ones(length, length).triu().double()
    looped = torch.stack(
        [
            sum(scores[a, i, j].exp() for i, j in spans_of_length(length))
            for a in range(pointer.heads)
        ]
    )
    check.equal(form(pair, start, end, keep), looped)


@pytest.mark.equation(
    "eq:gplinker-parts-cells",
    kind="identity",
    source="ours",
    hypotheses="three efficient pointers, 2 + 2R heads in all",
    right=lambda relations, n: (
        (2 + 2 * relations) * n**2,
        3 * n**2 + 2 * (2 + 2 * relations) * n,
    ),
    wrong={
        "one pair table for all pointers": lambda relations, n: (
            (2 + 2 * relations) * n**2,
            n**2 + 2 * (2 + 2 * relations) * n,
        ),
        "one vector per head": lambda relations, n: (
            (2 + 2 * relations) * n**2,
            3 * n**2 + (2 + 2 * relations) * n,
        ),
    },
)
@given(relation_counts, st.integers(2, 6))
def test_numbers_held(form, check, relations, length):
    pointers = [EfficientGlobalPointer(4, heads, 2) for heads in (2, relations, relations)]
    hidden = torch.zeros(1, length, 4)
    filled = sum(pointer(hidden).numel() for pointer in pointers)
    parts = sum(part.numel() for pointer in pointers for part in pointer.parts(hidden))
    check.true(form(relations, length) == (filled, parts), "counted in the library's tensors")


@pytest.mark.equation(
    "eq:gplinker-block-cells",
    kind="identity",
    source="ours",
    hypotheses="links are scored between the subjects and the objects found",
    right=lambda relations, subjects, objects: 2 * relations * subjects * objects,
    wrong={
        "one table of links per relation": lambda relations, subjects, objects: (
            relations * subjects * objects
        ),
        "subjects and objects added": lambda relations, subjects, objects: (
            2 * relations * (subjects + objects)
        ),
    },
)
@pytest.mark.parametrize("kind", [EfficientGlobalPointer, GlobalPointer])
@given(seeds, st.integers(2, 5), st.integers(2, 3))
@settings(max_examples=20)
def test_blocks_hold_all_that_decoding_reads(form, check, kind, seed, length, relations):
    torch.manual_seed(seed)
    spans = kind(4, 2, 2, bias_start=0.5).double()
    links = [kind(4, relations, 2, causal=False, bias_start=0.5).double() for _ in range(2)]
    hidden = normal(seed, 1, length, 4)
    with torch.no_grad():
        tables = (spans(hidden)[0], links[0](hidden)[0], links[1](hidden)[0])
    found = spans.spans(hidden)
    roles = [
        (found.cells[found.cells[:, 1] == role, 2:], found.scores[found.cells[:, 1] == role])
        for role in (0, 1)
    ]
    blocks = [
        pointer.blocks(hidden, [roles[0][0][:, end]], [roles[1][0][:, end]])[0]
        for end, pointer in enumerate(links)
    ]
    subjects, objects = (len(spans) for spans, _ in roles)
    if min(subjects, objects) > 1 and subjects + objects > 4:
        check.equal(form(relations, subjects, objects), sum(block.numel() for block in blocks))
    decoded = [triple for triple, _ in decode_blocks(*roles[0], *roles[1], *blocks)]
    assert decoded == decode_tables(*tables)


@pytest.mark.equation(
    "eq:gplinker-heads-only",
    kind="identity",
    source="ours",
    hypotheses="tables of a set of triples; equality on the right if no two subjects and no two "
    "objects share a head",
    right=lambda s, o, h, t: {
        (sh, st_, r, oh, ot) for sh, st_ in s for oh, ot in o for r, a, b in h if (a, b) == (sh, oh)
    },
    wrong={
        "the tail links alone": lambda s, o, h, t: {
            (sh, st_, r, oh, ot)
            for sh, st_ in s
            for oh, ot in o
            for r, a, b in t
            if (a, b) == (st_, ot)
        },
        "links between any spans, whatever their heads": lambda s, o, h, t: {
            (*a, r, *b) for a in s for b in o for r, _, _ in h
        },
    },
)
@given(triple_sets())
def test_without_tail_links(form, check, triples):
    got = form(*tables_of(triples))
    check.true(got >= decode(*tables_of(triples)) >= triples, "more, never less")
    heads = [{span[0] for span in spans} for spans in tables_of(triples)[:2]]
    if all(len(h) == len(s) for h, s in zip(heads, tables_of(triples)[:2], strict=True)):
        check.true(got == triples, "distinct heads: the same set")


@pytest.mark.equation(
    "eq:gplinker-merged",
    kind="inequality",
    source="ours",
    hypotheses="finite scores; equality exactly if at most one table has negatives and at most "
    "one has positives",
    right=lambda tables: zlpr(
        {(a, c): s for a, (scores, _) in enumerate(tables) for c, s in scores.items()},
        {(a, c) for a, (_, positives) in enumerate(tables) for c in positives},
    ),
    wrong={
        "one null class per table is kept": lambda tables: sum(zlpr(*table) for table in tables),
        "positives and negatives exchanged": lambda tables: sum(
            zlpr(scores, set(scores) - positives) for scores, positives in tables
        ),
    },
)
@given(seeds, st.lists(st.lists(st.booleans(), max_size=5), min_size=1, max_size=4))
def test_merged_tables_cost_less(form, check, seed, labels):
    scores = normal(seed, len(labels), 5).tolist()
    tables = [
        (dict(enumerate(row[: len(own)])), {c for c, positive in enumerate(own) if positive})
        for row, own in zip(scores, labels, strict=True)
    ]
    apart = sum(zlpr(*table) for table in tables)
    positive = sum(any(own) for own in labels)
    negative = sum(not all(own) for own in labels)
    if positive <= 1 and negative <= 1:
        check.equal(form(tables), apart)
    else:
        check.at_most(form(tables), apart - 1e-6)
    # Equality: one table has the negatives, another the positives.
    one, other = dict(enumerate(scores[0])), dict(enumerate(scores[-1]))
    split = [(one, set()), ({}, set()), (other, set(other))]
    check.equal(form(split), sum(zlpr(*table) for table in split))


@pytest.mark.equation(
    "eq:gplinker-rdrop",
    kind="definition",
    source="Liang et al. 2021, with the divergence of ZLPR (ours)",
    hypotheses="two passes s and u over the same cells; alpha in the paper's convention",
    right=lambda s, u, y, alpha: r_drop(
        s,
        u,
        lambda x: zlpr_loss(x, y, reduction="sum"),
        functools.partial(zlpr_divergence, reduction="sum"),
        alpha=alpha,
    ).item(),
    wrong={
        "alpha not divided": lambda s, u, y, alpha: rdrop_by_loops(s, u, y, 4 * alpha),
        "only the first pass is trained": lambda s, u, y, alpha: rdrop_by_loops(
            s, u, y, alpha, passes=(0, 0)
        ),
    },
)
@given(seeds, st.floats(0.5, 5))
def test_rdrop(form, check, seed, alpha):
    s, u = normal(seed, 2, 3, 6)
    y = normal(seed + 1, 3, 6) > 0.5
    check.equal(form(s, u, y, alpha), rdrop_by_loops(s, u, y, alpha))


def rdrop_by_loops(s, u, y, alpha, passes=(0, 1)):
    """Mean of the two losses, and alpha/4 of the mean of the two regrets, table by table."""

    def regret(of, against):
        weights = [1.0, *(1 / (2 * math.cosh(v)) for v in against)]
        changes = [0.0, *(v - w for v, w in zip(against, of, strict=True))]
        return math.fsum(
            math.log(
                math.fsum(w * math.exp(k * c) for w, c in zip(weights, changes, strict=True))
                / math.fsum(weights)
            )
            for k in (1, -1)
        )

    total = 0.0
    for a in range(len(s)):
        rows = [x[a].tolist() for x in (s, u)]
        gold = {c for c, one in enumerate(y[a].tolist()) if one}
        losses = [zlpr(dict(enumerate(row)), gold) for row in rows]
        total += (losses[passes[0]] + losses[passes[1]]) / 2
        total += alpha / 4 * (regret(*rows) + regret(*rows[::-1])) / 2
    return total
