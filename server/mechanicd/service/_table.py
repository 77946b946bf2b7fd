"""All runs in memory, as of a moment ago: whoever looks often reads only the rows that changed."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from mechanicd.store import RunRow, Store


class Table:
    """The rows of a store. One reader of many at a time asks the store.

    Args:
        store: where the runs are.
        call: runs a store method on the store's own thread.
    """

    def __init__(self, store: Store, call: Callable[..., Awaitable[Any]]) -> None:
        self._store = store
        self._call = call
        self._rows: dict[int, RunRow] = {}
        self._lock = asyncio.Lock()

    async def read(self) -> list[RunRow]:
        """Every run as it is now."""
        async with self._lock:
            changed, gone = await self._call(self._read)
            for id_ in gone:
                del self._rows[id_]
            self._rows.update({row.id: row for row in changed})
            return list(self._rows.values())

    def _read(self) -> tuple[list[RunRow], list[int]]:
        known, pulse = self._rows, self._store.pulse()
        stale = [id_ for id_, revision in pulse.items() if id_ not in known or known[id_].revision != revision]
        rows = list(self._store.rows(stale)) if stale else []
        return rows, [id_ for id_ in known if id_ not in pulse]
