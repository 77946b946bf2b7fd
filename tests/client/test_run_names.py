"""Words in run names: what each becomes, what is refused, and what a session is called."""

import logging
import re
import socket
from typing import Any

import pytest

from mechanicd.client import InvalidArgument, Reductions, SessionFenced, open_run
from mechanicd.client.framework import check_settings
from mechanicd.tuner import TunerConfig
from tests.support.settings import SETTINGS

RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
ONE = Reductions(-0.1, 0.0, 1.0, 4.0)


@pytest.fixture(autouse=True)
def no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANKS, "SLURM_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)


def name_of(run: str, target: str | None = "127.0.0.1:1") -> str:
    """What a training that is given this name is called."""
    return check_settings(**{**SETTINGS, "run": run, "target": target}).run.called


@pytest.mark.parametrize(
    ("variables", "run", "name"),
    [
        ({"SLURM_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "3"}, "s/{slurm_job_id}.{slurm_array_task_id}", "s/4711.3"),
        ({"SLURM_JOB_ID": "4711"}, "{slurm_job_id}", "4711"),
        *(({name: "5"}, "bert/rank{rank}", "bert/rank5") for name in RANKS),
        ({"SLURM_PROCID": "6", "RANK": "0"}, "r{rank}", "r0"),
        ({}, "bert/seed0", "bert/seed0"),
    ],
)
def test_words_come_from_the_environment(
    variables: dict[str, str], run: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert name_of(run) == name


@pytest.mark.parametrize(
    ("host", "filled"),
    [("node-7.cluster", "node-7.cluster"), ("Anna\u2019s_Mac", "Anna-s_Mac"), ("-", "host"), ("x" * 99, "x" * 63)],
)
def test_the_host_is_a_segment_whatever_it_is_called(host: str, filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    assert name_of("bert/{host}") == f"bert/{filled}"


@pytest.mark.parametrize(
    ("run", "variable", "warned"), [("r", "127.0.0.1:1", True), ("", "127.0.0.1:1", False), ("r", "", False)]
)
def test_a_named_run_without_a_target_says_that_no_server_records_it_where_the_environment_names_one(
    run: str, variable: str, warned: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MECHANICD_TARGET", variable)
    opened = check_settings(**{**SETTINGS, "run": run}).run
    with caplog.at_level(logging.WARNING, "mechanicd.client"):
        opened.open(TunerConfig()).close()
    assert ("no server records this run, though MECHANICD_TARGET is set" in caplog.text) == warned


def test_random_is_new_for_each_training() -> None:
    names = {name_of("trial/{random}") for _ in range(20)}
    assert len(names) == 20
    assert all(re.fullmatch(r"trial/[0-9a-f]{8}", name) for name in names)


@pytest.mark.parametrize(
    ("run", "reason", "said"),
    [
        (
            "bert/{seed}",
            "RUN_WORD_UNKNOWN",
            "{seed}; known are {host}, {rank}, {slurm_job_id}, {slurm_array_task_id}, {random}",
        ),
        ("bert/{}", "RUN_WORD_UNKNOWN", "has the word {};"),
        ("bert/{HOST}", "RUN_WORD_UNKNOWN", "has the word {HOST}"),
        ("bert/{random:4}", "RUN_WORD_UNKNOWN", "has the word {random:4}"),
        ("bert/{slurm_job_id}", "RUN_WORD_UNSET", "the value of SLURM_JOB_ID in the environment, but that is not set"),
        ("bert/{rank}", "RUN_WORD_UNSET", "RANK, SLURM_PROCID, OMPI_COMM_WORLD_RANK or PMI_RANK in the environment"),
        ("bert/{random", "MALFORMED_NAME", "bert/{random"),
        ("bert/random}", "MALFORMED_NAME", "bert/random}"),
        ("bert/{{random}}", "MALFORMED_NAME", "a run is one to eight segments"),
    ],
)
def test_a_word_that_has_no_value_is_refused_by_name(run: str, reason: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "")  # set, and empty
    for open_it in (lambda: name_of(run), lambda: open_run("127.0.0.1:1", run)):
        with pytest.raises(InvalidArgument, match=re.escape(said)) as refused:
            open_it()
        assert refused.value.reason == reason


def test_a_value_that_is_no_name_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "47 11")
    with pytest.raises(InvalidArgument, match="'bert/47 11'") as refused:
        name_of("bert/{slurm_job_id}")
    assert refused.value.reason == "MALFORMED_NAME"


def test_without_a_target_a_name_stays_as_it_is_written() -> None:
    assert name_of("bert/{slurm_job_id}/{anything}", None) == "bert/{slurm_job_id}/{anything}"


def test_array_tasks_with_names_of_their_own_leave_one_another_alone_and_others_hear_how_to_name_them(
    server: Any, project: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sessions = []
    for task in range(4):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        sessions.append(open_run(server.target, "array/{slurm_array_task_id}", project=project, start=0))
    for session in sessions:
        session.step(ONE)
        session.close()
    assert [session.name for session in sessions] == [f"projects/{project}/runs/array/{task}" for task in range(4)]

    older, newer = (open_run(server.target, "array/all", project=project, start=0) for _ in range(2))
    with pytest.raises(SessionFenced, match=r"names of their own, such as run='sweep/\{slurm_array_task_id\}'"):
        older.step(ONE)
    newer.step(ONE)
    newer.close()
