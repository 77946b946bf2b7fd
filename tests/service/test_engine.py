"""The engine over a store that fails, is slow, or is taken away: what a process over a real disk shows only by chance."""

import asyncio
import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from mechanicd.runs import EventKind, RunStatus
from mechanicd.service import Engine, ServiceError, _writer
from mechanicd.store import (
    Claim,
    Commit,
    OwnershipLost,
    Release,
    SQLiteStore,
    StoreRejected,
    StoreUnavailable,
    _sqlite,
    steady_ns,
)
from mechanicd.tuner import Reductions, Tuner, TunerState
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

        def call(*arguments: Any) -> Any:
            if self.error is not None and name != "close":
                raise self.error
            return method(*arguments)

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


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., Bench]:
    """Runs a coroutine on a bench inside an event loop, and stops the engine; gives the bench, to look at what it left."""

    def run(act: Play, flush_interval: float = 0.001) -> Bench:
        async def scene() -> Bench:
            bench = Bench(tmp_path / "runs.db", flush_interval)
            await act(bench)
            await bench.engine.stop()
            return bench

        return asyncio.run(asyncio.wait_for(scene(), 30))

    return run


@pytest.mark.parametrize(
    "error", [StoreUnavailable("disk full"), OverflowError("a bug, not a disk")], ids=["the disk refuses", "a bug in the store"]
)
def test_while_the_store_fails_steps_go_on_and_when_it_works_again_nothing_is_lost(
    play: Callable[..., Bench], error: Exception
) -> None:
    async def act(bench: Bench) -> None:
        await bench.open()
        bench.step(10)
        assert await bench.flush() == 10
        assert bench.health == []
        bench.store.error = error
        bench.step(10)
        await bench.told(False)
        refused = await bench.refused(bench.flush())
        assert refused.reason == "STORE_UNAVAILABLE"
        assert str(error) not in refused.message
        assert bench.step(10).durable_step == 10, "what was announced durable stays, and nothing else is announced"
        assert (await bench.refused(bench.flush())).reason == "STORE_UNAVAILABLE"
        assert bench.health == [False], "said once"
        bench.store.error = None
        await bench.told(False, True)
        bench.step(10)
        assert await bench.flush() == 40

    bench = play(act)
    assert bench.stored() == bench.taken()
    assert len(bench.taken()) == 40


def test_a_run_that_the_store_rejects_holds_up_no_other(play: Callable[..., Bench], caplog: pytest.LogCaptureFixture) -> None:
    async def act(bench: Bench) -> None:
        await bench.open()
        bench.step(10)
        assert await bench.flush() == 10
        other = (await bench.engine.open_session(tuner_service_pb2.OpenSessionRequest(name="projects/p/runs/other"))).session
        bad = bench.engine.registry.get(other)
        bench.store.reject = bad.row.id
        message = resources_pb2.Reductions(**{name: [value] for name, value in SCALARS._asdict().items()})
        for step in range(1, 6):
            bench.engine.step(tuner_service_pb2.StepRequest(session=other, step=step, reductions=message))
            bench.step()
            assert await bench.flush() == 10 + step
        flush = bench.engine.flush(tuner_service_pb2.FlushRequest(session=other))
        assert (await bench.refused(flush)).reason == "STORE_UNAVAILABLE"
        assert bench.health == [], "the store works"
        assert [record.getMessage().count("can't be stored") for record in caplog.records].count(1) == 1, "said once"
        bench.store.reject = 0
        assert (await bench.engine.flush(tuner_service_pb2.FlushRequest(session=other))).durable_step == 5
        bench.step()
        assert await bench.flush() == 16

    bench = play(act, flush_interval=0.05)  # both runs are in each commit
    assert bench.stored() == bench.taken()


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


def test_a_close_while_the_store_fails_is_refused_and_can_be_sent_again(play: Callable[..., Bench]) -> None:
    closing = tuner_service_pb2.CloseSessionRequest(status="RUN_STATUS_FINISHED")  # type: ignore[arg-type]

    async def act(bench: Bench) -> None:
        await bench.open()
        bench.step(5)
        closing.session = bench.session
        bench.store.error = StoreUnavailable("gone")
        assert (await bench.refused(bench.engine.close_session(closing))).reason == "STORE_UNAVAILABLE"
        bench.step(5)
        bench.store.error = None
        closed = (await bench.engine.close_session(closing)).run
        assert (closed.durable_step, closed.status) == (10, resources_pb2.RUN_STATUS_FINISHED)

    bench = play(act)
    assert bench.stored() == bench.taken()


def test_a_session_that_is_refused_since_the_store_fails_leaves_the_holder_at_work(play: Callable[..., Bench]) -> None:
    async def act(bench: Bench) -> None:
        await bench.open()
        bench.step(5)
        await bench.flush()
        bench.store.error = StoreUnavailable("gone")
        opening = tuner_service_pb2.OpenSessionRequest(name=NAME)
        for _ in range(2):
            assert (await bench.refused(bench.engine.open_session(opening))).reason == "STORE_UNAVAILABLE"
            bench.step(5)
        bench.store.error = None
        assert await bench.flush() == 15

    bench = play(act)
    assert bench.stored() == bench.taken()


@pytest.mark.parametrize("after_step", [2**40, 3])
def test_a_session_that_is_refused_never_fences_the_holder_not_even_for_a_moment(
    play: Callable[..., Bench], after_step: int
) -> None:
    """A step that came while such a request was looked at would have ended a training that nobody meant to end."""

    async def act(bench: Bench) -> None:
        adopted = TunerState.from_rows(5, Tuner().init().rows)  # before it the history is empty: nothing to rewind to
        bench.states = [adopted] * 6
        await bench.open(tuner_state=adopted.to_bytes())
        opening = tuner_service_pb2.OpenSessionRequest(name=NAME, after_step=after_step)
        for _ in range(3):
            answer = asyncio.create_task(bench.engine.open_session(opening))
            while not answer.done():
                bench.step()
                await asyncio.sleep(0.0002)  # the store's thread must get a turn
            assert (await bench.refused(answer)).reason == "RESUME_STEP_UNKNOWN"  # type: ignore[arg-type]

    assert len(play(act).taken()) > 10


def test_a_successor_has_each_step_that_was_answered_until_the_fence(play: Callable[..., Bench]) -> None:
    async def act(bench: Bench) -> None:
        await bench.open()
        answer = asyncio.create_task(bench.engine.open_session(tuner_service_pb2.OpenSessionRequest(name=NAME)))
        assert (await bench.refused(bench.step_for_ever())).reason == "SESSION_FENCED"
        bench.states.pop()  # that step was not answered
        opened = await answer
        assert opened.last_step == len(bench.taken())
        assert opened.tuner_state == bench.states[-1].to_bytes()
        bench.session = opened.session
        bench.step(3)

    bench = play(act)
    assert bench.stored() == bench.taken()


@pytest.mark.parametrize("start", [{}, {"after_step": 10}, {"after_step": 4}])
def test_a_successor_that_names_its_start_gets_it_whatever_comes_meanwhile(
    play: Callable[..., Bench], start: dict[str, int]
) -> None:
    async def act(bench: Bench) -> None:
        await bench.open()
        bench.step(10)
        await bench.flush()
        bench.store.go.clear()
        answer = asyncio.create_task(bench.engine.open_session(tuner_service_pb2.OpenSessionRequest(name=NAME, **start)))
        bench.step(2)
        await asyncio.sleep(0)
        bench.store.go.set()
        opened = await answer
        wanted = start.get("after_step", 12)
        assert opened.last_step == wanted
        assert opened.tuner_state == bench.states[wanted].to_bytes()
        assert opened.run.rewind_count == (1 if start else 0)

    assert len(play(act).stored()) == start.get("after_step", 12)


def test_at_the_end_a_commit_on_its_way_and_the_steps_behind_it_are_all_kept(play: Callable[..., Bench]) -> None:
    async def act(bench: Bench) -> None:
        await bench.open()
        bench.store.go.clear()
        bench.step(5)
        await asyncio.sleep(0.05)  # these are with the store now, which waits
        bench.step(5)
        asyncio.get_running_loop().call_later(0.1, bench.store.go.set)

    bench = play(act)
    assert bench.stored() == bench.taken()


def test_at_the_end_a_commit_that_waits_behind_another_call_is_not_dropped(play: Callable[..., Bench]) -> None:
    async def act(bench: Bench) -> None:
        await bench.open()
        go = threading.Event()
        slow = asyncio.create_task(bench.engine.writer.call(go.wait, 20))
        bench.step(5)
        await asyncio.sleep(0.05)  # the commit stands in line
        asyncio.get_running_loop().call_later(0.1, go.set)
        slow.add_done_callback(lambda _: None)

    bench = play(act)
    assert bench.stored() == bench.taken()


def test_a_flush_waits_for_its_own_steps_and_for_no_later_ones(play: Callable[..., Bench]) -> None:
    async def act(bench: Bench) -> None:
        await bench.open()
        bench.step(5)
        bench.store.go.clear()
        flushing = [asyncio.create_task(bench.flush()) for _ in range(3)]
        await asyncio.sleep(0.01)
        bench.step(5)
        assert not any(each.done() for each in flushing)
        bench.store.go.set()
        assert all(5 <= durable <= 10 for durable in await asyncio.gather(*flushing))
        assert await bench.flush() == 10
        assert await bench.flush() == 10, "with nothing to wait for it returns"

    assert len(play(act, flush_interval=10.0).stored()) == 10


def test_a_run_that_another_server_took_is_let_go_by_name(play: Callable[..., Bench]) -> None:
    """The run's row is the truth: a commit that does not fit it writes nothing, and the session ends here."""

    async def act(bench: Bench) -> None:
        await bench.open()
        bench.step(5)
        await bench.flush()
        row = bench.store.inner.get("p", "r")
        assert row is not None
        claim = Claim(
            run_id=row.id,
            expected_epoch=row.epoch,
            session=4242,
            after_step=5,
            state=row.state,
            scale=row.scale,
            labels={},
            time=1,
        )
        bench.store.inner.claim(claim)
        bench.step(5)
        assert (await bench.refused(bench.flush())).reason == "OWNERSHIP_LOST"
        returning = tuner_service_pb2.OpenSessionRequest(name=NAME, session=bench.session)
        fenced = await bench.refused(bench.engine.open_session(returning))
        assert (fenced.reason, fenced.metadata["successor"]) == ("SESSION_FENCED", "4242")

    bench = play(act)
    assert len(bench.stored()) == 5


@pytest.mark.parametrize("times", [1, 100])
def test_a_claim_that_another_server_won_is_tried_again_a_few_times(
    play: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    async def act(bench: Bench) -> None:
        await bench.open()
        bench.step(5)
        claim, left = bench.store.inner.claim, [times]

        def lost(wanted: Claim) -> Any:
            left[0] -= 1
            if left[0] >= 0:
                raise OwnershipLost("the run is at epoch 2, not 1")
            return claim(wanted)

        monkeypatch.setattr(bench.store.inner, "claim", lost)
        opening = bench.engine.open_session(tuner_service_pb2.OpenSessionRequest(name=NAME))
        if times == 1:
            assert (await opening).last_step == 5
            return
        refused = await bench.refused(opening)
        assert refused.reason == "STORE_UNAVAILABLE"
        assert "is being opened on other servers; try again" in refused.message

    bench = play(act)
    assert bench.stored() == bench.taken()


def test_a_server_that_drains_takes_steps_and_no_new_session(play: Callable[..., Bench]) -> None:
    async def act(bench: Bench) -> None:
        await bench.open()
        bench.step(5)
        bench.engine.drain()
        for session in (0, bench.session):
            refused = await bench.refused(bench.open(session=session))
            assert (refused.code, refused.reason) == (14, "SERVER_DRAINING")
        bench.step(5)
        assert await bench.flush() == 10

    bench = play(act)
    assert bench.stored() == bench.taken()


def test_two_that_open_one_run_at_once_are_served_one_after_the_other(play: Callable[..., Bench]) -> None:
    async def act(bench: Bench) -> None:
        request = tuner_service_pb2.OpenSessionRequest(name=NAME)
        opened = await asyncio.gather(*(bench.engine.open_session(request) for _ in range(8)))
        assert sorted(each.run.session_count for each in opened) == list(range(1, 9))
        assert len({each.session for each in opened}) == 8
        assert [each.outcome for each in opened].count(tuner_service_pb2.OPEN_OUTCOME_CREATED) == 1
        holder = max(opened, key=lambda each: each.run.session_count)
        for each in opened:
            if each is not holder:
                refused = await bench.refused(bench.engine.flush(tuner_service_pb2.FlushRequest(session=each.session)))
                assert refused.reason == "SESSION_FENCED"
        bench.session = holder.session
        bench.step(3)

    assert len(play(act).stored()) == 3


def test_a_released_run_is_nobodys_in_the_store_too(play: Callable[..., Bench]) -> None:
    async def act(bench: Bench) -> None:
        await bench.open()
        bench.step(2)
        status = resources_pb2.RUN_STATUS_FINISHED
        await bench.engine.close_session(tuner_service_pb2.CloseSessionRequest(session=bench.session, status=status))

    bench = play(act)
    store = SQLiteStore(str(bench.path))
    row = store.get("p", "r")
    assert row is not None
    assert (row.session, row.status, row.last_step) == (0, RunStatus.FINISHED, 2)
    store.close()


def test_what_is_noted_while_the_store_fails_is_kept_once_when_it_works_again(play: Callable[..., Bench]) -> None:
    async def act(bench: Bench) -> None:
        await bench.open()
        bench.step(3)
        await bench.flush()
        bench.store.error = StoreUnavailable("the disk is full")
        await bench.engine.open_session(tuner_service_pb2.OpenSessionRequest(name=NAME, session=bench.session))
        bench.step(2)
        bench.engine.disconnected({bench.session})
        await bench.told(False)
        bench.store.error = None
        await bench.told(False, True)
        assert await bench.flush() == 5
        row = bench.store.inner.get("p", "r")
        assert row is not None
        assert [event.kind for event in bench.store.inner.events(row.id)] == [EventKind.OPENED, EventKind.REATTACHED]
        assert (row.stats.tuned, len(row.stats.returns)) == (5, 1)
        assert row.stats.away > row.step_time
        bench.step()
        await bench.flush()
        row = bench.store.inner.get("p", "r")
        assert row is not None
        assert (row.stats.tuned, row.stats.away) == (6, 0)

    assert len(play(act).stored()) == 6


@pytest.mark.parametrize(("size", "age", "folds"), [(10**9, 1e9, False), (100, 1e9, True), (10**9, 0.05, True)])
def test_the_journal_is_folded_when_it_is_large_or_old_and_not_before(
    play: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, size: int, age: float, folds: bool
) -> None:
    monkeypatch.setattr(_writer, "FOLD_BYTES", size)
    monkeypatch.setattr(_writer, "FOLD_SECONDS", age)
    monkeypatch.setattr(_writer, "TEND_SECONDS", 0.01)
    folded, tended, pings = asyncio.Event(), asyncio.Event(), itertools.count(1)

    async def act(bench: Bench) -> None:
        loop, fold, ping = asyncio.get_running_loop(), bench.store.inner.fold, bench.store.inner.ping

        def counted() -> None:
            ping()
            if next(pings) == 5:
                loop.call_soon_threadsafe(tended.set)

        def told() -> bool:
            more = fold()
            if not more and not bench.store.inner.unfolded:
                loop.call_soon_threadsafe(folded.set)
            return more

        monkeypatch.setattr(bench.store.inner, "fold", told)
        monkeypatch.setattr(bench.store.inner, "ping", counted)
        await bench.open()
        bench.step(5)
        await bench.flush()
        if folds:
            await folded.wait()
            return
        await tended.wait()
        assert bench.store.inner.unfolded > 0
        assert not folded.is_set()

    assert len(play(act).stored()) == 5
