"""The page's JSON over HTTP, from a real server with real runs."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.routing import Route

from mechanicd.dashboard import PageConfig, _static_files
from mechanicd.dashboard._app import Child, make_app

New = Callable[..., Any]
Seen = Callable[..., dict[str, Any]]


@pytest.fixture
def runs(shared: Any, new_trainer: New) -> list[Any]:
    """Two runs with a history: "a" has 300 steps and a spike, "b" two scale groups and a bad step."""
    first = new_trainer(shared, "a", labels={"batch": "256"}).take(150, lr=0.5).take(1, spike=1e6).take(149)
    second = new_trainer(shared, "b", groups=("head", "body")).take(20).take(1, bad=True).take(19)
    return [first, second]


def test_runs_are_listed_with_what_the_table_shows(http: httpx.Client, runs: list[Any], seen: Seen, project: str) -> None:
    a, b = runs
    item = seen(http, a.name, step=300)
    S = a.taken[-1][1]
    assert item["S"] == S[0]
    assert item["scale"] == list(S)
    assert (item["project"], item["run"], item["status"], item["groups"]) == (project, "a", "running", 1)
    assert item["labels"] == {"batch": "256"}
    assert (item["sessions"], item["rewinds"], item["needs"]) == (1, 0, [])
    assert seen(http, b.name, step=40)["S"] == max(b.taken[-1][1])
    answer = http.get("/api/v1/runs", params={"project": project}).json()
    assert [item["name"] for item in answer["runs"]] == [a.name, b.name]
    assert item["create_time"] <= item["step_time"] <= answer["now"]
    assert answer["server"].keys() >= {"version", "started", "store", "silence"}
    found = http.get("/api/v1/runs", params={"filter": f'name : "{project}" AND step < 100'}).json()["runs"]
    assert [item["name"] for item in found] == [b.name]


def test_a_series_has_the_exact_steps_when_zoomed_in(http: httpx.Client, runs: list[Any], seen: Seen) -> None:
    a = runs[0]
    seen(http, a.name, step=300)
    (found,) = http.post("/api/v1/series", json={"runs": [a.name], "x0": 140, "x1": 160, "columns": 100}).json()["runs"]
    assert (found["name"], found["first_step"], found["last_step"], found["exact"]) == (a.name, 1, 300, True)
    columns = found["columns"]
    exact = dict(a.taken)
    assert columns["x"] == columns["first"] == columns["last"] == list(range(140, 161))
    assert columns["min"] == columns["max"] == columns["end"] == [exact[step][0] for step in range(140, 161)]


def test_columns_may_be_called_pixels_as_in_version_0_1(http: httpx.Client, runs: list[Any], seen: Seen) -> None:
    a = runs[0]
    seen(http, a.name, step=300)
    old, new = (http.post("/api/v1/series", json={"runs": [a.name], name: 7}).json()["runs"] for name in ("pixels", "columns"))
    assert old == new
    assert len(new[0]["columns"]["x"]) <= 7


def test_a_spike_is_seen_however_far_one_is_away(http: httpx.Client, runs: list[Any], seen: Seen) -> None:
    a = runs[0]
    seen(http, a.name, step=300)
    exact = http.post("/api/v1/series", json={"runs": [a.name], "series": "h", "columns": 300}).json()["runs"][0]["columns"]
    peak = max(exact["max"], key=abs)
    assert abs(peak) > 1e4
    for pixels in (1, 2, 7, 30, 200):
        answer = http.post("/api/v1/series", json={"runs": [a.name], "series": "h", "columns": pixels}).json()["runs"][0]
        columns = answer["columns"]
        assert len(columns["x"]) <= pixels
        assert peak in columns["max"] + columns["min"]
        assert columns["first"][0] == 1
        assert columns["last"][-1] == 300


def test_series_of_groups_and_of_bad_steps(http: httpx.Client, runs: list[Any], seen: Seen) -> None:
    b = runs[1]
    seen(http, b.name, step=40)

    def columns(**asked: Any) -> dict[str, Any]:
        answer = http.post("/api/v1/series", json={"runs": [b.name], "columns": 100, **asked}).json()
        return dict(answer["runs"][0]["columns"])

    for group in (0, 1):
        assert columns(group=group)["max"] == [S[group] for _, S in b.taken]
    whole = columns()
    assert whole["max"] == [max(S) for _, S in b.taken]
    assert whole["min"] == [min(S) for _, S in b.taken]
    assert whole["non_finite"] == [int(step == 21) for step, _ in b.taken]
    assert columns(series="h")["max"][20] is None
    assert columns(series="base_lr")["max"] == [None] * 40
    answer = http.post("/api/v1/series", json={"runs": [b.name], "group": 2}).json()["runs"][0]
    assert answer["missing"] is True


@pytest.mark.parametrize("x", ["relative", "time"])
def test_by_time_a_stretch_is_found_by_its_bounds(http: httpx.Client, runs: list[Any], seen: Seen, x: str) -> None:
    a = runs[0]
    seen(http, a.name, step=300)
    whole = http.post("/api/v1/series", json={"runs": [a.name], "x": x, "columns": 300}).json()["runs"][0]
    assert whole["exact"]
    times = whole["columns"]["x"]
    assert times == sorted(times)
    assert times[0] == 0.0 or x == "time"
    x0, x1 = times[100], times[120]
    for pixels in (100, 8):
        part = http.post("/api/v1/series", json={"runs": [a.name], "x": x, "x0": x0, "x1": x1, "columns": pixels}).json()
        columns = part["runs"][0]["columns"]
        assert len(columns["x"]) <= pixels
        assert columns["first"][0] <= 101
        assert columns["last"][-1] >= 121
        assert pixels == 8 or (columns["first"][0], columns["last"][-1]) == (101, 121)


def test_a_run_that_is_not_there_is_said_to_be_missing(http: httpx.Client, runs: list[Any], seen: Seen, project: str) -> None:
    seen(http, runs[0].name, step=300)
    gone = f"projects/{project}/runs/none"
    answer = http.post("/api/v1/series", json={"runs": [gone, runs[0].name]}).json()["runs"]
    assert [(run["name"], run["missing"]) for run in answer] == [(gone, True), (runs[0].name, False)]
    assert answer[0]["columns"]["x"] == []


def test_sparklines_bands_and_heat_map(http: httpx.Client, runs: list[Any], seen: Seen) -> None:
    a, b = runs
    seen(http, a.name, step=300)
    seen(http, b.name, step=40)
    sparks = http.get("/api/v1/sparklines", params={"run": [a.name, b.name]}).json()
    assert sparks.keys() == {a.name, b.name}
    assert 20 <= len(sparks[a.name]["x"]) <= 60
    assert max(sparks[a.name]["max"]) == max(S[0] for _, S in a.taken)
    assert sparks[b.name]["end"][-1] == max(b.taken[-1][1])

    asked = {"groups": [{"label": "both", "runs": [a.name, b.name]}], "columns": 40, "x1": 40, "quantiles": [0, 1]}
    (band,) = http.post("/api/v1/bands", json=asked).json()["groups"]
    assert (band["label"], band["x"][-1]) == ("both", 40)
    assert set(band["n"]) == {2}
    at = [max(dict(b.taken)[40]), max(dict(a.taken)[40])]
    np.testing.assert_array_equal([q[-1] for q in band["q"]], sorted(at))

    heat = http.get("/api/v1/heatmap", params={"run": b.name, "columns": 5}).json()
    assert heat["groups"] == ["head", "body"]
    for group, row in enumerate(heat["S"]):
        for first, last, S in zip(heat["first"], heat["last"], row, strict=True):
            assert max(scale[group] for step, scale in b.taken if first <= step <= last) == S


def test_a_run_in_full(http: httpx.Client, shared: Any, new_trainer: New, seen: Seen) -> None:
    first = new_trainer(shared, "a", groups=("head", "body")).take(30)
    second = new_trainer(shared, "a", groups=("head", "body"), after_step=20).take(5)
    second.end("RUN_STATUS_PREEMPTED", "told to stop")
    seen(http, first.name, step=25, status="preempted")
    answer = http.get("/api/v1/run", params={"name": first.name}).json()
    assert answer["run"]["step"] == 25
    assert answer["group_names"] == ["head", "body"]
    assert (answer["config"]["convention"], answer["config"]["s_init"]) == ("paper", 1e-8)
    assert answer["events"][0]["kind"] == "opened"
    assert {event["kind"] for event in answer["events"]} >= {"opened", "rewound", "closed"}
    assert all(
        answer["run"]["create_time"] <= event["time"] <= answer["run"]["step_time"] + 60_000 for event in answer["events"]
    )
    assert answer["branches"] == [
        {"branch": 0, "first_step": 1, "last_step": 25},
        {"branch": 1, "first_step": 21, "last_step": 30},
    ]
    assert "run='a'" in answer["resume"]
    assert shared.target in answer["resume"]
    abandoned = http.post("/api/v1/series", json={"runs": [first.name], "branch": 1}).json()["runs"][0]
    assert (abandoned["first_step"], abandoned["last_step"]) == (21, 30)
    assert abandoned["columns"]["max"] == [max(S) for step, S in first.taken if step > 20]


def test_an_export_is_what_the_command_line_exports(
    http: httpx.Client, shared: Any, runs: list[Any], seen: Seen, run_cli: New
) -> None:
    for trainer, steps in zip(runs, (300, 40), strict=True):
        seen(http, trainer.name, step=steps)
        told = run_cli("runs", "export", "--target", shared.target, trainer.name).stdout
        answer = http.get("/api/v1/export", params={"run": trainer.name})
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        assert "attachment" in answer.headers["content-disposition"]
        assert answer.text.splitlines() == told.splitlines()
    name = runs[1].name
    asked = {"run": name, "format": "json", "x0": "20", "x1": "22"}
    rows = http.get("/api/v1/export", params=asked).json()
    assert [row["step"] for row in rows] == [20, 20, 21, 21, 22, 22]
    assert rows[2]["h"] == rows[3]["h"] == "NaN"
    assert [(row["scale_group"], row["scale"]) for row in rows[:2]] == list(
        zip(("head", "body"), runs[1].taken[19][1], strict=True)
    )


@pytest.mark.parametrize(
    ("path", "body", "status", "reason", "said"),
    [
        ("/api/v1/nothing", None, 404, "NOT_FOUND", "the API is under /api/v1"),
        ("/api/v1/series", None, 405, "METHOD_NOT_ALLOWED", "GET"),
        ("/api/v1/runs?filter=step", None, 400, "INVALID_FILTER", "at character 0"),
        ("/api/v1/heatmap?run=projects/p/runs/r", None, 404, "RUN_NOT_FOUND", "no such run"),
        ("/api/v1/run?name=projects/p/runs/r", None, 404, "RUN_NOT_FOUND", "no such run"),
        ("/api/v1/export?run=projects/p/runs/r", None, 404, "RUN_NOT_FOUND", "no such run"),
        ("/api/v1/export?run=r&format=xml", None, 400, "MALFORMED_REQUEST", "one of csv"),
        ("/api/v1/export?run=r&x2=1", None, 400, "MALFORMED_REQUEST", "unknown fields 'x2'"),
        ("/api/v1/heatmap", None, 400, "MALFORMED_REQUEST", "run None: expected a string"),
        ("/api/v1/heatmap?run=r&columns=none", None, 400, "MALFORMED_REQUEST", "a whole number from 1 to 8192"),
        ("/api/v1/heatmap?run=r&columns=1.5", None, 400, "MALFORMED_REQUEST", "a whole number from 1 to 8192"),
        ("/api/v1/heatmap?run=r&branch=1.5", None, 400, "MALFORMED_REQUEST", "a whole number from 0"),
        ("/api/v1/export?run=r&branch=1.5", None, 400, "MALFORMED_REQUEST", "a whole number from 0"),
        ("/api/v1/export?run=r&branch=nan", None, 400, "MALFORMED_REQUEST", "a whole number from 0"),
        ("/api/v1/export?run=r&branch=1e999", None, 400, "MALFORMED_REQUEST", "a whole number from 0"),
        ("/api/v1/export?run=r&branch=%D9%A1", None, 400, "MALFORMED_REQUEST", "a whole number from 0"),
        ("/api/v1/export?run=r&branch=1_0", None, 400, "MALFORMED_REQUEST", "a whole number from 0"),
        ("/api/v1/heatmap?run=r&columns=" + "9" * 5000, None, 400, "MALFORMED_REQUEST", "a whole number from 1"),
        ("/api/v1/export?run=r&x0=infinity", None, 400, "MALFORMED_REQUEST", "a number"),
        ("/api/v1/export?run=r&x0=1e400", None, 400, "MALFORMED_REQUEST", "a number"),
        ("/api/v1/export?run=r&x1=%D9%A1", None, 400, "MALFORMED_REQUEST", "a number"),
        ("/api/v1/runs?filter=step>1e400", None, 400, "INVALID_FILTER", "expected a number"),
        ("/api/v1/runs?filter=step>%D9%A1", None, 400, "INVALID_FILTER", "expected a number"),
        ("/api/v1/runs?filter=scale<1_0", None, 400, "INVALID_FILTER", "expected a number"),
        ("/api/v1/runs?filter=" + "step>1%20AND%20" * 200, None, 400, "INVALID_FILTER", "at most 100 comparisons"),
        ("/api/v1/heatmap?run=r&x0=2&x1=1", None, 400, "INVALID_RANGE", "x0 2 is above x1 1"),
        ("/api/v1/series", b"{", 400, "MALFORMED_REQUEST", "not valid JSON"),
        ("/api/v1/series", b'{"runs":["\xff"]}', 400, "MALFORMED_REQUEST", "not valid JSON"),
        ("/api/v1/series", b'{"runs":["\\ud800"]}', 400, "MALFORMED_REQUEST", "not valid JSON"),
        ("/api/v1/series", b'{"runs":["a"],"x0":1e400}', 400, "MALFORMED_REQUEST", ""),
        ("/api/v1/series", b'{"runs":["a"],"columns":1' + b"0" * 400 + b"}", 400, "MALFORMED_REQUEST", ""),
        ("/api/v1/series", b"[]", 400, "MALFORMED_REQUEST", "expected a JSON object"),
        ("/api/v1/series", b"{}", 400, "MALFORMED_REQUEST", "runs None: expected a list of at most 200"),
        ("/api/v1/series", b'{"runs":["a"],"series":"loss"}', 400, "MALFORMED_REQUEST", "one of S, h,"),
        ("/api/v1/series", b'{"runs":["a"],"columns":0}', 400, "MALFORMED_REQUEST", "from 1 to 8192"),
        ("/api/v1/series", b'{"runs":["a"],"pixels":0}', 400, "MALFORMED_REQUEST", "from 1 to 8192"),
        ("/api/v1/series", b'{"runs":["a"],"columns":9,"pixels":9}', 400, "MALFORMED_REQUEST", "send only columns"),
        ("/api/v1/series", b'{"runs":["a"],"pixel":10}', 400, "MALFORMED_REQUEST", "unknown fields 'pixel'"),
        ("/api/v1/series", b'{"runs":["a"],"x0":"1"}', 400, "MALFORMED_REQUEST", "a finite number"),
        ("/api/v1/series", b'{"runs":["a"],"x0":5,"x1":4}', 400, "INVALID_RANGE", "x0 5 is above x1 4"),
        ("/api/v1/bands", b'{"groups":[{"runs":["a"]}],"quantiles":[2]}', 400, "MALFORMED_REQUEST", "in [0, 1]"),
        ("/api/v1/bands", b'{"groups":[1]}', 400, "MALFORMED_REQUEST", "expected a JSON object, got 1"),
    ],
)
def test_what_is_refused_says_why(
    http: httpx.Client, path: str, body: bytes | None, status: int, reason: str, said: str
) -> None:
    answer = http.get(path) if body is None else http.post(path, content=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["reason"] == reason
    assert said in error["message"]


def test_more_than_fits_is_refused(http: httpx.Client) -> None:
    answer = http.post("/api/v1/series", content=b" " * 2_000_000)
    assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "MALFORMED_REQUEST")
    names = [f"projects/p/runs/r{number}" for number in range(201)]
    assert http.post("/api/v1/series", json={"runs": names}).json()["error"]["reason"] == "MALFORMED_REQUEST"
    answer = http.get("/api/v1/sparklines", params={"run": names[:101]})
    assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "MALFORMED_REQUEST")


def test_a_page_of_another_site_can_not_read_it_by_a_name_of_its_own(http: httpx.Client, shared: Any) -> None:
    port = shared.page.rpartition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", ""):
        answer = http.get("/api/v1/runs", headers={"Host": host})
        assert (answer.status_code, answer.json()["error"]["reason"]) == (403, "FOREIGN_HOST")
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", "localhost", f"[::1]:{port}"):
        assert http.get("/api/v1/runs", headers={"Host": host}).status_code == 200


def test_every_answer_tells_the_browser_to_run_nothing_but_the_page(http: httpx.Client) -> None:
    for path in ("/", "/api/v1/runs", "/nothing", "/healthz"):
        headers = http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "script-src 'self';" in headers["content-security-policy"]
        assert "default-src 'none'" in headers["content-security-policy"]


def test_it_is_well(http: httpx.Client) -> None:
    answer = http.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")


def test_every_route_is_in_the_documentation() -> None:
    app = make_app(Child(PageConfig(store="sqlite:///none.db")))
    documented = (Path(__file__).parents[2] / "docs" / "contract.md").read_text()
    routes = [route for route in app.routes if isinstance(route, Route)]
    assert len(routes) > 10
    for route in routes:
        assert route.methods is not None
        method = "POST" if "POST" in route.methods else "GET"
        assert re.search(rf"`{method} {re.escape(route.path)}[`?]", documented), route.path


def test_the_page_is_served_or_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def get(path: str) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(make_app(Child(PageConfig(store="sqlite:///none.db"))))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                return await client.get(path)

        return asyncio.run(ask())

    monkeypatch.setattr(_static_files, "STATIC", tmp_path / "static")
    missing = get("/")
    assert missing.status_code == 503
    assert "Install Node" in missing.text
    (tmp_path / "static/assets").mkdir(parents=True)
    (tmp_path / "secret").write_text("not the page's")
    (tmp_path / "static/index.html").write_text("<!doctype html><title>runs</title>")
    (tmp_path / "static/assets/x-1a2b.js").write_text("1")
    page = get("/")
    assert (page.status_code, page.headers["cache-control"]) == (200, "no-cache")
    assert "<title>runs</title>" in page.text
    script = get("/assets/x-1a2b.js")
    assert "immutable" in script.headers["cache-control"]
    assert script.headers["content-type"].startswith("text/javascript")
    for way in ("/assets/%2e%2e/%2e%2e/secret", "/assets/..%2f..%2fsecret", "/assets//" + str(tmp_path / "secret")):
        assert get(way).status_code == 404
