"""The published corpora that can be loaded by name: where they lie, and how to be sure of them.

Each file is pinned to a commit of a public repository and to a checksum. Two files of NYT are
pinned by the checksum under which git stores them, a sha1 of the length and the content; all
others by their sha256.
"""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lib._extras import needs
from lib.extraction.corpora.published import (
    Reader,
    read_conll04,
    read_duie,
    read_triple_lists,
)

__all__ = ["KNOWN", "Known", "Source", "cache_folder", "differs", "fetch", "say_licence"]

CONLL04_URL = (
    "https://raw.githubusercontent.com/bekou/multihead_joint_entity_relation_extraction/"
    "7f40a0f7c1892821591358518c542139e88f693e/data/CoNLL04/"
)
PRGC_URL = (
    "https://raw.githubusercontent.com/hy-struggle/PRGC/"
    "8bbaf340472d232f09a0b8004457b712e1ff1a66/data/"
)


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a corpus: its name and its checksum, ``"sha256:…"`` or ``"git-blob:…"``.

    ``member`` names the file inside, where the file is a zip archive.
    """

    file: str
    checksum: str
    member: str = ""


@dataclass(frozen=True, slots=True)
class Known:
    """A published corpus.

    ``url`` is the folder of the files, empty where the licence asks for a registration and no
    download is offered.
    """

    licence: str
    reader: Reader
    match: Literal["exact", "text", "partial"]
    url: str
    splits: dict[str, Source]


NYT = (
    "NYT: text of The New York Times, licensed by the Linguistic Data Consortium (LDC2008T19), "
    "annotated by Riedel et al. (2010). For research under that licence."
)
WEBNLG = "WebNLG (Gardent et al. 2017): CC BY-NC-SA 4.0, not for commercial use."


def _triple_lists(
    folder: str, licence: str, match: Literal["text", "partial"], checksums: dict[str, str]
) -> Known:
    """Describe a corpus in the format of `read_triple_lists`."""
    names = {"train": "train", "dev": "val", "test": "test"}
    splits = {
        split: Source(f"{name}_triples.json", checksums[split]) for split, name in names.items()
    }
    return Known(licence, read_triple_lists, match, f"{PRGC_URL}{folder}/", splits)


KNOWN: dict[str, Known] = {
    "conll04": Known(
        licence=(
            "CoNLL04 (Roth and Yih 2004): newswire text, no licence stated. "
            "For local use only; do not pass it on."
        ),
        reader=read_conll04,
        match="exact",
        url=CONLL04_URL,
        splits={
            "train": Source(
                "train.txt",
                "sha256:0f560fdaa150133fc4843f72e2a8e707e7f74f06a3a3095d4b9921f8d0ce3614",
            ),
            "dev": Source(
                "dev.txt",
                "sha256:99e854fd2a7d19247230c3ed8c304f79022380c9d21b58f25e7ffc5fe3884e2d",
            ),
            "test": Source(
                "test.txt",
                "sha256:d172819deff771c059c9c6688d67c3ff2bdaa25cf71ec56b1f7e8c6705f96700",
            ),
        },
    ),
    "webnlg": _triple_lists(
        "WebNLG",
        WEBNLG,
        "text",
        {
            "train": "sha256:8c3dc0ac35f335753899e270b6b1c410a1305239bf27a2a9af99587c9a3966d5",
            "dev": "sha256:a79cd7cd424e919cc7d483eccf1a62f7aeab158e74ee3ceb7d8f11aed88a4add",
            "test": "sha256:d343f72899e7d92137499b9675768d68c736d02fa72c295c782ee5eb0361bf1d",
        },
    ),
    "webnlg_star": _triple_lists(
        "WebNLG-star",
        WEBNLG,
        "partial",
        {
            "train": "sha256:1e807587524c3aeb2ca3963c7b00e7e822ed21f9491a6dde2ce011c6cee84fe2",
            "dev": "sha256:4426b1720db34a4c66b08d21884225fd1cc5102801f08ad10a5828973afaeb94",
            "test": "sha256:cc0b6160fb7f0f51f987ff105105607f1ba3bef3c64f380a81a3e0587d3ead53",
        },
    ),
    "nyt": _triple_lists(
        "NYT",
        NYT,
        "text",
        {
            "train": "git-blob:1146fd8ac90cf3e284475d69efdfdf7e92e19efd",
            "dev": "sha256:0d0a64d4132620816826d2479623bc18c63b9cb723195cb1bdfe34e398f4b5a9",
            "test": "sha256:a23f08aa0c3a764ecbf6826be642538afdb1308818898391e61b791791af3615",
        },
    ),
    "nyt_star": _triple_lists(
        "NYT-star",
        NYT,
        "partial",
        {
            "train": "git-blob:fa19372b0fb2b433879dbae7e251d754f38bb6db",
            "dev": "sha256:7806f41df90238b43712943af4580ebd32c424027419b9f00d66399967e8127b",
            "test": "sha256:a5f84b8b84df0a8bbd9ef5c348f00901243a83a4c1b26c844bc4a93827b30de2",
        },
    ),
    "duie": Known(
        licence="DuIE 1.0 (Li et al. 2019): terms of Baidu, for research, after registration.",
        reader=read_duie,
        match="text",
        url="",
        splits={
            "train": Source(
                "spo.zip",
                "sha256:4c3d490d97ab0e1ccc34e44367c864956c097626a3659d7dbf3a559204659370",
                member="train_data.json",
            ),
            "dev": Source(
                "spo.zip",
                "sha256:4c3d490d97ab0e1ccc34e44367c864956c097626a3659d7dbf3a559204659370",
                member="dev_data.json",
            ),
        },
    ),
}


def cache_folder() -> Path:
    """Return the folder of this machine where downloads are kept."""
    with needs("extraction"):
        import pooch

    return Path(pooch.os_cache("softmax-to-gplinker"))


def checksum(data: bytes, kind: str) -> str:
    """Return ``"KIND:…"`` of a file's content, for the kinds ``sha256`` and ``git-blob``.

    Examples
    --------
    >>> checksum(b"", "git-blob")
    'git-blob:e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    if kind == "sha256":
        return f"sha256:{hashlib.sha256(data).hexdigest()}"
    blob = b"blob %d\0" % len(data) + data
    return f"git-blob:{hashlib.sha1(blob, usedforsecurity=False).hexdigest()}"


def differs(source: Source, data: bytes) -> str:
    """Return the checksum of `data` if it is not the pinned one, else an empty string."""
    found = checksum(data, source.checksum.partition(":")[0])
    return "" if found == source.checksum else found


def fetch(name: str, source: Source) -> Path:
    """Return the path of a pinned file, downloading it unless it lies in the cache.

    Raises
    ------
    ValueError
        If what arrives has another checksum than the pinned one.
    OSError
        If the file cannot be downloaded.
    """
    with needs("extraction"):
        import pooch

    folder = cache_folder() / name
    url = KNOWN[name].url + source.file
    # pooch knows no git checksums: it fetches such a file unchecked, and the check follows here.
    known = source.checksum if source.checksum.startswith("sha256:") else None
    try:
        path = Path(pooch.retrieve(url, known_hash=known, path=folder, fname=source.file))
    except OSError as error:
        raise OSError(
            f"{name}: could not download {url} ({error}). Give a folder that holds the files, "
            f"{', '.join(dict.fromkeys(s.file for s in KNOWN[name].splits.values()))}, as "
            f"{name}=FOLDER"
        ) from error
    found = differs(source, path.read_bytes())
    if found:
        path.unlink()
        raise ValueError(f"{url}: expected {source.checksum}, got {found}; the file is removed")
    return path


def say_licence(name: str, licence: str) -> None:
    """Print the licence of a corpus to stderr, the first time on this machine."""
    seen = cache_folder() / f"{name}.licence-shown"
    if seen.exists():
        return
    print(f"Licence of the data: {licence}", file=sys.stderr)
    try:
        seen.parent.mkdir(parents=True, exist_ok=True)
        seen.write_text(licence + "\n", encoding="utf-8")
    except OSError:
        pass  # A machine where nothing can be remembered is told again.
