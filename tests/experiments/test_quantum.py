"""The Hamiltonian against its definition written out with matrices, known energies, and the quotient's gradient."""

from __future__ import annotations

import re
from functools import reduce

import numpy as np
import pytest
import torch

from frankenstein.compare.problems.problem import Budget
from frankenstein.experiments.experiment import ExperimentError
from frankenstein.experiments.quantum import J1, J2, Lattice, NeuralState, ground_energy, hamiltonian, rayleigh_quotient

EXACT = 1e-9  # of energies that are known to eight digits and more
SPIN = {
    "x": np.array([[0, 1], [1, 0]]) / 2,
    "y": np.array([[0, -1j], [1j, 0]]) / 2,
    "z": np.array([[-1, 0], [0, 1]]) / 2,  # bit 0 is down, bit 1 is up
}


def written_out(lattice):
    """Return the Hamiltonian as a sum of Kronecker products; bit i of a state is spin i."""
    n = lattice.n_sites

    def on(site, matrix):
        return reduce(np.kron, [matrix if other == site else np.eye(2) for other in reversed(range(n))])

    spins = {name: [on(site, matrix) for site in range(n)] for name, matrix in SPIN.items()}
    total = np.zeros((2**n, 2**n), complex)
    for coupling, step in ((J1, ((0, 1), (1, 0))), (J2, ((1, 1), (1, -1)))):
        pairs = set()
        for row, column in np.ndindex(lattice.rows, lattice.columns):
            for down, right in step:
                other = ((row + down) % lattice.rows) * lattice.columns + (column + right) % lattice.columns
                pairs.add(frozenset({row * lattice.columns + column, other}))
        for i, j in map(tuple, pairs):
            total += coupling * sum(spins[name][i] @ spins[name][j] for name in SPIN)
    return total


@pytest.mark.parametrize("size", [(2, 3), (3, 3), (2, 4)])
def test_the_hamiltonian_is_its_definition(size):
    found = hamiltonian(Lattice(*size)).toarray()
    expected = written_out(Lattice(*size))
    np.testing.assert_allclose(found, expected, atol=1e-14)
    energies = np.linalg.eigvalsh(expected)
    assert ground_energy(Lattice(*size)) == pytest.approx(energies[0], abs=EXACT)


@pytest.mark.parametrize("size", [(3, 3), (3, 4), (2, 4)])
def test_the_sector_is_a_block_with_the_same_ground_state(size):
    whole, sector = Lattice(*size), Lattice(*size, in_sector=True)
    states = sector.basis()
    assert len(states) == sector.n_states < whole.n_states
    block = hamiltonian(whole)[states][:, states]
    assert abs(block - hamiltonian(sector)).max() == 0.0
    assert ground_energy(sector) == pytest.approx(ground_energy(whole), abs=EXACT)


def test_energies_that_others_found():
    """By NetKet 3.23, which has Pauli matrices: a quarter of its values."""
    found = [ground_energy(Lattice(3, 3)), ground_energy(Lattice(3, 4)), ground_energy(Lattice(4, 4, True))]
    assert found == pytest.approx([-3.48450087, -6.20438583, -8.45792335], abs=1e-8)


def test_the_quotient_and_its_gradient():
    lattice = Lattice(2, 3)
    dense = torch.from_numpy(hamiltonian(lattice).toarray())
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(lattice.n_states, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    energy = rayleigh_quotient(state, hamiltonian(lattice))
    psi = torch.complex(state[:, 0], state[:, 1])
    expected = (psi.conj() @ (dense.to(psi.dtype) @ psi)).real / (psi.conj() @ psi).real
    assert energy.item() == pytest.approx(expected.item(), abs=1e-13)
    (found,), (by_torch,) = (torch.autograd.grad(one, state) for one in (energy, expected))
    torch.testing.assert_close(found, by_torch, rtol=0, atol=1e-13)
    scaled = rayleigh_quotient(3 * state, hamiltonian(lattice))
    assert scaled.item() == pytest.approx(energy.item(), abs=1e-13)


def test_a_network_finds_the_ground_state():
    torch.manual_seed(0)
    task = NeuralState(Lattice(2, 4), 0, Budget(300, 1, "test"))
    optimizer = torch.optim.Adam(task.parameters(), 1e-2)
    assert task.score() > 0.5
    for _ in range(300):
        optimizer.zero_grad()
        task.loss(None).backward()
        optimizer.step()
    assert -1e-12 < task.score() < 1e-3


def test_a_lattice_that_is_too_large_is_refused_before_anything_is_allocated():
    with pytest.raises(ExperimentError, match=re.escape("a lattice of 6x6 has 6.87e+10 states")) as caught:
        hamiltonian(Lattice(6, 6))
    assert "GiB of memory" in str(caught.value) and str(caught.value).endswith("or the sector of zero magnetisation")
    with pytest.raises(ExperimentError, match=r"take a smaller lattice$"):
        hamiltonian(Lattice(6, 6, in_sector=True))


def test_a_line_is_no_lattice():
    with pytest.raises(ExperimentError, match="1x4 sites; it must have 2 or more each way"):
        Lattice(1, 4)
