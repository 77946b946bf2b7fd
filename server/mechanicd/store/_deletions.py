"""Which run a session held that was deleted: its trainer may come back much later, at another server or after a restart.

Without this, a trainer whose session nobody knows would take its server for one that lost its store, and open the run anew:
what was deleted would be there again, and a run that has its name since would be taken from its own trainer.

The table stands beside the schema: a store is given it when it is opened to be written, older servers don't mind it, and it is
not copied with the runs, since who restores a backup wants the runs that are in it.
"""

from collections.abc import Iterable
from typing import Final

from mechanicd.store._sql import Database

TABLE: Final = "deleted_sessions"
_OF_ONE: Final = 4
"""So many of a run's sessions are remembered, the newest."""
_KEPT: Final = 50_000
"""So many sessions are remembered in all, the newest: some megabytes."""


def create(db: Database, number: str) -> None:
    """Makes the table.

    Args:
        number: the engine's type of a column that counts rows.
    """
    db.execute(f"CREATE TABLE {TABLE} (id {number}, session BIGINT NOT NULL, project TEXT NOT NULL, run TEXT NOT NULL)")
    db.execute(f"CREATE INDEX {TABLE}_by_session ON {TABLE} (session)")


def delete(db: Database, ids: Iterable[int]) -> None:
    """Deletes the runs with these ids, and remembers who held them."""
    runs = [{"id": id_} for id_ in ids]
    db.executemany(
        f"INSERT INTO {TABLE} (session, project, run) SELECT sessions.session, runs.project, runs.run FROM sessions"
        f" JOIN runs ON runs.id = sessions.run_id WHERE runs.id = :id ORDER BY sessions.open_time DESC LIMIT {_OF_ONE}",
        runs,
    )
    db.executemany("DELETE FROM runs WHERE id = :id", runs)
    db.execute(f"DELETE FROM {TABLE} WHERE id <= (SELECT max(id) FROM {TABLE}) - {_KEPT}")


def held_by(db: Database, session: int) -> tuple[str, str] | None:
    """The project and the name of the deleted run that this session held; None if it held none."""
    found = db.execute(f"SELECT project, run FROM {TABLE} WHERE session = :session", {"session": session}).fetchone()
    return None if found is None else (str(found[0]), str(found[1]))
