"""Keep two processes from working in one place, also where one of them is killed."""

import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["InUseError", "hold"]

if sys.platform == "win32":
    import msvcrt

    _FAR = 2**30  # Windows locks bytes; one that no reader of the owner's name comes to

    def _lock(descriptor: int) -> None:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError from error
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


class InUseError(ValueError):
    """Another living process holds what this one needs. The message names it."""


@contextmanager
def hold(lock: Path, what: Path) -> Iterator[None]:
    """Hold a lock file, in which the owner's process, host and time stand.

    The operating system holds the lock and lets go of it when the process ends, however it ends:
    the file of a process that was killed stays, and is taken over. A living owner is never
    disturbed, on whatever machine or in whatever container it runs, as long as the file system
    passes locks on, as network file systems usually do.

    Parameters
    ----------
    lock : Path
        The file. Made, and removed in the end. Its folder must exist.
    what : Path
        What is held, for the message.

    Raises
    ------
    InUseError
        If another process, or this one, holds it. It is a ``ValueError``.
    OSError
        If the file cannot be made.

    Warns
    -----
    UserWarning
        If the file system has no locks; then nothing is held.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with hold(folder / ".lock", folder):
    ...     sorted(path.name for path in folder.iterdir())
    ['.lock']
    >>> list(folder.iterdir())
    []
    """
    descriptor = _take(lock, what)
    try:
        owner = {"process": os.getpid(), "host": platform.node(), "since": _now()}
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(owner).encode() + b"\n")
        yield
    finally:
        if sys.platform == "win32":  # there an open file cannot be removed
            os.close(descriptor)
            with suppress(OSError):
                lock.unlink()
        else:
            with suppress(OSError):
                lock.unlink()
            os.close(descriptor)


def _take(lock: Path, what: Path) -> int:
    """Return the locked file's descriptor."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(descriptor)
            # The former owner may have removed the file between the two lines above. Then the next
            # process would make another one, and both would hold a lock.
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        except BlockingIOError:
            owner = _owner(descriptor)
            os.close(descriptor)
            raise InUseError(f"{what} is in use by {owner}") from None
        except FileNotFoundError:
            pass
        except OSError as error:
            warnings.warn(
                f"{lock} cannot be locked ({error.strerror}): see to it that no second process "
                f"works in {what}",
                stacklevel=4,
            )
            return descriptor
        os.close(descriptor)


def _owner(descriptor: int) -> str:
    try:
        owner = json.loads(os.read(descriptor, 4096))
        return f"process {owner['process']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, LookupError, TypeError):  # it is just writing its name
        return "another process"


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z")
