"""One server process: its addresses, its health, and its shutdown."""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

import grpc
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from mechanicd.runs import Silence
from mechanicd.service import _limits
from mechanicd.service._decoding import Decoding
from mechanicd.service._door import Door, run_of
from mechanicd.service._engine import Engine
from mechanicd.service._grpc import RunServicer, TunerServicer
from mechanicd.service._health import Health
from mechanicd.service._keys import Access
from mechanicd.service._listening import bind, check_address, credentials
from mechanicd.service._local_files import LocalFiles
from mechanicd.service._run_service import RunService
from mechanicd.service._writer import Retention
from mechanicd.store import Store
from mechanicd.tls import Keeper, TlsFiles
from mechanicd.v1 import run_service_pb2, run_service_pb2_grpc, tuner_service_pb2, tuner_service_pb2_grpc

log = logging.getLogger("mechanicd.service")

_TUNER: Final = tuner_service_pb2.DESCRIPTOR.services_by_name["TunerService"]
_RUNS: Final = run_service_pb2.DESCRIPTOR.services_by_name["RunService"]
SERVICES: Final = (_TUNER.full_name, _RUNS.full_name)


_OPTIONS: Final = [
    ("grpc.so_reuseport", 0),  # with it, a second server could bind the same port and would silently take half of the calls
    ("grpc.max_receive_message_length", _limits.MOST_LARGE_BYTES),
    ("grpc.max_concurrent_streams", _limits.MOST_STREAMS),
    # gRPC counts no connections. One without a call is told to go; a client's next call makes another.
    ("grpc.server_handshake_timeout_ms", _limits.HANDSHAKE_SECONDS * 1000),
    ("grpc.max_connection_idle_ms", _limits.IDLE_SECONDS * 1000),
    # Clients ping every 20 s, also between steps; gRPC's default takes that for an attack. And a client that is gone without a
    # word is found by the server's own pings.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 20_000),  # newer versions of gRPC wait for a ping's answer by this one
    ("grpc.http2.max_pings_without_data", 0),
    # No number of pings is too many: gRPC's clients also ping to measure the bandwidth, and would lose their connection for it.
    ("grpc.http2.max_ping_strikes", 0),
]

Companion = Callable[[Sequence[str], Callable[[], Mapping[str, Any]]], contextlib.AbstractAsyncContextManager[str]]
"""Something that runs beside the gRPC service, such as the dashboard. It gets the service's addresses and a function that reads
this server's counters as plain JSON values. Its context returns the address that it listens on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """How to serve.

    Attributes:
        grpc: addresses, `HOST:PORT` (port 0 takes a free one) or `unix:PATH`.
        access: who may come in.
        insecure: allow addresses that other machines can reach, although there is no TLS, or nobody has to show who they are.
        tls: the files of the certificate; None: no TLS.
        flush_interval: seconds within which a step is durable.
        durability: "group" answers a step at once and commits it within `flush_interval`; "step" answers once it is durable.
        grace: seconds that calls in flight get to finish after SIGTERM.
        retention: which history to discard over time.
        silence: when a held run counts as silent.
    """

    grpc: Sequence[str] = field(default=("127.0.0.1:50051",))
    access: Access = field(default_factory=Access)
    insecure: bool = False
    tls: TlsFiles | None = None
    flush_interval: float = 0.02
    durability: Literal["group", "step"] = "group"
    grace: float = 1.0
    retention: Retention = field(default_factory=Retention)
    silence: Silence = field(default_factory=Silence)

    @property
    def open_to_others(self) -> bool:
        """Whether other machines may reach the server: by TLS they have to show tokens or certificates, or all are trusted."""
        return self.insecure or (self.tls is not None and (bool(self.tls.client_ca) or not self.access.everyone))


async def serve(
    config: ServerConfig, store: Store, on_ready: Callable[[list[str], str], None], beside: Companion | None = None
) -> None:
    """Serves until SIGTERM or SIGINT, then drains: no new sessions, calls in flight finish, every step is committed.

    Args:
        on_ready: called once, with the gRPC addresses that are bound and the companion's address ("" without one).
        beside: a companion, which runs from before `on_ready` until the drain.

    Raises:
        ServeError: ADDRESS_NOT_LOOPBACK, MALFORMED_ADDRESS, PORT_IN_USE.
        TlsError: TLS_FILE_UNUSABLE.
    """
    for address in config.grpc:
        check_address(address, config.open_to_others)
    if config.access.everyone and config.insecure:
        log.warning("--insecure: everyone who reaches it may read, change and delete every run")
    elif config.insecure and config.tls is None:
        log.warning("--insecure: without TLS, whoever is on the way reads tokens; our clients send none then")
    keeper = None if config.tls is None else Keeper(config.tls)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    health_ = Health()

    def on_health(healthy: bool) -> None:
        for service in ("", *SERVICES):
            health_.set(service, healthy and not stopping.is_set())

    engine = Engine(store, config.flush_interval, on_health, config.retention)
    door = Door(config.access, partial(engine.writer.call, store.tokens), store.clock.now, partial(run_of, engine))
    server = grpc.aio.server(options=_OPTIONS, interceptors=[door])
    tuner_service_pb2_grpc.add_TunerServiceServicer_to_server(
        TunerServicer(engine, config.durability == "step"), Decoding(server, _TUNER)
    )
    run_service_pb2_grpc.add_RunServiceServicer_to_server(
        RunServicer(RunService(engine, config.silence)), Decoding(server, _RUNS)
    )
    health_pb2_grpc.add_HealthServicer_to_server(health_, server)
    reflection.enable_server_reflection(
        (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME),
        server,
    )
    secured = None if keeper is None else credentials(keeper)
    addresses = [bind(server, address, secured) for address in config.grpc]
    engine.start()
    await door.keys.start()
    await server.start()
    on_health(True)
    async with contextlib.AsyncExitStack() as stack:
        page = "" if beside is None else await stack.enter_async_context(beside(addresses, partial(_counts, engine, keeper)))
        if config.access.local is not None:
            stack.enter_context(LocalFiles(config.access.local[0], filter(None, (*addresses, page))))
        on_ready(addresses, page)
        await stopping.wait()
    log.info("draining: no new sessions; calls in flight get %.1f s", config.grace)
    engine.drain()
    health_.end()
    end = loop.time() + config.grace
    await server.stop(config.grace)
    await door.keys.stop()
    left = await engine.stop(max(0.0, end - loop.time()))
    if left:
        log.error("stopped: %d answered steps are not committed; their trainers have them, and send them again", left)
    else:
        log.info("stopped: every answered step is committed")


def _counts(engine: Engine, keeper: Keeper | None) -> dict[str, Any]:
    return {**engine.counts(), "certificate_expires": None if keeper is None else keeper.pair.expires.timestamp()}
