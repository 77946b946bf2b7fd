"""Trainings on four devices: python training_by_axes.py jit|tracked|untracked|pmap, or with the words: served TARGET

Prints a line of JSON for each: its name, and S of each scale group after STEPS steps, or the reason it was refused for.
"""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"

import jax  # it reads the flags
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mechanicd.client import MechanicdError
from mechanicd.jax import MechanicState, mechanize, scales

STEPS, DEVICES = 12, 4
make = np.random.default_rng(0)
PARAMS = {
    "first": jnp.asarray(make.standard_normal((8, 16)), jnp.float32),
    "bias": jnp.zeros(16),
    "second": jnp.asarray(make.standard_normal((16, 2)), jnp.float32),
}
X = make.standard_normal((64, 8)).astype(np.float32)
Y = np.stack([np.sin(X[:, 0]), X[:, 1]], 1)
SPLIT = {"first": P(None, "d"), "bias": P("d"), "second": P("d", None)}
line = Mesh(np.array(jax.devices()), ("d",))
square = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "d"))


def loss(params, x, y, psum=lambda hidden: hidden):
    return jnp.mean((psum(jnp.tanh(x @ params["first"] + params["bias"]) @ params["second"]) - y) ** 2)


def split_loss(params, x, y):
    """The hidden layer is split over d."""
    return loss(params, x, y, lambda hidden: jax.lax.psum(hidden, "d"))


def tx_of(**how):
    return mechanize(optax.sgd(1.0), **{"s_init": 1e-3, "betas": (0.9, 0.99), **how})


def go(tx, step, state=None, params=None, batch=(X, Y)):
    """So many steps; S of each scale group."""
    params, state = PARAMS if params is None else params, tx.init(PARAMS) if state is None else state
    for _ in range(STEPS):
        params, state = step(params, state, *batch)
    found = scales(state)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    tx.close()
    return found


def stepper(tx, grads_of):
    def step(params, state, x, y):
        updates, state = tx.update(grads_of(params, x, y), state, params)
        return optax.apply_updates(params, updates), state

    return step


def alone(put=lambda tree: tree, **how):
    tx = tx_of(**how)
    return go(tx, jax.jit(stepper(tx, jax.grad(loss))), put(tx.init(PARAMS)), put(PARAMS))


def named_sharding():
    params = jax.tree.map(lambda leaf, spec: jax.device_put(leaf, NamedSharding(line, spec)), PARAMS, SPLIT)
    tx = tx_of()
    return go(tx, jax.jit(stepper(tx, jax.grad(loss))), jax.jit(tx.init)(params), params)


def explicit_sharding():
    """On a mesh with explicit axes, where shardings are part of the types."""
    mesh = jax.make_mesh((DEVICES,), ("d",), axis_types=(jax.sharding.AxisType.Explicit,))
    tx = tx_of()

    def grads_of(params, x, y):
        whole = jax.tree.map(lambda p: jax.sharding.reshard(p, P()), params)
        return jax.tree.map(lambda g, spec: jax.sharding.reshard(g, spec), jax.grad(loss)(whole, x, y), SPLIT)

    with jax.set_mesh(mesh):
        params = jax.tree.map(jax.sharding.reshard, PARAMS, SPLIT)
        return go(tx, jax.jit(stepper(tx, grads_of)), tx.init(params), params)


def data_parallel(check, mean, **how):
    """Each device has a part of the batch and all of the parameters."""
    tx = tx_of(**how)

    def grads_of(params, x, y):
        if check:  # there the gradient of what is not split is summed by itself
            params = params if mean else jax.tree.map(lambda p: p + 0 * x[0, 0], params)
            return jax.grad(lambda params: jax.lax.pmean(loss(params, x, y), "d") if mean else loss(params, x, y))(params)
        grads = jax.grad(loss)(params, x, y)
        return jax.lax.pmean(grads, "d") if mean else grads

    specs = {"in_specs": (P(), P(), P("d"), P("d")), "out_specs": (P(), P())}
    return go(tx, jax.jit(jax.shard_map(stepper(tx, grads_of), mesh=line, check_vma=check, **specs)))


def split_parameters(check, delta_specs=SPLIT, mesh=line, **how):
    """The parameters are split over d; with two axes the batch is split over the other."""
    tx = tx_of(**how)

    def grads_of(params, x, y):
        if "data" not in mesh.axis_names:
            grads = jax.grad(split_loss)(params, x, y)
            return grads if check else jax.tree.map(lambda g: g / DEVICES, grads)  # untracked, psum's transpose is psum
        return jax.grad(lambda params: jax.lax.pmean(split_loss(params, x, y), "data"))(params)

    state = tx.init(PARAMS)
    specs = optax.tree_utils.tree_map_params(tx, lambda _, spec: spec, state, delta_specs, transform_non_params=lambda _: P())
    batch = P("data") if "data" in mesh.axis_names else P()
    how = {"in_specs": (SPLIT, specs, batch, batch), "out_specs": (SPLIT, specs), "check_vma": check}
    return go(tx, jax.jit(jax.shard_map(stepper(tx, grads_of), mesh=mesh, **how)), state)


def fully_sharded():
    """Parameters and batch are split over d; the parameters are gathered for the loss."""
    tx, axes = tx_of(), {"first": 1, "bias": 0, "second": 0}

    def gathered(params, x, y):
        whole = {name: jax.lax.all_gather(p, "d", axis=axes[name], tiled=True) for name, p in params.items()}
        return jax.lax.pmean(loss(whole, x, y), "d")

    state = tx.init(PARAMS)
    specs = optax.tree_utils.tree_map_params(tx, lambda _, spec: spec, state, SPLIT, transform_non_params=lambda _: P())
    how = {"in_specs": (SPLIT, specs, P("d"), P("d")), "out_specs": (SPLIT, specs)}
    return go(tx, jax.jit(jax.shard_map(stepper(tx, jax.grad(gathered)), mesh=line, **how)), state)


def all_inside():
    """Init and a scan over the steps in one shard_map."""
    tx = tx_of(delta_layout="delta+ref")

    def train(params, x, y):
        step = stepper(tx, jax.grad(split_loss))
        (_, state), _ = jax.lax.scan(lambda carry, _: (step(*carry, x, y), None), (params, tx.init(params)), length=STEPS)
        return state.tuner

    tuner = jax.jit(jax.shard_map(train, mesh=line, in_specs=(SPLIT, P(), P()), out_specs=P()))(PARAMS, X, Y)
    return scales(MechanicState((), jnp.int32(STEPS), tuner, (), (), jnp.int32(0), ()))


def a_state_of_each_device():
    """The whole state differs between devices, so far as JAX knows."""
    tx = tx_of()
    stack = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * DEVICES), tree)  # noqa: E731

    def step(params, state, x, y):
        params, state = jax.tree.map(lambda leaf: leaf[0], (params, state))
        found = stepper(tx, lambda *args: jax.lax.pmean(jax.grad(loss)(*args), "d"))(params, state, x, y)
        return jax.tree.map(lambda leaf: leaf[None], found)

    specs = {"in_specs": P("d"), "out_specs": P("d")}
    return go(tx, jax.jit(jax.shard_map(step, mesh=line, **specs)), stack(tx.init(PARAMS)), stack(PARAMS))


def by_pmap(mean=True, poison=False, **how):
    tx = tx_of(**how)
    stack = lambda tree: jax.tree.map(lambda leaf: jnp.stack([leaf] * DEVICES), tree)  # noqa: E731

    def grads_of(params, x, y):
        grads = jax.grad(loss)(params, x, y)
        return jax.lax.pmean(grads, "i") if mean else grads

    step = jax.pmap(stepper(tx, grads_of), axis_name="i")
    batch = X.reshape(DEVICES, -1, 8).copy(), Y.reshape(DEVICES, -1, 2)
    params, state = stack(PARAMS), stack(tx.init(PARAMS))
    for t in range(STEPS):
        now = batch[0].copy()
        if poison and t == 5:
            now[-1] = np.nan
        params, state = step(params, state, now, batch[1])
        if not isinstance(state.recent, tuple):
            tx.report(state)
    if how.get("distributed", True):
        found = scales(state)
    else:
        found = [scales(jax.tree.map(lambda leaf, i=i: leaf[i], state))[0] for i in range(DEVICES)]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    tx.close()
    return found


def each_alone():
    found = []
    for part in range(DEVICES):
        tx, rows = tx_of(), slice(16 * part, 16 * part + 16)
        found += go(tx, jax.jit(stepper(tx, jax.grad(loss))), batch=(X[rows], Y[rows]))
    return found


def go_poisoned():
    tx = tx_of()
    step = jax.jit(stepper(tx, jax.grad(loss)))
    params, state = PARAMS, tx.init(PARAMS)
    for t in range(STEPS):
        params, state = step(params, state, X * np.float32(np.nan if t == 5 else 1.0), Y)
    return scales(state)


CASES = {
    "jit": {
        "alone": alone,
        "alone, tensor": lambda: alone(scale_groups="tensor"),
        "sharded": named_sharding,
        "sharded explicitly": explicit_sharding,
        "()": lambda: alone(axis_name=()),
        "unbound name": lambda: alone(axis_name="d"),
    },
    "tracked": {
        "data": lambda: data_parallel(True, True),
        "data, tensor": lambda: data_parallel(True, True, scale_groups="tensor"),
        "data, not averaged": lambda: data_parallel(True, False),
        "split": lambda: split_parameters(True),
        "split, ref": lambda: split_parameters(True, delta_layout="delta+ref"),
        "split, named": lambda: split_parameters(True, axis_name="d", scale_groups="tensor"),
        "split, named otherwise": lambda: split_parameters(True, axis_name=()),
        "split, Δ whole": lambda: split_parameters(True, dict.fromkeys(SPLIT, P())),
        "split, and data": lambda: split_parameters(True, mesh=square),
        "fully sharded": fully_sharded,
        "all inside": all_inside,
        "a state of each device": a_state_of_each_device,
    },
    "untracked": {
        "data": lambda: data_parallel(False, True),
        "data, ()": lambda: data_parallel(False, True, axis_name=()),
        "data, (), not averaged": lambda: data_parallel(False, False, axis_name=()),
        "split": lambda: split_parameters(False),
        "split, named": lambda: split_parameters(False, axis_name="d"),
        "split, specs, tensor": lambda: split_parameters(False, axis_name=SPLIT, scale_groups="tensor"),
        "split, ()": lambda: split_parameters(False, axis_name=()),
    },
    "pmap": {
        "alone, one step less": go_poisoned,
        "alone, each": each_alone,
        "data": by_pmap,
        "data, ()": lambda: by_pmap(axis_name=()),
        "data, (), not averaged": lambda: by_pmap(mean=False, axis_name=()),
        "data, (), one device NaN": lambda: by_pmap(poison=True, axis_name=()),
        "each its own": lambda: by_pmap(mean=False, distributed=False),
    },
}


def served(target):
    """Runs on a server: each step is to be there once."""
    return {
        "pmap": lambda: by_pmap(axis_name=(), run="pmap", target=target),
        "loop": lambda: by_pmap(axis_name=(), run="loop", target=target, report="loop"),
        "hold": lambda: by_pmap(axis_name=(), run="hold", target=target, on_outage="hold"),
        "data": lambda: data_parallel(True, True, run="data", target=target),
        "each": lambda: by_pmap(mean=False, distributed=False, run="each", target=target),
    }


def main() -> None:
    for name, case in (served(sys.argv[2]) if sys.argv[1] == "served" else CASES[sys.argv[1]]).items():
        try:
            found = {"scales": list(case())}
        except MechanicdError as error:
            found = {"reason": error.reason}
        print(json.dumps({"name": name, **found}), flush=True)


if __name__ == "__main__":
    main()
