"""Weights that something else changed between two steps keep their change: x_ref moves with them.

With x_ref kept, a step places x at x_ref + S·Δ afresh, which would undo whatever else moved x: clipped or restored weights, an
average over replicas, a synchronisation of Lookahead. So each step first looks where x is, and where it should be.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mechanicd.jax._state import wide


def typical(x: Sequence[jax.Array], g: Sequence[Any], squares: Sequence[jax.Array]) -> list[jax.Array]:
    """The root mean square of each parameter, in Δ's dtype; 0 where it is not finite. Inside `x64()`.

    Args:
        x, g: the parameters and their gradients; None where there is none.
        squares: ‖x‖² of each parameter that has a gradient.
    """
    found = iter(squares)
    sizes = [jnp.float64(0.0) if grad is None else jnp.sqrt(next(found) / max(p.size, 1)) for p, grad in zip(x, g, strict=True)]
    return [jnp.where(jnp.isfinite(size), size, 0.0).astype(wide(p.dtype)) for p, size in zip(x, sizes, strict=True)]


def follow(x: jax.Array, ref: jax.Array, S: jax.Array, delta: jax.Array, size: jax.Array) -> jax.Array:
    """x_ref, moved wherever x is not where the last step placed it; Δ, S and the sums see nothing of it.

    `optax.apply_updates` adds in x's dtype, so x misses x_ref + S·Δ by half a unit in the last place, by what rounding the
    update costs, and, where x has shrunk, by half a unit of what it was, which is taken to be of x's usual size. Only what is
    further away was moved. Each element decides for itself, so where x was larger, as when S collapses, x_ref takes up a
    rounding error of x, and no more.

    Args:
        x, ref: a parameter and its x_ref, of one shape and dtype.
        S: shape (), the one x was placed with, in Δ's dtype.
        delta: Δ, of x's shape.
        size: shape (), the root mean square of x, in Δ's dtype.
    """
    here, start, by = x.astype(delta.dtype), ref.astype(delta.dtype), S * delta
    precision: Any = jnp.finfo
    unit, fine = (float(precision(dtype).eps) for dtype in (x.dtype, delta.dtype))
    room = unit / 2 * (1.0625 * jnp.abs(here) + jnp.abs(by) + size) + 4 * fine * (jnp.abs(start) + jnp.abs(by) + size)
    room += 2 * float(precision(x.dtype).smallest_normal)  # a CPU may flush smaller updates to zero, until they add up
    gone = jnp.abs(here - (start + by)) > room
    return jnp.where(gone, (here - by).astype(ref.dtype), ref)
