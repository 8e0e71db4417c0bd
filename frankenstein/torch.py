"""The Frankenstein optimizer for PyTorch: `frankenstein.rule` with the plumbing of `torch.optim.Optimizer`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, _use_grad_for_differentiable

from frankenstein.rule import STATE_KEYS, Rule, State, as_rule, gradient_limit, rule_config, update
from frankenstein.torch_checkpoint import translated

__all__ = ["Frankenstein"]

NONFINITE = ("propagate", "skip", "raise")
MIN_EPS = torch.finfo(torch.float32).tiny  # a smaller eps is 0 in float32, and then 0 / 0
# Float16 state breaks at once: 1e-8 rounds to 0. What is not named here has float32 state.
STATE_DTYPES = {dtype: dtype for dtype in (torch.float64, torch.complex64, torch.complex128)} | {
    torch.complex32: torch.complex64
}


class Frankenstein(Optimizer):
    """The Frankenstein optimizer (Algorithm 1 of arXiv:2503.02147) for PyTorch.

    A drop-in replacement for `torch.optim.AdamW`: schedulers, parameter groups, closures, hooks, checkpoints and
    `GradScaler` work as with torch's own optimizers. Parameters in float16 and bfloat16 keep float32 state, also
    through `load_state_dict`. The step is larger than Adam's at the same `lr` (up to tenfold at rest), so tune `lr`
    anew; `frankenstein compare` does that on equal terms.

    Args:
        params: Parameters, named parameters, or parameter groups, as in `torch.optim`.
        lr: Learning rate, a number or a one-element tensor, at least 0. Where it is 0, nothing changes.
        eps: Floor of the squared gradient, at least 1.2e-38.
        momentum: First momentum coefficient (beta1) at `lr == base_lr`, in [0, 1). beta1 follows the learning rate by
            eq. 3 each time that changes. `OneCycleLR` and `CyclicLR` cycle it.
        base_lr: Learning rate at which beta1 is `momentum`; the paper suggests 1e-3 from scratch and 2e-4 for
            fine-tuning.
        weight_decay: Decoupled weight decay: parameters shrink by `lr * weight_decay` each step.
        rule: `"paper"`, `"authors"` (the constants of the authors' released code), or a `frankenstein.rule.Rule`.
        nonfinite: What to do with a gradient element that is NaN, infinite or beyond
            `frankenstein.rule.gradient_limit`: `"propagate"` computes on, as torch's optimizers do (a NaN then stays in
            the state for ever); `"skip"` leaves the element's parameter and state as they are; `"raise"` raises before
            anything is changed (it waits for the device at every step).
        maximize: Maximize the objective instead of minimizing it.
        differentiable: Let autograd record the step.

    Raises:
        ValueError: An argument is outside its range; the message names it and says what is allowed.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> optimizer = Frankenstein(model.parameters(), lr=1e-3)
        >>> loss = model(torch.ones(1, 2)).sum()
        >>> loss.backward()
        >>> optimizer.step()
        >>> print(f"{model.weight[0, 0].item():.6f}")
        0.998101
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        eps: float = 1e-8,
        momentum: float = 0.9,
        base_lr: float = 1e-3,
        weight_decay: float = 0.0,
        rule: str | Rule = "paper",
        nonfinite: Literal["propagate", "skip", "raise"] = "propagate",
        maximize: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "eps": eps,
            "momentum": momentum,
            "base_lr": base_lr,
            "weight_decay": weight_decay,
            "rule": rule_config(rule),
            "nonfinite": nonfinite,
            "maximize": maximize,
            "differentiable": differentiable,
        }
        _check_options(defaults)
        if hasattr(params, "get_positions"):  # the class of the same name for ASE is meant
            raise TypeError("params are atoms; for these: from frankenstein.ase import Frankenstein")
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, also between steps; options it does not name are the constructor's.

        Raises:
            ValueError: An option is outside its range, or a parameter is already in another group.
        """
        if isinstance(param_group, dict):  # else torch says what is wrong
            if "rule" in param_group:
                param_group["rule"] = rule_config(param_group["rule"])
            _check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        # A tied parameter listed twice moves once; torch has warned about it.
        group = self.param_groups[-1]
        first: dict[int, int] = {}
        for i, param in enumerate(group["params"]):
            first.setdefault(id(param), i)
        for key in group.keys() & {"params", "param_names"}:
            group[key] = [group[key][i] for i in first.values()]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:  # a checkpoint from before an option existed
            for key, value in self.defaults.items():
                group.setdefault(key, value)

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned: bitwise, in the state's own dtype, on the parameters' devices.

        torch would cast the state to the parameters' dtype, which rounds the float32 state of bfloat16 parameters. The
        caller's dictionary is neither changed nor kept. Checkpoints of the authors' released code load too, and go on
        as that code does.

        Raises:
            ValueError: The state is another optimizer's, or the groups do not match. Nothing has changed then.
        """
        final: dict[str, Any] = {}

        def take(_: Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:  # after the user's own hooks
            final.update(translated(loaded))
            return final

        def restore(_: Optimizer) -> None:  # before the user's own hooks
            for saved, group in zip(final["param_groups"], self.param_groups, strict=True):
                for key, param in zip(saved["params"], group["params"], strict=True):
                    for name, value in final["state"].get(key, {}).items():
                        if isinstance(value, Tensor) and name in STATE_KEYS:
                            self.state[param][name] = value.detach().to(param.device, _state_dtype(param), copy=True)

        before = self.register_load_state_dict_pre_hook(take)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Perform one step; return what `closure` returned, if one was given.

        Raises:
            RuntimeError: A gradient is sparse; or `nonfinite="raise"` and a gradient is not finite. No parameter of any
                group has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._refuse_sparse_gradients()
        self._refuse_nonfinite_gradients()
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            states = State([], [], [])
            self._init_group(group, params, grads, *states)
            _step_each(
                params,
                grads,
                states,
                lr=group["lr"],
                eps=float(group["eps"]),
                momentum=float(group["momentum"]),
                base_lr=float(group["base_lr"]),
                weight_decay=float(group["weight_decay"]),
                rule=as_rule(group["rule"]),
                skip_nonfinite=group["nonfinite"] == "skip",
                maximize=group["maximize"],
                differentiable=group["differentiable"],
            )
        return loss

    def _init_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *states: list[Tensor]
    ) -> None:
        """Append what the group's parameters with a gradient step with; make the state that is missing.

        Name and shape are those of torch's optimizers: `torch.compile` runs a method so called instead of tracing it,
        and then compiles the same step for the first call and for all later ones.
        """
        for param in group["params"]:
            if param.grad is None:
                continue
            state = self.state[param]
            if STATE_KEYS[0] not in state:  # it may hold a user's own entries
                for key in STATE_KEYS:
                    state[key] = torch.zeros_like(param, dtype=_state_dtype(param), memory_format=torch.preserve_format)
            params.append(param)
            grads.append(param.grad)
            for key, tensors in zip(STATE_KEYS, states, strict=True):
                tensors.append(state[key])

    def _with_gradient(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield group index, index in the group, and gradient."""
        for i, group in enumerate(self.param_groups):
            for j, param in enumerate(group["params"]):
                if param.grad is not None:
                    yield i, j, param.grad

    def _name(self, i: int, j: int) -> str:
        names = self.param_groups[i].get("param_names")
        return f"{names[j]!r}" if names else f"{j} of group {i}"

    def _refuse_sparse_gradients(self) -> None:
        for i, j, grad in self._with_gradient():
            if grad.layout != torch.strided:
                raise RuntimeError(
                    f"Frankenstein does not support sparse gradients: parameter {self._name(i, j)} has a gradient "
                    f"of layout {grad.layout}. Use sparse=False in the layer, or torch.optim.SparseAdam for this one."
                )

    def _refuse_nonfinite_gradients(self) -> None:
        """Count on the devices, and wait for each of them once; look for the parameter only if there is one to name."""
        counts: dict[tuple[int, int], Tensor] = {}
        for i, j, grad in self._with_gradient():
            group = self.param_groups[i]
            if group["nonfinite"] == "raise":
                grad = _real(grad).to(_compute_dtype(group["params"][j]))
                counts[i, j] = (~_is_usable(grad, group["eps"])).sum()
        by_device: dict[torch.device, list[Tensor]] = {}
        for count in counts.values():
            by_device.setdefault(count.device, []).append(count)
        if any(torch.stack(of_device).any().item() for of_device in by_device.values()):
            (i, j), n_bad = next((key, int(count)) for key, count in counts.items() if count)
            group = self.param_groups[i]
            limit = gradient_limit(torch, _compute_dtype(group["params"][j]), group["eps"])
            raise RuntimeError(
                f"parameter {self._name(i, j)} has {n_bad} gradient elements that are NaN, infinite or larger than "
                f"{limit:.1e}; nothing was changed (nonfinite='raise')"
            )


def _step_each(
    params: list[Tensor],
    grads: list[Tensor],
    states: State,
    *,
    lr: float | Tensor,
    eps: float,
    momentum: float,
    base_lr: float,
    weight_decay: float,
    rule: Rule,
    skip_nonfinite: bool,
    maximize: bool,
    differentiable: bool,
) -> None:
    """Move parameters, one after the other, by the rule and their decoupled weight decay; write parameters and state.

    Plain tensor operations, for every device and dtype. `states` holds one list of tensors for each part of the state;
    the options are the class's, with `skip_nonfinite` for `nonfinite="skip"`. Gradients are never modified.
    """
    for param, grad, *state in zip(params, grads, *states, strict=True):
        grad = _real(grad).to(_compute_dtype(param))
        grad = -grad if maximize else grad
        # Two 0-dim tensors promote each other: a float64 lr would make a float32 scalar parameter's state float64.
        rate = lr.reshape(()).to(grad.device, grad.dtype) if isinstance(lr, Tensor) else float(lr)
        theta = _real(param).to(grad.dtype, copy=differentiable)
        old = State(*map(_real, state))
        before = State(*(tensor.clone() for tensor in old)) if differentiable else old

        delta, after = update(
            torch,
            grad,
            before,
            lr=rate,
            eps=eps,
            momentum=momentum,
            base_lr=base_lr,
            rule=rule,
            skip_nonfinite=skip_nonfinite,
        )
        moved = (theta * (1 - rate * weight_decay) if weight_decay else theta) + delta
        if skip_nonfinite and weight_decay:
            moved = torch.where(_is_usable(grad, eps), moved, theta)

        param.copy_(_like(param, moved))
        for tensor, new in zip(old, after, strict=True):
            tensor.copy_(new)


def _real(tensor: Tensor) -> Tensor:
    """View a complex tensor as pairs of real numbers: the rule treats them as independent parameters."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _like(param: Tensor, real: Tensor) -> Tensor:
    """Undo `_real`."""
    return torch.view_as_complex(real) if param.is_complex() else real


def _state_dtype(param: Tensor) -> torch.dtype:
    return STATE_DTYPES.get(param.dtype, torch.float32)


def _compute_dtype(param: Tensor) -> torch.dtype:
    return torch.float64 if param.dtype in (torch.float64, torch.complex128) else torch.float32


def _is_usable(grad: Tensor, eps: float) -> Tensor:
    return grad.abs() <= gradient_limit(torch, grad.dtype, eps)  # False for NaN


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise `ValueError` naming the first option that is outside its range."""
    lr = options["lr"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"Invalid lr: a tensor of {lr.numel()} elements; Tensor lr must be 1-element")
        lr = 0.0 if lr.is_meta else lr.item()  # a meta tensor has no value yet
    _check_number("lr", lr, 0.0, math.inf, "a finite number >= 0")
    _check_number(
        "eps", options["eps"], MIN_EPS, math.inf, f"a finite number >= {MIN_EPS:.2g} (smaller is 0 in float32)"
    )
    _check_number("momentum", options["momentum"], 0.0, 1.0, "a number in [0, 1)")
    _check_number("base_lr", options["base_lr"], math.ulp(0.0), math.inf, "a finite number > 0")
    _check_number("weight_decay", options["weight_decay"], 0.0, math.inf, "a finite number >= 0")
    as_rule(options["rule"])
    if options["nonfinite"] not in NONFINITE:
        raise ValueError(f"Invalid nonfinite: {options['nonfinite']!r}; allowed are {', '.join(map(repr, NONFINITE))}")
    for name in ("maximize", "differentiable"):
        if not isinstance(options[name], bool):
            raise ValueError(f"Invalid {name}: {options[name]!r}; allowed are True and False")


def _check_number(name: str, value: Any, low: float, high: float, allowed: str) -> None:
    """`low <= value < high`, and a number: a string or a bool is a slip in some configuration file."""
    if isinstance(value, bool) or not isinstance(value, Real) or not low <= float(value) < high:
        raise ValueError(f"Invalid {name}: {value!r}; allowed is {allowed}")
