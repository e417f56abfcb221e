"""From the scores of the four tables back to triples of token positions."""

import torch
from torch import Tensor

from lib.extraction.alignment import TokenTriple

__all__ = ["best_spans", "decode_blocks", "decode_tables", "triple_scores"]


def decode_tables(
    entity_scores: Tensor,
    head_scores: Tensor,
    tail_scores: Tensor,
    *,
    max_spans: int | None = None,
) -> list[TokenTriple]:
    r"""Read off the triples whose four cells are all above 0.

    .. math:: D = \{(s, r, o) : s \in \mathcal S,\ o \in \mathcal O,\
        (s_h, o_h) \in \mathcal H_r,\ (s_t, o_t) \in \mathcal T_r\}

    where each set holds the cells of its table with a score above 0.

    Equations: :eq:`eq:gplinker-decode`

    Parameters
    ----------
    entity_scores : Tensor
        ``(2, L, L)``, the subjects' table and the objects' table of one text. Cells below the
        diagonal are not spans; they must not be above 0.
    head_scores, tail_scores : Tensor
        ``(R, L, L)``, the links between first and between last tokens.
    max_spans : int or None
        At most so many subjects and so many objects, the ones with the highest scores. None: no
        limit. An untrained model may choose half of all spans; the limit keeps that from taking
        all memory.

    Returns
    -------
    list of TokenTriple
        Without repetition, ordered by relation, then subject, then object. A score of exactly 0
        chooses nothing.

    Raises
    ------
    ValueError
        If the shapes disagree, `max_spans` is not positive, a span below the diagonal is chosen,
        or a score that decides is NaN.

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
    _check_shapes(entity_scores, head_scores, tail_scores)
    if max_spans is not None and max_spans < 1:
        raise ValueError(f"max_spans: expected at least 1, got {max_spans}")
    subjects, of_subjects = _spans(entity_scores[0], "subject", max_spans)
    objects, of_objects = _spans(entity_scores[1], "object", max_spans)
    by_head = head_scores[:, subjects[:, 0, None], objects[None, :, 0]]
    by_tail = tail_scores[:, subjects[:, 1, None], objects[None, :, 1]]
    decoded = decode_blocks(subjects, of_subjects, objects, of_objects, by_head, by_tail)
    return [triple for triple, _ in decoded]


def decode_blocks(
    subjects: Tensor,
    subject_scores: Tensor,
    objects: Tensor,
    object_scores: Tensor,
    head_scores: Tensor,
    tail_scores: Tensor,
) -> list[tuple[TokenTriple, float]]:
    r"""Read off the triples, each with its confidence, where no tables have been filled.

    Equations: :eq:`eq:gplinker-decode`, :eq:`eq:gplinker-min`

    Parameters
    ----------
    subjects, objects : Tensor
        The spans found, int64 ``(S, 2)`` and ``(O, 2)``, rows of (head, tail).
    subject_scores, object_scores : Tensor
        Their scores, ``(S,)`` and ``(O,)``, above 0.
    head_scores, tail_scores : Tensor
        ``(R, S, O)``: the links between the first and between the last tokens of each subject and
        each object.

    Returns
    -------
    list of tuples of (TokenTriple, float)
        Ordered by relation, then as subjects and objects are. The number is the smallest of the
        triple's four scores.

    Raises
    ------
    ValueError
        If the shapes disagree or the score of a link is NaN.

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
                f"{name}s: expected shape (N, 2) and {name}_scores (N,), "
                f"got {tuple(spans.shape)} and {tuple(scores.shape)}"
            )
    expected = (*head_scores.shape[:1], len(subjects), len(objects))
    for name, scores in (("head_scores", head_scores), ("tail_scores", tail_scores)):
        if tuple(scores.shape) != expected:
            raise ValueError(f"{name}: expected shape {expected}, got {tuple(scores.shape)}")
        if scores.isnan().any():
            raise ValueError(f"{name}: expected numbers, got NaN")
    links = torch.minimum(head_scores, tail_scores)
    relation, s, o = (links > 0).nonzero(as_tuple=True)
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
    triples: list[TokenTriple], entity_scores: Tensor, head_scores: Tensor, tail_scores: Tensor
) -> Tensor:
    r"""Return the confidence of each triple: the smallest of its four scores.

    .. math:: \min\{s_{\mathcal S}(s_h, s_t),\ s_{\mathcal O}(o_h, o_t),\
        s_{\mathcal H, r}(s_h, o_h),\ s_{\mathcal T, r}(s_t, o_t)\}

    Equations: :eq:`eq:gplinker-min`

    Parameters
    ----------
    triples : list of TokenTriple
        Any triples with positions and relations within the tables.
    entity_scores, head_scores, tail_scores : Tensor
        As in :func:`decode_tables`.

    Returns
    -------
    Tensor
        Shape ``(len(triples),)``, dtype and device of the scores. Above 0 exactly for the triples
        that :func:`decode_tables` returns.

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
    _check_shapes(entity_scores, head_scores, tail_scores)
    rows = [
        (t.subject_head, t.subject_tail, t.relation, t.object_head, t.object_tail) for t in triples
    ]
    sh, st, r, oh, ot = torch.tensor(rows, device=entity_scores.device).view(-1, 5).long().T
    four = (
        entity_scores[0, sh, st],
        entity_scores[1, oh, ot],
        head_scores[r, sh, oh],
        tail_scores[r, st, ot],
    )
    return torch.stack(four).amin(dim=0)


def _spans(scores: Tensor, role: str, limit: int | None) -> tuple[Tensor, Tensor]:
    """Find the cells above 0 of one entity table, in reading order, and their scores."""
    if scores.isnan().any():
        raise ValueError(f"entity_scores: expected numbers, got NaN among the {role}s")
    cells = (scores > 0).nonzero()
    below = cells[cells[:, 0] > cells[:, 1]]
    if len(below):
        raise ValueError(
            f"entity_scores: expected no {role} below the diagonal, got cell "
            f"{tuple(below[0].tolist())} above 0"
        )
    values = scores[cells[:, 0], cells[:, 1]]
    return (cells, values) if limit is None else best_spans(cells, values, limit)


def _check_shapes(entity_scores: Tensor, head_scores: Tensor, tail_scores: Tensor) -> None:
    length = entity_scores.shape[-1] if entity_scores.dim() else 0
    if tuple(entity_scores.shape) != (2, length, length):
        raise ValueError(
            f"entity_scores: expected shape (2, L, L), got {tuple(entity_scores.shape)}"
        )
    if head_scores.dim() != 3 or tuple(head_scores.shape[1:]) != (length, length):
        raise ValueError(
            f"head_scores: expected shape (R, {length}, {length}), got {tuple(head_scores.shape)}"
        )
    if tail_scores.shape != head_scores.shape:
        raise ValueError(
            f"tail_scores: expected shape {tuple(head_scores.shape)} like head_scores, "
            f"got {tuple(tail_scores.shape)}"
        )
