"""Find the bad value that made a loss NaN, and say where it is."""

from math import inf
from typing import NoReturn

from torch import Tensor

from lib import _checks

__all__ = ["refuse"]


def refuse(
    name: str,
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    *,
    listed: bool = False,
    soft: bool = False,
) -> NoReturn:
    """Raise for the first bad value of arguments among which there is one.

    ``labels`` are what the caller calls ``name``: a table of targets, or lists of classes. Targets
    are zeros and ones or, if ``soft``, anything between.
    """
    what = "a target above 0" if soft else "a positive"
    classes = logits.shape[-1]
    if listed:
        bad = (labels < -1) | (labels >= classes)
        rule = f"be classes in [0, {classes}) or -1 as filler"
    elif soft:
        bad = ~((labels >= 0) & (labels <= 1))
        rule = "lie in [0, 1]"
    else:
        bad = (labels != 0) & (labels != 1)
        rule = "hold only 0 and 1"
    if bad.any():
        at = _checks.first_true(bad)
        raise ValueError(f"{name} must {rule}, got {labels[at].item()} at {_place(name, at)}")

    positive = labels >= 0 if listed else labels != 0
    for other, table, forbidden, rule in (
        ("mask", mask, False, "be on a cell that counts"),
        ("logits", logits, -inf, "have a finite logit"),
    ):
        if table is None:
            continue
        values = table.gather(-1, labels.clamp(min=0)) if listed else table
        clash = positive & (values == forbidden)
        if clash.any():
            at = _checks.first_true(clash)
            label = labels[at].item() if soft else int(labels[at])
            cell = (*at[:-1], int(label)) if listed else at
            raise ValueError(
                f"{what} must {rule}, got {_place(name, at)} = {label} "
                f"and {_place(other, cell)} = {forbidden}"
            )

    bad = ~(logits < inf)
    if mask is not None:
        bad &= mask
    at = _checks.first_true(bad)
    raise ValueError(
        f"logits must be finite or -inf where they count, got {logits[at].item()} "
        f"at {_place('logits', at)}"
    )


def _place(name: str, index: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, index))}]"
