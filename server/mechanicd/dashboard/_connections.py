"""What a connection to the page may ask of its server: a time for each request to come, and a number of connections."""

import asyncio
import logging
from time import monotonic
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS: Final = 512
"""A browser keeps one for the live events of each tab. A request of a further connection is answered with status 503."""
REQUEST_SECONDS: Final = 10.0
"""For the head of a request to come, for its body, and for a part of the answer to be read."""
_SELDOM_SECONDS: Final = 60.0
_COMING: Final = (h11.IDLE, h11.SEND_BODY)


class Connection(H11Protocol):
    """uvicorn's protocol, which by itself waits for ever for the rest of a request that has begun, and keeps a client's
    certificate to itself: here `scope["state"]["peercert"]` has it, as Python's `ssl` reads it."""

    _looking: asyncio.TimerHandle
    _awaited: tuple[Any, Any] | None = (h11.IDLE, None)
    _unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, "peercert": transport.get_extra_info("peercert")}
        self._looking = self.loop.call_later(REQUEST_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._looking.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        """Closes the connection if the same part of the same request has been awaited since the last look, or if nothing of an
        answer that waits has been read."""
        unread = self.transport.get_write_buffer_size() if self.flow.write_paused else 0
        if unread and unread == self._unread:
            self.transport.abort()  # `close` would wait for the reader
            return
        self._unread = unread
        state = self.conn.their_state
        awaited = (state, self.cycle) if state in _COMING else None
        if awaited is not None and awaited == self._awaited:
            self.transport.close()
            return
        self._awaited = awaited
        self._looking = self.loop.call_later(REQUEST_SECONDS, self._look)


class Seldom(logging.Filter):
    """Lets each warning through once a minute: anyone can cause them, with every request."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            return True
        now, text = monotonic(), str(record.msg)
        if now - self._said.get(text, -_SELDOM_SECONDS) < _SELDOM_SECONDS:
            return False
        self._said[text] = now
        return True
