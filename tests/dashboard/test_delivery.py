"""Whatever a webhook's receiver answers is a success or a failure by name, in bounded time and bytes, and never the end."""

import asyncio
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import trustme
import uvloop

from mechanicd.dashboard import _delivery
from mechanicd.dashboard._delivery import Sender
from mechanicd.dashboard._webhook import Webhook

DEADLINE = "did not answer within"
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Body = b'{"event":"began"}'


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little time for each delivery."""
    monkeypatch.setattr(_delivery, "SECONDS", 0.3)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[asyncio.Runner]:
    """The loop that the page has, in an environment without proxies."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as made:
        yield made


@contextlib.asynccontextmanager
async def listening(answer: Answer, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A receiver; yields its port."""

    serving: list[asyncio.Task[Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(asyncio.ensure_future(answer(reader, writer)))
        await asyncio.wait(serving[-1:])
        writer.transport.abort() if serving[-1].cancelled() else writer.close()

    server = await asyncio.start_server(serve, host, 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
        await asyncio.sleep(0.01)


def told(runner: asyncio.Runner, answer: Answer, scheme: str = "http", **how: Any) -> str:
    async def post() -> str:
        async with listening(answer, **how) as port:
            return await Sender(f"{scheme}://127.0.0.1:{port}/secret?key=secret").post(Body)

    return runner.run(post())


def fixed(*parts: bytes, before: float = 0.0, between: float = 0.0, repeat: int = 1) -> Answer:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        await asyncio.sleep(before)
        for part in parts * repeat:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(between)

    return answer


OK = b"HTTP/1.1 204 No Content\r\n\r\n"
DRIP = [OK[i : i + 1] for i in range(len(OK))]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (fixed(OK), ""),
        (fixed(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n", b"x" * 65536, repeat=1), ""),
        (fixed(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 65536, b"x" * 65536, repeat=40), ""),
        (fixed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"no chunk"), ""),
        (fixed(b"HTTP/1.1 100 Continue\r\n\r\n", OK), ""),
        (fixed(b"HTTP/1.1 500 \x1b[31mno\r\n\r\n"), "answered 500"),
        (fixed(b"HTTP/1.1 503 busy\r\n\r\n"), "answered 503"),
        (fixed(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest\r\n\r\n"), "answered 302"),
        (fixed(b"HTTP/1.1 307 Moved\r\nLocation: file:///etc/passwd\r\n\r\n"), "answered 307"),
        (fixed(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), "can't be asked"),
        (fixed(b"garbage, no HTTP\r\n\r\n"), "can't be asked"),
        (fixed(b"220 mail.example ESMTP\r\n"), "can't be asked"),
        (fixed(b"\x15\x03\x01\x00\x02\x02\x50"), "can't be asked"),
        (fixed(b"HTTP/1.1 \xff\r\n\r\n"), "can't be asked"),
        (fixed(b"HTTP/2 200\r\n\r\n"), "can't be asked"),
        (fixed(b"HTTP/1.1 99999 x\r\n\r\n"), "can't be asked"),
        (fixed(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n"), "can't be asked"),
        (fixed(b""), "without an answer"),
        (fixed(b"HTTP/1.1 20"), "can't be asked"),
        (fixed(b"HTTP/1.1 200 OK\r\n", *[b"X-More: y\r\n" * 4096] * 40), "can't be asked"),
        (fixed(b"HTTP/1.1 200 OK\r\nX: ", *[b"y" * 65536] * 40), "can't be asked"),
        (fixed(*[b"HTTP/1.1 102 Processing\r\n\r\n" * 1024] * 40), "longer than 65536 bytes"),
        (fixed(OK, before=30), DEADLINE),
        (fixed(*DRIP, between=0.1), DEADLINE),
        (fixed(b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 100, between=0.05), DEADLINE),
    ],
)
def test_an_answer_is_a_success_or_a_failure_by_name(
    runner: asyncio.Runner, answer: Answer, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_delivery, "SECONDS", 0.3 if said == DEADLINE else 10)
    failure = told(runner, answer)
    assert said in failure
    assert bool(said) == bool(failure)
    assert "secret" not in failure
    assert failure.isprintable()


def test_it_waits_a_moment_for_the_rest_of_an_answer(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_delivery, "_REST_SECONDS", 0.1)
    slow = [b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", *[b"x"] * 100]
    assert told(runner, fixed(*slow, between=0.2)) == ""


def test_what_receives_gets_the_whole_post(runner: asyncio.Runner) -> None:
    heard = bytearray()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.readuntil(b"}"))
        writer.write(OK)

    assert told(runner, answer) == ""
    head, _, body = bytes(heard).partition(b"\r\n\r\n")
    assert body == Body
    assert head.startswith(b"POST /secret?key=secret HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"Content-Type: application/json" in head


def test_tls_is_checked_against_the_name_and_the_authorities(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    server, other = (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(2))
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.issue_cert("elsewhere.example").configure_cert(other)
    assert "CERTIFICATE_VERIFY_FAILED" in told(runner, fixed(OK), "https", tls=server), "an authority that nobody trusts"
    with authority.cert_pem.tempfile() as trusted:
        monkeypatch.setenv("SSL_CERT_FILE", trusted)
        assert told(runner, fixed(OK), "https", tls=server) == ""
        assert "CERTIFICATE_VERIFY_FAILED" in told(runner, fixed(OK), "https", tls=other), "another name"

    async def clear(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 no TLS\r\n\r\n")

    assert "can't be reached" in told(runner, clear, "https")


@pytest.mark.usefixtures("short")
def test_a_handshake_that_never_ends_is_ended(runner: asyncio.Runner) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in b"\x16\x03\x03\x40\x00" + b"\x02" * 100:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)

    assert DEADLINE in told(runner, answer, "https")


def test_a_name_that_is_not_found_a_port_that_is_closed_and_ipv6(runner: asyncio.Runner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for url in (
        f"http://127.0.0.1:{port}/secret",
        "http://secret.invalid/",
        "http://[::1]:1/secret",
        "http://0.0.0.0.0/secret",
    ):
        assert "the receiver can't be reached" in runner.run(Sender(url).post(Body))

    async def by_ipv6() -> str:
        async with listening(fixed(OK), host="::1") as port:
            return await Sender(f"http://[::1]:{port}/").post(Body)

    assert runner.run(by_ipv6()) == ""


@pytest.mark.usefixtures("short")
def test_a_look_up_that_hangs_is_left_and_not_begun_twice(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, back, found = [], threading.Event(), socket.getaddrinfo

    def hang(*args: Any, **how: Any) -> Any:
        begun.append(args)
        back.wait(30)
        return found("127.0.0.1", args[1], **how)

    async def post() -> None:
        async with listening(fixed(OK)) as port:
            sender = Sender(f"http://slow.example:{port}/")
            monkeypatch.setattr(socket, "getaddrinfo", hang)
            assert DEADLINE in await sender.post(Body)
            assert DEADLINE in await sender.post(Body)
            assert len(begun) == 1
            back.set()
            monkeypatch.setattr(_delivery, "SECONDS", 10)
            assert await sender.post(Body) == ""

    runner.run(post())


@pytest.mark.parametrize(
    "url", ["http://", "gopher://x/", "http://x:99999/", "http://a b/", "http://[::1", "http://x/\r\nX: y"]
)
def test_what_is_no_url_is_a_failure_that_does_not_show_it(runner: asyncio.Runner, url: str) -> None:
    failure = runner.run(Sender(url).post(Body))
    assert failure.startswith("the receiver can't be")
    assert failure.isprintable()


def test_the_environments_proxy_is_used_with_its_password(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK if heard[-1].startswith(b"POST") else b"HTTP/1.1 407 \r\nContent-Length: 0\r\n\r\n")

    async def post(scheme: str) -> str:
        async with listening(proxy) as port:
            monkeypatch.setenv(f"{scheme}_proxy", f"http://me:p%40ss@127.0.0.1:{port}")
            return await Sender(f"{scheme}://hooks.example/a").post(Body)

    assert runner.run(post("http")) == ""
    assert heard[0].startswith(b"POST http://hooks.example/a HTTP/1.1\r\nHost: hooks.example\r\n")
    assert b"Proxy-Authorization: Basic bWU6cEBzcw==" in heard[0]
    assert runner.run(post("https")) == "the receiver can't be asked: the proxy answered 407"
    assert heard[1].startswith(b"CONNECT hooks.example:443 HTTP/1.1\r\n")


def test_the_proxys_tunnel_carries_tls_of_the_receiver(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("hooks.example").configure_cert(tls)
    heard = bytearray()

    def tunnel() -> None:
        with proxy.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with tls.wrap_socket(connection, server_side=True) as inside:
                while Body not in heard:
                    heard.extend(inside.recv(4096))
                inside.sendall(OK)

    with socket.create_server(("127.0.0.1", 0)) as proxy, authority.cert_pem.tempfile() as trusted:
        thread = threading.Thread(target=tunnel)
        thread.start()
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setenv("SSL_CERT_FILE", trusted)
        assert runner.run(Sender("https://hooks.example/a").post(Body)) == ""
        thread.join()
    assert heard.startswith(b"POST /a HTTP/1.1\r\nHost: hooks.example\r\n")


def test_after_any_answer_the_webhook_goes_on(runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechanicd.dashboard._webhook.FIRST_PAUSE", 0.001)
    bad = [b"garbage\r\n\r\n", b"", b"HTTP/1.1 200 \x00\r\n\r\n", b"HTTP/1.1 302 Found\r\nLocation: file:///etc\r\n\r\n"]
    heard: list[bytes] = []
    answers = [*bad, OK] * 3

    async def run() -> None:
        all_heard = asyncio.Event()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            heard.append(await reader.read(4096))
            writer.write(answers[len(heard) - 1])
            if len(heard) == len(answers):
                all_heard.set()

        async with listening(answer) as port:
            webhook = Webhook(f"http://127.0.0.1:{port}/")
            sending = asyncio.create_task(webhook.run())
            for name in ("a", "b"):
                need = {"kind": "stuck", "message": "", "step": 1}
                webhook.look([{"name": name, "status": "running", "step": 1, "S": 1.0, "labels": {}, "needs": [need]}])
            async with asyncio.timeout(20):
                await all_heard.wait()
            assert not sending.done()
            sending.cancel()

    runner.run(run())
    told = [json.loads(heard[i]) for i in range(len(bad), len(heard), len(bad) + 1)]
    assert [(event["event"], event["run"]) for event in told] == [("began", "a"), ("began", "b"), ("ended", "a")]
