"""Readers, on a few sentences of our own in the format of each corpus."""

import hashlib
import inspect
import io
import json
import os
import re
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import pooch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.extraction.corpora import (
    MalformedLinesError,
    check_relations,
    example_to_json,
    known,
    load_corpus,
    read_jsonl,
    trained_relations,
    write_jsonl,
)
from lib.extraction.corpora.known import KNOWN, Source
from lib.extraction.corpora.published import (
    place_entities,
    read_conll04,
    read_conll04_entities,
    read_duie,
    read_triple_lists,
    unzip,
)
from lib.extraction.synthetic import synthetic_corpus
from lib.extraction.triples import Example, Span, Triple, overlap_patterns
from tests.extraction.strategies import examples

CONLL04 = """\
#doc 17
0\tAda\tB-Peop\t['N']\t[0]
1\tQuill\tI-Peop\t['Live_In', 'Work_For']\t[3, 6]
2\tof\tO\t['N']\t[2]
3\tPort\tB-Loc\t['N']\t[3]
4\truns\tO\t['N']\t[4]
5\tNorth\tB-Org\t['N']\t[5]
6\tMill\tI-Org\t['OrgBased_In']\t[3]
#doc 18
0\tPort\tB-Loc\t['N']\t[0]
1\tHarbour\tB-Loc\t['Located_In']\t[3]
2\tin\tO\t['N']\t[2]
3\tFarland\tI-Loc\t['N']\t[3]
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the tests away from the cache of this machine."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(pooch, "os_cache", lambda project: folder)
    return folder


def test_conll04() -> None:
    first, second = read_conll04(CONLL04.encode(), "x").examples
    assert first.id == "17"
    assert first.text == "Ada Quill of Port runs North Mill"
    assert first.strings() == (
        ("Ada Quill", "Live_In", "Port"),
        ("Ada Quill", "Work_For", "North Mill"),
        ("North Mill", "OrgBased_In", "Port"),
    )
    # "Port" and "Harbour" are two entities though they touch; "Farland" begins with an I- tag.
    assert second.strings() == (("Harbour", "Located_In", "Farland"),)
    reading = read_conll04(CONLL04.encode(), "x")
    assert reading.notes == {"entity that begins with an I- tag": 1}
    assert not reading.dropped


def test_conll04_entities_need_no_relation() -> None:
    (text, first), (_, second) = read_conll04_entities(CONLL04.encode(), "x")
    assert [(kind, text[span.start : span.end]) for kind, span in first] == [
        ("Peop", "Ada Quill"),
        ("Loc", "Port"),
        ("Org", "North Mill"),
    ]
    # Two B- tags in a row are two entities; an I- tag that continues nothing begins one.
    assert [kind for kind, _ in second] == ["Loc", "Loc", "Loc"]


def test_conll04_counts_what_it_drops() -> None:
    text = CONLL04.replace("['Live_In', 'Work_For']\t[3, 6]", "['Live_In', 'Live_In']\t[3, 3]")
    text = text.replace("'OrgBased_In']\t[3]", "'OrgBased_In']\t[5]")
    reading = read_conll04(text.encode(), "x")
    assert reading.dropped == {
        "triple repeated": 1,
        "relation on a token that ends no entity": 1,
    }
    assert reading.examples[0].strings() == (("Ada Quill", "Live_In", "Port"),)


def test_conll04_with_other_line_ends_and_no_tokens() -> None:
    windows = CONLL04.replace("\n", "\r\n").encode()
    assert read_conll04(windows, "x") == read_conll04(CONLL04.encode(), "x")
    empty = read_conll04(b"#doc 1\n#doc 2\n", "x").examples
    assert empty == (Example("1", ""), Example("2", ""))
    assert read_conll04(b"", "x").examples == ()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("#doc 17\n", "", "f.txt, line 1: expected '#doc' before the first token"),
        ("2\tof\tO\t['N']\t[2]", "2\tof\tO", "f.txt, line 4: expected 5 columns .* got 3"),
        ("2\tof", "3\tof", "line 4: expected token number 2, got '3'"),
        ("2\tof", "2\t", "line 4: the token is empty"),
        ("of\tO", "of\tX", "line 4: the tag must be 'O', 'B-…' or 'I-…', got 'X'"),
        ("[3, 6]", "[3, 6", "line 3: columns 4 and 5 must be lists, got"),
        ("[3, 6]", "(" * 3000, "line 3: columns 4 and 5 must be lists, got"),
        ("[3, 6]", "{[]: 1}", "line 3: columns 4 and 5 must be lists, got"),
        ("[3, 6]", "[3]", "line 3: .* of the same length, got"),
        ("[3, 6]", "[3, '6']", "line 3: columns 4 and 5 must be lists of names"),
        ("'Live_In', ", "7, ", "line 3: columns 4 and 5 must be lists of names"),
        ("['Live_In', 'Work_For']", "3", "line 3: columns 4 and 5 must be lists of names"),
        ("[3, 6]", "[3, 7]", "line 3: 'Work_For' points to token 7, but the sentence has 7"),
    ],
)
def test_conll04_names_the_bad_line(old: str, new: str, message: str) -> None:
    assert old in CONLL04
    with pytest.raises(ValueError, match=message):
        read_conll04(CONLL04.replace(old, new, 1).encode(), "f.txt")


def test_conll04_must_be_utf8() -> None:
    with pytest.raises(ValueError, match="f, line 2: not UTF-8"):
        read_conll04(b"#doc 1\n0\t\xff", "f")


LISTS = [
    {
        "text": "F.C. Tolma , in Tolma , is led by Ida Bru .",
        "triple_list": [
            ["F.C. Tolma", "ground", "Tolma"],
            ["F.C. Tolma", "leader", "Ida Bru"],
            ["F.C. Tolma", "leader", "Ida Bru"],
        ],
    },
    {"text": "Irans fly to Iran .", "triple_list": [["Iran", "rival", "Ida Bru"]]},
    {"text": "Irans fly .", "triple_list": [["Iran", "hosts", "fly"]]},
]


def test_triple_lists() -> None:
    reading = read_triple_lists(json.dumps(LISTS).encode(), "x")
    first, second, third = reading.examples
    assert first.id == "1"
    assert first.triples[0] == Triple(Span(0, 10), "ground", Span(16, 21))
    assert first.strings()[1] == ("F.C. Tolma", "leader", "Ida Bru")
    assert second.triples == ()
    assert third.triples == (Triple(Span(0, 4), "hosts", Span(6, 9)),)
    assert reading.dropped == {"triple repeated": 1, "entity not in the text": 1}
    assert reading.notes == {
        "entity that occurs several times": 1,
        "entity that occurs only inside a word": 1,
    }


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff", r"f: not UTF-8 \(byte 1\)"),
        (b"[\n{]", r"f: not valid JSON \(.*, line 2, column 2\)"),
        (b"[" * 100_000, "f: JSON that is nested too deeply"),
        (b"{}", "f: expected a list of records, got dict"),
        (b'[{"text": "a", "triple_list": []}, {"text": "a"}]', "f, record 2: not a record with"),
        (b'[{"text": "a", "triple_list": [["a", "r"]]}]', "f, record 1: not a record with"),
        (b'[{"text": 3, "triple_list": []}]', "f, record 1: .* must be strings, got 3"),
        (b'[{"text": "a", "triple_list": [["a", "r", 5]]}]', "must be strings, got 5"),
    ],
)
def test_triple_lists_name_the_bad_record(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_triple_lists(data, "f")


DUIE = "\n".join(
    json.dumps({"text": text, "spo_list": [spo]}, ensure_ascii=False)
    for text, spo in [
        ("林海写了《海》", {"subject": "林海", "predicate": "作者", "object": "海"}),
        ("林海", {"subject": "林海", "predicate": "作者", "object": "山"}),
    ]
)


def test_duie() -> None:
    reading = read_duie(DUIE.encode(), "x")
    # The free-standing character, not the one inside the name.
    assert reading.examples[0].triples == (Triple(Span(0, 2), "作者", Span(5, 6)),)
    assert reading.dropped == {"entity not in the text": 1}
    assert reading.notes == {"entity that occurs several times": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "f, line 2: not valid JSON"),
        ('{"text": "a"}', "f, line 2: not a record with .*KeyError"),
        ('{"text": "a", "spo_list": [{"subject": "a"}]}', "f, line 2: not a record"),
        (
            '{"text": "a", "spo_list": [{"subject": "a", "predicate": "p", "object": {"@value": 1}}'
            "]}",
            "f, line 2: .* must be strings, got {'@value': 1}",
        ),
    ],
)
def test_duie_names_the_bad_line(line: str, message: str) -> None:
    good = DUIE.splitlines()[0]
    with pytest.raises(ValueError, match=message):
        read_duie(f"{good}\n{line}\n".encode(), "f")


@pytest.mark.parametrize(
    ("text", "entities", "starts"),
    [
        ("Irans in Iran", ["Iran"], [9]),  # whole words first
        ("B-Iran , Iran", ["Iran"], [9]),  # then words between spaces
        ("New York , York", ["New York", "York"], [0, 11]),  # then not inside another
        ("New York", ["New York", "York"], [0, 4]),
        ("Ann met Ann", ["Ann", "Ann"], [0]),  # then the first
        ("Ann", ["Eve", ""], []),
        ("中国人在中国", ["中国"], [0]),  # no word borders in Chinese
    ],
)
def test_places(text: str, entities: list[str], starts: list[int]) -> None:
    assert [span.start for span in place_entities(text, entities).values()] == starts


def test_shared_entities_share_their_span() -> None:
    """So that a text keeps the overlap patterns that its strings have."""
    data = [
        {
            "text": "Ann met Bo , Ann saw Cy",
            "triple_list": [["Ann", "met", "Bo"], ["Ann", "saw", "Cy"]],
        }
    ]
    example = read_triple_lists(json.dumps(data).encode(), "x").examples[0]
    assert overlap_patterns(example.triples) == {"SEO"}


@given(st.text("ab 中", max_size=20), st.lists(st.text("ab中", max_size=3), max_size=4))
def test_a_place_holds_its_entity(text: str, entities: list[str]) -> None:
    places = place_entities(text, entities)
    assert all(span.of(text) == entity for entity, span in places.items())
    assert set(places) == {e for e in entities if e and e in text}


def zipped(**files: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in files.items():
            archive.writestr(f"{name}.json", text)
    return buffer.getvalue()


def test_unzip() -> None:
    data = zipped(one="1")
    assert unzip(data, "one.json", "z") == b"1"
    with pytest.raises(ValueError, match=r"z: the archive holds no 'two.json'"):
        unzip(data, "two.json", "z")
    with pytest.raises(ValueError, match="z: not a zip archive"):
        unzip(b"1", "one.json", "z")
    locked = bytearray(data)
    locked[data.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption
    with pytest.raises(ValueError, match=r"z: 'one.json' cannot be unpacked: .*password"):
        unzip(bytes(locked), "one.json", "z")


# The reader's own data


@given(st.lists(examples(), min_size=1, max_size=4))
def test_jsonl_keeps_everything(
    tmp_path_factory: pytest.TempPathFactory, given: list[Example]
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    write_jsonl(path, given)
    assert read_jsonl(path) == tuple(given)


GOOD = '{"text": "Ada wrote Notes", "triples": []}'


def test_jsonl_numbers_lines_and_skips_blank_ones(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(f"\ufeff{GOOD}\r\n\r\n  \n{GOOD}".encode())
    assert [example.id for example in read_jsonl(path)] == ["1", "4"]
    path.write_text('{"text": "Ada"}')
    assert read_jsonl(path, labelled=False)[0].text == "Ada"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", r"a.jsonl, line 3: not valid JSON \(.*, column 2\)"),
        (b'{"text": "\xff"}', r"a.jsonl, line 3: not UTF-8 \(byte 11\)"),
        (b"[" * 100_000, r"a.jsonl, line 3: JSON that is nested too deeply"),
        (b'{"id": ' + b"9" * 5000 + b"}", r"a.jsonl, line 3: JSON that cannot be read"),
        (b'{"text": "Ada"}', r"a.jsonl, line 3: the record has no 'triples'"),
        (
            b'{"text": "Ada", "triples": [{"subject": "Eve", "relation": "r", "object": "Ada"}]}',
            r"a.jsonl, line 3: triple 1: subject 'Eve' does not occur in the text",
        ),
    ],
)
def test_jsonl_names_the_bad_line(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(f"{GOOD}\n{GOOD}\n".encode() + line)
    with pytest.raises(ValueError, match=message):
        read_jsonl(path)


def test_twenty_bad_lines_are_named_at_once(tmp_path: Path) -> None:
    bad = ["{", '{"text": "Ada"}', '{"text": 3, "triples": []}']
    for name in ("train", "dev"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join([GOOD, *bad * 5]))
    with pytest.raises(MalformedLinesError) as raised:
        load_corpus(str(tmp_path))
    said = str(raised.value).splitlines()
    assert len(said) == 21
    assert said[2].endswith("train.jsonl, line 4: the record: 'text' must be a string, got 3")
    assert "dev.jsonl, line 6: " in said[19]
    assert said[20] == "and 10 more malformed lines"
    assert len(raised.value.faults) == 30
    with pytest.raises(MalformedLinesError, match=r"line 16: [^\n]*$"):
        read_jsonl(tmp_path / "dev.jsonl")


def test_several_occurrences_in_own_data_are_placed_as_asked_and_noted(tmp_path: Path) -> None:
    triple = {"subject": "Bo", "relation": "met", "object": "Ada"}
    lines = [{"text": "Bo met Bob, and Bo met Ada", "triples": [triple]}] * 2
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(MalformedLinesError, match=r"line 1: .*'Bo' occurs 2 times.*\n.*line 2: "):
        load_corpus(str(tmp_path))
    starts = {}
    for occurrence in ("first", "nearest"):
        corpus = load_corpus(str(tmp_path), occurrence=occurrence)
        starts[occurrence] = corpus.train[0].triples[0].subject.start
        assert corpus.notes == {"train: entity that occurs several times": 2}
    assert starts == {"first": 0, "nearest": 16}


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_empty_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"a.jsonl: the file holds no examples"):
        read_jsonl(path)


def fact(relation: str) -> dict[str, object]:
    triple = {"subject": "Ada", "relation": relation, "object": "Notes"}
    return {"text": "Ada wrote Notes", "triples": [triple, triple]}


def write_split(folder: Path, name: str, relation: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.jsonl").write_text(json.dumps(fact(relation)))


def test_own_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    write_split(folder, "train", "wrote")
    corpus = load_corpus(str(folder))
    assert (corpus.name, corpus.relations, corpus.match) == ("mine", ("wrote",), "exact")
    assert list(corpus.splits()) == ["train"]
    write_split(folder, "test", "wrote")
    corpus = load_corpus(str(folder))
    assert list(corpus.splits()) == ["train", "test"]
    assert corpus.dropped == {"train: triple repeated": 1, "test: triple repeated": 1}
    expected = hashlib.sha256((folder / "train.jsonl").read_bytes()).hexdigest()
    assert corpus.files["train.jsonl"] == expected


def test_own_file(tmp_path: Path) -> None:
    write_split(tmp_path, "a", "wrote")
    corpus = load_corpus(str(tmp_path / "a.jsonl"))
    assert (corpus.name, len(corpus.train), corpus.dev) == ("a", 1, ())


@pytest.mark.parametrize("name", ["own", "webnlg"])
def test_relations_that_train_lacks_are_noted(tmp_path: Path, name: str) -> None:
    """One rule for a reader's own data and for published corpora."""
    if name == "own":
        for split, relation in (("train", "wrote"), ("dev", "wrot"), ("test", "wrote")):
            write_split(tmp_path, split, relation)
        corpus = load_corpus(str(tmp_path))
    else:
        corpus = load_corpus(f"webnlg={miniature(tmp_path, 'webnlg')}")
    trained = {t.relation for example in corpus.train for t in example.triples}
    unseen = [t for example in corpus.dev for t in example.triples if t.relation not in trained]
    assert len(unseen) == 1
    assert unseen[0].relation in corpus.relations
    assert corpus.notes["dev: triple of a relation that train has not"] == 1


def test_unknown_relations_are_named() -> None:
    example = Example("1", "Ada wrote", (Triple(Span(0, 3), "wrot", Span(4, 9)),))
    with pytest.raises(ValueError, match="data, example '1': unknown relation 'wrot'; known are w"):
        check_relations([example], ["wrote"])


def test_a_corpus_without_triples_is_named(tmp_path: Path) -> None:
    write_split(tmp_path, "dev", "wrote")
    (tmp_path / "train.jsonl").write_text(f"{GOOD}\n{GOOD}")
    corpus = load_corpus(str(tmp_path))
    with pytest.raises(ValueError, match="none of the 2 training sentences has a triple, so there"):
        trained_relations(corpus)


def test_one_split_is_read_without_the_others(tmp_path: Path) -> None:
    write_split(tmp_path, "test", "wrote")
    corpus = load_corpus(str(tmp_path), split="test")
    assert (list(corpus.splits()), list(corpus.files)) == (["test"], ["test.jsonl"])
    assert not corpus.notes
    for split in ("test", "blind"):
        corpus = load_corpus(str(tmp_path / "test.jsonl"), split=split)
        assert list(corpus.splits()) == [split]
    with pytest.raises(ValueError, match=r"has no split 'dev'; it has test$"):
        load_corpus(str(tmp_path), split="dev")
    with pytest.raises(ValueError, match="has no split 'tset'; it has test"):
        load_corpus(str(tmp_path), split="tset")
    folder = miniature(tmp_path / "c", "conll04")
    (folder / "train.txt").unlink()
    assert list(load_corpus(f"conll04={folder}", split="dev").splits()) == ["dev"]
    with pytest.raises(ValueError, match="conll04 has no split 'tset'; it has train, dev, test"):
        load_corpus(f"conll04={folder}", split="tset")
    assert load_corpus("synthetic", split="test") == load_corpus("synthetic")


def test_own_folder_needs_train(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file '.*train.jsonl' to train on"):
        load_corpus(str(tmp_path))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            "webnglg",
            FileNotFoundError,
            r"^no such .*: 'webnglg', nor corpus .*: synthetic,.*conll04",
        ),
        ("", FileNotFoundError, r"^no such file or folder: '', nor corpus"),
        ("webnglg=/tmp", ValueError, r"no corpus is called 'webnglg'; NAME=FOLDER is for conll04"),
        ("/no/such/folder", FileNotFoundError, r"^no such file or folder: '/no/such/folder'$"),
        ("dta/", FileNotFoundError, r"^no such file or folder: 'dta/'$"),
        ("train.jsonl", FileNotFoundError, r"^no such file or folder: 'train.jsonl'$"),
        (os.devnull, ValueError, r"data must be a file or a folder, got .*, which is neither"),
    ],
)
def test_unknown_data_is_named(data: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_corpus(data)


def test_synthetic_by_name() -> None:
    assert load_corpus("synthetic").sha256 == load_corpus("synthetic:0").sha256
    assert load_corpus("synthetic:7").name == "synthetic:7"
    with pytest.raises(ValueError, match=r"seed .* must be a whole number, got 'x'"):
        load_corpus("synthetic:x")


# Published corpora, in miniature


def miniature(folder: Path, name: str) -> Path:
    """Write files of our own under the names and in the format of a corpus."""
    folder.mkdir(exist_ok=True)
    for split, source in KNOWN[name].splits.items():
        if name == "conll04":
            data = CONLL04.encode()
        elif name == "duie":
            data = zipped(train_data=DUIE, dev_data=DUIE)
        else:
            records = LISTS[:1] if split == "train" else LISTS
            data = json.dumps(records).encode()
        (folder / source.file).write_bytes(data)
    return folder


@pytest.mark.parametrize("name", KNOWN)
def test_local_folder(
    name: str, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = miniature(tmp_path / "local", name)
    corpus = load_corpus(f"{name}={folder}")
    said = capsys.readouterr().err
    assert f"Licence of the data: {KNOWN[name].licence}" in said
    assert "not the pinned file: expected " in said
    assert corpus.licence == KNOWN[name].licence
    assert corpus.match == KNOWN[name].match
    assert set(corpus.splits()) == set(KNOWN[name].splits)
    files = {source.file for source in KNOWN[name].splits.values()}
    assert set(corpus.files) == files
    assert {key for key in corpus.notes if "not the pinned" in key} == {
        f"{file}: not the pinned file" for file in files
    }
    again = load_corpus(f"{name}={folder}")
    assert again == corpus
    assert "Licence" not in capsys.readouterr().err  # once per machine
    assert (cache / f"{name}.licence-shown").exists()


def test_counts_are_named_by_split(tmp_path: Path) -> None:
    corpus = load_corpus(f"webnlg={miniature(tmp_path / 'w', 'webnlg')}")
    assert corpus.dropped == {
        "train: triple repeated": 1,
        **{f"{s}: triple repeated": 1 for s in ("dev", "test")},
        **{f"{s}: entity not in the text": 1 for s in ("dev", "test")},
    }
    assert corpus.notes["dev: triple of a relation that train has not"] == 1
    assert corpus.relations == ("ground", "hosts", "leader")


def test_a_pinned_file_passes_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = miniature(tmp_path / "c", "conll04")
    digest = hashlib.sha256(CONLL04.encode()).hexdigest()
    for source in KNOWN["conll04"].splits.values():
        monkeypatch.setitem(
            KNOWN["conll04"].splits,
            source.file.removesuffix(".txt"),
            Source(source.file, f"sha256:{digest}"),
        )
    corpus = load_corpus(f"conll04={folder}")
    assert "pinned" not in capsys.readouterr().err
    assert not any("pinned" in note for note in corpus.notes)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="conll04: there is no folder '/no/such'"):
        load_corpus("conll04=/no/such")
    folder = miniature(tmp_path / "c", "conll04")
    (folder / "dev.txt").write_text("")
    with pytest.raises(ValueError, match=r"dev.txt: the file holds no examples"):
        load_corpus(f"conll04={folder}")
    (folder / "dev.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"conll04: there is no file '.*dev.txt'"):
        load_corpus(f"conll04={folder}")


def test_a_folder_here_comes_before_the_corpus_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    miniature(tmp_path / "conll04", "conll04")
    assert load_corpus("conll04").train[0].id == "17"
    assert "conll04: what stands here under this name is read" in capsys.readouterr().err
    for name in ("webnlg", "synthetic"):
        write_split(tmp_path / name, "train", "wrote")
        corpus = load_corpus(name)
        assert (corpus.name, corpus.relations) == (name, ("wrote",))
        assert f"{name}: what stands here" in capsys.readouterr().err


def test_no_download_without_registration() -> None:
    with pytest.raises(ValueError, match=r"duie cannot be downloaded: .* as duie=FOLDER"):
        load_corpus("duie")


def serve(
    monkeypatch: pytest.MonkeyPatch, folder: Path, asked: list[tuple[str, str | None]]
) -> None:
    """Let downloads come from a folder."""

    def retrieve(url: str, known_hash: str | None, path: Path, fname: str) -> str:
        asked.append((url, known_hash))
        target = Path(path) / fname
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((folder / fname).read_bytes())
        return str(target)

    monkeypatch.setattr(pooch, "retrieve", retrieve)


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    folder = miniature(tmp_path / "n", "nyt")
    for split, source in KNOWN["nyt"].splits.items():
        kind = source.checksum.partition(":")[0]
        right = known.checksum((folder / source.file).read_bytes(), kind)
        monkeypatch.setitem(KNOWN["nyt"].splits, split, Source(source.file, right))
    asked: list[tuple[str, str | None]] = []
    serve(monkeypatch, folder, asked)
    corpus = load_corpus("nyt")
    assert [len(examples) for examples in corpus.splits().values()] == [1, 3, 3]
    commit = "8bbaf340472d232f09a0b8004457b712e1ff1a66"
    base = f"https://raw.githubusercontent.com/hy-struggle/PRGC/{commit}/data/NYT/"
    assert [url for url, _ in asked] == [
        f"{base}{name}_triples.json" for name in ("train", "val", "test")
    ]
    # pooch checks sha256 itself; the git checksum is ours to check.
    assert asked[0][1] is None
    assert asked[1][1] == KNOWN["nyt"].splits["dev"].checksum


def test_a_download_with_another_checksum_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    serve(monkeypatch, miniature(tmp_path / "n", "nyt"), [])
    with pytest.raises(ValueError, match=r"expected git-blob:1146.*, got git-blob:.* is removed"):
        load_corpus("nyt")
    assert not (cache / "nyt" / "train_triples.json").exists()


def test_a_failed_download_tells_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def retrieve(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    message = r"conll04: could not download .*train.txt \(no route\).* as conll04=FOLDER"
    with pytest.raises(OSError, match=message):
        load_corpus("conll04")


def test_git_checksum_is_the_one_of_git() -> None:
    # What `git hash-object` prints for a file that holds "hello\n".
    assert known.checksum(b"hello\n", "git-blob") == (
        "git-blob:ce013625030ba8dba906f756967f9e9ca394464a"
    )


def test_every_file_is_pinned() -> None:
    for name, corpus in KNOWN.items():
        assert corpus.url or name == "duie"
        for source in corpus.splits.values():
            kind, _, digest = source.checksum.partition(":")
            assert len(digest) == {"sha256": 64, "git-blob": 40}[kind]


def test_a_licence_that_cannot_be_remembered_is_said_again(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("a file where a folder should be")
    known.say_licence("x", "free")
    known.say_licence("x", "free")
    assert capsys.readouterr().err.count("Licence of the data: free") == 2


def test_loading_is_quick(tmp_path: Path) -> None:
    """As many sentences as WebNLG, in less than its two seconds."""
    folder = miniature(tmp_path / "w", "webnlg")
    (folder / "train_triples.json").write_text(json.dumps(LISTS * 1700))
    start = time.process_time()
    corpus = load_corpus(f"webnlg={folder}")
    assert len(corpus.train) == 5100
    # Coverage, which looks at every line, makes it about four times as slow.
    assert time.process_time() - start < (2 if sys.gettrace() is None else 8)


def test_records_are_the_documented_format() -> None:
    example = Example("1", "Ada wrote Notes", (Triple(Span(0, 3), "wrote", Span(10, 15)),))
    assert example_to_json(example) == {
        "id": "1",
        "text": "Ada wrote Notes",
        "triples": [
            {
                "subject": {"text": "Ada", "start": 0, "end": 3},
                "relation": "wrote",
                "object": {"text": "Notes", "start": 10, "end": 15},
            }
        ],
    }


def test_counters_hold_no_zeros(tmp_path: Path) -> None:
    corpus = load_corpus(f"conll04={miniature(tmp_path / 'c', 'conll04')}")
    assert corpus.dropped == Counter()
    assert all(corpus.notes.values())


# The page for readers

PAGE = (Path(__file__).parents[2] / "book" / "howto_data.md").read_text(encoding="utf-8")


def test_the_page_shows_a_line_that_loads(tmp_path: Path) -> None:
    line = next(line for line in PAGE.splitlines() if line.startswith('{"text"'))
    path = tmp_path / "mine.jsonl"
    path.write_text(line, encoding="utf-8")
    assert read_jsonl(path)[0].strings() == (("Ada Lovelace", "wrote", "Notes"),)


def test_the_page_shows_the_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bad = '{"text": "a", "triples": [{"subject": "Eve", "relation": "r", "object": "a"}]}'
    Path("mine.jsonl").write_text(f"{GOOD}\n" * 6 + bad)
    with pytest.raises(ValueError, match=r"mine.jsonl, line 7") as raised:
        read_jsonl("mine.jsonl")
    assert f"\n{raised.value}\n" in PAGE


def test_the_page_lists_every_corpus_and_dial() -> None:
    first_table = PAGE.split("## Your own data")[0]
    assert all(f"`{name}`" in first_table or f"`{name}=FOLDER`" in first_table for name in KNOWN)
    dials = dict(re.findall(r"^\| `(\w+)` \| (0\.\d\d) \|", PAGE, flags=re.MULTILINE))
    parameters = inspect.signature(synthetic_corpus).parameters
    assert {name: float(value) for name, value in dials.items()} == {
        name: p.default for name, p in parameters.items() if isinstance(p.default, float)
    }
    sizes = ", ".join(str(parameters[name].default) for name in ("train", "dev", "test"))
    assert f"| {sizes} |" in PAGE
    assert len(load_corpus("synthetic").relations) == 14
    assert "in fourteen relations" in PAGE


@pytest.mark.parametrize("own", [True, False])
def test_entities_are_trimmed_whatever_the_corpus(tmp_path, own):
    """In a reader's own file by offsets, in a published one by its words."""
    if own:
        record = {
            "text": "Ada wrote Notes. ",
            "triples": [
                {
                    "subject": {"start": 0, "end": 4},
                    "relation": "wrote",
                    "object": {"start": 10, "end": 15},
                },
                {
                    "subject": {"start": 16, "end": 17},
                    "relation": "wrote",
                    "object": {"start": 10, "end": 15},
                },
            ],
        }
        (tmp_path / "train.jsonl").write_text(f"\n{json.dumps(record)}\n")
        corpus = load_corpus(str(tmp_path))
        source = f"{tmp_path / 'train.jsonl'}, line 2"
        assert corpus.dropped == {"train: entity of white space alone": 1}
    else:
        spo = {"subject": "Ada ", "predicate": "wrote", "object": "Notes"}
        line = json.dumps({"text": "Ada wrote Notes. ", "spo_list": [spo]})
        with zipfile.ZipFile(tmp_path / "spo.zip", "w") as archive:
            for split in KNOWN["duie"].splits.values():
                archive.writestr(split.member, f"{line}\n")
        corpus = load_corpus(f"duie={tmp_path}")
        source = f"{tmp_path / 'spo.zip'}, line 1"
        assert not corpus.dropped
    assert corpus.notes["train: entity trimmed of white space at its ends"] == 1
    assert corpus.train[0].strings() == (("Ada", "wrote", "Notes"),)
    assert corpus.train[0].source == source
