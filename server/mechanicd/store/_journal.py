"""How one flush is packed: the segments of all its runs in one blob, so that a flush is one row however many runs it has."""

import struct
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

_HEADER: Final = struct.Struct("<qqqqQ")


class Segment(NamedTuple):
    """Consecutive steps of one run as they were committed. They count for the run's own history while it is in `epoch`."""

    run_id: int
    epoch: int
    first_step: int
    last_step: int
    records: bytes


def pack(segments: Iterable[Segment]) -> bytes:
    """One blob; each segment is a header of 40 bytes and its records."""
    parts = []
    for segment in segments:
        parts.append(_HEADER.pack(*segment[:4], len(segment.records)))
        parts.append(segment.records)
    return b"".join(parts)


def unpack(data: bytes, run_id: int | None = None) -> Iterator[Segment]:
    """The segments of a blob in order; of one run alone if it is given."""
    at = 0
    while at < len(data):
        run, epoch, first, last, length = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        if run_id is None or run == run_id:
            yield Segment(run, epoch, first, last, data[at : at + length])
        at += length
