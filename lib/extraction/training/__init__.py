"""Train, evaluate and use any extraction model: the loop that the models' chapters share.

A model is whatever keeps the `Extractor` protocol. `train` fits it, keeps the epoch that scores
best on dev, and writes three things into one folder:

``best/``
    the kept model, as its own ``save`` writes it;
``checkpoint.pt``
    all that is needed to continue after the last finished epoch; removed when the run is done;
``record.json``
    the run record (`lib.extraction.records`), written last: where it is, the run is done.

Interrupting costs at most one epoch. Calling `train` again with the same arguments continues, and
ends with the same numbers as a run that was never interrupted: whatever is random within an epoch
(the order of the sentences, dropout) is a function of the seed and the epoch alone, so no random
state has to be saved and none can be lost.

Several processes, started by ``accelerate launch``, share each batch, and the gradient is that of
the whole batch: without dropout the result is the single process's up to rounding.
"""

from lib.extraction.training._inference import (
    LongTextWarning,
    LostTripleWarning,
    UnknownRelationWarning,
    choose_device,
    evaluate,
    find_candidates,
    make_accelerator,
    predict,
    warn_of_long_texts,
)
from lib.extraction.training._protocol import Extractor
from lib.extraction.training._run import train
from lib.extraction.training._settings import (
    Settings,
    ema_decay,
    epoch_batches,
    learning_rate_factor,
    set_seed,
)

__all__ = [
    "Extractor",
    "LongTextWarning",
    "LostTripleWarning",
    "Settings",
    "UnknownRelationWarning",
    "choose_device",
    "ema_decay",
    "epoch_batches",
    "evaluate",
    "find_candidates",
    "learning_rate_factor",
    "make_accelerator",
    "predict",
    "set_seed",
    "train",
    "warn_of_long_texts",
]
