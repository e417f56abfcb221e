"""What the README, and the pages, tell a reader to type is true."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from sphinx.errors import ExtensionError

from lib.casrel.__main__ import main as casrel
from lib.gplinker.__main__ import main as gplinker
from tests.book_extensions import load

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize("page", ["README.md", "book/intro.md"])
def test_the_example_of_the_library_runs_and_prints_what_it_says(page):
    text = (ROOT / page).read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "[[True, False, False, True]]\n"), done.stderr


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.M))
    named = set(re.findall(r"^    make (?:\S+=\"[^\"]*\" )?([a-z-]+)", README, flags=re.M))
    assert named
    assert named <= targets


def test_no_address_is_promised_before_there_is_one():
    """The repository's address stands in ``_config.yml`` alone; all else follows."""
    files = ["README.md", "CITATION.cff", "CONTRIBUTING.md", "pyproject.toml", "_config.yml"]
    pages = [*map(ROOT.joinpath, files), *(ROOT / "book").rglob("*.md")]
    own = re.compile(r"https?://[\w.-]*(?:github\.(?:io|com)/)?[\w.-]*softmax-to-gplinker\S*")
    known = yaml.safe_load((ROOT / "_config.yml").read_text("utf-8"))["repository"]["url"]
    named = {address for page in pages for address in own.findall(page.read_text("utf-8"))}
    assert named <= {known}


@pytest.mark.parametrize(
    ("address", "buttons", "canonical"),
    [
        ("", False, None),
        ("https://github.com/owner/name", True, "https://owner.github.io/name/"),
    ],
)
def test_buttons_and_canonical_address_come_with_the_address(address, buttons, canonical):
    config = SimpleNamespace(html_theme_options={"repository_url": address}, html_baseurl=None)
    load("book_ext").promise_what_exists(None, config)
    options = config.html_theme_options
    assert [options["use_repository_button"], options["use_issues_button"]] == [buttons] * 2
    assert config.html_baseurl == canonical


def test_an_address_of_another_form_is_refused():
    config = SimpleNamespace(html_theme_options={"repository_url": "name"}, html_baseurl=None)
    with pytest.raises(ExtensionError, match=r"must be https://github.com/OWNER/NAME, got name"):
        load("book_ext").promise_what_exists(None, config)


def test_every_link_to_a_file_leads_somewhere():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_data_line_is_in_the_documented_format(tmp_path):
    from lib.extraction.corpora import read_jsonl

    (line,) = re.findall(r"^    (\{.*\})$", README, flags=re.M)
    path = tmp_path / "train.jsonl"
    path.write_text(line + "\n", "utf-8")
    (example,) = read_jsonl(path)
    (triple,) = example.triples
    assert example.text[triple.object.start : triple.object.end] == "the Notes"


def test_every_command_that_a_page_shows_is_one_that_the_program_takes():
    """Parsed, not run: an option of another command, or a required one that lacks, is an error."""
    programs = {"gplinker": gplinker, "casrel": casrel}
    shown = re.compile(r"^[ $]*\S*python -m lib\.(gplinker|casrel) (\w+) (.+)$", flags=re.M)
    pages = [ROOT / "README.md", *sorted((ROOT / "book").rglob("*.md"))]
    seen = set()
    for page in pages:
        for module, name, words in shown.findall(page.read_text("utf-8")):
            command = programs[module].commands[name]
            command.make_context(name, shlex.split(words))
            seen.add((page.relative_to(ROOT).as_posix(), name))
    chapters = ("book/08_casrel/index.md", "book/09_gplinker/index.md")
    for page in ("README.md", *chapters, "book/howto_own_data.md"):
        assert {(page, "train"), (page, "predict")} <= seen
