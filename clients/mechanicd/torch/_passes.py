"""The two passes of a step over the parameters that take part: fused kernels where possible, else the Reference.

`_memory` says what is kept of a parameter. If x_ref is kept, x is placed at x_ref + S·Δ afresh, so the way back to x_ref is
exact, and x_ref first follows whatever else has changed x (`_changes`). Otherwise x moves by S_t·u + (S_{t+1} − S_t)·Δ_{t+1}.
A parameter in bfloat16 or float16 has x_ref and a float32 Δ, so that no move is lost for being smaller than a unit in the last
place of x.

x_t is kept while BASE runs. On the CPU its buffers stay from step to step: getting fresh pages from the system costs more than
the copy itself.
"""

from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mechanicd.torch import _changes, _reference
from mechanicd.torch._memory import Memory
from mechanicd.tuner import Reductions


class Passes:
    """The passes of one optimizer's steps. Each step is `launch`, `read`, then `apply`, `restore` or `drop`; BASE runs before
    or after `read`, never before `launch`.

    Args:
        memory: what is kept of each parameter; every one that takes part must have joined.
        fused: whether kernels may be used.
    """

    def __init__(self, memory: Memory, fused: bool = True) -> None:
        self._memory = memory
        self._fused = fused
        self._key: tuple[Any, ...] = ()
        self._devices: list[Any] = []
        self._plain: list[list[Tensor]] = []
        self._saved: dict[Tensor, Tensor] = {}
        self._buffers: dict[Tensor, Tensor] = {}
        self._sums: list[Reductions] = []

    def launch(self, groups: Sequence[Sequence[Tensor]], to_host: bool = True) -> bool:
        """Starts the four sums of each scale group, and copies x_t where `apply` or `restore` will need it. On CUDA it does not
        wait.

        Args:
            groups: per scale group, the parameters that take part.
            to_host: whether to start copying the sums to the host, for `read`; False where the host does not know yet at which
                S the parameters were placed.

        Returns:
            Whether it did. It does not where that needs a new plan, which needs the S, and the host does not know it.
        """
        key = tuple(tuple(map(id, group)) for group in groups)
        planned = key == self._key and all(device.fits() for device in self._devices)
        if not (planned and all(device.launch_reduce(to_host) for device in self._devices)):
            if not to_host:
                return False
            self._plan(groups, key)
            for device in self._devices:
                device.launch_reduce(to_host)
        memory = self._memory
        plain = [p for group in self._plain for p in group]
        if memory.ref:
            _changes.keep(memory, [p for p in plain if p in memory.ref])
        if memory.layout == "ref":
            for p in plain:
                memory.recall(p)
        self._sums = _reference.reduce(self._plain, memory.delta)
        kept = [p for p in plain if p not in memory.ref or p in memory.left] if memory.ref else plain
        self._saved = {p: self._save(p) for p in kept}
        self._buffers = {p: x for p, x in self._saved.items() if p.device.type == "cpu"}
        return True

    def _save(self, p: Tensor) -> Tensor:
        if self._memory.left and (left := self._memory.left.get(p)) is not None:
            return left
        buffer = self._buffers.get(p)
        if buffer is None or buffer.shape != p.shape or buffer.dtype is not p.dtype:
            return p.detach().clone()
        return buffer.copy_(p.detach())

    def forget(self) -> None:
        """Drops the plan and the buffers, for other parameters or another memory of theirs."""
        self._key, self._devices, self._plain = (), [], []
        self._saved, self._buffers = {}, {}

    def guard(self, base: Optimizer) -> Tensor | None:
        """A flag on the device that tells BASE to do nothing if a sum is not finite, so that BASE need not wait for `read`.

        None if BASE takes no such flag, or if one flag is not enough. torch's own fused optimizers take it, for parameters on
        one CUDA device that the kernels handle.
        """
        supports = getattr(base, "_step_supports_amp_scaling", False) and type(base).__module__.startswith("torch.optim.")
        if not supports or len(self._devices) != 1 or any(self._plain):
            return None
        if not all(group.get("fused") for group in base.param_groups):
            return None
        flag: Tensor = self._devices[0].guard()
        return flag

    def read(self) -> list[Reductions]:
        """The four scalars of each scale group."""
        found = self._sums
        for device in self._devices:
            pairs = zip(found, device.read(), strict=True)
            found = [Reductions(*(one + more for one, more in zip(total, sums, strict=True))) for total, sums in pairs]
        return found

    def advance(self, tuner: Any) -> None:
        """After `launch` and `guard`: the tuner on the device takes the step. Does not wait."""
        (device,) = self._devices
        with torch.cuda.device(device.device):
            tuner.advance(device.totals, device.flag)

    def apply_async(self, tuner: Any) -> None:
        """`apply` with the S of a tuner on the device, which the host does not know yet. `Memory.placed` stays as it is: the
        caller updates it later."""
        (device,) = self._devices
        device.apply_async(tuner.scales)
        self._end()

    def apply(self, after: dict[Tensor, float]) -> None:
        """Updates Δ and x of every parameter that was reduced, given the S_{t+1} of each."""
        delta, placed, ref = self._memory.delta, self._memory.placed, self._memory.ref
        for device in self._devices:
            params = device.order
            device.apply([placed[p] for p in params], [after[p] for p in params])
        kept = [p for p in self._saved if p not in ref] if ref else list(self._saved)
        _reference.apply(
            kept,
            [self._saved[p] for p in kept],
            [delta[p] for p in kept],
            [placed[p] for p in kept],
            [after[p] for p in kept],
        )
        if ref:
            left = [p for p in self._saved if p in ref]
            _reference.apply_left(
                left,
                [self._saved[p] for p in left],
                [ref[p] for p in left],
                [delta[p] for p in left],
                [after[p] for p in left],
            )
            anchored = self._anchored()
            _reference.apply_ref(
                anchored,
                [ref[p] for p in anchored],
                [delta[p] for p in anchored],
                [placed[p] for p in anchored],
                [after[p] for p in anchored],
            )
        placed.update(after)
        self._end()

    def _anchored(self) -> list[Tensor]:
        """Those of the Reference whose x_t is x_ref + S·Δ, and is not saved."""
        ref = self._memory.ref
        return [p for group in self._plain for p in group if p in ref and p not in self._saved] if ref else []

    def restore(self) -> None:
        """x ← x_t: undoes BASE's update."""
        memory = self._memory
        anchored = self._anchored()
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
        self._end()

    def drop(self) -> None:
        """Ends the step without touching x or Δ."""
        for device in self._devices:
            device.drop()
        self._end()

    def _end(self) -> None:
        self._saved = {}
        if self._memory.layout == "ref":
            for group in self._plain:
                for p in group:
                    self._memory.forget(p)

    def _plan(self, groups: Sequence[Sequence[Tensor]], key: tuple[Any, ...]) -> None:
        """Decides which parameters go to the kernels, and which to the Reference."""
        memory, kernels = self._memory, _kernels() if self._fused else None
        fused: defaultdict[torch.device, list[tuple[int, Tensor]]] = defaultdict(list)
        self._plain = [[] for _ in groups]
        for index, group in enumerate(groups):
            for p in group:
                assert p.grad is not None
                # A recomputed Δ has a new address in each step; the kernels' tables are for tensors that stay in place.
                if kernels is not None and not memory.recomputes_delta(p) and kernels.takes(p, memory.delta[p], p.grad):
                    fused[p.device].append((index, p))
                else:
                    self._plain[index].append(p)
        by_kernels = [p for items in fused.values() for _, p in items if p in memory.ref]
        _changes.keep(memory, by_kernels)
        for p in by_kernels:
            memory.left.pop(p, None)  # the kernels don't keep it up to date
        self._devices = (
            [kernels.Device(device, len(groups), items, memory) for device, items in fused.items()] if kernels else []
        )
        self._key = key


@cache
def _kernels() -> Any:
    """The module with the kernels, or None without a CUDA device or Triton."""
    if not torch.cuda.is_available():
        return None
    try:
        from mechanicd.torch import _triton
    except ImportError:
        return None
    return _triton
