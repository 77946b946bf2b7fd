"""A bad request names all of its bad fields at once, each with a reason of its own."""

import math
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from mechanicd.tuner import Tuner, TunerConfig
from mechanicd.v1 import errors_pb2, tuner_service_pb2

BAD_NAME = "projects/no spaces/runs/r"


def violations(error: Any) -> dict[str, tuple[str, str]]:
    """The bad fields of a refused call by their path: reason and description of each."""
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    bad = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad)
    return {each.field: (each.reason, each.description) for each in bad.field_violations}


OPENS: list[tuple[dict[str, Any], dict[str, str]]] = [
    (
        {"name": BAD_NAME, "config": {"betas": [2.0]}, "labels": {"a b": ""}},
        {"name": "MALFORMED_NAME", "config.betas": "INVALID_CONFIG", "labels": "INVALID_LABELS"},
    ),
    (
        {"config": {"betas": [0.9, math.nan], "s_init": -1.0, "eps": 0.0, "s_decay": 1e9, "initial_wealth": 0.0}},
        {f"config.{field}": "INVALID_CONFIG" for field in ("s_decay", "s_init", "eps", "initial_wealth", "betas")},
    ),
    (
        {"config": {"convention": 99, "scale_groups": ["a", "a"]}},
        {"config.convention": "INVALID_CONFIG", "config.scale_groups": "INVALID_CONFIG"},
    ),
    (
        {"config": {"betas": [0.0]}, "tuner_state": b"no state"},
        {"config.betas": "INVALID_CONFIG", "tuner_state": "INVALID_TUNER_STATE"},
    ),
    (
        {"labels": {"k": "v" * 257}, "read_mask": {"paths": ["session", "sessions", "run.nothing"]}, "name": ""},
        {"name": "MALFORMED_NAME", "labels": "INVALID_LABELS", "read_mask": "INVALID_READ_MASK"},
    ),
]


@pytest.mark.parametrize(("fields", "expected"), OPENS)
def test_a_refused_open_names_every_bad_field(
    wire: Any, project: str, fields: dict[str, Any], expected: dict[str, str]
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        wire.call("OpenSession", **{"name": f"projects/{project}/runs/r"} | fields)
    found = violations(caught.value)
    assert {field: reason for field, (reason, _) in found.items()} == expected
    assert all(description for _, description in found.values())
    refused = wire.refusal(caught.value)
    assert refused.reason == next(iter(expected.values())), "the first bad field's"
    assert all(field in refused.message for field in expected), "a person reads the message alone"
    assert list(wire.call("ListRuns", parent=f"projects/{project}").runs) == []


def test_a_state_that_only_does_not_fit_a_bad_config_is_not_accused(wire: Any, project: str) -> None:
    state = Tuner(TunerConfig(betas=(0.9,))).init().to_bytes()
    refused = wire.refused("OpenSession", name=f"projects/{project}/runs/r", config={"betas": [0.9, 7.0]}, tuner_state=state)
    assert refused.fields == ["config.betas"]


def test_what_is_wrong_with_a_stored_run_is_named_at_once_too(new_training: Any) -> None:
    training = new_training()
    training.open(labels={f"a{i}": "" for i in range(40)})
    refused = training.wire.refused(
        "OpenSession", name=training.name, config={"s_decay": 0.5}, labels={f"b{i}": "" for i in range(40)}
    )
    assert (refused.reason, refused.fields) == ("CONFIG_MISMATCH", ["config", "labels"])
    assert refused.metadata == {"s_decay": "0.01 ≠ 0.5"}


def test_names_and_texts_of_any_length_do_not_lose_a_bad_field(wire: Any) -> None:
    """Errors travel in trailers, which gRPC caps at 8 KiB."""
    refused = wire.refused(
        "OpenSession",
        name="größe" * 3_000,
        labels={"größe" * 2_000: "v"},
        config={"scale_groups": ["größe" * 3_000], "betas": [2.0] * 64, "s_init": -1.0, "eps": 9.0, "s_decay": -1.0},
        tuner_state=b"x" * 10_000,
        read_mask={"paths": ["größe" * 2_000]},
    )
    assert refused.reason == "MALFORMED_NAME"
    settings = {f"config.{field}" for field in ("s_decay", "s_init", "eps", "betas", "scale_groups")}
    assert set(refused.fields) == {"name", *settings, "labels", "tuner_state", "read_mask"}


STEPS: list[tuple[dict[str, list[float]], dict[str, str]]] = [
    (
        {"delta_dot_g": [0.0], "delta_dot_x": [0.0], "g_norm_sq": [-1.0], "x_norm_sq": [-2.0]},
        {"reductions.g_norm_sq": "NEGATIVE_SQUARE", "reductions.x_norm_sq": "NEGATIVE_SQUARE"},
    ),
    (
        {"delta_dot_g": [0.0], "delta_dot_x": [0.0, 0.0], "g_norm_sq": [], "x_norm_sq": [1.0]},
        {"reductions.delta_dot_x": "GROUP_COUNT_MISMATCH", "reductions.g_norm_sq": "GROUP_COUNT_MISMATCH"},
    ),
    (
        {"delta_dot_g": [], "delta_dot_x": [0.0], "g_norm_sq": [1.0], "x_norm_sq": [-1.0]},
        {"reductions.delta_dot_g": "GROUP_COUNT_MISMATCH", "reductions.x_norm_sq": "NEGATIVE_SQUARE"},
    ),
]


@pytest.mark.parametrize(("reductions", "expected"), STEPS)
def test_a_refused_step_names_every_bad_field_in_a_call_and_in_a_stream(
    training: Any, reductions: dict[str, list[float]], expected: dict[str, str]
) -> None:
    step = tuner_service_pb2.StepRequest(session=training.session, step=1, reductions=reductions)
    with pytest.raises(grpc.RpcError) as caught:
        training.wire.start("Step", step)
    found = violations(caught.value)
    assert {field: reason for field, (reason, _) in found.items()} == expected
    stream = training.wire.stream()
    (result,) = stream.take(step)
    stream.close()
    assert errors_pb2.ErrorReason.Name(result.error.reason) == next(iter(expected.values()))
    assert dict(result.error.bad_fields) == {field: description for field, (_, description) in found.items()}
    training.take()


def test_nan_beside_a_negative_square_hides_nothing(new_training: Any) -> None:
    training = new_training(config=TunerConfig(scale_groups=("a", "b")))
    training.open()
    zero = [0.0, 0.0]
    refused = training.wire.refused(
        "Step",
        session=training.session,
        step=1,
        reductions={"delta_dot_g": zero, "delta_dot_x": zero, "g_norm_sq": [math.nan, -1.0], "x_norm_sq": [-3.0, math.nan]},
    )
    assert (refused.reason, refused.fields) == ("NEGATIVE_SQUARE", ["reductions.g_norm_sq", "reductions.x_norm_sq"])
    assert refused.metadata == {"field": "g_norm_sq", "value": "-1.0"}


def test_a_step_out_of_order_names_the_step(training: Any) -> None:
    assert training.wire.refused("Step", session=training.session, step=7).fields == ["step"]


def test_queries_and_changes_name_every_bad_field(wire: Any, training: Any) -> None:
    run, bad = training.name, BAD_NAME
    cases: list[tuple[str, dict[str, Any], list[str]]] = [
        (
            "ListRuns",
            {"parent": "x", "filter": "status ~ 3", "page_size": -1, "page_token": "x"},
            ["parent", "filter", "page_size", "page_token"],
        ),
        ("WatchRuns", {"parent": "x", "filter": "("}, ["parent", "filter"]),
        (
            "UpdateRun",
            {"run": {"name": bad, "labels": {"a b": ""}}, "update_mask": {"paths": ["labels", "status"]}},
            ["run.name", "update_mask", "run.labels"],
        ),
        (
            "UpdateRun",
            {"run": {"name": run, "labels": {"a": "v" * 257}}, "update_mask": {"paths": ["labels.a", "x", "y"]}},
            ["update_mask", "run.labels"],
        ),
        ("ForkRun", {"source": "x", "name": bad}, ["source", "name"]),
        (
            "QuerySeries",
            {"name": bad, "first_step": 9, "last_step": 3, "page_size": -1, "page_token": "x"},
            ["name", "first_step", "page_size", "page_token"],
        ),
        ("QuerySeries", {"name": run, "first_step": 9, "last_step": 3, "branch": 4}, ["first_step", "branch"]),
    ]
    for method, fields, expected in cases:
        assert wire.refused(method, **fields).fields == expected, method


def test_a_state_that_is_too_large_to_commit_is_refused_at_once(wire: Any, project: str) -> None:
    config = {"betas": [0.9 + i / 1000 for i in range(64)], "scale_groups": [str(i) for i in range(8_193)]}
    refused = wire.refused("OpenSession", name=f"projects/{project}/runs/r", config=config)
    assert (refused.reason, refused.fields) == ("INVALID_CONFIG", ["config.betas", "config.scale_groups"])
    assert "524,288" in refused.message
