"""Scale groups: which parameters share one S, and the name of each group."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import jax

from mechanicd.client import InvalidArgument
from mechanicd.jax._state import name_of

Labels = str | Callable[[Any], Any] | Any
"""ALL, TENSOR, a tree of labels over the parameters (or over whole subtrees of them), or a function that returns a tree."""

ALL, TENSOR = "all", "tensor"


@dataclass(frozen=True)
class Groups:
    """The scale groups of a tree of parameters.

    Attributes:
        names: the name of each group, as the server shows it.
        index: the group of each leaf of the parameters.
    """

    names: tuple[str, ...]
    index: tuple[int, ...]


def group(labels: Labels, params: Any) -> Groups:
    """The scale groups of the parameters; the one group "all" where there is no parameter.

    Raises:
        InvalidArgument: INVALID_SETTING: the labels do not fit the parameters.
    """
    paths = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    if not paths:
        return Groups((ALL,), ())
    if isinstance(labels, str):
        if labels == ALL:
            return Groups((ALL,), (0,) * len(paths))
        if labels == TENSOR:
            return Groups(tuple(path or "tensor" for path in paths), tuple(range(len(paths))))
        raise InvalidArgument(
            "INVALID_SETTING", f'scale_groups={labels!r}; choose "all", "tensor", or a tree of labels over the parameters'
        )
    tree = labels(params) if callable(labels) else labels
    try:
        found: list[Hashable] = []
        jax.tree.map(lambda label, branch: found.extend([label] * len(jax.tree.leaves(branch))), tree, params)
    except ValueError as error:
        raise InvalidArgument(
            "INVALID_SETTING", f"scale_groups: the label tree is not a prefix of the parameter tree: {error}"
        ) from None
    names = sorted({str(label) for label in found})
    return Groups(tuple(names), tuple(names.index(str(label)) for label in found))
