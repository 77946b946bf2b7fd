"""A training on many devices: python training_on_devices.py PROCESSES INDEX DEVICES PORT TARGET|none ON_OUTAGE|loop|axes OUT

DEVICES is how many each process has. Parameters and batch are split among all of them. The run is called as
its policy; with "axes" a step is a shard_map, else a jit. Leaves S and the parameters in OUT.INDEX.
"""

import os
import sys

processes, index, devices, port = (int(word) for word in sys.argv[1:5])
target, on_outage, out = sys.argv[5:8]
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"

import jax  # noqa: E402  # it reads the flags
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.sharding import Mesh, NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from mechanicd.jax import mechanize, scales  # noqa: E402

STEPS, BATCH = 30, 64
SETTINGS = {"s_init": 1e-4, "scale_groups": "tensor"}


def loss(params, x, y):
    return jnp.mean((jnp.tanh(x @ params["first"] + params["bias"]) @ params["second"] - y) ** 2)


def by_axes(mesh, tx, state):
    """A step in which each device sees its part of the hidden layer, and the whole batch."""

    def part_of_loss(params, x, y):
        width = params["first"].shape[1]
        bias = jax.lax.dynamic_slice_in_dim(params["bias"], jax.lax.axis_index("all") * width, width)
        out = jax.lax.psum(jnp.tanh(x @ params["first"] + bias) @ params["second"], "all")
        return jnp.mean((out - y) ** 2)

    def step(params, state, x, y):
        updates, state = tx.update(jax.grad(part_of_loss)(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    split = {"first": P(None, "all"), "bias": P(), "second": P("all", None)}
    specs = optax.tree_utils.tree_map_params(tx, lambda _, spec: spec, state, split, transform_non_params=lambda _: P())
    return jax.jit(jax.shard_map(step, mesh=mesh, in_specs=(split, specs, P(), P()), out_specs=(split, specs)))


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, index)
    mesh = Mesh(np.array(jax.devices()), ("all",))

    def put(array, *axes):
        sharding = NamedSharding(mesh, P(*axes))
        return jax.make_array_from_callback(array.shape, sharding, lambda where: array[where])

    make = np.random.default_rng(0)
    params = {
        "first": put(make.standard_normal((8, 32)), None, "all"),
        "bias": put(np.zeros(32)),
        "second": put(make.standard_normal((32, 2)), "all", None),
    }
    how = {"loop": {"report": "loop"}, "axes": {}}.get(on_outage, {"on_outage": on_outage})
    tx = mechanize(optax.adamw(1.0), on_outage, None if target == "none" else target, **how, **SETTINGS)

    @jax.jit
    def step(params, state, x, y):
        grads = jax.grad(loss)(params, x, y)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(tx.init)(params)
    if on_outage == "axes":
        step = by_axes(mesh, tx, state)
    history = []
    for t in range(STEPS):
        x = np.random.default_rng(t).standard_normal((BATCH, 8))
        if t == 20:
            x[-1] = np.nan  # on the last device
        params, state = step(params, state, put(x, "all", None), put(np.stack([np.sin(x[:, 0]), x[:, 1]], 1), "all", None))
        if on_outage == "loop":
            tx.report(state)
        history.append(scales(state))
    split = params["first"].addressable_shards[0].data.shape
    assert split == (8, 32 // jax.device_count()), split
    tx.flush()
    tx.close()
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))(params)
    np.savez(f"{out}.{index}", scales=np.array(history), **{name: np.asarray(leaf) for name, leaf in whole.items()})
    if processes > 1:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main()
