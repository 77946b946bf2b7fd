"""RunService's RewindRun, RenameRun and ForkRun: a run goes back to an earlier step, gets another name, or a new run starts
there. Knows no transport."""

import logging
import secrets
from contextlib import suppress
from typing import Final

from mechanicd.runs import EventKind, EventRow, RunRow, RunStatus
from mechanicd.service import _convert
from mechanicd.service._engine import Engine
from mechanicd.service._errors import ServiceError, alias, every
from mechanicd.service._registry import NewName
from mechanicd.service._replay import replayed
from mechanicd.service._session_start import stored
from mechanicd.store import Fork, OwnershipLost, Rename, Rewind, RunExists
from mechanicd.tuner import TunerState
from mechanicd.v1 import names, run_service_pb2

log = logging.getLogger("mechanicd.service")

_ATTEMPTS: Final = 5


class Lineage:
    """Rewinds, renames and forks runs. The tuner's state at the new start is replayed from the history, bit for bit.

    Args:
        engine: the held runs and the store's thread.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store
        self._call = engine.writer.call

    async def rewind(self, request: run_service_pb2.RewindRunRequest) -> RunRow:
        """See RunService.RewindRun."""
        name = _convert.run_name_in(request.name)
        async with self._engine.registry.lock(name):
            for _ in range(_ATTEMPTS):
                row = await self._engine.flushed(name)
                if held(row) and not request.fence:
                    raise _held(name, row, "would keep training from where it is")
                if request.after_step == row.last_step and not held(row):
                    return row
                state = await self._state(row, request.after_step)
                try:
                    return await self._rewind(name, state)
                except OwnershipLost as error:  # someone opened the run at this moment: read it again
                    log.info("%s: %s", name, error)
        raise _busy(name)

    async def _rewind(self, name: names.RunName, state: TunerState) -> RunRow:
        successor = secrets.randbits(62) + 1
        with self._engine.registry.fencing(name, successor):
            row = await self._engine.flushed(name)  # with the steps taken until the fence; none follows
            from_to = f"from step {row.last_step} to {state.step}"
            event = EventRow(
                self._store.clock.now(),
                state.step,
                EventKind.REWOUND_BY_HAND,
                from_to + (", and its session fenced" if held(row) else ""),
            )
            now = await self._call(
                self._store.rewind,
                Rewind(
                    run_id=row.id,
                    expected_epoch=row.epoch,
                    after_step=state.step,
                    session=successor if held(row) else 0,
                    state=state.to_bytes(),
                    scale=state.scale,
                    message=f"rewound by hand {from_to}; no trainer has opened it since",
                    events=(event,),
                ),
            )
        log.info("%s: rewound by hand %s", name, from_to)
        return now

    async def rename(self, request: run_service_pb2.RenameRunRequest) -> RunRow:
        """See RunService.RenameRun."""
        name, new = every(
            lambda: _convert.run_name_in(request.name), lambda: _convert.run_name_in(request.new_name, "new_name")
        )
        async with self._engine.registry.lock(name):
            for _ in range(_ATTEMPTS):
                row = await self._engine.flushed(name)
                if new == name:
                    return row
                if held(row) and not request.fence:
                    raise _held(name, row, "knows the run by this name")
                if await self._call(self._store.get, new.project, new.run) is not None:
                    raise _exists(new, "new_name")
                try:
                    return await self._rename(name, new, request.fence)
                except OwnershipLost as error:  # someone opened the run at this moment: read it again
                    log.info("%s: %s", name, error)
                except RunExists:
                    raise _exists(new, "new_name") from None
        raise _busy(name)

    async def _rename(self, name: names.RunName, new: names.RunName, fence: bool) -> RunRow:
        successor = NewName.of(secrets.randbits(62) + 1, new)
        with self._engine.registry.fencing(name, successor):
            row = await self._engine.flushed(name)  # with the steps taken until the fence; none follows
            fenced = held(row) and fence
            from_to = f"from {name} to {new}"
            event = EventRow(
                self._store.clock.now(),
                row.last_step,
                EventKind.RENAMED,
                from_to + (", and its session fenced" if fenced else ""),
            )
            now = await self._call(
                self._store.rename,
                Rename(
                    run_id=row.id,
                    expected_epoch=row.epoch,
                    project=new.project,
                    run=new.run,
                    session=int(successor) if fenced else 0,
                    message=f"renamed by hand {from_to}; no trainer has opened it since",
                    events=(event,),
                ),
            )
        log.info("%s: renamed to %s", name, new)
        return now

    async def fork(self, request: run_service_pb2.ForkRunRequest) -> RunRow:
        """See RunService.ForkRun."""
        source, name = every(lambda: _convert.run_name_in(request.source, "source"), lambda: _convert.run_name_in(request.name))
        for _ in range(_ATTEMPTS):
            row = await self._engine.flushed(source)
            if await self._call(self._store.get, name.project, name.run) is not None:
                raise _exists(name)
            state = await self._state(row, request.after_step)
            message = f"forked from {source} after step {state.step}; no trainer has opened it yet"
            now = self._store.clock.now()
            change = Fork(
                source_id=row.id,
                expected_epoch=row.epoch,
                after_step=state.step,
                project=name.project,
                run=name.run,
                state=state.to_bytes(),
                scale=state.scale,
                time=now,
                message=message,
                events=(EventRow(now, state.step, EventKind.FORKED, f"from {source} after step {state.step}"),),
            )
            try:
                made = await self._forked(change)
            except OwnershipLost as error:  # the source was opened or rewound at this moment: read it again
                log.info("%s: %s", source, error)
                continue
            except RunExists:
                raise _exists(name) from None
            log.info("%s: %s", name, message)
            return made
        raise _busy(source)

    async def _forked(self, change: Fork) -> RunRow:
        """The new run. Others use the store between its portions; of a fork that fails or is cancelled nothing is left."""
        forking = self._store.forking(change)
        try:
            while (made := await self._call(forking.more)) is None:
                pass
        except BaseException:
            with suppress(ServiceError):  # what is left is deleted when the store is opened
                while await self._call(forking.undo):
                    pass
            raise
        return made

    async def _state(self, row: RunRow, after_step: int) -> TunerState:
        """The tuner's state of a run after one of its steps.

        Raises:
            ServiceError: RESUME_STEP_UNKNOWN.
        """
        facts = {"requested": after_step, "last_step": row.last_step}
        if after_step > row.last_step:
            raise ServiceError(
                "RESUME_STEP_UNKNOWN",
                f"step {after_step} is after the run's last step, {row.last_step}; choose that one or an earlier one",
                facts,
                field="after_step",
            )
        if after_step == row.last_step:
            return stored(row)
        state = await replayed(self._call, self._store, row, after_step)
        if state is None:
            raise ServiceError(
                "RESUME_STEP_UNKNOWN",
                f"the state after step {after_step} can't be replayed: earlier steps are missing, were thinned out, or follow "
                "a state that came from a checkpoint; start the trainer from its checkpoint instead",
                facts,
                field="after_step",
            )
        return state


def held(row: RunRow) -> bool:
    """Whether a session holds the run. (After a fence by hand the row has a session number that nobody knows.)"""
    return row.session != 0 and row.status == RunStatus.RUNNING


def _held(name: names.RunName, row: RunRow, why: str) -> ServiceError:
    return ServiceError(
        "RUN_HELD",
        f"{name} is held by a session, which {why}; stop its trainer first (SIGTERM closes the session), or set `fence` if the "
        "trainer is already dead",
        {"name": name, "session": alias(row.session)},
    )


def _exists(name: names.RunName, field: str = "name") -> ServiceError:
    return ServiceError(
        "RUN_EXISTS", f"{name} already exists; choose another name, or delete the run first", {"name": name}, field=field
    )


def _busy(name: names.RunName) -> ServiceError:
    return ServiceError("STORE_UNAVAILABLE", f"{name} is being opened by other processes; try again")
