"""TunerService's calls: steps, and opening and closing sessions. Takes messages and returns messages; knows no transport."""

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Any, Final

from mechanicd.runs import RunRow, SessionRow, session_key
from mechanicd.service import _convert, _events, _session_start
from mechanicd.service._active_run import ActiveRun, AlreadyTaken, rebuilt, repeated
from mechanicd.service._aside import aside
from mechanicd.service._errors import ServiceError, every
from mechanicd.service._metrics import Metrics
from mechanicd.service._registry import NewName, Registry, Unrecognized, unknown
from mechanicd.service._replay import replayed
from mechanicd.service._session_start import Start
from mechanicd.service._writer import Retention, Writer
from mechanicd.store import Claim, OwnershipLost, Release, RunExists, Store
from mechanicd.tuner import TunerConfig, TunerState
from mechanicd.v1 import names, tuner_service_pb2

log = logging.getLogger("mechanicd.service")

_CLAIM_ATTEMPTS = 5
_AT_ONCE: Final = 256
_OUTCOMES: Final = {
    _session_start.CREATED: "created",
    _session_start.RESUMED: "resumed",
    _session_start.REWOUND: "rewound",
    _session_start.ADOPTED: "adopted",
    _session_start.REATTACHED: "reattached",
}


class Engine:
    """Answers TunerService for one server process. Use it inside one event loop.

    `step` and `steps` are synchronous: nothing else runs on the event loop between a step's check of who holds the run and its
    effect, so they need no lock. Everything that awaits must check again after it (`Registry.fencing`).

    Args:
        store: where runs are kept; the engine calls it on the writer's thread.
        flush_interval: seconds within which a step is committed.
        on_health: called with whether the store works, whenever that changes.
        retention: which history to discard over time; None keeps all.
    """

    def __init__(
        self,
        store: Store,
        flush_interval: float = 0.02,
        on_health: Callable[[bool], None] = lambda healthy: None,
        retention: Retention | None = None,
    ) -> None:
        self.store = store
        self.metrics = Metrics()
        self.registry = Registry(self.metrics)
        held = self.registry.by_session.values()
        self.writer = Writer(store, flush_interval, self.registry.lost, on_health, retention, self.metrics, held)
        self._now = store.clock.now
        self._held = self.registry.by_session  # the same dict; saves the hot path an attribute lookup
        self._draining = False

    def counts(self) -> dict[str, Any]:
        """This server's counters and state, as plain JSON values."""
        return {
            **self.metrics.as_dict(),
            "sessions": len(self.registry),
            "store_works": self.writer.healthy,
            "trouble": self.writer.trouble,
            "unfolded": self.store.unfolded,
            "clock": self.store.clock.offset,
        }

    def start(self) -> None:
        """Call it inside the event loop, before the first request."""
        self.writer.start()

    def drain(self) -> None:
        """Refuses new sessions from now on."""
        self._draining = True

    async def stop(self, seconds: float = 0.0) -> int:
        """Commits everything that is pending, and closes the store.

        Args:
            seconds: how long to wait for a store that does not answer.

        Returns:
            How many answered steps could not be committed. Their trainers have them, and send them again.
        """
        if await self.writer.stop(seconds):
            self.store.close()
        return sum(run.state.step - run.durable_step for run in self._held.values())

    # --- steps -------------------------------------------------------------------------------------------------------

    def step(self, request: tuner_service_pb2.StepRequest) -> tuner_service_pb2.StepResult:
        """One step of one session; see `ActiveRun.step`.

        Raises:
            ServiceError: SESSION_FENCED, SESSION_UNKNOWN, OWNERSHIP_LOST, and what `ActiveRun.step` raises.
        """
        run = self._held.get(request.session)
        if run is None or run.fenced_by:
            raise self.registry.refusal(request.session)
        result = run.step(request)
        self.writer.mark(run)
        return result

    def steps(self, request: tuner_service_pb2.StreamStepsRequest) -> tuple[tuner_service_pb2.StreamStepsResponse, list[int]]:
        """Steps of many sessions; a refused step has the error in its result.

        Returns:
            The response, and the indices of the results that only the store can answer: pass them to `recall`.
        """
        results, old = [], []
        for index, step in enumerate(request.steps):
            try:
                results.append(self.step(step))
            except ServiceError as error:
                if isinstance(error, (AlreadyTaken, Unrecognized)):
                    old.append(index)
                results.append(_convert.error_out(step.session, step.step, error))
        return tuner_service_pb2.StreamStepsResponse(results=results), old

    async def recall(
        self, request: tuner_service_pb2.StreamStepsRequest, response: tuner_service_pb2.StreamStepsResponse, old: list[int]
    ) -> None:
        """Completes a response from the store: steps taken long ago, and sessions that are not in memory."""
        explained: dict[int, ServiceError] = {}  # a batch may have many steps of one session: ask once
        for count, index in enumerate(old, 1):
            step = request.steps[index]
            if count % _AT_ONCE == 0:
                await asyncio.sleep(0)  # others take their steps in between
            try:
                if step.session not in self._held:
                    if step.session not in explained:
                        explained[step.session] = await self.explain(step.session)
                    raise explained[step.session]
                run = self.registry.get(step.session)
                await self.writer.flush(run)
                found = await self.writer.call(self.store.steps, run.row, 0, step.step, step.step, 1)
                if found:
                    taken, result = rebuilt(step.session, found[0])
                    result.durable_step = run.durable_step
                    response.results[index].CopyFrom(repeated(step, taken, result))
            except ServiceError as error:
                response.results[index].CopyFrom(_convert.error_out(step.session, step.step, error))

    async def wait_durable(self, response: tuner_service_pb2.StreamStepsResponse) -> None:
        """Waits until the steps of a response are durable. A step that can't be made durable becomes an error."""
        for result in response.results:
            run = self._held.get(result.session)
            if run is None or result.HasField("error"):
                continue
            try:
                await self.writer.flush(run)
            except ServiceError as error:
                result.CopyFrom(_convert.error_out(result.session, result.step, error))
            else:
                result.durable_step = run.durable_step

    def disconnected(self, sessions: set[int]) -> None:
        """The connection that carried the steps of these sessions has ended."""
        for session in sessions:
            run = self._held.get(session)
            if run is not None and not run.fenced_by:
                run.disconnected(self._now())
                self.writer.mark(run)

    # --- sessions ----------------------------------------------------------------------------------------------------

    async def open_session(self, request: tuner_service_pb2.OpenSessionRequest) -> tuner_service_pb2.OpenSessionResponse:
        """See TunerService.OpenSession."""
        if self._draining:
            raise ServiceError("SERVER_DRAINING", "this server is shutting down; try again in a moment")
        name, config, labels, start, _ = every(
            lambda: _convert.run_name_in(request.name),
            lambda: _convert.config_in(request.config),
            lambda: _convert.labels_in(request.labels),
            lambda: _start_in(request),
            lambda: _convert.check_read_mask(request.read_mask, tuner_service_pb2.OpenSessionResponse),
        )
        client, command = _convert.text_in(request.client, 200), _convert.command_in(request.command)
        async with self.registry.lock(name):
            again = self.registry.opened_before(name, request.trainer, request.attempt)
            for attempt in range(_CLAIM_ATTEMPTS):
                try:
                    session = request.session or (self._unused(name, start) if again else 0)
                    if session:
                        opened = await self._reattach(name, session, config)
                    else:
                        opened = await self._open(name, config, labels, start, client, command)
                    self.registry.opened(name, request.trainer, request.attempt)
                    return _convert.masked(opened, request.read_mask)
                except OwnershipLost as error:  # another server took the run at this moment: read it again
                    log.info("%s: %s; attempt %d", name, error, attempt + 1)
        raise ServiceError("STORE_UNAVAILABLE", f"{name} is being opened on other servers; try again")

    async def _open(
        self, name: names.RunName, config: TunerConfig, labels: dict[str, str], start: Start, client: str, command: str
    ) -> tuner_service_pb2.OpenSessionResponse:
        row, fresh = await self._get_or_create(name, config, start)
        _, labels = every(
            lambda: _session_start.check_config(row.config, config),
            lambda: _convert.labels_in({**row.labels, **labels}),
        )
        session = secrets.randbits(62) + 1
        former = self.registry.named(name)
        if former is not None:
            # Without a fence yet: most of the backlog is committed while the old session may still take steps.
            await self.writer.flush(former)
            row = await self._get(name)
        # Decide before the fence goes up: a request that is refused must not stop the session that holds the run.
        decision = _session_start.decide(row, fresh, start)
        state = decision.state or await self._replay(row, decision.after_step)
        with self.registry.fencing(name, session_key(session)) as fenced:
            if fenced is not None:
                # The old session took steps while we awaited above. It takes none from here on, so this flush is the last:
                # every step that was answered is in the row when the new session decides where it starts.
                await self.writer.flush(fenced)
                row = await self._get(name)
                decision = _session_start.decide(row, fresh, start)
                state = decision.state or state
            now = self._now()
            # Conditional on the epoch just read: if another server claimed the run meanwhile, this raises OwnershipLost,
            # nothing is written, and `open_session` looks again.
            row = await self.writer.call(
                self.store.claim,
                Claim(
                    run_id=row.id,
                    expected_epoch=row.epoch,
                    session=session_key(session),
                    after_step=decision.after_step,
                    state=await aside(row.config, state.to_bytes),
                    scale=state.scale,
                    labels=labels,
                    time=now,
                    command=command,
                    stats=_session_start.stats(row, decision),
                    events=_events.opened(row, decision, now, client),
                ),
            )
        run = await self._hold(name, row, session, decision.after_step)
        self.metrics.opened[_OUTCOMES[decision.outcome]] += 1
        log.info("%s: session %d by %s: %s", name, row.session_count, client or "an unnamed client", decision.explanation)
        return await aside(run.row.config, _opened, run, run.state, decision.outcome, decision.explanation)

    async def _reattach(self, name: names.RunName, session: int, config: TunerConfig) -> tuner_service_pb2.OpenSessionResponse:
        """The session that holds the run reconnects: after a lost connection, or after a restart of this server."""
        held = self._held.get(session)
        if held is not None and name != (held.row.project, held.row.run):
            raise unknown(session)
        if held is not None and not await self._holds(held):
            self.registry.lost(held)
        here = session in self._held
        if here:
            run = self.registry.get(session)
        else:
            row, begun = await self._find(session, name)
            await aside(row.config, _session_start.stored, row)
            # A new epoch: whatever another server still has of this session in memory, it can't commit it any more.
            now = self._now()
            stats, events = row.stats.came_back(now), _events.reattached(row, now, in_memory=False)
            row = await self.writer.call(self.store.take_over, row.id, row.epoch, row.session, stats, events)
            run = await self._hold(name, row, session, begun.after_step)
        _session_start.check_config(run.row.config, config)
        self.metrics.opened[_OUTCOMES[_session_start.REATTACHED]] += 1
        if here:
            now = self._now()
            run.reattached(now, _events.reattached(run.now(), now, in_memory=True))
            self.writer.mark(run)
        explanation = f"the session reattached; the server has step {run.state.step}"
        log.info("%s: session %d: %s", name, run.row.session_count, explanation)
        return await aside(run.row.config, _opened, run, run.state, _session_start.REATTACHED, explanation)

    def _unused(self, name: names.RunName, start: Start) -> int:
        """The session that holds a run here, if it starts where `start` says and has taken no step yet; else 0."""
        run = self.registry.named(name)
        if run is None or run.fenced_by or run.state.step != run.begun_after:
            return 0
        same = start.to_bytes() == run.state.to_bytes() if isinstance(start, TunerState) else start in (None, run.begun_after)
        return run.session if same else 0

    async def flush(self, request: tuner_service_pb2.FlushRequest) -> tuner_service_pb2.FlushResponse:
        """See TunerService.Flush."""
        run = await self._run(request.session)
        await self.writer.flush(run)
        durable = run.durable_step
        state = await aside(run.row.config, run.state.to_bytes) if request.with_tuner_state else b""
        return tuner_service_pb2.FlushResponse(durable_step=durable, tuner_state=state)

    async def close_session(self, request: tuner_service_pb2.CloseSessionRequest) -> tuner_service_pb2.CloseSessionResponse:
        """See TunerService.CloseSession."""
        if request.status not in _convert.CLOSING_STATUS:
            raise ServiceError(
                "INVALID_STATUS", "close a session as PREEMPTED, FAILED or FINISHED", {"status": request.status}, field="status"
            )
        run = await self._run(request.session)
        await self.writer.flush(run)
        release = Release(
            run_id=run.row.id,
            epoch=run.row.epoch,
            session=run.row.session,
            status=_convert.CLOSING_STATUS[request.status],
            message=_convert.text_in(request.message, 1000),
            events=(_events.closed(run.state.step, self._now(), _convert.CLOSING_STATUS[request.status], request.message),),
        )
        # Conditional on epoch and session, like a commit: if the run was taken over meanwhile, this closes nothing.
        await self.writer.release(release)
        self.registry.release(run)
        name = names.RunName(run.row.project, run.row.run)
        log.info("%s: session %d closed: %s %s", name, run.row.session_count, release.status, release.message)
        return tuner_service_pb2.CloseSessionResponse(run=_convert.run_out(await self._get(name)))

    async def flushed(self, name: names.RunName) -> RunRow:
        """The run as stored, including every step that this server has answered.

        Raises:
            ServiceError: RUN_NOT_FOUND, STORE_UNAVAILABLE, OWNERSHIP_LOST.
        """
        run = self.registry.named(name)
        if run is not None:
            await self.writer.flush(run)
        return await self._get(name)

    async def explain(self, session: int) -> ServiceError:
        """Why a session holds no run here. Asks the store about a session that is not in memory."""
        error = self.registry.refusal(session)
        if isinstance(error, Unrecognized):
            try:
                await self._find(session)
            except ServiceError as found:
                # If the store is unavailable, memory has the best answer. The client reattaches then, and asks the store again.
                return error if found.reason == "STORE_UNAVAILABLE" else found
        return error

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _run(self, session: int) -> ActiveRun:
        try:
            return self.registry.get(session)
        except Unrecognized:
            raise await self.explain(session) from None

    async def _find(self, session: int, name: names.RunName | None = None) -> tuple[RunRow, SessionRow]:
        """The run that a session holds according to the store, whichever server has it in memory.

        Args:
            name: the run that is expected, if known.

        Raises:
            ServiceError: SESSION_UNKNOWN, SESSION_FENCED, RUN_DELETED.
        """
        key = session_key(session)
        found = await self.writer.call(self.store.by_session, key)
        if found is None:
            deleted = await self.writer.call(self.store.deleted, key)
            raise self.registry.missing(session, deleted and names.RunName(*deleted))
        row, begun = found
        now = names.RunName(row.project, row.run)
        if row.session == key and name in (None, now):
            return found
        if await self.writer.call(self.store.fenced_by_rename, key):
            raise self.registry.fenced(session, NewName.of(row.session, now), now)
        if name is not None and name != now:
            # Its run was renamed while no session held it. Only as long as no other run has the old name may its client go on
            # to open that: it would take the other run from its trainer.
            renamed = await self.writer.call(self.store.renamed, *name)
            if renamed is None or renamed.id != row.id:
                raise self.registry.fenced(session, NewName.of(row.session, now), now)
            raise unknown(session)
        if row.session or begun.open_time < row.open_time:
            # A newer session took the run. If that one has closed it since, the row no longer has its number (0), but this one
            # must stop all the same: on SESSION_UNKNOWN its client would reopen the run and rewind its successor's steps.
            raise self.registry.fenced(session, row.session, names.RunName(row.project, row.run))
        raise unknown(session)  # it was the run's last session, and was closed

    async def _hold(self, name: names.RunName, row: RunRow, session: int, begun_after: int) -> ActiveRun:
        try:
            last = await self.writer.call(self.store.steps, row, 0, row.last_step, row.last_step, 1)
        except ServiceError as error:
            if error.reason != "STORE_DAMAGED":  # then a step that is sent again can't be repeated, and all others go on
                raise
            last = []
        run = await aside(row.config, ActiveRun, row, session, begun_after, last[0] if last else None, self.store.clock)
        self.registry.hold(name, run)
        return run

    async def _holds(self, run: ActiveRun) -> bool:
        """Whether a run that this server has in memory is also this server's in the store.

        A server that was frozen for a while may not know yet that another one took the run. Its memory then lacks steps that
        the other server has made durable.
        """
        try:
            row = await self.writer.call(self.store.get, run.row.project, run.row.run)
        except ServiceError:  # the store is unavailable: memory has the best answer
            return True
        return row is not None and (row.id, row.epoch, row.session) == (run.row.id, run.row.epoch, run.row.session)

    async def _get(self, name: names.RunName) -> RunRow:
        row = await self.writer.call(self.store.get, name.project, name.run)
        if row is None:
            raise ServiceError("RUN_NOT_FOUND", f"{name}: no such run", {"name": name})
        return row

    async def _get_or_create(self, name: names.RunName, config: TunerConfig, start: Start) -> tuple[RunRow, bool]:
        row = await self.writer.call(self.store.get, name.project, name.run)
        if row is not None:
            return row, False
        if not _session_start.from_scratch(start):
            renamed = await self.writer.call(self.store.renamed, name.project, name.run)
            if renamed is not None:
                raise _session_start.renamed(name, renamed)
        _session_start.check_new(start)
        state = await aside(config, TunerState.initial, config)
        packed = await aside(config, state.to_bytes)
        try:
            created = await self.writer.call(
                self.store.create, name.project, name.run, config, packed, state.scale, self._now()
            )
        except RunExists:
            return await self._get(name), False
        return created, True

    async def _replay(self, row: RunRow, after_step: int) -> TunerState:
        state = await replayed(self.writer.call, self.store, row, after_step)
        if state is None:
            raise ServiceError(
                "RESUME_STEP_UNKNOWN",
                f"the history up to step {after_step} can't be replayed: steps are missing, or follow a state that came from "
                "a checkpoint; send the tuner state of your checkpoint instead",
                {"requested": after_step, "last_step": row.last_step},
            )
        return state


def _start_in(request: tuner_service_pb2.OpenSessionRequest) -> Start:
    which = request.WhichOneof("start")
    if which == "tuner_state":
        try:
            config = _convert.config_in(request.config)
        except ServiceError:  # what else is wrong with the state is told all the same
            config = None
        return _convert.state_in(request.tuner_state, config)
    return request.after_step if which == "after_step" else None


def _opened(
    run: ActiveRun, state: TunerState, outcome: "tuner_service_pb2.OpenOutcome", explanation: str
) -> tuner_service_pb2.OpenSessionResponse:
    return tuner_service_pb2.OpenSessionResponse(
        session=run.session,
        outcome=outcome,
        explanation=explanation,
        last_step=state.step,
        tuner_state=state.to_bytes(),
        scale=state.scale,
        durable_step=min(run.durable_step, state.step),
        run=_convert.run_out(run.row),
    )
