"""HSIC, the Hilbert-Schmidt independence criterion, as an inner product of centred kernel matrices.

The unbiased estimate of Song et al. (2012, eq. 5) for n samples is the inner product of two kernel matrices that are
U-centred (Székely and Rizzo 2014), over n (n - 3). Written so, HSIC of a layer with itself is a sum of squares, which
no rounding makes negative, and all pairs of layers take one matrix product.

All is computed in float64, on the device of the activations: neither autocast nor TF32 touches float64.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

KERNELS = ("linear", "rbf")
MIN_SAMPLES = 4
"""The fewest samples with an unbiased estimate: n (n - 3) is 0 at three."""

# Of a layer's activations, in float64, at a time: 32 MiB.
N_ELEMENTS = 2**22
# A centred kernel matrix this small beside the kernel matrix is rounding: float64 keeps 16 digits, sums lose a few.
ROUNDING = 1e-12
# Batches are counted in so many groups for the standard error: their spread is then known to 13 %, and more batches
# take no more memory.
N_GROUPS = 32


class SimilarityError(ValueError):
    """Representations that cannot be compared; the message is one line."""


class Kernel(NamedTuple):
    """How two samples are compared."""

    name: str
    """`linear` or `rbf`."""
    bandwidth: float
    """Of `rbf`: the width of the Gaussian as a fraction of the median distance."""

    def check(self) -> None:
        """Raise SimilarityError unless there is such a kernel."""
        if self.name not in KERNELS:
            raise SimilarityError(f"unknown kernel {self.name!r}; there are {' and '.join(KERNELS)}")
        if not (math.isfinite(self.bandwidth) and self.bandwidth > 0):
            raise SimilarityError(f"bandwidth must be a finite number above 0; got {self.bandwidth}")


class Centred(NamedTuple):
    """The centred kernel matrix of a layer's activations."""

    values: Tensor
    """Shape (n, n), float64: what HSIC is an inner product of."""
    is_finite: Tensor
    """Whether the activations are, shape (): left on the device, so that nobody waits for it."""


def centred_kernel(activations: Tensor, kernel: Kernel, *, is_debiased: bool = True) -> Centred:
    """Return the centred kernel matrix of activations (n, ...), which are never modified."""
    matrix = _gram(activations)
    is_finite = matrix.isfinite().all()
    if kernel.name == "rbf":
        matrix = _gaussian(matrix, kernel.bandwidth)
    return Centred(_u_centred(matrix) if is_debiased else _doubly_centred(matrix), is_finite)


def _gram(activations: Tensor) -> Tensor:
    """Return the inner products (n, n) of the samples less the first one.

    No kernel here sees a shift. To subtract the first sample costs less than to subtract the mean, keeps as many
    digits, and leaves exact zeros where all samples are the same.
    """
    if activations.is_complex():
        activations = torch.view_as_real(activations)
    rows = activations.detach().flatten(1)
    products = rows.new_zeros((len(rows), len(rows)), dtype=torch.float64)
    for part in rows.split(max(1, N_ELEMENTS // len(rows)), dim=1):  # so that no layer is ever whole in float64
        shifted = part.to(torch.float64, copy=True)
        shifted -= shifted[0].clone()
        products.addmm_(shifted, shifted.T)
    return products


def _gaussian(products: Tensor, bandwidth: float) -> Tensor:
    """Return exp(-d² / 2 s²) for distances d, with s = `bandwidth` times their median (Kornblith et al. 2019).

    The median is over pairs of samples that differ, so that a layer that is silent for most samples has one.
    """
    lengths = products.diagonal()
    squares = lengths + lengths[:, None] - 2.0 * products
    squares.masked_fill_(squares <= ROUNDING * lengths.max(), 0.0)  # the diagonal, too, and what rounding made negative
    median = squares.where(squares > 0, torch.nan).nanmedian()
    median = median.where(median > 0, 1.0)  # all samples are the same: any width says so
    return squares.div_(-2.0 * bandwidth**2 * median).exp_()


def _u_centred(kernel: Tensor) -> Tensor:
    """Return the U-centred kernel matrix, in the place of the kernel matrix (n, n)."""
    n_samples, size = len(kernel), kernel.norm()
    kernel.fill_diagonal_(0.0)
    means = kernel.sum(0) / (n_samples - 2)
    kernel -= means + means[:, None] - means.sum() / (n_samples - 1)
    kernel.fill_diagonal_(0.0)
    return kernel.mul_(kernel.norm() > ROUNDING * size)


def _doubly_centred(kernel: Tensor) -> Tensor:
    """Return the kernel matrix (n, n) whose rows and columns have mean 0, in the place of the kernel matrix."""
    size, means = kernel.norm(), kernel.mean(0)
    kernel -= means + means[:, None] - means.mean()
    return kernel.mul_(kernel.norm() > ROUNDING * size)


def inner_products(x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the inner products of centred kernel matrices: (n_layers, n_other) of pairs, and of each with itself.

    Args:
        x: Shape (n_layers, n²).
        y: Shape (n_other, n²), on the same device.
    """
    pairs, ours, theirs = x @ y.T, x.norm(dim=1).square(), y.norm(dim=1).square()
    return pairs.cpu().numpy(), ours.cpu().numpy(), theirs.cpu().numpy()


def alignment(cross: np.ndarray, ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """Return CKA (n_layers, n_other) from HSIC of pairs (n_layers, n_other) and of each with itself; 0 / 0 is NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: np.ndarray = cross / (np.sqrt(ours)[:, None] * np.sqrt(theirs))
    return found


class HsicSums:
    """The unbiased HSIC of all pairs of layers, summed over batches times their samples."""

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []
        self._groups: list[list[Any]] = []  # of batches: samples, HSIC of pairs, of each layer, of each other layer

    def add(self, x: Tensor, y: Tensor, n_samples: int) -> None:
        """Count a batch: U-centred kernel matrices (n_layers, n_samples²) and (n_other, n_samples²)."""
        n_terms = n_samples * (n_samples - 3)
        batch = [n_samples, *(n_samples / n_terms * term for term in inner_products(x, y))]
        group_idx = len(self.batch_sizes) % N_GROUPS
        if group_idx == len(self._groups):
            self._groups.append(batch)
        else:
            self._groups[group_idx] = [a + b for a, b in zip(self._groups[group_idx], batch, strict=True)]
        self.batch_sizes.append(n_samples)

    def cka(self) -> tuple[np.ndarray, np.ndarray]:
        """Return CKA (n_layers, n_other) and its standard error.

        The error is that of the delete-a-group jackknife for groups of unequal size (Busing et al. 1999).
        """
        n_samples, *totals = (sum(parts) for parts in zip(*self._groups, strict=True))
        whole = alignment(*totals)
        if len(self._groups) == 1:
            return whole, np.full_like(whole, np.nan)
        shares = [group[0] / n_samples for group in self._groups]
        pseudo = []
        for share, group in zip(shares, self._groups, strict=True):
            rest = alignment(*(total - part for total, part in zip(totals, group[1:], strict=True)))
            pseudo.append((whole - (1.0 - share) * rest) / share)
        centre = sum(share * value for share, value in zip(shares, pseudo, strict=True))
        squares = sum(
            share / (1.0 - share) * (value - centre) ** 2 for share, value in zip(shares, pseudo, strict=True)
        )
        return whole, np.sqrt(squares / len(self._groups))
