"""A small set of reviews in the layout of IMDB, and a small BERT with a tokenizer that knows their words."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import torch

from frankenstein.experiments.pretrained import transformers

GOOD, BAD = ("good", "great", "lovely", "clever"), ("bad", "dull", "awful", "clumsy")
OTHER = ("the", "film", "was", "and", "its", "plot", "with", "a", "story", "of")
LONGEST = 32  # tokens that the small BERT takes


def review(generator, label: int, n_words: int) -> str:
    """Return words of which every third judges the film."""
    words = [str(generator.choice((BAD, GOOD)[label] if i % 3 == 0 else OTHER)) for i in range(n_words)]
    return "<br />".join((" ".join(words[: n_words // 2]), " ".join(words[n_words // 2 :])))


def write_reviews(folder: Path, n_train: int = 120, n_test: int = 40, seed: int = 0) -> Path:
    """Write reviews of 6 to 39 words; return the data folder."""
    generator = np.random.default_rng(seed)
    for split, n in (("train", n_train), ("test", n_test)):
        labels = [i % 2 for i in range(n)]
        texts = [review(generator, label, int(generator.integers(6, 40))) for label in labels]
        write_split(folder, split, {"text": texts, "label": labels})
    return folder


def write_split(folder: Path, split: str, columns: dict[str, list]) -> None:
    (folder / "imdb").mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns).to_parquet(folder / "imdb" / f"{split}.parquet")


def write_model(folder: Path, seed: int = 0, n_more_words: int = 0) -> Path:
    """Write a BERT with random weights and its tokenizer; return the folder.

    Args:
        folder: Made.
        seed: Of the weights.
        n_more_words: Words that the tokenizer knows and the weights do not.
    """
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *OTHER]
    more = [f"more{i}" for i in range(n_more_words)]
    vocabulary = {word: number for number, word in enumerate([*words, *more])}
    transformers.BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LONGEST,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformers.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder
