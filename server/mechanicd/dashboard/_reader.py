"""The store as the page's process uses it: read-only, outside of the event loop, and allowed to be unavailable for a while."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from mechanicd.store import Store, StoreUnavailable, open_store

T = TypeVar("T")

ANSWER_SECONDS: Final = 30.0


class Reader:
    """One connection to the store, on a thread of its own. It is opened at the first use, and again after a failure.

    Args:
        url: the URL of the store.
        name: the name of the thread.
    """

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._store: Store | None = None
        self._lock = threading.Lock()
        self._running: object = None  # the function that runs now

    async def call(self, function: Callable[[Store], T]) -> T:
        """Runs a function of the store on its thread. If the caller is cancelled, it is broken off, or never begins.

        Raises:
            StoreError: the store can't be reached or read, or does not answer.
        """
        answer = asyncio.get_running_loop().run_in_executor(self._thread, self._run, function)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):  # wait_for loses a cancellation that comes with the answer
                return await answer
        except TimeoutError:
            if self._store is not None:
                self._store.interrupt()  # the next call then makes a new connection
            raise StoreUnavailable(f"the store has not answered within {ANSWER_SECONDS:.0f} s") from None
        except asyncio.CancelledError:
            with self._lock:  # so that it is not the next function which is broken off
                if self._running is function and self._store is not None:
                    self._store.interrupt()
            raise

    def close(self) -> None:
        """Releases the connection without waiting for running calls, because an unavailable store may take long."""
        self._thread.submit(self._close)
        self._thread.shutdown(wait=False)

    def _close(self) -> None:
        if self._store is not None:
            self._store.close()

    def _run(self, function: Callable[[Store], T]) -> T:
        if self._store is None:
            self._store = open_store(self._url, readonly=True)
        with self._lock:
            self._running = function
        try:
            return function(self._store)
        finally:
            with self._lock:
                self._running = None
