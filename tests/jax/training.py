"""A JAX training that may be killed: python training.py TARGET|none RUN STEPS CHECKPOINT

Prints each step that its checkpoint has, every 10. Resumes from CHECKPOINT if the file exists.
"""

import os
import sys
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mechanicd.jax import mechanize


def loss(params: Any, x: Any, y: Any) -> Any:
    return jnp.mean((jnp.tanh(x @ params["first"]) @ params["second"] - y) ** 2)


def main() -> None:
    target, run, steps, checkpoint = sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])
    make = np.random.default_rng(0)
    params = {"first": jnp.asarray(make.standard_normal((8, 16)), jnp.float32), "second": jnp.zeros((16, 2), jnp.float32)}
    tx = mechanize(optax.adamw(1.0), run, None if target == "none" else target, s_init=1e-4)
    state, begin = tx.init(params), 0

    @jax.jit
    def step(params: Any, state: Any, x: Any, y: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    if checkpoint.exists():
        params, state, begin = flax.serialization.from_bytes((params, state, begin), checkpoint.read_bytes())
    for t in range(begin, steps):
        batch = np.random.default_rng(t).standard_normal((32, 8)).astype(np.float32)
        params, state = step(params, state, batch, np.stack([np.sin(batch[:, 0]), batch[:, 1]], 1))
        if (t + 1) % 10 == 0:
            tx.flush()
            told = jnp.zeros_like(state.told)  # a count of this process, so that two checkpoints can be compared
            fresh = checkpoint.with_suffix(".new")
            fresh.write_bytes(flax.serialization.to_bytes((params, state._replace(told=told), t + 1)))
            os.replace(fresh, checkpoint)
            print(t + 1, flush=True)
    tx.close()


if __name__ == "__main__":
    main()
