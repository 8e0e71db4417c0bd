"""Structures and models that the tests of the torch-sim front-end share."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk
from relaxation_systems import random_cluster

from frankenstein.torchsim.installed import ModelInterface, ts

SIZES = [7, 13, 4, 10, 2]
IMAGES = torch.tensor(list(itertools.product((-1, 0, 1), repeat=3)), dtype=torch.float64)


class PairModel(ModelInterface):
    """Lennard-Jones, one system after the other, so that what a system gets cannot depend on the batch.

    All neighbours in the 27 cells around an atom count and no others: smooth, whatever the cell does. Energies keep
    their history, as those of some learned potentials do.
    """

    def __init__(self, *, dtype=torch.float64, compute_stress=True, fails=lambda n_atoms, call: False):
        super().__init__()
        self._device, self._dtype = torch.device("cpu"), dtype
        self._compute_forces, self._compute_stress = True, compute_stress
        self.fails = fails
        self.calls = {}  # of each size of a system

    def forward(self, state, **_):
        parts = [
            self.one(
                state.positions[state.system_idx == i], state.row_vector_cell[i], bool(torch.as_tensor(state.pbc).any())
            )
            for i in range(state.n_systems)
        ]
        energies, forces, stresses = zip(*parts, strict=True)
        output = {"energy": torch.stack(energies), "forces": torch.cat(forces)}
        return output | ({"stress": torch.stack(stresses)} if self._compute_stress else {})

    def one(self, positions, cell, is_periodic):
        self.calls[len(positions)] = self.calls.get(len(positions), 0) + 1
        positions, cell = positions.to(torch.float64), cell.to(torch.float64)
        strain = torch.zeros(3, 3, dtype=torch.float64, requires_grad=True)
        positions = positions.detach().requires_grad_()
        images = IMAGES if is_periodic else torch.zeros(1, 3, dtype=torch.float64)
        apart = (positions[:, None] - positions[None])[:, :, None] + images @ cell
        squared = ((apart + apart @ strain) ** 2).sum(-1)
        same = torch.eye(len(positions), dtype=torch.bool)[:, :, None] & (images == 0.0).all(1)
        sixth = squared[~same] ** -3
        energy = 2.0 * (sixth**2 - sixth).sum()
        gradient, virial = torch.autograd.grad(energy, (positions, strain), retain_graph=True)
        if self.fails(len(positions), self.calls[len(positions)]):
            gradient = gradient * torch.nan
        stress = 0.5 * (virial + virial.T) / torch.linalg.det(cell).abs()
        return energy.to(self._dtype), -gradient.to(self._dtype), stress.to(self._dtype)


def clusters():
    return [Atoms(f"Ar{n}", random_cluster(n, seed), cell=[40.0] * 3) for seed, n in enumerate(SIZES)]


def crystals():
    """Three strained, rattled periodic structures of different sizes."""
    rng = np.random.default_rng(3)
    structures = []
    for repeat in ((1, 1, 1), (2, 1, 1), (1, 3, 1)):
        atoms = bulk("Ar", "fcc", a=1.6, cubic=True).repeat(repeat)
        atoms.rattle(0.05, rng=rng)
        atoms.set_cell(atoms.cell @ (np.eye(3) + 0.04 * rng.standard_normal((3, 3))), scale_atoms=True)
        structures.append(atoms)
    return structures


def state_of(structures, dtype=torch.float64):
    return ts.initialize_state(structures, torch.device("cpu"), dtype)


def assert_same(ended, others, numbers):
    """Systems `numbers` of one run must be, bit by bit, the systems of the other, with the same result."""
    (state, table), (other_state, other_table) = ended, others
    for number, other in enumerate(numbers):
        assert table[number] == other_table[other]
        assert torch.equal(
            state.positions[state.system_idx == number], other_state.positions[other_state.system_idx == other]
        )
        assert torch.equal(state.cell[number], other_state.cell[other])
