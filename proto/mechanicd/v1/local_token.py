"""Where a server leaves the token for tools of its own user on its own machine, and where those look for it.

    <config>/mechanicd/local/<hostname>/<key>

config is $XDG_CONFIG_HOME or ~/.config, on Windows %APPDATA%. The hostname keeps machines apart that share a home. The key is
the port, so that `localhost`, `127.0.0.1` and `[::1]` agree, or the path of a Unix socket.
"""

import hashlib
import os
import socket
from pathlib import Path
from typing import Final
from urllib.parse import quote

_UNIX: Final = "unix:"
_LONGEST: Final = 255
"""Of a file's name, in bytes."""


def path(address: str) -> Path:
    """The file with the local token of the server at an address.

    Args:
        address: on this machine: `HOST:PORT`, with or without `https://` before it, or `unix:PATH`.

    Raises:
        ValueError: the address has neither a port nor a path.
        FileNotFoundError: the user has no home folder, and the environment names no folder instead.
    """
    machine = quote(socket.gethostname(), safe="") or "localhost"
    return _config() / "mechanicd" / "local" / machine / _key(address)


def link(page: str, token: str) -> str:
    """An address that signs a browser in to a server's page: what is behind the # is not sent, and the page takes it away."""
    scheme, found, place = page.rpartition("://")
    for everywhere, here in (("0.0.0.0:", "127.0.0.1:"), ("[::]:", "[::1]:")):
        if place.startswith(everywhere):
            place = here + place.removeprefix(everywhere)
    return f"{scheme if found else 'http'}://{place.rstrip('/')}/#token={token}"


def _key(address: str) -> str:
    if address.startswith(_UNIX):
        named = address.removeprefix(_UNIX)
        socket_path = "/" + named.lstrip("/") if named.startswith("//") else named  # unix:///PATH is a URL
        if not socket_path.strip("/"):
            raise ValueError(f"{address!r} has no path")
        encoded = quote(os.path.realpath(socket_path), safe="")
        return encoded if len(encoded) <= _LONGEST else hashlib.sha256(encoded.encode()).hexdigest()
    port = address.rstrip("/").rpartition(":")[2]
    if not (port.isascii() and port.isdecimal()):
        raise ValueError(f"{address!r} has no port")
    return str(int(port))


def _config() -> Path:
    given = os.environ.get("APPDATA" if os.name == "nt" else "XDG_CONFIG_HOME", "")
    if os.path.isabs(given):
        return Path(given)
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise FileNotFoundError("this user has no home folder; let XDG_CONFIG_HOME name a folder")
    return Path(home) / ".config"
