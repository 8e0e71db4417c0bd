"""Time a training step of Fig. 7 on one core, of one seed alone and of several seeds as one batch, on this machine.

    python benchmarks/quantum_step.py            print
    python benchmarks/quantum_step.py --write    keep the result in docs/records

A batch is one network with a leading dimension for the seeds, whose states are columns of one product with the sparse
Hamiltonian; a step of the optimizer is elementwise and does not notice. Single and batched steps take turns; figures
are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from scipy.sparse import csr_array
from torch import Tensor, nn

from frankenstein import Frankenstein
from frankenstein.compare.problems.problem import Budget
from frankenstein.compare.store.provenance import provenance
from frankenstein.experiments.quantum import Lattice, NeuralState, hamiltonian, rayleigh_quotient

RECORD = Path(__file__).resolve().parents[1] / "docs" / "records" / "quantum_step.json"
LATTICES = {
    "3x3": Lattice(3, 3),
    "3x4": Lattice(3, 4),
    "4x4, zero magnetisation": Lattice(4, 4, in_sector=True),
    "4x4": Lattice(4, 4),
}
BATCHES = (2, 8)
N_ROUNDS, N_STEPS = 12, 5


def single(lattice: Lattice) -> Callable[[], None]:
    """Return a step of one seed, as the experiment does it."""
    task = NeuralState(lattice, 0, Budget(1, 1, "test"))
    optimizer = Frankenstein(task.parameters(), lr=1e-2)

    def step() -> None:
        optimizer.zero_grad()
        task.loss(None).backward()
        optimizer.step()

    return step


def batched(lattice: Lattice, n_seeds: int) -> Callable[[], None]:
    """Return a step of so many seeds as one batch."""
    tasks = [NeuralState(lattice, seed, Budget(1, 1, "test")) for seed in range(n_seeds)]
    stacked = [
        nn.Parameter(torch.stack([p.detach() for p in same]))
        for same in zip(*(task.parameters() for task in tasks), strict=True)
    ]
    optimizer = Frankenstein(stacked, lr=1e-2)
    matrix = hamiltonian(lattice).astype("float32")

    def states() -> Tensor:
        found = torch.ones(n_seeds, 1, stacked[0].shape[-1])
        for weight, bias in zip(stacked[::2], stacked[1::2], strict=True):
            found = torch.baddbmm(bias[:, None], found, weight.mT)
            found = found if weight is stacked[-2] else found.relu()
        return found.view(n_seeds, lattice.n_states, 2)

    def step() -> None:
        optimizer.zero_grad()
        _Energies.apply(states(), matrix).sum().backward()
        optimizer.step()

    with torch.no_grad():  # the same states, with the same energies
        alone = torch.stack([rayleigh_quotient(task.state(), matrix) for task in tasks])
        torch.testing.assert_close(_Energies.apply(states(), matrix), alone, rtol=1e-4, atol=1e-5)
    return step


class _Energies(torch.autograd.Function):
    """The Rayleigh quotient of each of a batch of states, (n_seeds, n_states, 2)."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, matrix: csr_array) -> Tensor:
        columns = states.detach().transpose(0, 1).reshape(states.shape[1], -1).numpy()
        applied = torch.from_numpy(matrix @ columns).view(states.shape[1], -1, 2).transpose(0, 1)
        norms = (states * states).sum((1, 2))
        energies = (states * applied).sum((1, 2)) / norms
        ctx.save_for_backward(states, applied, energies, norms)
        return energies

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        states, applied, energies, norms = ctx.saved_tensors
        return (gradients[0] * 2.0 / norms)[:, None, None] * (applied - energies[:, None, None] * states), None


def measure(lattice: Lattice) -> dict[str, Any]:
    ways = {"1": single(lattice)} | {str(n): batched(lattice, n) for n in BATCHES}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(N_ROUNDS + 1):
        for name, step in ways.items():
            began = time.perf_counter()
            for _ in range(N_STEPS):
                step()
            if i:  # the first round allocates
                times[name].append((time.perf_counter() - began) / N_STEPS / int(name))
    return {
        "n_states": lattice.n_states,
        "ms_per_seed": {name: float(f"{1e3 * median(found):.3g}") for name, found in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"keep the result in {RECORD}")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = {name: measure(lattice) for name, lattice in LATTICES.items()}
    print(json.dumps(cases, indent=1))
    if args.write:
        content = {"cases": cases, "versions": {"torch": torch.__version__}, "provenance": provenance()}
        RECORD.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
