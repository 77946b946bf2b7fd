"""A weight that something else changes between two steps keeps its change, in every layout and dtype."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mechanicd.client import InvalidArgument
from mechanicd.jax import mechanize, scale, scales, start_again
from mechanicd.jax._state import MechanicState

S_INIT = 1e-3
kept = pytest.mark.parametrize(
    ("dtype", "layout"),
    [(jnp.bfloat16, "delta"), (jnp.float16, "delta"), (jnp.float32, "delta+ref"), (jnp.float32, "delta")],
    ids=["bfloat16", "float16", "float32, delta+ref", "float32, delta"],
)


def made(layout: str, **how: Any) -> Any:
    return mechanize(optax.sgd(1.0, momentum=0.9), s_init=S_INIT, delta_layout=layout, **how)


def numbers(tree: Any) -> list[Any]:
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def unit(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)


@kept
def test_a_changed_weight_is_not_changed_back(dtype, layout, digits, bits):
    tx = made(layout)
    params, state, _ = digits.train(tx, 40, digits.params(dtype))
    before = state
    changed = jax.tree.map(lambda x: x, params)
    changed["first"]["w"] = params["first"]["w"].at[:3].set(5.0)
    after, state, _ = digits.train(tx, 1, changed, state, 40)
    moved = np.asarray(after["first"]["w"][:3], np.float64)
    step = max(float(np.max(np.abs(a - b))) for a, b in zip(numbers(after), numbers(changed), strict=True))
    assert np.all(np.abs(moved - 5.0) < 3 * 5.0 * unit(dtype) + 2 * min(step, 0.2)), moved
    if layout != "delta" or dtype != jnp.float32:
        untouched = np.asarray(state.ref["first"]["w"][3:], np.float64) == np.asarray(before.ref["first"]["w"][3:], np.float64)
        assert untouched.all(), "each element by itself"
        assert bits(state.ref["second"]) == bits(before.ref["second"])


@kept
def test_delta_and_s_see_nothing_of_it(dtype, layout, digits, bits):
    """The gradients do not depend on x, and s_decay=0: so the tuner of the changed weights gets the same numbers."""
    tx = made(layout, s_decay=0.0)
    params = digits.params(dtype)
    states = [tx.init(params)] * 2
    weights = [params] * 2
    update = jax.jit(tx.update)
    for t in range(30):
        grads = jax.tree.map(lambda x, t=t: jnp.full_like(x, 1.0 if t % 3 else -0.5), params)
        for i in range(2):
            updates, states[i] = update(grads, states[i], weights[i])
            weights[i] = optax.apply_updates(weights[i], updates)
        if t == 15:
            weights[1] = jax.tree.map(lambda x: x + 0.25, weights[1])
    assert bits(states[0].delta) == bits(states[1].delta)
    assert scale(states[0]) == scale(states[1]) > 0
    for one, other in zip(numbers(weights[0]), numbers(weights[1]), strict=True):
        np.testing.assert_allclose(other - one, 0.25, atol=4 * max(1.0, np.abs(one).max()) * unit(dtype))


@pytest.mark.parametrize(
    ("base", "dtype"),
    [
        (optax.adamw(1.0, eps=1e-4), jnp.bfloat16),
        (optax.sgd(1.0, momentum=0.9), jnp.float32),
        (optax.lion(1.0), jnp.float32),
    ],
    ids=["bfloat16", "float32", "float32, lion"],
)
@pytest.mark.parametrize("apart", [False, True], ids=["one program", "two programs"])
def test_nothing_drifts_in_a_thousand_steps_if_nothing_was_changed(apart, base, dtype, digits, bits):
    """x_ref has the bits of the start, so each step places x where it would without looking for a change."""
    tx, start = mechanize(base, s_init=1e-4, delta_layout="delta+ref"), digits.params(dtype)
    params, state = start, tx.init(start)
    if apart:  # what optax adds is rounded, as it is not within one program

        @jax.jit
        def update(params, state, batch):
            return tx.update(jax.grad(digits.loss)(params, batch), state, params)

        apply = jax.jit(optax.apply_updates)
        for t in range(1000):
            updates, state = update(params, state, digits.batch(t % 50))
            params = apply(params, updates)
    else:
        step, batches = digits.step(tx), jax.tree.map(lambda *parts: jnp.stack(parts), *[digits.batch(t) for t in range(50)])

        def body(carry, t):
            batch = jax.tree.map(lambda part: part[t % 50], batches)
            return step(*carry, batch)[:2], None

        params, state = jax.jit(lambda carry: jax.lax.scan(body, carry, jnp.arange(1000))[0])((params, state))
    assert scale(state) > 1e-3
    assert bits(state.ref) == bits(start)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_where_the_weights_collapse_in_low_precision_x_ref_takes_up_a_rounding_error_at_most(dtype):
    """An update in low precision can't take x from 1 to 0.001: it lands half a unit of 1 away."""
    tx = mechanize(optax.sgd(1.0), s_init=1.0, convention="optax")
    params = {"w": jnp.linspace(-0.01, 0.01, 64, dtype=dtype)}
    state, start, largest, update = tx.init(params), np.asarray(params["w"], np.float64), 0.0, jax.jit(tx.update)
    for t in range(40):
        grads = {"w": jnp.linspace(-1, 1, 64, dtype=dtype) * (-1) ** (t // 3)}
        updates, state = update(grads, state, params)
        params = optax.apply_updates(params, updates)
        largest = max(largest, float(jnp.max(jnp.abs(params["w"]))))
    off = np.abs(np.asarray(state.ref["w"], np.float64) - start)
    assert largest > 0.1
    assert off.max() <= 4 * unit(dtype) * largest


def test_weights_clipped_after_each_step_stay_clipped(digits):
    """As Wasserstein GANs do. Without x_ref nothing could undo it; with x_ref the training is the same."""
    found, clip = {}, jax.jit(lambda params: jax.tree.map(lambda x: jnp.clip(x, -0.1, 0.1), params))
    for layout in ("delta", "delta+ref"):
        tx = made(layout)
        params = clip(digits.params())
        state, step, losses = tx.init(params), digits.step(tx), []
        for t in range(40):
            params, state, loss = step(params, state, digits.batch(t))
            params = clip(params)
            losses.append(float(loss))
        found[layout] = losses
        assert max(np.abs(x).max() for x in numbers(params)) == pytest.approx(0.1), "some are at the edge"
    np.testing.assert_allclose(found["delta+ref"], found["delta"], rtol=1e-3)


def test_replicas_that_average_their_weights_now_and_then_train(digits):
    """Local SGD: two replicas, each with its own S, averaged after 10 steps."""
    batches = [lambda t: digits.batch(2 * t), lambda t: digits.batch(2 * t + 1)]
    tx = made("delta+ref")
    params, states, step = [digits.params()] * 2, [tx.init(digits.params())] * 2, digits.step(tx)
    losses = []
    for t in range(100):
        for i in range(2):
            params[i], states[i], loss = step(params[i], states[i], batches[i](t))
            losses.append(float(loss))
        if t % 10 == 9:
            mean = jax.tree.map(lambda a, b: (a + b) / 2, *params)
            params = [mean, mean]
            following = [step(mean, states[i], batches[i](t))[0] for i in range(2)]
            for one, other in zip(numbers(following[0]), numbers(following[1]), strict=True):
                assert np.abs(one - other).max() < 0.5, "both go on from the mean"
    assert np.mean(losses[-20:]) < 0.5 * np.mean(losses[:20])


def test_an_average_of_the_weights_may_be_swapped_in_and_out_or_kept(digits, bits):
    tx = made("delta+ref")
    params, state, _ = digits.train(tx, 30)
    average = jax.tree.map(lambda x: 0.9 * x, params)
    for weights in (params, average):
        after, _, _ = digits.train(tx, 1, weights, state, 30)
        same = jax.tree.map(lambda a, w: float(jnp.max(jnp.abs(a - w))), after, weights)
        assert max(jax.tree.leaves(same)) < 0.05
    swapped, _, _ = digits.train(tx, 1, params, state, 30)
    again, _, _ = digits.train(tx, 1, params, state, 30)
    assert bits(swapped) == bits(again)


def test_lookahead_around_keeps_its_slow_weights(digits):
    """At a synchronisation it moves the fast weights, which x_ref follows."""
    tx = optax.lookahead(made("delta+ref"), sync_period=5, slow_step_size=0.5)
    params = optax.LookaheadParams.init_synced(digits.params())
    state = tx.init(params)

    @jax.jit
    def step(params, state, batch):
        loss, grads = jax.value_and_grad(digits.loss)(params.fast, batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for t in range(150):
        params, state, loss = step(params, state, digits.batch(t))
        losses.append(float(loss))
        if t % 5 == 4:
            for fast, slow in zip(numbers(params.fast), numbers(params.slow), strict=True):
                np.testing.assert_allclose(fast, slow, rtol=1e-5, atol=1e-6)
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    assert scale(state) > 0


def test_a_cap_changed_at_a_restart_does_not_move_the_weights(digits):
    params, state, _ = digits.train(made("delta+ref"), 60)
    capped = made("delta+ref", max_scale=scale(state) / 10)
    after, _, _ = digits.train(capped, 1, params, state, 60)
    for one, other in zip(numbers(after), numbers(params), strict=True):
        assert np.abs(one - other).max() < 0.1


# --- start_again


@pytest.mark.parametrize(("layout", "dtype"), [("delta", jnp.float32), ("delta+ref", jnp.float32), ("delta", jnp.bfloat16)])
def test_start_again_starts_again_from_these_weights(layout, dtype, digits, bits):
    tx = made(layout)
    params, state, _ = digits.train(tx, 40, digits.params(dtype))
    other = jax.tree.map(lambda x: 0.5 * x, params)
    fresh = start_again(state, other)
    assert all(not leaf.any() for leaf in numbers(fresh.delta))
    if fresh.ref != ():
        assert bits(fresh.ref) == bits(other)
    assert scales(fresh) == scales(state)
    assert bits(fresh.base_state) == bits(state.base_state)
    assert int(fresh.step) == 40
    jitted = jax.jit(start_again)(state, other)
    assert bits(jitted) == bits(fresh)
    _, state, losses = digits.train(tx, 40, other, fresh, 40)
    assert np.isfinite(losses).all()
    assert scale(state) > 0


@pytest.mark.parametrize(
    "where",
    [
        {"first": True, "second": False},
        {"first": {"w": True, "b": True}, "second": False},
        lambda path: path.startswith("first/"),
    ],
    ids=["prefix", "tree", "path"],
)
def test_start_again_of_some_parameters_leaves_the_others(where, digits, bits):
    tx = made("delta+ref")
    params, state, _ = digits.train(tx, 40)
    other = jax.tree.map(lambda x: x + 1.0, params)
    fresh = start_again(state, other, where)
    assert all(not leaf.any() for leaf in numbers(fresh.delta["first"]))
    assert bits(fresh.ref["first"]) == bits(other["first"])
    assert bits((fresh.delta["second"], fresh.ref["second"])) == bits((state.delta["second"], state.ref["second"]))


def test_start_again_finds_its_states_in_any_optimizer(digits, bits):
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.partition(
            {"body": made("delta+ref"), "head": optax.MultiSteps(made("delta"), 2)}, {"first": "body", "second": "head"}
        ),
    )
    params, state, _ = digits.train(tx, 20)
    fresh = start_again(state, params)
    found = [node for node in jax.tree.leaves(fresh, is_leaf=lambda n: isinstance(n, MechanicState)) if hasattr(node, "delta")]
    assert len(found) == 2
    assert all(not leaf.any() for node in found for leaf in numbers(node.delta))
    assert bits(found[0].ref) == bits(params["first"])
    assert jax.tree.structure(fresh) == jax.tree.structure(state)
    digits.train(tx, 5, params, fresh, 20)


def test_start_again_resizes_and_an_update_of_another_shape_is_refused(digits):
    tx = mechanize(optax.sgd(1.0), s_init=S_INIT)
    params, state, _ = digits.train(tx, 20)
    wider = {**params, "second": {"w": jnp.zeros((32, 12)), "b": jnp.zeros(12)}}
    with pytest.raises(InvalidArgument) as caught:
        digits.train(tx, 1, wider, state, 20)
    assert caught.value.reason == "DELTA_MISMATCH"
    after, _, _ = digits.train(tx, 20, wider, start_again(state, wider, {"first": False, "second": True}), 20)
    assert after["second"]["w"].shape == (32, 12)


def test_start_again_refuses_by_name_what_it_cannot_do(digits):
    tx = made("delta")
    params = digits.params()
    state = tx.init(params)
    for arguments, reason in (
        ((optax.adam(1.0).init(params), params), "NOT_MECHANIZED"),
        ((state, {"first": params["first"]}), "DELTA_MISMATCH"),
        ((state, params, {"third": True}), "INVALID_SETTING"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            start_again(*arguments)
        assert caught.value.reason == reason
