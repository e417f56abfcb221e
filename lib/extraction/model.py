"""What every extraction model here is made of: an encoder, relations, options, and a folder.

`ExtractionModel` has all that the book's models share, from making an encoder to saving the whole.
A model adds its heads, the targets of its loss, and the way from scores to triples.
"""

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from math import inf
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from lib import __version__
from lib._extras import needs
from lib.extraction.alignment import (
    LONG_TEXT,
    TOO_FAR,
    WINDOW,
    Loss,
    Losses,
    TokenTriple,
    align,
    describe_loss,
    span_of,
)
from lib.extraction.encoders import (
    Encoder,
    HuggingFaceEncoder,
    SmallEncoder,
    SmallOptions,
    Tokens,
)
from lib.extraction.folders import model_folder, replace_folder
from lib.extraction.found import Candidate, FoundTriple
from lib.extraction.jsontext import parse_json
from lib.extraction.records import write_atomically
from lib.extraction.thresholds import Decoding, Threshold
from lib.extraction.training import predict
from lib.extraction.triples import Example, Triple
from lib.extraction.windows import windows

with needs("extraction"):
    import safetensors
    from safetensors.torch import load_file
    from safetensors.torch import save as to_bytes

__all__ = ["ExtractionModel", "Item", "ModelOptions", "batches_by_length"]

FORMAT = 1
"""The layout of a saved folder. It changes whenever an older `load` could not read it."""

DTYPES = ("float64", "float32", "bfloat16", "float16")
"""What the weights of a saved model may be made of."""

TEXTS_AT_ONCE = 64
"""Most texts in one batch of `batches_by_length`."""

_KINDS: dict[str, type[HuggingFaceEncoder] | type[SmallEncoder]] = {
    kind.kind: kind for kind in (HuggingFaceEncoder, SmallEncoder)
}


@dataclass(frozen=True, slots=True)
class Item:
    """One text, or a window of a long one, made ready: its tokens, where they are, its triples.

    ``len(item)`` is the number of tokens, by which batches of similar length can be formed. The
    offsets are those in the whole text. ``example`` is the place of the text among those given.
    """

    text: str
    inputs: dict[str, tuple[int, ...]]
    offsets: tuple[tuple[int, int], ...]
    triples: tuple[TokenTriple, ...]
    example: int

    def __len__(self) -> int:
        """Return the number of tokens, special ones included."""
        return len(self.offsets)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """What can be chosen for any model. A model's own options extend it; all have defaults."""

    freeze_embeddings: bool = False


class ExtractionModel(nn.Module, ABC):
    """An encoder with heads that extract triples; keeps `lib.extraction.training.Extractor`.

    Make one with :meth:`create` or :meth:`load`, not with the constructor.

    Parameters
    ----------
    encoder : Encoder
        With its tokenizer.
    relations : sequence of str
        Names of the relations, all different; their order is that of the model's heads.
    options : ModelOptions
        An instance of the class's `options_class`.

    Attributes
    ----------
    decoding : Decoding
        The threshold and the confidence where nothing else is said. Saved and loaded with the
        model; training sets it back, as it belongs to the weights.
    symmetric : tuple of str
        The relations that hold both ways or not at all: their triples are scored whichever entity
        comes first. Saved and loaded with the model.
    card : str
        The model card, Markdown for people, which a training run writes and `calibrate` completes.
        Saved as README.md if it is not empty.
    """

    options_class: ClassVar[type[ModelOptions]]
    """The options of the model, a frozen dataclass of plain JSON values."""

    tables: ClassVar[tuple[str, ...]]
    """What must say yes to a triple, first what is found first, then as many of what joins it."""

    unnamed_folders: ClassVar[bool] = False
    """Whether a saved folder that does not name its model holds one of this class."""

    relations: tuple[str, ...]
    options: Any
    encoder: Encoder
    decoding: Decoding
    symmetric: tuple[str, ...]
    card: str

    def __init__(self, encoder: Encoder, relations: Sequence[str], options: ModelOptions) -> None:
        super().__init__()
        self.decoding = Decoding()
        self.symmetric = ()
        self.card = ""
        _check_relations(relations)
        self.relations = tuple(relations)
        self.options = options
        self.encoder = encoder
        if options.freeze_embeddings:
            encoder.word_embeddings().requires_grad_(False)

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
            Those of the model; ``freeze_embeddings`` (False: word embeddings are trained too);
            ``max_length`` (tokens per text; 256, or the encoder's limit if that is lower). For a
            pretrained encoder also ``word_shapes`` (False; True adds what its tokenizer may hide:
            whether a word is capitalised, in capitals or has digits). For ``"small"`` also
            ``hidden_size`` (192), ``layers`` (2), ``attention_heads`` (6), ``dropout`` (0.1),
            ``word_dropout`` (0.1), ``min_count`` (2, the occurrences that a word of the vocabulary
            needs).

        Returns
        -------
        ExtractionModel
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
        own = cls.options_class(**_take(options, cls.options_class))
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
            known = {n: options.pop(n) for n in ("max_length", "word_shapes") if n in options}
            _refuse(options, encoder)
            made = HuggingFaceEncoder.create(encoder, **known)
        return cls(made, relations, own)

    def prepare(self, examples: Sequence[Example]) -> tuple[list[Item], Losses]:
        """Cut texts into tokens, long ones into windows too, and carry their triples over.

        Parameters
        ----------
        examples : sequence of Example
            With or without triples.

        Returns
        -------
        items : list of Item
            One per example, in the same order; of a text of more than ``max_length`` tokens
            several, its :func:`~lib.extraction.windows.windows`. A triple is in each that holds
            both its entities.
        losses : Losses
            How many triples cannot be told to the model, by reason (see
            :mod:`lib.extraction.alignment`), and how many texts are read in how many windows; with
            the first example of each.
        """
        ids = {relation: index for index, relation in enumerate(self.relations)}
        losses = Losses()
        items = []
        cut = self.encoder.tokenise([example.text for example in examples])
        for index, (example, tokens) in enumerate(zip(examples, cut, strict=True)):
            alignment = align(example, tokens.offsets, ids)
            lost = list(alignment.lost)
            held: set[TokenTriple] = set()
            parts = self._windows(example.text, tokens)
            for first, part in parts:
                inside = [triple for triple in alignment.triples if part.holds(triple, first)]
                held.update(inside)
                triples = tuple(triple.moved(-first) for triple in inside)
                items.append(Item(example.text, part.inputs, part.offsets, triples, index))
            for triple in alignment.triples:
                if triple not in held:
                    lost.append(Loss(self.triple_of(tokens, triple), "pair", TOO_FAR))
            for loss in lost:
                known = loss.reason in losses.first  # no words are made of what nobody reads
                losses.add(
                    loss.reason, "" if known else describe_loss(example, loss, tokens.offsets)
                )
            if len(parts) > 1:
                losses.add(LONG_TEXT, example.source or f"example {example.id!r}")
                losses[WINDOW] += len(parts)
        return items, losses

    def _windows(self, text: str, tokens: Tokens) -> list[tuple[int, Tokens]]:
        """Return the windows of a text, each with the number of tokens that it leaves out before.

        Most texts are one window, which leaves out none.
        """
        before, after = tokens.special
        of_text = tokens.offsets[before : len(tokens.offsets) - after]
        found = windows(text, of_text, self.encoder.max_length - before - after)
        if len(found) == 1:
            return [(0, tokens)]
        return [(first, tokens.part(first, last)) for first, last in found]

    def collate_texts(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Make the part of a batch that has no labels, padded to the longest item.

        Parameters
        ----------
        items : sequence of Item
            At least one.

        Returns
        -------
        dict of str to Tensor
            The encoder's inputs ``(B, L)``; ``attention_mask`` (B, L), 1 on tokens; ``cells``
            (B, L) bool, True on tokens with characters, which alone can be part of a span.

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
        return batch

    @abstractmethod
    def collate(self, items: Sequence[Item]) -> dict[str, Tensor]:
        """Make a batch of :meth:`collate_texts` and labels: what ``forward`` needs."""

    @abstractmethod
    def extract_scored(
        self, items: Sequence[Item], *, threshold: Threshold = 0.0
    ) -> list[tuple[tuple[Triple, float], ...]]:
        """Find the triples of texts, each with its least score, above the threshold."""

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
            One per item, in the same order.
        """
        return [
            tuple(Candidate(triple, -inf, score) for triple, score in found)
            for found in self.extract_scored(items, threshold=floor)
        ]

    def table_scores(
        self, items: Sequence[Item]
    ) -> list[tuple[tuple[Triple, tuple[float, ...]], ...]]:
        """Return what each of `tables` says to the items' own triples.

        Parameters
        ----------
        items : sequence of Item
            As of :meth:`prepare`.

        Returns
        -------
        list of tuples of (Triple, tuple of float)
            One tuple per item, with its triples in order, each with one score for each of `tables`.
            Of the model's threshold nothing has been taken off.
        """
        found = []
        with torch.no_grad(), self.evaluating() as device:
            for item in items:
                batch = {n: value.to(device) for n, value in self.collate_texts([item]).items()}
                cells = batch.pop("cells")
                hidden = self.encoder(**batch)
                found.append(
                    tuple(
                        (self.triple_of(item, tokens), tuple(self._says(hidden, cells, tokens)))
                        for tokens in item.triples
                    )
                )
        return found

    @abstractmethod
    def _says(self, hidden: Tensor, cells: Tensor, triple: TokenTriple) -> list[float]:
        """Return what each of `tables` says to a triple of the only text of a batch."""

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

    def predict(
        self,
        texts: Sequence[str],
        *,
        threshold: Threshold | None = None,
        batch_size: int = 32,
        device: str | torch.device | None = None,
    ) -> list[tuple[FoundTriple, ...]]:
        """Extract triples from texts; the way of the command ``predict``.

        Parameters
        ----------
        texts : sequence of str
            May be empty. Texts that are longer than the model reads at once are read in overlapping
            windows, with one warning for all (:func:`lib.extraction.training.predict`).
        threshold : float, two of them, or None
            What all scores of a triple must exceed, or those of each kind of table
            (:data:`lib.extraction.thresholds.Threshold`); None: what `decoding` says, 0 where the
            model was not calibrated.
        batch_size : int
            Texts at a time.
        device : str, torch.device or None
            Where to compute, and where the model is afterwards; None: CUDA where it is, else the
            CPU.

        Returns
        -------
        list of tuple of FoundTriple
            One tuple per text, in order. The model is left in evaluation mode.

        Raises
        ------
        TypeError
            If `texts` is one string.
        ValueError
            If the threshold is not finite.
        """
        if isinstance(texts, str):
            raise TypeError("texts must be a sequence of strings, got a string: give [text]")
        found = predict(
            self,
            texts,
            threshold=threshold,
            batch_size=batch_size,
            device=device,
        )
        return [
            tuple(FoundTriple.of(text, triple, confidence) for triple, confidence in of_text)
            for text, of_text in zip(texts, found, strict=True)
        ]

    def in_characters(
        self, item: Item, found: Iterable[tuple[TokenTriple, float]]
    ) -> tuple[tuple[Triple, float], ...]:
        """Name triples of tokens by their characters, each once, with its best score.

        Several tokens may cover the same characters, as the bytes of 中 do, so that several triples
        of tokens are one triple of the text. Each stands where the first of them did.
        """
        best: dict[Triple, float] = {}
        for tokens, score in found:
            triple = self.triple_of(item, tokens)
            best[triple] = max(score, best.get(triple, score))
        return tuple(best.items())

    def triple_of(self, item: Item | Tokens, tokens: TokenTriple) -> Triple:
        """Name a triple of tokens by its characters and its relation."""
        return Triple(
            span_of(item.offsets, tokens.subject_head, tokens.subject_tail),
            self.relations[tokens.relation],
            span_of(item.offsets, tokens.object_head, tokens.object_tail),
        )

    @contextmanager
    def evaluating(self) -> Iterator[torch.device]:
        """Hold the model in evaluation mode, then return it to the mode it was in.

        Yields the device that the model is on.
        """
        training = self.training
        self.eval()
        try:
            yield next(self.parameters()).device
        finally:
            self.train(training)

    def parameter_groups(
        self, lr: float, head_lr: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """Group the trained parameters for an optimiser.

        Parameters
        ----------
        lr, head_lr : float
            Learning rates of the encoder and of everything else; the vectors of word shapes beside
            a pretrained encoder are as new as the heads, and learn at their rate.
        weight_decay : float
            For matrices and embeddings; biases and the scales of norms are not decayed.

        Returns
        -------
        list of dict
            With keys ``params``, ``lr`` and ``weight_decay``; each trained parameter is in exactly
            one group, frozen ones in none, and no group is empty.
        """
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        new = set(self.encoder.new_parameters())
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                trained = name.startswith("encoder.") and parameter not in new
                rate = lr if trained else head_lr
                decay = weight_decay if parameter.dim() > 1 else 0.0
                groups.setdefault((rate, decay), []).append(parameter)
        return [
            {"params": params, "lr": rate, "weight_decay": decay}
            for (rate, decay), params in groups.items()
        ]

    def save(self, folder: Path) -> None:
        """Write the model as a folder: config.json, model.safetensors, encoder/ and README.md.

        Everything is written into a new folder beside `folder`, which then takes its place. A kill
        or a full disk in the middle leaves the former model as it was, for :meth:`load` to find.

        Parameters
        ----------
        folder : Path
            Made or replaced. Its parent must exist.

        Raises
        ------
        ValueError
            If `folder` is there and is not a saved model: it is not overwritten; or if another
            process is just saving to it.
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
            "model": type(self).__name__,
            "library": __version__,
            "relations": list(self.relations),
            "options": asdict(self.options),
            "dtype": str(next(self.parameters()).dtype).removeprefix("torch."),
            "encoder": {"kind": self.encoder.kind, **self.encoder.describe()},
            "decoding": asdict(self.decoding),
            "symmetric": list(self.symmetric),
        }
        text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
        write_atomically(folder / "config.json", lambda file: file.write(text.encode()))
        if self.card:
            write_atomically(folder / "README.md", lambda file: file.write(self.card.encode()))
        state = {name: value.contiguous().cpu() for name, value in self.state_dict().items()}
        weights = to_bytes(state, metadata={"format": "pt"})
        write_atomically(folder / "model.safetensors", lambda file: file.write(weights))

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Read a model that :meth:`save` wrote; no network, no other files are needed.

        Parameters
        ----------
        folder : Path or str
            As given to :meth:`save`, or the folder of a training run, whose best model is read.

        Returns
        -------
        ExtractionModel
            On the CPU, in evaluation mode.

        Raises
        ------
        OSError
            If a file is missing or, in the encoder's folder, cannot be read.
        ValueError
            If the folder has another format or another model, an option that it has not or of
            another kind, or its files do not belong together.
        """
        folder = model_folder(Path(folder))
        for name in ("config.json", "model.safetensors", "encoder"):
            if not (folder / name).exists():
                raise FileNotFoundError(f"{folder}: expected a saved model, but it has no {name}")
        try:
            model = cls._build(folder, parse_json((folder / "config.json").read_bytes()))
        except ValueError as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from error
        try:
            model.load_state_dict(load_file(folder / "model.safetensors"))
        except (RuntimeError, safetensors.SafetensorError) as error:
            raise ValueError(
                f"{folder / 'model.safetensors'}: does not fit config.json: {error}"
            ) from error
        if (folder / "README.md").is_file():
            model.card = (folder / "README.md").read_text("utf-8", errors="replace")
        return model.eval()

    # The names that the libraries of Hugging Face have for these.
    save_pretrained = save
    from_pretrained = load

    @classmethod
    def start_from(cls, folder: Path | str, relations: Sequence[str]) -> Self:
        """Make a model for these relations of one that :meth:`save` wrote.

        Parameters
        ----------
        folder : Path or str
            As of :meth:`load`.
        relations : sequence of str
            Names of the relations, all different.

        Returns
        -------
        ExtractionModel
            On the CPU, in training mode. Its encoder, options and heads are those of the saved
            model. Relations that this one has not start anew, with random weights from torch's
            global generator; those that are not among `relations` are left out.

        Raises
        ------
        OSError, ValueError
            As of :meth:`load`, or if `relations` is empty or has repetitions.
        """
        old = cls.load(folder)
        model = cls(old.encoder, relations, old.options).to(next(old.parameters()).dtype)
        state = model.state_dict()
        groups = model._relation_rows()
        common = [
            (model.relations.index(name), index)
            for index, name in enumerate(old.relations)
            if name in model.relations
        ]
        for name, value in old.state_dict().items():
            if name not in groups:
                state[name] = value
                continue
            mine, theirs = (
                rows.view(groups[name], len(known), -1, *rows.shape[1:])
                for rows, known in ((state[name], model.relations), (value, old.relations))
            )
            for new, index in common:
                mine[:, new] = theirs[:, index]
        model.load_state_dict(state)
        model.symmetric = tuple(name for name in old.symmetric if name in model.relations)
        return model.train()

    @abstractmethod
    def _relation_rows(self) -> dict[str, int]:
        """Name the tensors whose rows belong to relations, with the number of blocks of such rows.

        In a block the rows of the first relation come first, then those of the second.
        """

    @classmethod
    def _build(cls, folder: Path, config: Any) -> Self:
        """Make a model as config.json describes it, its weights still random."""
        if not isinstance(config, dict) or config.get("format") != FORMAT:
            given = config.get("format") if isinstance(config, dict) else None
            raise ValueError(f"expected format {FORMAT}, got {given!r}")
        kind = config.get("model", cls.__name__ if cls.unnamed_folders else None)
        if kind != cls.__name__:
            raise ValueError(f"expected a model {cls.__name__!r}, got {kind!r}")
        config = {"decoding": {}, "symmetric": [], **config}  # former versions wrote neither
        for name, expected in (
            ("relations", list),
            ("options", dict),
            ("encoder", dict),
            ("decoding", dict),
            ("symmetric", list),
        ):
            if not isinstance(config.get(name), expected):
                kind = {list: "list", dict: "object"}[expected]
                raise ValueError(f"{name} must be a JSON {kind}, got {config.get(name)!r}")
        for name in config["relations"]:
            if not isinstance(name, str):
                raise ValueError(f"relations must be strings, got {name!r}")
        for name in config["symmetric"]:
            if name not in config["relations"]:
                raise ValueError(f"symmetric must be among the relations, got {name!r}")
        dtype = config.get("dtype")
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        description = dict(config["encoder"])
        kind = description.pop("kind", None)
        if not isinstance(kind, str) or kind not in _KINDS:
            raise ValueError(f"the encoder's kind must be one of {', '.join(_KINDS)}, got {kind!r}")
        _check_options("options", config["options"], asdict(cls.options_class()))
        _check_options("encoder", description, _KINDS[kind].described)
        _check_options("decoding", config["decoding"], asdict(Decoding()))
        encoder = _KINDS[kind].load(folder / "encoder", description)
        model = cls(encoder, config["relations"], cls.options_class(**config["options"]))
        model.decoding = Decoding(**config["decoding"])
        model.symmetric = tuple(config["symmetric"])
        return model.to(getattr(torch, dtype))


def batches_by_length(
    lengths: Sequence[int], cost: Callable[[int], int], limit: int
) -> list[list[int]]:
    """Group the indices of items of similar length, longest first, into batches of bounded cost.

    Parameters
    ----------
    lengths : sequence of int
        One per item.
    cost : callable
        What one item of a batch takes if the longest of the batch has this length; above 0.
    limit : int
        Most that a batch may take. A batch of one item may take more.

    Returns
    -------
    list of list of int
        Each index once, in batches of at most 64.

    Examples
    --------
    >>> batches_by_length([2, 5, 4, 1], lambda length: length, 10)
    [[1, 2], [0, 3]]
    """
    batches: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if room == 0:
            batches.append([])
            room = max(1, min(TEXTS_AT_ONCE, limit // cost(lengths[i])))
        batches[-1].append(i)
        room -= 1
    return batches


def _check_options(where: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse options that have no default, or whose values are of another kind than theirs."""
    for name, value in given.items():
        if name not in defaults:
            raise ValueError(f"{where}: unknown option {name!r}; known are {', '.join(defaults)}")
        default = defaults[name]
        if isinstance(default, tuple):
            continue  # the options check their own
        kinds = (int, float) if isinstance(default, float) else (type(default),)
        is_kind = isinstance(value, kinds) and isinstance(value, bool) == isinstance(default, bool)
        if not is_kind and value is not None:
            raise ValueError(
                f"{where}: {name} must be of the kind of {default!r}, its default, got {value!r}"
            )


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
