"""Exercises that answer: right answers pass in any style, and a wrong one is told what it breaks.

The wrong answers are written as a learner would write them, not as lib.check writes its slips.
"""

import ast
import functools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import optimize, special, stats
from torch.nn import functional

from lib import check

INF = math.inf


# ---------------------------------------------------------------- chapter 1


def lse_loops(scores):
    top = max(scores.tolist())
    if top == -INF:
        return scores.new_tensor(top)
    total = 0.0
    for score in scores:
        total = total + torch.exp(score - top)
    return torch.log(total) + top


def lse_vectors(scores):
    top = scores.detach().amax()
    return top if top == -INF else top + (scores - top).exp().sum().log()


def lse_single(scores):
    return lse_vectors(scores.float())


def lse_pair_by_pair(scores):
    """Right values; at ties the slope of an absolute value is 0, and the maximum's goes to one."""
    value = scores[0]
    for score in scores[1:]:
        both = torch.stack([value, score])
        high = both[both.argmax()]
        gap = both[0] - both[1]
        value = high + torch.log1p(torch.exp(-gap.abs())) if gap.abs() < INF else high
    return value


def lse_distinct(scores):
    top = scores.max()
    return top + (scores[scores != top] - top).exp().sum().log1p()


def lse_no_way_back(scores):
    return torch.tensor(special.logsumexp(scores.detach().numpy()))


def lse_clipped(scores):
    return scores.clamp(-700, 700).exp().sum().log()


def lse_loose_top(scores):
    top = scores.amax()
    if top == -INF:
        return top.detach()
    return top.detach() + (scores - top).exp().sum().log()


def lse_half_shifted(scores):
    top = scores.detach().amax().clamp(min=0)
    return top + (scores - top).exp().sum().log()


def lse_by_entropy(scores):
    p = scores.softmax(0)
    return (p * scores).sum() - (p * p.log()).sum()


SMOOTH_MAX = (
    [lse_loops, lse_vectors, lse_single],
    [
        (lambda s: s.exp().mean().log(), "mean of the exponentials"),
        (lambda s: (1 + s.exp().sum()).log(), "no 1 beside the sum"),
        (lambda s: s.max(), "sharp maximum"),
        (lambda s: s.exp().sum().log(), "Take the largest score off first, and add it"),
        (lambda s: (s - s.max()).exp().sum().log(), "not added again"),
        (lambda s: torch.log2(s.exp().sum()), "base 2"),
        (lambda s: sum(v.exp() for v in s), "logarithm is missing"),
        (lse_distinct, "Right for distinct scores, wrong at ties"),
        (lse_pair_by_pair, "right for distinct scores, wrong at ties"),
        (lse_no_way_back, "no gradient reaches scores"),
        (lse_clipped, "Take the largest score off first"),
        (lse_loose_top, "gradient wrong: it must be the softmax"),
        (lambda s: s.max() + (s - s.max()).exp().sum().log(), "whether there is a largest"),
        (lse_half_shifted, "All exponentials round to 0"),
        (lse_by_entropy, "has the exponential 0"),
    ],
)


def ce_loops(scores, target):
    rivals = [s for i, s in enumerate(scores) if i != target]
    top = max([0.0, *(s.item() - scores[target].item() for s in rivals)])
    total = math.exp(-top)
    for s in rivals:
        total = total + torch.exp(s - scores[target] - top)
    return torch.log(torch.as_tensor(total, dtype=scores.dtype)) + top


def ce_other_target(scores, target):
    return -scores.log_softmax(0).amin()


def ce_one_hot(scores, target):
    hot = functional.one_hot(torch.tensor(target), len(scores))
    return -(hot * scores.log_softmax(0)).sum()


def ce_hinge(scores, target):
    rivals = torch.arange(len(scores)) != target
    return ((scores - scores[target])[rivals].clamp(min=0)).sum()


def ce_rivals(scores, target):
    """The lead of each rival."""
    return torch.cat([scores[:target], scores[target + 1 :]]) - scores[target]


def ce_stack(scores, target):
    rivals = torch.stack([s - scores[target] for i, s in enumerate(scores) if i != target])
    return rivals.exp().sum().log1p()


CROSS_ENTROPY = (
    [
        ce_loops,
        lambda s, t: -s.log_softmax(0)[t],
        lambda s, t: torch.logsumexp(s, 0) - s[t],
        lambda s, t: -s.float().log_softmax(0)[t],
    ],
    [
        (lambda s, t: s.log_softmax(0)[t], "sign is turned round"),
        (lambda s, t: (s - s[t]).exp().sum().log1p(), "among its own rivals"),
        (lambda s, t: ((s - s[t]).exp().sum() - 1).log(), "1 in the logarithm is missing"),
        (lambda s, t: (s[t] - s).exp().sum().log(), "differences are turned round"),
        (lambda s, t: -s.log_softmax(0)[t] / s.numel(), "mean in place of the sum"),
        (lambda s, t: -(s.exp() / s.exp().sum()).log()[t], "exp(1000)"),
        (ce_one_hot, "select the target"),
        (ce_other_target, "another target"),
        (lambda s, t: 1 - s.softmax(0)[t], "without its logarithm"),
        (lambda s, t: -s.softmax(0)[t].clamp(min=1e-12).log(), "1000"),
        (ce_hinge, "sharp hinges"),
        (lambda s, t: ce_rivals(s, t).exp().mean().log1p(), "mean of the rivals"),
        (ce_stack, "raised RuntimeError"),
        (lambda s, t: torch.logsumexp(s, 0) - s[t].detach(), "on the target the softmax less 1"),
        (lambda s, t: -s.log_softmax(0), "sum over one axis is missing"),
    ],
)

# ---------------------------------------------------------------- chapter 2


def zlpr_vectors(scores, labels, mask):
    zero = scores.new_zeros(len(scores), 1)
    total = 0
    for sign, group in ((1, mask & ~labels), (-1, mask & labels)):
        s = (sign * scores).masked_fill(~group, -INF)
        total = total + torch.logsumexp(torch.cat([zero, s], 1), 1)
    return total


def zlpr_loops(scores, labels, mask):
    out = []
    for row, tags, counts in zip(scores, labels, mask, strict=True):
        low, high = [row.new_zeros(())], [row.new_zeros(())]
        for s, y, m in zip(row, tags, counts, strict=True):
            if m:
                (high if y else low).append(-s if y else s)
        out.append(torch.logsumexp(torch.stack(low), 0) + torch.logsumexp(torch.stack(high), 0))
    return torch.stack(out)


def zlpr_plain(scores, labels, mask, null=1.0, sign=-1.0):
    weights = torch.where(labels, sign * scores, scores).exp()
    low = torch.where(mask & ~labels, weights, 0.0).sum(1)
    high = torch.where(mask & labels, weights, 0.0).sum(1)
    return torch.log(null + low) + torch.log(null + high)


def zlpr_multiplied(scores, labels, mask):
    y, m = labels.to(scores), mask.to(scores)
    return torch.log1p((scores.exp() * (1 - y) * m).sum(1)) + torch.log1p(
        ((-scores).exp() * y * m).sum(1)
    )


def zlpr_zeroed(scores, labels, mask):
    return zlpr_plain(torch.where(mask, scores, 0.0), labels, torch.ones_like(mask))


def zlpr_big_number(scores, labels, mask):
    """The usual trick of published code; a masked -inf becomes NaN."""
    s = torch.where(labels, -scores, scores)
    off = (1 - mask.to(s)) * 1e12
    zero = s.new_zeros(len(s), 1)
    low = torch.cat([s - off - labels.to(s) * 1e12, zero], 1)
    high = torch.cat([s - off - (~labels).to(s) * 1e12, zero], 1)
    return low.logsumexp(1) + high.logsumexp(1)


def zlpr_in_place(scores, labels, mask):
    scores[~mask] = -INF
    return zlpr_vectors(scores, labels, mask)


def zlpr_whole_batch(scores, labels, mask):
    low, high = scores[mask & ~labels], -scores[mask & labels]
    value = low.exp().sum().log1p() + high.exp().sum().log1p()
    return value.expand(len(scores))


def zlpr_where(scores, labels, mask):
    """Right values; what torch.where leaves out is infinite, and comes back as NaN."""
    total = 0.0
    for sign, group in ((1, mask & ~labels), (-1, mask & labels)):
        x = sign * scores
        top = torch.where(group, x, 0.0).amax(1, keepdim=True).clamp(min=0).detach()
        parts = torch.where(group, (x - top).exp(), 0.0).sum(1, keepdim=True)
        total = total + (top + ((-top).exp() + parts).log())[:, 0]
    return total


def zlpr_crossed(scores, labels, mask):
    """Each sample's value is right, and its gradient is another sample's."""
    value = zlpr_vectors(scores, labels, mask)
    return value.detach() + value.flip(0) - value.flip(0).detach()


def zlpr_skips(scores, labels, mask):
    return torch.where((labels & mask).any(1), zlpr_vectors(scores, labels, mask), 0.0)


def zlpr_one_null(scores, labels, mask, which):
    nulls = [0.0, 0.0]
    nulls[which] = 1.0
    low = torch.where(mask & ~labels, scores.exp(), 0.0).sum(1)
    high = torch.where(mask & labels, (-scores).exp(), 0.0).sum(1)
    return torch.log(nulls[0] + low) + torch.log(nulls[1] + high)


def zlpr_per_label(scores, labels, mask):
    count = mask.sum(1)
    return zlpr_vectors(scores, labels, mask) * count / count


def zlpr_clipped(scores, labels, mask):
    return zlpr_vectors(scores.clamp(-1.5, 30), labels, mask)


ZLPR_LOSS = (
    [zlpr_vectors, zlpr_loops, lambda s, y, m: zlpr_vectors(s.float(), y, m)],
    [
        (lambda *a: zlpr_plain(*a, null=0.0), "null class is missing"),
        (lambda s, y, m: zlpr_plain(s, ~y, m), "changed places"),
        (lambda *a: zlpr_plain(*a, sign=1.0), "their own sign"),
        (
            lambda s, y, m: (functional.softplus(torch.where(y, -s, s)) * m).sum(1),
            "binary cross-entropy",
        ),
        (lambda s, y, m: zlpr_vectors(s, y, m) / y.shape[1], "mean over the labels"),
        (lambda s, y, m: zlpr_vectors(s, y, m | ~m), "mask is not used"),
        (zlpr_zeroed, "score of 0"),
        (lambda s, y, m: zlpr_vectors(s, y & m, m | ~m), "masked positive has become a negative"),
        (zlpr_multiplied, "don't multiply by the mask"),
        (zlpr_plain, "exp(1000)"),
        (zlpr_big_number, "subtract from the score"),
        (zlpr_in_place, "changes its argument scores"),
        (zlpr_whole_batch, "sum over the labels of a sample only"),
        (lambda *a: zlpr_vectors(*a).mean(), "shape () instead of (1,)"),
        (lambda *a: zlpr_vectors(*a).detach(), "no gradient reaches scores"),
        (zlpr_clipped, "wrong for several"),
        (zlpr_where, "wrong beside a masked -inf"),
        (zlpr_crossed, "gradient wrong"),
        (zlpr_skips, "Without positives"),
        (lambda *a: zlpr_one_null(*a, 0), "Only one logarithm"),
        (lambda *a: zlpr_one_null(*a, 1), "Only one logarithm"),
        (zlpr_per_label, "Both masses are 0"),
    ],
)


def slope_vectors(scores, labels):
    out = torch.zeros_like(scores)
    for group, sign in ((~labels, 1), (labels, -1)):
        s = torch.cat([scores.new_zeros(1), sign * scores[group]])
        out[group] = sign * s.softmax(0)[1:]
    return out


def slope_loops(scores, labels):
    out = [0.0] * len(scores)
    for group, sign in ((0, 1), (1, -1)):
        members = [i for i, y in enumerate(labels.tolist()) if y == group]
        top = max([0.0, *(sign * scores[i].item() for i in members)])
        parts = {i: math.exp(sign * scores[i].item() - top) for i in members}
        for i, part in parts.items():
            out[i] = sign * part / (math.exp(-top) + sum(parts.values()))
    return torch.tensor(out, dtype=scores.dtype)


def slope_plain(scores, labels, null=1.0):
    w = torch.where(labels, -scores, scores).exp()
    return torch.where(labels, -w / (null + w[labels].sum()), w / (null + w[~labels].sum()))


def slope_one_sum(scores, labels):
    w = torch.where(labels, -scores, scores).exp()
    return torch.where(labels, -w, w) / (1 + w.sum())


def slope_own_sign(scores, labels):
    w = scores.exp()
    return torch.where(labels, -w / (1 + w[labels].sum()), w / (1 + w[~labels].sum()))


def slope_skips(scores, labels):
    return slope_vectors(scores, labels) if labels.any() else torch.zeros_like(scores)


def slope_in_place(scores, labels):
    scores[labels] *= -1
    return slope_plain(scores, torch.zeros_like(labels))


ZLPR_GRADIENT = (
    [slope_vectors, slope_loops, lambda s, y: slope_vectors(s.float(), y)],
    [
        (lambda s, y: torch.sigmoid(s) - y.to(s), "binary cross-entropy"),
        (lambda s, y: slope_plain(s, y, null=0.0), "null class is missing"),
        (lambda s, y: slope_plain(s, y).abs(), "sign of the positives is missing"),
        (lambda s, y: -slope_plain(s, y), "this is the way down"),
        (slope_one_sum, "One sum for both groups"),
        (slope_own_sign, "exp(s)"),
        (lambda s, y: slope_plain(s, y) / len(y), "mean over the labels"),
        (lambda s, y: torch.where(y, -(-s).exp(), s.exp()), "not divided"),
        (slope_plain, "exp(1000)"),
        (slope_in_place, "changes its argument scores"),
        (slope_skips, "an empty group"),
        (lambda s, y: slope_plain(s, y).sum(), "axis too many"),
        (lambda s, y: slope_plain(s, y).tolist(), "returned list"),
    ],
)

# ---------------------------------------------------------------- chapter 3


def soft_selected(scores, targets):
    s, t = scores[scores != -INF], targets[scores != -INF]
    total = 0.0
    for x, weight in ((-s, t), (s, 1 - t)):
        x, weight = x[weight > 0], weight[weight > 0]
        top = torch.cat([x.detach(), x.new_zeros(1)]).max()
        mass = torch.exp(-top) + (weight * torch.exp(x - top)).sum()
        total = total + top + torch.log(mass)
    return total


def soft_loops(scores, targets):
    low, high = [scores.new_zeros(())], [scores.new_zeros(())]
    for s, t in zip(scores, targets.tolist(), strict=True):
        if s > -INF:
            if t > 0:
                high.append(math.log(t) - s)
            if t < 1:
                low.append(math.log1p(-t) + s)
    return torch.stack(low).logsumexp(0) + torch.stack(high).logsumexp(0)


def soft_plain(scores, targets):
    a, b = targets * (-scores).exp(), (1 - targets) * scores.exp()
    return a.sum().log1p() + b.sum().log1p()


def soft_logs(scores, targets, clip=0.0):
    t = targets.clamp(clip, 1 - clip)
    zero = scores.new_zeros(1)
    a, b = t.log() - scores, (1 - t).log() + scores
    return torch.cat([zero, a]).logsumexp(0) + torch.cat([zero, b]).logsumexp(0)


def soft_moving_shift(scores, targets):
    """The shift takes part in one place and not in the other."""
    total = 0.0
    for x, weight in ((-scores, targets), (scores, 1 - targets)):
        x, weight = x[(weight > 0) & (x < INF)], weight[(weight > 0) & (x < INF)]
        top = torch.cat([x, x.new_zeros(1)]).max()
        mass = torch.exp(-top) + (weight * torch.exp(x - top)).sum()
        total = total + top.detach() + torch.log(mass)
    return total


def soft_filled(scores, targets):
    a = torch.where(targets > 0, targets.log() - scores, -INF)
    b = torch.where(targets < 1, (1 - targets).log() + scores, -INF)
    zero = scores.new_zeros(1)
    return torch.cat([zero, a]).logsumexp(0) + torch.cat([zero, b]).logsumexp(0)


def soft_where(scores, targets):
    total = 0.0
    for x, weight in ((-scores, targets), (scores, 1 - targets)):
        top = torch.where(weight > 0, x, 0.0).max().clamp(min=0).detach()
        parts = torch.where(weight > 0, weight * (x - top).exp(), 0.0)
        total = total + top + torch.log(torch.exp(-top) + parts.sum())
    return total


SOFT_ZLPR_LOSS = (
    [
        soft_selected,
        soft_loops,
        soft_filled,
        lambda s, t: soft_selected(s.float(), t).float(),
    ],
    [
        (
            lambda s, t: (t * (-s).exp()).sum().log() + ((1 - t) * s.exp()).sum().log(),
            "null class is missing",
        ),
        (lambda s, t: soft_plain(s, 1 - t), "changed places"),
        (lambda s, t: soft_plain(s, t.round()), "rounded to 0 and 1"),
        (
            lambda s, t: (-t * s).exp().sum().log1p() + ((1 - t) * s).exp().sum().log1p(),
            "must multiply the exponential",
        ),
        (
            lambda s, t: -(t * s.sigmoid().log() + (1 - t) * (-s).sigmoid().log()).sum(),
            "binary cross-entropy",
        ),
        (lambda s, t: soft_plain(s, t) / t.numel(), "mean over the labels"),
        (
            lambda s, t: (t * (-s).exp()).sum().log1p() + s.exp().sum().log1p(),
            "not weighed by 1 - t",
        ),
        (lambda s, t: soft_logs(s, t, clip=1e-7), "clip"),
        (soft_plain, "larger than any float"),
        (soft_where, "wrong at the ends"),
        (lambda s, t: soft_selected(s, torch.where(t < 1e-6, 0.0, t)), "A clip has changed"),
        (soft_logs, "drop what is masked"),
        (soft_moving_shift, "shift by the largest score is a constant"),
        (lambda s, t: soft_selected(s, t).item(), "Python number"),
    ],
)


def rest_loops(targets):
    out = []
    for t in targets.tolist():
        out.append(-INF if t == 0 else INF if t == 1 else (math.log(t) - math.log1p(-t)) / 2)
    return torch.tensor(out, dtype=targets.dtype)


RESTING_SCORES = (
    [
        rest_loops,
        lambda t: torch.log(t / (1 - t)) / 2,
        lambda t: (t.log() - (1 - t).log()) / 2,
        lambda t: torch.atanh(2 * t - 1),
        lambda t: torch.logit(t) / 2,
    ],
    [
        (torch.logit, "where BCE rests"),
        (lambda t: torch.log((1 - t) / t) / 2, "turned over"),
        (lambda t: torch.log10(t / (1 - t)) / 2, "base 2 or 10"),
        (lambda t: 2 * t - 1, "straight line"),
        (lambda t: t / (1 - t), "odds without their logarithm"),
        (lambda t: torch.sqrt(t / (1 - t)), "square root of the odds"),
        (lambda t: t.log() / 2, "divide by 1 - t"),
        (lambda t: torch.logit(t, eps=1e-6) / 2, "clip"),
        (lambda t: torch.logit(t, eps=1e-15) / 2, "ends have no finite place"),
        (lambda t: torch.logit(t).nan_to_num(posinf=0, neginf=0) / 2, "-inf and +inf"),
        (lambda t: torch.logit(t).abs() / 2, "below one half rests below the line"),
        (lambda t: (2 * t - 1) * math.log(3) / 0.8, "wrong for other degrees"),
        (lambda t: [0.5 * math.log(p / (1 - p)) for p in t], "returned list"),
        (lambda t: (torch.log(t) / 2).item(), "Python number"),
        (lambda t: torch.tensor([0.5 * math.log(p / (1 - p)) for p in t.tolist()]), "raised"),
    ],
)

# ---------------------------------------------------------------- chapter 4


def rope(x, first=0, sign=1, power=2.0, base=10000.0, scale=1.0):
    d = x.shape[1]
    out = torch.zeros_like(x)
    for i in range(len(x)):
        for m in range(d // 2):
            angle = sign * scale * (i + first) * base ** (-power * m / d)
            a, b = x[i, 2 * m], x[i, 2 * m + 1]
            out[i, 2 * m] = a * math.cos(angle) - b * math.sin(angle)
            out[i, 2 * m + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out


def rope_complex(x):
    z = torch.view_as_complex(x.reshape(len(x), -1, 2).contiguous())
    theta = 10000.0 ** (-2 * torch.arange(z.shape[1]).to(x) / x.shape[1])
    turn = torch.polar(torch.ones_like(z.real), torch.arange(len(x)).to(x)[:, None] * theta)
    return torch.view_as_real(z * turn).flatten(1)


def rope_halves(x):
    theta = 10000.0 ** (-2 * torch.arange(x.shape[1] // 2).to(x) / x.shape[1])
    angle = torch.arange(len(x)).to(x)[:, None] * theta
    a, b = x.chunk(2, 1)
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], 1)


def rope_reflected(x):
    """Length is kept, but a reflection is no rotation."""
    out = rope(x)
    out[:, 1::2] = -out[:, 1::2]
    return out


def rope_squares(x):
    """The angle grows with the square of the position."""
    rows = [rope(x[:1].repeat(i * i + 1, 1) * 0 + x[i], 0)[i * i] for i in range(len(x))]
    return torch.stack(rows)


def rope_in_place(x):
    x[:] = rope(x)
    return x


APPLY_ROPE = (
    [rope, rope_complex, lambda x: rope_complex(x.float())],
    [
        (lambda x: rope(x, first=1), "count from 1"),
        (lambda x: rope(x, sign=-1), "other way"),
        (lambda x: rope(x, power=0), "turn alike"),
        (lambda x: rope(x, power=1), "lacks its 2"),
        (lambda x: rope(x, scale=math.pi / 180), "degrees"),
        (rope_halves, "one column of each half"),
        (lambda x: x + torch.arange(len(x)).to(x)[:, None], "no rotation"),
        (lambda x: x * torch.arange(len(x)).to(x).cos()[:, None], "no rotation"),
        (lambda x: x.clone(), "Nothing is turned"),
        (rope_reflected, "position 0"),
        (rope_squares, "multiple of the position"),
        (rope_in_place, "changes its argument x"),
        (lambda x: rope(x, base=50.0), "wrong in three"),
        (lambda x: rope(x).sum(0), "shape"),
        (lambda x: rope(x.detach()), "no gradient reaches x"),
        (lambda x: rope(x).half(), "float16"),
    ],
)


def spans_pruned(pair, start, end):
    found, length = [], len(pair)
    largest = [pair[i, i:].max() for i in range(length)]
    for a in range(len(start)):
        for i in range(length):
            if largest[i] + start[a, i] + end[a].max() <= 0:
                continue
            for j in range(i, length):
                if pair[i, j] + start[a, i] + end[a, j] > 0:
                    found.append((a, i, j))
    return found


def spans_dense(pair, start, end, above=0.0):
    scores = pair + start[:, :, None] + end[:, None, :]
    return {tuple(c) for c in (scores > above).triu().nonzero().tolist()}


def spans_filtered(pair, start, end, keep):
    n = range(len(pair))
    return [
        (a, i, j)
        for a in range(len(start))
        for i in n
        for j in n
        if keep(pair[i, j] + start[a, i] + end[a, j], i, j)
    ]


def spans_best_of_row(pair, start, end):
    out = []
    for a in range(len(start)):
        for i in range(len(pair)):
            row = (pair[i] + start[a, i] + end[a])[i:]
            if row.max() > 0:
                out.append((a, i, i + int(row.argmax())))
    return out


def spans_over_pruned(pair, start, end):
    """The bound takes the end that belongs to the best pair: some cell may be above it."""
    found = []
    for a, i, j in spans_dense(pair, start, end):
        best = int(pair[i, i:].argmax()) + i
        if pair[i, i] + start[a, i] + end[a, best] > -5:
            found.append((a, i, j))
    return found


def spans_first_head(pair, start, end):
    return [
        (a, i, j) for a in range(len(start)) for _, i, j in spans_dense(pair, start[:1], end[:1])
    ]


FACTORISED_SPANS = (
    [spans_pruned, spans_dense, lambda p, s, e: spans_dense(p.float(), s.float(), e.float())],
    [
        (lambda *p: spans_filtered(*p, lambda s, i, j: s > 0), "below the diagonal"),
        (lambda *p: spans_filtered(*p, lambda s, i, j: s > 0 and i < j), "i may equal j"),
        (lambda *p: spans_filtered(*p, lambda s, i, j: s >= 0 and i <= j), "above 0, not at it"),
        (spans_best_of_row, "not only the best one"),
        (lambda p, s, e: spans_dense(p, e, s), "changed places"),
        (lambda p, s, e: [(i, j, a) for a, i, j in spans_dense(p, s, e)], "begins with the head"),
        (lambda p, s, e: [(a, i, j + 1) for a, i, j in spans_dense(p, s, e)], "exclusive"),
        (spans_over_pruned, "bound"),
        (lambda p, s, e: spans_dense(p, 0 * s, 0 * e), "pair alone"),
        (spans_first_head, "its own start and end"),
        (lambda p, s, e: [(i, j) for _, i, j in spans_dense(p, s, e)], "3 numbers"),
        (lambda p, s, e: 2 * spans_pruned(p, s, e), "more than once"),
        (lambda p, s, e: (c for c in spans_pruned(p, s, e)), "returned generator"),
        (lambda p, s, e: p[0, 0] > 0, "returned Tensor"),
        (lambda p, s, e: spans_pruned(p, s, e) or None, "returned NoneType"),
    ],
)

# ---------------------------------------------------------------- chapter 5


def kl(s, u):
    return (s.softmax(-1) * (s.log_softmax(-1) - u.log_softmax(-1))).sum()


def soft_plain_logs(s, u):
    p, q = s.softmax(0), u.softmax(0)
    return ((p - q) * (p.log() - q.log())).sum()


def soft_by_loops(s, u):
    p, q = s.softmax(0), u.softmax(0)
    total = 0.0
    for i in range(len(s)):
        total = total + (p[i] - q[i]) * (s[i] - u[i])
    return total


def soft_shares_of_own(s, u):
    """A share over both passes' scores is no softmax of one."""
    total = (s.exp() + u.exp()).sum()
    return ((s.exp() - u.exp()) / total * (s - u)).sum()


SOFTMAX_DIVERGENCE = (
    [
        lambda s, u: ((s.softmax(0) - u.softmax(0)) * (s - u)).sum(),
        soft_by_loops,
        lambda s, u: kl(s, u) + kl(u, s),
        lambda s, u: kl(s.float(), u.float()) + kl(u.float(), s.float()),
    ],
    [
        (kl, "KL(p || q)"),
        (lambda s, u: kl(u, s), "KL(q || p)"),
        (lambda s, u: (kl(u, s) + kl(s, u)) / 2, "added, not averaged"),
        (lambda s, u: kl(u, s) - kl(s, u), "sum (p - q)(s - u)"),
        (lambda s, u: -soft_by_loops(s, u), "sign is turned"),
        (lambda s, u: ((s.sigmoid() - u.sigmoid()) * (s - u)).sum(), "sigmoid's"),
        (lambda s, u: ((s.softmax(0) - u.softmax(0)) * (s - u)).mean(), "mean over"),
        (lambda s, u: ((s.softmax(0) - u.softmax(0)) ** 2).sum(), "shares' change is squared"),
        (lambda s, u: ((s - u) ** 2).sum(), "scores' change is squared"),
        (soft_plain_logs, "logarithm is -inf"),
        (
            lambda s, u: ((s.softmax(0).detach() - u.softmax(0)) * (s - u)).sum(),
            "gradient wrong",
        ),
        (soft_shares_of_own, "8, 4, 6, 1 of 19"),
        (
            lambda s, u: ((s.softmax(0) - u.softmax(0)) * (s - u)).abs().sum(),
            "Absolute changes",
        ),
        (lambda s, u: float(soft_by_loops(s, u)), "Python number"),
    ],
)


def sigma_product(s, u):
    count = s > -INF
    s, u = s[count], u[count]
    high, low = torch.maximum(s, u), torch.minimum(s, u)
    d = high - low
    return (d * -torch.expm1(-d) * torch.sigmoid(high) * torch.sigmoid(-low)).sum()


def sigma_loops(s, u):
    total = s.new_zeros(())
    for x, y in zip(s.flatten(), u.flatten(), strict=True):
        if x > -INF:
            d = x - y
            half = torch.tanh(d / 2)
            total = total + d * half * (x.sigmoid() * (-y).sigmoid() + y.sigmoid() * (-x).sigmoid())
    return total


def sigma_plain(s, u):
    return ((s.sigmoid() - u.sigmoid()) * (s - u)).sum()


def sigma_selected(s, u):
    count = s > -INF
    return sigma_plain(s[count], u[count])


def sigma_nan_to_num(s, u):
    return torch.nan_to_num((s.sigmoid() - u.sigmoid()) * (s - u)).sum()


def sigma_root(s, u):
    count = s > -INF
    s, u = s[count], u[count]
    d = s - u
    return (d.square().sqrt() * (s.sigmoid() - u.sigmoid()).abs()).sum()


def sigma_by_exp(s, u):
    return ((s.exp() / (1 + s.exp()) - u.exp() / (1 + u.exp())) * (s - u)).sum()


def sigma_one_way(s, u):
    p, q = s.sigmoid(), u.sigmoid()
    return (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum()


def sigma_zeroed(s, u):
    s[s == -INF] = 0
    u[u == -INF] = 0
    return sigma_plain(s, u)


SIGMOID_DIVERGENCE = (
    [sigma_product, sigma_loops, lambda s, u: sigma_product(s.double(), u.double())],
    [
        (sigma_plain, "leave cells out before you subtract"),
        (sigma_nan_to_num, "Select the cells before anything"),
        (sigma_selected, "lost its digits"),
        (lambda s, u: (s.sigmoid() - u.sigmoid()).square().sum(), "decisions' change is squared"),
        (lambda s, u: (s - u).square().sum(), "scores' change is squared"),
        (lambda s, u: sigma_selected(s, u) / s.numel(), "mean over the cells"),
        (lambda s, u: -sigma_plain(s, u), "sign is turned"),
        (lambda s, u: sigma_plain(s, u) / 2, "both directions"),
        (sigma_one_way, "One direction only"),
        (
            lambda s, u: soft_by_loops(s.flatten(), u.flatten()),
            "each cell is a yes/no question",
        ),
        (sigma_by_exp, "larger than any float"),
        (sigma_zeroed, "changes its argument s"),
        (sigma_root, "wrong at ties"),
        (lambda s, u: (s.sigmoid() - u.sigmoid()).abs().sum(), "decisions' changes alone"),
        (lambda s, u: sigma_product(s.detach(), u), "no gradient reaches s"),
    ],
)

# ---------------------------------------------------------------- chapter 6


def log_p(delta, half=9.0, nodes=181):
    delta = np.array(delta)

    def slope(z):
        x = z + delta
        return np.exp(stats.norm.logpdf(x) - special.log_ndtr(x)).sum() - z

    z = optimize.brentq(slope, -50, 500) + np.linspace(-half, half, nodes)
    g = stats.norm.logpdf(z) + special.log_ndtr(z[:, None] + delta).sum(1)
    return g.max() + math.log((z[1] - z[0]) * np.exp(g - g.max()).sum())


def log_p_wide(delta):
    """No search: a grid that is wide and fine enough, with logarithms added."""
    z = torch.linspace(-20, 260, 8001, dtype=torch.float64)
    g = -z.square() / 2 - math.log(2 * math.pi) / 2
    for d in delta:
        g = g + torch.special.log_ndtr(z + d)
    return torch.logsumexp(g, 0) + math.log(280 / 8000)


def p_around_zero(delta):
    z = np.linspace(-12, 12, 481)
    values = stats.norm.pdf(z)
    for d in delta:
        values = values * special.ndtr(z + d)
    return 0.05 * values.sum()


def log_p_around_zero(delta):
    return math.log(max(p_around_zero(delta), 1e-300))


def log_p_at_first(delta):
    """The grid follows the first rival only."""
    if not delta:
        return 0.0
    top = max(0.0, -delta[-1] / 2)
    z = torch.linspace(top - 9, top + 9, 361, dtype=torch.float64)
    g = -z.square() / 2 - math.log(2 * math.pi) / 2
    for d in delta:
        g = g + torch.special.log_ndtr(z + d)
    return float(torch.logsumexp(g, 0) + math.log(0.05))


LOG_EXPECTED_ACCURACY = (
    [log_p, log_p_wide, lambda d: [log_p(d)][0].item()],
    [
        (p_around_zero, "This is the chance"),
        (lambda d: -log_p(d), "sign is turned round"),
        (lambda d: log_p([-x for x in d]), "sign of the advantages"),
        (
            lambda d: sum(special.log_ndtr(x / math.sqrt(2)) for x in d),
            "as if they were independent",
        ),
        (lambda d: sum(special.log_ndtr(x) for x in d), "target draws its own"),
        (lambda d: math.log(1 - p_around_zero(d)) if d else -INF, "chance to be wrong"),
        (lambda d: log_p(d) / math.log(10), "base 10"),
        (log_p_around_zero, "wrong far out"),
        (log_p_at_first, "the top of the bump depends on all"),
        (lambda d: log_p(d[:1] * len(d)), "wrong for different ones"),
        (lambda d: log_p(d) if d else -INF, "right for sure"),
        (lambda d: math.log(p_around_zero(d) ** 2) / 2, "raised ValueError"),
        (lambda d: [log_p(d)], "not a number"),
    ],
)


def two_places(scores, target, none=True, step=0.1):
    z = np.arange(-12, 12, step)
    others = np.delete(np.array(scores), target)
    f = special.ndtr(z[:, None] + scores[target] - others)
    first = f.prod(1)
    one = sum((1 - f[:, i]) * np.delete(f, i, 1).prod(1) for i in range(len(others)))
    return step * stats.norm.pdf(z) @ (none * first + one)


def two_by_pairs(scores, target):
    """Each rival in turn is let win: the target is the best of the others, or beaten by one."""
    z = torch.linspace(-9, 9, 361, dtype=torch.float64)
    total = torch.zeros_like(z)
    rivals = [i for i in range(len(scores)) if i != target]
    lose = {i: torch.special.ndtr(z + scores[target] - scores[i]) for i in rivals}
    for i in rivals:
        product = torch.ones_like(z)
        for j in rivals:
            if j != i:
                product = product * lose[j]
        total = total + product
    every = torch.ones_like(z)
    for i in rivals:
        every = every * lose[i]
    total = total - (len(rivals) - 1) * every
    return (0.05 * total * (-z.square() / 2).exp() / math.sqrt(2 * math.pi)).sum()


def two_union(scores, target):
    """The best of all, or the best without the best rival."""
    rivals = [s for i, s in enumerate(scores) if i != target]
    rivals.remove(max(rivals))
    return two_places([*rivals, scores[target], -99.0], len(rivals))


def two_equal_rivals(scores, target):
    mean = (sum(scores) - scores[target]) / (len(scores) - 1)
    return two_places([scores[target]] + [mean] * (len(scores) - 1), 0)


def best_one(scores, target):
    return two_places(scores, target) - two_places(scores, target, none=False)


def two_gumbel(scores, target):
    p = np.exp(scores) / np.exp(scores).sum()
    return p[target] + sum(p[i] * p[target] / (1 - p[i]) for i in range(len(p)) if i != target)


def two_any_rival(scores, target):
    """Any one rival may win while the others are not asked to lose."""
    z = np.arange(-12, 12, 0.1)
    f = special.ndtr(z[:, None] + scores[target] - np.delete(np.array(scores), target))
    every = f.prod(1)
    return 0.1 * stats.norm.pdf(z) @ (every + (1 - f).mean(1) * every ** (1 - 1 / f.shape[1]))


BEST_TWO = (
    [two_places, two_by_pairs, lambda s, t: float(two_by_pairs(s, t))],
    [
        (best_one, "chance to be the best"),
        (lambda s, t: two_places(s, t, none=False), "chance to be second"),
        (lambda s, t: 2 * best_one(s, t), "Twice"),
        (lambda s, t: 1 - two_places(s, t), "not to be among"),
        (two_gumbel, "Gumbel"),
        (lambda s, t: two_places([-x for x in s], t), "wrong sign"),
        (lambda s, t: two_places([x / math.sqrt(2) for x in s], t), "too large by √2"),
        (two_equal_rivals, "own advantage"),
        (two_any_rival, "By symmetry"),
        (lambda s, t: two_places(s, t) if len(s) < 5 else 0.4, "wrong for five"),
        (two_union, "By symmetry"),
        (lambda s, t: None, "not a number"),
        (lambda s, t: two_places(s, t) + math.nan, "Your answer is NaN"),
    ],
)

# ---------------------------------------------------------------- chapter 7


def emo_vectors(scores, targets, vectors):
    unit = vectors / vectors.norm(dim=1, keepdim=True)
    p = scores.softmax(1)
    prices = (unit[targets][:, None] - unit).square().sum(-1) / 2
    return (p * prices).sum(1)


def emo_loops(scores, targets, vectors):
    out = []
    for row, target in zip(scores, targets, strict=True):
        p, total = row.softmax(0), 0.0
        right = vectors[target] / vectors[target].norm()
        for share, vector in zip(p, vectors, strict=True):
            total = total + share * (vector / vector.norm() - right).square().sum() / 2
        out.append(total)
    return torch.stack(out)


def emo_mean(scores, targets, vectors):
    unit = functional.normalize(vectors, dim=1)
    return 1 - ((scores.softmax(1) @ unit) * unit[targets]).sum(1)


def alike(vectors):
    unit = functional.normalize(vectors, dim=1)
    return unit @ unit.T


def emo_plain_exp(scores, targets, vectors):
    p = scores.exp() / scores.exp().sum(1, keepdim=True)
    return (p * (1 - alike(vectors))[targets]).sum(1)


def emo_first_target(scores, targets, vectors):
    return emo_vectors(scores, targets[:1].expand(len(targets)), vectors)


def emo_clamped(scores, targets, vectors):
    return (scores.softmax(1) * (1 - alike(vectors).clamp(min=0))[targets]).sum(1)


def emo_stopped(scores, targets, vectors):
    return emo_vectors(scores, targets, vectors).detach() + 0 * scores.sum(1)


EMO_LOSS = (
    [emo_vectors, emo_loops, lambda s, t, v: emo_vectors(s.double(), t, v.double())],
    [
        (emo_mean, "lost its digits"),
        (lambda s, t, v: 1 - s.softmax(1)[range(len(t)), t], "Every wrong word costs 1"),
        (lambda s, t, v: 1 - emo_mean(s, t, v), "how alike"),
        (lambda s, t, v: 2 * emo_vectors(s, t, v), "whole squared distance"),
        (
            lambda s, t, v: (
                s.softmax(1) * torch.cdist(*2 * [functional.normalize(v, dim=1)])[t]
            ).sum(1),
            "distance itself",
        ),
        (lambda s, t, v: (s.softmax(1) * (1 - v @ v.T)[t]).sum(1), "not brought to length 1"),
        (lambda s, t, v: (s * (1 - alike(v))[t]).sum(1), "take their softmax"),
        (lambda s, t, v: (s.softmax(0) * (1 - alike(v))[t]).sum(1), "runs down the batch"),
        (lambda s, t, v: (s.softmax(1) * (1 - alike(v))[t]).mean(1), "mean over the words"),
        (lambda s, t, v: -emo_vectors(s, t, v), "sign is turned"),
        (lambda s, t, v: emo_vectors(s, t, v).mean(), "shape ()"),
        (emo_plain_exp, "torch.softmax"),
        (emo_first_target, "its own target"),
        (emo_clamped, "more than 1"),
        (emo_stopped, "gradient wrong"),
    ],
)


def kernel_vectors(scores, targets, vectors):
    unit = functional.normalize(vectors, dim=-1)
    p = scores.softmax(-1)
    wrong = p.scatter(-1, targets[:, None], 0.0)
    away = wrong @ unit - wrong.sum(-1, keepdim=True) * unit[targets]
    return away.square().sum(-1) / 2


def kernel_loops(scores, targets, vectors):
    unit = [v / v.norm() for v in vectors]
    out = []
    for row, target in zip(scores, targets.tolist(), strict=True):
        p = row.softmax(0)
        away = sum(p[i] * (unit[i] - unit[target]) for i in range(len(p)))
        out.append(0.5 * (away * away).sum())
    return torch.stack(out)


def kernel_subtracted(scores, targets, vectors):
    unit = functional.normalize(vectors, dim=1)
    return (scores.softmax(1) @ unit - unit[targets]).square().sum(1) / 2


def kernel_raw(scores, targets, vectors):
    return (scores.softmax(1) @ vectors - vectors[targets]).square().sum(1) / 2


def kernel_unit_mean(scores, targets, vectors):
    unit = functional.normalize(vectors, dim=1)
    mean = functional.normalize(scores.softmax(1) @ unit, dim=1)
    return (mean - unit[targets]).square().sum(1) / 2


KERNEL_SCORE_LOSS = (
    [kernel_vectors, kernel_loops, lambda s, t, v: kernel_vectors(s.double(), t, v.double())],
    [
        (kernel_subtracted, "lost its digits"),
        (lambda s, t, v: 2 * kernel_vectors(s, t, v), "half is missing"),
        (lambda s, t, v: (2 * kernel_vectors(s, t, v)).sqrt(), "distance itself"),
        (emo_vectors, "This is EMO"),
        (kernel_raw, "not brought to length 1"),
        (lambda s, t, v: kernel_vectors(s, t, v) / v.shape[1], "mean over the d"),
        (lambda s, t, v: (s @ v - v[t]).square().sum(1) / 2, "take their softmax"),
        (
            lambda s, t, v: (s.softmax(0) @ v - v[t]).square().sum(1) / 2,
            "runs down the batch",
        ),
        (lambda s, t, v: -kernel_vectors(s, t, v), "sign is turned"),
        (
            lambda s, t, v: (s.softmax(1) @ functional.normalize(v, dim=1)).square().sum(1) / 2,
            "take the target's vector off",
        ),
        (kernel_unit_mean, "squared distance of the mean direction"),
        (lambda s, t, v: kernel_vectors(s, t[:1].expand(len(t)), v), "its own target"),
        (lambda s, t, v: kernel_vectors(s, t, v).sum(), "shape ()"),
    ],
)

# ---------------------------------------------------------------- chapter 8


def tag_terms(s, y):
    return functional.softplus(torch.where(y > 0.5, -s, s))


def pointer_vectors(s, y, m):
    return tag_terms(s, y)[m].mean(-1).sum(-1).mean()


def pointer_loops(s, y, m):
    total, count = 0.0, 0
    for i in range(len(s)):
        if m[i]:
            count += 1
            for r in range(s.shape[1]):
                for c in range(2):
                    sign = -1 if y[i, r, c] else 1
                    total = total + functional.softplus(sign * s[i, r, c]) / 2
    return total / count


def pointer_logs(s, y, m):
    p = s.sigmoid()
    return -(y * p.log() + (1 - y) * (1 - p).log())[m].sum() / 2 / m.sum()


def pointer_clipped(s, y, m):
    p = s.sigmoid().clamp(1e-7, 1 - 1e-7)
    return -(y * p.log() + (1 - y) * (1 - p).log())[m].sum() / 2 / m.sum()


def pointer_clipped_scores(s, y, m):
    return (
        pointer_vectors(s.clamp(-20, 20), y, m)
        + (pointer_vectors(s, y, m) - pointer_vectors(s.clamp(-20, 20), y, m)).detach()
    )


HALF_POINTER_LOSS = (
    [pointer_vectors, pointer_loops, lambda s, y, m: pointer_vectors(s.float(), y, m)],
    [
        (lambda s, y, m: tag_terms(s, y)[m].mean(), "mean over the relations"),
        (lambda s, y, m: tag_terms(s, y)[m].sum() / m.sum(), "Start and end are summed"),
        (lambda s, y, m: tag_terms(s, y)[m].sum() / 2, "sum over the tokens"),
        (lambda s, y, m: tag_terms(s, y)[m].sum(), "sum over everything"),
        (lambda s, y, m: pointer_vectors(s, y, m | ~m), "padding counts"),
        (lambda s, y, m: tag_terms(s, y)[m].sum() / 2 / len(m), "Divided by all tokens"),
        (
            lambda s, y, m: tag_terms(s * m[:, None, None], y).sum() / 2 / m.sum(),
            "still cost log 2",
        ),
        (lambda s, y, m: pointer_vectors(s, 1 - y, m), "Ones and zeros"),
        (
            lambda s, y, m: (y * tag_terms(s, y))[m].sum() / 2 / m.sum(),
            "Only the tags of 1",
        ),
        (lambda s, y, m: -pointer_vectors(s, y, m), "sign is turned"),
        (pointer_logs, "exp(1000)"),
        (pointer_clipped, "with logits"),
        (pointer_clipped_scores, "silences the gradient"),
        (lambda s, y, m: tag_terms(s, y)[m].mean((0, 2)), "axis is missing"),
        (lambda s, y, m: pointer_loops(s.detach(), y, m), "no gradient reaches scores"),
    ],
)


def pair_backwards(starts, ends):
    starts, ends = set(starts), set(ends)
    found, nearest = [], None
    for i in range(max(starts | ends, default=-1), -1, -1):
        nearest = i if i in ends else nearest
        if i in starts and nearest is not None:
            found.append((i, nearest))
    return found[::-1]


def pair_by_bisection(starts, ends):
    places = torch.searchsorted(*(torch.tensor(x, dtype=torch.long) for x in (ends, starts)))
    return {(a, ends[k]) for a, k in zip(starts, places.tolist(), strict=True) if k < len(ends)}


def pair_later(starts, ends, choose=min, strictly=False):
    found = []
    for a in starts:
        later = [b for b in ends if b > a or (b == a and not strictly)]
        if later:
            found.append((a, choose(later)))
    return found


def pair_using_up(starts, ends):
    free, found = list(ends), []
    for a in starts:
        for b in free:
            if b >= a:
                found.append((a, b))
                free.remove(b)
                break
    return found


def pair_popping(starts, ends):
    found = []
    for a in starts:
        while ends and ends[0] < a:
            ends.pop(0)
        if ends:
            found.append((a, ends[0]))
    return found


def pair_brackets(starts, ends):
    waiting, found = [], []
    for i in range(max([*starts, *ends], default=-1) + 1):
        if i in starts:
            waiting.append(i)
        if i in ends and waiting:
            found.append((waiting.pop(), i))
    return found


def pair_either_side(starts, ends):
    return [(a, min(ends, key=lambda b: abs(b - a))) for a in starts if ends]


def pair_always(starts, ends):
    return [(a, next((b for b in ends if b >= a), a)) for a in starts]


def pair_from_ends(starts, ends):
    found = []
    for b in ends:
        before = [a for a in starts if a <= b]
        if before:
            found.append((max(before), b))
    return found


NEAREST_END_SPANS = (
    [pair_backwards, pair_later, pair_by_bisection],
    [
        (lambda a, b: list(zip(a, b, strict=False)), "first start goes with the first end"),
        (lambda a, b: pair_later(a, b, choose=max), "farthest"),
        (lambda a, b: pair_later(a, b, strictly=True), "may have one token"),
        (pair_using_up, "used up"),
        (pair_popping, "changes its argument ends"),
        (pair_brackets, "brackets"),
        (lambda a, b: [(i, j) for i in a for j in b if j >= i], "Every later end"),
        (lambda a, b: [(i, j + 1) for i, j in pair_later(a, b)], "exclusive"),
        (pair_either_side, "at or after it"),
        (pair_from_ends, "for each start the nearest end"),
        (pair_always, "dropped"),
        (lambda a, b: pair_later(a, b) or None, "returned NoneType"),
        (lambda a, b: [(i, min(x for x in b if x >= i)) for i in a], "raised ValueError"),
    ],
)

# ---------------------------------------------------------------- chapter 9


def triples_by_links(subjects, objects, heads, tails):
    def begin(spans, head):
        return [s for s in spans if s[0] == head]

    return {
        (*s, r, *o)
        for r, row in enumerate(heads)
        for head, other in row
        for s in begin(subjects, head)
        for o in begin(objects, other)
        if (s[1], o[1]) in tails[r]
    }


def triples_by_loops(subjects, objects, heads, tails):
    found = []
    for sh, st in subjects:
        for oh, ot in objects:
            for r in range(len(heads)):
                if (sh, oh) in heads[r] and (st, ot) in tails[r]:
                    found.append((sh, st, r, oh, ot))
    return found


def triples_where(subjects, objects, heads, tails, passes):
    return [
        (*s, r, *o)
        for s in subjects
        for o in objects
        for r in range(len(heads))
        if passes(s, o, heads[r], tails[r])
    ]


def triples_by_map(subjects, objects, heads, tails):
    """One span for each head: a dictionary keeps the last."""
    subject, obj = dict(sorted(subjects)), dict(sorted(objects))
    return {
        (a, subject[a], r, c, obj[c])
        for r, row in enumerate(heads)
        for a, c in row
        if a in subject and c in obj and (subject[a], obj[c]) in tails[r]
    }


def triples_used_up(subjects, objects, heads, tails):
    found = []
    for r, row in enumerate(heads):
        while row:
            a, c = row.pop()
            found += [
                (*s, r, *o)
                for s in subjects
                for o in objects
                if s[0] == a and o[0] == c and (s[1], o[1]) in tails[r]
            ]
    return found


def triples_first_relation(subjects, objects, heads, tails):
    return [t for t in triples_by_loops(subjects, objects, heads, tails) if t[2] == 0]


def triples_any_tails(subjects, objects, heads, tails):
    return triples_by_loops(subjects, objects, heads, [set().union(*tails)] * len(tails))


DECODE_TABLES = (
    [triples_by_links, triples_by_loops, lambda *t: sorted(triples_by_links(*t))],
    [
        (lambda *t: triples_where(*t, lambda s, o, h, u: (s[0], o[0]) in h), "tail links are not"),
        (lambda *t: triples_where(*t, lambda s, o, h, u: (s[1], o[1]) in u), "head links are not"),
        (
            lambda *t: triples_where(*t, lambda s, o, h, u: (s[0], o[0]) in h or (s[1], o[1]) in u),
            "both must say yes",
        ),
        (
            lambda *t: triples_where(
                *t, lambda s, o, h, u: (o[0], s[0]) in h and (o[1], s[1]) in u
            ),
            "changed places in the links",
        ),
        (triples_any_tails, "thrown together"),
        (lambda *t: [(a, b, c, d, r) for a, b, r, c, d in triples_by_loops(*t)], "order of the"),
        (lambda *t: [(r, a, b, c, d) for a, b, r, c, d in triples_by_loops(*t)], "order of the"),
        (triples_by_map, "several spans"),
        (triples_used_up, "changes its argument heads"),
        (triples_first_relation, "wrong for two"),
        (
            lambda *t: [x for x in triples_by_loops(*t) if x[0] <= x[3]],
            "run backwards",
        ),
        (lambda *t: [x for x in triples_by_loops(*t) if x[:2] != x[3:]], "own object"),
        (lambda *t: [(*x[:2], *x[3:]) for x in triples_by_loops(*t)], "5 numbers"),
        (lambda *t: torch.tensor(triples_by_loops(*t)), "returned Tensor"),
    ],
)


def filled_in(scores, cells, filling=False):
    y = torch.zeros_like(scores, dtype=torch.bool)
    for table, rows in enumerate(cells.tolist()):
        for i, j in rows:
            if i >= 0 or filling:
                y[table, i, j] = True
    return y.flatten(1)


def null_first(rows):
    return torch.cat([rows.new_zeros(len(rows), 1), rows], 1).logsumexp(1)


def tables_dense(scores, cells, filling=False):
    y, s = filled_in(scores, cells, filling), scores.flatten(1)
    return null_first(s.masked_fill(y, -INF)) + null_first((-s).masked_fill(~y, -INF))


def tables_loops(scores, cells):
    total = 0.0
    for rows, listed in zip(scores, cells.tolist(), strict=True):
        positive = {(i, j) for i, j in listed if i >= 0}
        low, high = [rows.new_zeros(())], [rows.new_zeros(())]
        for i in range(len(rows)):
            for j in range(len(rows)):
                if (i, j) in positive:
                    high.append(-rows[i, j])
                else:
                    low.append(rows[i, j])
        total = total + torch.stack(low).logsumexp(0) + torch.stack(high).logsumexp(0)
    return total


def tables_plain(scores, cells, null=1.0):
    y, s = filled_in(scores, cells), scores.flatten(1)
    low = torch.where(y, 0.0, s.exp()).sum(1)
    high = torch.where(y, (-s).exp(), 0.0).sum(1)
    return (torch.log(null + low) + torch.log(null + high)).sum()


def tables_multiplied(scores, cells):
    y, s = filled_in(scores, cells).to(scores), scores.flatten(1)
    return ((s.exp() * (1 - y)).sum(1).log1p() + ((-s).exp() * y).sum(1).log1p()).sum()


def tables_one_problem(scores, cells):
    y, s = filled_in(scores, cells).flatten()[None], scores.flatten()[None]
    return (null_first(s.masked_fill(y, -INF)) + null_first((-s).masked_fill(~y, -INF))).sum()


def tables_both(scores, cells):
    y, s = filled_in(scores, cells), scores.flatten(1)
    return (null_first(s) + null_first((-s).masked_fill(~y, -INF))).sum()


def tables_own_sign(scores, cells):
    y, s = filled_in(scores, cells), scores.flatten(1)
    return (null_first(s.masked_fill(y, -INF)) + null_first(s.masked_fill(~y, -INF))).sum()


def tables_swapped(scores, cells):
    y, s = filled_in(scores, cells), scores.flatten(1)
    return (null_first(s.masked_fill(~y, -INF)) + null_first((-s).masked_fill(y, -INF))).sum()


TABLE_LOSS = (
    [
        lambda s, c: tables_dense(s, c).sum(),
        tables_loops,
        lambda s, c: tables_dense(s.float(), c).sum(),
    ],
    [
        (lambda s, c: tables_dense(s, c, filling=True).sum(), "filling of -1"),
        (lambda s, c: tables_dense(s, c).mean(), "mean over the tables"),
        (tables_one_problem, "share one pair"),
        (lambda s, c: tables_plain(s, c, null=0.0), "null class is missing"),
        (tables_both, "among the negatives too"),
        (tables_own_sign, "their own sign"),
        (tables_swapped, "changed places"),
        (lambda s, c: tables_dense(s, c.flip(2)).sum(), "first of a pair is the row"),
        (tables_multiplied, "don't multiply"),
        (tables_plain, "exp(1000)"),
        (lambda s, c: tables_dense(s, c).sum() / s[0].numel(), "mean over the cells"),
        (lambda s, c: tables_dense(s, c), "axis is missing"),
        (lambda s, c: tables_dense(s, c).sum().item(), "Python number"),
        (lambda s, c: tables_dense(s, c).sum().round().long(), "int64"),
    ],
)

# ---------------------------------------------------------------- the table

EXERCISES = {
    "smooth_max": SMOOTH_MAX,
    "cross_entropy": CROSS_ENTROPY,
    "zlpr_loss": ZLPR_LOSS,
    "zlpr_gradient": ZLPR_GRADIENT,
    "soft_zlpr_loss": SOFT_ZLPR_LOSS,
    "resting_scores": RESTING_SCORES,
    "apply_rope": APPLY_ROPE,
    "factorised_spans": FACTORISED_SPANS,
    "softmax_divergence": SOFTMAX_DIVERGENCE,
    "sigmoid_divergence": SIGMOID_DIVERGENCE,
    "log_expected_accuracy": LOG_EXPECTED_ACCURACY,
    "best_two": BEST_TWO,
    "emo_loss": EMO_LOSS,
    "kernel_score_loss": KERNEL_SCORE_LOSS,
    "half_pointer_loss": HALF_POINTER_LOSS,
    "nearest_end_spans": NEAREST_END_SPANS,
    "decode_tables": DECODE_TABLES,
    "table_loss": TABLE_LOSS,
}
RIGHT = [(name, k) for name, (right, _) in EXERCISES.items() for k in range(len(right))]
WRONG = [(name, k) for name, (_, wrong) in EXERCISES.items() for k in range(len(wrong))]


@pytest.fixture(params=[torch.float32, torch.float64], ids=["default32", "default64"])
def default(request):
    """Half of our readers' notebooks say set_default_dtype, half do not."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(request.param)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize(("name", "k"), RIGHT)
def test_a_right_answer_passes(name, k, default):
    report = getattr(check, name)(EXERCISES[name][0][k])
    assert report.ok, report
    assert len(report.held) >= 4
    lines = repr(report).splitlines()
    assert lines[0] == f"{name}: all {len(report.held)} properties hold."
    assert lines[1:] == [f"  holds   {held}" for held in report.held]


@functools.cache
def wrong_report(name, k):
    return getattr(check, name)(EXERCISES[name][1][k][0])


@pytest.mark.parametrize(("name", "k"), WRONG)
def test_a_wrong_answer_is_told_what_is_wrong(name, k):
    words, report = EXERCISES[name][1][k][1], wrong_report(name, k)
    assert not report.ok
    assert words in report.sentence, report
    assert report.broken not in report.held
    assert [label for label, _ in report.evidence][-1].startswith("got")
    assert max(map(len, repr(report).splitlines())) <= 76


def test_every_slip_is_made_by_some_wrong_answer():
    told = {wrong_report(name, k).sentence for name, k in WRONG}
    slips = [
        ast.literal_eval(node.args[0])
        for path in sorted(Path(check.__file__).parent.glob("_*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Slip"
    ]
    assert len(slips) > 100
    assert [sentence for sentence in slips if sentence not in told] == []


def test_every_exercise_has_right_and_wrong_answers():
    assert sorted(EXERCISES) == sorted(set(check.__all__) - {"Report"})
    for name, (right, wrong) in EXERCISES.items():
        assert len(right) >= 3, name
        assert len({words for _, words in wrong}) >= 5, name


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda s, y, m: 2.5, "returned the Python number 2.5"),
        (lambda s, y, m: None, "returned NoneType"),
        (lambda s, y: s.sum(1), "raised TypeError"),
        (lambda s, y, m: s.sum(9), "raised IndexError"),
        (lambda s, y, m: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda s, y, m: s, "(1, 4) instead of (1,)"),
        (lambda s, y, m: y.sum(1), "int64"),
        (lambda s, y, m: s.sum(1) * math.nan, "Your answer is NaN"),
    ],
)
def test_what_cannot_be_compared_is_told_plainly(answer, words):
    report = check.zlpr_loss(answer)
    assert not report.ok
    assert not report.held
    assert words in report.sentence


def test_an_answer_must_be_a_function():
    with pytest.raises(TypeError, match=re.escape("answer must be a function, got 3.0")):
        check.zlpr_loss(3.0)


def test_a_report_shows_the_input_and_both_values():
    report = check.softmax_divergence(kl)
    names = [name for name, _ in report.evidence]
    assert names == ["s", "u", "expected", "got"]
    assert dict(report.evidence)["u"] == "[0.69314718, -0.69314718, 1.0986123, -0.69314718]"
    shown = repr(report)
    assert "  holds   equal passes: 0\n  breaks  the film: 13/38 log 2\n" in shown
    assert f"  expected  {13 / 38 * math.log(2):.8g}" in shown


def test_of_a_large_table_the_first_place_is_shown():
    report = check.apply_rope(lambda x: rope(x, base=50.0))
    assert dict(report.evidence)["x"].startswith("5 × 6 values from -")
    assert {name for name, _ in report.evidence} == {"x", "expected at [1, 2]", "got at [1, 2]"}
