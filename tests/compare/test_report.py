from __future__ import annotations

import dataclasses
import json
from html.parser import HTMLParser

import pytest
from made_records import made_records

from frankenstein.compare import report
from frankenstein.compare.report import charts, sections
from frankenstein.compare.report.charts import curves, tuning
from frankenstein.compare.report.charts.chart import is_ours
from frankenstein.compare.report.formats import Cell, Table
from frankenstein.compare.results.overall import overall
from frankenstein.compare.results.summary import summarise
from frankenstein.compare.store.records import RecordError, appending

HOSTILE = "</script><script>alert('&amp;')</script><!--"
REFERENCE = {"title": "a published run", "source": "Someone 2021", "step": [0, 100, 200], "score": [1.0, -1.0, -2.0]}


@pytest.fixture(scope="module")
def records():
    return made_records()


def loaded(records, references=None):
    return report.Loaded(summarise(records), references or {})


def html_of(folder, records, references=None):
    return report.write_html(folder, loaded(records, references)).read_text(encoding="utf-8")


def write(folder, records, references=None):
    with appending(folder, pytest.fail) as (_, append):
        for record in records:
            append(record)
    if references is not None:
        (folder / "references.json").write_text(json.dumps(references))
    return folder


class Page(HTMLParser):
    """The elements of a page, and the text of its JSON scripts."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.parts, self.text = [], {}, []
        self.tag, self.part = "", None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tag = tag
        self.elements.append((tag, dict(attributes)))
        if tag == "script" and ("type", "application/json") in attributes:
            self.part = dict(attributes).get("data-name", "looks")

    def handle_data(self, data):
        if self.part:
            self.parts[self.part], self.part = json.loads(data), None
        elif self.tag not in ("script", "style"):
            self.text.append(data)

    def handle_endtag(self, tag):
        self.tag = ""

    def every(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


# What is in it --------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_but_itself(records, tmp_path):
    html = html_of(tmp_path, records)
    page = Page(html)
    for tag, attributes in page.elements:
        assert "src" not in attributes
        assert tag not in ("img", "iframe", "object")
        assert attributes.get("href", "#").startswith(("#", "data:"))
    assert "@import" not in html and "url(" not in html.partition("</style>")[0]
    policy = next(meta["content"] for meta in page.every("meta") if meta.get("http-equiv"))
    assert "default-src 'none'" in policy  # a browser refuses any request, whatever a script tries


def test_the_page_says_what_was_found(records, tmp_path):
    made = loaded(records)
    html = html_of(tmp_path, records)
    text = " ".join(Page(html).text)
    for sentence in sections.page(made).verdict:
        assert sentence in text
    for words in (
        *("3 optimizers", "2 problems", "132 runs", "problem-0", "Optimizer 2", "frankenstein compare --problems some"),
        *("torch 2.13.0", "0123456789abcdef", "some.module:Optimizer1", "RuntimeError: made to fail", "weight_decay"),
    ):
        assert words in text, words
    assert "nan" not in text.lower()


def test_every_chart_has_its_data(records, tmp_path):
    page = Page(html_of(tmp_path, records))
    plots = [attributes for attributes in page.every("div") if attributes.get("class") == "plot"]
    assert len(plots) == 8 + 2 * (1 + 4)  # across problems; then each problem, and its curves on the overview
    for plot in plots:
        chart = page.parts[plot["data-part"]][plot["data-chart"]]
        assert chart["rows"]
        assert "data" not in chart["spec"]
        assert plot["role"] == "img" and len(plot["aria-label"]) > 40


def test_pages_and_links_belong_together(tmp_path):
    records = made_records(1, 2, 1, 3, 3)
    page = Page(html_of(tmp_path, [record | {"problem": "a b/c#d%"} for record in records]))
    identities = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    targets = {link["href"][1:] for link in page.every("a")}
    assert "/problem/a%20b%2Fc%23d%25" in targets
    assert targets <= set(identities)


def test_names_cannot_break_out(records, tmp_path):
    """Guards against titles, reasons and commands that end an element of the page, or begin one."""
    names = {"optimizer_title": HOSTILE, "problem": HOSTILE, "problem_title": HOSTILE, "command": HOSTILE}
    hostile = [record | names | {"optimizer": f"{record['optimizer']}{HOSTILE}"} for record in records]
    hostile = [record | ({"reason": HOSTILE} if record["outcome"] == "failed" else {}) for record in hostile]
    references = {HOSTILE: [REFERENCE | {"title": HOSTILE, "source": HOSTILE}]}
    tame = Page(html_of(tmp_path, [record | {"problem": "tame"} for record in records]))
    page = Page(html_of(tmp_path, hostile, references))
    assert len(page.every("script")) == len(tame.every("script"))
    assert "".join(page.text).count(HOSTILE) > 10  # as text
    assert any(HOSTILE in json.dumps(part, ensure_ascii=False) for part in page.parts.values())


def test_references_are_drawn_apart(records, tmp_path):
    page = Page(html_of(tmp_path, records, {"problem-1": [REFERENCE], "absent": [REFERENCE]}))
    chart = page.parts["/problem/problem-1"]["curves-problem-1"]
    assert "a published run (Someone 2021)" in json.dumps(chart["spec"])
    assert "published" not in json.dumps(chart["rows"])
    assert "a published run" not in json.dumps(page.parts["/problem/problem-0"])


def half_finished():
    made = made_records()
    default_only = [r for r in made if r["split"] == "test" and r["settings"] == r["optimizer_config"]["default"]]
    return {
        "tuning only": [r for r in made if r["split"] == "validation"],
        "a single run": made[:1],
        "no tuning": default_only,
        "one seed": made_records(n_seeds=1),
        "one problem, one optimizer": made_records(1, 1),
        "one optimizer": made_records(3, 1),
        "failures only": [
            r
            | {
                "outcome": "failed",
                "score": r["problem_config"]["worst"],
                "curve": {"step": [], "score": [], "seconds": []},
            }
            for r in made
        ],
        "one problem not begun by one": [
            r for r in made if (r["problem"], r["optimizer"]) != ("problem-1", "optimizer-0")
        ],
    }


@pytest.mark.parametrize("what", half_finished())
def test_a_half_finished_folder_has_a_report(tmp_path, what):
    records = half_finished()[what]
    text = " ".join(Page(html_of(tmp_path, records)).text)
    assert "Which optimizer should I use?" in text
    files = report.write_files(tmp_path, loaded(records))
    assert all(path.stat().st_size for path in files)


# Loading --------------------------------------------------------------------------------------------------------------


def test_several_folders_are_one(records, tmp_path):
    """One machine ran the first problem, another the second, and the first one's last cell again."""
    first, second = ([r for r in records if r["problem"] == f"problem-{i}"] for i in (0, 1))
    again = first[-1] | {"score": 0.5, "finished_at": "2027-01-01T00:00:00+00:00", "outcome": "finished"}
    folders = [
        write(tmp_path / "a", first, {"problem-0": [REFERENCE]}),
        write(tmp_path / "b", [*second, again], {"problem-0": [REFERENCE], "problem-1": [REFERENCE]}),
    ]
    lines = []
    together = report.load(folders, lines.append)
    assert [summary.name for summary in together.summaries] == ["problem-0", "problem-1"]
    scores = [record["score"] for record in together.summaries[0].records if record["cell"] == again["cell"]]
    assert scores == [0.5]
    assert len(lines) == 1 and "1 with another result" in lines[0]
    assert together.references == {"problem-0": [REFERENCE], "problem-1": [REFERENCE]}
    assert report.load(folders[0], pytest.fail).references == {"problem-0": [REFERENCE]}


@pytest.mark.parametrize(
    "broken",
    [{"score": [1.0]}, {"step": "0"}, {"step": [0, 1, None]}, {"step": [], "score": []}, {"source": 3}],
    ids=str,
)
def test_a_reference_that_is_no_curve_is_left_out(records, tmp_path, broken):
    write(tmp_path, records, {"problem-0": [REFERENCE | broken, REFERENCE]})
    lines = []
    assert report.load(tmp_path, lines.append).references == {"problem-0": [REFERENCE]}
    assert len(lines) == 1 and "'a published run' of problem-0 has no steps and scores; left out" in lines[0]


def test_nothing_to_report(tmp_path):
    with pytest.raises(RecordError, match="no records in"):
        report.load(tmp_path, pytest.fail)
    with pytest.raises(RecordError, match="is no folder"):
        report.load([tmp_path / "absent"], pytest.fail)


def test_a_folder_that_cannot_be_written(records, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"cannot write .*file.*: "):
        report.write_html(tmp_path / "file", loaded(records))
    with pytest.raises(RecordError, match=r"cannot write .*file.*: "):
        report.write_files(tmp_path / "file", loaded(records))


# Charts ---------------------------------------------------------------------------------------------------------------


def rows_of(chart, **wanted):
    return [row for row in chart.rows if all(row.get(key) == value for key, value in wanted.items())]


def test_runs_that_stopped_early_are_worst_from_there_on(records):
    made = [dict(r) for r in records if r["problem"] == "problem-1" and r["optimizer"] == "optimizer-0"]
    tuned = summarise(made)[0].rows[0].tuned.records
    diverged, failed, whole = tuned[0], tuned[1], tuned[2]
    diverged |= {"outcome": "diverged", "curve": {name: values[:4] for name, values in whole["curve"].items()}}
    failed |= {"outcome": "failed", "curve": {"step": [], "score": [], "seconds": []}}
    (summary,) = summarise(made)
    chart = curves.curves(summary, charts.looks([summary], None))
    first, second, third = rows_of(chart, setting="tuned")[:3]
    n = len(whole["curve"]["step"])
    assert first["step"] == second["step"] == third["step"] == whole["curve"]["step"]
    assert first["score"][:4] == pytest.approx(whole["curve"]["score"][:4], rel=1e-4)
    assert first["score"][4:] == [3.0] * (n - 4)
    assert first["seconds"][4:] == first["train_loss"][4:] == [None] * (n - 4)
    assert second["score"] == [3.0] * n
    assert second["train_loss"] == []


def test_trials_are_means_over_their_seeds(records):
    summary = summarise(records)[0]
    row = summary.row("optimizer-1")
    points = rows_of(tuning.tuning(summary, charts.looks([summary], None)), optimizer="Optimizer 1")
    assert len(points) == 4
    assert sum(point["is_best"] for point in points) == 1
    best = next(point for point in points if point["is_best"])
    scores = [record["score"] for record in row.trials if record["settings"] == row.tuned.settings]
    assert best["score"] == pytest.approx(sum(scores) / len(scores), rel=1e-4)
    assert best["lr"] == row.tuned.settings["lr"]
    assert "betas[0] = " in best["second"] and 0.0 <= best["unit"] <= 1.0
    assert [point["outcome"] for point in points] == ["finished"] * 3 + ["diverged"]


def test_accuracy_is_shown_as_error_and_a_logarithm_never_on_a_log_axis(records):
    accuracy, logarithm = summarise(records)
    styles = charts.looks([accuracy, logarithm], None)
    shown = [curves.curves(summary, styles).spec["usermeta"]["views"] for summary in (accuracy, logarithm)]
    assert [view["quantity"] for view in shown[0]] == ["error", "score"]
    assert [view["quantity"] for view in shown[1]] == ["score", "train_loss"]
    assert [view["can_log"] for view in shown[1]] == [False, True]


@pytest.mark.parametrize("n_optimizers", [3, 25])
def test_every_optimizer_has_its_own_look(n_optimizers):
    summaries = summarise(made_records(2, n_optimizers, 1, 3, 2))
    styles = charts.looks(summaries, overall(summaries))
    assert len({(look.colour, *look.dash) for look in styles}) == n_optimizers
    assert styles[0].label == "Optimizer 0"  # the best mean rank
    assert sum(look.is_strong for look in styles) == min(n_optimizers, 5)


def test_ours_come_first_and_are_strong():
    records = made_records(1, 12, 1, 3, 2)
    for record in records:
        if record["optimizer"] == "optimizer-11":
            record["optimizer_config"]["class"] = "frankenstein.torch:Frankenstein"
    summaries = summarise(records)
    first = charts.looks(summaries, overall(summaries))[0]
    assert (first.optimizer, first.is_ours, first.is_strong) == ("optimizer-11", True, True)
    assert not is_ours("frankensteinian.torch:Other")


def test_equal_titles_are_told_apart():
    records = [record | {"optimizer_title": "Adam"} for record in made_records(1, 2, 1, 3, 2)]
    styles = charts.looks(summarise(records), None)
    assert {look.label for look in styles} == {"Adam (optimizer-0)", "Adam (optimizer-1)"}


def test_every_figure_and_table_is_a_file(records, tmp_path):
    made = loaded(records, {"problem-1": [REFERENCE]})
    files = report.write_files(tmp_path, made)
    names = {path.relative_to(tmp_path).as_posix() for path in files}
    for name in ("overview", "tuning-overview", "aggregate", "ranks", "wins", "profiles-steps", "curves-problem-1"):
        assert {f"figures/{name}.{suffix}" for suffix in ("png", "svg", "pdf")} <= names
    assert {"tables/overall.csv", "tables/overall.tex", "tables/problem-problem-0.csv"} <= names
    starts = {".png": b"\x89PNG", ".svg": b"<svg", ".pdf": b"%PDF"}
    for path in files:
        assert path.read_bytes().startswith(starts.get(path.suffix, b""))
    svg = (tmp_path / "figures" / "overview.svg").read_text()
    for words in ("problem-0", "problem-1", "Optimizer 0", "Optimizer 2"):
        assert words in svg


def test_panels_of_one_figure_keep_their_own_axes(records):
    """One problem is shown as an error on a log axis, the other as it is."""
    spec = json.dumps(charts.overview(summarise(records)).complete())
    for name in ("quantity", "is_log", "setting =="):
        assert f" {name} " not in spec.replace("datum.setting ==", "")
    assert '"type": "log"' in spec and '"type": "linear"' in spec


def test_estimates_stand_below_each_other():
    cells = [Cell("1.5 [1, 2]", False, {"": 1.5, "low": 1.0, "high": 2.0}), Cell("-")]
    cells.append(Cell("0.123 [0.121, 0.125]", True, {"": 0.123, "low": 0.121, "high": 0.125}))
    table = sections.even(Table("a", "A", ["x"], [[cell] for cell in cells]))
    assert [row[0].text for row in table.rows] == ["1.500 [1.000, 2.000]", "-", "0.123 [0.121, 0.125]"]
    assert dataclasses.replace(table.rows[2][0], text="") == dataclasses.replace(cells[2], text="")
