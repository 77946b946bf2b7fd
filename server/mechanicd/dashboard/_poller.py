"""Keeps the table of runs up to date with the store."""

import asyncio
import contextlib
import logging
from time import monotonic
from typing import Final

from mechanicd.dashboard._reader import Reader
from mechanicd.dashboard._table import Table
from mechanicd.store import Clock, StoreError, StoreMoved, changes

log = logging.getLogger("mechanicd.dashboard")

POLL_SECONDS: Final = 0.25
STALE_SECONDS: Final = 4.0
"""After this long without an answer, the store or the serving process is taken to be in trouble."""
_FIRST_SECONDS: Final = 10.0
_RETRY_SECONDS: Final = 0.5


class Watch:
    """Polls the store and updates the table.

    Args:
        clock: the store's clock.

    Attributes:
        table: the runs as last read.
        failure: why the store can't be read now; "" if it can.
    """

    def __init__(self, reader: Reader, table: Table, clock: Clock) -> None:
        self.table = table
        self.clock = clock
        self.failure = "the store has not been read yet"
        self._detail = ""
        self._reader = reader
        self._read_at = monotonic()
        self._changed = asyncio.Event()
        self._tried = asyncio.Event()

    @property
    def trouble(self) -> str:
        """Why the table may be out of date, in words; "" if it is current."""
        if not self.failure and monotonic() - self._read_at > STALE_SECONDS:
            return f"the store has not answered for {monotonic() - self._read_at:.0f} s"
        return self.failure

    async def run(self) -> None:
        """Polls until it is cancelled."""
        while True:
            try:
                known = self.table.revisions()
                rows, gone = await self._reader.call(lambda store: changes(store, known))  # noqa: B023  (awaited here)
            except StoreError as error:
                if self._detail != str(error):
                    log.error("store: %s", error)
                why = error.public if isinstance(error, StoreMoved) else "the store can't be read now"
                self.failure, self._detail = f"{why}; the server's log says why", str(error)
                self._tried.set()
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            if self._detail:
                log.warning("store: works again")
            self.failure, self._detail, self._read_at = "", "", monotonic()
            if self.table.update(rows, gone, self.clock.now()):
                self.wake()
            self._tried.set()
            await asyncio.sleep(POLL_SECONDS)

    async def begun(self) -> None:
        """Waits for the first attempt to read the store, so that nobody is shown an empty table by mistake."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_SECONDS):
                await self._tried.wait()

    def wake(self) -> None:
        """Wakes those who wait in `change`."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def change(self, seconds: float) -> bool:
        """Waits for the next change of the table; False if none came in time."""
        try:
            async with asyncio.timeout(seconds):  # wait_for loses a cancellation that comes with the change
                await self._changed.wait()
        except TimeoutError:
            return False
        return True
