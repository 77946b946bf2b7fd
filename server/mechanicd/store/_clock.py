"""The store's clock: what time it is, for every process that uses the store, whatever their own clocks say.

A time of day may be set at any moment, by minutes or by years, and durations must not follow it: a run would be called silent
though it steps, or be alive for ever. So the clock is read once and then goes on by the machine's steady clock. Where the one
that it is read from has been set since, it follows slowly: it is never wrong by more than a tenth about a duration.

For PostgreSQL that is the database's clock, so that servers whose own clocks differ by minutes agree about a run. An SQLite
file belongs to one machine, whose clock it is.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Final

LATEST: Final = 2**63 - 1
"""What fits into a step's record and into the stores' columns: a moment in the year 2262."""
_SLEW: Final = 10
"""A tenth of the time that passes may go into a correction."""


def _steady() -> Callable[[], int]:
    try:
        return partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
    except AttributeError:
        pass
    try:
        return partial(time.clock_gettime_ns, time.CLOCK_MONOTONIC)
    except AttributeError:  # Windows
        return time.monotonic_ns


steady_ns: Final = _steady()
"""Nanoseconds since some moment, the same one in every process of this machine. Goes on while the machine sleeps."""


class Clock:
    """A time of day that never jumps and never goes back. One thread may correct it while others read it.

    Args:
        offset: the time of day minus `steady_ns`; None reads this machine's clock.
    """

    __slots__ = ("_line",)

    def __init__(self, offset: int | None = None) -> None:
        at = steady_ns()
        # The offset, and what remains of it to be corrected since when: in one tuple, so that a reader never sees halves.
        self._line = (time.time_ns() - at if offset is None else offset, at, 0)

    def now(self) -> int:
        """Now in ns since 1970, within 1 … LATEST; 0 means "never" in the store."""
        return self.at(steady_ns())

    def at(self, steady: int) -> int:
        """The time when `steady_ns` was this."""
        offset, since, ahead = self._line
        most = (steady - since) // _SLEW
        if ahead > most:
            ahead = most
        elif ahead < -most:
            ahead = -most
        found = offset + ahead + steady
        return found if 0 < found <= LATEST else min(max(found, 1), LATEST)

    @property
    def offset(self) -> int:
        """The time of day minus `steady_ns`, now: it gives another process of this machine the same clock."""
        at = steady_ns()
        return self.at(at) - at

    @property
    def ahead(self) -> int:
        """By how many ns the clock that this one stands for was ahead when it was read last."""
        return self._line[2]

    def follow(self, read: int, at: int) -> None:
        """The clock that this one stands for was read at `at` (`steady_ns`)."""
        here = self.at(at)
        self._line = (here - at, at, read - here)

    def start(self, read: int, at: int) -> None:
        """As `follow`, and all at once: before anybody has used this clock."""
        self._line = (read - at, at, 0)
