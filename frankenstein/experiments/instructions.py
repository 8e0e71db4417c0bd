"""Instructions as the rows of Alpaca have them: prompts, tokens, batches, the loss of the answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from frankenstein.experiments.experiment import ExperimentError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from frankenstein.experiments.data import Table

__all__ = ["Encoded", "answer_losses", "drawn", "encode", "prompt"]

COLUMNS = ("instruction", "input", "output")
IGNORED = -100  # label of a token that no loss is taken of


def prompt(instruction: str, context: str) -> str:
    r"""Return an instruction in Alpaca's form, without the sentence that stands before it there.

    >>> prompt("Translate to German.", "a tree")
    '### Instruction:\nTranslate to German.\n\n### Input:\na tree\n\n### Response:\n'
    """
    middle = f"### Input:\n{context.strip()}\n\n" if context.strip() else ""
    return f"### Instruction:\n{instruction.strip()}\n\n{middle}### Response:\n"


@dataclass(frozen=True)
class Encoded:
    """Instructions as tokens.

    Attributes:
        tokens: Of each sample, prompt and answer: tensors of shape (length,), int64, in the order of the rows.
        n_prompt: How many of them are the prompt.
        rows: The row of the data set that each sample is.
        is_cut: Of each sample, whether it was longer than allowed, and lost the rest of its answer.
        n_empty: Rows without an instruction or an answer: left out.
        n_too_long: Rows whose prompt alone fills the length: left out.
    """

    tokens: list[Tensor]
    n_prompt: list[int]
    rows: list[int]
    is_cut: list[bool]
    n_empty: int
    n_too_long: int

    def __len__(self) -> int:
        return len(self.tokens)

    def n_answer(self, sample: int) -> int:
        """Return how many tokens the loss is taken of."""
        return len(self.tokens[sample]) - self.n_prompt[sample]

    def question(self, sample: int) -> Tensor:
        """Return the prompt's tokens."""
        return self.tokens[sample][: self.n_prompt[sample]]

    def padded(self, samples: list[int]) -> dict[str, Tensor]:
        """Return samples as one batch: "tokens" and "labels", shape (n_samples, longest), int64.

        Behind the end stand zeros, which no token before them sees. Labels are the tokens of the answer, else -100.
        """
        import torch

        longest = max(len(self.tokens[sample]) for sample in samples)
        tokens = torch.zeros(len(samples), longest, dtype=torch.int64)
        labels = torch.full_like(tokens, IGNORED)
        for i, sample in enumerate(samples):
            own, begin = self.tokens[sample], self.n_prompt[sample]
            tokens[i, : len(own)] = own
            labels[i, begin : len(own)] = own[begin:]
        return {"tokens": tokens, "labels": labels}


def encode(table: Table, tokenizer: Any, max_length: int) -> Encoded:
    """Return the rows of a data set as tokens.

    An answer ends with the tokenizer's token for the end of a text, unless it is cut.

    Args:
        table: With the columns instruction, input and output.
        tokenizer: A tokenizer of the library transformers.
        max_length: Most tokens of a sample.

    Raises:
        ExperimentError: No row has an instruction and an answer.
    """
    import torch

    columns = [table.column(name).to_pylist() for name in COLUMNS]
    rows = [dict(zip(COLUMNS, values, strict=True)) for values in zip(*columns, strict=True)]
    whole = [i for i, row in enumerate(rows) if row["instruction"].strip() and row["output"].strip()]
    if not whole:
        raise ExperimentError(f"{table.origin}: no row has both an instruction and an output; copy the file again")
    asked = tokenizer([prompt(rows[i]["instruction"], rows[i]["input"]) for i in whole], verbose=False).input_ids
    said = tokenizer([rows[i]["output"].strip() for i in whole], add_special_tokens=False, verbose=False).input_ids
    found = Encoded([], [], [], [], len(rows) - len(whole), sum(len(one) >= max_length for one in asked))
    for row, question, answer in zip(whole, asked, said, strict=True):
        if len(question) < max_length:
            tokens = [*question, *answer, tokenizer.eos_token_id]
            found.tokens.append(torch.tensor(tokens[:max_length]))
            found.n_prompt.append(len(question))
            found.rows.append(row)
            found.is_cut.append(len(tokens) > max_length)
    if not found.tokens:
        raise ExperimentError(f"{table.origin}: every prompt has {max_length} tokens or more; allow longer samples")
    return found


def drawn(encoded: Encoded, samples: list[int], batch_size: int, window: int, seed: int, epoch: int) -> list[list[int]]:
    """Return the samples of each batch of an epoch; those that are left over at the end are left out.

    Args:
        encoded: The samples.
        samples: Which of them are trained on.
        batch_size: Samples of a batch.
        window: Out of so many batches in a row batches of similar length are made, which spares padding; 1: they stay
            as they were drawn.
        seed: Of the run.
        epoch: From 0.
    """
    from frankenstein.experiments.data import order

    n_batches = len(samples) // batch_size
    found = [samples[row] for row in order(len(samples), seed, epoch)[: n_batches * batch_size].tolist()]
    if window > 1:
        parts = [found[i : i + window * batch_size] for i in range(0, len(found), window * batch_size)]
        found = [one for part in parts for one in sorted(part, key=lambda i: len(encoded.tokens[i]))]
    batches = [found[i : i + batch_size] for i in range(0, len(found), batch_size)]
    return [batches[i] for i in order(n_batches, seed, epoch).tolist()] if window > 1 else batches


def answer_losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of each token from where the first answer begins, 0 where it is no answer's.

    Args:
        model: A causal network of the library transformers.
        batch: What `Encoded.padded` returns, on the model's device.

    Returns:
        Shape (n_samples, n_tokens), float32, in nats.
    """
    from torch.nn.functional import cross_entropy

    tokens, labels = batch["tokens"], batch["labels"]
    first = int((labels != IGNORED).any(0).nonzero()[0])
    labels = labels[:, first:]
    # A token is told from the ones before it. Logits of the prompts are not needed, and they are most of the memory.
    logits = model(input_ids=tokens, use_cache=False, logits_to_keep=labels.shape[1] + 1).logits[:, :-1].float()
    losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view(labels.shape)
