"""Print rows: ``python -m tests.situations [part of a name …] [--only SITUATION]``."""

import click

from tests.situations.cells import SITUATIONS
from tests.situations.subjects import ROWS
from tests.situations.table import FAILS, cell


@click.command(help=__doc__)
@click.argument("names", nargs=-1)
@click.option("--only", multiple=True, help="Situations to run; default: all.")
@click.option("--but", multiple=True, help="Situations to leave out.")
@click.option("--failing", is_flag=True, help="Print failing cells only, one a line.")
def main(
    names: tuple[str, ...], only: tuple[str, ...], but: tuple[str, ...], failing: bool
) -> None:
    """Run and print."""
    for name, subject in ROWS.items():
        if names and not any(part in name for part in names):
            continue
        for title, situation in SITUATIONS.items():
            if title in but or (only and title not in only):
                continue
            found = cell(subject, situation)
            if not failing or found.verdict == FAILS:
                click.echo(
                    f"{name} | {title} | {found.verdict} | {found.seconds:.2f} s | "
                    f"{found.reason[:300]}"
                )


if __name__ == "__main__":
    main()
