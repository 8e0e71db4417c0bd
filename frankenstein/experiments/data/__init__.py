"""Data of the experiments: named sets from a local folder or the hub, images as tensors, augmentation.

`load` gives the rows of a split, `images` and `stream` decode them, `batches` and `in_order` go through them, `Augment`
makes them what a network takes. Whatever is missing or damaged is a `DataError`, before anything is trained.
"""

from frankenstein.experiments.data.augment import (
    CIFAR_MEAN,
    CIFAR_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
)
from frankenstein.experiments.data.epochs import Readable, batches, in_order, order
from frankenstein.experiments.data.images import Images, images
from frankenstein.experiments.data.sources import SOURCES, DataError, Source
from frankenstein.experiments.data.stream import ImageStream, stream
from frankenstein.experiments.data.tables import Table, load

__all__ = [
    "CIFAR_MEAN",
    "CIFAR_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "SOURCES",
    "Augment",
    "DataError",
    "ImageStream",
    "Images",
    "Readable",
    "Source",
    "Table",
    "batches",
    "images",
    "in_order",
    "load",
    "order",
    "stream",
]
