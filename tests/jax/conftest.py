"""A small network on scikit-learn's real digits, in plain JAX."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

Params = dict[str, Any]


class Digits:
    """Its data, its parameters and its loss; `step(tx)` is one jitted training step."""

    def __init__(self) -> None:
        digits = load_digits()
        self.x, self.y = np.float32(digits.data / 16.0), np.int32(digits.target)

    def params(self, dtype: Any = jnp.float32, width: int = 32) -> Params:
        make = np.random.default_rng(0)
        shapes = {"first": (64, width), "second": (width, 10)}
        return {
            name: {
                "w": jnp.asarray(make.standard_normal(shape) / np.sqrt(shape[0]), dtype),
                "b": jnp.zeros(shape[1:], dtype),
            }
            for name, shape in shapes.items()
        }

    def batch(self, step: int, size: int = 64) -> tuple[jax.Array, jax.Array]:
        rows = np.arange(step * size, (step + 1) * size) % len(self.x)
        return jnp.asarray(self.x[rows]), jnp.asarray(self.y[rows])

    @staticmethod
    def loss(params: Params, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, y = batch
        hidden = jax.nn.relu(x.astype(params["first"]["w"].dtype) @ params["first"]["w"] + params["first"]["b"])
        logits = (hidden @ params["second"]["w"] + params["second"]["b"]).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(self, tx: Any, **options: Any) -> Callable[..., Any]:
        """A jitted (params, state, batch) → (params, state, loss)."""

        def step(params: Params, state: Any, batch: Any) -> Any:
            loss, grads = jax.value_and_grad(self.loss)(params, batch)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state, loss

        return jax.jit(step, **options)

    def train(
        self, tx: Any, steps: int, params: Any = None, state: Any = None, begin: int = 0
    ) -> tuple[Params, Any, list[float]]:
        """So many steps; the parameters, the state and the losses."""
        params = self.params() if params is None else params
        state = tx.init(params) if state is None else state
        step, losses = self.step(tx), []
        for t in range(begin, begin + steps):
            params, state, loss = step(params, state, self.batch(t))
            losses.append(float(loss))
            if not isinstance(getattr(state, "recent", ()), tuple):
                tx.report(state)
        return params, state, losses


@pytest.fixture(scope="session")
def digits() -> Digits:
    return Digits()


def bits(tree: Any) -> list[bytes]:
    """All arrays of a tree as they are in memory."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture(name="bits")
def bits_fixture() -> Callable[[Any], list[bytes]]:
    return bits
