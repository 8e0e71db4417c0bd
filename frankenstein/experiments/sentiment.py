"""Telling good reviews from bad ones: what the training loop is given, and the `run` of a problem made of it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from frankenstein.compare.problems.problem import Budget, Measurements
from frankenstein.experiments.experiment import ExperimentError
from frankenstein.experiments.training import Loop, Recipe
from frankenstein.experiments.vision import data_folder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from frankenstein.compare.optimizers import Factory
    from frankenstein.experiments.text import Texts

__all__ = ["Sentiment", "Start"]

SCORED_AT_ONCE = 64  # texts; no gradient is kept
Start = Literal["frozen", "tuned", "random"]


@dataclass(frozen=True)
class Sentiment:
    """The `run` of a problem: BERT and a recurrent network trained on labelled texts, scored by accuracy on others.

    Attributes:
        start: "frozen": the encoder's weights are the model's and stay, so that its hidden states are worked out once
            and without its dropout; "tuned": they are the model's and are trained; "random": they are random and are
            trained.
        encoder: The model: `bert.MINILM`, a folder, or a name on the public hub.
        max_length: Tokens of a text at most, the marks before and behind it included; longer texts are cut.
        batch_size: Texts of an optimizer step.
        recipe: How it is trained.
        dataset: A name in `frankenstein.experiments.data.SOURCES`.
        shape: Layers and width of an encoder that starts at random, if not the model's.
        n_train: So many training texts at most, the first of a fixed order.
        n_scored: Likewise, of those that it is scored on.
    """

    start: Start
    encoder: str
    max_length: int
    batch_size: int
    recipe: Recipe | Callable[[Budget], Recipe]
    dataset: str = "imdb"
    shape: tuple[int, int] | None = None
    n_train: int | None = None
    n_scored: int | None = None

    def __call__(self, make_optimizer: Factory, seed: int, budget: Budget) -> Measurements:
        """Train once.

        Raises:
            ExperimentError: The data or the model cannot be had.
        """
        measured = Loop(lambda seed, budget: Classification(self, seed, budget), self.recipe)(
            make_optimizer, seed, budget
        )
        measured.data = self.describe()
        return measured

    def describe(self) -> list[dict[str, Any]]:
        """Return name, size and hash of the texts and of the model; they are made ready on the way."""
        from frankenstein.experiments.text import corpus

        found = corpus(self.dataset, data_folder())
        dropped = {"n_also_in_test": found.n_also_in_test, "n_repeated": found.n_repeated}
        parts = []
        for split in ("train", "test"):
            texts = self.texts(split)
            about = {"n_used": len(texts), "n_cut": texts.n_cut, "max_length": self.max_length}
            parts.append({**found.tables[split].describe(), **(dropped if split == "train" else {}), **about})
        return [*parts, {"name": self.encoder, "start": self.start, "sha256": _model_digest(self.encoder, self.start)}]

    def texts(self, part: str) -> Texts:
        """Return "train", "validation" or "test" as the network takes it."""
        return _texts(self, part, data_folder())

    def network(self) -> nn.Module:
        """Return a new network; what is random in it comes from torch's generator."""
        from frankenstein.experiments import bert

        if self.start == "frozen":
            return bert.BertGRU(None, self.texts("train").values.shape[1])
        encoder = bert.encoder(self.encoder, is_pretrained=self.start == "tuned", shape=self.shape)
        return bert.BertGRU(encoder, encoder.config.hidden_size)


@cache
def _texts(sentiment: Sentiment, part: str, folder: Path | None) -> Texts:
    from frankenstein.experiments.text import corpus, hidden_states, tokenised

    found, (tokenizer, _) = corpus(sentiment.dataset, folder), _tokenizer(sentiment.encoder)
    _check(sentiment.encoder, tokenizer, sentiment.max_length)
    n = sentiment.n_train if part == "train" else sentiment.n_scored
    tokens = tokenised(found, part, tokenizer, sentiment.max_length, n)
    if sentiment.start != "frozen":
        return tokens
    return hidden_states(sentiment.encoder, _frozen(sentiment.encoder), tokens)


@cache
def _tokenizer(name: str) -> tuple[Any, str]:
    """Return the tokenizer, and the SHA-256 of what it was when it was read: its settings change when it is used."""
    from frankenstein.experiments import bert

    tokenizer = bert.tokenizer(name)
    return tokenizer, hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


@cache
def _frozen(name: str) -> Any:
    from frankenstein.experiments import bert

    return bert.encoder(name, is_pretrained=True).eval()


def _check(name: str, tokenizer: Any, max_length: int) -> None:
    """Refuse what the model would stumble over."""
    from frankenstein.experiments import bert

    config = bert.configuration(name)
    if max_length > config.max_position_embeddings:
        raise ExperimentError(
            f"texts may have {max_length} tokens, and {name} takes {config.max_position_embeddings} at most; choose a "
            "smaller max_length"
        )
    if len(tokenizer) > config.vocab_size:
        raise ExperimentError(
            f"the tokenizer of {name} knows {len(tokenizer)} tokens, and its weights {config.vocab_size}; they do not "
            "belong together: copy both again"
        )


@cache
def _model_digest(name: str, start: Start) -> str:
    """Return the SHA-256 of the tokenizer, and of the weights where they are used."""
    from frankenstein.experiments import bert

    tokenizer, weights = _tokenizer(name)[1], "" if start == "random" else bert.digest(_frozen(name))
    return hashlib.sha256(f"{tokenizer} {weights}".encode()).hexdigest()


class Classification:
    """One training at one seed; what the loop asks for."""

    def __init__(self, sentiment: Sentiment, seed: int, budget: Budget) -> None:
        self.model = sentiment.network()
        self.seed, self.batch_size = seed, sentiment.batch_size
        self.train, self.scored = sentiment.texts("train"), sentiment.texts(budget.split)
        self.n_batches = len(self.train) // self.batch_size

    def batches(self, epoch: int, first: int, rank: int, n_ranks: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        from frankenstein.experiments.text import bucketed

        for rows in bucketed(self.train.lengths, self.seed, epoch, self.batch_size)[first:]:
            yield self.train.batch(rows[rank::n_ranks])  # of every length some: the processes wait for the longest

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor], seed: int) -> Tensor:
        from torch.nn.functional import binary_cross_entropy_with_logits

        values, lengths, labels = batch
        return binary_cross_entropy_with_logits(model(values, lengths), labels)

    def score(self, model: nn.Module) -> dict[str, float]:
        from torch.nn.functional import binary_cross_entropy_with_logits

        from frankenstein.experiments.text import in_order

        device = next(model.parameters()).device
        n_right, loss = 0, 0.0
        for values, lengths, labels in in_order(self.scored, SCORED_AT_ONCE):
            logits, labels = model(values.to(device), lengths.to(device)), labels.to(device)
            n_right += int(((logits > 0) == (labels > 0.5)).sum())
            loss += binary_cross_entropy_with_logits(logits, labels, reduction="sum").item()
        return {"score": n_right / len(self.scored), "test_loss": loss / len(self.scored)}
