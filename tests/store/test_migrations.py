"""A database that an older mechanicd wrote is brought up to date when it is opened, and loses nothing.

`fixtures/schema_vN.db` were written by the mechanicd whose schema was N, with `world.py`.
"""

import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from mechanicd.runs import EventKind, EventRow, RunStats, session_key
from mechanicd.store import SCHEMA_VERSION, SchemaTooNew, SchemaTooOld, SQLiteStore, check, open_store
from mechanicd.store._migrations import NEW_IN_5, OLD_TABLES
from tests.store import world

FIXTURES = Path(__file__).with_name("fixtures")
OLD = sorted(FIXTURES.glob("schema_v*.db"))


@pytest.fixture(params=OLD, ids=lambda path: path.stem)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of an old file."""
    return Path(shutil.copy(request.param, tmp_path / "runs.db"))


def version_of(path: Path) -> int:
    with sqlite3.connect(path) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def test_there_is_a_file_of_each_old_schema() -> None:
    assert [path.stem for path in OLD] == [f"schema_v{version}" for version in range(1, SCHEMA_VERSION)]


def test_an_old_file_has_everything_when_opened_and_again_when_reopened(old: Path) -> None:
    assert version_of(old) < SCHEMA_VERSION
    for _ in range(2):
        store = SQLiteStore(str(old))
        world.check(store)
        assert store.integrity() == []
        reasons = {finding.reason for finding in check(store) if not finding.harmless}
        assert reasons == {"STATE_UNREADABLE"}, "the world's states are words; nothing else is wrong"
        store.close()
        assert version_of(old) == SCHEMA_VERSION
    with sqlite3.connect(old) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    assert not [name for name in tables if name.startswith("old_")]


def test_an_old_file_opened_only_to_look_is_refused_and_stays_as_it_was(old: Path) -> None:
    before = old.read_bytes()
    with pytest.raises(SchemaTooOld, match="start a server on it once"):
        SQLiteStore(str(old), readonly=True)
    assert old.read_bytes() == before


@pytest.mark.parametrize("old", OLD[:2], ids=lambda path: path.stem, indirect=True)
def test_a_migration_that_is_killed_is_begun_again(old: Path) -> None:
    """The process ends in the middle, without a word; the file is still of the old schema."""
    program = f"""
import os
from mechanicd.store import SQLiteStore, _pyramid
rise, calls = _pyramid.rise, []
def killed(*branch):
    calls.append(1)
    if len(calls) == 3:
        os._exit(9)
    return rise(*branch)
_pyramid.rise = killed
SQLiteStore({str(old)!r})
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 9
    assert version_of(old) < SCHEMA_VERSION
    store = SQLiteStore(str(old))
    world.check(store)
    store.close()


def test_todays_schema_holds_the_same_world(tmp_path: Path) -> None:
    store = SQLiteStore(str(tmp_path / "runs.db"))
    world.write(store)
    world.check(store)
    world.check_noted(store)
    while store.fold():
        pass
    world.check(store)
    world.check_noted(store)
    store.close()


def test_what_an_old_file_did_not_know_is_empty_and_its_runs_go_on(old: Path) -> None:
    old_version = version_of(old)
    store = SQLiteStore(str(old))
    rows = store.list_runs(None, None, 100)
    if old_version < 3:
        assert [row.command for row in rows] == [""] * 4
        assert [row.stats for row in rows] == [RunStats(since=row.last_step) for row in rows], "judged from the next step on"
        assert [store.events(row.id) for row in rows] == [[]] * 4
    else:
        world.check_noted(store)
    assert [row.archive_time for row in rows] == [0] * 4
    store.archive(rows[0].id, 5, EventRow(5, 0, EventKind.ARCHIVED, "by hand"))
    assert [row.archive_time for row in store.list_runs(None, None, 100)] == [5, 0, 0, 0]
    assert store.renamed("zoo", "new") is None
    largest = max(row.id for row in rows)
    store.delete(largest)
    assert store.create("zoo", "later", world.PLAIN, b"", (0.0,), 1).id > largest, "an id is never used again"
    world.step_on(store, "zoo", "groups", 301)
    assert store.summary(rows[1], 0, 1, 2**62, 1)["count"].tolist() == [301]
    store.close()


def test_a_long_run_of_version_2_has_its_pyramid_after_the_migration(tmp_path: Path) -> None:
    """The file is folded by today's code and then made as version 2 was: its chunks are the same."""
    path = tmp_path / "runs.db"
    shutil.copy(FIXTURES / "schema_v2.db", path)
    SQLiteStore(str(path)).close()
    store = SQLiteStore(str(path))
    while store.fold():
        pass
    store.close()
    with sqlite3.connect(path) as db:
        tiers = db.execute("SELECT * FROM tiers ORDER BY 1, 2, 3, 4").fetchall()
        for table in ("events", "tiers", "former_names"):
            db.execute(f"DROP TABLE {table}")
        for column in ("revision", "command", "vitals", "archive_time"):
            db.execute(f"ALTER TABLE runs DROP COLUMN {column}")
        for table in ("sessions", "chunks"):
            db.execute(f"ALTER TABLE {table} DROP COLUMN {next(iter(NEW_IN_5[table]))}")
        for column in NEW_IN_5["runs"]:
            db.execute(f"ALTER TABLE runs DROP COLUMN {column}")
        for table, session in itertools.product(("runs", "sessions"), (11, 21, 22, 23, 24, 31)):
            db.execute(f"UPDATE {table} SET session = ? WHERE session = ?", (session, session_key(session)))
        db.execute("PRAGMA user_version = 2")
    assert len(tiers) == 2, "of the long run, and of the first branch of the rewound one"
    store = SQLiteStore(str(path))
    world.check(store)
    store.close()
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT * FROM tiers ORDER BY 1, 2, 3, 4").fetchall() == tiers


@pytest.mark.parametrize("version", [2, 3, 4])
def test_an_old_postgresql_database_has_everything_when_opened(postgres: Any, version: int) -> None:
    """The world of the SQLite file, in the tables that the mechanicd of that version made in PostgreSQL."""
    url = str(postgres.create_database(f"migrated{version}"))
    with psycopg.connect(url) as new, sqlite3.connect(FIXTURES / f"schema_v{version}.db") as old:
        new.execute("CREATE SCHEMA mechanicd")
        new.execute("SET search_path = mechanicd")
        for statement in (FIXTURES / f"schema_v{version}_postgres.sql").read_text().split(";\n"):
            new.execute(statement.encode())
        new.execute("INSERT INTO meta VALUES (%s)", (version,))
        for table in OLD_TABLES[version]:
            cursor = old.execute(f"SELECT * FROM {table}")
            columns = ", ".join(column[0] for column in cursor.description)
            marks = ", ".join(["%s"] * len(cursor.description))
            new.cursor().executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})".encode(), cursor.fetchall())
        for table in ("runs", "journal", *(["events"] if version > 2 else [])):
            new.execute(f"SELECT setval(pg_get_serial_sequence('{table}', 'id'), 1000)".encode())
    with pytest.raises(SchemaTooOld, match="start a server on it once"):
        open_store(url, readonly=True)
    for _ in range(2):
        store = open_store(url)
        world.check(store)
        rows = store.list_runs(None, None, 100)
        if version == 2:
            assert [row.stats for row in rows] == [RunStats(since=row.last_step) for row in rows]
        else:
            world.check_noted(store)
        assert [row.archive_time for row in rows] == [0] * 4
        assert {finding.reason for finding in check(store) if not finding.harmless} == {"STATE_UNREADABLE"}
        while store.fold():
            pass
        store.close()


def test_a_file_of_a_newer_schema_is_refused(old: Path) -> None:
    with sqlite3.connect(old) as db:
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    before = old.read_bytes()
    with pytest.raises(SchemaTooNew, match="start the newer mechanicd"):
        SQLiteStore(str(old))
    assert old.read_bytes() == before
