"""The state of a batch: torch-sim's, with the memory of the rule, so that systems can leave a batch and join another.

Every field is per atom, per system or global, and says so in the three sets that torch-sim splits and joins states by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from frankenstein.relaxation.rule import PER_ATOM, RelaxationRule, State
from frankenstein.relaxation.systems import is_number
from frankenstein.torchsim.installed import StateBase

__all__ = [
    "CELL_MEMORY",
    "REASONS",
    "FrankensteinCellState",
    "FrankensteinState",
    "Result",
    "Settings",
    "from_bytes",
    "to_bytes",
]

REASONS = ("", "converged", "maxcalls", "nonfinite", "stalled")
"""What `reason_idx` of a state counts; "" is a system that still moves."""

MESSAGE_BYTES = 256
"""Longest message of a system. A tensor of bytes goes where its system goes; torch-sim cannot split or join texts."""

_RULE_SYSTEM = frozenset(State._fields) - frozenset(PER_ATOM)
CELL_MEMORY = {f"cell_{name}": name for name in PER_ATOM}
"""What the rule remembers of the rows of a cell, (n_systems, 3, ...), and the field of its state that this is."""


@dataclass(frozen=True)
class Settings:
    """How a batch is relaxed, the same for all its systems.

    Attributes:
        rule: Constants of the rule.
        maxstep: Longest step of an atom, and of a row of a relaxed cell, in Angstrom.
        fmax: A system ends when no row of the forces is longer, in eV/Angstrom. None: torch-sim's criterion alone.
        maxcalls: Most force calls of a system. None: no limit.
        cell_filter: "frechet" or "unit" relaxes the cells too.
        hydrostatic_strain: Cells keep their shape.
        constant_volume: Cells keep their volume.
    """

    rule: RelaxationRule
    maxstep: float
    fmax: float | None
    maxcalls: int | None
    cell_filter: Literal["frechet", "unit"] | None
    hydrostatic_strain: bool
    constant_volume: bool

    def __post_init__(self) -> None:
        for name in ("maxstep", "fmax", "maxcalls"):
            value = getattr(self, name)
            if not (is_number(value) and value > 0) and (value is not None or name == "maxstep"):
                raise ValueError(f"Invalid {name}: {value!r}; allowed are numbers above 0")
        if self.cell_filter not in ("frechet", "unit", None):
            raise ValueError(f"Invalid cell_filter: {self.cell_filter!r}; allowed are 'frechet', 'unit' and None")


@dataclass(kw_only=True)
class FrankensteinState(StateBase):
    """A batch on its way down: torch-sim's state with the memory of the rule.

    Attributes:
        forces: (n_atoms, 3) at the present positions, or at the last ones where they were finite.
        energy: (n_systems,)
        stress: (n_systems, 3, 3), not-a-number where the model gives none.
        n_calls: (n_systems,) integers: force calls until the system was done.
        reason_idx: (n_systems,) integers: the entry of `REASONS`. Systems that are done stay where they are.
        message: (n_systems, 256) bytes: why the model could not compute a system; see `from_bytes`.
        settings: Of the whole batch.

    The other fields are those of `frankenstein.relaxation.State`.
    """

    forces: torch.Tensor
    energy: torch.Tensor
    stress: torch.Tensor
    n_calls: torch.Tensor
    reason_idx: torch.Tensor
    message: torch.Tensor
    settings: Settings
    gradient: torch.Tensor
    displacement: torch.Tensor
    directions: torch.Tensor
    changes: torch.Tensor
    n_steps: torch.Tensor
    n_pairs: torch.Tensor
    step_limit: torch.Tensor
    curvatures: torch.Tensor
    direction_change_inv: torch.Tensor
    direction_change_diag: torch.Tensor
    change_change: torch.Tensor
    secant: torch.Tensor

    _atom_attributes = StateBase._atom_attributes | {"forces"} | set(PER_ATOM)
    _system_attributes = (
        StateBase._system_attributes | {"energy", "stress", "n_calls", "reason_idx", "message"} | _RULE_SYSTEM
    )
    _global_attributes = StateBase._global_attributes | {"settings"}


@dataclass(kw_only=True)
class FrankensteinCellState(FrankensteinState):
    """The same, with cells that relax: their three rows each follow the atoms of their system.

    Attributes:
        reference_cell: (n_systems, 3, 3) the cells at the start, columns as in torch-sim.
        cell_positions: (n_systems, 3, 3) float64: `cell_factor` times the deformation of the reference cell ("unit")
            or times its logarithm ("frechet").
        cell_forces: (n_systems, 3, 3) minus the energy's derivative by them.
        cell_factor: (n_systems, 1, 1) float64: what makes the rows of a cell comparable to atoms.
        pressure: (n_systems, 1, 1) float64, in eV/Angstrom^3.
    """

    reference_cell: torch.Tensor
    cell_positions: torch.Tensor
    cell_forces: torch.Tensor
    cell_factor: torch.Tensor
    pressure: torch.Tensor
    cell_gradient: torch.Tensor
    cell_displacement: torch.Tensor
    cell_directions: torch.Tensor
    cell_changes: torch.Tensor

    _atom_attributes = FrankensteinState._atom_attributes
    _system_attributes = (
        FrankensteinState._system_attributes
        | {"reference_cell", "cell_positions", "cell_forces", "cell_factor", "pressure"}
        | set(CELL_MEMORY)
    )
    _global_attributes = FrankensteinState._global_attributes


class Result(NamedTuple):
    """How one system ended.

    Attributes:
        converged: Whether `fmax` was reached at the returned positions.
        reason: A key of `frankenstein.relaxation.REASONS`; "stopped" where torch-sim ended the run first.
        calls: Force calls until then. Calls for others in the batch while it waited to be taken out are not counted.
        energy: In eV, at the returned positions.
        fmax: Longest row of the forces there, those of a relaxed cell included, in eV/Angstrom.
        message: Why it is "nonfinite", in the words of the model if it said so; else empty.
    """

    converged: bool
    reason: str
    calls: int
    energy: float
    fmax: float
    message: str = ""


def to_bytes(text: str) -> torch.Tensor:
    """Return a message as `MESSAGE_BYTES` bytes; what is longer is cut, what is shorter ends in zeros."""
    return torch.tensor(list(text.encode()[:MESSAGE_BYTES].ljust(MESSAGE_BYTES, b"\0")), dtype=torch.uint8)


def from_bytes(message: torch.Tensor) -> str:
    """Return the message that `to_bytes` has made bytes."""
    return bytes(message.tolist()).rstrip(b"\0").decode(errors="ignore")  # a cut may go through a letter
