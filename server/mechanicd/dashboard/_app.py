"""The page's routes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from importlib.metadata import version
from time import monotonic
from types import TracebackType
from typing import Any, Final, Self

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from mechanicd.access import Keyring, Principal, Role
from mechanicd.dashboard import _static_files
from mechanicd.dashboard._config import PageConfig
from mechanicd.dashboard._curves import Curves, Named
from mechanicd.dashboard._door import API, Door, Doorkeeper, visitor
from mechanicd.dashboard._errors import HANDLERS, ApiError, Json, encode
from mechanicd.dashboard._export import MEDIA_TYPES, export
from mechanicd.dashboard._keys import Keys
from mechanicd.dashboard._login import Login, told
from mechanicd.dashboard._metrics import Facts, text
from mechanicd.dashboard._origin_check import Guard
from mechanicd.dashboard._poller import STALE_SECONDS, Watch
from mechanicd.dashboard._reader import Reader
from mechanicd.dashboard._request import MOST_SPARKLINES, BandsRequest, ExportRequest, HeatRequest, SeriesRequest
from mechanicd.dashboard._run_detail import detail
from mechanicd.dashboard._sessions import Sessions
from mechanicd.dashboard._sse import Live
from mechanicd.dashboard._table import Table
from mechanicd.dashboard._turns import Turns
from mechanicd.dashboard._webhook import tell
from mechanicd.runs import RunRow, parse_filter
from mechanicd.store import Clock, Store, without_password
from mechanicd.v1 import names

_MOST_BYTES: Final = 2**20


class Child:
    """The parts of the page's process: the table of runs and its poller, the curves, the live streams. A context that polls."""

    def __init__(self, config: PageConfig) -> None:
        self.config = config
        self._counts: Mapping[str, Any] = {}
        self._counted = monotonic()
        self._readers = Reader(config.store, "watch"), Reader(config.store, "query")
        self.clock = Clock(config.clock)
        self.watch = Watch(self._readers[0], Table(config.silence), self.clock)
        self.query = self._readers[1].call
        self.table = self.watch.table
        self.curves = Curves()
        self.turns = Turns()
        self.live = Live(self.watch, lambda project: self.whole("archived : *", project))
        self.keys = Keys(self._readers[0], Keyring(config.local, everyone=config.everyone), self.clock)
        sessions = Sessions()
        self.door = Door(config, self.keys, sessions)
        self.login = Login(self.keys, sessions, self.door)
        self._version = version("mechanicd")
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks.append(asyncio.create_task(self.watch.run(), name="watch"))
        if not self.config.everyone:
            self._tasks.append(asyncio.create_task(self.keys.run(), name="keys"))
        if self.config.webhook:
            self._tasks.append(asyncio.create_task(tell(self.config, self.watch), name="webhook"))
        await self.watch.begun()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for reader in self._readers:
            reader.close()

    @property
    def trouble(self) -> str:
        """Why what is shown may be out of date, in words; "" if all is well. As the health of the serving process has it."""
        age = monotonic() - self._counted
        if self._counts and age > STALE_SECONDS:
            return self.watch.trouble or f"the server has not reported for {age:.0f} s"
        return str(self._counts.get("trouble", "")) or self.watch.trouble

    def told(self, counts: Mapping[str, Any]) -> None:
        """Takes the new counts of the serving process."""
        self._counts, self._counted = counts, monotonic()
        self.clock.start(counts["clock"], 0)

    def facts(self, project: str) -> Facts:
        """The facts for /metrics: of the runs in a project; "": in all."""
        return Facts(
            version=self._version,
            counts=self._counts,
            age=monotonic() - self._counted,
            readable=not self.watch.trouble,  # whether the serving process can write is in its counts
            items=[item for item in self.table.items() if project in ("", item["project"])],
            per_run=self.config.metrics_per_run,
        )

    def end(self) -> None:
        """Ends the live streams, so that the process can end."""
        self.live.stop()

    def whole(self, filter_: str = "", project: str = "") -> dict[str, Any]:
        """The answer to GET /runs: of the runs in a project; "": in all. Raises FilterError."""
        matches = parse_filter(filter_)
        return {
            "server": {
                "version": self._version,
                "started": self.config.started // 10**6,
                "store": without_password(self.config.store),
                "silence": {"factor": self.config.silence.factor, "seconds": self.config.silence.seconds},
                "trouble": self.trouble,
            },
            "now": self.clock.now() // 10**6,
            "cursor": self.live.cursor,
            "runs": [item for row, needs, item in self.table.seen() if project in ("", row.project) and matches(row, needs)],
        }

    def named(self, runs: Sequence[str], principal: Principal) -> list[Named]:
        """The rows of runs by their full names; None if a run does not exist. Raises Denied PERMISSION_DENIED."""
        return [(name, self._find(name, principal)) for name in runs]

    def row(self, name: str, principal: Principal) -> RunRow:
        """Raises ApiError RUN_NOT_FOUND, Denied PERMISSION_DENIED."""
        row = self._find(name, principal)
        if row is None:
            raise ApiError("RUN_NOT_FOUND", f"{name!r}: no such run; GET {API}/runs lists all runs")
        return row

    def _find(self, name: str, principal: Principal) -> RunRow | None:
        """Before it is known whether there is such a run, so that nobody learns of those that they may not see."""
        principal.require(Role.READ, _project(name))
        return self.table.row(name)


def make_app(child: Child) -> Starlette:
    """The ASGI application of the page."""

    async def queried(request: Request, make: Callable[[Store], bytes]) -> Response:
        async def answer() -> Response:
            return Json(await child.query(make))

        return await child.turns.take(request, answer)

    async def runs(request: Request) -> Response:
        query, principal = request.query_params, _reader(request)
        project = query.get("project") or principal.project
        principal.require(Role.READ, project or None)
        return Json(child.whole(query.get("filter", ""), project))

    async def events(request: Request) -> Response:
        cursor = request.headers.get("last-event-id") or request.query_params.get("cursor", "")
        headers = {"X-Accel-Buffering": "no"}
        return StreamingResponse(child.live.stream(cursor, visitor(request)), media_type="text/event-stream", headers=headers)

    async def series(request: Request) -> Response:
        asked = SeriesRequest.of(await _body(request))
        found = child.named(asked.runs, _reader(request))
        return await queried(request, lambda store: encode(child.curves.series(store, found, asked)))

    async def sparklines(request: Request) -> Response:
        asked = request.query_params.getlist("run")
        if len(asked) > MOST_SPARKLINES:
            raise ApiError("MALFORMED_REQUEST", f"got {len(asked)} runs; ask for at most {MOST_SPARKLINES} at a time")
        found = child.named(list(dict.fromkeys(asked)), _reader(request))
        return await queried(request, lambda store: encode(child.curves.sparklines(store, found)))

    async def bands(request: Request) -> Response:
        asked = BandsRequest.of(await _body(request))
        found = [(label, child.named(runs, _reader(request))) for label, runs in asked.groups]
        return await queried(request, lambda store: encode(child.curves.bands(store, found, asked)))

    async def heatmap(request: Request) -> Response:
        asked = HeatRequest.of(request.query_params)
        row = child.row(asked.run, _reader(request))
        return await queried(request, lambda store: encode(child.curves.heat(store, row, asked)))

    async def run(request: Request) -> Response:
        row = child.row(request.query_params.get("name", ""), _reader(request))
        item, targets = child.table.item(row.id), child.config.grpc
        return await queried(request, lambda store: encode(detail(store, child.curves, row, item, targets)))

    async def export_(request: Request) -> Response:
        asked = ExportRequest.of(request.query_params)
        row = child.row(asked.run, _reader(request))
        if asked.branch > row.rewinds:
            raise ApiError("INVALID_RANGE", f"branch {asked.branch} does not exist; choose one from 0 to {row.rewinds}")
        name = f"{row.project}_{row.run}.{asked.format}".replace("/", "_")
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        portions = export(Reader(child.config.store, "export"), row, asked)
        first = await anext(portions, "")  # so that a StoreError comes before the answer has begun
        return StreamingResponse(_chained(first, portions), media_type=MEDIA_TYPES[asked.format], headers=headers)

    async def login(request: Request) -> Response:
        return await child.login.sign_in(request, await _body(request))

    async def logout(request: Request) -> Response:
        return await child.login.sign_out(request)

    async def session(request: Request) -> Response:
        found = visitor(request)
        return Json(told(found.principal, found.signed_in))

    async def healthz(request: Request) -> Response:
        trouble, known = child.trouble, "visitor" in request.scope["state"]
        status = {"status": "unavailable" if trouble else "ok"}
        return Json({**status, "message": trouble} if known else status, 503 if trouble else 200)

    async def metrics(request: Request) -> Response:
        content, media_type = text(child.facts(_reader(request).project), request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": media_type})

    api = {
        "runs": runs,
        "events": events,
        "sparklines": sparklines,
        "run": run,
        "heatmap": heatmap,
        "export": export_,
        "session": session,
    }
    posts = {"series": series, "bands": bands, "login": login, "logout": logout}
    return Starlette(
        routes=[
            *(Route(f"{API}/{name}", endpoint) for name, endpoint in api.items()),
            *(Route(f"{API}/{name}", endpoint, methods=["POST"]) for name, endpoint in posts.items()),
            Route("/healthz", healthz),
            Route("/metrics", metrics),
            *_static_files.routes(),
        ],
        middleware=[Middleware(Guard, hosts=lambda: child.config.hosts), Middleware(Doorkeeper, door=lambda: child.door)],
        exception_handlers=HANDLERS,
    )


def _reader(request: Request) -> Principal:
    return visitor(request).principal


def _project(name: str) -> str | None:
    """The project that a run's full name says; None for other texts."""
    try:
        return names.parse_run(name).project
    except names.MalformedName:
        return None


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            raise ApiError("MALFORMED_REQUEST", f"the body is larger than {_MOST_BYTES} bytes; ask for fewer runs")
    return bytes(body)


async def _chained(first: str, rest: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for portion in rest:
        yield portion
