"""Looking at runs and changing them: lists page by page, what changes, and the exact history."""

import asyncio
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mechanicd.runs import session_key
from mechanicd.service import Engine, _pages, _run_service
from mechanicd.service._errors import alias
from mechanicd.store import _store, open_store
from mechanicd.tuner import TunerConfig, TunerState
from mechanicd.v1 import errors_pb2, resources_pb2, run_service_pb2

New = Callable[..., Any]


def pages(wire: Any, method: str, items: str, **fields: Any) -> Iterator[list[Any]]:
    """Page after page, until the last one says that it is."""
    token = ""
    while True:
        response = wire.call(method, **fields, page_token=token)
        yield list(getattr(response, items))
        token = response.next_page_token
        if not token:
            return


@pytest.fixture
def fleet(new_training: New) -> list[Any]:
    """Seven runs; the odd ones have the label batch=64 and are finished, and run i has taken i steps."""
    trainings = [new_training(f"run{i}") for i in range(7)]
    for index, training in enumerate(trainings):
        training.open(labels={"batch": "64" if index % 2 else "256"})
        if index:
            training.take(index)
        training.flush()
        if index % 2:
            training.close()
    return trainings


# --- one run -----------------------------------------------------------------------------------------------------------


def test_a_run_is_shown_as_it_is(new_training: New) -> None:
    training = new_training("bert/seed0", TunerConfig(scale_groups=("a", "b")))
    training.open(labels={"batch": "256"})
    training.take(5)
    training.flush()
    run = training.run()
    assert (run.name, dict(run.labels), run.config) == (training.name, {"batch": "256"}, training.config)
    assert (run.durable_step, tuple(run.scale)) == (5, training.state.scale)
    assert run.create_time.ToNanoseconds() <= run.step_time.ToNanoseconds()
    assert run.step_time == training.series()[-1].time


@pytest.mark.parametrize("method", ["GetRun", "DeleteRun", "QuerySeries"])
def test_an_unknown_run_is_not_found_by_its_name(wire: Any, project: str, method: str) -> None:
    name = f"projects/{project}/runs/nobody"
    refused = wire.refused(method, name=name)
    assert (refused.code, refused.reason, refused.metadata) == (5, "RUN_NOT_FOUND", {"name": name})
    assert "`mechanicd runs list` shows all runs" in refused.message


@pytest.mark.parametrize("method", ["GetRun", "DeleteRun", "QuerySeries"])
@pytest.mark.parametrize("name", ["", "run", "projects/-/runs/r", "projects/p/runs/" + "x" * 30_000])
def test_a_malformed_name_is_refused_everywhere(wire: Any, method: str, name: str) -> None:
    refused = wire.refused(method, name=name)
    assert (refused.code, refused.reason, refused.fields) == (3, "MALFORMED_NAME", ["name"])
    assert len(refused.message) < 1000


# --- lists -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_pages_of_runs_are_the_whole_list_in_the_order_of_names(wire: Any, project: str, fleet: list[Any], size: int) -> None:
    listed = list(pages(wire, "ListRuns", "runs", parent=f"projects/{project}", page_size=size))
    assert [run.name for page in listed for run in page] == [training.name for training in fleet]
    assert [len(page) for page in listed] == [min(size, 7 - start) for start in range(0, 7, size)]
    assert [run for page in listed for run in page] == [training.run() for training in fleet]


def test_pages_of_a_filtered_list_are_full(wire: Any, project: str, fleet: list[Any]) -> None:
    parent = f"projects/{project}"
    text = "labels.batch = 256 AND step > 0"
    listed = [
        [run.durable_step for run in page] for page in pages(wire, "ListRuns", "runs", parent=parent, filter=text, page_size=2)
    ]
    assert listed == [[2, 4], [6]]


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("status = RUNNING", [0, 2, 4, 6]),
        ("status = FINISHED AND step > 1", [3, 5]),
        ("scale > 0 AND step < 3", [1, 2]),
        ("scale = 0", [0]),
        ("name : run3", [3]),
        ("labels.missing = 1", []),
    ],
)
def test_a_filter_keeps_the_runs_that_meet_it(wire: Any, project: str, fleet: list[Any], text: str, steps: list[int]) -> None:
    response = wire.call("ListRuns", parent=f"projects/{project}", filter=text)
    assert [run.durable_step for run in response.runs] == steps
    assert response.next_page_token == ""


def test_all_projects_are_listed_by_a_dash(wire: Any, fleet: list[Any]) -> None:
    listed = [run.name for page in pages(wire, "ListRuns", "runs", parent="projects/-", page_size=1000) for run in page]
    assert {training.name for training in fleet} <= set(listed)
    assert listed == sorted(listed, key=lambda name: name.split("/", 3)[1::2])


def test_an_unknown_project_has_no_runs(wire: Any) -> None:
    assert wire.call("ListRuns", parent="projects/nobody") == run_service_pb2.ListRunsResponse()


def test_a_run_that_comes_or_goes_between_two_pages_shifts_no_other(
    wire: Any, project: str, new_training: New, fleet: list[Any]
) -> None:
    parent = f"projects/{project}"
    first = wire.call("ListRuns", parent=parent, page_size=3)
    wire.call("DeleteRun", name=fleet[2].name, fence=True)
    new_training("run1a").open()
    new_training("run9").open()
    rest = wire.call("ListRuns", parent=parent, page_token=first.next_page_token)
    assert [run.name[-4:] for run in first.runs] == ["run0", "run1", "run2"]
    assert [run.name[-4:] for run in rest.runs] == ["run3", "run4", "run5", "run6", "run9"]


@pytest.mark.parametrize("scan", [1, 3, 20, 100])
@pytest.mark.parametrize("size", [1, 3, 10, 100])
def test_pages_are_full_and_complete_however_the_store_is_read(scan: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is read in portions, which must not show: neither in a list, filtered or not, nor in a watch."""
    monkeypatch.setattr(_store, "_PORTION", scan)
    store = open_store("sqlite:///:memory:")
    state = TunerState.initial(TunerConfig())
    names = [f"projects/p/runs/{i:02}" for i in range(20)]
    for i in range(20):
        row = store.create("p", f"{i:02}", TunerConfig(), state.to_bytes(), state.scale, 1)
        store.set_labels(row.id, {"third": str(i % 3)})

    async def look() -> None:
        engine = Engine(store)
        runs = _run_service.RunService(engine)
        for text, wanted in [("", names), ("labels.third = 0", names[::3])]:
            request = run_service_pb2.ListRunsRequest(parent="projects/p", filter=text, page_size=size)
            listed: list[list[str]] = []
            while request.page_token or not listed:
                response = await runs.list_runs(request)
                request.page_token = response.next_page_token
                listed.append([run.name for run in response.runs])
            assert listed == [wanted[start : start + size] for start in range(0, len(wanted), size)]
            watching = runs.watch_runs(run_service_pb2.WatchRunsRequest(parent="projects/p", filter=text))
            assert [run.name for run in (await anext(watching)).runs] == wanted
            await watching.aclose()  # type: ignore[attr-defined]
        await engine.stop()

    asyncio.run(look())


@pytest.mark.parametrize("position", [["x"], ["a", "b", "c"], [], [""]], ids=str)
def test_a_forged_page_token_of_a_list_is_refused(wire: Any, project: str, position: list[str]) -> None:
    parent = f"projects/{project}"
    token = _pages.token_out(position, "runs", parent, "")
    refused = wire.refused("ListRuns", parent=parent, page_token=token)
    assert (refused.code, refused.reason, refused.fields) == (3, "INVALID_PAGE_TOKEN", ["page_token"])


@pytest.mark.parametrize(
    "position", [["abc"], ["9" * 30], ["-1"], ["-" + "9" * 30], ["1.5"], ["٣"], [" 1"], ["1", "2"], [""]], ids=str
)
def test_a_forged_page_token_of_a_series_is_refused(training: Any, wire: Any, position: list[str]) -> None:
    training.take(3)
    training.flush()
    token = _pages.token_out(position, "series", training.name, "0", "0", "0")
    refused = wire.refused("QuerySeries", name=training.name, page_token=token)
    assert (refused.code, refused.reason, refused.fields) == (3, "INVALID_PAGE_TOKEN", ["page_token"])
    token = _pages.token_out(["3"], "series", training.name, "0", "0", "0")
    assert [record.step for record in training.series(page_token=token)] == [3], "such is one that is not forged"


def test_a_page_token_of_another_list_is_refused(wire: Any, project: str, fleet: list[Any]) -> None:
    parent = f"projects/{project}"
    token = wire.call("ListRuns", parent=parent, page_size=2).next_page_token
    assert token
    for fields in ({"parent": "projects/-"}, {"parent": parent, "filter": "step > 0"}, {"parent": "projects/other"}):
        refused = wire.refused("ListRuns", **fields, page_token=token)
        assert (refused.code, refused.reason, refused.fields) == (3, "INVALID_PAGE_TOKEN", ["page_token"])
    refused = wire.refused("QuerySeries", name=fleet[3].name, page_token=token)
    assert refused.reason == "INVALID_PAGE_TOKEN"
    assert len(wire.call("ListRuns", parent=parent, page_token=token, page_size=5).runs) == 5, "another size is no other list"


@pytest.mark.parametrize("token", ["2", "garbage", "AAAA", "ü", "====", "Zm9vCmJhcg=="])
def test_a_page_token_that_nobody_gave_is_refused(wire: Any, project: str, training: Any, token: str) -> None:
    assert wire.refused("ListRuns", parent=f"projects/{project}", page_token=token).reason == "INVALID_PAGE_TOKEN"
    assert wire.refused("QuerySeries", name=training.name, page_token=token).reason == "INVALID_PAGE_TOKEN"


@pytest.mark.parametrize(
    ("fields", "reason", "field"),
    [
        ({"parent": ""}, "MALFORMED_NAME", "parent"),
        ({"parent": "projects/a/runs/b"}, "MALFORMED_NAME", "parent"),
        ({"parent": "projects/" + "ü" * 30_000}, "MALFORMED_NAME", "parent"),
        ({"parent": "projects/-", "page_size": -1}, "INVALID_RANGE", "page_size"),
        ({"parent": "projects/-", "filter": "color = red"}, "INVALID_FILTER", "filter"),
        ({"parent": "projects/-", "filter": "größe " * 10_000}, "INVALID_FILTER", "filter"),
    ],
)
def test_a_wrong_list_is_refused_with_its_field(wire: Any, fields: dict[str, Any], reason: str, field: str) -> None:
    refused = wire.refused("ListRuns", **fields)
    assert (refused.code, refused.reason, refused.fields) == (3, reason, [field])
    if reason == "INVALID_FILTER":
        assert refused.metadata["position"] == "0"
        assert refused.metadata["filter"][:3] == fields["filter"][:3]


# --- watching ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def watch(wire: Any, project: str) -> Iterator[Callable[..., Any]]:
    """Starts to watch the test's project; each `next` waits for what changes."""
    calls = []

    def start(**fields: Any) -> Any:
        calls.append(wire.call("WatchRuns", parent=f"projects/{project}", **fields))
        return calls[-1]

    yield start
    for call in calls:
        call.cancel()


def until(watching: Any, name: str, condition: Callable[[Any], bool]) -> Any:
    """The run when it meets the condition; till then no other run may turn up, since no other changes."""
    while True:
        response = next(watching)
        assert ([run.name for run in response.runs], list(response.gone)) == ([name], [])
        if condition(response.runs[0]):
            return response.runs[0]


def test_a_watch_sees_what_there_is_then_a_new_run_a_step_a_close_and_a_deletion(watch: New, new_training: New) -> None:
    one, two = new_training("one"), new_training("two")
    one.open()
    watching = watch()
    response = next(watching)
    assert (list(response.runs), list(response.gone)) == ([one.run()], [])
    two.open()
    run = until(watching, two.name, lambda run: run.session_count == 1)
    assert run == two.run()
    one.take(3)
    one.flush()
    run = until(watching, one.name, lambda run: run.durable_step == 3)
    assert tuple(run.scale) == one.state.scale
    two.close("RUN_STATUS_FAILED", "out of memory")
    run = until(watching, two.name, lambda run: run.status != resources_pb2.RUN_STATUS_RUNNING)
    assert (run.status, run.status_message) == (resources_pb2.RUN_STATUS_FAILED, "out of memory")
    one.wire.call("DeleteRun", name=one.name, fence=True)
    response = next(watching)
    assert (list(response.runs), list(response.gone)) == ([], [one.name])


def test_a_watch_of_nothing_answers_at_once(watch: New) -> None:
    assert next(watch()) == run_service_pb2.WatchRunsResponse()


def test_a_run_that_meets_the_filter_no_longer_is_gone_from_the_watch(watch: New, new_training: New) -> None:
    training, other = new_training(), new_training("other")
    other.open()
    training.open()
    watching = watch(filter="status = RUNNING AND name : runs/run")
    assert [run.name for run in next(watching).runs] == [training.name]
    other.close()
    training.close()
    response = next(watching)
    assert (list(response.runs), list(response.gone)) == ([], [training.name])
    training.open()
    assert [run.name for run in next(watching).runs] == [training.name]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"parent": "nobody"}, "MALFORMED_NAME"), ({"parent": "projects/-", "filter": "x"}, "INVALID_FILTER")],
)
def test_a_wrong_watch_is_refused(wire: Any, fields: dict[str, str], reason: str) -> None:
    assert wire.refused("WatchRuns", **fields).reason == reason


# --- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("paths", "given", "after"),
    [
        (["labels"], {"c": "3"}, {"c": "3"}),
        (["labels"], {}, {}),
        (["labels.a"], {"a": "9", "b": "not named by the mask"}, {"a": "9", "b": "2"}),
        (["labels.c"], {"c": "3"}, {"a": "1", "b": "2", "c": "3"}),
        (["labels.a"], {}, {"b": "2"}),
        (["labels.missing"], {}, {"a": "1", "b": "2"}),
        (["labels.a", "labels.opt.name"], {"opt.name": "adam"}, {"b": "2", "opt.name": "adam"}),
    ],
)
def test_an_update_changes_the_labels_that_the_mask_names(
    new_training: New, paths: list[str], given: dict[str, str], after: dict[str, str]
) -> None:
    training = new_training()
    before = training.open(labels={"a": "1", "b": "2"}).run
    run = {"name": training.name, "labels": given}
    changed = training.wire.call("UpdateRun", run=run, update_mask={"paths": paths}).run
    assert dict(changed.labels) == after
    assert training.run() == changed
    changed.labels.clear()
    changed.labels.update(before.labels)
    assert changed == before, "and nothing else"
    training.take()


@pytest.mark.parametrize("path", ["status", "name", "config", "label", "labels.", "labelsa", "scale", "*"])
def test_a_mask_of_anything_but_labels_is_refused_and_nothing_changes(new_training: New, path: str) -> None:
    training = new_training()
    training.open(labels={"a": "1"})
    fields = {"run": {"name": training.name, "status_message": "mine"}, "update_mask": {"paths": ["labels.a", path]}}
    refused = training.wire.refused("UpdateRun", **fields)
    assert (refused.reason, refused.metadata, refused.fields) == ("INVALID_UPDATE_MASK", {"path": path}, ["update_mask"])
    assert dict(training.run().labels) == {"a": "1"}


def test_an_update_without_a_mask_is_refused(training: Any) -> None:
    refused = training.wire.refused("UpdateRun", run={"name": training.name, "labels": {"a": "1"}})
    assert refused.reason == "INVALID_UPDATE_MASK"
    assert "name `labels` or `labels.KEY`" in refused.message


@pytest.mark.parametrize("labels", [{"k": "v" * 257}, {"a b": ""}, {f"k{i}": "" for i in range(65)}])
def test_labels_beyond_the_limits_are_refused_and_nothing_changes(training: Any, labels: dict[str, str]) -> None:
    run = {"name": training.name, "labels": labels}
    refused = training.wire.refused("UpdateRun", run=run, update_mask={"paths": ["labels"]})
    assert (refused.reason, refused.fields) == ("INVALID_LABELS", ["run.labels"])
    assert dict(training.run().labels) == {}


def test_the_labels_of_an_unknown_run_can_not_be_changed(wire: Any, project: str) -> None:
    run = {"name": f"projects/{project}/runs/nobody"}
    assert wire.refused("UpdateRun", run=run, update_mask={"paths": ["labels"]}).reason == "RUN_NOT_FOUND"


# --- deleting ----------------------------------------------------------------------------------------------------------


def test_the_session_of_a_deleted_run_is_told_so_at_its_next_step(training: Any, wire: Any) -> None:
    training.take(5)
    held = wire.refused("DeleteRun", name=training.name)
    assert (held.code, held.reason) == (9, "RUN_HELD")
    assert held.metadata == {"name": training.name, "session": alias(session_key(training.session))}
    training.take(1)
    wire.call("DeleteRun", name=training.name, fence=True)
    assert wire.refused("GetRun", name=training.name).reason == "RUN_NOT_FOUND"
    stream = wire.stream()
    (result,) = stream.take(training.request())
    assert (result.error.reason, dict(result.error.metadata)) == (
        errors_pb2.RUN_DELETED,
        {"name": training.name, "session": str(training.session)},
    )
    stream.close()
    for method, fields in [
        ("Step", {"step": 7, "reductions": training.request().reductions}),
        ("Flush", {}),
        ("CloseSession", {"status": "RUN_STATUS_FINISHED"}),
        ("OpenSession", {"name": training.name}),
    ]:
        refused = wire.refused(method, session=training.session, **fields)
        assert (refused.code, refused.reason) == (5, "RUN_DELETED"), method
        assert training.name in refused.message
    assert wire.refused("DeleteRun", name=training.name).reason == "RUN_NOT_FOUND"


def test_a_new_run_in_the_place_of_a_deleted_one_begins_empty(new_training: New) -> None:
    training = new_training()
    training.open(labels={"a": "1"})
    training.take(5)
    training.wire.call("DeleteRun", name=training.name, fence=True)
    training.rewind(0)
    opened = training.open()
    assert (opened.last_step, opened.run.session_count, dict(opened.run.labels)) == (0, 1, {})
    assert training.series() == []
    training.take(3)


# --- history -----------------------------------------------------------------------------------------------------------


def test_the_history_is_what_was_sent_and_what_was_answered(new_training: New) -> None:
    training = new_training(config=TunerConfig(scale_groups=("a", "b")))
    training.open()
    sent, answered = [], []
    for _ in range(20):
        sent.append(training.request(base_lr=0.5))
        answered.append(training.expect(training.wire.start("Step", sent[-1]).result))
    training.flush()
    records = training.series()
    assert [record.step for record in records] == list(range(1, 21))
    for record, request, result in zip(records, sent, answered, strict=True):
        assert record.reductions == request.reductions
        assert (record.base_lr, record.outcome, record.branch) == (0.5, result.outcome, 0)
        assert list(record.scale) == list(result.scale)
        assert all(map(math.isfinite, record.h))
    times = [record.time.ToNanoseconds() for record in records]
    assert times == sorted(times)


@pytest.fixture
def hundred(training: Any) -> Any:
    """A run of a hundred steps, in several commits."""
    for _ in range(4):
        training.take(25)
        training.flush()
    return training


@pytest.mark.parametrize("size", [1, 7, 33, 100, 1000])
def test_pages_of_a_history_are_the_whole_of_it(wire: Any, hundred: Any, size: int) -> None:
    listed = list(pages(wire, "QuerySeries", "records", name=hundred.name, page_size=size))
    assert [record for page in listed for record in page] == hundred.series()
    assert [len(page) for page in listed] == [min(size, 100 - start) for start in range(0, 100, size)]


@pytest.mark.parametrize(
    ("fields", "first", "last"),
    [
        ({}, 1, 100),
        ({"first_step": 1}, 1, 100),
        ({"first_step": 40}, 40, 100),
        ({"last_step": 30}, 1, 30),
        ({"first_step": 20, "last_step": 30}, 20, 30),
        ({"first_step": 50, "last_step": 50}, 50, 50),
        ({"first_step": 90, "last_step": 500}, 90, 100),
        ({"first_step": 90, "last_step": 2**64 - 1}, 90, 100),
        ({"first_step": 101}, 1, 0),
        ({"first_step": 2**62}, 1, 0),
    ],
)
def test_a_range_of_a_history_has_both_its_ends(hundred: Any, fields: dict[str, int], first: int, last: int) -> None:
    assert [record.step for record in hundred.series(**fields)] == list(range(first, last + 1))
    in_pages = [
        record
        for page in pages(hundred.wire, "QuerySeries", "records", name=hundred.name, page_size=9, **fields)
        for record in page
    ]
    assert in_pages == hundred.series(**fields)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"first_step": 5, "last_step": 4}, "first_step"),
        ({"first_step": 2**64 - 1}, "first_step"),
        ({"first_step": 2**64 - 1, "last_step": 2**64 - 1}, "first_step"),
        ({"page_size": -1}, "page_size"),
        ({"branch": 1}, "branch"),
        ({"branch": 2**32 - 1}, "branch"),
    ],
)
def test_a_range_that_can_not_be_is_refused_with_its_field(training: Any, fields: dict[str, int], field: str) -> None:
    refused = training.wire.refused("QuerySeries", name=training.name, **fields)
    assert (refused.code, refused.reason, refused.fields) == (3, "INVALID_RANGE", [field])


@pytest.mark.parametrize("fields", [{"first_step": 2}, {"last_step": 9}, {"branch": 1}])
def test_a_page_token_of_another_range_is_refused(new_training: New, fields: dict[str, int]) -> None:
    training = new_training()
    training.open()
    training.take(10)
    training.open(after_step=5)
    token = training.wire.call("QuerySeries", name=training.name, page_size=2).next_page_token
    refused = training.wire.refused("QuerySeries", name=training.name, page_token=token, **fields)
    assert (refused.reason, refused.fields) == ("INVALID_PAGE_TOKEN", ["page_token"])


def test_a_page_has_a_thousand_steps_and_never_more_than_ten_thousand(new_training: New) -> None:
    training = new_training()
    training.open()
    stream = training.wire.stream()
    for first in range(1, 10_002, 1_000):
        for result in stream.take(*(training.request(step=step) for step in range(first, min(first + 1_000, 10_002)))):
            assert not result.HasField("error")
    stream.close()
    assert training.flush() == 10_001
    assert len(training.series()) == 1_000
    assert len(training.series(page_size=2_000_000_000)) == 10_000
