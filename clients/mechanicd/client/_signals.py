"""SIGTERM and SIGHUP: a trainer that is stopped closes its runs as preempted, and then ends as it would have anyway.

SIGTERM comes from schedulers and from `kill`; SIGHUP where the terminal of the training was closed or its connection was lost.
"""

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from mechanicd.client._deferred import behind, deferred

CLOSE_SECONDS: Final = 12.0
"""A little longer than all sessions together take at most, so that they can say what they could not do."""

_SIGNALS: Final = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_told: list[str] = []
_ending = threading.Event()
_former: dict[int, Any] = {}
_installed: dict[int, Any] = {}
_close: Callable[[], None] | None = None


def told_to_stop() -> str:
    """The name of the signal to stop that came; "" if none did."""
    return _told[0] if _told else ""


def await_end() -> None:
    """Returns at once; but never, once such a signal came and this module is about to end the process."""
    while _ending.is_set():
        time.sleep(1.0)


class Turn:
    """`with turn:` around each use of a session, so that the thread that closes it after a signal never does so in the middle.

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
    """Handles the signals from now on. If the program has no handler of its own, `close` is called before the process ends.

    `close` runs on a thread of its own, while the program continues until it ends or calls `await_end`: the signal may have
    interrupted the main thread while it holds a lock that `close` needs (a session's or grpc's), and it must be able to
    release it.

    Does nothing off the main thread, where Python allows no handlers, or for a signal that is ignored. The program's existing
    handler is called as before; one that it installs later replaces this one.
    """
    global _close
    if _close is not None or threading.current_thread() is not threading.main_thread():
        return
    _close = close
    for number in _SIGNALS:
        former = behind(signal.getsignal(number))
        if former is None or former is signal.SIG_IGN:
            continue
        if not callable(former):
            deferred.harmless = _stop  # it never raises, and must come through where a step hangs
        _former[number], _installed[number] = former, _tell if callable(former) else _stop
        signal.signal(number, _installed[number])


def _tell(number: int, frame: Any) -> None:
    _told.append(signal.Signals(number).name)
    _former[number](number, frame)


def _stop(number: int, frame: Any) -> None:
    _told.append(signal.Signals(number).name)
    if _close is not None and not _ending.is_set():
        _ending.set()
        threading.Thread(target=_end, args=(_close, number), name="mechanicd-sigterm", daemon=True).start()


def _end(close: Callable[[], None], number: int) -> None:
    """Closes what can be closed in time, then lets the signal take its default action."""
    closing = threading.Thread(target=close, name="mechanicd-close", daemon=True)
    closing.start()
    closing.join(CLOSE_SECONDS)
    # signal.signal works on the main thread only, and that one may be blocked in C on a thread that never returns from
    # `await_end`. So restore the default action by the C function that Python itself uses.
    take_away = ctypes.pythonapi.PyOS_setsig
    take_away.argtypes, take_away.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    take_away(number, None)
    os.kill(os.getpid(), number)
    # Still here: a container's first process has no default action. It ends as a shell would report that signal.
    time.sleep(1.0)
    os._exit(128 + number)


def forget() -> None:
    """In a forked child: the runs are the parent's, so the signals get their former handlers back."""
    global _close
    for number, installed in _installed.items():
        if signal.getsignal(number) is installed:
            with contextlib.suppress(ValueError):
                signal.signal(number, _former[number])
    _installed.clear()
    _former.clear()
    _close = None
    _told.clear()
    _ending.clear()
