"""Arguments as programs get them wrong: each is refused by name before anything changes. Numbers of any kind are taken."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mechanicd.client import (
    InvalidArgument,
    LocalSession,
    Reductions,
    Session,
    TunerConfig,
    TunerState,
    connect,
    open_run,
)
from mechanicd.client.framework import Run, check_settings
from mechanicd.tuner import ReductionsError, Tuner
from mechanicd.v1 import resources_pb2, run_service_pb2
from tests.support.settings import SETTINGS

NOWHERE = "127.0.0.1:1"
VALUES = [(-0.3, 0.7, 0.1, 0.2), (-1.1, 0.3, 2.3, 0.9), (0.4, -0.2, 0.7, 1.3)] * 10
SCALARS = {
    "float32": np.float32,
    "float16": np.float16,
    "float64": np.float64,
    "array": lambda value: np.array(value, np.float32),
    "torch.float32": lambda value: torch.tensor(value, dtype=torch.float32),
    "torch.bfloat16": lambda value: torch.tensor([value], dtype=torch.bfloat16),
    "int": round,
}


def status_of(target: str, name: str) -> Any:
    with connect(target) as client:
        return client.call("GetRun", run_service_pb2.GetRunRequest(name=name)).run


@pytest.fixture(params=["local", "server"])
def session(request: pytest.FixtureRequest) -> Any:
    """A session of each kind, before its first step."""
    if request.param == "local":
        yield LocalSession(TunerConfig())
        return
    server, project = request.getfixturevalue("server"), request.getfixturevalue("project")
    with open_run(server.target, "run", project=project, start=0, on_outage="raise") as opened:
        yield opened


# --- scalars


@pytest.mark.parametrize("kind", SCALARS)
def test_scalars_of_any_kind_are_float64_to_the_tuner(session: Session, kind: str) -> None:
    oracle = Tuner()
    state = oracle.init()
    for values in VALUES:
        given = Reductions(*map(SCALARS[kind], values))
        state = oracle.update(state, Reductions(*map(float, given)))
        scale = session.step(given)
        assert type(scale) is float
        assert scale == state.scale[0]
    assert session.state == state
    assert {type(number) for row in session.state.rows for column in row for number in column} == {float}


@pytest.mark.parametrize("kind", SCALARS)
def test_the_tuner_itself_takes_scalars_of_any_kind(kind: str) -> None:
    tuner = Tuner(TunerConfig(scale_groups=("a", "b")))
    given = [Reductions(*map(SCALARS[kind], values)) for values in VALUES[:2]]
    floats = [Reductions(*map(float, group)) for group in given]
    assert tuner.update(tuner.init(), given) == tuner.update(tuner.init(), floats)
    assert tuner.groups(given) == floats
    assert tuner.groups(floats) is floats, "floats are passed on as they are"


@pytest.mark.parametrize(
    "given",
    [
        *[None, 1, "x", 1.0, (1.0, 1.0, 1.0, 1.0), [(1.0, 1.0, 1.0, 1.0)], [None], {}, np.ones(4), torch.ones(1, 4)],
        *[Reductions(*(bad,) * 4) for bad in ("1", None, 1j, 10**400, True, b"1", torch.ones(2), np.ones(3), [1.0])],
        Reductions(1.0, 1.0, 1.0, "1"),
        [Reductions(np.float32(1), 1.0, 1.0, None)],
    ],
    ids=str,
)
def test_what_is_no_reductions_is_refused_and_nothing_changes(session: Session, given: Any) -> None:
    session.step(Reductions(*VALUES[0]))
    before = session.state
    with pytest.raises(ReductionsError) as refused:
        session.begin(given)
    assert refused.value.reason == ("GROUP_COUNT_MISMATCH" if type(given) is tuple else "INVALID_REDUCTIONS")
    assert isinstance(refused.value, InvalidArgument)
    assert session.state is before
    assert session.step(Reductions(*VALUES[1])) == Tuner().update(before, Reductions(*VALUES[1])).scale[0]


def test_a_negative_float32_square_is_refused_as_such(session: Session) -> None:
    with pytest.raises(ReductionsError) as refused:
        session.begin(Reductions(np.float32(1), 1.0, np.float32(-1), 1.0))
    assert refused.value.reason == "NEGATIVE_SQUARE"


@pytest.mark.parametrize(
    ("name", "value"), [("base_lr", "x"), ("base_lr", [1]), ("base_lr", 10**400), ("hold", "x"), ("hold", None)]
)
def test_the_other_arguments_of_a_step_are_checked_before_it(session: Session, name: str, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=name) as refused:
        session.begin(Reductions(*VALUES[0]), **{name: value})
    assert refused.value.reason == "INVALID_SETTING"
    session.begin(Reductions(*VALUES[0]), base_lr=np.float32(0.5), hold=np.False_)
    assert session.finish() == Tuner().update(Tuner().init(), Reductions(*VALUES[0])).scale


# --- close


@pytest.mark.parametrize("status", ["succeeded", "", 5, "FINISHED", ["finished"]])
def test_a_refused_status_leaves_the_session_open(server: Any, project: str, status: Any) -> None:
    session = open_run(server.target, "run", project=project, start=0)
    session.step(Reductions(*VALUES[0]))
    with pytest.raises(InvalidArgument) as refused:
        session.close(status)
    assert refused.value.reason == "INVALID_STATUS"
    session.step(Reductions(*VALUES[1]))
    session.close("finished")
    run = status_of(server.target, session.name)
    assert (run.status, run.durable_step) == (resources_pb2.RUN_STATUS_FINISHED, 2)


def test_a_local_session_refuses_the_same_status() -> None:
    with pytest.raises(InvalidArgument):
        LocalSession(TunerConfig()).close("succeeded")


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("caf\udce9.txt", r"caf\udce9.txt"),
        ("\ud800", r"\ud800"),
        (FileNotFoundError(2, "No such file", os.fsdecode(b"caf\xe9")), r"[Errno 2] No such file: 'caf\udce9'"),
        (None, ""),
        ("x\udcff" * 10**5, ""),
    ],
    ids=["a file name", "a surrogate", "an error", "None", "a long one"],
)
def test_a_message_of_any_text_closes_the_run(server: Any, project: str, message: Any, shown: str) -> None:
    session = open_run(server.target, "run", project=project, start=0)
    session.close("failed", message)
    run = status_of(server.target, session.name)
    assert run.status == resources_pb2.RUN_STATUS_FAILED
    assert shown in run.status_message


def test_an_exception_with_bytes_that_are_no_utf_8_reaches_the_caller(server: Any, project: str) -> None:
    name = os.fsdecode(b"/nonexistent/caf\xe9.txt")
    with pytest.raises(FileNotFoundError), open_run(server.target, "run", project=project, start=0) as session:
        Path(name).read_text()
    run = status_of(server.target, session.name)
    assert run.status == resources_pb2.RUN_STATUS_FAILED
    assert r"caf\udce9.txt" in run.status_message


class Mute(Exception):
    """An error of the user's own that can't say what it is."""

    def __str__(self) -> str:
        raise KeyError("no text")


@pytest.mark.parametrize(
    "error", [Mute(), KeyError(os.fsdecode(b"caf\xe9")), OSError(5, "\ud800\0"), ExceptionGroup("\udcff", [Mute()])]
)
def test_an_exception_of_any_text_reaches_the_caller(server: Any, project: str, error: Exception) -> None:
    with pytest.raises(type(error)), open_run(server.target, "run", project=project, start=0) as session:
        raise error
    run = status_of(server.target, session.name)
    assert run.status == resources_pb2.RUN_STATUS_FAILED
    assert run.status_message.startswith(f"{type(error).__name__}: ")


def test_an_exception_without_a_text_ends_the_process_as_it_would_have(server: Any, project: str) -> None:
    program = (
        "import sys; from mechanicd.client import open_run\n"
        "class Mute(Exception):\n    def __str__(self): raise KeyError(1)\n"
        "session = open_run(sys.argv[1], 'run', project=sys.argv[2], start=0)\nraise Mute\n"
    )
    command = [sys.executable, "-c", program, server.target, project]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "KeyError" not in done.stderr
    run = status_of(server.target, f"projects/{project}/runs/run")
    assert run.status == resources_pb2.RUN_STATUS_FAILED
    assert run.status_message.startswith("Mute: ")


@pytest.mark.parametrize("target", ["http://me:secret@h:1", "me:secret@h:50051", "dns://x,me:se@cret@h"])
def test_a_password_in_a_target_is_not_shown(target: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        connect(target)
    assert caught.value.reason == "INVALID_TARGET"
    assert "se" not in caught.value.message.partition(";")[0].replace("several", "")


def test_a_command_line_that_is_no_utf_8_trains(server: Any, project: str) -> None:
    program = (
        "import sys; from mechanicd.client import Reductions, open_run\n"
        "with open_run(sys.argv[1], 'run', project=sys.argv[2], start=0) as session: session.step(Reductions(-1, 1, 1, 1))"
    )
    done = subprocess.run(
        [sys.executable.encode(), b"-c", program.encode(), server.target.encode(), project.encode(), b"--data=caf\xe9"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run = status_of(server.target, f"projects/{project}/runs/run")
    assert run.durable_step == 1
    assert r"--data=caf\udce9" in run.command


# --- opening


BAD = {
    "deadline": ("INVALID_SETTING", [math.nan, -1, None, math.inf, "x", "1", 1e300, 10**400, [1], True, b"1"]),
    "labels": ("INVALID_LABELS", [["a"], "ab", 5, [("a", "b")], {"a": 1}, {"a": "\ud800"}, {"\ud800": "a"}, {1: "a"}, b"a"]),
    "on_outage": ("INVALID_OUTAGE_POLICY", ["panic", None, 5, ["local"]]),
    "project": ("MALFORMED_NAME", ["a b", 5, "\ud800", b"p"]),
}


def opening(name: str, value: Any) -> dict[str, Any]:
    return {"run": "run", name: value}


def cases(table: dict[str, tuple[str, list[Any]]]) -> list[Any]:
    return [
        pytest.param(name, value, reason, id=f"{name}-{value!r:.20}")
        for name, (reason, values) in table.items()
        for value in values
    ]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    cases(
        BAD
        | {
            "start": ("INVALID_SETTING", [-1, 1.5, "0", 2**64, True, math.nan, b"", [], 2**62 + 1]),
            "config": ("INVALID_CONFIG", ["x", {}, 5, TunerState, {"s_decay": 0.1}]),
            "run": ("MALFORMED_NAME", [5, "a b", "\ud800", None, b"run"]),
        }
    ),
)
def test_open_run_refuses_before_it_calls_the_server(name: str, value: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        open_run(NOWHERE, **opening(name, value))
    assert refused.value.reason == reason


@pytest.mark.parametrize("start", [0, np.int64(0), None])
def test_open_run_takes_a_step_of_any_kind(server: Any, project: str, start: Any) -> None:
    session = open_run(server.target, "run", project=project, start=start)
    assert session.state.step == 0
    session.close()


@pytest.mark.parametrize(
    "target", [5, b"127.0.0.1:1", True, ["127.0.0.1:1"], "\ud800:1", "unix:\ud800", "x" * 300 + ":1", "a..b:1"]
)
def test_what_is_no_target_is_refused_by_name(target: Any) -> None:
    with pytest.raises(InvalidArgument) as refused:
        connect(target)
    assert refused.value.reason == "INVALID_TARGET"


@pytest.mark.parametrize("timeout", ["x", math.nan, [1]])
def test_flush_refuses_what_is_no_time(server: Any, project: str, timeout: Any) -> None:
    with open_run(server.target, "run", project=project, start=0) as session:
        session.step(Reductions(*VALUES[0]))
        with pytest.raises(InvalidArgument):
            session.flush(timeout)
        assert session.flush(math.inf) == 1


# --- mechanize, in every framework

SERVED = SETTINGS | {"run": "run", "target": NOWHERE}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    cases(
        BAD
        | {
            "run": ("MALFORMED_NAME", [5, "a b", "\ud800", b"run"]),
            "betas": ("INVALID_CONFIG", [None, 0.9, "0.9", 5, [None], 10**400, {}]),
            "max_scale": ("INVALID_SETTING", ["x", 0, -1, math.nan, 10**400, -(10**400), [1.0], True, b"1", 1j]),
            "target": ("INVALID_TARGET", [5, b"127.0.0.1:1", "http://127.0.0.1:1", "\ud800:1"]),
        }
    ),
)
def test_mechanize_refuses_before_the_first_step(name: str, value: Any, reason: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_settings(**SERVED | {name: value})
    assert refused.value.reason == reason


def test_settings_of_other_kinds_of_number_are_taken() -> None:
    settings = check_settings(**SERVED | {"deadline": np.float32(1), "max_scale": torch.tensor(2.0), "betas": np.array([0.5])})
    assert (settings.run.deadline, settings.max_scale, settings.config.betas) == (1.0, 2.0, (0.5,))
    assert {type(settings.run.deadline), type(settings.max_scale)} == {float}
    assert check_settings(**SERVED | {"max_scale": math.inf}).max_scale == math.inf


def test_a_run_that_was_closed_with_a_refused_status_goes_on() -> None:
    run = Run("run", None, None, None, "local", 2.0)
    session = run.open(TunerConfig())
    with pytest.raises(InvalidArgument):
        run.close("succeeded", "")
    assert not run.closed
    session.step(Reductions(*VALUES[0]))
