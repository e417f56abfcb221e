"""Decoding as published: each text is encoded again for every subject. For comparison only."""

from collections.abc import Sequence

import torch

from lib.casrel.decoding import TaggedSpans
from lib.casrel.model import CasRel
from lib.extraction.model import Item
from lib.extraction.triples import Triple

__all__ = ["extract_reencoding"]


@torch.no_grad()
def extract_reencoding(
    model: CasRel, items: Sequence[Item]
) -> list[tuple[tuple[Triple, float], ...]]:
    """Find the triples of texts as the published program does, text by text.

    Its object model takes token ids, so a text with k subjects is encoded once to find them and
    then as a batch of k copies. The result is that of :meth:`CasRel.extract_scored` to rounding,
    which encodes each text once; this form is here to measure what that saves.

    Parameters
    ----------
    model : CasRel
        Put into evaluation mode while it works.
    items : sequence of Item
        As of :meth:`CasRel.prepare`; their triples are not looked at.

    Returns
    -------
    list of tuples of (Triple, float)
        As :meth:`CasRel.extract_scored`.

    Notes
    -----
    Source: Su 2020 (kexue 7161), the function that extracts from one text.
    """
    found: list[tuple[tuple[Triple, float], ...]] = []
    with model.evaluating() as device:
        for item in items:
            batch = model.collate_texts([item])
            batch = {name: value.to(device) for name, value in batch.items()}
            cells = batch.pop("cells")
            subjects = model.find_subjects(model.encoder(**batch), cells)
            count = len(subjects.spans)
            triples = []
            if count:
                copies = {name: value.expand(count, -1) for name, value in batch.items()}
                spans = subjects.spans.clone()
                spans[:, 0] = torch.arange(count, device=device)  # a copy for each
                triples = model.find_triples(
                    model.encoder(**copies),
                    cells.expand(count, -1),
                    TaggedSpans(spans, subjects.margins),
                )
            found.append(
                model.in_characters(item, ((tokens, margin) for _, tokens, margin in triples))
            )
    return found
