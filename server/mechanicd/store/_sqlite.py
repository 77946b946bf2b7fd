"""The embedded store: one SQLite file in WAL mode, every transaction synced to disk before it counts."""

import fcntl
import json
import sqlite3
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from mechanicd.store import _records
from mechanicd.store._errors import OwnershipLost, RunExists, SchemaTooNew, StoreError, StoreInUse, StoreNotWritable
from mechanicd.store._model import RUNNING, Claim, Commit, Release, RunRow, StepRow
from mechanicd.tuner import TunerConfig

SCHEMA_VERSION: Final = 1

_SCHEMA: Final = """
CREATE TABLE runs (
    id             INTEGER PRIMARY KEY,
    project        TEXT NOT NULL,
    run            TEXT NOT NULL,
    labels         TEXT NOT NULL,               -- JSON object
    config         TEXT NOT NULL,               -- JSON object, the fields of TunerConfig
    status         TEXT NOT NULL,
    status_message TEXT NOT NULL,
    epoch          INTEGER NOT NULL,            -- how many sessions there were
    session        INTEGER NOT NULL,            -- the one that holds the run, 0 if none
    last_step      INTEGER NOT NULL,
    state          BLOB NOT NULL,               -- TunerState.to_bytes() after last_step
    scale          BLOB NOT NULL,               -- S after last_step, float64 per scale group
    create_time    INTEGER NOT NULL,            -- ns since 1970
    step_time      INTEGER NOT NULL,            -- ns since 1970, 0 before the first step
    rewinds        INTEGER NOT NULL,            -- how many branches of abandoned steps there are
    UNIQUE (project, run)
) STRICT;
CREATE TABLE sessions (
    session    INTEGER PRIMARY KEY,
    run_id     INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    epoch      INTEGER NOT NULL,
    after_step INTEGER NOT NULL,
    open_time  INTEGER NOT NULL
) STRICT;
CREATE INDEX sessions_of_run ON sessions (run_id);
CREATE TABLE chunks (
    id         INTEGER PRIMARY KEY,
    run_id     INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    branch     INTEGER NOT NULL,                -- 0: the run's own history
    first_step INTEGER NOT NULL,
    last_step  INTEGER NOT NULL,
    records    BLOB NOT NULL                    -- see _records
) STRICT;
CREATE INDEX chunks_of_run ON chunks (run_id, branch, first_step);
"""
_TABLES: Final = ("runs", "sessions", "chunks")


class SQLiteStore:
    """Implements `Store`. Use it from one thread at a time.

    Args:
        path: the database file, made if missing, or ":memory:". One server holds it at a time.

    Raises:
        StoreNotWritable, StoreInUse, SchemaTooNew.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = _lock(path) if path != ":memory:" else None
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=5.0)
            try:
                empty = self._check()
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                self._db.execute("PRAGMA foreign_keys = ON")
                self._migrate(empty)
            except BaseException:
                self._db.close()
                raise
        except (sqlite3.Error, StoreError) as error:
            self._unlock()
            if isinstance(error, (SchemaTooNew, StoreNotWritable)):
                raise
            raise StoreNotWritable(
                f"{path} can't be used as a database ({error}); name a file in a folder that this user can write to"
            ) from error

    def create(self, project: str, run: str, config: TunerConfig, state: bytes, scale: tuple[float, ...], time: int) -> RunRow:
        with self._transaction() as db:
            try:
                cursor = db.execute(
                    "INSERT INTO runs (project, run, labels, config, status, status_message, epoch, session, last_step,"
                    " state, scale, create_time, step_time, rewinds) VALUES (?, ?, '{}', ?, ?, '', 0, 0, 0, ?, ?, ?, 0, 0)",
                    (project, run, json.dumps(asdict(config)), RUNNING, state, _floats_out(scale), time),
                )
            except sqlite3.IntegrityError:
                raise RunExists(f"projects/{project}/runs/{run} exists") from None
            return _one(db.execute("SELECT * FROM runs WHERE id = ?", (cursor.lastrowid,)))

    def get(self, project: str, run: str) -> RunRow | None:
        with self._reading() as db:
            row = db.execute("SELECT * FROM runs WHERE project = ? AND run = ?", (project, run)).fetchone()
            return None if row is None else _run_in(row)

    def by_session(self, session: int) -> tuple[RunRow, int] | None:
        with self._reading() as db:
            row = db.execute(
                "SELECT runs.* FROM sessions JOIN runs ON runs.id = sessions.run_id WHERE sessions.session = ?", (session,)
            ).fetchone()
            if row is None:
                return None
            run = _run_in(row)
            return run, run.session

    def list_runs(self, project: str | None, after: tuple[str, str] | None, limit: int) -> list[RunRow]:
        with self._reading() as db:
            rows = db.execute(
                "SELECT * FROM runs WHERE (:project IS NULL OR project = :project) AND (project, run) > (:p, :r)"
                " ORDER BY project, run LIMIT :limit",
                {"project": project, "p": after[0] if after else "", "r": after[1] if after else "", "limit": limit},
            ).fetchall()
            return [_run_in(row) for row in rows]

    def set_labels(self, run_id: int, labels: dict[str, str]) -> None:
        with self._transaction() as db:
            db.execute("UPDATE runs SET labels = ? WHERE id = ?", (json.dumps(labels), run_id))

    def delete(self, run_id: int) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM runs WHERE id = ?", (run_id,))

    def claim(self, claim: Claim) -> RunRow:
        with self._transaction() as db:
            before = _one(db.execute("SELECT * FROM runs WHERE id = ?", (claim.run_id,)))
            if before.epoch != claim.expected_epoch:
                raise OwnershipLost(
                    f"projects/{before.project}/runs/{before.run} is at session {before.epoch}, not {claim.expected_epoch}"
                )
            rewinds = before.rewinds
            if claim.after_step < before.last_step:
                rewinds += 1
                self._branch_off(db, before, claim.after_step, rewinds)
            db.execute(
                "UPDATE runs SET epoch = epoch + 1, session = ?, last_step = ?, state = ?, scale = ?, labels = ?,"
                " status = ?, status_message = '', rewinds = ? WHERE id = ?",
                (
                    claim.session,
                    claim.after_step,
                    claim.state,
                    _floats_out(claim.scale),
                    json.dumps(claim.labels),
                    RUNNING,
                    rewinds,
                    claim.run_id,
                ),
            )
            db.execute(
                "INSERT INTO sessions (session, run_id, epoch, after_step, open_time) VALUES (?, ?, ?, ?, ?)",
                (claim.session, claim.run_id, claim.expected_epoch + 1, claim.after_step, claim.time),
            )
            return _one(db.execute("SELECT * FROM runs WHERE id = ?", (claim.run_id,)))

    def commit(self, commits: Sequence[Commit], releases: Sequence[Release]) -> list[bool]:
        kept = []
        with self._transaction() as db:
            for commit in commits:
                cursor = db.execute(
                    "UPDATE runs SET last_step = ?, state = ?, scale = ?, step_time = ?"
                    " WHERE id = ? AND epoch = ? AND session = ? AND last_step = ?",
                    (
                        commit.last_step,
                        commit.state,
                        _floats_out(commit.scale),
                        commit.step_time,
                        commit.run_id,
                        commit.epoch,
                        commit.session,
                        commit.after_step,
                    ),
                )
                kept.append(cursor.rowcount == 1)
                if cursor.rowcount == 1:
                    db.execute(
                        "INSERT INTO chunks (run_id, branch, first_step, last_step, records) VALUES (?, 0, ?, ?, ?)",
                        (commit.run_id, commit.after_step + 1, commit.last_step, commit.records),
                    )
            for release in releases:
                db.execute(
                    "UPDATE runs SET session = 0, status = ?, status_message = ? WHERE id = ? AND epoch = ? AND session = ?",
                    (release.status, release.message, release.run_id, release.epoch, release.session),
                )
        return kept

    def steps(self, run: RunRow, branch: int, first: int, last: int, limit: int) -> Iterator[StepRow]:
        groups = len(run.config.scale_groups)
        given = 0
        with self._reading() as db:
            chunks = db.execute(
                "SELECT records FROM chunks WHERE run_id = ? AND branch = ? AND last_step >= ? AND first_step <= ?"
                " ORDER BY first_step",
                (run.id, branch, first, last),
            )
            for (records,) in chunks:
                for row in _records.unpack(groups, records, branch):
                    if given == limit or row.step > last:
                        return
                    if row.step >= first:
                        given += 1
                        yield row

    def close(self) -> None:
        self._db.close()
        self._unlock()

    def _branch_off(self, db: sqlite3.Connection, run: RunRow, after_step: int, branch: int) -> None:
        """Moves the steps above `after_step` to a branch; a chunk that holds both kinds is cut in two."""
        size = _records.layout(len(run.config.scale_groups)).size
        straddling = db.execute(
            "SELECT id, first_step, last_step, records FROM chunks"
            " WHERE run_id = ? AND branch = 0 AND first_step <= ? AND last_step > ?",
            (run.id, after_step, after_step),
        ).fetchall()
        for id_, first, last, records in straddling:
            cut = (after_step - first + 1) * size
            db.execute("UPDATE chunks SET last_step = ?, records = ? WHERE id = ?", (after_step, records[:cut], id_))
            db.execute(
                "INSERT INTO chunks (run_id, branch, first_step, last_step, records) VALUES (?, ?, ?, ?, ?)",
                (run.id, branch, after_step + 1, last, records[cut:]),
            )
        db.execute(
            "UPDATE chunks SET branch = ? WHERE run_id = ? AND branch = 0 AND first_step > ?", (branch, run.id, after_step)
        )

    def _check(self) -> bool:
        """Whether the database is new. Only reads: a file that is not this program's stays as it is."""
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise SchemaTooNew(
                f"{self.path} has schema version {version}, this mechanicd reads up to {SCHEMA_VERSION}; "
                "start the newer mechanicd that wrote it, or name another file"
            )
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_schema")}
        if tables if version == 0 else version < 0 or not tables.issuperset(_TABLES):
            raise StoreNotWritable(f"{self.path} is another program's database; name another file")
        return not tables

    def _migrate(self, empty: bool) -> None:
        with self._transaction() as db:
            if empty:
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
            # Also tells now, not at the first step, whether the file can be written.
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk ends it by itself
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} could not be written: {error}") from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._db
        except sqlite3.Error as error:
            raise StoreError(f"{self.path} could not be read: {error}") from error

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()


def _lock(path: str) -> Any:
    """Holds `PATH.lock`, so that a second server on the same file is told so at its start."""
    try:
        handle = Path(f"{path}.lock").open("a")  # noqa: SIM115  (held as long as the store is open)
    except OSError as error:
        raise StoreNotWritable(
            f"{path}.lock can't be made ({error.strerror}); name a file in a folder that exists and that this user can write to"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise StoreInUse(f"{path} is held by another mechanicd; stop that one, or name another file") from None
    return handle


def _floats_out(values: tuple[float, ...]) -> bytes:
    return struct.pack(f"<{len(values)}d", *values)


def _floats_in(data: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(data) // 8}d", data)


def _one(cursor: sqlite3.Cursor) -> RunRow:
    row = cursor.fetchone()
    if row is None:
        raise OwnershipLost("the run was deleted")
    return _run_in(row)


def _run_in(row: tuple[Any, ...]) -> RunRow:
    (
        id_,
        project,
        run,
        labels,
        config,
        status,
        message,
        epoch,
        session,
        last_step,
        state,
        scale,
        create_time,
        step_time,
        rewinds,
    ) = row
    return RunRow(
        id=id_,
        project=project,
        run=run,
        labels=json.loads(labels),
        config=TunerConfig(**json.loads(config)),
        status=status,
        status_message=message,
        epoch=epoch,
        session=session,
        last_step=last_step,
        state=state,
        scale=_floats_in(scale),
        create_time=create_time,
        step_time=step_time,
        rewinds=rewinds,
    )
