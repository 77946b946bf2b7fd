"""Steps that do not wait for their answers: the same bits, the same history; what is refused is raised a little later."""

import random
import time
from typing import Any

import pytest

from mechanicd.client import Reductions, ServerUnavailable, SessionFenced, open_run
from mechanicd.tuner import Tuner


def scalars(make: random.Random) -> Reductions:
    return Reductions(make.gauss(-1.0, 2.0), make.gauss(0.0, 1.0), make.random() + 0.1, 2.0)


@pytest.mark.parametrize("killed", [False, True])
def test_history_and_bits_are_those_of_steps_that_wait(killed: bool, new_server: Any, history: Any) -> None:
    server = new_server().start()
    make, tuner = random.Random(7), Tuner()
    state, wanted = tuner.init(), []
    session = open_run(server.target, "run", start=0)
    for number in range(3000):
        if killed and number == 1500:
            server.kill()
        if killed and number == 2000:
            server.start()
        reductions = scalars(make)
        state = tuner.update(state, reductions)
        session.begin(reductions)
        assert session.finish(wait=number % 97 == 0) == state.scale
        wanted.append(state.scale)
    assert session.flush(30) == 3000
    assert [tuple(record.scale) for record in history(server.target, "run")] == wanted
    session.close()


@pytest.mark.parametrize("told_by", ["a later step", "flush"])
def test_a_successor_ends_it_as_soon_as_the_answer_is_there(told_by: str, server: Any, project: str) -> None:
    old = open_run(server.target, "run", project=project, start=0)
    old.begin(Reductions(-1.0, 0.5, 1.0, 2.0))
    old.finish(wait=False)
    old.flush()
    new = open_run(server.target, "run", project=project, start=None)
    old.begin(Reductions(-1.0, 0.5, 1.0, 2.0))
    old.finish(wait=False)
    time.sleep(0.5)  # a forward and a backward pass
    tell = old.flush if told_by == "flush" else lambda: old.begin(Reductions(-1.0, 0.5, 1.0, 2.0))
    with pytest.raises(SessionFenced):
        tell()
    assert new.flush() == 1, "none of it has come into the run"
    new.close()


def test_where_an_outage_would_change_s_the_answer_is_waited_for(new_server: Any) -> None:
    server = new_server().start()
    session = open_run(server.target, "run", start=0, on_outage="raise", deadline=0.5)
    session.begin(Reductions(-1.0, 0.5, 1.0, 2.0))
    session.finish(wait=False)
    assert session.flush() == 1
    server.kill()
    session.begin(Reductions(-1.0, 0.5, 1.0, 2.0))
    with pytest.raises(ServerUnavailable):
        session.finish(wait=False)
