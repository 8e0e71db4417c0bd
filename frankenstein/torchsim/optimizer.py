"""The optimizer: how a batch begins, how it steps, when a system is done."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any, Literal

import torch

from frankenstein.models import BatchedModel
from frankenstein.relaxation.rule import RelaxationRule, init
from frankenstein.relaxation.systems import Systems
from frankenstein.torchsim.cells import cell_fields, cell_forces, largest_of
from frankenstein.torchsim.installed import HAS_TUPLES, ModelInterface, ts
from frankenstein.torchsim.moves import chosen, move
from frankenstein.torchsim.state import (
    REASONS,
    FrankensteinCellState,
    FrankensteinState,
    Result,
    Settings,
    from_bytes,
    to_bytes,
)

__all__ = [
    "frankenstein",
    "frankenstein_init",
    "frankenstein_step",
    "is_done",
    "optimizer_settings",
    "relax",
    "results",
]

CANONICAL = ("energy", "forces", "stress", "message")

NO_MESSAGE = "the energy, a force or a stress is not finite"
"""What is said of a system where the model says nothing."""


def frankenstein_init(
    state: Any,
    model: ModelInterface,
    *,
    rule: RelaxationRule | None = None,
    maxstep: float = 0.2,
    fmax: float | None = None,
    maxcalls: int | None = None,
    cell_filter: Literal["frechet", "unit"] | None = None,
    cell_factor: float | torch.Tensor | None = None,
    hydrostatic_strain: bool = False,
    constant_volume: bool = False,
    scalar_pressure: float = 0.0,
) -> Any:
    """Return the state before the first step; one call of the model.

    A state of this optimizer goes on where it ended, with the new `fmax`, `maxcalls` and `maxstep`.

    Args:
        state: Never modified, unless it goes on.
        model: Gives energies and forces, and stresses where cells relax.
        rule: Constants other than the published ones.
        maxstep: Longest step of an atom, in Angstrom.
        fmax: A system stops moving when no row of its forces is longer, in eV/Angstrom.
        maxcalls: Most force calls of a system.
        cell_filter: "frechet" or "unit" relaxes the cells too.
        cell_factor: As in torch-sim and ASE; by default the number of atoms.
        hydrostatic_strain: Cells keep their shape.
        constant_volume: Cells keep their volume.
        scalar_pressure: In eV/Angstrom^3.

    Returns:
        A `FrankensteinState`, or a `FrankensteinCellState` with a cell filter.

    Raises:
        ValueError: A setting is outside its range, or the model gives no forces, or no stress for a cell filter.
    """
    name = None if cell_filter is None else str(cell_filter)
    settings = Settings(
        rule or RelaxationRule(), maxstep, fmax, maxcalls, name, hydrostatic_strain, constant_volume  # type: ignore[arg-type]
    )  # fmt: skip
    if isinstance(state, FrankensteinState):
        return _resumed(state, settings)
    output = _evaluated(state, model, needs_stress=name is not None)
    fields: dict[str, Any] = _source(state) | {name: output[name] for name in CANONICAL}
    systems = Systems(state.system_idx)
    rows = torch.zeros_like(state.positions, dtype=torch.float64)
    fields |= init(rows, systems, settings.rule, maxstep)._asdict()
    for field in ("n_calls", "reason_idx"):
        fields[field] = torch.zeros(systems.n_systems, dtype=torch.int64, device=rows.device)
    fields["settings"] = settings
    if name is None:
        started: Any = FrankensteinState(**fields)
    else:
        fields |= cell_fields(state, settings, cell_factor, scalar_pressure)
        started = FrankensteinCellState(**fields)
        started.cell_forces = cell_forces(started)
    _keep_extras(started, output)
    started.n_calls = started.n_calls + 1
    _judge(started, torch.ones_like(started.n_calls, dtype=torch.bool), _is_finite(started, output))
    return started


def frankenstein_step(state: Any, model: ModelInterface) -> Any:
    """Take one step with every system that is not done; one call of the model, none if all are.

    Where energy or forces are not finite afterwards, that system is put back and stays there; the others go on.

    Args:
        state: Of `frankenstein_init`. It is modified.
        model: As there.

    Returns:
        The same state.
    """
    is_moving = state.reason_idx == 0
    if not bool(is_moving.any()):
        return state
    kept = {name: getattr(state, name) for name in ("positions", "cell", "cell_positions") if hasattr(state, name)}
    move(state, is_moving)
    moved = torch.zeros_like(is_moving)
    moved[state.system_idx[(state.positions != kept["positions"]).any(1)]] = True
    moved |= (state.cell != kept["cell"]).flatten(1).any(1)
    state.reason_idx = torch.where(is_moving & ~moved, REASONS.index("stalled"), state.reason_idx)
    is_moving = is_moving & moved
    if not bool(is_moving.any()):
        return state
    output = _evaluated(state, model, needs_stress=isinstance(state, FrankensteinCellState))
    is_good = is_moving & _is_finite(state, output)
    state.n_calls = state.n_calls + is_moving
    for name, old in kept.items():
        setattr(state, name, chosen(state, is_good, getattr(state, name), old))
    for name in ("energy", "stress"):
        setattr(state, name, chosen(state, is_good, output[name], getattr(state, name)))
    state.message = chosen(state, is_moving & ~is_good, output["message"], state.message)
    forces = chosen(state, is_good, output["forces"], state.forces)
    if HAS_TUPLES:
        state.set_constrained_forces(forces.clone())  # they write into it
    else:
        state.forces = forces
    _keep_extras(state, output)
    if isinstance(state, FrankensteinCellState):
        state.cell_forces = chosen(state, is_good, cell_forces(state), state.cell_forces)
    _judge(state, is_moving, is_good)
    return state


def _factory(model: ModelInterface, **settings: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return what torch-sim 0.3 wants of an optimizer: how it begins and how it steps with this model."""
    return (
        lambda state, **kwargs: frankenstein_init(_as_state(state), model, **(settings | kwargs)),
        lambda state: frankenstein_step(state, model),
    )


frankenstein: Any = (frankenstein_init, frankenstein_step) if HAS_TUPLES else _factory
"""What `optimizer=` of `torch_sim.optimize` takes in the torch-sim that is installed."""


def optimizer_settings(**settings: Any) -> dict[str, Any]:
    """Return the settings of `frankenstein_init` as the `torch_sim.optimize` that is installed takes them."""
    return {"init_kwargs": settings} if HAS_TUPLES else settings


def is_done(state: Any, last_energy: torch.Tensor | None = None) -> torch.Tensor:
    """Return which systems have a reason to stop: what `convergence_fn=` of `torch_sim.optimize` takes."""
    return state.reason_idx != 0


def results(state: Any) -> list[Result]:
    """Return for each system whether it converged, why it stopped and what it took; see `Result`."""
    columns = (state.reason_idx, state.n_calls, state.energy, largest_of(state))
    table = []
    for i, (number, calls, energy, largest) in enumerate(zip(*(column.tolist() for column in columns), strict=True)):
        reason = REASONS[number]
        message = (from_bytes(state.message[i]) or NO_MESSAGE) if reason == "nonfinite" else ""
        table.append(Result(reason == "converged", reason or "stopped", calls, energy, largest, message))
    return table


def relax(
    structures: Any,
    model: ModelInterface,
    *,
    fmax: float,
    maxstep: float = 0.2,
    maxcalls: int = 10_000,
    autobatcher: Any = False,
    **settings: Any,
) -> tuple[Any, list[Result]]:
    """Relax structures with `torch_sim.optimize`; each leaves the batch as soon as it is done.

    Args:
        structures: ASE atoms, pymatgen structures, a list of either, or a torch-sim state.
        model: A torch-sim model, or `TorchSimModel` around a model of `frankenstein.models`.
        fmax: A system ends when no row of its forces is longer, in eV/Angstrom.
        maxstep: Longest step of an atom, in Angstrom.
        maxcalls: Most force calls of a system.
        autobatcher: As in `torch_sim.optimize`: True where the structures do not fit into memory together.
        **settings: Others of `frankenstein_init`: `cell_filter`, `scalar_pressure`, `rule` and so on.

    Returns:
        The state torch-sim returns, and one `Result` for each structure, in the order given.

    Raises:
        ValueError: There are no structures, or a setting is outside its range.
        TypeError: The model is none of torch-sim.
    """
    _check_model(model)
    if isinstance(structures, (list, tuple)) and not structures:
        raise ValueError("Invalid structures: the list is empty; give at least one structure")
    state = ts.initialize_state(structures, model.device, model.dtype)
    settings |= {"fmax": fmax, "maxstep": maxstep, "maxcalls": maxcalls}
    final = ts.optimize(
        state,
        model,
        optimizer=frankenstein,
        convergence_fn=is_done,
        autobatcher=autobatcher,
        max_steps=(maxcalls + 1) * state.n_systems,  # 0.3 counts the steps of all batches together
        steps_between_swaps=1,
        **optimizer_settings(**settings),
    )
    return final, results(final)


def _check_model(model: Any) -> None:
    if isinstance(model, BatchedModel):
        raise TypeError(f"Invalid model: {model.name} without torch-sim around it; give TorchSimModel({model.name}())")
    if not (hasattr(model, "device") and hasattr(model, "dtype")):
        raise TypeError(
            f"Invalid model: {type(model).__name__} is no model of torch-sim; give TorchSimModel(chgnet()), say "
            "(for ASE calculators there is frankenstein.ase.Frankenstein)"
        )


def _evaluated(state: Any, model: ModelInterface, *, needs_stress: bool) -> dict[str, torch.Tensor]:
    """Return what the model says without its history, which would keep the graph of every step alive."""
    output = {name: value.detach() for name, value in model(state).items() if isinstance(value, torch.Tensor)}
    for name in ("forces", "stress") if needs_stress else ("forces",):
        if name not in output:
            raise ValueError(f"The model gives no {name}, which is needed here: make it with compute_{name}=True")
    no_stress = output["forces"].new_full((len(output["energy"]), 3, 3), torch.nan)
    no_message = to_bytes("").to(no_stress.device).expand(len(no_stress), -1)
    return {"stress": no_stress, "message": no_message} | output


def _keep_extras(state: Any, output: dict[str, torch.Tensor]) -> None:
    """Let the state keep what the model says beyond energy, forces and stress, where torch-sim has a place for it."""
    if hasattr(state, "store_model_extras"):
        state.store_model_extras({name: value for name, value in output.items() if name != "message"})


def _is_finite(state: Any, output: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return for which systems all that is needed is finite."""
    is_good = output["energy"].isfinite()
    is_good[state.system_idx[~output["forces"].isfinite().all(1)]] = False
    if isinstance(state, FrankensteinCellState):
        is_good &= output["stress"].flatten(1).isfinite().all(1)
    return is_good


def _judge(state: Any, is_moving: torch.Tensor, is_good: torch.Tensor) -> None:
    """Note which systems are done, and why: a system that is not finite first, then convergence, then the limit."""
    settings = state.settings
    reason = torch.zeros_like(state.reason_idx)
    if settings.maxcalls is not None:
        reason[state.n_calls >= settings.maxcalls] = REASONS.index("maxcalls")
    if settings.fmax is not None:
        reason[largest_of(state) <= settings.fmax] = REASONS.index("converged")
    reason[~is_good] = REASONS.index("nonfinite")
    state.reason_idx = torch.where(is_moving, reason, state.reason_idx)


def _resumed(state: Any, settings: Settings) -> Any:
    old = state.settings
    if (settings.cell_filter, settings.rule.memory) != (old.cell_filter, old.rule.memory):
        raise ValueError("Invalid cell_filter or rule: a state goes on with the cell filter and memory it began with")
    state.settings = replace(settings, hydrostatic_strain=old.hydrostatic_strain, constant_volume=old.constant_volume)
    lost = state.reason_idx == REASONS.index("nonfinite")
    _judge(state, ~lost, ~lost)
    return state


def _as_state(state: Any) -> Any:
    return state if isinstance(state, ts.SimState) else ts.SimState(**state)


def _source(state: Any) -> dict[str, Any]:
    """Return the fields of a plain state, copied, without what another optimizer has added."""
    names = ts.SimState._atom_attributes | ts.SimState._system_attributes | ts.SimState._global_attributes
    names |= {"_constraints", "_system_extras", "_atom_extras"} if HAS_TUPLES else set()
    fields = {name: getattr(state, name) for name in sorted(names)}
    return {name: value.clone() if isinstance(value, torch.Tensor) else copy(value) for name, value in fields.items()}
