"""The named values: a run's status, a step's outcome, an event's kind, an alert's kind. Stores keep the values."""

from enum import IntEnum, StrEnum


class RunStatus(StrEnum):
    """The status of a run."""

    RUNNING = "running"
    SILENT = "silent"
    """Never stored: a running run whose next step is long overdue; see `judged`."""
    PREEMPTED = "preempted"
    FAILED = "failed"
    FINISHED = "finished"


class StepOutcome(IntEnum):
    """The outcome of a step; the numbers of the contract and of the packed records."""

    TUNED = 1
    NON_FINITE = 2
    HELD = 3


class EventKind(StrEnum):
    """The kind of an event."""

    OPENED = "opened"
    RESUMED = "resumed"
    REATTACHED = "reattached"
    REWOUND = "rewound"
    ADOPTED = "adopted"
    FENCED = "fenced"
    CLOSED = "closed"
    OUTAGE = "outage"
    FORKED = "forked"
    REWOUND_BY_HAND = "rewound_by_hand"
    RENAMED = "renamed"
    ARCHIVED = "archived"
    RESTORED = "restored"


class AlertKind(StrEnum):
    """The kind of an alert, in the order in which alerts are listed."""

    SILENT = "silent"
    STUCK = "stuck"
    COLLAPSED = "collapsed"
    RUNNING_AWAY = "running_away"
    NON_FINITE = "non_finite"
    OSCILLATING = "oscillating"
    OUTAGE = "outage"
    DAMAGED = "damaged"
