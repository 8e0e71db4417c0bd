"""The relaxation rule as a torch-sim optimizer: many structures at once, with fixed or relaxed cells.

    ts.optimize(structures, model, optimizer=frankenstein, ...)     torch-sim 0.3, and 0.5 on
    relax(structures, model, fmax=0.05)                             the same, and which converged and why not

The step is that of `frankenstein.relaxation`; here is where its memory lives (in the state, so that torch-sim can take
systems out of a batch and add others) and how a cell becomes three more rows beside the atoms. See docs/torchsim.md.
"""

from frankenstein.torchsim.model import TorchSimModel
from frankenstein.torchsim.optimizer import (
    frankenstein,
    frankenstein_init,
    frankenstein_step,
    is_done,
    optimizer_settings,
    relax,
    results,
)
from frankenstein.torchsim.state import FrankensteinCellState, FrankensteinState, Result, Settings

__all__ = [
    "FrankensteinCellState",
    "FrankensteinState",
    "Result",
    "Settings",
    "TorchSimModel",
    "frankenstein",
    "frankenstein_init",
    "frankenstein_step",
    "is_done",
    "optimizer_settings",
    "relax",
    "results",
]
