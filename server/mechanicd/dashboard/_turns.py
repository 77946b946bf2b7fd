"""One heavy query of a viewer at a time, and none for a viewer who has gone."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

_GONE: Final = 499
"""What nginx logs for a client that did not wait. Nobody receives it."""


class Turns:
    """Whose turn it is: the requests of one viewer come one after the other, those of several by turns."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, list[Request]]] = {}

    async def take(self, request: Request, answer: Callable[[], Awaitable[Response]]) -> Response:
        """The answer, once it is this viewer's turn. If the viewer leaves before, it is given up, wherever it is.

        Args:
            request: its body must have been read.
        """
        working = asyncio.create_task(self._in_turn(request, answer))
        leaving = asyncio.create_task(_left(request))
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            return Response(status_code=_GONE)
        finally:
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)

    async def _in_turn(self, request: Request, answer: Callable[[], Awaitable[Response]]) -> Response:
        async with self._turn(request):
            return await answer()

    @contextlib.asynccontextmanager
    async def _turn(self, request: Request) -> AsyncIterator[None]:
        host = request.client.host if request.client else ""
        viewer = request.scope.get("state", {}).get("viewer", host)  # `Doorkeeper` knows who it is
        lock, waiting = self._locks.setdefault(viewer, (asyncio.Lock(), []))
        waiting.append(request)
        try:
            async with lock:
                yield
        finally:
            waiting.remove(request)
            if not waiting:
                del self._locks[viewer]


async def _left(request: Request) -> None:
    with contextlib.suppress(ClientDisconnect):
        while (await request.receive())["type"] != "http.disconnect":
            pass
