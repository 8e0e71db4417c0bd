"""What the comparison costs beside the training: per run, to show 10,000 runs, and to open a page.

python benchmarks/compare_cost.py [--write]    --write keeps the figures in docs/records/compare_cost.json

Runs that train nothing go through the whole engine (queue, worker, record, estimate): their time is all overhead.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from compare.made_records import made_records

from frankenstein.compare import engine, report
from frankenstein.compare.comparison import Comparison
from frankenstein.compare.executors.local import local_executor
from frankenstein.compare.store.provenance import provenance
from frankenstein.compare.store.records import appending, read

N_WORKERS = 2
EMPTY = """
from frankenstein.compare.problems.problem import Measurements, Problem

def run(make_optimizer, seed, budget):
    steps = sorted(budget.eval_steps)
    return Measurements({name: [float(s) for s in steps] for name in ("score", "seconds")} | {"step": steps}, 0)

PROBLEMS = [Problem(f"empty-{i}", "Nothing", "nothing", False, 0.0, 1e9, 500, 50, run) for i in range(10)]
"""


def engine_seconds(folder: Path) -> dict[str, float]:
    """Return seconds of overhead for each of about 1,000 runs, each with a curve of 51 points, and to start."""
    module = folder / "empty.py"
    module.write_text(EMPTY)
    problems = tuple(f"empty-{i}" for i in range(10))
    comparison = Comparison(problems, ("adam", "sgd", "lion"), n_trials=24, n_seeds=5, modules=(str(module),))
    execution = engine.Execution(lambda: local_executor(N_WORKERS, 1, 0))
    moments: list[float] = []
    began = time.perf_counter()
    engine.run(comparison, folder / "run", execution, lambda *_: moments.append(time.perf_counter()), print)
    n_runs, warm = len(moments) - 1, moments[20]  # by then both workers have started
    return {
        "n_runs": n_runs,
        "start": warm - began,
        "per_run": N_WORKERS * (moments[-1] - warm) / (n_runs - 20),
    }


def write_records(folder: Path, **size: int) -> list[dict[str, Any]]:
    records = made_records(**size)
    with appending(folder, print) as (_, append):
        for record in records:
            append(record)
    return records


def report_seconds(folder: Path) -> dict[str, float]:
    """Return seconds to read, and to summarise and write, a report of about 10,000 runs."""
    records = write_records(folder, n_problems=12, n_optimizers=12, n_trials=20, n_seeds=5, n_points=21)
    began = time.perf_counter()
    read(folder, print)
    read_at = time.perf_counter()
    report.write_html(folder, report.load([folder], print))
    return {
        "n_runs": len(records),
        "read": read_at - began,
        "load_and_write": time.perf_counter() - read_at,
    }


def page_seconds(folder: Path) -> dict[str, float]:
    """Return seconds from asking for a page of about 200,000 curve points to its first charts, median of five."""
    from playwright.sync_api import sync_playwright

    write_records(folder, n_problems=9, n_optimizers=22, n_trials=2, n_seeds=10, n_points=51)
    loaded = report.load([folder], print)
    page = report.write_html(folder, loaded)
    settings = [one for s in loaded.summaries for row in s.rows for one in (row.tuned, row.default) if one]
    n_points = sum(len(record["curve"]["step"]) for one in settings for record in one.records)
    seconds = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for _ in range(5):
            screen = browser.new_page()
            began = time.perf_counter()
            screen.goto(page.as_uri())
            screen.wait_for_selector("svg.marks")
            seconds.append(time.perf_counter() - began)
            screen.close()
        browser.close()
    return {"n_points": n_points, "megabytes": page.stat().st_size / 1e6, "open": median(seconds)}


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        measured = {"engine": engine_seconds(folder), "report": report_seconds(folder / "many")}
        measured["page"] = page_seconds(folder / "long")
    finally:
        shutil.rmtree(folder)
    rounded = {part: {name: float(f"{x:.3g}") for name, x in values.items()} for part, values in measured.items()}
    text = json.dumps({**rounded, "n_workers": N_WORKERS, "provenance": provenance()}, indent=1)
    print(text)
    if "--write" in sys.argv:
        (Path(__file__).parents[1] / "docs" / "records" / "compare_cost.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
