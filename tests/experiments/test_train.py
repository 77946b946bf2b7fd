"""One training: interrupted and resumed, it reaches the same result bit for bit."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from experiments import _data
from experiments._arms import Where
from experiments._catalogue import MECHANIC, PEER_ARMS, Arm, Row, Task, Training, sweep
from experiments._train import train

DIGITS = Task("vision/digits-mlp", "digits", "mlp", batch=32, steps=80)


def result(training: Training, data: Path, where: Where, checkpoint: Path, stop_after: int | None = None) -> Any:
    steps = count(1)
    made = train(
        training, lambda name: _data.load(data, name), "cpu", where, checkpoint, lambda: next(steps) == (stop_after or -1)
    )
    if made is not None:
        del made["seconds"], made["wall"]
    return made


@pytest.mark.parametrize("arm", [sweep(0.01), MECHANIC, *PEER_ARMS], ids=lambda arm: arm.name)
def test_stopped_between_steps_it_resumes_to_the_same_result(
    arm: Arm, data: Path, server: Any, project: str, tmp_path: Path
) -> None:
    training = Training(Row(DIGITS, "adamw"), arm, 0)
    checkpoint = tmp_path / "checkpoint.pt"
    whole = result(training, data, Where(None, project), checkpoint)
    assert whole["test"]["accuracy"] > 50.0 or arm.method in ("mechanic", "prodigy", "mechanic-pytorch"), "80 steps are few"
    where = Where(server.target, project)
    assert result(training, data, where, checkpoint, stop_after=33) is None
    assert checkpoint.exists() is (arm.method in ("sweep", "mechanic")), "the peers start over"
    assert result(training, data, where, checkpoint) == whole
    assert not checkpoint.exists()


def test_a_mechanized_run_is_on_the_server_with_its_labels_and_every_step(
    data: Path, server: Any, project: str, tmp_path: Path, history: Any, run_cli: Any
) -> None:
    training = Training(Row(DIGITS, "sgd"), MECHANIC, 1)
    made = result(training, data, Where(server.target, project), tmp_path / "checkpoint.pt")
    steps = history(server.target, training.key, project)
    assert len(steps) == 80
    assert made["scale"] == pytest.approx(steps[-1].scale[0], rel=1e-5)
    which = ("--target", server.target, "--project", project, "--filter", 'labels.base = "sgd"', "--json")
    (run,) = json.loads(run_cli("runs", "list", *which).stdout)
    assert run["name"] == f"projects/{project}/runs/{training.key}"
    assert run["labels"] == training.labels


def test_a_far_too_large_rate_is_reported_as_diverged(data: Path, tmp_path: Path) -> None:
    training = Training(Row(replace(DIGITS, clip=0.0), "sgd"), sweep(1e30), 0)
    made = result(training, data, Where(None, "p"), tmp_path / "checkpoint.pt")
    assert made["diverged"]
    assert made["test"]["loss"] is None


def test_a_checkpoint_with_another_spec_is_not_used(data: Path, tmp_path: Path) -> None:
    training = Training(Row(DIGITS, "adamw"), MECHANIC, 0)
    changed = Training(Row(replace(DIGITS, batch=16), "adamw"), MECHANIC, 0)
    checkpoint, where = tmp_path / "checkpoint.pt", Where(None, "p")
    assert result(training, data, where, checkpoint, stop_after=20) is None
    assert result(changed, data, where, checkpoint) == result(changed, data, where, tmp_path / "other.pt")
