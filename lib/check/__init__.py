"""Exercises that answer: your function goes in, out comes which property it breaks.

Each function here belongs to an exercise of the book. It calls the function that you pass, on
inputs that show one property after the other, and stops at the first that does not hold: what
holds so far, what breaks, what that means, and the input that shows it. Nothing is evaluated but
what you pass.

>>> import torch
>>> from lib import check
>>> check.resting_scores(lambda targets: torch.logit(targets, eps=1e-6) / 2)
resting_scores: not yet right.
  holds   one half rests on the line
  holds   nine tenths rest at log 3
  holds   one tenth and nine tenths are mirror images
  holds   the gradient of the loss vanishes there
  breaks  one in a billion, nearly one
A clip has moved the degree: half the log-odds of 1e-9 are near -10.4.
  targets   [1e-09, 1]
  expected  [-10.361633, 10.361633]
  got       [-6.9077548, 6.9077548]

A function that raises, changes its arguments, or gives back what cannot be compared, is told so in
the same form. Whatever is no function raises a :class:`TypeError`.
"""

from lib.check._casrel import half_pointer_loss, nearest_end_spans
from lib.check._divergence import sigmoid_divergence, softmax_divergence
from lib.check._emo import emo_loss, kernel_score_loss
from lib.check._exact import best_two, log_expected_accuracy
from lib.check._global_pointer import apply_rope, factorised_spans
from lib.check._gplinker import decode_tables, table_loss
from lib.check._report import Report
from lib.check._soft_zlpr import resting_scores, soft_zlpr_loss
from lib.check._softmax import cross_entropy, smooth_max
from lib.check._zlpr import zlpr_gradient, zlpr_loss

__all__ = [
    "Report",
    "apply_rope",
    "best_two",
    "cross_entropy",
    "decode_tables",
    "emo_loss",
    "factorised_spans",
    "half_pointer_loss",
    "kernel_score_loss",
    "log_expected_accuracy",
    "nearest_end_spans",
    "resting_scores",
    "sigmoid_divergence",
    "smooth_max",
    "soft_zlpr_loss",
    "softmax_divergence",
    "table_loss",
    "zlpr_gradient",
    "zlpr_loss",
]
