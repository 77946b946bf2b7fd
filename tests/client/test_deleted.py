"""A run that is deleted while it trains: not without a fence, and then its trainer is told by name, once, and trains on."""

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from mechanicd.client import Reductions, SessionError, connect, open_run
from mechanicd.tuner import Tuner, TunerState
from mechanicd.v1 import run_service_pb2
from tests.support.logs import about

New = Callable[..., Any]


def reductions(step: int) -> Reductions:
    return Reductions(-1.0 - step % 5, 0.1 * step, 1.0 + step % 3, 2.0)


def train(session: Any, count: int) -> None:
    """Further steps, each S held to a tuner here."""
    tuner = Tuner(session.config)
    for _ in range(count):
        expected = tuner.update(session.state, reductions(session.state.step + 1))
        assert session.step(reductions(expected.step)) == expected.scale[0]


def told(caplog: pytest.LogCaptureFixture, level: int = logging.ERROR) -> list[str]:
    """What the client has logged at this level about the runs here."""
    ours = [message for run in ("r", "a", "b") for message in about(caplog, run)]
    return [record.message for record in caplog.records if record.levelno == level and record.message in ours]


def delete(target: str, run: str, **fields: Any) -> None:
    with connect(target) as client:
        client.call("DeleteRun", run_service_pb2.DeleteRunRequest(name=f"projects/default/runs/{run}", **fields))


@pytest.fixture(params=["sqlite", "postgres"])
def servers(request: pytest.FixtureRequest, new_server: New) -> tuple[Any, Any]:
    """Where it trains, and where it is deleted: one server, or two replicas."""
    if request.param == "sqlite":
        one = new_server().start()
        return one, one
    store = request.getfixturevalue("postgres").lend_database()
    return new_server(store=store).start(), new_server(store=store).start()


def test_a_run_deleted_while_it_trains(
    servers: tuple[Any, Any], run_cli: New, history: New, wait_for: New, caplog: pytest.LogCaptureFixture
) -> None:
    at, other = servers
    session = open_run(at.target, "r", start=0, labels={"lr": "1"})
    train(session, 50)
    assert session.flush() == 50
    refused = run_cli("runs", "delete", "r", "--yes", "--json", "--target", other.target)
    assert refused.returncode == 1
    assert json.loads(refused.stderr)["error"]["reason"] == "RUN_HELD"
    assert "--fence" in json.loads(refused.stderr)["error"]["message"]
    train(session, 10)
    assert session.flush() == 60, "the refusal changed nothing"

    deleted = run_cli("runs", "delete", "r", "--yes", "--fence", "--target", other.target)
    assert (deleted.returncode, deleted.stdout) == (0, "deleted projects/default/runs/r\n")
    for _ in range(20):  # how soon it hears of it depends on the next commit
        train(session, 5)
        if wait_for(lambda: not session.connected, 0.2):
            break
    train(session, 100)
    (message,) = told(caplog)
    assert "projects/default/runs/r: the server refuses the run; training continues, but" in message
    assert "was deleted while this session held it" in message
    assert message.endswith("[RUN_DELETED]")
    with pytest.raises(SessionError) as caught:
        session.flush(0.1)
    assert (caught.value.reason, caught.value.metadata["name"]) == ("RUN_DELETED", "projects/default/runs/r")
    assert run_cli("runs", "show", "r", "--target", at.target).returncode == 1, "it stays deleted"

    state, left = session.state, session.backlog
    session.close()
    assert told(caplog, logging.WARNING) == [
        f"projects/default/runs/r: closed; its last {left} steps are in no history [RUN_DELETED]"
    ]
    assert len(told(caplog)) == 1, "once"
    again = open_run(at.target, "r", start=TunerState.from_bytes(state.to_bytes(), session.config))
    train(again, 5)
    again.close()
    assert [record.step for record in history(at.target, "r")] == list(range(state.step + 1, state.step + 6))


@pytest.mark.parametrize("policy", ["raise", "hold"])
def test_where_the_server_must_decide_s_the_step_raises(server: Any, policy: Any, project: str) -> None:
    session = open_run(server.target, "r", start=0, project=project, on_outage=policy)
    train(session, 5)
    session.flush()
    with connect(server.target) as client:
        client.call("DeleteRun", run_service_pb2.DeleteRunRequest(name=session.name, fence=True))
    for _ in range(2):
        with pytest.raises(SessionError) as caught:
            session.step(reductions(session.state.step + 1))
        assert caught.value.reason == "RUN_DELETED"
    session.close()


def test_deleted_by_other_means_and_during_an_outage(
    new_server: New, postgres: Any, wait_for: New, caplog: pytest.LogCaptureFixture
) -> None:
    """By SQL, by an older server, by retention: whoever did it, the trainer hears the truth and no false OWNERSHIP_LOST."""
    store = postgres.lend_database()
    server = new_server(store=store).start()
    sessions = [open_run(server.target, run, start=0) for run in ("a", "b")]
    for session in sessions:
        train(session, 20)
        session.flush()
    server.freeze()
    train(sessions[0], 2)  # it notices the outage, and reconnects in the background
    with psycopg.connect(store, autocommit=True) as connection:
        connection.execute("DELETE FROM mechanicd.runs")
    server.thaw()
    assert wait_for(lambda: len(told(caplog)) == 1), caplog.text
    for _ in range(20):
        train(sessions[1], 5)
        if wait_for(lambda: len(told(caplog)) == 2, 0.2):
            break
    assert all(message.endswith("[RUN_DELETED]") for message in told(caplog))
    assert not [text for text in told(caplog, logging.WARNING) if "OWNERSHIP_LOST" in text or "took over" in text]
    for session in sessions:
        train(session, 50)
        session.close()
    assert server.stop() == 0


def test_a_bulk_deletion_leaves_what_is_held(server: Any, project: str, run_cli: New, new_session: New) -> None:
    held, closed = new_session("held"), new_session("closed")
    closed.close()

    def bulk(*more: str) -> Any:
        done = run_cli("runs", "delete", "--filter", "step >= 0", "--yes", "--json", "--target", server.target, *more)
        return done.returncode, json.loads(done.stdout)

    code, answer = bulk("--project", project)
    assert (code, answer["deleted"]) == (1, [closed.name])
    assert [(each["name"], each["reason"]) for each in answer["refused"]] == [(held.name, "RUN_HELD")]
    train(held, 5)
    assert held.flush() == 10
    code, answer = bulk("--project", project, "--fence")
    assert (code, answer) == (0, {"deleted": [held.name], "refused": []})


@pytest.fixture
def new_session(server: Any, project: str) -> Iterator[New]:
    made = []

    def make(run: str) -> Any:
        made.append(open_run(server.target, run, start=0, project=project))
        train(made[-1], 5)
        made[-1].flush()
        return made[-1]

    yield make
    for session in made:
        session.close()
