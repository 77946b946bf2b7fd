"""SIGTERM: a trainer that is stopped closes its runs as preempted, and then ends as it would have without this module."""

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from mechanicd.client._deferred import behind, deferred

CLOSE_SECONDS: Final = 10.0

_told = threading.Event()
_ending = threading.Event()
_installed: Any = None
_former: Any = None


def told_to_stop() -> bool:
    """Whether SIGTERM came."""
    return _told.is_set()


def await_end() -> None:
    """Returns at once; but never, once SIGTERM came and this module is about to end the process."""
    while _ending.is_set():
        time.sleep(1.0)


class Turn:
    """`with turn:` around each use of a session, so that the thread that closes it after SIGTERM never does so in the middle.

    A thread that arrives while the process is ending waits for that end, rather than find its session closed.
    Reentrant, as the program's own signal handler may close the session in the middle of a step, on the same thread.
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
    """Handles SIGTERM from now on. If the program has no handler of its own, `close` is called before the process ends.

    `close` runs on a thread of its own, while the program continues until it ends or calls `await_end`: the signal may have
    interrupted the main thread while it holds a lock that `close` needs (a session's or grpc's), and it must be able to
    release it.

    Does nothing off the main thread, where Python allows no handlers, or if SIGTERM is ignored. The program's existing handler
    is called as before; one that it installs later replaces this one.
    """
    global _installed, _former
    if _installed is not None or threading.current_thread() is not threading.main_thread():
        return
    former = behind(signal.getsignal(signal.SIGTERM))
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

    if not callable(former):
        deferred.harmless = handle  # it never raises, and must come through where a step hangs
    signal.signal(signal.SIGTERM, handle)
    _installed, _former = handle, former


def _end(close: Callable[[], None]) -> None:
    """Closes what can be closed in time, then lets SIGTERM take its default action."""
    closing = threading.Thread(target=close, name="mechanicd-close", daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS)
    # signal.signal works on the main thread only, and that one may be blocked in C on a thread that never returns from
    # `await_end`. So restore the default action by the C function that Python itself uses.
    take_away = ctypes.pythonapi.PyOS_setsig
    take_away.argtypes, take_away.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    take_away(signal.SIGTERM, None)
    os.kill(os.getpid(), signal.SIGTERM)


def forget() -> None:
    """In a forked child: the runs are the parent's, so SIGTERM gets its former handler back."""
    global _installed
    if _installed is not None and signal.getsignal(signal.SIGTERM) is _installed:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, _former)
    _installed = None
    _told.clear()
    _ending.clear()
