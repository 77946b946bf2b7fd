"""The spool file of one run, as its trainer writes it: locked, appended to, synced to the disk.

A record is handed to the system as soon as it is appended, so what happens to this process can't lose it; `sync` makes it safe
from what happens to the machine. Until then it is kept in memory as well: where the disk is full or fails, everything since the
last sync is written again.
"""

import contextlib
import errno
import importlib
import io
import logging
import os
import time
from pathlib import Path
from typing import Any, BinaryIO, Final

from mechanicd.client import _spool_format
from mechanicd.client._errors import MechanicdError, ServerUnavailable, SessionFenced
from mechanicd.client._spool_format import HEADER

log = logging.getLogger("mechanicd.client")

SYNC_BYTES: Final = 8 * 2**20
"""Without a flush the file is synced each time that so much has been appended."""
_LOCK_SECONDS: Final = 0.5
"""How long a trainer waits for the lock: its predecessor may be about to end, and an import looks at it for a moment."""


class SpoolFile:
    """One spool file, held by this process alone.

    Args:
        path: created if it is not there, with its folders.

    Attributes:
        path: of the file.
        failure: why the last try to write or to sync failed; None if it worked.

    Raises:
        SessionFenced: SPOOL_LOCKED.
        ServerUnavailable: SPOOL_UNWRITABLE.
        MechanicdError: SPOOL_FOREIGN, SPOOL_VERSION, SPOOL_DAMAGED.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failure: OSError | None = None
        self._synced = 0  # the size of what is on the disk
        self._since = bytearray()  # what follows it
        self._written = 0  # how much of that the system has
        self._tried = 0  # how much of that there was at the last try to sync
        self._marked = 0  # how much of that needs no sync: a SYNCED
        try:
            self._file = _opened(path)
            try:
                self._take()
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise unwritable(path, error) from None

    @property
    def size(self) -> int:
        """Of the file, with what only this process has."""
        return self._synced + len(self._since)

    @property
    def kept(self) -> int:
        """How many bytes are not known to be on the disk: this process has them in memory."""
        return len(self._since)

    def read(self) -> BinaryIO:
        """The file for reading; close it."""
        return self.path.open("rb")

    def append(self, kind: int, message: bytes) -> bool:
        """Appends a record. Returns whether the system has it; if not, `failure` says why, and the next call tries again."""
        record = _spool_format.framed(self.size, kind, message)
        self._since += record
        if len(self._since) - self._tried >= SYNC_BYTES:
            return self.sync()
        return self._write(record)

    def sync(self) -> bool:
        """Makes every record safe from power loss. Returns whether that worked; if not, `failure` says why."""
        self._tried = len(self._since)
        if not self._write():
            return False
        if len(self._since) == self._marked:
            return True
        try:
            os.fsync(self._file.fileno())
            self._check_there()
        except OSError as error:
            # Nobody knows what the system has dropped: all since the last sync is written again.
            self.failure, self._written = error.with_traceback(None), 0
            return False
        self._synced += len(self._since)
        self._since = bytearray(_spool_format.synced(self._synced))
        self._written, self._tried, self._marked = 0, 0, len(self._since)
        self._write()
        return True

    def close(self) -> None:
        """Lets go of the file, and of its lock."""
        self._file.close()

    def forget(self) -> None:
        """In a forked child: the parent has the lock, which lasts until nobody has the file open."""
        with contextlib.suppress(OSError):
            self._file.close()

    # --- inside ------------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        """Finds the end of the file, and cuts off a torn tail."""
        with self.read() as file:
            end = len(HEADER) if _spool_format.check_header(str(self.path), file) else 0
            for record in _spool_format.records(file) if end else ():
                end = record.end
            _spool_format.check_tail(str(self.path), file, end)
        torn = self._file.seek(0, os.SEEK_END) - end
        if torn and end:
            log.warning(
                "%s ends within a record, as after kill -9 or a power loss [%s]; its last %d bytes are cut off",
                self.path,
                "SPOOL_TORN",
                torn,
            )
        if torn:
            self._file.truncate(end)
        self._file.seek(end)
        self._synced = end  # or soon: the next sync is one of the whole file
        if not end:
            self._since += HEADER
            if not self._write() and self.failure is not None:
                raise self.failure

    def _write(self, last: bytes = b"") -> bool:
        """Hands the system what it does not have yet; usually that is the last record."""
        try:
            if self.failure is not None:
                self._file.seek(self._synced + self._written)
            elif last:
                self._written += self._file.write(last) or 0
            while self._written < len(self._since):
                with memoryview(self._since) as view, view[self._written :] as rest:
                    self._written += self._file.write(rest) or 0
        except OSError as error:
            self.failure = error.with_traceback(None)
            return False
        self.failure = None
        return True

    def _check_there(self) -> None:
        """A file that was removed or replaced takes writes as before, and nobody will ever read them."""
        if not _is_at(self._file, self.path):
            raise FileNotFoundError(errno.ENOENT, "the file was removed or replaced while its trainer ran")


def unwritable(path: Path, error: OSError) -> ServerUnavailable:
    """Nothing can be written to a spool file."""
    return ServerUnavailable(
        "SPOOL_UNWRITABLE",
        f"{path} can't be written: {error.strerror or error}; make room or correct the folder's permissions, or pass another "
        "folder as target='file:///…'",
    )


def _opened(path: Path) -> io.FileIO:
    """The file, open and locked.

    Raises:
        SessionFenced: SPOOL_LOCKED.
        OSError: it can't be opened.
    """
    _make(path.parent)
    end = time.monotonic() + _LOCK_SECONDS
    while True:
        file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+")
        try:
            if locked(file.fileno()):
                if _is_at(file, path):
                    _sync_folder(path.parent)
                    return file
            elif time.monotonic() > end:
                raise SessionFenced(
                    "SPOOL_LOCKED",
                    f"another process trains this run into {path}{_holder(path)}; two trainers never feed one run. Stop that "
                    "one, or give this one another run name or folder",
                )
        except BaseException:
            file.close()
            raise
        file.close()
        time.sleep(0.01)


def is_held(path: Path) -> bool:
    """Whether a trainer, in this process or another, holds a spool file now."""
    with path.open("rb") as file:
        return not locked(file.fileno(), shared=True)


def locked(descriptor: int, shared: bool = False) -> bool:
    """Takes the lock of an open file, which lasts until it is closed. Returns False if another one has it."""
    try:
        fcntl: Any = importlib.import_module("fcntl")
    except ModuleNotFoundError:
        return _locked_on_windows(descriptor)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _locked_on_windows(descriptor: int) -> bool:
    msvcrt: Any = importlib.import_module("msvcrt")
    before = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, 2**40, os.SEEK_SET)  # far from what others read
    try:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError:
        return False
    finally:
        os.lseek(descriptor, before, os.SEEK_SET)
    return True


def _holder(path: Path) -> str:
    """Who opened the file last, if that can be read."""
    from mechanicd.v1 import tuner_service_pb2

    client = ""
    with contextlib.suppress(OSError, ValueError, MechanicdError), path.open("rb") as file:
        for record in _spool_format.records(file):
            if record.kind == _spool_format.OPENED:
                client = tuner_service_pb2.OpenSessionRequest.FromString(record.message).client
    return f" ({client})" if client else ""


def _is_at(file: io.FileIO, path: Path) -> bool:
    """Whether the open file is still the one of this path."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _make(folder: Path) -> None:
    """Creates a folder whose name survives a power loss."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Makes the names in a folder safe from power loss, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
