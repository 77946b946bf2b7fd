"""Small experiments on the real data sets that ship with scikit-learn, and made-up records for the judge."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments import _results, _sources
from experiments._catalogue import MECHANIC, PEER_ARMS, Experiment, Row, Task, Training
from experiments._runner import Setup

WINE = Task("logistic/wine", "tabular-wine", "linear", batch=32, steps=60, clip=0.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Like the runner's processes. Two threads that wait for each other are slow on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data sets that the tests train on."""
    folder = tmp_path_factory.mktemp("data")
    _sources.prepare(folder, lambda _: None, ["tabular-wine", "digits"])
    return folder


@pytest.fixture
def tiny() -> Experiment:
    """One row with every method."""
    return Experiment("tiny", "a test", "none", (Row(WINE, "adamw"),), (MECHANIC, *PEER_ARMS), seeds=(0, 1), sweep_seeds=(0, 1))


@pytest.fixture
def new_setup(data: Path, tmp_path: Path, project: str) -> Callable[..., Setup]:
    """`new_setup(target)`: a runner with two processes."""

    def make(target: str | None, name: str = "work") -> Setup:
        return Setup(data, tmp_path / name, target, project, {"cpu": 2})

    return make


@pytest.fixture(scope="session")
def record() -> Callable[..., dict[str, Any]]:
    """`record(training, val=90.0, test=91.0)`: a made-up result. Accuracies are in percent of 100 examples."""

    def make(training: Training, val: float = 90.0, test: float = 90.0, val_loss: float = 0.5, **fields: Any) -> dict[str, Any]:
        right = np.arange(100) < test
        steps = training.row.task.steps
        return {
            "key": training.key,
            "spec": training.spec,
            "diverged": False,
            "val": {"loss": val_loss, "accuracy": val, "count": 100},
            "test": {"loss": 0.5, "accuracy": test, "count": 100},
            "right": _results.encode(right),
            "train_loss": 0.4,
            "scale": 0.01,
            "curve": [[steps // 2, 0.005, 0.6], [steps, 0.01, 0.5]],
            "parameters": 10,
            "seconds": 1.0,
            "wall": 1.5,
            "machine": "a machine of the tests",
            "when": "2026-01-02 03:04",
            **fields,
        }

    return make
