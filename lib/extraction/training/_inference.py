"""Use a model: extract from texts, and score what it extracts."""

import os
import warnings
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from lib._checks import check_threshold
from lib._extras import needs
from lib.extraction.alignment import LONG_TEXT, WINDOW, Losses
from lib.extraction.calibration import Candidates
from lib.extraction.corpora import describe_unknown
from lib.extraction.metrics import Match, Scores, evaluate_triples, triple_key
from lib.extraction.thresholds import Threshold, both_thresholds
from lib.extraction.training._protocol import Extractor
from lib.extraction.training._report import report_losses
from lib.extraction.triples import Example, Triple

with needs("extraction"):
    from tqdm import tqdm

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "LongTextWarning",
    "LostTripleWarning",
    "UnknownRelationWarning",
    "choose_device",
    "evaluate",
    "find_candidates",
    "make_accelerator",
    "predict",
    "score_items",
    "warn_of_long_texts",
]


class LongTextWarning(UserWarning):
    """A text is longer than the model reads at once, so it is read in overlapping windows."""


class LostTripleWarning(UserWarning):
    """Triples cannot be told to the model, so it must miss them."""


class UnknownRelationWarning(UserWarning):
    """Triples have a relation that the model cannot name, so it must miss them."""


def evaluate(
    model: Extractor,
    examples: Sequence[Example],
    *,
    match: Match = "exact",
    batch_size: int = 32,
    threshold: Threshold | None = None,
    progress: bool = False,
) -> Scores:
    """Extract from the examples' texts and compare with their triples.

    What alignment drops still counts as missed, with one `LostTripleWarning` for all, and so do
    triples of a relation that the model cannot name, with one `UnknownRelationWarning`. Texts that
    are longer than the model reads at once are read in windows, as by `predict`. Triples of the
    model's symmetric relations count once, whichever entity comes first.

    Parameters
    ----------
    model : Extractor
        Moved to the device that computes.
    examples : sequence of Example
        At least one.
    match : {"exact", "text", "partial"}
        As in `lib.extraction.metrics.evaluate_triples`.
    batch_size : int
        Sentences at a time.
    threshold : float, two of them, or None
        What all scores of a triple must exceed, or those of each kind of table; finite. None: what
        the model's `decoding` says.
    progress : bool
        Show a bar on standard error if that is a terminal.

    Returns
    -------
    Scores
        The same in every process.

    Raises
    ------
    ValueError
        If there is no example, or the threshold is not finite.
    """
    both = both_thresholds(model.decoding.threshold if threshold is None else threshold)
    items = _prepare_labelled(model, examples)
    return score_items(model, examples, items, match, batch_size, progress, both)


def find_candidates(
    model: Extractor,
    examples: Sequence[Example],
    *,
    floor: float,
    match: Match = "exact",
    batch_size: int = 32,
    progress: bool = False,
) -> list[Candidates]:
    """Find out what of the examples' triples is found at which threshold.

    What `evaluate` counts at a threshold from `floor` on is what
    `lib.extraction.calibration.counts_at` counts of the result. It warns as `evaluate` does.

    Parameters
    ----------
    model : Extractor
        Moved to the device that computes.
    examples : sequence of Example
        At least one.
    floor : float
        The least threshold that is of interest; finite. The lower it is, the more is found.
    match : {"exact", "text", "partial"}
        As in `lib.extraction.metrics.evaluate_triples`.
    batch_size : int
        Sentences at a time.
    progress : bool
        Show a bar on standard error if that is a terminal.

    Returns
    -------
    list of Candidates
        One per example, in order; the same in every process.

    Raises
    ------
    ValueError
        If there is no example, or `floor` is not finite.
    """
    check_threshold("floor", floor)
    items = _prepare_labelled(model, examples)
    owners = [item.example for item in items]
    read = partial(model.candidates, floor=floor)
    found = _extract(model, items, owners, batch_size, progress, read)
    sentences = []
    for index, example in enumerate(examples):
        key = triple_key(match, example.text, model.symmetric)
        gold = {key(triple) for triple in example.triples}
        ranges: dict[Hashable, list[tuple[float, float]]] = {}
        for triple, low, score in found[index]:
            ranges.setdefault(key(triple), []).append((low, score))
        joined = [(name, *pair) for name, pairs in ranges.items() for pair in _joined(pairs)]
        sentences.append(
            Candidates(
                tuple(score for _, _, score in joined),
                tuple(name in gold for name, _, _ in joined),
                len(gold),
                tuple(low for _, low, _ in joined),
            )
        )
    return sentences


def predict(
    model: Extractor,
    texts: Sequence[str | Example],
    *,
    batch_size: int = 32,
    threshold: Threshold | None = None,
    device: str | torch.device | None = None,
    progress: bool = False,
    failed: dict[int, Exception] | None = None,
    long: Losses | None = None,
) -> list[tuple[tuple[Triple, float], ...]]:
    """Extract triples from texts.

    Texts that are longer than the model reads at once are read in overlapping windows
    (:func:`lib.extraction.windows.windows`), with one `LongTextWarning` for all. Of a triple that
    several windows find, the best confidence is kept; entities that no window holds together are
    in no triple.

    Parameters
    ----------
    model : Extractor
        Moved to the device that computes.
    texts : sequence of str or Example
        May be empty. Of an example only the text is read; it says where its text comes from.
    batch_size : int
        Sentences at a time.
    threshold : float, two of them, or None
        What all scores of a triple must exceed, or those of each kind of table; finite. None: what
        the model's `decoding` says.
    device : str, torch.device or None
        Where to compute; None: CUDA where it is, else the CPU.
    progress : bool
        Show a bar on standard error if that is a terminal.
    failed : dict, optional
        Receives what was raised for a text, by its index; the text then has no triples, and the
        others have theirs. None: the first error ends the call.
    long : Losses, optional
        Receives how many texts were read in windows, and where the first is, in place of the
        warning.

    Returns
    -------
    list of tuple of (Triple, float)
        One tuple per text, in order; the number is the confidence that the model's `decoding` makes
        of the smallest score that had to exceed the threshold. Of a model that was not calibrated
        it is above 0.5 and at most 1 if the threshold is 0, and orders triples; it is not the
        probability that a triple is right. The same in every process.

    Raises
    ------
    ValueError
        If the threshold is not finite.
    """
    both = both_thresholds(model.decoding.threshold if threshold is None else threshold)
    examples = [
        replace(text, triples=()) if isinstance(text, Example) else Example(str(n), text)
        for n, text in enumerate(texts)
    ]
    try:
        items, losses = model.prepare(examples)
        owners = [item.example for item in items]
    except Exception:  # whatever a tokenizer finds wrong with a text: it is found out one by one
        if failed is None:
            raise
        items, owners, losses = _prepare_each(model, examples, failed)
    if long is None:
        warn_of_long_texts(losses, len(texts))
    else:
        long.include(losses)
    read = partial(model.extract_scored, threshold=both)
    found = _extract(model, items, owners, batch_size, progress, read, device, failed)
    return [
        tuple(
            (triple, model.decoding.confidence(score))
            for triple, score in _best(found.get(index, ())).items()
        )
        for index in range(len(texts))
    ]


def score_items(
    model: Extractor,
    examples: Sequence[Example],
    items: list[Any],
    match: Match,
    batch_size: int,
    progress: bool,
    threshold: tuple[float, float] = (0.0, 0.0),
) -> Scores:
    owners = [item.example for item in items]
    read = partial(model.extract_scored, threshold=threshold)
    found = _extract(model, items, owners, batch_size, progress, read)
    return evaluate_triples(
        [example.triples for example in examples],
        [list(_best(found[index])) for index in range(len(examples))],
        texts=[example.text for example in examples],
        match=match,
        symmetric=model.symmetric,
    )


def _prepare_labelled(model: Extractor, examples: Sequence[Example]) -> list[Any]:
    """Prepare texts whose triples are to be found; say once, in one process, which cannot be."""
    if not examples:
        raise ValueError("expected at least one example to evaluate, got none")
    unknown = describe_unknown(examples, model.relations)
    items, losses = model.prepare(examples)
    lost = report_losses(losses, sum(len(example.triples) for example in examples))
    if make_accelerator().is_main_process:
        if unknown:
            message = f"{unknown} counted as missed: the model does not know it"
            warnings.warn(message, UnknownRelationWarning, stacklevel=3)
        if lost:
            warnings.warn(lost, LostTripleWarning, stacklevel=3)
    warn_of_long_texts(losses, len(examples))
    return items


def _best(found: Iterable[tuple[Triple, float]]) -> dict[Triple, float]:
    """Return each triple once, with its best score: windows of one text overlap."""
    best: dict[Triple, float] = {}
    for triple, score in found:
        best[triple] = max(score, best.get(triple, score))
    return best


def _joined(ranges: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the union of ranges ``[low, high)`` as ranges of which no two touch."""
    joined: list[tuple[float, float]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(high, joined[-1][1])
        else:
            joined.append((low, high))
    return joined


def warn_of_long_texts(losses: Losses, texts: int) -> None:
    """Say once, in one process, how many texts were read in windows, and where the first is.

    Parameters
    ----------
    losses : Losses
        As of a model's ``prepare``, or of several calls together.
    texts : int
        How many texts there are, with those that were read.
    """
    if losses[LONG_TEXT] and make_accelerator().is_main_process:
        first = losses.first.get(LONG_TEXT)
        message = (
            f"{losses[LONG_TEXT]} of {texts} texts are longer than the model reads at once: read "
            f"in {losses[WINDOW]} overlapping windows"
        )
        message += f" (first {first})" if first else ""
        warnings.warn(message, LongTextWarning, stacklevel=3)


def _prepare_each(
    model: Extractor, examples: Sequence[Example], failed: dict[int, Exception]
) -> tuple[list[Any], list[int], Losses]:
    """Prepare the examples one by one; return the items of those with which it works, and whose."""
    items: list[Any] = []
    owners: list[int] = []
    losses = Losses()
    for index, example in enumerate(examples):
        try:
            found, counts = model.prepare([example])
        except Exception as error:  # whatever a tokenizer finds wrong with a text
            failed[index] = error
        else:
            items += found
            owners += [index] * len(found)
            losses.include(counts)
    return items, owners, losses


def _extract(
    model: Extractor,
    items: Sequence[Any],
    owners: Sequence[int],
    batch_size: int,
    progress: bool,
    read: Callable[[list[Any]], Sequence[Sequence[Any]]],
    device: str | torch.device | None = None,
    failed: dict[int, Exception] | None = None,
) -> dict[int, list[Any]]:
    """Extract in batches of similar length, every process its share, and gather by text.

    `owners` are the indices of the items' texts. `read` returns what is found, for each item of a
    batch. A batch in which something fails is done again item by item, if `failed` is there to
    receive, by text, what fails then.
    """
    with needs("extraction"):
        from accelerate.utils import gather_object

    accelerator = make_accelerator()
    order = sorted(range(len(items)), key=lambda i: len(items[i]))
    batches = [order[cut : cut + batch_size] for cut in range(0, len(order), batch_size)]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    where = accelerator.device if device is None else torch.device(device)
    half = accelerator.autocast() if where.type == accelerator.device.type else nullcontext()
    model.to(where)
    model.train(False)
    shown = progress and accelerator.is_main_process
    found: list[tuple[int, Sequence[Any] | Exception]] = []
    with torch.no_grad(), half:
        for batch in tqdm(mine, "extract", disable=None if shown else True, leave=False):
            try:
                found += zip(batch, read([items[i] for i in batch]), strict=True)
            except Exception:  # whatever one text of the batch makes a model raise
                if failed is None:
                    raise
                found += [(i, _extract_one(read, items[i])) for i in batch]
    by_text: dict[int, list[Any]] = {}
    for index, result in sorted(gather_object(found), key=lambda pair: pair[0]):
        of_text = by_text.setdefault(owners[index], [])
        if isinstance(result, Exception):
            assert failed is not None
            failed[owners[index]] = result
        else:
            of_text += result
    return by_text


def _extract_one(
    read: Callable[[list[Any]], Sequence[Sequence[Any]]], item: Any
) -> Sequence[Any] | Exception:
    """Return what is found in one item, or what was raised for it."""
    try:
        (found,) = read([item])
    except Exception as error:  # whatever one text makes a model raise
        return error
    return found


def choose_device(device: str) -> None:
    """Choose where this process computes, before anything has been computed.

    Parameters
    ----------
    device : {"cpu", "cuda", "mps"}
        Processor, NVIDIA or AMD GPU, GPU of Apple.

    Raises
    ------
    ValueError
        If it is not here, or the process computes elsewhere already.
    """
    with needs("extraction"):
        from accelerate import PartialState

    here = ["cpu"]
    here += ["cuda"] if torch.cuda.is_available() else []
    here += ["mps"] if torch.backends.mps.is_available() else []
    if device not in here:
        raise ValueError(f"--device must be one that is here, {', '.join(here)}, got {device!r}")
    chosen = PartialState(cpu=device == "cpu").device.type
    if chosen != device:
        raise ValueError(f"--device must be {chosen!r}, where this process works, got {device!r}")


def make_accelerator() -> "Accelerator":
    """Return accelerate's view of the machine: CUDA, with bf16 where it has that, else CPU.

    Under ``accelerate launch`` it joins the other processes; with ``--mixed_precision bf16`` there,
    a CPU computes in bf16 too, which those that know it do faster.
    """
    with needs("extraction"):
        from accelerate import Accelerator, PartialState

    # Where the command has chosen a device, the state is there already, and this changes nothing.
    device = PartialState(cpu=not torch.cuda.is_available()).device.type
    half = device == "cuda" and torch.cuda.is_bf16_supported()
    half = half or os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"
    return Accelerator(cpu=device == "cpu", mixed_precision="bf16" if half else "no")
