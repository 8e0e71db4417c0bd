"""Loss landscapes: the loss around a training, in a plane through the space of weights.

    snapshots.py    the weights along a training, on disk; lightning.py records them in Lightning
    pca.py          the plane in which trainings move most
    directions.py   a plane of random directions with filter normalisation
    evaluation.py   loss and metrics on a grid in the plane, in this process or in many
    result.py       the landscape: one file
    chart.py        contours and trajectories; page.py is the page to look around in
    sharpness.py    eigenvalues and trace of the Hessian

What they share: layout.py and files.py are vectors of weights on disk, buffers.py what belongs to weights, plane.py a
plane, moving.py a model in it, grid.py what is evaluated where, jobs.py and journal.py how.
"""

from frankenstein.analysis.landscape.directions import random_plane
from frankenstein.analysis.landscape.errors import LandscapeError
from frankenstein.analysis.landscape.evaluation import evaluate_grid, evaluate_jobs
from frankenstein.analysis.landscape.grid import Grid, MeanOver, Subject
from frankenstein.analysis.landscape.pca import trajectory_plane
from frankenstein.analysis.landscape.plane import Plane
from frankenstein.analysis.landscape.result import Landscape
from frankenstein.analysis.landscape.snapshots import Snapshots

__all__ = [
    "Grid",
    "Landscape",
    "LandscapeError",
    "MeanOver",
    "Plane",
    "Snapshots",
    "Subject",
    "evaluate_grid",
    "evaluate_jobs",
    "random_plane",
    "trajectory_plane",
]
