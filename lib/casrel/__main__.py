"""The command line of CasRel: ``python -m lib.casrel train|evaluate|predict``."""

from lib._extras import needs
from lib.casrel.model import CasRel
from lib.extraction.commands import ENCODER_OPTIONS, extractor_commands

with needs("extraction"):
    import click

main = extractor_commands(
    CasRel,
    "python -m lib.casrel",
    [
        click.Option(
            ["--power"],
            type=float,
            nargs=2,
            help="Exponents of the links of subjects and of objects: 2 4 unless given, 1 1 for "
            "plain logistic ones.",
        ),
        click.Option(
            ["--sampling"],
            type=click.Choice(["all", "uniform", "published"]),
            help="Subjects whose objects a step is taught: all of each text (the default), or one "
            "drawn among them, or one drawn by the published rule, which may be no subject.",
        ),
        click.Option(
            ["--subject-thresholds"],
            type=float,
            nargs=2,
            help="Probabilities that a subject's start and end must exceed: 0.5 0.5 unless given; "
            "the published ones are 0.6 0.5.",
        ),
        *ENCODER_OPTIONS,
    ],
)

if __name__ == "__main__":
    main(prog_name="python -m lib.casrel")
