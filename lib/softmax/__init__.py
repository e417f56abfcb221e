r"""Smooth maxima: log-sum-exp with a scale and a mask, in a stream, and over subsets.

What PyTorch has is not written again (``softmax``, ``log_softmax``, ``cross_entropy``). Here is
what chapter 1 derives beyond it.

How the numbers stay right:

* a log-sum-exp is kept as two numbers, the largest score and the logarithm of the sum above it,
  until the end. Their rounded sum is what PyTorch's backward pass starts from; at scores near 1e4
  in single precision its gradient is therefore off by up to half a thousandth. This one is not;
* the maximum over nothing (a row without a counting score) is minus infinity with gradient zero;
* half-precision input is computed in float32, sums over subsets in float64;
* sums over subsets only add: every term is positive, so nothing cancels.

How it is fast on a CPU: rows go through a scratch buffer that fits the cache, in place; the
backward pass recomputes the exponentials from two numbers per row; and the exponential is ``exp2``,
because PyTorch's ``exp`` is many times slower where it underflows.
"""

from collections.abc import Callable, Iterable
from math import inf, log, nan

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lib import _checks, _refusals
from lib.softmax._arguments import (
    check_scores,
    checked_gamma,
    checked_subset_size,
    index_of,
    refuse_nan,
)
from lib.softmax._pairs import merged, pair_of
from lib.softmax._subsets import float64_rows, log_z, log_z_and_shares

__all__ = [
    "inclusion_probabilities",
    "log1mexp",
    "smooth_f1",
    "smooth_max",
    "streaming_logsumexp",
    "subset_logsumexp",
]


def smooth_max(
    scores: Tensor, *, gamma: float | Tensor = 1.0, mask: Tensor | None = None, dim: int = -1
) -> Tensor:
    r"""Smooth maximum along one dimension: log-sum-exp at inverse temperature ``gamma``.

    .. math::
        \mathrm{LSE}_\gamma(s) = \frac1\gamma \log \sum_{i} e^{\gamma s_i},
        \qquad
        \max_i s_i \le \mathrm{LSE}_\gamma(s) \le \max_i s_i + \frac{\log n}\gamma

    The sum runs over the :math:`n` scores that count. The gradient is
    :math:`\mathrm{softmax}(\gamma s)`.

    Equations: :eq:`eq:lse-definition`, :eq:`eq:lse-shift-trick`, :eq:`eq:lse-bounds`,
    :eq:`eq:softmax-gradient`

    Parameters
    ----------
    scores
        Any shape with at least one dimension and at least one entry along ``dim``; any floating
        dtype. Finite or :math:`-\infty`; a score of :math:`-\infty` does not count and gets
        gradient zero.
    gamma
        Inverse temperature, from 1e-30 to 1e30: a number, or a floating tensor without dimensions,
        which gets a gradient. Larger is sharper.
    mask
        Bool, broadcastable to ``scores``; True counts. Scores that do not count get gradient
        exactly zero and may hold anything.
    dim
        The dimension to reduce.

    Returns
    -------
    Tensor
        The shape of ``scores`` without ``dim``. float32 for half-precision scores, else their
        dtype. Where no score counts: :math:`-\infty`, the maximum over nothing, with gradient zero.

    Raises
    ------
    TypeError
        An argument has the wrong type or a dtype of the wrong kind.
    ValueError
        Shapes or devices disagree; ``gamma`` is out of range; a counting score is NaN or
        :math:`+\infty`.
    IndexError
        There is no such ``dim``.

    Notes
    -----
    Right to a few units in the last place of the larger of value and :math:`1/\gamma`, at any
    scale of the scores. Each entry of the gradient is right to a few units in its last place,
    times one plus its depth :math:`\gamma(\max_j s_j - s_i)`. With ``gamma=1`` and no mask it is
    ``torch.logsumexp``, whose gradient is NaN where nothing counts and whose backward pass starts
    from the rounded result.

    Where no Python error can depend on a value (``torch.compile``, ``torch.func`` transforms, …), a
    bad score makes its result NaN instead. Derivatives of any order exist.

    Source: Su (kexue 3290); textbook.

    Examples
    --------
    >>> import torch
    >>> scores = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64).log()
    >>> [f"{smooth_max(scores, gamma=gamma):.4f}" for gamma in (1, 2, 100)]
    ['1.7918', '1.3195', '1.0986']
    >>> smooth_max(scores, mask=torch.tensor([False, False, False])).item()
    -inf
    """
    dim, _ = check_scores("scores", scores, dim)
    mask = _checks.check_mask(mask, scores, "scores")
    top, excess = pair_of("scores", scores, mask, checked_gamma(gamma), dim)
    return top + excess


def streaming_logsumexp(
    chunks: Iterable[Tensor | Callable[[], Tensor]], *, dim: int = -1
) -> Tensor:
    r"""Log-sum-exp of scores that arrive, or are made, chunk by chunk.

    ``torch.logsumexp(torch.cat(chunks, dim), dim)`` without the concatenation: a running maximum
    and a running sum are all that is kept of the chunks that went by,

    .. math::
        (M, S) \oplus (M', S') = \bigl(M^*,\ S e^{M - M^*} + S' e^{M' - M^*}\bigr),
        \qquad M^* = \max(M, M').

    Equations: :eq:`eq:lse-associative`, :eq:`eq:lse-stream`, :eq:`eq:lse-stream-gradient`

    Parameters
    ----------
    chunks
        Tensors, or functions without arguments that return one. They agree in shape but for
        ``dim``, in dtype and in device; scores as in :func:`smooth_max`. The iterable is gone
        through once, so a generator will do.

        A *function's* result is dropped when it has been summed, and the function is called again
        in the backward pass, so neither pass holds more than one chunk. It must return the same
        values each time; gradients reach the tensors that it uses. A *tensor* that needs a gradient
        is kept by whoever made it.
    dim
        The dimension that is cut into chunks, and reduced.

    Returns
    -------
    Tensor
        The shape of a chunk without ``dim``; float32 for half-precision scores. :math:`-\infty`,
        with gradient zero, where no score counts.

    Raises
    ------
    TypeError
        ``chunks`` is itself a tensor or a function; a chunk is neither a tensor of a floating dtype
        nor a function that returns one; ``dim`` is no integer.
    ValueError
        There are no chunks; chunks disagree; a score is NaN or :math:`+\infty`.
    IndexError
        There is no such ``dim``.

    Notes
    -----
    Each merge rounds the sum once, so the error grows with the number of chunks, in units of the
    last place of 1, not of the value. Bad scores and derivatives as in :func:`smooth_max`.

    Source: associativity is textbook; ours in this form.

    Examples
    --------
    >>> import torch
    >>> scores = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64).log()
    >>> f"{streaming_logsumexp(scores.split(2)):.4f}"
    '1.7918'
    >>> hidden, weight = torch.eye(2, dtype=torch.float64), torch.ones(9, 2, dtype=torch.float64)
    >>> parts = [lambda rows=rows: hidden @ rows.T for rows in weight.split(4)]
    >>> [f"{value:.4f}" for value in streaming_logsumexp(parts)]
    ['3.1972', '3.1972']
    """
    # Iterating over a tensor would cut it along its first dimension, whatever ``dim`` says.
    if isinstance(chunks, Tensor) or (callable(chunks) and not isinstance(chunks, Iterable)):
        raise TypeError(
            f"chunks must be an iterable of tensors or functions, got {type(chunks).__name__}; "
            f"write [chunks] for one"
        )
    top: Tensor | None = None
    excess: Tensor | None = None
    for number, chunk in enumerate(chunks):
        name = f"chunks[{number}]"
        if callable(chunk) and torch.is_grad_enabled() and not _checks.in_transform():
            found = checkpoint(_pair_of_chunk, name, chunk, dim, use_reentrant=False)
        else:
            found = _pair_of_chunk(name, chunk, dim)
        if top is None or excess is None:
            top, excess = found
            continue
        for what in ("shape", "dtype", "device"):
            before, now = getattr(top, what), getattr(found[0], what)
            if before != now:
                raise ValueError(
                    f"chunks must agree in {what} apart from dim {dim}, expected "
                    f"{_plain(before)} as in chunks[0], got {_plain(now)} in {name}"
                )
        top, excess = merged(top, excess, *found)
    if top is None or excess is None:
        raise ValueError("chunks must hold at least 1 tensor, got none")
    return top + excess


def subset_logsumexp(
    scores: Tensor, k: int, *, mask: Tensor | None = None, dim: int = -1
) -> Tensor:
    r"""Log-sum-exp over all subsets of ``k`` scores, a subset scoring the sum of its members.

    .. math::
        \log Z_k(s), \qquad
        Z_k(s) = \sum_{i_1 < \dots < i_k} e^{s_{i_1} + \dots + s_{i_k}}

    The normaliser of a softmax over :math:`\binom nk` subsets, in about :math:`nk` steps: halves
    of the scores are combined by :math:`Z_t = \sum_{i + j = t} Z_i Z_j`, pair by pair.

    Equations: :eq:`eq:smooth-subset`, :eq:`eq:smooth-subset-merge`, :eq:`eq:comb-loss`

    Parameters
    ----------
    scores, mask, dim
        As in :func:`smooth_max`.
    k
        Size of the subsets, from 0 to the number of scores along ``dim``.

    Returns
    -------
    Tensor
        The shape of ``scores`` without ``dim``, computed in float64; dtype as :func:`smooth_max`.
        :math:`-\infty`, with gradient zero, where fewer than ``k`` scores count; 0 for ``k = 0``.

    Raises
    ------
    TypeError, ValueError, IndexError
        As :func:`smooth_max`; ``k`` not an integer or out of range.

    Notes
    -----
    All terms are positive and stay logarithms, so nothing cancels or overflows. Newton's
    identities, which the source proposes, cancel (chapter 2, :eq:`eq:comb-cancellation`).
    Memory of the backward pass: some multiples of ``n * k`` numbers per row. Compiled code has
    one graph for each number of scores, as the tree of halves is another one.

    Source: Su 2020 (kexue 7359) for the loss; combining halves is textbook.

    Examples
    --------
    >>> import torch
    >>> scores = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64).log()
    >>> [f"{subset_logsumexp(scores, k).exp():.0f}" for k in range(4)]
    ['1', '6', '11', '6']
    """
    dim, size = check_scores("scores", scores, dim)
    mask = _checks.check_mask(mask, scores, "scores")
    k = checked_subset_size(k, size)
    result = log_z(float64_rows(scores, mask, dim), k)
    refuse_nan(result, "scores", scores, mask)
    return result.to(_checks.compute_dtype(scores.dtype))


def inclusion_probabilities(
    scores: Tensor, k: int, *, mask: Tensor | None = None, dim: int = -1
) -> Tensor:
    r"""Probability that a random ``k``-subset contains each score: an exact soft top-``k``.

    The subset :math:`I` is drawn with probability proportional to :math:`e^{\sum_{i \in I} s_i}`:

    .. math::
        \Pr(i \in I) = \frac{\partial \log Z_k}{\partial s_i}, \qquad
        \sum_i \Pr(i \in I) = k.

    ``k = 1`` is softmax. Multiply the scores by a large number for a nearly hard top-``k``.

    Equations: :eq:`eq:smooth-inclusion`, :eq:`eq:comb-gradient`, :eq:`eq:comb-inclusion-sum`

    Parameters
    ----------
    scores, k, mask, dim
        As in :func:`subset_logsumexp`.

    Returns
    -------
    Tensor
        The shape of ``scores``; between 0 and 1 and of sum ``k`` along ``dim``, to rounding;
        exactly 0 where a score does not count. dtype as :func:`smooth_max`.

    Raises
    ------
    TypeError, ValueError, IndexError
        As :func:`subset_logsumexp`; fewer than ``k`` scores count.

    Notes
    -----
    Computed in float64; can be differentiated, as often as one likes. Where no Python error can
    depend on a value, a row in which fewer than ``k`` scores count is NaN.

    Source: ours; the distribution is Su 2020 (kexue 7359).

    Examples
    --------
    >>> import torch
    >>> scores = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64).log()
    >>> [f"{11 * share:.4f}" for share in inclusion_probabilities(scores, 2)]
    ['9.0000', '8.0000', '5.0000']
    """
    dim, size = check_scores("scores", scores, dim)
    mask = _checks.check_mask(mask, scores, "scores")
    k = checked_subset_size(k, size)
    rows = float64_rows(scores, mask, dim)
    logs, shares = log_z_and_shares(rows, k)
    few = logs == -inf
    shares = shares.masked_fill((few | logs.isnan()).unsqueeze(-1), nan)
    if _checks.values_readable(scores, mask) and bool(shares.isnan().any()):
        refuse_nan(logs, "scores", scores, mask)
        row = _refusals.first_true(few)
        counting = int((rows[row] != -inf).sum())
        place = f" in row {index_of(row)}" if row else ""
        raise ValueError(
            f"k must be at most the number of scores that count, got k = {k} "
            f"and {counting} counting{place}"
        )
    moved: Tensor = shares.movedim(-1, dim)
    return moved.to(_checks.compute_dtype(scores.dtype))


def smooth_f1(
    probabilities: Tensor, targets: Tensor, *, mask: Tensor | None = None, dim: int | None = None
) -> Tensor:
    r"""F1 of probabilities, by its formula for zeros and ones.

    .. math::
        F = \frac{2 \sum_i y_i p_i}{\sum_i (y_i + p_i)}, \qquad
        \frac{\partial F}{\partial p_i} = \frac{2 y_i - F}{\sum_j (y_j + p_j)}

    Raising :math:`p_i` pays where :math:`y_i > F/2`. The loss is ``1 - smooth_f1(...)``.

    Equations: :eq:`eq:smooth-f1`, :eq:`eq:smooth-f1-gradient`

    Parameters
    ----------
    probabilities
        Numbers in [0, 1], any shape, any floating dtype.
    targets
        Numbers in [0, 1] of the same shape, bool or any real dtype.
    mask
        Bool, broadcastable to ``probabilities``; True counts. What does not count may hold
        anything and gets gradient exactly zero.
    dim
        The dimension that is summed over, for one F1 per class or per sample; all together if
        None, which gives the micro-averaged F1 of a table.

    Returns
    -------
    Tensor
        A scalar, or the shape of ``probabilities`` without ``dim``; float32 for half precision.
        0, with gradient 0, where all counting probabilities and targets are 0: without a positive
        target F is 0 at every other point.

    Raises
    ------
    TypeError
        An argument is no tensor or has a dtype of the wrong kind; ``dim`` is neither None nor an
        integer.
    ValueError
        Shapes or devices disagree; a counting number is outside [0, 1] or NaN.
    IndexError
        There is no such ``dim``.

    Notes
    -----
    F1 is no mean over samples. The mean of the F1 of mini-batches is another number
    (:eq:`eq:smooth-f1-batch`). Where no Python error can depend on a value, bad numbers give a
    result without meaning.

    Source: Su 2019 (kexue 6620); the gradient rule is ours.

    Examples
    --------
    >>> import torch
    >>> probabilities = torch.tensor([0.5, 0.5, 1.0, 0.0], dtype=torch.float64)
    >>> f"{smooth_f1(probabilities, torch.tensor([1, 0, 1, 1])):.4f}"
    '0.6000'
    """
    _checks.check_floating("probabilities", probabilities)
    _checks.check_labels("targets", targets, probabilities, "probabilities")
    mask = _checks.check_mask(mask, probabilities, "probabilities")
    if dim is not None:
        dim = _checks.as_index("dim", dim)
    dtype = _checks.compute_dtype(probabilities.dtype)
    p, y = probabilities.to(dtype), targets.to(dtype)
    if mask is not None:
        p, y = p.masked_fill(~mask, 0), y.masked_fill(~mask, 0)
    if _checks.values_readable(probabilities, targets, mask):
        for name, values in (("probabilities", p), ("targets", y)):
            bad = ~((values >= 0) & (values <= 1))
            if bool(bad.any()):
                place = _refusals.first_true(bad)
                raise ValueError(
                    f"{name} must be in [0, 1] where they count, got "
                    f"{values[place].item():g} at {name}{index_of(place)}"
                )
    axis = tuple(range(p.dim())) if dim is None else dim
    both, total = (y * p).sum(axis), (y + p).sum(axis)
    return 2 * both / total.masked_fill(total == 0, 1)


def log1mexp(u: Tensor) -> Tensor:
    r"""Logarithm of one minus an exponential, :math:`\log(1 - e^u)` for :math:`u \le 0`.

    The logarithm of a complementary probability. Each of the two obvious ways loses digits on one
    side of :math:`-\log 2`; this takes the other one there.

    Equations: :eq:`eq:lse-log1mexp`

    Parameters
    ----------
    u
        Any shape, any floating dtype, at most 0; :math:`-\infty` is allowed.

    Returns
    -------
    Tensor
        The shape of ``u``; float32 for half precision. :math:`-\infty`, with gradient
        :math:`-\infty`, at 0.

    Raises
    ------
    TypeError
        ``u`` is no tensor of a floating dtype.
    ValueError
        An entry is above 0 or NaN.

    Notes
    -----
    Right to a few units in the last place, and so is the gradient. Where no Python error can
    depend on a value, a bad entry gives NaN.

    Source: Mächler 2012.

    Examples
    --------
    >>> import torch
    >>> print(log1mexp(torch.tensor([-1e-20, -100.0], dtype=torch.float64)))
    tensor([-4.6052e+01, -3.7201e-44], dtype=torch.float64)
    """
    _checks.check_floating("u", u)
    if _checks.values_readable(u) and bool((bad := ~(u <= 0)).any()):
        place = _refusals.first_true(bad)
        raise ValueError(f"u must be at most 0, got {u[place].item():g} at u{index_of(place)}")
    values = u.to(_checks.compute_dtype(u.dtype))
    near = values > -log(2)
    # Each way sees a harmless number where the other one is taken: the gradient of a way not taken
    # is multiplied by zero, and zero times infinity is NaN.
    harmless = values.new_tensor(-log(2))
    by_expm1 = (0 - torch.expm1(torch.where(near, values, harmless))).log()  # 0 - 0 is +0
    by_log1p = torch.log1p(-torch.where(near, harmless, values).exp())
    return torch.where(near, by_expm1, by_log1p)


def _pair_of_chunk(
    name: str, chunk: Tensor | Callable[[], Tensor], dim: int
) -> tuple[Tensor, Tensor]:
    scores = chunk() if callable(chunk) else chunk
    dim, _ = check_scores(name, scores, dim)
    return pair_of(name, scores, None, 1.0, dim)


def _plain(value: object) -> object:
    return tuple(value) if isinstance(value, torch.Size) else value
