"""A batched model of `frankenstein.models` as a torch-sim model."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from frankenstein.models import BatchedModel
from frankenstein.torchsim.installed import ModelInterface
from frankenstein.torchsim.state import to_bytes

__all__ = ["TorchSimModel"]


class TorchSimModel(ModelInterface):
    """A model of `frankenstein.models` for torch-sim.

    A structure that it cannot compute gets forces that are not numbers and a warning that says why: it ends as
    "nonfinite" with that message in its `Result`, the others go on.

    Args:
        model: The model.
        dtype: Of what torch-sim computes with; the model itself may be coarser.

    Example:
        >>> from frankenstein.models import chgnet
        >>> TorchSimModel(chgnet()).dtype
        torch.float64
    """

    def __init__(self, model: BatchedModel, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.model = model
        self._device, self._dtype = torch.device(model.device), dtype
        self._compute_forces = self._compute_stress = True

    def forward(self, state: Any, **_kwargs: Any) -> dict[str, torch.Tensor]:
        """Return energy (n_systems,), forces (n_atoms, 3) and stress (n_systems, 3, 3), as torch-sim wants them.

        Beside them `message` (n_systems, 256): why there is nothing for a system, as bytes.
        """
        structures = state.to_atoms()
        columns: list[list[torch.Tensor]] = [[], [], []]
        messages = []
        for atoms, answer in zip(structures, self.model(structures), strict=True):
            messages.append(to_bytes(str(answer) if isinstance(answer, Exception) else ""))
            if isinstance(answer, Exception):
                warnings.warn(str(answer), stacklevel=2)
                answer = (torch.nan, torch.full((len(atoms), 3), torch.nan), None)  # type: ignore[assignment]
            energy, forces, stress = answer  # type: ignore[misc]
            stress = torch.full((3, 3), torch.nan) if stress is None else stress
            for column, value in zip(columns, (energy, forces, stress), strict=True):
                column.append(torch.as_tensor(value, dtype=self._dtype, device=self._device))
        energies, forces, stresses = columns
        return {
            "energy": torch.stack(energies),
            "forces": torch.cat(forces),
            "stress": torch.stack(stresses),
            "message": torch.stack(messages).to(self._device),
        }
