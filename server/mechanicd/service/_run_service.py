"""RunService's calls: queries and changes of runs. Takes messages and returns messages; knows no transport."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Final

from mechanicd import store
from mechanicd.runs import Alert, EventKind, EventRow, RunRow, Silence, record_layout, same_alerts, unpack, unpack_columns
from mechanicd.service import _convert, _deletion, _ending, _pages
from mechanicd.service._engine import Engine
from mechanicd.service._errors import ServiceError, every
from mechanicd.service._lineage import Lineage
from mechanicd.service._run_cache import RunCache, Seen
from mechanicd.service._sketches import Sketches
from mechanicd.service._slices import sliced
from mechanicd.v1 import names, resources_pb2, run_service_pb2

WATCH_SECONDS: Final = 0.25
_MANY_GROUPS: Final = 1000
"""A run with fewer scale groups fits into a message, however long their names are."""
_MOST_PATHS: Final = 2 * names.MAX_LABELS  # all that a run has, and as many new ones


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
        self._silence = silence or Silence()
        self._cache = RunCache(engine.store, engine.writer.call, self._silence)
        self._sketches = Sketches(engine.store, engine.writer.call)

    def now(self) -> int:
        """The store's time, ns since 1970."""
        return self._store.clock.now()

    async def get_run(self, request: run_service_pb2.GetRunRequest) -> run_service_pb2.GetRunResponse:
        """See RunService.GetRun."""
        row = await self._get(_convert.run_name_in(request.name))
        events = await self._call(self._store.events, row.id)
        run = _convert.run_out(*self._cache.judge(row), command=True)
        return run_service_pb2.GetRunResponse(run=run, events=map(_convert.event_out, events))

    async def list_runs(self, request: run_service_pb2.ListRunsRequest) -> run_service_pb2.ListRunsResponse:
        """See RunService.ListRuns."""
        about = ("runs", request.parent, request.filter)
        project, matches, size, token = every(
            lambda: _convert.project_in(request.parent),
            lambda: _convert.filter_in(request.filter),
            lambda: _pages.page_size(request.page_size, 100, 1000),
            lambda: _pages.token_in(request.page_token, *about, parts=2),
        )
        after = (token[0], token[1]) if token else ("", "")
        rows = [row for row in await self._cache.read() if _is_in(row, project) and (row.project, row.run) > after]
        found = []
        async for seen in sliced(map(self._cache.judge, sorted(rows, key=lambda row: (row.project, row.run)))):
            if matches(*seen):
                found.append(seen)
            if len(found) > size:
                break
        async with aclosing(_pages.portions(_listed(*seen) for seen in found[:size])) as pages:
            page = await anext(pages)
        last = found[len(page) - 1][0] if len(found) > len(page) else None
        return run_service_pb2.ListRunsResponse(
            runs=page,
            next_page_token=_pages.token_out([last.project, last.run], *about) if last else "",
        )

    async def watch_runs(self, request: run_service_pb2.WatchRunsRequest) -> AsyncIterator[run_service_pb2.WatchRunsResponse]:
        """See RunService.WatchRuns. Polls every `WATCH_SECONDS`."""
        project, matches = every(lambda: _convert.project_in(request.parent), lambda: _convert.filter_in(request.filter))
        shown: dict[int, Seen] = {}
        first = True
        while True:
            seen = await self._cache.watch()
            now = {id_: each async for id_, each in sliced(seen.items()) if _is_in(each[0], project) and matches(*each)}
            changed = [each for id_, each in now.items() if _differs(shown.get(id_), each)]
            gone = sorted(name for id_, each in shown.items() if (name := _name(each[0])) != _name_in(now, id_))
            if changed or gone or first:
                changed.sort(key=lambda each: (each[0].project, each[0].run))
                async for response in _responses(changed, gone):
                    yield response
            shown, first = now, False
            await asyncio.sleep(WATCH_SECONDS)

    async def update_run(self, request: run_service_pb2.UpdateRunRequest) -> run_service_pb2.UpdateRunResponse:
        """See RunService.UpdateRun."""
        paths = request.update_mask.paths
        row = await self._find(request.run.name)
        name, _, labels = every(
            lambda: _convert.run_name_in(request.run.name, "run.name"),
            lambda: _check_mask(paths),
            lambda: _labels_in(request, row),
        )
        assert row is not None  # its name is well-formed
        await self._call(self._store.set_labels, row.id, labels)
        row = await self._get(name)
        return run_service_pb2.UpdateRunResponse(run=_convert.run_out(*self._cache.judge(row)))

    async def delete_run(self, request: run_service_pb2.DeleteRunRequest) -> run_service_pb2.DeleteRunResponse:
        """See RunService.DeleteRun."""
        await _deletion.delete(self._engine, request)
        return run_service_pb2.DeleteRunResponse()

    async def rewind_run(self, request: run_service_pb2.RewindRunRequest) -> run_service_pb2.RewindRunResponse:
        """See RunService.RewindRun."""
        row = await self._lineage.rewind(request)
        return run_service_pb2.RewindRunResponse(run=_convert.run_out(*self._cache.judge(row)))

    async def rename_run(self, request: run_service_pb2.RenameRunRequest) -> run_service_pb2.RenameRunResponse:
        """See RunService.RenameRun."""
        row = await self._lineage.rename(request)
        return run_service_pb2.RenameRunResponse(run=_convert.run_out(*self._cache.judge(row)))

    async def archive_run(self, request: run_service_pb2.ArchiveRunRequest) -> run_service_pb2.ArchiveRunResponse:
        """See RunService.ArchiveRun."""
        row = await self._archived(request.name, EventKind.ARCHIVED)
        return run_service_pb2.ArchiveRunResponse(run=_convert.run_out(*self._cache.judge(row)))

    async def restore_run(self, request: run_service_pb2.RestoreRunRequest) -> run_service_pb2.RestoreRunResponse:
        """See RunService.RestoreRun."""
        row = await self._archived(request.name, EventKind.RESTORED)
        return run_service_pb2.RestoreRunResponse(run=_convert.run_out(*self._cache.judge(row)))

    async def fork_run(self, request: run_service_pb2.ForkRunRequest) -> run_service_pb2.ForkRunResponse:
        """See RunService.ForkRun."""
        row = await self._lineage.fork(request)
        return run_service_pb2.ForkRunResponse(run=_convert.run_out(*self._cache.judge(row)))

    async def sketch_runs(self, request: run_service_pb2.SketchRunsRequest) -> run_service_pb2.SketchRunsResponse:
        """See RunService.SketchRuns."""
        return await self._sketches.of(request, self._cache.read)

    async def close_run(self, request: run_service_pb2.CloseRunRequest) -> run_service_pb2.CloseRunResponse:
        """See RunService.CloseRun."""
        row = await _ending.close(self._engine, request, self._silence)
        return run_service_pb2.CloseRunResponse(run=_convert.run_out(*self._cache.judge(row)))

    async def query_series(self, request: run_service_pb2.QuerySeriesRequest) -> run_service_pb2.QuerySeriesResponse:
        """See RunService.QuerySeries."""
        about = ("series", request.name, str(request.first_step), str(request.last_step), str(request.branch))
        row = await self._find(request.name)
        _, (first, last), size, token, _ = every(
            lambda: _convert.run_name_in(request.name),
            lambda: _range_in(request),
            lambda: _pages.page_size(request.page_size, 1000, 10_000),
            lambda: _pages.step_token_in(request.page_token, *about),
            lambda: _check_branch(request.branch, row),
        )
        assert row is not None  # its name is well-formed
        groups = len(row.config.scale_groups)
        if token is not None:
            first = token
        if request.max_buckets:
            values = 3 * (len(store.SERIES) * groups + 1)
            most = _pages.fit(min(request.max_buckets, 10_000), values, _pages.MOST_BYTES)
            buckets = await self._call(self._store.summary, row, request.branch, first, last, most)
            made = [each async for each in sliced(_convert.buckets_out(groups, buckets))]
            return run_service_pb2.QuerySeriesResponse(buckets=made)
        size = _pages.fit(size, 6 * groups + 1)
        found, lost = await self._records(row, request.branch, first, last, size + 1)
        end = size * record_layout(groups).size
        page, beyond = found[:end], list(unpack(groups, found[end:]))
        following = beyond[0].step if beyond else lost
        response = run_service_pb2.QuerySeriesResponse(
            next_page_token=_pages.token_out([str(following)], *about) if following else ""
        )
        if request.as_columns:
            response.columns.CopyFrom(_convert.columns_out(unpack_columns(groups, page)))
        else:
            steps = map(_convert.step_out, unpack(groups, page, request.branch))
            response.records.extend([step async for step in sliced(steps)])
        return response

    async def _records(self, row: RunRow, branch: int, first: int, last: int, limit: int) -> tuple[bytes, int]:
        """Exact steps, packed, up to the first that can't be read, and that one; 0 if all can.

        Raises:
            ServiceError: STORE_DAMAGED; step `first` is one that can't be read.
        """
        try:
            return await self._call(self._store.records, row, branch, first, last, limit), 0
        except ServiceError as error:
            lost = int(error.metadata.get("first_step", 0))
            if error.reason != "STORE_DAMAGED" or lost <= first:
                raise
            return await self._call(self._store.records, row, branch, first, lost - 1, limit), lost

    async def _archived(self, given: str, kind: EventKind) -> RunRow:
        """Archives or restores a run."""
        name = _convert.run_name_in(given)
        row, archived, now = await self._get(name), kind is EventKind.ARCHIVED, self._store.clock.now()
        if bool(row.archive_time) is archived:
            return row
        await self._call(self._store.archive, row.id, now if archived else 0, EventRow(now, row.last_step, kind, "by hand"))
        return await self._get(name)

    async def _find(self, name: str) -> RunRow | None:
        """The run; None if its name is malformed, which is told together with what else is wrong with the request."""
        try:
            run = names.parse_run(name)
        except names.MalformedName:
            return None
        return await self._get(run)

    async def _get(self, name: names.RunName) -> RunRow:
        row = await self._call(self._store.get, name.project, name.run)
        if row is None:
            raise ServiceError("RUN_NOT_FOUND", f"{name}: no such run; `mechanicd runs list` shows all runs", {"name": name})
        return row


def _is_in(row: RunRow, project: str | None) -> bool:
    return project is None or row.project == project


def _name(row: RunRow) -> str:
    return str(names.RunName(row.project, row.run))


def _name_in(seen: Mapping[int, Seen], id_: int) -> str | None:
    return _name(seen[id_][0]) if id_ in seen else None


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


async def _responses(changed: Sequence[Seen], gone: Iterable[str]) -> AsyncIterator[run_service_pb2.WatchRunsResponse]:
    """What a watcher is sent at one moment. Runs become messages only as they are sent: thousands of them are large."""
    *others, last = _pages.texts(gone, _pages.GONE_BYTES)
    for names_ in others:
        yield run_service_pb2.WatchRunsResponse(gone=names_, more=True)
    waiting: run_service_pb2.WatchRunsResponse | None = None
    async for portion in _pages.portions(_listed(*each) for each in changed):
        if waiting is not None:
            waiting.more = True
            yield waiting
        waiting, last = run_service_pb2.WatchRunsResponse(runs=portion, gone=last), []
    assert waiting is not None  # there is one portion at least
    yield waiting


def _listed(row: RunRow, needs: Sequence[Alert]) -> resources_pb2.Run:
    """A run of a list or a watch: without the names of its scale groups if it would fit into no message with them."""
    run = _convert.run_out(row, needs)
    if len(run.scale) >= _MANY_GROUPS and run.ByteSize() > _pages.PAGE_BYTES:
        run.config.ClearField("scale_groups")
    return run


def _check_mask(paths: Sequence[str]) -> None:
    """Raises ServiceError INVALID_UPDATE_MASK."""
    bad = [path for path in paths[:_MOST_PATHS] if path != "labels" and (not path.startswith("labels.") or path == "labels.")]
    if not 1 <= len(paths) <= _MOST_PATHS:
        raise ServiceError(
            "INVALID_UPDATE_MASK",
            f"the update mask has {len(paths)} paths; name `labels` or `labels.KEY` in it, with at most {_MOST_PATHS} paths",
            field="update_mask",
        )
    if bad:
        raise ServiceError(
            "INVALID_UPDATE_MASK",
            f"{', '.join(map(repr, bad))} can't be updated; only `labels` and `labels.KEY` can",
            {"path": bad[0]},
            field="update_mask",
        )


def _labels_in(request: run_service_pb2.UpdateRunRequest, row: RunRow | None) -> dict[str, str]:
    """The labels that an update leaves. Raises ServiceError INVALID_LABELS."""
    given = _convert.labels_in(request.run.labels, "run.labels")
    left = _updated(row.labels if row else {}, given, request.update_mask.paths[:_MOST_PATHS])
    return _convert.labels_in(left, "run.labels")


def _updated(labels: Mapping[str, str], given: Mapping[str, str], paths: Iterable[str]) -> dict[str, str]:
    """The labels after an update with a mask."""
    updated = dict(labels)
    for path in paths:
        key = path.removeprefix("labels.")
        if path == "labels":
            updated = dict(given)
        elif key in given:
            updated[key] = given[key]
        else:
            updated.pop(key, None)
    return updated


def _range_in(request: run_service_pb2.QuerySeriesRequest) -> tuple[int, int]:
    """The first and the last step. Raises ServiceError INVALID_RANGE."""
    first, last = request.first_step or 1, min(request.last_step or _convert.MAX_INTEGER, _convert.MAX_INTEGER)
    if first > last:
        raise ServiceError("INVALID_RANGE", f"first_step {first} is after last_step {last}", field="first_step")
    return first, last


def _check_branch(branch: int, row: RunRow | None) -> None:
    """Raises ServiceError INVALID_RANGE."""
    if row is not None and branch > row.rewinds:
        raise ServiceError(
            "INVALID_RANGE", f"branch {branch} does not exist; choose one from 0 to {row.rewinds}", field="branch"
        )
