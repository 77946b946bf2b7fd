"""Who holds which run: what is remembered stays bounded, and a session from long ago still gets the right answer."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mechanicd.runs import session_key
from mechanicd.service import Engine, Retention, ServiceError, _registry, _writer
from mechanicd.service._errors import alias
from mechanicd.service._run_service import RunService
from mechanicd.store import SQLiteStore
from mechanicd.v1 import errors_pb2, names, resources_pb2, run_service_pb2, tuner_service_pb2

REMEMBERED = 5
NAME = names.RunName("p", "r")
FINISHED = resources_pb2.RUN_STATUS_FINISHED


@pytest.fixture(autouse=True)
def _short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registry, "REMEMBERED", REMEMBERED)


class Bench:
    """An engine, to be used as a trainer would."""

    def __init__(self, path: Path) -> None:
        self.store = SQLiteStore(str(path))
        self.engine = Engine(self.store, 0.001)
        self.engine.start()

    async def open(self, name: names.RunName = NAME, session: int = 0) -> int:
        request = tuner_service_pb2.OpenSessionRequest(name=str(name), session=session)
        return int((await self.engine.open_session(request)).session)

    async def delete(self, name: names.RunName = NAME) -> None:
        request = run_service_pb2.DeleteRunRequest(name=str(name), fence=True)
        await RunService(self.engine).delete_run(request)

    async def close(self, session: int) -> None:
        await self.engine.close_session(tuner_service_pb2.CloseSessionRequest(session=session, status=FINISHED))

    async def flush(self, session: int) -> ServiceError:
        with pytest.raises(ServiceError) as caught:
            await self.engine.flush(tuner_service_pb2.FlushRequest(session=session))
        return caught.value

    async def reattach(self, session: int) -> ServiceError:
        with pytest.raises(ServiceError) as caught:
            await self.open(session=session)
        return caught.value

    async def stream(self, *sessions: int) -> list[tuner_service_pb2.StepError]:
        """The errors of a message with a step of each session, after the second look at it that the adapter takes."""
        steps = [tuner_service_pb2.StepRequest(session=session, step=1) for session in sessions]
        request = tuner_service_pb2.StreamStepsRequest(steps=steps)
        response, old = self.engine.steps(request)
        await self.engine.recall(request, response, old)
        return [result.error for result in response.results]

    async def stop(self) -> None:
        await self.engine.stop()

    def held_in_memory(self) -> int:
        """Entries of all the registry's tables."""
        tables = [value for value in vars(self.engine.registry).values() if hasattr(value, "__len__")]
        assert len(tables) == 5, "sessions, names, former sessions, openers, locks"
        return sum(map(len, tables))


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture
def bench(runner: asyncio.Runner, tmp_path: Path) -> Iterator[Bench]:
    async def make() -> Bench:
        return Bench(tmp_path / "runs.db")

    made = runner.run(make())
    yield made
    runner.run(made.stop())


def test_takeovers_deletions_closes_and_names_leave_a_bounded_number_behind(bench: Bench, runner: asyncio.Runner) -> None:
    async def act() -> None:
        await bench.open()
        for index in range(30):
            await bench.open()
            other = names.RunName("p", f"other{index}")
            session = await bench.open(other)
            await (bench.delete(other) if index % 2 else bench.close(session))
            with pytest.raises(ServiceError):
                await bench.engine.open_session(
                    tuner_service_pb2.OpenSessionRequest(name=f"projects/p/runs/never{index}", after_step=7)
                )

    runner.run(act())
    assert len(bench.engine.registry) == 1
    assert bench.held_in_memory() == 2 + REMEMBERED


def test_a_server_that_missed_a_takeover_gives_its_session_the_steps_of_the_store(bench: Bench, runner: asyncio.Runner) -> None:
    """It stood still, has an old state in memory, and the session comes back before a commit tells it."""

    async def act() -> None:
        session = await bench.open()
        run = bench.engine.registry.named(NAME)
        assert run is not None
        other = Engine(bench.store, 0.001)  # as a second server over one PostgreSQL has it
        other.start()
        await other.open_session(tuner_service_pb2.OpenSessionRequest(name=str(NAME), session=session))
        scalars = resources_pb2.Reductions(delta_dot_g=[-1.0], delta_dot_x=[0.0], g_norm_sq=[1.0], x_norm_sq=[1.0])
        for step in range(1, 4):
            other.step(tuner_service_pb2.StepRequest(session=session, step=step, reductions=scalars))
        await other.flush(tuner_service_pb2.FlushRequest(session=session))
        assert run.state.step == 0
        opened = await bench.engine.open_session(tuner_service_pb2.OpenSessionRequest(name=str(NAME), session=session))
        assert (opened.session, opened.last_step, opened.run.session_count) == (session, 3, 1)
        assert bench.engine.metrics.lost == 1
        await other.writer.stop()

    runner.run(act())


def test_runs_that_other_servers_took_leave_a_bounded_number_behind(bench: Bench, runner: asyncio.Runner) -> None:
    async def act() -> None:
        for _ in range(30):
            await bench.open()
            run = bench.engine.registry.named(NAME)
            assert run is not None
            bench.engine.registry.lost(run)

    runner.run(act())
    assert bench.held_in_memory() == REMEMBERED
    assert bench.engine.metrics.lost == 30


@pytest.mark.parametrize("takeovers", [1, 20], ids=["the last one", "one from long ago"])
def test_a_fenced_session_is_told_so_with_the_holder_however_long_ago_it_was(
    bench: Bench, runner: asyncio.Runner, takeovers: int
) -> None:
    async def act() -> None:
        old = await bench.open()
        for _ in range(takeovers):
            holder = await bench.open()
        (error,) = await bench.stream(old)
        facts = {"session": str(old), "successor": alias(session_key(holder))}
        assert (error.reason, dict(error.metadata)) == (10, facts)
        for refused in (await bench.flush(old), await bench.reattach(old)):
            assert (refused.reason, refused.metadata) == ("SESSION_FENCED", facts)

    runner.run(act())


def test_what_the_store_said_of_a_session_is_remembered(
    bench: Bench, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    async def act() -> None:
        old = await bench.open()
        for _ in range(20):
            await bench.open()
        look = bench.store.by_session
        monkeypatch.setattr(bench.store, "by_session", lambda session: (asked.append(session), look(session))[1])
        for _ in range(3):
            assert [error.reason for error in await bench.stream(old, 77, 77, old)] == [10, 11, 11, 10]
        once = list(map(session_key, [old, 77, 77, 77]))
        assert asked == once, "once for a fence, which is for good; once a message for a stranger"

    runner.run(act())


def test_a_fenced_session_must_stop_even_after_its_successor_closed_the_run(bench: Bench, runner: asyncio.Runner) -> None:
    """Told that it is unknown, it would open the run again, and rewind what the successor did."""

    async def act() -> None:
        old = await bench.open()
        for _ in range(20):
            holder = await bench.open()
        await bench.close(holder)
        for refused in (await bench.flush(old), await bench.reattach(old)):
            assert refused.reason == "SESSION_FENCED"
        for refused in (await bench.flush(holder), await bench.reattach(holder)):
            assert refused.reason == "SESSION_UNKNOWN"

    runner.run(act())


def test_the_session_of_a_deleted_run_is_told_so(bench: Bench, runner: asyncio.Runner) -> None:
    async def act() -> None:
        session = await bench.open()
        await bench.delete()
        (error,) = await bench.stream(session)
        assert error.reason == errors_pb2.RUN_DELETED
        for refused in (await bench.flush(session), await bench.reattach(session)):
            assert (refused.reason, refused.metadata["name"]) == ("RUN_DELETED", str(NAME))
        assert await bench.open() != session, "its name is free"

    runner.run(act())


def test_a_run_that_is_deleted_past_this_server_is_told_so_at_its_next_commit(bench: Bench, runner: asyncio.Runner) -> None:
    async def act() -> None:
        session = await bench.open()
        row = bench.store.get(NAME.project, NAME.run)
        assert row is not None
        await bench.engine.writer.call(bench.store.delete, row.id)  # another replica, or somebody with SQL
        scalars = resources_pb2.Reductions(delta_dot_g=[-1.0], delta_dot_x=[0.0], g_norm_sq=[1.0], x_norm_sq=[1.0])
        bench.engine.step(tuner_service_pb2.StepRequest(session=session, step=1, reductions=scalars))
        assert (await bench.flush(session)).reason == "RUN_DELETED"
        (error,) = await bench.stream(session)
        assert error.reason == errors_pb2.RUN_DELETED
        assert (await bench.reattach(session)).reason == "RUN_DELETED"

    runner.run(act())


def test_retention_leaves_a_run_whose_trainer_is_there(
    tmp_path: Path, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It evaluates for longer than --keep-days; only when its connection is gone for as long is it given up."""
    monkeypatch.setattr(_writer, "TEND_SECONDS", 0.01)
    monkeypatch.setattr(_writer, "RETAIN_SECONDS", 0.0)
    monkeypatch.setattr(_writer, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(_writer, "SEEN_NS", 10**6)

    async def act() -> None:
        store = SQLiteStore(str(tmp_path / "kept.db"))
        engine = Engine(store, 0.001, retention=Retention(keep_days=0.5 / 86_400))
        engine.start()

        async def until(holds: Callable[[set[str]], bool]) -> None:
            for _ in range(1000):
                if holds({row.run for row in await engine.writer.call(store.list_runs, None, None, 10)}):
                    return
                await asyncio.sleep(0.01)
            pytest.fail("retention did not delete it")

        for run in ("held", "closed"):
            request = tuner_service_pb2.OpenSessionRequest(name=f"projects/p/runs/{run}")
            session = (await engine.open_session(request)).session
            if run == "closed":
                await engine.close_session(tuner_service_pb2.CloseSessionRequest(session=session, status=FINISHED))
            else:
                held = session
        await until(lambda rows: "closed" not in rows)
        await asyncio.sleep(0.5)
        row = await engine.writer.call(store.get, "p", "held")
        assert row is not None
        assert row.stats.seen > row.open_time, "so that no other server deletes it"
        engine.disconnected({held})
        await until(lambda rows: not rows)
        await engine.stop()

    runner.run(act())


def test_a_run_that_was_lost_and_then_deleted_elsewhere_is_told_so(bench: Bench, runner: asyncio.Runner) -> None:
    async def act() -> None:
        session = await bench.open()
        run = bench.engine.registry.named(NAME)
        assert run is not None
        bench.engine.registry.lost(run)
        assert (await bench.flush(session)).reason == "OWNERSHIP_LOST"
        await bench.delete()
        assert (await bench.reattach(session)).reason == "RUN_DELETED"
        assert (await bench.flush(session)).reason == "RUN_DELETED"

    runner.run(act())


def test_a_turn_is_taken_by_one_at_a_time_and_is_gone_when_nobody_wants_it(runner: asyncio.Runner) -> None:
    from mechanicd.service._metrics import Metrics

    registry = _registry.Registry(Metrics())
    inside: list[int] = []
    most: list[int] = []

    async def take(number: int) -> None:
        async with registry.lock(NAME):
            inside.append(number)
            most.append(len(inside))
            await asyncio.sleep(0)
            inside.remove(number)

    async def act() -> None:
        tasks = [asyncio.create_task(take(number)) for number in range(10)]
        await asyncio.sleep(0)
        tasks[5].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    runner.run(act())
    assert most == [1] * 9
    assert not registry._locks


def test_a_close_that_a_new_session_overtakes_leaves_the_new_one_alone(
    bench: Bench, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the store closes the old session, the new one takes the run's name; the end of the close must not drop it."""

    async def act() -> None:
        old = await bench.open()
        release, new = bench.engine.writer.release, []

        async def overtaken(*arguments: Any) -> None:
            new.append(await bench.open())
            await release(*arguments)

        monkeypatch.setattr(bench.engine.writer, "release", overtaken)
        await bench.close(old)
        assert bench.engine.registry.get(new[0]) is bench.engine.registry.named(NAME)

    runner.run(act())


def test_a_server_that_was_away_for_longer_than_runs_are_kept_waits_for_their_trainers(
    tmp_path: Path, runner: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_writer, "TEND_SECONDS", 0.01)
    monkeypatch.setattr(_writer, "RETAIN_SECONDS", 0.0)
    path, name = str(tmp_path / "away.db"), "projects/p/runs/long"

    async def act() -> None:
        before = Engine(SQLiteStore(path), 0.001)
        before.start()
        session = (await before.open_session(tuner_service_pb2.OpenSessionRequest(name=name))).session
        await before.stop()
        engine = Engine(store := SQLiteStore(path), 0.001, retention=Retention(keep_days=0.05 / 86_400))
        engine.start()
        await asyncio.sleep(0.3)
        await engine.open_session(tuner_service_pb2.OpenSessionRequest(name=name, session=session))
        engine.disconnected({session})
        monkeypatch.setattr(_writer, "SETTLE_SECONDS", 0.0)
        for _ in range(1000):
            if not await engine.writer.call(store.list_runs, None, None, 10):
                break
            await asyncio.sleep(0.01)
        else:
            pytest.fail("now that it has settled, retention applies")
        await engine.stop()

    runner.run(act())
