"""A cache of all runs' rows: each refresh reads from the store only the rows that changed."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic_ns
from typing import Any, Final

from mechanicd.runs import Alert, RunRow, Silence, alerts, judged, not_ahead
from mechanicd.service._slices import sliced
from mechanicd.store import Store, changes

JUDGE_NS: Final = 10**9
"""How often a run that did not change is judged again: it may have become silent."""

Seen = tuple[RunRow, list[Alert]]
"""A run with its status and its alerts at one moment."""


class RunCache:
    """All runs of a store. Readers take turns, so the store answers one at a time.

    Args:
        store: where the runs are kept.
        call: runs a store method on the store's thread.
        silence: when a run counts as silent.
    """

    def __init__(self, store: Store, call: Callable[..., Awaitable[Any]], silence: Silence) -> None:
        self._store = store
        self._call = call
        self._silence = silence
        self._seen: dict[int, Seen] = {}
        self._seen_at = 0
        self._rows: dict[int, RunRow] = {}
        self._lock, self._judging = asyncio.Lock(), asyncio.Lock()

    async def read(self) -> list[RunRow]:
        """Every run as stored now."""
        async with self._lock:
            known = {id_: row.revision for id_, row in self._rows.items()}
            changed, gone = await self._call(changes, self._store, known)
            for id_ in gone:
                del self._rows[id_]
            now = self._store.clock.now()
            self._rows.update({row.id: not_ahead(row, now) for row in changed})
            return list(self._rows.values())

    def judge(self, row: RunRow) -> Seen:
        """A run with its status and alerts as of now."""
        now = self._store.clock.now()
        seen = judged(not_ahead(row, now), now, self._silence)
        return seen, alerts(seen, now, self._silence)

    async def watch(self) -> dict[int, Seen]:
        """Every run by id, judged within the last second: cheap enough to call several times a second."""
        async with self._judging:
            rows, before = await self.read(), self._seen
            if monotonic_ns() - self._seen_at >= JUDGE_NS:
                before, self._seen_at = {}, monotonic_ns()

            def seen(row: RunRow) -> Seen:
                known = before.get(row.id)
                return known if known and known[0].revision == row.revision else self.judge(row)

            self._seen = {each[0].id: each async for each in sliced(map(seen, rows))}
            return self._seen
