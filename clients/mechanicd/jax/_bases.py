"""What BASE may be. MECHANIC moves the weights by S times what BASE wanted; a BASE that can't live with that is refused.

    BASE_KEEPS_WEIGHTS      it remembers where the weights were (an average, z, the weights at the start), takes its own steps
                            for the way that the weights have come, or says where the weights have to be after its step
    BASE_NOT_AN_OPTIMIZER   it holds a mechanized optimizer

An optax transformation is two functions and a tree. So a BASE is known by the transformations that its functions hold, and by
the types in its state, however deep both lie in a chain, a mask, a partition or injected hyperparameters. One that optax did
not make is tried out as well (`_probe`).
"""

import functools
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from types import FunctionType, MethodType
from typing import Any, Final, NamedTuple

import jax
import optax

from mechanicd.client import InvalidArgument
from mechanicd.jax import _probe
from mechanicd.jax._state import MechanicState


class Kind(NamedTuple):
    """A kind of optimizer that is refused.

    Attributes:
        names: patterns; `ScheduleFreeState`, `schedule_free` and `scale_by_schedule_free` are one name, schedulefree.
        why: what it does.
        instead: what to do.
    """

    names: tuple[str, ...]
    why: str
    instead: str


REMEMBERS: Final = Kind(
    ("cocob", "*dualaveraging", "*lookahead", "madgrad", "schedulefree*"),
    "remembers where the weights were",
    "If it wraps another optimizer, put it around the mechanized one: optax.lookahead(mechanize(optax.adam(1.0)), 5, 0.5). "
    "What changes gradients only goes before: optax.chain(…, mechanize(…)). Else choose another BASE",
)
KINDS: Final = (
    REMEMBERS,
    Kind(
        ("dadapt*", "distanceovergradients", "dog", "dowg", "ldog", "mechanic", "mechanize", "prodigy*"),
        "finds its learning rate from how far its own steps have come",
        "S is such a rate already: use the optimizer without it, as optax.adamw(1.0) for prodigy",
    ),
    Kind(
        ("*linesearch", "momo*"),
        "looks ahead along its own step for what it finds there",
        "Use the optimizer without that: optax.lbfgs(1.0, linesearch=None), or optax.sgd for momo",
    ),
    Kind(
        ("keepparamsnonnegative",),
        "says where the weights may be after its own step",
        "Put it after the mechanized optimizer: optax.chain(mechanize(…), optax.keep_params_nonnegative())",
    ),
)
SAM: Final = Kind(
    ("sam",), "steps away from the weights and back", "Pass opaque_mode=True, or put it around the mechanized optimizer"
)
OURS: Final = "mechanicd.", "optax."


def check(base: Any) -> None:
    """Checks what can be seen without parameters.

    Raises:
        InvalidArgument: BASE_KEEPS_WEIGHTS, BASE_NOT_AN_OPTIMIZER.
    """
    for part in _parts(base):
        if part.__module__.startswith("mechanicd."):
            raise _mechanized_inside(base)
        _check_name(base, _maker(part))


def check_state(base: Any, state: Any, params: Any) -> None:
    """Checks BASE together with the state that its `init` made for these parameters.

    Raises:
        InvalidArgument: BASE_KEEPS_WEIGHTS, BASE_NOT_AN_OPTIMIZER.
    """
    nodes = _nodes(state)
    for node in nodes:
        if isinstance(node, MechanicState):
            raise _mechanized_inside(base)
        if isinstance(node, optax.contrib.SAMState) and node.cache is not None:
            raise _refused(base, "sam", SAM.why, SAM.instead)
        _check_name(base, type(node).__name__)
    if any(_is_foreign(part) for part in [*_parts(base), *map(type, nodes)]):
        why = _probe.memory_of(base, params)
        if why:
            raise _refused(base, _maker(base.update), why, REMEMBERS.instead)


def _check_name(base: Any, name: str) -> None:
    plain = re.sub(r"^scaleby|state$", "", name.replace("_", "").lower())
    for kind in KINDS:
        if any(fnmatchcase(plain, pattern) for pattern in kind.names):
            raise _refused(base, name, kind.why, kind.instead)


def _refused(base: Any, name: str, why: str, instead: str) -> InvalidArgument:
    whole = _maker(base.update)
    what = name if name == whole else f"{name}, in {whole},"
    return InvalidArgument(
        "BASE_KEEPS_WEIGHTS",
        f"{what} {why}, but S moves the weights to other places. {instead}; or use this one without mechanize()",
    )


def _mechanized_inside(base: Any) -> InvalidArgument:
    return InvalidArgument(
        "BASE_NOT_AN_OPTIMIZER",
        f"{_maker(base.update)} holds a mechanized optimizer; mechanize once, or each part: optax.partition",
    )


def _parts(base: Any) -> Iterator[FunctionType]:
    """The functions that BASE consists of, but for schedules and masks, which are functions of one argument."""
    seen: dict[int, Any] = {}
    ahead = [base]
    while ahead:
        node = ahead.pop()
        if id(node) in seen:
            continue
        seen[id(node)] = node
        if not isinstance(node, type) and hasattr(node, "init") and hasattr(node, "update"):
            ahead += [node.init, node.update, *getattr(node, "__dict__", {}).values()]
        elif isinstance(node, FunctionType):
            if node.__code__.co_argcount > 1:
                yield node
            ahead += [cell.cell_contents for cell in node.__closure__ or () if _is_full(cell)]
            ahead += [*(node.__defaults__ or ()), *(node.__kwdefaults__ or {}).values()]
        elif isinstance(node, MethodType):
            ahead += [node.__self__, node.__func__]
        elif isinstance(node, functools.partial):
            ahead += [node.func, *node.args, *node.keywords.values()]
        elif isinstance(node, dict):
            ahead += node.values()
        elif isinstance(node, list | tuple):
            ahead += node
        elif hasattr(node, "__wrapped__"):
            ahead.append(node.__wrapped__)


def _is_full(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _nodes(state: Any) -> list[Any]:
    """The inner nodes of a tree."""
    found: list[Any] = []

    def seen(node: Any) -> bool:
        if not jax.tree_util.all_leaves([node]):
            found.append(node)
        return False

    jax.tree.leaves(state, is_leaf=seen)
    return found


def _maker(update: Any) -> str:
    """Who made an `update`: the function around it, or its class."""
    while isinstance(update, functools.partial) or hasattr(update, "__wrapped__"):
        update = update.func if isinstance(update, functools.partial) else update.__wrapped__
    name = str(getattr(update, "__qualname__", type(update).__name__)).partition(".<locals>")[0]
    return name.removesuffix(".update")


def _is_foreign(made: Any) -> bool:
    """Whether a function or type is of another package than optax."""
    module = getattr(made, "__module__", None) or ""
    return module != "builtins" and not module.startswith(OURS)
