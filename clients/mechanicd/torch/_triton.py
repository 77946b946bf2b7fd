"""The two passes of a step on CUDA: one launch each over a table of tensor addresses, whatever the number of tensors.

    reduce   reads Δ, g, x; writes x_t to a scratch buffer where it can't be recomputed; four float64 sums a scale group
    apply    reads x_t + u, x_t (or x_ref), Δ; writes Δ and x

`_reference` says the same in plain tensor operations, and tests hold the two together. Products and sums are float64, and
every sum is taken in one fixed order: the same tensors give the same bits.

Only imported where there is a CUDA device and Triton.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK: Final = 1024
CHUNK: Final = 16 * BLOCK
"""Elements that one program takes."""

_TYPES: Final = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
ALIGNMENT: Final = 16
"""Bytes: what the loads of 16 bytes a thread need."""


@triton.jit
def _reduce_kernel(
    table, count, block_tensor, block_start, numels, partial,
    X: tl.constexpr, G: tl.constexpr, SAVE: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """One program takes CHUNK elements of one tensor, and leaves four sums in `partial`, float64 (blocks, 4)."""
    pid = tl.program_id(0)
    t = tl.load(block_tensor + pid)
    start = tl.multiple_of(tl.load(block_start + pid), 16)
    left = tl.load(numels + t) - start
    delta = tl.multiple_of(tl.load(table + t).to(tl.pointer_type(tl.float32)), 16) + start
    grad = tl.multiple_of(tl.load(table + count + t).to(tl.pointer_type(G)), 16) + start
    x = tl.multiple_of(tl.load(table + 2 * count + t).to(tl.pointer_type(X)), 16) + start
    saved = tl.multiple_of(tl.load(table + 3 * count + t).to(tl.pointer_type(X)), 16) + start
    dg = tl.zeros([BLOCK], tl.float64)
    dx = tl.zeros([BLOCK], tl.float64)
    gg = tl.zeros([BLOCK], tl.float64)
    xx = tl.zeros([BLOCK], tl.float64)
    if left >= CHUNK:  # no mask: only so are the loads of 16 bytes
        for i in range(0, CHUNK, BLOCK):
            at = i + tl.arange(0, BLOCK)
            raw = tl.load(x + at)
            d = tl.load(delta + at).to(tl.float64)
            g = tl.load(grad + at).to(tl.float64)
            if SAVE:
                tl.store(saved + at, raw)
            v = raw.to(tl.float64)
            dg += d * g
            dx += d * v
            gg += g * g
            xx += v * v
    else:
        for i in range(0, CHUNK, BLOCK):
            at = i + tl.arange(0, BLOCK)
            inside = at < left
            raw = tl.load(x + at, mask=inside, other=0.0)
            d = tl.load(delta + at, mask=inside, other=0.0).to(tl.float64)
            g = tl.load(grad + at, mask=inside, other=0.0).to(tl.float64)
            if SAVE:
                tl.store(saved + at, raw, mask=inside)
            v = raw.to(tl.float64)
            dg += d * g
            dx += d * v
            gg += g * g
            xx += v * v
    out = partial + pid * 4
    tl.store(out, tl.sum(dg))
    tl.store(out + 1, tl.sum(dx))
    tl.store(out + 2, tl.sum(gg))
    tl.store(out + 3, tl.sum(xx))


@triton.jit
def _total_kernel(partial, group_start, totals, BLOCK: tl.constexpr):
    """One program adds up the blocks of one scale group."""
    group = tl.program_id(0)
    begin = tl.load(group_start + group)
    end = tl.load(group_start + group + 1)
    for which in tl.static_range(4):
        total = tl.zeros([BLOCK], tl.float64)
        for i in range(begin, end, BLOCK):
            at = i + tl.arange(0, BLOCK)
            total += tl.load(partial + at * 4 + which, mask=at < end, other=0.0)
        place = totals + group * 4 + which
        tl.store(place, tl.load(place) + tl.sum(total))


@triton.jit
def _moved(D, x_base, x, S, S_next, X: tl.constexpr, REF: tl.constexpr):
    """Δ_{t+1} and x_{t+1}; `x_base` is x_ref where REF, else x_t."""
    if REF:
        x_t = (x_base + S * D).to(X).to(tl.float32)
        D_next = D + (x - x_t)
        x_next = x_base + S_next * D_next
    else:
        u = x - x_base
        D_next = D + u
        x_next = x_base + (S * u + (S_next - S) * D_next)
    return D_next, x_next


@triton.jit
def _apply_kernel(
    table, count, block_tensor, block_start, numels, scales,
    X: tl.constexpr, REF: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """`scales` is float32 (2, tensors): S_t at which each tensor was placed, and S_{t+1}."""
    pid = tl.program_id(0)
    t = tl.load(block_tensor + pid)
    start = tl.multiple_of(tl.load(block_start + pid), 16)
    left = tl.load(numels + t) - start
    S = tl.load(scales + t)
    S_next = tl.load(scales + count + t)
    delta = tl.multiple_of(tl.load(table + t).to(tl.pointer_type(tl.float32)), 16) + start
    x = tl.multiple_of(tl.load(table + 2 * count + t).to(tl.pointer_type(X)), 16) + start
    base = tl.multiple_of(tl.load(table + 3 * count + t).to(tl.pointer_type(X)), 16) + start
    if left >= CHUNK:
        for i in range(0, CHUNK, BLOCK):
            at = i + tl.arange(0, BLOCK)
            d = tl.load(delta + at)
            b = tl.load(base + at).to(tl.float32)
            v = tl.load(x + at).to(tl.float32)
            d_next, x_next = _moved(d, b, v, S, S_next, X, REF)
            tl.store(delta + at, d_next)
            tl.store(x + at, x_next.to(X))
    else:
        for i in range(0, CHUNK, BLOCK):
            at = i + tl.arange(0, BLOCK)
            inside = at < left
            d = tl.load(delta + at, mask=inside)
            b = tl.load(base + at, mask=inside).to(tl.float32)
            v = tl.load(x + at, mask=inside).to(tl.float32)
            d_next, x_next = _moved(d, b, v, S, S_next, X, REF)
            tl.store(delta + at, d_next, mask=inside)
            tl.store(x + at, x_next.to(X), mask=inside)


def takes(p: Tensor, D: Tensor, g: Tensor) -> bool:
    """Whether the kernels can take a parameter: dense, aligned, of a dtype that they know, all three alike in memory."""
    return (
        p.is_cuda
        and p.dtype in _TYPES
        and g.dtype in _TYPES
        and D.dtype is torch.float32
        and p.numel() > 0
        and (_dense(p, D, g, torch.contiguous_format) or (p.dim() == 4 and _dense(p, D, g, torch.channels_last)))
        and (p.data_ptr() | g.data_ptr() | D.data_ptr()) % ALIGNMENT == 0
    )


def _dense(p: Tensor, D: Tensor, g: Tensor, order: torch.memory_format) -> bool:
    return all(t.is_contiguous(memory_format=order) for t in (p, D, g))


@dataclass
class _Plan:
    """How the tensors of one launch fall into blocks; the same from step to step as long as the tensors are."""

    block_tensor: Tensor
    block_start: Tensor
    numels: Tensor
    group_start: Tensor
    blocks: int
    starts: list[int]
    size: int


@dataclass
class _Launch:
    """Tensors of one dtype and kind, in the order of their scale groups.

    Attributes:
        ref: whether x_ref of each is kept; `base` are these.
        scratch: where x_t of all of them is while BASE runs, where it is not.
        starts: where each begins there, in elements.
    """

    ref: bool
    params: list[Tensor] = field(default_factory=list)
    grads: list[Tensor] = field(default_factory=list)
    deltas: list[Tensor] = field(default_factory=list)
    base: list[Tensor] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    scratch: Tensor | None = None
    starts: list[int] = field(default_factory=list)
    plan: _Plan | None = None
    table: Tensor | None = None


class Device:
    """The kernels' launches on one CUDA device, with the tables and buffers that stay from step to step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._plans: dict[Any, _Plan] = {}
        self._pinned: dict[tuple[str, int, torch.dtype], Tensor] = {}
        self._launches: list[_Launch] = []
        self._event = torch.cuda.Event()

    def reduce(
        self,
        groups: int,
        items: Sequence[tuple[int, Tensor, Tensor, Tensor | None]],
    ) -> list[list[float]]:
        """The four sums of each scale group, after the one wait of a step.

        Args:
            groups: how many scale groups there are.
            items: (scale group, parameter, Δ, x_ref or None) in the order of the groups, each as `takes` wants them.
        """
        launches: defaultdict[Any, _Launch] = defaultdict(lambda: _Launch(False))
        for group, p, D, ref in items:
            assert p.grad is not None
            launch = launches[p.dtype, p.grad.dtype, ref is not None]
            launch.ref = ref is not None
            launch.params.append(p)
            launch.grads.append(p.grad)
            launch.deltas.append(D)
            launch.groups.append(group)
            if ref is not None:
                launch.base.append(ref)
        self._launches = list(launches.values())
        with torch.cuda.device(self.device):
            totals = torch.zeros(groups, 4, dtype=torch.float64, device=self.device)
            for number, launch in enumerate(self._launches):
                self._launch_reduce(number, launch, groups, totals)
            host = self._staging("totals", 4 * groups, torch.float64).view(groups, 4)
            host.copy_(totals, non_blocking=True)
            self._event.record()
            self._event.synchronize()
        found: list[list[float]] = host.tolist()
        return found

    def apply(self, before: Sequence[float], after: Sequence[float]) -> None:
        """Δ and x of the parameters last reduced.

        Args:
            before: per item S_t at which it was placed.
            after: per item S_{t+1}.
        """
        at = 0
        with torch.cuda.device(self.device):
            for number, launch in enumerate(self._launches):
                count = len(launch.params)
                S = self._staging(f"scales{number}", 2 * count, torch.float32)
                S.copy_(torch.tensor([*before[at : at + count], *after[at : at + count]], dtype=torch.float64))
                at += count
                plan = launch.plan
                assert plan is not None
                _apply_kernel[(plan.blocks,)](
                    launch.table, count, plan.block_tensor, plan.block_start, plan.numels,
                    S.to(self.device, non_blocking=True),
                    X=_TYPES[launch.params[0].dtype], REF=launch.ref, BLOCK=BLOCK, CHUNK=CHUNK,
                )  # fmt: skip
        self._launches = []

    @property
    def order(self) -> list[Tensor]:
        """The parameters last reduced, in the order that `apply` wants its scales."""
        return [p for launch in self._launches for p in launch.params]

    def restore(self) -> None:
        """x ← x_t for the parameters last reduced, where x_t was kept."""
        for launch in self._launches:
            if launch.scratch is not None:
                starts = zip(launch.params, launch.starts, strict=True)
                saved = [launch.scratch.as_strided(p.shape, p.stride(), start) for p, start in starts]
                torch._foreach_copy_(launch.params, saved)
        self._launches = []

    def _launch_reduce(self, number: int, launch: _Launch, groups: int, totals: Tensor) -> None:
        params = launch.params
        count = len(params)
        numels = tuple(p.numel() for p in params)
        plan = launch.plan = self._plan(numels, tuple(launch.groups), groups)
        if not launch.ref:
            launch.starts = plan.starts
            launch.scratch = torch.empty(plan.size, dtype=params[0].dtype, device=self.device)
            first, width = launch.scratch.data_ptr(), launch.scratch.element_size()
            bases = [first + width * start for start in plan.starts]
        else:
            bases = [t.data_ptr() for t in launch.base]
        addresses = [t.data_ptr() for part in (launch.deltas, launch.grads, params) for t in part] + bases
        table = self._staging(f"table{number}", 4 * count, torch.int64)
        table.copy_(torch.tensor(addresses, dtype=torch.int64))
        launch.table = table.to(self.device, non_blocking=True)
        partial = torch.empty(plan.blocks, 4, dtype=torch.float64, device=self.device)
        _reduce_kernel[(plan.blocks,)](
            launch.table, count, plan.block_tensor, plan.block_start, plan.numels, partial,
            X=_TYPES[params[0].dtype], G=_TYPES[launch.grads[0].dtype], SAVE=not launch.ref, BLOCK=BLOCK, CHUNK=CHUNK,
        )  # fmt: skip
        _total_kernel[(groups,)](partial, plan.group_start, totals, BLOCK=BLOCK)

    def _plan(self, numels: tuple[int, ...], of_group: tuple[int, ...], groups: int) -> _Plan:
        key = (numels, of_group, groups)
        if key not in self._plans:
            if len(self._plans) > 32:  # parameters that come and go
                self._plans.clear()
            sizes = torch.tensor(numels, dtype=torch.int64)
            blocks = (sizes + CHUNK - 1) // CHUNK
            tensor = torch.repeat_interleave(torch.arange(len(numels)), blocks)
            first = torch.cumsum(blocks, 0) - blocks
            start = (torch.arange(len(tensor)) - first[tensor]) * CHUNK
            *starts, size = _aligned(numels)
            per_group = torch.zeros(groups + 1, dtype=torch.int64)
            per_group.index_add_(0, torch.tensor(of_group) + 1, blocks)
            self._plans[key] = _Plan(
                block_tensor=tensor.to(self.device),
                block_start=start.to(self.device),
                numels=sizes.to(self.device),
                group_start=torch.cumsum(per_group, 0).to(self.device),
                blocks=len(tensor),
                starts=starts,
                size=size,
            )
        return self._plans[key]

    def _staging(self, name: str, size: int, dtype: torch.dtype) -> Tensor:
        """Pinned host memory: copies from and to it do not wait. Free again after the wait of the next step."""
        key = (name, size, dtype)
        if key not in self._pinned:
            self._pinned = {other: kept for other, kept in self._pinned.items() if other[0] != name}
            self._pinned[key] = torch.empty(size, dtype=dtype, pin_memory=True)
        return self._pinned[key]


def _aligned(numels: Sequence[int]) -> list[int]:
    """Where each tensor begins in a buffer of all of them, in elements, and the buffer's size."""
    starts, at = [], 0
    for numel in numels:
        starts.append(at)
        at += -(-numel // 128) * 128
    return [*starts, at]
