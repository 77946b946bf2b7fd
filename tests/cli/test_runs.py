"""`mechanicd runs …` as people and scripts use it, against a real server."""

import csv
import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mechanicd.client import open_run
from mechanicd.store import open_store
from mechanicd.tuner import Tuner, TunerState

New = Callable[..., Any]
RUN_KEYS = [
    "name",
    "status",
    "status_message",
    "needs",
    "step",
    "scale",
    "base_lr",
    "labels",
    "create_time",
    "step_time",
    "archive_time",
    "sessions",
    "rewinds",
    "config",
]
CONFIG_KEYS = ["convention", "betas", "s_decay", "s_init", "eps", "initial_wealth", "scale_groups"]
STEP_KEYS = [
    "step",
    "time",
    "outcome",
    "scale_group",
    "scale",
    "h",
    "delta_dot_g",
    "delta_dot_x",
    "g_norm_sq",
    "x_norm_sq",
    "base_lr",
]
# What a user may write into a label or an error: none of it is markup of ours, and none of it may break a table.
HOSTILE = "[/] [red]KeyError: 'x[0]'[/red] \\[ ü"


def strict(text: str) -> Any:
    """JSON as every parser takes it: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def succeeded(done: Any) -> str:
    assert (done.returncode, done.stderr) == (0, "")
    return str(done.stdout)


def failed(done: Any, reason: str) -> str:
    """One line on stderr with the reason, nothing on stdout."""
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(rf"error: .+ \[{reason}\]\n", done.stderr), done.stderr
    return str(done.stderr)


def flat(text: str) -> str:
    """Text without the line breaks that a narrow terminal put in."""
    return re.sub(r"\s+", "", text)


# --- list --------------------------------------------------------------------------------------------------------------


def test_a_list_shows_each_run_with_its_status_step_scale_and_labels(
    train: New, run_cli: New, ask: New, server: Any, project: str
) -> None:
    train("a", 15, labels={"batch": "256"}, close="RUN_STATUS_FINISHED")
    train("b", labels={"note": HOSTILE})
    text = succeeded(run_cli("runs", "list", "--target", server.target, "--project", project))
    lines = text.splitlines()
    assert re.split(r"\s{2,}", lines[0].strip()) == [
        "run",
        "status",
        "step",
        "S",
        "S over the steps",
        "last step",
        "needs",
        "labels",
    ]
    first = next(line for line in lines if "finished" in line)
    scale = ask("GetRun", name=train("a", after_step=15)).run.scale[0]
    assert "15" in first
    assert f"{scale:.3g}" in first
    assert "s ago" in first
    assert "batch=256" in text
    assert flat(f"note={HOSTILE}") in flat(text)
    assert "running" in text


def test_a_list_in_json_is_the_list_that_the_server_gives(train: New, runs: New, ask: New, project: str) -> None:
    train("a", 3, labels={"note": HOSTILE}, close="RUN_STATUS_FAILED", message=HOSTILE)
    train("b", groups=("one", "two"))
    listed = strict(succeeded(runs("list", "--json")))
    assert [list(run) for run in listed] == [RUN_KEYS] * 2
    assert [list(run["config"]) for run in listed] == [CONFIG_KEYS] * 2
    for shown, run in zip(listed, ask("ListRuns", parent=f"projects/{project}").runs, strict=True):
        assert (shown["name"], shown["labels"], shown["step"]) == (run.name, dict(run.labels), run.durable_step)
        assert (shown["scale"], shown["config"]["betas"]) == (list(run.scale), list(run.config.betas))
        assert shown["status_message"] == run.status_message
    assert [run["status"] for run in listed] == ["failed", "running"]
    assert [run["step_time"] is None for run in listed] == [False, True]
    assert listed[1]["config"]["scale_groups"] == ["one", "two"]


def test_a_filter_keeps_what_it_names(train: New, runs: New) -> None:
    train("a", 3, labels={"batch": "256"}, close="RUN_STATUS_FINISHED")
    train("b", 5, labels={"batch": "256"})
    train("c", 5)
    listed = strict(succeeded(runs("list", "--json", "--filter", "labels.batch = 256 AND status = RUNNING AND step > 4")))
    assert [run["name"].split("/")[-1] for run in listed] == ["b"]


def test_a_list_has_a_sketch_of_each_run_unless_it_is_not_wanted(train: New, runs: New) -> None:
    train("a", 40)
    sketch = succeeded(runs("show", "a")).splitlines()[-1]
    (line,) = (line for line in succeeded(runs("list")).splitlines() if ": a " in line)
    (spark,) = re.findall("[▁▂▃▄▅▆▇█]+", line)
    assert (len(spark), max(spark), min(spark)) == (24, max(sketch), min(sketch))
    assert re.search("[▁▂▃▄▅▆▇█]", succeeded(runs("list", "--no-sketch"))) is None


def test_a_list_in_a_pipe_has_a_line_a_run_however_long_its_name_is(train: New, runs: New) -> None:
    train("/".join(["x" * 60] * 4), 3, labels={"note": "y" * 200})
    heading, line = succeeded(runs("list")).splitlines()
    assert "x" * 60 + "/" in line
    assert "y" * 200 in line
    assert heading.startswith("run")


@pytest.mark.parametrize(
    ("sort", "order"),
    [
        ("name", "abc"),
        ("-name", "cba"),
        ("step", "bca"),
        ("-step", "acb"),
        ("age", "cab"),
        ("created", "bac"),
        ("status", "acb"),
    ],
)
def test_a_list_is_in_the_order_that_was_asked_for(train: New, runs: New, sort: str, order: str) -> None:
    train("b", close="RUN_STATUS_PREEMPTED")
    train("a", 9, close="RUN_STATUS_FAILED")
    train("c", 3, close="RUN_STATUS_FINISHED")
    listed = strict(succeeded(runs("list", "--json", "--sort", sort)))
    assert "".join(run["name"][-1] for run in listed) == order


def test_a_list_in_jsonl_and_in_csv_is_the_list_in_json(train: New, runs: New) -> None:
    train("a", 3, labels={"batch": "256", "note": HOSTILE})
    train("b", groups=("one", "two"))
    listed = strict(succeeded(runs("list", "--json")))
    assert [strict(line) for line in succeeded(runs("list", "--format", "jsonl")).splitlines()] == listed
    assert strict(succeeded(runs("list", "--format", "json"))) == listed
    rows = list(csv.DictReader(io.StringIO(succeeded(runs("list", "--format", "csv")), newline="")))
    for row, run in zip(rows, listed, strict=True):
        assert (row["name"], row["status"], int(row["step"])) == (run["name"], run["status"], run["step"])
        assert (float(row["scale_min"]), float(row["scale_max"])) == (min(run["scale"]), max(run["scale"]))
        labels = {key: row[f"labels.{key}"] for key in ("batch", "note")}
        assert labels == {"batch": "", "note": "", **run["labels"]}


def test_a_list_of_nothing_says_how_there_would_be_something(runs: New, server: Any) -> None:
    assert f"a training script creates one with mechanize(…, target='{server.target}')" in succeeded(runs("list"))
    assert "no runs that match the filter" in succeeded(runs("list", "--filter", "step > 5"))
    assert strict(succeeded(runs("list", "--json"))) == []


@pytest.mark.parametrize("command", ["list", "watch"])
def test_a_wrong_filter_is_told_with_its_place(runs: New, command: str) -> None:
    assert "at character 9: expected AND" in failed(runs(command, "--filter", "step > 3 OR step < 1"), "INVALID_FILTER")
    done = runs(command, "--json", "--filter", "color = red")
    assert (done.returncode, done.stdout) == (1, "")
    error = strict(done.stderr)["error"]
    assert error["reason"] == "INVALID_FILTER"
    assert "unknown field 'color'" in error["message"]


# --- show --------------------------------------------------------------------------------------------------------------


def test_show_has_everything_about_a_run_and_a_sketch_of_its_scale(train: New, runs: New, ask: New) -> None:
    name = train("bert/seed0", 50, labels={"note": HOSTILE}, close="RUN_STATUS_FAILED", message=HOSTILE)
    text = succeeded(runs("show", "bert/seed0"))
    assert [key for key in RUN_KEYS if key not in text] == []
    assert flat(HOSTILE) in flat(text)
    scales = [record.scale[0] for record in ask("QuerySeries", name=name).records]
    assert f"S, log scale, steps 1 to 50:  {min(scales):.3g} … {max(scales):.3g}" in text
    sketch = text.splitlines()[-1]
    assert len(sketch) == 50
    assert sketch[scales.index(max(scales))] == "█"
    assert sketch[scales.index(min(scales))] == "▁"


def test_show_in_json_is_one_of_the_list(train: New, runs: New) -> None:
    name = train("a", 3)
    shown = strict(succeeded(runs("show", name, "--json")))
    assert list(shown) == [*RUN_KEYS, "command", "events"]
    del shown["command"], shown["events"]
    assert [shown] == strict(succeeded(runs("list", "--json")))


def test_show_counts_from_the_first_step_that_the_server_has(train: New, runs: New) -> None:
    adopted = TunerState.from_rows(40, Tuner().init().rows).to_bytes()
    train("a", 5, tuner_state=adopted)
    assert "S, log scale, steps 41 to 45: " in succeeded(runs("show", "a"))


def test_show_of_a_run_without_steps_has_no_sketch(train: New, runs: New) -> None:
    train("a")
    assert "log scale" not in succeeded(runs("show", "a"))


# --- unknown runs, unreachable servers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("show",), ("export",), ("delete", "--yes")])
def test_an_unknown_run_is_an_error_with_a_way_on(runs: New, project: str, command: tuple[str, ...]) -> None:
    said = failed(runs(*command, "nobody"), "RUN_NOT_FOUND")
    assert f"projects/{project}/runs/nobody" in said
    assert "`mechanicd runs list` shows all runs" in said
    done = runs(*command, "nobody", "--json")
    assert (done.returncode, done.stdout, strict(done.stderr)["error"]["reason"]) == (1, "", "RUN_NOT_FOUND")


def test_a_malformed_name_is_an_error_with_the_right_form(runs: New) -> None:
    assert "a run is one to eight segments" in failed(runs("show", "no spaces"), "MALFORMED_NAME")
    assert "a project is one segment" in failed(runs("show", "projects/a b/runs/x"), "MALFORMED_NAME")


@pytest.mark.parametrize(
    "command", [("list",), ("show", "a"), ("watch",), ("export", "a"), ("delete", "--yes", "a")], ids=lambda command: command[0]
)
def test_a_server_that_is_not_there_is_an_error_with_advice(command: tuple[str, ...], here: New, tmp_path: Path) -> None:
    target = f"unix:{tmp_path / 'nobody'}"
    said = failed(here("runs", command[0], "--target", target, *command[1:]), "SERVER_UNREACHABLE")
    assert f"no mechanicd answers at {target}" in said
    assert "start one with `mechanicd serve`, or check the address" in said


def test_an_unreachable_server_is_told_by_the_process_in_json_too(run_cli: New, tmp_path: Path) -> None:
    done = run_cli("runs", "list", "--json", "--target", f"unix:{tmp_path / 'nobody'}")
    assert (done.returncode, done.stdout) == (1, "")
    assert strict(done.stderr)["error"]["reason"] == "SERVER_UNREACHABLE"


# --- export ------------------------------------------------------------------------------------------------------------


def exported(row: dict[str, Any]) -> dict[str, Any]:
    """A row of either format with its numbers as numbers."""
    numbers = {key: float(row[key]) for key in ("scale", "h", "delta_dot_g", "delta_dot_x", "g_norm_sq", "x_norm_sq")}
    lr = None if row["base_lr"] in ("", None) else float(row["base_lr"])
    return {**row, **numbers, "step": int(row["step"]), "base_lr": lr}


def asked(records: list[Any], groups: tuple[str, ...]) -> list[dict[str, Any]]:
    """What QuerySeries says, as the rows of an export."""
    outcomes = {1: "tuned", 2: "non_finite", 3: "held"}
    return [
        {
            "step": record.step,
            "time": f"{record.time.ToDatetime().isoformat(timespec='milliseconds')}+00:00",
            "outcome": outcomes[record.outcome],
            "scale_group": group,
            "scale": record.scale[index],
            "h": record.h[index],
            **{field.name: values[index] for field, values in record.reductions.ListFields()},
            "base_lr": record.base_lr if record.HasField("base_lr") else None,
        }
        for record in records
        for index, group in enumerate(groups)
    ]


def same(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows in which NaN equals itself and −0.0 is not 0.0."""
    return [{key: value.hex() if isinstance(value, float) else value for key, value in row.items()} for row in rows]


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_an_export_is_the_history_to_the_last_bit(train: New, run_cli: New, ask: New, form: str, server: Any) -> None:
    groups = ("embed, and", 'the "head"')
    bad = {3: math.nan, 4: math.inf, 5: -math.inf, 6: -0.0, 7: 5e-324, 8: 0.1 + 0.2}
    name = train("a", 20, groups=groups, bad=bad)
    text = succeeded(run_cli("runs", "export", "--target", server.target, name, "--format", form))
    if form == "csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        assert reader.fieldnames == STEP_KEYS
        rows = list(reader)
    else:
        rows = [strict(line) for line in text.splitlines()]
        assert [list(row) for row in rows] == [STEP_KEYS] * 40
    assert same([exported(row) for row in rows]) == same(asked(ask("QuerySeries", name=name).records, groups))


def test_an_export_in_json_is_the_export_in_jsonl(train: New, runs: New) -> None:
    train("a", 5)
    assert succeeded(runs("export", "a", "--json")) == succeeded(runs("export", "a", "--format", "jsonl"))


def test_an_export_of_a_branch_has_the_steps_given_up(train: New, runs: New) -> None:
    train("a", 10)
    train("a", 2, after_step=6)
    own, branch = (
        [int(row["step"]) for row in csv.DictReader(io.StringIO(succeeded(runs("export", "a", *options))))]
        for options in ([], ["--branch", "1"])
    )
    assert (own, branch) == ([1, 2, 3, 4, 5, 6, 7, 8], [7, 8, 9, 10])
    assert "branch 2 does not exist; choose one from 0 to 1" in failed(runs("export", "a", "--branch", "2"), "INVALID_RANGE")


def test_an_export_of_a_range_has_both_its_ends(train: New, runs: New) -> None:
    train("a", 10)
    rows = csv.DictReader(io.StringIO(succeeded(runs("export", "a", "--first", "3", "--last", "5"))))
    assert [int(row["step"]) for row in rows] == [3, 4, 5]
    assert "first_step 5 is after last_step 3" in failed(runs("export", "a", "--first", "5", "--last", "3"), "INVALID_RANGE")


def test_an_export_in_json_format_is_one_array_of_the_lines(train: New, runs: New) -> None:
    train("a", 700, bad={3: math.nan})
    lines = [strict(line) for line in succeeded(runs("export", "a", "--format", "jsonl")).splitlines()]
    assert strict(succeeded(runs("export", "a", "--format", "json"))) == lines
    train("b")
    assert strict(succeeded(runs("export", "b", "--format", "json"))) == []


def test_an_export_of_a_run_without_steps_has_the_heading_alone(train: New, runs: New) -> None:
    train("a")
    assert succeeded(runs("export", "a")).strip() == ",".join(STEP_KEYS)
    assert succeeded(runs("export", "a", "--json")) == ""


# --- delete ------------------------------------------------------------------------------------------------------------


def test_delete_asks_and_without_an_answer_nothing_is_deleted(
    train: New, runs: New, ask: New, server: Any, project: str
) -> None:
    name = train("a", 3)
    command = [sys.executable, "-m", "mechanicd.cli", "runs", "delete", "--fence", "--target", server.target]
    command += ["--project", project, "a"]
    for answer in ("", "n\n", "\n"):
        done = subprocess.run(command, input=answer, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert f"Delete {name} and its whole history? [y/N]" in done.stderr
        assert len(ask("QuerySeries", name=name).records) == 3
    done = subprocess.run(command, input="y\n", capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"deleted {name}\n")
    failed(runs("show", "a"), "RUN_NOT_FOUND")


def test_delete_with_yes_does_not_ask(train: New, runs: New) -> None:
    names = [train(run, 3) for run in ("a", "b", "c")]
    assert succeeded(runs("delete", "a", "--yes", "--fence")) == f"deleted {names[0]}\n"
    assert strict(succeeded(runs("delete", names[1], "--yes", "--fence", "--json"))) == {"deleted": names[1]}
    assert [run["name"] for run in strict(succeeded(runs("list", "--json")))] == [names[2]]


# --- watch -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def watch(server: Any, project: str) -> Iterator[New]:
    """`mechanicd runs watch` at work; lines are read from its stdout."""
    started = []

    def start(*options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "mechanicd.cli", "runs", "watch", "--target", server.target, "--project", project]
        started.append(subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_watch_prints_what_there_is_and_each_change_until_ctrl_c(train: New, runs: New, watch: New, project: str) -> None:
    train("a", 3)
    process = watch()
    assert re.fullmatch(rf"{project}: a  running  step 3  S \S+\n", process.stdout.readline())
    train("a", 2, after_step=3, close="RUN_STATUS_FINISHED")
    lines = iter(process.stdout.readline, "")
    assert any(re.fullmatch(rf"{project}: a  finished  step 5  S \S+\n", line) for line in lines)
    succeeded(runs("delete", "a", "--yes", "--fence"))
    assert any(line == f"projects/{project}/runs/a  deleted\n" for line in lines)
    process.send_signal(2)
    rest, said = process.communicate(timeout=30)
    assert (process.returncode, rest, said) == (0, "", "")


def test_watch_in_json_has_an_object_a_line(train: New, runs: New, watch: New, project: str) -> None:
    name = train("a", 3)
    train("other")
    process = watch("--json", "--filter", "name : runs/a")
    first = strict(process.stdout.readline())
    assert (list(first), first["name"], first["step"]) == (RUN_KEYS, name, 3)
    succeeded(runs("delete", "a", "--yes", "--fence"))
    assert strict(process.stdout.readline()) == {"gone": name}


def test_watch_waits_for_a_server_that_is_away_and_tells_only_what_has_changed(new_server: New) -> None:
    server = new_server("--grace", "0").start()
    for name in ("kept", "deleted"):
        open_run(server.target, name, start=0).close()
    command = [sys.executable, "-m", "mechanicd.cli", "runs", "watch", "--target", server.target, "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert {strict(process.stdout.readline())["name"] for _ in range(2)} == {
            "projects/default/runs/kept",
            "projects/default/runs/deleted",
        }
        server.kill()
        assert re.fullmatch(r"no mechanicd answers at .*\[SERVER_UNREACHABLE\]; waiting for it\n", process.stderr.readline())
        with closing(open_store(server.store)) as store:
            deleted = store.get("default", "deleted")
            assert deleted is not None
            store.delete(deleted.id)
        server.start()
        open_run(server.target, "new", start=0).close()
        assert process.stderr.readline() == "the server answers again\n"
        lines = [strict(process.stdout.readline()) for _ in range(2)]
        while lines[-1].get("status") not in (None, "finished"):
            lines.append(strict(process.stdout.readline()))
        told = {line.get("name") or line["gone"] for line in lines}
        assert told == {"projects/default/runs/new", "projects/default/runs/deleted"}
        process.send_signal(2)
        rest, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (0, "")
    assert "runs/kept" not in rest


# --- the environment -----------------------------------------------------------------------------------------------------


def test_target_and_project_may_come_from_the_environment(
    train: New, server: Any, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = train("a", 1)
    monkeypatch.setenv("MECHANICD_TARGET", server.target)
    monkeypatch.setenv("MECHANICD_PROJECT", project)
    for command in (["list"], ["show", "a"]):
        done = subprocess.run(
            [sys.executable, "-m", "mechanicd.cli", "runs", *command, "--json"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        shown = strict(succeeded(done))
        assert (shown if isinstance(shown, dict) else shown[0])["name"] == name


# --- needs -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def sick(train: New) -> str:
    """Of three runs the middle one: its steps from 11 on are no numbers."""
    train("a", 40)
    train("c", 40)
    return str(train("b", 40, bad=dict.fromkeys(range(11, 41), math.nan)))


def test_what_a_run_needs_is_told_wherever_runs_are_shown(sick: str, runs: New) -> None:
    listed = strict(succeeded(runs("list", "--json")))
    assert [[need["kind"] for need in run["needs"]] for run in listed] == [[], ["non_finite"], []]
    (need,) = listed[1]["needs"]
    assert need["step"] == 11
    (line,) = (line for line in succeeded(runs("list")).splitlines() if ": b " in line)
    assert "non_finite" in line
    shown = succeeded(runs("show", "b"))
    assert f"needs attention: {need['message']} [non_finite]" in flat_lines(shown)
    assert [run["needs"] for run in strict(succeeded(runs("list", "--format", "json", "--filter", "needs : *")))] == [[need]]


def test_a_list_by_needs_begins_with_who_has_some(sick: str, runs: New) -> None:
    listed = strict(succeeded(runs("list", "--json", "--sort", "needs")))
    assert [run["name"][-1] for run in listed] == ["b", "a", "c"]


def test_show_tells_what_happened_to_a_run_in_order(train: New, runs: New) -> None:
    train("a", 9, close="RUN_STATUS_PREEMPTED", message="told to stop")
    train("a", 2, after_step=4)
    events = strict(succeeded(runs("show", "a", "--json")))["events"]
    assert [(event["kind"], event["step"]) for event in events] == [("opened", 0), ("closed", 9), ("rewound", 4)]
    text = succeeded(runs("show", "a"))
    assert "events:" in text
    assert "closed as preempted: told to stop" in text


def flat_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]
