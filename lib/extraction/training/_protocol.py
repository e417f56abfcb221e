"""What a model must offer to be trained by `lib.extraction.training`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor

from lib.extraction.alignment import Losses
from lib.extraction.found import Candidate
from lib.extraction.thresholds import Decoding, Threshold
from lib.extraction.triples import Example, Triple

__all__ = ["Extractor"]


class Extractor(Protocol):
    """What a model must offer to be trained here. All are ``torch.nn.Module`` subclasses.

    `relations` are the relations that the model can name, in its own order; `decoding` says how it
    reads its scores where nothing else is said. `save` and `load` keep both. `tables` name what
    must say yes to a triple: first those of what is found first, then as many of what joins it.
    `symmetric` are the relations that hold both ways; `card` is a model card, for people. `save`
    and `load` keep both.
    """

    tables: ClassVar[tuple[str, ...]]
    relations: tuple[str, ...]
    decoding: Decoding
    symmetric: tuple[str, ...]
    card: str

    @classmethod
    def create(
        cls,
        encoder: str,
        relations: Sequence[str],
        *,
        texts: Sequence[str] | None = None,
        **options: Any,
    ) -> Self:
        """Make a new model. Its random numbers come from torch's global generator.

        `encoder` is a Hugging Face name or folder, or a name of the model's own; `texts` are the
        training texts, for encoders that build a vocabulary.
        """

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote, into this folder or, as a run does, into ``best`` in it.

        What is missing is named in an error.
        """

    @classmethod
    def start_from(cls, folder: Path, relations: Sequence[str]) -> Self:
        """Make a model for these relations of one that `save` wrote.

        It keeps what that one has learnt, except of relations that are not among these.
        """

    def save(self, folder: Path) -> None:
        """Write the model to a folder, whole or not at all."""

    def prepare(self, examples: Sequence[Example]) -> tuple[list[Any], Losses]:
        """Return the items of the examples, in order, and what alignment lost, by reason.

        ``item.example`` is the index of an item's example, which has one or, if it is longer than
        the model reads at once, several. ``len(item)`` is a length by which similar items are
        batched together.
        """

    def collate(self, items: list[Any]) -> dict[str, Tensor]:
        """Return a batch: the keyword arguments of ``forward``, all tensors."""

    def extract_scored(
        self, items: list[Any], *, threshold: Threshold = 0.0
    ) -> list[tuple[tuple[Triple, float], ...]]:
        """Return the triples of each item, each with its least score, above the threshold."""

    def candidates(self, items: list[Any], *, floor: float) -> list[tuple[Candidate, ...]]:
        """Return what `extract_scored` gives at any threshold from `floor` on, and at which."""

    def table_scores(self, items: list[Any]) -> list[tuple[tuple[Triple, tuple[float, ...]], ...]]:
        """Return what each of `tables` says to the triples that an item itself has."""

    def parameter_groups(
        self, lr: float, head_lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Return parameter groups for AdamW, each with its own ``lr``."""

    def __call__(self, **batch: Tensor) -> Tensor:
        """Return the *mean* over the batch's examples of a loss per example.

        Every parameter that requires a gradient takes part, whatever the batch holds.
        """

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """As in ``torch.nn.Module``."""

    def state_dict(self) -> dict[str, Any]:
        """As in ``torch.nn.Module``."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """As in ``torch.nn.Module``."""

    def train(self, mode: bool = True) -> Any:
        """As in ``torch.nn.Module``."""

    def to(self, device: torch.device) -> Any:
        """As in ``torch.nn.Module``."""
