"""The clock of a process as a test sets it: the seconds in the file TEST_CLOCK are added. For a folder in PYTHONPATH."""

import os
import time

_real, _real_ns = time.time, time.time_ns


def _ahead() -> float:
    try:
        with open(os.environ["TEST_CLOCK"]) as file:
            return float(file.read() or 0)
    except (KeyError, OSError, ValueError):
        return 0.0


def _time_ns() -> int:
    return _real_ns() + int(_ahead() * 1e9)


time.time = lambda: _real() + _ahead()
time.time_ns = _time_ns
