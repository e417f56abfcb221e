"""From the scores of the four tables back to triples of token positions."""

import torch
from torch import Tensor

from lib import _checks
from lib.extraction.alignment import TokenTriple

__all__ = ["best_spans", "decode_blocks", "decode_tables", "triple_scores"]


def decode_tables(
    entity_scores: Tensor,
    head_links: Tensor,
    tail_links: Tensor,
    *,
    max_spans: int | None = None,
    threshold: float = 0.0,
    link_threshold: float | None = None,
) -> list[TokenTriple]:
    r"""Read off the triples whose four cells are all above a threshold, which is 0 by default.

    .. math:: D = \{(s, r, o) : s \in \mathcal S,\ o \in \mathcal O,\
        (s_h, o_h) \in \mathcal H_r,\ (s_t, o_t) \in \mathcal T_r\}

    where each set holds the cells of its table with a score above the threshold.

    Equations: :eq:`eq:gplinker-decode`

    Parameters
    ----------
    entity_scores : Tensor
        ``(2, L, L)``, the subjects' table and the objects' table of one text. Cells below the
        diagonal are not spans; they must not be above the threshold.
    head_links, tail_links : Tensor
        ``(R, L, L)``, the scores of links between first and between last tokens.
    max_spans : int or None
        At most so many subjects and so many objects, the ones with the highest scores. None: no
        limit. An untrained model may choose half of all spans; the limit keeps that from taking
        all memory.
    threshold, link_threshold : float
        What the scores of spans and of links must exceed; finite. None: links as spans.

    Returns
    -------
    list of TokenTriple
        Without repetition, ordered by relation, then subject, then object. A score equal to the
        threshold chooses nothing.

    Raises
    ------
    TypeError
        If `max_spans` is no integer.
    ValueError
        If the shapes disagree, `max_spans` is not positive, a threshold is not finite, a span below
        the diagonal is chosen, or a score that decides is NaN.

    Notes
    -----
    The links are looked up for the subjects and objects found: relations × subjects × objects
    cells of each of the two tables, never all L².
    The result contains every triple that the tables were made from; it contains no other if no
    two subjects share a first token and no two objects do, or the same of last tokens.
    Source: kexue 8888 (2022), whose code takes this intersection; the sum of four scores that
    the article prints is not used.

    Examples
    --------
    >>> entities, heads, tails = (torch.full((n, 4, 4), -1.0) for n in (2, 1, 1))
    >>> entities[0, 0, 1] = entities[1, 3, 3] = heads[0, 0, 3] = tails[0, 1, 3] = 1.0
    >>> decode_tables(entities, heads, tails) == [TokenTriple(0, 1, 0, 3, 3)]
    True
    """
    _check_shapes(entity_scores, head_links, tail_links)
    if max_spans is not None and (max_spans := _checks.as_index("max_spans", max_spans)) < 1:
        raise ValueError(f"max_spans must be at least 1, got {max_spans}")
    _checks.check_threshold("threshold", threshold)
    subjects, of_subjects = _spans(entity_scores[0], "subject", max_spans, threshold)
    objects, of_objects = _spans(entity_scores[1], "object", max_spans, threshold)
    by_head = head_links[:, subjects[:, 0, None], objects[None, :, 0]]
    by_tail = tail_links[:, subjects[:, 1, None], objects[None, :, 1]]
    decoded = decode_blocks(
        subjects,
        of_subjects,
        objects,
        of_objects,
        by_head,
        by_tail,
        threshold=threshold if link_threshold is None else link_threshold,
    )
    return [triple for triple, _ in decoded]


def decode_blocks(
    subjects: Tensor,
    subject_scores: Tensor,
    objects: Tensor,
    object_scores: Tensor,
    head_links: Tensor,
    tail_links: Tensor,
    *,
    threshold: float = 0.0,
) -> list[tuple[TokenTriple, float]]:
    r"""Read off the triples, each with its confidence, where no tables have been filled.

    Equations: :eq:`eq:gplinker-decode`, :eq:`eq:gplinker-min`

    Parameters
    ----------
    subjects, objects : Tensor
        The spans found, int64 ``(S, 2)`` and ``(O, 2)``, rows of (head, tail).
    subject_scores, object_scores : Tensor
        Their scores, ``(S,)`` and ``(O,)``.
    head_links, tail_links : Tensor
        ``(R, S, O)``: the scores of links between the first and between the last tokens of each
        subject and each object.
    threshold : float
        What both links must exceed; finite. The spans have been chosen already.

    Returns
    -------
    list of tuples of (TokenTriple, float)
        Ordered by relation, then as subjects and objects are. The number is the smallest of the
        triple's four scores.

    Raises
    ------
    ValueError
        If the shapes disagree, the score of a link is NaN or `threshold` is not finite.

    Examples
    --------
    >>> subjects, objects = torch.tensor([[0, 1]]), torch.tensor([[3, 3], [4, 5]])
    >>> heads, tails = torch.tensor([[[2.0, 1.0]]]), torch.tensor([[[3.0, -1.0]]])
    >>> decode_blocks(subjects, torch.ones(1), objects, torch.ones(2) / 2, heads, tails)
    [(TokenTriple(subject_head=0, subject_tail=1, relation=0, object_head=3, object_tail=3), 0.5)]
    """
    for name, spans, scores in (
        ("subject", subjects, subject_scores),
        ("object", objects, object_scores),
    ):
        if spans.dim() != 2 or spans.shape[1] != 2 or scores.shape != spans.shape[:1]:
            raise ValueError(
                f"{name}s must have shape (N, 2) and {name}_scores (N,), "
                f"got {tuple(spans.shape)} and {tuple(scores.shape)}"
            )
    expected = (*head_links.shape[:1], len(subjects), len(objects))
    for name, scores in (("head_links", head_links), ("tail_links", tail_links)):
        if tuple(scores.shape) != expected:
            raise ValueError(f"{name} must have shape {expected}, got {tuple(scores.shape)}")
        if scores.isnan().any():
            raise ValueError(f"{name} must be numbers, got NaN")
    _checks.check_threshold("threshold", threshold)
    links = torch.minimum(head_links, tail_links)
    relation, s, o = (links > threshold).nonzero(as_tuple=True)
    found = torch.cat((subjects[s], relation[:, None], objects[o]), dim=1)
    least = torch.minimum(subject_scores[s], object_scores[o]).minimum(links[relation, s, o])
    return [
        (TokenTriple(*row), score)
        for row, score in zip(found.tolist(), least.tolist(), strict=True)
    ]


def best_spans(cells: Tensor, scores: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Keep the `limit` spans with the highest scores, in the order in which they come."""
    if len(cells) <= limit:
        return cells, scores
    best = scores.topk(limit).indices.sort().values
    return cells[best], scores[best]


def triple_scores(
    triples: list[TokenTriple], entity_scores: Tensor, head_links: Tensor, tail_links: Tensor
) -> Tensor:
    r"""Return the confidence of each triple: the smallest of its four scores.

    .. math:: \min\{s_{\mathcal S}(s_h, s_t),\ s_{\mathcal O}(o_h, o_t),\
        s_{\mathcal H, r}(s_h, o_h),\ s_{\mathcal T, r}(s_t, o_t)\}

    Equations: :eq:`eq:gplinker-min`

    Parameters
    ----------
    triples : list of TokenTriple
        Any triples with positions and relations within the tables.
    entity_scores, head_links, tail_links : Tensor
        As in :func:`decode_tables`.

    Returns
    -------
    Tensor
        Shape ``(len(triples),)``, dtype and device of the scores. Above a threshold exactly for the
        triples that :func:`decode_tables` returns at it.

    Raises
    ------
    ValueError
        If the shapes of the tables disagree.

    Examples
    --------
    >>> entities, heads, tails = (torch.full((n, 4, 4), 2.0) for n in (2, 1, 1))
    >>> heads[0, 0, 3] = -1.0
    >>> triple_scores([TokenTriple(0, 1, 0, 3, 3)], entities, heads, tails)
    tensor([-1.])
    """
    _check_shapes(entity_scores, head_links, tail_links)
    rows = [
        (t.subject_head, t.subject_tail, t.relation, t.object_head, t.object_tail) for t in triples
    ]
    sh, st, r, oh, ot = torch.tensor(rows, device=entity_scores.device).view(-1, 5).long().T
    four = (
        entity_scores[0, sh, st],
        entity_scores[1, oh, ot],
        head_links[r, sh, oh],
        tail_links[r, st, ot],
    )
    return torch.stack(four).amin(dim=0)


def _spans(scores: Tensor, role: str, limit: int | None, threshold: float) -> tuple[Tensor, Tensor]:
    """Find the cells of an entity table above the threshold, in reading order, and their scores."""
    if scores.isnan().any():
        raise ValueError(f"entity_scores must be numbers, got NaN among the {role}s")
    cells = (scores > threshold).nonzero()
    below = cells[cells[:, 0] > cells[:, 1]]
    if len(below):
        raise ValueError(
            f"entity_scores must choose no {role} below the diagonal, got cell "
            f"{tuple(below[0].tolist())} above {threshold}"
        )
    values = scores[cells[:, 0], cells[:, 1]]
    return (cells, values) if limit is None else best_spans(cells, values, limit)


def _check_shapes(entity_scores: Tensor, head_links: Tensor, tail_links: Tensor) -> None:
    length = entity_scores.shape[-1] if entity_scores.dim() else 0
    if tuple(entity_scores.shape) != (2, length, length):
        raise ValueError(
            f"entity_scores must have shape (2, L, L), got {tuple(entity_scores.shape)}"
        )
    if head_links.dim() != 3 or tuple(head_links.shape[1:]) != (length, length):
        raise ValueError(
            f"head_links must have shape (R, {length}, {length}), got {tuple(head_links.shape)}"
        )
    if tail_links.shape != head_links.shape:
        raise ValueError(
            f"tail_links must have shape {tuple(head_links.shape)} like head_links, "
            f"got {tuple(tail_links.shape)}"
        )
