"""Migrates each schema to the next in one transaction: opening a file of an older mechanicd upgrades it.

Version 1 (SQLite alone): a chunk per flush, no pyramid, no journal. Version 2: journal, chunks of fixed span, pyramid.
Version 3: revision, command, vitals, events, tiers above the chunks. Version 4: archive_time, former_names. Version 5:
checksums, and keys of sessions instead of their ids.
"""

import sqlite3
from typing import Final

from mechanicd.runs import record_layout, session_key
from mechanicd.store import _deletions, _history, _journal, _pyramid, _summary, _sums
from mechanicd.store._sql import TABLES, Database, insert

SCHEMA_VERSION: Final = 5

TABLES_V1: Final = ("runs", "sessions", "chunks")
TABLES_V2: Final = (*TABLES_V1, "journal")
TABLES_V3: Final = (*TABLES_V2, "events", "tiers")
TABLES_V4: Final = (*TABLES_V3, "former_names")
OLD_TABLES: Final = {1: TABLES_V1, 2: TABLES_V2, 3: TABLES_V3, 4: TABLES_V4}
NEW_IN_5: Final = {
    "runs": {"row_sum": "BIGINT", "step_sum": "BIGINT"},
    **{table: {"checksum": "BIGINT"} for table in ("sessions", "former_names", "events", "tiers")},
    "chunks": {"sums": "BLOB"},
}
"""The columns of version 5, and their types."""
_HAVE_SESSIONS: Final = ("runs", "sessions", "former_names")

_NEWER: Final = ("revision", "command", "vitals", "archive_time", *NEW_IN_5["runs"])
_KEPT: Final = tuple(column for column in TABLES["runs"] if column not in _NEWER)
"""The columns of a run in version 2."""
VITALS_FROM_NOW: Final = "'{\"since\": ' || last_step || '}'"
"""Run statistics did not exist in older versions, so they start counting at the upgrade."""


def run_script(db: sqlite3.Connection, script: str) -> None:
    """Runs a script's statements inside the current transaction; executescript would commit it."""
    for statement in script.split(";\n"):
        if statement.strip():
            db.execute(statement)


def migrate(db: sqlite3.Connection, to: Database, version: int, schema: str) -> None:
    """Brings a SQLite database from `version` to the present schema. `schema` makes the present tables; `to` is `db` too."""
    db.execute("PRAGMA secure_delete = ON")  # the ids of sessions stay in no freed page
    if version == 1:
        _from_1(db, schema)
    elif version == 2:
        _from_2(db, schema)
    elif version == 3:
        _from_3(db, schema)
    for table, columns in NEW_IN_5.items():
        there = {row[1] for row in db.execute(f"PRAGMA table_info({table})")}
        for column, kind in columns.items():
            if column not in there:
                db.execute(f"ALTER TABLE {table} ADD COLUMN {column} {'BLOB' if kind == 'BLOB' else 'INTEGER'}")
    if version < 3:
        raise_tiers(to)
    db.create_function("session_key", 1, session_key, deterministic=True)
    made = db.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (_deletions.TABLE,)).fetchone()
    for table in (*_HAVE_SESSIONS, *([_deletions.TABLE] if made else [])):
        db.execute(f"UPDATE {table} SET session = session_key(session) WHERE session != 0")
    to_5(to)


def to_5(db: Database) -> None:
    """Gives checksums to what is there, but for history and events: reading them all would hold up the start. The columns are
    there, and sessions have keys."""
    for id_, data in db.execute("SELECT id, data FROM journal ORDER BY id").fetchall():
        db.execute("UPDATE journal SET data = :data WHERE id = :id", {"id": id_, "data": _journal.of_schema_4(bytes(data))})
    for (run_id,) in db.execute("SELECT id FROM runs ORDER BY id").fetchall():
        _sums.after(db, run_id, _sums.before(db, run_id))


def raise_tiers(db: Database) -> None:
    """Builds the tiers of every run from its chunks."""
    branches = db.execute("SELECT DISTINCT run_id, branch FROM chunks ORDER BY run_id, branch").fetchall()
    groups = dict(db.execute("SELECT id, length(scale) / 8 FROM runs").fetchall())
    for run_id, branch in branches:
        _pyramid.rise(db, run_id, int(groups[run_id]), branch)


def _from_3(db: sqlite3.Connection, schema: str) -> None:
    db.execute("ALTER TABLE runs ADD COLUMN archive_time INTEGER NOT NULL DEFAULT 0")
    for statement in schema.split(";\n"):
        if "CREATE TABLE former_names (" in statement:
            run_script(db, statement)


def _from_2(db: sqlite3.Connection, schema: str) -> None:
    """Replaces the tables `runs` and `journal` with new ones; chunks stay in place."""
    (counted,) = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'runs'").fetchone()
    kept = ", ".join(_KEPT)
    for statement in schema.split(";\n"):
        for table in ("runs", "journal"):
            statement = statement.replace(f"CREATE TABLE {table} (", f"CREATE TABLE new_{table} (")
        if not any(f" {table} " in statement.partition("(")[0] for table in ("sessions", "sessions_of_run", "chunks")):
            run_script(db, statement)
    db.execute(
        f"INSERT INTO new_runs ({kept}, revision, command, vitals, archive_time)"
        f" SELECT {kept}, 0, '', {VITALS_FROM_NOW}, 0 FROM runs ORDER BY id"
    )
    db.execute("INSERT INTO new_journal SELECT id, data FROM journal ORDER BY id")
    for table in ("runs", "journal"):
        db.execute(f"DROP TABLE {table}")
        db.execute(f"ALTER TABLE new_{table} RENAME TO {table}")
    db.execute("UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'runs'", (counted,))


def _from_1(db: sqlite3.Connection, schema: str) -> None:
    for table in TABLES_V1:
        db.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    for index in ("sessions_of_run", "chunks_of_run"):
        db.execute(f"DROP INDEX IF EXISTS {index}")
    run_script(db, schema)
    kept = ", ".join(_KEPT)
    db.execute(
        f"INSERT INTO runs ({kept}, revision, command, vitals, archive_time) SELECT"
        " id, project, run, labels, config, status, status_message, epoch, session, last_step, state, scale, create_time,"
        " coalesce((SELECT max(open_time) FROM old_sessions WHERE run_id = old_runs.id), 0),"
        f" step_time, 0, epoch, rewinds, last_step, 0, '', {VITALS_FROM_NOW}, 0 FROM old_runs"
    )
    db.execute("INSERT INTO sessions SELECT session, run_id, after_step, open_time, NULL FROM old_sessions")
    for run_id, scale in db.execute("SELECT id, length(scale) / 8 FROM runs").fetchall():
        branches = db.execute("SELECT DISTINCT branch FROM old_chunks WHERE run_id = ?", (run_id,)).fetchall()
        for (branch,) in branches:
            _fold_again(db, run_id, int(scale), branch)
    for table in reversed(TABLES_V1):
        db.execute(f"DROP TABLE old_{table}")


def _fold_again(db: sqlite3.Connection, run_id: int, groups: int, branch: int) -> None:
    """One branch's flushes as chunks of today; holds one chunk in memory at a time."""
    ids = db.execute(
        "SELECT id FROM old_chunks WHERE run_id = ? AND branch = ? ORDER BY first_step", (run_id, branch)
    ).fetchall()
    number, records = -1, b""

    def write() -> None:
        if records:
            fine = _summary.of_steps(groups, records)
            values = _history.chunk_values(run_id, groups, branch, number, fine, records, thinned=False)
            db.execute(insert("chunks"), values)

    for (id_,) in ids:
        (data,) = db.execute("SELECT records FROM old_chunks WHERE id = ?", (id_,)).fetchone()
        assert len(data) % record_layout(groups).size == 0
        for part_number, part in _history.split(groups, data):
            if part_number != number:
                write()
                number, records = part_number, b""
            records += part
    write()
