"""A store in trouble: health, the page and the command line say so within seconds, and nothing is announced as durable."""

import json
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mechanicd.client import Reductions, ServerUnavailable, open_run
from mechanicd.store import SQLiteStore, check

New = Callable[..., Any]
SCALARS = Reductions(-1.0, 0.5, 1.0, 2.0)


class Watched:
    """A server with a page and one training, and what the server says of itself everywhere."""

    def __init__(self, server: Any, here: New, wait_for: New) -> None:
        self.server, self.here, self.wait_for = server, here, wait_for
        self.session = open_run(server.target, "r", start=0)
        self.train(20)
        assert self.session.flush() == 20
        assert self.says() == ("serving", 200, 0)

    def train(self, count: int) -> None:
        for _ in range(count):
            self.session.step(SCALARS)

    def health(self) -> str:
        with grpc.insecure_channel(self.server.target) as channel:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        return "serving" if reply.status == health_pb2.HealthCheckResponse.SERVING else "not serving"

    def page(self, path: str = "/healthz") -> Any:
        return httpx.get(self.server.page + path, trust_env=False)

    def cli(self) -> subprocess.CompletedProcess[str]:
        return self.here("runs", "list", "--target", self.server.target, "--json")

    def says(self) -> tuple[str, int, int]:
        """Health, the status of the page's /healthz, the exit code of `runs list`."""
        return self.health(), self.page().status_code, self.cli().returncode

    def in_trouble(self, why: str) -> None:
        """All three say so, with the same reason; steps go on, and none of them is announced as durable."""
        durable = self.session.state.step - self.session.backlog
        self.train(10)
        assert self.wait_for(lambda: self.says() == ("not serving", 503, 1)), self.says()
        assert self.wait_for(lambda: why in self.page("/api/v1/runs").json()["server"]["trouble"])
        refused = json.loads(self.cli().stderr)["error"]
        assert refused["reason"] == "STORE_UNAVAILABLE"
        assert why in refused["message"]
        self.train(10)
        with pytest.raises(ServerUnavailable, match=why):
            self.session.flush(0.5)
        assert self.session.state.step - self.session.backlog == durable, "nothing more is announced as durable"

    def well_again(self) -> None:
        assert self.wait_for(lambda: self.says() == ("serving", 200, 0)), self.says()
        self.train(1)
        assert self.session.flush(10) == self.session.state.step


@pytest.fixture
def watched(new_server: New, here: New, wait_for: New) -> Iterator[Callable[[str], Watched]]:
    """`watched(store)`: a server of the test's own, at work."""
    made: list[Watched] = []

    def make(store: str = "") -> Watched:
        made.append(Watched(new_server("--http", "127.0.0.1:0", store=store).start(), here, wait_for))
        return made[-1]

    yield make
    for each in made:
        each.server.kill()
        each.session._connection.end()


def database(folder: Path) -> Path:
    """Another database of this program."""
    SQLiteStore(str(folder / "other.db")).close()
    return folder / "other.db"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another program has a transaction open."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    yield
    db.execute("ROLLBACK")
    db.close()


def test_a_sqlite_file_that_is_removed_or_overwritten_is_noticed_and_said(watched: New, tmp_path: Path) -> None:
    it, gone = watched(), "removed or replaced"
    path = it.server.database
    path.parent.rename(tmp_path / "away")
    it.in_trouble(gone)
    (tmp_path / "away").rename(path.parent)
    it.well_again()
    durable = it.session.state.step
    for suffix in ("", "-wal"):
        shutil.copy(f"{path}{suffix}", tmp_path / f"kept.db{suffix}")
    shutil.copy(database(tmp_path), path)  # writes over it: the same file, another database
    it.in_trouble(gone)
    assert it.server.stop() == 0
    log = it.server.log.read_text()
    assert "mechanicd.db was overwritten or opened by another server" in log
    assert "20 answered steps are not committed; their trainers have them" in log
    kept = SQLiteStore(str(tmp_path / "kept.db"))
    row = kept.get("default", "r")
    assert row is not None
    assert row.last_step == durable, "all that was announced is in the files that the user may put back"
    assert [finding for finding in check(kept) if not finding.harmless] == []
    kept.close()


def test_a_sqlite_that_another_program_has_locked_is_said_and_a_step_waits_for_nothing(watched: New) -> None:
    it = watched()
    with locked(it.server.database):
        it.train(10)
        assert it.wait_for(lambda: (it.health(), it.page().status_code) == ("not serving", 503))
        with pytest.raises(ServerUnavailable, match=r"has not answered|can't be written"):
            it.session.flush(0.5)
    it.well_again()
    assert it.server.stop() == 0


def test_a_postgres_that_is_frozen_is_said_and_grace_is_kept(watched: New, new_postgres: Any) -> None:
    it = watched(new_postgres.create_database("runs"))
    new_postgres.freeze()
    it.in_trouble("the store has not answered for")
    assert it.server.stop() == 0, "it does not wait for the database"
    assert "20 answered steps are not committed; their trainers have them" in it.server.log.read_text()
    new_postgres.thaw()
    it.server.start()
    it.well_again()


@pytest.mark.soak  # up to a minute each
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seconds", [1.0, 5.0, 40.0], ids="{:g} s".format)
def test_a_postgres_that_thaws_is_used_again_and_no_step_is_missing(
    watched: New, new_postgres: Any, history: New, seconds: float
) -> None:
    it = watched(new_postgres.create_database("runs"))
    for _ in range(3 if seconds < 10 else 1):
        it.train(50)
        new_postgres.freeze()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            it.train(1)
            time.sleep(0.01)
        new_postgres.thaw()
        it.well_again()
    records = history(it.server.target, "r")
    assert [record.step for record in records] == list(range(1, it.session.state.step + 1))
    assert it.server.stop() == 0
