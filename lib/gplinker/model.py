"""The model: an encoder, three pointers, and the way from texts to triples and back."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

import safetensors
import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from lib.extraction.alignment import TokenTriple, align, span_of
from lib.extraction.records import write_atomically
from lib.extraction.triples import Example, Triple
from lib.global_pointer import EfficientGlobalPointer, GlobalPointer
from lib.gplinker.decoding import best_spans, decode_blocks
from lib.gplinker.encoders import Encoder, HuggingFaceEncoder, SmallEncoder, SmallOptions
from lib.gplinker.folders import replace_folder, restore_folder
from lib.gplinker.tables import Tables, table_positives

__all__ = ["GPLinker", "Item"]

FORMAT = 1
"""The layout of a saved folder. It changes whenever an older `GPLinker.load` could not read it."""

TRUNCATED = "text truncated"
"""Counted by `GPLinker.prepare` once per text longer than ``max_length`` tokens."""

MAX_SPANS = 128
"""Most subjects and most objects decoded per text; no sentence comes near it."""

NUMBERS_AT_ONCE = 2**24
"""Numbers of the pointers held at once in `GPLinker.extract`: 64 MB in float32."""

_KINDS: dict[str, type[HuggingFaceEncoder] | type[SmallEncoder]] = {
    kind.kind: kind for kind in (HuggingFaceEncoder, SmallEncoder)
}


@dataclass(frozen=True, slots=True)
class Item:
    """One text made ready: what the encoder reads, where its tokens are, and its triples.

    ``len(item)`` is the number of tokens, by which batches of similar length can be formed.
    """

    text: str
    inputs: dict[str, tuple[int, ...]]
    offsets: tuple[tuple[int, int], ...]
    triples: tuple[TokenTriple, ...]

    def __len__(self) -> int:
        """Return the number of tokens, special ones included."""
        return len(self.offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class PointerOptions:
    """How the tables are scored; see :meth:`GPLinker.create`."""

    pointer: Literal["efficient", "standard"] = "efficient"
    head_size: int = 64
    bias_start: float | None = -8.0
    link_rope: bool = True
    freeze_embeddings: bool = False


class GPLinker(nn.Module):
    r"""Extract triples with one table per entity role and two per relation.

    An encoder turns the text into states; three pointers turn these into the tables of subjects
    and objects (one pointer, two heads, causal, with RoPE), of links between first tokens and of
    links between last tokens (R heads each, not causal, with RoPE). The training loss is

    .. math:: \mathcal L = \frac1B\sum_{\text{texts}}\ \sum_{\text{tables } t}
        \Bigl[\log\bigl(1 + \textstyle\sum_{\mathrm{neg}} e^{s_t(i,j)}\bigr)
        + \log\bigl(1 + \textstyle\sum_{\mathrm{pos}} e^{-s_t(i,j)}\bigr)\Bigr]

    Equations: :eq:`eq:gplinker-loss`, :eq:`eq:gplinker-tables`, :eq:`eq:gplinker-decode`

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

    def __init__(self, encoder: Encoder, relations: Sequence[str], options: PointerOptions) -> None:
        super().__init__()
        _check_relations(relations)
        if options.pointer not in ("efficient", "standard"):
            raise ValueError(
                f"pointer: expected 'efficient' or 'standard', got {options.pointer!r}"
            )
        self.relations = tuple(relations)
        self.options = options
        self.encoder = encoder
        if options.freeze_embeddings:
            encoder.word_embeddings().requires_grad_(False)
        kind = EfficientGlobalPointer if options.pointer == "efficient" else GlobalPointer
        size, head_size, start = encoder.hidden_size, options.head_size, options.bias_start
        links = {"causal": False, "rope": options.link_rope}
        self.entities = kind(size, 2, head_size, bias_start=start)
        self.heads = kind(size, len(self.relations), head_size, bias_start=start, **links)
        self.tails = kind(size, len(self.relations), head_size, bias_start=start, **links)

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
            For both: ``pointer`` ("efficient" or "standard"), ``head_size`` (64), ``bias_start``
            (−8, see :class:`lib.global_pointer.GlobalPointer`; None for none), ``link_rope``
            (True), ``freeze_embeddings`` (False: word embeddings are trained too),
            ``max_length`` (tokens per text; 256, or the encoder's limit if that is lower). For
            ``"small"`` also ``hidden_size`` (192), ``layers`` (2), ``attention_heads`` (6),
            ``dropout`` (0.1), ``word_dropout`` (0.1), ``min_count`` (2, the occurrences that a
            word of the vocabulary needs).

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
        pointer_options = PointerOptions(**_take(options, PointerOptions))
        _check_relations(relations)
        made: Encoder
        if encoder == "small":
            if texts is None:
                raise ValueError("texts: expected the training texts for encoder 'small', got None")
            small_options = SmallOptions(**_take(options, SmallOptions))
            extra = {"min_count": options.pop("min_count")} if "min_count" in options else {}
            _refuse(options, "small")
            made = SmallEncoder.create(texts, small_options, **extra)
        else:
            max_length = options.pop("max_length", None)
            _refuse(options, encoder)
            made = HuggingFaceEncoder.create(encoder, max_length=max_length)
        return cls(made, relations, pointer_options)

    def prepare(self, examples: Sequence[Example]) -> tuple[list[Item], Counter[str]]:
        """Cut texts into tokens and carry their triples over.

        Parameters
        ----------
        examples : sequence of Example
            With or without triples.

        Returns
        -------
        items : list of Item
            One per example, in the same order.
        dropped : Counter of str
            How many triples have no tokens, by reason (see :mod:`lib.extraction.alignment`), and
            under "text truncated" how many texts were longer than ``max_length`` tokens.

        Raises
        ------
        ValueError
            If a triple has a relation that the model does not know.
        """
        ids = {relation: index for index, relation in enumerate(self.relations)}
        dropped: Counter[str] = Counter()
        items = []
        cut = self.encoder.tokenise([example.text for example in examples])
        for example, tokens in zip(examples, cut, strict=True):
            alignment = align(example, tokens.offsets, ids)
            dropped += alignment.dropped
            dropped[TRUNCATED] += tokens.truncated
            items.append(Item(example.text, tokens.inputs, tokens.offsets, alignment.triples))
        return items, +dropped

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
            tables; ``entities``, ``heads``, ``tails`` as of :func:`table_positives`.

        Raises
        ------
        ValueError
            If `items` is empty.
        """
        if not items:
            raise ValueError("items: expected at least one item, got none")
        length = max(len(item) for item in items)
        batch = {
            name: torch.tensor(
                [[*item.inputs[name], *[fill] * (length - len(item))] for item in items]
            )
            for name, fill in self.encoder.padding.items()
        }
        sizes = torch.tensor([len(item) for item in items])
        batch["attention_mask"] = (torch.arange(length) < sizes[:, None]).long()
        batch["cells"] = torch.tensor(
            [
                [start < end for start, end in item.offsets] + [False] * (length - len(item))
                for item in items
            ]
        )
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
            self.entities(hidden, cells), self.heads(hidden, cells), self.tails(hidden, cells)
        )

    def forward(
        self, *, entities: Tensor, heads: Tensor, tails: Tensor, cells: Tensor, **inputs: Tensor
    ) -> Tensor:
        """Return the training loss of a batch made by :meth:`collate`.

        Returns
        -------
        Tensor
            A scalar: the sum of the ZLPR losses of all 2 + 2R tables, averaged over the texts. The
            tables are not filled: see :meth:`lib.global_pointer.EfficientGlobalPointer.loss`.
        """
        hidden = self.encoder(**inputs)
        per_table = [
            pointer.loss(hidden, positives, cells, reduction="none")
            for pointer, positives in (
                (self.entities, entities),
                (self.heads, heads),
                (self.tails, tails),
            )
        ]
        return torch.cat(per_table, dim=1).sum(dim=1).mean()

    def extract(self, items: Sequence[Item]) -> list[tuple[Triple, ...]]:
        """Find the triples of texts.

        Parameters
        ----------
        items : sequence of Item
            As of :meth:`prepare`; their triples are not looked at.

        Returns
        -------
        list of tuples of Triple
            One per item, in the same order. See :meth:`extract_scored`.
        """
        return [tuple(triple for triple, _ in found) for found in self.extract_scored(items)]

    @torch.no_grad()
    def extract_scored(self, items: Sequence[Item]) -> list[tuple[tuple[Triple, float], ...]]:
        """Find the triples of texts, each with its confidence.

        The model works in evaluation mode, on its own device, through the items by length in
        batches bounded by what the pointers hold; then it returns to the mode it was in. The tables
        are not filled: spans are found first, and links are scored between these alone.

        Parameters
        ----------
        items : sequence of Item
            As of :meth:`prepare`; their triples are not looked at.

        Returns
        -------
        list of tuples of (Triple, float)
            One per item, in the same order. The number is the smallest of the triple's four
            scores, above 0. At most 128 subjects and objects are considered per text, those with
            the highest scores.
        """
        device = next(self.parameters()).device
        found: list[tuple[tuple[Triple, float], ...]] = [()] * len(items)
        training = self.training
        self.eval()
        try:
            for indices in self._batches(items):
                batch = self.collate([items[i] for i in indices])
                for name in Tables._fields:
                    del batch[name]
                decoded = self._decode(**{n: value.to(device) for n, value in batch.items()})
                for i, triples in zip(indices, decoded, strict=True):
                    found[i] = self._in_characters(items[i], triples)
        finally:
            self.train(training)
        return found

    def _batches(self, items: Sequence[Item]) -> list[list[int]]:
        """Group the indices of items of similar length, longest first."""
        batches: list[list[int]] = []
        room = 0
        for i in sorted(range(len(items)), key=lambda i: -len(items[i])):
            if room == 0:
                batches.append([])
                room = max(1, min(64, NUMBERS_AT_ONCE // self._numbers(len(items[i]))))
            batches[-1].append(i)
            room -= 1
        return batches

    def _numbers(self, length: int) -> int:
        """Return how many numbers the pointers make of a text: two vectors per table, and pairs."""
        tables = 2 + 2 * len(self.relations)
        size = 1 if self.options.pointer == "efficient" else self.options.head_size
        return 2 * tables * length * size + 3 * length**2

    def _decode(self, *, cells: Tensor, **inputs: Tensor) -> list[list[tuple[TokenTriple, float]]]:
        """Find spans, then score the links between them."""
        hidden = self.encoder(**inputs)
        found = self.entities.spans(hidden, cells)
        each = torch.bincount(found.cells[:, 0] * 2 + found.cells[:, 1], minlength=2 * len(cells))
        spans = torch.split(found.cells[:, 2:], each.tolist())
        scores = torch.split(found.scores, each.tolist())
        roles = [best_spans(s, by, MAX_SPANS) for s, by in zip(spans, scores, strict=True)]
        subjects, objects = roles[::2], roles[1::2]
        heads, tails = (
            pointer.blocks(
                hidden, [s[:, end] for s, _ in subjects], [o[:, end] for o, _ in objects]
            )
            for end, pointer in enumerate((self.heads, self.tails))
        )
        return [
            decode_blocks(*subject, *object_, head, tail)
            for subject, object_, head, tail in zip(subjects, objects, heads, tails, strict=True)
        ]

    def _in_characters(
        self, item: Item, triples: Sequence[tuple[TokenTriple, float]]
    ) -> tuple[tuple[Triple, float], ...]:
        """Turn token positions into characters and relation numbers into names."""
        return tuple(
            (
                Triple(
                    span_of(item.offsets, t.subject_head, t.subject_tail),
                    self.relations[t.relation],
                    span_of(item.offsets, t.object_head, t.object_tail),
                ),
                score,
            )
            for t, score in triples
        )

    def parameter_groups(
        self, lr: float, head_lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Group the trained parameters for an optimiser.

        Parameters
        ----------
        lr, head_lr : float
            Learning rates of the encoder and of the three pointers.
        weight_decay : float
            For matrices and embeddings; biases and the scales of norms are not decayed.

        Returns
        -------
        list of dict
            With keys ``params``, ``lr`` and ``weight_decay``; each trained parameter is in exactly
            one group, frozen ones in none, and no group is empty.
        """
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                rate = lr if name.startswith("encoder.") else head_lr
                decay = weight_decay if parameter.dim() > 1 else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
        return [
            {"params": params, "lr": rate, "weight_decay": decay}
            for (rate, decay), params in groups.items()
        ]

    def save(self, folder: Path) -> None:
        """Write the model as a folder: config.json, model.safetensors and encoder/.

        Everything is written into a new folder beside `folder`, which then takes its place. A kill
        or a full disk in the middle leaves the former model as it was, for :meth:`load` to find.

        Parameters
        ----------
        folder : Path
            Made or replaced. Its parent must exist.

        Raises
        ------
        ValueError
            If `folder` is there and is not a saved model: it is not overwritten.
        OSError
            As the disk raises it.
        """
        folder = Path(folder)
        if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").is_file():
            raise ValueError(f"folder: expected a saved model or nothing at {folder}, got files")
        replace_folder(folder, self._write)

    def _write(self, folder: Path) -> None:
        """Fill an empty folder."""
        (folder / "encoder").mkdir()
        self.encoder.save_files(folder / "encoder")
        config = {
            "format": FORMAT,
            "library": metadata.version("softmax-to-gplinker"),
            "relations": list(self.relations),
            "options": asdict(self.options),
            "dtype": str(next(self.parameters()).dtype).removeprefix("torch."),
            "encoder": {"kind": self.encoder.kind, **self.encoder.describe()},
        }
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / "config.json", lambda file: file.write(text.encode()))
        state = {name: value.contiguous().cpu() for name, value in self.state_dict().items()}
        weights = to_bytes(state, metadata={"format": "pt"})
        write_atomically(folder / "model.safetensors", lambda file: file.write(weights))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a model that :meth:`save` wrote; no network, no other files are needed.

        Parameters
        ----------
        folder : Path
            As given to :meth:`save`.

        Returns
        -------
        GPLinker
            On the CPU, in evaluation mode.

        Raises
        ------
        FileNotFoundError
            If a file is missing.
        ValueError
            If the folder has another format, or its files do not belong together.
        """
        folder = Path(folder)
        restore_folder(folder)
        for name in ("config.json", "model.safetensors", "encoder"):
            if not (folder / name).exists():
                raise FileNotFoundError(f"{folder}: expected a saved model, but it has no {name}")
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{folder / 'config.json'}: not JSON: {error}") from error
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            given = config.get("format") if isinstance(config, dict) else None
            raise ValueError(f"{folder / 'config.json'}: expected format {FORMAT}, got {given!r}")
        description = dict(config["encoder"])
        encoder = _KINDS[description.pop("kind")].load(folder / "encoder", description)
        model = cls(encoder, config["relations"], PointerOptions(**config["options"]))
        model.to(getattr(torch, config["dtype"]))
        try:
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise ValueError(
                f"{folder / 'model.safetensors'}: does not fit config.json: {error}"
            ) from error
        return model.eval()


def _check_relations(relations: Sequence[str]) -> None:
    if not relations or isinstance(relations, str):
        raise ValueError(f"relations: expected at least one name in a sequence, got {relations!r}")
    repeated = [name for name, count in Counter(relations).items() if count > 1]
    if repeated:
        raise ValueError(f"relations: expected different names, got {repeated[0]!r} more than once")


def _take(options: dict[str, Any], kind: type) -> dict[str, Any]:
    """Move the options of one dataclass out of all options."""
    return {f.name: options.pop(f.name) for f in fields(kind) if f.name in options}


def _refuse(options: dict[str, Any], encoder: str) -> None:
    if options:
        raise TypeError(f"options: not known for encoder {encoder!r}: {', '.join(sorted(options))}")
