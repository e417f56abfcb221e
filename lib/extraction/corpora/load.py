"""`load_corpus`: from the word a reader types to the corpus."""

import hashlib
import sys
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from lib.extraction.corpora.jsonl import MalformedLinesError, Reading, read_counted
from lib.extraction.corpora.known import KNOWN, differs, fetch, say_licence
from lib.extraction.corpora.published import unzip
from lib.extraction.places import Occurrence
from lib.extraction.synthetic import synthetic_corpus
from lib.extraction.triples import Corpus, Example, digest, trim_entities

__all__ = ["check_relations", "describe_unknown", "load_corpus", "trained_relations"]

SPLITS = ("train", "dev", "test")

UNTRAINED = "triple of a relation that train has not"

OWN_LICENCE = "The reader's own data."


def load_corpus(
    data: str, *, occurrence: Occurrence = "refuse", split: str | None = None
) -> Corpus:
    """Load a corpus.

    Parameters
    ----------
    data : str
        One of

        - ``"synthetic"`` or ``"synthetic:SEED"``: generated, see
          `lib.extraction.synthetic.synthetic_corpus`;
        - ``"conll04"``, ``"webnlg"``, ``"webnlg_star"``, ``"nyt"``, ``"nyt_star"``: downloaded
          once, with checksum, and kept in the cache folder of the machine;
        - one of these names or ``"duie"``, with a folder that holds the files:
          ``"conll04=FOLDER"``. Files that differ from the pinned ones are read all the same;
          this is said on stderr and noted in ``notes``;
        - a folder with ``train.jsonl`` and, if wanted, ``dev.jsonl`` and ``test.jsonl``, or a
          single ``.jsonl`` file, which becomes ``train``; see `read_jsonl`.

        A folder or file of the name of a corpus comes before that corpus.
    occurrence : {"refuse", "first", "nearest"}
        For a reader's own data: what an entity means that is given as a string and occurs several
        times; see `lib.extraction.triples.example_from_json`.
    split : str or None
        The only split that is wanted. No file of another one need be there then, and a single file
        is this split. The others may be empty in what is returned.

    Returns
    -------
    Corpus
        With the sha256 of each file in ``files`` and of the examples as read in ``sha256``.

    Raises
    ------
    ValueError
        If the name is unknown, a file is malformed or empty, or there is no such split.
    FileNotFoundError
        If a file or folder is missing.
    OSError
        If a download fails.

    Notes
    -----
    White space and characters without width at the ends of entities are cut off, and counted in
    ``notes``: annotation tools export them, and no model can find them.
    The licence of a published corpus is printed to stderr when it is first used on a machine.
    Triples of ``dev`` and ``test`` whose relation ``train`` lacks are counted in ``notes``. They
    stay: a model that was trained on ``train`` misses them.

    Examples
    --------
    >>> corpus = load_corpus("synthetic:1")
    >>> corpus.name, len(corpus.train), len(corpus.relations)
    ('synthetic:1', 1000, 14)
    """
    name, equals, folder = data.partition("=")
    if equals and name in KNOWN:
        return _published(name, Path(folder), split)
    path = Path(data)
    kind, _, seed = data.partition(":")
    if (data in KNOWN or kind == "synthetic") and path.exists():
        print(f"{data}: what stands here under this name is read", file=sys.stderr)
        if path.is_dir() and data in KNOWN and not any(map(Path.is_file, _files(path).values())):
            return _published(data, path, split)
    elif data in KNOWN:
        if not KNOWN[data].url:
            raise ValueError(
                f"{data} cannot be downloaded: {KNOWN[data].licence} Give the folder that holds "
                f"{KNOWN[data].splits['train'].file} as {data}=FOLDER"
            )
        return _published(data, None, split)
    elif kind == "synthetic":
        if seed and not seed.isdecimal():
            raise ValueError(f"the seed of a synthetic corpus must be a whole number, got {seed!r}")
        return synthetic_corpus(int(seed or 0))
    if data and path.is_dir():
        return _own_folder(path, occurrence, split)
    if path.is_file():
        return _own(path.stem, {split or "train": path}, occurrence)
    if data and path.exists():
        raise ValueError(f"data must be a file or a folder, got {data!r}, which is neither")
    known = f"synthetic, synthetic:SEED, {', '.join(KNOWN)}"
    if equals and name.isidentifier():
        raise ValueError(f"no corpus is called {name!r}; NAME=FOLDER is for {', '.join(KNOWN)}")
    if path.name != data or path.suffix:  # a path, by its looks
        raise FileNotFoundError(f"no such file or folder: {data!r}")
    raise FileNotFoundError(f"no such file or folder: {data!r}, nor corpus of this name: {known}")


def trained_relations(corpus: Corpus) -> frozenset[str]:
    """Return the relations that a corpus can teach.

    Raises
    ------
    ValueError
        If no sentence of its training split has a triple.

    Examples
    --------
    >>> len(trained_relations(load_corpus("synthetic:1")))
    14
    """
    trained = frozenset(_relations(corpus.train))
    if not trained:
        raise ValueError(
            f"{corpus.name}: none of the {len(corpus.train)} training sentences has a triple, so "
            "there is nothing to learn"
        )
    return trained


def check_relations(
    examples: Iterable[Example], relations: Collection[str], *, where: str = "the data"
) -> None:
    """Refuse examples with a relation that a model does not know.

    Raises
    ------
    ValueError
        Naming the first such relation, its example, and the known relations.

    Examples
    --------
    >>> check_relations([Example("1", "Ada")], ["wrote"])
    """
    known = set(relations)
    for example in examples:
        for triple in example.triples:
            if triple.relation not in known:
                raise ValueError(
                    f"{where}, example {example.id!r}: unknown relation {triple.relation!r}; "
                    f"known are {', '.join(sorted(known))}"
                )


def describe_unknown(examples: Iterable[Example], relations: Collection[str]) -> str:
    """Count the triples whose relation is not among `relations`, in words; "" if there is none.

    Examples
    --------
    >>> from lib.extraction.triples import Span, Triple
    >>> example = Example("1", "Ada wrote", (Triple(Span(0, 3), "did", Span(4, 9)),))
    >>> describe_unknown([example], ["wrote"])
    "1 triple of the relation 'did'"
    """
    triples = [triple for example in examples for triple in example.triples]
    unknown = Counter(t.relation for t in triples if t.relation not in relations)
    if not unknown:
        return ""
    names = [repr(name) for name, _ in unknown.most_common(8)]
    if len(unknown) > len(names):
        names.append("…")
    triple = "triples" if unknown.total() > 1 else "triple"
    relation = "relations" if len(unknown) > 1 else "relation"
    return f"{unknown.total()} {triple} of the {relation} {', '.join(names)}"


def _published(name: str, folder: Path | None, split: str | None) -> Corpus:
    """Load a published corpus, from the cache or from a reader's folder."""
    known = KNOWN[name]
    wanted = {s: source for s, source in known.splits.items() if split in (None, s)}
    if not wanted:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(known.splits)}")
    if folder is not None and not folder.is_dir():
        raise FileNotFoundError(f"{name}: there is no folder {str(folder)!r}")
    say_licence(name, known.licence)
    splits: dict[str, tuple[Example, ...]] = dict.fromkeys(SPLITS, ())
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    files: dict[str, str] = {}
    for split, source in wanted.items():
        path = fetch(name, source) if folder is None else folder / source.file
        if not path.is_file():
            raise FileNotFoundError(f"{name}: there is no file {str(path)!r}")
        raw = path.read_bytes()
        if source.file not in files:
            files[source.file] = hashlib.sha256(raw).hexdigest()
            found = differs(source, raw)
            if found:
                notes[f"{source.file}: not the pinned file"] += 1
                print(
                    f"{path}: not the pinned file: expected {source.checksum}, got {found}",
                    file=sys.stderr,
                )
        text = unzip(raw, source.member, str(path)) if source.member else raw
        reading = known.reader(text, str(path))
        if not reading.examples:
            raise ValueError(f"{path}: the file holds no examples")
        splits[split] = _take(split, reading, dropped, notes)
    return _corpus(name, known.licence, splits, dropped, notes, files, match=known.match)


def _files(folder: Path) -> dict[str, Path]:
    """Return where a reader's folder has each split, if it has it."""
    return {split: folder / f"{split}.jsonl" for split in SPLITS}


def _own_folder(folder: Path, occurrence: Occurrence, split: str | None) -> Corpus:
    """Load what a reader's folder has of the splits that are wanted."""
    name = folder.resolve().name
    files = {s: path for s, path in _files(folder).items() if split in (None, s)}
    there = {s: path for s, path in files.items() if path.is_file()}
    if split is None and "train" not in there:
        raise FileNotFoundError(f"there is no file {str(files['train'])!r} to train on")
    if not there:
        named = ", ".join(s for s, path in _files(folder).items() if path.is_file())
        raise ValueError(f"{name} has no split {split!r}; it has {named or 'none'}")
    return _own(name, there, occurrence)


def _own(name: str, paths: dict[str, Path], occurrence: Occurrence) -> Corpus:
    """Load a reader's own files, by split."""
    splits: dict[str, tuple[Example, ...]] = dict.fromkeys(SPLITS, ())
    dropped: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    files: dict[str, str] = {}
    faults: list[str] = []
    for split, path in paths.items():
        try:
            reading = read_counted(path, occurrence=occurrence)
        except MalformedLinesError as error:
            faults += error.faults
            continue
        splits[split] = _take(split, reading, dropped, notes)
        files[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    if faults:
        raise MalformedLinesError(faults)
    return _corpus(name, OWN_LICENCE, splits, dropped, notes, files, match="exact")


def _take(
    split: str, reading: Reading, dropped: Counter[str], notes: Counter[str]
) -> tuple[Example, ...]:
    """Return the examples of one file, their entities trimmed; add its counts to the corpus's."""
    examples = []
    every = [(reading.dropped, reading.notes)]
    for example in reading.examples:
        trimmed, *counts = trim_entities(example)
        examples.append(trimmed)
        every.append((counts[0], counts[1]))
    for pair in every:
        for total, counted in zip((dropped, notes), pair, strict=True):
            for reason, count in counted.items():
                total[f"{split}: {reason}"] += count
    return tuple(examples)


def _relations(examples: Iterable[Example]) -> set[str]:
    """Collect the relations of examples."""
    return {triple.relation for example in examples for triple in example.triples}


def _corpus(
    name: str,
    licence: str,
    splits: dict[str, tuple[Example, ...]],
    dropped: Counter[str],
    notes: Counter[str],
    files: dict[str, str],
    *,
    match: Literal["exact", "text", "partial"],
) -> Corpus:
    """Put together what was read."""
    trained = _relations(splits["train"])
    for split, examples in splits.items():
        unseen = sum(t.relation not in trained for example in examples for t in example.triples)
        if trained and unseen:
            notes[f"{split}: {UNTRAINED}"] += unseen
    return Corpus(
        name=name,
        licence=licence,
        relations=tuple(sorted(_relations(e for split in splits.values() for e in split))),
        train=splits["train"],
        dev=splits["dev"],
        test=splits["test"],
        extra={name: examples for name, examples in splits.items() if name not in SPLITS},
        dropped=dropped,
        match=match,
        sha256=digest(splits),
        notes=notes,
        files=files,
    )
