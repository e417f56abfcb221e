"""From triples of token positions to tags, and the subjects whose objects a step is taught."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lib.casrel.tagging import check_subjects
from lib.extraction.alignment import TokenTriple

__all__ = ["Sampling", "choose_subjects", "object_tags", "sample_subject", "subject_tags"]

Span = tuple[int, int]
Sampling = Literal["all", "uniform", "published"]


def sample_subject(
    subjects: Sequence[Span],
    rule: Literal["uniform", "published"] = "uniform",
    *,
    generator: torch.Generator | None = None,
) -> Span:
    r"""Draw the subject whose objects a training step is taught.

    Equations: :eq:`eq:casrel-draw`

    Parameters
    ----------
    subjects : sequence of (int, int)
        First and last token of each subject of one text, all different; at least one.
    rule : {"uniform", "published"}
        ``"uniform"``: each subject is equally likely. ``"published"``: a start is drawn from the
        starts of all subjects, then an end from their ends that do not lie before it. The pair
        need not be a subject, and late subjects are drawn more often;
        :func:`lib.casrel.subject_distribution` gives the probabilities.
    generator : torch.Generator, optional
        Where random numbers come from; torch's global generator if None.

    Returns
    -------
    (int, int)
        First and last token.

    Raises
    ------
    ValueError
        If there is no subject, one ends before its start or is given twice, or the rule is
        unknown.

    Notes
    -----
    Source: Su 2020 (kexue 7161) for ``"published"``, the repository of CasRel for ``"uniform"``.

    Examples
    --------
    >>> sample_subject([(3, 4)])
    (3, 4)
    """
    if rule not in ("uniform", "published"):
        raise ValueError(f"rule: expected 'uniform' or 'published', got {rule!r}")
    if not subjects:
        raise ValueError("subjects: expected at least one subject, got none")
    check_subjects(subjects)
    head, tail = subjects[_below(len(subjects), generator)]
    if rule == "published":
        tails = [other for _, other in subjects if other >= head]
        tail = tails[_below(len(tails), generator)]
    return head, tail


def choose_subjects(
    batch: Sequence[Sequence[TokenTriple]],
    rule: Sampling,
    *,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose the subjects of a training step.

    Parameters
    ----------
    batch : sequence of sequences of TokenTriple
        The triples of each text. Repeated subjects count once.
    rule : {"all", "uniform", "published"}
        ``"all"``: every subject of every text. Else one for each text that has any, by
        :func:`sample_subject`.
    generator : torch.Generator, optional
        As in :func:`sample_subject`.

    Returns
    -------
    Tensor
        int64 ``(N, 3)``: index of the text, first and last token; by text, then in reading order.

    Raises
    ------
    ValueError
        If the rule is unknown.

    Examples
    --------
    >>> batch = [[TokenTriple(2, 2, 0, 5, 5), TokenTriple(0, 1, 0, 2, 2)], []]
    >>> choose_subjects(batch, "all").tolist()
    [[0, 0, 1], [0, 2, 2]]
    """
    if rule not in ("all", "uniform", "published"):
        raise ValueError(f"rule: expected 'all', 'uniform' or 'published', got {rule!r}")
    rows: list[tuple[int, int, int]] = []
    for text, triples in enumerate(batch):
        subjects = sorted({(t.subject_head, t.subject_tail) for t in triples})
        if rule != "all" and subjects:
            subjects = [sample_subject(subjects, rule, generator=generator)]
        rows += [(text, *subject) for subject in subjects]
    return torch.tensor(rows, dtype=torch.int64).view(-1, 3)


def subject_tags(batch: Sequence[Sequence[TokenTriple]], *, length: int) -> Tensor:
    """Tag the first and the last tokens of all subjects.

    Parameters
    ----------
    batch : sequence of sequences of TokenTriple
        The triples of each text.
    length : int
        L, the number of tokens.

    Returns
    -------
    Tensor
        bool ``(B, L, 2)``: starts, ends.

    Raises
    ------
    IndexError
        If a position is not below `length`.

    Examples
    --------
    >>> subject_tags([[TokenTriple(0, 1, 0, 2, 2)]], length=3).long().tolist()
    [[[1, 0], [0, 1], [0, 0]]]
    """
    tags = torch.zeros(len(batch), length, 2, dtype=torch.bool)
    for text, triples in enumerate(batch):
        for triple in triples:
            tags[text, triple.subject_head, 0] = True
            tags[text, triple.subject_tail, 1] = True
    return tags


def object_tags(
    batch: Sequence[Sequence[TokenTriple]], chosen: Tensor, *, length: int, relations: int
) -> Tensor:
    """Tag the first and the last tokens of the objects of chosen subjects.

    Parameters
    ----------
    batch : sequence of sequences of TokenTriple
        The triples of each text.
    chosen : Tensor
        ``(N, 3)``, as of :func:`choose_subjects`. A pair that is no subject of its text has no
        objects, so none of its tags is set.
    length, relations : int
        L and R, the numbers of tokens and of relations.

    Returns
    -------
    Tensor
        bool ``(N, L, R, 2)``: starts, ends.

    Raises
    ------
    IndexError
        If a position or a relation is out of range.

    Examples
    --------
    >>> batch = [[TokenTriple(0, 1, 0, 2, 2)]]
    >>> object_tags(batch, torch.tensor([[0, 0, 1], [0, 1, 1]]), length=3, relations=1).sum((1, 2))
    tensor([[1, 1],
            [0, 0]])
    """
    tags = torch.zeros(len(chosen), length, relations, 2, dtype=torch.bool)
    for row, (text, head, tail) in enumerate(chosen.tolist()):
        for triple in batch[text]:
            if (triple.subject_head, triple.subject_tail) == (head, tail):
                tags[row, triple.object_head, triple.relation, 0] = True
                tags[row, triple.object_tail, triple.relation, 1] = True
    return tags


def _below(count: int, generator: torch.Generator | None) -> int:
    return int(torch.randint(count, (), generator=generator))
