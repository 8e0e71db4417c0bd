"""The report of a relaxation in a real browser, without a network."""

from __future__ import annotations

import pytest
from relax_cases import write_clusters

from frankenstein.cli import main
from frankenstein.structures import charts
from frankenstein.structures.session import ALL_REASONS
from frankenstein.structures.terminal import progress

IS_DRAWN = """() => !document.querySelector("main").hasAttribute("aria-busy") &&
    [...document.querySelectorAll(".plot")].every(plot => plot.querySelector("svg"))"""


@pytest.mark.parametrize("compare", [(), ("--compare", "fire,cg")], ids=["alone", "compared"])
def test_the_page_draws_its_charts_and_tells_what_is_under_the_pointer(browser, tmp_path, compare):
    file, out = write_clusters(tmp_path / "some.xyz", 3, 13), tmp_path / "out"
    assert main(["relax", str(file), "--calculator", "lj", "--maxstep", "0.1", "--out", str(out), *compare]) == 0
    assert (out / "chart.png").read_bytes().startswith(b"\x89PNG")
    page = browser.new_page(viewport={"width": 1300, "height": 3000})
    complaints = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda request: complaints.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
    )
    page.goto((out / "report.html").as_uri())
    page.wait_for_function(IS_DRAWN)
    assert page.title() == "Relaxation"
    assert "3 of 3 structures converged" in page.locator(".lead").inner_text()
    assert page.locator("figure").count() == (3 if compare else 2)
    labels = page.locator(".legend li").all_inner_texts()
    assert sorted(labels) == (["CG", "FIRE", "Frankenstein"] if compare else [f"some-{i:04d}" for i in range(3)])
    chart = page.locator("#\\/fmax .plot")
    n_lines = chart.locator("svg .mark-line path").count()
    assert n_lines == 3
    box = chart.bounding_box()
    for share in range(5, 100):  # from left to right, until a line is near
        page.mouse.move(box["x"] + box["width"] * share / 100, box["y"] + box["height"] / 2)
        if page.locator("#tip").is_visible():
            break
    assert page.locator("#tip strong").inner_text() in labels
    assert "largest force" in page.locator("#tip").inner_text()
    page.get_by_role("button", name="none").click()
    page.wait_for_function("() => !document.querySelector('.plot svg .mark-line path')")
    assert page.locator("#\\/structures tbody tr").count() == 3
    assert complaints == []
    page.close()


def test_many_structures_have_a_legend_and_a_word_about_the_lines():
    outcomes = [
        {"name": f"s-{i:04d}", "optimizer": "frankenstein", "calls": 2, "n_atoms": 2, "converged": True,
         "curve": {"energy": [1.0, 0.0], "fmax": [1.0, 0.001]}}
        for i in range(30)
    ]  # fmt: skip
    looks, (force, energy) = charts.charts(outcomes, ["frankenstein"], 0.01, "eV")
    legend = force.spec["layer"][-1]["encoding"]["color"]["legend"]
    assert len(looks) == charts.N_LINES
    assert legend is not None
    assert force.caption.startswith("One line per structure; the 24 of 30 that took the most calls. ")
    assert force.spec["encoding"]["y"]["title"] == "largest force (eV/Å)"
    assert energy.spec["encoding"]["y"]["title"] == "energy above the final energy (eV per atom)"
    _, (force, _) = charts.charts(outcomes, ["frankenstein"], 0.01, "")
    assert force.spec["encoding"]["y"]["title"] == "largest force"


def test_a_reason_that_cannot_be_is_not_listed():
    assert "stopped" not in ALL_REASONS
    assert {"converged", "maxcalls", "failed"} <= ALL_REASONS.keys()


def test_the_bar_names_the_largest_force_only_while_something_moves():
    with progress(0, 1) as counter:
        counter.after_round(3, 0.5)
        assert "fmax 0.5" in counter.bar.tasks[0].description
        counter.ended()
        assert "fmax" not in counter.bar.tasks[0].description
