"""Cells that relax: three rows each, which follow the atoms of their system, as in ASE's cell filters.

With F the deformation of the reference cell, an atom stands at F times its place in that cell. The rule moves the
places and `cell_factor` times F ("unit") or times its logarithm ("frechet"); their forces are those of the atoms turned
by F, and the stress as a derivative by F or by its logarithm. All of this is float64, whatever the positions are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from frankenstein.relaxation.rule import init
from frankenstein.relaxation.systems import Systems, row_norms
from frankenstein.torchsim.installed import ts
from frankenstein.torchsim.state import CELL_MEMORY, FrankensteinCellState, Settings

__all__ = [
    "Rows",
    "cell_fields",
    "cell_forces",
    "cell_positions_of",
    "deformation",
    "exponential",
    "gradient_of",
    "largest_of",
    "product",
    "rows_of",
    "times",
]


class Rows(NamedTuple):
    """How atoms and cells stand beside each other: `idx` is the system of each row, `order` where it comes from."""

    idx: torch.Tensor
    order: torch.Tensor | None

    def join(self, atoms: torch.Tensor, cells: torch.Tensor | None) -> torch.Tensor:
        """Return (n_rows, ...) of (n_atoms, ...) and (n_systems, 3, ...)."""
        return atoms if self.order is None or cells is None else torch.cat([atoms, cells.flatten(0, 1)])[self.order]

    def part(self, rows: torch.Tensor, n_atoms: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return what `join` has joined."""
        if self.order is None:
            return rows, None
        both = torch.empty_like(rows)
        both[self.order] = rows
        return both[:n_atoms], both[n_atoms:].unflatten(0, (-1, 3))


def rows_of(state: Any) -> Rows:
    """Return how the rows of a batch stand: ascending by system, as the rule wants them."""
    if not isinstance(state, FrankensteinCellState):
        return Rows(state.system_idx, None)
    cells = torch.arange(len(state.cell), device=state.system_idx.device).repeat_interleave(3)
    return Rows(*torch.sort(torch.cat([state.system_idx, cells]), stable=True))


def gradient_of(state: Any, rows: Rows) -> torch.Tensor:
    """Return (n_rows, 3): of a relaxed cell, the derivative by the atoms' places in the undeformed cell."""
    gradient = -state.forces.to(torch.float64)
    if rows.order is None:
        return gradient
    turned = times(deformation(state).mT[state.system_idx], gradient)
    return rows.join(turned, -state.cell_forces.to(torch.float64))


def largest_of(state: Any) -> torch.Tensor:
    """Return (n_systems,): the longest row of the forces, not-a-number where one is not finite."""
    rows = rows_of(state)
    gradient = gradient_of(state, rows)
    largest = Systems(rows.idx).max(torch.nan_to_num(row_norms(gradient)))
    largest[rows.idx[~gradient.isfinite().all(1)]] = torch.nan
    return largest


def cell_fields(
    state: Any, settings: Settings, cell_factor: float | torch.Tensor | None, scalar_pressure: float
) -> dict[str, torch.Tensor]:
    """Return what a state with relaxed cells has beyond one without, before the first step."""
    n_systems, where = len(state.cell), {"dtype": torch.float64, "device": state.cell.device}
    if cell_factor is None:
        cell_factor = torch.bincount(state.system_idx)
    factor = torch.as_tensor(cell_factor, **where).reshape(-1, 1, 1).expand(n_systems, 1, 1).clone()
    cell_memory = init(
        torch.zeros(3 * n_systems, 3, **where),
        Systems(torch.arange(n_systems, device=state.cell.device).repeat_interleave(3)),
        settings.rule,
        settings.maxstep,
    )
    identity = torch.eye(3, **where).expand(n_systems, 3, 3)
    return {
        "reference_cell": state.cell.clone(),
        "cell_factor": factor,
        "pressure": torch.full((n_systems, 1, 1), scalar_pressure, **where),
        "cell_positions": (factor * identity) if settings.cell_filter == "unit" else torch.zeros_like(identity),
        "cell_forces": torch.zeros_like(identity),
    } | {name: getattr(cell_memory, of).unflatten(0, (n_systems, 3)) for name, of in CELL_MEMORY.items()}


def deformation(state: Any) -> torch.Tensor:
    """Return (n_systems, 3, 3) float64: what turns the reference cell into the present one."""
    strain = state.cell_positions.to(torch.float64) / state.cell_factor
    return strain if state.settings.cell_filter == "unit" else exponential(strain)


def cell_positions_of(state: Any) -> torch.Tensor:
    """Return the cell positions that belong to the present cell: constraints have changed it."""
    reference, cell = state.reference_cell.to(torch.float64), state.cell.to(torch.float64)
    deformation = torch.linalg.solve(reference.mT, cell.mT).mT
    if state.settings.cell_filter == "frechet":
        deformation = ts.math.matrix_log_33(deformation, sim_dtype=torch.float64)
    return state.cell_factor * deformation


def cell_forces(state: Any) -> torch.Tensor:
    """Return (n_systems, 3, 3): minus the energy's derivative by the cell positions."""
    stress = state.stress.clone()
    for constraint in getattr(state, "constraints", None) or ():
        constraint.adjust_stress(state, stress)
    identity = torch.eye(3, dtype=torch.float64, device=stress.device)
    volume = torch.linalg.det(state.cell.to(torch.float64)).abs()[:, None, None]
    virial = -volume * (stress.to(torch.float64) + state.pressure * identity)
    mean = virial.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * identity
    virial = mean if state.settings.hydrostatic_strain else virial
    virial = virial - mean if state.settings.constant_volume else virial
    by_deformation = product(virial, torch.linalg.inv(deformation(state)).mT)
    if state.settings.cell_filter == "unit":
        return (by_deformation / state.cell_factor).to(stress.dtype)
    # the derivative of exp at L, transposed, is the upper right block of exp([[L^T, G], [0, L^T]])
    strain = (state.cell_positions.to(torch.float64) / state.cell_factor).mT
    top, bottom = torch.cat([strain, by_deformation], 2), torch.cat([torch.zeros_like(strain), strain], 2)
    return (exponential(torch.cat([top, bottom], 1))[:, :3, 3:] / state.cell_factor).to(stress.dtype)


def times(matrices: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Multiply (n, 3, 3) by (n, 3): (n, 3)."""
    return (matrices * vectors[:, None, :]).sum(-1)  # not `@`: its last bits may depend on the batch


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Multiply (n, k, k) by (n, k, k): (n, k, k)."""
    return (left[:, :, :, None] * right[:, None, :, :]).sum(2)  # as above


def exponential(matrices: torch.Tensor) -> torch.Tensor:
    """Return the exponentials of (n, k, k), the power series of a 16th of each, squared four times.

    `torch.linalg.matrix_exp` rounds a matrix alone otherwise than in a batch. Twelve terms are exact to the last bits
    for matrices of norm 8 and less; the logarithm of a deformation is far below 1.
    """
    small = matrices / 2.0**4
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    result = identity.expand_as(matrices)
    for n in range(12, 0, -1):
        result = identity + product(small, result) / n
    for _ in range(4):
        result = product(result, result)
    return result
