"""The named values: a run's status, a step's outcome, an event's kind, an alert's kind. Stores keep the values as they are."""

from enum import IntEnum, StrEnum


class RunStatus(StrEnum):
    """Whether anybody trains."""

    RUNNING = "running"
    SILENT = "silent"
    """Never stored: a running run whose next step is long overdue; see `judged`."""
    PREEMPTED = "preempted"
    FAILED = "failed"
    FINISHED = "finished"


class StepOutcome(IntEnum):
    """What the tuner made of a step; the numbers of the contract and of the packed records."""

    TUNED = 1
    NON_FINITE = 2
    HELD = 3


class EventKind(StrEnum):
    """What happened to a run."""

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


class AlertKind(StrEnum):
    """Why somebody should look at a run, in the order in which alerts are listed."""

    SILENT = "silent"
    STUCK = "stuck"
    COLLAPSED = "collapsed"
    RUNNING_AWAY = "running_away"
    NON_FINITE = "non_finite"
    OSCILLATING = "oscillating"
    OUTAGE = "outage"
