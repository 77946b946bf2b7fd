"""RunService's CloseRun: how a run ended whose trainer can't tell any more. Knows no transport."""

import logging
import secrets
from typing import Final

from mechanicd.runs import RunRow, RunStatus, Silence, judged
from mechanicd.service import _convert, _events
from mechanicd.service._engine import Engine
from mechanicd.service._errors import ServiceError, alias, every
from mechanicd.service._lineage import held
from mechanicd.store import Release
from mechanicd.v1 import names, run_service_pb2

log = logging.getLogger("mechanicd.service")

_ATTEMPTS: Final = 5
_BY_HAND: Final = "closed by hand"


async def close(engine: Engine, request: run_service_pb2.CloseRunRequest, silence: Silence) -> RunRow:
    """See RunService.CloseRun.

    Args:
        silence: when a run counts as silent.
    """
    name, status = every(lambda: _convert.run_name_in(request.name), lambda: _status_in(request))
    said = _convert.text_in(request.message, 1000)
    async with engine.registry.lock(name):
        for _ in range(_ATTEMPTS):
            row = await engine.flushed(name)
            if held(row) and not request.fence and not _gone(engine, name, row, silence):
                raise ServiceError(
                    "RUN_HELD",
                    f"{name} is held by a session whose trainer is connected; stop it first (SIGTERM closes the session), or "
                    "set `fence` to stop it with an error at its next step",
                    {"name": name, "session": alias(row.session)},
                )
            release = Release(
                run_id=row.id,
                epoch=row.epoch,
                session=row.session,
                status=status,
                message=said or _BY_HAND,
                successor=secrets.randbits(62) + 1 if held(row) and request.fence else 0 if held(row) else row.session,
                events=(
                    _events.closed(
                        row.last_step, engine.store.clock.now(), status, f"{_BY_HAND}: {said}" if said else _BY_HAND
                    ),
                ),
            )
            if await _released(engine, name, release):
                log.info("%s: closed by hand as %s", name, status)
                return await engine.flushed(name)
    raise ServiceError("STORE_UNAVAILABLE", f"{name} is being opened by other processes; try again")


async def _released(engine: Engine, name: names.RunName, release: Release) -> bool:
    """Whether the run was still as it was read."""
    before = await engine.flushed(name)
    if (before.epoch, before.session) != (release.epoch, release.session):
        return False
    run = engine.registry.named(name)
    if release.successor and run is not None:
        with engine.registry.fencing(name, release.successor):
            await engine.flushed(name)  # with the steps taken until the fence; none follows
            await engine.writer.release(release)
    else:
        await engine.writer.release(release)
        if run is not None:
            engine.registry.release(run)
    after = await engine.flushed(name)
    return (after.status, after.session) == (release.status, release.successor)


def _gone(engine: Engine, name: names.RunName, row: RunRow, silence: Silence) -> bool:
    """Whether the trainer of a run that is held can be taken for dead: its connection has ended, or it is silent. One that was
    connected to a server that is no more, or is to another replica, shows by its steps that it lives."""
    run, now = engine.registry.named(name), engine.store.clock.now()
    if run is not None:
        return bool(run.stats.away) or judged(row, now, silence).status == RunStatus.SILENT
    return bool(row.stats.away) or _events.quiet(row, now)


def _status_in(request: run_service_pb2.CloseRunRequest) -> RunStatus:
    """Raises ServiceError INVALID_STATUS."""
    if request.status not in _convert.CLOSING_STATUS:
        raise ServiceError(
            "INVALID_STATUS", "close a run as PREEMPTED, FAILED or FINISHED", {"status": request.status}, field="status"
        )
    return _convert.CLOSING_STATUS[request.status]
