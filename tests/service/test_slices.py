"""An answer about very many runs or steps is made in slices: the steps of every trainer are answered in between."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from mechanicd.runs import RunRow
from mechanicd.service import _convert
from mechanicd.service._run_cache import RunCache
from mechanicd.service._run_service import RunService
from mechanicd.v1 import run_service_pb2
from tests.service.engine_bench import NAME, Bench

COUNT = 60


class Turns:
    """How many things were made in each turn of the event loop, if each takes a while."""

    def __init__(self) -> None:
        self.now = 0
        self.made = Counter[int]()

    async def run(self) -> None:
        while True:
            self.now += 1
            await asyncio.sleep(0)

    def slow(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any, **settings: Any) -> Any:
            time.sleep(0.0004)
            self.made[self.now] += 1
            return make(*arguments, **settings)

        return made


async def listed(runs: RunService) -> int:
    return len((await runs.list_runs(run_service_pb2.ListRunsRequest(page_size=1000, parent="projects/p"))).runs)


async def found(runs: RunService) -> int:
    request = run_service_pb2.ListRunsRequest(page_size=1000, parent="projects/p", filter="step > 1000")
    return COUNT - len((await runs.list_runs(request)).runs)


async def watched(runs: RunService) -> int:
    watching = runs.watch_runs(run_service_pb2.WatchRunsRequest(parent="projects/p"))
    return len((await anext(watching)).runs)


async def recorded(runs: RunService) -> int:
    return len((await runs.query_series(run_service_pb2.QuerySeriesRequest(name=NAME))).records)


async def bucketed(runs: RunService) -> int:
    return len((await runs.query_series(run_service_pb2.QuerySeriesRequest(name=NAME, max_buckets=1000))).buckets)


@pytest.mark.parametrize("ask", [listed, found, watched, recorded, bucketed], ids=lambda ask: ask.__name__)
def test_no_answer_holds_up_the_steps_of_others(
    ask: Callable[[RunService], Coroutine[Any, Any, int]], play: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, buckets = Turns(), _convert.buckets_out

    def slow_buckets(*arguments: Any) -> Iterator[Any]:
        yield from map(turns.slow(lambda bucket: bucket), buckets(*arguments))

    judge = turns.slow(RunCache.judge)
    monkeypatch.setattr(RunCache, "judge", lambda cache, row: judge(cache, row) if row.last_step == 0 else (row, []))
    monkeypatch.setattr(_convert, "run_out", turns.slow(_convert.run_out))
    monkeypatch.setattr(_convert, "step_out", turns.slow(_convert.step_out))
    monkeypatch.setattr(_convert, "buckets_out", slow_buckets)
    answers: list[int] = []

    async def act(bench: Bench) -> None:
        opened = await bench.open()
        bench.step(COUNT)
        await bench.flush()
        row = bench.store.inner.get("p", "r")
        assert isinstance(row, RunRow)
        for number in range(COUNT - 1):
            bench.store.inner.create("p", f"r{number:03}", row.config, opened.tuner_state, row.scale, 1)
        turns.made.clear()
        counting = asyncio.create_task(turns.run())
        answers.append(await ask(RunService(bench.engine)))
        counting.cancel()

    play(act)
    assert answers == [COUNT]
    assert turns.made.total() >= COUNT - 1
    assert max(turns.made.values()) < 20
