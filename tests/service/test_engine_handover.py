"""The engine as a run changes hands: to a successor, to another server, to nobody."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from mechanicd.runs import RunStatus
from mechanicd.service._door import run_of
from mechanicd.service._errors import alias
from mechanicd.store import Claim, OwnershipLost, SQLiteStore
from mechanicd.tuner import Tuner, TunerState
from mechanicd.v1 import resources_pb2, tuner_service_pb2
from mechanicd.v1.names import RunName
from tests.service.engine_bench import NAME, Bench


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
        assert (fenced.reason, fenced.metadata["successor"]) == ("SESSION_FENCED", alias(4242))

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


def test_a_session_that_only_the_store_knows_still_has_its_run(play: Callable[..., Bench]) -> None:
    """As after a restart: who may name a session is decided by its run."""

    async def act(bench: Bench) -> None:
        await bench.open()
        bench.engine.registry.release(bench.engine.registry.get(bench.session))
        assert await run_of(bench.engine, bench.session) == RunName("p", "r")
        await bench.engine.writer.call(bench.store.delete, 1, 1)
        assert await run_of(bench.engine, bench.session) == RunName("p", "r"), "also of a run that was deleted"
        assert await run_of(bench.engine, bench.session ^ 1) is None

    play(act)
