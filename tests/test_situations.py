"""The table of what works where: complete, and as it is stored for the book."""

from importlib import import_module

import pytest

from tests.situations.cells import SITUATIONS
from tests.situations.subjects import ROWS, WITHOUT_ROWS
from tests.situations.table import row, stored

PACKAGES = (
    "casrel",
    "divergence",
    "emo",
    "exact",
    "global_pointer",
    "gplinker",
    "soft_zlpr",
    "softmax",
    "zlpr",
)


def public_names():
    return {
        f"lib.{package}.{name}"
        for package in PACKAGES
        for name in import_module(f"lib.{package}").__all__
    }


def test_every_public_name_has_a_row_or_a_reason():
    rows = {row.of for row in ROWS.values()}
    assert not rows & set(WITHOUT_ROWS)
    assert rows | set(WITHOUT_ROWS) == public_names()


def test_the_stored_table_is_whole_and_nothing_in_it_fails():
    table = stored()
    assert list(table["rows"]) == list(ROWS)
    assert table["situations"] == {name: s.said for name, s in SITUATIONS.items()}
    failing = [
        f"{name}, {situation}: {cell}"
        for name, found in table["rows"].items()
        for situation, cell in found["cells"].items()
        if cell.startswith("fails")
    ]
    assert not failing


@pytest.mark.parametrize("name", ROWS)
def test_each_cell_is_as_stored(name):
    """What changed on purpose is stored by ``python -m tests.situations NAME --write``."""
    found, known = row(ROWS[name]), stored()["rows"][name]
    changed = {
        situation: (known["cells"].get(situation), cell)
        for situation, cell in found["cells"].items()
        if known["cells"].get(situation) != cell
    }
    assert not changed
    assert found == known
