"""Random changes to training images, on whole batches, repeatable on every device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

__all__ = ["CIFAR_MEAN", "CIFAR_STD", "IMAGENET_MEAN", "IMAGENET_STD", "Augment"]

# Of each channel over the training images, pixels from 0 to 1.
CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

PADDING = 4  # pixels on each side (He et al. 2016, section 4.2)
AREA = (0.08, 1.0)  # share of the image that a crop keeps (Szegedy et al. 2015, section 6)
ASPECT = (3 / 4, 4 / 3)  # width over height of a crop; uniform in its logarithm
TRIES = 10  # crops are drawn until one fits into the image; after so many the whole image is taken


@dataclass(frozen=True)
class Augment:
    """Makes a batch of pixels into what a network is trained or scored on.

    What is random follows from the seed alone: a run that goes on after a kill sees the same images. Random numbers
    are drawn on the processor and are few, so that every device sees the same crops.

    Attributes:
        crop: "padded": at a random place of the image with 4 black pixels around it; "resized": of random area and
            aspect ratio, resized (bilinear); "centre": the middle. The first two are also flipped, half of them.
        size: Height and width of what comes out, in pixels; images are no smaller.
        mean: Of each channel, pixels from 0 to 1; taken off.
        std: Of each channel; divided by.
    """

    crop: Literal["padded", "resized", "centre"]
    size: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __call__(self, pixels: Tensor, seed: int = 0) -> Tensor:
        """Return the batch augmented and normalised.

        Args:
            pixels: Shape (n, 3, height, width), uint8; never modified.
            seed: Decides what is random.

        Returns:
            Shape (n, 3, size, size), float32, on the device of the pixels.
        """
        generator = Generator().manual_seed(seed)
        if self.crop == "padded":
            cut = _padded_crop(pixels, self.size, generator)
        elif self.crop == "resized":
            cut = _resized_crop(pixels, self.size, generator)
        else:
            cut = _centre(pixels, self.size)
        mean, std = (
            255 * torch.tensor(numbers, device=pixels.device)[:, None, None] for numbers in (self.mean, self.std)
        )
        return cut.float().sub_(mean).div_(std)


def _centre(pixels: Tensor, size: int) -> Tensor:
    top, left = ((side - size) // 2 for side in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]


def _padded_crop(pixels: Tensor, size: int, generator: Generator) -> Tensor:
    """Return crops at whole pixels, some flipped: one gather through the numbers of the pixels to keep."""
    n, n_channels, height, width = pixels.shape
    height, width = height + 2 * PADDING, width + 2 * PADDING
    top, left = (torch.randint(side - size + 1, (n, 1), generator=generator) for side in (height, width))
    along = torch.arange(size)
    columns = left + torch.where(_coins(n, generator)[:, None], along.flip(0), along)
    places = (width * (top + along))[:, :, None] + columns[:, None, :]
    padded = F.pad(pixels, (PADDING,) * 4).flatten(2)
    places = places.view(n, 1, -1).expand(n, n_channels, -1).to(pixels.device)
    return padded.gather(2, places).view(n, n_channels, size, size)


def _resized_crop(pixels: Tensor, size: int, generator: Generator) -> Tensor:
    n, n_channels, height, width = pixels.shape
    high, wide, down, right = _boxes(n, height, width, generator)
    flip = 1 - 2 * _coins(n, generator).float()
    # Boxes in the coordinates of grid_sample: the image reaches from -1 to 1.
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0], theta[:, 0, 2] = flip * wide / width, (2 * right + wide) / width - 1
    theta[:, 1, 1], theta[:, 1, 2] = high / height, (2 * down + high) / height - 1
    grid = F.affine_grid(theta.to(pixels.device), [n, n_channels, size, size], align_corners=False)
    return F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)


def _boxes(n: int, height: int, width: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return height, width, top and left of one crop for each image, in whole pixels, shape (n,)."""
    area = height * width * torch.empty(n, TRIES).uniform_(*AREA, generator=generator)
    aspect = torch.empty(n, TRIES).uniform_(*map(math.log, ASPECT), generator=generator).exp()
    high, wide = (area / aspect).sqrt().round(), (area * aspect).sqrt().round()
    fits = (high <= height) & (wide <= width)
    first = fits.int().argmax(1, keepdim=True)  # the first that fits
    has_one = fits.any(1)
    high = torch.where(has_one, high.gather(1, first)[:, 0], height)
    wide = torch.where(has_one, wide.gather(1, first)[:, 0], width)
    down, right = torch.rand(2, n, generator=generator)
    return high, wide, (down * (height - high + 1)).floor(), (right * (width - wide + 1)).floor()


def _coins(n: int, generator: Generator) -> Tensor:
    return torch.rand(n, generator=generator) < 0.5
