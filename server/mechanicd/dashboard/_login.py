"""Signing in and out: a token typed once becomes a cookie that scripts can't read."""

import logging
from collections import Counter
from time import monotonic
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from mechanicd.access import ANYONE, Denied, Principal, parse
from mechanicd.dashboard._door import Door, cookie, cookie_names
from mechanicd.dashboard._errors import ApiError, Json
from mechanicd.dashboard._keys import Keys
from mechanicd.dashboard._request import token_of
from mechanicd.dashboard._sessions import SECONDS, Sessions

audit = logging.getLogger("mechanicd.audit")

ATTEMPTS_OF_HOST: Final = 10
ATTEMPTS: Final = 100
"""A second, right ones as well. No one can guess 256 bits; this is for those who type theirs, and for the log's sake."""
MOST_OF_STRANGERS: Final = 10
"""Lines in a second about refused attempts; the others are counted."""


class Login:
    """The routes /login and /logout."""

    def __init__(self, keys: Keys, sessions: Sessions, door: Door) -> None:
        self._keys = keys
        self._sessions = sessions
        self._door = door
        self._second = 0
        self._attempts: Counter[str] = Counter()
        self._refused = 0

    async def sign_in(self, request: Request, body: bytes) -> Response:
        """Raises ApiError TOO_MANY_ATTEMPTS, MALFORMED_REQUEST; Denied; StoreUnavailable."""
        host = self._door.host(request)
        self._count(host)
        token = token_of(body)
        named = parse(token)
        try:
            principal = await self._keys.check(token)
        except Denied:
            self._refused += 1
            if self._refused <= MOST_OF_STRANGERS:
                audit.warning("token=%s method=login run=- result=refused from=%s", named[0] if named else "-", _plain(host))
            raise
        if principal is ANYONE:  # nobody needs to sign in
            return Json(told(principal, False))
        if (before := cookie(request)) is not None:
            self._sessions.end(before)
        session = self._sessions.begin(token, principal.id, monotonic())
        audit.info("token=%s method=login run=- result=ok from=%s", principal.id, _plain(host))
        return _with_cookie(Json(told(principal, True)), request, session, SECONDS)

    async def sign_out(self, request: Request) -> Response:
        """Always works, and then nobody is signed in."""
        session = cookie(request)
        owner = None if session is None else self._sessions.end(session)
        if owner is not None:
            audit.info("token=%s method=logout run=- result=ok from=%s", owner, _plain(self._door.host(request)))
        return _with_cookie(Json({}), request, "", 0)

    def _count(self, host: str) -> None:
        second = int(monotonic())
        if second != self._second:
            if self._refused > MOST_OF_STRANGERS:
                audit.warning("%d more attempts to sign in were refused", self._refused - MOST_OF_STRANGERS)
            self._second, self._attempts, self._refused = second, Counter(), 0
        if self._attempts[host] >= ATTEMPTS_OF_HOST or self._attempts.total() >= ATTEMPTS:
            raise ApiError("TOO_MANY_ATTEMPTS", "too many attempts to sign in; wait for a second")
        self._attempts[host] += 1


def told(principal: Principal, signed_in: bool) -> dict[str, Any]:
    """A principal as JSON."""
    return {"id": principal.id, "role": principal.role, "project": principal.project, "signed_in": signed_in}


def _with_cookie(answer: Response, request: Request, value: str, seconds: int) -> Response:
    # Behind a proxy that ends TLS, the browser's own Origin header says that it speaks TLS.
    secure = request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
    name = cookie_names(request)[0 if secure else 1]
    answer.set_cookie(name, value, max_age=seconds, path="/", secure=secure, httponly=True, samesite="strict")
    return answer


def _plain(host: str) -> str:
    """A host for a line of the log: a proxy may have copied anything from a client."""
    return host if host.isascii() and host.isprintable() and " " not in host and len(host) <= 64 else "-"
