"""Problems to compare optimizers on."""

from frankenstein.compare.problems import digits, functions
from frankenstein.compare.problems.problem import Problem, Split, Task

__all__ = ["PROBLEMS", "Problem", "Split", "Task"]

PROBLEMS: dict[str, Problem] = {problem.name: problem for problem in (*digits.PROBLEMS, *functions.PROBLEMS)}
