"""Locks: one living owner, whoever dies and whenever."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lib.extraction import locks
from lib.extraction.locks import InUseError, hold

ROOT = Path(__file__).parents[2]

HOLDER = """
import sys, time
from pathlib import Path
from lib.extraction.locks import hold
with hold(Path(sys.argv[1]), Path("the folder")):
    print("held", flush=True)
    time.sleep(600)
"""


def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def held(tmp_path):
    """Return a lock and the process that holds it."""
    process = start(HOLDER, tmp_path / ".lock")
    assert process.stdout.readline() == "held\n"
    yield tmp_path / ".lock", process
    process.kill()
    process.communicate()


def test_a_second_process_is_told_who_holds_it(held):
    lock, process = held
    host = os.uname().nodename
    said = (
        rf"^the folder is in use by process {process.pid} on {host} since \d{{4}}-\d\d-\d\d \d\d:"
    )
    for _ in range(2):  # asking changes nothing
        with pytest.raises(InUseError, match=said), hold(lock, Path("the folder")):
            pass
    assert process.poll() is None


def test_a_dead_owner_s_lock_is_taken_over(held):
    lock, process = held
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads(lock.read_text())["process"] == process.pid
    with hold(lock, Path("the folder")):
        assert json.loads(lock.read_text())["process"] == os.getpid()
        with pytest.raises(InUseError, match=f"process {os.getpid()} "), hold(lock, Path("it")):
            pass
        assert lock.exists()
    assert not lock.exists()


def test_an_owner_that_fails_lets_go(tmp_path):
    with pytest.raises(KeyError), hold(tmp_path / ".lock", tmp_path):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_an_owner_without_a_name_is_another_process(held):
    lock, _ = held
    lock.write_text("{")
    with pytest.raises(InUseError, match="in use by another process"), hold(lock, Path("it")):
        pass


COUNTER = """
import sys
from pathlib import Path
from lib.extraction.locks import InUseError, hold
folder = Path(sys.argv[1])
count = folder / "count"
for _ in range(100):
    while True:
        try:
            with hold(folder / ".lock", folder):
                count.write_text(str(int(count.read_text()) + 1))
            break
        except InUseError:
            pass
"""


def test_of_many_processes_one_holds_it_at_a_time(tmp_path):
    """Each removes the file in the end, which must not give two of them a lock."""
    (tmp_path / "count").write_text("0")
    processes = [start(COUNTER, tmp_path) for _ in range(3)]
    for process in processes:
        process.communicate(timeout=300)
        assert process.returncode == 0
    assert (tmp_path / "count").read_text() == "300"
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_without_locks_the_work_goes_on_with_a_warning(tmp_path, monkeypatch):
    def none(descriptor):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks, "_lock", none)
    with (
        pytest.warns(UserWarning, match="cannot be locked .*: see to it that no second process"),
        hold(tmp_path / ".lock", tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
