"""Live events: a viewer that has seen a moment is told what changed since then, and no more."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from mechanicd.dashboard._table import MOST_GONE, Table
from mechanicd.runs import RunRow, RunStatus, Silence
from mechanicd.tuner import TunerConfig

New = Callable[..., Any]
S = 10**9


class Stream:
    """Server-sent events as they come."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()
        self.cursor = ""

    def next(self) -> tuple[str, dict[str, Any]]:
        """The kind and the data of the next event."""
        kind, data = "", ""
        for line in self._lines:
            field, _, value = line.partition(": ")
            if field == "id":
                self.cursor = value
            elif field == "event":
                kind = value
            elif field == "data":
                data = value
            elif not line and kind:
                return kind, json.loads(data)
        raise AssertionError("the stream ended")

    def changes(self, names: set[str]) -> Iterator[dict[str, Any]]:
        """What is told of these runs."""
        while True:
            kind, data = self.next()
            assert kind == "runs"
            yield from (item for item in data["runs"] if item["name"] in names)


@contextmanager
def streaming(http: httpx.Client, cursor: str | None = None, **headers: str) -> Iterator[Stream]:
    params = {} if cursor is None else {"cursor": cursor}
    with http.stream("GET", "/api/v1/events", params=params, headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        yield Stream(response)


def test_a_viewer_is_told_what_changed_and_only_that(http: httpx.Client, shared: Any, new_trainer: New, seen: New) -> None:
    trainer = new_trainer(shared, "a", labels={"batch": "8"}).take(3)
    before = seen(http, trainer.name, step=3)
    cursor = http.get("/api/v1/runs").json()["cursor"]
    with streaming(http, cursor) as stream:
        trainer.take(2, lr=0.5)
        told = dict(before)
        for change in stream.changes({trainer.name}):
            assert not {"project", "run", "labels", "create_time", "sessions"} & change.keys(), "they did not change"
            told.update(change)
            if told["step"] == 5:
                break
        assert told == seen(http, trainer.name, step=5)
        assert told["effective_lr"] == told["S"] * 0.5


def test_a_new_run_comes_whole_and_a_deleted_one_is_gone(
    http: httpx.Client, shared: Any, new_trainer: New, project: str, run_cli: New
) -> None:
    with streaming(http, http.get("/api/v1/runs").json()["cursor"]) as stream:
        trainer = new_trainer(shared, "a")
        change = next(stream.changes({trainer.name}))
        assert change.keys() >= {"name", "project", "run", "status", "step", "S", "labels", "needs"}
        assert run_cli("runs", "delete", "--yes", "--fence", "--target", shared.target, trainer.name).returncode == 0
        while True:
            _, data = stream.next()
            if trainer.name in data["gone"]:
                break
    assert trainer.name not in {item["name"] for item in http.get("/api/v1/runs").json()["runs"]}


def test_a_viewer_that_comes_back_hears_what_it_missed(http: httpx.Client, shared: Any, new_trainer: New, seen: New) -> None:
    trainer, other = new_trainer(shared, "a").take(1), new_trainer(shared, "b").take(1)
    seen(http, trainer.name, step=1)
    seen(http, other.name, step=1)
    with streaming(http, http.get("/api/v1/runs").json()["cursor"]) as stream:
        trainer.take(1)
        assert next(stream.changes({trainer.name}))
        cursor = stream.cursor
    trainer.take(7)
    seen(http, trainer.name, step=9)
    # As a browser does it: the address is the first one, the header tells the last event.
    with streaming(http, "0.0", **{"Last-Event-ID": cursor}) as stream:
        told: dict[str, Any] = {}
        for change in stream.changes({trainer.name, other.name}):
            assert change["name"] == trainer.name, "the other run did not change"
            told.update(change)
            if told["step"] == 9:
                break


def test_a_cursor_of_another_process_or_none_gets_everything(
    http: httpx.Client, shared: Any, new_trainer: New, seen: New
) -> None:
    trainer = new_trainer(shared, "a").take(2)
    seen(http, trainer.name, step=2)
    for cursor in (None, "", "x", "0123456789ab.5", "0123456789ab.", http.get("/api/v1/runs").json()["cursor"] + "0000000"):
        with streaming(http, cursor) as stream:
            kind, data = stream.next()
            assert kind == "reset"
            assert {item["name"]: item["step"] for item in data["runs"]}[trainer.name] == 2
            assert data["cursor"] == stream.cursor


# --- the table, without a server ---------------------------------------------------------------------------------------


def row(id_: int, run: str = "", **fields: Any) -> RunRow:
    values: dict[str, Any] = {
        "id": id_,
        "project": "p",
        "run": run or f"r{id_}",
        "labels": {},
        "config": TunerConfig(),
        "status": RunStatus.RUNNING,
        "status_message": "",
        "epoch": 1,
        "session": 1,
        "last_step": 1,
        "state": b"",
        "scale": (1e-8,),
        "create_time": S,
        "open_time": S,
        "step_time": S,
        "interval": S,
        "session_count": 1,
        "rewinds": 0,
    }
    return RunRow(**{**values, **fields})


def test_from_any_moment_the_changes_lead_to_now() -> None:
    """Applied to what a viewer had at each earlier moment, they give what is there now, whatever happened in between."""
    table = Table(Silence())
    moments: list[tuple[int, dict[str, Any]]] = []

    def now() -> dict[str, Any]:
        return {item["name"]: dict(item) for item in table.items()}

    def take(rows: list[RunRow], gone: list[int]) -> None:
        moments.append((table.now, now()))
        assert table.update(rows, gone, S)

    take([row(1), row(2)], [])
    take([row(1, last_step=2)], [])
    take([row(3), row(2, labels={"a": "b"})], [])
    take([], [1])
    take([row(4, "r1", last_step=7)], [3])
    take([row(4, "r1", last_step=8), row(2, labels={})], [])
    for moment, had in moments:
        since = table.since(moment)
        for name in since["gone"]:
            had.pop(name, None)
        for item in since["runs"]:
            had.setdefault(item["name"], {}).update(item)
        assert had == now()
    assert not table.update([row(2, labels={})], [], S), "the same again is no change"
    assert table.since(table.now) == {"runs": [], "gone": []}


def test_a_run_becomes_silent_with_time_alone_and_says_so_sparingly() -> None:
    table = Table(Silence(20.0, 30.0))
    table.update([row(1)], [], S)
    changes = [second for second in range(2, 200) if table.update([], [], second * S)]
    assert changes[0] == 32
    (item,) = table.items()
    assert item["status"] == "silent"
    assert [need["kind"] for need in item["needs"]] == ["silent"]
    assert len(changes) < 30, "how long it has been silent is no news every second"


def test_what_is_gone_is_remembered_for_a_while() -> None:
    table = Table(Silence())
    table.update([row(id_) for id_ in range(1, MOST_GONE + 3)], [], S)
    table.update([], [1], S)
    assert table.oldest == 0
    table.update([], list(range(2, MOST_GONE + 3)), S)
    assert table.oldest == table.now
    assert table.items() == []
