"""What the parser takes for an equation, its place and its premises."""

import textwrap

import pytest

from tools.ledger.equations import digest, read_book


@pytest.fixture
def read(tmp_path):
    """Return a function that reads pages as a book."""

    def reader(*pages):
        (tmp_path / "book").mkdir()
        entries = "".join(f"  - file: book/p{i}\n" for i in range(1, len(pages)))
        (tmp_path / "_toc.yml").write_text(f"root: book/p0\nchapters:\n{entries}", "utf-8")
        for i, text in enumerate(pages):
            (tmp_path / f"book/p{i}.md").write_text(textwrap.dedent(text).lstrip("\n"), "utf-8")
        return read_book(tmp_path)

    return reader


def test_place_and_formula_of_each_way_to_write_one(read):
    book = read(
        r"""
        ---
        jupytext: {text_representation: {format_name: myst}}
        ---

        # Title

        $$
        a =
          b
        $$ (eq:x-dollars)

        ```{math}
        :label: eq:x-directive

        c
        ```

        - In a list:

          $$ d $$ (eq:x-list)

        ::::{note} With a title
        :class: tip

        :::{math}
        :label: eq:x-nested
        e
        :::
        ::::

        $$ unnumbered $$

        ```{code-cell} python
        "$$ f $$ (eq:x-code)"
        ```
        """
    )
    found = {e.label: (e.latex.strip(), e.line) for e in book.equations.values()}
    assert found == {
        "eq:x-dollars": ("a =\n  b", 7),
        "eq:x-directive": ("c", 12),
        "eq:x-list": ("d", 20),
        "eq:x-nested": ("e", 25),
    }
    assert {e.file for e in book.equations.values()} == {"book/p0.md"}
    assert book.titles == {"book/p0.md": "Title"}
    assert book.problems == []


def premises(book):
    return {label: set(e.premises) for label, e in book.equations.items()}


def test_premises_are_the_references_before_an_equation(read):
    book = read(
        """
        # One

        $$ a $$ (eq:x-a)

        From {eq}`eq:x-a` and [this](#eq:y-a), not `{eq}`eq:x-code``, follows {eq}`eq:x-b`:

        $$ b $$ (eq:x-b)

        Nothing before the next one, only {eq}`named <eq:x-a>` before a heading.

        ## Two

        $$ c $$ (eq:x-c)

        - {eq}`eq:x-b` in a list

        $$ unnumbered $$

        $$ d $$ (eq:x-d)
        """,
        "$$ y $$ (eq:y-a)\n",
    )
    assert premises(book) == {
        "eq:x-a": set(),
        "eq:x-b": {"eq:x-a", "eq:y-a"},
        "eq:x-c": set(),
        "eq:x-d": {"eq:x-b"},
        "eq:y-a": set(),
    }


def test_a_proof_directly_after_belongs_to_the_equation_it_proves(read):
    book = read(
        """
        $$ a $$ (eq:x-a)

        $$ b $$ (eq:x-b)

        **Proof.** By {eq}`eq:x-a`, not by {eq}`eq:x-b`.

        $$ c $$ (eq:x-c)

        Some words.

        **Proof.** Too late for (c), so it leads to the next: {eq}`eq:x-b`.

        $$ d $$ (eq:x-d)

        ```{prf:proof}
        By {eq}`eq:x-a`.

        And by {eq}`eq:x-b`.
        ```
        """
    )
    assert premises(book) == {
        "eq:x-a": set(),
        "eq:x-b": {"eq:x-a"},
        "eq:x-c": set(),
        "eq:x-d": {"eq:x-a", "eq:x-b"},
    }


def test_problems_name_file_line_and_label(read):
    book = read(
        """
        Text without a blank line
        $$
        a
        $$ (eq:x-swallowed)

        $$ b $$ (eq:Bad_Label)

        $$ c $$ (eq:x-c)
        """,
        "$$ c $$ (eq:x-c)\n",
    )
    assert [str(problem) for problem in book.problems] == [
        "book/p0.md:1: eq:x-swallowed: stands inside a paragraph and gets no number; "
        "put a blank line before $$",
        "book/p0.md:6: eq:Bad_Label: labels are written eq:topic-fact, in lower case with hyphens",
        "book/p1.md:1: eq:x-c: this label is already taken at book/p0.md:8",
    ]


def test_only_pages_of_the_table_of_contents_count(read, tmp_path):
    book = read("$$ a $$ (eq:x-a)\n")
    (tmp_path / "book/draft.md").write_text("$$ b $$ (eq:x-b)\n", "utf-8")
    assert list(book.equations) == list(read_book(tmp_path).equations) == ["eq:x-a"]


def test_without_a_table_of_contents(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"_toc\.yml: the table of contents names the pages"
    ):
        read_book(tmp_path)


def test_digest_sees_symbols_not_line_breaks():
    assert digest("a +\n  b") == digest(" a + b\n")
    assert digest("a + b") != digest("a - b")
    assert digest(r"\alpha x") != digest(r"\alphax")
