"""Opening, coming back and closing: where a session starts, what becomes of the one before, and that no step is lost."""

import math
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from mechanicd.runs import session_key
from mechanicd.service._errors import alias
from mechanicd.tuner import CONVENTIONS, Reductions, Tuner, TunerConfig, TunerState
from mechanicd.v1 import resources_pb2, tuner_service_pb2

CREATED = tuner_service_pb2.OPEN_OUTCOME_CREATED
RESUMED = tuner_service_pb2.OPEN_OUTCOME_RESUMED
REWOUND = tuner_service_pb2.OPEN_OUTCOME_REWOUND
ADOPTED = tuner_service_pb2.OPEN_OUTCOME_ADOPTED
REATTACHED = tuner_service_pb2.OPEN_OUTCOME_REATTACHED

New = Callable[..., Any]


def scales(records: list[Any]) -> list[tuple[int, tuple[float, ...]]]:
    return [(record.step, tuple(record.scale)) for record in records]


def kept(training: Any, first: int = 1, last: int | None = None) -> list[tuple[int, tuple[float, ...]]]:
    """What the history must hold of the steps that the training took."""
    return [(step, training.states[step].scale) for step in range(first, (last or len(training.states) - 1) + 1)]


def test_the_first_session_makes_the_run(new_training: New) -> None:
    training = new_training()
    opened = training.open(labels={"batch": "256"}, client="a test")
    assert (opened.outcome, opened.explanation) == (CREATED, "a new run")
    assert (opened.last_step, opened.durable_step, list(opened.scale)) == (0, 0, [0.0])
    assert opened.tuner_state == training.state.to_bytes()
    assert opened.session != 0
    run = opened.run
    assert (run.name, dict(run.labels), run.config) == (training.name, {"batch": "256"}, training.config)
    assert (run.status, run.session_count, run.rewind_count) == (resources_pb2.RUN_STATUS_RUNNING, 1, 0)
    assert not run.HasField("step_time")
    assert training.run() == run


def test_unset_settings_take_their_defaults_and_the_reply_has_every_field(new_training: New) -> None:
    training = new_training()
    opened = training.open(config=resources_pb2.TunerConfig())
    assert opened.run.config == training.config
    assert training.open(config=None).outcome == RESUMED, "and no config at all is the same"


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_new_session_goes_on_after_the_last_step_with_the_same_bits(new_training: New, convention: str) -> None:
    training = new_training(config=TunerConfig(convention=convention, scale_groups=("a", "b")))
    training.open()
    training.take(20)
    opened = training.open()
    assert (opened.outcome, opened.last_step, opened.durable_step) == (RESUMED, 20, 20)
    assert opened.tuner_state == training.state.to_bytes()
    assert tuple(opened.scale) == training.state.scale
    training.take(20)
    training.flush()
    assert scales(training.series()) == kept(training)


def test_the_successor_may_send_the_last_step_of_its_predecessor_again(new_training: New) -> None:
    training = new_training()
    training.open()
    training.take(5)
    training.open()
    again = training.wire.start("Step", training.request(step=5)).result
    assert tuple(again.scale) == training.state.scale
    training.take()


def test_a_rewind_by_a_checkpoint_keeps_the_steps_given_up_as_a_branch(new_training: New) -> None:
    training = new_training()
    training.open()
    training.take(10)
    abandoned = kept(training, 7)
    checkpoint = training.states[6].to_bytes()
    training.rewind(6)
    opened = training.open(tuner_state=checkpoint)
    assert (opened.outcome, opened.last_step, opened.durable_step) == (REWOUND, 6, 6)
    assert opened.tuner_state == checkpoint
    assert "at step 6 and the server was at step 10" in opened.explanation
    assert opened.run.rewind_count == 1
    training.seed = 1
    training.take(8)
    training.flush()
    assert scales(training.series()) == kept(training)
    assert scales(training.series(branch=1)) == abandoned
    assert {record.branch for record in training.series(branch=1)} == {1}


@pytest.mark.parametrize("after_step", [1, 6, 9])
def test_a_rewind_by_a_step_alone_replays_the_history_to_the_same_bits(new_training: New, after_step: int) -> None:
    training = new_training(config=TunerConfig(convention="optax", scale_groups=("a", "b")))
    training.open()
    for step in range(1, 11):
        if step == 3:
            training.expect(training.wire.start("Step", training.request(hold=True)).result, hold=True)
        elif step == 5:
            bad = [training.reductions(5)[0], training.reductions(5)[1]._replace(delta_dot_x=math.nan)]
            training.expect(training.wire.start("Step", training.request(bad)).result, bad)
        else:
            training.take()
    abandoned = kept(training, after_step + 1)
    training.rewind(after_step)
    opened = training.open(after_step=after_step)
    assert (opened.outcome, opened.last_step) == (REWOUND, after_step)
    assert opened.tuner_state == training.state.to_bytes()
    training.seed = 1
    training.take(10)
    training.flush()
    assert scales(training.series()) == kept(training)
    assert scales(training.series(branch=1)) == abandoned


def test_a_training_that_begins_anew_leaves_its_whole_history_as_a_branch(new_training: New) -> None:
    training = new_training()
    training.open()
    training.take(5)
    abandoned = kept(training)
    training.rewind(0)
    opened = training.open(after_step=0)
    assert (opened.outcome, opened.last_step, list(opened.scale)) == (REWOUND, 0, [0.0])
    training.seed = 1
    training.take(3)
    training.flush()
    assert scales(training.series()) == kept(training)
    assert scales(training.series(branch=1)) == abandoned


def test_every_rewind_has_its_branch(new_training: New) -> None:
    training = new_training()
    training.open()
    branches = []
    for seed in (1, 2, 3):
        training.seed = seed
        training.take(4)
        branches.append(kept(training, len(training.states) - 3))
        training.rewind(len(training.states) - 4)
        assert training.open(after_step=training.state.step).run.rewind_count == seed
    assert [scales(training.series(branch=branch)) for branch in (1, 2, 3)] == branches
    assert scales(training.series()) == kept(training)


def test_a_checkpoint_that_the_server_never_saw_is_adopted(new_training: New) -> None:
    training = new_training()
    training.open()
    training.take(5)
    for step in range(6, 31):
        training.states.append(training.tuner.update(training.state, training.reductions(step)))
    opened = training.open(tuner_state=training.state.to_bytes())
    assert (opened.outcome, opened.last_step, opened.durable_step) == (ADOPTED, 30, 30)
    assert "at step 30 and the server was at step 5" in opened.explanation
    training.take(5)
    training.flush()
    assert scales(training.series()) == kept(training, 1, 5) + kept(training, 31), "what the server never got is missing"
    assert training.run().rewind_count == 0


def test_a_server_that_knows_nothing_of_a_run_takes_it_from_the_checkpoint(new_training: New) -> None:
    training = new_training()
    for step in range(1, 11):
        training.states.append(training.tuner.update(training.state, training.reductions(step)))
    opened = training.open(tuner_state=training.state.to_bytes())
    assert (opened.outcome, opened.last_step) == (ADOPTED, 10)
    training.take(5)
    training.flush()
    assert scales(training.series()) == kept(training, 11)


def test_the_checkpoint_of_the_last_step_is_no_rewind(new_training: New) -> None:
    training = new_training()
    training.open()
    training.take(5)
    opened = training.open(tuner_state=training.state.to_bytes())
    assert (opened.outcome, opened.last_step, opened.run.rewind_count) == (RESUMED, 5, 0)
    training.take()


@pytest.mark.parametrize("adopted", [4, 7])
def test_a_rewind_across_an_adopted_state_needs_a_checkpoint_and_says_so(new_training: New, adopted: int) -> None:
    """At step 4 the adopted state contradicts the history, at step 7 there is a gap before it: neither can be replayed."""
    training = new_training()
    training.open()
    training.take(4)
    other = Tuner().update(Tuner().init(), Reductions(-5.0, 0.0, 1.0, 1.0))
    training.states[4:] = [TunerState.from_rows(adopted, other.rows)] * (adopted - 3)
    training.open(tuner_state=training.state.to_bytes())
    training.take(5)
    refused = training.wire.refused("OpenSession", name=training.name, after_step=adopted + 2)
    assert refused.reason == "RESUME_STEP_UNKNOWN"
    assert refused.metadata == {"requested": str(adopted + 2), "last_step": str(adopted + 5)}
    assert "send the tuner state of your checkpoint instead" in refused.message
    training.take()
    training.rewind(adopted + 2)
    assert training.open(tuner_state=training.state.to_bytes()).outcome == REWOUND
    training.take(5)


# --- one session at a time ---------------------------------------------------------------------------------------------


def test_the_older_session_is_fenced_by_name_wherever_it_turns_up(new_training: New) -> None:
    old, new = new_training(), new_training()
    old.open()
    old.take(3)
    new.open()
    new.states += old.states[1:]
    facts = {"session": str(old.session), "successor": alias(session_key(new.session))}
    stream = old.wire.stream()
    (result,) = stream.take(old.request())
    assert (result.error.reason, dict(result.error.metadata)) == (10, facts)
    stream.close()
    refusals = [
        old.wire.refused("Step", session=old.session, step=4, reductions=old.request().reductions),
        old.wire.refused("Step", session=old.session, step=3, reductions=old.request(step=3).reductions),
        old.wire.refused("Flush", session=old.session),
        old.wire.refused("CloseSession", session=old.session, status="RUN_STATUS_FINISHED"),
        old.wire.refused("OpenSession", name=old.name, config=old.config, session=old.session),
    ]
    for refused in refusals:
        assert (refused.code, refused.reason, refused.metadata) == (10, "SESSION_FENCED", facts)
        assert "this process must stop" in refused.message
    new.take(3)
    new.flush()
    assert scales(new.series()) == kept(new), "nothing of the fenced one came in"
    assert new.run().session_count == 2


def test_steps_that_were_answered_before_the_fence_are_never_lost(new_training: New) -> None:
    """They may not be durable yet when the successor comes: the server commits them first."""
    old, new = new_training(), new_training()
    for round_ in range(1, 6):
        old.open()
        old.take(7)
        opened = new.open()
        assert (opened.last_step, opened.tuner_state) == (7 * round_, old.state.to_bytes())


def test_a_session_comes_back_after_a_lost_connection_and_fences_nobody(new_training: New) -> None:
    training = new_training()
    training.open()
    training.take(5)
    session = training.session
    opened = training.open(session=session)
    assert (opened.outcome, opened.session, opened.last_step) == (REATTACHED, session, 5)
    assert opened.tuner_state == training.state.to_bytes()
    assert "the server has step 5" in opened.explanation
    assert training.run().session_count == 1
    training.take(5)


@pytest.mark.parametrize("session", [77, 2**63, 2**64 - 1])
def test_nobody_comes_back_with_a_session_that_there_never_was(new_training: New, session: int) -> None:
    training = new_training()
    training.open()
    refused = training.wire.refused("OpenSession", name=training.name, session=session)
    assert (refused.reason, refused.metadata) == ("SESSION_UNKNOWN", {"session": str(session)})
    training.take()


def test_a_session_comes_back_to_its_own_run_and_to_no_other(new_training: New) -> None:
    mine, other = new_training("mine"), new_training("other")
    mine.open()
    other.open()
    refused = mine.wire.refused("OpenSession", name=other.name, session=mine.session)
    assert (refused.reason, refused.metadata) == ("SESSION_UNKNOWN", {"session": str(mine.session)})
    mine.take()
    other.take()


def test_a_session_that_was_closed_does_not_come_back(training: Any) -> None:
    training.take(3)
    training.close()
    for method, fields in [("OpenSession", {"name": training.name}), ("Flush", {}), ("Step", {"step": 4})]:
        refused = training.wire.refused(method, session=training.session, **fields)
        assert refused.reason == "SESSION_UNKNOWN", method
    assert training.open().outcome == RESUMED
    training.take()


# --- refusals ----------------------------------------------------------------------------------------------------------


def test_another_config_is_refused_with_each_field_that_differs(new_training: New) -> None:
    training = new_training(config=TunerConfig(s_decay=0.5))
    training.open()
    training.take(2)
    other = new_training(config=TunerConfig(betas=(0.9,), convention="optax"))
    session = {"session": training.session}
    for back in ({}, session):
        refused = other.wire.refused("OpenSession", name=training.name, config=other.config, **back)
        assert (refused.code, refused.reason, refused.fields) == (9, "CONFIG_MISMATCH", ["config"])
        assert refused.metadata.keys() == {"betas", "convention", "s_decay"}
        assert refused.metadata["s_decay"] == "0.5 ≠ 0.01"
        assert refused.metadata["convention"] == "paper ≠ optax"
    training.take(2)


def test_a_difference_of_many_groups_is_told_and_not_lost_in_transport(new_training: New) -> None:
    """All of an error travels in trailers, which grpc caps: a hundred names of tensors on each side would not get through."""
    tensors = tuple(f"model.transformer.h.{i}.attn.c_attn.weight" for i in range(150))
    training = new_training(config=TunerConfig(scale_groups=tensors))
    training.open()
    other = new_training(config=TunerConfig(scale_groups=tuple(f"{name}.größer" for name in tensors)))
    refused = training.wire.refused("OpenSession", name=training.name, config=other.config)
    assert refused.reason == "CONFIG_MISMATCH"
    assert refused.metadata.keys() == {"scale_groups"}
    assert refused.message.endswith("use the stored config or another run name")


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"name": "projects/p/runs/"}, "MALFORMED_NAME", "name"),
        ({"name": "projects/p/runs/" + "größe/" * 5_000}, "MALFORMED_NAME", "name"),
        ({"labels": {"no spaces": ""}}, "INVALID_LABELS", "labels"),
        ({"labels": {"k": "v" * 20_000}}, "INVALID_LABELS", "labels"),
        ({"labels": {f"k{i}": "" for i in range(65)}}, "INVALID_LABELS", "labels"),
        ({"config": {"s_init": -1.0}}, "INVALID_CONFIG", "config.s_init"),
        ({"config": {"betas": [0.9, 1.5]}}, "INVALID_CONFIG", "config.betas"),
        ({"config": {"eps": math.nan}}, "INVALID_CONFIG", "config.eps"),
        ({"config": {"convention": 99}}, "INVALID_CONFIG", "config.convention"),
        ({"config": {"scale_groups": ["a", "a"]}}, "INVALID_CONFIG", "config.scale_groups"),
        ({"tuner_state": b""}, "INVALID_TUNER_STATE", "tuner_state"),
        ({"tuner_state": b"no state"}, "INVALID_TUNER_STATE", "tuner_state"),
        ({"tuner_state": Tuner(TunerConfig(betas=(0.9,))).init().to_bytes()}, "INVALID_TUNER_STATE", "tuner_state"),
        ({"tuner_state": TunerState.from_rows(2**63, Tuner().init().rows).to_bytes()}, "INVALID_TUNER_STATE", "tuner_state"),
        ({"after_step": 5}, "RESUME_STEP_UNKNOWN", "after_step"),
        ({"after_step": 2**64 - 1}, "RESUME_STEP_UNKNOWN", "after_step"),
    ],
)
def test_a_refused_session_names_the_field_and_makes_no_run(
    new_training: New, wire: Any, project: str, fields: dict[str, Any], reason: str, field: str
) -> None:
    refused = wire.refused("OpenSession", **{"name": f"projects/{project}/runs/r"} | fields)
    assert (refused.reason, refused.fields) == (reason, [field])
    assert list(wire.call("ListRuns", parent=f"projects/{project}").runs) == []


@pytest.mark.parametrize("start", [{"after_step": 9}, {"tuner_state": b"no state"}, {"labels": {"k": "v" * 257}}])
def test_a_refused_session_leaves_the_one_that_holds_the_run_at_work(training: Any, start: dict[str, Any]) -> None:
    training.take(4)
    assert training.wire.refused("OpenSession", name=training.name, **start).code != 0
    training.take(4)
    assert training.run().session_count == 1


def test_labels_of_a_later_session_are_added_and_replace_those_of_the_same_key(new_training: New) -> None:
    training = new_training()
    training.open(labels={"batch": "256", "host": "a"})
    assert dict(training.open(labels={"host": "b", "seed": "0"}).run.labels) == {"batch": "256", "host": "b", "seed": "0"}
    assert dict(training.open().run.labels) == {"batch": "256", "host": "b", "seed": "0"}


def test_labels_that_together_are_too_many_are_refused_and_none_is_added(new_training: New) -> None:
    training = new_training()
    training.open(labels={f"a{i}": "" for i in range(40)})
    refused = training.wire.refused("OpenSession", name=training.name, labels={f"b{i}": "" for i in range(40)})
    assert refused.reason == "INVALID_LABELS"
    assert "80 labels" in refused.message
    training.take()
    assert len(training.run().labels) == 40


# --- closing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["RUN_STATUS_PREEMPTED", "RUN_STATUS_FAILED", "RUN_STATUS_FINISHED"])
def test_a_close_says_why_and_everything_is_durable_then(training: Any, status: str) -> None:
    training.take(5)
    run = training.close(status, "told to stop [by ‹the› scheduler]")
    assert (run.status, run.status_message) == (resources_pb2.RunStatus.Value(status), "told to stop [by ‹the› scheduler]")
    assert run.durable_step == 5
    assert training.run() == run
    assert scales(training.series()) == kept(training)
    assert training.open().run.status == resources_pb2.RUN_STATUS_RUNNING
    assert training.run().status_message == ""


@pytest.mark.parametrize("status", ["RUN_STATUS_UNSPECIFIED", "RUN_STATUS_RUNNING", "RUN_STATUS_SILENT", 99])
def test_no_session_is_closed_as_something_that_goes_on(training: Any, status: Any) -> None:
    refused = training.wire.refused("CloseSession", session=training.session, status=status)
    assert (refused.reason, refused.fields) == ("INVALID_STATUS", ["status"])
    training.take()


def test_a_very_long_message_is_kept_in_its_beginning(training: Any) -> None:
    assert training.close(message="x" * 100_000).status_message == "x" * 1000


# --- restarts ----------------------------------------------------------------------------------------------------------


def test_after_a_kill_the_session_comes_back_and_no_durable_step_is_lost(
    new_server: Callable[..., Any], new_training: New
) -> None:
    server = new_server("--flush-interval", "10").start()
    training = new_training(at=server)
    training.open()
    training.take(31)
    assert training.flush() == 31
    training.take(3)
    server.kill()
    server.start()
    training.wire = new_training(at=server).wire
    refused = training.wire.refused("Flush", session=training.session)
    assert refused.reason == "SESSION_UNKNOWN", "this server has not met the session yet"
    assert "set OpenSessionRequest.session to reattach" in refused.message

    opened = training.open(session=training.session)
    assert (opened.outcome, opened.last_step, opened.durable_step) == (REATTACHED, 31, 31)
    assert opened.tuner_state == training.states[31].to_bytes()
    before = kept(training)
    training.rewind(31)
    training.take(20)
    training.flush()
    assert scales(training.series()) == kept(training)
    assert scales(training.series(last_step=34)) == before, "the three that were not durable came again, with the same bits"


def test_after_a_restart_the_last_step_again_gives_the_stored_reply(new_server: Callable[..., Any], new_training: New) -> None:
    server = new_server().start()
    trainings = [new_training(f"run{i}", at=server) for i in range(3)]
    replies = []
    for index, training in enumerate(trainings):
        training.open()
        training.take(10)
        bad = [training.reductions(11)[0]._replace(delta_dot_g=math.nan)]
        request = training.request(*[[bad], [], []][index], **[{}, {"hold": True}, {}][index])
        replies.append((request, training.wire.start("Step", request).result))
        training.flush()
    server.kill()
    server.start()
    for training, (request, reply) in zip(trainings, replies, strict=True):
        training.wire = new_training(at=server).wire
        assert training.open(session=training.session).last_step == 11
        again = training.wire.start("Step", request).result
        assert again.durable_step == 11
        again.durable_step = reply.durable_step
        assert again == reply
        other = training.wire.refused(
            "Step", session=training.session, step=11, reductions=training.request(step=12).reductions
        )
        assert other.reason == "STEP_CONFLICT"


def test_a_zombie_is_refused_by_a_restarted_server_too(new_server: Callable[..., Any], new_training: New) -> None:
    server = new_server().start()
    old, new = new_training(at=server), new_training(at=server)
    old.open()
    old.take(3)
    old.flush()
    new.open()
    server.kill()
    server.start()
    wire = new_training(at=server).wire
    refused = wire.refused("OpenSession", name=old.name, session=old.session)
    assert (refused.reason, refused.metadata["successor"]) == ("SESSION_FENCED", alias(session_key(new.session)))
    assert wire.call("OpenSession", name=new.name, session=new.session).outcome == REATTACHED


def test_a_call_to_a_server_that_is_away_ends_in_an_error_of_its_own(new_server: Callable[..., Any], new_training: New) -> None:
    server = new_server()
    with pytest.raises(grpc.RpcError) as caught:
        new_training(at=server).open()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_call_that_comes_late_changes_nothing(new_training: New) -> None:
    training = new_training()
    first = {"trainer": 7, "attempt": 1, "after_step": 0}
    training.open(**first | {"attempt": 2})
    training.take(5)
    assert training.wire.refused("OpenSession", name=training.name, **first).reason == "SESSION_FENCED"
    training.take(5)
    training.close()
    assert training.wire.refused("OpenSession", name=training.name, **first).reason == "SESSION_FENCED", "also after the end"
    run = training.run()
    assert (run.session_count, run.rewind_count, run.durable_step) == (1, 0, 10)


@pytest.mark.parametrize("start", ["from scratch", "a checkpoint", "where it was"])
def test_a_call_whose_answer_was_lost_is_answered_with_the_same_session(new_training: New, start: str) -> None:
    training = new_training()
    training.open()
    training.take(3)
    fields = {
        "from scratch": {"after_step": 0},
        "a checkpoint": {"tuner_state": training.state.to_bytes()},
        "where it was": {},
    }[start]
    lost = training.open(trainer=7, attempt=1, **fields)
    again = training.open(trainer=7, attempt=2, **fields)
    assert (again.session, again.last_step, again.tuner_state) == (lost.session, lost.last_step, lost.tuner_state)
    assert again.run.session_count == 2
    if start == "from scratch":
        training.rewind(0)
    training.take(4)
    other = training.open(trainer=8, attempt=1)
    assert other.session != again.session, "another trainer takes the run over, as ever"


def test_a_trainer_that_took_steps_and_starts_over_gets_a_new_session(new_training: New) -> None:
    training = new_training()
    one = training.open(trainer=7, attempt=1, after_step=0)
    training.take(3)
    two = training.open(trainer=7, attempt=2, after_step=0)
    assert (two.outcome, two.last_step) == (REWOUND, 0)
    assert two.session != one.session
