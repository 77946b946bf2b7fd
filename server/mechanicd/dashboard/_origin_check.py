"""A check of every request against other sites: none may read this page under a name of its own that resolves to it (DNS
rebinding), nor send requests with a visitor's cookie."""

import socket
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mechanicd.dashboard._door import is_open
from mechanicd.dashboard._errors import Json, error_body

_HERE: Final = ("localhost", "127.0.0.1", "[::1]")
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",  # but for the files that say otherwise
}


_BROWSERS: Final = ("origin", "sec-fetch-site", "sec-fetch-mode", "cookie")


class Guard:
    """Refuses what another site sends through a visitor's browser, and adds headers that forbid the browser what the page
    doesn't need.

    Args:
        hosts: returns names of the page besides those of this machine.
    """

    def __init__(self, app: ASGIApp, hosts: Callable[[], Iterable[str]]) -> None:
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

        answer = _refusal(scope, {name.lower() for name in self._hosts()}) or self._app
        await answer(scope, receive, send_with)


def _refusal(scope: Scope, names: set[str]) -> Json | None:
    """The answer, if another site may be behind a request."""
    headers, reads = Headers(scope=scope), scope["method"] in ("GET", "HEAD")
    host = headers.get("host", "").lower()
    if not _is_here(scope, host, names):
        message = (
            f"the Host header is {host!r}, which is no name of this page; open it as localhost or by its address, or start "
            "mechanicd with --page-host NAME for each name that it has, also behind a proxy"
        )
        return Json(error_body("FOREIGN_HOST", message), 403)
    if reads and is_open(scope["path"]):
        return None  # anybody may link to the page; there is nothing to read in these
    site, origin = headers.get("sec-fetch-site", "none"), headers.get("origin")
    if site not in ("same-origin", "none") or (origin is not None and not _is_own(origin, host, names)):
        message = "another site asks this through your browser; open the page itself"
        return Json(error_body("FOREIGN_SITE", message), 403)
    ours = scope["path"].endswith(("/login", "/logout"))
    if not reads and (ours or any(name in headers for name in _BROWSERS)) and not _is_json(headers.get("content-type", "")):
        message = "send JSON, with the header `Content-Type: application/json`"
        return Json(error_body("NOT_JSON", message), 415)
    return None


def _is_here(scope: MutableMapping[str, Any], host: str, names: set[str]) -> bool:
    name = _name(host)
    server = scope.get("server")
    if name in _HERE or name in names or name == socket.gethostname().lower():
        return True
    return server is not None and name.strip("[]") == server[0]


def _is_own(origin: str, host: str, names: set[str]) -> bool:
    """Whether an Origin header is the page's own: of the host that was asked, or of a name of ours, if a proxy changes that."""
    try:
        place = urlsplit(origin.lower()).netloc
    except ValueError:
        return False
    return bool(place) and (place == host or _name(place) in names)


def _is_json(media_type: str) -> bool:
    return media_type.partition(";")[0].strip().lower() == "application/json"


def _name(host: str) -> str:
    """A host without its port."""
    return host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
