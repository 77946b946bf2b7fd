"""The shell's completion, as click makes it and the README says how to switch it on."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(sys.executable).parent / "mechanicd"


def complete(words: str, **environment: str) -> list[str]:
    """What is offered for the last of the words."""
    given = {"_MECHANICD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MECHANICD_")}
    done = subprocess.run(
        [SCRIPT], env={**plain, **given, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    return [line.split(",", 1)[1] for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_knows_the_program(shell: str) -> None:
    environment = {**os.environ, "_MECHANICD_COMPLETE": f"{shell}_source"}
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert "_MECHANICD_COMPLETE" in done.stdout
    assert f"{shell}_complete" in done.stdout


def test_commands_and_options_and_their_values_are_offered() -> None:
    assert complete("mechanicd ru") == ["runs"]
    assert complete("mechanicd runs re") == ["rename", "restore", "rewind"]
    assert "--target" in complete("mechanicd runs list --")
    assert complete("mechanicd runs export x --format js") == ["json", "jsonl"]


def test_runs_are_offered_by_the_server(train: Callable[..., str], server: Any, project: str) -> None:
    train("bert/seed0")
    train("bert/seed1")
    train("gpt")
    where = {"MECHANICD_TARGET": server.target, "MECHANICD_PROJECT": project}
    assert complete("mechanicd runs show be", **where) == ["bert/seed0", "bert/seed1"]
    assert complete(f"mechanicd runs delete projects/{project}/runs/g", **where) == [f"projects/{project}/runs/gpt"]


def test_no_server_no_runs_and_no_error(tmp_path: Path) -> None:
    assert complete("mechanicd runs show be", MECHANICD_TARGET=f"unix:{tmp_path / 'nobody'}") == []
