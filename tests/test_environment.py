"""What is installed, by whom: the lists of packages, the workflows and the README agree."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def requirements(name: str) -> list[Requirement]:
    """Read a file of requirements: no comments, options or hashes."""
    lines = (line.split("  #")[0].split(" \\")[0].strip() for line in text(name).splitlines())
    return [Requirement(line) for line in lines if line and line[0] not in "#-"]


def names(wanted: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in wanted}


PROJECT = tomllib.loads(text("pyproject.toml"))["project"]
ASKED, LOCKED = names(requirements("requirements.in")), names(requirements("requirements.txt"))
(TORCH,) = requirements("requirements-torch.txt")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


class TestLock:
    def test_it_covers_what_was_asked_for(self):
        assert ASKED <= LOCKED
        assert text("requirements.in").count("\n-r requirements-torch.txt\n") == 1

    def test_each_line_is_one_version_with_the_hashes_of_its_files(self):
        entries = re.split(r"\n(?! )", text("requirements.txt").rstrip("\n"))
        for entry in entries:
            first, *hashes = entry.split(" \\\n    ")
            (pin,) = Requirement(first).specifier
            assert pin.operator == "==", entry
            assert "+" not in pin.version, entry
            assert hashes, entry
            assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), entry

    def test_it_is_for_every_platform(self):
        """IPython needs another package on Windows, ipykernel one on macOS."""
        markers = {r.name: str(r.marker) for r in requirements("requirements.txt") if r.marker}
        assert markers["colorama"] == 'sys_platform == "win32"'
        assert markers["appnope"] == 'sys_platform == "darwin"'

    def test_no_build_of_pytorch_is_in_it_but_what_all_builds_need_is(self):
        (pin,) = TORCH.specifier
        assert (TORCH.name, pin.operator, "+" in pin.version) == ("torch", "==", False)
        of_a_build = re.compile(r"(torch|triton|(cuda|nvidia)-.*)")
        assert not [name for name in LOCKED if of_a_build.fullmatch(name)]
        needed = [Requirement(line) for line in metadata.requires("torch")]
        common = names([r for r in needed if "extra ==" not in str(r.marker)])
        assert {name for name in common if not of_a_build.fullmatch(name)} <= LOCKED

    def test_make_installs_it_by_hash_and_pytorch_after_it(self):
        make = ["make", "--dry-run", "--always-make", "TORCH_FLAGS=--flag", ".venv/.ready"]
        done = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True)
        installs = re.findall(r"-m pip install --quiet (.*)", done.stdout)
        assert installs[:2] == [
            "--no-deps --require-hashes -r requirements.txt",
            "--flag -r requirements-torch.txt",
        ]


def test_every_package_that_is_imported_is_asked_for():
    """By its own name, not as another's dependency: in the library, tests, tools and pages."""
    packages = ("lib", "tests", "tools", "benchmarks", "experiments", "references", "book/_ext")
    sources = {p: p.read_text("utf-8") for name in packages for p in (ROOT / name).rglob("*.py")}
    for page in (ROOT / "book").rglob("*.md"):
        cells = re.findall(
            r"```{code-cell}[^\n]*\n(?:---\n.*?---\n|(?::.*\n)+)?(.*?)```",
            page.read_text("utf-8"),
            flags=re.S,
        )
        sources[page] = "\n".join(cells)
    imported: dict[str, Path] = {}
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0]: path for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported[node.module.partition(".")[0]] = path
    folders = (ROOT, ROOT / "book/_ext")
    ours = {path.stem for folder in folders for path in folder.glob("*.py")}
    ours |= {"lib", "tests", "tools", "benchmarks", "experiments", "references", "torch"}
    found = metadata.packages_distributions()
    for name, path in imported.items():
        if name not in ours and name not in sys.stdlib_module_names:
            distributions = {canonicalize_name(one) for one in found[name]}
            assert distributions & ASKED, f"{path}: {name}"


def test_the_extras_are_asked_for():
    extras = PROJECT["optional-dependencies"]
    wanted = [Requirement(line) for lines in extras.values() for line in lines]
    assert names(wanted) - {PROJECT["name"]} <= ASKED


def test_the_conda_environment_holds_what_make_needs():
    environment = yaml.safe_load(text("environment.yml"))
    floor = PROJECT["requires-python"].removeprefix(">=")
    assert set(environment["dependencies"]) == {f"python={floor}", "git", "make"}
    assert re.search(r"Python 3\.11 or newer, git and make; nothing else", text("README.md"))


def make_test(*settings):
    """Return what make would run, one command a line."""
    make = ["make", "--dry-run", "--old-file=.venv/.ready", "test", *settings]
    # Without the settings of a make that runs these tests.
    space = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    return subprocess.run(make, cwd=ROOT, env=space, capture_output=True, text=True, check=False)


class TestOneChapter:
    @pytest.mark.parametrize("path", sorted((ROOT / "book").glob("[0-9]*_*")), ids=lambda p: p.name)
    def test_what_has_its_name_in_each_wing_runs(self, path):
        number, _, name = path.name.partition("_")
        (command,) = make_test(f"CHAPTER={number}").stdout.splitlines()
        run = {word for word in command.split() if "/" in word} - {".venv/bin/python"}
        rooms = {f"book/{path.name}", f"lib/{name}", f"tests/equations/test_{name}.py"}
        assert rooms | {f"tests/test_{name}.py"} <= run
        assert all((ROOT / room).exists() for room in run)
        assert all(name in room for room in run)

    def test_without_a_chapter_all_run_and_the_ledger_is_checked(self):
        tests, ledger = make_test().stdout.splitlines()
        assert "/test_" not in tests
        assert ledger.endswith("tools.ledger check")

    def test_a_chapter_that_is_not_there_is_refused(self):
        done = make_test("CHAPTER=2")
        assert "CHAPTER must be a number as in book/02_zlpr, got 2" in done.stderr


class TestVersionsOfPyTorch:
    def test_the_oldest_is_the_one_that_its_job_installs(self):
        (floor,) = PROJECT["dependencies"]
        workflow = text(".github/workflows/book.yml")
        assert re.findall(r"\btorch==([0-9.]+)", workflow) == [floor.removeprefix("torch>=") + ".0"]

    def test_the_readme_names_those_that_were_run(self):
        (pin,) = TORCH.specifier
        assert f"PyTorch {pin.version}" in text("README.md")
        (floor,) = PROJECT["dependencies"]
        assert f"PyTorch alone, {floor.removeprefix('torch>=')} or newer" in text("README.md")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned_by_commit(path):
    used = re.findall(r"uses: (.*)", path.read_text("utf-8"))
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}  # v[0-9.]+", action)
