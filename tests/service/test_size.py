"""Answers about many runs, many scale groups and many steps: each fits into one message, and nothing is missing."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from mechanicd.runs import StepColumns
from mechanicd.service import Engine, _pages, _run_service
from mechanicd.store import open_store
from mechanicd.tuner import Reductions, TunerConfig, TunerState
from mechanicd.v1 import run_service_pb2

New = Callable[..., Any]
LIMIT = 4 * 2**20
"""What a gRPC client takes unless told otherwise."""
WIDE = TunerConfig(betas=(0.9,), scale_groups=tuple(f"model.layers.{i}.attention.weight" for i in range(1200)))


def test_hundreds_of_runs_with_1200_groups_are_listed_and_watched_in_messages_that_fit() -> None:
    store, state = open_store("sqlite:///:memory:"), TunerState.initial(WIDE)
    names = [f"projects/p/runs/{i:03}" for i in range(200)]
    for i in range(200):
        store.create("p", f"{i:03}", WIDE, state.to_bytes(), state.scale, 1)

    async def look() -> None:
        engine = Engine(store)
        runs = _run_service.RunService(engine)
        request = run_service_pb2.ListRunsRequest(parent="projects/p", page_size=1000)
        listed: list[str] = []
        while request.page_token or not listed:
            page = await runs.list_runs(request)
            assert page.ByteSize() < LIMIT
            request.page_token = page.next_page_token
            listed += [run.name for run in page.runs]
        assert listed == names
        watching = runs.watch_runs(run_service_pb2.WatchRunsRequest(parent="projects/p"))
        seen = [await anext(watching)]
        while seen[-1].more:
            seen.append(await anext(watching))
        assert len(seen) > 2
        assert all(response.ByteSize() < LIMIT for response in seen)
        assert [run.name for response in seen for run in response.runs] == names
        await watching.aclose()  # type: ignore[attr-defined]
        await engine.stop()

    asyncio.run(look())


def test_a_run_too_large_for_a_message_is_listed_and_watched_without_the_names_of_its_groups() -> None:
    huge = TunerConfig(betas=(0.9,), scale_groups=tuple(f"{i:0>256}" for i in range(16_500)))
    store = open_store("sqlite:///:memory:")
    for name, config in (("a", TunerConfig()), ("huge", huge), ("z", WIDE)):
        state = TunerState.initial(config)
        store.create("p", name, config, state.to_bytes(), state.scale, 1)

    async def look() -> None:
        engine = Engine(store)
        runs = _run_service.RunService(engine)
        request, found = run_service_pb2.ListRunsRequest(parent="projects/p"), list[Any]()
        while request.page_token or not found:
            page = await runs.list_runs(request)
            assert page.ByteSize() < LIMIT
            found, request.page_token = [*found, *page.runs], page.next_page_token
        watching = runs.watch_runs(run_service_pb2.WatchRunsRequest(parent="projects/p"))
        seen = [await anext(watching)]
        while seen[-1].more:
            seen.append(await anext(watching))
        assert all(response.ByteSize() < LIMIT for response in seen)
        for listed in (found, [run for response in seen for run in response.runs]):
            assert [len(run.scale) for run in listed] == [1, 16_500, 1200]
            assert [len(run.config.scale_groups) for run in listed] == [1, 0, 1200]
        whole = await runs.get_run(run_service_pb2.GetRunRequest(name="projects/p/runs/huge"))
        assert tuple(whole.run.config.scale_groups) == huge.scale_groups
        await watching.aclose()  # type: ignore[attr-defined]
        await engine.stop()

    asyncio.run(look())


def test_runs_that_are_gone_all_at_once_are_told_of_in_messages_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pages, "GONE_BYTES", 1000)
    store, config = open_store("sqlite:///:memory:"), TunerConfig()
    state = TunerState.initial(config)
    rows = [store.create("p", f"{i:03}", config, state.to_bytes(), state.scale, 1) for i in range(200)]

    async def look() -> None:
        engine = Engine(store)
        watching = _run_service.RunService(engine).watch_runs(run_service_pb2.WatchRunsRequest(parent="projects/p"))
        assert len((await anext(watching)).runs) == 200
        for row in rows[1:]:
            await engine.writer.call(store.delete, row.id)
        await engine.writer.call(store.set_labels, rows[0].id, {"left": "alone"})
        seen = [await anext(watching)]
        while seen[-1].more or not seen[-1].runs:
            seen.append(await anext(watching))
        assert all(response.ByteSize() < 1500 for response in seen)
        assert [name for response in seen for name in response.gone] == [f"projects/p/runs/{i:03}" for i in range(1, 200)]
        assert [run.labels["left"] for response in seen for run in response.runs] == ["alone"]
        await watching.aclose()  # type: ignore[attr-defined]
        await engine.stop()

    asyncio.run(look())


def bits(columns: list[Any]) -> list[Any]:
    """Values that can be compared: NaN is itself."""
    return [None if isinstance(value, float) and math.isnan(value) else value for value in columns]


@pytest.mark.parametrize("config", [None, TunerConfig(scale_groups=("body", "head"))], ids=["one group", "two groups"])
def test_steps_as_columns_are_the_steps_as_records(new_training: New, config: TunerConfig | None) -> None:
    training = new_training("run", config)
    training.open()
    training.take(9)
    nan = [Reductions(math.nan, 1.0, 1.0, 1.0)] * len(training.reductions(1))
    training.expect(training.wire.start("Step", training.request(nan, base_lr=0.5)).result, nan)
    training.expect(training.wire.start("Step", training.request(base_lr=0.0, hold=True)).result, hold=True)
    training.take(3)
    training.flush()
    training.wire.call("CloseSession", session=training.session, status="RUN_STATUS_FINISHED")
    training.wire.call("RewindRun", name=training.name, after_step=12)
    for branch, first in ((0, 1), (0, 5), (1, 1)):
        asked = {"name": training.name, "branch": branch, "first_step": first}
        records = training.wire.call("QuerySeries", **asked).records
        token, pages = "", []
        while token or not pages:
            page = training.wire.call("QuerySeries", **asked, as_columns=True, page_size=5, page_token=token)
            assert list(page.records) == []
            token = page.next_page_token
            pages.append(page.columns)

        def column(field: str, pages: list[Any] = pages) -> list[Any]:
            return bits([value for page in pages for value in getattr(page, field)])

        assert len(records) == {(0, 1): 12, (0, 5): 8, (1, 1): 2}[branch, first]
        assert column("step") == [record.step for record in records]
        assert column("time_ns") == [record.time.ToNanoseconds() for record in records]
        assert column("outcome") == [record.outcome for record in records]
        assert column("has_base_lr") == [record.HasField("base_lr") for record in records]
        assert column("base_lr") == [record.base_lr for record in records]
        for field in Reductions._fields:
            assert column(field) == bits([value for record in records for value in getattr(record.reductions, field)])
        for field in ("h", "scale"):
            assert column(field) == bits([value for record in records for value in getattr(record, field)])
    assert {*StepColumns._fields} - {"time"} <= {field.name for field in pages[0].DESCRIPTOR.fields}


def test_a_sketch_is_the_largest_s_of_each_stretch_of_each_run(new_training: New) -> None:
    runs = [new_training("a"), new_training("b", TunerConfig(scale_groups=("x", "y"))), new_training("c")]
    for training, steps in zip(runs, (40, 25, 0), strict=True):
        training.open()
        if steps:
            training.take(steps)
            training.flush()
    wire, names = runs[0].wire, [training.name for training in runs]
    sketches = wire.call("SketchRuns", names=[names[1], f"{names[0]}/no", names[0], names[2], names[1]]).sketches
    assert [sketch.name for sketch in sketches] == [names[1], names[0], names[2]]
    assert [list(sketch.scale) for sketch in sketches] == [
        [max(state.scale) for state in runs[1].states[1:]],
        [max(state.scale) for state in runs[0].states[1:]],
        [],
    ]
    (coarse,) = wire.call("SketchRuns", names=names[:1], points=3).sketches
    buckets = wire.call("QuerySeries", name=names[0], max_buckets=3).buckets
    assert list(coarse.scale) == [max(bucket.scale.max) for bucket in buckets]
    assert len(coarse.scale) == 3
    refused = wire.refused("SketchRuns", names=["nonsense"])
    assert (refused.reason, refused.fields) == ("MALFORMED_NAME", ["names[0]"])
    assert wire.refused("SketchRuns", names=names * 400).reason == "INVALID_RANGE"
