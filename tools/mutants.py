"""Break the library on purpose, one place at a time, and see whether the tests notice.

Each mutant replaces one piece of code, which must occur exactly once, in a copy of ``lib`` and
``tests``; the tests named beside it must then fail. ``python -m tools.mutants`` prints one line per
mutant and ends with the count; its exit status is 1 if one survived. It is not part of the test
run: it takes some minutes on one core.
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


def _zlpr(old: str, new: str, file: str = "lib/zlpr/_rows.py") -> Mutant:
    return Mutant(file, old, new, ("tests/test_zlpr.py", "tests/test_checks.py"))


def _decode(old: str, new: str, file: str = "lib/gplinker/decoding.py") -> Mutant:
    return Mutant(file, old, new, ("tests/test_gplinker.py",))


def _pointer(old: str, new: str, file: str = "lib/global_pointer/_products.py") -> Mutant:
    return Mutant(file, old, new, ("tests/test_global_pointer_losses.py",))


MUTANTS = (
    # the numbers
    _zlpr("torch.expm1(-above)", "torch.exp(-above)"),
    _zlpr("scale / (1 + rest)", "scale / rest"),
    _zlpr("shift.clamp(min=0)", "shift.clamp(max=0)"),
    _zlpr("rest.log1p()", "(1 + rest).log()"),
    _zlpr("terms.neg_().mul_(factors[1])", "terms.mul_(factors[1])"),
    _zlpr("torch.where(some, -inf, score)", "torch.where(some, 0.0, score)"),
    _zlpr(
        "counts[:, 1:] &= column[:, 1:] != column[:, :-1]", "counts[:, 1:] &= column[:, 1:] >= 0"
    ),
    _zlpr("column = positives.sort(-1).values", "column = positives"),
    _zlpr("return top.masked_fill(top == -inf, 0)", "return top"),
    _zlpr("cells.sub_(_shift(top)).mul_(_LOG2_E)", "cells.mul_(_LOG2_E).sub_(_shift(top))"),
    _zlpr("cells.copy_(positive).sub_(0.5)", "cells.copy_(positive).sub_(0.0)"),
    _zlpr(".mul_(factors[0, part]).sub_(pull)", ".mul_(factors[0, part]).add_(pull)"),
    _zlpr(
        "torch.where((positives < 0) | outside, classes, positives)", "positives.clamp(0, classes)"
    ),
    _zlpr("(minus - pull).exp_()", "minus.exp()"),
    _zlpr(
        "return torch.promote_types(dtype, torch.float32)", "return dtype", file="lib/_checks.py"
    ),
    # cells that do not count, and bad values
    _zlpr("nothing = cells.new_tensor(-inf)", "nothing = cells.new_tensor(-1e4)"),
    _zlpr("~mask.gather(1, column), -inf)", "mask.gather(1, column) & False, -inf)"),
    _zlpr(" | (counts & (score == inf)).any(-1, keepdim=True)", ""),
    _zlpr(" | (tops[2] == inf)", ""),
    _zlpr("bad | (scores == inf).any(-1, keepdim=True)", "bad"),
    _zlpr(".abs_().amax(-1) == 0", ".amax(-1) == 0", file="lib/_checks.py"),
    # finding the positives of a table
    _zlpr("words[word] * 8 + byte", "words[word] * 8"),
    _zlpr(" and flat.storage_offset() % 8 == 0", ""),
    _zlpr("(each.cumsum(0) - each)[row]", "row"),
    # derivatives and reductions
    _zlpr("create_graph=again", "create_graph=False"),
    _zlpr("values.mean() if", "values.sum() if", file="lib/_checks.py"),
    # the decode
    _decode("(by_head > 0) & (by_tail > 0)", "(by_head > 0) | (by_tail > 0)"),
    _decode("(by_head > 0) & (by_tail > 0)", "by_head + by_tail > 0"),
    _decode("(by_head > 0) &", "(by_head >= 0) &"),
    _decode("(scores > 0).nonzero()", "(scores >= 0).nonzero()"),
    _decode("tail_scores[:, subjects[:, 1, None]", "tail_scores[:, subjects[:, 0, None]"),
    _decode("objects = _spans(entity_scores[1]", "objects = _spans(entity_scores[0]"),
    _decode("cells = cells[best.sort().values]", "cells = cells[best]"),
    _decode(".topk(limit).indices", ".topk(limit, largest=False).indices"),
    _decode("cells[:, 0] > cells[:, 1]", "cells[:, 0] > cells[:, 1] + 1"),
    _decode("torch.stack(four).amin(dim=0)", "torch.stack(four).amax(dim=0)"),
    # pointers without tables
    _pointer("weak &= bound > ", "weak &= bound < "),
    _pointer("rows.view(-1)[lost_rows] = more", "pass"),
    _pointer("bound[at] = -inf", "pass"),
    _pointer("scores[opened.hole_row[here] - first, opened.hole_column[here]] = -inf", "pass"),
    _pointer("torch.unique(flat[lists[..., 0] >= 0])", "flat[lists[..., 0] >= 0].sort().values"),
    _pointer("scores.masked_fill_(columns < row.unsqueeze(1), -inf)", "pass"),
    _pointer("(torch.expm1(-top) + rest).log1p_()", "(torch.expm1(-top) + rest + 1).log_()"),
    _pointer("largest = largest.masked_fill(largest == 0, 1)", "pass"),
    _pointer(
        "_hide(end, mask).to(_WIDE) - finite_top(top)",
        "_hide(end, mask).to(_WIDE).sub_(finite_top(top))",
    ),
    _pointer("(by_row > 0)", "(by_row > 1e-6)", file="lib/global_pointer/decoding.py"),
    _pointer(
        "pair.amax(2).unsqueeze(1) + start + best_end",
        "pair.amax(2).unsqueeze(1) + (start + best_end)",
        file="lib/global_pointer/decoding.py",
    ),
    _pointer("part[here] = -inf", "pass", file="lib/global_pointer/streaming.py"),
    _pointer(
        "totals[tile.tables] * scale + part",
        "totals[tile.tables] + part",
        file="lib/global_pointer/streaming.py",
    ),
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
        for name in ("lib", "tests", "tools"):
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
