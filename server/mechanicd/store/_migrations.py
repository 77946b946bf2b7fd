"""From each schema to the next, inside one transaction: a file that an older mechanicd wrote is brought up to date when opened.

Version 1 (SQLite alone): a chunk per flush, no pyramid, no journal. Version 2: journal, chunks of fixed span, pyramid.
"""

import sqlite3
from typing import Final

from mechanicd.store import _history, _summary
from mechanicd.store._records import layout
from mechanicd.store._sql import insert

SCHEMA_VERSION: Final = 2

TABLES_V1: Final = ("runs", "sessions", "chunks")


def run_script(db: sqlite3.Connection, script: str) -> None:
    """Runs the statements of a script inside the transaction there is (executescript would end it)."""
    for statement in script.split(";\n"):
        if statement.strip():
            db.execute(statement)


def migrate(db: sqlite3.Connection, version: int, schema: str) -> None:
    """Brings a SQLite database from `version` to the present schema. `schema` makes the present tables."""
    if version == 1:
        _from_1(db, schema)


def _from_1(db: sqlite3.Connection, schema: str) -> None:
    for table in TABLES_V1:
        db.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    for index in ("sessions_of_run", "chunks_of_run"):
        db.execute(f"DROP INDEX IF EXISTS {index}")
    run_script(db, schema)
    db.execute(
        "INSERT INTO runs SELECT id, project, run, labels, config, status, status_message, epoch, session, last_step, state,"
        " scale, create_time,"
        " coalesce((SELECT max(open_time) FROM old_sessions WHERE run_id = old_runs.id), 0),"
        " step_time, 0, epoch, rewinds, last_step FROM old_runs"
    )
    db.execute("INSERT INTO sessions SELECT session, run_id, after_step, open_time FROM old_sessions")
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
        assert len(data) % layout(groups).size == 0
        for part_number, part in _history.split(groups, data):
            if part_number != number:
                write()
                number, records = part_number, b""
            records += part
    write()
