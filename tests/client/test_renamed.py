"""A trainer whose run is renamed is told so by name, and does not go on under the old one."""

import time
from typing import Any

import pytest

from mechanicd.client import ResumeError, SessionFenced, connect
from mechanicd.tuner import Reductions
from mechanicd.v1 import run_service_pb2

STEP = Reductions(-0.5, 0.1, 1.0, 2.0)


def test_a_living_trainer_of_a_renamed_run_stops_and_hears_the_new_name(server: Any, project: str) -> None:
    old, new = (f"projects/{project}/runs/{run}" for run in ("old", "new"))
    with connect(server.target) as client:
        session = client.open_run("old", project=project)
        for _ in range(3):
            session.step(STEP)
        state = session.state
        session.flush()
        client.call("RenameRun", run_service_pb2.RenameRunRequest(name=old, new_name=new, fence=True))

        def train_on() -> None:
            for _ in range(200):  # the client does not wait for each answer
                session.step(STEP)
                time.sleep(0.01)

        with pytest.raises(SessionFenced, match=f"renamed to {new}") as caught:
            train_on()
        assert caught.value.metadata["renamed_to"] == new
        with pytest.raises(ResumeError, match=f"renamed to {new}") as refused:
            client.open_run("old", project=project, start=state)
        assert refused.value.reason == "RUN_RENAMED"
        resumed = client.open_run("new", project=project, start=state)
        assert resumed.state == state
        resumed.close()
        fresh = client.open_run("old", project=project, start=0)
        fresh.step(STEP)
        fresh.close()
