"""The named data sets: what they are called, where they are, which columns they have."""

from __future__ import annotations

from dataclasses import dataclass, field

from frankenstein.experiments.experiment import ExperimentError

__all__ = ["SOURCES", "DataError", "Source", "named"]


class DataError(ExperimentError):
    """Data are missing, damaged or not what they should be; the message is one line: what, where, what to do."""


_Names = dict[str, tuple[str, ...]]
_SPLITS: _Names = {"train": ("train",), "test": ("test",)}
_VALIDATED: _Names = {"train": ("train",), "test": ("validation", "val")}
_IMAGE: _Names = {"image": ("img", "image"), "label": ("label",)}


@dataclass(frozen=True)
class Source:
    """A data set that experiments call by its name.

    Attributes:
        name: Here, on the command line and of the local folder.
        title: For people; a stand-in says what it is and what it is not.
        hub: Its name on the Hugging Face hub; None: it is not there.
        columns: Our name of each column, and the names that it may have in the files.
        n_classes: Labels run from 0 to `n_classes - 1`; None: it has no labels.
        caveat: What a reader must know, or nothing.
        splits: Our name of each split, and its names in files and folders; the first is the hub's.
        n_rows: Rows of each split of a published set, so that an incomplete copy is noticed. A subset has none: its
            size is written into the records.
        hub_needs: What fetching it takes.
    """

    name: str
    title: str
    hub: str | None
    columns: dict[str, tuple[str, ...]]
    n_classes: int | None
    caveat: str = ""
    splits: dict[str, tuple[str, ...]] = field(default_factory=lambda: _SPLITS)
    n_rows: dict[str, int] = field(default_factory=dict)
    hub_needs: str = "a network"


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source("cifar10", "CIFAR-10", "uoft-cs/cifar10", _IMAGE, 10, n_rows={"train": 50_000, "test": 10_000}),
        Source(
            "cifar100",
            "CIFAR-100",
            "uoft-cs/cifar100",
            {"image": ("img", "image"), "label": ("fine_label", "label")},
            100,
            n_rows={"train": 50_000, "test": 10_000},
        ),
        Source(
            "imagenet",
            "ImageNet-1K",
            "ILSVRC/imagenet-1k",
            _IMAGE,
            1000,
            splits=_VALIDATED,
            n_rows={"train": 1_281_167, "test": 50_000},
            hub_needs="a network and an account that has accepted its terms (`hf auth login`)",
        ),
        Source(
            "cifar10_12k",
            "a balanced part of CIFAR-10, 10,000 images to train on and 2,000 to test",
            None,
            _IMAGE,
            10,
            "a part of CIFAR-10: accuracies are below those of the full set",
        ),
        Source(
            "cifar10_jpeg",
            "CIFAR-10, a copy in JPEG",
            None,
            _IMAGE,
            10,
            "lossy: pixels differ from CIFAR-10 by 5 to 6 of 255 on average",
            n_rows={"train": 50_000, "test": 10_000},
        ),
        Source(
            "tinyimagenet100_32px",
            "100 classes of Tiny-ImageNet at 32 px; not CIFAR-100",
            None,
            _IMAGE,
            100,
            "stands in for CIFAR-100 and is not CIFAR-100: only its shape is the same",
        ),
        Source(
            "imagenette_96px",
            "Imagenette, ten easy classes of ImageNet, at 96 px; not ImageNet-1K",
            None,
            _IMAGE,
            10,
            "ten of ImageNet's classes at 96 px, encoded twice; the test split is a part of its validation images",
            splits=_VALIDATED,
        ),
        Source(
            "imdb",
            "Large Movie Review Dataset",
            "stanfordnlp/imdb",
            {"text": ("text",), "label": ("label",)},
            2,
            n_rows={"train": 25_000, "test": 25_000},
        ),
        Source(
            "alpaca",
            "Stanford Alpaca",
            "tatsu-lab/alpaca",
            {name: (name,) for name in ("instruction", "input", "output")},
            None,
            splits={"train": ("train",)},
            n_rows={"train": 52_002},
        ),
        Source(
            "alpaca_9k",
            "a random part of Stanford Alpaca, 9,229 of 52,002 instructions",
            None,
            {name: (name,) for name in ("instruction", "input", "output")},
            None,
            "a part of Alpaca",
            splits={"train": ("train",)},
        ),
        Source(
            "omniglot_28px",
            "Omniglot at 28 px, ink white: 964 background and 659 evaluation characters",
            None,
            {"image": ("image",), "label": ("character",), "alphabet": ("alphabet",), "drawer": ("drawer",)},
            1623,
            "resized to 28 px",
            splits={"train": ("background",), "test": ("evaluation",)},
        ),
    )
}


def named(name: str, split: str) -> Source:
    """Return the source of that name.

    Raises:
        DataError: There is no such source, or it has no such split.
    """
    if name not in SOURCES:
        raise DataError(f"no data set {name!r}; known: {', '.join(SOURCES)}")
    source = SOURCES[name]
    if split not in source.splits:
        raise DataError(f"{name} has no split {split!r}; it has: {', '.join(source.splits)}")
    return source
