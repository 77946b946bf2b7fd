"""Live events: what changed in the table since a viewer's cursor, as server-sent events."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from mechanicd.dashboard._errors import encode
from mechanicd.dashboard._poller import Watch

KEEP_ALIVE_SECONDS: Final = 10.0
RETRY_MS: Final = 1000
"""How long a browser that lost the stream waits before it reconnects."""


class Live:
    """Streams for any number of viewers. A change is encoded once for all viewers that are up to date.

    Args:
        whole: returns everything, for a viewer whose cursor is too old or from another process.
    """

    def __init__(self, watch: Watch, whole: Callable[[], dict[str, Any]]) -> None:
        self._watch = watch
        self._table = watch.table
        self._whole = whole
        self._process = secrets.token_hex(6)
        self._shared: tuple[int, int, bytes] = (0, 0, b"")
        self._stopping = asyncio.Event()

    @property
    def cursor(self) -> str:
        """The cursor of the current state."""
        return f"{self._process}.{self._table.now}"

    def stop(self) -> None:
        """Ends all streams."""
        self._stopping.set()
        self._watch.wake()

    async def stream(self, cursor: str) -> AsyncIterator[bytes]:
        """An endless stream of events from a cursor on."""
        yield b"retry: %d\n\n" % RETRY_MS
        seen = self._moment(cursor)
        if seen is None:
            seen = self._table.now
            yield self._event("reset", self._whole())
        while not self._stopping.is_set():
            if seen < self._table.oldest:
                seen = self._table.now
                yield self._event("reset", self._whole())
            elif seen < self._table.now:
                event = self._changes(seen)
                seen = self._table.now
                yield event
            elif not await self._watch.change(KEEP_ALIVE_SECONDS):
                yield b": still here\n\n"

    def _moment(self, cursor: str) -> int | None:
        process, _, number = cursor.partition(".")
        if process != self._process or not re.fullmatch("[0-9]{1,18}", number):
            return None
        moment = int(number)
        return moment if self._table.oldest <= moment <= self._table.now else None

    def _changes(self, seen: int) -> bytes:
        since, now, event = self._shared
        if (since, now) != (seen, self._table.now):
            event = self._event("runs", {"now": self._watch.clock.now() // 10**6, **self._table.since(seen)})
            self._shared = (seen, self._table.now, event)
        return event

    def _event(self, kind: str, data: dict[str, Any]) -> bytes:
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (self.cursor.encode(), kind.encode(), encode(data))
