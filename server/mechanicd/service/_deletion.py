"""RunService's DeleteRun: a run that a session holds is deleted only with a fence. Knows no transport."""

import logging
from typing import Final

from mechanicd.service import _convert
from mechanicd.service._engine import Engine
from mechanicd.service._errors import ServiceError, alias
from mechanicd.service._lineage import held
from mechanicd.store import OwnershipLost
from mechanicd.v1 import run_service_pb2

log = logging.getLogger("mechanicd.service")

_ATTEMPTS: Final = 5


async def delete(engine: Engine, request: run_service_pb2.DeleteRunRequest) -> None:
    """See RunService.DeleteRun.

    Raises:
        ServiceError: MALFORMED_NAME, RUN_NOT_FOUND, RUN_HELD, STORE_UNAVAILABLE.
    """
    name = _convert.run_name_in(request.name)
    async with engine.registry.lock(name):
        for _ in range(_ATTEMPTS):
            row = await engine.writer.call(engine.store.get, name.project, name.run)
            if row is None:
                raise ServiceError(
                    "RUN_NOT_FOUND", f"{name}: no such run; `mechanicd runs list` shows all runs", {"name": name}
                )
            if held(row) and not request.fence:
                raise ServiceError(
                    "RUN_HELD",
                    f"{name} is held by a session, whose further steps would be recorded nowhere; stop its trainer first "
                    "(SIGTERM closes the session), or, if it is already dead, set `fence` (`mechanicd runs delete --fence`)",
                    {"name": name, "session": alias(row.session)},
                )
            try:
                # Conditional on the epoch just read: nobody took hold of the run since.
                await engine.writer.call(engine.store.delete, row.id, row.epoch)
            except OwnershipLost as error:
                log.info("%s: %s", name, error)
                continue
            # Only now: if the store fails, the run still exists and its session keeps it. Steps that were taken meanwhile are
            # never committed, because a commit is conditional on the row.
            run = engine.registry.named(name)
            if run is not None:
                engine.registry.deleted(run)
            log.info("%s: deleted%s", name, ", and its session fenced" if held(row) else "")
            return
    raise ServiceError("STORE_UNAVAILABLE", f"{name} is being opened by other processes; try again")
