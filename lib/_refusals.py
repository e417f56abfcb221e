"""Find a bad value that made a result NaN, and say where it is.

Only called where values can be read. Each function looks at the values anew: the way that finds
nothing must stay cheap, the way that ends in an error need not.
"""

from math import inf
from typing import NoReturn

import torch
from torch import Tensor

__all__ = ["first_true", "place", "refuse_cells", "refuse_logits"]


def first_true(flags: Tensor) -> tuple[int, ...]:
    """Index of the first True in a tensor that has one."""
    flat = int(flags.reshape(-1).to(torch.uint8).argmax())
    index = []
    for size in reversed(flags.shape):
        flat, step = divmod(flat, size)
        index.append(step)
    return tuple(reversed(index))


def place(name: str, index: tuple[int, ...]) -> str:
    """Write an entry of an argument as Python would; the name alone for a scalar."""
    return f"{name}[{', '.join(map(str, index))}]" if index else name


def refuse_logits(name: str, logits: Tensor, counts: Tensor | None = None) -> None:
    """Raise for the first logit that counts and is NaN or plus infinity."""
    bad = ~(logits < inf)
    if counts is not None:
        bad &= counts
    if bool(bad.any()):
        at = first_true(bad)
        raise ValueError(
            f"{name} must be finite or -inf where they count, got {logits[at].item()} "
            f"at {place(name, at)}"
        )


def refuse_cells(
    name: str,
    logits: Tensor,
    labels: Tensor,
    mask: Tensor | None,
    *,
    listed: bool = False,
    soft: bool = False,
) -> NoReturn:
    """Raise for the first bad value of logits and labels among which there is one.

    ``labels`` are what the caller calls ``name``: a table of targets, or lists of classes. Targets
    are zeros and ones or, if ``soft``, anything between. Cells of a table that do not count are not
    looked at; a list must not name one.
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
    if mask is not None and not listed:
        bad &= mask
        rule += " where they count"
    if bad.any():
        at = first_true(bad)
        raise ValueError(f"{name} must {rule}, got {labels[at].item()} at {place(name, at)}")

    positive = labels >= 0 if listed else labels != 0
    if mask is not None and not listed:
        positive &= mask
    for other, table, forbidden, rule in (
        ("mask", mask if listed else None, False, "be on a cell that counts"),
        ("logits", logits, -inf, "have a finite logit"),
    ):
        if table is None:
            continue
        values = table.gather(-1, labels.clamp(min=0)) if listed else table
        clash = positive & (values == forbidden)
        if clash.any():
            at = first_true(clash)
            label = labels[at].item() if soft else int(labels[at])
            cell = (*at[:-1], int(label)) if listed else at
            raise ValueError(
                f"{what} must {rule}, got {place(name, at)} = {label} "
                f"and {place(other, cell)} = {forbidden}"
            )

    refuse_logits("logits", logits, mask)
    raise AssertionError("no bad value among the arguments")  # a caller's mistake, never a user's
