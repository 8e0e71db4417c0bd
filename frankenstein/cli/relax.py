"""`frankenstein relax`: what to relax, with which forces, where to."""

from __future__ import annotations

import argparse
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frankenstein.cli.inputs import UsageError, amount, choose, folder, need, positive, say
from frankenstein.compare.interrupts import interrupts_blocked, take_polite_kill_for_interrupt

if TYPE_CHECKING:
    from frankenstein.structures.running import Outcome
    from frankenstein.structures.session import Session

DEFAULTS = {"fmax": 0.01, "maxstep": 0.2, "maxcalls": 10_000}
MAX_MAXSTEP = 1.0  # as `frankenstein.ase` has it
N_LINES = 50  # so many failures are told one by one; the table has all


def add_parser(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "relax",
        help="relax structures from files",
        description="Relax every structure of the files. Interrupted, the same command goes on where it stopped.",
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="whatever ASE reads; all frames of each")
    parser.add_argument("--index", default=":", metavar="SLICE", help="frames of each file, as 0, :10, --index=-1 (:)")

    how = parser.add_argument_group("forces")
    how.add_argument(
        "--calculator",
        required=True,
        metavar="NAME",
        help="lj (reduced units, clusters), emt, chgnet, sevennet, or module:Factory, path/to/file.py:Factory: called "
        "without arguments, it returns a calculator of ASE",
    )
    how.add_argument("--device", choices=("cpu", "cuda"), help="where chgnet or sevennet computes (cpu)")
    how.add_argument("--batch", type=positive, metavar="N_ATOMS", help="most atoms of a batch of these (2000)")

    when = parser.add_argument_group("how far")
    when.add_argument("--fmax", type=amount, default=DEFAULTS["fmax"], help="converged below this force (0.01)")
    when.add_argument("--cell", action="store_true", help="relax the cell as well")
    when.add_argument("--maxstep", type=amount, default=DEFAULTS["maxstep"], help="longest step of an atom (0.2)")
    when.add_argument(
        "--maxcalls", type=positive, default=DEFAULTS["maxcalls"], metavar="N", help="most force calls of each (10000)"
    )
    when.add_argument(
        "--timeout", type=amount, metavar="SECONDS", help="stop after this time; the same command goes on"
    )

    where = parser.add_argument_group("where")
    where.add_argument("--out", type=folder, default=Path("runs/relax"), metavar="DIR", help="default: runs/relax")
    where.add_argument("--workers", type=positive, default=1, metavar="N", help="processes (1)")
    where.add_argument(
        "--compare",
        metavar="NAMES",
        help="also with ASE's optimizers: fire, fire2, lbfgs, lbfgsls, bfgs, bfgsls, cg",
    )
    parser.set_defaults(run=run)
    _refuse_the_unknown(parser)


def _refuse_the_unknown(parser: argparse.ArgumentParser) -> None:
    """Let the command itself refuse arguments that it does not know: its help is the one to read."""
    parse = parser.parse_known_args

    def strict(*arguments: Any, **options: Any) -> Any:
        found, unknown = parse(*arguments, **options)
        if unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    parser.parse_known_args = strict  # type: ignore[method-assign]


def run(options: argparse.Namespace) -> int:
    """Relax, then show the result."""
    need(("ase", "scipy"), "ase")
    need(("rich", "jinja2", "vl_convert"), "report")
    with interrupts_blocked():  # an interrupted import can leave a library broken
        from frankenstein.structures.calculators import CalculatorError, plain
        from frankenstein.structures.folder import FolderError
        from frankenstein.structures.methods import RIVALS
        from frankenstein.structures.reading import SliceError, frame_slice
        from frankenstein.structures.session import Request, Session

    if options.maxstep > MAX_MAXSTEP:
        raise UsageError(f"--maxstep {options.maxstep:g} is more than {MAX_MAXSTEP:g}")
    options.calculator = plain(options.calculator)
    if options.compare is not None:
        options.compare = "".join(options.compare.split()).lower()
    compare = choose("optimizer", [options.compare], RIVALS, ()) if options.compare is not None else ()
    words = command(options)
    before = take_polite_kill_for_interrupt()
    values = {
        name: value for name, value in vars(options).items() if name not in ("run", "command", "files", "compare")
    }
    try:
        frame_slice(options.index)
        session = Session(Request(files=tuple(options.files), compare=compare, command=words, **values), say)
        if not session.structures:
            say("error: there is no structure to relax")
            return 1
        with session.in_folder():
            return _work(session, words)
    except SliceError as error:
        raise UsageError(f"--index {error}") from None
    except (CalculatorError, FolderError) as error:
        raise UsageError(str(error)) from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _work(session: Session, words: str) -> int:
    from frankenstein.structures import terminal

    n_todo = len(session.jobs())
    out = session.request.out
    try:
        if n_todo:
            with terminal.progress(session.n_jobs - n_todo, session.n_jobs) as counter:
                session.work(counter)
        session.write_tables()
        page = session.write_report()
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        session.write_tables()
        n_done = session.n_jobs - len(session.jobs())
        say(f"stopped; {n_done} of {session.n_jobs} are done, all calls are kept in {out}: `{words}` goes on")
        return 130
    except OSError as error:
        say(
            f"error: cannot write {error.filename or out}: {error.strerror or error}; put that right, then `{words}` "
            "goes on where it stopped"
        )
        return 1
    ours = session.ours()
    terminal.show(ours, session.totals())
    print(f"\n{terminal.summary(ours)}")
    print(f"structures: {out / 'relaxed.extxyz'}\nreport: {page}")
    _tell_failures(session.relaxed())
    if any(outcome["reason"] == "timeout" for outcome in ours):
        say(f"the time is up; `{words}` goes on with those that are not done")
    return 0 if not session.n_faults and all(outcome["converged"] for outcome in ours) else 1


def _tell_failures(outcomes: Sequence[Outcome]) -> None:
    from frankenstein.structures.reading import plural

    told = [outcome for outcome in outcomes if outcome["reason"] in ("failed", "nonfinite", "stalled")]
    for outcome in told[:N_LINES]:
        more = f": {outcome['message']}" if outcome["message"] else ""
        say(f"{outcome['name']}: {outcome['reason']} after {plural(outcome['calls'], 'call')}{more}")
    if len(told) > N_LINES:
        say(f"and {len(told) - N_LINES} more did not converge; table.csv and the report say why")


def command(options: argparse.Namespace) -> str:
    """Return the command that was given."""
    words = ["frankenstein", "relax", *map(str, options.files), "--calculator", options.calculator]
    for name in ("fmax", "maxstep", "maxcalls"):
        if getattr(options, name) != DEFAULTS[name]:
            words += [f"--{name}", f"{getattr(options, name):.12g}"]
    words += ["--cell"] * options.cell
    if options.index != ":":
        words.append(f"--index={options.index}")
    for name in ("timeout", "device", "batch", "compare"):
        if getattr(options, name) is not None:
            value = getattr(options, name)
            words += [f"--{name}", f"{value:.12g}" if isinstance(value, float) else str(value)]
    if options.workers != 1:
        words += ["--workers", str(options.workers)]
    return shlex.join([*words, "--out", str(options.out)])
