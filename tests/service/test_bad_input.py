"""Bad input of any kind gets one clear error with a stable reason, and loses no stored step."""

import math
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import grpc
import pytest

from mechanicd.client import (
    ConfigMismatch,
    InvalidArgument,
    MechanicdError,
    Reductions,
    ResumeError,
    Session,
    SessionError,
    StepConflict,
    TunerConfig,
    TunerState,
    connect,
    open_run,
)
from mechanicd.client._transport import translate
from mechanicd.tuner import Tuner
from mechanicd.v1 import resources_pb2, run_service_pb2, tuner_service_pb2

GOOD = Reductions(-1.0, 0.5, 1.0, 2.0)


@pytest.fixture
def session(server: Any, project: str) -> Any:
    """A run with ten durable steps. At the end, each test checks that they are still there and that the run accepts another."""
    opened = open_run(server.target, "run", project=project, start=0, on_outage="raise")
    for _ in range(10):
        opened.step(GOOD)
    opened.flush()
    yield opened
    opened.step(GOOD)
    opened.flush()
    opened.close()
    with connect(server.target) as client:
        series = client.call("QuerySeries", run_service_pb2.QuerySeriesRequest(name=opened.name)).records
    assert [record.step for record in series] == list(range(1, opened.state.step + 1))
    assert series[-1].scale[0] == opened.scales[0]


def rejected(server: Any, method: str, request: Any) -> MechanicdError:
    with connect(server.target) as client, pytest.raises(MechanicdError) as caught:
        client.call(method, request)
    assert caught.value.message
    return caught.value


def step(session: Any, number: int, reductions: Reductions = GOOD) -> tuner_service_pb2.StepRequest:
    fields = {name: [value] for name, value in reductions._asdict().items()}
    return tuner_service_pb2.StepRequest(
        session=session._connection.opener.session, step=number, reductions=resources_pb2.Reductions(**fields)
    )


def test_an_unknown_run(server: Any, project: str) -> None:
    name = f"projects/{project}/runs/nobody"
    for method, request in (
        ("GetRun", run_service_pb2.GetRunRequest(name=name)),
        ("DeleteRun", run_service_pb2.DeleteRunRequest(name=name)),
        ("QuerySeries", run_service_pb2.QuerySeriesRequest(name=name)),
    ):
        error = rejected(server, method, request)
        assert error.reason == "RUN_NOT_FOUND"
        assert error.metadata == {"name": name}


@pytest.mark.parametrize(
    "name", ["", "run", "projects/p/runs/", "projects/p q/runs/r", "projects/p/runs/-r", "projects/p/runs/ü"]
)
def test_a_malformed_name(server: Any, name: str) -> None:
    error = rejected(server, "OpenSession", tuner_service_pb2.OpenSessionRequest(name=name))
    assert error.reason == "MALFORMED_NAME"
    assert "expected" in error.message or "characters" in error.message
    assert isinstance(error, ValueError)


def test_a_malformed_name_is_rejected_before_anything_is_sent() -> None:
    with pytest.raises(InvalidArgument) as caught:
        open_run("127.0.0.1:1", "no spaces", start=0)
    assert caught.value.reason == "MALFORMED_NAME"


def test_a_wrong_number_of_scale_groups(session: Session, server: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        session.begin([GOOD, GOOD])
    assert caught.value.reason == "GROUP_COUNT_MISMATCH"
    request = step(session, 11)
    request.reductions.g_norm_sq.append(1.0)
    error = rejected(server, "Step", request)
    assert error.reason == "GROUP_COUNT_MISMATCH"
    assert error.metadata == {"expected": "1", "received": "2"}


@pytest.mark.parametrize("field", ["g_norm_sq", "x_norm_sq"])
def test_negative_squares(session: Session, server: Any, field: str) -> None:
    bad = GOOD._replace(**{field: -1e-9})
    with pytest.raises(InvalidArgument) as caught:
        session.begin(bad)
    assert caught.value.reason == "NEGATIVE_SQUARE"
    error = rejected(server, "Step", step(session, 11, bad))
    assert error.reason == "NEGATIVE_SQUARE"
    assert field in error.message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", Reductions._fields)
def test_a_non_finite_scalar_is_recorded_and_logged_but_never_enters_the_tuner(
    session: Session, server: Any, field: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    if value < 0 and field.endswith("_sq"):
        value = math.nan
    before = session.state
    assert session.step(GOOD._replace(**{field: value})) == before.scale[0]
    assert session.state.rows == before.rows
    assert "[NON_FINITE_REDUCTIONS]" in caplog.text
    session.flush()
    with connect(server.target) as client:
        request = run_service_pb2.QuerySeriesRequest(name=session.name, first_step=11)
        (record,) = client.call("QuerySeries", request).records
    assert record.outcome == resources_pb2.STEP_OUTCOME_NON_FINITE
    assert getattr(record.reductions, field)[0] == pytest.approx(value, nan_ok=True)
    assert list(record.scale) == list(before.scale)


@pytest.mark.parametrize("number", [0, 12, 2**40])
def test_a_step_out_of_order(session: Session, server: Any, number: int) -> None:
    error = rejected(server, "Step", step(session, number))
    assert error.reason == "STEP_OUT_OF_ORDER"
    assert error.metadata == {"expected": "11", "received": str(number)}
    assert isinstance(error, SessionError)


@pytest.mark.parametrize("number", [1, 9, 10])
def test_a_repeated_step(session: Session, server: Any, number: int) -> None:
    oracle = Tuner()
    state = oracle.init()
    for _ in range(number):
        state = oracle.update(state, GOOD)
    with connect(server.target) as client:
        same = client.call("Step", step(session, number)).result
    assert tuple(same.scale) == state.scale
    error = rejected(server, "Step", step(session, number, GOOD._replace(delta_dot_g=-2.0)))
    assert isinstance(error, StepConflict)
    assert error.reason == "STEP_CONFLICT"


def test_a_config_that_differs_from_that_of_the_run(session: Session, server: Any, project: str) -> None:
    with pytest.raises(ConfigMismatch) as caught:
        open_run(server.target, "run", project=project, config=TunerConfig(s_decay=0.1, betas=(0.9,)))
    assert caught.value.reason == "CONFIG_MISMATCH"
    assert set(caught.value.metadata) == {"s_decay", "betas"}
    assert "0.01 ≠ 0.1" in caught.value.message


def test_a_setting_out_of_range(server: Any, project: str) -> None:
    config = resources_pb2.TunerConfig(betas=[1.5])
    error = rejected(
        server, "OpenSession", tuner_service_pb2.OpenSessionRequest(name=f"projects/{project}/runs/r", config=config)
    )
    assert error.reason == "INVALID_CONFIG"
    assert "1.5" in error.message


HUGE = {
    "groups": (
        {"config": {"scale_groups": [f"g{index}" for index in range(65_535)] + ["g65534"]}},
        "INVALID_CONFIG",
        "'g65534'",
    ),
    "too many groups": ({"config": {"scale_groups": ["g"] * 300_000}}, "INVALID_CONFIG", "more than 65,536"),
    "betas": ({"config": {"betas": [0.5] * 300_000}}, "INVALID_CONFIG", "more than 64"),
    "read mask": ({"read_mask": {"paths": ["session"] * 300_000}}, "INVALID_READ_MASK", "at most 128"),
    "labels": ({"labels": {f"k{index}": "v" for index in range(300_000)}}, "INVALID_LABELS", "300000 labels"),
}


@pytest.mark.parametrize("case", HUGE)
def test_a_huge_request_is_refused_for_its_size_while_others_train(
    case: str, session: Session, server: Any, project: str
) -> None:
    fields, reason, said = HUGE[case]
    request = tuner_service_pb2.OpenSessionRequest(name=f"projects/{project}/runs/huge", **fields)
    error = rejected(server, "OpenSession", request)
    assert error.reason == reason
    assert said in error.message
    session.step(GOOD)


def test_a_huge_update_is_refused_for_its_size(session: Session, server: Any) -> None:
    labels = {f"k{index}": "v" for index in range(100_000)}
    request = run_service_pb2.UpdateRunRequest(run=resources_pb2.Run(name=session.name, labels=labels))
    request.update_mask.paths.append("labels")
    assert rejected(server, "UpdateRun", request).reason == "INVALID_LABELS"
    request.update_mask.paths.extend(["labels"] * 100_000)
    error = rejected(server, "UpdateRun", request)
    assert error.reason == "INVALID_UPDATE_MASK"
    assert "100001 paths" in error.message
    assert "100000 labels" in error.message


def test_a_start_step_the_server_does_not_have(session: Session, server: Any, project: str) -> None:
    with pytest.raises(ResumeError) as caught:
        open_run(server.target, "run", project=project, start=99)
    assert caught.value.reason == "RESUME_STEP_UNKNOWN"
    assert caught.value.metadata == {"requested": "99", "last_step": "10"}


def test_a_damaged_checkpoint(session: Session, server: Any) -> None:
    damaged = bytearray(session.state.to_bytes())
    damaged[40] ^= 1
    request = tuner_service_pb2.OpenSessionRequest(name=session.name, tuner_state=bytes(damaged))
    assert rejected(server, "OpenSession", request).reason == "INVALID_TUNER_STATE"
    with pytest.raises(ValueError, match="checksum"):
        TunerState.from_bytes(bytes(damaged), TunerConfig())


def test_an_unknown_session(server: Any) -> None:
    error = rejected(server, "Step", tuner_service_pb2.StepRequest(session=12345, step=1))
    assert error.reason == "SESSION_UNKNOWN"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--grpc", "0.0.0.0:0"), "ADDRESS_NOT_LOOPBACK"),
        (("--grpc", "nonsense"), "MALFORMED_ADDRESS"),
        (("--store", "sqlite:////no/such/folder/x.db"), "STORE_NOT_WRITABLE"),
        (("--store", "mysql://x"), "STORE_NOT_WRITABLE"),
    ],
)
def test_a_server_that_can_not_start_with_these_options(
    options: tuple[str, ...], reason: str, tmp_path: Path, run_cli: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    defaults = ("--grpc", "127.0.0.1:0", "--store", f"sqlite:///{tmp_path / 'x.db'}")
    done = run_cli("serve", *defaults[2 if options[0] == "--grpc" else 0 : 4 if options[0] == "--grpc" else 2], *options)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.endswith(f"[{reason}]\n")
    assert "Traceback" not in done.stderr


def test_a_port_in_use(server: Any, tmp_path: Path, run_cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_cli("serve", "--grpc", server.target, "--store", f"sqlite:///{tmp_path / 'x.db'}")
    assert done.returncode == 1
    assert "[PORT_IN_USE]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_in_use_by_another_server(server: Any, run_cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = run_cli("serve", "--grpc", "127.0.0.1:0", "--store", f"sqlite:///{server.database}")
    assert done.returncode == 1
    assert "[STORE_IN_USE]" in done.stderr


def test_a_store_of_a_newer_mechanicd(tmp_path: Path, run_cli: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    path = tmp_path / "newer.db"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE treasure (gold INTEGER)")
    database.execute("INSERT INTO treasure VALUES (7)")
    database.execute("PRAGMA user_version = 99")
    database.commit()
    database.close()
    done = run_cli("serve", "--grpc", "127.0.0.1:0", "--store", f"sqlite:///{path}", "--json")
    assert done.returncode == 1
    assert '"reason": "STORE_SCHEMA_TOO_NEW"' in done.stderr
    database = sqlite3.connect(path)
    assert database.execute("SELECT gold FROM treasure").fetchall() == [(7,)]
    assert database.execute("PRAGMA user_version").fetchone() == (99,)
    database.close()


SERVICES = [(tuner_service_pb2, "TunerService"), (run_service_pb2, "RunService")]
NO_MESSAGES = {"no protobuf": b"\xff" * 9, "a cut one": b"\x0a\x7fabc", "no UTF-8": b"\x0a\x02\xc3\x28", "a group": b"\x0b"}


def answered(channel: Any, method: Any, data: bytes) -> list[bytes]:
    """The answers to bytes that are sent as they are."""
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    start = getattr(channel, shape)(f"/{method.containing_service.full_name}/{method.name}")
    answer = start(iter([data]) if method.client_streaming else data, timeout=20)
    return list(answer) if method.server_streaming else [answer]


@pytest.mark.parametrize("data", NO_MESSAGES.values(), ids=NO_MESSAGES)
def test_bytes_that_are_no_request_are_refused_by_name(data: bytes, server: Any) -> None:
    services = [module.DESCRIPTOR.services_by_name[name] for module, name in SERVICES]
    with grpc.insecure_channel(server.target) as channel:
        for method in (method for service in services for method in service.methods):
            begins_with_text = any(field.number == 1 and field.type == field.TYPE_STRING for field in method.input_type.fields)
            if data == NO_MESSAGES["no UTF-8"] and not begins_with_text:
                continue
            with pytest.raises(grpc.RpcError) as caught:
                answered(channel, method, data)
            error = translate(cast(Any, caught.value), server.target)
            assert (caught.value.code(), error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_REQUEST"), method.name
            assert method.input_type.full_name in error.message
