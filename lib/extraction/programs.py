"""The programs of the extraction models: UTF-8 everywhere, one line for what users do wrong."""

import errno
import io
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import torch
from torch import distributed

from lib._extras import needs
from lib.extraction.corpora import MalformedLinesError
from lib.extraction.training import (
    LongTextWarning,
    LostTripleWarning,
    UnknownRelationWarning,
    make_accelerator,
)

with needs("extraction"):
    import click

__all__ = [
    "Command",
    "Failures",
    "Group",
    "PartialError",
    "UserError",
    "command",
    "command_group",
    "one_line_errors",
]

_SHOWN = (LongTextWarning, LostTripleWarning, UnknownRelationWarning)  # in a line, without a place

_MOST_ERRORS = 20  # lines said about texts that failed


class Group(click.Group):
    """A group of commands that speaks UTF-8, whatever the machine would have chosen."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command of the arguments."""
        # A pipe on Windows, or a locale without Unicode, would garble the texts, or stop at one.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(encoding="utf-8", errors="backslashreplace", newline="\n")
        return super().main(*args, **kwargs)


class Command(click.Command):
    """A command that remembers its arguments as typed, and has one line for what users do wrong."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the arguments for ``ctx.meta``, then parse them."""
        ctx.meta["arguments"] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a process of several leaves the group at its end."""
        with one_line_errors(), _one_line_warnings():
            result = super().invoke(ctx)
        if distributed.is_available() and distributed.is_initialized():
            # Threads of the group that outlive the interpreter abort a process that has succeeded.
            accelerator = make_accelerator()
            accelerator.wait_for_everyone()
            accelerator.end_training()
        return result


class UserError(click.ClickException):
    """What a user can put right, in a line."""

    exit_code = 2

    def __init__(self, error: Exception) -> None:
        lines = error.lines if isinstance(error, MalformedLinesError) else [str(error)]
        # One line each, whatever a library put into it.
        super().__init__("\n".join(" ".join(line.split()) for line in lines))


class PartialError(UserError):
    """Some of the work is done and written, and what is missing has been said."""

    exit_code = 1


class Failures:
    """Says what failed, a line each, and counts it, so that the rest can go on."""

    def __init__(self, *, shown: bool) -> None:
        self.shown = shown
        self.count = self.fine = 0

    def add(self, error: Exception, where: str = "") -> None:
        """Say and count one failure."""
        self.count += 1
        if self.shown and self.count <= _MOST_ERRORS:
            message = f"{where}: {error or type(error).__name__}" if where else str(error)
            click.echo(f"Error: {' '.join(message.split())}", err=True)
            if self.count == _MOST_ERRORS:
                click.echo("Further errors are counted, not shown", err=True)


@contextmanager
def one_line_errors(*also: type[Exception]) -> Iterator[None]:
    """Raise `UserError` for what users do wrong: wrong values, files, and what `also` names."""
    wrong_input: tuple[type[Exception], ...] = (ValueError, *also)
    try:
        yield
    except BrokenPipeError:  # the reader of our output has seen enough; click knows what to do
        raise
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise UserError(error) from error
        place = f" (writing {error.filename})" if error.filename else ""
        full = OSError(
            f"the disk is full{place}. What was saved is whole: free some space and run the same "
            "command again"
        )
        raise UserError(full) from error
    except torch.cuda.OutOfMemoryError as error:
        said = "the memory of the GPU is full: lower --batch-size or --max-length"
        raise UserError(MemoryError(said)) from error
    except wrong_input as error:
        raise UserError(error) from error


@contextmanager
def _one_line_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        for category in _SHOWN:
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
            if category in _SHOWN:
                click.echo(f"Warning: {message}", err=True)
            else:
                show_others(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def command(
    name: str, run: Callable[..., object], params: Sequence[click.Parameter], help: str
) -> click.Command:
    """Return a command with one line on standard error, and status 2, for what users do wrong."""
    return Command(name, callback=run, params=list(params), help=help)


def command_group(help: str, *commands: click.Command) -> click.Group:
    """Return commands under one program, which speaks UTF-8 on every system."""
    return Group(help=help, commands=commands)
