"""⟨Δ,g⟩, ⟨Δ,x⟩, ‖g‖², ‖x‖² of each scale group, multiplied and added in float64 on the device (Algorithm 1, line 10)."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from mechanicd.jax._groups import Groups
from mechanicd.jax._tuner import Sums


def reduce(groups: Groups, delta: Sequence[jax.Array], grads: Sequence[jax.Array], params: Sequence[jax.Array]) -> Sums:
    """The four scalars per scale group; inside `x64()`. Under a mesh they are those of the whole arrays.

    Args:
        delta, grads, params: leaves of the three trees in one order, of any real dtype and shape.
    """
    totals: list[list[jax.Array]] = [[jnp.float64(0.0)] * len(Sums._fields) for _ in groups.names]
    for index, D, g, x in zip(groups.index, delta, grads, params, strict=True):
        D, g, x = (leaf.astype(jnp.float64) for leaf in (D, g, x))
        parts = (jnp.sum(D * g), jnp.sum(D * x), jnp.sum(g * g), jnp.sum(x * x))
        totals[index] = [total + part for total, part in zip(totals[index], parts, strict=True)]
    return Sums(*(jnp.stack(column) for column in zip(*totals, strict=True)))
