"""The four scalars of a step: ⟨Δ,g⟩, ⟨Δ,x⟩, ‖g‖², ‖x‖² (§3.2), in float64 from the first product on, for any dtype."""

from collections.abc import Sequence
from typing import Final

import jax
import jax.numpy as jnp
from jax import lax

from mechanicd.jax._groups import Groups
from mechanicd.jax._tuner import Sums

SMALL: Final = 2**14
"""Leaves with fewer elements are concatenated first, because on a GPU each reduction costs a launch."""


def reduce(
    groups: Groups,
    delta: Sequence[jax.Array],
    grads: Sequence[jax.Array],
    params: Sequence[jax.Array],
    squares: list[jax.Array] | None = None,
) -> Sums:
    """The sums over each scale group. Inside `x64()`.

    Args:
        delta, grads, params: leaves of the three trees in one order, of any real dtype and shape.
        squares: gets ‖x‖² of each leaf, from the same pass.
    """
    squares = [] if squares is None else squares
    small: list[list[tuple[jax.Array, ...]]] = [[] for _ in groups.names]
    parts: list[list[list[jax.Array]]] = [[] for _ in groups.names]
    for index, *leaves in zip(groups.index, delta, grads, params, strict=True):
        if any(map(split_by_type, leaves)):
            parts[index].append([jnp.sum(product).reshape(1) for product in _products(*leaves)])
        elif leaves[0].size < SMALL:
            small[index].append(tuple(leaf.reshape(-1).astype(jnp.float64) for leaf in leaves))
            squares.append(jnp.sum(small[index][-1][2] ** 2))
            continue
        else:
            parts[index].append(_rows(*leaves))
        squares.append(jnp.sum(parts[index][-1][3]))
    for index, leaves_of in enumerate(small):
        if leaves_of:
            parts[index].append(_rows(*(jnp.concatenate(column) for column in zip(*leaves_of, strict=True))))
    none = [jnp.float64(0.0)] * 4  # of a group in which nothing has a gradient
    sums = [[jnp.sum(jnp.concatenate(column)) for column in zip(*part, strict=True)] or none for part in parts]
    return Sums(*(jnp.stack(column) for column in zip(*sums, strict=True)))


def _rows(D: jax.Array, g: jax.Array, x: jax.Array) -> list[jax.Array]:
    """The four sums of each row of a leaf, in one pass over it.

    XLA neither splits one reduction of four operands into four passes nor turns it into a matrix product. For a matrix product
    it would first write all three leaves out in float64 (eight times slower on a CPU).
    """
    zero = jnp.float64(0.0)
    rows = lax.reduce(_products(D, g, x), (zero,) * 4, _add, (D.ndim - 1,))
    return [sums.reshape(-1) for sums in rows]


def _products(D: jax.Array, g: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
    D, g, x = (leaf.astype(jnp.float64) for leaf in (D, g, x))
    return D * g, D * x, g * g, x * x


def split_by_type(leaf: jax.Array) -> bool:
    """Whether the array's type has a sharding (a mesh with explicit axes), which bars reshaping it."""
    sharding = getattr(jax.typeof(leaf), "sharding", None) if hasattr(jax, "typeof") else None
    return any(axis is not None for axis in getattr(sharding, "spec", ()))


def _add(one: Sequence[jax.Array], other: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(a + b for a, b in zip(one, other, strict=True))
