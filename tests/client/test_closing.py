"""A close that meets a locked store or a passing outage is tried again in its time; if that fails, it says what is missing."""

import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mechanicd.client import Reductions, ServerUnavailable, connect, open_run
from mechanicd.v1 import resources_pb2, run_service_pb2
from tests.support.logs import about


def trained(target: str, run: str = "run", **settings: Any) -> Any:
    session = open_run(target, run, start=0, deadline=0.2, **settings)
    for _ in range(20):
        session.begin(Reductions(-1.0, 0.5, 1.0, 2.0))
        session.finish(wait=False)
    return session


def told(server: Any, run: str = "run") -> tuple[str, int]:
    with connect(server.target) as client:
        found = client.call("GetRun", run_service_pb2.GetRunRequest(name=f"projects/default/runs/{run}")).run
    return resources_pb2.RunStatus.Name(found.status).removeprefix("RUN_STATUS_"), found.durable_step


@contextmanager
def locked(server: Any) -> Iterator[None]:
    """Somebody else writes to the database, and does not stop."""
    other = sqlite3.connect(server.database, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.rollback()
        other.close()


@pytest.fixture
def server(new_server: Callable[..., Any]) -> Any:
    return new_server().start()


def test_a_locked_store_and_a_server_that_restarts_meanwhile(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    session, again = trained(server.target), trained(server.target, "again")
    with locked(server):
        closing = threading.Thread(target=session.close, args=("failed", "no more data"))
        closing.start()
        closing.join(1.0)
        assert closing.is_alive(), "it tries on"
    closing.join(20.0)
    assert told(server) == ("FAILED", 20)
    assert not any("closed" in message for message in about(caplog, "run"))
    server.kill()
    closing = threading.Thread(target=again.close)
    closing.start()
    server.start()
    closing.join(20.0)
    assert told(server, "again") == ("FINISHED", 20)


def test_an_outage_that_has_ended_the_training_does_not_leave_its_run_open(server: Any) -> None:
    session = trained(server.target, on_outage="raise")
    server.kill()
    with pytest.raises(ServerUnavailable):
        session.step(Reductions(-1.0, 0.5, 1.0, 2.0))
    server.start()
    session.close("failed", "the server was away")
    assert told(server) == ("FAILED", 20)


def test_a_session_whose_run_another_one_has_since_says_so_and_not_to_close_it(
    server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    old = trained(server.target, "again")
    old.flush()
    with open_run(server.target, "again", start=0):
        old.close()
        (said,) = (message for message in caplog.messages if "closed" in message)
        assert "another session, that has the run since, records how it ends; all its steps are stored" in said
        assert "runs close" not in said


@pytest.mark.parametrize("how", ["locked", "gone"])
def test_what_is_missing_is_said(
    how: str, server: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, run_cli: Any, wait_for: Any
) -> None:
    monkeypatch.setattr("mechanicd.client._close_time.CLOSE_SECONDS", 0.5)
    session = trained(server.target)
    assert session.flush() == 20
    stored = trained(server.target, "stored")
    stored.flush()
    if how == "locked":
        with locked(server):
            for _ in range(5):
                session.step(Reductions(-1.0, 0.5, 1.0, 2.0))
            session.close()
            stored.close()
        missing = "closed before its store took the last 5 steps, 21 to 25; the server has them in memory"
        complete = "closed, but the server could not be told how it ended; all its steps are stored"
    else:
        server.kill()
        for _ in range(5):
            session.step(Reductions(-1.0, 0.5, 1.0, 2.0))
        session.close()
        stored.close()
        server.start()
        missing = "closed while the server is unreachable; its history lacks the last 5 steps, 21 to 25"
        complete = "closed, but the server could not be told how it ended; all its steps are stored"
    assert any(missing in message for message in caplog.messages), caplog.messages
    assert any("runs/stored: " + complete in message for message in caplog.messages)
    remedy = "mechanicd runs close projects/default/runs/run --status finished"
    assert any(remedy in message for message in caplog.messages)
    # A server that was killed does not know when its trainers left: to the next one they are gone when their steps stop.
    assert wait_for(lambda: run_cli(*remedy.split()[1:], "--target", server.target).returncode == 0)
    assert told(server) == ("FINISHED", 25 if how == "locked" else 20)


MANY = """
import sys
from mechanicd.client import Reductions, _close_time, open_run
_close_time.CLOSE_SECONDS = 1.0
sessions = [open_run(sys.argv[1], f"run{i}", start=0, deadline=0.1) for i in range(30)]
print("open", flush=True)
input()
for session in sessions:
    session.step(Reductions(-1.0, 0.5, 1.0, 2.0))
dropped = sessions.pop()
del session, dropped
"""


def test_thirty_runs_whose_server_is_gone_share_the_time_at_the_end(server: Any) -> None:
    command = [sys.executable, "-c", MANY, server.target]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        server.kill()
        begun = time.monotonic()
        said = process.communicate("go\n", timeout=60)[1]
        assert process.returncode == 0
        assert time.monotonic() - begun < 25.0, "not a second for each; a step waits for 0.1 s"
    assert said.count("its history lacks the last 1 steps, 1 to 1") == 30
