"""The two passes of a step on CUDA: one launch each of `_kernels`, whatever the number of tensors.

`_reference` does the same in plain tensor operations; tests compare the two. The same tensors give the same bits.

Only imported if there are a CUDA device and Triton.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import triton.language as tl
from torch import Tensor

from mechanicd.torch import _kernels
from mechanicd.torch._memory import Memory

CHUNK: Final = 8192
"""Elements per block. One program reduces a block; APPLY_PARTS of them apply it. Chosen on an H100 from 24 settings each."""
REDUCE_BLOCK: Final = 2048
REDUCE_WARPS: Final = 8
REF_REDUCE_BLOCK: Final = 512
REF_REDUCE_WARPS: Final = 4
"""Where x_ref is kept, the hash needs registers: fewer elements at a time, and more programs at once. On an H200, reduce takes
232 µs for 124M bfloat16 parameters like this, 288 µs with 1024 and 8 warps, and 249 µs with 2048, 8 warps and no hash."""
APPLY_PARTS: Final = 2
TOTAL_BLOCK: Final = 4096

_TYPES: Final = {
    torch.float32: tl.float32,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
ALIGNMENT: Final = 16
"""Bytes: what 16-byte loads per thread need."""


def takes(p: Tensor, D: Tensor, g: Tensor) -> bool:
    """Whether the kernels can take a parameter: dense, aligned, of a supported dtype, all three with the same memory layout."""
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
class _Launch:
    """Tensors of one dtype and kind, in the order of their scale groups, and how they are split into blocks.

    Attributes:
        base_type: dtype of x_ref, or of x_t in `scratch`.
        ref: x_ref of each if it is kept; else None, and x_t goes to `scratch` while BASE runs, at its entry of `starts`.
        contiguous: whether every Δ is.
        delta_addresses, ref_addresses: they stay as long as the launch.
        placed: the S at which each was placed when the launch was planned.
        addresses: what `table` holds now.
        scales_host: S_t and S_{t+1} of each tensor, from the host; `scales_device`: from the tuner on the device.
        group_of: int64, the index of each tensor's scale group.
        seals, sealed_at: int32 and float32, one per program of apply, if x_ref is kept.
        versions: how often torch had changed each parameter in place at the end of the last step, if x_ref is kept.
    """

    x_type: torch.dtype
    g_type: torch.dtype
    base_type: torch.dtype
    params: list[Tensor] = field(default_factory=list)
    deltas: list[Tensor] = field(default_factory=list)
    ref: list[Tensor] | None = None
    contiguous: bool = False
    delta_addresses: list[int] = field(default_factory=list)
    ref_addresses: list[int] = field(default_factory=list)
    placed: list[float] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    scratch_size: int = 0
    scratch: Tensor | None = None
    blocks: int = 0
    maps: tuple[Tensor, ...] = ()
    group_start: Tensor | None = None
    addresses: list[int] = field(default_factory=list)
    table: Tensor | None = None
    scales: list[float] = field(default_factory=list)
    scales_host: Tensor | None = None
    group_of: Tensor | None = None
    scales_device: Tensor | None = None
    seals: Tensor | None = None
    sealed_at: Tensor | None = None
    versions: list[int] = field(default_factory=list)


class Device:
    """The kernels' launches on one CUDA device for one set of parameters, with tables and buffers that are reused.

    Args:
        groups: how many scale groups there are.
        items: (scale group, parameter) in the order of the groups; `takes` must accept each.
        memory: what is kept of them; where it has x_ref, x is at x_ref + S·Δ now.
    """

    def __init__(self, device: torch.device, groups: int, items: Sequence[tuple[int, Tensor]], memory: Memory) -> None:
        self.device = device
        self.groups = groups
        self._pinned: dict[str, Tensor] = {}
        self._event = torch.cuda.Event()
        self._host: Tensor | None = None
        self._copying_to_host = False
        launches: dict[Any, _Launch] = {}
        for group, p in items:
            assert p.grad is not None
            ref = memory.ref.get(p)
            base_type = p.dtype if ref is None else ref.dtype
            key = (p.dtype, p.grad.dtype, base_type, ref is not None)
            launch = launches.setdefault(key, _Launch(p.dtype, p.grad.dtype, base_type, ref=None if ref is None else []))
            launch.params.append(p)
            launch.deltas.append(memory.delta[p])
            launch.groups.append(group)
            launch.placed.append(memory.placed[p])
            if ref is not None:
                assert launch.ref is not None
                launch.ref.append(ref)
                launch.versions.append(p._version)
        self._launches = list(launches.values())
        for launch in self._launches:
            self._map(launch)
            launch.contiguous = all(D.is_contiguous() for D in launch.deltas)
            launch.delta_addresses = [D.data_ptr() for D in launch.deltas]
            launch.ref_addresses = [ref.data_ptr() for ref in launch.ref or ()]
        self.totals = torch.zeros(groups, 4, dtype=torch.float64, device=device)
        self.flag = torch.zeros((), dtype=torch.float32, device=device)

    @property
    def order(self) -> list[Tensor]:
        """The parameters in the order in which `apply` expects the scales."""
        return [p for launch in self._launches for p in launch.params]

    def fits(self) -> bool:
        """Whether this step's gradients are of the kind that the tables were made for, and no operation of torch has changed a
        parameter whose x_ref is kept. (The seals find such changes as well, but x_ref then keeps its dtype.)"""
        for launch in self._launches:
            if launch.ref is not None and launch.versions != [p._version for p in launch.params]:
                return False
            for p, D in zip(launch.params, launch.deltas, strict=True):
                g = p.grad
                if g is None or g.dtype is not launch.g_type or p.dtype is not launch.x_type:
                    return False
                if not (launch.contiguous and g.is_contiguous() and p.is_contiguous()) and not takes(p, D, g):
                    return False
        return True

    def launch_reduce(self, to_host: bool = True) -> bool:
        """Starts the four sums, on the device; False if the kernels can't take a tensor at its address.

        Args:
            to_host: whether to start copying the sums to the host.
        """
        tables = [self._addresses(launch) for launch in self._launches]
        for launch, addresses in zip(self._launches, tables, strict=True):
            if addresses != launch.addresses and any(address % ALIGNMENT for address in addresses):
                return False
        with torch.cuda.device(self.device):
            self.totals.zero_()
            for number, (launch, addresses) in enumerate(zip(self._launches, tables, strict=True)):
                if launch.addresses != addresses:
                    launch.table = self._send(f"table{number}", torch.tensor(addresses, dtype=torch.int64))
                    launch.addresses = addresses
                if launch.ref is not None and launch.seals is None:
                    self._seal(launch)
                partial = torch.empty(4 * launch.blocks, dtype=torch.float64, device=self.device)
                plain = launch.ref is None
                _kernels.reduce_kernel[(launch.blocks,)](
                    launch.table, len(launch.params), *launch.maps, partial, launch.blocks, launch.seals, launch.sealed_at,
                    X=_TYPES[launch.x_type], G=_TYPES[launch.g_type], R=_TYPES[launch.base_type], SAVE=plain,
                    BLOCK=REDUCE_BLOCK if plain else REF_REDUCE_BLOCK, CHUNK=CHUNK, PARTS=APPLY_PARTS,
                    num_warps=REDUCE_WARPS if plain else REF_REDUCE_WARPS,
                )  # fmt: skip
                _kernels.total_kernel[(self.groups, 4)](
                    partial, launch.blocks, launch.group_start, self.totals, BLOCK=TOTAL_BLOCK, num_warps=8
                )
            self._copying_to_host = to_host
            if to_host:
                if self._host is None:
                    self._host = torch.empty(self.groups, 4, dtype=torch.float64, pin_memory=True)
                self._host.copy_(self.totals, non_blocking=True)
                self._event.record()
        return True

    def guard(self) -> Tensor:
        """A flag on the device, 1.0 if a sum is not finite: it makes BASE do nothing before the host knows why."""
        with torch.cuda.device(self.device):
            _kernels.flag_kernel[(1,)](self.totals, 4 * self.groups, self.flag, BLOCK=128, num_warps=1)
        return self.flag

    def read(self) -> list[list[float]]:
        """The four sums of each scale group. This is the one wait of a step."""
        found: list[list[float]]
        if self._copying_to_host:
            assert self._host is not None
            self._event.synchronize()
            found = self._host.tolist()
        else:
            found = self.totals.tolist()
        return found

    def apply(self, before: Sequence[float], after: Sequence[float]) -> None:
        """Updates Δ and x of the parameters.

        Args:
            before: per parameter of `order`, the S_t at which it was placed.
            after: S_{t+1} of each.
        """
        at = 0
        with torch.cuda.device(self.device):
            for number, launch in enumerate(self._launches):
                count = len(launch.params)
                scales = [*before[at : at + count], *after[at : at + count]]
                at += count
                if launch.scales != scales:
                    launch.scales_host = self._send(f"scales{number}", torch.tensor(scales, dtype=torch.float64).float())
                    launch.scales = scales
                self._apply(launch, launch.scales_host)
        self.drop()

    def apply_async(self, scales: Tensor) -> None:
        """The same if only the device knows S: float32 (2, G), the S_t at which all were placed, and S_{t+1}."""
        with torch.cuda.device(self.device):
            for launch in self._launches:
                if launch.group_of is None:
                    launch.group_of = torch.tensor(launch.groups, device=self.device)
                    launch.scales_device = torch.empty(2, len(launch.groups), dtype=torch.float32, device=self.device)
                torch.index_select(scales, 1, launch.group_of, out=launch.scales_device)
                self._apply(launch, launch.scales_device)
        self.drop()

    @staticmethod
    def _apply(launch: _Launch, scales: Tensor | None) -> None:
        _kernels.apply_kernel[(launch.blocks * APPLY_PARTS,)](
            launch.table, len(launch.params), *launch.maps, scales, launch.seals, launch.sealed_at,
            X=_TYPES[launch.x_type], R=_TYPES[launch.base_type], REF=launch.ref is not None,
            BLOCK=CHUNK // APPLY_PARTS, PARTS=APPLY_PARTS, num_warps=8,
        )  # fmt: skip

    def _seal(self, launch: _Launch) -> None:
        """Seals x as it is, before the first step of a plan."""
        programs = launch.blocks * APPLY_PARTS
        launch.seals = torch.empty(programs, dtype=torch.int32, device=self.device)
        launch.sealed_at = torch.empty(programs, dtype=torch.float32, device=self.device)
        _kernels.seal_kernel[(programs,)](
            launch.table, len(launch.params), *launch.maps,
            torch.tensor(launch.placed, dtype=torch.float32, device=self.device), launch.seals, launch.sealed_at,
            X=_TYPES[launch.x_type], BLOCK=CHUNK // APPLY_PARTS, PARTS=APPLY_PARTS, num_warps=8,
        )  # fmt: skip

    @torch.no_grad()
    def restore(self) -> None:
        """x ← x_t, for the parameters whose x_t is in scratch."""
        for launch in self._launches:
            if launch.scratch is not None:
                starts = zip(launch.params, launch.starts, strict=True)
                saved = [launch.scratch.as_strided(p.shape, p.stride(), start) for p, start in starts]
                torch._foreach_copy_(launch.params, saved)
        self.drop()

    def drop(self) -> None:
        """The step is over: frees the scratch buffers for x_t."""
        for launch in self._launches:
            launch.scratch = None
            if launch.ref is not None:
                launch.versions = [p._version for p in launch.params]

    def _addresses(self, launch: _Launch) -> list[int]:
        """The addresses of Δ, g, x and x_ref (or the scratch for x_t), one list after the other."""
        grads = [p.grad.data_ptr() for p in launch.params]  # type: ignore[union-attr]
        addresses = launch.delta_addresses + grads + list(map(Tensor.data_ptr, launch.params))
        if launch.ref is not None:
            return addresses + launch.ref_addresses
        launch.scratch = torch.empty(launch.scratch_size, dtype=launch.x_type, device=self.device)
        first, width = launch.scratch.data_ptr(), launch.scratch.element_size()
        return addresses + [first + width * start for start in launch.starts]

    def _map(self, launch: _Launch) -> None:
        """Computes which block of which tensor each program takes."""
        *launch.starts, launch.scratch_size = _aligned([p.numel() for p in launch.params])
        sizes = torch.tensor([p.numel() for p in launch.params])
        blocks = (sizes + CHUNK - 1) // CHUNK
        tensor = torch.repeat_interleave(torch.arange(len(sizes)), blocks)
        first = torch.cumsum(blocks, 0) - blocks
        start = (torch.arange(len(tensor)) - first[tensor]) * CHUNK
        per_group = torch.zeros(self.groups + 1, dtype=torch.int64)
        per_group.index_add_(0, torch.tensor(launch.groups) + 1, blocks)
        launch.blocks = len(tensor)
        launch.maps = (tensor.to(self.device), start.to(self.device), sizes.to(self.device))
        launch.group_start = torch.cumsum(per_group, 0).to(self.device)

    def _send(self, name: str, values: Tensor) -> Tensor:
        """Copies a small tensor to the device through pinned memory, without a wait. At most once per step and name, since the
        pinned buffer is reused."""
        if name not in self._pinned or self._pinned[name].shape != values.shape:
            self._pinned[name] = torch.empty_like(values, pin_memory=True)
        self._pinned[name].copy_(values)
        return self._pinned[name].to(self.device, non_blocking=True)


def _aligned(numels: Sequence[int]) -> list[int]:
    """Where each tensor starts in one buffer for all of them, in elements, and the buffer's size."""
    starts, at = [], 0
    for numel in numels:
        starts.append(at)
        at += -(-numel // 128) * 128
    return [*starts, at]
