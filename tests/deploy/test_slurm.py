"""deploy/slurm in bash, with Slurm's own commands replaced: a server in a job, trainings that find it, preemptions, arrays."""

import functools
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mechanicd.client import connect
from mechanicd.tuner import Tuner, TunerState
from mechanicd.v1 import resources_pb2, run_service_pb2
from tests.crash.trainer import reductions
from tests.deploy.place import Place
from tests.deploy.targets import DEPLOY

TRAINER = DEPLOY.parent / "tests/crash/trainer.py"
STEPS = 400
SEED = 5


class Cluster:
    """One node. `requeued` are the jobs that asked to be started again."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.home = place.folder / "home"
        self.log = place.folder / "requeued"
        place.program("srun", '#!/bin/sh\nexec "$@"\n')
        place.program("scontrol", f'#!/bin/sh\necho "$@" >>{self.log}\n')
        place.program("hostname", "#!/bin/sh\necho localhost\n")
        place.program("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')

    @property
    def requeued(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def start(self, script: str, *command: str, job: int, **settings: str) -> "subprocess.Popen[str]":
        """Starts a job on the node."""
        port = self.place.grpc.rpartition(":")[2]
        settings = {"MECHANICD_WAIT": "60", **settings} | {
            "MECHANICD_HOME": str(self.home),
            "MECHANICD_PORT": port,
            "SLURM_JOB_ID": str(job),
        }
        return self.place.start(["bash", str(DEPLOY / "slurm" / script), *command], **settings)

    def settings(self) -> dict[str, str]:
        """What the server tells its trainers."""
        (line,) = (self.home / "server.env").read_text().splitlines()
        return dict(word.split("=", 1) for word in shlex.split(line)[1:])


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    place = Place()
    yield Cluster(place)
    place.remove()


@pytest.fixture
def jobs(cluster: Cluster) -> Iterator["list[subprocess.Popen[str]]"]:
    """Jobs that are ended after the test, with all that they started."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for job in started:
        job.send_signal(signal.SIGTERM)
    for job in started:
        job.wait(60)


def command(cluster: Cluster, run: str, steps: int = STEPS) -> list[str]:
    """A training, as train.sbatch takes it; it takes its last steps only when its gate is open."""
    words = f'exec python {TRAINER} "$MECHANICD_TARGET" "{run}" {SEED} {steps} {{0}}-$SLURM_JOB_ID {{0}}-gate'
    return ["bash", "-c", words.replace("{0}", str(cluster.home / "checkpoint"))]


@functools.cache
def expected(steps: int = STEPS) -> TunerState:
    """The tuner's state after the same training without an interruption."""
    tuner = Tuner()
    state = tuner.init()
    for step in range(1, steps + 1):
        state = tuner.update(state, reductions(SEED, step, state.scale[0]))
    return state


def read(cluster: Cluster, run: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, value in cluster.settings().items():
        monkeypatch.setenv(name, value)
    with connect() as client:
        return client.call("GetRun", run_service_pb2.GetRunRequest(name=f"projects/default/runs/{run}")).run


def finished(cluster: Cluster, run: str, monkeypatch: pytest.MonkeyPatch, steps: int = STEPS) -> bool:
    """Whether the run took these steps, and its S has the bits of a training without an interruption."""
    found = read(cluster, run, monkeypatch)
    there = (found.status, found.durable_step, list(found.scale))
    return there == (resources_pb2.RUN_STATUS_FINISHED, steps, list(expected(steps).scale))


def test_a_server_in_a_job_a_training_that_comes_back_and_an_array(
    cluster: Cluster, jobs: "list[subprocess.Popen[str]]", wait_for: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ("train.sbatch", *command(cluster, "bert/{slurm_job_id}"))
    jobs.append(cluster.start(*train, job=7))  # before there is a server
    jobs.append(cluster.start("server.sbatch", job=1))
    checkpoint = cluster.home / "checkpoint-7"
    assert wait_for(lambda: checkpoint.exists() or jobs[1].poll() is not None, 60.0), cluster.place.log()
    assert checkpoint.exists(), cluster.place.log()
    assert {oct((cluster.home / name).stat().st_mode)[-3:] for name in ("token", "tls.key", "server.env")} == {"600"}

    jobs[0].send_signal(signal.SIGUSR1)  # the time limit is near: it asks for another turn
    assert jobs[0].wait(60) == 0
    assert cluster.requeued == ["requeue 7"]
    assert read(cluster, "bert/7", monkeypatch).status == resources_pb2.RUN_STATUS_PREEMPTED

    (cluster.home / "checkpoint-gate").touch()
    again = cluster.start(*train, job=7)
    sweep = ("train.sbatch", *command(cluster, "sweep/{slurm_array_task_id}", 100))
    tasks = [cluster.start(*sweep, job=20 + task, SLURM_ARRAY_TASK_ID=str(task)) for task in range(2)]
    failing = cluster.start("train.sbatch", "false", job=30)
    jobs += [again, *tasks, failing]
    assert [job.wait(60) for job in jobs[2:]] == [0, 0, 0, 1], cluster.place.log()
    assert cluster.requeued == ["requeue 7"], "an error is no preemption"
    assert finished(cluster, "bert/7", monkeypatch)
    assert checkpoint.read_bytes() == expected().to_bytes()
    assert [finished(cluster, f"sweep/{task}", monkeypatch, 100) for task in range(2)] == [True, True]
    jobs[1].send_signal(signal.SIGTERM)
    assert jobs[1].wait(60) == 0
    assert "every answered step is committed" in cluster.place.log()


@pytest.mark.soak
def test_the_server_s_turn_ends_while_somebody_trains_and_slurm_preempts_the_training(
    cluster: Cluster, jobs: "list[subprocess.Popen[str]]", wait_for: Callable[..., bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ("train.sbatch", *command(cluster, "bert/{slurm_job_id}"))
    jobs += [cluster.start("server.sbatch", job=1), cluster.start(*train, job=7)]
    assert wait_for((cluster.home / "checkpoint-7").exists, 60.0), cluster.place.log()
    jobs[0].send_signal(signal.SIGUSR1)
    assert jobs[0].wait(60) == 0
    assert cluster.requeued == ["requeue 1"]
    jobs.append(cluster.start("server.sbatch", job=1))  # it has a new certificate, at the same address
    (cluster.home / "checkpoint-gate").touch()
    assert jobs[1].wait(60) == 0, cluster.place.log()
    assert finished(cluster, "bert/7", monkeypatch)

    (cluster.home / "checkpoint-gate").unlink()
    jobs.append(cluster.start(*train, job=8))
    assert wait_for((cluster.home / "checkpoint-8").exists, 60.0), cluster.place.log()
    jobs[3].send_signal(signal.SIGTERM)  # scancel, or a preemption after which Slurm itself requeues the job
    assert jobs[3].wait(60) == 128 + signal.SIGTERM
    assert cluster.requeued == ["requeue 1"]
    (cluster.home / "checkpoint-gate").touch()
    jobs.append(cluster.start(*train, job=8))
    assert jobs[4].wait(60) == 0, cluster.place.log()
    assert finished(cluster, "bert/8", monkeypatch)


def test_a_training_without_a_server_to_find_says_so(cluster: Cluster) -> None:
    job = cluster.start("train.sbatch", "true", job=7, MECHANICD_WAIT="1")
    assert job.wait(60) == 1
    assert "submit server.sbatch first" in cluster.place.log()
