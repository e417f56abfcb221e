"""Run records: complete, portable, whole or not there."""

import errno
import io
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from lib import records as code_records
from lib.extraction import records
from lib.extraction.folders import replace_folder
from lib.extraction.records import (
    RunRecord,
    hardware,
    portable,
    read_record,
    remove_partials,
    versions,
    write_atomically,
    write_record,
)
from lib.records import code_version


def a_record(**changes):
    return RunRecord(
        **{
            "command": "python -m lib.gplinker train",
            "code": code_version(),
            "model": {"class": "Toy"},
            "data": {"name": "toy", "licence": "für alle"},
            "settings": {"seed": 0},
            "hardware": hardware(device="cpu", processes=1, precision="no"),
            "versions": versions(),
            "wall_seconds": 3.5,
            "epochs": [
                {
                    "epoch": number,
                    "train_loss": 1 / number,
                    "seconds": 1.75,
                    "dev": {"precision": 0.5, "recall": 0.25, "f1": 1 / 3},
                }
                for number in (1, 2)
            ],
            "best_epoch": 1,
            "scores": {"dev": {"f1": 1 / 3}},
            **changes,
        }
    )


def test_write_and_read_give_back_the_record(tmp_path):
    record = a_record()
    write_record(tmp_path / "record.json", record)
    assert read_record(tmp_path / "record.json") == record
    assert read_record(str(tmp_path / "record.json")).curve("train_loss") == [1.0, 0.5]
    assert record.curve("f1") == [1 / 3, 1 / 3]
    assert "für alle" in (tmp_path / "record.json").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.update(schema=2), "expected schema 1, got 2"),
        (lambda raw: raw.pop("schema"), "expected schema 1, got None"),
        (lambda raw: raw.pop("code"), "field 'code' is missing"),
        (lambda raw: raw.update(note=1), "unknown field 'note'"),
        (lambda raw: raw.update(data=[]), "field 'data' must be dict, got list"),
        (lambda raw: raw.update(command=3), "field 'command' must be str, got int"),
        (
            lambda raw: raw.update(wall_seconds="3"),
            "field 'wall_seconds' must be int or float, got str",
        ),
        (lambda raw: raw["epochs"].pop(0), "field 'epochs' does not count from 1: entry 1"),
        (lambda raw: raw["epochs"].append(3), "field 'epochs' does not count from 1: entry 3"),
        (lambda raw: raw["epochs"][1].pop("dev"), "epoch 2 has no 'dev'"),
        (lambda raw: raw.update(best_epoch=3), r"field 'best_epoch' must lie in 1\.\.2, got 3"),
    ],
)
def test_a_damaged_record_is_refused_with_file_and_field(tmp_path, change, message):
    path = tmp_path / "record.json"
    write_record(path, a_record())
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))
    with pytest.raises(ValueError, match=rf"record\.json: {message}"):
        read_record(path)


def test_what_is_no_record_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "record.json")
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(ValueError, match=r"record\.json: not valid JSON"):
        read_record(tmp_path / "record.json")
    (tmp_path / "record.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"record\.json: expected a JSON object, got list"):
        read_record(tmp_path / "record.json")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("synthetic", "synthetic"),
        ("runs/first", "runs/first"),
        ("../data", "../data"),
        ("/home/ada/runs/first", "first"),
        ("/home/ada/my data/", "my data"),
        ("conll04=/home/ada/conll04", "conll04=conll04"),
        ("--data=conll04=/home/ada/conll04", "--data=conll04=conll04"),
        ("~/models/minilm", "minilm"),
        (r"C:\Users\ada\minilm", "minilm"),
        (r"\\server\share\minilm", "minilm"),
        ("C:/Users/ada/minilm", "minilm"),
        ("3/4", "3/4"),
    ],
)
def test_no_absolute_path_survives(argument, expected):
    assert portable(argument) == expected


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, lambda file: file.write(b"former"))

    def half(file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match="No space left on device"):
        write_atomically(path, half)
    assert path.read_bytes() == b"former"
    assert list(tmp_path.iterdir()) == [path]
    write_atomically(path, lambda file: file.write(b"latter"))
    assert path.read_bytes() == b"latter"


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_file_is_replaced(tmp_path, there):
    target = tmp_path / "elsewhere" / "file"
    target.parent.mkdir()
    if there:
        target.write_bytes(b"former")
        target.chmod(0o600)
    for link, to in (("link", target), ("chain", tmp_path / "link")):
        (tmp_path / link).symlink_to(to)
        write_atomically(tmp_path / link, lambda file, link=link: file.write(link.encode()))
        assert (tmp_path / link).is_symlink()
        assert target.read_bytes() == link.encode()
    assert os.listdir(target.parent) == ["file"]
    if there:
        assert stat.S_IMODE(target.stat().st_mode) == 0o600


@pytest.mark.parametrize("link", [True, False])
def test_a_pipe_is_written_to_and_stays(tmp_path, link):
    """Nothing that is no regular file can be replaced; a device would be lost."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(pipe)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_atomically(tmp_path / "link" if link else pipe, lambda file: file.write(b"through"))
    reader.join(timeout=60)
    assert read == [b"through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_a_folder_is_refused_as_a_file(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_atomically(tmp_path / "folder", lambda file: None)


@pytest.mark.parametrize("name", ["/proc/self/fd/1", "link"])
def test_standard_output_by_name_is_added_to(tmp_path, name):
    """As in ``predict --output /dev/stdout >> file``: what the file held before stays."""
    program = (
        "import sys; from pathlib import Path\n"
        "from lib.extraction.records import write_atomically\n"
        "write_atomically(Path(sys.argv[1]), lambda file: file.write(b'new'))\n"
    )
    (tmp_path / "link").symlink_to("/proc/self/fd/1")
    if not Path("/proc/self/fd").exists():
        pytest.skip("this system names open files in another way")
    path = name if name.startswith("/") else str(tmp_path / name)
    kept = tmp_path / "kept"
    kept.write_bytes(b"former, ")
    with kept.open("ab") as out:
        subprocess.run([sys.executable, "-c", program, path], stdout=out, check=True)
    assert kept.read_bytes() == b"former, new"
    assert (tmp_path / "link").is_symlink()
    piped = subprocess.run([sys.executable, "-c", program, path], capture_output=True, check=True)
    assert piped.stdout == b"new"


def test_a_linked_folder_is_replaced_behind_its_link(tmp_path):
    real = tmp_path / "disk" / "model"
    real.mkdir(parents=True)
    (tmp_path / "link").symlink_to(real)
    for text in ("one", "two"):
        replace_folder(tmp_path / "link", lambda new, text=text: (new / "file").write_text(text))
        assert (tmp_path / "link").is_symlink()
        assert (real / "file").read_text() == text
    assert os.listdir(real.parent) == ["model"]


def test_a_full_disk_is_named_even_if_torch_hides_it(tmp_path, monkeypatch):
    """Where a tensor finds no room but the end of the file does, torch raises a RuntimeError."""

    disk = io.FileIO

    def write(self, data):
        if len(memoryview(data).cast("B")) > 10_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return disk.write(self, data)

    full = type("FullDisk", (disk,), {"write": write})
    monkeypatch.setattr(records.io, "FileIO", full)
    state = {f"w{k}": torch.zeros(50, 100) for k in range(20)}
    with pytest.raises(RuntimeError), io.BufferedWriter(full(tmp_path / "bare", "w")) as file:
        torch.save(state, file)
    (tmp_path / "bare").unlink()
    with pytest.raises(OSError, match="No space left on device"):
        write_atomically(tmp_path / "state.pt", lambda file: torch.save(state, file))
    assert list(tmp_path.iterdir()) == []


def test_bytes_are_on_the_disk_before_they_take_the_place(tmp_path, monkeypatch):
    """A power cut after the rename must not find an empty file: only the order can be tested."""
    happened = []
    sync, replace = os.fsync, os.replace

    def fsync(number):
        happened.append("sync folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "sync file")
        sync(number)

    def rename(source, target):
        happened.append(f"rename {Path(source).read_bytes()}")
        replace(source, target)

    monkeypatch.setattr(records.os, "fsync", fsync)
    monkeypatch.setattr(records.os, "replace", rename)
    write_atomically(tmp_path / "file", lambda file: file.write(b"all"))
    assert happened == ["sync file", "rename b'all'", "sync folder"]


def test_other_failures_of_the_writer_pass_through(tmp_path):
    def broken(file):
        raise KeyError("x")

    with pytest.raises(KeyError):
        write_atomically(tmp_path / "file", broken)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_leaves_the_former_file_and_a_partial_that_is_cleaned(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from lib.extraction.records import write_atomically\n"
        "def write(file):\n"
        "    file.write(b'half' * 5000); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "write_atomically(Path(sys.argv[1]), write)\n"
    )
    path = tmp_path / "file"
    path.write_bytes(b"former")
    killed = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert killed.returncode == -9
    assert path.read_bytes() == b"former"
    assert len(list(tmp_path.iterdir())) == 2
    other = tmp_path / ".file.txt.1.partial"
    other.touch()
    remove_partials(path)
    assert sorted(tmp_path.iterdir()) == [other, path]


def test_a_record_says_what_code_ran():
    version = code_version()
    assert set(version) == {"version", "commit", "modified", "measures"}
    assert version["version"] is not None
    assert version["commit"] is None or len(version["commit"]) == 40


def test_code_outside_a_repository_claims_no_commit(monkeypatch):
    def no_git(*args, **kwargs):
        raise subprocess.CalledProcessError(128, "git")

    monkeypatch.setattr(code_records.subprocess, "run", no_git)
    assert code_version()["commit"] is None
    assert code_version()["modified"] is None


def test_a_package_that_is_not_installed_has_no_version():
    assert records._version("no-such-package-anywhere") is None
    assert versions()["torch"].startswith("2.")


def test_hardware_names_parts_and_no_machine(tmp_path, monkeypatch):
    found = hardware(device="cpu", processes=2, precision="bf16")
    assert found["device"] == "CPU"
    assert found["processes"] == 2
    assert found["precision"] == "bf16"
    assert hardware(device="cpu", processes=1, precision="no")["precision"] == "float32"
    assert os.uname().nodename not in json.dumps(found)
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: Some CPU 3000\n")
    assert records._cpu_name(tmp_path / "cpuinfo") == "Some CPU 3000"
    (tmp_path / "cpuinfo").write_text("processor : 0\n")
    assert records._cpu_name(tmp_path / "cpuinfo")
    assert records._cpu_name(tmp_path / "absent") == records._cpu_name(tmp_path / "cpuinfo")


def test_the_gpu_is_named_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    assert hardware(device="cuda", processes=1, precision="bf16")["device"] == "Some GPU"
    assert hardware(device="cpu", processes=1, precision="no")["device"] == "CPU"  # not used


def test_committed_records_can_be_read():
    runs = (Path(__file__).parents[2] / "book" / "runs").glob("*.json")
    paths = [path for path in runs if "schema" in json.loads(path.read_text("utf-8"))]
    assert len(paths) >= 8  # those of experiments and benchmarks have other forms
    for path in paths:
        record = read_record(path)
        assert "/" not in record.data["name"]
        assert record.scores["dev"]["f1"] == max(record.curve("f1"))
