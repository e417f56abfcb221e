"""Precision, recall and F1 of predicted triples, in total, per relation and per overlap pattern.

What counts as equal is said by ``match``:

- ``"exact"``: both spans and the relation agree. Positions count, so the right words at another
  place of the text are wrong. The default, and the rule for corpora that annotate positions.
- ``"typed"``: as ``"exact"``, and the types of both entities agree. An entity without a type has a
  type of its own, so a model that names none is right only where the annotation names none.
- ``"text"``: the words of both spans and the relation agree, wherever they stand. The rule of the
  published results on corpora that annotate words only (NYT, WebNLG, DuIE).
- ``"partial"``: as ``"text"``, but only the last word of each span counts. The rule for the
  starred corpora (NYT*, WebNLG*), which annotate the last word of each entity only. The published
  code of CasRel keeps the *first* word instead; as the annotation is one word, the two rules
  differ only where a model predicts several, and there the last word is the annotated one.

Triples are compared as sets within each text: a triple predicted twice counts once. Of a symmetric
relation, (a, r, b) and (b, r, a) are one triple.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lib.extraction.triples import PATTERNS, Span, Triple, overlap_patterns

__all__ = ["Counts", "Match", "Scores", "evaluate_triples", "triple_key"]

Match = Literal["exact", "typed", "text", "partial"]

SIZES = ("1", "2", "3", "4", "5+")
"""How texts are grouped by the number of their gold triples."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many triples are right (``tp``), predicted and true; the rates follow from these.

    A rate whose denominator is 0 is 0.0, never NaN: with nothing predicted the precision is 0.0,
    with nothing to find the recall is 0.0. The counts stand beside the rates to tell such a zero
    from an earned one.

    Examples
    --------
    >>> counts = Counts(tp=1, predicted=2, gold=4)
    >>> counts.precision, counts.recall, round(counts.f1, 4)
    (0.5, 0.25, 0.3333)
    >>> Counts().f1
    0.0
    """

    tp: int = 0
    predicted: int = 0
    gold: int = 0

    @property
    def precision(self) -> float:
        """Return tp / predicted."""
        return self.tp / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        """Return tp / gold."""
        return self.tp / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Return 2 tp / (predicted + gold), the harmonic mean of the other two."""
        total = self.predicted + self.gold
        return 2 * self.tp / total if total else 0.0

    def __add__(self, other: "Counts") -> "Counts":
        """Add count by count."""
        return Counts(self.tp + other.tp, self.predicted + other.predicted, self.gold + other.gold)

    def to_dict(self) -> dict[str, float]:
        """Return rates and counts for JSON."""
        return {
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "tp": self.tp,
            "predicted": self.predicted,
            "gold": self.gold,
        }


@dataclass(frozen=True, slots=True)
class Scores:
    """The result of `evaluate_triples`.

    Attributes
    ----------
    match : str
        The rule of equality.
    micro : Counts
        Over all triples of all texts.
    relations : dict of str to Counts
        Per relation that occurs in the gold or the predicted triples, by name.
    patterns : dict of str to Counts
        Per overlap pattern of the text's gold triples, all of `PATTERNS`. As patterns are not
        exclusive, these do not add up to ``micro``.
    sizes : dict of str to Counts
        Per number of gold triples in the text: ``"1"`` to ``"4"`` and ``"5+"``. Predictions in
        texts without gold triples are in ``micro`` and ``relations`` only.
    texts : dict of str to int
        The number of texts in each of `patterns` and `sizes`, and in ``"all"``. A text without
        gold triples counts in ``"all"`` only.
    """

    match: Match
    micro: Counts
    relations: dict[str, Counts]
    patterns: dict[str, Counts]
    sizes: dict[str, Counts]
    texts: dict[str, int]

    @property
    def precision(self) -> float:
        """Return the micro precision."""
        return self.micro.precision

    @property
    def recall(self) -> float:
        """Return the micro recall."""
        return self.micro.recall

    @property
    def f1(self) -> float:
        """Return the micro F1."""
        return self.micro.f1

    @property
    def macro_precision(self) -> float:
        """Return the mean precision over `relations`; 0.0 without any."""
        return _mean([counts.precision for counts in self.relations.values()])

    @property
    def macro_recall(self) -> float:
        """Return the mean recall over `relations`; 0.0 without any."""
        return _mean([counts.recall for counts in self.relations.values()])

    @property
    def macro_f1(self) -> float:
        """Return the mean F1 over `relations`; 0.0 without any."""
        return _mean([counts.f1 for counts in self.relations.values()])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain dicts, lists and numbers for JSON."""
        return {
            "match": self.match,
            **self.micro.to_dict(),
            "macro_precision": self.macro_precision,
            "macro_recall": self.macro_recall,
            "macro_f1": self.macro_f1,
            "relations": {name: counts.to_dict() for name, counts in self.relations.items()},
            "patterns": {name: counts.to_dict() for name, counts in self.patterns.items()},
            "sizes": {name: counts.to_dict() for name, counts in self.sizes.items()},
            "texts": dict(self.texts),
        }

    def table(self) -> str:
        """Return a table for reading: total, macro mean, patterns, sizes and relations.

        A rate of nothing is shown as "–": a precision where nothing is predicted, a recall or an F1
        where there is nothing to find.
        """
        rows = [_row("all (micro)", self.micro)]
        means = (self.macro_precision, self.macro_recall, self.macro_f1)
        rows.append(("mean over relations", *(f"{x:.4f}" for x in means), "", "", ""))
        rows += [_row(name, self.patterns[name]) for name in PATTERNS]
        rows += [_row(f"{name} per text", self.sizes[name]) for name in SIZES]
        rows += [_row(name, counts) for name, counts in self.relations.items()]
        head = (f"match: {self.match}", "precision", "recall", "F1", "tp", "predicted", "gold")
        width = max(len(row[0]) for row in [head, *rows])
        return "\n".join(
            row[0].ljust(width) + "".join(cell.rjust(10) for cell in row[1:])
            for row in [head, *rows]
        )


def evaluate_triples(
    gold: Sequence[Collection[Triple]],
    predicted: Sequence[Collection[Triple]],
    *,
    texts: Sequence[str] | None = None,
    match: Match = "exact",
    symmetric: Collection[str] = (),
) -> Scores:
    """Score predicted triples against the gold triples of the same texts.

    Parameters
    ----------
    gold, predicted : sequence of collections of Triple
        One collection per text, in the same order. A collection may be empty.
    texts : sequence of str, optional
        The texts. Needed, and only used, by the rules ``"text"`` and ``"partial"``.
    match : {"exact", "typed", "text", "partial"}
        What counts as equal; see the top of this module.
    symmetric : collection of str
        The relations that hold both ways or not at all, such as ``"sibling of"``. Their triples
        count once, whichever entity comes first.

    Returns
    -------
    Scores
        Micro and macro averages and all parts with their counts.

    Raises
    ------
    ValueError
        If the lengths differ, `match` is unknown, or `texts` is missing where it is needed.

    Examples
    --------
    >>> a, b, c = Span(0, 3), Span(4, 7), Span(8, 11)
    >>> scores = evaluate_triples([[Triple(a, "r", b), Triple(a, "r", c)]], [[Triple(a, "r", b)]])
    >>> scores.precision, scores.recall, scores.patterns["SEO"].gold
    (1.0, 0.5, 2)
    >>> evaluate_triples([[Triple(a, "r", b)]], [[Triple(b, "r", a)]], symmetric=["r"]).f1
    1.0
    """
    if len(predicted) != len(gold):
        raise ValueError(
            f"gold and predicted must be about the same texts: expected {len(gold)} collections "
            f"in predicted, got {len(predicted)}"
        )
    if match not in get_args(Match):
        raise ValueError(f"match must be one of {get_args(Match)}, got {match!r}")
    if isinstance(symmetric, str):
        raise ValueError(f"symmetric must be a collection of relations, got {symmetric!r}")
    if match not in ("exact", "typed") and texts is None:
        raise ValueError(f"match={match!r} compares words and needs texts, got None")
    if texts is not None and len(texts) != len(gold):
        raise ValueError(
            f"texts must hold {len(gold)} texts, one per gold collection, got {len(texts)}"
        )

    micro = Counts()
    relations: defaultdict[str, Counts] = defaultdict(Counts)
    patterns = dict.fromkeys(PATTERNS, Counts())
    sizes = dict.fromkeys(SIZES, Counts())
    number = Counter(dict.fromkeys(("all", *PATTERNS, *SIZES), 0))
    for index, (true, guess) in enumerate(zip(gold, predicted, strict=True)):
        key = triple_key(match, texts[index] if texts is not None else "", symmetric)
        true_keys = {key(triple): triple.relation for triple in true}
        guess_keys = {key(triple): triple.relation for triple in guess}
        counts = Counts(len(true_keys.keys() & guess_keys.keys()), len(guess_keys), len(true_keys))
        micro += counts
        number["all"] += 1
        for k in true_keys.keys() | guess_keys.keys():
            is_true, is_guess = k in true_keys, k in guess_keys
            name = true_keys[k] if is_true else guess_keys[k]
            relations[name] += Counts(is_true and is_guess, is_guess, is_true)
        if true_keys:
            size = str(len(true_keys)) if len(true_keys) < 5 else "5+"
            sizes[size] += counts
            number[size] += 1
            for pattern in overlap_patterns(true):
                patterns[pattern] += counts
                number[pattern] += 1
    return Scores(match, micro, dict(sorted(relations.items())), patterns, sizes, dict(number))


def triple_key(
    match: Match, text: str, symmetric: Collection[str] = ()
) -> Callable[[Triple], Hashable]:
    """Return the function that maps triples of one text to equal keys where they count as equal.

    Parameters
    ----------
    match, symmetric
        As of `evaluate_triples`.
    text : str
        The text; looked at only by the rules that compare words.

    Examples
    --------
    >>> key = triple_key("text", "Ada met Ada")
    >>> met = Triple(Span(0, 3), "met", Span(8, 11))
    >>> key(met) == key(Triple(Span(8, 11), "met", Span(0, 3)))
    True
    """

    def entity(span: Span) -> tuple[Any, ...]:
        if match == "exact":
            return span.start, span.end
        if match == "typed":
            return span.start, span.end, span.type
        full = span.of(text)
        # A span of white space has no last word; it then stands for itself.
        return (full if match == "text" else (full.split() or [full])[-1],)

    def key(triple: Triple) -> Hashable:
        ends = entity(triple.subject), entity(triple.object)
        return triple.relation, *(sorted(ends) if triple.relation in symmetric else ends)

    return key


def _mean(values: Sequence[float]) -> float:
    """Return the mean, 0.0 of nothing."""
    return sum(values) / len(values) if values else 0.0


def _row(name: str, counts: Counts) -> tuple[str, ...]:
    """Return one line of the table."""
    rates = (
        f"{counts.precision:.4f}" if counts.predicted else "–",
        *(f"{rate:.4f}" if counts.gold else "–" for rate in (counts.recall, counts.f1)),
    )
    return (name, *rates, str(counts.tp), str(counts.predicted), str(counts.gold))
