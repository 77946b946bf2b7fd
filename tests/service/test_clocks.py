"""Servers whose clocks are wrong, or are set while they serve: real processes, each with a clock of its own."""

import contextlib
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from mechanicd.client import Reductions, connect, open_run
from mechanicd.v1 import resources_pb2, run_service_pb2

ONE = Reductions(-0.1, 0.0, 1.0, 4.0)


@pytest.fixture
def new_clock_server(new_server: Callable[..., Any]) -> Callable[..., Any]:
    """A server whose clock is so many seconds ahead, started."""

    def make(ahead: float, *options: str, store: str = "") -> Any:
        server = new_server("--silent-after", "20", "3", *options, store=store)
        server.set_clock(ahead)
        return server.start()

    return make


@contextlib.contextmanager
def stepping(sessions: Sequence[Any]) -> Iterator[None]:
    """Meanwhile each session takes 20 steps a second, however slow the machine is."""
    enough = threading.Event()

    def go_on() -> None:
        while not enough.wait(0.05):
            for session in sessions:
                session.step(ONE)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def listed(server: Any) -> list[Any]:
    with connect(server.target) as client:
        return list(client.call("ListRuns", run_service_pb2.ListRunsRequest(parent="projects/-")).runs)


def statuses(server: Any) -> set[str]:
    return {resources_pb2.RunStatus.Name(run.status).removeprefix("RUN_STATUS_").lower() for run in listed(server)}


def on_the_page(server: Any) -> tuple[list[dict[str, Any]], int]:
    with urllib.request.urlopen(f"{server.page}/api/v1/runs", timeout=10) as answer:
        told = json.load(answer)
    return told["runs"], told["now"]


def test_replicas_whose_clocks_are_minutes_off_agree_that_a_run_is_alive_and_later_that_it_is_silent(
    postgres: Any,
    request: pytest.FixtureRequest,
    new_clock_server: Callable[..., Any],
    run_cli: Callable[..., Any],
    wait_for: Any,
) -> None:
    url = postgres.lend_database()
    right, ahead, behind = (new_clock_server(off, store=url) for off in (0.0, 600.0, -600.0))
    began = time.time()
    sessions = [open_run(server.target, f"run{i}", start=0) for i, server in enumerate((right, ahead, behind))]
    for session in sessions:
        session.step(ONE)
        session.flush()
    with stepping(sessions):
        for server in (right, ahead, behind):
            assert statuses(server) == {"running"}, "a run of any of them, seen by any of them"
            for run in listed(server):
                assert not run.needs
                assert abs(run.step_time.ToSeconds() - began) < 60
    for server in (right, ahead, behind):
        assert wait_for(lambda server=server: statuses(server) == {"silent"}, 30)
    for session in sessions:
        session.step(ONE)
        session.close()
    for server in (right, ahead, behind):
        assert server.stop() == 0
    postgres.take_back(url)


@pytest.mark.parametrize("by", [[3600.0, -3600.0], [6e9, -1.7e9]], ids=["an hour", "far"])
def test_a_clock_that_is_set_while_a_server_serves_changes_nothing_for_a_run(
    by: list[float], new_clock_server: Callable[..., Any], wait_for: Any
) -> None:
    server = new_clock_server(0.0, "--http", "127.0.0.1:0")
    session = open_run(server.target, "run", start=0)
    session.step(ONE)
    found = set()
    with stepping([session]):
        for seconds in [0.0, *by]:
            server.set_clock(seconds)
            end = time.monotonic() + 1.3
            while time.monotonic() < end:
                time.sleep(0.05)
                runs, now = on_the_page(server)
                found.add(runs[0]["status"])
                assert abs(now / 1000 - time.time()) < 60
                assert abs(now - runs[0]["step_time"]) < 60_000
            found |= statuses(server)
    assert session.flush() == session.state.step
    assert found == {"running"}
    assert "the clock was set by" in server.log.read_text()
    assert wait_for(lambda: statuses(server) == {on_the_page(server)[0][0]["status"]} == {"silent"}, 20)
    session.step(ONE)
    session.close()
    assert server.stop() == 0
