"""Watch the layers of a model while it is called: hooks that reduce each output at once and leave nothing behind."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from frankenstein.analysis.hsic import Centred, Kernel, SimilarityError, centred_kernel

Forward = Callable[[nn.Module, Any], Any]


def forward_batch(model: nn.Module, batch: Any) -> Any:
    """Call the model as its batch suggests, on the model's device.

    Args:
        model: Called once.
        batch: A tensor; a mapping, whose items are the model's keyword arguments; or a tuple or list, of which the
            first part, one of these, is the input and the rest (labels) is not used.
    """
    if isinstance(batch, tuple | list):
        return forward_batch(model, batch[0])
    parameter = next(model.parameters(), None)

    def moved(value: Any) -> Any:
        return value.to(parameter.device) if isinstance(value, Tensor) and parameter is not None else value

    if isinstance(batch, Mapping):
        return model(**{name: moved(value) for name, value in batch.items()})
    return model(moved(batch))


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor that is no scalar in a tensor, tuple, list, mapping or dataclass, however deep."""
    if isinstance(value, Tensor):
        return value if value.ndim > 0 and value.layout == torch.strided else None
    if isinstance(value, Mapping):
        value = tuple(value.values())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = tuple(getattr(value, field.name) for field in dataclasses.fields(value))
    if not isinstance(value, tuple | list):
        return None
    return next((found for part in value if (found := first_tensor(part)) is not None), None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into eval mode; give it the modes and buffers back that it had, whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    try:
        model.eval()
        yield
    finally:
        model.train(modes[0][1])  # for models that do more in it than to set the mode
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, values in buffers:
                if not torch.equal(buffer, values):  # else left alone: a backward pass may still need it as it is
                    buffer.copy_(values)
                setattr(module, name, buffer)


def _eager() -> AbstractContextManager[Any]:
    """Run what is compiled as it was written: compiled code calls no hooks that came after it."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and to load it takes a second
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def _chosen(model: nn.Module, role: str, names: Sequence[str] | None) -> list[tuple[str, nn.Module]]:
    """Return the modules that get hooks, with their names: those named, or all that may be layers."""
    if names is None:
        lists = [module for module in model.modules() if isinstance(module, ParametrizationList)]
        of_weights = {part for module in lists for part in module.modules()}  # called, but never on samples
        return [(name, module) for name, module in model.named_modules() if module not in of_weights]
    if isinstance(names, str) or not names:
        raise SimilarityError(f"layers of the {role} must be a list of names; got {names!r}")
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        if name not in modules:
            near = get_close_matches(str(name), modules, n=3) or [known for known in modules if known][:3]
            raise SimilarityError(f"the {role} has no layer {name!r}; it has {', '.join(map(repr, near))}, ...")
    return [(name, modules[name]) for name in dict.fromkeys(names)]


class Watch:
    """What hooks see of a model while one batch goes through it: a centred kernel matrix per call of a layer.

    Args:
        model: Has hooks while it is called, and only then: another one may share modules with it.
        role: What messages call it.
        asked: Names of layers. None: every module that calls no other that counts and gives a row per sample.
        kernel: Of the kernel matrices.
        forward: Calls the model on a batch.

    Raises:
        SimilarityError: There is no such layer.
    """

    def __init__(
        self, model: nn.Module, role: str, asked: Sequence[str] | None, kernel: Kernel, forward: Forward
    ) -> None:
        self.model, self.role, self.asked, self.kernel, self.forward = model, role, asked, kernel, forward
        self.names: tuple[str, ...] = ()
        self._modules = _chosen(model, role, asked)
        self._reset(0)

    def _reset(self, n_samples: int) -> None:
        self._n_samples = n_samples
        self._found: dict[str, Centred] = {}
        self._n_calls: Counter[str] = Counter()
        self._n_before: dict[str, int] = {}
        self._place = "before its first layer"

    def kernels(self, batch: Any, n_samples: int, where: str) -> Tensor:
        """Return the centred kernel matrices (n_layers, n_samples²) of one batch; `names` says of which layers.

        Raises:
            SimilarityError: The model fails; it calls other layers than before, or none; activations are not finite.
        """
        self._reset(n_samples)
        try:
            # not inference_mode: what a model caches must stay fit for training
            with self._hooks(), _eager(), torch.no_grad():
                self.forward(self.model, batch)
        except SimilarityError as error:
            raise SimilarityError(f"{error} ({where})") from None
        except Exception as error:
            reason = (str(error) or "no message").splitlines()[0]
            raise SimilarityError(
                f"the {self.role} failed {self._place} ({where}): {type(error).__name__}: {reason}"
            ) from error
        self._check(where)
        found, self._found = list(self._found.values()), {}
        return torch.stack([part.values.flatten().to(found[0].values.device) for part in found])

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        with ExitStack() as undo:
            for name, module in self._modules:
                undo.callback(module.register_forward_pre_hook(partial(self._enter, name)).remove)
                undo.callback(module.register_forward_hook(partial(self._leave, name)).remove)
            yield

    def _enter(self, name: str, module: nn.Module, inputs: Any) -> None:
        self._place = f"in layer {name!r}" if name else self._place
        self._n_before[name] = len(self._found)

    def _leave(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        self._place = f"after layer {name!r}" if name else self._place
        if self.asked is None and len(self._found) > self._n_before[name]:
            return  # a block, whose layers have been seen
        rows = first_tensor(output)
        if rows is None or len(rows) != self._n_samples:
            if self.asked is None:
                return
            seen = f"a {type(output).__name__} without a tensor" if rows is None else f"shape {tuple(rows.shape)}"
            raise SimilarityError(
                f"layer {name!r} of the {self.role} must give a row for each of {self._n_samples} samples; got {seen}"
            )
        count = self._n_calls[name]
        self._n_calls[name] += 1
        self._found[f"{name}:{count}" if count else name] = centred_kernel(rows, self.kernel)

    def _check(self, where: str) -> None:
        names = tuple(self._found)
        for name in self.asked or ():
            if name not in self._n_calls:
                raise SimilarityError(f"the {self.role} did not call its layer {name!r} ({where})")
        if not names:
            raise SimilarityError(
                f"the {self.role} called no layer that gives a row for each of {self._n_samples} samples ({where}); "
                "DataParallel and TorchScript hide layers: give the module inside"
            )
        self.names = self.names or names
        if names != self.names:
            other = sorted(set(names) ^ set(self.names)) or ["the order"]
            raise SimilarityError(
                f"the {self.role} called other layers than before ({where}): {', '.join(other[:3])}; name the layers "
                "that each batch has"
            )
        is_finite = [part.is_finite for part in self._found.values()]
        finite = torch.stack([flag.to(is_finite[0].device) for flag in is_finite]).tolist()  # the one wait for a GPU
        if not all(finite):
            name = names[finite.index(False)]
            raise SimilarityError(f"activations of layer {name!r} of the {self.role} are not finite ({where})")
