"""The chart hides no spike, fetches what a zoom shows, and follows a run."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

Open = Callable[..., Page]
SPIKE_STEP, LONG_STEPS = 12_345, 20_000


def chart(page: Page) -> Any:
    return page.locator(".chart").first


def reach(page: Page) -> tuple[float, float]:
    """The stretch of the x axis on screen."""
    low, high = (chart(page).get_attribute(f"data-{end}") for end in ("x0", "x1"))
    return float(low or "nan"), float(high or "nan")


def columns(page: Page) -> int:
    return int(chart(page).get_attribute("data-columns") or 0)


def drag(page: Page, begin: float, end: float) -> None:
    """Across the plot, from one part of its width to another."""
    box = page.locator(".u-over").first.bounding_box()
    assert box
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + begin * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + (begin + end) / 2 * box["width"], y)
    page.mouse.move(box["x"] + end * box["width"], y)
    page.mouse.up()


INK = """([step, top]) => {
    // Whether anything but grid is drawn in the upper part of the plot, within 3 pixels of a step.
    const chart = document.querySelector(".chart");
    const [over, canvas] = [chart.querySelector(".u-over"), chart.querySelector("canvas")];
    const [low, high] = [Number(chart.dataset.x0), Number(chart.dataset.x1)];
    const ratio = canvas.width / canvas.clientWidth;
    const x = (over.offsetLeft + (step - low) / (high - low) * over.clientWidth) * ratio;
    const data = canvas.getContext("2d").getImageData(x - 3, over.offsetTop * ratio, 7, top * over.clientHeight * ratio).data;
    let inked = 0;
    for (let i = 0; i < data.length; i += 4) {
        const [r, g, b, a] = data.slice(i, i + 4);
        if (a > 60 && Math.max(r, g, b) - Math.min(r, g, b) > 60) inked += 1;
    }
    return inked;
}"""


def test_one_step_among_many_shows_as_a_spike(open_page: Open, wait_for: Callable[..., bool]) -> None:
    page = open_page("#/?sel=zoo:long&series=grad_norm")
    expect(page.locator(".grain")).to_contain_text("min, max and last")
    assert 300 < columns(page) < LONG_STEPS / 4
    assert wait_for(lambda: page.evaluate(INK, [SPIKE_STEP, 0.3]) > 5)
    assert page.evaluate(INK, [SPIKE_STEP + 900, 0.3]) == 0
    page.get_by_text("lin", exact=True).click()
    assert wait_for(lambda: page.evaluate(INK, [SPIKE_STEP, 0.3]) > 5)


def test_a_zoom_fetches_the_steps_that_it_shows(open_page: Open) -> None:
    page = open_page("#/?sel=zoo:long")
    expect(page.locator(".grain")).to_contain_text("min, max and last")
    assert reach(page)[1] > LONG_STEPS * 0.98
    before = columns(page)
    with page.expect_request(lambda request: "/series" in request.url and request.post_data_json["x1"] is not None) as asked:
        drag(page, 0.60, 0.62)
    expect(page.locator(".grain")).to_have_text("every step")
    low, high = reach(page)
    assert 0.57 * LONG_STEPS < low < 0.61 * LONG_STEPS < high < 0.64 * LONG_STEPS
    assert (asked.value.post_data_json["x0"], asked.value.post_data_json["x1"]) == (low, high)
    assert columns(page) == high - low + 1
    assert f"x0={low:.0f}" in page.url
    page.locator(".u-over").first.dblclick()
    expect(page.locator(".grain")).to_contain_text("min, max and last")
    assert abs(columns(page) - before) <= 2, "as before, but for a tail that may come in between"
    page.go_back()
    expect(page.locator(".grain")).to_have_text("every step")
    assert reach(page) == (low, high)


def test_a_step_shows_by_itself(open_page: Open, zoo: Any) -> None:
    page = open_page("#/?q=live&sel=zoo:live")
    row = page.locator(".row.run")
    before = zoo["live"].session.state.step
    expect(row.locator(".c-step")).to_have_text(str(before))
    expect(page.locator(".grain")).to_contain_text("every step")
    assert columns(page) == before
    zoo["live"].take(7)
    expect(row.locator(".c-step")).to_have_text(str(before + 7))
    expect(chart(page)).to_have_attribute("data-columns", str(before + 7))
    assert reach(page)[1] == before + 7


def test_the_view_is_in_the_address(open_page: Open, names: Callable[[Page], list[str]]) -> None:
    page = open_page()
    expect(page.locator(".row.run").first).to_be_visible()
    page.get_by_role("searchbox").fill("bert")
    expect(page.locator(".row.run")).to_have_count(3)
    page.get_by_role("columnheader", name="S now").get_by_role("button").click()
    page.get_by_role("checkbox", name="Show bert/seed1 on the chart").click()
    page.get_by_role("combobox", name="Series").select_option("h")
    page.get_by_text("lin", exact=True).click()
    page.get_by_role("slider").fill("0.9")
    expect(page.locator(".legend li")).to_have_count(1)
    drag(page, 0.2, 0.6)
    expect(page.get_by_role("button", name="Reset zoom")).to_be_visible()
    shown, stretch = names(page), reach(page)
    other = open_page(page.url[page.url.index("#") :])
    expect(other.locator(".row.run")).to_have_count(3)
    expect(other.locator(".legend li")).to_have_count(1)
    assert names(other) == shown
    assert reach(other) == stretch
    assert other.get_by_role("combobox", name="Series").input_value() == "h"
    assert other.get_by_role("slider").input_value() == "0.9"
    expect(other.locator(".segments .on").nth(1)).to_have_text("lin")


def test_what_a_log_axis_can_not_show_is_said(open_page: Open) -> None:
    page = open_page("#/?sel=zoo:long&series=h&y=log")
    expect(page.locator(".grain")).to_contain_text("≤ 0")
    page.get_by_text("±log", exact=True).click()
    expect(page.locator(".grain")).not_to_contain_text("≤ 0")


@pytest.mark.parametrize("axis", ["relative", "time"])
def test_time_axes(open_page: Open, wait_for: Callable[..., bool], axis: str) -> None:
    page = open_page(f"#/?sel=zoo:long,zoo:bert/seed0&x={axis}")
    expect(page.locator(".legend li")).to_have_count(2)
    assert wait_for(lambda: columns(page) > 100)
    low, high = reach(page)
    assert low < high
    drag(page, 0.1, 0.5)
    expect(page.get_by_role("button", name="Reset zoom")).to_be_visible()
    assert low <= reach(page)[0] < reach(page)[1] < high


def test_the_chart_is_saved_as_png(open_page: Open, tmp_path: Path) -> None:
    page = open_page("#/?sel=zoo:long,zoo:flat")
    expect(page.locator(".legend li")).to_have_count(2)
    page.get_by_title("Download").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="This chart as PNG").click()
    path = tmp_path / "chart.png"
    download.value.save_as(path)
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    assert width > 900
    assert height > 264
