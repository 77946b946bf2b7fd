"""A run in memory: its tuner, and the steps that are not committed yet.

A step is answered from memory and committed later, so three step numbers matter: `state.step` (answered), `_committing_after`
(handed to the writer) and `durable_step` (in the store), in this order from high to low. Only a failed commit moves one of them
back: `restore` resets `_committing_after`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mechanicd import runs
from mechanicd.runs import EventRow, RunRow, StepRow
from mechanicd.service import _convert
from mechanicd.service._errors import ServiceError
from mechanicd.store import Clock, Commit, steady_ns
from mechanicd.tuner import Reductions, ReductionsError, Tuner, TunerState
from mechanicd.v1 import resources_pb2, tuner_service_pb2

StepRequest = tuner_service_pb2.StepRequest
StepResult = tuner_service_pb2.StepResult

_NAN = float("nan")


class ActiveRun:
    """A run that a session holds. `step` is the hot path: no lock, no log line, no store call, no task.

    Everything runs on the event loop, except `sealed`, which runs on the store's thread and changes nothing.

    Attributes:
        row: the run as stored when the session took it.
        session: the id of the session, which only its trainer knows; the row has its key.
        state: the tuner's state after the last step.
        begun_after: the step after which the session began.
        durable_step: the last step that the store has.
        fenced_by: the key of the session that is taking the run over, or 0. While it is set, no step may be taken.
        stats: as of the durable step, except `away`, `returns` and `seen`, which are current.
    """

    __slots__ = (
        "_clock",
        "_committing",
        "_committing_after",
        "_events",
        "_first_scale",
        "_groups",
        "_interval",
        "_is_wide",
        "_last",
        "_pending",
        "_step_time",
        "_tick",
        "_touched",
        "_tuner",
        "begun_after",
        "durable_step",
        "fenced_by",
        "row",
        "session",
        "state",
        "stats",
    )

    def __init__(self, row: RunRow, session: int, begun_after: int, last: StepRow | None, clock: Clock) -> None:
        self.row = row
        self.session = session
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
        self._is_wide = self.state.is_wide
        if self._is_wide:  # its bytes are many, and `state` is what counts from here on
            self.row = replace(row, state=b"")
        self._pending: list[bytes] = []
        self._committing_after = row.last_step
        self._committing = self.state
        self._step_time = row.step_time
        self._interval = row.interval
        self._tick = 0
        self._clock = clock
        self._last = None if last is None else rebuilt(session, last)

    def now(self) -> RunRow:
        """The run's row as it will be once all steps so far are committed."""
        return replace(self.row, last_step=self.state.step, step_time=self._step_time, interval=self._interval)

    @property
    def dirty(self) -> bool:
        """Whether there is anything to commit: steps, events, or changed stats."""
        return bool(self._pending) or self._touched

    def step(self, request: StepRequest) -> StepResult:
        """Takes one step, or repeats the stored result of the last one.

        Raises:
            ServiceError: GROUP_COUNT_MISMATCH, NEGATIVE_SQUARE, STEP_OUT_OF_ORDER, STEP_CONFLICT. Nothing changed then.
        """
        if request.step != self.state.step + 1:
            return self._again(request)
        # Everything that can be refused is checked before anything changes: a refused step leaves no trace.
        tuner, state = self._tuner, self.state
        groups: Sequence[Reductions] | NDArray[np.float64]
        if self._is_wide:  # as arrays: an object for each of thousands of groups would hold up everybody's steps
            g, x, gg, xx = groups = _convert.columns_in(request.reductions, self._groups)
        else:
            try:
                groups = tuner.groups(_convert.reductions_in(request.reductions, self._groups))
            except ReductionsError:  # it tells of the first field alone
                raise _convert.reductions_refused(request.reductions, self._groups) from None
            g, x, gg, xx = zip(*groups, strict=True)
        # h is None if a reduction is not finite. Such a step, like a held one, is recorded but leaves the tuner as it was.
        h = None if request.hold else tuner.h(state, groups)
        if h is not None:
            state, outcome = tuner.advance(state, h), runs.StepOutcome.TUNED
        else:
            state, outcome = tuner.hold(state), runs.StepOutcome.HELD if request.hold else runs.StepOutcome.NON_FINITE
            h = (_NAN,) * self._groups
        tick = steady_ns()
        now = self._clock.at(tick)
        if self._tick:  # not at this server's first step of the run
            gap, usual = tick - self._tick, self._interval
            # A slow average in integers; a pause (an evaluation, a checkpoint) counts as eight intervals at most.
            self._interval = usual + ((min(gap, 8 * usual) - usual) >> 4) if usual else gap
        self._tick = tick
        # A step of a spool file has the time at which it was taken; the run, as always, the time at which it arrived.
        taken = min(request.time_ns, now) if request.time_ns > 0 else now
        lr = request.base_lr if request.HasField("base_lr") else None
        self._pending.append(
            runs.pack(self._groups, StepRow(state.step, taken, outcome, g, x, gg, xx, h, state.scale, lr)),
        )
        result = StepResult(
            session=request.session,
            step=state.step,
            scale=state.scale,
            durable_step=self.durable_step,
            outcome=outcome,  # type: ignore[arg-type]  # the store and the contract use the same numbers
        )
        # The last request and result stay in memory, because a client that lost the reply resends its last step. Older ones are
        # rebuilt from the history (`AlreadyTaken`).
        self.state, self._step_time, self._last = state, now, (request, result)
        return result

    def _again(self, request: StepRequest) -> StepResult:
        if request.step == self.state.step and self._last is not None:
            taken, result = self._last
            return repeated(request, taken, result)
        # Steps up to `begun_after` belong to earlier sessions: this one never took them, so it can't repeat them.
        kind = AlreadyTaken if self.begun_after < request.step <= self.state.step else ServiceError
        raise kind(
            "STEP_OUT_OF_ORDER",
            f"got step {request.step}, expected step {self.state.step + 1}; steps are 1, 2, … without gaps, and a session may "
            "resend only its own steps",
            {"expected": self.state.step + 1, "received": request.step},
            field="step",
        )

    def reattached(self, time: int, events: list[EventRow]) -> None:
        """The session reconnected at `time` (ns since 1970)."""
        self.stats = self.stats.came_back(time)
        self._events += events
        self._touched = True

    def disconnected(self, time: int) -> None:
        """The trainer's connection ended at `time` (ns since 1970); the session stays open."""
        self.stats = replace(self.stats, away=time)
        self._touched = True

    def seen(self, time: int, since: int) -> bool:
        """Notes that the trainer is there, if its last sign of life is from before `since`. Times are ns since 1970.

        Returns:
            Whether there is something to commit.
        """
        if self.stats.away or self.fenced_by or max(self._step_time, self.row.open_time, self.stats.seen) >= since:
            return False
        self.stats = replace(self.stats, seen=time)
        self._touched = True
        return True

    def collect(self) -> Commit:
        """The changes that are not in the store yet. Call `sealed` on them next, then `committed` or `restore`.

        One commit is in flight at a time. The next one starts after this one's last step, and the store accepts it only if the
        row is at that step, so a commit that is lost can't be skipped.
        """
        # A step after the connection was lost means that the trainer is back.
        if self._pending and self.stats.away < self._step_time:
            self.stats = replace(self.stats, away=0)
        records, self._pending, self._touched = b"".join(self._pending), [], False
        events, self._events = tuple(self._events), []
        after, self._committing_after = self._committing_after, self.state.step
        self._committing = self.state
        return Commit(
            run_id=self.row.id,
            epoch=self.row.epoch,
            session=self.row.session,
            after_step=after,
            last_step=self.state.step,
            state=b"",
            scale=self.state.scale,
            step_time=self._step_time,
            interval=self._interval,
            stats=self.stats,
            events=events,
            records=records,
        )

    def sealed(self, commit: Commit) -> Commit:
        """The commit with the tuner's state and the stats after its steps. Reads only what never changes while the commit is in
        flight, so any thread may call it."""
        stats = commit.stats.after(self._groups, self._first_scale, commit.records)
        return replace(commit, state=self._committing.to_bytes(), stats=stats)

    def committed(self, commit: Commit) -> None:
        """The commit is durable."""
        self.durable_step = commit.last_step
        # The connection may have dropped or come back while the commit was in flight: keep what is current.
        self.stats = replace(commit.stats, away=self.stats.away, returns=self.stats.returns, seen=self.stats.seen)

    def restore(self, commit: Commit) -> None:
        """The commit failed: its steps and events go back to the front of the queue, so that order is kept."""
        if commit.records:
            self._pending.insert(0, commit.records)
        self._events[:0] = commit.events
        self._touched = True
        self._committing_after = commit.after_step


class AlreadyTaken(ServiceError):
    """STEP_OUT_OF_ORDER, but the session took this step earlier: the history can repeat its result."""


def repeated(request: StepRequest, taken: StepRequest, result: StepResult) -> StepResult:
    """The result of a step that was taken already: the same reductions give the same result, bit for bit.

    Raises:
        ServiceError: STEP_CONFLICT: the reductions differ.
    """
    if request.hold == taken.hold and _same(request.reductions, taken.reductions):
        return result
    raise ServiceError(
        "STEP_CONFLICT",
        f"step {request.step} was already taken with other reductions; resend a step only with the same reductions",
        {"step": request.step},
    )


def _same(left: resources_pb2.Reductions, right: resources_pb2.Reductions) -> bool:
    return left.SerializeToString(deterministic=True) == right.SerializeToString(deterministic=True)


def rebuilt(session: int, row: StepRow) -> tuple[StepRequest, StepResult]:
    """A step's request and result, rebuilt from the history."""
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
