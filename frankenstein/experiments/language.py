"""Tuning a network of language on instructions: what the training loop is given, and the `run` of a problem."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from frankenstein.compare.problems.problem import Budget, Measurements, Split
from frankenstein.experiments.experiment import ExperimentError
from frankenstein.experiments.instructions import Encoded, answer_losses, drawn, encode
from frankenstein.experiments.training import Loop, Recipe
from frankenstein.experiments.vision import data_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from frankenstein.compare.optimizers import Factory
    from frankenstein.experiments.data import Table
    from frankenstein.experiments.llama import Weights

__all__ = ["Instructions"]

SPLIT_SEED = 20250304  # decides which rows are held out: the same ones for every seed and every length
SCORED_AT_ONCE = 16  # samples
N_SHOWN, SHOWN_TOKENS = 3, 32  # held-out instructions that are answered for people to read, and the answers' length


class Parts(NamedTuple):
    """Which samples are trained on, and which are scored on."""

    train: list[int]
    scored: list[int]


@dataclass(frozen=True)
class Instructions:
    """The `run` of a problem: LoRA on a network of language, scored by its loss on held-out answers.

    The loss is the mean over the tokens of all answers of a batch.

    Attributes:
        dataset: A name in `frankenstein.experiments.data.SOURCES`.
        max_length: Most tokens of a sample; what is longer is cut.
        n_test: Samples that are held out.
        batch_size: Samples of an optimizer step.
        recipe: How it is trained.
        dtype: Of the network's own weights, which are not trained: "float32" or "bfloat16".
        window: Out of so many batches batches of similar length are made: see `drawn`.
    """

    dataset: str
    max_length: int
    n_test: int
    batch_size: int
    recipe: Recipe | Callable[[Budget], Recipe]
    dtype: str = "float32"
    window: int = 1

    def __call__(self, make_optimizer: Factory, seed: int, budget: Budget) -> Measurements:
        """Train once.

        Raises:
            ExperimentError: The data or the weights cannot be had.
        """
        tasks: list[Tuning] = []

        def start(seed: int, budget: Budget) -> Tuning:
            tasks.append(Tuning(self, seed, budget))
            return tasks[0]

        measured = Loop(start, self.recipe)(make_optimizer, seed, budget)
        measured.data = self.describe()
        if not measured.diverged:
            measured.samples = tasks[0].samples()
        return measured

    def describe(self) -> list[dict[str, Any]]:
        """Return the name, size and hash of the data and of the network's weights, and what was done to the data."""
        table, found, network = _table(self.dataset, data_folder()), self.encoded(), self.weights()
        parts = self.parts("test")
        about = {
            "n_train": len(parts.train),
            "n_test": len(parts.scored),
            "max_length": self.max_length,
            "n_cut": sum(found.is_cut[sample] for sample in (*parts.train, *parts.scored)),
            "n_empty": found.n_empty,
            "n_too_long": found.n_too_long,
        }
        weights = {"name": network.name, "n": network.n_bytes, "sha256": network.sha256, "dtype": self.dtype}
        return [{**table.describe(), **about}, weights]

    def weights(self) -> Weights:
        """Return the network to start from."""
        from frankenstein.experiments.llama import weights

        return weights()

    def encoded(self) -> Encoded:
        """Return the samples."""
        return _encoded(self.dataset, data_folder(), self.weights().folder, self.max_length)

    def parts(self, split: Split) -> Parts:
        """Return what is trained and scored on; while settings are chosen, both are of the training samples.

        A prompt that is held out is trained on nowhere.

        Raises:
            ExperimentError: There are too few samples.
        """
        found = self.encoded()
        order = _order(self.dataset, data_folder())
        place = {row: i for i, row in enumerate(found.rows)}
        samples = [place[row] for row in order if row in place]
        held, rest = samples[: self.n_test], samples[self.n_test :]
        asked = {tuple(found.question(sample).tolist()) for sample in held}
        train = [sample for sample in rest if tuple(found.question(sample).tolist()) not in asked]
        if split == "validation":
            held, train = train[: self.n_test], train[self.n_test :]
        if len(train) < self.batch_size:
            raise ExperimentError(
                f"{self.dataset} has {len(found)} samples of at most {self.max_length} tokens; {self.n_test} to hold "
                f"out and a batch of {self.batch_size} need more"
            )
        return Parts(train, held)


@cache
def _table(dataset: str, folder: Path | None) -> Table:
    from frankenstein.experiments.data import load

    return load(dataset, "train", folder)


@cache
def _order(dataset: str, folder: Path | None) -> list[int]:
    from frankenstein.experiments.data import order

    numbers: list[int] = order(len(_table(dataset, folder)), SPLIT_SEED, 0).tolist()
    return numbers


@cache
def _encoded(dataset: str, folder: Path | None, network: Path, max_length: int) -> Encoded:
    from frankenstein.experiments.llama import tokenizer

    return encode(_table(dataset, folder), tokenizer(network), max_length)


_BEFORE: dict[tuple[Instructions, str, tuple[int, ...]], list[str]] = {}
"""What the network says before a training, which is the same before all of this process's."""


class Tuning:
    """One training at one seed; what the loop asks for."""

    def __init__(self, run: Instructions, seed: int, budget: Budget) -> None:
        from frankenstein.experiments.llama import with_lora

        self.run, self.seed, self.batch_size = run, seed, run.batch_size
        self.encoded, self.parts = run.encoded(), run.parts(budget.split)
        self.n_batches = len(self.parts.train) // self.batch_size
        self.model: Any = with_lora(run.weights().folder, run.dtype)

    def batches(self, epoch: int, first: int, rank: int, n_ranks: int) -> Iterator[dict[str, Tensor]]:
        import torch

        share = self.batch_size // n_ranks
        drawn_batches = drawn(self.encoded, self.parts.train, self.batch_size, self.run.window, self.seed, epoch)
        for samples in drawn_batches[first:]:
            own = samples[rank * share : (rank + 1) * share]
            n_answer = sum(map(self.encoded.n_answer, samples))
            scale = torch.full((share,), self.batch_size / n_answer)
            yield {**self.encoded.padded(own), "scale": scale}

    def loss(self, model: nn.Module, batch: dict[str, Tensor], seed: int) -> Tensor:
        # The scale makes it the mean over the answers' tokens of the whole batch, however the batch is shared and cut.
        return (answer_losses(model, batch).sum(1) * batch["scale"]).mean()

    def score(self, model: nn.Module) -> dict[str, float]:
        device = next(model.parameters()).device
        by_length = sorted(self.parts.scored, key=lambda sample: len(self.encoded.tokens[sample]))
        total = 0.0
        for i in range(0, len(by_length), SCORED_AT_ONCE):
            batch = self.encoded.padded(by_length[i : i + SCORED_AT_ONCE])
            batch = {name: value.to(device) for name, value in batch.items()}
            total += answer_losses(model, batch).double().sum().item()
        return {"score": total / sum(map(self.encoded.n_answer, by_length))}

    def samples(self) -> list[dict[str, str]]:
        """Return a few held-out instructions, the answers of the data set, and the network's before and after."""
        self.model.eval()
        shown = tuple(self.parts.scored[:N_SHOWN])
        begin = (self.run, self.run.weights().sha256, shown)
        if begin not in _BEFORE:
            with self.model.disable_adapter():
                _BEFORE[begin] = [self.answer(sample) for sample in shown]
        found = []
        for sample, said in zip(shown, _BEFORE[begin], strict=True):
            row = _table(self.run.dataset, data_folder()).rows[self.encoded.rows[sample]]
            asked = {"instruction": row["instruction"], "input": row["input"], "expected": row["output"]}
            found.append({**asked, "before": said, "after": self.answer(sample)})
        return found

    def answer(self, sample: int) -> str:
        """Return what the network says to a prompt."""
        from frankenstein.experiments.llama import greedy, tokenizer

        words = tokenizer(self.run.weights().folder)
        device = next(self.model.parameters()).device
        said = greedy(self.model, self.encoded.question(sample).to(device), SHOWN_TOKENS)
        end = said.index(words.eos_token_id) if words.eos_token_id in said else len(said)
        text: str = words.decode(said[:end], skip_special_tokens=True)
        return text.strip() + ("" if end < len(said) else " ...")
