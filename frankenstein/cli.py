"""The `frankenstein` command: parse, call, print.

Exit codes: 0 done, 1 some of the work failed, 2 wrong input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import difflib
import os
import platform
import signal
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import frankenstein
from frankenstein.compare.interrupts import interrupts_blocked

# what `doctor` looks for: package, what it is for, extra that brings it
PACKAGES = (
    ("numpy", "everything", ""),
    ("torch", "the PyTorch optimizer, compare", "torch"),
    ("scikit-learn", "compare: the digits", "experiments"),
    ("pebble", "compare: worker processes", "experiments"),
    ("scipy", "compare, report: statistics", "report"),
    ("rich", "progress and tables", "report"),
    ("jinja2", "HTML reports", "report"),
    ("matplotlib", "pictures", "report"),
    ("jax", "the rule on JAX arrays", "jax"),
)


class UsageError(Exception):
    """Wrong input; the message is one line for the user."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    try:
        options = _parser().parse_args(arguments)
        code: int = options.run(options)
        sys.stdout.flush()
        return code
    except UsageError as error:
        print(f"frankenstein: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C cannot spoil the exit
        print("frankenstein: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"frankenstein: error: {error.strerror or error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="frankenstein", description="The Frankenstein optimizer, and a fair comparison of optimizers."
    )
    parser.add_argument("--version", action="version", version=f"frankenstein-optimizer {frankenstein.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    compare = commands.add_parser(
        "compare",
        help="compare optimizers on equal terms, on real data",
        description="Tune every optimizer with the same budget, then compare on fresh seeds. "
        "Interrupted, the same command goes on where it stopped.",
    )
    compare.add_argument("--problems", nargs="+", metavar="NAME", help="problems (default: all; --list shows them)")
    compare.add_argument(
        "--optimizers", nargs="+", metavar="NAME", help="optimizers (default: the usual ones and ours)"
    )
    compare.add_argument("--seeds", type=_positive, default=10, metavar="N", help="fresh test seeds (default: 10)")
    compare.add_argument("--workers", type=_positive, metavar="N", help="worker processes (default: one per processor)")
    compare.add_argument(
        "--out", type=_folder, default=Path("runs/compare"), metavar="DIR", help="run folder (default: runs/compare)"
    )
    compare.add_argument("--list", action="store_true", help="list problems and optimizers, and stop")
    compare.set_defaults(run=_compare)

    report = commands.add_parser("report", help="show the results of a run folder and write its report.html")
    report.add_argument("folder", type=_folder, metavar="DIR")
    report.set_defaults(run=_report)

    doctor = commands.add_parser("doctor", help="versions, devices, what is missing and how to get it")
    doctor.set_defaults(run=_doctor)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("the folder's name is empty")
    return Path(text)


def _need(names: Iterable[str], extra: str) -> None:
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise UsageError(f"this command needs {', '.join(missing)}: pip install '.[{extra}]' (in the checkout)")


def _choose(what: str, asked: list[str] | None, known: Iterable[str], default: Iterable[str]) -> tuple[str, ...]:
    if asked is None:
        return tuple(default)
    known = list(known)
    names = list(dict.fromkeys(name for part in asked for name in part.split(",") if name))
    for name in names:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise UsageError(f"unknown {what} {name!r}; {hint}")
    if not names:
        raise UsageError(f"no {what} named; known: {', '.join(known)}")
    return tuple(names)


def _say(line: str) -> None:
    print(f"frankenstein: {line}", file=sys.stderr)


def _compare(options: argparse.Namespace) -> int:
    _need(("torch", "sklearn", "scipy", "pebble", "rich", "jinja2", "matplotlib"), "experiments")
    with interrupts_blocked():  # an interrupted import of numpy within torch's is swallowed, and leaves numpy broken
        from frankenstein.compare import engine, terminal
        from frankenstein.compare.optimizers import DEFAULT_OPTIMIZERS, OPTIMIZERS
        from frankenstein.compare.problems import PROBLEMS
        from frankenstein.compare.records import RecordError

    if options.list:
        for problem in PROBLEMS.values():
            print(f"problem    {problem.name:22}{problem.title}")
        for spec in OPTIMIZERS.values():
            print(f"optimizer  {spec.name:22}{spec.title}: {spec.target}")
        return 0
    if options.seeds > engine.MAX_SEEDS:
        raise UsageError(f"--seeds {options.seeds} is more than {engine.MAX_SEEDS}")
    comparison = engine.Comparison(
        problems=_choose("problem", options.problems, PROBLEMS, PROBLEMS),
        optimizers=_choose("optimizer", options.optimizers, OPTIMIZERS, DEFAULT_OPTIMIZERS),
        n_seeds=options.seeds,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill is a Ctrl-C
    kept = f"are kept in {options.out}: `{comparison.command()} --out {options.out}` goes on"
    with terminal.progress() as counter:
        try:
            engine.run(comparison, options.out, options.workers, counter, _say)
        except RecordError as error:
            if counter.n_all is None:  # nothing has started
                raise UsageError(str(error)) from None
            counter.bar.stop()
            _say(f"error: {error}; {counter} {kept}")
            return 1
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            counter.bar.stop()
            _say(f"stopped; {counter} {kept}")
            return 130
    return _report(argparse.Namespace(folder=options.out))


def _report(options: argparse.Namespace) -> int:
    _need(("rich", "jinja2", "matplotlib", "scipy"), "report")
    from frankenstein.compare import report, terminal
    from frankenstein.compare.records import RecordError

    try:
        summaries = report.load(options.folder, _say)
        path = report.write_html(options.folder, summaries)
    except RecordError as error:
        raise UsageError(str(error)) from None
    terminal.show(summaries)
    print(f"\nreport: {path}")
    n_failed = sum(row.n_failed for summary in summaries for row in summary.rows)
    if n_failed:
        _say(f"{n_failed} runs failed; the report names them and why, and the same comparison tries them again")
    return 1 if n_failed else 0


def _doctor(_: argparse.Namespace) -> int:
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
        print(f"  {package:14}{installed:16}{purpose}")
    if "torch" not in missing.get("torch", []):
        import torch

        devices = [f"cpu ({os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads)"]
        devices += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
        print(f"  {'devices':14}{', '.join(devices)}")
    for extra, packages in missing.items():
        print(f"to get {', '.join(packages)}: pip install '.[{extra}]' (in the checkout)")
    return 0
