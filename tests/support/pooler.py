"""A pooler in front of PostgreSQL for tests: pgbouncer where it is installed, and one of our own that only knows the wire."""

import os
import pwd
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from tests.support.servers import free_port, wait_for

PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def _through(url: str, port: int) -> str:
    return urlsplit(url)._replace(netloc=f"postgres@127.0.0.1:{port}").geturl()


@contextmanager
def pgbouncer(folder: Path, url: str, mode: str, size: int, port: int = 0) -> Iterator[str]:
    """The URL of the same database through a pgbouncer in this mode, with a pool of this size; port 0 takes a free one."""
    assert PGBOUNCER is not None
    port = port or free_port()
    settings = folder / f"{mode}.ini"
    settings.write_text(
        f"[databases]\n* = host=127.0.0.1 port={urlsplit(url).port} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n"
        f"listen_port = {port}\nauth_type = any\npool_mode = {mode}\ndefault_pool_size = {size}\nunix_socket_dir =\n"
    )
    who = {"user": "nobody", "group": pwd.getpwnam("nobody").pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    with settings.open() as stdin:  # which it may read, even if the folder is not its own
        process = subprocess.Popen([PGBOUNCER, "-q", "/dev/stdin"], stdin=stdin, **who)  # type: ignore[call-overload]
    try:
        assert wait_for(lambda: _listens(port))
        yield _through(url, port)
    finally:
        process.kill()
        process.wait()


@contextmanager
def shared_backend(url: str) -> Iterator[str]:
    """The URL of the same database through a pooler that gives all its clients one backend, a transaction at a time."""
    backend = socket.create_connection(("127.0.0.1", urlsplit(url).port or 0))
    turn = threading.Lock()
    listener = socket.create_server(("127.0.0.1", 0))
    greeting: list[bytes] = []

    def serve(client: socket.socket) -> None:
        with suppress(OSError, ConnectionError), client:
            _startup(client, backend, turn, greeting)
            while message := _message(client):
                if message[:1] == b"X":
                    return
                with turn:
                    backend.sendall(message)
                    while not _answer(backend, client):
                        backend.sendall(_message(client))

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield _through(url, listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        backend.close()


def _startup(client: socket.socket, backend: socket.socket, turn: threading.Lock, greeting: list[bytes]) -> None:
    """Logs the first client in at the backend, and tells all others the same, with another key."""
    while True:
        size = int.from_bytes(_exactly(client, 4), "big")
        request = _exactly(client, size - 4)
        if request[:4] == (80877103).to_bytes(4, "big") or request[:4] == (80877104).to_bytes(4, "big"):
            client.sendall(b"N")  # no TLS, no GSS
            continue
        break
    with turn:
        if not greeting:
            backend.sendall(size.to_bytes(4, "big") + request)
            while not greeting or greeting[-1][:1] != b"Z":
                greeting.append(_message(backend))
    key = b"K" + (12).to_bytes(4, "big") + os.urandom(8)
    client.sendall(b"".join(key if message[:1] == b"K" else message for message in greeting))


def _answer(backend: socket.socket, client: socket.socket) -> bool:
    """Passes an answer on, up to ReadyForQuery. Returns whether the transaction is over."""
    while True:
        message = _message(backend)
        client.sendall(message)
        if message[:1] == b"Z":
            return message[5:6] == b"I"


def _message(end: socket.socket) -> bytes:
    head = _exactly(end, 5)
    return head + _exactly(end, int.from_bytes(head[1:], "big") - 4)


def _exactly(end: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = end.recv(size - len(data))
        if not part:
            raise ConnectionError
        data += part
    return data


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
