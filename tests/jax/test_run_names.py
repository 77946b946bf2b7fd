"""`{random}` in a run's name is the same after a resume, through the state."""

import re
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import optax
import pytest

from mechanicd.client import InvalidArgument
from mechanicd.jax import mechanize


@pytest.mark.parametrize("report", ["callback", "loop"])
def test_a_resumed_training_has_the_name_that_it_began_with(report: str, server: Any, project: str, history: Any) -> None:
    params = {"w": jnp.ones(3)}
    made = []
    saved: bytes = b""
    for part in range(2):
        tx = mechanize(optax.sgd(1.0), "trial/{random}", server.target, project=project, report=report)
        state = tx.init(params)
        if part:
            state = flax.serialization.from_bytes(state, saved)
        update = jax.jit(tx.update)
        for _ in range(3):
            _, state = update(params, state, params)
            if report == "loop":
                tx.report(state)
        saved = flax.serialization.to_bytes(state)
        jax.block_until_ready(state)
        tx.flush()
        tx.close("preempted")
        made.append(tx.run.name)
    assert re.fullmatch(r"trial/[0-9a-f]{8}", made[0])
    assert made == [made[0]] * 2
    assert [record.step for record in history(server.target, made[0], project)] == list(range(1, 7))


def test_random_on_several_processes_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    tx = mechanize(optax.sgd(1.0), "trial/{random}", "127.0.0.1:1")
    with pytest.raises(InvalidArgument, match="another one in each process") as refused:
        tx.init({"w": jnp.ones(3)})
    assert refused.value.reason == "RUN_WORD_UNSET"
