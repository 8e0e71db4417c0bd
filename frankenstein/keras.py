"""The Frankenstein optimizer for Keras 3, on whichever backend it runs: `frankenstein.rule` on `keras.ops`."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

try:
    import keras
    from keras import ops
except ModuleNotFoundError as error:
    needs = "frankenstein.keras needs Keras; pip install '.[keras]' (in the checkout), and torch, JAX or TensorFlow"
    if error.name != "keras":
        needs = f"Keras needs {error.name} as it is set; install that, or set KERAS_BACKEND to another beforehand"
    raise ImportError(needs, name=error.name) from error

import numpy as np

from frankenstein.options import check_numbers
from frankenstein.rule import Rule, State, as_rule, rule_config, update

__all__ = ["Frankenstein"]


def _namespace() -> Any:
    """Return the array namespace of the backend; `keras.ops` where the rule does not run on the backend's own.

    Some of `keras.ops` make float32 of float64: `maximum` on torch, `arctan` on JAX.
    """
    name = keras.backend.backend()
    if name in ("torch", "jax"):
        return import_module({"torch": "torch", "jax": "jax.numpy"}[name])
    same = ("zeros_like", "ones_like", "full_like", "where", "maximum", "clip", "abs", "sqrt", "exp", "log", "tanh")
    return SimpleNamespace(
        **{one: getattr(ops, one) for one in same},
        atan=ops.arctan,
        finfo=lambda dtype: np.finfo(keras.backend.standardize_dtype(dtype)),
    )


XP = _namespace()


@keras.saving.register_keras_serializable("frankenstein")
class Frankenstein(keras.optimizers.Optimizer):
    """The Frankenstein optimizer (Algorithm 1 of arXiv:2503.02147) for Keras.

    Stands where `keras.optimizers.AdamW` does: `model.compile(optimizer=Frankenstein(1e-3), ...)`. The step is larger
    than Adam's at the same learning rate (up to tenfold at rest), so tune that anew. State is float32, or float64 for
    float64 variables, whatever the precision of the variables.

    Args:
        learning_rate: A float, at least 0, a `keras.optimizers.schedules.LearningRateSchedule`, or a callable. Where it
            is 0, nothing changes.
        epsilon: Floor of the squared gradient, at least 1.2e-38.
        momentum: First momentum coefficient (beta1) at `learning_rate == base_lr`, in [0, 1); it follows the learning
            rate by eq. 3.
        base_lr: Learning rate at which beta1 is `momentum`; the paper suggests 1e-3 from scratch and 2e-4 for
            fine-tuning.
        rule: `"paper"`, `"authors"` (the constants of the authors' released code), or a `frankenstein.rule.Rule`.
        skip_nonfinite: Elements whose gradient is NaN, infinite or beyond `frankenstein.rule.gradient_limit` neither
            move nor change their state.
        **kwargs: What every Keras optimizer has: `weight_decay` (decoupled), `clipnorm`, `clipvalue`,
            `global_clipnorm`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor`,
            `gradient_accumulation_steps`, `name`.

    Raises:
        ValueError: An argument is outside its range or not known, or the learning rate is an int.

    Examples:
        >>> import keras
        >>> from frankenstein.keras import Frankenstein
        >>> weight = keras.Variable([1.0, 1.0])
        >>> Frankenstein(1e-3).apply([keras.ops.ones(2)], [weight])
        >>> print(f"{keras.ops.convert_to_numpy(weight)[0]:.6f}")
        0.998101
    """

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        epsilon: float = 1e-8,
        momentum: float = 0.9,
        base_lr: float = 1e-3,
        rule: str | Rule = "paper",
        skip_nonfinite: bool = False,
        **kwargs: Any,
    ) -> None:
        if isinstance(learning_rate, float):
            check_numbers(learning_rate=learning_rate)
        if kwargs.get("weight_decay") is not None:
            check_numbers(weight_decay=kwargs["weight_decay"])
        check_numbers(epsilon=epsilon, momentum=momentum, base_lr=base_lr)
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.epsilon, self.momentum, self.base_lr = epsilon, momentum, base_lr
        self.rule = rule_config(rule)
        self.skip_nonfinite = skip_nonfinite

    def build(self, variables: list[Any]) -> None:
        """Make the state, three numbers for each of the variables' own; a second time it does nothing."""
        if self.built:
            return
        super().build(variables)
        self._momentum_buffers, self._second_moments, self._squared_grads = (
            [self._state_like(variable, name) for variable in variables]
            for name in ("momentum_buffer", "second_moment", "squared_grad")
        )

    def _state_like(self, variable: Any, name: str) -> Any:
        return self.add_variable(
            shape=variable.shape,
            dtype=_at_least_float32(variable.dtype),
            layout=getattr(variable, "_layout", None),
            name=f"{variable.path.replace('/', '_')}_{name}",
        )

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update a variable and its state."""
        i, dtype = self._get_variable_index(variable), _at_least_float32(variable.dtype)
        kept = (self._momentum_buffers[i], self._second_moments[i], self._squared_grads[i])
        delta, state = update(
            XP,
            ops.cast(gradient, dtype),
            State(*map(ops.convert_to_tensor, kept)),
            lr=ops.cast(learning_rate, dtype),
            eps=self.epsilon,
            momentum=self.momentum,
            base_lr=self.base_lr,
            rule=as_rule(self.rule),
            skip_nonfinite=self.skip_nonfinite,
        )
        for buffer, value in zip(kept, state, strict=True):
            self.assign(buffer, value)
        self.assign(variable, ops.cast(ops.cast(variable, dtype) + delta, variable.dtype))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain data."""
        names = ("epsilon", "momentum", "base_lr", "rule", "skip_nonfinite")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def _at_least_float32(dtype: str) -> str:
    return "float64" if dtype == "float64" else "float32"
