"""Losses of rows of logits by plain operations: differentiable to any order, and traceable.

The target is left out of every sum, never subtracted: a confident model's loss is the small
remainder, and 1 minus a number near 1 would have no digits of it.
"""

from collections.abc import Callable
from math import inf, nan
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor

from lib import _checks, _refusals
from lib.emo._embeddings import Directions
from lib.emo._mixture import Mixture

__all__ = [
    "Form",
    "Targets",
    "by_rows",
    "check_targets",
    "kernel",
    "mix",
    "mixed",
    "refuse",
]

Form = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From rows of logits ``(N, V)``, targets ``(N,)`` and directions ``(V, D)``: the losses ``(N,)``,
and numbers ``(N,)`` that are finite unless a logit is bad."""


class Targets(NamedTuple):
    """Targets, of one shape each, or ``(N,)`` after :meth:`flat`."""

    safe: Tensor  # where they count the classes, elsewhere 0: safe to gather with
    counts: Tensor | None  # bool; None if all count
    bad: Tensor | None  # bool; None if values were looked at, and there is none

    def flat(self) -> "Targets":
        """One dimension each."""
        if self.safe.dim() == 1:
            return self
        rest = (None if part is None else part.reshape(-1) for part in (self.counts, self.bad))
        return Targets(self.safe.reshape(-1), *rest)


def check_targets(
    targets: Tensor, classes: int, ignore_index: int, found: Directions, look: bool
) -> Targets:
    """Where targets count and where they are bad; if we may ``look``, a bad one is an error."""
    if look and targets.numel():
        low, high = (int(end) for end in targets.aminmax())
        ignores = low <= ignore_index <= high
        if low >= 0 and high < classes and not ignores and found.is_padding is None:
            return Targets(targets, None, None)
    counts = targets != ignore_index
    bad = counts & ((targets < 0) | (targets >= classes))
    safe = torch.where(counts & ~bad, targets, 0)
    padded = torch.zeros_like(bad)
    if found.is_padding is not None:
        padded = counts & ~bad & found.is_padding[safe]
    if not look:
        return Targets(safe, counts, bad | padded)
    for flags, rule in (
        (bad, f"be classes in [0, {classes}) or ignore_index = {ignore_index}"),
        (padded, "not be padding rows of the embeddings"),
    ):
        if bool(flags.any()):
            at = _refusals.first_true(flags)
            raise ValueError(
                f"targets must {rule}, got {targets[at].item()} at {_refusals.place('targets', at)}"
            )
    return Targets(safe, None if bool(counts.all()) else counts, None)


# --------------------------------------------------------------------------------------- the forms


def mixed(mixture: Mixture | None) -> Form:
    """EMO with cross-entropy, or alone."""
    if mixture is None:
        return _emo

    def form(rows: Tensor, targets: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        cross_entropy, rest = _cross_entropy(rows, targets)
        emo, _ = _emo(rows, targets, unit)
        return mix(cross_entropy, emo, rest, mixture), emo

    return form


def kernel(rows: Tensor, targets: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Half the squared distance between the mean direction and the target's."""
    wrong = torch.softmax(rows, -1).scatter(1, targets.unsqueeze(1), 0.0)
    gap = wrong @ unit - wrong.sum(-1, keepdim=True) * unit[targets]
    losses = 0.5 * gap.square().sum(-1)
    return losses, losses


def _emo(rows: Tensor, targets: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    # A cost that rounding makes negative is 0; the target's own cost is 0, not rounding.
    gold = unit.index_select(0, targets)
    costs = torch.addmm(unit.new_ones(()), gold, unit.T, alpha=-1).relu_()
    costs = costs.scatter(1, targets.unsqueeze(1), 0.0)
    losses = (torch.softmax(rows, -1) * costs).sum(-1)
    return losses, losses


def _cross_entropy(rows: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy, and the probability of all wrong tokens."""
    column = targets.unsqueeze(1)
    log_p = torch.log_softmax(rows, -1)
    p = log_p.exp()
    gold_p = p.gather(1, column).squeeze(1)
    wrong = p.scatter(1, column, 0.0)
    rest = wrong.sum(-1)
    easy = rest < gold_p
    # log1p keeps the digits where the loss is small; the other branch where the target's
    # probability is. Each branch gets harmless numbers where it is not taken.
    odds = torch.where(easy, rest, 0.0) / torch.where(easy, gold_p, 1.0)
    log_gold = log_p.gather(1, column).squeeze(1)
    return torch.where(easy, odds.log1p(), -torch.where(easy, 0.0, log_gold)), rest


def mix(cross_entropy: Tensor, emo: Tensor, rest: Tensor, mixture: Mixture) -> Tensor:
    """Loss of each row from its two parts and its probability of a wrong token."""
    a, b = mixture.weights(cross_entropy, emo, rest)
    # A weight of zero switches its term off, also where the term is infinite.
    return torch.where(a == 0, 0.0, a * cross_entropy) + torch.where(b == 0, 0.0, b * emo)


# ---------------------------------------------------------------------------------------- all rows


def by_rows(form: Form, logits: Tensor, targets: Targets, unit: Tensor) -> tuple[Tensor, Tensor]:
    """Losses ``(N,)`` of rows ``(N, V)``, and numbers that are not finite where logits are bad.

    A row that does not count has loss 0, whatever is in it. Where targets were not looked at, a bad
    row has loss NaN.
    """
    safe, counts, bad = targets
    rows = logits.to(_checks.compute_dtype(logits.dtype))
    if counts is not None:
        rows = rows.masked_fill(~counts.unsqueeze(1), 0.0)
    losses, witness = form(rows, safe, unit)
    # A target at minus infinity has a finite mean cost, but nothing could ever raise it.
    gold = rows.detach().gather(1, safe.unsqueeze(1)).squeeze(1)
    witness = gold.sub(witness.detach())
    if counts is not None:
        losses = losses.masked_fill(~counts, 0.0)
    if bad is not None:
        losses = losses.masked_fill(bad | ~witness.isfinite(), nan)
    return losses, witness


def refuse(name: str, logits: Tensor, targets: Tensor, counts: Tensor | None) -> NoReturn:
    """Raise for the first bad logit of ``logits`` ``(..., V)``, of which there is one."""
    wrong = ~(logits < inf)
    if counts is not None:
        wrong &= counts.unsqueeze(-1)
    if wrong.any():
        at = _refusals.first_true(wrong)
        raise ValueError(
            f"{name} must be finite or -inf where they count, got {logits[at].item()} "
            f"at {_refusals.place(name, at)}"
        )
    gone = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) == -inf
    at = _refusals.first_true(gone if counts is None else gone & counts)
    cell = (*at, int(targets[at]))
    raise ValueError(
        f"a target must have a finite logit, got {_refusals.place('targets', at)} = {cell[-1]} "
        f"and {_refusals.place(name, cell)} = -inf"
    )
