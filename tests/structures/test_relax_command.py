"""`frankenstein relax` from arguments to files, in this process."""

from __future__ import annotations

import csv
import json

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.io import write
from relax_cases import CALCULATORS, cluster, outcomes, write_clusters

from frankenstein import models
from frankenstein.models import Prediction
from frankenstein.relaxation import REASONS
from frankenstein.structures.calculators import LennardJones
from frankenstein.structures.descents import Descent, Terms
from frankenstein.structures.outputs import write_structures
from frankenstein.structures.reading import Structure

SMALL = ("--calculator", "lj", "--maxstep", "0.1")


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_everything_that_is_promised_is_there(relax, tmp_path):
    file, out = write_clusters(tmp_path / "some.xyz"), tmp_path / "out"
    code, printed, said = relax(file, *SMALL)
    assert (code, said) == (0, [])
    assert printed.rstrip().endswith(f"structures: {out / 'relaxed.extxyz'}\nreport: {out / 'report.html'}")
    assert "3 of 3 structures converged, " in printed

    table = rows(out / "table.csv")
    assert list(table[0])[:10] == [
        *("name", "formula", "n_atoms", "converged", "reason", "calls"),
        *("energy_start", "energy", "fmax", "seconds"),
    ]
    assert [row["name"] for row in table] == ["some-0000", "some-0001", "some-0002"]
    relaxed = ase.io.read(out / "relaxed.extxyz", ":")
    for number, (row, atoms) in enumerate(zip(table, relaxed, strict=True)):
        assert (row["converged"], row["reason"]) == ("true", "converged")
        assert atoms.info["name"] == row["name"]
        assert (atoms.info["reason"], atoms.info["calls"]) == (row["reason"], int(row["calls"]))
        energy, forces = LennardJones().energy_and_forces(atoms.positions)
        assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-6)  # of eight printed digits
        np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-5)
        assert np.linalg.norm(atoms.get_forces(), axis=1).max() == pytest.approx(float(row["fmax"]), abs=1e-7)
        assert float(row["fmax"]) < 0.01

        frames = ase.io.read(out / "trajectories" / f"{row['name']}.traj", ":")
        outcome = outcomes(out)[row["name"], "frankenstein"]
        assert len(frames) == int(row["calls"]) == len(outcome["curve"]["fmax"])
        np.testing.assert_allclose(frames[0].positions, cluster(number).positions, atol=1e-7)  # as the file has them
        np.testing.assert_array_equal(frames[-1].positions, outcome["end"]["positions"])
        assert [frame.get_potential_energy() for frame in frames] == outcome["curve"]["energy"]
        assert np.linalg.norm(frames[-1].get_forces(), axis=1).max() == outcome["curve"]["fmax"][-1]
        assert frames[0].get_potential_energy() == float(row["energy_start"])

    settings = json.loads((out / "settings.json").read_text())
    assert settings["settings"]["files"] == [[str(file), settings["settings"]["files"][0][1]]]
    assert settings["versions"]["ase"]
    assert settings["command"] == f"frankenstein relax {file} --calculator lj --maxstep 0.1 --out {out}"
    assert not (out / "journals").exists()


def test_what_the_file_says_besides_is_kept_and_what_is_no_longer_true_is_not(relax, tmp_path):
    atoms = cluster(1)
    atoms.info |= {"id": "mine", "energy": 1e9}
    atoms.set_array("tags", np.arange(8))
    write(tmp_path / "one.extxyz", atoms)
    relax(tmp_path / "one.extxyz", *SMALL)
    end = ase.io.read(tmp_path / "out" / "relaxed.extxyz")
    assert end.info["id"] == "mine"
    assert end.get_potential_energy() < 0
    assert end.get_tags().tolist() == list(range(8))


def test_crystals_with_their_cell(relax, tmp_path):
    crystal = bulk("Cu", cubic=True)
    crystal.rattle(0.05, seed=2)
    write(tmp_path / "cu.cif", crystal)
    write(tmp_path / "POSCAR", bulk("Al", cubic=True))
    code, _, said = relax(tmp_path / "cu.cif", tmp_path / "POSCAR", "--calculator", "emt", "--cell", "--fmax", "0.05")
    assert (code, said) == (0, [])
    copper, _ = ase.io.read(tmp_path / "out" / "relaxed.extxyz", ":")
    assert copper.info["name"] == "cu-0000"
    assert abs(copper.get_stress()).max() * copper.get_volume() / 4 < 0.06  # fmax, up to the strain
    assert copper.get_volume() != pytest.approx(crystal.get_volume(), rel=1e-4)


def test_real_clusters_and_crystals(relax, tmp_path, shared):
    starts = np.load(shared / "data" / "lj38" / "lj38_optbench_equivalent_1000.npz")["positions"]
    write(tmp_path / "lj38.xyz", [Atoms("Ar38", positions) for positions in starts[:2]])
    optbench = shared / "data" / "lj38" / "optbench" / "cluster_0000.xyz"
    code, _, _ = relax(tmp_path / "lj38.xyz", optbench, *SMALL)
    assert code == 0
    table = rows(tmp_path / "out" / "table.csv")
    assert [row["name"] for row in table] == ["lj38-0000", "lj38-0001", "cluster_0000-0000"]
    assert all(-174 < float(row["energy"]) < -140 for row in table)

    crystals = shared / "data" / "crystals" / "wbm_972.extxyz.gz"
    code, _, said = relax(crystals, "--index", ":60", "--calculator", "emt", "--maxcalls", "5", out=tmp_path / "wbm")
    assert code == 1
    assert sum("emt does not know" in line for line in said) > 50
    assert said[0].startswith(f"frankenstein: wbm_972-0000 ({crystals}): emt does not know Mg, Sm, Sn; it knows ")


def test_a_second_time_nothing_is_computed(relax, tmp_path, monkeypatch):
    file = write_clusters(tmp_path / "some.xyz")
    relax(file, *SMALL)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*") if path.suffix != ".html"}
    monkeypatch.setattr(LennardJones, "energy_and_forces", None)
    code, printed, said = relax(file, *SMALL)
    assert (code, said) == (0, [])
    assert "3 of 3 structures converged" in printed
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.*") if path.suffix != ".html"}
    assert after == before


def test_workers_give_what_one_process_gives(relax, tmp_path):
    file = write_clusters(tmp_path / "some.xyz", 5, 13)
    relax(file, *SMALL, "--compare", "cg")
    code, _, said = relax(file, *SMALL, "--compare", "cg", "--workers", "2", out=tmp_path / "two")
    assert (code, said) == (0, [])
    assert outcomes(tmp_path / "two") == outcomes(tmp_path / "out")
    for name in ("relaxed.extxyz", "trajectories/some-0003.traj"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_workers_that_cannot_make_the_calculator_say_why(relax, tmp_path, monkeypatch):
    monkeypatch.setenv("LICENCE", str(tmp_path / "licence"))
    arguments = ("--calculator", f"{CALCULATORS}:for_one_process", "--workers", "2")
    code, _, said = relax(write_clusters(tmp_path / "some.xyz"), *arguments)
    assert code == 2
    assert len(said) == 1
    assert "FileExistsError" in said[0]


def test_compare_counts_the_calls_of_all_alike(relax, tmp_path):
    file = write_clusters(tmp_path / "some.xyz")
    code, printed, _ = relax(file, *SMALL, "--compare", "fire,lbfgsls,cg")
    assert code == 0
    table = rows(tmp_path / "out" / "compare.csv")
    assert [row["optimizer"] for row in table[::3]] == ["frankenstein", "fire", "lbfgsls", "cg"]
    for row in table:
        start = ase.io.read(file, int(row["name"][-4:]))
        descent = Descent(start, row["optimizer"], Terms(0.01, 10_000, 0.1, False))
        while descent.reason is None:
            descent.tell(Prediction(*LennardJones().energy_and_forces(descent.atoms.positions), None))
        assert int(row["calls"]) == descent.n_calls
        assert float(row["energy"]) == descent.energies[-1]
    calls = {
        name: [int(row["calls"]) for row in table if row["optimizer"] == name] for name in ("frankenstein", "fire")
    }
    (line,) = [line for line in printed.splitlines() if line.startswith("FIRE")]
    assert line.split()[1:4] == ["3", "of", "3"]
    assert line.split()[4:6] == [
        f"{np.mean(calls['fire']):.1f}",
        f"{sum(calls['fire']) / sum(calls['frankenstein']):.2f}",
    ]
    # others can join later; what is there is not computed again
    before = outcomes(tmp_path / "out")
    assert relax(file, *SMALL, "--compare", "cg,bfgs")[0] == 0
    after = outcomes(tmp_path / "out")
    assert {key: after[key] for key in before} == before
    assert {method for _, method in after} == {"frankenstein", "fire", "lbfgsls", "cg", "bfgs"}


def test_a_failing_calculator_fails_its_structure_and_is_tried_again(relax, tmp_path):
    file = write_clusters(tmp_path / "some.xyz", 4)
    code, printed, said = relax(file, "--calculator", f"{CALCULATORS}:Failing", "--maxstep", "0.1")
    assert code == 1
    assert said == [
        "frankenstein: some-0000: failed after 2 calls: RuntimeError: no convergence",
        "frankenstein: some-0001: nonfinite after 6 calls: call 6: the energy or a force is not finite",
    ]
    assert "2 of 4 structures converged (1 failed, 1 nonfinite)" in printed
    table = rows(tmp_path / "out" / "table.csv")
    assert [row["reason"] for row in table] == ["failed", "nonfinite", "converged", "converged"]
    relaxed = ase.io.read(tmp_path / "out" / "relaxed.extxyz", ":")
    assert [atoms.info["name"] for atoms in relaxed] == [f"some-{i:04d}" for i in range(4)]
    assert all(np.isfinite(atoms.get_forces()).all() for atoms in relaxed)


def test_bad_structures_are_told_and_the_others_go_on(relax, tmp_path):
    overlapping, lost = cluster(2), cluster(3)
    overlapping.positions[4] = overlapping.positions[2]
    lost.positions[1] = np.nan
    write(tmp_path / "mixed.xyz", [cluster(1), overlapping, lost], format="extxyz")
    write(tmp_path / "crystal.cif", bulk("Cu"))
    (tmp_path / "empty.xyz").touch()
    code, printed, said = relax(*(tmp_path / name for name in ("mixed.xyz", "crystal.cif", "empty.xyz")), *SMALL)
    assert code == 1
    assert len(said) == 4
    for line, told in zip(
        said,
        (
            "empty.xyz: cannot be read: it is empty",
            "mixed-0001",
            "mixed-0002",
            "crystal-0000",
        ),
        strict=True,
    ):
        assert told in line
    assert "atoms 2 (Ar) and 4 (Ar) lie on each other" in said[1]
    assert "the position of atom 1 (Ar) is not finite" in said[2]
    assert "module:Factory" in said[3]
    assert [(row["name"], row["reason"]) for row in rows(tmp_path / "out" / "table.csv")] == [
        *(("mixed-0000", "converged"), ("mixed-0001", "failed"), ("mixed-0002", "failed"), ("crystal-0000", "failed")),
        (str(tmp_path / "empty.xyz"), "failed"),
    ]
    assert rows(tmp_path / "out" / "table.csv")[-1]["message"] == "cannot be read: it is empty"
    assert "1 of 4 structures converged (3 failed), " in printed
    assert "; 1 file could not be read" in printed
    page = (tmp_path / "out" / "report.html").read_text()
    assert "empty.xyz (cannot be read)" in page
    assert "cannot be read: it is empty</td>" in page
    (tmp_path / "empty.xyz").write_text((tmp_path / "mixed.xyz").read_text())
    assert len(relax(*(tmp_path / name for name in ("mixed.xyz", "crystal.cif", "empty.xyz")), *SMALL)[2]) == 5
    assert len(rows(tmp_path / "out" / "table.csv")) == 7  # a file that was put right joins


def test_nothing_to_relax_is_a_failure(relax, tmp_path):
    code, _, said = relax(tmp_path / "absent.xyz", *SMALL)
    assert code == 1
    assert said[1] == "frankenstein: error: there is no structure to relax"
    assert not (tmp_path / "out").exists()


def test_not_converged_is_a_failure_that_says_so(relax, tmp_path):
    code, printed, _ = relax(write_clusters(tmp_path / "some.xyz"), *SMALL, "--maxcalls", "5")
    assert code == 1
    assert "0 of 3 structures converged (3 maxcalls), 15 force calls" in printed


def test_a_timeout_goes_on_with_the_same_command(relax, tmp_path):
    file = write_clusters(tmp_path / "some.xyz")
    code, printed, said = relax(file, *SMALL, "--timeout", "1e-9")
    assert code == 1
    assert "(3 timeout)" in printed
    assert said[-1].startswith("frankenstein: the time is up; `frankenstein relax ")
    assert relax(file, *SMALL)[0] == 0
    assert relax(file, *SMALL, out=tmp_path / "other")[0] == 0
    assert outcomes(tmp_path / "out") == outcomes(tmp_path / "other")


class FakeModel:
    """A batched model, which notes how many structures it was given."""

    elements, name, version = frozenset({"Ar"}), "fake", "1"

    def __init__(self):
        self.batches = []

    def __call__(self, structures):
        self.batches.append(len(structures))
        return [
            RuntimeError("too many atoms")
            if len(atoms) == 6
            else Prediction(*LennardJones().energy_and_forces(atoms.positions), None)
            for atoms in structures
        ]


def test_batched_models_are_called_once_for_all_that_move(relax, tmp_path, monkeypatch):
    write(tmp_path / "some.xyz", [cluster(0), cluster(1), cluster(2, 6), cluster(3), cluster(4)], format="extxyz")
    write(tmp_path / "xe.xyz", Atoms("Xe"))
    made = {}

    def load(device, batch_atoms):
        made[batch_atoms] = FakeModel()
        assert device == "cpu"
        return made[batch_atoms]

    monkeypatch.setattr(models, "chgnet", load)
    arguments = (tmp_path / "some.xyz", tmp_path / "xe.xyz", "--calculator", "chgnet", "--maxstep", "0.1")
    code, _, said = relax(*arguments, "--compare", "fire")
    assert code == 1
    assert said[0].endswith("chgnet does not know Xe; it knows Ar")
    assert said[1] == "frankenstein: some-0002: failed after 0 calls: RuntimeError: too many atoms"
    assert made[2000].batches[0] == 10  # five structures, two optimizers
    assert max(made[2000].batches[1:]) == 8
    relax(*arguments, "--compare", "fire", "--batch", "16", out=tmp_path / "small")
    assert max(made[16].batches) == 2
    assert outcomes(tmp_path / "small") == outcomes(tmp_path / "out")
    relax(tmp_path / "some.xyz", *SMALL, "--compare", "fire", out=tmp_path / "alone")
    alone = outcomes(tmp_path / "alone")
    for key, outcome in outcomes(tmp_path / "out").items():  # a path does not depend on the others
        if key[0] != "some-0002":
            assert outcome == alone[key]


def test_a_batch_that_fails_as_a_whole_is_told_for_each(relax, tmp_path, monkeypatch):
    class Broken(FakeModel):
        def __call__(self, structures):
            raise MemoryError

    monkeypatch.setattr(models, "chgnet", lambda **_: Broken())
    code, _, said = relax(write_clusters(tmp_path / "some.xyz"), "--calculator", "chgnet")
    assert code == 1
    assert [line.rpartition(": ")[2] for line in said] == ["MemoryError"] * 3


def test_a_calculator_of_ase_may_be_any(relax, tmp_path, monkeypatch):
    """Stress as a matrix, no `reset`, no list of what it implements."""
    source = tmp_path / "springs.py"
    source.write_text(
        "import numpy as np\n"
        "class Springs:\n"
        "    def get_property(self, name, atoms):\n"
        "        x = atoms.positions - [[0, 0, 0], [2, 2, 2]]\n"
        "        return {'energy': (x**2).sum() / 2, 'forces': -x, 'stress': np.zeros((3, 3))}[name]\n"
    )
    write(tmp_path / "two.extxyz", Atoms("H2", [[0.1, 0, 0], [2, 2, 2.2]], cell=[4, 4, 4], pbc=True))
    code, _, said = relax(tmp_path / "two.extxyz", "--calculator", f"{source}:Springs", "--cell", "--maxcalls", "30")
    assert said == []
    assert code == 0
    assert ase.io.read(tmp_path / "out" / "relaxed.extxyz").get_potential_energy() < 1e-3


def test_reasons_are_those_of_the_library(relax, tmp_path):
    relax(write_clusters(tmp_path / "some.xyz"), *SMALL, "--maxcalls", "5", "--compare", "fire")
    assert {outcome["reason"] for outcome in outcomes(tmp_path / "out").values()} <= {*REASONS, "failed"}


def test_more_calls_are_allowed_in_the_same_folder(relax, tmp_path):
    file, out = write_clusters(tmp_path / "some.xyz"), tmp_path / "out"
    relax(file, *SMALL, "--compare", "cg", out=tmp_path / "whole")
    assert relax(file, *SMALL, "--compare", "cg", "--maxcalls", "7")[0] == 1
    assert list((out / "journals" / "frankenstein").iterdir()) != []
    before = json.loads((out / "curves.jsonl").read_text().splitlines()[0])
    assert relax(file, *SMALL, "--compare", "cg")[0] == 0
    assert outcomes(out) == outcomes(tmp_path / "whole")
    assert before["reason"] == "maxcalls"
    assert not (out / "journals").exists()
    code, _, said = relax(file, *SMALL, "--maxcalls", "7")
    assert code == 2
    assert "maxcalls 10000, not 7 (more may be allowed, not fewer)" in said[0]


def test_structures_that_used_up_their_calls_make_none_of_them_again(relax, tmp_path, monkeypatch):
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    arguments = (write_clusters(tmp_path / "some.xyz"), "--calculator", f"{CALCULATORS}:Counted", "--maxstep", "0.1")
    relax(*arguments, "--maxcalls", "7")
    assert relax(*arguments)[0] == 0
    made = sum(int(row["calls"]) for row in rows(tmp_path / "out" / "table.csv"))
    assert (tmp_path / "calls").stat().st_size == made


def test_files_can_be_added_and_the_others_keep_their_names(relax, tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).mkdir()
    first, second = write_clusters(tmp_path / "a" / "x.xyz", 2), write_clusters(tmp_path / "b" / "x.xyz", 1)
    relax(first, *SMALL)
    before = outcomes(tmp_path / "out")
    assert relax(second, first, *SMALL)[0] == 0
    after = outcomes(tmp_path / "out")
    assert {key: after[key] for key in before} == before
    table = rows(tmp_path / "out" / "table.csv")
    assert [(row["name"], row["file"], row["frame"]) for row in table] == [
        ("b_x-0000", str(second), "0"),
        ("x-0000", str(first), "0"),
        ("x-0001", str(first), "1"),
    ]
    ends = ase.io.read(tmp_path / "out" / "relaxed.extxyz", ":")
    assert [(atoms.info["file"], atoms.info["frame"]) for atoms in ends] == [
        *((str(second), 0), (str(first), 0), (str(first), 1))
    ]
    monkeypatch.setattr(LennardJones, "energy_and_forces", None)
    assert relax(second, first, *SMALL)[0] == 0
    assert "which is not named now" in relax(second, *SMALL)[2][0]


def test_nothing_is_left_that_nobody_needs(relax, tmp_path):
    file, out = write_clusters(tmp_path / "some.xyz"), tmp_path / "out"
    relax(file, *SMALL, "--workers", "2")
    halves = [out / ".table.csv.part", out / ".chart.png.png", out / "trajectories" / ".some-0000.traj"]
    for half in halves:  # as a kill leaves them
        half.touch()
    relax(file, *SMALL)
    assert not any(path.exists() for path in (*halves, out / "workers.lock"))


def test_capitals_and_spaces_do_not_matter(relax, tmp_path):
    file = write_clusters(tmp_path / "some.xyz", 1)
    code, printed, _ = relax(
        file, "--calculator", " LJ", "--maxstep", "0.1", "--compare", "Fire, CG", "--timeout", "60"
    )
    assert code == 0
    assert "1 of 1 structure converged" in printed
    command = json.loads((tmp_path / "out" / "settings.json").read_text())["command"]
    assert " --calculator lj --maxstep 0.1 --timeout 60 --compare fire,cg " in command


def test_what_ase_warns_of_while_it_writes_is_nobodys_business(relax, tmp_path):
    slab = bulk("Cu", cubic=True)
    slab.info["adsorbate_info"] = {"site": slice(2)}
    write(tmp_path / "slab.traj", bulk("Cu", cubic=True))
    structure = Structure("slab-0000", slab, tmp_path / "slab.traj", 0)
    relax(tmp_path / "slab.traj", "--calculator", "emt")
    found = outcomes(tmp_path / "out")
    assert write_structures(tmp_path / "slab.extxyz", [structure], found) == 1
