"""One harness, many losses: inputs that break published code, and what a right answer is.

A loss brings three things: how to call it for one value per position, how to turn a case's boolean
targets into its labels, and a float64 reference of one row. It then meets every case: ordinary
input in four dtypes, trained scores whose loss is nearly zero, scores at the ends of the dtype,
empty and full sets, ties, repeated and padded labels, cells that do not count, odd shapes, memory
out of order, and input that must be refused.

A loss of soft labels meets the same cases again with targets between 0 and 1, of four kinds, and
its gradient with respect to the targets is looked at too.

``python -m tests.battery`` prints the tables of losses and cases; ``tests/test_zlpr.py`` and
``tests/test_soft_zlpr.py`` assert them.
"""

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from lib.soft_zlpr import soft_zlpr_loss
from lib.zlpr import sparse_zlpr_loss, zlpr_loss
from references.bert4torch import bert4torch_losses

INF = math.inf
Row = tuple[float, list[float]]
Parts = tuple[list[float], list[float], list[float], list[float]]


@dataclass(frozen=True)
class Case:
    """Logits as the loss gets them, the true targets, and whether the input must be refused.

    Targets are bool, or numbers in [0, 1] for losses of soft labels.
    """

    name: str
    logits: Tensor
    targets: Tensor
    mask: Tensor | None = None
    refused: bool = False
    refused_as_list: bool = False  # a list must not name a cell that does not count
    repeated: bool = False  # lists of positives name one class twice

    def to(self, device: str) -> "Case":
        """Return the case on another device."""
        mask = None if self.mask is None else self.mask.to(device)
        logits, targets = self.logits.to(device), self.targets.to(device)
        return replace(self, logits=logits, targets=targets, mask=mask)

    def counting(self) -> Tensor:
        """Cells that count: not masked, not at minus infinity."""
        counts = self.logits != -INF
        return counts if self.mask is None else counts & self.mask


@dataclass(frozen=True)
class Loss:
    """A loss under test.

    ``call(logits, labels, mask, reduction)``; ``labels(case)``; ``row(scores, targets)`` gives
    value and gradient of one row of counting cells in float64. ``masks`` says whether the loss
    takes a mask at all: one that does not gets minus infinity in those cells, its usual stand-in.

    A loss of soft labels has two groups over the same cells. ``parts(scores, targets)`` gives, for
    each cell, what the positive and the negative group contribute to the gradient of the logits and
    to that of the targets; both gradients are differences, so rounding is relative to the parts.
    """

    name: str
    call: Callable[[Tensor, Tensor, Tensor | None, str], Tensor]
    labels: Callable[[Case], Tensor]
    row: Callable[[Sequence[float], Sequence[float]], Row]
    masks: bool = True
    listed: bool = False  # it takes lists of positives
    parts: Callable[[Sequence[float], Sequence[float]], Parts] | None = None


@dataclass
class Outcome:
    """What became of one loss on one case; errors are in units of the tolerance.

    Verdicts: ``right``; ``inexact`` (beyond rounding, yet within a hundredth of the value or of 1,
    whichever is more, and of the upstream gradient); ``wrong`` (beyond that, or a gradient on a
    cell that does not count, or reductions that disagree); ``non-finite``; ``raises`` on good
    input; ``not refused``, bad input that gave a number, be it NaN.
    """

    verdict: str
    value_error: float = 0.0
    gradient_error: float = 0.0
    notes: list[str] = field(default_factory=list)


# ------------------------------------------------------------------------------------ references


def log1p_sum_exp(terms: Sequence[float]) -> tuple[float, list[float]]:
    """``log(1 + sum exp)`` and its gradient, one term at a time, with exact summation."""
    top = max(terms, default=-INF)
    if top <= 0:
        parts = [math.exp(term) for term in terms]
        total = math.fsum(parts)
        return math.log1p(total), [part / (1 + total) for part in parts]
    parts = [math.exp(term - top) for term in terms]
    total = math.fsum([math.exp(-top), *parts])
    return top + math.log(total), [part / total for part in parts]


def zlpr_row(scores: Sequence[float], targets: Sequence[bool]) -> Row:
    """Loss and gradient of one row by the definition: two groups, one term after the other."""
    negative, push = log1p_sum_exp([s for s, y in zip(scores, targets, strict=True) if not y])
    positive, pull = log1p_sum_exp([-s for s, y in zip(scores, targets, strict=True) if y])
    down, up = iter(push), iter(pull)
    return negative + positive, [-next(up) if y else next(down) for y in targets]


def soft_parts(scores: Sequence[float], targets: Sequence[float]) -> Parts:
    """Gradient parts of the soft loss: of the logits, then of the targets."""
    (_, lift, down), (_, press, up) = _soft_groups(scores, targets)
    return lift, press, down, up


def soft_row(scores: Sequence[float], targets: Sequence[float]) -> Row:
    """Loss and gradient of one row of the soft loss by its definition, one term after the other."""
    (positive, lift, _), (negative, press, _) = _soft_groups(scores, targets)
    return positive + negative, [b - a for a, b in zip(lift, press, strict=True)]


def _soft_groups(
    scores: Sequence[float], targets: Sequence[float]
) -> list[tuple[float, list[float], list[float]]]:
    """Logarithm of the positive and of the negative group; each term's share of it, and its power.

    The weights multiply: beside a score of 1e38 even float64 has no digit left for their logarithm.
    """
    found = []
    for sign, weights in ((-1, targets), (1, [1 - t for t in targets])):
        top = max([0.0, *(sign * s for s, w in zip(scores, weights, strict=True) if w > 0)])
        powers = [math.exp(min(sign * s - top, 700.0)) for s in scores]
        terms = [w * p if w > 0 else 0.0 for w, p in zip(weights, powers, strict=True)]
        total = math.fsum(terms)
        whole = math.exp(-top) + total
        value = math.log1p(total) if top == 0 else top + math.log(whole)
        found.append((value, [t / whole for t in terms], [p / whole for p in powers]))
    return found


def reference(loss: Loss, case: Case) -> tuple[Tensor, Tensor]:
    """Value per position and gradient of each cell, float64."""
    classes = case.logits.shape[-1]
    scores = case.logits.detach().to(torch.float64).reshape(-1, classes).cpu()
    counts = case.counting().reshape(-1, classes).cpu()
    targets = case.targets.reshape(-1, classes).cpu()
    values = torch.zeros(len(scores), dtype=torch.float64)
    gradient = torch.zeros_like(scores)
    for i in range(len(scores)):
        kept = counts[i]
        value, cells = loss.row(scores[i][kept].tolist(), targets[i][kept].tolist())
        values[i] = value
        gradient[i][kept] = torch.tensor(cells, dtype=torch.float64)
    lead = case.logits.shape[:-1]
    device = case.logits.device
    return values.reshape(lead).to(device), gradient.reshape(case.logits.shape).to(device)


# ---------------------------------------------------------------------------------- one encounter


def meet(loss: Loss, case: Case) -> Outcome:
    """Run a loss on a case: value, gradient under a random upstream gradient, reductions."""
    leaf = case.logits.detach().requires_grad_()  # no copy: that might put its memory in order
    logits, mask = leaf, case.mask
    if mask is not None and not loss.masks:
        logits, mask = leaf.masked_fill(~mask, -INF), None
    labels = loss.labels(case)
    if loss.parts is not None:
        labels = labels.detach().requires_grad_()
    refused = case.refused or (case.refused_as_list and loss.listed)
    try:
        values = loss.call(logits, labels, mask, "none")
    except ValueError as error:
        return Outcome("right" if refused else "raises", notes=[str(error)])
    if refused:
        return Outcome("not refused")
    torch.manual_seed(1)
    upstream = torch.randn(values.shape).to(values)
    (gradient,) = torch.autograd.grad(values, leaf, upstream, retain_graph=True)
    if not (values.isfinite().all() and gradient.isfinite().all()):
        return Outcome("non-finite")
    true, cells = reference(loss, case)
    scale = upstream.to(torch.float64).unsqueeze(-1)
    error, slope_error = (values.detach() - true).abs(), (gradient - cells * scale).abs()
    tolerance = gradient_tolerance(case, cells * scale)
    if loss.parts is not None:
        tolerance, *wanted = soft_tolerance(loss, case, upstream, labels.dtype)
    outcome = Outcome(
        "right",
        _largest(error / value_tolerance(case, values, true)),
        _largest(slope_error / tolerance),
    )
    if max(outcome.value_error, outcome.gradient_error) > 1:
        coarse = bool((error <= 0.01 * true.clamp(min=1)).all())
        coarse &= bool((slope_error <= 0.01 * scale.abs()).all())
        outcome.verdict = "inexact" if coarse else "wrong"
    if bool((gradient[~case.counting()] != 0).any()):
        outcome.notes.append("gradient on a cell that does not count")
    if loss.parts is not None:
        (slopes,) = torch.autograd.grad(values, labels, upstream, retain_graph=True)
        outcome.notes += _target_gradient(slopes, *wanted)
    outcome.notes += _reductions(loss, logits, leaf, labels, mask, values)
    if outcome.notes:
        outcome.verdict = "wrong"
    return outcome


def value_tolerance(case: Case, values: Tensor, true: Tensor) -> Tensor:
    """Few roundings, relative to the value itself, however small it is.

    Each term of a sum is off by two units in the last place and a sum in pairs adds up to
    ``log2 C`` roundings, half of which cancel. Below the smallest normal number digits are lost by
    definition.
    """
    unit = torch.finfo(values.dtype)
    return (2 + math.log2(case.logits.shape[-1]) / 2) * unit.eps * true + unit.tiny


def gradient_tolerance(case: Case, true: Tensor) -> Tensor:
    """Few roundings, relative to each cell's own gradient.

    A weight is ``exp(x)`` with ``x`` the distance to the largest score of the group: rounding ``x``
    costs ``|x|`` units, and ``|x|`` is at most the log of the ratio of weights. One more rounding
    to the dtype of the gradient, whose smallest step is the floor.
    """
    computed = torch.finfo(torch.promote_types(case.logits.dtype, torch.float32))
    given = torch.finfo(case.logits.dtype)
    depth = -torch.log(true.abs().clamp(min=computed.tiny, max=1.0))
    units = 4 + math.log2(case.logits.shape[-1]) / 2 + depth
    floor = max(computed.tiny, given.smallest_normal * given.eps)
    rounding = given.eps / 2 if given.eps > computed.eps else 0.0
    return (units * computed.eps + rounding) * true.abs() + floor


def soft_tolerance(
    loss: Loss, case: Case, upstream: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Tolerance of the logits' gradient; gradient of the targets, of this dtype, and its tolerance.

    A term ``w exp(x)`` is ``exp(x + log w)``: rounding ``x`` costs ``|x|`` units, which is up to
    ``|log w|`` more than the depth of the term itself.
    """
    classes = case.logits.shape[-1]
    scores = case.logits.detach().to(torch.float64).reshape(-1, classes).cpu()
    targets = case.targets.detach().to(torch.float64).reshape(-1, classes).cpu()
    counts = case.counting().reshape(-1, classes).cpu()
    parts = torch.zeros(4, *scores.shape, dtype=torch.float64)
    for i in range(len(scores)):
        kept = counts[i]
        assert loss.parts is not None
        found = loss.parts(scores[i][kept].tolist(), targets[i][kept].tolist())
        parts[:, i, kept] = torch.tensor(found, dtype=torch.float64)
    parts = parts.reshape(4, *case.logits.shape).to(case.logits.device)
    weights = torch.stack([case.targets, 1 - case.targets]).to(torch.float64)
    scale = upstream.to(torch.float64).unsqueeze(-1).abs()
    computed = torch.finfo(torch.promote_types(case.logits.dtype, torch.float32))
    more = -torch.log(weights.clamp(min=computed.tiny)) * computed.eps * parts[:2] * scale
    rows = (more + gradient_tolerance(case, parts[:2] * scale)).sum(0)
    signed = (parts[2] - parts[3]) * upstream.to(torch.float64).unsqueeze(-1)
    depth = parts[2:].clamp(min=computed.tiny).log().abs() + 4 + math.log2(classes) / 2
    steps = (depth * computed.eps * parts[2:]).sum(0) * scale
    own = torch.finfo(dtype)
    return rows, signed, steps + own.eps * signed.abs() + max(own.tiny, computed.tiny)


def _target_gradient(slopes: Tensor, true: Tensor, tolerance: Tensor) -> list[str]:
    """Say what is wrong with a gradient of targets.

    Where the true one leaves the range of the dtype, large and finite with the right sign will do.
    """
    if not slopes.isfinite().all():
        return ["the gradient of the targets is not finite"]
    limit = 1e-6 * torch.finfo(slopes.dtype).max
    beyond = true.abs() > limit
    right = (slopes - true).abs() <= tolerance
    right |= beyond & (slopes * true.sign() >= limit * 0.9)
    return [] if right.all() else ["the gradient of the targets is wrong"]


def _largest(errors: Tensor) -> float:
    return float(errors.max()) if errors.numel() else 0.0


def _reductions(
    loss: Loss, logits: Tensor, leaf: Tensor, labels: Tensor, mask: Tensor | None, values: Tensor
) -> list[str]:
    """Say which reductions disagree with reducing the values of ``none``."""
    notes = []
    for reduction in ("sum", "mean"):
        if values.numel() == 0 and reduction == "mean":
            continue
        reduced = loss.call(logits, labels, mask, reduction)
        by_hand = values.sum() if reduction == "sum" else values.mean()
        (gradient,) = torch.autograd.grad(reduced, leaf, retain_graph=True)
        (expected,) = torch.autograd.grad(by_hand, leaf, retain_graph=True)
        if not (torch.equal(reduced, by_hand) and torch.equal(gradient, expected)):
            notes.append(f"reduction={reduction!r} disagrees with 'none'")
    return notes


# ------------------------------------------------------------------------------------------ cases


def cases() -> Iterator[Case]:
    """Yield every case, from fixed seeds."""
    yield from _ordinary()
    yield from _extreme()
    yield from _trained()
    yield from _sets()
    yield from _not_counting()
    yield from _shapes()
    yield from _refused()


KINDS = ("0/1", "0.05/0.95", "0/0.9", "0.5", "any", "tiny")


def soft_cases() -> Iterator[Case]:
    """Yield every case again with soft targets of each kind, in the dtype of its logits."""
    for case in cases():
        for kind in KINDS:
            if case.logits.numel() > 50_000 and kind not in ("0.05/0.95", "any"):
                continue  # the reference takes one cell after the other
            soft = _soften(case, kind)
            yield replace(case, name=f"{case.name}; targets {kind}", targets=soft)


def _soften(case: Case, kind: str) -> Tensor:
    """Targets of a kind; 0 in cells that do not count, unless the case is that they are not."""
    hard = case.targets
    generator = torch.Generator().manual_seed(9)
    some = torch.rand(hard.shape, generator=generator, dtype=torch.float64)
    low, high = {
        "0/1": (0.0, 1.0),
        "0.05/0.95": (0.05, 0.95),
        "0/0.9": (0.0, 0.9),
        "0.5": (0.5, 0.5),
        "any": (some, some),
        # Down to the smallest normal number of the dtype, and up to the last one below 1.
        "tiny": (
            torch.exp(some * math.log(torch.finfo(case.logits.dtype).tiny)),
            1 - torch.finfo(case.logits.dtype).eps / 2,
        ),
    }[kind]
    low, high = (torch.as_tensor(v, dtype=torch.float64).expand(hard.shape) for v in (low, high))
    soft = torch.where(hard, high, low).to(case.logits.dtype)
    keep = case.counting() | hard if case.refused or case.refused_as_list else case.counting()
    return soft.masked_fill(~keep, 0)


def _random(
    shape: tuple[int, ...], scale: float, dtype: torch.dtype, share: float = 0.1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    targets = torch.rand(shape, generator=generator) < share
    return logits.to(dtype), targets


def _ordinary() -> Iterator[Case]:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        short = str(dtype).removeprefix("torch.")
        yield Case(f"normal {short}", *_random((16, 96), 2.0, dtype))
        yield Case(f"normal {short}, few positives", *_random((8, 1024), 2.0, dtype, 0.003))


def _extreme() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(3)
    for limit, dtype in ((6e4, torch.float16), (1e4, torch.float32), (1e4, torch.bfloat16)):
        short = str(dtype).removeprefix("torch.")
        for share in (0.3, 0.01):
            spread = (torch.rand(8, 256, generator=generator, dtype=torch.float64) * 2 - 1) * limit
            targets = torch.rand(8, 256, generator=generator) < share
            yield Case(
                f"scores to ±{limit:g} {short}, {share:g} positive", spread.to(dtype), targets
            )
    logits, targets = _random((8, 200), 1.0, torch.float32)
    yield Case(
        "one score at 1e4, rest near 0", logits.index_fill(1, torch.tensor([3]), 1e4), targets
    )
    steep = torch.linspace(0, -300, 200).repeat(4, 1)
    yield Case("weights from 1 to underflow", steep, targets[:4] & (steep < -250))
    yield Case("scores near the largest float32", logits.sign() * 1e38, targets)


def _trained() -> Iterator[Case]:
    """Positives well above zero, negatives well below: the loss is tiny and its digits count."""
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        short = str(dtype).removeprefix("torch.")
        for level in (12.0, 20.0, 1e4):
            for share in (0.25, 0.004):
                noise, targets = _random((4, 1001), 0.5, torch.float64, share, seed=7)
                targets[:, 0] = True
                logits = torch.where(targets, level + noise, -level + noise)
                name = f"trained to ±{level:g} {short}, {share:g} positive"
                yield Case(name, logits.to(dtype), targets)
    for level in (4.0, 8.0, 12.0, 15.0, 20.0):
        logits = torch.full((1, 1001), -20.0)
        targets = torch.zeros(1, 1001, dtype=torch.bool)
        logits[0, 5], targets[0, 5] = level, True
        yield Case(f"one positive at {level:g}, 1000 negatives at -20", logits, targets)
    logits, targets = _random((4, 300), 1.0, torch.float32, 0.02)
    yield Case("trained the wrong way", torch.where(targets, logits - 40, logits + 40), targets)


def _sets() -> Iterator[Case]:
    logits, targets = _random((6, 40), 3.0, torch.float32, 0.3)
    yield Case("no positives", logits, torch.zeros_like(targets))
    yield Case("all positives", logits, torch.ones_like(targets))
    mixed = targets.clone()
    mixed[0], mixed[1] = False, True
    yield Case("rows without, and full of, positives", logits, mixed)
    yield Case("one class", logits[:, :1], targets[:, :1])
    yield Case("one cell, negative", logits[:1, :1], targets[:1, :1] & False)
    yield Case("one cell, positive", logits[:1, :1], targets[:1, :1] | True)
    yield Case("ties", torch.full_like(logits, 1.5), targets)
    yield Case("all scores 0", torch.zeros_like(logits), targets)
    yield Case("ties at -1e4", torch.full_like(logits, -1e4), targets)
    yield Case("repeated mentions", logits, targets, repeated=True)


def _not_counting() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(5)
    for share, width in ((0.2, 60), (0.004, 1000)):
        logits, targets = _random((6, width), 3.0, torch.float32, share)
        away = (torch.rand(6, width, generator=generator) < 0.4) & ~targets
        yield Case(f"-inf cells, {share:g} positive", logits.masked_fill(away, -INF), targets)
        yield Case(f"masked cells, {share:g} positive", logits, targets, ~away)
        junk = logits.masked_fill(away, math.nan)
        junk[:, ::2] = junk[:, ::2].masked_fill(away[:, ::2], INF)
        yield Case(f"NaN and inf under the mask, {share:g} positive", junk, targets, ~away)
        empty = targets.clone()
        empty[2] = False
        gone = away.clone()
        gone[2] = True
        yield Case(f"a row all -inf, {share:g} positive", logits.masked_fill(gone, -INF), empty)
        yield Case(f"a row all masked, {share:g} positive", logits, empty, ~gone)
        half = logits.to(torch.float16)
        yield Case(f"masked cells float16, {share:g} positive", half, targets, ~away)
        only = targets.clone()
        yield Case(f"only positives count, {share:g} positive", logits, targets, only)
    everything = torch.zeros(3, 7, dtype=torch.bool)
    yield Case("every cell -inf", torch.full((3, 7), -INF), everything)


def _shapes() -> Iterator[Case]:
    for shape in ((3, 423), (2, 32000), (1, 1), (5,), (2, 3, 5, 7), (0, 9), (2, 0, 9)):
        yield Case(f"shape {shape}", *_random(shape, 2.0, torch.float32, 0.01, seed=len(shape)))
    logits, targets = _random((64, 48), 2.0, torch.float32, 0.2)
    mask = torch.rand(64, 48, generator=torch.Generator().manual_seed(6)) < 0.7
    mask |= targets
    yield Case("transposed", logits.t(), targets.t(), mask.t())
    yield Case("every third column", logits[:, ::3], targets[:, ::3], mask[:, ::3])
    yield Case("odd place in memory", logits.view(-1)[5:1029].view(32, 32), _odd(targets))
    yield Case("one row for all", logits[:1].expand(5, 48), targets[:5], mask[:5] | True)
    yield Case("mask broadcast", logits, targets & mask[0], mask[:1].expand(64, 48))
    whole, part = _random((7, 40000), 2.0, torch.float32, 0.0002)
    yield Case("several chunks, few positives", whole, part)
    yield Case("several chunks, many positives", whole, part | (whole > 1.5))


def _odd(targets: Tensor) -> Tensor:
    """Return a contiguous table whose first cell is at an odd address."""
    return targets.reshape(-1)[5:1029].view(32, 32)


def _refused() -> Iterator[Case]:
    for share, width in ((0.2, 60), (0.004, 1000)):
        logits, targets = _random((4, width), 2.0, torch.float32, share)
        targets[2, 9] = True
        mask = torch.ones_like(targets)
        mask[2, 9] = False
        here = f"{share:g} positive"
        yield Case(f"gold on a masked cell, {here}", logits, targets, mask, refused_as_list=True)
        for value in (-INF, INF, math.nan):
            bad = logits.clone()
            bad[2, 9] = value
            yield Case(f"gold at {value}, {here}", bad, targets, refused=True)
        for value in (INF, math.nan):
            bad = logits.clone()
            bad[2, 8], other = value, targets.clone()
            other[2, 8] = False
            yield Case(f"negative at {value}, {here}", bad, other, refused=True)


# ----------------------------------------------------------------------------------------- losses


def listed(case: Case) -> Tensor:
    """Positive classes of each row, shuffled, with fillers of -1, some classes twice if asked."""
    classes = case.targets.shape[-1]
    rows = [row.nonzero().squeeze(1).tolist() for row in case.targets.reshape(-1, classes)]
    if case.repeated:
        rows = [row + row[:2] for row in rows]
    width = max((len(row) for row in rows), default=0) + 1
    generator = torch.Generator().manual_seed(2)
    lists = torch.full((len(rows), width), -1)
    for i, row in enumerate(rows):
        full = torch.tensor(row + [-1] * (width - len(row)))
        lists[i] = full[torch.randperm(width, generator=generator)]
    return lists.reshape(*case.targets.shape[:-1], width).to(case.targets.device)


DENSE = Loss(
    "zlpr_loss",
    lambda logits, labels, mask, how: zlpr_loss(logits, labels, mask=mask, reduction=how),
    lambda case: case.targets,
    zlpr_row,
)
DENSE_FLOAT = Loss(
    "zlpr_loss, float targets",
    DENSE.call,
    lambda case: case.targets.to(torch.float32),
    zlpr_row,
)
SPARSE = Loss(
    "sparse_zlpr_loss",
    lambda logits, labels, mask, how: sparse_zlpr_loss(logits, labels, mask=mask, reduction=how),
    listed,
    zlpr_row,
    listed=True,
)
OURS = (DENSE, DENSE_FLOAT, SPARSE)
SOFT = Loss(
    "soft_zlpr_loss",
    lambda logits, labels, mask, how: soft_zlpr_loss(logits, labels, mask=mask, reduction=how),
    lambda case: case.targets,
    soft_row,
    parts=soft_parts,
)


def peers(*, soft: bool = False) -> list[Loss]:
    """Return the published losses that are installed, called as their documentation says.

    With soft targets the dense form is called against its documentation, which wants 0 and 1; it
    accepts them, and a search for the soft loss ends at it.
    """
    module = bert4torch_losses()
    if module is None:
        return []
    dense = module.MultilabelCategoricalCrossentropy()
    sparse = module.SparseMultilabelCategoricalCrossentropy(mask_zero=True)

    def dense_call(logits: Tensor, labels: Tensor, mask: Tensor | None, how: str) -> Tensor:
        # It has the mean only, so that one value per position is one call per position.
        classes = logits.shape[-1]
        rows = zip(logits.reshape(-1, classes), labels.reshape(-1, classes), strict=True)
        values = [dense(row, label) for row, label in rows]
        losses = torch.stack(values) if values else logits.sum(-1).reshape(-1)
        return _reduced(losses.reshape(logits.shape[:-1]), how)

    def sparse_call(logits: Tensor, labels: Tensor, mask: Tensor | None, how: str) -> Tensor:
        # With mask_zero class 0 is the filler: every class moves up by one.
        filler = torch.zeros_like(logits[..., :1])
        return _reduced(sparse(torch.cat([filler, logits], -1), labels + 1), how)

    if soft:
        return [Loss("bert4torch dense", dense_call, SOFT.labels, soft_row, masks=False)]
    return [
        Loss("bert4torch dense", dense_call, DENSE_FLOAT.labels, zlpr_row, masks=False),
        Loss("bert4torch sparse", sparse_call, listed, zlpr_row, masks=False),
    ]


def _reduced(values: Tensor, how: str) -> Tensor:
    return {"none": values, "mean": values.mean(), "sum": values.sum()}[how]


def main() -> int:
    """Print losses by cases; the exit status says whether one of ours was anything but right."""
    hard = _table(OURS, peers(), list(cases()))
    print()
    return max(hard, _table((SOFT,), peers(soft=True), list(soft_cases())))


def _table(ours: Sequence[Loss], others: Sequence[Loss], everything: list[Case]) -> int:
    losses = [*ours, *others]
    if not others:
        print("bert4torch is not installed: only this library's losses are shown")
    counts: dict[str, Counter[str]] = {loss.name: Counter() for loss in losses}
    width = max(len(case.name) for case in everything)
    print(f"{'case':{width}}", *(f"{loss.name:>{max(11, len(loss.name))}}" for loss in losses))
    for case in everything:
        line = [f"{case.name:{width}}"]
        for loss in losses:
            verdict = meet(loss, case).verdict
            counts[loss.name][verdict] += 1
            line.append(f"{verdict:>{max(11, len(loss.name))}}")
        print(*line)
    for name, count in counts.items():
        rest = ", ".join(f"{number} {verdict}" for verdict, number in sorted(count.items()))
        print(f"{name}: {count['wrong']} wrong, {count['non-finite']} non-finite ({rest})")
    return int(any(counts[loss.name]["right"] != len(everything) for loss in ours))


if __name__ == "__main__":
    sys.exit(main())
