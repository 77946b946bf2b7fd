"""Where a new session starts: a pure decision, with an explanation for people."""

from dataclasses import asdict, dataclass, replace
from typing import Final

from mechanicd.runs import RunRow, RunStats
from mechanicd.service._errors import ServiceError
from mechanicd.tuner import StateError, TunerConfig, TunerState
from mechanicd.v1 import names, tuner_service_pb2

CREATED: Final = tuner_service_pb2.OPEN_OUTCOME_CREATED
RESUMED: Final = tuner_service_pb2.OPEN_OUTCOME_RESUMED
REWOUND: Final = tuner_service_pb2.OPEN_OUTCOME_REWOUND
ADOPTED: Final = tuner_service_pb2.OPEN_OUTCOME_ADOPTED
REATTACHED: Final = tuner_service_pb2.OPEN_OUTCOME_REATTACHED

Start = int | TunerState | None
"""What the trainer asks for: after this step, at a checkpoint's tuner state, or (None) after the server's last step."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a session starts.

    Attributes:
        outcome: CREATED, RESUMED, REWOUND or ADOPTED.
        after_step: the step that the session starts after.
        state: the tuner's state there, or None where it must be replayed from the history up to `after_step`.
        explanation: why, for the log and the page.
    """

    outcome: "tuner_service_pb2.OpenOutcome"
    after_step: int
    state: TunerState | None
    explanation: str


def decide(row: RunRow, fresh: bool, start: Start) -> Decision:
    """Where a session on this run starts.

    A checkpoint wins over the server: the parameters and Δ are the trainer's, and S only fits those.

    Args:
        row: the run as stored, with every answered step committed.
        fresh: whether the run was created for this session.
        start: what the trainer asked for.

    Raises:
        ServiceError: RESUME_STEP_UNKNOWN.
    """
    last = row.last_step
    if isinstance(start, TunerState):
        if start.step == last and start.to_bytes() == row.state:
            outcome = CREATED if fresh else RESUMED
            return Decision(outcome, last, start, f"continues after step {last}, which the checkpoint and the server both have")
        if start.step < last:
            return Decision(
                REWOUND,
                start.step,
                start,
                f"the checkpoint is at step {start.step} and the server was at step {last}: the run rewinds",
            )
        known = "did not know the run" if fresh else f"was at step {last}"
        return Decision(
            ADOPTED,
            start.step,
            start,
            f"the checkpoint is at step {start.step} and the server {known}: the checkpoint's state is adopted",
        )
    after_step = last if start is None else start
    if fresh and after_step == 0:
        return Decision(CREATED, 0, TunerState.initial(row.config), "a new run")
    if after_step == last:
        return Decision(RESUMED, last, stored(row), f"continues after step {last}")
    if after_step > last:
        raise _step_unknown(after_step, last)
    if after_step == 0:
        state = TunerState.initial(row.config)
        return Decision(REWOUND, 0, state, f"training starts over: the run rewinds from step {last} to its start")
    return Decision(
        REWOUND, after_step, None, f"asked to start after step {after_step} and the server was at step {last}: the run rewinds"
    )


def stored(row: RunRow) -> TunerState:
    """The tuner's state after the last step, as stored.

    Raises:
        ServiceError: STORE_DAMAGED. A trainer that went on from it would train with a wrong S.
    """
    try:
        state = TunerState.from_bytes(row.state, row.config)
        wrong = "" if (state.step, state.scale) == (row.last_step, row.scale) else f"it is not that of step {row.last_step}"
    except StateError as error:
        wrong = str(error)
    if wrong:
        raise ServiceError(
            "STORE_DAMAGED",
            f"the tuner's state of {names.RunName(row.project, row.run)} is damaged in the store ({wrong}); start from a "
            "checkpoint, whose state takes its place, or after an earlier step, from which the history is replayed",
        )
    return state


def stats(row: RunRow, decision: Decision) -> RunStats:
    """The stats that a session starts with. If it doesn't continue after the last step, they start over."""
    continues = decision.outcome in (CREATED, RESUMED)
    return replace(row.stats, away=0) if continues else RunStats(since=decision.after_step)


def from_scratch(start: Start) -> bool:
    """Whether the trainer starts a new training, and doesn't mean to continue one."""
    return (start.step if isinstance(start, TunerState) else start) == 0


def renamed(name: names.RunName, row: RunRow) -> ServiceError:
    """The run that the trainer means to continue has another name now: a new one would have but a part of its history."""
    now = names.RunName(row.project, row.run)
    return ServiceError(
        "RUN_RENAMED",
        f"{name} was renamed to {now}; continue it under that name, or start a new run of this name from step 0",
        {"name": name, "renamed_to": now},
        field="name",
    )


def check_new(start: Start) -> None:
    """Refuses a start that a new run can't have, before the run is created.

    Raises:
        ServiceError: RESUME_STEP_UNKNOWN.
    """
    if isinstance(start, int) and start > 0:
        raise _step_unknown(start, 0)


def check_config(stored: TunerConfig, given: TunerConfig) -> None:
    """Refuses a config that differs from the stored one.

    Raises:
        ServiceError: CONFIG_MISMATCH, with each difference.
    """
    if stored == given:
        return
    left, right = asdict(stored), asdict(given)
    differences = {field: f"{left[field]} ≠ {right[field]}" for field in left if left[field] != right[field]}
    listed = "; ".join(f"{field}: {text}" for field, text in differences.items())
    raise ServiceError(
        "CONFIG_MISMATCH",
        f"the run exists with a different config (stored ≠ given: {listed}); use the stored config or another run name",
        differences,
        field="config",
    )


def _step_unknown(asked: int, last: int) -> ServiceError:
    return ServiceError(
        "RESUME_STEP_UNKNOWN",
        f"asked to start after step {asked}, but the server only has steps up to {last}; send your checkpoint's tuner state, "
        "or start after a step that the server has",
        {"requested": asked, "last_step": last},
        field="after_step",
    )
