"""The grpcio adapter: it passes messages to the service and errors to the client, and decides nothing."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from time import perf_counter
from typing import Any, TypeVar
from urllib.parse import unquote

import grpc

from mechanicd.service import _convert, _limits
from mechanicd.service._active_run import AlreadyTaken
from mechanicd.service._audit import CALL
from mechanicd.service._decoding import ManySteps, Refused
from mechanicd.service._engine import Engine
from mechanicd.service._errors import ServiceError
from mechanicd.service._refusal import abort, fail
from mechanicd.service._registry import Unrecognized
from mechanicd.service._run_service import RunService
from mechanicd.v1 import names, run_service_pb2_grpc, tuner_service_pb2_grpc
from mechanicd.v1 import run_service_pb2 as run
from mechanicd.v1 import tuner_service_pb2 as tuner

R = TypeVar("R")
Context = Any


def _answer(handler: Callable[[Any, Any], Awaitable[R]]) -> Callable[[Any, Any, Context], Awaitable[R]]:
    """A unary method from a handler that raises ServiceError: errors are sent to the client in one place."""

    async def call(servicer: Any, request: Any, context: Context) -> R:
        try:
            if request.__class__ is Refused:
                raise request.error
            return await handler(servicer, request)
        except ServiceError as error:
            await abort(context, error)
        except Exception:
            await fail(context)

    return call


class TunerServicer(tuner_service_pb2_grpc.TunerServiceServicer):
    """TunerService over an engine.

    Args:
        settle: whether a step is answered only once it is durable.
    """

    def __init__(self, engine: Engine, settle: bool) -> None:
        self._engine = engine
        self._settle = settle

    @_answer
    async def OpenSession(self, request: tuner.OpenSessionRequest) -> tuner.OpenSessionResponse:
        return await self._engine.open_session(request)

    @_answer
    async def Step(self, request: tuner.StepRequest) -> tuner.StepResponse:
        steps, response = tuner.StreamStepsRequest(steps=[request]), tuner.StreamStepsResponse()
        begun = perf_counter()
        try:
            response.results.append(self._engine.step(request))
            self._engine.metrics.step_seconds.add(perf_counter() - begun)
        except (AlreadyTaken, Unrecognized):  # the store may have a better answer
            response, old = self._engine.steps(steps)
            await self._engine.recall(steps, response, old)
        if self._settle:
            await self._engine.wait_durable(response)
        (result,) = response.results
        if result.HasField("error"):
            raise _convert.error_in(result.error)
        return tuner.StepResponse(result=result)

    async def StreamSteps(self, _: object, context: Context) -> None:
        """Answers steps as they arrive. `read` and `write` on the context are the fastest form that grpcio has."""
        read, write, steps, took = context.read, context.write, self._engine.steps, self._engine.metrics.step_seconds.add
        call, last = CALL.get(None), None
        check = None if call is None else call.sessions
        try:
            while (request := await read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
                begun = perf_counter()
                try:
                    if check is not None and check.is_new(request):
                        await check.look(request)
                    if request.__class__ is ManySteps:
                        response, old = await self._in_parts(request)
                        request = request.request
                    else:
                        response, old = steps(request)
                    took(perf_counter() - begun)
                    if old or self._settle:
                        await self._complete(request, response, old)
                except Exception as error:
                    if isinstance(request, Refused):
                        await abort(context, request.error)
                    if isinstance(error, ServiceError):
                        await abort(context, error)
                    await fail(context)
                await write(response)
                last = request
        finally:
            if last is not None:
                self._engine.disconnected({step.session for step in last.steps})

    async def _in_parts(self, many: ManySteps) -> tuple[tuner.StreamStepsResponse, list[int]]:
        """`Engine.steps` for a message of very many steps: others take theirs in between."""
        whole, old = tuner.StreamStepsResponse(), list[int]()
        for part in many.parts():
            before = len(whole.results)
            response, later = self._engine.steps(part)
            whole.MergeFrom(response)
            old += [before + index for index in later]
            await asyncio.sleep(0)
        return whole, old

    async def _complete(self, request: tuner.StreamStepsRequest, response: tuner.StreamStepsResponse, old: list[int]) -> None:
        if old:
            await self._engine.recall(request, response, old)
        if self._settle:
            await self._engine.wait_durable(response)

    @_answer
    async def Flush(self, request: tuner.FlushRequest) -> tuner.FlushResponse:
        return await self._engine.flush(request)

    @_answer
    async def CloseSession(self, request: tuner.CloseSessionRequest) -> tuner.CloseSessionResponse:
        return await self._engine.close_session(request)


class RunServicer(run_service_pb2_grpc.RunServiceServicer):
    """RunService over a store."""

    def __init__(self, runs: RunService) -> None:
        self._runs = runs
        self._watchers = Counter[str]()  # by host

    @_answer
    async def GetRun(self, request: run.GetRunRequest) -> run.GetRunResponse:
        return await self._runs.get_run(request)

    async def ListRuns(self, request: run.ListRunsRequest, context: Context) -> run.ListRunsResponse:
        """Also tells the time, in a header: whoever shows how long ago something was may have another clock."""
        await context.send_initial_metadata(self._time())
        return await self._list_runs(request, context)

    @_answer
    async def _list_runs(self, request: run.ListRunsRequest) -> run.ListRunsResponse:
        return await self._runs.list_runs(request)

    def _time(self) -> tuple[tuple[str, str], ...]:
        return ((names.TIME_HEADER, str(self._runs.now())),)

    async def WatchRuns(self, request: run.WatchRunsRequest, context: Context) -> AsyncIterator[run.WatchRunsResponse]:
        """Sends the runs as they are now, and each run again whenever it changes."""
        try:
            if isinstance(request, Refused):
                raise request.error
            with self._watching(_host(context.peer())):
                await context.send_initial_metadata(self._time())
                async for response in self._runs.watch_runs(request):
                    yield response
        except ServiceError as error:
            await abort(context, error)
        except Exception:
            await fail(context)

    @contextlib.contextmanager
    def _watching(self, host: str) -> Iterator[None]:
        """Raises ServiceError TOO_MANY_WATCHERS."""
        if self._watchers[host] >= _limits.MOST_WATCHERS:
            told = f"{_limits.MOST_WATCHERS} calls from {host} watch runs already; end some of them, or share one"
            raise ServiceError("TOO_MANY_WATCHERS", told, {"allowed": _limits.MOST_WATCHERS})
        self._watchers[host] += 1
        try:
            yield
        finally:
            self._watchers[host] -= 1
            self._watchers += Counter()  # without those that are at zero

    @_answer
    async def UpdateRun(self, request: run.UpdateRunRequest) -> run.UpdateRunResponse:
        return await self._runs.update_run(request)

    @_answer
    async def DeleteRun(self, request: run.DeleteRunRequest) -> run.DeleteRunResponse:
        return await self._runs.delete_run(request)

    @_answer
    async def SketchRuns(self, request: run.SketchRunsRequest) -> run.SketchRunsResponse:
        return await self._runs.sketch_runs(request)

    @_answer
    async def QuerySeries(self, request: run.QuerySeriesRequest) -> run.QuerySeriesResponse:
        return await self._runs.query_series(request)

    @_answer
    async def ForkRun(self, request: run.ForkRunRequest) -> run.ForkRunResponse:
        return await self._runs.fork_run(request)

    @_answer
    async def CloseRun(self, request: run.CloseRunRequest) -> run.CloseRunResponse:
        return await self._runs.close_run(request)

    @_answer
    async def RewindRun(self, request: run.RewindRunRequest) -> run.RewindRunResponse:
        return await self._runs.rewind_run(request)

    @_answer
    async def RenameRun(self, request: run.RenameRunRequest) -> run.RenameRunResponse:
        return await self._runs.rename_run(request)

    @_answer
    async def ArchiveRun(self, request: run.ArchiveRunRequest) -> run.ArchiveRunResponse:
        return await self._runs.archive_run(request)

    @_answer
    async def RestoreRun(self, request: run.RestoreRunRequest) -> run.RestoreRunResponse:
        return await self._runs.restore_run(request)


def _host(peer: str) -> str:
    """The host of a peer as gRPC names it: `ipv4:10.0.0.1:4711`, `ipv6:%5B::1%5D:4711`, or `unix:` and a path."""
    kind, _, rest = peer.partition(":")
    return unquote(rest.rpartition(":")[0]) if kind in ("ipv4", "ipv6") else kind
