"""A small language model on two plays, to see what the losses of this module do to one.

Used by chapter 7 and by ``experiments.emo``, not by the losses. Everything is small enough for one
core: words as tokens, a causal transformer of two layers, costs from counts of neighbours.
"""

import gzip
import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from lib.emo import UnitEmbeddings, emo_loss

__all__ = [
    "Corpus",
    "LanguageModel",
    "Measures",
    "TokenLoss",
    "measure",
    "neighbour_embeddings",
    "read_corpus",
    "sample",
    "train",
    "variety",
]

UNKNOWN = "<unk>"
TokenLoss = Callable[[Tensor, Tensor], Tensor]


class Corpus(NamedTuple):
    """Tokens of a text, cut into three parts, and the words they stand for."""

    words: tuple[str, ...]
    train: Tensor
    valid: Tensor
    test: Tensor


def read_corpus(path: Path, *, size: int) -> Corpus:
    """Read plays, divided by form feeds, as lower-case words and marks.

    Of each play the last tenth is for testing and the tenth before for validation. The vocabulary
    is the ``size - 1`` most frequent words of the training parts; all others become one token.

    Parameters
    ----------
    path
        A gzipped text.
    size
        Size of the vocabulary, at least 2.

    Returns
    -------
    Corpus
        int64 tokens; token 0 stands for all words outside the vocabulary.

    Raises
    ------
    ValueError
        ``size`` is below 2.
    """
    if size < 2:
        raise ValueError(f"size must be at least 2, got {size}")
    parts: tuple[list[str], ...] = ([], [], [])
    for play in gzip.decompress(path.read_bytes()).decode("ascii").split("\f"):
        words = re.findall(r"[a-z]+(?:'[a-z]+)?|[.,;:!?]", play.lower())
        first, second = len(words) * 8 // 10, len(words) * 9 // 10
        for part, piece in zip(
            parts, (words[:first], words[first:second], words[second:]), strict=True
        ):
            part.extend(piece)
    ranked = sorted(Counter(parts[0]).items(), key=lambda item: (-item[1], item[0]))
    known = (UNKNOWN, *(word for word, _ in ranked[: size - 1]))
    index = {word: token for token, word in enumerate(known)}
    tokens = [torch.tensor([index.get(word, 0) for word in part]) for part in parts]
    return Corpus(known, *tokens)


def neighbour_embeddings(tokens: Tensor, size: int, *, window: int, width: int) -> Tensor:
    """Embed tokens by the company they keep: factorised positive pointwise mutual information.

    Parameters
    ----------
    tokens
        A text, int64 ``(N,)`` with every token of ``[0, size)`` in it.
    size
        Size of the vocabulary.
    window
        How many tokens to either side count as neighbours.
    width
        Dimensions to keep, at most ``size``.

    Returns
    -------
    Tensor
        float64, ``(size, width)``: singular vectors times roots of the singular values.
    """
    counts = torch.zeros(size * size, dtype=torch.float64)
    for gap in range(1, window + 1):
        pairs = tokens[:-gap] * size + tokens[gap:]
        counts += torch.bincount(pairs, minlength=size * size)
    table = counts.reshape(size, size)
    table = table + table.T
    each = table.sum(1)
    ratio = table * table.sum() / (each.unsqueeze(0) * each.unsqueeze(1))
    information = torch.where(ratio > 1, ratio, 1.0).log()
    left, values, _ = torch.linalg.svd(information)
    embedded: Tensor = left[:, :width] * values[:width].sqrt()
    return embedded


class LanguageModel(nn.Module):
    """Causal transformer over a fixed context: layer normalisation first, learnt positions."""

    def __init__(self, size: int, *, context: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(size, width)
        self.positions = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, size, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.head.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits ``(B, L, V)`` of the token after each of ``(B, L)``, ``L <= context``."""
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.into = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.into(self.norms[0](x)).view(batch, length, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        result: Tensor = x + self.narrow(functional.gelu(self.wide(self.norms[1](x))))
        return result


def train(
    model: LanguageModel, tokens: Tensor, loss: TokenLoss, *, steps: int, batch: int, rate: float,
    seed: int,
) -> None:  # fmt: skip
    """Train on random windows of a text with Adam; the rate falls linearly to a tenth.

    Parameters
    ----------
    model
        Changed in place.
    tokens
        The text, int64 ``(N,)``.
    loss
        Mean loss of logits ``(B, L, V)`` for targets ``(B, L)``.
    steps, batch, rate
        Number of steps, windows per step, first learning rate.
    seed
        Of the windows' places.
    """
    draw = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    plan = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.1, total_iters=steps)
    span = torch.arange(model.context + 1)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - model.context, (batch, 1), generator=draw)
        windows = tokens[starts + span]
        optimiser.zero_grad()
        torch.autograd.backward(loss(model(windows[:, :-1]), windows[:, 1:]))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        plan.step()


class Measures(NamedTuple):
    """How a model predicts a text."""

    perplexity: float
    cost: float  # expected embedding cost of one drawn token
    accuracy: float
    entropy: float  # of the predicted distributions, in nats


@torch.no_grad()
def measure(model: LanguageModel, tokens: Tensor, embeddings: UnitEmbeddings) -> Measures:
    """Measure predictions on a text, in windows side by side."""
    count = (len(tokens) - 1) // model.context
    inputs = tokens[: count * model.context].view(count, -1)
    targets = tokens[1 : count * model.context + 1].view(count, -1)
    logits = torch.cat([model(part) for part in torch.split(inputs, 64)]).double()
    log_p = logits.log_softmax(-1)
    surprise = functional.nll_loss(log_p.flatten(0, 1), targets.flatten())
    return Measures(
        perplexity=math.exp(float(surprise)),
        cost=float(emo_loss(logits, targets, embeddings)),
        accuracy=float((logits.argmax(-1) == targets).double().mean()),
        entropy=float(-(log_p.exp() * log_p).sum(-1).mean()),
    )


@torch.no_grad()
def sample(model: LanguageModel, starts: Tensor, *, length: int, seed: int) -> Tensor:
    """Draw ``length`` tokens after each of ``starts`` ``(B, K)``, from the full distribution."""
    draw = torch.Generator().manual_seed(seed)
    tokens = starts
    for _ in range(length):
        p = model(tokens[:, -model.context :])[:, -1].double().softmax(-1)
        tokens = torch.cat([tokens, torch.multinomial(p, 1, generator=draw)], 1)
    return tokens[:, starts.shape[1] :]


def variety(tokens: Tensor) -> tuple[float, float, float]:
    """Share of different tokens, of different pairs, and entropy of the tokens in nats.

    Texts of different length cannot be compared: ``tokens`` is ``(B, L)``, pairs stay in a row.
    """
    if tokens.numel() == 0:
        raise ValueError(f"tokens must hold at least 1 token, got shape {tuple(tokens.shape)}")
    _, counts = torch.unique(tokens, return_counts=True)
    share = counts.double() / tokens.numel()
    pairs = torch.stack([tokens[:, :-1].flatten(), tokens[:, 1:].flatten()], 1)
    return (
        len(counts) / tokens.numel(),
        len(torch.unique(pairs, dim=0)) / len(pairs),
        float(-(share * share.log()).sum()),
    )
