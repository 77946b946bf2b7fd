"""Who asks: every request has a principal before its route sees it, but for a few that are named here."""

import ipaddress
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from mechanicd.access import ANYONE, Denied, Principal, bearer
from mechanicd.dashboard._config import PageConfig
from mechanicd.dashboard._errors import denied, unavailable
from mechanicd.dashboard._keys import Keys
from mechanicd.dashboard._sessions import Sessions
from mechanicd.store import StoreError

API: Final = "/api/v1"
_OPEN: Final = ("/", "/healthz", f"{API}/login", f"{API}/logout")
_LONGEST_NAME: Final = 128
_NOBODY: Final = (
    "this page asks who you are: sign in, or send the header `Authorization: Bearer mech_…` with a token; `mechanicd tokens "
    "local` prints yours where you started the server, `mechanicd tokens create` makes others"
)


def is_open(path: str) -> bool:
    """Whether a path is for everyone: the page without its data, whether the server is well, and the way in."""
    return path in _OPEN or path.startswith("/assets/")


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks.

    Attributes:
        principal: what they may see.
        again: checks anew, for an answer that lasts. Raises Denied.
        signed_in: whether it is by a session of the page.
    """

    principal: Principal
    again: Callable[[], Principal]
    signed_in: bool = False

    @property
    def stays(self) -> bool:
        """Whether they are still who they were."""
        try:
            return self.again() == self.principal
        except Denied:
            return False


class Door:
    """Tells who asks: by a token, a session, what a trusted proxy says, or a client's certificate, in this order.

    Args:
        keys: the tokens.
        sessions: those who signed in.
    """

    def __init__(self, config: PageConfig, keys: Keys, sessions: Sessions) -> None:
        self._everyone = config.everyone
        self._keys = keys
        self._sessions = sessions
        self._proxies = [ipaddress.ip_network(cidr) for cidr in config.proxies]
        self._proxy_role, self._proxy_project = config.proxy_role, config.proxy_project
        self._roles = {subject: (role, project) for subject, role, project in config.client_roles}

    async def enter(self, asking: HTTPConnection) -> Visitor:
        """Who asks.

        Raises:
            Denied: UNAUTHENTICATED.
            StoreUnavailable: the token can't be checked now.
        """
        if self._everyone:
            return _constant(ANYONE)
        user = self._proxy_user(asking)
        given = asking.headers.getlist("authorization")
        text = bearer(given[0] if given else None) if len(given) < 2 else ""  # two are none: one may be somebody else's
        if text is not None and (user is None or text.startswith("mech_")):
            principal = await self._keys.check(text)
            return Visitor(principal, lambda: self._keys.check_known(text))
        session = cookie(asking)
        ended = None
        if session is not None:
            try:
                return Visitor(self._by_session(session), lambda: self._by_session(session), signed_in=True)
            except Denied as error:
                ended = error
        if user is not None:
            return _constant(Principal(f"user:{user}", self._proxy_role, self._proxy_project))
        for subject in subjects(asking.scope.get("state", {}).get("peercert")):
            if subject in self._roles:
                return _constant(Principal(f"cert:{subject}", *self._roles[subject]))
        raise ended or Denied("UNAUTHENTICATED", _NOBODY)

    def host(self, asking: HTTPConnection) -> str:
        """From where somebody asks, as a trusted proxy says, if there is one."""
        host = asking.client.host if asking.client else ""
        said = asking.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
        return said if said and self._is_proxy(host) else host

    def _by_session(self, session: str) -> Principal:
        token = self._sessions.token(session, monotonic())
        if token is None:
            raise Denied("UNAUTHENTICATED", "the session has ended; sign in again")
        return self._keys.check_known(token)

    def _proxy_user(self, asking: HTTPConnection) -> str | None:
        """Whom a trusted proxy names. Two names are none: one may be the client's own."""
        if asking.client is None or not self._is_proxy(asking.client.host):
            return None
        names = asking.headers.getlist("x-forwarded-user")
        good = len(names) == 1 and 0 < len(names[0]) <= _LONGEST_NAME and names[0].isascii() and names[0].isprintable()
        return names[0] if good else None

    def _is_proxy(self, host: str) -> bool:
        if not self._proxies:
            return False
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._proxies)


class Doorkeeper:
    """Lets no request without a principal to a route that is not open. A route finds them in `visitor(request)`.

    Args:
        door: returns what tells who asks.
    """

    def __init__(self, app: ASGIApp, door: Callable[[], Door]) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        door, asking, state = self._door(), HTTPConnection(scope), scope.setdefault("state", {})
        try:
            state["visitor"] = found = await door.enter(asking)
            state["viewer"] = f"{found.principal.id} {door.host(asking)}"
        except Denied as error:
            if not is_open(scope["path"]):
                await denied(error)(scope, receive, send)
                return
        except StoreError as error:
            if not is_open(scope["path"]):
                await unavailable(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def visitor(asking: HTTPConnection) -> Visitor:
    """Who asks on a route that is not open."""
    found: Visitor = asking.scope["state"]["visitor"]
    return found


def cookie_names(asking: HTTPConnection) -> tuple[str, str]:
    """The name of the session's cookie over TLS, and without. A browser sends cookies to every port of a host."""
    name = f"mechanicd-{(asking.scope.get('server') or ('', 0))[1]}"
    return f"__Host-{name}", name


def cookie(asking: HTTPConnection) -> str | None:
    """The session's name that came with a request."""
    safe, plain = cookie_names(asking)
    found = asking.cookies.get(safe)
    if found is None and asking.url.scheme != "https":
        found = asking.cookies.get(plain)
    return found


def subjects(certificate: Mapping[str, Any] | None) -> Iterable[str]:
    """What a client's certificate, as Python's `ssl` reads it, says of whose it is: common names, then alternative names."""
    if not certificate:
        return
    named: Sequence[Any] = certificate.get("subject", ())
    yield from (value for part in named for key, value in part if key == "commonName")
    yield from (value for _, value in certificate.get("subjectAltName", ()) if isinstance(value, str))


def _constant(principal: Principal) -> Visitor:
    return Visitor(principal, lambda: principal)
