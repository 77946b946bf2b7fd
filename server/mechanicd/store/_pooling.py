"""Finds out whether a pooler in transaction mode stands before PostgreSQL: there, a connection is no session.

A session has the lock for folding, and settings (`search_path`, `synchronous_commit`). In transaction mode
they stay with a backend, which somebody else gets next. Session mode is fine.

A connection that is not pooled knows the PID of its backend. Behind a pooler it is told another one; then a second connection
shows the mode, since two that are open at once can have the same backend in turn only in transaction mode.
"""

import os
import socket
import threading
from collections.abc import Callable
from typing import Any, Final

import psycopg

from mechanicd.store._errors import StorePooled

_TIMES: Final = 3
_SECONDS: Final = 5.0
"""A pooler in session mode whose pool is full lets the second connection wait; that is no answer, and no reason to refuse."""


def refuse_transaction_mode(
    connection: "psycopg.Connection[Any]", connect: "Callable[[], psycopg.Connection[Any]]", place: str
) -> None:
    """Raises StorePooled, or psycopg.Error where the database can't be used at all.

    Args:
        connection: in autocommit.
        connect: makes another one like it.
        place: the database, for the message.
    """
    if _backend(connection) == connection.info.backend_pid:
        return
    waited = threading.Event()
    with connect() as second:

        def give_up() -> None:
            waited.set()
            break_off(second)

        timer = threading.Timer(_SECONDS, give_up)
        timer.start()
        try:
            pooled = any(_shared(connection, second) for _ in range(_TIMES))
        except psycopg.Error as error:
            if waited.is_set():
                return
            if "statement pooling" not in str(error):
                raise
            pooled = True
        finally:
            timer.cancel()
    if pooled:
        raise StorePooled(
            f"{place} is a pooler that changes the database session between transactions; set its pool_mode to session for "
            "this database, or name PostgreSQL itself"
        )


def break_off(connection: "psycopg.Connection[Any]") -> None:
    """Makes whatever waits for an answer on a connection fail, from any thread."""
    with socket.socket(fileno=os.dup(connection.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)


def _shared(first: "psycopg.Connection[Any]", second: "psycopg.Connection[Any]") -> bool:
    before = _backend(first)
    with second.transaction():  # which keeps a backend for itself
        return _backend(second) == before or _backend(first) != before


def _backend(connection: "psycopg.Connection[Any]") -> int:
    """The PID of the backend that answers."""
    row = connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()
    return int(row[0]) if row else 0
