"""Closing a session at its server: what is tried again, and what is said if it fails."""

import time
from collections.abc import Callable
from typing import Final

from mechanicd.client._connection import Connection, Ended, Refused
from mechanicd.client._errors import SURVIVED, AccessDenied, MechanicdError, SessionClosed, SessionFenced
from mechanicd.client._opening import CALL_SECONDS
from mechanicd.client._wire import STATUS
from mechanicd.v1 import tuner_service_pb2

_NOWHERE: Final = "; a checkpoint resumes without them"


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
            request = tuner_service_pb2.CloseSessionRequest(session=opener.session, status=STATUS[status], message=message)
            opener.call("CloseSession", request, min(left, CALL_SECONDS))
        except (*SURVIVED, SessionClosed) as error:
            # SessionClosed: the server may have restarted since; reconnecting tells.
            if time.monotonic() >= end or isinstance(connection.state, Ended | Refused):
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
    if isinstance(error, SessionFenced):  # the run lives on: it is not to be closed from outside
        lacks = f"its history lacks {steps}{kept or _NOWHERE}" if len(backlog) else "all its steps are stored"
        return f"{name}: closed, and another session, that has the run since, records how it ends; {lacks} [{error.reason}]"
    if not len(backlog):
        left = "closed, but the server could not be told how it ended; all its steps are stored"
    elif error.reason in ("STORE_UNAVAILABLE", "DEADLINE_EXCEEDED") and backlog.answered == backlog.last_step:
        left = f"closed before its store took {steps}; the server has them in memory, and loses them if it stops{kept}"
    else:
        away = "refuses this client" if isinstance(error, AccessDenied) else "is unreachable"
        left = f"closed while the server {away}; its history lacks {steps}{kept or _NOWHERE}"
    remedy = f"`mechanicd runs close {name} --status {status}` records how it ended, once the server answers"
    return f"{name}: {left}. {remedy}: {error}"
