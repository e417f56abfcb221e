"""The model: an encoder, a tagger of subjects, and a tagger of the objects of one subject."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar, Self, get_args

import torch
from torch import Tensor, nn

from lib._checks import check_threshold
from lib.casrel.decoding import TaggedSpans, candidate_spans, keep_best, tagged_spans
from lib.casrel.sampling import Sampling, choose_subjects, object_tags, subject_tags
from lib.casrel.tagging import ConditionalLayerNorm, half_pointer_loss, power_threshold
from lib.extraction.alignment import TokenTriple
from lib.extraction.encoders import Encoder
from lib.extraction.found import Candidate
from lib.extraction.model import ExtractionModel, Item, ModelOptions, batches_by_length
from lib.extraction.thresholds import Threshold, both_thresholds
from lib.extraction.triples import Triple

__all__ = ["CasRel", "TaggingOptions"]

MAX_SPANS = 128
"""Most subjects decoded per text, and most objects per subject; no sentence comes near it."""

NUMBERS_AT_ONCE = 2**22
"""About the numbers held at once in `CasRel.extract`: 16 MB in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaggingOptions(ModelOptions):
    """How tags are trained and read; see :meth:`CasRel.create`."""

    power: tuple[float, float] = (2.0, 4.0)
    sampling: Sampling = "all"
    subject_thresholds: tuple[float, float] = (0.5, 0.5)

    def __post_init__(self) -> None:
        """Refuse values that no model can have; make tuples of lists, as JSON has them."""
        for name in ("power", "subject_thresholds"):
            given = getattr(self, name)
            try:
                first, second = map(float, given)
            except (TypeError, ValueError):
                raise ValueError(f"{name}: expected two numbers, got {given!r}") from None
            limit = inf if name == "power" else 1.0
            if not (0 < first < limit and 0 < second < limit):
                raise ValueError(
                    f"{name}: expected two numbers above 0 and below {limit}, got {given!r}"
                )
            object.__setattr__(self, name, (first, second))
        if self.sampling not in get_args(Sampling):
            raise ValueError(
                f"sampling: expected 'all', 'uniform' or 'published', got {self.sampling!r}"
            )


class CasRel(ExtractionModel):
    r"""Extract triples by tagging subjects, then the objects of each subject.

    An encoder turns the text into states :math:`\mathbf h_i`. One linear map scores each token as
    the start and as the end of a subject. For a subject (a, b) the states pass through a layer
    normalisation whose gain and shift depend on :math:`[\mathbf h_a;\mathbf h_b]`, and a second
    linear map scores each token as the start and as the end of an object, once per relation. The
    training loss is

    .. math:: \mathcal L = \frac1B\sum_{\text{texts}} \Bigl[
        \ell_{\mathrm{sub}} + \sum_{s \in S} \ell_{\mathrm{obj}}(s)\Bigr]

    with :func:`lib.casrel.half_pointer_loss` of each text: over the two tags the mean, over the
    relations the sum, over the tokens of the text the mean. S is the set of the text's subjects, or
    one pair of positions that was drawn for this step, if the option ``sampling`` says so.

    Equations: :eq:`eq:casrel-graph`, :eq:`eq:casrel-subject-loss`, :eq:`eq:casrel-object-loss`,
    :eq:`eq:casrel-cln`, :eq:`eq:casrel-nearest`

    Make one with :meth:`create` or :meth:`load`, not with the constructor.

    Parameters
    ----------
    encoder : Encoder
        With its tokenizer.
    relations : sequence of str
        Names of the relations, all different; their order is the order of the object tags.
    options : TaggingOptions
        How tags are trained and read.

    Notes
    -----
    Differences from kexue 7161 (2020), whose model this is: the states are encoded once for all
    subjects of a text (:func:`lib.casrel.extract_reencoding` is the published way, to compare);
    by default the loss is taught all subjects of a text, not one that is drawn, which costs little
    once the states are shared and has no variance; the mean over tokens is taken in each text, not
    over the batch, so a text's loss does not depend on its neighbours; special tokens do not count;
    texts without triples are taught too; both thresholds are one half. The normalisation follows
    the encoder's last one instead of replacing it.

    Spans are read by pairing each start with the nearest end. So two subjects of one text that
    share their first token, or of which one holds the other's end before its own, cannot both be
    found, nor can such objects of one subject and one relation.
    """

    options_class: ClassVar[type[ModelOptions]] = TaggingOptions
    tables: ClassVar[tuple[str, ...]] = (
        "subject's start",
        "subject's end",
        "object's start",
        "object's end",
    )
    options: TaggingOptions

    def __init__(self, encoder: Encoder, relations: Sequence[str], options: TaggingOptions) -> None:
        super().__init__(encoder, relations, options)
        size = encoder.hidden_size
        self.subjects = nn.Linear(size, 2)
        self.norm = ConditionalLayerNorm(size, 2 * size)
        self.objects = nn.Linear(size, 2 * len(self.relations))

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
            ``power`` ((2, 4): the exponents of the links of subjects and of objects, see
            :func:`lib.casrel.power_probability`; (1, 1) is the usual logistic link), ``sampling``
            ("all": each step is taught the objects of all subjects of its texts; "uniform" or
            "published": of one pair per text, see :func:`lib.casrel.sample_subject`),
            ``subject_thresholds`` ((0.5, 0.5): the probabilities that starts and ends of subjects
            must exceed; 0.6 and 0.5 are the published ones), and those of every model: see
            :meth:`lib.extraction.model.ExtractionModel.create`.

        Returns
        -------
        CasRel
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

        Where one subject per text is drawn, the random numbers come from torch's global generator.

        Parameters
        ----------
        items : sequence of Item
            At least one.

        Returns
        -------
        dict of str to Tensor
            What :meth:`collate_texts` returns; ``subject_tags`` (B, L, 2) bool; ``chosen`` (N, 3),
            the subjects whose objects are taught; ``object_tags`` (N, L, R, 2) bool.

        Raises
        ------
        ValueError
            If `items` is empty.
        """
        batch = self.collate_texts(items)
        length = batch["cells"].shape[1]
        triples = [item.triples for item in items]
        chosen = choose_subjects(triples, self.options.sampling)
        return batch | {
            "subject_tags": subject_tags(triples, length=length),
            "chosen": chosen,
            "object_tags": object_tags(
                triples, chosen, length=length, relations=len(self.relations)
            ),
        }

    def object_scores(self, hidden: Tensor, chosen: Tensor) -> Tensor:
        """Score the object tags of subjects.

        Parameters
        ----------
        hidden : Tensor
            States ``(B, L, D)``.
        chosen : Tensor
            int64 ``(N, 3)``: index of the text, first and last token.

        Returns
        -------
        Tensor
            ``(N, L, R, 2)``: starts, ends.
        """
        text, head, tail = chosen.unbind(1)
        condition = torch.cat((hidden[text, head], hidden[text, tail]), dim=-1)
        scores: Tensor = self.objects(self.norm(hidden[text], condition))
        return scores.view(*scores.shape[:2], len(self.relations), 2)

    def forward(
        self,
        *,
        subject_tags: Tensor,
        chosen: Tensor,
        object_tags: Tensor,
        cells: Tensor,
        **inputs: Tensor,
    ) -> Tensor:
        """Return the training loss of a batch made by :meth:`collate`.

        Returns
        -------
        Tensor
            A scalar: the loss of the subject tags plus that of the object tags of the chosen
            subjects, averaged over the texts.
        """
        hidden = self.encoder(**inputs)
        sizes = cells.sum(1).clamp(min=1)  # a text without words has no loss, not 0 / 0
        texts = chosen[:, 0]
        subject_power, object_power = self.options.power
        subjects = half_pointer_loss(
            self.subjects(hidden), subject_tags, power=subject_power, mask=cells, reduction="none"
        )
        objects = half_pointer_loss(
            self.object_scores(hidden, chosen),
            object_tags,
            power=object_power,
            mask=cells[texts],
            reduction="none",
        )
        total = (subjects.sum(1) / sizes).sum() + (objects.sum(1) / sizes[texts]).sum()
        return total / cells.shape[0]  # len would make the size of an exported batch a constant

    @torch.no_grad()
    def extract_scored(
        self, items: Sequence[Item], *, threshold: Threshold = 0.0
    ) -> list[tuple[tuple[Triple, float], ...]]:
        """Find the triples of texts, each with its least score.

        The model works in evaluation mode, on its own device, through the items by length in
        batches of bounded size; then it returns to the mode it was in. Each text is encoded once,
        and the objects of all subjects of a batch are found together.

        Parameters
        ----------
        items : sequence of Item
            As of :meth:`prepare`; their triples are not looked at.
        threshold : float or two of them
            What all four amounts of a triple must exceed, or those of its subject and those of its
            object; finite. Ends are paired with starts among the tags that do, so a lower threshold
            may also shorten a span.

        Returns
        -------
        list of tuples of (Triple, float)
            One per item, in the same order; triples by subject, relation, object in the order of
            the text. The number is the smallest of the four amounts by which the scores of the
            triple's starts and ends exceed their thresholds. At most 128 subjects are considered
            per text and 128 objects per subject, those with the largest such amounts.
        """
        of_subjects, of_objects = both_thresholds(threshold)
        found: list[list[tuple[TokenTriple, float]]] = [[] for _ in items]
        with self.evaluating() as device:
            for indices in self._batches(items):
                batch = self.collate_texts([items[i] for i in indices])
                batch = {name: value.to(device) for name, value in batch.items()}
                cells = batch.pop("cells")
                hidden = self.encoder(**batch)
                subjects = self.find_subjects(hidden, cells, of_subjects)
                triples = self.find_triples(hidden, cells, subjects, of_objects)
                for row, tokens, margin in triples:
                    found[indices[row]].append((tokens, margin))
        return [self.in_characters(*pair) for pair in zip(items, found, strict=True)]

    @torch.no_grad()
    def candidates(self, items: Sequence[Item], *, floor: float) -> list[tuple[Candidate, ...]]:
        """Find the triples of texts at every threshold from `floor` on, each with its range.

        Parameters
        ----------
        items : sequence of Item
            As of :meth:`prepare`; their triples are not looked at.
        floor : float
            The least threshold; finite.

        Returns
        -------
        list of tuples of Candidate
            One per item, in the same order; see `lib.casrel.decoding.candidate_spans`. Of a
            text the 128 subjects with the largest scores are considered, and of each as many
            objects.
        """
        check_threshold("floor", floor)
        found: list[tuple[Candidate, ...]] = []
        with self.evaluating() as device:
            for item in items:
                batch = {n: value.to(device) for n, value in self.collate_texts([item]).items()}
                cells = batch.pop("cells")
                hidden = self.encoder(**batch)
                subjects = candidate_spans(self._subject_margins(hidden, cells), floor)
                subjects.sort(key=lambda span: -span.score)
                of_item = []
                for place, low, score in subjects[:MAX_SPANS]:
                    chosen = torch.tensor([place], device=device)
                    objects = candidate_spans(self._object_margins(hidden, cells, chosen), floor)
                    objects.sort(key=lambda span: -span.score)
                    for (_, *tokens), other, least in objects[:MAX_SPANS]:
                        whole = max(low, other), min(score, least)
                        if whole[0] < whole[1]:
                            triple = self.triple_of(item, TokenTriple(*place[1:], *tokens))
                            of_item.append(Candidate(triple, *whole))
                found.append(tuple(of_item))
        return found

    def find_subjects(self, hidden: Tensor, cells: Tensor, threshold: float = 0.0) -> TaggedSpans:
        """Read the subjects of texts off their tags.

        Parameters
        ----------
        hidden : Tensor
            States ``(B, L, D)``.
        cells : Tensor
            ``(B, L)`` bool, True on tokens with characters.
        threshold : float
            What the margins of both tags must exceed.

        Returns
        -------
        TaggedSpans
            Spans ``(N, 3)``: text, first and last token.
        """
        margins = self._subject_margins(hidden, cells)
        return keep_best(_tagged_above(margins, threshold), MAX_SPANS)

    def find_triples(
        self, hidden: Tensor, cells: Tensor, subjects: TaggedSpans, threshold: float = 0.0
    ) -> list[tuple[int, TokenTriple, float]]:
        """Read the objects of subjects off their tags.

        Parameters
        ----------
        hidden : Tensor
            States ``(B, L, D)``.
        cells : Tensor
            ``(B, L)`` bool, True on tokens with characters.
        subjects : TaggedSpans
            As of :meth:`find_subjects`.
        threshold : float
            What the margins of both tags of an object must exceed.

        Returns
        -------
        list of (int, TokenTriple, float)
            Text, triple and confidence, in the order of the subjects.
        """
        numbers = hidden.shape[1] * (hidden.shape[2] + 2 * len(self.relations))
        at_once = max(1, NUMBERS_AT_ONCE // numbers)
        found: list[tuple[int, TokenTriple, float]] = []
        for first in range(0, len(subjects.spans), at_once):
            spans = subjects.spans[first : first + at_once]
            margins = self._object_margins(hidden, cells, spans)
            objects = keep_best(_tagged_above(margins, threshold), MAX_SPANS)
            of = objects.spans[:, 0]
            rows = torch.cat((spans[of], objects.spans[:, 1:]), dim=1)
            least = torch.minimum(subjects.margins[first + of], objects.margins)
            for (text, *tokens), margin in zip(rows.tolist(), least.tolist(), strict=True):
                found.append((text, TokenTriple(*tokens), margin))
        return found

    def _says(self, hidden: Tensor, cells: Tensor, triple: TokenTriple) -> list[float]:
        head, tail = triple.subject_head, triple.subject_tail
        subjects = self._subject_margins(hidden, cells)[0]
        chosen = torch.tensor([[0, head, tail]], device=hidden.device)
        objects = self._object_margins(hidden, cells, chosen)[0, triple.relation]
        return [
            subjects[head, 0].item(),
            subjects[tail, 1].item(),
            objects[triple.object_head, 0].item(),
            objects[triple.object_tail, 1].item(),
        ]

    def _relation_rows(self) -> dict[str, int]:
        return {"objects.weight": 1, "objects.bias": 1}

    def _subject_margins(self, hidden: Tensor, cells: Tensor) -> Tensor:
        """Return by how much the tags of subjects exceed their thresholds, ``(B, L, 2)``."""
        power = self.options.power[0]
        cuts = [power_threshold(power, cut) for cut in self.options.subject_thresholds]
        return self._margins(self.subjects(hidden), cells, cuts)

    def _object_margins(self, hidden: Tensor, cells: Tensor, spans: Tensor) -> Tensor:
        """Return by how much the tags of these subjects' objects exceed theirs, (N, R, L, 2)."""
        cut = power_threshold(self.options.power[1])
        scores = self.object_scores(hidden, spans)
        return self._margins(scores, cells[spans[:, 0]], [cut, cut]).transpose(1, 2)

    @staticmethod
    def _margins(scores: Tensor, cells: Tensor, cuts: Sequence[float]) -> Tensor:
        """Take the cuts of starts and ends off scores ``(N, L, ..., 2)``; −inf outside the cells.

        At least in float32: a bfloat16 has no digits left for the difference.
        """
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        outside = ~cells.view(*cells.shape, *(1 for _ in scores.shape[2:]))
        return (scores - scores.new_tensor(cuts)).masked_fill(outside, -inf)

    def _batches(self, items: Sequence[Item]) -> list[list[int]]:
        """Group the indices of items of similar length, longest first."""
        size = self.encoder.hidden_size
        return batches_by_length(
            [len(item) for item in items], lambda length: length * (size + length), NUMBERS_AT_ONCE
        )


def _tagged_above(margins: Tensor, threshold: float) -> TaggedSpans:
    """Read the spans off tags whose margins exceed a threshold."""
    if not threshold:
        return tagged_spans(margins)
    found = tagged_spans(margins - threshold)
    return TaggedSpans(found.spans, found.margins + threshold)
