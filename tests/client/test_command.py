"""What the server is told of how a trainer was started, by a real process; and that it can be told nothing."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
import sys
from mechanicd.client import connect
from mechanicd.v1.run_service_pb2 import GetRunRequest
with connect(sys.argv[1]) as client, client.open_run("r", project=sys.argv[2], start=0) as session:
    print(client.call("GetRun", GetRunRequest(name=session.name)).run.command)
"""


@pytest.fixture
def started(server: Any, project: str, tmp_path: Path) -> Any:
    """Runs the program with more arguments; its command line, and what the server was told of it."""
    program = tmp_path / "my training.py"
    program.write_text(PROGRAM)

    def run(*arguments: str, **environment: str) -> tuple[list[str], str]:
        command = [sys.executable, "-W", "error", str(program), server.target, project, *arguments]
        done = subprocess.run(
            command, env=os.environ | environment, capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path
        )
        return command, done.stdout.removesuffix("\n")

    return run


def test_the_command_of_a_trainer_can_be_pasted_into_a_shell(started: Any) -> None:
    command, told = started("--note", 'it\'s "fine" $HOME')
    assert shlex.split(told) == command


def test_a_very_long_one_is_cut(started: Any) -> None:
    command, told = started("x" * 5000)
    assert told == shlex.join(command)[:4096]


def test_a_password_in_it_is_not_sent(started: Any) -> None:
    command, told = started("--db", "postgresql://me:se/cr#e@t@db:5432/runs", "--mail", "a@b.c", "--cache=redis://:secret@c")
    assert shlex.split(told)[-5:] == ["--db", "postgresql://me:***@db:5432/runs", "--mail", "a@b.c", "--cache=redis://:***@c"]
    assert shlex.split(told)[:-5] == command[:-5]


def test_it_is_not_sent_where_the_environment_says_so(started: Any) -> None:
    assert started(MECHANICD_SEND_COMMAND="0")[1] == ""
