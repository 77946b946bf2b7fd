"""The two passes of a step over whatever parameters take part: fused kernels where there are any, else the Reference.

What is kept of a parameter depends on the layout and on its dtype:

    "delta"       Δ. x_t is kept as well while BASE runs, and x moves by S_t·u + (S_{t+1} − S_t)·Δ_{t+1}.
    "delta+ref"   Δ and x_ref. x is placed at x_ref + S·Δ anew, so the way back to x_ref is exact.

A parameter in bfloat16 or float16 always has both, with Δ in float32: x_ref + S·Δ is its master copy, in full precision, and no
move is lost because it is smaller than a unit in the last place of x.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from mechanicd.torch import _reference
from mechanicd.torch._checkpoint import Memory
from mechanicd.tuner import Reductions


class Passes:
    """One step's passes: `reduce`, then BASE runs, then `apply` or `restore`.

    Args:
        memory: what is kept of each parameter; every one that takes part must have joined.
        fused: whether kernels may be used where they can.
    """

    def __init__(self, memory: Memory, fused: bool = True) -> None:
        self._memory = memory
        self._fused = fused
        self._devices: list[Any] = []
        self._plain: list[Tensor] = []
        self._saved: dict[Tensor, Tensor] = {}

    def reduce(self, groups: Sequence[Sequence[Tensor]]) -> list[Reductions]:
        """The four scalars of each scale group; x_t is kept where it must be.

        Args:
            groups: per scale group the parameters that have a gradient.
        """
        memory = self._memory
        fused: defaultdict[torch.device, list[tuple[int, Tensor, Tensor, Tensor | None]]] = defaultdict(list)
        plain: list[list[Tensor]] = [[] for _ in groups]
        for index, group in enumerate(groups):
            for p in group:
                D, g = memory.delta[p], p.grad
                assert g is not None
                if self._fused and p.is_cuda and (kernels := _kernels()) is not None and kernels.takes(p, D, g):
                    fused[p.device].append((index, p, D, memory.ref.get(p)))
                else:
                    plain[index].append(p)
        # Launched first, read last: the kernels run while the Reference does its part.
        self._devices = [_device(device) for device in fused]
        sums = [device.reduce(len(groups), items) for device, items in zip(self._devices, fused.values(), strict=True)]
        found = _reference.reduce(plain, memory.delta)
        self._plain = [p for group in plain for p in group]
        kept = [p for p in self._plain if p not in memory.ref]
        self._saved = dict(zip(kept, _reference.save(kept), strict=True))
        for each in sums:
            found = [Reductions(*map(sum, zip(total, more, strict=True))) for total, more in zip(found, each, strict=True)]
        return found

    def apply(self, after: dict[Tensor, float]) -> None:
        """Δ and x of every parameter that was reduced, given S_{t+1} of each."""
        delta, placed, ref = self._memory.delta, self._memory.placed, self._memory.ref
        for device in self._devices:
            params = device.order
            device.apply([placed[p] for p in params], [after[p] for p in params])
        kept = list(self._saved)
        _reference.apply(
            kept, list(self._saved.values()), [delta[p] for p in kept], [placed[p] for p in kept], [after[p] for p in kept]
        )
        anchored = [p for p in self._plain if p in ref]
        _reference.apply_ref(
            anchored,
            [ref[p] for p in anchored],
            [delta[p] for p in anchored],
            [placed[p] for p in anchored],
            [after[p] for p in anchored],
        )
        placed.update(after)
        self._clear()

    def restore(self) -> None:
        """x ← x_t: BASE's update is taken back."""
        memory = self._memory
        anchored = [p for p in self._plain if p in memory.ref]
        for device in self._devices:
            anchored += [p for p in device.order if p in memory.ref]
            device.restore()
        _reference.restore(list(self._saved), list(self._saved.values()))
        _reference.place(
            anchored,
            [memory.ref[p] for p in anchored],
            [memory.delta[p] for p in anchored],
            [memory.placed[p] for p in anchored],
        )
        self._clear()

    def _clear(self) -> None:
        self._devices, self._plain, self._saved = [], [], {}


@cache
def _kernels() -> Any:
    """The module of the kernels, or None where there is no Triton."""
    try:
        from mechanicd.torch import _triton
    except ImportError:
        return None
    return _triton


@cache
def _device(device: torch.device) -> Any:
    return _kernels().Device(device)
