"""The model card that lies beside the weights: what was trained on what, and how well it does."""

from lib.extraction.records import RunRecord

__all__ = ["model_card", "with_calibration"]

_CALIBRATION = "\n## Calibration\n"


def model_card(record: RunRecord) -> str:
    """Write the card of a run, as Markdown.

    Examples
    --------
    >>> record = RunRecord(
    ...     command="python -m lib.gplinker train", code={"version": "1.0", "commit": None},
    ...     model={"class": "GPLinker", "parameters": 2000000, "options": {"encoder": "small"}},
    ...     data={"name": "own", "licence": "The reader's own data.", "match": "exact",
    ...           "relations": ["wrote"], "sentences": {"train": 9}, "triples": {"train": 12}},
    ...     settings={}, hardware={}, versions={}, wall_seconds=2.0, best_epoch=1, epochs=[],
    ...     scores={"dev": {"precision": 1.0, "recall": 0.5, "f1": 0.6667, "gold": 4}})
    >>> print(model_card(record).splitlines()[0])
    # GPLinker trained on own
    >>> "| dev | 1.0000 | 0.5000 | 0.6667 | 4 |" in model_card(record)
    True
    """
    data, model, code = record.data, record.model, record.code
    sizes = ", ".join(
        f"{split} {count} ({data['triples'][split]} triples)"
        for split, count in data["sentences"].items()
    )
    options = ", ".join(f"{name} {value}" for name, value in model["options"].items())
    scores = [
        f"| {split} | {s['precision']:.4f} | {s['recall']:.4f} | {s['f1']:.4f} | {s['gold']} |"
        for split, s in record.scores.items()
    ]
    lines = [
        f"# {model['class']} trained on {data['name']}",
        "",
        f"Finds triples of {len(data['relations'])} relations in text: "
        f"{', '.join(data['relations'])}.",
        "",
        "## Data",
        "",
        f"{data['name']}: {sizes}.",
        "",
        "## Scores",
        "",
        f"Of the epoch that was best on dev, {record.best_epoch}; what counts as equal: "
        f"{data['match']}.",
        "",
        "| split | precision | recall | F1 | triples |",
        "|---|---|---|---|---|",
        *scores,
        "",
        "## How it was made",
        "",
        f"    {record.command}",
        "",
        f"Code: version {code['version']}, commit {code['commit'] or 'unknown'}. "
        f"Model: {model['parameters']} parameters; {options}. All settings and the scores of every "
        "epoch: `record.json` of the run.",
        "",
        "## Licence",
        "",
        f"Of the data: {data['licence']} The encoder's weights have a licence of their own, which "
        "goes with this model.",
    ]
    return "\n".join(lines) + "\n"


def with_calibration(card: str, report: str) -> str:
    """Put what `calibrate` found at the end of a card, in place of what stood there before.

    Examples
    --------
    >>> card = with_calibration(with_calibration("# Model", "first"), "second")
    >>> print(card)
    # Model
    <BLANKLINE>
    ## Calibration
    <BLANKLINE>
        second
    <BLANKLINE>
    """
    before = card.partition(_CALIBRATION)[0].rstrip("\n")
    quoted = "\n".join(f"    {line}".rstrip() for line in report.splitlines())
    return f"{before}\n{_CALIBRATION}\n{quoted}\n"
