"""The events of a run when its sessions open, close and reattach. Pure: rows and times in, events out."""

from typing import Final

from mechanicd.runs import EventKind, EventRow, RunRow, RunStatus, duration
from mechanicd.service import _convert, _session_start
from mechanicd.service._session_start import Decision

OUTAGE_SECONDS: Final = 2.0
OUTAGE_FACTOR: Final = 4.0
_KINDS: Final = {
    _session_start.CREATED: EventKind.OPENED,
    _session_start.RESUMED: EventKind.RESUMED,
    _session_start.REWOUND: EventKind.REWOUND,
    _session_start.ADOPTED: EventKind.ADOPTED,
}


def opened(row: RunRow, decision: Decision, now: int, client: str) -> tuple[EventRow, ...]:
    """A new session takes the run. A FENCED event comes first if another session still held it.

    Args:
        row: the run as it was before.
    """
    by = f" (by {client})" if client else ""
    taken = EventRow(now, decision.after_step, _KINDS[decision.outcome], decision.explanation + by)
    if row.status != RunStatus.RUNNING or not row.session:
        return (taken,)
    fenced = f"session {row.session_count} had not closed; a new session took the run over"
    return (EventRow(now, row.last_step, EventKind.FENCED, fenced), taken)


def reattached(row: RunRow, now: int, *, in_memory: bool) -> list[EventRow]:
    """The session that holds the run reattached. An OUTAGE event comes first if the silence before was longer than usual."""
    how = (
        "after a lost connection"
        if in_memory
        else "to a server that did not have it in memory: it restarted, or another replica took over"
    )
    events = [
        EventRow(now, row.last_step, EventKind.REATTACHED, f"the session reattached {how}; the server has step {row.last_step}")
    ]
    since, usual = (now - max(row.step_time, row.open_time)) / 1e9, row.interval / 1e9
    if quiet(row, now):
        rhythm = f", about {since / usual:.0f} times the usual interval" if usual else ""
        message = (
            f"no step reached the server for the {duration(since)} before{rhythm}; if the trainer kept training, its backlog "
            "has those steps"
        )
        events.insert(0, EventRow(now, row.last_step, EventKind.OUTAGE, message))
    return events


def quiet(row: RunRow, now: int) -> bool:
    """Whether no step has come for much longer than usual."""
    return (now - max(row.step_time, row.open_time)) / 1e9 > max(OUTAGE_SECONDS, OUTAGE_FACTOR * row.interval / 1e9)


def closed(step: int, now: int, status: str, message: str) -> EventRow:
    """The trainer closed its session."""
    said = f": {_convert.text_in(message, 1000)}" if message else ""
    return EventRow(now, step, EventKind.CLOSED, f"closed as {status}{said}")
