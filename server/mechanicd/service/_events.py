"""What is noted of a run when its sessions come, go and come back. Pure: rows and times in, events out."""

from typing import Final

from mechanicd.runs import EventKind, EventRow, RunRow, RunStatus, duration
from mechanicd.service import _convert, _sessions
from mechanicd.service._sessions import Decision

OUTAGE_SECONDS: Final = 2.0
OUTAGE_FACTOR: Final = 4.0
_KINDS: Final = {
    _sessions.CREATED: EventKind.OPENED,
    _sessions.RESUMED: EventKind.RESUMED,
    _sessions.REWOUND: EventKind.REWOUND,
    _sessions.ADOPTED: EventKind.ADOPTED,
}


def opened(row: RunRow, decision: Decision, now: int, client: str) -> tuple[EventRow, ...]:
    """A new session takes the run; also that it took it from one that had not closed.

    Args:
        row: the run before.
    """
    by = f" (by {_convert.text_in(client, 200)})" if client else ""
    taken = EventRow(now, decision.after_step, _KINDS[decision.outcome], decision.explanation + by)
    if row.status != RunStatus.RUNNING or not row.session:
        return (taken,)
    fenced = f"session {row.session_count} had not closed; a new one takes the run from it"
    return (EventRow(now, row.last_step, EventKind.FENCED, fenced), taken)


def came_back(row: RunRow, now: int, *, in_memory: bool) -> list[EventRow]:
    """The session that holds the run is back; and the stretch before it, where it was longer than usual."""
    how = (
        "after a lost connection"
        if in_memory
        else "to a server that did not have it in memory: it was restarted, or is another"
    )
    events = [
        EventRow(now, row.last_step, EventKind.REATTACHED, f"the session came back {how}; the server has step {row.last_step}")
    ]
    quiet, usual = (now - max(row.step_time, row.open_time)) / 1e9, row.interval / 1e9
    if quiet > max(OUTAGE_SECONDS, OUTAGE_FACTOR * usual):
        rhythm = f", about {quiet / usual:.0f} of the usual intervals" if usual else ""
        message = (
            f"no step reached the server for {duration(quiet)} before{rhythm}; what the trainer did meanwhile, if it went on, "
            "comes with its backlog"
        )
        events.insert(0, EventRow(now, row.last_step, EventKind.OUTAGE, message))
    return events


def closed(step: int, now: int, status: str, message: str) -> EventRow:
    """The trainer closed its session."""
    said = f": {_convert.text_in(message, 1000)}" if message else ""
    return EventRow(now, step, EventKind.CLOSED, f"closed as {status}{said}")
