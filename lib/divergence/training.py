"""Two ways to train with a divergence of scores: R-Drop and virtual adversarial training."""

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor

from lib import _checks

__all__ = ["Divergence", "r_drop", "virtual_adversarial_direction", "virtual_adversarial_loss"]

Divergence = Callable[[Tensor, Tensor], Tensor]
"""Takes two score tensors and gives one value per position, or one for all."""


def r_drop(
    first: Tensor,
    second: Tensor,
    loss: Callable[[Tensor], Tensor],
    divergence: Divergence,
    *,
    alpha: float,
) -> Tensor:
    r"""Mean loss of two passes with different dropout, plus a price for their disagreement.

    .. math:: \mathcal L = \tfrac12\bigl(\ell(s) + \ell(u)\bigr) + \tfrac\alpha4\, D(s, u)

    This is half the objective of the paper, so its :math:`\alpha` and its learning rate keep their
    meaning under Adam, and equals the published code for a doubled batch.

    Equations: :eq:`eq:rdrop-mean`, :eq:`eq:rdrop-doubled`, :eq:`eq:rdrop-variance`

    Parameters
    ----------
    first, second
        Logits of two passes of one batch, of one shape.
    loss
        Logits to a scalar, with the labels inside.
    divergence
        Two logits to a scalar, symmetric: a function of this module, with its mask bound by
        ``functools.partial``.
    alpha
        Weight in the paper's convention, at least 0. The paper tries 1 to 5.

    Returns
    -------
    Tensor
        Scalar.

    Raises
    ------
    TypeError
        ``first``, ``second``, or what a callable returned is not a tensor.
    ValueError
        The shapes differ, ``alpha`` is negative or not finite, or what a callable returned is not
        a scalar.

    Notes
    -----
    Source: Liang et al. 2021, with the constants of Su's implementation.

    Examples
    --------
    >>> from functools import partial
    >>> from lib.divergence import sigmoid_divergence
    >>> from lib.zlpr import zlpr_loss
    >>> first, second = torch.zeros(2, 1, 3, dtype=torch.float64) + torch.tensor([[[0.0]], [[1.0]]])
    >>> loss = partial(zlpr_loss, targets=torch.tensor([[1, 0, 0]]))
    >>> print(f"{r_drop(first, second, loss, sigmoid_divergence, alpha=4):.4f}")
    2.6767
    """
    _check_tensor("first", "be", first)
    _check_tensor("second", "be", second)
    if first.shape != second.shape:
        raise ValueError(
            f"second must have the shape of first, expected {tuple(first.shape)}, "
            f"got {tuple(second.shape)}"
        )
    _check_number("alpha", alpha, zero=True)
    mean = (_scalar("loss", loss(first)) + _scalar("loss", loss(second))) / 2
    return mean + alpha / 4 * _scalar("divergence", divergence(first, second))


def virtual_adversarial_direction(
    forward: Callable[[Tensor], Tensor],
    inputs: Tensor,
    divergence: Divergence,
    *,
    xi: float,
    steps: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Direction of each input along which the scores change most, by power iteration.

    .. math:: r \leftarrow \frac{g}{\|g\|}, \qquad
        g = \nabla_r\, D\bigl(f(x + \xi r), f(x)\bigr)

    from a random unit vector *r*. Near :math:`r = 0` the divergence is a quadratic form, so the
    gradient multiplies *r* by its matrix, and repeating this turns *r* to the eigenvector of the
    largest eigenvalue.

    The divergences of this module lose no digits for tiny changes, but :math:`x + \xi r` and
    `forward` are rounded: keep :math:`\xi` well above the machine epsilon times the length of a
    sample (word vectors in float32: 1e-3 or more).

    Equations: :eq:`eq:vat-power`, :eq:`eq:vat-quadratic`, :eq:`eq:vat-convergence`

    Parameters
    ----------
    forward
        Inputs ``(B, ...)`` to logits. Deterministic (no dropout), each sample for itself,
        differentiable. It runs outside of autocast, and must not open such a region itself.
    inputs
        What is disturbed, ``(B, ...)``, float32 or float64: word vectors, say. In float16 and
        bfloat16 a probe of this kind vanishes in the sum.
    divergence
        Two logits to one value per position or one for all. Scores that did not move have
        divergence and gradient 0.
    xi
        Length of the probing step, above 0.
    steps
        Power iterations, at least 1; each is one forward and one backward pass.
    generator
        Where the start comes from.

    Returns
    -------
    Tensor
        Shape and dtype of `inputs`, detached. Each sample has length 1 over all its other
        dimensions. Where the gradient is zero the direction stays as it was.

    Raises
    ------
    TypeError
        `inputs` is not a tensor of float32 or float64, `steps` is no int, `forward` returns
        half-precision scores, or `divergence` does not return a tensor.
    ValueError
        `inputs` has fewer than two dimensions, `xi` is not positive and finite, `steps` < 1, or
        the scores do not depend on the inputs in a way that can be differentiated. It does not
        run in inference mode, where nothing can be.
    RuntimeError
        It does not run inside ``torch.func`` transforms: it draws numbers and differentiates.

    Notes
    -----
    Gradients of the model's parameters are not touched. Source: Miyato et al. 2018.

    Examples
    --------
    >>> from lib.divergence import sigmoid_divergence
    >>> weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> r = virtual_adversarial_direction(
    ...     lambda x: x @ weight.T, torch.zeros(1, 2, dtype=torch.float64), sigmoid_divergence,
    ...     xi=1e-6, steps=9, generator=torch.Generator().manual_seed(0))
    >>> [f"{abs(v):.4f}" for v in r[0]]
    ['1.0000', '0.0000']
    """
    steps = _checked_steps(inputs, xi, steps)
    with _checks.no_autocast(inputs):
        target = _scores(forward, inputs)
        return _direction(forward, inputs.detach(), target, divergence, xi, steps, generator)


def virtual_adversarial_loss(
    forward: Callable[[Tensor], Tensor],
    inputs: Tensor,
    divergence: Divergence,
    *,
    epsilon: float,
    xi: float,
    steps: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Divergence between the scores and those at the worst disturbed input; needs no labels.

    .. math:: \mathcal L_{\mathrm{vat}} = D\bigl(f(x + \epsilon r), f(x)\bigr)

    with *r* from :func:`virtual_adversarial_direction`. Neither *r* nor the undisturbed scores
    pass on a gradient. Like the direction, the loss is computed outside of autocast: both score
    vectors must be rounded alike, and finely, for their difference to be a small number.

    Equations: :eq:`eq:vat-loss`, :eq:`eq:vat-value`

    Parameters
    ----------
    forward, inputs, divergence, xi, steps, generator
        As in :func:`virtual_adversarial_direction`.
    epsilon
        Length of the disturbance of each sample, above 0.

    Returns
    -------
    Tensor
        What `divergence` returns.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As :func:`virtual_adversarial_direction`; `epsilon` is not positive and finite.

    Notes
    -----
    Source: Miyato et al. 2018.

    Examples
    --------
    >>> from lib.divergence import sigmoid_divergence
    >>> weight = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> loss = virtual_adversarial_loss(
    ...     lambda x: x @ weight.T, torch.zeros(1, 2, dtype=torch.float64), sigmoid_divergence,
    ...     epsilon=1.0, xi=1e-6, steps=9, generator=torch.Generator().manual_seed(0))
    >>> print(f"{loss:.4f}")  # 3 (σ(3) - σ(0))
    1.3577
    """
    steps = _checked_steps(inputs, xi, steps)
    _check_number("epsilon", epsilon)
    with _checks.no_autocast(inputs):
        target = _scores(forward, inputs)
        r = _direction(forward, inputs.detach(), target, divergence, xi, steps, generator)
        return divergence(forward(inputs + epsilon * r), target)


def _scores(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Undisturbed scores, without a gradient; not in a dtype in which a probe vanishes."""
    with torch.no_grad():
        scores = forward(inputs)
    if isinstance(scores, Tensor) and scores.dtype in (torch.float16, torch.bfloat16):
        raise TypeError(f"forward must return scores of float32 or float64, got {scores.dtype}")
    return scores


def _direction(
    forward: Callable[[Tensor], Tensor],
    inputs: Tensor,
    target: Tensor,
    divergence: Divergence,
    xi: float,
    steps: int,
    generator: torch.Generator | None,
) -> Tensor:
    # Drawn where the generator lives: one on the CPU serves inputs on any device. And in one dtype,
    # so that a seed gives one start whatever the inputs' or the default dtype.
    place = inputs.device if generator is None else generator.device
    r = torch.randn(inputs.shape, generator=generator, device=place, dtype=torch.float32).to(inputs)
    r = _unit(r, r)
    for _ in range(steps):
        probe = r.clone().requires_grad_()
        with torch.enable_grad():
            moved = divergence(forward(inputs + xi * probe), target)
        _check_tensor("divergence", "return", moved)
        # Without a graph there is nothing to ask. With one that leads to parameters only, the
        # answer is None. Neither may pass as a gradient of zero, which keeps the random start.
        gradient = None
        if moved.requires_grad:
            (gradient,) = torch.autograd.grad(moved.sum(), probe, allow_unused=True)
        if gradient is None:
            raise ValueError(
                "forward and divergence must be differentiable in the inputs "
                "(and not run in inference mode), got a value without a gradient"
            )
        r = _unit(gradient, r)
    return r


def _unit(vectors: Tensor, otherwise: Tensor) -> Tensor:
    """Each sample divided by its length, or what stood there if its length is 0."""
    flat = vectors.flatten(1)
    # By the largest entry first: squares of tiny gradients underflow.
    top = flat.abs().amax(1, keepdim=True)
    flat = flat / top.masked_fill(top == 0, 1)
    length = flat.norm(dim=1, keepdim=True)
    flat = torch.where(top == 0, otherwise.flatten(1), flat / length.masked_fill(top == 0, 1))
    return flat.view_as(vectors)


def _checked_steps(inputs: Tensor, xi: float, steps: int) -> int:
    """Check what the two functions share; return the steps as an int."""
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        kind = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TypeError(f"inputs must be a floating-point tensor, got {kind}")
    if inputs.dtype not in (torch.float32, torch.float64):
        # x + xi r would round to x, and the random start would come back as the answer.
        raise TypeError(f"inputs must have dtype float32 or float64, got {inputs.dtype}")
    if inputs.dim() < 2:
        raise ValueError(f"inputs must have shape (B, ...), got {tuple(inputs.shape)}")
    _check_number("xi", xi)
    steps = _checks.as_index("steps", steps)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if _checks.in_transform():
        raise RuntimeError(
            "virtual adversarial training must be called outside of torch.func transforms, "
            "got a call inside one"
        )
    return steps


def _check_number(name: str, value: float, *, zero: bool = False) -> None:
    if not (0 < value < inf or (zero and value == 0)):
        bound = "at least 0" if zero else "above 0"
        raise ValueError(f"{name} must be {bound} and finite, got {value}")


def _check_tensor(name: str, duty: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must {duty} a torch.Tensor, got {type(value).__name__}")


def _scalar(name: str, value: Tensor) -> Tensor:
    _check_tensor(name, "return", value)
    if value.dim() != 0:
        raise ValueError(f"{name} must return a scalar, got shape {tuple(value.shape)}")
    return value
