"""The paper's experiments, one file each; `frankenstein reproduce NAME` runs one."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

__all__ = ["EXPERIMENTS", "Experiment", "is_installed"]


@dataclass(frozen=True)
class Experiment:
    """An experiment as the command line lists it.

    Attributes:
        name: On the command line.
        title: What it shows, in a line.
        duration: Of the preset `local` on two cores.
        packages: Modules that it needs.
        extra: The extra that brings them.
        module: Where its `reproduce` is.
    """

    name: str
    title: str
    duration: str
    packages: tuple[str, ...]
    extra: str
    module: str


_REPORT = ("rich", "jinja2", "vl_convert")

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        Experiment(
            "table2",
            "force calls of nine minimisers on 1,000 LJ38 clusters",
            "15 min",
            ("ase", "scipy", *_REPORT),
            "relax",
            "frankenstein.experiments.table2",
        ),
        Experiment(
            "relaxation",
            "force calls on eight kinds of system that the relaxation rule was not tuned on",
            "15 min",
            ("ase", "scipy", "rdkit", "chgnet", *_REPORT),
            "relax,chgnet,molecules",
            "frankenstein.experiments.relaxation",
        ),
        Experiment(
            "ablation",
            "the relaxation rule with parts of it switched off, on systems that it was not tuned on",
            "5 min",
            ("ase", "scipy", "rdkit", *_REPORT),
            "relax,molecules",
            "frankenstein.experiments.ablation",
        ),
        Experiment(
            "table4",
            "relaxing crystals with machine-learned potentials, positions and cell",
            "15 min",
            ("ase", "scipy", *_REPORT),
            "relax,chgnet,sevennet",
            "frankenstein.experiments.table4",
        ),
        Experiment(
            "fig11",
            "the energy landscape in the plane of the trajectory, ours and CG on LJ38",
            "1 min",
            ("ase", "scipy", *_REPORT),
            "relax",
            "frankenstein.experiments.fig11",
        ),
    )
}


def is_installed(experiment: Experiment) -> bool:
    """Say whether all that it needs is there."""
    return all(find_spec(name) for name in experiment.packages)
