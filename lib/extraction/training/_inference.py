"""Use a model: extract from texts, and score what it extracts."""

import math
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from lib.extraction.alignment import TRUNCATED
from lib.extraction.corpora import check_relations
from lib.extraction.metrics import Match, Scores, evaluate_triples
from lib.extraction.training._protocol import Extractor
from lib.extraction.triples import Example, Triple

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["TruncatedTextWarning", "evaluate", "make_accelerator", "predict", "score_items"]


class TruncatedTextWarning(UserWarning):
    """A text is longer than the model reads, so nothing can be found in its end."""


def evaluate(
    model: Extractor,
    examples: Sequence[Example],
    *,
    match: Match = "exact",
    batch_size: int = 32,
    progress: bool = False,
) -> Scores:
    """Extract from the examples' texts and compare with their triples.

    What alignment drops still counts as missed. Texts that are longer than the model reads are cut,
    with one `TruncatedTextWarning` for all.

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
    progress : bool
        Show a bar on standard error if that is a terminal.

    Returns
    -------
    Scores
        The same in every process.

    Raises
    ------
    ValueError
        If there is no example, or an example holds a relation that the model cannot name.
    """
    if not examples:
        raise ValueError("expected at least one example to evaluate, got none")
    check_relations(examples, model.relations)
    items, dropped = model.prepare(examples)
    _warn_of_cuts(dropped[TRUNCATED], len(examples))
    return score_items(model, examples, items, match, batch_size, progress)


def predict(
    model: Extractor,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    progress: bool = False,
) -> list[tuple[tuple[Triple, float], ...]]:
    """Extract triples from texts.

    Texts that are longer than the model reads are cut, with one `TruncatedTextWarning` for all.

    Parameters
    ----------
    model : Extractor
        Moved to the device that computes.
    texts : sequence of str
        May be empty.
    batch_size : int
        Sentences at a time.
    progress : bool
        Show a bar on standard error if that is a terminal.

    Returns
    -------
    list of tuple of (Triple, float)
        One tuple per text, in order; the number is the confidence, above 0.5 and at most 1: the
        logistic function of the smallest score that had to exceed 0. It orders triples; it is not
        the probability that a triple is right. The same in every process.
    """
    items, dropped = model.prepare([Example(str(n), text, ()) for n, text in enumerate(texts)])
    _warn_of_cuts(dropped[TRUNCATED], len(texts))
    found = _extract(model, items, batch_size, progress)
    return [
        tuple((triple, 1 / (1 + math.exp(-score))) for triple, score in sentence)
        for sentence in found
    ]


def score_items(
    model: Extractor,
    examples: Sequence[Example],
    items: list[Any],
    match: Match,
    batch_size: int,
    progress: bool,
) -> Scores:
    found = _extract(model, items, batch_size, progress)
    return evaluate_triples(
        [example.triples for example in examples],
        [[triple for triple, _ in sentence] for sentence in found],
        texts=[example.text for example in examples],
        match=match,
    )


def _warn_of_cuts(count: int, texts: int) -> None:
    """Say once, in one process, how many texts were not read to their end."""
    if count and make_accelerator().is_main_process:
        message = f"{count} of {texts} texts are longer than the model reads; their ends were cut"
        warnings.warn(message, TruncatedTextWarning, stacklevel=3)


def _extract(
    model: Extractor, items: list[Any], batch_size: int, progress: bool
) -> list[tuple[tuple[Triple, float], ...]]:
    """Extract in batches of similar length, every process its share, and gather in order."""
    from accelerate.utils import gather_object

    accelerator = make_accelerator()
    order = sorted(range(len(items)), key=lambda i: len(items[i]))
    batches = [order[cut : cut + batch_size] for cut in range(0, len(order), batch_size)]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    model.to(accelerator.device)
    model.train(False)
    shown = progress and accelerator.is_main_process
    found: list[tuple[int, tuple[tuple[Triple, float], ...]]] = []
    with torch.no_grad(), accelerator.autocast():
        for batch in tqdm(mine, "extract", disable=None if shown else True, leave=False):
            found += zip(batch, model.extract_scored([items[i] for i in batch]), strict=True)
    by_index = dict(gather_object(found))
    return [by_index[i] for i in range(len(items))]


def make_accelerator() -> "Accelerator":
    """Return accelerate's view of the machine: CUDA, with bf16 where it has that, else CPU.

    Under ``accelerate launch`` it joins the other processes; with ``--mixed_precision bf16`` there,
    a CPU computes in bf16 too, which those that know it do faster.
    """
    from accelerate import Accelerator, PartialState

    device = PartialState(cpu=not torch.cuda.is_available()).device.type
    half = device == "cuda" and torch.cuda.is_bf16_supported()
    half = half or os.environ.get("ACCELERATE_MIXED_PRECISION") == "bf16"
    return Accelerator(cpu=device == "cpu", mixed_precision="bf16" if half else "no")
