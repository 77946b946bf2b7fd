"""A run in memory: its tuner, and the steps that the store has not got yet."""

from dataclasses import replace
from time import time_ns

from mechanicd import runs
from mechanicd.runs import EventRow, RunRow, StepRow
from mechanicd.service import _convert
from mechanicd.service._errors import ServiceError
from mechanicd.store import Commit
from mechanicd.tuner import ReductionsError, Tuner, TunerState
from mechanicd.v1 import resources_pb2, tuner_service_pb2

StepRequest = tuner_service_pb2.StepRequest
StepResult = tuner_service_pb2.StepResult

_NAN = float("nan")


class OpenRun:
    """One run that a session holds. `step` is the hot path: no lock, no log, no store, no task.

    Attributes:
        row: the run as it was when the session took hold.
        state: the tuner's state after the last step.
        begun_after: the step after which the session began.
        durable_step: the last step that the store has.
        fenced_by: the session that took the run over, 0 while this one holds it.
        vitals: after the durable step; `away` and `returns` in them as of now.
    """

    __slots__ = (
        "_committing_after",
        "_events",
        "_first_scale",
        "_groups",
        "_interval",
        "_last",
        "_pending",
        "_step_time",
        "_stepped",
        "_touched",
        "_tuner",
        "begun_after",
        "durable_step",
        "fenced_by",
        "row",
        "state",
        "stats",
    )

    def __init__(self, row: RunRow, begun_after: int, last: StepRow | None) -> None:
        self.row = row
        self.begun_after = begun_after
        self.state = TunerState.from_bytes(row.state, row.config)
        self.durable_step = row.last_step
        self.fenced_by = 0
        self.stats = row.stats
        self._first_scale = runs.first_scale(row.config)
        self._events: list[EventRow] = []
        self._touched = False
        self._tuner = Tuner(row.config)
        self._groups = len(row.config.scale_groups)
        self._pending: list[bytes] = []
        self._committing_after = row.last_step
        self._step_time = row.step_time
        self._interval = row.interval
        self._stepped = False
        self._last = None if last is None else rebuilt(row.session, last)

    def now(self) -> RunRow:
        """The run's row as it will be with all steps so far."""
        return replace(self.row, last_step=self.state.step, step_time=self._step_time, interval=self._interval)

    @property
    def dirty(self) -> bool:
        """Whether steps wait for their commit, or something to note."""
        return bool(self._pending) or self._touched

    def step(self, request: StepRequest) -> StepResult:
        """Takes one step, or gives the stored result of the last one again.

        Raises:
            ServiceError: GROUP_COUNT_MISMATCH, NEGATIVE_SQUARE, STEP_OUT_OF_ORDER, STEP_CONFLICT; nothing changed then.
        """
        if request.step != self.state.step + 1:
            return self._again(request)
        tuner, state = self._tuner, self.state
        try:
            groups = tuner.groups(_convert.reductions_in(request.reductions, self._groups))
        except ReductionsError as error:
            raise ServiceError(error.reason, error.message, error.facts, field="reductions") from None
        h = None if request.hold else tuner.h(state, groups)
        if h is not None:
            state, outcome = tuner.advance(state, h), runs.StepOutcome.TUNED
        else:
            state, outcome = tuner.hold(state), runs.StepOutcome.HELD if request.hold else runs.StepOutcome.NON_FINITE
            h = (_NAN,) * self._groups
        now = time_ns()
        if self._stepped:
            gap, usual = now - self._step_time, self._interval
            # A slow average; a pause (an evaluation, a checkpoint) counts as eight intervals at most.
            self._interval = usual + ((min(gap, 8 * usual) - usual) >> 4) if usual else gap
        self._stepped = True
        lr = request.base_lr if request.HasField("base_lr") else None
        g, x, gg, xx = zip(*groups, strict=True)
        self._pending.append(
            runs.pack(self._groups, StepRow(state.step, now, outcome, g, x, gg, xx, h, state.scale, lr)),
        )
        result = StepResult(
            session=request.session,
            step=state.step,
            scale=state.scale,
            durable_step=self.durable_step,
            outcome=outcome,  # type: ignore[arg-type]  # the store's numbers are the contract's
        )
        self.state, self._step_time, self._last = state, now, (request, result)
        return result

    def _again(self, request: StepRequest) -> StepResult:
        if request.step == self.state.step and self._last is not None:
            taken, result = self._last
            return repeated(request, taken, result)
        kind = TakenBefore if self.begun_after < request.step <= self.state.step else ServiceError
        raise kind(
            "STEP_OUT_OF_ORDER",
            f"step {request.step} came, step {self.state.step + 1} was expected; "
            "steps are 1, 2, … without a gap, and only those of the same session may be sent again",
            {"expected": self.state.step + 1, "received": request.step},
        )

    def came_back(self, time: int, events: list[EventRow]) -> None:
        """The session is back at `time` (ns since 1970), over another connection."""
        self.stats = self.stats.came_back(time)
        self._events += events
        self._touched = True

    def left(self, time: int) -> None:
        """The trainer's connection ended, and the session is open."""
        self.stats = replace(self.stats, away=time)
        self._touched = True

    def collect(self) -> Commit:
        """What the store has not got yet. Follow it by `sealed`, then by `committed` or `restore`."""
        if self._pending and self.stats.away < self._step_time:
            self.stats = replace(self.stats, away=0)
        records, self._pending, self._touched = b"".join(self._pending), [], False
        events, self._events = tuple(self._events), []
        after, self._committing_after = self._committing_after, self.state.step
        return Commit(
            run_id=self.row.id,
            epoch=self.row.epoch,
            session=self.row.session,
            after_step=after,
            last_step=self.state.step,
            state=self.state.to_bytes(),
            scale=self.state.scale,
            step_time=self._step_time,
            interval=self._interval,
            stats=self.stats,
            events=events,
            records=records,
        )

    def sealed(self, commit: Commit) -> Commit:
        """The commit with the vitals after its steps. Changes nothing here: any thread may call it."""
        return replace(commit, stats=commit.stats.after(self._groups, self._first_scale, commit.records))

    def committed(self, commit: Commit) -> None:
        """The commit is on disk."""
        self.durable_step = commit.last_step
        self.stats = replace(commit.stats, away=self.stats.away, returns=self.stats.returns)

    def restore(self, commit: Commit) -> None:
        """The commit failed: its steps wait again."""
        if commit.records:
            self._pending.insert(0, commit.records)
        self._events[:0] = commit.events
        self._touched = True
        self._committing_after = commit.after_step


class TakenBefore(ServiceError):
    """The session took this step before its last one; the history has its reply."""


def repeated(request: StepRequest, taken: StepRequest, result: StepResult) -> StepResult:
    """The result of a step that was taken already.

    Raises:
        ServiceError: STEP_CONFLICT, where it was taken with other reductions.
    """
    if request.hold == taken.hold and _same(request.reductions, taken.reductions):
        return result
    raise ServiceError(
        "STEP_CONFLICT",
        f"step {request.step} was taken with other reductions; a step is sent again with the same ones, or not at all",
        {"step": request.step},
    )


def _same(left: resources_pb2.Reductions, right: resources_pb2.Reductions) -> bool:
    return left.SerializeToString(deterministic=True) == right.SerializeToString(deterministic=True)


def rebuilt(session: int, row: StepRow) -> tuple[StepRequest, StepResult]:
    """A step's request and result from the history, so that it may be sent again."""
    record = _convert.step_out(row)
    request = StepRequest(
        session=session, step=row.step, reductions=record.reductions, hold=row.outcome == runs.StepOutcome.HELD
    )
    result = StepResult(
        session=session,
        step=row.step,
        scale=row.scale,
        durable_step=row.step,
        outcome=record.outcome,
    )
    return request, result
