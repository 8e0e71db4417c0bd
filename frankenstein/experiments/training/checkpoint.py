"""Checkpoints of a training: one file of each process, whole or not there, and the one before it.

Accelerate's `save_state` is not used: it writes a folder of files, any part of which a kill may leave; it reads random
states that are damaged as if there were none; and under FSDP it makes the optimizer's state by a step of its own.
"""

from __future__ import annotations

import hashlib
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from frankenstein.experiments.experiment import ExperimentError

KEPT = 2  # the newest, and the one before, for processes that are killed at different steps and for damage
NAME = re.compile(r"step-(\d+)\.rank-(\d+)-of-(\d+)\.(\w+)\.pt")

State = dict[str, Any]  # tensors and plain values, as `torch.load(weights_only=True)` takes them


class Checkpoints:
    """The checkpoints of one training in a folder.

    A file's name ends with the digest of its content, so that damage is noticed.

    Args:
        folder: Made if absent; of several processes on machines of their own, each has its own.
        accelerator: Of the training.
        run: What the training is, as plain data: a checkpoint of another one is refused.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, run: dict[str, Any]) -> None:
        self.folder, self.run = folder, run
        self.rank, self.n_ranks = accelerator.process_index, accelerator.num_processes

    def save(self, step: int, state: State) -> None:
        """Keep the state after `step` steps and drop what is older than the one before.

        A file that cannot be written is said on standard error, and not the end of the training.
        """
        temporary = self.folder / f"rank-{self.rank}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save({"run": self.run, **state}, temporary)
            temporary.replace(self.folder / f"step-{step:09}.rank-{self.rank}-of-{self.n_ranks}.{digest(temporary)}.pt")
            for path in self._files()[:-KEPT]:
                path.unlink()
        except (OSError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
            why = error.strerror if isinstance(error, OSError) else str(error).partition("\n")[0]
            print(f"no checkpoint at step {step} in {self.folder}: {why}; the training goes on", file=sys.stderr)
            with suppress(OSError):
                temporary.unlink()

    def load(self) -> State | None:
        """Return the newest state that all processes have, its tensors on the CPU; None: there is none.

        Damaged files are said on standard error and passed over.

        Raises:
            ExperimentError: The checkpoints are another training's, or of another number of processes.
        """
        whole: dict[int, Path] = {}
        for path in self._files():
            if digest(path) == _parts(path)[3]:
                whole[int(_parts(path)[0])] = path
            else:
                print(f"the checkpoint {path} is damaged and is left out", file=sys.stderr)
        everywhere = set(whole)
        if self.n_ranks > 1:
            everywhere = set.intersection(*(set(steps) for steps in gather_object([list(whole)])))
        if not everywhere:
            return None
        with torch.serialization.safe_globals(_sharding()):
            state: State = torch.load(whole[max(everywhere)], map_location="cpu", weights_only=True)
        there = state.pop("run")
        for name, value in self.run.items():
            if there.get(name) != value:
                raise ExperimentError(
                    f"{self.folder} holds a checkpoint of another run, with {name} {there.get(name)} where this one "
                    f"has {value}; remove it or choose another folder"
                )
        return state

    def _files(self) -> list[Path]:
        """Return this process's checkpoints, oldest first.

        Raises:
            ExperimentError: Another number of processes left them.
        """
        found = [path for path in self.folder.glob("*.pt") if NAME.fullmatch(path.name)]
        for path in found:
            if int(_parts(path)[2]) != self.n_ranks:
                raise ExperimentError(
                    f"{self.folder} holds a checkpoint of {_parts(path)[2]} process(es), this run has {self.n_ranks}; "
                    "start as many, or remove it"
                )
        return sorted(path for path in found if int(_parts(path)[1]) == self.rank)


def _parts(path: Path) -> tuple[str, ...]:
    match = NAME.fullmatch(path.name)
    assert match is not None
    return match.groups()


def digest(path: Path) -> str:
    """Return 16 hexadecimal digits that follow from a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _sharding() -> list[Any]:
    """Return the classes of sharded tensors, which may come out of a checkpoint."""
    from torch.distributed.tensor import DTensor

    return [DTensor]


def trained_state(model: torch.nn.Module) -> dict[str, Any]:
    """Return the part of the model's state that training changes: not the parameters that are frozen."""
    frozen = _frozen(model)
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def load_trained_state(model: torch.nn.Module, state: dict[str, Any]) -> None:
    """Put back what `trained_state` returned.

    Raises:
        ExperimentError: It is another model's.
    """
    expected = model.state_dict().keys() - _frozen(model)
    if expected != state.keys():
        odd = sorted(expected ^ state.keys())[0]
        raise ExperimentError(f"the checkpoint is of another model: {odd} is only in one of the two; remove it")
    model.load_state_dict(state, strict=False)


def _frozen(model: torch.nn.Module) -> set[str]:
    """Return the names, in the state, of parameters that are not trained; one may have several where it is shared."""
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if not parameter.requires_grad}
