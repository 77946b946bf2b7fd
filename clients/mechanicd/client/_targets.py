"""Which server to talk to: one, a list of them, or all the addresses that a DNS name has.

Every replica over one store can serve every run, so a session that loses its server moves to the next. Runs are spread over
the servers by a hash of their names, and a run always tries the same one first.
"""

import ipaddress
import socket
import threading
import zlib
from collections.abc import Iterator
from typing import Any

from mechanicd.client import _address
from mechanicd.client._errors import ServerUnavailable
from mechanicd.client._transport import Transport


class Targets:
    """The servers that a target names, with one channel to each that is used.

    Args:
        target: `HOST:PORT`, `unix:PATH`, or several of them joined by commas. A host name stands for all its addresses.

    Raises:
        InvalidArgument: INVALID_TARGET.
    """

    def __init__(self, target: str) -> None:
        self.given = _address.parse(target)
        self._open: dict[str, Transport] = {}
        self._lock = threading.Lock()

    def addresses(self) -> list[str]:
        """Every address, in the order given; host names are resolved again each time."""
        found: list[str] = []
        for target in self.given:
            found += [address for address in _resolved(target) if address not in found]
        return found

    def transport(self, address: str) -> Transport:
        """The channel to an address."""
        with self._lock:
            if address not in self._open:
                self._open[address] = self._connect(address)
            return self._open[address]

    def _connect(self, address: str) -> Transport:
        # A host that was resolved here is not behind a proxy, whatever NO_PROXY says of its address.
        return Transport(address, proxied=address in self.given and _address.may_proxy(address))

    def renewed(self, stale: Transport) -> Transport:
        """A channel with a connection of its own, to where `stale` leads; for the next calls of others too.

        A connection that a NAT or a load balancer has dropped silently looks open for many minutes. Whoever still uses `stale`
        keeps it; it is gone with its last user.
        """
        with self._lock:
            if self._open.get(stale.target) is stale:
                self._open[stale.target] = self._connect(stale.target)
            return self._open.get(stale.target, stale)

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

    def watch(self, request: Any) -> Iterator[Any]:
        """RunService.WatchRuns of the first server that answers."""
        addresses = self.addresses()
        for address in addresses:
            transport, answered = self.transport(address), False
            try:
                for response in transport.watch(request):
                    answered = True
                    yield response
            except ServerUnavailable:
                self.renewed(transport)
                if answered or address == addresses[-1]:
                    raise
            else:
                return

    def _call(self, address: str, method: str, request: Any, timeout: float) -> Any:
        transport = self.transport(address)
        try:
            return transport.call(method, request, timeout)
        except ServerUnavailable as error:
            if error.reason == "DEADLINE_EXCEEDED":  # frozen, or cut off without a word: only a new connection can tell
                self.renewed(transport)
            raise

    @property
    def ahead(self) -> int:
        """How many ns a server's clock is ahead of this machine's; 0 as long as none has said so."""
        return next((each.ahead for each in list(self._open.values()) if each.ahead is not None), 0)

    def close(self) -> None:
        """Closes every channel."""
        with self._lock:
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

    def renew(self) -> None:
        """Takes a new connection to the same server."""
        self.transport = self._targets.renewed(self.transport)

    def advance(self) -> None:
        """Moves to the next server; stays if there is only one."""
        addresses = self._targets.addresses()
        try:
            following = addresses.index(self.transport.target) + 1
        except ValueError:  # it is not among the name's addresses any more
            following = 0
        self.transport = self._targets.transport(addresses[following % len(addresses)])


def _resolved(target: str) -> list[str]:
    """`HOST:PORT` with each of the host's addresses. Unchanged: what is no host name, and a name that a proxy will resolve."""
    parts = _address.split(target)
    if parts is None or parts[0] == "localhost" or _address.may_proxy(target):
        return [target]
    host, port = parts
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return [target]
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return [target]  # gRPC's own error will say what is wrong
    addresses = [address[0] for *_, address in found]
    return list(dict.fromkeys(f"[{each}]:{port}" if ":" in str(each) else f"{each}:{port}" for each in addresses))
