"""Tries out whether a transformation remembers where the weights were.

Two copies of its state get the same gradients, with the parameters kept at two places: x and −x, which have the same norms.
Then both are put at x, and go on. What an optimizer makes of gradients and norms is the same in both from then on, and what
weight decay has left in a momentum fades. If an update or the state still differs, that is a memory of places: slow weights, an
average, a z, the weights at the start.

The parameters are small ones of the same tree. A transformation that does not run so is not judged.
"""

import math
import re
import warnings
from collections import Counter
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

SIDE: Final = 4
"""The size of a small parameter, in each dimension at most."""
MANY: Final = 32
KINDS: Final = 2
"""Of a tree of more than MANY parameters, how many of one path (but for its numbers) and one number of dimensions are kept."""
APART: Final = 7
"""Steps at two places; Lookahead's period is 5 or 6."""
TOGETHER: Final = 53
"""Steps from the same place; 0.9 to this power is 0.004."""
SIZE: Final = 4.0
"""The root mean square of x."""
STEEP: Final = 100.0
"""The root mean square of g: it is large beside what weight decay adds to it."""
DRAWN: Final = 0.4
"""The part of 2x by which an update may differ at first, for what a momentum still has of weight decay; this has to fade."""
LEFT: Final = 0.05
"""The part of 2x, or of itself, by which an update or a state may differ at the end, in the mean."""
LITTLE: Final = 1e-4
"""The part of x below which a difference is rounding."""


def memory_of(base: Any, params: Any) -> str:
    """How BASE remembers where the weights were; empty if it does not, or can't be judged.

    Args:
        base: the transformation.
        params: the tree of the real parameters, of which only structure and shapes are used.
    """
    try:
        with warnings.catch_warnings(), jax.ensure_compile_time_eval(), jax.default_device(jax.local_devices(backend="cpu")[0]):
            warnings.simplefilter("ignore")
            return _judged(optax.with_extra_args_support(base), _small(params))
    except Exception:  # it does not run with these parameters: no judgement
        return ""


def _judged(base: Any, x: Any) -> str:
    mirrored = jax.tree.map(np.negative, x)
    update = jax.jit(lambda g, state, x: base.update(g, state, x, value=np.float32(1.0)))
    near, far = base.init(x), base.init(mirrored)
    make = np.random.default_rng(1)
    least = math.inf
    for step in range(APART + TOGETHER):
        g = jax.tree.map(lambda leaf: np.asarray(STEEP * make.standard_normal(leaf.shape), np.float32), x)
        u, near = update(g, near, x)
        v, far = update(g, far, mirrored if step < APART else x)
        if step > APART:  # in the first step from here an optimizer may still compare x with the x of the step before
            most, last = max(gap for gap, _ in _gaps(u, v)) / (2.0 * SIZE), step == APART + TOGETHER - 1
            if most > DRAWN or (most > LEFT and (last or most > 2.0 * least)):
                return "is drawn to where the weights were"
            least = min(least, most)
    if any(gap > min(LEFT * 2.0 * SIZE, max(LEFT * size, LITTLE * SIZE)) for gap, size in _gaps(near, far)):
        return "keeps where the weights were"
    return ""


def _small(params: Any) -> Any:
    """A tree of the parameters' form, of small float32 arrays; None for some of very many."""
    make = np.random.default_rng(0)
    kept: Counter[Any] = Counter()
    many = len(jax.tree.leaves(params)) > MANY

    def small(path: Any, leaf: Any) -> NDArray[np.float32] | None:
        shape = np.shape(leaf)
        kind = re.sub(r"\d+", "", jax.tree_util.keystr(path)), len(shape)
        kept[kind] += 1
        if many and kept[kind] > KINDS:
            return None
        return np.asarray(SIZE * make.standard_normal([min(size, SIDE) for size in shape]), np.float32)

    return jax.tree_util.tree_map_with_path(small, params)


def _gaps(one: Any, other: Any) -> list[tuple[float, float]]:
    """Of each pair of floating-point leaves the mean difference, and the mean size of the larger one; finite ones only."""
    found: list[tuple[float, float]] = []
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if not jnp.issubdtype(a.dtype, jnp.floating) or a.size == 0:
            continue
        p, q = (np.asarray(leaf, np.float64) for leaf in (a, b))
        gap, size = float(np.mean(np.abs(p - q))), float(np.mean(np.maximum(np.abs(p), np.abs(q))))
        if np.isfinite(gap):
            found.append((gap, size))
    return found
