"""Connections that are cut without a word, and servers that move: calls and watches get a new connection, no step is lost."""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechanicd.client import Reductions, ServerUnavailable, connect, open_run
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
def test_a_watch_that_is_cut_off_without_a_word_ends_within_half_a_minute_and_can_begin_again(server: Any) -> None:
    def watched(fault: str) -> None:
        with fault_proxy.FaultProxy(server.target, 0) as proxy, connect(proxy.target) as client:
            watch = client.watch(WATCH)
            next(watch)
            proxy.set(fault)
            began = time.monotonic()
            try:
                for _ in watch:
                    pass
            except ServerUnavailable:
                ended[fault] = time.monotonic() - began
            proxy.set(None)
            again[fault] = next(client.watch(WATCH))

    ended: dict[str, float] = {}
    again: dict[str, Any] = {}
    faults = ("forgotten", "deaf", "mute", "black hole", "half-close")
    threads = [threading.Thread(target=watched, args=(fault,)) for fault in faults]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert ended.keys() == again.keys() == set(faults)
    assert max(ended.values()) < 60.0, "30 s on an idle machine"


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
