"""One POST to a URL that somebody else answers: bounded in time and in bytes, whatever comes back, and followed nowhere."""

import asyncio
import base64
import contextlib
import socket
import ssl
import threading
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import SplitResult, unquote, urlsplit

import h11

SECONDS: Final = 10.0
"""For all of it: the look-up of the name, the connection, TLS, and the answer."""
CONNECT_SECONDS: Final = 3.0
"""For each address of a name, so that one that swallows everything leaves time for the next."""
MOST_BYTES: Final = 65536
"""Of an answer, its headers included."""
_REST_SECONDS: Final = 1.0
_PORTS: Final = {"http": 80, "https": 443}

Receive = Callable[[], Awaitable[bytes]]


class _NoAnswer(Exception):
    """What came is no answer. The text is for people."""


class Sender:
    """Sends to one URL.

    Args:
        url: `http://` or `https://`. The environment's proxies apply (HTTP_PROXY, HTTPS_PROXY, NO_PROXY).
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._lookup: asyncio.Future[list[Any]] | None = None

    async def post(self, body: bytes) -> str:
        """Sends once. Returns what went wrong, without the URL's secrets, or "" if the receiver took it (any 2xx)."""
        try:
            async with asyncio.timeout(SECONDS) as limit:
                status = await self._post(urlsplit(self._url), body, limit)
        except TimeoutError:
            return f"the receiver can't be asked: it did not answer within {SECONDS:g} s"
        except _NoAnswer as error:
            return f"the receiver can't be asked: {error}"
        except h11.RemoteProtocolError:
            return "the receiver can't be asked: it answered no HTTP"
        except OSError as error:
            return f"the receiver can't be reached: {error.strerror or error or type(error).__name__}"
        except Exception as error:  # no URL, or no HTTP; its text may have the URL's secrets
            return f"the receiver can't be asked ({type(error).__name__})"
        return "" if 200 <= status < 300 else f"the receiver answered {status}"

    async def _post(self, url: SplitResult, body: bytes, limit: asyncio.Timeout) -> int:
        host, port = _place(url)
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        named = f"[{host}]" if ":" in host else host
        netloc = named if url.port is None else f"{named}:{port}"
        headers = [("Host", netloc), ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        headers += [("User-Agent", "mechanicd"), ("Connection", "close")]
        proxy = _proxy(url.scheme, netloc)
        connection = await self._connected(*(_place(proxy) if proxy else (host, port)))
        try:
            if proxy and url.scheme == "https":
                await _tunnel(connection, f"{named}:{port}", _login(proxy))
            elif proxy:
                path, headers = f"http://{netloc}{path}", headers + _login(proxy)
            secure = ssl.create_default_context() if url.scheme == "https" else None
            reader, writer = await asyncio.open_connection(sock=connection, ssl=secure, server_hostname=secure and host)
        except BaseException:
            connection.close()
            raise
        try:
            protocol = h11.Connection(h11.CLIENT, MOST_BYTES)
            request = h11.Request(method="POST", target=path, headers=headers)
            writer.write(protocol.send(request) or b"")
            writer.write((protocol.send(h11.Data(body)) or b"") + (protocol.send(h11.EndOfMessage()) or b""))
            receive = _at_most(MOST_BYTES, lambda: reader.read(4096))
            status = await _status(protocol, receive)
            limit.reschedule(None)  # the receiver has decided; that it may end its answer is politeness
            with contextlib.suppress(Exception):
                async with asyncio.timeout(_REST_SECONDS):
                    await _rest(protocol, receive)
            return status
        finally:
            writer.transport.abort()

    async def _connected(self, host: str, port: int) -> socket.socket:
        failure: OSError | None = None
        for family, kind, protocol, _, address in await self._addresses(host, port):
            connection = socket.socket(family, kind, protocol)
            connection.setblocking(False)
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await asyncio.get_running_loop().sock_connect(connection, address)
                return connection
            except OSError as error:  # a TimeoutError is one
                connection.close()
                failure = error
            except BaseException:
                connection.close()
                raise
        raise failure or OSError("its name has no address")

    async def _addresses(self, host: str, port: int) -> list[Any]:
        """What a name stands for. A look-up can't be ended, so one that hangs is waited for again, and no second one begins."""
        if self._lookup is None:
            self._lookup = _looked_up(host, port)
        try:
            found = await asyncio.shield(self._lookup)
        finally:
            if self._lookup.done():
                self._lookup = None
        return found


def _place(url: SplitResult) -> tuple[str, int]:
    host = url.hostname or ""
    return host if host.isascii() else host.encode("idna").decode(), url.port or _PORTS[url.scheme]


def _proxy(scheme: str, netloc: str) -> SplitResult | None:
    found = urllib.request.getproxies().get(scheme)
    if not found or urllib.request.proxy_bypass(netloc):
        return None
    return urlsplit(found if "://" in found else f"http://{found}")


def _login(proxy: SplitResult) -> list[tuple[str, str]]:
    if proxy.username is None:
        return []
    login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return [("Proxy-Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")]


def _looked_up(host: str, port: int) -> asyncio.Future[list[Any]]:
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[Any]] = loop.create_future()

    def tell(addresses: list[Any], error: Exception | None) -> None:
        if found.cancelled():
            return
        if error is None:
            found.set_result(addresses)
        else:
            found.set_exception(error)
            found.exception()  # whoever waited may be gone

    def look_up() -> None:
        addresses, failure = list[Any](), None
        try:
            addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(tell, addresses, failure)

    threading.Thread(target=look_up, name="webhook-name", daemon=True).start()
    return found


async def _tunnel(connection: socket.socket, place: str, login: list[tuple[str, str]]) -> None:
    loop = asyncio.get_running_loop()
    protocol = h11.Connection(h11.CLIENT, MOST_BYTES)
    request = h11.Request(method="CONNECT", target=place, headers=[("Host", place), *login])
    await loop.sock_sendall(connection, protocol.send(request) or b"")
    status = await _status(protocol, _at_most(MOST_BYTES, lambda: loop.sock_recv(connection, 4096)))
    if not 200 <= status < 300:
        raise _NoAnswer(f"the proxy answered {status}")


def _at_most(most: int, read: Receive) -> Receive:
    """Reads on, but no more than so many bytes in all."""
    left = most

    async def receive() -> bytes:
        nonlocal left
        data = await read()
        left -= len(data)
        if left < 0:
            raise _NoAnswer(f"its answer is longer than {most} bytes")
        return data

    return receive


async def _status(protocol: h11.Connection, receive: Receive) -> int:
    while True:
        event = protocol.next_event()
        if isinstance(event, h11.Response):
            return event.status_code
        if event is h11.NEED_DATA:
            data = await receive()
            if not data:
                raise _NoAnswer("it closed the connection without an answer")
            protocol.receive_data(data)
        elif not isinstance(event, h11.InformationalResponse):
            raise _NoAnswer("it answered no HTTP")


async def _rest(protocol: h11.Connection, receive: Receive) -> None:
    while (event := protocol.next_event()) is h11.NEED_DATA or isinstance(event, h11.Data):
        if event is h11.NEED_DATA:
            protocol.receive_data(await receive())
