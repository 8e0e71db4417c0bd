"""The report in a real browser: every control, by mouse and keyboard, on paper and on a phone, without a network."""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
from made_records import made_records

from frankenstein.compare import report
from frankenstein.compare.results.summary import summarise

DESK = {"width": 1400, "height": 900}
PHONE = {"width": 360, "height": 640}
TALL = {"width": 1400, "height": 6000}  # everything is near the screen, so everything is drawn
REFERENCE = {"title": "a published run", "source": "Someone 2021", "step": [0, 100, 200], "score": [1.0, -1.0, -2.0]}
# Every chart that is due has been drawn.
IS_DRAWN = """() => !document.querySelector("main").hasAttribute("aria-busy") &&
    [...document.querySelectorAll(".view:not([hidden]) .plot")].every(plot => plot.querySelector("svg") ||
        plot.getBoundingClientRect().top > innerHeight)"""


@pytest.fixture(scope="module")
def summaries():
    return summarise(made_records(3, 4))


@pytest.fixture(scope="module")
def address(summaries, tmp_path_factory):
    references = {"problem-1": [REFERENCE]}
    path = report.write_html(tmp_path_factory.mktemp("report"), report.Loaded(summaries, references))
    return path.as_uri()


@pytest.fixture
def visit(browser):
    """Open pages that may not ask for anything but themselves; afterwards, say that none did, nor complained."""
    contexts, complaints = [], []

    def allow(route):
        if route.request.url.startswith("file:"):
            route.continue_()
        else:
            complaints.append(f"asked for {route.request.url}")
            route.abort()

    def open_page(address, viewport=DESK, **options):
        context = browser.new_context(viewport=viewport, **options)
        context.route("**/*", allow)
        contexts.append(context)
        page = context.new_page()
        page.on("request", lambda r: None if r.url == address.partition("#")[0] else complaints.append(r.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        page.wait_for_function(IS_DRAWN)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def drawn(page):
    page.wait_for_function(IS_DRAWN)


def choose(page, control, value):
    page.locator(f'.view:not([hidden]) [data-control="{control}"][value="{value}"]').check(force=True)
    drawn(page)


def lines(page, chart, part="overview"):
    """Return the paths of the chart's medians: one for each optimizer, by its colour."""
    plot = page.locator(f'.view:not([hidden]) .plot[data-part="{part}"][data-chart="{chart}"]').first
    return plot.locator(".mark-line path:not([stroke='#808080'])")


def n_dim(paths):
    """Return how many of the lines stand back."""
    opacities = paths.evaluate_all("all => all.map(one => one.getAttribute('stroke-opacity') ?? 1)")
    return sum(float(opacity) < 0.5 for opacity in opacities)


def axis(page, chart, side):
    """Return the title and the labels of the chart's axis."""
    plot = page.locator(f'.view:not([hidden]) .plot[data-chart="{chart}"]').first
    role = plot.locator(".role-axis").filter(has=page.locator(".role-axis-title"))
    texts = role.nth({"x": 0, "y": 1}[side])
    labels = texts.locator(".role-axis-label text").all_text_contents()
    return texts.locator(".role-axis-title text").text_content(), [
        label.replace("\N{MINUS SIGN}", "-") for label in labels
    ]


# Charts and their controls --------------------------------------------------------------------------------------------


def test_every_chart_of_every_page_is_drawn(visit, address, summaries):
    page = visit(address, TALL)
    views = ["/", *(f"/problem/{summary.name}" for summary in summaries)]
    for view, n_charts in zip(views, [8 + 3, 4, 4, 4], strict=True):
        page.goto(f"{address}#{view}")
        drawn(page)
        assert page.locator(".view:not([hidden])").get_attribute("id") == view
        assert page.locator(".view:not([hidden]) .plot svg").count() == n_charts
        for plot in page.locator(".view:not([hidden]) .plot").all():
            assert plot.locator(".mark-symbol path, .mark-line path, .mark-rect path").count() > 0


def test_charts_are_drawn_when_they_come_near(visit, address):
    page = visit(address)
    n_first = page.locator(".plot svg").count()
    assert 0 < n_first < page.locator(".view:not([hidden]) .plot").count()
    page.locator('[data-chart="bytes-per-param"]').scroll_into_view_if_needed()
    page.wait_for_selector('[data-chart="bytes-per-param"] svg')
    assert page.locator(".view[hidden] .plot svg").count() == 0


def test_an_unchecked_optimizer_is_in_no_chart(visit, address):
    page = visit(address, TALL)
    colour = page.locator(".legend li", has_text="Optimizer 1").locator("line").get_attribute("stroke")
    shapes = f'.plot [stroke="{colour}"], .plot [fill="{colour}"]'
    plots = page.locator(".view:not([hidden]) .plot").filter(
        has=page.locator(f'[stroke="{colour}"], [fill="{colour}"]')
    )
    assert plots.count() == 10  # all but the matrix
    page.get_by_label("Optimizer 1", exact=True).uncheck()
    drawn(page)
    # The diagram of ranks is made of all optimizers, and keeps them.
    left = page.locator(f'.plot:not([data-chart="ranks"]) :is({shapes.replace(".plot ", "")})')
    assert left.count() == 0
    assert "Optimizer 1" not in page.locator('[data-chart="wins"]').text_content()
    page.goto(f"{address}#/problem/problem-0")
    drawn(page)
    assert lines(page, "curves-problem-0", "/problem/problem-0").count() == 3
    assert n_dim(lines(page, "curves-problem-0", "/problem/problem-0")) == 0  # though the mouse is on the legend still
    page.get_by_role("button", name="all", exact=True).click()
    drawn(page)
    assert lines(page, "curves-problem-0", "/problem/problem-0").count() == 4
    page.get_by_role("button", name="none").click()
    drawn(page)
    assert lines(page, "curves-problem-0", "/problem/problem-0").count() == 0


def test_axes_follow_the_controls(visit, address):
    page = visit(f"{address}#/problem/problem-0")
    chart = "curves-problem-0"
    assert axis(page, chart, "y")[0] == "error, 1 \N{MINUS SIGN} accuracy"
    logarithmic = axis(page, chart, "y")[1]
    choose(page, "scale_y", "linear")
    labels = [float(label) for label in axis(page, chart, "y")[1]]
    assert np.ptp(np.diff(labels)) == pytest.approx(0, abs=1e-9)  # evenly spaced
    assert logarithmic != axis(page, chart, "y")[1]
    choose(page, "accuracy", "score")
    assert axis(page, chart, "y")[0] == "accuracy (higher is better)"
    assert axis(page, chart, "x")[0] == "step"
    choose(page, "x_axis", "seconds")
    assert axis(page, chart, "x")[0] == "seconds of training"
    assert float(axis(page, chart, "x")[1][-1]) <= 0.5  # 200 steps of 2.5 ms
    choose(page, "x_axis", "step")
    before = lines(page, chart, "/problem/problem-0").first.get_attribute("d")
    choose(page, "scale_x", "log")
    assert lines(page, chart, "/problem/problem-0").first.get_attribute("d") != before
    assert "0" not in axis(page, chart, "x")[1]


def test_another_problem_shows_the_loss(visit, address):
    page = visit(f"{address}#/problem/problem-1")
    part, chart = "/problem/problem-1", "curves-problem-1"
    assert axis(page, chart, "y")[0] == "log10 of the loss (lower is better)"
    dashed = page.locator(f'.plot[data-part="{part}"][data-chart="{chart}"] .mark-line path[stroke="#808080"]')
    assert dashed.count() == 1  # the published curve
    choose(page, "quantity", "train_loss")
    assert axis(page, chart, "y")[0] == "training loss"
    assert dashed.count() == 0
    assert lines(page, chart, part).count() == 4


def test_tuned_or_default_and_bands(visit, address):
    page = visit(f"{address}#/problem/problem-1")
    part, chart = "/problem/problem-1", "curves-problem-1"
    tuned = lines(page, chart, part).first.get_attribute("d")
    areas = page.locator(f'.plot[data-part="{part}"][data-chart="{chart}"] .mark-area path')
    quartiles = areas.first.get_attribute("d")
    choose(page, "band", "range")
    assert areas.first.get_attribute("d") != quartiles
    choose(page, "band", "seeds")
    assert lines(page, chart, part).count() == 4 * (1 + 5)
    choose(page, "band", "none")
    choose(page, "setting", "default")
    assert lines(page, chart, part).first.get_attribute("d") != tuned


def test_controls_of_all_pages_say_the_same(visit, address):
    page = visit(address)
    choose(page, "setting", "default")
    states = page.locator('[data-control="setting"][value="default"]').evaluate_all(
        "all => all.map(one => one.checked)"
    )
    assert states == [True] * 4


def test_a_tooltip_tells_the_median_of_the_seeds(visit, address, summaries):
    """The aggregation is Vega's; here it is compared with numpy's."""
    page = visit(f"{address}#/problem/problem-1")
    box = lines(page, "curves-problem-1", "/problem/problem-1").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 1, box["y"] + box["height"] - 2)
    tip = page.locator("#tip")
    tip.wait_for()
    terms = dict(zip(tip.locator("dt").all_text_contents(), tip.locator("dd").all_text_contents(), strict=True))
    rows = {row.title: row for row in summaries[1].rows}
    records = rows[tip.locator("strong").text_content()].tuned.records
    place = records[0]["curve"]["step"].index(int(terms["step"]))
    scores = [record["curve"]["score"][place] for record in records]
    told = [float(terms[name].replace("\N{MINUS SIGN}", "-")) for name in ("quarter", "median", "three quarters")]
    assert told == pytest.approx(np.quantile(scores, [0.25, 0.5, 0.75]), abs=1e-3)  # four digits are shown
    assert terms["seeds"] == "5"
    page.mouse.move(2, 2)
    assert tip.is_hidden()


def test_hovering_over_the_legend_dims_the_others(visit, address):
    page = visit(f"{address}#/problem/problem-1")
    found = lines(page, "curves-problem-1", "/problem/problem-1")
    assert n_dim(found) == 0
    page.locator(".legend li", has_text="Optimizer 2").hover()
    page.wait_for_selector("[stroke-opacity='0.125']", state="attached")
    assert n_dim(found) == 3


# Pages, tables, keyboard ----------------------------------------------------------------------------------------------


def test_links_and_the_back_button(visit, address):
    page = visit(address)
    page.get_by_role("navigation", name="Pages").get_by_role("link", name="problem-1").click()
    assert page.locator(".view:not([hidden])").get_attribute("id") == "/problem/problem-1"
    assert page.title().startswith("problem-1")
    assert page.locator("[aria-current=page]").text_content() == "problem-1"
    page.locator(".view:not([hidden])").get_by_role("link", name="Overview").click()
    page.get_by_role("navigation", name="On this page").get_by_role("link", name="Cost").click()
    assert page.locator(".view:not([hidden])").get_attribute("id") == "/"
    assert page.evaluate("scrollY") > 500
    page.go_back()
    page.go_back()
    assert page.locator(".view:not([hidden])").get_attribute("id") == "/problem/problem-1"
    page.go_back()
    assert page.locator(".view:not([hidden])").get_attribute("id") == "/"
    page.goto(f"{address}#/nowhere")
    assert page.locator(".view:not([hidden])").get_attribute("id") == "/"


def column(page, name):
    table = page.locator("table").first
    place = table.locator("thead th").all_text_contents().index(name) + 1
    return table.locator(f"tbody tr > :nth-child({place})").all_text_contents()


def test_tables_are_sorted_by_their_headings(visit, address):
    page = visit(address)
    table = page.locator("table").first
    before = column(page, "optimizer")
    table.get_by_role("button", name="step cost").click()
    costs = [float(text) for text in column(page, "step cost")]
    assert costs == sorted(costs)
    assert table.locator("th[aria-sort=ascending]").text_content() == "step cost"
    table.get_by_role("button", name="step cost").click()
    assert [float(text) for text in column(page, "step cost")] == costs[::-1]
    table.get_by_role("button", name="optimizer").click()
    assert column(page, "optimizer") == sorted(before)
    assert table.locator("th[aria-sort]").count() == 1


def test_everything_works_by_keyboard(visit, address):
    page = visit(address)

    def focused():
        return page.evaluate(
            "document.activeElement.id || document.activeElement.value || document.activeElement.textContent"
        )

    def tab_to(wanted):
        for _ in range(60):
            page.keyboard.press("Tab")
            outline = page.evaluate("""() => { const e = document.activeElement;
                return getComputedStyle(e.dataset.control ? e.nextElementSibling : e).outlineStyle }""")
            assert outline == "solid", focused()  # where the focus is can be seen
            if focused() == wanted:
                return
        pytest.fail(f"Tab never comes to {wanted}")

    page.keyboard.press("Tab")
    assert focused() == "Skip to the results"
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.id === 'main'")  # a browser follows a link when it comes to it
    page.reload()
    tab_to("theme")
    page.keyboard.press("Enter")
    assert page.locator("html").get_attribute("data-theme") == "dark"
    tab_to("problem-1")
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.textContent === 'problem-1'")  # its heading
    page.evaluate("document.querySelector('#theme').focus()")
    tab_to("Optimizer 3")
    page.keyboard.press("Space")
    drawn(page)
    assert lines(page, "curves-problem-1", "/problem/problem-1").count() == 3
    tab_to("tuned")
    page.keyboard.press("ArrowRight")
    assert focused() == "default"
    assert page.locator('[data-control="setting"]:checked').first.get_attribute("value") == "default"
    tab_to("optimizer")
    page.keyboard.press("Space")
    assert page.locator(".view:not([hidden]) th[aria-sort=ascending]").count() == 1


# Screens and paper ----------------------------------------------------------------------------------------------------


def test_dark_by_system_and_by_switch(visit, address):
    page = visit(address, color_scheme="dark")
    ground = "() => getComputedStyle(document.body).backgroundColor"
    label = page.locator('[data-chart="aggregate"] .role-axis-label text').first
    dark, light_text = page.evaluate(ground), label.get_attribute("fill")
    button = page.get_by_role("button", name="dark")
    assert button.get_attribute("aria-pressed") == "true"
    button.click()
    drawn(page)
    assert page.evaluate(ground) == "rgb(255, 255, 255)" != dark
    assert label.get_attribute("fill") != light_text
    assert button.get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize("view", ["/", "/problem/problem-1"])
def test_a_phone_never_scrolls_sideways(visit, address, view):
    page = visit(f"{address}#{view}", PHONE, has_touch=True, is_mobile=True)
    for summary in page.locator("summary").all():
        summary.click()
    height = page.evaluate("document.documentElement.scrollHeight")
    for top in range(0, height, 400):
        page.evaluate("top => scrollTo(0, top)", top)
        drawn(page)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    widths = page.locator(".view:not([hidden]) .plot:not([data-chart=wins]) svg").evaluate_all(
        "all => all.map(one => one.getBoundingClientRect().width)"
    )
    assert max(widths) <= PHONE["width"]


def test_charts_follow_the_window(visit, address):
    page = visit(address)
    plot = page.locator('[data-chart="aggregate"]')
    page.set_viewport_size({"width": 700, "height": 900})
    page.wait_for_function("""() => { const plot = document.querySelector('[data-chart="aggregate"]');
        return Math.abs(plot.querySelector("svg").clientWidth - plot.clientWidth) < 5 }""")
    assert plot.locator("svg").bounding_box()["width"] < 700


def test_paper_shows_everything(visit, address):
    page = visit(address, color_scheme="dark")
    n_plots = page.locator(".plot").count()
    page.emulate_media(media="print", color_scheme="dark")
    page.wait_for_function("n => document.querySelectorAll('.plot svg').length === n", arg=n_plots)
    for view in page.locator(".view").all():
        assert view.is_visible()
    for control in (".side", ".controls", ".contents"):
        assert page.locator(control).first.is_hidden()
    assert page.locator(".key").first.is_visible()  # the legend
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator(".plot .role-axis-label text").first.get_attribute("fill") == "#55565a"
    page.emulate_media(media="screen")
    page.wait_for_function("() => document.querySelectorAll('.view[hidden]').length === 3")


def test_paper_comes_out_whole(visit, address):
    page = visit(address)
    pages = len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4")))
    assert pages > 2 * 4  # an overview and three problems, each of more than a page


def test_without_javascript_everything_is_there_but_the_charts(browser, address, summaries):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{address}#/problem/problem-1")
    for summary in summaries:
        assert page.get_by_role("heading", name=summary.name, level=1).is_visible()
    assert page.locator(".noscript").is_visible()
    assert page.locator(".controls").first.is_hidden()
    assert page.locator("td").count() > 100
    context.close()


# Size -----------------------------------------------------------------------------------------------------------------


def test_two_hundred_thousand_points(visit, tmp_path, record_property):
    records = made_records(9, 23, 1, 10, 49)
    n_points = sum(len(record["curve"]["step"]) for record in records if record["split"] == "test")
    assert n_points > 200_000
    address = report.write_html(tmp_path, report.Loaded(summarise(records))).as_uri()
    began = time.perf_counter()
    page = visit(address)
    seconds = time.perf_counter() - began
    record_property("seconds to the first charts", round(seconds, 2))
    print(f"{n_points} points: first charts after {seconds:.2f} s")
    assert page.locator('[data-chart="aggregate"] .mark-symbol path').count() == 2 * 23
    page.goto(f"{address}#/curves")
    drawn(page)
    for summary in page.locator("#\\/curves .plot").all():
        summary.scroll_into_view_if_needed()
        summary.locator("svg").wait_for()
        assert summary.locator(".mark-line path").count() == 23
