"""The embedded engine: one SQLite file in WAL mode; every transaction is synced to disk before it counts."""

import contextlib
import importlib
import logging
import os
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from time import time_ns
from typing import Any, Final

from mechanicd.store import _deletions, _forking, _migrations, _tokens
from mechanicd.store._clock import LATEST
from mechanicd.store._errors import (
    SchemaTooNew,
    SchemaTooOld,
    StoreDamaged,
    StoreError,
    StoreInUse,
    StoreMoved,
    StoreNotPortable,
    StoreNotWritable,
    StoreRejected,
    StoreUnavailable,
)
from mechanicd.store._files import Files
from mechanicd.store._sql import TABLES, Database
from mechanicd.store._store import SQLStore

log = logging.getLogger("mechanicd.store")

SCHEMA: Final = """
CREATE TABLE runs (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    revision       INTEGER NOT NULL,            -- grows with every change that a reader can see; in front: often read
    project        TEXT NOT NULL,
    run            TEXT NOT NULL,
    labels         TEXT NOT NULL,               -- JSON object
    config         TEXT NOT NULL,               -- JSON object, the fields of TunerConfig
    status         TEXT NOT NULL,
    status_message TEXT NOT NULL,
    epoch          INTEGER NOT NULL,            -- how often a session or a server took hold of the run
    session        INTEGER NOT NULL,            -- the key of the one that holds the run, 0 if none
    last_step      INTEGER NOT NULL,
    state          BLOB NOT NULL,               -- TunerState.to_bytes() after last_step
    scale          BLOB NOT NULL,               -- S after last_step, float64 per scale group
    create_time    INTEGER NOT NULL,            -- ns since 1970
    open_time      INTEGER NOT NULL,            -- ns since 1970, of the last session
    step_time      INTEGER NOT NULL,            -- ns since 1970, 0 before the first step
    step_interval  INTEGER NOT NULL,            -- ns, usual between two steps
    session_count  INTEGER NOT NULL,
    rewinds        INTEGER NOT NULL,            -- how many branches of abandoned steps there are
    command        TEXT NOT NULL,               -- how the last session's trainer was started
    vitals         TEXT NOT NULL,               -- JSON object, see runs._run_stats
    archive_time   INTEGER NOT NULL,            -- ns since 1970, 0 if it is not archived
    folded_step    INTEGER NOT NULL,            -- the last step in chunks; later ones are in the journal
    row_sum        INTEGER,                     -- checksums, see _sums; NULL: written before schema 5
    step_sum       INTEGER,
    UNIQUE (project, run)
) STRICT;
CREATE TABLE sessions (
    session    INTEGER PRIMARY KEY,             -- its key, see runs.session_key
    run_id     INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    after_step INTEGER NOT NULL,
    open_time  INTEGER NOT NULL,
    checksum   INTEGER
) STRICT;
CREATE INDEX sessions_of_run ON sessions (run_id);
CREATE TABLE former_names (
    project TEXT NOT NULL,
    run     TEXT NOT NULL,
    run_id  INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    session INTEGER NOT NULL,                   -- the one that the renaming fenced, 0 if none held the run
    checksum INTEGER,
    PRIMARY KEY (project, run)
) STRICT;
CREATE TABLE events (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    run_id  INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    time    INTEGER NOT NULL,                   -- ns since 1970
    step    INTEGER NOT NULL,                   -- the run's last step then
    kind    TEXT NOT NULL,                      -- see _model
    message TEXT NOT NULL,
    checksum INTEGER
) STRICT;
CREATE INDEX events_of_run ON events (run_id);
CREATE TABLE chunks (
    run_id     INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    branch     INTEGER NOT NULL,                -- 0: the run's own history
    number     INTEGER NOT NULL,                -- (step - 1) / steps in a chunk
    first_step INTEGER NOT NULL,
    last_step  INTEGER NOT NULL,
    thinned    INTEGER NOT NULL,                -- 1: some exact steps were dropped, their buckets remain
    coarse     BLOB NOT NULL,                   -- see _summary
    fine       BLOB NOT NULL,
    records    BLOB NOT NULL,                   -- see _records
    sums       BLOB,                            -- see _sums
    PRIMARY KEY (run_id, branch, number)
) STRICT;
CREATE TABLE tiers (
    run_id     INTEGER NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    branch     INTEGER NOT NULL,
    tier       INTEGER NOT NULL,                -- see _pyramid
    number     INTEGER NOT NULL,                -- (step - 1) / steps in a row of this tier
    first_step INTEGER NOT NULL,
    last_step  INTEGER NOT NULL,
    coarse     BLOB NOT NULL,                   -- as in chunks
    fine       BLOB NOT NULL,
    checksum   INTEGER,
    PRIMARY KEY (run_id, branch, tier, number)
) STRICT;
CREATE TABLE journal (
    id   INTEGER PRIMARY KEY AUTOINCREMENT,     -- never used again, so that a reader may remember what it has read
    data BLOB NOT NULL                          -- see _journal
) STRICT;
"""


class SQLiteStore(SQLStore):
    """Implements `Store`. Use it from one thread at a time.

    Args:
        path: the database file, created if missing, or ":memory:". One server holds it at a time.
        readonly: only read, also next to a running server; nothing is created or migrated.
        beside: read, and change tokens, also next to a running server; nothing is migrated.

    Raises:
        StoreNotWritable, StoreInUse, SchemaTooNew, SchemaTooOld.
    """

    def __init__(self, path: str, *, readonly: bool = False, beside: bool = False) -> None:
        super().__init__()
        self.path = path
        guest = readonly or beside
        if guest and path != ":memory:" and not os.path.isfile(path):
            if _hidden(path):
                raise StoreNotWritable(f"{path}: {_OF_ANOTHER}")
            raise StoreNotWritable(f"{path}: there is no such file; name the database of a server")
        self._files: Files | None = None
        self._lock = _lock(path) if path != ":memory:" and not guest else None
        if self._lock is not None:
            _create(path)
        try:
            source = f"{Path(path).absolute().as_uri()}?mode={'ro' if readonly else 'rw'}" if guest else path
            self._db = sqlite3.connect(source, uri=guest, isolation_level=None, check_same_thread=False, timeout=5.0)
            try:
                version = self._check()
                # A damaged text must not fail the whole statement; whoever reads it as text finds it out (`_rows`).
                self._db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
                if guest:
                    if version != _migrations.SCHEMA_VERSION:
                        raise SchemaTooOld(
                            f"{path} has schema version {version}, but this mechanicd reads version "
                            f"{_migrations.SCHEMA_VERSION}; start a server on it once to migrate it"
                        )
                    if beside:
                        self._make_tokens()
                else:
                    self._db.execute("PRAGMA journal_mode = WAL")
                    self._db.execute("PRAGMA synchronous = FULL")
                    self._migrate(version)
                    self._db.execute("PRAGMA foreign_keys = ON")
                    _forking.tidy(self.transaction, LATEST)
                    (self.unfolded,) = self._db.execute("SELECT coalesce(sum(length(data)), 0) FROM journal").fetchone()
                self._files = None if path == ":memory:" else Files(path, self._db, owner=not guest)
            except BaseException:
                self._db.close()
                raise
        except (sqlite3.Error, StoreError, UnicodeDecodeError) as error:  # the last: words of sqlite3 about damaged text
            self._unlock()
            if isinstance(error, (SchemaTooNew, SchemaTooOld, StoreNotWritable)):
                raise
            raise StoreNotWritable(f"{path} can't be used as a database ({error}); {_advice(path, error)}") from error

    def interrupt(self) -> None:
        self._db.interrupt()

    def close(self) -> None:
        self._db.close()
        if self._files is not None:
            self._files.close()
            self._files = None
        self._unlock()

    def time(self, db: Database) -> int:
        return time_ns()

    def has_table(self, db: Database, name: str) -> bool:
        return db.execute("SELECT 1 FROM sqlite_schema WHERE name = :name", {"name": name}).fetchone() is not None

    def integrity(self) -> list[str]:
        with self.reading() as db:
            found = [str(text) for (text,) in db.execute("PRAGMA integrity_check").fetchall()]
            foreign = len(db.execute("PRAGMA foreign_key_check").fetchall())
        broken = [] if found == ["ok"] else found
        return broken + ([f"{foreign} rows belong to runs that do not exist"] if foreign else [])

    def vacuum(self) -> None:
        try:
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self.path} could not be written: {error}") from error

    def count_on(self, db: Database) -> None:
        """Nothing to do: SQLite continues after the largest id."""

    def _folding_alone(self) -> bool:
        return True

    def _folded(self) -> None:
        # A fold reads and writes much that nobody asks for soon, and SQLite would keep 2 MiB of it. The system still has it.
        with contextlib.suppress(sqlite3.Error):  # a fold that failed ends here too, and its own error is the one to tell
            self._db.execute("PRAGMA shrink_memory")

    def _check(self) -> int:
        """The schema version; 0 for a new database. Only reads, so a foreign file is left untouched."""
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > _migrations.SCHEMA_VERSION:
            raise SchemaTooNew(
                f"{self.path} has schema version {version}, but this mechanicd reads only up to "
                f"{_migrations.SCHEMA_VERSION}; start the newer mechanicd that wrote it, or name another file"
            )
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_schema")}
        expected = _migrations.OLD_TABLES.get(version, tuple(TABLES))
        if tables if version == 0 else version < 0 or not tables.issuperset(expected):
            raise StoreNotWritable(f"{self.path} is another program's database; name another file")
        return int(version)

    def _migrate(self, version: int) -> None:
        with self.transaction():
            if version == 0:
                _migrations.run_script(self._db, SCHEMA)
            elif version < _migrations.SCHEMA_VERSION:
                _migrations.migrate(self._db, _SQLite(self._db), version, SCHEMA)
            if not self.has_table(_SQLite(self._db), _deletions.TABLE):
                _deletions.create(_SQLite(self._db), "INTEGER PRIMARY KEY")
            # This write also finds out now, rather than at the first step, whether the file is writable.
            self._db.execute(f"PRAGMA user_version = {_migrations.SCHEMA_VERSION}")
        if 0 < version < _migrations.SCHEMA_VERSION:
            self._db.execute("PRAGMA secure_delete = OFF")
            self._tidy()
        self._make_tokens()

    def _make_tokens(self) -> None:
        with self.transaction() as db:
            if not self.has_table(db, _tokens.TABLE):
                _tokens.create(db, "blob")

    def _tidy(self) -> None:
        """Writes the file anew after a migration, if there is room: older versions kept the ids of sessions, and what a row was
        before it was changed stays in unused bytes."""
        try:
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            log.warning("%s was migrated, but not written anew (%s); `mechanicd store vacuum` does it", self.path, error)

    @contextmanager
    def transaction(self) -> Iterator[Database]:
        self._look()
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield _SQLite(self._db)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk ends the transaction by itself
                    self._db.execute("ROLLBACK")
                raise
        except (OverflowError, sqlite3.DataError, sqlite3.IntegrityError) as error:
            raise StoreRejected(f"{self.path} rejects a value: {error}") from error
        except sqlite3.Error as error:
            raise StoreUnavailable(f"{self.path} could not be written: {error}") from error
        self._look()

    def at_once(self) -> AbstractContextManager[Database]:
        return self.transaction()

    @contextmanager
    def reading(self) -> Iterator[Database]:
        if self._snapshot is not None:
            yield self._snapshot
            return
        self._look()
        try:
            self._db.execute("BEGIN")
            try:
                yield _SQLite(self._db)
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
        except UnicodeDecodeError as error:
            raise StoreDamaged(f"the database file is damaged ({error}); restore a backup") from error
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise StoreDamaged(f"the database file is damaged ({error}); restore a backup") from error
            raise StoreUnavailable(f"{self.path} could not be read: {error}") from error

    def _look(self) -> None:
        """Raises StoreMoved: what is written now would be gone with this process."""
        if self._files is not None:
            self._files.check()
        if self._lock is not None and not _locks(self._lock, self.path):
            try:
                lock = _lock(self.path)  # somebody tidied it away; nobody else may take its place
            except StoreError as error:
                raise StoreMoved(f"{self.path}.lock was removed, and now {error}") from None
            self._lock.close()
            self._lock = lock

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


class _SQLite:
    """sqlite3's connection as a `Database`."""

    for_update = ""  # BEGIN IMMEDIATE holds the whole file

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def execute(self, statement: str, parameters: Mapping[str, Any] = {}) -> sqlite3.Cursor:
        return self._db.execute(statement, parameters)

    def executemany(self, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None:
        self._db.executemany(statement, parameters)

    def advance(self, rows: Sequence[Mapping[str, Any]]) -> set[int]:
        moved: set[int] = set()
        segments = []
        for row in rows:
            cursor = self._db.execute(
                "UPDATE runs SET last_step = :last_step, state = :state, scale = :scale, step_time = :step_time,"
                " step_interval = :step_interval, vitals = :vitals, step_sum = :step_sum, revision = revision + 1"
                " WHERE id = :id AND epoch = :epoch AND session = :session AND last_step = :after_step",
                row,
            )
            if cursor.rowcount == 1:
                moved.add(row["id"])
                segments.append(row["segment"])
        if any(segments):
            self._db.execute("INSERT INTO journal (data) VALUES (?)", (b"".join(segments),))
        return moved


def _create(path: str) -> None:
    """Creates a database that only this user can read, if there is none: who knows a session's id can step it. SQLite gives its
    other files the same permissions. Those of a database that exists are the administrator's."""
    with contextlib.suppress(OSError):  # SQLite will say what is wrong
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


_OF_ANOTHER: Final = "it is another user's: do this as the user who runs its server, or give it to this user"


def _advice(path: str, error: Exception) -> str:
    """What to do about a database that can't be opened."""
    if _hidden(path) or (os.path.isfile(path) and not os.access(path, os.R_OK | os.W_OK)):
        return _OF_ANOTHER
    if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_CORRUPT:
        return "restore a backup, or bring out what is whole with `mechanicd store salvage`"
    return "name a file in a folder that this user can write to"


def _hidden(path: str) -> bool:
    """Whether this user may not even see if there is such a file."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except (OSError, ValueError):
        pass
    return False


def _lock(path: str) -> Any:
    """Locks `PATH.lock`, so that a second server on the same file fails at startup."""
    try:
        fcntl: Any = importlib.import_module("fcntl")
    except ModuleNotFoundError:
        raise StoreNotPortable(
            f"{path}: a database is locked by flock (Python's fcntl), which {sys.platform} does not have; open it on Linux, on "
            "macOS or in WSL. Here it can only be read, as `mechanicd store check` does"
        ) from None
    try:
        handle = Path(f"{path}.lock").open("a")  # noqa: SIM115  (held as long as the store is open)
    except OSError as error:
        raise StoreNotWritable(f"{path}.lock can't be created ({error.strerror}); {_advice(path, error)}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        raise StoreInUse(f"{path} is in use by another mechanicd; stop that one, or use another file") from None
    return handle


def _locks(handle: Any, path: str) -> bool:
    """Whether `PATH.lock` is still the file that is locked."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(f"{path}.lock"))
    except OSError:
        return False
