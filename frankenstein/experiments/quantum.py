"""The J1-J2 Heisenberg model on a periodic rectangle, and a network that is trained to be its ground state.

    H = J1 sum over neighbours S_i . S_j  +  J2 sum over diagonal neighbours S_i . S_j

Energies are in units of S . S with spins of 1/2: a pair is between -3/4 and 1/4. Libraries that write Pauli matrices
have four times that.

The network gives the whole state, two numbers for each basis state, real and imaginary part: Linear and ReLU layers on
a constant input, as the paper has it. The loss is the Rayleigh quotient, which needs no normalisation.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from frankenstein.compare.problems.problem import Budget
from frankenstein.experiments.experiment import ExperimentError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["Lattice", "NeuralState", "ground_energy", "hamiltonian", "rayleigh_quotient"]

J1, J2 = 1.0, 0.5
WIDTH = 64  # of the hidden layers
N_HIDDEN = 2
NONZERO_BYTES = 8 + 4  # a float64 and its column
BUILD = 3  # so many times its size a Hamiltonian takes while it is made
COPIES = 5  # of the parameters: themselves, gradients, and three of an optimizer


@dataclass(frozen=True)
class Lattice:
    """A periodic rectangle of spins.

    Attributes:
        rows: Sites in a column.
        columns: Sites in a row.
        in_sector: Only states with as many spins up as down, or with an odd number of sites one less up than down: a
            ground state is among them.
    """

    rows: int
    columns: int
    in_sector: bool = False

    def __post_init__(self) -> None:
        if min(self.rows, self.columns) < 2:
            raise ExperimentError(f"a lattice of {self.rows}x{self.columns} sites; it must have 2 or more each way")

    @property
    def n_sites(self) -> int:
        """Spins."""
        return self.rows * self.columns

    @property
    def n_states(self) -> int:
        """Basis states."""
        return math.comb(self.n_sites, self.n_sites // 2) if self.in_sector else 2**self.n_sites

    def bonds(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return the pairs of neighbours and of diagonal neighbours, each once."""

        def pairs(*steps: tuple[int, int]) -> list[tuple[int, int]]:
            found = set()
            for row in range(self.rows):
                for column in range(self.columns):
                    for down, right in steps:
                        other = (row + down) % self.rows * self.columns + (column + right) % self.columns
                        found.add(frozenset((row * self.columns + column, other)))
            return sorted((min(pair), max(pair)) for pair in found if len(pair) == 2)

        return pairs((0, 1), (1, 0)), pairs((1, 1), (1, -1))

    def n_bytes(self) -> int:
        """Return about how much memory the Hamiltonian and a network's training take."""
        nearest, diagonal = self.bonds()
        nonzeros = self.n_states * ((len(nearest) + len(diagonal)) // 2 + 1)
        return BUILD * nonzeros * NONZERO_BYTES + COPIES * 4 * 2 * WIDTH * self.n_states

    def check_memory(self) -> None:
        """Check that there is enough.

        Raises:
            ExperimentError: There is not; the message says how much it takes.
        """
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if self.n_bytes() > there:
            sector = "" if self.in_sector else ", or the sector of zero magnetisation"
            raise ExperimentError(
                f"a lattice of {self.rows}x{self.columns} has {self.n_states:.3g} states; Hamiltonian and network "
                f"would take about {self.n_bytes() / 2**30:.3g} GiB of memory, and there are {there / 2**30:.3g}; "
                f"take a smaller lattice{sector}"
            )

    def basis(self) -> NDArray[np.int64]:
        """Return the basis states in ascending order: bit i is whether spin i is up."""
        states = np.arange(2**self.n_sites, dtype=np.int64)
        if not self.in_sector:
            return states
        return states[np.bitwise_count(states) == self.n_sites // 2]


def hamiltonian(lattice: Lattice) -> csr_array:
    """Return the Hamiltonian, real and symmetric, shape (n_states, n_states), float64.

    Raises:
        ExperimentError: It would take more memory than there is; nothing has been allocated then.
    """
    from scipy.sparse import coo_array

    lattice.check_memory()
    basis = lattice.basis()
    diagonal = np.zeros(len(basis))
    rows, columns, values = [], [], []
    for coupling, bonds in zip((J1, J2), lattice.bonds(), strict=True):
        for i, j in bonds:
            differs = ((basis >> i) ^ (basis >> j)) & 1 == 1
            diagonal += coupling * np.where(differs, -0.25, 0.25)
            rows.append(np.flatnonzero(differs))  # S+ S- + S- S+ swaps two spins that differ
            columns.append(np.searchsorted(basis, basis[differs] ^ ((1 << i) | (1 << j))))
            values.append(np.full(len(rows[-1]), 0.5 * coupling))
    rows.append(np.arange(len(basis)))
    columns.append(rows[-1])
    values.append(diagonal)
    found = coo_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), (len(basis), len(basis))
    )
    return found.tocsr()


@cache
def ground_energy(lattice: Lattice) -> float:
    """Return the lowest eigenvalue of the Hamiltonian, by Lanczos' method, to about 12 digits."""
    from scipy.sparse.linalg import eigsh

    start = np.random.default_rng(0).standard_normal(lattice.n_states)
    return float(eigsh(_hamiltonian(lattice, "float64"), k=1, which="SA", v0=start, return_eigenvectors=False)[0])


@cache
def _hamiltonian(lattice: Lattice, dtype: str) -> csr_array:
    return hamiltonian(lattice).astype(dtype)


class _Rayleigh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, matrix: csr_array) -> Tensor:
        applied = torch.from_numpy(matrix @ state.detach().numpy())
        norm = (state * state).sum()
        energy = (state * applied).sum() / norm
        ctx.save_for_backward(state, applied, energy, norm)
        return energy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        state, applied, energy, norm = ctx.saved_tensors
        return gradients[0] * 2.0 / norm * (applied - energy * state), None


def rayleigh_quotient(state: Tensor, matrix: csr_array) -> Tensor:
    """Return the energy of a state, <psi|H|psi> / <psi|psi>, differentiable once.

    Args:
        state: Real and imaginary parts as columns, shape (n_states, 2), not necessarily normalised.
        matrix: A Hamiltonian in the same precision.
    """
    energy: Tensor = _Rayleigh.apply(state, matrix)
    return energy


class NeuralState:
    """A network that is a state of a lattice; the task of a training.

    The score is the relative error of the energy, (E - E0) / |E0|, of the state in float64: it cannot be below zero but
    by the rounding of E0.
    """

    def __init__(self, lattice: Lattice, seed: int, budget: Budget) -> None:
        self.lattice, self.matrix = lattice, _hamiltonian(lattice, "float32")
        sizes = [WIDTH] * (N_HIDDEN + 1)
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.network = nn.Sequential(*layers, nn.Linear(WIDTH, 2 * lattice.n_states))
        self.input = torch.ones(WIDTH)

    def parameters(self) -> list[Tensor]:
        """Return those of the network."""
        return list(self.network.parameters())

    def state(self) -> Tensor:
        """Return the state, not normalised, shape (n_states, 2)."""
        found: Tensor = self.network(self.input).view(self.lattice.n_states, 2)
        return found

    def batch(self) -> None:
        """Return nothing: the loss has no data."""

    def loss(self, batch: None) -> Tensor:
        """Return the energy."""
        return rayleigh_quotient(self.state(), self.matrix)

    def score(self) -> float:
        """Return the relative error of the energy."""
        energy = rayleigh_quotient(self.state().double(), _hamiltonian(self.lattice, "float64")).item()
        exact = ground_energy(self.lattice)
        return (energy - exact) / abs(exact)
