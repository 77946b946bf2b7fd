"""Reads the rows of a damaged database one by one, each as far as the engine gives it: for `salvage`.

A damaged page makes every statement fail that comes across it. So rows are asked for in order of where they are, and where that
fails, the next one that can be read is looked for behind the damage.
"""

import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Protocol

from mechanicd.store import _tokens
from mechanicd.store._errors import StoreDamaged, StoreError, StoreNotWritable
from mechanicd.store._sql import TABLES
from mechanicd.store._store import SQLStore

_COLUMNS: Final = {**TABLES, _tokens.TABLE: _tokens.COLUMNS}
_END: Final = 2**62
_PORTION: Final = 100
_MOST_ON_A_PAGE: Final = 300
"""A page of PostgreSQL has room for 291 rows."""

_JUDGED: Final = ("runs", "tokens")
"""Of their rows, `salvage` keeps or names what it can, whatever the rest is."""
_ABOUT: Final = "PRAGMA table_info({})"
_KINDS: Final[dict[str, type]] = {"INTEGER": int, "TEXT": str, "BLOB": bytes}

Row = dict[str, Any]


class Wreck(Protocol):
    """A damaged store, only read.

    Attributes:
        version: of its schema.
    """

    version: int

    def count(self, table: str) -> int:
        """About how many rows a table has; 0: unknown."""

    def rows(self, table: str) -> Iterator[Row | None]:
        """The rows of a table, each with the columns that it has; None where some can't be read."""


class SQLiteWreck:
    """Implements `Wreck`.

    Raises:
        StoreNotWritable, StoreDamaged: there is no such file, or its very first page can't be read.
    """

    def __init__(self, path: str) -> None:
        if not os.path.isfile(path):
            raise StoreNotWritable(f"{path}: there is no such file; name the database of a server")
        self._db = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=5.0)
        self._db.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
        try:
            (self.version,) = self._db.execute("PRAGMA user_version").fetchone()
            self._db.execute("PRAGMA writable_schema = ON")  # a damaged definition of one table keeps no other from being read
            self._columns = {
                table: {row[1]: (_KINDS.get(row[2], object), bool(row[3])) for row in self._db.execute(_ABOUT.format(table))}
                for table in _COLUMNS
            }
        except sqlite3.Error as error:
            self._db.close()
            raise StoreDamaged(f"{path}: not even its first page can be read ({error}); restore a backup") from error

    def close(self) -> None:
        """Releases the file."""
        self._db.close()

    def count(self, table: str) -> int:
        with contextlib.suppress(sqlite3.Error):
            return int(self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
        return 0

    def rows(self, table: str) -> Iterator[Row | None]:
        columns = [column for column in _COLUMNS[table] if column in self._columns[table]]
        if not columns:
            yield None
            return
        statement = f"SELECT rowid, {', '.join(columns)} FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT ?"
        after = -1
        while after < _END:
            found, whole = self._read(statement, after, _PORTION)
            if not whole:
                found, whole = self._read(statement, after, 1)
            for row in found:
                if row[0] > after:  # a damaged page may lead back
                    after = row[0]
                    values = dict(zip(columns, row[1:], strict=True))
                    yield values if table in _JUDGED or self._fits(table, values) else None
                else:
                    whole, found = False, []
            if not whole:
                yield None
                after = self._behind(statement, after)
            elif not found:
                return

    def _fits(self, table: str, values: Row) -> bool:
        """Whether each value is of its column's type, as on a damaged page it need not be."""
        about = ((value, *self._columns[table][name]) for name, value in values.items())
        return all(isinstance(value, kind) or (value is None and not needed) for value, kind, needed in about)

    def _read(self, statement: str, after: int, limit: int) -> tuple[list[Any], bool]:
        """Rows, and whether that went well."""
        try:
            return self._db.execute(statement, (after, limit)).fetchall(), True
        except (sqlite3.Error, OverflowError):
            return [], False

    def _behind(self, statement: str, after: int) -> int:
        """A place behind the damage that comes after `after`: the nearest that is found by doubling and halving."""

        def readable(place: int) -> bool:
            found, whole = self._read(statement, place, 1)
            return whole and (not found or found[0][0] > place)

        return _nearest(after, readable)


class PostgresWreck:
    """Implements `Wreck` on an open store."""

    def __init__(self, store: SQLStore, version: int) -> None:
        self._store = store
        self.version = version

    def count(self, table: str) -> int:
        with contextlib.suppress(StoreError), self._store.reading() as db:
            return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
        return 0

    def rows(self, table: str) -> Iterator[Row | None]:
        with self._store.reading() as db:
            size = db.execute(f"SELECT pg_relation_size('{table}') / current_setting('block_size')::bigint").fetchone()
        for page in range(int(size[0])):
            found = self._read(table, f"ctid >= '({page},0)' AND ctid < '({page + 1},0)'")
            if found is not None:
                yield from found
                continue
            for place in range(1, _MOST_ON_A_PAGE):
                one = self._read(table, f"ctid = '({page},{place})'")
                yield from [None] if one is None else one

    def _read(self, table: str, where: str) -> list[Row] | None:
        columns = _COLUMNS[table]
        try:
            with self._store.reading() as db:
                found = db.execute(f"SELECT {', '.join(columns)} FROM {table} WHERE {where}").fetchall()
        except StoreError:
            return None
        return [dict(zip(columns, row, strict=True)) for row in found]


def _nearest(after: int, readable: Callable[[int], bool]) -> int:
    """The nearest place after `after` that is readable, as far as doubling and then halving the distance finds it."""
    bad, distance = 0, 1
    while not readable(after + distance):
        bad, distance = distance, 2 * distance
        if after + distance >= _END:
            return _END
    while distance - bad > 1:
        middle = (bad + distance) // 2
        if readable(after + middle):
            distance = middle
        else:
            bad = middle
    return after + distance
