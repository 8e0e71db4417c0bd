"""A model at a point of a plane, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn import Module
from torch.nn.modules.batchnorm import _NormBase

from frankenstein.analysis.landscape.buffers import put_buffers
from frankenstein.analysis.landscape.errors import LandscapeError
from frankenstein.analysis.landscape.layout import parameters_of, tensor
from frankenstein.analysis.landscape.plane import Plane
from frankenstein.kernels.state import is_dtensor


@contextmanager
def kept(model: Module) -> Iterator[None]:
    """Put the model back as it was when the block ends, whatever happens in it.

    Weights and buffers are the same tensors with the same bits; so are gradients, `requires_grad` and the mode of each
    module. A copy of weights and buffers is made beside them.
    """
    parameters = [(one, one.data, one.detach().clone(), one.requires_grad, one.grad) for one in model.parameters()]
    modules = [(one, one.training, dict(one._buffers)) for one in model.modules()]
    buffers = [(one, one.detach().clone()) for one in model.buffers()]
    try:
        for parameter, *_ in parameters:
            parameter.grad = None  # a backward pass would add to it in place
        yield
    finally:
        with torch.no_grad():
            for parameter, data, values, requires_grad, grad in parameters:
                data.copy_(values)
                parameter.data, parameter.requires_grad, parameter.grad = data, requires_grad, grad
            for buffer, values in buffers:
                buffer.copy_(values)
        for module, is_training, own in modules:
            module.training = is_training
            module._buffers.clear()
            module._buffers.update(own)


class Mover:
    """Moves a model over a plane.

    Args:
        model: Its weights and buffers are written to; see `kept`.
        plane: Where to.

    Raises:
        LandscapeError: The model is not the plane's, or its parameters are sharded.
    """

    def __init__(self, model: Module, plane: Plane) -> None:
        plane.layout.check_model(model)
        self.model, self.layout, self.buffers = model, plane.layout, plane.buffers()
        self.values = parameters_of(model, plane.layout.names)
        for name, value in self.values.items():
            if is_dtensor(value):
                raise LandscapeError(f"parameter {name!r} is sharded; give the model with its whole weights")
        self.vectors = [vector.mapped() for vector in plane.vectors()]

    def to(self, x: float, y: float) -> None:
        """Give the model the weights at (x, y), the buffers of the plane's origin, and evaluation mode."""
        with torch.no_grad():
            for part, place in self.layout.places():
                origin, first, second = (vector[place] for vector in self.vectors)
                self.values[part.name].copy_(tensor(np.asarray(origin + x * first + y * second), part))
        put_buffers(self.model, self.buffers)
        self.model.eval()


def running_layers(model: Module) -> list[_NormBase]:
    """Return the normalisation layers that keep running statistics."""
    layers = (one for one in model.modules() if isinstance(one, _NormBase))
    return [one for one in layers if one.running_mean is not None]


def recompute_statistics(model: Module, recompute: Callable[[Module], object]) -> None:
    """Compute running statistics anew: the mean over the batches that `recompute` runs through the model.

    Only the normalisation layers are in training mode meanwhile: dropout stays off, as it is for the loss.

    Raises:
        LandscapeError: No batch went through the layers.
    """
    layers = running_layers(model)
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum, layer.training = None, True  # None: all batches count alike
        with torch.no_grad():
            recompute(model)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum, layer.training = momentum, False
    if layers and not any(layer.num_batches_tracked for layer in layers):
        raise LandscapeError("`recompute` ran no batch through the model; it must, for BatchNorm's statistics")
