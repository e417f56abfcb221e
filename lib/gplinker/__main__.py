"""The command line of GPLinker: ``python -m lib.gplinker train|evaluate|predict``."""

from lib._extras import needs
from lib.extraction.commands import ENCODER_OPTIONS, extractor_commands
from lib.gplinker.model import GPLinker, PointerOptions

with needs("extraction"):
    import click

OPTIONS = PointerOptions()

main = extractor_commands(
    GPLinker,
    "python -m lib.gplinker",
    [
        click.Option(
            ["--pointer"],
            type=click.Choice(["efficient", "standard"]),
            show_default=OPTIONS.pointer,
            help="Kind of GlobalPointer.",
        ),
        click.Option(
            ["--head-size"],
            type=click.IntRange(2),
            show_default=str(OPTIONS.head_size),
            help="Size of queries and keys.",
        ),
        click.Option(
            ["--link-rope/--no-link-rope"],
            default=None,
            show_default="link-rope" if OPTIONS.link_rope else "no-link-rope",
            help="Whether links see how far apart their ends are.",
        ),
        click.Option(
            ["--r-drop"],
            type=click.FloatRange(0),
            show_default=f"{OPTIONS.r_drop:g}",
            help="Weight of R-Drop: two passes a step that must agree. 0 for none.",
        ),
        *ENCODER_OPTIONS,
    ],
)

if __name__ == "__main__":
    main(prog_name="python -m lib.gplinker")
