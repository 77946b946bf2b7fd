"""The token by which a server knows who calls.

    MECHANICD_TOKEN        the token, mech_ID_SECRET
    MECHANICD_TOKEN_FILE   a file that holds it, and nothing else

Without either, a server on this machine is shown the token that it has left for its own user (`mechanicd.v1.local_token`).

It is read for each call and each stream, so one that is replaced counts from the next on, and no object of this package keeps
it. Clear text never takes it to another machine: `is_private` decides that from the address alone, before anything is sent.
"""

import contextlib
import os
import re
import socket
import stat
from typing import Final

from mechanicd.client import _address
from mechanicd.client._address import Address
from mechanicd.client._errors import Unauthenticated
from mechanicd.v1 import local_token

TOKEN: Final = "MECHANICD_TOKEN"
TOKEN_FILE: Final = "MECHANICD_TOKEN_FILE"

_WELL_FORMED: Final = re.compile(r"mech_[A-Za-z0-9_-]{1,500}")
_MOST_BYTES: Final = 4096
_GRPC_PROXY: Final = "GRPC_ADDRESS_HTTP_PROXY"
"""gRPC's own variable: a proxy before any address, this machine's, too, whatever the channel's options say."""


class _Header(str):
    """A header that doesn't show its value: whoever reports an error may report the variables around it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'Bearer ***'"


def header(address: Address, private: bool) -> tuple[tuple[str, str], ...]:
    """What shows a server the token; nothing where there is none.

    Args:
        private: whether nobody reads along on the way to the server.

    Raises:
        Unauthenticated: TOKEN_FILE_UNUSABLE, TOKEN_MALFORMED, TOKEN_IN_CLEAR.
    """
    configured = is_configured()
    if configured and not private:
        raise Unauthenticated(
            "TOKEN_IN_CLEAR",
            f"{configured} is set, but a token is never sent in clear text to another machine, and {address} may be one. Serve "
            f"with --tls-cert and --tls-key and write {_address.TLS}HOST:PORT; or take {configured} out of the environment",
        )
    if configured:
        return _bearer(_configured())
    return _bearer(_local(address)) if private else ()


def is_configured() -> str:
    """Which of the two variables counts; "" if neither is set."""
    return next((name for name in (TOKEN, TOKEN_FILE) if os.environ.get(name)), "")


def is_private(address: Address, proxied: bool) -> bool:
    """Whether what is sent to an address is encrypted, or stays on this machine.

    Args:
        proxied: whether an HTTP proxy may stand before it.
    """
    if address.name:
        return True
    if not _address.on_this_machine(address.at) or proxied:
        return False
    if address.at.startswith("unix"):
        return True
    return not os.environ.get(_GRPC_PROXY) and (not _address.is_localhost(address.at) or _localhost_is_here())


def _localhost_is_here() -> bool:
    """Whether the name localhost leads to this machine. One that leads nowhere leads nowhere else."""
    try:
        found = socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)
    except OSError:
        return True
    return all(_address.is_loopback(str(where[0])) for *_, where in found)


def _bearer(token: str | None) -> tuple[tuple[str, str], ...]:
    return () if token is None else (("authorization", _Header(f"Bearer {token}")),)


def _configured() -> str:
    given = os.environ.get(TOKEN)
    if given:
        return _checked(given, TOKEN)
    path = os.environ[TOKEN_FILE]
    try:
        return _checked(_read(path), f"{path}, which {TOKEN_FILE} names,")
    except OSError as error:
        raise Unauthenticated(
            "TOKEN_FILE_UNUSABLE",
            f"{TOKEN_FILE} names {path}: {error.strerror}; let it name a file with a token that this process can read",
        ) from None


def _local(address: Address) -> str | None:
    """The token that a server of this machine has left for its user; None if there is none."""
    if not _address.on_this_machine(address.at) or address.at.startswith("unix-abstract:"):
        return None
    with contextlib.suppress(OSError, ValueError, Unauthenticated):
        return _checked(_read(str(local_token.path(address.at))), "")
    return None


def _read(path: str) -> str:
    """A file's text. Raises OSError, also for what is no file: a pipe would keep us waiting, and can't be read again."""
    # Not Path.read_text: that waits for the writer of a pipe, and reads the whole of what has no end.
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(0, "it is no regular file")
        return os.read(file, _MOST_BYTES).decode("utf-8", "surrogateescape")
    finally:
        os.close(file)


def _checked(text: str, source: str) -> str:
    """The token without the blanks around it, such as the line's end that editors leave."""
    token = text.strip()
    if _WELL_FORMED.fullmatch(token):
        return token
    if not token:
        what = "is empty"
    elif not token.startswith("mech_"):
        what = "has something else"
    elif not token.isascii():
        what = "has characters that are not ASCII"
    elif any(each.isspace() or not each.isprintable() for each in token):
        what = "has a blank, a control character or the end of a line in it"
    else:
        what = "has characters that no token has, or far too many"
    raise Unauthenticated(
        "TOKEN_MALFORMED", f"{source} {what}; expected one token, mech_ID_SECRET, as `mechanicd tokens create` prints it"
    )
