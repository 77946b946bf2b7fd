"""The client's token: where it comes from, where it may go, where it never shows, and what a server that refuses it means."""

import contextlib
import logging
import os
import pickle
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from mechanicd.client import (
    AccessDenied,
    MechanicdError,
    OnOutage,
    PermissionDenied,
    Reductions,
    Unauthenticated,
    _connection,
    _token,
    connect,
    open_run,
)
from mechanicd.client._address import Address
from mechanicd.torch import mechanize
from mechanicd.v1 import local_token, run_service_pb2
from tests.client.gate import Gate
from tests.client.test_outage import oracle, some_reductions
from tests.support.logs import about
from tests.support.servers import free_port

GOOD, OLD = f"mech_{'a' * 12}_{'G' * 43}", f"mech_{'b' * 12}_{'O' * 43}"
ONE = Reductions(-0.1, 0.0, 1.0, 4.0)
LIST = run_service_pb2.ListRunsRequest(parent="projects/-")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Of somebody who has no token, and no server of their own."""
    for name in (_token.TOKEN, _token.TOKEN_FILE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(_connection, "_BACKOFF_MOST", 0.2)
    return monkeypatch


@pytest.fixture
def gate(server: Any) -> Iterator[Gate]:
    with Gate(server.target, GOOD) as gate:
        yield gate


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The token's file, which the environment names."""
    file = tmp_path / "token"
    monkeypatch.setenv(_token.TOKEN_FILE, str(file))
    return file


def refused(target: str, **settings: Any) -> AccessDenied:
    with pytest.raises(AccessDenied) as caught:
        open_run(target, "refused", start=0, **settings)
    return caught.value


# --- where it comes from ------------------------------------------------------------------------------------------------


def test_each_call_and_each_stream_shows_the_token_of_the_moment(
    gate: Gate, file: Path, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.good |= {OLD}
    file.write_text(f"{OLD}\n")
    with connect(gate.target) as client:
        session = client.open_run("r", project=project, start=0)
        session.step(ONE)
        next(client.watch(run_service_pb2.WatchRunsRequest(parent=f"projects/{project}")))
        file.write_text(f"  {GOOD}\r\n")
        session.flush()
        monkeypatch.setenv(_token.TOKEN, OLD)  # this one comes first
        client.call("ListRuns", LIST)
        session.close()
    shown = dict(gate.seen)
    assert shown == {
        "OpenSession": OLD, "StreamSteps": OLD, "WatchRuns": OLD, "Flush": OLD, "ListRuns": OLD, "CloseSession": OLD,
    }  # fmt: skip
    assert ("Flush", GOOD) in gate.seen


def test_the_local_token_is_the_last_resort(gate: Gate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    local = local_token.path(gate.target)
    calls = (None, GOOD, OLD)
    for token in calls:
        if token == GOOD:
            local.parent.mkdir(parents=True)
            local.write_text(GOOD)
        if token == OLD:
            monkeypatch.setenv(_token.TOKEN, OLD)
        with connect(gate.target) as client, contextlib.nullcontext() if token == GOOD else pytest.raises(Unauthenticated):
            client.call("ListRuns", LIST)
    assert [token for _, token in gate.seen] == list(calls)
    monkeypatch.delenv(_token.TOKEN)
    for spoiled in ("", "no token", "x" * 10_000):  # a server of another user has nothing for this one
        local.write_text(spoiled)
        assert refused(gate.target).reason == "UNAUTHENTICATED"
    assert gate.seen[-1] == ("OpenSession", None)


@pytest.mark.parametrize("at", ["[::1]:7", "localhost:7", "dns:///localhost:7", "ipv4:127.0.0.1:7", "unix:/m.sock"])
def test_every_spelling_of_this_machine_finds_the_local_token(at: str) -> None:
    local = local_token.path(at)
    local.parent.mkdir(parents=True)
    local.write_text(GOOD)
    assert _token.header(Address(at), True) == (("authorization", f"Bearer {GOOD}"),)
    for other in ("192.0.2.1:7", "ipv4:192.0.2.1:7", "unix-abstract:7"):
        assert _token.header(Address(other), True) == ()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "No such file"), ("a folder", "no regular file"), ("a pipe", "no regular file"),
        ("/dev/zero", "no regular file"),
        ("forbidden", "denied"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_told_before_training(
    kind: str, said: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "a folder":
        file.mkdir()
    elif kind == "a pipe":
        os.mkfifo(file)
    elif kind == "/dev/zero":
        file.symlink_to(kind)
    elif kind == "forbidden":
        denied = PermissionError(13, "Permission denied")
        monkeypatch.setattr(_token, "_read", lambda path: (_ for _ in ()).throw(denied))
    error = refused("127.0.0.1:9")
    assert isinstance(error, Unauthenticated)
    assert (error.reason, said in error.message, str(file) in error.message) == ("TOKEN_FILE_UNUSABLE", True, True)


@pytest.mark.parametrize(
    "text",
    [
        f"{GOOD[:20]}\n{GOOD[20:]}", f"{GOOD[:20]} {GOOD[20:]}", f"Bearer {GOOD}", f"{GOOD}ß", f"{GOOD}\x1b[31m",
        f"{GOOD}\n{OLD}", f"{GOOD}\N{ZERO WIDTH SPACE}", f"{GOOD}\udcff", "\n", "-----BEGIN PRIVATE KEY-----", GOOD * 100,
        f"{GOOD}\r\nx: y",
    ],
)  # fmt: skip
@pytest.mark.parametrize("where", [_token.TOKEN, _token.TOKEN_FILE])
def test_what_is_no_token_is_named_and_not_shown(
    where: str, text: str, file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    if where == _token.TOKEN:
        monkeypatch.setenv(_token.TOKEN, text)
    error = refused("127.0.0.1:9")
    assert (error.reason, where in error.message) == ("TOKEN_MALFORMED", True)
    told = "".join(traceback.format_exception(error)) + "".join(capfd.readouterr())
    assert not any(part in told for part in ("GGGG", "OOOO", "PRIVATE", "x: y", "\x1b"))


# --- where it may go ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at", "private"),
    [
        ("127.0.0.1:1", True), ("127.9.9.9:1", True), ("[::1]:1", True), ("localhost:1", True), ("LOCALHOST:1", True),
        ("unix:/m.sock", True), ("unix-abstract:m", True), ("dns:///localhost:1", True), ("dns:localhost:1", True),
        ("ipv4:127.0.0.1:1", True), ("ipv6:[::1]:1", True), ("[::ffff:127.0.0.1]:1", True),
        ("10.0.0.1:1", False), ("0.0.0.0:1", False), ("host:1", False), ("localhost.example:1", False),
        ("127.0.0.1.example:1", False), ("ipv4:10.0.0.1:1", False), ("ipv4:127.0.0.1:1%2C10.0.0.1:1", False),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False), ("dns://10.0.0.1/localhost:1", False), ("dns:///localhost%2E.example:1", False),
        ("vsock:1:1", False), ("xds:///localhost:1", False), ("[::ffff:10.0.0.1]:1", False), ("[fe80::1%25lo]:1", False),
        ("unixhost:1", False), ("localhost\n:1", False),
    ],
)  # fmt: skip
def test_clear_text_is_private_on_this_machine_alone(at: str, private: bool) -> None:
    assert _token.is_private(Address(at), proxied=False) is private
    assert not _token.is_private(Address(at), proxied=True) or at.startswith("unix") is False
    assert _token.is_private(Address(at, "name"), proxied=True), "TLS"


@pytest.mark.parametrize("outage", ["local", "hold", "raise"])
@pytest.mark.parametrize(
    "target",
    [
        "192.0.2.1:1", "trainer.invalid:1", "127.0.0.1:1,192.0.2.1:1", "https://127.0.0.1:1,192.0.2.1:1",
        "ipv4:127.0.0.1:1%2C192.0.2.1:1", "dns:///host.invalid:1", "0.0.0.0:1",
    ],
)  # fmt: skip
def test_a_token_is_never_sent_in_clear_text(target: str, outage: OnOutage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc, "insecure_channel", None)  # no channel is made at all
    monkeypatch.setenv(_token.TOKEN, GOOD)
    error = refused(target, on_outage=outage)
    assert (type(error), error.reason) == (Unauthenticated, "TOKEN_IN_CLEAR")
    assert _token.TOKEN in error.message
    assert "https://" in error.message


@pytest.mark.parametrize("kind", ["localhost elsewhere", "a proxy by gRPC's own variable", "a proxy before a name"])
def test_what_looks_like_this_machine_and_is_not(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(_token.TOKEN, GOOD)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        target = f"localhost:{port}"
        if kind == "localhost elsewhere":
            real = socket.getaddrinfo
            moved = {"localhost": "192.0.2.1"}
            monkeypatch.setattr(socket, "getaddrinfo", lambda host, *given, **more: real(moved.get(host, host), *given, **more))
        elif kind == "a proxy before a name":
            monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.delenv("NO_PROXY", raising=False)
            target = "trainer.invalid:1"
        else:
            monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY", f"127.0.0.1:{port}")
            monkeypatch.setenv("GRPC_ADDRESS_HTTP_PROXY_ENABLED_ADDRESSES", "127.0.0.1")
        assert refused(target).reason == "TOKEN_IN_CLEAR"
        listening.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listening.accept()


def test_the_name_localhost_is_held_to_this_machine_at_each_connection(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC resolves it itself, and would go wherever it leads then."""
    monkeypatch.setenv(_token.TOKEN, GOOD)
    made: list[str] = []
    real = grpc.secure_channel
    monkeypatch.setattr(grpc, "secure_channel", lambda at, *given, **more: made.append(at) or real(at, *given, **more))
    with connect(f"localhost:{gate.port}") as client:
        client.call("ListRuns", LIST)
    assert made == [f"localhost:{gate.port}"]


def test_a_name_that_moves_to_another_machine_under_a_training_gets_no_token(
    gate: Gate, project: str, server: Any, history: Callable[..., list[Any]], wait_for: Callable[..., bool],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv(_token.TOKEN, GOOD)
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    at, real = ["127.0.0.1"], socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *given, **more: real(at[0] if host == "moves.example" else host, *given, **more)
    )
    session = open_run(f"moves.example:{gate.port}", "moves", project=project, start=0)
    session.step(ONE)
    at[0] = "192.0.2.1"
    gate.cut()
    session.step(ONE)
    assert wait_for(lambda: any("TOKEN_IN_CLEAR" in line for line in about(caplog, "moves")))
    with pytest.raises(Unauthenticated) as refused:
        session.flush(0.05)
    assert refused.value.reason == "TOKEN_IN_CLEAR"
    at[0] = "127.0.0.1"
    assert session.flush(20) == 2
    session.close()
    assert sum("TOKEN_IN_CLEAR" in line for line in about(caplog, "moves")) == 1
    assert [record.step for record in history(server.target, "moves", project)] == [1, 2]


def test_without_a_token_clear_text_goes_everywhere_as_before() -> None:
    assert _token.header(Address("192.0.2.1:1"), private=False) == ()


# --- where it never shows -----------------------------------------------------------------------------------------------


def test_it_is_shown_to_the_server_alone(
    gate: Gate, project: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(_token.TOKEN, GOOD)
    monkeypatch.setattr("sys.orig_argv", ["python", "train.py", "--token", GOOD, f"--url=https://me:{GOOD}@host/", f"x{GOOD}"])
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    with connect(gate.target) as client:
        session = client.open_run("r", project=project, start=0)
        session.step(ONE)
        for error in (_error(client, "NoSuch"), _error(client, project)):
            shown += traceback.TracebackException.from_exception(error, capture_locals=True).format()
            shown += [repr(error), str(error.metadata), *map(repr, (client, client._targets, session))]
        gate.good.clear()
        denied = _error(client, project)
        shown += traceback.TracebackException.from_exception(denied, capture_locals=True).format()
        gate.good.add(GOOD)
        session.close("failed", f"RuntimeError: {GOOD} was in my exception")
        run = client.call("GetRun", run_service_pb2.GetRunRequest(name=session.name)).run
    optimizer = mechanize(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0), run="r", target=gate.target)
    shown += [repr(optimizer), repr(pickle.dumps(optimizer.state_dict())), str(run), caplog.text]
    told = "".join(shown)
    assert "GGGG" not in told
    assert run.command.count("***") == 3
    assert f"mech_{'a' * 12}_*** was in my" in run.status_message


def _error(client: Any, project: str) -> MechanicdError:
    with pytest.raises(MechanicdError) as caught:
        client.call("GetRun", run_service_pb2.GetRunRequest(name=f"projects/{project}/runs/nowhere"))
    return caught.value


# --- a server that refuses it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outage", ["local", "hold", "raise"])
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize(("reason", "kind"), [("UNAUTHENTICATED", Unauthenticated), ("PERMISSION_DENIED", PermissionDenied)])
def test_at_the_open_it_is_an_error_whatever_on_outage_says(
    gate: Gate, reason: str, kind: type[AccessDenied], bare: bool, outage: OnOutage
) -> None:
    gate.reason, gate.bare = reason, bare
    error = refused(gate.target, on_outage=outage)
    assert (type(error), error.reason) == (kind, reason)
    assert "not good" in error.message
    assert [method for method, _ in gate.seen] == ["OpenSession"], "and it is asked once"


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("reason", ["UNAUTHENTICATED", "PERMISSION_DENIED"])
def test_in_the_middle_it_is_told_once_and_the_training_goes_on_and_catches_up(
    gate: Gate, file: Path, project: str, history: Callable[..., list[Any]], server: Any, wait_for: Callable[..., bool],
    caplog: pytest.LogCaptureFixture, reason: str, wait: bool,
) -> None:  # fmt: skip
    file.write_text(OLD)
    gate.good, gate.reason = {OLD}, reason
    taken = some_reductions(60)
    session = open_run(gate.target, "kept", project=project, start=0)

    def train(some: list[Reductions]) -> None:
        for each in some:
            session.begin(each)
            session.finish(wait=wait)

    train(taken[:20])
    session.flush()
    gate.good = {GOOD}  # revoked: the stream goes on, new calls are refused
    train(taken[20:30])
    with pytest.raises(AccessDenied):
        session.flush()
    assert session.connected
    gate.cut()
    train(taken[30:50])
    assert wait_for(lambda: gate.seen.count(("OpenSession", OLD)) >= 4)
    for _ in range(2):
        with pytest.raises(AccessDenied) as caught:
            session.flush(0.05)
        assert caught.value.reason == reason
    assert session.backlog >= 20
    assert sum(reason in line for line in about(caplog, "kept")) == 1, about(caplog, "kept")
    file.unlink()
    assert wait_for(lambda: any("TOKEN_FILE_UNUSABLE" in line for line in about(caplog, "kept")))
    file.write_text(GOOD)
    train(taken[50:])
    assert session.flush(20) == 60
    assert session.connected
    assert len([line for line in about(caplog, "kept") if "reconnected" in line]) == 1
    session.close()
    records = history(server.target, "kept", project)
    assert [record.step for record in records] == list(range(1, 61))
    assert [record.scale[0] for record in records] == oracle(taken)


@pytest.mark.parametrize("outage", ["local", "hold"])
def test_a_stream_that_is_refused_is_no_end_of_the_training(
    gate: Gate, file: Path, project: str, server: Any, history: Callable[..., list[Any]], caplog: pytest.LogCaptureFixture,
    outage: OnOutage,
) -> None:  # fmt: skip
    file.write_text(GOOD)
    gate.shut = {"StreamSteps"}
    session = open_run(gate.target, "streamless", project=project, start=0, on_outage=outage)
    for _ in range(5):
        session.step(ONE)
    with pytest.raises(Unauthenticated):
        session.flush(0.3)
    gate.shut.clear()
    assert session.flush(20) == 5
    session.close()
    assert "refuses this client" in "".join(about(caplog, "streamless"))
    assert [record.step for record in history(server.target, "streamless", project)] == [1, 2, 3, 4, 5]


def test_a_training_that_began_in_an_outage_learns_of_it_then_and_catches_up(
    server: Any, file: Path, project: str, history: Callable[..., list[Any]], wait_for: Callable[..., bool],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    file.write_text(OLD)
    gate = Gate(server.target, GOOD)
    session = open_run(f"127.0.0.1:{free_port()},{gate.target}", "early", project=project, start=0)
    session.step(ONE)
    with gate:
        assert wait_for(lambda: any("UNAUTHENTICATED" in line for line in about(caplog, "early")))
        file.write_text(GOOD)
        session.step(ONE)
        assert session.flush(20) == 2
        session.close()
    assert sum("UNAUTHENTICATED" in line for line in about(caplog, "early")) == 1
    assert [record.step for record in history(server.target, "early", project)] == [1, 2]


def test_where_an_outage_raises_so_does_this(gate: Gate, file: Path, project: str) -> None:
    file.write_text(GOOD)
    session = open_run(gate.target, "raises", project=project, start=0, on_outage="raise")
    session.step(ONE)
    gate.good.clear()
    gate.cut()
    with pytest.raises(MechanicdError):  # noqa: PT012
        for _ in range(100):
            session.step(ONE)
            time.sleep(0.01)
    gate.good.add(GOOD)
    session.close()
    with connect(gate.target) as client:
        run = client.call("GetRun", run_service_pb2.GetRunRequest(name=session.name)).run
    assert run.durable_step == session.state.step


def test_a_checkpoint_is_saved_all_the_same(gate: Gate, file: Path, project: str, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text(GOOD)
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = mechanize(torch.optim.SGD([p], lr=1.0), run="saves", project=project, target=gate.target)
    p.grad = torch.ones(1)
    optimizer.step()
    gate.good.clear()
    assert optimizer.state_dict()
    assert "UNAUTHENTICATED" in caplog.text
    gate.good.add(GOOD)
    optimizer.close()


def test_a_close_that_is_refused_says_why(gate: Gate, file: Path, project: str, caplog: pytest.LogCaptureFixture,
                                          monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("mechanicd.client._close_time.CLOSE_SECONDS", 0.3)
    file.write_text(GOOD)
    session = open_run(gate.target, "closes", project=project, start=0, deadline=0.2)
    session.step(ONE)
    session.flush()
    gate.good.clear()
    gate.cut()
    session.step(ONE)
    session.close()
    assert "closed while the server refuses this client; its history lacks the last 1 steps" in about(caplog, "closes")[-1]


def test_a_watch_goes_on_when_there_is_another_token(gate: Gate, file: Path, project: str, server: Any) -> None:
    file.write_text(OLD)
    said: list[str | None] = []
    request = run_service_pb2.WatchRunsRequest(parent=f"projects/{project}")
    with connect(gate.target) as client:
        with pytest.raises(Unauthenticated):
            next(client.watch(request))
        gate.good = {OLD}
        watch = client.watch(request, lambda error: said.append(error and error.reason))
        next(watch)
        gate.good = {GOOD}

        def heal() -> None:
            while gate.seen.count(("WatchRuns", OLD)) < 6:
                time.sleep(0.01)
            file.write_text(GOOD)

        threading.Thread(target=heal).start()
        gate.cut()
        open_run(server.target, "new", project=project, start=0).close()
        assert [run.name.rpartition("/")[2] for run in next(watch).runs] == ["new"]
    assert [each for each in said if each != "SERVER_UNREACHABLE"] == ["UNAUTHENTICATED", None]
