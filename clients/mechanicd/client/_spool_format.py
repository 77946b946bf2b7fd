"""The bytes of a spool file, version 1: what one training writes where there is no server. Append-only.

    offset 0    the 4 bytes "MSPL"
           4    uint8   version = 1
           5    3 zero bytes
           8    records, one after the other

    a record    uint8   kind
                uint32  length of its message, little-endian
                uint32  CRC-32 (that of zlib) of the record's offset in the file as uint64, its kind, its length and its message
                the message

    kind 1      OPENED: mechanicd.v1.OpenSessionRequest. A session begins, and says where.
         2      STEP: mechanicd.v1.StepRecord, with S_{t+1} and the trainer's time (early files have none), without h.
         3      CLOSED: mechanicd.v1.CloseSessionRequest, without a session.
         4      SYNCED: its own offset as uint64. All that is before it was on the disk when it was written.

A record holds its own offset in its checksum, so one that was moved, doubled or left over from an earlier content is none. The
first offset without a record is the end. What follows it is the torn tail of a process or a machine that died, unless a SYNCED
comes after: then bytes are damaged that were safe once.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from mechanicd.client._errors import MechanicdError

MAGIC: Final = b"MSPL"
VERSION: Final = 1
HEADER: Final = struct.pack("<4sB3x", MAGIC, VERSION)

OPENED: Final = 1
STEP: Final = 2
CLOSED: Final = 3
SYNCED: Final = 4

MOST_BYTES: Final = 2**28
"""No message is larger: a server takes 64 MiB."""

_FRAME: Final = struct.Struct("<BII")
_SUMMED: Final = struct.Struct("<QBI")
_OFFSET: Final = struct.Struct("<Q")
_SYNCED: Final = struct.pack("<BI", SYNCED, _OFFSET.size)
_SYNCED_SIZE: Final = _FRAME.size + _OFFSET.size
_PORTION: Final = 2**20


class Record(NamedTuple):
    """A record of a spool file."""

    offset: int
    kind: int
    message: bytes

    @property
    def end(self) -> int:
        """Where the next record begins."""
        return self.offset + _FRAME.size + len(self.message)


def framed(offset: int, kind: int, message: bytes) -> bytes:
    """A record as it stands at an offset of the file."""
    length = len(message)
    return _FRAME.pack(kind, length, zlib.crc32(message, zlib.crc32(_SUMMED.pack(offset, kind, length)))) + message


def synced(offset: int) -> bytes:
    """A SYNCED as it stands at an offset of the file."""
    return framed(offset, SYNCED, _OFFSET.pack(offset))


def check_header(name: str, file: BinaryIO) -> bool:
    """Whether the file has its header; False if it ends within, or holds zeros: its trainer died when it began.

    Raises:
        MechanicdError: SPOOL_FOREIGN, SPOOL_VERSION.
    """
    file.seek(0)
    found = file.read(len(HEADER))
    if not any(found):  # empty, or zeros where the power went before the first sync
        return False
    if not HEADER.startswith(found[: len(MAGIC)]):
        raise MechanicdError("SPOOL_FOREIGN", f"{name} is no spool file: it begins with {found!r}, not with {MAGIC!r}")
    if len(found) == len(HEADER) and found[len(MAGIC)] > VERSION:
        raise MechanicdError(
            "SPOOL_VERSION", f"{name} has version {found[len(MAGIC)]}, but this program reads {VERSION}; upgrade mechanicd"
        )
    return found == HEADER


def records(file: BinaryIO, begin: int = len(HEADER), size: int | None = None) -> Iterator[Record]:
    """The records from an offset on, up to the first place where there is none.

    Args:
        file: open for reading.
        begin: the offset of a record.
        size: how much of the file to read; None reads to its end.
    """
    file.seek(begin)
    offset = begin
    while size is None or offset < size:
        frame = file.read(_FRAME.size)
        if len(frame) < _FRAME.size:
            return
        kind, length, crc = _FRAME.unpack(frame)
        if length > MOST_BYTES or (size is not None and offset + _FRAME.size + length > size):
            return
        message = file.read(length)
        if len(message) < length or zlib.crc32(message, zlib.crc32(_SUMMED.pack(offset, kind, length))) != crc:
            return
        yield Record(offset, kind, message)
        offset += _FRAME.size + length


def check_tail(name: str, file: BinaryIO, end: int) -> None:
    """Tells a torn tail, which is what a death leaves, from damage.

    Args:
        end: where the records end.

    Raises:
        MechanicdError: SPOOL_DAMAGED: a SYNCED follows, so what is broken before it had been written whole.
    """
    file.seek(end)
    text = b""
    while portion := file.read(_PORTION):
        text += portion
        at = text.find(_SYNCED)
        while at >= 0:
            mark = text[at : at + _SYNCED_SIZE]  # where bytes are missing it is no longer at the offset that it tells
            if len(mark) == _SYNCED_SIZE and mark == synced(*_OFFSET.unpack(mark[_FRAME.size :])):
                raise MechanicdError(
                    "SPOOL_DAMAGED",
                    f"{name} is damaged at byte {end:,}: what follows there is no record, although it was on the disk in whole "
                    "once. Restore the file from a copy; to use what stands before, cut a copy of it off there, as by "
                    f"`head -c {end}`",
                )
            at = text.find(_SYNCED, at + 1)
        text = text[-(_SYNCED_SIZE - 1) :]
