"""The log is written in the background: no step, no page and no shutdown waits for a pipe that nobody reads."""

import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mechanicd.logs import BackgroundHandler, OneLine

New = Callable[..., Any]
F_SETPIPE_SZ = 1031
SMALLEST = 4096
"""What a pipe holds at least."""
LONG_NAME = "x" * 200
"""A client's name: it is in the log line of each session."""


@pytest.fixture
def unread(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], dict[str, Any]]]]:
    """Starts a server whose stdout and stderr are pipes that nobody reads, but for the line that it is ready."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
        command = [sys.executable, "-m", "mechanicd.cli", "serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--json"]
        command += ["--auth", "off", "--store", f"sqlite:///{tmp_path}/runs.db", *options]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stderr is not None
        fcntl.fcntl(process.stderr, F_SETPIPE_SZ, SMALLEST)
        return process, json.loads(process.stdout.readline())["ready"]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_an_unread_pipe_stops_no_session_no_step_no_page_and_no_shutdown(unread: Any, new_training: New, run_cli: New) -> None:
    process, ready = unread()
    (target,), page = ready["grpc"], ready["http"]
    training = new_training(at=SimpleNamespace(target=target))
    for _ in range(40):  # more than twice what the pipe holds
        training.open(client=LONG_NAME)
    training.take(3)
    assert training.flush() == 3
    assert httpx.get(f"{page}/healthz", trust_env=False).status_code == 200, "the page's process has the same stderr"
    with grpc.insecure_channel(target) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert reply.status == health_pb2.HealthCheckResponse.SERVING
    assert run_cli("runs", "list", "--target", target).returncode == 0
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert len(process.stderr.read()) > SMALLEST - 400, "what the pipe holds was written"


def test_a_server_whose_stderr_is_closed_serves(unread: Any, new_wire: New) -> None:
    process, ready = unread("--log-level", "debug")
    process.stderr.close()  # its reader is gone: every write fails
    wire = new_wire(ready["grpc"][0])
    for _ in range(3):
        opened = wire.call("OpenSession", name="projects/p/runs/r")
    assert wire.call("Flush", session=opened.session).durable_step == 0
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0


def test_lines_that_do_not_fit_are_counted_where_they_are_missing() -> None:
    reading, writing = os.pipe()
    handler = BackgroundHandler(writing, most_bytes=100_000)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for number in range(5000):
        handler.emit(logging.makeLogRecord({"msg": f"{number:099d}"}))
    due = dropped = 0
    with os.fdopen(reading) as lines:
        while due < 5000:
            line = next(lines)
            note = re.fullmatch("… ([0-9]+) log lines were dropped here: they could not be written in time\n", line)
            if note is None:
                assert int(line) == due, "in order, and counted where lines are missing"
            dropped += int(note[1]) if note else 0
            due += int(note[1]) if note else 1
        assert 0 < dropped < 4000
        handler.emit(logging.makeLogRecord({"msg": "after"}))
        assert next(lines) == "after\n"


def test_a_line_of_any_size_and_any_characters_is_written_whole() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)  # as a parent may have made it
    handler = BackgroundHandler(writing)
    text = "ß\udc80" * 100_000
    handler.emit(logging.makeLogRecord({"msg": text}))
    found = b""
    while not found.endswith(b"\n"):
        found += os.read(reading, 1 << 16)
    assert found.decode() == "ß\\udc80" * 100_000 + "\n"
    handler.emit(logging.makeLogRecord({"msg": "%d steps", "args": ("many",), "name": "here"}))
    assert b"here: a log line can't be formatted: '%d steps'" in os.read(reading, 1 << 16)
    os.close(reading)


def test_a_message_is_one_line_whatever_a_client_wrote() -> None:
    formatter = OneLine("%(levelname).1s %(message)s")
    forged = "closed: \n2026-01-01 E mechanicd: all is lost\r\x1b[2J\x9b \u2028 caf\udce9 é"
    record = logging.LogRecord("mechanicd", logging.INFO, "", 0, "run %s", (forged,), None)
    line = formatter.format(record)
    assert line == r"I run closed: \n2026-01-01 E mechanicd: all is lost\r\x1b[2J\x9b \u2028 caf\udce9 é"
