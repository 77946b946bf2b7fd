"""The page's limits: unfinished requests, very many connections, heavy queries and hostile bodies harm no other viewer."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from mechanicd.access import ANYONE, Principal, Role
from mechanicd.dashboard import _connections, _sse
from mechanicd.dashboard._door import Visitor
from mechanicd.dashboard._errors import ApiError
from mechanicd.dashboard._reader import Reader
from mechanicd.dashboard._sse import Live
from mechanicd.dashboard._turns import Turns
from mechanicd.store import StoreUnavailable
from tests.service.test_limits import limit

HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
UNFINISHED = {
    "nothing": [],
    "half a head": [HEAD],
    "half a body": [b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc"],
    "half a head after a request": [HEAD + b"\r\n", HEAD],
}


async def answering(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body, and then takes its time."""
    while (await receive()).get("more_body"):
        pass
    await asyncio.sleep(0.6 if scope["path"] == "/slow" else 0.0)
    await PlainTextResponse("well")(scope, receive, send)


def test_a_request_that_does_not_come_to_its_end_is_given_up_and_a_slow_answer_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_connections, "REQUEST_SECONDS", 0.1)

    async def ends(port: int, parts: list[bytes]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for part in parts[:-1]:
            writer.write(part)
            await reader.readuntil(b"well")
        writer.writelines(parts[-1:])
        assert await reader.read() == b""
        writer.close()

    async def run() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        settings = uvicorn.Config(answering, lifespan="off", log_config=None, http=_connections.Connection)
        server = uvicorn.Server(settings)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        async with asyncio.timeout(10), httpx.AsyncClient() as client:
            slow = asyncio.create_task(client.get(f"http://127.0.0.1:{port}/slow"))
            await asyncio.gather(*(ends(port, parts) for parts in UNFINISHED.values()))
            assert (await slow).text == "well"
        server.should_exit = True
        await serving

    asyncio.run(run())


def test_an_answer_that_nobody_reads_is_given_up_and_a_slow_reader_gets_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limit("seconds in which a viewer reads nothing") == 2 * _connections.REQUEST_SECONDS
    monkeypatch.setattr(
        _connections, "REQUEST_SECONDS", 1.0
    )  # both read in this process, which may have to wait for a processor
    whole = 16 * 2**20

    async def large(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(16):
            await send({"type": "http.response.body", "body": bytes(whole // 16), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        settings = uvicorn.Config(large, lifespan="off", log_config=None, http=_connections.Connection)
        server = uvicorn.Server(settings)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        async with asyncio.timeout(60):
            other, unread = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
            reader, slow = await asyncio.open_connection("127.0.0.1", port, limit=2**16)
            for each in (unread, slow):
                each.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            got = 0
            while some := await reader.read(2**16):
                got += len(some)
                await asyncio.sleep(0.012)
            assert got > whole
            left = bytearray()
            with contextlib.suppress(ConnectionError):
                while some := await other.read(2**16):
                    left += some
            assert 0 < len(left) < whole
            for each in (unread, slow):
                each.close()
        server.should_exit = True
        await serving

    asyncio.run(run())


def test_connections_above_the_limit_are_told_and_the_page_is_there_again_when_they_have_gone(
    http: httpx.Client, wait_for: Callable[..., bool]
) -> None:
    host, port, most = http.base_url.host, http.base_url.port, limit("connections to the page")
    held = [socket.create_connection((host, port or 80), timeout=20) for _ in range(most)]
    assert wait_for(lambda: http.get("/healthz").status_code == 503)
    for each in held:
        each.close()
    assert wait_for(lambda: http.get("/healthz").status_code == 200)


@pytest.mark.parametrize(
    "deep", [b'{"runs":%b%b}', b'{"runs":["a"],"x0":%b%b}', b"%b%b", b'{"runs":["a"],"series":{"a":%b%b}}']
)
def test_json_that_is_nested_deeply_is_refused_by_name(http: httpx.Client, deep: bytes) -> None:
    for depth in (100, 1000, 100_000):
        answer = http.post("/api/v1/series", content=deep % (b"[" * depth, b"]" * depth))
        assert (answer.status_code, answer.json()["error"]["reason"]) == (400, "MALFORMED_REQUEST")


class Viewer:
    """Requests of one host, and a way to leave."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.left = asyncio.Event()

    def request(self) -> Request:
        async def receive() -> dict[str, str]:
            await self.left.wait()
            return {"type": "http.disconnect"}

        return Request({"type": "http", "client": (self.host, 1)}, receive)


def test_a_viewer_has_one_heavy_query_at_a_time_and_none_once_gone() -> None:
    begun: list[str] = []
    ended: list[str] = []

    async def run() -> None:
        turns, go = Turns(), asyncio.Event()

        def query(name: str) -> Callable[[], Awaitable[Response]]:
            async def answer() -> Response:
                begun.append(name)
                await go.wait()
                ended.append(name)
                return PlainTextResponse(name)

            return answer

        many, other, leaver = Viewer("10.0.0.1"), Viewer("10.0.0.2"), Viewer("10.0.0.3")
        asked = [
            (many, "1"),
            (many, "2"),
            (leaver, "leaving"),
            (leaver, "second"),
            (many, "3"),
            (other, "x"),
        ]
        tasks = [asyncio.create_task(turns.take(viewer.request(), query(name))) for viewer, name in asked]
        for _ in range(10):
            await asyncio.sleep(0)
        assert begun == ["1", "leaving", "x"]
        leaver.left.set()
        assert [(await task).status_code for task in tasks[2:4]] == [499, 499]
        go.set()
        assert [(await tasks[index]).body for index in (0, 1, 4, 5)] == [b"1", b"2", b"3", b"x"]
        assert ended == ["1", "x", "2", "3"]
        assert turns._locks == {}

    asyncio.run(run())


def test_a_query_that_is_given_up_is_broken_off_in_the_store(shared: Any) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + told() FROM n) SELECT count(*) FROM n"

    async def run() -> BaseException:
        loop, reader = asyncio.get_running_loop(), Reader(f"sqlite:///{shared.database}", "query")
        running, broken = asyncio.Event(), loop.create_future()

        def told() -> int:
            loop.call_soon_threadsafe(running.set)
            return 1

        def for_ever(store: Any) -> None:
            store._db.create_function("told", 0, told)
            try:
                with store.reading() as db:
                    db.execute(endless).fetchall()
            except BaseException as error:
                loop.call_soon_threadsafe(broken.set_result, error)

        async with asyncio.timeout(20):
            working = asyncio.create_task(reader.call(for_ever))
            await running.wait()
            working.cancel()
            error = await broken
            assert await reader.call(lambda store: store.pulse() is not None), "others go on"
        reader.close()
        return error

    assert isinstance(asyncio.run(run()), StoreUnavailable)


def test_the_live_views_of_one_token_leave_room_for_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    assert limit("live views of the page") == _sse.MOST_OF_VIEWER == _connections.MOST_CONNECTIONS // 2
    monkeypatch.setattr(_sse, "MOST_OF_VIEWER", 2)
    live = Live(SimpleNamespace(table=SimpleNamespace(now=1, oldest=0)), lambda project: {})  # type: ignore[arg-type]

    def view(principal: Principal) -> Any:
        return live.stream("", Visitor(principal, lambda: principal))

    async def run() -> None:
        greedy, other = Principal("greedy", Role.READ, "p"), Principal("other", Role.READ, "p")
        views = [view(greedy) for _ in range(2)]
        for each in views:
            await anext(each)
        with pytest.raises(ApiError, match="2 live views of greedy") as caught:
            view(greedy)
        assert (caught.value.reason, caught.value.status) == ("TOO_MANY_WATCHERS", 429)
        views += [view(other), *(view(ANYONE) for _ in range(3))]
        for each in views[2:]:
            await anext(each)
        for each in views:
            await each.aclose()
        assert await anext(view(greedy)), "there is room again"

    asyncio.run(run())
