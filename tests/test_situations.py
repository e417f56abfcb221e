"""The table of what works where: complete, and as it is stored for the book."""

from importlib import import_module

from tests.situations.subjects import ROWS, WITHOUT_ROWS

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
