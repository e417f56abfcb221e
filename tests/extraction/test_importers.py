"""Importers, on a few sentences of our own in the published form of each format."""

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from lib.extraction.__main__ import main
from lib.extraction.corpora import MalformedLinesError, read_jsonl
from lib.extraction.corpora.jsonl import Reading
from lib.extraction.importers import FORMATS, import_file
from lib.extraction.importers.gather import positions
from lib.extraction.triples import Example, Span, Triple, example_to_json
from tests.extraction.strategies import TEXTS, examples


def entities(example: Example) -> list[tuple[str, str, str, str, str]]:
    """Return triples by their words and types."""
    return [
        (
            t.subject.of(example.text),
            t.subject.type,
            t.relation,
            t.object.of(example.text),
            t.object.type,
        )
        for t in example.triples
    ]


def convert(format: str, source: Path, out: Path, *more: str) -> Result:
    return CliRunner().invoke(
        main, ["convert", "--from", format, str(source), "--out", str(out), *more]
    )


WROTE = [("Ada Quill", "Person", "wrote", "Notes", "Work")]


# One source a format: what stands in it is what WROTE says.

BRAT_TEXT = "Ada Quill wrote Notes."
BRAT = "T1\tPerson 0 9\tAda Quill\nT2\tWork 16 21\tNotes\nR1\twrote Arg1:T1 Arg2:T2\n"

DOCCANO: dict[str, Any] = {
    "id": 6,
    "text": "Ada Quill wrote Notes.",
    "Comments": [],
    "entities": [
        {"id": 41, "label": "Person", "start_offset": 0, "end_offset": 9},
        {"id": 42, "label": "Work", "start_offset": 16, "end_offset": 21},
    ],
    "relations": [{"id": 7, "from_id": 41, "to_id": 42, "type": "wrote"}],
}


def region(id: str, start: int, end: int, text: str, label: str) -> dict[str, Any]:
    return {
        "id": id,
        "from_name": "label",
        "to_name": "text",
        "type": "labels",
        "value": {"start": start, "end": end, "text": text, "labels": [label]},
    }


def studio(text: str, *results: dict[str, Any], **more: Any) -> dict[str, Any]:
    annotation = {"id": 1001, "was_cancelled": False, "result": list(results), **more}
    return {"id": 3, "data": {"text": text}, "annotations": [annotation], "predictions": []}


RELATION = {
    "from_id": "aa",
    "to_id": "bb",
    "type": "relation",
    "direction": "right",
    "labels": ["wrote"],
}
STUDIO = studio(
    BRAT_TEXT,
    region("aa", 0, 9, "Ada Quill", "Person"),
    region("bb", 16, 21, "Notes", "Work"),
    RELATION,
)

PRODIGY: dict[str, Any] = {
    "text": "Ada Quill wrote Notes.",
    "tokens": [
        {"text": "Ada", "start": 0, "end": 3, "id": 0, "ws": True},
        {"text": "Quill", "start": 4, "end": 9, "id": 1, "ws": True},
        {"text": "wrote", "start": 10, "end": 15, "id": 2, "ws": True},
        {"text": "Notes", "start": 16, "end": 21, "id": 3, "ws": False},
        {"text": ".", "start": 21, "end": 22, "id": 4, "ws": False},
    ],
    "spans": [
        {"start": 0, "end": 9, "token_start": 0, "token_end": 1, "label": "Person"},
        {"start": 16, "end": 21, "token_start": 3, "token_end": 3, "label": "Work"},
    ],
    "relations": [{"head": 1, "child": 3, "label": "wrote"}],
    "answer": "accept",
}

CONLL = """\
#doc 17
0\tAda\tB-Person\t['N']\t[0]
1\tQuill\tI-Person\t['wrote']\t[3]
2\twrote\tO\t['N']\t[2]
3\tNotes\tB-Work\t['N']\t[3]
"""

SPERT: dict[str, Any] = {
    "tokens": ["Ada", "Quill", "wrote", "Notes"],
    "entities": [
        {"type": "Person", "start": 0, "end": 2},
        {"type": "Work", "start": 3, "end": 4},
    ],
    "relations": [{"type": "wrote", "head": 0, "tail": 1}],
    "orig_id": 17,
}

DOCRED: dict[str, Any] = {
    "title": "Ada",
    "sents": [["It", "rained", "."], ["Ada", "Quill", "wrote", "Notes"]],
    "vertexSet": [
        [{"name": "Ada Quill", "sent_id": 1, "pos": [0, 2], "type": "Person"}],
        [{"name": "Notes", "sent_id": 1, "pos": [3, 4], "type": "Work"}],
    ],
    "labels": [{"h": 0, "t": 1, "r": "wrote", "evidence": [1]}],
}

SPO: dict[str, Any] = {
    "text": "Ada Quill wrote Notes",
    "spo_list": [
        {
            "subject": "Ada Quill",
            "subject_type": "Person",
            "predicate": "wrote",
            "object": "Notes",
            "object_type": "Work",
        }
    ],
}

CSV = """\
text,subject,relation,object,subject_type,object_type
Ada Quill wrote Notes.,Ada Quill,wrote,Notes,Person,Work
"""

SOURCES = {
    "doccano": json.dumps(DOCCANO),
    "label-studio": json.dumps([STUDIO]),
    "spacy": json.dumps(PRODIGY),
    "conll": CONLL,
    "spert": json.dumps([SPERT]),
    "docred": json.dumps([DOCRED]),
    "spo_list": json.dumps(SPO),
    "csv": CSV,
}


def source(folder: Path, format: str, text: str = "") -> Path:
    if format == "brat":
        (folder / "a.txt").write_text(BRAT_TEXT)
        (folder / "a.ann").write_text(text or BRAT)
        return folder
    path = folder / "source"
    path.write_bytes((text or SOURCES[format]).encode())
    return path


def read(folder: Path, format: str, text: str = "") -> Reading:
    return import_file(format, source(folder, format, text))


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_gives_words_types_and_relation(tmp_path: Path, format: str) -> None:
    reading = read(tmp_path, format)
    (example,) = reading.examples
    assert entities(example) == WROTE
    assert not reading.dropped
    assert not reading.notes


@pytest.mark.parametrize("format", FORMATS)
def test_a_byte_order_mark_and_other_line_ends_change_nothing(tmp_path: Path, format: str) -> None:
    expected = read(tmp_path, format).examples
    for path in (
        [tmp_path / "a.ann", tmp_path / "a.txt"] if format == "brat" else [tmp_path / "source"]
    ):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    found = import_file(format, tmp_path if format == "brat" else tmp_path / "source").examples
    assert [example_to_json(e) for e in found] == [example_to_json(e) for e in expected]


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_no_such_format_is_refused(tmp_path: Path, format: str) -> None:
    for text in ("\x00", "{", "[1]", '{"a": 1}', "[[[", "T1\tnothing"):
        with pytest.raises(ValueError, match=str(tmp_path)):
            read(tmp_path, format, text)


@pytest.mark.parametrize("format", FORMATS)
def test_the_command_writes_what_a_model_reads(tmp_path: Path, format: str) -> None:
    out = tmp_path / "own.jsonl"
    result = convert(format, source(tmp_path, format), out)
    assert result.exit_code == 0, result.output
    assert "1 text, 1 triple, 1 relation, 2 entity types" in result.stderr
    assert entities(read_jsonl(out)[0]) == WROTE


# brat


def test_brat_counts_what_has_no_place_in_a_triple(tmp_path: Path) -> None:
    more = (
        "T3\tPerson 0 3;16 21\tAda Notes\n"
        "R2\twrote Arg1:T3 Arg2:T2\n"
        "R3\twrote Arg1:T1 Arg2:T9\n"
        "R4\twrote Arg2:T2 Arg1:T1\n"
        "T4\tWriting 10 15\twrote\n"
        "E1\tWriting:T4 Agent:T1 Theme:T2\n"
        "R5\tcauses Arg1:E1 Arg2:T2\n"
        "T5\tWork 11 13\twrong\n"
        "R6\twrote Arg1:T1 Arg2:T5\n"
        "R7\twrote Arg1:T1\n"
        "A1\tNegation E1\n"
        "*\tEquiv T1 T2\n"
        "#1\tAnnotatorNotes T1\tsure\n"
        "N1\tReference T1 Wiki:1\tAda\n"
    )
    reading = read(tmp_path, "brat", BRAT + more)
    assert entities(reading.examples[0]) == [
        *WROTE,
        ("wrote", "Writing", "causes", "Notes", "Work"),
    ]
    assert reading.dropped == {
        "entity in several pieces": 1,
        "relation to an entity that is not there": 1,
        "triple repeated": 1,
        "argument of an event": 2,
        "entity whose offsets do not give its words": 1,
        "relation with other than two arguments": 1,
        "equivalence (a line that begins with *)": 1,
    }
    assert reading.notes == {"attribute": 1, "comment": 1, "normalisation": 1}
    assert reading.samples["relation to an entity that is not there"] == (
        f"{tmp_path / 'a.ann'}, line 6: T1 wrote T9, 'T9'"
    )


def test_brat_joins_pieces_that_a_line_break_parts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Ada\nQuill wrote Notes.")
    ann = BRAT.replace("Person 0 9", "Person 0 3;4 9")
    (tmp_path / "a.ann").write_text(ann)
    reading = import_file("brat", tmp_path / "a.ann")
    assert reading.examples[0].triples[0].subject == Span(0, 9)
    assert reading.notes == {"entity in pieces with only white space between, joined": 1}


@pytest.mark.parametrize(
    ("text", "shift"),
    [
        ("\ufeff", 1),  # a byte order mark that was counted
        ("\r\n", 2),  # line ends as they stand
        ("\r\n", 1),  # line ends counted as one
        ("\n", 2),  # line ends that became one since
        ("😀", 1),
        ("😀", 2),  # UTF-16
    ],
)
def test_brat_finds_in_which_units_offsets_count(tmp_path: Path, text: str, shift: int) -> None:
    (tmp_path / "a.txt").write_bytes(f"{text}{BRAT_TEXT}".encode())
    (tmp_path / "a.ann").write_text(
        f"T1\tPerson {shift} {9 + shift}\tAda Quill\nT2\tWork {16 + shift} {21 + shift}\tNotes\n"
        "R1\twrote Arg1:T1 Arg2:T2\n"
    )
    reading = import_file("brat", tmp_path)
    assert entities(reading.examples[0]) == WROTE
    assert not reading.dropped


def test_brat_reads_folders_of_folders_and_names_what_lacks_its_twin(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source(tmp_path / "in", "brat")
    (tmp_path / "b.txt").write_text("Not yet.")
    reading = import_file("brat", tmp_path)
    assert [example.id for example in reading.examples] == ["in/a"]
    assert reading.notes == {"text without a file of annotations": 1}
    (tmp_path / "c.ann").write_text("")
    with pytest.raises(MalformedLinesError, match=r"c.ann: there is no c.txt beside it"):
        import_file("brat", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no c.txt beside"):
        import_file("brat", tmp_path / "c.ann")


# The others


def test_doccano_counts_in_utf_16_units(tmp_path: Path) -> None:
    text = "👨🏻 " + BRAT_TEXT
    moved = [
        e | {"start_offset": e["start_offset"] + 5, "end_offset": e["end_offset"] + 5}
        for e in DOCCANO["entities"]
    ]
    reading = read(tmp_path, "doccano", json.dumps(DOCCANO | {"text": text, "entities": moved}))
    assert entities(reading.examples[0]) == WROTE
    assert [*reading.notes.values()] == [1]


def test_doccano_counts_missing_ids_halves_and_entities_alone(tmp_path: Path) -> None:
    record = {
        "id": 1,
        "text": "😀 Ada",
        "entities": [
            {"id": 1, "label": "P", "start_offset": 3, "end_offset": 6},
            {"id": 2, "label": "P", "start_offset": 1, "end_offset": 6},
            {"id": 3, "label": "P", "start_offset": 3, "end_offset": 60},
        ],
        "relations": [
            {"id": 1, "from_id": 1, "to_id": 2, "type": "r"},
            {"id": 2, "from_id": 1, "to_id": 3, "type": "r"},
            {"id": 3, "from_id": 1, "to_id": 4, "type": "r"},
        ],
    }
    reading = read(tmp_path, "doccano", json.dumps(record))
    assert reading.dropped == {
        "entity outside its text": 2,
        "relation to an entity that is not there": 1,
    }
    assert reading.notes["entity in no relation"] == 1


@pytest.mark.parametrize("shift", [1, 2])
def test_label_studio_tells_characters_from_utf_16(tmp_path: Path, shift: int) -> None:
    task = studio(
        "😀" + BRAT_TEXT,
        region("aa", shift, 9 + shift, "Ada Quill", "Person"),
        region("bb", 16 + shift, 21 + shift, "Notes", "Work"),
        RELATION,
    )
    reading = read(tmp_path, "label-studio", json.dumps([task]))
    assert entities(reading.examples[0]) == WROTE
    assert reading.notes == ({"text whose offsets count UTF-16 units": 1} if shift == 2 else {})


@pytest.mark.parametrize(
    ("change", "triples"),
    [
        ({"direction": "left"}, [("Notes", "wrote", "Ada Quill")]),
        ({"direction": "bi"}, [("Ada Quill", "wrote", "Notes"), ("Notes", "wrote", "Ada Quill")]),
        ({"labels": ["a", "b"]}, [("Ada Quill", "a", "Notes"), ("Ada Quill", "b", "Notes")]),
    ],
)
def test_label_studio_directions_and_labels(
    tmp_path: Path, change: dict[str, Any], triples: list[tuple[str, str, str]]
) -> None:
    regions = STUDIO["annotations"][0]["result"][:2]
    task = studio(BRAT_TEXT, *regions, RELATION | change)
    assert list(read(tmp_path, "label-studio", json.dumps([task])).examples[0].strings()) == triples


def test_label_studio_counts_what_it_leaves_out(tmp_path: Path) -> None:
    regions = STUDIO["annotations"][0]["result"][:2]
    html = region("cc", 0, 3, "Ada", "Person")
    html["type"], html["value"]["start"] = "hypertextlabels", "/p[1]/text()[1]"
    wrong = region("dd", 0, 3, "Quill", "Person")
    task = studio(
        BRAT_TEXT,
        *regions,
        html,
        wrong,
        RELATION | {"labels": []},
        RELATION | {"from_id": "cc"},
        RELATION | {"from_id": "dd"},
        RELATION | {"from_id": "ee"},
        RELATION,
    )
    skipped = studio(BRAT_TEXT, was_cancelled=True)
    task["annotations"] += skipped["annotations"] + STUDIO["annotations"]
    reading = read(tmp_path, "label-studio", json.dumps([task, skipped]))
    assert entities(reading.examples[0]) == WROTE
    assert reading.dropped == {
        "relation without a label": 1,
        "region that is not of plain text": 1,
        "entity whose offsets do not give its words": 1,
        "relation to an entity that is not there": 1,
    }
    assert reading.notes == {
        "further annotation of a text, of which the first is taken": 1,
        "text without an annotation": 1,
    }


def test_label_studio_min_is_refused_as_it_has_no_relations(tmp_path: Path) -> None:
    task = {"id": 3, "text": BRAT_TEXT, "label": [{"start": 0, "end": 9, "labels": ["Person"]}]}
    with pytest.raises(MalformedLinesError, match="JSON-MIN leaves relations out"):
        read(tmp_path, "label-studio", json.dumps([task]))


def test_prodigy_relations_by_spans_and_words_and_answers(tmp_path: Path) -> None:
    spans = {
        "head_span": {"start": 0, "end": 3, "token_start": 0, "token_end": 0, "label": "First"},
        "child_span": {"start": 16, "end": 21, "token_start": 3, "token_end": 3, "label": "Work"},
    }
    relations = [
        {"head": 0, "child": 3, "label": "wrote"} | spans,
        {"head": 2, "child": 3, "label": "of"},
        {"head": 1, "child": 9, "label": "of"},
    ]
    lines = [PRODIGY | {"relations": relations}, PRODIGY | {"answer": "reject"}]
    reading = read(tmp_path, "spacy", "\n".join(map(json.dumps, lines)))
    assert entities(reading.examples[0]) == [
        ("Ada", "First", "wrote", "Notes", "Work"),
        ("wrote", "", "of", "Notes", "Work"),
    ]
    assert reading.dropped == {"relation to an entity that is not there": 1}
    assert reading.notes == {"text that was not accepted": 1, "entity in no relation": 1}


def test_docred_takes_the_nearest_mentions(tmp_path: Path) -> None:
    far = {"name": "Ada", "sent_id": 0, "pos": [0, 1], "type": "Person"}
    vertices: list[Any] = [[far, *DOCRED["vertexSet"][0]], DOCRED["vertexSet"][1]]
    labels = [*DOCRED["labels"], {"h": 0, "t": 7, "r": "P1", "evidence": []}]
    record = DOCRED | {"vertexSet": vertices, "labels": labels}
    reading = read(tmp_path, "docred", json.dumps([record]))
    assert entities(reading.examples[0]) == WROTE
    assert reading.dropped == {"relation to an entity that is not there": 1}
    assert reading.notes == {"entity with several mentions, of which the nearest is taken": 1}


def test_spo_list_of_duie_2(tmp_path: Path) -> None:
    spo = SPO["spo_list"][0] | {
        "object": {"@value": "Notes", "inWork": "Quill"},
        "object_type": {"@value": "Work", "inWork": "Person"},
    }
    reading = read(tmp_path, "spo_list", json.dumps(SPO | {"spo_list": [spo, spo]}))
    assert entities(reading.examples[0]) == WROTE
    assert reading.dropped == {"part of a compound object": 2, "triple repeated": 1}
    assert reading.samples["triple repeated"].endswith("line 1: Ada Quill | wrote | Notes")


def test_csv_groups_rows_and_chooses_occurrences_as_told(tmp_path: Path) -> None:
    text = (
        "id;text;subject;relation;object;object_start;object_end\n"
        "a;Bo met Bo;Bo;met;Bo;7;9\n"
        'a;"Bo met Bo";Bo;saw;Bo;7;9\n'
        "a;Bo met Bo;Bo;saw;Bo;7;9\n"
        "b;Nobody.;;;;;\n"
    )
    path = source(tmp_path, "csv", text)
    with pytest.raises(MalformedLinesError, match="line 2: triple 1: subject 'Bo' occurs 2 times"):
        import_file("csv", path)
    reading = import_file("csv", path, occurrence="first")
    assert reading.examples == (
        Example("a", "Bo met Bo", tuple(Triple(Span(0, 2), r, Span(7, 9)) for r in ("met", "saw"))),
        Example("b", "Nobody."),
    )
    assert reading.dropped == {"triple repeated": 1}
    assert reading.notes == {"entity that occurs several times": 1}
    result = convert("csv", path, tmp_path / "own.jsonl", "--occurrence", "first")
    assert "left out: 1 × triple repeated" in result.stderr
    assert "Warning" not in result.stderr  # one of the two is there: nothing is lost


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,subject,object\n", "line 1: the head must name 'relation', got"),
        ('"text,subject,relation,object\na,b\n', "line 1: unexpected end of data"),
        ("text,subject,relation,object\na,b\n", "line 2: a row must have 4 cells"),
        ("text,subject,relation,object\nAda,Ada,r,Bo\n", "line 2: .*'Bo' does not occur"),
        ("text,subject,relation,object\nAda,Ada,,Ada\n", "line 2: .*'relation' is empty"),
        ("text,subject,relation,object\nAda,,r,Ada\n", "line 2: 'subject' must not be empty"),
        (
            "text,subject,relation,object,object_start\nA,A,r,A,x\n",
            "'object_start' must be a whole",
        ),
        ('text,subject,relation,object\n"A', "line 2: unexpected end of data"),
    ],
)
def test_csv_names_the_bad_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(tmp_path, "csv", text)


def test_brat_lines_end_only_where_a_line_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(BRAT_TEXT.replace("Ada ", "Ada\x0c"))
    (tmp_path / "a.ann").write_text(BRAT.replace("Ada ", "Ada\x0c"))
    (example,) = import_file("brat", tmp_path).examples
    assert example.strings() == (("Ada\x0cQuill", "wrote", "Notes"),)


def test_an_id_that_two_entities_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MalformedLinesError, match="line 4: an id must be given once, got 'T1'"):
        read(tmp_path, "brat", BRAT + "T1\tPerson 16 21\tNotes\n")
    first, second = DOCCANO["entities"]
    twice = [first, second | {"id": 41}]
    with pytest.raises(MalformedLinesError, match="id must be given once, got 41 again"):
        read(tmp_path, "doccano", json.dumps(DOCCANO | {"entities": twice}))
    ada, notes, relation = STUDIO["annotations"][0]["result"]
    task = studio(BRAT_TEXT, ada, notes | {"id": "aa"}, relation)
    with pytest.raises(MalformedLinesError, match="id must be given once, got 'aa' again"):
        read(tmp_path, "label-studio", json.dumps([task]))


def test_label_studio_gives_a_region_of_two_label_sets_twice(tmp_path: Path) -> None:
    ada, notes, relation = STUDIO["annotations"][0]["result"]
    again = region("aa", 0, 9, "Ada Quill", "Author")
    reading = read(
        tmp_path, "label-studio", json.dumps([studio(BRAT_TEXT, ada, again, notes, relation)])
    )
    assert entities(reading.examples[0]) == WROTE
    assert reading.notes == {"entity with several labels, of which the first is taken": 1}


def test_prodigy_does_not_guess_which_span_a_token_ends(tmp_path: Path) -> None:
    inner = {"start": 4, "end": 9, "token_start": 1, "token_end": 1, "label": "Name"}
    record = PRODIGY | {"spans": [*PRODIGY["spans"], inner]}
    assert read(tmp_path, "spacy", json.dumps(record)).dropped == {
        "token that ends several spans": 1
    }


@pytest.mark.parametrize("format", ["doccano", "spacy", "spert", "docred"])
def test_one_object_over_several_lines_is_read(tmp_path: Path, format: str) -> None:
    value = json.loads(SOURCES[format])
    value = value[0] if isinstance(value, list) else value
    (example,) = read(tmp_path, format, json.dumps(value, indent=1)).examples
    assert entities(example) == WROTE


# The page for readers

PAGE = (Path(__file__).parents[2] / "book" / "howto_data.md").read_text("utf-8")
SECTION = PAGE.split("(from-another-tool)=")[1].split("**Offsets.**")[0]
# A format's name begins the paragraph that its block ends.
SHOWN = dict(
    re.findall(r"^`([\w-]+)`(?:[^\n]+\n)+?\n```\w+\n(.*?)^```$", SECTION, re.DOTALL | re.M)
)


def test_the_page_shows_every_format() -> None:
    assert list(SHOWN) == list(FORMATS)
    assert re.findall(r"^\| `([\w-]+)` \|", PAGE.split("| `--from` |")[1], re.MULTILINE)[
        : len(FORMATS)
    ] == list(FORMATS)


@pytest.mark.parametrize("format", FORMATS)
def test_what_the_page_shows_is_read(tmp_path: Path, format: str) -> None:
    text = SHOWN[format]
    if format == "spo_list":  # broken to be read, one line in a file
        text = json.dumps(json.loads(text))
    path = source(tmp_path, format, text)
    if format == "brat":
        (tmp_path / "a.txt").write_text("Ada Lovelace wrote the Notes.")
    ada = "Ada" if format == "conll" else "Ada Lovelace"
    reading = import_file(format, path)
    assert entities(reading.examples[0]) == [(ada, "Person", "wrote", "Notes", "Work")]
    assert not reading.dropped


# What holds for all


def test_twenty_bad_records_are_named_at_once(tmp_path: Path) -> None:
    lines = [json.dumps(DOCCANO | {"text": n}) for n in range(25)]
    result = convert("doccano", source(tmp_path, "doccano", "\n".join(lines)), tmp_path / "o")
    assert result.exit_code == 2
    said = result.stderr.splitlines()
    assert len(said) == 21
    assert said[19].endswith("line 20: 'text' must be a string, got 19")
    assert said[20] == "and 5 more malformed lines"
    assert not (tmp_path / "o").exists()


def test_the_command_says_what_is_lost_and_refuses_to_lose_all(tmp_path: Path) -> None:
    lost = {"id": 9, "from_id": 41, "to_id": 99, "type": "wrote"}
    record = DOCCANO | {"relations": [*DOCCANO["relations"], lost]}
    path = source(tmp_path, "doccano", json.dumps(record))
    out = tmp_path / "own.jsonl"
    result = convert("doccano", path, out)
    assert result.exit_code == 0
    assert (
        "left out: 1 × relation to an entity that is not there; first "
        f"{path}, line 1: 41 wrote 99, 99"
    ) in result.stderr
    assert "Warning: 1 of 2 triples left out (50%)" in result.stderr
    before = out.read_bytes()
    path.write_text(json.dumps(DOCCANO | {"relations": [lost]}))
    result = convert("doccano", path, out)
    assert result.exit_code == 2
    assert "all 1 triple were left out, nothing is written" in result.stderr
    assert out.read_bytes() == before


def test_the_command_writes_to_standard_output_and_keeps_a_link(tmp_path: Path) -> None:
    path = source(tmp_path, "csv")
    result = convert("csv", path, Path("-"))
    assert json.loads(result.stdout)["text"] == BRAT_TEXT
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert convert("csv", path, tmp_path / "link").exit_code == 0
    assert os.path.islink(tmp_path / "link")
    assert (tmp_path / "real").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["csv", "{}/none", "--out", "{}/o"], "no such file or folder"),
        (["csv", "{}", "--out", "{}/o"], "source must be a file for csv, got the folder"),
        (["csv", "{}/source", "--out", "{}/none/o"], "--out: no such folder"),
        (["conll", "{}/source", "--out", "{}/o", "--occurrence", "first"], "must be 'refuse' for"),
        (["brat", "{}/empty", "--out", "{}/o"], "holds no text in the format brat"),
    ],
)
def test_wrong_arguments_end_in_a_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    source(tmp_path, "csv")
    (tmp_path / "empty").mkdir()
    result = CliRunner().invoke(
        main, ["convert", "--from", *(a.format(tmp_path) for a in arguments)]
    )
    assert (result.exit_code, message in result.stderr) == (2, True), result.stderr


def test_utf_16_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(CSV.encode("utf-16"))
    with pytest.raises(ValueError, match="must be UTF-8, got UTF-16: iconv"):
        import_file("csv", path)


# Round trips


def units(text: str, index: int) -> int:
    """Count UTF-16 units before a character, in another way than the library."""
    return len(text[:index].encode("utf-16-le")) // 2


def as_doccano(example: Example) -> str:
    spans = list(dict.fromkeys(s for t in example.triples for s in (t.subject, t.object)))
    text = example.text
    record = {
        "id": example.id,
        "text": text,
        "entities": [
            {
                "id": n,
                "label": "E",
                "start_offset": units(text, s.start),
                "end_offset": units(text, s.end),
            }
            for n, s in enumerate(spans)
        ],
        "relations": [
            {
                "id": n,
                "from_id": spans.index(t.subject),
                "to_id": spans.index(t.object),
                "type": t.relation,
            }
            for n, t in enumerate(example.triples)
        ],
    }
    return json.dumps(record) + "\n"


def as_studio(example: Example) -> str:
    spans = list(dict.fromkeys(s for t in example.triples for s in (t.subject, t.object)))
    regions = [
        region(f"r{n}", s.start, s.end, s.of(example.text), "E") for n, s in enumerate(spans)
    ]
    relations = [
        {
            "from_id": f"r{spans.index(t.subject)}",
            "to_id": f"r{spans.index(t.object)}",
            "type": "relation",
            "labels": [t.relation],
        }
        for t in example.triples
    ]
    return json.dumps([studio(example.text, *regions, *relations) | {"id": example.id}])


def as_prodigy(example: Example) -> str:
    def place(span: Span) -> dict[str, Any]:
        return {"start": span.start, "end": span.end, "label": "E"}

    relations = [
        {"label": t.relation, "head_span": place(t.subject), "child_span": place(t.object)}
        for t in example.triples
    ]
    return json.dumps({"id": example.id, "text": example.text, "relations": relations})


@pytest.mark.parametrize(
    ("format", "write"),
    [("doccano", as_doccano), ("label-studio", as_studio), ("spacy", as_prodigy)],
)
@given(example=examples(TEXTS))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    format: str,
    write: Callable[[Example], str],
    example: Example,
) -> None:
    path = tmp_path_factory.mktemp("round") / "source"
    path.write_text(write(example), encoding="utf-8")
    reading = import_file(format, path)
    assert reading.examples == (example,)
    assert not reading.dropped


WORDS = st.text("aé中😀", min_size=1, max_size=3)


@st.composite
def tokenised(
    draw: st.DrawFn,
) -> tuple[list[str], list[tuple[int, int]], list[tuple[int, str, int]]]:
    tokens = draw(st.lists(WORDS, min_size=1, max_size=6))
    bounds = st.tuples(st.integers(0, len(tokens) - 1), st.integers(1, len(tokens)))
    spans = draw(
        st.lists(bounds.filter(lambda b: b[0] < b[1]), min_size=1, max_size=4, unique=True)
    )
    index = st.integers(0, len(spans) - 1)
    facts = st.tuples(index, st.sampled_from("pq"), index)
    return tokens, spans, draw(st.lists(facts, max_size=4, unique=True))


@given(data=tokenised())
def test_round_trip_of_spert(
    tmp_path_factory: pytest.TempPathFactory,
    data: tuple[list[str], list[tuple[int, int]], list[tuple[int, str, int]]],
) -> None:
    tokens, spans, facts = data
    record = {
        "tokens": tokens,
        "entities": [{"type": "E", "start": start, "end": end} for start, end in spans],
        "relations": [{"type": r, "head": h, "tail": t} for h, r, t in facts],
    }
    path = tmp_path_factory.mktemp("round") / "source"
    path.write_text(json.dumps([record]), encoding="utf-8")
    (example,) = import_file("spert", path).examples
    words = [" ".join(tokens[start:end]) for start, end in spans]
    assert example.text == " ".join(tokens)
    assert example.strings() == tuple((words[h], r, words[t]) for h, r, t in facts)


@given(example=examples(TEXTS.filter(lambda text: "\x00" not in text)))
def test_round_trip_of_csv(tmp_path_factory: pytest.TempPathFactory, example: Example) -> None:
    path = tmp_path_factory.mktemp("round") / "source"
    columns = ["id", "text", "subject", "relation", "object"]
    columns += [f"{role}_{end}" for role in ("subject", "object") for end in ("start", "end")]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for t in example.triples:
            s, o = t.subject, t.object
            words = [s.of(example.text), t.relation, o.of(example.text)]
            writer.writerow([example.id, example.text, *words, s.start, s.end, o.start, o.end])
        if not example.triples:
            writer.writerow([example.id, example.text, *[""] * 7])
    assert import_file("csv", path).examples == (example,)


@given(st.text("a😀é", max_size=8))
def test_positions_are_those_of_the_encoding(text: str) -> None:
    found = positions(text)
    assert len(found) == units(text, len(text)) + 1
    assert all(found[units(text, index)] == index for index in range(len(text) + 1))
