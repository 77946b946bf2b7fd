"""The files in which a server leaves its own token for programs of its own user on its own machine; see
`mechanicd.v1.local_token`."""

import contextlib
import errno
import ipaddress
import logging
import os
import socket
import stat
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from mechanicd.v1 import local_token

log = logging.getLogger("mechanicd.service")

_OWN_FOLDERS = 3
"""`mechanicd/local/HOST`: so many folders are ours alone."""

_TWINS = {"127.0.0.1": "::1", "0.0.0.0": "::1", "::1": "127.0.0.1"}
"""`localhost` leads to both of a pair, and so does the token's file, which is named by the port alone."""


class LocalFiles:
    """Writes a token for each address that this machine can reach, and removes it at the end.

    A folder that can't be written is no reason not to serve: the log says what to do. While the token is there, nobody else
    can listen at the address that `localhost` may also lead to: they would be shown the token.

    Args:
        text: the token.
        addresses: as `mechanicd serve` prints them.
    """

    def __init__(self, text: str, addresses: Iterable[str]) -> None:
        self._text = text
        self._addresses = list(addresses)
        self._written: list[Path] = []
        self._kept = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for address in filter(_is_here, self._addresses):
            try:
                if (twin := self._twin(address)) is not None:
                    self._kept.enter_context(_kept_free(*twin))
                path = local_token.path(address)
                _own(path.parent)
                _write(path, f"{self._text}\n")
            except (OSError, ValueError) as error:
                log.warning(
                    "the local token can't be left for programs on this machine (%s): let XDG_CONFIG_HOME name a folder of "
                    "yours that can be written, or give them a token of `mechanicd tokens create` in MECHANICD_TOKEN",
                    error,
                )
            else:
                self._written.append(path)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for path in self._written:
            with contextlib.suppress(OSError, ValueError):  # it is gone, or another server's by now
                if path.read_text(encoding="ascii").strip() == self._text:
                    path.unlink()
        self._kept.close()

    def _twin(self, address: str) -> tuple[str, int] | None:
        """Where somebody else might listen whom `localhost` leads to; None where nobody can, or TLS tells who it is."""
        host, port = _place(address)
        twin = _TWINS.get(host) if not address.startswith(("unix:", "https:")) else None
        ours = {_place(each) for each in self._addresses}
        return None if twin is None or {(twin, port), ("::", port)} & ours else (twin, int(port))


def _is_here(address: str) -> bool:
    """Whether programs on this machine reach an address as one of its own."""
    if address.startswith("unix:"):
        return True
    host, _ = _place(address)
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return found.is_loopback or found.is_unspecified


def _place(address: str) -> tuple[str, str]:
    """Host and port, as they are written."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    return host.strip("[]"), port


def _kept_free(host: str, port: int) -> contextlib.AbstractContextManager[object]:
    """Keeps others from listening at an address, without listening there. Raises OSError if somebody does."""
    try:
        kept = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError:  # no IPv6 here: nobody can
        return contextlib.nullcontext()
    try:
        kept.bind((host, port))
    except OSError as error:
        kept.close()
        if error.errno == errno.EADDRINUSE:
            where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            raise OSError(f"another program has {where}, where `localhost` may lead; choose another port") from None
        return contextlib.nullcontext()  # there is no such address here, or it is root's alone
    return kept


def _own(folder: Path) -> None:
    """Makes a folder that only this user may enter. Raises OSError."""
    folder.parents[_OWN_FOLDERS - 1].mkdir(parents=True, exist_ok=True)
    for each in (*reversed(folder.parents[: _OWN_FOLDERS - 1]), folder):
        with contextlib.suppress(FileExistsError):
            each.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise PermissionError(f"{folder} is another user's, or no folder")
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)


def _write(path: Path, text: str) -> None:
    """Writes a file that only this user may read, in the place of one from before. Raises OSError."""
    draft = path.with_name(f".{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
    draft.replace(path)
