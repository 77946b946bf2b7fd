"""RewindRun and ForkRun at the wire: what they give is what a tuner gives that takes the same steps, bit for bit."""

from collections.abc import Callable
from typing import Any

import pytest

from mechanicd.runs import session_key
from mechanicd.service._errors import alias
from mechanicd.tuner import TunerConfig, TunerState
from mechanicd.v1 import resources_pb2, tuner_service_pb2

New = Callable[..., Any]
GROUPS = TunerConfig(convention="optax", scale_groups=("body", "head"))
REWOUND_BY_HAND, FORKED, RESUMED = (
    getattr(resources_pb2, f"EVENT_KIND_{kind}") for kind in ("REWOUND_BY_HAND", "FORKED", "RESUMED")
)


def closed(new_training: New, steps: int, config: TunerConfig | None = None, run: str = "run") -> Any:
    """A training of some steps, two of them without an effect on the tuner, that is over."""
    training = new_training(run, config)
    training.open(labels={"batch": "256"})
    for step in range(1, steps + 1):
        hold = step == 7
        training.expect(training.wire.start("Step", training.request(hold=hold)).result, hold=hold)
    training.close("RUN_STATUS_FINISHED")
    return training


def events(training: Any, name: str = "") -> list[Any]:
    return list(training.wire.call("GetRun", name=name or training.name).events)


@pytest.mark.parametrize("config", [None, GROUPS], ids=["one group", "two groups"])
@pytest.mark.parametrize("after_step", [0, 1, 7, 29])
def test_a_run_taken_back_goes_on_as_if_it_had_never_gone_further(
    new_training: New, config: TunerConfig | None, after_step: int
) -> None:
    training = closed(new_training, 30, config)
    before = training.series()
    run = training.wire.call("RewindRun", name=training.name, after_step=after_step).run
    assert run == training.run()
    assert (run.durable_step, tuple(run.scale)) == (after_step, training.states[after_step].scale)
    assert (run.status, run.rewind_count, dict(run.labels)) == (resources_pb2.RUN_STATUS_PREEMPTED, 1, {"batch": "256"})
    assert f"rewound by hand from step 30 to {after_step}" in run.status_message
    assert (events(training)[-1].kind, events(training)[-1].step) == (REWOUND_BY_HAND, after_step)
    assert training.series() == before[:after_step]
    branch = training.series(branch=1)
    assert [record.step for record in branch] == [record.step for record in before[after_step:]]
    assert [record.reductions for record in branch] == [record.reductions for record in before[after_step:]]
    training.rewind(after_step)
    opened = training.open()
    assert (opened.outcome, opened.last_step) == (tuner_service_pb2.OPEN_OUTCOME_RESUMED, after_step)
    assert opened.tuner_state == training.state.to_bytes()
    training.take(5)


@pytest.mark.parametrize("after_step", [0, 8, 30])
def test_a_fork_has_the_history_up_to_its_step_and_a_trainer_goes_on_there(new_training: New, after_step: int) -> None:
    source = closed(new_training, 30)
    fork = new_training("fork")
    run = source.wire.call("ForkRun", source=source.name, after_step=after_step, name=fork.name).run
    assert run == fork.run()
    assert (run.name, run.durable_step, tuple(run.scale)) == (fork.name, after_step, source.states[after_step].scale)
    assert (run.status, run.session_count, dict(run.labels)) == (resources_pb2.RUN_STATUS_PREEMPTED, 0, {"batch": "256"})
    assert (run.config, run.rewind_count) == (source.run().config, 0)
    assert [event.kind for event in events(fork)] == [FORKED]
    assert source.name in events(fork)[0].message
    assert fork.series() == source.series()[:after_step]
    fork.states = source.states[: after_step + 1]
    opened = fork.open()
    assert (opened.outcome, opened.tuner_state) == (tuner_service_pb2.OPEN_OUTCOME_RESUMED, fork.state.to_bytes())
    fork.seed = 1
    fork.take(5)
    fork.flush()
    source.open()
    source.take(3)
    source.flush()
    assert [record.step for record in fork.series()] == list(range(1, after_step + 6))
    assert [record.step for record in source.series()] == list(range(1, 34))
    source.wire.call("DeleteRun", name=source.name, fence=True)
    assert len(fork.series()) == after_step + 5


def test_a_run_that_trains_can_be_forked_up_to_the_step_it_was_just_answered(new_training: New, training: Any) -> None:
    training.take(12)
    fork = new_training("fork")
    run = training.wire.call("ForkRun", source=training.name, after_step=12, name=fork.name).run
    assert tuple(run.scale) == training.state.scale
    training.take(3)
    fork.states = training.states[:13]
    assert fork.open().tuner_state == fork.state.to_bytes()
    fork.take(1)


def test_a_checkpoint_of_the_fork_point_resumes_the_fork(new_training: New) -> None:
    source = closed(new_training, 30)
    fork = new_training("fork")
    source.wire.call("ForkRun", source=source.name, after_step=20, name=fork.name)
    fork.states = source.states[:21]
    opened = fork.open(tuner_state=source.states[20].to_bytes())
    assert opened.outcome == tuner_service_pb2.OPEN_OUTCOME_RESUMED
    assert events(fork)[-1].kind == RESUMED


def test_a_run_that_a_session_holds_is_not_taken_back_and_its_session_goes_on(training: Any) -> None:
    training.take(10)
    refused = training.wire.refused("RewindRun", name=training.name, after_step=4)
    assert (refused.code, refused.reason) == (9, "RUN_HELD")
    assert refused.metadata == {"name": training.name, "session": alias(session_key(training.session))}
    assert "stop its trainer first" in refused.message
    training.take(2)
    assert training.run().rewind_count == 0


def test_a_rewind_to_the_present_step_changes_nothing(new_training: New) -> None:
    training = closed(new_training, 10)
    before, noted = training.run(), events(training)
    assert training.wire.call("RewindRun", name=training.name, after_step=10).run == before == training.run()
    assert events(training) == noted


@pytest.mark.parametrize("method", ["RewindRun", "ForkRun"])
@pytest.mark.parametrize("after_step", [11, 2**62, 2**64 - 1])
def test_a_step_that_the_run_has_not_got_is_refused(new_training: New, method: str, after_step: int) -> None:
    training = closed(new_training, 10)
    names = {"name": training.name} if method == "RewindRun" else {"source": training.name, "name": f"{training.name}2"}
    refused = training.wire.refused(method, **names, after_step=after_step)
    assert (refused.code, refused.reason, refused.fields) == (11, "RESUME_STEP_UNKNOWN", ["after_step"])
    assert refused.metadata == {"requested": str(after_step), "last_step": "10"}


def test_a_step_before_which_the_history_has_a_gap_is_refused_but_the_last_one_is_not(new_training: New) -> None:
    training = new_training()
    adopted = TunerState.from_rows(40, training.state.rows)
    training.states = [adopted]
    training.open(tuner_state=adopted.to_bytes())
    training.take(5)
    training.close()
    refused = training.wire.refused("RewindRun", name=training.name, after_step=42)
    assert (refused.reason, refused.fields) == ("RESUME_STEP_UNKNOWN", ["after_step"])
    assert "can't be replayed" in refused.message
    fork = new_training("fork")
    run = training.wire.call("ForkRun", source=training.name, after_step=45, name=fork.name).run
    assert (run.durable_step, tuple(run.scale)) == (45, training.state.scale)
    assert [record.step for record in fork.series()] == [41, 42, 43, 44, 45]


def test_names_that_can_not_be_are_refused_by_their_field(new_training: New, wire: Any, project: str) -> None:
    source = closed(new_training, 3)
    other = f"projects/{project}/runs/other"
    cases = [
        ("ForkRun", {"source": "x", "name": other}, "MALFORMED_NAME", ["source"]),
        ("ForkRun", {"source": source.name, "name": "x"}, "MALFORMED_NAME", ["name"]),
        ("ForkRun", {"source": other, "name": other}, "RUN_NOT_FOUND", []),
        ("ForkRun", {"source": source.name, "name": source.name}, "RUN_EXISTS", ["name"]),
        ("RewindRun", {"name": "x"}, "MALFORMED_NAME", ["name"]),
        ("RewindRun", {"name": other}, "RUN_NOT_FOUND", []),
    ]
    for method, fields, reason, at in cases:
        refused = wire.refused(method, **fields)
        assert (refused.reason, refused.fields) == (reason, at), fields


def test_what_was_forked_and_rewound_survives_kill_9(new_server: New, new_training: New) -> None:
    server = new_server().start()
    source = closed(lambda *args: new_training(*args, at=server), 30)
    fork = new_training("fork", at=server)
    made = source.wire.call("ForkRun", source=source.name, after_step=20, name=fork.name).run
    back = source.wire.call("RewindRun", name=source.name, after_step=10).run
    server.kill()
    server.start()
    assert (fork.run(), source.run()) == (made, back)
    fork.states = source.states[:21]
    fork.open()
    fork.take(2)
    source.rewind(10)
    source.open()
    source.take(2)


# --- fencing -----------------------------------------------------------------------------------------------------------


def test_a_run_may_be_taken_from_a_session_that_holds_it_and_that_one_must_stop(new_training: New, training: Any) -> None:
    training.take(10)
    run = training.wire.call("RewindRun", name=training.name, after_step=4, fence=True).run
    assert (run.durable_step, run.rewind_count, run.status) == (4, 1, resources_pb2.RUN_STATUS_PREEMPTED)
    assert tuple(run.scale) == training.states[4].scale
    assert "its session fenced" in events(training)[-1].message
    for method, fields in [("Step", {"step": 11, "reductions": training.request().reductions}), ("Flush", {})]:
        assert training.wire.refused(method, session=training.session, **fields).reason == "SESSION_FENCED"
    assert training.wire.refused("OpenSession", name=training.name, session=training.session).reason == "SESSION_FENCED"
    assert [record.step for record in training.series(branch=1)] == [5, 6, 7, 8, 9, 10]
    after = new_training()
    after.states = training.states[:5]
    assert after.open().outcome == tuner_service_pb2.OPEN_OUTCOME_RESUMED
    after.take(3)


def test_a_killed_trainers_run_is_nobodys_after_a_fence_and_can_be_rewound_again(training: Any) -> None:
    training.take(10)
    training.wire.call("RewindRun", name=training.name, after_step=6, fence=True)
    run = training.wire.call("RewindRun", name=training.name, after_step=2).run
    assert (run.durable_step, run.rewind_count) == (2, 2)


def test_a_fence_at_the_present_step_gives_nothing_up(training: Any) -> None:
    training.take(10)
    run = training.wire.call("RewindRun", name=training.name, after_step=10, fence=True).run
    assert (run.durable_step, run.rewind_count, run.status) == (10, 0, resources_pb2.RUN_STATUS_PREEMPTED)
    assert training.wire.refused("Flush", session=training.session).reason == "SESSION_FENCED"


def test_a_fenced_session_is_refused_after_the_server_was_killed_too(new_server: New, new_training: New) -> None:
    server = new_server().start()
    training = new_training(at=server)
    training.open()
    training.take(10)
    training.wire.call("RewindRun", name=training.name, after_step=4, fence=True)
    server.kill()
    server.start()
    assert training.wire.refused("OpenSession", name=training.name, session=training.session).reason == "SESSION_FENCED"
    assert training.run().durable_step == 4


def test_a_refused_fence_leaves_the_session_as_it_was(training: Any) -> None:
    training.take(5)
    assert training.wire.refused("RewindRun", name=training.name, after_step=9, fence=True).reason == "RESUME_STEP_UNKNOWN"
    training.take(2)
