from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.constraints import FixAtoms
from ase.io import write

from frankenstein.structures.reading import SliceError, Structure, Unread, fault, frame_slice, read, stems

ALL = slice(None)


def read_all(files, frames=ALL):
    said = []
    found = read(files, frames, said.append)
    return [one for one in found if isinstance(one, Structure)], said


@pytest.mark.parametrize("name", ["cu.cif", "POSCAR", "cu.xyz", "cu.extxyz", "cu.traj", "cu.extxyz.gz"])
def test_reads_what_ase_reads(tmp_path, name):
    atoms = bulk("Cu", cubic=True)
    atoms.pbc = not name.endswith(".xyz")
    write(tmp_path / name, atoms)
    (structure,), said = read_all([tmp_path / name])
    assert said == []
    assert structure.name == f"{name.split('.')[0]}-0000"
    assert structure.atoms.get_chemical_formula() == "Cu4"
    assert structure.atoms.calc is None


def test_all_frames_or_those_asked_for_with_names_that_stay(tmp_path):
    write(tmp_path / "many.extxyz", [Atoms("Ar", [[0, 0, i]]) for i in range(12)])
    assert [s.name for s in read_all([tmp_path / "many.extxyz"])[0]] == [f"many-{i:04d}" for i in range(12)]
    structures, _ = read_all([tmp_path / "many.extxyz"], frame_slice("1::5"))
    assert [(s.name, s.atoms.positions[0, 2]) for s in structures] == [
        ("many-0001", 1),
        ("many-0006", 6),
        ("many-0011", 11),
    ]
    (last,), _ = read_all([tmp_path / "many.extxyz"], frame_slice("-1"))
    assert last.name == "many-0011"
    assert read_all([tmp_path / "many.extxyz"], frame_slice("50:")) == (
        [],
        [f"{tmp_path / 'many.extxyz'}: it has 12 frames, and --index chooses none"],
    )


@pytest.mark.parametrize("text", ["x", "1.5", "::0", "1:2:3:4", ""])
def test_a_slice_that_says_nothing_is_an_error(text):
    with pytest.raises(SliceError, match="says no frames"):
        frame_slice(text)


def test_names_do_not_collide(tmp_path):
    files = [tmp_path / name for name in ("a/x.cif", "b/x.cif", "b/x.vasp", "b/X.xyz", "y.xyz.gz", "c d/ü?.xyz")]
    assert stems(files) == ["a_x", "b_x", "b_x.2", "b_X.3", "y", "ü"]


def test_a_file_named_twice_is_read_once(tmp_path):
    write(tmp_path / "one.xyz", Atoms("Ar"))
    structures, _ = read_all([tmp_path / "one.xyz", tmp_path / "." / "one.xyz"])
    assert [s.name for s in structures] == ["one-0000"]


def test_constraints_are_kept(tmp_path):
    atoms = bulk("Cu", cubic=True)
    atoms.set_constraint(FixAtoms([0, 2]))
    write(tmp_path / "POSCAR", atoms)
    (structure,), _ = read_all([tmp_path / "POSCAR"])
    assert sorted(structure.atoms.constraints[0].index) == [0, 2]


def torn(path):
    write(path, [Atoms("Ar4", np.eye(4, 3))] * 3, format="extxyz")
    packed = gzip.compress(path.read_bytes())
    path.write_bytes(packed[: len(packed) // 2])


BAD_FILES = {
    "empty.xyz": (lambda path: path.touch(), "it is empty"),
    "empty.xyz.gz": (lambda path: path.write_bytes(gzip.compress(b"")), "it is empty"),
    "junk.cif": (lambda path: path.write_text("hello\n"), "cannot be read: "),
    "text.unheard": (lambda path: path.write_text("hello\n"), "ASE does not know its format"),
    "torn.xyz.gz": (torn, "ended before the end-of-stream marker"),
    "absent.xyz": (lambda path: None, "no such file or directory"),
    "folder.xyz": (lambda path: path.mkdir(), "it is a folder"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_line_and_the_others_are_read(tmp_path, name):
    make, told = BAD_FILES[name]
    make(tmp_path / name)
    write(tmp_path / "good.xyz", Atoms("Ar"))
    structures, said = read_all([tmp_path / name, tmp_path / "good.xyz"])
    assert [s.name for s in structures] == ["good-0000"]
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path / name}: cannot be read: ")
    assert told in said[0]
    assert "\n" not in said[0]


def test_frames_before_a_bad_one_are_read(tmp_path):
    path = tmp_path / "some.xyz"
    write(path, [Atoms("Ar2", [[0, 0, 0], [0, 0, 1]])] * 2, format="extxyz")
    path.write_text(path.read_text() + "2\nProperties=species:S:1:pos:R:3\nAr 0 0 0\nAr 0 a 1\n")
    structures, said = read_all([path])
    assert [s.name for s in structures] == ["some-0000", "some-0001"]
    assert len(said) == 1
    assert said[0].startswith(f"{path}: frame 2 cannot be read: ")


def why(atoms, elements=None, *, has_cell=False, is_for_clusters=False):
    return fault(atoms, elements, "emt", has_cell=has_cell, is_for_clusters=is_for_clusters)


def test_a_good_structure_has_no_fault():
    assert why(bulk("Cu", cubic=True), frozenset({"Cu"}), has_cell=True) == ""
    assert why(Atoms("Ar2", [[0, 0, 0], [0, 0, 1]]), is_for_clusters=True) == ""


def test_faults_name_the_atoms():
    atoms = Atoms("ArKrNe", [[0, 0, 0], [1, 0, 0], [1, 0, 0]])
    assert why(atoms).startswith("atoms 1 (Kr) and 2 (Ne) lie on each other (distance 0); move or remove one of them")
    atoms.positions[1, 1] = np.nan
    assert why(atoms).startswith("the position of atom 1 (Kr) is not finite")
    assert (
        why(Atoms("CuXe", [[0, 0, 0], [0, 0, 3]]), frozenset({"Cu", "Al"})) == "emt does not know Xe; it knows Al, Cu"
    )


def test_atoms_that_lie_on_each_other_across_a_cell_boundary_are_found():
    atoms = Atoms("Ar2", [[0, 0, 0], [0, 0, 5]], cell=[5, 5, 5], pbc=True)
    assert "atoms 0 (Ar) and 1 (Ar) lie on each other" in why(atoms)


def test_cells_that_do_not_fit_what_is_asked():
    cluster, crystal = Atoms("Ar"), bulk("Cu", cubic=True)
    assert why(Atoms()) == "it has no atoms"
    assert "module:Factory" in why(crystal, is_for_clusters=True)
    assert "--cell needs a periodic structure" in why(cluster, has_cell=True)
    crystal.cell[2] = 0
    assert "periodic along c, but its cell has no extent there" in why(crystal)
    crystal.cell[2] = np.inf
    assert why(crystal) == "its cell is not finite"


def test_what_cannot_be_read_stands_in_its_place(tmp_path):
    path = tmp_path / "some.xyz"
    path.write_text("1\n\nAr 0 0 0\n1\n\nQq 0 0 0\n")
    found = read([tmp_path / "absent.xyz", path], ALL, lambda _: None)
    assert [(one.name, one.frame) for one in found] == [
        (str(tmp_path / "absent.xyz"), None),
        ("some-0000", 0),
        ("some-0001", 1),
    ]
    assert [type(one) for one in found] == [Unread, Structure, Unread]
    assert found[2].message == "frame 1 cannot be read: unknown element Qq"


def test_files_keep_the_names_that_they_have():
    known = {"a/x.cif": "x"}
    assert stems([Path("b/x.cif"), Path("a/x.cif"), Path("x.xyz"), Path("y.xyz")], known)[:2] == ["b_x", "x"]
    assert stems([Path("y.xyz")], {"z/y.xyz": "y"}) == ["y.2"]


def test_a_slab_with_its_cell_is_told_what_to_do_instead():
    slab = bulk("Cu", cubic=True)
    slab.pbc = (True, True, False)
    assert why(slab) == ""
    assert why(slab, has_cell=True).startswith("it is periodic along a, b only, and --cell relaxes all of a cell: ")
    assert "mask" in why(slab, has_cell=True)
