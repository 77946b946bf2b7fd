"""SIGTERM: a trainer that is told to stop leaves its runs as preempted, and then ends as it would have."""

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Final

CLOSE_SECONDS: Final = 10.0

_told = threading.Event()
_ending = threading.Event()
_installed: Any = None
_former: Any = None


def told_to_stop() -> bool:
    """Whether SIGTERM came."""
    return _told.is_set()


def await_end() -> None:
    """Never returns where SIGTERM came and this module is about to end the process for it; else at once."""
    while _ending.is_set():
        time.sleep(1.0)


class Turn:
    """`with turn:` around what a training asks of a session: `turn.closing` is taken before it or after it, not amid.

    A thread that comes once the process is being ended waits for that, and never sees the session closed under its hands.
    Reentrant, as a handler of the program's own may close the session amid a step, on the same thread.
    """

    def __init__(self) -> None:
        self.closing = threading.RLock()

    def __enter__(self) -> None:
        self.closing.acquire()
        if _ending.is_set():
            self.closing.release()
            await_end()

    def __exit__(self, *_: object) -> None:
        self.closing.release()


def watch(close: Callable[[], None]) -> None:
    """From now on SIGTERM is noticed. Where the program has no handler of its own, `close` is called before the process ends.

    `close` is called on a thread of its own, while the program goes on, until it ends or calls `await_end`: the line at which
    the signal met the main thread may hold a lock that `close` needs, of a session or of grpc, and must be let out of it.

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
        if not _ending.is_set():
            _ending.set()
            threading.Thread(target=_end, args=(close,), name="mechanicd-sigterm", daemon=True).start()

    signal.signal(signal.SIGTERM, handle)
    _installed, _former = handle, former


def _end(close: Callable[[], None]) -> None:
    """Closes what can be closed in time, then lets SIGTERM do what it does without a handler."""
    closing = threading.Thread(target=close, name="mechanicd-close", daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS)
    # Python takes a handler away on the main thread only, and that may wait, in C, for a thread that never comes back from
    # `await_end`; so by the function that Python itself calls for it.
    take_away = ctypes.pythonapi.PyOS_setsig
    take_away.argtypes, take_away.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    take_away(signal.SIGTERM, None)
    os.kill(os.getpid(), signal.SIGTERM)


def forget() -> None:
    """In a forked child: the runs are the parent's, and SIGTERM does what it did before."""
    global _installed
    if _installed is not None and signal.getsignal(signal.SIGTERM) is _installed:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, _former)
    _installed = None
    _told.clear()
    _ending.clear()
