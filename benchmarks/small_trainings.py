"""The trainings of `small_state.py`: what is trained, on which data, for how long.

Each is scored on a test split that tuning has not seen. Images and words come from `train.parquet` and `test.parquet`
in the folders `cifar10_12k` and `imdb` (columns img, label; text, label).
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from frankenstein.compare.problems.digits import load_splits

Splits = dict[str, tuple[Tensor, Tensor]]
N_WORDS, LENGTH, WIDTH = 8000, 64, 128  # vocabulary, words of a review, width of the transformer
N_REVIEWS = {"train": 4000, "validation": 1000, "test": 2500}
DATA_SEED = 7


@dataclass(frozen=True)
class Training:
    """What is trained.

    Attributes:
        title: For people.
        network: Makes the network; torch's global generator is seeded.
        load: Returns inputs and labels of the splits train, validation and test; takes the data folder.
        folder: The folder that must be in the data folder; empty if none is needed.
        n_epochs: Passes through the training split.
        batch_size: The last batch of an epoch, if short, is left out.
        rates: Learning rates to choose from, by the validation split; a single one is not tuned.
        variants: Names of `small_state.VARIANTS`; the first is what the others are compared with.
        n_seeds: Seeds of the final runs.
        momentum: That at the beginning.
        decays: Whether the learning rate goes linearly to 0.
        augment: What happens to a training batch; takes inputs and generator.
    """

    title: str
    network: Callable[[], nn.Module]
    load: Callable[[Path | None], Splits]
    n_epochs: int
    batch_size: int
    rates: tuple[float, ...]
    variants: tuple[str, ...]
    n_seeds: int
    folder: str = ""
    momentum: float = 0.9
    decays: bool = True
    augment: Callable[[Tensor, torch.Generator], Tensor] = lambda inputs, _: inputs


# Data -----------------------------------------------------------------------------------------------------------------


def digits(_: Path | None) -> Splits:
    """Return scikit-learn's images (n, 1, 8, 8) in [0, 1]."""
    return load_splits()


@cache
def digit_tokens(_: Path | None) -> Splits:
    """Return the same images as 64 tokens (n, 64): a token for each of the 17 values of each pixel."""
    return {
        name: ((16 * images.flatten(1)).round().long() + 17 * torch.arange(64), labels)
        for name, (images, labels) in load_splits().items()
    }


def _columns(folder: Path, split: str, *names: str) -> list[list]:
    from pyarrow import parquet

    table = parquet.read_table(folder / f"{split}.parquet", columns=list(names))
    return [table.column(name).to_pylist() for name in names]


@cache
def cifar10(data: Path) -> Splits:
    """Return images (n, 3, 32, 32) of mean 0 and variance 1; the last tenth of the training file is for validation."""
    import numpy as np
    from PIL import Image

    def load(split: str) -> tuple[Tensor, Tensor]:
        images, labels = _columns(data / "cifar10_12k", split, "img", "label")
        arrays = np.stack([np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in images])
        return torch.as_tensor(arrays).permute(0, 3, 1, 2).float() / 255, torch.tensor(labels)

    images, labels = load("train")
    test_images, test_labels = load("test")
    mean, std = (of(images, dim=(0, 2, 3), keepdim=True) for of in (torch.mean, torch.std))
    n = len(images) * 9 // 10
    images = (images - mean) / std
    return {
        "train": (images[:n], labels[:n]),
        "validation": (images[n:], labels[n:]),
        "test": ((test_images - mean) / std, test_labels),
    }


@cache
def imdb(data: Path) -> Splits:
    """Return the last 64 words of reviews that are as long (n, 64), and whether each is favourable.

    Words beyond the most frequent of the training split are 0.
    """

    def load(split: str, n: int) -> tuple[list[list[str]], Tensor]:
        texts, labels = _columns(data / "imdb", split, "text", "label")
        order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(DATA_SEED)).tolist()
        taken = []
        for i in order:
            words = re.findall(r"[a-z']+", texts[i].lower().replace("<br />", " "))
            if len(words) >= LENGTH:
                taken.append((words[-LENGTH:], labels[i]))
            if len(taken) == n:
                break
        return [words for words, _ in taken], torch.tensor([label for _, label in taken])

    n = N_REVIEWS["train"]
    words, labels = load("train", n + N_REVIEWS["validation"])
    counts = Counter(word for review in words[:n] for word in review)
    numbers = {word: i for i, (word, _) in enumerate(counts.most_common(N_WORDS - 1), start=1)}

    def numbered(reviews: list[list[str]]) -> Tensor:
        return torch.tensor([[numbers.get(word, 0) for word in review] for review in reviews])

    test_words, test_labels = load("test", N_REVIEWS["test"])
    return {
        "train": (numbered(words[:n]), labels[:n]),
        "validation": (numbered(words[n:]), labels[n:]),
        "test": (numbered(test_words), test_labels),
    }


def mirrored(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images, each mirrored with chance 1/2."""
    is_mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(is_mirrored, images.flip(3), images)


# Networks -------------------------------------------------------------------------------------------------------------


def mlp() -> nn.Module:
    """Return a perceptron with two hidden layers of 256."""
    sizes = ((64, 256), (256, 256))
    hidden = [layer for n, m in sizes for layer in (nn.Linear(n, m), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(256, 10))


def bag() -> nn.Module:
    """Return the mean of the tokens' embeddings, and a linear layer; a token that is absent has gradient 0."""
    return nn.Sequential(nn.EmbeddingBag(17 * 64, 64, mode="mean"), nn.ReLU(), nn.Linear(64, 10))


class ChannelsLast(nn.Module):
    """Lay images out as convolutions on the CPU are fastest."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the same images."""
        return images.contiguous(memory_format=torch.channels_last)


def cnn() -> nn.Module:
    """Return three convolutions with batch normalization and pooling, and a linear layer."""
    layers: list[nn.Module] = [ChannelsLast()]
    for n, m in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(n, m, 3, padding=1, bias=False), nn.BatchNorm2d(m), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 4 * 4, 10))


class Block(nn.Module):
    """A pre-norm transformer block with four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens (n, length, width) of tokens of the same shape."""
        heads = self.qkv(self.norms[0](tokens)).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        tokens = tokens + self.out(seen)
        mixed: Tensor = tokens + self.mlp(self.norms[1](tokens))
        return mixed


class Transformer(nn.Module):
    """Two blocks over the words; the mean token is classified."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(N_WORDS, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2))

    def forward(self, words: Tensor) -> Tensor:
        """Return logits (n, 2) of words (n, length)."""
        logits: Tensor = self.head(self.blocks(self.embedding(words) + self.position).mean(1))
        return logits


# Trainings ------------------------------------------------------------------------------------------------------------

STATES = ("float32", "bfloat16", "8bit")
TRAININGS = {
    "digits": Training(
        title="perceptron on handwritten digits",
        network=mlp,
        load=digits,
        n_epochs=20,
        batch_size=64,
        rates=(3e-4, 1e-3, 3e-3, 1e-2),
        variants=STATES,
        n_seeds=16,
    ),
    "cifar10": Training(
        title="convolutions on CIFAR-10",
        network=cnn,
        load=cifar10,
        folder="cifar10_12k",
        n_epochs=5,
        batch_size=64,
        rates=(3e-4, 1e-3, 3e-3, 1e-2),
        variants=STATES,
        n_seeds=8,
        augment=mirrored,
    ),
    "imdb": Training(
        title="transformer on film reviews",
        network=Transformer,
        load=imdb,
        folder="imdb",
        n_epochs=3,
        batch_size=32,
        rates=(3e-4, 1e-3, 3e-3),
        variants=STATES,
        n_seeds=8,
    ),
    "tokens": Training(
        title="embeddings of digits' pixels",
        network=bag,
        load=digit_tokens,
        n_epochs=8,
        batch_size=16,
        rates=(1e-2,),
        variants=("float32", "8bit", "8bit-nearest"),
        n_seeds=8,
        momentum=0.95,
        decays=False,
    ),
    "slow": Training(
        title="perceptron on digits at a small learning rate",
        network=mlp,
        load=digits,
        n_epochs=80,
        batch_size=64,
        rates=(1e-5,),
        variants=("float32", "bfloat16-kahan", "bfloat16-rounded"),
        n_seeds=8,
    ),
}
