"""The engine where the clock is set back, forward and far: steps stay durable, and sessions in order."""

import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mechanicd.service import Engine
from mechanicd.store import _sqlite, steady_ns
from mechanicd.tuner import Tuner
from mechanicd.v1 import resources_pb2, tuner_service_pb2
from tests.service.engine_bench import NAME, SCALARS, Bench


@pytest.mark.parametrize("now", [1, -(10**18), 10**18, 2**63 - 1, 2**65, 1_800_000_000 * 10**9 - 10**9])
def test_wherever_the_clock_is_set_steps_stay_durable(
    play: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, now: int
) -> None:
    async def act(bench: Bench) -> None:
        begun = time.time_ns()
        await bench.open()
        bench.step(20)
        assert await bench.flush() == 20
        monkeypatch.setattr(_sqlite, "time_ns", lambda: now)
        for _ in range(2):
            bench.store.inner.ping()  # as the writer does each second
            bench.step(100)
        bench.engine.disconnected({bench.session})
        assert await bench.flush() == 220
        times = [step.time for step in bench.store.steps(bench.store.get("p", "r"), 0, 1, 2**62, 2**62)]
        assert times == sorted(times)
        assert begun <= times[0] <= times[-1] < begun + 600 * 10**9
        monkeypatch.undo()
        bench.step(200)
        assert await bench.flush() == 420
        row = bench.store.get("p", "r")
        assert 0 < row.interval < 10**9
        assert bench.health == []

    bench = play(act)
    assert bench.stored() == bench.taken()


@pytest.mark.parametrize("back", [10**9, 3600 * 10**9, 10**18])
def test_a_session_knows_its_successor_also_where_the_clock_was_set_back_in_between(
    play: Callable[..., Bench], back: int
) -> None:
    """Otherwise it would be told that it is unknown, open the run again, and rewind the steps of its successor."""

    async def act(bench: Bench) -> None:
        await bench.open()
        bench.step(5)
        await bench.flush()
        first = bench.session
        now = bench.store.clock.now()
        bench.store.clock.start(now - back, steady_ns())  # as by a restart at another time
        await bench.open(after_step=5)
        await bench.engine.close_session(
            tuner_service_pb2.CloseSessionRequest(session=bench.session, status=resources_pb2.RUN_STATUS_FINISHED)
        )
        again = Engine(bench.store)  # type: ignore[arg-type]  # another server, which knows neither
        again.start()
        refused = await bench.refused(again.open_session(tuner_service_pb2.OpenSessionRequest(name=NAME, session=first)))
        assert refused.reason == "SESSION_FENCED"
        await again.writer.stop()

    play(act)


def test_an_interval_that_an_earlier_version_stored_below_0_heals(play: Callable[..., Bench], tmp_path: Path) -> None:
    async def act(bench: Bench) -> None:
        await bench.open()
        bench.step(3)
        await bench.flush()

    play(act)
    with sqlite3.connect(tmp_path / "runs.db") as db:
        db.execute("UPDATE runs SET step_interval = -9223372036854775807")
    db.close()

    async def again(bench: Bench) -> None:
        await bench.open()
        assert bench.store.get("p", "r").interval == 0
        bench.states = [Tuner().init()]
        for _ in range(3):
            bench.states.append(Tuner().update(bench.states[-1], SCALARS))
        bench.step(3)
        assert await bench.flush() == 6
        assert bench.store.get("p", "r").interval > 0

    play(again)
