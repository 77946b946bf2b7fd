"""S has no derivative: whatever differentiates through `update` is refused by name, and nothing else is."""

import jax
import jax.numpy as jnp
import optax
import pytest

from mechanicd.client import InvalidArgument
from mechanicd.jax import mechanize

PARAMS = {"a": jnp.arange(1.0, 4.0), "b": jnp.ones((2, 2))}


def made(layout="delta"):
    return mechanize(optax.sgd(1.0, momentum=0.9), s_init=1e-3, delta_layout=layout)


def loss(params):
    return sum(jnp.sum((leaf - 2.0) ** 2) for leaf in jax.tree.leaves(params))


def trained(tx, params, steps=2):
    """So many steps from here, by scan."""

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), None, steps)[0]


def one(tx, params, grads):
    return optax.apply_updates(params, tx.update(grads, tx.init(PARAMS), params)[0])


TX = made()
THROUGH = {
    "grad": lambda: jax.grad(lambda p: loss(trained(TX, p)[0]))(PARAMS),
    "jit": lambda: jax.jit(jax.grad(lambda p: loss(trained(TX, p)[0])))(PARAMS),
    "a jitted update": lambda: jax.grad(lambda p: loss(jax.jit(TX.update)(p, TX.init(PARAMS), p)[0]))(PARAMS),
    "hessian": lambda: jax.hessian(lambda a: loss(one(TX, PARAMS | {"a": a}, PARAMS)))(PARAMS["a"]),
    "jacfwd": lambda: jax.jacfwd(lambda p: one(TX, p, PARAMS))(PARAMS),
    "jvp": lambda: jax.jvp(lambda p: one(TX, p, PARAMS), (PARAMS,), (PARAMS,)),
    "linearize": lambda: jax.linearize(lambda g: one(TX, PARAMS, g), PARAMS),
    "vjp of the gradients alone": lambda: jax.vjp(lambda g: one(TX, PARAMS, g), PARAMS),
    "of a state": lambda: jax.grad(lambda z: loss(one(TX, PARAMS, jax.tree.map(lambda g: z * g, PARAMS))))(1.0),
    "vmap of grad": lambda: jax.vmap(jax.grad(lambda c: loss(trained(TX, jax.tree.map(lambda x: c * x, PARAMS))[0])))(
        jnp.ones(2)
    ),
    "checkpoint": lambda: jax.grad(jax.checkpoint(lambda p: loss(trained(TX, p)[0])))(PARAMS),
    "x_ref": lambda: jax.grad(lambda p: loss(trained(made("delta+ref"), p)[0]))(PARAMS),
    "bfloat16": lambda: jax.grad(lambda p: loss(trained(TX, p)[0]))(jax.tree.map(jnp.bfloat16, PARAMS)),
    "in a chain": lambda: jax.grad(lambda p: loss(trained(optax.chain(optax.clip(1.0), TX), p)[0]))(PARAMS),
    "in MultiSteps": lambda: jax.grad(lambda p: loss(trained(optax.MultiSteps(TX, 2), p)[0]))(PARAMS),
    "a learning rate, after two steps": lambda: jax.grad(
        lambda lr: loss(trained(mechanize(optax.sgd(lr), s_init=1e-3), PARAMS)[0])
    )(1.0),
}


@pytest.mark.parametrize("how", THROUGH)
def test_a_derivative_through_update_is_refused(how):
    with pytest.raises(InvalidArgument) as caught:
        THROUGH[how]()
    assert caught.value.reason == "NOT_DIFFERENTIABLE"


def test_with_a_server_too_before_anything_is_sent():
    tx = mechanize(optax.sgd(1.0), "run", "127.0.0.1:1")
    with pytest.raises(InvalidArgument) as caught:
        jax.grad(lambda p: loss(one(tx, p, PARAMS)))(PARAMS)
    assert caught.value.reason == "NOT_DIFFERENTIABLE"
    assert tx.run.session is None


def test_what_is_no_derivative_of_a_step_is_none_of_its_business(bits):
    train = jax.jit(lambda p: trained(TX, p))
    expected = bits(train(PARAMS))
    # an inner training in a function that is differentiated by something else, or by what is held constant for it
    aside = jax.grad(lambda c, p: (c**2, train(p)), has_aux=True)(3.0, PARAMS)
    assert bits(aside[1]) == expected
    held = jax.grad(lambda p: (loss(p), train(jax.lax.stop_gradient(p))), has_aux=True)(PARAMS)
    assert bits(held[1]) == expected
    assert bits(held[0]) == bits(jax.grad(loss)(PARAMS))
    assert bits(jax.checkpoint(train)(PARAMS)) == expected
