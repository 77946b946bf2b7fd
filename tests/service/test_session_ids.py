"""Whoever has the id of a session can step it, so nobody else learns it: not by an error, the page, the log or the file."""

import contextlib
import shutil
import stat
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mechanicd.client import MechanicdError, Reductions, SessionFenced, connect, open_run
from mechanicd.runs import session_key
from mechanicd.tuner import Tuner
from mechanicd.v1 import resources_pb2, run_service_pb2, tuner_service_pb2
from tests.support.servers import ServerProcess

NAME = "projects/default/runs/mine"
TAKEN = Reductions(-1.0, 0.5, 1.0, 2.0)
HELD = Path(__file__).parents[1] / "store" / "fixtures" / "held_v4.db"
HELD_SESSION = 1870240859294650678


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


def test_the_store_keeps_no_id_of_a_session(new_server: Callable[..., ServerProcess], postgres: Any) -> None:
    """Neither while the session lives, nor after the run has gone through everything that moves its row."""
    for url in (None, str(postgres.lend_database())):
        server = (new_server(store=url) if url else new_server()).start()
        sessions = [open_run(server.target, run, start=0) for run in ("mine", "other", "mine", "third")]
        for session in sessions[1:]:
            session.step(TAKEN)
            session.flush()
        with connect(server.target) as client:
            client.call(
                "RenameRun", run_service_pb2.RenameRunRequest(name=f"{NAME[:-4]}third", new_name=f"{NAME}3", fence=True)
            )
            client.call("DeleteRun", run_service_pb2.DeleteRunRequest(name=f"{NAME[:-4]}other", fence=True))
        assert sessions[2].step(TAKEN) > 0
        sessions[2].flush()
        ids = {session._connection.opener.session for session in sessions}
        if url is None:
            kept = b"".join(path.read_bytes() for path in server.folder.glob("mechanicd.db*"))
            assert len(kept) > 10_000
        else:
            with psycopg.connect(url) as db:
                tables = db.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'mechanicd'").fetchall()
                rows = [db.execute(f"SELECT * FROM mechanicd.{name}".encode()).fetchall() for (name,) in tables]
            kept = repr(rows).encode()
            assert len(tables) > 7
        assert [
            id_ for id_ in ids if id_.to_bytes(8) in kept or str(id_).encode() in kept or id_.to_bytes(8, "little") in kept
        ] == []
        for session in sessions:
            with contextlib.suppress(MechanicdError):  # three have lost their runs
                session.close()
        server.stop()


def test_a_trainer_that_was_connected_before_the_upgrade_goes_on_bit_for_bit(
    new_server: Callable[..., ServerProcess], postgres: Any
) -> None:
    """`held_v4.db` is what a server of schema 4 left when it was killed: 40 steps of a session that was never closed."""
    server = new_server()
    shutil.copy(HELD, server.database)
    assert HELD_SESSION.to_bytes(8) in HELD.read_bytes()
    server.start()
    tuner, state = Tuner(), Tuner().init()
    for step in range(1, 41):
        state = tuner.update(state, [Reductions(-1.0 - step % 7, 0.5, 1.0, 2.0)])
    with connect(server.target) as client:
        opening = tuner_service_pb2.OpenSessionRequest(name="projects/default/runs/held", session=HELD_SESSION)
        opened = client.call("OpenSession", opening)
        assert opened.outcome == tuner_service_pb2.OPEN_OUTCOME_REATTACHED
        assert (opened.session, opened.last_step, opened.tuner_state) == (HELD_SESSION, 40, state.to_bytes())
        reductions = resources_pb2.Reductions(delta_dot_g=[-1.0], delta_dot_x=[0.5], g_norm_sq=[1.0], x_norm_sq=[2.0])
        result = client.call("Step", tuner_service_pb2.StepRequest(session=HELD_SESSION, step=41, reductions=reductions)).result
        assert tuple(result.scale) == tuner.update(state, [TAKEN]).scale
        client.call("Flush", tuner_service_pb2.FlushRequest(session=HELD_SESSION))
        with pytest.raises(MechanicdError) as stranger:
            client.call("Flush", tuner_service_pb2.FlushRequest(session=session_key(HELD_SESSION)))
        assert stranger.value.reason == "SESSION_UNKNOWN", "the key that is stored opens nothing"
    files = b"".join(path.read_bytes() for path in server.folder.glob("mechanicd.db*"))
    assert HELD_SESSION.to_bytes(8) not in files
