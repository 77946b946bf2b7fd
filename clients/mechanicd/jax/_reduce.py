"""⟨Δ,g⟩, ⟨Δ,x⟩, ‖g‖², ‖x‖² of each scale group, multiplied and added in float64 on the device (Algorithm 1, line 10)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from mechanicd.jax._groups import Groups
from mechanicd.jax._tuner import Sums


def reduce(groups: Groups, delta: Sequence[jax.Array], grads: Sequence[jax.Array], params: Sequence[jax.Array]) -> Sums:
    """The four scalars per scale group; inside `x64()`. Under a mesh they are those of the whole arrays.

    Args:
        delta, grads, params: leaves of the three trees in one order, of any real dtype and shape.
    """
    totals: list[list[jax.Array]] = [[jnp.float64(0.0)] * len(Sums._fields) for _ in groups.names]
    for index, *leaves in zip(groups.index, delta, grads, params, strict=True):
        totals[index] = [total + part for total, part in zip(totals[index], _four(*leaves), strict=True)]
    return Sums(*(jnp.stack(column) for column in zip(*totals, strict=True)))


def _four(D: jax.Array, g: jax.Array, x: jax.Array) -> list[jax.Array]:
    """The four of one leaf, in one pass over it: first of each row, then of all rows.

    One reduction of four operands is the form that XLA neither splits into four passes nor makes a matrix product of, for which
    it would first write all three out in float64 (eight times slower on a CPU).
    """
    D, g, x = (jnp.atleast_1d(leaf).astype(jnp.float64) for leaf in (D, g, x))
    zero = jnp.float64(0.0)
    rows = lax.reduce((D * g, D * x, g * g, x * x), (zero,) * 4, _add, (D.ndim - 1,))
    return [jnp.sum(sums) for sums in rows]


def _add(one: Sequence[jax.Array], other: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))
