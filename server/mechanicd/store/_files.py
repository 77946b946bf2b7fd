"""Whether the files of a SQLite database are still those that were opened.

SQLite goes on writing to a file that was removed or renamed, and calls it durable; what it writes is gone with the process. So
a store looks before and after each transaction: are the database, its WAL and its shared memory, by their names, the files that
it has open? And has nobody written another database over it (`cp backup.db mechanicd.db`)? For that, each server marks the
file's header with a number of its own: `application_id`, which SQLite leaves to programs. A look costs a few microseconds.

Reading the mark needs a descriptor that stays open as long as the database: closing one drops SQLite's own locks (POSIX).
"""

import os
import secrets
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final

from mechanicd.store._errors import StoreMoved

_MARK_AT: Final = 68
_MARK_SIZE: Final = 4
_RESTORE: Final = "put the file back, or restart the server; trainers keep their steps meanwhile, and send them again"


class Files:
    """The files of one open database. Call `close` after the database is closed.

    Args:
        path: the database file.
        db: its connection.
        owner: whether this is the one server of the database; others look only at the database file itself.
    """

    def __init__(self, path: str, db: sqlite3.Connection, *, owner: bool) -> None:
        self._path = os.path.abspath(path)  # a relative name would mean another file if the folder were changed
        real = os.path.realpath(path)
        names = (self._path, f"{real}-wal", f"{real}-shm") if owner else (self._path,)
        self._descriptor: int | None = None
        self._mark = b""
        if owner:
            self._descriptor = os.open(self._path, os.O_RDONLY)
            self._mark_header(db)
        self._known = {name: found for name in names if (found := _identity(name)) is not None}

    def check(self) -> None:
        """Raises StoreMoved."""
        for name, known in self._known.items():
            found = _identity(name)
            if found != known:
                what = "was removed or moved" if found is None else "was replaced by another file"
                raise StoreMoved(f"{name} {what} while the server uses it, so nothing can be stored; {_RESTORE}")
        if self._mark and os.pread(self._descriptor or 0, _MARK_SIZE, _MARK_AT) != self._mark:
            raise StoreMoved(
                f"{self._path} was overwritten or opened by another server while the server uses it, so nothing can be stored; "
                f"{_RESTORE}"
            )

    def close(self) -> None:
        """Looks no more."""
        descriptor, self._descriptor, self._mark = self._descriptor, None, b""
        if descriptor is not None:
            os.close(descriptor)

    def _mark_header(self, db: sqlite3.Connection) -> None:
        mark = secrets.randbits(31)
        db.execute(f"PRAGMA application_id = {mark}")
        with suppress(sqlite3.Error):
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()  # from the WAL to the file itself
        data = mark.to_bytes(_MARK_SIZE, "big")
        assert self._descriptor is not None
        if os.pread(self._descriptor, _MARK_SIZE, _MARK_AT) == data:  # not while a reader holds the checkpoint up
            self._mark = data


def _identity(name: str) -> tuple[int, int] | None:
    """The file that has this name now, whichever it is; None if none has."""
    try:
        found = Path(name).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
