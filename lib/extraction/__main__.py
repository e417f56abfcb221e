"""The command ``python -m lib.extraction convert``: annotations of other tools as JSON lines."""

import json
from collections import Counter
from pathlib import Path

from lib._extras import needs
from lib.extraction.corpora.jsonl import Reading
from lib.extraction.importers import FORMATS, import_file
from lib.extraction.places import OCCURRENCES, Occurrence
from lib.extraction.programs import command, command_group
from lib.extraction.records import write_atomically
from lib.extraction.triples import LOUD, REPEATED, example_to_json

with needs("extraction"):
    import click


def convert(format: str, source: Path, out: Path, occurrence: Occurrence) -> None:
    """Read, say what was read and what was not, and write."""
    if str(out) != "-" and not out.parent.is_dir():
        raise ValueError(f"--out: no such folder: {str(out.parent)!r}")
    reading = import_file(format, source, occurrence=occurrence)
    triples = [triple for example in reading.examples for triple in example.triples]
    types = {span.type for t in triples for span in (t.subject, t.object)} - {""}
    parts = [
        _count(len(reading.examples), "text"),
        _count(len(triples), "triple"),
        _count(len({triple.relation for triple in triples}), "relation"),
        _count(len(types), "entity type"),
    ]
    click.echo(f"{source}: {', '.join(parts)}", err=True)
    _say("left out", reading.dropped, reading)
    _say("noted", reading.notes, reading)
    lost = reading.dropped.total() - reading.dropped[REPEATED]  # one of each is there
    if lost and not triples:
        raise ValueError(
            f"{source}: all {_count(lost, 'triple')} were left out, nothing is written"
        )
    if lost > LOUD * (lost + len(triples)):
        share = lost / (lost + len(triples))
        click.echo(
            f"Warning: {lost} of {lost + len(triples)} triples left out ({share:.0%})", err=True
        )
    lines = (json.dumps(example_to_json(e), ensure_ascii=False) + "\n" for e in reading.examples)
    if str(out) == "-":
        for line in lines:
            click.echo(line, nl=False)
    else:
        write_atomically(out, lambda file: file.writelines(line.encode() for line in lines))


def _say(what: str, counts: Counter[str], reading: Reading) -> None:
    for reason, count in counts.most_common():
        click.echo(f"{what}: {count} × {reason}; first {reading.samples[reason]}", err=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


main = command_group(
    "Prepare data for the extraction models.",
    command(
        "convert",
        convert,
        [
            click.Option(
                ["--from", "format"],
                type=click.Choice(list(FORMATS)),
                required=True,
                help="Format of SOURCE.",
            ),
            click.Argument(["source"], type=click.Path(path_type=Path)),
            click.Option(
                ["--out"],
                type=click.Path(path_type=Path),
                required=True,
                help="File of JSON lines to write; '-' is standard output.",
            ),
            click.Option(
                ["--occurrence"],
                type=click.Choice(OCCURRENCES),
                default="refuse",
                show_default=True,
                help="For csv: what an entity without offsets means that occurs several times.",
            ),
        ],
        "Write annotations of another tool as JSON lines, which --data of the models takes.",
    ),
)

if __name__ == "__main__":
    main(prog_name="python -m lib.extraction")
