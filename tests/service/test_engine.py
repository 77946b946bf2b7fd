"""The engine over a store that fails, is slow, or is taken away: what a process over a real disk shows only by chance."""

import asyncio
import itertools
import sqlite3
import threading
from collections.abc import Callable

import pytest

from mechanicd.runs import EventKind
from mechanicd.service import _replay, _writer
from mechanicd.service._run_service import RunService
from mechanicd.store import StoreUnavailable, _forking
from mechanicd.v1 import resources_pb2, run_service_pb2, tuner_service_pb2
from tests.service.engine_bench import NAME, SCALARS, Bench


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


def test_a_long_history_is_replayed_while_others_train_and_their_steps_become_durable(
    play: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_replay, "_PAGE_BYTES", 2**14)
    made: dict[str, int] = {}

    async def act(bench: Bench) -> None:
        await bench.open()
        bench.step(20_000)
        await bench.flush()
        fork = run_service_pb2.ForkRunRequest(source=NAME, after_step=19_999, name="projects/p/runs/fork")
        forking = asyncio.create_task(RunService(bench.engine).fork_run(fork))
        flushed = 0
        while not forking.done():
            bench.step()
            await bench.flush()
            flushed += 1
        made.update(flushed=flushed, durable=(await forking).run.durable_step)

    play(act)
    assert made["durable"] == 19_999
    assert made["flushed"] > 12, "not only before the replay and after it"


def test_a_fork_is_copied_while_others_flush_and_one_that_is_cancelled_leaves_nothing(
    play: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_forking, "_PORTION", 1)
    durable: list[int] = []

    async def act(bench: Bench) -> None:
        await bench.open()
        bench.step(4_000)
        await bench.flush()
        other = sqlite3.connect(bench.path, isolation_level=None)

        def runs() -> int:
            return int(other.execute("SELECT count(*) FROM runs").fetchone()[0])

        async def train(while_: Callable[[], bool]) -> None:
            while while_():
                bench.step()
                durable.append(await bench.flush())

        service = RunService(bench.engine)
        fork = run_service_pb2.ForkRunRequest(source=NAME, after_step=3_900, name="projects/p/runs/fork")
        given_up = asyncio.create_task(service.fork_run(fork))
        await train(lambda: runs() == 1)
        given_up.cancel()
        await asyncio.wait([given_up])
        assert given_up.cancelled()
        assert runs() == 1
        forking = asyncio.create_task(service.fork_run(fork))
        durable.clear()
        await train(lambda: not forking.done())
        assert (await forking).run.durable_step == 3_900
        assert runs() == 2
        other.close()

    play(act)
    assert len(durable) > 3, "not only before the copy and after it"


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
