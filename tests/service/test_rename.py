"""RenameRun at the wire: the run and its history get another name, and whoever knows the old one is told."""

from collections.abc import Callable
from typing import Any

import pytest

from mechanicd.v1 import resources_pb2

New = Callable[..., Any]
RENAMED = resources_pb2.EVENT_KIND_RENAMED


def trained(new_training: New, run: str = "old", steps: int = 12, *, close: bool = True) -> Any:
    training = new_training(run)
    training.open(labels={"batch": "256"})
    training.take(steps)
    training.flush()
    if close:
        training.close("RUN_STATUS_FINISHED")
    return training


def rename(training: Any, to: str, **fields: Any) -> Any:
    return training.wire.call("RenameRun", name=training.name, new_name=to, **fields).run


def test_a_renamed_run_has_its_whole_history_and_goes_on(new_training: New) -> None:
    old, new = trained(new_training), new_training("new/name")
    series, before = old.series(), old.run()
    run = rename(old, new.name)
    assert run == new.run()
    before.name = new.name
    assert run == before, "nothing but the name is another"
    assert new.series() == series
    event = new.wire.call("GetRun", name=new.name).events[-1]
    assert (event.kind, event.step, event.message) == (RENAMED, 12, f"from {old.name} to {new.name}")
    assert old.wire.refused("GetRun", name=old.name).reason == "RUN_NOT_FOUND"
    new.states = list(old.states)
    assert new.open().tuner_state == old.state.to_bytes()
    new.take(3)
    assert rename(new, new.name, fence=True) == new.run(), "to its own name: nothing happens, to its session neither"
    new.take(1)


def test_a_run_moves_to_another_project_by_its_full_name(new_training: New, project: str) -> None:
    old = trained(new_training)
    assert rename(old, f"projects/{project}-done/runs/old").name == f"projects/{project}-done/runs/old"
    old.wire.call("DeleteRun", name=f"projects/{project}-done/runs/old", fence=True)


def test_a_name_that_is_taken_and_one_that_is_malformed_are_refused(new_training: New) -> None:
    old, other = trained(new_training), trained(new_training, "other")
    refused = old.wire.refused("RenameRun", name=old.name, new_name=other.name)
    assert (refused.reason, refused.fields, refused.metadata) == ("RUN_EXISTS", ["new_name"], {"name": other.name})
    refused = old.wire.refused("RenameRun", name="nonsense", new_name="projects/x")
    assert (refused.reason, refused.fields) == ("MALFORMED_NAME", ["name", "new_name"])
    assert old.wire.refused("RenameRun", name=f"{old.name}/no", new_name=old.name).reason == "RUN_NOT_FOUND"
    assert old.run().durable_step == 12


def test_a_run_that_is_held_keeps_its_name_unless_its_session_is_fenced(new_training: New) -> None:
    old, new = trained(new_training, close=False), new_training("new")
    refused = old.wire.refused("RenameRun", name=old.name, new_name=new.name)
    assert (refused.reason, refused.metadata["name"]) == ("RUN_HELD", old.name)
    old.take(3)
    run = rename(old, new.name, fence=True)
    assert (run.durable_step, run.status) == (15, resources_pb2.RUN_STATUS_PREEMPTED), "every answered step is in it"
    assert new.name in run.status_message
    refusals = [
        old.wire.refused("Step", session=old.session, step=16, reductions=old.request().reductions),
        old.wire.refused("Flush", session=old.session),
        old.wire.refused("CloseSession", session=old.session, status="RUN_STATUS_FINISHED"),
        old.wire.refused("OpenSession", name=old.name, config=old.config, session=old.session),
    ]
    for refused in refusals:
        assert refused.reason == "SESSION_FENCED"
        assert f"renamed to {new.name}" in refused.message
        assert refused.metadata["renamed_to"] == new.name


def test_a_fenced_trainer_is_told_after_a_restart_of_the_server_too(new_server: New, new_training: New) -> None:
    server = new_server().start()
    old = new_training("old", at=server)
    old.open()
    old.take(5)
    new = f"{old.name}-new"
    old.wire.call("RenameRun", name=old.name, new_name=new, fence=True)
    server.kill()
    server.start()
    refused = old.wire.refused("Flush", session=old.session)
    assert (refused.reason, refused.metadata["renamed_to"]) == ("SESSION_FENCED", new)
    refused = old.wire.refused("OpenSession", name=old.name, config=old.config, session=old.session)
    assert (refused.reason, refused.metadata["renamed_to"]) == ("SESSION_FENCED", new)


def test_a_trainer_that_would_continue_under_the_old_name_is_refused_and_a_new_training_is_not(new_training: New) -> None:
    old, new = trained(new_training), new_training("new")
    rename(old, new.name)
    for start in ({}, {"after_step": 12}, {"tuner_state": old.state.to_bytes()}):
        refused = old.wire.refused("OpenSession", name=old.name, config=old.config, **start)
        assert (refused.code, refused.reason) == (5, "RUN_RENAMED")
        assert refused.metadata == {"name": old.name, "renamed_to": new.name}
    again = rename(new, f"{new.name}er")
    refused = old.wire.refused("OpenSession", name=old.name, config=old.config)
    assert refused.metadata["renamed_to"] == again.name, "the name that it has now"
    fresh = new_training("old", seed=1)
    fresh.open(after_step=0)
    fresh.take(2)
    fresh.close()
    assert fresh.open().last_step == 2, "the name is the new run's now"


def test_a_name_is_nobodys_once_its_run_is_deleted_or_renamed_back(new_training: New) -> None:
    old, new = trained(new_training), new_training("new")
    rename(old, new.name)
    new.wire.call("RenameRun", name=new.name, new_name=old.name)
    assert old.open().last_step == 12
    old.close()
    rename(old, new.name)
    new.wire.call("DeleteRun", name=new.name, fence=True)
    assert old.open(tuner_state=old.state.to_bytes()).last_step == 12, "adopted: there is no other run that is meant"


def test_a_watcher_sees_the_old_name_gone_and_the_new_one_there(new_training: New, project: str) -> None:
    old = trained(new_training)
    watch = old.wire.call("WatchRuns", parent=f"projects/{project}")
    assert [run.name for run in next(watch).runs] == [old.name]
    rename(old, f"{old.name}-new")
    news = next(watch)
    assert ([run.name for run in news.runs], list(news.gone)) == ([f"{old.name}-new"], [old.name])
    watch.cancel()


@pytest.mark.parametrize("fence", [False, True])
def test_another_replica_that_holds_the_run_hears_of_it(
    fence: bool, postgres: Any, new_server: New, new_wire: New, new_training: New
) -> None:
    url = postgres.create_database(f"renamed{fence}".lower())
    one, two = new_server(store=url).start(), new_server(store=url).start()
    old = new_training("old", at=one)
    old.open()
    old.take(5)
    old.flush()
    if not fence:
        refused = new_wire(two.target).refused("RenameRun", name=old.name, new_name=f"{old.name}-new")
        assert refused.reason == "RUN_HELD"
        old.take(1)
        return
    new_wire(two.target).call("RenameRun", name=old.name, new_name=f"{old.name}-new", fence=True)
    refused = old.wire.refused("OpenSession", name=old.name, config=old.config, session=old.session)
    assert (refused.reason, refused.metadata["renamed_to"]) == ("SESSION_FENCED", f"{old.name}-new")
