"""An engine at work on a store that can be told to fail or to wait, and a trainer of one run, all in one process."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from mechanicd.service import Engine, ServiceError
from mechanicd.store import Commit, Release, SQLiteStore, StoreRejected
from mechanicd.tuner import Reductions, Tuner
from mechanicd.v1 import resources_pb2, tuner_service_pb2

NAME = "projects/p/runs/r"
SCALARS = Reductions(-1.0, 0.5, 1.0, 2.0)


class TroubledStore:
    """A real store that can be told to fail with an error, or to wait for `go` before each commit."""

    def __init__(self, path: Path) -> None:
        self.inner = SQLiteStore(str(path))
        self.clock = self.inner.clock
        self.error: Exception | None = None
        self.reject = 0
        self.go = threading.Event()
        self.go.set()

    def commit(self, commits: list[Commit], releases: list[Release]) -> list[bool]:
        self.go.wait(20)
        if self.error is not None:
            raise self.error
        if any(commit.run_id == self.reject for commit in commits):
            raise StoreRejected("a value is out of range")
        return self.inner.commit(commits, releases)

    @property
    def unfolded(self) -> int:
        return 0 if self.error is not None else self.inner.unfolded

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)

        def call(*arguments: Any, **settings: Any) -> Any:
            if self.error is not None and name != "close":
                raise self.error
            return method(*arguments, **settings)

        return call


class Bench:
    """An engine at work on a troubled store, and a trainer of one run in the same process."""

    def __init__(self, path: Path, flush_interval: float = 0.001) -> None:
        self.path = path
        self.store = TroubledStore(path)
        self.health: list[bool] = []
        self._told = asyncio.Event()
        self.engine = Engine(self.store, flush_interval, self._tell)  # type: ignore[arg-type]
        self.engine.start()
        self.session = 0
        self.states = [Tuner().init()]

    def _tell(self, healthy: bool) -> None:
        self.health.append(healthy)
        self._told.set()

    async def told(self, *health: bool) -> None:
        """Waits until the engine has told exactly this of its health since it began."""
        while self.health != list(health):
            await self._told.wait()
            self._told.clear()

    async def open(self, **fields: Any) -> Any:
        opened = await self.engine.open_session(tuner_service_pb2.OpenSessionRequest(name=NAME, **fields))
        self.session = opened.session
        return opened

    def step(self, count: int = 1) -> Any:
        """The next steps; each gives the bits of a tuner of its own."""
        for _ in range(count):
            message = resources_pb2.Reductions(**{name: [value] for name, value in SCALARS._asdict().items()})
            step = len(self.states)
            request = tuner_service_pb2.StepRequest(session=self.session, step=step, reductions=message)
            self.states.append(Tuner().update(self.states[-1], SCALARS))
            result = self.engine.step(request)
            assert tuple(result.scale) == self.states[-1].scale
        return result

    async def step_for_ever(self) -> None:
        while True:
            self.step()
            await asyncio.sleep(0)

    async def flush(self) -> int:
        return (await self.engine.flush(tuner_service_pb2.FlushRequest(session=self.session))).durable_step

    async def refused(self, answer: Coroutine[Any, Any, Any]) -> ServiceError:
        with pytest.raises(ServiceError) as caught:
            await answer
        return caught.value

    def stored(self) -> list[tuple[float, ...]]:
        """The S of each step that is in the database of an engine that has stopped."""
        store = SQLiteStore(str(self.path))
        row = store.get("p", "r")
        assert row is not None
        steps = list(store.steps(row, 0, 1, 2**62, 2**62))
        assert [step.step for step in steps] == list(range(1, row.last_step + 1))
        store.close()
        return [step.scale for step in steps]

    def taken(self) -> list[tuple[float, ...]]:
        return [state.scale for state in self.states[1:]]


Play = Callable[[Bench], Coroutine[Any, Any, None]]
