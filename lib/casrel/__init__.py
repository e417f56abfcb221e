"""Subject-first triple extraction: half-pointer tagging with a power link, as in CasRel.

A model finds subjects first, then, for each of them, the objects of every relation. The pure
functions of chapter 8 are losses and cuts of the power link, the draw of a subject, the pairing of
starts with ends, and the layer normalisation that tells the object tagger which subject is meant;
:class:`CasRel` puts them together. ``python -m lib.casrel`` trains, evaluates and predicts from
the command line.
"""

from typing import TYPE_CHECKING

from lib._extras import lazily
from lib.casrel.decoding import TaggedSpans, tagged_spans
from lib.casrel.sampling import choose_subjects, object_tags, sample_subject, subject_tags
from lib.casrel.tagging import (
    ConditionalLayerNorm,
    conditional_layer_norm,
    half_pointer_loss,
    nearest_end_spans,
    power_bce_loss,
    power_probability,
    power_threshold,
    subject_distribution,
)

if TYPE_CHECKING:
    from lib.casrel.model import CasRel, TaggingOptions
    from lib.casrel.reencoding import extract_reencoding
else:  # the model needs the extra "extraction", the losses PyTorch alone
    __getattr__, __dir__ = lazily(
        __name__,
        {"CasRel": "model", "TaggingOptions": "model", "extract_reencoding": "reencoding"},
    )

__all__ = [
    "CasRel",
    "ConditionalLayerNorm",
    "TaggedSpans",
    "TaggingOptions",
    "choose_subjects",
    "conditional_layer_norm",
    "extract_reencoding",
    "half_pointer_loss",
    "nearest_end_spans",
    "object_tags",
    "power_bce_loss",
    "power_probability",
    "power_threshold",
    "sample_subject",
    "subject_distribution",
    "subject_tags",
    "tagged_spans",
]
