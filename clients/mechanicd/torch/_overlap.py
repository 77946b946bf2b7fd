"""Parameters that are the same memory, wholly or in part: a step would move it once for each, and count it as often."""

from collections.abc import Iterator, Sequence
from typing import NoReturn

import torch
from torch import Tensor

from mechanicd.client import InvalidArgument

Range = tuple[str, int, int, Tensor]
"""A device, the first address of a parameter there and the one after its last, and the parameter."""


def refuse(params: Sequence[Tensor]) -> None:
    """Checks that no element of any parameter is an element of another one, nor twice in its own.

    Slices of one buffer, as a flattened model has them, are separate memory, also where they interleave.

    Raises:
        InvalidArgument: SHARED_STORAGE.
    """
    for cluster in _clusters(sorted(map(_range, filter(Tensor.numel, params)), key=lambda r: r[:3])):
        if len(cluster) > 1:
            _refuse_shared_elements(cluster)


def _range(p: Tensor) -> Range:
    elements = 1 + sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
    if elements < p.numel():
        _refuse(p, p)
    first = p.data_ptr()
    return (str(p.device), first, first + elements * p.element_size(), p)


def _clusters(ranges: Sequence[Range]) -> Iterator[list[Range]]:
    """Those whose ranges overlap, together."""
    cluster: list[Range] = []
    end = 0
    for here in ranges:
        if cluster and (here[0] != cluster[0][0] or here[1] >= end):
            yield cluster
            cluster = []
        end = max(end, here[2]) if cluster else here[2]
        cluster.append(here)
    yield cluster


def _refuse_shared_elements(cluster: Sequence[Range]) -> None:
    """The exact check: each parameter marks its elements."""
    first, unit = cluster[0][1], cluster[0][3].element_size()
    end = max(r[2] for r in cluster)
    marks = torch.zeros(-(-(end - first) // unit), dtype=torch.uint8, device="cpu")
    for _, start, _, p in cluster:
        if p.element_size() != unit or (start - first) % unit:
            _refuse(cluster[0][3], p)
        mine = marks.as_strided(p.shape, p.stride(), (start - first) // unit)
        if mine.any():
            _refuse(cluster[0][3], p)
        mine.fill_(1)


def _refuse(one: Tensor, other: Tensor) -> NoReturn:
    if one is other:
        what = f"a parameter of shape {tuple(one.shape)} is in the optimizer twice, or has elements that are the same memory"
    else:
        what = f"two parameters, of shapes {tuple(one.shape)} and {tuple(other.shape)}, share memory"
    raise InvalidArgument(
        "SHARED_STORAGE",
        f"{what}, and it would be moved twice; tie weights by using one Parameter in both places (a.weight = b.weight), name "
        "it once in the optimizer, and give each other parameter memory of its own (p.data = p.data.clone())",
    )
