"""The serving process's side of the page: it binds the socket, starts the child, feeds it, and restarts it when it ends."""

import asyncio
import contextlib
import errno
import importlib.util
import json
import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from time import monotonic
from typing import Any, Final

from mechanicd.dashboard._config import PageConfig

log = logging.getLogger("mechanicd.dashboard")

DEFAULT: Final = "127.0.0.1:8080"
_NEEDS: Final = ("orjson", "prometheus_client", "starlette", "uvicorn")
_BEAT_SECONDS: Final = 1.0
_LONGEST_LINE: Final = 2**26
_MOST_WAITING: Final = 2**18
_LONGEST_PAUSE: Final = 30.0
_WELL_SECONDS: Final = 60.0
_END_SECONDS: Final = 3.0

Snapshot = Callable[[], Mapping[str, Any]]
"""The counts of the serving process, as plain JSON values."""


class PageError(Exception):
    """The page can't be served with these settings. `reason` is stable."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Page:
    """The page's socket and its process.

    Args:
        address: `HOST:PORT`; port 0 takes a free port.
        yielding: if the port is taken, use a free one.

    Raises:
        PageError: PORT_IN_USE, PACKAGE_MISSING.
    """

    def __init__(self, address: str, config: PageConfig, *, yielding: bool = False) -> None:
        missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
        if missing:
            raise PageError(
                "PACKAGE_MISSING",
                f"the page needs {', '.join(missing)}; pip install 'mechanicd[server]', or pass --http off for no page",
            )
        self._socket = _listen(address, yielding)
        port = self._socket.getsockname()[1]
        self._config = config
        host = address.rpartition(":")[0]
        self.url = f"{'http' if config.tls is None else 'https'}://{host}:{port}"
        self._process: asyncio.subprocess.Process | None = None

    def close(self) -> None:
        """Releases the address."""
        self._socket.close()

    @asynccontextmanager
    async def beside(self, grpc: Sequence[str], snapshot: Snapshot) -> AsyncIterator[str]:
        """Serves the page until the end of the context, and yields its URL.

        Args:
            grpc: the addresses for trainers.
        """
        self._config = replace(self._config, grpc=tuple(grpc))
        try:
            await self._start()
            task = asyncio.create_task(self._keep(snapshot), name="mechanicd-page")
            try:
                yield self.url
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                await self._stop()
        finally:
            self.close()

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mechanicd.dashboard", str(self._socket.fileno())),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[self._socket.fileno()],
            limit=_LONGEST_LINE,
        )
        self._write(self._config.to_line())

    async def _keep(self, snapshot: Snapshot) -> None:
        """Sends the child a line of counts each second. Restarts it when it ends, after longer pauses if it keeps ending."""
        pause = 0.0
        while True:
            assert self._process is not None
            begun, ended = monotonic(), asyncio.ensure_future(self._hear(self._process))
            try:
                while not ended.done():
                    self._write(json.dumps(snapshot()).encode() + b"\n")
                    await asyncio.wait([ended], timeout=_BEAT_SECONDS)
            finally:
                ended.cancel()
            pause = 0.1 if monotonic() - begun > _WELL_SECONDS or not pause else min(2 * pause, _LONGEST_PAUSE)
            log.warning(
                "the page's process ended with exit status %s; restarting it in %.1f s", self._process.returncode, pause
            )
            await asyncio.sleep(pause)
            try:
                await self._start()
            except OSError as error:  # out of processes or memory: try again later
                log.error("the page's process can't be started: %s", error)

    async def _hear(self, process: asyncio.subprocess.Process) -> None:
        """Keeps what this child reports, for the next one, until it ends."""
        assert process.stdout is not None
        async for line in process.stdout:
            self._config = replace(self._config, told=tuple(map(tuple, json.loads(line)["told"])))
        await process.wait()

    def _write(self, line: bytes) -> None:
        pipe = self._process.stdin if self._process is not None else None
        # A child that does not read misses lines; the next line has all counts.
        if pipe is not None and not pipe.is_closing() and pipe.transport.get_write_buffer_size() < _MOST_WAITING:
            pipe.write(line)

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), _END_SECONDS)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _listen(address: str, yielding: bool) -> socket.socket:
    host, _, port = address.rpartition(":")
    try:
        family, kind, _, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise PageError("MALFORMED_ADDRESS", f"{address}: {error.strerror}; use an address of this machine") from None
    listening = socket.socket(family, kind)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(place)
        except OSError as error:
            if not yielding or error.errno != errno.EADDRINUSE:
                raise
            listening.bind((place[0], 0, *place[2:]))
        listening.listen(128)
    except OSError as error:
        listening.close()
        why = "another program listens there" if error.errno == errno.EADDRINUSE else error.strerror
        message = f"{address} can't be bound for the page: {why}; choose another --http HOST:PORT, or --http off"
        raise PageError("PORT_IN_USE", message) from None
    return listening
