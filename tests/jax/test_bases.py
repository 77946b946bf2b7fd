"""What BASE may be in JAX: right, or refused by name, at the latest by `init`. docs/bases.md has all of optax."""

import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from mechanicd.client import InvalidArgument
from mechanicd.jax import mechanize, scale
from tests.jax import bases

PARAMS = {"w": jnp.ones((3, 2)), "b": jnp.ones(2)}
LABELS = {"w": "x", "b": "y"}
REFUSED = {
    "schedule_free": lambda: contrib.schedule_free(optax.sgd(1.0), 1.0),
    "schedule_free_adamw": lambda: contrib.schedule_free_adamw(1.0),
    "schedule_free_sgd": lambda: contrib.schedule_free_sgd(1.0),
    "dog": lambda: contrib.dog(1.0),
    "dowg": lambda: contrib.dowg(1.0),
    "scale_by_distance_over_gradients": optax.scale_by_distance_over_gradients,
    "prodigy": contrib.prodigy,
    "dadapt_adamw": contrib.dadapt_adamw,
    "momo": contrib.momo,
    "momo_adam": contrib.momo_adam,
    "cocob": contrib.cocob,
    "madgrad": lambda: contrib.madgrad(1.0),
    "mechanize": lambda: contrib.mechanize(optax.sgd(1.0)),
    "lookahead": lambda: optax.lookahead(optax.sgd(1.0), 5, 0.5),
    "lbfgs": optax.lbfgs,
    "scale_by_backtracking_linesearch": lambda: optax.scale_by_backtracking_linesearch(5),
    "keep_params_nonnegative": optax.keep_params_nonnegative,
}
AROUND = {
    "alone": lambda tx: tx,
    "chain": lambda tx: optax.chain(optax.clip(1.0), optax.chain(tx), optax.scale(0.5)),
    "named_chain": lambda tx: optax.named_chain(("clip", optax.clip(1.0)), ("it", tx)),
    "masked": lambda tx: optax.masked(tx, {"w": True, "b": False}),
    "partition": lambda tx: optax.partition({"x": optax.adam(1.0), "y": tx}, LABELS),
    "MultiSteps": lambda tx: optax.MultiSteps(tx, 2),
    "its transformation": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
    "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
    "flatten": lambda tx: optax.flatten(tx),
    "jitted": lambda tx: optax.GradientTransformationExtraArgs(jax.jit(tx.init), jax.jit(tx.update)),
    "partial": lambda tx: optax.GradientTransformationExtraArgs(tx.init, functools.partial(tx.update)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_that_relies_on_where_its_own_steps_lead_is_refused_by_mechanize(name):
    for around in AROUND.values():
        with pytest.raises(InvalidArgument, match=name.split("_")[0]) as caught:
            mechanize(around(REFUSED[name]()))
        assert caught.value.reason == "BASE_KEEPS_WEIGHTS"


def test_injected_hyperparameters_hide_nothing():
    for factory in (contrib.prodigy, lambda learning_rate: contrib.prodigy(learning_rate)):
        with pytest.raises(InvalidArgument, match=r"[pP]rodigy") as caught:
            mechanize(optax.inject_hyperparams(factory)(learning_rate=1.0)).init(PARAMS)
        assert caught.value.reason == "BASE_KEEPS_WEIGHTS"


def test_sam_as_base_is_right_only_if_it_steps_back_by_itself():
    adversary = optax.chain(contrib.normalize(), optax.sgd(0.05))
    with pytest.raises(InvalidArgument, match="opaque_mode") as caught:
        mechanize(contrib.sam(optax.sgd(1.0), adversary)).init(PARAMS)
    assert caught.value.reason == "BASE_KEEPS_WEIGHTS"
    mechanize(contrib.sam(optax.sgd(1.0), adversary, opaque_mode=True)).init(PARAMS)


def test_a_mechanized_optimizer_within_base_is_refused():
    inner = mechanize(optax.adam(1.0))
    for base in (optax.chain(optax.clip(1.0), inner), optax.partition({"x": inner, "y": optax.sgd(1.0)}, LABELS)):
        with pytest.raises(InvalidArgument) as caught:
            mechanize(base)
        assert caught.value.reason == "BASE_NOT_AN_OPTIMIZER"
    hidden = optax.inject_hyperparams(lambda learning_rate: mechanize(optax.sgd(learning_rate)))(learning_rate=1.0)
    with pytest.raises(InvalidArgument) as caught:
        mechanize(hidden).init(PARAMS)
    assert caught.value.reason == "BASE_NOT_AN_OPTIMIZER"


# ---- optimizers that optax did not make


def _plain(update: Any, init: Any) -> Any:
    return optax.GradientTransformation(init, update)


class Slow(NamedTuple):
    slow: Any
    count: Any


def slow_weights() -> Any:
    """Every five steps back to the middle between the fast weights and the slow ones."""

    def update(g, state, x):
        sync = state.count % 5 == 4
        middle = jax.tree.map(lambda s, p, d: s + 0.5 * (p - d - s), state.slow, x, g)
        slow = jax.tree.map(lambda m, s: jnp.where(sync, m, s), middle, state.slow)
        return jax.tree.map(lambda m, p, d: jnp.where(sync, m - p, -d), middle, x, g), Slow(slow, state.count + 1)

    return _plain(update, lambda x: Slow(x, jnp.int32(0)))


def in_an_optax_state() -> Any:
    """Keeps the weights at the start under a name of optax."""

    def update(g, state, x):
        return jax.tree.map(lambda d, p, start: -d - 0.1 * (p - start), g, x, state.trace), state

    return _plain(update, lambda x: optax.TraceState(trace=x))


def in_a_dict() -> Any:
    """Draws the weights to their average."""

    def update(g, state, x):
        mean = jax.tree.map(lambda a, p: 0.99 * a + 0.01 * p, state["mean"], x)
        return jax.tree.map(lambda d, p, a: -d - 0.5 * (p - a), g, x, mean), {"mean": mean}

    return _plain(update, lambda x: {"mean": x})


def distances() -> Any:
    """A learning rate from how far the weights have come."""

    def update(g, state, x):
        start, most = state
        most = jnp.maximum(most, optax.global_norm(jax.tree.map(jnp.subtract, x, start)))
        return jax.tree.map(lambda d: -most * d, g), (start, most)

    return _plain(update, lambda x: (x, jnp.float32(1e-6)))


def dadapt_of_ones_own() -> Any:
    def update(g, state, x=None):
        return jax.tree.map(lambda d: -d, g), state

    return _plain(update, lambda x: ())


def momentum(decay: float = 0.01) -> Any:
    def update(g, state, x):
        state = jax.tree.map(lambda m, d, p: 0.9 * m + d + decay * p, state, g, x)
        return jax.tree.map(lambda m: -m, state), state

    return _plain(update, lambda x: jax.tree.map(jnp.zeros_like, x))


def secant() -> Any:
    """A step as long as the last change of the weights by that of the gradient says."""

    def update(g, state, x):
        dx, dg = (jax.tree.map(jnp.subtract, *pair) for pair in ((x, state[0]), (g, state[1])))
        rate = jnp.clip(optax.tree.vdot(dx, dx) / (jnp.abs(optax.tree.vdot(dx, dg)) + 1e-6), 0.0, 1.0)
        return jax.tree.map(lambda d: -(rate + 1e-3) * d, g), (x, g)

    return _plain(update, lambda x: (x, jax.tree.map(jnp.zeros_like, x)))


FOREIGN = {"slow": slow_weights, "optax": in_an_optax_state, "dict": in_a_dict, "far": distances, "named": dadapt_of_ones_own}


@pytest.mark.parametrize("name", FOREIGN)
def test_one_of_ones_own_that_keeps_weights_is_found_out(name):
    for base in (FOREIGN[name](), optax.chain(optax.clip(1.0), optax.with_extra_args_support(FOREIGN[name]()))):
        with pytest.raises(InvalidArgument) as caught:
            mechanize(base).init(PARAMS)
        assert caught.value.reason == "BASE_KEEPS_WEIGHTS"


def test_in_every_place_where_init_may_stand():
    for base in (in_a_dict(), optax.partition({"x": optax.sgd(1.0), "y": slow_weights()}, LABELS)):
        tx = mechanize(base)
        many = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), PARAMS)
        inits = [(jax.jit(tx.init), PARAMS), (functools.partial(jax.eval_shape, tx.init), PARAMS), (jax.vmap(tx.init), many)]
        for init, params in inits:
            with pytest.raises(InvalidArgument) as caught:
                init(params)
            assert caught.value.reason == "BASE_KEEPS_WEIGHTS"


def test_one_of_ones_own_that_keeps_none_is_right():
    for make in (momentum, secant):
        training = bases.Training(mechanize(make(), s_init=bases.S_INIT))
        start = training.run(0)
        assert training.run(240) < 0.7 * start
        assert training.resumes() == "yes"


def test_a_large_tree_is_tried_out_in_part():
    params = {f"layer{i}": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)} for i in range(20)} | {"head": jnp.ones(2)}
    mechanize(momentum()).init(params)
    for mask in ({name: name == "head" for name in params}, jax.tree.map(lambda x: x.ndim == 2, params)):
        with pytest.raises(InvalidArgument) as caught:
            mechanize(optax.masked(in_a_dict(), mask)).init(params)
        assert caught.value.reason == "BASE_KEEPS_WEIGHTS"


def test_one_that_cannot_be_tried_out_is_taken():
    """It needs an argument that the trial does not have."""

    def update(g, state, x, *, needed):
        return jax.tree.map(lambda d: -needed * d, g), state

    mechanize(optax.GradientTransformationExtraArgs(lambda x: {"mean": x}, update)).init(PARAMS)


# ---- the page


LEARNS = ["adamw", "lbfgs, linesearch=None", "polyak_sgd", "sam, opaque_mode=True"]


@pytest.mark.parametrize("name", LEARNS)
def test_a_sample_learns_and_resumes(name):
    training = bases.Training(mechanize(dict(bases.cases())[name](1.0), s_init=1e-3))
    start = training.run(0)
    assert training.run(240) < 0.8 * start
    assert scale(training.state) > 2e-3
    assert training.resumes() == "yes"


def test_the_table_has_everything_that_optax_makes_and_nothing_is_wrong():
    table = bases.PAGE.read_text().partition(bases.BEGIN)[2].partition(bases.END)[0]
    assert table, "make it: python -m tests.jax.bases"
    rows = dict(re.findall(r"^\| ([\w.,= ]+?) \| (.*?) \|", table, re.MULTILINE))
    del rows["BASE"]
    if f"## optax {optax.__version__}\n" in table:
        assert set(rows) == {name for name, _ in bases.cases()}
    for name, verdict in rows.items():
        assert verdict.startswith(("right", "refused", "untried")), name
    assert sum(verdict.startswith(("right", "refused")) for verdict in rows.values()) >= 100
    for name in REFUSED:
        assert rows[name] == "refused: `BASE_KEEPS_WEIGHTS`"


def test_a_state_that_looks_like_the_parameters_is_no_reason(digits):
    """A momentum begins as zeros, and so do some parameters."""
    params = jax.tree.map(np.zeros_like, digits.params())
    mechanize(momentum()).init(params)
