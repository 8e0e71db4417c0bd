"""`frankenstein compare`: what to compare, where to run it."""

from __future__ import annotations

import argparse
import shlex
import signal
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frankenstein.cli import folders
from frankenstein.cli.inputs import UsageError, amount, choose, count, folder, need, positive, say
from frankenstein.compare.interrupts import interrupts_blocked, take_polite_kill_for_interrupt
from frankenstein.compare.suites import SUITES

if TYPE_CHECKING:
    from frankenstein.compare.comparison import Comparison
    from frankenstein.compare.engine import Execution
    from frankenstein.compare.executors import Executor


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "compare",
        help="compare optimizers on equal terms, on real data",
        description="Tune every optimizer with the same budget, then compare on fresh seeds. "
        "Interrupted, the same command goes on where it stopped.",
    )
    what = parser.add_argument_group("what to compare")
    what.add_argument("--suite", choices=SUITES, default="default", help="; ".join(_suite_lines()))
    what.add_argument("--problems", nargs="+", metavar="NAME", help="problems (default: the suite's; see --list)")
    what.add_argument("--optimizers", nargs="+", metavar="NAME", help="optimizers: names, or module:Class")
    what.add_argument(
        "--module",
        action="append",
        default=[],
        metavar="FILE",
        help="Python file (or module) with your own; repeatable",
    )
    what.add_argument("--list", action="store_true", help="list problems and optimizers, and stop")

    terms = parser.add_argument_group("on what terms")
    terms.add_argument("--trials", type=positive, metavar="N", help="settings that each optimizer may try (20)")
    terms.add_argument("--tuning-seeds", type=positive, default=1, metavar="N", help="seeds of each trial (1)")
    terms.add_argument("--seeds", type=positive, metavar="N", help="fresh test seeds (default: 10; small: 5)")
    terms.add_argument(
        "--tuner",
        choices=("halton", "rates", "optuna"),
        default="halton",
        help="quasi-random (default); the learning rate alone, in half decades; or Optuna's TPE",
    )

    where = parser.add_argument_group("where and how to run")
    where.add_argument("--out", type=folder, default=Path("runs/compare"), metavar="DIR", help="default: runs/compare")
    where.add_argument(
        "--executor", choices=("local", "ray", "slurm"), default="local", help="default: local processes"
    )
    where.add_argument("--workers", type=positive, metavar="N", help="runs at once (default: one per processor)")
    where.add_argument("--threads", type=positive, default=1, metavar="N", help="processor threads of each run (1)")
    where.add_argument("--gpus", type=amount, default=0.0, metavar="N", help="GPUs of each run; 0.5: two runs on each")
    where.add_argument("--timeout", type=amount, metavar="SECONDS", help="longest time of one run")
    where.add_argument("--retries", type=count, default=0, metavar="N", help="tries more for a run that failed (0)")
    where.add_argument(
        "--ray-address", metavar="ADDRESS", help="cluster to join, `auto` or host:port (default: its own)"
    )
    where.add_argument(
        "--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="job parameters, as partition=gpu mem_gb=8"
    )
    where.add_argument("--tensorboard", action="store_true", help="live curves in DIR/tensorboard")
    where.add_argument("--mlflow", metavar="URI", help="live curves on an MLflow server")
    parser.set_defaults(run=run)


def _suite_lines() -> list[str]:
    return [f"{name}: {suite.title}" for name, suite in SUITES.items()]


def run(options: argparse.Namespace) -> int:
    """Compare, then show the result."""
    packages = ("torch", "sklearn", "scipy", "pytorch_optimizer", "rich", "jinja2", "vl_convert")
    need(packages, "experiments")
    with interrupts_blocked():  # an interrupted import of numpy within torch's is swallowed, and leaves numpy broken
        from frankenstein.compare import engine
        from frankenstein.compare.catalog import CatalogError
        from frankenstein.compare.executors import ExecutorError
        from frankenstein.compare.report import terminal
        from frankenstein.compare.store.records import RecordError

    try:
        if options.list:
            return _list(tuple(options.module))
        comparison, execution = _comparison(options), _execution(options)
    except CatalogError as error:
        raise UsageError(str(error)) from None
    take_polite_kill_for_interrupt()
    kept = f"are kept in {options.out}: `{comparison.command()} {_execution_words(options)}` goes on"
    with terminal.progress() as counter:
        try:
            engine.run(comparison, options.out, execution, counter, say)
        except (RecordError, ExecutorError) as error:
            if not counter.n_run:
                raise UsageError(str(error)) from None
            counter.bar.stop()
            say(f"error: {error}; {counter} {kept}")
            return 1
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            counter.bar.stop()
            say(f"stopped; {counter} {kept}")
            return 130
    return folders.report([options.out])


def _list(modules: tuple[str, ...]) -> int:
    from frankenstein.compare.catalog import catalog

    known = catalog(modules)
    for name, suite in SUITES.items():
        print(f"suite      {name:22}{suite.title}")
    for problem in known.problems.values():
        print(f"problem    {problem.name:22}{problem.title}")
    for spec in known.optimizers.values():
        print(f"optimizer  {spec.name:22}{spec.title}: {spec.target}")
    return 0


def _comparison(options: argparse.Namespace) -> Comparison:
    from frankenstein.compare.catalog import catalog
    from frankenstein.compare.comparison import MAX_SEEDS, Comparison

    suite, modules = SUITES[options.suite], tuple(dict.fromkeys(options.module))
    known = catalog(modules)
    n_seeds = options.seeds or suite.n_seeds
    for name, value in (("--seeds", n_seeds), ("--tuning-seeds", options.tuning_seeds), ("--trials", options.trials)):
        if value and value > MAX_SEEDS:
            raise UsageError(f"{name} {value} is more than {MAX_SEEDS}")
    optimizers = choose("optimizer", options.optimizers, known.optimizers, suite.optimizers)
    for optimizer in optimizers:
        known.optimizer(optimizer)
    if options.tuner == "optuna":
        need(("optuna",), "optuna")
    return Comparison(
        problems=choose("problem", options.problems, known.problems, suite.problems),
        optimizers=optimizers,
        n_trials=options.trials or suite.n_trials,
        n_tuning_seeds=options.tuning_seeds,
        n_seeds=n_seeds,
        tuner=options.tuner,
        modules=modules,
    )


def _execution_words(options: argparse.Namespace) -> str:
    """Return the options that say where and how, as they were given."""
    words = ["--out", str(options.out)]
    defaults = {"executor": "local", "threads": 1, "gpus": 0.0, "retries": 0}
    for name in ("executor", "workers", "threads", "gpus", "timeout", "retries", "ray_address", "mlflow"):
        value = getattr(options, name)
        if value != defaults.get(name):
            words += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    if options.slurm:
        words += ["--slurm", *options.slurm]
    return shlex.join(words + ["--tensorboard"] * options.tensorboard)


def _execution(options: argparse.Namespace) -> Execution:
    from frankenstein.compare.engine import Execution
    from frankenstein.compare.live import Live, LiveError, prepare

    live = Live(str(options.out.absolute() / "tensorboard") if options.tensorboard else None, options.mlflow)
    try:
        prepare(live, say)
    except LiveError as error:
        raise UsageError(str(error)) from None
    executor, leftover = _executor(options)
    return Execution(
        executor=executor,
        leftover=leftover,
        n_cpus=options.threads,
        n_gpus=options.gpus,
        timeout=options.timeout,
        n_retries=options.retries,
        live=live,
    )


Places = tuple["Callable[[], AbstractContextManager[Executor]]", "Callable[[], Iterable[dict[str, Any]]]"]


def _executor(options: argparse.Namespace) -> Places:
    """Return what starts the executor, and what its jobs may have left behind.

    Options of another executor are an error, not ignored.
    """
    if options.ray_address and options.executor != "ray":
        raise UsageError("--ray-address is for --executor ray")
    if options.slurm and options.executor != "slurm":
        raise UsageError("--slurm is for --executor slurm")
    n_workers, n_cpus, n_gpus = options.workers, options.threads, options.gpus
    if options.executor == "ray":
        need(("ray",), "ray")
        from frankenstein.compare.executors.ray import ray_executor

        return lambda: ray_executor(n_workers, options.ray_address, n_cpus, n_gpus), tuple
    if options.executor == "slurm":
        need(("submitit",), "slurm")
        from frankenstein.compare.executors.slurm import finished_records, slurm_executor

        folder, parameters = options.out / "slurm", _parameters(options.slurm)
        return lambda: slurm_executor(n_workers, folder, n_cpus, n_gpus, parameters), lambda: finished_records(folder)
    from frankenstein.compare.executors.local import local_executor

    return lambda: local_executor(n_workers, n_cpus, n_gpus), tuple


def _parameters(texts: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise UsageError(f"--slurm {key}{equals}{value}: write KEY=VALUE, as partition=gpu")
    return {key: value for key, _, value in pairs}
