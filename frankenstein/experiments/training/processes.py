"""The processes of a training: one, or several started by torchrun, on Accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin
from torch import nn

from frankenstein.experiments.experiment import ExperimentError
from frankenstein.experiments.training.loop import Recipe


@contextmanager
def accelerated(recipe: Recipe, device: str) -> Iterator[Accelerator]:
    """Yield the accelerator of one training.

    Accelerate keeps the first precision, device and accumulation that a process asks for; here each training has its
    own, so what is kept is forgotten before and after. The process group stays.

    Args:
        recipe: Precision and accumulation.
        device: "cpu" or "cuda".

    Raises:
        ExperimentError: The device or the precision is not to be had.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ExperimentError("the run was given a GPU, but torch sees none here; run it on the CPU")
    _forget()
    try:
        yield Accelerator(
            cpu=device == "cpu",
            mixed_precision=_precision(recipe.precision, device),
            # a plugin, for the plain argument is overruled by an environment variable of Accelerate's launcher
            gradient_accumulation_plugin=GradientAccumulationPlugin(recipe.accumulate, sync_with_dataloader=False),
        )
    finally:
        _forget()


def _forget() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _precision(asked: str, device: str) -> str:
    if asked == "fp16" and device == "cpu":
        raise ExperimentError("precision fp16 needs a GPU; on the CPU choose no, bf16 or auto")
    if asked != "auto":
        return asked
    if device == "cpu":
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def distributed(accelerator: Accelerator, model: nn.Module, parallel: str) -> nn.Module:
    """Return the model on its device, under automatic mixed precision, shared among the processes where there are more.

    Raises:
        ExperimentError: The precision does not go with the way of sharing.
    """
    if accelerator.num_processes == 1 or parallel == "ddp":
        return accelerator.prepare_model(model)
    if accelerator.mixed_precision == "fp16":
        raise ExperimentError(
            "parallel fsdp does not go with precision fp16, whose gradients would have to be checked on all processes; "
            "choose bf16, or parallel ddp"
        )
    # Torch's own FSDP2: through Accelerate it needs GPUs, and an optimizer made before the parameters are shared, whose
    # parameters are then replaced; optimizers that keep more than their groups would go on with the old ones.
    from torch.distributed.fsdp import fully_shard

    model = accelerator.prepare_model(model, evaluation_mode=True)  # the device and mixed precision alone
    fully_shard(model)
    return model
