"""`mechanicd store …`: the care of a database, on real ones, beside a real server."""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mechanicd.client import Reductions, open_run
from mechanicd.store import SQLiteStore
from tests.support.servers import wait_for

Cli = Callable[..., Any]


def train(target: str, run: str, steps: int) -> list[float]:
    session = open_run(target, run, start=0)
    scales = [session.step(Reductions(-1.0 - step % 7, 0.5, 1.0, 2.0)) for step in range(steps)]
    session.flush()
    session.close()
    return scales


def kept(path: Path, run: str) -> list[float]:
    store = SQLiteStore(str(path))
    row = store.get("default", run)
    assert row is not None
    scales = [step.scale[0] for step in store.steps(row, 0, 1, 2**62, 2**62)]
    store.close()
    return scales


def test_a_store_is_checked_and_copied_beside_its_running_server(
    new_server: Callable[..., Any], run_cli: Cli, tmp_path: Path
) -> None:
    server = new_server().start()
    scales = train(server.target, "a", 300)
    done = run_cli("store", "check", "--store", server.store, "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"runs": 1, "ok": True, "findings": []}), done.stderr
    done = run_cli("store", "backup", "--store", server.store, str(tmp_path / "backup.db"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"] == 1
    train(server.target, "b", 5)
    assert kept(tmp_path / "backup.db", "a") == scales
    assert "1 runs checked, 0 problems" in run_cli("store", "check", "--store", f"sqlite:///{tmp_path}/backup.db").stdout


def test_a_backup_goes_to_postgresql_and_back(
    new_server: Callable[..., Any], run_cli: Cli, tmp_path: Path, postgres: Any
) -> None:
    server = new_server().start()
    scales = train(server.target, "a", 1500)
    server.stop()
    url = postgres.create_database("moved")
    assert run_cli("store", "backup", "--store", server.store, url).returncode == 0
    refused = run_cli("store", "backup", "--store", server.store, url)
    assert refused.returncode == 1
    assert "already has runs" in refused.stderr
    moved = new_server(store=url).start()
    more = open_run(moved.target, "a", start=None)
    scales.append(more.step(Reductions(-1.0, 0.5, 1.0, 2.0)))
    more.flush()
    more.close()
    moved.stop()
    assert run_cli("store", "check", "--store", url).returncode == 0
    assert run_cli("store", "vacuum", "--store", url).returncode == 0
    assert run_cli("store", "backup", "--store", url, str(tmp_path / "back.db")).returncode == 0
    assert kept(tmp_path / "back.db", "a") == scales


def test_damage_is_told_and_the_exit_code_says_so(new_server: Callable[..., Any], run_cli: Cli) -> None:
    server = new_server().start()
    train(server.target, "a", 50)
    server.stop()
    with sqlite3.connect(server.database) as db:
        db.execute("UPDATE runs SET last_step = 49")
    done = run_cli("store", "check", "--store", server.store)
    assert done.returncode == 1
    assert (
        "wrong  projects/default/runs/a: the tuner state is at step 50, but the run is at 49 [STATE_MISPLACED]" in done.stdout
    )


def test_vacuum_gives_up_what_is_old_when_told_to_and_asks_before(new_server: Callable[..., Any], run_cli: Cli) -> None:
    server = new_server().start()
    scales = train(server.target, "a", 8000)
    busy = run_cli("store", "vacuum", "--store", server.store)
    assert busy.returncode == 1
    assert "STORE_IN_USE" in busy.stderr
    server.stop()
    before = server.database.stat().st_size
    assert run_cli("store", "vacuum", "--store", server.store, "--keep-steps", "100").returncode == 1, "nobody said yes"
    assert kept(server.database, "a") == scales
    done = run_cli("store", "vacuum", "--store", server.store, "--keep-steps", "100", "--yes", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"runs": 1, "runs_deleted": 0}), done.stderr
    assert server.database.stat().st_size < 0.5 * before
    assert kept(server.database, "a") == scales[7 * 1024 :]
    server.start()
    assert "steps 1 to 8000" in run_cli("runs", "show", "a", "--target", server.target).stdout, "the extremes of all are there"
    server.stop()
    done = run_cli("store", "vacuum", "--store", server.store, "--keep-days", "0", "--yes")
    assert done.stdout == "0 runs kept, 1 deleted\n"


def test_a_server_deletes_no_run_just_after_its_start(new_server: Callable[..., Any], run_cli: Cli) -> None:
    """It looks after its store at the start. After a long stop all runs are old, and their trainers have not come back yet."""
    server = new_server("--keep-steps", "0", "--keep-days", "0").start()
    train(server.target, "a", 10)
    server.stop()
    server.start()
    assert not wait_for(lambda: json.loads(run_cli("runs", "list", "--target", server.target, "--json").stdout) == [], 2.0)


@pytest.mark.parametrize("command", ["check", "vacuum"])
@pytest.mark.parametrize(
    ("url", "reason"),
    [("mysql://x", "STORE_NOT_WRITABLE"), ("postgresql://me:secret@127.0.0.1:1/x", "STORE_UNAVAILABLE")],
)
def test_a_place_that_is_no_store_is_one_clear_error(command: str, url: str, reason: str, run_cli: Cli) -> None:
    done = run_cli("store", command, "--store", url)
    assert done.returncode == 1
    assert reason in done.stderr
    assert "secret" not in done.stderr


def test_a_check_makes_no_file(run_cli: Cli, tmp_path: Path) -> None:
    done = run_cli("store", "check", "--store", f"sqlite:///{tmp_path}/none.db")
    assert done.returncode == 1
    assert "there is no such file" in done.stderr
    assert list(tmp_path.iterdir()) == []
