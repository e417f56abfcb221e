"""What a model gets wrong, text by text, and which of its tables said no; as data and as a page."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from lib.extraction.alignment import LONG_TEXT, UNKNOWN_RELATION, WINDOW, Losses
from lib.extraction.metrics import Match, triple_key
from lib.extraction.thresholds import Threshold, both_thresholds
from lib.extraction.training import Extractor, predict
from lib.extraction.triples import Example, Span, Triple

__all__ = ["Missed", "TextErrors", "Wrong", "errors_page", "find_errors"]

DISAGREE = "every table said yes, but not to these borders together"
"""Why a triple is missed of which each table has all that it needs."""


@dataclass(frozen=True, slots=True)
class Missed:
    """A triple that is there and was not found.

    Parameters
    ----------
    triple : Triple
        As annotated.
    said_no : tuple of str
        The tables whose score does not exceed the threshold.
    reason : str
        Why it was missed where no table can be blamed; else empty.
    scores : tuple of float
        What each table says, in the order of the model's ``tables``; empty if none was asked.
    """

    triple: Triple
    said_no: tuple[str, ...]
    reason: str
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Wrong:
    """A triple that was found and is not there, with what comes nearest to it."""

    triple: Triple
    confidence: float
    reason: str


@dataclass(frozen=True, slots=True)
class TextErrors:
    """A text with what was missed in it, what was wrong, and what was right."""

    example: Example
    missed: tuple[Missed, ...]
    wrong: tuple[Wrong, ...]
    right: tuple[Triple, ...]


def find_errors(
    model: Extractor,
    examples: Sequence[Example],
    *,
    match: Match = "exact",
    threshold: Threshold | None = None,
    batch_size: int = 32,
) -> list[TextErrors]:
    """List the texts in which a model misses a triple or finds a wrong one.

    Parameters
    ----------
    model : Extractor
        Moved to the device that computes.
    examples : sequence of Example
        Their triples are what there is to find.
    match : {"exact", "text", "partial"}
        What counts as equal, as in `lib.extraction.metrics.evaluate_triples`; the model's symmetric
        relations are.
    threshold : float, two of them, or None
        As of `lib.extraction.training.evaluate`.
    batch_size : int
        Sentences at a time.

    Returns
    -------
    list of TextErrors
        In the order of the examples; texts without an error are left out.

    Raises
    ------
    ValueError
        If the threshold is not finite.
    """
    both = both_thresholds(model.decoding.threshold if threshold is None else threshold)
    found = predict(model, examples, threshold=both, batch_size=batch_size, long=Losses())
    errors = []
    for example, scored in zip(examples, found, strict=True):
        key = triple_key(match, example.text, model.symmetric)
        gold = {key(triple): triple for triple in example.triples}
        guesses = {key(triple): (triple, confidence) for triple, confidence in scored}
        missed = [triple for name, triple in gold.items() if name not in guesses]
        wrong = [pair for name, pair in guesses.items() if name not in gold]
        if missed or wrong:
            errors.append(
                TextErrors(
                    example,
                    _explained(model, example, missed, both),
                    tuple(Wrong(t, c, _nearest(t, example)) for t, c in wrong),
                    tuple(triple for name, triple in gold.items() if name in guesses),
                )
            )
    return errors


def _explained(
    model: Extractor, example: Example, missed: Iterable[Triple], both: tuple[float, float]
) -> tuple[Missed, ...]:
    """Ask the tables about the triples of one text that were missed."""
    items, losses = model.prepare([example])
    scores: dict[Triple, tuple[float, ...]] = {}
    for of_item in model.table_scores(items):
        for triple, of_triple in of_item:  # of several windows the one that comes nearest
            scores[triple] = max(of_triple, scores.get(triple, of_triple), key=min)
    half = len(model.tables) // 2
    thresholds = (both[0],) * half + (both[1],) * half
    reasons = [r for r in losses if r not in (LONG_TEXT, WINDOW, UNKNOWN_RELATION)]
    explained = []
    for triple in missed:
        of_triple = scores.get(triple, ())
        said_no = tuple(
            name
            for name, score, threshold in zip(model.tables, of_triple, thresholds, strict=False)
            if not score > threshold
        )
        reason = ""
        if triple.relation not in model.relations:
            reason = UNKNOWN_RELATION
        elif not of_triple:
            reason = " or ".join(reasons)
        elif not said_no:
            reason = DISAGREE
        explained.append(Missed(triple, said_no, reason, of_triple))
    return tuple(explained)


def _nearest(wrong: Triple, example: Example) -> str:
    """Say which triple of the text comes nearest to a wrong one, and what differs."""

    def words(triple: Triple) -> str:
        subject, object_ = triple.subject.of(example.text), triple.object.of(example.text)
        return f"{subject} | {triple.relation} | {object_}"

    ends = wrong.subject, wrong.object
    for triple in example.triples:
        if (triple.subject, triple.object) == ends:
            return f"another relation: {words(triple)}"
    for triple in example.triples:
        if (triple.object, triple.subject) == ends and triple.relation == wrong.relation:
            return f"subject and object exchanged: {words(triple)}"
    for triple in example.triples:
        if (
            triple.relation == wrong.relation
            and triple.subject.overlaps(wrong.subject)
            and triple.object.overlaps(wrong.object)
        ):
            return f"other borders: {words(triple)}"
    return "nothing like it is annotated"


_STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
section { border-top: 1px solid #8886; padding: 0.5rem 0; }
table { border-collapse: collapse; }
th, td { padding: 0.1rem 0.8rem 0.1rem 0; text-align: left; vertical-align: top; }
.id { opacity: 0.7; }
.missed { color: light-dark(#a33800, #ffb088); }
.wrong { color: light-dark(#7a1fa2, #dfa6ff); }
.no { font-weight: bold; text-decoration: underline; }
b { font-weight: normal; border-bottom: 2px solid #888; }
"""


def errors_page(
    errors: Sequence[TextErrors], *, tables: Sequence[str], texts: int, title: str
) -> str:
    """Write errors as one page of HTML that needs no other file.

    Parameters
    ----------
    errors : sequence of TextErrors
        As of `find_errors`.
    tables : sequence of str
        The model's ``tables``.
    texts : int
        How many texts there are, with those that have no error.
    title : str
        What the page is about.

    Returns
    -------
    str
        The page. Texts and names are escaped.
    """
    blamed = Counter(
        name for error in errors for m in error.missed for name in (m.said_no or (m.reason,))
    )
    likeness = Counter(w.reason.partition(":")[0] for error in errors for w in error.wrong)
    missed, wrong = (sum(len(getattr(e, name)) for e in errors) for name in ("missed", "wrong"))
    parts = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style>",
        f"<h1>{escape(title)}</h1>",
        f"<p>{len(errors)} of {texts} texts have an error: {missed} triples were missed, {wrong} "
        "found that are not there. An underlined table said no; with a miss stand the scores of "
        "all.</p>",
        _counts("Missed, by the tables that said no (a triple may have several)", blamed),
        _counts("Wrong, by what comes nearest", likeness),
    ]
    for error in errors:
        parts.append(f'<section><p class="id">{escape(error.example.id)}</p>')
        parts.append(f"<p>{_marked(error)}</p><table>")
        for m in error.missed:
            said = escape(m.reason)
            if m.scores:
                said = ", ".join(
                    f'<span class="no">{escape(name)} {score:.2f}</span>'
                    if name in m.said_no
                    else f"{escape(name)} {score:.2f}"
                    for name, score in zip(tables, m.scores, strict=True)
                ) + (f": {said}" if said else "")
            parts.append(_row("missed", m.triple, error.example, said))
        for w in error.wrong:
            said = f"{w.confidence:.2f}: {escape(w.reason)}"
            parts.append(_row("wrong", w.triple, error.example, said))
        for triple in error.right:
            parts.append(_row("right", triple, error.example, ""))
        parts.append("</table></section>")
    return "\n".join(parts) + "\n</html>\n"


def _counts(caption: str, counts: Counter[str]) -> str:
    """Write counts as a table, the largest first."""
    rows = "".join(f"<tr><td>{escape(n)}<td>{count}" for n, count in counts.most_common())
    return f"<table><caption>{escape(caption)}</caption>{rows}</table>" if counts else ""


def _row(kind: str, triple: Triple, example: Example, said: str) -> str:
    """Write one triple of a text."""
    cells = (triple.subject.of(example.text), triple.relation, triple.object.of(example.text))
    words = "".join(f"<td>{escape(cell)}" for cell in cells)
    return f'<tr class="{kind}"><th>{kind}{words}<td>{said}'


def _marked(error: TextErrors) -> str:
    """Write the text, with the entities of its triples underlined, annotated or found."""
    triples = [*(m.triple for m in error.missed), *(w.triple for w in error.wrong), *error.right]
    spans = sorted({span for t in triples for span in (t.subject, t.object)})
    whole: list[Span] = []
    for span in spans:  # what overlaps is underlined as one
        if whole and whole[-1].overlaps(span):
            whole[-1] = Span(whole[-1].start, max(whole[-1].end, span.end))
        else:
            whole.append(span)
    text, parts, reach = error.example.text, [], 0
    for span in whole:
        parts += [escape(text[reach : span.start]), f"<b>{escape(span.of(text))}</b>"]
        reach = span.end
    return "".join(parts) + escape(text[reach:])
