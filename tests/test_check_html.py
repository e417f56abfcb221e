"""The check of the built pages sees what was left as text."""

import pytest

from tools.check_html import problems

ROWS = "| heads | ratio |\n|--:|---|\n| 2 | 1.99 |"


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        (f"<p>{ROWS}</p>", ["page.html: table left as text: | heads | ratio |"]),
        (f"<pre>{ROWS}</pre>", []),
        ("<p>a | b -- c | d</p>", []),
    ],
)
def test_a_table_left_as_text_is_named(tmp_path, inside, said):
    (tmp_path / "page.html").write_text(f"<article>{inside}</article>", "utf-8")
    assert [line.split("\n")[0] for line in problems(tmp_path)] == said


def test_the_folder_of_the_build_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "page.html").write_text(f"<article>root = {tmp_path}</article>", "utf-8")
    assert problems(tmp_path) == [f"page.html: shows the folder it was built in, {tmp_path}"]
