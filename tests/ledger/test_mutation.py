"""Wrong forms made by machine: what is made, what is caught, what a digest depends on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tools.ledger import mutation, outcomes, plugin
from tools.ledger.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
NAME = "tests/equations/test_one.py::test_weak"
FORMS = {
    "clamp": lambda x, y: max(x - y, 0.0),
    "square": lambda x, y: (x - y) ** 2,
    "total": lambda x, y: sum(v for v in (x, y) if v > 0),
    "plain": lambda x, y: x,
}


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("clamp", {"max(x - y, 0.0) → x - y", "max(x - y, 0.0) → min(x - y, 0.0)"}),
        ("square", {"(x - y) ** 2 → x - y", "x - y → x + y", "2 → 3", "y → x"}),
        ("total", {"v > 0 → v >= 0"}),
        ("plain", {"x → y"}),
    ],
)
def test_what_is_made(name, made):
    assert made <= set(mutation.mutants(FORMS[name], "eq:any"))


def test_a_form_does_what_its_name_says_and_the_right_one_is_left_alone():
    made = mutation.mutants(FORMS["clamp"], "eq:any")
    assert made["max(x - y, 0.0) → x - y"](1.0, 3.0) == -2.0
    assert FORMS["clamp"](1.0, 3.0) == 0.0
    total = mutation.mutants(FORMS["total"], "eq:any")
    assert any("_mean" in name and form(1.0, 2.0) == 1.5 for name, form in total.items())


def test_numbers_and_tuples_are_changed_one_at_a_time():
    made = mutation.mutants((1.0, 0.5), "eq:any")
    assert all(
        sum(a != b for a, b in zip(form, (1.0, 0.5), strict=True)) == 1 for form in made.values()
    )
    assert len(made) == 5  # twice 1.0 is 1.0 + 1: one form of six comes twice


def test_what_never_ends_is_ended_each_time_it_is_tried():
    def forever():
        while True:
            pass

    with plugin._bounded(0.1):
        for _ in range(2):
            with pytest.raises(TimeoutError):
                forever()


PAGE = "# One\n\n$$\na\n$$ (eq:double)\n"
TEST = """
import pytest

@pytest.mark.equation("eq:double", kind="identity", source="ours", right=lambda x: max(x, 1.0) * 2,
                      wrong={"thrice": lambda x: 3 * x})
def test_weak(form, check):
    check.equal(form(2.0), 4.0)
"""


def project(folder):
    """Write a book of one equation, with a test that sees one input only."""
    (folder / "_toc.yml").write_text("format: jb-book\nroot: book/one\n", "utf-8")
    tests = folder / "tests" / "equations"
    tests.mkdir(parents=True)
    (folder / "book").mkdir()
    (folder / "book" / "one.md").write_text(PAGE, "utf-8")
    for package in (tests.parent, tests):
        (package / "__init__.py").touch()
    (tests / "test_one.py").write_text(TEST, "utf-8")
    return tests / "test_one.py"


def command(folder, *arguments):
    """Run the command as a person would, in a process of its own."""
    space = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    call = [sys.executable, "-m", "tools.ledger", "mutants", *arguments]
    done = subprocess.run(call, cwd=folder, env=space, check=False, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_what_passes_is_written_and_needs_a_reason(tmp_path):
    test = project(tmp_path)
    code, said = command(tmp_path, "--rootdir", str(tmp_path))
    assert code == 1
    assert f"{NAME}: eq:double: “1.0 → 2.0” passes, and no reason is given" in said
    forms, reason = {"max(x, 1.0) → x", "1.0 → 2.0"}, "equal at 2, the only input"
    (found,) = outcomes.load(tmp_path).values()
    assert found["label"] == "eq:double"
    assert found["caught"] == 6
    assert found["survivors"] == dict.fromkeys(forms, "")
    outcomes.save(tmp_path, {NAME: found | {"survivors": dict.fromkeys(forms, reason)}})
    assert command(tmp_path, "--check") == (
        0,
        "8 wrong forms made by machine, 2 pass with a reason\n",
    )
    # A changed test makes its outcome old; a run keeps the reasons of what passes again.
    test.write_text(TEST.replace("form(2.0), 4.0", "2 * form(2.0), 8.0"), "utf-8")
    code, said = command(tmp_path, "--check")
    assert code == 1
    assert f"{NAME}: its wrong forms have not run since it changed" in said
    assert command(tmp_path, "--rootdir", str(tmp_path))[0] == 0
    assert outcomes.load(tmp_path)[NAME]["survivors"] == dict.fromkeys(forms, reason)


def test_a_test_without_an_outcome_is_a_problem(tmp_path):
    project(tmp_path)
    assert command(tmp_path, "--check") == (
        1,
        f"{NAME}: its wrong forms have not run since it changed\n"
        "0 wrong forms made by machine, 0 pass with a reason\n1 problems\n",
    )


def test_a_form_of_which_none_can_be_made_is_seen_to_have_been_tried(tmp_path):
    test = project(tmp_path)
    test.write_text(TEST.replace("lambda x: max(x, 1.0) * 2", "(2.0).__mul__"), "utf-8")
    assert command(tmp_path, "--rootdir", str(tmp_path))[0] == 0
    (found,) = outcomes.load(tmp_path).values()
    assert (found["caught"], found["survivors"]) == (0, {})
    assert command(tmp_path, "--check")[0] == 0


def test_an_outcome_without_its_test_is_a_problem(tmp_path):
    project(tmp_path).write_text("", "utf-8")
    outcomes.save(tmp_path, {NAME: {"label": "eq:double", "caught": 1, "survivors": {}}})
    done = CliRunner().invoke(main, ["--root", str(tmp_path), "mutants", "--check"])
    assert done.exit_code == 1
    assert f"{NAME}: no test of an equation any more" in done.output


def test_a_digest_follows_what_a_test_uses_and_nothing_else(tmp_path):
    folder = tmp_path / "tests"
    folder.mkdir()

    def digest(text):
        (folder / "test_one.py").write_text(text, "utf-8")
        return outcomes.Digests(tmp_path).of("tests/test_one.py::test_weak")

    helper = TEST.replace("4.0", "TWICE * 2") + "ONE = 1\nTWICE = 2 * ONE\n"
    first = digest(helper)
    assert digest(helper + "# a comment\n\ndef test_other():\n    assert False\n") == first
    assert digest(helper + "import math\nUNUSED = 3\n") == first
    assert digest(helper.replace("form(2.0)", "form(3.0)")) != first
    assert digest(helper.replace("ONE = 1", "ONE = 2")) != first  # what its helper uses, too
    assert digest(helper + "mp.dps = 50\n") != first  # names nothing, so it may change anything
