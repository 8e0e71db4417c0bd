"""`frankenstein report | merge | export`: what can be done with run folders."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

from frankenstein.cli.inputs import UsageError, folder, need, say

N_REASONS = 5  # so many of the reasons why runs failed are printed; the report has all


def add_parsers(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the commands."""
    shown = commands.add_parser("report", help="show the results of run folders and write a report in one HTML file")
    shown.add_argument("folders", type=folder, nargs="+", metavar="DIR", help="run folders; several are shown as one")
    shown.add_argument("--out", type=folder, metavar="DIR", help="where to write (default: the first run folder)")
    shown.add_argument("--problems", nargs="+", default=[], metavar="NAME", help="these problems only")
    shown.add_argument("--optimizers", nargs="+", default=[], metavar="NAME", help="these optimizers only")
    shown.add_argument(
        "--figures", action="store_true", help="also every figure as PNG, SVG and PDF, every table as CSV and LaTeX"
    )
    shown.set_defaults(run=_report)

    merged = commands.add_parser("merge", help="add the records of other run folders to one")
    merged.add_argument("target", type=folder, metavar="DIR", help="run folder to add to; made if absent")
    merged.add_argument("sources", type=folder, nargs="+", metavar="FROM", help="run folders, which stay as they are")
    merged.set_defaults(run=_merge)

    exported = commands.add_parser("export", help="write records as tables for DuckDB, pandas and others")
    exported.add_argument("folders", type=folder, nargs="+", metavar="DIR", help="run folders")
    exported.add_argument("--format", choices=("parquet", "csv"), default="parquet", help="default: parquet")
    exported.add_argument("--out", type=folder, metavar="DIR", help="where to write (default: the first run folder)")
    exported.set_defaults(run=_export)


def _report(options: argparse.Namespace) -> int:
    names = [
        tuple(name for part in asked for name in part.split(",")) for asked in (options.problems, options.optimizers)
    ]
    return report(options.folders, options.out, options.figures, *names)


def report(
    folders: list[Path],
    out: Path | None = None,
    with_figures: bool = False,
    problems: tuple[str, ...] = (),
    optimizers: tuple[str, ...] = (),
) -> int:
    """Print the tables of run folders and write their report."""
    need(("rich", "jinja2", "vl_convert", "scipy"), "report")
    from frankenstein.compare import report
    from frankenstein.compare.report import terminal
    from frankenstein.compare.store.records import RecordError

    out = out or folders[0]
    try:
        loaded = report.only(report.load(folders, say), problems, optimizers)
        page = report.write_html(out, loaded)
        files = report.write_files(out, loaded) if with_figures else []
    except RecordError as error:
        raise UsageError(str(error)) from None
    terminal.show(loaded.summaries)
    print(f"\nreport: {page}")
    if files:
        print(f"figures and tables: {len(files)} files in {out / 'figures'} and {out / 'tables'}")
    failed = [r for summary in loaded.summaries for r in summary.records if r["outcome"] == "failed"]
    reasons = Counter((r["problem"], r["optimizer"], r["reason"]) for r in failed)
    for (problem, optimizer, reason), n in reasons.most_common(N_REASONS):
        say(f"failed, {n} time{'s' * (n > 1)}: {problem}, {optimizer}: {reason}")
    if failed:
        say(f"{len(failed)} runs failed; the report names them and why, and the same comparison tries them again")
    return 1 if failed else 0


def _merge(options: argparse.Namespace) -> int:
    from frankenstein.compare.store.merge import merge
    from frankenstein.compare.store.records import RecordError

    try:
        merged = merge(options.target, options.sources, say)
    except RecordError as error:
        raise UsageError(str(error)) from None
    print(f"{options.target}: {merged.n_added} runs added, {merged.n_replaced} replaced, {merged.n_same} there already")
    return 0


def _export(options: argparse.Namespace) -> int:
    from frankenstein.compare.results.export import export
    from frankenstein.compare.store.records import RecordError

    try:
        files = export(options.folders, options.out or options.folders[0], [options.format], say)
    except RecordError as error:
        raise UsageError(str(error)) from None
    print("\n".join(str(file) for file in files))
    return 0
