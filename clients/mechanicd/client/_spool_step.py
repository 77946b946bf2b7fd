"""The message of a step in a spool file: the bytes of a mechanicd.v1.StepRecord, at a third of what protobuf takes."""

import struct
from collections.abc import Sequence
from typing import Final

from mechanicd.tuner import Reductions

# A field's tag is its number, times 8, plus how it is encoded (0: varint, 1: float64, 2: length and bytes).
_STEP, _TIME, _OUTCOME, _REDUCTIONS, _SCALE, _BASE_LR = b"\x08", b"\x12", b"\x18", b"\x22", b"\x32", b"\x39"
_OF_REDUCTIONS: Final = (b"\x0a", b"\x12", b"\x1a", b"\x22")
_SECONDS, _NANOS = b"\x08", b"\x10"
_NANOS_SIZE: Final = 5
_DOUBLE: Final = struct.Struct("<d")


class StepWriter:
    """Writes the steps of one run.

    Args:
        groups: how many scale groups it has.
    """

    def __init__(self, groups: int) -> None:
        length = _varint(8 * groups)
        heads = [tag + length for tag in (*_OF_REDUCTIONS, _SCALE)]
        heads[0] = _REDUCTIONS + _varint(4 * (len(heads[0]) + 8 * groups)) + heads[0]
        self._g, self._x, self._gg, self._xx, self._scale = heads
        self._values = struct.Struct("<" + "".join(f"{len(head)}s{groups}d" for head in heads))
        self._second, self._time = -1, b""

    def message(
        self, step: int, outcome: int, groups: Sequence[Reductions], scale: Sequence[float], base_lr: float | None, time_ns: int
    ) -> bytes:
        """One step.

        Args:
            outcome: a StepOutcome.
            scale: S_{t+1} of each scale group.
            time_ns: when it was taken, ns since 1970.
        """
        second, nano = divmod(max(0, time_ns), 10**9)
        if second != self._second:
            seconds = _SECONDS + _varint(second) + _NANOS
            self._second, self._time = second, _TIME + _varint(len(seconds) + _NANOS_SIZE) + seconds
        # A varint may be longer than it has to be: always of `_NANOS_SIZE` bytes, the length before it stays the same.
        nanos = (nano & 127 | 128, nano >> 7 & 127 | 128, nano >> 14 & 127 | 128, nano >> 21 & 127 | 128, nano >> 28)
        g, x, gg, xx = zip(*groups, strict=True)
        values = self._values.pack(self._g, *g, self._x, *x, self._gg, *gg, self._xx, *xx, self._scale, *scale)
        begin = b"".join((_STEP, _varint(step), self._time, bytes(nanos), _OUTCOME, _varint(outcome), values))
        return begin if base_lr is None else begin + _BASE_LR + _DOUBLE.pack(base_lr)


def _varint(value: int) -> bytes:
    if value < 128:
        return bytes((value,))
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    parts.append(value)
    return bytes(parts)
