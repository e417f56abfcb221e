"""Replace a whole folder so that a kill in the middle loses neither the old nor the new one."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from shutil import rmtree

__all__ = ["replace_folder", "restore_folder"]


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Write a folder beside the one it replaces, then let it take the place.

    Parameters
    ----------
    folder : Path
        Made or replaced; of a symbolic link, what it points to. Its parent must exist.
    write : callable
        Gets a new, empty folder and fills it. What it raises is raised here, and then `folder` is
        as it was.
    """
    restore_folder(folder)
    folder, fresh, former = _places(folder)
    rmtree(fresh, ignore_errors=True)  # of a write that was killed
    fresh.mkdir()
    try:
        write(fresh)
    except BaseException:
        rmtree(fresh, ignore_errors=True)
        raise
    # Two renames, as one cannot replace a folder. Between them `folder` is missing and `former`
    # whole; `restore_folder` ends what a kill there began.
    if folder.exists():
        folder.rename(former)
    fresh.rename(folder)
    rmtree(former, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """End a replacement that was killed: put the former folder back, or remove it."""
    folder, _, former = _places(folder)
    if not former.exists():
        return
    if folder.exists():
        rmtree(former, ignore_errors=True)
    else:
        with suppress(FileNotFoundError):  # another process was faster
            former.rename(folder)


def _places(folder: Path) -> tuple[Path, Path, Path]:
    """Return the folder behind any links, and where its next and former version stand meanwhile."""
    folder = Path(os.path.realpath(folder))
    return folder, folder.parent / f".{folder.name}.new", folder.parent / f".{folder.name}.old"
