"""RunService.RewindRun and ForkRun: a run goes back to an earlier step, or a new one begins there. Knows no transport."""

import logging
from time import time_ns
from typing import Final

from mechanicd.service import _convert
from mechanicd.service._engine import Engine
from mechanicd.service._errors import ServiceError
from mechanicd.service._replay import replayed
from mechanicd.store import FORKED, REWOUND_BY_HAND, EventRow, Fork, OwnershipLost, Rewind, RunExists, RunRow
from mechanicd.tuner import TunerState
from mechanicd.v1 import names, run_service_pb2

log = logging.getLogger("mechanicd.service")

_ATTEMPTS: Final = 5


class Lineage:
    """Rewinds and forks runs; the state at their new beginning is replayed from the history, bit for bit.

    Args:
        engine: the open runs, and the store's thread.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._store = engine.store
        self._call = engine.writer.call

    async def rewind(self, request: run_service_pb2.RewindRunRequest) -> RunRow:
        """See RunService.RewindRun."""
        name = _convert.run_name_in(request.name)
        for _ in range(_ATTEMPTS):
            row = await self._engine.settled(name)
            if row.session:
                raise ServiceError(
                    "RUN_HELD",
                    f"{name} is held by a session, which would go on where it is; stop its trainer first (SIGTERM closes the "
                    "session). If that is dead already: start it from its checkpoint, to which the run rewinds by itself, or "
                    "fork the run",
                    {"name": name, "session": row.session},
                )
            if request.after_step == row.last_step:
                return row
            state = await self._state(row, request.after_step)
            message = f"taken back by hand from step {row.last_step} to {state.step}; no trainer has opened it since"
            change = Rewind(
                run_id=row.id,
                expected_epoch=row.epoch,
                after_step=state.step,
                state=state.to_bytes(),
                scale=state.scale,
                message=message,
                events=(EventRow(time_ns(), state.step, REWOUND_BY_HAND, f"from step {row.last_step} to {state.step}"),),
            )
            try:
                now = await self._call(self._store.rewind, change)
            except OwnershipLost as error:  # somebody opened it at this moment: look again
                log.info("%s: %s", name, error)
                continue
            log.info("%s: %s", name, message)
            return now
        raise _busy(name)

    async def fork(self, request: run_service_pb2.ForkRunRequest) -> RunRow:
        """See RunService.ForkRun."""
        source, name = _convert.run_name_in(request.source, "source"), _convert.run_name_in(request.name)
        for _ in range(_ATTEMPTS):
            row = await self._engine.settled(source)
            if await self._call(self._store.get, name.project, name.run) is not None:
                raise _exists(name)
            state = await self._state(row, request.after_step)
            message = f"forked from {source} after step {state.step}; no trainer has opened it yet"
            now = time_ns()
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
                events=(EventRow(now, state.step, FORKED, f"from {source} after step {state.step}"),),
            )
            try:
                made = await self._call(self._store.fork, change)
            except OwnershipLost as error:  # the source was opened or rewound at this moment: look again
                log.info("%s: %s", source, error)
                continue
            except RunExists:
                raise _exists(name) from None
            log.info("%s: %s", name, message)
            return made
        raise _busy(source)

    async def _state(self, row: RunRow, after_step: int) -> TunerState:
        """The tuner's state of a run after a step that it has.

        Raises:
            ServiceError: RESUME_STEP_UNKNOWN.
        """
        facts = {"requested": after_step, "last_step": row.last_step}
        if after_step > row.last_step:
            raise ServiceError(
                "RESUME_STEP_UNKNOWN",
                f"step {after_step} is above step {row.last_step}, the run's last; name that one, or an earlier one",
                facts,
                field="after_step",
            )
        if after_step == row.last_step:
            return TunerState.from_bytes(row.state, row.config)
        state = await self._call(replayed, self._store, row, after_step)
        if state is None:
            raise ServiceError(
                "RESUME_STEP_UNKNOWN",
                f"the state after step {after_step} can't be made again: steps before it are missing, are not kept exactly "
                "any more, or follow a state that came with a checkpoint; start the trainer from its checkpoint instead",
                facts,
                field="after_step",
            )
        return state


def _exists(name: names.RunName) -> ServiceError:
    return ServiceError("RUN_EXISTS", f"{name} exists; choose another name, or delete it first", {"name": name}, field="name")


def _busy(name: names.RunName) -> ServiceError:
    return ServiceError("STORE_UNAVAILABLE", f"{name} is being taken by others; try again")
