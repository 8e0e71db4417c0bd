"""SSIM of CKA maps, and its history."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from frankenstein.analysis.similarity import SimilarityError, ssim, ssim_history


def smooth_map(n: int, power: float = 1.0) -> np.ndarray:
    place = np.linspace(0.0, 1.0, n)
    return (1.0 - abs(place[:, None] - place)) ** power


@pytest.mark.parametrize("n, window", [(3, 3), (4, 3), (5, 5), (6, 5), (7, 7), (20, 7)])
def test_ssim_is_that_of_scikit_image_with_a_window_that_fits(n, window):
    map, other = smooth_map(n), smooth_map(n, 2.0)
    assert ssim(map, map) == 1.0
    assert ssim(map, other) == structural_similarity(map, other, win_size=window, data_range=1.0) < 1.0


def test_ssim_of_a_map_of_two_models():
    map = smooth_map(9)[:, :4]
    assert ssim(map, map) == 1.0
    assert ssim(map, 1.0 - map) < 0.0


def test_history_is_of_each_map_with_the_last():
    maps = [smooth_map(8, power) for power in (4.0, 2.0, 1.5, 1.0)]
    history = ssim_history(iter(maps))
    assert history == [ssim(map, maps[-1]) for map in maps]
    assert history == sorted(history) and history[-1] == 1.0 and history[0] < 0.9


@pytest.mark.parametrize(
    "maps, said",
    [
        ([], "a history needs at least one map"),
        ([smooth_map(2)], r"at least 3 x 3; map 0 has shape \(2, 2\)"),
        ([np.ones(9)], r"at least 3 x 3; map 0 has shape \(9,\)"),
        ([smooth_map(4), smooth_map(5)], r"maps of one shape; got \(4, 4\) and \(5, 5\)"),
        ([smooth_map(4), np.where(np.eye(4)[::-1] > 0, math.nan, 1.0)], "map 1 has nan in row 0, column 3"),
    ],
)
def test_maps_that_have_no_ssim_are_refused_in_a_line(maps, said):
    with pytest.raises(SimilarityError, match=said) as caught:
        ssim_history(maps)
    assert "\n" not in str(caught.value)


def test_without_scikit_image_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(ImportError, match=r"needs scikit-image: pip install '\.\[analysis\]'"):
        ssim(smooth_map(4), smooth_map(4))
