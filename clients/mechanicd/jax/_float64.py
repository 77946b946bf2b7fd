"""float64 inside a program that is otherwise traced without it, with the same bits as on the host.

Between steps, float64 values are kept as their bits in uint32 arrays of shape (…, 2), which no tool converts to float32.
"""

from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

BITS: Final = np.uint32


def x64() -> Any:
    """A context in which operations are traced in float64 whatever jax_enable_x64 says."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # type: ignore[attr-defined]

    return enable_x64()


def to_bits(values: jax.Array) -> jax.Array:
    """float64 of any shape → uint32 of shape (…, 2). Inside `x64()`."""
    return lax.bitcast_convert_type(values, jnp.uint32)


def from_bits(bits: jax.Array) -> jax.Array:
    """The inverse of `to_bits`. Inside `x64()`."""
    return lax.bitcast_convert_type(bits, jnp.float64)


def host_bits(values: Any) -> NDArray[np.uint32]:
    """`to_bits` on the host, for anything that numpy converts to an array."""
    array = np.ascontiguousarray(values, dtype=np.float64)
    return array.reshape(*array.shape, 1).view(BITS)


def host_values(bits: Any) -> NDArray[np.float64]:
    """The inverse of `host_bits`."""
    return np.ascontiguousarray(bits, dtype=BITS).view(np.float64)[..., 0]


class Exact:
    """Keeps a compiler from rewrites that change bits: fusing products with sums, turning divisions into products.

    Each result passes through an exclusive or with a 0 whose value the compiler does not know.

    Args:
        step: an int32 that is never negative.
    """

    def __init__(self, step: jax.Array) -> None:
        self._zero = lax.convert_element_type(lax.shift_right_arithmetic(step, jnp.int32(31)), jnp.uint64)

    def __call__(self, value: Any) -> jax.Array:
        bits = lax.bitcast_convert_type(jnp.asarray(value, jnp.float64), jnp.uint64)
        return lax.bitcast_convert_type(bits ^ self._zero, jnp.float64)

    def each(self, value: float, like: jax.Array) -> jax.Array:
        """A value for each element of `like`, where all are ≥ 0: what is the same for all would be divided by only once, and
        multiplied by then."""
        zeros = lax.shift_right_logical(lax.bitcast_convert_type(like, jnp.uint64), jnp.uint64(63))
        bits = lax.bitcast_convert_type(jnp.asarray(value, jnp.float64), jnp.uint64)
        return lax.bitcast_convert_type(bits ^ zeros, jnp.float64)
