"""Table 1 of the paper: ImageNet from scratch, ResNet-18 and ResNet-50, with the published recipe.

The preset `local` takes ResNet-18 on ten classes of ImageNet at 64 pixels; `paper` takes ImageNet-1K, on as many
processes as `torchrun` starts.
"""

from __future__ import annotations

from dataclasses import replace

from frankenstein.compare.executors.here import n_processes
from frankenstein.compare.optimizers import OptimizerSpec
from frankenstein.compare.problems.problem import Budget
from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.results.summary import ProblemSummary
from frankenstein.experiments import published
from frankenstein.experiments.experiment import Findings, Options
from frankenstein.experiments.networks import Plan, at, charts, problem_of, run, table, verdict, waited
from frankenstein.experiments.training import Recipe, step_decay
from frankenstein.experiments.vision import Vision

NAME = "table1"
METHODS = ["frankenstein", "sgd", "adamw", "adabelief"]
LR, DECAY = 1e-3, 1e-2
N_SEEDS = {"local": 3, "paper": 5}
BATCH = {"local": 64, "paper": 256}
PART = 64  # images that a GPU has at once
N_EPOCHS = 120
LOCAL_STEPS, PAPER_STEPS = 78, N_EPOCHS * (1_281_167 // 256)

QUOTED = {
    "Adam": ("33.46", "23.10"),
    "Lookahead (Adam)": ("", "24.51"),
    "RAdam": ("32.38", ""),
    "AMSGrad": ("32.31", ""),
    "AdaBound": ("31.87", ""),
    "PAdam": ("29.93", ""),
    "AdaBelief": ("29.92", ""),
    "SGD": ("29.77", "23.00"),
    "LAMB": ("31.36", "23.00"),
    "AdaFisher": ("", "22.99"),
    "Adan": ("29.10", "21.90"),
    "Frankenstein, 40 epochs": ("31.24", "25.5"),
    "Frankenstein, 80 epochs": ("29.13", "22.9"),
    "Frankenstein, 120 epochs": ("28.75", "22.44"),
}
"""Top-1 error in percent of ResNet-18 and ResNet-50 on ImageNet-1K, as the paper's Table 1 has them; most are quoted
there from other papers."""


def _recipe(budget: Budget) -> Recipe:
    return Recipe(schedule=step_decay(max(1, round(budget.n_steps / 3))), precision="auto")


def _paper_recipe(budget: Budget) -> Recipe:
    """Return the recipe for batches of 4 times 64, on fewer processes than four one part after the other."""
    n_parts = max(1, BATCH["paper"] // (PART * n_processes()))
    return replace(_recipe(budget), accumulate=n_parts)


SGD_LR, SGD_DECAY = 0.1, 1e-4
"""As ImageNet is usually trained with SGD at batch 256 (He et al., CVPR 2016); for other batches the rate goes with
their size (Goyal et al., arXiv:1706.02677)."""


def _optimizers(preset: str) -> list[OptimizerSpec]:
    experiment = f"{NAME}-{preset}"
    return [
        at(experiment, "frankenstein", {"lr": LR, "base_lr": LR}, weight_decay=DECAY),
        at(experiment, "sgd", {"lr": SGD_LR * BATCH[preset] / BATCH["paper"]}, weight_decay=SGD_DECAY),
        at(experiment, "adamw", {"lr": LR}, weight_decay=DECAY),
        at(experiment, "adabelief", {"lr": LR}, weight_decay=DECAY, weight_decouple=True),
    ]


OPTIMIZERS = (*_optimizers("local"), *_optimizers("paper"))
PROBLEMS = (
    problem_of(
        "table1-imagenette_96px",
        "ResNet-18 on 5,000 images of ten classes of ImageNet at 64 px",
        Vision("resnet18", "imagenette_96px", 64, "resized", "imagenet", BATCH["local"], _recipe, stored=72),
        LOCAL_STEPS,
        3,
        target=0.5,
    ),
    *(
        problem_of(
            f"table1-imagenet-{network}",
            f"{title} on ImageNet-1K",
            Vision(
                network,
                "imagenet",
                224,
                "resized",
                "imagenet",
                BATCH["paper"],
                _paper_recipe,
                stored=256,
                is_streamed=True,
            ),
            PAPER_STEPS,
            N_EPOCHS,
            target=target,
        )
        for network, title, target in (("resnet18", "ResNet-18", 0.7), ("resnet50", "ResNet-50", 0.77))
    ),
)


def reproduce(options: Options) -> Findings:
    """Train with every optimizer and every seed."""
    names = tuple(problem.name for problem in PROBLEMS)
    problems = names[:1] if options.preset == "local" else names[1:]
    optimizers = tuple(f"{NAME}-{options.preset}-{name}" for name in options.methods or METHODS)
    return findings(run(Plan(__name__, problems, optimizers, N_SEEDS[options.preset]), options))


def findings(summaries: list[ProblemSummary]) -> Findings:
    """Return our scores, and the published table and curves beside them."""
    preset = summaries[0].rows[0].optimizer.split("-")[1]
    ours = f"{NAME}-{preset}-frankenstein"
    lines = [line for summary in summaries for line in verdict(summary, ours)]
    lines.append(waited(summaries))
    tables = [table(s.name.replace("_", "-"), s, ours, {}) for s in summaries]
    drawings = charts(summaries)
    for task, title in (("resnet18", "ResNet-18"), ("gluon_resnet50_v1s", "ResNet-50")):
        found = published.curves("imagenet_scratch", task, "eval_top1_percent")
        heading = f"Published: {title} on ImageNet-1K, mean of five seeds"
        drawings.append(published.chart(f"table1-authors-{title.lower()}", heading, "top-1 accuracy, %", found))
    return Findings("ImageNet from scratch (Table 1)", lines, [*tables, _quoted()], drawings)


def _quoted() -> Table:
    rows = [[Cell(name), *(Cell(value or "-") for value in values)] for name, values in QUOTED.items()]
    columns = ["optimizer", "ResNet-18, error in %", "ResNet-50, error in %"]
    notes = ["ImageNet-1K, top-1 error; the paper's Table 1, which quotes most of it from other papers; not run here"]
    return Table("table1-published", "Published", columns, rows, notes)
