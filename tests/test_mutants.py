"""The list of mutants fits the code it breaks, and the tool tells caught from survived."""

import re

import pytest

from tools import mutants


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=str)
def test_every_mutant_still_has_its_place(mutant, tmp_path):
    original = (mutants.ROOT / mutant.file).read_text("utf-8")
    copy = tmp_path / mutant.file
    copy.parent.mkdir(parents=True)
    copy.write_text(original, "utf-8")
    assert mutants.mutate(mutant, tmp_path) == original
    assert copy.read_text("utf-8") != original
    compile(copy.read_text("utf-8"), mutant.file, "exec")
    assert all((mutants.ROOT / test).exists() for test in mutant.tests)


def test_a_mutant_without_its_place_is_an_error(tmp_path):
    (tmp_path / "lib.py").write_text("a = 1\na = 1\n", "utf-8")
    for old, times in (("a = 1", 2), ("b = 1", 0)):
        message = re.escape(f"lib.py: expected one {old!r}, found {times}")
        with pytest.raises(ValueError, match=message):
            mutants.mutate(mutants.Mutant("lib.py", old, "c", ()), tmp_path)


def test_caught_and_survived(tmp_path, monkeypatch, capsys):
    """In a project of one function, whose test sees one of two slips."""
    for name in ("lib", "references", "tests", "tools", "book/data", "book/runs"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "lib" / "one.py").write_text("def one():\n    return 1  # or 2\n", "utf-8")
    (tmp_path / "tests" / "test_one.py").write_text(
        "from lib.one import one\n\n\ndef test_one():\n    assert one() == 1\n", "utf-8"
    )
    for name in ("conftest.py", "pyproject.toml"):
        (tmp_path / name).write_text("", "utf-8")
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    tests = ("tests/test_one.py",)
    slips = [
        mutants.Mutant("lib/one.py", "return 1", "return 2", tests),
        mutants.Mutant("lib/one.py", "or 2", "or 3", tests),
    ]
    assert mutants.main(slips) == 1
    output = capsys.readouterr().out
    assert "caught    lib/one.py: return 1  ->  return 2" in output
    assert "by FAILED tests/test_one.py::test_one" in output
    assert "SURVIVED  lib/one.py: or 2  ->  or 3" in output
    assert "1 of 2 mutants caught" in output
    (tmp_path / "tests" / "test_one.py").write_text("def test_one():\n    assert 0\n", "utf-8")
    with pytest.raises(RuntimeError, match="the tests fail before anything is broken"):
        mutants.main(slips)
