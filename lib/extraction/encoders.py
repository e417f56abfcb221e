"""What turns texts into states: a Hugging Face encoder, or a small one trained from scratch.

Both kinds do the same five things: cut texts into tokens, turn a batch of tokens into states, name
their word embeddings, describe themselves, and write and read their files.
"""

import sys
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib._extras import needs
from lib.extraction.alignment import TokenTriple, trim_offsets
from lib.global_pointer import apply_rope

with needs("extraction"):
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

__all__ = [
    "DEFAULT_MAX_LENGTH",
    "Encoder",
    "HuggingFaceEncoder",
    "SmallEncoder",
    "Tokens",
    "word_shape",
]

DEFAULT_MAX_LENGTH = 256
"""Tokens per text unless asked otherwise: longer than the sentences of every corpus in the book."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """One text, cut into tokens.

    ``inputs`` holds what the encoder reads, one whole number per token and name. ``offsets`` are
    the characters of each token, (0, 0) for a special token. ``special`` counts the special tokens
    before and behind those of the text.
    """

    inputs: dict[str, tuple[int, ...]]
    offsets: tuple[tuple[int, int], ...]
    special: tuple[int, int]

    def part(self, first: int, last: int) -> "Tokens":
        """Return the tokens ``[first, last)`` of the text, counted without the special ones.

        They are those of the whole text, special ones at both ends included, so that neither a cut
        in a word nor the lack of what stands before changes any of them.
        """
        before, after = self.special

        def cut(values: tuple[Any, ...]) -> tuple[Any, ...]:
            end = values[len(values) - after :]
            return values[:before] + values[before + first : before + last] + end

        inputs = {name: cut(values) for name, values in self.inputs.items()}
        return Tokens(inputs, cut(self.offsets), self.special)

    def holds(self, triple: TokenTriple, first: int) -> bool:
        """Tell whether both entities of a triple lie in this part, which begins at `first`."""
        heads = min(triple.subject_head, triple.object_head)
        tails = max(triple.subject_tail, triple.object_tail)
        before, after = self.special
        return before <= heads - first and tails - first < len(self.offsets) - after


class Encoder(nn.Module, ABC):
    """What the two kinds of encoder have in common."""

    kind: str
    described: ClassVar[dict[str, Any]]
    """What `describe` names, with a value of the right kind each."""

    hidden_size: int
    max_length: int
    """Most tokens that are read at once, special ones included."""
    padding: dict[str, int]
    """Each input's name and the number that fills a batch up."""

    @abstractmethod
    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Cut each text into tokens, as many as there are."""

    @abstractmethod
    def word_embeddings(self) -> Tensor:
        """Return the table of word vectors."""

    def new_parameters(self) -> list[nn.Parameter]:
        """Return what was not pretrained in an encoder that otherwise was."""
        return []

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what `load` needs beside the files, as JSON."""

    @abstractmethod
    def save_files(self, folder: Path) -> None:
        """Write tokenizer and configuration, not the weights."""


SHAPES = ("", "x", "Xx", "X", "XX", "xX", "0", "x0", ".", "?")
"""Word shapes; the first one is that of special tokens."""

_WORDS = pre_tokenizers.BertPreTokenizer()


def word_shape(word: str) -> str:
    """Name the shape of a word, which a name keeps when the word itself was never seen.

    Examples
    --------
    >>> [word_shape(word) for word in ("wrote", "Ada", "A", "NATO", "iPad", "1843", "B2", ",")]
    ['x', 'Xx', 'X', 'XX', 'xX', '0', 'x0', '.']
    """
    if word.isdigit():
        return "0"
    if any(c.isdigit() for c in word):
        return "x0"
    if not any(c.isalpha() for c in word):
        return "."
    if word.islower():
        return "x"
    if word.isupper():
        return "X" if len(word) == 1 else "XX"
    if word[0].isupper() and word[1:].islower():
        return "Xx"
    return "xX" if any(c.isupper() for c in word) else "?"  # scripts without case


class HuggingFaceEncoder(Encoder):
    """A pretrained encoder of the `transformers` library with its fast tokenizer.

    With `word_shapes` a vector of the word's shape, zero at first, is added to each token's word
    vector. That gives back what a tokenizer in lower case takes away: which words are names.
    """

    kind = "transformers"
    described: ClassVar[dict[str, Any]] = {"max_length": DEFAULT_MAX_LENGTH, "word_shapes": False}

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        *,
        max_length: int | None = None,
        word_shapes: bool = False,
    ) -> None:
        super().__init__()
        if model.config.is_encoder_decoder:
            raise ValueError(
                f"encoder: expected an encoder alone, got {name!r}, which has a decoder"
            )
        if not tokenizer.is_fast:
            raise ValueError(
                f"encoder: expected a fast tokenizer, which knows the characters of its tokens, "
                f"got {type(tokenizer).__name__} for {name!r}"
            )
        rows = model.get_input_embeddings().num_embeddings
        if len(tokenizer) > rows:
            raise ValueError(
                f"encoder: the tokenizer of {name!r} has {len(tokenizer)} entries, but the model "
                f"has embeddings for {rows} only; they do not belong together"
            )
        # Some tokenizers state no limit, as a number near 1e30.
        limit = min(tokenizer.model_max_length, _positions(model))
        if max_length is not None and not 3 <= max_length <= limit:
            raise ValueError(
                f"max_length: expected 3 to {limit}, the limit of {name!r}, got {max_length} "
                "(--max-length)"
            )
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # unused here, and unused parameters stop distributed training
        self.model, self.tokenizer = model, tokenizer
        self.hidden_size = model.config.hidden_size
        self.max_length = max_length or min(limit, DEFAULT_MAX_LENGTH)
        names = [n for n in tokenizer.model_input_names if n != "attention_mask"]
        fill = {"input_ids": tokenizer.pad_token_id or 0}
        self.padding = {name: fill.get(name, 0) for name in names}
        # As wide as the word vectors, which in some models are narrower than the states.
        width = model.get_input_embeddings().embedding_dim
        self.shapes = nn.Embedding(len(SHAPES), width) if word_shapes else None
        if self.shapes is not None:
            self.padding["shapes"] = 0
            nn.init.zeros_(self.shapes.weight)  # it starts as the encoder that was pretrained

    @classmethod
    def create(cls, name: str, *, max_length: int | None = None, word_shapes: bool = False) -> Self:
        """Fetch an encoder by its name on the hub or from a folder.

        Raises
        ------
        OSError
            If there is none of that name, or its files cannot be read.

        Notes
        -----
        The libraries show bars of what they load on standard error if that is a terminal.
        """
        with needs("extraction"):
            from transformers import AutoModel, AutoTokenizer
            from transformers.utils import logging

        bars: Any = logging  # untyped
        shown = bars.is_progress_bar_enabled()
        if not sys.stderr.isatty():
            bars.disable_progress_bar()
        try:
            # transformers keeps the type of the stored weights; half precision is no type to train.
            model = AutoModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # files that are no encoder fail in any way they like
            if Path(name).is_dir():
                raise OSError(f"encoder: the folder {name!r} {_cannot_be_read(error)}") from error
            raise OSError(
                f"encoder: no such folder: {name!r}; looked on the Hugging Face hub too: "
                f"{_first_line(error)}"
            ) from error
        finally:
            if shown:
                bars.enable_progress_bar()
        return cls(model, tokenizer, name, max_length=max_length, word_shapes=word_shapes)

    @classmethod
    def load(cls, folder: Path, description: Mapping[str, Any]) -> Self:
        """Build the encoder from saved files, its weights still random."""
        with needs("extraction"):
            from transformers import AutoConfig, AutoModel, AutoTokenizer

        build: Callable[[Any], nn.Module] = AutoModel.from_config
        try:
            model = build(AutoConfig.from_pretrained(folder, dtype=torch.float32))
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # files that are no encoder fail in any way they like
            raise OSError(f"{folder} {_cannot_be_read(error)}") from error
        return cls(model, tokenizer, str(folder), **description)

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Cut each text into tokens, special ones included."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), verbose=False)  # quiet about long texts
        cut = []
        for i, (text, encoding) in enumerate(zip(texts, encoded.encodings, strict=True)):
            offsets = trim_offsets(text, _visible(encoding))
            inputs = {name: tuple(encoded[name][i]) for name in self.padding if name != "shapes"}
            if self.shapes is not None:
                inputs["shapes"] = _shapes_of_words(text, offsets)
            cut.append(Tokens(inputs, offsets, _special(encoding)))
        return cut

    def forward(self, *, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        """Return the states ``(B, L, D)`` of the last layer."""
        if self.shapes is not None:
            words = self.model.get_input_embeddings()(inputs.pop("input_ids"))
            inputs["inputs_embeds"] = words + self.shapes(inputs.pop("shapes"))
        states = self.model(attention_mask=attention_mask, **inputs).last_hidden_state
        assert isinstance(states, Tensor)
        return states

    def word_embeddings(self) -> Tensor:
        """Return the table of word vectors."""
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, Tensor)
        return weight

    def new_parameters(self) -> list[nn.Parameter]:
        """Return the vectors of word shapes, if there are any."""
        return [] if self.shapes is None else list(self.shapes.parameters())

    def describe(self) -> dict[str, Any]:
        """Return what `load` needs beside the files, as JSON."""
        return {"max_length": self.max_length, "word_shapes": self.shapes is not None}

    def save_files(self, folder: Path) -> None:
        """Write tokenizer and configuration, not the weights."""
        self.model.config.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallOptions:
    """Sizes of the small encoder; see :class:`SmallEncoder`."""

    hidden_size: int = 192
    layers: int = 2
    attention_heads: int = 6
    dropout: float = 0.1
    word_dropout: float = 0.1
    max_length: int = DEFAULT_MAX_LENGTH


AFFIX_BUCKETS = 1024

_UNSPACED = (
    *("Han", "Hiragana", "Katakana", "Bopomofo", "Hangul", "Yi"),
    *("Thai", "Lao", "Khmer", "Myanmar"),
    *("Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Ahom", "Javanese", "Balinese"),
)
"""Scripts in which white space does not set off what an entity is: most write no spaces, Korean
writes particles to the noun before them. Each grapheme cluster of them is a word of its own."""

_CLUSTERS = pre_tokenizers.Split(
    # The sign that lengthens a kana is of no script.
    Regex(r"(?=[" + "".join(rf"\p{{{script}}}" for script in _UNSPACED) + r"ーｰ])\X"),
    "isolated",
)


class SmallEncoder(Encoder):
    """A transformer trained from scratch, small enough for a lesson or a laptop.

    Words are what stands between white space and punctuation; in scripts that leave no space there,
    such as Thai, Burmese, Japanese and Korean, each grapheme cluster is one: a letter with the
    marks that it carries. Words are looked up in lower case. A word unknown to the vocabulary, or
    dropped in training with probability `word_dropout`, is seen by its shape and its last three
    letters only: that is what lets the model meet names it has never read. Layers are pre-norm,
    attention uses RoPE.
    """

    kind = "small"
    described: ClassVar[dict[str, Any]] = asdict(SmallOptions())

    def __init__(self, tokenizer: Tokenizer, options: SmallOptions) -> None:
        super().__init__()
        _check_small(options)
        self.tokenizer, self.options = tokenizer, options
        self.hidden_size, self.max_length = options.hidden_size, options.max_length
        self.padding = {"words": 0, "shapes": 0, "endings": 0}
        size = options.hidden_size
        self.words = nn.Embedding(tokenizer.get_vocab_size(), size)
        self.shapes = nn.Embedding(len(SHAPES), size)
        self.endings = nn.Embedding(AFFIX_BUCKETS, size)
        self.dropout = nn.Dropout(options.dropout)
        self.blocks = nn.ModuleList(_Block(options) for _ in range(options.layers))
        self.norm = nn.LayerNorm(size)
        tokenizer.no_truncation()  # as saved tokenizers had it up to version 0.2

    @classmethod
    def create(cls, texts: Iterable[str], options: SmallOptions, *, min_count: int = 2) -> Self:
        """Collect a vocabulary of the words that occur at least `min_count` times in `texts`."""
        tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2}, "[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.BertPreTokenizer(), _CLUSTERS, pre_tokenizers.Digits()]
        )
        counts: Counter[str] = Counter()
        for text in texts:
            words = tokenizer.pre_tokenizer.pre_tokenize_str(
                tokenizer.normalizer.normalize_str(text)
            )
            counts.update(word for word, _ in words)
        if not counts:
            raise ValueError("texts: expected some words to build a vocabulary of, got none")
        known = sorted(word for word, count in counts.items() if count >= min_count)
        vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", *known])}
        tokenizer.model = models.WordLevel(vocabulary, "[UNK]")
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A", special_tokens=[("[CLS]", 2)]
        )
        return cls(tokenizer, options)

    @classmethod
    def load(cls, folder: Path, description: Mapping[str, Any]) -> Self:
        """Build the encoder from saved files, its weights still random."""
        path = folder / "tokenizer.json"
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises nothing more special
            raise OSError(f"{path} {_cannot_be_read(error)}") from error
        return cls(tokenizer, SmallOptions(**description))

    def tokenise(self, texts: Sequence[str]) -> list[Tokens]:
        """Cut each text into tokens, the first of them special."""
        cut = []
        for text, encoding in zip(texts, self.tokenizer.encode_batch(list(texts)), strict=True):
            offsets = trim_offsets(text, _visible(encoding))
            words = [text[start:end] for start, end in offsets]
            inputs = {
                "words": tuple(encoding.ids),
                "shapes": tuple(SHAPES.index(word_shape(w)) if w else 0 for w in words),
                "endings": tuple(_ending(w) if w else 0 for w in words),
            }
            cut.append(Tokens(inputs, offsets, _special(encoding)))
        return cut

    def forward(
        self, *, words: Tensor, shapes: Tensor, endings: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """Return the states ``(B, L, D)``."""
        if self.training and self.options.word_dropout:
            forgotten = torch.rand(words.shape, device=words.device) < self.options.word_dropout
            words = words.masked_fill(forgotten & (words > 2), 1)
        x = self.words(words) + self.shapes(shapes) + self.endings(endings)
        x = self.dropout(x)
        visible = attention_mask.bool()[:, None, None, :]
        for block in self.blocks:
            x = block(x, visible)
        states = self.norm(x)
        assert isinstance(states, Tensor)
        return states

    def word_embeddings(self) -> Tensor:
        """Return the table of word vectors."""
        return self.words.weight

    def describe(self) -> dict[str, Any]:
        """Return what `load` needs beside the files, as JSON."""
        return asdict(self.options)

    def save_files(self, folder: Path) -> None:
        """Write the tokenizer."""
        self.tokenizer.save(str(folder / "tokenizer.json"))


class _Block(nn.Module):
    """One pre-norm transformer layer with rotated queries and keys."""

    def __init__(self, options: SmallOptions) -> None:
        super().__init__()
        size = options.hidden_size
        self.heads, self.rate = options.attention_heads, options.dropout
        self.before_attention, self.before_mixing = nn.LayerNorm(size), nn.LayerNorm(size)
        self.projection, self.output = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.mixing = nn.Sequential(nn.Linear(size, 4 * size), nn.GELU(), nn.Linear(4 * size, size))
        self.dropout = nn.Dropout(options.dropout)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        batch, length, size = x.shape
        qkv = self.projection(self.before_attention(x))
        query, key, value = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(
            apply_rope(query),
            apply_rope(key),
            value,
            attn_mask=visible,
            dropout_p=self.rate if self.training else 0.0,
        )
        x = x + self.dropout(self.output(mixed.transpose(1, 2).reshape(batch, length, size)))
        x = x + self.dropout(self.mixing(self.before_mixing(x)))
        return x


def _positions(model: Any) -> int:
    """Return the most tokens that a model has positions for; some have no table of them."""
    most: int = getattr(model.config, "max_position_embeddings", None) or 10**9
    for name, table in model.named_modules():
        # RoBERTa and its kin begin to count behind the position of padding.
        if name.endswith("position_embeddings") and getattr(table, "padding_idx", None) is not None:
            most = min(most, table.num_embeddings - table.padding_idx - 1)
    return most


def _first_line(error: Exception) -> str:
    """Return what a library said, without its advice."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _cannot_be_read(error: Exception) -> str:
    return f"holds no encoder that can be read ({type(error).__name__}: {_first_line(error)})"


def _visible(encoding: Any) -> list[tuple[int, int]]:
    """Return the offsets of an encoding, (0, 0) where the tokenizer added a token."""
    pairs = zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    return [(0, 0) if special else offset for offset, special in pairs]


def _special(encoding: Any) -> tuple[int, int]:
    """Count the tokens that the tokenizer added before and behind those of the text."""
    added = [
        bool(special) and offset == (0, 0)  # the text itself may hold the name of a special token
        for offset, special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
    ]
    of_text = [index for index, is_added in enumerate(added) if not is_added]
    if not of_text:
        return len(added), 0
    return of_text[0], len(added) - 1 - of_text[-1]


def _shapes_of_words(text: str, offsets: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Return for each token the shape of the word of the text that it begins in, 0 for none.

    Words are those between white space and punctuation, whatever pieces the tokenizer makes.
    """
    words = [span for _, span in _WORDS.pre_tokenize_str(text)]
    starts = [start for start, _ in words]
    shapes = [SHAPES.index(word_shape(text[start:end])) for start, end in words]
    return tuple(
        shapes[bisect_right(starts, start) - 1] if start < end else 0 for start, end in offsets
    )


def _ending(word: str) -> int:
    """Hash the last three letters; the same number in every process, unlike ``hash``."""
    return zlib.crc32(word[-3:].lower().encode()) % (AFFIX_BUCKETS - 1) + 1


def _check_small(options: SmallOptions) -> None:
    least = {"hidden_size": 1, "layers": 1, "attention_heads": 1, "max_length": 2}
    for name, lowest in least.items():
        value = getattr(options, name)
        if value < lowest:
            raise ValueError(f"{name}: expected at least {lowest}, got {value}")
    for name in ("dropout", "word_dropout"):
        value = getattr(options, name)
        if not 0 <= value < 1:
            raise ValueError(f"{name}: expected 0 <= {name} < 1, got {value}")
    if options.hidden_size % (2 * options.attention_heads):
        raise ValueError(
            f"hidden_size: expected a multiple of {2 * options.attention_heads}, so that each of "
            f"{options.attention_heads} attention heads has an even size, got {options.hidden_size}"
        )
