"""Fig. 2 of the paper: fine-tuning EfficientNets that were trained on ImageNet, all parameters.

The preset `local` takes EfficientNet-lite0, whose weights come in a package, on parts of CIFAR-10 and Tiny-ImageNet;
`paper` takes B0 to B6 with weights from the public hub on CIFAR-10 and CIFAR-100.
"""

from __future__ import annotations

from dataclasses import replace

from frankenstein.compare.optimizers import OptimizerSpec
from frankenstein.compare.results.summary import ProblemSummary
from frankenstein.experiments import published
from frankenstein.experiments.experiment import Findings, Options
from frankenstein.experiments.networks import Plan, at, charts, problem_of, run, table, verdict, waited
from frankenstein.experiments.training import Recipe
from frankenstein.experiments.vision import Vision

NAME = "fig2"
METHODS = [
    *("frankenstein", "sgd", "rmsprop", "adam", "amsgrad", "lookahead", "adabound", "ranger", "radam"),
    *("adabelief", "adan"),
]
LOGS = {"lookahead": "lookahead_adam"}  # where the authors' logs have another name
LR = {"local": 1e-3, "paper": 1e-4}
"""The learning rate of all optimizers, and `base_lr`; in local runs, which have a hundredth of the published steps, the
first of those that each may try."""

LOCAL_SGD_LR = 3e-2
N_TRIALS = {"local": 4, "paper": 0}
N_SEEDS = 3
RECIPE = Recipe(precision="auto")
PAPER_STEPS = 50 * (50_000 // 128)
SIZES = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528}
"""Height and width that each network was made for, in pixels: images are enlarged to them."""


def _optimizer(preset: str, name: str) -> OptimizerSpec:
    experiment = f"{NAME}-{preset}"
    if name == "sgd" and preset == "local":
        return at(experiment, name, {"lr": LOCAL_SGD_LR})
    if name == "frankenstein":
        ours = at(experiment, "frankenstein-tied", {"lr": LR[preset]})  # base_lr is lr, whichever that is
        return replace(ours, name=f"{experiment}-{name}", title="Frankenstein")
    return at(experiment, name, {"lr": LR[preset]})


OPTIMIZERS = tuple(_optimizer(preset, name) for preset in LR for name in METHODS)
LOCAL_PROBLEMS = tuple(
    problem_of(
        f"{NAME}-{dataset}",
        f"EfficientNet-lite0 on {title}",
        Vision("efficientnet-lite0", dataset, 32, "padded", "half", 32, RECIPE, n_test=1000, n_validation=500),
        45,
        2,
        target=target,
    )
    for dataset, title, target in (
        ("cifar10_12k", "10,000 images of CIFAR-10", 0.8),
        ("tinyimagenet100_32px", "10,000 images of 100 classes of Tiny-ImageNet", 0.4),
    )
)
PAPER_PROBLEMS = tuple(
    problem_of(
        f"{NAME}-{dataset}-{variant}",
        f"EfficientNet-{variant.upper()} on {title}",
        Vision(f"efficientnet-{variant}", dataset, size, "padded", "imagenet", 128, RECIPE, stored=size),
        PAPER_STEPS,
        50,
        target=target,
    )
    for dataset, title, target, variants in (
        ("cifar10", "CIFAR-10", 0.96, ("b0",)),
        ("cifar100", "CIFAR-100", 0.8, tuple(SIZES)),
    )
    for variant, size in ((name, SIZES[name]) for name in variants)
)
PROBLEMS = (*LOCAL_PROBLEMS, *PAPER_PROBLEMS)


def reproduce(options: Options) -> Findings:
    """Fine-tune with every optimizer and every seed."""
    problems = LOCAL_PROBLEMS if options.preset == "local" else PAPER_PROBLEMS
    optimizers = tuple(f"{NAME}-{options.preset}-{name}" for name in options.methods or METHODS)
    names = tuple(problem.name for problem in problems)
    return findings(run(Plan(__name__, names, optimizers, N_SEEDS, N_TRIALS[options.preset]), options))


def findings(summaries: list[ProblemSummary]) -> Findings:
    """Return our scores beside the authors', and the curves of both."""
    preset = summaries[0].rows[0].optimizer.split("-")[1]
    ours = f"{NAME}-{preset}-frankenstein"
    lines = [line for summary in summaries for line in verdict(summary, ours)]
    if not N_TRIALS[preset]:
        lines.append(
            f"All have the learning rate {LR[preset]:g}, and published defaults otherwise: equal rates are no equal "
            "terms, for Frankenstein's step is larger than Adam's at the same rate."
        )
    lines.append(waited(summaries))
    best = {name: _best(name) for name in METHODS}
    shown = {f"{NAME}-{preset}-{name}": value for name, value in best.items()}
    note = (
        "Published: best test accuracy over 50 epochs of EfficientNet-B0 on all of CIFAR-10, in the authors' logs; "
        "another network, and more data and steps, than here."
    )
    tables = [
        table(s.name.replace("_", "-"), s, ours, *((shown, [note]) if _is_cifar10(s.name) else ({}, [])))
        for s in summaries
    ]
    drawings = charts(summaries)
    for task, title in (("cifar10_finetune", "CIFAR-10"), ("cifar100_finetune", "CIFAR-100")):
        found = published.curves(task, "efficientnet_b0", "test_accuracy_percent")
        heading = f"Published: EfficientNet-B0 on {title}"
        drawings.append(published.chart(f"fig2-authors-{title.lower()}", heading, "test accuracy, %", found))
    return Findings("Fine-tuning (Fig. 2)", lines, tables, drawings)


def _is_cifar10(problem: str) -> bool:
    return "cifar10" in problem and "cifar100" not in problem


def _best(name: str) -> str:
    found = published.curves("cifar10_finetune", "efficientnet_b0", "test_accuracy_percent")
    points = found.get(LOGS.get(name, name))
    return f"{max(value for _, value in points):.2f}" if points else ""
