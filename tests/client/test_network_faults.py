"""Whatever the network does, a step takes no longer than its deadline, and the history ends as the oracle's."""

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from mechanicd.client import Reductions, open_run
from mechanicd.tuner import Tuner
from tests.client import fault_proxy
from tests.support.soak import SOAK, chosen_seed

DEADLINE = 0.3
PATIENCE = 5.0  # a step that is given up at its deadline, on a machine that has other things to do


@pytest.mark.parametrize("fault", [*(fault_proxy.FAULTS if SOAK else ()), "one after the other"])
def test_training_goes_on_and_ends_with_the_oracles_history(
    fault: str, server: Any, project: str, history: Callable[..., list[Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    seed = chosen_seed()
    rng = random.Random(seed)
    faults = list(fault_proxy.FAULTS) if fault == "one after the other" else [fault] * 3
    tuner, longest = Tuner(), 0.0
    state = tuner.init()
    with fault_proxy.FaultProxy(server.target, seed) as proxy:
        session = open_run(proxy.target, "faults", project=project, start=0, deadline=DEADLINE)
        scales = []
        for phase in [None, *(part for each in faults for part in (each, None))]:
            proxy.set(phase)
            for _ in range(rng.randint(20, 60)):
                reductions = Reductions(rng.gauss(-0.1, 1.0), rng.gauss(0, 1), rng.random(), rng.random())
                began = time.monotonic()
                scales.append(session.step(reductions))
                longest = max(longest, time.monotonic() - began)
                state = tuner.update(state, reductions)
                assert scales[-1] == state.scale[0], f"seed {seed}"
                time.sleep(0.001)
        assert session.flush(30) == len(scales), f"seed {seed}"
        session.close()
    assert longest < PATIENCE, f"seed {seed}: a step took {longest:.2f} s, its deadline is {DEADLINE} s"
    kept = [(record.step, record.scale[0]) for record in history(server.target, "faults", project)]
    assert kept == list(enumerate(scales, 1)), f"seed {seed}"
    with capsys.disabled():
        print(f"\nnetwork faults, {fault}: seed {seed}, {len(scales)} steps, the longest {longest:.2f} s, all bits equal")


def test_a_connection_that_a_nat_forgot_is_replaced_and_no_step_is_lost(
    server: Any, project: str, history: Callable[..., list[Any]]
) -> None:
    with fault_proxy.FaultProxy(server.target, 0) as proxy:
        session = open_run(proxy.target, "nat", project=project, start=0, deadline=DEADLINE)
        for _ in range(50):
            session.step(Reductions(-0.1, 0.0, 1.0, 4.0))
        session.flush()
        proxy.set("forgotten")
        for _ in range(50):
            session.step(Reductions(-0.1, 0.0, 1.0, 4.0))
        session.close()
        assert proxy.accepted > 1
    assert [record.step for record in history(server.target, "nat", project)] == list(range(1, 101))
