"""Which way imports run, read from the syntax trees: nothing here is imported or run.

A rule names a package and what it must not import, or all of the project that it may.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WINGS = ("lib", "book", "tests", "benchmarks", "experiments", "references", "tools", "ledger")
# Every loss stands on these.
SHARED = {"lib._checks", "lib._rows", "lib._refusals", "lib._modules", "lib._extras", "lib._linear"}
MATHEMATICS = {
    "softmax": set(),
    "zlpr": set(),
    "soft_zlpr": {"lib.zlpr"},
    "global_pointer": {"lib.zlpr"},
    "divergence": {"lib.zlpr"},
    "exact": set(),
    "emo": set(),
}
MODELS = {"lib.casrel", "lib.gplinker"}
# Wings and what none of their files may import.
MUST_NOT = {
    "lib": {"book", "tests", "benchmarks", "experiments", "references", "tools", "ledger"},
    "references": {"book", "tests", "benchmarks", "experiments", "tools", "ledger"},
    "benchmarks": {"tests"},
    "experiments": {"tests"},
    "lib/extraction": MODELS,
}


def imported(path: Path, root: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of every module or name that a file imports, wherever it does."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{name}.{alias.name}") for alias in node.names)


def within(name: str, packages: set[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def broken(root: Path) -> list[str]:
    """Every import that runs the wrong way."""
    found = []
    for wing, banned in MUST_NOT.items():
        for path in sorted((root / wing).rglob("*.py")):
            for line, name in imported(path, root):
                if within(name, banned):
                    found.append(f"{path.relative_to(root)}:{line}: {wing} imports {name}")
    for chapter, allowed in MATHEMATICS.items():
        may = {*SHARED, *allowed, f"lib.{chapter}"}
        for path in sorted((root / "lib" / chapter).rglob("*.py")):
            for line, name in imported(path, root):
                if within(name, {"lib"}) and not within(name, may):
                    found.append(f"{path.relative_to(root)}:{line}: lib.{chapter} imports {name}")
    for path in sorted(path for wing in WINGS for path in (root / wing).rglob("*.py")):
        own = path.relative_to(root).parts[1] if path.is_relative_to(root / "lib") else None
        if path.is_relative_to(root / "tests"):
            continue  # a test may look behind the front
        for line, name in imported(path, root):
            parts = name.split(".")
            private = len(parts) > 2 and parts[0] == "lib" and parts[2].startswith("_")
            if private and parts[1] != own and not parts[2].startswith("__"):
                found.append(f"{path.relative_to(root)}:{line}: imports the private {name}")
    return found


def test_imports_run_one_way():
    assert broken(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("lib/zlpr/deep/inner.py", "from references.bert4torch import bert4torch_losses"),
        ("lib/extraction/inner.py", "from lib.casrel import CasRel"),
        ("lib/exact/inner.py", "import lib.zlpr"),
        ("lib/global_pointer/inner.py", "from ..soft_zlpr import soft_zlpr_loss"),
        ("lib/soft_zlpr/inner.py", "from lib import divergence"),
        ("lib/gplinker/inner.py", "from lib.zlpr._kernels import anything"),
        ("benchmarks/one.py", "def main():\n    import tests.battery"),
        ("experiments/one.py", "from tests import battery"),
        ("references/one.py", "from benchmarks import measure"),
    ],
)
def test_a_planted_import_is_found(tmp_path, file, line):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(f"{line}\n", "utf-8")
    assert [entry for entry in broken(tmp_path) if entry.startswith(f"{file}:")]
    path.write_text("from lib._checks import anything\n", "utf-8")
    assert broken(tmp_path) == []
