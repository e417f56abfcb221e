"""The records of runs say which code they measured, and the pages say when it has changed since."""

import json
import re
from pathlib import Path

import pytest

from lib.records import changed, code_version, source_digest, write_record

ROOT = Path(__file__).resolve().parents[1]
RUNS = {path.name: path for path in sorted((ROOT / "book/runs").glob("*.json"))}
# Records made before they held digests. A record made anew leaves the list; none may come in.
WITHOUT = set(json.loads((ROOT / "tests/records_without_digests.json").read_text("utf-8")))
CODE = {name: json.loads(path.read_text("utf-8"))["code"] for name, path in RUNS.items()}


def test_the_list_of_records_without_digests_only_shrinks():
    assert {name for name, code in CODE.items() if "measures" not in code} == WITHOUT
    assert len(WITHOUT) <= 48


@pytest.mark.parametrize("name", RUNS)
def test_a_record_names_its_commit_or_the_one_that_stored_it(name):
    code = CODE[name]
    known = code["commit"] or code["recorded_in"]
    assert re.fullmatch("[0-9a-f]{40}", known)


def unspoken(codes, pages, root):
    """Records whose code has changed without a page that says so."""
    said = {name for page in pages for name in re.findall(r"{record-age} ([\w-]+)", page)}
    return [
        name
        for name, code in codes.items()
        if changed(code.get("measures", {}), root) and name.removesuffix(".json") not in said
    ]


def test_records_are_as_old_as_their_code_or_the_page_says_so():
    pages = [path.read_text("utf-8") for path in (ROOT / "book").rglob("*.md")]
    assert unspoken(CODE, pages, ROOT) == []


def test_a_touched_file_makes_a_record_stale(tmp_path):
    (tmp_path / "one.py").write_text("def one():\n    return 1\n", "utf-8")
    digest = source_digest("def one():\n    return 1\n")
    codes = {"run.json": {"measures": {"one.py": digest}}}
    assert unspoken(codes, [], tmp_path) == []
    (tmp_path / "one.py").write_text('def one():\n    """Words."""\n    return 1  # too\n', "utf-8")
    assert unspoken(codes, [], tmp_path) == []
    (tmp_path / "one.py").write_text("def one():\n    return 2\n", "utf-8")
    assert unspoken(codes, ["```{record-age} other\n```"], tmp_path) == ["run.json"]
    assert unspoken(codes, ["```{record-age} run\n```"], tmp_path) == []
    (tmp_path / "one.py").unlink()
    assert changed(codes["run.json"]["measures"], tmp_path) == ["one.py"]


def test_the_writer_adds_the_code(tmp_path):
    path = tmp_path / "record.json"
    record = {"command": "c", "what": "w", "hardware": {}, "versions": {}}
    write_record(path, record)
    written = json.loads(path.read_text("utf-8"))
    assert list(written) == ["command", "code", "what", "hardware", "versions"]
    assert "lib/records.py" in written["code"]["measures"]
    assert changed(written["code"]["measures"]) == []
    # What is read to go on with a run has old digests; the new ones take their place.
    write_record(path, written | {"code": {"measures": {"lib/gone.py": "0"}}})
    assert json.loads(path.read_text("utf-8"))["code"] == code_version()
    with pytest.raises(ValueError, match="got no 'versions'"):
        write_record(path, {"command": "c", "hardware": {}})


def test_the_page_says_how_old_a_record_is(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "book/_ext"))
    from records_ext import age

    commit = {"commit": "a" * 40, "modified": False}
    digest = source_digest((ROOT / "lib/records.py").read_text("utf-8"))
    fresh = age({"code": commit | {"measures": {"lib/records.py": digest}}})
    assert fresh == "Measured at commit aaaaaaaaaa; the measured code has not changed since."
    stale = age({"code": commit | {"measures": {"lib/records.py": "0" * 16}}})
    assert stale.endswith("; the measured code has changed since, in lib/records.py.")
    unknown = age({"code": {"commit": None, "modified": None, "recorded_in": "b" * 40}})
    assert "was not noted" in unknown
    assert "bbbbbbbbbb" in unknown
    assert unknown.endswith("cannot be told.")
