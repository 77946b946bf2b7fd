"""A check of every request against DNS rebinding: a foreign page must not read this one under a name that resolves to it."""

from collections.abc import MutableMapping
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mechanicd.dashboard._errors import Json, error_body

_HERE: Final = ("localhost", "127.0.0.1", "[::1]")
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Guard:
    """Refuses foreign hosts, and adds headers that forbid the browser what the page doesn't need.

    Args:
        hosts: whether the Host header must name this machine.
    """

    def __init__(self, app: ASGIApp, hosts: bool) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        host = Headers(scope=scope).get("host", "")
        if self._hosts and not _is_here(scope, host):
            message = (
                f"the Host header is {host!r}, but this page is bound to this machine alone; open it as localhost, or let "
                "the proxy in front of it send the page's own address. To serve other machines, start mechanicd with "
                "--http ADDRESS:PORT --insecure"
            )
            await Json(error_body("FOREIGN_HOST", message), 403)(scope, receive, send_with)
            return
        await self._app(scope, receive, send_with)


def _is_here(scope: MutableMapping[str, Any], host: str) -> bool:
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    server = scope.get("server")
    return name in _HERE or (server is not None and name.strip("[]") == server[0])
