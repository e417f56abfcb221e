"""Losses of rows of logits by plain operations: differentiable to any order, and traceable."""

from math import inf, nan
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from lib import _checks, _refusals
from lib.emo._embeddings import Directions
from lib.emo._mixture import Mixture

__all__ = ["Rows", "check_targets", "mix", "refuse", "row_terms"]


class Rows(NamedTuple):
    """What every loss of this module is made of, for each row.

    The target is left out of the sums, never subtracted: a confident model's loss is the small
    remainder, and 1 minus a number near 1 would have no digits of it.
    """

    cross_entropy: Tensor  # (N,)
    rest: Tensor  # (N,) probability of all wrong tokens
    moved: Tensor  # (N, D) their mean direction, times rest
    gold: Tensor  # (N, D) the target's direction

    def emo(self) -> Tensor:
        """Mean cost, as a sum over wrong tokens."""
        value = self.rest - (self.moved * self.gold).sum(-1)
        return value + (value.clamp(min=0) - value).detach()  # rounding must not make it negative

    def kernel(self) -> Tensor:
        """Half the squared distance between mean direction and the target's."""
        return 0.5 * (self.moved - self.rest.unsqueeze(-1) * self.gold).square().sum(-1)


def row_terms(logits: Tensor, targets: Tensor, unit: Tensor) -> Rows:
    """Terms of rows of logits ``(N, V)`` for targets ``(N,)`` in ``[0, V)``."""
    column = targets.unsqueeze(1)
    log_p = torch.log_softmax(logits, -1)
    p = log_p.exp()
    gold_p = p.gather(1, column).squeeze(1)
    wrong = p.scatter(1, column, 0.0)
    rest = wrong.sum(-1)
    easy = rest < gold_p
    # log1p keeps the digits where the loss is small; the other branch where the target's
    # probability is. Each branch gets harmless numbers where it is not taken.
    odds = torch.where(easy, rest, 0.0) / torch.where(easy, gold_p, 1.0)
    log_gold = log_p.gather(1, column).squeeze(1)
    cross_entropy = torch.where(easy, odds.log1p(), -torch.where(easy, 0.0, log_gold))
    return Rows(cross_entropy, rest, wrong @ unit, unit[targets])


def mix(cross_entropy: Tensor, emo: Tensor, rest: Tensor, mixture: Mixture | None) -> Tensor:
    """Loss of each row; ``mixture=None`` is EMO alone."""
    if mixture is None:
        return emo
    a, b = mixture.weights(cross_entropy, emo, rest)
    # A weight of zero switches its term off, also where the term is infinite.
    return torch.where(a == 0, 0.0, a * cross_entropy) + torch.where(b == 0, 0.0, b * emo)


def check_targets(
    targets: Tensor, classes: int, ignore_index: int, reduction: str, found: Directions
) -> tuple[Tensor, Tensor, Tensor]:
    """Targets safe to gather with, where they count, and where they are bad.

    Raises where values can be read, for a target that is no class.
    """
    _checks.check_reduction(reduction)
    counts = targets != ignore_index
    bad = counts & ((targets < 0) | (targets >= classes))
    safe = torch.where(counts & ~bad, targets, 0)
    if found.is_padding is not None:
        padded = counts & ~bad & found.is_padding[safe]
    else:
        padded = torch.zeros_like(bad)
    if _checks.values_readable(targets):
        if bool(bad.any()):
            at = _refusals.first_true(bad)
            raise ValueError(
                f"targets must be classes in [0, {classes}) or ignore_index = {ignore_index}, "
                f"got {targets[at].item()} at {_refusals.place('targets', at)}"
            )
        if bool(padded.any()):
            at = _refusals.first_true(padded)
            raise ValueError(
                "targets must not be padding rows of the embeddings, "
                f"got {targets[at].item()} at {_refusals.place('targets', at)}"
            )
    return safe, counts, bad | padded


def refuse(name: str, logits: Tensor, targets: Tensor, counts: Tensor) -> NoReturn:
    """Raise for the first bad logit of ``logits`` ``(..., V)``, of which there is one."""
    wrong = counts.unsqueeze(-1) & ~(logits < inf)
    if wrong.any():
        at = _refusals.first_true(wrong)
        raise ValueError(
            f"{name} must be finite or -inf where they count, got {logits[at].item()} "
            f"at {_refusals.place(name, at)}"
        )
    gold = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    at = _refusals.first_true(counts & (gold == -inf))
    cell = (*at, int(targets[at]))
    raise ValueError(
        f"a target must have a finite logit, got {_refusals.place('targets', at)} = {cell[-1]} "
        f"and {_refusals.place(name, cell)} = -inf"
    )


def by_rows(
    logits: Tensor,
    targets: Tensor,
    unit: Tensor,
    counts: Tensor,
    bad: Tensor,
) -> tuple[Rows, Tensor]:
    """Terms of rows, and which rows are bad; rows that do not count see zeros instead."""
    rows = logits.to(_checks.compute_dtype(logits.dtype))
    if not _checks.values_readable(targets) or not bool(counts.all()):
        rows = rows.masked_fill(~counts.unsqueeze(1), 0.0)
    terms = row_terms(rows, targets, unit)
    # A target at minus infinity has a finite mean cost, but nothing could ever raise it.
    hidden = rows.detach().gather(1, targets.unsqueeze(1)).squeeze(1) == -inf
    return terms, bad | hidden | ~terms.rest.detach().isfinite()


def finish(losses: Tensor, counts: Tensor, bad: Tensor) -> Tensor:
    """Zero where a row does not count, NaN where it is bad."""
    return torch.where(counts, losses, 0.0).masked_fill(bad, nan)
