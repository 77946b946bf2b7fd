"""A training with `report="loop"` that closes nothing: its last steps are in a ring on the device when the program ends."""

import os
import subprocess
import sys
from typing import Any

PROGRAM = """
import sys
import jax, jax.numpy as jnp, optax
from mechanicd.jax import mechanize

tx = mechanize(optax.sgd(1.0), run="loop", target=sys.argv[1], report="loop")
params = jnp.ones(3)
state = tx.init(params)
step = jax.jit(lambda params, state: tx.update(2 * params, state, params))
for _ in range(40):
    updates, state = step(params, state)
    params = optax.apply_updates(params, updates)
    tx.report(state)
"""


def test_every_step_reaches_the_server(server: Any, project: str, history: Any) -> None:
    environment = {**os.environ, "MECHANICD_PROJECT": project, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", PROGRAM, server.target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True, env=environment)
    assert done.stderr == ""
    assert [record.step for record in history(server.target, "loop", project)] == list(range(1, 41))
