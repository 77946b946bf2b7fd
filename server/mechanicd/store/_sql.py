"""What the engines' SQL shares: a small protocol over their cursors, the table columns, and value encoding."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol


class Result(Protocol):
    """The rows of a statement, and how many it changed."""

    @property
    def rowcount(self) -> int:
        """How many rows the statement changed."""

    def fetchone(self) -> Any:
        """The next row, or None."""

    def fetchall(self) -> list[Any]:
        """All rows."""


class Database(Protocol):
    """A connection inside a transaction. Parameters are written `:name` in every engine."""

    for_update: str
    """The clause that makes a SELECT lock its rows for the transaction; empty if a transaction locks the whole file."""

    def execute(self, statement: str, parameters: Mapping[str, Any] = ...) -> Result:
        """Runs one statement."""

    def executemany(self, statement: str, parameters: Sequence[Mapping[str, Any]]) -> None:
        """Runs one statement for each set of parameters."""

    def advance(self, rows: Sequence[Mapping[str, Any]]) -> set[int]:
        """Advances runs to a new last step, each only if its (epoch, session, last step) match; returns the ids that moved.

        The `segment` of each row that was moved goes to the journal, all in one new row there.
        """


TABLES = {
    "runs": (
        *("id", "revision", "project", "run", "labels", "config", "status", "status_message", "epoch", "session", "last_step"),
        *("state", "scale", "create_time", "open_time", "step_time", "step_interval", "session_count", "rewinds", "command"),
        *("vitals", "archive_time", "folded_step", "row_sum", "step_sum"),
    ),
    "sessions": ("session", "run_id", "after_step", "open_time", "checksum"),
    "former_names": ("project", "run", "run_id", "session", "checksum"),
    "events": ("id", "run_id", "time", "step", "kind", "message", "checksum"),
    "chunks": ("run_id", "branch", "number", "first_step", "last_step", "thinned", "coarse", "fine", "records", "sums"),
    "tiers": ("run_id", "branch", "tier", "number", "first_step", "last_step", "coarse", "fine", "checksum"),
    "journal": ("id", "data"),
}
"""Every table and its columns, the same in every engine; `_sqlite` and `_postgres` say the types, `_sums` what is summed."""


def insert(table: str, columns: Iterable[str] = ()) -> str:
    """An INSERT of these columns, or of all."""
    chosen = tuple(columns) or TABLES[table]
    return f"INSERT INTO {table} ({', '.join(chosen)}) VALUES ({', '.join(':' + column for column in chosen)})"


def floats_out(values: Sequence[float]) -> bytes:
    """float64 values as bytes, little-endian."""
    return struct.pack(f"<{len(values)}d", *values)


def floats_in(data: bytes) -> tuple[float, ...]:
    """The inverse of `floats_out`."""
    return struct.unpack(f"<{len(data) // 8}d", data)
