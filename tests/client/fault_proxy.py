"""A TCP proxy that misbehaves on command: what a bad network does between a trainer and its server."""

import contextlib
import random
import socket
import struct
import threading
import time
from typing import Self

FAULTS = (
    *(
        "delay",
        "stall",
        "reset",
        "truncate",
        "half-close",
        "black hole",
        "slow drip",
        "forgotten",
        "deaf",
        "mute",
        "slow reader",
    ),
)


class FaultProxy:
    """Listens on a port of its own and carries bytes to `upstream`, as the current fault says.

    Attributes:
        accepted: how many connections have come.
        fault: None, or one of FAULTS; may be changed at any time.
            delay: each piece is late by up to 50 ms. stall: nothing moves while it lasts, and everything after.
            reset: connections are reset. truncate: half of the next piece passes, then the connection ends.
            half-close: the server's direction ends, the other stays open. black hole: new connections are taken and never
            answered, old ones stall. slow drip: a few bytes at a time. forgotten: a NAT has forgotten the connections of now;
            they swallow all bytes for ever, without an end, and new ones work. deaf, mute: of each connection that carries
            bytes meanwhile, one direction swallows all for ever: what the trainer says, or what it is told. slow reader: the
            trainer's bytes are taken so slowly that its socket fills. Not among FAULTS, for what comes meanwhile, and for ever:
            no greeting: a connection is taken and never answered. A number: something else answers in HTTP/2, with this status.
    """

    def __init__(self, upstream: str, seed: int) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = (host, int(port))
        self._rng = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(0.1)
        self._pairs: list[tuple[socket.socket, socket.socket | None]] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self.fault: str | None = None
        self.accepted = 0
        self._generation = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def target(self) -> str:
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def set(self, fault: str | None) -> None:
        """Begins or ends a fault."""
        self.fault = fault
        if fault == "forgotten":
            self._generation += 1
        if fault == "reset" or fault == "no greeting" or (fault or "").isdecimal():
            with self._lock:
                pairs, self._pairs = self._pairs, []
            for pair in pairs:
                for side in pair:
                    if side is not None:
                        _reset(side)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every connection, and listens no more."""
        self._ended.set()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()
        for pair in self._pairs:
            for side in pair:
                if side is not None:
                    side.close()

    def _accept(self) -> None:
        while not self._ended.is_set():
            try:
                client, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.accepted += 1
            if self.fault == "black hole":
                with self._lock:
                    self._pairs.append((client, None))
                continue
            if self.fault == "no greeting":
                with self._lock:
                    self._pairs.append((client, None))
                continue
            if (self.fault or "").isdecimal():
                self._threads.append(threading.Thread(target=self._answer, args=(client, self.fault), daemon=True))
                self._threads[-1].start()
                continue
            if self.fault == "reset":
                _reset(client)
                continue
            try:
                server = socket.create_connection(self._upstream, timeout=2)
            except OSError:
                _reset(client)
                continue
            with self._lock:
                self._pairs.append((client, server))
            for source, sink, downwards in ((client, server, False), (server, client, True)):
                thread = threading.Thread(target=self._carry, args=(source, sink, downwards), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _answer(self, client: socket.socket, status: str) -> None:
        """HTTP/2 of a server that knows no gRPC: each request gets the status."""
        client.settimeout(0.05)
        data, at = b"", 24  # after the client's preface
        with contextlib.suppress(OSError):
            client.sendall(_frame(4, 0, 0))
            while not self._ended.is_set():
                try:
                    data += (got := client.recv(65536))
                except TimeoutError:
                    continue
                if not got:
                    break
                while len(data) >= at + 9 and len(data) >= (end := at + 9 + int.from_bytes(data[at : at + 3])):
                    kind, flags, stream = data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9])
                    if kind == 1:  # HEADERS
                        client.sendall(_frame(1, 5, stream, b"\x00\x07:status\x03" + status.encode()))
                    elif kind in (4, 6) and not flags & 1:  # SETTINGS, PING
                        client.sendall(_frame(kind, 1, 0, data[at + 9 : end] if kind == 6 else b""))
                    at = end
        client.close()

    def _carry(self, source: socket.socket, sink: socket.socket, downwards: bool) -> None:
        generation, swallows = self._generation, False
        with contextlib.suppress(OSError):
            source.settimeout(0.05)
            while not self._ended.is_set():
                fault = self.fault
                if fault in ("stall", "black hole"):
                    time.sleep(0.01)
                    continue
                slow = fault == "slow reader" and not downwards
                if slow:
                    time.sleep(0.02)
                try:
                    data = source.recv(200 if slow else 65536)
                except TimeoutError:
                    continue
                if not data:
                    break
                swallows = swallows or (fault == "deaf" and not downwards) or (fault == "mute" and downwards)
                if generation != self._generation or swallows:
                    continue
                if fault == "delay":
                    time.sleep(self._rng.uniform(0.0, 0.05))
                elif fault == "truncate":
                    sink.sendall(data[: len(data) // 2])
                    break
                elif fault == "half-close" and downwards:
                    sink.shutdown(socket.SHUT_WR)
                    return
                elif fault == "slow drip":
                    for start in range(0, len(data), 7):
                        sink.sendall(data[start : start + 7])
                        time.sleep(0.002)
                    continue
                sink.sendall(data)
        for side in (source, sink):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _reset(side: socket.socket) -> None:
    with contextlib.suppress(OSError):
        side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    side.close()
