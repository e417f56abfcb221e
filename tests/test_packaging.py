"""The wheel is light and typed: built, installed beside PyTorch alone, imported, used, checked."""

import ast
import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from email.message import Message
from email.parser import Parser
from importlib import metadata
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lib
from lib._extras import lazily, needs
from lib.gplinker import GPLinker
from lib.records import code_version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = {
    extra: {canonicalize_name(Requirement(line).name) for line in lines}
    for extra, lines in PROJECT["optional-dependencies"].items()
}
CHAPTERS = ("softmax", "zlpr", "soft_zlpr", "global_pointer", "divergence", "exact", "emo")


def run(*command: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "PIP_NO_INDEX": "1"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 or not check, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel of the files that git would commit; the build writes beside its source."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "lib", source / "lib", ignore=shutil.ignore_patterns("__pycache__"))
    flags = ["--quiet", "--no-deps", "--no-build-isolation"]
    run(sys.executable, "-m", "pip", "wheel", *flags, "--wheel-dir", built, source, cwd=built)
    (path,) = built.glob("*.whl")
    return path


def metadata_of(wheel: Path) -> Message:
    with ZipFile(wheel) as files:
        (name,) = (n for n in files.namelist() if n.endswith(".dist-info/METADATA"))
        return Parser().parsestr(files.read(name).decode())


def torch_and_its_own() -> set[str]:
    """Return PyTorch and what it depends on, whichever build is here."""
    names, waiting = set(), ["torch"]
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in names:
            names.add(name)
            needed = map(Requirement, metadata.requires(name) or [])
            waiting += [r.name for r in needed if not r.marker or r.marker.evaluate({"extra": ""})]
    return names


@pytest.fixture(scope="session")
def python(wheel, tmp_path_factory) -> Path:
    """Return the interpreter of a new environment: PyTorch, by links, and the wheel beside it."""
    folder = tmp_path_factory.mktemp("fresh")
    venv.create(folder, with_pip=False)
    place = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", "venv", place))
    for name in torch_and_its_own():
        distribution = metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or () if ".." not in file.parts}:
            link = packages / top
            if top != "__pycache__" and not link.exists():
                link.symlink_to(distribution.locate_file(top))
    interpreter = Path(sysconfig.get_path("scripts", "venv", place)) / "python"
    pip = [sys.executable, "-m", "pip", "--python", interpreter]
    run(*pip, "install", "--quiet", "--no-deps", wheel, cwd=folder)
    run(*pip, "check", cwd=folder)  # PyTorch is all that the wheel asks for
    return interpreter


@pytest.fixture(scope="session")
def report(python, tmp_path_factory) -> dict[str, dict[str, str]]:
    """Return what ``tests/torch_alone.py`` prints in the new environment."""
    done = run(python, ROOT / "tests/torch_alone.py", cwd=tmp_path_factory.mktemp("elsewhere"))
    return json.loads(done.stdout)


class TestWheel:
    def test_it_says_what_it_is(self, wheel):
        about = metadata_of(wheel)
        assert about["Version"] == lib.__version__
        assert about["Author"] == "The From Softmax to GPLinker authors"
        assert about["Keywords"]
        assert {"Typing :: Typed"} <= set(about.get_all("Classifier"))
        known = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
        assert known["version"] == lib.__version__

    def test_it_needs_torch_alone(self, wheel):
        about = metadata_of(wheel)
        needed = [Requirement(line) for line in about.get_all("Requires-Dist")]
        assert [r.name for r in needed if not r.marker] == ["torch"]
        assert set(about.get_all("Provides-Extra")) == {"extraction", "transport", "book", "all"}
        every = {(r.name, *sorted(r.extras)) for r in needed if r.marker and "all" in str(r.marker)}
        assert every == {("softmax-to-gplinker", "book", "extraction", "transport")}

    def test_it_holds_the_packages_and_the_mark_of_types(self, wheel):
        with ZipFile(wheel) as files:
            inside = {n for n in files.namelist() if ".dist-info/" not in n}
        ours = (p for p in (ROOT / "lib").rglob("*") if p.suffix == ".py" or p.name == "py.typed")
        assert inside == {path.relative_to(ROOT).as_posix() for path in ours}
        assert "lib/py.typed" in inside


class TestBesideTorchAlone:
    def test_every_function_of_the_losses_is_used(self, report):
        offered = {
            full: home
            for full, home in report["public"].items()
            if not full.startswith("lib.extraction.")
        }
        assert {full.split(".")[1] for full in offered} == {
            *CHAPTERS,
            "casrel",
            "check",
            "gplinker",
        }
        assert {full for full, home in offered.items() if home not in report["used"]} == set()

    def test_what_lacks_a_package_names_its_extra(self, report):
        by_extra = {}
        for name, extra in report["refused"].items():
            by_extra.setdefault(extra, set()).add(name)
        assert by_extra["transport"] == {"lib.emo.soft_emo_loss"}
        assert by_extra["book"] == {"lib.figures"}
        assert by_extra["extraction"] >= {
            "lib.casrel.CasRel",
            "lib.casrel.model",
            "lib.extraction.commands",
            "lib.extraction.encoders",
            "lib.extraction.model",
            "lib.extraction.training",
            "lib.gplinker.GPLinker",
            "lib.gplinker.model",
        }

    def test_a_command_ends_with_the_extra_that_it_needs(self, python, tmp_path):
        done = run(python, "-m", "lib.gplinker", "predict", cwd=tmp_path, check=False)
        last = done.stderr.splitlines()[-1]
        assert re.fullmatch(
            r'ImportError: .* pip install "softmax-to-gplinker\[extraction\]"', last
        )

    def test_an_import_costs_nothing_beyond_torch(self, python, tmp_path):
        """Nothing but modules of ours is loaded, in the time of a few files (6 ms here)."""
        code = """
import sys, time, torch
known, seconds = set(sys.modules), []
for _ in range(20):
    for name in [n for n in sys.modules if n.partition(".")[0] == "lib"]:
        del sys.modules[name]
    begin = time.perf_counter()
    import lib.zlpr
    seconds.append(time.perf_counter() - begin)
others = {n.partition(".")[0] for n in set(sys.modules) - known} - {"lib"}
print(sorted(others - set(sys.stdlib_module_names)), min(seconds))
"""
        others, seconds = run(python, "-c", code, cwd=tmp_path).stdout.rsplit(maxsplit=1)
        assert others == "[]"
        assert float(seconds) < 0.020


USERS_FILE = """
import torch
from torch import Tensor

import lib
from lib.casrel import CasRel, half_pointer_loss
from lib.emo import EMOLoss
from lib.gplinker import GPLinker
from lib.records import code_version
from lib.zlpr import zlpr_loss

version: str = lib.__version__
logits = torch.zeros(2, 3)
loss: Tensor = zlpr_loss(logits, torch.ones(2, 3))
models: list[type[CasRel] | type[GPLinker]] = [CasRel, GPLinker]
number: int = zlpr_loss(logits, torch.ones(2, 3))  # E: assignment
zlpr_loss(logits, torch.ones(2, 3), reduction="median")  # E: arg-type
CasRel.no_such_method()  # E: attr-defined
lib.no_such_name  # E: attr-defined
"""


def test_mypy_reads_the_types_of_the_wheel(python, tmp_path):
    """In a user's file, as strict as can be: what is right passes, each mistake is found."""
    (tmp_path / "user.py").write_text(USERS_FILE)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python]
    done = run(*mypy, "--cache-dir", tmp_path / "cache", "user.py", cwd=tmp_path, check=False)
    found = re.findall(r"^user\.py:(\d+): error: .*\[([a-z-]+)\]$", done.stdout, flags=re.M)
    expected = [
        (str(number), line.split("# E: ")[1])
        for number, line in enumerate(USERS_FILE.splitlines(), start=1)
        if "# E: " in line
    ]
    assert found == expected, done.stdout


# What imports and its distribution are not always of one name.
DISTRIBUTIONS = {"IPython": "ipython", "matplotlib_inline": "matplotlib-inline", "ot": "pot"}


def imports_of_others(path: Path):
    """Yield (package, extra) for each import of another's package; "types" where only read."""

    def visit(node, extra):
        if isinstance(node, ast.With):
            call = node.items[0].context_expr
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "needs":
                extra = call.args[0].value
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            extra = "types"
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        for name in names:
            top = name.partition(".")[0]
            if top not in {"lib", "torch", *sys.stdlib_module_names}:
                yield canonicalize_name(DISTRIBUTIONS.get(top, top)), extra
        for child in ast.iter_child_nodes(node):
            yield from visit(child, extra)

    yield from visit(ast.parse(path.read_text("utf-8")), None)


def test_extras_hold_what_lib_imports_under_their_names_and_nothing_else():
    used: dict[str, set[str]] = {extra: set() for extra in EXTRAS if extra != "all"}
    for path in (ROOT / "lib").rglob("*.py"):
        for package, extra in imports_of_others(path):
            if extra != "types":
                assert extra in used, f"{path}: {package} is imported under no extra"
                used[extra].add(package)
    used["transport"].add("numpy")  # Tensor.numpy imports it
    assert used == {extra: names for extra, names in EXTRAS.items() if extra != "all"}


class TestLackingPackages:
    def test_needs_leaves_other_errors_alone(self):
        with pytest.raises(ZeroDivisionError), needs("book"):
            _ = 1 / 0
        with pytest.raises(ImportError, match="cannot import name"), needs("book"):
            from lib.zlpr import no_such_loss  # noqa: F401

    def test_names_that_wait_are_listed_and_others_refused(self):
        import lib.casrel

        get, names = lazily("lib.casrel", {"CasRel": "model"})
        assert {"CasRel", "half_pointer_loss"} <= set(names())
        assert set(lib.casrel.__all__) <= set(dir(lib.casrel))
        with pytest.raises(AttributeError, match=r"'lib\.casrel' has no attribute 'Casrel'"):
            get("Casrel")


def test_a_model_is_saved_where_the_distribution_is_not_installed(monkeypatch, tmp_path):
    """From a copy of the folder ``lib``, say: its version stands in the code."""
    asked = metadata.version

    def version(name):
        if canonicalize_name(name) == "softmax-to-gplinker":
            raise metadata.PackageNotFoundError(name)
        return asked(name)

    monkeypatch.setattr(metadata, "version", version)
    model = GPLinker.create("small", ["wrote"], texts=["Ada wrote notes"] * 2, hidden_size=12)
    model.save(tmp_path / "model")
    saved = json.loads((tmp_path / "model/config.json").read_text("utf-8"))
    assert saved["library"] == code_version()["version"] == lib.__version__
