"""GPLinker: joint extraction of entities and relations with four tables of token pairs.

A triple (subject, relation, object) becomes four cells: the subject's span, the object's span,
the link between their first tokens and the link between their last tokens.
:func:`table_positives` writes the cells, :func:`decode_tables` reads them back by intersection.
:class:`GPLinker` does both for texts and needs no table per relation: it fills some only where
they are few, or for the divergence of R-Drop.
``python -m lib.gplinker`` trains, evaluates and predicts from the command line.
"""

from typing import TYPE_CHECKING

from lib._extras import lazily
from lib.gplinker.decoding import decode_blocks, decode_tables, triple_scores
from lib.gplinker.tables import Tables, table_positives

if TYPE_CHECKING:
    from lib.gplinker.model import GPLinker, Item, PointerOptions
else:  # the model needs the extra "extraction", tables and decoding PyTorch alone
    __getattr__, __dir__ = lazily(
        __name__, {"GPLinker": "model", "Item": "model", "PointerOptions": "model"}
    )

__all__ = [
    "GPLinker",
    "Item",
    "PointerOptions",
    "Tables",
    "decode_blocks",
    "decode_tables",
    "table_positives",
    "triple_scores",
]
