"""What is noted of a run while its sessions come and go: events, the command, needs, over the contract."""

from collections.abc import Callable
from typing import Any

import pytest

from mechanicd.client import Reductions, connect
from mechanicd.store import open_store
from mechanicd.v1 import resources_pb2

New = Callable[..., Any]
SCALARS = Reductions(-1.0, 0.5, 1.0, 2.0)


def told(wire: Any, name: str) -> list[tuple[str, int]]:
    """(kind, step) of each event, the oldest first."""
    events = wire.call("GetRun", name=name).events
    assert all(event.message and event.time.seconds for event in events)
    assert [event.time.ToNanoseconds() for event in events] == sorted(event.time.ToNanoseconds() for event in events)
    return [(resources_pb2.EventKind.Name(event.kind).removeprefix("EVENT_KIND_").lower(), event.step) for event in events]


def test_the_life_of_a_run_is_told_in_order(wire: Any, new_training: New) -> None:
    training = new_training()
    training.open(client="alice")
    training.take(5)
    training.close("RUN_STATUS_PREEMPTED", "moved „away“")
    training.open()
    training.take(3)
    training.rewind(6)
    training.open(tuner_state=training.state.to_bytes())
    training.take(1)
    training.flush()
    training.close()
    assert told(wire, training.name) == [
        ("opened", 0),
        ("closed", 5),
        ("resumed", 5),
        ("fenced", 8),
        ("rewound", 6),
        ("closed", 7),
    ]
    first, closed, *_ = wire.call("GetRun", name=training.name).events
    assert first.message == "a new run (by alice)"
    assert closed.message == "closed as preempted: moved „away“"


def test_a_state_from_elsewhere_is_adopted_and_told_so(wire: Any, new_training: New) -> None:
    origin, here = new_training("origin"), new_training("here")
    origin.open()
    origin.take(9)
    origin.flush()
    here.open(tuner_state=origin.state.to_bytes())
    assert told(wire, here.name) == [("adopted", 9)]


def test_a_session_that_comes_back_over_another_connection_is_told(wire: Any, new_training: New) -> None:
    training = new_training()
    session = training.open().session
    training.take(4)
    training.flush()
    assert training.open(session=session).last_step == 4
    training.take(1)
    training.flush()
    assert told(wire, training.name) == [("opened", 0), ("reattached", 4)]


def test_a_server_that_was_killed_tells_that_the_session_came_back_when_it_is_there_again(
    new_server: New, new_wire: New, project: str
) -> None:
    server = new_server().start()
    with connect(server.target) as client, client.open_run("r", project=project, start=0, deadline=1.0) as session:
        for _ in range(5):
            session.step(SCALARS)
        assert session.flush(20) == 5
        server.kill()
        for _ in range(3):
            session.step(SCALARS)
        server.start()
        assert session.flush(30) == 8
        found = told(new_wire(server.target), f"projects/{project}/runs/r")
    assert found[0] == ("opened", 0)
    assert ("reattached", 5) in found


def test_a_connection_that_ends_with_its_session_open_is_kept_in_mind_until_the_next_step(
    new_server: New, new_training: New, wait_for: Callable[..., bool]
) -> None:
    server = new_server().start()
    training = new_training(at=server)
    training.open()
    stream = training.wire.stream()
    (result,) = stream.take(training.request())
    training.expect(result)
    stream.close()
    _, project, _, run = training.name.split("/")
    looking = open_store(server.store, readonly=True)

    def away() -> int:
        row = looking.get(project, run)
        assert row is not None
        return row.stats.away

    assert wait_for(lambda: away() > 0)
    training.take(1)
    training.flush()
    assert away() == 0
    training.close()
    looking.close()


def test_the_command_is_given_with_the_run_alone_and_cut_if_too_long(wire: Any, new_training: New, project: str) -> None:
    training = new_training()
    training.open(command="python train.py \0 " + "x" * 5000)
    command = wire.call("GetRun", name=training.name).run.command
    assert command == "python train.py \ufffd " + "x" * (4096 - 18)
    (listed,) = wire.call("ListRuns", parent=f"projects/{project}").runs
    assert listed.command == ""
    training.open(command="")
    assert wire.call("GetRun", name=training.name).run.command == "", "that of the last session"


def test_the_last_learning_rate_is_told(wire: Any, new_training: New) -> None:
    training = new_training()
    training.open()
    assert not training.run().HasField("base_lr")
    training.expect(wire.start("Step", training.request(base_lr=0.25)).result)
    training.flush()
    assert training.run().base_lr == 0.25


def test_needs_are_in_the_run_the_list_and_the_filter(wire: Any, new_training: New, project: str) -> None:
    well, lost = new_training("well"), new_training("lost")
    for training in (well, lost):
        training.open()
        training.take(30)
    with_nan = {"g_norm_sq": [float("nan")]}
    for step in range(31, 56):
        message = resources_pb2.Reductions(delta_dot_g=[0.0], delta_dot_x=[0.0], x_norm_sq=[1.0], **with_nan)
        wire.call("Step", session=lost.session, step=step, reductions=message)
    well.flush()
    wire.call("Flush", session=lost.session)
    (need,) = wire.call("GetRun", name=lost.name).run.needs
    assert (need.kind, need.step) == (resources_pb2.NEED_KIND_NON_FINITE, 31)
    assert "the last 25 steps, from step" in need.message
    parent = f"projects/{project}"
    for text, names in [
        ("needs : non_finite", [lost.name]),
        ("needs : NON_FINITE", [lost.name]),
        ("needs : *", [lost.name]),
        ("needs : stuck", []),
        ("", [lost.name, well.name]),
    ]:
        assert [run.name for run in wire.call("ListRuns", parent=parent, filter=text).runs] == names
    assert [len(run.needs) for run in wire.call("ListRuns", parent=parent).runs] == [1, 0]


@pytest.mark.parametrize(
    ("text", "what"),
    [("needs : tired", "unknown alert 'tired'; choose one of silent, stuck"), ("needs = stuck", "as in needs : stuck")],
)
def test_a_filter_for_a_need_that_there_is_not_is_refused(wire: Any, text: str, what: str) -> None:
    refused = wire.refused("ListRuns", parent="projects/-", filter=text)
    assert refused.reason == "INVALID_FILTER"
    assert what in refused.message
