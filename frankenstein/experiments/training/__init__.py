"""The training loop of all experiments with networks: one process or many, any optimizer, exact after a kill.

An experiment says what is trained (`Task`) and how (`Recipe`); `Loop` of both is the `run` of a comparison's problem.

    Problem(..., run=Loop(start, lambda budget: Recipe(schedule=cosine(budget.n_steps), precision="auto")))

Several processes are started by torchrun, each of which calls the same run with the same arguments.
"""

from frankenstein.experiments.training.loop import Look, Loop, Recipe, Task
from frankenstein.experiments.training.progress import Progress, read_progress
from frankenstein.experiments.training.schedules import constant, cosine, step_decay

__all__ = ["Look", "Loop", "Progress", "Recipe", "Task", "constant", "cosine", "read_progress", "step_decay"]
