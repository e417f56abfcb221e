"""Run records: what was trained on what, how, where, and what came of it, as one JSON file.

Every training run ends with a `RunRecord`. The book's tables and curves of real data are read
from such files, so each figure in them can be traced to a command and a commit.

The file (``schema`` 1) has these fields, all present in every record:

``schema``
    1.
``command``
    The command line, or the call for a run started from Python.
``code``
    ``{"version", "commit", "modified", "measures": {path: digest}}``, see `lib.records`.
``model``
    ``{"class", "parameters", "trainable", "options"}``; ``options`` holds the encoder and what
    else the model was created with.
``data``
    ``{"name", "licence", "match", "sha256", "relations": [names], "sentences": {split: count},
    "triples": {split: count}, "dropped": {reason: count}, "notes": {kind: count}, "files":
    {name: sha256}, "unaligned": {split: {reason: count}}, "dev_from_train": count}``. The first
    and ``dropped``, ``notes``, ``files`` are those of `lib.extraction.triples.Corpus`.
    ``unaligned`` is what cannot be told to the model (it counts as missed in every score), and how
    many long texts are read in how many windows.
    ``dev_from_train`` is the number of training sentences held out because the corpus has no dev
    split, else 0.
``settings``
    The fields of `lib.extraction.training.Settings`, among them ``seed``.
``hardware``
    ``{"cpu", "cores", "threads", "device": "CPU" or the GPU's name, "processes", "precision"}``.
``versions``
    ``{"python", "torch", "transformers", "accelerate"}``.
``wall_seconds``
    Time spent in epochs, interrupted ones left out.
``epochs``
    One ``{"epoch", "train_loss", "seconds", "dev": {"precision", "recall", "f1"}}`` per epoch,
    counted from 1.
``best_epoch``
    The epoch whose weights were kept: the one with the highest dev F1; of several, the one with
    the least training loss.
``scores``
    ``{split: Scores.to_dict()}`` of the kept weights: "dev", "test" where there is one, and every
    further test set of the corpus.

There is no host name and no absolute path in it: `portable` shortens those.
"""

import io
import json
import os
import platform
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.extraction.jsontext import parse_json

if TYPE_CHECKING:
    from typing_extensions import Buffer  # collections.abc has it from Python 3.12

__all__ = [
    "SCHEMA",
    "RunRecord",
    "hardware",
    "portable",
    "read_record",
    "remove_partials",
    "versions",
    "write_atomically",
    "write_record",
]

SCHEMA = 1
"""The version of the record's layout. It changes whenever a reader would have to."""

_PARTIAL = ".partial"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One training run. The fields are those of the file; see the head of this module.

    Examples
    --------
    >>> record = RunRecord(
    ...     command="python -m lib.gplinker train", code={}, model={}, data={}, settings={},
    ...     hardware={}, versions={}, wall_seconds=2.0, best_epoch=1,
    ...     epochs=[{"epoch": 1, "train_loss": 0.5, "seconds": 2.0,
    ...              "dev": {"precision": 1.0, "recall": 0.5, "f1": 0.6667}}],
    ...     scores={"dev": {"micro": {"f1": 0.6667}}})
    >>> record.curve("f1")
    [0.6667]
    """

    command: str
    code: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    settings: dict[str, Any]
    hardware: dict[str, Any]
    versions: dict[str, Any]
    wall_seconds: float
    epochs: list[dict[str, Any]]
    best_epoch: int
    scores: dict[str, dict[str, Any]]
    schema: int = SCHEMA

    def curve(self, name: str) -> list[float]:
        """Return one number per epoch: "train_loss", "seconds", or a dev score such as "f1"."""
        return [float(e["dev"][name] if name in e["dev"] else e[name]) for e in self.epochs]


class _Disk(io.BufferedWriter):
    """A file that remembers why a write failed.

    ``torch.save`` answers a full disk in the middle of a tensor with a RuntimeError about file
    positions; the reason would be lost.
    """

    failure: OSError | None = None

    def write(self, data: "Buffer", /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


def write_atomically(path: Path, write: Callable[[io.BufferedWriter], object]) -> None:
    """Write a file that is either there whole or not there, whatever happens in between.

    The bytes go to a hidden file beside `path`, are forced to the disk, and take the place of
    `path` by one rename. A full disk, a kill or a power cut leaves the former file as it was.

    A symbolic link stays one: the file that it points to is replaced. What is no regular file (a
    pipe, a device) cannot be replaced, nor can a file that is named by its descriptor, as
    ``/dev/stdout`` is: they are written to as they stand.

    Parameters
    ----------
    path : Path
        The file to write or replace. Its folder must exist.
    write : callable
        Gets the open binary file and writes all of it.

    Raises
    ------
    OSError
        As raised by `write` or by the disk; the partial file is removed first.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_atomically(Path(folder) / "note", lambda file: file.write(b"whole"))
    ...     (Path(folder) / "note").read_text()
    'whole'
    """
    straight = _open_straight(path)
    if straight is not None:
        with _Disk(straight) as file:
            write(file)
        return
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        with _Disk(io.FileIO(partial, "w")) as file:
            try:
                write(file)
            except Exception as error:
                raise (file.failure or error) from None
            file.flush()
            os.fsync(file.fileno())  # on the disk, not in a cache, before it takes its place
        with suppress(OSError):  # a file that only its owner may read stays so
            partial.chmod(stat.S_IMODE(path.stat().st_mode))
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    # The rename itself lasts only once the folder is on the disk. Windows cannot open folders.
    with suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _open_straight(path: Path) -> io.FileIO | None:
    """Open what must be written to as it stands; return None for a file that can be replaced."""
    descriptor = _descriptor(path)
    if descriptor is not None:
        return io.FileIO(os.dup(descriptor), "w")
    if not path.exists() or path.is_file():
        return None
    return io.FileIO(os.open(path, os.O_WRONLY), "w")


def _descriptor(path: Path) -> int | None:
    """Return the open file of this process that a path names, as ``/dev/stdout`` and links do."""
    with suppress(OSError):
        for _ in range(40):  # the most links that Linux follows
            folder = os.path.realpath(path.parent)
            if folder in ("/dev/fd", f"/proc/{os.getpid()}/fd") and path.name.isdecimal():
                return int(path.name)
            path = path.parent / os.readlink(path)  # what is no link ends the search
    return None


def remove_partials(path: Path) -> None:
    """Remove what a `write_atomically` of this file left beside it when it was killed.

    Only for a file that no other process can be writing now.
    """
    path = Path(os.path.realpath(path))
    pattern = re.compile(rf"\.{re.escape(path.name)}\.\d+{re.escape(_PARTIAL)}")
    for partial in path.parent.iterdir():
        if pattern.fullmatch(partial.name):
            partial.unlink(missing_ok=True)


def portable(argument: str) -> str:
    """Shorten an absolute path to its last part, so that a record names no machine.

    Parameters
    ----------
    argument : str
        A word of a command line: a path, ``NAME=PATH`` or ``--option=PATH`` is recognised.

    Examples
    --------
    >>> portable("conll04=/home/ada/data/conll04"), portable("runs/first"), portable("/")
    ('conll04=conll04', 'runs/first', '')
    """
    name, equals, value = argument.rpartition("=")
    if re.match(r"[/~\\]|[A-Za-z]:[/\\]", value):
        value = re.split(r"[/\\]", value.rstrip("/\\"))[-1]
    return name + equals + value


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of the packages that a run's numbers depend on."""
    names = ("torch", "transformers", "accelerate")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def hardware(*, device: str, processes: int, precision: str) -> dict[str, Any]:
    """Describe the machine by its parts, never by its name.

    Parameters
    ----------
    device : str
        The kind of device that computed, such as "cpu" or "cuda".
    processes : int
        How many processes trained together.
    precision : str
        "no" for float32, "bf16" for bfloat16 autocast.
    """
    import torch

    return {
        "cpu": _cpu_name(Path("/proc/cpuinfo")),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device.upper(),
        "processes": processes,
        "precision": {"no": "float32"}.get(precision, precision),
    }


def _cpu_name(cpuinfo: Path) -> str:
    """Return the processor's model name; Linux tells it only in /proc."""
    with suppress(OSError):
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def write_record(path: Path, record: RunRecord) -> None:
    """Write a record as indented JSON, whole or not at all."""
    text = json.dumps({"schema": record.schema, **asdict(record)}, indent=1, ensure_ascii=False)
    write_atomically(path, lambda file: file.write(text.encode() + b"\n"))


def read_record(path: Path | str) -> RunRecord:
    """Read a record and check that every field is there and of its kind.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not JSON, of another schema, or a field is missing, unknown or of another type;
        the message names the file and the field.
    """
    path = Path(path)
    try:
        raw = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(raw, Mapping):
        raise ValueError(f"{path}: expected a JSON object, got {type(raw).__name__}")
    if raw.get("schema") != SCHEMA:
        raise ValueError(f"{path}: expected schema {SCHEMA}, got {raw.get('schema')!r}")
    expected = [field.name for field in fields(RunRecord)]
    if missing := [name for name in expected if name not in raw]:
        raise ValueError(f"{path}: field {missing[0]!r} is missing")
    if unknown := [name for name in raw if name not in expected]:
        raise ValueError(f"{path}: unknown field {unknown[0]!r}")
    record = RunRecord(**raw)
    _check_types(path, record)
    return record


def _check_types(path: Path, record: RunRecord) -> None:
    kinds: dict[str, type | tuple[type, ...]] = {
        "command": str,
        "wall_seconds": (int, float),
        "best_epoch": int,
        "epochs": list,
    }
    for field in fields(record):
        kind = kinds.get(field.name, int if field.name == "schema" else dict)
        value = getattr(record, field.name)
        if not isinstance(value, kind):
            raise ValueError(
                f"{path}: field {field.name!r} must be {_kind_name(kind)}, "
                f"got {type(value).__name__}"
            )
    for number, epoch in enumerate(record.epochs, 1):
        if not (isinstance(epoch, Mapping) and epoch.get("epoch") == number):
            raise ValueError(f"{path}: field 'epochs' does not count from 1: entry {number}")
        if missing := [k for k in ("train_loss", "seconds", "dev") if k not in epoch]:
            raise ValueError(f"{path}: epoch {number} has no {missing[0]!r}")
    if not 1 <= record.best_epoch <= len(record.epochs):
        raise ValueError(
            f"{path}: field 'best_epoch' must lie in 1..{len(record.epochs)}, "
            f"got {record.best_epoch}"
        )


def _kind_name(kind: type | Sequence[type]) -> str:
    return kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
