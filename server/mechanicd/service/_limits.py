"""How large a request may be. docs/operations.md lists all limits."""

from collections.abc import Iterator
from itertools import islice
from typing import Final

MOST_BYTES: Final = 4 * 2**20
"""Of a request, except OpenSession and StreamSteps."""
MOST_LARGE_BYTES: Final = 64 * 2**20
"""Of any request, says gRPC. The steps of an outage grow with the scale groups, and clients of 0.1 send 256 in one message."""
MOST_OPENING_BYTES: Final = 8 * 2**20
"""Of an OpenSession, its tuner state aside: the names of 65,536 scale groups, of 120 characters each."""
MOST_OPENING_FIELDS: Final = 1024
MOST_STEPS: Final = 1024
"""Of one message; a client sends up to 256."""
MOST_STEP: Final = 2**40
"""The last step that a checkpoint may be at: a step a millisecond takes 35 years."""
MOST_STREAMS: Final = 10_000
"""Of one connection: a sweep in one process. A silent stream takes about 40 KiB."""
HANDSHAKE_SECONDS: Final = 20
"""For a connection to begin as HTTP/2 does, over TLS where that is on."""
IDLE_SECONDS: Final = 600
"""That a connection may have no call. An idle one takes about 18 KiB."""
MOST_WATCHERS: Final = 64
"""Of one host: each is sent every run, and keeps a message of 4 MiB until it is read."""


def has_more(data: bytes, most: int) -> bool:
    """Whether an encoded message has more than `most` fields at its top level, found without decoding it.

    Two bytes are enough for a field, and each becomes an object of a hundred: a message is counted before it is decoded.
    """
    return next(islice(fields(data), most, None), None) is not None


def fields(data: bytes) -> Iterator[tuple[int, int]]:
    """The number of each field at the top level of an encoded message, and how many bytes it takes.

    Bytes that are no message have as many fields as come before what is wrong. A group's fields count as the message's own.
    """
    place, end = 0, len(data)
    while place < end:
        start = place
        tag, place = _varint(data, place)
        match tag & 7:
            case 0:
                _, place = _varint(data, place)
            case 1:
                place += 8
            case 2:
                length, place = _varint(data, place)
                place += length
            case 3 | 4:
                pass
            case 5:
                place += 4
            case _:
                return
        yield tag >> 3, place - start


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    for byte in data[place : place + 10]:
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
    return value, len(data)
