"""Over which device axes a step's sums run, so that S is the same on every device of a `shard_map` or `pmap`.

Under `jit` alone an array is whole, however it is laid out, and there is nothing to do. Inside `shard_map` and `pmap` a program
sees one device's part: the sums over a parameter that is split among devices have to be added up, those over one that each
device holds whole must not be. `shard_map` with `check_vma=True` tracks what differs between devices, and then nothing has to
be said. Elsewhere `mechanize(…, axis_name=…)` says it, and each step checks that the sums are then the same on every device.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax import lax

from mechanicd.client import InvalidArgument
from mechanicd.jax import _reduce
from mechanicd.jax._groups import Groups
from mechanicd.jax._tuner import Sums

Names = frozenset[Any]
AxisName = Any
"""None, the name of an axis, a tuple of names, or a tree of these over the parameters (or over whole branches of them)."""
CLOSE: Final = 1e-9
"""How far ‖g‖² and ‖x‖² of two devices may differ, relatively: what another order of a sum can cost, and far less than a
gradient of other data."""


@dataclass(frozen=True)
class Axes:
    """The axes of one step.

    Attributes:
        split: per leaf of the parameters, the axes that it is split over.
        checked: the axes for which JAX can't say whether the sums, once added up, are the same on all devices.
    """

    split: tuple[Names, ...]
    checked: Names


def bound() -> Names:
    """The axes of the `shard_map` or `pmap` around."""
    mesh = getattr(jax.sharding, "get_abstract_mesh", lambda: None)()
    return frozenset(getattr(mesh, "manual_axes", ()))


def varying(array: Any) -> Names:
    """The axes over which an array differs between devices, as far as its type says."""
    if not hasattr(jax, "typeof"):
        return frozenset()
    kind = jax.typeof(array)
    return frozenset(getattr(kind, "vma", None) or getattr(getattr(kind, "mat", None), "varying", None) or ())


def tracked(axes: Names) -> Names:
    """Those axes for which JAX tracks what differs."""
    return frozenset(axis for axis in axes if varying(lax.axis_index(axis)))


def named(axis_name: AxisName, params: Any) -> tuple[Names, ...] | None:
    """What `axis_name` says of each leaf of the parameters; None if it says nothing.

    Raises:
        InvalidArgument: INVALID_SETTING.
    """
    if axis_name is None:
        return None
    if _is_names(axis_name):
        return (_names(axis_name),) * len(jax.tree.leaves(params))
    found: list[Names] = []
    try:
        jax.tree.map(
            lambda names, branch: found.extend([_names(names)] * len(jax.tree.leaves(branch))),
            axis_name,
            params,
            is_leaf=_is_names,
        )
    except ValueError as error:
        raise InvalidArgument(
            "INVALID_SETTING", f"axis_name: the tree of names is not a prefix of the parameter tree: {error}"
        ) from None
    return tuple(found)


def _is_names(node: Any) -> bool:
    """A name, a tuple of names, or a PartitionSpec."""
    if isinstance(node, (str, jax.sharding.PartitionSpec)) or node is None:
        return True
    return isinstance(node, tuple) and not hasattr(node, "_fields") and all(isinstance(name, str) for name in node)


def _names(node: Any) -> Names:
    """The names in a name, a tuple of names or a PartitionSpec."""
    if node is None:
        return frozenset()
    if isinstance(node, str):
        return frozenset([node])
    return frozenset().union(*(_names(part) for part in node))


def plan(
    axis_name: AxisName,
    distributed: bool,
    params: Any,
    names: Sequence[str],
    x: Sequence[Any],
    g: Sequence[Any],
    delta: Sequence[Any] | None,
    tuner: Any,
) -> Axes:
    """The axes of a step.

    Args:
        axis_name, distributed: the settings of `mechanize`.
        params: the tree of the parameters.
        names: of its leaves, for messages.
        x, g: its leaves, and those of the gradients; None where there is none.
        delta: Δ's leaves; None where Δ is not kept.
        tuner: the tuner's state.

    Raises:
        InvalidArgument: AXIS_NAME_MISSING, AXIS_MISMATCH, INVALID_SETTING.
    """
    said = named(axis_name, params)
    around = bound()
    for name in sorted({name for each in said or () for name in each} - around):
        _refuse_unbound(name)
    around = around.union(*(said or ()))
    if not (distributed and around):
        return Axes((frozenset(),) * len(x), frozenset())
    known = tracked(around) - varying(tuner)
    unknown = around - known
    if unknown and said is None:
        raise InvalidArgument(
            "AXIS_NAME_MISSING",
            f"update runs on one device's part of the axis {_list(unknown)}, where JAX doesn't track what differs between "
            f"devices. Say how they train: mechanize(…, axis_name={_list(unknown)}) where the parameters are split over it, "
            "axis_name=() where each device holds all of them and gets the averaged gradients, distributed=False where each "
            "device trains a model of its own; or use jax.shard_map with check_vma=True, the state replicated",
        )
    split = []
    for i, name in enumerate(names):
        over = varying(x[i]) & known
        if delta is not None and varying(delta[i]) & known != over:
            raise InvalidArgument(
                "AXIS_MISMATCH",
                f"the parameter {name!r} differs over the axes {_list(over)}, its Δ over {_list(varying(delta[i]) & known)}: "
                "give both the same PartitionSpec",
            )
        if g[i] is not None and not varying(g[i]) & known <= over:
            more = _list((varying(g[i]) & known) - over)
            raise InvalidArgument(
                "AXIS_MISMATCH",
                f"the gradient of {name!r} differs between the devices of axis {more}, the parameter does not: average it "
                f"before update, jax.lax.pmean(grads, {more})",
            )
        if said is not None and not over <= said[i]:
            raise InvalidArgument(
                "AXIS_MISMATCH",
                f"the parameter {name!r} differs between the devices of axis {_list(over - said[i])}, which axis_name "
                "does not name",
            )
        split.append(over if said is None else over | (said[i] & unknown))
    return Axes(tuple(split), unknown)


def reduce(
    groups: Groups, axes: Axes, delta: Sequence[Any], grads: Sequence[Any], params: Sequence[Any]
) -> tuple[Sums, list[jax.Array]]:
    """`_reduce.reduce` over all devices, and over the parameters that have a gradient; and ‖x‖² of each leaf of these here.

    Inside `x64()`.
    """
    live = [i for i, g in enumerate(grads) if g is not None]
    squares: dict[int, jax.Array] = {}
    total: Any = None
    for over in sorted({axes.split[i] for i in live}, key=lambda over: sorted(map(str, over))) or [frozenset()]:
        here = [i for i in live if axes.split[i] == over]
        found: list[jax.Array] = []
        part = _reduce.reduce(
            Groups(groups.names, tuple(groups.index[i] for i in here)),
            [delta[i] for i in here],
            [grads[i] for i in here],
            [params[i] for i in here],
            found,
        )
        squares.update(zip(here, found, strict=True))
        if over:
            part = Sums(*lax.psum(jnp.stack(part), _ordered(over)))
        total = part if total is None else Sums(*(one + other for one, other in zip(total, part, strict=True)))
    return total, [squares[i] for i in live]


def agree(axes: Axes, sums: Sums) -> tuple[Sums, jax.Array | None]:
    """One device's sums for all of them, and whether they were all alike; None where that is known. Inside `x64()`.

    A NaN or an infinity on one device is one on all of them.
    """
    if not axes.checked:
        return sums, None
    own = jnp.stack(sums)
    odd = jnp.where(jnp.isfinite(own), 0.0, 1.0)
    own = jnp.where(jnp.isfinite(own), own, 0.0)
    least, most, odd = lax.pmax(jnp.stack([-own, own, odd]), _ordered(axes.checked))
    least = -least
    fine = (most - least <= CLOSE * jnp.abs(most)) | (odd > 0.0)
    return Sums(*jnp.where(odd > 0.0, jnp.nan, least)), jnp.all(fine[2:])


def _refuse_unbound(name: str) -> None:
    """Under vmap a name is bound without a device axis."""
    try:
        lax.axis_index(name)
    except NameError:
        raise InvalidArgument(
            "AXIS_MISMATCH",
            f"axis_name names {name!r}, but update runs in no shard_map, pmap or vmap with such an axis. Under jit alone leave "
            "axis_name out, however the arrays are sharded",
        ) from None


def _ordered(axes: Names) -> tuple[Any, ...]:
    return tuple(sorted(axes, key=str))


def _list(axes: Names) -> str:
    """As Python writes it: "a", or ("a", "b")."""
    names = _ordered(axes)
    return repr(names[0] if len(names) == 1 else names)
