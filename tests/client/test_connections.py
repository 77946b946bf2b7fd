"""Connections that are cut without a word, and servers that move: calls and watches get a new connection, no step is lost."""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechanicd.client import NotImplementedByServer, Reductions, ServerUnavailable, _targets, connect, open_run
from mechanicd.v1 import run_service_pb2
from tests.client import fault_proxy
from tests.support.servers import ServerProcess, free_port
from tests.support.soak import SOAK

ONE = Reductions(-0.1, 0.0, 1.0, 4.0)
LIST = run_service_pb2.ListRunsRequest(parent="projects/-")
WATCH = run_service_pb2.WatchRunsRequest(parent="projects/-")


@pytest.mark.parametrize("fault", ["forgotten", "mute", "black hole"])
def test_after_a_call_that_nobody_answered_the_next_has_a_new_connection(fault: str, server: Any) -> None:
    with fault_proxy.FaultProxy(server.target, 0) as proxy, connect(proxy.target) as client:
        client.call("ListRuns", LIST)
        proxy.set(fault)
        time.sleep(0.1)
        with pytest.raises(ServerUnavailable) as unanswered:
            client.call("ListRuns", LIST, 0.5)
        assert unanswered.value.reason == "DEADLINE_EXCEEDED"
        proxy.set(None)
        client.call("ListRuns", LIST)
        assert proxy.accepted == 2


@pytest.mark.soak  # gRPC's keepalive takes half a minute
def test_a_watch_that_is_cut_off_without_a_word_says_so_within_half_a_minute_and_goes_on(server: Any, project: str) -> None:
    def watched(fault: str) -> None:
        with fault_proxy.FaultProxy(server.target, 0) as proxy, connect(proxy.target) as client:
            watch = client.watch(WATCH, lambda _: ended.setdefault(fault, time.monotonic() - began))
            next(watch)
            proxy.set(fault)
            began = time.monotonic()
            threading.Timer(60.0, proxy.set, [None]).start()
            time.sleep(1.0)
            name = fault.replace(" ", "-")
            open_run(server.target, name, project=project, start=0).close()
            for response in watch:
                if any(run.name == f"projects/{project}/runs/{name}" for run in response.runs):
                    again.add(fault)
                    return

    ended: dict[str, float] = {}
    again: set[str] = set()
    faults = ("forgotten", "deaf", "mute", "black hole", "half-close")
    threads = [threading.Thread(target=watched, args=(fault,)) for fault in faults]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert again == set(faults)
    assert max(ended.values()) < 60.0, "30 s on an idle machine"


def test_a_watch_goes_on_after_a_cut_and_tells_what_happened_meanwhile_once(
    server: Any, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_targets, "_CHANNEL_SECONDS", 0.2)
    parent = f"projects/{project}"
    for name in ("kept", "deleted"):
        open_run(server.target, name, project=project, start=0).close()
    said: list[str | None] = []
    request = run_service_pb2.WatchRunsRequest(parent=parent)
    with fault_proxy.FaultProxy(server.target, 0) as proxy, connect(proxy.target) as client, connect(server.target) as other:
        watch = client.watch(request, lambda error: said.append(error and error.reason))
        assert len(next(watch).runs) == 2
        for number, fault in enumerate(("reset", "404", *(("401", "200") if SOAK else ()))):
            proxy.set("reset")
            proxy.set(fault)
            open_run(server.target, f"new{number}", project=project, start=0).close()
            gone = f"{parent}/runs/{f'new{number - 1}' if number else 'deleted'}"
            other.call("DeleteRun", run_service_pb2.DeleteRunRequest(name=gone))
            for again, moment in (("reset", 0.4), (None, 0.5)):
                threading.Timer(moment, proxy.set, [again]).start()
            assert [run.name for run in next(watch).runs] == [f"{parent}/runs/new{number}"]
            assert next(watch).gone == [gone]
        assert said[1::2] == [None] * (4 if SOAK else 2)
        assert None not in said[::2]
        client.close()
        with pytest.raises(ServerUnavailable):
            next(watch)


@pytest.mark.parametrize("fault", ["404", "401", pytest.param("no greeting", marks=pytest.mark.soak)])
def test_a_connection_to_something_else_is_replaced_and_no_step_is_lost(
    fault: str, server: Any, project: str, history: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_targets, "_CHANNEL_SECONDS", 0.5)
    with fault_proxy.FaultProxy(server.target, 0) as proxy:
        session = open_run(proxy.target, "else", project=project, start=0, deadline=0.3)
        for wait in (True, False):
            session.step(ONE)
            proxy.set(fault)
            for _ in range(20):
                session.begin(ONE)
                session.finish(wait=wait)
                time.sleep(0.02)
            proxy.set(None)  # for new connections; those of the fault stay as they are
            assert session.flush(20) == session.state.step
        session.close()
    assert [record.step for record in history(server.target, "else", project)] == list(range(1, 43))


def test_what_is_no_mechanicd_is_told_at_the_start(server: Any) -> None:
    with fault_proxy.FaultProxy(server.target, 0) as proxy:
        proxy.set("404")
        with pytest.raises(NotImplementedByServer):
            open_run(proxy.target, "else", start=0)


def test_a_watch_takes_the_first_server_that_answers(server: Any) -> None:
    with connect(f"127.0.0.1:{free_port()},{server.target}") as client:
        assert next(client.watch(WATCH)) is not None


class MovableServer(ServerProcess):
    """A server at any address of this machine."""

    address = ""

    @property
    def target(self) -> str:
        return self.address


@pytest.mark.parametrize("kind", ["name", *(["::1", "ipv4:", "unix:"] if SOAK else [])])
def test_a_server_that_comes_back_elsewhere_behind_its_name_gets_every_step(
    kind: str, tmp_path: Path, history: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, store, resolve = free_port(), f"sqlite:///{tmp_path / 'm.db'}", socket.getaddrinfo
    addresses, target = {
        "name": ([f"127.0.0.2:{port}", f"127.0.0.3:{port}"], f"runs.example:{port}"),
        "::1": ([f"[::1]:{port}"] * 2, f"[::1]:{port}"),
        "ipv4:": ([f"127.0.0.1:{port}"] * 2, f"ipv4:127.0.0.1:{port}"),
        "unix:": ([f"unix:{tmp_path}/socket"] * 2, f"unix:{tmp_path}/socket"),
    }[kind]
    here = ["127.0.0.2"]
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **named: resolve(here[0] if host == "runs.example" else host, *rest, **named)
    )
    server = MovableServer(tmp_path, store=store)
    server.address = addresses[0]
    server.start()
    session = open_run(target, "moved", start=0, deadline=0.3)
    for _ in range(20):
        session.step(ONE)
    server.kill()
    for _ in range(20):
        session.step(ONE)
    server.address, here[0] = addresses[1], "127.0.0.3"
    server.start()
    try:
        assert session.flush(30) == 40
        session.close()
        assert [record.step for record in history(target, "moved")] == list(range(1, 41))
    finally:
        server.kill()
