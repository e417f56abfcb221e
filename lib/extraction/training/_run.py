"""One training run: fit, keep the best epoch, survive interruption, leave a record."""

import json
import math
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lib._extras import needs
from lib.extraction.alignment import Losses
from lib.extraction.cards import model_card
from lib.extraction.corpora import check_relations, describe_unknown, trained_relations
from lib.extraction.locks import InUseError, hold
from lib.extraction.metrics import Scores
from lib.extraction.records import (
    RunRecord,
    hardware,
    portable,
    read_record,
    remove_partials,
    versions,
    write_atomically,
    write_record,
)
from lib.extraction.thresholds import Decoding
from lib.extraction.training._inference import make_accelerator, score_items
from lib.extraction.training._protocol import Extractor
from lib.extraction.training._report import report_split
from lib.extraction.training._settings import (
    Settings,
    ema_decay,
    epoch_batches,
    learning_rate_factor,
    set_seed,
)
from lib.extraction.triples import Corpus
from lib.records import code_version

with needs("extraction"):
    import numpy as np
    from tqdm import tqdm

__all__ = ["train"]

FEW = 10
"""Triples of dev below which its scores are a matter of chance."""

MINUTE = 60.0
"""Seconds between two lines on the way through an epoch."""


def train(
    model: Extractor,
    corpus: Corpus,
    out: Path,
    settings: Settings,
    *,
    options: Mapping[str, Any] | None = None,
    command: str | None = None,
    progress: bool = False,
) -> RunRecord:
    """Train a model, keep its best epoch on dev, and write model and run record into `out`.

    Calling again with the same arguments after an interruption continues at the last finished
    epoch, and after the end returns the record at once, leaving `model` as it is. A corpus without
    dev split has every tenth training sentence, drawn by the seed, held out for it; this is said on
    standard error and recorded. Triples that cannot be told to the model, and entities that were
    trimmed, are told there too, before the first epoch.

    Parameters
    ----------
    model : Extractor
        Trained in place; afterwards it holds the weights of the best epoch.
    corpus : Corpus
        The model must know its relations.
    out : Path
        A folder, made if it is not there. One folder holds one run.
    settings : Settings
        How to train. Its seed is set globally for `random`, `numpy` and `torch`.
    options : mapping, optional
        What the model was created with, as plain JSON values, for the record.
    command : str, optional
        What to record as the command; by default that of the running program.
    progress : bool
        Report on standard error: a line per epoch, and a bar with the loss and the time left if it
        is a terminal, else a line with both a minute.

    Returns
    -------
    RunRecord
        With the scores of the kept model on dev, test and the corpus's further test sets.

    Raises
    ------
    ValueError
        If the corpus has fewer than two sentences to train on, no triple, or relations in training
        that the model lacks, all triples of a split are lost, `out` holds another run or something
        else, another process trains in it, its checkpoint cannot be read, or the loss stops being
        finite.
    OSError
        If the disk is full. The last checkpoint is still good.
    """
    return _Run(model, corpus, Path(out), settings, options or {}, command, progress).go()


class _Run:
    """One call of `train`: what its stages share."""

    def __init__(
        self,
        model: Extractor,
        corpus: Corpus,
        out: Path,
        settings: Settings,
        options: Mapping[str, Any],
        command: str | None,
        progress: bool,
    ) -> None:
        self.accelerator = make_accelerator()
        self.main = self.accelerator.is_main_process
        self.progress = progress and self.main
        self.held_out = 0
        if not corpus.dev:
            corpus, self.held_out = _with_dev(corpus, settings.seed)
            self.say(
                f"{corpus.name} has no dev split: {self.held_out} of "
                f"{len(corpus.train) + self.held_out} training sentences are held out for it "
                f"(seed {settings.seed})",
                always=True,
            )
        self.splits = corpus.splits()
        check_relations(corpus.train, model.relations, where=f"{corpus.name}, train")
        trained = trained_relations(corpus)
        for split, examples in self.splits.items():
            if untrained := describe_unknown(examples, trained):
                self.say(f"{split}: {untrained} counted as missed: train has none", always=True)
        self.model, self.corpus, self.out, self.settings = model, corpus, out, settings
        self.average: AveragedModel | None = None
        self.command = command or shlex.join(portable(argument) for argument in sys.argv)
        self.code = code_version()  # now: the files may change while the run goes on
        self.checkpoint = out / "checkpoint.pt"
        self.record = out / "record.json"
        parameters = list(model.parameters())
        about = {
            "class": type(model).__name__,
            "parameters": sum(p.numel() for p in parameters),
            "trainable": sum(p.numel() for p in parameters if p.requires_grad),
            "options": {
                name: portable(value) if isinstance(value, str) else value
                for name, value in options.items()
            },
        }
        # Through JSON, so that it equals what is read back: a tuple becomes a list.
        self.about: dict[str, Any] = json.loads(json.dumps(about))
        self.epochs: list[dict[str, Any]] = []  # those finished, as in the record
        self.best_model: dict[str, Tensor] = {}
        self.peaks: list[float] = []
        self.told = self.started = time.monotonic()
        self.steps = 0  # taken in this call
        self.steps_per_epoch = 0  # known when the texts are prepared: a long one is several items
        self.say_doubts_of_dev()

    def say(self, line: str, *, always: bool = False) -> None:
        if self.progress or (always and self.main):
            tqdm.write(line, file=sys.stderr)

    def say_doubts_of_dev(self) -> None:
        """Say what makes a poor run of data that can be read."""
        dev = self.splits["dev"]
        triples = sum(len(example.triples) for example in dev)
        if triples < FEW:
            self.say(
                f"Warning: dev holds too few triples ({triples}): chance decides which epoch is "
                "best, and dev's scores say next to nothing",
                always=True,
            )

    def say_doubts_of_settings(self) -> None:
        """Say what makes a poor run of settings that are in range."""
        steps = self.settings.epochs * self.steps_per_epoch
        reach = 1 / (1 - self.settings.ema)
        if self.settings.ema and reach > steps / 4:
            self.say(
                f"Warning: ema {self.settings.ema:g} averages the weights of about {reach:.0f} "
                f"steps, and the whole run takes {steps}: what is kept will lag behind what is "
                f"trained; ema {max(0.0, 1 - 10 / steps):.3g} or less suits this run",
                always=True,
            )

    def say_where(self, epoch: int, number: int, loss: Tensor) -> None:
        """Say once a minute how far the run is, where there is no terminal to draw a bar on."""
        self.steps += 1
        now = time.monotonic()
        if not self.progress or sys.stderr.isatty() or now - self.told < MINUTE:
            return
        self.told = now
        left = self.settings.epochs * self.steps_per_epoch
        left -= (epoch - 1) * self.steps_per_epoch + number
        minutes = left * (now - self.started) / self.steps / 60
        self.say(
            f"epoch {epoch} of {self.settings.epochs}: step {number} of {self.steps_per_epoch}, "
            f"loss {loss.item():.4f}, at most {math.ceil(minutes)} min left"
        )

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a run to be the same run."""
        data = {"name": self.corpus.name, "sha256": self.corpus.sha256}
        return {"model": self.about, "data": data, "settings": asdict(self.settings)}

    def go(self) -> RunRecord:
        with self.holding():
            return self.work()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Keep the folder to this run: its main process holds it for all of them."""
        with ExitStack() as stack:
            refused = None
            if self.main:
                self.out.mkdir(parents=True, exist_ok=True)
                try:
                    stack.enter_context(hold(self.out / ".lock", self.out))
                except InUseError as error:
                    refused = f"{error}; choose a new folder, or wait until that run is done"
                else:
                    for path in (self.checkpoint, self.record):
                        remove_partials(path)
            for message in self.gather(refused):  # so that no process waits for one that stops
                if message:
                    raise ValueError(message)
            yield

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes."""
        with needs("extraction"):
            from accelerate.utils import gather_object
        found: list[Any] = gather_object([value])
        return found

    def work(self) -> RunRecord:
        if self.record.exists():
            done = read_record(self.record)
            kept = {"model": done.model, "settings": done.settings}
            kept["data"] = {name: done.data.get(name) for name in ("name", "sha256")}
            self.check_same(kept)
            self.say(f"{self.out} holds this run, finished: nothing to do")
            self.remove_checkpoint()  # the kill may have come just before
            return done
        saved = self.read_checkpoint()
        # Machines that do not share the folder would start at different epochs and then wait for
        # each other for ever.
        seen = self.gather(0 if saved is None else len(saved["epochs"]))
        if len(set(seen)) > 1:
            raise ValueError(
                f"the processes found checkpoints of different epochs, {seen}: {self.out} must be "
                "a folder that all machines share"
            )
        if saved is None and (self.out / "best").exists():
            raise ValueError(
                f"{self.out} holds a model of another run (best/): choose a new folder"
            )
        record = self.fit(saved)
        if self.main:
            self.model.card = model_card(record)
            self.model.save(self.out / "best")
            write_record(self.record, record)
        self.remove_checkpoint()
        return record

    def remove_checkpoint(self) -> None:
        self.accelerator.wait_for_everyone()
        if self.main:
            self.checkpoint.unlink(missing_ok=True)

    def check_same(self, kept: Mapping[str, Any]) -> None:
        wanted = _flat(self.identity())
        found = _flat(kept)
        for name in sorted(wanted.keys() | found.keys()):
            if wanted.get(name) != found.get(name):
                raise ValueError(
                    f"{self.out} holds a different run: its {name} is {found.get(name)!r}, "
                    f"this one's is {wanted.get(name)!r}; choose a new folder"
                )

    def read_checkpoint(self) -> dict[str, Any] | None:
        if not self.checkpoint.exists():
            return None
        try:
            saved: dict[str, Any] = torch.load(
                self.checkpoint, map_location="cpu", weights_only=True
            )
            kept = saved["identity"]
        except Exception as error:  # bytes that are no checkpoint fail in any way they like
            raise ValueError(
                f"{self.checkpoint} cannot be read ({type(error).__name__}): remove {self.out} "
                "to start anew"
            ) from error
        self.check_same(kept)
        return saved

    def fit(self, saved: dict[str, Any] | None) -> RunRecord:
        settings = self.settings
        prepared = {split: self.model.prepare(list(e)) for split, e in self.splits.items()}
        self.say_losses({split: pair[1] for split, pair in prepared.items()})
        items = {split: pair[0] for split, pair in prepared.items()}
        lengths = [len(item) for item in items["train"]]
        self.steps_per_epoch = math.ceil(len(lengths) / settings.batch_size)
        self.say_doubts_of_settings()
        self.model.decoding = Decoding()  # another one was fitted to the weights as they were
        if saved is not None:
            self.model.load_state_dict(saved["model"])
        optimizer = torch.optim.AdamW(
            self.model.parameter_groups(settings.lr, settings.head_lr, settings.weight_decay),
            fused=True,  # on a CPU five times as fast as the default for a small encoder
        )
        self.peaks = [group["lr"] for group in optimizer.param_groups]
        if settings.ema:
            self.model.to(self.accelerator.device)  # a copy is made where the model is
            self.average = AveragedModel(cast(torch.nn.Module, self.model))
        wrapped, optimizer = self.accelerator.prepare(self.model, optimizer)
        if saved is not None:
            optimizer.load_state_dict(saved["optimizer"])
            if self.average is not None:
                self.average.load_state_dict(saved["average"])
            self.epochs = saved["epochs"]
            self.best_model = saved["best_model"]
            # The kill may have come between the checkpoint and the model that belongs to it.
            self.save_best()
            self.say(f"continuing after epoch {len(self.epochs)} of {settings.epochs}")
        steps = self.steps_per_epoch
        self.started = time.monotonic()
        with tqdm(
            total=settings.epochs * steps,
            initial=len(self.epochs) * steps,
            unit="step",
            disable=None if self.progress else True,
        ) as bar:
            while not self.finished():
                self.one_epoch(wrapped, optimizer, items, lengths, bar)
        self.accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        self.model.load_state_dict(self.best_model)
        scores = {
            split: self.score(self.model, split, items[split]).to_dict()
            for split in self.splits
            if split != "train"
        }
        return RunRecord(
            command=self.command,
            code=self.code,
            model=self.about,
            data=self.describe_data({split: pair[1] for split, pair in prepared.items()}),
            settings=asdict(settings),
            hardware=hardware(
                device=self.accelerator.device.type,
                processes=self.accelerator.num_processes,
                precision=self.accelerator.mixed_precision,
            ),
            versions=versions(),
            wall_seconds=round(sum(epoch["seconds"] for epoch in self.epochs), 3),
            epochs=self.epochs,
            best_epoch=_best_epoch(self.epochs),
            scores=scores,
        )

    def say_losses(self, losses: Mapping[str, Losses]) -> None:
        """Say what each split holds and what of it is lost; refuse one of which nothing is left."""
        reports = [
            report_split(split, examples, losses[split], self.corpus.dropped, self.corpus.notes)
            for split, examples in self.splits.items()
        ]
        for report in reports:
            self.say(report.line, always=not report.silent)
            if report.warning:
                self.say(f"Warning: {report.warning}", always=True)
        for report in reports:
            if report.error:
                raise ValueError(report.error)

    def finished(self) -> bool:
        done = len(self.epochs)
        scores = [epoch["dev"]["f1"] for epoch in self.epochs]
        best = max(scores, default=0.0)
        # Epochs before the first right triple use up no patience.
        stuck = best > 0 and done - (scores.index(best) + 1) >= self.settings.patience
        return done >= self.settings.epochs or stuck

    @property
    def candidate(self) -> Extractor:
        """What an epoch offers to be kept: the trained model, or the one with averaged weights."""
        return self.model if self.average is None else cast(Extractor, self.average.module)

    def score(self, model: Extractor, split: str, items: list[Any]) -> Scores:
        return score_items(
            model,
            self.splits[split],
            items,
            self.corpus.match,
            2 * self.settings.batch_size,  # without gradients there is room for more
            self.progress,
        )

    def one_epoch(
        self,
        wrapped: Any,
        optimizer: Any,
        items: dict[str, list[Any]],
        lengths: list[int],
        bar: Any,
    ) -> None:
        epoch = len(self.epochs) + 1
        started = time.perf_counter()
        bar.set_description(f"epoch {epoch}/{self.settings.epochs}")
        loss = self.optimise(wrapped, optimizer, items["train"], lengths, epoch, bar)
        dev = self.score(self.candidate, "dev", items["dev"])
        seconds = round(time.perf_counter() - started, 3)
        rates = {"precision": dev.precision, "recall": dev.recall, "f1": dev.f1}
        self.epochs.append({"epoch": epoch, "train_loss": loss, "seconds": seconds, "dev": rates})
        improved = _best_epoch(self.epochs) == epoch
        if improved:
            self.best_model = {
                name: tensor.detach().cpu().clone()
                for name, tensor in self.candidate.state_dict().items()
            }
        self.save_checkpoint(optimizer, improved)
        if improved:
            self.save_best()
        self.told = time.monotonic()
        self.say(
            f"epoch {epoch}: loss {loss:.4f}, dev precision {dev.precision:.4f} "
            f"recall {dev.recall:.4f} F1 {dev.f1:.4f}{' (best)' if improved else ''}, "
            f"{seconds:.1f} s"
        )

    def optimise(
        self,
        wrapped: Any,
        optimizer: Any,
        items: list[Any],
        lengths: list[int],
        epoch: int,
        bar: Any,
    ) -> float:
        """Take the steps of one epoch and return the mean loss per item."""
        settings, accelerator = self.settings, self.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        set_seed(settings.seed, epoch=epoch, rank=rank)
        self.model.train(True)
        batches = epoch_batches(lengths, settings.batch_size, seed=settings.seed, epoch=epoch)
        total = torch.zeros((), device=accelerator.device, dtype=torch.float64)
        for number, batch in enumerate(batches):
            step = (epoch - 1) * len(batches) + number  # steps taken before this one
            factor = learning_rate_factor(
                step,
                settings.epochs * len(batches),
                warmup=settings.warmup,
                schedule=settings.schedule,
            )
            for group, peak in zip(optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * factor
            # A batch with fewer sentences than processes: the idle ones repeat its first sentence
            # with weight 0, as all must take part in the exchange of gradients.
            mine = batch[rank::world]
            tensors = self.model.collate([items[i] for i in mine or batch[:1]])
            tensors = {name: value.to(accelerator.device) for name, value in tensors.items()}
            # Processes average their gradients. With these weights the average is the gradient of
            # the mean over the whole batch, however unequal the shares are.
            loss = wrapped(**tensors) * (len(mine) * world / len(batch))
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(self.model.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad()
            if self.average is not None:
                decay = ema_decay(step + 1, settings.ema)
                # torch gives this function no types.
                self.average.multi_avg_fn = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
                self.average.update_parameters(cast(torch.nn.Module, self.model))
            total += loss.detach() * (len(batch) / world)
            bar.update()
            if number % 10 == 0:  # reading the loss makes a GPU wait
                bar.set_postfix(loss=f"{loss.item():.4f}")
            self.say_where(epoch, number + 1, loss)
        mean: float = accelerator.reduce(total, reduction="sum").item() / len(lengths)
        if not math.isfinite(mean):
            raise ValueError(
                f"the training loss is {mean} in epoch {epoch}: lower lr {settings.lr} or head_lr "
                f"{settings.head_lr}"
            )
        return mean

    def save_checkpoint(self, optimizer: Any, improved: bool) -> None:
        state = {
            "identity": self.identity(),
            "epochs": self.epochs,
            # The same tensors are stored once.
            "model": self.best_model if improved and not self.average else self.model.state_dict(),
            "average": self.average and self.average.state_dict(),
            "best_model": self.best_model,
            "optimizer": optimizer.state_dict(),
        }
        if self.main:
            write_atomically(self.checkpoint, lambda file: torch.save(state, file))
        self.accelerator.wait_for_everyone()

    def save_best(self) -> None:
        """Write the best weights as a model of their own, always after their checkpoint."""
        if not self.main:
            return
        current = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict(self.best_model)
        self.model.save(self.out / "best")
        self.model.load_state_dict(current)

    def describe_data(self, unaligned: Mapping[str, Counter[str]]) -> dict[str, Any]:
        corpus = self.corpus
        return {
            "name": corpus.name,
            "licence": corpus.licence,
            "match": corpus.match,
            "sha256": corpus.sha256,
            "relations": list(corpus.relations),
            "sentences": {split: len(examples) for split, examples in self.splits.items()},
            "triples": {
                split: sum(len(example.triples) for example in examples)
                for split, examples in self.splits.items()
            },
            "dropped": dict(corpus.dropped),
            "notes": dict(corpus.notes),
            "files": dict(corpus.files),
            "unaligned": {split: dict(counts) for split, counts in unaligned.items()},
            "dev_from_train": self.held_out,
        }


def _best_epoch(epochs: Sequence[Mapping[str, Any]]) -> int:
    """Return the epoch with the highest dev F1; of several, the one with the least loss.

    A small dev set scores many epochs alike, and the first of them has hardly been trained.
    """
    best = max(epochs, key=lambda epoch: (epoch["dev"]["f1"], -epoch["train_loss"]))
    return int(best["epoch"])


def _with_dev(corpus: Corpus, seed: int) -> tuple[Corpus, int]:
    """Move every tenth training sentence, at least one, to the dev split."""
    held_out = max(1, len(corpus.train) // 10)
    if len(corpus.train) < 2:
        raise ValueError(
            f"{corpus.name} has no dev split, so at least 2 training sentences are needed, "
            f"got {len(corpus.train)}"
        )
    chosen = set(np.random.default_rng(seed).permutation(len(corpus.train))[:held_out].tolist())
    dev = tuple(e for i, e in enumerate(corpus.train) if i in chosen)
    rest = tuple(e for i, e in enumerate(corpus.train) if i not in chosen)
    return replace(corpus, train=rest, dev=dev), held_out


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings under dotted names."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= _flat(value, f"{prefix}{name}.")
        else:
            leaves[prefix + name] = value
    return leaves
