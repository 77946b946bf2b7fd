"""Training never hangs and never dies because of the server, and nothing it did meanwhile is lost."""

import logging
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from mechanicd.client import Reductions, ServerUnavailable, SessionFenced, TunerConfig, TunerState, _backlog, connect, open_run
from mechanicd.tuner import Tuner
from mechanicd.v1 import resources_pb2, run_service_pb2
from tests.support.logs import about


def some_reductions(count: int, seed: int = 0) -> list[Reductions]:
    rng = random.Random(seed)
    return [Reductions(rng.gauss(-0.1, 1.0), rng.gauss(0, 1), rng.random(), rng.random()) for _ in range(count)]


def oracle(reductions: list[Reductions]) -> list[float]:
    """S after each step, by a tuner in this process."""
    tuner = Tuner()
    state = tuner.init()
    scales = []
    for each in reductions:
        state = tuner.update(state, each)
        scales.append(state.scale[0])
    return scales


def told(records: list[Any]) -> list[tuple[int, float]]:
    """(step, S) of each record."""
    return [(record.step, record.scale[0]) for record in records]


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """close() gives up soon; it takes 10 s otherwise."""
    monkeypatch.setattr("mechanicd.client._close_time.CLOSE_SECONDS", 0.5)


def test_a_server_killed_in_the_middle_costs_no_step_and_no_bit(
    new_server: Callable[..., Any], history: Callable[..., list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    reductions = some_reductions(3000)
    server = new_server().start()
    session = open_run(server.target, "killed", start=0)
    with caplog.at_level(logging.WARNING):
        scales = []
        for step, each in enumerate(reductions, 1):
            scales.append(session.step(each))
            if step == 700:
                server.kill()
            if step == 2000:
                server.start()
        assert session.flush(30) == 3000
    session.close()
    assert scales == oracle(reductions)
    assert told(history(server.target, "killed")) == list(enumerate(scales, 1))
    said = about(caplog, "killed")
    assert len(said) == 2, "once when the outage begins, once when it ends"
    assert "the server is unreachable; training continues with its own tuner" in said[0]
    assert "reconnected; the server took the " in said[1]


def test_a_training_may_begin_before_its_server(new_server: Callable[..., Any], history: Callable[..., list[Any]]) -> None:
    reductions = some_reductions(200)
    server = new_server()
    session = open_run(server.target, "early", start=0)
    first = [session.step(each) for each in reductions[:100]]
    server.start()
    second = [session.step(each) for each in reductions[100:]]
    assert session.flush(30) == 200
    session.close()
    assert first + second == oracle(reductions)
    assert [step for step, _ in told(history(server.target, "early"))] == list(range(1, 201))


def test_a_server_that_lost_its_store_adopts_the_run(new_server: Callable[..., Any], history: Callable[..., list[Any]]) -> None:
    reductions = some_reductions(300)
    server = new_server().start()
    session = open_run(server.target, "lost", start=0)
    scales = [session.step(each) for each in reductions[:100]]
    assert session.flush() == 100
    server.kill()
    for file in server.folder.glob("mechanicd.db*"):
        file.unlink()
    scales += [session.step(each) for each in reductions[100:200]]
    server.start()
    scales += [session.step(each) for each in reductions[200:]]
    assert session.flush(30) == 300
    session.close()
    assert scales == oracle(reductions)
    # What was durable at the lost store is gone with it; the gap is shown, not papered over.
    assert told(history(server.target, "lost")) == list(enumerate(scales, 1))[100:]


def test_hold_keeps_s_while_the_server_is_away_and_goes_on_after(
    new_server: Callable[..., Any], history: Callable[..., list[Any]]
) -> None:
    reductions = some_reductions(120)
    server = new_server().start()
    session = open_run(server.target, "held", start=0, on_outage="hold")
    before = [session.step(each) for each in reductions[:50]]
    server.kill()
    noticed = session.step(reductions[50])
    held = [session.step(each) for each in reductions[51:80]]
    assert set(held) == {noticed}
    server.start()
    assert session.flush(30) == 80
    after = [session.step(each) for each in reductions[80:]]
    session.flush()
    session.close()
    assert told(history(server.target, "held")) == list(enumerate([*before, noticed, *held, *after], 1))
    heard = reductions[:51] + reductions[80:]
    assert after[-1] == oracle(heard)[-1], "the tuner never heard of the held steps"


def test_raise_raises_at_once_and_stays_that_way(new_server: Callable[..., Any], soon: None) -> None:
    reductions = some_reductions(10)
    server = new_server().start()
    session = open_run(server.target, "raises", start=0, on_outage="raise")
    session.step(reductions[0])
    server.kill()
    for each in reductions[1:3]:
        with pytest.raises(ServerUnavailable):
            session.step(each)
    session.close()


def test_an_unreachable_server_at_the_start_is_one_clear_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ServerUnavailable) as caught:
            open_run(target, "nobody", start=0, on_outage="raise")
        assert caught.value.reason == "SERVER_UNREACHABLE"
        assert "mechanicd serve" in str(caught.value)
        # Only the server could say where the run is, so there is nothing to go on with.
        with pytest.raises(ServerUnavailable):
            open_run(target, "nobody", start=None, on_outage="local")


def test_a_checkpoint_goes_on_without_the_server_and_is_adopted_later(
    new_server: Callable[..., Any], history: Callable[..., list[Any]]
) -> None:
    reductions = some_reductions(100)
    tuner = Tuner()
    state = tuner.init()
    for each in reductions[:60]:
        state = tuner.update(state, each)
    server = new_server()
    session = open_run(server.target, "adopted", start=TunerState.from_bytes(state.to_bytes(), TunerConfig()))
    scales = [session.step(each) for each in reductions[60:80]]
    server.start()
    assert session.flush(30) == 80
    scales += [session.step(each) for each in reductions[80:]]
    session.flush()
    session.close()
    assert scales == oracle(reductions)[60:]
    assert told(history(server.target, "adopted")) == list(enumerate(scales, 61))


def test_a_silent_server_holds_a_step_up_no_longer_than_its_deadline_and_is_then_away(soon: None) -> None:
    with black_hole() as target:
        session = open_run(target, "silent", start=0, deadline=0.2)
        assert [session.step(each) for each in some_reductions(50)] == oracle(some_reductions(50))
        assert session.backlog == 50
        with pytest.raises(ServerUnavailable) as caught:
            session.flush(0.1)
        assert caught.value.reason == "SERVER_UNREACHABLE"
        session.close()


def test_a_trainer_whose_run_was_taken_over_is_told_so_even_after_an_outage(new_server: Callable[..., Any]) -> None:
    reductions = some_reductions(50)
    server = new_server().start()
    old = open_run(server.target, "taken", start=0)
    for each in reductions[:20]:
        old.step(each)
    new = open_run(server.target, "taken", start=old.state)
    with pytest.raises(SessionFenced) as caught:
        old.step(reductions[20])
    assert caught.value.reason == "SESSION_FENCED"
    with pytest.raises(SessionFenced):
        old.step(reductions[20])
    assert [new.step(each) for each in reductions[20:]] == oracle(reductions)[20:]
    new.close()
    old.close()


@contextmanager
def black_hole() -> Iterator[str]:
    """A port that takes connections and never says a word."""
    listener = socket.create_server(("127.0.0.1", 0))
    kept: list[socket.socket] = []

    def accept() -> None:
        try:
            while True:
                kept.append(listener.accept()[0])
        except OSError:
            return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)
        for each in kept:
            each.close()


def test_an_outage_at_the_end_gives_the_server_a_while_to_come_back(
    new_server: Callable[..., Any], history: Callable[..., list[Any]]
) -> None:
    reductions = some_reductions(300)
    server = new_server().start()
    session = open_run(server.target, "last", start=0, deadline=0.5)
    scales = [session.step(each) for each in reductions[:200]]
    server.kill()
    scales += [session.step(each) for each in reductions[200:]]
    back = threading.Timer(1.5, server.start)
    back.start()
    session.close()
    back.join()
    assert scales == oracle(reductions)
    assert told(history(server.target, "last")) == list(enumerate(scales, 1))
    with connect(server.target) as client:
        run = client.call("GetRun", run_service_pb2.GetRunRequest(name="projects/default/runs/last")).run
    assert run.status == resources_pb2.RUN_STATUS_FINISHED


def test_a_server_that_never_comes_back_does_not_keep_the_training_from_its_end(
    new_server: Callable[..., Any], caplog: pytest.LogCaptureFixture, soon: None
) -> None:
    server = new_server().start()
    session = open_run(server.target, "gone", start=0, deadline=0.2)
    scales = [session.step(each) for each in some_reductions(20)]
    server.kill()
    scales += [session.step(each) for each in some_reductions(30, seed=1)]
    session.close()
    assert scales == oracle(some_reductions(20) + some_reductions(30, seed=1))
    assert "closed while the server is unreachable; its history lacks the last " in about(caplog, "gone")[-1]


def test_ten_thousand_steps_of_backlog_are_brought_in_order(
    new_server: Callable[..., Any], history: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    reductions = some_reductions(10_050)
    server = new_server().start()
    session = open_run(server.target, "backlog", start=0)
    scales = [session.step(each) for each in reductions[:50]]
    session.flush()
    server.kill()
    scales += [session.step(each) for each in reductions[50:]]
    server.start()
    began = time.monotonic()
    assert session.flush(60) == 10_050
    took = time.monotonic() - began
    session.close()
    assert scales == oracle(reductions)
    assert told(history(server.target, "backlog")) == list(enumerate(scales, 1))
    with capsys.disabled():
        print(f"\nbacklog: 10,000 steps replayed and durable {took:.2f} s after the server was back, all bits equal")


def test_a_backlog_past_its_bound_goes_on_from_a_snapshot_and_the_history_shows_a_gap(
    new_server: Callable[..., Any], history: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_backlog, "BACKLOG_BYTES", 1)  # the least bound there is: 100 steps
    reductions = some_reductions(500)
    server = new_server().start()
    session = open_run(server.target, "bound", start=0)
    scales = [session.step(each) for each in reductions[:50]]
    session.flush()
    server.kill()
    scales += [session.step(each) for each in reductions[50:450]]
    server.start()
    assert session.flush(30) == 450
    scales += [session.step(each) for each in reductions[450:]]
    assert session.flush(30) == 500
    session.close()
    assert scales == oracle(reductions)
    kept = told(history(server.target, "bound"))
    assert kept == [pair for pair in enumerate(scales, 1) if pair[0] <= 50 or pair[0] > 350]
