"""`mechanicd health`: the exit code says whether a server serves, also one that is starting, frozen or without its store."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.servers import ServerProcess, free_port

Cli = Callable[..., subprocess.CompletedProcess[str]]


def test_a_server_that_serves_one_that_is_frozen_and_one_that_is_gone(
    new_server: Callable[..., ServerProcess], run_cli: Cli, tmp_path: Path
) -> None:
    server = new_server("--grpc", f"unix:{tmp_path}/s").start()
    for target in (server.target, f"unix:{tmp_path}/s"):
        done = run_cli("health", "--target", target)
        assert (done.returncode, done.stdout, done.stderr) == (0, "SERVING\n", "")
    server.freeze()
    try:
        done = run_cli("health", "--live", "--target", f"unix:{tmp_path}/s", "--json")
        assert (done.returncode, done.stdout) == (1, "")
        assert json.loads(done.stderr)["error"]["reason"] == "DEADLINE_EXCEEDED"
    finally:
        server.thaw()
    server.kill()
    done = run_cli("health", "--target", server.target)
    assert (done.returncode, done.stdout) == (1, "")
    assert "[SERVER_UNREACHABLE]" in done.stderr


def test_a_server_whose_store_is_away_is_alive_and_does_not_serve(
    new_server: Callable[..., ServerProcess], run_cli: Cli, wait_for: Callable[..., bool]
) -> None:
    server = new_server("--grpc", "127.0.0.1:0").start()
    for path in server.folder.glob("mechanicd.db*"):
        path.rename(path.with_name(f"away-{path.name}"))
    said: list[Any] = []

    def refused() -> bool:
        said.append(run_cli("health", "--target", server.target, "--json"))
        return said[-1].returncode == 1

    assert wait_for(refused)
    assert json.loads(said[-1].stderr)["error"]["reason"] == "SERVER_NOT_SERVING"
    done = run_cli("health", "--live", "--target", server.target, "--json")
    assert (done.returncode, json.loads(done.stdout)["status"]) == (0, "NOT_SERVING")


def test_it_waits_for_a_server_that_is_starting_and_no_longer_than_asked(
    new_server: Callable[..., ServerProcess], run_cli: Cli
) -> None:
    server = new_server()
    command = [sys.executable, "-m", "mechanicd.cli", "health", "--target", server.target, "--wait", "60"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as waiting:
        server.start()
        assert waiting.communicate(timeout=60)[0] == "SERVING\n"
    assert waiting.returncode == 0
    assert run_cli("health", "--target", f"127.0.0.1:{free_port()}", "--wait", "0.2").returncode == 1
