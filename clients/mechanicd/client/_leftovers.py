"""What is garbage-collected while it still has something to do, such as a session that nobody closed.

A finalizer may run in any thread, between any two bytecodes, with any lock held. So it must not wait, and takes no lock: it
hands its last work to a thread of its own, which keeps the object alive until that is done. What is left when the process ends
is done then, and the threads are over before Python is: one that frees a tensor later than that aborts the process.
"""

import logging
import threading
import time
from _thread import LockType, allocate_lock, start_new_thread
from collections.abc import Callable
from typing import Final

LINGER_SECONDS: Final = 2.0
"""A program that fails does so soon after it has let go of its training."""

JOIN_SECONDS: Final = 5.0
"""At the end of the process, for threads whose work is done."""

log = logging.getLogger("mechanicd.client")

_left: set[Callable[[], object]] = set()
_threads: set[LockType] = set()  # one for each thread of `do_later`, held until the thread has let go of its work
_sequel = threading.Event()
_ending = False


def do_later(work: Callable[[], object]) -> None:
    """Does it soon, on another thread; to be called by a finalizer.

    Args:
        work: may be called twice, also at the same time; then the second call waits for the first.
    """
    _left.add(work)
    running = allocate_lock()
    running.acquire()
    _threads.add(running)
    try:
        start_new_thread(_run, ([work], running))  # threading.Thread takes a lock that this thread may hold
    except RuntimeError:  # the interpreter is ending and starts no threads: `do_all` comes
        _threads.discard(running)


def linger() -> None:
    """On the thread of `do_later`: waits for what may tell how a training ended: that the process ends, or that it goes on with
    another training, or for a while."""
    if not _ending:
        _sequel.wait(LINGER_SECONDS)


def ending() -> bool:
    """Whether `do_all` runs."""
    return _ending


def go_on() -> None:
    """The process goes on with another training: whoever lingers has waited enough."""
    global _sequel
    before, _sequel = _sequel, threading.Event()
    before.set()


def do_all() -> None:
    """At the end of the process: does, or waits for, all that is left."""
    global _ending
    _ending = True
    go_on()
    try:
        while works := list(_left):  # one may leave another
            for work in works:
                _do(work)
            del work
        deadline = time.monotonic() + JOIN_SECONDS
        for running in list(_threads):
            running.acquire(timeout=max(0.0, deadline - time.monotonic()))
    finally:
        _ending = False


def forget() -> None:
    """In a forked child: what is left is the parent's."""
    global _sequel, _ending
    _sequel, _ending = threading.Event(), False
    _left.clear()
    _threads.clear()


def _run(box: list[Callable[[], object]], running: LockType) -> None:
    try:
        _do(box.pop())
    finally:
        _threads.discard(running)
        running.release()


def _do(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception:
        log.exception("closing what was garbage-collected failed")
    finally:
        _left.discard(work)
