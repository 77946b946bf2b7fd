"""What is garbage-collected while it still has something to do, such as a session that nobody closed.

A finalizer may run in any thread, between any two bytecodes, with any lock held. So it must not wait, and takes no lock: it
hands its last work to a thread of its own, which keeps the object alive until that is done. What is left when the process ends
is done then.
"""

import contextlib
import logging
from _thread import start_new_thread
from collections.abc import Callable

log = logging.getLogger("mechanicd.client")

_left: set[Callable[[], object]] = set()


def do_later(work: Callable[[], object]) -> None:
    """Does it soon, on another thread; to be called by a finalizer.

    Args:
        work: may be called twice, also at the same time; then the second call waits for the first.
    """
    _left.add(work)
    with contextlib.suppress(RuntimeError):  # the interpreter is ending and starts no threads: `do_all` comes
        start_new_thread(_do, (work,))  # threading.Thread takes a lock that this thread may hold


def do_all() -> None:
    """At the end of the process: does, or waits for, all that is left."""
    while works := list(_left):  # one may leave another
        for work in works:
            _do(work)


def forget() -> None:
    """In a forked child: what is left is the parent's."""
    _left.clear()


def _do(work: Callable[[], object]) -> None:
    try:
        work()
    except Exception:
        log.exception("closing what was garbage-collected failed")
    finally:
        _left.discard(work)
