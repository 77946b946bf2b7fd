"""Random SIGKILLs of the server, of trainers, of both, and of PostgreSQL, against an oracle that nobody kills.

In between the server's clock is set, connections are dropped without a word, and readers are slow (`disturbances`).

Each campaign prints its seed and counts. MECHANICD_SOAK=1 (`make soak`) runs it at full length; MECHANICD_SEED repeats one.
"""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mechanicd.store import check, open_store
from mechanicd.tuner import Tuner
from tests.crash import trainer
from tests.crash.disturbances import KINDS as KINDS_BESIDE
from tests.crash.disturbances import Disturbed
from tests.support.soak import SOAK, chosen_seed

TRAINERS, STEPS, KILLS = (4, 6000, 24) if SOAK else (4, 1200, 6)  # KILLS: how often something is killed
DISTURBANCES = 9 if SOAK else 3
BOUND_SECONDS = 400 if SOAK else 100
SCRIPT = Path(__file__).with_name("trainer.py")
JAX_SCRIPT = Path(__file__).with_name("jax_trainer.py")


def oracle(seed: int, _: Path) -> list[float]:
    """S after each step of the training that nothing happens to."""
    tuner = Tuner()
    state = tuner.init()
    scales = []
    for step in range(1, STEPS + 1):
        state = tuner.update(state, trainer.reductions(seed, step, state.scale[0]))
        scales.append(state.scale[0])
    return scales


def jax_oracle(seed: int, folder: Path) -> list[float]:
    """The same of a JAX training: itself, in a process without a server."""
    kept = folder / f"oracle{seed}.npy"
    command = [sys.executable, str(JAX_SCRIPT), "none", "", str(seed), str(STEPS), str(kept), ""]
    subprocess.run(command, check=True, timeout=BOUND_SECONDS)
    scales: list[float] = np.load(kept).tolist()
    return scales


class Training:
    """A trainer process that is started again when it was killed."""

    def __init__(self, script: Path, target: str, index: int, seed: int, folder: Path) -> None:
        self.run, self.seed = f"crash/{index}", seed * 100 + index
        self.checkpoint = folder / f"checkpoint{index}"
        self.log = folder / f"trainer{index}.log"
        self.output = folder / f"trainer{index}.out"
        self._command = [sys.executable, str(script), target, self.run, str(self.seed), str(STEPS)]
        self._command += [str(self.checkpoint), str(folder / "gate")]
        self.start()

    def start(self) -> None:
        with self.log.open("a") as log, self.output.open("a") as output:
            self.process = subprocess.Popen(self._command, stdout=output, stderr=log)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def done(self) -> bool:
        return self.process.poll() == 0


CAMPAIGNS = [("sqlite", "both", "plain"), ("postgres", "all", "plain")]
if SOAK:
    CAMPAIGNS += [("sqlite", victims, "plain") for victims in ("server", "trainers")]
    CAMPAIGNS += [("postgres", victims, "plain") for victims in ("server", "trainers", "both", "postgres")]
    CAMPAIGNS += [("sqlite", victims, "jax") for victims in ("server", "trainers", "both")]
    CAMPAIGNS += [("postgres", "all", "jax")]
KINDS = {"both": ["server", "trainers", "both at once"], "all": ["server", "trainers", "postgres", "both at once"]}


@pytest.mark.timeout(BOUND_SECONDS + 60)
@pytest.mark.parametrize(("engine", "victims", "framework"), CAMPAIGNS, ids=lambda text: text)
def test_every_history_equals_the_oracle_bit_for_bit(
    engine: str,
    victims: str,
    framework: str,
    new_server: Callable[..., Any],
    history: Callable[..., list[Any]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    seed = chosen_seed()
    rng = random.Random(seed)
    postgres = request.getfixturevalue("new_postgres") if engine == "postgres" else None
    server = new_server(store=postgres.create_database("runs") if postgres else "")
    network = Disturbed(server, seed)
    server.start()
    script, truth = (JAX_SCRIPT, jax_oracle) if framework == "jax" else (SCRIPT, oracle)
    trainings = [Training(script, network.target, index, seed, tmp_path) for index in range(TRAINERS)]
    killed = {"server": 0, "trainers": 0, "postgres": 0}
    kinds = KINDS.get(victims, [victims])
    plan = [kinds[index % len(kinds)] for index in range(KILLS)]
    plan += [KINDS_BESIDE[index % len(KINDS_BESIDE)] for index in range(DISTURBANCES)]
    rng.shuffle(plan)
    end = time.monotonic() + BOUND_SECONDS
    try:
        while not all(training.done for training in trainings):
            assert time.monotonic() < end, f"seed {seed}: not finished in {BOUND_SECONDS} s\n" + tails(trainings)
            for training in trainings:
                assert training.process.poll() in (None, 0), f"seed {seed}: a trainer died\n" + tails(trainings)
            time.sleep(rng.uniform(0.0, 0.7))
            alive = [training for training in trainings if not training.done]
            if not plan:
                (tmp_path / "gate").touch()
                continue
            victim = plan.pop()
            if victim in KINDS_BESIDE:
                network.disturb(victim)
            if victim in ("trainers", "both at once"):
                for training in rng.sample(alive, rng.randint(1, len(alive))):
                    training.kill()
                    killed["trainers"] += 1
                    if victim == "trainers":
                        training.start()
            if victim in ("server", "both at once"):
                server.kill()
                killed["server"] += 1
                time.sleep(rng.uniform(0.0, 0.5))
                server.start()
            if victim == "postgres":
                assert postgres is not None
                postgres.kill()
                killed["postgres"] += 1
                time.sleep(rng.uniform(0.0, 0.5))
                postgres.start()
            for training in alive:
                if training.process.poll() not in (None, 0):
                    training.start()
    finally:
        for training in trainings:
            training.kill()
        network.close()
    for training in trainings:
        kept = [(record.step, record.scale[0]) for record in history(server.target, training.run)]
        assert kept == list(enumerate(truth(training.seed, tmp_path), 1)), f"seed {seed}: {training.run}"
    server.stop()
    store = open_store(server.store)
    assert [finding for finding in check(store) if not finding.harmless] == []
    store.close()
    with capsys.disabled():
        steps = TRAINERS * STEPS
        print(
            f"\ncrash oracle, {framework} on {engine}, {victims}: seed {seed}, {steps} steps of {TRAINERS} trainers, "
            f"killed {killed}, disturbed {network.counts}, all bits equal"
        )


def tails(trainings: list[Training]) -> str:
    return "\n".join(f"{training.run}: {training.log.read_text()[-800:]}" for training in trainings)
