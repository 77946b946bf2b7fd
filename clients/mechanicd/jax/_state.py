"""The state of a mechanized optimizer: what is in it, how S is read from it, and how it starts again from other weights."""

from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from mechanicd.client import InvalidArgument, StepConflict
from mechanicd.client.framework import only_scale
from mechanicd.jax._float64 import host_values

LOW_PRECISION: Final = (jnp.bfloat16, jnp.float16)
DISAGREED: Final = (
    "the devices disagreed about the gradients or the parameters, so S is not a number: average the gradients over every axis "
    "(jax.lax.pmean), or say with axis_name= over which the parameters are split"
)


class MechanicState(NamedTuple):
    """Everything a run needs to resume, as plain arrays.

    Attributes:
        base_state: BASE's.
        step: int32, shape (): t, the steps taken.
        tuner: uint32, shape (5, n, G, 2): m, v, r, s, q of each β and scale group, as the bits of float64.
        delta: Δ, a tree like the parameters, float32 for low precision; () if it is not kept.
        ref: x_ref, a tree like the parameters, in their dtypes; () if it is not kept.
        told: int32, shape (): how many steps were reported to the host; each callback depends on it, which keeps them in order.
            It begins at 0, or at what `{random}` in the run's name stands for: then told − step stays what it is.
        recent: uint32, shape (at most 256, words): the last steps with `report="loop"`, else ().
    """

    base_state: Any
    step: jax.Array
    tuner: jax.Array
    delta: Any
    ref: Any
    told: jax.Array
    recent: Any


def wide(dtype: Any) -> Any:
    """The dtype of Δ for a parameter's."""
    return jnp.dtype(jnp.float32) if dtype in LOW_PRECISION else dtype


def name_of(path: Any) -> str:
    """A leaf's path as scale groups and messages show it: "layers/0/w"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def scales(state: Any, label: Any = None) -> tuple[float, ...]:
    """S of each scale group, in the order of the groups, from an optimizer state that holds one `MechanicState`.

    The state has to be concrete, so call this outside jit. One that `jax.pmap` replicated is read as one.

    Args:
        label: which one, where the state holds several: the label that `optax.partition` or `optax.multi_transform` gives it,
            or its name in `optax.named_chain`.

    Raises:
        InvalidArgument: NOT_MECHANIZED.
        StepConflict: SCALE_MISMATCH, where devices hold another S each.
    """
    s = _tuner(find(state, label))[3]
    total = np.zeros(s.shape[1])
    for values in s:
        total = total + values
    return tuple(total.tolist())


def scale(state: Any, label: Any = None) -> float:
    """The one S of a run with one scale group; see `scales`.

    Raises:
        InvalidArgument: NOT_MECHANIZED, SEVERAL_SCALES.
        StepConflict: SCALE_MISMATCH.
    """
    return only_scale(scales(state, label))


def start_again(state: Any, params: Any, where: Any = None) -> Any:
    """Starts again from these weights: x_ref := x and Δ := 0. S, BASE's state and all else stay as they are.

    Call it after you replaced weights on purpose (restored an older model, reset a low-rank adapter). It is pure, and works
    under jit as well.

    Args:
        state: an optimizer state that holds one `MechanicState` or several.
        params: the weights, the tree that `update` gets.
        where: which parameters: None for all, a tree of bools (the parameters' or a prefix of it), or a function that gets a
            parameter's path, such as "layers/0/w", and says whether it is one.

    Returns:
        The new state.

    Raises:
        InvalidArgument: NOT_MECHANIZED; DELTA_MISMATCH, where the state has a parameter that `params` lacks; INVALID_SETTING,
            where `where` is no prefix of the parameters.
    """
    if not _all(state):
        raise InvalidArgument(
            "NOT_MECHANIZED", "the state holds no state of mechanize(); pass what tx.init or tx.update returned"
        )
    weights = {path: (x, chosen) for (path, x), chosen in zip(_with_path(params), _chosen(where, params), strict=True)}

    def weight(path: Any) -> tuple[Any, bool]:
        if path not in weights:
            raise InvalidArgument(
                "DELTA_MISMATCH", f"the state has a Δ for {name_of(path)!r}, which is no parameter of the tree that was passed"
            )
        return weights[path]

    def zero(path: Any, D: Any) -> Any:
        x, chosen = weight(path)
        return jnp.zeros_like(x, dtype=D.dtype) if chosen else D

    def start(path: Any, r: Any) -> Any:
        x, chosen = weight(path)
        return jnp.array(x, dtype=r.dtype) if chosen else r

    def again(node: Any) -> Any:
        if not is_ours(node):
            return node
        by_path = jax.tree_util.tree_map_with_path
        return node._replace(delta=by_path(zero, node.delta), ref=by_path(start, node.ref))

    return jax.tree.map(again, state, is_leaf=is_ours)


def _chosen(where: Any, params: Any) -> list[bool]:
    """Per leaf of the parameters, whether `where` means it."""
    if where is None or callable(where):
        return [where is None or bool(where(name_of(path))) for path, _ in _with_path(params)]
    found: list[bool] = []
    try:
        jax.tree.map(lambda chosen, branch: found.extend([bool(chosen)] * len(jax.tree.leaves(branch))), where, params)
    except ValueError as error:
        raise InvalidArgument(
            "INVALID_SETTING", f"where: the tree of bools is not a prefix of the parameters: {error}"
        ) from None
    return found


def _with_path(tree: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = jax.tree_util.tree_leaves_with_path(tree)
    return found


def is_ours(node: Any) -> bool:
    return isinstance(node, MechanicState)


def find(state: Any, label: Any = None) -> MechanicState:
    """The one `MechanicState` in an optimizer's state, or the one with this label.

    Raises:
        InvalidArgument: NOT_MECHANIZED.
    """
    found = _all(state)
    chosen = [node for path, node in found if label is None or label in path]
    if len(chosen) != 1:
        paths = [path for path, _ in found]
        labels = sorted({str(key) for path in paths for key in path if any(key not in other for other in paths)})
        which = f"; name one with label=, one of {', '.join(labels)}" if labels else ""
        of = "" if label is None else f" under {label!r}"
        raise InvalidArgument(
            "NOT_MECHANIZED", f"the state holds {len(chosen)} states of mechanize(){of}; exactly one was expected{which}"
        )
    return chosen[0]


def _all(state: Any) -> list[tuple[tuple[Any, ...], MechanicState]]:
    """Each `MechanicState`, with the keys and names on the way to it."""

    def key(entry: Any) -> Any:
        return next((getattr(entry, name) for name in ("key", "name", "idx") if hasattr(entry, name)), entry)

    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=is_ours)
    return [(tuple(key(entry) for entry in path), leaf) for path, leaf in leaves if is_ours(leaf)]


def _tuner(state: MechanicState) -> NDArray[np.float64]:
    """The tuner's table, shape (5, n, G), the same on every device that holds it."""
    tuner = state.tuner
    parts = [shard.data for shard in tuner.addressable_shards] if isinstance(tuner, jax.Array) else [tuner]
    shape = np.shape(tuner)[-4:]
    each = np.concatenate([np.asarray(part).reshape(-1, *shape) for part in parts])
    values: NDArray[np.float64] = host_values(each)
    if np.isnan(values).any():
        raise StepConflict("SCALE_MISMATCH", DISAGREED)
    if any(copy.tobytes() != each[0].tobytes() for copy in each):
        raise StepConflict(
            "SCALE_MISMATCH",
            f"the state holds {len(each)} tuners with another S each: of trainings under vmap, pass one, "
            "jax.tree.map(lambda leaf: leaf[0], state); of devices that train one model, average the gradients over them",
        )
    one: NDArray[np.float64] = values[0]
    return one


__all__ = [
    "DISAGREED",
    "LOW_PRECISION",
    "MechanicState",
    "find",
    "is_ours",
    "name_of",
    "scale",
    "scales",
    "start_again",
    "wide",
]
