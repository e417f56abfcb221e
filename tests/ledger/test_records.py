"""From markers and outcomes to statuses; from docstrings to links; review and lock; drawing."""

import re
import xml.etree.ElementTree as ET

import pytest

from tools.ledger import __main__ as commands
from tools.ledger.graph import Node, draw
from tools.ledger.lock import load_lock, side_by_side
from tools.ledger.records import Check, Equation, Record, _cycles, _judge
from tools.ledger.sources import read_functions, read_markers


@pytest.mark.parametrize(
    ("kind", "used", "reason"),
    [
        ("definition", ["true"], None),
        ("identity", ["equal"], None),
        ("identity", [], "kind identity must show check.equal or check.true"),
        ("gradient", ["true"], "kind gradient must show check.equal"),
        ("inequality", ["at_most", "equal"], None),
        ("inequality", ["at_most"], "must show the case of equality, with check.equal"),
        ("inequality", ["equal"], "kind inequality must show check.at_most"),
        ("limit", ["rate"], None),
        ("limit", ["equal"], "must show the rate of convergence, with check.rate"),
        ("empirical", ["at_most"], None),
        ("approximation", ["true"], "must show check.equal or check.at_most or check.rate"),
    ],
)
def test_each_kind_has_a_weakest_check(kind, used, reason):
    record = Record(Equation("eq:x", "", "book/x.md", 1, ()), kind=kind, source="ours")
    record.checks = [Check("t", "t.py", 1, "passed", used=used, slips=["a slip"])]
    _judge(record)
    assert record.status == ("unchecked" if reason else "passes, rests on unverified")
    assert [reason in text for text in record.reasons] == ([True] if reason else [])


def test_a_source_is_asked_for():
    record = Record(Equation("eq:x", "", "book/x.md", 1, ()), kind="identity")
    record.checks = [Check("t", "t.py", 1, "passed", used=["equal"], slips=["a slip"])]
    _judge(record)
    assert record.reasons == ["none of its tests says source=…"]


def test_every_circle_is_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert sorted(_cycles(graph)) == [["a", "b", "c", "a"], ["d", "e", "d"]]


def test_functions_are_named_as_the_reference_names_them(tmp_path):
    files = {
        "lib/__init__.py": "",
        "lib/model/__init__.py": '__all__ = ["Head"]\n',
        "lib/model/heads.py": (
            'class Head:\n    """A head: :eq:`eq:x-a`, :eq:`that <eq:x-b>`."""\n'
            '    def score(self):\n        """Score. :eq:`eq:x-a`"""\n'
            'def part():\n    """Part. :eq:`eq:x-c`"""\n'
        ),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    assert [(f.name, f.line, f.labels) for f in read_functions(tmp_path)] == [
        ("lib.model.Head", 1, ("eq:x-a", "eq:x-b")),
        ("lib.model.Head.score", 3, ("eq:x-a",)),
        ("lib.model.heads.part", 5, ("eq:x-c",)),
    ]


def test_markers_are_read_without_importing(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_a.py").write_text(
        "class TestA:\n"
        "    @mark.equation('eq:x-a', right=1, wrong={'s': 2})\n"
        "    def test_one(self): ...\n"
        "@mark.equation(LABEL, right=1, wrong={})\n"
        "def test_two(): ...\n"
        "@mark.differs('id')\n"
        "def test_three(): ...\n",
        "utf-8",
    )
    one, two, three = read_markers(tmp_path)
    assert (one.test, one.label, one.line) == ("tests/test_a.py::TestA::test_one", "eq:x-a", 2)
    assert one.problems == ()
    assert "must be a literal string" in two.problems[0]
    assert "wrong={slip: form} is missing" in two.problems[1]
    assert (three.label, three.differs) == (None, "id")


def test_side_by_side_marks_what_changed():
    assert side_by_side(["a", "b = c"], ["a", "b = d", "e"], 43).splitlines() == [
        "reviewed               in the book",
        "a                      a",
        "b = c                | b = d",
        "                     | e",
    ]


class TestReview:
    """Nobody locks a formula that he was not shown."""

    @pytest.fixture
    def changed(self, project):
        project.edit("book/01_toy.md", "f(x + c) = f(x) + c", "f(x + c) = c + f(x)")
        return project

    def locked(self, project):
        return load_lock(project.root)["eq:toy-shift"]["latex"]

    def test_shows_old_and_new_and_the_checks(self, changed):
        shown = changed.command("review")
        assert re.search(r"f\(x \+ c\) = f\(x\) \+ c +\| f\(x \+ c\) = c \+ f\(x\)", shown)
        assert "passed: tests/test_toy.py:" in shown
        assert "eq:toy-lse" not in shown  # it did not change

    def test_without_a_keyboard_it_wants_label_and_digest(self, changed):
        confirm = re.search(r"--confirm \S+", changed.command("review"))[0].split()
        assert self.locked(changed) == ["f(x + c) = f(x) + c"]
        assert "1 locked, 0 left" in changed.command("review", *confirm)
        assert self.locked(changed) == ["f(x + c) = c + f(x)"]
        assert changed.problems()[-1].startswith("2 equations, 2 verified")

    def test_a_digest_of_another_formula_does_not_lock(self, changed):
        shown = changed.command("review", "--confirm", "eq:toy-shift=0123456789abcdef")
        assert "0123456789abcdef is not the digest of this formula" in shown
        assert self.locked(changed) == ["f(x + c) = f(x) + c"]

    def test_at_a_keyboard_it_wants_the_label(self, changed, monkeypatch):
        monkeypatch.setattr(commands, "can_type", lambda: True)
        assert "0 locked, 1 left" in changed.command("review", input="yes\n")
        assert self.locked(changed) == ["f(x + c) = f(x) + c"]
        assert "1 locked, 0 left" in changed.command("review", input="eq:toy-shift\n")

    def test_a_removed_equation_leaves_the_lock_the_same_way(self, project):
        text = (project.root / "book/01_toy.md").read_text("utf-8").partition("By {eq}")[0]
        (project.root / "book/01_toy.md").write_text(text, "utf-8")
        assert "no longer in the book" in project.command("review")
        project.command("review", "--confirm", "eq:toy-shift=gone")
        assert list(load_lock(project.root)) == ["eq:toy-lse"]

    def test_an_unknown_label_is_refused(self, project):
        assert "neither in the book nor in the lock: eq:none" in project.command(
            "review", "eq:none"
        )


def test_run_runs_only_what_is_not_known(sound):
    said = sound.command("run")
    assert said == "all 2 marked tests passed, and nothing changed since\n"


def drawing(**premises):
    nodes = [Node(k, f"({k})", f"#{k}", f"about {k}", "", p.split()) for k, p in premises.items()]
    return ET.fromstring(draw(nodes, "g", "Title", "Words & more"))


def boxes(svg):
    """Return x, y, width, height by text."""
    return {
        a.find("text").text.strip("()"): [float(a.find("rect").get(n)) for n in ("x", "y", "width")]
        for a in svg.iter("a")
    }


def test_premises_stand_to_the_left_and_boxes_apart():
    svg = drawing(a="", b="a", c="a b", d="a c", e="a", f="b e", g="a f d", h="")
    placed = boxes(svg)
    assert "h" not in placed  # it rests on nothing and bears nothing
    for left, right in ("ab", "ac", "bc", "ad", "cd", "ae", "bf", "ef", "ag", "fg", "dg"):
        assert placed[left][0] + placed[left][2] < placed[right][0]
    for one in placed:
        for other in placed:
            if one < other and placed[one][0] == placed[other][0]:
                assert abs(placed[one][1] - placed[other][1]) >= 26 + 9.9
    _, _, width, height = map(float, svg.get("viewBox").split())
    assert all(x >= 0 and x + w <= width and 0 <= y <= height - 26 for x, y, w in placed.values())
    assert len([path for path in svg.iter("path") if path.get("class") == "eq-edge"]) == 11


def test_a_drawing_has_words_and_links():
    svg = drawing(a="", b="a")
    assert svg.find("title").text == "Title"
    assert svg.find("desc").text == "Words & more"
    assert [a.get("href") for a in svg.iter("a")] == ["#a", "#b"]


def test_a_circle_is_drawn_without_its_last_edge():
    svg = drawing(a="b", b="a")
    assert len([path for path in svg.iter("path") if path.get("class") == "eq-edge"]) == 1


def test_an_empty_drawing():
    assert boxes(drawing()) == {}
