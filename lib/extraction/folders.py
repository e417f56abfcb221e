"""Replace a whole folder so that a kill in the middle loses neither the old nor the new one."""

import os
from collections.abc import Callable
from pathlib import Path
from shutil import rmtree

from lib.extraction.locks import hold

__all__ = ["model_folder", "replace_folder", "standing_folder"]


def replace_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Write a folder beside the one it replaces, then let it take the place.

    Parameters
    ----------
    folder : Path
        Made or replaced; of a symbolic link, what it points to. Its parent must exist.
    write : callable
        Gets a new, empty folder and fills it. What it raises is raised here, and then `folder` is
        as it was.

    Raises
    ------
    FileNotFoundError
        If there is no folder to put it in.
    InUseError
        If another process is just replacing it. It is a ``ValueError``.
    """
    if not folder.parent.is_dir():
        raise FileNotFoundError(
            f"no such folder: {str(folder.parent)!r}, to put {folder.name!r} in"
        )
    folder, fresh, former = _places(folder)
    with hold(folder.parent / f".{folder.name}.lock", folder):
        # What is there now is of a write that was killed.
        if former.exists() and not folder.exists():
            former.rename(folder)
        rmtree(former, ignore_errors=True)
        rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        try:
            write(fresh)
        except BaseException:
            rmtree(fresh, ignore_errors=True)
            raise
        # Two renames, as one cannot replace a folder. Between them `folder` is missing and
        # `former` whole, for `standing_folder` to find.
        if folder.exists():
            folder.rename(former)
        fresh.rename(folder)
        rmtree(former, ignore_errors=True)


def standing_folder(folder: Path) -> Path:
    """Return where the whole folder stands: the former one, between the renames of a replacement.

    Nothing is changed, as the process that replaces it may be alive.
    """
    replaced, _, former = _places(folder)
    return former if former.exists() and not replaced.exists() else folder


def model_folder(folder: Path) -> Path:
    """Return where the model of a folder stands: of a training run, the best one."""
    best = standing_folder(folder / "best")
    return best if best.is_dir() else standing_folder(folder)


def _places(folder: Path) -> tuple[Path, Path, Path]:
    """Return the folder behind any links, and where its next and former version stand meanwhile."""
    folder = Path(os.path.realpath(folder))
    return folder, folder.parent / f".{folder.name}.new", folder.parent / f".{folder.name}.old"
