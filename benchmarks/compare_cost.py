"""What the comparison costs beside the training: per run, and to show 10,000 runs.

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


def report_seconds(folder: Path) -> dict[str, float]:
    """Return seconds to read, to summarise and write, and the size, of a report of about 10,000 runs."""
    records = made_records(n_problems=12, n_optimizers=12, n_trials=20, n_seeds=5, n_points=21)
    with appending(folder, print) as (_, append):
        for record in records:
            append(record)
    began = time.perf_counter()
    read(folder, print)
    read_at = time.perf_counter()
    page = report.write_html(folder, report.load([folder], print))
    return {
        "n_runs": len(records),
        "n_points": sum(len(record["curve"]["step"]) for record in records),
        "read": read_at - began,
        "load_and_write": time.perf_counter() - read_at,
        "megabytes": page.stat().st_size / 1e6,
    }


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        measured = {"engine": engine_seconds(folder), "report": report_seconds(folder / "many")}
    finally:
        shutil.rmtree(folder)
    rounded = {part: {name: float(f"{x:.3g}") for name, x in values.items()} for part, values in measured.items()}
    text = json.dumps({**rounded, "n_workers": N_WORKERS, "provenance": provenance()}, indent=1)
    print(text)
    if "--write" in sys.argv:
        (Path(__file__).parents[1] / "docs" / "records" / "compare_cost.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
