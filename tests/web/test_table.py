"""The table finds, orders, groups and pins runs, and keeps text text."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from mechanicd.client import connect
from mechanicd.v1 import run_service_pb2

Open = Callable[..., Page]
Names = Callable[[Page], list[str]]


def search(page: Page, text: str) -> None:
    page.get_by_role("searchbox").fill(text)


def found(page: Page, names: Names, *expected: str) -> None:
    """The table has these runs, in any order, before long."""
    expect(page.locator(".row.run")).to_have_count(len(expected))
    assert sorted(names(page)) == sorted(expected)


def test_a_row_says_what_a_run_does(open_page: Open, zoo: Any) -> None:
    page = open_page("#/?q=layers")
    row = page.locator(".row.run")
    expect(row).to_have_count(1)
    expect(row.locator(".c-step")).to_have_text("150")
    largest = max(zoo["layers"].session.scales)
    assert float(row.locator(".c-s").inner_text()) == pytest.approx(largest, rel=0.06)
    assert float(row.locator(".c-lr").inner_text()) == pytest.approx(largest * 0.5, rel=0.06)
    expect(row.get_by_role("button", name="batch 256")).to_be_visible()
    expect(row.locator(".spark-line")).to_have_attribute("d", re.compile(r"M[\d.]+ [\d.]+L"))


def test_search_by_word_expression_label_and_value(open_page: Open, names: Names) -> None:
    page = open_page()
    bert = ("bert/seed0", "bert/seed1", "bert/seed2")
    search(page, "bert")
    found(page, names, *bert)
    search(page, "/seed[01]$/")
    found(page, names, *bert[:2])
    search(page, "batch=512 -bert")
    found(page, names, "flat", "resumed")
    search(page, "S<1e-6")
    found(page, names, "flat")
    search(page, "status=failed")
    found(page, names, "broken")
    search(page, "/[/")
    expect(page.locator("#search-says")).to_contain_text("Not a regular expression")
    search(page, "nothing like this")
    page.get_by_role("button", name="Show all").click()
    expect(page.locator("#search-says")).to_have_text("9 runs")


def test_an_archived_run_leaves_the_table_and_is_found_where_it_is_asked_for(
    open_page: Open, names: Names, site: Any, zoo: Any
) -> None:
    page = open_page("#/?q=/seed1|flat/")
    found(page, names, "bert/seed1", "flat")
    with connect(site.target) as client:
        name = "projects/zoo/runs/flat"
        client.call("ArchiveRun", run_service_pb2.ArchiveRunRequest(name=name))
        try:
            found(page, names, "bert/seed1")
            expect(page.locator(".needs")).not_to_contain_text("flat")
            search(page, "")
            page.get_by_role("button", name="1 archived").click()
            found(page, names, "flat")
            assert page.get_by_role("searchbox").input_value() == "archived=true"
            page.locator(".row.run").get_by_role("link").first.click()
            expect(page.locator(".run-title")).to_contain_text("archived")
        finally:
            client.call("RestoreRun", run_service_pb2.RestoreRunRequest(name=name))
    expect(page.locator(".run-title")).not_to_contain_text("archived")
    page.go_back()
    search(page, "/seed1|flat/")
    found(page, names, "bert/seed1", "flat")


def test_a_label_is_a_filter(open_page: Open, names: Names) -> None:
    page = open_page("#/?q=bert")
    page.locator(".row.run").first.get_by_role("button", name="batch 256").click()
    found(page, names, "bert/seed0", "bert/seed1")
    assert page.get_by_role("searchbox").input_value() == "bert batch=256"
    page.get_by_role("button", name="Labels").click()
    page.locator(".facet").get_by_role("button", name="batch 512").click()
    expect(page.locator(".empty")).to_be_visible()


def test_sort(open_page: Open, names: Names) -> None:
    page = open_page("#/?q=bert")
    expect(page.locator(".row.run")).to_have_count(3)
    page.get_by_role("columnheader", name="Step", exact=True).get_by_role("button").click()
    expect(page.get_by_role("columnheader", name="Step", exact=True)).to_have_attribute("aria-sort", "descending")
    assert names(page) == ["bert/seed2", "bert/seed1", "bert/seed0"]
    page.get_by_role("columnheader", name="Step", exact=True).get_by_role("button").click()
    expect(page.locator(".row.run").first).to_have_attribute("data-name", "projects/zoo/runs/bert/seed0")


def test_who_needs_somebody_is_first(open_page: Open, names: Names) -> None:
    page = open_page()
    row = page.locator(".row.run.needy", has_text="stuck")
    expect(row).to_have_attribute("data-name", "projects/zoo/runs/flat")
    expect(page.locator(".attention")).to_contain_text("stuck")
    expect(page.locator(".attention")).to_contain_text("s_init")
    page.locator(".attention").get_by_role("button", name="you").click()
    expect(page.locator("#search-says")).to_contain_text(" of 9 runs")
    assert "flat" in names(page)


def test_group_with_bands_and_fold(open_page: Open, names: Names) -> None:
    page = open_page("#/?q=batch~.")
    with page.expect_request("**/api/v1/bands") as asked:
        page.get_by_label("Group by").select_option("batch")
    groups = asked.value.post_data_json["groups"]
    assert [group["label"] for group in groups] == ["256", "512", "1024"]
    assert [len(group["runs"]) for group in groups] == [3, 3, 1]
    rows = page.locator(".row.group")
    expect(rows).to_have_count(3)
    expect(page.locator(".legend")).to_contain_text("256 (3)")
    rows.first.get_by_role("button", name="batch 256").click()
    expect(page.locator(".row.run")).to_have_count(4)
    page.reload()
    expect(page.locator(".row.group")).to_have_count(3)
    expect(page.locator(".row.run")).to_have_count(4)


def test_pins_stay_on_top(open_page: Open, names: Names) -> None:
    page = open_page("#/?q=bert&sort=name")
    expect(page.locator(".row.run")).to_have_count(3)
    page.locator(".row.run").nth(2).hover()
    page.get_by_role("button", name="Pin bert/seed2 to the top").click()
    expect(page.locator(".row.run").first).to_have_class(re.compile("pinned"))
    assert names(page) == ["bert/seed2", "bert/seed0", "bert/seed1"]
    assert "pin=zoo:bert/seed2" in page.url


def test_text_is_text(open_page: Open) -> None:
    page = open_page("#/?q=broken")
    chip = page.locator(".row.run .chip")
    expect(chip).to_contain_text("<img src=x")
    search(page, "")
    page.locator("[data-name$='/broken'] .chip").click()
    expect(page.locator("#search-says")).to_have_text("1 of 9 runs")
    page.goto(page.url.split("#")[0] + "#/run/zoo:broken")
    expect(page.get_by_role("heading", level=1)).to_contain_text("broken")
    expect(page.locator(".status-message")).to_contain_text("<script>")
    page.goto(page.url.split("#")[0] + "#/compare?runs=zoo:broken,zoo:flat")
    expect(page.locator(".diff")).to_contain_text("<img src=x")
    page.goto(page.url.split("#")[0] + "#/?group=note")
    expect(page.locator(".row.group").first).to_contain_text("<img src=x")
    assert page.locator("main img").count() == 0
    assert "owned" not in page.title()


def test_a_thousand_rows_are_not_a_thousand_elements(open_page: Open, new_server: Callable[..., Any], names: Names) -> None:
    server = new_server("--http", "127.0.0.1:0").start()
    with connect(server.target) as client:
        for i in range(300):
            client.open_run(f"r{i:04}", labels={"i": str(i)}, start=0).close("finished")
        page = open_page("#/?sort=name", address=server.page)
        expect(page.locator("#search-says")).to_have_text("300 runs")
        expect(page.locator(".table")).to_have_attribute("aria-rowcount", "301")
        assert len(names(page)) < 60
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.locator(".table-scroll").evaluate("element => element.scrollTo(0, element.scrollHeight)")
        expect(page.locator(".row.run").last).to_be_visible()
        expect(page.locator("[data-name$='/r0299']")).to_be_visible()
        assert len(names(page)) < 60
