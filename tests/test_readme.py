"""What the README tells a reader to type is true."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_example_of_the_library_runs_and_prints_what_it_says():
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "[[True, False, False, True]]\n"), done.stderr


def test_every_make_target_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.M))
    named = set(re.findall(r"^    make (?:\S+=\"[^\"]*\" )?([a-z-]+)", README, flags=re.M))
    assert named
    assert named <= targets


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


def test_the_two_commands_take_the_options_they_are_given():
    for command in re.findall(r"-m (lib\.\w+ .*)", README):
        module, name, *words = command.split()
        done = subprocess.run(
            [sys.executable, "-m", module, name, "--help"], capture_output=True, text=True, cwd=ROOT
        )
        assert done.returncode == 0, done.stderr
        for option in (word for word in words if word.startswith("--")):
            assert option in done.stdout
