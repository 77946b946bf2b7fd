"""The target of the page's connections: bytes that are nearly HTTP, in pieces, to the protocol that the page's server uses."""

import asyncio
from functools import cache
from random import Random
from time import process_time
from typing import Any, Final

import uvicorn
from uvicorn.server import ServerState

from mechanicd.dashboard._connections import Connection
from tests.fuzz import mutation
from tests.fuzz.harness import AtFault, Meter, Target, run

CONNECTIONS: Final = 100
"""In one event loop."""
REQUESTS: Final = (
    b"GET /api/v1/runs?filter=a HTTP/1.1\r\nHost: localhost:8080\r\nAccept: */*\r\n\r\n",
    b"POST /api/v1/series HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nA: b\r\n\r\n",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\nUpgrade: websocket\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
)


class _Transport(asyncio.Transport):
    """A connection whose other end hears everything."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 8080)})
        self.heard = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        assert not self.closed
        self.heard += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        """It sends no more than the target gives."""

    def resume_reading(self) -> None:
        """As above."""

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """It has none."""


async def _app(_: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


@cache
def _config() -> uvicorn.Config:
    config = uvicorn.Config(_app, lifespan="off", log_config=None, access_log=False, server_header=False, http=Connection)
    config.load()
    return config


def _pieces(rng: Random) -> list[bytes]:
    data = mutation.data(rng, REQUESTS) + rng.choice((b"", b"", *REQUESTS))
    if rng.randrange(50) == 0:
        data = data[:40] + rng.choice((b"a", b"a: b\r\n", b"\r\n", b";")) * rng.randrange(60_000) + data[40:]
    places = sorted(rng.randint(0, len(data)) for _ in range(rng.choice((0, 1, 3))))
    pieces = [data[begin:end] for begin, end in zip([0, *places], [*places, len(data)], strict=True)]
    return [piece for piece in pieces if piece]  # an event loop hands on no empty ones


class Visits:
    """Connections that follow from a number, one after the other."""

    def __init__(self, draw: int) -> None:
        self.draw = draw
        self.sent: list[bytes] = []

    def __repr__(self) -> str:
        return repr(self.sent)

    async def play(self, meter: Meter) -> None:
        """Opens them, sends, and hangs up."""
        rng, state = Random(self.draw), ServerState()
        failures: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        for _ in range(CONNECTIONS):
            self.sent = _pieces(rng)
            begun = process_time()
            transport, connection = _Transport(), Connection(_config(), state, {})
            connection.connection_made(transport)
            for piece in self.sent:
                if not transport.closed:
                    connection.data_received(piece)
                    await asyncio.sleep(0)
            for _ in range(5):
                await asyncio.sleep(0)
            connection.connection_lost(None)
            await asyncio.gather(*state.tasks)
            meter.add(process_time() - begun, bytes(transport.heard[9:12]).decode())
            if failures:
                raise AtFault(f"forgotten: {failures[0]}")
            assert not state.connections


TARGETS = (
    Target(
        name="connections",
        make=lambda rng: Visits(rng.getrandbits(60)),
        take=lambda visits, meter: run(visits.play(meter)),
        covers=(Connection.data_received,),
        rounds=200,
        quick=1,
        inputs=CONNECTIONS,
    ),
)
