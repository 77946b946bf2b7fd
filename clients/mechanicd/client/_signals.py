"""SIGTERM: a trainer that is told to stop leaves its runs as preempted, and then ends as it would have."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, Final

CLOSE_SECONDS: Final = 10.0

_told = threading.Event()
_installed: Any = None
_former: Any = None


def told_to_stop() -> bool:
    """Whether SIGTERM came."""
    return _told.is_set()


def watch(close: Callable[[], None]) -> None:
    """From now on SIGTERM is noticed. Where the program has no handler of its own, `close` is called before the process ends.

    Does nothing off the main thread, where Python allows no handlers, nor where SIGTERM is ignored. A handler that the
    program has is called as before; one that it installs later takes this one's place.
    """
    global _installed, _former
    if _installed is not None or threading.current_thread() is not threading.main_thread():
        return
    former = signal.getsignal(signal.SIGTERM)
    if former is None or former is signal.SIG_IGN:
        return

    def handle(number: int, frame: Any) -> None:
        _told.set()
        if callable(former):
            former(number, frame)
            return
        # On a thread: this one may hold a lock of grpc's, or ours, at the line where the signal met it.
        closing = threading.Thread(target=close, name="mechanicd-sigterm", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, handle)
    _installed, _former = handle, former


def forget() -> None:
    """In a forked child: the runs are the parent's, and SIGTERM does what it did before."""
    global _installed
    if _installed is not None and signal.getsignal(signal.SIGTERM) is _installed:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, _former)
    _installed = None
    _told.clear()
