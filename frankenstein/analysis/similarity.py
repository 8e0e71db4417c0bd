"""How alike are the representations of two layers: CKA between all layers of one or two models, and SSIM of CKA maps.

    cka(model, loader)                    # every layer with every other
    cka(model, loader, other=another)     # the layers of two models
    ssim_history(maps_of_all_epochs)      # when did the last map form?

CKA (centred kernel alignment; Kornblith et al. 2019) is HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)). Each HSIC is the
unbiased estimate of Song et al. (2012), averaged over batches (Nguyen et al. 2021): the plain estimate finds
similarity in any two layers if samples are few beside features.

    hsic.py      kernel matrices and how they are centred
    layers.py    hooks: which layers there are, and what they give
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from frankenstein.analysis.hsic import (
    MIN_SAMPLES,
    HsicSums,
    Kernel,
    SimilarityError,
    alignment,
    centred_kernel,
    inner_products,
)
from frankenstein.analysis.layers import Forward, Watch, evaluating, first_tensor, forward_batch

__all__ = ["Similarity", "SimilarityError", "cka", "cka_of", "forward_batch", "ssim", "ssim_history"]

BANDWIDTH = 0.8
"""Of the RBF kernel, in median distances: with it, Kornblith et al. (2019) found corresponding layers best."""
# SSIM's window, and the least side that a map must have: one pixel has no covariance, and 2 x 2 has no middle.
WINDOW, MIN_WINDOW = 7, 3


@dataclass(frozen=True, eq=False)
class Similarity:
    """CKA between layers."""

    map: np.ndarray
    """Shape (n_layers, n_other), at most 1. NaN where a layer gives the same for all samples: it has no CKA."""
    standard_error: np.ndarray
    """Of `map`, same shape, by a jackknife over batches; with a dozen, about a tenth too small. NaN with one."""
    layers: tuple[str, ...]
    """Rows, in the order of their calls; `name:1` is the second call of a module in one pass."""
    other_layers: tuple[str, ...]
    """Columns."""
    batch_sizes: tuple[int, ...]
    """Samples in each batch that was used."""
    n_left_out: int
    """Samples in batches of fewer than four, which have no unbiased estimate."""
    kernel: str
    """`linear` or `rbf`."""
    bandwidth: float | None
    """Of `rbf`, in median distances."""

    @property
    def n_samples(self) -> int:
        """Samples that were used."""
        return sum(self.batch_sizes)

    @property
    def n_batches(self) -> int:
        """Batches that were used."""
        return len(self.batch_sizes)


def cka(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    other: nn.Module | None = None,
    layers: Sequence[str] | None = None,
    other_layers: Sequence[str] | None = None,
    kernel: str = "linear",
    bandwidth: float = BANDWIDTH,
    forward: Forward = forward_batch,
) -> Similarity:
    """Return CKA between all layers of a model, or of two, from one pass over the batches.

    Each output becomes a kernel matrix as soon as the layer gives it, on its device, so activations are never kept:
    memory is that of one pass without gradients and n_layers * batch² numbers. Each HSIC is the mean over batches,
    weighted by their samples, of an unbiased estimate; let batches be random draws, since estimates see pairs within a
    batch only. A batch of fewer than four samples is left out, and counted.

    The models are in eval mode meanwhile. Afterwards, also after an error, hooks are gone and modes and buffers are
    what they were.

    Args:
        model: Called once a batch, without gradients.
        batches: Such as a DataLoader; gone through once. Samples lie along the first dimension of inputs and outputs.
        other: Another model, which gets the same batches. Default: `model` itself, not called a second time.
        layers: Names as in `model.named_modules()`. Of an output that is a tuple, mapping or dataclass, the first
            tensor counts that is no scalar. Default: every module that is called, calls no other that counts, and gives
            a row per sample.
        other_layers: Of `other`. Default: `layers`.
        kernel: `linear` or `rbf`, a Gaussian.
        bandwidth: Of `rbf`: its width as a fraction of the median distance between two samples, taken for each layer
            and batch.
        forward: Calls a model on a batch. Default: `forward_batch`.

    Raises:
        SimilarityError: A layer does not exist or is not called, activations are not finite, the model fails, no batch
            has four samples, or an argument is wrong.

    Examples:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> found = cka(model, torch.randn(256, 8).split(64))
        >>> found.layers, found.n_batches
        (('0', '1', '2'), 4)
        >>> found.map.round(2)
        array([[1.  , 0.83, 0.46],
               [0.83, 1.  , 0.61],
               [0.46, 0.61, 1.  ]])
    """
    how = Kernel(kernel, bandwidth)
    how.check()
    if isinstance(batches, Tensor | Mapping):
        raise SimilarityError("batches must be a sequence of batches; for one batch, give a list of it")
    if other is None and other_layers is not None:
        raise SimilarityError("other_layers needs another model; for layers of one model, name them all in layers")
    ours = theirs = Watch(model, "model", layers, how, forward)
    if other is not None:
        theirs = Watch(other, "other model", layers if other_layers is None else other_layers, how, forward)
    sums, n_left_out = HsicSums(), 0
    with ExitStack() as undo:
        for each in (model, other):
            if each is not None:
                undo.enter_context(evaluating(each))
        for batch_idx, batch in enumerate(batches):
            where = f"batch {batch_idx}"
            n_samples = _n_samples(batch, where)
            if n_samples < MIN_SAMPLES:
                n_left_out += n_samples
                continue
            x = ours.kernels(batch, n_samples, where)
            y = x if theirs is ours else theirs.kernels(batch, n_samples, where).to(x.device)
            sums.add(x, y, n_samples)
    if not sums.batch_sizes:
        raise SimilarityError(
            f"CKA needs a batch of at least {MIN_SAMPLES} samples; "
            + (f"the largest of those given is smaller, and all have {n_left_out}" if n_left_out else "there is none")
        )
    width = bandwidth if kernel == "rbf" else None
    batch_sizes = tuple(sums.batch_sizes)
    return Similarity(*sums.cka(), ours.names, theirs.names, batch_sizes, n_left_out, kernel, width)


def _n_samples(batch: Any, where: str) -> int:
    found = first_tensor(batch)
    if found is None:
        raise SimilarityError(f"{where} is a {type(batch).__name__} without a tensor; give tensors, tuples or mappings")
    return len(found)


def cka_of(
    x: Tensor | ArrayLike,
    y: Tensor | ArrayLike,
    *,
    kernel: str = "linear",
    bandwidth: float = BANDWIDTH,
    is_debiased: bool = True,
) -> float:
    """Return CKA of two representations of the same samples, from all of them at once.

    Args:
        x: Shape (n_samples, ...), a tensor or an array; never modified.
        y: Shape (n_samples, ...).
        kernel: `linear` or `rbf`.
        bandwidth: Of `rbf`: its width as a fraction of the median distance between two samples.
        is_debiased: Whether HSIC is the unbiased estimate; the plain one is never below 0, and too high.

    Returns:
        At most 1; NaN if a representation is the same for all samples.

    Raises:
        SimilarityError: Samples differ in number, are fewer than four (two if not debiased) or are not finite, or an
            argument is wrong.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> x, y = rng.normal(size=(2, 100, 50))
        >>> round(cka_of(x, 3.0 * x + 1.0), 3), round(cka_of(x, y), 3), round(cka_of(x, y, is_debiased=False), 3)
        (1.0, -0.053, 0.302)
    """
    how, needed = Kernel(kernel, bandwidth), MIN_SAMPLES if is_debiased else 2
    how.check()
    both = [value if isinstance(value, Tensor) else torch.tensor(np.asarray(value)) for value in (x, y)]
    shapes = " and ".join(str(tuple(rows.shape)) for rows in both)
    if any(rows.ndim < 2 for rows in both) or len(both[0]) != len(both[1]) or len(both[0]) < needed:
        raise SimilarityError(f"CKA needs the same {needed} or more samples twice, with features; got shapes {shapes}")
    centred = [centred_kernel(rows, how, is_debiased=is_debiased) for rows in both]
    for name, part in zip("xy", centred, strict=True):
        if not part.is_finite:
            raise SimilarityError(f"{name} is not finite, shape {shapes}")
    ours, theirs = (part.values.flatten()[None].to(both[0].device) for part in centred)
    return float(alignment(*inner_products(ours, theirs)).item())


def ssim(map: ArrayLike, other: ArrayLike) -> float:
    """Return the structural similarity of two CKA maps (Wang et al. 2004), by scikit-image.

    The window is 7 x 7, uniform, or the largest odd one that fits a smaller map; the range of CKA is 1.

    Args:
        map: Shape (n_layers, n_other), both at least 3; never modified.
        other: Same shape.

    Returns:
        At most 1, which is for maps that are the same.

    Raises:
        SimilarityError: A map is smaller, has no two dimensions or is not finite, or the shapes differ.
        ImportError: scikit-image is missing.

    Examples:
        >>> tone = np.linspace(0.0, 1.0, 8)
        >>> map = 1.0 - abs(tone[:, None] - tone)
        >>> ssim(map, map), round(ssim(map, map**2), 3)
        (1.0, 0.919)
    """
    return _ssim(_as_map(map, "map"), _as_map(other, "other"))


def ssim_history(maps: Iterable[ArrayLike]) -> list[float]:
    """Return the SSIM of each map with the last one, whose own is 1 (the paper's Fig. 9b).

    Args:
        maps: CKA maps of one model at different times, such as one an epoch; see `ssim`.

    Raises:
        SimilarityError: There is no map, or one that `ssim` refuses.
        ImportError: scikit-image is missing.
    """
    checked = [_as_map(map, f"map {idx}") for idx, map in enumerate(maps)]
    if not checked:
        raise SimilarityError("a history needs at least one map; got none")
    return [_ssim(map, checked[-1]) for map in checked]


def _as_map(values: ArrayLike, name: str) -> np.ndarray:
    map = np.asarray(values, dtype=float)
    if map.ndim != 2 or min(map.shape) < MIN_WINDOW:
        raise SimilarityError(f"SSIM needs maps of at least {MIN_WINDOW} x {MIN_WINDOW}; {name} has shape {map.shape}")
    if not np.isfinite(map).all():
        row, column = np.argwhere(~np.isfinite(map))[0].tolist()
        raise SimilarityError(f"SSIM needs finite maps; {name} has {map[row, column]} in row {row}, column {column}")
    return map


def _ssim(map: np.ndarray, other: np.ndarray) -> float:
    if map.shape != other.shape:
        raise SimilarityError(f"SSIM needs maps of one shape; got {map.shape} and {other.shape}")
    try:
        from skimage.metrics import structural_similarity
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "skimage":
            raise
        needs = "SSIM needs scikit-image: pip install '.[analysis]' (in the checkout)"
        raise ImportError(needs, name="skimage") from error
    side = min(WINDOW, *map.shape)
    return float(structural_similarity(map, other, win_size=side - (side + 1) % 2, data_range=1.0))
