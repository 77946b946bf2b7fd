"""What optax takes, a mechanized optimizer takes too: odd trees, odd leaves, odd places; or it says by name why not."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mechanicd.client import InvalidArgument, StepConflict
from mechanicd.jax import _transform, mechanize, scale, scales

S_INIT = 1e-3
layouts = pytest.mark.parametrize("layout", ["delta", "delta+ref"])


def made(layout: str = "delta", **how: Any) -> Any:
    return mechanize(optax.adam(1.0), **{"s_init": S_INIT, "delta_layout": layout, **how})


def train(tx: Any, params: Any, steps: int = 30) -> tuple[Any, Any, Any]:
    """Towards 1 in each element; parameters, state and the last updates."""
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(lambda tree: sum(jnp.sum((jnp.float32(leaf) - 1.0) ** 2) for leaf in jax.tree.leaves(tree)))(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, updates

    for _ in range(steps):
        params, state, updates = step(params, state)
    return params, state, updates


class Layer(NamedTuple):
    w: Any
    b: Any


TREES = {
    "an array": lambda dtype: jnp.zeros(3, dtype),
    "a scalar": lambda dtype: jnp.zeros((), dtype),
    "a tuple": lambda dtype: (jnp.zeros((2, 2), dtype), jnp.zeros(3, dtype)),
    "a NamedTuple in a list": lambda dtype: [Layer(jnp.zeros((2, 2), dtype), jnp.zeros(2, dtype)), jnp.zeros(1, dtype)],
    "None among the leaves": lambda dtype: {"a": {"w": jnp.zeros(3, dtype), "b": None}, "c": None},
    "an array without elements": lambda dtype: {"a": jnp.zeros((0, 3), dtype), "b": jnp.zeros(3, dtype)},
    "numpy's arrays": lambda dtype: {"a": np.zeros(3, dtype), "b": np.zeros((2, 2), dtype)},
}


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        ("delta", jnp.float32),
        ("delta+ref", jnp.bfloat16),
        pytest.param("delta", jnp.bfloat16, marks=pytest.mark.soak),
        pytest.param("delta+ref", jnp.float32, marks=pytest.mark.soak),
    ],
)
@pytest.mark.parametrize("tree", TREES)
def test_any_tree_of_parameters_trains(tree, layout, dtype):
    params = TREES[tree](dtype)
    after, state, updates = train(made(layout), params)
    assert jax.tree.structure(after) == jax.tree.structure(params)
    assert {leaf.dtype for leaf in jax.tree.leaves((after, updates))} == {jnp.dtype(dtype)}
    assert all(np.all(np.asarray(leaf, np.float32) > 0.05) for leaf in jax.tree.leaves(after))
    assert scale(state) > 0


@layouts
def test_a_python_float_and_numpys_float64_are_parameters(layout):
    for params in ({"a": 0.0, "b": np.zeros(2)}, 0.0, np.float64(0.0)):
        after, state, _ = train(made(layout), params)
        assert all(np.all(np.asarray(leaf) > 0.05) for leaf in jax.tree.leaves(after))
        assert scale(state) > 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_updates_have_the_parameters_dtype_and_land_where_x_ref_and_delta_say(dtype, digits):
    tx = mechanize(optax.sgd(1.0, momentum=0.9), s_init=1e-3, delta_layout="delta+ref")
    params, state = digits.params(dtype), tx.init(digits.params(dtype))
    grads, update = jax.jit(jax.grad(digits.loss)), jax.jit(tx.update)
    for t in range(60):
        updates, state = update(grads(params, digits.batch(t)), state, params)
        before, params = params, optax.apply_updates(params, updates)
        assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}
    S = np.float32(scale(state))
    trees = (before, params, state.ref, state.delta)
    for old, x, r, D in zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in trees), strict=True):
        place = (np.float32(r) + S * D).astype(x.dtype)
        near = np.abs(np.float32(place)) >= np.abs(np.float32(old)) / 2  # elsewhere no update of this dtype lands on it
        assert near.mean() > 0.8
        off = np.abs(np.float32(x) - np.float32(place)) / float(jnp.finfo(dtype).eps)
        assert np.all(off[near] <= (np.abs(np.float32(r)) + np.abs(S * D))[near] * (4.0 if dtype == jnp.float32 else 1.0))


def test_a_wider_gradient_gets_a_wider_update_so_that_optaxs_wrappers_fit():
    params, grads = jnp.ones(3, jnp.bfloat16), jnp.ones(3, jnp.float32)
    tx = optax.apply_if_finite(mechanize(optax.sgd(1.0), s_init=S_INIT), 3)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    assert updates.dtype == jnp.float32


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: optax.apply_if_finite(tx, 5),
        lambda tx: optax.MultiSteps(tx, 2),
        lambda tx: optax.conditionally_mask(tx, lambda step: step % 3 != 2),
        lambda tx: optax.masked(tx, {"first": True, "second": True}),
        lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx, optax.keep_params_nonnegative()),
    ],
    ids=["apply_if_finite", "MultiSteps", "conditionally_mask", "masked", "chain"],
)
def test_optaxs_wrappers_take_bfloat16(wrap, digits):
    tx = wrap(mechanize(optax.sgd(1.0, momentum=0.9), s_init=S_INIT))
    params, state, losses = digits.train(tx, 30, jax.tree.map(jnp.abs, digits.params(jnp.bfloat16)))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    assert losses[-1] < losses[0]
    assert scale(state) > 0


@pytest.mark.parametrize("inside", [lambda base: optax.MultiSteps(base, 2), lambda base: optax.apply_if_finite(base, 3)])
def test_wrappers_stand_inside_too(inside, digits):
    _, state, losses = digits.train(mechanize(inside(optax.adam(1.0)), s_init=S_INIT), 60)
    assert losses[-1] < losses[0]
    assert scale(state) > 0


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@layouts
def test_tree_map_params_maps_what_is_like_the_parameters(layout, dtype):
    for params in ({"a": jnp.zeros(3, dtype), "b": [jnp.zeros((2, 4), dtype)]}, jnp.zeros(3, dtype)):
        for tx in (made(layout), optax.chain(optax.clip(1.0), made(layout, scale_groups="tensor"))):
            state = tx.init(params)
            specs = jax.tree.map(lambda x: f"spec of {x.ndim}", params)
            mapped = optax.tree_utils.tree_map_params(
                tx, lambda _, spec: spec, state, specs, transform_non_params=lambda _: "rest"
            )
            ours = mapped[-1] if isinstance(tx.init(params), tuple) and not hasattr(mapped, "delta") else mapped
            assert ours.delta == specs
            assert ours.ref == (specs if layout == "delta+ref" or dtype == jnp.bfloat16 else ())
            assert ours.tuner == ours.step == "rest"
            assert ours.base_state[0].mu == specs
            same = optax.tree_utils.tree_map_params(tx, lambda leaf: leaf, state)
            assert jax.tree.structure(same) == jax.tree.structure(state)


def test_an_empty_tree_and_a_label_without_parameters_are_nothing_to_tune():
    tx = made()
    state = tx.init({})
    updates, state = jax.jit(tx.update)({}, state, {})
    assert updates == {}
    assert int(state.step) == 1
    assert scales(state) == (0.0,)
    for labels in ({"a": "used", "b": "used"}, lambda params: jax.tree.map(lambda _: "used", params)):
        tx = optax.partition({"used": made(), "unused": made("delta+ref", scale_groups="tensor")}, labels)
        after, state, _ = train(tx, {"a": jnp.zeros(3), "b": jnp.zeros(2)})
        assert np.all(np.asarray(after["a"]) > 0.05)
        assert scale(state, "used") > 0
        assert scales(state, "unused") == (0.0,)


def test_scale_reads_one_of_several_by_its_label():
    params = {"body": jnp.zeros(3), "head": jnp.zeros(2)}
    several = {
        "partition": optax.partition({"x": made(), "y": made(s_init=1e-2)}, {"body": "x", "head": "y"}),
        "named_chain": optax.named_chain(
            ("x", optax.masked(made(), {"body": True, "head": False})),
            ("y", optax.masked(made(s_init=1e-2), {"body": False, "head": True})),
        ),
    }
    for tx in several.values():
        _, state, _ = train(tx, params, 5)
        assert 0 < scale(state, "x") < scale(state, "y")
        assert scales(state, label="x") == (scale(state, "x"),)
        for label, words in ((None, "x, y"), ("z", "x, y")):
            with pytest.raises(InvalidArgument, match=words) as caught:
                scale(state, label)
            assert caught.value.reason == "NOT_MECHANIZED"


def test_scale_reads_a_replicated_state_as_one_and_refuses_several_trainings():
    _, state, _ = train(made(), jnp.zeros(3), 5)
    replicated = jax.tree.map(lambda leaf: jnp.stack([leaf] * 4), state)
    assert scale(replicated) == scale(state)
    _, other, _ = train(made(), jnp.zeros(3), 6)
    with pytest.raises(StepConflict) as caught:
        scale(jax.tree.map(lambda *leaves: jnp.stack(leaves), state, other))
    assert caught.value.reason == "SCALE_MISMATCH"


def test_a_parameter_without_a_gradient_stays_and_counts_for_nothing():
    """As filtered modules pass them: None where there is nothing to learn."""
    with_it, without = {"a": jnp.full(4, 7.0), "b": jnp.zeros(3)}, {"b": jnp.zeros(3)}
    found = []
    for params in (with_it, without):
        tx = mechanize(optax.sgd(0.1), s_init=S_INIT, delta_layout="delta+ref")
        state, update = tx.init(params), jax.jit(tx.update)
        for _ in range(10):
            grads = {"a": None, "b": 2 * (params["b"] - 1.0)}
            updates, state = update({name: grads[name] for name in params}, state, params)
            assert updates.get("a") is None
            params = {**params, "b": params["b"] + updates["b"]}
        found.append((scale(state), np.asarray(params["b"]).tobytes()))
    assert found[0] == found[1]


def test_what_does_not_fit_is_refused_by_name():
    params = {"a": jnp.zeros(3), "b": jnp.zeros(2)}
    tx = made()
    state = tx.init(params)
    for grads in ({"a": jnp.ones(3)}, {"a": jnp.ones(1), "b": jnp.ones(2)}, {"a": jnp.ones(3), "b": "b"}):
        with pytest.raises(InvalidArgument) as caught:
            tx.update(grads, state, params)
        assert caught.value.reason == "GRADIENTS_MISMATCH"
    for leaf in (jnp.arange(3), True, len, "w", jax.random.key(0)):
        with pytest.raises(InvalidArgument) as caught:
            tx.init({"w": leaf})
        assert caught.value.reason == "INVALID_SETTING"
    with pytest.raises(InvalidArgument, match="inject BASE") as caught:
        optax.inject_hyperparams(mechanize)(base=optax.sgd(1.0)).init(params)
    assert caught.value.reason == "INVALID_SETTING"


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parameters_cast_to_low_precision_after_init_are_refused(dtype):
    """Their state has no master copy, and without one small updates are rounded away."""
    params = {"a": jnp.ones(3), "b": jnp.ones(2)}
    tx = made()
    state = tx.init(params)
    low = {"a": params["a"], "b": params["b"].astype(dtype)}
    with pytest.raises(InvalidArgument, match="no x_ref") as caught:
        tx.update(low, state, low)
    assert caught.value.reason == "DELTA_MISMATCH"
    state = tx.init(low)
    back = tx.update(params, state, params)[0]
    assert back["b"].dtype == jnp.float32, "wider parameters lose nothing"


def test_init_takes_shapes_alone_and_the_first_step_takes_x_ref_from_the_parameters(bits):
    tx = made("delta+ref")
    params = {"a": jnp.arange(3.0)}
    state = tx.init(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params))
    _, state = jax.jit(tx.update)(params, state, params)
    assert bits(state.ref) == bits(params)
    shapes = jax.eval_shape(tx.init, params)
    assert jax.tree.structure(shapes) == jax.tree.structure(tx.init(params))


@pytest.mark.parametrize("reset", [False, True], ids=["", "reset_state"])
def test_lookahead_may_reset_the_state(reset):
    params = optax.LookaheadParams.init_synced(jnp.zeros(3))
    tx = optax.lookahead(made("delta+ref"), 4, 0.5, reset_state=reset)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(2 * (params.fast - 1.0), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(43):
        params, state = step(params, state)
    assert np.isfinite(scale(state))
    assert scale(state) > 0
    assert np.all(np.asarray(params.slow) > 0)


@pytest.mark.parametrize("x64", [False, True], ids=["x32", "x64"])
def test_a_step_keeps_every_type_of_the_state(x64):
    """So that scan, cond and while_loop carry it, and a second step compiles nothing."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", x64)
    try:
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float64 if x64 else jnp.float16):
            params = {"a": jnp.ones(3, dtype), "b": jnp.zeros((2, 2), dtype)}
            for tx in (made(), made("delta+ref", scale_groups="tensor")):
                state = tx.init(params)
                _, after = jax.jit(tx.update)(params, state, params)
                types = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (state, after)]
                assert types[0] == types[1]
    finally:
        jax.config.update("jax_enable_x64", before)


def test_a_schedule_belongs_inside():
    """Chained after mechanize it makes x move otherwise than S and Δ say: what docs/jax.md warns of."""
    schedule = optax.linear_schedule(1.0, 0.01, 60)

    def S_of(tx):
        return scale(train(tx, jnp.zeros(3), 60)[1])

    inside = S_of(mechanize(optax.sgd(schedule), s_init=1e-3))
    after = S_of(optax.chain(mechanize(optax.sgd(1.0), s_init=1e-3), optax.scale_by_schedule(lambda t: schedule(t) * 0.1)))
    assert after > 3 * inside


def test_what_may_stand_after_mechanize_and_what_makes_s_run_away(digits):
    """What docs/jax.md says of each; S after 200 steps, as a multiple of S alone."""

    def S_of(*after):
        return scale(digits.train(optax.chain(mechanize(optax.sgd(1.0), s_init=1e-4), *after), 200)[1])

    alone = S_of()
    assert S_of(optax.clip_by_global_norm(0.01)) > 30 * alone
    assert 1.5 * alone < S_of(optax.scale(0.5)) < 2.5 * alone
    assert 0.7 * alone < S_of(optax.ema(0.9)) < 1.4 * alone
    assert S_of(optax.ema(0.99)) < 0.3 * alone


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        ("delta", "float32"),
        pytest.param("delta+ref", "float32", marks=pytest.mark.soak),
        pytest.param("delta", "bfloat16", marks=pytest.mark.soak),
    ],
)
def test_schedule_free_goes_around(layout, dtype, digits):
    """S is that of z: as large as alone. And x, its average, is as good as the weights alone."""
    tx = mechanize(optax.sgd(1.0), s_init=1e-4, delta_layout=layout)
    around = optax.contrib.schedule_free(tx, 1.0, b1=0.9, state_dtype=jnp.float32)
    start = digits.params(getattr(jnp, dtype))
    params, state, losses = digits.train(around, 300, start)
    _, alone, _ = digits.train(tx, 300, start)
    assert 0.7 * scale(alone) < scale(state) < 1.4 * scale(alone)
    average = optax.contrib.schedule_free_eval_params(state, params)
    assert float(digits.loss(average, digits.batch(299))) < 0.1 * losses[0]


def test_random_keys_in_the_state_of_base_are_kept_where_a_step_does_not_count():
    """Also in a select, as on a GPU and on a mesh with explicit axes."""
    state, params = optax.noisy_sgd(1.0, key=0).init(jnp.ones(2)), jnp.ones(2)
    base = optax.noisy_sgd(1.0, key=0)

    def step(finite):
        return _transform._only_if(finite, lambda: base.update(params, state, params), jnp.zeros(2, jnp.float16), state)

    for finite in (True, False):
        _, after = jax.jit(step)(jnp.asarray(finite))
        key = [leaf for leaf in jax.tree.leaves(after) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
        before = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
        assert len(key) == 1
        assert bool(jnp.array_equal(jax.random.key_data(key[0]), jax.random.key_data(before[0]))) is not finite


@pytest.mark.skipif(not hasattr(jax, "set_mesh"), reason="this jax has no explicit axes")
def test_a_mesh_with_explicit_axes_takes_every_base():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharding = jax.sharding.NamedSharding(mesh, jax.P(None, "x"))
        params = jnp.ones((2, 8, 4), jnp.float16, out_sharding=sharding)
        for base in (optax.adafactor(), optax.adan(1.0), optax.noisy_sgd(1.0, key=0)):
            tx = mechanize(base)
            state = tx.init(params)
            _, after = tx.update(params, state, params)
            assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, state)
