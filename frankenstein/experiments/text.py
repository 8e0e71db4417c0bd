"""Labelled texts: cleaned, cut into tokens, in batches of like lengths; hidden states that are kept on the disk."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache as kept_in_process
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frankenstein.experiments import bert
from frankenstein.experiments.data import DataError, Table, cache, load, order
from frankenstein.experiments.data.images import labels_of
from frankenstein.experiments.data.sources import named
from frankenstein.experiments.experiment import ExperimentError

__all__ = ["Corpus", "Texts", "bucketed", "clean", "corpus", "hidden_states", "in_order", "tokenised"]

SPLIT_SEED = 20250304
VALIDATION_SHARE = 0.3  # of the training texts, as the paper has it
POOL = 20  # batches whose texts are sorted together: lengths within a batch are alike, and batches differ in each epoch
ENCODED_AT_ONCE = 32
ENCODING = 1  # raised when the same texts and weights give other hidden states, so that no older file is used


def clean(text: str) -> str:
    """Return the text without line breaks of either kind.

    >>> clean("Good.<br /><br />Not  great.")
    'Good. Not great.'
    """
    return " ".join(text.replace("<br />", " ").split())


@dataclass(frozen=True)
class Corpus:
    """The texts of a data set in three parts that have none in common.

    Attributes:
        tables: The splits "train" and "test".
        texts: The cleaned texts of each split, all of them.
        rows: Rows of "train" and "validation", both of the training split, and of "test", in a fixed random order.
        n_also_in_test: Training texts that were left out because the test split has them too.
        n_repeated: Those that were left out because they are there twice.
    """

    tables: dict[str, Table]
    texts: dict[str, list[str]]
    rows: dict[str, Tensor]
    n_also_in_test: int
    n_repeated: int


@kept_in_process
def corpus(name: str, folder: Path | None) -> Corpus:
    """Return the texts of a data set.

    Args:
        name: One of `SOURCES`, with the columns text and label.
        folder: The data folder, or None.

    Raises:
        DataError: The data are missing or damaged, or a text is empty.
    """
    columns = named(name, "train").columns
    if not {"text", "label"} <= columns.keys():
        raise DataError(f"{name} has no labelled texts; it has: {', '.join(columns)}")
    tables = {split: load(name, split, folder) for split in ("train", "test")}
    texts = {split: _cleaned(table) for split, table in tables.items()}
    tested, seen, kept = set(texts["test"]), set(), []
    for row, text in enumerate(texts["train"]):
        if text not in tested and text not in seen:
            kept.append(row)
        seen.add(text)
    n_also_in_test = sum(text in tested for text in texts["train"])
    rows = torch.tensor(kept, dtype=torch.int64)[order(len(kept), SPLIT_SEED, 0)]
    n_held = int(VALIDATION_SHARE * len(rows))
    parts = {
        "train": rows[n_held:],
        "validation": rows[:n_held],
        "test": order(len(texts["test"]), SPLIT_SEED, 1),
    }
    return Corpus(tables, texts, parts, n_also_in_test, len(texts["train"]) - len(kept) - n_also_in_test)


def _cleaned(table: Table) -> list[str]:
    texts = [clean(text) for text in table.column("text").to_pylist()]
    if "" in texts:
        raise DataError(f"{table.where(texts.index(''))}: the text is empty; take the row out")
    return texts


@dataclass(frozen=True)
class Texts:
    """Texts as a network takes them, one after the other in one array.

    Attributes:
        values: Token numbers, shape (n_tokens,), int32; or hidden states, shape (n_tokens, width), float16.
        starts: Where each text begins in it, and where the last one ends, shape (n + 1,), int64.
        labels: 0 or 1, shape (n,), float32.
        n_cut: Texts of which only the beginning is here.
    """

    values: Tensor
    starts: Tensor
    labels: Tensor
    n_cut: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each text, shape (n,), int64."""
        return self.starts.diff()

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return values, lengths and labels of some texts, those that are shorter filled up with zeros.

        Returns:
            Token numbers, shape (n, length), int64, or hidden states, (n, length, width), float16; lengths, shape (n,),
            int64; labels, shape (n,), float32.
        """
        lengths = self.lengths[rows]
        values = self.values.new_zeros(len(rows), int(lengths.max()), *self.values.shape[1:])
        for one, begin, length in zip(values, self.starts[rows].tolist(), lengths.tolist(), strict=True):
            one[:length] = self.values[begin : begin + length]
        return values if values.is_floating_point() else values.long(), lengths, self.labels[rows]


def tokenised(found: Corpus, part: str, tokenizer: Any, max_length: int, n: int | None = None) -> Texts:
    """Return a part of the texts as token numbers; of a text that is too long, the beginning.

    Args:
        found: The texts.
        part: "train", "validation" or "test".
        tokenizer: Of the model; it puts a mark before and one behind each text.
        max_length: Tokens of a text at most, the two marks included.
        n: So many texts at most; None: all.
    """
    split = "test" if part == "test" else "train"
    rows = found.rows[part][:n]
    texts = [found.texts[split][row] for row in rows.tolist()]
    # one token more than wanted tells which texts are too long
    ids = tokenizer(texts, truncation=True, max_length=max_length + 1)["input_ids"] if texts else []
    cut = [[*one[: max_length - 1], one[-1]] if len(one) > max_length else one for one in ids]
    values = torch.tensor([number for one in cut for number in one], dtype=torch.int32)
    starts = torch.tensor([0, *map(len, cut)]).cumsum(0)
    labels = labels_of(found.tables[split])[rows].float()
    return Texts(values, starts, labels, sum(len(one) > max_length for one in ids))


def bucketed(lengths: Tensor, seed: int, epoch: int, batch_size: int) -> Tensor:
    """Return the batches of an epoch, texts of like lengths together; they follow from the seed and the epoch alone.

    Args:
        lengths: Tokens of each text, shape (n,), int64.
        seed: Of the run.
        epoch: From 0.
        batch_size: Texts of a batch.

    Returns:
        Rows of each batch, shape (n // batch_size, batch_size), int64; the texts left over are others in each epoch.
    """
    n_batches = len(lengths) // batch_size
    rows = order(len(lengths), seed, epoch)[: n_batches * batch_size]
    pools = [pool[lengths[pool].argsort(stable=True)] for pool in rows.split(POOL * batch_size)]
    batches = torch.cat(pools).view(n_batches, batch_size) if pools else rows.view(0, batch_size)
    shuffled = np.random.default_rng([seed, epoch, 1]).permutation(n_batches)
    return batches[torch.from_numpy(shuffled)]


def in_order(texts: Texts, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Return all texts in batches, the short ones first, to be scored on; the last batch may be short."""
    for rows in texts.lengths.argsort(stable=True).split(batch_size):
        yield texts.batch(rows)


def hidden_states(name: str, encoder: Any, tokens: Texts) -> Texts:
    """Return the texts as the hidden states of a frozen encoder, without its dropout.

    They are worked out once on a machine, on a GPU where there is one, and kept in half precision in the cache folder
    (`$FRANKENSTEIN_CACHE`, else `~/.cache/frankenstein`): two bytes for each token and unit. Other tokens or other
    weights have a file of their own; a damaged one is made again.

    Args:
        name: Of the model, for the file's name.
        encoder: A `transformers.BertModel`.
        tokens: The texts, as token numbers.

    Raises:
        ExperimentError: There is no room, or the states do not fit into half precision.
    """
    said = hashlib.sha256(f"{ENCODING} {bert.digest(encoder)} ".encode())
    for part in (tokens.values, tokens.starts):
        said.update(part.numpy().data)
    title = re.sub(r"[^\w.-]+", "-", Path(name).name)
    path = cache.folder() / "hidden" / f"{title}-{said.hexdigest()[:16]}.npy"
    shape = (len(tokens.values), 2 * encoder.config.hidden_size)  # in bytes
    found = cache.kept_array(path, shape, lambda array: _encode(encoder, tokens, array.view(np.float16)))
    return replace(tokens, values=torch.from_numpy(found.view(np.float16)))


def _encode(encoder: Any, tokens: Texts, states: NDArray[np.float16]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    encoder = encoder.to(device).eval()
    for rows in tokens.lengths.argsort(stable=True).split(ENCODED_AT_ONCE):
        values, lengths, _ = tokens.batch(rows)
        mask = torch.arange(values.shape[1]) < lengths[:, None]
        with torch.no_grad():
            found = encoder(values.to(device), attention_mask=mask.long().to(device)).last_hidden_state
        half = found.half().cpu()
        if not half[mask].isfinite().all():
            raise ExperimentError(
                "the encoder's hidden states do not fit into half precision, or are not numbers; take other weights"
            )
        for one, begin, length in zip(half, tokens.starts[rows].tolist(), lengths.tolist(), strict=True):
            states[begin : begin + length] = one[:length].numpy()
    encoder.to("cpu")
