"""Returns memory that is free to the operating system."""

import ctypes
from collections.abc import Callable
from functools import cache


def trim() -> None:
    """Returns what the C library's allocator holds without using it; takes milliseconds. Nothing happens without glibc.

    A fold reads up to 16 MiB of journal in thousands of pieces. glibc keeps that for later: 10 to 20 MiB, for ever.
    """
    _malloc_trim()(0)


@cache
def _malloc_trim() -> Callable[[int], object]:
    try:
        found: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; on Windows there is no CDLL(None)
        return lambda _: None
    return found
