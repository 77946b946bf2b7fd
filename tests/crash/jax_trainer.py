"""A JAX training as a trainer of the crash campaigns: its loss depends on the step, so a wrong bit shows in all that follows.

    python jax_trainer.py TARGET|none RUN SEED STEPS CHECKPOINT GATE

As trainer.py: resumes from CHECKPOINT if it exists, takes its last steps when GATE exists, prints "done" at the end. Odd seeds
tell the server by a callback, even ones from the loop. With `none` there is no server, and CHECKPOINT is where the S of each
step goes (npy).
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mechanicd.client import MechanicdError
from mechanicd.jax import mechanize, scale

CHECKPOINT_EVERY = 100


def loss(params: Any, x: Any, y: Any) -> Any:
    return jnp.mean((jnp.tanh(x @ params["first"]) @ params["second"] - y) ** 2)


def main() -> None:
    target, run, seed, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    checkpoint, gate = Path(sys.argv[5]), Path(sys.argv[6])
    make = np.random.default_rng(seed)
    params: Any = {"first": jnp.asarray(make.standard_normal((8, 16)), jnp.float32), "second": jnp.zeros((16, 2), jnp.float32)}
    inputs = make.standard_normal((64, 32, 8)).astype(np.float32)
    report = "callback" if seed % 2 else "loop"
    tx = mechanize(optax.adamw(1.0), run, None if target == "none" else target, s_init=1e-6, deadline=1.0, report=report)

    @jax.jit
    def step(params: Any, state: Any, x: Any) -> Any:
        targets = jnp.stack([jnp.sin(3 * x[:, 0]), x[:, 1]], 1)
        updates, state = tx.update(jax.grad(loss)(params, x, targets), state, params)
        return optax.apply_updates(params, updates), state

    state, begin, scales = jax.jit(tx.init)(params), 0, []
    if target != "none" and checkpoint.exists():
        params, state, begin = flax.serialization.from_bytes((params, state, begin), checkpoint.read_bytes())
    for t in range(begin, steps):
        while target != "none" and t >= steps - CHECKPOINT_EVERY and not gate.exists():
            time.sleep(0.01)
        params, state = step(params, state, inputs[t % len(inputs)])
        if target == "none":
            scales.append(scale(state))
            continue
        if report == "loop":
            tx.report(state)
        if (t + 1) % 10 == 0:
            jax.block_until_ready(params)
            time.sleep(0.001)  # leave the other processes some of the machine
        if (t + 1) % CHECKPOINT_EVERY == 0:
            print(t + 1, flush=True)
            try:
                tx.flush(0.5)
            except MechanicdError:
                continue  # a later checkpoint will do; this one would claim steps that the server has not got
            fresh = checkpoint.with_suffix(".new")
            fresh.write_bytes(flax.serialization.to_bytes((params, state, t + 1)))
            os.replace(fresh, checkpoint)
    if target == "none":
        np.save(checkpoint, np.array(scales))
        return
    tx.flush(60)
    tx.close()
    print("done", flush=True)


if __name__ == "__main__":
    main()
