"""The page's process: it comes back when it dies, ends with its server, and outlives the store."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

New = Callable[..., Any]


def pages(server: Any) -> list[psutil.Process]:
    """The page's processes that are children of a server."""
    return [child for child in psutil.Process(server.pid).children() if "mechanicd.dashboard" in child.cmdline()]


def gone(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def answers(http: httpx.Client, path: str = "/healthz") -> int:
    """The status, 0 where nobody answers."""
    try:
        return http.get(path, timeout=5.0).status_code
    except httpx.TransportError:
        return 0


def test_killed_it_is_started_again_and_the_trainings_go_on(
    new_server: New, new_http: New, new_trainer: New, seen: New, wait_for: New
) -> None:
    server = new_server("--http", "127.0.0.1:0").start()
    http, trainer = new_http(server), new_trainer(server, "a").take(2)
    seen(http, trainer.name, step=2)
    cursor = http.get("/api/v1/runs").json()["cursor"]
    for kill in range(2):
        (page,) = pages(server)
        page.kill()
        assert wait_for(lambda: gone(page))  # noqa: B023
        trainer.take(1)
        assert wait_for(lambda: answers(http) == 200, 30), "the same address, without the server's being started again"
        seen(http, trainer.name, step=3 + kill)
    assert http.get("/api/v1/runs").json()["cursor"].partition(".")[0] != cursor.partition(".")[0]
    assert server.log.read_text().count("the page's process ended with exit status -9") == 2
    assert server.stop() == 0


def test_a_killed_server_leaves_no_process_behind(new_server: New, wait_for: New) -> None:
    server = new_server("--http", "127.0.0.1:0").start()
    (page,) = pages(server)
    address = server.page
    server.kill()
    assert wait_for(lambda: gone(page))
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) != 0
    assert server.start().page, "nor its address"


def test_told_to_stop_the_server_ends_it_with_viewers_and_all(new_server: New, new_http: New, wait_for: New) -> None:
    server = new_server("--http", "127.0.0.1:0").start()
    (page,) = pages(server)
    with new_http(server).stream("GET", "/api/v1/events") as response:
        lines = response.iter_lines()
        next(lines)
        assert server.stop() == 0
        assert wait_for(lambda: gone(page))
        with contextlib.suppress(httpx.TransportError):  # on a busy machine it is cut off
            list(lines)
    assert "Traceback" not in server.log.read_text()


def test_ctrl_c_is_the_servers_to_act_upon(new_server: New, new_http: New, wait_for: New) -> None:
    """A terminal sends it to all processes; the page stays until the server has ended its work."""
    server = new_server("--http", "127.0.0.1:0").start()
    http = new_http(server)
    assert wait_for(lambda: answers(http) == 200, 30)
    (page,) = pages(server)
    page.send_signal(signal.SIGINT)
    assert answers(http) == 200
    assert not gone(page)


@pytest.mark.parametrize("explicit", [True, False])
def test_a_taken_port_is_refused_if_it_was_asked_for(explicit: bool, tmp_path: Path, run_cli: New, wait_for: New) -> None:
    """8080 is only where it is by default: a second server takes another."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # another program has it, which serves as well
            taken.bind(("127.0.0.1", 8080))
            taken.listen()
        command = ["--grpc", "127.0.0.1:0", "--store", f"sqlite:///{tmp_path / 'x.db'}", "--json"]
        if explicit:
            done = run_cli("serve", "--http", "127.0.0.1:8080", *command)
            error = json.loads(done.stderr)["error"]
            assert (done.returncode, error["reason"]) == (1, "PORT_IN_USE")
            assert "choose another --http HOST:PORT, or --http off" in error["message"]
            return
        with subprocess.Popen([sys.executable, "-m", "mechanicd.cli", "serve", *command], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            ready = json.loads(process.stdout.readline())["ready"]
            assert ready["http"] != "http://127.0.0.1:8080"
            assert wait_for(lambda: httpx.get(f"{ready['http']}/healthz", trust_env=False).status_code == 200)
            process.send_signal(signal.SIGTERM)


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--http", "0.0.0.0:0"], 1, "ADDRESS_NOT_LOOPBACK"),
        (["--http", "8080"], 1, "MALFORMED_ADDRESS"),
        (["--http", "unix:/x"], 1, "MALFORMED_ADDRESS"),
        (["--http", "127.0.0.1:0", "--store", "sqlite:///:memory:"], 1, "STORE_IN_MEMORY"),
        (["--trusted-proxy", "10.0.0.1/8"], 2, "has host bits set; expected a network such as 10.0.0.0/8"),
        (["--proxy-role", "root"], 2, "expected read, write, admin, or a role and a project such as read:bert"),
        (["--proxy-role", "read:a/b"], 2, "a role and a project such as read:bert"),
        (["--webhook", "example.org"], 2, "expected an http:// or https:// URL"),
        (["--http", "off", "--webhook", "http://127.0.0.1:1"], 2, "remove --http off"),
    ],
)
def test_what_can_not_be_served_is_said_at_the_start(
    options: list[str], code: int, reason: str, tmp_path: Path, run_cli: New
) -> None:
    done = run_cli("serve", "--grpc", "127.0.0.1:0", "--store", f"sqlite:///{tmp_path / 'x.db'}", *options)
    assert (done.returncode, done.stdout) == (code, "")
    assert reason in done.stderr


def test_bound_to_this_machine_it_answers_to_no_other_name_whatever_is_allowed(new_server: New, new_http: New) -> None:
    server = new_server("--http", "127.0.0.1:0", "--insecure").start()
    http = new_http(server)
    assert http.get("/api/v1/runs").status_code == 200
    assert http.get("/api/v1/runs", headers={"Host": "runs.example.org"}).status_code == 403


def test_beyond_this_machine_it_answers_to_the_names_that_it_was_given(new_server: New, wait_for: New) -> None:
    server = new_server("--http", "0.0.0.0:0", "--insecure", "--page-host", "runs.example.org").start()
    url = server.page.replace("0.0.0.0", "127.0.0.1")
    with httpx.Client(base_url=url, trust_env=False) as http:
        assert wait_for(lambda: answers(http) == 200, 30)
        assert http.get("/api/v1/runs", headers={"Host": "runs.example.org"}).status_code == 200
        assert http.get("/api/v1/runs", headers={"Host": "example.org"}).status_code == 403


def test_off_there_is_no_process_and_no_address(new_server: New) -> None:
    server = new_server("--http", "off").start()
    assert server.page == ""
    assert pages(server) == []


def test_a_password_is_in_no_command_line(new_server: New, postgres: Any) -> None:
    url = postgres.create_database("secret").replace("postgres@", "postgres:hunter2@")
    server = new_server("--http", "127.0.0.1:0", store=url).start()
    (page,) = pages(server)
    assert "hunter2" not in " ".join(page.cmdline())
    assert server.stop() == 0


def test_over_postgresql_it_outlives_the_database_says_so_and_recovers(
    new_server: New, new_http: New, new_trainer: New, seen: New, wait_for: New, new_postgres: Any
) -> None:
    server = new_server("--http", "127.0.0.1:0", store=new_postgres.create_database("runs")).start()
    http, trainer = new_http(server), new_trainer(server, "a").take(5)
    seen(http, trainer.name, step=5)
    (page,) = pages(server)
    new_postgres.kill()
    assert wait_for(lambda: answers(http) == 503)
    assert "the store can't be read now" in http.get("/healthz").json()["message"]
    assert "could not be read" in server.log.read_text(), "the detail is in the log, not in the answer"
    answer = http.get("/api/v1/runs").json()
    assert "the store can't be read now" in answer["server"]["trouble"]
    assert [item["step"] for item in answer["runs"]] == [5], "what was read last is still shown"
    refused = http.post("/api/v1/series", json={"runs": [trainer.name]})
    assert (refused.status_code, refused.json()["error"]["reason"]) == (503, "STORE_UNAVAILABLE")
    exported = http.get("/api/v1/export", params={"run": trainer.name})
    assert (exported.status_code, exported.json()["error"]["reason"]) == (503, "STORE_UNAVAILABLE")
    assert "mechanicd_store_readable 0.0" in http.get("/metrics").text

    new_postgres.start()
    assert wait_for(lambda: answers(http) == 200, 30)
    trainer.take(2, flush=False)  # the server's own connection may be a moment later
    seen(http, trainer.name, step=7)
    answer = http.post("/api/v1/series", json={"runs": [trainer.name]}).json()["runs"][0]
    assert answer["columns"]["end"] == [S[0] for _, S in trainer.taken]
    assert pages(server) == [page], "it is the same process"


def test_a_server_that_says_nothing_more_is_seen_by_the_age_of_its_counts(
    new_server: New, new_http: New, wait_for: New
) -> None:
    server = new_server("--http", "127.0.0.1:0").start()
    http = new_http(server)

    def age() -> float:
        lines = [line for line in http.get("/metrics").text.splitlines() if line.startswith("mechanicd_counts_age_seconds ")]
        return float(lines[0].split()[1]) if lines else -1.0

    assert wait_for(lambda: 0 <= age() < 1.5)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        assert wait_for(lambda: age() > 2.5)
        assert wait_for(lambda: answers(http) == 503)
        assert "the server has not reported for" in http.get("/api/v1/runs").json()["server"]["trouble"]
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert wait_for(lambda: 0 <= age() < 1.5)
