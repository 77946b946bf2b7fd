"""`mechanicd runs rewind | fork`: what they change, what they ask, and what they say."""

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

New = Callable[..., Any]


@pytest.fixture
def steps(runs: New) -> Callable[..., list[int]]:
    """The steps that a run has, as its export tells."""

    def read(run: str, *options: str) -> list[int]:
        done = runs("export", run, *options)
        assert done.returncode == 0
        return [int(row["step"]) for row in csv.DictReader(io.StringIO(done.stdout))]

    return read


def test_a_rewind_asks_and_without_an_answer_nothing_happens(train: New, steps: New, server: Any, project: str) -> None:
    name = train("a", 9, close="RUN_STATUS_FAILED")
    command = [
        sys.executable,
        "-m",
        "mechanicd.cli",
        "runs",
        "rewind",
        "--target",
        server.target,
        "--project",
        project,
        "a",
        "4",
    ]
    for answer in ("", "n\n"):
        done = subprocess.run(command, input=answer, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"Rewind {name} from step 9 to 4? The steps in between become a branch. [y/N]" in done.stderr
    assert steps("a") == list(range(1, 10))
    done = subprocess.run(command, input="y\n", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert re.fullmatch(rf"{name} is at step 4; S \S+\n", done.stdout)
    assert (steps("a"), steps("a", "--branch", "1")) == ([1, 2, 3, 4], [5, 6, 7, 8, 9])


def test_a_rewind_with_yes_does_not_ask_and_gives_the_run_in_json(train: New, runs: New) -> None:
    train("a", 9, close="RUN_STATUS_FINISHED")
    done = runs("rewind", "a", "2", "--yes", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert (shown["step"], shown["rewinds"], shown["status"]) == (2, 1, "preempted")
    assert [shown] == json.loads(runs("list", "--json").stdout)
    happened = json.loads(runs("show", "a", "--json").stdout)["events"]
    assert (happened[-1]["kind"], happened[-1]["step"]) == ("rewound_by_hand", 2)


def test_a_rewind_to_the_present_step_has_nothing_to_ask(train: New, runs: New) -> None:
    train("a", 3, close="RUN_STATUS_FINISHED")
    done = runs("rewind", "a", "3")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_that_is_held_and_a_step_that_is_not_there_are_refused(train: New, runs: New) -> None:
    train("a", 3)
    done = runs("rewind", "a", "1", "--yes")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("[RUN_HELD]\n")
    done = runs("rewind", "a", "9", "--yes", "--json")
    assert json.loads(done.stderr)["error"]["reason"] == "RUN_HELD"
    train("b", 3, close="RUN_STATUS_FINISHED")
    assert runs("rewind", "b", "9").stderr.endswith("[RESUME_STEP_UNKNOWN]\n")
    assert runs("rewind", "b", "-1", "--yes").returncode == 2
    assert json.loads(runs("rewind", "a", "1", "--yes", "--fence", "--json").stdout)["step"] == 1


def test_a_run_is_closed_by_hand_and_its_status_corrected(train: New, runs: New) -> None:
    name = train("a", 3, close="RUN_STATUS_PREEMPTED")
    done = runs("close", "a", "--status", "finished", "--message", "long enough")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{name} is finished at step 3\n", "")
    shown = json.loads(runs("close", "a", "--status", "failed", "--json").stdout)
    assert (shown["status"], shown["status_message"]) == ("failed", "closed by hand")
    train("b", 3)
    assert runs("close", "b", "--status", "failed").stderr.endswith("[RUN_HELD]\n")
    assert json.loads(runs("close", "b", "--status", "failed", "--fence", "--json").stdout)["status"] == "failed"
    assert runs("close", "b").returncode == runs("close", "b", "--status", "running").returncode == 2
    assert runs("close", "nobody", "--status", "failed").stderr.endswith("[RUN_NOT_FOUND]\n")


def test_a_fork_begins_at_the_last_step_or_at_one_that_is_named(train: New, runs: New, steps: New, project: str) -> None:
    name = train("a", 9, labels={"batch": "256"})
    done = runs("fork", "a", "b")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(rf"projects/{project}/runs/b starts from {name} at step 9; S \S+\n", done.stdout)
    made = json.loads(runs("fork", "a", f"projects/{project}/runs/c", "--step", "4", "--json").stdout)
    assert (made["name"], made["step"], made["labels"]) == (f"projects/{project}/runs/c", 4, {"batch": "256"})
    assert (steps("a"), steps("b"), steps("c")) == (list(range(1, 10)), list(range(1, 10)), [1, 2, 3, 4])
    assert runs("fork", "a", "b").stderr.endswith("[RUN_EXISTS]\n")
    assert runs("fork", "nobody", "d").stderr.endswith("[RUN_NOT_FOUND]\n")
