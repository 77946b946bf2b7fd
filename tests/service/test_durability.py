"""A step that was announced durable survives SIGKILL."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from mechanicd.client import Reductions, open_run
from mechanicd.store import SQLiteStore
from mechanicd.tuner import TunerState


def stored(server: Any, run: str) -> tuple[int, list[tuple[int, float]], TunerState]:
    """The last step, every (step, S) and the tuner's state in the store that a killed server left."""
    store = SQLiteStore(str(server.database))
    row = store.get("default", run)
    assert row is not None
    steps = [(step.step, step.scale[0]) for step in store.steps(row, 0, 1, 10**9, 10**9)]
    store.close()
    return row.last_step, steps, TunerState.from_bytes(row.state, row.config)


@pytest.mark.parametrize("count", [1, 7, 50])
def test_with_durability_step_every_answered_step_survives_a_kill_right_after_it(
    new_server: Callable[..., Any], count: int
) -> None:
    server = new_server("--durability", "step").start()
    session = open_run(server.target, "run", start=0)
    rng = random.Random(count)
    scales = [session.step(Reductions(rng.gauss(-0.3, 1), 0.1, 1.0, 2.0)) for _ in range(count)]
    assert session.backlog == 0, "each answer announced its own step durable"
    server.kill()
    last, steps, state = stored(server, "run")
    assert last == count
    assert steps == list(enumerate(scales, 1))
    assert state == session.state
    server.start()
    session.close()


def test_with_group_commit_every_announced_step_survives_and_the_state_fits_the_history(
    new_server: Callable[..., Any],
) -> None:
    server = new_server().start()
    session = open_run(server.target, "run", start=0)
    rng = random.Random(1)
    scales = [session.step(Reductions(rng.gauss(-0.3, 1), 0.1, 1.0, 2.0)) for _ in range(400)]
    announced = 400 - session.backlog
    server.kill()
    last, steps, state = stored(server, "run")
    assert announced <= last <= 400
    assert steps == list(enumerate(scales, 1))[:last]
    assert state.step == last
    assert state.scale == ((scales[last - 1],) if last else (0.0,))
    server.start()
    assert session.flush(30) == 400
    session.close()
