"""Trainers whose runs were deleted or renamed while their server was away: it remembers, and they take no other run's name."""

from collections.abc import Callable
from typing import Any

import pytest

from mechanicd.client import open_run
from mechanicd.tuner import Reductions

New = Callable[..., Any]


def test_whoever_returns_after_a_restart_hears_what_became_of_its_run(new_server: New, new_training: New) -> None:
    server = new_server().start()

    def trained(run: str) -> Any:
        training = new_training(run, at=server, seed=len(run))
        training.open(after_step=0)
        training.take(5)
        return training

    deleted, given, fenced, renamed = trained("deleted"), trained("given"), trained("fenced"), trained("renamed")
    earlier = given.session
    given.open()  # by another process: `earlier` is fenced
    for training in (deleted, given):
        training.wire.call("DeleteRun", name=training.name, fence=True)
    fenced.wire.call("RenameRun", name=fenced.name, new_name=f"{fenced.name}-new", fence=True)
    renamed.wire.call("CloseRun", name=renamed.name, status="RUN_STATUS_FAILED", fence=True)  # taken for dead
    renamed.wire.call("RenameRun", name=renamed.name, new_name=f"{renamed.name}-new")
    others = [trained(run) for run in ("given", "fenced", "renamed")]
    for other in others:
        other.flush()
    server.kill()
    server.start()

    def refused(training: Any, session: int) -> Any:
        calls: list[tuple[str, dict[str, Any]]] = [
            ("OpenSession", {"name": training.name, "config": training.config}),
            ("Flush", {}),
            ("CloseSession", {"status": "RUN_STATUS_FINISHED"}),
        ]
        answers = [training.wire.refused(method, session=session, **fields) for method, fields in calls]
        assert len({answer.reason for answer in answers}) == 1
        return answers[0]

    for training, session in [(deleted, deleted.session), (given, given.session), (given, earlier)]:
        answer = refused(training, session)
        assert (answer.reason, answer.metadata["name"]) == ("RUN_DELETED", training.name)
    for training in (fenced, renamed):
        answer = refused(training, training.session)
        assert (answer.reason, answer.metadata["renamed_to"]) == ("SESSION_FENCED", f"{training.name}-new")
    assert deleted.wire.refused("GetRun", name=deleted.name).reason == "RUN_NOT_FOUND", "it stays deleted"
    for other in others:
        other.open(session=other.session)
        other.take(3)
        assert other.flush() == 8
        assert [record.step for record in other.series()] == list(range(1, 9))
    unknown = deleted.wire.refused("OpenSession", name=deleted.name, config=deleted.config, session=12345)
    assert unknown.reason == "SESSION_UNKNOWN"


def test_a_run_deleted_through_another_server_during_an_outage_stays_deleted(
    new_server: New, postgres: Any, run_cli: New, wait_for: New, caplog: pytest.LogCaptureFixture
) -> None:
    store = postgres.lend_database()
    one, other = new_server(store=store).start(), new_server(store=store).start()
    session = open_run(f"{one.target},{other.target}", "r", start=0)
    step = Reductions(-0.5, 0.1, 1.0, 2.0)
    for _ in range(5):
        session.step(step)
    session.flush()
    one.kill()
    assert run_cli("runs", "delete", "r", "--fence", "--yes", "--target", other.target).returncode == 0

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if "RUN_DELETED" in record.getMessage()]

    for _ in range(100):
        session.step(step)
        if wait_for(lambda: bool(told()), 0.1):
            break
    for _ in range(20):
        session.step(step)
    assert len(told()) == 1
    assert run_cli("runs", "show", "r", "--target", other.target).returncode == 1
    left = session.backlog
    session.close()
    assert f"its last {left} steps are in no history [RUN_DELETED]" in told()[-1]
