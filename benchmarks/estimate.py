"""Run a suite, and hold the estimate of the time left against the time that was left.

python benchmarks/estimate.py small runs/small [--write]    --write keeps the figures in docs/records/estimate.json
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from frankenstein.compare import engine
from frankenstein.compare.comparison import Comparison
from frankenstein.compare.executors.local import local_executor
from frankenstein.compare.suites import SUITES

SHARES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def main(name: str, folder: Path) -> None:
    suite = SUITES[name]
    comparison = Comparison(suite.problems, suite.optimizers, suite.n_trials, n_seeds=suite.n_seeds)
    began = time.perf_counter()
    log: list[tuple[float, float | None]] = []

    def note(_: object, state: engine.State) -> None:
        log.append((time.perf_counter() - began, state.seconds_left))

    engine.run(comparison, folder, engine.Execution(lambda: local_executor(None, 1, 0)), note, print)
    print(text := json.dumps(summary(name, log), indent=1))
    if "--write" in sys.argv:
        (Path(__file__).parents[1] / "docs" / "records" / "estimate.json").write_text(text + "\n")


def summary(name: str, log: list[tuple[float, float | None]]) -> dict[str, object]:
    total = log[-1][0]
    moments = [min(log, key=lambda entry: abs(entry[0] - share * total)) for share in SHARES]
    return {
        "suite": name,
        "seconds": round(total, 1),
        "estimates": [
            {"after": round(after, 1), "left": round(total - after, 1), "estimated": left and round(left, 1)}
            for after, left in moments
        ],
    }


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
