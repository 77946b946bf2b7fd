"""Colours, keys, phones, and what the page says when something is missing."""

import json
from collections.abc import Callable
from typing import Any

from playwright.sync_api import Page, expect

from tests.support.servers import free_port

Open = Callable[..., Page]
BACKGROUND = "getComputedStyle(document.documentElement).backgroundColor"


def brightness(page: Page) -> float:
    return float(page.evaluate(f"{BACKGROUND}.match(/[\\d.]+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0) / 3"))


def test_dark_as_the_system_and_as_chosen(open_page: Open) -> None:
    page = open_page(color_scheme="dark")
    expect(page.locator(".row.run").first).to_be_visible()
    assert brightness(page) < 60
    page.get_by_role("button", name="Light colors").click()
    assert brightness(page) > 200
    page.reload()
    expect(page.locator(".row.run").first).to_be_visible()
    assert brightness(page) > 200
    page.keyboard.press("t")
    assert brightness(page) < 60


def test_keys(open_page: Open) -> None:
    page = open_page("#/?sort=name")
    expect(page.locator(".row.run").first).to_be_visible()
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("bert")
    expect(page.locator(".row.run")).to_have_count(3)
    page.keyboard.press("Escape")
    for key in "jjk":
        page.keyboard.press(key)
    active = page.locator(".row.active")
    expect(active).to_have_attribute("data-name", "projects/zoo/runs/bert/seed0")
    expect(active.get_by_role("link")).to_be_focused()
    page.keyboard.press("x")
    expect(page.get_by_role("checkbox", name="Show bert/seed0 on the chart")).to_be_checked()
    page.keyboard.press("j")
    page.keyboard.press("x")
    page.keyboard.press("p")
    expect(page.locator(".row.pinned")).to_have_attribute("data-name", "projects/zoo/runs/bert/seed1")
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("c")
    expect(page.get_by_role("heading", level=1)).to_have_text("Compare 2 runs")
    page.keyboard.press("Escape")
    expect(page.locator(".row.run")).to_have_count(3)
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_contain_text("bert/seed")
    page.keyboard.press("Escape")
    expect(page.locator(".row.run")).to_have_count(3)


def test_a_phone_shows_all_without_scrolling_sideways(open_page: Open) -> None:
    for view in ("#/", "#/?group=batch", "#/run/zoo:layers", "#/compare?runs=zoo:flat,zoo:long"):
        page = open_page(view, width=390, height=844, device_scale_factor=2, is_mobile=True, has_touch=True)
        expect(page.locator("main .panel").first).to_be_visible()
        expect(page.locator(".chart").first).to_be_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, view
    page = open_page("#/?q=flat", width=390, height=844)
    row = page.locator(".row.run")
    expect(row.locator(".c-s")).to_be_visible()
    expect(row.locator(".need")).to_contain_text("stuck")


def test_a_server_that_is_away_is_said_and_comes_back(open_page: Open, new_server: Callable[..., Any]) -> None:
    port = free_port()
    server = new_server("--http", f"127.0.0.1:{port}").start()
    page = open_page(address=server.page, quiet=False)
    expect(page.get_by_role("heading", name="No runs yet")).to_be_visible()
    expect(page.get_by_role("button", name="Copy")).to_be_visible()
    server.kill()
    expect(page.get_by_role("alert")).to_contain_text("Not connected since")
    expect(page.get_by_role("status")).to_have_text("not connected")
    server.start()
    page.get_by_role("button", name="Try now").click()
    expect(page.get_by_role("status")).to_have_text("live")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_an_error_of_the_server_is_shown_in_its_words(open_page: Open) -> None:
    page = open_page("#/?sel=zoo:long", quiet=False)
    expect(page.locator(".grain")).to_contain_text("column")
    body = json.dumps({"error": {"reason": "STORE_UNAVAILABLE", "message": "the disk is on fire"}})
    page.route("**/api/v1/series", lambda route: route.fulfill(status=503, body=body))
    page.get_by_role("combobox", name="Series").select_option("h")
    expect(page.locator(".chart-note")).to_have_text("the disk is on fire")
    page.goto(page.url.split("#")[0] + "#/run/zoo:nobody")
    expect(page.get_by_role("heading", name="This run can't be shown")).to_be_visible()
    page.get_by_role("link", name="All runs").click()
    expect(page.locator(".row.run").first).to_be_visible()


def test_every_control_has_a_name(open_page: Open) -> None:
    for view in ("#/?group=batch&sel=zoo:long", "#/run/zoo:layers"):
        page = open_page(view)
        expect(page.locator(".chart").first).to_be_visible()
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, input, select, a")].filter(element =>
                !(element.ariaLabel || element.title || element.textContent.trim() || element.labels?.length))
                .map(element => element.outerHTML)"""
        )
        assert nameless == []
