"""CloseRun at the wire: how a run ended whose trainer can't tell any more."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from mechanicd.client import MechanicdError, Reductions, connect, open_run
from mechanicd.runs import session_key
from mechanicd.service._errors import alias
from mechanicd.v1 import resources_pb2, run_service_pb2
from tests.client.fault_proxy import FaultProxy

New = Callable[..., Any]
FAILED, FINISHED, RUNNING = (getattr(resources_pb2, f"RUN_STATUS_{name}") for name in ("FAILED", "FINISHED", "RUNNING"))


def closed(training: Any, status: Any = FAILED, **fields: Any) -> Any:
    return training.wire.call("CloseRun", name=training.name, status=status, **fields).run


TRAINER = """
import os, signal, sys
from mechanicd.client import Reductions, open_run
session = open_run(sys.argv[1], "killed", start=0, project=sys.argv[2])
for _ in range(20):
    session.step(Reductions(-1.0, 0.5, 1.0, 2.0))
session.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_trainer_that_was_killed_leaves_a_run_that_can_be_closed(server: Any, project: str, wait_for: New) -> None:
    subprocess.run([sys.executable, "-c", TRAINER, server.target, project], timeout=60, check=False)
    name = f"projects/{project}/runs/killed"
    with connect(server.target) as client:

        def call(method: str, **fields: Any) -> Any:
            request = getattr(run_service_pb2, f"{method}Request")
            return client.call(method, request(name=name, **fields))

        assert call("GetRun").run.status == RUNNING
        made = call("CloseRun", status=FAILED, message="out of memory").run
        assert (made.status, made.status_message, made.durable_step) == (FAILED, "out of memory", 20)
        found = call("GetRun")
        assert found.run.status == FAILED
        assert not found.run.needs
        assert found.events[-1].message == "closed as failed: closed by hand: out of memory"


def test_a_trainer_that_returns_after_all_goes_on_with_every_step(server: Any, project: str, wait_for: New) -> None:
    with FaultProxy(server.target, seed=1) as proxy, connect(server.target) as client:
        session = open_run(proxy.target, "back", project=project, start=0, deadline=0.2)
        scales = [session.step(Reductions(-1.0, 0.5, 1.0, 2.0)) for _ in range(5)]
        session.flush()
        proxy.set("black hole")
        proxy.set("reset")
        proxy.fault = "black hole"  # new connections are not answered
        scales += [session.step(Reductions(-1.0, 0.5, 1.0, 2.0)) for _ in range(5)]
        name = f"projects/{project}/runs/back"
        request = run_service_pb2.CloseRunRequest(name=name, status=FAILED)

        def closed() -> bool:  # once the server has noticed that the connection is gone
            try:
                return bool(client.call("CloseRun", request).run.status == FAILED)
            except MechanicdError:
                return False

        assert wait_for(closed)
        proxy.set(None)
        assert session.flush(20.0) == 10
        assert client.call("GetRun", run_service_pb2.GetRunRequest(name=name)).run.status == RUNNING
        session.close()
        found = client.call("QuerySeries", run_service_pb2.QuerySeriesRequest(name=name)).records
        assert [record.scale[0] for record in found] == scales


def test_a_live_trainer_keeps_its_run_unless_it_is_fenced(training: Any) -> None:
    training.take(3)
    refused = training.wire.refused("CloseRun", name=training.name, status=FINISHED)
    assert (refused.code, refused.reason) == (9, "RUN_HELD")
    assert refused.metadata == {"name": training.name, "session": alias(session_key(training.session))}
    training.take(2)
    run = closed(training, FINISHED, fence=True)
    assert (run.status, run.durable_step, run.status_message) == (FINISHED, 5, "closed by hand")
    assert training.wire.refused("Flush", session=training.session).reason == "SESSION_FENCED"
    assert training.wire.refused("OpenSession", name=training.name, session=training.session).reason == "SESSION_FENCED"
    assert training.run() == run
    assert not run.needs


def test_what_was_recorded_can_be_corrected_and_the_run_resumed(new_training: New) -> None:
    training = new_training()
    training.open()
    training.take(5)
    training.close("RUN_STATUS_PREEMPTED")
    assert closed(training, FINISHED).status == FINISHED
    assert closed(training, FAILED, message="the loss is NaN").status_message == "the loss is NaN"
    training.open()
    training.take(2)
    assert training.run().status == RUNNING


def test_what_is_no_end_and_no_run_is_refused(new_training: New, wire: Any, project: str) -> None:
    training = new_training()
    training.open()
    training.close()
    for status in (RUNNING, resources_pb2.RUN_STATUS_SILENT, 0, 99):
        refused = wire.refused("CloseRun", name=training.name, status=status)
        assert (refused.code, refused.reason, refused.fields) == (3, "INVALID_STATUS", ["status"])
    assert wire.refused("CloseRun", name=f"projects/{project}/runs/other", status=FAILED).reason == "RUN_NOT_FOUND"
    refused = wire.refused("CloseRun", name="x", status=RUNNING)
    assert (refused.reason, refused.fields) == ("MALFORMED_NAME", ["name", "status"])


@pytest.mark.parametrize("engine", ["sqlite", "postgres"])
def test_a_run_closed_by_hand_stays_closed_over_kill_9(engine: str, new_server: New, new_training: New, request: Any) -> None:
    store = request.getfixturevalue("postgres").create_database("closed") if engine == "postgres" else ""
    server = new_server(store=store).start()
    training = new_training(at=server)
    training.open()
    training.take(4)
    made = closed(training, FAILED, fence=True)
    server.kill()
    server.start()
    assert training.run() == made
    assert training.wire.refused("Step", session=training.session, step=5).reason == "SESSION_FENCED"
