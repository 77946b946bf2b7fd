"""How long a close is tried. At the end of a process all closes share that time."""

import contextlib
import time
from collections.abc import Iterator
from typing import Final

CLOSE_SECONDS: Final = 10.0
"""For one close, unless a step's deadline is longer; at the end of a process, for all together."""
_LEAST_SECONDS: Final = 0.2
"""For each of them, whatever the others took."""
_common_end = 0.0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """All closes inside, on whatever thread, have a common end."""
    global _common_end
    before, _common_end = _common_end, _common_end or time.monotonic() + CLOSE_SECONDS
    try:
        yield
    finally:
        _common_end = before


def until(deadline: float) -> float:
    """The moment (time.monotonic) until which a close that begins now may be tried.

    Args:
        deadline: of the session's steps.
    """
    now = time.monotonic()
    return max(_common_end, now + _LEAST_SECONDS) if _common_end else now + max(deadline, CLOSE_SECONDS)
