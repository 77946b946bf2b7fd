"""Which server to talk to: one, a list of them, or all the addresses that a DNS name has.

Every replica over one store can serve every run, so a session that loses its server moves to the next. Runs are spread over
the servers by a hash of their names, and a run always tries the same one first.
"""

import contextlib
import ipaddress
import socket
import threading
import time
import zlib
from typing import Any, Final

from mechanicd.client import _address, _credentials, _token
from mechanicd.client._address import Address
from mechanicd.client._errors import MechanicdError, NotTrusted, ServerUnavailable
from mechanicd.client._transport import Transport

_CHANNEL_SECONDS: Final = 5.0
"""A channel is kept so long through errors."""
_OF_CONNECTION: Final = ("SERVER_UNREACHABLE", "RPC_FAILED", "NOT_IMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED")
"""Reasons that something else than a mechanicd gives: another connection may lead to one."""


class Targets:
    """The servers that a target names, with one channel to each that is used.

    Args:
        target: `HOST:PORT`, `https://HOST:PORT`, `unix:PATH`, or several of them joined by commas. A host name stands for all
            its addresses.

    Attributes:
        closed: whether `close` was called.

    Raises:
        InvalidArgument: INVALID_TARGET.
        NotTrusted: TLS_FILE_UNUSABLE.
    """

    def __init__(self, target: str) -> None:
        self.given = _address.parse(target)
        if any(map(_address.secure, self.given)):
            _credentials.read()  # what is wrong with the files is said before there is anything to lose
        self._open: dict[Address, Transport] = {}
        self._lock = threading.Lock()
        self.closed = False

    def addresses(self) -> list[Address]:
        """Every address, in the order given; host names are resolved again each time."""
        found: list[Address] = []
        for target in self.given:
            found += [address for address in _resolved(target) if address not in found]
        return found

    def check_token(self) -> None:
        """Looks whether the token, if there is one, may be sent to every address.

        Raises:
            Unauthenticated: TOKEN_FILE_UNUSABLE, TOKEN_MALFORMED, TOKEN_IN_CLEAR.
        """
        if _token.is_configured():
            for address in self.addresses():
                _token.header(address, _token.is_private(address, self._proxied(address)))

    def transport(self, address: Address) -> Transport:
        """The channel to an address."""
        with self._lock:
            if address not in self._open:
                self._open[address] = self._connect(address)
            return self._open[address]

    def _connect(self, address: Address) -> Transport:
        return Transport(address, self._proxied(address))

    def _proxied(self, address: Address) -> bool:
        # A host that was resolved here is not behind a proxy, whatever NO_PROXY says of its address.
        given = str(address)
        return given in self.given and _address.may_proxy(given)

    def renewed(self, stale: Transport, error: MechanicdError) -> Transport:
        """A channel with a connection of its own, to where `stale` leads, if the error may be one of its connection.

        The next calls of others take it, too. A connection that a NAT or a load balancer has dropped silently looks open for
        many minutes: so it is where nobody answered. And one may lead to what is no server any more, or wait for a greeting
        that never comes, while new ones reach the server: so a channel is never kept for long through errors. Or the files have
        changed by which servers are trusted. Whoever still uses `stale` keeps it; it is gone with its last user.
        """
        at_once = error.reason == "DEADLINE_EXCEEDED" or isinstance(error, NotTrusted)
        old = at_once or (error.reason in _OF_CONNECTION and time.monotonic() - stale.made > _CHANNEL_SECONDS)
        with self._lock:
            if old and not self.closed and self._open.get(stale.address) is stale:
                with contextlib.suppress(NotTrusted):  # the files are read again; the old channel may do until they are back
                    self._open[stale.address] = self._connect(stale.address)
            return self._open.get(stale.address, stale)

    def call(self, method: str, request: Any, timeout: float) -> Any:
        """Makes one unary call, to the first server that answers.

        Raises:
            MechanicdError: what the server refuses, or ServerUnavailable of the last server.
        """
        *others, last = self.addresses()
        for address in others:
            try:
                return self._call(address, method, request, timeout)
            except ServerUnavailable:
                continue
        return self._call(last, method, request, timeout)

    def _call(self, address: Address, method: str, request: Any, timeout: float) -> Any:
        transport = self.transport(address)
        try:
            return transport.call(method, request, timeout)
        except ServerUnavailable as error:
            self.renewed(transport, error)
            raise

    @property
    def ahead(self) -> int:
        """How many ns a server's clock is ahead of this machine's; 0 as long as none has said so."""
        return next((each.ahead for each in list(self._open.values()) if each.ahead is not None), 0)

    def close(self) -> None:
        """Closes every channel."""
        with self._lock:
            self.closed = True
            for transport in self._open.values():
                transport.close()


class Route:
    """Where one run's calls go: one server, and the next when that is unreachable.

    Attributes:
        transport: the channel in use.
    """

    def __init__(self, targets: Targets, run: str) -> None:
        self._targets = targets
        self._run = run
        targets.check_token()  # also for the servers to which a run would move only later
        addresses = targets.addresses()
        self.transport = targets.transport(addresses[zlib.crc32(run.encode()) % len(addresses)])

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Headers of every call of the run: a proxy in front of several servers routes by them."""
        return (("x-mechanicd-run", self._run),)

    @property
    def width(self) -> int:
        """How many servers there are to try."""
        return len(self._targets.addresses())

    def renew(self, error: MechanicdError) -> None:
        """After an error, takes a new connection to the same server if that may help."""
        self.transport = self._targets.renewed(self.transport, error)

    def advance(self) -> None:
        """Moves to the next server; stays if there is only one."""
        addresses = self._targets.addresses()
        try:
            following = addresses.index(self.transport.address) + 1
        except ValueError:  # it is not among the name's addresses any more
            following = 0
        self.transport = self._targets.transport(addresses[following % len(addresses)])


def _resolved(given: str) -> list[Address]:
    """`HOST:PORT` with each of the host's addresses. Unchanged: what is no host name, and a name that a proxy will resolve."""
    target = _address.bare(given)
    parts = _address.split(target)
    if parts is None:
        return [Address(target)]
    host, port = parts
    name = host if _address.secure(given) else ""
    if host == "localhost" or _address.may_proxy(given):
        return [Address(target, name)]
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return [Address(target, name)]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return [Address(target, name)]  # gRPC's own error will say what is wrong
    addresses = [address[0] for *_, address in found]
    each_at = dict.fromkeys(f"[{each}]:{port}" if ":" in str(each) else f"{each}:{port}" for each in addresses)
    return [Address(at, name) for at in each_at]
