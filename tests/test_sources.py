"""The sources that the book cites can be told apart where they are cited."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from pybtex.database import BibliographyData, parse_file, parse_string

from tests.book_extensions import load

BIBLIOGRAPHY = Path(__file__).resolve().parents[1] / "book" / "references.bib"


def told_apart(data: BibliographyData) -> dict[str, str]:
    """Return the year of each key as it will be shown."""
    domain = SimpleNamespace(bibdata=SimpleNamespace(data=data))
    app = SimpleNamespace(env=SimpleNamespace(get_domain={"cite": domain}.get))
    load("book_ext").tell_years_apart(app)
    return {key: entry.fields.get("year", "n.d.") for key, entry in data.entries.items()}


def shown(entry) -> str:
    names = [" ".join(person.last_names) for person in entry.persons["author"]]
    return " and ".join(names) if len(names) < 3 else f"{names[0]} et al."


def test_no_two_sources_are_cited_alike():
    data = parse_file(BIBLIOGRAPHY)
    years = told_apart(data)
    cited = [f"{shown(entry)}, {years[key]}" for key, entry in data.entries.items()]
    assert sorted(set(cited)) == sorted(cited)


@pytest.mark.parametrize("again", [False, True])
def test_letters_go_by_date_and_those_without_a_date_come_last(again):
    data = parse_string(
        "@misc{code, author={A, B}, year={2022}}"
        "@misc{june, author={A, B}, year={2022}, month={6}, day={9}}"
        "@misc{may, author={A, B}, year={2022}, month={5}, day={30}}"
        "@misc{alone, author={A, C and D, E and F, G}, year={2022}}"
        "@misc{other, author={A, B}, year={2021}}",
        "bibtex",
    )
    if again:
        told_apart(data)
    assert told_apart(data) == {
        "code": "2022c", "june": "2022b", "may": "2022a", "alone": "2022", "other": "2021"
    }  # fmt: skip
