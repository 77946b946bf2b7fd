"""A run's own page, two beside each other, and their data in files."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

Open = Callable[..., Page]


def test_all_series_with_the_events_on_them(open_page: Open) -> None:
    page = open_page("#/run/zoo:resumed")
    expect(page.get_by_role("heading", level=1)).to_contain_text("resumed")
    expect(page.locator(".pill")).to_have_text("finished")
    expect(page.locator(".chart")).to_have_count(8)
    for series in ("S", "effective_lr", "base_lr", "h", "grad_norm", "param_norm", "delta_dot_g", "delta_dot_x"):
        expect(page.locator(f".chart[data-series={series}]")).to_have_attribute("data-columns", re.compile(r"[1-9]\d*"))
    events = page.locator(".events li")
    for kind in ("opened", "rewound", "closed"):
        expect(events.filter(has_text=kind).first).to_contain_text("at step")
    expect(page.locator(".mark-key")).to_contain_text("rewind")
    expect(page.locator(".branches li")).to_have_count(2)
    expect(page.locator(".branches")).to_contain_text("steps 51 to 90")
    expect(page.locator(".facts").first).to_contain_text("paper")


def test_skipped_and_held_steps_are_counted(open_page: Open) -> None:
    page = open_page("#/run/zoo:broken")
    expect(page.locator(".mark-key")).to_contain_text("2 non-finite steps skipped")
    expect(page.locator(".mark-key")).to_contain_text("3 steps held")


def test_an_event_leads_to_its_steps(open_page: Open) -> None:
    page = open_page("#/run/zoo:resumed")
    page.locator(".events li").filter(has_text="rewound").get_by_role("button").click()
    expect(page.get_by_role("button", name="Reset zoom")).to_be_visible()
    assert "x0=" in page.url


def test_one_zoom_for_all_series(open_page: Open) -> None:
    page = open_page("#/run/zoo:long?x0=12300&x1=12400")
    expect(page.locator(".chart")).to_have_count(8)
    for i in range(8):
        expect(page.locator(".chart").nth(i)).to_have_attribute("data-columns", "101")


def test_heat_map_of_the_scale_groups(open_page: Open) -> None:
    page = open_page("#/run/zoo:layers")
    heat = page.locator(".heatmap")
    expect(heat.locator(".heat-names li")).to_have_count(6)
    heat.get_by_role("button", name="layer3.weight").click()
    expect(page.get_by_role("combobox", name="Scale group")).to_have_value("3")
    assert "scale=3" in page.url
    expect(page.locator(".legend").first).to_contain_text("layer3.weight")
    heat.locator("canvas").hover()
    expect(heat.locator("output")).to_contain_text("S ")


def test_the_command_to_resume_is_copied(open_page: Open) -> None:
    page = open_page("#/run/zoo:resumed", permissions=["clipboard-read", "clipboard-write"])
    command = page.locator(".resume pre").inner_text()
    assert command
    page.locator(".resume").get_by_role("button", name="Copy").click()
    expect(page.locator(".resume").get_by_role("button")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()").strip() == command.strip()


def test_csv_and_json_are_what_the_store_has(open_page: Open, site: Any, history: Any, tmp_path: Path) -> None:
    page = open_page("#/run/zoo:broken")
    records = history(site.target, "broken", project="zoo")
    page.get_by_title("Download").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    path = tmp_path / "run.csv"
    download.value.save_as(path)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [record.step for record in records]
    assert [float(row["scale"]) for row in rows] == [record.scale[0] for record in records]
    with page.expect_download() as download:
        page.get_by_role("button", name="JSON").click()
    path = tmp_path / "run.json"
    download.value.save_as(path)
    text = path.read_text()
    assert str(records[-1].step) in text
    assert json.loads(text.splitlines()[0] if "\n" in text.strip() and text.startswith("{") else text)


def test_two_runs_and_what_is_different(open_page: Open) -> None:
    page = open_page("#/compare?runs=zoo:bert/seed0,zoo:bert/seed2")
    expect(page.locator(".legend li")).to_have_count(2)
    diff = page.locator(".diff tbody tr")
    expect(diff.filter(has_text="label batch")).to_contain_text("512")
    expect(diff.filter(has_text="label opt")).to_have_count(0)
    page.get_by_label("show equal rows too").check()
    expect(diff.filter(has_text="label opt")).to_contain_text("adamw")
