"""Build the book once more, in another folder and on another day: the site must be the same.

python -m tools.second_build            after make book

The commit is cloned into a new folder; the clock there is at most a day away, in a time zone that
has another date. What the checks of the equations found is taken over; the notebooks run again.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SITE = Path("_build/html")
RESULTS = Path("_build/ledger/results.json")

# 26 hours apart: whenever this runs, one of them has another date than here.
ZONES = {12: "Etc/GMT-12", -12: "Etc/GMT+12", 14: "Etc/GMT-14"}


def other_zone(now: datetime) -> str:
    """Return a time zone in which it is another day than at ``now``, by its name."""
    for hours, name in ZONES.items():
        if now.astimezone(timezone(timedelta(hours=hours))).date() != now.date():
            return name
    raise AssertionError(f"every zone has the date of {now}")


def build(folder: Path) -> Path:
    """Build the committed book in a new folder, and return its site."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    (folder / RESULTS).parent.mkdir(parents=True)
    shutil.copy(ROOT / RESULTS, folder / RESULTS)
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "TZ": other_zone(datetime.now().astimezone()),
    }
    program = Path(sys.executable).with_name("jupyter-book")
    command = [str(program), "build", ".", "-n", "-W", "--keep-going", "-q"]
    subprocess.run(command, cwd=folder, env=environment, check=True)
    return folder / SITE


def differences(one: Path, other: Path) -> Iterator[str]:
    """Yield a line for each file that only one of two folders has, or that differs."""
    sites = [
        {path.relative_to(site) for path in site.rglob("*") if path.is_file()}
        for site in (one, other)
    ]
    for name in sorted(sites[0] | sites[1]):
        if not all(name in site for site in sites):
            yield f"{name}: only in {one if name in sites[0] else other}"
        elif (one / name).read_bytes() != (other / name).read_bytes():
            yield f"{name}: differs"


def main() -> None:
    """Build and compare; fail on the first twenty differences."""
    with tempfile.TemporaryDirectory() as folder:
        found = list(differences(ROOT / SITE, build(Path(folder) / "another-folder")))
    print("\n".join(found[:20]))
    files = sum(path.is_file() for path in (ROOT / SITE).rglob("*"))
    print(f"two builds: {files} files, {len(found)} differ")
    if found or not files:
        sys.exit(1)


if __name__ == "__main__":
    main()
