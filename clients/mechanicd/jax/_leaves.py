"""The leaves of a step's trees, checked: what a parameter may be, and that gradients and Δ fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mechanicd.client import InvalidArgument
from mechanicd.jax._state import name_of


@dataclass(frozen=True)
class Leaves:
    """The parameters of a step.

    Attributes:
        tree: their structure.
        names: of each, as in "layers/0/w".
        x: each, an array of a real floating-point type.
    """

    tree: Any
    names: tuple[str, ...]
    x: tuple[Any, ...]


def leaves_of(params: Any) -> Leaves:
    """The parameters: arrays of jax or numpy, Python's floats, or the shapes that `jax.eval_shape` passes.

    Raises:
        InvalidArgument: COMPLEX_PARAMETER, INVALID_SETTING.
    """
    with_path = jax.tree_util.tree_leaves_with_path(params)
    names = tuple(name_of(path) or "params" for path, _ in with_path)
    x = [leaf for _, leaf in with_path]
    for name, leaf in zip(names, x, strict=True):
        dtype = dtype_of(leaf)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise InvalidArgument(
                "COMPLEX_PARAMETER" if dtype is not None and jnp.issubdtype(dtype, jnp.complexfloating) else "INVALID_SETTING",
                f"parameter {name!r} is {f'a {type(leaf).__name__}' if dtype is None else dtype}; mechanize takes real "
                "floating-point parameters: store complex ones as two real ones, and exclude others with optax.masked",
            )
    return Leaves(jax.tree.structure(params), names, tuple(x))


def dtype_of(leaf: Any) -> Any:
    """The dtype that an operation of JAX gives a leaf; None for what is no number."""
    try:
        return jax.dtypes.result_type(leaf)
    except (TypeError, ValueError):
        return None


def gradients(leaves: Leaves, grads: Any) -> list[Any]:
    """The gradients' leaves; None where a parameter has none.

    Raises:
        InvalidArgument: GRADIENTS_MISMATCH.
    """
    found = _flattened(leaves, grads, "GRADIENTS_MISMATCH", "the gradients are")
    for name, x, g in zip(leaves.names, leaves.x, found, strict=True):
        if g is not None and (dtype_of(g) is None or jnp.shape(g) != jnp.shape(x)):
            what = f"has the shape {jnp.shape(g)}" if dtype_of(g) is not None else f"is a {type(g).__name__}"
            raise InvalidArgument("GRADIENTS_MISMATCH", f"the gradient of {name!r} {what}, the parameter {jnp.shape(x)}")
    return [None if g is None else jnp.asarray(g) for g in found]


def kept(leaves: Leaves, what: str, tree: Any) -> list[Any]:
    """The leaves of Δ or x_ref, which fit the parameters.

    Raises:
        InvalidArgument: DELTA_MISMATCH.
    """
    found = _flattened(leaves, tree, "DELTA_MISMATCH", f"the state's {what} is")
    for name, x, D in zip(leaves.names, leaves.x, found, strict=True):
        if jnp.shape(D) != jnp.shape(x):
            raise InvalidArgument(
                "DELTA_MISMATCH",
                f"the parameter {name!r} has the shape {jnp.shape(x)}, its {what} {jnp.shape(D)}: a resized parameter starts "
                "again, with start_again(state, params, where) and a new state of BASE",
            )
    return found


def _flattened(leaves: Leaves, tree: Any, reason: str, what: str) -> list[Any]:
    """The leaves of a tree of the parameters' form."""
    try:
        found: list[Any] = leaves.tree.flatten_up_to(tree)
    except ValueError as error:
        raise InvalidArgument(reason, f"{what} another tree than the parameters: {error}") from None
    return found


__all__: Sequence[str] = ["Leaves", "dtype_of", "gradients", "kept", "leaves_of"]
