r"""GlobalPointer: one score for every pair of token positions, for each of several heads.

A head is a table. Cell (i, j) scores the span that starts at token i and ends at token j, or the
link from token i to token j; the cell is chosen when its score is above 0.

Two modules score the cells. :class:`GlobalPointer` gives each head its own queries and keys.
:class:`EfficientGlobalPointer` shares one pair table among all heads and adds to it a score for
the start and one for the end; :meth:`EfficientGlobalPointer.parts` returns these three.

The tables of all heads are large, and neither training nor decoding needs them.
:func:`factorised_zlpr_loss` is the ZLPR loss of the efficient pointer's tables from their parts,
:func:`streaming_zlpr_loss` that of the standard pointer's tables from queries and keys, and
:func:`factorised_spans` finds the cells above 0 from the parts. Each module reaches them through
its methods ``loss`` and ``spans``. Who wants to look at a table calls the module itself.
:func:`load_published_weights` takes over pointers of bert4torch and bert4keras.
"""

from lib.global_pointer.decoding import Spans, factorised_spans
from lib.global_pointer.factorised import factorised_zlpr_loss
from lib.global_pointer.heads import EfficientGlobalPointer, GlobalPointer, PointerParts
from lib.global_pointer.published import load_published_weights
from lib.global_pointer.rope import apply_rope
from lib.global_pointer.streaming import streaming_zlpr_loss

__all__ = [
    "EfficientGlobalPointer",
    "GlobalPointer",
    "PointerParts",
    "Spans",
    "apply_rope",
    "factorised_spans",
    "factorised_zlpr_loss",
    "load_published_weights",
    "streaming_zlpr_loss",
]
