"""What is left of a split for the model to learn, or to be found by it, in one line."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from lib.extraction.alignment import LONG_TEXT, UNKNOWN_RELATION, WINDOW, Losses
from lib.extraction.triples import LOUD, REPEATED, TRIMMED, Example

__all__ = ["SplitReport", "report_losses", "report_split"]


class SplitReport(NamedTuple):
    """What there is to say of one split."""

    line: str
    warning: str
    """Empty, unless more than 5 % of the triples are lost."""
    error: str
    """Empty, unless all of its triples are lost."""
    silent: bool
    """Whether nothing was lost or changed."""


def report_split(
    split: str,
    examples: Sequence[Example],
    losses: Losses,
    dropped: Mapping[str, int],
    notes: Mapping[str, int],
) -> SplitReport:
    """Say what a split holds and what of it is lost.

    Parameters
    ----------
    split : str
        Its name.
    examples : sequence of Example
        The split.
    losses : Losses
        What the model's ``prepare`` could not take over of it.
    dropped, notes : mapping of str to int
        Those of the corpus: what its reader could not take over, and what it changed, under keys
        that begin with the name of the split.
    """
    triples = [triple for example in examples for triple in example.triples]
    relations = {triple.relation for triple in triples}
    unread = {
        reason.removeprefix(f"{split}: "): count
        for reason, count in dropped.items()
        if reason.startswith(f"{split}: ")
    }
    trimmed = notes.get(f"{split}: {TRIMMED}", 0)
    unaligned = _of_triples(losses)
    said = [
        f"{split}: {_count(len(examples), 'sentence')}, {_count(len(triples), 'triple')}, "
        f"{_count(len(relations), 'relation')}"
    ]
    if unread:
        said.append("dropped in reading: " + _listed(unread, {}))
    if unaligned:
        said.append("cannot be told: " + _listed(unaligned, losses.first))
    if losses[LONG_TEXT]:
        said.append(
            f"{_count(losses[LONG_TEXT], 'text')} read in {losses[WINDOW]} windows "
            f"[first {losses.first[LONG_TEXT]}]"
        )
    if trimmed:
        said.append(f"{_count(trimmed, 'entity', 'entities')} trimmed of white space at the ends")
    # Triples of relations that the model lacks have their own rule, and repeated ones are not lost.
    of_tokens = sum(n for reason, n in unaligned.items() if reason != UNKNOWN_RELATION)
    lost = of_tokens + sum(n for reason, n in unread.items() if reason != REPEATED)
    total = len(triples) + sum(n for reason, n in unread.items() if reason != REPEATED)
    fate = "cannot be learnt" if split == "train" else "must be missed"
    warning = error = ""
    if lost > LOUD * total:
        warning = f"{split}: {lost} of {total} triples are lost ({lost / total:.0%}): they {fate}"
    known = len(triples) - losses[UNKNOWN_RELATION]
    if of_tokens >= known > 0:
        error = (
            f"{split}: none of the {len(triples)} triples can be told to the model: "
            f"{_listed(unaligned, losses.first)}"
        )
    return SplitReport("; ".join(said), warning, error, not (unread or losses or trimmed))


def report_losses(losses: Losses, triples: int) -> str:
    """Say what of the triples of texts cannot be found; "" if all can, but for their relations."""
    lost = {r: n for r, n in _of_triples(losses).items() if r != UNKNOWN_RELATION}
    if not lost:
        return ""
    return (
        f"{sum(lost.values())} of {triples} triples cannot be told to the model and count as "
        f"missed: {_listed(lost, losses.first)}"
    )


def _of_triples(losses: Losses) -> dict[str, int]:
    """Leave out the counts of texts and windows."""
    return {reason: n for reason, n in losses.items() if reason not in (LONG_TEXT, WINDOW)}


def _listed(counts: Mapping[str, int], first: Mapping[str, str]) -> str:
    return ", ".join(
        f"{count} × {reason}" + (f" [first {first[reason]}]" if first.get(reason) else "")
        for reason, count in sorted(counts.items(), key=lambda pair: -pair[1])
    )


def _count(number: int, name: str, several: str = "") -> str:
    return f"{number} {name if number == 1 else several or name + 's'}"
