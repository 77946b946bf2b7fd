"""Live events: what changed in the table since a viewer's cursor, as server-sent events."""

import asyncio
import re
import secrets
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from time import monotonic
from typing import Any, Final

from mechanicd.access import ANYONE
from mechanicd.dashboard._door import Visitor
from mechanicd.dashboard._errors import ApiError, encode
from mechanicd.dashboard._poller import Watch

KEEP_ALIVE_SECONDS: Final = 10.0
STAYS_SECONDS: Final = 2.0
"""How often it is checked, at least, that a viewer may still look on."""
MOST_OF_VIEWER: Final = 256
"""Streams of one token, or one user: half of the page's connections. Whoever may look on leaves room for the others."""
RETRY_MS: Final = 1000
"""How long a browser that lost the stream waits before it reconnects."""


class Live:
    """Streams for any number of viewers. A change is encoded once for all viewers of a project that are up to date.

    Args:
        whole: returns everything in a project ("": in all), for a viewer whose cursor is too old or from another process.
    """

    def __init__(self, watch: Watch, whole: Callable[[str], dict[str, Any]]) -> None:
        self._watch = watch
        self._table = watch.table
        self._whole = whole
        self._process = secrets.token_hex(6)
        self._shared_key = (0, 0)
        self._shared: dict[str, bytes] = {}
        self._stopping = asyncio.Event()
        self._streams = Counter[str]()  # by principal

    @property
    def cursor(self) -> str:
        """The cursor of the current state."""
        return f"{self._process}.{self._table.now}"

    def stop(self) -> None:
        """Ends all streams."""
        self._stopping.set()
        self._watch.wake()

    def stream(self, cursor: str, visitor: Visitor) -> AsyncIterator[bytes]:
        """A stream of events from a cursor on. It ends when the visitor may no longer see them.

        Raises:
            ApiError: TOO_MANY_WATCHERS.
        """
        if visitor.principal is not ANYONE and self._streams[visitor.principal.id] >= MOST_OF_VIEWER:
            raise ApiError("TOO_MANY_WATCHERS", f"{MOST_OF_VIEWER} live views of {visitor.principal.id} are open; close some")
        return self._counted(cursor, visitor)

    async def _counted(self, cursor: str, visitor: Visitor) -> AsyncIterator[bytes]:
        self._streams[visitor.principal.id] += 1
        try:
            async with aclosing(self._events(cursor, visitor)) as events:
                async for event in events:
                    yield event
        finally:
            self._streams[visitor.principal.id] -= 1
            self._streams += Counter()  # without those that are at zero

    async def _events(self, cursor: str, visitor: Visitor) -> AsyncGenerator[bytes, None]:
        project = visitor.principal.project
        yield b"retry: %d\n\n" % RETRY_MS
        seen = self._moment(cursor)
        if seen is None:
            seen = self._table.now
            yield self._event("reset", self._whole(project))
        said = monotonic()
        while visitor.stays and not self._stopping.is_set():
            if seen < self._table.now:
                event = (
                    self._changes(seen, project) if seen >= self._table.oldest else self._event("reset", self._whole(project))
                )
                seen, said = self._table.now, monotonic()
                yield event
            elif not await self._watch.change(STAYS_SECONDS) and monotonic() - said >= KEEP_ALIVE_SECONDS:
                said = monotonic()
                yield b": still here\n\n"

    def _moment(self, cursor: str) -> int | None:
        process, _, number = cursor.partition(".")
        if process != self._process or not re.fullmatch("[0-9]{1,18}", number):
            return None
        moment = int(number)
        return moment if self._table.oldest <= moment <= self._table.now else None

    def _changes(self, seen: int, project: str) -> bytes:
        key = (seen, self._table.now)
        if self._shared_key != key:
            self._shared_key, self._shared = key, {}
        if project not in self._shared:
            changes = self._table.since(seen)
            if project:
                inside = f"projects/{project}/"
                changes["runs"] = [run for run in changes["runs"] if run["name"].startswith(inside)]
                changes["gone"] = [name for name in changes["gone"] if name.startswith(inside)]
            self._shared[project] = self._event("runs", {"now": self._watch.clock.now() // 10**6, **changes})
        return self._shared[project]

    def _event(self, kind: str, data: dict[str, Any]) -> bytes:
        return b"id: %b\nevent: %b\ndata: %b\n\n" % (self.cursor.encode(), kind.encode(), encode(data))
