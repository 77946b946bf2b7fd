"""The server as a process: how it starts, whether it says that it is well, and how it ends."""

import json
import os
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mechanicd.service import ServeError, check_address
from mechanicd.store import SCHEMA_VERSION, open_store

New = Callable[..., Any]
SERVICES = ["", "mechanicd.v1.TunerService", "mechanicd.v1.RunService"]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def health(wire: Any, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(wire.channel)
    return int(stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=20).status)


def watch_health(wire: Any) -> Any:
    return health_pb2_grpc.HealthStub(wire.channel).Watch(health_pb2.HealthCheckRequest(), timeout=20)


def stored(server: Any, training: Any) -> list[tuple[int, tuple[float, ...]]]:
    """The history in the store of a server that has ended."""
    store = open_store(f"sqlite:///{server.database}")
    row = store.get(*training.name.split("/", 3)[1::2])
    assert row is not None
    rows = [(step.step, step.scale) for step in store.steps(row, 0, 1, 2**62, 2**62)]
    assert row.last_step == len(rows)
    store.close()
    return rows


def taken(training: Any) -> list[tuple[int, tuple[float, ...]]]:
    return [(step, state.scale) for step, state in enumerate(training.states) if step]


# --- health ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", SERVICES)
def test_a_server_at_work_says_that_it_serves(wire: Any, service: str) -> None:
    assert health(wire, service) == SERVING


def test_health_of_a_service_that_there_is_not_is_not_found(wire: Any) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        health(wire, "mechanicd.v1.CoffeeService")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


# --- the end -----------------------------------------------------------------------------------------------------------


def test_on_sigterm_every_step_that_was_answered_is_kept(new_server: New, new_training: New) -> None:
    """The flush interval is so long that no commit comes before the end."""
    server = new_server("--flush-interval", "10").start()
    trainings = [new_training(f"run{i}", seed=i, at=server) for i in range(3)]
    for training in trainings:
        training.open()
        training.take(40)
    assert server.stop() == 0
    assert [stored(server, training) for training in trainings] == [taken(training) for training in trainings]


def test_sigint_ends_it_in_the_same_way(new_server: New, new_training: New, wait_for: New) -> None:
    server = new_server("--flush-interval", "10").start()
    training = new_training(at=server)
    training.open()
    training.take(10)
    os.kill(server.pid, signal.SIGINT)
    assert wait_for(lambda: "every answered step is committed" in server.log.read_text())
    server.stop()
    assert stored(server, training) == taken(training)


def test_while_it_drains_it_says_so_finishes_what_is_open_and_takes_nothing_new(new_server: New, new_training: New) -> None:
    server = new_server("--grace", "10", "--flush-interval", "10").start()
    training, other = new_training(at=server), new_training("other", at=server)
    training.open()
    stream = training.wire.stream()
    training.expect(stream.take(training.request())[0])
    watching = watch_health(training.wire)
    assert next(watching).status == SERVING
    os.kill(server.pid, signal.SIGTERM)
    assert next(watching).status == NOT_SERVING
    training.expect(stream.take(training.request())[0])
    with pytest.raises(grpc.RpcError) as caught:
        other.open()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    training.expect(stream.take(training.request())[0])
    stream.close()
    watching.cancel()
    assert server.stop() == 0
    assert stored(server, training) == taken(training)
    assert len(taken(training)) == 3


def test_a_stream_that_does_not_end_is_cut_off_after_the_grace(new_server: New, new_training: New) -> None:
    server = new_server("--grace", "0.2").start()
    training = new_training(at=server)
    training.open()
    stream = training.wire.stream()
    training.expect(stream.take(training.request())[0])
    assert server.stop() == 0
    with pytest.raises(grpc.RpcError) as caught:
        stream.receive()
    assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert stored(server, training) == taken(training)


# --- a store that fails ------------------------------------------------------------------------------------------------


def test_a_full_disk_stops_no_training_is_told_and_is_got_over(new_server: New, new_training: New, wait_for: New) -> None:
    """The largest size of a file stands for the size of the disk, and is lowered under a server at work."""
    server = new_server("--flush-interval", "0").start()
    training = new_training(at=server)
    training.open()
    log = Path(f"{server.database}-wal")
    room = log.stat().st_size  # the making of the tables left it: until it is used, the log does not grow
    while log.stat().st_size == room:
        training.take(1)
        training.flush()
    durable = training.state.step
    soft, hard = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (log.stat().st_size, hard))
    training.take(20)
    assert wait_for(lambda: all(health(training.wire, service) == NOT_SERVING for service in SERVICES))
    refused = training.wire.refused("Flush", session=training.session)
    assert (refused.code, refused.reason) == (14, "STORE_UNAVAILABLE")
    assert "kept in memory, try again" in refused.message
    assert str(server.database) not in refused.message, "the detail is in the log, not in the reply"
    assert training.wire.refused("OpenSession", name=training.name + "/new").reason == "STORE_UNAVAILABLE"
    assert training.take(20).durable_step == durable
    assert str(server.database) in server.log.read_text()

    resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (soft, hard))
    assert wait_for(lambda: all(health(training.wire, service) == SERVING for service in SERVICES))
    training.take(5)
    assert training.flush() == durable + 45
    assert [(record.step, tuple(record.scale)) for record in training.series()] == taken(training)


# --- where it listens --------------------------------------------------------------------------------------------------


def test_it_listens_on_a_unix_socket_as_well(new_server: New, new_wire: New, new_training: New, tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = new_server("--grpc", f"unix:{path}").start()
    training = new_training(at=server)
    training.open()
    training.take(3)
    training.wire = new_wire(f"unix:{path}")
    training.take(3)
    assert health(training.wire) == SERVING
    assert training.flush() == 6


def test_it_listens_beyond_this_machine_only_if_told_that_this_is_safe(new_server: New, new_wire: New) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = new_server("--grpc", f"0.0.0.0:{port}", "--insecure").start()
    assert health(new_wire(f"127.0.0.1:{port}")) == SERVING
    assert server.stop() == 0


def test_port_0_takes_a_free_one_and_says_which(tmp_path: Path, new_wire: New) -> None:
    command = [sys.executable, "-m", "mechanicd.cli", "serve", "--grpc", "127.0.0.1:0", "--grpc", "localhost:0", "--json"]
    command += ["--http", "off", "--store", f"sqlite:///{tmp_path / 'x.db'}", "--log-level", "error"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())["ready"]
        assert ready["pid"] == process.pid
        assert ready["store"] == f"sqlite:///{tmp_path / 'x.db'}"
        assert len({address.rpartition(":")[2] for address in ready["grpc"]} - {"0"}) == 2
        assert [health(new_wire(address)) for address in ready["grpc"]] == [SERVING, SERVING]
        process.terminate()
    assert process.returncode == 0


# --- how it does not start ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address", ["127.0.0.1:0", "127.1.2.3:50051", "localhost:1", "[::1]:65535", "unix:/run/m.sock", "unix:m"]
)
def test_an_address_that_only_this_machine_can_reach_is_fine(address: str) -> None:
    assert check_address(address, insecure=False) is None


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "10.0.0.1:50051", "example.org:50051", "localhost.example.org:1"])
def test_an_address_that_others_can_reach_takes_the_word_insecure(address: str) -> None:
    with pytest.raises(ServeError, match=r"bind to 127\.0\.0\.1, or speak TLS") as caught:
        check_address(address, insecure=False)
    assert caught.value.reason == "ADDRESS_NOT_LOOPBACK"
    assert check_address(address, insecure=True) is None


@pytest.mark.parametrize(
    "address", ["", "50051", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:-1", ":50051", "a:b"]
)
@pytest.mark.parametrize("insecure", [True, False])
def test_an_address_that_is_none_is_refused_whatever_is_allowed(address: str, insecure: bool) -> None:
    with pytest.raises(ServeError, match="expected HOST:PORT or unix:PATH") as caught:
        check_address(address, insecure)
    assert caught.value.reason == "MALFORMED_ADDRESS"
    assert repr(address) in str(caught.value)


@pytest.fixture
def places(tmp_path: Path, server: Any) -> dict[str, Any]:
    """What the addresses and stores below are filled in with."""
    newer = tmp_path / "newer.db"
    open_store(f"sqlite:///{newer}").close()
    foreign = tmp_path / "foreign.db"
    for path, change in [(newer, f"PRAGMA user_version = {SCHEMA_VERSION + 1}"), (foreign, "CREATE TABLE treasure (gold)")]:
        database = sqlite3.connect(path)
        database.execute(change)
        database.close()
    (tmp_path / "text").write_text("not a database, and long enough to be taken for one if nobody looks\n" * 100)
    return {"folder": tmp_path, "target": server.target, "used": server.database}


FREE, HERE = "127.0.0.1:0", "sqlite:///{folder}/x.db"


@pytest.mark.parametrize(
    ("address", "store", "reason", "said"),
    [
        ("{target}", HERE, "PORT_IN_USE", "can't bind {target}: another program is using the port"),
        ("unix:{folder}/missing/s", HERE, "PORT_IN_USE", "its folder is missing"),
        ("0.0.0.0:0", HERE, "ADDRESS_NOT_LOOPBACK", "bind to 127.0.0.1, or speak TLS"),
        ("50051", HERE, "MALFORMED_ADDRESS", "'50051': expected HOST:PORT or unix:PATH"),
        (FREE, "sqlite:///{used}", "STORE_IN_USE", "{used} is in use by another mechanicd"),
        (FREE, "sqlite:///{folder}/missing/x.db", "STORE_NOT_WRITABLE", "{folder}/missing/x.db"),
        (FREE, "sqlite:///{folder}", "STORE_NOT_WRITABLE", "{folder} can't be used as a database"),
        (FREE, "sqlite:///{folder}/text", "STORE_NOT_WRITABLE", "{folder}/text can't be used as a database"),
        (FREE, "sqlite:///{folder}/foreign.db", "STORE_NOT_WRITABLE", "another program's database"),
        (FREE, "sqlite:////proc/x.db", "STORE_NOT_WRITABLE", "/proc/x.db"),
        (FREE, "sqlite:///{folder}/newer.db", "STORE_SCHEMA_TOO_NEW", "start the newer mechanicd that wrote it"),
    ],
)
def test_a_server_that_can_not_start_says_why_in_one_line(
    address: str, store: str, reason: str, said: str, places: dict[str, Any], run_cli: New
) -> None:
    done = run_cli("serve", "--grpc", address.format(**places), "--store", store.format(**places))
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"error: .+ \[{reason}\]\n", done.stderr), done.stderr
    assert said.format(**places) in done.stderr


@pytest.mark.parametrize(
    ("address", "store", "reason"), [("{target}", HERE, "PORT_IN_USE"), (FREE, "sqlite:///{used}", "STORE_IN_USE")]
)
def test_with_json_it_says_so_in_json_alone(
    address: str, store: str, reason: str, places: dict[str, Any], run_cli: New
) -> None:
    done = run_cli("serve", "--json", "--grpc", address.format(**places), "--store", store.format(**places))
    assert (done.returncode, done.stdout) == (1, "")
    error = json.loads(done.stderr)["error"]
    assert error.keys() == {"reason", "message"}
    assert error["reason"] == reason


def test_a_server_that_could_not_start_leaves_the_store_to_the_next(places: dict[str, Any], run_cli: New) -> None:
    url = f"sqlite:///{places['folder']}/x.db"
    assert run_cli("serve", "--grpc", places["target"], "--store", url).returncode == 1
    store = open_store(url)
    assert list(store.list_runs(None, None, 1)) == []
    store.close()


def test_pings_never_end_a_connection(server: Any) -> None:
    """gRPC's clients ping to measure the bandwidth, more often than the server's own default allows."""
    ping, goaway = 6, 7
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as wire, wire.makefile("rb") as answers:
        wire.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0")
        for count in (20, 1):  # one more, after whatever the server makes of twenty
            wire.sendall(b"\0\0\x08\x06\0\0\0\0\0measured" * count)
            while count:
                head = answers.read(9)
                body = answers.read(int.from_bytes(head[:3], "big"))
                assert head[3] != goaway, body
                count -= head[3] == ping
