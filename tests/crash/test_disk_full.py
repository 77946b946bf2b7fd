"""The disk refuses: the training goes on, everybody is told, and nothing that was announced durable is lost.

The largest size of a file (RLIMIT_FSIZE), set on the running server, stands for the size of the disk.
"""

import ctypes
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mechanicd.client import Reductions, ServerUnavailable, open_run
from mechanicd.store import SQLiteStore, check
from mechanicd.tuner import Tuner

SERVICES = ("", "mechanicd.v1.TunerService", "mechanicd.v1.RunService")


def reductions(step: int) -> Reductions:
    return Reductions(-1.0 - step % 5, 0.1 * step, 1.0 + step % 3, 2.0)


def oracle(steps: int) -> list[tuple[int, float]]:
    """(step, S) of the training that nothing happens to."""
    tuner = Tuner()
    state = tuner.init()
    scales = []
    for step in range(1, steps + 1):
        state = tuner.update(state, reductions(step))
        scales.append((step, state.scale[0]))
    return scales


def train(session: Any, last: int) -> None:
    """On to step `last`, each S held to a tuner here."""
    expected = oracle(last)
    while session.state.step < last:
        step = session.state.step + 1
        assert (step, session.step(reductions(step))) == expected[step - 1]


def health(target: str) -> dict[str, bool]:
    """Whether each service says that it serves."""
    with grpc.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        replies = {name: stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=5) for name in SERVICES}
    return {name: reply.status == health_pb2.HealthCheckResponse.SERVING for name, reply in replies.items()}


def fill_up(server: Any) -> None:
    """From now on no file of the server's grows."""
    largest = max(file.stat().st_size for file in server.folder.glob("mechanicd.db*"))
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))


def make_room(server: Any) -> None:
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.fixture
def filled(new_server: Callable[..., Any], wait_for: Callable[..., bool]) -> tuple[Any, Any, int]:
    """A server whose disk is full, a session with steps that it could not keep, and the last durable step."""
    server = new_server().start()
    session = open_run(server.target, "full", start=0)
    train(session, 500)
    assert session.flush() == 500
    assert all(health(server.target).values())
    fill_up(server)
    train(session, 3000)
    assert wait_for(lambda: not any(health(server.target).values())), "every service says that it does not serve"
    with pytest.raises(ServerUnavailable, match="the store can't be written right now; the steps are kept") as caught:
        session.flush(10)
    assert caught.value.reason == "STORE_UNAVAILABLE"
    assert "could not be written" in server.log.read_text()
    store = SQLiteStore(str(server.database), readonly=True)
    row = store.get("default", "full")
    assert row is not None
    durable = row.last_step
    store.close()
    assert 500 <= durable < 3000
    return server, session, durable


def test_with_room_again_nothing_is_missing(
    filled: tuple[Any, Any, int], history: Callable[..., list[Any]], wait_for: Callable[..., bool]
) -> None:
    server, session, _ = filled
    make_room(server)
    assert session.flush(30) == 3000
    assert wait_for(lambda: all(health(server.target).values()))
    train(session, 3100)
    assert session.flush(30) == 3100
    session.close()
    assert [(record.step, record.scale[0]) for record in history(server.target, "full")] == oracle(3100)


def test_killed_on_a_full_disk_it_has_what_was_durable_and_gets_the_rest_again(
    filled: tuple[Any, Any, int], history: Callable[..., list[Any]]
) -> None:
    server, session, durable = filled
    server.kill()
    copy = Path(shutil.copytree(server.folder, server.folder.with_name("copy")))
    store = SQLiteStore(str(copy / "mechanicd.db"))
    row = store.get("default", "full")
    assert row is not None
    assert row.last_step == durable
    assert [(step.step, step.scale[0]) for step in store.steps(row, 0, 1, 2**62, 2**62)] == oracle(durable)
    assert list(check(store)) == []
    store.close()
    server.start()
    assert session.flush(30) == 3000
    session.close()
    assert [(record.step, record.scale[0]) for record in history(server.target, "full")] == oracle(3000)


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # JAX warns if other tests have imported it
def test_a_store_that_may_only_be_read_is_refused_at_the_start_and_stays_as_it_is(
    new_server: Callable[..., Any],
) -> None:
    server = new_server().start()
    session = open_run(server.target, "full", start=0)
    train(session, 50)
    session.close()
    server.stop()
    before = server.database.read_bytes()
    for file in server.folder.iterdir():
        file.chmod(0o444)
    server.folder.chmod(0o555)
    command = [sys.executable, "-m", "mechanicd.cli", "serve", "--grpc", server.target, "--store", server.store]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, preexec_fn=_obey_modes)
    finally:
        server.folder.chmod(0o755)
        for file in server.folder.iterdir():
            file.chmod(0o644)
    assert (done.returncode, done.stdout) == (1, "")
    assert "STORE_NOT_WRITABLE" in done.stderr
    assert str(server.database) in done.stderr
    assert server.database.read_bytes() == before


def _obey_modes() -> None:
    """Takes root's right to ignore file modes (CAP_DAC_OVERRIDE) from what is started."""
    if os.geteuid() == 0:
        assert ctypes.CDLL(None).prctl(24, 1, 0, 0, 0) == 0
