"""Commands that change many runs at once: which ones they take, what they ask, and what they say of each."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, cast

import pytest

from mechanicd.cli import _bulk
from mechanicd.client import Client, ServerUnavailable, connect
from mechanicd.v1 import tuner_service_pb2
from tests.cli.test_top import Terminal

New = Callable[..., Any]


@pytest.fixture
def three(train: New) -> list[str]:
    """Runs a, b and c; a and b have the label batch=8, and nobody holds them."""
    return [
        train("a", 3, labels={"batch": "8"}, close="RUN_STATUS_FINISHED"),
        train("b", 5, labels={"batch": "8", "note": "x"}, close="RUN_STATUS_FAILED"),
        train("c", 7, labels={"batch": "16"}, close="RUN_STATUS_FINISHED"),
    ]


@pytest.fixture
def left(runs: New) -> Callable[..., list[str]]:
    """The runs that a list shows, by their last letter."""

    def read(filter_: str = "") -> list[str]:
        return [run["name"].rpartition("/")[2] for run in json.loads(runs("list", "--json", "--filter", filter_).stdout)]

    return read


BATCH = ("--filter", "labels.batch = 8")


def test_a_dry_run_names_what_it_would_take_and_takes_nothing(three: list[str], runs: New, left: New) -> None:
    for command, *more in (["delete"], ["archive"], ["label", "batch=1"]):
        done = runs(command, *more, *BATCH, "--dry-run")
        assert (done.returncode, done.stderr) == (0, "")
        *lines, said = done.stdout.splitlines()
        assert lines == [f"would {command} {name}" for name in three[:2]]
        assert said.startswith("2 runs would be ")
        assert said.endswith("; nothing was changed")
    shown = json.loads(runs("delete", "a", "c", "--dry-run", "--json").stdout)
    assert shown == {"dry_run": True, "deleted": [three[0], three[2]]}
    assert (left(), left("labels.batch = 8")) == (["a", "b", "c"], ["a", "b"])


def test_a_dry_run_foresees_what_would_be_refused(three: list[str], train: New, runs: New, left: New) -> None:
    train("held", 3)
    done = runs("delete", "a", "no", "held", "--dry-run")
    assert (done.returncode, done.stdout.splitlines()) == (
        1,
        [f"would delete {three[0]}", "1 run would be deleted; 2 would be refused; nothing was changed"],
    )
    assert [line[line.index("[") :] for line in done.stderr.splitlines()] == ["[RUN_NOT_FOUND]", "[RUN_HELD]"]
    shown = json.loads(runs("delete", "--filter", "step = 3", "--dry-run", "--json").stdout)
    assert (shown["deleted"], [each["reason"] for each in shown["refused"]]) == ([three[0]], ["RUN_HELD"])
    for arguments in (["delete", "held", "--fence"], ["archive", "held"], ["label", "held", "x=1"]):
        assert runs(*arguments, "--dry-run").returncode == 0, arguments
    assert runs("restore", "no", "--dry-run").stderr.endswith("[RUN_NOT_FOUND]\n")
    assert left() == ["a", "b", "c", "held"]


@pytest.mark.parametrize(
    ("filter_", "hinted"),
    [("name = a", True), ('step > 1 AND name="a"', True), ("name = projects/x/runs/a", False), ("labels.name = a", False)],
)
def test_a_filter_by_a_short_name_says_why_it_matches_nothing(filter_: str, hinted: bool, three: list[str], runs: New) -> None:
    for command in (["list"], ["delete", "--yes"]):
        assert ("compares full names" in runs(*command, "--filter", filter_).stdout) is hinted, command


def test_many_runs_are_deleted_only_after_a_yes(three: list[str], runs: New, left: New, server: Any, project: str) -> None:
    command = [sys.executable, "-m", "mechanicd.cli", "runs", "delete", "--target", server.target, "--project", project, *BATCH]
    done = subprocess.run(command, input="n\n", capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"Delete 2 runs and their whole history: {three[0]}, {three[1]}? [y/N]" in done.stderr
    done = subprocess.run([*command, "--json"], input="", capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(done.stderr)["error"]["reason"] == "NOT_CONFIRMED"
    assert left() == ["a", "b", "c"]
    done = runs("delete", *BATCH, "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"deleted {three[0]}\ndeleted {three[1]}\ndeleted 2 runs\n"
    assert left() == ["c"]
    done = runs("delete", *BATCH, "--yes")
    assert (done.returncode, done.stdout) == (0, "no runs match the filter; nothing was changed\n")
    assert json.loads(runs("delete", *BATCH, "--yes", "--json").stdout) == {"deleted": [], "refused": []}


def test_a_run_that_is_refused_does_not_stop_the_others_and_is_told_of(three: list[str], runs: New, left: New) -> None:
    done = runs("delete", "a", "no", "b", "a", "--yes")
    assert (done.returncode, done.stdout) == (1, f"deleted {three[0]}\ndeleted {three[1]}\ndeleted 2 runs; 1 refused\n")
    assert re.fullmatch(r"error: projects/\S+/runs/no: .+ \[RUN_NOT_FOUND\]\n", done.stderr)
    done = runs("archive", "c", "no", "--yes", "--json")
    assert done.returncode == 1
    shown = json.loads(done.stdout)
    assert (shown["archived"], [error["reason"] for error in shown["refused"]]) == ([three[2]], ["RUN_NOT_FOUND"])
    assert left() == []


def test_an_archived_run_is_listed_only_where_it_is_asked_for_and_comes_back(three: list[str], runs: New, left: New) -> None:
    shown = json.loads(runs("archive", "a", "--json").stdout)
    assert (shown["name"], shown["archive_time"] is None) == (three[0], False)
    assert runs("archive", "b").stdout == f"archived {three[1]}\n"
    assert (left(), left("archived = true"), left("archived : *")) == (["c"], ["a", "b"], ["a", "b", "c"])
    assert "finished, archived" in runs("list", "--filter", "archived = true").stdout
    assert json.loads(runs("show", "a", "--json").stdout)["archive_time"] == shown["archive_time"]
    assert runs("restore", "--filter", "labels.note = x", "--yes").stdout == f"restored {three[1]}\nrestored 1 run\n"
    assert json.loads(runs("restore", "a", "--json").stdout)["archive_time"] is None
    assert left() == ["a", "b", "c"]


def test_labels_are_set_and_removed_and_others_stay(three: list[str], runs: New, left: New) -> None:
    shown = json.loads(runs("label", "b", "batch=32", "owner=me=you", "--remove", "note", "--json").stdout)
    assert (shown["name"], shown["labels"]) == (three[1], {"batch": "32", "owner": "me=you"})
    assert runs("label", "--filter", "step > 4", "kept=", "--yes").returncode == 0
    assert left('labels.kept = ""') == ["b", "c"]
    assert runs("label", "a", "no spaces=1").stderr.endswith("[INVALID_LABELS]\n")
    for wrong in (["a"], ["batch=1"], ["a", "x=1", "--remove", "x"], ["a", "x=1", *BATCH]):
        assert runs("label", *wrong).returncode == 2, wrong


@pytest.mark.parametrize("command", ["delete", "archive", "restore"])
def test_names_or_a_filter_are_needed_and_not_both(command: str, runs: New) -> None:
    for wrong in ([], ["a", *BATCH]):
        done = runs(command, *wrong, "--yes")
        assert done.returncode == 2
        assert "name the runs, or choose them with --filter" in done.stderr
    assert runs(command, "--filter", "step >", "--yes").stderr.endswith("[INVALID_FILTER]\n")


def test_a_rename_says_the_new_name_and_asks_for_a_fence_where_the_run_is_held(train: New, runs: New, project: str) -> None:
    name = train("a", 3, close="RUN_STATUS_FINISHED")
    assert runs("rename", "a", "b/c").stdout == f"{name} is now projects/{project}/runs/b/c\n"
    held = train("held", 3)
    assert runs("rename", held, "b/c").stderr.endswith("[RUN_HELD]\n")
    assert runs("rename", "no", "x").stderr.endswith("[RUN_NOT_FOUND]\n")
    done = runs("rename", held, "free", "--fence", "--json")
    assert (json.loads(done.stdout)["name"], done.returncode) == (f"projects/{project}/runs/free", 0)
    assert runs("rename", "free", "b/c").stderr.endswith("[RUN_EXISTS]\n")
    happened = json.loads(runs("show", "free", "--json").stdout)["events"][-1]
    assert (happened["kind"], happened["step"]) == ("renamed", 3)


def test_long_work_shows_how_far_it_is_at_a_terminal(ask: New, server: Any, project: str) -> None:
    with connect(server.target) as client:
        for index in range(25):
            request = tuner_service_pb2.OpenSessionRequest(name=f"projects/{project}/runs/{index}", after_step=0)
            client.call("OpenSession", request)
    command = (sys.executable, "-m", "mechanicd.cli", "runs", "archive", "--target", server.target, "--project", project)
    terminal = Terminal(*command, "--filter", "step = 0", "--yes")
    try:
        assert terminal.wait_for(r"runs  \[#+\]\s+25/25"), terminal.text
        assert terminal.wait_for("archived 25 runs"), terminal.text
    finally:
        terminal.close()
    assert ask("ListRuns", parent=f"projects/{project}").runs == []


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ServerUnavailable("SERVER_UNREACHABLE", "nobody answers")], ids=repr)
def test_work_that_ends_early_says_how_much_of_it_is_done(failure: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    called: list[str] = []

    def call(client: Any, name: str) -> None:
        if len(called) == 2:
            raise failure
        called.append(name)

    change = _bulk.Change(verb="archive", done="archived", call=call)
    with pytest.raises(type(failure)):
        _bulk._change_all(change, cast(Client, None), ["a", "b", "c", "d", "e"], as_json=False)
    out, said = capsys.readouterr()
    assert (out, said) == ("", "archived 2 runs before this; c may be archived, too; 2 are as they were\n")
