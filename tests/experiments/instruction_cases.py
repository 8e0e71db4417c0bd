"""A tiny network of LLaMA's architecture with random weights, a tokenizer for it, and a few instructions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import torch

from frankenstein.experiments import torchvision_anywhere  # noqa: F401  before transformers

import transformers  # isort: skip
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

WORDS = ("red", "green", "blue", "one", "two", "three", "cat", "dog", "tree", "sun", "moon", "rain")
END = "<end>"


def rows(n: int) -> list[dict[str, str]]:
    """Instructions, each with an answer that follows from it; every third has an input."""
    found = []
    for i in range(n):
        a, b, c = (WORDS[(i // 12**k) % 12] for k in range(3))
        found.append({"instruction": f"say {a} {b} {c}", "input": "loud" if i % 3 == 0 else "", "output": f"{a} {b}"})
    return found


def write_rows(folder: Path, found: list[dict[str, Any]], name: str = "alpaca_9k") -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(found).to_parquet(folder / name / "train.parquet")


def tokenizer() -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[END], initial_alphabet=letters, show_progress=False)
    made.train_from_iterator([row["instruction"] for row in rows(300)], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token=END)


def config(**changes: Any) -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 512}
    return transformers.LlamaConfig(tie_word_embeddings=True, **sizes | changes)


def write_network(folder: Path, seed: int = 0, made_of: Any = None) -> Path:
    """Write a network with random weights, and its tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = transformers.AutoModelForCausalLM.from_config(made_of or config())
    network.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
