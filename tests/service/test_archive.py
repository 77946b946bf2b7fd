"""ArchiveRun and RestoreRun at the wire: an archived run needs nobody and leaves the lists, and loses nothing."""

from collections.abc import Callable
from typing import Any

import pytest

from mechanicd.v1 import resources_pb2

New = Callable[..., Any]


@pytest.fixture
def two(new_training: New) -> tuple[Any, Any]:
    """A run that needs attention, because all of its steps are bad; and another one."""
    bad, good = new_training("bad"), new_training("good")
    for training in (bad, good):
        training.open()
        training.take(2)
    nan = [one._replace(delta_dot_g=float("nan")) for one in bad.reductions(3)]
    for _ in range(25):
        bad.expect(bad.wire.start("Step", bad.request(nan)).result, nan)
    bad.flush()
    bad.close("RUN_STATUS_FAILED")
    return bad, good


def listed(training: Any, filter_: str = "") -> list[str]:
    parent = training.name.rpartition("/runs/")[0]
    runs = training.wire.call("ListRuns", parent=parent, filter=filter_).runs
    return [run.name.rpartition("/")[2] for run in runs]


def test_an_archived_run_leaves_the_lists_until_it_is_asked_for(two: tuple[Any, Any]) -> None:
    bad, _ = two
    assert listed(bad, "needs : *") == ["bad"]
    series = bad.series()
    run = bad.wire.call("ArchiveRun", name=bad.name).run
    assert run == bad.run() == bad.wire.call("ArchiveRun", name=bad.name).run, "again changes nothing"
    assert (run.HasField("archive_time"), list(run.needs), run.status) == (True, [], resources_pb2.RUN_STATUS_FAILED)
    assert (listed(bad), listed(bad, "needs : *"), listed(bad, "status = FAILED")) == (["good"], [], [])
    assert listed(bad, "archived = true") == listed(bad, "archived != false AND step > 1") == ["bad"]
    assert listed(bad, "archived : *") == ["bad", "good"]
    assert listed(bad, "archived = false") == ["good"]
    assert bad.series() == series
    run = bad.wire.call("RestoreRun", name=bad.name).run
    assert (run.HasField("archive_time"), len(run.needs)) == (False, 1)
    assert listed(bad) == ["bad", "good"]
    kinds = [event.kind for event in bad.wire.call("GetRun", name=bad.name).events][-2:]
    assert kinds == [resources_pb2.EVENT_KIND_ARCHIVED, resources_pb2.EVENT_KIND_RESTORED]


def test_a_run_that_trains_may_be_archived_and_loses_no_step(new_training: New) -> None:
    training = new_training()
    training.open()
    training.take(3)
    training.wire.call("ArchiveRun", name=training.name)
    training.take(3)
    training.flush()
    assert (training.run().HasField("archive_time"), training.run().durable_step) == (True, 6)
    training.close("RUN_STATUS_PREEMPTED")
    training.open()
    assert not training.run().HasField("archive_time"), "a trainer that opens it restores it"


def test_a_watcher_sees_an_archived_run_go_and_come(two: tuple[Any, Any]) -> None:
    bad, good = two
    parent = bad.name.rpartition("/runs/")[0]
    watch = bad.wire.call("WatchRuns", parent=parent)
    assert [run.name for run in next(watch).runs] == [bad.name, good.name]
    bad.wire.call("ArchiveRun", name=bad.name)
    assert list(next(watch).gone) == [bad.name]
    bad.wire.call("RestoreRun", name=bad.name)
    assert [run.name for run in next(watch).runs] == [bad.name]
    watch.cancel()


@pytest.mark.parametrize("filter_", ["archived", "archived = yes", "archived : true", "archived > false", "archived = *"])
def test_a_filter_that_misuses_archived_is_refused(training: Any, filter_: str) -> None:
    refused = training.wire.refused("ListRuns", parent="projects/-", filter=filter_)
    assert refused.reason == "INVALID_FILTER"


def test_archive_and_restore_refuse_a_run_that_is_not_there(training: Any) -> None:
    for method in ("ArchiveRun", "RestoreRun"):
        assert training.wire.refused(method, name=f"{training.name}/no").reason == "RUN_NOT_FOUND"
        assert training.wire.refused(method, name="no").reason == "MALFORMED_NAME"
