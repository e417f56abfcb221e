"""Explorables: their formulas are the library's; they answer keyboard, mouse and screen reader.

Inputs are made here, computed by the page's own module in a real browser, and compared here. How
far the two are apart is written by ``pytest -rP tests/test_explore.py``.
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from playwright.sync_api import Browser, Page
from scipy.optimize import linprog
from sphinx.cmd.build import main as sphinx_build
from sphinx.util.docutils import docutils_namespace
from torch.nn import functional

from lib.casrel import nearest_end_spans, object_tags, subject_tags
from lib.divergence import (
    sigmoid_divergence,
    softmax_divergence,
    zlpr_divergence,
    zlpr_regret,
)
from lib.emo import emo_loss
from lib.exact import expected_accuracy
from lib.extraction.alignment import TokenTriple
from lib.global_pointer import apply_rope
from lib.gplinker import decode_tables, table_positives
from lib.soft_zlpr import soft_zlpr_loss
from lib.softmax import smooth_max
from lib.zlpr import zlpr_loss
from tools import explore
from tools.check_browser import AXE, AXE_FOR, AXE_RUN, PHONE, WIDER

COUNT = 1000
CLOSE = 1e-12  # of the larger of 1 and the library's value
SCALES = (0.1, 3.0, 30.0, 700.0)
KIT = explore.BOOK / "_static" / explore.SHARED
CHAPTERS = {path.parent.name: path for path in explore.chapters()}
ALL = [(name, one) for name, path in CHAPTERS.items() for one in explore.names(path)]

Random = np.random.Generator
Tensor = torch.Tensor


def real(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def slope(loss: Callable[[Tensor], Tensor], at: Any) -> list[float]:
    """Return the gradient of a loss."""
    leaf = real(at).requires_grad_()
    value = loss(leaf)
    return torch.autograd.grad(value, leaf)[0].tolist() if value.requires_grad else [0.0] * len(at)


@dataclass
class Formula:
    """One function of a chapter's module, and what it must equal."""

    call: str
    """JavaScript: the name of the function, or an arrow function of the module `m`."""
    inputs: Callable[[Random, int], list[Any]]
    """The arguments of draw number k."""
    reference: Callable[..., Any]
    slip: tuple[str, str]
    """A text of the module, once in it, and what makes it wrong."""

    @property
    def name(self) -> str:
        return re.search(r"m\.(\w+)\(", self.call)[1] if "m." in self.call else self.call


def scores(random: Random, k: int, least: int = 1) -> list[float]:
    """Draw up to 40 scores, of four sizes in turn, now and then with ties."""
    drawn = random.normal(size=random.integers(least, 41)) * SCALES[k % 4]
    return (drawn if k % 5 else np.round(drawn)).tolist()


def labelled(random: Random, k: int) -> list[Any]:
    s = scores(random, k)
    return [s, (random.random(len(s)) < random.choice([0, 0.1, 0.5, 1])).tolist()]


def sharpened(random: Random, k: int) -> list[Any]:
    return [scores(random, k), 10 ** random.uniform(-2, 2)]


def graded(random: Random, k: int) -> list[Any]:
    s = scores(random, k)
    degrees = random.random(len(s))
    return [s, np.where(random.random(len(s)) < 0.2, np.round(degrees), degrees).tolist()]


def two_passes(random: Random, k: int) -> list[Any]:
    s = np.array(scores(random, k))
    near = s + random.normal(size=len(s)) * random.choice([0, 1e-3, 1])
    return [s.tolist(), (near if k % 2 else near[::-1] + random.normal()).tolist()]


def cuts(random: Random, k: int) -> list[Any]:
    points = random.normal(size=random.integers(1, 12)) * (0.3, 3)[k % 2]
    labels = random.choice([-1, 1], size=len(points))
    return [points.tolist(), labels.tolist(), random.normal() * 2, 10 ** random.uniform(-2, 1.5)]


def tokens(random: Random, k: int) -> list[Any]:
    s = scores(random, k)
    vectors = random.normal(size=(len(s), random.integers(1, 6))) * 10 ** random.uniform(-3, 3)
    return [s, int(random.integers(len(s))), vectors.tolist()]


def vectors(random: Random, k: int) -> list[Any]:
    width = 2 * int(random.integers(1, 9))
    i, j = random.integers(0, 200, 2).tolist()
    return [*random.normal(size=(2, width)).tolist(), i, j]


def wishes(random: Random, k: int) -> list[Any]:
    """Signs of some cells of a table; half of them come from rulers, with a few turned."""
    length = int(random.integers(2, 6))
    b, c = random.normal(size=(2, length))
    made = [
        [i, j, int(np.sign(b[i] + c[j]) if k % 2 else random.choice([-1, 1]))]
        for i in range(length)
        for j in range(length)
        if random.random() < 0.8
    ]
    for wish in made[: int(random.integers(0, 2))]:
        wish[2] *= -1
    return [made, length]


def triples(random: Random, k: int) -> list[Any]:
    """Facts over few spans, so that they share tokens; and their sentence's length, relations."""
    length, relations = int(random.integers(2, 8)), int(random.integers(1, 4))

    def span() -> list[int]:
        return sorted(random.integers(0, length, 2).tolist())

    few = [span() for _ in range(4)]
    facts = [
        [*few[random.integers(4)], int(random.integers(relations)), *few[random.integers(4)]]
        for _ in range(random.integers(0, 6))
    ]
    return [facts, length, relations]


def tables(random: Random, k: int) -> list[Any]:
    """Any four sets of cells, whether or not a set of facts has them."""
    length, relations = int(random.integers(2, 6)), int(random.integers(1, 3))
    square = [[i, j] for i in range(length) for j in range(length)]

    def pick(cells: list[list[int]]) -> list[list[int]]:
        return [cell for cell in cells if random.random() < 0.4]

    upper = [[i, j] for i, j in square if i <= j]
    links = [[pick(square) for _ in range(relations)] for _ in range(2)]
    return [
        {"subjects": pick(upper), "objects": pick(upper), "heads": links[0], "tails": links[1]},
        length,
    ]


def spans(random: Random, k: int) -> list[Any]:
    count = random.integers(1, 5)
    return [[sorted(random.integers(0, 9, 2).tolist()) for _ in range(count)]]


def both_ends(random: Random, k: int) -> list[Any]:
    return [random.integers(0, 12, random.integers(0, 6)).tolist() for _ in range(2)]


def zlpr(s: Tensor, y: list[bool]) -> Tensor:
    return zlpr_loss(s, torch.tensor(y), reduction="sum")


def pairs(s: Tensor, y: list[bool]) -> Tensor:
    y = torch.tensor(y)
    return functional.softplus(s[~y].logsumexp(0) + (-s[y]).logsumexp(0), threshold=40)


def line_only(s: Tensor, y: list[bool]) -> Tensor:
    return torch.cat([real([0.0]), torch.where(torch.tensor(y), -s, s)]).logsumexp(0)


def bce(s: Tensor, y: list[bool]) -> Tensor:
    return functional.binary_cross_entropy_with_logits(s, real(y), reduction="sum")


def lottery(s: float, chance: float) -> float:
    yes, no = (zlpr(real([s]), [label]) for label in (True, False))
    return float(chance * yes + (1 - chance) * no)


def ahead(x: list[float], cut: Tensor) -> Tensor:
    """Scores of the two classes for each point."""
    margin = real(x) - cut
    return torch.stack([torch.zeros_like(margin), margin], 1)


def expected(x: list[float], labels: list[int], cut: Tensor, noise: float) -> Tensor:
    right = (torch.tensor(labels) + 1) // 2
    return expected_accuracy(ahead(x, cut), right, noise=noise, nodes=120).mean()


def hedged(x: list[float], labels: list[int], cut: Tensor, noise: float) -> Tensor:
    return functional.cross_entropy(ahead(x, cut) / noise, (torch.tensor(labels) + 1) // 2)


def emo(s: Tensor, target: int, table: list[list[float]]) -> Tensor:
    return emo_loss(s, torch.tensor(target), real(table))


def rotated(row: list[float], position: int) -> Tensor:
    return apply_rope(real(row).expand(position + 1, -1))[position]


def additive_signs(wanted: list[list[int]], length: int) -> bool:
    """Ask a linear programme for rulers with a margin of one."""
    if not wanted:
        return True
    rows = np.zeros((len(wanted), 2 * length))
    for row, (i, j, sign) in zip(rows, wanted, strict=True):
        row[i] = row[length + j] = -sign
    return linprog(np.zeros(2 * length), rows, -np.ones(len(wanted)), bounds=(None, None)).success


def positives(facts: list[list[int]], length: int, relations: int) -> list[Any]:
    found = table_positives([[TokenTriple(*t) for t in facts]], length=length, relations=relations)
    listed = [[[c for c in row if c[0] >= 0] for row in part[0].tolist()] for part in found]
    return [*listed[0], *listed[1:]]


def decoded(made: dict[str, Any], length: int) -> list[Any]:
    cells = {name: made[name] for name in ("heads", "tails")}
    cells["entities"] = [made["subjects"], made["objects"]]
    filled = {
        name: torch.full((len(rows), length, length), -1.0, dtype=torch.float64)
        for name, rows in cells.items()
    }
    for name, rows in cells.items():
        for r, row in enumerate(rows):
            for i, j in row:
                filled[name][r, i, j] = 1
    found = decode_tables(filled["entities"], filled["heads"], filled["tails"])
    return [list(astuple(t)) for t in found]


def tags(facts: list[list[int]], length: int, relations: int) -> list[Any]:
    """Tags of subjects, then those of the objects of the first fact's subject."""
    batch = [[TokenTriple(*t) for t in facts]]
    chosen = torch.tensor([[0, *facts[0][:2]]])
    of_objects = object_tags(batch, chosen, length=length, relations=relations)
    first = subject_tags(batch, length=length)[0].double()
    return [first.tolist(), of_objects[0].double().transpose(0, 1).tolist()]


def some_triples(random: Random, k: int) -> list[Any]:
    while True:
        drawn = triples(random, k)
        if drawn[0]:
            return drawn


FORMULAS = {
    "01_softmax": [
        Formula(
            "smoothMax",
            sharpened,
            lambda s, g: float(smooth_max(real(s), gamma=g)),
            ("Math.log1p(rest) / sharpness", "Math.log1p(rest) * sharpness"),
        ),
        Formula(
            "softmax",
            sharpened,
            lambda s, g: slope(lambda x: smooth_max(x, gamma=g), s),
            ("parts.map((part) => part / whole)", "parts"),
        ),
        Formula(
            "smoothStep",
            lambda random, k: [random.normal() * SCALES[k % 4], 10 ** random.uniform(-2, 2)],
            lambda x, g: float(torch.sigmoid(real(x) * g)),
            ("softmax([x, 0], sharpness)[0]", "softmax([x, 0], sharpness)[1]"),
        ),
        Formula(
            "smoothAbs",
            lambda random, k: [random.normal() * SCALES[k % 4], 10 ** random.uniform(-2, 2)],
            lambda x, g: 2 * float(smooth_max(real([x / 2, -x / 2]), gamma=g)),
            ("smoothMax([x / 2, -x / 2], sharpness)", "smoothMax([x / 2, 0], sharpness)"),
        ),
    ],
    "02_zlpr": [
        Formula(
            "zlpr",
            labelled,
            lambda s, y: float(zlpr(real(s), y)),
            ("nullLogSumExp(negatives) + nullLogSumExp(positives)", "nullLogSumExp(negatives)"),
        ),
        Formula(
            "zlprGradient",
            labelled,
            lambda s, y: slope(lambda x: zlpr(x, y), s),
            ("shares(terms, true)));", "shares(terms, false)));"),
        ),
        Formula(
            "pairs",
            labelled,
            lambda s, y: float(pairs(real(s), y)),
            ("softplus(negatives + positives)", "softplus(negatives - positives)"),
        ),
        Formula(
            "pairsGradient",
            labelled,
            lambda s, y: slope(lambda x: pairs(x, y), s) if 0 < sum(y) < len(y) else [0] * len(s),
            ("mass * share", "share"),
        ),
        Formula(
            "lineOnly",
            labelled,
            lambda s, y: float(line_only(real(s), y)),
            ("groups(scores, labels).flat()", "groups(scores, labels)[0]"),
        ),
        Formula(
            "lineOnlyGradient",
            labelled,
            lambda s, y: slope(lambda x: line_only(x, y), s),
            (
                "shares([...negatives, ...positives], true)",
                "shares([...negatives, ...positives], false)",
            ),
        ),
        Formula(
            "bce",
            labelled,
            lambda s, y: float(bce(real(s), y)),
            ("softplus(labels[i] ? -s : s)", "softplus(labels[i] ? s : -s)"),
        ),
        Formula(
            "bceGradient",
            labelled,
            lambda s, y: slope(lambda x: bce(x, y), s),
            ("-sigmoid(-s) : sigmoid(s)", "-sigmoid(s) : sigmoid(s)"),
        ),
    ],
    "03_soft_zlpr": [
        Formula(
            "softZlpr",
            graded,
            lambda s, t: float(soft_zlpr_loss(real(s), real(t), reduction="sum")),
            ("Math.log1p(-degrees[i]) + s", "Math.log(degrees[i]) + s"),
        ),
        Formula(
            "softGradient",
            graded,
            lambda s, t: slope(lambda x: soft_zlpr_loss(x, real(t), reduction="sum"), s),
            ("down[i] - up[i]", "down[i] + up[i]"),
        ),
        Formula(
            "lowest",
            lambda random, k: [random.uniform(1e-9, 1 - 1e-9)],
            lambda t: float(real(t).logit() / 2),
            ("Math.log1p(-degree)) / 2", "Math.log1p(-degree))"),
        ),
        Formula(
            "lottery",
            lambda random, k: [random.normal() * SCALES[k % 4], random.random()],
            lottery,
            ("(1 - chance) * softplus(score)", "(1 - chance) * softplus(-score)"),
        ),
        Formula(
            "sigmoid",
            lambda random, k: [random.normal() * SCALES[k % 4]],
            lambda x: float(real(x).sigmoid()),
            ("Math.exp(x) / (1 + Math.exp(x))", "Math.exp(x)"),
        ),
    ],
    "04_global_pointer": [
        Formula(
            "(m, q, k, i, j) => m.turned(q, i)",
            vectors,
            lambda q, k, i, j: rotated(q, i).tolist(),
            ("-k / vector.length", "k / vector.length"),
        ),
        Formula(
            "score",
            vectors,
            lambda q, k, i, j: float(rotated(q, i) @ rotated(k, j) / math.sqrt(len(q))),
            ("turned(key, j, base)", "turned(key, i, base)"),
        ),
        Formula(
            "(m, w, n) => { const f = m.rulers(w, n); return f.circle ? false :"
            " w.every(([i, j, sign]) => Math.sign(f.b[i] + f.c[j]) === sign) || 'wrong signs'; }",
            wishes,
            additive_signs,
            ("[length + j, i];", "[length + i, i];"),
        ),
    ],
    "05_divergence": [
        Formula(
            "softmaxDivergence",
            two_passes,
            lambda s, u: float(softmax_divergence(real(s), real(u))),
            ("[softmax(s), softmax(u)]", "[softmax(s), softmax(s)]"),
        ),
        Formula(
            "sigmoidDivergence",
            two_passes,
            lambda s, u: float(sigmoid_divergence(real(s), real(u))),
            ("(sigmoid(s[i]) - sigmoid(u[i]))", "(sigmoid(s[i]) - sigmoid(-u[i]))"),
        ),
        Formula(
            "sigmoidCharges",
            two_passes,
            lambda s, u: sigmoid_divergence(
                real(s)[:, None], real(u)[:, None], reduction="none"
            ).tolist(),
            ("Math.exp(x) / (1 + Math.exp(x))", "Math.exp(x)"),
        ),
        Formula(
            "zlprRegret",
            two_passes,
            lambda s, u: float(zlpr_regret(real(s), real(u))),
            ("[[0, 0], ...s.map", "[...s.map"),
        ),
        Formula(
            "zlprDivergence",
            two_passes,
            lambda s, u: float(zlpr_divergence(real(s), real(u))),
            ("(zlprRegret(s, u) + zlprRegret(u, s)) / 2", "zlprRegret(s, u)"),
        ),
    ],
    "06_exact": [
        Formula(
            "normal",
            lambda random, k: [random.normal() * SCALES[k % 4]],
            lambda x: float(torch.special.ndtr(real(x))),
            ("term *= (size * size) / k", "term *= size / k"),
        ),
        Formula(
            "(m, x, y, cut) => m.accuracy(x, y, cut)",
            cuts,
            lambda x, y, cut, noise: float(
                (ahead(x, real(cut)).argmax(1) == (torch.tensor(y) + 1) // 2).double().mean()
            ),
            ("m > 0 ? 1 : 0", "m < 0 ? 1 : 0"),
        ),
        Formula(
            "expectedAccuracy",
            cuts,
            lambda x, y, cut, noise: float(expected(x, y, real(cut), noise)),
            ("normal(m / noise / Math.SQRT2)", "normal(m / noise)"),
        ),
        Formula(
            "expectedSlope",
            cuts,
            lambda x, y, cut, noise: slope(lambda b: expected(x, y, b[0], noise), [cut])[0],
            ("(-labels[i] * density(m / scale)) / scale", "(-labels[i] * density(m / scale))"),
        ),
        Formula(
            "crossEntropy",
            cuts,
            lambda x, y, cut, noise: float(hedged(x, y, real(cut), noise)),
            ("softplus(-m / noise)", "softplus(-m)"),
        ),
        Formula(
            "crossEntropySlope",
            cuts,
            lambda x, y, cut, noise: slope(lambda b: hedged(x, y, b[0], noise), [cut])[0],
            (
                "labels[i] / noise / (1 + Math.exp(m / noise))",
                "labels[i] / (1 + Math.exp(m / noise))",
            ),
        ),
    ],
    "07_emo": [
        Formula(
            "emo",
            tokens,
            lambda s, t, e: float(emo(real(s), t, e)),
            ("(v / la - b[k] / lb) ** 2)) / 2", "(v / la - b[k] / lb) ** 2))"),
        ),
        Formula(
            "emoGradient",
            tokens,
            lambda s, t, e: slope(lambda x: emo(x, t, e), s),
            (" - mean)", " + mean)"),
        ),
        Formula(
            "(m, s, t) => m.crossEntropy(s, t)",
            tokens,
            lambda s, t, e: float(functional.cross_entropy(real(s), torch.tensor(t))),
            ("logSumExp(scores) - scores[target]", "logSumExp(scores)"),
        ),
        Formula(
            "(m, s, t) => m.crossEntropyGradient(s, t)",
            tokens,
            lambda s, t, e: slope(lambda x: functional.cross_entropy(x, torch.tensor(t)), s),
            ("p - (i === target ? 1 : 0)", "p + (i === target ? 1 : 0)"),
        ),
    ],
    "08_casrel": [
        Formula(
            "(m, f, n, r) => [m.subjectTags(f, n), m.objectTags(f, f[0].slice(0, 2), n, r)]",
            some_triples,
            tags,
            ("tags[last][1] = 1", "tags[first][1] = 1"),
        ),
        Formula(
            "nearestEnds",
            both_ends,
            nearest_end_spans,
            ("Math.min(...later)", "Math.max(...later)"),
        ),
        Formula(
            "comesBack",
            spans,
            lambda s: (
                set(nearest_end_spans([a for a, _ in s], [b for _, b in s]))
                == {(a, b) for a, b in s}
            ),
            ("end < a || end >= b", "end < a || end > b"),
        ),
    ],
    "09_gplinker": [
        Formula(
            "(m, f, n, r) => { const t = m.tablesOf(f, r);"
            " return [t.subjects, t.objects, t.heads, t.tails]; }",
            triples,
            positives,
            ("links((t) => [t[1], t[4]])", "links((t) => [t[1], t[3]])"),
        ),
        Formula(
            "(m, t) => m.decode(t)",
            tables,
            decoded,
            ("has(tails[r], st, ot)", "has(tails[r], st, oh)"),
        ),
    ],
}


def drawn_inputs(formula: Formula, count: int) -> list[list[Any]]:
    random = np.random.default_rng(list(formula.call.encode()))
    return [formula.inputs(random, k) for k in range(count)]


def apart(got: Any, want: Any) -> float:
    """Return how far two values are apart, infinity where they have different shapes."""
    lists = [isinstance(value, (list, tuple)) for value in (got, want)]
    if all(lists) and len(got) == len(want):
        if all(isinstance(value, float) for value in (*got, *want)):
            gaps = np.abs(np.subtract(got, want)) / np.maximum(1, np.abs(want))
            return float(gaps.max(initial=0))
        return max(map(apart, got, want), default=0.0)
    if any(lists) or not isinstance(got, (bool, int, float)):  # JSON has null for what is no number
        return math.inf
    return 0.0 if got == want else abs(got - want) / max(1.0, abs(want))


def compare(page: Page, chapter: str, formula: Formula, count: int) -> float:
    """Return the largest difference, and fail where it is too large."""
    inputs = drawn_inputs(formula, count)
    call = formula.call if "=>" in formula.call else f"(m, ...all) => m.{formula.call}(...all)"
    # As JSON: it keeps every digit, and the browser's protocol takes long over many numbers.
    answer = page.evaluate(
        "async inputs => { const m = await import('./module.js');"
        f" const call = {call};"
        " return JSON.stringify(JSON.parse(inputs).map(input => call(m, ...input))); }",
        json.dumps(inputs),
    )
    got = json.loads(answer)
    worst, at = max(
        (apart(value, formula.reference(*input)), -k)
        for k, (value, input) in enumerate(zip(got, inputs, strict=True))
    )
    if worst > CLOSE:
        input = inputs[-at]
        raise AssertionError(
            f"{chapter}/explore.js: {formula.name} must be within {CLOSE} of the library, "
            f"got {worst:.1e}: {got[-at]!r:.80} for {formula.reference(*input)!r:.80} "
            f"at {input!r:.160}"
        )
    return worst


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with explore.chromium() as found:
        if found is None:
            reason = "no Chromium on this machine: the explorables were NOT opened"
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
        yield found


@pytest.fixture
def opened(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """Open the page of the chapter that the test is about; nothing may go wrong on it."""
    said: list[str] = []
    chapter = request.getfixturevalue("chapter")
    page = explore.open_page(browser, CHAPTERS[chapter], said)
    yield page
    page.context.close()
    assert said == []


def said(page: Page, name: str) -> str:
    return page.locator(f"#explore-{name} .explore-said").inner_text()


@pytest.mark.parametrize("chapter", FORMULAS)
def test_formulas_are_those_of_the_library(opened: Page, chapter: str):
    found = {
        formula.name: compare(opened, chapter, formula, COUNT) for formula in FORMULAS[chapter]
    }
    print(f"{chapter}: {COUNT} inputs each, largest difference {max(found.values()):.1e}")
    print("  " + ", ".join(f"{name} {worst:.1e}" for name, worst in found.items()))


@pytest.mark.parametrize("chapter", FORMULAS)
def test_a_wrong_formula_is_seen(browser: Browser, chapter: str):
    right = CHAPTERS[chapter].read_text("utf-8")
    for formula in FORMULAS[chapter]:
        old, new = formula.slip
        assert right.count(old) == 1, f"{formula.name}: {old} must be in the module once"
        page = explore.open_page(browser, CHAPTERS[chapter], [], code=right.replace(old, new))
        with pytest.raises(AssertionError, match=rf"{formula.name} must be within") as failure:
            compare(page, chapter, formula, 60)
        print(failure.value)
        page.context.close()


def test_every_formula_is_compared():
    for chapter, module in CHAPTERS.items():
        exported = re.findall(r"^export function (\w+)", module.read_text("utf-8"), re.MULTILINE)
        assert exported
        calls = " ".join(f"m.{f.call}( {f.call}" for f in FORMULAS[chapter])
        assert set(exported) <= set(re.findall(r"m\.(\w+)\(", calls)), chapter


def test_every_chapter_has_one_and_each_is_on_its_page():
    chapters = [folder.name for folder in sorted(explore.BOOK.glob("[0-9][0-9]_*"))]
    assert list(CHAPTERS) == chapters
    for chapter, name in ALL:
        page = (explore.BOOK / chapter / "index.md").read_text("utf-8")
        assert page.count(f"{{explore}} {name}\n") == 1, f"{chapter}: {name}"


def test_they_are_small():
    assert KIT.stat().st_size <= 15_000
    for module in CHAPTERS.values():
        assert module.stat().st_size <= 20_000, module


@pytest.mark.parametrize(("chapter", "name"), ALL)
class TestOne:
    def test_stored_picture_is_what_is_drawn(self, opened: Page, chapter: str, name: str):
        stored = explore.still_of(CHAPTERS[chapter], name).read_text("utf-8")
        assert explore.drawn(opened, name) == stored, "run python -m tools.explore"

    def test_by_keyboard(self, opened: Page, chapter: str, name: str):
        """Tab reaches each control in turn, its keys move it, and the line says so."""
        controls = opened.locator(f"#explore-{name} :is(input, button)")
        start = said(opened, name)
        reached = set()
        for k in range(controls.count()):
            control = controls.nth(k)
            kind = control.get_attribute("type")
            if kind == "radio" and not control.is_checked():
                continue  # Tab stops at the chosen one of a group
            opened.keyboard.press("Tab")
            for _ in range(30):
                if control.evaluate("e => e === document.activeElement"):
                    break
                opened.keyboard.press("Tab")
            else:
                pytest.fail(f"{name}: Tab does not reach control {k}")
            reached.add(kind)
            before = said(opened, name)
            keys = {"range": ["End", "Home"], "checkbox": ["Space"], "radio": ["ArrowDown"]}
            heard = set()
            for key in keys.get(kind, ["Enter"]):
                opened.keyboard.press(key)
                heard.add(said(opened, name))
            if kind == "button":
                continue  # what it does may be done already
            assert heard != {before}, f"{name}: nothing is said of control {k}"
            if kind == "radio":
                opened.keyboard.press("ArrowUp")
            assert opened.evaluate("document.getAnimations().length") == 0
        assert control.inner_text() == "Start again"
        assert said(opened, name) == start
        assert reached >= {"button"}
        assert len(reached) > 1

    def test_by_mouse(self, opened: Page, chapter: str, name: str):
        start = said(opened, name)
        grips = opened.locator(f"#explore-{name} .grip")
        if name in ("asked", "tables"):  # nothing in them has a place to be dragged to
            assert grips.count() == 0
            return
        heard = set()
        for k in range(min(grips.count(), 12)):
            spot = grips.nth(k).bounding_box()
            x, y = spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2
            opened.mouse.move(x, y)
            opened.mouse.down()
            opened.mouse.move(x + 60, y + 30, steps=4)
            opened.mouse.up()
            heard.add(said(opened, name))
        assert heard - {start}

    def test_controls_have_names_and_colours_contrast(self, opened: Page, chapter: str, name: str):
        opened.add_script_tag(path=AXE)
        for scheme, rules in AXE_FOR.items():
            opened.evaluate("mode => { document.documentElement.dataset.theme = mode; }", scheme)
            found = opened.evaluate(AXE_RUN, rules)["violations"]
            assert [v["id"] for v in found] == []

    def test_on_a_phone(self, opened: Page, chapter: str, name: str):
        opened.set_viewport_size(PHONE)
        assert opened.evaluate(WIDER) == []
        size = opened.locator(f"#explore-{name} .explore-picture > svg").evaluate(
            """svg => Math.min(...[...svg.querySelectorAll('text')].map(
              t => parseFloat(getComputedStyle(t).fontSize) * svg.getScreenCTM().a))"""
        )
        assert size >= 9

    def test_in_print(self, opened: Page, chapter: str, name: str):
        opened.emulate_media(media="print")
        figure = opened.locator(f"#explore-{name}")
        assert figure.locator(".explore-picture > svg").is_visible()
        assert not figure.locator("button").first.is_visible()

    def test_without_script(self, browser: Browser, chapter: str, name: str):
        page = explore.open_page(browser, CHAPTERS[chapter], [], java_script_enabled=False)
        figure = page.locator(f"#explore-{name}")
        assert figure.locator("svg text").count() > 0
        assert len(figure.locator(".explore-said").inner_text()) > 20
        assert figure.locator("input").count() == 0
        page.context.close()


def test_by_finger(browser: Browser):
    page = explore.open_page(browser, CHAPTERS["02_zlpr"], [], has_touch=True, viewport=PHONE)
    spot = page.locator("#explore-film .grip").nth(2).bounding_box()  # the third from the left
    x, y = spot["x"] + spot["width"] / 2, spot["y"] + spot["height"] / 2
    touch = page.context.new_cdp_session(page)
    for kind, far in (("Start", 0), ("Move", 30), ("Move", 60), ("Move", 90), ("End", None)):
        points = [] if far is None else [{"x": x - far, "y": y}]
        touch.send("Input.dispatchTouchEvent", {"type": f"touch{kind}", "touchPoints": points})
    assert "all right" in said(page, "film"), "comedy was pulled below the line"
    page.context.close()


CONF = """\
import sys
sys.path.insert(0, {extensions!r})
extensions = ["myst_parser", "explore_ext"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
root_doc = "book/02_zlpr/index"
html_theme = "basic"
html_static_path = [{static!r}]
exclude_patterns = ["site"]
"""
PAGE = """\
# Page

$$
x
$$ (eq:a-b)

```{explore} film
:equations: eq:a-b
:code: lib.zlpr.zlpr_loss

A caption with $x$.
```
"""


def test_a_page_gets_figure_line_and_scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "book" / "02_zlpr"
    folder.mkdir(parents=True)
    (folder / "index.md").write_text(PAGE + "\n```{toctree}\nother\n```\n", "utf-8")
    (folder / "other.md").write_text("# Other\n", "utf-8")
    module = CHAPTERS["02_zlpr"]
    for file in (module, explore.still_of(module, "film")):
        (folder / file.name).write_text(file.read_text("utf-8"), "utf-8")
    conf = CONF.format(extensions=str(explore.BOOK / "_ext"), static=str(explore.BOOK / "_static"))
    (tmp_path / "conf.py").write_text(conf, "utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    with docutils_namespace():
        assert sphinx_build(["-q", str(tmp_path), str(tmp_path / "site")]) == 0
    built = tmp_path / "site" / "book" / "02_zlpr"
    page, other = ((built / f"{name}.html").read_text("utf-8") for name in ("index", "other"))
    figure = page[page.index('<figure class="explorable"') : page.index("</figure>")]
    assert 'data-explore="film"' in figure
    assert '<p class="explore-said" aria-live="polite">Chosen: drama' in figure
    assert "A caption with" in figure
    assert re.search(r'Draws .*href="#equation-eq-a-b"', figure)
    assert "zlpr_loss" in figure
    assert 'type="module"' in page
    assert (tmp_path / "site" / "_static" / explore.SHARED).exists()
    assert "explore" not in other.replace("explore_ext", "")
