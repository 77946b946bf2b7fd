"""Copies one store into another, across engines: backup, restore, and moving from SQLite to PostgreSQL."""

from collections.abc import Callable, Iterator
from typing import Any

from mechanicd.store import _tokens
from mechanicd.store._errors import StoreDamaged, StoreNotWritable
from mechanicd.store._forking import NAMED
from mechanicd.store._sql import TABLES, Database, insert
from mechanicd.store._store import SQLStore

_PORTION = 200


def copy(source: SQLStore, target: SQLStore, progress: Callable[[int, int], None] = lambda done, all_: None) -> int:
    """Copies a snapshot of every run, its whole history, and the tokens into an empty store, in one transaction.

    Args:
        progress: called with (rows copied, rows in all).

    Returns:
        How many rows were copied.

    Raises:
        StoreNotWritable: the target has runs already.
        StoreError: either can't be read or written; the target stays empty.
    """
    with source.reading() as old, target.transaction() as new:
        if new.execute("SELECT 1 FROM runs LIMIT 1").fetchone() is not None:
            raise StoreNotWritable("the target store already has runs; use an empty store or a new file")
        tokens = list(_tokens.rows(old)) if source.has_table(old, _tokens.TABLE) else []
        total = len(tokens) + sum(int(old.execute(f"SELECT count(*) FROM {table}").fetchone()[0]) for table in TABLES)
        done = len(tokens)
        for token in tokens:
            _tokens.put(new, token)
        for table in TABLES:
            statement = insert(table)
            portion: list[dict[str, Any]] = []
            for row in _rows(old, table):
                portion.append(row)
                if len(portion) == _PORTION:
                    new.executemany(statement, portion)
                    done += len(portion)
                    progress(done, total)
                    portion = []
            if portion:
                new.executemany(statement, portion)
                done += len(portion)
        progress(done, total)
        target.count_on(new)
    return done


def _rows(db: Database, table: str) -> Iterator[dict[str, Any]]:
    """Every row of a table, a portion at a time."""
    columns = TABLES[table]
    key = {"runs": "id", "sessions": "session", "events": "id", "journal": "id"}.get(table)
    if key is None:
        for (run_id,) in db.execute(f"SELECT id FROM runs WHERE {NAMED} ORDER BY id").fetchall():
            for row in db.execute(
                f"SELECT {', '.join(columns)} FROM {table} WHERE run_id = :run_id", {"run_id": run_id}
            ).fetchall():
                yield dict(zip(columns, row, strict=True))
        return
    after, which = -1, f" AND {NAMED}" if table == "runs" else ""
    while rows := db.execute(
        f"SELECT {', '.join(columns)} FROM {table} WHERE {key} > :after{which} ORDER BY {key} LIMIT 500", {"after": after}
    ).fetchall():
        for row in rows:
            if row[columns.index(key)] <= after:
                raise StoreDamaged(f"the table {table} is damaged: it is out of order; restore a backup")
            yield dict(zip(columns, row, strict=True))
            after = row[columns.index(key)]
