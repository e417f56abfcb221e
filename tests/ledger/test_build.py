"""From a broken source to the message that names file, line and equation."""

import json
import re
import shutil

import jsonschema
import pytest

from tools.ledger import outcomes

TEXT, TESTS = "book/01_toy.md", "tests/test_toy.py"
SHIFT = "f(x + c) = f(x) + c"
STALE_NOTEBOOK = """
def swap(app, name, source):
    source[0] = source[0].replace("e^{x_i}", "2^{x_i}").replace("(eq:toy-shift)", "")


def setup(app):
    app.connect("source-read", swap)
"""


def test_a_sound_book_builds(sound):
    assert sound.problems() == [
        "2 equations, 2 verified, 2 checks, 2 controls, 0 mutants, 0 survivors, "
        "1 functions, 1 differences"
    ]
    theme = [
        "extensions=myst_parser,ledger_ext,sphinx_book_theme",
        "html_theme=sphinx_book_theme",
        "html_theme_options.repository_url=https://github.com/a/b",
    ]
    status, messages = sound.build(*(f"-D{setting}" for setting in theme))
    assert (status, messages) == (0, "")

    chapter = sound.page("book/01_toy.html")
    assert chapter.count("✓ verified") == 2
    assert (
        f"https://github.com/a/b/blob/main/tests/test_toy.py#L{marker(sound, 'eq:toy-lse')}"
        in chapter
    )
    assert 'href="api.html#lib.toy.lse"' in chapter
    assert 'href="ledger.html#ledger-eq-toy-shift"' in chapter

    page = sound.page("book/ledger.html")
    assert 'id="ledger-eq-toy-shift"' in page
    assert "catches 1 wrong form</summary><ul><li>c is dropped" in page
    assert page.count("<svg") == 2
    assert 'href="01_toy.html#equation-eq-toy-lse"' in page
    assert 'href="../ledger.json"' in page

    differences = sound.page("book/differences.html")
    assert "A paper" in differences
    assert "It rejects: c is dropped" in differences
    assert "<p>2 of 2.</p>" in sound.page("book/intro.html")
    assert "2 of 2</strong> numbered equations" in sound.page("book/intro.html")
    assert "(definition, verified)" in sound.page("book/api.html")

    data = json.loads(sound.page("ledger.json"))
    jsonschema.validate(data, json.loads(sound.page("ledger.schema.json")))
    assert [record["status"] for record in data["equations"]] == ["verified", "verified"]
    assert data["equations"][1]["premises"] == ["eq:toy-lse"]


def test_forms_made_by_machine_are_counted_beside_those_by_hand(project):
    """By chapter and in total, with the reason of what passes, until the test changes."""
    file = "tests/equations/test_toy.py"
    (project.root / file).parent.mkdir()
    (project.root / TESTS).rename(project.root / file)
    assert project.pytest().returncode == 0
    test = f"{file}::test_shift"
    outcomes.save(
        project.root,
        {
            test: {
                "label": "eq:toy-shift",
                "digest": outcomes.Digests(project.root).of(test),
                "caught": 4,
                "survivors": {"c → c < d": "a reason"},
            }
        },
    )
    project.edit("book/ledger.md", "# Ledger\n", "# Ledger\n\n```{ledger-forms}\n```\n")
    assert project.build() == (0, "")
    page, front = project.page("book/ledger.html"), project.page("book/intro.html")
    for title in ("1. Toys", "All"):
        row = f'<th scope="row">{title}</th>' + "".join(f"<td>{n}</td>" for n in (2, 2, 2, 5, 1))
        assert row in page
    assert "catches 1 wrong form and 4 of 5 made by machine" in page
    assert "<li>passes: <code>c → c &lt; d</code>, a reason</li>" in page
    assert "4 of 5</strong> made by machine" in front
    jsonschema.validate(*(json.loads(project.page(f"ledger{s}.json")) for s in ("", ".schema")))

    project.edit(file, "lse(xs) + form(c)", "form(c) + lse(xs)")
    assert project.ledger().counts["mutants"] == 0


def marker(project, label):
    """Return the line of a label's marker."""
    return project.line(TESTS, f'    "{label}"') - 1


def broken_check(project):
    project.edit("lib/toy.py", "return math.log(", "return 1 + math.log(")
    assert project.pytest().returncode == 1
    return TEXT, "$$", "eq:toy-lse: FAIL: tests/test_toy.py::test_lse"


def missing_check(project):
    project.edit(TESTS, '@pytest.mark.equation(\n    "eq:toy-lse"', '@skip(\n    "eq:toy-lse"')
    return TEXT, "$$", "eq:toy-lse: unchecked: no test checks it"


def missing_control(project):
    project.edit(TESTS, 'right=lambda c: c, wrong={"c is dropped": lambda c: 0.0},', "right=str,")
    run = project.pytest()
    line = marker(project, "eq:toy-shift")
    assert run.returncode == 2
    assert re.search(rf"{TESTS}:\d+: eq:toy-shift: wrong=.* is missing", run.stdout)
    return TESTS, line, "eq:toy-shift: wrong={slip: form} is missing: no form that must fail"


def control_that_passes(project):
    project.edit(TESTS, "lambda c: 0.0", "lambda c: c + 0.0")
    run = project.pytest()
    assert run.returncode == 1
    message = "the wrong form “c is dropped” passed: the check does not tell it from the right one"
    assert re.search(rf"{TESTS}:\d+: eq:toy-shift: {message}", run.stdout)
    return (
        TEXT,
        project.line(TEXT, SHIFT) - 1,
        f"(tests/test_toy.py:{marker(project, 'eq:toy-shift')}): {message}",
    )


def control_that_breaks(project):
    project.edit(TESTS, "lambda c: 0.0", "lambda c: 1 / 0")
    assert project.pytest().returncode == 1
    message = "the wrong form “c is dropped” must fail an assertion; it raised ZeroDivisionError"
    return TEXT, project.line(TEXT, SHIFT) - 1, message


def changed_formula(project):
    project.edit(TEXT, SHIFT, "f(x + c) = f(x) - c")
    line = project.line(TEXT, "f(x + c)") - 1
    return TEXT, line, "eq:toy-shift: the formula differs from the one reviewed"


def removed_equation(project):
    text = (project.root / TEXT).read_text("utf-8").partition("By {eq}")[0]
    (project.root / TEXT).write_text(text, "utf-8")
    line = project.line("book/ledger.lock.json", ' "eq:toy-shift"')
    return "book/ledger.lock.json", line, "eq:toy-shift: reviewed, but no longer in the book"


def circle(project):
    project.edit(TEXT, "The log of a sum of exponentials:", "Compare {eq}`eq:toy-shift`:")
    message = "its derivation goes in a circle: eq:toy-lse → eq:toy-shift → eq:toy-lse"
    return TEXT, "$$", f"eq:toy-lse: {message}"


def unknown_label(project):
    project.edit(TESTS, '"eq:toy-shift"', '"eq:toy-shirt"')
    run = project.pytest("-k", "test_shift")
    assert run.returncode == 1
    assert re.search(rf"{TESTS}:\d+: eq:toy-shirt: no equation of the book has", run.stdout)
    return (
        TESTS,
        marker(project, "eq:toy-shirt"),
        "eq:toy-shirt: tests/test_toy.py::test_shift checks it, but",
    )


def duplicate_label(project):
    project.edit(TEXT, "Nothing more.", "$$\nf(0, 0) = \\log 2\n$$ (eq:toy-lse)\n")
    line = project.line(TEXT, "f(0, 0)") - 1
    return TEXT, line, "eq:toy-lse: this label is already taken at book/01_toy.md:5"


def changed_library(project):
    project.edit("lib/toy.py", "Toys.", "Other toys.")
    return TEXT, "$$", "eq:toy-lse: unchecked: tests/test_toy.py::test_lse"


def unknown_premise(project):
    project.edit(TEXT, "By {eq}`eq:toy-lse`", "By {eq}`eq:toy-none`")
    message = "eq:toy-shift: rests on eq:toy-none, which the book does not have"
    return TEXT, project.line(TEXT, SHIFT) - 1, message


def misnamed_code(project):
    project.edit("lib/toy.py", "eq:toy-lse", "eq:toy-less")
    return "lib/toy.py", project.line("lib/toy.py", "def lse"), "eq:toy-less: lib.toy.lse names it"


BREAKS = [
    broken_check,
    missing_check,
    missing_control,
    control_that_passes,
    control_that_breaks,
    changed_formula,
    removed_equation,
    circle,
    unknown_label,
    duplicate_label,
    changed_library,
    unknown_premise,
    misnamed_code,
]


@pytest.mark.parametrize("broken", BREAKS, ids=lambda function: function.__name__)
def test_what_is_broken_stops_check_and_build(project, broken):
    file, line, message = broken(project)
    if isinstance(line, str):
        line = project.line(file, line)
    start = f"{file}:{line}: "
    assert any(p.startswith(start) and message in p for p in project.problems()), project.problems()
    status, messages = project.build()
    assert status == 1
    warned = [text for text in messages.splitlines() if text.startswith(f"{start}WARNING: ")]
    assert any(message in text for text in warned), messages


def test_what_rests_on_a_failure_is_not_verified(project):
    broken_check(project)
    records = project.ledger().records
    assert records["eq:toy-shift"].status == "passes, rests on unverified"
    assert records["eq:toy-shift"].reasons == ["eq:toy-lse"]


def test_without_results_the_build_says_what_to_run(project):
    shutil.rmtree(project.root / "_build")
    status, messages = project.build()
    assert status == 2
    assert "Run first: python -m tools.ledger run" in messages


def test_a_page_from_an_earlier_build_shows_the_new_status(project):
    assert project.build()[0] == 0
    project.edit(TESTS, "lambda c: 0.0", "lambda c: c + 0.0")
    assert project.pytest().returncode == 1
    for _ in range(2):  # also when nothing changed since the build that failed
        assert project.build()[0] == 1
        assert "✗ FAIL" in project.page("book/01_toy.html")


def test_a_page_that_shows_another_formula_is_told(project):
    """The page is built from the notebook, the ledger reads the text that it is made from."""
    conf = project.root / "conf.py"
    conf.write_text(conf.read_text("utf-8") + STALE_NOTEBOOK, "utf-8")
    status, messages = project.build()
    assert status == 1
    assert "book/01_toy.md:5: WARNING: eq:toy-lse: the built page shows another formula" in messages
    assert "eq:toy-shift: it is not in the built page" in messages


def test_a_run_of_some_tests_leaves_no_stale_pass(project):
    project.edit("lib/toy.py", "return math.log(", "return 0.0 + math.log(")
    assert project.pytest("-k", "test_lse and right").returncode == 0
    outcomes = {c.test: c.outcome for r in project.ledger().records.values() for c in r.checks}
    assert set(outcomes.values()) == {"not run"}
    assert project.pytest("-k", "test_lse and wrong").returncode == 0
    assert project.ledger().records["eq:toy-lse"].status == "verified"
    assert project.ledger().records["eq:toy-shift"].status == "unchecked"


def test_workers_of_xdist_write_one_ledger(project):
    project.edit("lib/toy.py", "Toys.", "Other toys.")
    assert project.pytest("-p", "xdist", "-n", "2").returncode == 0
    assert [r.status for r in project.ledger().records.values()] == ["verified", "verified"]
