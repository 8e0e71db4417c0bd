"""Augmentation, against crops cut by hand and boxes read back from ramps."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import pytest
import torch
from torch.nn.functional import pad

from frankenstein.experiments.data import CIFAR_MEAN, CIFAR_STD, Augment, images

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1 / 255, 1 / 255, 1 / 255)}  # what comes out is the pixel itself
ROUNDING = 1e-3  # float32, on numbers up to 255


def noise(n, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)


def places(image, crops):
    """Return (top, left, is_flipped) of each crop within the padded image."""
    padded, size = pad(image, (4, 4, 4, 4)), crops.shape[-1]
    ways = list(itertools.product(range(9), range(9), (False, True)))
    cut = [padded[:, top : top + size, left : left + size] for top, left, _ in ways]
    cut = torch.stack([part.flip(-1) if way[2] else part for part, way in zip(cut, ways, strict=True)]).float()
    is_like = ((crops.flatten(1)[:, None] - cut.flatten(1)).abs() < ROUNDING).all(2)
    assert (is_like.sum(1) == 1).all()
    return [ways[i] for i in is_like.int().argmax(1)]


def test_padded_crops_are_cut_at_every_place_and_half_are_flipped():
    pixels = noise(1, 8).expand(1000, 3, 8, 8)
    found = places(pixels[0], Augment("padded", 8, **PLAIN)(pixels, seed=1))
    assert abs(sum(place[2] for place in found) - 500) < 4 * math.sqrt(1000) / 2  # four standard deviations
    counts, expected = Counter(place[:2] for place in found), 1000 / 81
    assert len(counts) == 81
    chi_square = sum((n - expected) ** 2 / expected for n in counts.values())
    assert 40 < chi_square < 140  # 80 degrees of freedom: 0.01 % lies outside


def ramps(n, size):
    """Return images whose first channel is the column and whose second is the row, twice over for half pixels."""
    along = 2 * torch.arange(size)
    return (
        torch.stack([along.expand(size, size), along[:, None].expand(size, size), along.expand(size, size)])
        .expand(n, 3, size, size)
        .to(torch.uint8)
    )


def boxes(crops, size):
    """Return (left, width, top, height, is_flipped) in pixels, read from crops of ramps.

    Pixel j of a crop lies at left + (j + 1/2) width / size - 1/2 of the image, where that is inside of it.
    """
    found = []
    middle = slice(size // 4, 3 * size // 4)  # away from the border, where the ramp ends
    for crop in crops / 2:
        (first, slope), (down, fall) = (_line(numbers[middle], size // 4) for numbers in (crop[0, 0], crop[1, :, 0]))
        width = abs(slope) * size
        left = first + 0.5 - slope / 2 - (width if slope < 0 else 0)
        found.append((left, width, down + 0.5 - fall / 2, fall * size, slope < 0))
    return found


def _line(numbers, first):
    slope = (numbers[-1] - numbers[0]).item() / (len(numbers) - 1)
    return numbers[0].item() - slope * first, slope


def reference_areas(n, size, seed):
    """Return areas of crops drawn one at a time, as the paper on Inception describes and everybody does."""
    draw, areas = random.Random(seed), []
    for _ in range(n):
        for _ in range(10):
            area, aspect = draw.uniform(0.08, 1) * size**2, math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
            width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if width <= size and height <= size:
                break
        else:
            width = height = size
        areas.append(width * height / size**2)
    return torch.tensor(areas)


def test_resized_crops_have_the_boxes_that_they_should_have():
    size, n = 64, 2000
    found = boxes(Augment("resized", 32, **PLAIN)(ramps(n, size), seed=2), 32)
    off_grid = max(abs(number - round(number)) for box in found for number in box[:4])
    assert off_grid < 0.01  # whole pixels
    for left, width, top, height, _ in found:
        assert -0.01 < left <= size - width + 0.01 and -0.01 < top <= size - height + 0.01
        assert 0.7 < width / height < 1.43  # 3/4 to 4/3, and sides are rounded
        assert 0.07 < width * height / size**2 < 1.001
    areas = torch.tensor([box[1] * box[3] for box in found]) / size**2
    expected = reference_areas(20_000, size, 0)
    error = 4 * expected.std() / math.sqrt(n)
    assert abs(areas.mean() - expected.mean()) < error and abs(areas.std() - expected.std()) < error
    assert abs(sum(box[4] for box in found) - n / 2) < 4 * math.sqrt(n) / 2
    room = [box[0] / (size - box[1]) for box in found if size - box[1] > 10]
    assert abs(sum(room) / len(room) - 0.5) < 0.03  # neither left nor right is preferred


def test_the_whole_image_is_taken_where_no_crop_fits(monkeypatch):
    monkeypatch.setattr("frankenstein.experiments.data.augment.AREA", (1.5, 1.6))
    pixels = noise(50, 16)
    crops = Augment("resized", 16, **PLAIN)(pixels, seed=0)
    for image, crop in zip(pixels.float(), crops, strict=True):
        assert any(torch.allclose(crop, way, rtol=0, atol=ROUNDING) for way in (image, image.flip(-1)))


@pytest.mark.parametrize("crop", ["padded", "resized", "centre"])
def test_the_seed_decides_and_nothing_else(crop):
    pixels = noise(16, 12)
    before, state = pixels.clone(), torch.get_rng_state()
    augment = Augment(crop, 8)
    first = augment(pixels, seed=7)
    assert torch.equal(augment(pixels, seed=7), first) and first.shape == (16, 3, 8, 8) and first.dtype == torch.float32
    assert torch.equal(augment(pixels, seed=8), first) == (crop == "centre")
    assert torch.equal(pixels, before) and torch.equal(torch.get_rng_state(), state)


def test_the_middle_is_kept_for_scoring():
    pixels = noise(3, 12)
    assert torch.equal(Augment("centre", 8, **PLAIN)(pixels), pixels[:, :, 2:10, 2:10].float())


def test_channels_are_normalised_with_their_own_numbers():
    pixels = torch.full((1, 3, 4, 4), 51, dtype=torch.uint8)  # 0.2
    found = Augment("centre", 4, mean=(0.1, 0.2, 0.4), std=(0.5, 0.25, 0.1))(pixels)
    assert torch.allclose(found, torch.tensor([0.2, 0.0, -2.0])[:, None, None].expand(1, 3, 4, 4), atol=1e-6)


def test_the_numbers_of_cifar_are_those_of_its_images(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("FRANKENSTEIN_CACHE", str(tmp_path))
    pixels = images("cifar10_12k", "train", shared / "data").pixels.float().div_(255)
    mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3))
    assert torch.allclose(mean, torch.tensor(CIFAR_MEAN), atol=0.005)  # a fifth of the images
    assert torch.allclose(std, torch.tensor(CIFAR_STD), atol=0.005)
