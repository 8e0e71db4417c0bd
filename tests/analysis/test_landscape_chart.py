"""Charts: contour lines and arrows where geometry says, words that say how it was made, and the page."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import vl_convert

from frankenstein.analysis.landscape import Grid, Landscape, LandscapeError
from frankenstein.analysis.landscape.chart import HEIGHT, WIDTH, caption, chart
from frankenstein.analysis.landscape.contours import N_LEVELS, contour_rows, levels
from frankenstein.analysis.landscape.page import write_page
from frankenstein.analysis.landscape.plane import About, Track
from frankenstein.analysis.landscape.tracks import N_ARROWS, arrow_rows
from frankenstein.compare.report.charts.chart import save

ROUNDED = 1e-4  # rows keep five digits
BEND = 0.02  # of a circle that is drawn as straight lines across cells of 0.1

AXIS = tuple(np.linspace(-2, 2, 41).tolist())
GRID = Grid(AXIS, AXIS)
BOWL = np.add.outer(np.square(AXIS), np.square(AXIS))


def landscape(values=BOWL, **about):
    track = Track([0, 50, 100], [1.5, 0.5, 0.0], [1.0, 1.0, 0.0], [0.1, 0.2, 0.0])
    other = Track([0, 100], [1.5, -1.0], [1.0, -1.0], [0.1, 0.3])
    plane = About("pca", "none", None, ("ours", 100), [0.7, 0.251, 0.049], {"ours": track, "adam": other})
    provenance = {"versions": {"torch": "2.13", "ase": None}, "git": "abc"}
    metrics = {"loss": values, "accuracy": 1 / (1 + BOWL)}
    return Landscape(GRID, metrics, replace(plane, **about), (1.0, 1.0), "0123", "100 <images>", 3, "keep", provenance)


RANDOM = {"kind": "random", "normalisation": "filter", "seed": 8, "explained_variance": []}
RANDOM |= {"tracks": {"training": Track([9], [0.0], [0.0], [0.0])}, "origin": ("training", 9)}


def svg(drawn, until=None):
    spec = drawn.complete()
    if until is not None:
        spec["params"][0]["value"] = until
    return vl_convert.vegalite_to_svg(json.dumps(spec))


def test_contour_lines_of_a_bowl_are_circles():
    drawn = levels(BOWL, False, "loss")
    np.testing.assert_allclose(np.diff(drawn), 8 / (N_LEVELS + 1))
    rows = contour_rows(GRID, BOWL, drawn)
    assert {row["level"] for row in rows} == {float(f"{level:.5g}") for level in drawn}
    for row in rows:
        assert math.hypot(row["cx"], row["cy"]) == pytest.approx(math.sqrt(row["level"]), abs=BEND)
    inner = [row for row in rows if row["line"] == 0]
    assert [row["place"] for row in inner] == list(range(len(inner)))
    assert (inner[0]["cx"], inner[0]["cy"]) == (inner[-1]["cx"], inner[-1]["cy"])  # it closes


def test_contour_lines_go_along_the_right_axis():
    rows = contour_rows(
        Grid((0.0, 1.0, 2.0), (10.0, 20.0)), np.array([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]), np.array([0.5])
    )
    assert {row["cx"] for row in rows} == {0.5} and {row["cy"] for row in rows} == {10.0, 20.0}


def test_levels_in_equal_ratios():
    drawn = levels(np.array([[1.0, math.inf], [math.nan, 10_000.0]]), True, "loss")
    np.testing.assert_allclose(np.diff(np.log(drawn)), math.log(10_000) / (N_LEVELS + 1))
    assert len(levels(np.ones((2, 2)), False, "loss")) == 0


def test_arrows_point_along_the_way_as_it_is_drawn():
    """Right, then up: in a frame twice as wide as high, drawn in a square."""
    track = {"ours": Track([0, 5, 9], [0.0, 8.0, 8.0], [0.0, 0.0, 4.0], [0.0] * 3)}
    rows = arrow_rows(track, [(0.0, 20.0), (0.0, 10.0)], (100, 100))
    assert len(rows) == N_ARROWS
    assert [(row["angle"], row["step"]) for row in rows] == [(90.0, 5)] * 4 + [(0.0, 9)] * 4
    assert [row["ax"] for row in rows[:4]] == pytest.approx([1, 3, 5, 7], abs=ROUNDED)
    assert [row["ay"] for row in rows[4:]] == pytest.approx([0.5, 1.5, 2.5, 3.5], abs=ROUNDED)
    diagonal = {"ours": Track([0, 1], [0.0, 2.0], [0.0, -1.0], [0.0, 0.0])}
    assert arrow_rows(diagonal, [(0.0, 20.0), (0.0, 10.0)], (100, 100))[0]["angle"] == pytest.approx(135.0)


@pytest.mark.parametrize("track", [Track([3], [1.0], [1.0], [0.0]), Track([1, 2], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0])])
def test_what_does_not_move_has_no_arrows(track):
    assert arrow_rows({"ours": track}, [(0.0, 2.0), (0.0, 1.0)], (100, 100)) == []


def test_axes_say_what_they_explain():
    spec = chart(landscape()).spec
    place = spec["layer"][0]["encoding"]
    assert place["x"]["title"] == "principal component 1 (70.0% of the variance)"
    assert place["y"]["title"] == "principal component 2 (25.1% of the variance)"
    assert place["x"]["scale"]["domain"] == pytest.approx([-2.05, 2.05])
    assert (spec["width"], spec["height"]) == (WIDTH, HEIGHT)
    random = chart(landscape(**RANDOM)).spec["layer"][0]["encoding"]
    assert random["y"]["title"] == "random direction 2 (filter normalisation)"


def test_the_caption_says_how_it_was_made():
    told = caption(landscape())
    for part in (
        "95.1% of the variance",
        "(0, 0) is step 100 of ours.",
        "Data: 100 <images>; 41 x 41 points; BatchNorm with the statistics of the origin; seed 3.",
    ):
        assert part in told
    assert "Random directions with filter normalisation, seed 8. (0, 0) is step 9." in caption(landscape(**RANDOM))


def test_cells_lie_around_the_points():
    cells = [row for row in chart(landscape()).rows if "value" in row]
    assert len(cells) == 41 * 41
    first = cells[41 + 2]  # of the second row, the third
    assert (first["x"], first["y"]) == (pytest.approx(-1.85), pytest.approx(-1.95))
    assert first["value"] == pytest.approx(1.8**2 + 1.9**2, rel=ROUNDED)
    assert first["at"] == "-1.8, -1.9"


@pytest.mark.parametrize("is_log", [False, True])
@pytest.mark.parametrize("metric", ["loss", "accuracy"])
@pytest.mark.parametrize("about", [{}, RANDOM])
def test_it_can_be_drawn(metric, is_log, about, tmp_path):
    path = tmp_path / "chart.svg"
    save(chart(landscape(BOWL + 1, **about), metric, is_log=is_log), path)
    assert path.read_text().count("<path") > 41 * 41


def test_the_slider_hides_what_comes_later():
    """Of the snapshots at 0, 50, 100 and 0, 100, and of the arrows on the way to them."""
    drawn = chart(landscape())
    slider = drawn.spec["params"][0]
    assert slider["value"] == 100 and slider["bind"]["min"] == 0 and slider["bind"]["max"] == 100
    assert slider["bind"]["step"] == 50
    arrows = [row["step"] for row in drawn.rows if "angle" in row]
    assert arrows.count(50) > 0

    def n_marks(until):
        return len(re.findall(r'aria-roledescription="point"', svg(drawn, until)))

    assert n_marks(100) == 5 + 2 * N_ARROWS
    assert n_marks(50) == 3 + arrows.count(50)
    assert n_marks(0) == 2
    assert "params" not in chart(landscape(**RANDOM)).spec


def test_points_that_are_not_finite_are_marked():
    values = BOWL.copy()
    values[0, :3] = [math.nan, math.inf, -math.inf]
    drawn = chart(landscape(values))
    assert sum(row.get("value", 0) is None for row in drawn.rows) == 3
    assert len(drawn.spec["layer"]) == len(chart(landscape()).spec["layer"]) + 1
    assert svg(drawn)
    json.dumps(drawn.complete(), allow_nan=False)


@pytest.mark.parametrize(
    "values, arguments, message",
    [
        (BOWL, {"metric": "error"}, "there is no metric 'error'; there are loss, accuracy"),
        (BOWL, {"is_log": True}, "'loss' goes down to 0, which has no logarithm"),
        (BOWL * math.nan, {}, "no value of 'loss' is finite"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(values, arguments, message):
    with pytest.raises(LandscapeError) as caught:
        chart(landscape(values), **arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_contourpy_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "contourpy", None)
    with pytest.raises(ImportError, match=r"contour lines need contourpy; pip install '.\[analysis\]'"):
        chart(landscape())


def test_the_page_needs_no_network(tmp_path):
    seen = landscape()
    drawn = [chart(seen), chart(seen, "accuracy")]
    path = write_page(tmp_path / "new" / "page.html", seen, drawn)
    html = path.read_text(encoding="utf-8")
    specs = re.findall(r'<script type="application/json">(.*?)</script>', html)
    assert [json.loads(one) for one in specs] == [one.complete() for one in drawn]
    page = re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)  # Vega's own code has such words
    assert not re.findall(r"(?:src|href|url)\s*[=(]", page)
    facts = html[html.index("How it was made") :]
    for part in ("100 &lt;images&gt;", "x from -2 to 2, y from -2 to 2", "70.00%, 25.10%, 4.90%", "torch 2.13", "0123"):
        assert part in facts
    assert "<images>" not in html
    with pytest.raises(LandscapeError, match="cannot write"):
        write_page(path / "below.html", seen, drawn)
