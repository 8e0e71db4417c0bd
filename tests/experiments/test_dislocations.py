"""Dislocations and grains: crystals of which they are known, and the pictures."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest

pytest.importorskip("ovito", reason="needs OVITO: pip install '.[alloys]'")
pytest.importorskip("matplotlib", reason="needs matplotlib: pip install '.[alloys]'")

from PIL import Image

from frankenstein.experiments.alloys.dislocations import BURGERS_VECTORS, STRUCTURES, Analysis, analyse, grains
from frankenstein.experiments.alloys.pictures import (
    LINE_COLOURS,
    STRUCTURE_COLOURS,
    dislocation_lines,
    slice_by_grain,
    slice_by_structure,
)
from frankenstein.experiments.alloys.polycrystal import BASES, build

A = 3.594  # Angstrom
LENGTH_ERROR = 0.005  # of a straight line: OVITO draws it through atoms and smooths it
SAME_LENGTH = 1e-9  # OVITO's sum of the same numbers, in another order
MAX_BYTES = 150_000


def perfect(structure, n=4):
    """A cube of n unit cells in each direction."""
    corners = np.stack(np.meshgrid(*3 * [np.arange(n)], indexing="ij"), axis=-1).reshape(-1, 1, 3)
    return np.full(3, n * A), A * (corners + BASES[structure]).reshape(-1, 3)


def edges(n_planes=24, n_layers=6, n_deep=4):
    """Two edge dislocations of opposite sign along z, each where two half crystals meet.

    The upper half has one (110) plane more. It is squeezed in along x, with the strain of an arctangent that is the
    wider the farther from both dislocations, as it is in the field of Peierls and Nabarro, whose core of two Burgers
    vectors lies on the (111) plane as two partials.
    """
    axes = np.array([[1, -1, 0], [1, 1, 1], [1, 1, -2]]) / np.sqrt([[2], [3], [6]])
    unit = A * np.array([1 / np.sqrt(2), np.sqrt(3), np.sqrt(6) / 2])  # the smallest box along these axes
    sites = perfect("fcc", 8)[1] - 4 * A
    inside = sites @ axes.T / unit
    inside = inside[((inside > -1e-6) & (inside < 1 - 1e-6)).all(1)]
    lower, upper = (
        unit
        * (np.stack(np.meshgrid(*map(np.arange, (n, n_layers, n_deep)), indexing="ij"), -1).reshape(-1, 1, 3) + inside)
        for n in (n_planes, n_planes + 1)
    )
    lower, upper = lower.reshape(-1, 3), upper.reshape(-1, 3)
    burgers, height = unit[0], n_layers * unit[1]
    width = 2.0 * burgers + np.minimum(upper[:, 1], height - upper[:, 1])
    end = (n_planes + 1) * burgers / 2.0
    shift = np.arctan((upper[:, 0] - end) / width) / np.arctan(end / width)  # from -1 to 1
    upper[:, 0] += -burgers / 2.0 * (1.0 + shift)
    upper[:, 1] += height
    return np.array([n_planes * burgers, 2.0 * height, n_deep * unit[2]]), np.concatenate([lower, upper])


@pytest.fixture(scope="module")
def dipole():
    cell, positions = edges()
    return cell, positions, analyse(cell, positions)


@pytest.fixture(scope="module")
def polycrystal():
    return build(60.0, 4, lattice_constant=A, seed=1)


@pytest.mark.parametrize("structure", ["fcc", "bcc"])
def test_a_perfect_crystal_has_no_dislocations(structure):
    analysis = analyse(*perfect(structure))
    assert (analysis.n_segments, analysis.length, analysis.lines, analysis.line_types) == (0, 0.0, [], [])
    assert analysis.length_by_type == dict.fromkeys([*BURGERS_VECTORS, "other"], 0.0)
    assert analysis.structure_fractions == dict.fromkeys(STRUCTURES, 0.0) | {structure: 1.0}
    assert {STRUCTURES[i] for i in analysis.structures} == {structure}


def test_a_stacking_fault_is_hcp():
    """Every second of the (111) planes on the wrong side is a crystal of the other close packing."""
    unit = A / np.sqrt(2) * np.array([1.0, np.sqrt(3), np.sqrt(8 / 3)])
    basis = np.array([[0, 0, 0], [1 / 2, 1 / 2, 0], [1 / 2, 1 / 6, 1 / 2], [0, 2 / 3, 1 / 2]])
    corners = np.stack(np.meshgrid(*map(np.arange, (6, 4, 4)), indexing="ij"), axis=-1).reshape(-1, 1, 3)
    positions = (unit * (corners + basis)).reshape(-1, 3)
    assert analyse(unit * [6, 4, 4], positions).structure_fractions["hcp"] == 1.0


def test_the_lines_of_edge_dislocations_are_where_they_were_put(dipole):
    """Each is a pair of Shockley partials along z, on the plane where the half crystals meet, at the middle of x."""
    cell, _, analysis = dipole
    assert analysis.line_types == ["1/6<112>"] * 4 and analysis.n_segments == 4
    for line in analysis.lines:
        along = line[-1] - line[0]
        assert np.abs(along) == pytest.approx([0.0, 0.0, cell[2]], abs=1e-6)
        assert np.ptp(line[:, :2], axis=0).max() < A  # straight
        assert abs(line[:, 0].mean() - cell[0] / 2.0) < 2.0 * A
    planes = sorted(line[:, 1].mean() % cell[1] for line in analysis.lines)
    off = [min(abs(y - wall) for wall in (0.0, cell[1] / 2.0, cell[1])) for y in planes]
    assert max(off) < A
    assert sum(cell[1] / 4.0 < y < cell[1] * 3.0 / 4.0 for y in planes) == 2


def test_lengths_add_up(dipole):
    cell, _, analysis = dipole
    assert analysis.length == pytest.approx(4.0 * cell[2], rel=LENGTH_ERROR)
    assert analysis.length_by_type == dict.fromkeys([*BURGERS_VECTORS, "other"], 0.0) | {"1/6<112>": analysis.length}
    walked = sum(np.linalg.norm(np.diff(line, axis=0), axis=1).sum() for line in analysis.lines)
    assert walked == pytest.approx(analysis.length, rel=SAME_LENGTH)


def test_dislocations_cost_the_order_of_few_atoms(dipole):
    _, positions, analysis = dipole
    assert analysis.structures.shape == (len(positions),)
    assert 0.95 < analysis.structure_fractions["fcc"] < 1.0
    assert analysis.structure_fractions["hcp"] > 0.0  # between the partials
    assert sum(analysis.structure_fractions.values()) == pytest.approx(1.0)


def test_types_and_lengths_are_those_that_ovito_names():
    """In a polycrystal that has a few, at its boundaries."""
    from ovito.data import DataCollection
    from ovito.modifiers import DislocationAnalysisModifier

    crystal = build(60.0, 5, lattice_constant=A, seed=0)
    analysis = analyse(crystal.cell, crystal.positions)
    data = DataCollection()
    data.create_cell(np.diag(crystal.cell), pbc=(True, True, True))
    data.create_particles(count=len(crystal.positions)).create_property("Position", data=crystal.positions)
    data.apply(DislocationAnalysisModifier())
    title = "DislocationAnalysis.length."
    named = {name.removeprefix(title): value for name, value in data.attributes.items() if name.startswith(title)}
    assert analysis.length_by_type == pytest.approx(named, rel=SAME_LENGTH)
    assert sum(length > 0.0 for length in named.values()) >= 3
    assert analysis.length == pytest.approx(data.attributes["DislocationAnalysis.total_line_length"], rel=SAME_LENGTH)


def test_the_same_atoms_give_the_same_lines(dipole):
    cell, positions, first = dipole
    again = analyse(cell, positions)
    assert [line.tobytes() for line in first.lines] == [line.tobytes() for line in again.lines]
    assert first.length_by_type == again.length_by_type and first.line_types == again.line_types
    np.testing.assert_array_equal(first.structures, again.structures)


def test_atoms_outside_the_box_are_those_inside_and_nothing_is_modified(dipole):
    cell, positions, first = dipole
    outside = positions + cell * np.random.default_rng(0).integers(-1, 2, positions.shape)
    given = outside.copy()
    moved = analyse(cell, outside)
    np.testing.assert_array_equal(outside, given)
    assert moved.length_by_type == pytest.approx(first.length_by_type, rel=LENGTH_ERROR)
    np.testing.assert_array_equal(moved.structures, first.structures)


@pytest.mark.parametrize("n_grains, seed", [(3, 0), (4, 1), (5, 2)])
def test_the_grains_of_a_polycrystal_are_found(n_grains, seed):
    crystal = build(60.0, n_grains, lattice_constant=A, seed=seed)
    assert grains(crystal.cell, crystal.positions) == n_grains


def test_a_perfect_crystal_is_one_grain():
    assert grains(*perfect("fcc")) == 1


def test_pictures_are_the_same_bytes_each_time_and_small(dipole, polycrystal):
    cell, positions, analysis = dipole
    draw = [
        lambda: dislocation_lines(cell, analysis),
        lambda: slice_by_structure(cell, positions, analysis.structures),
        lambda: slice_by_grain(polycrystal.cell, polycrystal.positions, polycrystal.grain_idx),
    ]
    given = [array.copy() for array in (cell, positions, polycrystal.cell, polycrystal.positions)]
    first, again = ([picture() for picture in draw] for _ in range(2))
    for before, after in zip(given, (cell, positions, polycrystal.cell, polycrystal.positions), strict=True):
        np.testing.assert_array_equal(before, after)
    assert first == again and len(set(first)) == 3
    for png in first:
        assert len(png) < MAX_BYTES
        image = Image.open(io.BytesIO(png))
        assert image.format == "PNG" and image.size == (560, 440) and "Software" not in image.info


def colours_of(png):
    """How many pixels have each colour."""
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return {f"#{r:02x}{g:02x}{b:02x}": count for count, (r, g, b) in image.getcolors(2**24)}


def test_a_slice_has_the_colours_of_the_structures(dipole):
    cell, positions, analysis = dipole
    whole = colours_of(slice_by_structure(*perfect("fcc"), np.ones(len(perfect("fcc")[1]), np.int64)))
    with_cores = colours_of(slice_by_structure(cell, positions, analysis.structures))
    fcc, other = (STRUCTURE_COLOURS[name] for name in ("fcc", "other"))
    assert whole[fcc] > 50_000 and whole.get(other, 0) < 50  # the grey rims of letters
    assert with_cores[fcc] > 50_000 and with_cores[other] > 500


def test_a_slice_has_a_colour_for_each_grain_there(polycrystal):
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    z = polycrystal.positions[:, 2]
    there = np.unique(polycrystal.grain_idx[np.abs(z - 30.0) < 1.0])
    colours = colours_of(slice_by_grain(polycrystal.cell, polycrystal.positions, polycrystal.grain_idx))
    assert len(there) > 1
    assert all(colours[to_hex(colormaps["tab20"](number))] > 100 for number in there.tolist())


def test_lines_that_leave_the_box_come_in_on_the_other_side():
    cell = np.full(3, 10.0)
    x = np.linspace(5.0, 15.0, 21)
    lengths = dict.fromkeys([*BURGERS_VECTORS, "other"], 0.0) | {"1/2<110>": 10.0}
    pictures = []
    for line in (x, x % 10.0):
        points = np.stack([line, np.full(21, 3.0), np.full(21, 4.0)], axis=-1)
        halves = [points] if line is x else [points[:10], points[10:]]  # those of the second are cut at the wall
        structures = np.ones(5, np.int64)
        pictures.append(dislocation_lines(cell, Analysis(halves, ["1/2<110>"] * len(halves), lengths, structures)))
    with_title = [Image.open(io.BytesIO(picture)).convert("RGB").crop((0, 40, 380, 440)) for picture in pictures]
    assert with_title[0].tobytes() == with_title[1].tobytes()
    assert colours_of(pictures[0])[LINE_COLOURS["1/2<110>"]] > 50


def test_a_box_without_dislocations_is_drawn_empty():
    cell, positions = perfect("fcc")
    colours = colours_of(dislocation_lines(cell, analyse(cell, positions)))
    assert not colours.keys() & set(LINE_COLOURS.values()) and colours["#ffffff"] > 200_000


@pytest.mark.parametrize("function", [analyse, grains])
@pytest.mark.parametrize(
    "cell, positions, message",
    [
        ([9.0, 9.0], np.zeros((2, 3)), r"Invalid cell: \[9.0, 9.0\]; allowed are three positive numbers"),
        ([9.0, 9.0, 0.0], np.zeros((2, 3)), "Invalid cell: "),
        ([9.0, 9.0, np.nan], np.zeros((2, 3)), "Invalid cell: "),
        ([9.0] * 3, np.zeros((0, 3)), r"Invalid positions: shape \(0, 3\); allowed are finite numbers"),
        ([9.0] * 3, np.zeros((2, 2)), r"Invalid positions: shape \(2, 2\); allowed are finite numbers"),
        ([9.0] * 3, np.full((2, 3), np.inf), r"Invalid positions: shape \(2, 3\); allowed are finite numbers"),
    ],
)
def test_what_makes_no_sense_is_refused(function, cell, positions, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        function(cell, positions)


@pytest.mark.parametrize("function", [analyse, grains])
def test_without_ovito_one_line_says_how_to_get_it(function, monkeypatch):
    monkeypatch.setitem(sys.modules, "ovito", None)
    needs = r"^the analysis of dislocations needs OVITO; pip install '\.\[alloys\]' \(in the checkout\)$"
    with pytest.raises(ImportError, match=needs):
        function(*perfect("fcc"))
