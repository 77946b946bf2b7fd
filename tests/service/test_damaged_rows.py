"""Damage in one run's row blinds nobody: all others are listed, watched, trained and opened; that one is shown as damaged."""

import json
import sqlite3
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from mechanicd.client import MechanicdError, Reductions, connect, open_run
from mechanicd.v1 import run_service_pb2
from tests.support.servers import ServerProcess

TAKEN = Reductions(-1.0, 0.5, 1.0, 2.0)
DAMAGE = {
    "labels": "labels = '{\"a'",
    "letters": "labels = CAST(x'7b2261223a2022ff227d' AS TEXT)",
    "config": "config = replace(config, '0.01', '0.11')",
    "vitals": "vitals = '{\"since\": -5}'",
    "marks": 'vitals = \'{"marks": [[1, "x", 2.0, 0]]}\'',
    "scale": "scale = x'0011'",
    "status": "status = 'runming'",
    "step": "last_step = -9223372036854775807",
    "time": "create_time = -1",
    "rewinds": "rewinds = 4611686018427387904",
    "sessions": "session_count = 1099511627777",
    "command": "command = CAST(x'ff' AS TEXT)",
}


def test_damaged_rows_are_shown_and_blind_nobody(
    new_server: Callable[..., ServerProcess], run_cli: Callable[..., Any], wait_for: Callable[..., bool]
) -> None:
    server = new_server("--http", "127.0.0.1:0").start()
    good = open_run(server.target, "good", start=0)
    before = open_run(server.target, "held", start=0)
    for session in (good, before):
        session.step(TAKEN)
        session.flush()
    with connect(server.target) as client:
        for name in DAMAGE:
            fork = run_service_pb2.ForkRunRequest(
                source="projects/default/runs/good", after_step=1, name=f"projects/default/runs/{name}"
            )
            client.call("ForkRun", fork)
        with sqlite3.connect(server.database) as db:
            for name, change in DAMAGE.items():
                db.execute(f"UPDATE runs SET {change}, revision = revision + 1 WHERE run = ?", (name,))
            db.execute("UPDATE runs SET state = x'4d', revision = revision + 1 WHERE run = 'held'")

        def damaged(runs: list[Any]) -> set[str]:
            return {run["name"].rpartition("/")[2] for run in runs if "damaged" in [need["kind"] for need in run["needs"]]}

        done = run_cli("runs", "list", "--target", server.target, "--json")
        assert done.returncode == 0, (done.stderr, server.log.read_text()[-9000:])
        listed = json.loads(done.stdout)
        assert (len(listed), damaged(listed)) == (len(DAMAGE) + 2, set(DAMAGE))
        needs = run_cli("runs", "list", "--target", server.target, "--filter", "needs : damaged", "--json")
        assert damaged(json.loads(needs.stdout)) == set(DAMAGE)
        shown = run_cli("runs", "list", "--target", server.target)
        assert "labels   " in shown.stdout
        watched = next(iter(client.watch(run_service_pb2.WatchRunsRequest(parent="projects/-"))))
        assert len(watched.runs) == len(DAMAGE) + 2

        def page(path: str) -> Any:
            with urllib.request.urlopen(server.page + path, timeout=10) as reply:
                return json.loads(reply.read())

        assert wait_for(lambda: damaged(page("/api/v1/runs")["runs"]) == set(DAMAGE))
        for name in DAMAGE:
            with pytest.raises(MechanicdError) as refused:
                client.call("GetRun", run_service_pb2.GetRunRequest(name=f"projects/default/runs/{name}"))
            assert refused.value.reason == "STORE_DAMAGED"
            assert f"projects/default/runs/{name} can't be read" in str(refused.value)
        good.step(TAKEN)
        good.flush()
        other = open_run(server.target, "other", start=0)
        other.step(TAKEN)
        other.flush()
        other.close()
    before.step(TAKEN)  # the server has its state in memory, and the next commit writes it anew
    before.flush()
    assert json.loads(run_cli("store", "check", "--store", server.store, "--json").stdout)["runs"] == len(DAMAGE) + 3
    good.close()
    before.close()
    assert server.stop() == 0


def test_a_damaged_state_is_never_trained_on(new_server: Callable[..., ServerProcess]) -> None:
    server = new_server().start()
    sessions = [open_run(server.target, name, start=0) for name in ("a", "b")]
    for session in sessions:
        for _ in range(3):
            session.step(TAKEN)
        session.flush()
        session.close()
    server.stop()
    with sqlite3.connect(server.database) as db:
        for name, column in (("a", "state"), ("b", "scale")):
            (value,) = db.execute(f"SELECT {column} FROM runs WHERE run = ?", (name,)).fetchone()
            data = bytearray(value)
            data[-9 if name == "a" else 3] ^= 1
            db.execute(f"UPDATE runs SET {column} = ? WHERE run = ?", (bytes(data), name))
    server.start()
    for name in ("a", "b"):
        with pytest.raises(MechanicdError, match=r"the tuner's state of projects/default/runs/. is damaged") as refused:
            open_run(server.target, name, start=None)
        assert refused.value.reason == "STORE_DAMAGED"
        again = open_run(server.target, name, start=2)  # replayed from the history
        assert again.step(TAKEN) > 0
        again.flush()
        again.close()
    assert server.stop() == 0
