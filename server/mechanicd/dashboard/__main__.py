"""The page's process: `python -m mechanicd.dashboard FD`. FD is the socket; stdin has the configuration, then the counts.

It ends when its stdin does, so it never outlives the server, however that ends.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
import sys
from collections.abc import Iterator

import orjson
import uvicorn
import uvloop

from mechanicd.dashboard._app import Child, make_app
from mechanicd.dashboard._config import PageConfig
from mechanicd.dashboard._connections import MOST_CONNECTIONS, Connection, Seldom
from mechanicd.logs import log_to_stderr
from mechanicd.tls import TlsError, TlsFiles

_LONGEST_LINE = 2**24
_RENEW_SECONDS = 1.0
_NICE = 5
"""If there are few cores, the trainers' steps have priority over the curves."""


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to `_main`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _main(listening: socket.socket) -> None:
    reader = asyncio.StreamReader(limit=_LONGEST_LINE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    first = await reader.readline()
    if not first:
        return
    config = PageConfig.from_line(first)
    logging.getLogger("mechanicd").setLevel(config.log_level)
    child = Child(config)
    settings = uvicorn.Config(
        make_app(child),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # `Door` tells which proxies to believe
        timeout_graceful_shutdown=1,
        http=Connection,
        limit_concurrency=MOST_CONNECTIONS,
    )
    renewing = None
    if config.tls is not None:
        settings.load()
        settings.ssl = config.tls.context()
        renewing = asyncio.create_task(_renew(config.tls, settings.ssl))
    server = _Server(settings)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, setattr, server, "should_exit", True)
    listener = asyncio.create_task(_listen(reader, child, server))
    async with child:
        await server.serve(sockets=[listening])
    listener.cancel()
    if renewing is not None:
        renewing.cancel()


async def _renew(files: TlsFiles, context: ssl.SSLContext) -> None:
    """New handshakes use a new certificate. The server's own process says in the log which one it took, and why not."""
    stamps = files.stamps()
    while True:
        await asyncio.sleep(_RENEW_SECONDS)
        if files.stamps() != stamps:
            stamps = files.stamps()
            with contextlib.suppress(TlsError):
                files.read()  # first: a context that has read half of it would be unusable
                files.load(context)


async def _listen(reader: asyncio.StreamReader, child: Child, server: uvicorn.Server) -> None:
    while line := await reader.readline():
        child.told(orjson.loads(line))
    child.end()
    server.should_exit = True


def main() -> None:
    if len(sys.argv) != 2 or not sys.argv[1].isdecimal():
        sys.exit("error: this is not a command; `mechanicd serve` starts this process: run that instead [NOT_A_COMMAND]")
    os.nice(_NICE)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server handles Ctrl-C; this process ends with it
    log_to_stderr(logging.INFO)
    logging.getLogger("uvicorn").setLevel("WARNING")
    logging.getLogger("uvicorn.error").addFilter(Seldom())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(socket.socket(fileno=int(sys.argv[1]))))
    logging.shutdown()
    os._exit(0)  # a thread that waits for a store or a webhook must not delay the end


if __name__ == "__main__":
    main()
