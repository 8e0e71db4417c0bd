"""`frankenstein reproduce`: what the user types, and what comes out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from frankenstein.cli import main
from frankenstein.experiments import EXPERIMENTS, ablation, relaxation, table2, table4
from frankenstein.experiments.relaxations import crystals
from frankenstein.experiments.relaxations.summary import summaries

COMMAND = [sys.executable, "-c", "import sys; from frankenstein.cli import main; sys.exit(main())"]


def record(kind, method, start, calls, *, energy=-165.0, converged=True, n_atoms=38):
    return {
        "cell": f"{kind}/{method}/{start}",
        "kind": kind,
        "kind_config": {"recipe": "by hand", "fmax": 0.01, "maxcalls": 500, "source": "here"},
        "method": method,
        "method_title": method,
        "start": start,
        "n_atoms": n_atoms,
        "calls": calls,
        "energy": energy,
        "fmax": 0.005,
        "converged": converged,
        "reason": "converged" if converged else "maxcalls",
        "seconds": 1.0,
    }


def cells(table):
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def test_summaries_use_the_starts_that_all_methods_have():
    records = [record("lj38", "frankenstein", i, 10 + i) for i in range(4)]
    records += [record("lj38", "fire", i, 100) for i in (3, 1)]
    ours, fire = summaries(records, ["frankenstein", "fire", "cg"])
    assert ours.calls.tolist() == [11, 13] and fire.calls.tolist() == [100, 100]


def test_table_2_counts_failures_and_never_praises_a_method_that_failed():
    records = [record("lj38", "frankenstein", i, 150, energy=-165.0 if i else -173.9284) for i in range(4)]
    records += [record("lj38", "fire", i, 600, energy=-164.0) for i in range(4)]
    records += [record("lj38", "fire2", i, 20, energy=0.0) for i in range(4)]  # fast: the cluster is gone
    records += [record("lj38", "lbfgs", i, 10_000 if i else 90, converged=bool(not i)) for i in range(4)]
    found = table2.findings(records)
    main_table = cells(found.tables[0])
    assert main_table["Frankenstein"][0] == "150" and main_table["Frankenstein"][5] == "0 of 4"
    assert main_table["Frankenstein"][-1] == "1"  # found the global minimum once
    assert main_table["FIRE2"][5] == "4 of 4" and main_table["LBFGS"][5] == "3 of 4"
    assert [row[0].text for row in found.tables[0].rows if row[1].is_best] == ["Frankenstein"]
    assert "The next that never failed is FIRE" in found.sentences[1]
    assert "LBFGS 3, FIRE2 4" in found.sentences[2]
    assert cells(found.tables[1])["FIRE"] == ["656 (208 to 1000)", "600 (600 to 600)"]


def test_ratios_are_to_fire_and_to_the_best_of_the_rivals():
    records = []
    for kind, ours in (("lj75", 200), ("morse30", 40)):
        means = {"frankenstein": ours, "fire": 800, "lbfgs": 400, "lbfgsls": 500, "cg": 320, "bfgsls": 10, "fire2": 1}
        for method, calls in means.items():
            records += [record(kind, method, i, calls, energy=-380.0) for i in range(2)]
    found = relaxation.findings(records)
    # geometric means of (0.25, 0.05) and of (0.625, 0.125)
    assert "takes 0.11 of FIRE's" in found.sentences[0] and "and 0.28 of those" in found.sentences[0]
    assert "LJ75" in found.sentences[1] and "0.62" in found.sentences[1]
    assert found.sentences[2] == "It failed in 0 of 4 runs."


def test_the_ablation_is_relative_to_the_whole_rule():
    records = [
        record("lj75", name, i, 100 * (1 + k), energy=-380.0)
        for i in range(2)
        for k, name in enumerate(ablation.METHODS)
    ]
    table = cells(ablation.findings(records).tables[0])
    assert table["Frankenstein"][-1] == "1.00" and table["memory of 1 step"][-1] == "2.00"


def test_table_4_measures_errors_from_the_best_that_any_method_found():
    records = []
    for method, energy in (("frankenstein", -10.0), ("lbfgs", -9.0), ("fire", -10.0 + 5e-4)):
        records += [record("table4/chgnet", method, i, 30, energy=energy, n_atoms=5) for i in range(2)]
    table = cells(table4.findings(records).tables[0])
    assert [row[3:5] for row in table.values()] == [["0.00", "0"], ["200.00", "2"], ["0.10", "0"]]


def test_the_list_names_every_experiment(capsys):
    assert main(["reproduce", "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(EXPERIMENTS)


@pytest.mark.parametrize(
    "words, line",
    [
        (["reproduce"], "which experiment? known: table2"),
        (["reproduce", "tabel2"], "unknown experiment 'tabel2'; did you mean 'table2'?"),
        (["reproduce", "table2", "--data-dir", "nowhere"], "no data folder nowhere; name it by --data-dir"),
        (["reproduce", "table2", "--methods", "fier"], "unknown method 'fier'; did you mean 'fire'?"),
        (["reproduce", "table2", "--starts", "0"], "'0' is not a whole number of at least 1"),
        (["reproduce", "table4", "--preset", "paper"], "--preset paper needs --structures PATH"),
        (["reproduce", "table4", "--calculator", "x:Y"], "--structures and --calculator belong to --preset paper"),
        (["reproduce", "table2", "--calculator", "x:Y"], "--structures and --calculator belong to table4"),
        (
            ["reproduce", "table4", "--preset", "paper", "--structures", "a", "b"],
            "--structures takes one file or one folder",
        ),
        (["reproduce", "table4", "--preset", "paper", "--structures", "a", "--calculator", "emt"], "or module:Factory"),
        (["reproduce", "table4"], "needs crystals/wbm_972.extxyz.gz in the folder of --data-dir or FRANKENSTEIN_DATA"),
        (
            ["reproduce", "table4", "--preset", "paper", "--structures", "none.cif", "--calculator", "a:B"],
            "no file or folder none.cif",
        ),
    ],
)
def test_wrong_input_gets_one_line_and_exit_code_2(words, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FRANKENSTEIN_DATA", raising=False)
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert line in printed and printed.count("\n") == 1
    assert not list(tmp_path.glob("runs/*")), "a folder was left"


def test_table_2_runs_is_shown_and_written_and_goes_on(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("FRANKENSTEIN_DATA", raising=False)
    words = ["reproduce", "table2", "--out", str(tmp_path), "--workers", "1", "--methods", "frankenstein", "cg"]
    assert main([*words, "--starts", "2"]) == 0
    printed = capsys.readouterr().out
    assert "Frankenstein takes" in printed and "2 of 2 converged" in printed
    for name in ("report.html", "tables/table2.csv", "tables/table2.tex", "figures/table2-calls.png"):
        assert (tmp_path / name).stat().st_size > 300 and str(tmp_path / name) in printed
    page = (tmp_path / "report.html").read_text()
    assert "<svg" in page and "Table 2: LJ38" in page and "http" not in page.replace("http://www.w3.org", "")
    first = (tmp_path / "records.jsonl").read_text()
    assert main([*words, "--starts", "3"]) == 0
    assert (tmp_path / "records.jsonl").read_text().startswith(first)
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 6


def test_a_folder_belongs_to_one_experiment(capsys, tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "experiment.txt").write_text("table4\n")
    assert main(["reproduce", "fig11", "--out", str(tmp_path / "one")]) == 2
    assert "one holds table4; choose another folder with --out" in capsys.readouterr().err
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "thesis.tex").touch()
    assert main(["reproduce", "fig11", "--out", str(tmp_path / "two")]) == 2
    assert "two holds something else; choose an empty folder" in capsys.readouterr().err


def test_all_of_them_run_one_after_the_other_into_one_report(capsys, tmp_path, monkeypatch):
    """Guards against one that cannot run and takes the others with it, and a report that does not say so."""
    kept = {name: EXPERIMENTS[name] for name in ("table4", "fig11")}  # table4 needs data, and there are none
    monkeypatch.setattr("frankenstein.cli.reproduce.EXPERIMENTS", kept)
    monkeypatch.delenv("FRANKENSTEIN_DATA", raising=False)
    assert main(["reproduce", "--all", "--out", str(tmp_path / "all")]) == 1
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "all" / "report.html")
    assert "table4: needs" in said.err
    page = (tmp_path / "all" / "report.html").read_text()
    assert "not run: needs" in page and 'href="fig11/report.html"' in page
    assert (tmp_path / "all" / "fig11" / "report.html").exists() and not (tmp_path / "all" / "table4").exists()


def test_runs_that_all_fail_are_told_and_not_averaged(capsys, tmp_path):
    """EMT does not know silicon: no ratio, no NaN, and the calculator's own words."""
    from ase.build import bulk
    from ase.io import write

    write(tmp_path / "si.cif", bulk("Si", cubic=True))
    words = ["reproduce", "table4", "--preset", "paper", "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*words, "--structures", str(tmp_path / "si.cif"), "--calculator", "ase.calculators.emt:EMT"]) == 0
    printed = capsys.readouterr().out
    assert "failed: NotImplementedError: No EMT-potential for Si" in printed
    assert "1 of 1" in printed and "nan" not in printed and "takes" not in printed


def test_fig_11_draws_both_ways_down(capsys, tmp_path, monkeypatch):
    monkeypatch.delenv("FRANKENSTEIN_DATA", raising=False)
    assert main(["reproduce", "fig11", "--out", str(tmp_path)]) == 0
    assert "Frankenstein ends after" in capsys.readouterr().out
    assert (tmp_path / "figures" / "fig11-landscape.png").stat().st_size > 10_000


def test_the_plane_of_fig_11_holds_the_ways():
    from frankenstein.experiments.fig11 import plane

    rng = np.random.default_rng(0)
    flat = rng.normal(size=(2, 12))
    ways = [(rng.normal(size=(20, 2)) @ flat).reshape(20, 4, 3) for _ in range(2)]  # of rank 2
    _, axes, share = plane(ways)
    assert share == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(axes @ axes.T, np.eye(2), atol=1e-12)


def test_your_own_structures_and_calculator(capsys, tmp_path):
    from ase.build import bulk
    from ase.io import write

    folder = tmp_path / "structures"
    folder.mkdir()
    for number, element in enumerate(("Cu", "Al")):
        atoms = bulk(element, cubic=True)
        atoms.rattle(0.1, seed=number)
        write(folder / f"{element}.cif", atoms)
    words = ["reproduce", "table4", "--preset", "paper", "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main([*words, "--structures", str(folder), "--calculator", "ase.calculators.emt:EMT"]) == 0
    printed = capsys.readouterr().out
    assert "ase.calculators.emt:EMT: 2 crystals" in printed and "0 of 2" in printed
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert len(records) == 6 and all(r["converged"] for r in records)
    (folder / "broken.cif").write_text("no crystal")
    crystals.read_structures.cache_clear()  # another process
    assert main([*words, "--structures", str(folder), "--calculator", "ase.calculators.emt:EMT"]) == 2
    assert "broken.cif" in capsys.readouterr().err


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_says_so_and_goes_on(by, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "FRANKENSTEIN_DATA"}
    words = [*COMMAND, "reproduce", "table2", "--out", str(tmp_path), "--workers", "1", "--methods", "sd", "fire"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    records = tmp_path / "records.jsonl"
    while process.poll() is None and not (records.exists() and records.read_bytes().count(b"\n") >= 2):
        time.sleep(0.05)
    process.send_signal(by)
    printed = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "are kept in" in printed and "the same command goes on" in printed and "Traceback" not in printed
    n_kept = len(records.read_text().splitlines())
    done = subprocess.run([*words, "--starts", "1"], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert len(records.read_text().splitlines()) == n_kept  # the first start was there
