"""The rows of the table: how to call each public function and module, and with what."""

import functools
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from lib import casrel, divergence, emo, exact, global_pointer, gplinker, soft_zlpr, softmax, zlpr
from lib.extraction.alignment import TokenTriple
from lib.extraction.triples import Example, Span, Triple
from lib.global_pointer import _products, streaming
from lib.zlpr import _linear
from tests.situations.subject import Inputs, Refusal, Subject

WITHOUT_ROWS = {
    "lib.divergence.Divergence": "a type",
    "lib.emo.Mixture": "a frozen dataclass of numbers",
    "lib.casrel.TaggedSpans": "a tuple, of `tagged_spans`",
    "lib.casrel.TaggingOptions": "a frozen dataclass of numbers and names",
    "lib.casrel.nearest_end_spans": "takes and gives Python integers",
    "lib.casrel.power_threshold": "takes and gives Python numbers",
    "lib.casrel.sample_subject": "gives Python integers",
    "lib.casrel.subject_distribution": "takes and gives Python numbers",
    "lib.soft_zlpr.fit_temperature": "the old name of `fit_scale`",
    "lib.global_pointer.PointerParts": "a tuple, of `EfficientGlobalPointer.parts`",
    "lib.global_pointer.Spans": "a tuple, of `factorised_spans`",
    "lib.global_pointer.load_published_weights": "puts weights in another order",
    "lib.gplinker.Item": "a dataclass of text and Python integers",
    "lib.gplinker.PointerOptions": "a frozen dataclass of numbers and names",
    "lib.gplinker.Tables": "a tuple, of `table_positives`",
    "lib.zlpr.FoundLabels": "a tuple, of `labels_above`",
}
"""Public names that compute nothing from tensors and make none, and why."""


IN_GRAPHS = ("compile", "compile, dynamic", "export")
ONE_TREE = "one graph for each number of scores"
PROBES = {
    name: Refusal(
        TypeError,
        "inputs must have dtype float32 or float64",
        "In float16 and bfloat16 a probe of this kind vanishes in the sum.",
    )
    for name in ("float16", "bfloat16")
} | {
    "inference mode": Refusal(
        ValueError,
        "must be differentiable in the inputs",
        "run in inference mode, where nothing can be",
    )
}
PROBES |= {
    name: Refusal(
        RuntimeError,
        "must be called outside of torch.func transforms",
        "It does not run inside ``torch.func`` transforms: it draws numbers and differentiates.",
    )
    for name in ("vmap", "jacrev")
}
NO_SOLVER = {
    name: Refusal(
        Exception,  # a compiler wraps it
        "by must be 'bound' or 'kernel' where values cannot be read",
        "where no values can be read (a traced graph, a transform, the meta device)",
    )
    for name in ("export", "vmap", "jacrev", "fake CUDA")
}
SOLVED = dict.fromkeys(IN_GRAPHS[:2], "its solver is no part of a graph")
UNFILLED = {
    "meta": Refusal(
        RuntimeError,
        "got memory that to_empty() left unfilled",
        "After ``to_empty`` they hold no values",
    )
}
INSIDE = {"fake CUDA": "differentiates inside, for which autograd wants a build with CUDA"}
INSIDE |= dict.fromkeys(IN_GRAPHS, "draws and differentiates inside: compile what it calls")


def seeded(make: Callable[[torch.Generator, int, int], Inputs]) -> Callable[[int, int], Inputs]:
    """Inputs from a generator with a seed of their size."""

    def inputs(batch: int, width: int) -> Inputs:
        generator = torch.Generator("cpu").manual_seed(1000 * batch + width)
        with torch.device("cpu"):
            return make(generator, batch, width)

    return inputs


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def uniform(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def below(generator: torch.Generator, high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=generator)


# ------------------------------------------------------------------------------ inputs of one kind


@seeded
def scores_alone(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {"logits": 2 * normal(g, batch, width)}


@seeded
def tables(g: torch.Generator, batch: int, width: int) -> Inputs:
    mask = uniform(g, batch, width) < 0.9
    targets = (uniform(g, batch, width) < 0.4) & mask
    return {"logits": 2 * normal(g, batch, width), "targets": targets.double(), "mask": mask}


@seeded
def wide_tables(g: torch.Generator, batch: int, width: int) -> Inputs:
    targets = torch.zeros(batch, 64 * width, dtype=torch.bool)
    targets[:, 3] = True  # so few that they are handled as lists
    return {"logits": 2 * normal(g, batch, 64 * width), "targets": targets}


@seeded
def lists(g: torch.Generator, batch: int, width: int) -> Inputs:
    positives = torch.stack((below(g, width, batch), below(g, width + 1, batch) - 1), 1)
    mask = torch.ones(batch, width, dtype=torch.bool)
    return {"logits": 2 * normal(g, batch, width), "positives": positives, "mask": mask}


@seeded
def long_lists(g: torch.Generator, batch: int, width: int) -> Inputs:
    positives = torch.stack((below(g, width, batch), below(g, width + 1, batch) - 1), 1)
    return {"logits": 2 * normal(g, batch, 64 * width), "positives": positives}


@seeded
def degrees(g: torch.Generator, batch: int, width: int) -> Inputs:
    mask = uniform(g, batch, width) < 0.9
    targets = (0.1 + 0.8 * uniform(g, batch, width)) * mask
    return {"logits": 2 * normal(g, batch, width), "targets": targets, "mask": mask}


@seeded
def mixed(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {
        "logits": 2 * normal(g, batch, width),
        "targets": (uniform(g, batch, width) < 0.4).double(),
        "weight": uniform(g, batch),
        "order": torch.arange(batch).flip(0),
    }


def some_ignored(targets: Tensor) -> Tensor:
    """All but the last, which does not count, if there are several."""
    targets[1:][-1:] = -100
    return targets


@seeded
def classes(g: torch.Generator, batch: int, width: int) -> Inputs:
    targets = below(g, width, batch)
    mask = (uniform(g, batch, width) < 0.8).scatter(1, targets.unsqueeze(1), True)
    logits = normal(g, batch, width)
    return {"logits": logits, "targets": some_ignored(targets), "mask": mask}


@seeded
def tokens(g: torch.Generator, batch: int, width: int) -> Inputs:
    embeddings = normal(g, width, 4)
    logits, targets = normal(g, batch, width), some_ignored(below(g, width, batch))
    return {"logits": logits, "targets": targets, "embeddings": embeddings}


@seeded
def five_tokens(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {"logits": normal(g, batch, width, 5), "targets": below(g, 5, batch, width)}


@seeded
def states(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {
        "hidden": normal(g, batch, 4),
        "weight": normal(g, width, 4),
        "targets": some_ignored(below(g, width, batch)),
        "embeddings": normal(g, width, 6),
    }


@seeded
def states_and_lists(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {
        "hidden": normal(g, batch, 4),
        "weight": normal(g, width, 4),
        "positives": below(g, width + 1, batch, 2) - 1,
        "bias": normal(g, width),
    }


@seeded
def states_and_lists_of_five(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {"hidden": normal(g, batch, 4), "positives": below(g, 6, batch, 2) - 1}


@seeded
def states_of_five(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {
        "hidden": normal(g, batch, width, 4),
        "weight": normal(g, 5, 4),
        "targets": below(g, 5, batch, width),
    }


@seeded
def distributions(g: torch.Generator, batch: int, width: int) -> Inputs:
    # Whole multiples of a power of two: a sum of exactly 1 in every dtype.
    parts = torch.ones(batch, width, dtype=torch.float64)
    parts[:, 0] += 32 - width
    return {
        "logits": normal(g, batch, width),
        "target_probabilities": parts / 32,
        "embeddings": normal(g, width, 4),
    }


@seeded
def two_scores(g: torch.Generator, batch: int, width: int) -> Inputs:
    mask = uniform(g, batch, width) < 0.9
    first = 2 * normal(g, batch, width)
    return {"logits": first, "other": first + normal(g, batch, width), "mask": mask}


@seeded
def two_passes(g: torch.Generator, batch: int, width: int) -> Inputs:
    first = 2 * normal(g, batch, width)
    targets = uniform(g, batch, width) < 0.4
    return {"first": first, "second": first + normal(g, batch, width), "targets": targets}


@seeded
def disturbed(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {"inputs": normal(g, batch, 4), "weight": normal(g, width, 4)}


@seeded
def channels(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {"x": normal(g, batch, width, 4)}


def cells(g: torch.Generator, batch: int, width: int, heads: int = 2) -> Tensor:
    """Positives ``(B, H, 3, 2)`` with start ≤ end, on cells that count; one is filler."""
    found = below(g, max(1, width - 1), batch, heads, 3, 2).sort(-1).values
    found[:, :, 2] = -1
    return found


def but_the_last(batch: int, width: int) -> Tensor:
    mask = torch.ones(batch, width, dtype=torch.bool)
    if width > 1:
        mask[:, -1] = False
    return mask


@seeded
def pointer_parts(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {
        "pair": normal(g, batch, width, width),
        "start": normal(g, batch, 2, width),
        "end": normal(g, batch, 2, width),
        "positives": cells(g, batch, width),
        "mask": but_the_last(batch, width),
    }


@seeded
def pointer_factors(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {
        "queries": normal(g, batch, width, 4),
        "keys": normal(g, batch, width, 4),
        "start": normal(g, batch, 2, width),
        "end": normal(g, batch, 2, width),
        "positives": cells(g, batch, width),
        "mask": but_the_last(batch, width),
    }


@seeded
def pointer_heads(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {
        "queries": normal(g, batch, 2, width, 4),
        "keys": normal(g, batch, 2, width, 4),
        "bias": normal(g, 2),
        "positives": cells(g, batch, width),
        "mask": but_the_last(batch, width),
    }


@seeded
def encoded(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {"hidden": normal(g, batch, width, 6), "mask": but_the_last(batch, width)}


@seeded
def encoded_and_cells(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {
        "hidden": normal(g, batch, width, 6),
        "positives": cells(g, batch, width),
        "mask": but_the_last(batch, width),
    }


@seeded
def encoded_and_places(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {"hidden": normal(g, batch, width, 6), "places": below(g, width, batch, 3)}


@seeded
def subject_scores(g: torch.Generator, batch: int, width: int) -> Inputs:
    mask = but_the_last(batch, width)
    targets = (uniform(g, batch, width, 2) < 0.4) & mask.unsqueeze(2)
    return {"logits": 2 * normal(g, batch, width, 2), "targets": targets.double(), "mask": mask}


@seeded
def conditioned(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {"hidden": normal(g, batch, width, 4), "condition": normal(g, batch, 3)}


@seeded
def conditioned_and_maps(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {
        "hidden": normal(g, batch, width, 4),
        "condition": normal(g, batch, 3),
        "weight": normal(g, 4),
        "bias": normal(g, 4),
        "weight_map": normal(g, 4, 3),
        "bias_map": normal(g, 4, 3),
    }


@seeded
def one_text(g: torch.Generator, batch: int, width: int) -> Inputs:
    entities = normal(g, 2, width, width) - 1
    below_diagonal = torch.ones(width, width, dtype=torch.bool).tril(-1)
    return {
        "entities": entities.masked_fill(below_diagonal, -torch.inf),
        "heads": normal(g, 3, width, width),
        "tails": normal(g, 3, width, width),
    }


@seeded
def blocks(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {
        "subjects": below(g, 9, batch, 2).sort(1).values,
        "subject_scores": uniform(g, batch) + 0.25,
        "objects": below(g, 9, width, 2).sort(1).values,
        "object_scores": uniform(g, width) + 0.25,
        "heads": normal(g, 3, batch, width),
        "tails": normal(g, 3, batch, width),
    }


@seeded
def nothing(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {}


TRIPLES = [
    [TokenTriple(0, 1, 0, 3, 3), TokenTriple(0, 1, 1, 2, 2)],
    [],
    [TokenTriple(2, 2, 0, 4, 4)],
]


# ----------------------------------------------------------------------------------- other helpers


def losses(function: Callable[..., Tensor], make: Any, *smooth: str, **changes: Any) -> Subject:
    """Row of a loss: a function of a package that takes its inputs by name, and a reduction."""
    package, name = function.__module__.split(".")[1], function.__name__
    options = {"name": name, "of": f"lib.{package}.{name}", "make": make, "call": function}
    return Subject(**(options | {"smooth": smooth, "reduces": True} | changes))


def plain(function: Callable[..., Any], make: Any, *smooth: str, **changes: Any) -> Subject:
    """Row of a function without a reduction."""
    return losses(function, make, *smooth, **({"reduces": False} | changes))


def modules(kind: Any, build: Callable[[str], nn.Module], make: Any, **changes: Any) -> Subject:
    """Row of a loss that is a module."""
    package, name = kind.__module__.split(".")[1], kind.__name__
    options = {
        "name": name,
        "of": f"lib.{package}.{name}",
        "make": make,
        "call": lambda module, **inputs: module(**inputs),
        "module": build,
        "smooth": ("logits",),
        "reduces": True,
        "without": dict.fromkeys(("compile, dynamic", "export"), "as the function that it calls"),
    }
    return Subject(**(options | changes))


def fixed_table() -> Tensor:
    with torch.device("cpu"):
        return torch.randn(
            5, 4, generator=torch.Generator("cpu").manual_seed(1), dtype=torch.float64
        )


FEW_ROWS = {"_SMALL_CELLS": 0, "_BUFFER_CELLS": 8, "_LEAST_ROWS": 0}
FEW_LABELS = {"_SMALL_CELLS": 0, "_BUFFER_CELLS": 1, "_TILE_CELLS": 4, "_TILE_ROWS": 2}
"""Sizes with which tables that a test can afford go the ways of large ones."""


@contextmanager
def no_small_tables():
    """The paths of large tables, on tables that a test can afford."""
    with (
        mock.patch.object(_products, "_FEW_CELLS", 0),
        mock.patch.object(streaming, "_TILE_CELLS", 8),
        mock.patch.object(streaming, "_worth_streaming", return_value=True),
    ):
        yield


LARGE = {
    "within": no_small_tables,
    "scales": False,
    "without": dict.fromkeys(
        ("compile", "compile, dynamic", "export", "vmap", "jacrev", "fake CUDA"),
        "there is one way for tables of all sizes",
    ),
}


def up_to_sign(direction: Tensor) -> Tensor:
    """Power iteration gives either of two directions."""
    return direction * direction[:, :1].sign()


def r_drop(first: Tensor, second: Tensor, targets: Tensor) -> Tensor:
    loss = functools.partial(zlpr.zlpr_loss, targets=targets)
    return divergence.r_drop(first, second, loss, divergence.zlpr_divergence, alpha=2.0)


def direction(inputs: Tensor, weight: Tensor) -> Tensor:
    return up_to_sign(
        divergence.virtual_adversarial_direction(
            lambda x: x @ weight.T,
            inputs,
            functools.partial(divergence.zlpr_divergence, reduction="none"),
            xi=0.1,
            steps=10,
            generator=torch.Generator("cpu").manual_seed(0),
        )
    )


def adversarial(inputs: Tensor, weight: Tensor) -> Tensor:
    return divergence.virtual_adversarial_loss(
        lambda x: x @ weight.T,
        inputs,
        functools.partial(divergence.zlpr_divergence, reduction="none"),
        xi=0.1,
        epsilon=0.5,
        steps=10,
        generator=torch.Generator("cpu").manual_seed(0),
    )


def stream_of_functions(hidden: Tensor, weight: Tensor) -> Tensor:
    parts = [lambda rows=rows: hidden @ rows.T for rows in weight.split(2)]
    return softmax.streaming_logsumexp(parts)


@seeded
def head_and_states(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {"hidden": normal(g, batch, 4), "weight": normal(g, width, 4)}


@seeded
def two_chunks(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {"first": normal(g, batch, width), "second": normal(g, batch, 2)}


# ------------------------------------------------------------------------------------- the models

WORDS = ("Ada", "wrote", "Notes", "and", "met", "Bo", "in", "Arlen")
NAMES = ("wrote", "met")
TINY = {
    "hidden_size": 8,
    "layers": 1,
    "attention_heads": 2,
    "min_count": 1,
    "dropout": 0.0,
    "word_dropout": 0.0,
}


def texts(batch: int, width: int) -> list[Example]:
    """Texts of a number of words, each with a triple of its first and last word."""
    found = []
    for number in range(batch):
        words = [WORDS[(number + place) % len(WORDS)] for place in range(width)]
        text = " ".join(words)
        first, last = Span(0, len(words[0])), Span(len(text) - len(words[-1]), len(text))
        triples = (Triple(first, "wrote", last),) if width > 1 else ()
        found.append(Example(str(number), text, triples))
    return found


def made(kind: Any, **options: Any) -> nn.Module:
    return kind.create("small", NAMES, texts=[" ".join(WORDS)] * 2, **TINY, **options)


def eager_tagger() -> nn.Module:
    """A CasRel that tags most tokens."""
    model = made(casrel.CasRel)
    for layer in (model.subjects, model.objects):
        nn.init.constant_(layer.bias, 3.0)
    return model


@functools.cache
def collator(kind: Any) -> Any:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        return made(kind)


def batches(kind: Any) -> Callable[[int, int], Inputs]:
    def make(batch: int, width: int) -> Inputs:
        model = collator(kind)
        with torch.device("cpu"):
            return model.collate(model.prepare(texts(batch, width))[0])

    return make


def extracted(model: Any, **inputs: Tensor) -> list[Any]:
    """Triples of three texts, as numbers."""
    found = model.extract_scored(model.prepare(texts(3, 5))[0])
    return as_numbers(found)


def as_numbers(found: Any) -> list[Any]:
    rows = [
        (
            number,
            triple.subject.start,
            triple.subject.end,
            NAMES.index(triple.relation),
            triple.object.start,
            triple.object.end,
            score,
        )
        for number, triples in enumerate(found)
        for triple, score in triples
    ]
    table = torch.tensor(rows, dtype=torch.float64, device="cpu").reshape(-1, 7)
    return [table[:, :6].long(), table[:, 6]]


def decoded(found: Any) -> list[Any]:
    """Triples of tokens, as numbers."""
    rows = [[*astuple(triple), *score] for triple, *score in found]
    table = torch.tensor(rows, dtype=torch.float64, device="cpu")
    return [table[:, :5].long(), *([table[:, 5]] if table.shape[1] > 5 else [])]


def model_rows() -> list[Subject]:
    rows = []
    for kind, label, options in (
        (gplinker.GPLinker, "efficient", {"head_size": 4, "bias_start": 2.0}),
        (gplinker.GPLinker, "standard", {"head_size": 4, "bias_start": 2.0, "pointer": "standard"}),
        (gplinker.GPLinker, "R-Drop", {"head_size": 4, "bias_start": 2.0, "r_drop": 1.0}),
        (casrel.CasRel, "", {}),
    ):
        name = kind.__name__ + (f" ({label})" if label else "")
        common = {
            "of": f"{kind.__module__.rpartition('.')[0]}.{kind.__name__}",
            "module": functools.partial(made, kind, **options),
            "layers": True,
            "spread": 0.05,  # in half precision too, a whole encoder is to keep some digits
        }
        rows.append(
            Subject(
                name=name,
                make=batches(kind),
                call=lambda model, **batch: model(**batch),
                trains=True,
                without={
                    "double backward": "PyTorch's attention has no second derivative on the CPU"
                },
                refuses={"empty": Refusal(ValueError, "at least one item", "If `items` is empty")},
                **common,
            )
        )
        if kind is casrel.CasRel:
            common["module"] = eager_tagger
        if label != "R-Drop":
            rows.append(
                Subject(
                    name=f"{name}.extract", make=nothing, call=extracted, decides=True, **common
                )
            )
    return rows


def pointer_rows() -> list[Subject]:
    rows = []
    for kind in (global_pointer.GlobalPointer, global_pointer.EfficientGlobalPointer):
        name = kind.__name__
        common = {
            "of": f"lib.global_pointer.{name}",
            "layers": True,
            "module": functools.partial(kind, 6, 2, 4, bias_start=-1.0),
        }
        trained = common | {"smooth": ("hidden",), "trains": True}
        rows += [
            Subject(name, make=encoded, call=lambda m, hidden, mask: m(hidden, mask), **trained),
            Subject(
                f"{name}.loss",
                make=encoded_and_cells,
                call=lambda m, hidden, positives, mask: m.loss(
                    hidden, positives, mask, reduction=m.reduction
                ),
                reduces=True,
                **(trained | {"module": functools.partial(with_reduction, common["module"])}),
            ),
            Subject(
                f"{name}.spans",
                make=encoded,
                call=lambda m, hidden, mask: m.spans(hidden, mask),
                decides=True,
                **common,
            ),
            Subject(
                f"{name}.blocks",
                make=encoded_and_places,
                call=lambda m, hidden, places: m.blocks(hidden, list(places), list(places)),
                grows=("width",),  # a tensor of places for each text
                **common,
            ),
        ]
    kind = global_pointer.EfficientGlobalPointer
    rows.append(
        Subject(
            "EfficientGlobalPointer.parts",
            make=channels_of_states,
            call=lambda m, hidden: m.parts(hidden),
            of="lib.global_pointer.EfficientGlobalPointer",
            layers=True,
            module=functools.partial(kind, 6, 2, 4, bias_start=-1.0),
            smooth=("hidden",),
            trains=True,
        )
    )
    return rows


def with_reduction(build: Callable[[], nn.Module], reduction: str) -> nn.Module:
    module = build()
    module.reduction = reduction
    return module


@seeded
def channels_of_states(g: torch.Generator, batch: int, width: int) -> Inputs:
    return {"hidden": normal(g, batch, width, 6)}


def all_rows() -> list[Subject]:
    both = ("logits", "other")
    return [
        # softmax
        plain(
            lambda_named(softmax.smooth_max, gamma=2.0),
            lambda b, w: renamed(tables(b, w), logits="scores", drop=("targets",)),
            "scores",
        ),
        plain(
            softmax.streaming_logsumexp,
            two_chunks,
            "first",
            "second",
            call=lambda first, second: softmax.streaming_logsumexp([first, second]),
        ),
        plain(
            softmax.streaming_logsumexp,
            head_and_states,
            "hidden",
            "weight",
            name="streaming_logsumexp (functions)",
            call=stream_of_functions,
            shared=("weight",),
            layers=True,  # the functions are products
            grows=("batch",),  # as many functions as there are chunks
            without={"in-place": "a function that is called again must return the same values"},
        ),
        plain(
            lambda_named(softmax.subset_logsumexp, k=2),
            lambda b, w: renamed(scores_alone(b, w), logits="scores"),
            "scores",
            grows=("batch",),
            limit=ONE_TREE,
        ),
        plain(
            lambda_named(softmax.inclusion_probabilities, k=2),
            lambda b, w: renamed(scores_alone(b, w), logits="scores"),
            "scores",
            grows=("batch",),
            limit=ONE_TREE,
        ),
        plain(
            softmax.smooth_f1,
            lambda b, w: renamed(degrees(b, w), logits="probabilities", apply=torch.sigmoid),
            "probabilities",
            "targets",
        ),
        plain(
            softmax.log1mexp,
            lambda b, w: {"u": -scores_alone(b, w)["logits"].abs() - 0.01},
            "u",
        ),
        # zlpr
        losses(zlpr.zlpr_loss, tables, "logits"),
        losses(
            zlpr.zlpr_loss,
            wide_tables,
            "logits",
            name="zlpr_loss (few positives)",
            without=dict.fromkeys(IN_GRAPHS, "as `zlpr_loss`: graphs take one way for all"),
        ),
        losses(zlpr.sparse_zlpr_loss, lists, "logits"),
        losses(
            zlpr.sparse_zlpr_loss,
            long_lists,
            "logits",
            name="sparse_zlpr_loss (long rows)",
            without=dict.fromkeys(IN_GRAPHS, "as `sparse_zlpr_loss`: graphs take one way for all"),
        ),
        modules(zlpr.ZLPRLoss, lambda r: zlpr.ZLPRLoss(reduction=r), tables),
        modules(zlpr.SparseZLPRLoss, lambda r: zlpr.SparseZLPRLoss(reduction=r), lists),
        losses(
            zlpr.linear_zlpr_loss,
            states_and_lists,
            "hidden",
            "weight",
            "bias",
            shared=("weight", "bias"),
        ),
        *(
            losses(
                zlpr.linear_zlpr_loss,
                states_and_lists,
                "hidden",
                "weight",
                "bias",
                shared=("weight", "bias"),
                name=f"linear_zlpr_loss ({what})",
                within=functools.partial(mock.patch.multiple, _linear, **sizes),
                without=dict.fromkeys(
                    IN_GRAPHS, "as `linear_zlpr_loss`: graphs take one way for all"
                ),
            )
            for what, sizes in (("rows", FEW_ROWS), ("tiles", FEW_LABELS))
        ),
        modules(
            zlpr.LinearZLPRLoss,
            lambda r: zlpr.LinearZLPRLoss(4, 5, reduction=r),
            states_and_lists_of_five,
            smooth=("hidden",),
            trains=True,
            without=dict.fromkeys(("compile, dynamic", "export"), "as the function that it calls")
            | {"layers": "a hook gets its loss: it is the layer itself"},
        ),
        plain(
            zlpr.labels_above,
            lambda b, w: {k: x for k, x in states_and_lists(b, w).items() if k != "positives"},
            shared=("weight", "bias"),
            decides=True,
        ),
        # soft_zlpr
        losses(soft_zlpr.soft_zlpr_loss, degrees, "logits", "targets"),
        modules(
            soft_zlpr.SoftZLPRLoss,
            lambda r: soft_zlpr.SoftZLPRLoss(reduction=r),
            degrees,
            smooth=("logits", "targets"),
        ),
        *(
            losses(
                soft_zlpr.mixup_loss,
                mixed,
                "logits",
                name=f"mixup_loss ({mix})",
                call=functools.partial(soft_zlpr.mixup_loss, mix=mix),
            )
            for mix in ("labels", "losses")
        ),
        plain(
            soft_zlpr.mixup,
            lambda b, w: renamed(mixed(b, w), logits="values", drop=("targets",)),
            "values",
        ),
        plain(
            lambda_named(soft_zlpr.smooth_labels, rate=0.125),
            lambda b, w: {"targets": degrees(b, w)["targets"].clamp(min=0.1)},
            "targets",
        ),
        plain(
            lambda_named(soft_zlpr.smooth_positives, rate=0.125),
            lambda b, w: {"targets": degrees(b, w)["targets"].clamp(min=0.1)},
            "targets",
        ),
        plain(
            lambda_named(soft_zlpr.smooth_spans, rate=0.125),
            lambda b, w: {"targets": (pointer_parts(b, w)["pair"] > 1).double()},
        ),
        plain(
            lambda_named(soft_zlpr.draw_mixup, samples=4, alpha=0.5, dtype=torch.float64),
            nothing,
            call=lambda: soft_zlpr.draw_mixup(
                4,
                alpha=0.5,
                dtype=torch.float64,
                generator=torch.Generator("cpu").manual_seed(0),
            ),
        ),
        plain(soft_zlpr.zlpr_probability, scores_alone, "logits"),
        *(
            plain(
                fit,
                degrees,
                decides=True,
                refuses={
                    "empty": Refusal(
                        ValueError,
                        message,
                        rule,
                    )
                },
            )
            for fit, message, rule in (
                (
                    soft_zlpr.fit_scale,
                    "logits must differ from 0 somewhere",
                    "no counting score differs from 0",
                ),
                (
                    soft_zlpr.fit_scale_and_offset,
                    "logits must differ to be scaled and shifted",
                    "the counting scores are all equal",
                ),
            )
        ),
        # exact
        losses(exact.exact_loss, classes, "logits"),
        losses(
            exact.exact_loss,
            classes,
            "logits",
            name="exact_loss (log, margin)",
            call=functools.partial(exact.exact_loss, log=True, margin=2.0),
            without=dict.fromkeys(("compile, dynamic", "export"), "as `exact_loss`"),
        ),
        plain(exact.expected_accuracy, classes, "logits"),
        plain(exact.log_expected_accuracy, classes, "logits"),
        modules(exact.ExactLoss, lambda r: exact.ExactLoss(reduction=r), classes),
        # emo
        losses(emo.emo_loss, tokens, "logits", shared=("embeddings",)),
        losses(emo.kernel_score_loss, tokens, "logits", shared=("embeddings",)),
        losses(
            emo.emo_mixture_loss,
            tokens,
            "logits",
            shared=("embeddings",),
            call=functools.partial(
                emo.emo_mixture_loss, mixture=emo.Mixture.fixed(cross_entropy=0.5, emo=0.5)
            ),
        ),
        losses(
            emo.linear_emo_loss,
            states,
            "hidden",
            "weight",
            shared=("weight", "embeddings"),
        ),
        *(
            losses(
                emo.soft_emo_loss,
                distributions,
                "logits",
                name=f"soft_emo_loss ({by})",
                shared=("embeddings",),
                call=functools.partial(emo.soft_emo_loss, by=by),
                scales=by != "transport",
                refuses=NO_SOLVER if by == "transport" else {},
                without=SOLVED if by == "transport" else {},
            )
            for by in ("transport", "bound", "kernel")
        ),
        modules(
            emo.EMOLoss,
            lambda r: emo.EMOLoss(fixed_table(), reduction=r),
            five_tokens,
            refuses=UNFILLED,
        ),
        modules(
            emo.KernelScoreLoss,
            lambda r: emo.KernelScoreLoss(fixed_table(), reduction=r),
            five_tokens,
            refuses=UNFILLED,
        ),
        modules(
            emo.LinearEMOLoss,
            lambda r: emo.LinearEMOLoss(fixed_table(), reduction=r),
            states_of_five,
            refuses=UNFILLED,
            smooth=("hidden", "weight"),
            shared=("weight",),
        ),
        Subject(
            "UnitEmbeddings",
            of="lib.emo.UnitEmbeddings",
            make=nothing,
            call=lambda module: list(module.cost_moments()),
            module=lambda: emo.UnitEmbeddings(fixed_table(), centre=True, padding=[1]),
            refuses=UNFILLED,
        ),
        # divergence
        losses(divergence.softmax_divergence, two_scores, *both),
        losses(divergence.sigmoid_divergence, two_scores, *both),
        losses(divergence.zlpr_divergence, two_scores, *both),
        losses(
            divergence.zlpr_regret,
            lambda b, w: renamed(two_scores(b, w), other="target"),
            "logits",
            "target",
        ),
        plain(
            divergence.r_drop,
            two_passes,
            "first",
            "second",
            call=r_drop,
            layers=True,  # gradients of loss and divergence are added where the logits' dtype is
        ),
        plain(
            divergence.virtual_adversarial_direction,
            disturbed,
            call=direction,
            layers=True,  # so is what it disturbs
            refuses={k: v for k, v in PROBES.items() if k != "jacrev"},
            without=INSIDE,
            shared=("weight",),
        ),
        plain(
            divergence.virtual_adversarial_loss,
            disturbed,
            "weight",
            call=adversarial,
            shared=("weight",),
            stops=True,
            layers=True,
            refuses=PROBES,
            without=INSIDE,
        ),
        # global_pointer
        plain(global_pointer.apply_rope, channels, "x"),
        *(
            row
            for within, note in ((None, ""), (no_small_tables, "large tables"))
            for row in (
                losses(
                    global_pointer.factorised_zlpr_loss,
                    pointer_parts,
                    *("pair", "start", "end"),
                    name=noted("factorised_zlpr_loss", note),
                    call=lambda pair, start, end, positives, **options: (
                        global_pointer.factorised_zlpr_loss(
                            pair, start, end, positives, causal=True, **options
                        )
                    ),
                    **(LARGE if within else {}),
                ),
                losses(
                    global_pointer.factorised_zlpr_loss,
                    pointer_factors,
                    *("queries", "keys", "start", "end"),
                    name=noted("factorised_zlpr_loss", "queries and keys", note),
                    call=lambda queries, keys, start, end, positives, **options: (
                        global_pointer.factorised_zlpr_loss(
                            (queries, keys), start, end, positives, causal=True, **options
                        )
                    ),
                    **(LARGE if within else {}),
                ),
                losses(
                    global_pointer.streaming_zlpr_loss,
                    pointer_heads,
                    *("queries", "keys", "bias"),
                    name=noted("streaming_zlpr_loss", note),
                    shared=("bias",),
                    call=functools.partial(global_pointer.streaming_zlpr_loss, causal=True),
                    **(LARGE if within else {}),
                ),
            )
        ),
        plain(
            global_pointer.factorised_spans,
            lambda b, w: renamed(pointer_parts(b, w), drop=("positives",)),
            call=lambda pair, start, end, mask: global_pointer.factorised_spans(
                pair, start, end, mask=mask, causal=True
            ),
            decides=True,
        ),
        *pointer_rows(),
        # casrel
        plain(lambda_named(casrel.power_probability, power=2.0), scores_alone, "logits"),
        losses(lambda_named(casrel.power_bce_loss, power=2.0), tables, "logits"),
        losses(lambda_named(casrel.half_pointer_loss, power=4.0), subject_scores, "logits"),
        plain(
            casrel.conditional_layer_norm,
            conditioned_and_maps,
            *("hidden", "condition", "weight", "bias", "weight_map", "bias_map"),
            shared=("weight", "bias", "weight_map", "bias_map"),
            layers=True,
        ),
        Subject(
            "ConditionalLayerNorm",
            of="lib.casrel.ConditionalLayerNorm",
            make=conditioned,
            call=lambda module, hidden, condition: module(hidden, condition),
            module=lambda: casrel.ConditionalLayerNorm(4, 3),
            smooth=("hidden", "condition"),
            trains=True,
            layers=True,
        ),
        plain(
            casrel.tagged_spans,
            lambda b, w: {"margins": subject_scores(b, w)["logits"]},
            decides=True,
        ),
        plain(casrel.choose_subjects, nothing, call=lambda: casrel.choose_subjects(TRIPLES, "all")),
        plain(casrel.subject_tags, nothing, call=lambda: casrel.subject_tags(TRIPLES, length=5)),
        plain(
            casrel.object_tags,
            nothing,
            call=lambda: casrel.object_tags(
                TRIPLES,
                torch.tensor([[0, 0, 1], [2, 2, 2]], device="cpu"),
                length=5,
                relations=2,
            ),
        ),
        # gplinker
        plain(
            gplinker.table_positives,
            nothing,
            call=lambda: gplinker.table_positives(TRIPLES, length=5, relations=2),
        ),
        plain(
            gplinker.decode_tables,
            one_text,
            call=lambda entities, heads, tails: decoded(
                [(triple,) for triple in gplinker.decode_tables(entities, heads, tails)]
            ),
            decides=True,
        ),
        plain(
            gplinker.decode_blocks,
            blocks,
            call=lambda **given: decoded(gplinker.decode_blocks(*given.values())),
            decides=True,
        ),
        plain(
            gplinker.triple_scores,
            one_text,
            *("entities", "heads", "tails"),
            call=lambda entities, heads, tails: gplinker.triple_scores(
                [triple for some in TRIPLES for triple in some], entities, heads, tails
            ),
            grows=(),  # the triples lie within the table
        ),
        *model_rows(),
        Subject(
            "extract_reencoding",
            of="lib.casrel.extract_reencoding",
            make=nothing,
            call=lambda model: as_numbers(
                casrel.extract_reencoding(model, model.prepare(texts(3, 5))[0])
            ),
            module=eager_tagger,
            decides=True,
            layers=True,
            spread=0.05,
        ),
    ]


def noted(name: str, *notes: str) -> str:
    found = ", ".join(note for note in notes if note)
    return f"{name} ({found})" if found else name


def lambda_named(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """A function with options bound, which keeps its name and its home."""
    return functools.wraps(function)(functools.partial(function, **options))


def renamed(
    inputs: Inputs,
    *,
    drop: tuple[str, ...] = (),
    apply: Callable[[Tensor], Tensor] = lambda x: x,
    **names: str,
) -> Inputs:
    """Inputs by other names, without some; ``apply`` to those that are renamed."""
    return {
        names.get(k, k): apply(x) if k in names else x for k, x in inputs.items() if k not in drop
    }


ROWS = {row.name: row for row in all_rows()}
