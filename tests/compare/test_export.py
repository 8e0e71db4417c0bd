from __future__ import annotations

import csv
import json
import math
import sys
from datetime import UTC, datetime
from statistics import fmean

import duckdb
import pandas as pd
import pytest
from compare.made_records import made_records

from frankenstein.compare.results import export as E
from frankenstein.compare.store.records import RecordError, appending

MADE = made_records(n_problems=2, n_optimizers=2, n_trials=3, n_seeds=2, n_points=5)
OTHERS = [
    MADE[0]
    | {"cell": "quotes", "reason": 'a "quoted", text\nof two lines; ü€', "settings": {"lr": 1, "nesterov": True}},
    MADE[1] | {"cell": "types", "settings": {"lr": 0.1, "mode": "fast", "mixed": True}},
    MADE[2] | {"cell": "mixed", "settings": {"lr": 0.2, "mode": 3, "mixed": 0.5, "betas[0]": 0.1 + 0.2, "betas_0": 7}},
    MADE[3]
    | {"cell": "bytes", "command": "frankenstein compare --out caf\udce9", "finished_at": "2026-05-01T12:00:00+02:00"},
    MADE[4] | {"cell": "odd", "finished_at": "yesterday", "provenance": {"versions": {}, "system": "", "device": ""}},
]
RECORDS = MADE + OTHERS
FILES = [("runs", "parquet"), ("curves", "parquet"), ("runs", "csv"), ("curves", "csv")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    with appending(folder, pytest.fail) as (_, append):
        for record in RECORDS:
            append(record)
    return folder


@pytest.fixture(scope="module")
def out(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "new" / "folder"
    files = E.export([folder], out, ["parquet", "csv"], pytest.fail)
    assert files == [out / f"{table}.{kind}" for table, kind in FILES]
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in files)  # nothing half-written
    return out


def text(value):
    return None if value is None else value.encode("utf-8", "backslashreplace").decode()


def utc(value):
    return datetime.fromisoformat(value).astimezone(UTC).replace(tzinfo=None)


def expected_run(record):
    """Return the row of a record, by a plain reading of what each column means."""
    problem, origin = record["problem_config"], record["provenance"]
    same = ["cell", "problem", "problem_title", "optimizer", "optimizer_title", "split", "seed", "trial", "tuner"]
    same += ["outcome", "reason", "score", "steps_to_target", "seconds_to_target", "wall_seconds", "attempt", "schema"]
    if_run = ["n_steps_done", "seconds_per_step", "optimizer_seconds_per_step", "state_bytes", "n_params"]
    of_problem = ["metric", "is_higher_better", "target", "worst", "n_steps", "lr_scale"]
    versions = ["python", "frankenstein", "numpy", "torch", "jax"]
    odd_time = record["finished_at"] == "yesterday"
    return {
        **{name: record[name] for name in same},
        **{name: record.get(name) for name in if_run},
        **{name: problem[name] for name in of_problem},
        **{name: origin.get(name) for name in ("git", "system", "device")},
        "command": text(record["command"]),
        "finished_at_utc": None if odd_time else utc(record["finished_at"]),
        "optimizer_class": record["optimizer_config"]["class"],
        "setting_lr": record["settings"]["lr"],
        "setting_betas_0": record["settings"].get("betas[0]"),
        "setting_betas_0_": record["settings"].get("betas_0"),  # two names that SQL cannot tell apart
        "setting_nesterov": record["settings"].get("nesterov"),
        "setting_mode": {"types": "fast", "mixed": "3"}.get(record["cell"]),
        "setting_mixed": {"types": "true", "mixed": "0.5"}.get(record["cell"]),
        **{f"version_{name}": origin["versions"].get(name) for name in versions},
        **{f"{name}_json": record[name] for name in E.WHOLE},
    }


def expected_points():
    for record in RECORDS:
        curve = record["curve"]
        losses = curve.get("train_loss", [None] * len(curve["step"]))
        for step, score, seconds, loss in zip(curve["step"], curve["score"], curve["seconds"], losses, strict=True):
            yield record["cell"], step, score, seconds, loss


def taken_apart(row):
    return {name: json.loads(value) if name.endswith("_json") else value for name, value in row.items()}


def roles():
    """Return (is_tuned, is_default) by cell: the best mean validation score, looked for by hand."""
    trials, found = {}, {}
    for record in RECORDS:
        if record["split"] == "validation":
            sign = 1 if record["problem_config"]["is_higher_better"] else -1
            key = record["problem"], record["optimizer"]
            trials.setdefault(key, {}).setdefault(json.dumps(record["settings"]), []).append(sign * record["score"])
    for record in RECORDS:
        means = {settings: fmean(scores) for settings, scores in trials[record["problem"], record["optimizer"]].items()}
        best, is_test = json.loads(max(means, key=means.get)), record["split"] == "test"
        is_default = record["settings"] == record["optimizer_config"]["default"]
        found[record["cell"]] = is_test and record["settings"] == best, is_test and is_default
    assert {(True, False), (False, True), (False, False)} <= set(found.values())
    return found


ROLES = roles()
RUNS = {record["cell"]: expected_run(record) for record in RECORDS}
POINTS = list(expected_points())
TYPES = {
    str: "VARCHAR",
    int: "BIGINT",
    float: "DOUBLE",
    bool: "BOOLEAN",
    datetime: "TIMESTAMP",
}


def query(sql):
    with duckdb.connect() as connection:
        result = connection.execute(sql)
        names = [column[0] for column in result.description]
        return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def test_the_records_have_every_kind_of_outcome_and_gap():
    """Otherwise the comparisons here would prove less than they say."""
    assert {row["outcome"] for row in RUNS.values()} == {"finished", "diverged", "failed"}
    assert any(row["reason"] == "" for row in RUNS.values())
    assert any(loss is None for *_, loss in POINTS) and any(loss is not None for *_, loss in POINTS)


def test_every_value_of_the_parquet_runs_is_right_in_duckdb(out):
    rows = query(f"FROM '{out}/runs.parquet'")
    assert [row["cell"] for row in rows] == list(RUNS)
    for row in rows:
        expected = RUNS[row["cell"]]
        assert (row.pop("is_tuned"), row.pop("is_default")) == ROLES[row["cell"]]
        assert row.keys() == expected.keys()
        assert taken_apart(row) == expected
    declared = {row["column_name"]: row["column_type"] for row in query(f"DESCRIBE FROM '{out}/runs.parquet'")}
    assert {name: declared[name] for name, _, _ in E.COLUMNS} == {name: TYPES[kind] for name, _, kind in E.COLUMNS}
    assert (declared["setting_lr"], declared["setting_nesterov"]) == ("DOUBLE", "BOOLEAN")
    assert (declared["setting_mode"], declared["version_jax"]) == ("VARCHAR", "VARCHAR")


def test_every_value_of_the_parquet_runs_is_right_in_pandas(out):
    for options in ({}, {"dtype_backend": "pyarrow"}, {"dtype_backend": "numpy_nullable"}):
        frame = pd.read_parquet(out / "runs.parquet", **options)
        assert list(frame["cell"]) == list(RUNS)
        assert isinstance(frame["finished_at_utc"].iloc[0], pd.Timestamp)
        for row in frame.to_dict("records"):
            present = {name: None if pd.isna(value) else value for name, value in row.items()}
            assert (present.pop("is_tuned"), present.pop("is_default")) == ROLES[row["cell"]]
            assert taken_apart(present) == RUNS[row["cell"]]


def test_every_point_is_right_in_duckdb_and_pandas(out):
    rows = query(f"FROM '{out}/curves.parquet'")
    assert list(rows[0]) == ["cell", "step", "score", "seconds", "train_loss"]
    assert [tuple(row.values()) for row in rows] == POINTS
    frame = pd.read_parquet(out / "curves.parquet", dtype_backend="pyarrow")
    assert [
        tuple(None if pd.isna(value) else value for value in row) for row in frame.itertuples(index=False)
    ] == POINTS
    described = query(f"DESCRIBE FROM '{out}/curves.parquet'")
    assert [row["column_type"] for row in described] == ["VARCHAR", "BIGINT", "DOUBLE", "DOUBLE", "DOUBLE"]


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_query_that_joins_both_tables(out, kind):
    """The mean score at each step of one optimizer's test runs, and a setting out of the JSON text."""
    rows = query(f"""
        SELECT step, avg(curves.score) AS mean, count(*) AS n
        FROM '{out}/runs.{kind}' AS runs JOIN '{out}/curves.{kind}' AS curves USING (cell)
        WHERE problem = 'problem-1' AND optimizer = 'optimizer-0' AND split = 'test' AND setting_lr > 0.0002
        GROUP BY step ORDER BY step
    """)
    tests = [r for r in MADE if (r["problem"], r["optimizer"], r["split"]) == ("problem-1", "optimizer-0", "test")]
    scores = [record["curve"]["score"] for record in tests if record["settings"]["lr"] > 0.0002]
    assert len(scores) == 2
    assert [row["n"] for row in rows] == [2] * 5
    assert [row["mean"] for row in rows] == pytest.approx([sum(column) / 2 for column in zip(*scores, strict=True)])
    (row,) = query(f"SELECT settings_json ->> '$.\"betas[0]\"' AS beta FROM '{out}/runs.{kind}' WHERE cell = 'mixed'")
    assert float(row["beta"]) == 0.1 + 0.2


def test_every_value_of_the_csv_files_is_right(out):
    """An empty text and a missing value are both an empty field: the one thing that CSV cannot tell apart."""
    with open(out / "runs.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["cell"] for row in rows] == list(RUNS)
    kinds = {name: kind for name, _, kind in E.COLUMNS}
    read = {
        bool: {"true": True, "false": False}.get,
        datetime: datetime.fromisoformat,
        int: int,
        float: float,
        str: str,
    }
    settings = {"setting_lr": float, "setting_betas_0": float, "setting_betas_0_": float, "setting_nesterov": bool}
    settings |= {"is_tuned": bool, "is_default": bool}
    for row in rows:
        present = {
            name: read[(kinds | settings).get(name, str)](value) if value else None for name, value in row.items()
        }
        assert (present.pop("is_tuned"), present.pop("is_default")) == ROLES[row["cell"]]
        assert taken_apart(present) == {
            name: None if value == "" else value for name, value in RUNS[row["cell"]].items()
        }
    with open(out / "curves.csv", newline="", encoding="utf-8") as file:
        points = [tuple(row.values()) for row in csv.DictReader(file)]
    assert points == [tuple("" if value is None else str(value) for value in point) for point in POINTS]


def test_csv_columns_have_their_types_in_duckdb_and_pandas_without_help(out):
    (row,) = query(f"""
        SELECT typeof(seed) AS seed, typeof(trial) AS trial, typeof(score) AS score, typeof(finished_at_utc) AS time,
               typeof(is_higher_better) AS is_higher_better, typeof(setting_nesterov) AS setting_nesterov
        FROM '{out}/runs.csv' LIMIT 1
    """)
    assert row == {
        "seed": "BIGINT",
        "trial": "BIGINT",
        "score": "DOUBLE",
        "time": "TIMESTAMP",
        "is_higher_better": "BOOLEAN",
        "setting_nesterov": "BOOLEAN",
    }
    frame = pd.read_csv(out / "runs.csv")
    assert (frame["seed"].dtype, frame["score"].dtype, frame["is_higher_better"].dtype) == ("int64", "float64", "bool")


def test_only_failed_runs_make_an_empty_table_of_curves(tmp_path):
    failed = [record for record in MADE if record["outcome"] == "failed"]
    with appending(tmp_path / "run", pytest.fail) as (_, append):
        for record in failed:
            append(record)
    E.export([tmp_path / "run"], tmp_path, ["parquet", "csv"])
    assert [row["n_params"] for row in query(f"FROM '{tmp_path}/runs.parquet'")] == [None] * len(failed)
    assert query(f"FROM '{tmp_path}/curves.parquet'") == []
    assert (tmp_path / "curves.csv").read_text() == "cell,step,score,seconds\n"
    described = query(f"DESCRIBE FROM '{tmp_path}/runs.parquet'")
    assert {row["column_name"]: row["column_type"] for row in described}["n_params"] == "BIGINT"


def test_of_several_folders_each_cell_is_there_once(tmp_path, folder):
    later = MADE[0] | {"score": 0.123, "finished_at": "2030-01-01T00:00:00+00:00"}
    with appending(tmp_path / "run", pytest.fail) as (_, append):
        append(later)
    said = []
    E.export([folder, tmp_path / "run"], tmp_path, ["parquet"], said.append)
    rows = {row["cell"]: row for row in query(f"FROM '{tmp_path}/runs.parquet'")}
    assert rows.keys() == RUNS.keys()
    assert rows[later["cell"]]["score"] == 0.123
    assert len(said) == 1 and "1 with another result" in said[0]


def test_damage_is_said_on_standard_error(tmp_path, folder, capsys):
    (tmp_path / "records.jsonl").write_bytes((folder / "records.jsonl").read_bytes() + b'{"half')
    E.export([tmp_path], tmp_path, ["csv"])
    assert "skipped" in capsys.readouterr().err


def test_wrong_input_is_one_line_and_writes_nothing(tmp_path, folder, monkeypatch):
    def refused(folders, out, formats, error, match):
        with pytest.raises(error, match=match) as raised:
            E.export(folders, out, formats)
        assert "\n" not in str(raised.value)

    out = tmp_path / "out"
    refused([folder], out, ["csv", "xlsx"], E.ExportError, "no format 'xlsx'; there are parquet and csv")
    refused([tmp_path / "absent"], out, ["csv"], RecordError, "absent is no folder; name a run folder")
    refused([tmp_path], out, ["csv"], RecordError, "no records in ")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    cure = r"need the package pyarrow: pip install '.\[export\]' \(in the checkout\), or choose csv"
    refused([folder], out, ["csv", "parquet"], E.ExportError, cure)
    assert not out.exists()
    E.export([folder], out, ["csv"])  # needs nothing
    (tmp_path / "file").write_text("")
    refused([folder], tmp_path / "file", ["csv"], RecordError, "cannot use .*file: ")


@pytest.mark.parametrize("value", ["many", 2.5, [1], 2**63, math.inf])
def test_a_number_that_is_none_is_named(tmp_path, value):
    with pytest.raises(E.ExportError, match="a record has something else than int in 'n_params'"):
        E.runs([MADE[0] | {"n_params": value}])


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path, folder, kind):
    """A limit on the file's size stands in for a full disk."""
    resource = pytest.importorskip("resource")
    E.export([folder], tmp_path, [kind])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(RecordError, match=rf"cannot write .*runs.{kind}: .*File too large"):
            E.export([folder], tmp_path, [kind])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
