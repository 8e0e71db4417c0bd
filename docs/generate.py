"""Write every published number and code line into README.md and docs/*.md, from records and from the source.

    python docs/generate.py            rewrite the blocks between `<!-- generated: NAME -->` and `<!-- end -->`
    python docs/generate.py --check    exit 1 if a block is out of date (part of `make test`)
    python docs/generate.py --measure  measure again what is quick to measure, then rewrite blocks and pictures

`docs/records/compare` and `docs/records/small` are run folders of the two suites, their records gzipped.
"""

from __future__ import annotations

import ast
import json
import math
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from cost_blocks import BLOCKS as COST_BLOCKS
from network_blocks import BLOCKS as NETWORK_BLOCKS
from network_blocks import NAMES as NETWORK_NAMES
from network_blocks import findings as network_findings
from optimizer_table import optimizers_markdown
from relaxation_blocks import BLOCKS as RELAXATION_BLOCKS
from relaxation_blocks import findings
from speed_blocks import BLOCKS as SPEED_BLOCKS
from speed_blocks import large_step_cost
from state_blocks import BLOCKS as STATE_BLOCKS
from telemetry_blocks import BLOCKS as TELEMETRY_BLOCKS

from frankenstein.compare import report
from frankenstein.compare.report import Loaded, charts, formats, tables, words
from frankenstein.compare.results import verdict
from frankenstein.compare.results.summary import ProblemSummary, Row, Setting

ROOT = Path(__file__).resolve().parents[1]
RECORDS = ROOT / "docs" / "records"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(<!-- generated: (?P<name>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
OURS, TIED = "frankenstein", "frankenstein-tied"


def fail(line: str) -> None:
    raise SystemExit(line)


# The comparison -------------------------------------------------------------------------------------------------------


@cache
def compared(folder: str) -> Loaded:
    return report.load(RECORDS / folder, fail)


def score_table(folder: str) -> str:
    return formats.markdown(tables.scores(compared(folder).summaries, compared(folder).overall))


def sentences(folder: str) -> str:
    """Return what the report's first screen says."""
    return "\n".join(f"- {line}" for line in verdict.verdict(compared(folder).overall, compared(folder).summaries))


def ours(folder: str) -> str:
    """Say where our optimizer wins and loses, with numbers."""
    summaries = compared(folder).summaries
    lines = [standing(summaries, name) for name in (OURS, TIED)]
    untuned = []
    for summary in summaries:
        sign = 1 if summary.config["is_higher_better"] else -1
        others = [row for row in summary.rows if row.optimizer != TIED]  # untuned, the two are the same
        if max(others, key=lambda row: sign * found(row.default).score.value).optimizer == OURS:
            untuned.append(summary.name)
    networks = [summary for summary in summaries if summary.name.startswith("digits")]
    own, whole = (cost_ratio(networks, name) for name in ("optimizer_seconds_per_step", "seconds_per_step"))
    lines += [
        f"- **Untuned**, each optimizer at its published default, Frankenstein has the best mean on "
        f"{len(untuned)} of {len(summaries)}: {listed(untuned)}. Its step is larger than Adam's at the same "
        f"rate, so defaults are no equal terms.",
        f"- **Cost**: on these small networks its own step takes {own:.1f} times Adam's wall time, a step with "
        f"forward and backward pass {whole:.1f} times; {large_step_cost()}.",
    ]
    return "\n".join(lines)


def standing(summaries: list[ProblemSummary], name: str) -> str:
    """Say on which problems an optimizer is best or level with the best, and by how much it is behind on the others."""
    level, behind = [], []
    for summary in summaries:
        mine, best = row_of(summary, name), summary.rows[0]
        if name in summary.best:
            level.append(f"{summary.name} ({words.mean(mine.tuned)})")
        else:
            behind.append(f"{summary.name} ({words.mean(mine.tuned)}; {best.title} {words.mean(best.tuned)})")
    title = row_of(summaries[0], name).title
    return f"- **{title}** is best, or level with the best, on {listed(level)}; behind on {listed(behind)}."


def row_of(summary: ProblemSummary, optimizer: str) -> Row:
    row = summary.row(optimizer)
    assert row is not None, f"{summary.name} lacks {optimizer}"
    return row


def found(setting: Setting | None) -> Setting:
    assert setting is not None, "a published row lacks records"
    return setting


def listed(names: list[str]) -> str:
    return ", ".join(names) if names else "none"


def cost_ratio(networks: list[ProblemSummary], name: str) -> float:
    """Return the ratio of seconds, ours to Adam's, median over the networks."""

    def seconds(summary: ProblemSummary, optimizer: str) -> float:
        return found(row_of(summary, optimizer).tuned).cost(name)

    return median(seconds(summary, OURS) / seconds(summary, "adam") for summary in networks)


def lr_beside_adam() -> str:
    def rate(summary: ProblemSummary, name: str) -> str:
        return f"{found(row_of(summary, name).tuned).settings['lr']:g}"

    summaries = compared("compare").summaries
    lines = ["| | " + " | ".join(summary.name for summary in summaries) + " |", "|---|" + "---|" * len(summaries)]
    for name in (OURS, TIED, "adam"):
        title = row_of(summaries[0], name).title
        lines.append(f"| {title} | " + " | ".join(rate(summary, name) for summary in summaries) + " |")
    return "\n".join(lines)


def setup(folder: str) -> str:
    summaries = compared(folder).summaries
    first = summaries[0].rows[0]
    n_trials, n_tuning = (len({record[name] for record in first.trials}) for name in ("trial", "seed"))
    n_seeds = len(found(first.tuned).records)
    records = [record for summary in summaries for record in summary.records]
    begin, end = (moment(of(r["finished_at"] for r in records)) for of in (min, max))
    origin = records[0]["provenance"]
    minutes = (end - begin).total_seconds() / 60
    per_trial = f"{n_tuning} seed{'s' * (n_tuning > 1)}"
    return (
        f"{len(summaries)} problems, {len(summaries[0].rows)} optimizers, {n_trials} trials each on the validation "
        f"split ({per_trial}), then {n_seeds} fresh seeds on the test split: {len(records):,} runs, {minutes:.0f} "
        f"minutes. torch {origin['versions']['torch']}, {origin['device']}."
    )


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def cost() -> str:
    """Say what the comparison costs beside the training."""
    measured = json.loads((RECORDS / "compare_cost.json").read_text())
    engine, shown, page = measured["engine"], measured["report"], measured["page"]
    share = 100 * engine["per_run"] / 10
    return (
        f"Beside the training itself, a run costs {1e3 * engine['per_run']:.0f} ms ({share:.2f} % of a run of ten "
        f"seconds), and workers start in {engine['start']:.0f} s. The report of {shown['n_runs']:,.0f} runs is made in "
        f"{shown['load_and_write']:.0f} s; one with {page['n_points']:,.0f} curve points opens in {page['open']:.1f} s."
    )


def estimates() -> str:
    """Say how far the estimate of the time left was off in the run of a suite."""
    measured = json.loads((RECORDS / "estimate.json").read_text())
    entries = measured["estimates"]
    lines = [f"| {measured['suite']}, {measured['seconds']:.0f} s in all: after | left | estimated |", "|---|---|---|"]
    lines += [f"| {e['after']:.0f} s | {e['left']:.0f} s | {e['estimated']:.0f} s |" for e in entries]
    return "\n".join(lines)


def photograph(page: Path, picture: Path) -> None:
    """Take a picture of the first screen of a report, as Chromium shows it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        screen = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
        screen.goto(page.as_uri())
        screen.wait_for_selector("svg.marks")
        screen.screenshot(path=picture)
        browser.close()


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
    if kind == "file":
        return f"```py\n{(ROOT / argument).read_text()}```"
    makers: dict[str, Callable[[], str]] = {
        "compare-setup": lambda: setup("compare"),
        "compare-table": lambda: score_table("compare"),
        "compare-verdict": lambda: ours("compare"),
        "small-setup": lambda: setup("small"),
        "small-table": lambda: score_table("small"),
        "small-sentences": lambda: sentences("small"),
        "small-verdict": lambda: ours("small"),
        "compare-cost": cost,
        "estimate": estimates,
        "lr-beside-adam": lr_beside_adam,
        "alignment-errors": alignment_table,
        "optimizer-rules": optimizers_markdown,
        **NETWORK_BLOCKS,
        **COST_BLOCKS,
        **RELAXATION_BLOCKS,
        **SPEED_BLOCKS,
        **STATE_BLOCKS,
        **TELEMETRY_BLOCKS,
    }
    return makers[name]()


def main(arguments: list[str]) -> int:
    if "--measure" in arguments:
        measure_alignment()
    stale = []
    for page in PAGES:
        text = page.read_text()
        if text.count("<!-- generated:") != len(BLOCK.findall(text)):
            fail(f"{page.name}: a generated block is not closed, or its name has a space")
        fresh = BLOCK.sub(lambda match: f"{match[1]}{block(match['name'])}\n{match[3]}", text)
        if fresh != text:
            stale.append(page.relative_to(ROOT))
            if "--check" not in arguments:
                page.write_text(fresh)
    if "--check" in arguments and stale:
        print(f"out of date: {', '.join(map(str, stale))}; run `python docs/generate.py`", file=sys.stderr)
        return 1
    if "--measure" in arguments:
        summaries = compared("compare").summaries
        charts.save(charts.overview(summaries), ROOT / "docs" / "images" / "compare.png")
        charts.save(charts.tuning_overview(summaries), ROOT / "docs" / "images" / "tuning.png")
        charts.save(findings("table2").charts[0], ROOT / "docs" / "images" / "lj38.png")
        for name in NETWORK_NAMES:
            for chart in network_findings(name).charts[:1]:
                charts.save(chart, ROOT / "docs" / "images" / f"{name}.png")
            for picture in network_findings(name).pictures:
                if picture.name.endswith(".gif") or name == "fig6":  # the last frame of an animation is the still
                    (ROOT / "docs" / "images" / picture.name).write_bytes(picture.draw())
        with tempfile.TemporaryDirectory() as place:
            page = report.write_html(Path(place), compared("small"))
            photograph(page, ROOT / "docs" / "images" / "report.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
