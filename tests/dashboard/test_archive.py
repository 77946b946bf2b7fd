"""Archived and renamed runs, as the page's API has them."""

import json
from collections.abc import Callable
from typing import Any

import httpx

from mechanicd.client import connect
from mechanicd.dashboard._table import Table
from mechanicd.runs import Silence
from mechanicd.v1 import run_service_pb2
from tests.dashboard.test_live import row, streaming

New = Callable[..., Any]
S = 10**9


def listed(http: httpx.Client, filter_: str, project: str) -> list[str]:
    answer = http.get("/api/v1/runs", params={"filter": filter_, "project": project}).json()
    return [item["run"] for item in answer["runs"]]


def call(server: Any, method: str, **fields: Any) -> Any:
    with connect(server.target) as client:
        return client.call(method, getattr(run_service_pb2, f"{method}Request")(**fields))


def test_an_archived_run_leaves_the_table_and_needs_nobody(
    http: httpx.Client, shared: Any, new_trainer: New, seen: New, project: str, wait_for: Callable[..., bool]
) -> None:
    trainer = new_trainer(shared, "bad").take(25, bad=True)
    assert seen(http, trainer.name, step=25)["archive_time"] is None
    new_trainer(shared, "good").take(1)
    assert wait_for(lambda: listed(http, "needs : non_finite", project) == ["bad"])
    with streaming(http, http.get("/api/v1/runs").json()["cursor"]) as stream:
        call(shared, "ArchiveRun", name=trainer.name)
        for change in stream.changes({trainer.name}):
            if change.get("archive_time"):
                assert change["needs"] == []
                break
        assert listed(http, "", project) == ["good"]
        assert listed(http, "archived = true", project) == ["bad"]
        assert listed(http, "archived : *", project) == ["bad", "good"]
        detail = http.get("/api/v1/run", params={"name": trainer.name}).json()
        assert (detail["run"]["archive_time"], detail["events"][-1]["kind"]) == (change["archive_time"], "archived")
        call(shared, "RestoreRun", name=trainer.name)
        for change in stream.changes({trainer.name}):
            if "archive_time" in change and change["archive_time"] is None:
                assert [need["kind"] for need in change["needs"]] == ["non_finite"]
                break
    assert listed(http, "", project) == ["bad", "good"]


def test_a_renamed_run_is_gone_under_its_old_name_and_whole_under_the_new_one(
    http: httpx.Client, shared: Any, new_trainer: New, seen: New, project: str
) -> None:
    trainer = new_trainer(shared, "a").take(4)
    trainer.end("RUN_STATUS_FINISHED")
    seen(http, trainer.name, status="finished")
    new = f"{trainer.name}/better"
    with streaming(http, http.get("/api/v1/runs").json()["cursor"]) as stream:
        call(shared, "RenameRun", name=trainer.name, new_name=new)
        while True:
            _, data = stream.next()
            if data["gone"]:
                break
        assert data["gone"] == [trainer.name]
        (change,) = (item for item in data["runs"] if item["name"] == new)
        assert change.keys() >= {"name", "project", "run", "status", "step", "S", "labels", "needs"}
    assert listed(http, "", project) == ["a/better"]
    answer = http.post("/api/v1/series", content=json.dumps({"runs": [new]})).json()["runs"][0]
    assert (answer["first_step"], answer["last_step"], answer["missing"]) == (1, 4, False)


def test_two_runs_that_swap_their_names_are_told_apart_by_whoever_was_away() -> None:
    table = Table(Silence())
    table.update([row(1, run="a"), row(2, run="b", last_step=7)], [], S)
    before = table.now
    table.update([row(1, run="c", revision=2)], [], S)
    table.update([row(2, run="a", revision=2, last_step=7)], [], S)
    table.update([row(1, run="b", revision=3)], [], S)
    told = table.since(before)
    known = {f"projects/p/runs/{run}": {} for run in "ab"}
    for name in told["gone"]:
        known.pop(name, None)
    for item in told["runs"]:
        known.setdefault(item["name"], {}).update(item)
    assert {name: item["step"] for name, item in known.items()} == {"projects/p/runs/a": 7, "projects/p/runs/b": 1}
