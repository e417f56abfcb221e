"""The commands ``train``, ``evaluate`` and ``predict`` for any extraction model.

A model's ``__main__`` calls `extractor_commands` with its class; see ``lib/gplinker/__main__.py``.
What a user can get wrong ends in one line on standard error and exit status 2, without a
traceback: malformed lines (with file and line), a missing model, a folder
that holds another run, a full disk.
"""

import errno
import io
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from io import BufferedIOBase
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import distributed

from lib._checks import check_threshold
from lib._extras import needs
from lib.extraction.alignment import Losses
from lib.extraction.corpora import MalformedLinesError, load_corpus, trained_relations
from lib.extraction.encoders import DEFAULT_MAX_LENGTH
from lib.extraction.inputs import Lines, in_chunks, read_inputs
from lib.extraction.metrics import Match
from lib.extraction.places import OCCURRENCES, Occurrence
from lib.extraction.records import portable, write_atomically
from lib.extraction.training import (
    Extractor,
    LongTextWarning,
    LostTripleWarning,
    Settings,
    UnknownRelationWarning,
    evaluate,
    make_accelerator,
    predict,
    set_seed,
    train,
    warn_of_long_texts,
)
from lib.extraction.triples import Corpus, Example, example_to_json

with needs("extraction"):
    import click

__all__ = ["ENCODER_OPTIONS", "command", "command_group", "extractor_commands"]

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

_OURS = (
    LongTextWarning,
    LostTripleWarning,
    UnknownRelationWarning,
)  # shown in a line, without a place in code

_MATCHES: tuple[Match, ...] = ("exact", "text", "partial")  # "typed" asks for types, found by none

_CHUNK = 4096  # texts held as tokens at once by predict
_MOST_ERRORS = 20  # lines said about texts that failed


# Peak learning rates of encoder and heads for an encoder that is trained from scratch; those of
# Settings suit pretrained ones, whose rates would leave new weights far from trained.
_FROM_SCRATCH = {"small": {"lr": 1e-3, "head_lr": 2e-3}}


class _Group(click.Group):
    """A group of commands that speaks UTF-8, whatever the machine would have chosen."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        # A pipe on Windows, or a locale without Unicode, would garble the texts, or stop at one.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")
        return super().main(*args, **kwargs)


class _Command(click.Command):
    """A command that remembers its arguments as typed, and has one line for what users do wrong."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["arguments"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _one_line_errors(), _one_line_warnings():
            result = super().invoke(ctx)
        if distributed.is_available() and distributed.is_initialized():
            # Threads of the group that outlive the interpreter abort a process that has succeeded.
            accelerator = make_accelerator()
            accelerator.wait_for_everyone()
            accelerator.end_training()
        return result


class _UserError(click.ClickException):
    exit_code = 2

    def __init__(self, error: Exception) -> None:
        lines = error.lines if isinstance(error, MalformedLinesError) else [str(error)]
        # One line each, whatever a library put into it.
        super().__init__("\n".join(" ".join(line.split()) for line in lines))


class _PartialError(_UserError):
    """Some of the work is done and written, and what is missing has been said."""

    exit_code = 1


class _Failures:
    """Says what failed, a line each, and counts it, so that the rest can go on."""

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown
        self.count = self.fine = 0

    def add(self, error: Exception, where: str = "") -> None:
        self.count += 1
        if self.shown and self.count <= _MOST_ERRORS:
            message = f"{where}: {error or type(error).__name__}" if where else str(error)
            click.echo(f"Error: {' '.join(message.split())}", err=True)
            if self.count == _MOST_ERRORS:
                click.echo("Further errors are counted, not shown", err=True)


@contextmanager
def _one_line_errors(*also: type[Exception]) -> Iterator[None]:
    wrong_input: tuple[type[Exception], ...] = (ValueError, *also)
    try:
        yield
    except BrokenPipeError:  # the reader of our output has seen enough; click knows what to do
        raise
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise _UserError(error) from error
        place = f" (writing {error.filename})" if error.filename else ""
        full = OSError(
            f"the disk is full{place}. What was saved is whole: free some space and run the same "
            "command again"
        )
        raise _UserError(full) from error
    except torch.cuda.OutOfMemoryError as error:
        said = "the memory of the GPU is full: lower --batch-size or --max-length"
        raise _UserError(MemoryError(said)) from error
    except wrong_input as error:
        raise _UserError(error) from error


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        for category in _OURS:
            warnings.simplefilter("always", category)
        show_others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if category in _OURS:
                click.echo(f"Warning: {message}", err=True)
            else:
                show_others(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def command(
    name: str, run: Callable[..., object], params: Sequence[click.Parameter], help: str
) -> click.Command:
    """Return a command with one line on standard error, and status 2, for what users do wrong."""
    return _Command(name, callback=run, params=list(params), help=help)


def command_group(help: str, *commands: click.Command) -> click.Group:
    """Return commands under one program, which speaks UTF-8 on every system."""
    return _Group(help=help, commands=commands)


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
        With the commands ``train``, ``evaluate`` and ``predict``.
    """
    names = [str(option.name) for option in options]

    def run_train(
        data: str, occurrence: Occurrence, encoder: str, out: Path, quiet: bool, **values: Any
    ) -> None:
        given = {name: values.pop(name) for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        rates = {name: values.pop(name) for name in ("lr", "head_lr")}
        values |= _FROM_SCRATCH.get(encoder, {})
        values |= {name: rate for name, rate in rates.items() if rate is not None}
        settings = Settings(**values)
        corpus = _load_corpus(data, occurrence)
        trained_relations(corpus)  # refuses a corpus without any triple
        set_seed(settings.seed)
        texts = [example.text for example in corpus.train]
        if quiet and encoder not in _FROM_SCRATCH:
            with needs("extraction"):
                from transformers.utils import logging

            bars: Any = logging  # untyped
            bars.disable_progress_bar()
        with _one_line_errors(TypeError):  # an option that this encoder does not have
            model = model_class.create(encoder, corpus.relations, texts=texts, **given)
        context = click.get_current_context()
        words = ["train", *map(portable, context.meta["arguments"])]
        record = train(
            model,
            corpus,
            out,
            settings,
            options={"encoder": encoder, **given},
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
        threshold: float,
        match: Match | None,
        json_file: Path | None,
        batch_size: int,
        quiet: bool,
    ) -> None:
        check_threshold("threshold", threshold)
        if json_file is not None:
            _check_folder_of("--json", json_file)
        loaded = _load_model(model_class, model)
        corpus = _load_corpus(data, occurrence, split)
        scores = evaluate(
            loaded,
            corpus.split(split),
            match=match or corpus.match,
            batch_size=batch_size,
            threshold=threshold,
            progress=not quiet,
        )
        if make_accelerator().is_main_process:
            click.echo(scores.table())
            if json_file is not None:
                report = {"split": split, "threshold": threshold, **scores.to_dict()}
                text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
                write_atomically(json_file, lambda file: file.write(text.encode()))

    def run_predict(
        model: Path,
        input: str,
        output: str,
        threshold: float,
        min_confidence: float,
        relation: tuple[str, ...],
        batch_size: int,
        quiet: bool,
    ) -> None:
        check_threshold("threshold", threshold)
        accelerator = make_accelerator()
        if input == "-" and accelerator.num_processes > 1:
            raise ValueError("several processes cannot share standard input: give --input FILE")
        if output != "-":
            _check_folder_of("--output", Path(output))
        name = "standard input" if input == "-" else input
        failures = _Failures(shown=accelerator.is_main_process)
        long = Losses()

        def lines(source: BufferedIOBase) -> Iterator[str]:
            incoming = Lines(source)
            chunks = in_chunks(read_inputs(incoming, name, on_error=failures.add), incoming, _CHUNK)
            chunk = next(chunks, [])  # what is no text is refused before the model loads
            loaded = _load_model(model_class, model)
            wanted = _known_relations(relation, loaded.relations)
            while chunk:
                failed: dict[int, Exception] = {}
                found = predict(
                    loaded,
                    [example for example, _ in chunk],
                    batch_size=batch_size,
                    threshold=threshold,
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
            raise _PartialError(
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
        type=float,
        default=0.0,
        show_default=True,
        help="What all scores of a triple must exceed: above 0 it finds fewer and surer ones.",
    )
    quiet_option = click.Option(["--quiet"], is_flag=True, help="No progress on standard error.")
    group = _Group(help="Extract triples from text: train, evaluate and use a model.")
    group.add_command(
        _Command(
            "train",
            callback=run_train,
            help="Train a model and write it, with its run record, to a folder. Run the same "
            "command again to continue after an interruption.",
            params=[
                data_option,
                occurrence_option,
                click.Option(
                    ["--encoder"],
                    required=True,
                    help="Name or folder of a Hugging Face encoder, or small: from scratch.",
                ),
                click.Option(["--out"], required=True, type=folder, help="Folder of this run."),
                *options,
                *_settings_options(),
                quiet_option,
            ],
        )
    )
    group.add_command(
        _Command(
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
                click.Option(
                    ["--match"],
                    type=click.Choice(_MATCHES),
                    show_default="the rule of the corpus",
                    help="What must agree beside the relation: the places of both entities "
                    "(exact), their words (text), or their last words (partial).",
                ),
                click.Option(
                    ["--json", "json_file"],
                    type=click.Path(path_type=Path, dir_okay=False),
                    show_default="none",
                    help="File for the scores, all their counts, the split and the threshold.",
                ),
                batch_option,
                quiet_option,
            ],
        )
    )
    group.add_command(
        _Command(
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
