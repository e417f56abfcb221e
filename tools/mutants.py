"""Break the library on purpose, one place at a time, and see whether the tests notice.

Each mutant replaces one piece of code, which must occur exactly once, in a copy of ``lib``,
``tests`` and what they read; the tests named beside it must then fail. ``python -m tools.mutants``
prints one line per mutant and ends with the count; its exit status is 1 if one survived. It is not
part of the test run: it takes some minutes on one core.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["MUTANTS", "Mutant", "main", "mutate"]

ROOT = Path(__file__).resolve().parent.parent
_SOFTMAX = "lib/softmax/__init__.py"
LIMIT_S = 300  # a mutant that loops for ever counts as caught


@dataclass(frozen=True)
class Mutant:
    """A slip: in ``file``, ``old`` becomes ``new``; ``tests`` should see it."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        """Write the slip on one line."""
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}: {old}  ->  {new or '(nothing)'}"


def _zlpr(old: str, new: str, file: str = "lib/zlpr/_kernels.py") -> Mutant:
    return Mutant(file, old, new, ("tests/test_zlpr.py", "tests/test_checks.py"))


_LABELS = "lib/soft_zlpr/_labels.py"


def _soft(old: str, new: str, file: str = "lib/soft_zlpr/_kernels.py") -> Mutant:
    return Mutant(file, old, new, ("tests/test_soft_zlpr.py",))


def _decode(old: str, new: str, file: str = "lib/gplinker/decoding.py") -> Mutant:
    return Mutant(file, old, new, ("tests/test_gplinker.py",))


def _casrel(old: str, new: str, file: str = "lib/casrel/model.py") -> Mutant:
    return Mutant(file, old, new, ("tests/test_casrel_model.py",))


def _tagging(old: str, new: str) -> Mutant:
    return Mutant("lib/casrel/tagging.py", old, new, ("tests/test_casrel.py",))


def _exact(old: str, new: str, file: str = "lib/exact/_integral.py") -> Mutant:
    return Mutant(file, old, new, ("tests/test_exact.py",))


def _emo(old: str, new: str, file: str = "lib/emo/_linear.py") -> Mutant:
    return Mutant(file, old, new, ("tests/test_emo.py",))


def _labels(old: str, new: str, file: str = "lib/zlpr/_linear.py") -> Mutant:
    return Mutant(file, old, new, ("tests/test_zlpr_linear.py",))


def _training(old: str, new: str, file: str = "lib/extraction/training/_run.py") -> Mutant:
    return Mutant(file, old, new, ("tests/extraction/test_training.py",))


def _softmax(old: str, new: str, file: str = "lib/softmax/_pairs.py") -> Mutant:
    return Mutant(file, old, new, ("tests/test_softmax.py",))


def _pointer(old: str, new: str, file: str = "lib/global_pointer/_products.py") -> Mutant:
    return Mutant(file, old, new, ("tests/test_global_pointer_losses.py",))


def _divergence(old: str, new: str, name: str = "scores") -> Mutant:
    return Mutant(f"lib/divergence/{name}.py", old, new, ("tests/test_divergence.py",))


def _check(old: str, new: str, file: str = "_report") -> Mutant:
    return Mutant(f"lib/check/{file}.py", old, new, ("tests/test_check.py",))


MUTANTS = (
    # exercises: what is told of an answer, and which slip it is taken for
    _check("if not _same(copies[name], before):", "if False:"),
    _check("all(same is not False for k, same in seen.items() if k < place)", "True"),
    _check("sum(same is True for same in seen.values())", "0"),
    _check("torch.linspace(1, 2, value", "torch.linspace(1, 1, value"),
    _check("else slope.to(value.dtype)", "else slope"),
    _check("if found.count(item) > 1:", "if False:"),
    _check("second = sum(win[:, k]", "second = sum(lose[:, k]", "_exact"),
    # divergences: digits of small changes, cells that do not count, the two uses
    _divergence("gain.log1p()", "(1 + gain).log()", "_regret"),
    _divergence("(both.sum(-1) + a * b)", "both.sum(-1)", "_regret"),
    _divergence("4 * share * (inner / 2).sinh().square()", "up + down - 2 * share", "_regret"),
    _divergence(
        "F.pad(filled(values, gone, empty), (1, 0))",
        "filled(values, gone, empty)",
        "_regret",
    ),
    _divergence("gap * -(-gap).expm1() * high", "gap * (1 - (-gap).exp()) * high"),
    _divergence("expm1()).sum(-1, keepdim=True).log1p()", "exp()).sum(-1, keepdim=True).log()"),
    _divergence("u.masked_fill(gone, 0)", "u", "_arguments"),
    _divergence(
        "(logits == -inf) & (other == -inf)", "(logits == -inf) | (other == -inf)", "_arguments"
    ),
    _divergence("regret(u, s, gone)) / 2", "regret(u, s, gone))"),
    _divergence("weight.mul_(keep)", "pass", "_kernels"),
    _divergence("upstream.neg() if", "upstream if", "_kernels"),
    _divergence(".view(*s.shape[:-1], 1)", "", "_kernels"),
    _divergence("alpha / 4 *", "alpha / 2 *", "training"),
    _divergence("r = _unit(gradient, r)", "r = _unit(probe.detach(), r)", "training"),
    _divergence("device=place, dtype=torch.float32)", "device=place)", "training"),
    _divergence(
        "with _checks.no_autocast(inputs):\n        target = _scores(forward, inputs)\n        r =",
        "if True:\n        target = _scores(forward, inputs)\n        r =",
        "training",
    ),
    _divergence("flat / length.masked_fill(top == 0, 1)", "flat", "training"),
    # the numbers
    _zlpr("torch.expm1(-above)", "torch.exp(-above)", file="lib/_rows.py"),
    _zlpr("scale / (1 + rest)", "scale / rest", file="lib/_rows.py"),
    _zlpr("shift.clamp(min=0)", "shift.clamp(max=0)", file="lib/_rows.py"),
    _zlpr("rest.log1p()", "(1 + rest).log()", file="lib/_rows.py"),
    _zlpr("terms.neg_().mul_(factors[1])", "terms.mul_(factors[1])"),
    _zlpr("torch.where(some, -inf, score)", "torch.where(some, 0.0, score)"),
    _zlpr(
        "counts[:, 1:] &= column[:, 1:] != column[:, :-1]", "counts[:, 1:] &= column[:, 1:] >= 0"
    ),
    _zlpr("column = positives.sort(-1).values", "column = positives"),
    _zlpr("return top.masked_fill(top == -inf, 0)", "return top", file="lib/_rows.py"),
    _zlpr("cells.sub_(finite(top)).mul_(LOG2_E)", "cells.mul_(LOG2_E).sub_(finite(top))"),
    _zlpr("cells.sub_(0.5).mul_(-inf)", "cells.sub_(0.0).mul_(-inf)"),
    _zlpr(".mul_(factors[0, part]).sub_(pull)", ".mul_(factors[0, part]).add_(pull)"),
    _zlpr(
        "torch.where((positives < 0) | outside, classes, positives)", "positives.clamp(0, classes)"
    ),
    _zlpr("(minus - pull).exp_()", "minus.exp()"),
    _zlpr(
        "return torch.promote_types(dtype, torch.float32)", "return dtype", file="lib/_checks.py"
    ),
    # cells that do not count, and bad values
    _zlpr(
        "nothing = cells.new_tensor(-inf)", "nothing = cells.new_tensor(-1e4)", file="lib/_rows.py"
    ),
    _zlpr("~mask.gather(1, column), -inf)", "mask.gather(1, column) & False, -inf)"),
    _zlpr("infinite = (counts & (score == inf))", "infinite = (counts & (score != score))"),
    _zlpr("bad = top == inf if", "bad = top != top if"),
    _zlpr("(positive.bool() & ~mask)", "(positive.bool() & mask)"),
    # small inputs, and narrow scores in parts
    _zlpr("upstream = upstream / count", "pass"),
    _zlpr("push.mul_(mask)", "pass"),
    _zlpr("return push.sub_(pull), pull", "return push, pull"),
    _zlpr("positives + 1, 1.0)", "positives.clamp(min=0) + 1, 1.0)"),
    _zlpr("not _binary(labels)", "False"),
    _zlpr("low.item() == 0 == high.item()", "low.item() == 0"),
    _zlpr("low.item() == 0 == high.item()", "high.item() == 0"),
    _zlpr("torch.where(some, 0, score.exp())", "torch.where(some, 0, score)"),
    _zlpr("bad | (scores == inf).any(-1, keepdim=True)", "bad"),
    _zlpr(".abs_().amax(-1) == 0", ".amax(-1) == 0", file="lib/_checks.py"),
    # finding the positives of a table
    _zlpr("words[word] * 8 + byte", "words[word] * 8"),
    _zlpr(" and flat.storage_offset() % 8 == 0", ""),
    _zlpr("(each.cumsum(0) - each)[row]", "row"),
    # derivatives and reductions
    _zlpr("create_graph=again", "create_graph=False", file="lib/_rows.py"),
    _zlpr("values.mean() if", "values.sum() if", file="lib/_checks.py"),
    # soft labels
    _soft("torch.sub(1, plus, out=minus)", "minus.copy_(plus)"),
    _soft("clamp(min=0)\n\n\n# ---", "clamp(min=-inf)\n\n\n# ---"),
    _soft("NARROW = 32.0", "NARROW = 120.0", file="lib/_rows.py"),
    _soft("low = float(rows.masked_fill(~scored, 0).amin())", "low = 0.0", file="lib/_rows.py"),
    _soft("push.mul_(mask)", "pass"),
    _soft("((targets > 0) & ~mask).any(-1)", "((targets > 1) & ~mask).any(-1)"),
    _soft("slopes.masked_fill_(~mask, 0)", "pass"),
    _soft("plus, minus.mul_(counts), counts", "plus, minus, counts"),
    _soft(".clamp(min=torch.finfo(weights.dtype).tiny).log()", ".log().clamp(min=-1e4)"),
    _soft("bad[part] |= (given - counts)", "bad[part] &= (given - counts)"),
    _soft(".masked_fill(gone, 0)\n    return slopes", "\n    return slopes"),
    _soft("(1 - wide).to(dtype)", "1 - wide.to(dtype)"),
    _soft("(1 - t) * p - t * q", "p - t", file="lib/soft_zlpr/_probability.py"),
    _soft(".min()) >= float(", ".min()) > float(", file="lib/soft_zlpr/_probability.py"),
    _soft("around = s - float", "around = s + float", file="lib/soft_zlpr/_probability.py"),
    _soft("if value < 0 else (low", "if value > 0 else (low", file="lib/soft_zlpr/_probability.py"),
    _soft("mixed = torch.lerp(other, own,", "mixed = torch.lerp(own, other,", file=_LABELS),
    _soft("reduce(torch.lerp(other, own,", "reduce(torch.lerp(own, other,", file=_LABELS),
    # the expected accuracy
    _exact("-0.5 * z * z - peak", "-0.5 * z * z"),
    _exact("depth / curvature", "depth * curvature"),
    _exact("torch.sym_sqrt(depth + log_classes)", "1.0"),
    _exact("-torch.expm1(log_phi) * density", "(1 - log_phi.exp()) * density"),
    _exact("torch.log1p(-mass)", "(1 - mass).log()"),
    _exact("torch.float32: -11.0", "torch.float32: -30.0"),
    _exact("width * _PHI_0 / (1 - mass), 1 / total", "1 / total, 1 / total"),
    _exact("tail.neg_().log1p_()", "tail.mul_(-2).log1p_()"),
    _exact("slope * slope < 2 * _NEAR_MODE * curvature", "slope < 1e30"),
    _exact("2 if tails is _tails_far else 0", "0"),
    _exact("torch.where(beaten, margin, ahead)", "ahead - margin", "lib/exact/__init__.py"),
    _exact(
        "(ahead > margin) & (rows > -math.inf)",
        "(ahead > margin) & (rows <= math.inf)",
        "lib/exact/__init__.py",
    ),
    _exact(
        "rows.amax(1, keepdim=True) < math.inf",
        "rows.amax(1, keepdim=True) <= math.inf",
        "lib/exact/__init__.py",
    ),
    _exact("not margin > 0", "not margin >= 0", "lib/exact/__init__.py"),
    _exact(
        "bad | ~((noise > 0) & (noise < math.inf))", "bad | (noise < 0)", "lib/exact/__init__.py"
    ),
    _exact("torch.where((bad & ~ignored)", "torch.where((bad | ignored)", "lib/exact/__init__.py"),
    _exact("counts.unsqueeze(-1) & mask", "mask", "lib/exact/__init__.py"),
    _exact("ahead = ahead / noise", "ahead = ahead * noise", "lib/exact/__init__.py"),
    # labels without logits
    _labels("torch.where(some, 0, cells", "torch.where(some, 1, cells"),
    _labels("torch.where(some, -inf, cells", "torch.where(some, 0, cells"),
    _labels("z[at, place] = -inf", "z[at, place] = 0"),
    _labels("total[here] *= (top[here] - shift).exp()", "total[here] *= 1"),
    _labels("inside = (column >= tile.start)", "inside = (column > tile.start)"),
    _labels("(column < tile.stop)", "(column <= tile.stop)"),
    _labels("z[at, place] = slopes[here][at, which]", "z[at, place] = 0"),
    _labels("d_bias[tile] += z.sum(0)", "d_bias[tile] = z.sum(0)"),
    _labels("d_weight.addmm_(z.T, rows)", "d_weight.copy_(z.T @ rows)"),
    _labels("lists.bad[here] | infinite", "infinite"),
    _labels("if ctx.how.look:\n            blame_weight", "if False:\n            blame_weight"),
    _labels("if factor is not None and look:", "if False:"),
    _labels("factor = factor / max(1, len(hidden))", "factor = factor / 1"),
    _labels("above = values > threshold", "above = values >= threshold"),
    _labels("values[:, :1].isnan()", "values[:, 1:].isnan()"),
    _labels("low >= -NARROW and high <= NARROW", "high <= NARROW"),
    _labels("low >= -NARROW and high <= NARROW", "low >= -NARROW"),
    # prices of tokens
    _emo("z.scatter_(1, gold, 0.0)  # out of", "z.mul_(1.0)  # out of"),
    _emo("(rest - likeness).clamp_(min=0)", "(rest + likeness).clamp_(min=0)"),
    _emo("-a * rest - b * gold_p * emo", "-a * rest"),
    _emo("part.masked_fill(gold_z == -inf, nan)", "part"),
    _emo("    blame_weight(weight, d_hidden)\n    return", "    return"),
    _emo(
        "with _checks.no_autocast(logits):\n        p =",
        "if True:\n        p =",
        "lib/emo/__init__.py",
    ),
    _emo("d_weight.addmm_(z.T, rows)", "d_weight.copy_(z.T @ rows)"),
    _emo("likely = gold_p + likeness", "likely = 1 - emo"),
    _emo("gradient.mul_(upstream)", "gradient.mul_(1.0)", "lib/_linear.py"),
    _emo("wrong = p.scatter(1, column, 0.0)", "wrong = p", "lib/emo/_terms.py"),
    _emo(
        ".relu_()\n    costs = costs.scatter",
        "\n    costs = costs.scatter",
        "lib/emo/_terms.py",
    ),
    _emo("result.isfinite().all()", "result.isfinite().any()", "lib/emo/__init__.py"),
    _emo("bool(bad.any())", "bool(bad.all())", "lib/emo/__init__.py"),
    _emo("if bool(flags.any())", "if bool(flags.all())", "lib/emo/_terms.py"),
    _emo("witness.isfinite().all()", "witness.isfinite().any()", "lib/_linear.py"),
    _emo("or bool(witness", "or not bool(witness", "lib/_linear.py"),
    _emo("not all_finite(witness)", "all_finite(witness)", "lib/_linear.py"),
    _emo("gradient.to(leaf.dtype)", "gradient", "lib/_linear.py"),
    _emo("factor = factor * (counts & ~bad)", "factor = factor * counts"),
    _emo("d_bias.add_(z.sum(0))", "d_bias.add_(z.mean(0))"),
    _emo("self._filled = not", "self._filled = True or not", "lib/emo/_embeddings.py"),
    _emo('log["warning"] is not None', "False", "lib/emo/_transport.py"),
    _emo("rows / largest", "rows", "lib/emo/_embeddings.py"),
    _emo("counts.sum().clamp(min=1)", "counts.numel()", file="lib/_checks.py"),
    _emo("0.5 * ratio", "ratio", file="lib/emo/_mixture.py"),
    _emo("emo > 4 * torch", "emo >= 0 * torch", file="lib/emo/_mixture.py"),
    _emo("odd &= ~skipped", "odd &= skipped", file="lib/emo/_embeddings.py"),
    _emo("return 1 - first, sqrt(", "return first, sqrt(", file="lib/emo/_embeddings.py"),
    # the decode
    _decode(
        "links = torch.minimum(head_links, tail_links)",
        "links = torch.maximum(head_links, tail_links)",
    ),
    _decode("links = torch.minimum(head_links, tail_links)", "links = head_links + tail_links"),
    _decode("(links > threshold).nonzero", "(links >= threshold).nonzero"),
    _decode(".minimum(links[relation, s, o])", ""),
    _decode("(scores > threshold).nonzero()", "(scores >= threshold).nonzero()"),
    _decode("tail_links[:, subjects[:, 1, None]", "tail_links[:, subjects[:, 0, None]"),
    _decode("objects = _spans(entity_scores[1]", "objects = _spans(entity_scores[0]"),
    _decode("topk(limit).indices.sort().values", "topk(limit).indices"),
    _decode(".topk(limit).indices", ".topk(limit, largest=False).indices"),
    _decode("cells[:, 0] > cells[:, 1]", "cells[:, 0] > cells[:, 1] + 1"),
    _decode("torch.stack(four).amin(dim=0)", "torch.stack(four).amax(dim=0)"),
    _decode(
        "enumerate((self.head_links, self.tail_links))",
        "enumerate((self.head_links, self.head_links))",
        file="lib/gplinker/model.py",
    ),
    _decode("[s[:, end] for s, _", "[s[:, 0] for s, _", file="lib/gplinker/model.py"),
    _decode(
        "(self.head_links, head_links),\n                    (self.tail_links, tail_links),",
        "(self.head_links, tail_links),\n                    (self.tail_links, head_links),",
        file="lib/gplinker/model.py",
    ),
    _pointer("pair = pair.masked_fill(~keep, -inf)", "pair = pair"),
    _pointer("part.masked_fill(~mask.unsqueeze(1), 0)", "part"),
    # smooth maxima
    _softmax("factor = upstream.unsqueeze(1) / total", "factor = upstream.unsqueeze(1)"),
    _softmax("totals.log().div_(gamma)", "totals.log().mul_(gamma)"),
    _softmax("total.masked_fill(top == -inf, 1).log() / gamma", "total.log() / gamma"),
    _softmax("if mask is not None and not ctx.branching and", "if mask is None and"),
    _softmax("excess2 + (top2 - shift)", "excess2"),
    _softmax("torch.is_grad_enabled() and not", "False and not", _SOFTMAX),
    _softmax("columns[..., : degree + 1]", "columns[..., :degree]", "lib/softmax/_subsets.py"),
    _softmax("+ k * middle.squeeze(-1)", "", "lib/softmax/_subsets.py"),
    _softmax("one[..., 0] = 0", "one[..., 0] = 1", "lib/softmax/_subsets.py"),
    _softmax("few | logs.isnan()", "logs.isnan()", _SOFTMAX),
    _softmax("total.masked_fill(total == 0, 1)", "total", _SOFTMAX),
    _softmax("near = values > -log(2)", "near = values > -40", _SOFTMAX),
    _softmax("(0 - torch.expm1(", "(-torch.expm1(", _SOFTMAX),
    # pointers without tables
    _pointer("weak &= bound > ", "weak &= bound < "),
    _pointer("rows.view(-1)[lost_rows] = more", "pass"),
    _pointer("bound[at] = -inf", "pass"),
    _pointer("scores[opened.hole_row[here] - first, opened.hole_column[here]] = -inf", "pass"),
    _pointer("torch.unique(flat[lists[..., 0] >= 0])", "flat[lists[..., 0] >= 0].sort().values"),
    _pointer("scores.masked_fill_(columns < row.unsqueeze(1), -inf)", "pass"),
    _pointer("(torch.expm1(-top) + rest).log1p_()", "(torch.expm1(-top) + rest + 1).log_()"),
    _pointer("largest = largest.masked_fill(largest == 0, 1)", "pass"),
    _pointer("scores[:, :, :rows].masked_fill_(below[:rows, :rows], -inf)", "pass"),
    _pointer("self.scores[tile.part, tile.rows, : tile.left].zero_()", "pass"),
    _pointer("factors, cells, beta=int(tile.left > 0)", "factors, cells, beta=1"),
    _pointer("found.mT, queries, beta=int(tile.left > 0)", "found.mT, queries, beta=0"),
    _pointer("self.keys[text].addmm_(cells[at].mT, queries)", "pass"),
    _pointer("yield text, slice(first, first + count)", "yield text, slice(first, first + 1)"),
    _pointer(
        "queries.masked_fill(hidden, 0), keys.masked_fill(hidden, 0)",
        "queries, keys",
        file="lib/global_pointer/factorised.py",
    ),
    Mutant(
        "lib/global_pointer/rope.py",
        "if step != 1 or any(",
        "if any(",
        ("tests/test_global_pointer.py",),
    ),
    _pointer(
        "(by_row > threshold)", "(by_row > threshold + 1e-6)", file="lib/global_pointer/decoding.py"
    ),
    _pointer(
        "start, end = start.masked_fill(hidden, -inf), end.masked_fill(hidden, -inf)",
        "pass",
        file="lib/global_pointer/decoding.py",
    ),
    _pointer(
        "pair.amax(2).unsqueeze(1) + start + best_end",
        "pair.amax(2).unsqueeze(1) + (start + best_end)",
        file="lib/global_pointer/decoding.py",
    ),
    _decode(
        "shapes[bisect_right(starts, start) - 1]",
        "shapes[bisect_right(starts, start) - 2]",
        file="lib/extraction/encoders.py",
    ),
    _decode(
        'name.startswith("encoder.") and parameter not in new',
        'name.startswith("encoder.")',
        file="lib/extraction/model.py",
    ),
    _pointer("part[here] = -inf", "pass", file="lib/global_pointer/streaming.py"),
    _pointer(
        "totals[tile.tables] * scale + part",
        "totals[tile.tables] + part",
        file="lib/global_pointer/streaming.py",
    ),
    # averaged weights, and what a killed run goes on with
    _training("ema_decay(step + 1, settings.ema)", "settings.ema"),
    _training("ema_decay(step + 1, settings.ema)", "ema_decay(number + 1, settings.ema)"),
    _training('self.average.load_state_dict(saved["average"])', "pass"),
    _training(
        "self.model if self.average is None else cast(Extractor, self.average.module)", "self.model"
    ),
    _training("self.best_model if improved and not self.average", "self.best_model if improved"),
    _training("decay ** (step - 1)", "decay**step", file="lib/extraction/training/_settings.py"),
    # subjects first
    _tagging("(1 + power) / 2 * (-scores", "(1 + power) * (-scores"),
    _tagging("_FAR = 20.0", "_FAR = 2.0"),
    _tagging("(start, bisect_left(last, start))", "(start, bisect_left(last, start + 1))"),
    _tagging("if other >= start]", "if other > start]"),
    _tagging("flatten(2).sum(2) / 2", "flatten(2).mean(2)"),
    _tagging("targets.masked_fill(~mask, 0)", "targets"),
    _tagging("linear(condition, bias_map)", "linear(condition, weight_map)"),
    _casrel("(margins > 0).unbind", "(margins >= 0).unbind", file="lib/casrel/decoding.py"),
    _casrel(
        "torch.searchsorted(end, start)",
        "torch.searchsorted(end, start, right=True)",
        file="lib/casrel/decoding.py",
    ),
    _casrel(
        "same = nearest // max(length, 1) == start // max(length, 1)",
        "same = nearest >= start",
        file="lib/casrel/decoding.py",
    ),
    _casrel(".indices.sort().values + first", ".indices + first", file="lib/casrel/decoding.py"),
    _casrel("if other >= head]", "if other > head]", file="lib/casrel/sampling.py"),
    _casrel(
        "(triple.subject_head, triple.subject_tail) == (head, tail)",
        "triple.subject_head == head",
        file="lib/casrel/sampling.py",
    ),
    _casrel("hidden[text, tail]), dim=-1)", "hidden[text, head]), dim=-1)"),
    _casrel("(objects.sum(1) / sizes[texts]).sum()", "(objects.sum(1) / sizes[texts]).mean()"),
    _casrel("power = self.options.power[0]", "power = self.options.power[1]"),
    _casrel("subjects.margins[first + of]", "subjects.margins[of]"),
    _casrel("torch.minimum(subjects.margins", "torch.maximum(subjects.margins"),
    _casrel("scores.to(torch.promote_types(scores.dtype, torch.float32))", "scores"),
    _casrel("if count:", "if count > 1:", file="lib/casrel/reencoding.py"),
)


def mutate(mutant: Mutant, root: Path) -> str:
    """Apply a mutant below ``root``; return the text that stood in the file before."""
    path = root / mutant.file
    before = path.read_text("utf-8")
    if before.count(mutant.old) != 1:
        raise ValueError(
            f"{mutant.file}: expected one {mutant.old!r}, found {before.count(mutant.old)}"
        )
    path.write_text(before.replace(mutant.old, mutant.new), "utf-8")
    return before


def _failing(tests: Sequence[str], root: Path) -> str | None:
    """Name what fails first, or None if all tests pass."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:nbval",
    ]
    command += ["-o", "addopts=", "--tb=no", *tests]
    # Not from the byte code of the mutant before, whose file may have the same size and second.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return f"no end within {LIMIT_S} s"
    if done.returncode == 0:
        return None
    if done.returncode > 2:
        raise RuntimeError(f"pytest could not run: {done.stdout[-500:]}{done.stderr[-500:]}")
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return failed[0].split(" - ")[0] if failed else done.stdout.splitlines()[-1]


def main(mutants: Sequence[Mutant] = MUTANTS) -> int:
    """Try every mutant and print what became of it."""
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("lib", "references", "tests", "tools", "book/data", "book/runs"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("conftest.py", "pyproject.toml"):
            shutil.copy(ROOT / name, root)
        for tests in dict.fromkeys(mutant.tests for mutant in mutants):
            if failing := _failing(tests, root):
                raise RuntimeError(f"the tests fail before anything is broken: {failing}")
        for mutant in mutants:
            before = mutate(mutant, root)
            failing = _failing(mutant.tests, root)
            (root / mutant.file).write_text(before, "utf-8")
            survivors += failing is None
            print(f"{'SURVIVED' if failing is None else 'caught  '}  {mutant}", flush=True)
            if failing is not None:
                print(f"          by {failing}", flush=True)
    print(f"{len(mutants) - survivors} of {len(mutants)} mutants caught")
    return int(survivors > 0)


if __name__ == "__main__":
    sys.exit(main())
