"""Closing a session at its server: how long that is tried, what is tried again, and what is said if it fails."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final

from mechanicd.client._connection import Connection, Ended
from mechanicd.client._errors import MechanicdError, ServerUnavailable, SessionClosed
from mechanicd.client._opening import CALL_SECONDS
from mechanicd.v1 import resources_pb2, tuner_service_pb2

CLOSE_SECONDS: Final = 10.0
"""How long a close is tried, unless a step's deadline is longer. At the end of a process: all closes together."""
_LEAST_SECONDS: Final = 0.2
"""Each close is tried at least for this long, whatever the others took."""
_STATUS: Final = {
    "finished": resources_pb2.RUN_STATUS_FINISHED,
    "failed": resources_pb2.RUN_STATUS_FAILED,
    "preempted": resources_pb2.RUN_STATUS_PREEMPTED,
}
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


def close(
    connection: Connection, flush: Callable[[float], int], status: str, message: str, end: float
) -> MechanicdError | None:
    """Makes every step durable and releases the run, and tries both again while there is time.

    Args:
        flush: makes every step durable in so many seconds, and reconnects as needed, or raises MechanicdError.
        end: when the time is up (time.monotonic).

    Returns:
        What stood in the way in the end; None if the run is closed.
    """
    opener = connection.opener
    while True:
        left = max(0.001, end - time.monotonic())
        try:
            flush(left)
            request = tuner_service_pb2.CloseSessionRequest(session=opener.session, status=_STATUS[status], message=message)
            opener.call("CloseSession", request, min(left, CALL_SECONDS))
        except (ServerUnavailable, SessionClosed) as error:
            # SessionClosed: the server may have restarted since; reconnecting tells.
            if time.monotonic() >= end or isinstance(connection.state, Ended):
                return error
            if error.reason == "STORE_UNAVAILABLE" and opener.route.width == 1:
                time.sleep(max(0.0, min(0.1, end - time.monotonic())))  # it answers, so it is reachable
            else:
                connection.lose(error)
        except MechanicdError as error:
            return error
        else:
            return None


def unclosed(connection: Connection, status: str, error: MechanicdError, kept: str = "") -> str:
    """What a close that failed leaves behind, for people.

    Args:
        kept: where the steps are that the server lacks; "" if nowhere.
    """
    name, backlog = connection.opener.name, connection.backlog
    steps = f"the last {len(backlog)} steps, {backlog.last_step - len(backlog) + 1} to {backlog.last_step}"
    if not len(backlog):
        left = "closed, but the server could not be told how it ended; all its steps are stored"
    elif error.reason in ("STORE_UNAVAILABLE", "DEADLINE_EXCEEDED") and backlog.answered == backlog.last_step:
        left = f"closed before its store took {steps}; the server has them in memory, and loses them if it stops before that"
    else:
        left = f"closed while the server is unreachable; its history lacks {steps}{kept or NOWHERE}"
    remedy = f"`mechanicd runs close {name} --status {status}` records how it ended, once the server answers"
    return f"{name}: {left}. {remedy}: {error}"
