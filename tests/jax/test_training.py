"""What optax's users do with a transformation, done with a mechanized one; no server."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mechanicd.client import InvalidArgument
from mechanicd.jax import MechanicState, mechanize, scale, scales

S_INIT = 1e-4
STEPS = 120


@pytest.mark.parametrize(
    ("groups", "layout", "base"),
    [
        ("all", "delta", "adamw"),
        ("tensor", "delta+ref", "sgd"),
        ("tensor", "delta+ref", "lion"),
        pytest.param("tensor", "delta+ref", "adamw", marks=pytest.mark.soak),
        pytest.param("all", "delta", "sgd", marks=pytest.mark.soak),
        pytest.param("all", "delta", "lion", marks=pytest.mark.soak),
    ],
)
def test_it_trains(groups, layout, base, digits):
    bases = {"adamw": optax.adamw(1.0), "sgd": optax.sgd(1.0, momentum=0.9), "lion": optax.lion(1.0)}
    tx = mechanize(bases[base], s_init=S_INIT, scale_groups=groups, delta_layout=layout)
    _, state, losses = digits.train(tx, STEPS)
    assert sum(losses[-8:]) < 0.5 * sum(losses[:8]), losses
    assert len(scales(state)) == (1 if groups == "all" else 4)
    assert int(state.step) == STEPS


def test_in_bfloat16_this_trains_where_optax_mechanize_stays_frozen(digits, bits):
    """Where no parameter is near 0, s_init is too small a step to be seen in bfloat16: x stays x_ref, Δ = (x − x_ref)/S
    stays 0, and with it h and S. Here Δ is kept in float32, so S grows until x moves."""
    base, start = optax.adamw(1.0), signs(digits.params(jnp.bfloat16))
    params, state, losses = digits.train(optax.contrib.mechanize(base, s_init=1e-6), 200, start)
    assert float(jnp.sum(state.s)) < 2e-6
    assert bits(params) == bits(start)
    params, state, losses = digits.train(mechanize(base, s_init=1e-6), 200, start)
    assert scale(state) > 1e-4
    assert sum(losses[-8:]) < 0.5 * sum(losses[:8])
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


def signs(params: Any) -> Any:
    """The same, with each weight replaced by its sign times one size: a constant initialization, as fine as a random one."""
    return jax.tree.map(lambda w: (jnp.where(w < 0, -1.0, 1.0) / np.sqrt(w.shape[0])).astype(w.dtype), params)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_follows_its_master_copy(dtype, digits, bits):
    """x is x_ref + S·Δ rounded once, so it does not matter how small a step is."""
    tx = mechanize(optax.sgd(1.0, momentum=0.9), s_init=1e-3)
    params, state, _ = digits.train(tx, 40, digits.params(dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.delta)} == {jnp.dtype(jnp.float32)}
    S = np.float32(scale(state))
    master = jax.tree.map(lambda r, D: np.float32(r) + S * np.float32(D), state.ref, state.delta)
    worst = jax.tree.map(lambda x, m: np.max(np.abs(np.float32(x) - m) / (np.abs(m) + 1e-3)), params, master)
    assert max(jax.tree.leaves(worst)) <= 2.0 * float(jnp.finfo(dtype).eps)


def test_labels_choose_the_scale_groups(digits):
    params = digits.params()
    for labels in (
        {"first": "body", "second": "head"},
        lambda params: {"first": "body", "second": {"w": "head", "b": "head"}},
    ):
        tx = mechanize(optax.adamw(1.0), s_init=S_INIT, scale_groups=labels)
        _, state, losses = digits.train(tx, 60, params)
        body, head = scales(state)
        assert body != head
        assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"scale_groups": "param_group"}, "INVALID_SETTING"),
        ({"scale_groups": {"third": "a"}}, "INVALID_SETTING"),
        ({"delta_layout": "both"}, "INVALID_SETTING"),
        ({"delta_layout": "ref"}, "INVALID_SETTING"),
        ({"max_scale": 0.0}, "INVALID_SETTING"),
        ({"convention": "adam"}, "INVALID_CONFIG"),
        ({"s_init": -1.0}, "INVALID_CONFIG"),
        ({"on_outage": "wait"}, "INVALID_OUTAGE_POLICY"),
        ({"target": "127.0.0.1:1"}, "RUN_NAME_MISSING"),
        ({"report": "often"}, "INVALID_SETTING"),
        ({"target": "127.0.0.1:1", "run": "r", "on_outage": "hold", "report": "loop"}, "INVALID_SETTING"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(options, reason, digits):
    with pytest.raises(InvalidArgument) as caught:
        mechanize(optax.adamw(1.0), **options).init(digits.params())
    assert caught.value.reason == reason


def test_what_cannot_be_wrapped_is_refused_by_name(digits):
    tx = mechanize(optax.sgd(1.0))
    for base in (0.1, "adam", tx, optax.adamw):
        with pytest.raises(InvalidArgument) as caught:
            mechanize(base)
        assert caught.value.reason == "BASE_NOT_AN_OPTIMIZER"
    with pytest.raises(InvalidArgument) as caught:
        tx.init({"w": jnp.arange(3)})
    assert caught.value.reason == "INVALID_SETTING"
    with pytest.raises(InvalidArgument) as caught:
        tx.init({"w": jnp.ones(3, jnp.complex64)})
    assert caught.value.reason == "COMPLEX_PARAMETER"
    params = digits.params()
    with pytest.raises(InvalidArgument) as caught:
        tx.update(params, tx.init(params))
    assert caught.value.reason == "PARAMS_MISSING"
    with pytest.raises(InvalidArgument) as caught:
        scale(optax.adam(1.0).init(params))
    assert caught.value.reason == "NOT_MECHANIZED"


def test_scale_is_a_float_and_an_error_that_names_scales_where_there_are_several(digits):
    params = digits.params()
    assert isinstance(scale(mechanize(optax.sgd(1.0)).init(params)), float)
    assert scales(mechanize(optax.sgd(1.0)).init(params)) == (0.0,)
    state = mechanize(optax.sgd(1.0), scale_groups="tensor").init(params)
    assert scales(state) == (0.0,) * 4
    with pytest.raises(InvalidArgument) as caught:
        scale(state)
    assert caught.value.reason == "SEVERAL_SCALES"


def test_scan_over_steps_is_the_loop(digits, bits):
    tx = mechanize(optax.adamw(1.0), s_init=S_INIT)
    looped, state, _ = digits.train(tx, 30)
    batches = [digits.batch(t) for t in range(30)]
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *batches)
    step = digits.step(tx)
    params = digits.params()
    (scanned, scanned_state), _ = jax.jit(
        lambda carry: jax.lax.scan(lambda carry, batch: (step(*carry, batch)[:2], None), carry, stacked)
    )((params, tx.init(params)))
    assert scale(scanned_state) == pytest.approx(scale(state), rel=1e-4)
    for one, other in zip(jax.tree.leaves(scanned), jax.tree.leaves(looped), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)


def test_gradient_accumulation_steps_once_in_k(digits):
    """optax.MultiSteps of 4 quarter batches is one step of the whole batch."""
    whole = mechanize(optax.adamw(1.0), s_init=S_INIT)
    parts = optax.MultiSteps(mechanize(optax.adamw(1.0), s_init=S_INIT), 4)
    params, state, _ = digits.train(whole, 20)
    pieces, pieces_state = digits.params(), parts.init(digits.params())
    step = digits.step(parts)
    for t in range(20):
        x, y = digits.batch(t)
        for k in range(4):
            pieces, pieces_state, _ = step(pieces, pieces_state, (x[16 * k : 16 * k + 16], y[16 * k : 16 * k + 16]))
    assert int(pieces_state.inner_opt_state.step) == 20
    assert scale(pieces_state) == pytest.approx(scale(state), rel=1e-3)
    for one, other in zip(jax.tree.leaves(pieces), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-4)


def poisoned(digits: Any, t: int, bad: tuple[int, ...]) -> Any:
    x, y = digits.batch(t)
    return (x * (jnp.nan if t in bad else 1.0), y)


@pytest.mark.parametrize("outer", [None, lambda tx: optax.apply_if_finite(tx, 5)], ids=["alone", "apply_if_finite"])
def test_a_gradient_that_is_not_finite_moves_nothing(outer, digits, bits):
    inner = mechanize(optax.adamw(1.0), s_init=S_INIT)
    tx = outer(inner) if outer else inner
    params, step = digits.params(), digits.step(tx)
    state = tx.init(params)
    for t in range(40):
        before, S = bits(params), scale(state)
        params, state, _ = step(params, state, poisoned(digits, t, (20, 21)))
        if t in (20, 21):
            assert bits(params) == before
            assert scale(state) == S
    assert scale(state) > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    only_good = [t for t in range(40) if t not in (20, 21)]
    other, other_state, step = digits.params(), inner.init(digits.params()), digits.step(inner)
    for t in only_good:
        other, other_state, _ = step(other, other_state, digits.batch(t))
    assert bits(other) == bits(params), "as if the bad batches had never come"


def test_masked_and_frozen_parameters_stay(digits, bits):
    params = digits.params()
    frozen = {"first": True, "second": False}
    for tx in (
        optax.chain(
            optax.masked(mechanize(optax.adamw(1.0), s_init=S_INIT), {"first": False, "second": True}),
            optax.masked(optax.set_to_zero(), frozen),
        ),
        optax.multi_transform(
            {"train": mechanize(optax.adamw(1.0), s_init=S_INIT), "freeze": optax.set_to_zero()},
            {"first": "freeze", "second": "train"},
        ),
    ):
        after, state, losses = digits.train(tx, 60, params)
        assert bits(after["first"]) == bits(params["first"])
        assert bits(after["second"]) != bits(params["second"])
        assert losses[-1] < losses[0]
        assert scale(state) > 0


def test_it_stands_in_a_chain_with_clipping_and_a_schedule(digits):
    schedule = optax.linear_schedule(1.0, 0.1, 60)
    tx = optax.chain(optax.clip_by_global_norm(1.0), mechanize(optax.adamw(schedule), s_init=S_INIT))
    _, state, losses = digits.train(tx, 60)
    assert losses[-1] < losses[0]
    assert scale(state) > 0


def test_base_with_hyperparameters_in_its_state_can_be_changed_between_steps(digits):
    tx = mechanize(optax.inject_hyperparams(optax.sgd)(learning_rate=1.0), s_init=S_INIT)
    params, state, _ = digits.train(tx, 10)
    state.base_state.hyperparams["learning_rate"] = jnp.float32(0.0)
    delta = state.delta
    _, state, _ = digits.train(tx, 5, params, state, 10)
    for one, other in zip(jax.tree.leaves(delta), jax.tree.leaves(state.delta), strict=True):
        np.testing.assert_array_equal(one, other)


def test_all_buffers_can_be_donated(digits, bits):
    tx = mechanize(optax.adamw(1.0), s_init=S_INIT, delta_layout="delta+ref")
    params, _, _ = digits.train(tx, 20)
    donated = digits.params()
    state, step = tx.init(donated), digits.step(tx, donate_argnums=(0, 1))
    for t in range(20):
        old = donated["first"]["w"]
        donated, state, _ = step(donated, state, digits.batch(t))
        assert old.is_deleted()
    assert bits(donated) == bits(params)


def test_many_trainings_at_once_by_vmap(digits):
    """Without a server each has its own S."""
    tx = mechanize(optax.adamw(1.0), s_init=S_INIT)
    make = [jax.tree.map(lambda p, i=i: p * (1.0 + i), digits.params()) for i in range(3)]
    params = jax.tree.map(lambda *parts: jnp.stack(parts), *make)
    state = jax.vmap(tx.init)(params)
    step = jax.jit(jax.vmap(digits.step(tx), in_axes=(0, 0, None)))
    for t in range(30):
        params, state, _ = step(params, state, digits.batch(t))
    S = [scale(jax.tree.map(lambda leaf, i=i: leaf[i], state)) for i in range(3)]
    assert len(set(S)) == 3
    for i in range(3):
        _, alone, _ = digits.train(tx, 30, make[i])
        assert S[i] == pytest.approx(scale(alone), rel=1e-3)


def test_the_cap_bounds_where_parameters_are_placed_and_not_the_tuner(digits):
    free = mechanize(optax.sgd(1.0), s_init=1e-3)
    capped = mechanize(optax.sgd(1.0), s_init=1e-3, max_scale=0.01, delta_layout="delta+ref")
    _, free_state, _ = digits.train(free, 60)
    params, state, _ = digits.train(capped, 60)
    assert scale(free_state) > 0.02
    assert scale(state) > 0.02, "the tuner goes on"
    for x, r, D in zip(*(jax.tree.leaves(tree) for tree in (params, state.ref, state.delta)), strict=True):
        np.testing.assert_allclose(x, r + np.float32(0.01) * D, rtol=1e-5, atol=1e-6)


def test_the_state_is_a_plain_tree_of_arrays(digits):
    state = mechanize(optax.adamw(1.0)).init(digits.params())
    assert isinstance(state, MechanicState)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    abstract = jax.eval_shape(mechanize(optax.adamw(1.0)).init, digits.params())
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
