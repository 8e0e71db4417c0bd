"""One step of the rule for a batch of which some systems may be done: memory, cells and constraints around it."""

from __future__ import annotations

from typing import Any

import torch

from frankenstein.relaxation.rule import PER_ATOM, State, update
from frankenstein.relaxation.systems import Systems, to_numpy
from frankenstein.torchsim.cells import Rows, cell_positions_of, deformation, gradient_of, product, rows_of, times

__all__ = ["chosen", "move"]


def move(state: Any, is_moving: torch.Tensor) -> None:
    """Move the systems that are not done, atoms and cells, by the rule."""
    rows, n_atoms, settings = rows_of(state), len(state.positions), state.settings
    systems = Systems(rows.idx)
    memory = _memory(state, rows)
    gradient = gradient_of(state, rows)
    if bool(is_moving.all()):
        displacement, memory = update(memory, gradient, systems, settings.rule, settings.maxstep)
    else:  # those that are done keep their memory: they may go on another day
        some, at = systems.select(to_numpy(is_moving))
        numbers = is_moving.nonzero()[:, 0]
        where = {name: at if name in PER_ATOM else numbers for name in State._fields}
        part = State(**{name: field[where[name]] for name, field in memory._asdict().items()})
        moved, part = update(part, gradient[at], some, settings.rule, settings.maxstep)
        displacement = torch.zeros_like(gradient).index_copy(0, at, moved)
        memory = State(
            **{name: field.index_copy(0, where[name], getattr(part, name)) for name, field in memory._asdict().items()}
        )
    steps, cell_steps = rows.part(displacement, n_atoms)
    carried = _carry_out(state, steps, cell_steps, is_moving)
    if carried is not None:  # constraints have changed the step
        memory = memory._replace(displacement=rows.join(*carried))
    for name, field in memory._asdict().items():
        if name in PER_ATOM:
            field, cell_field = rows.part(field, n_atoms)
            if cell_field is not None:
                setattr(state, f"cell_{name}", cell_field)
        setattr(state, name, field)


def _memory(state: Any, rows: Rows) -> State:
    fields = {}
    for name in State._fields:
        field = getattr(state, name)
        if name in PER_ATOM:
            field = rows.join(field, getattr(state, f"cell_{name}", None))
        fields[name] = field.to(torch.float64) if field.is_floating_point() else field
    return State(**fields)


def _carry_out(
    state: Any, steps: torch.Tensor, cell_steps: torch.Tensor | None, is_moving: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """Move atoms and cells; return the steps that constraints have left of it, None where there are none."""
    constraints = getattr(state, "constraints", None)
    dtype, before = state.positions.dtype, state.positions
    if cell_steps is None:
        positions = before + steps.to(dtype)
        if constraints:
            state.set_constrained_positions(positions)
            return (state.positions - before).to(torch.float64), None
        state.positions = positions
        return None
    places = times(torch.linalg.inv(deformation(state))[state.system_idx], before.to(torch.float64))
    cells_before = state.cell_positions
    state.cell_positions = cells_before + cell_steps
    cell = product(deformation(state), state.reference_cell.to(torch.float64)).to(dtype)
    cell = torch.where(is_moving[:, None, None], cell, state.cell)
    if constraints:
        state.set_constrained_cell(cell.clone(), scale_atoms=True)  # they write into it
        is_changed = (state.cell != cell).flatten(1).any(1)
        if bool(is_changed.any()):
            state.cell_positions = chosen(state, is_changed, cell_positions_of(state), state.cell_positions)
    else:
        state.cell = cell
    positions = times(deformation(state)[state.system_idx], places + steps).to(dtype)
    positions = torch.where(is_moving[state.system_idx, None], positions, before)
    if not constraints:
        state.positions = positions
        return None
    state.set_constrained_positions(positions)
    inverse = torch.linalg.inv(deformation(state))[state.system_idx]
    return times(inverse, state.positions.to(torch.float64)) - places, state.cell_positions - cells_before


def chosen(state: Any, is_new: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Return the new values in some systems and the old ones in the others, of atoms or of systems."""
    if bool(is_new.all()):
        return new
    mask = is_new[state.system_idx] if new.shape == state.positions.shape else is_new
    return torch.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)
