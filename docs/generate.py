"""Write every published number and code line into README.md and docs/*.md, from records and from the source.

    python docs/generate.py            rewrite the blocks between `<!-- generated: NAME -->` and `<!-- end -->`
    python docs/generate.py --check    exit 1 if a block is out of date (part of `make test`)
    python docs/generate.py --measure  measure again what is quick to measure, then rewrite blocks and pictures

`docs/records/compare` is the run folder of `make compare`, its records gzipped.
"""

from __future__ import annotations

import ast
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from frankenstein.compare import figures, report
from frankenstein.compare.summary import ProblemSummary, Row

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "records"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- generated: (?P<name>[\w:.-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
OURS = "frankenstein"


def fail(line: str) -> None:
    raise SystemExit(line)


# The comparison -------------------------------------------------------------------------------------------------------


def compared() -> list[ProblemSummary]:
    return report.load(RECORDS / "compare", fail)


def verdict(summaries: list[ProblemSummary]) -> str:
    """Say where our optimizer wins and loses, with numbers."""
    level, behind, untuned = [], [], []
    for summary in summaries:
        ours = next(row for row in summary.rows if row.optimizer == OURS)
        best = summary.rows[0]
        if OURS in summary.best():
            level.append(f"{summary.name} ({value(ours)})")
        else:
            behind.append(f"{summary.name} ({value(ours)}; {best.title} {value(best)})")
        sign = 1 if summary.config["is_higher_better"] else -1
        if ours is max(summary.rows, key=lambda row: sign * setting(row, "default").score.value):
            untuned.append(summary.name)
    lines = [
        f"- **Best, or level with the best** (its interval overlaps that of the best mean): {listed(level)}.",
        f"- **Behind**: {listed(behind)}.",
        f"- **Untuned**, each optimizer at its own default learning rate, it has the best mean on {len(untuned)} of "
        f"{len(summaries)}: {listed(untuned)}. That flatters it: its step is larger than Adam's at the same rate.",
        f"- **Cost**: its step takes {step_cost(summaries, 'adam'):.1f} times Adam's wall time and "
        f"{step_cost(summaries, 'sgd'):.1f} times SGD's (the optimizer step alone, median over the three networks).",
    ]
    return "\n".join(lines)


def value(row: Row) -> str:
    return f"{setting(row, 'tuned').score.value:.3g}"


def setting(row: Row, name: str) -> Any:
    found = getattr(row, name)
    assert found is not None, f"{row.optimizer} lacks {name} records"
    return found


def listed(names: list[str]) -> str:
    return ", ".join(names) if names else "none"


def step_cost(summaries: list[ProblemSummary], other: str) -> float:
    def seconds(summary: ProblemSummary, optimizer: str) -> float:
        row = next(row for row in summary.rows if row.optimizer == optimizer)
        return median(record["optimizer_seconds_per_step"] for record in setting(row, "tuned").records)

    networks = [summary for summary in summaries if summary.name.startswith("digits")]
    return median(seconds(summary, OURS) / seconds(summary, other) for summary in networks)


def setup(summaries: list[ProblemSummary]) -> str:
    rows = [row for summary in summaries for row in summary.rows]
    n_seeds = len(setting(rows[0], "tuned").records)
    origin = setting(rows[0], "tuned").records[0]["provenance"]
    return (
        f"{len(summaries)} problems, {len(summaries[0].rows)} optimizers, {len(rows[0].tuning)} learning rates each on "
        f"the validation split, then {n_seeds} fresh seeds on the test split; torch {origin['versions']['torch']}, "
        f"{origin['device']}."
    )


# The rule -------------------------------------------------------------------------------------------------------------


def code(names: str) -> str:
    """Return the statements of rule.py that assign these names, as they stand there.

    `alignment` is the first assignment in `factors`, `rho.2` the second, `update/m` the first in `update`.
    """
    source = (ROOT / "frankenstein" / "rule.py").read_text()
    lines, found = source.splitlines(), []
    for name in names.split("+"):
        function, _, target = name.rpartition("/")
        target, _, count = target.partition(".")
        node = assignment(ast.parse(source), function or "factors", target, int(count or 1))
        statement = lines[node.lineno - 1 : node.end_lineno]
        found.append(f"# rule.py, line {node.lineno}\n" + "\n".join(line[node.col_offset :] for line in statement))
    return "```py\n" + "\n".join(found) + "\n```"


def assignment(tree: ast.Module, function: str, target: str, count: int) -> ast.Assign:
    body = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    nodes = [n for n in ast.walk(body) if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == target]
    if len(nodes) < count:
        fail(f"rule.py: {function} has no assignment {count} of {target}; mend docs/rule.md")
    return sorted(nodes, key=lambda n: n.lineno)[count - 1]


def alignment_table() -> str:
    measured = json.loads((RECORDS / "alignment.json").read_text())
    lines = ["| form of 0.5 - P | float32 | float64 |", "|---|---|---|"]
    for form, errors in measured["largest_relative_error"].items():
        lines.append(f"| `{form}` | {errors['float32']:.0e} | {errors['float64']:.0e} |")
    return "\n".join(lines)


def measure_alignment() -> None:
    """Compare three forms of 0.5 - P with 50 digits, for m*g from 1e-12 to 30."""
    import mpmath
    import numpy as np

    forms: dict[str, Callable[[Any], Any]] = {
        "0.5 - arccos(tanh(z)) / pi": lambda z: 0.5 - np.acos(np.tanh(z)) / math.pi,
        "arcsin(tanh(z)) / pi": lambda z: np.asin(np.tanh(z)) / math.pi,
        "2 arctan(tanh(z / 2)) / pi": lambda z: (2.0 / math.pi) * np.atan(np.tanh(0.5 * z)),
    }
    errors: dict[str, dict[str, float]] = {form: {} for form in forms}
    for dtype in ("float32", "float64"):
        z = (10.0 ** np.linspace(-12, 1.5, 2000)).astype(dtype)
        with mpmath.workdps(50):
            exact = np.array([float(mpmath.asin(mpmath.tanh(mpmath.mpf(float(v)))) / mpmath.pi) for v in z])
        for form, function in forms.items():
            errors[form][dtype] = float(f"{np.max(np.abs(function(z).astype('float64') - exact) / exact):.3g}")
    content = {
        "z": "2000 points, 1e-12 to 30, evenly in log",
        "numpy": np.__version__,
        "largest_relative_error": errors,
    }
    (RECORDS / "alignment.json").write_text(json.dumps(content, indent=1) + "\n")


# Pages ----------------------------------------------------------------------------------------------------------------


def block(name: str) -> str:
    kind, _, argument = name.partition(":")
    if kind == "code":
        return code(argument)
    makers: dict[str, Callable[[], str]] = {
        "compare-setup": lambda: setup(compared()),
        "compare-table": lambda: report.markdown(compared()),
        "compare-verdict": lambda: verdict(compared()),
        "alignment-errors": alignment_table,
    }
    return makers[name]()


def main(arguments: list[str]) -> int:
    if "--measure" in arguments:
        measure_alignment()
    stale = []
    for page in PAGES:
        text = page.read_text()
        fresh = BLOCK.sub(lambda match: f"{match[1]}{block(match['name'])}\n{match[3]}", text)
        if fresh != text:
            stale.append(page.relative_to(ROOT))
            if "--check" not in arguments:
                page.write_text(fresh)
    if "--check" in arguments and stale:
        print(f"out of date: {', '.join(map(str, stale))}; run `python docs/generate.py`", file=sys.stderr)
        return 1
    if "--measure" in arguments:
        summaries = compared()
        picture = figures.learning_curves(summaries, report.order(summaries))
        figures.save(picture, ROOT / "docs" / "images" / "compare.png")
        figures.save(figures.tuning_curves(summaries, report.order(summaries)), ROOT / "docs" / "images" / "tuning.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
