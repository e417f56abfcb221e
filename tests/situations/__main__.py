"""Print rows, or store them: ``python -m tests.situations [part of a name …] [--write]``."""

import click

from tests.situations.cells import SITUATIONS
from tests.situations.subjects import ROWS
from tests.situations.table import FAILS, cell, store


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--only", multiple=True, help="Situations to run; default: all.")
@click.option("--failing", is_flag=True, help="Print failing cells only.")
@click.option("--write", is_flag=True, help="Store whole rows for the book; print nothing.")
def main(names: tuple[str, ...], only: tuple[str, ...], failing: bool, write: bool) -> None:
    """Run and print."""
    chosen = [name for name in ROWS if not names or any(part in name for part in names)]
    if write:
        store(chosen)
        return
    for name in chosen:
        for title, situation in SITUATIONS.items():
            if only and title not in only:
                continue
            found = cell(ROWS[name], situation)
            if not failing or found.verdict == FAILS:
                took = f"{found.seconds:.2f} s"
                click.echo(f"{name} | {title} | {found.verdict} | {took} | {found.reason[:300]}")


if __name__ == "__main__":
    main()
