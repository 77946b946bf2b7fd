"""The tokens: who may use the servers of this store. What a token is, is in `mechanicd.access`.

The table stands beside the schema: a store is given it when it is opened to be written, and older servers don't mind it. It is
copied with the runs. A row has a checksum, and one that does not fit is as good as none: damage never lets anybody in. It has
no text, which a flipped bit could make unreadable for the engine itself, and with it all other rows.
"""

import functools
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from mechanicd.access import Role, Token
from mechanicd.store._sql import Database

TABLE: Final = "tokens"
COLUMNS: Final = ("id", "checksum", "data")


class Found(NamedTuple):
    """What the table holds: the tokens, and the ids of rows that can't be read any more."""

    tokens: list[Token]
    damaged: list[str]


def create(db: Database, binary: str) -> None:
    """Makes the table. `data` is JSON.

    Args:
        binary: the engine's type of a column of bytes.
    """
    db.execute(f"CREATE TABLE {TABLE} (id {binary} PRIMARY KEY, checksum BIGINT NOT NULL, data {binary} NOT NULL)")


def read(db: Database) -> Found:
    """Every token, the oldest first."""
    found = Found([], [])
    for row in rows(db):
        token = token_in(row)
        if token is None:
            found.damaged.append(id_in(row))
        else:
            found.tokens.append(token)
    found.tokens.sort(key=lambda token: (token.create_time, token.id))
    return found


def rows(db: Database) -> Iterator[dict[str, Any]]:
    """Every row as it is."""
    for id_, checksum, data in db.execute(f"SELECT id, checksum, data FROM {TABLE}").fetchall():
        yield {"id": id_, "checksum": checksum, "data": data}


def put(db: Database, row: Mapping[str, Any]) -> None:
    """Writes a row, in the place of one with its id."""
    db.execute(f"DELETE FROM {TABLE} WHERE id = :id", {"id": row["id"]})
    db.execute(f"INSERT INTO {TABLE} (id, checksum, data) VALUES (:id, :checksum, :data)", row)


def row_of(token: Token) -> dict[str, Any]:
    """A token as its row."""
    data = json.dumps(asdict(token), default=bytes.hex).encode()
    return {"id": token.id.encode(), "checksum": zlib.crc32(data), "data": data}


def token_in(row: Mapping[str, Any]) -> Token | None:
    """The token of a row; None if it is damaged."""
    return _decoded(_bytes(row["id"]), row["checksum"], _bytes(row["data"]))


@functools.lru_cache(maxsize=2**14)
def _decoded(id_: bytes, checksum: int, data: bytes) -> Token | None:
    """Once for each row: a server reads all of them every two seconds, and for strangers more often, beside its trainers."""
    if zlib.crc32(data) != checksum:
        return None
    try:
        given = json.loads(data)
        token = Token(**{**given, "digest": bytes.fromhex(given["digest"]), "role": Role(given["role"])})
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return token if token.id.encode() == id_ else None


def id_in(row: Mapping[str, Any]) -> str:
    """The id in a row, as far as it can be read."""
    return _bytes(row["id"]).decode("ascii", "backslashreplace")


def _bytes(value: Any) -> bytes:
    return bytes(value) if isinstance(value, bytes | memoryview) else b""
