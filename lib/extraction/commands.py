"""The commands ``train``, ``calibrate``, ``evaluate`` and ``predict`` for any extraction model.

A model's ``__main__`` calls `extractor_commands` with its class; see ``lib/gplinker/__main__.py``.
What a user can get wrong ends in one line on standard error and exit status 2, without a
traceback: malformed lines (with file and line), a missing model, a folder
that holds another run, a full disk.
"""

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import fields
from io import BufferedIOBase
from pathlib import Path
from typing import Any

from lib._extras import needs
from lib.extraction.alignment import Losses
from lib.extraction.cards import with_calibration
from lib.extraction.corpora import load_corpus, trained_relations
from lib.extraction.encoders import DEFAULT_MAX_LENGTH
from lib.extraction.errors import errors_page, find_errors
from lib.extraction.fitting import fit_decoding
from lib.extraction.folders import model_folder
from lib.extraction.inputs import Lines, in_chunks, read_inputs
from lib.extraction.metrics import Match
from lib.extraction.places import OCCURRENCES, Occurrence
from lib.extraction.programs import Command, Failures, Group, PartialError, one_line_errors
from lib.extraction.records import portable, write_atomically
from lib.extraction.thresholds import both_thresholds
from lib.extraction.training import (
    Extractor,
    Settings,
    choose_device,
    evaluate,
    find_candidates,
    make_accelerator,
    predict,
    set_seed,
    train,
    warn_of_long_texts,
)
from lib.extraction.triples import Corpus, Example, example_to_json

with needs("extraction"):
    import click

__all__ = ["ENCODER_OPTIONS", "extractor_commands"]

ENCODER_OPTIONS = (
    click.Option(
        ["--freeze-embeddings/--train-embeddings"],
        default=None,
        show_default="train-embeddings",
        help="Whether word embeddings stay as they are.",
    ),
    click.Option(
        ["--word-shapes/--no-word-shapes"],
        default=None,
        show_default="no-word-shapes",
        help="Whether an encoder in lower case is told which words are capitalised.",
    ),
    click.Option(
        ["--max-length"],
        type=click.IntRange(3),
        show_default=f"{DEFAULT_MAX_LENGTH}, or the limit of the encoder if that is lower",
        help="Most tokens per text.",
    ),
)
"""Options of ``train`` for any model with an encoder of `lib.extraction.encoders`."""

_MATCHES: tuple[Match, ...] = ("exact", "text", "partial")  # "typed" asks for types, found by none

_CHUNK = 4096  # texts held as tokens at once by predict

_DEFAULT_ENCODER = "small"

_FLOOR = -4.0  # the least threshold that calibrate looks at

# Peak learning rates of encoder and heads for an encoder that is trained from scratch; those of
# Settings suit pretrained ones, whose rates would leave new weights far from trained.
_FROM_SCRATCH = {"small": {"lr": 1e-3, "head_lr": 2e-3}}


def extractor_commands(
    model_class: type[Extractor],
    program: str,
    options: Sequence[click.Option] = (),
) -> click.Group:
    """Return the command line of a model.

    Parameters
    ----------
    model_class : type
        A class that keeps the `lib.extraction.training.Extractor` protocol.
    program : str
        What the user types before the command, such as ``"python -m lib.gplinker"``.
    options : sequence of click.Option
        Further options of ``train``, passed to ``model_class.create`` under their names if given.
        Their default must be None.

    Returns
    -------
    click.Group
        With the commands ``train``, ``calibrate``, ``evaluate`` and ``predict``.
    """
    names = [str(option.name) for option in options]
    names_of_tables = model_class.tables
    half = len(names_of_tables) // 2

    def run_train(
        data: str,
        occurrence: Occurrence,
        encoder: str | None,
        start_from: Path | None,
        symmetric: tuple[str, ...],
        out: Path,
        device: str | None,
        quiet: bool,
        **values: Any,
    ) -> None:
        given = {name: values.pop(name) for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        rates = {name: values.pop(name) for name in ("lr", "head_lr")}
        if start_from is not None:
            told = [*(["encoder"] if encoder else []), *given]
            if told:
                raise ValueError(
                    "--start-from must come without options of a new model, got "
                    f"--{told[0].replace('_', '-')}: it brings its own"
                )
            if model_folder(start_from).resolve() == (out / "best").resolve():
                raise ValueError(f"--out must be another folder than --start-from, got {out}")
        if device is not None:
            choose_device(device)
        if encoder is None and start_from is None:
            encoder = _DEFAULT_ENCODER
            if make_accelerator().is_main_process:
                click.echo(
                    f"no --encoder: {encoder}, which knows no word but those of the training "
                    "sentences; one that has read much text needs far fewer of them",
                    err=True,
                )
        values |= _FROM_SCRATCH.get(encoder or "", {})
        values |= {name: rate for name, rate in rates.items() if rate is not None}
        settings = Settings(**values)
        corpus = _load_corpus(data, occurrence)
        trained_relations(corpus)  # refuses a corpus without any triple
        if unknown := [name for name in symmetric if name not in corpus.relations]:
            raise ValueError(
                f"--symmetric must be one of {', '.join(map(repr, corpus.relations))}, "
                f"got {unknown[0]!r}"
            )
        set_seed(settings.seed)
        texts = [example.text for example in corpus.train]
        about: dict[str, Any] = {"encoder": encoder} if encoder else {}
        if quiet and encoder not in _FROM_SCRATCH:
            with needs("extraction"):
                from transformers.utils import logging

            bars: Any = logging  # untyped
            bars.disable_progress_bar()
        if start_from is not None:
            about |= {"start_from": str(start_from), "start_sha256": _digest(start_from)}
            model = model_class.start_from(start_from, corpus.relations)
        else:
            assert encoder is not None
            with one_line_errors(TypeError):  # an option that this encoder does not have
                model = model_class.create(encoder, corpus.relations, texts=texts, **given)
        if symmetric:
            model.symmetric = about["symmetric"] = symmetric
        context = click.get_current_context()
        words = ["train", *map(portable, context.meta["arguments"])]
        record = train(
            model,
            corpus,
            out,
            settings,
            options={**about, **given},
            command=f"{_launcher(program)} {shlex.join(words)}",
            progress=not quiet,
        )
        if make_accelerator().is_main_process:
            click.echo(f"best epoch {record.best_epoch} of {len(record.epochs)}: {out / 'best'}")
            for split, scores in record.scores.items():
                click.echo(
                    f"{split}: precision {scores['precision']:.4f} "
                    f"recall {scores['recall']:.4f} F1 {scores['f1']:.4f}"
                )

    def run_evaluate(
        model: Path,
        data: str,
        occurrence: Occurrence,
        split: str,
        threshold: str | None,
        match: Match | None,
        json_file: Path | None,
        errors: Path | None,
        batch_size: int,
        quiet: bool,
    ) -> None:
        given = _parse_threshold(threshold)
        for option, file in (("--json", json_file), ("--errors", errors)):
            if file is not None:
                _check_folder_of(option, file)
        loaded = _load_model(model_class, model)
        corpus = _load_corpus(data, occurrence, split)
        examples = corpus.split(split)
        used = _threshold(loaded, given)
        scores = evaluate(
            loaded,
            examples,
            match=match or corpus.match,
            batch_size=batch_size,
            threshold=used,
            progress=not quiet,
        )
        if make_accelerator().is_main_process:
            click.echo(scores.table())
            if json_file is not None:
                report = {"split": split, "threshold": list(used), **scores.to_dict()}
                _write_text(json_file, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        if errors is not None:
            found = find_errors(
                loaded,
                examples,
                match=match or corpus.match,
                threshold=used,
                batch_size=batch_size,
            )
            page = errors_page(
                found,
                tables=loaded.tables,
                texts=len(examples),
                title=f"Errors on {corpus.name}, {split}",
            )
            if make_accelerator().is_main_process:
                _write_text(errors, page)

    def run_calibrate(
        model: Path,
        data: str,
        occurrence: Occurrence,
        split: str,
        match: Match | None,
        write: bool,
        batch_size: int,
        quiet: bool,
    ) -> None:
        if write and (model / "checkpoint.pt").exists():
            raise ValueError(
                f"the run in {model} is not finished, and would overwrite what --write writes"
            )
        loaded = _load_model(model_class, model)
        corpus = _load_corpus(data, occurrence, split)
        sentences = find_candidates(
            loaded,
            corpus.split(split),
            floor=_FLOOR,
            match=match or corpus.match,
            batch_size=batch_size,
            progress=not quiet,
        )
        decoding, report = fit_decoding(sentences, floor=_FLOOR)
        if make_accelerator().is_main_process:
            click.echo(report)
            if write:
                loaded.decoding = decoding
                heading = f"On {corpus.name}, {split}."
                loaded.card = with_calibration(loaded.card, f"{heading}\n\n{report}")
                loaded.save(model_folder(model))
                click.echo(f"written to {model_folder(model)}")

    def run_predict(
        model: Path,
        input: str,
        output: str,
        threshold: str | None,
        min_confidence: float,
        relation: tuple[str, ...],
        batch_size: int,
        quiet: bool,
    ) -> None:
        given_threshold = _parse_threshold(threshold)
        accelerator = make_accelerator()
        if input == "-" and accelerator.num_processes > 1:
            raise ValueError("several processes cannot share standard input: give --input FILE")
        if output != "-":
            _check_folder_of("--output", Path(output))
        name = "standard input" if input == "-" else input
        failures = Failures(shown=accelerator.is_main_process)
        long = Losses()

        def lines(source: BufferedIOBase) -> Iterator[str]:
            incoming = Lines(source)
            chunks = in_chunks(read_inputs(incoming, name, on_error=failures.add), incoming, _CHUNK)
            chunk = next(chunks, [])  # what is no text is refused before the model loads
            loaded = _load_model(model_class, model)
            wanted = _known_relations(relation, loaded.relations)
            used = _threshold(loaded, given_threshold)
            while chunk:
                failed: dict[int, Exception] = {}
                found = predict(
                    loaded,
                    [example for example, _ in chunk],
                    batch_size=batch_size,
                    threshold=used,
                    progress=not quiet,
                    failed=failed,
                    long=long,
                )
                for index, (given, scored) in enumerate(zip(chunk, found, strict=True)):
                    kept = [
                        (triple, confidence)
                        for triple, confidence in scored
                        if triple.relation in wanted and confidence >= min_confidence
                    ]
                    if index not in failed:
                        try:
                            line = _prediction_line(*given, kept)
                        except RecursionError as error:  # other keys of the line, nested deeply
                            failed[index] = error
                    if index in failed:
                        failures.add(failed[index], f"{name}, text {given.example.id!r}")
                    else:
                        failures.fine += 1
                        yield line
                chunk = next(chunks, [])
            if not failures.fine:
                raise ValueError(f"{name}: nothing to write, none of its texts could be read")

        with nullcontext(sys.stdin.buffer) if input == "-" else Path(input).open("rb") as source:
            assert isinstance(source, BufferedIOBase)
            try:
                if not accelerator.is_main_process:
                    for _ in lines(source):  # it computes its share; the main process writes
                        pass
                elif output == "-":
                    for line in lines(source):
                        click.echo(line, nl=False)
                else:
                    write_atomically(
                        Path(output),
                        lambda file: file.writelines(line.encode() for line in lines(source)),
                    )
            finally:  # a stream may end by a key
                warn_of_long_texts(long, failures.count + failures.fine)
        if failures.count:
            texts = failures.count + failures.fine
            raise PartialError(
                ValueError(f"{failures.count} of {texts} texts are not in the output")
            )

    folder = click.Path(path_type=Path, file_okay=False)
    model_option = click.Option(
        ["--model"],
        required=True,
        type=folder,
        help="The --out folder of a training run, or a model's own folder.",
    )
    data_option = click.Option(
        ["--data"],
        required=True,
        help="synthetic, a known corpus, NAME=FOLDER, a folder with train.jsonl, or a .jsonl file.",
    )
    occurrence_option = click.Option(
        ["--occurrence"],
        type=click.Choice(OCCURRENCES),
        default="refuse",
        show_default=True,
        help="In data of your own, an entity given by words that occur several times: stop and say "
        "so, or take the first occurrence, or those of subject and object nearest to each other.",
    )
    batch_option = click.Option(
        ["--batch-size"],
        type=click.IntRange(1),
        default=32,
        show_default=True,
        help="Sentences at a time.",
    )
    threshold_option = click.Option(
        ["--threshold"],
        metavar="NUMBER[,NUMBER]",
        show_default="what calibrate has written, else 0",
        help="What all scores of a triple must exceed: above 0 it finds fewer and surer ones. Two "
        f"numbers are for {_joined(names_of_tables[:half])} and for "
        f"{_joined(names_of_tables[half:])}.",
    )
    match_option = click.Option(
        ["--match"],
        type=click.Choice(_MATCHES),
        show_default="the rule of the corpus",
        help="What must agree beside the relation: the places of both entities (exact), their "
        "words (text), or their last words (partial).",
    )
    quiet_option = click.Option(["--quiet"], is_flag=True, help="No progress on standard error.")
    group = Group(help="Extract triples from text: train, evaluate and use a model.")
    group.add_command(
        Command(
            "train",
            callback=run_train,
            help="Train a model and write it, with its run record, to a folder. Run the same "
            "command again to continue after an interruption.",
            params=[
                data_option,
                occurrence_option,
                click.Option(
                    ["--encoder"],
                    show_default=_DEFAULT_ENCODER,
                    help="Name or folder of a Hugging Face encoder, or small: from scratch.",
                ),
                click.Option(
                    ["--start-from"],
                    type=folder,
                    show_default="none: a new model",
                    help="Go on from this trained model, with more epochs, other data or new "
                    "relations.",
                ),
                click.Option(
                    ["--symmetric"],
                    multiple=True,
                    show_default="none",
                    help="A relation that holds both ways or not at all: its triples count as "
                    "found whichever entity comes first. May be given several times.",
                ),
                click.Option(["--out"], required=True, type=folder, help="Folder of this run."),
                click.Option(
                    ["--device"],
                    type=click.Choice(["cpu", "cuda", "mps"]),
                    show_default="cuda where it is, else cpu",
                    help="Where to compute.",
                ),
                *options,
                *_settings_options(),
                quiet_option,
            ],
        )
    )
    group.add_command(
        Command(
            "calibrate",
            callback=run_calibrate,
            help="Choose the threshold of a model, and its confidence, on sentences that it was "
            "not trained on. Where the gain may be noise, the threshold stays at 0.",
            params=[
                model_option,
                data_option,
                occurrence_option,
                click.Option(
                    ["--split"],
                    default="dev",
                    show_default=True,
                    help="Which split of a corpus; a file is one.",
                ),
                match_option,
                click.Option(
                    ["--write"],
                    is_flag=True,
                    help="Write what was chosen into the model, for evaluate and predict.",
                ),
                batch_option,
                quiet_option,
            ],
        )
    )
    group.add_command(
        Command(
            "evaluate",
            callback=run_evaluate,
            help="Score a model on a split of a corpus.",
            params=[
                model_option,
                data_option,
                occurrence_option,
                click.Option(
                    ["--split"],
                    default="test",
                    show_default=True,
                    help="Which split of a corpus; a file is one.",
                ),
                threshold_option,
                match_option,
                click.Option(
                    ["--json", "json_file"],
                    type=click.Path(path_type=Path, dir_okay=False),
                    show_default="none",
                    help="File for the scores, all their counts, the split and the threshold.",
                ),
                click.Option(
                    ["--errors"],
                    type=click.Path(path_type=Path, dir_okay=False),
                    show_default="none",
                    help="File for a page (HTML) of the errors: what was missed, which table said "
                    "no, and what is wrong.",
                ),
                batch_option,
                quiet_option,
            ],
        )
    )
    group.add_command(
        Command(
            "predict",
            callback=run_predict,
            help="Extract triples from texts: lines of plain text, or JSON lines with a text. "
            "Writes JSON lines in the format of --data, with a confidence for each triple and "
            "whatever else the line held. Each is written as soon as its text has come.",
            params=[
                model_option,
                click.Option(
                    ["--input"],
                    default="-",
                    show_default="standard input",
                    help="File to read, or -.",
                ),
                click.Option(
                    ["--output"],
                    default="-",
                    show_default="standard output",
                    help="File to write, or -.",
                ),
                threshold_option,
                click.Option(
                    ["--min-confidence"],
                    type=click.FloatRange(0, 1),
                    default=0.0,
                    show_default=True,
                    help="Least confidence of the triples that are written.",
                ),
                click.Option(
                    ["--relation"],
                    multiple=True,
                    show_default="all",
                    help="Write triples of this relation alone. May be given several times.",
                ),
                batch_option,
                quiet_option,
            ],
        )
    )
    return group


def _settings_options() -> list[click.Option]:
    """Return one option per field of Settings."""
    found = []
    for field in fields(Settings):
        scratch = [
            f"{rates[field.name]:g} for {encoder}, else {field.default:g}"
            for encoder, rates in _FROM_SCRATCH.items()
            if field.name in rates
        ]
        found.append(
            click.Option(
                [f"--{field.name.replace('_', '-')}"],
                type=type(field.default),
                default=None if scratch else field.default,
                show_default=scratch[0] if scratch else True,
                help=field.metadata["help"],
            )
        )
    return found


def _launcher(program: str) -> str:
    """Return how the program was started: by Python, or by accelerate with what it was told."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    if precision is None:
        return program
    processes = make_accelerator().num_processes
    return (
        f"accelerate launch --num_processes {processes} --mixed_precision {precision} "
        f"{program.removeprefix('python ')}"
    )


def _load_corpus(data: str, occurrence: Occurrence, split: str | None = None) -> Corpus:
    # One process of each machine downloads; the others find the file.
    with make_accelerator().local_main_process_first():
        return load_corpus(data, occurrence=occurrence, split=split)


def _check_folder_of(option: str, file: Path) -> None:
    """Refuse a file that cannot be written for want of a folder, before any work is done."""
    if not file.parent.is_dir():
        raise ValueError(f"{option}: no such folder: {str(file.parent)!r}")


def _load_model(model_class: type[Extractor], folder: Path) -> Extractor:
    if not folder.exists():
        raise ValueError(f"there is no folder {folder}")
    return model_class.load(folder)


def _parse_threshold(given: str | None) -> tuple[float, float] | None:
    """Read one number, or two with a comma between them."""
    if given is None:
        return None
    try:
        numbers = [float(part) for part in given.split(",")]
    except ValueError:
        raise ValueError(
            f"--threshold must be a number, or two with a comma between them, got {given!r}"
        ) from None
    return both_thresholds(numbers[0] if len(numbers) == 1 else numbers)


def _threshold(model: Extractor, given: tuple[float, float] | None) -> tuple[float, float]:
    """Return the threshold to use, and say so where the model brings its own."""
    if given is not None:
        return given
    used = both_thresholds(model.decoding.threshold)
    if any(used) and make_accelerator().is_main_process:
        shown = f"{used[0]:g}" if used[0] == used[1] else "{:g} and {:g}".format(*used)
        click.echo(f"threshold {shown}, as calibrated", err=True)
    return used


def _digest(folder: Path) -> str:
    """Return a digest of the files of a model, so that a run knows what it started from."""
    if not folder.exists():
        raise ValueError(f"there is no folder {folder}")
    found = hashlib.sha256()
    home = model_folder(folder)
    for path in sorted(path for path in home.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(home).as_posix()}\n".encode())
        found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))


def _joined(names: Sequence[str]) -> str:
    return " and ".join(names)


def _known_relations(wanted: Sequence[str], known: Sequence[str]) -> frozenset[str]:
    """Return the relations that are wanted, all of them if none is named."""
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(
            f"--relation must be one of {', '.join(map(repr, known))}, got {unknown[0]!r}"
        )
    return frozenset(wanted or known)


def _prediction_line(example: Example, record: dict[str, Any], scored: Sequence[Any]) -> str:
    """Write what was found, with the id as it was given and whatever else the line held."""
    found = example_to_json(
        Example(example.id, example.text, tuple(triple for triple, _ in scored))
    )
    for triple, (_, confidence) in zip(found["triples"], scored, strict=True):
        triple["confidence"] = round(confidence, 4)
    line = json.dumps(found | record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half a surrogate pair in what else the line held
        line = json.dumps(found | record)
    return line + "\n"
