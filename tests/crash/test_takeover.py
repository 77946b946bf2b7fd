"""Two servers over one PostgreSQL: when the owner of a run stops moving, the run goes on at the other, and the owner, awake
again, writes nothing. In between clocks are set, connections are dropped without a word, and readers are slow."""

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mechanicd.client import Reductions, SessionFenced, open_run
from mechanicd.store import check, open_store
from mechanicd.tuner import Tuner
from tests.crash.disturbances import KINDS, Disturbed
from tests.support.envoy import EnvoyProcess
from tests.support.soak import SOAK, chosen_seed

ROUNDS = 12 if SOAK else 3
TRAINER = Path(__file__).with_name("trainer.py")


class Job:
    """A training on a thread of its own, each step held to a tuner in this process."""

    def __init__(self, target: str, run: str, seed: int) -> None:
        self._rng = random.Random(seed)
        self.session = open_run(target, run, start=0, deadline=0.5)
        self.scales: list[float] = []
        self.longest = 0.0
        self.error: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """Stops, and makes all durable; the number of steps."""
        self._ended.set()
        self._thread.join(30)
        assert self.error is None, self.error
        assert self.session.flush(30) == len(self.scales)
        self.session.close()
        return len(self.scales)

    def _train(self) -> None:
        tuner = Tuner()
        state = tuner.init()
        try:
            while not self._ended.is_set():
                rng = self._rng
                taken = Reductions(rng.gauss(-0.1, 1.0), rng.gauss(0, 1), rng.random(), rng.random())
                began = time.monotonic()
                self.scales.append(self.session.step(taken))
                self.longest = max(self.longest, time.monotonic() - began)
                state = tuner.update(state, taken)
                assert self.scales[-1] == state.scale[0]
                time.sleep(0.001)
        except BaseException as error:
            self.error = error


@pytest.fixture
def replicas(new_server: Callable[..., Any], postgres: Any) -> list[Any]:
    """Two servers over one database. They commit seldom, so that a frozen one holds steps that nobody else has."""
    url = postgres.create_database(f"takeover{random.SystemRandom().randrange(10**9)}")
    servers = [new_server("--flush-interval", "0.2", store=url) for _ in range(2)]
    for server in servers:
        server.set_clock(0.0)
        server.start()
    return servers


@pytest.fixture
def networks(replicas: list[Any]) -> Iterator[list[Disturbed]]:
    """What is between the trainers and each server."""
    made = [Disturbed(server, seed) for seed, server in enumerate(replicas)]
    yield made
    for network in made:
        network.close()


@pytest.fixture(params=["a list of targets", pytest.param("envoy", marks=pytest.mark.soak)])
def target(request: pytest.FixtureRequest, networks: list[Disturbed], tmp_path: Path) -> Any:
    """How the trainers find the servers."""
    if request.param == "envoy":
        (tmp_path / "proxy").mkdir()
        envoy = EnvoyProcess(tmp_path / "proxy", [network.target for network in networks])
        envoy.start()
        yield envoy.target
        envoy.stop()
    else:
        yield ",".join(network.target for network in networks)


def steps_of(store: Any, run: str) -> int:
    row = store.get("default", run)
    return 0 if row is None else int(row.last_step)


@pytest.mark.timeout(240)
def test_a_run_goes_on_at_the_other_server_and_the_zombie_writes_nothing(
    target: str,
    replicas: list[Any],
    networks: list[Disturbed],
    wait_for: Callable[..., bool],
    history: Callable[..., list[Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed = chosen_seed()
    rng = random.Random(seed)
    jobs = [Job(target, f"job{index}", seed + index) for index in range(4)]
    with closing(open_store(replicas[0].store, readonly=True)) as look:
        for round_ in range(ROUNDS):
            frozen = replicas[round_ % 2]
            if round_ % 3 == 1:
                rng.choice(networks).disturb(KINDS[round_ // 3 % len(KINDS)])
            time.sleep(rng.uniform(0.3, 0.6))
            frozen.freeze()
            reached = [len(job.scales) for job in jobs]
            # Every run's steps become durable though one server stands still.
            for index, steps in enumerate(reached):
                assert wait_for(lambda index=index, steps=steps: steps_of(look, f"job{index}") > steps, 30), f"seed {seed}"
            frozen.thaw()
        time.sleep(0.5)
        total = sum(job.end() for job in jobs)
    zombies = sum(server.log.read_text().count("another server took it over") for server in replicas)
    for server in replicas:
        assert server.stop() == 0
    store = open_store(replicas[0].store)
    for index, job in enumerate(jobs):
        row = store.get("default", f"job{index}")
        assert row is not None
        kept = [(step.step, step.scale[0]) for step in store.steps(row, 0, 1, 2**62, 2**62)]
        assert kept == list(enumerate(job.scales, 1)), f"seed {seed}: job{index}"
        assert row.session_count == 1, "one training, one session, whatever servers it had"
    assert [finding for finding in check(store) if not finding.harmless] == []
    store.close()
    assert zombies > 0, "a server that woke up found that it had lost a run"
    with capsys.disabled():
        longest = max(job.longest for job in jobs)
        befell = {kind: sum(network.counts[kind] for network in networks) for kind in KINDS}
        print(
            f"\ntakeover: seed {seed}, {ROUNDS} freezes, {befell}, {total} steps of {len(jobs)} runs, "
            f"{zombies} runs lost by a zombie, the longest step {longest:.2f} s, all bits equal"
        )


def test_a_trainer_that_has_a_successor_at_another_server_is_refused_by_name(replicas: list[Any]) -> None:
    first, second = (server.target for server in replicas)
    old = open_run(first, "two", start=0)
    for _ in range(50):
        old.step(Reductions(-1.0, 0.5, 1.0, 2.0))
    old.flush()
    new = open_run(second, "two", start=None)

    def go_on() -> None:
        for _ in range(100_000):
            old.step(Reductions(-1.0, 0.5, 1.0, 2.0))
            time.sleep(0.001)

    with pytest.raises(SessionFenced):
        go_on()
    assert new.state.step == 50
    assert new.step(Reductions(-1.0, 0.5, 1.0, 2.0)) > 0
    assert new.flush() == 51, "nothing of what the old one did in between is in the history"
    new.close()
    old.close()


def test_a_server_that_drains_hands_its_runs_to_the_other(replicas: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    """A rolling restart: each server in turn ends by SIGTERM and starts again, and no step is missing."""
    seed = chosen_seed()
    target = ",".join(server.target for server in replicas)
    jobs = [Job(target, f"roll{index}", seed + index) for index in range(4)]
    for server in replicas * 2:
        time.sleep(0.4)
        assert server.stop() == 0
        server.start()
    time.sleep(0.4)
    total = sum(job.end() for job in jobs)
    store = open_store(replicas[0].store, readonly=True)
    for index, job in enumerate(jobs):
        row = store.get("default", f"roll{index}")
        assert row is not None
        kept = [(step.step, step.scale[0]) for step in store.steps(row, 0, 1, 2**62, 2**62)]
        assert kept == list(enumerate(job.scales, 1)), f"seed {seed}: roll{index}"
    store.close()
    with capsys.disabled():
        print(f"\nrolling restarts: seed {seed}, 4 drains, {total} steps of {len(jobs)} runs, all bits equal")


def test_of_two_trainer_processes_on_one_run_the_older_is_refused_within_one_step(
    server: Any, project: str, tmp_path: Path, wait_for: Callable[..., bool]
) -> None:
    """The older one, a process of its own, says with what it ended, and how many steps it took after its successor came."""
    command = [sys.executable, "-c", ZOMBIE, server.target, str(tmp_path / "successor")]
    environment = {**os.environ, "MECHANICD_PROJECT": project}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as old:
        assert old.stdout is not None
        assert old.stdin is not None
        assert old.stdout.readline() == "trained 100\n"
        new = open_run(server.target, "zombie", project=project, start=None)
        assert new.state.step == 100
        old.stdin.write("go on\n")
        old.stdin.flush()
        assert old.stdout.readline() == "SESSION_FENCED after 0 steps\n"
        assert old.wait(30) == 3
    new.step(Reductions(-1.0, 0.5, 1.0, 2.0))
    assert new.flush() == 101
    new.close()


ZOMBIE = """
import sys
from mechanicd.client import Reductions, SessionFenced, open_run
session = open_run(sys.argv[1], "zombie", start=0)
for _ in range(100):
    session.step(Reductions(-1.0, 0.5, 1.0, 2.0))
session.flush()
print("trained", session.state.step, flush=True)
sys.stdin.readline()
taken = 0
try:
    while True:
        session.step(Reductions(-1.0, 0.5, 1.0, 2.0))
        taken += 1
except SessionFenced as error:
    print(error.reason, "after", taken, "steps", flush=True)
    sys.exit(3)
"""
