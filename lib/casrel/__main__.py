"""The command line of CasRel: ``python -m lib.casrel train|evaluate|predict``."""

from lib._extras import needs
from lib.casrel.model import CasRel, TaggingOptions
from lib.extraction.commands import ENCODER_OPTIONS, extractor_commands

with needs("extraction"):
    import click

OPTIONS = TaggingOptions()

main = extractor_commands(
    CasRel,
    "python -m lib.casrel",
    [
        click.Option(
            ["--power"],
            type=float,
            nargs=2,
            show_default="{:g} {:g}".format(*OPTIONS.power),
            help="Exponents of the links of subjects and of objects: 1 1 for plain logistic ones.",
        ),
        click.Option(
            ["--sampling"],
            type=click.Choice(["all", "uniform", "published"]),
            show_default=OPTIONS.sampling,
            help="Subjects whose objects a step is taught: all of each text, or one drawn among "
            "them, or one drawn by the published rule, which may be no subject.",
        ),
        click.Option(
            ["--subject-thresholds"],
            type=float,
            nargs=2,
            show_default="{:g} {:g}".format(*OPTIONS.subject_thresholds),
            help="Probabilities that a subject's start and end must exceed: the published ones are "
            "0.6 0.5.",
        ),
        *ENCODER_OPTIONS,
    ],
)

if __name__ == "__main__":
    main(prog_name="python -m lib.casrel")
