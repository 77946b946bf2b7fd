"""The files in which a server leaves its own token for programs of its own user on its own machine; see
`mechanicd.v1.local_token`."""

import contextlib
import ipaddress
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from mechanicd.v1 import local_token

log = logging.getLogger("mechanicd.service")

_OWN_FOLDERS = 3
"""`mechanicd/local/HOST`: so many folders are ours alone."""


class LocalFiles:
    """Writes a token for each address that this machine can reach, and removes it at the end.

    A folder that can't be written is no reason not to serve: the log says what to do.

    Args:
        text: the token.
        addresses: as `mechanicd serve` prints them.
    """

    def __init__(self, text: str, addresses: Iterable[str]) -> None:
        self._text = text
        self._addresses = list(addresses)
        self._written: list[Path] = []

    def __enter__(self) -> Self:
        for address in filter(_is_here, self._addresses):
            try:
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


def _is_here(address: str) -> bool:
    """Whether programs on this machine reach an address as one of its own."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition("//")[2].rpartition(":")[0].strip("[]")
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return found.is_loopback or found.is_unspecified


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
