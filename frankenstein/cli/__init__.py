"""The `frankenstein` command: parse, call, print.

Exit codes: 0 done, 1 some of the work failed, 2 wrong input, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import frankenstein
from frankenstein.cli import compare, doctor, folders, relax, reproduce
from frankenstein.cli.inputs import UsageError


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

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
        prog="frankenstein",
        description="The Frankenstein optimizer: compare optimizers on equal terms, relax atoms, repeat experiments.",
    )
    parser.add_argument("--version", action="version", version=f"frankenstein-optimizer {frankenstein.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    compare.add_parser(commands)
    relax.add_parser(commands)
    folders.add_parsers(commands)
    reproduce.add_parser(commands)
    doctor.add_parser(commands)
    return parser
