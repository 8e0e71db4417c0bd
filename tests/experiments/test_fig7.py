"""Fig. 7 end to end for a few steps, and what it says of made-up findings."""

from __future__ import annotations

import json

import pytest
from network_cases import reproduce

from frankenstein.compare.store.records import read
from frankenstein.experiments import fig7, networks

WORDS = ["fig7", "--steps", 4, "--starts", 2, "--methods", "frankenstein", "sgd"]


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fig7")
    done = reproduce(*WORDS, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_from_the_command_to_the_report(out):
    records = read(out, pytest.fail)
    assert {r["problem"] for r in records} == {"fig7-local-3x3", "fig7-local-3x4", "fig7-local-4x4-sector"}
    energies = {r["problem"]: r["details"]["ground_energy"] for r in records if r["split"] == "test"}
    assert energies["fig7-local-4x4-sector"] == pytest.approx(-8.45792335, abs=1e-6)  # records have six digits
    tried = {
        r["settings"]["lr"] for r in records if r["split"] == "validation" and r["optimizer"] == "fig7-frankenstein"
    }
    assert len(tried) == fig7.N_TRIALS
    page = (out / "report.html").read_text()
    assert "relative error" in page and "by the median error Frankenstein has place" in page
    assert page.count("<svg") == 9


def test_the_same_command_has_nothing_left_to_do(out):
    before = (out / "records.jsonl").read_bytes()
    assert reproduce(*WORDS, "--out", out).returncode == 0
    assert (out / "records.jsonl").read_bytes() == before


def test_a_run_that_diverged_has_the_worst_error(out):
    records = read(out, pytest.fail)
    for record in records:
        if record["optimizer"] == "fig7-sgd" and record["split"] == "test" and record["seed"] == 0:
            record["outcome"] = "diverged"
    summaries = networks.summaries(records, [p.name for p in fig7.LOCAL_PROBLEMS])
    found = fig7.findings(summaries)
    chart = next(one for one in found.charts if one.name == "fig7-local-3x3-errors")
    sgd = [row for row in chart.rows if row["optimizer"].startswith("SGD")]
    assert [row["share"] for row in sgd] == [0.5, 1.0] and sgd[-1]["error"] == fig7.WORST
    assert json.dumps(chart.complete())
