"""The time of day, for the record. Durations come from the monotonic clock: the time of day may be set back or forward."""

from time import time_ns
from typing import Final

LATEST: Final = 2**63 - 1
"""What fits into a step's record and into the stores' columns: a moment in the year 2262."""


def now_ns() -> int:
    """Now in ns since 1970, within 1 … LATEST whatever the clock says; 0 means "never" in the store."""
    return min(max(time_ns(), 1), LATEST)
