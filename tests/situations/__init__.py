"""What works where: every public function and module in every situation PyTorch users bring.

A :class:`Subject` says how to make inputs for a public name, how to call it and what of the inputs
is differentiable; a :class:`Situation` runs a subject in one setting (compiled, under autocast,
mapped, sharded, …) and compares values and gradients with the eager float64 result. A cell of the
table *passes*, or is a *documented refusal* (an error of the stated type and words, whose rule
stands in the docstring), or does not apply, for a reason given once.

``tests/battery.py`` asks whether values are right at the extremes; this asks whether they stay
right around a loss. ``python -m tests.situations zlpr_loss`` prints one row, ``--write`` stores the
table that the book shows and ``tests/test_situations.py`` compares with.
"""
