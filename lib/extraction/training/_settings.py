"""How to train: the settings, and what of an epoch follows from them alone."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lib._extras import needs

with needs("extraction"):
    import numpy as np

__all__ = ["Settings", "ema_decay", "epoch_batches", "learning_rate_factor", "set_seed"]

SCHEDULES = ("linear", "constant")
_POOL = 16  # batches that are sorted by length together: enough to save padding, few enough to mix


def _setting(default: Any, note: str) -> Any:
    return field(default=default, metadata={"help": note})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to train. The command line offers each field as an option of the same name.

    Parameters
    ----------
    epochs : int
        Most passes over the training set; the schedule is laid out over this many.
    batch_size : int
        Sentences per step, over all processes together.
    lr, head_lr : float
        Peak learning rates of the encoder and of what is new on top of it. The defaults are for a
        small pretrained encoder; a large one wants a smaller `lr`, one from scratch a larger.
    weight_decay : float
        AdamW's decoupled decay, ``>= 0``.
    warmup : float
        Share of all steps, in ``[0, 1)``, over which the rates rise from 0.
    schedule : {"linear", "constant"}
        What follows the warm-up: a straight fall to 0, or no change.
    clip : float
        Largest norm of the gradient, ``> 0``; longer ones are scaled down.
    ema : float
        Decay of the exponential moving average of the weights, in ``[0, 1)``. If it is above 0,
        the average is what dev scores and what is kept; see `ema_decay`. 0: the weights as they
        are.
    patience : int
        Epochs without a better dev F1 after which training ends. Epochs before the first F1 above
        0 do not count.
    seed : int
        Of the order of sentences, of dropout and, in the commands, of new weights.

    Raises
    ------
    ValueError
        If a value is out of its range.

    Examples
    --------
    >>> Settings(epochs=3).batch_size
    8
    >>> Settings(warmup=1.0)
    Traceback (most recent call last):
        ...
    ValueError: warmup must lie in [0, 1), got 1.0
    """

    epochs: int = _setting(20, "Most passes over the training set.")
    batch_size: int = _setting(8, "Sentences per step, over all processes together.")
    lr: float = _setting(3e-4, "Peak learning rate of the encoder.")
    head_lr: float = _setting(2e-3, "Peak learning rate of the parts on top of the encoder.")
    weight_decay: float = _setting(0.01, "AdamW's weight decay.")
    warmup: float = _setting(0.1, "Share of all steps over which the rates rise from 0.")
    schedule: str = _setting("linear", "After the warm-up: linear (falls to 0) or constant.")
    clip: float = _setting(1.0, "Largest norm of the gradient.")
    ema: float = _setting(0.0, "Keep a moving average of the weights, with this decay; 0: none.")
    patience: int = _setting(5, "Epochs without a better dev F1 before training ends.")
    seed: int = _setting(0, "Seed of weights, order and dropout.")

    def __post_init__(self) -> None:
        """Refuse values that cannot train."""
        for name in ("epochs", "batch_size", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "head_lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        for name in ("weight_decay", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        for name in ("warmup", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {SCHEDULES}, got {self.schedule!r}")


def learning_rate_factor(step: int, total: int, *, warmup: float, schedule: str) -> float:
    """Return the share of the peak learning rate at a step.

    With :math:`w` the number of warm-up steps and :math:`T` the total, step :math:`t` has
    :math:`(t+1)/w` while :math:`t<w`, then :math:`(T-t)/(T-w)` (linear) or 1 (constant).

    Parameters
    ----------
    step : int
        Counted from 0, below `total`.
    total : int
        Steps of the whole run.
    warmup : float
        Share of `total`, in ``[0, 1)``.
    schedule : {"linear", "constant"}
        What follows the warm-up.

    Examples
    --------
    >>> [learning_rate_factor(t, 8, warmup=0.5, schedule="linear") for t in range(8)]
    [0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]
    >>> [learning_rate_factor(t, 4, warmup=0.5, schedule="constant") for t in range(4)]
    [0.5, 1.0, 1.0, 1.0]
    """
    rise = int(warmup * total)
    if step < rise:
        return (step + 1) / rise
    return 1.0 if schedule == "constant" else (total - step) / (total - rise)


def ema_decay(step: int, decay: float) -> float:
    r"""Return what the averaged weights keep of themselves at a step.

    With :math:`\beta` the decay and :math:`w_k` the weights after step :math:`k`, the average after
    step :math:`t` is a mean, whose weights sum to 1, of the steps taken,

    .. math:: \bar w_t = \frac{\sum_{k=1}^{t}\beta^{t-k}w_k}{\sum_{k=1}^{t}\beta^{t-k}}
        = \beta_t\,\bar w_{t-1} + (1-\beta_t)\,w_t,
        \qquad \beta_t = \beta\,\frac{1-\beta^{t-1}}{1-\beta^{t}}

    and :math:`\beta_t` is returned. It rises from 0 towards :math:`\beta`.

    Parameters
    ----------
    step : int
        The number of steps taken, at least 1.
    decay : float
        In ``(0, 1)``. About ``1 / (1 - decay)`` steps count.

    Notes
    -----
    With :math:`\beta` at every step the first weights, which are hardly trained, would keep the
    share :math:`\beta^{t-1}`: a tenth after 2300 steps with a decay of 0.999. Here they have no
    more than their place in the mean gives them.

    Examples
    --------
    >>> [round(ema_decay(step, 0.9), 4) for step in (1, 2, 3, 1000)]
    [0.0, 0.4737, 0.631, 0.9]
    """
    return decay * (1 - decay ** (step - 1)) / (1 - decay**step)


def epoch_batches(
    lengths: Sequence[int], batch_size: int, *, seed: int, epoch: int
) -> list[list[int]]:
    """Cut one epoch into batches of similar length, in an order of its own.

    The examples are shuffled, then sorted by length within pools of 16 batches, cut, and the
    batches shuffled. Each example is in exactly one batch. The result depends on the arguments
    alone.

    Parameters
    ----------
    lengths : sequence of int
        One per example; any unit.
    batch_size : int
        Examples per batch; one batch may be smaller.
    seed, epoch : int
        Both ``>= 0``; each pair has its own order.

    Returns
    -------
    list of list of int
        Indices into `lengths`.

    Examples
    --------
    >>> batches = epoch_batches([9, 1, 8, 2, 1], 2, seed=0, epoch=1)
    >>> sorted(map(sorted, batches))
    [[0], [1, 4], [2, 3]]
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths)).tolist()
    batches: list[list[int]] = []
    for start in range(0, len(order), _POOL * batch_size):
        pool = sorted(order[start : start + _POOL * batch_size], key=lengths.__getitem__)
        batches += [pool[cut : cut + batch_size] for cut in range(0, len(pool), batch_size)]
    return [batches[k] for k in rng.permutation(len(batches))]


def set_seed(seed: int, *, epoch: int = 0, rank: int = 0) -> None:
    """Set the global generators of `random`, `numpy` and `torch` from three numbers.

    `lib.extraction.training.train` calls it at the start of each epoch, counted from 1, so that
    nothing random reaches from one epoch into the next. Epoch 0 is for making the model.

    Parameters
    ----------
    seed, epoch, rank : int
        All ``>= 0``; each three have their own random numbers. `rank` counts the processes.

    Examples
    --------
    >>> set_seed(7)
    >>> first = torch.rand(1)
    >>> set_seed(7)
    >>> bool(first == torch.rand(1))
    True
    """
    drawn = int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0])
    random.seed(drawn)
    np.random.seed(drawn)
    torch.manual_seed(drawn)
