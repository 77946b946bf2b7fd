"""The target of every route of the page: its application without a socket, over a store with runs, as any client may ask it."""

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from functools import cache
from random import Random
from time import process_time
from typing import Any, Final
from urllib.parse import quote, urlencode

from starlette.routing import Mount, Route

from mechanicd import access
from mechanicd.dashboard._app import Child, make_app
from mechanicd.dashboard._config import PageConfig
from tests.fuzz import mutation, stored
from tests.fuzz.harness import AtFault, Meter, Target, run
from tests.fuzz.parsers import ACCEPTS, COUNTS, FILTER_WORDS, FILTERS, make_body, make_query

REQUESTS: Final = 100
"""In one sequence: they share a process of the page."""
RUNS: Final = ("projects/p/runs/r1", "projects/p/runs/r2", "projects/p/runs/none")
_NO_HEADER: Final = re.compile(rb"[\x00\n\r\f\v]")
"""What h11 takes in no header."""
_WHOLE_ANSWERS: Final = 2**20


TOKEN, _KEPT = access.create("", access.Role.ADMIN, 1)
OTHER, _ = access.create("", access.Role.ADMIN, 1)
SECRET_OF_RUNS: Final = b"p/runs/r1"
"""What is told of the runs to those alone who have a token."""


@cache
def _config() -> PageConfig:
    path = stored.folder() / "page.db"
    path.write_bytes(stored.template())
    return PageConfig(
        store=f"sqlite:///{path}", grpc=("127.0.0.1:1",), metrics_per_run=True, local=_KEPT, proxies=("10.0.0.0/8",)
    )


def _routes(app: Any) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each route that the application has, and its methods."""
    for route in app.routes:
        if isinstance(route, Mount):
            yield f"{route.path}/x.js", ("GET",)
        elif isinstance(route, Route):
            yield route.path, tuple(sorted(route.methods or ()))
        else:
            raise AssertionError(f"a route of a kind that no target asks: {route!r}")


def _path(rng: Random, path: str) -> str:
    return path if rng.random() < 0.93 else mutation.text(rng, (path,), ("/", "..", "%2e", "//", "\\", "/api/v1/"))


def _query(rng: Random) -> bytes:
    given = make_query(rng) if rng.random() < 0.6 else {}
    for key, values in (("name", RUNS), ("run", RUNS), ("filter", FILTERS), ("project", ("p", "")), ("cursor", ("0.0", ""))):
        if rng.random() < 0.5:
            given[key] = rng.choice(values) if rng.random() < 0.8 else mutation.text(rng, values, FILTER_WORDS)
    pairs = [*given.items(), *(("run", rng.choice(RUNS)) for _ in range(rng.choice((0, 0, 2, 150))))]
    encoded = urlencode(pairs, errors="surrogatepass").encode()
    changed = mutation.data(rng, (encoded,)) if rng.random() < 0.1 else encoded
    return bytes(each for each in changed if 0x21 <= each <= 0x7E)  # h11 takes no other


def _body(rng: Random, path: str) -> bytes:
    if path.endswith("/login") and rng.random() < 0.7:
        return mutation.data(rng, (json.dumps({"token": rng.choice((TOKEN, OTHER))}).encode(),))
    return make_body(rng).replace(b'projects/p/runs/r"', b'projects/p/runs/r1"')


def _headers(rng: Random, length: int) -> list[tuple[bytes, bytes]]:
    texts = {
        "host": ("127.0.0.1:8080", "localhost", "[::1]:1", "evil.example", ""),
        "authorization": (f"Bearer {TOKEN}", f"Bearer {OTHER}", "Basic eDp5", f"Bearer {TOKEN} {OTHER}", ""),
        "accept": ACCEPTS,
        "last-event-id": ("0.0", "x.1", "9" * 40, ""),
        "content-type": ("application/json", "text/plain", "application/json; charset=x"),
        "accept-encoding": ("gzip", ""),
        "if-none-match": ('"x"', "*"),
        "range": ("bytes=0-1", "bytes=-", "bytes=9-1,2-3", "lines=1"),
        "origin": ("http://evil.example", "null"),
        "cookie": ("mechanicd-8080=x; a", "=;=;", f"mechanicd-8080={TOKEN}"),
        "x-forwarded-user": ("me", "", "x" * 200),
        "sec-fetch-site": ("cross-site", "same-origin"),
        "x-forwarded-for": ("1.2.3.4, ::1",),
    }
    found = [(b"content-length", str(length).encode())]
    for name, values in texts.items():
        usual = name in ("host", "authorization", "content-type")
        if rng.random() < (0.95 if usual else 0.1):
            plain = rng.random() < (0.95 if usual else 0.6)
            value = values[0] if plain and usual else mutation.text(rng, values, (",", ";", "="))
            found.append((name.encode(), _NO_HEADER.sub(b" ", value.encode("latin-1", "replace"))))
    return found


class Sequence:
    """Requests that follow from a number, to one page."""

    def __init__(self, draw: int) -> None:
        self.draw = draw
        self.requests: list[str] = []

    def __repr__(self) -> str:
        return "\n".join(reversed(self.requests))

    async def play(self, meter: Meter) -> None:
        """Sends them."""
        rng = Random(self.draw)
        failures: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
        async with Child(_config()) as child:
            child.told({**COUNTS, "clock": child.clock.offset or 0, "trouble": ""})
            app = make_app(child)
            routes = list(_routes(app))
            for _ in range(REQUESTS):
                path, methods = rng.choice(routes)
                body = _body(rng, path) if "POST" in methods or rng.random() < 0.1 else b""
                scope = {
                    "type": "http",
                    "asgi": {"version": "3.0"},
                    "http_version": "1.1",
                    "scheme": "http",
                    "root_path": "",
                    "method": rng.choice(methods) if rng.random() < 0.95 else rng.choice(("PUT", "OPTIONS", "get", "X")),
                    "path": (asked := mutation.unicode(_path(rng, path))),
                    "raw_path": quote(asked).encode(),
                    "query_string": _query(rng),
                    "headers": _headers(rng, len(body)),
                    "client": ("127.0.0.1", 1),
                    "server": ("127.0.0.1", 8080),
                }
                known = any(TOKEN.encode() in value for _, value in scope["headers"])
                self.requests.append(f"{scope['method']} {asked} {scope['query_string']!r} {scope['headers']} {body[:300]!r}")
                begun = process_time()
                status, reason, content = await _asked(app, scope, body)
                meter.add(process_time() - begun, f"{status} {reason}".strip())
                assert known or SECRET_OF_RUNS not in content or status >= 400, "runs are shown to nobody"
                if failures:
                    raise AtFault(f"forgotten: {failures[0]}")
            child.end()


async def _asked(app: Any, scope: dict[str, Any], body: bytes) -> tuple[int, str, bytes]:
    """The status of an answer, the reason of a refusal, and what came. Whoever asks for a stream leaves soon."""
    parts = [body[: len(body) // 2], body[len(body) // 2 :]]
    started: dict[str, Any] = {}
    content, left = bytearray(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        if parts:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert not started
            started.update(message)
        else:
            content.extend(message.get("body", b""))
            if len(content) > _WHOLE_ANSWERS or (message.get("more_body") and b"data: " in content):
                left.set()

    answering = asyncio.create_task(app(scope, receive, send))
    try:
        await answering
    finally:
        answering.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await answering
    status, headers = started["status"], dict(started["headers"])
    for name, value in headers.items():
        assert b"\n" not in name + value
        assert b"\r" not in name + value
    said = ""
    if headers.get(b"content-type") == b"application/json" and not left.is_set():
        answer = json.loads(bytes(content) or b"null")
        if status >= 400 and isinstance(answer, dict) and "error" in answer:
            said = answer["error"]["reason"]
            assert said.isascii()
            assert said.isupper()
    assert status < 500, (status, bytes(content[:300]))
    return status, said, bytes(content)


def _take(sequence: Sequence, meter: Meter) -> None:
    run(sequence.play(meter))


TARGETS = (
    Target(
        name="page",
        make=lambda rng: Sequence(rng.getrandbits(60)),
        take=_take,
        covers=(make_app,),
        rounds=600,
        quick=1,
        inputs=REQUESTS,
    ),
)
