"""The Frankenstein optimizer for PyTorch: `frankenstein.rule` with the plumbing of `torch.optim.Optimizer`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, _use_grad_for_differentiable

from frankenstein import kernels
from frankenstein.kernels import state as formats
from frankenstein.kernels.plain import compute_dtype, is_usable, real
from frankenstein.options import check_numbers
from frankenstein.rule import STATE_KEYS, Rule, as_rule, gradient_limit, rule_config
from frankenstein.torch_checkpoint import check_codes, check_shapes, translated

__all__ = ["Frankenstein"]

NONFINITE = ("propagate", "skip", "raise")
HOW_TO_STEP = ("foreach", "fused", "capturable")  # what the machine decides, not the checkpoint


class Frankenstein(Optimizer):
    """The Frankenstein optimizer (Algorithm 1 of arXiv:2503.02147) for PyTorch.

    A drop-in replacement for `torch.optim.AdamW`: schedulers, parameter groups, closures, hooks, checkpoints and
    `GradScaler` work as with torch's own optimizers. State keeps its own dtype, whatever that of the parameters, also
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
        state_dtype: How the state is stored: `"float32"` (12 bytes per parameter), `"bfloat16"` (6) or `"8bit"` (3;
            vectors and tensors of fewer than 4,096 elements stay float32), or the torch dtype of that name. float64 and
            complex parameters have state of their own dtype. Changed in a group, it holds from the next step on.
        kahan_sum: Keep, in a second tensor of their dtype, what float16 and bfloat16 parameters cannot hold, so that no
            update is lost to rounding (2 bytes per parameter). None: do so for these; True is the same; False: round.
        foreach: Use operations on lists of tensors. None: on GPUs that have no fused kernel.
        maximize: Maximize the objective instead of minimizing it.
        capturable: Keep `lr` in a tensor on the parameters' device, so that a captured CUDA graph follows it.
        differentiable: Let autograd record the step.
        fused: True: insist on the fused kernel (float32 and bfloat16 on the CPU and on CUDA). None: use it where it is
            to be had; `frankenstein doctor` says where. False: the operations of `frankenstein.rule`, one by one.

    Raises:
        ValueError: An argument is outside its range; the message names it and says what is allowed.
        RuntimeError: Arguments exclude each other: two of `fused`, `foreach` and `differentiable`.

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
        state_dtype: str | torch.dtype = "float32",
        kahan_sum: bool | None = None,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "eps": eps,
            "momentum": momentum,
            "base_lr": base_lr,
            "weight_decay": weight_decay,
            "rule": rule_config(rule),
            "nonfinite": nonfinite,
            "state_dtype": _state_dtype_name(state_dtype),
            "kahan_sum": kahan_sum,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
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
            if "state_dtype" in param_group:
                param_group["state_dtype"] = _state_dtype_name(param_group["state_dtype"])
            _check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)
        # A tied parameter listed twice moves once; torch has warned about it.
        group = self.param_groups[-1]
        first: dict[int, int] = {}
        for i, param in enumerate(group["params"]):
            first.setdefault(id(param), i)
        for key in group.keys() & {"params", "param_names"}:
            group[key] = [group[key][i] for i in first.values()]
        _place_lr(group)

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
            for saved, group in zip(final["param_groups"], self.param_groups, strict=False):
                saved.update({key: group[key] for key in HOW_TO_STEP})
                check_shapes(saved, group["params"], final["state"])
                check_codes(saved, group["params"], final["state"])
            return final

        def restore(_: Optimizer) -> None:  # before the user's own hooks
            for saved, group in zip(final["param_groups"], self.param_groups, strict=True):
                for key, param in zip(saved["params"], group["params"], strict=True):
                    for name, value in final["state"].get(key, {}).items():
                        if isinstance(value, Tensor) and name in (*STATE_KEYS, formats.EXPONENTS):
                            kept = value.dtype in (torch.uint8, torch.bfloat16)
                            dtype = value.dtype if kept else formats.storage_of(param, "float32")
                            self.state[param][name] = value.detach().to(param.device, dtype, copy=True)

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
        self._refuse_capture()
        self._refuse_sparse_gradients()
        self._refuse_nonfinite_gradients()
        for group in self.param_groups:
            if not torch.compiler.is_compiling():  # the compiler calls every group capturable
                _place_lr(group)
            batch = kernels.Batch()
            self._init_group(group, *batch.lists())
            options = kernels.Options(
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
            kernels.step(batch, options, foreach=group["foreach"], fused=group["fused"])
        return loss

    def _init_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *states: list[Tensor | None]
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
                state.update(formats.new(param, group["state_dtype"]))
            elif state[STATE_KEYS[0]].dtype != formats.storage_of(param, group["state_dtype"]):
                changed = formats.converted(param, state, group["state_dtype"])
                state.pop(formats.EXPONENTS, None)
                state.update(changed)
            is_compensated = group["kahan_sum"] is not False and param.dtype in formats.LOW_PRECISION
            if is_compensated and formats.COMPENSATION not in state:
                state[formats.COMPENSATION] = torch.zeros_like(param, memory_format=torch.preserve_format)
            params.append(param)
            grads.append(param.grad)
            for key, tensors in zip(STATE_KEYS, states, strict=False):
                tensors.append(state[key])
            states[-2].append(state.get(formats.EXPONENTS))
            states[-1].append(state[formats.COMPENSATION] if is_compensated else None)

    def _with_gradient(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield group index, index in the group, and gradient."""
        for i, group in enumerate(self.param_groups):
            for j, param in enumerate(group["params"]):
                if param.grad is not None:
                    yield i, j, param.grad

    def _name(self, i: int, j: int) -> str:
        names = self.param_groups[i].get("param_names")
        return f"{names[j]!r}" if names else f"{j} of group {i}"

    def _refuse_capture(self) -> None:
        if torch.compiler.is_compiling() or all(group["capturable"] for group in self.param_groups):
            return
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("a CUDA graph captures step(), and a group is not capturable; set capturable=True")

    def _refuse_sparse_gradients(self) -> None:
        for i, j, grad in self._with_gradient():
            if grad.layout != torch.strided:
                raise RuntimeError(
                    f"Frankenstein does not support sparse gradients: parameter {self._name(i, j)} has a gradient "
                    f"of layout {grad.layout}. Use sparse=False in the layer, or torch.optim.SparseAdam for this one."
                )

    def _refuse_nonfinite_gradients(self) -> None:
        """Count where the gradients are, and wait for each place once.

        Of sharded parameters, every process counts what all of them hold: one that raised alone would have the others
        move, and wait for it.
        """
        counts: dict[Any, dict[tuple[int, int], Tensor]] = {}
        for i, j, grad in self._with_gradient():
            group = self.param_groups[i]
            if group["nonfinite"] == "raise":
                param = group["params"][j]
                grad = real(kernels.local_gradient(param, grad)).to(compute_dtype(param))
                place = formats.sharding(param) or grad.device
                counts.setdefault(place, {})[i, j] = (~is_usable(grad, group["eps"])).sum()
        totals = {place: formats.summed(torch.stack([*of.values()]), place) for place, of in counts.items()}
        if any(total.any().item() for total in totals.values()):
            of_each = ((key, n) for place, of in counts.items() for key, n in zip(of, totals[place], strict=True))
            (i, j), n_bad = next((key, int(n)) for key, n in of_each if n)
            group = self.param_groups[i]
            limit = gradient_limit(torch, compute_dtype(group["params"][j]), group["eps"])
            raise RuntimeError(
                f"parameter {self._name(i, j)} has {n_bad} gradient elements that are NaN, infinite or larger than "
                f"{limit:.1e}; nothing was changed (nonfinite='raise')"
            )


def _place_lr(group: dict[str, Any]) -> None:
    """Keep the learning rate of a capturable group in a tensor where its parameters are."""
    if group["capturable"] and group["params"] and not isinstance(group["lr"], Tensor):
        group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float32, device=group["params"][0].device)


def _state_dtype_name(state_dtype: Any) -> Any:
    """Return the name, which every checkpoint format keeps as it is."""
    names = {dtype: name for name, dtype in formats.STORAGE.items() if name != "8bit"}
    return names.get(state_dtype, state_dtype) if isinstance(state_dtype, torch.dtype) else state_dtype


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise `ValueError` naming the first option that is outside its range."""
    lr = options["lr"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"Invalid lr: a tensor of {lr.numel()} elements; Tensor lr must be 1-element")
        lr = 0.0 if lr.is_meta else lr.item()  # a meta tensor has no value yet
    check_numbers(lr=lr, **{name: options[name] for name in ("eps", "momentum", "base_lr", "weight_decay")})
    as_rule(options["rule"])
    if options["nonfinite"] not in NONFINITE:
        raise ValueError(f"Invalid nonfinite: {options['nonfinite']!r}; allowed are {', '.join(map(repr, NONFINITE))}")
    for name in ("maximize", "capturable", "differentiable"):
        if not isinstance(options[name], bool):
            raise ValueError(f"Invalid {name}: {options[name]!r}; allowed are True and False")
    for name in ("kahan_sum", "foreach", "fused"):
        if options[name] is not None and not isinstance(options[name], bool):
            raise ValueError(f"Invalid {name}: {options[name]!r}; allowed are True, False and None")
    if options["state_dtype"] not in formats.FORMATS:
        raise ValueError(
            f"Invalid state_dtype: {options['state_dtype']!r}; allowed are {', '.join(map(repr, formats.FORMATS))}"
        )
    _check_together(options)


def _check_together(options: Mapping[str, Any]) -> None:
    """Raise where options exclude each other."""
    on = [name for name in ("fused", "foreach", "differentiable") if options[name]]
    if len(on) > 1:
        raise RuntimeError(f"`{on[0]}` and `{on[1]}` cannot be True together")
    if options["fused"] and (lacking := kernels.unfusable(as_rule(options["rule"]))):
        raise RuntimeError(f"fused=True: there is no kernel for {lacking}; fused=None takes it where there is one")
    if options["differentiable"] and options["state_dtype"] != "float32":
        raise RuntimeError(f"`differentiable` needs state_dtype='float32', not {options['state_dtype']!r}")
    if options["capturable"] and options["nonfinite"] == "raise":
        raise RuntimeError("`capturable` excludes nonfinite='raise', which waits for the device; take 'skip'")
