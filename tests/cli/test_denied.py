"""The commands and a token that the server does not take: each says so by name, and `watch` waits for another."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mechanicd.cli import main
from mechanicd.client import Reductions, open_run
from tests.client.gate import Gate

GOOD, OLD = f"mech_{'a' * 12}_{'G' * 43}", f"mech_{'b' * 12}_{'O' * 43}"


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "token"
    file.write_text(OLD)
    monkeypatch.delenv("MECHANICD_TOKEN", raising=False)
    monkeypatch.setenv("MECHANICD_TOKEN_FILE", str(file))
    return file


@pytest.fixture
def gate(server: Any) -> Iterator[Gate]:
    with Gate(server.target, GOOD) as gate:
        yield gate


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return (int(ended.value.code or 0), *capsys.readouterr())


@pytest.mark.parametrize("reason", ["UNAUTHENTICATED", "PERMISSION_DENIED"])
def test_each_command_says_so(gate: Gate, token: Path, project: str, capsys: pytest.CaptureFixture[str], reason: str) -> None:
    gate.reason = reason
    at = ("--target", gate.target)
    for command in (
        ["runs", "list"], ["runs", "watch"], ["runs", "show", "r"], ["runs", "delete", "r", "--yes"], ["runs", "export", "r"],
        ["runs", "rewind", "r", "1", "--yes"], ["top", "--once"], ["runs", "label", "r", "a=b"],
    ):  # fmt: skip
        for flags in ([], ["--json"]):
            code, out, told = run(capsys, *command, *at, *flags)
            assert (code, out) == (1, ""), command
            assert (json.loads(told)["error"]["reason"] == reason) if flags else told.endswith(f" [{reason}]\n"), told
    assert {shown for _, shown in gate.seen} == {OLD}


def test_a_probe_depends_on_no_token(server: Any, token: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in (OLD, "no token", ""):
        token.write_text(text)
        assert run(capsys, "health", "--target", server.target) == (0, "SERVING\n", "")
    token.unlink()
    assert run(capsys, "health", "--target", server.target)[0] == 0
    assert run(capsys, "runs", "list", "--target", server.target)[0] == 1


def test_an_import_says_so_once_and_goes_on_when_it_is_let_in(
    gate: Gate, token: Path, project: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("a", "b"):
        with open_run(f"file://{tmp_path}/spool", name, project=project, start=0) as session:
            session.step(Reductions(-0.1, 0.0, 1.0, 4.0))
    arguments = ("import", f"{tmp_path}/spool", "--target", gate.target)
    code, out, told = run(capsys, *arguments)
    assert (code, out, told.count("[UNAUTHENTICATED]")) == (1, "", 1)
    gate.reason = "PERMISSION_DENIED"  # that may be for one project and not for another, so each file is tried
    code, out, told = run(capsys, *arguments, "--json")
    assert [each["error"]["reason"] for each in json.loads(out)] == ["PERMISSION_DENIED"] * 2
    assert code == 1
    token.write_text(GOOD)
    code, out, told = run(capsys, *arguments)
    assert (code, out.count("1 steps imported"), told) == (0, 2, "")


def test_a_watch_waits_for_another_token(
    gate: Gate, token: Path, project: str, server: Any, wait_for: Callable[..., bool], tmp_path: Path
) -> None:
    gate.good = {OLD}
    command = [sys.executable, "-m", "mechanicd.cli", "runs", "watch", "--project", project, "--target", gate.target]
    log = tmp_path / "log"
    with log.open("w") as told, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, text=True) as watch:
        lines: list[str] = []
        assert watch.stdout is not None
        threading.Thread(target=lines.extend, args=(watch.stdout,)).start()
        open_run(server.target, "first", project=project, start=0).close()
        assert wait_for(lambda: bool(lines))
        gate.good = {GOOD}
        gate.cut()
        assert wait_for(lambda: "UNAUTHENTICATED" in log.read_text())
        open_run(server.target, "second", project=project, start=0).close()
        token.write_text(GOOD)
        assert wait_for(lambda: any("second" in line for line in lines))
        watch.send_signal(2)
        assert watch.wait(10) == 0
    assert log.read_text().count("[UNAUTHENTICATED]; waiting for another token\n") == 1
    assert log.read_text().endswith("the server answers again\n")
