"""A tiny book with two checked equations, copied for each test that wants to break it."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from sphinx.cmd.build import main as sphinx_build

from tools.ledger.__main__ import main
from tools.ledger.records import Ledger, read_ledger

ROOT = Path(__file__).resolve().parents[2]

FILES = {
    "_toc.yml": """\
format: jb-book
root: book/intro
chapters:
  - file: book/01_toy
  - file: book/ledger
  - file: book/differences
  - file: book/api
""",
    "conf.py": f"""\
import sys
sys.path.insert(0, {str(ROOT / "book" / "_ext")!r})
extensions = ["myst_parser", "ledger_ext"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
root_doc = "book/intro"
exclude_patterns = ["tests", "lib", "_build"]
numfig = math_numfig = True
html_theme = "basic"
""",
    "book/intro.md": """\
# A tiny book

{ledger-count}`verified` of {ledger-count}`equations`.

```{ledger-counts}
```

```{toctree}
01_toy
ledger
differences
api
```
""",
    "book/01_toy.md": r"""# Toys

The log of a sum of exponentials:

$$
f(x) = \log \sum_i e^{x_i}
$$ (eq:toy-lse)

By {eq}`eq:toy-lse`, a constant comes out:

$$
f(x + c) = f(x) + c
$$ (eq:toy-shift)

Nothing more.
""",
    "book/ledger.md": "# Ledger\n\n```{ledger-table}\n```\n\n```{ledger-graphs}\n```\n",
    "book/differences.md": "# Differences\n\n```{ledger-differences}\n```\n",
    "book/api.md": """\
# Library

```{ledger-code} lib.toy
```

```{eval-rst}
.. py:function:: lib.toy.lse(scores)
```
""",
    "lib/__init__.py": "",
    "lib/toy.py": '''\
"""Toys."""
import math


def lse(scores):
    """Return the log of a sum of exponentials.

    Equations: :eq:`eq:toy-lse`
    """
    return math.log(sum(math.exp(score) for score in scores))
''',
    "tests/test_toy.py": """\
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.toy import lse

scores = st.lists(st.floats(-9, 9), min_size=1, max_size=5)


@pytest.mark.equation(
    "eq:toy-lse", kind="definition", source="ours",
    right=lse, wrong={"the log is dropped": lambda xs: sum(map(math.exp, xs))},
)
@given(scores)
def test_lse(form, check, xs):
    check.equal(form(xs), math.log(sum(map(math.exp, xs))))


@pytest.mark.differs(
    "constant", source="A paper", theirs="$f$ does not change", ours="$f$ changes by $c$"
)
@pytest.mark.equation(
    "eq:toy-shift", kind="identity", source="ours", hypotheses="any finite c",
    right=lambda c: c, wrong={"c is dropped": lambda c: 0.0},
)
@given(scores, st.floats(-9, 9))
def test_shift(form, check, xs, c):
    check.equal(lse([x + c for x in xs]), lse(xs) + form(c))
""",
}


@dataclass
class Project:
    """The tiny book in a folder of its own."""

    root: Path

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace text that must be there."""
        path = self.root / file
        text = path.read_text("utf-8")
        assert old in text, f"{old!r} is not in {file}"
        path.write_text(text.replace(old, new), "utf-8")

    def line(self, file: str, text: str) -> int:
        """Return the number of the line that starts with ``text``."""
        lines = (self.root / file).read_text("utf-8").splitlines()
        return next(number for number, line in enumerate(lines, 1) if line.startswith(text))

    def pytest(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run the tests of the tiny book in a process of their own."""
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tools.ledger.plugin"]
        paths = os.pathsep.join([str(self.root), str(ROOT)])
        return subprocess.run(
            [*command, "-p", "no:cacheprovider", *arguments],
            cwd=self.root,
            # Without the plugins that it has no use for, a process starts twice as fast.
            env=os.environ | {"PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    def ledger(self) -> Ledger:
        """Read its ledger."""
        return read_ledger(self.root)

    def problems(self) -> list[str]:
        """Return what ``python -m tools.ledger check`` says, line by line."""
        return self.command("check").splitlines()

    def command(self, *arguments: str, input: str | None = None) -> str:
        """Run a command of the ledger; return what it prints."""
        return CliRunner().invoke(main, ["--root", str(self.root), *arguments], input=input).output

    def build(self, *arguments: str) -> tuple[int, str]:
        """Build the book as the real one is built; return the exit status and the messages."""
        messages = io.StringIO()
        target = self.root / "_build" / "html"
        with contextlib.redirect_stderr(messages), contextlib.redirect_stdout(io.StringIO()):
            status = sphinx_build(
                ["-n", "-W", "--keep-going", "-q", *arguments, str(self.root), str(target)]
            )
        return status, re.sub(r"\x1b\[[0-9;]*m", "", messages.getvalue())

    def page(self, name: str) -> str:
        """Return a built page."""
        return (self.root / "_build" / "html" / name).read_text("utf-8")


@pytest.fixture(scope="session")
def sound(tmp_path_factory):
    """Return a book in which all is well: checked, reviewed, locked."""
    project = Project(tmp_path_factory.mktemp("sound"))
    for name, text in FILES.items():
        path = project.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    (project.root / "pytest.ini").write_text("[pytest]\n", "utf-8")
    run = project.pytest()
    assert run.returncode == 0, run.stdout
    shown = project.command("review")
    project.command("review", *(f"--confirm={c}" for c in re.findall(r"--confirm (\S+)", shown)))
    return project


@pytest.fixture
def project(sound, tmp_path):
    """Return a copy of the sound book, to be broken."""
    shutil.copytree(sound.root, tmp_path / "book of toys", dirs_exist_ok=True)
    return Project(tmp_path / "book of toys")
