"""Energy minimisation: the relaxation rule on arrays, for one function or many structures at once.

`relax` and `minimize` need numpy only, and run on torch tensors unchanged. The front-ends for ASE, SciPy and torch-sim
are `frankenstein.ase`, `frankenstein.scipy` and `frankenstein.torchsim`.
"""

from frankenstein.relaxation.rule import RelaxationRule, State, init, misalignment, update
from frankenstein.relaxation.run import REASONS, Minimum, Relaxed, minimize, relax
from frankenstein.relaxation.systems import Systems

__all__ = [
    "REASONS",
    "Minimum",
    "RelaxationRule",
    "Relaxed",
    "State",
    "Systems",
    "init",
    "minimize",
    "misalignment",
    "relax",
    "update",
]
