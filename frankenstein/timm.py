"""The name "frankenstein" for timm: importing this module registers it, once, for everything in timm that takes a name.

`timm.optim.create_optimizer_v2(model, opt="frankenstein", lr=1e-3, weight_decay=0.05)` then makes the optimizer, on
timm's groups, with layer-wise learning rates if asked; so does its training script with `--opt frankenstein`.
"""

from __future__ import annotations

from timm.optim._optim_factory import OptimInfo, default_registry

from frankenstein.torch import Frankenstein

default_registry.register(
    OptimInfo(
        name="frankenstein",  # without underscore: timm looks up what follows the last one
        opt_class=Frankenstein,
        description="Frankenstein: momentum that follows the learning rate and how gradients turn (arXiv:2503.02147)",
        has_eps=True,
        has_momentum=True,  # timm passes `momentum`, 0.9 unless told, which is ours too
        has_betas=False,
    )
)
