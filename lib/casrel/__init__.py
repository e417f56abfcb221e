"""Subject-first triple extraction: half-pointer tagging with a power link, as in CasRel.

The mathematics of chapter 8: losses and cuts of the power link, the distribution of sampled
subjects, the published pairing of starts and ends, and the layer normalisation that tells the
object tagger which subject is meant.
"""

from lib.casrel.tagging import (
    conditional_layer_norm,
    half_pointer_loss,
    nearest_end_spans,
    power_bce_loss,
    power_probability,
    power_threshold,
    subject_distribution,
)

__all__ = [
    "conditional_layer_norm",
    "half_pointer_loss",
    "nearest_end_spans",
    "power_bce_loss",
    "power_probability",
    "power_threshold",
    "subject_distribution",
]
