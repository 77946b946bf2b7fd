"""RunService's calls: queries and changes of runs. Takes messages and returns messages; knows no transport."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Final

from mechanicd.runs import RunRow, Silence, same_alerts
from mechanicd.service import _convert
from mechanicd.service._engine import Engine
from mechanicd.service._errors import ServiceError
from mechanicd.service._lineage import Lineage
from mechanicd.service._run_cache import RunCache, Seen
from mechanicd.v1 import names, run_service_pb2

WATCH_SECONDS: Final = 0.25


class RunService:
    """Answers RunService from the store, which is at most one commit behind memory.

    Args:
        engine: the held runs and the store's thread.
        silence: when a run counts as silent.
    """

    def __init__(self, engine: Engine, silence: Silence | None = None) -> None:
        self._engine = engine
        self._store = engine.store
        self._call = engine.writer.call
        self._lineage = Lineage(engine)
        self._cache = RunCache(engine.store, engine.writer.call, silence or Silence())

    async def get_run(self, request: run_service_pb2.GetRunRequest) -> run_service_pb2.GetRunResponse:
        """See RunService.GetRun."""
        row = await self._get(request.name)
        events = await self._call(self._store.events, row.id)
        run = _convert.run_out(*self._cache.judge(row), command=True)
        return run_service_pb2.GetRunResponse(run=run, events=map(_convert.event_out, events))

    async def list_runs(self, request: run_service_pb2.ListRunsRequest) -> run_service_pb2.ListRunsResponse:
        """See RunService.ListRuns."""
        project = _convert.project_in(request.parent)
        matches = _convert.filter_in(request.filter)
        size = _page_size(request.page_size, 100, 1000)
        about = ("runs", request.parent, request.filter)
        token = _token_in(request.page_token, *about)
        after = (token[0], token[1]) if token else ("", "")
        rows = [row for row in await self._cache.read() if _is_in(row, project) and (row.project, row.run) > after]
        found = []
        for row in sorted(rows, key=lambda row: (row.project, row.run)):
            seen = self._cache.judge(row)
            if matches(*seen):
                found.append(seen)
            if len(found) > size:
                break
        page = found[:size]
        last = page[-1][0] if len(found) > size else None
        return run_service_pb2.ListRunsResponse(
            runs=(_convert.run_out(*seen) for seen in page),
            next_page_token=_token_out([last.project, last.run], *about) if last else "",
        )

    async def watch_runs(self, request: run_service_pb2.WatchRunsRequest) -> AsyncIterator[run_service_pb2.WatchRunsResponse]:
        """See RunService.WatchRuns. Polls every `WATCH_SECONDS`."""
        project = _convert.project_in(request.parent)
        matches = _convert.filter_in(request.filter)
        shown: dict[int, Seen] = {}
        first = True
        while True:
            seen = await self._cache.watch()
            now = {id_: each for id_, each in seen.items() if _is_in(each[0], project) and matches(*each)}
            changed = [each for id_, each in now.items() if _differs(shown.get(id_), each)]
            gone = sorted(_name(shown[id_][0]) for id_ in shown.keys() - now.keys())
            if changed or gone or first:
                changed.sort(key=lambda each: (each[0].project, each[0].run))
                yield run_service_pb2.WatchRunsResponse(runs=(_convert.run_out(*each) for each in changed), gone=gone)
            shown, first = now, False
            await asyncio.sleep(WATCH_SECONDS)

    async def update_run(self, request: run_service_pb2.UpdateRunRequest) -> run_service_pb2.UpdateRunResponse:
        """See RunService.UpdateRun."""
        row = await self._get(request.run.name)
        given = dict(request.run.labels)
        labels = dict(row.labels)
        if not request.update_mask.paths:
            raise ServiceError(
                "INVALID_UPDATE_MASK", "the update mask is empty; name `labels` or `labels.KEY` in it", field="update_mask"
            )
        for path in request.update_mask.paths:
            key = path.removeprefix("labels.")
            if path == "labels":
                labels = dict(given)
            elif key == path or not key:
                raise ServiceError(
                    "INVALID_UPDATE_MASK",
                    f"{path!r} can't be updated; only `labels` and `labels.KEY` can",
                    {"path": path},
                    field="update_mask",
                )
            elif key in given:
                labels[key] = given[key]
            else:
                labels.pop(key, None)
        await self._call(self._store.set_labels, row.id, _convert.labels_in(labels))
        row = await self._get(request.run.name)
        return run_service_pb2.UpdateRunResponse(run=_convert.run_out(*self._cache.judge(row)))

    async def delete_run(self, request: run_service_pb2.DeleteRunRequest) -> run_service_pb2.DeleteRunResponse:
        """See RunService.DeleteRun."""
        name = _convert.run_name_in(request.name)
        async with self._engine.registry.lock(name):
            row = await self._get(request.name)
            await self._call(self._store.delete, row.id)
            # Only now: if the store fails, the run still exists and its session keeps it. Steps that were taken meanwhile are
            # never committed, because a commit is conditional on the row.
            run = self._engine.registry.named(name)
            if run is not None:
                self._engine.registry.release(run)
        return run_service_pb2.DeleteRunResponse()

    async def rewind_run(self, request: run_service_pb2.RewindRunRequest) -> run_service_pb2.RewindRunResponse:
        """See RunService.RewindRun."""
        row = await self._lineage.rewind(request)
        return run_service_pb2.RewindRunResponse(run=_convert.run_out(*self._cache.judge(row)))

    async def fork_run(self, request: run_service_pb2.ForkRunRequest) -> run_service_pb2.ForkRunResponse:
        """See RunService.ForkRun."""
        row = await self._lineage.fork(request)
        return run_service_pb2.ForkRunResponse(run=_convert.run_out(*self._cache.judge(row)))

    async def query_series(self, request: run_service_pb2.QuerySeriesRequest) -> run_service_pb2.QuerySeriesResponse:
        """See RunService.QuerySeries."""
        row = await self._get(request.name)
        size = _page_size(request.page_size, 1000, 10_000)
        first, last = request.first_step or 1, min(request.last_step or _convert.MAX_INTEGER, _convert.MAX_INTEGER)
        if first > last:
            raise ServiceError("INVALID_RANGE", f"first_step {first} is after last_step {last}", field="first_step")
        if request.branch > row.rewinds:
            raise ServiceError(
                "INVALID_RANGE", f"branch {request.branch} does not exist; choose one from 0 to {row.rewinds}", field="branch"
            )
        about = ("series", request.name, str(request.first_step), str(request.last_step), str(request.branch))
        token = _token_in(request.page_token, *about)
        if token:
            first = int(token[0])
        if request.max_buckets:
            most = min(request.max_buckets, 10_000)
            buckets = await self._call(self._store.summary, row, request.branch, first, last, most)
            return run_service_pb2.QuerySeriesResponse(buckets=_convert.buckets_out(len(row.config.scale_groups), buckets))
        steps = await self._call(self._store.steps, row, request.branch, first, last, size + 1)
        page = steps[:size]
        return run_service_pb2.QuerySeriesResponse(
            records=map(_convert.step_out, page),
            next_page_token=_token_out([str(steps[size].step)], *about) if len(steps) > size else "",
        )

    async def _get(self, name: str) -> RunRow:
        run = _convert.run_name_in(name)
        row = await self._call(self._store.get, run.project, run.run)
        if row is None:
            raise ServiceError("RUN_NOT_FOUND", f"{name}: no such run; `mechanicd runs list` shows all runs", {"name": name})
        return row


def _is_in(row: RunRow, project: str | None) -> bool:
    return project is None or row.project == project


def _name(row: RunRow) -> str:
    return str(names.RunName(row.project, row.run))


def _differs(before: Seen | None, now: Seen) -> bool:
    """Whether a watcher must be sent the run again."""
    if before is None:
        return True
    (old, old_needs), (new, new_needs) = before, now
    if old is new:
        return False
    if old.revision != new.revision or old.status != new.status:
        return True
    return not same_alerts(old_needs, new_needs)


def _page_size(asked: int, default: int, most: int) -> int:
    if asked < 0:
        raise ServiceError(
            "INVALID_RANGE", f"page_size is {asked}; use 0 for the default, or a positive number", field="page_size"
        )
    return min(asked or default, most)


def _token_out(position: list[str], *about: str) -> str:
    return base64.urlsafe_b64encode("\n".join([_digest(about), *position]).encode()).decode()


def _token_in(token: str, *about: str) -> list[str] | None:
    if not token:
        return None
    try:
        digest, *position = base64.urlsafe_b64decode(token.encode()).decode().split("\n")
    except ValueError:
        digest, position = "", []
    if digest != _digest(about) or not position:
        raise ServiceError(
            "INVALID_PAGE_TOKEN",
            "this page token came from a different request; send it with the request that returned it, unchanged",
            field="page_token",
        )
    return position


def _digest(about: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(about).encode()).hexdigest()[:16]
