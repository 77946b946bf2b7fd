"""Whoever has the id of a session can step it, so nobody else learns it: not by an error, the page, the log or the file."""

import stat
import urllib.request
from collections.abc import Callable

import pytest

from mechanicd.client import MechanicdError, Reductions, SessionFenced, connect, open_run
from mechanicd.v1 import run_service_pb2
from tests.support.servers import ServerProcess

NAME = "projects/default/runs/mine"
TAKEN = Reductions(-1.0, 0.5, 1.0, 2.0)


def test_a_stranger_does_not_learn_a_sessions_id(new_server: Callable[..., ServerProcess]) -> None:
    server = new_server("--http", "127.0.0.1:0").start()
    older = open_run(server.target, "mine", start=0)
    older.step(TAKEN)
    older.flush()
    newer = open_run(server.target, "mine", start=1)
    newer.step(TAKEN)
    newer.flush()
    secret = str(newer._connection.opener.session)
    with pytest.raises(SessionFenced) as fenced:
        older.flush()
    told = [str(fenced.value), *fenced.value.metadata.values()]
    assert int(fenced.value.metadata["successor"]) > 0
    with connect(server.target) as client:
        for method, request in (
            ("RewindRun", run_service_pb2.RewindRunRequest(name=NAME, after_step=1)),
            ("DeleteRun", run_service_pb2.DeleteRunRequest(name=NAME)),
            ("RenameRun", run_service_pb2.RenameRunRequest(name=NAME, new_name=f"{NAME}2")),
        ):
            with pytest.raises(MechanicdError) as held:
                client.call(method, request)
            assert held.value.reason == "RUN_HELD"
            told += [str(held.value), *held.value.metadata.values()]
        told.append(str(client.call("GetRun", run_service_pb2.GetRunRequest(name=NAME)).run))
    for path in ("/api/v1/runs", "/api/v1/run?name=projects/default/runs/mine", "/metrics"):
        with urllib.request.urlopen(server.page + path, timeout=10) as reply:
            told.append(reply.read().decode())
    told.append(server.log.read_text())
    assert not [text for text in told if secret in text]
    assert newer.step(TAKEN) > 0, "and the run is still its own"
    newer.close()


def test_nobody_else_can_read_the_database(new_server: Callable[..., ServerProcess]) -> None:
    server = new_server().start()
    session = open_run(server.target, "mine", start=0)
    session.step(TAKEN)
    session.flush()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in server.folder.glob("mechanicd.db*")}
    modes.pop("mechanicd.db.lock", None)  # empty
    assert modes == {"mechanicd.db": 0o600, "mechanicd.db-wal": 0o600, "mechanicd.db-shm": 0o600}
    session.close()
