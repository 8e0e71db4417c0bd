"""A landscape in a real browser, on its own page and on that of an experiment: the slider, and what the mouse is on."""

from __future__ import annotations

import re

import numpy as np
import pytest

from frankenstein.analysis.landscape import Grid, Landscape
from frankenstein.analysis.landscape.chart import chart
from frankenstein.analysis.landscape.page import write_page
from frankenstein.analysis.landscape.plane import About, Track
from frankenstein.experiments.experiment import Findings
from frankenstein.experiments.page import write

AXIS = tuple(np.linspace(-2, 2, 9).tolist())
BOWL = np.add.outer(np.square(AXIS), np.square(AXIS))  # 8 in the corners
TRACKS = {
    "ours": Track([0, 50, 100], [1.5, 0.5, 0.0], [1.0, 1.0, 0.0], [0.1, 0.2, 0.0]),
    "adam": Track([0, 100], [-1.5, -1.0], [1.0, -1.0], [0.1, 0.3]),
}
ABOUT = About("pca", "none", None, ("ours", 100), [0.7, 0.251, 0.049], TRACKS)
MADE = Landscape(
    Grid(AXIS, AXIS), {"loss": BOWL}, ABOUT, (1.0, 1.0), "0123", "100 images", 3, "none", {"versions": {}, "git": ""}
)

# The snapshots that are marked, those of all trainings.
POINTS = "document.querySelectorAll(\".mark-symbol.role-mark path[aria-roledescription='point'][stroke='white']\")"


@pytest.fixture(params=["page", "experiment"])
def page(request, browser, tmp_path):
    """A page with the landscape, drawn; afterwards it has neither complained nor asked for anything."""
    if request.param == "page":
        path = write_page(tmp_path / "landscape.html", MADE, [chart(MADE)])
    else:
        drawn = chart(MADE)
        path = write(Findings("Made up", [], [], [drawn], live=frozenset([drawn.name])), tmp_path)[0]
    complaints = []
    shown = browser.new_page(viewport={"width": 1200, "height": 900})
    shown.on("request", lambda asked: asked.url == path.as_uri() or complaints.append(asked.url))
    shown.on("console", lambda message: complaints.append(message.text))
    shown.on("pageerror", lambda error: complaints.append(str(error)))
    shown.goto(path.as_uri())
    shown.wait_for_selector("input[type=range]")
    yield shown
    shown.close()
    assert complaints == []


def test_the_slider_shows_the_trainings_up_to_a_step(page):
    slider = page.locator("input[type=range]")
    assert [slider.get_attribute(name) for name in ("min", "max", "step")] == ["0", "100", "50"]
    for step, n_points in ((100, 5), (50, 3), (0, 2), (100, 5)):
        slider.fill(str(step))
        page.wait_for_function(f"{POINTS}.length == {n_points}")


def test_what_the_mouse_is_on_says_what_it_is(page):
    place = page.locator(".mark-rect.role-mark path").first.bounding_box()  # the cell at (-2, -2)
    page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    assert re.sub(r"\s+", " ", tip.inner_text()).strip() == "loss 8 at -2, -2"
