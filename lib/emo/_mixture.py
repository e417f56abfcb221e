"""How cross-entropy and EMO share one loss: fixed weights, and the weights of published code."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

__all__ = ["Mixture"]

_Rule = Literal["fixed", "emo scaled to cross-entropy", "cross-entropy scaled to emo"]


@dataclass(frozen=True)
class Mixture:
    r"""Weights of cross-entropy and EMO in one loss; made by one of the three class methods.

    The loss of a token is :math:`a\,\ell_{CE} + b\,\ell_{EMO}`. The weights never get a gradient.

    Equations: :eq:`eq:emo-published`, :eq:`eq:emo-published-two`, :eq:`eq:emo-mixture`

    Raises
    ------
    ValueError
        ``rule`` is unknown; a weight is negative or not finite; ``cap`` is not positive.

    Examples
    --------
    >>> Mixture.fixed(cross_entropy=0.5, emo=0.5).rule
    'fixed'
    """

    rule: _Rule
    cross_entropy: float = 0.0
    emo: float = 0.0
    cap: float | None = None

    def __post_init__(self) -> None:
        """Check the fields here, so that no way of making a mixture skips it."""
        if self.rule not in get_args(_Rule):
            known = ", ".join(map(repr, get_args(_Rule)))
            raise ValueError(f"rule must be one of {known}, got {self.rule!r}")
        for name, weight in (("cross_entropy", self.cross_entropy), ("emo", self.emo)):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name} must be a finite weight of at least 0, got {weight}")
        if self.cap is not None and not self.cap > 0:
            raise ValueError(f"cap must be positive, got {self.cap}")

    @classmethod
    def fixed(cls, *, cross_entropy: float, emo: float) -> "Mixture":
        """Give every token the same two weights, both finite and not negative.

        Raises
        ------
        ValueError
            A weight is negative or not finite.
        """
        return cls("fixed", cross_entropy, emo)

    @classmethod
    def emo_scaled_to_cross_entropy(cls, *, cap: float | None = None) -> "Mixture":
        r"""Half cross-entropy, half EMO scaled to its size: the code's ``emo1``.

        :math:`a = \frac12`, :math:`b = \frac12\,\ell_{CE} / \ell_{EMO}`, the ratio held constant in
        the gradient and cut at ``cap``. Without a cap the value is that of cross-entropy (half of
        it where EMO is 0 or rounding: there the ratio counts as 0).

        Raises
        ------
        ValueError
            ``cap`` is not positive.
        """
        return cls("emo scaled to cross-entropy", cap=cap)

    @classmethod
    def cross_entropy_scaled_to_emo(cls) -> "Mixture":
        r"""EMO, and cross-entropy scaled to its size: the code's ``emo2``.

        :math:`a = \ell_{EMO} / \ell_{CE}`, :math:`b = 1`. The value is twice EMO's.
        """
        return cls("cross-entropy scaled to emo")

    def weights(self, cross_entropy: Tensor, emo: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of each token, from its two losses and its probability of a wrong token."""
        cross_entropy, emo, rest = cross_entropy.detach(), emo.detach(), rest.detach()
        if self.rule == "fixed":
            return (
                torch.full_like(emo, self.cross_entropy),
                torch.full_like(emo, self.emo),
            )
        if self.rule == "cross-entropy scaled to emo":
            known = cross_entropy > 0
            ratio = torch.where(known, emo / torch.where(known, cross_entropy, 1), 0)
            return ratio, torch.ones_like(emo)
        # Below this the mean cost of the wrong tokens is rounding, and so would its inverse be.
        known = emo > 4 * torch.finfo(emo.dtype).eps * rest
        ratio = torch.where(known, cross_entropy / torch.where(known, emo, 1), 0)
        if self.cap is not None:
            ratio = ratio.clamp(max=self.cap)
        return torch.full_like(emo, 0.5), 0.5 * ratio
