"""The trainers of deploy/: their commands fit their program, and an eviction changes no bit of the Kubernetes job."""

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.targets import DEPLOY, compose, dockerfile, stage
from tests.support.warm import warm

PROGRAM = DEPLOY.parent / "clients/examples/mnist.py"
GRACE = 12.0
"""Seconds that a trainer takes at most to close its run."""


def pod() -> dict[str, Any]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes/training-job.yaml").read_text())
    (job,) = [document for document in documents if document["kind"] == "Job"]
    return dict(job["spec"]["template"]["spec"])


def commands() -> dict[str, list[str]]:
    """What each target runs as its trainer."""
    return {
        "image": json.loads(stage("trainer")["CMD"]),
        "compose": compose()["services"]["trainer"]["command"],
        "kubernetes": pod()["containers"][0]["command"],
    }


@pytest.mark.parametrize("name", commands())
def test_a_trainer_s_command_fits_its_program(name: str) -> None:
    python, program, *arguments = commands()[name]
    assert (python, Path(program).name) == ("python", PROGRAM.name)
    copied = [rest.split() for instruction, rest in dockerfile() if instruction == "COPY"]
    assert [str(PROGRAM.relative_to(DEPLOY.parent)), program] in copied
    flags = re.findall(r"add_argument\(\"(--[a-z]+)\"", PROGRAM.read_text())
    assert set(arguments[::2]) <= set(flags)
    assert pod()["terminationGracePeriodSeconds"] > GRACE


@pytest.mark.soak
def test_an_evicted_training_goes_on_with_the_same_bits(
    server: Any, project: str, tmp_path: Path, wait_for: Callable[..., bool], history: Callable[..., list[Any]]
) -> None:
    import torch

    settings = {each["name"]: each["value"] for each in pod()["containers"][0]["env"]}
    environment = {"MECHANICD_TARGET": server.target, "MECHANICD_PROJECT": project}
    environment["MECHANICD_SPILL"] = settings["MECHANICD_SPILL"].replace("/checkpoints", str(tmp_path / "evicted"))

    def start(name: str) -> Any:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        command = [word.replace("/checkpoints", str(folder)) for word in commands()["kubernetes"]][1:]
        command[0] = str(PROGRAM)
        command[command.index("--run") + 1] += f"-{name}"
        return warm("mechanicd.torch").start(*command, folder=folder, environment=environment)

    whole = start("whole").end()
    assert whole.returncode == 0, whole.stderr
    evicted = start("evicted")
    assert wait_for((tmp_path / "evicted/digits.pt").exists, 60.0)
    os.kill(evicted.pid, signal.SIGTERM)
    assert evicted.end().returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
    again = start("evicted").end()
    assert again.returncode == 0, again.stderr
    assert "resumed after epoch" in again.stdout
    one, other = (torch.load(tmp_path / name / "digits.pt", weights_only=True)["model"] for name in ("whole", "evicted"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    ones, others = (history(server.target, f"mnist/job-{name}", project=project) for name in ("whole", "evicted"))
    assert [(each.step, list(each.scale)) for each in ones] == [(each.step, list(each.scale)) for each in others]
