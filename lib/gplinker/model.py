"""The model: an encoder, three pointers, and the way from texts to triples and back."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor

from lib.divergence import r_drop, zlpr_divergence
from lib.extraction.alignment import TokenTriple
from lib.extraction.encoders import Encoder
from lib.extraction.model import ExtractionModel, Item, ModelOptions, batches_by_length
from lib.extraction.thresholds import Threshold, both_thresholds
from lib.extraction.triples import Triple
from lib.global_pointer import EfficientGlobalPointer, GlobalPointer
from lib.gplinker.decoding import best_spans, decode_blocks
from lib.gplinker.tables import Tables, table_positives

__all__ = ["GPLinker", "Item", "PointerOptions"]

MAX_SPANS = 128
"""Most subjects and most objects decoded per text; no sentence comes near it."""

NUMBERS_AT_ONCE = 2**24
"""Numbers of the pointers held at once in `GPLinker.extract`: 64 MB in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PointerOptions(ModelOptions):
    """How the tables are scored; see :meth:`GPLinker.create`."""

    pointer: Literal["efficient", "standard"] = "efficient"
    head_size: int = 64
    bias_start: float | None = -8.0
    link_rope: bool = True
    r_drop: float = 0.0


class GPLinker(ExtractionModel):
    r"""Extract triples with one table per entity role and two per relation.

    An encoder turns the text into states; three pointers turn these into the tables of subjects
    and objects (one pointer, two heads, causal, with RoPE), of links between first tokens and of
    links between last tokens (R heads each, not causal, with RoPE). The training loss is

    .. math:: \mathcal L = \frac1B\sum_{\text{texts}}\ \sum_{\text{tables } t}
        \Bigl[\log\bigl(1 + \textstyle\sum_{\mathrm{neg}} e^{s_t(i,j)}\bigr)
        + \log\bigl(1 + \textstyle\sum_{\mathrm{pos}} e^{-s_t(i,j)}\bigr)\Bigr]

    Equations: :eq:`eq:gplinker-loss`, :eq:`eq:gplinker-tables`, :eq:`eq:gplinker-decode`,
    :eq:`eq:gplinker-rdrop`

    Make one with :meth:`create` or :meth:`load`, not with the constructor.

    Parameters
    ----------
    encoder : Encoder
        With its tokenizer.
    relations : sequence of str
        Names of the relations, all different; their order is the order of the tables.
    options : PointerOptions
        How the tables are scored.

    Notes
    -----
    The sum over tables with equal weight and the mean over texts are those of kexue 8888 (2022)
    and its code. That code has no RoPE on the links (``link_rope=False``). Then a link sees what
    the two tokens are, but not that they stand near each other, and of two triples of the same
    relation in one sentence the subject of one is easily linked to the object of the other.
    """

    options_class: ClassVar[type[ModelOptions]] = PointerOptions
    tables: ClassVar[tuple[str, ...]] = ("subject", "object", "head link", "tail link")
    unnamed_folders = True  # those of version 0.1, when there was no other model
    options: PointerOptions

    def __init__(self, encoder: Encoder, relations: Sequence[str], options: PointerOptions) -> None:
        super().__init__(encoder, relations, options)
        if options.pointer not in ("efficient", "standard"):
            raise ValueError(
                f"pointer: expected 'efficient' or 'standard', got {options.pointer!r}"
            )
        if not 0 <= options.r_drop < inf:
            raise ValueError(f"r_drop: expected a finite number from 0 on, got {options.r_drop}")
        kind = EfficientGlobalPointer if options.pointer == "efficient" else GlobalPointer
        size, head_size, start = encoder.hidden_size, options.head_size, options.bias_start
        links = {"causal": False, "rope": options.link_rope}
        self.entities = kind(size, 2, head_size, bias_start=start)
        self.head_links = kind(size, len(self.relations), head_size, bias_start=start, **links)
        self.tail_links = kind(size, len(self.relations), head_size, bias_start=start, **links)

    @classmethod
    def create(
        cls,
        encoder: str,
        relations: Sequence[str],
        *,
        texts: Iterable[str] | None = None,
        **options: Any,
    ) -> Self:
        """Make an untrained model.

        Parameters
        ----------
        encoder : str
            ``"small"``: a transformer trained from scratch, with a vocabulary built of `texts`.
            Anything else: the name of an encoder on the Hugging Face hub, or a folder that holds
            one with its fast tokenizer; weights are read from safetensors only.
        relations : sequence of str
            Names of the relations, all different.
        texts : iterable of str or None
            The training texts. Needed for ``"small"``, not looked at otherwise.
        **options
            ``pointer`` ("efficient" or "standard"), ``head_size`` (64), ``bias_start``
            (−8, see :class:`lib.global_pointer.GlobalPointer`; None for none), ``link_rope``
            (True), ``r_drop`` (0; above 0 each training step passes its texts twice and is charged
            for the difference), and those of every model: see
            :meth:`lib.extraction.model.ExtractionModel.create`.

        Returns
        -------
        GPLinker
            On the CPU, in training mode; random weights come from torch's global generator.

        Raises
        ------
        TypeError
            If an option is unknown.
        ValueError
            If an option is out of range, `relations` is empty or has repetitions, `texts` is
            missing or has no words, or encoder and tokenizer do not belong together.
        OSError or ValueError
            From transformers, if it finds no such encoder.
        """
        return super().create(encoder, relations, texts=texts, **options)

    def collate(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Make a batch: everything `forward` needs, padded to the longest item.

        Parameters
        ----------
        items : sequence of Item
            At least one.

        Returns
        -------
        dict of str to Tensor
            The encoder's inputs ``(B, L)``; ``attention_mask`` (B, L), 1 on tokens; ``cells``
            (B, L) bool, True on tokens with characters, which alone have rows and columns in the
            tables; ``entities``, ``head_links``, ``tail_links`` as of :func:`table_positives`.

        Raises
        ------
        ValueError
            If `items` is empty.
        """
        batch = self.collate_texts(items)
        length = batch["cells"].shape[1]
        positives = table_positives(
            [item.triples for item in items], length=length, relations=len(self.relations)
        )
        return batch | positives._asdict()

    def scores(self, *, cells: Tensor, **inputs: Tensor) -> Tables:
        """Fill the tables of a batch, to look at: neither training nor extraction needs them.

        Parameters
        ----------
        cells : Tensor
            ``(B, L)`` bool, as of :meth:`collate`.
        **inputs : Tensor
            ``attention_mask`` and the encoder's inputs, as of :meth:`collate`.

        Returns
        -------
        Tables
            Scores ``(B, 2, L, L)``, ``(B, R, L, L)``, ``(B, R, L, L)``; −inf on rows and columns
            of tokens without characters and below the diagonal of the entity tables.
        """
        hidden = self.encoder(**inputs)
        return Tables(
            self.entities(hidden, cells),
            self.head_links(hidden, cells),
            self.tail_links(hidden, cells),
        )

    def forward(
        self,
        *,
        entities: Tensor,
        head_links: Tensor,
        tail_links: Tensor,
        cells: Tensor,
        **inputs: Tensor,
    ) -> Tensor:
        """Return the training loss of a batch made by :meth:`collate`.

        Returns
        -------
        Tensor
            A scalar: the sum of the ZLPR losses of all 2 + 2R tables, averaged over the texts.
            Large tables are not filled: see
            :meth:`lib.global_pointer.EfficientGlobalPointer.loss`. In
            training mode with ``r_drop`` above 0: the mean loss of two passes, plus r_drop / 4
            times the divergence of their filled tables, summed and averaged likewise
            (:func:`lib.divergence.r_drop`, :func:`lib.divergence.zlpr_divergence`).
        """
        hidden = self.encoder(**inputs)

        def loss(states: Tensor) -> Tensor:
            per_table = [
                pointer.loss(states, positives, cells, reduction="none")
                for pointer, positives in (
                    (self.entities, entities),
                    (self.head_links, head_links),
                    (self.tail_links, tail_links),
                )
            ]
            return torch.cat(per_table, dim=1).sum(dim=1).mean()

        if not (self.training and self.options.r_drop):
            return loss(hidden)

        def disagreement(states: Tensor, others: Tensor) -> Tensor:
            # What does not count is -inf in both tables, which the divergence leaves out.
            per_table = [
                zlpr_divergence(
                    *(pointer(s, cells).flatten(-2) for s in (states, others)), reduction="none"
                )
                for pointer in (self.entities, self.head_links, self.tail_links)
            ]
            return torch.cat(per_table, dim=1).sum(dim=1).mean()

        again = self.encoder(**inputs)
        return r_drop(hidden, again, loss, disagreement, alpha=self.options.r_drop)

    @torch.no_grad()
    def extract_scored(
        self, items: Sequence[Item], *, threshold: Threshold = 0.0
    ) -> list[tuple[tuple[Triple, float], ...]]:
        """Find the triples of texts, each with its least score.

        The model works in evaluation mode, on its own device, through the items by length in
        batches bounded by what the pointers hold; then it returns to the mode it was in. The tables
        are not filled: spans are found first, and links are scored between these alone.

        Parameters
        ----------
        items : sequence of Item
            As of :meth:`prepare`; their triples are not looked at.
        threshold : float or two of them
            What all four scores of a triple must exceed, or those of its spans and those of its
            links; finite.

        Returns
        -------
        list of tuples of (Triple, float)
            One per item, in the same order. The number is the smallest of the triple's four
            scores. At most 128 subjects and objects are considered per text,
            those with the highest scores.
        """
        thresholds = both_thresholds(threshold)
        found: list[tuple[tuple[Triple, float], ...]] = [()] * len(items)
        with self.evaluating() as device:
            for indices in self._batches(items):
                batch = self.collate_texts([items[i] for i in indices])
                batch = {name: value.to(device) for name, value in batch.items()}
                decoded = self._decode(thresholds, **batch)
                for i, triples in zip(indices, decoded, strict=True):
                    found[i] = self.in_characters(items[i], triples)
        return found

    def _says(self, hidden: Tensor, cells: Tensor, triple: TokenTriple) -> list[float]:
        t = triple
        scores = []
        for pointer, table, row, column in (
            (self.entities, 0, t.subject_head, t.subject_tail),
            (self.entities, 1, t.object_head, t.object_tail),
            (self.head_links, t.relation, t.subject_head, t.object_head),
            (self.tail_links, t.relation, t.subject_tail, t.object_tail),
        ):
            (i, j) = (torch.tensor([at], device=hidden.device) for at in (row, column))
            (block,) = pointer.blocks(hidden, [i], [j])
            scores.append(block[table].item())
        return scores

    def _relation_rows(self) -> dict[str, int]:
        if self.options.pointer == "efficient":  # starts of all relations, then ends of all
            names = {"head_scores.weight": 2, "head_scores.bias": 2}
        else:
            names = {"projection.weight": 1, "projection.bias": 1, "bias": 1}
        return {
            f"{links}.{name}": blocks
            for links in ("head_links", "tail_links")
            for name, blocks in names.items()
        }

    def _batches(self, items: Sequence[Item]) -> list[list[int]]:
        """Group the indices of items of similar length, longest first."""
        return batches_by_length([len(item) for item in items], self._numbers, NUMBERS_AT_ONCE)

    def _numbers(self, length: int) -> int:
        """Return how many numbers the pointers make of a text: two vectors per table, and pairs."""
        tables = 2 + 2 * len(self.relations)
        size = 1 if self.options.pointer == "efficient" else self.options.head_size
        return 2 * tables * length * size + 3 * length**2

    def _decode(
        self, thresholds: tuple[float, float], *, cells: Tensor, **inputs: Tensor
    ) -> list[list[tuple[TokenTriple, float]]]:
        """Find spans, then score the links between them."""
        of_spans, of_links = thresholds
        hidden = self.encoder(**inputs)
        found = self.entities.spans(hidden, cells, threshold=of_spans)
        each = torch.bincount(found.cells[:, 0] * 2 + found.cells[:, 1], minlength=2 * len(cells))
        spans = torch.split(found.cells[:, 2:], each.tolist())
        scores = torch.split(found.scores, each.tolist())
        roles = [best_spans(s, by, MAX_SPANS) for s, by in zip(spans, scores, strict=True)]
        subjects, objects = roles[::2], roles[1::2]
        heads, tails = (
            pointer.blocks(
                hidden, [s[:, end] for s, _ in subjects], [o[:, end] for o, _ in objects]
            )
            for end, pointer in enumerate((self.head_links, self.tail_links))
        )
        return [
            decode_blocks(*subject, *object_, head, tail, threshold=of_links)
            for subject, object_, head, tail in zip(subjects, objects, heads, tails, strict=True)
        ]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Take weights that were saved when the links were ``heads`` and ``tails``."""
        for name in list(state_dict):
            for old, new in (("heads.", "head_links."), ("tails.", "tail_links.")):
                if name.startswith(prefix + old):
                    now = prefix + new + name.removeprefix(prefix + old)
                    state_dict[now] = state_dict.pop(name)
        super()._load_from_state_dict(state_dict, prefix, *others)
