"""The addresses of a server: what each may be, and how it is bound."""

import ipaddress
import re
from typing import Any

import grpc

from mechanicd.tls import Keeper, Pair
from mechanicd.v1 import names


class ServeError(Exception):
    """The server can't start as configured. `reason` is stable."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def check_address(address: str, insecure: bool, unix: bool = True) -> None:
    """Refuses a malformed address, and one that other machines can reach unless `insecure`.

    Args:
        insecure: whether other machines may reach it: by TLS they have to show who they are, or everyone is trusted.
        unix: whether `unix:PATH` is allowed.

    Raises:
        ServeError: MALFORMED_ADDRESS or ADDRESS_NOT_LOOPBACK.
    """
    if not names.is_text(address):
        raise ServeError("MALFORMED_ADDRESS", f"{address!r} is not Unicode text")
    if unix and address.startswith("unix:"):
        return
    host, separator, port = address.rpartition(":")
    if not separator or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535 or not host:
        raise ServeError("MALFORMED_ADDRESS", f"{address!r}: expected HOST:PORT{' or unix:PATH' if unix else ''}")
    if insecure or host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ServeError(
            "ADDRESS_NOT_LOOPBACK",
            f"{address} can be reached from other machines; bind to 127.0.0.1, or speak TLS (--tls-cert, --tls-key) and ask "
            "for tokens or certificates, or pass --insecure if you trust everyone on the network",
        )


def bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> str:
    """Binds an address.

    Args:
        credentials: for TLS. A unix socket goes without: its files' permissions say who may come in.

    Returns:
        The address as clients write it.

    Raises:
        ServeError: PORT_IN_USE.
    """
    unix = address.startswith("unix:")
    if unix:
        credentials = None
    try:
        port = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if not port:
        why = "its folder is missing or not writable" if unix else "another program is using the port"
        raise ServeError("PORT_IN_USE", f"can't bind {address}: {why}; choose another address")
    if unix:
        return address
    return f"{'' if credentials is None else 'https://'}{address.rpartition(':')[0]}:{port}"


def credentials(keeper: Keeper) -> grpc.ServerCredentials:
    """For gRPC, which asks for the pair at each handshake."""

    def renewed() -> Any:
        pair = keeper.renewed()
        return None if pair is None else _configuration(pair)

    first = keeper.pair
    made: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
        _configuration(first), renewed, require_client_authentication=first.client_ca is not None
    )
    return made


def _configuration(pair: Pair) -> Any:
    return grpc.ssl_server_certificate_configuration([(pair.key, pair.certificate)], pair.client_ca)
