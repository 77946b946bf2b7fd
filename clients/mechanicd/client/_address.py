"""A server's address as users write it: whether it is one, whether with TLS, and whether an HTTP proxy may stand before it."""

import ipaddress
import re
import urllib.request
from typing import Final, NamedTuple

from mechanicd.client import _spool_target
from mechanicd.client._arguments import without_secrets
from mechanicd.client._errors import InvalidArgument
from mechanicd.v1 import names


class Address(NamedTuple):
    """Where one server is.

    Attributes:
        at: `HOST:PORT`, `unix:PATH`, or another name of gRPC's.
        name: with TLS, the host that the server's certificate must name; "": no TLS.
    """

    at: str
    name: str = ""

    def __str__(self) -> str:
        return f"{TLS if self.name else ''}{self.at}"


TLS: Final = "https://"
_URL: Final = re.compile(r"([a-z][a-z0-9+.-]*)://(.*)", re.IGNORECASE | re.DOTALL)
_HOST: Final = re.compile(r"[^\s/@?#\[\]]+|\[[^\s/@?#\[\]]+\]")
_GRPC_URLS: Final = ("dns", "xds", "unix")
_GRPC_NAMES: Final = ("dns:", "xds:", "unix:", "unix-abstract:", "ipv4:", "ipv6:", "vsock:")
_ONE_PLACE: Final = re.compile(r"(?:(?:dns|ipv4|ipv6):(?:///)?)?(\[[0-9a-f:.]+\]|[a-z0-9.-]+):[0-9]+", re.IGNORECASE)
"""A host and a port, and no more: gRPC takes several addresses in one name, and escapes that hide them."""
_PROXIES: Final = ("grpc", "https", "http")
"""Of the variables X_proxy, those that gRPC follows."""


def parse(target: str) -> list[str]:
    """The addresses that a target names.

    Args:
        target: `HOST:PORT`, `https://HOST:PORT` for TLS, `unix:PATH`, another name of gRPC's (`dns:///…`), or several of them
            joined by commas; or `file:///FOLDER` alone.

    Raises:
        InvalidArgument: INVALID_TARGET.
    """
    if not isinstance(target, str):
        raise _invalid(target, "is not a string")
    if _spool_target.is_spool(target):
        _spool_target.folder(target)
        return [target]
    given = [part.strip() for part in target.split(",") if part.strip()]
    if not given:
        raise _invalid(target, "names no server")
    for each in given:
        _check(each)
    return [f"{TLS}{bare(each)}" if secure(each) else each for each in given]


def secure(given: str) -> bool:
    """Whether an address as the user gave it asks for TLS."""
    return given[: len(TLS)].lower() == TLS


def bare(given: str) -> str:
    """An address as the user gave it, without `https://`."""
    return given[len(TLS) :].removesuffix("/") if secure(given) else given


def split(address: str) -> tuple[str, int] | None:
    """Host and port of `HOST:PORT`, an IPv6 host without its brackets; None for any other name."""
    if address.startswith(_GRPC_NAMES):
        return None
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def on_this_machine(at: str) -> bool:
    """Whether an address leads to this machine, whatever the network says: a Unix socket, a loopback address, localhost."""
    if at.startswith(("unix:", "unix-abstract:")):
        return True
    place = _ONE_PLACE.fullmatch(at)
    return place is not None and (is_localhost(at) or is_loopback(place[1].strip("[]")))


def is_localhost(at: str) -> bool:
    """Whether an address has the name localhost, which gRPC itself resolves."""
    place = _ONE_PLACE.fullmatch(at)
    return place is not None and place[1].lower() == "localhost"


def is_loopback(host: str) -> bool:
    """Whether a host is a loopback address in figures."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def may_proxy(address: str) -> bool:
    """Whether the environment puts an HTTP proxy before an address as the user gave it: never before this machine, nor before
    what NO_PROXY names, nor where there is no host."""
    parts = split(bare(address))
    return parts is not None and _before(parts[0])


def _before(host: str) -> bool:
    proxies = urllib.request.getproxies_environment()
    if not any(kind in proxies for kind in _PROXIES) or host == "localhost" or host.endswith(".localhost"):
        return False
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return not urllib.request.proxy_bypass(host)
    exempt = (_network(part) for part in proxies.get("no", "").split(","))
    within = any(network is not None and ip in network for network in exempt)
    return not (ip.is_loopback or within or urllib.request.proxy_bypass(host))


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(text.strip(), strict=False)
    except ValueError:
        return None


def _check(address: str) -> None:
    if not names.is_text(address):
        raise _invalid(address, "is not Unicode text")
    given, address = address, bare(address)
    if secure(given) and address.startswith(_GRPC_NAMES):
        raise _invalid(given, "asks for TLS at a name of gRPC's", "write https://HOST:PORT, or a unix: socket without TLS")
    url = _URL.fullmatch(address)
    if url is not None and url[1].lower() not in _GRPC_URLS:
        raise _invalid(
            given, f"begins with {url[1]}://", "write the address that `mechanicd serve` prints for gRPC, without it"
        )
    if address.startswith(_GRPC_NAMES):
        if not address.partition(":")[2].strip("/"):
            raise _invalid(given, "ends where the name should follow")
        return
    host, colon, port = address.rpartition(":")
    if not colon or not host:
        raise _invalid(given, "has no port" if not colon else "has no host")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise _invalid(given, "has several colons", "put an IPv6 address in brackets, as in [::1]:50051")
    if not (re.fullmatch("[0-9]{1,5}", port) and 0 < int(port) < 65_536):
        raise _invalid(given, f"has the port {port!r}", "a port is a number from 1 to 65535")
    if not _HOST.fullmatch(host) or not _can_be_resolved(host):
        raise _invalid(given, f"has the host {host!r}")


def _can_be_resolved(host: str) -> bool:
    """Whether the system can be asked for this host: a name has labels of 1 to 63 characters, and 255 in all."""
    try:
        host[:256].encode("idna")
    except UnicodeError:
        return False
    return len(host) <= 255


def _invalid(target: object, what: str, advice: str = "") -> InvalidArgument:
    expected = (
        "expected HOST:PORT such as 127.0.0.1:50051, https://HOST:PORT for TLS, unix:PATH, or several joined by commas; or "
        "file:///FOLDER"
    )
    shown = without_secrets(repr(target))
    if "@" in shown:  # a part of it may be one of a password
        what = "has an @"
    return InvalidArgument("INVALID_TARGET", f"target {shown} {what}; {advice or expected}")
